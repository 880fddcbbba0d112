//! `consumer seek` while processes of the application run, and runs that end by themselves at a bound: the program over the wire.

use serde_json::Value;

use super::child::{Consumer, program, worker};
use super::log::Log;
use crate::support::{World, eventually};

/// Runs `consumer seek`: its exit code, what it printed, and what it logged.
async fn seek(world: &World, flags: &str) -> (Option<i32>, Vec<Value>, String) {
    let mut command = program(world);
    command.args(["seek", "--application", &world.application, "--stream", &world.stream]).args(flags.split_whitespace());
    let output = tokio::time::timeout(crate::support::PATIENCE, command.output()).await.unwrap().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_application_begins_elsewhere_as_it_is_told() {
    let world = World::with_shards(2).await;
    let first = world.publish(20, 0, 100).await;
    let log = Log::default();
    let running = Consumer::start("a", worker(&world, "--lease-duration 2s"), &log);
    log.has_all(&first).await;

    let (code, lines, _) = seek(&world, "--to trim-horizon --dry-run").await;
    assert_eq!((code, &lines[2]["summary"]["leases"]), (Some(0), &2.into()), "{lines:?}");

    let (code, lines, logs) = seek(&world, "--to trim-horizon --reason a-bug").await;
    assert_eq!(code, Some(0), "{logs}");
    assert_eq!(lines[2]["summary"]["left"], 0, "{lines:?}");
    assert!(
        lines[..2].iter().all(|line| line["after"] == "TRIM_HORIZON" && line["owner"].as_str().unwrap().starts_with("a-")),
        "{lines:?}"
    );
    assert!(logs.contains("kcl::audit") && logs.contains("a-bug"), "{logs}");
    eventually("all is printed again", async || (log.all().len() == 2 * first.len()).then_some(())).await;

    let (code, lines, _) = seek(&world, "--to latest --shard shardId-000000000001").await;
    assert_eq!((code, lines.len()), (Some(0), 2), "{lines:?}");
    running.stop().await;

    for (flags, code, words) in [
        ("--to 2100-01-01T00:00:00Z", 1, "in the future"),
        ("--to 2001-01-01T00:00:00Z", 1, "24 hours"),
        ("--to latest --shard shardId-000000000009", 1, "no shard"),
        ("--at-record 7 --shard shardId-000000000000", 1, "no record 7"),
        ("--at-record 7", 2, "--shard"),
        ("", 2, "--to"),
    ] {
        let (ended, lines, logs) = seek(&world, flags).await;
        assert!(ended == Some(code) && logs.contains(words) && lines.is_empty(), "{flags}: {ended:?} {logs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_up_to_the_tip_ends_by_itself() {
    let world = World::with_shards(3).await;
    for round in 0..2 {
        let published = world.publish(40, round * 300, 300).await;
        let log = Log::default();
        let mut consumers = ["a", "b"].map(|name| Consumer::start(name, worker(&world, "--lease-duration 2s --until tip"), &log));
        for consumer in &mut consumers {
            assert_eq!(consumer.end().await.code(), Some(0));
        }
        assert_eq!(log.payloads(), published, "round {round}");
        log.assert_no_duplicates();
    }
}
