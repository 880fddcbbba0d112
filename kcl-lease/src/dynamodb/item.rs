//! A lease as an item of the table, in the Java library's types exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, FinishedBeyond, PendingCheckpoint, Timestamp};

use super::attribute;
use crate::lease::{HashKeyRange, Lease, ShardId, StopReason, Stopped, Suspect, Trust, WorkerId};
use crate::table::UnreadableLease;
use crate::write::WriteId;

/// An item: its attributes by name.
pub(super) type Item = BTreeMap<String, AttributeValue>;

/// What an item of the table turned out to be.
#[derive(Debug, PartialEq)]
pub(super) enum ReadItem {
    /// A lease.
    Lease(Box<Lease>),
    /// Something of the Java library's that is no lease: its leader's lock, a worker's metrics, a state of migration.
    Foreign,
    /// A lease that can't be read.
    Unreadable(UnreadableLease),
}

impl ReadItem {
    /// The lease, if it is one.
    pub(super) fn lease(self) -> Option<Box<Lease>> {
        match self {
            Self::Lease(lease) => Some(lease),
            Self::Foreign | Self::Unreadable(_) => None,
        }
    }
}

/// How an item says that the lease has no owner, or no checkpoint owner, if not by lacking the attribute:
/// empty text or NULL. The Java library writes neither; people and other tools do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NoOwner {
    pub(super) owner: Option<AttributeValue>,
    pub(super) checkpoint_owner: Option<AttributeValue>,
}

impl NoOwner {
    /// `None`: the item says it by lacking the attributes, if at all.
    pub(super) fn odd_in(item: &Item) -> Option<Self> {
        let odd = |name| item.get(name).filter(|value| value.is_null() || value.as_s().is_ok_and(String::is_empty)).cloned();
        let odd = Self { owner: odd(attribute::LEASE_OWNER), checkpoint_owner: odd(attribute::CHECKPOINT_OWNER) };
        (odd != Self::default()).then_some(odd)
    }
}

/// Reads an item.
pub(super) fn read(item: &Item) -> ReadItem {
    let attributes = Attributes(item);
    match attributes.text(attribute::ENTITY_TYPE) {
        Ok(None | Some(attribute::ENTITY_TYPE_LEASE)) => {}
        Ok(Some(_)) => return ReadItem::Foreign,
        Err(reason) => return ReadItem::Unreadable(UnreadableLease { key: attributes.key(), reason }),
    }
    match read_lease(attributes) {
        Ok(lease) => ReadItem::Lease(Box::new(lease)),
        Err(reason) => ReadItem::Unreadable(UnreadableLease { key: attributes.key(), reason }),
    }
}

fn read_lease(attributes: Attributes<'_>) -> Result<Lease, String> {
    if let Some(stream) = attributes.text(attribute::STREAM_NAME)? {
        return Err(format!(
            "it belongs to stream `{stream}` of a multi-stream application of the Java library, which can't share its table with an \
             application of one stream"
        ));
    }
    let checkpoint = attributes
        .checkpoint(attribute::CHECKPOINT, attribute::CHECKPOINT_SUB_SEQUENCE_NUMBER)?
        .ok_or_else(|| wrong(attribute::CHECKPOINT, "missing"))?;
    let write_id = match attributes.text(attribute::WRITE_ID)? {
        None => None,
        Some(id) => Some(WriteId(u64::from_str_radix(id, 16).map_err(|_| wrong(attribute::WRITE_ID, "no hexadecimal number"))?)),
    };
    Ok(Lease {
        shard_id: attributes.required_text(attribute::LEASE_KEY)?.into(),
        owner: attributes.text(attribute::LEASE_OWNER)?.map(WorkerId::from),
        checkpoint_owner: attributes.text(attribute::CHECKPOINT_OWNER)?.map(WorkerId::from),
        counter: attributes.number(attribute::LEASE_COUNTER)?.ok_or_else(|| wrong(attribute::LEASE_COUNTER, "missing"))?,
        owner_switches_since_checkpoint: attributes.number(attribute::OWNER_SWITCHES)?.unwrap_or(0),
        checkpoint,
        pending_checkpoint: attributes.pending_checkpoint()?,
        parents: attributes.shard_ids(attribute::PARENTS)?,
        children: attributes.shard_ids(attribute::CHILDREN)?,
        hash_range: attributes.hash_range()?,
        initial_timestamp: attributes.timestamp(attribute::INITIAL_TIMESTAMP)?,
        watermark: attributes.timestamp(attribute::WATERMARK)?,
        stream_created: attributes.timestamp(attribute::STREAM_CREATED)?,
        finished_beyond: attributes.finished_beyond(),
        suspect: attributes.suspect()?,
        stopped: attributes.stopped()?,
        trust: attributes.trust(),
        write_id,
    })
}

