//! The audit: while the service runs, a thread folds the journal anew from its first entry and compares
//! what comes out with the book's totals and with the state that decides, and raises the alarm on any
//! difference. The same thread takes the snapshots from which the next start is quick, and after such a
//! start it audits at once: what lies before a snapshot was not looked at then.
//!
//! It goes slowly and never makes the writer wait for long: it rests [`limits::AUDIT_REST`] times as long
//! as it works, and asks the state for digests of small parts, each as of a position that the fold is then
//! brought to. While it folds it takes as much memory as the state; between audits none. Snapshots are made
//! from a fold of its own too: the state that decides is never copied.
//!
//! A difference does not stop the service: claims are decided on the state in memory, which an altered row
//! or book does not reach, and whether a whole province stops selling is for its operators to decide. But
//! snapshots are not used any more, nor taken, until an audit finds everything to agree.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Handle;

use crate::background;
use crate::book::Book;
use crate::book::cube::Cube;
use crate::journal::{JournalError, Row};
use crate::ledger::entry::{Effects, Hash};
use crate::ledger::snapshot::{self, Snapshot, Snapshots, Unusable};
use crate::ledger::state::{Part, State};
use crate::ledger::{Command, Ledger, Outcome, writer};
use crate::limits;
use crate::verify::{Fault, Refolded};

/// What the thread tells.
#[derive(Debug)]
pub enum Finding {
    /// State, book and journal agree up to a position.
    Agree {
        /// The position.
        position: u64,
    },
    /// They do not.
    Differ(Fault),
    /// A snapshot was taken.
    Taken {
        /// Which.
        snapshot: Snapshot,
        /// How long folding what was new and writing it took, rests included.
        took: Duration,
    },
}

/// What the thread has to do.
pub struct Tasks {
    /// The ledger to audit, and to take snapshots of.
    pub ledger: Ledger,
    /// The book to audit.
    pub book: Arc<dyn Book>,
    /// How often audits begin; none but that of a start from a snapshot, if not given.
    pub audit_interval: Option<Duration>,
    /// Where snapshots are kept, and how long it is at least from one to the next; none are taken if not
    /// given.
    pub snapshots: Option<(Snapshots, Duration)>,
    /// The snapshot that the ledger was opened from.
    pub opened_from: Option<Snapshot>,
}

/// The running thread. Dropping it asks the thread to stop.
#[derive(Debug)]
pub struct Audit {
    thread: Option<JoinHandle<()>>,
    stop: Option<Sender<()>>,
}

