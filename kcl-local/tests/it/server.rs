//! Starting, stopping, and being used by many at once.

use kcl_local::LocalAws;
use kcl_local::wire::{Service, StartError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Aws, eventually, number, string};

#[tokio::test]
async fn servers_live_side_by_side_with_data_of_their_own() {
    let (one, other) = (Aws::start().await, Aws::start().await);
    one.stream("orders", 1).await;
    assert_eq!(one.kinesis.list_streams().send().await.unwrap().stream_names, ["orders"]);
    assert!(other.kinesis.list_streams().send().await.unwrap().stream_names.is_empty());
}

#[tokio::test]
async fn a_port_in_use_is_said_so() {
    let first = LocalAws::start().await.unwrap();
    let port = first.address().port();
    let second = LocalAws::builder().port(port).start().await;
    assert!(matches!(second, Err(StartError::PortInUse { port: named }) if named == port));
}

#[tokio::test]
async fn a_server_that_was_shut_down_leaves_its_port_free() {
    let aws = Aws::start().await;
    aws.stream("orders", 1).await;
    let port = aws.local.address().port();
    aws.local.shutdown().await;
    assert!(aws.kinesis.list_streams().send().await.is_err());
    let again = LocalAws::builder().port(port).start().await.unwrap();
    assert_eq!(again.address().port(), port);
}

#[tokio::test]
async fn a_dropped_server_stops() {
    let local = LocalAws::start().await.unwrap();
    let address = local.address();
    TcpStream::connect(address).await.unwrap();
    drop(local);
    eventually("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_clients_are_served_at_once() {
    const CLIENTS: u64 = 32;
    const CALLS: u64 = 10;
    let aws = Aws::start().await;
    aws.stream("orders", 1).await;
    aws.table("leases").await;
    aws.put_lease("leases", "shared", 0).await;
    let queue = aws.sqs.create_queue().queue_name("letters").send().await.unwrap().queue_url.unwrap();

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        // New clients, so that each has connections of its own.
        let config = aws.local.sdk_config();
        let (kinesis, dynamodb, sqs) =
            (aws_sdk_kinesis::Client::new(&config), aws_sdk_dynamodb::Client::new(&config), aws_sdk_sqs::Client::new(&config));
        let queue = queue.clone();
        clients.spawn(async move {
            for call in 0..CALLS {
                let text = format!("{client}/{call}");
                kinesis
                    .put_record()
                    .stream_name("orders")
                    .partition_key(&text)
                    .data(text.clone().into_bytes().into())
                    .send()
                    .await
                    .unwrap();
                dynamodb
                    .update_item()
                    .table_name("leases")
                    .key("leaseKey", string("shared"))
                    .update_expression("ADD leaseCounter :one")
                    .expression_attribute_values(":one", number(1))
                    .send()
                    .await
                    .unwrap();
                sqs.send_message().queue_url(&queue).message_body(&text).send().await.unwrap();
            }
        });
    }
    clients.join_all().await;

    assert_eq!(aws.counter("leases", "shared").await, Some(CLIENTS * CALLS));
    for (service, operation) in [(Service::Kinesis, "PutRecord"), (Service::DynamoDb, "UpdateItem"), (Service::Sqs, "SendMessage")] {
        assert_eq!(aws.local.faults().requests_of(service, operation), CLIENTS * CALLS, "{operation}");
    }
}
