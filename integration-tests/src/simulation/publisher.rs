//! What feeds the stream: records of numbered keys, each with its number, and a flag for those that can't be processed; each on its own, or several
//! put together.

use std::time::Duration;

use bytes::Bytes;
use kcl_core::test_util::SimulatedAws;
use kcl_core::{Entropy, ExtendedSequenceNumber};

use super::aggregates::{self, Keys};
use super::oracle::Judge;
use super::plan::{Aggregates, Traffic};

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
    /// Users' code panics on it.
    Panicking,
    Killer,
    /// An aggregate that nobody can take apart.
    Broken,
}

/// What was put, as far as the oracle has to know it.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) position: ExtendedSequenceNumber,
    /// The record's own key, by its number.
    pub(super) key: u64,
    /// Grows with publication, over all keys.
    pub(super) count: u64,
    pub(super) kind: Kind,
    /// It is one of several that were put together.
    pub(super) aggregated: bool,
    /// Its key belongs to another shard.
    pub(super) elsewhere: bool,
    /// The payload of a broken aggregate.
    pub(super) whole: Option<Bytes>,
}

/// The kind, as the payload tells it: its byte after the canary.
pub(super) fn kind_of(payload: &[u8]) -> Kind {
    match payload.get(CANARY.len()) {
        Some(b'P') => Kind::Poison,
        Some(b'F') => Kind::Failing,
        Some(b'K') => Kind::Killer,
        Some(b'X') => Kind::Panicking,
        _ => Kind::Good,
    }
}

