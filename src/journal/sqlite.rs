//! The embedded journal: one append-only table in a SQLite file that one process owns.

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{Head, Journal, JournalError, Reader, Row, above, signed};
use crate::background;
use crate::ledger::entry::Hash;
use crate::limits;

/// The name of the journal's file in the data directory.
pub const FILE: &str = "journal.db";
const LOCK_FILE: &str = "journal.lock";

/// The writer's side. While it lives no other process can open the same data directory for writing.
#[derive(Debug)]
pub struct SqliteJournal {
    path: PathBuf,
    connection: Connection,
    checkpointer: Checkpointer,
    /// Held for as long as the journal is open.
    _lock: File,
}

impl SqliteJournal {
    /// Opens the journal in `directory`, creating it where there is none.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let lock = lock(&directory.join(LOCK_FILE))?;
        let path = directory.join(FILE);
        let connection = connect(&path)?;
        make_durable(&connection)
            .map_err(|why| JournalError::Unusable(format!("{}: {why}", path.display())))?;
        let checkpointer = Checkpointer::start(path.clone())?;
        Ok(Self { path, connection, checkpointer, _lock: lock })
    }
}

/// Leaves nothing in the log: whoever copies the file of a service that was stopped has all of it.
impl Drop for SqliteJournal {
    fn drop(&mut self) {
        if self.checkpointer.told.check().is_err() {
            return;
        }
        let emptied =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        match emptied {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the journal's log was not emptied: somebody reads it"),
            Err(error) => {
                tracing::warn!(%error, "the journal's log was not emptied; the next start does that")
            }
        }
    }
}

fn lock(path: &Path) -> Result<File, JournalError> {
    let unusable = |error: std::io::Error| JournalError::Unusable(format!("{}: {error}", path.display()));
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::Unusable(format!(
            "another process has it open ({} is locked); stop that one, or give this one its own data directory",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

fn connect(path: &Path) -> Result<Connection, JournalError> {
    let unusable = |error: rusqlite::Error| JournalError::Unusable(format!("{}: {error}", path.display()));
    let connection = Connection::open(path).map_err(unusable)?;
    prepare(&connection).map_err(unusable)?;
    let synchronous: i64 =
        connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).map_err(unusable)?;
    // 2 is FULL: every commit is synced before it returns.
    if synchronous != 2 {
        return Err(JournalError::Unusable(format!(
            "{}: synchronous is {synchronous}, not FULL",
            path.display()
        )));
    }
    Ok(connection)
}

/// Sees that all that can be read is on the disk, before anybody is answered from it: what a process had
/// written when it was killed may be in the system's memory only, and after a failed sync the system takes
/// what it could not write for written. Carrying the log over writes all of it again, and syncs it.
fn make_durable(connection: &Connection) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if checkpoint(connection).map_err(|error| error.to_string())?.is_complete() {
            return Ok(());
        }
        if began.elapsed() >= limits::JOURNAL_OPEN_PATIENCE {
            return Err(
                "somebody who reads it (`verify`, a copy) keeps its log from being carried over: try again \
                        when that is done"
                    .to_owned(),
            );
        }
        std::thread::sleep(limits::JOURNAL_OPEN_PAUSE);
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    keep_log(connection)?;
    // Of a new file only; an older one keeps the pages it has.
    connection.pragma_update(None, "page_size", limits::JOURNAL_PAGE_BYTES)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", limits::JOURNAL_WAL_BYTES_KEPT)?;
    // The hash is checked by whoever reads, so the column order is all there is to know.
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS journal (
             position INTEGER PRIMARY KEY,
             hash     BLOB NOT NULL,
             entry    TEXT NOT NULL
         ) STRICT",
    )
}

/// Makes closing a connection leave the log as it is. Else whoever is last would carry it over and delete it:
/// a reader, who is to change nothing; or a writer after an error of the disk, see [`Checkpointer`].
fn keep_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
}

/// Carries the write-ahead log over into the journal's file, on a thread of its own so that no append
/// waits for it. Only what was appended meanwhile is left to the writer: SQLite begins its log anew once
/// all of it has been carried over, and that is only so for a moment when nobody writes.
///
/// It is not tried again after an error of the disk, and nothing is appended any more: SQLite goes on after
/// the pages that it has carried over before, but a failed sync can have lost these, and the log that has
/// them would be overwritten. A process started anew carries all of it over, see [`make_durable`].
#[derive(Debug)]
struct Checkpointer {
    /// None only while it is being dropped.
    calls: Option<SyncSender<()>>,
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
    /// Bytes appended since it was last called.
    bytes: usize,
}

