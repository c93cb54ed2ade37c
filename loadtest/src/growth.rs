//! How the service fares when millions of claims are stored.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::client;
use crate::ledger::{self, Opened, Taken};
use crate::load::Span;
use crate::machine::Machine;
use crate::process::{self, Workplace};
use crate::progress::Progress;
use crate::report::{self, Figures, Table, thousands};
use crate::script::Shares;
use crate::subject::{Generator, Round, Service};

const ROUNDS: usize = 3;
const SPAN: Span = Span { warm_up: Duration::from_millis(1500), window: Duration::from_secs(10) };

/// What so many stored claims came to.
#[derive(Debug, Serialize)]
struct Grown {
    claims: u64,
    /// Opening the journal by folding it, in a process of its own.
    folded: Opened,
    /// The snapshot taken then.
    snapshot: Taken,
    /// Opening the journal from it.
    from_snapshot: Opened,
    memory_bytes_per_claim: u64,
    /// What the running service held when its book was complete.
    resident_bytes: u64,
    /// From start to ready, over HTTP, from the snapshot.
    ready_after_s: f64,
    /// Until the book had them all, from ready on.
    book_after_s: f64,
    /// Until the whole journal was checked beside all that, from ready on.
    checked_after_s: f64,
    journal_bytes_per_claim: u64,
    book_bytes_per_claim: u64,
    /// Claims a second with so many stored, and with none, in turn.
    grown: Vec<Round>,
    empty: Vec<Round>,
    ratio: Figures,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    generator: Generator,
    sizes: Vec<Grown>,
}

/// Fills a journal to each of these sizes in turn and measures.
pub fn run(workplace: &Workplace, generator: Generator, out: &Path, sizes: &[u64]) -> Result<()> {
    let binary = process::service_binary()?;
    let machine = Machine::describe(workplace.path())?;
    println!("{}\n", machine.text());
    let data = workplace.directory("grown")?;
    let mut report = Report { machine, generator, sizes: Vec::new() };
    let mut stored = 0;
    for claims in sizes {
        ledger::fill(&data, claims.saturating_sub(stored))?;
        let (grown, more) = measure(workplace, generator, &binary, &data, *claims)?;
        stored = claims + more;
        report.sizes.push(grown);
    }
    let mut table = Table::new(&[
        "claims stored",
        "folded in s",
        "entries/s",
        "from snapshot in s",
        "snapshot B/claim",
        "memory B/claim",
        "ready after s",
        "book after s",
        "checked after s",
        "journal B/claim",
        "book B/claim",
        "÷ empty",
    ]);
    for grown in &report.sizes {
        table.row([
            thousands(grown.claims),
            format!("{:.1}", grown.folded.seconds),
            thousands(grown.folded.rate() as u64),
            format!("{:.2}", grown.from_snapshot.seconds),
            (grown.snapshot.bytes / grown.claims.max(1)).to_string(),
            grown.memory_bytes_per_claim.to_string(),
            format!("{:.1}", grown.ready_after_s),
            format!("{:.1}", grown.book_after_s),
            format!("{:.0}", grown.checked_after_s),
            grown.journal_bytes_per_claim.to_string(),
            grown.book_bytes_per_claim.to_string(),
            format!("{:.2}", grown.ratio.median),
        ]);
    }
    println!("\n{table}");
    report::write(out, "growth.json", &serde_json::to_string_pretty(&report)?)
}

/// Measures a data directory with so many claims. Gives the number of claims that measuring added, too.
fn measure(
    workplace: &Workplace,
    generator: Generator,
    binary: &Path,
    data: &Path,
    claims: u64,
) -> Result<(Grown, u64)> {
    let folded = ledger::open(data, false)?;
    let snapshot = ledger::take_snapshot(data)?;
    let from_snapshot = ledger::open(data, true)?;
    let mut service = Service::start("grown", binary, data, workplace, &[], Vec::new())?;
    let ready_at = Instant::now();
    let book_after = service.rest()?;
    // It would disturb what is measured next.
    wait_for_audit(&service)?;
    let checked_after = ready_at.elapsed();
    let resident_bytes = service.server.resident_bytes()?;
    let (journal_bytes, book_bytes) = (files_bytes(data, "journal.db")?, files_bytes(data, "book.db")?);
    let empty_data = workplace.directory(&format!("empty-{claims}"))?;
    let mut empty = Service::start("empty", binary, &empty_data, workplace, &[], Vec::new())?;

    let progress = Progress::new("claims on the grown and the empty journal", (2 * ROUNDS) as u64);
    let (mut grown_rounds, mut empty_rounds) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (service, rounds) in [(&mut service, &mut grown_rounds), (&mut empty, &mut empty_rounds)] {
            rounds.push(service.claims(generator, SPAN, Shares::default(), &mut || Ok(()))?);
            service.rest()?;
            progress.add(1);
        }
    }
    progress.done();
    service.check_money()?;
    empty.check_money()?;
    let ready_after_s = service.server.started_in.as_secs_f64();
    service.stop()?;
    empty.stop()?;
    fs::remove_dir_all(&empty_data)?;

    let seconds = SPAN.window.as_secs_f64() + SPAN.warm_up.as_secs_f64();
    let more = grown_rounds.iter().map(|round| round.per_second * seconds).sum::<f64>() as u64;
    let ratios =
        grown_rounds.iter().zip(&empty_rounds).map(|(grown, empty)| grown.per_second / empty.per_second);
    let grown = Grown {
        claims,
        memory_bytes_per_claim: folded.bytes / claims.max(1),
        folded,
        snapshot,
        from_snapshot,
        resident_bytes,
        ready_after_s,
        book_after_s: book_after.as_secs_f64(),
        checked_after_s: checked_after.as_secs_f64(),
        journal_bytes_per_claim: journal_bytes / claims.max(1),
        book_bytes_per_claim: book_bytes / claims.max(1),
        ratio: Figures::of(ratios),
        grown: grown_rounds,
        empty: empty_rounds,
    };
    Ok((grown, more))
}

/// Waits until the service has checked the journal before the snapshot that it was started from.
fn wait_for_audit(service: &Service) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3600);
    let operations = service.server.operations.context("no operations listener")?;
    let began = Instant::now();
    let progress = Progress::new("the whole journal is checked", 1);
    loop {
        let (_, text) = client::get_blocking(operations, "/readyz", None)?;
        let readiness: Value = serde_json::from_str(&text)?;
        let audit = readiness.get("audit").context("no audit")?;
        let difference = audit.get("difference").and_then(Value::as_str);
        ensure!(difference.is_none(), "the audit found a difference: {text}");
        if audit.get("position").is_some_and(Value::is_u64) {
            progress.add(1);
            progress.done();
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the journal is not checked: {text}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The bytes of a SQLite file with its log.
fn files_bytes(data: &Path, name: &str) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_str().context("a strange file name")?.starts_with(name) {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
