//! Journals of every version are kept, and fold for ever to what they always came to. See `golden/README.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use subsidy_pos::book::batch::Line;
use subsidy_pos::book::cube::Cube;
use subsidy_pos::book::projector::{Feed, advance};
use subsidy_pos::book::sqlite as book;
use subsidy_pos::http::wire::Claim;
use subsidy_pos::journal::{Head, Row};
use subsidy_pos::json::{BytesAs, write};
use subsidy_pos::ledger::entry::{Event, Hash, VERSION};
use subsidy_pos::ledger::state::State;
use subsidy_pos::ledger::state::image::Image;
use subsidy_pos::ledger::{ClaimView, Stored, writer};
use subsidy_pos::programme::ProgrammeHistory;
use subsidy_pos::verify::{Refolded, verify};

use crate::support::journal::{begin_in_first_format, enter, rows};
use crate::support::{JUNE_2026, Options, Service, Value, fresh_key, instant, json};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What an entry is, and of a claim's also where it goes. A new kind of entry does not compile until it is
/// named here, and then the golden journal of its version must have it.
fn kind(event: &Event) -> String {
    let kind = match event {
        Event::JournalOpened { .. } => KINDS[0],
        Event::HashKeyIntroduced { .. } => KINDS[1],
        Event::ProgrammesActivated { .. } => KINDS[2],
        Event::FundOpened(_) => KINDS[3],
        Event::FundAdjusted(_) => KINDS[4],
        Event::FundSwitched { .. } => KINDS[5],
        Event::KeySpent { .. } => KINDS[6],
        Event::FormatActivated { .. } => KINDS[7],
        Event::SnapshotTaken { .. } => KINDS[8],
        Event::ClaimMade(made) => return format!("claim_made {}", made.status.name()),
        Event::ClaimMoved(moved) => return format!("claim_moved {} {}", moved.from.name(), moved.to.name()),
    };
    kind.to_owned()
}

const KINDS: [&str; 17] = [
    "journal_opened",
    "hash_key_introduced",
    "programmes_activated",
    "fund_opened",
    "fund_adjusted",
    "fund_switched",
    "key_spent",
    "format_activated",
    "snapshot_taken",
    "claim_made held",
    "claim_made redeemed",
    "claim_moved held redeemed",
    "claim_moved held released",
    "claim_moved held expired",
    "claim_moved held cancelled",
    "claim_moved redeemed returned",
    "claim_moved redeemed cancelled",
];

/// A world in which every kind of entry is written: the rows of its journal.
fn world() -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let (data, now) = (directory.path().join("data"), instant(JUNE_2026));
    // All that follows is written in the newest format.
    begin_in_first_format(data.to_str().unwrap());
    enter(data.to_str().unwrap(), VERSION, now, Event::FormatActivated { version: VERSION });
    let mut service = Service::start_with(Options::on(&data));
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "20000.00");
    for (delta, reason) in [("5000.00", "tranche"), ("-100.01", "reclaim")] {
        let body = json!({"delta": delta, "reason": reason, "document_no": "浙财建〔2026〕12号"});
        regulator.post_under(&fresh_key(), &format!("/v1/funds/{fund}/adjust"), &body).must_be(200);
    }
    service.freeze(&fund);
    regulator.post(&format!("/v1/funds/{fund}/unfreeze"), &json!({})).must_be(200);

    let full = service
        .sale()
        .with_imei()
        .with("/trade_in", json!({"sn": "OLD-1", "value": "100.00"}))
        .with("/invoice_no", "24332000000012345678")
        .with("/store_code", "HZ-0012")
        .with("/terminal_no", "03")
        .with("/energy_grade", 1)
        .with("/order_line", 2)
        .with("/expected_subsidy", "600.00");
    let platform = service.platform().with("x-retailer", &till.subject);
    platform.claimed(&full);
    till.take_back(&till.claimed(&service.sale().category("refrigerator").with("/energy_grade", 1)))
        .must_be(200);
    till.claimed(&service.sale().category("phone").person("tw_travel_permit", "12345678").region("330200"));
    till.claimed(&service.sale().with("/accept_programme", "national-digital-2026"));

    let hold = till.claimed(&service.sale().held());
    let device = service.sale().with_imei().body["device"].clone();
    till.act(&hold, "redeem", &json!({"device": device, "invoice_no": "F-1"})).must_be(200);
    till.redeem(&till.claimed(&service.sale().held_with_device())).must_be(200);
    till.release(&till.claimed(&service.sale().held_with_device())).must_be(200);
    for sale in [service.sale(), service.sale().held()] {
        let key = fresh_key();
        till.claim_under(&key, &sale).must_be(201);
        till.cancel(&key).must_be(200);
    }
    till.cancel(&fresh_key()).must_be(200);
    let dying = till.claimed(&service.sale().held_with_device().with("/hold_minutes", 5));
    till.claimed(&service.sale().held().with("/hold_minutes", 60));
    service.restart_later(6 * 60_000);
    assert_eq!(till.look_at(&dying)["status"], "expired");
    till.claimed(&service.sale().with("/device", dying["device"].clone()));
    assert!(service.stop().success());
    let taken = Event::SnapshotTaken { position: 17, digest: Hash::of(b"a snapshot") };
    enter(data.to_str().unwrap(), VERSION, service.now(), taken);
    service.start_again();
    service.must_verify();
    rows(&regulator)
        .into_iter()
        .map(|row| json!({"position": row.position, "hash": row.hash, "entry": row.entry}))
        .collect()
}

