//! The writer: one thread owns state and journal. It takes what is queued, decides each command in
//! order, appends all entries in one durable write, and only then answers.
//!
//! Entries are folded into the state as they are decided, before they are durable, with their inverses
//! kept; nobody is answered from such a state. If the append fails the inverses are applied. A failed
//! append is not guessed about: the journal is looked at until it is known whether the entries are in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::apply::{self, Answer, Decision};
use super::command::{CancelOutcome, ClaimAt, Command, Failure, FundView, Outcome, Quoted, Stored};
use super::entry::{Algorithm, ClaimMade, Effects, Entry, Event, Hash, Key, VERSION};
use super::state::{FoldError, State, Undo};
use super::{KeyRing, Published};
use crate::clock::Clock;
use crate::journal::{Head, Journal, JournalError, Reader, Row};
use crate::limits;
use crate::time::Timestamp;

/// What the writer tells others about.
pub trait Observer: Send {
    /// Entries became durable, in order.
    fn appended(&mut self, entries: &[Arc<Stored>]);
    /// A batch was decided and appended: how many entries, and how long the append took.
    fn batch(&mut self, entries: usize, append: Duration);
}

/// Why the ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal does not answer.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A row's hash is not that of its bytes.
    #[error("entry {position}: the stored hash is not that of the stored bytes")]
    Hash {
        /// Where.
        position: u64,
    },
    /// A row cannot be read.
    #[error(transparent)]
    Unreadable(#[from] super::entry::Unreadable),
    /// A row does not follow from those before it.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The journal is not the one that this process has answered from: an older copy was restored, or a
    /// standby that lagged was promoted. Nothing is decided on it: what was answered must not be
    /// contradicted.
    #[error(
        "the journal no longer has entry {position} ({hash}) that this process has answered from: restore the journal \
         that has it, or start this process anew if the loss is accepted"
    )]
    OtherHistory {
        /// The last entry known.
        position: u64,
        /// Its hash.
        hash: Hash,
    },
    /// The writer's thread could not be started.
    #[error("the writer could not be started: {0}")]
    Thread(std::io::Error),
}

enum Work {
    One(Command, oneshot::Sender<Result<Outcome, Failure>>),
    Many(Vec<Command>, oneshot::Sender<Vec<Result<Outcome, Failure>>>),
    Stop,
}

impl Work {
    fn len(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many(commands, _) => commands.len(),
            Self::Stop => 0,
        }
    }
}

/// What the writer shares with everyone.
struct Shared {
    published: ArcSwap<Published>,
    queued: AtomicUsize,
    position: AtomicU64,
    /// What keeps the ledger from deciding.
    trouble: ArcSwapOption<&'static str>,
    /// Whether other processes may append to the same journal.
    is_shared: bool,
}

/// A handle on the ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    queue: Sender<Work>,
    shared: Arc<Shared>,
    reader: Arc<dyn Reader>,
    clock: Clock,
}

/// The writer's thread; stop it to leave a clean journal.
pub struct Writer {
    queue: Sender<Work>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Lets the writer finish what is queued, and waits for it.
    pub fn stop(self) {
        // A full queue is drained by the writer; a closed one means that it has ended.
        let _ = self.queue.send(Work::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the writer had failed");
        }
    }
}

