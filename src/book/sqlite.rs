//! The book in a SQLite file.
//!
//! The file commits lazily but never tears (WAL, `synchronous=NORMAL`): a loss of power can cost the
//! last seconds, which the projector carries in again. Only the projector writes and checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
    params_from_iter,
};
use tracing::warn;

use super::BookError;
use super::batch::{Batch, Line, older_claims};
use super::cube::Cube;
use super::projector::{Feed, Tables, TablesError};
use super::sql::{
    ADD_TO_TOTAL, CLAIM, FORMAT, Kind, Names, RUN, ReadFault, Readable, STANDING, Snapshot, Source, SqlBook,
    garbled, integer, moves,
};
use crate::journal::Head;
use crate::limits;

/// The name of the book's file in the data directory.
pub const FILE: &str = "book.db";

/// The tables; `RUN` stands for the number.
const SCHEMA: &str = "
    -- The entry up to which the book is true.
    CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), position INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
    -- What stands for a name in the other tables; kind as in the program.
    CREATE TABLE names (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (kind, name)) STRICT;
    -- Days with entries, and the first position of each.
    CREATE TABLE days (day INTEGER PRIMARY KEY, first INTEGER NOT NULL) STRICT;
    -- Claims, by the position of the entry that made them.
    CREATE TABLE claims (
        made INTEGER PRIMARY KEY, last INTEGER NOT NULL, status INTEGER NOT NULL, retailer INTEGER NOT NULL,
        platform INTEGER, category INTEGER NOT NULL, region INTEGER NOT NULL, programme INTEGER NOT NULL,
        fund INTEGER NOT NULL, sale_day INTEGER NOT NULL, price_fen INTEGER NOT NULL,
        subsidy_fen INTEGER NOT NULL, order_key INTEGER NOT NULL, sn_key INTEGER) STRICT;
    CREATE INDEX claims_by_retailer ON claims (made >> RUN, retailer);
    CREATE INDEX claims_by_platform ON claims (made >> RUN, platform) WHERE platform IS NOT NULL;
    CREATE INDEX claims_by_order ON claims (made >> RUN, order_key);
    CREATE INDEX claims_by_sn ON claims (made >> RUN, sn_key) WHERE sn_key IS NOT NULL;
    -- Totals.
    CREATE TABLE totals (
        day INTEGER NOT NULL, sale_day INTEGER NOT NULL, region INTEGER NOT NULL, category INTEGER NOT NULL,
        retailer INTEGER NOT NULL, programme INTEGER NOT NULL, fund INTEGER NOT NULL,
        held_items INTEGER NOT NULL, held_fen INTEGER NOT NULL,
        redeemed_items INTEGER NOT NULL, redeemed_fen INTEGER NOT NULL,
        returned_items INTEGER NOT NULL, returned_fen INTEGER NOT NULL,
        cancelled_items INTEGER NOT NULL, cancelled_fen INTEGER NOT NULL, sales_fen INTEGER NOT NULL,
        PRIMARY KEY (day, sale_day, region, category, retailer, programme, fund)) STRICT, WITHOUT ROWID;
";

/// Opens the book at `path`, making or rebuilding the file where there is none that can be used. Queries
/// are answered from it, and `feed` tells them how far the projector is.
pub fn open(path: &Path, feed: Feed) -> Result<(SqliteTables, SqliteBook), TablesError> {
    let shared = Arc::new(Shared::new(path, feed));
    let mut tables = SqliteTables { shared: Arc::clone(&shared), connection: None, names: None };
    match tables.ready() {
        Ok(_) => {}
        Err(TablesError::Unfit(cause)) => {
            warn!(cause, "the book is dropped and rebuilt");
            tables.reset()?;
        }
        Err(other) => return Err(other),
    }
    Ok((tables, SqlBook::new(shared)))
}

/// All totals of the book at `path` and the position they are true at, read beside whoever writes it.
pub fn read_cube(path: &Path) -> Result<(u64, Cube), BookError> {
    let shared = Shared::new(path, Feed::new());
    shared.cube()
}

