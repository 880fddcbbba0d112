//! Conditional writes as DynamoDB expressions: pure functions of the write.
//!
//! Only the attributes named here are touched; whatever else the item holds stays.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::NoOwner;
use super::{attribute, item};
use crate::lease::{Lease, WorkerId};
use crate::write::{Change, LeaseWrite, Switches};

/// A condition, an update (empty for a deletion), and what their placeholders stand for.
///
/// Attribute `x` is `#x`; the value that `x` must have is `:is_x`, the one that it gets is `:x`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expression {
    pub(super) condition: String,
    pub(super) update: String,
    pub(super) names: BTreeMap<String, String>,
    pub(super) values: BTreeMap<String, AttributeValue>,
}

/// The expression of a conditional write. See [`LeaseWrite::apply`] for what it means. `no_owner` is how
/// the item says that there is none.
pub(super) fn of_write(write: &LeaseWrite, no_owner: &NoOwner) -> Expression {
    let mut parts = Parts::default();

    // Without it, a write that expects no owner and any counter would make an item of a row that is gone.
    let key = parts.name(attribute::LEASE_KEY);
    parts.conditions.push(format!("attribute_exists({key})"));
    if let Some(counter) = write.expected.counter {
        parts.expect(attribute::LEASE_COUNTER, Some(item::number(counter)));
    }
    parts.expect_owner(attribute::LEASE_OWNER, write.expected.owner.as_ref(), no_owner.owner.as_ref());
    parts.expect_owner(attribute::CHECKPOINT_OWNER, write.expected.checkpoint_owner.as_ref(), no_owner.checkpoint_owner.as_ref());
    if let Some(stopped) = write.expected.stopped {
        parts.expect(attribute::STOPPED, Some(item::stopped(&stopped)));
    }

    parts.set_or_remove(attribute::LEASE_OWNER, write.owner.as_ref().map(item::worker_id));
    parts.set_or_remove(attribute::CHECKPOINT_OWNER, write.checkpoint_owner.as_ref().map(item::worker_id));
    if let Some(id) = write.write_id {
        parts.increment(attribute::LEASE_COUNTER);
        parts.set(attribute::WRITE_ID, item::write_id(id));
    }
    match write.switches {
        Switches::Keep => {}
        Switches::Increment => parts.increment(attribute::OWNER_SWITCHES),
        Switches::Set(count) => parts.set(attribute::OWNER_SWITCHES, item::number(count)),
    }
    if let Some(checkpoint) = &write.checkpoint {
        parts.set(attribute::CHECKPOINT, AttributeValue::S(checkpoint.stored_text()));
        parts.set(attribute::CHECKPOINT_SUB_SEQUENCE_NUMBER, item::number(checkpoint.stored_sub_sequence_number()));
    }
    let [pending, sub_sequence_number, state] = match &write.pending_checkpoint {
        Change::Keep => [None, None, None],
        Change::Remove => [Some(None), Some(None), Some(None)],
        Change::Set(pending) => item::pending_checkpoint(pending).map(Some),
    };
    for (name, change) in [
        (attribute::PENDING_CHECKPOINT, pending),
        (attribute::PENDING_CHECKPOINT_SUB_SEQUENCE_NUMBER, sub_sequence_number),
        (attribute::PENDING_CHECKPOINT_STATE, state),
    ] {
        if let Some(value) = change {
            parts.set_or_remove(name, value);
        }
    }
    if !write.children.is_empty() {
        parts.set(attribute::CHILDREN, item::shard_ids(&write.children));
    }
    parts.change(attribute::WATERMARK, &write.watermark, |time| item::timestamp(*time));
    parts.change(attribute::FINISHED_BEYOND, &write.finished_beyond, item::finished_beyond);
    parts.change(attribute::SUSPECT, &write.suspect, item::suspect);
    parts.change(attribute::STOPPED, &write.stopped, item::stopped);
    parts.change(attribute::TRUST, &write.trust, item::trust);
    parts.change(attribute::INITIAL_TIMESTAMP, &write.initial_timestamp, |time| item::timestamp(*time));
    if let Some(time) = write.initial_timestamp_if_absent {
        parts.set_if_absent(attribute::INITIAL_TIMESTAMP, item::timestamp(time));
    }
    if let Some(time) = write.stream_created_if_absent {
        parts.set_if_absent(attribute::STREAM_CREATED, item::timestamp(time));
    }
    parts.expression()
}

