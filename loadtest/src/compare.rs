//! The comparison: everything on the same machine, with the same generator, in turn.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::book::BookWatch;
use crate::ceiling::Parse;
use crate::chart;
use crate::load::{Paced, Span, Step};
use crate::machine::Machine;
use crate::plain::Funds;
use crate::process::{self, Server, Tokens, Workplace};
use crate::progress::Progress;
use crate::report::{self, Figures, Latency, Table, ms};
use crate::script::{Claims, Shares};
use crate::subject::{self, Databases, Generator, Round, Service};

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Rounds; the order is turned about in every other one.
    rounds: usize,
    /// Each subject in each round.
    span: Span,
    /// Claims with the book in view.
    sustained: Duration,
    /// The open loops: on the embedded journal, and on PostgreSQL.
    paced: Duration,
    paced_shared: Duration,
}

impl Lengths {
    /// What figures are worth.
    pub const FULL: Self = Self {
        rounds: 3,
        span: Span { warm_up: Duration::from_millis(1500), window: Duration::from_secs(10) },
        sustained: Duration::from_secs(60),
        paced: Duration::from_secs(60),
        paced_shared: Duration::from_secs(20),
    };
    /// To see that everything works.
    pub const BRIEF: Self = Self {
        rounds: 1,
        span: Span { warm_up: Duration::from_millis(500), window: Duration::from_secs(2) },
        sustained: Duration::from_secs(5),
        paced: Duration::from_secs(5),
        paced_shared: Duration::from_secs(5),
    };
}

/// The spike: so many times the ordinary load, for so long, with so much before and after it.
const SPIKE: u64 = 20;
const SPIKE_LENGTH: Duration = Duration::from_secs(5);
const AROUND_SPIKE: Duration = Duration::from_secs(5);
/// Connections during the spike, as when many tills come at once.
const SPIKE_CONNECTIONS: usize = 512;
/// Connections of the plain service to its database.
const PLAIN_CONNECTIONS: usize = 32;
/// What the service on files is called, and that on PostgreSQL and Redis.
const EMBEDDED: &str = "embedded";
pub const SHARED: &str = "shared";

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Subject {
    Ceiling,
    CeilingSerde,
    Embedded,
    Shared,
    Plain,
    Replays,
    Batches,
    Quotes,
}

impl Subject {
    const ALL: [Self; 8] = [
        Self::Ceiling,
        Self::CeilingSerde,
        Self::Embedded,
        Self::Shared,
        Self::Plain,
        Self::Replays,
        Self::Batches,
        Self::Quotes,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling: parses as the service does",
            Self::CeilingSerde => "ceiling: parses with serde alone",
            Self::Embedded => "claims, embedded",
            Self::Shared => "claims, PostgreSQL + Redis",
            Self::Plain => "claims, plain service on PostgreSQL",
            Self::Replays => "replays, embedded",
            Self::Batches => "claims in batches of 500, embedded",
            Self::Quotes => "quotes, embedded",
        }
    }
}

/// All that runs during a comparison.
struct Field {
    generator: Generator,
    lengths: Lengths,
    tokens: Tokens,
    ceiling: Server,
    ceiling_serde: Server,
    embedded: Service,
    databases: Option<Databases>,
    shared: Option<Service>,
    plain: Option<Server>,
}

impl Field {
    fn set_up(
        workplace: &Workplace,
        binary: &Path,
        generator: Generator,
        lengths: Lengths,
        missing: &mut Vec<String>,
    ) -> Result<Self> {
        let data = workplace.directory(EMBEDDED)?;
        let mut embedded = Service::start(EMBEDDED, binary, &data, workplace, &[], Vec::new())?;
        let answer_bytes = embedded.answer_bytes()?;
        let ceiling = subject::start_ceiling(workplace, &data, answer_bytes, Parse::Service)?;
        let ceiling_serde = subject::start_ceiling(workplace, &data, answer_bytes, Parse::Serde)?;
        let tokens = embedded.tokens().clone();
        let mut left_out = |what: &str, error: anyhow::Error| missing.push(format!("{what}: {error:#}"));
        let databases =
            Databases::start(workplace).map_err(|error| left_out("PostgreSQL and Redis", error)).ok();
        let (mut shared, mut plain) = (None, None);
        if let Some(databases) = &databases {
            shared = start_shared(workplace, binary, databases, 0)
                .map_err(|error| left_out("the service on PostgreSQL and Redis", error))
                .ok();
            plain = start_plain(workplace, &data, databases, Funds::Cities)
                .map_err(|error| left_out("the plain service", error))
                .ok();
        }
        Ok(Self { generator, lengths, tokens, ceiling, ceiling_serde, embedded, databases, shared, plain })
    }

