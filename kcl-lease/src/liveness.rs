//! Which owners are alive, judged by rows that move.
//!
//! Nothing is read off a row but whether it changed. A row that stays the same for longer than its owner may trust it belongs to
//! nobody. Times are this observer's own boot time; no two clocks are ever compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};

use crate::assignment::startable;
use crate::lease::{Lease, ShardId, WorkerId};

/// Added to every wait for an owner's death: more than timers and rounding can cost.
const GUARD: Duration = Duration::from_millis(5);

/// What one observer has seen of the rows, and since when they are unchanged.
///
/// **No death in the dark.** Time in which the observer could not read does not count against anybody: after a gap between two reads
/// of more than half the lease duration all waits begin anew. An observer that slept, or an outage of the table, moves no lease.
#[derive(Clone, Debug)]
pub struct Liveness {
    lease_duration: Duration,
    last_read: Option<Duration>,
    rows: BTreeMap<ShardId, Seen>,
}

/// What is remembered of a row. Any write of a row by an owner, and any take, changes it.
#[derive(Clone, Debug)]
struct Seen {
    counter: u64,
    owner: Option<WorkerId>,
    checkpoint_owner: Option<WorkerId>,
    /// When the first read that showed the row so was completed.
    since: Duration,
    /// How long it must be unmoved until its owner is dead.
    patience: Duration,
}

impl Seen {
    fn is(&self, lease: &Lease) -> bool {
        (self.counter, &self.owner, &self.checkpoint_owner) == (lease.counter, &lease.owner, &lease.checkpoint_owner)
    }
}

impl Liveness {
    /// An observer that has seen nothing yet. `lease_duration` is the time for which an owner trusts a renewal, unless its row says a longer one.
    #[must_use]
    pub fn new(lease_duration: Duration) -> Self {
        Self { lease_duration, last_read: None, rows: BTreeMap::new() }
    }

    /// Notes what a strongly consistent read of all leases showed. `completed` is the boot time at which its answer was complete,
    /// not when it was sent: the rows were as shown at some moment before.
    pub fn observe(&mut self, leases: &[Lease], completed: Duration) {
        let dark = self.is_dark(completed);
        let startable: BTreeSet<_> = startable(leases).into_iter().map(|lease| &lease.shard_id).collect();
        let mut before = std::mem::take(&mut self.rows);
        for lease in leases {
            // A finished row never matters again. A free one that waits for its parents is not free for anybody yet.
            if lease.is_finished() || (lease.actual_owner().is_none() && !startable.contains(&lease.shard_id)) {
                continue;
            }
            let unmoved = before.remove(&lease.shard_id).filter(|seen| !dark && seen.is(lease));
            let seen = unmoved.unwrap_or_else(|| Seen {
                counter: lease.counter,
                owner: lease.owner.clone(),
                checkpoint_owner: lease.checkpoint_owner.clone(),
                since: completed,
                patience: self.patience(lease),
            });
            self.rows.insert(lease.shard_id.clone(), seen);
        }
        self.last_read = self.last_read.max(Some(completed));
    }

    /// Whether the owner of this row is dead: the row was last observed exactly so, and has not moved for longer than its owner can
    /// trust it. A lease without an owner, or a finished one, is never expired.
    #[must_use]
    pub fn is_expired(&self, lease: &Lease, now: Duration) -> bool {
        lease.actual_owner().is_some() && self.free_since(lease, now).is_some()
    }

    /// Whether this lease has been free (without an owner, or expired) for a quarter of the lease duration without anybody taking
    /// it: those whose turn it was can't or won't, so that it is anybody's.
    #[must_use]
    pub fn is_overdue(&self, lease: &Lease, now: Duration) -> bool {
        self.free_since(lease, now).is_some_and(|since| since + self.lease_duration / 4 <= now)
    }

    /// The earliest moment after `now` at which an owner that seems dead already will be: one whose row has not moved for more than
    /// half the lease duration. Reading exactly then finds a death as early as it can be found, without reading often.
    #[must_use]
    pub fn next_expiry(&self, now: Duration) -> Option<Duration> {
        let suspect = |seen: &&Seen| seen.owner.is_some() || seen.checkpoint_owner.is_some();
        let rows = self.rows.values().filter(|_| !self.is_dark(now)).filter(suspect);
        let silent = rows.filter(|seen| now.saturating_sub(seen.since) > self.longest_gap());
        silent.map(|seen| seen.since + seen.patience).filter(|expiry| *expiry > now).min()
    }

