//! The services together, and the machines that reach them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use kcl_aggregation::Aggregator;
use kcl_checkpoint::{SequenceNumber, Timestamp};
use kcl_lease::{Entropy, InMemoryItems, Lease, ShardId};
use kcl_local::kinesis::{ApiError, CreateStreamInput, Kinesis, KinesisConfig, ListShardsInput, PutRecordInput};
use tokio::time::Instant;

use super::clock::SimulatedClock;
use super::events::Event;
use super::fan_out::Subscribers;
use super::faults::Faults;
use super::host::Host;
use super::model::{self, Numbers};
use super::network::{Link, Network};
use super::{blobs, dead_letters, lease_table};
use crate::dead_letter::DeadLetter;
use crate::stream::{Shard, ShardFilter};

/// When simulated time begins: September 2026.
const EPOCH_MILLIS: u64 = 1_790_000_000_000;

/// A listing, and since when it is true.
type Listing = (Duration, Vec<Shard>);

struct Shared {
    kinesis: Kinesis,
    numbers: Numbers,
    network: Arc<Network>,
    entropy: Entropy,
    subscribers: Arc<Subscribers>,
    blobs: blobs::Store,
    items: InMemoryItems,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<String, lease_table::Store>,
    queues: BTreeMap<String, dead_letters::Letters>,
    /// Processes that were started on each machine.
    processes: BTreeMap<String, u64>,
    clocks: BTreeMap<String, SimulatedClock>,
    /// What listings of all shards have shown.
    listings: BTreeMap<String, Vec<Listing>>,
}

/// Kinesis, lease tables, dead-letter queues and a blob store in memory, in simulated time. Clones share them.
///
/// Make it inside of a runtime with paused time. Tables and queues are there as soon as they are named; streams are made.
#[derive(Clone)]
pub struct SimulatedAws(Arc<Shared>);

