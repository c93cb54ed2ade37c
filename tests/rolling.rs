//! Processes on one journal that are added, drained, replaced and changed while the others go on, and
//! processes that differ from their journal and say so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use subsidy_pos::secrets::hex;
use tempfile::TempDir;

use crate::support::postgres::Database;
use crate::support::proxy::Proxy;
use crate::support::redis::free_port;
use crate::support::service::{command, key_settings, said};
use crate::support::{
    Answer, Caller, Options, Sale, Service, Value, eventually, fresh_key, json, programmes,
};

/// A journal of its own for the processes of a test.
struct Place {
    database: Database,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { database: Database::new(), directory: TempDir::with_prefix("subsidy-pos-").unwrap() }
    }

    fn options(&self) -> Options {
        Options::on(&self.directory.path().join("data")).in_database(&self.database)
    }

    fn start(&self) -> Service {
        Service::start_with(self.options())
    }
}

/// Waits until `/readyz` gives a reason with `part` in it, which makes the process unready; the reason.
#[track_caller]
fn until_unready(service: &Service, part: &str) -> String {
    eventually(&format!("unready: {part}"), Duration::from_secs(10), || {
        let answer = service.operator().get("/readyz");
        let told = answer.json()["reason"].as_str().unwrap_or_default().to_owned();
        if !told.contains(part) {
            return None;
        }
        assert_eq!(answer.status, 503);
        assert!(service.metrics().contains("\nsubsidy_pos_ready 0\n"));
        Some(told)
    })
}

#[track_caller]
fn until_ready(service: &Service) {
    eventually("ready", Duration::from_secs(10), || {
        let answer = service.operator().get("/readyz");
        (answer.status == 200).then_some(())
    });
    assert!(service.metrics().contains("\nsubsidy_pos_ready 1\n"));
}

// --- Starting ---

/// Makes claims, 500 at a time.
fn make_many(service: &Service, batches: usize) {
    let till = service.retailer();
    for _ in 0..batches {
        let item = |_| json!({"idempotency_key": fresh_key(), "claim": service.sale().body});
        let items: Vec<_> = (0..500).map(item).collect();
        let results = till.post("/v1/claims/batch", &json!({"items": items})).must_be(200);
        assert!(results["results"].as_array().unwrap().iter().all(|result| result["status"] == 201));
    }
}

#[test]
fn a_process_is_not_ready_before_it_has_read_the_whole_journal() {
    let place = Place::new();
    let first = place.start();
    make_many(&first, 8);
    let head = first.operator().get("/readyz").must_be(200)["journal"]["position"].as_u64().unwrap();
    assert!(head > 4000, "{head}");
    // Its way to the journal is long, and its port known before it listens.
    let network = Proxy::before(&place.database.server.address());
    network.delay(Duration::from_millis(15));
    let url = place.database.url().replace(&place.database.server.address(), &network.address());
    let port = free_port();
    let options = place
        .options()
        .env("SUBSIDY_POS__LEDGER__URL", &url)
        .env("SUBSIDY_POS__SERVER__OPERATIONS_LISTEN", &format!("127.0.0.1:{port}"));
    let operator = Caller::nobody(&Arc::new(RwLock::new(format!("127.0.0.1:{port}"))));
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| Service::start_with(options));
        let mut asked = 0;
        let told = eventually("it is ready", Duration::from_secs(60), || {
            asked += 1;
            let answer = operator.try_send("GET", "/readyz", &[], None).ok()?;
            (answer.status == 200).then(|| answer.json())
        });
        assert!(told["journal"]["position"].as_u64().unwrap() >= head, "{told} of {head}");
        assert!(asked > 20, "it took a while: asked {asked} times");
        let second = starting.join().unwrap();
        let digests = [&first, &second].map(|service| service.operator().get("/digest").must_be(200));
        assert_eq!(digests[0], digests[1]);
    });
}

// --- Rolling operation ---

/// Who sends requests on to processes that are ready, as a load balancer does.
#[derive(Default)]
struct Balancer {
    /// By name: the process for tills, for operators, and whether it is ready.
    members: RwLock<BTreeMap<usize, (Caller, Caller, AtomicBool)>>,
    next: AtomicUsize,
}

impl Balancer {
    fn add(&self, name: usize, till: Caller, operator: Caller) {
        self.members.write().unwrap().insert(name, (till, operator, AtomicBool::new(false)));
    }

    fn remove(&self, name: usize) {
        self.members.write().unwrap().remove(&name);
    }

