//! Making sure that the table exists, can be a lease table, and is ready.

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex, GlobalSecondaryIndexUpdate, KeySchemaElement,
    KeyType, MultiRegionConsistency, PointInTimeRecoverySpecification, PointInTimeRecoveryStatus, Projection, ProjectionType,
    ProvisionedThroughput, ScalarAttributeType, TableDescription, TableStatus, Tag,
};
use tokio::time::{Duration, Instant};

use super::{DynamoDbLeaseTable, attribute, error::table_error};
use crate::backoff::Backoff;
use crate::table::TableError;

/// The index by owner. We do without it; workers of the Java library find their leases by it.
const INDEX: &str = "LeaseOwnerToLeaseKeyIndex";

/// Pace of the questions while something is in the making: DescribeTable allows 10 calls a second for the whole account.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The shortest wait for a table that was just created.
const JUST_CREATED: Duration = Duration::from_secs(60);

/// Time between two lines of the log about one wait.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// All parts below are required by the SDK's builders and given here.
const COMPLETE: &str = "every required part is set";

impl DynamoDbLeaseTable {
    /// See [`LeaseTable::ensure`](crate::table::LeaseTable::ensure).
    ///
    /// A table that is not there is created, but only until this has succeeded once: a table that vanishes later took
    /// all checkpoints with it, and an empty one in its place would hide that.
    ///
    /// A table that is not ready is waited for, for as long as [`ready_timeout`] says, and for
    /// [`JUST_CREATED`] at least if this call has created it. The wait is logged.
    ///
    /// [`ready_timeout`]: super::TableOptions::ready_timeout
    pub(super) async fn ensure_ready(&self) -> Result<(), TableError> {
        let began = Instant::now();
        let mut deadline = began + self.options.ready_timeout;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.entropy);
        let mut next_line = began;
        loop {
            let status = match self.describe().await {
                Ok(table) => {
                    refuse_what_is_no_lease_table(&table).map_err(|reason| self.not_a_lease_table(reason))?;
                    let status = table.table_status().map_or("UNKNOWN", TableStatus::as_str);
                    match readiness(table.table_status()) {
                        Readiness::Ready => {
                            self.add_what_is_missing(&table, deadline).await?;
                            let _ = self.scan_segments.set(scan_segments(table.table_size_bytes().unwrap_or(0)));
                            return Ok(());
                        }
                        Readiness::Never(advice) => {
                            let reason = format!("its status is {status}: {advice}");
                            return Err(TableError::Unusable { table: self.table.clone(), reason });
                        }
                        Readiness::Later => status.to_owned(),
                    }
                }
                // DescribeTable may not know yet of a table just created; creating it again is answered with "in use".
                Err(TableError::NotFound { .. }) if self.scan_segments.get().is_none() => {
                    self.create_table().await?;
                    deadline = deadline.max(Instant::now() + JUST_CREATED);
                    "CREATING".to_owned()
                }
                Err(error) => return Err(error),
            };
            if Instant::now() >= next_line {
                let (elapsed, longest) = (began.elapsed(), deadline.duration_since(began));
                tracing::info!(table = %self.table, status, ?elapsed, ?longest, "the lease table is not ready; waiting for it");
                next_line = Instant::now() + LINE_EVERY;
            }
            let waiting_for = format!("the table is not ready, its status is {status}");
            self.pause(&mut backoff, deadline, "dynamodb:DescribeTable", &waiting_for).await?;
        }
    }

    async fn describe(&self) -> Result<TableDescription, TableError> {
        let described = self.client.describe_table().table_name(&self.table).send().await;
        let described = described.map_err(|error| table_error(&self.table, "dynamodb:DescribeTable", &error))?;
        described.table.ok_or_else(|| self.unavailable("dynamodb:DescribeTable", "the answer holds no table"))
    }

    /// Creates the table, index included. That another worker was first is as good.
    async fn create_table(&self) -> Result<(), TableError> {
        let tags = self.options.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build().expect(COMPLETE));
        let tags: Vec<_> = tags.collect();
        let created = self
            .client
            .create_table()
            .table_name(&self.table)
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text(attribute::LEASE_KEY))
            .attribute_definitions(text(attribute::LEASE_OWNER))
            .key_schema(key(attribute::LEASE_KEY, KeyType::Hash))
            .global_secondary_indexes(
                GlobalSecondaryIndex::builder()
                    .index_name(INDEX)
                    .key_schema(key(attribute::LEASE_OWNER, KeyType::Hash))
                    .key_schema(key(attribute::LEASE_KEY, KeyType::Range))
                    .projection(keys_only())
                    .build()
                    .expect(COMPLETE),
            )
            .set_tags((!tags.is_empty()).then_some(tags))
            .set_deletion_protection_enabled(self.options.deletion_protection.then_some(true))
            .send()
            .await;
        match created {
            Ok(_) => {
                tracing::info!(table = %self.table, "lease table created");
                Ok(())
            }
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
            Err(error) => Err(table_error(&self.table, "dynamodb:CreateTable", &error)),
        }
    }

    async fn add_what_is_missing(&self, table: &TableDescription, deadline: Instant) -> Result<(), TableError> {
        if table.global_secondary_indexes().iter().all(|index| index.index_name() != Some(INDEX)) {
            self.add_index(table).await;
        }
        if self.options.point_in_time_recovery {
            self.turn_on_point_in_time_recovery(deadline).await?;
        }
        Ok(())
    }

    /// Adds the index to a table of an old Java library. Nothing of ours waits for it, so no failure matters: another worker may
    /// have been first, or this one may not be allowed to.
    async fn add_index(&self, table: &TableDescription) {
        let action = CreateGlobalSecondaryIndexAction::builder()
            .index_name(INDEX)
            .key_schema(key(attribute::LEASE_OWNER, KeyType::Hash))
            .key_schema(key(attribute::LEASE_KEY, KeyType::Range))
            .projection(keys_only())
            .set_provisioned_throughput(provisioned_throughput(table))
            .build()
            .expect(COMPLETE);
        let added = self
            .client
            .update_table()
            .table_name(&self.table)
            .attribute_definitions(text(attribute::LEASE_KEY))
            .attribute_definitions(text(attribute::LEASE_OWNER))
            .global_secondary_index_updates(GlobalSecondaryIndexUpdate::builder().create(action).build())
            .send()
            .await;
        match added {
            Ok(_) => tracing::info!(table = %self.table, index = INDEX, "index added to the lease table"),
            Err(error) => {
                let error = table_error(&self.table, "dynamodb:UpdateTable", &error);
                tracing::info!(table = %self.table, index = INDEX, %error, "index not added; only workers of the Java library need it");
            }
        }
    }

    async fn turn_on_point_in_time_recovery(&self, deadline: Instant) -> Result<(), TableError> {
        let described = self.client.describe_continuous_backups().table_name(&self.table).send().await;
        let described = described.map_err(|error| table_error(&self.table, "dynamodb:DescribeContinuousBackups", &error))?;
        let status = described
            .continuous_backups_description()
            .and_then(|backups| backups.point_in_time_recovery_description())
            .and_then(|recovery| recovery.point_in_time_recovery_status());
        if status == Some(&PointInTimeRecoveryStatus::Enabled) {
            return Ok(());
        }
        let operation = "dynamodb:UpdateContinuousBackups";
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.entropy);
        loop {
            let on = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build().expect(COMPLETE);
            let updated =
                self.client.update_continuous_backups().table_name(&self.table).point_in_time_recovery_specification(on).send().await;
            match updated {
                Ok(_) => return Ok(()),
                // Backups of a new table are in the making for a while.
                Err(error) if error.code() == Some("ContinuousBackupsUnavailableException") => {
                    self.pause(&mut backoff, deadline, operation, "point-in-time recovery can't be turned on yet").await?;
                }
                Err(error) => return Err(table_error(&self.table, operation, &error)),
            }
        }
    }

    /// Waits before the next question, up to the deadline, or gives up if that has passed.
    async fn pause(&self, backoff: &mut Backoff, deadline: Instant, operation: &'static str, waiting_for: &str) -> Result<(), TableError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.unavailable(operation, &format!("{waiting_for}, and it was waited for long enough")));
        }
        tokio::time::sleep(backoff.next_wait().min(left)).await;
        Ok(())
    }

    fn not_a_lease_table(&self, reason: String) -> TableError {
        TableError::NotALeaseTable { table: self.table.clone(), reason }
    }
}

