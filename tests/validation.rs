//! Bad input gets a clear error that names every fault, and changes nothing.

use crate::support::identifiers::fresh_resident_id;
use crate::support::{Answer, Caller, Sale, Service, Value, fresh_key, json};

fn post_text(caller: &Caller, body: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", &fresh_key())];
    caller.send("POST", "/v1/claims", &headers, Some(body.as_bytes()))
}

#[test]
fn each_fault_is_named_by_its_pointer() {
    let service = Service::start();
    let till = service.retailer();
    let cases: &[(&str, Value)] = &[
        ("/mode", json!("sell")),
        ("/mode", json!(null)),
        ("/order_no", json!("")),
        ("/order_no", json!("x".repeat(65))),
        ("/order_no", json!("two words")),
        ("/order_no", json!("tab\t")),
        ("/order_line", json!(0)),
        ("/order_line", json!(1000)),
        ("/order_line", json!(-1)),
        ("/order_line", json!(1.5)),
        ("/order_line", json!("1")),
        ("/category", json!("Smart Glasses")),
        ("/category", json!(7)),
        ("/price", json!("0")),
        ("/price", json!("0.00")),
        ("/price", json!("-1.00")),
        ("/price", json!("+1.00")),
        ("/price", json!("01.00")),
        ("/price", json!("1.000")),
        ("/price", json!("1.")),
        ("/price", json!(".5")),
        ("/price", json!("1e3")),
        ("/price", json!("1,000.00")),
        ("/price", json!("４０００.00")),
        ("/price", json!("100000000")),
        ("/price", json!("NaN")),
        ("/price", json!("")),
        ("/price", json!(4000)),
        ("/price", json!(4000.5)),
        ("/expected_subsidy", json!(600)),
        ("/expected_subsidy", json!("6OO")),
        ("/region_code", json!("33010")),
        ("/region_code", json!("3301066")),
        ("/region_code", json!("33010a")),
        ("/region_code", json!(330_106)),
        ("/sold_at", json!("2026-06-15")),
        ("/sold_at", json!("2026-06-15T10:00:00")),
        ("/sold_at", json!("2026-02-30T10:00:00+08:00")),
        ("/sold_at", json!("2026-06-15 25:00:00+08:00")),
        ("/sold_at", json!(1_781_488_800)),
        ("/consumer", json!(null)),
        ("/consumer", json!("11010519491231002X")),
        ("/consumer/id_type", json!("passport")),
        ("/consumer/id_number", json!("110105194912310021")),
        ("/consumer/id_number", json!("330106199002290015")),
        ("/consumer/id_number", json!("330102209912310012")),
        ("/consumer/id_number", json!("1101051949123100")),
        ("/consumer/id_number", json!("")),
        ("/consumer/id_number", json!(110_105_491_231_002_i64)),
        ("/consumer/name", json!("nobody's business")),
        ("/device/sn", json!("")),
        ("/device/sn", json!("x".repeat(65))),
        ("/device/sn", json!("no spaces inside")),
        ("/device/sn", json!("序列号")),
        ("/device/barcode", json!("6901234567890")),
        ("/device/barcode", json!("00000000000000")),
        ("/device/barcode", json!("0000000000000")),
        ("/device/barcode", json!("690123456789")),
        ("/device/barcode", json!(6_901_234_567_892_i64)),
        ("/device/imei", json!("490154203237518")),
        ("/device/imei/0", json!(["490154203237519"])),
        ("/device/imei/0", json!(["000000000000000"])),
        ("/device/imei/0", json!(["4901542032375186"])),
        ("/device/imei/1", json!(["490154203237518", "1"])),
        ("/sale_channel", json!("by post")),
        ("/energy_grade", json!(0)),
        ("/energy_grade", json!(6)),
        ("/energy_grade", json!("1")),
        ("/trade_in", json!({})),
        ("/trade_in/value", json!(100)),
        ("/received_elsewhere", json!({})),
        ("/received_elsewhere/0/amount", json!([{"programme": "national-digital-2026", "amount": 5}])),
        ("/late_reason", json!("forgot")),
        ("/store_code", json!("x".repeat(65))),
        ("/terminal_no", json!("")),
        ("/invoice_no", json!("x y")),
        ("/colour", json!("red")),
        ("/device/colour", json!("red")),
    ];
    for (pointer, value) in cases {
        // A case that points into an array gives the array.
        let place = pointer
            .split('/')
            .take_while(|part| part.parse::<usize>().is_err())
            .collect::<Vec<_>>()
            .join("/");
        let sale = service.sale().with(&place, value.clone());
        let answer = till.claim(&sale);
        assert_eq!(answer.status, 400, "{pointer} {value}: {}", answer.text());
        let pointers = answer.pointers();
        let named =
            pointers.iter().any(|named| named == pointer || named.starts_with(&format!("{pointer}/")));
        assert!(named, "{pointer} {value}: {pointers:?}");
    }
    for member in [
        "mode",
        "order_no",
        "category",
        "price",
        "region_code",
        "sold_at",
        "consumer",
        "sale_channel",
        "device",
    ] {
        let answer = till.claim(&service.sale().without(&format!("/{member}")));
        assert_eq!(answer.pointers(), [format!("/{member}")]);
    }
    assert_eq!(service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count(), 0);
}

