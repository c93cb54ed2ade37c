//! Same key, same answer.

use crate::support::service::also_on_postgres;
use crate::support::{Answer, Sale, Service, Value, at_once, fresh_key, instant, json};

#[test]
fn fifty_identical_posts_at_once_make_one_claim_and_every_retry_gets_its_bytes() {
    let service = Service::start();
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let answers = at_once(50, |_| till.claim_under(&key, &sale));
    let creating: Vec<_> =
        answers.iter().filter(|answer| answer.status == 201 && !answer.is_replay()).collect();
    assert_eq!(creating.len(), 1, "one post makes the claim");
    for answer in &answers {
        match answer.status {
            201 => assert_eq!(answer.text(), creating[0].text()),
            _ => {
                answer.must_refuse("request-in-progress");
            }
        }
    }
    for _ in 0..5 {
        let retry = till.claim_under(&key, &sale);
        assert!(retry.is_replay(), "a retry says that it is one");
        assert_eq!((retry.status, retry.text()), (201, creating[0].text()));
    }
    assert!(!creating[0].is_replay());
    let claims = till.list(&format!("/v1/claims?order_no={}", sale.text("/order_no")));
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count(), 1);
}

#[test]
fn a_key_used_with_other_content_is_refused_and_changes_nothing() {
    let service = Service::start();
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let first = till.claim_under(&key, &sale);
    first.must_be(201);
    for other in [
        sale.clone().price("4000.01"),
        sale.clone().held_with_device(),
        sale.clone().with("/order_line", 2),
        sale.clone().with("/sold_at", service.now().plus_ms(-60_000).to_string()),
        sale.clone().with("/store_code", "HZ-1"),
        sale.clone().with("/invoice_no", "24332000000012345678"),
        sale.clone().with("/expected_subsidy", "600.00"),
        sale.clone().with("/accept_programme", "zj-ai-25"),
        sale.clone().with_imei(),
        sale.another(),
    ] {
        till.claim_under(&key, &other).must_refuse("idempotency-key-reused");
    }
    assert_eq!(till.claim_under(&key, &sale).text(), first.text(), "the key still stands for its claim");
}

#[test]
fn content_is_compared_by_its_meaning() {
    let service = Service::start();
    let till = service.retailer();
    let sold_at = instant("2026-06-15T09:58:00+08:00");
    let sale = Sale::at(sold_at).resident("11010519491231002X").with(
        "/device",
        json!({"sn": "RG2-8812-00417", "barcode": "6901234567892", "imei": ["490154203237518"]}),
    );
    let key = fresh_key();
    let first = till.claim_under(&key, &sale);
    first.must_be(201);
    let same = [
        sale.clone().price("4000"),
        sale.clone().price("4000.0"),
        sale.clone().with("/sold_at", "2026-06-15T01:58:00Z"),
        sale.clone().with("/sold_at", "2026-06-15T03:58:00.000+02:00"),
        sale.clone().with("/order_line", 1),
        sale.clone().with("/order_line", Value::Null).with("/store_code", Value::Null),
        sale.clone().resident("110105491231002"),
        sale.clone().resident(" 11010519491231002x "),
        sale.clone().with("/device/barcode", "06901234567892"),
        sale.clone().with("/device/sn", " rg2-8812-00417 "),
        sale.clone().with("/device/sn", "ＲＧ２－８８１２－００４１７"),
        sale.clone().with("/received_elsewhere", Value::Null),
    ];
    for (index, other) in same.iter().enumerate() {
        let answer = till.claim_under(&key, other);
        assert_eq!((answer.status, answer.text()), (201, first.text()), "spelling {index}");
        assert!(answer.is_replay(), "spelling {index}");
    }
    let members = sale.body.as_object().unwrap();
    let backwards: Vec<_> =
        members.iter().rev().map(|(name, value)| format!("  \"{name}\" :\n {value}")).collect();
    let body = format!("{{{}}}", backwards.join(","));
    let headers = [("content-type", "application/json; charset=utf-8"), ("idempotency-key", key.as_str())];
    let answer = till.send("POST", "/v1/claims", &headers, Some(body.as_bytes()));
    assert_eq!(answer.text(), first.text(), "member order and white space do not matter");
}

