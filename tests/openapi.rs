//! What is published at `/openapi.json` is what is taken and answered.

use std::collections::BTreeSet;
use std::sync::Mutex;

use boon::{Compiler, Schemas};

use crate::support::service::fund_body;
use crate::support::{Answer, Caller, Service, Value, fresh_key, json};

/// The published description, to compare what is sent and answered with.
struct Description {
    document: Value,
    /// Method and path of what was compared, so that nothing is left out.
    compared: Mutex<BTreeSet<(String, String)>>,
}

/// Says of every object that it has no other members than those described.
fn close(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Object(members) => {
            members.iter_mut().filter(|(name, _)| *name != "example").for_each(|(_, member)| close(member));
            if members.get("properties").is_some_and(Value::is_object) {
                members.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        _ => {}
    }
}

impl Description {
    fn of(service: &Service) -> Self {
        let mut document = service.nobody().get("/openapi.json").must_be(200);
        close(&mut document["components"]["schemas"]);
        Self { document, compared: Mutex::default() }
    }

    /// Why `value` is not what the schema at `pointer` describes; nothing if it is.
    fn fault(&self, pointer: &str, value: &Value) -> Option<String> {
        const PLACE: &str = "http://description/openapi.json";
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource(PLACE, self.document.clone()).expect("a document");
        let mut schemas = Schemas::new();
        let schema = compiler.compile(&format!("{PLACE}#{pointer}"), &mut schemas);
        let schema = schema.unwrap_or_else(|fault| panic!("{pointer} is no schema: {fault:#}"));
        schemas.validate(value, schema).err().map(|fault| format!("{fault:#}"))
    }

    fn pointer(method: &str, path: &str) -> String {
        format!("/paths/{}/{}", path.replace('~', "~0").replace('/', "~1"), method.to_ascii_lowercase())
    }

    /// Whether `body` is what a call is described to take.
    fn takes(&self, path: &str, body: &Value) -> bool {
        let at = format!("{}/requestBody/content/application~1json/schema", Self::pointer("POST", path));
        self.fault(&at, body).is_none()
    }

    /// Fails unless `answer` is what the call is described to give.
    #[track_caller]
    fn gives(&self, method: &str, path: &str, answer: &Answer) {
        let pointer = Self::pointer(method, path);
        let described = &self.document.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"))["responses"];
        let status = answer.status.to_string();
        let status = if described.get(&status).is_some() { status.as_str() } else { "default" };
        let kind = answer.header("content-type").expect("a content type").split(';').next().unwrap();
        let at = format!("{pointer}/responses/{status}/content/{}/schema", kind.replace('/', "~1"));
        if let Some(fault) = self.fault(&at, &answer.json()) {
            panic!("{method} {path}: {fault}\n{}", answer.text());
        }
        self.compared.lock().unwrap().insert((method.to_owned(), path.to_owned()));
    }

    /// Asks for `path` with `{id}` replaced by `id`.
    #[track_caller]
    fn get(&self, caller: &Caller, path: &str, id: &str) -> Answer {
        let answer = caller.get(&path.replace("{id}", id));
        self.gives("GET", path.split('?').next().unwrap(), &answer);
        answer
    }

    /// Posts a body that must be as described.
    #[track_caller]
    fn post(&self, caller: &Caller, path: &str, id: &str, body: &Value) -> Answer {
        assert!(self.takes(path, body), "{path} is not described to take {body}");
        let keyed = self
            .document
            .pointer(&Self::pointer("POST", path))
            .unwrap()
            .to_string()
            .contains("Idempotency-Key");
        let place = path.replace("{id}", id);
        let answer =
            if keyed { caller.post_under(&fresh_key(), &place, body) } else { caller.post(&place, body) };
        self.gives("POST", path, &answer);
        answer
    }
}

#[test]
fn what_is_sent_and_answered_is_what_is_published() {
    let service = Service::start();
    let api = Description::of(&service);
    let (till, regulator, nobody) = (service.retailer(), service.regulator(), service.nobody());
    let id = |answer: &Answer| answer.json()["claim_id"].as_str().unwrap().to_owned();
    let nothing = json!({});

    let full = service
        .sale()
        .with_imei()
        .with("/order_line", 2)
        .with("/expected_subsidy", "600.00")
        .with("/late_reason", "offline")
        .with("/accept_programme", "zj-ai-25")
        .with("/store_code", "HZ-0012")
        .with("/terminal_no", "03")
        .with("/invoice_no", "F-1")
        .with("/energy_grade", 1)
        .with("/trade_in", json!({"sn": "OLD-1", "value": "100.00"}))
        .with("/received_elsewhere", json!([]));
    let sold = api.post(&till, "/v1/claims", "", &full.body);
    assert_eq!(sold.status, 201, "{}", sold.text());
    let hold = api.post(&till, "/v1/claims", "", &service.sale().held().with("/hold_minutes", 60).body);
    let again = api.post(&till, "/v1/claims", "", &full.another().with("/expected_subsidy", "1.00").body);
    again.must_refuse("trade-in-already-used");
    let differs = service.sale().with("/expected_subsidy", "1.00").body;
    api.post(&till, "/v1/claims", "", &differs).must_refuse("subsidy-differs");
    let elsewhere = service.sale().with("/received_elsewhere", json!([{"programme": "x", "amount": "1.00"}]));
    api.post(&till, "/v1/claims", "", &elsewhere.body).must_refuse("received-elsewhere");
    api.post(&nobody, "/v1/claims", "", &full.body).must_refuse("unauthenticated");

    let device = json!({"device": service.sale().body["device"], "invoice_no": "F-2"});
    api.post(&till, "/v1/claims/{id}/redeem", &id(&hold), &device).must_be(200);
    api.post(&till, "/v1/claims/{id}/release", &id(&hold), &nothing).must_refuse("claim-state-conflict");
    let other = api.post(&till, "/v1/claims", "", &service.sale().held().body);
    api.post(&till, "/v1/claims/{id}/redeem", &id(&other), &nothing).must_refuse("device-required");
    api.post(&till, "/v1/claims/{id}/release", &id(&other), &nothing).must_be(200);
    for reason in ["unwanted", "defective", "wrong_item", "other"] {
        let claim = till.claimed(&service.sale());
        let back = json!({"reason": reason, "returned_at": claim["sold_at"]});
        let place = claim["claim_id"].as_str().unwrap();
        api.post(&till, "/v1/claims/{id}/return", place, &back).must_be(200);
    }
    let key = fresh_key();
    till.claim_under(&key, &service.sale()).must_be(201);
    for key in [key, fresh_key()] {
        api.post(&till, "/v1/claims/cancel", "", &json!({"idempotency_key": key})).must_be(200);
    }
    api.get(&till, "/v1/claims/{id}", &id(&sold)).must_be(200);
    api.get(&till, "/v1/claims/{id}", "none").must_refuse("claim-not-found");
    api.get(&till, "/v1/claims?limit=2", "").must_be(200);
    let item = |sale: &Value| json!({"idempotency_key": fresh_key(), "claim": sale});
    let items = json!({"items": [item(&service.sale().body), item(&differs)]});
    let batch = api.post(&till, "/v1/claims/batch", "", &items).must_be(200);
    assert!(
        batch["results"][0]["claim"].is_object() && batch["results"][1]["problem"].is_object(),
        "{batch}"
    );
    let bare = json!({"category": "smart_glasses", "price": "4000.00", "region_code": "330106", "sold_at": "2026-06-15T10:00:00+08:00"});
    for (pointer, value) in [
        ("category", "smart_glasses"),
        ("category", "toaster"),
        ("price", "6000.01"),
        ("expected_subsidy", "1.00"),
    ] {
        let mut asked = bare.clone();
        asked[pointer] = value.into();
        api.post(&till, "/v1/quotes", "", &asked).must_be(200);
    }
    api.get(&till, "/v1/programmes", "").must_be(200);
    api.get(&till, "/v1/programmes/{id}", "national-appliances-2026").must_be(200);

    let opening = fund_body("f-1", "zj-ai-25", "330106", "1000.00");
    api.post(&regulator, "/v1/funds", "", &opening).must_be(201);
    api.post(&regulator, "/v1/funds", "", &opening).must_refuse("fund-exists");
    for (reason, delta) in
        [("tranche", "10.00"), ("transfer", "-5"), ("correction", "0.5"), ("reclaim", "-0.01")]
    {
        let body = json!({"delta": delta, "reason": reason, "document_no": "ZC-1"});
        api.post(&regulator, "/v1/funds/{id}/adjust", "f-1", &body).must_be(200);
    }
    let below = json!({"delta": "-5000.00", "reason": "reclaim", "document_no": "ZC-1"});
    api.post(&regulator, "/v1/funds/{id}/adjust", "f-1", &below).must_refuse("fund-below-usage");
    api.post(&regulator, "/v1/funds/{id}/freeze", "f-1", &nothing).must_be(200);
    api.post(&till, "/v1/claims", "", &service.sale().body).must_refuse("fund-frozen");
    api.post(&regulator, "/v1/funds/{id}/unfreeze", "f-1", &nothing).must_be(200);
    api.get(&regulator, "/v1/funds", "").must_be(200);
    api.get(&regulator, "/v1/funds/{id}", "f-1").must_be(200);
    api.get(&regulator, "/v1/totals?group_by=day,city,category,retailer,programme,fund", "").must_be(200);
    api.get(&regulator, "/v1/journal?limit=3", "").must_be(200);
    api.get(&regulator, "/v1/journal/head", "").must_be(200);
    api.get(&nobody, "/healthz", "").must_be(200);
    api.get(&nobody, "/readyz", "").must_be(200);
    api.get(&service.operator(), "/digest", "").must_be(200);

    // A faulty request is one that is not described either, and its answer is.
    for faulty in [
        service.sale().with("/colour", "red"),
        service.sale().with("/price", 4000),
        service.sale().with("/mode", "sell"),
        service.sale().with("/order_line", 0),
        service.sale().with("/consumer/id_type", "passport"),
        service.sale().without("/consumer"),
        service.sale().with("/energy_grade", 6),
    ] {
        assert!(!api.takes("/v1/claims", &faulty.body), "{}", faulty.body);
        let answer = till.claim(&faulty);
        answer.must_refuse("invalid-request");
        api.gives("POST", "/v1/claims", &answer);
    }

    let compared = api.compared.lock().unwrap();
    for (path, item) in api.document["paths"].as_object().unwrap() {
        // Pages and metrics are text, and the description itself has no schema.
        if ["/docs", "/problems/", "/problems/{id}", "/metrics", "/openapi.json"].contains(&path.as_str()) {
            continue;
        }
        for method in item.as_object().unwrap().keys().map(|method| method.to_ascii_uppercase()) {
            assert!(compared.contains(&(method.clone(), path.clone())), "{method} {path} was not compared");
        }
    }
}

#[test]
fn the_calls_in_which_a_platform_may_name_a_retailer_are_told() {
    let service = Service::start();
    let api = Description::of(&service);
    let named = service.platform().with("x-retailer", "nobody's code");
    let mut told = 0;
    for (path, item) in api.document["paths"].as_object().unwrap() {
        let Some(operation) = item.get("get") else { continue };
        let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_told = parameters.iter().any(|parameter| parameter["name"] == "X-Retailer");
        let answer = named.get(&path.replace("{id}", "zj-ai-25"));
        let is_read = answer.status == 400 && answer.text().contains("/header/X-Retailer");
        assert_eq!(is_read, is_told, "{path}: {}", answer.text());
        told += usize::from(is_told);
    }
    assert!(told >= 4, "claims and programmes, one and all");
}
