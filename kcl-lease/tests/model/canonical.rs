//! One state for all that differ in nothing that matters: names, numbers, and writes that nothing can bring into effect any more.
//!
//! This is what makes the space finite though renewals never end. It rests on what the library's conditions look at: counters are compared
//! for equality and for one more, and never go back while a row exists; write ids for equality; workers by name.

use crate::protocol::{Protocol, start_of};
use crate::row::{Intent, Row, Start, Write};
use crate::state::{Answer, Call, Hold, State, Term};

/// The counter that every row has: what is known of earlier ones is below it.
const COUNTER: u8 = 2;

impl Protocol {
    /// The same state in its canonical form.
    pub(crate) fn canonical(&self, mut state: State) -> State {
        for lease in 0..state.rows.len() {
            if let Some(row) = state.rows[lease] {
                self.forget_the_spent(&mut state, lease, row);
                relative_counters(&mut state, lease, row.counter);
            }
        }
        sort_workers(&mut state);
        name_the_dead(&mut state);
        for lease in 0..state.rows.len() {
            number_writes(&mut state, lease);
        }
        state.late.sort_unstable();
        state
    }

    /// Whether a write can't come into effect any more: the row refuses it, and expects a higher counter, which only grows.
    fn is_spent(&self, write: &Write, lease: usize, row: Row) -> bool {
        if write.seen.counter >= row.counter {
            return false;
        }
        let Some(conditional) = write.build(lease, self.mutation) else { return false };
        conditional.expected.counter.is_some_and(|counter| counter < row.counter.into()) && conditional.apply(&row.lease(lease)).is_none()
    }

    /// Writes that can't come into effect any more, and whose answer makes no difference, are as good as answered.
    fn forget_the_spent(&self, state: &mut State, lease: usize, row: Row) {
        state.late.retain(|late| late.lease != lease || !self.is_spent(&late.write, lease, row));
        for start in 0..state.workers.len() {
            let hold = &mut state.workers[start].holds[lease];
            let answered = match hold {
                Hold::Taking(call) => call.answer.is_none() && call.write.stale && self.is_spent(&call.write, lease, row),
                Hold::Term(term) if term.leaving => term.call.is_some_and(|call| self.is_spent(&call.write, lease, row)),
                Hold::Term(term) if term.stale => {
                    self.forget_the_lost(term, start_of(start), lease, row);
                    false
                }
                _ => false,
            };
            if answered {
                *hold = Hold::Nothing;
            }
        }
    }

    /// Of a term that can only learn that it is lost, nothing matters but how long it believes in itself.
    fn forget_the_lost(&self, term: &mut Term, by: Start, lease: usize, row: Row) {
        let write = Write { intent: Intent::Renew, by, seen: term.held, id: 0, stale: true, applied: false, settles: 0 };
        if !self.is_spent(&write, lease, row) {
            return;
        }
        let age = |call: &Call| if matches!(call.answer, Some(Answer::Settled(_))) { call.settled_age } else { call.age };
        let prolongs = |call: &Call| matches!(call.answer, Some(Answer::Applied { .. } | Answer::Settled(_))) && age(call) < term.age;
        let (age, answer) = match term.call.filter(prolongs) {
            Some(call) => (age(&call), Some(Answer::Applied { row: Row::NEW, again: false })),
            None => (0, None),
        };
        let call = Call { write: Write { seen: Row::NEW, ..write }, age, settled_age: 0, answer };
        *term = Term { held: Row::NEW, finished: 0, in_work: false, asked: false, call: Some(call), ..*term };
    }
}

fn relative_counters(state: &mut State, lease: usize, counter: u8) {
    let relative = |row: &mut Row| row.counter = COUNTER.saturating_sub(counter.saturating_sub(row.counter));
    state.rows[lease].iter_mut().for_each(relative);
    state.for_each_known(lease, relative);
}