#[test]
fn a_key_may_be_quoted_as_a_structured_field() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale();
    let first = till.claim_under("till-3 0007", &sale);
    // A space is not visible; the same characters without it are a key.
    first.must_refuse("idempotency-key-invalid");
    let first = till.claim_under("till-3.0007", &sale);
    first.must_be(201);
    let quoted = till.claim_under("\"till-3.0007\"", &sale);
    assert_eq!((quoted.is_replay(), quoted.text()), (true, first.text()));
}

#[test]
fn a_post_that_is_not_idempotent_by_itself_needs_a_good_key() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale();
    till.post("/v1/claims", &sale.body).must_refuse("idempotency-key-missing");
    for bad in ["", " ", "\"\"", "\"open", &"k".repeat(256)] {
        let answer = till.claim_under(bad, &sale);
        assert_eq!(answer.status, 400, "{bad:?}: {}", answer.text());
        assert!(
            ["idempotency-key-invalid", "idempotency-key-missing"].contains(&answer.code().as_str()),
            "{bad:?}"
        );
    }
    till.claim_under(&"k".repeat(255), &sale).must_be(201);
    let fund = json!({"fund_id": "f-1", "programme": "zj-ai-25", "region_code": "330106", "from": "2026-01-01",
        "to": "2026-12-31", "budget": "1.00"});
    service.regulator().post("/v1/funds", &fund).must_refuse("idempotency-key-missing");
    let change = json!({"delta": "1.00", "reason": "tranche", "document_no": "D-1"});
    let path = "/v1/funds/zj-ai-25.330100/adjust";
    service.regulator().post(path, &change).must_refuse("idempotency-key-missing");
}

#[test]
fn keys_belong_to_a_retailer_and_to_who_speaks_for_it() {
    let service = Service::start();
    let (one, other) = (service.retailer(), service.retailer());
    let key = fresh_key();
    let sale = service.sale();
    let first = one.claim_under(&key, &sale).must_be(201);
    let second = other.claim_under(&key, &sale.another()).must_be(201);
    assert_ne!(first["claim_id"], second["claim_id"], "another retailer's key is another key");
    let platform = service.platform().with("x-retailer", &one.subject);
    let third = platform.claim_under(&key, &sale.another()).must_be(201);
    assert_ne!(third["claim_id"], first["claim_id"], "a platform's key is another than its retailer's own");
    let fourth =
        platform.clone().with("x-retailer", &other.subject).claim_under(&key, &sale.another()).must_be(201);
    assert_ne!(fourth["claim_id"], third["claim_id"], "and another for every retailer it speaks for");
    let rival = service.platform().with("x-retailer", &one.subject);
    let fifth = rival.claim_under(&key, &sale.another()).must_be(201);
    assert_ne!(fifth["claim_id"], third["claim_id"], "and than another platform's");
}

#[test]
fn a_replay_is_the_creating_answer_whatever_has_become_of_the_claim() {
    let mut service = Service::start();
    let till = service.retailer();
    let key = fresh_key();
    let sale = service.sale().held_with_device();
    let first = till.claim_under(&key, &sale);
    let claim = first.must_be(201);
    let check = |till: &crate::support::Caller, when: &str| {
        let again = till.claim_under(&key, &sale);
        assert_eq!((again.status, again.is_replay(), again.text()), (201, true, first.text()), "{when}");
    };
    check(&till, "while it is held");
    till.redeem(&claim).must_be(200);
    check(&till, "when it is redeemed");
    till.take_back(&claim).must_be(200);
    check(&till, "when it is returned");
    service.restart();
    check(&till, "after a restart");
    service.kill();
    service.start_again();
    check(&till, "after a crash");
    service.restart_at(instant("2028-02-01T10:00:00+08:00"));
    check(&till, "when no programme is in force and the sale is long past");
    assert_eq!(till.look_at(&claim)["status"], "returned", "the claim itself has moved on");
}

#[test]
fn a_refusal_is_not_kept_so_the_key_may_be_tried_again() {
    let service = Service::start();
    let till = service.retailer();
    let fund = service.open_fund("zj-ai-25", "330106", "1000000.00");
    service.freeze(&fund);
    let (key, sale) = (fresh_key(), service.sale());
    till.claim_under(&key, &sale).must_refuse("fund-frozen");
    till.claim_under(&key, &sale.clone().price("0.01")).must_refuse("price-not-eligible");
    service.regulator().post(&format!("/v1/funds/{fund}/unfreeze"), &json!({})).must_be(200);
    let answer = till.claim_under(&key, &sale);
    answer.must_be(201);
    assert!(!answer.is_replay());
}

