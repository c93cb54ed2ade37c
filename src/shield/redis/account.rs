//! What one process knows of one key's limit: the tokens it has leased, and when a whole burst may come
//! again. Pure: instants are microseconds of the process's own clock, given by the caller.

use super::super::{Admission, Limit};
use crate::limits;

/// Microseconds in a second.
const SECOND_US: u64 = 1_000_000;

/// One key's account in one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Tokens leased and not spent.
    held: u32,
    /// When they lapse.
    held_until_us: u64,
    /// When a whole burst may come again, for all Redis said last. Other processes can only make it later.
    full_at_us: u64,
    /// The same instant on Redis's clock; 0 where Redis was never asked. It is told again with every
    /// lease, so that a Redis that has lost the key goes on from here.
    heard: u64,
    /// Tokens the last lease was to bring the account to.
    lease: u32,
    /// When that was.
    leased_at_us: u64,
    /// Tokens spent since.
    spent: u32,
}

/// What comes of spending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spend {
    /// It is done; where tokens run low, more are to be leased ahead.
    Done {
        /// Whether they do.
        is_low: bool,
    },
    /// There are too few, and Redis cannot have them.
    Refused,
    /// Redis is to be asked; what was held is put aside for the request.
    Ask {
        /// Tokens to ask for.
        lacking: u32,
    },
}

/// A lease as Redis granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// Tokens.
    pub tokens: u32,
    /// Microseconds from the execution until a whole burst may come again.
    pub full_in_us: u64,
    /// That instant on Redis's clock.
    pub full_at: u64,
}

impl Account {
    /// Spends `cost` tokens, which are no more than a burst.
    pub fn spend(&mut self, cost: u32, limit: Limit, now_us: u64) -> Spend {
        if self.serve(cost, now_us) {
            let is_free = self.free(limit, now_us) >= limits::SHIELD_LEASE_PARTS.1;
            return Spend::Done { is_low: self.held <= self.lease / 2 && is_free };
        }
        let lacking = cost - self.held;
        if self.free(limit, now_us) < lacking {
            return Spend::Refused;
        }
        self.held = 0;
        Spend::Ask { lacking }
    }

    /// Gives back tokens that were put aside for a request.
    pub const fn put_back(&mut self, tokens: u32) {
        self.held = self.held.saturating_add(tokens);
    }

    /// Tokens to lease ahead of requests: what lasts for a while at the pace since the last lease.
    pub fn ahead(&mut self, limit: Limit, now_us: u64) -> u32 {
        self.lapse(now_us);
        let lease_us = u64::try_from(limits::SHIELD_LEASE.as_micros()).unwrap_or(u64::MAX);
        let elapsed_us = now_us.saturating_sub(self.leased_at_us).max(1000);
        let enough = u64::from(self.spent).saturating_mul(lease_us) / elapsed_us;
        let (least, most) = limits::SHIELD_LEASE_PARTS;
        self.lease = u32::try_from(enough).unwrap_or(u32::MAX).clamp(limit.burst / least, limit.burst / most);
        self.leased_at_us = now_us;
        self.spent = 0;
        self.lease.saturating_sub(self.held)
    }

    /// The instant on Redis's clock at which a whole burst may come again, as heard last; 0 for never.
    pub const fn heard(&self) -> u64 {
        self.heard
    }

    /// Takes a lease that was asked for at `asked_us`, and no more than can be meant.
    pub fn take(&mut self, lease: Lease, limit: Limit, asked_us: u64, now_us: u64) {
        self.lapse(now_us);
        self.held = self.held.saturating_add(lease.tokens).min(limit.burst);
        let life_us = u64::try_from(limits::SHIELD_LEASE_LIFE.as_micros()).unwrap_or(u64::MAX);
        self.held_until_us = now_us.saturating_add(life_us);
        let full_in_us = lease.full_in_us.min(span_us(limit.burst, limit));
        self.full_at_us = asked_us.saturating_add(full_in_us);
        self.heard = lease.full_at;
    }

    /// Spends `cost` tokens of what is held for a request that has waited, if there are as many.
    pub fn serve(&mut self, cost: u32, now_us: u64) -> bool {
        self.lapse(now_us);
        let left = self.held.checked_sub(cost);
        if let Some(left) = left {
            self.held = left;
            self.spent = self.spent.saturating_add(cost);
        }
        left.is_some()
    }

    /// How the limit stands after a request of `cost` tokens was let on or not.
    pub fn admission(&self, allowed: bool, cost: u32, limit: Limit, now_us: u64) -> Admission {
        let held = if now_us < self.held_until_us { self.held } else { 0 };
        // What was not to be had was not there, even if it has come again since it was asked for.
        let most = if allowed { limit.burst } else { limit.burst.min(cost.saturating_sub(1)) };
        let remaining = self.free(limit, now_us).saturating_add(held).min(most);
        let missing = u64::from(limit.burst.saturating_sub(remaining)) * SECOND_US / rate(limit);
        let wait_us = self.wait_us(cost.saturating_sub(held), limit, now_us);
        Admission {
            allowed,
            limit,
            remaining,
            reset_s: whole_seconds(missing),
            retry_after_s: if allowed { 0 } else { whole_seconds(wait_us).max(1) },
        }
    }

