//! A committing process is killed at every point, exhaustively; another one goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kcl_core::test_util::{Event, FaultRates};
use tokio::time::sleep;

use super::scene::{Mishap, Scene, Service, until};

/// When a process dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// With its so-maniest write of a lease, commits included, in effect and not yet answered.
    AfterWrite(u64),
    /// With its so-maniest commit on the way.
    CommitSent(u64),
    /// At its so-maniest poll, at whichever await that is.
    AtPoll(u64),
}

/// One worker commits; another one comes and asks for one of its two shards; the first dies. Returns whether it came to that.
async fn dies(seed: u64, death: Death, rates: FaultRates) -> bool {
    let name = format!("{death:?}, seed {seed}");
    let mut scene = Scene::new(seed, 2);
    let service = Service::new(2, (Mishap::Fails, 5));
    scene.publish(12);
    let first = scene.start("first", &service, |builder| builder).await;
    until("the first worker has begun", || scene.effects().len() >= 4).await;
    scene.aws.faults().set_rates(rates);
    let (host, left) = (first.host.clone(), AtomicU64::new(0));
    match death {
        Death::AtPoll(poll) => first.host.kill_at_poll(poll),
        Death::AfterWrite(number) | Death::CommitSent(number) => left.store(number, Ordering::Relaxed),
    }
    let victim = Arc::new(host);
    let doomed = Arc::clone(&victim);
    scene.aws.observe(move |event| {
        let counts = match event {
            Event::LeaseWritten { host, .. } => matches!(death, Death::AfterWrite(_)) && *host == doomed.name(),
            Event::Sent { host, operation, .. } => {
                matches!(death, Death::CommitSent(_)) && *host == doomed.name() && *operation == "dynamodb:TransactWriteItems"
            }
            _ => false,
        };
        if counts && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            doomed.kill();
        }
    });
    let _second = scene.start("second", &service, |builder| builder).await;
    for _ in 0..8 {
        scene.publish(6);
        sleep(Duration::from_secs(1)).await;
    }
    scene.aws.faults().clear();
    scene.settle().await;
    scene.assert_once(&name);
    scene.aws.stop_observing();
    victim.is_dead()
}

#[tokio::test(start_paused = true)]
async fn after_every_write_and_with_every_commit_on_its_way() {
    for (seed, rates) in [
        (2, FaultRates::default()),
        (3, FaultRates::default()),
        (4, FaultRates { lost_answer: 0.3, ..FaultRates::default() }),
        (5, FaultRates { lost_answer: 0.15, applied_late: 0.15, applied_twice: 0.15, ..FaultRates::default() }),
    ] {
        for kind in [Death::AfterWrite, Death::CommitSent] {
            let mut points = 0;
            while dies(seed, kind(points + 1), rates).await {
                points += 1;
            }
            assert!(points >= 10, "{:?}: {points}", kind(0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_await_of_some_seconds() {
    // Each poll is one; some hundred of them are the first seconds, with several commits.
    for poll in 1..=300 {
        dies(2 + poll % 2, Death::AtPoll(poll), FaultRates { lost_answer: 0.2, ..FaultRates::default() }).await;
    }
}
