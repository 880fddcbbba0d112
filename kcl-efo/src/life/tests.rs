//! Decisions as tables, and whatever may come in any order.

use fastrand::Rng;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const ENDS: [End; 6] = [End::Ended, End::InUse, End::NotReady, End::Throttled, End::Broken, End::Hopeless];

/// How a life was when it ended: not accepted yet; or how old, and whether it had given something new.
const LIVES: [Option<(u64, bool)>; 6] =
    [None, Some((1, false)), Some((1, true)), Some((10, false)), Some((100, false)), Some((295, false))];

const NUMBERS: Mark = Mark { continuation: None, last_record: None, end_of_shard: false };

fn number(value: u128) -> SequenceNumber {
    value.into()
}

fn after(value: u128) -> StartingPosition {
    StartingPosition::AfterSequenceNumber(number(value))
}

fn told(value: u128) -> Mark {
    Mark { continuation: Some(number(value)), ..NUMBERS }
}

/// A life that has failed this often in a row.
fn failed(failures: u32, now: Instant) -> Life {
    let mut life = Life::new(StartingPosition::TrimHorizon);
    (0..failures).for_each(|_| life.hindered(End::Broken, now, 0.0));
    assert_eq!(life.failures(), failures);
    life
}

/// Lives one life to its end.
fn live(life: &mut Life, lived: Option<(u64, bool)>, end: End, now: Instant, jitter: f64) -> Instant {
    let generation = life.begin().generation;
    let Some((age, progressed)) = lived else {
        assert!(life.over(generation, end, now, jitter));
        return now;
    };
    assert!(life.opened(generation, now));
    if progressed {
        assert!(life.event(generation, told(1_000)));
    }
    let now = now + SECOND * u32::try_from(age).unwrap();
    assert!(life.over(generation, end, now, jitter));
    now
}

#[test]
fn what_follows_an_end_depends_on_the_life_before_it() {
    // After three failures: the longest wait in milliseconds for each of `LIVES`, 0 for none; and whether the table is asked.
    let table = [
        (End::Ended, [1_600, 1_600, 0, 0, 0, 0], [true, true, true, true, true, false]),
        (End::InUse, [8_000, 8_000, 8_000, 8_000, 1_000, 1_000], [true; 6]),
        (End::NotReady, [5_000, 5_000, 1_000, 1_000, 1_000, 1_000], [false; 6]),
        (End::Throttled, [8_000, 8_000, 1_000, 1_000, 1_000, 1_000], [false; 6]),
        (End::Broken, [1_600, 1_600, 200, 200, 200, 200], [false; 6]),
        (End::Hopeless, [8_000, 8_000, 1_000, 1_000, 1_000, 1_000], [false; 6]),
    ];
    assert_eq!(table.map(|(end, ..)| end), ENDS);
    for (end, ceilings, looks) in table {
        for ((lived, ceiling), look) in LIVES.into_iter().zip(ceilings).zip(looks) {
            for jitter in [0.0, 0.5, 1.0] {
                let began = Instant::now();
                let mut life = failed(3, began);
                let now = live(&mut life, lived, end, began, jitter);
                let forgiven = matches!(ceiling, 0 | 200 | 1_000);
                assert_eq!(life.failures(), if forgiven { 1 } else { 4 }, "{end:?} after {lived:?}");
                assert_eq!(life.must_look(), look, "{end:?} after {lived:?}");
                let ceiling = Duration::from_millis(ceiling);
                let expected = (!ceiling.is_zero()).then(|| now + ceiling / 10 + (ceiling - ceiling / 10).mul_f64(jitter));
                assert_eq!(life.not_before(), expected, "{end:?} after {lived:?}");
            }
        }
    }
}

#[test]
fn what_a_life_has_given_counts_to_its_end() {
    let record = Mark { last_record: Some(number(5)), ..NUMBERS };
    for (marks, has_given) in [
        (vec![NUMBERS], false),
        (vec![told(6)], true),
        (vec![told(6), NUMBERS], true),
        (vec![record], true), // the record before the position, once more
        (vec![record, NUMBERS, NUMBERS], true),
    ] {
        let now = Instant::now();
        let mut life = Life::new(after(5));
        (0..3).for_each(|_| life.hindered(End::Broken, now, 0.0));
        let generation = life.begin().generation;
        assert!(life.opened(generation, now));
        marks.iter().for_each(|mark| assert!(life.event(generation, *mark)));
        assert!(life.over(generation, End::Broken, now + SECOND, 0.0));
        assert_eq!(life.failures(), if has_given { 1 } else { 4 }, "{marks:?}");
    }
}

