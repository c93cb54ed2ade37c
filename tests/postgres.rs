//! The ledger in PostgreSQL: two processes know what one of them was told, no outcome is lost, and a
//! database that is away, changed or not the right one is told as such.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use subsidy_pos::limits;

use crate::support::client::id_of;
use crate::support::postgres::{Database, Postgres, Stop, psql};
use crate::support::proxy::{Proxy, Way};
use crate::support::service::{PROGRAM, command, key_settings, said};
use crate::support::{
    Answer, Caller, Options, Sale, Service, Stop as StopAskers, at_once, eventually, fen, fresh_key, journal,
    json,
};

/// Two processes on one journal.
struct Pair {
    a: Service,
    b: Service,
    /// One retailer, at each of them.
    tills: [Caller; 2],
    _directory: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        Self::on(&Database::new())
    }

    fn on(database: &Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::on(&directory.path().join("data")).in_database(database);
        let [a, b] = [(); 2].map(|()| Service::start_with(options.clone()));
        let till = a.retailer();
        let at_b = b.caller("retailer", &till.subject, &[]);
        Self { a, b, tills: [till, at_b], _directory: directory }
    }

    fn now(&self) -> crate::support::Timestamp {
        self.a.now()
    }
}

#[test]
fn a_journal_of_which_nothing_is_known_yet_is_read_along_its_index() {
    let database = Database::new();
    let pair = Pair::on(&database);
    // As it is until PostgreSQL first looks at a table that has grown.
    database.execute("ALTER TABLE journal SET (autovacuum_enabled = false)");
    let claims: usize = 200;
    for number in 0..claims {
        pair.tills[number % 2].claim(&Sale::at(pair.now())).must_be(201);
    }
    let entries: usize = database.execute("SELECT count(*) FROM journal").trim().parse().unwrap();
    assert!(entries > claims);
    let sql = "SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'journal'";
    eventually("what was read is counted", Duration::from_secs(10), || {
        let told = database.execute(sql);
        let told: Vec<usize> = told.trim().split('|').map(|number| number.parse().unwrap()).collect();
        // What was counted just now, and here and there a look while the table was empty.
        assert!(told[0] < 2 * entries, "whole tables are read: {told:?}");
        (told[1] > claims).then_some(())
    });
}

#[test]
fn what_one_process_did_the_other_knows_in_the_next_request() {
    let pair = Pair::start();
    let [a, b] = &pair.tills;
    for _ in 0..20 {
        let (key, sale) = (fresh_key(), Sale::at(pair.now()));
        let made = a.claim_under(&key, &sale);
        let claim = made.must_be(201);
        assert_eq!(b.look_at(&claim), claim);
        let again = b.claim_under(&key, &sale);
        assert!(again.is_replay() && again.text() == made.text(), "{}", again.text());
        let listed = b.get(&format!("/v1/claims?order_no={}", sale.text("/order_no"))).must_be(200);
        assert_eq!(listed["items"], json!([claim]));
        let head = pair.b.regulator().get("/v1/journal/head").must_be(200);
        assert!(head["position"].as_u64() >= claim["journal"]["position"].as_u64(), "{head}");
        let same_device = Sale::at(pair.now()).with("/device", sale.body["device"].clone());
        b.claim(&same_device).must_refuse("device-already-subsidised");

        let returned = b.take_back(&claim).must_be(200);
        assert_eq!(a.look_at(&claim), returned);
        a.claim(&same_device).must_be(201);
        b.claim_under(&key, &sale).must_be(201);
    }
    let fund = "/v1/funds/zj-ai-25.330100";
    let (at_a, at_b) = (pair.a.regulator().get(fund), pair.b.regulator().get(fund));
    assert_eq!(at_a.must_be(200), at_b.must_be(200));
    assert_eq!(fen(&at_a.json()["redeemed"]), 20 * 60_000);
    pair.a.must_verify();
}

#[test]
fn fifty_twins_over_two_processes_make_one_claim() {
    let pair = Pair::start();
    let now = pair.now();
    let (key, sale) = (fresh_key(), Sale::at(now));
    let (device, person) = (Sale::at(now), Sale::at(now));
    let made = |answers: &[Answer]| answers.iter().filter(|answer| answer.status == 201).count();
    let till = |index: usize| &pair.tills[index % 2];

    let of_one_key = at_once(50, |index| till(index).claim_under(&key, &sale));
    let first = of_one_key.iter().find(|answer| answer.status == 201).expect("one is made").text();
    for answer in &of_one_key {
        assert!(answer.text() == first || answer.code() == "request-in-progress", "{}", answer.text());
    }
    let of_one_device =
        at_once(50, |index| till(index).claim(&Sale::at(now).with("/device", device.body["device"].clone())));
    assert_eq!(made(&of_one_device), 1);
    for refused in of_one_device.iter().filter(|answer| answer.status != 201) {
        refused.must_refuse("device-already-subsidised");
    }
    let of_one_person =
        at_once(50, |index| till(index).claim(&Sale::at(now).resident(person.text("/consumer/id_number"))));
    assert_eq!(made(&of_one_person), 1);
    for refused in of_one_person.iter().filter(|answer| answer.status != 201) {
        refused.must_refuse("consumer-limit-reached");
    }
    assert_eq!(journal::Fold::of(&pair.b.entries()).claims.len(), 3);
    pair.b.must_verify();
}

