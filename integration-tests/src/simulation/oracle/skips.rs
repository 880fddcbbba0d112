//! What is left out, or stands still, because somebody has said so: a shard that is too far behind
//! skips what it has not read, as configured; and one that is stopped is not delivered by anybody.

use std::time::Duration;

use kcl_core::{Checkpoint, ShardId};
use kcl_lease::{Lease, LeaseWrite};

use super::{Oracle, log};
use crate::simulation::publisher::Kind;

/// The service's time, and its word on how far behind a read is, may be wrong by so much.
const MARGIN: Duration = Duration::from_secs(3);

impl Oracle {
    /// Whether an owner begins its shard anew at an instant, as only a skip does.
    pub(super) fn is_skip(&self, write: &LeaseWrite, before: &Lease, after: &Lease) -> bool {
        let is_anew = write.checkpoint == Some(Checkpoint::Latest) && after.initial_timestamp != before.initial_timestamp;
        self.skip_beyond.is_some() && is_anew && write.stream_created_if_absent.is_none()
    }

    /// An owner leaves out what it has not read: something of it must be old, and nothing that was in work may be left out.
    pub(super) fn skipped_ahead(&mut self, host: &str, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        let Some(log) = self.log.shards.get(shard) else { return };
        let Some(term) = self.terms.get(shard).and_then(|terms| terms.last()).filter(|term| term.open && term.host == host) else {
            self.violated("S5", format!("{host} begins {shard} anew, which it does not own"));
            return;
        };
        let (first, token) = (log.start_of(after), term.token);
        let left_out = log.entries.get(log.start_of(before)..first).unwrap_or_default();
        let limit = self.skip_beyond.unwrap_or_default().saturating_sub(MARGIN);
        let is_far_behind = left_out.iter().any(|entry| now.saturating_sub(entry.put) >= limit);
        let in_work = left_out.iter().find(|entry| !entry.done && entry.tried_in.contains(&token)).map(log::Entry::position);
        if !is_far_behind {
            self.violated("S1", format!("{host} leaves out records of {shard}, which is not too far behind"));
        } else if let Some(record) = in_work {
            self.violated("S1", format!("{host} leaves out record {record} of {shard}, which is in work"));
        }
        self.log.moved_to(after);
        if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
            (term.first, term.next) = (first, first);
        }
        self.reached("shard skipped to the latest");
    }

    /// Nobody delivers a shard whose lease says that it is stopped.
    pub(super) fn is_not_stopped(&mut self, host: &str, shard: &ShardId) {
        if let Some(stopped) = self.rows.get(shard).and_then(|row| row.stopped) {
            self.violated(
                "stop",
                format!("{host} delivers {shard}, which is stopped since {}: {}", stopped.since.as_millis(), stopped.reason),
            );
        }
    }

    /// While bad records wait for a queue that is away, good ones of other keys are finished in this time.
    pub(in crate::simulation) fn other_keys_go_on(&mut self, now: Duration, within: Duration) {
        let mut late = None;
        for (shard, log) in &self.log.shards {
            let mut waiting = std::collections::BTreeSet::new();
            for entry in log.entries[log.done_to..].iter().filter(|entry| !entry.done) {
                if entry.published.kind != Kind::Good {
                    waiting.insert(entry.published.key);
                } else if !waiting.contains(&entry.published.key) && entry.put + within < now {
                    late = Some(format!(
                        "good record {} of {shard} waits for {:?}, though none of its key does",
                        entry.position(),
                        now - entry.put
                    ));
                    break;
                }
            }
        }
        if let Some(message) = late {
            self.violated("L8", message);
        }
    }
}
