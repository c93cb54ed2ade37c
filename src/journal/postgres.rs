//! The journal of many processes: one append-only table in PostgreSQL.
//!
//! An append is one statement that writes only if the journal still ends where the writer says: whoever
//! is first wins, the other folds what was written and decides again. A process that has lost such a race
//! takes turns with the others for a while, under an advisory lock, so that they do not decide in vain; as
//! long as nobody else appends nobody waits for a lock. A turn is one append: the lock is asked for
//! together with what others have appended, and given back together with the append, so that it costs no
//! round trip of its own. The turns are a courtesy, and everything holds without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::{Head, Journal, JournalError, Reader, Row, above, signed};
use crate::ledger::entry::Hash;
use crate::limits;
use crate::time::Timestamp;
use place::{Backoff, within, words};

pub mod place;

pub use place::Place;

/// The version of the tables that this program makes and uses.
const SCHEMA: i32 = 1;
/// Names the locks of this program in the database: for making tables, and for taking turns.
const SCHEMA_LOCK: i64 = 0x7375_6273_6964_7900;
const TURN_LOCK: i64 = 0x7375_6273_6964_7901;

/// Makes the tables of version 1.
const TABLES: &str = "
    CREATE TABLE subsidy_pos_schema (version integer NOT NULL);
    INSERT INTO subsidy_pos_schema VALUES (1);
    CREATE TABLE journal (position bigint PRIMARY KEY, hash bytea NOT NULL, entry text NOT NULL)";
/// What a database must not have: settings with which it can lose what it has confirmed, or an encoding
/// that does not hold every text.
const UNSAFE: &str = "
    SELECT name || ' = ' || setting FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
       OR name = 'server_encoding' AND setting <> 'UTF8'";
/// Appends whatever others do; for whoever has the turn, or has waited for it in vain. The last row is
/// asked for as the index gives it: `position > $1` would be looked for in the whole table as long as
/// there are no statistics.
const APPEND: &str = "
    INSERT INTO journal (position, hash, entry)
    SELECT * FROM unnest($3::bigint[], $4::bytea[], $5::text[])
    WHERE CASE WHEN $1::bigint = 0 THEN NOT EXISTS (SELECT FROM journal)
          ELSE (SELECT position = $1 AND hash = $2 FROM journal ORDER BY position DESC LIMIT 1) END";
/// Appends unless someone else has the turn.
const APPEND_OUT_OF_TURN: &str = "
    WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($6::bigint) AS is_free)
    INSERT INTO journal (position, hash, entry)
    SELECT new.* FROM turn, unnest($3::bigint[], $4::bytea[], $5::text[]) AS new
    WHERE turn.is_free
      AND CASE WHEN $1::bigint = 0 THEN NOT EXISTS (SELECT FROM journal)
          ELSE (SELECT position = $1 AND hash = $2 FROM journal ORDER BY position DESC LIMIT 1) END";
/// A journal is only ever read along its index, whatever PostgreSQL believes of its size; so how is planned
/// once and not for every statement.
const SESSION: &str = "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan";
const AFTER: &str =
    "SELECT position, hash, entry FROM journal WHERE position > $1 ORDER BY position LIMIT $2";
const AT: &str = "
    SELECT position, hash, entry FROM journal
    JOIN unnest($1::bigint[]) WITH ORDINALITY AS asked (position, number) USING (position) ORDER BY number";
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// Whether no standby confirms what is committed.
const SINGLE_COPY: &str = "
    SELECT current_setting('synchronous_standby_names') = '' OR current_setting('synchronous_commit') = 'local'";
const HEAD: &str = "SELECT position, hash FROM journal ORDER BY position DESC LIMIT 1";
/// Waits until everything that can be read is as durable as what is confirmed: with a synchronous standby,
/// what a crash left here alone has reached it too.
const CONFIRM: &str = "SELECT pg_logical_emit_message(true, 'subsidy-pos', '')";
const LOCK: &str = "SELECT pg_advisory_lock($1)";
const UNLOCK: &str = "SELECT pg_advisory_unlock($1)";

/// A connection with its statements.
#[derive(Debug)]
struct Session {
    client: Client,
    append: Statement,
    append_out_of_turn: Statement,
    after: Statement,
    at: Statement,
    head: Statement,
    lock: Statement,
    unlock: Statement,
}

fn row(row: &tokio_postgres::Row) -> Result<Row, tokio_postgres::Error> {
    let position: i64 = row.try_get(0)?;
    let hash: &[u8] = row.try_get(1)?;
    let entry: &str = row.try_get(2)?;
    Ok(Row {
        position: position.unsigned_abs(),
        // A hash of another length is as wrong as another hash, and is found by whoever checks it.
        hash: Hash::from_slice(hash).unwrap_or(Hash::ZERO),
        entry: Arc::from(entry.as_bytes()),
    })
}