/// The item of a new lease. Like the Java library's it holds no empty string or set, and always the entity type.
pub(super) fn write(lease: &Lease) -> Item {
    let mut item = Item::new();
    let mut put = |name: &str, value: AttributeValue| {
        item.insert(name.to_owned(), value);
    };
    put(attribute::LEASE_KEY, shard_id(&lease.shard_id));
    put(attribute::ENTITY_TYPE, AttributeValue::S(attribute::ENTITY_TYPE_LEASE.to_owned()));
    put(attribute::LEASE_COUNTER, number(lease.counter));
    put(attribute::OWNER_SWITCHES, number(lease.owner_switches_since_checkpoint));
    put(attribute::CHECKPOINT, AttributeValue::S(lease.checkpoint.stored_text()));
    put(attribute::CHECKPOINT_SUB_SEQUENCE_NUMBER, number(lease.checkpoint.stored_sub_sequence_number()));
    for (name, owner) in [(attribute::LEASE_OWNER, &lease.owner), (attribute::CHECKPOINT_OWNER, &lease.checkpoint_owner)] {
        if let Some(owner) = owner {
            put(name, worker_id(owner));
        }
    }
    for (name, ids) in [(attribute::PARENTS, &lease.parents), (attribute::CHILDREN, &lease.children)] {
        if !ids.is_empty() {
            put(name, shard_ids(ids));
        }
    }
    if let Some(range) = lease.hash_range {
        put(attribute::STARTING_HASH_KEY, AttributeValue::S(range.start.to_string()));
        put(attribute::ENDING_HASH_KEY, AttributeValue::S(range.end.to_string()));
    }
    for (name, time) in [
        (attribute::INITIAL_TIMESTAMP, lease.initial_timestamp),
        (attribute::WATERMARK, lease.watermark),
        (attribute::STREAM_CREATED, lease.stream_created),
    ] {
        if let Some(time) = time {
            put(name, timestamp(time));
        }
    }
    if let Some(note) = &lease.finished_beyond {
        put(attribute::FINISHED_BEYOND, finished_beyond(note));
    }
    if let Some(record) = &lease.suspect {
        put(attribute::SUSPECT, suspect(record));
    }
    if let Some(pending) = &lease.pending_checkpoint {
        let [checkpoint, sub_sequence_number, state] = pending_checkpoint(pending);
        for (name, value) in [
            (attribute::PENDING_CHECKPOINT, checkpoint),
            (attribute::PENDING_CHECKPOINT_SUB_SEQUENCE_NUMBER, sub_sequence_number),
            (attribute::PENDING_CHECKPOINT_STATE, state),
        ] {
            if let Some(value) = value {
                put(name, value);
            }
        }
    }
    if let Some(stop) = &lease.stopped {
        put(attribute::STOPPED, stopped(stop));
    }
    if let Some(note) = &lease.trust {
        put(attribute::TRUST, trust(note));
    }
    if let Some(id) = lease.write_id {
        put(attribute::WRITE_ID, write_id(id));
    }
    item
}

