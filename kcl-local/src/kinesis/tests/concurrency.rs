//! Many threads on one handle, and its listeners.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;

use super::subscriptions::Subscriber;
use super::*;

#[test]
fn thirty_two_writers_and_three_tailing_readers_every_record_once_in_order() {
    const WRITERS: usize = 32;
    const EACH: usize = 300;
    let fixture = Fixture::new(1);
    let reader = || {
        let mut seen = Vec::with_capacity(WRITERS * EACH);
        let mut iterator = fixture.horizon(0);
        while seen.len() < WRITERS * EACH {
            let output = fixture.get(&iterator).unwrap();
            if output.records.is_empty() {
                thread::yield_now();
            }
            seen.extend(output.records.into_iter().map(|record| (record.sequence_number, record.data)));
            iterator = output.next_shard_iterator.unwrap();
        }
        seen
    };
    let writer = |writer: usize| {
        let put = |index: usize| fixture.put(&writer.to_string(), &format!("{writer} {index}")).sequence_number;
        (0..EACH).map(put).collect::<Vec<_>>()
    };
    let (written, read) = thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(reader)).collect();
        let writers: Vec<_> = (0..WRITERS).map(|index| scope.spawn(move || writer(index))).collect();
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        (written, read)
    });
    let mut expected: Vec<(SequenceNumber, Bytes)> = Vec::new();
    for (writer, numbers) in written.into_iter().enumerate() {
        assert!(numbers.is_sorted_by(|a, b| a < b), "each writer's own order is kept");
        expected.extend(numbers.into_iter().enumerate().map(|(index, number)| (number, Bytes::from(format!("{writer} {index}")))));
    }
    expected.sort_unstable();
    for seen in read {
        assert_eq!(seen.len(), expected.len());
        assert!(seen == expected);
    }
}

#[test]
fn sixteen_writers_and_subscriptions_that_end_at_random_through_reshards_every_record_once_in_order() {
    const WRITERS: usize = 16;
    const EACH: usize = 250;
    let fixture = Fixture::with(KinesisConfig { resubscribe_ms: 0, ..Default::default() }, 2);
    let mut subscriber = Subscriber::new(&fixture);
    let mut random = fastrand::Rng::with_seed(7);
    let count = AtomicUsize::new(0);
    let writer = |writer: usize| {
        let put = |index: usize| {
            let text = format!("{writer} {index}");
            let put = fixture.put(&text, &text);
            count.fetch_add(1, Ordering::SeqCst);
            (number(&put.shard_id), put.sequence_number, text)
        };
        (0..EACH).map(put).collect::<Vec<_>>()
    };
    let written = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|index| scope.spawn(move || writer(index))).collect();
        scope.spawn(|| {
            // Spread over the writing.
            for (step, target) in [4, 3, 6, 3, 2, 1].into_iter().enumerate() {
                while count.load(Ordering::SeqCst) < step * WRITERS * EACH / 7 {
                    thread::yield_now();
                }
                fixture.resize(target).unwrap();
            }
        });
        while subscriber.read.values().map(Vec::len).sum::<usize>() < WRITERS * EACH {
            for number in subscriber.reading.keys().copied().collect::<Vec<_>>() {
                if subscriber.pull(number) {
                    thread::yield_now();
                }
                if random.u8(..4) == 0 {
                    subscriber.leave(number);
                }
            }
        }
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    let mut expected: BTreeMap<u32, Vec<(SequenceNumber, String)>> = BTreeMap::new();
    for (shard, number, text) in written {
        expected.entry(shard).or_default().push((number, text));
    }
    expected.values_mut().for_each(|records| records.sort_unstable());
    subscriber.drain();
    subscriber.read.retain(|_, records| !records.is_empty());
    assert!(subscriber.read == expected);
}

#[derive(Default)]
struct Counter {
    changes: Mutex<Vec<String>>,
    woken: Condvar,
}

impl ChangeListener for Counter {
    fn stream_changed(&self, stream: &str) {
        self.changes.lock().unwrap().push(stream.to_owned());
        self.woken.notify_all();
    }
}

impl Counter {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.changes.lock().unwrap())
    }
}

/// A handle of the listener that doesn't keep it alive.
fn weak(listener: &Arc<Counter>) -> Weak<dyn ChangeListener> {
    let listener: Weak<Counter> = Arc::downgrade(listener);
    listener
}

#[test]
fn a_listener_hears_of_writes_reshards_and_what_time_brings() {
    let fixture = Fixture::with(KinesisConfig { updating_ms: 100, ..Default::default() }, 1);
    let listener = Arc::new(Counter::default());
    fixture.kinesis.listen(weak(&listener));
    fixture.put("key", "x");
    assert_eq!(listener.take(), ["orders"]);
    fixture.read(&fixture.horizon(0));
    assert_eq!(listener.take(), Vec::<String>::new(), "reading changes nothing");
    fixture.split(0, 1 << 127).unwrap();
    assert_eq!(listener.take(), ["orders"]);
    fixture.time.advance(100);
    fixture.kinesis.with(Model::settle);
    assert_eq!(listener.take(), ["orders"]);
    fixture.kinesis.call(DeleteStreamInput { stream_name: orders(), ..Default::default() }).unwrap();
    assert_eq!(listener.take(), ["orders"]);
    let held = Arc::downgrade(&listener);
    drop(listener);
    assert!(held.upgrade().is_none(), "the handle doesn't keep a listener alive");
    fixture.create("orders", 1).unwrap();
}

#[test]
fn a_listener_hears_of_what_ends_subscriptions() {
    let fixture = Fixture::with(KinesisConfig { consumer_creating_ms: 100, consumer_deleting_ms: 100, ..Default::default() }, 1);
    let listener = Arc::new(Counter::default());
    fixture.kinesis.listen(weak(&listener));
    let arn = fixture.register("billing");
    assert_eq!(listener.take(), ["orders"]);
    fixture.time.advance(100);
    fixture.kinesis.with(Model::settle);
    assert_eq!(listener.take(), ["orders"], "ACTIVE");
    let subscribe = || fixture.subscribe(&arn, 0, ShardIteratorType::Latest, None);
    let first = subscribe().unwrap();
    fixture.event(first);
    assert_eq!(listener.take(), Vec::<String>::new(), "nobody's subscription ended");
    fixture.time.advance(5_000);
    subscribe().unwrap();
    assert_eq!(listener.take(), ["orders"], "taken over");
    fixture.deregister(&arn).unwrap();
    assert_eq!(listener.take(), ["orders"]);
    fixture.time.advance(100);
    fixture.kinesis.with(Model::settle);
    assert_eq!(listener.take(), ["orders"], "gone");
}

#[test]
fn a_reader_that_waits_to_be_woken_misses_nothing() {
    let fixture = Fixture::new(1);
    let listener = Arc::new(Counter::default());
    fixture.kinesis.listen(weak(&listener));
    let read = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut iterator = fixture.horizon(0);
            while read.load(Ordering::SeqCst) < 2_000 {
                // Clear first, then read: a write after the read is heard of again.
                listener.take();
                let output = fixture.get(&iterator).unwrap();
                iterator = output.next_shard_iterator.unwrap();
                if read.fetch_add(output.records.len(), Ordering::SeqCst) + output.records.len() < 2_000 {
                    let changes = listener.changes.lock().unwrap();
                    drop(listener.woken.wait_while(changes, |changes| changes.is_empty()).unwrap());
                }
            }
        });
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| drop(fixture.put("key", "x"))));
        }
    });
    assert_eq!(read.into_inner(), 2_000);
}
