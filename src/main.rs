//! The command line: arguments, configuration, wiring, run.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    match cli::Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("subsidy-pos: {reason}");
            ExitCode::FAILURE
        }
    }
}
