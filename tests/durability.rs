//! No answer precedes the sync of the entry it rests on. Seen from outside, in the system calls.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::client::id_of;
use crate::support::trace::Tracer;
use crate::support::{Sale, Service, at_once, fresh_key};

/// One system call as `strace -f -y` writes it; calls that were interrupted by another thread's line are
/// put together again.
struct Call {
    /// The lines of the trace at which it began and ended.
    began: usize,
    ended: usize,
    /// Name, arguments and result.
    text: String,
}

fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(thread, (line, start.to_owned()));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((began, start)) = open.remove(thread) else { continue };
            let end = resumed.split_once(" resumed>").map_or("", |(_, end)| end);
            calls.push(Call { began, ended: line, text: format!("{start}{end}") });
        } else {
            calls.push(Call { began: line, ended: line, text: rest.to_owned() });
        }
    }
    calls
}

impl Call {
    fn is_sync_of_the_journal(&self) -> bool {
        let sync = self.text.starts_with("fsync(") || self.text.starts_with("fdatasync(");
        sync && self.text.contains("/journal.db") && self.text.ends_with("= 0")
    }

    fn writes_to_the_journal(&self, what: &str) -> bool {
        self.text.starts_with("pwrite64(") && self.text.contains("/journal.db") && self.text.contains(what)
    }

    fn answers(&self, what: &str) -> bool {
        let is_answer =
            ["write(", "writev(", "sendto(", "sendmsg("].iter().any(|name| self.text.starts_with(name));
        is_answer && self.text.contains("HTTP/1.1 201") && self.text.contains(what)
    }
}

/// Why the answer about `claim_id` was too early, if it was.
fn too_early(calls: &[Call], claim_id: &str) -> Option<String> {
    let Some(written) = calls.iter().find(|call| call.writes_to_the_journal(claim_id)) else {
        return Some(format!("{claim_id} was never written to the journal"));
    };
    let synced = calls.iter().filter(|call| call.is_sync_of_the_journal() && call.began >= written.ended);
    let Some(synced) = synced.map(|call| call.ended).min() else {
        return Some(format!("{claim_id} was never synced"));
    };
    let Some(answered) = calls.iter().find(|call| call.answers(claim_id)) else {
        return Some(format!("no answer about {claim_id} was seen"));
    };
    (answered.began <= synced)
        .then(|| format!("{claim_id} was answered at line {} but synced at {synced}", answered.began))
}

#[test]
fn no_claim_is_answered_before_the_sync_of_its_entry_has_ended() {
    let service = Service::start();
    let till = service.retailer();
    till.claimed(&service.sale());
    let watch = ["-y", "-s", "65536", "-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg,pwrite64"];
    let tracer = Tracer::attach(&service, &watch);
    let now = service.now();
    let claims = at_once(8, |_| (0..10).map(|_| till.claimed(&Sale::at(now))).collect::<Vec<_>>()).concat();
    let trace = tracer.detach();
    let calls = calls(&trace);
    let faults: Vec<_> = claims.iter().filter_map(|claim| too_early(&calls, id_of(claim))).collect();
    assert!(faults.is_empty(), "{} of {}: {}", faults.len(), claims.len(), faults[0]);
    assert_eq!(claims.len(), 80);
    // As the bundled SQLite is compiled here: a commit does not sync the file's times too.
    let own = trace.lines().filter(|line| line.contains("journal.db-wal>)"));
    assert!(own.clone().count() > 0 && own.clone().all(|line| !line.contains(" fsync(")), "{trace}");
}

#[test]
fn the_check_of_the_order_finds_an_answer_that_is_too_early() {
    let write = "10 pwrite64(9</d/journal.db-wal>, \"\\\"claim_id\\\":\\\"0199-a\\\"\", 4096, 0) = 4096\n";
    let sync = "10 fdatasync(9</d/journal.db-wal>) = 0\n";
    let failed = "10 fdatasync(9</d/journal.db-wal>) = -1 EIO (Input/output error)\n";
    let book = "10 fdatasync(9</d/book.db-wal>) = 0\n";
    let begun = "10 fdatasync(9</d/journal.db-wal> <unfinished ...>\n";
    let ended = "10 <... fdatasync resumed>) = 0\n";
    let answer =
        "11 writev(12<socket:[1]>, [{\"HTTP/1.1 201 Created {\\\"claim_id\\\":\\\"0199-a\\\"}\"}], 1) = 90\n";
    let verdict = |lines: &[&str]| too_early(&calls(&lines.concat()), "0199-a").is_some();
    assert!(!verdict(&[write, sync, answer]));
    assert!(!verdict(&[write, begun, ended, answer]));
    for early in [
        &[write, answer, sync][..],
        &[write, begun, answer, ended],
        &[begun, write, ended, answer],
        &[sync, write, answer],
        &[write, failed, answer],
        &[write, book, answer],
        &[sync, answer],
        &[write, sync],
    ] {
        assert!(verdict(early), "{early:?}");
    }
}

#[test]
fn replays_reads_and_refusals_too_wait_for_the_entry_they_rest_on() {
    let service = Service::start();
    let till = service.retailer();
    till.claimed(&service.sale());
    let delay = Duration::from_millis(1500);
    let inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=1500000"];
    let tracer = Tracer::attach(&service, &inject);
    let (key, sale) = (fresh_key(), service.sale());
    let rival = service.sale().with("/device", sale.body["device"].clone());
    let twin = service.sale().resident(sale.text("/consumer/id_number"));
    let order = format!("/v1/claims?order_no={}", sale.text("/order_no"));
    let began = Instant::now();
    let answers = at_once(5, |index| {
        if index > 0 {
            // The first claim is with the writer by then, and its sync has not ended.
            std::thread::sleep(Duration::from_millis(400));
        }
        let answer = match index {
            0 | 1 => till.claim_under(&key, &sale),
            2 => till.claim(&rival),
            3 => till.claim(&twin),
            _ => till.get(&order),
        };
        (answer, began.elapsed())
    });
    drop(tracer);
    let [(first, _), (replay, replay_took), (rival, rival_took), (twin, twin_took), (list, list_took)] =
        answers.try_into().expect("five answers");
    let claim = first.must_be(201);
    for (took, answer) in [(replay_took, &replay), (rival_took, &rival), (twin_took, &twin)] {
        // A twin under the same key may be told at once that the first is under way; that rests on nothing.
        assert!(took >= delay || answer.code() == "request-in-progress", "{took:?}: {}", answer.text());
    }
    if replay.status == 201 {
        assert_eq!(replay.text(), first.text());
    }
    rival.must_refuse("device-already-subsidised");
    twin.must_refuse("consumer-limit-reached");
    let listed = list.must_be(200)["items"].as_array().unwrap().clone();
    assert!(listed.is_empty() || (listed == [claim] && list_took >= delay), "{list_took:?}: {listed:?}");
}
