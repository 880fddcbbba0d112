//! Whose lease is taken, and why it may be: for the log.
//!
//! After an incident people ask who had a shard when, and why it went to another worker. The lease as
//! it was seen before the take answers that.

use std::collections::BTreeMap;

use kcl_lease::{Lease, ShardId, WorkerId};

/// Why a lease may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody has begun it yet.
    New,
    /// Its owner let go of it.
    Released,
    /// Its owner gave no sign of life for a lease duration.
    Expired,
    /// Its owner handed it over to this worker, which had asked for it.
    HandedOver,
    /// It is in this worker's name already: the answer to an earlier take was lost.
    TakenBefore,
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::HandedOver => "handed over",
            Self::TakenBefore => "taken before, without an answer",
        }
    }
}

/// The owners that this worker has asked for their leases: the row no longer names them once they
/// have handed over.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<ShardId, WorkerId>);

impl Asked {
    /// Notes the owners of leases that are on their way to this worker, and forgets those of leases
    /// that are not any more.
    pub(super) fn observe(&mut self, leases: &[Lease], me: &WorkerId) {
        self.0.retain(|shard, noted| {
            let row = leases.iter().find(|lease| lease.shard_id == *shard);
            row.is_some_and(|row| match &row.owner {
                Some(owner) => owner == me || (row.checkpoint_owner.is_none() && owner == noted),
                None => true,
            })
        });
        for lease in leases.iter().filter(|lease| lease.next_owner() == Some(me)) {
            self.ask(lease);
        }
    }

    /// Notes the owner of a lease that this worker asks for.
    pub(super) fn ask(&mut self, lease: &Lease) {
        if let Some(owner) = lease.actual_owner() {
            self.0.insert(lease.shard_id.clone(), owner.clone());
        }
    }

    /// Returns the previous owner of a lease that `me` takes as it is `seen`, and the reason.
    pub(super) fn explain<'a>(&'a self, seen: &'a Lease, me: &WorkerId) -> (Option<&'a WorkerId>, Reason) {
        match seen.actual_owner() {
            None if seen.counter == 0 => (None, Reason::New),
            None => (self.0.get(&seen.shard_id), Reason::Released),
            Some(owner) if owner == me => match self.0.get(&seen.shard_id) {
                Some(previous) => (Some(previous), Reason::HandedOver),
                None => (None, Reason::TakenBefore),
            },
            Some(owner) => (Some(owner), Reason::Expired),
        }
    }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Checkpoint;

    use super::*;

    fn lease(owner: Option<&str>, checkpoint_owner: Option<&str>, counter: u64) -> Lease {
        let mut lease = Lease::new("a".into(), Checkpoint::TrimHorizon);
        lease.owner = owner.map(Into::into);
        lease.checkpoint_owner = checkpoint_owner.map(Into::into);
        lease.counter = counter;
        lease
    }

    #[test]
    fn the_row_and_what_was_asked_for_say_whose_it_was_and_why_it_is_taken() {
        let me = WorkerId::from("me");
        let nobody = Asked::default();
        let mut asked = Asked::default();
        asked.ask(&lease(Some("you"), None, 7));
        for (known, seen, owner, reason) in [
            (&nobody, lease(None, None, 0), None, Reason::New),
            (&nobody, lease(None, None, 7), None, Reason::Released),
            (&asked, lease(None, None, 7), Some("you"), Reason::Released),
            (&nobody, lease(Some("you"), None, 7), Some("you"), Reason::Expired),
            (&nobody, lease(Some("me"), Some("you"), 7), Some("you"), Reason::Expired),
            (&asked, lease(Some("me"), None, 8), Some("you"), Reason::HandedOver),
            (&nobody, lease(Some("me"), None, 8), None, Reason::TakenBefore),
        ] {
            let said = known.explain(&seen, &me);
            assert_eq!(said, (owner.map(WorkerId::from).as_ref(), reason), "{seen:?}");
        }
    }

    #[test]
    fn owners_are_remembered_while_their_leases_are_on_the_way() {
        let me = WorkerId::from("me");
        let mut asked = Asked::default();
        let on_its_way = lease(Some("me"), Some("you"), 7);
        asked.observe(std::slice::from_ref(&on_its_way), &me);
        let here = lease(Some("me"), None, 8);
        asked.observe(std::slice::from_ref(&here), &me);
        let previous = WorkerId::from("you");
        assert_eq!(asked.explain(&here, &me), (Some(&previous), Reason::HandedOver));
        let elsewhere = lease(Some("third"), Some("you"), 9);
        asked.observe(&[elsewhere], &me);
        assert_eq!(asked.explain(&here, &me), (None, Reason::TakenBefore));
    }
}
