//! Each rule by which a payload is judged.

use bytes::Bytes;
use kcl_aggregation::{BrokenAggregate, Disaggregated, LONGEST_TOLD_KEY, Malformed, PartitionKey, Rules, Unparsable, disaggregate};

use crate::wire::{bytes, explicit_hash_key, number, open, partition_key, plain_record, record, seal};

fn error(message: &[u8]) -> BrokenAggregate {
    open(message).expect_err("broken")
}

fn datas(message: &[u8]) -> Vec<Bytes> {
    open(message).expect("whole").sub_records().map(|sub_record| sub_record.data).collect()
}

#[test]
fn ordinary_records_are_none_of_ours() {
    let sealed = seal(&[partition_key("k"), plain_record(0, None, b"x")].concat());
    let with = |at: usize| {
        let mut payload = sealed.to_vec();
        payload[at] ^= 0x01;
        Bytes::from(payload)
    };
    let table = [
        ("empty", Bytes::new()),
        ("a part of the magic number", sealed.slice(..3)),
        ("the magic number alone", sealed.slice(..4)),
        ("no message", seal(b"")),
        ("another magic number", with(0)),
        ("a message that was changed", with(6)),
        ("a digest that was changed", with(sealed.len() - 1)),
        ("cut off", sealed.slice(..sealed.len() - 1)),
        ("something after the digest", [&sealed[..], b"\0"].concat().into()),
    ];
    for (name, payload) in table {
        let outcome = disaggregate(&payload, None, &Rules::default());
        assert!(matches!(outcome, Disaggregated::NotAggregated), "{name}: {outcome:?}");
    }
}

#[test]
fn each_fault_is_named() {
    let key = partition_key("k");
    let good = plain_record(0, None, b"x");
    let table = [
        (
            vec![],
            [&key[..], &record([number(1, 0), number(2, 0), bytes(3, b"x")])].concat(),
            BrokenAggregate::ExplicitHashKeyIndex { sub_record: 0, index: 0, keys: 0 },
        ),
        (key.clone(), [&good[..], &plain_record(1, None, b"y"), &plain_record(9, None, b"z").repeat(2)].concat(), {
            BrokenAggregate::PartitionKeyIndex { sub_record: 2, index: 9, keys: 1 }
        }),
        (key.clone(), plain_record(1 << 32, None, b""), BrokenAggregate::PartitionKeyIndex { sub_record: 0, index: 1 << 32, keys: 1 }),
        (key.clone(), plain_record(u64::MAX, None, b""), BrokenAggregate::PartitionKeyIndex { sub_record: 0, index: u64::MAX, keys: 1 }),
        (
            [&key[..], &explicit_hash_key("7")].concat(),
            [&good[..], &plain_record(0, Some(1), b"")].concat(),
            BrokenAggregate::ExplicitHashKeyIndex { sub_record: 1, index: 1, keys: 1 },
        ),
        ([&key[..], &explicit_hash_key("")].concat(), good.clone(), BrokenAggregate::ExplicitHashKey { key: 0 }),
        (
            [&key[..], &explicit_hash_key("0"), &explicit_hash_key("340282366920938463463374607431768211456")].concat(),
            good.clone(),
            BrokenAggregate::ExplicitHashKey { key: 1 },
        ),
        (key.clone(), record([number(1, 0)]), BrokenAggregate::NoData { sub_record: 0 }),
        (key.clone(), [&good[..], &record([bytes(3, b"x")])].concat(), BrokenAggregate::NoPartitionKeyIndex { sub_record: 1 }),
        (key.clone(), record([]), BrokenAggregate::NoPartitionKeyIndex { sub_record: 0 }),
        (key.clone(), vec![], BrokenAggregate::NoSubRecords),
        (vec![], bytes(9, b"a later version's"), BrokenAggregate::NoSubRecords),
    ];
    for (tables, records, expected) in table {
        assert_eq!(error(&[tables, records].concat()), expected);
    }
}

