//! Intake: what a read gave is checked for gaps, taken apart, and put into work as far as there is room.

use std::time::Duration;

use kcl_aggregation::BrokenAggregate;
use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::Clock as _;

use super::call::{Advice, CallFailure};
use super::in_hand::Item;
use super::prefetch::Answer;
use super::retry::Condemned;
use super::schedule::Entry;
use super::{ShardConsumer, Stop};
use crate::dead_letter::FailureKind;
use crate::record::Record;
use crate::retrieval::Fetched;
use crate::stream::{ChildShard, StreamError};

/// A pause in reading after which nothing is taken for granted: below the five minutes for which an iterator lives, and below the margin
/// within which records count as trimmed.
const LONG_PAUSE: Duration = Duration::from_secs(240);

/// Marks that are kept: one for each answer until its records are finished, which may take a processor that checkpoints for itself long.
const MOST_MARKS: usize = 1_000;

impl ShardConsumer {
    /// Takes the answer of a read into the hand.
    pub(super) async fn take_in(&mut self, answer: Answer) -> Result<(), Stop> {
        let Answer { asked, fetched } = answer;
        if fetched.is_ok() {
            self.work.read_failing = false;
            self.hold.answered(StreamError::SERVICE);
            if self.paused_for_long() {
                // What was just read is put away, and read again with what comes before it.
                self.work.reopen = true;
                return Ok(());
            }
        }
        match fetched {
            Ok(Fetched::Records { records, millis_behind_latest }) => self.records_read(records, millis_behind_latest, asked).await,
            Ok(Fetched::ShardEnd { children }) => {
                self.work.ended = Some(children);
                Ok(())
            }
            Err(error) => self.read_failed(&error).await,
        }
    }

    /// Whether no answer was taken in for so long that what was read ahead says little of the shard as it is, and its iterator has expired.
    fn paused_for_long(&mut self) -> bool {
        let now = self.hold.shared.clock.boot_time();
        now.saturating_sub(std::mem::replace(&mut self.looked, now)) > LONG_PAUSE
    }

    async fn records_read(&mut self, mut records: Vec<Record>, behind: Option<u64>, asked: Timestamp) -> Result<(), Stop> {
        let shared = &self.hold.shared;
        shared.status.read_answered(self.hold.shard.shard_id(), behind);
        if let Some(millis) = behind {
            shared.metrics.behind(millis);
        }
        let (now, retention) = (shared.clock.wall_time(), shared.retention());
        if self.is_too_far_behind(&records, behind, now) {
            (self.work.behind, self.work.skip) = (behind, true);
            return Ok(());
        }
        if let Err(gap) = self.filter.admit(&mut records, behind == Some(0), now, retention) {
            // After a reopening records may be in work.
            self.settle().await?;
            self.after_gap(gap).await?;
        }
        let at_tip = behind == Some(0);
        if let Some(bound) = self.hold.shared.bound {
            self.look_for_bound(&mut records, at_tip, now, bound);
        }
        // What is finished with this answer: all that arrived before its last record; or, as an open shard at its tip holds nothing else, all that
        // arrived before it was asked for. A closed shard's last answer has records, and says nothing of that time: its children's have been arriving
        // meanwhile.
        self.work.mark_in_hand = match records.last() {
            Some(_) => records.iter().rev().find_map(Record::approximate_arrival),
            None => Some(asked).filter(|_| at_tip),
        };
        self.work.behind = behind;
        self.work.in_hand.put(records);
        self.answer_is_taken();
        Ok(())
    }

    /// Takes records out of the hand into work, as many as there is room for.
    pub(super) fn take_into_work(&mut self) {
        // With one lane a batch is put together; with several, each record fills the room by itself.
        let mut batch = self.work.room(&self.hold.shared.processing, self.prefix.span());
        let one_lane = self.work.lanes.len() == 1;
        while !self.work.in_hand.is_empty() {
            let room =
                if one_lane && !self.work.barrier { batch } else { self.work.room(&self.hold.shared.processing, self.prefix.span()) };
            if room == 0 {
                break;
            }
            match self.work.in_hand.next() {
                None => {}
                Some(Item::Record(record)) => batch -= usize::from(self.begin_record(record) && one_lane),
                Some(Item::Broken(record, broken)) => self.set_aside(record, &broken),
                Some(Item::Dropped(record, elsewhere)) => self.drop_aggregate(&record, elsewhere),
            }
        }
        let elsewhere = self.work.in_hand.take_elsewhere();
        if elsewhere > 0 {
            self.hold.shared.metrics.elsewhere(elsewhere);
        }
        self.answer_is_taken();
        self.show_oldest();
    }

    /// Shows the arrival of the oldest record that is not finished.
    pub(super) fn show_oldest(&mut self) {
        let in_hand = self.work.in_hand.oldest_arrival();
        let open = self.prefix.oldest_open().and_then(|record| self.work.arrivals.of(record));
        let oldest = open.or(in_hand);
        self.hold.shared.status.oldest(self.hold.shard.shard_id(), oldest);
    }