    /// Whether forgetting it loses nothing.
    pub const fn is_idle(&self, now_us: u64) -> bool {
        self.full_at_us <= now_us && (self.held == 0 || self.held_until_us <= now_us)
    }

    const fn lapse(&mut self, now_us: u64) {
        if self.held_until_us <= now_us {
            self.held = 0;
        }
    }

    /// Tokens that Redis may still have; never fewer than it has.
    fn free(&self, limit: Limit, now_us: u64) -> u32 {
        let missing_us = self.full_at_us.saturating_sub(now_us);
        let free =
            span_us(limit.burst, limit).saturating_sub(missing_us).saturating_mul(rate(limit)) / SECOND_US;
        u32::try_from(free).unwrap_or(u32::MAX).min(limit.burst)
    }

    /// Time until Redis may have `cost` tokens.
    fn wait_us(&self, cost: u32, limit: Limit, now_us: u64) -> u64 {
        let kept_us = span_us(limit.burst, limit).saturating_sub(span_us(cost, limit));
        self.full_at_us.saturating_sub(kept_us).saturating_sub(now_us)
    }
}

fn rate(limit: Limit) -> u64 {
    u64::from(limit.per_second.max(1))
}

/// Time in which `tokens` come again, rounded up.
fn span_us(tokens: u32, limit: Limit) -> u64 {
    (u64::from(tokens) * SECOND_US).div_ceil(rate(limit))
}

