//! What each step does: to the table, to who takes it, and to the notes of the omniscient observer.

use kcl_checkpoint::InitialPosition;
use kcl_lease::HashKeyRange;
use kcl_lease::shard_sync::{ChildShard, Shard, child_leases, missing_leases};

use crate::mutation::Mutation;
use crate::properties::Event;
use crate::protocol::{Action, Attempt, Protocol, Step, deleted_early, goes_on, new_write, start_of};
use crate::row::{CHILD, END, Intent, PARENT, Row, Start, Write, shard};
use crate::state::{Answer, Breach, Call, Hold, Late, State, Term, Worker};

impl Protocol {
    /// The state after an action.
    pub(crate) fn after(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => next = self.after_a_tick(state),
            Action::Crash(start) => crash(&mut next, start),
            Action::Arrive(index) => {
                let late = next.late.remove(index);
                let answer = self.reach(&mut next, late.lease, &late.write);
                self.witness(Event::LateInEffect, matches!(answer, Answer::Applied { .. }));
            }
            Action::CleanUp => {
                let gone = self.deletable(state).first().map(|lease| usize::from(lease.shard_id == shard(CHILD)))?;
                deleted_early(&next).into_iter().for_each(|breach| next.note(breach));
                next.rows[gone] = None;
                self.look_for_holes(&mut next);
            }
            Action::Of(start, lease, step) => self.step(&mut next, start, lease, step)?,
        }
        Some(self.canonical(next))
    }

    fn step(&self, state: &mut State, start: usize, lease: usize, step: Step) -> Option<()> {
        match step {
            Step::Look => state.workers[start].unmoved[lease] = Some(0),
            Step::Take => {
                let write = new_write(state, start, lease, Intent::Take, state.rows[lease]?);
                let worker = &mut state.workers[start];
                (worker.holds[lease], worker.unmoved[lease]) = (Hold::Taking(Call { write, age: 0, settled_age: 0, answer: None }), None);
            }
            Step::Request(attempt) => {
                let write = self.request(state, start, lease)?;
                self.attempt(state, lease, write, attempt);
            }
            Step::HandBack(attempt) => {
                let write = Self::hand_back(state, start, lease)?;
                self.attempt(state, lease, write, attempt);
            }
            Step::Delay => {
                let write = state.workers[start].holds[lease].call()?.write;
                self.attempt(state, lease, write, Attempt::Late);
            }
            Step::Reach => {
                let write = state.workers[start].holds[lease].call()?.write;
                let answer = self.reach(state, lease, &write);
                state.workers[start].holds[lease].call_mut()?.answer = Some(answer);
                // One that finds nothing changed by it may as well be told at once.
                if matches!(answer, Answer::Refused(_)) {
                    self.receive(state, start, lease)?;
                }
            }
            Step::LoseAnswer => state.workers[start].holds[lease].call_mut()?.answer = None,
            Step::Receive => self.receive(state, start, lease)?,
            Step::Forget => {
                let term = *state.workers[start].holds[lease].term()?;
                let write = term.call.map(|call| call.write);
                let release = || Write { stale: term.stale, ..new_write(state, start, lease, Intent::Release(None), term.held) };
                let write = write.unwrap_or_else(release);
                self.attempt(state, lease, write, Attempt::Late);
                state.workers[start].holds[lease] = Hold::Nothing;
            }
            Step::CreateChild => {
                let Hold::Term(term) = state.workers[start].holds[lease] else { return None };
                self.create_child(state, term.held);
            }
            step => self.term_step(state, start, lease, step)?,
        }
        Some(())
    }

    fn term_step(&self, state: &mut State, start: usize, lease: usize, step: Step) -> Option<()> {
        let mut term = *state.workers[start].holds[lease].term()?;
        match step {
            Step::Deliver => {
                if lease == CHILD && !(state.parent_is_over() && state.acknowledged[PARENT] == self.records) {
                    state.note(Breach::ChildFirst);
                }
                term.in_work = true;
            }
            Step::Acknowledge => {
                term.in_work = false;
                term.finished += 1;
                if state.acknowledged[lease] + 1 == term.finished {
                    state.acknowledged[lease] += 1;
                }
            }
            Step::GiveUpWrite => term.call = None,
            Step::Settle => {
                let transaction = term.call?;
                // The same row: what was held when the transaction was made.
                let renewal = write_of(state, start, lease, Intent::Renew, &term);
                let write = Write { settles: transaction.write.id, ..renewal };
                let settled_age = if self.has(Mutation::SettledValidFromTheRenewal) { 0 } else { transaction.age };
                term.call = Some(Call { write, age: 0, settled_age, answer: None });
            }
            step => {
                let intent = self.intent(state, lease, &term, step)?;
                term.leaving = matches!(intent, Intent::Release(_));
                term.call = Some(Call { write: write_of(state, start, lease, intent, &term), age: 0, settled_age: 0, answer: None });
            }
        }
        state.workers[start].holds[lease] = Hold::Term(term);
        Some(())
    }

    fn intent(&self, state: &State, lease: usize, term: &Term, step: Step) -> Option<Intent> {
        let ended = self.reshard && lease == PARENT && term.finished == self.records;
        let may_end = state.rows[CHILD].is_some() || self.has(Mutation::ChildrenMadeAfterTheEnd);
        Some(match step {
            Step::Renew => Intent::Renew,
            Step::Checkpoint(record) => Intent::Checkpoint(record),
            Step::Release if ended && may_end => Intent::Release(Some(END)),
            Step::Release => Intent::Release(Some(term.finished).filter(|finished| *finished > term.held.checkpoint)),
            Step::LetGo => Intent::Release(None),
            _ => return None,
        })
    }

    /// One attempt, whose answer nobody needs.
    fn attempt(&self, state: &mut State, lease: usize, write: Write, attempt: Attempt) {
        match attempt {
            Attempt::AtOnce => {
                self.reach(state, lease, &write);
            }
            Attempt::Late => {
                state.delays -= 1;
                state.late.push(Late { lease, write });
            }
        }
    }

    /// A write reaches the table, which answers as every [`LeaseTable`](kcl_lease::table::LeaseTable) does.
    fn reach(&self, state: &mut State, lease: usize, write: &Write) -> Answer {
        let Some(row) = state.rows[lease] else { return Answer::Refused(None) };
        let (Some(conditional), present) = (write.build(lease, self.mutation), row.lease(lease)) else { return Answer::Refused(None) };
        if let Some(new) = conditional.apply(&present) {
            let new = Row::of(&new);
            let handed = matches!(write.intent, Intent::Release(_)) && new.owner.is_some_and(|owner| owner != write.by);
            self.witness(Event::HandedOver, handed);
            self.in_effect(state, lease, write, row, new);
            return Answer::Applied { row: new.known(), again: false };
        }
        if conditional.is_in_effect(&present) && !self.has(Mutation::OwnWritesNotRecognised) {
            return Answer::Applied { row: row.known(), again: true };
        }
        if write.shows_what_it_settles(row, lease) && !self.has(Mutation::SettledBlindly) {
            self.witness(Event::Settled, true);
            return Answer::Settled(row.known());
        }
        self.witness(Event::OlderTermRefused, write.stale && write.intent != Intent::Take);
        let requested = goes_on(write.seen, Some(row), lease).filter(|_| !self.has(Mutation::RequestTakenForLoss));
        Answer::Refused(requested.filter(|_| write.intent != Intent::Take))
    }

    fn in_effect(&self, state: &mut State, lease: usize, write: &Write, old: Row, new: Row) {
        if write.stale {
            state.note(Breach::Unfenced);
        }
        if new.checkpoint < old.checkpoint {
            state.note(Breach::MovedBack);
        }
        state.rows[lease] = Some(new);
        if old.pulse() != new.pulse() {
            state.workers.iter_mut().for_each(|worker| worker.unmoved[lease] = None);
        }
        let taken = write.intent == Intent::Take;
        state.for_each_write(lease, |other| {
            let same = other.id == write.id && other.by == write.by;
            other.applied |= same;
            // A request is no write of a term.
            other.stale |= taken && !same && other.intent != Intent::Request;
        });
        if taken {
            state.workers.iter_mut().for_each(|worker| {
                if let Hold::Term(term) = &mut worker.holds[lease] {
                    term.stale = true;
                }
            });
        }
        if new.checkpoint != old.checkpoint {
            self.look_for_holes(state);
        }
    }

    fn receive(&self, state: &mut State, start: usize, lease: usize) -> Option<()> {
        let hold = &state.workers[start].holds[lease];
        let call = *hold.call()?;
        let own = call.write.applied && !call.write.stale;
        let age = if self.has(Mutation::ValidFromTheAnswer) { 0 } else { call.age };
        let new = match (*hold, call.answer?) {
            (Hold::Taking(_), Answer::Applied { row, .. }) => {
                let start = if self.has(Mutation::StartsWhereItLooked) { call.write.seen.checkpoint } else { row.checkpoint };
                let term = Term {
                    held: row,
                    age,
                    finished: start,
                    in_work: false,
                    asked: self.notices(row),
                    leaving: false,
                    stale: call.write.stale,
                    call: None,
                };
                let present = state.rows[lease].map_or(END, |row| row.checkpoint);
                if start > present || (start != present && !term.stale) {
                    state.note(Breach::StartedElsewhere);
                }
                Hold::Term(term)
            }
            (Hold::Taking(_), Answer::Refused(_) | Answer::Settled(_)) => {
                if own {
                    state.note(Breach::GivenUp);
                }
                Hold::Nothing
            }
            (Hold::Term(_), Answer::Applied { .. }) if matches!(call.write.intent, Intent::Release(_)) => Hold::Nothing,
            (Hold::Term(term), Answer::Applied { row, .. }) => {
                Hold::Term(Term { held: row, age: term.age.min(age), asked: term.asked || self.notices(row), call: None, ..term })
            }
            (Hold::Term(term), Answer::Settled(row)) => {
                let age = if self.has(Mutation::ValidFromTheAnswer) { 0 } else { call.settled_age };
                Hold::Term(Term { held: row, age: term.age.min(age), asked: term.asked || self.notices(row), call: None, ..term })
            }
            // The transaction is dead: it expects that nobody has asked. Whoever wants it makes another.
            (Hold::Term(term), Answer::Refused(Some(row))) if call.write.settles != 0 => {
                Hold::Term(Term { held: row, asked: true, call: None, ..term })
            }
            (Hold::Term(term), Answer::Refused(Some(row))) => {
                let term = Term { held: row, asked: true, ..term };
                let write = write_of(state, start, lease, call.write.intent, &term);
                Hold::Term(Term { call: Some(Call { write, age: 0, settled_age: 0, answer: None }), ..term })
            }
            (Hold::Term(term), Answer::Refused(None)) => {
                // One that lets go is not kept from it.
                if !term.stale && !term.leaving {
                    state.note(Breach::GivenUp);
                }
                Hold::Nothing
            }
            (Hold::Nothing, _) => return None,
        };
        state.workers[start].holds[lease] = new;
        Some(())
    }

    /// Whether a keeper sees in its own row that another worker asked for the lease.
    fn notices(&self, row: Row) -> bool {
        row.checkpoint_owner.is_some() && !self.has(Mutation::RequestOverlooked)
    }

    fn create_child(&self, state: &mut State, parent: Row) {
        let whole = HashKeyRange { start: 0, end: u128::MAX };
        let child = ChildShard { shard_id: shard(CHILD), parents: [shard(PARENT)].into(), hash_range: whole };
        for lease in child_leases(&parent.lease(PARENT), &[child], None) {
            state.rows[CHILD].get_or_insert_with(|| Row::of(&lease));
        }
        self.look_for_holes(state);
    }

    /// Whether shard sync would find that a lease is missing: between any two writes there is none.
    fn look_for_holes(&self, state: &mut State) {
        let listed = |lease: usize, number: u128| Shard {
            shard_id: shard(lease),
            parents: (lease == CHILD).then(|| shard(PARENT)).into_iter().collect(),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
            starting_sequence_number: number.into(),
            ending_sequence_number: (lease == PARENT).then(|| (number + 9).into()),
        };
        let shards = [listed(PARENT, 1), listed(CHILD, 10)];
        let unread = state.parent_is_over() && state.rows[CHILD].is_none();
        if self.reshard && (unread || !missing_leases(&shards, &Self::leases(state), InitialPosition::TrimHorizon, None).is_empty()) {
            state.note(Breach::Hole);
        }
    }
}

fn write_of(state: &State, start: usize, lease: usize, intent: Intent, term: &Term) -> Write {
    Write { stale: term.stale, ..new_write(state, start, lease, intent, term.held) }
}

/// The worker is gone with all that it knew; who starts in its place has another name.
fn crash(state: &mut State, start: usize) {
    state.crashes -= 1;
    state.workers[start] = Worker::NEW;
    // Nobody has this name: those that are gone are named from the number of workers on, without a gap.
    let gone = (0..).map(|more| start_of(state.workers.len()) + more).find(|name: &Start| !state.names(*name));
    let gone = gone.expect("invariant: few starts");
    state.rename(|name| if usize::from(name) == start { gone } else { name });
}