pub(super) fn shard_id(id: &ShardId) -> AttributeValue {
    AttributeValue::S(id.as_str().to_owned())
}

pub(super) fn worker_id(id: &WorkerId) -> AttributeValue {
    AttributeValue::S(id.as_str().to_owned())
}

pub(super) fn shard_ids(ids: &BTreeSet<ShardId>) -> AttributeValue {
    AttributeValue::Ss(ids.iter().map(ToString::to_string).collect())
}

pub(super) fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

pub(super) fn timestamp(time: Timestamp) -> AttributeValue {
    number(time.as_millis())
}

pub(super) fn finished_beyond(note: &FinishedBeyond) -> AttributeValue {
    AttributeValue::B(Blob::new(note.encode()))
}

pub(super) fn suspect(suspect: &Suspect) -> AttributeValue {
    let Suspect { record, begun } = suspect;
    AttributeValue::S(format!("{}/{}/{begun}", record.sequence_number, record.sub_sequence_number))
}

/// A prepared checkpoint's position, its place inside an aggregated record, and the application's
/// state.
pub(super) fn pending_checkpoint(pending: &PendingCheckpoint) -> [Option<AttributeValue>; 3] {
    let PendingCheckpoint { checkpoint, state } = pending;
    [
        Some(AttributeValue::S(checkpoint.stored_text())),
        Some(number(checkpoint.stored_sub_sequence_number())),
        state.as_ref().map(|state| AttributeValue::B(Blob::new(state.to_vec()))),
    ]
}

pub(super) fn stopped(stopped: &Stopped) -> AttributeValue {
    AttributeValue::S(format!("{}/{}", stopped.reason, stopped.since.as_millis()))
}

pub(super) fn trust(trust: &Trust) -> AttributeValue {
    AttributeValue::S(format!("{}/{}", trust.lease_duration.as_millis(), trust.owner))
}

pub(super) fn write_id(id: WriteId) -> AttributeValue {
    AttributeValue::S(id.to_string())
}

/// An item's attributes by type. What is absent is `None` or empty; what has the wrong type is an error that says so.
#[derive(Clone, Copy)]
struct Attributes<'a>(&'a Item);

impl<'a> Attributes<'a> {
    /// The key, for messages.
    fn key(self) -> String {
        self.text(attribute::LEASE_KEY).ok().flatten().unwrap_or("(an item whose key is no text)").to_owned()
    }

    /// Empty text and NULL are nothing: other tools write them where the Java library removes the
    /// attribute.
    fn text(self, name: &str) -> Result<Option<&'a str>, String> {
        match self.0.get(name) {
            None | Some(AttributeValue::Null(_)) => Ok(None),
            Some(AttributeValue::S(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(wrong(name, "no text (S)")),
        }
    }

    fn bytes(self, name: &str) -> Result<Option<Bytes>, String> {
        match self.0.get(name) {
            None | Some(AttributeValue::Null(_)) => Ok(None),
            Some(AttributeValue::B(bytes)) => Ok(Some(Bytes::copy_from_slice(bytes.as_ref())).filter(|bytes| !bytes.is_empty())),
            Some(_) => Err(wrong(name, "no bytes (B)")),
        }
    }

    fn required_text(self, name: &str) -> Result<&'a str, String> {
        self.text(name)?.ok_or_else(|| wrong(name, "missing"))
    }

