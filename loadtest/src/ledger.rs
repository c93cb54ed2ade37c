//! The ledger alone, decide and durable append, beside a bare append of the same bytes; and how fast and
//! how small it opens again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subsidy_pos::journal::Row;
use subsidy_pos::journal::sqlite::SqliteReader;
use subsidy_pos::limits;

use crate::machine;
use crate::process::Workplace;
use crate::progress::Progress;
use crate::report::{Figures, Table, thousands};
use crate::stock::{self, Appends, Stock};

/// Sizes of the batches that are appended.
const BATCHES: [usize; 2] = [64, 256];
const ROUNDS: usize = 3;
/// Pages in the log of the bare table before SQLite carries it over; fewer make it slower.
const BARE_CHECKPOINT_PAGES: u32 = 1000;
/// Claims in one measurement.
const CLAIMS: usize = 100_000;

/// What the ledger alone came to.
#[derive(Debug, Serialize)]
pub struct LedgerAlone {
    /// Claims in one append.
    pub batch: usize,
    /// Claims that one append really had; the bare appends have `batch` rows.
    pub appended: f64,
    /// Claims a second, decided and durable.
    pub ledger: Figures,
    /// Rows a second, the same bytes, appended by nothing but SQLite.
    pub bare: Figures,
    /// Median of the rounds' ratios.
    pub ratio: f64,
}

/// Measures the ledger and the bare append in turn.
pub fn alone(workplace: &Workplace) -> Result<Vec<LedgerAlone>> {
    let data = workplace.directory("ledger")?;
    let mut stock = Stock::open(&data)?;
    let mut bare = Bare::open(&workplace.directory("bare")?.join("bare.db"))?;
    let reader = SqliteReader::new(&data)?;
    let progress = Progress::new("the ledger alone", (ROUNDS * BATCHES.len()) as u64);
    let mut rates = [const { (Vec::new(), Vec::new(), Vec::new()) }; BATCHES.len()];
    // A round before the first is not counted: it grows the files and warms the caches.
    for round in 0..=ROUNDS {
        for (batch, (ledger_rates, bare_rates, appended)) in BATCHES.into_iter().zip(&mut rates) {
            let drafts = stock.drafts(CLAIMS)?;
            let before = stock.position();
            let (ledger_time, per_append) = stock.make(drafts, batch)?;
            let rows = rows_after(&reader, before)?;
            ensure!(rows.len() == CLAIMS, "the journal has {} new entries, not {CLAIMS}", rows.len());
            let bare_time = bare.append(&rows, batch)?;
            if round > 0 {
                appended.push(per_append);
                ledger_rates.push(per_second(CLAIMS, ledger_time));
                bare_rates.push(per_second(CLAIMS, bare_time));
                progress.add(1);
            }
        }
    }
    stock.close();
    progress.done();
    let mut table =
        Table::new(&["batch", "claims to an append", "ledger, claims/s", "bare SQLite, rows/s", "ratio"]);
    let mut results = Vec::new();
    for (batch, (ledger, bare, appended)) in BATCHES.into_iter().zip(rates) {
        let appended = Figures::of(appended).median;
        let ratio = Figures::of(ledger.iter().zip(&bare).map(|(ledger, bare)| ledger / bare)).median;
        let (ledger, bare) = (Figures::of(ledger), Figures::of(bare));
        table.row([
            batch.to_string(),
            format!("{appended:.0}"),
            ledger.text(),
            bare.text(),
            format!("{ratio:.2}"),
        ]);
        results.push(LedgerAlone { batch, appended, ledger, bare, ratio });
    }
    println!("\n{table}");
    Ok(results)
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn rows_after(reader: &SqliteReader, mut after: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::with_capacity(CLAIMS);
    loop {
        let some = reader.read_after(after, limits::JOURNAL_READ_ENTRIES_MAX)?;
        let Some(last) = some.last() else { return Ok(rows) };
        after = last.position;
        rows.extend(some);
    }
}

/// A table like the journal's, written by nothing but SQLite, with the journal's settings.
struct Bare(Connection);

impl Bare {
    fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "page_size", limits::JOURNAL_PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", BARE_CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", limits::JOURNAL_WAL_BYTES_KEPT)?;
        connection.execute_batch(
            "CREATE TABLE journal (position INTEGER PRIMARY KEY, hash BLOB NOT NULL, entry TEXT NOT NULL) STRICT",
        )?;
        Ok(Self(connection))
    }

    fn append(&mut self, rows: &[Row], batch: usize) -> Result<Duration> {
        let began = Instant::now();
        for batch in rows.chunks(batch) {
            let transaction = self.0.transaction()?;
            {
                let mut insert = transaction
                    .prepare_cached("INSERT INTO journal (position, hash, entry) VALUES (?1, ?2, ?3)")?;
                for row in batch {
                    let entry = std::str::from_utf8(&row.entry)?;
                    insert.execute((i64::try_from(row.position)?, row.hash.bytes(), entry))?;
                }
            }
            transaction.commit()?;
        }
        Ok(began.elapsed())
    }
}

