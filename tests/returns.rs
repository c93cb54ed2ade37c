//! The goods came back.

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

also_on_postgres!(a_return_gives_the_money_back_once, when_the_goods_came_back_is_not_compared_on_retry,);
