//! The shield's contract, kept by every shield; and the shared one on real servers that are stopped,
//! killed, emptied and filled with nonsense.

use std::time::{Duration, Instant};

use futures_util::future::Either;
use subsidy_pos::identity::Uscc;
use subsidy_pos::shield::local::Local;
use subsidy_pos::shield::redis::{Redis, Settings, StartError};
use subsidy_pos::shield::{Admission, Limit, Mark, Marked, RateKey, Shield};

use crate::support::redis::{Cluster, NONSENSE, Server, free_port};

/// How long an answer of Redis is waited for here: longer than in a shop, as tests share their machine.
const TIMEOUT: Duration = Duration::from_millis(100);
const SALT: [u8; 16] = *b"a journal's id..";
const MALL: RateKey<'_> = RateKey::Platform("mall");

impl Server {
    /// A process's shield on this server.
    fn shield(&self, limit: Limit) -> Redis {
        shield(&[self.url()], limit).unwrap()
    }
}

fn shield(nodes: &[String], limit: Limit) -> Result<Redis, StartError> {
    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
    Redis::start(Settings {
        nodes: &nodes,
        timeout: TIMEOUT,
        salt: SALT,
        retailers: limit,
        platforms: limit,
        regulators: limit,
    })
}

const fn limit(per_second: u32, burst: u32) -> Limit {
    Limit { per_second, burst }
}

