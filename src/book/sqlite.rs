//! The book in a SQLite file.
//!
//! Built for writing: claims are rows of integers in the order of the journal, and the only indexes on
//! random keys are cut into runs of 65,536 positions, so that adding a claim touches pages that are in
//! memory however large the book is. A lookup probes the runs one after the other, newest first, which
//! is the order in which lists are wanted. Days are ranges of positions, because the times of entries
//! never fall.
//!
//! The file commits lazily but never tears (WAL, `synchronous=NORMAL`): a loss of power can cost the
//! last seconds, which the projector carries in again. Only the projector writes and checkpoints.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use serde::Deserialize;
use serde::de::value::BorrowedStrDeserializer;
use tokio::sync::Semaphore;
use tracing::warn;

use super::batch::{Batch, Standing, older_claims, order_key, sn_key};
use super::cube::{Cell, Counters, Cube, Facets, Facts, Tally};
use super::projector::{Feed, Tables, TablesError};
use super::{
    Basis, Book, BookError, ClaimPointer, ClaimsQuery, Dimension, Group, Page, Scope, Totals, TotalsQuery,
};
use crate::claim::Status;
use crate::identity::RegionCode;
use crate::journal::Head;
use crate::ledger::Stored;
use crate::ledger::entry::Hash;
use crate::limits;
use crate::money::Fen;
use crate::time::Day;

/// The name of the book's file in the data directory.
pub const FILE: &str = "book.db";

/// The format of the tables; a file of another is dropped and rebuilt.
const FORMAT: i64 = 1;

/// Positions in one run of an index, as a power of two. Short runs make writing cheap (a batch of some
/// thousands shares the 400 pages of a run), long ones lookups (one probe, some microseconds, for each
/// run). Tests use very short ones, so that a small journal has many.
const RUN: u32 = if cfg!(test) { 6 } else { 16 };

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
    Ok((tables, SqliteBook { shared }))
}

/// All totals of the book at `path` and the position they are true at, read beside whoever writes it.
pub fn read_cube(path: &Path) -> Result<(u64, Cube), BookError> {
    let shared = Shared::new(path, Feed::new());
    shared.read(None, |snapshot| snapshot.cube()).map_err(|fault| shared.report(fault))
}

// --- What both sides share ---

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    feed: Feed,
    /// Held by each query, and alone by whoever replaces the file.
    file: RwLock<()>,
    idle: Mutex<Vec<Connection>>,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

/// Every kind of name, with its number in the table `names`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Retailer = 1,
    Platform = 2,
    Category = 3,
    Programme = 4,
    Fund = 5,
}

const fn status_number(status: Status) -> i64 {
    match status {
        Status::Held => 0,
        Status::Redeemed => 1,
        Status::Released => 2,
        Status::Expired => 3,
        Status::Cancelled => 4,
        Status::Returned => 5,
    }
}

/// Positions fit: 2^63 entries are more than a journal can hold.
const fn integer(position: u64) -> i64 {
    position.cast_signed()
}

/// The value whose text form is `name`.
fn named<'de, T: Deserialize<'de>>(name: &'de str) -> Option<T> {
    T::deserialize(BorrowedStrDeserializer::<serde::de::value::Error>::new(name)).ok()
}

fn region_number(region: RegionCode) -> i64 {
    region.as_str().bytes().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}

fn region_numbered(number: i64) -> Option<RegionCode> {
    named(&format!("{number:06}"))
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

#[derive(Debug, Default)]
struct Names {
    ids: HashMap<Kind, HashMap<Arc<str>, i64>>,
    names: HashMap<i64, Arc<str>>,
    last: i64,
}

impl From<rusqlite::Error> for TablesError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Unfit(error.to_string()) } else { Self::Unavailable(error.to_string()) }
    }
}