    fn number(self, name: &str) -> Result<Option<u64>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(AttributeValue::N(number)) => number.parse().map(Some).map_err(|_| wrong(name, "no whole number from 0 to 2^64-1")),
            Some(_) => Err(wrong(name, "no number (N)")),
        }
    }

    fn checkpoint(self, name: &str, sub_name: &str) -> Result<Option<Checkpoint>, String> {
        let sub_sequence_number = self.number(sub_name)?.unwrap_or(0);
        let Some(text) = self.text(name)? else { return Ok(None) };
        Checkpoint::from_stored(text, sub_sequence_number).map(Some).map_err(|error| format!("`{name}`: {error}"))
    }

    fn pending_checkpoint(self) -> Result<Option<PendingCheckpoint>, String> {
        let checkpoint = self.checkpoint(attribute::PENDING_CHECKPOINT, attribute::PENDING_CHECKPOINT_SUB_SEQUENCE_NUMBER)?;
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        Ok(Some(PendingCheckpoint { checkpoint, state: self.bytes(attribute::PENDING_CHECKPOINT_STATE)? }))
    }

    fn stopped(self) -> Result<Option<Stopped>, String> {
        let Some(text) = self.text(attribute::STOPPED)? else { return Ok(None) };
        let parts = text.split_once('/').map(|(reason, since)| (StopReason::from_stored(reason), since.parse()));
        match parts {
            Some((Some(reason), Ok(since))) => Ok(Some(Stopped { reason, since: Timestamp::from_millis(since) })),
            _ => Err(wrong(attribute::STOPPED, "not of the form REASON/MILLISECONDS with a known reason")),
        }
    }

    /// One that can't be read is none: its owner gets the patience that those of other libraries get.
    fn trust(self) -> Option<Trust> {
        let (millis, owner) = self.text(attribute::TRUST).ok()??.split_once('/')?;
        Some(Trust { owner: owner.into(), lease_duration: Duration::from_millis(millis.parse().ok()?) })
    }

    fn timestamp(self, name: &str) -> Result<Option<Timestamp>, String> {
        Ok(self.number(name)?.map(Timestamp::from_millis))
    }

    /// A note that can't be read spares no repetition, and does no other harm.
    fn finished_beyond(self) -> Option<FinishedBeyond> {
        let value = self.0.get(attribute::FINISHED_BEYOND)?;
        let note = value.as_b().ok().and_then(|bytes| FinishedBeyond::decode(bytes.as_ref()).ok());
        if note.is_none() {
            tracing::warn!(
                lease = self.key(),
                attribute = attribute::FINISHED_BEYOND,
                "unreadable; finished records will be delivered again"
            );
        }
        note
    }

    fn suspect(self) -> Result<Option<Suspect>, String> {
        let Some(text) = self.text(attribute::SUSPECT)? else { return Ok(None) };
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().unwrap_or_default();
        let (number, sub_sequence_number, begun) = (part().parse(), part().parse(), part().parse());
        match (number, sub_sequence_number, begun) {
            (Ok(number), Ok(sub), Ok(begun)) => Ok(Some(Suspect { record: ExtendedSequenceNumber::new(number, sub), begun })),
            _ => Err(wrong(attribute::SUSPECT, "not of the form NUMBER/SUB-NUMBER/COUNT")),
        }
    }

    fn shard_ids(self, name: &str) -> Result<BTreeSet<ShardId>, String> {
        match self.0.get(name) {
            None => Ok(BTreeSet::new()),
            Some(AttributeValue::Ss(ids)) => Ok(ids.iter().map(|id| id.as_str().into()).collect()),
            Some(_) => Err(wrong(name, "no set of text (SS)")),
        }
    }

    /// The hash-key range; like the Java library, none unless both ends are there.
    fn hash_range(self) -> Result<Option<HashKeyRange>, String> {
        let end = |name| {
            let parse = |text: &str| text.parse::<u128>().map_err(|_| wrong(name, "no whole number from 0 to 2^128-1"));
            self.text(name)?.map(parse).transpose()
        };
        let (start, end) = (end(attribute::STARTING_HASH_KEY)?, end(attribute::ENDING_HASH_KEY)?);
        match (start, end) {
            (Some(start), Some(end)) if start <= end => Ok(Some(HashKeyRange { start, end })),
            (Some(_), Some(_)) => Err(format!("`{}` is above `{}`", attribute::STARTING_HASH_KEY, attribute::ENDING_HASH_KEY)),
            _ => Ok(None),
        }
    }
}