    fn look(&self) {
        for (_, operator, is_ready) in self.members.read().unwrap().values() {
            let ready = operator.try_send("GET", "/readyz", &[], None);
            is_ready.store(ready.is_ok_and(|answer| answer.status == 200), Ordering::Relaxed);
        }
    }

    /// The next process in turn that is ready.
    fn pick(&self) -> Caller {
        eventually("someone is ready", Duration::from_secs(5), || {
            let members = self.members.read().unwrap();
            let ready: Vec<_> =
                members.values().filter(|(_, _, is_ready)| is_ready.load(Ordering::Relaxed)).collect();
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            ready.get(turn.checked_rem(ready.len())?).map(|(till, ..)| till.clone())
        })
    }
}

#[test]
fn processes_are_added_drained_and_replaced_under_load_without_a_failed_request() {
    let place = Place::new();
    let start = || Service::start_with(place.options().env("SUBSIDY_POS__SERVER__DRAIN_S", "2"));
    let first = start();
    let (subject, now) = (first.retailer().subject, first.now());
    let balancer = Balancer::default();
    let join = |name: usize, service: &Service| {
        balancer.add(name, service.caller("retailer", &subject, &[]), service.operator());
    };
    join(0, &first);
    let stopping = AtomicBool::new(false);
    let sold = Mutex::new(Vec::new());
    let mut services = vec![(0, first)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopping.load(Ordering::Relaxed) {
                balancer.look();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        for _ in 0..4 {
            scope.spawn(|| {
                while !stopping.load(Ordering::Relaxed) {
                    let (key, sale) = (fresh_key(), Sale::at(now));
                    let answer = balancer.pick().claim_under(&key, &sale);
                    answer.must_be(201);
                    sold.lock().unwrap().push((key, sale, answer));
                }
            });
        }
        let _stop = crate::support::Stop(&stopping);
        for name in 1..=4 {
            // One more, and one less.
            let service = start();
            join(name, &service);
            services.push((name, service));
            std::thread::sleep(Duration::from_millis(400));
            if name >= 2 {
                let (leaving, mut service) = services.remove(0);
                service.signal("TERM");
                // It says that it is going as soon as it has heard of it, and serves on until nobody comes
                // any more.
                eventually("it says that it is going", Duration::from_secs(1), || {
                    let told = service.operator().get("/readyz");
                    let told = (told.status, told.json()["reason"].clone());
                    (told == (503, Value::from("the process is stopping"))).then_some(())
                });
                let answer = service.caller("retailer", &subject, &[]).claim(&Sale::at(now));
                answer.must_be(201);
                assert_eq!(answer.header("connection"), Some("close"));
                assert!(service.ended().success());
                balancer.remove(leaving);
            }
        }
        stopping.store(true, Ordering::Relaxed);
    });
    let sold = sold.into_inner().unwrap();
    assert!(sold.len() > 100, "there was load: {} sales", sold.len());
    let last = place.start();
    let till = last.caller("retailer", &subject, &[]);
    for (key, sale, answer) in sold.iter().step_by(sold.len() / 50 + 1) {
        assert_eq!(till.claim_under(key, sale).text(), answer.text());
    }
    last.must_verify();
}

#[test]
fn a_process_is_ready_once_it_has_folded_what_there_is() {
    let place = Place::new();
    let first = place.start();
    let till = first.retailer();
    for _ in 0..50 {
        till.claimed(&first.sale());
    }
    let known = |service: &Service| {
        let ready = service.operator().get("/readyz").must_be(200);
        ready["journal"]["position"].as_u64().unwrap()
    };
    let before = known(&first);
    let second = place.start();
    assert!(known(&second) >= before, "{} of {before}", known(&second));
    let digest = |service: &Service| service.operator().get("/digest").must_be(200);
    assert_eq!(digest(&first), digest(&second));
}

// --- Processes that differ ---