fn garbled(what: &str) -> TablesError {
    TablesError::Unfit(format!("{what} cannot be read"))
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

    fn write(&mut self, expected: Head, next: Head, entries: &[Arc<Stored>]) -> Result<(), TablesError> {
        let (connection, names) = self.ready()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if head_of(&transaction)? != expected {
            return Err(TablesError::Moved);
        }
        let names = match names {
            Some(names) => names,
            None => names.insert(Names::load(&transaction)?),
        };
        let mut older = BTreeMap::new();
        for made in older_claims(entries) {
            if let Some(standing) = names.standing(&transaction, made)? {
                older.insert(made, standing);
            }
        }
        let batch = Batch::fold(entries, older)?;
        write_claims(&transaction, names, &batch)?;
        write_totals(&transaction, names, &batch.cube)?;
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

    fn apply(&mut self, expected: Head, next: Head, entries: &[Arc<Stored>]) -> Result<(), TablesError> {
        let written = self.write(expected, next, entries);
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
}

fn head_of(connection: &Connection) -> Result<Head, TablesError> {
    let Some((position, hash)) = read_head(connection)? else { return Ok(Head::EMPTY) };
    let position = u64::try_from(position).map_err(|_| garbled("the head"))?;
    Ok(Head { position, hash: Hash::from_slice(&hash).ok_or_else(|| garbled("the head"))? })
}

fn connect_to_write(path: &Path) -> Result<Connection, TablesError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(limits::BOOK_LOCK_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // 32 MiB of cache hold the newest run of every index and a day's totals; 16 MiB of WAL are copied
    // back at a time.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -32768; PRAGMA foreign_keys = OFF;
         PRAGMA wal_autocheckpoint = 4096; PRAGMA journal_size_limit = 67108864;",
    )?;
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

impl Names {
    fn load(transaction: &Transaction<'_>) -> Result<Self, TablesError> {
        let mut names = Self::default();
        let mut statement = transaction.prepare_cached("SELECT id, kind, name FROM names")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, kind, name): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let kind = [Kind::Retailer, Kind::Platform, Kind::Category, Kind::Programme, Kind::Fund]
                .into_iter()
                .find(|known| *known as i64 == kind)
                .ok_or_else(|| garbled("a name"))?;
            names.insert(id, kind, name.into());
        }
        Ok(names)
    }

    fn insert(&mut self, id: i64, kind: Kind, name: Arc<str>) {
        self.ids.entry(kind).or_default().insert(Arc::clone(&name), id);
        self.names.insert(id, name);
        self.last = self.last.max(id);
    }

    /// The number that stands for `name`; a new one is written down.
    fn id(&mut self, transaction: &Transaction<'_>, kind: Kind, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.ids.get(&kind).and_then(|ids| ids.get(name)) {
            return Ok(*id);
        }
        let id = self.last + 1;
        transaction.prepare_cached("INSERT INTO names VALUES (?1, ?2, ?3)")?.execute(params![
            id,
            kind as i64,
            name
        ])?;
        self.insert(id, kind, name.into());
        Ok(id)
    }

    fn name<'a, T: Deserialize<'a>>(&'a self, id: i64) -> Result<T, TablesError> {
        self.names.get(&id).and_then(|name| named(name)).ok_or_else(|| garbled("a name"))
    }

    /// The claim made at `made` as it stands, if the book has it.
    fn standing(&self, transaction: &Transaction<'_>, made: u64) -> Result<Option<Standing>, TablesError> {
        let mut statement = transaction.prepare_cached(
            "SELECT last, status, sn_key, region, category, retailer, programme, fund, sale_day, price_fen,
                subsidy_fen FROM claims WHERE made = ?1",
        )?;
        let mut rows = statement.query([integer(made)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let status: i64 = row.get(1)?;
        Ok(Some(Standing {
            last: u64::try_from(row.get::<_, i64>(0)?).map_err(|_| garbled("a position"))?,
            status: Status::ALL
                .into_iter()
                .find(|known| status_number(*known) == status)
                .ok_or_else(|| garbled("a status"))?,
            sn_key: row.get(2)?,
            facts: Facts {
                facets: Facets {
                    region_code: region_numbered(row.get(3)?).ok_or_else(|| garbled("a region"))?,
                    category: self.name(row.get(4)?)?,
                    retailer: self.name(row.get(5)?)?,
                    programme: self.name(row.get(6)?)?,
                    fund: self.name(row.get(7)?)?,
                },
                sale_day: Day::from_number(row.get(8)?),
                price: Fen::new(row.get(9)?),
                subsidy: Fen::new(row.get(10)?),
            },
        }))
    }
}

fn write_claims(transaction: &Transaction<'_>, names: &mut Names, batch: &Batch) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO claims (made, last, status, retailer, platform, category, region, programme, fund,
            sale_day, price_fen, subsidy_fen, order_key, sn_key)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    for (made, claim) in &batch.made {
        let Standing { last, status, sn_key, facts } = &claim.standing;
        let Facts { facets, sale_day, price, subsidy } = facts;
        let mut id = |kind, name| names.id(transaction, kind, name);
        insert.execute(params![
            integer(*made),
            integer(*last),
            status_number(*status),
            id(Kind::Retailer, facets.retailer.as_str())?,
            claim.platform.as_ref().map(|platform| id(Kind::Platform, platform)).transpose()?,
            id(Kind::Category, facets.category.as_str())?,
            region_number(facets.region_code),
            id(Kind::Programme, facets.programme.as_str())?,
            id(Kind::Fund, facets.fund.as_str())?,
            sale_day.number(),
            price.get(),
            subsidy.get(),
            claim.order_key,
            sn_key,
        ])?;
    }
    let mut update = transaction
        .prepare_cached("UPDATE claims SET last = ?2, status = ?3, sn_key = ?4 WHERE made = ?1")?;
    for (made, Standing { last, status, sn_key, .. }) in &batch.moved {
        update.execute(params![integer(*made), integer(*last), status_number(*status), sn_key])?;
    }
    Ok(())
}

