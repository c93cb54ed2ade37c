//! A sale with several faults is refused for the one that comes first, every time.

use crate::support::{Caller, Sale, Service, Value, fresh_key, json};

/// A world in which every refusal can be had, and the sale that would be paid in it.
struct World {
    service: Service,
    till: Caller,
    used_key: String,
    taken: Sale,
}

/// One way to spoil a sale. Two that change the same member cannot be combined.
struct Fault {
    code: &'static str,
    changes: Vec<(&'static str, Value)>,
    /// The idempotency key to send it under, if not a fresh one.
    key: Option<String>,
}

impl World {
    fn new() -> Self {
        let service = Service::start();
        let till = service.retailer();
        let frozen = service.open_fund("zj-ai-25", "330108", "1000.00");
        service.freeze(&frozen);
        service.open_fund("zj-ai-25", "330110", "1.00");
        let taken = service
            .sale()
            .category("smart_bionic")
            .with_imei()
            .with("/trade_in", json!({"sn": "OLD-1", "value": "100.00"}));
        let used_key = fresh_key();
        till.claim_under(&used_key, &taken).must_be(201);
        Self { service, till, used_key, taken }
    }

    fn good(&self) -> Sale {
        self.service.sale().category("smart_bionic")
    }

    /// The faults in the order in which they take precedence.
    fn faults(&self) -> Vec<Fault> {
        let fault =
            |code, changes: &[(&'static str, Value)]| Fault { code, changes: changes.to_vec(), key: None };
        let long_ago = self.service.now().plus_ms(-20 * 60_000).to_string();
        let taken = |pointer: &str| self.taken.body.pointer(pointer).expect("a member").clone();
        vec![
            fault("invalid-request", &[("/colour", json!("red"))]),
            Fault { key: Some(self.used_key.clone()), ..fault("idempotency-key-reused", &[]) },
            fault("category-not-eligible", &[("/category", json!("toaster"))]),
            fault("programme-not-applicable", &[("/accept_programme", json!("national-appliances-2026"))]),
            fault("region-not-covered", &[("/region_code", json!("110101"))]),
            fault("not-in-force", &[("/sold_at", json!("2024-06-15T10:00:00+08:00"))]),
            fault("sold-at-out-of-range", &[("/sold_at", json!(long_ago))]),
            fault("price-not-eligible", &[("/price", json!("0.06"))]),
            fault(
                "received-elsewhere",
                &[("/received_elsewhere", json!([{"programme": "national-digital-2026", "amount": "1.00"}]))],
            ),
            fault("order-line-already-claimed", &[("/order_no", taken("/order_no"))]),
            fault("device-already-subsidised", &[("/device", taken("/device"))]),
            fault("trade-in-already-used", &[("/trade_in", taken("/trade_in"))]),
            fault("consumer-limit-reached", &[("/consumer", taken("/consumer"))]),
            fault("fund-not-open", &[("/region_code", json!("330000"))]),
            fault("fund-frozen", &[("/region_code", json!("330108"))]),
            fault("fund-exhausted", &[("/region_code", json!("330110"))]),
            fault("subsidy-differs", &[("/expected_subsidy", json!("1.00"))]),
        ]
    }

    fn send(&self, faults: &[&Fault]) -> crate::support::Answer {
        let mut sale = self.good();
        let mut key = fresh_key();
        for fault in faults {
            for (pointer, value) in &fault.changes {
                sale = sale.with(pointer, value.clone());
            }
            key = fault.key.clone().unwrap_or(key);
        }
        self.till.claim_under(&key, &sale)
    }
}

fn compatible(one: &Fault, other: &Fault) -> bool {
    one.changes.iter().all(|(pointer, _)| other.changes.iter().all(|(taken, _)| pointer != taken))
}

/// Whether a refusal is by policy: it rests on a rule of a programme, not on the form of the request, the
/// retailer's own numbers or the money at hand.
fn is_by_policy(code: &str) -> bool {
    const RULES: [&str; 11] = [
        "category-not-eligible",
        "programme-not-applicable",
        "region-not-covered",
        "not-in-force",
        "sold-at-out-of-range",
        "price-not-eligible",
        "condition-not-met",
        "received-elsewhere",
        "device-already-subsidised",
        "trade-in-already-used",
        "consumer-limit-reached",
    ];
    RULES.contains(&code)
}

/// The clause a refusal names must be one that the programme's own data has, word for word.
#[track_caller]
fn must_cite(world: &World, problem: &Value) {
    let clause = &problem["clause"];
    assert!(problem["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{problem}");
    let id = clause["programme"].as_str().unwrap_or_else(|| panic!("no clause: {problem}"));
    let programme = world.till.get(&format!("/v1/programmes/{id}")).must_be(200);
    let source = json!({"clause": clause["article"], "basis": clause["basis"]});
    let has_it = |rule: &Value| rule["clause"] == source["clause"] && rule["basis"] == source["basis"];
    let rules = programme.as_object().expect("rules").values();
    let found = rules.flat_map(|rule| [rule, &rule["from"], &rule["to"]]).any(has_it)
        || (problem["code"] == "received-elsewhere" && clause["basis"] == "choice");
    assert!(found, "{source} in {programme}");
}

#[test]
fn a_refusal_by_policy_names_the_rule_of_the_programme_and_any_other_names_none() {
    let world = World::new();
    for fault in world.faults() {
        let problem = world.send(&[&fault]).must_refuse(fault.code);
        match is_by_policy(fault.code) {
            true => must_cite(&world, &problem),
            false => assert!(problem.get("clause").is_none(), "{problem}"),
        }
    }
    let hold = world.till.claimed(&world.good().held());
    let taken = json!({"device": world.taken.body["device"]});
    must_cite(&world, &world.till.act(&hold, "redeem", &taken).must_refuse("device-already-subsidised"));
    let poor = world.service.sale().category("refrigerator").with("/energy_grade", 2);
    must_cite(&world, &world.till.claim(&poor).must_refuse("condition-not-met"));
}

#[test]
fn of_any_two_faults_the_one_that_comes_first_is_told() {
    let world = World::new();
    let faults = world.faults();
    let before = world.service.entries().len();
    for (index, first) in faults.iter().enumerate() {
        let alone = world.send(&[first]);
        assert_eq!(alone.code(), first.code, "alone: {}", alone.text());
        alone.must_refuse(first.code);
        for second in faults[index + 1..].iter().filter(|second| compatible(first, second)) {
            let answer = world.send(&[first, second]);
            assert_eq!(answer.code(), first.code, "before {}: {}", second.code, answer.text());
        }
    }
    assert_eq!(world.service.entries().len(), before, "no refusal has left a trace in the journal");
    world.till.claim(&world.good()).must_be(201);
}

#[test]
fn with_one_fault_after_another_mended_the_reasons_come_in_order() {
    let world = World::new();
    let faults = world.faults();
    for region in ["region-not-covered", "fund-not-open", "fund-frozen", "fund-exhausted"] {
        for date in ["not-in-force", "sold-at-out-of-range"] {
            let optional = [
                "region-not-covered",
                "fund-not-open",
                "fund-frozen",
                "fund-exhausted",
                "not-in-force",
                "sold-at-out-of-range",
            ];
            let all: Vec<&Fault> = faults
                .iter()
                .filter(|fault| !optional.contains(&fault.code) || fault.code == region || fault.code == date)
                .collect();
            for mended in 0..all.len() {
                let answer = world.send(&all[mended..]);
                assert_eq!(answer.code(), all[mended].code, "{}", answer.text());
            }
        }
    }
}

#[test]
fn the_conditions_of_a_programme_come_after_price_and_before_what_was_used() {
    let world = World::new();
    let till = &world.till;
    let fridge = || world.service.sale().category("refrigerator").with("/energy_grade", 1);
    let claim = till.claimed(&fridge());
    assert_eq!(
        (&claim["programme"], &claim["subsidy"]),
        (&json!("national-appliances-2026"), &json!("600.00"))
    );
    let poor = || fridge().with("/energy_grade", 2);
    till.claim(&poor()).must_refuse("condition-not-met");
    till.claim(&fridge().without("/energy_grade")).must_refuse("condition-not-met");
    till.claim(&poor().price("0.06")).must_refuse("price-not-eligible");
    let used =
        poor().with("/device", claim["device"].clone()).with("/consumer/id_number", "440524188001010014");
    till.claim(&used).must_refuse("condition-not-met");
    let elsewhere = poor().with("/received_elsewhere", json!([{"programme": "x", "amount": "1.00"}]));
    till.claim(&elsewhere).must_refuse("condition-not-met");
    till.claim(&world.service.sale().category("phone").price("6000.01")).must_refuse("price-not-eligible");
    till.claim(&world.service.sale().category("phone").price("6000.00")).must_be(201);
}

#[test]
fn who_is_not_let_in_learns_nothing_about_the_body() {
    let world = World::new();
    let service = &world.service;
    let malformed: [(&str, &[u8]); 4] = [
        ("application/json", b"{\"mode\": "),
        ("application/json", b"{}"),
        ("text/plain", b"{}"),
        ("application/json", &[b'x'; 40_000]),
    ];
    for (kind, body) in malformed {
        let headers = [("content-type", kind), ("idempotency-key", "k")];
        service.nobody().send("POST", "/v1/claims", &headers, Some(body)).must_refuse("unauthenticated");
        service.regulator().send("POST", "/v1/claims", &headers, Some(body)).must_refuse("forbidden");
        service.nobody().send("POST", "/v1/clams", &headers, Some(body)).must_refuse("not-found");
        service.nobody().send("POST", "/v1/funds/x", &headers, Some(body)).must_refuse("method-not-allowed");
    }
}

#[test]
fn a_verb_names_the_body_before_the_claim_and_the_claim_before_its_state() {
    let world = World::new();
    let till = &world.till;
    let nothing = json!({"claim_id": "01980000-0000-7000-8000-000000000000"});
    let sold = till.claimed(&world.good());
    let held = till.claimed(&world.good().held());
    till.act(&nothing, "redeem", &json!({"colour": 1})).must_refuse("invalid-request");
    till.act(&nothing, "return", &json!({})).must_refuse("invalid-request");
    till.act(&nothing, "redeem", &json!({})).must_refuse("claim-not-found");
    till.act(&sold, "release", &json!({"colour": 1})).must_refuse("invalid-request");
    till.act(&sold, "release", &json!({})).must_refuse("claim-state-conflict");
    till.act(&held, "redeem", &json!({})).must_refuse("device-required");
    let taken = json!({"device": sold["device"]});
    till.act(&held, "redeem", &taken).must_refuse("device-already-subsidised");
    till.release(&held).must_be(200);
    till.act(&held, "redeem", &taken).must_refuse("claim-state-conflict");
    till.act(&held, "redeem", &json!({})).must_refuse("claim-state-conflict");
}