#[test]
fn a_life_that_ends_in_order_was_taken_over_if_it_was_shorter_than_expected() {
    for (age, look) in [(289, true), (290, false), (300, false)] {
        let (mut life, now) = (Life::new(StartingPosition::Latest), Instant::now());
        live(&mut life, Some((age, false)), End::Ended, now, 0.0);
        assert_eq!(life.must_look(), look, "{age} s");
    }
}

#[test]
fn the_first_attempt_can_be_held_back() {
    let later = Instant::now() + SECOND;
    let mut life = Life::new(StartingPosition::Latest);
    assert_eq!(life.not_before(), None);
    life.hold_until(later);
    assert_eq!(life.not_before(), Some(later));
    life.begin();
    assert_eq!(life.not_before(), None);
}

#[test]
fn every_error_means_one_of_the_ends() {
    let (operation, message) = ("an operation", String::new());
    let (consumer, stream, arn, name) = ("c".to_owned(), "s".to_owned(), String::new(), String::new());
    let table = [
        (FanOutError::InUse { operation, message: message.clone() }, End::InUse),
        (FanOutError::ConsumerCreating { consumer: consumer.clone() }, End::NotReady),
        (FanOutError::Throttled { operation, message: message.clone() }, End::Throttled),
        (FanOutError::ConsumerLimit { consumer: consumer.clone(), stream: stream.clone(), message: message.clone() }, End::Throttled),
        (FanOutError::Unavailable { operation, message: message.clone() }, End::Broken),
        (FanOutError::Silent(SECOND), End::Broken),
        (FanOutError::NotFound { operation, message: message.clone() }, End::Hopeless),
        (FanOutError::AccessDenied { operation, message: message.clone() }, End::Hopeless),
        (FanOutError::Kms { operation, message: message.clone() }, End::Hopeless),
        (FanOutError::InvalidArgument { operation, message }, End::Hopeless),
        (FanOutError::ConsumerNotFound { consumer: consumer.clone() }, End::Hopeless),
        (FanOutError::ConsumerDeleting { consumer: consumer.clone() }, End::Hopeless),
        (FanOutError::NotAConsumerArn { arn }, End::Hopeless),
        (FanOutError::OtherStream { consumer, stream: stream.clone() }, End::Hopeless),
        (FanOutError::InvalidName { name }, End::Hopeless),
        (FanOutError::Unsupported { stream }, End::Hopeless),
    ];
    for (error, end) in table {
        assert_eq!(End::from(&error), end, "{error}");
    }
}

#[test]
fn waits_grow_to_their_ceiling_and_are_never_below_a_tenth_of_it() {
    for (end, first, longest) in [
        (End::Ended, 200, 30_000),
        (End::InUse, 1_000, 8_000),
        (End::NotReady, 1_000, 5_000),
        (End::Throttled, 1_000, 16_000),
        (End::Broken, 200, 30_000),
        (End::Hopeless, 1_000, 30_000),
    ] {
        // Draws beyond the bounds are taken as the bounds.
        for (jitter, share) in [(-1.0, 0.1), (0.0, 0.1), (0.5, 0.55), (1.0, 1.0), (7.0, 1.0)] {
            let mut life = Life::new(StartingPosition::Latest);
            let (now, mut ceiling) = (Instant::now(), Duration::from_millis(first));
            for failures in 1..100 {
                let generation = life.begin().generation;
                assert!(life.over(generation, end, now, jitter));
                assert_eq!(life.failures(), failures);
                let wait = (life.not_before().unwrap() - now).as_secs_f64();
                assert!((wait - ceiling.as_secs_f64() * share).abs() < 1e-6, "{end:?}, {failures} failures: {wait} s");
                ceiling = (ceiling * 2).min(Duration::from_millis(longest));
            }
        }
    }
    // However often: no overflow.
    let mut life = Life::new(StartingPosition::Latest);
    life.failures = u32::MAX;
    life.hindered(End::Hopeless, Instant::now(), 1.0);
    assert_eq!(life.failures(), u32::MAX);
}

#[test]
fn renewal_is_at_once_and_goes_on_after_the_last_event() {
    let (mut life, mut now) = (Life::new(StartingPosition::TrimHorizon), Instant::now());
    for lives in 0..100 {
        assert_eq!(life.not_before(), None);
        let attempt = life.begin();
        assert_eq!(attempt.start, if lives == 0 { StartingPosition::TrimHorizon } else { after(lives) });
        assert!(life.opened(attempt.generation, now));
        assert!(life.event(attempt.generation, told(lives + 1)));
        now += SECOND * 300;
        assert!(life.over(attempt.generation, End::Ended, now, 0.5));
        assert!(!life.must_look());
    }
}

