//! Measures subsidy-pos: against its own ceiling, against what one would otherwise write, and as it grows.
//!
//! Without a command everything is compared, in less than ten minutes. See README.md.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

mod body;
mod book;
mod ceiling;
mod chart;
mod client;
mod compare;
mod growth;
mod ledger;
mod load;
mod machine;
mod plain;
mod process;
mod progress;
mod report;
mod script;
mod shared;
mod stock;
mod subject;

use compare::Lengths;
use process::Workplace;
use script::Shares;
use subject::Generator;
use subsidy_pos_loadtest::parts::{Part, Parts, SALES};
use subsidy_pos_loadtest::{drafts, sale};

/// The service's, so that the ceiling has nothing it has not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(about = "Measures subsidy-pos. Without a command: the comparison, in less than ten minutes.")]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Settings {
    /// Where data is kept during a run; must be on a disk
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", global = true)]
    dir: PathBuf,
    /// Where results are written
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/out"), global = true)]
    out: PathBuf,
    /// Connections of the generator
    #[arg(long, default_value_t = 64, global = true)]
    connections: usize,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, global = true)]
    threads: usize,
    /// Shorten the comparison to less than two minutes: to see that it works, not for figures
    #[arg(long)]
    brief: bool,
    /// Leave data and logs where they are
    #[arg(long, global = true)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Claims beside the ceiling, with the book in view
    Quick {
        /// On PostgreSQL and Redis; else on the embedded journal
        #[arg(long)]
        shared: bool,
        /// How long claims are made
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// How late answers are at a given rate, second by second: the open loop alone
    Late {
        /// On PostgreSQL and Redis; else on the embedded journal
        #[arg(long)]
        shared: bool,
        /// Claims a second
        #[arg(long, default_value_t = 15_000)]
        rate: u64,
        /// How long
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// The ledger alone beside a bare SQLite append of the same bytes
    Ledger,
    /// How fast a journal opens by folding it and from a snapshot, and what a claim takes in memory
    Fold {
        /// Claims in the journal
        #[arg(long, default_value_t = 1_000_000)]
        claims: u64,
    },
    /// Start-up, memory, disk and speed with many claims stored
    Growth {
        /// How many, in rising order
        #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000])]
        claims: Vec<u64>,
    },
    /// One process and three on PostgreSQL and Redis, and without Redis, beside the plain service
    Shared,
    /// Honest, forgetful and hostile tills together, every answer checked
    Mixed {
        /// How long
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Of a thousand requests: sent twice, or for a device sold already
        #[arg(long, default_value_t = 100)]
        duplicates: u64,
        /// Of a thousand requests: forged, malformed or with wrong check digits
        #[arg(long, default_value_t = 50)]
        hostile: u64,
    },
    /// The server that decides nothing
    #[command(hide = true)]
    Ceiling(ceiling::Arguments),
    /// The server that one would write first
    #[command(hide = true)]
    Plain(plain::Arguments),
    /// Do each pure part of making a claim for some sales, for a tool that counts instructions
    #[command(hide = true)]
    Parts,
    /// Open one journal in a process of its own
    #[command(hide = true)]
    OpenWorker {
        /// The data directory
        #[arg(long)]
        data: PathBuf,
        /// Not by folding it
        #[arg(long)]
        from_snapshot: bool,
    },
    /// Take a snapshot of one journal in a process of its own
    #[command(hide = true)]
    SnapshotWorker {
        /// The data directory
        #[arg(long)]
        data: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subsidy-pos-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { settings, command }: Arguments) -> Result<()> {
    // Servers that this program starts of itself need no place of their own.
    match &command {
        Some(Command::Ceiling(arguments)) => return ceiling::run(arguments),
        Some(Command::Plain(arguments)) => return plain::run(arguments),
        Some(Command::Parts) => return parts(),
        Some(Command::OpenWorker { data, from_snapshot }) => return ledger::open_here(data, *from_snapshot),
        Some(Command::SnapshotWorker { data }) => return ledger::take_here(data),
        _ => {}
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a build for debugging: its figures mean nothing; use --release");
    }
    let mut workplace = Workplace::new(&settings.dir, settings.keep)
        .with_context(|| format!("making a directory in {}", settings.dir.display()))?;
    end_with_signals(workplace.path().to_owned())?;
    let result = measure(&workplace, &settings, command);
    if result.is_err() {
        workplace.keep();
    }
    result
}

/// Does each pure part for all sales, between [`part_begins`] and [`part_ends`].
fn parts() -> Result<()> {
    let mut parts = Parts::new(SALES)?;
    for part in Part::ALL {
        parts.run(part, &mut |work| {
            part_begins();
            work();
            part_ends();
        })?;
    }
    Ok(())
}

/// Where a tool is to begin counting: it knows functions by their names.
#[inline(never)]
fn part_begins() {
    std::hint::black_box(());
}

/// Where a tool is to stop counting.
#[inline(never)]
fn part_ends() {
    std::hint::black_box(());
}

/// On a signal to end, takes the started processes and their data along.
fn end_with_signals(data: PathBuf) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let waited = runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hang_up = signal(SignalKind::hangup())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            std::io::Result::Ok(())
        });
        if let Err(error) = waited {
            eprintln!("signals cannot be waited for: {error}");
            return;
        }
        process::kill_all();
        // What cannot be removed stays; there is nobody left to tell.
        let _ = std::fs::remove_dir_all(&data);
        std::process::exit(130);
    })?;
    Ok(())
}

fn measure(workplace: &Workplace, settings: &Settings, command: Option<Command>) -> Result<()> {
    let generator = Generator { connections: settings.connections.max(1), threads: settings.threads.max(1) };
    let out = settings.out.as_path();
    match command {
        None => {
            let lengths = if settings.brief { Lengths::BRIEF } else { Lengths::FULL };
            compare::run(workplace, generator, out, lengths)
        }
        Some(Command::Quick { shared, seconds }) => {
            compare::quick(workplace, generator, out, seconds, shared)
        }
        Some(Command::Late { shared, rate, seconds }) => {
            compare::late(workplace, generator, rate, seconds, shared)
        }
        Some(Command::Ledger) => {
            let machine = machine::Machine::describe(workplace.path())?;
            println!("{}", machine.text());
            let results = ledger::alone(workplace)?;
            report::write(out, "ledger.json", &serde_json::to_string_pretty(&(machine, results))?)
        }
        Some(Command::Fold { claims }) => {
            let machine = machine::Machine::describe(workplace.path())?;
            println!("{}", machine.text());
            let results = ledger::opening(workplace, claims)?;
            report::write(out, "fold.json", &serde_json::to_string_pretty(&(machine, results))?)
        }
        Some(Command::Growth { claims }) => growth::run(workplace, generator, out, &claims),
        Some(Command::Shared) => shared::run(workplace, generator, out),
        Some(Command::Mixed { seconds, duplicates, hostile }) => {
            compare::mixed(workplace, generator, seconds, Shares { duplicates, hostile })
        }
        Some(
            Command::Ceiling(_)
            | Command::Plain(_)
            | Command::Parts
            | Command::OpenWorker { .. }
            | Command::SnapshotWorker { .. },
        ) => Ok(()),
    }
}
