//! The journal of many processes: one append-only table in PostgreSQL.
//!
//! An append is one statement that writes only if the journal still ends where the writer says: whoever
//! is first wins, the other folds what was written and decides again. So that losing is rare, writers
//! take turns under an advisory lock; the lock is a courtesy, and everything holds without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::{Head, Journal, JournalError, Reader, Row, above, signed};
use crate::ledger::entry::Hash;
use crate::limits;
use crate::time::Timestamp;

/// The version of the tables that this program makes and uses.
const SCHEMA: i32 = 1;
/// Names the locks of this program in the database: for making tables, and for taking turns.
const SCHEMA_LOCK: i64 = 0x7375_6273_6964_7900;
const TURN_LOCK: i64 = 0x7375_6273_6964_7901;

const APPEND: &str = "
    INSERT INTO journal (position, hash, entry)
    SELECT * FROM unnest($3::bigint[], $4::bytea[], $5::text[])
    WHERE EXISTS (SELECT FROM journal WHERE position = $1 AND hash = $2)
       OR ($1 = 0 AND NOT EXISTS (SELECT FROM journal))";
const AFTER: &str =
    "SELECT position, hash, entry FROM journal WHERE position > $1 ORDER BY position LIMIT $2";
const AT: &str = "
    SELECT position, hash, entry FROM journal
    JOIN unnest($1::bigint[]) WITH ORDINALITY AS asked (position, number) USING (position) ORDER BY number";
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
const HEAD: &str = "SELECT position, hash FROM journal ORDER BY position DESC LIMIT 1";

/// Where a PostgreSQL journal is and how it is reached.
#[derive(Clone, Debug)]
pub struct Place {
    config: Config,
}

impl Place {
    /// Reads a URL, `postgres://user:password@host:port/database`.
    ///
    /// # Errors
    /// When it is not one; the text does not repeat it.
    pub fn parse(url: &str) -> Result<Self, JournalError> {
        let mut config: Config =
            url.parse().map_err(|error| JournalError::Unusable(format!("ledger.url: {error}")))?;
        config.connect_timeout(limits::POSTGRES_TIMEOUT);
        config.keepalives_idle(Duration::from_secs(10));
        config.application_name("subsidy-pos");
        Ok(Self { config })
    }

    async fn connect(&self) -> Result<Session, JournalError> {
        let connected = tokio::time::timeout(limits::POSTGRES_TIMEOUT, self.config.connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.map_err(unusable)?,
            Err(_) => return Err(JournalError::Unknown("connecting took too long".into())),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "a connection to PostgreSQL ended");
            }
        });
        let session = async {
            // A lock that is not got in time is done without; a statement that hangs is given up.
            let millis = limits::POSTGRES_TIMEOUT.as_millis();
            let turn = limits::TURN_WAIT.as_millis();
            client
                .batch_execute(&format!("SET statement_timeout = {millis}; SET lock_timeout = {turn}"))
                .await?;
            Ok(Session {
                append: client.prepare(APPEND).await?,
                after: client.prepare(AFTER).await?,
                at: client.prepare(AT).await?,
                head: client.prepare(HEAD).await?,
                client,
            })
        };
        within(session).await
    }
}

/// A connection with its statements.
#[derive(Debug)]
struct Session {
    client: Client,
    append: Statement,
    after: Statement,
    at: Statement,
    head: Statement,
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, JournalError> {
    match tokio::time::timeout(limits::POSTGRES_TIMEOUT, work).await {
        Ok(done) => done.map_err(unknown),
        Err(_) => Err(JournalError::Unknown("PostgreSQL took too long".into())),
    }
}

/// What the driver says, with the server's own words.
fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

fn unknown(error: tokio_postgres::Error) -> JournalError {
    JournalError::Unknown(words(&error))
}

fn unusable(error: tokio_postgres::Error) -> JournalError {
    JournalError::Unusable(format!("PostgreSQL cannot be reached: {}", words(&error)))
}

fn row(row: &tokio_postgres::Row) -> Result<Row, tokio_postgres::Error> {
    let position: i64 = row.try_get(0)?;
    let hash: &[u8] = row.try_get(1)?;
    let entry: &str = row.try_get(2)?;
    Ok(Row {
        position: position.unsigned_abs(),
        hash: Hash::from_slice(hash).unwrap_or(Hash::ZERO),
        entry: Arc::from(entry.as_bytes()),
    })
}

impl Session {
    async fn head(&self) -> Result<Head, JournalError> {
        let head = within(async {
            let Some(last) = self.client.query_opt(&self.head, &[]).await? else { return Ok(Head::EMPTY) };
            let (position, hash): (i64, &[u8]) = (last.try_get(0)?, last.try_get(1)?);
            Ok(Head { position: position.unsigned_abs(), hash: Hash::from_slice(hash).unwrap_or(Hash::ZERO) })
        });
        head.await
    }

