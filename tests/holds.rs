//! Reserving a subsidy for a while.

use std::time::Duration;

use crate::support::identifiers::{barcode_of, fresh_imei};
use crate::support::service::also_on_postgres;
use crate::support::{Sale, Service, at_once, eventually, fen, instant, json};

#[test]
fn a_hold_reserves_money_and_is_redeemed_with_its_device() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "1000.00");
    let sale = service.sale();
    let device = sale.body["device"].clone();
    let hold = till.claimed(&sale.held());
    assert_eq!((&hold["status"], &hold["device"]), (&json!("held"), &json!(null)));
    let (created, until) =
        (instant(hold["created_at"].as_str().unwrap()), instant(hold["held_until"].as_str().unwrap()));
    assert_eq!(until.ms() - created.ms(), 30 * 60_000, "thirty minutes where none are named");
    assert_eq!(
        (fen(&regulator.fund(&fund)["held"]), fen(&regulator.fund(&fund)["remaining"])),
        (60_000, 40_000)
    );
    till.claim(&service.sale()).must_refuse("fund-exhausted");
    till.redeem(&hold).must_refuse("device-required");
    let body = json!({"device": device, "invoice_no": "2433200000001234"});
    let redeemed = till.act(&hold, "redeem", &body).must_be(200);
    assert_eq!((&redeemed["status"], &redeemed["subsidy"]), (&json!("redeemed"), &json!("600.00")));
    assert_eq!(redeemed["device"]["sn"], device["sn"]);
    assert_eq!((fen(&regulator.fund(&fund)["held"]), fen(&regulator.fund(&fund)["redeemed"])), (0, 60_000));
    assert_eq!(till.look_at(&hold), redeemed);
    // The same again, in full or in part, is the same; anything else is a conflict.
    assert_eq!(till.act(&hold, "redeem", &body).must_be(200), redeemed);
    assert_eq!(till.redeem(&hold).must_be(200), redeemed);
    till.act(&hold, "redeem", &json!({"device": service.sale().body["device"]}))
        .must_refuse("claim-state-conflict");
    till.act(&hold, "redeem", &json!({"invoice_no": "2433200000001235"})).must_refuse("claim-state-conflict");
    till.release(&hold).must_refuse("claim-state-conflict");
}

#[test]
fn twenty_redemptions_of_one_hold_at_once_redeem_it_once() {
    let service = Service::start();
    let till = service.retailer();
    let hold = till.claimed(&service.sale().held_with_device());
    let answers = at_once(20, |_| till.redeem(&hold).must_be(200));
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let moves = service.entries().iter().filter(|entry| entry["event"]["claim_moved"].is_object()).count();
    assert_eq!(moves, 1);
}

#[test]
fn redeeming_and_releasing_at_once_come_to_one_of_both() {
    let service = Service::start();
    let till = service.retailer();
    for _ in 0..20 {
        let hold = till.claimed(&service.sale().held_with_device());
        let answers = at_once(2, |index| if index == 0 { till.redeem(&hold) } else { till.release(&hold) });
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(won, 1, "{:?}", answers.iter().map(|answer| answer.text()).collect::<Vec<_>>());
        let end = till.look_at(&hold)["status"].clone();
        assert_eq!(end, if answers[0].status == 200 { "redeemed" } else { "released" });
    }
}

#[test]
fn a_hold_that_named_its_device_keeps_it() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale();
    let device = sale.body["device"].clone();
    let hold = till.claimed(&sale.held_with_device());
    till.act(&hold, "redeem", &json!({"device": service.sale().body["device"]}))
        .must_refuse("claim-state-conflict");
    assert_eq!(till.look_at(&hold)["status"], "held");
    till.act(&hold, "redeem", &json!({"device": device})).must_be(200);
}