impl Session {
    async fn begin(place: &Place, to_write: bool) -> Result<Self, JournalError> {
        let client = place.connect(limits::POSTGRES_TIMEOUT, limits::TURN_WAIT).await?;
        ensure_safe(&client).await?;
        within(client.batch_execute(SESSION)).await?;
        if to_write {
            within(client.batch_execute(CONFIRM)).await?;
        }
        within(async {
            Ok(Self {
                append: client.prepare(APPEND).await?,
                append_out_of_turn: client.prepare(APPEND_OUT_OF_TURN).await?,
                after: client.prepare(AFTER).await?,
                at: client.prepare(AT).await?,
                head: client.prepare(HEAD).await?,
                lock: client.prepare(LOCK).await?,
                unlock: client.prepare(UNLOCK).await?,
                client,
            })
        })
        .await
    }

    async fn head(&self) -> Result<Head, JournalError> {
        let head = within(async {
            let Some(last) = self.client.query_opt(&self.head, &[]).await? else { return Ok(Head::EMPTY) };
            let (position, hash): (i64, &[u8]) = (last.try_get(0)?, last.try_get(1)?);
            Ok(Head { position: position.unsigned_abs(), hash: Hash::from_slice(hash).unwrap_or(Hash::ZERO) })
        });
        head.await
    }

    async fn now(&self) -> Result<Timestamp, JournalError> {
        within(async { self.client.query_one(NOW, &[]).await?.try_get(0).map(Timestamp::from_ms) }).await
    }

    async fn is_single_copy(&self) -> Result<bool, JournalError> {
        within(async { self.client.query_one(SINGLE_COPY, &[]).await?.try_get(0) }).await
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

    async fn append(&self, expected: Head, rows: &[Row], turn: Turn) -> Result<(), JournalError> {
        let positions: Vec<i64> = rows.iter().map(|row| signed(row.position)).collect();
        let hashes: Vec<&[u8]> = rows.iter().map(|row| row.hash.bytes().as_slice()).collect();
        let entries: Result<Vec<&str>, _> = rows.iter().map(|row| std::str::from_utf8(&row.entry)).collect();
        let entries = entries.map_err(|error| JournalError::Unusable(error.to_string()))?;
        let (position, hash) = (signed(expected.position), expected.hash.bytes().as_slice());
        let values: [&(dyn ToSql + Sync); 6] = [&position, &hash, &positions, &hashes, &entries, &TURN_LOCK];
        let inserted = match (turn, &values) {
            (Turn::NotNeeded, values) => self.client.execute(&self.append_out_of_turn, values).boxed(),
            (_, [values @ .., _]) => self.client.execute(&self.append, values).boxed(),
        };
        let unlocked = match turn {
            Turn::Own => self.client.execute(&self.unlock, &[&TURN_LOCK]).boxed(),
            _ => std::future::ready(Ok(0)).boxed(),
        };
        // Both are sent before the first is answered: whoever is next goes on as soon as this is durable.
        let done = async { tokio::join!(inserted, unlocked) };
        match tokio::time::timeout(limits::POSTGRES_TIMEOUT, done).await {
            Ok((Ok(0), _)) => Err(JournalError::Moved),
            Ok((Ok(_), _)) => Ok(()),
            Ok((Err(error), _)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                Err(JournalError::Moved)
            }
            Ok((Err(error), _)) => Err(JournalError::Unknown(words(&error))),
            Err(_) => Err(JournalError::Unknown("PostgreSQL took too long".into())),
        }
    }

    /// Waits for the turn, and reads what follows `after` then. Without the turn where whoever has it does
    /// not go on.
    async fn take_turn(&self, after: u64) -> Result<(Turn, Vec<Row>), JournalError> {
        let (after, limit) = (above(after), signed(limits::JOURNAL_READ_ENTRIES_MAX as u64));
        let locked = self.client.execute(&self.lock, &[&TURN_LOCK]);
        let values: [&(dyn ToSql + Sync); 2] = [&after, &limit];
        let found = self.client.query(&self.after, &values);
        // In this order on one connection: what is read is as of the turn.
        let done = async { tokio::join!(locked, found) };
        let (locked, found) = tokio::time::timeout(limits::POSTGRES_TIMEOUT, done)
            .await
            .map_err(|_| JournalError::Unknown("PostgreSQL took too long".into()))?;
        let turn = match locked {
            Ok(_) => Turn::Own,
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Turn::Missed(Instant::now()),
            Err(error) => return Err(JournalError::Unknown(words(&error))),
        };
        let rows = found.and_then(|rows| rows.iter().map(row).collect());
        Ok((turn, rows.map_err(|error| JournalError::Unknown(words(&error)))?))
    }

    async fn unlock(&self) -> Result<(), JournalError> {
        within(self.client.execute(&self.unlock, &[&TURN_LOCK])).await.map(drop)
    }
}

/// What PostgreSQL confirms must survive a crash, and be what was sent.
async fn ensure_safe(client: &Client) -> Result<(), JournalError> {
    let found = within(async {
        let rows = client.query(UNSAFE, &[]).await?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()
    });
    let found = found.await?;
    if found.is_empty() {
        return Ok(());
    }
    Err(JournalError::Unusable(format!(
        "PostgreSQL has {}, so that what it confirms can be lost: it needs fsync, full_page_writes and \
         synchronous_commit on, and a database made with ENCODING 'UTF8'",
        found.join(", ")
    )))
}

/// Makes the tables where there are none, and checks their version.
async fn migrate(place: &Place) -> Result<(), JournalError> {
    let mut client = place.connect(limits::POSTGRES_TIMEOUT, limits::POSTGRES_TIMEOUT).await?;
    ensure_safe(&client).await?;
    within(async {
        // Several processes may start at once: the lock lasts to the end of the transaction.
        let transaction = client.transaction().await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
        if !exists(transaction.client()).await? {
            transaction.batch_execute(TABLES).await?;
        }
        transaction.commit().await
    })
    .await
    .map_err(|error| {
        JournalError::Unusable(format!(
            "the journal's tables cannot be made ({error}); `subsidy-pos journal make` makes them as a role that may"
        ))
    })?;
    check_version(&client).await
}

async fn exists(client: &Client) -> Result<bool, tokio_postgres::Error> {
    client.query_one("SELECT to_regclass('subsidy_pos_schema') IS NOT NULL", &[]).await?.try_get(0)
}

async fn check_version(client: &Client) -> Result<(), JournalError> {
    let version = within(async {
        let version = client.query_one("SELECT max(version) FROM subsidy_pos_schema", &[]).await?;
        version.try_get::<_, Option<i32>>(0)
    });
    match version.await? {
        Some(SCHEMA) => Ok(()),
        Some(other) => Err(JournalError::Unusable(format!(
            "the tables in PostgreSQL are of version {other}, this program knows version {SCHEMA}: run the \
             program that belongs to them"
        ))),
        None => Err(JournalError::Unusable(
            "the tables in PostgreSQL name no version: restore the table subsidy_pos_schema".into(),
        )),
    }
}

/// Whose turn it is to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// Nobody else has appended of late.
    NotNeeded,
    /// This process's, until it has appended.
    Own,
    /// It was waited for in vain then; for a while whoever appends first wins.
    Missed(Instant),
}

