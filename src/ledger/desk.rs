//! The writer's desk: takes what is queued, decides each command in order, appends all entries in one
//! durable write, and only then answers.
//!
//! Entries are folded into the state as they are decided, before they are durable, with their inverses
//! kept; nobody is answered from such a state. While one batch is being written, those who wait already
//! are decided on top of it; they are answered when their own entries are durable too. If an append fails
//! the inverses are applied, newest first. A failed append is not guessed about: the journal is looked at
//! until it is known whether the entries are in.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, bounded};
use tokio::sync::oneshot;

use super::apply::{self, Answer, Decision};
use super::command::{CancelOutcome, ClaimAt, Command, Failure, FundView, Outcome, Quoted, Stored};
use super::entry::{Algorithm, Effects, Entry, Event, Hash, Key, VERSION};
use super::state::{State, Undo};
use super::writer::{Observer, OpenError, Shared, Work, catch_up_from, fold_rest, published};
use crate::clock::Clock;
use crate::journal::{Head, Journal, JournalError, Row};
use crate::limits;
use crate::time::Timestamp;

/// Whether a command can change anything.
fn only_asks(command: &Command) -> bool {
    match command {
        Command::Make(draft) => draft.is_twin,
        Command::Quote(_)
        | Command::Locate(_)
        | Command::Fund(_)
        | Command::Funds
        | Command::Look
        | Command::Digest
        | Command::DigestOf(_) => true,
        _ => false,
    }
}

/// Whether an event changes what commands are prepared with.
fn is_published<M>(event: &Event<M>) -> bool {
    matches!(
        event,
        Event::ProgrammesActivated { .. }
            | Event::JournalOpened { .. }
            | Event::HashKeyIntroduced { .. }
            | Event::FormatActivated { .. }
    )
}

/// Whether a clock that said `before` and says `now` went otherwise than the time that has `passed`.
fn has_jumped(before: Timestamp, now: Timestamp, passed: Duration) -> bool {
    let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
    u128::from((now.ms() - before.ms()).abs_diff(passed)) > limits::CLOCK_DIFFERENCE_MAX.as_millis()
}

/// Says that the ledger is not there any more, however the writer ended.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.trouble.store(Some(Arc::new("the ledger has ended")));
        if std::thread::panicking() {
            tracing::error!("the writer failed; the process must be started anew");
        }
    }
}

/// Who waits for what was decided.
enum Reply {
    One(oneshot::Sender<Result<Outcome, Failure>>),
    Many(usize, oneshot::Sender<Vec<Result<Outcome, Failure>>>),
}

/// Commands that were taken together, what was decided about them, and the entries that this rests on.
struct Batch {
    commands: Vec<Command>,
    replies: Vec<Reply>,
    outcomes: Vec<Result<Outcome, Failure>>,
    /// When it began to be filled.
    began: Instant,
    /// What is to be appended, and the same entries unencoded.
    rows: Vec<Row>,
    fresh: Vec<Arc<Stored>>,
    undo: Undo,
}

impl Batch {
    fn new() -> Self {
        Self {
            commands: Vec::new(),
            replies: Vec::new(),
            outcomes: Vec::new(),
            began: Instant::now(),
            rows: Vec::new(),
            fresh: Vec::new(),
            undo: Undo::default(),
        }
    }

    /// Takes what is queued, some `more` commands but no more than one batch may have. Whether the writer is
    /// to stop.
    fn fill(&mut self, more: usize, first: Option<Work>, queue: &Receiver<Work>) -> bool {
        let mut stop = false;
        let mut next = first;
        let enough = (self.commands.len() + more).min(limits::WRITER_BATCH_COMMANDS_MAX);
        while self.commands.len() < enough
            && let Some(work) = next.take().or_else(|| queue.try_recv().ok())
        {
            match work {
                Work::One(command, reply) => {
                    self.commands.push(command);
                    self.replies.push(Reply::One(reply));
                }
                Work::Many(mut commands, reply) => {
                    self.replies.push(Reply::Many(commands.len(), reply));
                    self.commands.append(&mut commands);
                }
                Work::Stop => stop = true,
            }
        }
        stop
    }

