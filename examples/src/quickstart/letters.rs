//! Reads the dead-letter queue as an operator's tool would, and notes in the ledger whose letters are there.

use anyhow::Context as _;
use aws_sdk_sqs::Client;
use kcl_core::{SequenceNumber, ShardId};
use serde::Deserialize;

use super::ledger::Ledger;

/// What names the record, of all that a letter says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Letter {
    shard_id: String,
    sequence_number: String,
}

/// Takes letters from the queue, for as long as it is run.
///
/// # Errors
/// When the queue can't be read, or has a message that is no dead letter.
pub async fn collect(sqs: &Client, queue_url: &str, ledger: &Ledger) -> anyhow::Result<std::convert::Infallible> {
    loop {
        let received = sqs.receive_message().queue_url(queue_url).max_number_of_messages(10).wait_time_seconds(1).send().await;
        for message in received.context("the dead-letter queue can't be read")?.messages() {
            let (shard, number) =
                address(message.body().unwrap_or_default()).context("a message of the dead-letter queue is no dead letter")?;
            ledger.dead_lettered(&shard, number);
            if let Some(receipt) = message.receipt_handle() {
                let deleted = sqs.delete_message().queue_url(queue_url).receipt_handle(receipt).send().await;
                deleted.context("a message of the dead-letter queue can't be deleted")?;
            }
        }
    }
}

/// Whose letter it is.
fn address(body: &str) -> anyhow::Result<(ShardId, SequenceNumber)> {
    let letter: Letter = serde_json::from_str(body)?;
    Ok((ShardId::from(letter.shard_id), letter.sequence_number.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_names_its_record() {
        let letter = r#"{"version":"1","shardId":"shardId-000000000001","sequenceNumber":"42","data":"eA=="}"#;
        assert_eq!(address(letter).unwrap(), (ShardId::from("shardId-000000000001"), SequenceNumber::from(42)));
        assert!(address("hello").is_err());
        assert!(address(r#"{"shardId":"shardId-000000000001","sequenceNumber":"x"}"#).is_err());
    }
}