/// What the thread for checkpoints has to tell.
#[derive(Debug, Default)]
struct Told {
    /// Whether what is left to carry over is the writer's.
    nearly_done: AtomicBool,
    /// Whether the disk has failed.
    has_failed: AtomicBool,
}

impl Told {
    fn failed(&self, error: &rusqlite::Error) {
        match error.sqlite_error_code() {
            Some(ErrorCode::SystemIoFailure) => {
                self.has_failed.store(true, Ordering::Release);
                tracing::error!(%error, "the disk failed while the journal's log was carried over");
            }
            _ => tracing::warn!(%error, "the journal's log was not carried over; it is tried again"),
        }
    }

    /// # Errors
    /// After the disk has failed.
    fn check(&self) -> Result<(), JournalError> {
        match self.has_failed.load(Ordering::Acquire) {
            true => Err(JournalError::Unusable(
                "the disk failed while the journal's log was carried over: see to the disk, and start the process \
                 anew"
                .into(),
            )),
            false => Ok(()),
        }
    }
}

impl Checkpointer {
    fn start(path: PathBuf) -> Result<Self, JournalError> {
        let (calls, called) = sync_channel(1);
        let told = Arc::<Told>::default();
        let tell = Arc::clone(&told);
        let work = move || {
            let mut connection = None;
            for () in called {
                if tell.check().is_err() {
                    return;
                }
                match carry_over(&mut connection, &path) {
                    Ok(()) => tell.nearly_done.store(true, Ordering::Release),
                    Err(error) => {
                        tell.failed(&error);
                        connection = None;
                    }
                }
            }
        };
        let thread = background::spawn("checkpointer", work)
            .map_err(|error| JournalError::Unusable(format!("no thread for checkpoints: {error}")))?;
        Ok(Self { calls: Some(calls), told, thread: Some(thread), bytes: 0 })
    }

    /// To be told after every append, with the writer's connection.
    fn appended(&mut self, bytes: usize, connection: &Connection) {
        self.bytes += bytes;
        if self.told.nearly_done.swap(false, Ordering::Acquire)
            && let Err(error) = checkpoint(connection)
        {
            self.told.failed(&error);
        }
        if self.bytes >= limits::JOURNAL_CHECKPOINT_BYTES {
            self.bytes = 0;
            if let Some(calls) = &self.calls {
                // If it is at work, or called already, that is as good.
                let _ = calls.try_send(());
            }
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for checkpoints had failed");
        }
    }
}

/// Carries over until hardly more is appended than carried, or a few times on a disk that does not come to
/// that: what is left is the writer's, so that the log never grows for ever.
fn carry_over(slot: &mut Option<Connection>, path: &Path) -> rusqlite::Result<()> {
    let connection = match slot {
        Some(connection) => connection,
        None => {
            let connection = Connection::open(path)?;
            keep_log(&connection)?;
            // As the writer's: what is carried over is synced before the log may be overwritten.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            slot.insert(connection)
        }
    };
    let mut carried = 0;
    for _ in 0..limits::JOURNAL_CHECKPOINT_ROUNDS {
        let Carried { log, all, .. } = checkpoint(connection)?;
        if log - carried < limits::JOURNAL_CHECKPOINT_REST_PAGES {
            break;
        }
        carried = all;
    }
    Ok(())
}

/// What a checkpoint came to.
struct Carried {
    /// Whether somebody else was at it.
    was_busy: bool,
    /// Pages in the log when it began.
    log: i64,
    /// How many of them have been carried over, now or before.
    all: i64,
}

impl Carried {
    fn is_complete(&self) -> bool {
        !self.was_busy && self.all == self.log
    }
}

/// Carries over what is in the log when it begins, waiting for nobody.
fn checkpoint(connection: &Connection) -> rusqlite::Result<Carried> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok(Carried { was_busy: row.get(0)?, log: row.get(1)?, all: row.get(2)? })
    })
}

/// A failed statement: it is not known what became of it.
fn unknown(error: rusqlite::Error) -> JournalError {
    JournalError::Unknown(error.to_string())
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let position = row.get::<_, i64>(0)?;
    let hash = row.get_ref(1)?.as_blob()?;
    let entry = row.get_ref(2)?.as_bytes()?;
    Ok(Row {
        position: position.unsigned_abs(),
        // A hash of another length is as wrong as another hash, and is found by whoever checks it.
        hash: Hash::from_slice(hash).unwrap_or(Hash::ZERO),
        entry: Arc::from(entry),
    })
}