// --- What both sides share ---

/// The file, as those who ask have it, and the projector.
#[derive(Debug)]
pub struct Shared {
    path: PathBuf,
    feed: Feed,
    /// Held by each query, and alone by whoever replaces the file.
    file: RwLock<()>,
    idle: Mutex<Vec<Connection>>,
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn read_head(connection: &Connection) -> rusqlite::Result<Option<(i64, Vec<u8>)>> {
    connection
        .prepare_cached("SELECT position, hash FROM head")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

// --- The projector's side ---

/// The tables as the projector writes them.
#[derive(Debug)]
pub struct SqliteTables {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// The table `names`; `None` when another process or a rollback may have made it differ.
    names: Option<Names>,
}

impl From<rusqlite::Error> for TablesError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Unfit(error.to_string()) } else { Self::Unavailable(error.to_string()) }
    }
}

impl SqliteTables {
    fn ready(&mut self) -> Result<(&mut Connection, &mut Option<Names>), TablesError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.names = None;
                connect_to_write(&self.shared.path)?
            }
        };
        Ok((self.connection.insert(connection), &mut self.names))
    }

    fn write(
        &mut self,
        expected: Head,
        next: Head,
        lines: &[Line],
        breathe: &mut dyn FnMut(),
    ) -> Result<(), TablesError> {
        let (connection, names) = self.ready()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if head_of(&transaction)? != expected {
            return Err(TablesError::Moved);
        }
        let names = match names {
            Some(names) => names,
            None => names.insert(load_names(&transaction)?),
        };
        let mut older = BTreeMap::new();
        for made in older_claims(lines) {
            let sql = format!("SELECT {STANDING} FROM claims WHERE made = ?1");
            let mut statement = transaction.prepare_cached(&sql)?;
            if let Some(row) = statement.query_row([integer(made)], numbers).optional()? {
                older.extend([names.standing(row)?]);
            }
        }
        let batch = Batch::fold(lines, older, breathe)?;
        write(&transaction, names, &batch, breathe)?;
        for (day, first) in &batch.days {
            transaction
                .prepare_cached("INSERT INTO days VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                .execute(params![day.number(), integer(*first)])?;
        }
        transaction
            .prepare_cached(
                "INSERT INTO head VALUES (1, ?1, ?2)
                ON CONFLICT DO UPDATE SET position = excluded.position, hash = excluded.hash",
            )?
            .execute(params![integer(next.position), next.hash.bytes()])?;
        transaction.commit()?;
        Ok(())
    }
}

impl Tables for SqliteTables {
    fn head(&mut self) -> Result<Head, TablesError> {
        head_of(self.ready()?.0)
    }

    fn apply(
        &mut self,
        expected: Head,
        next: Head,
        lines: &[Line],
        breathe: &mut dyn FnMut(),
    ) -> Result<(), TablesError> {
        let written = self.write(expected, next, lines, breathe);
        if written.is_err() {
            self.names = None;
        }
        written
    }

    fn reset(&mut self) -> Result<(), TablesError> {
        let shared = Arc::clone(&self.shared);
        let _alone = shared.file.write().unwrap_or_else(PoisonError::into_inner);
        shared.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.connection = None;
        for suffix in ["", "-wal", "-shm"] {
            let mut file = shared.path.clone().into_os_string();
            file.push(suffix);
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(TablesError::Unavailable(format!("{}: {error}", file.display())));
                }
                _ => {}
            }
        }
        self.ready()?;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), TablesError> {
        self.names = None;
        let transaction = self.ready()?.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for table in ["head", "names", "days", "claims", "totals"] {
            transaction.execute(&format!("DELETE FROM {table}"), [])?;
        }
        Ok(transaction.commit()?)
    }
}

fn head_of(connection: &Connection) -> Result<Head, TablesError> {
    match read_head(connection)? {
        Some((position, hash)) => super::sql::head(position, &hash),
        None => Ok(Head::EMPTY),
    }
}

