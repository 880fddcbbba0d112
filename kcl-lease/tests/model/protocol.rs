//! What workers, the table and time can do next. Whatever the protocol decides is asked of the library.
//!
//! Explored is more than any one worker would do: it may ask for any lease of another, and let any go. That each step that the library's
//! `plan` asks for is among these is a property of its own, see `properties`.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kcl_lease::term::after_refusal;
use kcl_lease::{Lease, LeaseWrite, assignment, cleanup};

use crate::clock::Ticks;
use crate::mutation::Mutation;
use crate::row::{CHILD, END, Intent, PARENT, Row, Start, Write};
use crate::state::{Breach, Call, Hold, State, Term, Worker};

/// One configuration: what there is, and how much may go wrong.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) workers: u8,
    /// Records of each shard.
    pub(crate) records: u8,
    /// Whether the shard ends, and another one is its child.
    pub(crate) reshard: bool,
    pub(crate) crashes: u8,
    /// Copies of writes that arrive after their sender has sent them again, or is gone.
    pub(crate) delays: u8,
    pub(crate) ticks: Ticks,
    /// Whether clocks and pauses keep to what the lease duration assumes. If not, a worker believes in its term until the table tells.
    pub(crate) clocks_hold: bool,
    /// Whether workers ask others for leases.
    pub(crate) handoffs: bool,
    /// Whether workers let leases go unasked, as when they shut down.
    pub(crate) shutdowns: bool,
    /// Whether checkpoints are transactions.
    pub(crate) transactions: bool,
    /// Whether every plan of the library is looked at, which takes as long as all else.
    pub(crate) plans: bool,
    pub(crate) mutation: Option<Mutation>,
    /// The events that happened so far, noted outside of the states so that these do not multiply.
    pub(crate) events: Arc<AtomicU8>,
}

/// What a single attempt at a write comes to, if it comes to anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attempt {
    AtOnce,
    Late,
}

/// What happens next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Tick,
    /// A worker dies, and another one starts in its place.
    Crash(usize),
    /// The finished lease is deleted.
    CleanUp,
    /// A late copy reaches the table.
    Arrive(usize),
    Of(usize, usize, Step),
}

/// What one worker does about one lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Notes the row to see whether it moves.
    Look,
    Take,
    Request(Attempt),
    /// Hands over what is its own in name only.
    HandBack(Attempt),
    /// A copy of the write in hand will be late.
    Delay,
    /// The write in hand reaches the table.
    Reach,
    LoseAnswer,
    Receive,
    Renew,
    Checkpoint(u8),
    Release,
    /// The handoff deadline is over, or the consumer is gone.
    LetGo,
    /// The consumer is gone, and the coordinator does not know any more that its keeper still writes.
    Forget,
    Deliver,
    Acknowledge,
    CreateChild,
    /// A checkpoint that is a transaction is given up, and a renewal from the same row settles what became of it.
    Settle,
    /// Only by mistake: another write from the same row.
    GiveUpWrite,
}

impl Protocol {
    pub(crate) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn first(&self) -> State {
        State {
            rows: [Some(Row::NEW), None],
            workers: vec![Worker::NEW; self.workers.into()],
            late: Vec::new(),
            crashes: self.crashes,
            delays: self.delays,
            acknowledged: [0; 2],
            breaches: 0,
        }
    }

    /// All leases as the library sees them.
    pub(crate) fn leases(state: &State) -> Vec<Lease> {
        (0..state.rows.len()).filter_map(|lease| state.rows[lease].map(|row| row.lease(lease))).collect()
    }

    /// Whether records may be delivered.
    pub(crate) fn believes(&self, term: &Term) -> bool {
        !term.leaving && (!self.clocks_hold || term.age < self.ticks.valid)
    }

    /// Whether an observer takes the row's owner for dead.
    pub(crate) fn is_dead(&self, worker: &Worker, lease: usize) -> bool {
        let patience = self.ticks.dead - u8::from(self.has(Mutation::Impatient));
        worker.unmoved[lease].is_some_and(|ticks| ticks >= patience)
    }