    async fn now(&self) -> Result<Timestamp, JournalError> {
        let row = within(self.client.query_one(NOW, &[])).await?;
        row.try_get(0).map(Timestamp::from_ms).map_err(unknown)
    }

    async fn after(&self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        within(async {
            let rows = self.client.query(&self.after, &[&above(after), &signed(limit as u64)]).await?;
            rows.iter().map(row).collect()
        })
        .await
    }

    async fn at(&self, positions: &[u64]) -> Result<Vec<Row>, JournalError> {
        let asked: Vec<i64> = positions.iter().copied().map(signed).collect();
        let rows: Vec<Row> = within(async {
            let rows = self.client.query(&self.at, &[&asked]).await?;
            rows.iter().map(row).collect()
        })
        .await?;
        if rows.len() != positions.len() {
            return Err(JournalError::Unusable("an entry is missing".into()));
        }
        Ok(rows)
    }

    async fn append(&self, expected: Head, rows: &[Row]) -> Result<(), JournalError> {
        let positions: Vec<i64> = rows.iter().map(|row| signed(row.position)).collect();
        let hashes: Vec<&[u8]> = rows.iter().map(|row| row.hash.bytes().as_slice()).collect();
        let entries: Result<Vec<&str>, _> = rows.iter().map(|row| std::str::from_utf8(&row.entry)).collect();
        let entries = entries.map_err(|error| JournalError::Unusable(error.to_string()))?;
        let (position, hash) = (signed(expected.position), expected.hash.bytes().as_slice());
        let values: [&(dyn ToSql + Sync); 5] = [&position, &hash, &positions, &hashes, &entries];
        let inserted = self.client.execute(&self.append, &values);
        match tokio::time::timeout(limits::POSTGRES_TIMEOUT, inserted).await {
            Ok(Ok(0)) => Err(JournalError::Moved),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Err(JournalError::Moved),
            Ok(Err(error)) => Err(unknown(error)),
            Err(_) => Err(JournalError::Unknown("PostgreSQL took too long".into())),
        }
    }
}

/// The writer's side. It drives its own connection, so that nothing else can hold it up.
#[derive(Debug)]
pub struct PostgresJournal {
    place: Place,
    runtime: Runtime,
    session: Option<Session>,
    /// Since when it is this process's turn.
    turn: Option<Instant>,
    failures: u32,
}

impl PostgresJournal {
    /// Opens the journal at `place`, making its tables where there are none.
    ///
    /// # Errors
    /// When it cannot be reached, is of another version of the tables, or does not keep what it confirms.
    pub fn open(place: &Place) -> Result<Self, JournalError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| JournalError::Unusable(error.to_string()))?;
        let mut journal = Self { place: place.clone(), runtime, session: None, turn: None, failures: 0 };
        journal.migrate()?;
        Ok(journal)
    }

    fn migrate(&mut self) -> Result<(), JournalError> {
        let config = self.place.config.clone();
        self.runtime.block_on(async {
            let (mut client, connection) = config.connect(NoTls).await.map_err(unusable)?;
            let driver = tokio::spawn(connection);
            ensure_durable(&client).await?;
            let version = within(async {
                // Several processes may start at once: the lock lasts to the end of the transaction.
                let transaction = client.transaction().await?;
                transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
                let exists = transaction
                    .query_one("SELECT to_regclass('subsidy_pos_schema') IS NOT NULL", &[])
                    .await?
                    .try_get::<_, bool>(0)?;
                if !exists {
                    transaction
                        .batch_execute(
                            "CREATE TABLE subsidy_pos_schema (version integer NOT NULL);
                             INSERT INTO subsidy_pos_schema VALUES (1);
                             CREATE TABLE journal (
                                 position bigint PRIMARY KEY,
                                 hash     bytea NOT NULL,
                                 entry    text NOT NULL
                             )",
                        )
                        .await?;
                }
                let version = transaction
                    .query_one("SELECT max(version) FROM subsidy_pos_schema", &[])
                    .await?
                    .try_get(0)?;
                transaction.commit().await?;
                Ok(version)
            })
            .await?;
            drop(client);
            driver.abort();
            match version {
                Some(SCHEMA) => Ok(()),
                Some(other) => Err(JournalError::Unusable(format!(
                    "the tables in PostgreSQL are of version {other:?}, this program knows version {SCHEMA}: \
                     run the program that belongs to them"
                ))),
                None => Err(JournalError::Unusable("the tables in PostgreSQL name no version".into())),
            }
        })
    }

    /// Runs `work` on a session, connecting where there is none. A session on which anything failed but
    /// a lost race is thrown away.
    fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&Session) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let (place, failures) = (&self.place, self.failures);
        let held = self.session.take();
        let (session, result) = self.runtime.block_on(async move {
            let session = match held.filter(|session| !session.client.is_closed()) {
                Some(session) => session,
                None => {
                    pause_before_connecting(failures).await;
                    match place.connect().await {
                        Ok(session) => session,
                        Err(error) => return (None, Err(error)),
                    }
                }
            };
            let result = work(&session).await;
            (Some(session), result)
        });
        match &result {
            Ok(_) | Err(JournalError::Moved) => {
                self.session = session;
                self.failures = 0;
            }
            Err(_) => {
                self.turn = None;
                self.failures = self.failures.saturating_add(1);
            }
        }
        result
    }
}

