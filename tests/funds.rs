//! No fund below zero, and the right fund pays.

use crate::support::journal::Fold;
use crate::support::service::also_on_postgres;
use crate::support::service::fund_body;
use crate::support::{Caller, Service, Value, at_once, fen, fresh_key, json};

fn adjust(regulator: &Caller, fund: &str, delta: &str) -> crate::support::Answer {
    let body = json!({"delta": delta, "reason": "correction", "document_no": "ZC-2026-17"});
    regulator.post_under(&fresh_key(), &format!("/v1/funds/{fund}/adjust"), &body)
}

#[track_caller]
fn must_hold(fund: &Value, budget: &str, held: &str, redeemed: &str) {
    assert_eq!(
        (fund["budget"].as_str(), fund["held"].as_str(), fund["redeemed"].as_str()),
        (Some(budget), Some(held), Some(redeemed))
    );
    assert_eq!(fen(&fund["remaining"]), fen(&fund["budget"]) - fen(&fund["held"]) - fen(&fund["redeemed"]));
}

#[test]
fn a_fund_of_2000_yuan_under_forty_claims_of_2000_yuan_at_once_pays_one() {
    let service = Service::start();
    let till = service.retailer();
    let fund = service.open_fund("zj-ai-25", "330106", "2000.00");
    let sales: Vec<_> = (0..40).map(|_| service.sale().price("20000.00")).collect();
    let answers = at_once(40, |index| till.claim(&sales[index]));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        let refusal = answer.must_refuse("fund-exhausted");
        assert_eq!(refusal["alternatives"], json!([]), "the national programme ends at 6,000.00");
    }
    must_hold(&service.regulator().fund(&fund), "2000.00", "0.00", "2000.00");
    Fold::of(&service.entries());
}

#[test]
fn an_exhausted_fund_names_the_alternatives_and_the_till_may_take_one() {
    let service = Service::start();
    let till = service.retailer();
    let fund = service.open_fund("zj-ai-25", "330106", "599.99");
    let sale = service.sale();
    let key = fresh_key();
    let refusal = till.claim_under(&key, &sale).must_refuse("fund-exhausted");
    let alternative = json!([{"programme": "national-digital-2026", "subsidy": "500.00"}]);
    assert_eq!(refusal["alternatives"], alternative);
    must_hold(&service.regulator().fund(&fund), "599.99", "0.00", "0.00");
    // The refusal was not kept, so the same key may carry the other content.
    let claim = till.claim_under(&key, &sale.with("/accept_programme", "national-digital-2026")).must_be(201);
    assert_eq!(
        (&claim["programme"], &claim["subsidy"], &claim["payable"], &claim["fund_id"]),
        (
            &json!("national-digital-2026"),
            &json!("500.00"),
            &json!("3500.00"),
            &json!("national-digital-2026.330100")
        )
    );
    let exact = till.claimed(&service.sale().price("3999.99"));
    assert_eq!(
        (&exact["subsidy"], &exact["fund_id"]),
        (&json!("599.99"), &json!(fund)),
        "what just fits is paid"
    );
}

#[test]
fn the_most_specific_fund_pays_and_no_wider_one_steps_in() {
    let service = Service::start();
    let till = service.retailer();
    let paid_by =
        |region: &str| till.claimed(&service.sale().region(region))["fund_id"].as_str().unwrap().to_owned();
    assert_eq!(paid_by("330106"), "zj-ai-25.330100");
    assert_eq!(paid_by("330100"), "zj-ai-25.330100");
    let county = service.open_fund("zj-ai-25", "330106", "600.00");
    assert_eq!(paid_by("330106"), county);
    assert_eq!(paid_by("330108"), "zj-ai-25.330100");
    till.claim(&service.sale()).must_refuse("fund-exhausted");
    service.freeze(&county);
    till.claim(&service.sale()).must_refuse("fund-frozen");
    let province = service.open_fund("zj-ai-25", "330000", "10000.00");
    assert_eq!(paid_by("330000"), province);
    assert_eq!(paid_by("330200"), "zj-ai-25.330200");
    till.claim(&service.sale().region("110101").category("phone").price("3000.00"))
        .must_refuse("fund-not-open");
}

