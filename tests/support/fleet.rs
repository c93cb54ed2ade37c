//! Several processes on one PostgreSQL journal and one Redis, reached through proxies, and tills that send
//! them mixed load with deliberate duplicates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::id_of;
use super::journal::Fold;
use super::postgres::{Database, Postgres};
use super::proxy::Proxy;
use super::redis::Server;
use super::service::{command, said};
use super::{Answer, Caller, Options, Random, Sale, Service, Stop, eventually, fresh_key};

/// How long each fault goes on: `SUBSIDY_POS_TEST_FAULT_SECONDS`, or 10 seconds.
pub fn fault_span() -> Duration {
    let seconds = std::env::var("SUBSIDY_POS_TEST_FAULT_SECONDS");
    Duration::from_secs(seconds.map_or(10, |text| text.parse().expect("a number of seconds")))
}

/// Where the money is scarce.
const SCARCE_REGION: &str = "330108";
/// What every sale of the load gets, in fen.
const SUBSIDY: i64 = 60_000;
/// Sales for which there is money in that region, each time that a fault begins.
const SCARCE_SALES: i64 = 5;

/// The processes, and what they stand on.
pub struct Fleet {
    /// Redis itself.
    pub redis: Mutex<Server>,
    /// What stands between the processes and Redis.
    pub redis_network: Proxy,
    /// The database of the journal and the book, in a server of its own.
    pub database: Database,
    /// What stands between the processes and PostgreSQL.
    pub postgres_network: Proxy,
    services: Vec<Mutex<Service>>,
    /// One that lasts, and one that does not.
    funds: [String; 2],
    tills: Vec<Caller>,
    regulators: Vec<Caller>,
    _directory: TempDir,
}

/// What a till sent under one key, and the answer that settled it.
struct Sent {
    key: String,
    sale: Sale,
    settled: Option<Answer>,
    /// What became of it later, as far as that was answered.
    ended: Option<&'static str>,
}

/// Requests of which a certain number must succeed, whatever happens.
struct Scene {
    sent: Vec<Sent>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// One request, perhaps sent to several processes at once.
    Alone,
    /// Several requests for one device, perhaps in one batch: one may have it.
    OneDevice,
    /// Several requests for devices with one IMEI: one may have it.
    OneImei,
    /// Several requests for one person: one may have it.
    OnePerson,
    /// Several requests for one line of an order: one may have it.
    OneOrderLine,
    /// Several requests for the last of the money: as many as there is money for may have it.
    LastMoney,
}

impl Kind {
    /// Why those who come too late have nothing.
    fn refusal(self) -> &'static str {
        match self {
            Self::Alone => "nobody is refused",
            Self::OneDevice | Self::OneImei => "device-already-subsidised",
            Self::OnePerson => "consumer-limit-reached",
            Self::OneOrderLine => "order-line-already-claimed",
            Self::LastMoney => "fund-exhausted",
        }
    }
}

impl Fleet {
    /// `count` processes, started together, a fund that lasts and one that is empty.
    pub fn start(count: usize) -> Self {
        super::watch();
        let redis = Server::start();
        let redis_network = Proxy::before(&format!("127.0.0.1:{}", redis.port));
        let database = Postgres::start().database();
        let postgres_network = Proxy::before(&database.server.address());
        let directory = TempDir::with_prefix("subsidy-pos-").expect("a directory");
        let ledger = database.url().replace(&database.server.address(), &postgres_network.address());
        let options = Options::on(&directory.path().join("data"))
            .env("SUBSIDY_POS__LEDGER__URL", &ledger)
            .env("SUBSIDY_POS__SHIELD__URL", &format!("redis://{}", redis_network.address()));
        let services: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> =
                (0..count).map(|_| scope.spawn(|| Service::start_with(options.clone()))).collect();
            starting.into_iter().map(|service| service.join().expect("it starts")).collect()
        });
        let funds = [("330106", "900000000.00"), (SCARCE_REGION, "0.00")]
            .map(|(region, budget)| services[0].open_fund("zj-ai-25", region, budget));
        let till = services[0].retailer();
        let callers = |role: &str, subject: &str| -> Vec<_> {
            services.iter().map(|service| service.caller(role, subject, &[])).collect()
        };
        let (tills, regulators) = (callers("retailer", &till.subject), callers("regulator", "officer-1"));
        let services = services.into_iter().map(Mutex::new).collect();
        Self {
            redis: Mutex::new(redis),
            redis_network,
            database,
            postgres_network,
            services,
            funds,
            tills,
            regulators,
            _directory: directory,
        }
    }

    /// The process of this number.
    pub fn service(&self, number: usize) -> MutexGuard<'_, Service> {
        self.services[number].lock().expect("the service")
    }

    /// How many processes there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// One retailer, at each process.
    pub fn tills(&self) -> &[Caller] {
        &self.tills
    }
}

