//! What every test stands on: the service as a process, callers with tokens, sales that are valid and
//! never the same twice, a random generator that means the same run for ever, and an independent reading
//! of the journal.

pub mod client;
pub mod fleet;
pub mod identifiers;
pub mod journal;
pub mod postgres;
pub mod programmes;
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

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::ThreadId;
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

/// Waits for a process to end, but not for ever, and says how it ended.
pub fn ended_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if began.elapsed() >= patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Longer than any test takes: the longest goes through a dozen faults.
fn longest_test() -> Duration {
    Duration::from_secs(8 * 60) + 20 * fleet::fault_span()
}

/// Tests that are running and have started something, by their threads.
static RUNNING: LazyLock<Mutex<HashMap<ThreadId, (String, Instant)>>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let running = RUNNING.lock().expect("the tests");
            if let Some((test, _)) = running.values().find(|(_, began)| began.elapsed() > longest_test()) {
                // Not eprintln!, which the harness keeps with the output of the test that began this thread.
                let told = format!("{test} stands still: it has been running for {:?}\n", longest_test());
                let _ = std::io::stderr().write_all(told.as_bytes());
                std::process::exit(1);
            }
        }
    });
    Mutex::default()
});

struct Watched;

impl Drop for Watched {
    fn drop(&mut self) {
        RUNNING.lock().expect("the tests").remove(&std::thread::current().id());
    }
}

/// Sees to it that the test of this thread ends: where it stands still the whole run fails, and says which
/// test it was.
pub fn watch() {
    thread_local! {
        static WATCHED: Watched = {
            let thread = std::thread::current();
            let began = (thread.name().unwrap_or("a test").to_owned(), Instant::now());
            RUNNING.lock().expect("the tests").insert(thread.id(), began);
            Watched
        };
    }
    WATCHED.with(|_| ());
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
