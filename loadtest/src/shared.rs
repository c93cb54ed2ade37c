//! Many processes: what the service does on PostgreSQL and Redis, alone and with others beside it, and
//! without Redis, against what one would write first.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::compare;
use crate::load::Span;
use crate::machine::Machine;
use crate::plain::Funds;
use crate::process::{self, Server, Workplace};
use crate::progress::Progress;
use crate::report::{self, Figures, Table, ms};
use crate::script::Shares;
use crate::subject::{self, Databases, Generator, Round};

const ROUNDS: usize = 3;
/// Processes that share the ledger in one of the measurements.
const PROCESSES: usize = 3;
const SPAN: Span = Span { warm_up: Duration::from_millis(1500), window: Duration::from_secs(8) };

/// What is measured, in this order or turned about, and what it is compared with.
const MEASURED: [(&str, Option<usize>, &str); 6] = [
    ("plain service", None, ""),
    ("plain service, one fund", None, ""),
    ("one process", Some(PLAIN), "÷ plain service"),
    ("replays, one process", Some(ONE), "÷ claims"),
    ("three processes together", Some(ONE), "÷ one process"),
    ("one process, Redis hung", Some(ONE), "÷ with Redis"),
];
/// Where they stand in the list.
const PLAIN: usize = 0;
const PLAIN_ONE_FUND: usize = 1;
const ONE: usize = 2;
const REPLAYS: usize = 3;
const THREE: usize = 4;
const REDIS_HUNG: usize = 5;

/// What a measurement came to over all rounds.
#[derive(Debug, Serialize)]
struct Summary {
    subject: &'static str,
    per_second: Figures,
    /// Of what it is compared with, in the same round.
    ratio: Option<Figures>,
    rounds: Vec<Round>,
}

/// Measures in rounds, the order turned about in every other one.
pub fn run(workplace: &Workplace, generator: Generator, out: &Path) -> Result<()> {
    let binary = process::service_binary()?;
    let machine = Machine::describe(workplace.path())?;
    println!("{}\n", machine.text());
    let databases = Databases::start(workplace)?;
    // Processes that share a machine share its cores.
    let workers = std::thread::available_parallelism()?.get().div_ceil(PROCESSES);
    let mut service = compare::start_shared(workplace, &binary, &databases, workers)?;
    let data = workplace.directory(compare::SHARED)?;
    let plain = compare::start_plain(workplace, &data, &databases, Funds::Cities)?;
    let plain_one_fund = compare::start_plain(workplace, &data, &databases, Funds::One)?;
    let tokens = service.tokens().clone();
    let url = databases.postgres.database_url("subsidy_pos");
    let workers = workers.to_string();
    let settings = [
        ("LEDGER__URL", url.as_str()),
        ("SHIELD__URL", databases.redis.url.as_str()),
        ("SERVER__WORKERS", workers.as_str()),
    ];

    let progress = Progress::new("", (ROUNDS * MEASURED.len()) as u64);
    let mut rounds = [const { Vec::new() }; MEASURED.len()];
    for round in 0..ROUNDS {
        let mut order: Vec<usize> = (0..MEASURED.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for number in order {
            progress.say(MEASURED[number].0);
            let claims = |service: &mut subject::Service| {
                service.claims(generator, SPAN, Shares::default(), &mut || Ok(()))
            };
            let measured = match number {
                PLAIN => subject::plain(&plain, &databases.postgres, &tokens, generator, SPAN)?,
                PLAIN_ONE_FUND => {
                    subject::plain(&plain_one_fund, &databases.postgres, &tokens, generator, SPAN)?
                }
                REPLAYS => service.replays(generator, SPAN)?,
                THREE => {
                    let others: Result<_> = (1..PROCESSES)
                        .map(|other| {
                            let name = format!("shared-{other}");
                            Server::service(&name, &binary, &data, &workplace.logs(), &settings)
                        })
                        .collect();
                    service.join(others?);
                    let measured = claims(&mut service)?;
                    service.rest()?;
                    service.part()?;
                    measured
                }
                REDIS_HUNG => databases.redis.hung(|| claims(&mut service))?,
                _ => claims(&mut service)?,
            };
            rounds[number].push(measured);
            service.rest()?;
            progress.add(1);
        }
    }
    progress.done();
    service.check_money()?;
    service.stop()?;
    plain.stop()?;
    plain_one_fund.stop()?;
    databases.stop()?;

    let rates: Vec<Vec<f64>> =
        rounds.iter().map(|rounds| rounds.iter().map(|round| round.per_second).collect()).collect();
    let mut table = Table::new(&["claims", "per second", "ratio", "", "p50 ms", "p99 ms", "server µs"]);
    let mut summaries = Vec::new();
    for (number, (subject, base, what)) in MEASURED.into_iter().enumerate() {
        let ratio = base
            .map(|base| Figures::of(rates[number].iter().zip(&rates[base]).map(|(rate, base)| rate / base)));
        let of = |value: fn(&Round) -> f64| Figures::of(rounds[number].iter().map(value)).median;
        let per_second = Figures::of(rates[number].iter().copied());
        table.row([
            subject.to_owned(),
            per_second.text(),
            ratio.as_ref().map(|ratio| format!("{:.2}", ratio.median)).unwrap_or_default(),
            what.to_owned(),
            ms(of(|round| round.latency.p50_us as f64) as u64),
            ms(of(|round| round.latency.p99_us as f64) as u64),
            format!("{:.1}", of(|round| round.server_us)),
        ]);
        summaries.push(Summary { subject, per_second, ratio, rounds: rounds[number].clone() });
    }
    let ratio = Figures::of(rates[ONE].iter().zip(&rates[PLAIN_ONE_FUND]).map(|(one, plain)| one / plain));
    println!("\n{table}\none process ÷ plain service, one fund: {:.1}", ratio.median);
    report::write(out, "shared.json", &serde_json::to_string_pretty(&(machine, generator, summaries))?)
}
