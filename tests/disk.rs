//! A full disk and a failing one: nothing acknowledged is lost, reads go on, and sales go on afterwards.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::trace::Tracer;
use crate::support::{Answer, Options, Sale, Service, eventually, fresh_key};

/// A small file system of its own, gone with the test.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    #[track_caller]
    fn mount(mebibytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "this test must be allowed to mount a tmpfs");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Takes all the space there is left; given back when the file is deleted.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        for size in [64 * 1024, 4096, 512] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

/// A claim as it was sent, under which key, and what was answered.
type Sent = (String, Sale, Answer);

/// Claims until one is refused; what was acknowledged, and the refusal with its key and sale.
fn claim_until_refused(till: &crate::support::Caller, now: crate::support::Timestamp) -> (Vec<Sent>, Sent) {
    let mut acknowledged = Vec::new();
    for _ in 0..20_000 {
        let (key, sale) = (fresh_key(), Sale::at(now));
        let answer = till.claim_under(&key, &sale);
        if answer.status != 201 {
            return (acknowledged, (key, sale, answer));
        }
        acknowledged.push((key, sale, answer));
    }
    panic!("the disk never was full");
}

#[test]
fn a_full_disk_stops_sales_only_until_there_is_room() {
    let disk = SmallDisk::mount(24);
    let data = disk.path().join("data");
    let mut service = Service::start_with(Options::on(&data));
    let till = service.retailer();
    let now = service.now();
    let first = till.claimed(&service.sale());
    let ballast = disk.fill();
    let (acknowledged, (key, sale, refusal)) = claim_until_refused(&till, now);
    refusal.must_refuse("ledger-unavailable");
    for _ in 0..5 {
        till.claim(&Sale::at(now)).must_refuse("ledger-unavailable");
    }
    // Reads go on, of what is durable.
    assert_eq!(till.look_at(&first)["status"], "redeemed");
    for (_, _, answer) in acknowledged.iter().rev().take(3) {
        till.look_at(&answer.json());
    }
    assert_eq!(service.nobody().get("/healthz").status, 200);
    till.get("/v1/claims").must_be(200);
    std::fs::remove_file(&ballast).unwrap();
    let made = eventually("sales go on", Duration::from_secs(30), || {
        let answer = till.claim_under(&key, &sale);
        (answer.status == 201).then_some(answer)
    });
    assert_eq!(till.claim_under(&key, &sale).text(), made.text());
    let check = |service: &Service| {
        for (key, sale, answer) in &acknowledged {
            let again = till.claim_under(key, sale);
            assert_eq!((again.status, again.text()), (201, answer.text()), "nothing acknowledged is lost");
        }
        service.must_verify();
        let made = service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count();
        assert_eq!(made, acknowledged.len() + 2);
    };
    check(&service);
    service.kill();
    service.start_again();
    check(&service);
}

#[test]
fn a_process_killed_on_a_full_disk_comes_back_when_there_is_room() {
    let disk = SmallDisk::mount(24);
    let data = disk.path().join("data");
    let mut service = Service::start_with(Options::on(&data));
    let till = service.retailer();
    let now = service.now();
    let ballast = disk.fill();
    let (acknowledged, _) = claim_until_refused(&till, now);
    service.kill();
    std::fs::remove_file(&ballast).unwrap();
    service.start_again();
    for (key, sale, answer) in &acknowledged {
        assert_eq!(till.claim_under(key, sale).text(), answer.text());
    }
    till.claimed(&service.sale());
    service.must_verify();
}

#[test]
fn after_a_failed_sync_nothing_is_answered_that_might_be_lost() {
    let mut service = Service::start();
    let till = service.retailer();
    let now = service.now();
    let known: Vec<_> = (0..5).map(|_| till.claimed(&service.sale())).collect();
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"];
    let tracer = Tracer::attach(&service, &inject);
    let attempts: Vec<_> = (0..5)
        .map(|_| {
            let (key, sale) = (fresh_key(), Sale::at(now));
            let answer = till.claim_under(&key, &sale);
            (key, sale, answer)
        })
        .collect();
    for (_, _, answer) in &attempts {
        answer.must_refuse("ledger-unavailable");
    }
    // What was durable before can be read. What was refused may or may not be in the file; but whoever
    // asks for it is never told that it is there.
    for claim in &known {
        let answer = till.get(&format!("/v1/claims/{}", claim["claim_id"].as_str().unwrap()));
        assert!(answer.status == 503 || answer.json() == *claim, "{}", answer.text());
    }
    for (key, sale, _) in &attempts {
        till.claim_under(key, sale).must_refuse("ledger-unavailable");
    }
    assert_eq!(service.nobody().get("/healthz").status, 200);
    drop(tracer);
    let mut settled = Vec::new();
    for (key, sale, _) in &attempts {
        settled.push(eventually("sales go on once the disk does", Duration::from_secs(30), || {
            let answer = till.claim_under(key, sale);
            (answer.status == 201).then_some(answer)
        }));
    }
    let check = |service: &Service| {
        for ((key, sale, _), answer) in attempts.iter().zip(&settled) {
            assert_eq!(till.claim_under(key, sale).text(), answer.text());
        }
        for claim in &known {
            assert_eq!(&till.look_at(claim), claim);
        }
        let made = service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count();
        assert_eq!(made, 10, "each exactly once");
        service.must_verify();
    };
    check(&service);
    service.kill();
    service.start_again();
    check(&service);
}

#[test]
fn single_failed_syncs_under_load_lose_and_double_nothing() {
    let mut service = Service::start();
    let till = service.retailer();
    let now = service.now();
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=5+7"];
    let tracer = Tracer::attach(&service, &inject);
    let work: Vec<Vec<(String, Sale)>> =
        (0..8).map(|_| (0..25).map(|_| (fresh_key(), Sale::at(now))).collect()).collect();
    let outcomes = crate::support::at_once(8, |thread| {
        work[thread].iter().map(|(key, sale)| till.claim_under(key, sale)).collect::<Vec<_>>()
    });
    drop(tracer);
    let refused = outcomes.iter().flatten().filter(|answer| answer.status == 503).count();
    for ((key, sale), answer) in work.iter().flatten().zip(outcomes.iter().flatten()) {
        let settled = eventually("it settles", Duration::from_secs(30), || {
            let again = till.claim_under(key, sale);
            (again.status == 201).then_some(again)
        });
        if answer.status == 201 {
            assert_eq!(settled.text(), answer.text());
        } else {
            answer.must_refuse("ledger-unavailable");
        }
    }
    eprintln!("{refused} of 200 met a failing sync");
    service.must_verify();
    let made = service.entries().iter().filter(|entry| entry["event"]["claim_made"].is_object()).count();
    assert_eq!(made, 200, "each exactly once");
    service.restart();
    service.must_verify();
}