impl Ledger {
    /// Folds `journal` and starts the writer on it. An empty journal is given `journal_id` in its first
    /// entry.
    pub fn open(
        mut journal: Box<dyn Journal>,
        reader: Arc<dyn Reader>,
        clock: Clock,
        journal_id: Key,
        observer: Box<dyn Observer>,
    ) -> Result<(Self, Writer), OpenError> {
        let mut state = State::default();
        catch_up(&mut state, &mut *journal, &mut |_: Stored<Effects>| {})?;
        let shared = Arc::new(Shared {
            published: ArcSwap::from_pointee(published(&state)),
            queued: AtomicUsize::new(0),
            position: AtomicU64::new(state.head().position),
            trouble: ArcSwapOption::empty(),
            is_shared: journal.is_shared(),
        });
        let (queue, work) = crossbeam_channel::bounded(limits::QUEUE_COMMANDS_MAX);
        let mut desk = Desk {
            state,
            journal,
            clock,
            observer,
            shared: Arc::clone(&shared),
            undo: Undo::default(),
            rows: Vec::new(),
            fresh: Vec::new(),
            in_doubt: false,
        };
        if desk.state.journal_id().is_none() {
            desk.open_journal(journal_id)?;
        }
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || desk.run(&work))
            .map_err(OpenError::Thread)?;
        Ok((Self { queue: queue.clone(), shared, reader, clock }, Writer { queue, thread }))
    }

    /// Hands a command to the writer and waits until its outcome is durable, or until
    /// [`limits::DECISION_TIMEOUT`] has passed: then the outcome is found by asking again. The command is
    /// carried out even if the caller goes away.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Failure> {
        self.ensure_answering()?;
        let (reply, outcome) = oneshot::channel();
        self.enqueue(Work::One(command, reply))?;
        match tokio::time::timeout(limits::DECISION_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(Failure::Unavailable),
        }
    }

    /// The same for many that are to be appended together; answers are in their order.
    pub async fn submit_all(&self, commands: Vec<Command>) -> Result<Vec<Result<Outcome, Failure>>, Failure> {
        self.ensure_answering()?;
        let (reply, outcomes) = oneshot::channel();
        self.enqueue(Work::Many(commands, reply))?;
        match tokio::time::timeout(limits::DECISION_TIMEOUT, outcomes).await {
            Ok(Ok(outcomes)) => Ok(outcomes),
            _ => Err(Failure::Unavailable),
        }
    }

    /// While a shared journal is away nobody is made to wait for it; the writer looks for it by itself.
    fn ensure_answering(&self) -> Result<(), Failure> {
        if self.shared.is_shared && self.shared.trouble.load().is_some() {
            return Err(Failure::Unavailable);
        }
        Ok(())
    }

    /// The position of the journal's last entry at some moment after this was asked.
    pub async fn look(&self) -> Result<u64, Failure> {
        if self.shared.is_shared {
            self.submit(Command::Look).await?;
        }
        Ok(self.position())
    }

    fn enqueue(&self, work: Work) -> Result<(), Failure> {
        let len = work.len();
        if self.shared.queued.fetch_add(len, Ordering::Relaxed) + len > limits::QUEUE_COMMANDS_MAX {
            self.shared.queued.fetch_sub(len, Ordering::Relaxed);
            return Err(Failure::Overloaded);
        }
        self.queue.try_send(work).map_err(|error| {
            self.shared.queued.fetch_sub(len, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => Failure::Overloaded,
                TrySendError::Disconnected(_) => Failure::Unavailable,
            }
        })
    }

    /// One entry, its hash checked.
    pub async fn stored(&self, position: u64) -> Result<Arc<Stored>, Failure> {
        let mut stored = self.stored_all(&[position]).await?;
        stored.pop().ok_or(Failure::Unavailable)
    }

    /// Entries, their hashes checked, in the order asked for.
    pub async fn stored_all(&self, positions: &[u64]) -> Result<Vec<Arc<Stored>>, Failure> {
        let rows = self.reader.rows(positions).await.map_err(|error| {
            tracing::error!(%error, "entries could not be read");
            Failure::Unavailable
        })?;
        rows.iter()
            .map(|row| {
                stored(row).map(Arc::new).map_err(|error| {
                    tracing::error!(%error, "an entry could not be read");
                    Failure::Unavailable
                })
            })
            .collect()
    }

    /// The readers' side of the journal.
    pub fn journal(&self) -> &Arc<dyn Reader> {
        &self.reader
    }

    /// What commands are prepared with.
    pub fn published(&self) -> arc_swap::Guard<Arc<Published>> {
        self.shared.published.load()
    }

    /// The position of the last durable entry this process has folded.
    pub fn position(&self) -> u64 {
        self.shared.position.load(Ordering::Acquire)
    }

    /// Commands waiting.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// What keeps the ledger from deciding, as far as the last commands have shown.
    pub fn trouble(&self) -> Option<&'static str> {
        self.shared.trouble.load().as_deref().copied()
    }

    /// The service's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

/// Reads a row: the hash is that of the bytes, and the bytes are the entry of its position.
pub fn stored<M: DeserializeOwned>(row: &Row) -> Result<Stored<M>, OpenError> {
    if Hash::of(&row.entry) != row.hash {
        return Err(OpenError::Hash { position: row.position });
    }
    Ok(Stored { entry: Entry::decode(row.position, &row.entry)?, hash: row.hash })
}