#[test]
fn two_processes_share_a_fund_to_the_last_fen() {
    let pair = Pair::start();
    let fund = pair.a.open_fund("zj-ai-25", "330106", "6000.00");
    let now = pair.now();
    let answers =
        at_once(20, |index| (0..3).map(|_| pair.tills[index % 2].claim(&Sale::at(now))).collect::<Vec<_>>());
    let made = answers.iter().flatten().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 10);
    for refused in answers.iter().flatten().filter(|answer| answer.status != 201) {
        refused.must_refuse("fund-exhausted");
    }
    assert_eq!(pair.b.regulator().fund(&fund)["remaining"], "0.00");
    pair.a.must_verify();
}

#[test]
fn a_hold_expires_once_however_many_processes_wait_for_it() {
    let mut pair = Pair::start();
    let [a, b] = &pair.tills;
    let held: Vec<_> =
        (0..10).map(|_| a.claimed(&Sale::at(pair.now()).held().with("/hold_minutes", 1))).collect();
    pair.a.restart_later(120_000);
    pair.b.restart_later(120_000);
    for claim in &held {
        let [at_a, at_b] = [a, b].map(|till| {
            eventually("it expires", Duration::from_secs(10), || {
                let claim = till.look_at(claim);
                (claim["status"] == "expired").then_some(claim)
            })
        });
        assert_eq!(at_a, at_b);
    }
    let fold = journal::Fold::of(&pair.a.entries());
    assert_eq!(fold.moves.iter().filter(|(.., to)| to == "expired").count(), 10);
    pair.b.must_verify();
}

/// Lets every commit in the server wait for a standby that is not there: it is made, but nobody is told.
fn withhold_commits(server: &Postgres, withhold: bool) {
    let standby = if withhold { "none_such" } else { "" };
    server.execute("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'"));
    server.execute("postgres", "SELECT pg_reload_conf()");
    eventually("the setting is in use", Duration::from_secs(10), || {
        (server.execute("postgres", "SHOW synchronous_standby_names") == standby).then_some(())
    });
}

/// Waits until some backend of `database` has committed and waits for a standby to tell so.
fn wait_for_a_withheld_commit(database: &Database) {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()";
    eventually("a commit is withheld", Duration::from_secs(10), || {
        (database.execute(sql) != "0").then_some(())
    });
}

#[test]
fn an_outcome_lost_between_commit_and_answer_is_replayed_by_another_process() {
    let database = Postgres::start().database();
    let mut pair = Pair::on(&database);
    let [a, b] = pair.tills.clone();
    let (key, sale) = (fresh_key(), Sale::at(pair.now()));
    withhold_commits(&database.server, true);
    let (sent_key, sent_sale) = (key.clone(), sale.clone());
    let lost = std::thread::spawn(move || a.try_post_under(&sent_key, "/v1/claims", &sent_sale.body));
    wait_for_a_withheld_commit(&database);
    pair.a.kill();
    assert!(lost.join().unwrap().is_err(), "the till has no answer");
    database.terminate_backends();
    withhold_commits(&database.server, false);
    let again = eventually("the other process answers", Duration::from_secs(10), || {
        let answer = b.claim_under(&key, &sale);
        (answer.status != 503).then_some(answer)
    });
    let claim = again.must_be(201);
    assert!(again.is_replay(), "the claim had been made");
    pair.a.start_again();
    let at_a = pair.tills[0].claim_under(&key, &sale);
    assert!(at_a.is_replay() && at_a.text() == again.text());
    assert_eq!(journal::Fold::of(&pair.b.entries()).claims.keys().collect::<Vec<_>>(), [id_of(&claim)]);
}

#[test]
fn a_process_that_does_not_learn_of_its_commit_finds_out() {
    let database = Postgres::start().database();
    let service = Service::start_with(Options::default().in_database(&database));
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    withhold_commits(&database.server, true);
    std::thread::scope(|scope| {
        let claiming = scope.spawn(|| till.claim_under(&key, &sale));
        wait_for_a_withheld_commit(&database);
        withhold_commits(&database.server, false);
        database.terminate_backends();
        let answer = claiming.join().unwrap();
        let settled = if answer.status == 503 {
            eventually("it is known", Duration::from_secs(10), || {
                let again = till.claim_under(&key, &sale);
                (again.status != 503).then_some(again)
            })
        } else {
            answer
        };
        settled.must_be(201);
    });
    assert_eq!(journal::Fold::of(&service.entries()).claims.len(), 1);
    service.must_verify();
}