#[test]
fn a_message_that_is_no_protobuf_is_broken_where_it_stops_to_be() {
    let (key, good) = (partition_key("k"), plain_record(0, None, b"x"));
    let table = [
        ("a cut off record", [&key[..], &good[..good.len() - 1]].concat(), Malformed::Truncated, 3),
        ("a number for a key", [&number(1, 7)[..], &good].concat(), Malformed::WireType, 0),
        ("a number for an explicit hash key", [&key[..], &number(2, 7)].concat(), Malformed::WireType, 3),
        ("a number for a record", [&key[..], &number(3, 7)].concat(), Malformed::WireType, 3),
        ("bytes for an index", [&key[..], &record([bytes(1, b"0"), bytes(3, b"x")])].concat(), Malformed::WireType, 5),
        ("bytes for an explicit index", [&key[..], &record([number(1, 0), bytes(2, b"0")])].concat(), Malformed::WireType, 7),
        ("a number for data", [&key[..], &record([number(1, 0), number(3, 0)])].concat(), Malformed::WireType, 7),
        ("data longer than its record", [&key[..], &record([number(1, 0), vec![0x1a, 9, b'x']])].concat(), Malformed::Truncated, 7),
        ("garbage", vec![0xff; 5], Malformed::Key, 0),
    ];
    for (name, message, reason, at) in table {
        assert_eq!(error(&message), BrokenAggregate::Malformed { at, reason }, "{name}");
    }
}

#[test]
fn what_can_not_be_parsed_is_an_ordinary_record_unless_rules_say_otherwise() {
    let strict = Rules { unparsable: Unparsable::Broken, ..Rules::default() };
    let key = partition_key("k");
    let bad_hash_key = explicit_hash_key("x");
    let table = [
        ("garbage", vec![0xff; 5], true),
        ("a required field is missing", [&key[..], &record([number(1, 0)])].concat(), true),
        ("garbage after a bad hash key", [&bad_hash_key[..], &[0xff]].concat(), true),
        ("a bad hash key", [&key[..], &bad_hash_key, &plain_record(0, None, b"")].concat(), false),
        ("a bad index", [&key[..], &plain_record(1, None, b"")].concat(), false),
        ("nothing in it", key.clone(), false),
    ];
    for (name, message, ordinary) in table {
        let outcome = disaggregate(&seal(&message), None, &Rules::default());
        assert_eq!(matches!(outcome, Disaggregated::NotAggregated), ordinary, "{name}: {outcome:?}");
        assert_eq!(matches!(outcome, Disaggregated::Broken(_)), !ordinary, "{name}: {outcome:?}");
        let outcome = disaggregate(&seal(&message), None, &strict);
        assert!(matches!(outcome, Disaggregated::Broken(error) if error.is_unparsable() == ordinary), "{name}: {outcome:?}");
    }
}

#[test]
fn sub_records_are_limited() {
    let message = [partition_key("k"), plain_record(0, None, b"").repeat(5)].concat();
    let with = |max_sub_records| disaggregate(&seal(&message), None, &Rules { max_sub_records, ..Rules::default() });
    assert!(matches!(with(5), Disaggregated::Aggregate(_)));
    assert!(matches!(with(4), Disaggregated::Broken(BrokenAggregate::TooManySubRecords { found: 5, limit: 4 })));
}

#[test]
fn what_the_format_allows_is_read() {
    let (key, good) = (partition_key("k"), plain_record(0, None, b"x"));
    let group = [vec![0x7b], number(1, 1), vec![0x7c]].concat(); // field 15
    let tags = bytes(4, &[bytes(1, b"name"), bytes(2, b"value")].concat());
    let table = [
        ("the tables after the records", [&good[..], &key].concat()),
        ("a table in parts", [&key[..], &good, &partition_key("l")].concat()),
        ("a key that nobody uses", [&partition_key("l")[..], &key, &plain_record(1, None, b"x")].concat()),
        ("unknown fields", [&number(9, 1)[..], &key, &bytes(10, b"?"), &group, &good].concat()),
        ("tags", [&key[..], &record([number(1, 0), tags.clone(), bytes(3, b"x"), tags])].concat()),
        ("unknown fields in a record", [&key[..], &record([number(9, 1), number(1, 0), group, bytes(3, b"x")])].concat()),
        ("a record whose fields are in another order", [&key[..], &record([bytes(3, b"x"), number(1, 0)])].concat()),
        ("a repeated field counts with its last value", {
            [&key[..], &record([number(1, 7), bytes(3, b"y"), number(1, 0), bytes(3, b"x")])].concat()
        }),
        ("numbers longer than they need be", [&key[..], &[0x1a, 0x87, 0x00, 0x08, 0x80, 0x00, 0x1a, 0x81, 0x00, b'x']].concat()),
        ("keys with lengths longer than they need be", [&[0x0a, 0x81, 0x00, b'k'][..], &good].concat()),
    ];
    for (name, message) in table {
        assert_eq!(datas(&message), [&b"x"[..]], "{name}");
        let first = open(&message).unwrap().sub_records().next().unwrap();
        assert_eq!(first.partition_key.as_ref().map(PartitionKey::as_str), Some("k"), "{name}");
    }
}

