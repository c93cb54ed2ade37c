//! The book in PostgreSQL: the schema `book`, beside the journal or in a database of its own.
//!
//! Any process may project: whoever writes locks the row that names the head. The book commits lazily
//! (`synchronous_commit = off`): a crash of PostgreSQL can cost the last moments, which a projector carries
//! in again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::BookError;
use super::batch::{Batch, Line, older_claims};
use super::cube::Cube;
use super::projector::{Feed, Tables, TablesError};
use super::sql::{
    ADD_TO_TOTAL, CLAIM, FORMAT, Kind, Names, RUN, ReadFault, Readable, STANDING, STANDING_COLUMNS, Snapshot,
    Source, SqlBook, garbled, integer, moves,
};
use crate::journal::postgres::Place;
use crate::journal::postgres::place::words;
use crate::journal::{Head, JournalError};
use crate::ledger::entry::Hash;
use crate::limits;

/// Names the lock under which tables are made and dropped.
const TABLES_LOCK: i64 = 0x7375_6273_6964_7902;
/// Held by the process that carries the book on.
const PROJECTOR_LOCK: i64 = 0x7375_6273_6964_7903;
const SESSION: &str = "SET search_path = book; SET synchronous_commit = off";

/// Drops the tables, as far as they are there.
const DROP: &str = "DROP TABLE IF EXISTS format, head, names, days, claims, totals";
/// Makes the tables; `RUN` and `FORMAT` stand for the numbers.
const TABLES: &str = "
    CREATE TABLE format (version bigint NOT NULL);
    INSERT INTO format VALUES (FORMAT);
    CREATE TABLE head (id bigint PRIMARY KEY CHECK (id = 1), position bigint NOT NULL, hash bytea NOT NULL);
    CREATE TABLE names (id bigint PRIMARY KEY, kind bigint NOT NULL, name text NOT NULL, UNIQUE (kind, name));
    CREATE TABLE days (day bigint PRIMARY KEY, first bigint NOT NULL);
    CREATE TABLE claims (
        made bigint PRIMARY KEY, last bigint NOT NULL, status bigint NOT NULL, retailer bigint NOT NULL,
        platform bigint, category bigint NOT NULL, region bigint NOT NULL, programme bigint NOT NULL,
        fund bigint NOT NULL, sale_day bigint NOT NULL, price_fen bigint NOT NULL,
        subsidy_fen bigint NOT NULL, order_key bigint NOT NULL, sn_key bigint);
    CREATE INDEX claims_by_retailer ON claims ((made >> RUN), retailer);
    CREATE INDEX claims_by_platform ON claims ((made >> RUN), platform) WHERE platform IS NOT NULL;
    CREATE INDEX claims_by_order ON claims ((made >> RUN), order_key);
    CREATE INDEX claims_by_sn ON claims ((made >> RUN), sn_key) WHERE sn_key IS NOT NULL;
    CREATE TABLE totals (
        day bigint NOT NULL, sale_day bigint NOT NULL, region bigint NOT NULL, category bigint NOT NULL,
        retailer bigint NOT NULL, programme bigint NOT NULL, fund bigint NOT NULL,
        held_items bigint NOT NULL, held_fen bigint NOT NULL,
        redeemed_items bigint NOT NULL, redeemed_fen bigint NOT NULL,
        returned_items bigint NOT NULL, returned_fen bigint NOT NULL,
        cancelled_items bigint NOT NULL, cancelled_fen bigint NOT NULL, sales_fen bigint NOT NULL,
        PRIMARY KEY (day, sale_day, region, category, retailer, programme, fund));";

/// Opens the book at `place`, making its tables where there are none. Queries are answered from it, their
/// connections driven by `runtime`; `feed` tells them how far the projector is.
///
/// # Errors
/// When the database cannot be used.
pub fn open(
    place: &Place,
    feed: Feed,
    runtime: Handle,
) -> Result<(PostgresTables, PostgresBook), TablesError> {
    let own_runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| TablesError::Unavailable(error.to_string()))?;
    let mut tables = PostgresTables {
        place: place.clone(),
        runtime: own_runtime,
        client: None,
        carries_on: false,
        names: None,
    };
    match tables.head() {
        Err(TablesError::Unfit(cause)) => {
            tracing::warn!(cause, "the book is dropped and rebuilt");
            tables.reset()?;
        }
        other => drop(other?),
    }
    let shared = Shared { place: place.clone(), feed, runtime, idle: Mutex::default() };
    Ok((tables, SqlBook::new(Arc::new(shared))))
}

