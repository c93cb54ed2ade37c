//! What is measured, and how one round of it goes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use subsidy_pos::money::Fen;

use crate::book::BookWatch;
use crate::ceiling::Parse;
use crate::client::{self, Connection};
use crate::load::{self, Measured, Paced, Span, Step, Target};
use crate::process::{self, Postgres, Redis, Server, Tokens, Workplace};
use crate::report::Latency;
use crate::sale::{self, Numbers, Request, TillClock};
use crate::script::{Batches, Claims, Quotes, Replays, Shares, Trust, settle};

/// How the generator runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Generator {
    /// Connections, each with a request under way.
    pub connections: usize,
    /// Threads that serve them.
    pub threads: usize,
}

/// Connections that send batches: their claims together stay below what the ledger queues.
const BATCH_CONNECTIONS: usize = 8;
/// Claims that each connection makes before it replays them.
const REPLAYED: usize = 100;
/// Devices that all connections contest are numbered from here; sales never get so far.
const CONTESTED: u64 = 500_000_000_000;
/// How long the book may take after a round.
const BOOK_PATIENCE: Duration = Duration::from_secs(180);

/// One round of one subject.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Items a second.
    pub per_second: f64,
    /// Requests in the window.
    pub requests: u64,
    /// From request to answer, closed loop.
    pub latency: Latency,
    /// Requests answered with "too much to do".
    pub overloaded: u64,
    /// Time on the processors for one item: the generator's.
    pub generator_us: f64,
    /// And that of the server and its databases.
    pub server_us: f64,
}

impl Round {
    fn of<S>(measured: &Measured<S>) -> Self {
        let us = |time: Duration| time.as_secs_f64() * 1e6 / measured.items.max(1) as f64;
        Self {
            per_second: measured.rate(),
            requests: measured.requests,
            latency: Latency::of(&measured.latency),
            overloaded: measured.overloaded,
            generator_us: measured.cpu.first().copied().map(us).unwrap_or_default(),
            server_us: us(measured.cpu.iter().skip(1).sum()),
        }
    }
}

/// A service under test, with what it must have paid by now.
pub struct Service {
    /// Its process.
    pub server: Server,
    /// Further processes that share its ledger.
    others: Vec<Server>,
    tokens: Tokens,
    /// Its databases, whose time on the processors counts as the service's, with that of their children.
    beside: Vec<u32>,
    granted_fen: u64,
}

impl Service {
    /// Starts the service on a data directory with these settings.
    pub fn start(
        name: &str,
        binary: &Path,
        data: &Path,
        workplace: &Workplace,
        settings: &[(&str, &str)],
        beside: Vec<u32>,
    ) -> Result<Self> {
        let server = Server::service(name, binary, data, &workplace.logs(), settings)?;
        let mut service =
            Self { server, others: Vec::new(), tokens: Tokens::make(data)?, beside, granted_fen: 0 };
        // What was paid before is none of this run's concern.
        service.granted_fen = service.redeemed_fen()?;
        Ok(service)
    }

    /// Its tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Where load goes.
    fn target(&self, generator: Generator) -> Target {
        let servers = || std::iter::once(&self.server).chain(&self.others);
        let beside = self.beside.iter().copied().flat_map(process::with_children);
        let processes = servers().map(Server::id).chain(beside).collect();
        let addresses = servers().map(|server| server.address).collect();
        Target { addresses, processes, threads: generator.threads }
    }

    /// From now on the load goes to these processes too.
    pub fn join(&mut self, others: Vec<Server>) {
        self.others = others;
    }

    /// Ends those that joined.
    pub fn part(&mut self) -> Result<()> {
        self.others.drain(..).try_for_each(Server::stop)
    }

    fn scripts<S>(&self, count: usize, script: impl Fn(&str) -> S) -> Vec<S> {
        self.tokens.retailers.iter().cycle().take(count).map(|token| script(token)).collect()
    }