    fn wants_to_change_something(&self) -> bool {
        self.commands.iter().any(|command| !only_asks(command))
    }

    /// Whether it changes what commands are prepared with.
    fn is_published(&self) -> bool {
        self.fresh.iter().any(|stored| is_published(&stored.entry.event))
    }

    /// Whether others are decided while it is written. Handing it to another thread costs some processor
    /// time, which small batches do not gain back.
    fn is_worth_sending(&self) -> bool {
        self.commands.len() >= limits::WRITER_SENT_COMMANDS_MIN && !self.is_published()
    }

    /// The head that its first entry follows.
    fn expected(&self) -> Option<Head> {
        let first = &self.fresh.first()?.entry;
        Some(Head { position: first.position - 1, hash: first.prev })
    }

    /// Whether these rows of the journal are its entries.
    fn is_what(&self, found: &[Row]) -> bool {
        found.len() == self.fresh.len()
            && found.iter().zip(&self.fresh).all(|(row, stored)| {
                row.position == stored.entry.position && row.hash == stored.hash && row.is_hashed_right()
            })
    }

    /// Says of each command that it could not be decided.
    fn give_up(mut self) {
        self.outcomes = self.commands.iter().map(|_| Err(Failure::Unavailable)).collect();
        self.answer();
    }

    fn answer(self) {
        let mut outcomes = self.outcomes.into_iter();
        for reply in self.replies {
            // A caller that has gone away is no reason to do anything else.
            match reply {
                Reply::One(reply) => {
                    let _ = reply.send(outcomes.next().unwrap_or(Err(Failure::Unavailable)));
                }
                Reply::Many(count, reply) => {
                    let _ = reply.send(outcomes.by_ref().take(count).collect());
                }
            }
        }
    }
}

/// Whether this process has its turn to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// Nobody else appends.
    NotNeeded,
    /// It was waited for; it ends with the next append.
    Taken,
}

/// What an append came to: the rows back, and how long it took.
type Appended = (Vec<Row>, Result<Duration, JournalError>);

/// Appends on a thread of its own, so that others are decided meanwhile.
struct Appender {
    /// None only while it is being dropped.
    jobs: Option<Sender<(Head, Vec<Row>)>>,
    done: Receiver<Appended>,
    thread: Option<JoinHandle<()>>,
}

impl Appender {
    fn start(journal: Arc<Mutex<Box<dyn Journal>>>) -> Result<Self, OpenError> {
        let (jobs, taken) = bounded::<(Head, Vec<Row>)>(1);
        let (put, done) = bounded(1);
        let append = move || {
            for (expected, rows) in taken {
                let began = Instant::now();
                let appended = lock(&journal).append(expected, &rows).map(|()| began.elapsed());
                if put.send((rows, appended)).is_err() {
                    return;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("appender".into()).spawn(append).map_err(OpenError::Thread)?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread) })
    }

    /// Whether the rows are on their way; they are taken only then.
    fn send(&self, expected: Head, rows: &mut Vec<Row>) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        match jobs.send((expected, std::mem::take(rows))) {
            Ok(()) => true,
            Err(SendError((_, unsent))) => {
                *rows = unsent;
                false
            }
        }
    }

    /// Waits a moment for what was sent: to be woken by each command that comes would cost more.
    fn wait(&self, rows: &mut Vec<Row>) -> Option<Result<Duration, JournalError>> {
        match self.done.recv_timeout(limits::WRITER_GLANCE) {
            Ok((back, appended)) => {
                *rows = back;
                Some(appended)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(JournalError::Unknown("the thread that appends has ended".into())))
            }
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that appends had failed");
        }
    }
}

