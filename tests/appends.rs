//! One durable write carries many entries. Counted, not timed.

use crate::support::trace::Tracer;
use crate::support::{Sale, Service, at_once, fresh_key, json};

/// How many appends there were, and how many entries they had together.
fn appends(service: &Service) -> (u64, u64) {
    let metrics = service.metrics();
    let number = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a metric");
        line.trim().parse::<f64>().expect("a number") as u64
    };
    (number("subsidy_pos_writer_batch_entries_count "), number("subsidy_pos_writer_batch_entries_sum "))
}

#[test]
fn a_batch_of_five_hundred_claims_is_appended_at_once() {
    let service = Service::start();
    let till = service.retailer();
    let items: Vec<_> =
        (0..500).map(|_| json!({"idempotency_key": fresh_key(), "claim": service.sale().body})).collect();
    let before = appends(&service);
    till.post("/v1/claims/batch", &json!({"items": items})).must_be(200);
    let after = appends(&service);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 500));
}

#[test]
fn claims_that_come_while_the_disk_is_busy_share_the_next_append() {
    const TILLS: usize = 64;
    const CLAIMS_EACH: usize = 5;
    let service = Service::start();
    let till = service.retailer();
    let now = service.now();
    // However fast the disk is: long enough for every till to have its next claim waiting.
    let slow = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=250000"];
    let tracer = Tracer::attach(&service, &slow);
    let before = appends(&service);
    at_once(TILLS, |_| (0..CLAIMS_EACH).for_each(|_| drop(till.claimed(&Sale::at(now)))));
    let after = appends(&service);
    drop(tracer);
    let (appends, entries) = (after.0 - before.0, after.1 - before.1);
    eprintln!("{entries} entries in {appends} appends");
    assert_eq!(entries, (TILLS * CLAIMS_EACH) as u64);
    // Were all tills always in time, there would be one append for each round, and one for the first till.
    assert!(appends <= 4 * CLAIMS_EACH as u64, "{entries} entries took {appends} appends");
}
