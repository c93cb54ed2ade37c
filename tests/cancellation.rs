//! The reversal for a lost answer.

use crate::support::service::also_on_postgres;
use crate::support::{Service, at_once, fen, fresh_key, json};

#[test]
fn a_claim_cancelled_after_it_was_made_is_as_if_it_had_never_been() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "600.00");
    for held in [false, true] {
        let sale = if held { service.sale().held_with_device() } else { service.sale() };
        let sale = sale.with("/trade_in", json!({"sn": format!("old-{held}"), "value": "1.00"}));
        let key = fresh_key();
        let claim = till.claim_under(&key, &sale).must_be(201);
        let answer = till.cancel(&key).must_be(200);
        assert_eq!((&answer["idempotency_key"], &answer["outcome"]), (&json!(key), &json!("cancelled")));
        assert_eq!(
            (&answer["claim"]["claim_id"], &answer["claim"]["status"]),
            (&claim["claim_id"], &json!("cancelled"))
        );
        assert_eq!(till.cancel(&key).must_be(200), answer, "the same again when repeated");
        assert_eq!(till.look_at(&claim)["status"], "cancelled", "it stays readable");
        assert_eq!((fen(&regulator.fund(&fund)["held"]), fen(&regulator.fund(&fund)["redeemed"])), (0, 0));
        till.claim_under(&key, &sale).must_refuse("cancelled");
        till.claim_under(&key, &service.sale()).must_refuse("idempotency-key-reused");
        till.redeem(&claim).must_refuse("claim-state-conflict");
        // Fund, device, old device, person and order line are free again.
        let again = till.claimed(&sale);
        if held {
            till.release(&again).must_be(200);
        } else {
            till.take_back(&again).must_be(200);
        }
    }
}

#[test]
fn a_key_cancelled_before_its_claim_refuses_the_late_original() {
    let mut service = Service::start();
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let answer = till.cancel(&key).must_be(200);
    assert_eq!((&answer["outcome"], &answer["claim"]), (&json!("key_spent"), &json!(null)));
    till.claim_under(&key, &sale).must_refuse("cancelled-before-arrival");
    assert_eq!(till.cancel(&key).must_be(200), answer, "the same again when repeated");
    till.claimed(&sale);
    service.restart_later(29 * 86_400_000);
    till.claim_under(&key, &service.sale()).must_refuse("cancelled-before-arrival");
    service.restart_later(2 * 86_400_000);
    till.claim_under(&key, &service.sale()).must_be(201);
}

#[test]
fn a_cancel_that_meets_its_claim_in_flight_is_decided_after_or_before_it_but_never_half() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "1000000.00");
    for _ in 0..50 {
        let (key, sale) = (fresh_key(), service.sale());
        let answers =
            at_once(2, |index| if index == 0 { till.claim_under(&key, &sale) } else { till.cancel(&key) });
        let outcome = answers[1].must_be(200)["outcome"].as_str().unwrap().to_owned();
        match outcome.as_str() {
            "cancelled" => {
                let claim = answers[0].must_be(201);
                assert_eq!(till.look_at(&claim)["status"], "cancelled");
                till.claim_under(&key, &sale).must_refuse("cancelled");
            }
            "key_spent" => {
                answers[0].must_refuse("cancelled-before-arrival");
            }
            other => panic!("{other}"),
        }
        till.claimed(&sale.clone().with("/mode", "hold"));
    }
    assert_eq!(fen(&regulator.fund(&fund)["redeemed"]), 0);
    assert_eq!(fen(&regulator.fund(&fund)["held"]), 50 * 60_000);
}

#[test]
fn there_is_nothing_to_cancel_of_a_claim_that_has_ended() {
    let mut service = Service::start();
    let till = service.retailer();
    let now = service.now();
    let make = |key: &str, minutes: Option<u32>| {
        let sale = crate::support::Sale::at(now);
        let sale = minutes.map_or(sale.clone(), |minutes| sale.held().with("/hold_minutes", minutes));
        till.claim_under(key, &sale).must_be(201)
    };
    till.release(&make("released", Some(30))).must_be(200);
    till.take_back(&make("returned", None)).must_be(200);
    make("expired", Some(5));
    service.restart_later(6 * 60_000);
    for state in ["released", "returned", "expired"] {
        let answer = till.cancel(state).must_be(200);
        assert_eq!(
            (&answer["outcome"], &answer["claim"]["status"]),
            (&json!("nothing_to_cancel"), &json!(state))
        );
        assert_eq!(till.cancel(state).must_be(200), answer);
    }
}

#[test]
fn a_claim_can_be_cancelled_for_a_day() {
    let mut service = Service::start();
    let till = service.retailer();
    let (early, late, held) = (fresh_key(), fresh_key(), fresh_key());
    till.claim_under(&early, &service.sale()).must_be(201);
    let claim = till.claim_under(&late, &service.sale()).must_be(201);
    till.claim_under(&held, &service.sale().held().with("/hold_minutes", 3 * 24 * 60)).must_be(201);
    service.restart_later(23 * 3_600_000);
    assert_eq!(till.cancel(&early).must_be(200)["outcome"], "cancelled");
    service.restart_later(2 * 3_600_000);
    till.cancel(&late).must_refuse("claim-state-conflict");
    till.take_back(&claim).must_be(200);
    assert_eq!(till.cancel(&late).must_be(200)["outcome"], "nothing_to_cancel");
    assert_eq!(till.cancel(&early).must_be(200)["outcome"], "cancelled", "the same answer, a day later");
}

#[test]
fn a_hold_that_was_redeemed_is_cancelled_by_the_key_it_was_made_with() {
    let service = Service::start();
    let till = service.retailer();
    let key = fresh_key();
    let hold = till.claim_under(&key, &service.sale().held_with_device()).must_be(201);
    till.redeem(&hold).must_be(200);
    assert_eq!(till.cancel(&key).must_be(200)["claim"]["status"], "cancelled");
}

#[test]
fn only_the_one_who_used_a_key_cancels_what_it_stands_for() {
    let service = Service::start();
    let (till, other) = (service.retailer(), service.retailer());
    let key = fresh_key();
    let claim = till.claim_under(&key, &service.sale()).must_be(201);
    assert_eq!(other.cancel(&key).must_be(200)["outcome"], "key_spent");
    let platform = service.platform().with("x-retailer", &till.subject);
    assert_eq!(platform.cancel(&key).must_be(200)["outcome"], "key_spent");
    assert_eq!(till.look_at(&claim)["status"], "redeemed");
    assert_eq!(till.cancel(&key).must_be(200)["outcome"], "cancelled");
}

#[test]
fn a_malformed_key_is_named() {
    let service = Service::start();
    let till = service.retailer();
    for bad in [
        json!({}),
        json!({"idempotency_key": ""}),
        json!({"idempotency_key": 7}),
        json!({"idempotency_key": "a b"}),
    ] {
        assert_eq!(till.post("/v1/claims/cancel", &bad).pointers(), ["/idempotency_key"], "{bad}");
    }
}

also_on_postgres!(
    a_claim_cancelled_after_it_was_made_is_as_if_it_had_never_been,
    a_key_cancelled_before_its_claim_refuses_the_late_original,
    a_cancel_that_meets_its_claim_in_flight_is_decided_after_or_before_it_but_never_half,
    there_is_nothing_to_cancel_of_a_claim_that_has_ended,
    a_claim_can_be_cancelled_for_a_day,
    a_hold_that_was_redeemed_is_cancelled_by_the_key_it_was_made_with,
    only_the_one_who_used_a_key_cancels_what_it_stands_for,
);