impl Audit {
    /// Does these tasks until it is stopped, and hands what each comes to to `report`. Audits begin soon
    /// after the start for the first time. Futures run on `runtime`, which must be driven until
    /// [`Audit::stop`] has returned.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        tasks: Tasks,
        runtime: Handle,
        report: impl Fn(Finding) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let first = match tasks.opened_from {
            Some(_) => Some(Duration::ZERO),
            None => tasks.audit_interval.map(|interval| interval.min(limits::AUDIT_FIRST)),
        };
        let now = Instant::now();
        let auditor = Auditor {
            audit_at: first.map(|pause| now + pause),
            snapshot_at: tasks.snapshots.as_ref().map(|(_, interval)| now + *interval),
            last: tasks.opened_from,
            is_trusted: true,
            is_format_told: false,
            tasks,
            runtime,
            stopped,
            report: Box::new(report),
        };
        let thread = background::spawn("audit", move || auditor.run())?;
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

/// Why an audit did not come to its end, or a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("the service is stopping")]
    Stopping,
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the ledger did not answer")]
    Ledger,
    #[error("the snapshot could not be written: {0}")]
    Snapshot(#[from] io::Error),
    #[error("the snapshot before cannot be used: {0}")]
    Before(#[from] Unusable),
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
    tasks: Tasks,
    runtime: Handle,
    /// Closed when it is time to stop.
    stopped: Receiver<()>,
    report: Box<dyn Fn(Finding) + Send>,
    /// When the next audit begins, if there is one to be.
    audit_at: Option<Instant>,
    /// From when on a snapshot may be taken, if one is due then.
    snapshot_at: Option<Instant>,
    /// The last snapshot that the journal names, as far as this process knows.
    last: Option<Snapshot>,
    /// False from an audit that found the state or the journal to differ until one that finds nothing.
    is_trusted: bool,
    /// Whether it was told that the journal's format is too old for snapshots.
    is_format_told: bool,
}

impl Auditor {
    fn run(mut self) {
        loop {
            let until_audit = self.audit_at.map(|at| at.saturating_duration_since(Instant::now()));
            let done = if until_audit.is_some_and(|pause| pause.is_zero()) {
                self.audit_and_tell()
            } else if self.is_snapshot_due() {
                self.renew_snapshot()
            } else {
                self.rest(until_audit.unwrap_or(limits::SNAPSHOT_PACE).min(limits::SNAPSHOT_PACE))
            };
            match done {
                Ok(()) => {}
                Err(Unfinished::Stopping) => return,
                Err(Unfinished::Found(fault)) => self.raise_alarm(fault),
                Err(why) => tracing::warn!(%why, "the audit or a snapshot is put off"),
            }
        }
    }

    fn audit_and_tell(&mut self) -> Result<(), Unfinished> {
        let began = Instant::now();
        let interval = self.tasks.audit_interval;
        // Until it has come to an end.
        self.audit_at =
            Some(began + interval.map_or(limits::AUDIT_FIRST, |own| own.min(limits::AUDIT_FIRST)));
        let audited = self.audit();
        if matches!(audited, Ok(_) | Err(Unfinished::Found(_))) {
            self.audit_at = interval.map(|interval| Instant::now() + interval);
        }
        let journal = audited?;
        let (position, seconds) = (journal.head().position, began.elapsed().as_secs());
        tracing::info!(position, seconds, "the audit found state, book and journal to agree");
        self.is_trusted = true;
        (self.report)(Finding::Agree { position });
        if self.is_snapshot_due() {
            self.take_snapshot(journal.state(), Instant::now())?;
        }
        Ok(())
    }

    fn raise_alarm(&mut self, fault: Fault) {
        tracing::error!(%fault, "the audit found a difference");
        if fault.is_of_the_ledger() {
            self.is_trusted = false;
            self.last = None;
            if let Some((snapshots, _)) = &self.tasks.snapshots {
                snapshots.distrust();
            }
        }
        (self.report)(Finding::Differ(fault));
    }

    /// Waits, unless it is time to stop.
    fn rest(&self, pause: Duration) -> Result<(), Unfinished> {
        match self.stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Unfinished::Stopping),
        }
    }

    fn is_stopping(&self) -> bool {
        self.rest(Duration::ZERO).is_err()
    }

