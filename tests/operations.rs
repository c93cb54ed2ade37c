//! What whoever runs the service relies on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::service::{Exit, files_below};
use crate::support::{Options, Sale, Service, fresh_key, json};

#[test]
fn health_is_told_on_both_listeners_and_metrics_on_one() {
    let service = Service::start();
    for caller in [service.nobody(), service.operator()] {
        assert_eq!(caller.get("/healthz").status, 200);
        let ready = caller.get("/readyz").must_be(200);
        let text = ready.to_string();
        assert!(text.contains("local"), "which shield is used: {text}");
        assert!(text.contains("degraded"), "and whether it is degraded: {text}");
    }
    service.nobody().get("/metrics").must_refuse("not-found");
    service.operator().get("/v1/claims").must_refuse("not-found");
}

#[test]
fn the_metrics_count_what_happens() {
    let service = Service::start();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    till.claim(&service.sale().category("toaster")).must_refuse("category-not-eligible");
    till.list("/v1/claims");
    let metrics = service.metrics();
    for part in [
        "http_request_duration_seconds",
        "batch",
        "append",
        "seconds",
        "queue",
        "refusals",
        "book_lag",
        "journal_position",
    ] {
        assert!(metrics.contains(part), "{part} in\n{metrics}");
    }
    let line = |part: &str| {
        metrics
            .lines()
            .find(|line| line.contains(part) && !line.starts_with('#'))
            .unwrap_or_else(|| panic!("{part} in\n{metrics}"))
    };
    assert!(line("category-not-eligible").ends_with(" 1"));
    let number = |part: &str| line(part).rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
    let made = claim["journal"]["position"].as_u64().unwrap();
    assert!(number("_journal_position") >= made && number("_book_position") >= made, "{metrics}");
    assert!(number("_batch_entries_count") > 1 && number("_append_seconds_count") > 1, "{metrics}");
    assert!(
        metrics.contains("/v1/claims\"") && metrics.contains("\"201\""),
        "by route and status:\n{metrics}"
    );
    assert!(!metrics.contains(claim["claim_id"].as_str().unwrap()), "routes, not paths");
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let service = Service::start();
    let till = service.retailer();
    let Err(Exit { status, output }) = Service::try_start(Options::on(service.data())) else {
        panic!("it started")
    };
    assert!(!status.success());
    assert!(output.contains(service.data().to_str().unwrap()) && !output.contains("panicked"), "{output}");
    till.claimed(&service.sale());
    service.must_verify();
}

#[test]
fn verify_runs_beside_a_live_service() {
    let service = Service::start();
    let till = service.retailer();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                till.claimed(&service.sale());
            }
        });
        for _ in 0..5 {
            service.must_verify();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn stopping_finishes_what_was_begun_and_leaves_a_clean_journal() {
    for _ in 0..3 {
        let mut service = Service::start();
        let till = service.retailer();
        let now = service.now();
        let stopped = AtomicBool::new(false);
        let (status, acknowledged, broken) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut acknowledged, mut broken) = (Vec::new(), Vec::new());
                        loop {
                            let (key, sale) = (fresh_key(), Sale::at(now));
                            match till.try_post_under(&key, "/v1/claims", &sale.body) {
                                Ok(answer) if answer.status == 201 => acknowledged.push((key, sale, answer)),
                                Ok(answer) => {
                                    assert!(
                                        matches!(answer.code().as_str(), "overloaded" | "ledger-unavailable"),
                                        "{}",
                                        answer.text()
                                    );
                                    break;
                                }
                                Err(fault) => {
                                    broken.push(fault.to_string());
                                    break;
                                }
                            }
                        }
                        assert!(
                            stopped.load(Ordering::Relaxed),
                            "a request failed before the service was asked to stop"
                        );
                        (acknowledged, broken)
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(400));
            stopped.store(true, Ordering::Relaxed);
            let status = service.stop();
            let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let (acknowledged, broken): (Vec<_>, Vec<_>) = results.into_iter().unzip();
            (status, acknowledged.concat(), broken.concat())
        });
        assert!(status.success(), "{status}");
        assert!(acknowledged.len() > 8, "{} claims", acknowledged.len());
        for fault in &broken {
            let refused = ["refused", "Connection", "connection", "closed", "reset", "Peer", "pipe"]
                .iter()
                .any(|word| fault.contains(word));
            assert!(refused, "{fault}");
        }
        let wal = files_below(service.data())
            .into_iter()
            .find(|file| file.to_string_lossy().ends_with("journal.db-wal"));
        assert!(
            wal.is_none_or(|wal| std::fs::metadata(wal).unwrap().len() == 0),
            "nothing is left in the write-ahead log"
        );
        service.must_verify();
        service.start_again();
        for (key, sale, answer) in acknowledged.iter().step_by(7) {
            assert_eq!(till.claim_under(key, sale).text(), answer.text());
        }
        // Whoever was cut off finds out by asking again; nothing was made that nobody asked for.
        let made = service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count();
        assert!(
            made >= acknowledged.len() && made <= acknowledged.len() + broken.len(),
            "{made} made, {} known",
            acknowledged.len()
        );
    }
}

