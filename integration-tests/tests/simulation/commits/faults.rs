//! Committing fleets while every answer may be lost, every write late or twice, machines freeze and die, and shards change hands.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kcl_core::Entropy;
use kcl_core::test_util::FaultRates;
use tokio::time::sleep;

use super::scene::{Mishap, Running, Scene, Service};

const MISHAPS: [Mishap; 4] = [Mishap::Nothing, Mishap::Fails, Mishap::Panics, Mishap::Overruns];

async fn fleet(seed: u64) -> u64 {
    let dice = Entropy::from_seed(seed);
    let mut scene = Scene::new(seed, 3);
    let mishap = MISHAPS[usize::try_from(seed % 4).unwrap()];
    let service = Service::new(1 + usize::try_from(seed % 3).unwrap() * 4, (mishap, 7));
    scene.aws.faults().set_rates(FaultRates {
        slow: 0.1,
        error: 0.03,
        throttled: 0.05,
        dropped: 0.05,
        lost_answer: 0.15,
        applied_late: 0.05,
        applied_twice: 0.1,
        ..FaultRates::default()
    });
    let mut fleet: Vec<Running> = Vec::new();
    for turn in 0..60u32 {
        scene.publish(5);
        match dice.u64() % 8 {
            // A machine more, or one that comes back: it asks for its share.
            0 | 1 if fleet.len() < 4 => {
                let machine = format!("m{}", turn % 5);
                if fleet.iter().all(|running| running.host.machine() != machine) {
                    fleet.push(scene.start(&machine, &service, |builder| builder).await);
                }
            }
            2 if !fleet.is_empty() => {
                let place = usize::try_from(dice.u64()).unwrap_or(usize::MAX) % fleet.len();
                fleet.remove(place).host.kill();
            }
            3 if fleet.len() > 1 => fleet.remove(0).handle.shutdown(),
            4 => {
                // Longer than a lease lasts.
                for running in &fleet {
                    running.host.freeze();
                    sleep(Duration::from_secs(13)).await;
                    running.host.thaw();
                }
            }
            _ => {}
        }
        sleep(Duration::from_millis(dice.u64() % 3000)).await;
    }
    scene.aws.faults().clear();
    let _last = scene.start("last", &service, |builder| builder).await;
    scene.settle().await;
    scene.assert_once(&format!("seed {seed}"));
    service.deliveries.load(Ordering::Relaxed).saturating_sub(300)
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_each_record_has_its_effect_once() {
    let mut repeated = 0;
    for seed in 0..24 {
        repeated += fleet(seed).await;
    }
    assert!(repeated > 100, "deliveries are repeated, effects are not: {repeated}");
}