fn parsed(lines: &str) -> Vec<Row> {
    lines
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("a row");
            Row {
                position: line["position"].as_u64().expect("a position"),
                hash: Hash::parse(line["hash"].as_str().expect("a hash")).expect("a hash"),
                entry: line["entry"].as_str().expect("the exact text").as_bytes().into(),
            }
        })
        .collect()
}

fn totals(cube: &Cube) -> Vec<String> {
    cube.cells()
        .map(|(cell, counters)| {
            let facets = &cell.facets;
            let counted = [counters.held, counters.redeemed, counters.returned, counters.cancelled];
            let counted: Vec<_> =
                counted.iter().map(|tally| format!("{} {}", tally.items, tally.money)).collect();
            format!(
                "{} {} {} {} {} {} {}: held {}, redeemed {}, returned {}, cancelled {}, sales {}",
                cell.day,
                cell.sale_day,
                facets.region_code.as_str(),
                facets.category,
                facets.retailer.as_str(),
                facets.programme,
                facets.fund,
                counted[0],
                counted[1],
                counted[2],
                counted[3],
                counters.sales
            )
        })
        .collect()
}

/// The book's totals, as the tables in SQL add them up.
fn booked(entries: &[Arc<Stored>]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("book.db");
    let (mut tables, _) = book::open(&file, Feed::new()).unwrap();
    let lines: Vec<_> = entries.iter().map(|stored| Line::of(stored)).collect();
    advance(&mut tables, Head::EMPTY, &lines, &mut || {}).unwrap();
    let (position, cube) = book::read_cube(&file).unwrap();
    assert_eq!(position, entries.len() as u64);
    totals(&cube)
}

/// Every claim as it is answered in the end, byte for byte, in the order of making.
fn answered(entries: &[Arc<Stored>], journal: &Refolded) -> Vec<String> {
    let made = entries.iter().filter_map(|stored| match &stored.entry.event {
        Event::ClaimMade(made) => Some(made.claim_id),
        _ => None,
    });
    made.map(|claim_id| {
        let of_claim = |stored: &&Arc<Stored>| match &stored.entry.event {
            Event::ClaimMade(made) => made.claim_id == claim_id,
            Event::ClaimMoved(moved) => moved.claim_id == claim_id,
            _ => false,
        };
        let own: Vec<_> = entries.iter().filter(of_claim).cloned().collect();
        let view = ClaimView::new(&own).expect("a claim");
        let claim = Claim::new(&view, journal.state().programmes()).expect("its programmes");
        let mut text = Vec::new();
        write(&mut text, BytesAs::Hex, &claim).unwrap();
        String::from_utf8(text).unwrap()
    })
    .collect()
}

