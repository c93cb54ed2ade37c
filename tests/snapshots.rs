//! Starts from a snapshot: as good as those that fold everything, and found out where they are not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::params;
use subsidy_pos::journal::Row;
use subsidy_pos::ledger::entry::{Entry, Event, Hash};
use subsidy_pos::ledger::{Stored, writer};

use crate::support::journal::begin_in_first_format;
use crate::support::postgres::Database;
use crate::support::service::{also_on_postgres, command, files_below, said};
use crate::support::{Caller, Options, Service, Value, eventually, fresh_key};
use crate::tampering::{like, open, row, set, text};

const PATIENCE: Duration = Duration::from_secs(30);

fn options() -> Options {
    Options::default().env("SUBSIDY_POS__LEDGER__SNAPSHOT_INTERVAL_S", "1")
}

/// Waits for a snapshot at `position` or after it.
#[track_caller]
fn snapshot_from(service: &Service, position: u64) -> u64 {
    eventually("a snapshot is taken", PATIENCE, || {
        let taken = service.metric("snapshot_position");
        (taken >= position).then_some(taken)
    })
}

/// The snapshots in the data directory, and what else is called so.
fn files(service: &Service, extension: &str) -> Vec<PathBuf> {
    let mut files = files_below(&service.data().join("snapshots"));
    files.retain(|file| file.extension().is_some_and(|own| own == extension));
    files.sort_unstable();
    files
}

/// A service after a snapshot that has some history in it: its position, the till, and a claim from then.
fn with_a_snapshot(options: Options) -> (Service, u64, Caller, Value) {
    let service = Service::start_with(options);
    let till = service.retailer();
    let mut middle = Value::Null;
    for round in 0..30 {
        let claim = till.claimed(&service.sale());
        match round % 4 {
            0 => drop(till.take_back(&claim).must_be(200)),
            1 => drop(till.redeem(&till.claimed(&service.sale().held_with_device())).must_be(200)),
            2 => drop(till.release(&till.claimed(&service.sale().held())).must_be(200)),
            _ => middle = claim,
        }
    }
    till.cancel(&fresh_key()).must_be(200);
    let last = service.metric("journal_position");
    let taken = snapshot_from(&service, last);
    (service, taken, till, middle)
}

/// Waits for an audit that finds everything to agree up to `position`.
#[track_caller]
fn must_agree(service: &Service, position: u64) {
    eventually("an audit agrees", PATIENCE, || {
        let audit = service.operator().get("/readyz").must_be(200)["audit"].clone();
        assert!(audit["difference"].is_null(), "{audit}");
        audit["position"].as_u64().filter(|reached| *reached >= position)
    });
}

/// Waits for the alarm; what `/readyz` says, and no snapshot is left to be used.
#[track_caller]
fn must_differ(service: &Service) -> String {
    let difference = eventually("an audit finds a difference", PATIENCE, || {
        let readiness = service.operator().get("/readyz").must_be(200);
        readiness["audit"]["difference"].as_str().map(str::to_owned)
    });
    assert_eq!(service.metric("audit_difference"), 1);
    assert_eq!(service.metric("snapshot_position"), 0);
    assert!(files(service, "snapshot").is_empty(), "none is used again");
    assert!(!files(service, "distrusted").is_empty(), "evidence is kept");
    difference
}

#[test]
fn a_start_from_a_snapshot_is_like_any_other_and_what_lies_before_is_checked_soon() {
    let (mut service, taken, till, middle) = with_a_snapshot(options());
    let key = fresh_key();
    let sale = service.sale();
    let after = till.claim_under(&key, &sale).must_be(201);
    let hold = till.claimed(&service.sale().held());
    assert!(service.metric("snapshot_lag_entries") >= 2);

    service.restart_later(31 * 60_000);
    assert!(service.log().contains("opened from a snapshot"), "{}", service.log());
    assert!(service.metric("snapshot_position") >= taken);
    // Audits are a day apart; this one is not waited for so long.
    must_agree(&service, service.metric("journal_position").min(taken + 2));
    assert_eq!(till.look_at(&hold)["status"], "expired");
    assert_eq!(till.look_at(&middle)["status"], "redeemed");
    till.claim(&service.sale().with("/device", middle["device"].clone()))
        .must_refuse("device-already-subsidised");
    let again = till.claim_under(&key, &sale);
    assert!(again.is_replay(), "{}", again.text());
    assert_eq!(again.must_be(201)["claim_id"], after["claim_id"]);
    till.take_back(&middle).must_be(200);
    service.must_verify();

    // Copies of the file are of use; without any the journal is folded.
    let logged = service.log().matches("opened from a snapshot").count();
    assert!(service.stop().success());
    std::fs::remove_dir_all(service.data().join("snapshots")).unwrap();
    service.start_again();
    assert_eq!(service.log().matches("opened from a snapshot").count(), logged);
    assert_eq!(till.look_at(&middle)["status"], "returned");
}

also_on_postgres!(a_start_from_a_snapshot_is_like_any_other_and_what_lies_before_is_checked_soon);