    /// One round of one subject, if it is there.
    fn round(&mut self, subject: Subject) -> Result<Option<Round>> {
        let (generator, span) = (self.generator, self.lengths.span);
        let round = match subject {
            Subject::Ceiling => subject::ceiling(&self.ceiling, &self.tokens, generator, span)?,
            Subject::CeilingSerde => subject::ceiling(&self.ceiling_serde, &self.tokens, generator, span)?,
            Subject::Embedded => self.embedded.claims(generator, span, Shares::default(), &mut || Ok(()))?,
            Subject::Replays => self.embedded.replays(generator, span)?,
            Subject::Batches => self.embedded.batches(generator, span)?,
            Subject::Quotes => self.embedded.quotes(generator, span)?,
            Subject::Shared => match &mut self.shared {
                Some(service) => service.claims(generator, span, Shares::default(), &mut || Ok(()))?,
                None => return Ok(None),
            },
            Subject::Plain => match (&self.plain, &self.databases) {
                (Some(server), Some(databases)) => {
                    subject::plain(server, &databases.postgres, &self.tokens, generator, span)?
                }
                _ => return Ok(None),
            },
        };
        // The books catch up now, not while the next subject is measured.
        self.embedded.rest()?;
        if let Some(shared) = &self.shared {
            shared.rest()?;
        }
        Ok(Some(round))
    }

    /// Ends the databases and what runs on them, after a look at the money paid there.
    fn stop_databases(&mut self) -> Result<()> {
        if let Some(shared) = self.shared.take() {
            shared.check_money()?;
            shared.stop()?;
        }
        self.plain.take().map_or(Ok(()), Server::stop)?;
        self.databases.take().map_or(Ok(()), Databases::stop)
    }

    fn stop(mut self) -> Result<()> {
        self.stop_databases()?;
        self.embedded.stop()?;
        self.ceiling.stop()?;
        self.ceiling_serde.stop()
    }
}

/// Starts the service on PostgreSQL and Redis, with so many HTTP workers; 0 is one for each core.
pub fn start_shared(
    workplace: &Workplace,
    binary: &Path,
    databases: &Databases,
    workers: usize,
) -> Result<Service> {
    let url = databases.postgres.database("subsidy_pos")?;
    let workers = workers.to_string();
    let settings = [
        ("LEDGER__URL", url.as_str()),
        ("SHIELD__URL", databases.redis.url.as_str()),
        ("SERVER__WORKERS", workers.as_str()),
    ];
    let beside = vec![databases.postgres.id(), databases.redis.id()];
    Service::start(SHARED, binary, &workplace.directory(SHARED)?, workplace, &settings, beside)
}

/// Starts what one would write first, on the same PostgreSQL, with so many funds.
pub fn start_plain(
    workplace: &Workplace,
    keys: &Path,
    databases: &Databases,
    funds: Funds,
) -> Result<Server> {
    let (name, database) = match funds {
        Funds::Cities => ("plain", "plain"),
        Funds::One => ("plain-one-fund", "plain_one_fund"),
    };
    let arguments = [
        ("--keys", keys.display().to_string()),
        ("--database", databases.postgres.database(database)?),
        ("--connections", PLAIN_CONNECTIONS.to_string()),
        ("--funds", funds.name().to_owned()),
    ];
    Server::own(name, &workplace.logs(), &arguments)
}

/// What a subject came to over all rounds.
#[derive(Debug, Serialize)]
struct Summary {
    subject: &'static str,
    per_second: Figures,
    /// Of the ceiling in the same round.
    ratio: Figures,
    rounds: Vec<Round>,
}