    /// The longest time between two completed reads that leaves the waits running: half the lease duration.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        self.lease_duration / 2
    }

    /// How long a row must be unmoved until its owner is dead.
    ///
    /// The owner trusts its renewal for its lease duration by its own clock, from before it was sent. The first read that showed it
    /// was complete after that. Clocks may run 0.2 % too slow there and 0.2 % too fast here, hence 0.4 %.
    fn patience(&self, lease: &Lease) -> Duration {
        let trusted = lease.trusted_for(self.lease_duration);
        trusted + trusted / 250 + GUARD
    }

    /// Since when nobody owns the row, as far as is known now.
    fn free_since(&self, lease: &Lease, now: Duration) -> Option<Duration> {
        let seen = self.rows.get(&lease.shard_id).filter(|seen| seen.is(lease) && !lease.is_finished() && !self.is_dark(now))?;
        let since = if lease.actual_owner().is_some() { seen.since + seen.patience } else { seen.since };
        (since <= now).then_some(since)
    }

    fn is_dark(&self, now: Duration) -> bool {
        !is_planted(Bug::DeadInTheDark) && self.last_read.is_some_and(|last| now.saturating_sub(last) > self.longest_gap())
    }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Checkpoint;
    use proptest::prelude::*;

    use super::*;
    use crate::lease::Trust;

    const D: Duration = Duration::from_secs(10);

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn row(shard: &str, owner: Option<&str>, counter: u64) -> Lease {
        let trust = owner.map(|owner| Trust { owner: owner.into(), lease_duration: D });
        Lease { owner: owner.map(Into::into), counter, trust, ..Lease::new(shard.into(), Checkpoint::TrimHorizon) }
    }

    /// Reads that show the same rows at each of these times.
    fn observed(leases: &[Lease], times: &[f64]) -> Liveness {
        let mut liveness = Liveness::new(D);
        times.iter().for_each(|time| liveness.observe(leases, at(*time)));
        liveness
    }

    #[test]
    fn an_owner_whose_row_stays_is_dead_after_the_duration_and_a_margin() {
        let lease = row("s", Some("a"), 7);
        let liveness = observed(std::slice::from_ref(&lease), &[100.0, 104.0, 108.0]);
        for (time, dead) in [(108.0, false), (110.0, false), (110.044, false), (110.045, true), (112.0, true)] {
            assert_eq!(liveness.is_expired(&lease, at(time)), dead, "{time}");
        }
    }

    #[test]
    fn an_owner_that_trusts_its_lease_for_longer_lives_longer() {
        for (noted, dead_after) in [(1, 10.0), (10, 10.0), (60, 60.0)] {
            let trust = Some(Trust { owner: "a".into(), lease_duration: Duration::from_secs(noted) });
            let lease = Lease { trust, ..row("s", Some("a"), 7) };
            let reads: Vec<_> = (0..20).map(|read| f64::from(read) * 4.0).take_while(|time| *time < dead_after + 3.0).collect();
            let liveness = observed(std::slice::from_ref(&lease), &reads);
            assert!(!liveness.is_expired(&lease, at(dead_after)), "{noted}");
            assert!(liveness.is_expired(&lease, at(dead_after * 1.005)), "{noted}");
        }
    }

    #[test]
    fn whoever_another_library_has_assigned_the_lease_to_may_be_silent_for_longer() {
        let ours = row("s", Some("a"), 7);
        let assigned = Lease { owner: Some("java".into()), counter: 8, ..ours.clone() };
        let handed_over = Lease { owner: Some("java".into()), checkpoint_owner: Some("a".into()), ..ours.clone() };
        for (lease, dead_after) in [(assigned, 13.34), (handed_over, 10.0), (Lease { trust: None, ..ours }, 13.34)] {
            let liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0, 8.0, 12.0]);
            assert!(!liveness.is_expired(&lease, at(dead_after)), "{lease:?}");
            assert!(liveness.is_expired(&lease, at(dead_after * 1.005)), "{lease:?}");
        }
    }

    #[test]
    fn every_change_of_counter_or_owners_begins_the_wait_anew() {
        let lease = row("s", Some("a"), 7);
        let changed = [
            row("s", Some("a"), 8),
            row("s", Some("b"), 7),
            Lease { owner: Some("b".into()), checkpoint_owner: Some("a".into()), ..lease.clone() },
        ];
        for change in changed {
            let mut liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0, 8.0]);
            liveness.observe(std::slice::from_ref(&change), at(10.1));
            assert!(!liveness.is_expired(&lease, at(10.1)), "what is asked about is not what was seen last");
            assert!(!liveness.is_expired(&change, at(10.1)));
            for time in [14.0, 18.0] {
                liveness.observe(std::slice::from_ref(&change), at(time));
            }
            assert!(!liveness.is_expired(&change, at(20.1)));
            assert!(liveness.is_expired(&change, at(20.2)));
            assert!(!liveness.is_expired(&lease, at(20.2)), "it was seen as another one");
        }
    }

    #[test]
    fn a_changed_checkpoint_alone_is_no_sign_of_life_and_an_unseen_row_is_never_dead() {
        let lease = row("s", Some("a"), 7);
        let liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0, 8.0]);
        assert!(liveness.is_expired(&Lease { checkpoint: Checkpoint::Latest, ..lease }, at(11.0)));
        assert!(!liveness.is_expired(&row("t", Some("a"), 7), at(11.0)));
        assert!(!Liveness::new(D).is_expired(&row("s", Some("a"), 7), at(1000.0)));
    }

    #[test]
    fn nobody_dies_in_the_dark() {
        let lease = row("s", Some("a"), 7);
        // no answer between 4 s and 9.1 s: what was before does not count
        let mut liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0, 9.1, 12.0]);
        assert!(!liveness.is_expired(&lease, at(12.0)));
        liveness.observe(std::slice::from_ref(&lease), at(16.0));
        assert!(!liveness.is_expired(&lease, at(19.1)));
        assert!(liveness.is_expired(&lease, at(19.2)));
        // the observer itself slept since its last read
        assert!(!liveness.is_expired(&lease, at(21.1)));
        assert_eq!(liveness.next_expiry(at(21.1)), None);
        assert!(!liveness.is_overdue(&row("t", None, 0), at(21.1)));
    }

    #[test]
    fn reads_half_the_lease_duration_apart_leave_no_dark() {
        let lease = row("s", Some("a"), 7);
        for (reads, is_seen) in [([0.0, 5.0, 10.0], true), ([0.0, 5.001, 10.0], false)] {
            let liveness = observed(std::slice::from_ref(&lease), &reads);
            for (time, dead) in [(10.044, false), (10.045, is_seen), (15.0, is_seen), (15.001, false)] {
                assert_eq!(liveness.is_expired(&lease, at(time)), dead, "{reads:?} {time}");
            }
        }
    }

    #[test]
    fn a_row_that_was_gone_is_new() {
        let lease = row("s", Some("a"), 7);
        let mut liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0]);
        liveness.observe(&[], at(6.0));
        assert!(!liveness.is_expired(&lease, at(10.5)));
        for time in [8.0, 12.0] {
            liveness.observe(std::slice::from_ref(&lease), at(time));
        }
        assert!(!liveness.is_expired(&lease, at(16.0)));
    }

    #[test]
    fn free_and_finished_leases_do_not_expire() {
        let free = row("s", None, 7);
        let finished = Lease { checkpoint: Checkpoint::ShardEnd, ..row("t", Some("a"), 7) };
        let leases = [free.clone(), finished.clone()];
        let liveness = observed(&leases, &[0.0, 4.0, 8.0]);
        assert!(!liveness.is_expired(&free, at(12.0)) && !liveness.is_expired(&finished, at(12.0)));
        assert_eq!(liveness.next_expiry(at(8.0)), None);
    }

    #[test]
    fn a_free_lease_that_nobody_takes_is_anybodys_after_a_while() {
        let (free, dead) = (row("s", None, 7), row("t", Some("a"), 7));
        let leases = [free.clone(), dead.clone()];
        let mut liveness = observed(&leases, &[0.0]);
        assert!(!liveness.is_overdue(&free, at(2.4)));
        assert!(liveness.is_overdue(&free, at(2.5)));
        for time in [4.0, 8.0, 12.0] {
            liveness.observe(&leases, at(time));
        }
        assert!(liveness.is_expired(&dead, at(12.5)) && !liveness.is_overdue(&dead, at(12.5)));
        assert!(liveness.is_overdue(&dead, at(12.6)));
    }

    #[test]
    fn a_child_that_waited_for_its_parent_is_not_overdue_when_the_parent_ends() {
        let mut parent = row("p", Some("a"), 1);
        let child = Lease { parents: BTreeSet::from(["p".into()]), ..row("c", None, 0) };
        let mut liveness = Liveness::new(D);
        for time in [0.0, 4.0, 8.0] {
            liveness.observe(&[parent.clone(), child.clone()], at(time));
        }
        parent.checkpoint = Checkpoint::ShardEnd;
        liveness.observe(&[parent, child.clone()], at(9.0));
        assert!(!liveness.is_overdue(&child, at(11.0)));
        assert!(liveness.is_overdue(&child, at(11.5)));
    }

    #[test]
    fn the_next_expiry_is_that_of_the_longest_silent_owner() {
        let leases = [row("s", Some("a"), 1), row("t", Some("b"), 1)];
        let mut liveness = observed(&leases, &[0.0, 3.0]);
        let moved = [leases[0].clone(), row("t", Some("b"), 2)];
        liveness.observe(&moved, at(5.0));
        assert_eq!(liveness.next_expiry(at(5.0)), None, "nobody has been silent for long enough");
        liveness.observe(&moved, at(5.1));
        let expiry = liveness.next_expiry(at(5.1)).unwrap();
        assert_eq!(expiry, at(10.045));
        liveness.observe(&moved, at(9.0));
        assert!(!liveness.is_expired(&leases[0], expiry - Duration::from_nanos(1)));
        assert!(liveness.is_expired(&leases[0], expiry));
        // what is expired already is no reason to read again
        liveness.observe(&moved, expiry);
        assert_eq!(liveness.next_expiry(expiry), Some(at(15.045)));
    }

    #[test]
    fn the_margin_covers_both_clocks_at_their_worst() {
        // the renewal is sent, takes effect and is read at one moment; the owner's clock is slow, the observer's is fast
        let (owner_rate, observer_rate) = (0.998, 1.002);
        let lease = row("s", Some("a"), 1);
        let liveness = observed(std::slice::from_ref(&lease), &[0.0, 4.0, 8.0]);
        let dead_from = liveness.next_expiry(at(8.0)).unwrap();
        assert!(liveness.is_expired(&lease, dead_from));
        assert!(dead_from.as_secs_f64() / observer_rate > D.as_secs_f64() / owner_rate);
    }

    proptest! {
        /// The owner renews when it likes, answers and reads are slow as they like, both clocks are off by as much as is allowed:
        /// while the owner trusts its lease nobody else holds it for dead.
        #[test]
        fn an_owner_is_never_dead_while_it_trusts_its_lease(
            owner_rate in 0.998f64..1.002,
            observer_rate in 0.998f64..1.002,
            renewals in prop::collection::vec((0.0f64..9.0, 0.0f64..3.0), 1..8),
            reads in prop::collection::vec((0.05f64..6.0, 0.0f64..1.5), 1..60),
        ) {
            // true times: a renewal is sent, takes effect later, and the next one is sent after that
            let (mut now, mut applied) = (0.0, vec![]);
            for (wait, latency) in renewals {
                let sent = now + wait;
                now = sent + latency;
                applied.push((sent, now));
            }
            let mut liveness = Liveness::new(D);
            let mut began = 0.0;
            for (wait, latency) in reads {
                began += wait;
                // the read shows the row as it was at the moment when it began: the worst that is possible
                let shown = applied.iter().filter(|(_, effect)| *effect <= began).count();
                let lease = row("s", Some("a"), u64::try_from(shown).unwrap());
                let completed = began + latency;
                liveness.observe(std::slice::from_ref(&lease), at(completed * observer_rate));
                began = completed;
                // the take itself is conditional on the row, so what counts is a row that is still so
                let current = applied.iter().filter(|(_, effect)| *effect <= completed).count();
                if liveness.is_expired(&lease, at(completed * observer_rate)) && current == shown && shown > 0 {
                    let trusted_until = applied[shown - 1].0 + D.as_secs_f64() / owner_rate;
                    prop_assert!(completed > trusted_until, "dead at {completed}, trusted until {trusted_until}");
                }
            }
        }

        /// Read at least as often as is asked for, and at the moment that is asked for: a death is found within the duration
        /// and its margin after the first read that could show the last sign of life.
        #[test]
        fn a_death_is_found_at_the_earliest_moment(interval in 0.5f64..4.9, phase in 0.0f64..1.0) {
            let lease = row("s", Some("a"), 1);
            let mut liveness = Liveness::new(D);
            let first = at(phase);
            let mut now = first;
            let mut reads = 0;
            loop {
                liveness.observe(std::slice::from_ref(&lease), now);
                reads += 1;
                if liveness.is_expired(&lease, now) {
                    break;
                }
                let regular = now + at(interval);
                now = liveness.next_expiry(now).map_or(regular, |expiry| expiry.min(regular));
            }
            prop_assert_eq!(now, first + liveness.patience(&row("s", Some("a"), 7)));
            prop_assert!(f64::from(reads) <= 10.1 / interval + 3.0);
        }
    }
}
