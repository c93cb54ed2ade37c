//! The projector: a thread that carries the journal into the book, a moment later.
//!
//! It never makes the writer wait. The writer offers each batch of durable entries through the
//! [`Feed`]; what the projector misses there it reads from the journal. Any process may project: the
//! book's head moves together with its rows and only from where it was expected, so whoever loses a
//! race looks again. So that they do not all do the same work, one carries the book on and the others
//! watch it ([`Tables::carry_on`]); they step in when it stands still. A book that does not belong to the
//! journal (another history, a restored copy, a damaged file) is dropped and rebuilt.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::batch::{Contradiction, Line};
use crate::background;
use crate::journal::{Head, JournalError, Reader};
use crate::ledger::Stored;
use crate::ledger::entry::{Entry, Unreadable};
use crate::limits;

/// The projector's side of a book; one per process.
pub trait Tables: Send {
    /// The entry up to which the book is true, [`Head::EMPTY`] of an empty book.
    fn head(&mut self) -> Result<Head, TablesError>;

    /// Whether this process is the one to carry the book on; if another is, that one has shown that it
    /// is there. Only a courtesy: [`Tables::apply`] is what keeps two apart.
    fn carry_on(&mut self) -> Result<bool, TablesError> {
        Ok(true)
    }

    /// Folds `lines`, which follow `expected` without gaps and end at `next`, in and moves the head, all or
    /// nothing, if the head is still `expected`. Calls `breathe` again and again while it is at work, for
    /// others to have the processor.
    fn apply(
        &mut self,
        expected: Head,
        next: Head,
        lines: &[Line],
        breathe: &mut dyn FnMut(),
    ) -> Result<(), TablesError>;

    /// Empties the book, whatever state it is in. Queries wait or fail meanwhile, and no other process may
    /// have it open, unless it is made for several.
    fn reset(&mut self) -> Result<(), TablesError>;

    /// Empties a sound book, which other processes may have open.
    fn clear(&mut self) -> Result<(), TablesError> {
        self.reset()
    }
}

/// Why the book's tables did not do what they were asked.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// Nothing was changed: the book's head is another than expected.
    #[error("another process has moved the book")]
    Moved,
    /// The entries do not go with what the book has.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// The book is of another history than the journal, damaged, or of a format not known here.
    #[error("the book does not fit: {0}")]
    Unfit(String),
    /// The book cannot be used now.
    #[error("the book cannot be written: {0}")]
    Unavailable(String),
}

/// Folds `lines` into a book whose head is `head` and says what its head is then.
pub fn advance(
    tables: &mut dyn Tables,
    head: Head,
    lines: &[Line],
    breathe: &mut dyn FnMut(),
) -> Result<Head, TablesError> {
    let mut next = head;
    for line in lines {
        if line.head.position != next.position + 1 || line.prev != next.hash {
            let what = format!("entry {} does not follow entry {}", line.head.position, next.position);
            return Err(TablesError::Unfit(what));
        }
        next = line.head;
    }
    tables.apply(head, next, lines, breathe)?;
    Ok(next)
}

// --- The feed ---

/// What connects the writer, the projector and those who wait for the book; cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    position: watch::Sender<u64>,
    /// Whether anything is made of what is offered.
    is_heard: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Of entries without gaps; the journal has those before and after.
    lines: VecDeque<Line>,
    /// The highest position somebody waits for.
    wanted: u64,
    /// Set by a reader that found the book damaged.
    doubted: bool,
    stopping: bool,
}

/// What was offered to the projector.
enum Offered {
    /// These follow.
    Lines(Vec<Line>),
    /// Nothing that follows directly; up to this many entries are missing in between.
    Missing(u64),
}

impl Default for Feed {
    fn default() -> Self {
        Self::new()
    }
}

impl Feed {
    /// A feed for one book.
    pub fn new() -> Self {
        let (position, _) = watch::channel(0);
        let (inbox, wake, is_heard) = (Mutex::default(), Condvar::new(), AtomicBool::new(true));
        Self { shared: Arc::new(Shared { inbox, wake, position, is_heard }) }
    }