/// Folds everything that follows the state's head, reading as much of it as `each` asks for. When there
/// is much, as at start, reading, decoding and folding go on beside each other.
fn catch_up<S, C>(
    state: &mut State,
    journal: &mut dyn Journal,
    each: &mut dyn FnMut(Stored<ClaimMade<S, C>>),
) -> Result<(), OpenError>
where
    S: DeserializeOwned + Send + Sync,
    C: DeserializeOwned + Send + Sync,
{
    let after = state.head().position;
    let mut fold_all = |decoded: Result<Vec<Stored<ClaimMade<S, C>>>, OpenError>| {
        for stored in decoded? {
            state.fold(&stored.entry, stored.hash, None)?;
            each(stored);
        }
        Ok(())
    };
    let decode = |rows: Vec<Row>| rows.iter().map(stored).collect();
    let first = journal.read(after, limits::JOURNAL_READ_ENTRIES_MAX)?;
    if first.len() < limits::JOURNAL_READ_ENTRIES_MAX {
        return fold_all(decode(first));
    }
    std::thread::scope(|scope| {
        // Batches go round the decoders, and come back in the same round.
        let (mut rows_to, mut decoded_from) = (Vec::new(), Vec::new());
        for _ in 0..limits::DECODERS {
            let (rows_out, rows_in) = sync_channel(1);
            let (decoded_out, decoded_in) = sync_channel(1);
            // Whoever folds does not listen any more when it has found a fault.
            scope.spawn(move || rows_in.into_iter().try_for_each(|rows| decoded_out.send(decode(rows))));
            rows_to.push(rows_out);
            decoded_from.push(decoded_in);
        }
        let reading = scope.spawn(move || {
            let mut rows = first;
            for decoder in rows_to.iter().cycle() {
                let Some(row) = rows.last() else { break };
                let last = row.position;
                if decoder.send(rows).is_err() {
                    break;
                }
                rows = journal.read(last, limits::JOURNAL_READ_ENTRIES_MAX)?;
            }
            Ok(())
        });
        for decoder in decoded_from.iter().cycle() {
            // The end: nobody sends any more.
            let Ok(decoded) = decoder.recv() else { break };
            fold_all(decoded)?;
        }
        reading.join().unwrap_or_else(|_| Err(JournalError::Unusable("it could not be read".into())))?;
        Ok(())
    })
}

fn published(state: &State) -> Published {
    Published {
        programmes: Arc::clone(state.programmes().current()),
        history: Arc::clone(state.programmes()),
        activated_at: state.activated_at(),
        keys: KeyRing::new(state.journal_id().unwrap_or(Key::new([0; 16]))),
        hash_keys: state.hash_keys().clone(),
    }
}

/// What was decided about a command, before the entries it rests on are durable.
enum Decided {
    /// The command's own entry, by its place among the fresh ones, or an answer that changes nothing.
    Entered(usize),
    Answered(Box<Answer>),
    Failed(Failure),
}

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

/// The writer's desk.
struct Desk {
    state: State,
    journal: Box<dyn Journal>,
    clock: Clock,
    observer: Box<dyn Observer>,
    shared: Arc<Shared>,
    undo: Undo,
    /// What will be appended next, and the same entries unencoded.
    rows: Vec<Row>,
    fresh: Vec<Arc<Stored>>,
    /// Whether the journal may hold something that the state has not seen.
    in_doubt: bool,
}

impl Desk {
    fn open_journal(&mut self, journal_id: Key) -> Result<(), OpenError> {
        let now = self.now();
        self.enter(Event::JournalOpened { journal_id }, now)?;
        match self.append() {
            Ok(()) => self.settle(),
            Err(JournalError::Moved) => {
                self.discard();
                catch_up(&mut self.state, &mut *self.journal, &mut |_: Stored<Effects>| {})?;
            }
            Err(error) => return Err(error.into()),
        }
        self.publish();
        Ok(())
    }