/// The expression of a deletion: the row is gone already, or counter, owner and checkpoint are as seen.
pub(super) fn of_deletion(seen: &Lease, no_owner: &NoOwner) -> Expression {
    let mut parts = Parts::default();
    parts.expect(attribute::LEASE_COUNTER, Some(item::number(seen.counter)));
    parts.expect_owner(attribute::LEASE_OWNER, seen.owner.as_ref(), no_owner.owner.as_ref());
    parts.expect(attribute::CHECKPOINT, Some(AttributeValue::S(seen.checkpoint.stored_text())));
    if let Some(record) = seen.checkpoint.record() {
        let sub_sequence_number = record.sub_sequence_number;
        parts.expect(attribute::CHECKPOINT_SUB_SEQUENCE_NUMBER, Some(item::number(sub_sequence_number)));
        if sub_sequence_number == 0 {
            // An absent one is read as 0.
            let absent = format!("attribute_not_exists({})", parts.name(attribute::CHECKPOINT_SUB_SEQUENCE_NUMBER));
            let is_zero = parts.conditions.pop().expect("the condition was pushed just above");
            parts.conditions.push(format!("({is_zero} OR {absent})"));
        }
    }
    let key = parts.name(attribute::LEASE_KEY);
    let mut expression = parts.expression();
    expression.condition = format!("attribute_not_exists({key}) OR ({})", expression.condition);
    expression
}

/// An expression in the making.
#[derive(Default)]
struct Parts {
    conditions: Vec<String>,
    set: Vec<String>,
    remove: Vec<String>,
    add: Vec<String>,
    names: BTreeMap<String, String>,
    values: BTreeMap<String, AttributeValue>,
}

impl Parts {
    fn name(&mut self, attribute: &str) -> String {
        let placeholder = format!("#{attribute}");
        self.names.insert(placeholder.clone(), attribute.to_owned());
        placeholder
    }

    fn value(&mut self, placeholder: String, value: AttributeValue) -> String {
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// The attribute must name this worker; for none it must be absent, or, if given, this value.
    fn expect_owner(&mut self, attribute: &str, owner: Option<&WorkerId>, none: Option<&AttributeValue>) {
        self.expect(attribute, owner.map(item::worker_id).or_else(|| none.cloned()));
    }

    /// The attribute must have this value, or be absent.
    fn expect(&mut self, attribute: &str, value: Option<AttributeValue>) {
        let name = self.name(attribute);
        let condition = match value {
            Some(value) => format!("{name} = {}", self.value(format!(":is_{attribute}"), value)),
            None => format!("attribute_not_exists({name})"),
        };
        self.conditions.push(condition);
    }

    fn set(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(format!(":{attribute}"), value));
        self.set.push(format!("{name} = {value}"));
    }

    fn set_or_remove(&mut self, attribute: &str, value: Option<AttributeValue>) {
        if let Some(value) = value {
            self.set(attribute, value);
        } else {
            let name = self.name(attribute);
            self.remove.push(name);
        }
    }

    fn change<T>(&mut self, attribute: &str, change: &Change<T>, value: impl Fn(&T) -> AttributeValue) {
        match change {
            Change::Keep => {}
            Change::Set(new) => self.set(attribute, value(new)),
            Change::Remove => self.set_or_remove(attribute, None),
        }
    }

