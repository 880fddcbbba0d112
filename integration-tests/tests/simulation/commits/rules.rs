//! What a commit covers, what it refuses, and what comes again when a call fails after it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Cut, SimulatedAws};
use kcl_core::{
    Checkpoint, CheckpointError, Checkpointing, CommitError, ExtendedSequenceNumber, Lanes, Outcome, PoisonedKey, ProcessError,
    ProcessResult, RecordBatch, RecordProcessor, RetryPolicy, ShardContext, async_trait,
};
use tokio::time::sleep;

use super::scene::{APPLICATION, Scene, Service, text, until};

const MACHINE: &str = "m";

/// What a processor does with its first batch; it commits all of the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Commits this many records, and fails then.
    CommitThen(usize, End),
    /// Checkpoints this many records, without a commit, and fails then.
    CheckpointThen(usize, End),
    /// Goes through the batch in order, commits its first record, and then tries to commit the others together, which refuse it.
    CollectInOrder,
    /// Commits all while no answer comes.
    CommitUnanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fails,
    FailsInOrder,
    Panics,
    Overruns,
}

/// What processors have seen. Clones share it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Vec<String>>>>);

impl Seen {
    fn batches(&self) -> Vec<Vec<String>> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Acting {
    act: Act,
    seen: Seen,
    service: Service,
    aws: SimulatedAws,
}

#[async_trait]
impl RecordProcessor for Acting {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let is_first = {
            let mut seen = self.seen.0.lock().unwrap();
            seen.push(batch.records().iter().map(text).collect());
            seen.len() == 1
        };
        let records = batch.records();
        let effects = |count: usize| records[..count].iter().map(|record| self.service.effect(record)).collect();
        if !is_first {
            shard.commit(effects(records.len()), records).await?;
            return Ok(Outcome::Done);
        }
        let end = match self.act {
            Act::CommitThen(count, end) => {
                shard.commit(effects(count), &records[..count]).await?;
                end
            }
            Act::CheckpointThen(count, end) => {
                shard.checkpointer().checkpoint_at(records[count - 1].position()).await?;
                end
            }
            Act::CollectInOrder => {
                shard.commit(effects(1), &records[..1]).await?;
                // The table that these are for does not exist.
                let lost = (1..records.len()).map(|_| rules_of_nobody()).collect();
                shard.commit(lost, &records[1..]).await?;
                unreachable!("it is refused");
            }
            Act::CommitUnanswered => {
                let until = self.aws.elapsed() + Duration::from_secs(60);
                self.aws.faults().partition(MACHINE, kcl_core::test_util::Service::LeaseTable, Cut::Answers, until);
                // Its deadline is over before anybody knows.
                shard.commit(effects(records.len()), records).await?;
                unreachable!("no answer comes");
            }
        };
        match end {
            End::Fails => Err(ProcessError::retry("a failure after it")),
            End::FailsInOrder => {
                let (Act::CommitThen(count, _) | Act::CheckpointThen(count, _)) = self.act else { unreachable!() };
                let error = ProcessError::retry("a failure after it, with its last record in work");
                Ok(Outcome::failed_from(&records[count - 1], error))
            }
            End::Panics => panic!("a bug of the service"),
            End::Overruns => std::future::pending().await,
        }
    }
}

/// An effect in a table that does not exist.
fn rules_of_nobody() -> kcl_core::aws_sdk_dynamodb::types::TransactWriteItem {
    use kcl_core::aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
    let put = Put::builder().table_name("no-such-table").item("id", AttributeValue::S("x".into())).build().unwrap();
    TransactWriteItem::builder().put(put).build()
}

/// Five records in one batch, and what a processor that acts so sees of them.
async fn five_records(seed: u64, act: Act) -> (Scene, Vec<Vec<String>>) {
    let mut scene = Scene::new(seed, 1);
    scene.publish(5);
    let (seen, service) = (Seen::default(), Service::new(1, (super::scene::Mishap::Nothing, 1)));
    let acting = Acting { act, seen: seen.clone(), service: service.clone(), aws: scene.aws.clone() };
    let running = scene.start(MACHINE, &service, |builder| {
        let acting = acting.clone();
        builder.processor(move |_: &ShardContext| acting.clone())
    });
    let running = running.await;
    let last = || scene.aws.leases(APPLICATION).first()?.checkpoint.record().map(|record| record.sequence_number);
    until("the first batch is delivered", || !seen.batches().is_empty()).await;
    let number = scene.aws.put(super::scene::STREAM, "key", "the last").1;
    until("all is checkpointed", || last() == Some(number)).await;
    let shown = || running.handle.status().shards.into_values().next().and_then(|status| status.checkpoint.record());
    until("the worker shows it", || shown().map(|record| record.sequence_number) == Some(number)).await;
    running.handle.shutdown();
    (scene, seen.batches())
}