#[test]
fn all_faults_are_listed_at_once_but_no_more_than_thirty_two() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service
        .sale()
        .with("/mode", 7)
        .price("4e3")
        .with("/consumer/id_number", "110105194912310021")
        .with("/device/barcode", "6901234567890")
        .with("/device/imei", json!(["1", "490154203237518", "2"]))
        .with("/unknown", true)
        .without("/sale_channel");
    let expected = [
        "/consumer/id_number",
        "/device/barcode",
        "/device/imei/0",
        "/device/imei/2",
        "/mode",
        "/price",
        "/sale_channel",
        "/unknown",
    ];
    assert_eq!(till.claim(&sale).pointers(), expected);
    let mut sale = service.sale();
    for index in 0..40 {
        sale = sale.with(&format!("/unknown_{index}"), index);
    }
    assert_eq!(till.claim(&sale).pointers().len(), 32);
}

#[test]
fn amounts_as_numbers_are_refused_with_a_message_that_says_so() {
    let service = Service::start();
    let problem =
        service.retailer().claim(&service.sale().with("/price", 4000)).must_refuse("invalid-request");
    let detail = problem["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("string"), "{detail}");
}

#[test]
fn members_twice_are_refused_at_every_depth() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale().body.to_string();
    let twice = sale.replacen("{", "{\"price\":\"1.00\",", 1);
    assert!(post_text(&till, &twice).pointers().contains(&"/price".to_owned()));
    let deep = sale.replacen("\"barcode\"", "\"sn\":\"OTHER\",\"barcode\"", 1);
    assert!(post_text(&till, &deep).pointers().contains(&"/device/sn".to_owned()));
    // An escaped spelling of the name is the same name.
    let escaped = sale.replacen("{", "{\"\\u0070rice\":\"1.00\",", 1);
    assert!(post_text(&till, &escaped).pointers().contains(&"/price".to_owned()));
}

#[test]
fn what_is_not_json_is_refused() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale().body.to_string();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for body in [
        "",
        " ",
        "{",
        "null",
        "[]",
        "\"text\"",
        "7",
        "true",
        &sale[..sale.len() - 1],
        &format!("{sale}{{}}"),
        &format!("{sale},"),
        &sale.replace('"', "'"),
        &deep,
        "{\"price\": \"\\ud800\"}",
        "\u{feff}{}",
    ] {
        let answer = post_text(&till, body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-request"),
            "{body:.40}: {}",
            answer.text()
        );
    }
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let latin = sale
        .replace("offline", "off\u{1}line")
        .into_bytes()
        .into_iter()
        .map(|byte| if byte == 1 { 0xE9 } else { byte });
    let answer = till.send("POST", "/v1/claims", &headers, Some(&latin.collect::<Vec<_>>()));
    assert_eq!(answer.status, 400, "not UTF-8: {}", answer.text());
}