/// Ids in the order in which they are met; none for a row whose write nobody repeats any more.
fn number_writes(state: &mut State, lease: usize) {
    // The row's is 1. A request has none: 0.
    let (mut known, mut next) = ([0; 16], 1);
    if let Some(row) = state.rows[lease].as_mut().filter(|row| row.write_id != 0) {
        known[usize::from(row.write_id)] = 1;
        row.write_id = 1;
    }
    state.for_each_write(lease, |write| {
        for named in [&mut write.id, &mut write.settles] {
            let id = &mut known[usize::from(*named)];
            if *id == 0 && *named != 0 {
                next += 1;
                *id = next;
            }
            *named = *id;
        }
    });
    let repeated = state.writes(lease).any(|write| write.id == 1 || write.settles == 1);
    if let Some(row) = state.rows[lease].as_mut().filter(|_| !repeated) {
        row.write_id = 0;
    }
}

/// Puts workers in an order of what they do. Which of them is which makes no difference.
fn sort_workers(state: &mut State) {
    let count = state.workers.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|start| shape(state, *start));
    if order.is_sorted() {
        return;
    }
    state.workers = order.iter().map(|start| state.workers[*start]).collect();
    state.rename(|start| {
        let place = order.iter().position(|before| *before == usize::from(start));
        place.map_or(start, |place| place.try_into().expect("invariant: few workers"))
    });
}

/// What a worker looks like without anybody's name.
fn shape(state: &State, start: usize) -> u64 {
    let worker = &state.workers[start];
    let named = |row: &Row| [row.owner, row.checkpoint_owner].map(|owner| owner.is_some_and(|owner| usize::from(owner) == start));
    let mut shape = 0;
    let mut add = |value: u8, bits: u32| shape = (shape << bits) | u64::from(value);
    for lease in 0..state.rows.len() {
        for named in state.rows[lease].as_ref().map_or([false; 2], named) {
            add(named.into(), 1);
        }
        add(worker.unmoved[lease].map_or(7, |ticks| ticks), 3);
        let (kind, age, finished, flags) = match &worker.holds[lease] {
            Hold::Nothing => (0, 0, 0, 0),
            Hold::Taking(_) => (1, 0, 0, 0),
            Hold::Term(term) => {
                (2, term.age, term.finished, u8::from(term.in_work) * 4 + u8::from(term.leaving) * 2 + u8::from(term.stale))
            }
        };
        add(kind, 2);
        add(age, 3);
        add(finished, 2);
        add(flags, 3);
        let call = worker.holds[lease].call();
        add(call.map_or(0, |call| 1 + u8::from(call.answer.is_some())), 2);
        add(call.map_or(0, |call| call.age), 3);
        add(call.map_or(0, |call| call.write.seen.counter), 4);
    }
    let late = state.late.iter().filter(|late| usize::from(late.write.by) == start).count();
    add(u8::try_from(late).unwrap_or(u8::MAX), 4);
    shape
}

/// Names those that are gone in the order in which they are met.
fn name_the_dead(state: &mut State) {
    let running = Start::try_from(state.workers.len()).expect("invariant: few workers");
    let mut met: Vec<Start> = Vec::new();
    for lease in 0..state.rows.len() {
        let mut meet = |starts: &[Option<Start>]| {
            for start in starts.iter().flatten().filter(|start| **start >= running) {
                if !met.contains(start) {
                    met.push(*start);
                }
            }
        };
        if let Some(row) = state.rows[lease] {
            meet(&[row.owner, row.checkpoint_owner]);
        }
        state.for_each_known(lease, |row| meet(&[row.owner, row.checkpoint_owner]));
        state.for_each_write(lease, |write| meet(&[Some(write.by)]));
    }
    if !met.is_empty() {
        let place = |start: Start| met.iter().position(|known| *known == start);
        state.rename(|start| place(start).map_or(start, |place| running + Start::try_from(place).expect("invariant: few starts")));
    }
}