/// The record's number, as the payload tells it after the flag. `None`: it is too large a payload to say so.
pub(super) fn count_of(payload: &[u8]) -> Option<u64> {
    let number = payload.strip_prefix(CANARY.as_bytes())?.get(1..)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The text of a numbered key.
pub(super) fn partition_key(key: u64) -> String {
    format!("{CANARY}-{key}")
}

/// Puts records, and tells the oracle of each.
pub(super) struct Publisher {
    pub(super) aws: SimulatedAws,
    pub(super) judge: Judge,
    pub(super) traffic: Traffic,
    pub(super) entropy: Entropy,
    keys: Keys,
    /// Zeros: payloads of any length are parts of it.
    filler: Bytes,
    published: u64,
}

impl Publisher {
    pub(super) fn new(aws: SimulatedAws, judge: Judge, traffic: Traffic, entropy: Entropy) -> Self {
        let filler = Bytes::from(vec![b'.'; if traffic.largest > 1_000 { traffic.largest } else { 0 }]);
        let keys = Keys::new(traffic.keys.max(1));
        Self { aws, judge, traffic, entropy, keys, filler, published: 0 }
    }

    /// How long to wait for each record that was put.
    pub(super) fn pause(&self) -> Duration {
        self.entropy.between(Duration::ZERO, self.traffic.every * 2)
    }

    /// Puts this many records, or some more if the last ones come together. Returns how many they were.
    pub(super) fn put(&mut self, count: u32) -> u32 {
        let mut put = 0;
        while put < count {
            put += match self.traffic.aggregates {
                Some(aggregates) if self.in_thousand(aggregates.share) => self.put_together(aggregates),
                _ => self.put_one(),
            };
        }
        put
    }

    fn in_thousand(&self, share: u32) -> bool {
        self.entropy.u64() % 1000 < u64::from(share)
    }

    fn below(&self, end: usize) -> usize {
        usize::try_from(self.entropy.u64() % end.max(1) as u64).unwrap_or(0)
    }

    fn any_key(&self) -> u64 {
        self.entropy.u64() % u64::from(self.traffic.keys.max(1))
    }

    /// The next record's number, and what becomes of it.
    fn next(&mut self) -> (u64, Kind) {
        self.published += 1;
        let number = self.published;
        let drawn = self.entropy.u64() % 1000;
        let (poison, failing, panicking) =
            (u64::from(self.traffic.poison), u64::from(self.traffic.failing), u64::from(self.traffic.panicking));
        let kind = match self.traffic.killer {
            Some(at) if at == number => Kind::Killer,
            _ if self.traffic.bad.contains(&number) => Kind::Failing,
            _ if drawn < poison => Kind::Poison,
            _ if drawn < poison + failing => Kind::Failing,
            _ if drawn < poison + failing + panicking => Kind::Panicking,
            _ => Kind::Good,
        };
        (number, kind)
    }

    /// A payload; of at most so many bytes where large ones are drawn.
    fn payload(&self, number: u64, kind: Kind, largest: usize) -> Bytes {
        let flag = match kind {
            Kind::Good | Kind::Broken => 'G',
            Kind::Poison => 'P',
            Kind::Failing => 'F',
            Kind::Killer => 'K',
            Kind::Panicking => 'X',
        };
        // The flag can't be put into a shared buffer: large records are good ones.
        if largest > 0 && kind == Kind::Good {
            let length = 1 + usize::try_from(self.entropy.u64()).unwrap_or(usize::MAX) % largest;
            return self.filler.slice(..length);
        }
        Bytes::from(format!("{CANARY}{flag}{number}"))
    }

    fn put_one(&mut self) -> u32 {
        // In this order: older seeds draw so.
        let key = self.any_key();
        let (count, kind) = self.next();
        let payload = self.payload(count, kind, self.filler.len());
        let (shard, number) = self.aws.put(STREAM, &partition_key(key), payload);
        let position = ExtendedSequenceNumber::whole(number);
        self.judge.put(shard, Published { position, key, count, kind, aggregated: false, elsewhere: false, whole: None });
        1
    }

    fn put_together(&mut self, aggregates: Aggregates) -> u32 {
        let first = self.any_key();
        if self.in_thousand(aggregates.broken) {
            return self.put_broken(first);
        }
        let records = 1 + self.below(usize::try_from(aggregates.most).unwrap_or(usize::MAX));
        let shards = self.aws.shards(STREAM).unwrap_or_default();
        let choice = if self.in_thousand(aggregates.one_key) {
            vec![first]
        } else if self.in_thousand(aggregates.elsewhere) {
            self.keys.all()
        } else {
            self.keys.beside(first, &shards)
        };
        let mut together = Vec::with_capacity(records);
        for place in 0..records {
            // The first one's key is that of the whole.
            let key = if place == 0 { first } else { choice[self.below(choice.len())] };
            let (count, kind) = self.next();
            together.push((key, count, kind, self.payload(count, kind, self.filler.len().min(aggregates::LARGEST / records))));
        }
        let texts: Vec<_> = together.iter().map(|(key, ..)| partition_key(*key)).collect();
        let payloads = together.iter().map(|(.., payload)| payload.clone());
        let (shard, number) = self.aws.put_aggregate(STREAM, texts.iter().map(String::as_str).zip(payloads));
        for (sub_sequence_number, (key, count, kind, _)) in (0..).zip(together) {
            let position = ExtendedSequenceNumber::new(number, sub_sequence_number);
            let elsewhere = !self.keys.belongs_to(key, &shard, &shards);
            self.judge.put(shard.clone(), Published { position, key, count, kind, aggregated: true, elsewhere, whole: None });
        }
        u32::try_from(records).unwrap_or(u32::MAX)
    }

    /// Its keys and payloads are as secret as any.
    fn put_broken(&mut self, key: u64) -> u32 {
        self.published += 1;
        let (count, kind) = (self.published, Kind::Broken);
        let payload = aggregates::broken(&partition_key(key), &self.payload(count, kind, 0));
        let (shard, number) = self.aws.put(STREAM, &partition_key(key), payload.clone());
        let position = ExtendedSequenceNumber::whole(number);
        self.judge.put(shard, Published { position, key, count, kind, aggregated: false, elsewhere: false, whole: Some(payload) });
        1
    }
}
