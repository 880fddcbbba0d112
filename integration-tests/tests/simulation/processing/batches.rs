//! A thousand batches, with every kind of failure at every place: every good record is processed once, every bad one is in the queue with its
//! payload, each key is in order, and no checkpoint passes a record that is neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::dead_letter::FailureKind;
use kcl_core::test_util::Event;
use kcl_core::{Checkpoint, Lanes, RetryPolicy, SequenceNumber};

use super::service::{Scene, Tells, text, until};

const BATCH: usize = 10;
const BAD: [&str; 5] = ["poison", "failing", "twice", "panics", "overruns"];

/// What is finished by its sequence number, as far as the world outside of the worker knows, and whether a checkpoint has passed what is not.
#[derive(Default)]
struct Watch {
    published: BTreeMap<SequenceNumber, String>,
    accepted: BTreeSet<SequenceNumber>,
    passed: Vec<(SequenceNumber, String)>,
    looked_to: Option<SequenceNumber>,
}

async fn fifty_batches(tells: Tells, lanes: usize, one_key: bool) {
    let name = format!("{tells:?}, {lanes} lanes, one key: {one_key}");
    let mut scene = Scene::new(7, tells);
    let watch = Arc::new(Mutex::new(Watch::default()));
    let (watched, done) = (Arc::clone(&watch), scene.done.clone());
    scene.aws.observe(move |event| {
        let mut watch = watched.lock().unwrap();
        match event {
            Event::DeadLetterAccepted { letter, .. } => {
                watch.accepted.insert(letter.record.sequence_number());
            }
            Event::LeaseWritten { after, .. } => {
                let Checkpoint::At(at) = after.checkpoint else { return };
                let open = |number: &SequenceNumber, text: &String| !watch.accepted.contains(number) && !done.contains(text);
                let from = watch.looked_to.unwrap_or(0.into());
                let passed: Vec<_> =
                    watch.published.range(from..=at.sequence_number).filter(|(n, t)| open(n, t)).map(|(n, t)| (*n, t.clone())).collect();
                watch.passed.extend(passed);
                watch.looked_to = Some(at.sequence_number);
            }
            _ => {}
        }
    });
    let running = scene.start(|builder| builder.lanes(Lanes::new(lanes))).await;
    let (mut good, mut bad) = (BTreeSet::new(), BTreeSet::new());
    for kind in BAD {
        for place in 0..BATCH {
            for index in 0..BATCH {
                let text = if index == place { format!("{kind} {place}") } else { format!("good {kind} {place} {index}") };
                let key = if one_key { "key".to_owned() } else { format!("key-{index}") };
                let (_, number) = scene.aws.put(super::service::STREAM, &key, text.clone());
                watch.lock().unwrap().published.insert(number, text.clone());
                if index == place && kind != "twice" {
                    bad.insert(text)
                } else {
                    good.insert(text)
                };
            }
            until(&format!("{name}: {kind} at {place} is finished"), || {
                scene.done.distinct() + watch.lock().unwrap().accepted.len() >= good.len() + bad.len()
            })
            .await;
        }
    }
    scene.stop(running).await;

    let processed = scene.done.processed();
    assert_eq!(processed.iter().map(|(_, text)| text.clone()).collect::<BTreeSet<_>>(), good, "{name}");
    // A panic or an overrun tells nothing of neighbours whose outcome was still to come.
    let untold = |text: &str| matches!(tells, Tells::These | Tells::From) && (text.contains("panics") || text.contains("overruns"));
    let once = |texts: &mut dyn Iterator<Item = &String>| texts.filter(|text| !untold(text)).count();
    let times = once(&mut processed.iter().map(|(_, text)| text));
    assert_eq!(times, once(&mut good.iter()), "{name}: a good record was processed more than once");
    assert_eq!(scene.letter_texts().into_iter().collect::<BTreeSet<_>>(), bad, "{name}");
    assert_eq!(scene.letters().len(), bad.len(), "{name}: a letter came more than once");
    for letter in scene.letters() {
        let kind = match text(&letter.record).split(' ').next().unwrap() {
            "poison" => FailureKind::Poison,
            "panics" => FailureKind::Panic,
            "overruns" => FailureKind::Overrun,
            _ => FailureKind::Error,
        };
        assert_eq!(letter.kind, kind, "{name}");
        assert!(letter.attempts >= if kind == FailureKind::Poison { 1 } else { 3 }, "{name}: {letter:?}");
    }
    assert_eq!(watch.lock().unwrap().passed, [], "{name}: a checkpoint passed a record that was neither processed nor accepted");
    let mut firsts = BTreeSet::new();
    let processed: Vec<_> = processed.into_iter().filter(|(_, text)| firsts.insert(text.clone())).collect();
    in_order_within_keys(&processed, &watch.lock().unwrap().published, tells);
}

/// Each key's records were processed in the order of the stream. A processor that goes on after a failure, and says so, has itself put others
/// before it.
fn in_order_within_keys(processed: &[(String, String)], published: &BTreeMap<SequenceNumber, String>, tells: Tells) {
    let place: BTreeMap<_, _> = published.iter().map(|(number, text)| (text.as_str(), *number)).collect();
    let mut last: BTreeMap<&str, SequenceNumber> = BTreeMap::new();
    for (key, text) in processed {
        if tells == Tells::These && text.starts_with("twice") {
            continue;
        }
        let number = place[text.as_str()];
        let before = last.insert(key, number);
        assert!(before.is_none_or(|before| before < number), "{key}: {text} out of order");
    }
}

macro_rules! batches {
    ($($name:ident: $tells:ident, $lanes:literal;)+) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                for one_key in [true, false] {
                    fifty_batches(Tells::$tells, $lanes, one_key).await;
                }
            }
        )+
    };
}

// Fifty batches each, for one key and for many: a thousand.
batches! {
    in_order: InOrder, 1;
    in_order_on_lanes: InOrder, 4;
    in_order_on_many_lanes: InOrder, 16;
    untold: Nothing, 1;
    untold_on_lanes: Nothing, 4;
    from_a_record_on: From, 1;
    from_a_record_on_on_lanes: From, 4;
    one_by_one: These, 1;
    one_by_one_on_lanes: These, 4;
    one_by_one_on_many_lanes: These, 16;
}

/// The next one of its key begins with the first wait.
#[tokio::test(start_paused = true)]
async fn the_waits_of_a_record_that_went_to_the_queue_are_not_the_next_ones() {
    let mut scene = Scene::new(7, Tells::These);
    let retry = RetryPolicy {
        max_attempts: 6,
        patience: Duration::ZERO,
        first_backoff: Duration::from_secs(1),
        max_backoff: Duration::from_secs(3600),
        ..RetryPolicy::default()
    };
    let running = scene.start(|builder| builder.lanes(Lanes::new(4)).retry_policy(retry)).await;
    scene.put("a", "failing 1");
    scene.put("a", "failing 2");
    until("both are in the queue", || scene.letters().len() == 2).await;
    // Each waits up to 1, 2, 4, 8 and 16 s, and the doubled waits that follow are a hundred seconds at least.
    assert!(scene.aws.elapsed() < Duration::from_secs(80), "{:?}", scene.aws.elapsed());
    scene.stop(running).await;
}