fn wrong(name: &str, how: &str) -> String {
    format!("`{name}` is {how}")
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::ExtendedSequenceNumber;

    use super::*;

    fn s(text: &str) -> AttributeValue {
        AttributeValue::S(text.to_owned())
    }

    fn n(text: &str) -> AttributeValue {
        AttributeValue::N(text.to_owned())
    }

    fn ss(texts: &[&str]) -> AttributeValue {
        AttributeValue::Ss(texts.iter().map(ToString::to_string).collect())
    }

    fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
        attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The least that is a lease.
    fn least() -> Item {
        item([("leaseKey", s("shardId-000000000000")), ("leaseCounter", n("0")), ("checkpoint", s("LATEST"))])
    }

    fn full() -> Lease {
        Lease {
            owner: Some("b".into()),
            checkpoint_owner: Some("a".into()),
            counter: 12,
            owner_switches_since_checkpoint: 3,
            parents: BTreeSet::from(["shardId-000000000001".into(), "shardId-000000000002".into()]),
            children: BTreeSet::from(["shardId-000000000009".into()]),
            hash_range: Some(HashKeyRange { start: 0, end: u128::MAX }),
            initial_timestamp: Some(Timestamp::from_millis(1)),
            watermark: Some(Timestamp::from_millis(2)),
            stream_created: Some(Timestamp::from_millis(3)),
            finished_beyond: Some(FinishedBeyond {
                base: None,
                until: ExtendedSequenceNumber::new(3.into(), 1),
                open: vec![ExtendedSequenceNumber::new(2.into(), 0)],
            }),
            suspect: Some(Suspect { record: ExtendedSequenceNumber::new(9.into(), 2), begun: 3 }),
            pending_checkpoint: Some(PendingCheckpoint {
                checkpoint: Checkpoint::At(ExtendedSequenceNumber::new(
                    "49590338271490256608559692538361571095921575989136588899".parse().unwrap(),
                    4,
                )),
                state: Some(Bytes::from_static(&[0, 255])),
            }),
            stopped: Some(Stopped { reason: StopReason::SafetyValve, since: Timestamp::from_millis(5) }),
            trust: Some(Trust { owner: "a/1".into(), lease_duration: Duration::from_secs(10) }),
            write_id: Some(WriteId(0xab)),
            ..Lease::new(
                "shardId-000000000003".into(),
                Checkpoint::At(ExtendedSequenceNumber::new("49590338271490256608559692538361571095921575989136588898".parse().unwrap(), 7)),
            )
        }
    }

    #[test]
    fn a_full_lease_has_the_java_librarys_names_and_types() {
        let expected = item([
            ("leaseKey", s("shardId-000000000003")),
            ("entityType", s("LEASE")),
            ("leaseOwner", s("b")),
            ("checkpointOwner", s("a")),
            ("leaseCounter", n("12")),
            ("ownerSwitchesSinceCheckpoint", n("3")),
            ("checkpoint", s("49590338271490256608559692538361571095921575989136588898")),
            ("checkpointSubSequenceNumber", n("7")),
            ("parentShardId", ss(&["shardId-000000000001", "shardId-000000000002"])),
            ("childShardIds", ss(&["shardId-000000000009"])),
            ("startingHashKey", s("0")),
            ("endingHashKey", s("340282366920938463463374607431768211455")),
            ("rk_initTs", n("1")),
            ("rk_ckptTs", n("2")),
            ("rk_done", AttributeValue::B(Blob::new([1, 0, 2, 0, 1, 1]))),
            ("rk_suspect", s("9/2/3")),
            ("pendingCheckpoint", s("49590338271490256608559692538361571095921575989136588899")),
            ("pendingCheckpointSubSequenceNumber", n("4")),
            ("pendingCheckpointState", AttributeValue::B(Blob::new([0, 255]))),
            ("rk_stop", s("safety-valve/5")),
            ("rk_streamTs", n("3")),
            ("rk_term", s("10000/a/1")),
            ("rk_wid", s("00000000000000ab")),
        ]);
        assert_eq!(write(&full()), expected);
        assert_eq!(read(&expected), ReadItem::Lease(Box::new(full())));
    }

    #[test]
    fn a_new_lease_holds_nothing_empty() {
        let lease = Lease::new("shardId-000000000000".into(), Checkpoint::TrimHorizon);
        let expected = item([
            ("leaseKey", s("shardId-000000000000")),
            ("entityType", s("LEASE")),
            ("leaseCounter", n("0")),
            ("ownerSwitchesSinceCheckpoint", n("0")),
            ("checkpoint", s("TRIM_HORIZON")),
            ("checkpointSubSequenceNumber", n("0")),
        ]);
        assert_eq!(write(&lease), expected);
        assert_eq!(read(&expected), ReadItem::Lease(Box::new(lease)));
    }

    #[test]
    fn an_old_item_lacks_much_and_is_a_lease_still() {
        let lease = Lease::new("shardId-000000000000".into(), Checkpoint::Latest);
        assert_eq!(read(&least()), ReadItem::Lease(Box::new(lease.clone())));
        // one end of a range alone says nothing, and attributes of others are not looked at
        let mut more = least();
        more.extend(item([("startingHashKey", s("5")), ("throughputKBps", n("1.5")), ("theirs", AttributeValue::Bool(true))]));
        assert_eq!(read(&more), ReadItem::Lease(Box::new(lease)));
    }

    #[test]
    fn text_that_is_empty_or_null_is_not_there() {
        let lease = Lease::new("shardId-000000000000".into(), Checkpoint::Latest);
        for name in ["leaseOwner", "checkpointOwner", "entityType", "pendingCheckpoint", "endingHashKey", "rk_stop", "rk_wid"] {
            for nothing in [s(""), AttributeValue::Null(true)] {
                let mut item = least();
                item.insert(name.to_owned(), nothing);
                assert_eq!(read(&item), ReadItem::Lease(Box::new(lease.clone())), "{name}");
            }
        }
    }

    #[test]
    fn a_prepared_checkpoint_of_the_java_library_is_read() {
        let at = |sub| Checkpoint::At(ExtendedSequenceNumber::new(495u128.into(), sub));
        let state = AttributeValue::B(Blob::new([1, 2]));
        for (attributes, expected) in [
            (item([("pendingCheckpoint", s("495"))]), Some((at(0), None))),
            (item([("pendingCheckpoint", s("495")), ("pendingCheckpointSubSequenceNumber", n("3"))]), Some((at(3), None))),
            (item([("pendingCheckpoint", s("495")), ("pendingCheckpointState", state.clone())]), Some((at(0), Some(vec![1, 2])))),
            (item([("pendingCheckpoint", s("SHARD_END"))]), Some((Checkpoint::ShardEnd, None))),
            // without a position the rest means nothing
            (item([("pendingCheckpointSubSequenceNumber", n("3")), ("pendingCheckpointState", state)]), None),
        ] {
            let mut whole = least();
            whole.extend(attributes);
            let ReadItem::Lease(lease) = read(&whole) else { panic!("{whole:?}") };
            let pending = |(checkpoint, state): (_, Option<Vec<u8>>)| PendingCheckpoint { checkpoint, state: state.map(Bytes::from) };
            assert_eq!(lease.pending_checkpoint, expected.map(pending), "{whole:?}");
        }
        let mut wrong = least();
        wrong.extend(item([("pendingCheckpoint", s("495")), ("pendingCheckpointState", n("0"))]));
        let ReadItem::Unreadable(unreadable) = read(&wrong) else { panic!("{wrong:?}") };
        assert_eq!(unreadable.reason, "`pendingCheckpointState` is no bytes (B)");
    }

    #[test]
    fn what_is_no_lease_is_skipped() {
        for kind in ["LEADER", "WORKER_METRIC_STATS", "STREAM", "CLIENT_VERSION_MIGRATION", "TABLE_MIGRATION", "OF_THE_FUTURE"] {
            assert_eq!(read(&item([("leaseKey", s("Leader")), ("entityType", s(kind))])), ReadItem::Foreign, "{kind}");
        }
    }

    #[test]
    fn a_lease_that_cannot_be_read_says_why() {
        for (name, value, reason) in [
            ("leaseCounter", None, "`leaseCounter` is missing"),
            ("leaseCounter", Some(s("7")), "`leaseCounter` is no number (N)"),
            ("leaseCounter", Some(n("-1")), "`leaseCounter` is no whole number from 0 to 2^64-1"),
            ("leaseCounter", Some(n("1.5")), "`leaseCounter` is no whole number from 0 to 2^64-1"),
            ("rk_suspect", Some(s("9/2")), "`rk_suspect` is not of the form NUMBER/SUB-NUMBER/COUNT"),
            ("ownerSwitchesSinceCheckpoint", Some(s("x")), "`ownerSwitchesSinceCheckpoint` is no number (N)"),
            ("checkpoint", None, "`checkpoint` is missing"),
            (
                "checkpoint",
                Some(s("yesterday")),
                "`checkpoint`: no checkpoint: expected TRIM_HORIZON, LATEST, AT_TIMESTAMP, SHARD_END or a sequence number",
            ),
            ("leaseOwner", Some(n("1")), "`leaseOwner` is no text (S)"),
            ("parentShardId", Some(s("shardId-000000000001")), "`parentShardId` is no set of text (SS)"),
            ("startingHashKey", Some(s("-1")), "`startingHashKey` is no whole number from 0 to 2^128-1"),
            ("rk_wid", Some(s("not hex")), "`rk_wid` is no hexadecimal number"),
            ("leaseCounter", Some(AttributeValue::Null(true)), "`leaseCounter` is no number (N)"),
            ("checkpoint", Some(s("")), "`checkpoint` is missing"),
            ("pendingCheckpoint", Some(AttributeValue::Bool(true)), "`pendingCheckpoint` is no text (S)"),
            ("rk_stop", Some(s("safety-valve")), "`rk_stop` is not of the form REASON/MILLISECONDS with a known reason"),
            ("rk_stop", Some(s("whim/5")), "`rk_stop` is not of the form REASON/MILLISECONDS with a known reason"),
            ("rk_stop", Some(s("operator/soon")), "`rk_stop` is not of the form REASON/MILLISECONDS with a known reason"),
            ("entityType", Some(n("1")), "`entityType` is no text (S)"),
        ] {
            let mut item = least();
            match value {
                Some(value) => item.insert(name.to_owned(), value),
                None => item.remove(name),
            };
            let unreadable = UnreadableLease { key: "shardId-000000000000".to_owned(), reason: reason.to_owned() };
            assert_eq!(read(&item), ReadItem::Unreadable(unreadable));
        }
        let mut reversed = least();
        reversed.extend(item([("startingHashKey", s("6")), ("endingHashKey", s("5"))]));
        assert!(matches!(read(&reversed), ReadItem::Unreadable(unreadable) if unreadable.reason.contains("is above")));
    }

    #[test]
    fn a_multi_stream_lease_is_told_as_such() {
        let mut item = least();
        item.insert("leaseKey".to_owned(), s("123456789012:orders:1700000000:shardId-000000000000"));
        item.insert("streamName".to_owned(), s("123456789012:orders:1700000000"));
        let ReadItem::Unreadable(unreadable) = read(&item) else { panic!("{item:?}") };
        assert_eq!(unreadable.key, "123456789012:orders:1700000000:shardId-000000000000");
        assert!(unreadable.reason.contains("multi-stream"), "{}", unreadable.reason);
    }
}
