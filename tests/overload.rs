//! Full means 503 at once.

use std::slice;
use std::time::{Duration, Instant};

use crate::support::trace::Tracer;
use crate::support::{Service, Value, at_once, eventually, fresh_key, json};

#[test]
fn what_does_not_fit_the_queue_is_refused_at_once_and_the_rest_is_done() {
    let service = Service::start();
    let till = service.retailer();
    let batches: Vec<(Vec<String>, Value)> = (0..30)
        .map(|_| {
            let keys: Vec<_> = (0..500).map(|_| fresh_key()).collect();
            let items: Vec<_> = keys
                .iter()
                .map(|key| json!({"idempotency_key": key, "claim": service.sale().body}))
                .collect();
            (keys, json!({"items": items}))
        })
        .collect();
    // Every sync takes the better part of a second, so that what is sent meanwhile piles up.
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=800000"];
    let tracer = Tracer::attach(&service, &inject);
    let answers = at_once(30, |index| {
        let began = Instant::now();
        let answer = till.post("/v1/claims/batch", &batches[index].1);
        (began.elapsed(), answer)
    });
    drop(tracer);
    let mut refused = 0;
    for (took, answer) in &answers {
        if answer.code() == "overloaded" {
            answer.must_refuse("overloaded");
            assert!(*took < Duration::from_secs(8), "at once, but for reading it: {took:?}");
            refused += 500;
            continue;
        }
        if answer.status == 503 {
            // It was taken in and may have been done, only not within the time for an answer.
            answer.must_refuse("ledger-unavailable");
            continue;
        }
        for result in answer.must_be(200)["results"].as_array().unwrap() {
            match result["status"].as_u64().unwrap() {
                201 => {}
                503 => refused += 1,
                other => panic!("{other}: {result}"),
            }
        }
    }
    assert!(refused > 0, "15,000 claims do not fit");
    // Sent again, everything is made once.
    for (_, batch) in &batches {
        let answer = eventually("there is room again", Duration::from_secs(30), || {
            let answer = till.post("/v1/claims/batch", batch);
            (answer.status == 200).then_some(answer)
        });
        assert!(answer.json()["results"].as_array().unwrap().iter().all(|result| result["status"] == 201));
    }
    let metrics = service.metrics();
    assert!(metrics.contains("overloaded"), "it is counted");
    service.must_verify();
    let made = service.regulator().get("/v1/totals").must_be(200)["items"][0]["redeemed"]["items"].as_i64();
    assert_eq!(made, Some(15_000));
}

#[test]
fn what_needs_no_decision_goes_on_while_the_writer_is_held_up_and_the_rest_waits_for_it() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale();
    let first = till.claim_under("first", &sale);
    let claim = first.must_be(201);
    assert_eq!(till.list("/v1/claims"), slice::from_ref(&claim));
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=3000000"];
    let tracer = Tracer::attach(&service, &inject);
    std::thread::scope(|scope| {
        let asked = Instant::now();
        let slow = scope.spawn(|| till.claim(&service.sale()).must_be(201));
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        assert_eq!(service.nobody().get("/healthz").status, 200);
        assert_eq!(till.get("/v1/programmes").status, 200);
        assert_eq!(till.list("/v1/claims"), slice::from_ref(&claim));
        let again = till.claim_under("first", &sale);
        assert_eq!((again.is_replay(), again.text()), (true, first.text()));
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        assert!(!slow.is_finished(), "the writer is held up");
        // How a single claim stands is for the writer to say.
        assert_eq!(till.look_at(&claim), claim);
        assert!(asked.elapsed() >= Duration::from_secs(3), "{:?}", asked.elapsed());
        slow.join().unwrap();
    });
    drop(tracer);
}

#[test]
fn a_disk_that_does_not_answer_is_told_within_the_time_for_a_decision() {
    let service = Service::start();
    let till = service.retailer();
    let sale = service.sale();
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=14000000"];
    let tracer = Tracer::attach(&service, &inject);
    let began = Instant::now();
    let answer = till.claim_under("slow", &sale);
    let took = began.elapsed();
    answer.must_refuse("ledger-unavailable");
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(13), "{took:?}");
    drop(tracer);
    // What has become of it is found by asking again.
    eventually("it settles", Duration::from_secs(40), || {
        (till.claim_under("slow", &sale).status == 201).then_some(())
    });
    assert_eq!(till.list("/v1/claims").len(), 1);
    service.must_verify();
}
