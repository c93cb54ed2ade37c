//! Several processes behind one Redis, as their callers see them. Each decides on a copy of one journal, so
//! that they know the same requests by the same names; what they share is the shield.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use subsidy_pos::ledger::KeyRing;
use subsidy_pos::limits;
use subsidy_pos::secrets::hex;
use tempfile::TempDir;

use crate::support::postgres::Database;
use crate::support::redis::{Cluster, NONSENSE, Server};
use crate::support::trace::Tracer;
use crate::support::{Answer, Caller, Options, Sale, Service, Stop, eventually, fresh_key, json};

/// Services, and the Redis they share.
struct Shared<R = Server> {
    redis: R,
    services: Vec<Service>,
    _directory: TempDir,
}

impl Shared {
    /// This many services whose retailers may send `per_second` requests, and as many at once.
    fn start(count: usize, per_second: u32) -> Self {
        let redis = Server::start();
        let url = redis.url();
        Self::on(redis, &url, count, per_second)
    }
}

impl<R> Shared<R> {
    fn on(redis: R, url: &str, count: usize, per_second: u32) -> Self {
        let directory = TempDir::with_prefix("subsidy-pos-").unwrap();
        let data = |number: usize| directory.path().join(format!("data-{number}"));
        let options = |number: usize| {
            let rate = per_second.to_string();
            Options::on(&data(number))
                .env("SUBSIDY_POS__SHIELD__URL", url)
                .env("SUBSIDY_POS__SHIELD__RETAILER_PER_SECOND", &rate)
                .env("SUBSIDY_POS__SHIELD__RETAILER_BURST", &rate)
        };
        let mut first = Service::start_with(options(0));
        assert!(first.stop().success());
        for number in 1..count {
            copy(&data(0), &data(number));
        }
        first.start_again();
        let mut services = vec![first];
        services.extend((1..count).map(|number| Service::start_with(options(number))));
        // Each has heard of the others.
        std::thread::sleep(Duration::from_millis(100));
        Self { redis, services, _directory: directory }
    }

    /// One retailer, at each service.
    fn tills(&self) -> Vec<Caller> {
        let till = self.services[0].retailer();
        self.services.iter().map(|service| service.caller("retailer", &till.subject, &[])).collect()
    }

    /// Waits until every service says that its shield is degraded, or is not, in both places.
    fn until_degraded(&self, is_degraded: bool) {
        for service in &self.services {
            eventually("/readyz says so", Duration::from_secs(10), || {
                let ready = service.operator().get("/readyz").must_be(200);
                assert_eq!(ready["shield"]["used"], "redis");
                (ready["shield"]["degraded"] == is_degraded).then_some(())
            });
            let metrics = service.metrics();
            assert!(metrics.contains("\nsubsidy_pos_shield{used=\"redis\"} 1\n"), "{metrics}");
            let line = format!("\nsubsidy_pos_shield_degraded {}\n", u8::from(is_degraded));
            assert!(metrics.contains(&line), "{metrics}");
        }
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

// --- Requests in flight ---

/// Makes every sync of a service take this long.
fn slow_disk(service: &Service, ms: u64) -> Tracer {
    let inject = format!("inject=fsync,fdatasync:delay_enter={}", ms * 1000);
    Tracer::attach(service, &["-e", "trace=fsync,fdatasync", "-e", &inject])
}

#[test]
fn a_twin_in_flight_on_another_process_is_told_to_come_again_and_not_longer_than_that() {
    let shared = Shared::start(2, 1000);
    let [here, there] = &shared.tills()[..] else { panic!("two") };
    let tracer = slow_disk(&shared.services[0], 1500);
    let (key, sale) = (fresh_key(), shared.services[0].sale());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| here.claim_under(&key, &sale));
        std::thread::sleep(Duration::from_millis(400));
        let asked = Instant::now();
        let told = there.claim_under(&key, &sale);
        told.must_refuse("request-in-progress");
        assert_eq!(told.header("retry-after"), Some("1"));
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        let items = json!({"items": [
            {"idempotency_key": key, "claim": sale.body},
            {"idempotency_key": fresh_key(), "claim": sale.another().body},
        ]});
        let results = there.post("/v1/claims/batch", &items).must_be(200);
        assert_eq!(results["results"][0]["problem"]["code"], "request-in-progress", "{results}");
        assert_eq!(
            (&results["results"][0]["status"], &results["results"][1]["status"]),
            (&json!(409), &json!(201))
        );
        there.claimed(&sale.another());
        first.join().unwrap().must_be(201);
    });
    drop(tracer);
    // It is no twin any longer; what the ledger says counts.
    let answered = eventually("it is decided", Duration::from_secs(1), || {
        let answer = there.claim_under(&key, &sale);
        (answer.code() != "request-in-progress").then_some(answer)
    });
    answered.must_be(201);
}

