//! A person's number is nowhere but in the request.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::support::client::raw;
use crate::support::identifiers::fifteen_digits;
use crate::support::service::files_below;
use crate::support::{Service, fresh_key, json};

const MARKER: &str = "11010519491231002X";

/// Everything by which the number could be known again: whole, in its other forms, its telling parts,
/// encoded.
fn traces() -> Vec<Vec<u8>> {
    let short = fifteen_digits(MARKER);
    let mut traces: Vec<String> = vec![
        MARKER.into(),
        MARKER.to_lowercase(),
        short.clone(),
        MARKER[..17].into(),
        MARKER[6..17].into(),
        MARKER[..14].into(),
        MARKER.chars().rev().collect(),
    ];
    for text in [MARKER, &MARKER.to_lowercase(), &short] {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        traces.extend([hex.to_uppercase(), hex]);
        for shift in 0..3 {
            // Base64 looks different at each of three offsets; what depends on neighbours is cut off.
            let padded = format!("{}{text}", &"???"[..shift]);
            for encoded in [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
                traces.push(encoded[4..encoded.len() - 2].to_owned());
            }
        }
    }
    traces.into_iter().map(String::into_bytes).collect()
}

#[track_caller]
fn must_not_tell(place: &str, bytes: &[u8]) {
    for trace in traces() {
        let found = bytes.windows(trace.len()).any(|window| window == trace);
        assert!(!found, "{place} tells {}", String::from_utf8_lossy(&trace));
    }
}

#[test]
fn a_number_is_found_in_no_file_log_metric_or_answer() {
    let mut service =
        Service::start_with(crate::support::Options::default().env("SUBSIDY_POS__LOG__LEVEL", "trace"));
    let till = service.retailer();
    let mut answers = Vec::new();
    let marked = || service.sale().resident(MARKER);
    let key = fresh_key();
    let sale = marked();
    let made = till.claim_under(&key, &sale);
    let claim = made.must_be(201);
    answers.push(made);
    answers.push(till.claim_under(&key, &sale));
    answers.push(till.claim(&marked()));
    answers.push(till.claim(&marked().resident(&fifteen_digits(MARKER))));
    answers.push(till.claim(&marked().resident(&MARKER.to_lowercase())));
    answers.push(till.claim_under(&key, &marked().price("1.00")));
    answers.push(till.post("/v1/quotes", &marked().body));
    answers.push(
        till.post("/v1/claims/batch", &json!({"items": [{"idempotency_key": "b", "claim": marked().body}]})),
    );
    answers.push(till.take_back(&claim));
    answers.push(till.get("/v1/claims"));
    answers.push(service.regulator().get("/v1/journal?limit=200"));
    // Where it does not belong.
    answers.push(till.claim(&marked().person("passport", MARKER)));
    answers.push(till.claim(&marked().person("tw_travel_permit", MARKER)));
    answers.push(till.claim(&marked().with("/price", MARKER)));
    answers.push(till.claim(&marked().with("/mode", MARKER)));
    answers.push(till.claim(&marked().with("/device/barcode", MARKER)));
    answers.push(till.claim(&marked().with("/sold_at", MARKER)));
    answers.push(till.claim(&marked().with("/consumer", MARKER)));
    answers.push(till.claim(&marked().with("/region_code", MARKER)));
    answers.push(till.claim(&marked().with("/accept_programme", MARKER)));
    answers.push(till.claim(&marked().with(&format!("/{MARKER}"), 1)));
    answers.push(till.claim(&marked().with(&format!("/consumer/{MARKER}"), 1)));
    answers.push(till.claim(&marked().with("/consumer/id_type", MARKER)));
    answers.push(till.claim_under(&fresh_key(), &marked().with("/order_line", MARKER)));
    answers.push(till.get(&format!("/v1/claims/{MARKER}")));
    answers.push(till.get(&format!("/v1/{MARKER}")));
    answers.push(till.get(&format!("/v1/claims?cursor={MARKER}")));
    answers.push(till.get(&format!("/v1/claims?{MARKER}=1")));
    answers.push(till.get(&format!("/v1/programmes/{MARKER}")));
    answers.push(service.regulator().get(&format!("/v1/funds/{MARKER}")));
    answers.push(service.nobody().bearing("x", MARKER).get("/v1/claims"));
    answers.push(till.clone().with("x-request-id", MARKER).get("/v1/claims/x"));
    answers.push(till.clone().with("accept-language", MARKER).get("/v1/claims/x"));
    answers.push(till.clone().with("x-retailer", MARKER).get("/v1/claims/x"));
    answers.push(till.send(
        "POST",
        "/v1/claims",
        &[("content-type", MARKER), ("idempotency-key", "k")],
        Some(b"{}"),
    ));
    let broken = marked().body.to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    answers.push(till.send("POST", "/v1/claims", &headers, Some(&broken.as_bytes()[..broken.len() - 1])));
    answers.push(till.send(
        "POST",
        "/v1/claims",
        &headers,
        Some(format!("{{\"consumer\": {MARKER}}}").as_bytes()),
    ));
    answers.push(till.send(MARKER, "/v1/claims", &[], None));
    let garbled = raw(
        &service.address(),
        &[format!("{MARKER} {MARKER} {MARKER}\r\n\r\n").as_bytes()],
        std::time::Duration::ZERO,
        std::time::Duration::from_millis(300),
    );
    must_not_tell("a garbled request's answer", garbled.as_bytes());
    for (index, answer) in answers.iter().enumerate() {
        must_not_tell(&format!("answer {index}"), &answer.body);
        must_not_tell(&format!("answer {index}'s headers"), format!("{:?}", answer.headers).as_bytes());
    }
    must_not_tell("the metrics", service.metrics().as_bytes());
    let look = |service: &Service, when: &str| {
        let files = files_below(service.data());
        assert!(
            files.iter().any(|file| file.ends_with("journal.db"))
                && files.iter().any(|file| file.ends_with("book.db"))
        );
        for file in files {
            must_not_tell(&format!("{} {when}", file.display()), &std::fs::read(&file).unwrap_or_default());
        }
        must_not_tell(&format!("the log {when}"), service.log().as_bytes());
    };
    look(&service, "while it runs");
    let verify = service.verify(&[]);
    must_not_tell("verify", crate::support::service::said(&verify).as_bytes());
    assert!(service.stop().success());
    look(&service, "after it has stopped");
}

#[test]
fn only_a_keyed_hash_is_kept_and_it_names_its_key() {
    let service = Service::start();
    let other = Service::start();
    let consumer = |service: &Service| {
        service.retailer().claimed(&service.sale().resident(MARKER));
        let entries = service.entries();
        let made = entries.iter().find_map(|entry| entry["event"].get("claim_made").cloned()).unwrap();
        made["sale"]["consumer"].clone()
    };
    let (here, there) = (consumer(&service), consumer(&other));
    assert_eq!((&here["id_type"], &here["key"]), (&json!("resident_id"), &json!("hmac-sha256/k1")));
    assert_ne!(here["digest"], there["digest"], "another secret gives another hash");
    let unkeyed = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, MARKER.as_bytes());
    let unkeyed: String = unkeyed.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!here.to_string().contains(&unkeyed[..32]), "never without a key");
}