/// What a table's status means for a worker that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    Ready,
    /// It becomes ready, or goes and can be created again, without anybody doing anything.
    Later,
    /// Somebody must do this.
    Never(&'static str),
}

fn readiness(status: Option<&TableStatus>) -> Readiness {
    match status {
        Some(TableStatus::Active | TableStatus::Updating) => Readiness::Ready,
        Some(TableStatus::InaccessibleEncryptionCredentials) => Readiness::Never(
            "DynamoDB can't use its KMS key; enable the key or restore DynamoDB's access to it, within the seven days after which the table \
             is archived",
        ),
        Some(TableStatus::Archiving | TableStatus::Archived) => Readiness::Never(
            "its KMS key was out of DynamoDB's reach for more than seven days; restore the table from the backup that DynamoDB made of it, or \
             choose another table name",
        ),
        _ => Readiness::Later,
    }
}

/// Whether the table can hold leases; if not, why.
fn refuse_what_is_no_lease_table(table: &TableDescription) -> Result<(), String> {
    let keys: Vec<_> = table.key_schema().iter().map(|key| (key.attribute_name(), key.key_type().as_str())).collect();
    if keys != [(attribute::LEASE_KEY, "HASH")] {
        let found: Vec<_> = keys.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        return Err(format!("its key is ({}) and must be ({} HASH)", found.join(", "), attribute::LEASE_KEY));
    }
    let key = table.attribute_definitions().iter().find(|it| it.attribute_name() == attribute::LEASE_KEY);
    if let Some(key) = key.filter(|key| key.attribute_type() != &ScalarAttributeType::S) {
        return Err(format!("its key is of type {} and must be of type S", key.attribute_type().as_str()));
    }
    // The last writer wins between the regions of an ordinary global table: conditional writes in two of them can both succeed.
    if !table.replicas().is_empty() && table.multi_region_consistency() != Some(&MultiRegionConsistency::Strong) {
        let regions: Vec<_> = table.replicas().iter().filter_map(|replica| replica.region_name()).collect();
        return Err(format!(
            "it is a global table (replicas in {}) without multi-region strong consistency, so that two workers could own one shard",
            regions.join(", ")
        ));
    }
    Ok(())
}