/// What a journal comes to.
fn fold(rows: &[Row]) -> Value {
    let verified = verify(
        |after, limit| Ok(rows.iter().skip(after as usize).take(limit).cloned().collect()),
        None,
        None,
    )
    .expect("it verifies");
    let mut journal = Refolded::default();
    for row in rows {
        journal.fold(row).expect("it folds");
    }
    let entries: Vec<_> = rows.iter().map(|row| Arc::new(writer::stored(row).expect("an entry"))).collect();
    let booked = booked(&entries);
    assert_eq!(totals(journal.totals()), booked, "the fold and the tables add up the same");
    json!({
        "head": {"position": verified.head.position, "hash": verified.head.hash.to_string()},
        "digest": verified.digest.to_string(),
        "funds": verified.funds,
        "totals": booked,
        "claims": answered(&entries, &journal),
    })
}

/// From every position on, a state made of its image comes to what the whole journal does.
fn from_images(rows: &[Row]) {
    let image = |state: &State| {
        let mut image = Vec::new();
        let mut put = |piece: &[u8]| {
            image.extend_from_slice(piece);
            Ok(())
        };
        state.write_image(&mut put).expect("an image");
        image
    };
    let entries: Vec<Stored> = rows.iter().map(|row| writer::stored(row).expect("an entry")).collect();
    let fold = |state: &mut State, entries: &[Stored]| {
        for stored in entries {
            state.fold(&stored.entry, stored.hash, None).expect("it folds");
        }
    };
    let mut whole = State::default();
    fold(&mut whole, &entries);
    let mut before = State::default();
    for (count, stored) in (1..).zip(&entries) {
        fold(&mut before, std::slice::from_ref(stored));
        let bytes = image(&before);
        let made = Image::open(&*bytes, bytes.len() as u64)
            .and_then(|image| image.read(|_| Ok(ProgrammeHistory::clone(before.programmes()))));
        let (mut made, digest) = made.expect("a state");
        assert_eq!((made.digest(), digest), (before.digest(), Hash::of(&bytes)), "position {count}");
        fold(&mut made, &entries[count..]);
        assert_eq!(made.digest(), whole.digest(), "from position {count}");
        assert_eq!(image(&made), image(&whole), "from position {count}");
    }
}

#[test]
fn the_golden_journal_of_every_version_folds_to_what_it_always_came_to() {
    for version in 1..=VERSION {
        let lines = directory().join(format!("v{version}.jsonl"));
        let result = directory().join(format!("v{version}.json"));
        if !lines.exists() && version == VERSION && std::env::var("SUBSIDY_POS_GOLDEN").is_ok() {
            let written: Vec<_> = world().iter().map(Value::to_string).collect();
            std::fs::write(&lines, written.join("\n") + "\n").unwrap();
            let folded = fold(&parsed(&std::fs::read_to_string(&lines).unwrap()));
            std::fs::write(&result, format!("{folded:#}\n")).unwrap();
        }
        let missing = "is missing; tests/golden/README.md says how to add it";
        let rows =
            parsed(&std::fs::read_to_string(&lines).unwrap_or_else(|_| panic!("v{version}.jsonl {missing}")));
        let recorded =
            std::fs::read_to_string(&result).unwrap_or_else(|_| panic!("v{version}.json {missing}"));
        let recorded: Value = serde_json::from_str(&recorded).unwrap();
        for row in &rows {
            let stored: Stored = writer::stored(row).expect("an entry");
            assert_eq!(
                stored.entry.to_bytes().unwrap(),
                *row.entry,
                "version {version}: what is read is written in the same bytes"
            );
        }
        from_images(&rows);
        let folded = fold(&rows);
        for part in ["head", "digest", "funds", "totals", "claims"] {
            assert_eq!(folded[part], recorded[part], "version {version}: {part}");
        }
        if version == VERSION {
            let stored = rows.iter().map(|row| writer::stored(row).unwrap());
            let found: BTreeSet<_> = stored.map(|stored| kind(&stored.entry.event)).collect();
            assert_eq!(found, KINDS.into_iter().map(str::to_owned).collect(), "every kind of entry");
        }
    }
}
