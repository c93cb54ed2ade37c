//! The shield of one process: counters in memory.

use std::future;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::Either;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::{NoOpMiddleware, StateInformationMiddleware};
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use super::{Admission, Admitting, Limit, RateKey, Shield};
use crate::limits;

type Counters = RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock, StateInformationMiddleware>;

/// Requests between two looks at how many keys are remembered.
const LOOK_EVERY: u32 = 1024;

/// Counts in memory (GCRA). Keys are remembered by a 64-bit hash that is random for each process; two
/// that met would share a limit and nothing else.
pub struct Local {
    retailers: Class,
    platforms: Class,
    regulators: Class,
    hasher: RandomState,
    clock: DefaultClock,
}

/// The counters of one class.
struct Class {
    limit: Limit,
    counters: Counters,
    since_look: AtomicU32,
}

impl Local {
    /// A shield with these limits.
    pub fn new(retailers: Limit, platforms: Limit, regulators: Limit) -> Self {
        let clock = DefaultClock::default();
        let class = |limit| Class::new(limit, &clock);
        Self {
            retailers: class(retailers),
            platforms: class(platforms),
            regulators: class(regulators),
            hasher: RandomState::new(),
            clock: clock.clone(),
        }
    }

    /// Counts, and answers at once.
    pub fn count(&self, key: RateKey<'_>, cost: u32) -> Admission {
        let class = match key {
            RateKey::Retailer(_) => &self.retailers,
            RateKey::Platform(_) => &self.platforms,
            RateKey::Regulator(_) => &self.regulators,
        };
        class.count(self.hasher.hash_one(key), cost, &self.clock)
    }
}

impl Shield for Local {
    fn admit<'s>(&'s self, key: RateKey<'s>, cost: u32) -> Admitting<'s> {
        Either::Left(future::ready(self.count(key, cost)))
    }

    fn name(&self) -> &'static str {
        "local"
    }

    fn is_degraded(&self) -> bool {
        false
    }
}

impl Class {
    fn new(limit: Limit, clock: &DefaultClock) -> Self {
        let rate = NonZeroU32::new(limit.per_second).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(limit.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(rate).allow_burst(burst);
        let counters = RateLimiter::<_, _, _, NoOpMiddleware<_>>::new(
            quota,
            DefaultKeyedStateStore::default(),
            clock.clone(),
        );
        Self { limit, counters: counters.with_middleware(), since_look: AtomicU32::new(0) }
    }

    fn count(&self, key: u64, cost: u32, clock: &DefaultClock) -> Admission {
        self.forget_idle();
        let cost = NonZeroU32::new(cost.clamp(1, self.limit.burst.max(1))).unwrap_or(NonZeroU32::MIN);
        let (remaining, wait) = match self.counters.check_key_n(&key, cost) {
            Ok(Ok(state)) => (state.remaining_burst_capacity(), None),
            Ok(Err(not_until)) => (0, Some(not_until.wait_time_from(clock.now()))),
            // The cost is no more than a burst.
            Err(_) => (0, Some(Duration::from_secs(1))),
        };
        let missing = self.limit.burst.saturating_sub(remaining);
        Admission {
            allowed: wait.is_none(),
            limit: self.limit,
            remaining,
            reset_s: missing.div_ceil(self.limit.per_second.max(1)),
            retry_after_s: wait.map_or(0, whole_seconds),
        }
    }

    /// Drops the keys whose burst is whole again, once there are too many: those that stay have been
    /// used within the last burst, so their number is bounded by the requests of that time.
    fn forget_idle(&self) {
        if self.since_look.fetch_add(1, Ordering::Relaxed) < LOOK_EVERY {
            return;
        }
        self.since_look.store(0, Ordering::Relaxed);
        if self.counters.len() > limits::RATE_KEYS_MAX {
            self.counters.retain_recent();
            self.counters.shrink_to_fit();
        }
    }
}

/// `wait` in seconds, rounded up, at least one.
fn whole_seconds(wait: Duration) -> u32 {
    let started = u64::from(wait.subsec_nanos() > 0);
    u32::try_from(wait.as_secs().saturating_add(started)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Uscc;

    fn shield(per_second: u32, burst: u32) -> Local {
        let limit = Limit { per_second, burst };
        Local::new(limit, limit, limit)
    }

    #[test]
    fn a_burst_may_come_and_then_no_more_than_the_rate() {
        let shield = shield(1, 3);
        let key = RateKey::Platform("mall");
        for remaining in [2, 1, 0] {
            let admission = shield.count(key, 1);
            assert!(admission.allowed);
            assert_eq!((admission.remaining, admission.reset_s), (remaining, 3 - remaining));
        }
        let refused = shield.count(key, 1);
        assert!(!refused.allowed);
        assert_eq!((refused.remaining, refused.retry_after_s), (0, 1));
    }

    #[test]
    fn everyone_has_their_own_limit() {
        let shield = shield(1, 1);
        let retailer = RateKey::Retailer(Uscc::parse("91110000600037341L").unwrap());
        for key in [RateKey::Platform("x"), RateKey::Regulator("x"), RateKey::Platform("y"), retailer] {
            assert!(shield.count(key, 1).allowed, "{key:?}");
            assert!(!shield.count(key, 1).allowed, "{key:?}");
        }
    }

    #[test]
    fn a_batch_costs_its_items_and_one_larger_than_a_burst_is_possible_after_a_pause() {
        let shield = shield(1, 10);
        assert!(shield.count(RateKey::Platform("a"), 7).allowed);
        let refused = shield.count(RateKey::Platform("a"), 7);
        assert!(!refused.allowed);
        assert!((3..=4).contains(&refused.retry_after_s), "{refused:?}");
        assert!(shield.count(RateKey::Platform("b"), 500).allowed);
        assert!(!shield.count(RateKey::Platform("b"), 1).allowed);
    }

    #[test]
    fn idle_keys_are_forgotten() {
        let class = Class::new(Limit { per_second: 1_000_000, burst: 1 }, &DefaultClock::default());
        let clock = DefaultClock::default();
        for key in 0..limits::RATE_KEYS_MAX as u64 * 2 {
            class.count(key, 1, &clock);
        }
        assert!(class.counters.len() <= limits::RATE_KEYS_MAX + LOOK_EVERY as usize + 1);
    }
}