fn connect_to_write(path: &Path) -> Result<Connection, TablesError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(limits::BOOK_LOCK_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Of a new file only; an older one keeps the pages it has.
    connection.pragma_update(None, "page_size", limits::BOOK_PAGE_BYTES)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // 32 MiB of cache hold the newest run of every index and a day's totals. WAL is copied back from 4 MiB on:
    // the disk is the journal's too, and what is carried to it at once holds up whoever appends there.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -32768; PRAGMA foreign_keys = OFF;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    let pages: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    connection.pragma_update(None, "wal_autocheckpoint", limits::BOOK_WAL_BYTES / pages.max(1))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let format: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (format, tables) {
        (FORMAT, _) => {}
        (0, 0) => {
            transaction.execute_batch(&SCHEMA.replace("RUN", &RUN.to_string()))?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
        }
        _ => return Err(TablesError::Unfit(format!("its format is {format}, not {FORMAT}"))),
    }
    transaction.commit()?;
    Ok(connection)
}

fn load_names(transaction: &Transaction<'_>) -> Result<Names, TablesError> {
    let mut names = Names::default();
    let mut statement = transaction.prepare_cached("SELECT id, kind, name FROM names")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        names.know(row.get(0)?, row.get(1)?, row.get_ref(2)?.as_str().map_err(|_| garbled("a name"))?)?;
    }
    Ok(names)
}

/// A row of numbers, some of which may be missing.
fn numbers<const N: usize>(row: &rusqlite::Row<'_>) -> rusqlite::Result<[Option<i64>; N]> {
    let mut numbers = [None; N];
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = row.get(column)?;
    }
    Ok(numbers)
}

fn write(
    transaction: &Transaction<'_>,
    names: &mut Names,
    batch: &Batch,
    breathe: &mut dyn FnMut(),
) -> rusqlite::Result<()> {
    let sql = format!("INSERT INTO claims ({CLAIM}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)");
    let mut insert = transaction.prepare_cached(&sql)?;
    for (made, claim) in &batch.made {
        breathe();
        insert.execute(params_from_iter(names.claim(*made, claim)))?;
    }
    let mut update = transaction
        .prepare_cached("UPDATE claims SET last = ?2, status = ?3, sn_key = ?4 WHERE made = ?1")?;
    for row in moves(batch) {
        breathe();
        update.execute(params_from_iter(row))?;
    }
    let sql = format!("INSERT INTO totals VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) {ADD_TO_TOTAL}");
    let mut add = transaction.prepare_cached(&sql)?;
    for row in names.totals(&batch.cube) {
        breathe();
        add.execute(params_from_iter(row))?;
    }
    let mut insert = transaction.prepare_cached("INSERT INTO names VALUES (?1, ?2, ?3)")?;
    for (id, kind, name) in names.take_fresh() {
        insert.execute(params![id, kind as i64, name])?;
    }
    Ok(())
}

// --- Queries ---

/// The book as it is asked.
pub type SqliteBook = SqlBook<Shared>;

impl From<rusqlite::Error> for ReadFault {
    fn from(error: rusqlite::Error) -> Self {
        if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
            return Self::TooSlow;
        }
        if is_damage(&error) {
            Self::Damaged(error.to_string())
        } else {
            Self::Unavailable(error.to_string())
        }
    }
}

/// A transaction that reads, and until when it may.
struct Reading<'a> {
    transaction: Transaction<'a>,
    deadline: Option<Instant>,
}

