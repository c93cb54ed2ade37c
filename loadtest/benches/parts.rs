//! How long each pure part of making a claim takes: `cargo bench -p subsidy-pos-loadtest`.

use std::error::Error;
use std::time::{Duration, Instant};

use criterion::Criterion;
use subsidy_pos_loadtest::parts::{Part, Parts, SALES};

/// Claims in the state that is decided on.
const CLAIMS: u64 = 100_000;
/// How long each part is done before it is measured, and while it is.
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn Error>> {
    let mut parts = Parts::new(CLAIMS)?;
    let criterion = Criterion::default().warm_up_time(WARM_UP).measurement_time(MEASURED);
    let mut criterion = criterion.configure_from_args();
    for part in Part::ALL {
        let mut fault = None;
        criterion.bench_function(part.name(), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    let done = parts.run(part, &mut |work| {
                        let began = Instant::now();
                        work();
                        took += began.elapsed();
                    });
                    fault = done.err().or(fault.take());
                }
                // One, not all of a round.
                took / SALES as u32
            });
        });
        if let Some(fault) = fault {
            return Err(fault.into());
        }
    }
    criterion.final_summary();
    Ok(())
}
