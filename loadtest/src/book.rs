//! How far the book is behind the journal, seen from outside through the service's readiness.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::client;

/// Looks at a service's readiness now and then.
#[derive(Debug)]
pub struct BookWatch {
    operations: SocketAddr,
    /// When the journal's position was seen, oldest first, from the last one the book has reached on.
    seen: Vec<(Instant, u64)>,
    /// The longest that an entry was seen to wait for the book.
    pub worst: Duration,
    /// The most entries seen to wait.
    pub worst_entries: u64,
}

/// Positions of journal and book.
#[derive(Clone, Copy, Debug)]
struct Positions {
    journal: u64,
    book: u64,
}

impl BookWatch {
    /// Watches the service whose operations listener is here.
    pub fn new(operations: SocketAddr) -> Self {
        Self { operations, seen: Vec::new(), worst: Duration::ZERO, worst_entries: 0 }
    }

    /// Takes a look. What the book lacks is as old as the last look at which the journal lacked it too.
    pub fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        let positions = self.positions()?;
        self.note(now, positions);
        Ok(())
    }

    fn note(&mut self, now: Instant, Positions { journal, book }: Positions) {
        let reached = self.seen.iter().rposition(|(_, journal)| *journal <= book);
        self.seen.drain(..reached.unwrap_or_default());
        if let Some((at, _)) = self.seen.first().filter(|_| book < journal) {
            self.worst = self.worst.max(now - *at);
        }
        self.worst_entries = self.worst_entries.max(journal.saturating_sub(book));
        self.seen.push((now, journal));
    }

    /// Waits until the book has all that the journal had when this was called.
    pub fn wait(&self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        let wanted = self.positions()?.journal;
        while self.positions()?.book < wanted {
            if began.elapsed() > patience {
                bail!("the book is still behind after {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(began.elapsed())
    }

    fn positions(&self) -> Result<Positions> {
        let (status, text) = client::get_blocking(self.operations, "/readyz", None)?;
        ensure!(status == 200, "/readyz answers {status}: {text}");
        Positions::read(&text)
            .with_context(|| format!("/readyz does not say where journal and book are: {text}"))
    }
}

impl Positions {
    fn read(readiness: &str) -> Option<Self> {
        let readiness: Value = serde_json::from_str(readiness).ok()?;
        let position = |pointer| readiness.pointer(pointer).and_then(Value::as_u64);
        Some(Self { journal: position("/journal/position")?, book: position("/book/position")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_the_age_of_the_oldest_entry_the_book_lacks() {
        let mut watch = BookWatch::new(SocketAddr::from(([127, 0, 0, 1], 1)));
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        watch.note(at(0), Positions { journal: 100, book: 100 });
        watch.note(at(1), Positions { journal: 200, book: 100 });
        assert_eq!(watch.worst, Duration::from_secs(1));
        watch.note(at(2), Positions { journal: 300, book: 200 });
        assert_eq!(watch.worst, Duration::from_secs(1));
        watch.note(at(3), Positions { journal: 400, book: 200 });
        assert_eq!(watch.worst, Duration::from_secs(2));
        watch.note(at(4), Positions { journal: 400, book: 400 });
        watch.note(at(60), Positions { journal: 400, book: 400 });
        watch.note(at(61), Positions { journal: 500, book: 400 });
        assert_eq!(watch.worst, Duration::from_secs(2), "an idle journal does not make its book late");
        assert_eq!(watch.worst_entries, 200);
    }

    #[test]
    fn positions_are_read_from_the_readiness() {
        let positions = Positions::read(r#"{"journal":{"position":12},"book":{"position":7}}"#).unwrap();
        assert_eq!((positions.journal, positions.book), (12, 7));
        assert!(Positions::read("{}").is_none());
    }
}