#[test]
fn the_key_of_a_released_hold_is_free_again_after_thirty_days() {
    let mut service = Service::start();
    let till = service.retailer();
    let key = fresh_key();
    let sale = service.sale().held();
    let first = till.claim_under(&key, &sale);
    till.release(&first.must_be(201)).must_be(200);
    service.restart_later(29 * 86_400_000);
    assert_eq!(till.claim_under(&key, &sale).text(), first.text(), "29 days on it is remembered");
    service.restart_later(2 * 86_400_000);
    let fresh = service.sale();
    let answer = till.claim_under(&key, &fresh);
    assert_ne!(answer.must_be(201)["claim_id"], first.json()["claim_id"], "31 days on it stands for nothing");
}

#[test]
fn the_key_of_a_redeemed_claim_is_remembered_for_ever() {
    let mut service = Service::start();
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let first = till.claim_under(&key, &sale);
    first.must_be(201);
    service.restart_later(400 * 86_400_000);
    let again = till.claim_under(&key, &sale);
    assert_eq!((again.is_replay(), again.text()), (true, first.text()));
}

#[test]
fn opening_and_adjusting_a_fund_twice_under_one_key_does_it_once() {
    let service = Service::start();
    let regulator = service.regulator();
    let replay = |first: &Answer, again: &Answer| {
        assert_eq!((again.status, again.is_replay(), again.text()), (first.status, true, first.text()));
    };
    let fund = |budget: &str| {
        json!({"fund_id": "county", "programme": "zj-ai-25", "region_code": "330106", "from": "2026-01-01",
            "to": "2026-12-31", "budget": budget})
    };
    let opened = regulator.post_under("open", "/v1/funds", &fund("100.00"));
    opened.must_be(201);
    let adjust = |key: &str, delta: &str| {
        let body = json!({"delta": delta, "reason": "tranche", "document_no": "ZC-2026-1"});
        regulator.post_under(key, "/v1/funds/county/adjust", &body)
    };
    let adjusted = adjust("more", "50.00");
    adjusted.must_be(200);
    replay(&adjusted, &adjust("more", "50.0"));
    replay(&opened, &regulator.post_under("open", "/v1/funds", &fund("100")));
    adjust("more", "51.00").must_refuse("idempotency-key-reused");
    regulator.post_under("open", "/v1/funds", &fund("101.00")).must_refuse("idempotency-key-reused");
    assert_eq!(regulator.fund("county")["budget"], "150.00");
    adjust("yet-more", "25.00").must_be(200);
    replay(&adjusted, &adjust("more", "50.00"));
    assert_eq!(regulator.fund("county")["budget"], "175.00");
}

#[test]
fn forty_adjustments_at_once_under_one_key_are_made_once() {
    let service = Service::start();
    let fund = service.open_fund("zj-ai-25", "330106", "100.00");
    let regulator = service.regulator();
    let body = json!({"delta": "10.00", "reason": "tranche", "document_no": "ZC-2026-1"});
    let answers = at_once(40, |_| regulator.post_under("once", &format!("/v1/funds/{fund}/adjust"), &body));
    let made = answers.iter().filter(|answer| answer.status == 200 && !answer.is_replay()).count();
    assert_eq!(made, 1);
    assert_eq!(regulator.fund(&fund)["budget"], "110.00");
}

also_on_postgres!(
    fifty_identical_posts_at_once_make_one_claim_and_every_retry_gets_its_bytes,
    a_key_used_with_other_content_is_refused_and_changes_nothing,
    content_is_compared_by_its_meaning,
    keys_belong_to_a_retailer_and_to_who_speaks_for_it,
    a_replay_is_the_creating_answer_whatever_has_become_of_the_claim,
    a_refusal_is_not_kept_so_the_key_may_be_tried_again,
    the_key_of_a_released_hold_is_free_again_after_thirty_days,
    the_key_of_a_redeemed_claim_is_remembered_for_ever,
    opening_and_adjusting_a_fund_twice_under_one_key_does_it_once,
    forty_adjustments_at_once_under_one_key_are_made_once,
);
