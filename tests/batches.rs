//! Many claims in one request.

use crate::support::service::also_on_postgres;
use crate::support::{Caller, Sale, Service, Value, fresh_key, json};

fn item(key: &str, sale: &Sale) -> Value {
    json!({"idempotency_key": key, "claim": sale.body})
}

#[track_caller]
fn results(caller: &Caller, items: &[Value]) -> Vec<Value> {
    let answer = caller.post("/v1/claims/batch", &json!({"items": items})).must_be(200);
    let results = answer["results"].as_array().expect("results").clone();
    assert_eq!(results.len(), items.len(), "one result for each item");
    results
}

#[test]
fn five_hundred_claims_are_made_in_order() {
    let service = Service::start();
    let till = service.retailer();
    let sales: Vec<_> = (0..500).map(|_| service.sale()).collect();
    let items: Vec<_> =
        sales.iter().enumerate().map(|(index, sale)| item(&format!("b-{index}"), sale)).collect();
    let made = results(&till, &items);
    for (result, sale) in made.iter().zip(&sales) {
        assert_eq!((&result["status"], &result["replayed"]), (&json!(201), &json!(false)), "{result}");
        assert_eq!(result["claim"]["order_no"], sale.body["order_no"]);
    }
    let again = results(&till, &items);
    for (first, second) in made.iter().zip(&again) {
        assert_eq!(
            (&second["status"], &second["replayed"], &second["claim"]),
            (&json!(201), &json!(true), &first["claim"])
        );
    }
    let single = till.claim_under("b-7", &sales[7]);
    assert_eq!(
        (single.is_replay(), &single.json()),
        (true, &made[7]["claim"]),
        "the keys are the same as single ones"
    );
    assert_eq!(
        service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count(),
        500
    );
}

#[test]
fn an_item_that_shows_another_subsidy_is_told_what_is_right_as_a_single_claim_is() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale().with("/expected_subsidy", "1.00");
    let alone = till.claim(&sale);
    alone.must_refuse("subsidy-differs");
    let determination = &alone.json()["determination"];
    assert_eq!(determination["considered"][0]["amount"], "600.00", "{determination}");
    let results = results(&till, &[item(&fresh_key(), &sale)]);
    assert_eq!(&results[0]["problem"]["determination"], determination);
}

#[test]
fn every_item_stands_on_its_own() {
    let service = Service::start();
    let till = service.retailer();
    let known = fresh_key();
    let earlier = service.sale();
    till.claim_under(&known, &earlier).must_be(201);
    let good = service.sale();
    let items = [
        item(&fresh_key(), &good),
        item(&fresh_key(), &service.sale().price("abc")),
        item(&fresh_key(), &service.sale().category("toaster")),
        item(&known, &earlier),
        item(&known, &service.sale()),
        item(&fresh_key(), &service.sale().with("/device", good.body["device"].clone())),
        item("not visible", &service.sale()),
        item(&fresh_key(), &service.sale()),
    ];
    let results = results(&till, &items);
    let told: Vec<_> = results
        .iter()
        .map(|result| (result["status"].as_u64().unwrap(), result["problem"]["code"].as_str().unwrap_or("")))
        .collect();
    let expected = [
        (201, ""),
        (400, "invalid-request"),
        (422, "category-not-eligible"),
        (201, ""),
        (422, "idempotency-key-reused"),
        (409, "device-already-subsidised"),
        (400, "idempotency-key-invalid"),
        (201, ""),
    ];
    assert_eq!(told, expected);
    assert_eq!(results[3]["replayed"], true);
    for result in &results {
        assert!(
            result["claim"].is_object() != result["problem"].is_object(),
            "a claim or a problem: {result}"
        );
    }
}

#[test]
fn twins_within_a_batch_replay() {
    let service = Service::start();
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let other = service.sale().resident(sale.text("/consumer/id_number"));
    let results = results(
        &till,
        &[item(&key, &sale), item(&key, &sale), item(&fresh_key(), &other), item(&key, &other)],
    );
    assert_eq!((&results[0]["replayed"], &results[1]["replayed"]), (&json!(false), &json!(true)));
    assert_eq!(results[0]["claim"], results[1]["claim"]);
    assert_eq!(results[2]["problem"]["code"], "consumer-limit-reached");
    assert_eq!(results[3]["problem"]["code"], "idempotency-key-reused");
}

#[test]
fn a_malformed_envelope_is_refused_whole() {
    let service = Service::start();
    let till = service.retailer();
    let many: Vec<_> = (0..501).map(|index| item(&format!("m-{index}"), &service.sale())).collect();
    let good = item(&fresh_key(), &service.sale());
    for bad in [
        json!({}),
        json!([]),
        json!({"items": []}),
        json!({"items": many}),
        json!({"items": [good], "atomic": true}),
        json!({"items": {"0": good}}),
        json!({"items": [good, 7]}),
        json!({"items": [good, {"idempotency_key": "k"}]}),
    ] {
        let answer = till.post("/v1/claims/batch", &bad);
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid-request"), "{}", answer.text());
    }
    assert!(till.list("/v1/claims").is_empty(), "nothing of them was done");
}

also_on_postgres!(
    five_hundred_claims_are_made_in_order,
    every_item_stands_on_its_own,
    twins_within_a_batch_replay,
);
