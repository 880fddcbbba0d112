//! What feeds the stream: records of numbered keys, each with its number, and a flag for those that can't be processed.

use std::time::Duration;

use bytes::Bytes;
use kcl_core::Entropy;
use kcl_core::test_util::SimulatedAws;

use super::oracle::Judge;
use super::plan::Traffic;

/// The stream's name in every run.
pub(super) const STREAM: &str = "orders";

/// What partition keys and payloads begin with: it must never be seen in a log.
pub(super) const CANARY: &str = "canary";

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Good,
    Poison,
    Failing,
    Killer,
}

/// The kind, as the payload tells it: its byte after the canary.
pub(super) fn kind_of(payload: &[u8]) -> Kind {
    match payload.get(CANARY.len()) {
        Some(b'P') => Kind::Poison,
        Some(b'F') => Kind::Failing,
        Some(b'K') => Kind::Killer,
        _ => Kind::Good,
    }
}

/// Puts records, and tells the oracle of each.
pub(super) struct Publisher {
    pub(super) aws: SimulatedAws,
    pub(super) judge: Judge,
    pub(super) traffic: Traffic,
    pub(super) entropy: Entropy,
    /// Zeros: payloads of any length are parts of it.
    filler: Bytes,
    published: u64,
}

impl Publisher {
    pub(super) fn new(aws: SimulatedAws, judge: Judge, traffic: Traffic, entropy: Entropy) -> Self {
        let filler = Bytes::from(vec![b'.'; if traffic.largest > 1_000 { traffic.largest } else { 0 }]);
        Self { aws, judge, traffic, entropy, filler, published: 0 }
    }

    /// How long to wait before the next record.
    pub(super) fn pause(&self) -> Duration {
        self.entropy.between(Duration::ZERO, self.traffic.every * 2)
    }

    pub(super) fn put(&mut self, count: u32) {
        for _ in 0..count {
            self.published += 1;
            let number = self.published;
            let key = self.entropy.u64() % u64::from(self.traffic.keys.max(1));
            let drawn = self.entropy.u64() % 1000;
            let (poison, failing) = (u64::from(self.traffic.poison), u64::from(self.traffic.failing));
            let kind = match self.traffic.killer {
                Some(at) if at == number => Kind::Killer,
                _ if drawn < poison => Kind::Poison,
                _ if drawn < poison + failing => Kind::Failing,
                _ => Kind::Good,
            };
            let flag = match kind {
                Kind::Good => 'G',
                Kind::Poison => 'P',
                Kind::Failing => 'F',
                Kind::Killer => 'K',
            };
            let payload = match self.filler.len() {
                0 => Bytes::from(format!("{CANARY}{flag}{number}")),
                // The flag can't be put into a shared buffer: large records are good ones.
                length if kind == Kind::Good => {
                    let length = 1 + usize::try_from(self.entropy.u64()).unwrap_or(usize::MAX) % length;
                    self.filler.slice(..length)
                }
                _ => Bytes::from(format!("{CANARY}{flag}{number}")),
            };
            let partition_key = format!("{CANARY}-{key}");
            let (shard, sequence_number) = self.aws.put(STREAM, &partition_key, payload);
            self.judge.put(shard, sequence_number, key, number, kind);
        }
    }
}