/// The writer's side. It drives its own connection, so that nothing else can hold it up.
#[derive(Debug)]
pub struct PostgresJournal {
    place: Place,
    runtime: Runtime,
    only_reads: bool,
    session: Option<Session>,
    backoff: Backoff,
    turn: Turn,
    /// Until when turns are taken, because others append too.
    contended_until: Option<Instant>,
}

impl PostgresJournal {
    /// Opens the journal at `place`, making its tables where there are none.
    ///
    /// # Errors
    /// When it cannot be reached, is of another version of the tables, or does not keep what it confirms.
    pub fn open(place: &Place) -> Result<Self, JournalError> {
        let journal = Self::new(place.clone(), false)?;
        journal.runtime.block_on(migrate(place))?;
        Ok(journal)
    }

    /// Opens the journal at `place` to be read, if there is one; on a standby too.
    ///
    /// # Errors
    /// When there is none, or as [`PostgresJournal::open`].
    pub fn open_to_read(place: &Place) -> Result<Self, JournalError> {
        let journal = Self::new(place.for_reading(), true)?;
        journal.runtime.block_on(async {
            let client = journal.place.connect(limits::POSTGRES_TIMEOUT, limits::TURN_WAIT).await?;
            if !within(exists(&client)).await? {
                return Err(JournalError::Unusable("there is no journal in this database".into()));
            }
            check_version(&client).await
        })?;
        Ok(journal)
    }

    fn new(place: Place, only_reads: bool) -> Result<Self, JournalError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| JournalError::Unusable(error.to_string()))?;
        Ok(Self {
            place,
            runtime,
            only_reads,
            session: None,
            backoff: Backoff::default(),
            turn: Turn::NotNeeded,
            contended_until: None,
        })
    }

    /// Runs `work` on a session, connecting where there is none. A session on which anything failed but
    /// a lost race is thrown away.
    fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&Session) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let held = self.session.take().filter(|session| !session.client.is_closed());
        if held.is_none() {
            self.turn = Turn::NotNeeded;
            self.backoff.check()?;
        }
        let (place, only_reads) = (&self.place, self.only_reads);
        let (session, result) = self.runtime.block_on(async move {
            let session = match held {
                Some(session) => session,
                None => match Session::begin(place, !only_reads).await {
                    Ok(session) => session,
                    Err(error) => return (None, Err(error)),
                },
            };
            let result = work(&session).await;
            (Some(session), result)
        });
        match &result {
            Ok(_) | Err(JournalError::Moved) => {
                self.session = session;
                self.backoff.succeeded();
            }
            Err(_) => {
                self.turn = Turn::NotNeeded;
                self.backoff.failed();
            }
        }
        result
    }
}

