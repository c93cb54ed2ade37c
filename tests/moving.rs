//! Journals moved and backed up byte for byte, and books made again, beside a live service.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::client::id_of;
use crate::support::journal::{Row, rows};
use crate::support::postgres::Database;
use crate::support::service::{also_on_postgres, command, said, verify};
use crate::support::{Caller, Options, Sale, Service, Value, eventually, fen};

/// `subsidy-pos journal copy`, and what it said.
fn copy(from: &str, to: &str) -> (bool, String) {
    let output = command(&["journal", "copy", "--from", from, "--to", to]);
    (output.status.success(), said(&output))
}

#[track_caller]
fn must_copy(from: &str, to: &str) {
    let (done, said) = copy(from, to);
    assert!(done && said.contains("entries are copied"), "{said}");
}

/// A sale held, one redeemed and one returned.
fn sell(service: &Service, till: &Caller) -> Vec<Value> {
    let held = till.claimed(&service.sale().held_with_device());
    let redeemed = till.claimed(&service.sale());
    let returned = till.take_back(&till.claimed(&service.sale())).must_be(200);
    vec![held, redeemed, returned]
}

/// A data directory with the keys of another and nothing else.
fn with_keys_of(data: &Path, new: &Path) -> PathBuf {
    std::fs::create_dir_all(new).unwrap();
    for file in std::fs::read_dir(data).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with("dev-") {
            std::fs::copy(&file, new.join(name)).unwrap();
        }
    }
    new.to_owned()
}

fn same(a: &[Row], b: &[Row]) -> bool {
    let parts = |row: &Row| (row.position, row.hash.clone(), row.entry.clone());
    a.iter().map(parts).eq(b.iter().map(parts))
}

#[test]
fn a_journal_moves_from_files_to_postgresql_and_back_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new();
    let (first, back) = (directory.path().join("first"), directory.path().join("back"));
    let mut service = Service::start_with(Options::on(&first));
    let till = service.retailer();
    let claims = sell(&service, &till);
    let before = rows(&service.regulator());
    assert!(service.stop().success());

    must_copy(first.to_str().unwrap(), &database.url());
    let mut moved = Service::start_with(Options::on(&first).in_database(&database));
    let till = moved.caller("retailer", &till.subject, &[]);
    for claim in &claims {
        assert_eq!(&till.look_at(claim), claim);
    }
    let there = rows(&moved.regulator());
    assert!(same(&there[..before.len()], &before));
    let more = till.redeem(&claims[0]).must_be(200);
    let there = rows(&moved.regulator());
    moved.must_verify();
    assert!(moved.stop().success());

    must_copy(&database.url(), back.to_str().unwrap());
    with_keys_of(&first, &back);
    assert!(verify(&back, &[]).status.success());
    let returned = Service::start_with(Options::on(&back));
    let till = returned.caller("retailer", &till.subject, &[]);
    assert_eq!(till.look_at(&claims[0]), more);
    let listed = till.get("/v1/claims").must_be(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
    assert!(same(&rows(&returned.regulator())[..there.len()], &there));
    returned.must_verify();
}

#[test]
fn a_journal_is_copied_only_to_where_there_is_none_and_only_as_far_as_it_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut service = Service::start_with(Options::on(&directory.path().join("data")));
    let till = service.retailer();
    let position = till.claimed(&service.sale())["journal"]["position"].as_u64().unwrap();
    till.claimed(&service.sale());
    assert!(service.stop().success());
    let database = Database::new();
    must_copy(&path("data"), &database.url());
    must_copy(&path("data"), &path("copy"));
    for target in [database.url(), path("copy")] {
        let (done, said) = copy(&path("data"), &target);
        assert!(!done && said.contains("there is a journal already"), "{said}");
    }
    let (done, said) = copy(&path("none"), &path("new"));
    assert!(!done && said.contains("there is no journal"), "{said}");
    assert!(!directory.path().join("none").exists());
    database.execute(&format!("UPDATE journal SET entry = entry || ' ' WHERE position = {position}"));
    let (done, said) = copy(&database.url(), &path("new"));
    assert!(!done && said.contains(&format!("entry {position} is missing or changed")), "{said}");
    assert!(!said.contains(crate::support::postgres::PASSWORD), "{said}");
}

