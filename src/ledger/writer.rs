//! The writer: one thread owns state and journal ([`Desk`]); everyone else holds a [`Ledger`], which
//! hands it commands and waits for the outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Sender, TrySendError};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::command::{ClaimAt, Command, Draft, Failure, Outcome, Stored};
use super::desk::Desk;
use super::entry::{ClaimMade, Effects, Entry, Hash, Key};
use super::recent::Recent;
use super::state::{FoldError, State};
use super::{KeyRing, Published};
use crate::clock::Clock;
use crate::journal::{Head, Journal, JournalError, Reader, Row};
use crate::json::Unwritable;
use crate::limits;

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
    /// An entry cannot be written as JSON.
    #[error("entry {position}: {cause}")]
    Unwritable {
        /// Where.
        position: u64,
        /// What the writer of JSON says.
        cause: Unwritable,
    },
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

/// What is queued.
pub(super) enum Work {
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
pub(super) struct Shared {
    pub published: ArcSwap<Published>,
    pub queued: AtomicUsize,
    pub position: AtomicU64,
    pub recent: Recent,
    /// What keeps the ledger from deciding.
    pub trouble: ArcSwapOption<&'static str>,
    /// Whether other processes may append to the same journal.
    pub is_shared: bool,
    /// Whether the machine's clock is not that of whoever else appends: nothing is stamped with it.
    pub is_clock_off: AtomicBool,
}

impl Shared {
    /// Whether a journal that is shared is away: nobody is made to wait for it, and it is looked for.
    pub fn is_away(&self) -> bool {
        self.is_shared && self.trouble.load().is_some()
    }
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
    thread: JoinHandle<Head>,
}

impl Writer {
    /// Lets the writer finish what is queued, and waits for it. The end of the journal that it knew, unless
    /// it had failed.
    pub fn stop(self) -> Option<Head> {
        // A full queue is drained by the writer; a closed one means that it has ended.
        let _ = self.queue.send(Work::Stop);
        let head = self.thread.join();
        if head.is_err() {
            tracing::error!("the writer had failed");
        }
        head.ok()
    }
}

impl Ledger {
    /// Folds `journal` and starts the writer on it. An empty journal is given `journal_id` in its first
    /// entry.
    pub fn open(
        journal: Box<dyn Journal>,
        reader: Arc<dyn Reader>,
        clock: Clock,
        journal_id: Key,
        observer: Box<dyn Observer>,
    ) -> Result<(Self, Writer), OpenError> {
        Self::open_from(State::default(), journal, reader, clock, journal_id, observer)
    }

    /// The same from a state that is a fold of the journal's first entries: what follows is folded.
    pub fn open_from(
        mut state: State,
        mut journal: Box<dyn Journal>,
        reader: Arc<dyn Reader>,
        clock: Clock,
        journal_id: Key,
        observer: Box<dyn Observer>,
    ) -> Result<(Self, Writer), OpenError> {
        fold_rest(&mut state, &mut *journal)?;
        let shared = Arc::new(Shared {
            published: ArcSwap::from_pointee(published(&state)),
            queued: AtomicUsize::new(0),
            position: AtomicU64::new(state.head().position),
            recent: Recent::new(journal.is_shared()),
            trouble: ArcSwapOption::empty(),
            is_shared: journal.is_shared(),
            is_clock_off: AtomicBool::new(false),
        });
        let (queue, work) = crossbeam_channel::bounded(limits::QUEUE_COMMANDS_MAX);
        let mut desk = Desk::new(state, journal, clock, observer, Arc::clone(&shared))?;
        desk.open_journal(journal_id)?;
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || desk.run(&work))
            .map_err(OpenError::Thread)?;
        Ok((Self { queue: queue.clone(), shared, reader, clock }, Writer { queue, thread }))
    }

