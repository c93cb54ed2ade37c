//! HTTP itself: sizes, times, verbs, pages.

use std::time::{Duration, Instant};

use crate::support::client::{CODES, raw};
use crate::support::{Service, at_once, fresh_key, json};

const SOON: Duration = Duration::from_secs(3);

#[test]
fn a_body_over_its_bound_is_refused() {
    let service = Service::start();
    let till = service.retailer();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let mut body = service.sale().body.to_string();
    let padding = 16 * 1024 - body.len();
    body.push_str(&" ".repeat(padding));
    assert_eq!(till.send("POST", "/v1/claims", &headers, Some(body.as_bytes())).status, 201, "16 KiB fit");
    body.push(' ');
    till.send("POST", "/v1/claims", &headers, Some(body.as_bytes())).must_refuse("too-large");
    let batch = format!("{{\"items\": [{}]}}", " ".repeat(1024 * 1024));
    till.post_text("/v1/claims/batch", &batch).must_refuse("too-large");
    let batch = format!("{{\"items\": [{}]}}", " ".repeat(1000 * 1024));
    till.post_text("/v1/claims/batch", &batch).must_refuse("invalid-request");
    // Without a length the bound holds too, and the service does not read on for ever.
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let head = format!(
        "POST /v1/claims HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\nidempotency-key: k2\r\ntransfer-encoding: chunked\r\n\r\n",
        till.authorization()
    );
    let answer = raw(
        &service.address(),
        &[head.as_bytes(), chunk.as_bytes(), chunk.as_bytes()],
        Duration::from_millis(50),
        SOON,
    );
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn only_json_without_an_encoding_is_taken() {
    let service = Service::start();
    let till = service.retailer();
    let body = service.sale().body.to_string();
    for headers in [
        vec![("content-type", "text/plain")],
        vec![("content-type", "application/x-www-form-urlencoded")],
        vec![("content-type", "application/jsonp")],
        vec![("content-type", "application/json; charset=gbk")],
        vec![("content-type", "application/json"), ("content-encoding", "gzip")],
        vec![],
    ] {
        let mut headers = headers;
        headers.push(("idempotency-key", "k"));
        till.send("POST", "/v1/claims", &headers, Some(body.as_bytes()))
            .must_refuse("unsupported-media-type");
    }
    for kind in ["application/json", "Application/JSON; Charset=\"UTF-8\"", "application/json;charset=utf-8"]
    {
        let key = fresh_key();
        let body = service.sale().body.to_string();
        let headers =
            [("content-type", kind), ("idempotency-key", key.as_str()), ("content-encoding", "identity")];
        assert_eq!(till.send("POST", "/v1/claims", &headers, Some(body.as_bytes())).status, 201, "{kind}");
    }
}

#[test]
fn an_unknown_path_and_a_wrong_verb_are_told_apart() {
    let service = Service::start();
    for caller in [service.nobody(), service.retailer()] {
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/v2/claims",
            "/v1/claims/",
            "/v1/claims/x/y/z",
            "/V1/claims",
            "/v1//claims",
            "/metrics",
        ] {
            caller.get(path).must_refuse("not-found");
        }
        for (method, path, allow) in [
            ("DELETE", "/v1/claims", "GET, HEAD, POST"),
            ("PUT", "/v1/claims/cancel", "POST"),
            ("GET", "/v1/claims/batch", "POST"),
            ("GET", "/v1/quotes", "POST"),
            ("POST", "/v1/programmes", "GET, HEAD"),
            ("DELETE", "/healthz", "GET, HEAD"),
            ("PATCH", "/v1/funds", "GET, HEAD, POST"),
        ] {
            let answer = caller.send(method, path, &[], None);
            answer.must_refuse("method-not-allowed");
            let mut allowed: Vec<_> = answer
                .header("allow")
                .expect("Allow")
                .split(", ")
                .filter(|verb| *verb != "OPTIONS")
                .collect();
            allowed.sort_unstable();
            let without_head: Vec<_> = allowed.iter().copied().filter(|verb| *verb != "HEAD").collect();
            let expected: Vec<_> = allow.split(", ").filter(|verb| *verb != "HEAD").collect();
            assert_eq!(without_head, expected, "{method} {path}");
        }
    }
}

