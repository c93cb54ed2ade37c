//! Lists of claims: newest first, page by page, for whoever may see them.

use std::time::Duration;

use crate::support::service::also_on_postgres;
use crate::support::{Caller, Service, Value, eventually, instant, json};

fn ids(items: &[Value]) -> Vec<String> {
    items.iter().map(|item| item["claim_id"].as_str().expect("a claim").to_owned()).collect()
}

fn page(caller: &Caller, query: &str) -> Value {
    caller.get(&format!("/v1/claims{query}")).must_be(200)
}

#[test]
fn claims_are_listed_newest_first_and_every_page_follows_the_last() {
    let service = Service::start();
    let till = service.retailer();
    let mut made: Vec<_> = (0..23).map(|_| till.claimed(&service.sale())).collect();
    made.reverse();
    assert_eq!(ids(&till.list("/v1/claims")), ids(&made));
    assert_eq!(ids(&till.list("/v1/claims?limit=5")), ids(&made));
    assert_eq!(ids(&till.list("/v1/claims?limit=23")), ids(&made));
    let first = page(&till, "?limit=5");
    assert_eq!(first["items"].as_array().unwrap().len(), 5);
    assert_eq!(first["items"][0], made[0], "an item is the claim as it stands");
    let cursor = first["next_cursor"].as_str().unwrap().to_owned();
    // What is made meanwhile comes before the first page and does not disturb the second.
    till.claimed(&service.sale());
    let second = page(&till, &format!("?limit=5&cursor={cursor}"));
    assert_eq!(ids(second["items"].as_array().unwrap()), ids(&made[5..10]));
    assert_eq!(page(&till, "?limit=200")["next_cursor"], json!(null));
    assert!(page(&till, "")["as_of"].as_u64().unwrap() >= made[0]["journal"]["position"].as_u64().unwrap());
    for bad in [
        "?limit=0",
        "?limit=201",
        "?limit=-1",
        "?limit=many",
        "?cursor=nonsense",
        "?limit=5&limit=6",
        "?status=sold",
        "?from=2026-02-30",
        "?region_code=33",
        "?retailer=x",
        "?from=2026-06-16&to=2026-06-15",
    ] {
        assert_eq!(till.get(&format!("/v1/claims{bad}")).status, 400, "{bad}");
    }
}

#[test]
fn a_list_shows_what_was_answered_before_it_was_asked_for() {
    let service = Service::start();
    let till = service.retailer();
    for _ in 0..30 {
        let sale = service.sale();
        let claim = till.claimed(&sale);
        let listed = page(&till, &format!("?order_no={}", sale.text("/order_no")));
        assert_eq!(listed["items"], json!([claim]));
    }
}

#[test]
fn claims_are_found_by_each_filter_and_by_all_together() {
    let mut service = Service::start();
    let (till, regulator) = (service.retailer(), service.regulator());
    let glasses = till.claimed(&service.sale());
    let phone = till.claimed(&service.sale().category("phone").price("3000.00").region("330206"));
    let hold = till.claimed(&service.sale().held());
    let returned = till.claimed(&service.sale().with("/device/sn", "wanted/1"));
    till.take_back(&returned).must_be(200);
    let foreign = service.retailer().claimed(&service.sale());
    service.restart_later(2 * 86_400_000);
    let later = till.claimed(&service.sale());
    let found = |caller: &Caller, query: &str| {
        let mut found = ids(&caller.list(&format!("/v1/claims?{query}")));
        found.sort();
        found
    };
    let expect = |claims: &[&Value]| {
        let mut expected: Vec<_> =
            claims.iter().map(|claim| claim["claim_id"].as_str().unwrap().to_owned()).collect();
        expected.sort();
        expected
    };
    let order = glasses["order_no"].as_str().unwrap();
    for (query, claims) in [
        (format!("order_no={order}"), vec![&glasses]),
        ("order_no=SO-none".to_owned(), vec![]),
        ("status=redeemed".to_owned(), vec![&glasses, &phone, &later]),
        ("status=expired".to_owned(), vec![&hold]),
        ("status=returned".to_owned(), vec![&returned]),
        ("status=held".to_owned(), vec![]),
        ("category=phone".to_owned(), vec![&phone]),
        ("region_code=330206".to_owned(), vec![&phone]),
        ("region_code=330200".to_owned(), vec![&phone]),
        ("region_code=330000".to_owned(), vec![&glasses, &phone, &hold, &returned, &later]),
        ("sn=%20WANTED/1".to_owned(), vec![&returned]),
        ("from=2026-06-16".to_owned(), vec![&later]),
        ("to=2026-06-16".to_owned(), vec![&glasses, &phone, &hold, &returned]),
        ("from=2026-06-15&to=2026-06-15".to_owned(), vec![&glasses, &phone, &hold, &returned]),
        ("from=2026-06-17&to=2026-06-17".to_owned(), vec![&later]),
        (
            "status=redeemed&category=smart_glasses&region_code=330106&to=2026-06-15".to_owned(),
            vec![&glasses],
        ),
        (format!("retailer={}&category=phone", till.subject), vec![&phone]),
    ] {
        assert_eq!(found(&till, &query), expect(&claims), "{query}");
    }
    assert_eq!(found(&till, &format!("retailer={}", foreign["retailer"].as_str().unwrap())), expect(&[]));
    assert_eq!(
        found(&regulator, &format!("retailer={}", foreign["retailer"].as_str().unwrap())),
        expect(&[&foreign])
    );
    assert_eq!(found(&regulator, "").len(), 6);
    assert_eq!(instant(later["created_at"].as_str().unwrap()).day().to_string(), "2026-06-17");
}

