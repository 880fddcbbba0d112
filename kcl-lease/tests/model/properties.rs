//! What must always hold, and what must happen at least once lest the model prove nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kcl_lease::assignment::{View, plan};
use kcl_lease::{Entropy, Lease};
use stateright::{Model, Property};

use crate::protocol::{Action, Protocol};
use crate::row::{CHILD, END, Intent, PARENT, Row, Start, shard, worker};
use crate::state::{Answer, Breach, Call, Hold, State, Term};

pub(crate) const FENCING: &str = "after a take no write of an older term is in effect";
pub(crate) const NO_LOSS: &str = "a checkpoint covers finished records only";
pub(crate) const FORWARD: &str = "a checkpoint never moves back";
pub(crate) const START: &str = "a term starts at the checkpoint that its take found";
pub(crate) const PARENT_FIRST: &str = "a child is read after its parent";
pub(crate) const EXCLUSION: &str = "one worker at most believes in its term";
pub(crate) const RECOGNITION: &str = "nobody gives up what the table says is its own";
pub(crate) const NO_HOLE: &str = "no shard is without a lease or an ancestor's";
pub(crate) const KEPT: &str = "a lease is kept until its children have begun";
pub(crate) const NOTICED: &str = "a request for a handoff is noticed";
pub(crate) const PLANNED: &str = "whatever a worker plans is explored";

/// What must happen in some step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// An owner's last write made another worker the owner.
    HandedOver = 1,
    /// The table refused a write of an older term.
    OlderTermRefused = 2,
    /// A copy that was late came into effect.
    LateInEffect = 4,
    /// A renewal found the transaction in effect that it settles.
    Settled = 8,
}

impl Protocol {
    /// Notes an event if it happened.
    pub(crate) fn witness(&self, event: Event, happened: bool) {
        if happened {
            self.events.fetch_or(event as u8, Ordering::Relaxed);
        }
    }