    /// A record that is finished already goes no further. Returns whether it does.
    fn begin_record(&mut self, record: Record) -> bool {
        if self.filter.is_finished(&record) {
            return false;
        }
        let position = record.position();
        self.prefix.deliver(position);
        self.work.arrivals.note(&record);
        if self.work.rewind.is_dead(position) {
            self.prefix.ack(position);
            self.acked_more();
            return false;
        }
        if self.work.finished_before.as_ref().is_some_and(|note| note.covers(position, record.is_aggregated()))
            && !is_planted(Bug::NoteIgnored)
        {
            self.prefix.ack(position);
            self.acked_more();
            self.hold.shared.metrics.spared();
            return false;
        }
        let entry = self.work.rewind.entry(record);
        self.work.schedule.push(entry);
        true
    }

    /// An aggregate that nobody can take apart goes to the dead-letter queue as a whole. Nobody knows whose records are in it: nothing after it begins
    /// before it is accepted there.
    fn set_aside(&mut self, record: Record, broken: &BrokenAggregate) {
        if self.filter.is_finished(&record) {
            return;
        }
        self.prefix.deliver(record.position());
        self.work.arrivals.note(&record);
        if self.work.rewind.is_dead(record.position()) {
            self.prefix.ack(record.position());
            return self.acked_more();
        }
        if self.hold.shared.dead_letter_queue.is_some() {
            tracing::error!(record = %record.position(), %broken, "an aggregate is broken: it goes to the dead-letter queue as a whole");
        } else {
            tracing::error!(
                record = %record.position(), %broken,
                "an aggregate is broken and there is no dead-letter queue: the shard stands still; start the worker with a \
                 dead-letter queue, or seek past this record"
            );
        }
        if is_planted(Bug::BrokenPassedOver) {
            self.prefix.ack(record.position());
            return self.acked_more();
        }
        let failure = CallFailure::own(FailureKind::BrokenAggregate, Advice::Poison, broken.to_string());
        self.work.schedule.hold(&record);
        self.work.barrier = !is_planted(Bug::BrokenHoldsNothingBack);
        self.condemn(Condemned::proven(Entry::new(record), failure), None);
    }

    /// An aggregate of which nothing is delivered, as configured.
    fn drop_aggregate(&mut self, record: &Record, elsewhere: usize) {
        if self.filter.is_finished(record) {
            return;
        }
        tracing::error!(
            target: "kcl::audit",
            stream = %self.hold.shared.stream.arn,
            shard = %self.hold.shard.shard_id(),
            record = %record.position(),
            elsewhere,
            "an aggregate with records of other shards is dropped, as configured"
        );
        self.hold.shared.metrics.dropped_aggregate();
        self.prefix.deliver(record.position());
        self.prefix.ack(record.position());
        self.acked_more();
    }

    /// If the whole answer is in work now: what is finished with it, once its last record is.
    fn answer_is_taken(&mut self) {
        if self.work.in_hand.is_empty()
            && let Some(mark) = self.work.mark_in_hand.take()
        {
            let delivered = self.prefix.delivered();
            // Seen is enough to know that nothing was trimmed unread: an unfinished record may be in work for as long as it likes.
            self.filter.watched_until(mark);
            match self.work.marks.back_mut() {
                Some((last, marked)) if *last == delivered => *marked = mark.max(*marked),
                _ => self.work.marks.push_back((delivered, mark)),
            }
            if self.work.marks.len() > MOST_MARKS {
                // A later one says more.
                self.work.marks.pop_front();
            }
            self.move_watermark();
        }
    }

    /// Moves the watermark to what is finished now.
    pub(super) fn move_watermark(&mut self) {
        let mut reached: Option<Timestamp> = None;
        // What a processor that checkpoints for itself has taken is finished when it says so.
        let acked = self.prefix.acked();
        let done = if self.is_anything_collected() { acked.min(self.hold.shard.checkpointer.last().record()) } else { acked };
        let done = if is_planted(Bug::WatermarkCoversDelivered) { self.prefix.delivered() } else { done };
        while let Some((_, mark)) = self.work.marks.front().copied().filter(|(last, _)| *last <= done) {
            self.work.marks.pop_front();
            reached = reached.max(Some(mark));
        }
        // That the bound is reached is told with the last checkpoint, and not before.
        let short_of_bound = self.hold.shared.bound.map(|bound| Timestamp::from_millis(bound.as_millis().saturating_sub(1)));
        if let Some(watermark) = reached.map(|reached| short_of_bound.map_or(reached, |short| reached.min(short))) {
            self.hold.term.set_watermark(watermark);
            self.filter.watched_until(watermark);
            self.watermark = Some(watermark);
        }
        let careful_is_over = self.work.behind == Some(0) && self.work.is_through();
        if careful_is_over && self.work.careful.is_some() {
            self.care_is_over();
        }
    }

    /// The shard has no more records, and all that it had are finished.
    pub(super) async fn read_to_its_end(&mut self, children: Vec<ChildShard>) -> Result<Stop, Stop> {
        if let Err(gap) = self.filter.end(self.hold.shared.clock.wall_time(), self.hold.shared.retention()) {
            self.after_gap(gap).await?;
        }
        Ok(Stop::ShardEnd(children))
    }
}
