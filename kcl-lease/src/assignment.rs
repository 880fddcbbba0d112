//! Which leases this worker takes, which it asks to have handed over, and which it leaves alone.
//!
//! Every worker decides for itself, from one read of all leases. No worker is asked, and none decides for another: whatever they
//! decide at once, the conditional writes let one of them win, and the next round goes on from there. Two things make it settle:
//!
//! - All workers do the same sum. It pours the free leases onto those who have fewest, then moves one lease at a time from the one
//!   who has most to the one who has fewest while they differ by two or more. Each carries out only its own part of the result, so
//!   that workers that saw the same do not get in each other's way.
//! - Once nobody has two more than another, nothing moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kcl_checkpoint::planted::{Bug, is_planted};

use crate::entropy::Entropy;
use crate::lease::{Lease, ShardId, WorkerId};

/// What a worker knows when it plans: one read of the table, and what it holds itself.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The worker that plans.
    pub me: &'a WorkerId,
    /// All leases, in any order.
    pub leases: &'a [Lease],
    /// The shards that this worker holds a term for or is acquiring one for, now: this is newer than the leases may be.
    pub held: &'a BTreeSet<ShardId>,
    /// Whether a lease's owner is dead: see [`Liveness::is_expired`](crate::liveness::Liveness::is_expired).
    pub expired: &'a dyn Fn(&Lease) -> bool,
    /// Whether a free lease was left by those whose turn it was: see
    /// [`Liveness::is_overdue`](crate::liveness::Liveness::is_overdue).
    pub overdue: &'a dyn Fn(&Lease) -> bool,
    /// Whether a lease needs no owner: all that is to be read of its shard is read. It is left as it is.
    pub unneeded: &'a dyn Fn(&Lease) -> bool,
    /// How many leases this worker may own.
    pub max_leases: usize,
    /// This worker could do nothing with the leases that it had: it takes only what everybody else has left, and asks for nothing.
    pub resting: bool,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("View")
            .field("me", self.me)
            .field("leases", &self.leases.len())
            .field("held", &self.held.len())
            .field("max_leases", &self.max_leases)
            .field("resting", &self.resting)
            .finish_non_exhaustive()
    }
}

/// What a worker does now. Leases are as they were seen, for the conditions of the writes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// To take: its own that it holds no term for (a take whose answer was lost, a finished handoff) first, then free ones.
    pub take: Vec<Lease>,
    /// To ask their living owners for.
    pub request: Vec<Lease>,
    /// To hand over now, with [`LeaseWrite::release`](crate::write::LeaseWrite::release): another worker asked for them, and this
    /// one owns them without a term, so that nobody reads them and nobody else would answer.
    ///
    /// That happens when a lease is handed over to this worker, and the next one asks for it before this worker has taken it.
    pub release: Vec<Lease>,
    /// Free leases that this worker leaves: to workers with fewer leases, or because it may not own more.
    pub left: usize,
    /// Workers that are alive as far as the leases tell, this one included.
    pub workers: usize,
    /// The place of this one among them, from 0, which all that see the same agree on.
    pub place: usize,
}

/// The leases that may be owned now: those that are not finished, and all of whose parents' leases are.
///
/// A parent without a lease is outside of what the application reads, or was finished and cleaned up.
#[must_use]
pub fn startable(leases: &[Lease]) -> Vec<&Lease> {
    let unfinished: BTreeSet<_> = leases.iter().filter(|lease| !lease.is_finished()).map(|lease| &lease.shard_id).collect();
    let may_start = |lease: &&Lease| {
        !lease.is_finished() && (is_planted(Bug::ChildBeforeParent) || lease.parents.iter().all(|parent| !unfinished.contains(parent)))
    };
    leases.iter().filter(may_start).collect()
}

/// Decides what the worker does now. Equal views and equal draws give equal plans.
///
/// A lease under handoff counts for its next owner and is not asked for again. Should its owner die, it is the next owner's to
/// take, or anybody's if that one is dead too.
///
/// A worker that none of the leases names is unknown to the others. It asks for one lease only, to show itself: if three join at
/// once, none of them may ask for as much as if it were alone.
#[must_use]
pub fn plan(view: &View<'_>, entropy: &Entropy) -> Plan {
    let fleet = Fleet::survey(view);
    let mine = fleet.counts.get(view.me).copied().unwrap_or(0);
    let (line, level) = fleet.pour();

    // Workers at the same level each go for the last lease: one wins, and none is left because each leaves it to the other.
    let mut free = fleet.free;
    entropy.shuffle(&mut free);
    free.sort_by_key(|lease| !(view.overdue)(lease));
    let overdue = free.iter().filter(|lease| (view.overdue)(lease)).count();
    let share = if view.resting { overdue } else { level.saturating_sub(mine).max(overdue) };
    let room = if is_planted(Bug::LimitIgnored) { usize::MAX } else { view.max_leases.saturating_sub(mine) };
    let takes = share.min(room).min(free.len());
    let left = free.len() - takes;

    let (asked, even) = deal(line, view.me, &fleet.movable);
    let wanted = if view.resting { 0 } else { even.min(view.max_leases).saturating_sub(mine + takes) };
    let request = match fleet.known {
        true => asked.into_iter().take(wanted).collect(),
        // The others that join now do this sum with themselves in this worker's place: a random choice tells them apart.
        false if takes == 0 && wanted > 0 => {
            asked.first().map(|first| random_of_same_owner(first, &fleet.movable, entropy)).into_iter().collect()
        }
        false => Vec::new(),
    };
    free.truncate(takes);
    let take = fleet.own.into_iter().chain(free).cloned().collect();
    let [request, release] = [request, fleet.asked_of_me].map(|leases| leases.into_iter().cloned().collect());
    let place = fleet.counts.range::<WorkerId, _>(..view.me).count();
    Plan { take, request, release, left, workers: fleet.counts.len(), place }
}