    /// The journal, folded up to where everything agrees.
    fn audit(&self) -> Result<Refolded, Unfinished> {
        let mut journal = Refolded::default();
        // The book first: whatever it says, the journal said before.
        let mut book = Ok(());
        match self.runtime.block_on(self.tasks.book.cube()) {
            Ok((position, cube)) => book = self.compare_book(&mut journal, position, &cube),
            Err(error) => tracing::warn!(%error, "the audit goes on without the book"),
        }
        // A book that differs is told of once it is known that nothing worse does.
        if !matches!(book, Err(Unfinished::Found(Fault::Book(_)))) {
            std::mem::replace(&mut book, Ok(()))?;
        }
        self.fold(&mut journal, self.tasks.ledger.position())?;
        self.compare_part(&mut journal, Part::Rest)?;
        let mut first = 0;
        while first < journal.state().claim_count() {
            self.compare_part(&mut journal, Part::Claims { first })?;
            first += limits::DIGEST_CLAIMS_MAX;
        }
        self.compare_part(&mut journal, Part::Rest)?;
        self.compare_programmes(&journal)?;
        journal.compare_funds()?;
        book.map(|()| journal)
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

    /// Compares all programmes there ever were; those that others have activated since are left to the next
    /// audit.
    fn compare_programmes(&self, journal: &Refolded) -> Result<(), Unfinished> {
        let (published, state) = (self.tasks.ledger.published(), journal.state());
        if published.activated_at == state.activated_at() && published.history != *state.programmes() {
            let position = journal.head().position;
            return Err(Unfinished::Found(Fault::State { position, part: Part::Rest }));
        }
        Ok(())
    }

    /// A digest of a part of the state and its position, which is not before `after`.
    fn ask(&self, after: u64, part: Part) -> Result<(u64, Hash), Unfinished> {
        for _ in 0..limits::AUDIT_TRIES {
            match self.runtime.block_on(self.tasks.ledger.submit(Command::DigestOf(part))) {
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
        self.read(journal.head().position, position, &mut |row| journal.fold(row))
    }

    /// Hands on the entries after one position up to another, which the journal has reached.
    fn read(
        &self,
        mut after: u64,
        position: u64,
        fold: &mut dyn FnMut(&Row) -> Result<(), Fault>,
    ) -> Result<(), Unfinished> {
        while after < position {
            let began = Instant::now();
            let missing = usize::try_from(position - after).unwrap_or(usize::MAX);
            let limit = missing.min(limits::JOURNAL_READ_ENTRIES_MAX);
            let rows = self.runtime.block_on(self.tasks.ledger.journal().after(after, limit))?;
            let Some(last) = rows.last() else {
                let reason = format!("the entry is missing, and all up to {position} after it");
                return Err(Fault::Bad { position: after + 1, reason }.into());
            };
            rows.iter().try_for_each(&mut *fold)?;
            after = last.position;
            self.rest(began.elapsed() * limits::AUDIT_REST)?;
        }
        Ok(())
    }
}

// --- Snapshots ---

impl Auditor {
    /// Whether so much has been appended since the last snapshot that the next start would be much slower
    /// than from a new one.
    fn is_snapshot_due(&mut self) -> bool {
        let may_be = self.snapshot_at.is_some_and(|at| at <= Instant::now());
        if !may_be || !self.is_trusted {
            return false;
        }
        let format = self.tasks.ledger.published().format;
        if format < snapshot::FORMAT_MIN {
            if !std::mem::replace(&mut self.is_format_told, true) {
                tracing::info!(format, "no snapshots are taken: the journal's format does not know them");
            }
            return false;
        }
        let position = self.tasks.ledger.position();
        let new = position.saturating_sub(self.last.map_or(0, |last| last.position));
        // One is the entry that names the last.
        new > (position / limits::SNAPSHOT_PARTS).max(1)
    }

    /// Takes a snapshot of what the one before, or nothing, and the entries after it come to.
    fn renew_snapshot(&mut self) -> Result<(), Unfinished> {
        let began = Instant::now();
        let Some((snapshots, interval)) = &self.tasks.snapshots else { return Ok(()) };
        self.snapshot_at = Some(began + *interval);
        let reader = self.tasks.ledger.journal();
        let mut read = |after, limit| self.runtime.block_on(reader.after(after, limit));
        let stopped = self.stopped.clone();
        let pace = move |bytes: usize| match stopped
            .recv_timeout(limits::SNAPSHOT_READ_REST * u32::try_from(bytes).unwrap_or(u32::MAX))
        {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(io::Error::other("the service is stopping")),
        };
        let mut state = match self.last {
            Some(last) => match snapshots.load(last, &mut read, pace) {
                Ok(state) => state,
                Err(_) if self.is_stopping() => return Err(Unfinished::Stopping),
                Err(why) => {
                    self.last = None;
                    return Err(why.into());
                }
            },
            None => State::default(),
        };
        self.read(state.head().position, self.tasks.ledger.position(), &mut |row| {
            let bad = |reason: String| Fault::Bad { position: row.position, reason };
            let stored = writer::stored::<Effects>(row).map_err(|error| bad(error.to_string()))?;
            state.fold(&stored.entry, stored.hash, None).map_err(|error| bad(error.to_string()))
        })?;
        self.take_snapshot(&state, began)
    }

    /// Writes a snapshot of a state that is a fold of the journal, and has the journal name it.
    fn take_snapshot(&mut self, state: &State, began: Instant) -> Result<(), Unfinished> {
        let Some((snapshots, interval)) = &self.tasks.snapshots else { return Ok(()) };
        let written = snapshots.write(state, &mut |worked| {
            self.rest(worked * limits::AUDIT_REST).map_err(|why| io::Error::other(why.to_string()))
        });
        let snapshot = match written {
            Err(_) if self.is_stopping() => return Err(Unfinished::Stopping),
            written => written?,
        };
        let Snapshot { position, digest } = snapshot;
        let name = Command::NameSnapshot { position, digest };
        if self.runtime.block_on(self.tasks.ledger.submit(name)).is_err() {
            snapshots.remove(position);
            return Err(Unfinished::Ledger);
        }
        snapshots.remove_old();
        let took = began.elapsed();
        let seconds = took.as_secs();
        tracing::info!(position, %digest, seconds, "a snapshot was taken");
        self.last = Some(snapshot);
        self.snapshot_at = Some(Instant::now() + *interval);
        (self.report)(Finding::Taken { snapshot, took });
        Ok(())
    }
}