    /// Offers entries that are durable and follow those offered before. Never waits: what the projector
    /// is too slow to take it reads from the journal later.
    pub fn offer(&self, entries: &[Arc<Stored>]) {
        if !self.shared.is_heard.load(Ordering::Relaxed) {
            return;
        }
        let Some(first) = entries.first() else { return };
        let position = first.entry.position;
        // Made before the lock is taken: the projector need not wait for it.
        let lines: Vec<Line> =
            entries.iter().take(limits::BOOK_INBOX_ENTRIES_MAX).map(|stored| Line::of(stored)).collect();
        let mut inbox = self.inbox();
        let follows = inbox.lines.back().is_none_or(|last| last.head.position + 1 == position);
        if !follows || inbox.lines.len() + lines.len() > limits::BOOK_INBOX_ENTRIES_MAX {
            inbox.lines.clear();
        }
        inbox.lines.extend(lines);
        if inbox.is_urgent(*self.shared.position.borrow()) {
            self.shared.wake.notify_one();
        }
    }

    /// The position up to which the book is known to be true.
    pub fn position(&self) -> u64 {
        *self.shared.position.borrow()
    }

    /// Waits until the book has reached `position`, until `deadline` at most; says whether it has. The
    /// projector makes haste meanwhile.
    pub async fn wait_for(&self, position: u64, deadline: Instant) -> bool {
        let mut reached = self.shared.position.subscribe();
        if *reached.borrow() >= position {
            return true;
        }
        {
            let mut inbox = self.inbox();
            inbox.wanted = inbox.wanted.max(position);
        }
        self.shared.wake.notify_one();
        let reached = reached.wait_for(|at| *at >= position);
        tokio::time::timeout_at(deadline.into(), reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Tells the projector that a reader found the book damaged.
    pub fn doubt(&self) {
        self.inbox().doubted = true;
        self.shared.wake.notify_one();
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was offered: another process carries the book on.
    fn forget(&self) {
        self.shared.is_heard.store(false, Ordering::Relaxed);
        drop(self.take(VecDeque::new()));
    }

    /// Hears what is offered: this process carries the book on.
    fn hear(&self) {
        self.shared.is_heard.store(true, Ordering::Relaxed);
    }

    /// How many entries wait to be taken.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.inbox().lines.len()
    }

    fn reached(&self, position: u64) {
        self.shared.position.send_replace(position);
    }

    fn stop(&self) {
        self.inbox().stopping = true;
        self.shared.wake.notify_one();
    }

    /// Waits until there is something to hurry for, `pause` at most; false when it is time to stop.
    fn rest(&self, pause: Duration) -> bool {
        let position = self.position();
        let (inbox, _) = self
            .shared
            .wake
            .wait_timeout_while(self.inbox(), pause, |inbox| !inbox.is_urgent(position))
            .unwrap_or_else(PoisonError::into_inner);
        !inbox.stopping
    }

    /// Waits for `pause` whatever happens, unless it is time to stop; then false.
    fn back_off(&self, pause: Duration) -> bool {
        let (inbox, _) = self
            .shared
            .wake
            .wait_timeout_while(self.inbox(), pause, |inbox| !inbox.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        !inbox.stopping
    }

    /// All that was offered, in exchange for an empty buffer: the writer waits for no more than that.
    fn take(&self, empty: VecDeque<Line>) -> VecDeque<Line> {
        std::mem::replace(&mut self.inbox().lines, empty)
    }

    /// The highest position somebody waits for.
    fn wanted(&self) -> u64 {
        self.inbox().wanted
    }

    /// Says that the journal had no more after `wanted` was asked for; whoever waits for that waits for the
    /// next look. What was asked for meanwhile still is.
    fn nothing_more(&self, wanted: u64) {
        let mut inbox = self.inbox();
        if inbox.wanted == wanted {
            inbox.wanted = 0;
        }
    }

    fn take_doubt(&self) -> bool {
        std::mem::take(&mut self.inbox().doubted)
    }
}

impl Inbox {
    fn is_urgent(&self, position: u64) -> bool {
        self.stopping
            || self.doubted
            || self.wanted > position
            || self.lines.len() >= limits::BOOK_INBOX_ENTRIES_MAX / 2
    }
}

// --- The thread ---

/// The running projector. Dropping it asks the thread to stop.
#[derive(Debug)]
pub struct Projector {
    feed: Feed,
    thread: Option<JoinHandle<()>>,
}

impl Projector {
    /// Starts to carry what `reader` reads into `tables`. `reader` must see everything that was offered
    /// to `feed` (no lagging replica). Its futures run on `runtime`.
    pub fn start(
        tables: Box<dyn Tables>,
        reader: Arc<dyn Reader>,
        feed: Feed,
        runtime: Handle,
    ) -> io::Result<Self> {
        let mut work = Work {
            tables,
            reader,
            feed: feed.clone(),
            taken: VecDeque::new(),
            runtime,
            head: None,
            rebuilding: false,
            watched: None,
        };
        let thread = background::spawn("book", move || work.run())?;
        Ok(Self { feed, thread: Some(thread) })
    }

    /// Stops after the batch at hand and waits for that. What is missing is caught up at the next start.
    pub fn stop(mut self) {
        self.feed.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the book's projector had panicked");
        }
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        self.feed.stop();
    }
}

/// Lets others have the processor now and then, unless somebody waits for what is being done.
pub(super) struct Breath<'a> {
    feed: &'a Feed,
    since: Instant,
}

impl<'a> Breath<'a> {
    pub(super) fn new(feed: &'a Feed) -> Self {
        Self { feed, since: Instant::now() }
    }