#[test]
fn who_accepts_and_ends_at_once_is_asked_ever_more_seldom() {
    let (mut life, now) = (Life::new(StartingPosition::Latest), Instant::now());
    let mut waits = Vec::new();
    for _ in 0..12 {
        live(&mut life, Some((0, false)), End::Ended, now, 0.0);
        assert!(life.must_look());
        waits.push(life.not_before().map_or(0, |at| (at - now).as_millis()));
    }
    // The first is taken for a renewal.
    assert_eq!(waits, [0, 40, 80, 160, 320, 640, 1_280, 2_560, 3_000, 3_000, 3_000, 3_000]);
}

#[test]
fn the_table_is_asked_once_for_each_attempt() {
    let (mut life, now) = (Life::new(StartingPosition::Latest), Instant::now());
    live(&mut life, None, End::InUse, now, 0.0);
    // Not forgotten because the consumer can't be used meanwhile.
    life.hindered(End::NotReady, now, 0.0);
    assert!(life.must_look());
    let generation = life.begin().generation;
    assert!(!life.must_look());
    assert!(life.over(generation, End::Broken, now, 0.0));
    assert!(!life.must_look());
}

#[test]
fn what_comes_of_an_older_generation_changes_nothing() {
    let now = Instant::now();
    let mut life = Life::new(after(5));
    let old = life.begin().generation;
    assert!(life.opened(old, now));
    assert!(life.event(old, told(7)));
    let attempt = life.begin();
    assert_eq!(attempt.start, after(7));
    let stale = |life: &mut Life| {
        let before = format!("{life:?}");
        assert!(!life.opened(old, now));
        assert!(!life.event(old, told(9)));
        assert!(!life.event(old, Mark { end_of_shard: true, ..told(9) }));
        assert!(!life.over(old, End::InUse, now, 0.5));
        assert_eq!(format!("{life:?}"), before);
    };
    stale(&mut life);
    assert!(life.opened(attempt.generation, now));
    stale(&mut life);
    // Nor does an answer that comes twice.
    assert!(!life.opened(attempt.generation, now));
    assert!(life.event(attempt.generation, told(8)));
    stale(&mut life);
    assert!(life.over(attempt.generation, End::Ended, now, 0.5));
    stale(&mut life);
    assert!(!life.over(attempt.generation, End::Ended, now, 0.5));
    assert!(!life.event(attempt.generation, told(10)));
    assert_eq!(life.position(), after(8));
}

#[test]
fn the_position_follows_events_and_what_was_read_in_between() {
    let now = Instant::now();
    let mut life = Life::new(StartingPosition::AtSequenceNumber(number(3)));
    let generation = life.begin().generation;
    assert!(life.opened(generation, now));
    for (mark, position) in [
        // Neither number: nothing is known.
        (NUMBERS, StartingPosition::AtSequenceNumber(number(3))),
        // The very record at which it started.
        (Mark { last_record: Some(number(3)), ..NUMBERS }, after(3)),
        (Mark { continuation: Some(number(4)), last_record: Some(number(4)), ..NUMBERS }, after(4)),
        (told(6), after(6)),
        (Mark { last_record: Some(number(9)), ..NUMBERS }, after(9)),
        // The continuation may be beyond the last record.
        (Mark { continuation: Some(number(12)), last_record: Some(number(11)), ..NUMBERS }, after(12)),
        // An older one does not lead back, with records or without.
        (told(7), after(12)),
        (Mark { continuation: Some(number(9)), last_record: Some(number(14)), ..NUMBERS }, after(14)),
        (Mark { last_record: Some(number(13)), ..NUMBERS }, after(14)),
    ] {
        assert!(life.event(generation, mark));
        assert_eq!(life.position(), position, "{mark:?}");
    }
    assert!(life.over(generation, End::Broken, now, 1.0));
    life.advance(number(20));
    assert_eq!(life.position(), after(20));
    life.advance(number(19));
    assert_eq!(life.begin().start, after(20));
}