#[test]
fn a_request_that_never_ends_is_answered_408() {
    let service = Service::start();
    let till = service.retailer();
    let head = format!(
        "POST /v1/claims HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\nidempotency-key: k\r\ncontent-length: 900\r\n\r\n{{\"mode\":",
        till.authorization()
    );
    let slow_body: Vec<&[u8]> =
        std::iter::once(head.as_bytes()).chain(std::iter::repeat_n(b" ".as_slice(), 26)).collect();
    let slow_head: Vec<&[u8]> = std::iter::once(b"POST /v1/claims HTTP/1.1\r\nhost: x\r\n".as_slice())
        .chain(std::iter::repeat_n(b"a: b\r\n".as_slice(), 26))
        .collect();
    let answers = at_once(4, |index| {
        let began = Instant::now();
        let pause = Duration::from_millis(500);
        let answer = match index {
            0 => raw(&service.address(), &[head.as_bytes()], pause, Duration::from_secs(16)),
            1 => raw(&service.address(), &slow_body, pause, SOON),
            2 => raw(&service.address(), &slow_head, pause, SOON),
            _ => {
                std::thread::sleep(Duration::from_secs(2));
                till.claim(&service.sale()).must_be(201);
                String::new()
            }
        };
        (began.elapsed(), answer)
    });
    for (took, answer) in &answers[..3] {
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?} after {took:?}");
        assert!(*took < Duration::from_secs(17), "{took:?}");
    }
    for (took, answer) in &answers[..2] {
        assert!(
            answer.contains("application/problem+json") && answer.contains("/problems/request-timeout"),
            "{answer}"
        );
        assert!(*took > Duration::from_secs(8), "ten seconds are given: {took:?}");
    }
}

#[test]
fn nonsense_on_the_wire_gets_a_problem_or_a_closed_connection_and_never_a_500() {
    let service = Service::start();
    let till = service.retailer();
    let long_target = format!("GET /v1/claims?{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200_000));
    let long_header = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(300_000));
    let two_lengths =
        "POST /v1/claims HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef";
    let both = "POST /v1/claims HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for bytes in [
        "nonsense\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\0\0\0\0",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        two_lengths,
        both,
        long_target.as_str(),
        long_header.as_str(),
    ] {
        let answer = raw(&service.address(), &[bytes.as_bytes()], Duration::ZERO, Duration::from_millis(400));
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{bytes:.30?}: {answer:.200}"
        );
    }
    let odd = till.send("GET", "/v1/claims/%00%ff", &[], None);
    odd.must_refuse("claim-not-found");
    assert_eq!(till.send("GET", "/v1/claims?limit=%zz", &[], None).status, 400);
    till.claim(&service.sale()).must_be(201);
}

#[test]
fn every_answer_has_a_request_id_of_its_own() {
    let service = Service::start();
    let till = service.retailer();
    let mut seen = std::collections::HashSet::new();
    for path in ["/healthz", "/v1/claims", "/v1/claims/x", "/nowhere", "/openapi.json", "/problems/cancelled"]
    {
        for _ in 0..3 {
            let answer = till.get(path);
            assert!(seen.insert(answer.header("x-request-id").expect("an id").to_owned()), "{path}");
        }
    }
}

#[test]
fn there_is_a_page_for_every_problem() {
    let service = Service::start();
    let nobody = service.nobody();
    for (code, _) in CODES {
        let page = nobody.get(&format!("/problems/{code}"));
        assert_eq!(page.status, 200, "{code}");
        let kind = page.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/html"), "{kind}");
        let text = page.text();
        assert!(text.contains(code), "{code}");
        assert!(text.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)), "in Chinese too: {code}");
    }
    nobody.get("/problems/no-such-code").must_refuse("not-found");
}