fn lock(journal: &Mutex<Box<dyn Journal>>) -> MutexGuard<'_, Box<dyn Journal>> {
    // A panic left no promise broken: what is in the journal is looked at, not remembered.
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The writer's desk.
pub struct Desk {
    state: State,
    journal: Arc<Mutex<Box<dyn Journal>>>,
    appender: Appender,
    clock: Clock,
    observer: Box<dyn Observer>,
    shared: Arc<Shared>,
    /// Whether the journal may hold something that the state has not seen.
    in_doubt: bool,
    /// Whether it was told to stop.
    is_stopping: bool,
    /// The last entry's bytes; kept for its room.
    encoded: Vec<u8>,
    /// When the clock was read last, and what it said.
    read: (Instant, Timestamp),
}

impl Desk {
    /// A desk for a state that has folded all of `journal`.
    pub fn new(
        state: State,
        journal: Box<dyn Journal>,
        clock: Clock,
        observer: Box<dyn Observer>,
        shared: Arc<Shared>,
    ) -> Result<Self, OpenError> {
        let journal = Arc::new(Mutex::new(journal));
        let appender = Appender::start(Arc::clone(&journal))?;
        Ok(Self {
            state,
            journal,
            appender,
            clock,
            observer,
            shared,
            in_doubt: false,
            is_stopping: false,
            encoded: Vec::with_capacity(limits::ENTRY_BYTES_USUAL),
            read: (Instant::now(), clock.now()),
        })
    }

