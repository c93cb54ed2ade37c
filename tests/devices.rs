//! One device, one live claim.

use crate::support::identifiers::{barcode_of, fresh_imei, fresh_number, full_width};
use crate::support::service::also_on_postgres;
use crate::support::{Service, at_once, json};

const TAKEN: &str = "device-already-subsidised";

#[test]
fn fifty_claims_for_one_device_pay_once() {
    let service = Service::start();
    let till = service.retailer();
    let device = service.sale().with_imei().body["device"].clone();
    let sales: Vec<_> = (0..50).map(|_| service.sale().with("/device", device.clone())).collect();
    let answers = at_once(50, |index| till.claim(&sales[index]));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        answer.must_refuse(TAKEN);
    }
}

#[test]
fn all_spellings_of_one_serial_number_are_one_device() {
    let service = Service::start();
    let till = service.retailer();
    let sale =
        |sn: &str| service.sale().with("/device", json!({"sn": sn, "barcode": "6901234567892", "imei": []}));
    let claim = till.claimed(&sale("rg2-8812-00417a"));
    assert_eq!(claim["device"]["sn"], "RG2-8812-00417A", "echoed as it is kept");
    for spelling in [
        "RG2-8812-00417A",
        "rg2-8812-00417a",
        "  RG2-8812-00417a\t",
        &full_width("RG2-8812-00417A"),
        &full_width("rg2-8812-00417a"),
    ] {
        till.claim(&sale(spelling)).must_refuse(TAKEN);
        service.retailer().claim(&sale(spelling)).must_refuse(TAKEN);
    }
    till.claimed(&sale("RG2-8812-00417B"));
}

#[test]
fn all_spellings_of_one_barcode_are_one_product() {
    let service = Service::start();
    let till = service.retailer();
    let sn = format!("SN-{}", fresh_number());
    let sale =
        |barcode: &str| service.sale().with("/device", json!({"sn": sn, "barcode": barcode, "imei": []}));
    let claim = till.claimed(&sale("6901234567892"));
    assert_eq!(claim["device"]["barcode"], "06901234567892", "fourteen digits");
    for spelling in
        ["06901234567892", " 6901234567892 ", &full_width("6901234567892"), &full_width("06901234567892")]
    {
        till.claim(&sale(spelling)).must_refuse(TAKEN);
    }
}

#[test]
fn another_product_code_of_the_same_manufacturer_does_not_make_a_new_device() {
    let service = Service::start();
    let till = service.retailer();
    let sn = format!("SN-{}", fresh_number());
    let sale =
        |barcode: &str| service.sale().with("/device", json!({"sn": sn, "barcode": barcode, "imei": []}));
    till.claimed(&sale(&barcode_of(10_001, 1)));
    till.claim(&sale(&barcode_of(10_001, 2))).must_refuse(TAKEN);
    till.claim(&sale(&barcode_of(10_001, 99_999))).must_refuse(TAKEN);
    till.claimed(&sale(&barcode_of(10_002, 1)));
}

#[test]
fn any_imei_in_common_makes_it_the_same_device() {
    let service = Service::start();
    let till = service.retailer();
    let (one, two, three) = (fresh_imei(), fresh_imei(), fresh_imei());
    let phone =
        |imei: &[&str]| service.sale().category("phone").price("3000.00").with("/device/imei", json!(imei));
    let claim = till.claimed(&phone(&[&one, &two]));
    for taken in
        [vec![one.as_str()], vec![&two], vec![&two, &one], vec![&three, &one], vec![&full_width(&two)]]
    {
        till.claim(&phone(&taken)).must_refuse(TAKEN);
    }
    till.claimed(&phone(&[&three]));
    till.take_back(&claim).must_be(200);
    till.claimed(&phone(&[&two]));
    till.claimed(&phone(&[&one]));
}

#[test]
fn an_imei_written_as_the_serial_number_is_still_that_imei() {
    let service = Service::start();
    let till = service.retailer();
    let imei = fresh_imei();
    till.claimed(&service.sale().with("/device/imei", json!([imei])));
    till.claim(&service.sale().with("/device/sn", imei.as_str())).must_refuse(TAKEN);
}

#[test]
fn the_limit_holds_over_programmes_and_categories() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale().with("/accept_programme", "national-digital-2026");
    let device = till.claimed(&sale)["device"].clone();
    till.claim(&service.sale().with("/device", device.clone())).must_refuse(TAKEN);
    let bionic = service.sale().category("smart_bionic").with("/device", device);
    till.claim(&bionic).must_refuse(TAKEN);
}

#[test]
fn what_ends_a_claim_frees_its_device() {
    let mut service = Service::start();
    let till = service.retailer();
    let device = service.sale().with_imei().body["device"].clone();
    let now = service.now();
    let sale = || crate::support::Sale::at(now).with("/device", device.clone());
    let held = till.claimed(&sale().held_with_device());
    till.claim(&sale()).must_refuse(TAKEN);
    till.release(&held).must_be(200);
    let redeemed = till.claimed(&sale());
    till.claim(&sale().held_with_device()).must_refuse(TAKEN);
    till.take_back(&redeemed).must_be(200);
    till.claim_under("to-be-cancelled", &sale()).must_be(201);
    till.claim(&sale()).must_refuse(TAKEN);
    till.cancel("to-be-cancelled").must_be(200);
    till.claimed(&sale().held_with_device().with("/hold_minutes", 5));
    till.claim(&sale()).must_refuse(TAKEN);
    service.restart_later(6 * 60_000);
    till.claimed(&service.sale().with("/device", device.clone()));
}

#[test]
fn an_old_device_is_traded_in_once() {
    let service = Service::start();
    let till = service.retailer();
    let sale = |sn: &str| service.sale().with("/trade_in", json!({"sn": sn, "value": "300.00"}));
    let claim = till.claimed(&sale("old-1"));
    assert_eq!(claim["subsidy"], "600.00", "its value is not deducted from the price base");
    for spelling in ["OLD-1", " old-1 ", &full_width("old-1")] {
        till.claim(&sale(spelling)).must_refuse("trade-in-already-used");
    }
    till.claimed(&sale("old-2"));
    till.take_back(&claim).must_be(200);
    till.claimed(&sale("OLD-1"));
}

#[test]
fn one_order_line_has_one_live_claim() {
    let service = Service::start();
    let till = service.retailer();
    let order = format!("SO-{}", fresh_number());
    let sale = |line: u16| service.sale().with("/order_no", order.as_str()).with("/order_line", line);
    let claim = till.claimed(&sale(1));
    till.claim(&sale(1)).must_refuse("order-line-already-claimed");
    till.claim(&sale(1).with("/order_line", json!(null))).must_refuse("order-line-already-claimed");
    till.claimed(&sale(2));
    till.claimed(&sale(999));
    service.retailer().claimed(&sale(1));
    till.take_back(&claim).must_be(200);
    till.claimed(&sale(1));
    let sales: Vec<_> = (0..20).map(|_| sale(3)).collect();
    let answers = at_once(20, |index| till.claim(&sales[index]).status);
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), 1);
}

also_on_postgres!(
    fifty_claims_for_one_device_pay_once,
    another_product_code_of_the_same_manufacturer_does_not_make_a_new_device,
    any_imei_in_common_makes_it_the_same_device,
    the_limit_holds_over_programmes_and_categories,
    what_ends_a_claim_frees_its_device,
    an_old_device_is_traded_in_once,
    one_order_line_has_one_live_claim,
);
