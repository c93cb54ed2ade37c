//! The goods came back.

use crate::support::identifiers::fresh_resident_id;
use crate::support::programmes::{change, service_with};
use crate::support::service::also_on_postgres;
use crate::support::{Service, at_once, fen, json};

#[test]
fn a_return_gives_the_money_back_once() {
    let service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let fund = service.open_fund("zj-ai-25", "330106", "600.00");
    let claim = till.claimed(&service.sale());
    till.claim(&service.sale()).must_refuse("fund-exhausted");
    let answers = at_once(10, |_| till.take_back(&claim).must_be(200));
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer["status"] == "returned"));
    assert_eq!(fen(&regulator.fund(&fund)["redeemed"]), 0);
    till.claimed(&service.sale());
    assert_eq!(fen(&regulator.fund(&fund)["redeemed"]), 60_000);
}

#[test]
fn when_the_goods_came_back_is_not_compared_on_retry() {
    let service = Service::start();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    let back = |reason: &str, at: i64| {
        let returned_at = service.now().plus_ms(at).to_string();
        till.act(&claim, "return", &json!({"reason": reason, "returned_at": returned_at}))
    };
    let first = back("defective", 0).must_be(200);
    assert_eq!(back("defective", 60_000).must_be(200), first);
    back("unwanted", 0).must_refuse("claim-state-conflict");
    till.redeem(&claim).must_refuse("claim-state-conflict");
    till.release(&claim).must_refuse("claim-state-conflict");
}

#[test]
fn goods_come_back_neither_before_they_were_sold_nor_from_the_future() {
    let service = Service::start();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    let sold_at = crate::support::instant(claim["sold_at"].as_str().unwrap());
    for at in [sold_at.plus_ms(-1), service.now().plus_ms(6 * 60_000)] {
        let answer = till.act(&claim, "return", &json!({"reason": "other", "returned_at": at.to_string()}));
        assert_eq!(answer.pointers(), ["/returned_at"]);
    }
    let answer = till.act(&claim, "return", &json!({"reason": "tired of it"}));
    assert_eq!(answer.pointers(), ["/reason", "/returned_at"]);
    assert_eq!(till.look_at(&claim)["status"], "redeemed");
    let soon = service.now().plus_ms(4 * 60_000).to_string();
    till.act(&claim, "return", &json!({"reason": "wrong_item", "returned_at": soon})).must_be(200);
}

#[test]
fn a_return_is_possible_long_after_programme_and_fund_have_closed() {
    let mut service = Service::start();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    let fund = claim["fund_id"].as_str().unwrap().to_owned();
    service.freeze(&fund);
    let before = fen(&service.regulator().fund(&fund)["redeemed"]);
    service.restart_at(crate::support::instant("2028-03-01T10:00:00+08:00"));
    let body = json!({"reason": "defective", "returned_at": service.now().to_string()});
    till.act(&claim, "return", &body).must_be(200);
    assert_eq!(fen(&service.regulator().fund(&fund)["redeemed"]), before - 60_000);
}

#[test]
fn a_programme_may_keep_the_entitlement_used_up_when_the_goods_come_back() {
    let (mut service, _directory) = service_with(|programmes| {
        change(&programmes.join("zj-ai-25.toml"), "\"restored\"", "\"consumed\"");
    });
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let sale = |service: &Service| service.sale().resident(&id_number);
    let sold = sale(&service);
    let claim = till.claimed(&sold);
    let fund = claim["fund_id"].as_str().unwrap();
    assert_eq!(fen(&service.regulator().fund(fund)["redeemed"]), 60_000);
    till.take_back(&claim).must_be(200);
    assert_eq!(fen(&service.regulator().fund(fund)["redeemed"]), 0, "the money is back");
    let other_programme =
        |service: &Service| sale(service).with("/accept_programme", "national-digital-2026");
    let still_refused = |service: &Service| {
        till.claim(&sale(service)).must_refuse("consumer-limit-reached");
        till.claim(&other_programme(service)).must_refuse("consumer-limit-reached");
    };
    still_refused(&service);
    till.claimed(&sale(&service).category("smart_bionic"));
    // The device and the order line are free for somebody else.
    let freed = sold.another().with("/device", sold.body["device"].clone());
    till.claimed(&freed.with("/order_no", sold.text("/order_no")));
    service.restart();
    still_refused(&service);
    service.must_verify();

    // The programme that was claimed under decides, not the one that is claimed under next.
    let other = fresh_resident_id();
    let national = service.sale().resident(&other).with("/accept_programme", "national-digital-2026");
    till.take_back(&till.claimed(&national)).must_be(200);
    till.claim_under("to-be-cancelled", &service.sale().resident(&other)).must_be(201);
    assert_eq!(till.cancel("to-be-cancelled").must_be(200)["outcome"], "cancelled");
    till.claimed(&service.sale().resident(&other));
}

also_on_postgres!(
    a_return_gives_the_money_back_once,
    when_the_goods_came_back_is_not_compared_on_retry,
    a_programme_may_keep_the_entitlement_used_up_when_the_goods_come_back,
);