#[test]
fn a_process_whose_clock_differs_from_postgresqls_is_unready_until_it_agrees() {
    let place = Place::new();
    let service = place.start();
    let database = &place.database;
    // PostgreSQL's clock, moved for whoever connects from now on.
    let name = &database.name;
    database.execute("CREATE SCHEMA other_time");
    let clock_ahead_by = |seconds: i32| {
        database.execute(&format!(
            "CREATE OR REPLACE FUNCTION other_time.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
             $$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds' $$"
        ));
    };
    let till = service.retailer();
    let (key, sale) = (fresh_key(), service.sale());
    let made = till.claim_under(&key, &sale);
    clock_ahead_by(5);
    database.execute(&format!("ALTER DATABASE {name} SET search_path = other_time, pg_catalog, public"));
    database.terminate_backends();
    let told = until_unready(&service, "behind PostgreSQL's");
    assert!(told.starts_with("the machine's clock is 5") || told.contains("is 49"), "{told}");
    clock_ahead_by(-3);
    until_unready(&service, "ahead of PostgreSQL's");
    // Nothing is stamped with it, whatever reaches the process all the same; what is known can be asked for.
    for _ in 0..3 {
        till.claim(&service.sale()).must_refuse("ledger-unavailable");
    }
    assert_eq!(till.claim_under(&key, &sale).text(), made.text());
    assert_eq!(till.look_at(&made.json()), made.json());
    let exit = Service::try_start(place.options()).err().expect("no other process starts on such a clock");
    assert!(exit.output.contains("ahead of PostgreSQL's: put it right"), "{}", exit.output);
    clock_ahead_by(1);
    until_ready(&service);
    till.claimed(&service.sale());
}

#[test]
fn a_signed_head_that_cannot_be_kept_is_told_until_it_can() {
    let directory = TempDir::with_prefix("subsidy-pos-").unwrap();
    let heads = directory.path().join("heads");
    let options = || {
        Options::on(&directory.path().join("data"))
            .env("SUBSIDY_POS__JOURNAL__HEAD_FILE", heads.join("journal.head").to_str().unwrap())
            .env("SUBSIDY_POS__JOURNAL__HEAD_INTERVAL_S", "1")
    };
    let exit = Service::try_start(options()).err().expect("the directory is missing");
    assert!(
        exit.output.contains("journal.head_file") && exit.output.contains("not a directory"),
        "{}",
        exit.output
    );
    std::fs::create_dir(&heads).unwrap();
    let service = Service::start_with(options());
    let notes = || service.operator().get("/readyz").json()["notes"].to_string();
    let kept = || {
        let claim = service.retailer().claimed(&service.sale());
        let position = claim["journal"]["position"].as_u64().unwrap();
        eventually("its head is kept", Duration::from_secs(10), || {
            (service.metric("head_position") >= position).then_some(())
        });
        assert_eq!(notes(), "[]");
    };
    kept();
    std::fs::remove_dir_all(&heads).unwrap();
    service.retailer().claimed(&service.sale());
    eventually("it is told", Duration::from_secs(10), || notes().contains("signed head").then_some(()));
    std::fs::create_dir(&heads).unwrap();
    kept();
}

#[test]
fn a_process_whose_programmes_are_not_those_activated_is_unready_until_its_files_are() {
    let place = Place::new();
    let start = |directory: &Path| {
        Service::start_with(place.options().env("SUBSIDY_POS__PROGRAMMES__DIR", directory.to_str().unwrap()))
    };
    let directories =
        ["late", "early", "new"].map(|name| programmes::copy(&place.directory.path().join(name)));
    let [late, early] = [0, 1].map(|index| start(&directories[index]));
    let subject = late.retailer().subject;
    let ring = |service: &Service| {
        let sale = service.sale().category("smart_ring").price("1999.00");
        service.caller("retailer", &subject, &[]).claim(&sale)
    };
    // Files that lie ready are of no account before they are activated.
    programmes::add_smart_rings(&directories[1]);
    ring(&early).must_refuse("category-not-eligible");
    until_ready(&early);
    programmes::add_smart_rings(&directories[2]);
    let new = start(&directories[2]);
    ring(&new).must_be(201);
    let told = until_unready(&late, "programme files");
    assert!(told.ends_with(": zj-ai-25"), "it says which: {told}");
    ring(&late).must_be(201);
    until_ready(&new);
    until_ready(&early);
    ring(&early).must_be(201);
    programmes::add_smart_rings(&directories[0]);
    until_ready(&late);
}

