//! Whoever changes the journal is found out.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use rusqlite::types::Value as Cell;
use rusqlite::{Connection, params};

use crate::support::service::{find_file, said, verify};
use crate::support::{Service, eventually, json};

/// A stopped service with some history, and a claim's position in the middle of it.
fn history() -> (Service, u64) {
    let mut service = Service::start();
    let till = service.retailer();
    let mut middle = 0;
    for round in 0..12 {
        let claim = till.claimed(&service.sale());
        if round % 3 == 0 {
            till.take_back(&claim).must_be(200);
        }
        if round == 5 {
            middle = claim["journal"]["position"].as_u64().unwrap();
        }
    }
    assert!(service.stop().success());
    service.must_verify();
    (service, middle)
}

/// The journal's table, open for a change that its owner would never make.
pub fn open(data: &Path) -> Connection {
    let connection = Connection::open(data.join("journal.db")).unwrap();
    let triggers: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for trigger in triggers {
        connection.execute(&format!("DROP TRIGGER \"{trigger}\""), []).unwrap();
    }
    connection
}

/// Hash and bytes of a row.
pub fn row(connection: &Connection, position: u64) -> (Cell, Cell) {
    let query = "SELECT hash, entry FROM journal WHERE position = ?";
    connection.query_row(query, [position as i64], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// Puts other hash and bytes in a row.
pub fn set(connection: &Connection, position: u64, (hash, entry): &(Cell, Cell)) {
    let changed = connection.execute(
        "UPDATE journal SET hash = ?, entry = ? WHERE position = ?",
        params![hash, entry, position as i64],
    );
    assert_eq!(changed.unwrap(), 1);
}

fn last(connection: &Connection) -> u64 {
    connection.query_row("SELECT max(position) FROM journal", [], |row| row.get::<_, i64>(0)).unwrap() as u64
}

/// An entry's text.
pub fn text(entry: &Cell) -> String {
    match entry {
        Cell::Text(text) => text.clone(),
        Cell::Blob(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A cell of `bytes`, of the kind of `cell`.
pub fn like(cell: &Cell, bytes: Vec<u8>) -> Cell {
    if matches!(cell, Cell::Text(_)) {
        Cell::Text(String::from_utf8_lossy(&bytes).into_owned())
    } else {
        Cell::Blob(bytes)
    }
}

fn hash(entry: &str, like_this: &Cell) -> Cell {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, entry.as_bytes());
    match like_this {
        Cell::Text(_) => Cell::Text(hex(digest.as_ref())),
        _ => Cell::Blob(digest.as_ref().to_vec()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `verify` must fail with exit code 1 and name `position` as the first bad one.
#[track_caller]
fn must_name(service: &Service, position: u64, more: &[&str]) {
    let output = verify(service.data(), more);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let numbers: Vec<_> =
        told.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<u64>().ok()).collect();
    assert!(told.contains(&format!("position {position}")), "position {position} in: {told}");
    assert!(numbers.contains(&position), "{told}");
    assert!(!told.contains("panicked"), "{told}");
}

#[test]
fn one_changed_byte_is_found_wherever_it_is() {
    let (service, middle) = history();
    let connection = open(service.data());
    for position in [1, 2, middle, last(&connection)] {
        let good = row(&connection, position);
        let bytes = text(&good.1).into_bytes();
        for place in [0, 1, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            let mut bent = bytes.clone();
            bent[place] ^= 1;
            set(&connection, position, &(good.0.clone(), like(&good.1, bent)));
            must_name(&service, position, &[]);
        }
        let bent = match &good.0 {
            Cell::Blob(bytes) => {
                let mut bytes = bytes.clone();
                bytes[7] ^= 0x10;
                Cell::Blob(bytes)
            }
            Cell::Text(text) => {
                let first = if text.starts_with('0') { '1' } else { '0' };
                Cell::Text(format!("{first}{}", &text[1..]))
            }
            other => panic!("{other:?}"),
        };
        set(&connection, position, &(bent, good.1.clone()));
        must_name(&service, position, &[]);
        set(&connection, position, &good);
    }
    service.must_verify();
}

#[test]
fn a_byte_changed_with_its_hash_made_to_fit_is_found_at_the_next_entry_at_the_latest() {
    let (service, middle) = history();
    let connection = open(service.data());
    let (old_hash, old_entry) = row(&connection, middle);
    let forged = text(&old_entry).replacen("\"price_fen\":400000", "\"price_fen\":400001", 1);
    assert_ne!(forged, text(&old_entry));
    let forged_hash = hash(&forged, &old_hash);
    set(&connection, middle, &(forged_hash, like(&old_entry, forged.into_bytes())));
    let output = verify(service.data(), &[]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        [middle, middle + 1].iter().any(|position| told.contains(&format!("position {position}"))),
        "{told}"
    );
}

#[test]
fn a_missing_row_is_found() {
    let (service, middle) = history();
    let connection = open(service.data());
    connection.execute("DELETE FROM journal WHERE position = ?", [middle as i64]).unwrap();
    must_name(&service, middle, &[]);
    // Closing the gap does not help.
    connection
        .execute("UPDATE journal SET position = -position WHERE position > ?", [middle as i64])
        .unwrap();
    connection.execute("UPDATE journal SET position = -position - 1 WHERE position < 0", []).unwrap();
    must_name(&service, middle, &[]);
}

#[test]
fn two_rows_in_each_others_place_are_found() {
    let (service, middle) = history();
    let connection = open(service.data());
    for (one, other) in [(middle, middle + 1), (middle, last(&connection)), (1, 2)] {
        let rows = (row(&connection, one), row(&connection, other));
        set(&connection, one, &rows.1);
        set(&connection, other, &rows.0);
        must_name(&service, one, &[]);
        set(&connection, one, &rows.0);
        set(&connection, other, &rows.1);
    }
    service.must_verify();
}

#[test]
fn a_row_put_in_between_is_found() {
    let (service, middle) = history();
    let connection = open(service.data());
    let copy = row(&connection, middle - 1);
    connection
        .execute("UPDATE journal SET position = -position WHERE position >= ?", [middle as i64])
        .unwrap();
    connection.execute("UPDATE journal SET position = -position + 1 WHERE position < 0", []).unwrap();
    connection
        .execute(
            "INSERT INTO journal (position, hash, entry) VALUES (?, ?, ?)",
            params![middle as i64, copy.0, copy.1],
        )
        .unwrap();
    must_name(&service, middle, &[]);
}

#[test]
fn a_row_put_before_the_first_is_found() {
    for position in [0, -3] {
        let (service, middle) = history();
        let connection = open(service.data());
        let copy = row(&connection, middle);
        connection
            .execute(
                "INSERT INTO journal (position, hash, entry) VALUES (?, ?, ?)",
                params![position, copy.0, copy.1],
            )
            .unwrap();
        must_name(&service, 1, &[]);
    }
}

#[test]
fn a_row_added_at_the_end_is_found() {
    let (service, _) = history();
    let connection = open(service.data());
    let end = last(&connection);
    let copy = row(&connection, end);
    connection
        .execute(
            "INSERT INTO journal (position, hash, entry) VALUES (?, ?, ?)",
            params![end as i64 + 1, copy.0, copy.1],
        )
        .unwrap();
    must_name(&service, end + 1, &[]);
}

#[test]
fn a_service_does_not_start_on_a_journal_that_was_changed() {
    let (mut service, middle) = history();
    {
        let connection = open(service.data());
        let good = row(&connection, middle);
        let bent = text(&good.1).replacen("smart_glasses", "smart_grasses", 1);
        set(&connection, middle, &(good.0.clone(), like(&good.1, bent.into_bytes())));
    }
    let Err(exit) = service.try_start_again() else { panic!("it started") };
    assert!(
        exit.output.contains(&middle.to_string()) && !exit.output.contains("panicked"),
        "{}",
        exit.output
    );
}

/// The signed head that the running service gives, and the key to check it with.
fn signed_head(service: &Service, to: &Path) -> (String, String, u64) {
    let regulator = service.regulator();
    let head = eventually("a signed head", std::time::Duration::from_secs(10), || {
        let answer = regulator.get("/v1/journal/head");
        (answer.status == 200).then(|| answer.json())
    });
    let file = to.join("kept-elsewhere.json");
    std::fs::write(&file, head.to_string()).unwrap();
    let key = find_file(service.data(), |name| name == "dev-head-public.pem");
    let kept = to.join("public.pem");
    std::fs::copy(key, &kept).unwrap();
    (file.to_str().unwrap().to_owned(), kept.to_str().unwrap().to_owned(), head["position"].as_u64().unwrap())
}

#[test]
fn a_cut_tail_and_a_rewritten_one_are_found_against_a_signed_head() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut service = Service::start();
    let till = service.retailer();
    for _ in 0..10 {
        till.claimed(&service.sale());
    }
    let (head, key, position) = signed_head(&service, elsewhere.path());
    for _ in 0..3 {
        till.claimed(&service.sale());
    }
    assert!(service.stop().success());
    let against = ["--head", head.as_str(), "--public-key", key.as_str()];
    assert!(service.verify(&against).status.success(), "{}", said(&service.verify(&against)));
    for file in crate::support::service::files_below(service.data()) {
        // Without its book nothing but the head tells.
        if file.file_name().unwrap().to_string_lossy().starts_with("book.db") {
            std::fs::remove_file(file).unwrap();
        }
    }
    let connection = open(service.data());
    // What came after the signed head may be cut off unseen by it; the head itself may not.
    connection.execute("DELETE FROM journal WHERE position > ?", [position as i64]).unwrap();
    assert!(service.verify(&against).status.success());
    connection.execute("DELETE FROM journal WHERE position > ?", [position as i64 - 2]).unwrap();
    assert!(service.verify(&[]).status.success(), "the chain alone cannot tell");
    must_name(&service, position - 1, &against);
    let forged = json!({"position": position - 2, "hash": "00"}).to_string();
    std::fs::write(&head, forged).unwrap();
    assert_eq!(verify(service.data(), &against).status.code(), Some(1));
}

/// Rewrites the claim at `from` and every row after it, with every hash made to fit.
pub fn forge_from(connection: &Connection, from: u64) {
    let mut before: Option<(String, String)> = None;
    for position in from..=last(connection) {
        let (old_hash, old_entry) = row(connection, position);
        let old = text(&old_entry);
        let mut new = match &before {
            None => old.replacen("\"sale_channel\":\"offline\"", "\"sale_channel\":\"online\"", 1),
            Some((was, is)) => old.replacen(was, is, 1),
        };
        assert_ne!(new, old, "position {position} is rewritten");
        // As the next entry names it.
        let named = |hash: &Cell| match hash {
            Cell::Blob(bytes) => BASE64URL.encode(bytes),
            other => panic!("{other:?}"),
        };
        let new_hash = hash(&new, &old_hash);
        let (old_name, new_name) = (named(&old_hash), named(&new_hash));
        set(connection, position, &(new_hash, like(&old_entry, std::mem::take(&mut new).into_bytes())));
        before = Some((old_name, new_name));
    }
}

#[test]
fn a_tail_rewritten_with_every_hash_made_to_fit_is_found_against_a_signed_head() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut service = Service::start();
    let till = service.retailer();
    for _ in 0..10 {
        till.claimed(&service.sale());
    }
    let claim = till.claimed(&service.sale());
    for _ in 0..5 {
        till.claimed(&service.sale());
    }
    let (head, key, _) = signed_head(&service, elsewhere.path());
    assert!(service.stop().success());
    let connection = open(service.data());
    let from = claim["journal"]["position"].as_u64().unwrap();
    forge_from(&connection, from);
    assert!(service.verify(&[]).status.success(), "the forgery fits: {}", said(&service.verify(&[])));
    let output = service.verify(&["--head", &head, "--public-key", &key]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}
