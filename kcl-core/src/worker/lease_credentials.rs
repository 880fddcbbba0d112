//! Credentials of the lease thread's client.
//!
//! They come from the user's provider, which may share connections with the runtime that users'
//! code runs on, and may hang while that is blocked. So they are renewed long before they expire,
//! beside the calls that use them: a provider that hangs delays no call as long as the last
//! credentials are good.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider, future};
use kcl_lease::Clock;
use tokio::task::JoinSet;

/// How long before they expire credentials are renewed. Instance metadata has the next ones five
/// minutes before.
const EARLY: Duration = Duration::from_secs(300);
/// How long credentials without an expiry are used before the provider is asked again, as in the
/// SDK.
const UNLIMITED: Duration = Duration::from_secs(900);
/// Time between two attempts to renew credentials that are still good.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(15);
/// The longest time that one attempt to renew them may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// A provider that keeps what another one gave. Must be used on one runtime only.
#[derive(Clone)]
pub(super) struct LeaseCredentials(Arc<Shared>);

struct Shared {
    provider: SharedCredentialsProvider,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
    /// Held by who fetches credentials that everybody waits for.
    fetching: tokio::sync::Mutex<()>,
    renewal: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Kept {
    credentials: Option<Credentials>,
    /// Boot time at which they were given.
    since: Duration,
    /// Boot time before which they are not renewed.
    next_attempt: Duration,
}

/// How usable the kept credentials are.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Good,
    /// Good, but to be renewed now.
    Due,
    Missing,
}

impl Kept {
    fn standing(&self, boot: Duration, wall: SystemTime) -> Standing {
        let Some(credentials) = &self.credentials else { return Standing::Missing };
        let (good, early) = match credentials.expiry() {
            Some(expiry) => (wall < expiry, wall + EARLY >= expiry),
            None => (true, boot >= self.since + UNLIMITED),
        };
        match (good, early && boot >= self.next_attempt) {
            (false, _) => Standing::Missing,
            (true, true) => Standing::Due,
            (true, false) => Standing::Good,
        }
    }
}

impl LeaseCredentials {
    pub(super) fn new(provider: SharedCredentialsProvider, clock: Arc<dyn Clock>) -> Self {
        let (kept, fetching, renewal) = (Mutex::default(), tokio::sync::Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { provider, clock, kept, fetching, renewal }))
    }

    async fn credentials(&self) -> Result {
        if let Some(credentials) = self.usable() {
            return Ok(credentials);
        }
        let _turn = self.0.fetching.lock().await;
        // Another call may have fetched them meanwhile.
        match self.usable() {
            Some(credentials) => Ok(credentials),
            None => self.0.fetch().await,
        }
    }

    /// The kept credentials if they are good. Begins to renew them if that is due.
    fn usable(&self) -> Option<Credentials> {
        let mut kept = self.0.kept();
        match kept.standing(self.0.clock.boot_time(), self.0.wall_time()) {
            Standing::Missing => return None,
            Standing::Good => {}
            Standing::Due => {
                kept.next_attempt = self.0.clock.boot_time() + BETWEEN_ATTEMPTS;
                self.renew();
            }
        }
        kept.credentials.clone()
    }

    fn renew(&self) {
        // Holds the provider, and nothing that holds this set.
        let shared = Arc::downgrade(&self.0);
        let mut renewal = self.0.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        while renewal.try_join_next().is_some() {}
        renewal.spawn(async move {
            let Some(shared) = shared.upgrade() else { return };
            let failure = match tokio::time::timeout(ATTEMPT, shared.fetch()).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {ATTEMPT:?}"),
            };
            tracing::warn!(failure, "credentials for the lease table are not renewed; trying again, the last ones are still good");
        });
    }
}

impl Shared {
    async fn fetch(&self) -> Result {
        let credentials = self.provider.provide_credentials().await?;
        let mut kept = self.kept();
        kept.credentials = Some(credentials.clone());
        kept.since = self.clock.boot_time();
        Ok(credentials)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Plain data that no panic leaves half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wall_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.wall_time().as_millis())
    }
}

impl ProvideCredentials for LeaseCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.0.provider.fallback_on_interrupt()
    }
}