/// What the open loop came to.
#[derive(Debug, Serialize)]
struct PacedSummary {
    subject: &'static str,
    /// Requests planned a second.
    rate: u64,
    seconds: u64,
    /// Requests sent, and claims made by them.
    requests: u64,
    claims: u64,
    latency: Latency,
    overloaded: u64,
}

/// What the spike came to.
#[derive(Debug, Serialize)]
struct SpikeSummary {
    ordinary_rate: u64,
    spike_rate: u64,
    /// 99% in each second, from the first on.
    p99_us_by_second: Vec<u64>,
    /// Seconds after the spike until 99% came as quickly as in the slowest second before it.
    back_after_s: Option<usize>,
    overloaded: u64,
}

/// What the long run with the book in view came to.
#[derive(Debug, Serialize)]
struct Sustained {
    seconds: u64,
    per_second: f64,
    ratio: f64,
    book_worst_lag_ms: u64,
    book_worst_lag_entries: u64,
}

/// Everything, for programs to read.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    generator: Generator,
    subjects: Vec<Summary>,
    /// PostgreSQL + Redis, in times of the plain service.
    shared_to_plain: Option<f64>,
    sustained: Sustained,
    paced: Vec<PacedSummary>,
    spike: SpikeSummary,
    left_out: Vec<String>,
}

/// Makes the comparison and writes its results.
pub fn run(workplace: &Workplace, generator: Generator, out: &Path, lengths: Lengths) -> Result<()> {
    let binary = process::service_binary()?;
    let machine = Machine::describe(workplace.path())?;
    println!("{}\n", machine.text());
    let mut left_out = Vec::new();
    let mut field = Field::set_up(workplace, &binary, generator, lengths, &mut left_out)?;

    let subjects = rounds(&mut field)?;
    let median = |subject: Subject| {
        let found = subjects.iter().find(|summary| summary.subject == subject.name());
        found.map(|summary| summary.per_second.median)
    };
    let ceiling = median(Subject::Ceiling).context("the ceiling was not measured")?;
    let embedded = median(Subject::Embedded).context("the service was not measured")?;
    let shared = median(Subject::Shared);

    let mut paced = Vec::new();
    let mut lines = Vec::new();
    let mut note = |subject: Subject, rate, length: Duration, run: Paced<Claims>| {
        paced.push(PacedSummary {
            subject: subject.name(),
            rate,
            seconds: length.as_secs(),
            requests: run.requests,
            claims: run.items,
            latency: Latency::of(&run.latency),
            overloaded: run.overloaded,
        });
        lines.push((format!("{}, {rate}/s", subject.name()), run.latency));
    };
    if let (Some(service), Some(peak)) = (&mut field.shared, shared) {
        let progress = Progress::new("open loop, PostgreSQL + Redis", 1);
        let (rate, length) = ((peak / 2.0) as u64, lengths.paced_shared);
        let run = service.paced(generator, &[Step { rate, length }])?;
        service.rest()?;
        note(Subject::Shared, rate, length, run);
        progress.done();
    }
    // What is left is measured as it runs where it is in use: with no databases beside it.
    field.stop_databases()?;
    let sustained = sustained(&mut field, ceiling)?;
    let progress = Progress::new("open loops", 2);
    let (rate, length) = ((embedded / 2.0) as u64, lengths.paced);
    let run = field.embedded.paced(generator, &[Step { rate, length }])?;
    field.embedded.rest()?;
    note(Subject::Embedded, rate, length, run);
    progress.add(1);
    // At the same rate: what machine and generator add by themselves.
    let length = lengths.paced_shared;
    let run = subject::ceiling_paced(&field.ceiling, &field.tokens, generator, &[Step { rate, length }])?;
    note(Subject::Ceiling, rate, length, run);
    progress.done();
    let spike = spike(&mut field.embedded, generator, embedded as u64)?;
    field.embedded.check_money()?;
    field.stop()?;

    let shared_to_plain = shared.zip(median(Subject::Plain)).map(|(shared, plain)| shared / plain);
    let report = Report { machine, generator, subjects, shared_to_plain, sustained, paced, spike, left_out };
    let text = text(&report);
    println!("{text}");
    report::write(out, "comparison.txt", &format!("{}\n\n{text}", report.machine.text()))?;
    report::write(out, "comparison.json", &serde_json::to_string_pretty(&report)?)?;
    let lines: Vec<(String, &Histogram<u64>)> =
        lines.iter().map(|(name, line)| (name.clone(), line)).collect();
    report::write(
        out,
        "latency.svg",
        &chart::latency("Claims at half of the service's own peak, open loop", &lines),
    )
}