/// All totals of the book at `place` and the position they are true at; `None` where there is no book.
///
/// # Errors
/// When it cannot be read.
pub fn read_cube(place: &Place) -> Result<Option<(u64, Cube)>, BookError> {
    let unavailable = |reason: String| BookError::Unavailable(reason);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unavailable(error.to_string()))?;
    let shared = Shared {
        place: place.clone(),
        feed: Feed::new(),
        runtime: runtime.handle().clone(),
        idle: Mutex::default(),
    };
    runtime.block_on(async {
        let read = tokio::task::spawn_blocking(move || match shared.has_tables() {
            Ok(true) => shared.cube().map(Some),
            Ok(false) => Ok(None),
            Err(fault) => Err(fault.report(&shared.feed)),
        });
        read.await.unwrap_or_else(|error| Err(unavailable(error.to_string())))
    })
}

/// Waits for `work` for `limit` at most.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Fault::from),
        Err(_) => Err(Fault::Unavailable("PostgreSQL took too long".to_owned())),
    }
}

/// Why PostgreSQL did not do what it was asked.
enum Fault {
    /// The tables are damaged, or not those of the book.
    Damaged(String),
    /// It took longer than it may.
    TooSlow,
    Unavailable(String),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        let words = words(&error);
        match error.code() {
            Some(&SqlState::QUERY_CANCELED) => Self::TooSlow,
            Some(
                &SqlState::DATA_CORRUPTED
                | &SqlState::INDEX_CORRUPTED
                | &SqlState::UNDEFINED_TABLE
                | &SqlState::UNDEFINED_COLUMN
                | &SqlState::INVALID_SCHEMA_NAME,
            ) => Self::Damaged(words),
            _ => Self::Unavailable(words),
        }
    }
}

impl From<JournalError> for Fault {
    fn from(error: JournalError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<Fault> for TablesError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Damaged(reason) => Self::Unfit(reason),
            Fault::TooSlow => Self::Unavailable("PostgreSQL took too long".to_owned()),
            Fault::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl From<tokio_postgres::Error> for TablesError {
    fn from(error: tokio_postgres::Error) -> Self {
        Fault::from(error).into()
    }
}

impl From<Fault> for ReadFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Damaged(reason) => Self::Damaged(reason),
            Fault::TooSlow => Self::TooSlow,
            Fault::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

// --- The projector's side ---

/// The tables as the projector writes them.
#[derive(Debug)]
pub struct PostgresTables {
    place: Place,
    runtime: Runtime,
    client: Option<Client>,
    /// Whether this connection holds the lock of whoever carries the book on.
    carries_on: bool,
    /// The table `names`; `None` when another process or a rollback may have made it differ.
    names: Option<Names>,
}

impl PostgresTables {
    /// Runs `work` on a connection to tables that are there. A connection on which anything failed but a
    /// lost race is thrown away.
    fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Client, &mut Option<Names>) -> Result<T, TablesError>,
    ) -> Result<T, TablesError> {
        let held = self.client.take().filter(|client| !client.is_closed());
        self.carries_on &= held.is_some();
        let mut names = self.names.take();
        let place = &self.place;
        let (client, names, result) = self.runtime.block_on(async move {
            let mut client = match held {
                Some(client) => client,
                None => match connect_to_write(place).await {
                    Ok(client) => client,
                    Err(error) => return (None, None, Err(error)),
                },
            };
            let done = tokio::time::timeout(limits::BOOK_WRITE_TIMEOUT, work(&mut client, &mut names)).await;
            let too_long = || Err(TablesError::Unavailable("PostgreSQL took too long".to_owned()));
            (Some(client), names, done.unwrap_or_else(|_| too_long()))
        });
        match &result {
            Ok(_) => (self.client, self.names) = (client, names),
            Err(TablesError::Moved | TablesError::Contradiction(_)) => self.client = client,
            Err(_) => self.carries_on = false,
        }
        result
    }
}

impl Tables for PostgresTables {
    fn head(&mut self) -> Result<Head, TablesError> {
        self.with(async |client, _| {
            let row = client.query_opt("SELECT position, hash FROM head", &[]).await?;
            head(row.as_ref())
        })
    }

