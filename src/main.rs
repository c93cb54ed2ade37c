//! The command line: arguments, configuration, wiring, run.

use std::process::ExitCode;

use clap::Parser;

mod cli;

/// Requests, entries and answers are made on one thread and dropped on another, which costs this allocator
/// little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("subsidy-pos: {reason}");
            ExitCode::FAILURE
        }
    }
}
