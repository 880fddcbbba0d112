//! Carries calls out as the fault layer decides.
//!
//! A call that changes something travels by itself: it is applied although the caller has given up, was frozen or killed meanwhile. The
//! tasks that carry such calls belong to the network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_lease::Entropy;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::events::{Event, Observers};
use super::faults::{Break, Call, Fate, Faults, Service};

/// What all machines and services share.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) epoch: Instant,
    pub(super) observers: Observers,
    entropy: Entropy,
    faults: Mutex<Faults>,
    travelling: Mutex<JoinSet<()>>,
}

impl Network {
    pub(super) fn new(epoch: Instant, entropy: Entropy) -> Self {
        Self { epoch, observers: Observers::default(), entropy, faults: Mutex::default(), travelling: Mutex::default() }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        // Plain data that no panic leaves half changed.
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.epoch.elapsed()
    }
}

/// One process's connections to the services. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) network: Arc<Network>,
    /// The machine, which partitions go by.
    pub(super) machine: Arc<str>,
    /// The process on it.
    pub(super) host: Arc<str>,
}

/// A call as the ports make it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) service: Service,
    pub(super) operation: &'static str,
    pub(super) shard: &'a str,
    pub(super) may_be_stale: bool,
    pub(super) errors: &'static [&'static str],
    pub(super) timeout: Duration,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    Throttled,
    /// The service's error, one of those that the call names.
    Refused(&'static str),
    /// Whether it was applied, or will be, is not known.
    NoAnswer,
}

impl Link {
    /// A call that only reads. `answer` is called at the moment when the service answers; with how long ago the answer was true.
    pub(super) async fn read<T>(&self, asked: Asked<'_>, answer: impl FnOnce(Option<Duration>) -> T) -> Result<T, Failure> {
        match self.fate(asked, false) {
            Fate::Answered { there, back, stale, .. } => {
                sleep(there).await;
                let answer = answer(stale);
                sleep(back).await;
                Ok(answer)
            }
            Fate::Refused { back, error } => Err(self.refused(back, error).await),
            Fate::Lost { given_up, .. } => {
                sleep(given_up).await;
                Err(Failure::NoAnswer)
            }
        }
    }

    /// A call that changes something. `apply` is called each time that the service gets it.
    pub(super) async fn write<T: Send + 'static>(&self, asked: Asked<'_>, apply: impl Fn() -> T + Send + 'static) -> Result<T, Failure> {
        let fate = self.fate(asked, true);
        let (there, back, again, patience) = match fate {
            Fate::Answered { there, back, again, .. } => (there, Some(back), again, asked.timeout),
            Fate::Refused { back, error } => return Err(self.refused(back, error).await),
            Fate::Lost { there: Some(there), given_up } => (there, None, None, given_up),
            Fate::Lost { there: None, given_up } => {
                sleep(given_up).await;
                return Err(Failure::NoAnswer);
            }
        };
        let (answer, mut answered) = oneshot::channel();
        self.travel(async move {
            sleep(there).await;
            // Nobody may wait any more.
            let _ = answer.send(apply());
            if let Some(again) = again {
                sleep(again).await;
                drop(apply());
            }
        });
        let Some(back) = back else {
            sleep(patience).await;
            return Err(Failure::NoAnswer);
        };
        let sent = Instant::now();
        match timeout(patience, &mut answered).await {
            Ok(Ok(_)) if self.is_silenced(asked.service) => {
                sleep_until(sent + patience).await;
                Err(Failure::NoAnswer)
            }
            Ok(Ok(answer)) => {
                sleep(back).await;
                Ok(answer)
            }
            _ => Err(Failure::NoAnswer),
        }
    }

    /// Whether no answer of a service reaches this machine now.
    fn is_silenced(&self, service: Service) -> bool {
        self.network.faults().is_silenced(&self.machine, service, self.network.elapsed())
    }

    /// Whether the service refuses one entry of a batch.
    pub(super) fn refuses_entry(&self, service: Service) -> bool {
        self.network.faults().refuses_entry(service, &self.network.entropy)
    }

    /// Whether the next event of a subscription comes to nothing, and how.
    pub(super) fn breaks(&self) -> Option<Break> {
        let now = self.network.elapsed();
        self.network.faults().breaks(&self.machine, now, &self.network.entropy)
    }

    fn travel(&self, call: impl Future<Output = ()> + Send + 'static) {
        let mut travelling = self.network.travelling.lock().unwrap_or_else(PoisonError::into_inner);
        while travelling.try_join_next().is_some() {}
        travelling.spawn(call);
    }

    fn fate(&self, asked: Asked<'_>, writes: bool) -> Fate {
        let Asked { service, operation, shard, may_be_stale, errors, timeout } = asked;
        let call = Call { service, operation, machine: &self.machine, writes, may_be_stale, errors, timeout };
        let now = self.network.elapsed();
        let (fate, fault) = self.network.faults().fate(call, now, &self.network.entropy);
        self.network.observers.tell(&Event::Sent { host: &self.host, service, operation, shard, fault });
        fate
    }

    async fn refused(&self, back: Duration, error: Option<&'static str>) -> Failure {
        sleep(back).await;
        error.map_or(Failure::Throttled, Failure::Refused)
    }
}