    pub(super) fn take(&mut self) {
        let worked = self.since.elapsed();
        if worked >= limits::BOOK_WORK {
            // Whether it is time to stop is asked when this is done.
            let _ = self.feed.rest(worked.saturating_mul(limits::BOOK_BREATH));
            self.since = Instant::now();
        }
    }
}

struct Work {
    tables: Box<dyn Tables>,
    reader: Arc<dyn Reader>,
    feed: Feed,
    /// Of entries that were offered, what is not in the book yet.
    taken: VecDeque<Line>,
    runtime: Handle,
    /// The book's head once it is known to be one of the journal's.
    head: Option<Head>,
    /// Whether the book was emptied and has not caught up since; it is not emptied again before.
    rebuilding: bool,
    /// Where another process that carries the book on has come, and since when it is there.
    watched: Option<(u64, Instant)>,
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    More,
    CaughtUp,
    /// Another process is at it; this one watches, in case that one ends.
    Another,
}

#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Stuck {
    /// How long to wait at most before it is tried again: a database that is away may be back at any moment,
    /// what is damaged stays so.
    fn pause_max(&self) -> Duration {
        match self {
            Self::Tables(TablesError::Unavailable(_)) | Self::Journal(JournalError::Unknown(_)) => {
                limits::BOOK_RETRY_AWAY
            }
            _ => limits::BOOK_RETRY_MAX,
        }
    }
}