    fn carry_on(&mut self) -> Result<bool, TablesError> {
        if !self.carries_on || self.client.as_ref().is_none_or(Client::is_closed) {
            self.carries_on = self.with(async |client, _| {
                let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&PROJECTOR_LOCK]).await?;
                Ok(locked.try_get(0)?)
            })?;
        }
        Ok(self.carries_on)
    }

    fn apply(
        &mut self,
        expected: Head,
        next: Head,
        lines: &[Line],
        breathe: &mut dyn FnMut(),
    ) -> Result<(), TablesError> {
        self.with(async |client, names| {
            let transaction = client.transaction().await?;
            write(&transaction, names, expected, next, lines, breathe).await?;
            Ok(transaction.commit().await?)
        })
    }

    fn reset(&mut self) -> Result<(), TablesError> {
        self.client = None;
        self.carries_on = false;
        self.names = None;
        let place = &self.place;
        self.runtime.block_on(async {
            let mut client = connect(place).await?;
            let transaction = client.transaction().await?;
            if let Some(newer) = lock_tables(&transaction).await?.filter(|format| *format > FORMAT) {
                return Err(of_a_newer_program(newer));
            }
            transaction.batch_execute(DROP).await?;
            make_tables(&transaction).await?;
            Ok(transaction.commit().await?)
        })
    }
}

async fn connect(place: &Place) -> Result<Client, TablesError> {
    let client =
        place.connect(limits::BOOK_WRITE_TIMEOUT, limits::BOOK_LOCK_TIMEOUT).await.map_err(Fault::from)?;
    within(limits::POSTGRES_TIMEOUT, client.batch_execute(SESSION)).await?;
    Ok(client)
}

/// A connection to tables that are there.
async fn connect_to_write(place: &Place) -> Result<Client, TablesError> {
    let mut client = connect(place).await?;
    let transaction = client.transaction().await?;
    match lock_tables(&transaction).await? {
        Some(FORMAT) => {}
        Some(older @ ..FORMAT) => {
            return Err(TablesError::Unfit(format!("its format is {older}, not {FORMAT}")));
        }
        Some(newer) => return Err(of_a_newer_program(newer)),
        None => make_tables(&transaction).await?,
    }
    transaction.commit().await?;
    Ok(client)
}

/// While processes are replaced by newer ones the book is theirs.
fn of_a_newer_program(format: i64) -> TablesError {
    TablesError::Unavailable(format!(
        "its format {format} is of a newer program, which knows {FORMAT} no more"
    ))
}

/// Keeps other processes from making or dropping tables until the transaction ends. The format of those
/// that are there.
async fn lock_tables(transaction: &Transaction<'_>) -> Result<Option<i64>, TablesError> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&TABLES_LOCK]).await?;
    let exists = transaction.query_one("SELECT to_regclass('book.format') IS NOT NULL", &[]).await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let format = transaction.query_opt("SELECT version FROM format", &[]).await?;
    let format = format.ok_or_else(|| garbled("the format"))?;
    Ok(Some(format.try_get(0)?))
}

async fn make_tables(transaction: &Transaction<'_>) -> Result<(), TablesError> {
    let exists = transaction.query_one("SELECT to_regnamespace('book') IS NOT NULL", &[]).await?;
    if !exists.try_get::<_, bool>(0)? {
        transaction.batch_execute("CREATE SCHEMA book").await?;
    }
    let tables = TABLES.replace("RUN", &RUN.to_string()).replace("FORMAT", &FORMAT.to_string());
    transaction.batch_execute(&tables).await?;
    let (position, hash) = (integer(Head::EMPTY.position), Hash::ZERO.bytes().as_slice());
    transaction.execute("INSERT INTO head VALUES (1, $1, $2)", &[&position, &hash]).await?;
    Ok(())
}

fn head(row: Option<&tokio_postgres::Row>) -> Result<Head, TablesError> {
    let row = row.ok_or_else(|| garbled("the head"))?;
    super::sql::head(row.try_get(0)?, row.try_get(1)?)
}

