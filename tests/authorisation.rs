//! Who may do what, and what the others learn: nothing.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::client::id_of;
use crate::support::identifiers::fresh_uscc;
use crate::support::{Answer, Caller, Service, Value, eventually, fresh_key, json};

/// Who may call a route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Everyone,
    /// Any valid token.
    Bearers,
    /// Retailers and platforms.
    Sellers,
    Regulators,
    /// Whoever reaches the operations listener; on the other there is no such thing.
    Operators,
}

/// Every route, with who may call it. A route of the service that is not here fails the walk.
const ROUTES: &[(&str, &str, For)] = &[
    ("post", "/v1/claims", For::Sellers),
    ("get", "/v1/claims", For::Bearers),
    ("post", "/v1/claims/batch", For::Sellers),
    ("post", "/v1/claims/cancel", For::Sellers),
    ("get", "/v1/claims/{claim_id}", For::Bearers),
    ("post", "/v1/claims/{claim_id}/redeem", For::Sellers),
    ("post", "/v1/claims/{claim_id}/release", For::Sellers),
    ("post", "/v1/claims/{claim_id}/return", For::Sellers),
    ("post", "/v1/quotes", For::Sellers),
    ("get", "/v1/programmes", For::Bearers),
    ("get", "/v1/programmes/{programme}", For::Bearers),
    ("post", "/v1/funds", For::Regulators),
    ("get", "/v1/funds", For::Regulators),
    ("get", "/v1/funds/{fund_id}", For::Regulators),
    ("post", "/v1/funds/{fund_id}/adjust", For::Regulators),
    ("post", "/v1/funds/{fund_id}/freeze", For::Regulators),
    ("post", "/v1/funds/{fund_id}/unfreeze", For::Regulators),
    ("get", "/v1/totals", For::Regulators),
    ("get", "/v1/journal", For::Regulators),
    ("get", "/v1/journal/head", For::Regulators),
    ("get", "/digest", For::Operators),
    ("get", "/metrics", For::Operators),
    ("get", "/healthz", For::Everyone),
    ("get", "/readyz", For::Everyone),
    ("get", "/openapi.json", For::Everyone),
    ("get", "/docs", For::Everyone),
    ("get", "/problems/", For::Everyone),
    ("get", "/problems/{code}", For::Everyone),
];

#[test]
fn every_route_is_open_to_whom_it_should_be_and_to_no_one_else() {
    let service = Service::start();
    let document = service.nobody().get("/openapi.json").must_be(200);
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            let shape = |path: &str| {
                path.split('/')
                    .map(|part| if part.starts_with('{') { "{}" } else { part })
                    .collect::<Vec<_>>()
                    .join("/")
            };
            let case = ROUTES.iter().find(|(verb, route, _)| verb == method && shape(route) == shape(path));
            assert!(case.is_some(), "{method} {path} has no authorisation case");
            described.extend(case.map(|(verb, route, _)| (*verb, *route)));
        }
    }
    for (method, path, open_to) in ROUTES.iter().filter(|(_, path, _)| path.starts_with("/v1")) {
        assert!(described.contains(&(*method, *path)), "{method} {path} is not described, so it may be gone");
        assert!(*open_to != For::Everyone);
    }

    let retailer = service.retailer();
    let platform = service.platform().with("x-retailer", &fresh_uscc());
    let regulator = service.regulator();
    let claim = retailer.claimed(&service.sale());
    let callers = [
        ("a retailer", &retailer, [For::Bearers, For::Sellers]),
        ("a platform", &platform, [For::Bearers, For::Sellers]),
        ("a regulator", &regulator, [For::Bearers, For::Regulators]),
    ];
    for (method, route, open_to) in ROUTES {
        let path = route
            .replace("{claim_id}", id_of(&claim))
            .replace("{programme}", "zj-ai-25")
            .replace("{fund_id}", "zj-ai-25.330100")
            .replace("{code}", "fund-exhausted");
        // A body that says nothing: whoever is let in is told so, whoever is not is not told anything.
        let body: Option<&[u8]> = (*method == "post").then_some(b"{\"nothing\": 1}");
        let send = |caller: &Caller, header: Option<(&str, &str)>| -> Answer {
            let mut headers = vec![];
            headers.extend(body.map(|_| ("content-type", "application/json")));
            headers.extend(header);
            caller.send(&method.to_uppercase(), &path, &headers, body)
        };
        let nobody = service.nobody();
        if *open_to == For::Operators {
            send(&nobody, None).must_refuse("not-found");
            assert_eq!(send(&service.operator(), None).status, 200, "{method} {route}");
            continue;
        }
        if *open_to == For::Everyone {
            assert_eq!(send(&nobody, None).status, 200, "{method} {route}");
            continue;
        }
        let refused = send(&nobody, None);
        refused.must_refuse("unauthenticated");
        assert!(
            refused.header("www-authenticate").is_some_and(|how| how.starts_with("Bearer")),
            "{method} {route}"
        );
        for wrong in ["Bearer", "Bearer x.y.z", "Basic dTpw", "bearer", "Bearer  "] {
            send(&nobody, Some(("authorization", wrong))).must_refuse("unauthenticated");
        }
        for (who, caller, groups) in &callers {
            let answer = send(caller, None);
            if groups.contains(open_to) {
                assert!(
                    ![401, 403].contains(&answer.status),
                    "{who} may {method} {route}: {}",
                    answer.text()
                );
            } else {
                assert_eq!(answer.code(), "forbidden", "{who} may not {method} {route}");
                answer.must_refuse("forbidden");
            }
        }
    }
}