#[test]
fn on_one_journal_a_twin_is_told_to_come_again_until_there_is_an_answer_to_replay() {
    let redis = Server::start();
    let database = Database::new();
    let directory = TempDir::with_prefix("subsidy-pos-").unwrap();
    let options = Options::on(&directory.path().join("data"))
        .in_database(&database)
        .env("SUBSIDY_POS__SHIELD__URL", &redis.url());
    let [one, two] = [(); 2].map(|()| Service::start_with(options.clone()));
    let here = one.retailer();
    let there = two.caller("retailer", &here.subject, &[]);
    let (key, sale) = (fresh_key(), one.sale());
    std::thread::scope(|scope| {
        // The journal can be read, and takes nothing.
        let held = "LOCK TABLE journal IN EXCLUSIVE MODE; SELECT pg_sleep(1.5)";
        scope.spawn(|| database.execute(held));
        std::thread::sleep(Duration::from_millis(300));
        let first = scope.spawn(|| here.claim_under(&key, &sale));
        std::thread::sleep(Duration::from_millis(300));
        let asked = Instant::now();
        there.claim_under(&key, &sale).must_refuse("request-in-progress");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        let made = first.join().unwrap();
        made.must_be(201);
        // The answer counts from the moment it is given, whatever Redis still says.
        let again = there.claim_under(&key, &sale);
        assert!(again.is_replay());
        assert_eq!(again.text(), made.text());
    });
    there.claim_under(&key, &sale.price("3999.00")).must_refuse("idempotency-key-reused");
    one.must_verify();
}

#[test]
fn what_a_killed_process_had_in_flight_stands_in_the_way_for_two_seconds_at_most() {
    let shared = Shared::start(2, 1000);
    let [here, there] = &shared.tills()[..] else { panic!("two") };
    let tracer = slow_disk(&shared.services[0], 4000);
    let (key, sale) = (fresh_key(), shared.services[0].sale());
    std::thread::scope(|scope| {
        let began = Instant::now();
        let first = scope.spawn(|| here.try_post_under(&key, "/v1/claims", &sale.body));
        std::thread::sleep(Duration::from_millis(400));
        there.claim_under(&key, &sale).must_refuse("request-in-progress");
        shared.services[0].signal("KILL");
        tracer.end();
        let answer = eventually("it is decided", Duration::from_secs(3), || {
            let answer = there.claim_under(&key, &sale);
            (answer.code() != "request-in-progress").then_some(answer)
        });
        answer.must_be(201);
        assert!(began.elapsed() < Duration::from_millis(2600), "{:?}", began.elapsed());
        assert!(first.join().unwrap().is_err(), "it was killed");
    });
}

// --- Whatever Redis does ---