    fn saw(&self, event: Event) -> bool {
        self.events.load(Ordering::Relaxed) & event as u8 != 0
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.canonical(self.first())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        Self::actions(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.after(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always(FENCING, |_, state| !state.has(Breach::Unfenced)),
            Property::<Self>::always(NO_LOSS, no_loss),
            Property::<Self>::always(FORWARD, |_, state| !state.has(Breach::MovedBack)),
            Property::<Self>::always(START, |_, state| !state.has(Breach::StartedElsewhere)),
            Property::<Self>::always(RECOGNITION, |_, state| !state.has(Breach::GivenUp)),
            Property::<Self>::always(NOTICED, |_, state| terms(state).all(|term| term.asked || term.held.checkpoint_owner.is_none())),
            Property::<Self>::sometimes("a living worker's lease is taken", |_, state| terms(state).any(|term| term.stale)),
            Property::<Self>::sometimes("a write of an older term is refused", |model, _| model.saw(Event::OlderTermRefused)),
            Property::<Self>::sometimes("a lost answer is settled", |_, state| calls(state).any(is_recognised)),
            Property::<Self>::sometimes("a term that was suspended goes on", goes_on_after_suspension),
        ];
        if self.transactions {
            properties.push(Property::<Self>::sometimes("a transaction turns out to be in effect", |model, _| model.saw(Event::Settled)));
        }
        if self.plans {
            properties.push(Property::<Self>::always(PLANNED, plans_are_explored));
        }
        if self.clocks_hold {
            properties.push(Property::<Self>::always(EXCLUSION, |model, state| !two_believe(model, state)));
        } else {
            properties.push(Property::<Self>::sometimes("two workers believe in their terms", two_believe));
        }
        if self.crashes > 0 {
            properties.push(Property::<Self>::sometimes("a dead worker's lease is taken", takes_from_the_dead));
        }
        if self.delays > 0 {
            properties.extend([
                Property::<Self>::sometimes("a late write comes into effect", |model, _| model.saw(Event::LateInEffect)),
                Property::<Self>::sometimes("an orphan is taken again", |_, state| calls(state).any(takes_an_orphan)),
            ]);
        }
        if self.handoffs {
            properties.extend([
                Property::<Self>::sometimes("a handoff is completed", |model, _| model.saw(Event::HandedOver)),
                Property::<Self>::sometimes("an owner lets go with a record in work", |_, state| {
                    terms(state).any(|term| term.leaving && term.in_work && term.asked)
                }),
                Property::<Self>::sometimes("a request comes between a write and its repetition", |_, state| {
                    calls(state).any(|call| is_recognised(call) && call.write.seen.checkpoint_owner.is_none() && shows_request(call))
                }),
            ]);
        }
        if self.handoffs && self.crashes > 0 {
            properties.extend([
                Property::<Self>::sometimes("the owner dies while it is asked", |_, state| in_handoff(state, |row| row.checkpoint_owner)),
                Property::<Self>::sometimes("the next owner dies before it has the lease", |_, state| in_handoff(state, |row| row.owner)),
            ]);
        }
        if self.reshard {
            properties.extend([
                Property::<Self>::always(PARENT_FIRST, |_, state| !state.has(Breach::ChildFirst)),
                Property::<Self>::always(NO_HOLE, |_, state| !state.has(Breach::Hole)),
                Property::<Self>::always(KEPT, |_, state| !state.has(Breach::DeletedEarly)),
                Property::<Self>::sometimes("a shard ends and its child begins", |_, state| {
                    state.rows[PARENT].is_some_and(|row| row.checkpoint == END && row.children) && state.acknowledged[CHILD] > 0
                }),
                Property::<Self>::sometimes("the parent's lease is deleted", |_, state| state.rows[PARENT].is_none()),
            ]);
        } else {
            properties
                .push(Property::<Self>::sometimes("all records are finished", |model, state| state.acknowledged[PARENT] == model.records));
        }
        properties
    }
}

fn terms(state: &State) -> impl Iterator<Item = &Term> {
    state.workers.iter().flat_map(|worker| &worker.holds).filter_map(Hold::term)
}

fn calls(state: &State) -> impl Iterator<Item = &Call> {
    state.workers.iter().flat_map(|worker| &worker.holds).filter_map(Hold::call)
}

fn no_loss(model: &Protocol, state: &State) -> bool {
    let covered = |checkpoint| if checkpoint == END { model.records } else { checkpoint };
    state.rows.iter().zip(state.acknowledged).all(|(row, finished)| row.is_none_or(|row| covered(row.checkpoint) <= finished))
}

fn two_believe(model: &Protocol, state: &State) -> bool {
    let believers =
        |lease: usize| state.workers.iter().filter(move |worker| worker.holds[lease].term().is_some_and(|term| model.believes(term)));
    (0..state.rows.len()).any(|lease| believers(lease).count() > 1)
}

fn is_recognised(call: &Call) -> bool {
    matches!(call.answer, Some(Answer::Applied { again: true, .. }))
}

fn shows_request(call: &Call) -> bool {
    matches!(call.answer, Some(Answer::Applied { row, .. }) if row.checkpoint_owner == Some(call.write.by))
}

fn goes_on_after_suspension(model: &Protocol, state: &State) -> bool {
    terms(state).any(|term| {
        let proof = term.call.is_some_and(|call| call.age < model.ticks.valid && matches!(call.answer, Some(Answer::Applied { .. })));
        term.age >= model.ticks.valid && proof && !term.leaving && !term.stale
    })
}

fn takes_an_orphan(call: &Call) -> bool {
    call.write.intent == Intent::Take && call.write.seen.owner == Some(call.write.by) && call.write.applied
}

fn is_gone(state: &State, start: Option<Start>) -> bool {
    start.is_some_and(|start| usize::from(start) >= state.workers.len())
}

fn takes_from_the_dead(_: &Protocol, state: &State) -> bool {
    calls(state).any(|call| call.write.intent == Intent::Take && call.write.applied && is_gone(state, call.write.seen.actual_owner()))
}

fn in_handoff(state: &State, who: impl Fn(&Row) -> Option<Start>) -> bool {
    state.rows.iter().flatten().any(|row| row.checkpoint_owner.is_some() && is_gone(state, who(row)))
}

/// Whether every step that the library's plan asks of a worker is one of those explored.
fn plans_are_explored(model: &Protocol, state: &State) -> bool {
    let leases = Protocol::leases(state);
    let index = |lease: &Lease| usize::from(lease.shard_id == shard(CHILD));
    (0..state.workers.len()).all(|start| {
        let me = worker(u8::try_from(start).expect("invariant: few workers"));
        let held = |lease: &usize| state.workers[start].holds[*lease] != Hold::Nothing;
        let held: BTreeSet<_> = (0..state.rows.len()).filter(held).map(shard).collect();
        let dead = |lease: &Lease| lease.actual_owner().is_some() && model.is_dead(&state.workers[start], index(lease));
        let view = View {
            me: &me,
            leases: &leases,
            held: &held,
            expired: &dead,
            overdue: &|lease| lease.owner.is_none() || dead(lease),
            unneeded: &|_| false,
            max_leases: 9,
            resting: false,
        };
        let plan = plan(&view, &Entropy::from_seed(1));
        plan.take.iter().all(|lease| model.may_take(state, start, index(lease)))
            && plan.request.iter().all(|lease| !model.handoffs || model.request(state, start, index(lease)).is_some())
            && plan.release.iter().all(|lease| Protocol::hand_back(state, start, index(lease)).is_some())
    })
}