impl SimulatedAws {
    /// Services whose faults, and whose hosts' randomness, follow from this seed. The limits of Kinesis on reading are in force.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, KinesisConfig { enforce_read_limits: true, ..KinesisConfig::default() }, false)
    }

    /// The same with other settings of Kinesis, and with sequence numbers that are as short as can be: then they grow in length too, which
    /// Kinesis does not exclude.
    #[must_use]
    pub fn with(seed: u64, config: KinesisConfig, short_sequence_numbers: bool) -> Self {
        let epoch = Instant::now();
        let millis = move || EPOCH_MILLIS + u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let entropy = Entropy::from_seed(seed);
        let kinesis = Kinesis::new(config, millis);
        let subscribers = Arc::new(Subscribers::default());
        let told: Weak<Subscribers> = Arc::downgrade(&subscribers);
        kinesis.listen(told);
        Self(Arc::new(Shared {
            kinesis,
            numbers: if short_sequence_numbers { Numbers::short(EPOCH_MILLIS) } else { Numbers::default() },
            network: Arc::new(Network::new(epoch, Entropy::from_seed(entropy.u64()))),
            entropy,
            subscribers,
            blobs: blobs::Store::default(),
            items: InMemoryItems::default(),
            state: Mutex::default(),
        }))
    }

    /// The model of Kinesis itself, past the fault layer: to split, merge, or change the retention, and to ask what is true.
    #[must_use]
    pub fn kinesis(&self) -> &Kinesis {
        &self.0.kinesis
    }

    /// Makes a stream.
    ///
    /// # Panics
    /// If it exists, or can't be made so.
    pub fn create_stream(&self, name: &str, shards: u32) {
        let input = CreateStreamInput { stream_name: name.to_owned(), shard_count: Some(shards), ..Default::default() };
        self.kinesis().call(input).expect("the stream can be made");
    }

    /// Puts a record, and tells its shard and number as workers will see them.
    ///
    /// # Panics
    /// If the model refuses it: there is no such stream, or a limit is broken.
    pub fn put(&self, stream: &str, partition_key: &str, data: impl Into<Bytes>) -> (ShardId, SequenceNumber) {
        let (stream_name, partition_key, data) = (Some(stream.to_owned()), partition_key.to_owned(), data.into());
        let put = PutRecordInput { stream_name, partition_key, data, ..Default::default() };
        let put = self.kinesis().call(put).expect("the record is taken");
        (put.shard_id.into(), self.numbers().ours(put.sequence_number))
    }

    /// Puts records as one, aggregated as the KPL does: a record of Kinesis whose payload holds them, under the first one's partition key. Tells its shard
    /// and number.
    ///
    /// # Panics
    /// If there are none, they are too large together, or the model refuses the record.
    pub fn put_aggregate<'a>(&self, stream: &str, records: impl IntoIterator<Item = (&'a str, Bytes)>) -> (ShardId, SequenceNumber) {
        let mut aggregator = Aggregator::default();
        for (partition_key, data) in records {
            aggregator.add(partition_key, None, data).expect("the record is within the limits of an aggregate");
        }
        let aggregated = aggregator.finish().expect("there are records");
        self.put(stream, &aggregated.partition_key, aggregated.payload)
    }

    /// All shards of the stream as they are now.
    ///
    /// # Errors
    /// There is no such stream.
    pub fn shards(&self, stream: &str) -> Result<Vec<Shard>, ApiError> {
        self.listing(stream, ShardFilter::All, None)
    }

    /// The application's leases as they are now.
    #[must_use]
    pub fn leases(&self, application: &str) -> Vec<Lease> {
        self.table(application).list()
    }

    /// Deletes so many of the application's leases, oldest shards first, whoever holds them: what somebody does who empties the lease table or makes it anew. Returns
    /// those that are gone. No call is made for it, and no observer is told.
    pub fn strike_leases(&self, application: &str, most: usize) -> Vec<Lease> {
        let table = self.table(application);
        let gone: Vec<_> = table.list().into_iter().take(most).collect();
        gone.iter().for_each(|lease| table.strike(lease));
        gone
    }

    /// Makes a table for items that processors commit with [`ShardContext::commit`](crate::ShardContext::commit), told apart by these attributes: a partition key, and
    /// a sort key if there are two. Commits may put items, over others or under the condition `attribute_not_exists(key)`; anything else needs `kcl-local`.
    pub fn create_table(&self, name: &str, key: &[&str]) {
        self.0.items.create_table(name, key);
    }

    /// The items of a table as they are now, in the order of their keys.
    #[must_use]
    pub fn items(&self, table: &str) -> Vec<BTreeMap<String, AttributeValue>> {
        self.0.items.items(table)
    }

    /// How many writes a second the application's lease table takes; what is over it is throttled. `None`, the default: any number.
    pub fn set_write_budget(&self, application: &str, per_second: Option<f64>) {
        self.table(application).set_budget(per_second);
    }

    /// The letters that a queue has accepted, oldest first.
    #[must_use]
    pub fn dead_letters(&self, queue: &str) -> Vec<DeadLetter> {
        self.queue(queue).all()
    }

    /// The faults in force, to look at and to change.
    ///
    /// Locked while it is held: use it at once.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.network.faults()
    }

    /// Tells an observer of everything that takes effect, from now on. It must not call the services.
    pub fn observe(&self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        self.0.network.observers.add(observer);
    }

    /// Tells nobody any more. An observer that holds these services keeps them, and itself, in memory for ever; this ends it.
    pub fn stop_observing(&self) {
        self.0.network.observers.clear();
    }

    /// Time since the services were made.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.network.elapsed()
    }

    /// The true time.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH_MILLIS + u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Starts a process on a machine; the machine is made if there is none of this name, and keeps its clock for the next process.
    #[must_use]
    pub fn host(&self, machine: &str) -> Host {
        let mut state = self.state();
        let clock = state.clocks.entry(machine.to_owned());
        let clock = clock.or_insert_with(|| SimulatedClock::new(self.0.network.epoch, EPOCH_MILLIS)).clone();
        let number = state.processes.entry(machine.to_owned()).or_default();
        *number += 1;
        let host = format!("{machine}#{number}");
        drop(state);
        let link = Link { network: Arc::clone(&self.0.network), machine: machine.into(), host: host.into() };
        Host::new(self.clone(), link, clock, Entropy::from_seed(self.0.entropy.u64()))
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.0.numbers
    }

    pub(super) fn subscribers(&self) -> &Subscribers {
        &self.0.subscribers
    }

    pub(super) fn table(&self, application: &str) -> lease_table::Store {
        self.state().tables.entry(application.to_owned()).or_insert_with(|| lease_table::Store::new(self.0.items.clone())).clone()
    }

    pub(super) fn queue(&self, name: &str) -> dead_letters::Letters {
        self.state().queues.entry(name.to_owned()).or_default().clone()
    }

    pub(super) fn blob_store(&self) -> blobs::Store {
        self.0.blobs.clone()
    }

    /// A listing of shards. `stale`: as it was so long ago, if it has changed since.
    pub(super) fn listing(&self, stream: &str, filter: ShardFilter, stale: Option<Duration>) -> Result<Vec<Shard>, ApiError> {
        let shards = self.shards_now(stream, filter)?;
        if filter != ShardFilter::All {
            return Ok(shards);
        }
        let now = self.elapsed();
        let mut state = self.state();
        let listings = state.listings.entry(stream.to_owned()).or_default();
        if listings.last().is_none_or(|(_, last)| *last != shards) {
            listings.push((now, shards));
            // A listing that is older than this is never asked for.
            let old = listings.iter().filter(|(since, _)| *since + Duration::from_secs(60) < now).count();
            listings.drain(..old.saturating_sub(1));
        }
        let asked = now.saturating_sub(stale.unwrap_or_default());
        let shown = listings.iter().rev().find(|(since, _)| *since <= asked).or(listings.first());
        Ok(shown.map(|(_, shards)| shards.clone()).unwrap_or_default())
    }

    fn shards_now(&self, stream: &str, filter: ShardFilter) -> Result<Vec<Shard>, ApiError> {
        let (stream_name, shard_filter) = (Some(stream.to_owned()), model::filter(filter));
        let mut input = ListShardsInput { stream_name, shard_filter, ..Default::default() };
        let mut shards = Vec::new();
        loop {
            let page = self.kinesis().call(input)?;
            shards.extend(page.shards.into_iter().map(|shard| self.numbers().shard(shard)));
            match page.next_token {
                Some(next_token) => input = ListShardsInput { next_token: Some(next_token), ..Default::default() },
                None => return Ok(shards),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one insertion: no panic leaves it half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimulatedAws {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimulatedAws").field("elapsed", &self.elapsed()).finish_non_exhaustive()
    }
}