#[test]
fn ended_connections_are_not_felt() {
    let service = Service::start_with(Options::default().in_database(&Database::new()));
    let till = service.retailer();
    for round in 0..10 {
        let claim = till.claimed(&service.sale());
        assert!(service.database().terminate_backends() > 0);
        if round % 2 == 0 {
            till.claimed(&service.sale());
        } else {
            assert_eq!(till.take_back(&claim).must_be(200)["status"], "returned");
        }
        service.database().terminate_backends();
        assert_eq!(till.look_at(&claim)["claim_id"], claim["claim_id"]);
    }
    service.must_verify();
}

/// Sends sales from several tills for a while and gives the answers with the time that each took.
fn sell_for(service: &Service, till: &Caller, span: Duration) -> Vec<(Answer, Duration)> {
    let (now, began) = (service.now(), Instant::now());
    let answers = at_once(20, |_| {
        let mut answers = Vec::new();
        while began.elapsed() < span {
            let sent = Instant::now();
            answers.push((till.claim(&Sale::at(now)), sent.elapsed()));
        }
        answers
    });
    answers.concat()
}

/// What it takes to answer where nobody is waited for, on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long those wait at most who come first after PostgreSQL has fallen silent.
fn until_told() -> Duration {
    limits::POSTGRES_TIMEOUT + 2 * AT_ONCE
}

/// Sends sales of which each must be told at once that there is no ledger.
#[track_caller]
fn are_refused_at_once(service: &Service, till: &Caller) {
    let answers = sell_for(service, till, Duration::from_secs(2));
    for (answer, _) in &answers {
        answer.must_refuse("ledger-unavailable");
    }
    let mut took: Vec<_> = answers.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(took.len() > 200 && median < Duration::from_millis(200), "{}: {median:?}", took.len());
    assert!(longest < AT_ONCE, "nothing piles up: {longest:?}");
}

/// A database that is away is told in time and without a queue of waiting requests; it is found again
/// without a restart.
#[track_caller]
fn is_told_and_found_again(service: &Service, go: impl FnOnce(), come_back: impl FnOnce()) {
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    go();
    // A connection that has ended, or is refused, is waited for by nobody.
    let began = Instant::now();
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    assert!(began.elapsed() < 2 * AT_ONCE, "{:?}", began.elapsed());
    are_refused_at_once(service, &till);
    till.get(&format!("/v1/claims/{}", id_of(&claim))).must_refuse("ledger-unavailable");
    till.get("/v1/claims").must_refuse("ledger-unavailable");
    assert_eq!(service.nobody().get("/readyz").status, 503);
    assert_eq!(service.nobody().get("/healthz").status, 200);
    come_back();
    eventually("sales go on", Duration::from_secs(5), || {
        (till.claim(&service.sale()).status == 201).then_some(())
    });
    assert_eq!(till.look_at(&claim), claim);
    let sale = service.sale();
    let last = till.claimed(&sale);
    eventually("lists are up to date", Duration::from_secs(5), || {
        let listed = till.get(&format!("/v1/claims?order_no={}", sale.text("/order_no")));
        (listed.status == 200 && listed.json()["items"] == json!([last])).then_some(())
    });
    eventually("it is ready", Duration::from_secs(5), || {
        (service.nobody().get("/readyz").status == 200).then_some(())
    });
    service.must_verify();
}

#[test]
fn a_database_that_is_stopped_is_told_and_found_again() {
    let database = Postgres::start().database();
    let service = Service::start_with(Options::default().in_database(&database));
    is_told_and_found_again(
        &service,
        || database.server.stop(Stop::Immediate),
        || database.server.start_again(),
    );
}

/// A service that reaches its database, which is in a server of its own, through a proxy.
fn behind_a_proxy() -> (Service, Proxy) {
    let database = Postgres::start().database();
    let network = Proxy::before(&database.server.address());
    let url = database.url().replace(&database.server.address(), &network.address());
    let options = Options::default().in_database(&database).env("SUBSIDY_POS__LEDGER__URL", &url);
    (Service::start_with(options), network)
}

#[test]
fn a_database_that_falls_silent_is_told_and_found_again() {
    let (service, network) = behind_a_proxy();
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    network.be_silent(true);
    let began = Instant::now();
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    assert!(began.elapsed() < until_told(), "{:?}", began.elapsed());
    are_refused_at_once(&service, &till);
    network.be_silent(false);
    eventually("sales go on", Duration::from_secs(10), || {
        (till.claim(&service.sale()).status == 201).then_some(())
    });
    assert_eq!(till.look_at(&claim), claim);
}

