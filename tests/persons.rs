//! A person gets what the programme allows, however their document is written.

use crate::support::identifiers::{fifteen_digits, fresh_resident_id, full_width};
use crate::support::programmes::{limit_persons, service_with};
use crate::support::service::also_on_postgres;
use crate::support::{Options, Sale, Service, at_once, instant, json};

#[test]
fn fifty_keys_for_one_person_make_one_claim() {
    let service = Service::start();
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let sales: Vec<_> = (0..50).map(|_| service.sale().resident(&id_number)).collect();
    let answers = at_once(50, |index| till.claim(&sales[index]));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        answer.must_refuse("consumer-limit-reached");
    }
    assert_eq!(service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count(), 1);
}

#[test]
fn the_limit_holds_over_retailers_and_platforms() {
    let service = Service::start();
    let id_number = fresh_resident_id();
    let sale = || service.sale().resident(&id_number);
    service.retailer().claim(&sale()).must_be(201);
    let other = service.retailer();
    other.claim(&sale()).must_refuse("consumer-limit-reached");
    service
        .platform()
        .with("x-retailer", &other.subject)
        .claim(&sale())
        .must_refuse("consumer-limit-reached");
}

#[test]
fn all_spellings_of_one_resident_id_are_one_person() {
    let service = Service::start();
    let till = service.retailer();
    let spellings = [
        "11010519491231002X".to_owned(),
        "11010519491231002x".to_owned(),
        " 11010519491231002X ".to_owned(),
        "\u{3000}11010519491231002X\u{3000}".to_owned(),
        full_width("11010519491231002X"),
        full_width("11010519491231002x"),
        fifteen_digits("11010519491231002X"),
        full_width("110105491231002"),
    ];
    for (index, first) in spellings.iter().enumerate() {
        let claim = till.claimed(&service.sale().resident(first));
        for other in &spellings {
            let refusal = till.claim(&service.sale().resident(other));
            assert_eq!(refusal.code(), "consumer-limit-reached", "{first:?} then {other:?}");
        }
        till.take_back(&claim).must_be(200);
        assert!(index < spellings.len());
    }
}

#[test]
fn a_reissued_travel_permit_is_the_same_person() {
    let service = Service::start();
    let till = service.retailer();
    let sale = |id_type: &str, number: &str| service.sale().person(id_type, number);
    till.claimed(&sale("hm_travel_permit", "H12345678"));
    for same in ["H12345678", "h12345678", "H1234567801", "H1234567802", "Ｈ１２３４５６７８０３"]
    {
        till.claim(&sale("hm_travel_permit", same)).must_refuse("consumer-limit-reached");
    }
    till.claimed(&sale("hm_travel_permit", "M12345678"));
    till.claimed(&sale("hm_travel_permit", "H1234567901"));
    till.claimed(&sale("tw_travel_permit", "12345678"));
    till.claim(&sale("tw_travel_permit", "1234567801")).must_refuse("consumer-limit-reached");
    till.claim(&sale("tw_travel_permit", "1234567899")).must_refuse("consumer-limit-reached");
    till.claimed(&sale("tw_travel_permit", "1234567901"));
}

#[test]
fn a_permit_is_known_under_its_own_kind_only() {
    let service = Service::start();
    let till = service.retailer();
    let sale = |id_type: &str, number: &str| service.sale().person(id_type, number);
    for (kind, number) in [
        ("hmt_residence_permit", "810000199408230021"),
        ("foreign_permanent_resident", "911124198108030024"),
        ("resident_id", "440524188001010014"),
    ] {
        till.claimed(&sale(kind, number));
        till.claim(&sale(kind, number)).must_refuse("consumer-limit-reached");
        for other in ["resident_id", "hmt_residence_permit", "foreign_permanent_resident"] {
            if other != kind {
                let pointers = till.claim(&sale(other, number)).pointers();
                assert!(pointers.iter().all(|pointer| pointer.starts_with("/consumer")), "{pointers:?}");
            }
        }
    }
    till.claimed(&sale("foreign_permanent_resident", "ABC123456789012"));
    till.claim(&sale("foreign_permanent_resident", "abc123456789012")).must_refuse("consumer-limit-reached");
}

#[test]
fn other_categories_are_counted_apart() {
    let service = Service::start();
    let till = service.retailer();
    let id_number = fresh_resident_id();
    for category in ["smart_glasses", "smart_bionic", "phone", "tablet"] {
        let sale = || service.sale().resident(&id_number).category(category);
        till.claimed(&sale());
        till.claim(&sale()).must_refuse("consumer-limit-reached");
    }
}

#[test]
fn the_year_of_the_sale_counts_not_that_of_the_claim() {
    let mut service = Service::start_with(Options::at("2026-12-31T23:50:00+08:00"));
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let sale = |sold_at: &str| Sale::at(instant(sold_at)).resident(&id_number);
    till.claimed(&sale("2026-12-31T23:50:00+08:00"));
    service.restart_at(instant("2027-01-01T00:03:00+08:00"));
    till.claim(&sale("2026-12-31T23:58:00+08:00")).must_refuse("consumer-limit-reached");
    till.claimed(&sale("2027-01-01T00:01:00+08:00"));
    till.claim(&sale("2027-01-01T00:02:00+08:00")).must_refuse("consumer-limit-reached");
    // Midnight is Shanghai's: in UTC this sale is still one of 2026.
    let other = fresh_resident_id();
    till.claimed(&Sale::at(instant("2026-12-31T15:59:00Z")).resident(&other));
    till.claimed(&Sale::at(instant("2026-12-31T16:00:00Z")).resident(&other));
}

