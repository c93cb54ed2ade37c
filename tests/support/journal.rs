//! An independent reading of the journal: the entries as anyone can read them, and what they add up to.

use std::collections::BTreeMap;

use serde_json::Value;
use subsidy_pos::journal::postgres::{Place, PostgresJournal};
use subsidy_pos::journal::sqlite::SqliteJournal;
use subsidy_pos::journal::{self, Journal};
use subsidy_pos::ledger::entry::{Algorithm, Entry, Event, Hash, Key};
use subsidy_pos::time::Timestamp;

use super::{Caller, instant};

/// A row of the journal as a regulator gets it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Counted from 1.
    pub position: u64,
    /// The SHA-256 of `entry` in hexadecimal digits.
    pub hash: String,
    /// The exact text.
    pub entry: String,
}

impl Row {
    /// The entry as JSON.
    pub fn parsed(&self) -> Value {
        serde_json::from_str(&self.entry).expect("an entry is JSON")
    }
}

/// The whole journal, page by page.
#[track_caller]
pub fn rows(regulator: &Caller) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |row| row.position);
        let page = regulator.get(&format!("/v1/journal?after={after}&limit=200")).must_be(200);
        let items = page["items"].as_array().expect("items");
        if items.is_empty() {
            return rows;
        }
        rows.extend(items.iter().map(|item| Row {
            position: item["position"].as_u64().expect("a position"),
            hash: item["hash"].as_str().expect("a hash").to_owned(),
            entry: item["entry"].as_str().expect("the exact text").to_owned(),
        }));
    }
}

/// Appends an entry in format `v` to the journal in a directory or a database, which is made where there is
/// none, as a program that knows no later format would.
#[track_caller]
pub fn enter(ledger: &str, v: u16, at: Timestamp, event: Event) {
    let mut journal: Box<dyn Journal> = if ledger.starts_with("postgres") {
        Box::new(PostgresJournal::open(&Place::parse(ledger).expect("a place")).expect("a journal"))
    } else {
        std::fs::create_dir_all(ledger).expect("a directory");
        Box::new(SqliteJournal::open(ledger.as_ref()).expect("a journal"))
    };
    let head = journal.head().expect("its head");
    let position = head.position + 1;
    let entry = Entry { v, position, alg: Algorithm::Sha256, prev: head.hash, at, event };
    let bytes = entry.to_bytes().expect("an entry");
    let row = journal::Row { position, hash: Hash::of(&bytes), entry: bytes.into() };
    journal.append(head, &[row]).expect("it is appended");
}

/// Begins a journal in the first format, in a directory or a database, before any test's time.
#[track_caller]
pub fn begin_in_first_format(ledger: &str) {
    let journal_id = Key::new(std::array::from_fn(|place| place as u8));
    enter(ledger, 1, instant("2026-01-01T00:00:00+08:00"), Event::JournalOpened { journal_id });
}

/// A claim as its entries tell it.
#[derive(Clone, Debug)]
pub struct Told {
    /// What the entry that made it says.
    pub made: Value,
    /// Its status.
    pub status: String,
    /// When it was made and last moved, in milliseconds.
    pub at_ms: (i64, i64),
    /// The position of its last entry.
    pub position: u64,
}

/// The money of a fund.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Money {
    /// Set aside.
    pub budget: i64,
    /// Reserved by live holds.
    pub held: i64,
    /// Due.
    pub redeemed: i64,
}

/// What a journal comes to.
#[derive(Debug, Default)]
pub struct Fold {
    /// By claim id.
    pub claims: BTreeMap<String, Told>,
    /// By fund id.
    pub funds: BTreeMap<String, Money>,
    /// Every movement of a claim: the entry's time, the claim's id, the status left and the one entered.
    pub moves: Vec<(i64, String, Option<String>, String)>,
}

impl Fold {
    /// Folds entries from the first on, checking at every position that no fund is overdrawn.
    #[track_caller]
    pub fn of(entries: &[Value]) -> Self {
        let mut fold = Self::default();
        for entry in entries {
            let at_ms = entry["at_ms"].as_i64().expect("a time");
            let position = entry["position"].as_u64().expect("a position");
            let (kind, event) = match &entry["event"] {
                Value::Object(event) => event.iter().next().expect("one kind"),
                other => panic!("{other} is an event"),
            };
            let text = |member: &str| event[member].as_str().unwrap_or_default().to_owned();
            match kind.as_str() {
                "fund_opened" => {
                    let budget = event["budget_fen"].as_i64().expect("a budget");
                    fold.funds.insert(text("fund_id"), Money { budget, ..Money::default() });
                }
                "fund_adjusted" => {
                    let fund = fold.funds.get_mut(&text("fund_id")).expect("a fund that was opened");
                    fund.budget += event["delta_fen"].as_i64().expect("a change");
                }
                "claim_made" => {
                    let told =
                        Told { made: event.clone(), status: text("status"), at_ms: (at_ms, at_ms), position };
                    let known = fold.claims.insert(text("claim_id"), told);
                    assert!(known.is_none(), "a claim is made once: {entry}");
                    fold.moves.push((at_ms, text("claim_id"), None, text("status")));
                }
                "claim_moved" => {
                    let claim = fold.claims.get_mut(&text("claim_id")).expect("a claim that was made");
                    assert_eq!(claim.status, text("from"), "{entry}");
                    claim.status = text("to");
                    claim.at_ms.1 = at_ms;
                    claim.position = position;
                    fold.moves.push((at_ms, text("claim_id"), Some(text("from")), text("to")));
                }
                _ => {}
            }
            if let Some(delta) = event.get("fund") {
                let fund = fold
                    .funds
                    .get_mut(delta["id"].as_str().expect("a fund"))
                    .expect("a fund that was opened");
                fund.held += delta["held_fen"].as_i64().unwrap_or(0);
                fund.redeemed += delta["redeemed_fen"].as_i64().unwrap_or(0);
                assert!(fund.held >= 0 && fund.redeemed >= 0, "{entry}");
                assert!(fund.held + fund.redeemed <= fund.budget, "overdrawn at {position}: {fund:?}");
            }
        }
        fold
    }

    /// How many claims have `status`.
    pub fn count(&self, status: &str) -> usize {
        self.claims.values().filter(|claim| claim.status == status).count()
    }
}

/// The day in Shanghai of a time in milliseconds.
pub fn day(at_ms: i64) -> String {
    Timestamp::from_ms(at_ms).to_string()[..10].to_owned()
}
