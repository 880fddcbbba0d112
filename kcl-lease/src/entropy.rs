//! Randomness and identity from one seed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The one source of randomness of a worker: jitter, identities, the order of takes.
///
/// Clones share the source. Equal seeds give equal draws in equal order.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<fastrand::Rng>>);

impl Entropy {
    /// A source that repeats itself for this seed. For tests and simulation.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// A source seeded by the operating system: the only place where ambient randomness enters.
    #[must_use]
    pub fn from_os() -> Self {
        #[allow(clippy::disallowed_methods)] // this is the edge that the rule protects
        Self(Arc::new(Mutex::new(fastrand::Rng::new())))
    }

    /// A uniform draw from all `u64`.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.with(|rng| rng.u64(..))
    }

    /// A uniform draw from `[0, 1)`.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.with(fastrand::Rng::f64)
    }

    /// A uniform draw between the two durations.
    #[must_use]
    pub fn between(&self, low: Duration, high: Duration) -> Duration {
        low + high.saturating_sub(low).mul_f64(self.fraction())
    }

    /// Brings the items into a random order.
    pub fn shuffle<T>(&self, items: &mut [T]) {
        self.with(|rng| rng.shuffle(items));
    }

    /// A random (version 4) UUID.
    #[must_use]
    pub fn uuid(&self) -> uuid::Uuid {
        let (high, low) = (self.u64(), self.u64());
        uuid::Builder::from_u128((u128::from(high) << 64) | u128::from(low)).with_version(uuid::Version::Random).into_uuid()
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        // The generator is never left half changed: it has no state that a panic of a caller could break.
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn equal_seeds_draw_equally_and_the_system_does_not() {
        let draw = |entropy: &Entropy| (entropy.u64(), entropy.uuid(), entropy.between(Duration::ZERO, Duration::from_secs(9)));
        assert_eq!(draw(&Entropy::from_seed(7)), draw(&Entropy::from_seed(7)));
        assert_ne!(draw(&Entropy::from_seed(7)), draw(&Entropy::from_seed(8)));
        assert_ne!(draw(&Entropy::from_os()), draw(&Entropy::from_os()));
        assert_eq!(Entropy::from_seed(7).uuid().get_version(), Some(uuid::Version::Random));
    }

    #[test]
    fn draws_fill_their_range() {
        let entropy = Entropy::from_seed(1);
        let draws = 1_000;
        let numbers: BTreeSet<_> = (0..draws).map(|_| entropy.u64()).collect();
        assert!(
            numbers.len() == draws
                && numbers.iter().any(|number| *number < u64::MAX / 4)
                && numbers.iter().any(|number| *number > u64::MAX / 4 * 3)
        );
        let fractions: Vec<_> = (0..draws).map(|_| entropy.fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        assert!(fractions.iter().any(|fraction| *fraction < 0.1) && fractions.iter().any(|fraction| *fraction > 0.9));
        let (low, high) = (Duration::from_secs(2), Duration::from_secs(3));
        let waits: Vec<_> = (0..draws).map(|_| entropy.between(low, high)).collect();
        assert!(waits.iter().all(|wait| (low..=high).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < low + low / 20) && waits.iter().any(|wait| *wait > high - low / 20));
        assert_eq!(entropy.between(high, low), high, "there is nothing between them");
        // Both halves of an identity are drawn.
        let identities: Vec<_> = (0..draws).map(|_| entropy.uuid().as_u128()).collect();
        for half in [64, 0] {
            let halves: BTreeSet<_> = identities.iter().map(|identity| (identity >> half) & u128::from(u64::MAX)).collect();
            assert_eq!(halves.len(), draws);
        }
    }

    #[test]
    fn a_shuffle_keeps_the_items_and_draws_their_order() {
        let entropy = Entropy::from_seed(1);
        let orders: BTreeSet<_> = (0..100)
            .map(|_| {
                let mut items = [1, 2, 3];
                entropy.shuffle(&mut items);
                items
            })
            .collect();
        assert_eq!(Vec::from_iter(orders), [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]]);
    }
}
