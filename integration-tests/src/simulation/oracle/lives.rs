//! The life of each processor, as `RecordProcessor` documents it: made, initialized once, then calls, one at a time, then exactly one farewell; no
//! call after one that has cost it.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_core::{ShardContext, ShardId};

use super::Oracle;
use super::leases::TERMS;
use super::log::Entry;

/// The time after which a process that stops may drop processors without a farewell: nearly all that it has.
pub(super) const STOPS: Duration = Duration::from_secs(22);

/// A call of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Call {
    Initialize,
    Process,
    Idle,
    ShardEnded,
    ShutdownRequested,
    LeaseLost,
}

/// The end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum CallEnd {
    Done,
    Failed,
    Panicked,
    /// It was dropped at an await.
    Dropped,
}

/// A processor.
#[derive(Debug)]
struct Life {
    host: String,
    /// In words: its host, shard and term.
    name: String,
    shard: ShardId,
    token: u64,
    initialized: Option<bool>,
    under_way: Option<Call>,
    /// The call that has cost it.
    lost: Option<(Call, CallEnd)>,
    shutdown_requested: bool,
    shard_ended: bool,
    lease_lost: bool,
}

/// All processors that are not dropped.
#[derive(Debug, Default)]
pub(super) struct Lives {
    made: u64,
    lives: BTreeMap<u64, Life>,
}

impl Life {
    /// The reason for which this call must not begin.
    fn objection(&self, call: Call, by_hand: bool) -> Option<String> {
        if let Some(other) = self.under_way {
            return Some(format!("{call:?} begins while {other:?} is under way"));
        }
        if let Some((lost, end)) = self.lost {
            return Some(format!("{call:?} begins although {lost:?} has cost the processor: {end:?}"));
        }
        match (call, self.initialized) {
            (Call::Initialize, None) | (_, Some(true)) => {}
            (_, initialized) => return Some(format!("{call:?} begins, and it was initialized: {initialized:?}")),
        }
        if self.lease_lost {
            return Some(format!("{call:?} begins after it was told that the lease is lost"));
        }
        // Without its checkpoint the end of the shard is told again.
        if self.shard_ended && !(by_hand && call == Call::ShardEnded) {
            return Some(format!("{call:?} begins after it was told of the shard's end"));
        }
        let may_follow = matches!(call, Call::LeaseLost);
        (self.shutdown_requested && !may_follow).then(|| format!("{call:?} begins after the shutdown was requested"))
    }

    fn has_farewell(&self) -> bool {
        self.initialized != Some(true) || self.lost.is_some() || self.shard_ended || self.lease_lost
    }
}

impl Oracle {
    /// A processor was made. Returns its name for the other calls.
    pub(super) fn made(&mut self, host: &str, shard: &ShardContext) -> u64 {
        let lives = &mut self.lives;
        lives.made += 1;
        let life = Life {
            host: host.to_owned(),
            name: format!("processor {} of {host} for {} in term {}", lives.made, shard.shard_id(), shard.fencing_token()),
            shard: shard.shard_id().clone(),
            token: shard.fencing_token(),
            initialized: None,
            under_way: None,
            lost: None,
            shutdown_requested: false,
            shard_ended: false,
            lease_lost: false,
        };
        lives.lives.insert(lives.made, life);
        lives.made
    }

    /// A call begins, with the context of this shard and term.
    pub(super) fn call_begins(&mut self, processor: u64, call: Call, shard: &ShardId, token: u64, now: Duration) {
        let by_hand = self.manual;
        let Some(life) = self.lives.lives.get(&processor) else { return };
        let objection = if (&life.shard, life.token) == (shard, token) {
            life.objection(call, by_hand).or_else(|| self.is_out_of_place(life, call, now))
        } else {
            Some(format!("{call:?} begins with the context of {shard} in term {token}"))
        };
        let Some(life) = self.lives.lives.get_mut(&processor) else { return };
        life.under_way = Some(call);
        let wrong = objection.map(|objection| format!("{}: {objection}", life.name));
        if let Some(wrong) = wrong {
            self.violated("life", wrong);
        }
    }