/// Parallel readers of a table of this size: the Java library's rule, one for each 0.2 GiB, at least 1 and at most 32.
fn scan_segments(table_size_bytes: i64) -> i32 {
    const BYTES_PER_SEGMENT: i64 = (1 << 30) / 5;
    let segments = table_size_bytes.max(0).saturating_add(BYTES_PER_SEGMENT - 1) / BYTES_PER_SEGMENT;
    i32::try_from(segments.clamp(1, 32)).unwrap_or(32)
}

/// An index of a table with provisioned throughput needs its own: as much as the table's, like the Java library's.
fn provisioned_throughput(table: &TableDescription) -> Option<ProvisionedThroughput> {
    let throughput = table.provisioned_throughput()?;
    let (read, write) = (throughput.read_capacity_units()?, throughput.write_capacity_units()?);
    // An on-demand table says 0.
    (read > 0 && write > 0)
        .then(|| ProvisionedThroughput::builder().read_capacity_units(read).write_capacity_units(write).build().expect(COMPLETE))
}

fn text(attribute: &str) -> AttributeDefinition {
    AttributeDefinition::builder().attribute_name(attribute).attribute_type(ScalarAttributeType::S).build().expect(COMPLETE)
}

fn key(attribute: &str, key_type: KeyType) -> KeySchemaElement {
    KeySchemaElement::builder().attribute_name(attribute).key_type(key_type).build().expect(COMPLETE)
}

