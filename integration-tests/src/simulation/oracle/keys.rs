//! The order of each key where several records are in work: none is delivered while an earlier one of its key is not done, unless that one is given up and
//! may be passed; and where records follow a dead letter into the queue, none of them is delivered.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::{PoisonedKey, Record, ShardId};

use super::Oracle;
use crate::simulation::publisher::Kind;

impl Oracle {
    /// Judges the keys of a batch that is delivered.
    pub(super) fn keys_in_order(&mut self, host: &str, shard: &ShardId, records: &[Record], now: Duration) {
        let mut keys = BTreeSet::new();
        for record in records {
            let number = record.position();
            let Some((place, entry)) = self.log.shards.get(shard).and_then(|log| log.find(number)) else { continue };
            let key = entry.published.key;
            let term = self.terms.get(shard).and_then(|terms| terms.last());
            if self.poisoned_key == PoisonedKey::Follow
                && let Some(poisoned) = term.and_then(|term| term.poisoned.get(&key)).filter(|poisoned| **poisoned < place)
            {
                let letter = self.log.shards[shard].entries[*poisoned].position();
                self.violated(
                    "S4",
                    format!("{host} delivers record {number} of {shard}, and does not let it follow record {letter} of its key"),
                );
                return;
            }
            // What a processor has collected has its effect later.
            if !keys.insert(key) || self.manual {
                continue;
            }
            while let Some(earlier) = self.earlier_undone(shard, key, place) {
                if !self.were_trimmed(shard, earlier, earlier + 1, now) {
                    let missing = self.log.shards[shard].entries[earlier].position();
                    self.violated("S4", format!("{host} delivers record {number} of {shard} before record {missing} of its key is done"));
                    return;
                }
            }
        }
    }

    /// The first record of a key before this one that must be done before this one begins, and is not.
    fn earlier_undone(&mut self, shard: &ShardId, key: u64, place: usize) -> Option<usize> {
        let may_pass = self.poisoned_key == PoisonedKey::Pass;
        let most = self.max_attempts;
        let log = self.log.shards.get_mut(shard)?;
        let first = log.first_undone_of(key).filter(|first| *first < place)?;
        let entry = &log.entries[first];
        let is_given_up = entry.published.kind != Kind::Good || entry.failures >= most || entry.tried_in.len() > 1;
        (!may_pass || !is_given_up).then_some(first)
    }

    /// A letter was accepted in the present term: later records of its key follow it.
    pub(super) fn is_poisoned(&mut self, shard: &ShardId, key: u64, place: usize) {
        if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
            let first = term.poisoned.entry(key).or_insert(place);
            *first = place.min(*first);
        }
    }
}