impl fmt::Debug for LeaseCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LeaseCredentials").field("provider", &self.0.provider).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use aws_credential_types::provider::error::CredentialsError;
    use kcl_checkpoint::Timestamp;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    /// Wall time that begins in 2026, and follows the paused runtime clock.
    #[derive(Debug)]
    struct PausedClock(Instant);

    const EPOCH_MILLIS: u64 = 1_790_000_000_000;

    impl Clock for PausedClock {
        fn boot_time(&self) -> Duration {
            Duration::from_secs(1_000) + self.0.elapsed()
        }

        fn wall_time(&self) -> Timestamp {
            Timestamp::from_millis(EPOCH_MILLIS + u64::try_from(self.0.elapsed().as_millis()).unwrap())
        }
    }

    /// An answer of the provider: how long it takes, and the seconds (from the beginning) after
    /// which the credentials expire, or a failure.
    type Answer = (Duration, std::result::Result<Option<u64>, ()>);

    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<Answer>>);

    impl ProvideCredentials for Scripted {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                let answers = self.0.lock().unwrap().len();
                let (time, answer) = self.0.lock().unwrap().pop_front().unwrap_or((Duration::MAX / 2, Err(())));
                sleep(time).await;
                let expiry = answer.map_err(|()| CredentialsError::provider_error("scripted"))?;
                let expiry =
                    expiry.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(EPOCH_MILLIS) + Duration::from_secs(seconds));
                Ok(Credentials::new(format!("{answers} left"), "secret", None, expiry, "scripted"))
            })
        }
    }

    fn credentials(answers: &[Answer]) -> LeaseCredentials {
        let provider = Scripted(Mutex::new(answers.iter().copied().collect()));
        LeaseCredentials::new(SharedCredentialsProvider::new(provider), Arc::new(PausedClock(Instant::now())))
    }

    fn now(answer: std::result::Result<Option<u64>, ()>) -> Answer {
        (Duration::ZERO, answer)
    }

    /// The key that a call gets, which must not take any time.
    async fn at_once(credentials: &LeaseCredentials) -> String {
        let began = Instant::now();
        let given = credentials.provide_credentials().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        // What was begun meanwhile goes on.
        sleep(Duration::from_secs(1)).await;
        given.access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_fetched_once_and_renewed_before_they_expire() {
        let credentials = credentials(&[now(Ok(Some(3_600))), now(Ok(Some(7_200)))]);
        for _ in 0..10 {
            assert_eq!(at_once(&credentials).await, "2 left");
        }
        sleep(Duration::from_secs(3_300)).await;
        assert_eq!(at_once(&credentials).await, "2 left", "it does not wait for the next ones");
        assert_eq!(at_once(&credentials).await, "1 left");
        sleep(Duration::from_secs(3_000)).await;
        assert_eq!(at_once(&credentials).await, "1 left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_or_fails_delays_nothing_while_the_last_ones_are_good() {
        let hangs = (Duration::from_secs(3_600), Err(()));
        let credentials = credentials(&[now(Ok(Some(3_600))), hangs, now(Err(())), hangs, now(Ok(Some(7_200)))]);
        assert_eq!(at_once(&credentials).await, "5 left");
        sleep(Duration::from_secs(3_310)).await;
        let began = Instant::now();
        while at_once(&credentials).await == "5 left" {
            assert!(began.elapsed() < Duration::from_secs(60), "tried again in time");
        }
        assert_eq!(at_once(&credentials).await, "1 left");
    }

    #[tokio::test(start_paused = true)]
    async fn without_good_ones_a_call_waits_and_fails_with_the_provider() {
        let slow = (Duration::from_secs(2), Ok(Some(60)));
        let credentials = credentials(&[now(Err(())), slow]);
        assert!(credentials.provide_credentials().await.is_err());
        let began = Instant::now();
        let (first, second) = tokio::join!(credentials.provide_credentials(), credentials.provide_credentials());
        assert_eq!((first.unwrap().access_key_id(), second.unwrap().access_key_id()), ("1 left", "1 left"), "asked once for both");
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        sleep(Duration::from_secs(60)).await;
        assert!(timeout(Duration::from_secs(30), credentials.provide_credentials()).await.is_err(), "expired ones are not given");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_never_expire_are_asked_for_now_and_then() {
        let credentials = credentials(&[now(Ok(None)), now(Ok(None))]);
        assert_eq!(at_once(&credentials).await, "2 left");
        sleep(Duration::from_secs(890)).await;
        assert_eq!(at_once(&credentials).await, "2 left");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(at_once(&credentials).await, "2 left");
        assert_eq!(at_once(&credentials).await, "1 left");
    }
}
