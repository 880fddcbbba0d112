//! SQS through its SDK: what a dead-letter queue is used for.

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};
use kcl_local::wire::{Fault, Rule, Service};
use tokio::task::JoinSet;

use crate::support::{Aws, eventually};

async fn queue(aws: &Aws) -> String {
    aws.sqs
        .create_queue()
        .queue_name("dead-letters")
        .attributes(QueueAttributeName::MaximumMessageSize, "262144")
        .send()
        .await
        .unwrap()
        .queue_url
        .unwrap()
}

#[tokio::test]
async fn a_message_is_sent_received_and_deleted() {
    let aws = Aws::start().await;
    let url = queue(&aws).await;
    assert!(url.starts_with(&aws.local.endpoint_url()), "{url}");
    let reason = MessageAttributeValue::builder().data_type("String").string_value("poison").build().unwrap();
    aws.sqs.send_message().queue_url(&url).message_body("the record").message_attributes("reason", reason.clone()).send().await.unwrap();

    let received = aws.sqs.receive_message().queue_url(&url).message_attribute_names("All").send().await.unwrap();
    let message = &received.messages()[0];
    assert_eq!(message.body(), Some("the record"));
    assert_eq!(message.message_attributes().unwrap()["reason"], reason);

    aws.sqs.delete_message().queue_url(&url).receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
    let left =
        aws.sqs.get_queue_attributes().queue_url(&url).attribute_names(QueueAttributeName::All).send().await.unwrap().attributes.unwrap();
    assert_eq!(left[&QueueAttributeName::ApproximateNumberOfMessages], "0");
    assert_eq!(left[&QueueAttributeName::ApproximateNumberOfMessagesNotVisible], "0");
    assert_eq!(left[&QueueAttributeName::MaximumMessageSize], "262144");
}

#[tokio::test]
async fn a_message_above_the_queues_limit_is_refused() {
    let aws = Aws::start().await;
    let url = queue(&aws).await;
    let body = "x".repeat(262_144 + 1);
    let error = aws.sqs.send_message().queue_url(&url).message_body(body).send().await.unwrap_err();
    assert_eq!(error.into_service_error().meta().code(), Some("InvalidParameterValue"));
}

#[tokio::test]
async fn a_missing_queue_has_its_type() {
    let aws = Aws::start().await;
    let error = aws.sqs.get_queue_url().queue_name("nowhere").send().await.unwrap_err();
    assert!(error.into_service_error().is_queue_does_not_exist());
}

#[tokio::test]
async fn a_receiver_that_gave_up_takes_no_message() {
    let aws = Aws::start().await;
    let url = queue(&aws).await;
    let receive = || aws.sqs.receive_message().queue_url(&url).wait_time_seconds(20).send();
    let mut receivers = JoinSet::new();
    receivers.spawn(receive());
    let waits = async || aws.local.faults().requests_of(Service::Sqs, "ReceiveMessage") == 1;
    eventually("the receiver waits", waits).await;
    receivers.shutdown().await;

    aws.sqs.send_message().queue_url(&url).message_body("for the next one").send().await.unwrap();
    let received = receive().await.unwrap();
    assert_eq!(received.messages()[0].body(), Some("for the next one"));
}

fn entry(id: &str, bytes: usize) -> SendMessageBatchRequestEntry {
    SendMessageBatchRequestEntry::builder().id(id).message_body("x".repeat(bytes)).build().unwrap()
}

#[tokio::test]
async fn a_batch_has_limits_of_its_own_and_each_message_its_queues() {
    let aws = Aws::start().await;
    let url = queue(&aws).await;
    let send = |entries: Vec<_>| aws.sqs.send_message_batch().queue_url(&url).set_entries(Some(entries)).send();

    let sent = send(vec![entry("fits", 262_144), entry("large", 262_145)]).await.unwrap();
    assert_eq!(sent.successful()[0].id(), "fits");
    assert_eq!((sent.failed()[0].id(), sent.failed()[0].code()), ("large", "InvalidParameterValue"));

    send((0..4).map(|number| entry(&number.to_string(), 262_144)).collect()).await.unwrap();
    let too_long = (0..5).map(|number| entry(&number.to_string(), 209_716)).collect();
    assert!(send(too_long).await.unwrap_err().into_service_error().is_batch_request_too_long());
    assert!(send(vec![entry("a", 1), entry("a", 1)]).await.unwrap_err().into_service_error().is_batch_entry_ids_not_distinct());
    assert!(send(Vec::new()).await.unwrap_err().into_service_error().is_empty_batch_request());
    let eleven = (0..11).map(|number| entry(&number.to_string(), 1)).collect();
    assert!(send(eleven).await.unwrap_err().into_service_error().is_too_many_entries_in_batch_request());
}

#[tokio::test]
async fn a_fault_fails_single_entries_of_a_batch() {
    let aws = Aws::start().await;
    let url = queue(&aws).await;
    let fault = Fault::FailEntries { entries: &[0, 2], code: "InternalError" };
    aws.local.faults().add(Rule::new(fault).service(Service::Sqs).times(1));
    let entries = ["a", "b", "c"].map(|id| entry(id, 1));
    let sent = aws.sqs.send_message_batch().queue_url(&url).set_entries(Some(entries.into())).send().await.unwrap();
    assert_eq!(sent.successful().iter().map(|entry| entry.id()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(sent.failed().iter().map(|entry| entry.id()).collect::<Vec<_>>(), ["a", "c"]);
}
