//! A journal goes on in the format it was begun in, so that processes that know no later one go on beside
//! those that do, until an operator says that they are all there.

use std::collections::BTreeSet;
use std::process::Command;

use subsidy_pos::ledger::entry::{Event, VERSION};

use crate::support::client::id_of;
use crate::support::journal::{Row, begin_in_first_format, enter, rows};
use crate::support::postgres::Database;
use crate::support::service::{PROGRAM, also_on_postgres, command, said, verify};
use crate::support::{Options, Service, Value, fresh_key, json};

/// A service on a journal that was begun in the first format.
fn on_first_format(options: Options) -> Service {
    let directory = options.data.as_ref().expect("a directory");
    let in_files = || directory.to_str().unwrap().to_owned();
    let ledger = options.database.as_ref().map_or_else(in_files, Database::url);
    begin_in_first_format(&ledger);
    Service::start_with(options)
}

fn versions(rows: &[Row]) -> BTreeSet<u64> {
    rows.iter().map(|row| row.parsed()["v"].as_u64().unwrap()).collect()
}

/// The members of what the last claim was made with, and of how it was judged.
fn last_made(rows: &[Row]) -> (Row, BTreeSet<String>, Vec<BTreeSet<String>>) {
    let is_made = |row: &&Row| row.parsed()["event"].get("claim_made").is_some();
    let row = rows.iter().rev().find(is_made).expect("a claim");
    let made = row.parsed()["event"]["claim_made"].clone();
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect();
    (row.clone(), members(&made), made["considered"].as_array().unwrap().iter().map(members).collect())
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What the service says of its claims, its funds and itself, which no format changes.
fn told(service: &Service, claims: &[Value]) -> Vec<Value> {
    let regulator = service.regulator();
    let mut told: Vec<Value> = claims.iter().map(|claim| regulator.look_at(claim)).collect();
    told.push(regulator.get("/v1/funds").must_be(200)["items"].clone());
    told.push(regulator.get("/v1/totals?group_by=day,programme,fund").must_be(200)["items"].clone());
    told.push(regulator.get("/v1/claims?limit=100").must_be(200)["items"].clone());
    told
}

#[test]
fn a_journal_is_continued_in_the_format_it_was_begun_in_until_that_is_raised() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut service = on_first_format(Options { data: Some(data.clone()), ..Options::default() });
    let till = service.retailer();
    let key = fresh_key();
    let full = service
        .sale()
        .with_imei()
        .with("/trade_in", json!({"sn": "OLD-1", "value": "100.00"}))
        .with("/invoice_no", "24332000000012345678");
    let made = till.claim_under(&key, &full);
    made.must_be(201);
    let held = till.claimed(&service.sale().held());
    let other_held = till.claimed(&service.sale().held_with_device());
    let returned = till.take_back(&till.claimed(&service.sale())).must_be(200);
    let claims = [made.json(), till.look_at(&held), returned];

    let before = rows(&service.regulator());
    assert_eq!(versions(&before), BTreeSet::from([1]));
    let (row, members, judged) = last_made(&before);
    assert!(members.contains("return_restores"));
    let in_full = names(&["programme", "version", "base_fen", "computed_fen", "amount_fen", "verdict"]);
    assert!(judged.iter().all(|judged| *judged == in_full), "{}", row.entry);
    assert!(row.entry.contains(&format!(r#""prev":"{}""#, before[row.position as usize - 2].hash)));
    let told_before = told(&service, &claims);

    assert!(service.stop().success());
    enter(service.ledger(), VERSION, service.now(), Event::FormatActivated { version: VERSION });
    service.start_again();
    assert_eq!(told(&service, &claims), told_before);
    let again = till.claim_under(&key, &full);
    assert!(again.is_replay());
    assert_eq!(again.text(), made.text(), "the same answer");
    till.claim(&service.sale().with("/device", full.body["device"].clone()))
        .must_refuse("device-already-subsidised");
    till.claim(&service.sale().with("/consumer", full.body["consumer"].clone()))
        .must_refuse("consumer-limit-reached");
    till.act(&held, "redeem", &json!({"device": service.sale().with_imei().body["device"]})).must_be(200);
    till.release(&other_held).must_be(200);
    let new_key = fresh_key();
    let new_sale = full.another().with("/trade_in", json!({"sn": "OLD-2", "value": "100.00"}));
    let new = till.claim_under(&new_key, &new_sale);
    new.must_be(201);

    let after = rows(&service.regulator());
    assert_eq!(versions(&after[before.len()..]), BTreeSet::from([u64::from(VERSION)]));
    let (row, members, judged) = last_made(&after);
    assert!(!members.contains("return_restores"));
    assert_eq!(judged[0], names(&["programme", "version"]), "{}", row.entry);
    let first = before.iter().find(|row| row.entry.contains(id_of(&claims[0]))).unwrap();
    assert!(row.entry.len() + 200 < first.entry.len(), "{} and {}", row.entry, first.entry);
    // What is read again says the same as what was answered from memory.
    assert_eq!(till.claim_under(&new_key, &new_sale).text(), new.text());

    service.must_verify();
    let rebuilt = command(&[&["book", "rebuild"][..], &service.place()].concat());
    assert!(rebuilt.status.success(), "{}", said(&rebuilt));
    let told_after = told(&service, &claims);
    let digest = service.operator().get("/digest").must_be(200);
    assert!(service.stop().success());
    let copy = directory.path().join("copy");
    let copied = command(&["journal", "copy", "--from", service.ledger(), "--to", copy.to_str().unwrap()]);
    assert!(copied.status.success(), "{}", said(&copied));
    let verified = verify(&copy, &[]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(said(&verified).contains(digest["digest"].as_str().unwrap()), "{}", said(&verified));
    service.start_again();
    assert_eq!(told(&service, &claims), told_after);
    assert_eq!(service.operator().get("/digest").must_be(200)["digest"], digest["digest"]);
}

/// `subsidy-pos journal upgrade` of a service's journal: whether it did, and what it said.
fn upgrade(service: &Service) -> (bool, String) {
    let mut command = Command::new(PROGRAM);
    command.args(["journal", "upgrade", "--data"]).arg(service.data());
    if service.place()[0] == "--database-url" {
        command.env("SUBSIDY_POS__LEDGER__URL", service.ledger());
    }
    let output = command.output().expect("the command runs");
    (output.status.success(), said(&output))
}

/// The entries after position `after`.
fn later(service: &Service, after: usize) -> Vec<Value> {
    service.entries().split_off(after)
}

#[test]
fn an_embedded_journal_is_upgraded_once_and_while_no_service_runs() {
    let directory = tempfile::tempdir().unwrap();
    // The command has the machine's time, and so has the service.
    let options = Options { clock: None, database: None, ..Options::on(&directory.path().join("data")) };
    let mut service = on_first_format(options);
    let before = service.entries().len();
    let (done, told) = upgrade(&service);
    assert!(!done && told.contains("another process has it open"), "{told}");
    assert!(service.stop().success());
    let (done, told) = upgrade(&service);
    assert!(done && told.contains(&format!("in format {VERSION} from here on")), "{told}");
    let (done, told) = upgrade(&service);
    assert!(!done && told.contains("there is nothing to upgrade"), "{told}");
    service.start_again();
    service.open_fund("zj-ai-25", "330106", "1.00");
    let events = later(&service, before);
    assert_eq!(events[0]["event"], json!({"format_activated": {"version": VERSION}}));
    assert!(events.len() == 2 && events.iter().all(|entry| entry["v"] == VERSION), "{events:?}");
    service.must_verify();

    let none = directory.path().join("none");
    let output = command(&["journal", "upgrade", "--data", none.to_str().unwrap()]);
    assert!(!output.status.success() && !none.exists(), "{}", said(&output));
    // What is begun anew is in the newest format.
    let new = Service::start_with(Options { database: None, ..Options::default() });
    assert!(new.entries().iter().all(|entry| entry["v"] == VERSION));
}

#[test]
fn a_journal_in_postgresql_is_upgraded_while_its_processes_run() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { clock: None, ..Options::on(directory.path()) }.in_database(&Database::new());
    let first = on_first_format(options.clone());
    let second = Service::start_with(options);
    let before = first.entries().len();
    first.open_fund("zj-ai-25", "330106", "1.00");
    let (done, told) = upgrade(&second);
    assert!(done, "{told}");
    for (service, region) in [(&first, "330203"), (&second, "330302")] {
        service.open_fund("zj-ai-25", region, "1.00");
    }
    let later = later(&first, before);
    let versions: Vec<_> = later.iter().map(|entry| entry["v"].as_u64().unwrap()).collect();
    assert_eq!(versions, [1, 2, 2, 2]);
    let digest = |service: &Service| service.operator().get("/digest").must_be(200);
    assert_eq!(digest(&first), digest(&second));
    first.must_verify();
}

also_on_postgres!(a_journal_is_continued_in_the_format_it_was_begun_in_until_that_is_raised);
