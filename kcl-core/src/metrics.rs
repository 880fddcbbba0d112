//! OpenTelemetry instruments: few, each with a unit, none with a label that grows.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};

/// What a worker counts. Labels: application and stream; of dead letters, their kind too.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    labels: [KeyValue; 2],
    records: Counter<u64>,
    bytes: Counter<u64>,
    process_time: Histogram<f64>,
    lag: Histogram<f64>,
    retries: Counter<u64>,
    rewinds: Counter<u64>,
    dead_letters: Counter<u64>,
    gaps: Counter<u64>,
    skips: Counter<u64>,
    skipped: Counter<f64>,
    spared: Counter<u64>,
    elsewhere: Counter<u64>,
    dropped_aggregates: Counter<u64>,
    leases: UpDownCounter<i64>,
    leases_lost: Counter<u64>,
    panics: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter, application: &str, stream: &str) -> Self {
        Self {
            labels: [KeyValue::new("application", application.to_owned()), KeyValue::new("stream", stream.to_owned())],
            records: meter.u64_counter("kcl.records").with_unit("{record}").with_description("Records finished").build(),
            bytes: meter.u64_counter("kcl.bytes").with_unit("By").with_description("Bytes of finished records").build(),
            process_time: meter
                .f64_histogram("kcl.process.duration")
                .with_unit("s")
                .with_description("Duration of calls of process_records")
                .build(),
            lag: meter
                .f64_histogram("kcl.lag")
                .with_unit("s")
                .with_description("How far reads were behind the newest record of their shard")
                .build(),
            retries: meter.u64_counter("kcl.retries").with_unit("{attempt}").with_description("Failed attempts at records").build(),
            rewinds: meter
                .u64_counter("kcl.rewinds")
                .with_unit("{rewind}")
                .with_description(
                    "Times that a processor was lost with what it had collected, and its shard was read from the checkpoint on",
                )
                .build(),
            dead_letters: meter
                .u64_counter("kcl.dead_letters")
                .with_unit("{record}")
                .with_description("Records accepted by the dead-letter queue")
                .build(),
            gaps: meter
                .u64_counter("kcl.gaps")
                .with_unit("{gap}")
                .with_description("Terms that went on although records may have been trimmed unread")
                .build(),
            skips: meter
                .u64_counter("kcl.skips")
                .with_unit("{skip}")
                .with_description("Times that a shard was too far behind and left out what it had not read, as configured")
                .build(),
            skipped: meter
                .f64_counter("kcl.skipped")
                .with_unit("s")
                .with_description("How far behind the shards were that left out what they had not read")
                .build(),
            spared: meter
                .u64_counter("kcl.records.spared")
                .with_unit("{record}")
                .with_description("Records beyond the checkpoint that an earlier term had finished, and that were not delivered again")
                .build(),
            elsewhere: meter
                .u64_counter("kcl.records.elsewhere")
                .with_unit("{record}")
                .with_description("Delivered records of aggregates whose keys belong to another shard")
                .build(),
            dropped_aggregates: meter
                .u64_counter("kcl.aggregates.dropped")
                .with_unit("{record}")
                .with_description("Aggregates with records of other shards that were dropped, as configured")
                .build(),
            leases: meter.i64_up_down_counter("kcl.leases").with_unit("{lease}").with_description("Leases held").build(),
            leases_lost: meter
                .u64_counter("kcl.leases.lost")
                .with_unit("{lease}")
                .with_description("Leases that other workers took from this one")
                .build(),
            panics: meter
                .u64_counter("kcl.panics")
                .with_unit("{panic}")
                .with_description("Panics of processors, and of ports given to the worker")
                .build(),
        }
    }

    pub(crate) fn finished(&self, records: u64, bytes: u64) {
        self.records.add(records, &self.labels);
        self.bytes.add(bytes, &self.labels);
    }

    pub(crate) fn processed_in(&self, seconds: f64) {
        self.process_time.record(seconds, &self.labels);
    }

    pub(crate) fn behind(&self, millis: u64) {
        #[allow(clippy::cast_precision_loss)] // milliseconds of at most a year
        self.lag.record(millis as f64 / 1000.0, &self.labels);
    }

    pub(crate) fn retried(&self) {
        self.retries.add(1, &self.labels);
    }

    pub(crate) fn panicked(&self) {
        self.panics.add(1, &self.labels);
    }

    pub(crate) fn rewound(&self) {
        self.rewinds.add(1, &self.labels);
    }

    /// `kind`: one of a handful, see [`FailureKind`](crate::dead_letter::FailureKind).
    pub(crate) fn dead_lettered(&self, kind: &'static str) {
        let [application, stream] = self.labels.clone();
        self.dead_letters.add(1, &[application, stream, KeyValue::new("kind", kind)]);
    }

    pub(crate) fn spared(&self) {
        self.spared.add(1, &self.labels);
    }

    pub(crate) fn elsewhere(&self, records: u64) {
        self.elsewhere.add(records, &self.labels);
    }

    pub(crate) fn dropped_aggregate(&self) {
        self.dropped_aggregates.add(1, &self.labels);
    }

    pub(crate) fn gap(&self) {
        self.gaps.add(1, &self.labels);
    }

    /// `millis`: how far behind the shard was.
    pub(crate) fn skipped(&self, millis: u64) {
        self.skips.add(1, &self.labels);
        #[allow(clippy::cast_precision_loss)] // milliseconds of at most a year
        self.skipped.add(millis as f64 / 1000.0, &self.labels);
    }

    pub(crate) fn lease_taken(&self) {
        self.leases.add(1, &self.labels);
    }

    pub(crate) fn lease_left(&self, lost: bool) {
        self.leases.add(-1, &self.labels);
        if lost {
            self.leases_lost.add(1, &self.labels);
        }
    }
}
