//! A worker of the Java library, and the leader that assigns a lease to it. The leader asks the present owner to hand over; the worker finds out some seconds later that
//! the lease is its own, renews it for a while, and is gone. It processes nothing: all that it leaves behind is its rows.

use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{Entropy, WorkerId};
use kcl_lease::{Lease, LeaseTable, LeaseWrite, ShardId, WriteId, WriteOutcome};
use tokio::time::sleep;

use super::oracle::{APPLICATION, FOREIGNER, Judge};

/// The time from one renewal to the next, a third of the failover time.
const RENEWAL: Duration = Duration::from_millis(3_333);

/// The leader looks so often, and so many times, whether the lease was handed over.
const LOOK: (Duration, u32) = (Duration::from_millis(250), 240);

/// The whole life, from the request on.
pub(super) async fn live(aws: SimulatedAws, judge: Judge, choice: u64, silence: Duration, renewals: u32, releases: bool) {
    let table = aws.host(FOREIGNER).lease_table(APPLICATION);
    let worker: WorkerId = format!("{FOREIGNER}-{choice}").as_str().into();
    let (leases, ids) = (aws.leases(APPLICATION), Entropy::from_seed(choice));
    let owned: Vec<_> =
        leases.iter().filter(|lease| !lease.is_finished() && lease.owner.is_some() && lease.checkpoint_owner.is_none()).collect();
    let Some(lease) = owned.get(usize::try_from(choice).unwrap_or(0) % owned.len().max(1)) else { return };
    let Some(request) = LeaseWrite::request_handoff(lease, &worker) else { return };
    if !matches!(table.write(&request).await, Ok(WriteOutcome::Applied(_))) {
        return;
    }
    let Some(mut row) = handed_over(&aws, &lease.shard_id, &worker).await else { return };
    sleep(silence).await;
    for _ in 0..renewals {
        let write = LeaseWrite::renew(&row, WriteId(ids.u64()));
        match table.write(&write).await {
            Ok(WriteOutcome::Applied(after)) => row = *after,
            Ok(WriteOutcome::Refused(_)) => {
                judge.tell(format_args!("{worker} has lost {}", row.shard_id));
                return;
            }
            Err(_) => {}
        }
        sleep(RENEWAL).await;
    }
    if releases {
        let release = LeaseWrite::release(&row, None, row.children.clone(), WriteId(ids.u64()));
        let _ = table.write(&release).await;
    }
}

/// The row, once it is the worker's own. `None`: that does not come.
async fn handed_over(aws: &SimulatedAws, shard: &ShardId, worker: &WorkerId) -> Option<Lease> {
    let (pause, times) = LOOK;
    for _ in 0..times {
        sleep(pause).await;
        let row = aws.leases(APPLICATION).into_iter().find(|lease| lease.shard_id == *shard)?;
        match row.actual_owner() {
            Some(owner) if owner == worker => return Some(row),
            _ if row.next_owner() == Some(worker) => {}
            _ => return None,
        }
    }
    None
}