fn rounds(field: &mut Field) -> Result<Vec<Summary>> {
    let count = field.lengths.rounds;
    let mut rounds: Vec<(Subject, Vec<Round>)> = Subject::ALL.map(|subject| (subject, Vec::new())).into();
    let progress = Progress::new("", (count * rounds.len()) as u64);
    for number in 0..count {
        let order: Vec<usize> =
            if number % 2 == 0 { (0..rounds.len()).collect() } else { (0..rounds.len()).rev().collect() };
        for place in order {
            let Some((subject, measured)) = rounds.get_mut(place) else { continue };
            progress.say(subject.name());
            measured.extend(field.round(*subject).with_context(|| subject.name())?);
            progress.add(1);
        }
    }
    progress.done();
    let ceiling: Vec<f64> = rounds
        .first()
        .map(|(_, rounds)| rounds.iter().map(|round| round.per_second).collect())
        .ok_or_else(|| anyhow!("no ceiling"))?;
    let summaries =
        rounds.into_iter().filter(|(_, rounds)| !rounds.is_empty()).map(|(subject, rounds)| Summary {
            subject: subject.name(),
            per_second: Figures::of(rounds.iter().map(|round| round.per_second)),
            ratio: Figures::of(
                rounds.iter().zip(&ceiling).map(|(round, ceiling)| round.per_second / ceiling),
            ),
            rounds,
        });
    Ok(summaries.collect())
}

fn sustained(field: &mut Field, ceiling: f64) -> Result<Sustained> {
    let operations = field.embedded.server.operations.context("the service has no operations listener")?;
    let length = field.lengths.sustained;
    let mut watch = BookWatch::new(operations);
    let progress = Progress::new("claims with the book in view", length.as_secs() * 4);
    let span = Span { window: length, ..field.lengths.span };
    let round = field.embedded.claims(field.generator, span, Shares::default(), &mut || {
        progress.add(1);
        watch.look()
    })?;
    progress.done();
    field.embedded.rest()?;
    Ok(Sustained {
        seconds: length.as_secs(),
        per_second: round.per_second,
        ratio: round.per_second / ceiling,
        book_worst_lag_ms: u64::try_from(watch.worst.as_millis())?,
        book_worst_lag_entries: watch.worst_entries,
    })
}

fn spike(service: &mut Service, generator: Generator, peak: u64) -> Result<SpikeSummary> {
    let ordinary = peak / SPIKE;
    let around = Step { rate: ordinary, length: AROUND_SPIKE };
    let steps = [around, Step { rate: ordinary * SPIKE, length: SPIKE_LENGTH }, around];
    let progress = Progress::new("a spike", 1);
    let generator = Generator { connections: SPIKE_CONNECTIONS, ..generator };
    let paced = service.paced(generator, &steps)?;
    progress.done();
    service.rest()?;
    let p99: Vec<u64> = paced.seconds.iter().map(|second| Latency::of(second).p99_us).collect();
    let (before, during) = (AROUND_SPIKE.as_secs() as usize, SPIKE_LENGTH.as_secs() as usize);
    // The first second holds what connecting costs.
    let ordinary_p99 = p99.iter().take(before).skip(1).max().copied().unwrap_or_default();
    let back_after_s = p99.iter().skip(before + during).position(|p99| *p99 <= ordinary_p99.max(1000));
    Ok(SpikeSummary {
        ordinary_rate: ordinary,
        spike_rate: ordinary * SPIKE,
        p99_us_by_second: p99,
        back_after_s,
        overloaded: paced.overloaded,
    })
}