    /// Hands a command to the writer and waits until its outcome is durable, or until
    /// [`limits::DECISION_TIMEOUT`] has passed: then the outcome is found by asking again. The command is
    /// carried out even if the caller goes away. A claim that is asked for again may be known without the writer.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Failure> {
        match &command {
            Command::Make(draft) => {
                if let Some(claim) = self.made_before(draft) {
                    return Ok(Outcome::Claim(claim));
                }
            }
            // Whoever asks for the claim after this waits behind it.
            Command::Cancel { request } => self.shared.recent.forget(request),
            _ => {}
        }
        let (reply, outcome) = oneshot::channel();
        self.enqueue(Work::One(command, reply))?;
        match tokio::time::timeout(limits::DECISION_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(Failure::Unavailable),
        }
    }

    /// The claim that `draft` asks for again, if it was made a short while ago and has not moved since. Only
    /// where nobody else appends to the journal: else it must be looked at first.
    fn made_before(&self, draft: &Draft) -> Option<ClaimAt> {
        let stored = self.shared.recent.claim_of(draft)?;
        draft.was_hashed_under(&self.published().hash_keys).then_some(())?;
        Some(ClaimAt { position: stored.entry.position, fresh: Some(stored), unchanged: true })
    }

    /// The same for many that are to be appended together; answers are in their order.
    pub async fn submit_all(&self, commands: Vec<Command>) -> Result<Vec<Result<Outcome, Failure>>, Failure> {
        let (reply, outcomes) = oneshot::channel();
        self.enqueue(Work::Many(commands, reply))?;
        match tokio::time::timeout(limits::DECISION_TIMEOUT, outcomes).await {
            Ok(Ok(outcomes)) => Ok(outcomes),
            _ => Err(Failure::Unavailable),
        }
    }

    /// The position of the journal's last entry at some moment after this was asked.
    pub async fn look(&self) -> Result<u64, Failure> {
        if self.shared.is_shared {
            self.submit(Command::Look).await?;
        }
        Ok(self.position())
    }

    /// The journal's last entry at some moment after this was asked, as this process has folded it.
    pub async fn last(&self) -> Result<Arc<Stored>, Failure> {
        match self.submit(Command::Look).await? {
            Outcome::Head(head) => self.stored_at(head).await,
            _ => Err(Failure::Unavailable),
        }
    }

    /// The entry that `head` names. None other: a journal that was replaced by an older copy, and has been
    /// appended to since, may have another there.
    pub async fn stored_at(&self, head: Head) -> Result<Arc<Stored>, Failure> {
        let stored = self.stored(head.position).await?;
        if stored.hash == head.hash {
            return Ok(stored);
        }
        tracing::error!(
            position = head.position,
            "the journal has another entry there than this process knows"
        );
        Err(Failure::Unavailable)
    }

    fn enqueue(&self, work: Work) -> Result<(), Failure> {
        if self.shared.is_away() {
            return Err(Failure::Unavailable);
        }
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

    /// One entry, its hash checked unless this process made it a short while ago.
    pub async fn stored(&self, position: u64) -> Result<Arc<Stored>, Failure> {
        let mut stored = self.stored_all(&[position]).await?;
        stored.pop().ok_or(Failure::Unavailable)
    }

    /// Entries in the order asked for, their hashes checked unless all were made by this process a short while
    /// ago.
    pub async fn stored_all(&self, positions: &[u64]) -> Result<Vec<Arc<Stored>>, Failure> {
        if let Some(entries) = self.shared.recent.entries(positions) {
            return Ok(entries);
        }
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

    /// Says whether the machine's clock is off. While it is, nothing is appended: an entry from the future
    /// would end the holds of all processes, and what they sell now would be long past.
    pub fn set_clock_off(&self, is_off: bool) {
        self.shared.is_clock_off.store(is_off, Ordering::Relaxed);
    }

    /// The service's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

/// Reads a row: the hash is that of the bytes, and the bytes are the entry of its position.
pub fn stored<M: DeserializeOwned>(row: &Row) -> Result<Stored<M>, OpenError> {
    if !row.is_hashed_right() {
        return Err(OpenError::Hash { position: row.position });
    }
    Ok(Stored { entry: Entry::decode(row.position, &row.entry)?, hash: row.hash })
}

/// Folds everything in `journal` that follows the state's head.
///
/// # Errors
/// When the journal cannot be read, or an entry does not follow; the state is that before it.
pub fn fold_rest(state: &mut State, journal: &mut dyn Journal) -> Result<(), OpenError> {
    catch_up(state, journal, &mut |_: Stored<Effects>| {})
}

/// Folds everything that follows the state's head, reading as much of it as `each` asks for. When there
/// is much, as at start, reading, decoding and folding go on beside each other.
pub(super) fn catch_up<S, C>(
    state: &mut State,
    journal: &mut dyn Journal,
    each: &mut dyn FnMut(Stored<ClaimMade<S, C>>),
) -> Result<(), OpenError>
where
    S: DeserializeOwned + Send + Sync,
    C: DeserializeOwned + Send + Sync,
{
    let first = journal.read(state.head().position, limits::JOURNAL_READ_ENTRIES_MAX)?;
    catch_up_from(state, journal, first, each)
}

/// The same, the first rows having been read.
pub(super) fn catch_up_from<S, C>(
    state: &mut State,
    journal: &mut dyn Journal,
    mut first: Vec<Row>,
    each: &mut dyn FnMut(Stored<ClaimMade<S, C>>),
) -> Result<(), OpenError>
where
    S: DeserializeOwned + Send + Sync,
    C: DeserializeOwned + Send + Sync,
{
    let after = state.head().position;
    let mut fold_all = |decoded: Result<Vec<Stored<ClaimMade<S, C>>>, OpenError>| -> Result<(), OpenError> {
        let mut decoded = decoded?.into_iter();
        while !decoded.as_slice().is_empty() {
            let next = decoded.as_slice().iter().take(limits::FOLD_WARMED_ENTRIES);
            let made = next.filter_map(|stored| stored.entry.event.claim_made());
            made.for_each(|made| state.warm(made.keys.iter()));
            for stored in decoded.by_ref().take(limits::FOLD_WARMED_ENTRIES) {
                state.fold(&stored.entry, stored.hash, None)?;
                each(stored);
            }
        }
        Ok(())
    };
    let decode = |rows: Vec<Row>| rows.iter().map(stored).collect();
    for _ in 0..limits::CATCH_UP_BATCHES_ALONE {
        let is_all = first.len() < limits::JOURNAL_READ_ENTRIES_MAX;
        let last = first.last().map_or(after, |row| row.position);
        fold_all(decode(first))?;
        if is_all {
            return Ok(());
        }
        first = journal.read(last, limits::JOURNAL_READ_ENTRIES_MAX)?;
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

/// What commands are prepared with, as the state has it.
pub(super) fn published(state: &State) -> Published {
    Published {
        programmes: Arc::clone(state.programmes().current()),
        history: Arc::clone(state.programmes()),
        activated_at: state.activated_at(),
        format: state.format(),
        keys: KeyRing::new(state.journal_id().unwrap_or(Key::new([0; 16]))),
        hash_keys: state.hash_keys().clone(),
    }
}
