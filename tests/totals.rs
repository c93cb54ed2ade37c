//! Totals equal what the journal says.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use subsidy_pos::secrets::hex;

use crate::support::journal::{Fold, day};
use crate::support::service::also_on_postgres;
use crate::support::{Caller, Random, Sale, Service, Value, fen, json, yuan};

/// Items and money, by what is counted.
type Counts = BTreeMap<&'static str, (i64, i64)>;

/// The totals of a fold, grouped by `dimensions`, of moves on the days from `from` to `to`.
fn expected(
    fold: &Fold,
    dimensions: &[&str],
    basis: &str,
    days: (&str, &str),
) -> BTreeMap<Vec<String>, Counts> {
    let mut totals: BTreeMap<Vec<String>, Counts> = BTreeMap::new();
    for (at_ms, claim_id, from, to) in &fold.moves {
        let made = &fold.claims[claim_id].made;
        let of_sale = day(made["sale"]["sold_at_ms"].as_i64().unwrap());
        let counted = if basis == "sale" { of_sale } else { day(*at_ms) };
        if counted.as_str() < days.0 || counted.as_str() > days.1 {
            continue;
        }
        let group = dimensions
            .iter()
            .map(|dimension| match *dimension {
                "day" => counted.clone(),
                "city" => format!("{}00", &made["sale"]["region_code"].as_str().unwrap()[..4]),
                "category" => made["sale"]["category"].as_str().unwrap().to_owned(),
                "retailer" => made["retailer"].as_str().unwrap().to_owned(),
                "programme" => made["considered"][0]["programme"].as_str().unwrap().to_owned(),
                "fund" => made["fund"]["id"].as_str().unwrap().to_owned(),
                other => panic!("{other}"),
            })
            .collect();
        let subsidy = made["subsidy_fen"].as_i64().unwrap();
        let price = made["sale"]["price_fen"].as_i64().unwrap();
        let counts = totals.entry(group).or_default();
        let mut count = |what, sign: i64| {
            let (items, money) = counts.entry(what).or_default();
            *items += sign;
            *money += sign * if what == "sales" { price } else { subsidy };
        };
        match (from.as_deref(), to.as_str()) {
            (None, "held") => count("held", 1),
            (None, "redeemed") => {
                count("redeemed", 1);
                count("net", 1);
                count("sales", 1);
            }
            (Some("held"), "redeemed") => {
                count("held", -1);
                count("redeemed", 1);
                count("net", 1);
                count("sales", 1);
            }
            (Some("held"), _) => count("held", -1),
            (Some("redeemed"), ended) => {
                count(if ended == "returned" { "returned" } else { "cancelled" }, 1);
                count("net", -1);
                count("sales", -1);
            }
            other => panic!("{other:?}"),
        }
    }
    totals
}

#[track_caller]
fn compare(regulator: &Caller, fold: &Fold, dimensions: &[&str], basis: &str, days: Option<(&str, &str)>) {
    let mut query = format!("/v1/totals?basis={basis}");
    if !dimensions.is_empty() {
        query += &format!("&group_by={}", dimensions.join(","));
    }
    if let Some((from, to)) = days {
        query += &format!("&from={from}&to={to}");
    }
    let answer = regulator.get(&query).must_be(200);
    let expected = expected(fold, dimensions, basis, days.unwrap_or(("0", "9")));
    let mut told = BTreeMap::new();
    for row in answer["items"].as_array().expect("items") {
        let group: Vec<_> = dimensions
            .iter()
            .map(|dimension| row[*dimension].as_str().expect("a group").to_owned())
            .collect();
        let mut counts = Counts::new();
        for what in ["held", "redeemed", "returned", "cancelled", "net"] {
            counts.insert(what, (row[what]["items"].as_i64().expect("items"), fen(&row[what]["subsidy"])));
        }
        counts.insert("sales", (0, fen(&row["sales"])));
        assert!(told.insert(group, counts).is_none(), "one row for each group: {row}");
    }
    for (group, counts) in &expected {
        for what in ["held", "redeemed", "returned", "cancelled", "net", "sales"] {
            let (items, money) = counts.get(what).copied().unwrap_or_default();
            let row = told.get(group).unwrap_or_else(|| panic!("no row for {group:?} in {query}"));
            let (told_items, told_money) = row[what];
            assert_eq!(yuan(told_money), yuan(money), "{what} of {group:?} in {query}");
            assert!(
                what == "sales" || told_items == items,
                "{what} of {group:?} in {query}: {told_items}, not {items}"
            );
        }
    }
    let nothing = |counts: &Counts| counts.values().all(|count| *count == (0, 0));
    assert!(
        told.iter().all(|(group, counts)| expected.contains_key(group) || nothing(counts)),
        "{query}: {told:?}"
    );
}