fn read(connection: &Connection, after: u64, limit: usize) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT position, hash, entry FROM journal WHERE position > ?1 ORDER BY position LIMIT ?2",
    )?;
    statement.query_map((above(after), signed(limit as u64)), row)?.collect()
}

impl Journal for SqliteJournal {
    fn head(&mut self) -> Result<Head, JournalError> {
        let last = self
            .connection
            .prepare_cached("SELECT position, hash, '' FROM journal ORDER BY position DESC LIMIT 1")
            .and_then(|mut statement| statement.query_row([], row).optional())
            .map_err(unknown)?;
        Ok(last.map_or(Head::EMPTY, |row| Head { position: row.position, hash: row.hash }))
    }

    fn append(&mut self, expected: Head, rows: &[Row]) -> Result<(), JournalError> {
        self.checkpointer.told.check()?;
        // The lock file keeps other writers out; this keeps out a hand that edits the file.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unknown)?;
        {
            let mut last = transaction
                .prepare_cached("SELECT position, hash FROM journal ORDER BY position DESC LIMIT 1")
                .map_err(unknown)?;
            let head = last
                .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?)))
                .optional()
                .map_err(unknown)?;
            let (position, hash) = head.unwrap_or((0, *Hash::ZERO.bytes()));
            if (position, &hash) != (signed(expected.position), expected.hash.bytes()) {
                return Err(JournalError::Moved);
            }
            // Whoever wrote the bytes wrote text; bound as text they would be looked through once more.
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO journal (position, hash, entry) VALUES (?1, ?2, CAST(?3 AS TEXT))",
                )
                .map_err(unknown)?;
            for row in rows {
                insert.execute((signed(row.position), row.hash.bytes(), &*row.entry)).map_err(unknown)?;
            }
        }
        transaction.commit().map_err(unknown)?;
        let bytes = rows.iter().map(|row| row.entry.len()).sum();
        self.checkpointer.appended(bytes, &self.connection);
        Ok(())
    }

    fn read(&mut self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        read(&self.connection, after, limit).map_err(unknown)
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        self.connection = connect(&self.path)?;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// The readers' side. Every thread that reads keeps a connection of its own, which cannot write.
#[derive(Debug)]
pub struct SqliteReader {
    path: PathBuf,
    number: u64,
}

thread_local! {
    /// This thread's connection and the number of the reader that it belongs to.
    static CONNECTION: RefCell<Option<(u64, Connection)>> = const { RefCell::new(None) };
}

static READERS: AtomicU64 = AtomicU64::new(0);

impl SqliteReader {
    /// A reader of the journal in `directory`, which must exist.
    pub fn new(directory: &Path) -> Result<Self, JournalError> {
        let reader = Self { path: directory.join(FILE), number: READERS.fetch_add(1, Ordering::Relaxed) };
        reader.with(|_| Ok(()))?;
        Ok(reader)
    }

    /// At most `limit` rows after position `after`, in order.
    pub fn read_after(&self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        self.with(|connection| read(connection, after, limit))
    }

    fn with<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, JournalError> {
        CONNECTION.with_borrow_mut(|slot| {
            let connection = match slot {
                Some((number, connection)) if *number == self.number => connection,
                _ => &mut slot.insert((self.number, self.connect()?)).1,
            };
            let result = query(connection).map_err(unknown);
            if result.is_err() {
                *slot = None;
            }
            result
        })
    }

    fn connect(&self) -> Result<Connection, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(&self.path, flags)
            .and_then(|connection| {
                connection.pragma_update(None, "query_only", true)?;
                // Readers carry nothing over.
                connection.pragma_update(None, "wal_autocheckpoint", 0)?;
                keep_log(&connection)?;
                connection.busy_timeout(std::time::Duration::from_secs(5))?;
                Ok(connection)
            })
            .map_err(|error| JournalError::Unusable(format!("{}: {error}", self.path.display())))
    }
}