/// What opening a journal came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// Entries in the journal.
    pub entries: u64,
    /// How long it took.
    pub seconds: f64,
    /// Memory the state takes.
    pub bytes: u64,
}

impl Opened {
    /// Entries a second.
    pub fn rate(&self) -> f64 {
        self.entries as f64 / self.seconds
    }
}

/// What taking a snapshot came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// How long writing it took, as fast as the disk allows.
    pub seconds: f64,
    /// Its bytes.
    pub bytes: u64,
}

/// Opens the journal in `data`, from its snapshot or without, and says what that took; to be run in a
/// process of its own.
pub fn open_here(data: &Path, from_snapshot: bool) -> Result<()> {
    let process = std::process::id();
    let before = machine::resident_bytes(process)?;
    let began = Instant::now();
    let (ledger, writer) = stock::open_ledger(data, from_snapshot, &Appends::default())?;
    let seconds = began.elapsed().as_secs_f64();
    let bytes = machine::resident_bytes(process)?.saturating_sub(before);
    let opened = Opened { entries: ledger.position(), seconds, bytes };
    println!("{}", serde_json::to_string(&opened)?);
    writer.stop();
    Ok(())
}

/// Takes a snapshot of the journal in `data` and says what that took; to be run in a process of its own.
pub fn take_here(data: &Path) -> Result<()> {
    let (took, bytes) = stock::take_snapshot(data)?;
    println!("{}", serde_json::to_string(&Taken { seconds: took.as_secs_f64(), bytes })?);
    Ok(())
}

/// Opens a journal in a process of its own.
pub fn open(data: &Path, from_snapshot: bool) -> Result<Opened> {
    worker("open-worker", data, if from_snapshot { &["--from-snapshot"] } else { &[] })
}

/// Takes a snapshot in a process of its own.
pub fn take_snapshot(data: &Path) -> Result<Taken> {
    worker("snapshot-worker", data, &[])
}

fn worker<T: DeserializeOwned>(name: &str, data: &Path, more: &[&str]) -> Result<T> {
    let output =
        Command::new(std::env::current_exe()?).arg(name).arg("--data").arg(data).args(more).output()?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {name} said"))
}

/// How a journal opens.
#[derive(Debug, Serialize)]
pub struct Opening {
    /// By folding all of it.
    pub folded: Vec<Opened>,
    /// The snapshot taken.
    pub snapshot: Taken,
    /// From that.
    pub from_snapshot: Vec<Opened>,
}

/// Fills a journal and measures how it opens, without a snapshot and with one.
pub fn opening(workplace: &Workplace, claims: u64) -> Result<Opening> {
    let data = workplace.directory("opening")?;
    fill(&data, claims)?;
    let mut table = Table::new(&["opened", "entries", "seconds", "entries/s", "memory, bytes per claim"]);
    let mut rounds = |name: &str, from_snapshot: bool| -> Result<Vec<Opened>> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let opened = open(&data, from_snapshot)?;
            table.row([
                name.to_owned(),
                thousands(opened.entries),
                format!("{:.2}", opened.seconds),
                thousands(opened.rate() as u64),
                (opened.bytes / claims.max(1)).to_string(),
            ]);
            rounds.push(opened);
        }
        Ok(rounds)
    };
    let folded = rounds("folding all entries", false)?;
    let snapshot = take_snapshot(&data)?;
    let from_snapshot = rounds("from a snapshot", true)?;
    println!("\n{table}");
    println!(
        "the snapshot was written in {:.2} s and has {} bytes per claim",
        snapshot.seconds,
        snapshot.bytes / claims.max(1)
    );
    Ok(Opening { folded, snapshot, from_snapshot })
}

/// Makes claims in the journal of a data directory, without HTTP.
pub fn fill(data: &Path, claims: u64) -> Result<()> {
    let progress = Progress::new("filling the journal", claims);
    let mut stock = Stock::open(data)?;
    stock.fill(claims, &mut |made| progress.at(made))?;
    stock.close();
    progress.done();
    Ok(())
}