    /// Claims in a closed loop. `watch` is called a few times a second.
    pub fn claims(
        &mut self,
        generator: Generator,
        span: Span,
        shares: Shares,
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Round> {
        let contested = contested();
        let scripts =
            self.scripts(generator.connections, |token| Claims::new(token, Trust::Check, shares, contested));
        let mut watched = Ok(());
        let measured = load::closed(&self.target(generator), span, scripts, &mut |_| {
            if watched.is_ok() {
                watched = watch();
            }
        })?;
        watched?;
        self.granted_fen += settle(&measured.scripts)?.subsidy_fen;
        Ok(Round::of(&measured))
    }

    /// Replays in a closed loop.
    pub fn replays(&mut self, generator: Generator, span: Span) -> Result<Round> {
        let scripts = self.scripts(generator.connections, |token| Replays::new(token, REPLAYED));
        let measured = load::closed(&self.target(generator), span, scripts, &mut |_| {})?;
        self.granted_fen += measured.scripts.iter().map(Replays::granted_fen).sum::<u64>();
        Ok(Round::of(&measured))
    }

    /// Batches in a closed loop.
    pub fn batches(&mut self, generator: Generator, span: Span) -> Result<Round> {
        let connections = BATCH_CONNECTIONS.min(generator.connections);
        let scripts = self.scripts(connections, Batches::new);
        let measured = load::closed(&self.target(generator), span, scripts, &mut |_| {})?;
        self.granted_fen += measured.scripts.iter().map(Batches::granted_fen).sum::<u64>();
        Ok(Round::of(&measured))
    }

    /// Quotes in a closed loop.
    pub fn quotes(&mut self, generator: Generator, span: Span) -> Result<Round> {
        let scripts = self.scripts(generator.connections, Quotes::new);
        Ok(Round::of(&load::closed(&self.target(generator), span, scripts, &mut |_| {})?))
    }

    /// Claims at planned times.
    pub fn paced(&mut self, generator: Generator, steps: &[Step]) -> Result<Paced<Claims>> {
        let contested = contested();
        let trust = Trust::Check;
        let scripts = self
            .scripts(generator.connections, |token| Claims::new(token, trust, Shares::default(), contested));
        let paced = load::open(&self.target(generator), steps, scripts, &mut |_| {})?;
        self.granted_fen += settle(&paced.scripts)?.subsidy_fen;
        Ok(paced)
    }

    /// Lets the book catch up, so that it does not disturb what is measured next.
    pub fn rest(&self) -> Result<Duration> {
        match self.server.operations {
            Some(operations) => BookWatch::new(operations).wait(BOOK_PATIENCE),
            None => Ok(Duration::ZERO),
        }
    }

    /// The money in the funds must be what the answers said.
    pub fn check_money(&self) -> Result<()> {
        let redeemed = self.redeemed_fen()?;
        ensure!(
            redeemed == self.granted_fen,
            "the funds have paid {redeemed} fen, but the answers say {} fen",
            self.granted_fen
        );
        Ok(())
    }

    fn redeemed_fen(&self) -> Result<u64> {
        let (status, text) =
            client::get_blocking(self.server.address, "/v1/funds?limit=200", Some(&self.tokens.regulator))?;
        ensure!(status == 200, "/v1/funds answers {status}: {text}");
        let funds: Value = serde_json::from_str(&text)?;
        let items =
            funds.pointer("/items").and_then(Value::as_array).context("a list of funds without items")?;
        ensure!(
            funds.pointer("/next_cursor").is_none_or(Value::is_null),
            "there are more funds than fit on a page"
        );
        let mut sum = 0;
        for fund in items {
            let redeemed = fund.pointer("/redeemed").and_then(Value::as_str).and_then(Fen::parse_budget_yuan);
            sum += u64::try_from(redeemed.context("a fund without what it redeemed")?.get())?;
        }
        Ok(sum)
    }

    /// The bytes of a claim's answer, head and body; the claim is made.
    pub fn answer_bytes(&mut self) -> Result<usize> {
        let token = self.tokens.retailers.first().context("no retailer")?;
        let mut numbers = Numbers::default();
        let n = numbers.take();
        let mut request = Request::claim(token);
        request.write(0, n, &TillClock::default().text(std::time::Instant::now()));
        let address = self.server.address;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let bytes = runtime.block_on(async {
            let mut connection = Connection::open(address).await?;
            let answer = connection.exchange(request.bytes()).await?;
            ensure!(answer.status == 201, "the first claim was answered\n{}", answer.text());
            Ok(answer.head.len() + answer.body.len())
        })?;
        self.granted_fen += sale::subsidy_fen(n);
        Ok(bytes)
    }

    /// Ends it in an orderly way.
    pub fn stop(mut self) -> Result<()> {
        self.part()?;
        self.server.stop()
    }
}

/// Numbers of contested devices for one run.
fn contested() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static RUNS: AtomicU64 = AtomicU64::new(0);
    CONTESTED + RUNS.fetch_add(1, Ordering::Relaxed) * 100_000_000
}

