//! Skipping to the latest, where that is configured: a shard that is too far behind leaves out what it has not read, and says so.
//!
//! The order of events: what is in work is finished, and checkpointed; the lease is begun anew at this instant, in one fenced write of its owner, so that no later owner reads
//! what was left out; only then is reading begun there. A crash before the write leaves the shard behind as it was, one after it begins at the instant.

use std::time::Duration;

use kcl_checkpoint::{Checkpoint, CheckpointWriteError, Timestamp};
use kcl_lease::{Clock as _, NewStart};

use super::{ShardConsumer, Stop};
use crate::record::Record;
use crate::stream::StartingPosition;

/// Whether a shard is further behind than `limit`: by the answer's own word in milliseconds, or by the arrival of its first new record.
fn is_further_behind(limit: Duration, behind: Option<u64>, first: Option<Timestamp>, now: Timestamp) -> bool {
    let age = first.map(|arrival| now.as_millis().saturating_sub(arrival.as_millis()));
    behind.max(age).is_some_and(|behind| u128::from(behind) > limit.as_millis())
}

impl ShardConsumer {
    /// Whether an answer is further behind than a shard may be: by its own word, or by the age of its first new record.
    pub(super) fn is_too_far_behind(&self, records: &[Record], behind: Option<u64>, now: Timestamp) -> bool {
        let Some(limit) = self.hold.shared.backlog.limit() else { return false };
        let first = records.iter().find(|record| self.filter.is_new(record)).and_then(Record::approximate_arrival);
        is_further_behind(limit, behind, first, now)
    }

    /// Whether records that were trimmed unread are further behind than a shard may be: then nothing has to wait for somebody's word.
    pub(super) fn trimmed_is_too_far_behind(&self) -> bool {
        self.hold.shared.backlog.limit().is_some_and(|limit| limit < self.hold.shared.retention())
    }

    /// Begins the shard anew at this instant. Nothing is in work.
    pub(super) async fn skip_to_latest(&mut self) -> Result<Stop, Stop> {
        let mut backoff = self.hold.backoff();
        let acked = self.prefix.acked();
        let behind = self.work.behind;
        // The last instant that was asked for, and is perhaps written.
        let mut tried = None;
        loop {
            self.hold.gate().await.map_err(|stop| self.skip_in_doubt(tried, stop))?;
            // First, so that no checkpoint of what came before the instant follows the write.
            if let Some(Checkpoint::At(acked)) = self.final_checkpoint() {
                let checkpointer = &self.hold.shard.checkpointer;
                if let Err(error) = checkpointer.checkpoint_at(acked).await {
                    tracing::debug!(%error, "what is finished is not checkpointed yet; trying again");
                    self.hold.pause(backoff.next_wait()).await?;
                    continue;
                }
            }
            let (now, term) = (self.hold.shared.clock.wall_time(), &self.hold.term);
            term.set_finished_beyond(None);
            tried = Some(now);
            match term.restart(NewStart::latest(now)).await {
                Ok(()) => {
                    tracing::error!(
                        target: "kcl::audit",
                        stream = %self.hold.shared.stream.arn,
                        shard = %self.hold.shard.shard_id(),
                        finished = acked.map(tracing::field::display),
                        behind_millis = behind,
                        instant = now.as_millis(),
                        "the shard was too far behind: what arrived before this instant and was not read is left out, as configured"
                    );
                    let millis = behind.unwrap_or(0);
                    self.hold.shared.metrics.skipped(millis);
                    self.hold.shared.status.update(self.hold.shard.shard_id(), |status| {
                        status.skips += 1;
                        status.checkpoint = Checkpoint::Latest;
                    });
                    self.skipped = Some((self.prefix.delivered(), now));
                    // Of this shard. If it is closed, its children have had records since long before.
                    self.filter.watched_until(now);
                    self.filter.accept_gap();
                    return Ok(Stop::Reopen(StartingPosition::AtTimestamp(now)));
                }
                // This write, or an earlier one, may have been in effect before the lease was lost.
                Err(CheckpointWriteError::LeaseLost) => return Err(self.skip_in_doubt(tried, Stop::Ended)),
                Err(error) => {
                    tracing::debug!(%error, "the new start is not confirmed yet; trying again");
                    self.hold.pause(backoff.next_wait()).await.map_err(|stop| self.skip_in_doubt(tried, stop))?;
                }
            }
        }
    }

    /// The shard goes while the new start may still be written: told before anybody knows, rather than never.
    fn skip_in_doubt(&self, tried: Option<Timestamp>, stop: Stop) -> Stop {
        if let Some(instant) = tried {
            tracing::error!(
                target: "kcl::audit",
                stream = %self.hold.shared.stream.arn,
                shard = %self.hold.shard.shard_id(),
                finished = self.prefix.acked().map(tracing::field::display),
                instant = instant.as_millis(),
                "the shard was too far behind, and is let go before its new start is confirmed: what arrived before this instant and was not read may be left out"
            );
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_too_far_behind_by_its_own_word_or_by_the_age_of_its_first_new_record() {
        let limit = Duration::from_millis(1000);
        // What the answer says; when its first new record arrived, a time before now.
        for (behind, age, is_further) in [
            (None, None, false),
            (Some(1000), None, false),
            (Some(1001), None, true),
            (None, Some(1000), false),
            (None, Some(1001), true),
            (Some(0), Some(1001), true),
            (Some(1001), Some(0), true),
            (Some(1000), Some(1000), false),
        ] {
            let now = Timestamp::from_millis(5000);
            let first = age.map(|age| Timestamp::from_millis(now.as_millis() - age));
            assert_eq!(is_further_behind(limit, behind, first, now), is_further, "{behind:?} {age:?}");
        }
        let early = Timestamp::from_millis(5000);
        assert!(!is_further_behind(limit, None, Some(early), Timestamp::from_millis(1)), "a clock that is behind the stream's");
    }
}
