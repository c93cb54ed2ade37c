//! The audit: while the service runs, a thread folds the journal anew from its first entry and compares
//! what comes out with the book's totals and with the state that decides, and raises the alarm on any
//! difference.
//!
//! It goes slowly and never makes the writer wait for long: it rests [`limits::AUDIT_REST`] times as long
//! as it works, and asks the state for digests of small parts, each as of a position that the fold is then
//! brought to. While it folds it takes as much memory as the state; between audits none.
//!
//! A difference does not stop the service: claims are decided on the state in memory, which an altered row
//! or book does not reach, and whether a whole province stops selling is for its operators to decide.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Handle;

use crate::book::Book;
use crate::book::cube::Cube;
use crate::journal::JournalError;
use crate::ledger::entry::Hash;
use crate::ledger::state::Part;
use crate::ledger::{Command, Ledger, Outcome};
use crate::limits;
use crate::verify::{Fault, Refolded};

/// What an audit that came to its end found.
#[derive(Debug)]
pub enum Finding {
    /// State, book and journal agree up to a position.
    Agree {
        /// The position.
        position: u64,
    },
    /// They do not.
    Differ(Fault),
}

/// The running thread. Dropping it asks the thread to stop.
#[derive(Debug)]
pub struct Audit {
    thread: Option<JoinHandle<()>>,
    stop: Option<Sender<()>>,
}

impl Audit {
    /// Audits every `interval`, soon after the start for the first time, and hands what each comes to to
    /// `report`. Futures run on `runtime`, which must be driven until [`Audit::stop`] has returned.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        ledger: Ledger,
        book: Arc<dyn Book>,
        interval: Duration,
        runtime: Handle,
        report: impl Fn(Finding) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let auditor = Auditor { ledger, book, runtime, stopped };
        let run = move || auditor.run(interval, &report);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(run)?;
        Ok(Self { thread: Some(thread), stop: Some(stop) })
    }

    /// Stops at once, in the middle of an audit if need be.
    pub fn stop(mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit had failed");
        }
    }
}

/// Why an audit did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("the service is stopping")]
    Stopping,
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the ledger did not answer")]
    Ledger,
    #[error(transparent)]
    Found(Fault),
}

impl From<Fault> for Unfinished {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Journal(error) => Self::Journal(error),
            fault => Self::Found(fault),
        }
    }
}

struct Auditor {
    ledger: Ledger,
    book: Arc<dyn Book>,
    runtime: Handle,
    /// Closed when it is time to stop.
    stopped: Receiver<()>,
}

impl Auditor {
    fn run(&self, interval: Duration, report: &dyn Fn(Finding)) {
        let mut pause = interval.min(limits::AUDIT_FIRST);
        while self.rest(pause).is_ok() {
            let began = Instant::now();
            match self.audit() {
                Ok(position) => {
                    let seconds = began.elapsed().as_secs();
                    tracing::info!(position, seconds, "the audit found state, book and journal to agree");
                    report(Finding::Agree { position });
                }
                Err(Unfinished::Stopping) => return,
                Err(Unfinished::Found(fault)) => {
                    tracing::error!(%fault, "the audit found a difference");
                    report(Finding::Differ(fault));
                }
                Err(why) => tracing::warn!(%why, "the audit could not be finished; it is tried again"),
            }
            pause = interval;
        }
    }

    /// Waits, unless it is time to stop.
    fn rest(&self, pause: Duration) -> Result<(), Unfinished> {
        match self.stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Unfinished::Stopping),
        }
    }

    /// The position up to which everything agrees.
    fn audit(&self) -> Result<u64, Unfinished> {
        let mut journal = Refolded::default();
        // The book first: whatever it says, the journal said before.
        match self.runtime.block_on(self.book.cube()) {
            Ok((position, cube)) => self.compare_book(&mut journal, position, &cube)?,
            Err(error) => tracing::warn!(%error, "the audit goes on without the book"),
        }
        self.fold(&mut journal, self.ledger.position())?;
        self.compare_part(&mut journal, Part::Rest)?;
        let mut first = 0;
        while first < journal.state().claim_count() {
            self.compare_part(&mut journal, Part::Claims { first })?;
            first += limits::DIGEST_CLAIMS_MAX;
        }
        self.compare_part(&mut journal, Part::Rest)?;
        journal.compare_funds()?;
        Ok(journal.head().position)
    }

    /// Compares the book's totals at `position`.
    fn compare_book(&self, journal: &mut Refolded, position: u64, cube: &Cube) -> Result<(), Unfinished> {
        self.fold(journal, position)?;
        Ok(journal.compare_book(cube)?)
    }

    /// Compares a part of the state that decides, as it is now.
    fn compare_part(&self, journal: &mut Refolded, part: Part) -> Result<(), Unfinished> {
        let (position, digest) = self.ask(journal.head().position, part)?;
        self.fold(journal, position)?;
        let began = Instant::now();
        if journal.state().digest_of(part) != digest {
            return Err(Unfinished::Found(Fault::State { position, part }));
        }
        self.rest(began.elapsed() * limits::AUDIT_REST)
    }

    /// A digest of a part of the state and its position, which is not before `after`.
    fn ask(&self, after: u64, part: Part) -> Result<(u64, Hash), Unfinished> {
        for _ in 0..limits::AUDIT_TRIES {
            match self.runtime.block_on(self.ledger.submit(Command::DigestOf(part))) {
                Ok(Outcome::Digest { position, digest }) if position >= after => {
                    return Ok((position, digest));
                }
                _ => self.rest(Duration::from_secs(1))?,
            }
        }
        Err(Unfinished::Ledger)
    }

    /// Folds the journal up to `position`, which it has reached.
    fn fold(&self, journal: &mut Refolded, position: u64) -> Result<(), Unfinished> {
        while journal.head().position < position {
            let began = Instant::now();
            let after = journal.head().position;
            let missing = usize::try_from(position - after).unwrap_or(usize::MAX);
            let limit = missing.min(limits::JOURNAL_READ_ENTRIES_MAX);
            let rows = self.runtime.block_on(self.ledger.journal().after(after, limit))?;
            if rows.is_empty() {
                let reason = format!("the entry is missing, and all up to {position} after it");
                return Err(Fault::Bad { position: after + 1, reason }.into());
            }
            for row in &rows {
                journal.fold(row)?;
            }
            self.rest(began.elapsed() * limits::AUDIT_REST)?;
        }
        Ok(())
    }
}