#[test]
fn snapshots_are_taken_as_the_journal_grows_and_two_are_kept() {
    let (mut service, first, ..) = with_a_snapshot(options());
    let mut last = first;
    for _ in 0..3 {
        for _ in 0..10 {
            service.retailer().claimed(&service.sale());
        }
        last = snapshot_from(&service, last + 10);
    }
    assert_eq!(files(&service, "snapshot").len(), 2);
    // What only says that a snapshot was taken is no reason for another.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(service.metric("snapshot_position"), last);
    // Whoever deletes them is not asked for them again.
    std::fs::remove_dir_all(service.data().join("snapshots")).unwrap();
    for _ in 0..10 {
        service.retailer().claimed(&service.sale());
    }
    last = snapshot_from(&service, last + 10);
    service.restart();
    assert!(service.log().contains("opened from a snapshot"), "{}", service.log());
    must_agree(&service, last);
}

#[test]
fn sales_go_on_where_no_snapshot_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("snapshots"), "a file").unwrap();
    let mut service = Service::start_with(Options { data: Some(data), ..options() });
    let told = "the snapshot could not be written";
    eventually("it is said", PATIENCE, || service.log().contains(told).then_some(()));
    service.retailer().claimed(&service.sale());
    service.restart();
    service.retailer().claimed(&service.sale());
}

#[test]
fn processes_on_one_journal_each_keep_their_own() {
    let (database, directory) = (Database::new(), tempfile::tempdir().unwrap());
    let kept = |name: &str| directory.path().join(name);
    let service = |name: &str| {
        let options =
            Options { data: Some(directory.path().join("data")), ..options() }.in_database(&database);
        let own = kept(name);
        Service::start_with(options.env("SUBSIDY_POS__LEDGER__SNAPSHOT_DIR", own.to_str().unwrap()))
    };
    let (one, mut other) = (service("one"), service("other"));
    let till = one.retailer();
    let claims: Vec<_> = (0..20).map(|_| till.claimed(&one.sale())).collect();
    let last = one.metric("journal_position");
    snapshot_from(&one, last);
    snapshot_from(&other, last);
    for name in ["one", "other"] {
        assert!(!files_below(&kept(name)).is_empty(), "{name}");
    }
    other.restart();
    assert!(other.log().contains("opened from a snapshot"), "{}", other.log());
    must_agree(&other, last);
    for service in [&one, &other] {
        let sale = service.sale().with("/device", claims[7]["device"].clone());
        service.retailer().claim(&sale).must_refuse("device-already-subsidised");
    }
    one.must_verify();
}

