//! What becomes of a worker whose lease table is wrong in a way that no error says.

use std::sync::Arc;
use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerError, async_trait};
use tokio::time::timeout;

use super::fleet::{APPLICATION, STREAM};
use super::struck_table::StruckTable;

const FIRST: &str = "shardId-000000000000";

struct Nothing;

#[async_trait]
impl RecordProcessor for Nothing {
    async fn process_records(&mut self, _: &RecordBatch, _: &ShardContext) -> ProcessResult {
        Ok(Outcome::Done)
    }
}

/// At the take, at the first renewal, and later: the worker says so, and frees its other lease.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_panics_ends_the_worker_with_an_error() {
    for renewals in [0, 1, 4] {
        let aws = SimulatedAws::new(1);
        aws.create_stream(STREAM, 2);
        let host = aws.host("a");
        // At a write of the first shard's lease, once it has been renewed this often.
        let table = StruckTable::new(host.lease_table(APPLICATION), move |write, row| {
            assert!(write.shard_id.as_str() != FIRST || row.is_some_and(|row| row.counter < renewals), "this table panics");
            Ok(())
        });
        let builder = host.worker(APPLICATION, STREAM).lease_table(Arc::new(table)).processor(|_: &ShardContext| Nothing);
        let worker = builder.build().await.unwrap();
        let ended = timeout(Duration::from_secs(120), host.run(worker.run())).await.expect("it ends");
        let error = ended.unwrap_err();
        assert!(matches!(&error, WorkerError::LeaseKeeping { reason } if reason.contains("this table panics")), "{error}");
        assert!(error.to_string().contains(FIRST), "{error}");
        let owners: Vec<_> = aws.leases(APPLICATION).into_iter().map(|lease| lease.owner.is_some()).collect();
        assert_eq!(owners, [renewals > 0, false], "nobody can write the first one's row any more");
    }
}
