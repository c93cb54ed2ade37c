//! A ledger in this process, without HTTP: for measuring it alone, and for filling journals quickly.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use subsidy_pos::claim::{FundId, Submitter};
use subsidy_pos::clock::Clock;
use subsidy_pos::http::extract::Readable as _;
use subsidy_pos::http::json;
use subsidy_pos::http::prepare::Preparation;
use subsidy_pos::http::sale::ClaimBody;
use subsidy_pos::identity::{IdempotencyKey, RegionCode, Uscc, generate};
use subsidy_pos::journal::sqlite::{SqliteJournal, SqliteReader};
use subsidy_pos::ledger::command::{Command, Failure, OpenFund, Outcome};
use subsidy_pos::ledger::entry::{Key, ProgrammeFile};
use subsidy_pos::ledger::state::State;
use subsidy_pos::ledger::writer::{Observer, Writer, fold_rest};
use subsidy_pos::ledger::{Ledger, Snapshot, Snapshots, Stored};
use subsidy_pos::money::Fen;
use subsidy_pos::programme;
use subsidy_pos::secrets::{DevKeys, HashKeys};

use crate::plain::dev_hash_keys;
use crate::process::RETAILERS;
use crate::sale::{Numbers, Request, TillClock};

/// A ledger on a data directory that `serve --dev` can open afterwards.
pub struct Stock {
    ledger: Ledger,
    writer: Option<Writer>,
    runtime: tokio::runtime::Runtime,
    hash_keys: HashKeys,
    retailers: Vec<Uscc>,
    numbers: Numbers,
    clock: TillClock,
    request: Request,
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
        let retailers: Result<_, _> = (1..=RETAILERS).map(|n| Uscc::parse(&generate::uscc_from(n))).collect();
        let stock = Self {
            ledger,
            writer: Some(writer),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            hash_keys: dev_hash_keys(&keys)?,
            retailers: retailers.map_err(|fault| anyhow!("{fault:?}"))?,
            numbers: Numbers::default(),
            clock: TillClock::default(),
            request: Request::claim(""),
            appends,
        };
        stock.prepare_journal()?;
        Ok(stock)
    }

    fn submit(&self, command: Command) -> Result<Outcome> {
        self.runtime.block_on(self.ledger.submit(command)).map_err(why)
    }

    fn prepare_journal(&self) -> Result<()> {
        // 1,000,000,000,000.00 yuan: no journal made here uses them up.
        const BUDGET: Fen = Fen::new(100_000_000_000_000);
        for key in self.hash_keys.live() {
            let (key, check) = (key.id().to_string().into(), key.check_value().into());
            self.submit(Command::IntroduceHashKey { key, check })?;
        }
        let files = programme::shipped().into_iter().map(|(name, text)| ProgrammeFile { name, text });
        self.submit(Command::Activate(files.collect()))?;
        let Outcome::Funds { funds: open, .. } = self.submit(Command::Funds)? else {
            bail!("no list of funds")
        };
        if !open.is_empty() {
            return Ok(());
        }
        let programmes = Arc::clone(&self.ledger.published().programmes);
        let measure_25 = programmes.get("zj-ai-25").context("measure 25 is not among the programmes")?;
        for city in (1..=11).map(|city| (330_000 + city * 100).to_string()) {
            self.submit(Command::OpenFund(Box::new(OpenFund {
                fund_id: FundId::parse(&format!("zj-ai-25.{city}")).context("a fund's id")?,
                programme: measure_25.id.clone(),
                region_code: RegionCode::parse(&city).map_err(|fault| anyhow!("{fault:?}"))?,
                from: measure_25.in_force.from.value,
                to: measure_25.in_force.to.value,
                budget: BUDGET,
                by: "loadtest".into(),
                request: Key::new(rand::random()),
                fingerprint: Key::new(rand::random()),
            })))?;
        }
        Ok(())
    }

    /// Sales parsed, hashed and judged: all that is done outside the ledger's writer.
    pub fn drafts(&mut self, count: usize) -> Result<Vec<Command>> {
        let now = Instant::now();
        let today = Clock::default().now().day();
        let published = Arc::clone(&self.ledger.published());
        let preparation = Preparation { published: &published, hash_keys: &self.hash_keys };
        (0..count)
            .map(|_| {
                let n = self.numbers.take();
                self.request.write(0, n, &self.clock.text(now));
                let body = json::body(self.request.body(), |reader| ClaimBody::read(reader, today))
                    .map_err(|faults| anyhow!("a sale is not valid: {faults:?}"))?;
                let retailer = usize::try_from(n % RETAILERS)?;
                let retailer = *self.retailers.get(retailer).context("no retailer")?;
                let key =
                    IdempotencyKey::parse(&format!("sale-{n:016}")).map_err(|fault| anyhow!("{fault:?}"))?;
                let by = Submitter { retailer, platform: None };
                let draft = preparation.draft(by, &key, body, rand::random());
                Ok(Command::Make(Box::new(draft)))
            })
            .collect()
    }

    /// Has the ledger make these claims, `batch` at a time, two batches being on their way at any time. Gives the time it took and how many claims each append had.
    pub fn make(&self, drafts: Vec<Command>, batch: usize) -> Result<(Duration, f64)> {
        const ON_THEIR_WAY: usize = 2;
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