fn whole_seconds(us: u64) -> u32 {
    u32::try_from(us.div_ceil(SECOND_US)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { per_second: 100, burst: 200 };
    const NOW: u64 = 50 * SECOND_US;

    /// What Redis does, on the same clock: the instant at which a whole burst may come again.
    struct Server {
        full_at: u64,
    }

    impl Server {
        fn lease(&mut self, need: u32, ahead: u32, limit: Limit, now: u64) -> Lease {
            let full = self.full_at.max(now);
            let span = span_us(limit.burst, limit);
            let free = u32::try_from((now + span - full) * rate(limit) / SECOND_US).unwrap();
            let need = need.min(free);
            let tokens = need.max((need + ahead).min(free / 4));
            self.full_at = full + span_us(tokens, limit);
            Lease { tokens, full_in_us: self.full_at - now, full_at: self.full_at }
        }
    }

    #[test]
    fn a_key_not_heard_of_is_asked_for_and_what_is_leased_ahead_is_spent_without_asking() {
        let (mut account, mut server) = (Account::default(), Server { full_at: 0 });
        assert_eq!(account.spend(1, LIMIT, NOW), Spend::Ask { lacking: 1 });
        let ahead = account.ahead(LIMIT, NOW);
        assert_eq!(ahead, LIMIT.burst / limits::SHIELD_LEASE_PARTS.0);
        account.take(server.lease(1, ahead, LIMIT, NOW), LIMIT, NOW, NOW + 300);
        for _ in 0..=ahead {
            assert!(matches!(account.spend(1, LIMIT, NOW + 400), Spend::Done { .. }));
        }
        assert_eq!(account.spend(1, LIMIT, NOW + 500), Spend::Ask { lacking: 1 });
    }

    #[test]
    fn what_redis_cannot_have_is_refused_without_asking_and_told_when_to_come_back() {
        let mut account = Account::default();
        let lease = Lease { tokens: 0, full_in_us: 2 * SECOND_US, full_at: 7 };
        account.take(lease, LIMIT, NOW, NOW + 100);
        assert_eq!(account.spend(1, LIMIT, NOW + 9_999), Spend::Refused);
        let told = account.admission(false, 150, LIMIT, NOW);
        assert_eq!((told.remaining, told.reset_s, told.retry_after_s), (0, 2, 2));
        let told = account.admission(false, 1, LIMIT, NOW + SECOND_US);
        assert_eq!((told.remaining, told.retry_after_s), (0, 1));
        assert_eq!(account.spend(1, LIMIT, NOW + 10_000), Spend::Ask { lacking: 1 });
        assert_eq!(account.spend(150, LIMIT, NOW + 1_499_999), Spend::Refused);
        assert_eq!(account.spend(150, LIMIT, NOW + 1_500_000), Spend::Ask { lacking: 150 });
    }

    #[test]
    fn what_is_told_to_remain_is_what_is_held_and_what_is_free() {
        let mut account = Account::default();
        account.take(Lease { tokens: 10, full_in_us: SECOND_US, full_at: 7 }, LIMIT, NOW, NOW);
        assert_eq!(account.spend(1, LIMIT, NOW), Spend::Done { is_low: false });
        let told = account.admission(true, 1, LIMIT, NOW);
        assert_eq!((told.remaining, told.reset_s, told.retry_after_s), (109, 1, 0));
        assert_eq!(account.admission(true, 1, LIMIT, NOW + SECOND_US).remaining, 200);
        assert_eq!(Account::default().admission(true, 1, LIMIT, NOW).remaining, 200);
    }

    #[test]
    fn what_is_held_is_put_aside_for_a_large_request_and_can_be_put_back() {
        let mut account = Account::default();
        account.take(Lease { tokens: 10, full_in_us: SECOND_US, full_at: 7 }, LIMIT, NOW, NOW);
        assert_eq!(account.spend(60, LIMIT, NOW), Spend::Ask { lacking: 50 });
        account.put_back(10);
        assert_eq!(account.spend(111, LIMIT, NOW), Spend::Refused);
        assert_eq!(account.spend(10, LIMIT, NOW), Spend::Done { is_low: true });
    }

    #[test]
    fn tokens_that_are_not_spent_lapse() {
        let mut account = Account::default();
        account.take(Lease { tokens: 10, full_in_us: 2 * SECOND_US, full_at: 7 }, LIMIT, NOW, NOW);
        let life_us = u64::try_from(limits::SHIELD_LEASE_LIFE.as_micros()).unwrap();
        assert_eq!(account.admission(true, 1, LIMIT, NOW + life_us - 1).remaining, 109);
        assert_eq!(account.admission(true, 1, LIMIT, NOW + life_us).remaining, 100);
        assert!(matches!(account.spend(1, LIMIT, NOW + life_us - 1), Spend::Done { .. }));
        assert_eq!(account.spend(1, LIMIT, NOW + life_us), Spend::Ask { lacking: 1 });
        assert!(!account.is_idle(NOW + life_us));
        assert!(account.is_idle(NOW + 2 * SECOND_US));
    }

    #[test]
    fn the_faster_tokens_are_spent_the_more_are_leased_within_bounds() {
        let limit = Limit { per_second: 10_000, burst: 10_000 };
        let (mut account, mut server) = (Account::default(), Server { full_at: 0 });
        let mut now = NOW;
        let mut asked = 0;
        // 2,000 requests a second, for two seconds.
        for _ in 0..4_000 {
            now += 500;
            match account.spend(1, limit, now) {
                Spend::Done { is_low: false } => {}
                Spend::Done { is_low: true } | Spend::Ask { .. } => {
                    asked += 1;
                    let ahead = account.ahead(limit, now);
                    account.take(server.lease(1, ahead, limit, now), limit, now, now);
                    account.spent += 1;
                }
                Spend::Refused => panic!("there are tokens"),
            }
        }
        assert!(asked < 60, "{asked} leases for 4,000 requests");
        account.spent = u32::MAX;
        assert!(account.ahead(limit, now + 1) <= limit.burst / limits::SHIELD_LEASE_PARTS.1);
    }

    #[test]
    fn three_processes_together_get_the_rate_and_no_more() {
        for (limit, gap_us) in [
            (Limit { per_second: 100, burst: 100 }, 5_000),
            (Limit { per_second: 100, burst: 10 }, 1_300),
            (Limit { per_second: 1_000, burst: 1_000 }, 700),
            (Limit { per_second: 7, burst: 7 }, 20_000),
            (Limit { per_second: 50_000, burst: 50_000 }, 9),
        ] {
            let mut server = Server { full_at: 0 };
            let mut accounts = [Account::default(); 3];
            let (mut admitted, mut at_burst_end) = (0_u32, 0);
            // Each asks at once and hears at once: what is tested is the arithmetic.
            let burst_end = NOW + 3 * span_us(limit.burst, limit);
            let end = burst_end + 10 * SECOND_US;
            let mut now = NOW;
            while now < end {
                for (index, account) in accounts.iter_mut().enumerate() {
                    let now = now + index as u64;
                    match account.spend(1, limit, now) {
                        Spend::Done { .. } => admitted += 1,
                        Spend::Refused => {}
                        Spend::Ask { .. } => {
                            let ahead = account.ahead(limit, now);
                            account.take(server.lease(1, ahead, limit, now), limit, now, now);
                            admitted += u32::from(matches!(account.spend(1, limit, now), Spend::Done { .. }));
                        }
                    }
                }
                now += gap_us;
                if now < burst_end {
                    at_burst_end = admitted;
                }
            }
            let after = admitted - at_burst_end;
            let expected = limit.per_second * 10;
            assert!(after.abs_diff(expected) <= expected / 20, "{limit:?}: {after} in ten seconds");
        }
    }
}