#[test]
fn someone_elses_claim_answers_as_one_that_does_not_exist() {
    let service = Service::start();
    let owner = service.retailer();
    let hold = owner.claimed(&service.sale().held());
    let sold = owner.claimed(&service.sale());
    let platform = service.platform();
    let strangers = [
        service.retailer(),
        platform.clone().with("x-retailer", &owner.subject),
        service.caller("platform", "limited", &["--retailers", &fresh_uscc()]),
    ];
    let nothing = json!({"claim_id": "01980000-0000-7000-8000-000000000000"});
    let nonsense = json!({"claim_id": "nonsense"});
    let comparable = |answer: Answer| {
        let passing = ["x-request-id", "date", "ratelimit", "ratelimit-policy", "content-length"];
        let headers: Vec<_> =
            answer.headers.iter().filter(|(name, _)| !passing.contains(&name.as_str())).cloned().collect();
        let id = answer.header("x-request-id").unwrap_or_default().to_owned();
        (answer.status, headers, answer.text().replace(&id, "…"))
    };
    for stranger in &strangers {
        for claim in [&hold, &sold] {
            let look = |claim: &Value| comparable(stranger.get(&format!("/v1/claims/{}", id_of(claim))));
            assert_eq!(look(claim), look(&nothing), "to the byte");
            assert_eq!(look(claim), look(&nonsense), "to the byte");
            stranger.get(&format!("/v1/claims/{}", id_of(claim))).must_refuse("claim-not-found");
            if stranger.subject == "limited" {
                continue;
            }
            let device = service.sale().body["device"].clone();
            let now = service.now().to_string();
            for (verb, body) in [
                ("redeem", json!({"device": device})),
                ("release", json!({})),
                ("return", json!({"reason": "unwanted", "returned_at": now})),
            ] {
                let act = |claim: &Value| comparable(stranger.act(claim, verb, &body));
                assert_eq!(act(claim), act(&nothing), "{verb}");
                assert_eq!(act(claim), act(&nonsense), "{verb}");
            }
        }
    }
    assert_eq!((&owner.look_at(&hold), &owner.look_at(&sold)), (&hold, &sold), "nothing has changed");
}

#[test]
fn a_retailer_sees_what_platforms_submitted_for_it_and_a_platform_only_its_own() {
    let service = Service::start();
    let retailer = service.retailer();
    let platform = service.platform().with("x-retailer", &retailer.subject);
    let direct = retailer.claimed(&service.sale());
    let through = platform.claimed(&service.sale());
    assert_eq!(
        (&through["retailer"], &through["submitted_by"]),
        (&json!(retailer.subject), &json!(platform.subject))
    );
    assert_eq!(
        (&direct["retailer"], &direct["submitted_by"]),
        (&json!(retailer.subject), &json!(retailer.subject))
    );
    assert_eq!(retailer.look_at(&through), through);
    platform.get(&format!("/v1/claims/{}", id_of(&direct))).must_refuse("claim-not-found");
    assert_eq!(platform.look_at(&through), through);
    retailer.take_back(&through).must_be(200);
    assert_eq!(platform.look_at(&through)["status"], "returned");
}