#[test]
fn the_limit_counts_over_all_programmes() {
    let service = Service::start();
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let sale = service.sale().resident(&id_number).with("/accept_programme", "national-digital-2026");
    let claim = till.claimed(&sale);
    assert_eq!(
        (claim["programme"].as_str(), claim["subsidy"].as_str()),
        (Some("national-digital-2026"), Some("500.00"))
    );
    let refusal = till.claim(&service.sale().resident(&id_number)).must_refuse("consumer-limit-reached");
    assert!(refusal["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{refusal}");
    assert!(refusal["clause"].to_string().contains("choice"), "measure 25 itself sets no limit: {refusal}");
}

#[test]
fn a_reached_limit_names_the_rule_that_sets_it_though_others_say_the_same() {
    let (service, _directory) = service_with(|programmes| {
        limit_persons(programmes, "smart_bionic", 1, "a notice on bionics", "notice");
        limit_persons(programmes, "smart_health", 1, "a law on health", "text");
    });
    let till = service.retailer();
    for (category, article, basis) in [
        ("smart_home_robot", "measure 25 is silent: as the national programmes have it", "choice"),
        ("smart_bionic", "a notice on bionics", "notice"),
        ("smart_health", "a law on health", "text"),
    ] {
        let id_number = fresh_resident_id();
        let sale = || service.sale().category(category).resident(&id_number);
        till.claimed(&sale());
        let refusal = till.claim(&sale()).must_refuse("consumer-limit-reached");
        assert_eq!(
            refusal["clause"],
            json!({"programme": "zj-ai-25", "article": article, "basis": basis}),
            "{category}"
        );
        let says_so = refusal["detail"].as_str().unwrap().contains("administrative choice");
        assert_eq!(says_so, basis == "choice", "{refusal}");
        let quoted = till.post("/v1/quotes", &sale().body).must_be(200);
        assert_eq!(quoted["refusal"]["clause"], refusal["clause"], "{quoted}");
    }
}

#[test]
fn a_category_may_have_a_limit_of_its_own_above_one() {
    let (service, _directory) =
        service_with(|programmes| limit_persons(programmes, "smart_glasses", 3, "a later notice", "notice"));
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let sale = |category: &str| service.sale().category(category).resident(&id_number);
    let first = till.claimed(&sale("smart_glasses"));
    let national = sale("smart_glasses").with("/accept_programme", "national-digital-2026");
    let refusal = till.claim(&national).must_refuse("consumer-limit-reached");
    assert_eq!(refusal["clause"]["programme"], "national-digital-2026", "its limit is one: {refusal}");
    till.claimed(&sale("smart_glasses").held());
    till.claimed(&sale("smart_glasses"));
    let refusal = till.claim(&sale("smart_glasses")).must_refuse("consumer-limit-reached");
    assert!(refusal["detail"].as_str().unwrap().contains("3 of 3"), "{refusal}");
    assert_eq!(
        refusal["clause"],
        json!({"programme": "zj-ai-25", "article": "a later notice", "basis": "notice"})
    );
    till.claimed(&sale("smart_bionic"));
    let refusal = till.claim(&sale("smart_bionic")).must_refuse("consumer-limit-reached");
    assert!(refusal["detail"].as_str().unwrap().contains("1 of 1"), "{refusal}");
    till.take_back(&first).must_be(200);
    let sales: Vec<_> = (0..10).map(|_| sale("smart_glasses")).collect();
    let answers = at_once(10, |index| till.claim(&sales[index]));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1, "the returned one");
}

#[test]
fn what_ends_a_claim_gives_the_entitlement_back() {
    let mut service = Service::start();
    let till = service.retailer();
    let id_number = fresh_resident_id();
    let now = service.now();
    let sale = || Sale::at(now).resident(&id_number);
    let held = till.claimed(&sale().held());
    till.claim(&sale()).must_refuse("consumer-limit-reached");
    till.release(&held).must_be(200);
    let redeemed = till.claimed(&sale());
    till.claim(&sale().held()).must_refuse("consumer-limit-reached");
    till.take_back(&redeemed).must_be(200);
    till.claim_under("to-be-cancelled", &sale()).must_be(201);
    till.claim(&sale()).must_refuse("consumer-limit-reached");
    assert_eq!(till.cancel("to-be-cancelled").must_be(200)["outcome"], "cancelled");
    till.claimed(&sale().held().with("/hold_minutes", 5));
    service.restart_later(6 * 60_000);
    till.claimed(&service.sale().resident(&id_number));
    till.claim(&service.sale().resident(&id_number)).must_refuse("consumer-limit-reached");
}

also_on_postgres!(
    fifty_keys_for_one_person_make_one_claim,
    the_limit_holds_over_retailers_and_platforms,
    other_categories_are_counted_apart,
    the_year_of_the_sale_counts_not_that_of_the_claim,
    the_limit_counts_over_all_programmes,
    a_category_may_have_a_limit_of_its_own_above_one,
    what_ends_a_claim_gives_the_entitlement_back,
);