    /// Whether a worker may go for a lease as it finds it: its own without a term, a free one, or a dead one's.
    pub(crate) fn may_take(&self, state: &State, start: usize, lease: usize) -> bool {
        let (worker, Some(row)) = (&state.workers[start], state.rows[lease]) else { return false };
        let mine = row.owner.map(usize::from) == Some(start) && (row.checkpoint_owner.is_none() || self.has(Mutation::HandoffNotAwaited));
        let within_reach = mine || row.actual_owner().is_none() || self.is_dead(worker, lease);
        worker.holds[lease] == Hold::Nothing && within_reach && self.may_start(state, lease)
    }

    fn may_start(&self, state: &State, lease: usize) -> bool {
        let leases = Self::leases(state);
        self.has(Mutation::ChildrenStartAtOnce) && lease == CHILD
            || assignment::startable(&leases).iter().any(|startable| startable.shard_id == crate::row::shard(lease))
    }

    /// The request that a worker can make.
    pub(crate) fn request(&self, state: &State, start: usize, lease: usize) -> Option<Write> {
        let row = state.rows[lease].filter(|row| row.checkpoint != END)?;
        let possible = self.handoffs && state.workers[start].holds[lease] == Hold::Nothing;
        LeaseWrite::request_handoff(&row.lease(lease), &crate::row::worker(start_of(start))).filter(|_| possible)?;
        Some(Write { intent: Intent::Request, by: start_of(start), seen: row.known(), id: 0, stale: false, applied: false, settles: 0 })
    }

    /// The release of a lease that is a worker's in name only, while another one waits for it.
    pub(crate) fn hand_back(state: &State, start: usize, lease: usize) -> Option<Write> {
        let row = state.rows[lease].filter(|row| row.checkpoint_owner == Some(start_of(start)))?;
        let nobodys = state.workers[start].holds[lease] == Hold::Nothing;
        nobodys.then(|| new_write(state, start, lease, Intent::Release(None), row))
    }

