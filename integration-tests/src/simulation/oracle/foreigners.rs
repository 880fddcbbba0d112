//! Workers of the Java library: what they hold is theirs for as long as they may be silent.

use std::time::Duration;

use kcl_lease::Lease;

use super::Oracle;

/// The name of their machines begins so.
pub(in crate::simulation) const FOREIGNER: &str = "java";

/// The Java library's failover time of 10 s, and the third of it more after which the renewal of a lease that it has discovered at the last moment arrives.
const RIGHT: Duration = Duration::from_millis(13_333);

pub(super) fn is_one(host: &str) -> bool {
    host.starts_with(FOREIGNER)
}

impl Oracle {
    /// A row was written by one of them, or by their leader.
    pub(super) fn written_elsewhere(&mut self, host: &str, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        self.trace.line(now, format_args!("{host} writes {shard} counter {} owner {:?}", after.counter, after.owner));
        self.rows.insert(shard.clone(), after.clone());
        if before.checkpoint_owner.is_none() && after.checkpoint_owner.is_some() {
            self.requests.push(now);
            self.reached("assigned to another library");
        }
        self.owned_elsewhere(after, now);
    }

    /// Notes whose a row is, after each write of anybody.
    pub(super) fn owned_elsewhere(&mut self, after: &Lease, now: Duration) {
        if after.actual_owner().is_some_and(|owner| is_one(owner.as_str())) {
            self.foreign.insert(after.shard_id.clone(), now);
        } else {
            self.foreign.remove(&after.shard_id);
        }
    }

    /// A lease is taken.
    pub(super) fn taken_from_elsewhere(&mut self, host: &str, before: &Lease, now: Duration) {
        let Some(owner) = before.actual_owner().filter(|owner| is_one(owner.as_str())) else { return };
        self.reached("taken over from another library");
        let silent = self.foreign.get(&before.shard_id).map(|since| now.saturating_sub(*since));
        if let Some(silent) = silent.filter(|silent| *silent < RIGHT) {
            let shard = &before.shard_id;
            self.violated("L7", format!("{host} took {shard} from {owner}, which was silent for {silent:?} and may be for {RIGHT:?}"));
        }
    }
}