#[test]
fn totals_equal_a_fold_of_the_journal_however_they_are_grouped() {
    let mut service = Service::start();
    let mut random = Random::seeded("totals");
    let tills = [service.retailer(), service.retailer(), service.retailer()];
    let mut claims: Vec<(usize, Value, String)> = Vec::new();
    for round in 0..3 {
        for _ in 0..60 {
            let till = random.below(3) as usize;
            let region = *random.pick(&["330106", "330108", "330206", "331002"]);
            let category = *random.pick(&["smart_glasses", "smart_bionic", "phone"]);
            let price = yuan(10_000 + i64::try_from(random.below(500_000)).unwrap());
            let mut sale = Sale::at(service.now()).region(region).category(category).price(&price);
            if random.chance(40) {
                sale = sale.held_with_device().with("/hold_minutes", *random.pick(&[10, 3000]));
            }
            let key = crate::support::fresh_key();
            let claim = tills[till].claim_under(&key, &sale).must_be(201);
            claims.push((till, claim, key));
            let (till, claim, key) = random.pick(&claims);
            match random.below(4) {
                0 => tills[*till].redeem(claim).status,
                1 => tills[*till].release(claim).status,
                2 => tills[*till].take_back(claim).status,
                _ => tills[*till].cancel(key).status,
            };
        }
        if round < 2 {
            service.restart_later(86_400_000);
        }
    }
    let regulator = service.regulator();
    let head = regulator.get("/v1/journal/head").must_be(200)["position"].as_u64().unwrap();
    let totals = regulator.get("/v1/totals").must_be(200);
    assert!(totals["as_of"].as_u64().unwrap() >= head, "totals show what was answered before");
    let fold = Fold::of(&service.entries());
    assert!(["returned", "released", "cancelled", "expired"].iter().all(|status| fold.count(status) > 0));
    for basis in ["day", "sale"] {
        for days in [
            None,
            Some(("2026-06-16", "2026-06-16")),
            Some(("2026-06-15", "2026-06-16")),
            Some(("2026-01-01", "2026-06-14")),
        ] {
            for dimensions in [
                vec![],
                vec!["day"],
                vec!["city"],
                vec!["category"],
                vec!["retailer"],
                vec!["programme"],
                vec!["fund"],
                vec!["day", "city"],
                vec!["category", "retailer", "programme"],
                vec!["day", "city", "category", "retailer", "programme", "fund"],
            ] {
                compare(&regulator, &fold, &dimensions, basis, days);
            }
        }
    }
    for (id, money) in &fold.funds {
        let fund = regulator.fund(id);
        assert_eq!(
            (fen(&fund["budget"]), fen(&fund["held"]), fen(&fund["redeemed"])),
            (money.budget, money.held, money.redeemed),
            "{id}"
        );
    }
    service.must_verify();
}

#[test]
fn a_regulator_of_some_regions_gets_the_totals_of_these() {
    let service = Service::start();
    let till = service.retailer();
    till.claimed(&service.sale().region("330106"));
    till.claimed(&service.sale().region("330206"));
    let limited = service.caller("regulator", "ningbo", &["--regions", "330200"]);
    let totals = limited.get("/v1/totals?group_by=city").must_be(200);
    let cities: Vec<_> = totals["items"].as_array().unwrap().iter().map(|row| row["city"].clone()).collect();
    assert_eq!(cities, [json!("330200")]);
    assert_eq!(limited.get("/v1/totals").must_be(200)["items"][0]["redeemed"]["items"], 1);
}

#[test]
fn malformed_questions_about_totals_are_refused() {
    let service = Service::start();
    let regulator = service.regulator();
    for bad in [
        "group_by=colour",
        "group_by=day,day",
        "basis=invoice",
        "from=yesterday",
        "from=2026-06-16&to=2026-06-15",
        "colour=red",
        "group_by=",
    ] {
        let answer = regulator.get(&format!("/v1/totals?{bad}"));
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
    }
}

#[test]
fn the_journal_can_be_read_and_checked_by_anyone_who_may() {
    let service = Service::start();
    let till = service.retailer();
    for _ in 0..5 {
        till.claimed(&service.sale());
    }
    let regulator = service.regulator();
    let rows = crate::support::journal::rows(&regulator);
    let mut before = vec![0; 32];
    for (index, row) in rows.iter().enumerate() {
        let entry = row.parsed();
        assert_eq!(row.position, index as u64 + 1);
        assert_eq!(entry["position"], row.position);
        assert_eq!(entry["prev"], BASE64URL.encode(before), "each names the hash of the one before");
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, row.entry.as_bytes());
        assert_eq!(row.hash, hex(hash.as_ref()), "which is that of its exact bytes");
        before = hash.as_ref().to_vec();
    }
    let head = regulator.get("/v1/journal/head").must_be(200);
    assert_eq!(
        (head["position"].as_u64(), head["hash"].as_str()),
        (Some(rows.len() as u64), Some(hex(&before).as_str()))
    );
    let page = regulator.get("/v1/journal?after=3&limit=2").must_be(200);
    let positions: Vec<_> =
        page["items"].as_array().unwrap().iter().map(|row| row["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [4, 5]);
    for bad in ["after=-1", "after=x", "limit=0", "limit=201"] {
        assert_eq!(regulator.get(&format!("/v1/journal?{bad}")).status, 400, "{bad}");
    }
}

also_on_postgres!(
    totals_equal_a_fold_of_the_journal_however_they_are_grouped,
    a_regulator_of_some_regions_gets_the_totals_of_these,
    the_journal_can_be_read_and_checked_by_anyone_who_may,
);