#[test]
fn however_many_come_when_the_database_falls_silent_they_wait_no_longer_than_one_and_are_done_once() {
    const MANY: usize = 200;
    let (service, network) = behind_a_proxy();
    let till = service.retailer();
    let now = service.now();
    let sent: Vec<_> = (0..MANY).map(|_| (fresh_key(), Sale::at(now))).collect();
    network.be_silent(true);
    let answers = at_once(MANY, |index| {
        let (key, sale) = &sent[index];
        // Some come after the first have begun to wait.
        std::thread::sleep(Duration::from_millis(10) * u32::try_from(index).unwrap());
        let asked = Instant::now();
        (till.claim_under(key, sale), asked.elapsed())
    });
    for (answer, took) in &answers {
        answer.must_refuse("ledger-unavailable");
        assert!(*took < until_told(), "{took:?}");
    }
    are_refused_at_once(&service, &till);
    network.be_silent(false);
    eventually("sales go on", Duration::from_secs(10), || {
        (till.claim(&service.sale()).status == 201).then_some(())
    });
    for answer in at_once(MANY, |index| till.claim_under(&sent[index].0, &sent[index].1)) {
        answer.must_be(201);
    }
    let fold = journal::Fold::of(&service.entries());
    for (_, sale) in &sent {
        let is_of_it = |told: &&journal::Told| told.made["sale"]["order_no"] == sale.body["order_no"];
        assert_eq!(fold.claims.values().filter(is_of_it).count(), 1, "{}", sale.body);
    }
    service.must_verify();
}

#[test]
fn a_claim_is_told_to_be_uncertain_whichever_way_is_lost_and_what_was_made_of_it_is_replayed() {
    for (way, is_made) in [(Way::There, false), (Way::Back, true)] {
        let (service, network) = behind_a_proxy();
        let till = service.retailer();
        till.claimed(&service.sale());
        let (key, sale) = (fresh_key(), service.sale());
        network.lose(Some(way));
        let began = Instant::now();
        till.claim_under(&key, &sale).must_refuse("ledger-unavailable");
        assert!(began.elapsed() < until_told(), "{way:?}: {:?}", began.elapsed());
        are_refused_at_once(&service, &till);
        let claims = "SELECT count(*) FROM journal WHERE entry LIKE '%claim_made%'";
        assert_eq!(service.database().execute(claims), if is_made { "2" } else { "1" }, "{way:?}");
        network.lose(None);
        let answer = eventually("it is known", until_told(), || {
            let answer = till.claim_under(&key, &sale);
            (answer.status != 503).then_some(answer)
        });
        answer.must_be(201);
        assert_eq!(answer.is_replay(), is_made, "{way:?}");
        assert_eq!(service.database().execute(claims), "2", "{way:?}");
        service.must_verify();
    }
}

#[test]
fn restarts_in_immediate_mode_lose_nothing_that_was_answered() {
    let database = Postgres::start().database();
    let service = Service::start_with(Options::default().in_database(&database));
    let till = service.retailer();
    let now = service.now();
    let stopping = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let selling = scope.spawn(|| {
            let mut made = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                let sale = Sale::at(now);
                let key = fresh_key();
                let answer = till.claim_under(&key, &sale);
                if answer.status != 503 {
                    answer.must_be(201);
                    made.push((key, sale, answer));
                }
            }
            made
        });
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(300));
            database.server.restart_immediately();
        }
        std::thread::sleep(Duration::from_millis(1500));
        stopping.store(true, Ordering::Relaxed);
        selling.join().unwrap()
    });
    assert!(made.len() > 20, "{}", made.len());
    let fold = journal::Fold::of(&service.entries());
    for (key, sale, answer) in &made {
        assert!(fold.claims.contains_key(id_of(&answer.json())));
        assert_eq!(till.claim_under(key, sale).text(), answer.text());
    }
    service.must_verify();
}