#[test]
fn whatever_else_is_said_of_a_held_device_is_a_conflict_at_once() {
    let service = Service::start();
    let till = service.retailer();
    let (first, second) = (fresh_imei(), fresh_imei());
    let sale = service
        .sale()
        .with("/device/barcode", barcode_of(777, 1))
        .with("/device/imei", json!([first, second]))
        .with("/device/sn", fresh_imei());
    let hold = till.claimed(&sale.clone().held_with_device());
    let redeem = |sale: Sale| till.act(&hold, "redeem", &json!({"device": sale.body["device"]}));
    // The serial number names the device as an IMEI already.
    let with_its_sn = json!([first, second, sale.text("/device/sn")]);
    let others = [
        sale.clone().with("/device/barcode", barcode_of(777, 2)),
        sale.clone().with("/device/imei", with_its_sn),
        sale.clone().with("/device/imei", json!([first, second, fresh_imei()])),
        sale.clone().with("/device/imei", json!([first])),
        sale.clone().without("/device/imei"),
    ];
    for other in &others {
        for _ in 0..2 {
            redeem(other.clone()).must_refuse("claim-state-conflict");
        }
    }
    assert_eq!(till.look_at(&hold), hold, "a refusal changes nothing");
    service
        .retailer()
        .act(&hold, "redeem", &json!({"device": others[0].body["device"]}))
        .must_refuse("claim-not-found");
    let same = sale.with("/device/imei", json!([second, first]));
    let redeemed = redeem(same.clone()).must_be(200);
    assert_eq!((&redeemed["status"], &redeemed["device"]), (&json!("redeemed"), &hold["device"]));
    assert_eq!(redeem(same).must_be(200), redeemed);
    for other in others {
        redeem(other).must_refuse("claim-state-conflict");
    }
}

#[test]
fn the_invoice_of_the_redemption_takes_the_place_of_the_holds() {
    let service = Service::start();
    let till = service.retailer();
    let hold = till.claimed(&service.sale().held_with_device().with("/invoice_no", "F-1"));
    let redeem = |invoice_no: &str| till.act(&hold, "redeem", &json!({"invoice_no": invoice_no}));
    let redeemed = redeem("F-2").must_be(200);
    assert_eq!(redeem("F-2").must_be(200), redeemed);
    assert_eq!(till.redeem(&hold).must_be(200), redeemed);
    redeem("F-1").must_refuse("claim-state-conflict");
    let moved = service.entries().into_iter().find(|entry| entry["event"]["claim_moved"].is_object());
    assert_eq!(moved.unwrap()["event"]["claim_moved"]["invoice_no"], "F-2");
}

#[test]
fn a_device_sold_elsewhere_meanwhile_cannot_be_bound() {
    let service = Service::start();
    let till = service.retailer();
    let hold = till.claimed(&service.sale().held());
    let device = service.retailer().claimed(&service.sale())["device"].clone();
    till.act(&hold, "redeem", &json!({"device": device})).must_refuse("device-already-subsidised");
    assert_eq!(till.look_at(&hold)["status"], "held");
    till.act(&hold, "redeem", &json!({"device": service.sale().body["device"]})).must_be(200);
}

#[test]
fn giving_a_hold_back_can_be_repeated() {
    let service = Service::start();
    let till = service.retailer();
    let hold = till.claimed(&service.sale().held());
    let released = till.release(&hold).must_be(200);
    assert_eq!(released["status"], "released");
    assert_eq!(till.release(&hold).must_be(200), released);
    till.act(&hold, "redeem", &json!({"device": service.sale().body["device"]}))
        .must_refuse("claim-state-conflict");
    till.take_back(&hold).must_refuse("claim-state-conflict");
}