async fn write(
    transaction: &Transaction<'_>,
    names: &mut Option<Names>,
    expected: Head,
    next: Head,
    lines: &[Line],
    breathe: &mut dyn FnMut(),
) -> Result<(), TablesError> {
    // Whoever projects too waits here, and then finds that it was too late.
    let row = transaction.query_opt("SELECT position, hash FROM head FOR UPDATE", &[]).await?;
    if head(row.as_ref())? != expected {
        return Err(TablesError::Moved);
    }
    let names = match names {
        Some(names) => names,
        None => names.insert(load_names(transaction).await?),
    };
    let older: Vec<i64> = older_claims(lines).into_iter().map(integer).collect();
    let batch = Batch::fold(lines, standings(transaction, names, &older).await?, breathe)?;
    let claims: Vec<_> = batch.made.iter().map(|(made, claim)| names.claim(*made, claim)).collect();
    let totals = names.totals(&batch.cube);
    let fresh = names.take_fresh();
    if !fresh.is_empty() {
        let ids: Vec<i64> = fresh.iter().map(|(id, ..)| *id).collect();
        let kinds: Vec<i64> = fresh.iter().map(|(_, kind, _)| *kind as i64).collect();
        let texts: Vec<&str> = fresh.iter().map(|(.., name)| &**name).collect();
        let sql = "INSERT INTO names SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[])";
        transaction.execute(sql, &[&ids, &kinds, &texts]).await?;
    }
    copy(transaction, &format!("COPY claims ({CLAIM}) FROM STDIN (FORMAT binary)"), &claims, breathe).await?;
    let sql = "UPDATE claims SET last = new.last, status = new.status, sn_key = new.sn_key
         FROM ROWS AS new (made, last, status, sn_key) WHERE claims.made = new.made";
    execute(transaction, sql, &moves(&batch), breathe).await?;
    execute(transaction, &format!("INSERT INTO totals SELECT * FROM ROWS {ADD_TO_TOTAL}"), &totals, breathe)
        .await?;
    let days: Vec<_> = batch.days.iter().map(|(day, first)| [day.number().into(), integer(*first)]).collect();
    execute(transaction, "INSERT INTO days SELECT * FROM ROWS ON CONFLICT DO NOTHING", &days, breathe)
        .await?;
    let (position, hash) = (integer(next.position), next.hash.bytes().as_slice());
    transaction.execute("UPDATE head SET position = $1, hash = $2", &[&position, &hash]).await?;
    Ok(())
}

/// Executes `sql` with `rows` of numbers, whose place in it is `ROWS`; with some of them at a time.
async fn execute<const N: usize, T>(
    transaction: &Transaction<'_>,
    sql: &str,
    rows: &[[T; N]],
    breathe: &mut dyn FnMut(),
) -> Result<(), TablesError>
where
    T: Copy + ToSql + Sync,
{
    if rows.is_empty() {
        return Ok(());
    }
    let mut unnest = String::from("unnest(");
    for number in 1..=N {
        // Writing to a string does not fail.
        let _ = write!(unnest, "{}${number}::bigint[]", if number == 1 { "" } else { ", " });
    }
    let statement = transaction.prepare(&sql.replace("ROWS", &(unnest + ")"))).await?;
    for rows in rows.chunks(limits::BOOK_ROWS_AT_A_TIME) {
        let columns: [Vec<T>; N] =
            std::array::from_fn(|column| rows.iter().filter_map(|row| row.get(column).copied()).collect());
        let values: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        transaction.execute(&statement, &values).await?;
        breathe();
    }
    Ok(())
}

/// Gives `rows` of numbers to a `COPY`, some of them at a time: the quickest way in.
async fn copy<const N: usize>(
    transaction: &Transaction<'_>,
    sql: &str,
    rows: &[[Option<i64>; N]],
    breathe: &mut dyn FnMut(),
) -> Result<(), TablesError> {
    for rows in rows.chunks(limits::BOOK_ROWS_AT_A_TIME) {
        let writer = BinaryCopyInWriter::new(transaction.copy_in(sql).await?, &[const { Type::INT8 }; N]);
        let mut writer = std::pin::pin!(writer);
        for row in rows {
            writer.as_mut().write_raw(row).await?;
        }
        writer.finish().await?;
        breathe();
    }
    Ok(())
}

async fn load_names(transaction: &Transaction<'_>) -> Result<Names, TablesError> {
    let mut names = Names::default();
    for row in transaction.query("SELECT id, kind, name FROM names", &[]).await? {
        names.know(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)?;
    }
    Ok(names)
}

/// The claims made at these positions as they stand, as far as the book has them.
async fn standings(
    transaction: &Transaction<'_>,
    names: &Names,
    made: &[i64],
) -> Result<BTreeMap<u64, super::batch::Standing>, TablesError> {
    if made.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!("SELECT {STANDING} FROM claims WHERE made = ANY($1)");
    let rows = transaction.query(&sql, &[&made]).await?;
    let mut standings = BTreeMap::new();
    for row in rows {
        let mut numbers = [None; STANDING_COLUMNS];
        for (column, number) in numbers.iter_mut().enumerate() {
            *number = row.try_get(column)?;
        }
        standings.extend([names.standing(numbers)?]);
    }
    Ok(standings)
}

// --- Queries ---