impl Source for Reading<'_> {
    fn integers(&self, sql: &str, values: &[i64]) -> Result<Vec<Vec<i64>>, ReadFault> {
        let mut statement = self.transaction.prepare_cached(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((0..columns).map(|column| row.get(column)).collect::<rusqlite::Result<_>>()?);
        }
        Ok(found)
    }

    fn id(&self, kind: Kind, name: &str) -> Result<Option<i64>, ReadFault> {
        let mut statement =
            self.transaction.prepare_cached("SELECT id FROM names WHERE kind = ?1 AND name = ?2")?;
        Ok(statement.query_row(params![kind as i64, name], |row| row.get(0)).optional()?)
    }

    fn name(&self, id: i64) -> Result<String, ReadFault> {
        let mut statement = self.transaction.prepare_cached("SELECT name FROM names WHERE id = ?1")?;
        let name = statement.query_row([id], |row| row.get(0)).optional()?;
        name.ok_or(ReadFault::Garbled("a name"))
    }

    fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn using(&self, index: Option<&'static str>) -> String {
        index.map_or_else(|| "NOT INDEXED".to_owned(), |index| format!("INDEXED BY {index}"))
    }
}

impl Shared {
    fn new(path: &Path, feed: Feed) -> Self {
        Self { path: path.to_owned(), feed, file: RwLock::default(), idle: Mutex::default() }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_or_new(&self) -> rusqlite::Result<Connection> {
        if let Some(connection) = self.idle().pop() {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(limits::BOOK_LOCK_TIMEOUT)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -8192;")?;
        Ok(connection)
    }

    /// Runs `query` on a snapshot, for `time_limit` at most.
    fn try_read<T>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Reading<'_>, u64) -> Result<T, ReadFault>,
    ) -> Result<T, ReadFault> {
        let _file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let mut connection = self.idle_or_new()?;
        let deadline = time_limit.map(|limit| Instant::now() + limit);
        // Every 10,000 steps of SQLite's machine, well under a millisecond.
        let overdue = deadline.map(|deadline| move || Instant::now() >= deadline);
        connection.progress_handler(10_000, overdue)?;
        let transaction = connection.transaction()?;
        let as_of = read_head(&transaction)?.map_or(Ok(0), |(position, _)| u64::try_from(position));
        let as_of = as_of.map_err(|_| ReadFault::Garbled("the head"))?;
        let answer = query(&Reading { transaction, deadline }, as_of)?;
        self.idle().push(connection);
        Ok(answer)
    }
}

impl Readable for Shared {
    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn read<T>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadFault>,
    ) -> Result<T, ReadFault> {
        self.try_read(time_limit, |source, as_of| query(&Snapshot { source, as_of }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{Book as _, TotalsQuery};

    fn book() -> (tempfile::TempDir, SqliteTables, SqliteBook) {
        let directory = tempfile::tempdir().unwrap();
        let (tables, book) = open(&directory.path().join(FILE), Feed::new()).unwrap();
        (directory, tables, book)
    }

    #[test]
    fn a_query_that_takes_too_long_is_broken_off() {
        let (_directory, _tables, book) = book();
        let endless = |reading: &Reading<'_>, _| {
            let sql =
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
            Ok(reading.transaction.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        };
        let tables = &book.tables;
        let broken_off = tables.try_read(Some(Duration::from_millis(20)), endless);
        assert_eq!(broken_off.map_err(|fault| fault.report(tables.feed())), Err(BookError::TooSlow));
        let again = tables.try_read(Some(Duration::from_secs(10)), |_, as_of| Ok(as_of));
        assert_eq!(again.map_err(|fault| fault.report(tables.feed())), Ok(0));
    }

    #[test]
    fn more_queries_than_can_wait_are_turned_away_at_once() {
        let (_directory, _tables, book) = book();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let places = book.queries.admitted.try_acquire_many(limits::BOOK_QUERIES_MAX as u32).unwrap();
        let refused = runtime.block_on(book.totals(TotalsQuery::default()));
        assert_eq!(refused, Err(BookError::Overloaded));
        drop(places);
        assert!(runtime.block_on(book.totals(TotalsQuery::default())).is_ok());
    }

    #[test]
    fn queries_cannot_write() {
        let (_directory, _tables, book) = book();
        let written = book.tables.try_read(None, |reading, _| {
            Ok(reading.transaction.execute("DELETE FROM claims", []).map(drop)?)
        });
        let written = written.map_err(|fault| fault.report(book.tables.feed()));
        assert!(matches!(written, Err(BookError::Unavailable(_))));
    }
}