/// A run of tills against a fleet, through one fault after the other.
pub struct Run<'f> {
    fleet: &'f Fleet,
    random: Random,
    scenes: Vec<Scene>,
}

/// What a fault may do to those who call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum May {
    /// Nothing: every answer is final.
    Nothing,
    /// Someone may be told to come again later, as if there were too many.
    Wait,
    /// The ledger may be unavailable, and connections may break.
    Interrupt,
}

impl<'f> Run<'f> {
    /// A run that has sent nothing yet.
    pub fn new(fleet: &'f Fleet, name: &str) -> Self {
        Self { fleet, random: Random::seeded(name), scenes: Vec::new() }
    }

    /// Sells while `fault` goes on, and checks everything once it is over.
    pub fn through(&mut self, what: &str, may: May, fault: impl FnOnce(Duration)) {
        const TILLS: usize = 5;
        let stopping = AtomicBool::new(false);
        let gathered: Mutex<Vec<Scene>> = Mutex::default();
        let affordable = self.set_some_aside();
        let now = self.fleet.service(0).now();
        let seeds: Vec<_> = (0..TILLS).map(|_| self.random.next()).collect();
        let began = Instant::now();
        std::thread::scope(|scope| {
            // However the fault ends, the tills do too.
            let _stop = Stop(&stopping);
            for seed in seeds {
                let (fleet, stopping, gathered) = (self.fleet, &stopping, &gathered);
                scope.spawn(move || {
                    let mut till = Till { fleet, random: Random::from_seed(seed), now, may };
                    while !stopping.load(Ordering::Relaxed) {
                        let scene = till.play();
                        gathered.lock().expect("the scenes").push(scene);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(300));
            fault(fault_span());
            std::thread::sleep(Duration::from_millis(300));
        });
        let mut scenes = gathered.into_inner().expect("the scenes");
        let sent: usize = scenes.iter().map(|scene| scene.sent.len()).sum();
        let open = scenes.iter().flat_map(|scene| &scene.sent).filter(|sent| sent.settled.is_none()).count();
        assert!(sent > 30, "{what}: there was load: {sent} requests");
        assert!(may != May::Nothing || open == 0, "{what}: {open} of {sent} without an answer");
        let began_settling = Instant::now();
        self.settle(what, &mut scenes, affordable);
        self.scenes.append(&mut scenes);
        self.check(what);
        eprintln!(
            "{what}: {sent} requests in {:.1} s, {open} without an answer at first, settled and checked in {:.1} s",
            (began_settling - began).as_secs_f64(),
            began_settling.elapsed().as_secs_f64()
        );
    }

    /// Sets some more money aside where it is scarce; says for how many sales there is some now.
    fn set_some_aside(&self) -> i64 {
        let ([_, scarce], regulator) = (&self.fleet.funds, &self.fleet.regulators[0]);
        let delta = super::yuan(SCARCE_SALES * SUBSIDY);
        let tranche = json!({"delta": delta, "reason": "tranche", "document_no": "ZCJ-2026-17"});
        regulator.post_under(&fresh_key(), &format!("/v1/funds/{scarce}/adjust"), &tranche).must_be(200);
        super::fen(&regulator.fund(scarce)["remaining"]) / SUBSIDY
    }

    /// Asks again, at any process, until every outcome is known.
    fn settle(&mut self, what: &str, scenes: &mut [Scene], affordable: i64) {
        const AT_ONCE: usize = 8;
        let open: Vec<&mut Sent> = scenes
            .iter_mut()
            .flat_map(|scene| &mut scene.sent)
            .filter(|sent| sent.settled.is_none())
            .collect();
        let share = open.len().div_ceil(AT_ONCE).max(1);
        let mut open = open.into_iter().peekable();
        std::thread::scope(|scope| {
            while open.peek().is_some() {
                let mine: Vec<_> = open.by_ref().take(share).collect();
                let (mut random, tills) = (Random::from_seed(self.random.next()), self.fleet.tills());
                scope.spawn(move || {
                    for sent in mine {
                        let found =
                            eventually(&format!("{what}: an outcome"), Duration::from_secs(30), || {
                                let till = random.pick(tills);
                                let answer =
                                    till.try_post_under(&sent.key, "/v1/claims", &sent.sale.body).ok()?;
                                is_final(&answer).then_some(answer)
                            });
                        sent.settled = Some(found);
                    }
                });
            }
        });
        let (mut sales, mut paid) = (0, 0);
        for scene in scenes {
            let made = scene.sent.iter().filter(|sent| sent.is_made()).count();
            let told: Vec<_> = scene.sent.iter().map(Sent::told).collect();
            if scene.kind == Kind::LastMoney {
                sales += scene.sent.len();
                paid += made;
            } else {
                assert_eq!(made, 1, "{what}: {:?}: {told:?}", scene.kind);
            }
            let refused = told.iter().filter(|told| !told.starts_with("201"));
            let reason = format!("409 {}", scene.kind.refusal());
            assert!(refused.into_iter().all(|told| *told == reason), "{what}: {:?}: {told:?}", scene.kind);
        }
        // Nobody gives anything back there: whoever is refused is so only because all of it is gone.
        let affordable = usize::try_from(affordable).expect("a number");
        assert_eq!(paid, sales.min(affordable), "{what}: of {sales} for the last of the money");
    }

    /// Checks what the journal holds against what the tills were told.
    fn check(&mut self, what: &str) {
        let fleet = self.fleet;
        // The same state everywhere.
        let digests: BTreeSet<String> = (0..fleet.len())
            .map(|number| fleet.service(number).operator().get("/digest").must_be(200).to_string())
            .collect();
        assert_eq!(digests.len(), 1, "{what}: {digests:?}");
        // Every acknowledged claim once, and none that nobody asked for.
        let entries: Vec<Value> = fleet
            .database
            .execute("SELECT entry FROM journal ORDER BY position")
            .lines()
            .map(|entry| serde_json::from_str(entry).expect("an entry is JSON"))
            .collect();
        let fold = Fold::of(&entries);
        let made: Vec<&Sent> =
            self.scenes.iter().flat_map(|scene| &scene.sent).filter(|sent| sent.is_made()).collect();
        assert_eq!(fold.claims.len(), made.len(), "{what}: claims in the journal and acknowledged");
        let mut names = BTreeSet::new();
        let mut money: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for sent in &made {
            let claim = sent.settled.as_ref().expect("it is made").json();
            let told = &fold.claims[id_of(&claim)];
            assert_eq!(told.made["sale"]["order_no"], sent.sale.body["order_no"], "{what}: {claim}");
            let status = sent.ended.or(claim["status"].as_str()).expect("a status");
            assert_eq!(told.status, status, "{what}: {claim}");
            let fund = fleet.funds.iter().find(|fund| claim["fund_id"] == **fund).expect("one of the funds");
            let (held, redeemed) = money.entry(fund).or_default();
            match status {
                "held" => *held += SUBSIDY,
                "redeemed" => *redeemed += SUBSIDY,
                _ => continue,
            }
            for name in sent.sale.names() {
                assert!(names.insert(name.clone()), "{what}: {name} twice");
            }
        }
        // The money, to the fen.
        for fund_id in &fleet.funds {
            let fund = fold.funds[fund_id];
            let (held, redeemed) = money.get(fund_id.as_str()).copied().unwrap_or_default();
            assert_eq!((fund.held, fund.redeemed), (held, redeemed), "{what}: {fund_id}");
            for regulator in &fleet.regulators {
                let told = regulator.fund(fund_id);
                assert_eq!(super::fen(&told["held"]), held, "{what}: {told}");
                assert_eq!(super::fen(&told["redeemed"]), redeemed, "{what}: {told}");
                assert_eq!(super::fen(&told["remaining"]), fund.budget - held - redeemed, "{what}: {told}");
            }
        }
        // The chain.
        let verified = command(&["verify", "--database-url", &fleet.database.url()]);
        assert!(verified.status.success(), "{what}: verify: {}", said(&verified));
        // Asked again anywhere: the same bytes.
        for _ in 0..50 {
            let sent = *self.random.pick(&made);
            let till = self.random.pick(fleet.tills());
            let again = till.claim_under(&sent.key, &sent.sale);
            match sent.ended {
                Some("cancelled") => drop(again.must_refuse("cancelled")),
                _ => assert_eq!(again.text(), sent.settled.as_ref().expect("it is made").text(), "{what}"),
            }
        }
    }
}

/// Whether an answer says no more than to come again.
fn is_put_off(answer: &Answer) -> bool {
    matches!(answer.status, 429 | 503)
}

/// Whether an answer says what became of a claim for good.
fn is_final(answer: &Answer) -> bool {
    match answer.status {
        201 => true,
        503 => {
            assert!(
                matches!(answer.code().as_str(), "ledger-unavailable" | "overloaded"),
                "{}",
                answer.text()
            );
            answer.must_refuse(&answer.code());
            false
        }
        429 => {
            answer.must_refuse("rate-limited");
            false
        }
        409 => match answer.code().as_str() {
            "request-in-progress" => {
                assert_eq!(answer.header("retry-after"), Some("1"));
                false
            }
            "device-already-subsidised"
            | "consumer-limit-reached"
            | "order-line-already-claimed"
            | "fund-exhausted" => true,
            _ => panic!("{}", answer.text()),
        },
        _ => panic!("{}: {}", answer.status, answer.text()),
    }
}

impl Sent {
    fn new(sale: Sale) -> Self {
        Self { key: fresh_key(), sale, settled: None, ended: None }
    }

    fn is_made(&self) -> bool {
        self.settled.as_ref().is_some_and(|answer| answer.status == 201)
    }

    fn told(&self) -> String {
        self.settled
            .as_ref()
            .map_or("nothing".to_owned(), |answer| format!("{} {}", answer.status, answer.code()))
    }

    /// Takes an answer; a second one says the same as the first.
    fn settle(&mut self, answer: Answer) {
        if !is_final(&answer) {
            return;
        }
        match &self.settled {
            Some(before) if before.status == 201 => assert_eq!(before.text(), answer.text(), "{}", self.key),
            _ => self.settled = Some(answer),
        }
    }
}

/// One thread that sells.
struct Till<'f> {
    fleet: &'f Fleet,
    random: Random,
    now: super::Timestamp,
    may: May,
}

impl Till<'_> {
    fn play(&mut self) -> Scene {
        let sale = Sale::at(self.now);
        let another = |change: &dyn Fn(Sale) -> Sale| Sent::new(change(sale.another()));
        match self.random.below(19) {
            0..3 => {
                let mut sent = [Sent::new(sale)];
                self.send_at_once(&mut sent, 1);
                let [sent] = sent;
                Scene { sent: vec![sent], kind: Kind::Alone }
            }
            3..5 => {
                let mut sent = [Sent::new(sale)];
                self.send_at_once(&mut sent, 3);
                let [sent] = sent;
                Scene { sent: vec![sent], kind: Kind::Alone }
            }
            5..7 => {
                let device = sale.body["device"].clone();
                let rival = another(&|other| other.with("/device", device.clone()));
                let mut sent = vec![Sent::new(sale.clone()), rival];
                self.send_at_once(&mut sent, 1);
                Scene { sent, kind: Kind::OneDevice }
            }
            7..9 => {
                let person = sale.body["consumer"].clone();
                let rival = another(&|other| other.with("/consumer", person.clone()));
                let mut sent = vec![Sent::new(sale.clone()), rival];
                self.send_at_once(&mut sent, 1);
                Scene { sent, kind: Kind::OnePerson }
            }
            9 => self.sell_and_take_back(sale),
            10..12 => self.hold_and_go_on(sale.held_with_device()),
            12..14 => {
                let sale = sale.clone().with_imei();
                let imei = sale.body["device"]["imei"].clone();
                let rival = if self.random.chance(50) {
                    another(&|other| other.with("/device/imei", imei.clone()))
                } else {
                    // Written in the other member it is still that IMEI.
                    another(&|other| other.with("/device/sn", imei[0].clone()))
                };
                let mut sent = vec![Sent::new(sale), rival];
                self.send_at_once(&mut sent, 1);
                Scene { sent, kind: Kind::OneImei }
            }
            14..16 => {
                let order_no = sale.body["order_no"].clone();
                // The first line, whether it is said or not.
                let rival =
                    another(&|other| other.with("/order_no", order_no.clone()).with("/order_line", 1));
                let mut sent = vec![Sent::new(sale.clone()), rival];
                self.send_at_once(&mut sent, 1);
                Scene { sent, kind: Kind::OneOrderLine }
            }
            16..18 => {
                let mut sent = vec![Sent::new(sale.clone()), another(&|other| other)];
                for sent in &mut sent {
                    sent.sale = sent.sale.clone().region(SCARCE_REGION);
                }
                self.send_at_once(&mut sent, 1);
                Scene { sent, kind: Kind::LastMoney }
            }
            _ => self.send_a_batch(sale),
        }
    }

    /// What is acknowledged by one process is known to another in the next request.
    fn sell_and_take_back(&mut self, sale: Sale) -> Scene {
        let mut sent = Sent::new(sale);
        if let Some(claim) = self.make(&mut sent) {
            let path = format!("/v1/claims/{}", id_of(&claim));
            let (body, path, status) = if self.random.chance(50) {
                let body = json!({"reason": "unwanted", "returned_at": claim["sold_at"]});
                (body, format!("{path}/return"), "returned")
            } else {
                (json!({"idempotency_key": sent.key}), "/v1/claims/cancel".to_owned(), "cancelled")
            };
            self.move_on(&mut sent, &path, &body, status);
        }
        Scene { sent: vec![sent], kind: Kind::Alone }
    }

    /// A hold is redeemed, given back, or left as it is.
    fn hold_and_go_on(&mut self, sale: Sale) -> Scene {
        let mut sent = Sent::new(sale);
        if let Some(claim) = self.make(&mut sent) {
            let path = format!("/v1/claims/{}", id_of(&claim));
            match self.random.below(3) {
                0 => self.move_on(&mut sent, &format!("{path}/redeem"), &json!({}), "redeemed"),
                1 => self.move_on(&mut sent, &format!("{path}/release"), &json!({}), "released"),
                _ => {}
            }
        }
        Scene { sent: vec![sent], kind: Kind::Alone }
    }

    /// Makes a claim at one process and reads it at another; the claim, if that was answered.
    fn make(&mut self, sent: &mut Sent) -> Option<Value> {
        let (here, there) = (self.random.pick(self.fleet.tills()), self.random.pick(self.fleet.tills()));
        if let Some(answer) = self.answer(here.try_post_under(&sent.key, "/v1/claims", &sent.sale.body)) {
            sent.settle(answer);
        }
        let claim = sent.settled.as_ref().map(Answer::json)?;
        let path = format!("/v1/claims/{}", id_of(&claim));
        if let Some(read) = self.answer(there.try_send("GET", &path, &[], None))
            && !is_put_off(&read)
        {
            assert_eq!(read.must_be(200), claim, "what one process made another knows");
        }
        Some(claim)
    }

    /// Asks for a claim to become `status`, at any process, until it is known to be.
    fn move_on(&mut self, sent: &mut Sent, path: &str, body: &Value, status: &'static str) {
        let body = body.to_string();
        eventually("it is moved on", fault_span() + Duration::from_secs(30), || {
            let till = self.random.pick(self.fleet.tills());
            let headers = [("content-type", "application/json")];
            let answer = till.try_send("POST", path, &headers, Some(body.as_bytes()));
            let answer = self.answer(answer).filter(|answer| !is_put_off(answer))?;
            let done = answer.must_be(200);
            let claim = if status == "cancelled" { &done["claim"] } else { &done };
            assert_eq!(claim["status"], status, "{done}");
            Some(())
        });
        sent.ended = Some(status);
    }

    /// Three rivals for one device in one request, the first of them at another process too.
    fn send_a_batch(&mut self, sale: Sale) -> Scene {
        let device = sale.body["device"].clone();
        let rival = || Sent::new(sale.another().with("/device", device.clone()));
        let mut sent = vec![Sent::new(sale.clone()), rival(), rival()];
        let items: Vec<_> =
            sent.iter().map(|sent| json!({"idempotency_key": sent.key, "claim": sent.sale.body})).collect();
        let body = json!({"items": items}).to_string();
        let (here, there) = (self.random.pick(self.fleet.tills()), self.random.pick(self.fleet.tills()));
        let (batch, alone) = std::thread::scope(|scope| {
            let headers = [("content-type", "application/json")];
            let batch = scope
                .spawn(move || here.try_send("POST", "/v1/claims/batch", &headers, Some(body.as_bytes())));
            let alone = there.try_post_under(&sent[0].key, "/v1/claims", &sent[0].sale.body);
            (batch.join().expect("a request"), alone)
        });
        if let Some(answer) = self.answer(alone) {
            sent[0].settle(answer);
        }
        if let Some(answer) = self.answer(batch).filter(|answer| !is_put_off(answer)) {
            let results = answer.must_be(200);
            for (sent, result) in sent.iter_mut().zip(results["results"].as_array().expect("results")) {
                if let Some(answer) = self.item(result) {
                    sent.settle(answer);
                }
            }
        }
        self.come_again(&mut sent);
        Scene { sent, kind: Kind::OneDevice }
    }

    /// What an item of a batch would have been answered alone, if that is final.
    fn item(&self, result: &Value) -> Option<Answer> {
        let status = u16::try_from(result["status"].as_u64().expect("a status")).expect("a status");
        assert!(status < 500 || self.may == May::Interrupt, "only Redis suffers: {result}");
        let body = if status == 201 { &result["claim"] } else { &result["problem"] };
        if status == 503 || body["code"] == "request-in-progress" {
            return None;
        }
        Some(Answer { status, headers: Vec::new(), body: body.to_string().into_bytes() })
    }

    /// Sends everything at once, each request to `copies` processes.
    fn send_at_once(&mut self, sent: &mut [Sent], copies: usize) {
        let tills = self.fleet.tills();
        let first = self.random.below(tills.len() as u64) as usize;
        let jobs: Vec<(usize, &Caller)> = (0..sent.len())
            .flat_map(|index| (0..copies).map(move |copy| (index, copy)))
            .map(|(index, copy)| (index, &tills[(first + index + copy) % tills.len()]))
            .collect();
        let shown: &[Sent] = sent;
        let post = |(index, till): (usize, &Caller)| {
            let sent = &shown[index];
            (index, till.try_post_under(&sent.key, "/v1/claims", &sent.sale.body))
        };
        let answers: Vec<_> = if let [only] = jobs[..] {
            vec![post(only)]
        } else {
            std::thread::scope(|scope| {
                let posts: Vec<_> = jobs.iter().map(|job| scope.spawn(|| post(*job))).collect();
                posts.into_iter().map(|thread| thread.join().expect("a request")).collect()
            })
        };
        for (index, answer) in answers {
            if let Some(answer) = self.answer(answer) {
                sent[index].settle(answer);
            }
        }
        self.come_again(sent);
    }

    /// A twin that was told to come again comes again where nothing else may happen to it.
    fn come_again(&mut self, sent: &mut [Sent]) {
        let tills = self.fleet.tills();
        if self.may != May::Interrupt {
            for sent in sent.iter_mut().filter(|sent| sent.settled.is_none()) {
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_secs(1));
                    let answer = self.random.pick(tills).claim_under(&sent.key, &sent.sale);
                    self.must_be_allowed(&answer);
                    sent.settle(answer);
                    if sent.settled.is_some() {
                        break;
                    }
                }
            }
        }
    }

    fn must_be_allowed(&self, answer: &Answer) {
        let is_allowed = match answer.status {
            500.. => self.may == May::Interrupt,
            429 => self.may == May::Wait,
            _ => true,
        };
        assert!(is_allowed, "{:?}: {} {}", self.may, answer.status, answer.text());
    }

    /// An answer, unless the connection broke, which must be allowed.
    fn answer(&self, answer: Result<Answer, ureq::Error>) -> Option<Answer> {
        match answer {
            Ok(answer) => {
                self.must_be_allowed(&answer);
                if is_put_off(&answer) {
                    // A till does not come again at once.
                    std::thread::sleep(Duration::from_millis(100));
                }
                Some(answer)
            }
            Err(fault) => {
                assert!(self.may == May::Interrupt, "only Redis suffers: {fault}");
                None
            }
        }
    }
}
