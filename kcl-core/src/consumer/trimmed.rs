//! A shard that was closed longer ago than the stream keeps records: Kinesis does not find it, and lists it no more. What came of it is listed, or was trimmed too.

use std::time::Duration;

use kcl_checkpoint::Checkpoint;
use kcl_lease::Lease;
use kcl_lease::shard_sync::tiles_key_space;
use tokio::time::Instant;

use super::ShardConsumer;
use crate::stream::{ChildShard, Shard, ShardFilter, children_of};

/// For how long listings must say that a shard was trimmed together with its children. A listing lags by seconds.
const CONFIRM: Duration = Duration::from_secs(30);

/// Says what is left of a shard that was not found.
#[derive(Debug, PartialEq, Eq)]
enum Remains {
    /// Nothing: it is listed, or the listing may lag.
    Unknown,
    /// Its children are listed, and it is not. A listing that lags would lack the children first.
    Children(Vec<ChildShard>),
    /// Neither it nor its children are listed, and all its hash keys belong to shards that came later.
    Descendants,
}

/// Reads off a listing what is left of a lease's shard that was not found.
fn remains(lease: &Lease, listing: &[Shard]) -> Remains {
    if listing.iter().any(|listed| listed.shard_id == lease.shard_id) {
        return Remains::Unknown;
    }
    let children = children_of(&lease.shard_id, listing);
    if !children.is_empty() {
        return Remains::Children(children);
    }
    let Some(range) = lease.hash_range else { return Remains::Unknown };
    let is_complete = tiles_key_space(listing.iter().map(|listed| listed.hash_range)).is_ok();
    let mut heirs = listing.iter().filter(|listed| listed.hash_range.start <= range.end && range.start <= listed.hash_range.end);
    let is_later = |heir: &Shard| match lease.checkpoint {
        Checkpoint::At(read) => heir.starting_sequence_number > read.sequence_number && heir.shard_id > lease.shard_id,
        // Kinesis numbers shards as they come.
        _ => heir.shard_id > lease.shard_id,
    };
    if is_complete && heirs.all(is_later) { Remains::Descendants } else { Remains::Unknown }
}

impl ShardConsumer {
    /// The children of a shard that was not found as it was trimmed; none where they were trimmed with it. `None`: that is not known.
    pub(super) async fn children_of_trimmed(&mut self) -> Option<Vec<ChildShard>> {
        let stream = &self.hold.shared.stream_api;
        // A stream that was made anew has other shards.
        if stream.describe().await.ok()?.created != self.hold.shared.stream.created {
            return None;
        }
        let listing = stream.list_shards(ShardFilter::All).await.ok()?;
        let row = Lease { checkpoint: self.hold.shard.checkpointer().last(), ..self.hold.term.taken().clone() };
        let since = std::mem::take(&mut self.work.gone_since);
        match remains(&row, &listing) {
            Remains::Children(children) => Some(children),
            Remains::Descendants => {
                let since = *self.work.gone_since.insert(since.unwrap_or_else(Instant::now));
                (since.elapsed() >= CONFIRM).then(Vec::new)
            }
            Remains::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kcl_checkpoint::ExtendedSequenceNumber;
    use kcl_lease::HashKeyRange;

    use super::*;

    const HALF: u128 = u128::MAX / 2;

    fn listed(number: u32, parents: &[&str], start: u128, end: u128) -> Shard {
        Shard {
            shard_id: format!("shard-{number}").as_str().into(),
            parents: parents.iter().map(|parent| (*parent).into()).collect(),
            hash_range: HashKeyRange { start, end },
            starting_sequence_number: u128::from(number * 100).into(),
            ending_sequence_number: None,
        }
    }

    fn lease(checkpoint: Checkpoint) -> Lease {
        Lease { hash_range: Some(HashKeyRange { start: 0, end: HALF }), ..Lease::new("shard-2".into(), checkpoint) }
    }

    #[test]
    fn a_listing_tells_what_is_left_of_a_shard() {
        let at = |number: u128| Checkpoint::At(ExtendedSequenceNumber::whole(number.into()));
        let other = || listed(3, &[], HALF + 1, u128::MAX);
        let begun = lease(at(210));
        assert_eq!(remains(&begun, &[listed(2, &[], 0, HALF), other()]), Remains::Unknown, "it is there");
        let Remains::Children(children) = remains(&begun, &[listed(5, &["shard-2"], 0, HALF), other()]) else {
            panic!("a child is listed")
        };
        assert_eq!(children.iter().map(|child| child.shard_id.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(["shard-5"]));
        // its children are gone too, and theirs are there
        assert_eq!(remains(&begun, &[listed(7, &["shard-5"], 0, HALF), other()]), Remains::Descendants);
        assert_eq!(remains(&lease(Checkpoint::TrimHorizon), &[listed(7, &["shard-5"], 0, u128::MAX)]), Remains::Descendants);
        // an older shard beside it has nothing to do with it, and one that shares the last of its keys has
        assert_eq!(remains(&begun, &[listed(7, &[], 0, HALF), listed(1, &[], HALF + 1, u128::MAX)]), Remains::Descendants);
        assert_eq!(remains(&begun, &[listed(7, &[], 0, HALF - 1), listed(1, &[], HALF, u128::MAX)]), Remains::Unknown);
        // a listing that lags: its parent is still there, or a part of its keys belongs to nobody
        assert_eq!(remains(&begun, &[listed(1, &[], 0, u128::MAX)]), Remains::Unknown);
        assert_eq!(remains(&begun, &[listed(7, &[], 0, HALF - 7), other()]), Remains::Unknown);
        assert_eq!(remains(&begun, &[]), Remains::Unknown);
        // what began before its last record can't have come of it
        for (read, left) in [(699, Remains::Descendants), (700, Remains::Unknown), (900, Remains::Unknown)] {
            assert_eq!(remains(&lease(at(read)), &[listed(7, &[], 0, HALF), other()]), left, "{read}");
        }
        assert_eq!(remains(&Lease { hash_range: None, ..begun }, &[listed(7, &[], 0, u128::MAX)]), Remains::Unknown, "who knows");
    }
}