#[test]
fn a_platform_names_the_retailer_it_speaks_for() {
    let service = Service::start();
    let (mine, other) = (fresh_uscc(), fresh_uscc());
    let platform = service.caller("platform", "mall", &["--retailers", &mine]);
    let sale = service.sale();
    let answer = platform.claim(&sale);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let nonsense = platform.clone().with("x-retailer", "nonsense");
    assert_eq!(nonsense.claim(&sale).status, 400);
    platform.clone().with("x-retailer", &other).claim(&sale).must_refuse("forbidden");
    platform.clone().with("x-retailer", &other).post("/v1/claims", &json!({})).must_refuse("forbidden");
    platform.clone().with("x-retailer", &other).cancel("k").must_refuse("forbidden");
    platform.clone().with("x-retailer", &mine).claim(&sale).must_be(201);
    platform
        .clone()
        .with("x-retailer", &format!(" {} ", mine.to_lowercase()))
        .claim(&service.sale())
        .must_be(201);
    assert_eq!(platform.list("/v1/claims").len(), 2, "reading needs no retailer");
    let retailer = service.retailer();
    let named = retailer.clone().with("x-retailer", &retailer.subject);
    assert_eq!(named.claim(&service.sale()).status, 400, "only platforms speak for others");
    let regulator = service.regulator().with("x-retailer", &mine);
    let answer = regulator.post("/v1/funds/zj-ai-25.330100/freeze", &json!({}));
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[test]
fn a_regulator_of_some_regions_sees_and_does_nothing_elsewhere() {
    let service = Service::start();
    let till = service.retailer();
    let here = till.claimed(&service.sale().region("330106"));
    let there = till.claimed(&service.sale().region("330206"));
    let limited = service.caller("regulator", "hangzhou", &["--regions", "330100"]);
    assert_eq!(limited.look_at(&here), here);
    limited.get(&format!("/v1/claims/{}", id_of(&there))).must_refuse("claim-not-found");
    let listed: Vec<_> = eventually("the book has it", Duration::from_secs(10), || {
        let listed = limited.list("/v1/claims");
        (!listed.is_empty()).then_some(listed)
    });
    assert!(listed.iter().all(|claim| claim["claim_id"] == here["claim_id"]), "{listed:?}");
    assert_eq!(limited.list(&format!("/v1/claims?retailer={}&region_code=330206", till.subject)).len(), 0);
    limited.fund("zj-ai-25.330100");
    limited.get("/v1/funds/zj-ai-25.330200").must_refuse("fund-not-found");
    limited.post("/v1/funds/zj-ai-25.330200/freeze", &json!({})).must_refuse("fund-not-found");
    let change = json!({"delta": "1.00", "reason": "tranche", "document_no": "D-1"});
    limited
        .post_under(&fresh_key(), "/v1/funds/zj-ai-25.330200/adjust", &change)
        .must_refuse("fund-not-found");
    limited.post_under(&fresh_key(), "/v1/funds/zj-ai-25.330100/adjust", &change).must_be(200);
    assert!(
        limited
            .list("/v1/funds")
            .iter()
            .all(|fund| fund["region_code"].as_str().unwrap().starts_with("3301"))
    );
    let fund = |region: &str| {
        crate::support::service::fund_body(&format!("new.{region}"), "zj-ai-25", region, "1.00")
    };
    limited.post_under(&fresh_key(), "/v1/funds", &fund("330106")).must_be(201);
    limited.post_under(&fresh_key(), "/v1/funds", &fund("330206")).must_refuse("forbidden");
    limited.post_under(&fresh_key(), "/v1/funds", &fund("330000")).must_refuse("forbidden");
    limited.get("/v1/journal?after=0").must_refuse("forbidden");
    limited.get("/v1/journal/head").must_refuse("forbidden");
}

/// Tokens made by a test, to be wrong in ways that the command line does not allow.
struct Issuer {
    key: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        Self { key: Ed25519KeyPair::generate().expect("a key") }
    }

    fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "test", "x": x}]})
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

