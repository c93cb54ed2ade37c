//! What every test stands on: the service as a process, callers with tokens, sales that are valid and
//! never the same twice, a random generator that means the same run for ever, and an independent reading
//! of the journal.

pub mod client;
pub mod fleet;
pub mod identifiers;
pub mod journal;
pub mod postgres;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod sale;
pub mod service;
pub mod trace;

pub use client::{Answer, Caller};
pub use identifiers::{fresh_key, fresh_number};
pub use random::Random;
pub use sale::Sale;
pub use serde_json::{Value, json};
pub use service::{Options, Service};
pub use subsidy_pos::time::Timestamp;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The instant at which the service's clock starts unless a test says otherwise: in the middle of the
/// digital programmes of 2026, far from any midnight, month's or year's end.
pub const JUNE_2026: &str = "2026-06-15T10:00:00+08:00";

/// Reads an instant that a test has written down.
pub fn instant(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap_or_else(|| panic!("{text} is an instant"))
}

/// Tells threads to stop when dropped, however the test ends.
pub struct Stop<'s>(pub &'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks again and again until `check` is content, for at most `patience`.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(began.elapsed() < patience, "{what} within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `job` on `count` threads at once, released together, and returns what each came to, in order.
pub fn at_once<T: Send>(count: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let gate = std::sync::Barrier::new(count);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|index| {
                let (gate, job) = (&gate, &job);
                scope.spawn(move || {
                    gate.wait();
                    job(index)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a caller's thread")).collect()
    })
}

/// Fen from an amount on the wire, which must have two decimals.
#[track_caller]
pub fn fen(amount: &Value) -> i64 {
    let text = amount.as_str().unwrap_or_else(|| panic!("{amount} is an amount"));
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (yuan, cents) = digits.split_once('.').unwrap_or_else(|| panic!("{text} has decimals"));
    assert_eq!(cents.len(), 2, "{text} has two decimals");
    sign * (yuan.parse::<i64>().expect("yuan") * 100 + cents.parse::<i64>().expect("fen"))
}

/// Fen as the wire writes them.
pub fn yuan(fen: i64) -> String {
    let sign = if fen < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", fen.abs() / 100, fen.abs() % 100)
}