#[test]
fn after_a_failover_to_a_synchronous_standby_everything_that_was_answered_is_there() {
    let database = Postgres::start().database();
    let standby = database.server.start_standby();
    let both = format!("{},{}", standby.address(), database.server.address());
    let url = database.url().replace(&database.server.address(), &both);
    let service = Service::start_with(Options::default().env("SUBSIDY_POS__LEDGER__URL", &url));
    let till = service.retailer();
    let now = service.now();
    let stopping = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let selling = scope.spawn(|| {
            let mut made = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                let (key, sale) = (fresh_key(), Sale::at(now));
                let answer = till.claim_under(&key, &sale);
                if answer.status != 503 {
                    answer.must_be(201);
                    made.push((key, sale, answer));
                }
            }
            made
        });
        std::thread::sleep(Duration::from_secs(1));
        database.server.stop(Stop::Immediate);
        standby.promote();
        eventually("the service has found the new primary", Duration::from_secs(20), || {
            (service.nobody().get("/readyz").status == 200).then_some(())
        });
        std::thread::sleep(Duration::from_secs(1));
        stopping.store(true, Ordering::Relaxed);
        selling.join().unwrap()
    });
    let fold = journal::Fold::of(&service.entries());
    for (key, sale, answer) in &made {
        assert!(fold.claims.contains_key(id_of(&answer.json())));
        assert_eq!(till.claim_under(key, sale).text(), answer.text());
    }
    let verified = command(&["verify", "--database-url", &standby.url(&database.name)]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(fold.claims.len() > 20, "{}", fold.claims.len());
}

#[test]
fn a_standby_that_lagged_is_not_decided_on_when_it_is_promoted() {
    let database = Postgres::start().database();
    let primary = &database.server;
    let standby = primary.start_standby();
    let both = format!("{},{}", primary.address(), standby.address());
    let url = database.url().replace(&primary.address(), &both);
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        let options = Options::on(&directory.path().join("data")).in_database(&database);
        Service::start_with(options.env("SUBSIDY_POS__LEDGER__URL", &url))
    };
    let services = [start(), start()];
    let tills = {
        let till = services[0].retailer();
        let other = services[1].caller("retailer", &till.subject, &[]);
        [till, other]
    };
    let length = "SELECT max(position) FROM journal";
    // Nobody waits for the standby any more, and then it does not follow.
    withhold_commits(primary, false);
    tills[0].claimed(&services[0].sale());
    standby.stop(Stop::Fast);
    let sold: Vec<_> = (0..10)
        .map(|_| {
            let (key, sale) = (fresh_key(), services[0].sale());
            let answer = tills[0].claim_under(&key, &sale);
            answer.must_be(201);
            assert_eq!(tills[1].claim_under(&key, &sale).text(), answer.text());
            (key, sale, answer)
        })
        .collect();
    primary.stop(Stop::Immediate);
    standby.start_again();
    let kept = standby.execute(&database.name, length);
    standby.promote();
    for (service, till) in services.iter().zip(&tills) {
        eventually("it is noticed that entries are missing", Duration::from_secs(30), || {
            let ready = service.operator().get("/readyz");
            let reason = ready.json()["reason"].as_str().unwrap_or_default().to_owned();
            reason.contains("not the one that this process has answered from").then_some(())
        });
        till.claim(&service.sale()).must_refuse("ledger-unavailable");
        for (key, sale, _) in &sold {
            till.claim_under(key, sale).must_refuse("ledger-unavailable");
        }
        assert!(service.log().contains("restore the journal that has it"), "{}", service.log());
    }
    assert_eq!(standby.execute(&database.name, length), kept, "nothing was appended there");
    // The server that has them all is put back.
    standby.stop(Stop::Fast);
    primary.start_again();
    for (service, till) in services.iter().zip(&tills) {
        eventually("it goes on", Duration::from_secs(30), || {
            (service.operator().get("/readyz").status == 200).then_some(())
        });
        for (key, sale, answer) in &sold {
            assert_eq!(till.claim_under(key, sale).text(), answer.text());
        }
        till.claimed(&service.sale());
    }
    services[0].must_verify();
}

#[test]
fn operators_are_told_when_no_standby_has_what_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let database = Postgres::start().database();
    let mut service = Service::start_with(Options::on(&data).in_database(&database));
    assert!(service.stop().success());
    let config = directory.path().join("config.toml");
    let text = key_settings(&data) + "[server]\noperations_listen = \"127.0.0.1:0\"\n";
    std::fs::write(&config, text).unwrap();
    let notes = || {
        let options = Options { dev: false, clock: None, config: Some(config.clone()), ..Options::on(&data) };
        let service = Service::start_with(options.in_database(&database));
        service.nobody().get("/readyz").must_be(200)["notes"].clone()
    };
    assert_eq!(notes(), json!(["there is a single copy of the journal"]));
    let _standby = database.server.start_standby();
    assert_eq!(notes(), json!([]));
}

#[test]
fn a_standby_can_be_verified_but_not_served_from() {
    let database = Postgres::start().database();
    let standby = database.server.start_standby();
    let service = Service::start_with(Options::default().in_database(&database));
    service.retailer().claimed(&service.sale());
    let there = standby.url(&database.name);
    let verified = eventually("the standby has it", Duration::from_secs(10), || {
        let said = said(&command(&["verify", "--database-url", &there]));
        said.contains(", 1 claims").then_some(said)
    });
    assert!(verified.contains("the journal verifies"), "{verified}");
    let output = refused(&there);
    assert!(output.contains("PostgreSQL cannot be reached"), "{output}");
}

