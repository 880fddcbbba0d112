//! What a row says beside its checkpoint: that all records which arrived before its watermark are finished, and which of those beyond the checkpoint
//! (`rk_done`). Both must be true when they are written, and what the latter calls finished does not come again in the term that finds it.

use std::time::Duration;

use kcl_checkpoint::FinishedBeyond;
use kcl_core::{Checkpoint, ShardId, Timestamp};
use kcl_lease::Lease;

use super::Oracle;
use super::log::{Entry, place};
use crate::simulation::plan::{Chaos, Plan};

/// How wrong the machines' clocks are. A worker carries the service's time on by its boot time, and believes a wall clock that agrees with it to the second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clocks {
    /// Time that they gain or lose in a second.
    rate: f64,
    /// The difference that is not noticed.
    step: Duration,
}

impl Clocks {
    pub(super) fn of(plan: &Plan) -> Self {
        let mut clocks = Self::default();
        for (_, chaos) in &plan.schedule {
            match chaos {
                Chaos::ClockRate(_, rate) => clocks.rate = clocks.rate.max((rate - 1.0).abs()),
                Chaos::StepClock(..) => clocks.step = Duration::from_secs(2),
                _ => {}
            }
        }
        clocks
    }

    /// By so much a worker may be wrong about the time.
    pub(super) fn wrong_by(self, now: Duration) -> Duration {
        now.mul_f64(self.rate) + self.step
    }

    /// The earliest time that a worker may take for this one.
    fn earliest(self, time: Timestamp, now: Duration) -> Timestamp {
        let wrong = self.wrong_by(now);
        Timestamp::from_millis(time.as_millis().saturating_sub(u64::try_from(wrong.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What a write has said of finished records.
#[derive(Clone, Debug)]
pub(super) struct Said {
    host: String,
    shard: ShardId,
    /// The row's checkpoint.
    checkpoint: Checkpoint,
    /// It is another one than before.
    is_new: bool,
    /// A new watermark.
    watermark: Option<Timestamp>,
    /// A new note of records beyond the checkpoint.
    beyond: Option<FinishedBeyond>,
}

impl Said {
    /// What is new in a row. `None`: nothing.
    pub(super) fn by(host: &str, before: &Lease, after: &Lease) -> Option<Self> {
        let is_new = after.checkpoint != before.checkpoint;
        let watermark = after.watermark.filter(|_| after.watermark != before.watermark);
        let beyond = after.finished_beyond.clone().filter(|_| after.finished_beyond != before.finished_beyond);
        let (host, shard, checkpoint) = (host.to_owned(), after.shard_id.clone(), after.checkpoint);
        (is_new || watermark.is_some() || beyond.is_some()).then_some(Self { host, shard, checkpoint, is_new, watermark, beyond })
    }
}

/// The note of a row, if it says anything about its checkpoint: one that was written with a higher one is void.
pub(super) fn valid_note(row: &Lease) -> Option<&FinishedBeyond> {
    row.finished_beyond.as_ref().filter(|note| is_valid(note, row.checkpoint))
}

fn is_valid(note: &FinishedBeyond, checkpoint: Checkpoint) -> bool {
    match (note.base, checkpoint) {
        (None, _) | (_, Checkpoint::ShardEnd) => true,
        (Some(base), Checkpoint::At(at)) => place(at) >= place(base),
        _ => false,
    }
}

/// Whether a note calls a record finished. An open record of its aggregate's number without a sub-sequence number may mean the whole of it.
pub(super) fn calls_finished(note: &FinishedBeyond, entry: &Entry) -> bool {
    let at = entry.position();
    let is_whole = |open: u64| open == 0 || !entry.published.aggregated;
    let is_open = note.open.iter().any(|open| {
        open.sequence_number == at.sequence_number
            && (open.sub_sequence_number == at.sub_sequence_number || is_whole(open.sub_sequence_number))
    });
    place(at) <= place(note.until) && !is_open
}

impl Oracle {
    /// Judges what was written last, if it was not judged yet.
    pub(super) fn judge_said(&mut self, now: Duration) {
        let Some(said) = self.to_judge.take() else { return };
        let Said { host, shard, checkpoint, is_new, watermark, beyond } = said;
        if is_new {
            self.checkpointed(&host, &shard, checkpoint, now);
        }
        if let Some(watermark) = watermark {
            self.judge_watermark(&host, &shard, watermark, now);
        }
        if let Some(note) = beyond.filter(|note| is_valid(note, checkpoint)) {
            self.judge_note(&host, &shard, &note, now);
        }
    }

    /// All that arrived before this time is finished, as a row says.
    pub(super) fn judge_watermark(&mut self, host: &str, shard: &ShardId, watermark: Timestamp, now: Duration) {
        let Some(log) = self.log.shards.get(shard) else { return };
        let (from, to) = (log.done_to, log.since(self.clocks.earliest(watermark, now)));
        if from >= to || self.were_trimmed(shard, from, to, now) {
            return;
        }
        let Some(open) = self.log.shards[shard].entries[from..to].iter().find(|entry| !entry.done).map(Entry::position) else { return };
        self.violated("S16", format!("{host} says that {shard} is finished up to {watermark:?}, and record {open} from before is not"));
    }

    /// These records beyond the checkpoint are finished, as a row says.
    pub(super) fn judge_note(&mut self, host: &str, shard: &ShardId, note: &FinishedBeyond, now: Duration) {
        let Some(log) = self.log.shards.get(shard) else { return };
        let (from, to) = (log.done_to, log.after(note.until));
        let wrong = |place: &usize| !log.entries[*place].done && calls_finished(note, &log.entries[*place]);
        for place in (from..to).filter(wrong).collect::<Vec<_>>() {
            if !self.were_trimmed(shard, place, place + 1, now) {
                let open = self.log.shards[shard].entries[place].position();
                self.violated("S16", format!("{host} notes that record {open} of {shard} is finished, and nobody has finished it"));
                return;
            }
        }
    }
}