#[test]
fn programmes_are_activated_by_command_while_processes_run() {
    let place = Place::new();
    let directories = ["one", "two"].map(|name| programmes::copy(&place.directory.path().join(name)));
    let services = [0, 1].map(|index| {
        let options = Options { clock: None, ..place.options() };
        let directory = directories[index].to_str().unwrap();
        Service::start_with(options.env("SUBSIDY_POS__PROGRAMMES__DIR", directory))
    });
    let knows_rings = |service: &Service| {
        service.retailer().get("/v1/programmes").must_be(200).to_string().contains("smart_ring")
    };
    directories.iter().for_each(|directory| programmes::add_smart_rings(directory));
    assert!(!services.iter().any(knows_rings), "files that lie ready are of no account");
    let config = place.directory.path().join("config.toml");
    let text = format!(
        "{}[ledger]\nurl = \"{}\"\n[programmes]\ndir = \"{}\"\n",
        key_settings(services[0].data()),
        place.database.url(),
        directories[0].display()
    );
    std::fs::write(&config, text).unwrap();
    let done = command(&["activate", "--config", config.to_str().unwrap()]);
    assert!(done.status.success() && said(&done).contains("the programmes are activated"), "{}", said(&done));
    for service in &services {
        eventually("it goes by them", Duration::from_secs(10), || knows_rings(service).then_some(()));
        until_ready(service);
    }
}

#[test]
fn a_process_that_meets_an_entry_of_a_later_version_is_unready_and_decides_nothing() {
    let place = Place::new();
    let service = place.start();
    let till = service.retailer();
    till.claimed(&service.sale());
    let database = &place.database;
    let last = database
        .execute("SELECT position || ' ' || encode(hash, 'hex') FROM journal ORDER BY position DESC LIMIT 1");
    let (position, hash) = last.split_once(' ').unwrap();
    let position = position.parse::<u64>().unwrap() + 1;
    let entry = format!(
        r#"{{"v":99,"position":{position},"alg":"sha256","prev":"{hash}","at_ms":1,"event":{{"unheard_of":{{}}}}}}"#
    );
    let hash = hex(digest(&SHA256, entry.as_bytes()).as_ref());
    database.execute(&format!("INSERT INTO journal VALUES ({position}, decode('{hash}', 'hex'), '{entry}')"));
    until_unready(&service, "does not know");
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    let Err(exit) = Service::try_start(place.options()) else { panic!("it started") };
    assert!(exit.output.contains(&format!("entry {position} has version 99")), "{}", exit.output);
    database.execute(&format!("DELETE FROM journal WHERE position = {position}"));
    until_ready(&service);
    till.claimed(&service.sale());
}

// --- Hash keys ---