#[test]
fn records_up_to_the_last_one_given_are_repeated() {
    let now = Instant::now();
    let repeated = |life: &Life| [4, 5, 6, 7].map(|value| life.is_repeated(number(value)));
    let mut life = Life::new(StartingPosition::AtSequenceNumber(number(5)));
    assert_eq!(repeated(&life), [false; 4], "none was given yet");
    let generation = life.begin().generation;
    assert!(life.opened(generation, now));
    // A continuation number is no record.
    assert!(life.event(generation, told(6)));
    assert_eq!(repeated(&life), [false; 4]);
    assert!(life.event(generation, Mark { last_record: Some(number(5)), ..NUMBERS }));
    assert_eq!(repeated(&life), [true, true, false, false]);
    assert!(life.over(generation, End::Broken, now, 0.5));
    life.advance(number(6));
    assert_eq!(repeated(&life), [true, true, true, false]);
    assert_eq!(repeated(&Life::new(after(4))), [true, false, false, false]);
}

#[test]
fn nothing_comes_after_the_end_of_the_shard() {
    let now = Instant::now();
    let mut life = Life::new(StartingPosition::TrimHorizon);
    let generation = life.begin().generation;
    assert!(life.opened(generation, now));
    assert!(life.event(generation, Mark { last_record: Some(number(4)), end_of_shard: true, ..NUMBERS }));
    assert!(!life.event(generation, told(5)));
    assert!(!life.opened(generation, now));
    assert!(!life.over(generation, End::Ended, now, 0.5));
    assert_eq!((life.position(), life.not_before(), life.must_look()), (after(4), None, false));
}

/// What a life should be, told in another way.
#[derive(Debug)]
struct Expected {
    position: StartingPosition,
    /// The generation that may speak, and whether it was accepted.
    present: Option<(u64, bool)>,
}

#[test]
fn whatever_comes_in_any_order_one_generation_speaks_and_only_what_was_taken_in_counts() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let (mut now, mut last) = (Instant::now(), 1u128);
        let mut life = Life::new(StartingPosition::TrimHorizon);
        let mut expected = Expected { position: StartingPosition::TrimHorizon, present: None };
        let mut generations = 0;
        for _ in 0..60 {
            now += Duration::from_millis(rng.u64(0..20_000));
            let generation = if rng.f64() < 0.6 { generations } else { rng.u64(0..=generations + 1) };
            let current = expected.present.filter(|(present, _)| *present == generation);
            match rng.u8(0..6) {
                0 => {
                    let attempt = life.begin();
                    generations += 1;
                    assert_eq!(attempt, Attempt { generation: generations, start: expected.position }, "seed {seed}");
                    assert_eq!((life.not_before(), life.must_look()), (None, false));
                    expected.present = Some((generations, false));
                }
                1 => {
                    let taken = current.is_some_and(|(_, accepted)| !accepted);
                    assert_eq!(life.opened(generation, now), taken, "seed {seed}");
                    expected.present = if taken { Some((generation, true)) } else { expected.present };
                }
                2 => {
                    last += rng.u128(0..3);
                    let record = rng.bool().then(|| number(last));
                    last += rng.u128(0..3);
                    let continuation = rng.bool().then(|| number(last));
                    let mark = Mark { continuation, last_record: record, end_of_shard: rng.f64() < 0.02 };
                    let taken = current.is_some_and(|(_, accepted)| accepted);
                    assert_eq!(life.event(generation, mark), taken, "seed {seed}");
                    if taken {
                        let told = continuation.or(record).map(StartingPosition::AfterSequenceNumber);
                        expected.position = told.unwrap_or(expected.position);
                        expected.present = expected.present.filter(|_| !mark.end_of_shard);
                    }
                    if taken && mark.end_of_shard {
                        break;
                    }
                }
                3 => {
                    let end = ENDS[rng.usize(0..ENDS.len())];
                    assert_eq!(life.over(generation, end, now, rng.f64()), current.is_some(), "seed {seed}");
                    expected.present = expected.present.filter(|_| current.is_none());
                    assert!(current.is_none() || life.not_before().is_none_or(|at| at > now && at <= now + SECOND * 30));
                }
                4 if expected.present.is_none() => {
                    last += 1;
                    life.advance(number(last));
                    expected.position = after(last);
                }
                5 if expected.present.is_none() => {
                    let end = ENDS[rng.usize(0..ENDS.len())];
                    life.hindered(end, now, rng.f64());
                    assert!(life.not_before().is_some_and(|at| at > now));
                }
                _ => {}
            }
            assert_eq!(life.position(), expected.position, "seed {seed}");
            let speaks = |generation: &u64| {
                let (mut asked, mut told) = (life.clone(), life.clone());
                asked.over(*generation, End::Broken, now, 0.5) || told.event(*generation, NUMBERS)
            };
            let speaking: Vec<_> = (0..=generations + 1).filter(speaks).collect();
            assert_eq!(speaking, Vec::from_iter(expected.present.map(|(present, _)| present)), "seed {seed}");
        }
    }
}