/// Sells at all services while `fault` goes on, and hands back how long each sale took.
fn sell_during<R>(shared: &Shared<R>, fault: impl FnOnce()) -> Vec<Duration> {
    let (tills, stopped) = (shared.tills(), AtomicBool::new(false));
    let now = shared.services[0].now();
    std::thread::scope(|scope| {
        let sellers: Vec<_> = tills
            .iter()
            .flat_map(|till| [till; 3])
            .map(|till| {
                let stopped = &stopped;
                scope.spawn(move || {
                    let mut took = Vec::new();
                    while !stopped.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        till.claimed(&Sale::at(now));
                        took.push(asked.elapsed());
                    }
                    took
                })
            })
            .collect();
        fault();
        stopped.store(true, Ordering::Relaxed);
        sellers.into_iter().flat_map(|seller| seller.join().unwrap()).collect()
    })
}

/// Nobody waited much longer for Redis than its time allows; the rest is the machine's.
#[track_caller]
fn must_be_quick(mut took: Vec<Duration>) {
    took.sort();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(took.len() > 30, "{} sales", took.len());
    assert!(
        median < Duration::from_millis(150) && longest < Duration::from_secs(2),
        "{median:?}, {longest:?}"
    );
}

#[test]
fn sales_go_on_while_redis_stands_still() {
    let shared = Shared::start(2, 50_000);
    shared.until_degraded(false);
    let took = sell_during(&shared, || {
        std::thread::sleep(Duration::from_millis(300));
        shared.redis.signal("-STOP");
        shared.until_degraded(true);
        std::thread::sleep(Duration::from_secs(1));
        shared.redis.signal("-CONT");
        shared.until_degraded(false);
    });
    must_be_quick(took);
}

#[test]
fn sales_go_on_while_redis_is_dead_and_when_it_is_back_empty() {
    let mut shared = Shared::start(2, 50_000);
    let took = sell_during(&shared, || {
        std::thread::sleep(Duration::from_millis(300));
        shared.redis.signal("-KILL");
        shared.until_degraded(true);
        std::thread::sleep(Duration::from_secs(1));
    });
    must_be_quick(took);
    shared.redis.kill();
    shared.redis.run();
    must_be_quick(sell_during(&shared, || shared.until_degraded(false)));
}

