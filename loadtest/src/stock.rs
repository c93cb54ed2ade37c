//! A ledger in this process, without HTTP: for measuring it alone, and for filling journals quickly.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use subsidy_pos::clock::Clock;
use subsidy_pos::journal::sqlite::{SqliteJournal, SqliteReader};
use subsidy_pos::ledger::command::{Command, Failure, Outcome};
use subsidy_pos::ledger::entry::Key;
use subsidy_pos::ledger::state::State;
use subsidy_pos::ledger::writer::{Observer, Writer, fold_rest};
use subsidy_pos::ledger::{Ledger, Snapshot, Snapshots, Stored};
use subsidy_pos::secrets::DevKeys;

use crate::drafts::{self, Drafts};
use crate::sale::{Numbers, TillClock};

/// A ledger on a data directory that `serve --dev` can open afterwards.
pub struct Stock {
    ledger: Ledger,
    writer: Option<Writer>,
    runtime: tokio::runtime::Runtime,
    drafts: Drafts,
    numbers: Numbers,
    clock: TillClock,
    appends: Appends,
}

/// Counts appends.
#[derive(Clone, Debug, Default)]
pub struct Appends(Arc<AtomicU64>);

impl Observer for Appends {
    fn appended(&mut self, _: &[Arc<Stored>]) {}

    fn batch(&mut self, _: usize, _: Duration) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the service keeps the snapshots of a data directory.
fn snapshots(data: &Path) -> Snapshots {
    Snapshots::new(data.join("snapshots"))
}

/// Opens the ledger of a data directory: from its snapshot if that is asked for, or by folding its journal.
pub fn open_ledger(data: &Path, from_snapshot: bool, appends: &Appends) -> Result<(Ledger, Writer)> {
    let mut journal = SqliteJournal::open(data)?;
    let opened = from_snapshot.then(|| snapshots(data).open(&mut journal));
    if let Some(None) = opened {
        bail!("no snapshot in {} can be used", data.display());
    }
    let state = opened.flatten().map_or_else(State::default, |(state, _)| state);
    open_from(state, journal, data, appends)
}

fn open_from(
    state: State,
    journal: SqliteJournal,
    data: &Path,
    appends: &Appends,
) -> Result<(Ledger, Writer)> {
    Ok(Ledger::open_from(
        state,
        Box::new(journal),
        Arc::new(SqliteReader::new(data)?),
        Clock::default(),
        Key::new(rand::random()),
        Box::new(appends.clone()),
    )?)
}

/// Takes a snapshot of the journal in a data directory. Gives how long writing it took, and its bytes.
pub fn take_snapshot(data: &Path) -> Result<(Duration, u64)> {
    let mut journal = SqliteJournal::open(data)?;
    let mut state = State::default();
    fold_rest(&mut state, &mut journal)?;
    let began = Instant::now();
    let Snapshot { position, digest } = snapshots(data).write(&state, &mut |_| Ok(()))?;
    let took = began.elapsed();
    let (ledger, writer) = open_from(state, journal, data, &Appends::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ledger.submit(Command::NameSnapshot { position, digest })).map_err(why)?;
    writer.stop();
    snapshots(data).remove_old();
    let bytes = snapshots(data).bytes(position)?;
    Ok((took, bytes))
}

fn why(failure: Failure) -> anyhow::Error {
    anyhow!("the ledger says: {failure:?}")
}

impl Stock {
    /// Opens it, and makes keys, programmes and funds ready where they are not.
    pub fn open(data: &Path) -> Result<Self> {
        let keys = DevKeys::make(data).map_err(|fault| anyhow!("{fault}"))?;
        let appends = Appends::default();
        let (ledger, writer) = open_ledger(data, false, &appends)?;
        let stock = Self {
            ledger,
            writer: Some(writer),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            drafts: Drafts::new(drafts::hash_keys(&keys.hash_key_file)?)?,
            numbers: Numbers::default(),
            clock: TillClock::default(),
            appends,
        };
        stock.prepare_journal()?;
        Ok(stock)
    }

    fn submit(&self, command: Command) -> Result<Outcome> {
        self.runtime.block_on(self.ledger.submit(command)).map_err(why)
    }

    fn prepare_journal(&self) -> Result<()> {
        for command in drafts::introduction(self.drafts.hash_keys()) {
            self.submit(command)?;
        }
        let Outcome::Funds { funds: open, .. } = self.submit(Command::Funds)? else {
            bail!("no list of funds")
        };
        if !open.is_empty() {
            return Ok(());
        }
        let programmes = Arc::clone(&self.ledger.published().programmes);
        for command in drafts::funds(&programmes)? {
            self.submit(command)?;
        }
        Ok(())
    }

    /// Sales parsed, hashed and judged: all that is done outside the ledger's writer.
    pub fn drafts(&mut self, count: usize) -> Result<Vec<Command>> {
        let now = Instant::now();
        let today = Clock::default().now().day();
        let published = Arc::clone(&self.ledger.published());
        (0..count)
            .map(|_| {
                let n = self.numbers.take();
                let body = Drafts::read(self.drafts.body(n, &self.clock.text(now)), today)?;
                let draft = self.drafts.draft(&published, n, body)?;
                Ok(Command::Make(Box::new(draft)))
            })
            .collect()
    }

    /// Has the ledger make these claims, `batch` at a time, four batches being on their way at any time: while
    /// some are written there are others to decide. Gives the time it took and how many claims each append had.
    pub fn make(&self, drafts: Vec<Command>, batch: usize) -> Result<(Duration, f64)> {
        const ON_THEIR_WAY: usize = 4;
        let claims = drafts.len();
        let mut batches = Vec::with_capacity(drafts.len() / batch + 1);
        let mut drafts = drafts.into_iter();
        loop {
            let some: Vec<Command> = drafts.by_ref().take(batch).collect();
            if some.is_empty() {
                break;
            }
            batches.push(some);
        }
        let before = self.appends.0.load(Ordering::Relaxed);
        let began = Instant::now();
        let sent = stream::iter(batches).map(|batch| self.ledger.submit_all(batch)).buffered(ON_THEIR_WAY);
        self.runtime.block_on(sent.map_err(why).try_for_each(async |outcomes| {
            for outcome in outcomes {
                match outcome.map_err(why)? {
                    Outcome::Claim(at) if !at.unchanged => {}
                    other => bail!("a sale was answered {other:?}"),
                }
            }
            Ok(())
        }))?;
        let appends = self.appends.0.load(Ordering::Relaxed) - before;
        Ok((began.elapsed(), claims as f64 / appends as f64))
    }

    /// Makes claims until there are `claims` more, and says how it goes.
    pub fn fill(&mut self, claims: u64, tick: &mut dyn FnMut(u64)) -> Result<()> {
        const AT_A_TIME: u64 = 20_000;
        let mut made = 0;
        while made < claims {
            let some = AT_A_TIME.min(claims - made);
            let drafts = self.drafts(usize::try_from(some)?)?;
            self.make(drafts, 1000)?;
            made += some;
            tick(made);
        }
        Ok(())
    }

    /// The position of the last entry.
    pub fn position(&self) -> u64 {
        self.ledger.position()
    }

    /// Leaves a clean journal.
    pub fn close(mut self) {
        if let Some(writer) = self.writer.take() {
            writer.stop();
        }
    }
}