#[test]
fn a_database_that_is_made_unsafe_is_not_written_to_after_the_next_connection() {
    let database = Postgres::start().database();
    let service = Service::start_with(Options::default().in_database(&database));
    let till = service.retailer();
    till.claimed(&service.sale());
    let set = |what: &str| {
        database.execute(&format!("ALTER DATABASE {} {what}", database.name));
        database.terminate_backends();
    };
    set("SET synchronous_commit = off");
    eventually("it decides nothing", Duration::from_secs(10), || {
        let answer = till.claim(&service.sale());
        (answer.code() == "ledger-unavailable").then_some(())
    });
    let before = database.execute("SELECT max(position) FROM journal");
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    assert_eq!(database.execute("SELECT max(position) FROM journal"), before);
    eventually("the log says why", Duration::from_secs(10), || {
        service.log().contains("PostgreSQL has synchronous_commit = off").then_some(())
    });
    set("RESET synchronous_commit");
    eventually("it decides again", Duration::from_secs(10), || {
        (till.claim(&service.sale()).status == 201).then_some(())
    });
}

#[test]
fn however_much_is_asked_a_process_has_about_ten_connections() {
    const MOST: usize = 10;
    let database = Database::new();
    let service = Service::start_with(Options::default().in_database(&database));
    let (till, regulator) = (service.retailer(), service.regulator());
    let stopping = AtomicBool::new(false);
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", database.name);
    let most = std::thread::scope(|scope| {
        let _stop = StopAskers(&stopping);
        for asker in 0..48 {
            let (till, regulator, service, stopping) = (&till, &regulator, &service, &stopping);
            scope.spawn(move || {
                while !stopping.load(Ordering::Relaxed) {
                    let claim = till.claimed(&service.sale());
                    match asker % 4 {
                        0 => drop(till.get("/v1/claims?status=redeemed")),
                        1 => drop(regulator.get("/v1/totals?group_by=category")),
                        2 => drop(regulator.get("/v1/journal?after=0")),
                        _ => drop(till.look_at(&claim)),
                    }
                }
            });
        }
        let counts = (0..40).map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            database.server.execute("postgres", &sql).parse::<usize>().unwrap()
        });
        counts.max().unwrap()
    });
    assert!((3..=MOST).contains(&most), "{most} connections");
}

// --- Bad input at start ---

/// How a service ends that cannot start on `url`.
#[track_caller]
fn refused(url: &str) -> String {
    let options = Options::default().env("SUBSIDY_POS__LEDGER__URL", url);
    let exit = match Service::try_start(options) {
        Ok(_) => panic!("it starts"),
        Err(exit) => exit,
    };
    assert!(!exit.status.success());
    assert!(!exit.output.contains("panicked") && !exit.output.contains("a-secret"), "{}", exit.output);
    assert!(!exit.output.contains(crate::support::postgres::PASSWORD), "{}", exit.output);
    exit.output
}

#[test]
fn a_wrong_url_or_password_is_refused_at_start_with_what_to_do() {
    let database = Database::new();
    let server = &database.server;
    for (url, told) in [
        ("postgres://a-secret", "ledger.url: names no user"),
        ("postgres://u:a-secret@host/d?sslmode=perhaps", "ledger.url: not of the form"),
        (&server.url_as("postgres", "a-secret", &database.name), "correct user and password in ledger.url"),
        (&server.url("none_such"), "create the database none_such"),
        ("postgres://u:a-secret@127.0.0.1:1/d", "start it, or correct host and port in ledger.url"),
    ] {
        let output = refused(url);
        assert!(output.contains(told), "{told}: {output}");
    }
}

#[test]
fn what_is_wrong_with_the_url_is_found_by_check_config() {
    let output = std::process::Command::new(PROGRAM)
        .arg("check-config")
        .env("SUBSIDY_POS__LEDGER__URL", "postgres://u:a-secret@host/d?none=such")
        .output()
        .unwrap();
    let output = said(&output);
    assert!(output.contains("ledger.url: not of the form") && !output.contains("a-secret"), "{output}");
}

#[test]
fn tables_of_another_version_are_refused_at_start() {
    let mut service = Service::start_with(Options::default().in_database(&Database::new()));
    assert!(service.stop().success());
    service.database().execute("UPDATE subsidy_pos_schema SET version = 2");
    let output = service.try_start_again().unwrap_err().output;
    assert!(output.contains("version 2, this program knows version 1: run the program"), "{output}");
}