#[test]
fn none_are_taken_or_used_where_they_are_turned_off() {
    let options = Options::default().env("SUBSIDY_POS__LEDGER__SNAPSHOT_INTERVAL_S", "0");
    let mut service = Service::start_with(options);
    service.retailer().claimed(&service.sale());
    assert!(service.stop().success());
    let data = service.data().to_str().unwrap();
    let output = command(&["journal", "snapshot", "--data", data]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(files(&service, "snapshot").len(), 1);
    service.start_again();
    assert!(!service.log().contains("opened from a snapshot"), "{}", service.log());
    assert_eq!(service.metric("snapshot_position"), 0);
}

#[test]
fn one_can_be_taken_by_a_command_while_the_service_rests() {
    let mut service = Service::start();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    let data = service.data().to_str().unwrap().to_owned();
    let refused = command(&["journal", "snapshot", "--data", &data]);
    assert!(!refused.status.success(), "the service has the journal: {}", said(&refused));
    assert!(service.stop().success());
    for _ in 0..2 {
        let output = command(&["journal", "snapshot", "--data", &data]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("a snapshot is taken at entry"), "{}", said(&output));
    }
    service.start_again();
    assert!(service.log().contains("opened from a snapshot"), "{}", service.log());
    assert_eq!(till.look_at(&claim), claim);
    service.must_verify();
    let nowhere = command(&["journal", "snapshot", "--data", "/nowhere"]);
    assert!(!nowhere.status.success() && !Path::new("/nowhere").exists(), "{}", said(&nowhere));
}

#[test]
fn a_journal_in_the_first_format_goes_on_without() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    begin_in_first_format(data.to_str().unwrap());
    let mut service = Service::start_with(Options { data: Some(data.clone()), ..options() });
    for _ in 0..3 {
        service.retailer().claimed(&service.sale());
    }
    let told = "no snapshots are taken";
    eventually("it is said", PATIENCE, || service.log().contains(told).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(service.log().matches(told).count(), 1);
    assert_eq!(service.metric("snapshot_position"), 0);
    assert!(service.stop().success());
    let output = command(&["journal", "snapshot", "--data", data.to_str().unwrap()]);
    assert!(
        !output.status.success() && said(&output).contains("does not know snapshots"),
        "{}",
        said(&output)
    );
    assert!(!data.join("snapshots").exists());
}

#[test]
fn a_damaged_snapshot_is_passed_over_and_the_log_says_why() {
    let (mut service, _, till, middle) = with_a_snapshot(options());
    assert!(service.stop().success());
    for file in files(&service, "snapshot") {
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    service.start_again();
    let log = service.log();
    assert!(log.contains("a snapshot is passed over") && log.contains("it was altered"), "{log}");
    assert!(!log.contains("opened from a snapshot"), "{log}");
    assert_eq!(till.look_at(&middle)["status"], "redeemed");
    service.must_verify();
}

#[test]
fn an_older_journal_is_not_opened_from_a_snapshot_of_what_it_lost() {
    let (mut service, taken, ..) = with_a_snapshot(options());
    assert!(service.stop().success());
    let journal = open(service.data());
    journal.execute("DELETE FROM journal WHERE position > ?", params![taken as i64 - 1]).unwrap();
    drop(journal);
    // Its signed head, and its book, know of the loss.
    for file in ["journal.head", "book.db", "book.db-wal", "book.db-shm"] {
        let _ = std::fs::remove_file(service.data().join(file));
    }
    service.start_again();
    let log = service.log();
    assert!(log.contains("it is an older copy"), "{log}");
    assert!(!log.contains("opened from a snapshot"), "{log}");
    service.retailer().claimed(&service.sale());
    service.must_verify();
}

#[test]
fn an_altered_row_before_the_snapshot_is_found_soon_after_the_start() {
    let (mut service, taken, _, middle) = with_a_snapshot(options());
    let position = middle["journal"]["position"].as_u64().unwrap();
    assert!(position < taken);
    assert!(service.stop().success());
    let journal = open(service.data());
    let (hash, entry) = row(&journal, position);
    let bent = text(&entry).replacen("400000", "400001", 1);
    assert_ne!(bent, text(&entry));
    set(&journal, position, &(hash, like(&entry, bent.into_bytes())));
    drop(journal);
    service.start_again();
    assert!(service.log().contains("opened from a snapshot"), "{}", service.log());
    let difference = must_differ(&service);
    assert!(difference.ends_with(&format!(" {position}")), "{difference}");
    // Claims are decided on a true state; nothing else starts on such a journal.
    service.retailer().claim(&service.sale()).must_be(201);
    assert!(service.stop().success());
    let exit = service.try_start_again().unwrap_err();
    assert!(exit.output.contains(&format!("entry {position}")), "{}", exit.output);
}

/// Changes entries from a position on, with every hash made to fit.
fn rewrite(data: &Path, from: u64, mut change: impl FnMut(&mut Entry)) {
    let journal = open(data);
    let end: i64 = journal.query_row("SELECT max(position) FROM journal", [], |row| row.get(0)).unwrap();
    let mut before = None;
    for position in from..=end as u64 {
        let (hash, entry) = row(&journal, position);
        let bytes = text(&entry).into_bytes();
        let found = Row { position, hash: Hash::of(&bytes), entry: bytes.into() };
        let Stored { entry: mut rewritten, .. }: Stored = writer::stored(&found).unwrap();
        change(&mut rewritten);
        rewritten.prev = before.unwrap_or(rewritten.prev);
        let bytes = rewritten.to_bytes().unwrap();
        let own = Hash::of(&bytes);
        before = Some(own);
        let rusqlite::types::Value::Blob(_) = hash else { panic!("{hash:?}") };
        let hash = rusqlite::types::Value::Blob(own.bytes().to_vec());
        set(&journal, position, &(hash, like(&entry, bytes)));
    }
}

#[test]
fn a_snapshot_forged_together_with_the_entry_that_names_it_is_found_soon_after_the_start() {
    let (mut service, taken, ..) = with_a_snapshot(options());
    assert!(service.stop().success());
    let file = files(&service, "snapshot").pop().unwrap();
    // One bit of the last key, which is the last thing in the file: a device that nobody has sold.
    let mut forged = std::fs::read(&file).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &forged).unwrap();
    let mut named = 0;
    rewrite(service.data(), taken + 1, |entry| {
        if let Event::SnapshotTaken { position, digest } = &mut entry.event
            && *position == taken
        {
            *digest = Hash::of(&forged);
            named += 1;
        }
    });
    assert_eq!(named, 1);
    for name in ["journal.head", "book.db", "book.db-wal", "book.db-shm"] {
        let _ = std::fs::remove_file(service.data().join(name));
    }
    service.start_again();
    assert!(service.log().contains("opened from a snapshot"), "{}", service.log());
    let difference = must_differ(&service);
    assert!(difference.starts_with("the state differs"), "{difference}");
    // None is taken of such a state, and the next start has the true one.
    for _ in 0..10 {
        service.retailer().claimed(&service.sale());
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(files(&service, "snapshot").is_empty());
    let opened = service.log().matches("opened from a snapshot").count();
    service.restart();
    assert_eq!(service.log().matches("opened from a snapshot").count(), opened);
    service.must_verify();
    // The next to be taken is of the true state again.
    snapshot_from(&service, taken);
}
