//! Time in ticks, few enough to explore and long enough to tell what counts: how many a term is valid, and how many an observer waits.
//! Both are asked of the library.

use std::time::Duration;

use kcl_checkpoint::Checkpoint;
use kcl_lease::liveness::Liveness;
use kcl_lease::term::LeaseTiming;
use kcl_lease::{Lease, Trust};

const TIMING: LeaseTiming = LeaseTiming { lease_duration: Duration::from_secs(10), handoff_timeout: Duration::from_secs(30) };

/// What the library's durations are in ticks. All clocks tick at once: their rates are covered by the library's margins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticks {
    /// The age of a proof of life at which its owner believes in it no more.
    pub(crate) valid: u8,
    /// The age of an unmoved row at which an observer takes its owner for dead.
    pub(crate) dead: u8,
}

impl Ticks {
    /// A number of ticks that make just more than the time that an observer waits: the owner and the observer are as close to each
    /// other as they can get.
    pub(crate) fn of(count: u8) -> Self {
        let tick = TIMING.lease_duration.mul_f64(1.005) / u32::from(count);
        let first = |holds: &dyn Fn(Duration) -> bool| (0..=count + 1).find(|age| holds(tick * u32::from(*age)));
        let ended = |age: Duration| age >= TIMING.lease_duration - TIMING.guard();
        let (valid, dead) = (first(&ended), first(&unmoved_is_dead));
        Self { valid: valid.expect("invariant: validity runs out"), dead: dead.expect("invariant: patience runs out") }
    }
}

/// Whether an observer that reads at a steady pace takes an owner for dead whose row has not moved for this time.
fn unmoved_is_dead(age: Duration) -> bool {
    let trust = Some(Trust::new("owner".into(), TIMING.lease_duration));
    let lease = Lease { owner: Some("owner".into()), trust, ..Lease::new("shard".into(), Checkpoint::TrimHorizon) };
    let mut liveness = Liveness::new(TIMING.lease_duration);
    let pace = liveness.longest_gap() / 2;
    for time in (0..).map(|read| pace * read).take_while(|time| *time < age).chain([age]) {
        liveness.observe(std::slice::from_ref(&lease), time);
    }
    liveness.is_expired(&lease, age)
}

#[test]
fn an_owner_stops_believing_before_an_observer_stops_waiting() {
    for count in 1..=4 {
        let ticks = Ticks::of(count);
        assert_eq!((ticks.valid, ticks.dead), (count, count));
    }
}
