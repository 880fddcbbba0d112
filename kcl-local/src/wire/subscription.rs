//! A subscription on the wire: the answer to SubscribeToShard, a body that lasts for minutes.
//!
//! Nothing runs for it: it asks the model for its next event when hyper asks it for its next frame, which hyper does
//! when the client has room for one. Between events it waits for its stream to change.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::unfold;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::body::{Body, Cut};
use super::event_stream;
use super::faults::StreamEnd;
use super::format::Format;
use crate::kinesis::{ApiError, ChangeListener, Kinesis, NextEvent, SubscribeToShardInput, SubscriptionId};

/// Longest wait before the model is asked again, although it has told of no change: its time need not be the machine's,
/// and may be moved on.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// Those who wait for streams to change, by the stream's name; and how many subscriptions there are.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    streams: Mutex<BTreeMap<String, Weak<Notify>>>,
    open: AtomicUsize,
}

impl Subscribers {
    /// Subscriptions whose answers are under way.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// What is notified of this stream's changes.
    fn changes_of(&self, stream: &str) -> Arc<Notify> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = streams.get(stream).and_then(Weak::upgrade) {
            return changed;
        }
        streams.retain(|_, changed| changed.strong_count() > 0);
        let changed = Arc::new(Notify::new());
        streams.insert(stream.to_owned(), Arc::downgrade(&changed));
        changed
    }
}

impl ChangeListener for Subscribers {
    fn stream_changed(&self, stream: &str) {
        let changed = self.streams.lock().unwrap_or_else(PoisonError::into_inner).get(stream).and_then(Weak::upgrade);
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
    }
}

/// A subscription that was begun. Dropping it, as a body when the client leaves or before it became one, ends it.
#[derive(Debug)]
pub(super) struct Subscription {
    kinesis: Kinesis,
    id: SubscriptionId,
    subscribers: Arc<Subscribers>,
    changed: Arc<Notify>,
    format: Format,
    fault: Option<(Duration, StreamEnd)>,
}

impl Subscription {
    /// Subscribes. `fault` is how the answer goes wrong, and how long after its beginning.
    ///
    /// # Errors
    /// What the model refuses.
    pub(super) fn begin(
        kinesis: &Kinesis,
        subscribers: &Arc<Subscribers>,
        input: SubscribeToShardInput,
        format: Format,
        fault: Option<(Duration, StreamEnd)>,
    ) -> Result<Self, ApiError> {
        // arn:aws:kinesis:REGION:ACCOUNT:stream/NAME/consumer/NAME:SECONDS; one that isn't is refused by the model.
        let changed = subscribers.changes_of(input.consumer_arn.split('/').nth(1).unwrap_or_default());
        let id = kinesis.call(input)?;
        subscribers.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self { kinesis: kinesis.clone(), id, subscribers: Arc::clone(subscribers), changed, format, fault })
    }

    /// The answer's body, which begins now.
    pub(super) fn into_body(self) -> Body {
        let fault = self.fault.map(|(after, end)| (Instant::now() + after, end));
        let frames = Frames { subscription: self, fault, begun: false, over: false };
        let frames = unfold(frames, async |mut frames| {
            let frame = frames.next().await?;
            Some((frame.map(Frame::data), frames))
        });
        StreamBody::new(frames).boxed_unsync()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.kinesis.end_subscription(self.id);
        self.subscribers.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Frames {
    subscription: Subscription,
    fault: Option<(Instant, StreamEnd)>,
    /// The initial response has been given.
    begun: bool,
    /// The last frame has been given.
    over: bool,
}

impl Frames {
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        if self.over {
            return None;
        }
        let Some((due, end)) = self.fault else {
            return self.served().await.map(Ok);
        };
        // An end in order has a beginning in order.
        if !self.begun && matches!(end, StreamEnd::End(_)) {
            return self.served().await.map(Ok);
        }
        tokio::select! {
            biased;
            () = reached(due) => {}
            frame = self.served() => return frame.map(Ok),
        }
        match end {
            StreamEnd::Stall => pending().await,
            StreamEnd::Cut => Some(Err(Cut)),
            StreamEnd::End(code) => {
                self.over = true;
                code.map(|code| Ok(event_stream::exception(self.subscription.format, code, "a fault injected by kcl-local")))
            }
        }
    }

    /// The next frame of the service without faults; `None` at the end. Cancelled while it waits, it has taken nothing
    /// from the model.
    async fn served(&mut self) -> Option<Bytes> {
        let Subscription { kinesis, id, changed, format, .. } = &self.subscription;
        if !self.begun {
            self.begun = true;
            return Some(event_stream::initial_response(*format));
        }
        loop {
            // Registered before the model is asked, so that what changes in between is not missed.
            let changed = changed.notified();
            let (next, now) = kinesis.with(|model, now| (model.next_event(now, *id), now));
            match next {
                NextEvent::Event(event) => {
                    let json = serde_json::to_vec(&event).expect("events are maps with text keys and finite numbers");
                    return Some(event_stream::event(*format, "SubscribeToShardEvent", json.into()));
                }
                NextEvent::Wait { until } => {
                    let pause = Duration::from_millis(until.saturating_sub(now)).min(LONGEST_WAIT);
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = sleep(pause) => {}
                    }
                }
                NextEvent::Ended => return None,
                NextEvent::Failed(error) => {
                    self.over = true;
                    return Some(event_stream::exception(*format, error.code.as_str(), &error.message));
                }
            }
        }
    }
}