#[test]
fn the_description_is_valid_and_its_page_needs_no_one_else() {
    let service = Service::start();
    let nobody = service.nobody();
    let document = nobody.get("/openapi.json").must_be(200);
    assert!(
        document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")),
        "{}",
        document["openapi"]
    );
    let text = document.to_string();
    // Every reference within the document leads somewhere.
    for (start, _) in text.match_indices("\"$ref\":\"#") {
        let rest = &text[start + "\"$ref\":\"#".len()..];
        let pointer = &rest[..rest.find('"').expect("the end of the reference")];
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(
                operation["responses"].as_object().is_some_and(|responses| !responses.is_empty()),
                "{method} {path}"
            );
            let named = path.matches('{').count();
            let described = operation["parameters"]
                .as_array()
                .map_or(0, |list| list.iter().filter(|one| one["in"] == "path").count());
            assert_eq!(named, described, "{method} {path}");
        }
    }
    let page = nobody.get("/docs");
    assert_eq!(page.status, 200);
    let html = page.text();
    for remote in ["src=\"http", "href=\"http", "src='http", "url(http", "//cdn", "import \"http"] {
        assert!(!html.contains(remote), "the page loads something from elsewhere: {remote}");
    }
}

#[test]
fn the_example_of_the_contract_is_answered_as_it_says() {
    let service = Service::start();
    let till = service.retailer();
    let sold_at = service.now().to_string();
    let sale = json!({
        "mode": "redeem", "order_no": "SO20261123-000817", "order_line": 1, "category": "smart_glasses",
        "price": "4000.00", "expected_subsidy": "600.00", "region_code": "330106", "sold_at": sold_at,
        "consumer": {"id_type": "resident_id", "id_number": "11010519491231002X"},
        "device": {"sn": "RG2-8812-00417", "barcode": "6901234567892", "imei": ["490154203237518"]},
        "sale_channel": "offline", "store_code": "HZ-0012", "terminal_no": "03"
    });
    let answer = till.post_under(&fresh_key(), "/v1/claims", &sale);
    let claim = answer.must_be(201);
    let expected = json!({
        "status": "redeemed", "retailer": till.subject, "submitted_by": till.subject,
        "order_no": "SO20261123-000817", "order_line": 1, "category": "smart_glasses",
        "price": "4000.00", "subsidy": "600.00", "payable": "3400.00",
        "programme": "zj-ai-25", "fund_id": "zj-ai-25.330100", "region_code": "330106", "held_until": null,
        "device": {"sn": "RG2-8812-00417", "barcode": "06901234567892", "imei": ["490154203237518"]},
        "consumer": {"id_type": "resident_id"},
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&claim[member], value, "{member}");
    }
    let determination = &claim["determination"];
    assert_eq!(
        (&determination["rounding"], &determination["overlap"]),
        (&json!("down_to_fen"), &json!("highest_only"))
    );
    let considered = determination["considered"].as_array().unwrap();
    assert_eq!(considered.len(), 2, "{considered:?}");
    let chosen = json!({"programme": "zj-ai-25", "price_base": "4000.00", "rate": "0.15", "computed": "600.00",
        "cap": "2000.00", "amount": "600.00", "chosen": true});
    let other = json!({"programme": "national-digital-2026", "price_base": "4000.00", "rate": "0.15", "computed": "600.00",
        "cap": "500.00", "amount": "500.00", "chosen": false, "reason": "lower"});
    for (judged, expected) in considered.iter().zip([chosen, other]) {
        for (member, value) in expected.as_object().unwrap() {
            assert_eq!(&judged[member], value, "{member} of {judged}");
        }
        assert!(judged["clause"].as_str().is_some_and(|clause| !clause.is_empty()), "{judged}");
    }
    assert!(claim["journal"]["position"].as_u64().is_some_and(|position| position > 0));
    assert_eq!(claim["journal"]["hash"].as_str().map(str::len), Some(64));
    for time in ["sold_at", "created_at", "updated_at"] {
        assert!(claim[time].as_str().unwrap().ends_with("+08:00"), "{time}");
    }
    let id = claim["claim_id"].as_str().unwrap();
    assert!(id.len() == 36 && id.as_bytes()[14] == b'7', "a UUIDv7: {id}");
    assert!(answer.header("location").is_none_or(|place| place.ends_with(id)));
    assert_eq!(till.look_at(&claim), claim);
}
