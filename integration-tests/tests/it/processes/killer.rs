//! A record that kills each process that has it in work: it is found, and goes to the dead-letter queue.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::child::environment;
use crate::support::{World, eventually};

/// The retry policy's `max_deaths`, and two: the first death may come after a checkpoint, the second before the next.
const DEATHS: u32 = 3 + 2;

/// What it takes to start the program again and again.
#[derive(Clone)]
struct Program {
    endpoint: Option<String>,
    arguments: [String; 3],
}

impl Program {
    fn start(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_killed-by-record"));
        environment(&mut command, self.endpoint.as_deref());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_kills_its_process_is_isolated_after_its_deaths_and_two() {
    let world = World::with_shards(1).await;
    let sqs = aws_sdk_sqs::Client::new(&world.config);
    let url = sqs.create_queue().queue_name(&world.application).send().await.unwrap().queue_url.unwrap();
    let shard = "shardId-000000000000";
    let mut good = BTreeSet::new();
    for number in 0..40 {
        let text = if number == 17 { "kill".to_owned() } else { format!("good:{number}") };
        world.put(shard, &format!("key-{}", number % 5), &text).await;
        good.extend((number != 17).then_some(text));
    }

    let endpoint = world.local.as_ref().map(kcl_local::LocalAws::endpoint_url);
    let program = Program { endpoint, arguments: [world.application.clone(), world.stream.clone(), url.clone()] };
    // Two processes, each started again when it has died, as a supervisor does.
    let (lines, deaths) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let mut supervisors = JoinSet::new();
    for _ in 0..2 {
        let (lines, deaths) = (Arc::clone(&lines), Arc::clone(&deaths));
        let program = program.clone();
        supervisors.spawn(async move {
            loop {
                let mut child = program.start();
                let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
                while let Ok(Some(line)) = output.next_line().await {
                    lines.lock().unwrap().push(line);
                }
                assert!(!child.wait().await.unwrap().success());
                *deaths.lock().unwrap() += 1;
            }
        });
    }

    let letter = eventually("the record is in the queue", async || {
        let received = sqs.receive_message().queue_url(&url).wait_time_seconds(1).send().await.ok()?;
        received.messages().first().map(|message| serde_json::from_str::<Value>(message.body().unwrap()).unwrap())
    })
    .await;
    eventually("all others are processed", async || {
        let seen: BTreeSet<_> = lines.lock().unwrap().iter().cloned().collect();
        (seen == good).then_some(())
    })
    .await;
    assert_eq!(STANDARD.decode(letter["data"].as_str().unwrap()).unwrap(), b"kill");
    assert_eq!(letter["error"]["kind"], "process_death");
    assert_eq!(letter["attempts"], 3);
    let deaths = *deaths.lock().unwrap();
    println!("isolated after {deaths} deaths");
    assert!(deaths <= DEATHS, "{deaths} deaths, at most {DEATHS} are right");
}
