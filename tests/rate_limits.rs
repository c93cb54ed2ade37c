//! Nobody keeps the others from being served.

use std::time::{Duration, Instant};

use crate::support::{Options, Service, at_once, fresh_key, json};

/// A service whose retailers may send 20 requests a second, 20 at once.
fn slow_service() -> Service {
    Service::start_with(
        Options::default()
            .env("SUBSIDY_POS__SHIELD__RETAILER_PER_SECOND", "20")
            .env("SUBSIDY_POS__SHIELD__RETAILER_BURST", "20"),
    )
}

#[test]
fn what_is_too_much_is_answered_429_and_told_when_to_come_back() {
    let service = slow_service();
    let (till, other) = (service.retailer(), service.retailer());
    let answers = at_once(60, |_| till.get("/v1/claims/x"));
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!((15..=59).contains(&refused.len()), "{} of 60 were refused", refused.len());
    for answer in &refused {
        answer.must_refuse("rate-limited");
        assert!(
            answer.header("ratelimit").is_some_and(|value| value.contains("r=0")),
            "{:?}",
            answer.headers
        );
    }
    other.get("/v1/claims/x").must_refuse("claim-not-found");
    std::thread::sleep(Duration::from_secs(2));
    till.get("/v1/claims/x").must_refuse("claim-not-found");
}

#[test]
fn every_authenticated_answer_tells_what_is_left() {
    let service = slow_service();
    let till = service.retailer();
    let mut left = Vec::new();
    for _ in 0..5 {
        let answer = till.get("/v1/claims/x");
        let policy = answer.header("ratelimit-policy").expect("RateLimit-Policy");
        assert!(policy.starts_with('"') && policy.contains(";q="), "a structured field: {policy}");
        let limit = answer.header("ratelimit").expect("RateLimit");
        let rest = limit.split("r=").nth(1).unwrap_or_else(|| panic!("r in {limit}"));
        left.push(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap());
    }
    assert!(left.windows(2).all(|pair| pair[1] <= pair[0] + 1) && left[4] < 20, "{left:?}");
    assert!(service.nobody().get("/v1/claims").header("ratelimit").is_none(), "but no other");
}

#[test]
fn the_limit_comes_before_the_body() {
    let service = slow_service();
    let till = service.retailer();
    let answers = at_once(60, |_| till.post_text("/v1/claims", "{broken"));
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    assert!(refused >= 15, "{refused}");
    for answer in answers.iter().filter(|answer| answer.status != 429) {
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

#[test]
fn a_batch_costs_what_it_holds() {
    let service = slow_service();
    let till = service.retailer();
    let items = |count: usize| -> Vec<_> {
        (0..count).map(|_| json!({"idempotency_key": fresh_key(), "claim": service.sale().body})).collect()
    };
    let batch = |count: usize| till.post("/v1/claims/batch", &json!({"items": items(count)}));
    batch(15).must_be(200);
    batch(15).must_refuse("rate-limited");
    assert_eq!(till.list("/v1/claims").len(), 15);
    std::thread::sleep(Duration::from_millis(1500));
    till.post("/v1/claims/batch", &json!({"items": []})).must_refuse("invalid-request");
    batch(15).must_be(200);
}

#[test]
fn what_a_platform_sends_counts_for_its_retailer_too() {
    let service = slow_service();
    let till = service.retailer();
    let platform = service.platform().with("x-retailer", &till.subject);
    let began = Instant::now();
    let answers = at_once(60, |_| platform.cancel(&fresh_key()).status);
    assert!(answers.contains(&429), "{answers:?}");
    if began.elapsed() < Duration::from_millis(500) {
        till.get("/v1/claims/x").must_refuse("rate-limited");
    }
    let other = service.retailer();
    platform.clone().with("x-retailer", &other.subject).cancel(&fresh_key()).must_be(200);
}