#[test]
fn a_hold_expires_when_its_time_is_over() {
    let mut service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "600.00");
    let hold = till.claimed(&service.sale().held_with_device().with("/hold_minutes", 10));
    service.restart_later(9 * 60_000);
    assert_eq!(till.look_at(&hold)["status"], "held");
    till.claim(&service.sale()).must_refuse("fund-exhausted");
    service.restart_later(2 * 60_000);
    // Whether its expiry was written yet or not, whoever needs the money gets it.
    let next = till.claimed(&service.sale().held());
    let expired = till.look_at(&hold);
    assert_eq!((&expired["status"], &expired["held_until"]), (&json!("expired"), &hold["held_until"]));
    assert_eq!(till.release(&hold).must_be(200), expired, "releasing an expired one is content with that");
    till.redeem(&hold).must_refuse("claim-state-conflict");
    till.release(&next).must_be(200);
    assert_eq!((fen(&regulator.fund(&fund)["held"]), fen(&regulator.fund(&fund)["redeemed"])), (0, 0));
}

#[test]
fn a_hold_expires_by_itself_while_nobody_asks() {
    let mut service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "600.00");
    let hold = till.claimed(&service.sale().held_with_device().with("/hold_minutes", 10));
    service.restart_at(instant(hold["held_until"].as_str().unwrap()).plus_ms(-4_000));
    assert_eq!(till.look_at(&hold)["status"], "held");
    let entries = eventually("the expiry is written", Duration::from_secs(20), || {
        let entries = service.entries();
        entries.iter().any(|entry| entry["event"]["claim_moved"]["to"] == "expired").then_some(entries)
    });
    let entry = entries.iter().find(|entry| entry["event"]["claim_moved"]["to"] == "expired").unwrap();
    let until = instant(hold["held_until"].as_str().unwrap()).ms();
    assert!(entry["at_ms"].as_i64().unwrap() >= until, "not before its time");
    assert_eq!(till.look_at(&hold)["status"], "expired");
    assert_eq!(fen(&regulator.fund(&fund)["held"]), 0);
}

#[test]
fn how_long_a_hold_may_last_is_bounded() {
    let service = Service::start();
    let till = service.retailer();
    let hold = |minutes: i64| service.sale().held().with("/hold_minutes", minutes);
    for minutes in [-1, 0, 15 * 24 * 60 + 1, 10_000_000] {
        assert_eq!(till.claim(&hold(minutes)).pointers(), ["/hold_minutes"]);
    }
    for minutes in [1, 15 * 24 * 60] {
        let claim = till.claimed(&hold(minutes));
        let lasts = instant(claim["held_until"].as_str().unwrap()).ms()
            - instant(claim["created_at"].as_str().unwrap()).ms();
        assert_eq!(lasts, minutes * 60_000);
    }
    assert_eq!(
        till.claim(&service.sale().with("/hold_minutes", 10)).pointers(),
        ["/hold_minutes"],
        "a redemption lasts"
    );
    assert_eq!(
        till.claim(&service.sale().without("/device")).pointers(),
        ["/device"],
        "a redemption has a device"
    );
}

#[test]
fn an_expired_hold_is_released_and_not_redeemed_in_the_same_moment_by_everyone() {
    let mut service = Service::start();
    let till = service.retailer();
    let id_number = crate::support::identifiers::fresh_resident_id();
    till.claimed(&service.sale().resident(&id_number).held().with("/hold_minutes", 5));
    service.restart_later(6 * 60_000);
    let sales: Vec<_> = (0..20).map(|_| service.sale().resident(&id_number)).collect();
    let answers = at_once(20, |index| till.claim(&sales[index]));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    service.must_verify();
}

also_on_postgres!(
    a_hold_reserves_money_and_is_redeemed_with_its_device,
    twenty_redemptions_of_one_hold_at_once_redeem_it_once,
    redeeming_and_releasing_at_once_come_to_one_of_both,
    a_hold_that_named_its_device_keeps_it,
    whatever_else_is_said_of_a_held_device_is_a_conflict_at_once,
    a_device_sold_elsewhere_meanwhile_cannot_be_bound,
    giving_a_hold_back_can_be_repeated,
    a_hold_expires_when_its_time_is_over,
    a_hold_expires_by_itself_while_nobody_asks,
    an_expired_hold_is_released_and_not_redeemed_in_the_same_moment_by_everyone,
);