#[test]
fn a_fund_pays_for_sales_of_its_days_only() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let open = |id: &str, from: &str, to: &str| {
        let body = json!({"fund_id": id, "programme": "zj-ai-25", "region_code": "330106", "from": from, "to": to, "budget": "600.00"});
        regulator.post_under(&fresh_key(), "/v1/funds", &body).must_be(201);
    };
    open("until-yesterday", "2026-01-01", "2026-06-14");
    open("from-tomorrow", "2026-06-16", "2026-12-31");
    assert_eq!(till.claimed(&service.sale())["fund_id"], "zj-ai-25.330100");
    open("today", "2026-06-15", "2026-06-15");
    assert_eq!(till.claimed(&service.sale())["fund_id"], "today");
    let late =
        service.sale().with("/sold_at", "2026-06-14T23:59:59.999+08:00").with("/late_reason", "outage");
    assert_eq!(till.claimed(&late)["fund_id"], "until-yesterday");
}

#[test]
fn freezing_stops_new_claims_only() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "6000.00");
    let hold = till.claimed(&service.sale().held_with_device());
    let other = till.claimed(&service.sale().held());
    let sold = till.claimed(&service.sale());
    till.claim_under("lost", &service.sale()).must_be(201);
    must_hold(&regulator.fund(&fund), "6000.00", "1200.00", "1200.00");
    service.freeze(&fund);
    service.freeze(&fund);
    till.claim(&service.sale()).must_refuse("fund-frozen");
    till.redeem(&hold).must_be(200);
    till.release(&other).must_be(200);
    till.take_back(&sold).must_be(200);
    till.cancel("lost").must_be(200);
    must_hold(&regulator.fund(&fund), "6000.00", "0.00", "600.00");
    for _ in 0..2 {
        regulator.post(&format!("/v1/funds/{fund}/unfreeze"), &json!({})).must_be(200);
    }
    till.claimed(&service.sale());
    must_hold(&regulator.fund(&fund), "6000.00", "0.00", "1200.00");
}

#[test]
fn a_budget_never_falls_below_what_is_held_and_redeemed() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "2000.00");
    till.claimed(&service.sale());
    let hold = till.claimed(&service.sale().held());
    adjust(&regulator, &fund, "-800.01").must_refuse("fund-below-usage");
    adjust(&regulator, &fund, "-800.00").must_be(200);
    must_hold(&regulator.fund(&fund), "1200.00", "600.00", "600.00");
    till.claim(&service.sale()).must_refuse("fund-exhausted");
    till.release(&hold).must_be(200);
    adjust(&regulator, &fund, "-600.00").must_be(200);
    adjust(&regulator, &fund, "600.00").must_be(200);
    till.claimed(&service.sale());
    must_hold(&regulator.fund(&fund), "1200.00", "0.00", "1200.00");
    adjust(&regulator, "no-such-fund", "1.00").must_refuse("fund-not-found");
}

#[test]
fn claims_and_adjustments_at_once_never_overdraw_a_fund() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "3000.00");
    let sales: Vec<_> = (0..40).map(|_| service.sale()).collect();
    at_once(40, |index| {
        if index % 4 == 0 {
            adjust(&regulator, &fund, if index % 8 == 0 { "-600.00" } else { "600.00" }).status
        } else {
            till.claim(&sales[index]).status
        }
    });
    let fold = Fold::of(&service.entries());
    let told = fold.funds[&fund];
    let fund = regulator.fund(&fund);
    assert_eq!((fen(&fund["budget"]), fen(&fund["redeemed"])), (told.budget, told.redeemed));
}