#[test]
fn a_token_that_is_wrong_in_any_way_is_none() {
    let mut service = Service::start();
    let jwks = crate::support::service::find_file(service.data(), |name| name.contains("jwks"));
    let mut known: Value = serde_json::from_slice(&std::fs::read(&jwks).unwrap()).unwrap();
    let dev = service.token("retailer", &fresh_uscc(), &[]);
    let dev_claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(dev.split('.').nth(1).unwrap()).unwrap()).unwrap();
    let issuer = Issuer::new();
    let added = issuer.jwks()["keys"][0].clone();
    known["keys"].as_array_mut().unwrap().push(added);
    std::fs::write(&jwks, known.to_string()).unwrap();

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let header = json!({"alg": "EdDSA", "kid": "test", "typ": "JWT"});
    let claims = json!({"iss": dev_claims["iss"], "aud": "subsidy-pos", "sub": fresh_uscc(), "role": "retailer",
        "iat": now, "exp": now + 600});
    let ask = |header: &Value, claims: &Value| {
        service.nobody().bearing("x", &issuer.token(header, claims)).get("/v1/claims")
    };
    eventually("the new key is read without a restart", Duration::from_secs(20), || {
        (ask(&header, &claims).status == 200).then_some(())
    });
    let with = |member: &str, value: Value| {
        let mut claims = claims.clone();
        claims[member] = value;
        claims
    };
    let without = |member: &str| {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove(member);
        claims
    };
    for wrong in ["iss", "aud", "sub", "exp", "iat", "role"].iter().map(|member| without(member)).chain([
        with("iss", json!("someone-else")),
        with("aud", json!("another-service")),
        with("aud", json!(["another-service"])),
        with("exp", json!(now - 31)),
        with("exp", json!("tomorrow")),
        with("iat", json!(now + 300)),
        with("iat", json!("now")),
        with("nbf", json!(now + 300)),
        with("role", json!("admin")),
        with("role", json!(["retailer"])),
        with("sub", json!("not a retailer")),
        with("sub", json!("91110000600037341N")),
        with("sub", json!(7)),
    ]) {
        let answer = ask(&header, &wrong);
        assert_eq!((answer.status, answer.code().as_str()), (401, "unauthenticated"), "{wrong}");
    }
    for right in [
        with("aud", json!(["subsidy-pos", "another"])),
        with("exp", json!(now - 20)),
        with("nbf", json!(now + 20)),
        with("iat", json!(now + 20)),
    ] {
        assert_eq!(ask(&header, &right).status, 200, "leeway of 30 s, several audiences: {right}");
    }
    for wrong in [
        json!({"alg": "none", "kid": "test"}),
        json!({"alg": "HS256", "kid": "test"}),
        json!({"alg": "ES256", "kid": "test"}),
        json!({"alg": "EdDSA", "kid": "other"}),
        json!({"alg": "EdDSA"}),
        json!({"alg": "EdDSA", "kid": "test", "crit": ["b64"], "b64": false}),
    ] {
        assert_eq!(ask(&wrong, &claims).status, 401, "{wrong}");
    }
    let other = Issuer::new();
    let forged = service.nobody().bearing("x", &other.token(&header, &claims)).get("/v1/claims");
    forged.must_refuse("unauthenticated");
    let unsigned = issuer.token(&json!({"alg": "none"}), &claims);
    let unsigned = unsigned.rsplit_once('.').unwrap().0.to_owned() + ".";
    service.nobody().bearing("x", &unsigned).get("/v1/claims").must_refuse("unauthenticated");

    // A broken file leaves the keys as they were; a key taken out is out.
    std::fs::write(&jwks, "{broken").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(ask(&header, &claims).status, 200, "a broken file changes nothing");
    known["keys"].as_array_mut().unwrap().pop();
    std::fs::write(&jwks, known.to_string()).unwrap();
    eventually("the old key is forgotten", Duration::from_secs(80), || {
        (ask(&header, &claims).status == 401).then_some(())
    });
    assert!(service.stop().success());
}

#[test]
fn a_token_ends_when_it_says_however_warm_the_cache() {
    let service = Service::start();
    let subject = fresh_uscc();
    let token = service.token("retailer", &subject, &["--ttl", "1s"]);
    let caller = service.nobody().bearing(&subject, &token);
    assert_eq!(caller.get("/v1/claims").status, 200);
    // The leeway is 30 s, so the token stays good for a while and no longer.
    eventually("the token has ended", Duration::from_secs(40), || {
        std::thread::sleep(Duration::from_millis(300));
        (caller.get("/v1/claims").status == 401).then_some(())
    });
}