#[track_caller]
fn eventually(patience: Duration, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < patience, "not within {patience:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends requests of `key` to a shield at a pace until `until`; says how many were let on.
async fn requests(shield: &dyn Shield, key: RateKey<'_>, gap: Duration, until: Instant) -> u32 {
    let mut allowed = 0;
    let mut ticks = tokio::time::interval(gap);
    while Instant::now() < until {
        ticks.tick().await;
        allowed += u32::from(shield.admit(key, 1).await.allowed);
    }
    allowed
}

/// The same at all shields at once, each at its own pace.
async fn requests_to_all(shields: &[Redis], gaps_ms: &[u64], span: Duration) -> u32 {
    let until = Instant::now() + span;
    let sent = shields
        .iter()
        .zip(gaps_ms)
        .map(|(shield, gap_ms)| requests(shield, MALL, Duration::from_millis(*gap_ms), until));
    futures_util::future::join_all(sent).await.into_iter().sum()
}

async fn free(shield: &Redis, request: u8, content: u8) -> Option<Mark> {
    match shield.mark([request; 16], [content; 16]).await {
        Marked::Free(mark) => Some(mark),
        Marked::Twin => None,
    }
}

/// Waits until a request has a twin elsewhere, or has none any longer.
async fn until_twin(shield: &Redis, request: u8, content: u8, is_twin: bool) {
    let began = Instant::now();
    while free(shield, request, content).await.is_none() != is_twin {
        assert!(began.elapsed() < Duration::from_secs(1), "this is not told");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// --- What every shield keeps ---

async fn keeps_the_contract(make: impl Fn(Limit) -> Box<dyn Shield>) {
    a_burst_may_come_and_then_no_more_than_the_rate(&*make(limit(1, 3))).await;
    everyone_has_their_own_limit(&*make(limit(1, 1))).await;
    a_batch_costs_its_items(&*make(limit(10, 50))).await;
    who_is_refused_may_come_again_when_told(&*make(limit(4, 2))).await;
    a_request_alone_is_free(&*make(limit(1, 1))).await;
}

async fn a_burst_may_come_and_then_no_more_than_the_rate(shield: &dyn Shield) {
    let key = RateKey::Platform("burst");
    for remaining in [2, 1, 0] {
        let admission = shield.admit(key, 1).await;
        let expected = Admission {
            allowed: true,
            limit: limit(1, 3),
            remaining,
            reset_s: 3 - remaining,
            retry_after_s: 0,
        };
        assert_eq!(admission, expected, "{}", shield.name());
    }
    let refused = shield.admit(key, 1).await;
    assert!(!refused.allowed);
    assert_eq!((refused.remaining, refused.retry_after_s), (0, 1), "{}", shield.name());
}

async fn everyone_has_their_own_limit(shield: &dyn Shield) {
    let retailer = RateKey::Retailer(Uscc::parse("91110000600037341L").unwrap());
    for key in [RateKey::Platform("x"), RateKey::Regulator("x"), RateKey::Platform("y"), retailer] {
        assert!(shield.admit(key, 1).await.allowed, "{key:?}");
        assert!(!shield.admit(key, 1).await.allowed, "{key:?}");
    }
}

async fn a_batch_costs_its_items(shield: &dyn Shield) {
    let key = RateKey::Platform("batch");
    assert!(shield.admit(key, 35).await.allowed);
    let refused = shield.admit(key, 35).await;
    assert!(!refused.allowed);
    assert!((1..=2).contains(&refused.retry_after_s), "{refused:?}");
    // What is refused takes nothing.
    assert!(shield.admit(key, 14).await.allowed);
    // One larger than a burst is possible after a pause.
    assert!(shield.admit(RateKey::Platform("large"), 500).await.allowed);
    assert!(!shield.admit(RateKey::Platform("large"), 5).await.allowed);
}

async fn who_is_refused_may_come_again_when_told(shield: &dyn Shield) {
    let key = RateKey::Regulator("again");
    while shield.admit(key, 1).await.allowed {}
    let refused = shield.admit(key, 1).await;
    tokio::time::sleep(Duration::from_secs(refused.retry_after_s.into())).await;
    assert!(shield.admit(key, 1).await.allowed);
}

async fn a_request_alone_is_free(shield: &dyn Shield) {
    for _ in 0..3 {
        assert!(matches!(shield.mark([1; 16], [2; 16]).await, Marked::Free(_)));
    }
    assert!(!shield.is_degraded());
}

#[tokio::test]
async fn the_shield_of_one_process_keeps_the_contract() {
    keeps_the_contract(|limit| Box::new(Local::new(limit, limit, limit))).await;
}

#[tokio::test]
async fn the_shield_in_redis_keeps_the_contract() {
    let server = Server::start();
    keeps_the_contract(|limit| {
        server.say("FLUSHALL");
        Box::new(server.shield(limit))
    })
    .await;
}

// --- One limit for all processes ---

#[tokio::test]
async fn three_processes_share_one_limit_however_uneven_their_load() {
    let server = Server::start();
    let shields = [(); 3].map(|()| server.shield(limit(100, 100)));
    let burst = requests_to_all(&shields, &[3, 7, 20], Duration::from_secs(1)).await;
    assert!((170..=230).contains(&burst), "{burst} in the first second");
    let after = requests_to_all(&shields, &[3, 7, 20], Duration::from_secs(10)).await;
    assert!((950..=1050).contains(&after), "{after} in ten seconds");
    assert!(shields.iter().all(|shield| !shield.is_degraded()));
}

#[tokio::test]
async fn what_one_process_lets_on_is_missing_at_the_others() {
    let server = Server::start();
    let shields = [(); 2].map(|()| server.shield(limit(1, 200)));
    for _ in 0..150 {
        assert!(shields[0].admit(MALL, 1).await.allowed);
    }
    let told = shields[1].admit(MALL, 1).await;
    // The first may hold some that it has leased ahead.
    assert!((30..=50).contains(&told.remaining), "{told:?}");
    assert_eq!(told.limit, limit(1, 200));
}

#[tokio::test]
async fn a_busy_key_is_hardly_ever_waited_for() {
    let server = Server::start();
    let shield = server.shield(limit(10_000, 10_000));
    let mut waits = 0;
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let admitting = shield.admit(MALL, 1);
        waits += u32::from(matches!(admitting, Either::Right(_)));
        assert!(admitting.await.allowed);
    }
    assert!(waits <= 25, "{waits} of 500 waited");
}

#[tokio::test]
async fn many_keys_at_once_are_all_let_on() {
    let server = Server::start();
    let shield = server.shield(limit(10, 10));
    let names: Vec<_> = (0..3000).map(|number| format!("platform {number}")).collect();
    let admissions = names.iter().map(|name| shield.admit(RateKey::Platform(name), 1));
    let admissions = futures_util::future::join_all(admissions).await;
    assert!(admissions.iter().all(|admission| admission.allowed && admission.remaining == 9));
}

#[tokio::test]
async fn redis_holds_nothing_that_can_be_read_and_nothing_for_long() {
    let server = Server::start();
    let shields = [(); 2].map(|()| server.shield(limit(10, 10)));
    let retailer = RateKey::Retailer(Uscc::parse("91110000600037341L").unwrap());
    for key in [RateKey::Regulator("Officer Wang"), retailer] {
        assert!(shields[0].admit(key, 3).await.allowed);
    }
    let _mark = free(&shields[1], b'K', b'C').await.unwrap();
    until_twin(&shields[0], b'K', b'C', true).await;
    let keys = server.keys();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in &keys {
        assert!(!key.contains("Wang") && !key.contains("91110000600037341L"), "{key}");
        let left_ms: i64 = redis::cmd("PTTL").arg(key).query(&mut server.client()).unwrap();
        assert!((1..=2000).contains(&left_ms), "{key} lives for {left_ms} ms");
        let dump: Vec<u8> = redis::cmd("DUMP").arg(key).query(&mut server.client()).unwrap();
        assert!(!dump.windows(4).any(|four| four == b"KKKK" || four == b"CCCC" || four == b"Wang"));
    }
    drop(shields);
    eventually(Duration::from_secs(3), || server.keys().is_empty());
}

// --- Whatever Redis does ---

#[tokio::test]
async fn a_redis_emptied_again_and_again_opens_no_gate() {
    let server = Server::start();
    let shields = [(); 3].map(|()| server.shield(limit(100, 100)));
    requests_to_all(&shields, &[3, 5, 7], Duration::from_secs(1)).await;
    let emptying = async {
        for _ in 0..20 {
            assert_eq!(server.say("FLUSHALL"), "+OK");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let requests = requests_to_all(&shields, &[3, 5, 7], Duration::from_secs(4));
    let ((), allowed) = futures_util::future::join(emptying, requests).await;
    assert!((360..=480).contains(&allowed), "{allowed} in four seconds of 100 each");
    assert!(shields.iter().all(|shield| !shield.is_degraded()));
}

#[tokio::test]
async fn nonsense_under_its_keys_is_replaced_and_neither_opens_the_gate_nor_shuts_it() {
    let server = Server::start();
    let shields = [(); 2].map(|()| server.shield(limit(50, 50)));
    requests_to_all(&shields, &[3, 5], Duration::from_secs(1)).await;
    let keys = server.keys();
    assert_eq!(keys.len(), 2);
    for nonsense in NONSENSE {
        server.poison(&keys, nonsense);
        let allowed = requests_to_all(&shields, &[3, 5], Duration::from_secs(1)).await;
        assert!((40..=65).contains(&allowed), "{nonsense:?}: {allowed} in a second of 50");
        assert!(shields.iter().all(|shield| !shield.is_degraded()), "{nonsense:?}");
        assert_eq!(
            server.say(&format!("TYPE {}", keys[0])).len(),
            if keys[0].contains("rate") { 7 } else { 5 }
        );
    }
}

/// Breaks Redis by `fault` under load, and mends it by `repair`: meanwhile nobody waits long, two processes
/// let on what one may, and soon all is well again.
async fn survives(server: &mut Server, fault: impl Fn(&mut Server), repair: impl Fn(&mut Server)) {
    let shields = [(); 2].map(|()| server.shield(limit(100, 100)));
    requests_to_all(&shields, &[3, 5], Duration::from_secs(2)).await;
    fault(server);
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while !shields.iter().all(Shield::is_degraded) {
        for shield in &shields {
            let asked = Instant::now();
            shield.admit(MALL, 1).await;
            longest = longest.max(asked.elapsed());
        }
        assert!(began.elapsed() < Duration::from_secs(2), "it goes unnoticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(longest < TIMEOUT + Duration::from_millis(200), "someone waited for {longest:?}");
    let asked = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(shields[0].admit(RateKey::Platform("other"), 1), Either::Left(_)));
        assert!(matches!(shields[1].mark([7; 16], [7; 16]), Either::Left(_)));
    }
    assert!(asked.elapsed() < Duration::from_millis(200), "{:?}", asked.elapsed());
    let allowed = requests_to_all(&shields, &[3, 5], Duration::from_secs(3)).await;
    assert!((270..=430).contains(&allowed), "{allowed} in three seconds of 100");
    repair(server);
    eventually(Duration::from_secs(5), || !shields.iter().any(Shield::is_degraded));
    requests_to_all(&shields, &[3, 5], Duration::from_secs(1)).await;
    let allowed = requests_to_all(&shields, &[3, 5], Duration::from_secs(2)).await;
    assert!((180..=220).contains(&allowed), "{allowed} in two seconds of 100");
}

#[tokio::test]
async fn sales_go_on_while_redis_stands_still() {
    let mut server = Server::start();
    survives(&mut server, |server| server.signal("-STOP"), |server| server.signal("-CONT")).await;
}

#[tokio::test]
async fn sales_go_on_while_redis_is_dead_until_it_is_back_empty() {
    let mut server = Server::start();
    survives(&mut server, Server::kill, Server::run).await;
}

#[tokio::test]
async fn sales_go_on_when_redis_no_longer_knows_the_password() {
    let mut server = Server::start();
    let lock_out = |server: &mut Server| {
        let said = server.say_all(&["CONFIG SET requirepass other", "AUTH other", "CLIENT KILL TYPE normal"]);
        assert_eq!(said[0], "+OK");
    };
    let let_in = |server: &mut Server| {
        assert_eq!(server.say_all(&["AUTH other", "CONFIG SET requirepass \"\""]), ["+OK", "+OK"]);
    };
    survives(&mut server, lock_out, let_in).await;
}

#[tokio::test]
async fn sales_go_on_while_redis_can_only_be_read() {
    let mut server = Server::start();
    let nowhere = format!("REPLICAOF 127.0.0.1 {}", free_port());
    survives(
        &mut server,
        |server| assert_eq!(server.say(&nowhere), "+OK"),
        |server| assert_eq!(server.say("REPLICAOF NO ONE"), "+OK"),
    )
    .await;
}

#[tokio::test]
async fn connections_that_are_cut_again_and_again_are_made_anew() {
    let server = Server::start();
    let shields = [(); 2].map(|()| server.shield(limit(100, 100)));
    requests_to_all(&shields, &[3, 5], Duration::from_secs(2)).await;
    let mut allowed = 0;
    for _ in 0..10 {
        server.say("CLIENT KILL TYPE normal");
        allowed += requests_to_all(&shields, &[3, 5], Duration::from_millis(300)).await;
    }
    assert!((250..=400).contains(&allowed), "{allowed} in three seconds of 100");
    eventually(Duration::from_secs(3), || !shields.iter().any(Shield::is_degraded));
}

#[tokio::test]
async fn a_process_started_without_redis_takes_a_share_until_redis_is_there() {
    let port = free_port();
    let shield = shield(&[format!("redis://127.0.0.1:{port}")], limit(1, 90)).unwrap();
    assert!(shield.is_degraded());
    let first = shield.admit(MALL, 1).await;
    assert_eq!((first.limit, first.remaining), (limit(1, 90), 29));
    let mut allowed = 1;
    while shield.admit(MALL, 1).await.allowed {
        allowed += 1;
    }
    assert!((30..=31).contains(&allowed), "{allowed}");
    let _server = Server::with(Some(port), &[]);
    eventually(Duration::from_secs(3), || !shield.is_degraded());
    assert!(shield.admit(RateKey::Platform("other"), 80).await.allowed);
}

#[test]
fn what_can_never_work_is_refused_at_start() {
    let server = Server::with(None, &["--requirepass", "secret"]);
    let port = server.port;
    for (nodes, reason) in [
        (vec![format!("redis://127.0.0.1:{port}")], "password"),
        (vec![format!("redis://:wrong@127.0.0.1:{port}")], "password"),
        (
            vec![format!("redis://:wrong@127.0.0.1:{port}"), format!("redis://:wrong@127.0.0.1:{port}")],
            "password",
        ),
        (
            vec![format!("redis://:secret@127.0.0.1:{port}"), format!("redis://:secret@127.0.0.1:{port}/")],
            "no cluster",
        ),
        (vec!["redis://:secret@127.0.0.1:port".to_owned()], "shield.url"),
    ] {
        let error = shield(&nodes, limit(1, 1)).err().unwrap_or_else(|| panic!("{nodes:?}")).to_string();
        assert!(error.contains(reason), "{nodes:?}: {error}");
        assert!(!error.contains("secret") && !error.contains("wrong"), "{error}");
    }
    assert!(shield(&[format!("redis://:secret@127.0.0.1:{port}")], limit(1, 1)).is_ok());
}

// --- Requests in flight ---

#[tokio::test]
async fn a_twin_on_another_process_is_told_at_once_and_no_longer_than_the_first_is_in_flight() {
    let server = Server::start();
    let [here, there] = [(); 2].map(|()| server.shield(limit(1, 1)));
    let mark = free(&here, 1, 2).await.unwrap();
    until_twin(&there, 1, 2, true).await;
    assert!(free(&there, 1, 3).await.is_some(), "other content is no twin");
    assert!(free(&there, 2, 2).await.is_some(), "another key is no twin");
    assert!(free(&here, 1, 2).await.is_some(), "the ledger knows what this process has in flight");
    drop(mark);
    until_twin(&there, 1, 2, false).await;
}

#[tokio::test]
async fn a_mark_of_a_request_that_never_ends_lives_two_seconds() {
    let server = Server::start();
    let [here, there] = [(); 2].map(|()| server.shield(limit(1, 1)));
    let began = Instant::now();
    let _mark = free(&here, 1, 2).await.unwrap();
    until_twin(&there, 1, 2, true).await;
    while free(&there, 1, 2).await.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(began.elapsed() < Duration::from_millis(2200));
    }
    assert!(began.elapsed() > Duration::from_millis(1900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_lost_redis_makes_no_twins() {
    let mut server = Server::start();
    let [here, there] = [(); 2].map(|()| server.shield(limit(1, 1)));
    let _mark = free(&here, 1, 2).await.unwrap();
    until_twin(&there, 1, 2, true).await;
    server.kill();
    let asked = Instant::now();
    assert!(free(&there, 1, 2).await.is_some());
    assert!(asked.elapsed() < TIMEOUT + Duration::from_millis(200));
}

// --- A cluster ---

impl Cluster {
    fn shield(&self, limit: Limit) -> Redis {
        shield(&self.urls(), limit).unwrap()
    }
}

#[tokio::test]
async fn the_shield_in_a_cluster_keeps_the_contract_and_uses_every_master() {
    let cluster = Cluster::start();
    keeps_the_contract(|limit| {
        for node in &cluster.nodes {
            node.say("FLUSHALL");
        }
        Box::new(cluster.shield(limit))
    })
    .await;
    let shields = [(); 3].map(|()| cluster.shield(limit(100, 100)));
    let names: Vec<_> = (0..300).map(|number| format!("platform {number}")).collect();
    let admissions = names.iter().map(|name| shields[0].admit(RateKey::Platform(name), 50));
    assert!(futures_util::future::join_all(admissions).await.iter().all(|admission| admission.allowed));
    for node in &cluster.nodes {
        assert!(node.keys().len() > 50, "{} keys", node.keys().len());
    }
    requests_to_all(&shields, &[3, 7, 20], Duration::from_secs(1)).await;
    let after = requests_to_all(&shields, &[3, 7, 20], Duration::from_secs(5)).await;
    assert!((475..=525).contains(&after), "{after} in five seconds of 100");
    let _mark = free(&shields[0], 1, 2).await.unwrap();
    until_twin(&shields[2], 1, 2, true).await;
    assert!(shields.iter().all(|shield| !shield.is_degraded()));
}

#[tokio::test]
async fn one_node_of_a_cluster_alone_is_refused_or_serves_its_own_slots_only() {
    let cluster = Cluster::start();
    let refused =
        cluster.nodes.iter().filter_map(|node| shield(&[node.url()], limit(1, 1)).err()).collect::<Vec<_>>();
    assert_eq!(refused.len(), 2, "the place of exchange is on one of three");
    assert!(refused.iter().all(|error| error.to_string().contains("node of a cluster")), "{refused:?}");
}

#[tokio::test]
async fn a_cluster_goes_on_without_a_master_and_with_it_again() {
    let cluster = Cluster::start();
    let shields = [(); 2].map(|()| cluster.shield(limit(1000, 1000)));
    let names: Vec<_> = (0..60).map(|number| format!("platform {number}")).collect();
    for lost in &cluster.nodes {
        lost.signal("-STOP");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) || !shields.iter().all(Shield::is_degraded) {
            assert!(began.elapsed() < Duration::from_secs(10), "it goes unnoticed");
            let asked = Instant::now();
            let admissions = names
                .iter()
                .zip(shields.iter().cycle())
                .map(|(name, shield)| shield.admit(RateKey::Platform(name), 1));
            let admissions = futures_util::future::join_all(admissions).await;
            assert!(admissions.iter().all(|admission| admission.allowed));
            let longest = asked.elapsed();
            assert!(longest < TIMEOUT + Duration::from_millis(200), "someone waited for {longest:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lost.signal("-CONT");
        eventually(Duration::from_secs(10), || !shields.iter().any(Shield::is_degraded));
    }
}
