//! While it runs, the service compares its state, book and journal, and raises the alarm.

use std::time::Duration;

use rusqlite::Connection;

use crate::support::{Options, Service, Value, eventually};
use crate::tampering::{forge_from, like, open, row, set, text};

const PATIENCE: Duration = Duration::from_secs(30);

/// A service that audits itself every second, and what it has sold.
fn audited() -> (Service, Value) {
    let options = Options::default().env("SUBSIDY_POS__JOURNAL__AUDIT_INTERVAL_S", "1");
    let service = Service::start_with(options);
    let till = service.retailer();
    let mut middle = Value::Null;
    for round in 0..30 {
        let claim = till.claimed(&service.sale());
        match round % 3 {
            0 => drop(till.take_back(&claim).must_be(200)),
            1 => drop(till.claimed(&service.sale().held())),
            _ => middle = claim,
        }
    }
    (service, middle)
}

fn audit(service: &Service) -> Value {
    service.operator().get("/readyz").must_be(200)["audit"].clone()
}

/// Waits for an audit up to `position` that finds nothing.
#[track_caller]
fn must_agree(service: &Service, position: u64) {
    eventually("an audit agrees", PATIENCE, || {
        let audit = audit(service);
        let reached = audit["position"].as_u64().is_some_and(|reached| reached >= position);
        (reached && audit["difference"].is_null()).then_some(())
    });
    assert!(service.metrics().contains("subsidy_pos_audit_difference 0"), "{}", service.metrics());
}

/// Waits for an audit that finds a difference; what `/readyz` says of it.
#[track_caller]
fn must_differ(service: &Service) -> String {
    let difference = eventually("an audit finds a difference", PATIENCE, || {
        audit(service)["difference"].as_str().map(str::to_owned)
    });
    assert!(service.metrics().contains("subsidy_pos_audit_difference 1"), "{}", service.metrics());
    assert!(service.log().contains("the audit found a difference"), "{}", service.log());
    difference
}

#[test]
fn an_audit_beside_sales_finds_everything_to_agree() {
    let (service, _) = audited();
    let till = service.retailer();
    let began = std::time::Instant::now();
    let mut last = 0;
    while began.elapsed() < Duration::from_secs(4) {
        let claim = till.claimed(&service.sale());
        let hold = till.claimed(&service.sale().held());
        till.release(&hold).must_be(200);
        last = claim["journal"]["position"].as_u64().unwrap();
    }
    must_agree(&service, last);
    assert!(!service.log().contains("the audit found a difference"), "{}", service.log());
}

#[test]
fn an_altered_row_of_the_journal_is_found_and_sales_go_on() {
    let (service, claim) = audited();
    let position = claim["journal"]["position"].as_u64().unwrap();
    must_agree(&service, position);
    {
        let journal = open(service.data());
        let (hash, entry) = row(&journal, position);
        let bent = text(&entry).replacen("\"price_fen\":400000", "\"price_fen\":400001", 1);
        assert_ne!(bent, text(&entry));
        set(&journal, position, &(hash, like(&entry, bent.into_bytes())));
    }
    let difference = must_differ(&service);
    assert!(difference.ends_with(&format!(" {position}")), "{difference}");
    assert!(service.nobody().get("/readyz").text().contains(&difference), "whoever asks is told");
    service.retailer().claim(&service.sale()).must_be(201);
}

#[test]
fn a_history_rewritten_with_every_hash_made_to_fit_is_found_by_whoever_remembers_the_old_one() {
    let (service, claim) = audited();
    must_agree(&service, claim["journal"]["position"].as_u64().unwrap());
    let journal = open(service.data());
    forge_from(&journal, claim["journal"]["position"].as_u64().unwrap());
    drop(journal);
    service.must_verify();
    let difference = must_differ(&service);
    assert!(difference.starts_with("the state differs"), "{difference}");
}

#[test]
fn an_altered_total_is_found_and_a_new_book_is_right_again() {
    let (mut service, claim) = audited();
    let position = claim["journal"]["position"].as_u64().unwrap();
    must_agree(&service, position);
    let book = Connection::open(service.data().join("book.db")).unwrap();
    book.busy_timeout(Duration::from_secs(5)).unwrap();
    let changed = book.execute("UPDATE totals SET redeemed_fen = redeemed_fen + 1", []).unwrap();
    assert!(changed > 0);
    drop(book);
    let difference = must_differ(&service);
    assert!(difference.starts_with("the book differs"), "{difference}");
    let shown = service.nobody().get("/readyz").text();
    assert!(!shown.contains(claim["retailer"].as_str().unwrap()), "nothing about anybody: {shown}");
    assert!(service.stop().success());
    for file in ["book.db", "book.db-wal", "book.db-shm"] {
        let _ = std::fs::remove_file(service.data().join(file));
    }
    service.start_again();
    must_agree(&service, position);
}