#[test]
fn a_cursor_is_bound_to_its_caller_and_its_filters() {
    let service = Service::start();
    let (till, other) = (service.retailer(), service.retailer());
    for _ in 0..3 {
        till.claimed(&service.sale());
        other.claimed(&service.sale());
    }
    let cursor = page(&till, "?limit=1&category=smart_glasses")["next_cursor"].as_str().unwrap().to_owned();
    assert_eq!(till.get(&format!("/v1/claims?limit=2&category=smart_glasses&cursor={cursor}")).status, 200);
    for query in [
        format!("?cursor={cursor}"),
        format!("?category=phone&cursor={cursor}"),
        format!("?category=smart_glasses&status=held&cursor={cursor}"),
    ] {
        assert_eq!(till.get(&format!("/v1/claims{query}")).status, 400, "{query}");
    }
    let stolen = format!("/v1/claims?category=smart_glasses&cursor={cursor}");
    assert_eq!(other.get(&stolen).status, 400, "someone else's cursor");
    assert_eq!(service.regulator().get(&stolen).status, 400, "someone else's cursor");
    let [one, two] = ["officer-1", "officer-2"].map(|name| service.caller("regulator", name, &[]));
    let cursor = page(&one, "?limit=1")["next_cursor"].as_str().unwrap().to_owned();
    assert_eq!(one.get(&format!("/v1/claims?cursor={cursor}")).status, 200);
    assert_eq!(two.get(&format!("/v1/claims?cursor={cursor}")).status, 400, "someone else's cursor");
    let mut bent = cursor.clone().into_bytes();
    let middle = bent.len() / 2;
    bent[middle] = if bent[middle] == b'A' { b'B' } else { b'A' };
    let bent = String::from_utf8(bent).unwrap();
    let answer = till.get(&format!("/v1/claims?category=smart_glasses&cursor={bent}"));
    assert!([200, 400].contains(&answer.status), "{}", answer.text());
    assert!(
        answer.status == 400
            || answer.json()["items"]
                .as_array()
                .unwrap()
                .iter()
                .all(|claim| claim["retailer"] == till.subject.as_str())
    );
}

#[test]
fn the_book_may_be_lost_and_comes_back() {
    let mut service = Service::start();
    let till = service.retailer();
    let made: Vec<_> = (0..10).map(|_| till.claimed(&service.sale())).collect();
    let before = till.list("/v1/claims");
    let totals = service.regulator().get("/v1/totals").must_be(200);
    assert_eq!(before.len(), made.len());
    assert!(service.stop().success());
    for file in crate::support::service::files_below(service.data()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("book.db") {
            std::fs::remove_file(file).unwrap();
        }
    }
    service.start_again();
    let after = eventually("the book is whole again", Duration::from_secs(20), || {
        let listed = till.list("/v1/claims");
        (listed.len() == made.len()).then_some(listed)
    });
    assert_eq!(after, before);
    assert_eq!(service.regulator().get("/v1/totals").must_be(200)["items"], totals["items"]);
}

#[test]
fn programmes_and_funds_are_listed_as_lists_are() {
    let service = Service::start();
    let till = service.retailer();
    let programmes = page_of(&till, "/v1/programmes");
    assert!(programmes["items"].as_array().unwrap().len() >= 3, "{programmes}");
    let funds = page_of(&service.regulator(), "/v1/funds?limit=5");
    assert_eq!(funds["items"].as_array().unwrap().len(), 5);
    assert!(funds["next_cursor"].is_string() && funds["as_of"].is_u64());
    let all: Vec<_> = service
        .regulator()
        .list("/v1/funds?limit=5")
        .iter()
        .map(|fund| fund["fund_id"].as_str().unwrap().to_owned())
        .collect();
    let mut sorted = all.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), all.len());
    for city in [
        "330100", "330200", "330300", "330400", "330500", "330600", "330700", "330800", "330900", "331000",
        "331100",
    ] {
        for programme in ["zj-ai-25", "national-digital-2026", "national-appliances-2026"] {
            assert!(all.contains(&format!("{programme}.{city}")), "--dev opens {programme}.{city}");
        }
    }
}

fn page_of(caller: &Caller, path: &str) -> Value {
    caller.get(path).must_be(200)
}

also_on_postgres!(
    claims_are_listed_newest_first_and_every_page_follows_the_last,
    a_list_shows_what_was_answered_before_it_was_asked_for,
    claims_are_found_by_each_filter_and_by_all_together,
    a_cursor_is_bound_to_its_caller_and_its_filters,
);