impl Journal for PostgresJournal {
    fn head(&mut self) -> Result<Head, JournalError> {
        self.with(async |session| session.head().await)
    }

    fn append(&mut self, expected: Head, rows: &[Row]) -> Result<(), JournalError> {
        let turn = self.turn;
        let appended = self.with(async |session| session.append(expected, rows, turn).await);
        if turn == Turn::Own {
            self.turn = Turn::NotNeeded;
        }
        if matches!(appended, Err(JournalError::Moved)) {
            self.contended_until = Some(Instant::now() + limits::CONTENTION);
        }
        appended
    }

    fn read(&mut self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        self.with(async |session| session.after(after, limit).await)
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        self.session = None;
        self.turn = Turn::NotNeeded;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn take_turn(&mut self, after: u64) -> Result<Option<Vec<Row>>, JournalError> {
        self.end_turn();
        if self.contended_until.is_none_or(|until| Instant::now() >= until) {
            self.contended_until = None;
            self.turn = Turn::NotNeeded;
            return Ok(None);
        }
        // Whoever has it and does not go on is not waited for again and again.
        let is_missed = matches!(self.turn, Turn::Missed(since) if since.elapsed() < limits::CONTENTION);
        let rows = if is_missed {
            self.read(after, limits::JOURNAL_READ_ENTRIES_MAX)?
        } else {
            let (turn, rows) = self.with(async |session| session.take_turn(after).await)?;
            self.turn = turn;
            rows
        };
        if !rows.is_empty() {
            self.contended_until = Some(Instant::now() + limits::CONTENTION);
        }
        Ok(Some(rows))
    }

    fn end_turn(&mut self) {
        if self.turn != Turn::Own {
            return;
        }
        self.turn = Turn::NotNeeded;
        if let Err(error) = self.with(async |session| session.unlock().await) {
            // The lock goes with the connection.
            tracing::warn!(%error, "the turn could not be given up");
        }
    }
}

/// The readers' side: a few connections that everyone shares.
pub struct PostgresReader {
    place: Place,
    /// Drives the connections.
    runtime: tokio::runtime::Handle,
    slots: Vec<Mutex<Slot>>,
    next: AtomicUsize,
}

/// One connection of the readers, if it is up.
#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    backoff: Backoff,
}

impl PostgresReader {
    /// A reader of the journal at `place`, whose connections are driven by `runtime`.
    pub fn new(place: &Place, runtime: tokio::runtime::Handle) -> Self {
        Self {
            place: place.clone(),
            runtime,
            slots: (0..limits::POSTGRES_READERS).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// Runs `work` on one of the connections. One on which anything failed is not used again.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&Session) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % limits::POSTGRES_READERS;
        let slot = self.slots.get(number).ok_or_else(|| JournalError::Unusable("no reader".into()))?;
        let session = self.session(slot).await?;
        let result = work(&session).await;
        if result.is_err() {
            let mut slot = slot.lock().await;
            if slot.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, &session)) {
                slot.session = None;
            }
        }
        result
    }

    async fn session(&self, slot: &Mutex<Slot>) -> Result<Arc<Session>, JournalError> {
        let mut slot = slot.lock().await;
        if let Some(session) = slot.session.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        slot.backoff.check()?;
        let place = self.place.clone();
        let connecting = self.runtime.spawn(async move { Session::begin(&place, false).await });
        match connecting.await.map_err(|error| JournalError::Unknown(error.to_string())).flatten() {
            Ok(session) => {
                slot.backoff.succeeded();
                Ok(Arc::clone(slot.session.insert(Arc::new(session))))
            }
            Err(error) => {
                slot.backoff.failed();
                Err(error)
            }
        }
    }
}

impl Reader for PostgresReader {
    fn rows<'a>(&'a self, positions: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>> {
        async move { self.with(async |session| session.at(positions).await).await }.boxed()
    }

    fn now(&self) -> BoxFuture<'_, Result<Option<Timestamp>, JournalError>> {
        async move { self.with(async |session| session.now().await.map(Some)).await }.boxed()
    }

    fn is_single_copy(&self) -> BoxFuture<'_, Result<bool, JournalError>> {
        async move { self.with(async |session| session.is_single_copy().await).await }.boxed()
    }

    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>> {
        async move { self.with(async |session| session.after(after, limit).await).await }.boxed()
    }
}
