//! A worker whose process dies of a record: one whose data is `kill` aborts it, as running out of memory or a bug in foreign code would. For the tests
//! of what a fleet makes of that. Arguments: application, stream, dead-letter queue. AWS as the environment says. Each record that is processed is a
//! line on standard output.

use std::time::Duration;

use kcl_core::{
    ProcessError, Record, RecordHandler, ShardContext, SqsDeadLetterQueue, Worker, WorkerError, async_trait, aws_config, shutdown_signal,
};

struct Mortal;

#[async_trait]
impl RecordHandler for Mortal {
    async fn handle(&self, record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
        if record.data().as_ref() == b"kill" {
            std::process::abort();
        }
        println!("{}", String::from_utf8_lossy(record.data()));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), WorkerError> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (application, stream, queue) = (next(), next(), next());
    let aws = aws_config::load_from_env().await;
    Worker::builder(application, stream)
        .aws_config(&aws)
        .lease_duration(Duration::from_secs(1))
        .handler(Mortal)
        .dead_letter_queue(SqsDeadLetterQueue::new(&aws, queue))
        .build()
        .await?
        .run_until(shutdown_signal())
        .await
}