#[test]
fn a_copy_made_beside_a_live_service_is_a_backup_of_what_was_answered_before() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::start();
    let till = service.retailer();
    let answered = sell(&service, &till);
    let head = service.regulator().get("/v1/journal/head");
    let head_file = directory.path().join("head");
    std::fs::write(&head_file, &head.body).unwrap();
    let stopping = AtomicBool::new(false);
    let backups: Vec<_> = (0..3).map(|number| directory.path().join(format!("backup-{number}"))).collect();
    let now = service.now();
    let sold: usize = std::thread::scope(|scope| {
        let selling = scope.spawn(|| {
            let mut sold = 0;
            while !stopping.load(Ordering::Relaxed) {
                till.claimed(&Sale::at(now));
                sold += 1;
            }
            sold
        });
        for backup in &backups {
            must_copy(service.ledger(), backup.to_str().unwrap());
        }
        stopping.store(true, Ordering::Relaxed);
        selling.join().unwrap()
    });
    assert!(sold > 0, "it was sold meanwhile");
    let key = service.data().join("dev-head-public.pem");
    for backup in &backups {
        let more = ["--head", head_file.to_str().unwrap(), "--public-key", key.to_str().unwrap()];
        let output = verify(backup, &more);
        assert!(output.status.success(), "{}", said(&output));
    }
    let restored = Service::start_with(Options {
        database: None,
        ..Options::on(&with_keys_of(service.data(), backups.last().unwrap()))
    });
    let till = restored.caller("retailer", &till.subject, &[]);
    for claim in &answered {
        assert_eq!(&till.look_at(claim), claim);
    }
    restored.must_verify();
}

/// `subsidy-pos book rebuild` of a service's book.
#[track_caller]
fn must_rebuild(service: &Service) {
    let output = command(&[&["book", "rebuild"][..], &service.place()].concat());
    assert!(output.status.success() && said(&output).contains("up to entry"), "{}", said(&output));
}

#[test]
fn a_book_is_made_again_while_the_service_runs() {
    let service = Service::start();
    let till = service.retailer();
    let regulator = service.regulator();
    for _ in 0..5 {
        sell(&service, &till);
    }
    let items = || till.get("/v1/claims?category=smart_glasses").must_be(200)["items"].clone();
    let totals = || regulator.get("/v1/totals?group_by=category").must_be(200)["items"].clone();
    let (listed, totalled) = (items(), totals());
    assert_eq!(listed.as_array().unwrap().len(), 15);
    let now = service.now();
    let stopping = AtomicBool::new(false);
    let sold: usize = std::thread::scope(|scope| {
        let selling = scope.spawn(|| {
            let mut sold = 0;
            while !stopping.load(Ordering::Relaxed) {
                till.claimed(&Sale::at(now).category("smart_health"));
                sold += 1;
            }
            sold
        });
        for _ in 0..3 {
            must_rebuild(&service);
        }
        stopping.store(true, Ordering::Relaxed);
        selling.join().unwrap()
    });
    assert!(sold > 0);
    let again = eventually("the book is there again", Duration::from_secs(10), || {
        let again = totals();
        (again.as_array()?.len() == 2).then_some(again)
    });
    let of_glasses = |rows: &Value| {
        let rows = rows.as_array().unwrap().clone();
        rows.into_iter().find(|row| row["category"] == "smart_glasses").unwrap()
    };
    assert_eq!(of_glasses(&again), of_glasses(&totalled));
    assert_eq!(items(), listed);
    assert!(fen(&regulator.get("/v1/funds/zj-ai-25.330100").must_be(200)["redeemed"]) > 0);
    service.must_verify();
}

#[test]
fn a_book_that_was_ahead_of_its_journal_is_made_that_of_the_journal() {
    let mut service = Service::start_with(Options::default().in_database(&Database::new()));
    let till = service.retailer();
    let kept = till.claimed(&service.sale());
    let last = till.claimed(&service.sale())["journal"]["position"].as_u64().unwrap();
    till.get("/v1/claims").must_be(200);
    assert!(service.stop().success());
    service.database().execute(&format!("DELETE FROM journal WHERE position = {last}"));
    assert!(service.try_start_again().is_err());
    std::fs::remove_file(service.data().join("journal.head")).unwrap();
    assert!(service.try_start_again().is_err());
    must_rebuild(&service);
    service.start_again();
    assert_eq!(till.get("/v1/claims").must_be(200)["items"][0]["claim_id"], id_of(&kept));
    service.must_verify();
}

#[test]
fn a_book_is_made_only_beside_a_journal() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(&["book", "rebuild", "--data", directory.path().to_str().unwrap()]);
    assert!(!output.status.success() && said(&output).contains("there is no journal"), "{}", said(&output));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

also_on_postgres!(
    a_copy_made_beside_a_live_service_is_a_backup_of_what_was_answered_before,
    a_book_is_made_again_while_the_service_runs,
);