#[test]
fn two_funds_of_one_programme_and_region_do_not_overlap() {
    let service = Service::start();
    let regulator = service.regulator();
    let open = |id: &str, programme: &str, region: &str, from: &str, to: &str| {
        let mut body = fund_body(id, programme, region, "100.00");
        body["from"] = from.into();
        body["to"] = to.into();
        regulator.post_under(&fresh_key(), "/v1/funds", &body)
    };
    open("a", "zj-ai-25", "330106", "2026-03-01", "2026-03-31").must_be(201);
    open("a", "zj-ai-25", "330108", "2026-03-01", "2026-03-31").must_refuse("fund-exists");
    for (from, to) in [
        ("2026-03-31", "2026-04-30"),
        ("2026-02-01", "2026-03-01"),
        ("2026-01-01", "2026-12-31"),
        ("2026-03-10", "2026-03-10"),
    ] {
        open("b", "zj-ai-25", "330106", from, to).must_refuse("fund-overlaps");
    }
    open("b", "zj-ai-25", "330106", "2026-04-01", "2026-04-30").must_be(201);
    open("c", "zj-ai-25", "330106", "2026-02-01", "2026-02-28").must_be(201);
    open("d", "national-digital-2026", "330106", "2026-03-01", "2026-03-31").must_be(201);
    open("e", "zj-ai-25", "330108", "2026-03-01", "2026-03-31").must_be(201);
    let answers = at_once(20, |index| {
        open(&format!("x{index}"), "zj-ai-25", "330110", "2026-03-01", "2026-03-31").status
    });
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), 1);
    for id in ["a", "b", "c", "d", "e"] {
        assert_eq!(regulator.fund(id)["budget"], "100.00");
    }
    let listed: Vec<_> = regulator.list("/v1/funds").iter().map(|fund| fund["fund_id"].clone()).collect();
    assert!(["a", "b", "c", "d", "e"].iter().all(|id| listed.contains(&json!(id))), "{listed:?}");
}

#[test]
fn malformed_funds_are_refused_with_every_fault() {
    let service = Service::start();
    let regulator = service.regulator();
    let open = |body: &Value| regulator.post_under(&fresh_key(), "/v1/funds", body);
    let bad = json!({"fund_id": "no spaces", "programme": "no-such-programme", "region_code": "33",
        "from": "2026-02-30", "to": "yesterday", "budget": 100, "colour": "red"});
    let pointers = open(&bad).pointers();
    for pointer in ["/fund_id", "/region_code", "/from", "/to", "/budget", "/colour"] {
        assert!(pointers.contains(&pointer.to_owned()), "{pointer} in {pointers:?}");
    }
    let with = |member: &str, value: &str| {
        let mut body = fund_body("fund", "zj-ai-25", "330106", "100.00");
        body[member] = value.into();
        body
    };
    open(&with("programme", "no-such-programme")).must_refuse("programme-not-applicable");
    assert_eq!(open(&with("from", "2027-01-01")).status, 400, "it would end before it begins");
    open(&with("region_code", "110000")).must_refuse("region-not-covered");
    assert_eq!(open(&with("budget", "-1.00")).status, 400);
    assert_eq!(open(&with("budget", "1.001")).status, 400);
    let fund = service.open_fund("zj-ai-25", "330106", "100.00");
    let path = format!("/v1/funds/{fund}/adjust");
    for (member, value) in [
        ("delta", json!("0.00")),
        ("delta", json!(5)),
        ("reason", json!("because")),
        ("document_no", json!("")),
    ] {
        let mut body = json!({"delta": "1.00", "reason": "tranche", "document_no": "D-1"});
        body[member] = value;
        let pointers = regulator.post_under(&fresh_key(), &path, &body).pointers();
        assert_eq!(pointers, [format!("/{member}")]);
    }
    regulator.post(&format!("/v1/funds/{fund}/freeze"), &json!({"why": "x"})).pointers();
    regulator.get("/v1/funds/no-such-fund").must_refuse("fund-not-found");
    regulator.post("/v1/funds/no-such-fund/freeze", &json!({})).must_refuse("fund-not-found");
}

also_on_postgres!(
    a_fund_of_2000_yuan_under_forty_claims_of_2000_yuan_at_once_pays_one,
    an_exhausted_fund_names_the_alternatives_and_the_till_may_take_one,
    the_most_specific_fund_pays_and_no_wider_one_steps_in,
    a_fund_pays_for_sales_of_its_days_only,
    freezing_stops_new_claims_only,
    a_budget_never_falls_below_what_is_held_and_redeemed,
    claims_and_adjustments_at_once_never_overdraw_a_fund,
    two_funds_of_one_programme_and_region_do_not_overlap,
);