    /// The reason for which this is not the time for a call.
    fn is_out_of_place(&self, life: &Life, call: Call, now: Duration) -> Option<String> {
        let Life { host, shard, token, .. } = life;
        if self.old_terms.contains(&(host.clone(), shard.clone(), *token)) {
            return None;
        }
        let term = self.terms.get(shard).and_then(|terms| terms.iter().rev().find(|term| term.token == *token && term.host == *host));
        let Some(term) = term else {
            // Terms of the stream before are not seen once it is made anew, and old ones are forgotten.
            let may_be_old = self.made_anew.is_some() || self.terms.get(shard).is_some_and(|terms| terms.len() >= TERMS);
            return (!may_be_old).then(|| format!("{call:?} begins, and this term never was"));
        };
        match call {
            Call::Idle | Call::ShutdownRequested | Call::ShardEnded if !term.open && !term.fenced => {
                Some(format!("{call:?} begins after the end of {term:?}"))
            }
            Call::ShardEnded if !term.sought => self.has_not_ended(shard, now).map(|open| format!("{call:?} begins, and {open}")),
            // Who has lost its lease, or may have, is not asked; nor is who is late with stopping, or hands over at the last moment.
            Call::LeaseLost
                if term.released
                    && !(term.lapsed || life.shutdown_requested || self.blocks || term.handed_over || self.is_late(host, now)) =>
            {
                Some(format!("{call:?} begins without a request to shut down, although the shard was let go in order"))
            }
            _ => None,
        }
    }

    /// A worker that is told to stop, and does not in time, drops what it has.
    fn is_late(&self, host: &str, now: Duration) -> bool {
        self.stopping.get(host).is_some_and(|at| *at + STOPS <= now)
    }

    /// Why a shard has not ended, in words.
    fn has_not_ended(&self, shard: &ShardId, now: Duration) -> Option<String> {
        let log = self.log.shards.get(shard)?;
        if !log.closed {
            return Some("the shard is open".to_owned());
        }
        let is_trimmed = |entry: &Entry| self.trimmed_may_be_skipped && entry.put + self.retention <= now;
        let is_collected = |entry: &Entry| self.collected.contains_key(&(shard.clone(), entry.position()));
        let open = log.entries[log.done_to..].iter().find(|entry| !entry.done && !is_trimmed(entry) && !is_collected(entry));
        open.filter(|_| !self.manual).map(|entry| format!("record {} is not finished", entry.position()))
    }

    /// After all have stopped there are no processors left but those of processes that died.
    pub(in crate::simulation) fn no_processor_is_left(&mut self, is_dead: impl Fn(&str) -> bool) {
        let left = self.lives.lives.values().find(|life| !is_dead(&life.host)).map(|life| life.name.clone());
        if let Some(name) = left.filter(|_| !self.blocks) {
            self.violated("life", format!("{name} is left after all have stopped"));
        }
    }

    pub(super) fn call_ends(&mut self, processor: u64, call: Call, end: CallEnd) {
        let Some(life) = self.lives.lives.get_mut(&processor) else { return };
        life.under_way = None;
        if matches!(end, CallEnd::Panicked | CallEnd::Dropped) {
            life.lost = Some((call, end));
        }
        match call {
            Call::Initialize => life.initialized = Some(end == CallEnd::Done),
            Call::ShardEnded => life.shard_ended = end == CallEnd::Done,
            Call::ShutdownRequested => life.shutdown_requested = true,
            Call::LeaseLost => life.lease_lost = true,
            Call::Process | Call::Idle => {}
        }
        if matches!(end, CallEnd::Panicked | CallEnd::Dropped) {
            self.reached("processor lost");
        }
    }

    /// A call of a term that is over has a grace, and not for ever: else its worker never takes the shard again.
    pub(in crate::simulation) fn calls_end_with_their_terms(&mut self, now: Duration, within: Duration) {
        let outlives = |term: &&super::Term| term.calls > 0 && term.ended_at.is_some_and(|at| at + within < now);
        if self.blocks {
            return;
        }
        let found = self.terms.iter().find_map(|(shard, terms)| Some((shard, terms.iter().find(outlives)?)));
        if let Some(message) = found.map(|(shard, term)| format!("a call of {shard} goes on after the end of {term:?}")) {
            self.violated("life", message);
        }
    }

    /// A processor is dropped. `with_its_process`: which has died, so that nobody could be told.
    pub(super) fn gone(&mut self, processor: u64, with_its_process: bool, now: Duration) {
        let Some(life) = self.lives.lives.remove(&processor) else { return };
        let late = self.is_late(&life.host, now);
        if !with_its_process && !self.over && !late && !self.blocks && !life.has_farewell() {
            self.violated("life", format!("{} was dropped without a farewell", life.name));
        }
    }
}