fn write_totals(transaction: &Transaction<'_>, names: &mut Names, cube: &Cube) -> rusqlite::Result<()> {
    let mut add = transaction.prepare_cached(
        "INSERT INTO totals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT DO UPDATE SET
            held_items = held_items + excluded.held_items, held_fen = held_fen + excluded.held_fen,
            redeemed_items = redeemed_items + excluded.redeemed_items,
            redeemed_fen = redeemed_fen + excluded.redeemed_fen,
            returned_items = returned_items + excluded.returned_items,
            returned_fen = returned_fen + excluded.returned_fen,
            cancelled_items = cancelled_items + excluded.cancelled_items,
            cancelled_fen = cancelled_fen + excluded.cancelled_fen, sales_fen = sales_fen + excluded.sales_fen",
    )?;
    for (Cell { day, sale_day, facets }, counters) in cube.cells() {
        let mut id = |kind, name| names.id(transaction, kind, name);
        add.execute(params![
            day.number(),
            sale_day.number(),
            region_number(facets.region_code),
            id(Kind::Category, facets.category.as_str())?,
            id(Kind::Retailer, facets.retailer.as_str())?,
            id(Kind::Programme, facets.programme.as_str())?,
            id(Kind::Fund, facets.fund.as_str())?,
            counters.held.items,
            counters.held.money.get(),
            counters.redeemed.items,
            counters.redeemed.money.get(),
            counters.returned.items,
            counters.returned.money.get(),
            counters.cancelled.items,
            counters.cancelled.money.get(),
            counters.sales.get(),
        ])?;
    }
    Ok(())
}

// --- Queries ---

/// The book as it is asked.
#[derive(Clone, Debug)]
pub struct SqliteBook {
    shared: Arc<Shared>,
}

/// Why a query failed, before it is put into words for the caller.
enum ReadFault {
    Sqlite(rusqlite::Error),
    Garbled(&'static str),
    TooSlow,
    TooManyRows,
}

impl From<rusqlite::Error> for ReadFault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// A snapshot of the book and the bounds of the query that reads it.
struct Snapshot<'a> {
    transaction: Transaction<'a>,
    as_of: u64,
    deadline: Option<Instant>,
}