impl Work {
    fn run(&mut self) {
        let mut failures = 0_u32;
        loop {
            match self.step() {
                Ok(progress) => {
                    failures = 0;
                    let goes_on = match progress {
                        Progress::More => self.feed.rest(Duration::ZERO),
                        Progress::CaughtUp => self.feed.rest(limits::BOOK_PACE),
                        // It does not hurry for those who wait here: they are told soon how far it is.
                        Progress::Another => {
                            self.feed.back_off(limits::BOOK_GLANCE)
                                && self.feed.rest(limits::BOOK_PACE_BESIDE)
                        }
                    };
                    if !goes_on {
                        return;
                    }
                }
                Err(cause) => {
                    // The first time, and then more and more seldom.
                    if failures == 0 || failures.is_power_of_two() {
                        error!(%cause, position = self.feed.position(), "the book does not follow the journal");
                    }
                    self.head = None;
                    let pause = limits::BOOK_PACE.saturating_mul(1 << failures.min(16));
                    failures = failures.saturating_add(1);
                    if !self.feed.back_off(pause.min(cause.pause_max())) {
                        return;
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Result<Progress, Stuck> {
        match self.advance() {
            Err(Stuck::Tables(TablesError::Moved)) => {
                // Whoever waits is told how far that one has come.
                self.recognise()?;
                Ok(Progress::Another)
            }
            Err(Stuck::Tables(cause @ (TablesError::Contradiction(_) | TablesError::Unfit(_))))
                if !self.rebuilding =>
            {
                warn!(%cause, "the book is dropped and rebuilt");
                self.head = None;
                self.taken.clear();
                self.feed.reached(0);
                self.tables.reset()?;
                self.rebuilding = true;
                Ok(Progress::More)
            }
            other => other,
        }
    }

    fn advance(&mut self) -> Result<Progress, Stuck> {
        if self.feed.take_doubt() {
            return Err(TablesError::Unfit("a reader found it damaged".to_owned()).into());
        }
        if self.is_for_another()? {
            return Ok(Progress::Another);
        }
        let head = match self.head {
            Some(head) => head,
            None => self.recognise()?,
        };
        let wanted = self.feed.wanted();
        let (mut lines, progress) = match self.offered(head.position) {
            Offered::Lines(lines) if self.taken.is_empty() => (lines, Progress::CaughtUp),
            Offered::Lines(lines) => (lines, Progress::More),
            Offered::Missing(count) => (self.read(head.position, count)?, Progress::More),
        };
        if lines.is_empty() {
            self.feed.nothing_more(wanted);
            if std::mem::take(&mut self.rebuilding) {
                info!(position = head.position, "the book is rebuilt");
            }
            return Ok(Progress::CaughtUp);
        }
        let mut breath = Breath::new(&self.feed);
        let hurries = lines.len() >= limits::BOOK_HURRY_ENTRIES;
        let mut breathe = || {
            if !hurries {
                breath.take()
            }
        };
        let head = advance(self.tables.as_mut(), head, &lines, &mut breathe)?;
        if self.taken.is_empty() {
            // For its room.
            lines.clear();
            self.taken = lines.into();
        }
        self.head = Some(head);
        self.feed.reached(head.position);
        Ok(progress)
    }

    /// The entries after `position`, as far as they were offered and fit into one transaction.
    fn offered(&mut self, position: u64) -> Offered {
        let is_known = |line: &Line| line.head.position <= position;
        if self.taken.back().is_none_or(is_known) {
            self.taken.clear();
            self.taken = self.feed.take(std::mem::take(&mut self.taken));
        }
        while self.taken.front().is_some_and(is_known) {
            self.taken.pop_front();
        }
        match self.taken.front() {
            None => Offered::Missing(u64::MAX),
            Some(first) if first.head.position == position + 1 => {
                let rest = match self.taken.len() > limits::BOOK_BATCH_ENTRIES_MAX {
                    true => self.taken.split_off(limits::BOOK_BATCH_ENTRIES_MAX),
                    false => VecDeque::new(),
                };
                Offered::Lines(std::mem::replace(&mut self.taken, rest).into())
            }
            Some(first) => Offered::Missing(first.head.position - position - 1),
        }
    }

    /// Whether another process carries the book on, and goes on with it. Whoever waits here is told how far
    /// it has come.
    fn is_for_another(&mut self) -> Result<bool, Stuck> {
        if self.tables.carry_on()? {
            self.watched = None;
            self.feed.hear();
            return Ok(false);
        }
        self.feed.forget();
        self.taken.clear();
        let head = match self.head {
            Some(_) => self.tables.head()?,
            None => self.recognise()?,
        };
        // It was this journal's book, and whoever moved it since had made sure of that too.
        self.head = Some(head);
        self.feed.reached(head.position);
        Ok(match self.watched {
            Some((before, since)) if before == head.position => since.elapsed() < limits::BOOK_PATIENCE,
            _ => {
                self.watched = Some((head.position, Instant::now()));
                true
            }
        })
    }

    /// The book's head, after making sure that the journal has the very entry it names.
    fn recognise(&mut self) -> Result<Head, Stuck> {
        let head = self.tables.head()?;
        if let Some(before) = head.position.checked_sub(1) {
            let rows = self.runtime.block_on(self.reader.after(before, 1))?;
            if rows.first().is_none_or(|row| (row.position, row.hash) != (head.position, head.hash)) {
                let what = format!("its entry {} is not the journal's", head.position);
                return Err(TablesError::Unfit(what).into());
            }
        }
        self.head = Some(head);
        self.feed.reached(head.position);
        Ok(head)
    }

    /// At most `count` entries after `position`, read from the journal.
    fn read(&self, position: u64, count: u64) -> Result<Vec<Line>, Stuck> {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(limits::BOOK_BATCH_ENTRIES_MAX);
        let mut lines: Vec<Line> = Vec::new();
        while lines.len() < count {
            let after = lines.last().map_or(position, |line| line.head.position);
            let limit = limits::JOURNAL_READ_ENTRIES_MAX.min(count - lines.len());
            let rows = self.runtime.block_on(self.reader.after(after, limit))?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if !row.is_hashed_right() {
                    let what =
                        format!("entry {}: the stored hash is not that of the stored bytes", row.position);
                    return Err(JournalError::Unusable(what).into());
                }
                let entry = Entry::decode(row.position, &row.entry)?;
                lines.push(Line::of(&Stored { entry, hash: row.hash }));
            }
        }
        Ok(lines)
    }
}