    /// All that can happen next.
    pub(crate) fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        if state.crashes > 0 {
            let matters = |start: &usize| state.workers[*start] != Worker::NEW || state.names(start_of(*start));
            actions.extend((0..state.workers.len()).filter(matters).map(Action::Crash));
        }
        actions.extend((0..state.late.len()).map(Action::Arrive));
        if self.reshard && state.parent_is_over() && !self.deletable(state).is_empty() {
            actions.push(Action::CleanUp);
        }
        for lease in 0..=usize::from(self.reshard) {
            for start in 0..state.workers.len() {
                self.steps(state, start, lease, &mut |step| actions.push(Action::Of(start, lease, step)));
            }
        }
    }

    fn steps(&self, state: &State, start: usize, lease: usize, push: &mut dyn FnMut(Step)) {
        let worker = &state.workers[start];
        let late = state.delays > 0;
        match &worker.holds[lease] {
            Hold::Nothing => self.steps_without_hold(state, start, lease, push),
            Hold::Taking(call) => call_steps(call, late, push),
            Hold::Term(term) => {
                if let Some(call) = &term.call {
                    call_steps(call, late, push);
                    if self.transactions && call.answer.is_none() && matches!(call.write.intent, Intent::Checkpoint(_)) {
                        push(Step::Settle);
                    }
                    if call.answer.is_none() && !term.leaving && self.has(Mutation::AnotherWriteAfterUnknownOutcome) {
                        push(Step::GiveUpWrite);
                    }
                }
                self.term_steps(state, lease, term, push);
            }
        }
    }

    fn steps_without_hold(&self, state: &State, start: usize, lease: usize, push: &mut dyn FnMut(Step)) {
        let Some(row) = state.rows[lease] else { return };
        let worker = &state.workers[start];
        let others = row.actual_owner().is_some_and(|owner| usize::from(owner) != start);
        if others && worker.unmoved[lease].is_none() && row.checkpoint != END {
            push(Step::Look);
        }
        if self.may_take(state, start, lease) {
            push(Step::Take);
        }
        let late = state.delays > 0;
        if self.request(state, start, lease).is_some() {
            push(Step::Request(Attempt::AtOnce));
            if late {
                push(Step::Request(Attempt::Late));
            }
        }
        if Self::hand_back(state, start, lease).is_some() {
            push(Step::HandBack(Attempt::AtOnce));
            if late {
                push(Step::HandBack(Attempt::Late));
            }
        }
    }

    fn term_steps(&self, state: &State, lease: usize, term: &Term, push: &mut dyn FnMut(Step)) {
        let finished = term.finished == self.records;
        if self.believes(term) && !finished && !term.in_work {
            push(Step::Deliver);
        }
        if term.in_work && !term.leaving {
            push(Step::Acknowledge);
        }
        if self.reshard && lease == PARENT && finished && state.rows[CHILD].is_none() && self.believes(term) {
            push(Step::CreateChild);
        }
        if state.delays > 0 && term.call.is_none_or(|call| call.answer.is_none()) {
            push(Step::Forget);
        }
        if term.call.is_some() || term.leaving {
            return;
        }
        if term.age > 0 {
            push(Step::Renew);
        }
        let in_work = u8::from(term.in_work && self.has(Mutation::CheckpointsWhatIsInWork));
        (1..=term.finished + in_work).filter(|record| *record != term.held.checkpoint).for_each(|record| push(Step::Checkpoint(record)));
        let ended = self.reshard && lease == PARENT && finished;
        if !term.in_work && (term.asked || self.shutdowns || ended) {
            push(Step::Release);
        }
        if term.asked || (term.in_work && self.shutdowns) {
            push(Step::LetGo);
        }
    }

    pub(crate) fn deletable(&self, state: &State) -> Vec<Lease> {
        let mut leases = Self::leases(state);
        if self.has(Mutation::DeletedAtOnce) {
            leases.retain(Lease::is_finished);
            return leases;
        }
        cleanup::deletable(&leases, &|_| true)
    }

    pub(crate) fn after_a_tick(&self, state: &State) -> State {
        let mut state = state.clone();
        let age = |age: &mut u8| *age = (*age + 1).min(self.ticks.valid.max(self.ticks.dead));
        for hold in state.workers.iter_mut().flat_map(|worker| &mut worker.holds) {
            if let Hold::Term(term) = hold {
                age(&mut term.age);
            }
            if let Some(call) = hold.call_mut() {
                age(&mut call.age);
                if call.write.settles != 0 {
                    age(&mut call.settled_age);
                }
            }
        }
        state.workers.iter_mut().flat_map(|worker| &mut worker.unmoved).flatten().for_each(age);
        state
    }
}

/// Starts are few.
pub(crate) fn start_of(start: usize) -> Start {
    start.try_into().expect("invariant: few workers")
}

/// A write that nobody has sent yet.
pub(crate) fn new_write(state: &State, start: usize, lease: usize, intent: Intent, seen: Row) -> Write {
    Write { intent, by: start_of(start), seen: seen.known(), id: state.fresh_id(lease), stale: false, applied: false, settles: 0 }
}

/// What can become of a write in hand. That it gets lost on its way is no step: it is sent again.
fn call_steps(call: &Call, late: bool, push: &mut dyn FnMut(Step)) {
    if call.answer.is_some() {
        push(Step::Receive);
        push(Step::LoseAnswer);
    } else {
        push(Step::Reach);
        if late {
            push(Step::Delay);
        }
    }
}

/// What the keeper makes of a refusal: the library's decision.
pub(crate) fn goes_on(held: Row, row: Option<Row>, lease: usize) -> Option<Row> {
    after_refusal(&held.lease(lease), row.map(|row| row.lease(lease)).as_ref()).map(|row| Row::of(&row).known())
}

/// A deletion before all children have begun.
pub(crate) fn deleted_early(state: &State) -> Option<Breach> {
    (state.acknowledged[CHILD] == 0 || state.rows[CHILD].is_none_or(|child| child.checkpoint == 0)).then_some(Breach::DeletedEarly)
}