impl Shared {
    fn new(path: &Path, feed: Feed) -> Self {
        Self {
            path: path.to_owned(),
            feed,
            file: RwLock::default(),
            idle: Mutex::default(),
            running: Arc::new(Semaphore::new(limits::BOOK_QUERIES_RUNNING_MAX)),
            admitted: Arc::new(Semaphore::new(limits::BOOK_QUERIES_MAX)),
        }
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
    fn read<T>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadFault>,
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
        let answer = query(&Snapshot { transaction, as_of, deadline })?;
        self.idle().push(connection);
        Ok(answer)
    }

    fn report(&self, fault: ReadFault) -> BookError {
        match fault {
            ReadFault::TooSlow => BookError::TooSlow,
            ReadFault::TooManyRows => BookError::TooManyRows,
            ReadFault::Garbled(what) => {
                self.feed.doubt();
                BookError::Unavailable(format!("{what} cannot be read"))
            }
            ReadFault::Sqlite(error) => {
                if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
                    return BookError::TooSlow;
                }
                if is_damage(&error) {
                    self.feed.doubt();
                }
                BookError::Unavailable(error.to_string())
            }
        }
    }
}

impl SqliteBook {
    fn ask<T: Send + 'static>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadFault> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, BookError>> {
        Box::pin(async move {
            let admitted = self.shared.admitted.try_acquire();
            let _admitted = admitted.map_err(|_| BookError::Overloaded)?;
            let turn = Arc::clone(&self.shared.running).acquire_owned();
            let turn = tokio::time::timeout(limits::BOOK_QUERY_TIMEOUT, turn).await;
            let Ok(Ok(turn)) = turn else { return Err(BookError::Overloaded) };
            let shared = Arc::clone(&self.shared);
            let reading = tokio::task::spawn_blocking(move || {
                // Kept until the query ends, even if nobody waits for it any more.
                let _turn = turn;
                shared.read(time_limit, query).map_err(|fault| shared.report(fault))
            });
            reading.await.unwrap_or_else(|error| Err(BookError::Unavailable(error.to_string())))
        })
    }
}

impl Book for SqliteBook {
    fn position(&self) -> u64 {
        self.shared.feed.position()
    }

    fn wait_for(&self, position: u64, deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(self.shared.feed.wait_for(position, deadline))
    }

    fn claims(&self, query: ClaimsQuery) -> BoxFuture<'_, Result<Page, BookError>> {
        self.ask(Some(limits::BOOK_QUERY_TIMEOUT), move |snapshot| snapshot.claims(&query))
    }

    fn totals(&self, query: TotalsQuery) -> BoxFuture<'_, Result<Totals, BookError>> {
        self.ask(Some(limits::BOOK_QUERY_TIMEOUT), move |snapshot| snapshot.totals(&query))
    }

    fn cube(&self) -> BoxFuture<'_, Result<(u64, Cube), BookError>> {
        self.ask(None, |snapshot| snapshot.cube())
    }
}

/// Where claims are looked for: positions from `low` up to but not including `high`.
struct Search {
    low: i64,
    high: i64,
    /// The index to use; the conditions lead into it.
    index: Option<&'static str>,
    /// What the claims found must meet; of integers that were integers here, no text from outside.
    conditions: String,
}