#[test]
fn a_journal_that_does_not_verify_is_refused_at_start_and_named_by_verify() {
    let mut service = Service::start_with(Options::default().in_database(&Database::new()));
    let till = service.retailer();
    let position = till.claimed(&service.sale())["journal"]["position"].as_u64().unwrap();
    till.claimed(&service.sale());
    assert!(service.stop().success());
    let journal = service.database().clone();
    journal.execute(&format!(
        "UPDATE journal SET entry = replace(entry, '600', '601') WHERE position = {position}"
    ));
    let output = service.try_start_again().unwrap_err().output;
    assert!(output.contains(&format!("entry {position}")), "{output}");
    let verified = said(&service.verify(&[]));
    assert!(verified.contains(&format!("first bad position {position}")), "{verified}");
}

#[test]
fn a_book_ahead_of_its_journal_is_refused_at_start() {
    let mut service = Service::start_with(Options::default().in_database(&Database::new()));
    let till = service.retailer();
    let last = till.claimed(&service.sale())["journal"]["position"].as_u64().unwrap();
    till.get("/v1/claims").must_be(200);
    assert!(service.stop().success());
    service.database().execute(&format!("DELETE FROM journal WHERE position = {last}"));
    // On another machine, which has no head of its own.
    std::fs::remove_file(service.data().join("journal.head")).unwrap();
    let output = service.try_start_again().unwrap_err().output;
    let told = format!("the book has seen entry {last}, but the journal ends at entry {}", last - 1);
    assert!(output.contains(&told) && output.contains("book rebuild"), "{output}");
}

#[test]
fn a_journal_that_lost_entries_stops_whoever_has_answered_from_them() {
    let service = Service::start_with(Options::default().in_database(&Database::new()));
    let till = service.retailer();
    let last = till.claimed(&service.sale())["journal"]["position"].as_u64().unwrap();
    service.database().execute(&format!("DELETE FROM journal WHERE position = {last}"));
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    till.get("/v1/claims").must_refuse("ledger-unavailable");
    let ready = service.nobody().get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(ready.text().contains("not the one that this process has answered from"), "{}", ready.text());
    assert!(service.log().contains(&format!("no longer has entry {last}")), "{}", service.log());
    let after = service.database().execute("SELECT max(position) FROM journal");
    assert_eq!(after, (last - 1).to_string(), "nothing was decided");
}

#[test]
fn processes_started_at_once_on_an_empty_database_come_up_together() {
    let database = Database::new();
    let directory = tempfile::tempdir().unwrap();
    let first = Options::on(&directory.path().join("data")).in_database(&database);
    let services = at_once(4, |_| Service::start_with(first.clone()));
    let till = services[0].retailer();
    let claim = till.claimed(&services[0].sale());
    for service in &services {
        let here = service.caller("retailer", &till.subject, &[]);
        assert_eq!(here.look_at(&claim), claim);
    }
    services[0].must_verify();
}

#[test]
fn the_password_is_in_no_log_and_no_answer() {
    let database = Postgres::start().database();
    let service = Service::start_with(
        Options::default().in_database(&database).env("SUBSIDY_POS__LOG__LEVEL", "trace"),
    );
    let till = service.retailer();
    till.claimed(&service.sale());
    database.server.stop(Stop::Immediate);
    let refused = till.claim(&service.sale());
    refused.must_refuse("ledger-unavailable");
    database.server.start_again();
    let password = crate::support::postgres::PASSWORD;
    assert!(!service.log().contains(password) && !refused.text().contains(password));
    assert!(!service.metrics().contains(password));
}

#[test]
fn verify_makes_nothing_where_there_is_no_journal() {
    let database = Database::new();
    let output = command(&["verify", "--database-url", &database.url()]);
    assert!(!output.status.success());
    assert!(said(&output).contains("there is no journal in this database"), "{}", said(&output));
    assert_eq!(
        database.execute("SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'book')"),
        "0"
    );
    let both = command(&["verify", "--database-url", &database.url(), "--data", "/nowhere"]);
    assert!(!both.status.success() && !said(&both).contains(crate::support::postgres::PASSWORD));
}