    fn run(mut self, queue: &Receiver<Work>) {
        let _until_the_end = Alarm(Arc::clone(&self.shared));
        let mut works: Vec<Work> = Vec::new();
        loop {
            let first = match self.until_own_work() {
                Some(wait) => queue.recv_timeout(wait),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(work) => works.push(work),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let mut commands: usize = works.iter().map(Work::len).sum();
            while commands < limits::WRITER_BATCH_COMMANDS_MAX
                && let Ok(work) = queue.try_recv()
            {
                commands += work.len();
                works.push(work);
            }
            let stop = works.iter().any(|work| matches!(work, Work::Stop));
            self.shared.queued.fetch_sub(commands, Ordering::Relaxed);
            self.serve(&mut works);
            if queue.is_empty() {
                self.journal.end_turn();
            }
            if stop && queue.is_empty() {
                return;
            }
            if stop {
                works.push(Work::Stop);
            }
        }
    }

    /// Never before the last entry.
    fn now(&self) -> Timestamp {
        self.clock.now().max(self.state.at())
    }

    /// How long there is nothing to do but what is asked for: until a hold expires, or a journal that is
    /// away is looked for.
    fn until_own_work(&self) -> Option<Duration> {
        const RETRY: Duration = Duration::from_secs(1);
        if self.shared.is_shared && self.shared.trouble.load().is_some() {
            return Some(limits::LEDGER_PROBE);
        }
        let (until, _) = self.state.first_hold()?;
        let wait = u64::try_from(until.ms() - self.clock.now().ms()).unwrap_or(0);
        // While the journal does not answer there is no use in trying at once again.
        Some(if self.in_doubt { RETRY } else { Duration::from_millis(wait) })
    }

    /// Serves a batch of work: decides, appends, answers.
    fn serve(&mut self, works: &mut Vec<Work>) {
        let (commands, replies) = unpack(works);
        let mut decided = self.try_serve(&commands);
        if self.shared.is_shared
            && matches!(decided, Err(OpenError::Journal(JournalError::Unknown(_))))
            && self.resolve_doubt().is_ok()
        {
            // A connection had ended. What may have been appended is known by now, and finds its key.
            decided = self.try_serve(&commands);
        }
        self.tell_trouble(decided.as_ref().err());
        if decided.is_err() {
            // The journal failed. What only asks can still be answered if the journal can be read.
            let readable = self.resolve_doubt().is_ok();
            decided = Ok(commands
                .iter()
                .map(|command| {
                    if readable && only_asks(command) {
                        let now = self.now();
                        self.decide_asking(command, now)
                    } else {
                        Decided::Failed(Failure::Unavailable)
                    }
                })
                .collect());
        }
        let mut outcomes: Vec<Result<Outcome, Failure>> =
            decided.unwrap_or_default().into_iter().map(|decided| self.outcome(decided)).collect();
        let mut outcomes = outcomes.drain(..);
        for reply in replies {
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
        self.fresh.clear();
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

    /// Decides all and appends what they enter. On an error nothing is folded that is not durable.
    fn try_serve(&mut self, commands: &[Command]) -> Result<Vec<Decided>, OpenError> {
        if self.in_doubt {
            self.resolve_doubt()?;
        }
        if commands.iter().any(|command| !only_asks(command)) && self.journal.take_turn()? {
            self.catch_up()?;
        }
        for _ in 0..=limits::WRITER_LOST_RACES_MAX {
            let now = self.now();
            let decided = match self.decide_all(commands, now) {
                Ok(decided) => decided,
                Err(error) => {
                    self.discard();
                    return Err(error);
                }
            };
            let written = if self.rows.is_empty() { self.look() } else { self.append() };
            match written {
                Ok(()) => {
                    self.settle();
                    return Ok(decided);
                }
                Err(JournalError::Moved) => self.fall_behind()?,
                Err(error) if self.rows.is_empty() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "it is not known whether entries were appended");
                    self.in_doubt = true;
                    match self.find_out(error) {
                        Ok(()) => {
                            self.in_doubt = false;
                            self.settle();
                            return Ok(decided);
                        }
                        Err(JournalError::Moved) => self.fall_behind()?,
                        Err(error) => {
                            self.discard();
                            return Err(error.into());
                        }
                    }
                }
            }
        }
        Err(JournalError::Moved.into())
    }

    fn decide_all(&mut self, commands: &[Command], now: Timestamp) -> Result<Vec<Decided>, OpenError> {
        for _ in 0..limits::WRITER_BATCH_EXPIRIES_MAX {
            match self.state.first_hold() {
                Some((until, claim)) if until <= now => {
                    let Some(event) = apply::expire(&self.state, claim, now) else { break };
                    self.enter(event, now)?;
                }
                _ => break,
            }
        }
        let mut decided = Vec::with_capacity(commands.len());
        for command in commands {
            // An entry that cannot be folded leaves the state as it was: only its own command fails.
            decided.push(self.decide_one(command, now).unwrap_or_else(|fault| {
                tracing::error!(%fault, "a command was decided on an entry that does not follow");
                Decided::Failed(Failure::Unavailable)
            }));
        }
        Ok(decided)
    }

    fn decide_one(&mut self, command: &Command, now: Timestamp) -> Result<Decided, OpenError> {
        for _ in 0..limits::WRITER_BATCH_EXPIRIES_MAX {
            match apply::decide(&self.state, command, now) {
                Decision::Enter(event) => {
                    self.enter(event, now)?;
                    return Ok(Decided::Entered(self.fresh.len() - 1));
                }
                Decision::ExpireFirst(claim) => match apply::expire(&self.state, claim, now) {
                    Some(event) => self.enter(event, now)?,
                    None => break,
                },
                Decision::Answer(answer) => return Ok(Decided::Answered(answer)),
                Decision::Refuse(refusal) => return Ok(Decided::Failed(Failure::Refused(refusal))),
                Decision::TryAgain => break,
            }
        }
        Ok(Decided::Failed(Failure::Overloaded))
    }

    /// Decides what only asks, on the durable state alone.
    fn decide_asking(&self, command: &Command, now: Timestamp) -> Decided {
        match apply::decide(&self.state, command, now) {
            Decision::Answer(answer) => Decided::Answered(answer),
            Decision::Refuse(refusal) => Decided::Failed(Failure::Refused(refusal)),
            _ => Decided::Failed(Failure::Unavailable),
        }
    }

    /// Makes an entry of `event`, folds it and puts it with those to append.
    fn enter(&mut self, event: Event, now: Timestamp) -> Result<(), OpenError> {
        let head = self.state.head();
        let entry = Entry {
            v: VERSION,
            position: head.position + 1,
            alg: Algorithm::Sha256,
            prev: head.hash,
            at: now,
            event,
        };
        let mut bytes = Vec::with_capacity(1280);
        entry
            .encode(&mut bytes)
            .map_err(|cause| super::entry::Unreadable::Malformed { position: entry.position, cause })?;
        let hash = Hash::of(&bytes);
        self.state.fold(&entry, hash, Some(&mut self.undo))?;
        self.rows.push(Row { position: entry.position, hash, entry: bytes.into() });
        self.fresh.push(Arc::new(Stored { entry, hash }));
        Ok(())
    }

    fn expected(&self) -> Head {
        match self.fresh.first() {
            Some(first) => Head { position: first.entry.position - 1, hash: first.entry.prev },
            None => self.state.head(),
        }
    }

    fn append(&mut self) -> Result<(), JournalError> {
        let expected = self.expected();
        let began = Instant::now();
        self.journal.append(expected, &self.rows)?;
        self.observer.batch(self.rows.len(), began.elapsed());
        Ok(())
    }

    /// With several processes: is the state's head still the journal's?
    fn look(&mut self) -> Result<(), JournalError> {
        if self.journal.is_shared() && self.journal.head()? != self.state.head() {
            return Err(JournalError::Moved);
        }
        Ok(())
    }

    /// What was folded is durable.
    fn settle(&mut self) {
        self.undo.clear();
        self.rows.clear();
        if !self.fresh.is_empty() {
            self.observer.appended(&self.fresh);
            let activated = |stored: &Arc<Stored>| {
                matches!(
                    stored.entry.event,
                    Event::ProgrammesActivated { .. }
                        | Event::JournalOpened { .. }
                        | Event::HashKeyIntroduced { .. }
                )
            };
            if self.fresh.iter().any(activated) {
                self.publish();
            }
            self.shared.position.store(self.state.head().position, Ordering::Release);
        }
    }

    /// What was folded is not in the journal.
    fn discard(&mut self) {
        self.state.unfold(&mut self.undo);
        self.rows.clear();
        self.fresh.clear();
    }

    fn publish(&self) {
        self.shared.published.store(Arc::new(published(&self.state)));
    }

    /// Folds what other processes have appended.
    fn catch_up(&mut self) -> Result<(), OpenError> {
        let mut news = Vec::new();
        let caught_up =
            catch_up(&mut self.state, &mut *self.journal, &mut |stored| news.push(Arc::new(stored)));
        if !news.is_empty() {
            self.observer.appended(&news);
            self.publish();
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
        let found = self.journal.read(before, 1)?;
        if found.first().is_some_and(|row| row.position == head.position && row.hash == head.hash) {
            return Ok(());
        }
        self.in_doubt = true;
        Err(OpenError::OtherHistory { position: head.position, hash: head.hash })
    }

    /// Another process has appended: its entries are folded before anything is decided again.
    fn fall_behind(&mut self) -> Result<(), OpenError> {
        self.discard();
        self.journal.take_turn()?;
        self.ensure_same_history()?;
        self.catch_up()?;
        self.in_doubt = false;
        Ok(())
    }

    /// After an append whose outcome was not learned: looks a few times whether the entries are in. Where
    /// the journal is shared they are sent again as long as nothing else is in their place.
    fn find_out(&mut self, cause: JournalError) -> Result<(), JournalError> {
        const PAUSES_MS: [u64; 4] = [0, 20, 100, 400];
        let (expected, count) = (self.expected(), self.rows.len());
        let began = Instant::now();
        let mut last = cause;
        for pause in PAUSES_MS {
            if began.elapsed() > limits::POSTGRES_TIMEOUT {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            match self.journal.reopen().and_then(|()| self.journal.read(expected.position, count)) {
                Ok(found) if found == self.rows => return Ok(()),
                Ok(_) if !self.shared.is_shared => break,
                Ok(found) if !found.is_empty() => return Err(JournalError::Moved),
                Ok(_) => match self.journal.append(expected, &self.rows) {
                    Ok(()) => return Ok(()),
                    // It is looked at again: it may be the first append that was before.
                    Err(error) => last = error,
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Brings the state to what is really stored, after an append whose outcome was not learned.
    fn resolve_doubt(&mut self) -> Result<(), OpenError> {
        self.journal.reopen()?;
        self.ensure_same_history()?;
        self.catch_up()?;
        self.in_doubt = false;
        Ok(())
    }

    fn outcome(&self, decided: Decided) -> Result<Outcome, Failure> {
        let at = |position, unchanged| ClaimAt { position, fresh: None, unchanged };
        match decided {
            Decided::Failed(failure) => Err(failure),
            Decided::Entered(place) => match self.fresh.get(place) {
                Some(stored) => Ok(self.entered(stored)),
                None => Err(Failure::Unavailable),
            },
            Decided::Answered(answer) => Ok(match *answer {
                Answer::Claim(position) => Outcome::Claim(at(position, true)),
                Answer::Cancelled(position) => Outcome::Cancel(CancelOutcome::Cancelled(at(position, true))),
                Answer::NothingToCancel(position) => {
                    Outcome::Cancel(CancelOutcome::NothingToCancel(at(position, true)))
                }
                Answer::KeySpent => Outcome::Cancel(CancelOutcome::KeySpent),
                Answer::Quote(determination, refusal) => {
                    Outcome::Quote(Box::new(Quoted { determination, refusal }))
                }
                Answer::Fund(fund) => Outcome::Fund(fund),
                Answer::Funds(funds, position) => Outcome::Funds { funds, position },
                Answer::FundReplay(position) => Outcome::FundReplay(position),
                Answer::Done => Outcome::Done,
                Answer::Digest => {
                    Outcome::Digest { position: self.state.head().position, digest: self.state.digest() }
                }
                Answer::DigestOf(part) => Outcome::Digest {
                    position: self.state.head().position,
                    digest: self.state.digest_of(part),
                },
            }),
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
            | Event::ProgrammesActivated { .. } => Outcome::Done,
        }
    }
}

enum Reply {
    One(oneshot::Sender<Result<Outcome, Failure>>),
    Many(usize, oneshot::Sender<Vec<Result<Outcome, Failure>>>),
}

fn unpack(works: &mut Vec<Work>) -> (Vec<Command>, Vec<Reply>) {
    let mut commands = Vec::with_capacity(works.len());
    let mut replies = Vec::with_capacity(works.len());
    for work in works.drain(..) {
        match work {
            Work::One(command, reply) => {
                commands.push(command);
                replies.push(Reply::One(reply));
            }
            Work::Many(mut many, reply) => {
                replies.push(Reply::Many(many.len(), reply));
                commands.append(&mut many);
            }
            Work::Stop => {}
        }
    }
    (commands, replies)
}