/// A server that decides nothing: its answers are counted, not checked.
pub fn ceiling(server: &Server, tokens: &Tokens, generator: Generator, span: Span) -> Result<Round> {
    unchecked(server.address, vec![server.id()], tokens, generator, span, Trust::StatusOnly)
}

/// The ceiling at planned times: what machine and generator add to latencies by themselves.
pub fn ceiling_paced(
    server: &Server,
    tokens: &Tokens,
    generator: Generator,
    steps: &[Step],
) -> Result<Paced<Claims>> {
    let target =
        Target { addresses: vec![server.address], processes: vec![server.id()], threads: generator.threads };
    load::open(&target, steps, unchecked_scripts(tokens, generator, Trust::StatusOnly), &mut |_| {})
}

/// The plain service on its database: amounts are checked, the rest of its answers is its own.
pub fn plain(
    server: &Server,
    postgres: &Postgres,
    tokens: &Tokens,
    generator: Generator,
    span: Span,
) -> Result<Round> {
    let mut processes = vec![server.id()];
    processes.extend(process::with_children(postgres.id()));
    unchecked(server.address, processes, tokens, generator, span, Trust::Amount)
}

fn unchecked(
    address: SocketAddr,
    processes: Vec<u32>,
    tokens: &Tokens,
    generator: Generator,
    span: Span,
    trust: Trust,
) -> Result<Round> {
    let scripts = unchecked_scripts(tokens, generator, trust);
    let target = Target { addresses: vec![address], processes, threads: generator.threads };
    let measured = load::closed(&target, span, scripts, &mut |_| {})?;
    settle(&measured.scripts)?;
    Ok(Round::of(&measured))
}

fn unchecked_scripts(tokens: &Tokens, generator: Generator, trust: Trust) -> Vec<Claims> {
    let tokens = tokens.retailers.iter().cycle().take(generator.connections);
    tokens.map(|token| Claims::new(token, trust, Shares::default(), 0)).collect()
}

/// Starts a ceiling whose tokens are those of a data directory.
pub fn start_ceiling(
    workplace: &Workplace,
    data: &Path,
    answer_bytes: usize,
    parse: Parse,
) -> Result<Server> {
    let (name, how) = match parse {
        Parse::Service => ("ceiling", "service"),
        Parse::Serde => ("ceiling-serde", "serde"),
    };
    let arguments = [
        ("--keys", data.display().to_string()),
        ("--answer-bytes", answer_bytes.to_string()),
        ("--parse", how.to_owned()),
    ];
    Server::own(name, &workplace.logs(), &arguments)
}

/// The databases of a run.
pub struct Databases {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
}

impl Databases {
    /// Starts both.
    pub fn start(workplace: &Workplace) -> Result<Self> {
        let logs = workplace.logs();
        let postgres = Postgres::start(&workplace.directory("postgres")?, &logs)?;
        Ok(Self { postgres, redis: Redis::start(&logs)? })
    }

    /// Ends both.
    pub fn stop(self) -> Result<()> {
        self.redis.stop()?;
        self.postgres.stop()
    }
}
