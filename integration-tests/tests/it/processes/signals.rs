//! Which signals end a program in good order, which at once, and what the quickstart leaves behind.

use std::process::Stdio;
use std::time::Duration;

use kcl_local::LocalAws;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

use super::child::{Consumer, environment, worker};
use super::log::Log;
use crate::support::{BUSY_MACHINE, PATIENCE, World, eventually};

/// Tests that run under `nohup` hand down that a hangup is ignored, and a program keeps to that. One that is caught here is not ignored by children.
fn let_hangups_reach_children() {
    drop(signal(SignalKind::hangup()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_lets_the_worker_end_in_good_order() {
    let_hangups_reach_children();
    let (world, log) = (World::with_shards(2).await, Log::default());
    let mut consumer = Consumer::start("a", worker(&world, "--lease-duration 20s"), &log);
    log.has_all(&world.publish(5, 0, 50).await).await;
    consumer.signal(Signal::HUP);
    assert_eq!(consumer.end().await.code(), Some(0), "{}", consumer.logs());
    assert!(consumer.logs().contains("worker stopped"), "{}", consumer.logs());
    for shard in ["shardId-000000000000", "shardId-000000000001"] {
        assert!(!world.item(shard).await.unwrap().contains_key("leaseOwner"), "{shard} was freed");
    }
}

/// Its standard output is a pipe that nobody reads, so that a batch never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let world = World::with_shards(1).await;
        world.publish(5, 0, 3_000).await;
        let (unread, writer) = std::io::pipe().unwrap();
        let mut command = worker(&world, "--shutdown-timeout 1h");
        let mut consumer = Consumer::start_unread("a", command.stdout(Stdio::from(writer)));
        drop(command);
        consumer.says("shard taken").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        consumer.signal(signal);
        consumer.says("worker lets go of its shards").await;
        let asked = Instant::now();
        consumer.signal(signal);
        assert_eq!(consumer.end().await.code(), Some(status), "{}", consumer.logs());
        assert!(asked.elapsed() < BUSY_MACHINE, "{:?}", asked.elapsed());
        drop(unread);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_deletes_what_it_has_made_on_every_signal() {
    let_hangups_reach_children();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let world = World::embedded(LocalAws::builder()).await;
        let url = world.local.as_ref().map(LocalAws::endpoint_url).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart-under-test"));
        environment(&mut command, Some(&url));
        command.args(["--endpoint-url", &url, "--records", "50000"]).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let sqs = aws_sdk_sqs::Client::new(&world.config);
        let made = async || {
            let streams = world.kinesis.list_streams().send().await.unwrap().stream_names;
            let tables = world.dynamodb.list_tables().send().await.unwrap().table_names.unwrap_or_default();
            let queues = sqs.list_queues().send().await.unwrap().queue_urls.unwrap_or_default();
            (streams.len(), tables.len(), queues.len())
        };
        eventually("it is at work", async || (made().await == (1, 1, 1)).then_some(())).await;
        kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
        let ended = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains("interrupted"), "{signal:?}: {:?} {said}", ended.status);
        eventually("nothing is left", async || (made().await == (0, 0, 0)).then_some(())).await;
    }
}
