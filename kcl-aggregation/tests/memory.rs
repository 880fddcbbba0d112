//! What the largest records made in bad faith cost in memory: at most twice their length, on top of themselves.
//!
//! The allocator is given a limit while a payload is judged and walked. Where it is reached the process aborts with "memory allocation
//! of N bytes failed": that is this test failing. It is alone in its process, since the limit is everybody's.

use bytes::Bytes;
use kcl_aggregation::{Aggregate, BrokenAggregate, Disaggregated, Rules, disaggregate, disaggregate_all, rules};
use md5::{Digest as _, Md5};

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// The largest Kinesis record.
const LARGEST: usize = 10 << 20;

/// What an aggregate of any size may allocate beside its tables.
const SMALL: usize = 4096;

/// A message: `head`, and then as many of `unit` as fit into the largest record.
fn filled(head: &[u8], unit: &[u8]) -> (Bytes, usize) {
    let times = (LARGEST - 20 - head.len()) / unit.len();
    ([head, &unit.repeat(times)].concat().into(), times)
}

/// What fails in here must fail later: a panic needs more memory than there is.
fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + bytes).unwrap();
    let result = work();
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    result
}

/// The envelope is opened elsewhere: unoptimized, its digest would take longer than all the rest.
fn open(message: &Bytes, rules: &Rules) -> Result<Aggregate, BrokenAggregate> {
    Aggregate::open(message.clone(), Some(&(0..=u128::MAX / 2)), rules)
}

/// What is wrong with a message, found with next to no memory.
fn refused(message: &Bytes, rules: &Rules) -> BrokenAggregate {
    within(SMALL, || open(message, rules)).expect_err("broken")
}

/// Judges and walks, all within the bound; says how many bytes the aggregate holds in the meantime.
fn walk(message: &Bytes, rules: &Rules) -> usize {
    let before = ALLOCATOR.allocated();
    let aggregate = within(2 * message.len(), || open(message, rules)).expect("whole");
    let held = ALLOCATOR.allocated() - before;
    // The walk itself allocates nothing per sub-record.
    assert_eq!(within(SMALL, || walk_whole(&aggregate)), aggregate.len());
    held
}

fn seal(message: &[u8]) -> Bytes {
    [&[0xF3, 0x89, 0x9A, 0xC2], message, &Md5::digest(message)].concat().into()
}

/// The same, envelope included.
fn walk_payload(message: &Bytes, rules: &Rules) {
    let payload = seal(message);
    match within(SMALL, || disaggregate(&payload, None, rules)) {
        Disaggregated::Aggregate(aggregate) => assert_eq!(walk_whole(&aggregate), aggregate.len()),
        other => panic!("{other:?}"),
    }
}

/// A whole answer, of which never more than one aggregate is open: so much memory for each payload, and the tables of one.
fn walk_answer(payloads: &[Bytes], rules: &Rules) {
    let longest = payloads.iter().map(Bytes::len).max().unwrap();
    let bound = 100 * payloads.len() + 2 * longest + SMALL;
    let walked = within(bound, || {
        let answer = disaggregate_all(payloads.iter().cloned(), Some(&(0..=u128::MAX / 2)), rules);
        answer.filter(|what| matches!(what, Disaggregated::Aggregate(aggregate) if walk_whole(aggregate) == aggregate.len())).count()
    });
    assert_eq!(walked, payloads.len());
}

fn walk_whole(aggregate: &Aggregate) -> usize {
    aggregate.sub_records().map(|sub_record| usize::from(sub_record.partition_key.is_none_or(|key| !key.as_str().is_empty()))).sum()
}

#[test]
fn memory_is_bounded_whatever_arrives() {
    let unlimited = Rules { max_sub_records: usize::MAX, ..Rules::default() };
    let key = [0x0a, 1, b'k'];

    // 2.6 million sub-records of four bytes, the least that the wire format allows: without data, so all for nothing.
    let (message, times) = filled(&key, &[0x1a, 2, 0x08, 0]);
    assert!(times > 2_600_000);
    assert_eq!(refused(&message, &unlimited), BrokenAggregate::NoData { sub_record: 0 });

    // 1.7 million of six bytes, the least that this format allows.
    let smallest = [0x1a, 4, 0x08, 0, 0x1a, 0];
    let (message, times) = filled(&key, &smallest);
    assert!(times > 1_700_000);
    let limit = rules::DEFAULT_MAX_SUB_RECORDS;
    assert_eq!(refused(&message, &Rules::default()), BrokenAggregate::TooManySubRecords { found: times, limit });
    assert!(walk(&message, &unlimited) < SMALL);

    // One key for all of them: as long as keys get, and as long as records get.
    let longest = "🔑".repeat(256);
    let (message, _) = filled(&[&[0x0a, 0x80, 0x08], longest.as_bytes()].concat(), &smallest);
    assert!(walk(&message, &unlimited) < SMALL);
    let huge = [&[0x0a, 0x80, 0x80, 0xc0, 0x02][..], &vec![b'k'; 5 << 20]].concat();
    let (message, _) = filled(&huge, &smallest);
    assert!(walk(&message, &unlimited) < SMALL, "a key that long is told of none of them");

    // 2.6 million keys that are not UTF-8: marked in the tables, which are no larger for it.
    let (message, times) = filled(&[&smallest[..], &key].concat(), &[0x0a, 2, b'k', 0xff]);
    assert!(walk(&message, &unlimited) < 5 * times + SMALL);

    // 3.5 million keys of one character: four bytes for each, and one for its side of the range.
    for unit in [key, [0x12, 1, b'7']] {
        let (message, times) = filled(&[&smallest[..], &key].concat(), &unit);
        assert!(times > 3_400_000);
        let held = walk(&message, &unlimited);
        assert!(held < 5 * times + SMALL, "{held}");
    }

    // Keys and records by turns, so that the tables are full only at the end.
    let (message, _) = filled(&[], &[&key[..], &smallest].concat());
    walk(&message, &unlimited);

    // Groups that never end, and tags that nobody reads.
    let (message, _) = filled(&[], &[0x0b]);
    assert!(matches!(refused(&message, &unlimited), BrokenAggregate::Malformed { .. }));
    let (message, _) = filled(&key, &[0x1a, 8, 0x08, 0, 0x1a, 0, 0x22, 2, 0xff, 0xff]);
    assert!(walk(&message, &unlimited) < SMALL);
    walk_payload(&message, &unlimited);

    // An answer of as many records as there can be, and one of aggregates that are nothing but keys.
    for (message, times) in [([&key[..], &smallest].concat(), 10_000), ([&smallest[..], &key.repeat(5_000)].concat(), 50)] {
        let payloads: Vec<Bytes> = (0..times).map(|_| seal(&message)).collect();
        walk_answer(&payloads, &unlimited);
    }
}