/// The book as it is asked.
pub type PostgresBook = SqlBook<Shared>;

/// The tables, as those who ask have them.
#[derive(Debug)]
pub struct Shared {
    place: Place,
    feed: Feed,
    /// Drives the connections.
    runtime: Handle,
    idle: Mutex<Vec<Client>>,
}

/// A transaction that reads, and until when it may.
struct Reading<'a> {
    client: &'a Client,
    runtime: &'a Handle,
    deadline: Option<Instant>,
}

impl Reading<'_> {
    fn query(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<tokio_postgres::Row>, Fault> {
        let query = self.client.query_typed(sql, values);
        match self.deadline {
            // PostgreSQL breaks it off by itself; this is for one that does not answer at all.
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now()) + limits::POSTGRES_TIMEOUT;
                self.runtime.block_on(within(left, query))
            }
            None => Ok(self.runtime.block_on(query)?),
        }
    }

    fn run(&self, sql: &str) -> Result<(), Fault> {
        self.runtime.block_on(within(limits::POSTGRES_TIMEOUT, self.client.batch_execute(sql)))
    }
}

impl Source for Reading<'_> {
    fn integers(&self, sql: &str, values: &[i64]) -> Result<Vec<Vec<i64>>, ReadFault> {
        let values: Vec<(&(dyn ToSql + Sync), Type)> =
            values.iter().map(|value| (value as &(dyn ToSql + Sync), Type::INT8)).collect();
        let integers = |row: tokio_postgres::Row| {
            (0..row.len()).map(|column| row.try_get(column)).collect::<Result<Vec<i64>, _>>()
        };
        let rows = self.query(sql, &values)?.into_iter().map(integers).collect::<Result<_, _>>();
        Ok(rows.map_err(Fault::from)?)
    }

    fn id(&self, kind: Kind, name: &str) -> Result<Option<i64>, ReadFault> {
        let sql = "SELECT id FROM names WHERE kind = $1 AND name = $2";
        let rows = self.query(sql, &[(&(kind as i64), Type::INT8), (&name, Type::TEXT)])?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose().map_err(Fault::from)?)
    }

    fn name(&self, id: i64) -> Result<String, ReadFault> {
        let rows = self.query("SELECT name FROM names WHERE id = $1", &[(&id, Type::INT8)])?;
        let row = rows.first().ok_or(ReadFault::Garbled("a name"))?;
        Ok(row.try_get(0).map_err(Fault::from)?)
    }

    fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn using(&self, _: Option<&'static str>) -> String {
        // The conditions lead to the index, and never to more than one run of positions.
        String::new()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Client, Fault> {
        self.runtime.block_on(async {
            let client = self.place.connect(limits::BOOK_QUERY_TIMEOUT, limits::BOOK_LOCK_TIMEOUT).await?;
            within(limits::POSTGRES_TIMEOUT, client.batch_execute(SESSION)).await?;
            Ok(client)
        })
    }

    const fn reading<'a>(&'a self, client: &'a Client, deadline: Option<Instant>) -> Reading<'a> {
        Reading { client, runtime: &self.runtime, deadline }
    }

    fn has_tables(&self) -> Result<bool, ReadFault> {
        let client = self.connect()?;
        let rows = self.reading(&client, None).query("SELECT to_regclass('book.head') IS NOT NULL", &[])?;
        Ok(rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false)))
    }

    /// Runs `query` on a snapshot, for `time_limit` at most. Not to be called on a runtime's thread.
    fn try_read<T>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Reading<'_>, u64) -> Result<T, ReadFault>,
    ) -> Result<T, ReadFault> {
        let deadline = time_limit.map(|limit| Instant::now() + limit);
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}",
            time_limit.unwrap_or_default().as_millis()
        );
        let client = loop {
            let idle = self.idle().pop();
            let is_new = idle.is_none();
            let client = idle.map_or_else(|| self.connect(), Ok)?;
            match self.reading(&client, deadline).run(&begin) {
                Ok(()) => break client,
                Err(fault) if is_new => return Err(fault.into()),
                // Its connection has ended; another may not have.
                Err(_) => {}
            }
        };
        let source = self.reading(&client, deadline);
        let head = source.integers("SELECT position FROM head", &[])?;
        let as_of =
            head.first().and_then(|row| row.first()).and_then(|position| u64::try_from(*position).ok());
        let answer = query(&source, as_of.ok_or(ReadFault::Garbled("the head"))?)?;
        source.run("COMMIT")?;
        self.idle().push(client);
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
