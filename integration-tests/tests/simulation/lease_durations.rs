//! Owners that trust their leases for longer than others would: those with another setting, and those of the Java library.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Event, SimulatedAws};
use kcl_core::{Checkpointing, WorkerId};
use kcl_lease::{LeaseTable, LeaseWrite, WriteId, WriteOutcome};
use tokio::time::{Instant, sleep};

use super::fleet::{APPLICATION, Fleet, until};

/// Counts leases that are taken from an owner.
fn takes(aws: &SimulatedAws) -> Arc<Mutex<Vec<(WorkerId, WorkerId)>>> {
    let takes = Arc::<Mutex<Vec<_>>>::default();
    let seen = Arc::clone(&takes);
    aws.observe(move |event| {
        if let Event::LeaseWritten { before, after, .. } = event
            && let (Some(before), Some(after)) = (before.actual_owner(), after.actual_owner())
            && before != after
        {
            seen.lock().unwrap().push((before.clone(), after.clone()));
        }
    });
    takes
}

#[tokio::test(start_paused = true)]
async fn a_rolling_change_of_the_lease_duration_takes_nothing_from_the_living() {
    for (old, new) in [(10, 60), (60, 10), (3, 10)] {
        let mut fleet = Fleet::new(1, 8);
        let takes = takes(&fleet.aws);
        for seconds in [old, new] {
            let duration = Duration::from_secs(seconds);
            fleet
                .start_with(1, |builder| {
                    builder.lease_duration(duration).checkpointing(Checkpointing::Automatic { interval: duration / 4 })
                })
                .await;
            sleep(Duration::from_secs(120)).await;
        }
        let leases = fleet.aws.leases(APPLICATION);
        let owned =
            |name: &str| leases.iter().filter(|lease| lease.owner.as_ref().is_some_and(|owner| owner.as_str().starts_with(name))).count();
        assert_eq!((owned("host-0"), owned("host-1")), (4, 4), "they share");
        takes.lock().unwrap().clear();
        let mut numbers = fleet.put(3_000).await;
        sleep(Duration::from_secs(600)).await;
        numbers.extend(fleet.put(3_000).await);
        fleet.has("all is processed", &numbers).await;
        assert_eq!(*takes.lock().unwrap(), [], "{old} s and {new} s");
        assert_eq!(fleet.log.all().len(), numbers.len(), "{old} s and {new} s: once each");

        // Who has the longer one is found dead, if later.
        let (dead, alive) = if old > new { (0, "host-1") } else { (1, "host-0") };
        fleet.running[dead].0.kill();
        let since = Instant::now();
        let all = |fleet: &Fleet| {
            let mut leases = fleet.aws.leases(APPLICATION).into_iter();
            leases.all(|lease| lease.owner.as_ref().is_some_and(|owner| owner.as_str().starts_with(alive)))
        };
        until("the dead one's are taken", || all(&fleet)).await;
        let longer = Duration::from_secs(old.max(new));
        assert!(since.elapsed() > longer * 2 / 3 && since.elapsed() < longer * 3 / 2, "{old} s and {new} s: {:?}", since.elapsed());
        fleet.aws.stop_observing();
    }
}

/// A leader of the Java library assigns a lease; its worker discovers it after nearly ten seconds, and renews it three later.
#[tokio::test(start_paused = true)]
async fn a_lease_that_another_library_has_just_assigned_is_left_alone_for_as_long_as_its_owner_may_be_silent() {
    for (discovers, renews) in [(2.0, 1.0), (7.0, 3.2), (9.0, 2.5), (9.97, 3.33)] {
        let mut fleet = Fleet::new(3, 2);
        fleet.start(1).await;
        fleet.put(20).await;
        sleep(Duration::from_secs(30)).await;
        let table = fleet.aws.host("java").lease_table(APPLICATION);
        let lease = fleet.aws.leases(APPLICATION).remove(0);
        // As its leader writes: another owner, and one more on the counter.
        let assigned = LeaseWrite::take(&lease, &"java".into(), WriteId(1));
        let WriteOutcome::Applied(row) = table.write(&assigned).await.unwrap() else { panic!("it is refused") };
        let since = Instant::now();
        sleep(Duration::from_secs_f64(discovers + renews)).await;
        assert_eq!(fleet.aws.leases(APPLICATION)[0].counter, row.counter, "discovered after {discovers} s: nobody has taken it");
        // It renews, and is gone then.
        let WriteOutcome::Applied(_) = table.write(&LeaseWrite::renew(&row, WriteId(2))).await.unwrap() else { panic!("it is lost") };
        let renewed = Instant::now();
        let is_taken = |fleet: &Fleet| fleet.aws.leases(APPLICATION)[0].owner.as_ref().is_some_and(|owner| owner.as_str() != "java");
        until("the lease of the dead is taken", || is_taken(&fleet)).await;
        assert!(renewed.elapsed() < Duration::from_secs(18) && since.elapsed() > Duration::from_secs(13), "{:?}", renewed.elapsed());
        fleet.stop().await;
    }
}
