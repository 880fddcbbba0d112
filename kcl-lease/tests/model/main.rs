//! The lease protocol as a model, every state of which is explored: whatever workers, messages, crashes and clocks do in whatever order, the
//! properties hold.
//!
//! | module | owns |
//! |---|---|
//! | `row` | rows and writes in a few bytes, and the library's leases and writes that they stand for |
//! | `clock` | the library's durations in ticks |
//! | `state` | what a state is |
//! | `protocol` | a configuration, and what can happen next |
//! | `step` | what each step does |
//! | `canonical` | one state for all that do not differ in what matters |
//! | `properties` | what must always hold, and what must happen |
//! | `mutation` | what can be wrong on purpose |
//!
//! What is decided is decided by the library: what a write expects and makes of a row, who may start, who is dead, what follows a refusal,
//! which leases a shard's children need and which may go. The model adds when things happen. Number of renewals, terms and lost messages
//! are not bounded; crashes, copies of writes that are late, and records are. Two leases are explored as parent and child: between
//! others there is no tie.
//!
//! The larger configurations take minutes: `cargo test --release -p kcl-lease --test model -- --ignored`.

mod canonical;
mod clock;
mod mutation;
mod properties;
mod protocol;
mod row;
mod state;
mod step;

use std::collections::BTreeSet;
use std::sync::Arc;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::clock::Ticks;
use crate::mutation::Mutation;
use crate::properties::{EXCLUSION, FENCING, FORWARD, KEPT, NO_HOLE, NO_LOSS, NOTICED, PARENT_FIRST, RECOGNITION, START};
use crate::protocol::Protocol;

/// Two workers and a lease, on which the configurations build.
fn two_workers() -> Protocol {
    Protocol {
        workers: 2,
        records: 1,
        reshard: false,
        crashes: 0,
        delays: 0,
        ticks: Ticks::of(2),
        clocks_hold: true,
        handoffs: true,
        shutdowns: true,
        transactions: false,
        plans: false,
        mutation: None,
        events: Arc::default(),
    }
}

fn parent_and_child() -> Protocol {
    Protocol { reshard: true, handoffs: false, shutdowns: false, ..two_workers() }
}

/// Explores all states and checks that each property holds, and that each state of interest was met.
fn explore(name: &str, model: Protocol) {
    let properties = model.properties();
    let checker = model.checker().threads(1).spawn_bfs().join();
    assert!(checker.is_done(), "{name}: not all states were explored");
    println!("{name}: {} states, {} steps, {} deep", checker.unique_state_count(), checker.state_count(), checker.max_depth());
    for property in properties {
        match (property.expectation, checker.discovery(property.name)) {
            (Expectation::Sometimes, None) => panic!("{name}: it never happened that {}", property.name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => panic!("{name}: not always: {}\n{:#?}", property.name, path.into_actions()),
        }
    }
}

/// Checks that a mistake breaks a property.
fn breaks(mutation: Mutation, property: &'static str, model: Protocol) {
    let model = Protocol { mutation: Some(mutation), ..model };
    let checker = model.checker().finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property]))).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{mutation:?} does not show: {property}"));
    println!("{mutation:?}: not always: {property}\n    {:?}", path.into_actions());
}

#[test]
fn two_workers_with_crashes() {
    explore("two workers, crashes", Protocol { records: 2, crashes: 1, ..two_workers() });
}

#[test]
fn two_workers_with_late_writes() {
    explore("two workers, late writes", Protocol { delays: 1, ..two_workers() });
}

/// Checkpoints that are given up and settled by a renewal from the same row, while copies of either are late.
#[test]
fn two_workers_with_transactions() {
    explore("two workers, transactions", Protocol { transactions: true, ..two_workers() });
    explore("two workers, transactions, late writes", Protocol { transactions: true, delays: 1, ..two_workers() });
}

