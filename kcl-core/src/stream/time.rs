//! The service's time: what arrival times, retention and starting positions go by.
//!
//! A machine's wall clock is set and stepped by others, and may be wrong by a day. The service tells its own time, in whole seconds, with every
//! description of the stream. A wall clock that agrees with it, before the request and after the answer, is more exact, and is believed as it was then; otherwise, also if
//! the clock is set meanwhile, the service's second counts, which is late by up to a second and the time of the answer, and never early. From then on it is that plus what has passed by boot time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::Clock;

use super::{StreamApi, StreamDescription, StreamError};

/// A clock whose wall time is the service's, as soon as that is known; until then the machine's.
#[derive(Debug)]
pub(crate) struct ServiceClock {
    machine: Arc<dyn Clock>,
    /// A boot time, and the service's time then.
    known: Mutex<Option<(Duration, Timestamp)>>,
}

impl ServiceClock {
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        Self { machine, known: Mutex::default() }
    }

    /// Describes the stream, and learns what time it is.
    pub(crate) async fn describe(&self, stream: &dyn StreamApi) -> Result<StreamDescription, StreamError> {
        let (began, sent) = (self.machine.boot_time(), self.machine.wall_time());
        let description = stream.describe().await?;
        self.learn(began, sent, description.time);
        Ok(description)
    }

    /// The service has told its time, in answer to a request that was sent at this boot time, when the machine's wall clock showed `sent`. `None`: it has not.
    fn learn(&self, began: Duration, sent: Timestamp, told: Option<Timestamp>) {
        if let Some(told) = told.filter(|_| !is_planted(Bug::WallClockBelieved)) {
            let answered = self.machine.boot_time();
            *self.known() = Some((answered, best(sent, self.machine.wall_time(), answered.saturating_sub(began), told)));
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<(Duration, Timestamp)>> {
        // Plain data that no panic leaves half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time now, by a wall clock that showed `sent` and shows `now`, so much later by boot time, and by the second that the service has told in between.
fn best(sent: Timestamp, now: Timestamp, passed: Duration, told: Timestamp) -> Timestamp {
    let latest = |told: Timestamp, later: Duration| {
        told.as_millis().saturating_add(1_000).saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX))
    };
    let agree = told <= now && sent.as_millis() < latest(told, Duration::ZERO) && now.as_millis() < latest(told, passed);
    if agree { now } else { told }
}

impl Clock for ServiceClock {
    fn boot_time(&self) -> Duration {
        self.machine.boot_time()
    }

    fn wall_time(&self) -> Timestamp {
        let known = *self.known();
        let Some((at, time)) = known else { return self.machine.wall_time() };
        let passed = self.boot_time().saturating_sub(at).as_millis();
        Timestamp::from_millis(time.as_millis().saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Wrong(Mutex<Duration>);

    impl Clock for Wrong {
        fn boot_time(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn wall_time(&self) -> Timestamp {
            Timestamp::from_millis(7)
        }
    }

    #[test]
    fn a_wall_clock_that_agrees_with_the_service_s_second_is_more_exact() {
        // sent, now, the time between them, told => best
        for (sent, now, passed, told, expected) in [
            (5_100, 5_200, 100, 5_000, 5_200),
            (4_900, 5_100, 200, 5_000, 5_100),
            (5_990, 6_010, 20, 5_000, 6_010),
            (5_990, 65_990, 60_000, 5_000, 65_990),
            (6_000, 6_100, 100, 5_000, 5_000),
            (4_000, 4_900, 900, 5_000, 5_000),
            (1_000_000, 1_000_100, 100, 5_000, 5_000),
            // it was set forward by a day, or back, while the answer was under way
            (5_100, 86_405_200, 100, 5_000, 5_000),
            (86_405_100, 5_200, 100, 5_000, 5_000),
        ] {
            let passed = Duration::from_millis(passed);
            let best = best(Timestamp::from_millis(sent), Timestamp::from_millis(now), passed, Timestamp::from_millis(told));
            assert_eq!(best, Timestamp::from_millis(expected), "{sent} {now} {passed:?} {told}");
        }
    }

    #[test]
    fn the_service_is_believed_as_soon_as_it_has_spoken() {
        let machine = Arc::new(Wrong::default());
        let told: Arc<dyn Clock> = Arc::<Wrong>::clone(&machine);
        let clock = ServiceClock::new(told);
        assert_eq!(clock.wall_time(), Timestamp::from_millis(7));
        clock.learn(Duration::ZERO, clock.wall_time(), Some(Timestamp::from_millis(1_000_000)));
        *machine.0.lock().unwrap() = Duration::from_millis(250);
        clock.learn(Duration::ZERO, clock.wall_time(), None);
        assert_eq!(clock.wall_time(), Timestamp::from_millis(1_000_250));
    }
}