    fn set_if_absent(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(format!(":{attribute}"), value));
        self.set.push(format!("{name} = if_not_exists({name}, {value})"));
    }

    /// One more; an absent attribute counts as 0.
    fn increment(&mut self, attribute: &str) {
        let (name, one) = (self.name(attribute), self.value(":one".to_owned(), item::number(1)));
        self.add.push(format!("{name} {one}"));
    }

    fn expression(self) -> Expression {
        let clauses = [("SET", self.set), ("REMOVE", self.remove), ("ADD", self.add)];
        let clauses = clauses.into_iter().filter(|(_, actions)| !actions.is_empty());
        let update: Vec<_> = clauses.map(|(clause, actions)| format!("{clause} {}", actions.join(", "))).collect();
        Expression { condition: self.conditions.join(" AND "), update: update.join(" "), names: self.names, values: self.values }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, PendingCheckpoint, Timestamp};

    use super::*;
    use crate::lease::{StopReason, Stopped};
    use crate::write::{NewStart, WriteId};

    fn lease(owner: Option<&str>, checkpoint_owner: Option<&str>) -> Lease {
        let mut lease = Lease::new("shardId-000000000000".into(), Checkpoint::TrimHorizon);
        (lease.owner, lease.checkpoint_owner) = (owner.map(WorkerId::from), checkpoint_owner.map(WorkerId::from));
        lease.counter = 7;
        lease
    }

    /// The expression with the placeholders' meaning put in, as one would write it by hand.
    fn spelled_out(expression: &Expression) -> (String, String) {
        // Each placeholder is in use: DynamoDB refuses idle ones.
        let text = format!("{} | {}", expression.condition, expression.update);
        for placeholder in expression.names.keys().chain(expression.values.keys()) {
            assert!(text.split(|c: char| !(c.is_alphanumeric() || "#:_".contains(c))).any(|word| word == placeholder), "{placeholder}");
        }
        let spelled = text.split_inclusive([' ', '(', ')', ',']).map(|word| {
            let bare = word.trim_end_matches([' ', '(', ')', ',']);
            let meaning = match expression.values.get(bare) {
                Some(AttributeValue::N(number)) => number.clone(),
                Some(AttributeValue::S(text)) => format!("'{text}'"),
                Some(AttributeValue::Ss(texts)) => format!("{texts:?}"),
                Some(AttributeValue::B(bytes)) => format!("{:?}", bytes.as_ref()),
                Some(AttributeValue::Null(_)) => "NULL".to_owned(),
                Some(other) => panic!("{other:?}"),
                None => expression.names.get(bare).cloned().unwrap_or_else(|| bare.to_owned()),
            };
            format!("{meaning}{}", &word[bare.len()..])
        });
        let spelled: String = spelled.collect();
        let (condition, update) = spelled.split_once(" | ").unwrap();
        (condition.to_owned(), update.to_owned())
    }

    #[test]
    fn every_write_is_an_expression() {
        let (id, b) = (WriteId(0xab), WorkerId::from("b"));
        let at = Checkpoint::At(ExtendedSequenceNumber::new(495u128.into(), 2));
        let pending = |state| PendingCheckpoint { checkpoint: at, state };
        let stop = Stopped { reason: StopReason::SafetyValve, since: Timestamp::from_millis(14) };
        let owned = lease(Some("a"), None);
        let handed = lease(Some("b"), Some("a"));
        let mut noted = LeaseWrite::checkpoint(&owned, at, id);
        noted.watermark = Change::Set(Timestamp::from_millis(11));
        noted.initial_timestamp_if_absent = Some(Timestamp::from_millis(12));
        noted.stream_created_if_absent = Some(Timestamp::from_millis(13));

        let row = "attribute_exists(leaseKey) AND leaseCounter = 7";
        let owned_row = format!("{row} AND leaseOwner = 'a' AND attribute_not_exists(checkpointOwner)");
        let handed_row = format!("{row} AND leaseOwner = 'b' AND checkpointOwner = 'a'");
        let wid = "rk_wid = '00000000000000ab'";
        let no_pending = "pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState";
        let cases = [
            (
                "take a free one",
                LeaseWrite::take(&lease(None, None), &b, id),
                format!("{row} AND attribute_not_exists(leaseOwner) AND attribute_not_exists(checkpointOwner)"),
                format!("SET leaseOwner = 'b', {wid} REMOVE checkpointOwner ADD leaseCounter 1, ownerSwitchesSinceCheckpoint 1"),
            ),
            (
                "take one's own",
                LeaseWrite::take(&lease(Some("b"), None), &b, id),
                format!("{row} AND leaseOwner = 'b' AND attribute_not_exists(checkpointOwner)"),
                format!("SET leaseOwner = 'b', {wid} REMOVE checkpointOwner ADD leaseCounter 1"),
            ),
            (
                "renew",
                LeaseWrite::renew(&owned, id),
                owned_row.clone(),
                format!("SET leaseOwner = 'a', {wid} REMOVE checkpointOwner ADD leaseCounter 1"),
            ),
            (
                "renew while asked to hand over",
                LeaseWrite::renew(&handed, id),
                handed_row.clone(),
                format!("SET leaseOwner = 'b', checkpointOwner = 'a', {wid} ADD leaseCounter 1"),
            ),
            (
                "checkpoint",
                noted,
                owned_row.clone(),
                format!(
                    "SET leaseOwner = 'a', {wid}, ownerSwitchesSinceCheckpoint = 0, checkpoint = '495', checkpointSubSequenceNumber = 2, \
                     rk_ckptTs = 11, rk_initTs = if_not_exists(rk_initTs, 12), rk_streamTs = if_not_exists(rk_streamTs, 13) \
                     REMOVE checkpointOwner, {no_pending} ADD leaseCounter 1"
                ),
            ),
            (
                "hand over",
                LeaseWrite::release(&handed, None, BTreeSet::new(), id),
                handed_row.clone(),
                format!("SET leaseOwner = 'b', {wid} REMOVE checkpointOwner ADD leaseCounter 1, ownerSwitchesSinceCheckpoint 1"),
            ),
            (
                "end",
                LeaseWrite::release(&owned, Some(Checkpoint::ShardEnd), BTreeSet::from(["c1".into(), "c2".into()]), id),
                owned_row,
                format!(
                    "SET {wid}, ownerSwitchesSinceCheckpoint = 0, checkpoint = 'SHARD_END', checkpointSubSequenceNumber = 0, \
                     childShardIds = [\"c1\", \"c2\"] REMOVE leaseOwner, checkpointOwner, {no_pending} ADD leaseCounter 1"
                ),
            ),
            (
                "begin elsewhere",
                LeaseWrite::seek(
                    &Lease { watermark: Some(Timestamp::from_millis(11)), ..handed.clone() },
                    Some(&"seek".into()),
                    NewStart::at_timestamp(Timestamp::from_millis(12)),
                    BTreeSet::new(),
                    id,
                ),
                handed_row.clone(),
                format!(
                    "SET leaseOwner = 'seek', {wid}, ownerSwitchesSinceCheckpoint = 0, checkpoint = 'AT_TIMESTAMP', \
                     checkpointSubSequenceNumber = 0, rk_term = '13334/seek', rk_initTs = 12 REMOVE checkpointOwner, {no_pending}, \
                     rk_ckptTs ADD leaseCounter 1"
                ),
            ),
            (
                "ask for a handoff",
                LeaseWrite::request_handoff(&owned, &b).unwrap(),
                "attribute_exists(leaseKey) AND leaseOwner = 'a' AND attribute_not_exists(checkpointOwner)".to_owned(),
                "SET leaseOwner = 'b', checkpointOwner = 'a'".to_owned(),
            ),
            (
                "prepare a checkpoint",
                LeaseWrite::prepare(&handed, pending(Some(Bytes::from_static(&[7]))), id),
                handed_row.clone(),
                format!(
                    "SET leaseOwner = 'b', checkpointOwner = 'a', {wid}, pendingCheckpoint = '495', \
                     pendingCheckpointSubSequenceNumber = 2, pendingCheckpointState = [7] ADD leaseCounter 1"
                ),
            ),
            (
                "prepare a checkpoint without a state, in place of one with",
                LeaseWrite::prepare(&handed, pending(None), id),
                handed_row.clone(),
                format!(
                    "SET leaseOwner = 'b', checkpointOwner = 'a', {wid}, pendingCheckpoint = '495', \
                     pendingCheckpointSubSequenceNumber = 2 REMOVE pendingCheckpointState ADD leaseCounter 1"
                ),
            ),
            (
                "checkpoint below a pending one",
                LeaseWrite::checkpoint(
                    &Lease { pending_checkpoint: Some(pending(None)), ..handed.clone() },
                    Checkpoint::At(ExtendedSequenceNumber::new(495u128.into(), 1)),
                    id,
                ),
                handed_row.clone(),
                format!(
                    "SET leaseOwner = 'b', checkpointOwner = 'a', {wid}, ownerSwitchesSinceCheckpoint = 0, checkpoint = '495', \
                     checkpointSubSequenceNumber = 1 ADD leaseCounter 1"
                ),
            ),
            (
                "stop",
                LeaseWrite::set_stopped(&handed, Some(stop), id),
                handed_row.clone(),
                format!("SET leaseOwner = 'b', checkpointOwner = 'a', {wid}, rk_stop = 'safety-valve/14' ADD leaseCounter 1"),
            ),
            (
                "resume",
                LeaseWrite::set_stopped(&handed, None, id),
                handed_row.clone(),
                format!("SET leaseOwner = 'b', checkpointOwner = 'a', {wid} REMOVE rk_stop ADD leaseCounter 1"),
            ),
            (
                "resume from outside",
                LeaseWrite::resume(&Lease { stopped: Some(stop), ..handed.clone() }).unwrap(),
                "attribute_exists(leaseKey) AND leaseOwner = 'b' AND checkpointOwner = 'a' AND rk_stop = 'safety-valve/14'".to_owned(),
                "SET leaseOwner = 'b', checkpointOwner = 'a' REMOVE rk_stop".to_owned(),
            ),
        ];
        for (name, write, condition, update) in cases {
            assert_eq!(spelled_out(&of_write(&write, &NoOwner::default())), (condition, update), "{name}");
        }
    }

    #[test]
    fn a_deletion_expects_the_row_as_seen_or_gone() {
        let at = |sub| Checkpoint::At(ExtendedSequenceNumber::new(495u128.into(), sub));
        let row = "leaseCounter = 7 AND leaseOwner = 'a' AND checkpoint =";
        for (checkpoint, condition) in [
            (Checkpoint::ShardEnd, format!("{row} 'SHARD_END'")),
            (at(3), format!("{row} '495' AND checkpointSubSequenceNumber = 3")),
            (at(0), format!("{row} '495' AND (checkpointSubSequenceNumber = 0 OR attribute_not_exists(checkpointSubSequenceNumber))")),
        ] {
            let seen = Lease { checkpoint, ..lease(Some("a"), None) };
            let expected = (format!("attribute_not_exists(leaseKey) OR ({condition})"), String::new());
            assert_eq!(spelled_out(&of_deletion(&seen, &NoOwner::default())), expected, "{checkpoint}");
        }
        let (condition, _) = spelled_out(&of_deletion(&lease(None, None), &NoOwner::default()));
        assert!(condition.contains("attribute_not_exists(leaseOwner)"), "{condition}");
    }

    #[test]
    fn an_odd_way_to_say_that_there_is_no_owner_is_expected_as_it_stands() {
        let odd = NoOwner { owner: Some(AttributeValue::S(String::new())), checkpoint_owner: Some(AttributeValue::Null(true)) };
        let seen = lease(None, None);
        let (condition, _) = spelled_out(&of_write(&LeaseWrite::take(&seen, &"b".into(), WriteId(1)), &odd));
        assert_eq!(condition, "attribute_exists(leaseKey) AND leaseCounter = 7 AND leaseOwner = '' AND checkpointOwner = NULL");
        let (condition, _) = spelled_out(&of_deletion(&seen, &odd));
        assert!(condition.contains("leaseOwner = ''"), "{condition}");
        // Where an owner is expected, nothing else will do.
        let owned = lease(Some("a"), Some("b"));
        let (condition, _) = spelled_out(&of_write(&LeaseWrite::renew(&owned, WriteId(1)), &odd));
        assert_eq!(condition, "attribute_exists(leaseKey) AND leaseCounter = 7 AND leaseOwner = 'a' AND checkpointOwner = 'b'");
    }
}