impl Snapshot<'_> {
    fn claims(&self, query: &ClaimsQuery) -> Result<Page, ReadFault> {
        let limit = query.limit.min(limits::PAGE_ITEMS_MAX);
        let mut items = match self.search(query)? {
            Some(search) => self.find(&search, limit + 1)?,
            None => Vec::new(),
        };
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|claim| claim.made);
        Ok(Page { items, next, as_of: self.as_of })
    }

    /// What `query` comes to in numbers; `None` if nothing can be found, for instance because the book
    /// has never seen something it names. (SQLite refuses a condition that is false in itself together
    /// with a named index.)
    fn search(&self, query: &ClaimsQuery) -> Result<Option<Search>, ReadFault> {
        let mut conditions = String::new();
        let mut retailer = None;
        let mut platform = None;
        if let Some(wanted) = &query.retailer {
            let Some(id) = self.id(Kind::Retailer, wanted.as_str())? else { return Ok(None) };
            retailer = Some(id);
        }
        match &query.scope {
            Scope::Retailer(own) => {
                if query.retailer.is_some_and(|wanted| wanted != *own) {
                    return Ok(None);
                }
                let Some(id) = self.id(Kind::Retailer, own.as_str())? else { return Ok(None) };
                retailer = Some(id);
            }
            Scope::Platform { name, retailers } => {
                let Some(id) = self.id(Kind::Platform, name)? else { return Ok(None) };
                platform = Some(id);
                conditions += &format!(" AND platform = {id}");
                if let Some(retailers) = retailers {
                    let mut ids = Vec::new();
                    for retailer in retailers {
                        ids.extend(self.id(Kind::Retailer, retailer.as_str())?.map(|id| id.to_string()));
                    }
                    if ids.is_empty() {
                        return Ok(None);
                    }
                    conditions += &format!(" AND retailer IN ({})", ids.join(","));
                }
            }
            Scope::Regulator { regions: Some(regions) } if regions.is_empty() => return Ok(None),
            Scope::Regulator { regions } => conditions += &within(regions.as_deref()),
        }
        if let Some(id) = retailer {
            conditions += &format!(" AND retailer = {id}");
        }
        if let Some(status) = query.status {
            conditions += &format!(" AND status = {}", status_number(status));
        }
        if let Some(category) = &query.category {
            let Some(id) = self.id(Kind::Category, category.as_str())? else { return Ok(None) };
            conditions += &format!(" AND category = {id}");
        }
        if let Some(region) = query.region_code {
            conditions += &within(Some(&[region]));
        }
        let mut index = platform.map(|_| "claims_by_platform");
        if retailer.is_some() {
            index = Some("claims_by_retailer");
        }
        if let Some(order_no) = &query.order_no {
            index = Some("claims_by_order");
            conditions += &format!(" AND order_key = {}", order_key(order_no));
        }
        if let Some(sn) = &query.sn {
            index = Some("claims_by_sn");
            conditions += &format!(" AND sn_key = {}", sn_key(sn));
        }
        let Some((low, high)) = self.positions(query)? else { return Ok(None) };
        Ok(Some(Search { low, high, index, conditions }))
    }

    /// The positions that the days and the page asked for leave.
    fn positions(&self, query: &ClaimsQuery) -> rusqlite::Result<Option<(i64, i64)>> {
        let mut high = integer(self.as_of) + 1;
        if let Some(before) = query.before {
            high = high.min(i64::try_from(before).unwrap_or(i64::MAX));
        }
        let mut low = 1;
        if let Some(from) = query.from {
            let Some(first) =
                self.first_position("SELECT first FROM days WHERE day >= ?1 ORDER BY day LIMIT 1", from)?
            else {
                return Ok(None);
            };
            low = first;
        }
        if let Some(to) = query.to
            && let Some(first) =
                self.first_position("SELECT first FROM days WHERE day > ?1 ORDER BY day LIMIT 1", to)?
        {
            high = high.min(first);
        }
        Ok((low < high).then_some((low, high)))
    }

    fn first_position(&self, sql: &str, day: Day) -> rusqlite::Result<Option<i64>> {
        self.transaction.prepare_cached(sql)?.query_row([day.number()], |row| row.get(0)).optional()
    }

    fn id(&self, kind: Kind, name: &str) -> rusqlite::Result<Option<i64>> {
        self.transaction
            .prepare_cached("SELECT id FROM names WHERE kind = ?1 AND name = ?2")?
            .query_row(params![kind as i64, name], |row| row.get(0))
            .optional()
    }

    /// The newest `limit` claims: run by run where there is an index for them, else in one go.
    fn find(&self, search: &Search, limit: usize) -> Result<Vec<ClaimPointer>, ReadFault> {
        let Search { low, high, index, conditions } = search;
        let (source, runs) = match index {
            Some(index) => {
                let runs = (*low >> RUN)..=((*high - 1) >> RUN);
                (format!("INDEXED BY {index} WHERE made >> {RUN} = ?1"), runs)
            }
            None => ("NOT INDEXED WHERE ?1 = 0".to_owned(), 0..=0),
        };
        let sql = format!(
            "SELECT made, last FROM claims {source} AND made >= {low} AND made < {high}{conditions}
             ORDER BY made DESC LIMIT ?2"
        );
        let mut statement = self.transaction.prepare(&sql)?;
        let mut found: Vec<ClaimPointer> = Vec::new();
        for run in runs.rev() {
            if found.len() >= limit {
                break;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ReadFault::TooSlow);
            }
            let missing = i64::try_from(limit - found.len()).unwrap_or(i64::MAX);
            let mut rows = statement.query([run, missing])?;
            while let Some(row) = rows.next()? {
                found.push(ClaimPointer {
                    made: row.get::<_, i64>(0)?.cast_unsigned(),
                    last: row.get::<_, i64>(1)?.cast_unsigned(),
                });
            }
        }
        Ok(found)
    }

    fn totals(&self, query: &TotalsQuery) -> Result<Totals, ReadFault> {
        let day = match query.basis {
            Basis::Day => "day",
            Basis::Sale => "sale_day",
        };
        let columns: Vec<&str> = query
            .group_by
            .iter()
            .map(|dimension| match dimension {
                Dimension::Day => day,
                Dimension::City => "region / 100 * 100",
                Dimension::Category => "category",
                Dimension::Retailer => "retailer",
                Dimension::Programme => "programme",
                Dimension::Fund => "fund",
            })
            .collect();
        let mut sql = String::from("SELECT ");
        for column in &columns {
            sql += &format!("{column}, ");
        }
        let sums = COUNTERS.map(|column| format!("coalesce(sum({column}), 0)"));
        sql += &format!("{} FROM totals WHERE 1{}", sums.join(", "), within(query.regions.as_deref()));
        if let Some(from) = query.from {
            sql += &format!(" AND {day} >= {}", from.number());
        }
        if let Some(to) = query.to {
            sql += &format!(" AND {day} <= {}", to.number());
        }
        if !columns.is_empty() {
            sql += &format!(" GROUP BY {}", columns.join(", "));
        }
        sql += &format!(" LIMIT {}", limits::TOTALS_ROWS_MAX + 1);

        let mut statement = self.transaction.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut names = HashMap::new();
        let mut totals = Vec::new();
        while let Some(row) = rows.next()? {
            if totals.len() == limits::TOTALS_ROWS_MAX {
                return Err(ReadFault::TooManyRows);
            }
            let mut group = Group::default();
            for (column, dimension) in query.group_by.iter().enumerate() {
                let number: i64 = row.get(column)?;
                match dimension {
                    Dimension::Day => group.day = Some(Day::from_number(row.get(column)?)),
                    Dimension::City => group.city = Some(region(number)?),
                    Dimension::Category => group.category = Some(self.name(&mut names, number)?),
                    Dimension::Retailer => group.retailer = Some(self.name(&mut names, number)?),
                    Dimension::Programme => group.programme = Some(self.name(&mut names, number)?),
                    Dimension::Fund => group.fund = Some(self.name(&mut names, number)?),
                }
            }
            totals.push((group, counters(row, columns.len())?));
        }
        totals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Totals { rows: totals, as_of: self.as_of })
    }

    fn cube(&self) -> Result<(u64, Cube), ReadFault> {
        let sql = format!(
            "SELECT day, sale_day, region, category, retailer, programme, fund, {} FROM totals",
            COUNTERS.join(", ")
        );
        let mut statement = self.transaction.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut names = HashMap::new();
        let mut cube = Cube::default();
        while let Some(row) = rows.next()? {
            let cell = Cell {
                day: Day::from_number(row.get(0)?),
                sale_day: Day::from_number(row.get(1)?),
                facets: Facets {
                    region_code: region(row.get(2)?)?,
                    category: self.name(&mut names, row.get(3)?)?,
                    retailer: self.name(&mut names, row.get(4)?)?,
                    programme: self.name(&mut names, row.get(5)?)?,
                    fund: self.name(&mut names, row.get(6)?)?,
                },
            };
            cube.add(cell, &counters(row, 7)?).ok_or(ReadFault::Garbled("a total"))?;
        }
        Ok((self.as_of, cube))
    }

    /// The value that `id` stands for; `names` remembers what was looked up.
    fn name<T: for<'de> Deserialize<'de>>(
        &self,
        names: &mut HashMap<i64, String>,
        id: i64,
    ) -> Result<T, ReadFault> {
        let name = match names.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(
                self.transaction
                    .prepare_cached("SELECT name FROM names WHERE id = ?1")?
                    .query_row([id], |row| row.get(0))?,
            ),
        };
        named(name).ok_or(ReadFault::Garbled("a name"))
    }
}

