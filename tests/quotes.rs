//! What a claim would get, without making it.

use crate::support::programmes::{change, service_with};
use crate::support::{Caller, Sale, Service, Value, fresh_key, json};

/// What a till may ask before the sale: the same members as a claim.
fn quote(caller: &Caller, sale: &Sale) -> Value {
    caller.post("/v1/quotes", &sale.body).must_be(200)
}

fn short(category: &str, price: &str, sold_at: &str) -> Value {
    json!({"category": category, "price": price, "region_code": "330106", "sold_at": sold_at})
}

#[test]
fn glasses_in_2026_are_paid_by_measure_25_at_every_price() {
    let service = Service::start();
    let till = service.retailer();
    for (price, subsidy, national) in [
        ("1999.00", "299.85", Some(("299.85", "tie"))),
        ("3333.39", "500.00", Some(("500.00", "tie"))),
        ("3333.40", "500.01", Some(("500.00", "lower"))),
        ("4000.00", "600.00", Some(("500.00", "lower"))),
        ("6000.00", "900.00", Some(("500.00", "lower"))),
        ("6000.01", "900.00", None),
        ("9000.00", "1350.00", None),
        ("13333.33", "1999.99", None),
        ("13333.34", "2000.00", None),
        ("20000.00", "2000.00", None),
    ] {
        let answer =
            till.post("/v1/quotes", &short("smart_glasses", price, "2026-03-01T12:00:00+08:00")).must_be(200);
        assert_eq!(
            (&answer["eligible"], &answer["subsidy"], &answer["programme"], &answer["refusal"]),
            (&json!(true), &json!(subsidy), &json!("zj-ai-25"), &json!(null)),
            "{price}"
        );
        let considered = answer["determination"]["considered"].as_array().unwrap();
        assert_eq!(
            (&considered[0]["programme"], &considered[0]["chosen"]),
            (&json!("zj-ai-25"), &json!(true))
        );
        let other = considered
            .iter()
            .find(|one| one["programme"] == "national-digital-2026")
            .expect("the national one is considered");
        assert_eq!(other["chosen"], false);
        assert!(other["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{other}");
        match national {
            Some((amount, reason)) => {
                assert_eq!(other["amount"], amount, "{price}");
                if reason == "lower" {
                    assert_eq!(other["reason"], "lower", "{price}");
                } else {
                    assert_ne!(other["reason"], "lower", "{price}");
                }
            }
            None => assert_eq!(other["amount"], "0.00", "above the ceiling: {other}"),
        }
        // The claim gets what the quote says.
        assert_eq!(
            till.claimed(&service.sale().price(price).with("/expected_subsidy", subsidy))["subsidy"],
            subsidy
        );
    }
}

#[test]
fn the_published_cases_come_out_to_the_fen() {
    let service = Service::start();
    let till = service.retailer();
    // The service's day is one of 2026; somebody has opened the money of 2025.
    let fund = json!({"fund_id": "of-2025", "programme": "national-digital-2025", "region_code": "330100",
        "from": "2025-01-20", "to": "2025-12-31", "budget": "1000000.00"});
    service.regulator().post_under("of-2025", "/v1/funds", &fund).must_be(201);
    let ask = |category: &str, price: &str, grade: Option<u8>, sold_at: &str| {
        let mut body = short(category, price, sold_at);
        if let Some(grade) = grade {
            body["energy_grade"] = grade.into();
        }
        till.post("/v1/quotes", &body).must_be(200)
    };
    let pays =
        |category: &str, price: &str, grade: Option<u8>, sold_at: &str, subsidy: &str, programme: Value| {
            let answer = ask(category, price, grade, sold_at);
            assert_eq!(
                (&answer["subsidy"], &answer["programme"]),
                (&json!(subsidy), &programme),
                "{category} {price} {sold_at}"
            );
            answer
        };
    let (digital_2025, digital_2026) = (json!("national-digital-2025"), json!("national-digital-2026"));
    pays("phone", "4999.00", None, "2025-06-01T12:00:00+08:00", "500.00", digital_2025.clone());
    pays("phone", "6000.00", None, "2025-06-01T12:00:00+08:00", "500.00", digital_2025.clone());
    let refused = pays("phone", "6999.00", None, "2025-06-01T12:00:00+08:00", "0.00", json!(null));
    assert_eq!(
        (&refused["eligible"], &refused["refusal"]["code"]),
        (&json!(false), &json!("price-not-eligible"))
    );
    pays(
        "computer",
        "4599.00",
        Some(1),
        "2026-06-01T12:00:00+08:00",
        "689.85",
        json!("national-appliances-2026"),
    );
    pays(
        "computer",
        "24999.00",
        Some(1),
        "2026-06-01T12:00:00+08:00",
        "1500.00",
        json!("national-appliances-2026"),
    );
    // The first and the last instant in force.
    pays("smart_bionic", "9000.00", None, "2025-05-31T00:00:00+08:00", "1350.00", json!("zj-ai-25"));
    pays("smart_bionic", "9000.00", None, "2027-12-31T23:59:59.999+08:00", "1350.00", json!("zj-ai-25"));
    pays("smart_bionic", "9000.00", None, "2025-05-30T23:59:59.999+08:00", "0.00", json!(null));
    pays("smart_bionic", "9000.00", None, "2028-01-01T00:00:00+08:00", "0.00", json!(null));
    pays("phone", "1000.00", None, "2025-01-20T00:00:00+08:00", "150.00", digital_2025.clone());
    pays("phone", "1000.00", None, "2025-01-19T23:59:59.999+08:00", "0.00", json!(null));
    pays("phone", "1000.00", None, "2025-12-31T23:59:59.999+08:00", "150.00", digital_2025);
    pays("phone", "1000.00", None, "2025-12-31T16:00:00Z", "150.00", digital_2026);
}

#[test]
fn a_quote_tells_every_refusal_that_the_claim_would_get() {
    let service = Service::start();
    let till = service.retailer();
    let frozen = service.open_fund("zj-ai-25", "330108", "1000.00");
    service.freeze(&frozen);
    service.open_fund("zj-ai-25", "330110", "1.00");
    let taken = service.sale().with_imei().with("/trade_in", json!({"sn": "OLD-1", "value": "100.00"}));
    till.claimed(&taken);
    let part = |pointer: &str| taken.body.pointer(pointer).unwrap().clone();
    let spoiled = [
        service.sale().category("toaster"),
        service.sale().with("/accept_programme", "national-appliances-2026"),
        service.sale().category("smart_bionic").region("110101"),
        service.sale().category("phone").price("6000.01"),
        service.sale().price("0.06"),
        service.sale().category("refrigerator").with("/energy_grade", 2),
        service.sale().with("/received_elsewhere", json!([{"programme": "x", "amount": "1.00"}])),
        service.sale().with("/order_no", part("/order_no")),
        service.sale().with("/device", part("/device")),
        service.sale().with("/trade_in", part("/trade_in")),
        service.sale().with("/consumer", part("/consumer")),
        service.sale().region("330000"),
        service.sale().region("330108"),
        service.sale().region("330110"),
        service.sale().with("/expected_subsidy", "1.00"),
    ];
    let before = service.entries().len();
    for sale in &spoiled {
        let quoted = quote(&till, sale);
        let refused = till.claim(sale);
        assert_eq!(quoted["refusal"]["code"], json!(refused.code()), "{}", refused.text());
        assert_eq!(
            (&quoted["eligible"], &quoted["subsidy"], &quoted["programme"]),
            (&json!(false), &json!("0.00"), &json!(null))
        );
        let members =
            ["code", "status", "title", "detail", "clause", "remedy", "alternatives", "determination"];
        for member in members {
            assert_eq!(quoted["refusal"][member], refused.json()[member], "{member} of {}", refused.code());
        }
    }
    assert_eq!(service.entries().len(), before, "nothing was changed");
}

#[test]
fn a_quote_counts_only_what_it_is_given_and_changes_nothing() {
    let service = Service::start();
    let till = service.retailer();
    let taken = service.sale();
    till.claimed(&taken);
    let now = service.now().to_string();
    assert_eq!(
        till.post("/v1/quotes", &short("smart_glasses", "4000.00", &now)).must_be(200)["eligible"],
        true
    );
    let sale = service.sale();
    let first = quote(&till, &sale);
    assert_eq!(
        (&first["eligible"], &first["subsidy"], &first["payable"]),
        (&json!(true), &json!("600.00"), &json!("3400.00"))
    );
    for _ in 0..3 {
        assert_eq!(quote(&till, &sale), first);
    }
    till.claim_under(&fresh_key(), &sale).must_be(201);
    assert_eq!(quote(&till, &sale)["refusal"]["code"], "order-line-already-claimed");
    // The window of `sold_at` does not count; the programmes in force then do.
    assert_eq!(quote(&till, &service.sale().with("/sold_at", "2027-08-01T10:00:00+08:00"))["eligible"], true);
    let faults = till.post("/v1/quotes", &json!({"category": 1, "price": 2, "colour": 3})).pointers();
    assert_eq!(faults, ["/category", "/colour", "/price", "/region_code", "/sold_at"]);
}

#[test]
fn a_programme_may_deduct_what_the_old_device_was_worth() {
    let (service, _directory) = service_with(|programmes| {
        change(&programmes.join("zj-ai-25.toml"), "\"not_deducted\"", "\"deducted\"");
    });
    let till = service.retailer();
    let traded = |sn: &str, value: &str| {
        let trade_in = json!({"sn": sn, "value": value});
        service.sale().category("smart_bionic").with("/trade_in", trade_in)
    };
    let sale = traded("OLD-1", "1000.01");
    let quoted = quote(&till, &sale);
    let claim = till.claimed(&sale.clone().with("/expected_subsidy", "449.99"));
    for answer in [&quoted, &claim] {
        assert_eq!((&answer["subsidy"], &answer["payable"]), (&json!("449.99"), &json!("3550.01")));
        let [considered] = &answer["determination"]["considered"].as_array().unwrap()[..] else {
            panic!("{answer}")
        };
        assert_eq!(
            (&considered["price_base"], &considered["computed"], &considered["amount"]),
            (&json!("2999.99"), &json!("449.99"), &json!("449.99"))
        );
    }
    assert_eq!(claim["determination"], quoted["determination"]);
    assert_eq!(till.look_at(&claim), claim);
    till.claim(&traded("OLD-1", "1.00")).must_refuse("trade-in-already-used");
    // Where nothing is left to pay for, nothing is paid.
    let worth_more = traded("OLD-2", "4000.01");
    till.claim(&worth_more).must_refuse("price-not-eligible");
    assert_eq!(quote(&till, &worth_more)["refusal"]["code"], "price-not-eligible");
    // Another programme, which does not deduct it, pays more than measure 25 does.
    let glasses = till.claimed(&traded("OLD-3", "1000.00").category("smart_glasses"));
    assert_eq!(
        (&glasses["programme"], &glasses["subsidy"]),
        (&json!("national-digital-2026"), &json!("500.00"))
    );
    service.must_verify();
}