fn names(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("record-{number}")).collect()
}

/// With automatic checkpoints and with manual ones.
#[tokio::test(start_paused = true)]
async fn what_was_committed_does_not_come_again_when_the_call_fails() {
    for seed in [2, 3] {
        for end in [End::Fails, End::FailsInOrder, End::Panics, End::Overruns] {
            for count in [1, 3, 5] {
                for act in [Act::CommitThen(count, end), Act::CheckpointThen(count, end)] {
                    let (_, batches) = five_records(seed, act).await;
                    let mut delivered: Vec<_> = batches[1..].concat();
                    assert_eq!(delivered.pop().as_deref(), Some("the last"), "{act:?}");
                    assert_eq!((batches[0].len(), delivered), (5, names(count as u64..5)), "{act:?}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_collected_and_not_committed_is_not_lost() {
    let (scene, batches) = five_records(2, Act::CollectInOrder).await;
    assert_eq!(batches[1..].concat()[..4], names(1..5));
    assert!(scene.effects().values().all(|times| *times == 1), "{:?}", scene.effects());
    assert_eq!(scene.effects().len(), 6);
}

/// The records wait until it is known that they are committed, and then none comes again.
#[tokio::test(start_paused = true)]
async fn a_commit_without_an_answer_is_settled_before_anything_comes_again() {
    for seed in [2, 3] {
        let (scene, batches) = five_records(seed, Act::CommitUnanswered).await;
        assert_eq!(batches, [names(0..5), vec!["the last".to_owned()]]);
        assert!(scene.effects().values().all(|times| *times == 1));
    }
}

/// Tries what must not be, tells what it was told, and then commits.
#[derive(Clone)]
struct Curious {
    told: Arc<Mutex<Vec<String>>>,
    service: Service,
}

fn kind(result: Result<(), CommitError>) -> String {
    match result {
        Ok(()) => "committed".to_owned(),
        Err(CommitError::Refused(items)) => format!("refused by {:?}", items.iter().map(|item| item.index).collect::<Vec<_>>()),
        Err(error) => format!("{error:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned(),
    }
}

#[async_trait]
impl RecordProcessor for Curious {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let records = batch.records();
        let effects = |count: usize| (0..count).map(|_| self.service.effect(&records[0])).collect::<Vec<_>>();
        let mut told = Vec::new();
        told.push(kind(shard.commit(vec![], &[]).await));
        told.push(kind(shard.commit(effects(100), records).await));
        let beyond = ExtendedSequenceNumber::whole("9".repeat(56).parse().unwrap());
        told.push(kind(shard.commit_span(vec![], records[0].position()..=beyond).await));
        told.push(kind(shard.commit(vec![rules_of_nobody()], records).await));
        told.push(kind(shard.commit(effects(1), &records[1..]).await));
        told.push(kind(shard.commit(effects(99), &records[..1]).await));
        told.push(kind(shard.commit(effects(1), &records[..1]).await));
        told.push(kind(shard.commit(effects(1), records).await));
        // nothing was written by those that were refused, and the rest goes on; without items it is a checkpoint
        told.push(kind(shard.commit(vec![], &records[1..]).await));
        let back = shard.checkpointer().checkpoint_at(records[0].position()).await;
        assert!(matches!(back, Err(CheckpointError::Backwards { .. })), "{back:?}");
        *self.told.lock().unwrap() = told;
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_commit_refuses() {
    for seed in [2, 3] {
        let mut scene = Scene::new(seed, 1);
        scene.publish(3);
        let curious = Curious { told: Arc::default(), service: Service::new(1, (super::scene::Mishap::Nothing, 1)) };
        let acting = curious.clone();
        let running = scene.start(MACHINE, &curious.service, |builder| {
            builder.processor({
                let acting = acting.clone();
                move |_: &ShardContext| acting.clone()
            })
        });
        let running = running.await;
        until("it has asked", || !curious.told.lock().unwrap().is_empty()).await;
        let expected = [
            "NoRecords",
            "Items",
            "NotDelivered",
            "Rejected",
            "OutOfTurn",
            "committed",
            "AlreadyCommitted",
            "AlreadyCommitted",
            "committed",
        ];
        assert_eq!(*curious.told.lock().unwrap(), expected);
        assert_eq!(scene.effects().into_values().collect::<Vec<_>>(), [99]);
        running.handle.shutdown();
    }
}

/// Refuses what says so, and commits the others together.
#[derive(Clone)]
struct Sorting(Service);

#[async_trait]
impl RecordProcessor for Sorting {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let poison = batch.records().iter().position(|record| text(record).starts_with("poison"));
        let good = &batch.records()[..poison.unwrap_or(batch.len())];
        if !good.is_empty() {
            shard.commit(good.iter().map(|record| self.0.effect(record)).collect(), good).await?;
        }
        Ok(match poison {
            Some(poison) => Outcome::failed_from(&batch.records()[poison], ProcessError::poison("it is poison")),
            None => Outcome::Done,
        })
    }
}

/// A commit covers all before it, so what comes after a dead letter waits for the queue, also where it would pass: else its commits would be refused
/// until it failed too.
#[tokio::test(start_paused = true)]
async fn nothing_is_called_for_a_commit_while_a_dead_letter_is_on_its_way() {
    for policy in [PoisonedKey::Wait, PoisonedKey::Pass, PoisonedKey::Follow] {
        let mut scene = Scene::new(2, 1);
        scene.publish(3);
        let service = Service::new(1, (super::scene::Mishap::Nothing, 1));
        let queue = scene.aws.host(MACHINE).dead_letter_queue("orders-dlq");
        let sorting = Sorting(service.clone());
        let running = scene.start(MACHINE, &service, |builder| {
            let sorting = sorting.clone();
            let retry = RetryPolicy { max_attempts: 3, patience: Duration::ZERO, ..RetryPolicy::default() };
            let builder = builder.poisoned_key(policy).dead_letter_queue(queue.clone()).retry_policy(retry);
            builder.processor(move |_: &ShardContext| sorting.clone())
        });
        let running = running.await;
        until("it commits", || scene.all_have_effect()).await;
        let until_then = scene.aws.elapsed() + Duration::from_secs(600);
        scene.aws.faults().outage(kcl_core::test_util::Service::DeadLetters, until_then);
        // The poisoned key's next record, too.
        for (key, what) in [("key-0", "poison"), ("key-9", "other 1"), ("key-0", "poison 2"), ("key-9", "other 2")] {
            scene.aws.put(super::scene::STREAM, key, what.to_owned());
        }
        sleep(Duration::from_secs(590)).await;
        assert_eq!(scene.effects().len(), 3, "{policy:?}: nothing passes");
        until("the others have their effect", || scene.effects().len() == 5).await;
        let letters: Vec<_> = scene.aws.dead_letters("orders-dlq").iter().map(|letter| text(&letter.record)).collect();
        assert_eq!(letters, ["poison", "poison 2"], "{policy:?}");
        assert!(scene.effects().values().all(|times| *times == 1));
        running.handle.shutdown();
    }
}

/// With several lanes no commit is possible: it says so, and what fails by that is not passed over.
#[tokio::test(start_paused = true)]
async fn several_lanes_can_not_commit() {
    let mut scene = Scene::new(2, 1);
    scene.checkpointing = Checkpointing::Automatic { interval: Duration::from_secs(1) };
    scene.publish(20);
    let service = Service::new(5, (super::scene::Mishap::Nothing, 1));
    let running = scene.start(MACHINE, &service, |builder| builder.lanes(Lanes::new(4))).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(scene.effects().len(), 0);
    assert_eq!(scene.aws.leases(APPLICATION)[0].checkpoint, Checkpoint::TrimHorizon);
    running.handle.shutdown();
    let words = CommitError::SeveralLanes { lanes: 4 }.to_string();
    assert!(words.contains("lanes: 1") && words.contains("has 4"), "{words}");
}