    /// Gives an empty journal its first entry.
    pub fn open_journal(&mut self, journal_id: Key) -> Result<(), OpenError> {
        if self.state.journal_id().is_some() {
            return Ok(());
        }
        let mut batch = Batch::new();
        let now = self.now();
        self.enter(&mut batch, Event::JournalOpened { journal_id }, now)?;
        match self.append(&batch) {
            Ok(()) => self.settle(&mut batch),
            Err(JournalError::Moved) => {
                self.take_back(&mut batch);
                fold_rest(&mut self.state, &mut **lock(&self.journal))?;
                self.publish();
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Serves until it is told to stop and nothing is queued any more. The journal's end then.
    pub fn run(mut self, queue: &Receiver<Work>) -> Head {
        let _until_the_end = Alarm(Arc::clone(&self.shared));
        loop {
            let first = match self.until_own_work() {
                _ if self.is_stopping => None,
                Some(wait) => match queue.recv_timeout(wait) {
                    Ok(work) => Some(work),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return self.state.head(),
                },
                None => match queue.recv() {
                    Ok(work) => Some(work),
                    Err(_) => return self.state.head(),
                },
            };
            let mut batch = Batch::new();
            self.fill(&mut batch, limits::WRITER_TAKEN_COMMANDS, first, queue);
            // Who was queued when a shared journal was found to be away does not wait for it either.
            if self.shared.is_away() && !batch.commands.is_empty() {
                batch.give_up();
                if self.is_stopping && queue.is_empty() {
                    return self.state.head();
                }
                continue;
            }
            let mut prepared = self.prepare(&mut batch, queue);
            // While a batch is written, those who come are decided on top of it; not where others may append
            // in between. What changes how commands are prepared is written first.
            while matches!(prepared, Ok(Turn::NotNeeded)) && batch.is_worth_sending() && self.send(&mut batch)
            {
                let mut next = Batch::new();
                let landed = loop {
                    self.fill(&mut next, limits::WRITER_TAKEN_COMMANDS, None, queue);
                    self.decide(&mut next);
                    if let Some(landed) = self.appender.wait(&mut batch.rows) {
                        break landed;
                    }
                };
                let written = match landed {
                    Ok(took) => {
                        self.observer.batch(batch.rows.len(), took);
                        self.settle(&mut batch);
                        Ok(())
                    }
                    Err(error) => {
                        self.take_back(&mut next);
                        self.recover(&mut batch, error).and_then(|settled| match settled {
                            true => Ok(()),
                            false => self.write(&mut batch),
                        })
                    }
                };
                self.answer(batch, written);
                batch = next;
                let more = limits::WRITER_TAKEN_COMMANDS.saturating_sub(batch.commands.len());
                self.fill(&mut batch, more, None, queue);
                prepared = self.prepare(&mut batch, queue);
            }
            let written = prepared.and_then(|_| self.write(&mut batch));
            lock(&self.journal).end_turn();
            self.answer(batch, written);
            if self.is_stopping && queue.is_empty() {
                return self.state.head();
            }
        }
    }

    fn fill(&mut self, batch: &mut Batch, more: usize, first: Option<Work>, queue: &Receiver<Work>) {
        let before = batch.commands.len();
        self.is_stopping |= batch.fill(more, first, queue);
        self.shared.queued.fetch_sub(batch.commands.len() - before, Ordering::Relaxed);
    }

    /// Never before the last entry.
    fn now(&self) -> Timestamp {
        self.clock.now().max(self.state.at())
    }

    /// Whether entries may be stamped with the machine's clock. Where others append too one that jumps is
    /// not believed until it has been held against theirs, however soon that is.
    fn trusts_clock(&mut self) -> bool {
        let (since, before) = self.read;
        self.read = (Instant::now(), self.clock.now());
        if self.shared.is_shared && has_jumped(before, self.read.1, self.read.0 - since) {
            tracing::error!(
                "the machine's clock has jumped: nothing is appended until it agrees with PostgreSQL's"
            );
            self.shared.is_clock_off.store(true, Ordering::Relaxed);
        }
        !self.shared.is_clock_off.load(Ordering::Relaxed)
    }

    /// How long there is nothing to do but what is asked for: until a hold expires, or a journal that is
    /// away is looked for.
    fn until_own_work(&self) -> Option<Duration> {
        const RETRY: Duration = Duration::from_secs(1);
        if self.shared.is_away() {
            return Some(limits::LEDGER_PROBE);
        }
        let (until, _) = self.state.first_hold()?;
        let wait = u64::try_from(until.ms() - self.clock.now().ms()).unwrap_or(0);
        // While nothing can be appended there is no use in trying at once again.
        let is_in_trouble = self.in_doubt
            || self.shared.trouble.load().is_some()
            || self.shared.is_clock_off.load(Ordering::Relaxed);
        Some(if is_in_trouble { RETRY } else { Duration::from_millis(wait) })
    }

    /// Sees to it that a batch is decided on what the journal holds, as far as this process can know, and
    /// when it is this process's turn. Those who came while it was waited for are decided too.
    fn prepare(&mut self, batch: &mut Batch, queue: &Receiver<Work>) -> Result<Turn, OpenError> {
        if self.in_doubt {
            self.take_back(batch);
            self.resolve_doubt()?;
        }
        let mut turn = Turn::NotNeeded;
        if batch.wants_to_change_something() {
            let durable = batch.expected().unwrap_or(self.state.head());
            let others = lock(&self.journal).take_turn(durable.position);
            if !matches!(others, Ok(None)) {
                self.take_back(batch);
            }
            if let Some(others) = others? {
                self.fold_others(others)?;
                self.fill(batch, limits::WRITER_BATCH_COMMANDS_MAX, None, queue);
                turn = Turn::Taken;
            }
        }
        self.decide(batch);
        Ok(turn)
    }

    /// Decides the commands of a batch that are not decided yet, in order, and folds what they enter.
    fn decide(&mut self, batch: &mut Batch) {
        let may_enter = self.trusts_clock();
        let now = self.now();
        // However often the batch is added to: while an append hangs, all holds may end.
        for _ in batch.fresh.len()..limits::WRITER_BATCH_EXPIRIES_MAX {
            let expired = match self.state.first_hold() {
                Some((until, claim)) if may_enter && until <= now => apply::expire(&self.state, claim, now),
                _ => None,
            };
            let Some(event) = expired else { break };
            if let Err(fault) = self.enter(batch, event, now) {
                tracing::error!(%fault, "a hold cannot be expired");
                break;
            }
        }
        let commands = std::mem::take(&mut batch.commands);
        batch.outcomes.reserve(commands.len());
        let drafts = commands.iter().skip(batch.outcomes.len()).filter_map(|command| match command {
            Command::Make(draft) => Some(&draft.keys),
            _ => None,
        });
        drafts.for_each(|keys| self.state.warm(keys.iter()));
        for command in commands.iter().skip(batch.outcomes.len()) {
            // An entry that cannot be folded leaves the state as it was: only its own command fails.
            let outcome = self.decide_one(batch, command, now, may_enter).unwrap_or_else(|fault| {
                tracing::error!(%fault, "a command was decided on an entry that does not follow");
                Err(Failure::Unavailable)
            });
            batch.outcomes.push(outcome);
        }
        batch.commands = commands;
    }

    fn decide_one(
        &mut self,
        batch: &mut Batch,
        command: &Command,
        now: Timestamp,
        may_enter: bool,
    ) -> Result<Result<Outcome, Failure>, OpenError> {
        for _ in 0..limits::WRITER_BATCH_EXPIRIES_MAX {
            match apply::decide(&self.state, command, now) {
                Decision::Enter(_) | Decision::ExpireFirst(_) if !may_enter => {
                    return Ok(Err(Failure::Unavailable));
                }
                Decision::Enter(event) => {
                    let stored = self.enter(batch, event, now)?;
                    return Ok(Ok(self.entered(&stored)));
                }
                Decision::ExpireFirst(claim) => match apply::expire(&self.state, claim, now) {
                    Some(event) => {
                        self.enter(batch, event, now)?;
                    }
                    None => break,
                },
                Decision::Answer(answer) => return Ok(Ok(self.answered(*answer))),
                Decision::Refuse(refusal) => return Ok(Err(Failure::Refused(refusal))),
                Decision::TryAgain => break,
            }
        }
        Ok(Err(Failure::Overloaded))
    }

    /// Decides what only asks, on the durable state alone.
    fn decide_asking(&self, command: &Command) -> Result<Outcome, Failure> {
        match apply::decide(&self.state, command, self.now()) {
            Decision::Answer(answer) => Ok(self.answered(*answer)),
            Decision::Refuse(refusal) => Err(Failure::Refused(refusal)),
            _ => Err(Failure::Unavailable),
        }
    }

    /// Makes an entry of `event`, folds it and puts it with those to append.
    fn enter(&mut self, batch: &mut Batch, event: Event, now: Timestamp) -> Result<Arc<Stored>, OpenError> {
        let head = self.state.head();
        let v = match &event {
            Event::JournalOpened { .. } => VERSION,
            Event::FormatActivated { version } => *version,
            _ => self.state.format(),
        };
        let entry =
            Entry { v, position: head.position + 1, alg: Algorithm::Sha256, prev: head.hash, at: now, event };
        self.encoded.clear();
        entry
            .encode(&mut self.encoded)
            .map_err(|cause| OpenError::Unwritable { position: entry.position, cause })?;
        let hash = Hash::of(&self.encoded);
        self.state.fold(&entry, hash, Some(&mut batch.undo))?;
        if let Event::ClaimMoved(moved) = &entry.event {
            self.shared.recent.moves(moved.made);
        }
        batch.rows.push(Row { position: entry.position, hash, entry: self.encoded.as_slice().into() });
        let stored = Arc::new(Stored { entry, hash });
        batch.fresh.push(Arc::clone(&stored));
        Ok(stored)
    }

    /// Sends a decided batch to be appended. Whether it is on its way.
    fn send(&self, batch: &mut Batch) -> bool {
        let Some(expected) = batch.expected() else { return false };
        self.appender.send(expected, &mut batch.rows)
    }

    fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
        let Some(expected) = batch.expected() else { return self.look() };
        let began = Instant::now();
        lock(&self.journal).append(expected, &batch.rows)?;
        self.observer.batch(batch.rows.len(), began.elapsed());
        Ok(())
    }

    /// With several processes: is the state's head still the journal's?
    fn look(&self) -> Result<(), JournalError> {
        if self.shared.is_shared && lock(&self.journal).head()? != self.state.head() {
            return Err(JournalError::Moved);
        }
        Ok(())
    }

    /// Appends a decided batch, nothing being folded on top of it. On an error nothing of it is folded.
    fn write(&mut self, batch: &mut Batch) -> Result<(), OpenError> {
        for _ in 0..=limits::WRITER_LOST_RACES_MAX {
            match self.append(batch) {
                Ok(()) => {
                    self.settle(batch);
                    return Ok(());
                }
                Err(error) => {
                    if self.recover(batch, error)? {
                        return Ok(());
                    }
                }
            }
        }
        self.take_back(batch);
        Err(JournalError::Moved.into())
    }

    /// After an append that failed: finds out what became of it. Whether the entries are in the journal;
    /// if not, the batch was decided anew on what is.
    fn recover(&mut self, batch: &mut Batch, error: JournalError) -> Result<bool, OpenError> {
        self.shared.recent.forget_requests();
        let error = match error {
            JournalError::Moved => JournalError::Moved,
            error if batch.fresh.is_empty() => error,
            error => {
                tracing::warn!(%error, "it is not known whether entries were appended");
                self.in_doubt = true;
                match self.find_out(batch, error) {
                    Ok(()) => {
                        self.in_doubt = false;
                        self.settle(batch);
                        return Ok(true);
                    }
                    Err(error) => error,
                }
            }
        };
        self.take_back(batch);
        if !matches!(error, JournalError::Moved) {
            return Err(error.into());
        }
        // Others have appended: theirs are folded first, and it is this process's turn to wait for.
        let after = self.state.head().position;
        let others = match batch.wants_to_change_something() {
            true => lock(&self.journal).take_turn(after)?,
            false => None,
        };
        let others = match others {
            Some(others) => others,
            None => lock(&self.journal).read(after, limits::JOURNAL_READ_ENTRIES_MAX)?,
        };
        // Entries that follow the head show that the journal still has it: each names the one before.
        if others.is_empty() {
            self.ensure_same_history()?;
        }
        self.fold_others(others)?;
        self.in_doubt = false;
        self.decide(batch);
        // What only answers is true as of the catching up.
        Ok(batch.fresh.is_empty())
    }

    /// Whether a journal that others share has had all the time there is: nobody is made to wait for it for
    /// longer, and what became of the entries is found out for those who ask again.
    fn gives_up(&self, batch: &Batch) -> bool {
        self.shared.is_shared && batch.began.elapsed() >= limits::POSTGRES_TIMEOUT
    }

    /// After an append whose outcome was not learned: looks a few times whether the entries are in, unless
    /// that took all the time there is. Where the journal is shared they are sent again as long as nothing
    /// else is in their place.
    fn find_out(&self, batch: &Batch, cause: JournalError) -> Result<(), JournalError> {
        const PAUSES_MS: [u64; 4] = [0, 20, 100, 400];
        let Some(expected) = batch.expected() else { return Err(cause) };
        let mut last = cause;
        for pause in PAUSES_MS {
            if self.gives_up(batch) {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            let mut journal = lock(&self.journal);
            match journal.reopen().and_then(|()| journal.read(expected.position, batch.fresh.len())) {
                Ok(found) if batch.is_what(&found) => return Ok(()),
                Ok(_) if !self.shared.is_shared => break,
                Ok(found) if !found.is_empty() => return Err(JournalError::Moved),
                Ok(_) => match journal.append(expected, &batch.rows) {
                    Ok(()) => return Ok(()),
                    // It is looked at again: it may be the first append that came before.
                    Err(error) => last = error,
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// After a connection had ended: decides a batch once more. What of it may have been appended all the
    /// same is known by then, and finds its key.
    fn write_again(&mut self, batch: &mut Batch, error: OpenError) -> Result<(), OpenError> {
        if self.resolve_doubt().is_err() {
            return Err(error);
        }
        self.decide(batch);
        self.write(batch)
    }

    /// What was folded is durable.
    fn settle(&mut self, batch: &mut Batch) {
        batch.undo.clear();
        let Some(last) = batch.fresh.last() else { return };
        self.observer.appended(&batch.fresh);
        if batch.is_published() {
            self.publish();
        }
        self.shared.position.store(last.entry.position, Ordering::Release);
        // Last: whoever is answered from these finds them wherever else he looks.
        self.shared.recent.keep(&batch.fresh);
    }

    /// What was folded is not in the journal.
    fn take_back(&mut self, batch: &mut Batch) {
        self.state.unfold(&mut batch.undo);
        batch.rows.clear();
        batch.fresh.clear();
        batch.outcomes.clear();
    }

    /// Answers a batch whose entries are durable, or says of each command that it could not be decided.
    fn answer(&mut self, mut batch: Batch, written: Result<(), OpenError>) {
        let gives_up = self.gives_up(&batch);
        let written = match written {
            Err(error @ OpenError::Journal(JournalError::Unknown(_)))
                if self.shared.is_shared && !gives_up =>
            {
                self.write_again(&mut batch, error)
            }
            other => other,
        };
        self.tell_trouble(written.as_ref().err());
        if written.is_err() {
            // The journal failed. What only asks can still be answered if the journal can be read.
            let readable = !gives_up && self.resolve_doubt().is_ok();
            batch.outcomes = batch
                .commands
                .iter()
                .map(|command| match readable && only_asks(command) {
                    true => self.decide_asking(command),
                    false => Err(Failure::Unavailable),
                })
                .collect();
        }
        batch.answer();
    }

    /// Says what keeps this process from deciding, or that nothing does.
    fn tell_trouble(&self, error: Option<&OpenError>) {
        let trouble = error.map(|error| match error {
            OpenError::Journal(JournalError::Unusable(_)) => "the journal cannot be used; the log says why",
            OpenError::Journal(JournalError::Moved | JournalError::Unknown(_)) => {
                "the journal does not answer"
            }
            OpenError::Unreadable(_) => {
                "the journal has an entry that this version does not know; run the newest"
            }
            OpenError::OtherHistory { .. } => {
                "the journal is not the one that this process has answered from"
            }
            OpenError::Hash { .. } | OpenError::Fold(_) => "the journal does not verify; the log says where",
            OpenError::Thread(_) => "the machine has no room for a thread",
            OpenError::Unwritable { .. } => "an entry cannot be written; the log says why",
        });
        let told = self.shared.trouble.load().as_deref().copied();
        if trouble != told {
            self.shared.trouble.store(trouble.map(Arc::new));
            match error {
                Some(error) => tracing::error!(%error, "nothing is decided"),
                None => tracing::info!("the ledger decides again"),
            }
        }
    }

    fn publish(&self) {
        self.shared.published.store(Arc::new(published(&self.state)));
    }

    /// Folds what other processes have appended. Nobody is told of it: the book is carried on by whoever
    /// comes first, from the journal.
    fn catch_up(&mut self) -> Result<(), OpenError> {
        let after = self.state.head().position;
        let others = lock(&self.journal).read(after, limits::JOURNAL_READ_ENTRIES_MAX)?;
        self.fold_others(others)
    }

    /// The same, the first of their rows having been read.
    fn fold_others(&mut self, first: Vec<Row>) -> Result<(), OpenError> {
        self.shared.recent.forget_requests();
        let before = self.state.head();
        let mut is_news = false;
        let caught_up =
            catch_up_from(&mut self.state, &mut **lock(&self.journal), first, &mut |stored: Stored<
                Effects,
            >| {
                is_news |= is_published(&stored.entry.event)
            });
        if is_news {
            self.publish();
        }
        if self.state.head() != before {
            self.shared.position.store(self.state.head().position, Ordering::Release);
        }
        if let Err(OpenError::Fold(_)) = caught_up {
            self.ensure_same_history()?;
        }
        caught_up
    }

    /// The journal may have grown past this state, but what the state has folded must still be in it. If
    /// it is not (an older copy was restored, a standby that lagged was promoted) nothing is decided any
    /// more: what was answered must not be contradicted.
    fn ensure_same_history(&mut self) -> Result<(), OpenError> {
        let head = self.state.head();
        let Some(before) = head.position.checked_sub(1) else { return Ok(()) };
        let found = lock(&self.journal).read(before, 1)?;
        if found.first().is_some_and(|row| row.position == head.position && row.hash == head.hash) {
            return Ok(());
        }
        self.in_doubt = true;
        Err(OpenError::OtherHistory { position: head.position, hash: head.hash })
    }

    /// Brings the state to what is really stored, after an append whose outcome was not learned.
    fn resolve_doubt(&mut self) -> Result<(), OpenError> {
        lock(&self.journal).reopen()?;
        self.ensure_same_history()?;
        self.catch_up()?;
        self.in_doubt = false;
        Ok(())
    }

    fn answered(&self, answer: Answer) -> Outcome {
        let at = |position| ClaimAt { position, fresh: None, unchanged: true };
        match answer {
            Answer::Claim(position) => Outcome::Claim(at(position)),
            Answer::Cancelled(position) => Outcome::Cancel(CancelOutcome::Cancelled(at(position))),
            Answer::NothingToCancel(position) => {
                Outcome::Cancel(CancelOutcome::NothingToCancel(at(position)))
            }
            Answer::KeySpent => Outcome::Cancel(CancelOutcome::KeySpent),
            Answer::Quote(determination, refusal) => {
                Outcome::Quote(Box::new(Quoted { determination, refusal }))
            }
            Answer::Fund(fund) => Outcome::Fund(fund),
            Answer::Funds(funds, position) => Outcome::Funds { funds, position },
            Answer::FundReplay(position) => Outcome::FundReplay(position),
            Answer::Done => Outcome::Done,
            Answer::Head => Outcome::Head(self.state.head()),
            Answer::Digest => {
                Outcome::Digest { position: self.state.head().position, digest: self.state.digest() }
            }
            Answer::DigestOf(part) => {
                Outcome::Digest { position: self.state.head().position, digest: self.state.digest_of(part) }
            }
        }
    }

    /// The answer to a command from the entry it made.
    fn entered(&self, stored: &Arc<Stored>) -> Outcome {
        let fund = |id| self.state.find_fund(id).and_then(|ix| self.state.fund(ix)).map(apply::view);
        let claim =
            || ClaimAt { position: stored.entry.position, fresh: Some(Arc::clone(stored)), unchanged: false };
        match &stored.entry.event {
            Event::ClaimMade(_) => Outcome::Claim(claim()),
            Event::ClaimMoved(moved) if moved.to == crate::claim::Status::Cancelled => {
                Outcome::Cancel(CancelOutcome::Cancelled(claim()))
            }
            Event::ClaimMoved(_) => Outcome::Claim(claim()),
            Event::KeySpent { .. } => Outcome::Cancel(CancelOutcome::KeySpent),
            Event::FundOpened(opened) => Outcome::Fund(FundView::opened(opened)),
            Event::FundAdjusted(adjusted) => match fund(&adjusted.fund_id) {
                Some(now) => Outcome::Fund(FundView { balance: adjusted.after, ..now }),
                None => Outcome::Done,
            },
            Event::FundSwitched { fund_id, .. } => fund(fund_id).map_or(Outcome::Done, Outcome::Fund),
            Event::JournalOpened { .. }
            | Event::HashKeyIntroduced { .. }
            | Event::ProgrammesActivated { .. }
            | Event::FormatActivated { .. }
            | Event::SnapshotTaken { .. } => Outcome::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_jumps_where_it_goes_otherwise_than_time() {
        let at = Timestamp::from_ms;
        let minute = Duration::from_secs(60);
        for (now_ms, passed, jumped) in [
            (60_000, minute, false),
            (62_000, minute, false),
            (62_001, minute, true),
            (57_999, minute, true),
            (-60_000, minute, true),
            (0, Duration::ZERO, false),
        ] {
            assert_eq!(
                has_jumped(at(1_800_000_000_000), at(1_800_000_000_000 + now_ms), passed),
                jumped,
                "{now_ms}"
            );
        }
    }
}