#[test]
fn a_field_that_is_not_due_is_refused_and_not_ignored() {
    let service = Service::start();
    let till = service.retailer();
    let coded = service.sale().with("/consumer", json!({"code": "QX-1"}));
    assert_eq!(till.claim(&coded).status, 400);
    for path in ["/v1/claims/1/revoke", "/v1/reviews", "/v1/settlements"] {
        till.post(path, &json!({})).must_refuse("not-found");
    }
    let sale = service.sale().body;
    let answer = till.post_under(&fresh_key(), "/v1/claims?dry_run=true", &sale);
    assert_eq!(answer.status, 400, "an unknown parameter is refused: {}", answer.text());
    assert_eq!(till.get("/v1/claims?colour=red").status, 400);
}

#[test]
fn the_window_of_a_sale_is_kept() {
    let service = Service::start();
    let till = service.retailer();
    let at = |minutes: i64| Sale::at(service.now().plus_ms(minutes * 60_000));
    let late = |minutes: i64, reason: &str| at(minutes).with("/late_reason", reason);
    till.claim(&at(-14)).must_be(201);
    till.claim(&at(4)).must_be(201);
    till.claim(&at(-16)).must_refuse("sold-at-out-of-range");
    till.claim(&at(6)).must_refuse("sold-at-out-of-range");
    till.claim(&late(-16, "offline")).must_be(201);
    till.claim(&late(-71 * 60, "outage")).must_be(201);
    till.claim(&late(-73 * 60, "outage")).must_refuse("sold-at-out-of-range");
    till.claim(&late(6, "outage")).must_refuse("sold-at-out-of-range");
}

#[test]
fn a_late_sale_never_crosses_the_end_of_a_year_or_of_a_programme() {
    let mut service = Service::start_with(crate::support::Options::at("2027-01-01T00:10:00+08:00"));
    let till = service.retailer();
    let sale = |sold_at: &str| Sale::at(crate::support::instant(sold_at)).with("/late_reason", "outage");
    till.claim(&sale("2026-12-31T20:00:00+08:00")).must_refuse("sold-at-out-of-range");
    till.claim(&sale("2026-12-31T23:58:00+08:00").without("/late_reason")).must_be(201);
    till.claim(&sale("2027-01-01T00:01:00+08:00")).must_be(201);
    service.restart_at(crate::support::instant("2028-01-01T00:10:00+08:00"));
    till.claim(&sale("2027-12-31T20:00:00+08:00")).must_refuse("sold-at-out-of-range");
    till.claim(&sale("2028-01-01T00:05:00+08:00")).must_refuse("not-in-force");
}

#[test]
fn problems_are_told_in_the_language_asked_for() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale().category("toaster");
    let ask = |languages: &str| {
        till.clone().with("accept-language", languages).claim(&sale).must_refuse("category-not-eligible")
    };
    let is_chinese =
        |text: &Value| text.as_str().unwrap().chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c));
    for (languages, chinese) in [
        ("zh-CN", true),
        ("zh", true),
        ("en;q=0.5, zh-CN;q=0.9", true),
        ("en-GB, zh;q=0.1", false),
        ("fr", false),
        ("*", false),
    ] {
        let problem = ask(languages);
        assert_eq!(
            (is_chinese(&problem["title"]), is_chinese(&problem["detail"])),
            (chinese, chinese),
            "{languages}: {problem}"
        );
    }
}

#[test]
fn a_refusal_by_policy_names_its_source_and_what_to_do() {
    let service = Service::start();
    let till = service.retailer();
    let id_number = fresh_resident_id();
    till.claimed(&service.sale().resident(&id_number));
    for (sale, code) in [
        (service.sale().resident(&id_number), "consumer-limit-reached"),
        (service.sale().category("phone").price("6000.01"), "price-not-eligible"),
        (service.sale().category("refrigerator").with("/energy_grade", 3), "condition-not-met"),
        (service.sale().with("/sold_at", "2024-06-15T10:00:00+08:00"), "not-in-force"),
    ] {
        let problem = till.claim(&sale).must_refuse(code);
        assert!(!problem["clause"].is_null(), "{problem}");
        assert!(problem["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{problem}");
    }
}