#[test]
fn two_workers_by_a_finer_clock_with_all_their_plans() {
    explore("two workers, finer clock", Protocol { crashes: 1, ticks: Ticks::of(3), plans: true, ..two_workers() });
}

#[test]
fn two_workers_with_broken_clocks() {
    explore("two workers, broken clocks", Protocol { records: 2, crashes: 1, clocks_hold: false, ..two_workers() });
}

#[test]
fn three_workers_with_crashes() {
    explore("three workers, crashes", Protocol { workers: 3, crashes: 1, handoffs: false, ..two_workers() });
}

#[test]
fn a_parent_and_its_child_with_crashes() {
    explore("parent and child, crashes", Protocol { crashes: 1, ticks: Ticks::of(1), ..parent_and_child() });
}

#[test]
#[ignore = "large: minutes, better in release"]
fn two_workers_with_all_faults() {
    explore("two workers, all faults", Protocol { records: 2, crashes: 1, delays: 1, ..two_workers() });
    explore("two workers, two late writes", Protocol { delays: 2, ..two_workers() });
    explore("two workers, broken clocks, all faults", Protocol { crashes: 1, delays: 1, clocks_hold: false, plans: true, ..two_workers() });
}

#[test]
#[ignore = "large: minutes, better in release"]
fn three_workers_with_handoffs_and_crashes() {
    explore("three workers, handoffs, crashes", Protocol { workers: 3, crashes: 1, ..two_workers() });
    explore("three workers, all faults", Protocol { workers: 3, crashes: 1, delays: 1, handoffs: false, ..two_workers() });
}

#[test]
#[ignore = "large: minutes, better in release"]
fn a_parent_and_its_child_with_all_else() {
    explore("parent and child, handoffs", Protocol { handoffs: true, shutdowns: true, ..parent_and_child() });
    explore("parent and child, late writes", Protocol { delays: 1, plans: true, ..parent_and_child() });
    explore("parent and child, broken clocks", Protocol { crashes: 1, clocks_hold: false, ..parent_and_child() });
}

#[test]
fn mistakes_in_what_a_write_expects_show() {
    breaks(Mutation::TermsIgnoreTheCounter, FENCING, Protocol { delays: 1, ..two_workers() });
    breaks(Mutation::TakesIgnoreTheCounter, EXCLUSION, two_workers());
    breaks(Mutation::StartsWhereItLooked, START, two_workers());
    breaks(Mutation::CheckpointsMoveBack, FORWARD, Protocol { records: 2, ..two_workers() });
}

#[test]
fn mistakes_about_time_show() {
    breaks(Mutation::ValidFromTheAnswer, EXCLUSION, two_workers());
    breaks(Mutation::Impatient, EXCLUSION, two_workers());
    breaks(Mutation::HandoffNotAwaited, EXCLUSION, two_workers());
}

#[test]
fn mistakes_after_a_lost_answer_or_a_refusal_show() {
    breaks(Mutation::AnotherWriteAfterUnknownOutcome, RECOGNITION, two_workers());
    breaks(Mutation::SettledBlindly, RECOGNITION, Protocol { transactions: true, ..two_workers() });
    breaks(Mutation::SettledValidFromTheRenewal, EXCLUSION, Protocol { transactions: true, ..two_workers() });
    breaks(Mutation::OwnWritesNotRecognised, RECOGNITION, two_workers());
    breaks(Mutation::RequestTakenForLoss, RECOGNITION, two_workers());
    breaks(Mutation::RequestOverlooked, NOTICED, two_workers());
}

#[test]
fn mistakes_with_records_and_shards_show() {
    breaks(Mutation::CheckpointsWhatIsInWork, NO_LOSS, two_workers());
    breaks(Mutation::ChildrenStartAtOnce, PARENT_FIRST, parent_and_child());
    breaks(Mutation::ChildrenMadeAfterTheEnd, NO_HOLE, parent_and_child());
    breaks(Mutation::DeletedAtOnce, KEPT, parent_and_child());
}