#[test]
fn sales_go_on_while_redis_is_emptied_again_and_again() {
    let shared = Shared::start(2, 50_000);
    let took = sell_during(&shared, || {
        for _ in 0..10 {
            assert_eq!(shared.redis.say("FLUSHALL"), "+OK");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    must_be_quick(took);
    shared.until_degraded(false);
}

#[test]
fn sales_go_on_while_redis_is_filled_with_nonsense_under_the_services_own_keys() {
    let shared = Shared::start(2, 50_000);
    let took = sell_during(&shared, || {
        for nonsense in NONSENSE.iter().cycle().take(4 * NONSENSE.len()) {
            let keys = eventually("there are keys", Duration::from_secs(5), || {
                let keys = shared.redis.keys();
                (keys.len() >= 2).then_some(keys)
            });
            shared.redis.poison(&keys, nonsense);
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    must_be_quick(took);
    shared.until_degraded(false);
}

// --- What Redis says that nobody has told it ---

/// Where the rate of `retailer` is kept in Redis by a service on this journal.
fn rate_key(service: &Service, retailer: &str) -> String {
    let opened = &service.regulator().get("/v1/journal?after=0&limit=1").must_be(200)["items"][0]["entry"];
    let opened: serde_json::Value = serde_json::from_str(opened.as_str().unwrap()).unwrap();
    let journal_id = opened["event"]["journal_opened"]["journal_id"].clone();
    let mut named = KeyRing::new(serde_json::from_value(journal_id).unwrap()).shield_salt().to_vec();
    for part in ["retailer", retailer] {
        named.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        named.extend(part.as_bytes());
    }
    let name = digest(&SHA256, &named);
    let name = &name.as_ref()[..16];
    format!("subsidy-pos:{{{:02}}}:rate:{}", name[0] % limits::SHIELD_SLOTS, hex(name))
}

#[test]
fn an_instant_that_nobody_wrote_shuts_a_retailer_out_for_the_time_of_a_burst_at_most() {
    const HOUR_US: i64 = 3_600_000_000;
    // One request a second: whoever has none left waits for a second, which is what a burst takes.
    let shared = Shared::start(2, 1);
    let key_of = |retailer: &Caller| rate_key(&shared.services[0], &retailer.subject);
    let known = shared.services[0].retailer();
    known.claimed(&shared.services[0].sale());
    assert!(shared.redis.keys().contains(&key_of(&known)), "this is where it is kept");
    for (from_now_us, is_possible) in [
        (-100 * 365 * 24 * HOUR_US, false),
        (-HOUR_US, false),
        (-1_000, false),
        (1_000_000, true),
        // A clock that was put back by a second may have left this.
        (1_900_000, true),
        (4_000_000, false),
        (HOUR_US, false),
        (100 * 365 * 24 * HOUR_US, false),
    ] {
        for service in &shared.services {
            let till = service.retailer();
            let key = key_of(&till);
            shared.redis.lie_about_a_rate(&key, from_now_us);
            let lied = Instant::now();
            let answer = till.claim(&service.sale());
            if is_possible {
                answer.must_refuse("rate-limited");
                assert_eq!(answer.header("retry-after"), Some("1"), "{from_now_us}");
                eventually("it is let in again", Duration::from_secs(3), || {
                    let answer = till.claim(&service.sale());
                    if answer.status == 429 {
                        answer.must_refuse("rate-limited");
                        return None;
                    }
                    answer.must_be(201);
                    Some(())
                });
                assert!(lied.elapsed() < Duration::from_millis(1500), "{from_now_us}: {:?}", lied.elapsed());
            } else {
                answer.must_be(201);
            }
            let kept: Option<i64> = redis::cmd("GET").arg(&key).query(&mut shared.redis.client()).unwrap();
            let ahead_us = kept.map(|kept| kept - shared.redis.now_us());
            assert!(ahead_us.is_none_or(|ahead_us| ahead_us <= 1_000_000), "{from_now_us}: {ahead_us:?}");
        }
    }
    shared.until_degraded(false);
}

/// Lets Redis say for as long as `meanwhile` lasts, again and again, that these requests have just come to a
/// process that nobody has started.
fn while_redis_lies(redis: &Server, marks: &BTreeSet<[u8; 16]>, meanwhile: impl FnOnce()) {
    let stopping = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stopping);
        scope.spawn(|| {
            while !stopping.load(Ordering::Relaxed) {
                redis.lie_about_requests(7, marks);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // A few times as long as the services wait before they listen again.
        std::thread::sleep(10 * limits::SHIELD_TICK);
        meanwhile();
    });
}

#[test]
fn a_request_that_redis_only_says_is_in_flight_waits_for_two_seconds_at_most_and_is_done_once() {
    let shared = Shared::start(2, 1000);
    let [here, there] = &shared.tills()[..] else { panic!("two") };
    let (key, sale) = (fresh_key(), shared.services[0].sale());
    // What stands for it is learned where it is in flight, and told where nobody has heard of it.
    let tracer = slow_disk(&shared.services[0], 500);
    let (made, marks) = std::thread::scope(|scope| {
        let first = scope.spawn(|| here.claim_under(&key, &sale));
        let marks = eventually("it is told", Duration::from_secs(5), || {
            Some(shared.redis.marks()).filter(|marks| !marks.is_empty())
        });
        (first.join().unwrap(), marks)
    });
    drop(tracer);
    made.must_be(201);
    eventually("it is told no longer", Duration::from_secs(5), || {
        shared.redis.marks().is_empty().then_some(())
    });
    while_redis_lies(&shared.redis, &marks, || {
        let began = Instant::now();
        let told = there.claim_under(&key, &sale);
        told.must_refuse("request-in-progress");
        assert_eq!(told.header("retry-after"), Some("1"));
        // Nobody else is held up, and where the ledger knows the request its answer counts.
        there.claimed(&sale.another());
        let again = here.claim_under(&key, &sale);
        assert!(again.is_replay() && again.text() == made.text(), "{}", again.text());
        here.claim_under(&key, &sale.clone().price("3999.00")).must_refuse("idempotency-key-reused");
        let answer = eventually("it is decided while Redis still lies", Duration::from_secs(5), || {
            let answer = there.claim_under(&key, &sale);
            if answer.status == 409 {
                answer.must_refuse("request-in-progress");
                return None;
            }
            Some(answer)
        });
        assert!(began.elapsed() < Duration::from_millis(2300), "{:?}", began.elapsed());
        answer.must_be(201);
        assert!(!answer.is_replay(), "it was decided here");
        let again = there.claim_under(&key, &sale);
        assert!(again.is_replay() && again.text() == answer.text(), "{}", again.text());
    });
    assert_eq!(there.list(&format!("/v1/claims?order_no={}", sale.text("/order_no"))).len(), 1);
    shared.services[1].must_verify();
}

#[test]
fn a_crowd_of_processes_and_requests_that_nobody_made_holds_no_sale_up() {
    let shared = Shared::start(2, 50_000);
    let marks: BTreeSet<[u8; 16]> = (0..1000_u128)
        .map(|number| digest(&SHA256, &number.to_be_bytes()).as_ref()[..16].try_into().unwrap())
        .collect();
    let took = sell_during(&shared, || {
        let began = Instant::now();
        for crowd in 0.. {
            // As many as may be, and more than there may be at all.
            for process in 0..[50, 300][crowd % 2] {
                shared.redis.lie_about_requests(process, &marks);
            }
            if began.elapsed() > Duration::from_secs(3) {
                break;
            }
        }
    });
    must_be_quick(took);
    // Nobody can say any longer how many there are: each process may have counted all of them.
    shared.redis.signal("-KILL");
    shared.until_degraded(true);
    must_be_quick(sell_during(&shared, || std::thread::sleep(Duration::from_secs(1))));
}

// --- On a cluster ---

fn on_a_cluster(count: usize, per_second: u32) -> Shared<Cluster> {
    let cluster = Cluster::start();
    let urls = cluster.urls().join(",");
    Shared::on(cluster, &urls, count, per_second)
}

#[test]
fn twins_and_limits_are_shared_over_a_cluster_of_three_masters() {
    let shared = on_a_cluster(3, 100);
    shared.until_degraded(false);
    let tills = shared.tills();
    let allowed = |span| ask_all(&tills, Duration::from_secs(span)).iter().sum::<u32>();
    let burst = allowed(1);
    assert!((150..=215).contains(&burst), "{burst} in the first second");
    let lasting = allowed(5);
    assert!((470..=530).contains(&lasting), "{lasting} in five seconds of 100");
    let tracer = slow_disk(&shared.services[0], 1500);
    // Wherever in the cluster its mark comes to lie.
    for _ in 0..4 {
        let (key, sale) = (fresh_key(), shared.services[0].sale());
        std::thread::scope(|scope| {
            let first = scope.spawn(|| tills[0].claim_under(&key, &sale));
            std::thread::sleep(Duration::from_millis(400));
            tills[1].claim_under(&key, &sale).must_refuse("request-in-progress");
            first.join().unwrap().must_be(201);
        });
    }
    drop(tracer);
}

#[test]
fn sales_go_on_while_a_master_of_a_cluster_stands_still() {
    let shared = on_a_cluster(2, 50_000);
    shared.until_degraded(false);
    for master in &shared.redis.nodes {
        let took = sell_during(&shared, || {
            master.signal("-STOP");
            std::thread::sleep(Duration::from_secs(2));
            master.signal("-CONT");
        });
        must_be_quick(took);
        shared.until_degraded(false);
    }
}

// --- One limit for all ---

/// What the `RateLimit` field of an answer says: how many more may come, and in how many seconds all.
#[track_caller]
fn told(answer: &Answer) -> (u32, u32) {
    let field = answer.header("ratelimit").expect("RateLimit");
    let number = |name: &str| {
        let (_, rest) = field.split_once(name).unwrap_or_else(|| panic!("{name} in {field}"));
        rest.split(';').next().unwrap().parse().unwrap_or_else(|_| panic!("{field}"))
    };
    (number(";r="), number(";t="))
}

/// Sends requests of one retailer to all services for `span`, about 130 a second to each; says how many were
/// let on at each.
fn ask_all(tills: &[Caller], span: Duration) -> Vec<u32> {
    let until = Instant::now() + span;
    std::thread::scope(|scope| {
        let askers: Vec<_> = tills
            .iter()
            .map(|till| {
                scope.spawn(move || {
                    let mut allowed = 0;
                    while Instant::now() < until {
                        let answer = till.get("/v1/claims/x");
                        match answer.status {
                            404 => allowed += 1,
                            429 => {
                                answer.must_refuse("rate-limited");
                                assert_eq!(told(&answer).0, 0, "{:?}", answer.headers);
                            }
                            _ => panic!("{}", answer.text()),
                        }
                        let policy = answer.header("ratelimit-policy");
                        assert_eq!(policy, Some("\"retailer\";q=100;w=1;burst=100"));
                        std::thread::sleep(Duration::from_millis(6));
                    }
                    allowed
                })
            })
            .collect();
        askers.into_iter().map(|asker| asker.join().unwrap()).collect()
    })
}

#[test]
fn a_retailers_limit_is_one_over_three_processes_and_a_fair_share_of_each_without_redis() {
    let mut shared = Shared::start(3, 100);
    let tills = shared.tills();
    let burst: u32 = ask_all(&tills, Duration::from_secs(1)).iter().sum();
    assert!((150..=215).contains(&burst), "{burst} in the first second");
    let shared_out: u32 = ask_all(&tills, Duration::from_secs(10)).iter().sum();
    assert!((950..=1050).contains(&shared_out), "{shared_out} in ten seconds of 100");
    shared.redis.kill();
    shared.until_degraded(true);
    ask_all(&tills, Duration::from_secs(1));
    let alone = ask_all(&tills, Duration::from_secs(4));
    assert!(alone.iter().all(|share| (110..=150).contains(share)), "{alone:?} in four seconds of 33");
}

#[test]
fn what_is_told_to_be_left_is_what_may_still_come_wherever_it_is_asked() {
    let shared = Shared::start(3, 100);
    let tills = shared.tills();
    let began = Instant::now();
    for _ in 0..50 {
        tills[0].get("/v1/claims/x").must_refuse("claim-not-found");
    }
    // What the first leases ahead last is leased by then.
    std::thread::sleep(Duration::from_millis(50));
    let (left, full_s) = told(&tills[1].get("/v1/claims/x"));
    let refilled = u32::try_from(began.elapsed().as_millis() / 10).unwrap();
    // What another process has leased ahead is not there for this one: a quarter of what is free at most.
    assert!((25..=50 + refilled).contains(&left), "{left} left of 100 after 50, {refilled} came again");
    assert_eq!(full_s, 1);
    let asked = Instant::now();
    for _ in 0..left {
        tills[1].get("/v1/claims/x").must_refuse("claim-not-found");
    }
    let mut more = 0;
    let refused = loop {
        let answer = tills[1].get("/v1/claims/x");
        if answer.status == 429 {
            break answer;
        }
        more += 1;
        assert!(more < 400, "there is a limit");
    };
    let refilled = u32::try_from(asked.elapsed().as_millis() / 10).unwrap();
    assert!(more <= refilled + 2, "{more} more than told, {refilled} came again");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(wait, 1);
    std::thread::sleep(Duration::from_secs(wait));
    tills[2].get("/v1/claims/x").must_refuse("claim-not-found");
}