/// A time that has come is found so at once, not at the timer's next tick.
async fn reached(time: Instant) {
    if Instant::now() < time {
        sleep_until(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinesis::{
        CreateStreamInput, KinesisConfig, ManualTime, PutRecordInput, RegisterStreamConsumerInput, ShardIteratorType, StartingPosition,
    };

    struct Fixture {
        kinesis: Kinesis,
        time: ManualTime,
        subscribers: Arc<Subscribers>,
        consumer_arn: String,
    }

    impl Fixture {
        fn new() -> Self {
            let time = ManualTime::new(1_790_000_000_000);
            let kinesis = Kinesis::new(KinesisConfig::default(), time.clone());
            let subscribers = Arc::new(Subscribers::default());
            let told: Weak<Subscribers> = Arc::downgrade(&subscribers);
            kinesis.listen(told);
            for name in ["orders", "letters"] {
                kinesis.call(CreateStreamInput { stream_name: name.into(), shard_count: Some(1), ..Default::default() }).unwrap();
            }
            let stream_arn = "arn:aws:kinesis:us-east-1:000000000000:stream/orders".to_owned();
            let registered = kinesis.call(RegisterStreamConsumerInput { stream_arn, consumer_name: "app".into() }).unwrap();
            Self { kinesis, time, subscribers, consumer_arn: registered.consumer.consumer_arn }
        }

        /// A subscription from LATEST, its first two frames taken: the initial response and an event without records.
        async fn frames(&self) -> Frames {
            let input = SubscribeToShardInput {
                consumer_arn: self.consumer_arn.clone(),
                shard_id: "shardId-000000000000".into(),
                starting_position: StartingPosition { position_type: ShardIteratorType::Latest, ..Default::default() },
            };
            let subscription = Subscription::begin(&self.kinesis, &self.subscribers, input, Format::Json, None).unwrap();
            let mut frames = Frames { subscription, fault: None, begun: false, over: false };
            for _ in 0..2 {
                frames.next().await.unwrap().unwrap();
            }
            frames
        }

        fn put(&self, stream: &str) {
            let record = PutRecordInput { stream_name: Some(stream.into()), partition_key: "k".into(), ..Default::default() };
            self.kinesis.call(record).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_is_pushed_without_waiting_for_any_timer() {
        let fixture = Fixture::new();
        let mut frames = fixture.frames().await;
        let asked = Instant::now();
        let (frame, ()) = tokio::join!(frames.next(), async {
            // Of another stream: no reason to look.
            fixture.put("letters");
            tokio::task::yield_now().await;
            fixture.put("orders");
        });
        assert!(String::from_utf8_lossy(&frame.unwrap().unwrap()).contains("\"PartitionKey\":\"k\""));
        assert_eq!(asked.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_is_moved_is_seen() {
        let fixture = Fixture::new();
        let mut frames = fixture.frames().await;
        let asked = Instant::now();
        let (frame, ()) = tokio::join!(frames.next(), async { fixture.time.advance(300_000) });
        assert!(frame.is_none(), "the subscription's life is over");
        assert!(asked.elapsed() <= LONGEST_WAIT + Duration::from_millis(1), "{:?}", asked.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_has_left() {
        let fixture = Fixture::new();
        let frames = fixture.frames().await;
        let id = frames.subscription.id;
        assert_eq!(fixture.subscribers.open(), 1);
        drop(frames);
        assert_eq!(fixture.subscribers.open(), 0);
        assert_eq!(fixture.kinesis.next_event(id), NextEvent::Ended);
    }
}