#[test]
fn a_service_needs_no_more_rights_than_the_roles_that_are_shipped_have() {
    let server = Postgres::start();
    let database = server.database();
    let made = command(&["journal", "make", "--at", &database.url()]);
    assert!(made.status.success(), "{}", said(&made));
    let roles = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/postgresql-roles.sql");
    let roles = std::fs::read_to_string(roles).unwrap();
    database.execute(&roles);
    database.execute(&roles);
    let other = server.database();
    let made = command(&["journal", "make", "--at", &other.url()]);
    assert!(made.status.success(), "{}", said(&made));
    other.execute(&roles);
    let url = |role: &str| {
        database.execute(&format!("ALTER ROLE {role} PASSWORD 'of-{role}'"));
        server.url_as(role, &format!("of-{role}"), &database.name)
    };
    let (own, auditor) = (url("subsidy_pos"), url("subsidy_auditor"));
    let options = Options::default().env("SUBSIDY_POS__LEDGER__URL", &own);
    let mut service = Service::start_with(options);
    let till = service.retailer();
    let claim = till.claimed(&service.sale());
    till.take_back(&claim).must_be(200);
    assert_eq!(till.get("/v1/claims").must_be(200)["items"].as_array().unwrap().len(), 1);
    service.restart();
    let rebuilt = command(&["book", "rebuild", "--database-url", &own]);
    assert!(rebuilt.status.success(), "{}", said(&rebuilt));
    let verified = command(&["verify", "--database-url", &auditor]);
    assert!(said(&verified).contains("the book's totals are right"), "{}", said(&verified));

    let denied = |url: &str, sql: &str| {
        let output = psql(url, sql);
        assert!(!output.status.success(), "{sql}");
        let said = said(&output);
        assert!(said.contains("permission denied") || said.contains("must be owner"), "{sql}: {said}");
    };
    for sql in [
        "UPDATE journal SET entry = '' WHERE position = 1",
        "DELETE FROM journal",
        "TRUNCATE journal",
        "DROP TABLE journal",
        "UPDATE subsidy_pos_schema SET version = 2",
        "CREATE TABLE other (id integer)",
    ] {
        denied(&own, sql);
        denied(&auditor, sql);
    }
    denied(&auditor, "INSERT INTO journal VALUES (1000, '', '')");
    denied(&auditor, "DELETE FROM book.claims");
}

#[test]
fn a_role_that_may_not_make_tables_is_told_so() {
    let server = Postgres::start();
    let database = server.database();
    database.execute("CREATE ROLE guest LOGIN PASSWORD 'a-secret'");
    let output = refused(&server.url_as("guest", "a-secret", &database.name));
    assert!(output.contains("the journal's tables cannot be made"), "{output}");
    assert!(output.contains("permission denied") && output.contains("journal make"), "{output}");
}

// --- TLS ---

/// A server with a certificate for `localhost`, the file of the certificate that signed it, and that of
/// another.
fn server_with_tls(directory: &std::path::Path) -> (std::sync::Arc<Postgres>, [String; 2]) {
    let run = |arguments: &str| {
        let output = std::process::Command::new("openssl")
            .args(arguments.split_ascii_whitespace())
            .current_dir(directory)
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{arguments}: {}", said(&output));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["root", "other"] {
        run(&format!("req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 30"));
    }
    run(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"));
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost").unwrap();
    run(
        "x509 -req -in server.csr -CA root.pem -CAkey root.key -CAcreateserial -out server.crt -days 30 -extfile names",
    );
    let server = Postgres::start_prepared(&["ssl=on"], |data| {
        for name in ["server.crt", "server.key"] {
            crate::support::postgres::give(&directory.join(name), &data.join(name));
        }
    });
    (server, ["root.pem", "other.pem"].map(|name| directory.join(name).to_str().unwrap().to_owned()))
}

#[test]
fn connections_are_secret_where_the_url_asks_for_it_and_only_to_a_server_that_is_believed() {
    let directory = tempfile::tempdir().unwrap();
    let (server, [root, other]) = server_with_tls(directory.path());
    let by_address = server.database().url();
    let by_name = |url: &str| url.replace("127.0.0.1", "localhost");
    let options = Options::default();
    for mode in ["require", "verify-full"] {
        let database = server.database();
        let url = format!("{}?sslmode={mode}&sslrootcert={root}", by_name(&database.url()));
        let service = Service::start_with(options.clone().env("SUBSIDY_POS__LEDGER__URL", &url));
        let claim = service.retailer().claimed(&service.sale());
        assert_eq!(claim["status"], "redeemed");
        let open = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND application_name = 'subsidy-pos'";
        assert_eq!(database.execute(open), "0", "no connection is open to others");
        let secret = open.replace("NOT ssl", "ssl");
        assert_ne!(database.execute(&secret), "0");
        let verified = said(&command(&["verify", "--database-url", &url]));
        assert!(verified.contains("the journal verifies"), "{verified}");
    }
    for url in [
        format!("{}?sslmode=require&sslrootcert={other}", by_name(&by_address)),
        format!("{by_address}?sslmode=require&sslrootcert={root}"),
    ] {
        let output = refused(&url);
        assert!(output.contains("the server needs a certificate for its host, signed by"), "{output}");
    }
    let output = refused(&format!("{by_address}?sslmode=require&sslrootcert={root}-none"));
    assert!(output.contains("sslrootcert, "), "{output}");
    let without = Database::new();
    let output = refused(&format!("{}?sslmode=require&sslrootcert={root}", without.url()));
    assert!(output.contains("TLS"), "a server without TLS is not spoken to: {output}");
}