/// Grows with the failures in a row, and differs between processes.
async fn pause_before_connecting(failures: u32) {
    if failures > 0 {
        let most = limits::POSTGRES_RETRY_MS_MAX.min(10_u64 << failures.min(10));
        tokio::time::sleep(Duration::from_millis(rand::random_range(most / 2..=most))).await;
    }
}

/// What PostgreSQL confirms must survive a crash.
async fn ensure_durable(client: &Client) -> Result<(), JournalError> {
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let value: String =
            within(async { client.query_one(&format!("SHOW {setting}"), &[]).await?.try_get(0) }).await?;
        if value == "off" {
            return Err(JournalError::Unusable(format!(
                "PostgreSQL has {setting} = off, so that what it confirms can be lost; set it to on"
            )));
        }
    }
    Ok(())
}

impl Journal for PostgresJournal {
    fn head(&mut self) -> Result<Head, JournalError> {
        self.with(async |session| session.head().await)
    }

    fn append(&mut self, expected: Head, rows: &[Row]) -> Result<(), JournalError> {
        self.with(async |session| session.append(expected, rows).await)
    }

    fn read(&mut self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        self.with(async |session| session.after(after, limit).await)
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        self.session = None;
        self.turn = None;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn take_turn(&mut self) -> Result<bool, JournalError> {
        if self.turn.is_some_and(|since| since.elapsed() < limits::TURN) {
            return Ok(false);
        }
        let had_it = self.turn.take().is_some();
        let taken = self.with(async |session| {
            if had_it {
                within(session.client.execute("SELECT pg_advisory_unlock($1)", &[&TURN_LOCK])).await?;
            }
            let locked = session.client.execute("SELECT pg_advisory_lock($1)", &[&TURN_LOCK]);
            match tokio::time::timeout(limits::POSTGRES_TIMEOUT, locked).await {
                Ok(Ok(_)) => Ok(true),
                // Someone holds it and does not go on; whoever appends first wins.
                Ok(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
                Ok(Err(error)) => Err(unknown(error)),
                Err(_) => Err(JournalError::Unknown("PostgreSQL took too long".into())),
            }
        })?;
        self.turn = taken.then(Instant::now);
        Ok(true)
    }

    fn end_turn(&mut self) {
        if self.turn.take().is_some() {
            let unlocked = self.with(async |session| {
                within(session.client.execute("SELECT pg_advisory_unlock($1)", &[&TURN_LOCK])).await
            });
            if let Err(error) = unlocked {
                // The lock goes with the connection.
                tracing::warn!(%error, "the turn could not be given up");
            }
        }
    }
}

/// The readers' side: a few connections that everyone shares.
pub struct PostgresReader {
    place: Place,
    /// Drives the connections.
    runtime: tokio::runtime::Handle,
    sessions: Vec<Mutex<Option<Arc<Session>>>>,
    next: AtomicUsize,
}

impl PostgresReader {
    /// A reader of the journal at `place`, whose connections are driven by the current runtime.
    pub fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            runtime: tokio::runtime::Handle::current(),
            sessions: (0..limits::POSTGRES_READERS).map(|_| Mutex::new(None)).collect(),
            next: AtomicUsize::new(0),
        }
    }

    async fn session(&self) -> Result<Arc<Session>, JournalError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % limits::POSTGRES_READERS;
        let slot = self.sessions.get(number).ok_or_else(|| JournalError::Unusable("no reader".into()))?;
        let mut slot = slot.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let place = self.place.clone();
        let connecting = self.runtime.spawn(async move { place.connect().await });
        let session = connecting.await.map_err(|error| JournalError::Unknown(error.to_string()))??;
        Ok(Arc::clone(slot.insert(Arc::new(session))))
    }
}

impl Reader for PostgresReader {
    fn rows<'a>(&'a self, positions: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>> {
        async move { self.session().await?.at(positions).await }.boxed()
    }

    fn now(&self) -> BoxFuture<'_, Result<Option<Timestamp>, JournalError>> {
        async move { self.session().await?.now().await.map(Some) }.boxed()
    }

    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>> {
        async move { self.session().await?.after(after, limit).await }.boxed()
    }
}