fn keys_only() -> Projection {
    Projection::builder().projection_type(ProjectionType::KeysOnly).build()
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::{ProvisionedThroughputDescription, ReplicaDescription};

    use super::*;

    #[test]
    fn a_table_of_another_shape_or_of_many_regions_is_refused() {
        let lease_table = || TableDescription::builder().key_schema(key("leaseKey", KeyType::Hash));
        let replica = || ReplicaDescription::builder().region_name("eu-west-1").build();
        for (table, reason) in [
            (lease_table(), None),
            (lease_table().attribute_definitions(text("leaseKey")), None),
            (lease_table().replicas(replica()).multi_region_consistency(MultiRegionConsistency::Strong), None),
            (TableDescription::builder().key_schema(key("wid", KeyType::Hash)), Some("its key is (wid HASH) and must be (leaseKey HASH)")),
            (lease_table().key_schema(key("at", KeyType::Range)), Some("its key is (leaseKey HASH, at RANGE) and must be (leaseKey HASH)")),
            (
                lease_table().attribute_definitions(
                    AttributeDefinition::builder()
                        .attribute_name("leaseKey")
                        .attribute_type(ScalarAttributeType::N)
                        .build()
                        .expect(COMPLETE),
                ),
                Some("its key is of type N and must be of type S"),
            ),
            (
                lease_table().replicas(replica()),
                Some(
                    "it is a global table (replicas in eu-west-1) without multi-region strong consistency, so that two workers could own \
                     one shard",
                ),
            ),
        ] {
            assert_eq!(refuse_what_is_no_lease_table(&table.build()).err().as_deref(), reason);
        }
    }

    #[test]
    fn only_states_that_pass_by_themselves_are_waited_for() {
        use Readiness::{Later, Never, Ready};
        for (status, expected) in [
            ("ACTIVE", Ready),
            ("UPDATING", Ready),
            ("CREATING", Later),
            ("DELETING", Later),
            ("a state of a later version", Later),
            ("INACCESSIBLE_ENCRYPTION_CREDENTIALS", Never("KMS key")),
            ("ARCHIVING", Never("backup")),
            ("ARCHIVED", Never("backup")),
        ] {
            match (readiness(Some(&TableStatus::from(status))), expected) {
                (Never(advice), Never(part)) => assert!(advice.contains(part), "{status}: {advice}"),
                (is, expected) => assert_eq!(is, expected, "{status}"),
            }
        }
        assert_eq!(readiness(None), Later);
    }

    #[test]
    fn the_number_of_readers_follows_the_size() {
        let fifth = (1i64 << 30) / 5;
        for (bytes, expected) in [(-1, 1), (0, 1), (1, 1), (fifth, 1), (fifth + 1, 2), (10 * fifth, 10), (1 << 40, 32), (i64::MAX, 32)] {
            assert_eq!(scan_segments(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn the_index_gets_throughput_only_where_the_table_has_some() {
        let table = |units: i64| {
            let throughput = ProvisionedThroughputDescription::builder().read_capacity_units(units).write_capacity_units(units).build();
            TableDescription::builder().provisioned_throughput(throughput).build()
        };
        assert_eq!(provisioned_throughput(&table(0)), None);
        assert_eq!(provisioned_throughput(&TableDescription::builder().build()), None);
        assert_eq!(provisioned_throughput(&table(10)).unwrap().read_capacity_units(), 10);
    }
}