/// Who has how many leases, and which of them could go elsewhere.
struct Fleet<'a> {
    /// The leases of each living worker, those on their way to it included. This worker is among them, even with none.
    counts: BTreeMap<&'a WorkerId, usize>,
    /// Whether another worker that reads the table can tell that this worker exists.
    known: bool,
    /// This worker's, but without a term.
    own: Vec<&'a Lease>,
    /// This worker's, but without a term, and another worker waits for them.
    asked_of_me: Vec<&'a Lease>,
    /// Nobody's.
    free: Vec<&'a Lease>,
    /// Those that each other worker could be asked for, sorted by shard.
    movable: BTreeMap<&'a WorkerId, BTreeMap<&'a ShardId, &'a Lease>>,
}

impl<'a> Fleet<'a> {
    fn survey(view: &View<'a>) -> Self {
        let alive = |lease: &Lease| view.held.contains(&lease.shard_id) || !(view.expired)(lease);
        let mut counts = BTreeMap::new();
        for lease in view.leases.iter().filter(|lease| !lease.is_finished() && alive(lease)) {
            counts.extend(lease.actual_owner().into_iter().chain(lease.next_owner()).map(|worker| (worker, 0)));
        }
        let known = counts.insert(view.me, 0).is_some();
        let mut fleet = Self { counts, known, own: Vec::new(), asked_of_me: Vec::new(), free: Vec::new(), movable: BTreeMap::new() };
        for lease in startable(view.leases) {
            let owner = lease.owner.as_ref();
            let held = view.held.contains(&lease.shard_id);
            if !held && owner != Some(view.me) && (view.unneeded)(lease) {
                continue;
            }
            let belongs_to = if is_planted(Bug::HandoffNotAwaited) && !held && owner == Some(view.me) {
                fleet.own.push(lease);
                owner
            } else if alive(lease) && lease.checkpoint_owner.is_some() {
                if !held && lease.actual_owner() == Some(view.me) {
                    fleet.asked_of_me.push(lease);
                }
                lease.next_owner().or(lease.actual_owner())
            } else if held {
                Some(view.me)
            } else if owner == Some(view.me) {
                if !is_planted(Bug::OwnRowNotTaken) {
                    fleet.own.push(lease);
                }
                owner
            } else if alive(lease) {
                if let Some(owner) = owner {
                    fleet.movable.entry(owner).or_default().insert(&lease.shard_id, lease);
                }
                owner
            } else {
                lease.next_owner().filter(|next| fleet.counts.contains_key(next) || is_planted(Bug::DeadNextOwnerAwaited))
            };
            match belongs_to {
                Some(worker) => *fleet.counts.entry(worker).or_default() += 1,
                None => fleet.free.push(lease),
            }
        }
        fleet
    }

    /// Gives the free leases one by one to whoever has fewest, and returns the workers by count, and the highest count given so.
    fn pour(&self) -> (BTreeSet<(usize, &'a WorkerId)>, usize) {
        let mut line: BTreeSet<_> = self.counts.iter().map(|(worker, count)| (*count, *worker)).collect();
        let mut level = 0;
        for _ in &self.free {
            let Some((fewest, worker)) = line.pop_first() else { break };
            level = fewest + 1;
            line.insert((level, worker));
        }
        (line, level)
    }
}

/// Moves leases one by one from whoever has most to whoever has fewest while they differ by two or more. Returns those that `me`
/// gets that way, those of the most loaded first, and how many leases it has in the end.
///
/// No two workers that do this sum on the same counts choose the same lease.
fn deal<'a>(
    mut line: BTreeSet<(usize, &'a WorkerId)>,
    me: &WorkerId,
    movable: &BTreeMap<&'a WorkerId, BTreeMap<&'a ShardId, &'a Lease>>,
) -> (Vec<&'a Lease>, usize) {
    let mut remaining: BTreeMap<_, _> = movable.iter().map(|(worker, leases)| (*worker, leases.values())).collect();
    let mut asked = Vec::new();
    while let (Some(&(fewest, poor)), Some(&(most, rich))) = (line.first(), line.last()) {
        if most < fewest + 2 + usize::from(is_planted(Bug::UnevenIsEven)) {
            break;
        }
        line.remove(&(fewest, poor));
        line.remove(&(most, rich));
        line.insert((fewest + 1, poor));
        line.insert((most - 1, rich));
        // One that is itself only on its way to its owner counts as moved: it will be movable when it is there.
        let lease = remaining.get_mut(rich).and_then(Iterator::next);
        asked.extend(lease.filter(|_| poor == me));
    }
    let even = line.iter().find(|(_, worker)| *worker == me).map_or(0, |(count, _)| *count);
    (asked, even)
}

fn random_of_same_owner<'a>(
    lease: &'a Lease,
    movable: &BTreeMap<&'a WorkerId, BTreeMap<&'a ShardId, &'a Lease>>,
    entropy: &Entropy,
) -> &'a Lease {
    let mut choice: Vec<_> = lease.owner.as_ref().and_then(|owner| movable.get(owner)).into_iter().flat_map(BTreeMap::values).collect();
    entropy.shuffle(&mut choice);
    choice.first().map_or(lease, |chosen| chosen)
}

#[cfg(test)]
mod tests;