#[test]
fn a_request_under_way_when_the_service_is_asked_to_stop_is_answered() {
    let mut service = Service::start();
    let till = service.retailer();
    let tracer = crate::support::trace::Tracer::attach(
        &service,
        &["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=1500000"],
    );
    let sale = service.sale();
    let answer = std::thread::scope(|scope| {
        let post = scope.spawn(|| till.claim_under("slow", &sale));
        std::thread::sleep(Duration::from_millis(500));
        service.signal("TERM");
        post.join().unwrap()
    });
    answer.must_be(201);
    drop(tracer);
    assert!(service.ended().success());
    service.start_again();
    assert_eq!(till.claim_under("slow", &sale).text(), answer.text());
}

#[test]
fn the_first_start_prints_tokens_and_a_sale_that_works_when_pasted() {
    let service = Service::start_with(Options { clock: None, ..Options::default() });
    let log = crate::support::eventually("a sale to paste is printed", Duration::from_secs(5), || {
        let log = service.log();
        log.lines().any(|line| line.contains("curl ") && line.ends_with("}'")).then_some(log)
    });
    for role in ["retailer", "platform", "regulator"] {
        assert!(log.contains(role), "a token for each role:\n{log}");
    }
    let curl = log.find("curl ").unwrap_or_else(|| panic!("a curl line in\n{log}"));
    let start = log[..curl].rfind('\n').map_or(0, |end| end + 1);
    let mut pasted = String::new();
    for line in log[start..].lines() {
        match line.strip_suffix('\\') {
            Some(more) => {
                pasted.push_str(more);
                pasted.push(' ');
            }
            None => {
                pasted.push_str(line);
                break;
            }
        }
    }
    for _ in 0..2 {
        let output = Command::new("bash").args(["-c", &pasted]).output().expect("bash");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("\"claim_id\"") && said.contains("\"redeemed\""), "{pasted}\n{said}");
    }
}

#[test]
fn bytes_that_are_no_request_do_not_reach_the_log() {
    let service = Service::start();
    for bytes in [
        &b"GET /\xff HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x00\xc8",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\0\0\0\r\n\r\n",
    ] {
        crate::support::client::raw(&service.address(), &[bytes], Duration::ZERO, Duration::from_millis(300));
    }
    let claim = service.retailer().claimed(&service.sale());
    assert!(claim["claim_id"].is_string(), "and whoever does ask is served");
    assert!(!service.log().contains("ERROR"), "{}", service.log());
}

#[test]
fn every_request_is_logged_once_without_what_it_was_about() {
    let service = Service::start_with(
        Options::default().env("SUBSIDY_POS__LOG__FORMAT", "json").env("SUBSIDY_POS__LOG__LEVEL", "debug"),
    );
    let till = service.retailer();
    let answer = till.claim(&service.sale().category("toaster"));
    let id = answer.header("x-request-id").unwrap().to_owned();
    crate::support::eventually("the request is logged", Duration::from_secs(5), || {
        service.log().contains(&id).then_some(())
    });
    let log = service.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line: serde_json::Value = serde_json::from_str(lines[0]).expect("structured");
    let text = line.to_string();
    for part in ["POST /v1/claims", "422", "elapsed_us"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains(till.authorization().strip_prefix("Bearer ").unwrap()), "no tokens");
    let told =
        json!(log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count());
    assert!(told.as_u64() > Some(1));
}

#[test]
fn the_log_is_structured_and_keeps_tokens_and_claims_to_itself() {
    let options =
        Options::default().env("SUBSIDY_POS__LOG__FORMAT", "json").env("SUBSIDY_POS__LOG__LEVEL", "debug");
    let mut service = Service::start_with(options);
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    till.claim(&service.sale().category("toaster")).must_refuse("category-not-eligible");
    assert!(service.stop().success());
    let log = service.log();
    let structured: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(structured.len() > 3, "one object a line:\n{log}");
    let plain = log.lines().filter(|line| line.contains(" INFO ") || line.contains("WARN ")).count();
    assert_eq!(plain, 0, "and nothing else:\n{log}");
    for line in &structured {
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
    let token = till.authorization().strip_prefix("Bearer ").unwrap().to_owned();
    assert!(!log.contains(&token) && !log.contains(claim["claim_id"].as_str().unwrap()), "{log}");
}

#[test]
fn as_many_connections_are_served_as_the_machine_allows_whatever_the_shell_does() {
    let service = Service::start_with(Options::default().files(64));
    let connections: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut connection = TcpStream::connect(service.address()).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
            let mut status = [0; 15];
            let read = connection.read_exact(&mut status);
            assert!(read.is_ok() && status == *b"HTTP/1.1 200 OK", "connection {number}: {read:?}");
            connection
        })
        .collect();
    assert_eq!(connections.len(), 200);
}