/// The counters' columns, in the order in which [`counters`] reads them.
const COUNTERS: [&str; 9] = [
    "held_items",
    "held_fen",
    "redeemed_items",
    "redeemed_fen",
    "returned_items",
    "returned_fen",
    "cancelled_items",
    "cancelled_fen",
    "sales_fen",
];

fn counters(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Counters> {
    let tally =
        |at| Ok::<_, rusqlite::Error>(Tally { items: row.get(at)?, money: Fen::new(row.get(at + 1)?) });
    Ok(Counters {
        held: tally(first)?,
        redeemed: tally(first + 2)?,
        returned: tally(first + 4)?,
        cancelled: tally(first + 6)?,
        sales: Fen::new(row.get(first + 8)?),
    })
}

fn region(number: i64) -> Result<RegionCode, ReadFault> {
    region_numbered(number).ok_or(ReadFault::Garbled("a region"))
}

/// The condition that a claim's region is one of `regions` or lies in one; nothing if there is no limit.
fn within(regions: Option<&[RegionCode]>) -> String {
    let Some(regions) = regions else { return String::new() };
    let mut condition = String::from(" AND (0");
    for region in regions {
        let first = region_number(*region);
        let last = match region.specificity() {
            1 => first + 9_999,
            2 => first + 99,
            _ => first,
        };
        // Writing to a string does not fail.
        let _ = write!(condition, " OR region BETWEEN {first} AND {last}");
    }
    condition + ")"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> (tempfile::TempDir, SqliteTables, SqliteBook) {
        let directory = tempfile::tempdir().unwrap();
        let (tables, book) = open(&directory.path().join(FILE), Feed::new()).unwrap();
        (directory, tables, book)
    }

    #[test]
    fn a_query_that_takes_too_long_is_broken_off() {
        let (_directory, _tables, book) = book();
        let endless = |snapshot: &Snapshot<'_>| {
            let sql =
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
            Ok(snapshot.transaction.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        };
        let broken_off = book.shared.read(Some(Duration::from_millis(20)), endless);
        assert_eq!(broken_off.map_err(|fault| book.shared.report(fault)), Err(BookError::TooSlow));
        let after = book.shared.read(Some(Duration::from_secs(10)), |snapshot| Ok(snapshot.as_of));
        assert_eq!(after.map_err(|fault| book.shared.report(fault)), Ok(0));
    }

    #[test]
    fn more_queries_than_can_wait_are_turned_away_at_once() {
        let (_directory, _tables, book) = book();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let places = book.shared.admitted.try_acquire_many(limits::BOOK_QUERIES_MAX as u32).unwrap();
        let refused = runtime.block_on(book.totals(TotalsQuery::default()));
        assert_eq!(refused, Err(BookError::Overloaded));
        drop(places);
        assert!(runtime.block_on(book.totals(TotalsQuery::default())).is_ok());
    }

    #[test]
    fn queries_cannot_write() {
        let (_directory, _tables, book) = book();
        let written = book
            .shared
            .read(None, |snapshot| Ok(snapshot.transaction.execute("DELETE FROM claims", []).map(drop)?));
        assert!(matches!(written.map_err(|fault| book.shared.report(fault)), Err(BookError::Unavailable(_))));
    }
}