impl Reader for SqliteReader {
    // A row is read in microseconds, mostly from memory: handing it to another thread costs more.
    fn rows<'a>(&'a self, positions: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>> {
        let rows = self.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT position, hash, entry FROM journal WHERE position = ?1")?;
            positions.iter().map(|position| statement.query_row([signed(*position)], row)).collect()
        });
        std::future::ready(rows).boxed()
    }

    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>> {
        std::future::ready(self.read_after(after, limit)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_carried_over_while_appends_go_on_and_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = SqliteJournal::open(directory.path()).unwrap();
        let entry: Arc<[u8]> = vec![b'x'; 1200].into();
        let mut head = Head::EMPTY;
        let (mut most, mut appended) = (0, 0);
        while appended < 64 * 1024 * 1024 {
            let rows: Vec<Row> = (1..=64)
                .map(|n| Row { position: head.position + n, hash: Hash::of(b"x"), entry: Arc::clone(&entry) })
                .collect();
            journal.append(head, &rows).unwrap();
            head = Head { position: head.position + 64, hash: Hash::of(b"x") };
            appended += 64 * entry.len();
            let log = std::fs::metadata(directory.path().join("journal.db-wal")).unwrap();
            most = most.max(log.len() as usize);
        }
        assert!(most < appended / 3, "the log grew to {most} of {appended} bytes");
        drop(journal);
        let mut again = SqliteJournal::open(directory.path()).unwrap();
        assert_eq!(again.head().unwrap(), head);
    }

    fn rows(after: Head, count: u64) -> Vec<Row> {
        let row = |n| Row { position: after.position + n, hash: Hash::of(b"x"), entry: Arc::from(&b"x"[..]) };
        (1..=count).map(row).collect()
    }

    /// Where the journal's file ends without its log.
    fn head_of_the_file(directory: &Path) -> Head {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(directory.join(FILE), copy.path().join(FILE)).unwrap();
        SqliteJournal::open(copy.path()).unwrap().head().unwrap()
    }

    #[test]
    fn what_is_read_at_a_start_has_been_synced_whoever_wrote_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = SqliteJournal::open(directory.path()).unwrap();
        journal.append(Head::EMPTY, &rows(Head::EMPTY, 3)).unwrap();
        // As a process that is killed leaves it.
        let killed = tempfile::tempdir().unwrap();
        for file in [FILE, "journal.db-wal"] {
            std::fs::copy(directory.path().join(file), killed.path().join(file)).unwrap();
        }
        assert_eq!(head_of_the_file(killed.path()), Head::EMPTY, "all is in the log");
        let mut again = SqliteJournal::open(killed.path()).unwrap();
        assert_eq!(again.head().unwrap().position, 3);
        assert_eq!(head_of_the_file(killed.path()).position, 3, "it was carried over before it was read");
    }

    #[test]
    fn a_reader_that_keeps_the_log_from_being_carried_over_keeps_the_journal_from_being_opened() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = SqliteJournal::open(directory.path()).unwrap();
        journal.append(Head::EMPTY, &rows(Head::EMPTY, 1)).unwrap();
        let reader = SqliteReader::new(directory.path()).unwrap();
        let connection = reader.connect().unwrap();
        connection.execute_batch("BEGIN; SELECT count(*) FROM journal").unwrap();
        let head = journal.head().unwrap();
        journal.append(head, &rows(head, 1)).unwrap();
        drop(journal);
        let refused = SqliteJournal::open(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("try again"), "{refused}");
        connection.execute_batch("COMMIT").unwrap();
        assert_eq!(SqliteJournal::open(directory.path()).unwrap().head().unwrap().position, 2);
    }

    #[test]
    fn once_the_disk_has_failed_under_a_checkpoint_nothing_is_appended_and_the_log_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = SqliteJournal::open(directory.path()).unwrap();
        journal.append(Head::EMPTY, &rows(Head::EMPTY, 1)).unwrap();
        let head = journal.head().unwrap();
        let error = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        journal.checkpointer.told.failed(&error(rusqlite::ffi::SQLITE_FULL));
        journal.append(head, &rows(head, 1)).unwrap();
        let head = journal.head().unwrap();
        journal.checkpointer.told.failed(&error(rusqlite::ffi::SQLITE_IOERR_FSYNC));
        for _ in 0..2 {
            assert!(matches!(journal.append(head, &rows(head, 1)), Err(JournalError::Unusable(_))));
            journal.reopen().unwrap();
        }
        assert_eq!(journal.head().unwrap(), head);
        drop(journal);
        assert_eq!(head_of_the_file(directory.path()), Head::EMPTY, "nothing was carried over");
        let mut again = SqliteJournal::open(directory.path()).unwrap();
        assert_eq!(again.head().unwrap(), head);
        again.append(head, &rows(head, 1)).unwrap();
    }
}