#[test]
fn an_odd_partition_key_concerns_its_own_sub_records_alone() {
    let (too_long, longest, untold) = ("k".repeat(257), "k".repeat(LONGEST_TOLD_KEY), "k".repeat(LONGEST_TOLD_KEY + 1));
    let table: [(&[u8], Option<&str>); 7] = [
        (b"", Some("")),
        (too_long.as_bytes(), Some(&too_long)),
        (longest.as_bytes(), Some(&longest)),
        (untold.as_bytes(), None),
        (&[b'k', 0xff], None),
        (&[0xed, 0xa0, 0x80], None),
        (&[0xf0, 0x9f, 0x94], None),
    ];
    for (odd, told) in table {
        // Two sub-records of the odd key, between those of a good one; the table's last key is used by nobody.
        let message = [
            partition_key("good"),
            partition_key(odd),
            partition_key([0xff]),
            plain_record(0, None, b"before"),
            plain_record(1, None, b"odd"),
            plain_record(1, None, b"odd too"),
            plain_record(0, None, b"after"),
        ];
        let seal = seal(&message.concat());
        for range in [None, Some(0..=u128::MAX), Some(0..=0)] {
            let Disaggregated::Aggregate(aggregate) = disaggregate(&seal, range.as_ref(), &Rules::default()) else {
                panic!("{odd:02x?} is no reason to set the aggregate aside")
            };
            let walked: Vec<_> = aggregate.sub_records().collect();
            let seen: Vec<_> = walked
                .iter()
                .map(|one| (one.sub_sequence_number, one.partition_key.as_ref().map(PartitionKey::as_str), &one.data[..]))
                .collect();
            let expected: [(_, _, &[u8]); 4] =
                [(0, Some("good"), b"before"), (1, told, b"odd"), (2, told, b"odd too"), (3, Some("good"), b"after")];
            assert_eq!(seen, expected);
            let outside = if range == Some(0..=0) { 4 } else { 0 };
            assert_eq!(aggregate.outside_range(), outside);
        }
    }
}

#[test]
fn keys_and_data_are_parts_of_the_payload() {
    let payload = seal(&[partition_key("key"), plain_record(0, None, b"first"), plain_record(0, None, b"second")].concat());
    let Disaggregated::Aggregate(aggregate) = disaggregate(&payload, None, &Rules::default()) else { panic!("an aggregate") };
    let within = payload.as_ptr_range();
    for sub_record in aggregate.sub_records() {
        assert!(within.contains(&sub_record.data.as_ptr()));
        assert!(within.contains(&sub_record.partition_key.unwrap().as_str().as_ptr()));
    }
}

#[test]
fn the_walk_can_be_begun_anew_and_knows_what_is_left() {
    let aggregate = open(&[partition_key("k"), plain_record(0, None, b"a"), plain_record(0, None, b"b")].concat()).unwrap();
    let mut walk = aggregate.sub_records();
    assert_eq!(walk.len(), 2);
    assert_eq!(walk.next().unwrap().sub_sequence_number, 0);
    assert_eq!(walk.len(), 1);
    assert_eq!(walk.clone().next().unwrap().data, walk.next().unwrap().data);
    assert_eq!((walk.len(), walk.next(), walk.next()), (0, None, None));
    assert_eq!(aggregate.sub_records().count(), 2);
}

#[test]
fn neither_errors_nor_debug_output_show_keys_or_payloads() {
    let message = [partition_key("SECRET-key"), explicit_hash_key("987654321"), plain_record(0, Some(0), b"SECRET-data")].concat();
    let aggregate = open(&message).unwrap();
    let walk = aggregate.sub_records();
    let sub_record = walk.clone().next().unwrap();
    let shown =
        format!("{aggregate:?} {walk:?} {sub_record:?} {:?} {:?}", sub_record.partition_key, Disaggregated::Aggregate(aggregate.clone()));
    let broken = [partition_key("SECRET"), explicit_hash_key("SECRET"), plain_record(0, None, b"SECRET")].concat();
    for text in [shown, error(&broken).to_string(), format!("{:?}", error(&broken)), error(&broken[..broken.len() - 1]).to_string()] {
        for secret in ["SECRET", "987654321", "83, 69, 67"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