fn by_second(p99_us: &[u64]) -> String {
    p99_us.iter().map(|us| ms(*us)).collect::<Vec<_>>().join(" ")
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&[
        "subject",
        "per second",
        "÷ ceiling",
        "p50 ms",
        "p99 ms",
        "server µs each",
        "generator µs each",
    ]);
    for summary in &report.subjects {
        let of = |value: fn(&Round) -> f64| Figures::of(summary.rounds.iter().map(value)).median;
        table.row([
            summary.subject.to_owned(),
            summary.per_second.text(),
            format!("{:.2}", summary.ratio.median),
            ms(of(|round| round.latency.p50_us as f64) as u64),
            ms(of(|round| round.latency.p99_us as f64) as u64),
            format!("{:.1}", of(|round| round.server_us)),
            format!("{:.1}", of(|round| round.generator_us)),
        ]);
    }
    let mut open = Table::new(&[
        "open loop at half of own peak (the ceiling at that of the embedded)",
        "per second",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "worst ms",
    ]);
    for paced in &report.paced {
        open.row([
            paced.subject.to_owned(),
            report::thousands(paced.rate),
            ms(paced.latency.p50_us),
            ms(paced.latency.p99_us),
            ms(paced.latency.p999_us),
            ms(paced.latency.worst_us),
        ]);
    }
    let mut text = format!("{table}\n{open}\n");
    let sustained = &report.sustained;
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} s of claims with the book in view: {} /s, {:.2} of the ceiling; the book was {} ms ({} entries) behind at worst",
        sustained.seconds,
        report::thousands(sustained.per_second as u64),
        sustained.ratio,
        sustained.book_worst_lag_ms,
        report::thousands(sustained.book_worst_lag_entries),
    );
    if let Some(ratio) = report.shared_to_plain {
        let _ = writeln!(text, "PostgreSQL + Redis is {ratio:.1} times the plain service");
    }
    let spike = &report.spike;
    let back = match spike.back_after_s {
        Some(seconds) => format!("in second {} after it the p99 was the ordinary one again", seconds + 1),
        None => "the p99 did not come back in the time watched".to_owned(),
    };
    let _ = writeln!(
        text,
        "spike from {} /s to {} /s: {back}; {} answered \"overloaded\"; p99 by second, ms: {}",
        report::thousands(spike.ordinary_rate),
        report::thousands(spike.spike_rate),
        report::thousands(spike.overloaded),
        by_second(&spike.p99_us_by_second),
    );
    for left_out in &report.left_out {
        let _ = writeln!(text, "left out: {left_out}");
    }
    text
}

/// What a quick look came to.
#[derive(Debug, Serialize)]
struct Quick {
    machine: Machine,
    generator: Generator,
    ceiling: [Round; 2],
    claims: Round,
    seconds: u64,
    ratio: f64,
    book_worst_lag_ms: u64,
    book_worst_lag_entries: u64,
}

/// The service as it is looked at alone: on PostgreSQL and Redis if `is_shared`, and the directory whose
/// development key signs its tokens.
fn start_alone(workplace: &Workplace, is_shared: bool) -> Result<(Service, PathBuf, Option<Databases>)> {
    let binary = process::service_binary()?;
    if is_shared {
        let databases = Databases::start(workplace)?;
        let service = start_shared(workplace, &binary, &databases, 0)?;
        return Ok((service, workplace.directory(SHARED)?, Some(databases)));
    }
    let data = workplace.directory(EMBEDDED)?;
    let service = Service::start(EMBEDDED, &binary, &data, workplace, &[], Vec::new())?;
    Ok((service, data, None))
}