/// Writes settings with these hash keys, each with its use; `other` is a secret under the name k2 too.
fn settings(place: &Place, name: &str, keys: &[(&str, &str)]) -> Options {
    let directory = place.directory.path();
    for (file, byte) in [("k1", 1_u8), ("k2", 2), ("other", 3)] {
        let secret: String = (0..32).map(|place| format!("{:02x}", byte.wrapping_mul(37) ^ place)).collect();
        std::fs::write(directory.join(file), secret).unwrap();
    }
    let keys: Vec<String> = keys
        .iter()
        .map(|(file, key_use)| {
            let id = if *file == "other" { "k2" } else { file };
            let file = directory.join(file);
            format!(r#"{{ id = "{id}", file = "{}", use = "{key_use}" }}"#, file.display())
        })
        .collect();
    let file = directory.join(format!("{name}.toml"));
    std::fs::write(&file, format!("[privacy]\nhash_keys = [{}]\n", keys.join(", "))).unwrap();
    Options { config: Some(file), ..place.options() }
}

/// Replaces a process by one with other settings.
fn replace(service: &mut Service, options: Options) {
    assert!(service.stop().success());
    *service = Service::start_with(options);
}

#[test]
fn hash_keys_are_rotated_by_rolling_restarts_and_everyone_stays_known_throughout() {
    let place = Place::new();
    let old = settings(&place, "old", &[("k1", "write")]);
    let both = settings(&place, "both", &[("k1", "write"), ("k2", "check")]);
    let new = settings(&place, "new", &[("k2", "write"), ("k1", "check")]);
    let (mut a, mut b) = (Service::start_with(old.clone()), Service::start_with(old.clone()));
    let subject = a.retailer().subject;
    let till = |service: &Service| service.caller("retailer", &subject, &[]);
    // Everyone who has had a subsidy, with the request that got it and its answer.
    let mut served: Vec<(String, Sale, Answer)> = Vec::new();
    let mut round = |a: &Service, b: &Service| {
        for (here, there) in [(a, b), (b, a)] {
            until_ready(here);
            let (key, sale) = (fresh_key(), here.sale());
            let answer = till(here).claim_under(&key, &sale);
            answer.must_be(201);
            till(there)
                .claim(&sale.another().with("/consumer", sale.body["consumer"].clone()))
                .must_refuse("consumer-limit-reached");
            served.push((key, sale, answer));
        }
        for (key, sale, answer) in &served {
            for service in [a, b] {
                assert_eq!(till(service).claim_under(key, sale).text(), answer.text(), "the same answer");
                let again = sale.another().with("/consumer", sale.body["consumer"].clone());
                till(service).claim(&again).must_refuse("consumer-limit-reached");
                till(service).claim_under(key, &again).must_refuse("idempotency-key-reused");
            }
        }
    };
    round(&a, &b);
    // Checked everywhere before it is written anywhere: nobody is unready in between.
    replace(&mut a, both.clone());
    round(&a, &b);
    replace(&mut b, both);
    round(&a, &b);
    replace(&mut a, new.clone());
    round(&a, &b);
    replace(&mut b, new);
    round(&a, &b);
    let keys: Vec<_> = a
        .entries()
        .iter()
        .filter_map(|entry| {
            entry["event"]["claim_made"]["sale"]["consumer"]["key"].as_str().map(str::to_owned)
        })
        .collect();
    assert!(
        keys.iter().any(|key| key.ends_with("k1")) && keys.iter().any(|key| key.ends_with("k2")),
        "{keys:?}"
    );
    let Err(exit) = Service::try_start(old) else { panic!("it started") };
    assert!(exit.output.contains("k2") && exit.output.contains("hash_keys"), "{}", exit.output);
}

#[test]
fn a_process_without_a_hash_key_that_others_write_under_is_unready_and_makes_no_claims() {
    let place = Place::new();
    let old = Service::start_with(settings(&place, "old", &[("k1", "write")]));
    let other = Service::start_with(settings(&place, "other", &[("k1", "write"), ("other", "check")]));
    let till = old.retailer();
    let (key, sale) = (fresh_key(), old.sale());
    let made = till.claim_under(&key, &sale);
    made.must_be(201);
    let new = Service::start_with(settings(&place, "new", &[("k2", "write"), ("k1", "check")]));
    let known = new.sale();
    new.caller("retailer", &till.subject, &[]).claimed(&known);
    // At once, not only when it has noticed by itself.
    for service in [&old, &other] {
        let till = service.caller("retailer", &till.subject, &[]);
        let again = known.another().with("/consumer", known.body["consumer"].clone());
        till.claim(&again).must_refuse("ledger-unavailable");
    }
    assert!(until_unready(&old, "hmac-sha256/k2").contains("missing"));
    assert!(until_unready(&other, "hmac-sha256/k2").contains("another secret"));
    until_ready(&new);
    assert_eq!(new.caller("retailer", &till.subject, &[]).claim_under(&key, &sale).text(), made.text());
}

// --- The book ---

#[test]
fn one_process_carries_the_book_on_and_another_steps_in_when_it_stands_still_or_ends() {
    /// The lock of whoever carries the book on, as PostgreSQL lists it.
    const CARRIERS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND (classid::bigint << 32 | objid::bigint) = x'7375627369647903'::bigint
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let place = Place::new();
    let (mut one, other) = (place.start(), place.start());
    let book_follows = |service: &Service| {
        eventually("the book has what was sold", Duration::from_secs(20), || {
            let ready = service.operator().get("/readyz").json();
            (ready["book"]["position"] == ready["journal"]["position"]).then_some(())
        });
    };
    let sell = |service: &Service| {
        service.retailer().claimed(&service.sale());
        book_follows(service);
    };
    sell(&one);
    sell(&other);
    assert_eq!(place.database.execute(CARRIERS).trim(), "1");
    // Whichever of them it is.
    for (still, goes_on) in [(&one, &other), (&other, &one)] {
        still.signal("STOP");
        sell(goes_on);
        still.signal("CONT");
        sell(still);
        assert_eq!(place.database.execute(CARRIERS).trim(), "1");
    }
    one.kill();
    sell(&other);
    eventually("the process that is left carries the book on", Duration::from_secs(10), || {
        (place.database.execute(CARRIERS).trim() == "1").then_some(())
    });
    sell(&other);
}

// --- History ---

#[test]
fn a_journal_that_lost_its_end_or_is_another_stops_whoever_knew_more() {
    let place = Place::new();
    let mut service = place.start();
    let idle = place.start();
    let till = service.retailer();
    let sold: Vec<_> = (0..5)
        .map(|_| {
            let (key, sale) = (fresh_key(), service.sale());
            (key.clone(), sale.clone(), till.claim_under(&key, &sale))
        })
        .collect();
    // An older copy, as after a promotion of a standby that lagged.
    let database = &place.database;
    let last = sold[4].2.json()["journal"]["position"].clone();
    eventually("all of it is known to the other process and to the book", Duration::from_secs(5), || {
        let ready = idle.operator().get("/readyz").json();
        (ready["journal"]["position"] == last && ready["book"]["position"] == last).then_some(())
    });
    database.execute(
        "CREATE TABLE kept AS SELECT * FROM journal; \
         DELETE FROM journal WHERE position > (SELECT max(position) - 2 FROM journal)",
    );
    let (key, sale, made) = &sold[4];
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    till.claim_under(key, sale).must_refuse("ledger-unavailable");
    till.get(&format!("/v1/claims/{}", made.json()["claim_id"].as_str().unwrap()))
        .must_refuse("ledger-unavailable");
    for service in [&service, &idle] {
        until_unready(service, "not the one that this process has answered from");
        let log = service.log();
        assert!(log.contains("ERROR") && log.contains("restore the journal that has it"), "{log}");
    }
    // Nor does a new process go on from there: the book has seen more.
    let Err(exit) = Service::try_start(place.options()) else { panic!("it started") };
    assert!(exit.output.contains("has lost entries"), "{}", exit.output);
    database.execute("DELETE FROM journal; INSERT INTO journal SELECT * FROM kept");
    // The journal that has it all is back.
    for service in [&service, &idle] {
        until_ready(service);
    }
    for (key, sale, made) in &sold {
        assert_eq!(till.claim_under(key, sale).text(), made.text());
    }
    // Another history of the same length.
    database.execute(
        "UPDATE journal SET entry = replace(entry, 'SO-', 'XO-') WHERE position = (SELECT max(position) FROM journal); \
         UPDATE journal SET hash = sha256(convert_to(entry, 'UTF8')) WHERE position = (SELECT max(position) FROM journal)",
    );
    until_unready(&idle, "not the one that this process has answered from");
    till.claim(&service.sale()).must_refuse("ledger-unavailable");
    // Whoever accepts the loss starts anew.
    assert!(service.stop().success());
    service.start_again();
    until_ready(&service);
    till.claimed(&service.sale());
    eventually("the book is that of this history too", Duration::from_secs(10), || {
        service.verify(&[]).status.success().then_some(())
    });
}

#[test]
fn a_process_started_anew_does_not_go_on_from_an_older_copy_than_its_signed_head() {
    for database in [None, Some(Database::new())] {
        let directory = TempDir::with_prefix("subsidy-pos-").unwrap();
        let data = directory.path().join("data");
        let mut service = Service::start_with(Options { database: database.clone(), ..Options::on(&data) });
        let till = service.retailer();
        till.claimed(&service.sale().held());
        for _ in 0..5 {
            till.claimed(&service.sale());
        }
        assert!(service.stop().success());
        let last = || match &database {
            Some(database) => database.execute("SELECT max(position) FROM journal").parse::<i64>().unwrap(),
            None => rusqlite::Connection::open(data.join("journal.db"))
                .and_then(|journal| {
                    journal.query_one("SELECT max(position) FROM journal", [], |row| row.get(0))
                })
                .unwrap(),
        };
        let cut = "DELETE FROM journal WHERE position > (SELECT max(position) - 2 FROM journal)";
        match &database {
            // The book is as old as the journal.
            Some(database) => drop(database.execute(&format!("{cut}; DROP SCHEMA book CASCADE"))),
            None => {
                let journal = rusqlite::Connection::open(data.join("journal.db")).unwrap();
                assert_eq!(journal.execute(cut, []).unwrap(), 2);
                std::fs::remove_file(data.join("book.db")).unwrap();
            }
        }
        // When the hold is over: whoever refuses the copy leaves it as it is.
        service.wake_later(3_600_000);
        let before = last();
        let Err(exit) = service.try_start_again() else { panic!("it started") };
        assert!(
            exit.output.contains("older copy") && exit.output.contains("journal.head"),
            "{}",
            exit.output
        );
        assert_eq!(last(), before, "nothing is appended to it");
        // Whoever accepts the loss puts the head aside.
        std::fs::rename(data.join("journal.head"), directory.path().join("evidence")).unwrap();
        service.start_again();
        till.claimed(&service.sale());
        assert!(service.stop().success());
    }
}
