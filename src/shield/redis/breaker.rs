//! When Redis is left alone. Pure: instants are microseconds of the process's own clock.

use crate::limits;

/// Counts failures in a row, and says how long Redis is then left alone.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    pause_us: u64,
    /// When Redis last became well.
    well_since_us: u64,
}

impl Breaker {
    /// Redis answered.
    pub const fn succeeded(&mut self, now_us: u64) {
        self.failures = 0;
        // A Redis that answers now and then is left alone longer and longer all the same.
        if now_us.saturating_sub(self.well_since_us) >= max_us() {
            self.pause_us = 0;
        }
    }

    /// Redis failed, or was slow; says whether it is now to be left alone.
    pub const fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures >= limits::SHIELD_FAILURES_MAX
    }

    /// How long to leave Redis alone, in microseconds: longer each time, between half and all of what the
    /// time has come to. `chance` is random.
    pub fn pause_us(&mut self, chance: u64) -> u64 {
        let min_us = u64::try_from(limits::SHIELD_PAUSE.0.as_micros()).unwrap_or(u64::MAX);
        self.pause_us = self.pause_us.saturating_mul(2).clamp(min_us, max_us());
        self.pause_us / 2 + chance % (self.pause_us / 2)
    }

    /// Redis answers again.
    pub const fn close(&mut self, now_us: u64) {
        self.failures = 0;
        self.well_since_us = now_us;
    }
}

const fn max_us() -> u64 {
    limits::SHIELD_PAUSE.1.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_single_ones_do_not() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            assert!(!breaker.failed());
            assert!(!breaker.failed());
            breaker.succeeded(0);
        }
        assert!(!breaker.failed());
        assert!(!breaker.failed());
        assert!(breaker.failed());
        breaker.close(0);
        assert!(!breaker.failed());
    }

    #[test]
    fn pauses_grow_to_a_bound_with_chance_in_them_and_start_anew_once_redis_has_been_well() {
        let mut breaker = Breaker::default();
        let min_us = u64::try_from(limits::SHIELD_PAUSE.0.as_micros()).unwrap();
        for (chance, expected) in
            [(0, min_us / 2), (u64::MAX, min_us + u64::MAX % min_us), (5, 2 * min_us + 5)]
        {
            assert_eq!(breaker.pause_us(chance), expected);
        }
        for _ in 0..20 {
            let pause_us = breaker.pause_us(123_456_789);
            assert!(pause_us <= max_us());
        }
        assert_eq!(breaker.pause_us(0), max_us() / 2);
        breaker.close(1_000);
        breaker.succeeded(1_000 + max_us() - 1);
        assert_eq!(breaker.pause_us(0), max_us() / 2, "it has been well for too short a time");
        breaker.succeeded(1_000 + max_us());
        assert_eq!(breaker.pause_us(0), min_us / 2);
    }
}