/// Claims beside the ceiling, with the book in view. On PostgreSQL and Redis if `is_shared`.
pub fn quick(
    workplace: &Workplace,
    generator: Generator,
    out: &Path,
    seconds: u64,
    is_shared: bool,
) -> Result<()> {
    let machine = Machine::describe(workplace.path())?;
    println!("{}\n", machine.text());
    let (mut service, data, databases) = start_alone(workplace, is_shared)?;
    let answer_bytes = service.answer_bytes()?;
    let server = subject::start_ceiling(workplace, &data, answer_bytes, Parse::Service)?;
    let tokens = service.tokens().clone();
    let operations = service.server.operations.context("the service has no operations listener")?;

    let progress = Progress::new("the ceiling", seconds * 4);
    let before = subject::ceiling(&server, &tokens, generator, Lengths::FULL.span)?;
    let subject = if is_shared { Subject::Shared } else { Subject::Embedded };
    progress.say(subject.name());
    let mut watch = BookWatch::new(operations);
    let span = Span { window: Duration::from_secs(seconds), ..Lengths::FULL.span };
    let claims = service.claims(generator, span, Shares::default(), &mut || {
        progress.add(1);
        watch.look()
    })?;
    let caught_up = service.rest()?;
    progress.say("the ceiling again");
    let after = subject::ceiling(&server, &tokens, generator, Lengths::FULL.span)?;
    progress.done();
    service.check_money()?;
    service.stop()?;
    server.stop()?;
    databases.map_or(Ok(()), Databases::stop)?;

    let ceiling = (before.per_second + after.per_second) / 2.0;
    let ratio = claims.per_second / ceiling;
    let mut table =
        Table::new(&["subject", "per second", "÷ ceiling", "p50 ms", "p99 ms", "server µs", "generator µs"]);
    for (name, round) in [("ceiling, before", before), (subject.name(), claims), ("ceiling, after", after)] {
        table.row([
            name.to_owned(),
            report::thousands(round.per_second as u64),
            format!("{:.2}", round.per_second / ceiling),
            ms(round.latency.p50_us),
            ms(round.latency.p99_us),
            format!("{:.1}", round.server_us),
            format!("{:.1}", round.generator_us),
        ]);
    }
    println!("{table}");
    println!(
        "ratio {ratio:.2}; over {seconds} s the book was {} ms ({} entries) behind at worst, and had caught up {} ms after the end",
        watch.worst.as_millis(),
        report::thousands(watch.worst_entries),
        caught_up.as_millis(),
    );
    let quick = Quick {
        machine,
        generator,
        ceiling: [before, after],
        claims,
        seconds,
        ratio,
        book_worst_lag_ms: u64::try_from(watch.worst.as_millis())?,
        book_worst_lag_entries: watch.worst_entries,
    };
    report::write(out, "quick.json", &serde_json::to_string_pretty(&quick)?)
}

/// The open loop alone, at a rate that is given: where to look for what makes answers late. On PostgreSQL and
/// Redis if `is_shared`.
pub fn late(
    workplace: &Workplace,
    generator: Generator,
    rate: u64,
    seconds: u64,
    is_shared: bool,
) -> Result<()> {
    println!("{}\n", Machine::describe(workplace.path())?.text());
    let (mut service, _, databases) = start_alone(workplace, is_shared)?;
    let run = service.paced(generator, &[Step { rate, length: Duration::from_secs(seconds) }])?;
    service.rest()?;
    service.check_money()?;
    service.stop()?;
    let Latency { p50_us, p99_us, p999_us, worst_us } = Latency::of(&run.latency);
    println!(
        "{} claims/s: p50 {} ms, p99 {} ms, p99.9 {} ms, worst {} ms",
        report::thousands(rate),
        ms(p50_us),
        ms(p99_us),
        ms(p999_us),
        ms(worst_us)
    );
    let p99: Vec<u64> = run.seconds.iter().map(|second| Latency::of(second).p99_us).collect();
    println!("p99 by second, ms: {}", by_second(&p99));
    databases.map_or(Ok(()), Databases::stop)
}

/// Honest and dishonest tills together: the figures matter less than that every answer was right.
pub fn mixed(workplace: &Workplace, generator: Generator, seconds: u64, shares: Shares) -> Result<()> {
    let binary = process::service_binary()?;
    let data = workplace.directory("embedded")?;
    let mut service = Service::start("embedded", &binary, &data, workplace, &[], Vec::new())?;
    let progress = Progress::new("mixed traffic", seconds * 4);
    let span = Span { window: Duration::from_secs(seconds), ..Lengths::FULL.span };
    let round = service.claims(generator, span, shares, &mut || {
        progress.add(1);
        Ok(())
    })?;
    progress.done();
    service.check_money()?;
    service.stop()?;
    println!(
        "{} requests/s, of a thousand {} duplicates and {} hostile: every answer was right, no device was paid twice, \
         and the funds paid what the answers say; p99 {} ms",
        report::thousands(round.per_second as u64),
        shares.duplicates,
        shares.hostile,
        ms(round.latency.p99_us),
    );
    Ok(())
}
