//! The oracle: thousands of random commands against a model that knows nothing of the service's code.
//!
//! The model is a handful of maps and the rules written down again, by hand. Every answer must be the
//! one it expects, with its status, code and money; now and then the service is stopped or killed and
//! started with its clock further on, over two ends of a year; at the end funds, totals and every single
//! claim must agree. `SUBSIDY_POS_TEST_SEED` repeats a run; `SUBSIDY_POS_TEST_COMMANDS` sets its length.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::support::client::id_of;
use crate::support::identifiers::{fifteen_digits, fresh_barcode, fresh_resident_id};
use crate::support::service::also_on_postgres;
use crate::support::{
    Answer, Caller, Options, Random, Sale, Service, Timestamp, Value, fen, fresh_key, fresh_number, instant,
    json, yuan,
};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// No command is sent this close to an instant at which its answer changes.
const MARGIN: i64 = 60 * SECOND;
/// Commands between two restarts, at most; fewer where they take longer than the margin allows.
const SEGMENT_COMMANDS: usize = 250;
const SEGMENT_TIME: Duration = Duration::from_secs(30);

/// A programme, as its notice has it.
struct Programme {
    id: &'static str,
    categories: &'static [&'static str],
    /// What region codes begin with.
    regions: &'static str,
    from: &'static str,
    to: &'static str,
    cap_fen: i64,
    ceiling_fen: Option<i64>,
    grade: Option<i64>,
    priority: u8,
}

const PROGRAMMES: [Programme; 4] = [
    Programme {
        id: "zj-ai-25",
        categories: &["smart_glasses", "smart_home_robot", "smart_bionic", "smart_health"],
        regions: "33",
        from: "2025-05-31",
        to: "2027-12-31",
        cap_fen: 200_000,
        ceiling_fen: None,
        grade: None,
        priority: 0,
    },
    Programme {
        id: "national-digital-2025",
        categories: &["phone", "tablet", "watch_band"],
        regions: "",
        from: "2025-01-20",
        to: "2025-12-31",
        cap_fen: 50_000,
        ceiling_fen: Some(600_000),
        grade: None,
        priority: 1,
    },
    Programme {
        id: "national-digital-2026",
        categories: &["phone", "tablet", "watch_band", "smart_glasses"],
        regions: "",
        from: "2026-01-01",
        to: "2026-12-31",
        cap_fen: 50_000,
        ceiling_fen: Some(600_000),
        grade: None,
        priority: 1,
    },
    Programme {
        id: "national-appliances-2026",
        categories: &[
            "refrigerator",
            "washing_machine",
            "television",
            "air_conditioner",
            "computer",
            "water_heater",
        ],
        regions: "",
        from: "2026-01-01",
        to: "2026-12-31",
        cap_fen: 150_000,
        ceiling_fen: None,
        grade: Some(1),
        priority: 2,
    },
];

const CITIES: [&str; 11] = [
    "330100", "330200", "330300", "330400", "330500", "330600", "330700", "330800", "330900", "331000",
    "331100",
];

/// The day in Shanghai.
fn day(at: i64) -> String {
    Timestamp::from_ms(at).to_string()[..10].to_owned()
}

fn year(at: i64) -> String {
    day(at)[..4].to_owned()
}

impl Programme {
    fn is_in_force(&self, at: i64) -> bool {
        let day = day(at);
        self.from <= day.as_str() && day.as_str() <= self.to
    }

    /// Whether it would pay something for a sale of a category that it lists.
    fn judges(&self, sale: &Value, price_fen: i64, region: &str, sold_at: i64) -> bool {
        region.starts_with(self.regions)
            && self.is_in_force(sold_at)
            && self.fits(price_fen)
            && self.is_met_by(sale)
    }

    fn fits(&self, price_fen: i64) -> bool {
        self.ceiling_fen.is_none_or(|ceiling| price_fen <= ceiling) && self.pays(price_fen) > 0
    }

    fn is_met_by(&self, sale: &Value) -> bool {
        self.grade.is_none_or(|grade| sale["energy_grade"].as_i64() == Some(grade))
    }

    fn pays(&self, price_fen: i64) -> i64 {
        (price_fen * 15 / 100).min(self.cap_fen)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Held,
    Redeemed,
    Released,
    Expired,
    Cancelled,
    Returned,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Redeemed => "redeemed",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Returned => "returned",
        }
    }
}

struct Fund {
    programme: String,
    region: String,
    from: String,
    to: String,
    budget: i64,
    held: i64,
    redeemed: i64,
    frozen: bool,
}

struct Claim {
    id: String,
    retailer: usize,
    sale: Value,
    key: String,
    /// The creating answer.
    answer: Answer,
    status: Status,
    subsidy: i64,
    fund: String,
    held_until: i64,
    created_at: i64,
    /// When it ended, if it has.
    ended_at: i64,
    device: Option<Value>,
    /// What is taken while the claim lives.
    names: Vec<String>,
    person: String,
    reason: &'static str,
}

#[derive(Clone)]
enum KeyState {
    Claim(usize),
    Spent(i64),
}

/// What the model expects of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Made { status: &'static str, subsidy: String, programme: String, fund: String },
    Replay(usize),
    Refused(&'static str, Option<Value>),
}

#[derive(Default)]
struct Model {
    funds: BTreeMap<String, Fund>,
    claims: Vec<Claim>,
    keys: HashMap<(usize, String), KeyState>,
    taken: HashSet<String>,
    persons: HashMap<String, usize>,
}

impl Model {
    /// What `--dev` does when it starts.
    fn open_development_funds(&mut self, now: i64) {
        for programme in PROGRAMMES.iter().filter(|programme| programme.is_in_force(now)) {
            for city in CITIES {
                let open =
                    self.funds.values().any(|fund| fund.programme == programme.id && fund.region == city);
                if !open {
                    let fund = Fund {
                        programme: programme.id.into(),
                        region: city.into(),
                        from: programme.from.into(),
                        to: programme.to.into(),
                        budget: 100_000_000_000,
                        held: 0,
                        redeemed: 0,
                        frozen: false,
                    };
                    self.funds.insert(format!("{}.{city}", programme.id), fund);
                }
            }
        }
    }

    /// Holds whose time is over are over.
    fn pass_to(&mut self, now: i64) {
        for claim in 0..self.claims.len() {
            if self.claims[claim].status == Status::Held && self.claims[claim].held_until <= now {
                let at = self.claims[claim].held_until;
                self.end(claim, Status::Expired, at);
            }
        }
    }

    fn end(&mut self, claim: usize, status: Status, at: i64) {
        let claim = &mut self.claims[claim];
        let fund = self.funds.get_mut(&claim.fund).expect("its fund");
        match claim.status {
            Status::Held => fund.held -= claim.subsidy,
            Status::Redeemed => fund.redeemed -= claim.subsidy,
            other => panic!("{other:?} has ended"),
        }
        claim.status = status;
        claim.ended_at = at;
        for name in claim.names.drain(..) {
            self.taken.remove(&name);
        }
        *self.persons.get_mut(&claim.person).expect("a count") -= 1;
    }

    /// The names of a device: manufacturer and serial number, and every IMEI.
    fn device_names(device: &Value) -> Vec<String> {
        let barcode = device["barcode"].as_str().expect("a barcode");
        let manufacturer = &format!("{barcode:0>14}")[1..8];
        let imeis = device["imei"].as_array().into_iter().flatten();
        let sn = format!("sn {manufacturer} {}", device["sn"].as_str().expect("a serial number"));
        std::iter::once(sn).chain(imeis.map(|imei| format!("imei {imei}"))).collect()
    }

    fn fund_for(&self, programme: &str, region: &str, sold_at: i64) -> Option<&String> {
        let day = day(sold_at);
        let covering = [region.to_owned(), format!("{}00", &region[..4]), format!("{}0000", &region[..2])];
        covering.iter().find_map(|covering| {
            let fits = |fund: &Fund| {
                fund.programme == programme && fund.region == *covering && fund.from <= day && day <= fund.to
            };
            self.funds.iter().find(|(_, fund)| fits(fund)).map(|(id, _)| id)
        })
    }

    fn lack(&self, programme: &Programme, subsidy: i64, region: &str, sold_at: i64) -> Option<&'static str> {
        let Some(fund) = self.fund_for(programme.id, region, sold_at) else { return Some("fund-not-open") };
        let fund = &self.funds[fund];
        if fund.frozen {
            return Some("fund-frozen");
        }
        (fund.budget - fund.held - fund.redeemed < subsidy).then_some("fund-exhausted")
    }

    /// What posting `sale` must come to; nothing is changed.
    fn judge(&self, retailer: usize, key: &str, sale: &Value, now: i64) -> Expected {
        let refused = |code| Expected::Refused(code, None);
        match self.keys.get(&(retailer, key.to_owned())) {
            Some(KeyState::Claim(claim)) => {
                let claim_at = &self.claims[*claim];
                return if claim_at.sale != *sale {
                    refused("idempotency-key-reused")
                } else if claim_at.status == Status::Cancelled {
                    refused("cancelled")
                } else {
                    Expected::Replay(*claim)
                };
            }
            Some(KeyState::Spent(_)) => return refused("cancelled-before-arrival"),
            None => {}
        }
        let text = |member: &str| sale[member].as_str().unwrap_or_default();
        let (category, region) = (text("category"), text("region_code"));
        let (price, sold_at) = (fen(&sale["price"]), instant(text("sold_at")).ms());
        let accepted = sale["accept_programme"].as_str();

        let mut candidates: Vec<&Programme> =
            PROGRAMMES.iter().filter(|programme| programme.categories.contains(&category)).collect();
        if candidates.is_empty() {
            return refused("category-not-eligible");
        }
        let listing = candidates.clone();
        candidates.retain(|programme| accepted.is_none_or(|accepted| accepted == programme.id));
        if candidates.is_empty() {
            return refused("programme-not-applicable");
        }
        candidates.retain(|programme| region.starts_with(programme.regions));
        if candidates.is_empty() {
            return refused("region-not-covered");
        }
        candidates.retain(|programme| programme.is_in_force(sold_at));
        if candidates.is_empty() {
            return refused("not-in-force");
        }
        let late = sale["late_reason"].is_string() && now - sold_at > 15 * MINUTE;
        let back = if late { 72 * HOUR } else { 15 * MINUTE };
        if sold_at < now - back || sold_at > now + 5 * MINUTE || (late && year(sold_at) != year(now)) {
            return refused("sold-at-out-of-range");
        }
        candidates.retain(|programme| programme.fits(price));
        if candidates.is_empty() {
            return refused("price-not-eligible");
        }
        candidates.retain(|programme| programme.is_met_by(sale));
        if candidates.is_empty() {
            return refused("condition-not-met");
        }
        candidates.sort_by_key(|programme| (-programme.pays(price), programme.priority));
        let chosen = candidates[0];
        let subsidy = chosen.pays(price);

        if sale["received_elsewhere"].as_array().is_some_and(|list| !list.is_empty()) {
            return refused("received-elsewhere");
        }
        let names = Names::of(retailer, sale);
        if self.taken.contains(&names.order) {
            return refused("order-line-already-claimed");
        }
        if names.device.iter().any(|name| self.taken.contains(name)) {
            return refused("device-already-subsidised");
        }
        if names.trade_in.iter().any(|name| self.taken.contains(name)) {
            return refused("trade-in-already-used");
        }
        if self.persons.get(&names.person).is_some_and(|count| *count >= 1) {
            return refused("consumer-limit-reached");
        }
        if let Some(lack) = self.lack(chosen, subsidy, region, sold_at) {
            // Whatever else could pay is named, also to a till that had asked for one programme only.
            let mut others: Vec<_> = listing
                .into_iter()
                .filter(|other| other.id != chosen.id && other.judges(sale, price, region, sold_at))
                .filter(|other| self.lack(other, other.pays(price), region, sold_at).is_none())
                .collect();
            others.sort_by_key(|other| (-other.pays(price), other.priority));
            let alternatives: Vec<_> = others
                .iter()
                .map(|other| json!({"programme": other.id, "subsidy": yuan(other.pays(price))}))
                .collect();
            return Expected::Refused(lack, Some(json!(alternatives)));
        }
        if sale["expected_subsidy"].as_str().is_some_and(|expected| expected != yuan(subsidy)) {
            return refused("subsidy-differs");
        }
        let status = if sale["mode"] == "hold" { "held" } else { "redeemed" };
        let fund = self.fund_for(chosen.id, region, sold_at).expect("a fund that can pay").clone();
        Expected::Made { status, subsidy: yuan(subsidy), programme: chosen.id.into(), fund }
    }

    /// Enters what was made.
    fn enter(&mut self, retailer: usize, key: &str, sale: &Value, answer: Answer) {
        let claim = answer.json();
        let names = Names::of(retailer, sale);
        let (subsidy, fund) = (fen(&claim["subsidy"]), claim["fund_id"].as_str().unwrap().to_owned());
        let created_at = instant(claim["created_at"].as_str().unwrap()).ms();
        let held = claim["status"] == "held";
        let balance = self.funds.get_mut(&fund).unwrap();
        if held {
            balance.held += subsidy;
        } else {
            balance.redeemed += subsidy;
        }
        *self.persons.entry(names.person.clone()).or_default() += 1;
        let taken: Vec<_> = std::iter::once(names.order).chain(names.device).chain(names.trade_in).collect();
        self.taken.extend(taken.iter().cloned());
        self.keys.insert((retailer, key.to_owned()), KeyState::Claim(self.claims.len()));
        self.claims.push(Claim {
            id: id_of(&claim).to_owned(),
            retailer,
            sale: sale.clone(),
            key: key.to_owned(),
            status: if held { Status::Held } else { Status::Redeemed },
            subsidy,
            fund,
            held_until: if held { instant(claim["held_until"].as_str().unwrap()).ms() } else { i64::MAX },
            created_at,
            ended_at: i64::MAX,
            device: sale.get("device").cloned(),
            names: taken,
            person: names.person,
            reason: "",
            answer,
        });
    }

    /// Whether time changes something about a command sent between `now` and the end of the margin.
    fn is_delicate(&self, now: i64) -> bool {
        let near = |at: i64| (at - now).abs() < MARGIN;
        self.claims.iter().any(|claim| {
            (claim.status == Status::Held && near(claim.held_until))
                || (claim.status == Status::Redeemed && near(claim.created_at + 24 * HOUR))
        })
    }
}

/// What a claim takes.
struct Names {
    order: String,
    device: Vec<String>,
    trade_in: Option<String>,
    person: String,
}

impl Names {
    fn of(retailer: usize, sale: &Value) -> Self {
        let sold_at = instant(sale["sold_at"].as_str().unwrap()).ms();
        Self {
            order: format!(
                "order {retailer} {} {}",
                sale["order_no"],
                sale["order_line"].as_u64().unwrap_or(1)
            ),
            device: sale.get("device").map(Model::device_names).unwrap_or_default(),
            trade_in: sale.get("trade_in").map(|old| format!("old {}", old["sn"])),
            person: format!("{} {} {}", sale["consumer"]["id_number"], sale["category"], year(sold_at)),
        }
    }
}

/// A run: the service, the model, and what the commands are made of.
struct Run {
    service: Service,
    tills: Vec<Caller>,
    model: Model,
    random: Random,
    people: Vec<String>,
    devices: Vec<Value>,
    done: usize,
    outcomes: BTreeMap<String, usize>,
}

impl Run {
    fn now(&self) -> i64 {
        self.service.now().ms()
    }

    fn count(&mut self, what: &str) {
        *self.outcomes.entry(what.to_owned()).or_default() += 1;
    }

    /// A sale that is often good and sometimes not.
    fn sale(&mut self) -> Value {
        let now = self.now();
        let random = &mut self.random;
        let category = *random.pick(&[
            "smart_glasses",
            "smart_glasses",
            "smart_bionic",
            "smart_home_robot",
            "phone",
            "tablet",
            "computer",
            "toaster",
        ]);
        let price = match random.below(6) {
            0 => *random.pick(&[6, 7, 333_339, 333_340, 600_000, 600_001, 1_333_333, 1_333_334, 2_000_000]),
            _ => 10_000 + i64::try_from(random.below(900_000)).unwrap(),
        };
        let region =
            *random.pick(&["330106", "330106", "330106", "330108", "330206", "330100", "330000", "110101"]);
        let back = match random.below(20) {
            0 => 30 * MINUTE,
            1 => -10 * MINUTE,
            2 => -3 * MINUTE,
            3 => 10 * MINUTE,
            _ => MINUTE,
        };
        let mut sale =
            Sale::at(Timestamp::from_ms(now - back)).category(category).price(&yuan(price)).region(region);
        if random.chance(4) {
            let hours = *random.pick(&[2, 30, 71, 73, 200]);
            sale = sale
                .with("/sold_at", Timestamp::from_ms(now - hours * HOUR).to_string())
                .with("/late_reason", "outage");
        }
        if random.chance(35) {
            let person = random.below(self.people.len() as u64) as usize;
            sale = sale.resident(&self.people[person].clone());
        } else {
            self.people.push(sale.text("/consumer/id_number").to_owned());
        }
        if self.random.chance(15) && !self.devices.is_empty() {
            let device = self.random.pick(&self.devices).clone();
            sale = sale.with("/device", device);
        } else {
            if self.random.chance(30) {
                sale = sale.with_imei();
            }
            self.devices.push(sale.body["device"].clone());
        }
        let random = &mut self.random;
        if category == "computer" && random.chance(80) {
            sale = sale.with("/energy_grade", *random.pick(&[1, 1, 1, 2]));
        }
        if random.chance(4) {
            sale = sale.with(
                "/received_elsewhere",
                json!([{"programme": "national-digital-2026", "amount": "1.00"}]),
            );
        }
        if random.chance(6) {
            sale = sale
                .with("/order_no", format!("SO-shared-{}", random.below(30)))
                .with("/order_line", random.below(3) + 1);
        }
        if random.chance(6) {
            sale =
                sale.with("/trade_in", json!({"sn": format!("OLD-{}", random.below(200)), "value": "10.00"}));
        }
        if random.chance(5) {
            let programme = *random.pick(&[
                "zj-ai-25",
                "national-digital-2026",
                "national-appliances-2026",
                "no-such-programme",
            ]);
            sale = sale.with("/accept_programme", programme);
        }
        if random.chance(6) {
            let exact = yuan((price * 15 / 100).min(200_000));
            sale = sale.with("/expected_subsidy", if random.chance(70) { exact } else { "1.23".to_owned() });
        }
        if random.chance(45) {
            sale = if random.chance(50) { sale.held() } else { sale.held_with_device() };
            let minutes = *random.pick(&[0, 5, 90, 3000, 21_600]);
            if minutes > 0 {
                sale = sale.with("/hold_minutes", minutes);
            }
        }
        sale.body
    }

    /// The same content in other words.
    fn respelled(&mut self, sale: &Value) -> Value {
        let mut sale = sale.clone();
        match self.random.below(4) {
            0 => {
                sale["consumer"]["id_number"] =
                    fifteen_digits(sale["consumer"]["id_number"].as_str().unwrap()).into()
            }
            1 => {
                let lower = sale["consumer"]["id_number"].as_str().unwrap().to_lowercase();
                sale["consumer"]["id_number"] = lower.into();
            }
            2 => {
                // Shanghai's clock shows eight hours more than that of UTC, all year.
                let local = instant(sale["sold_at"].as_str().unwrap()).plus_ms(-8 * HOUR);
                sale["sold_at"] = local.to_string().replace("+08:00", "Z").into();
            }
            _ => sale["store_code"] = sale.get("store_code").cloned().unwrap_or(Value::Null),
        }
        sale
    }

    #[track_caller]
    fn claim(&mut self, retailer: usize, key: &str, sale: &Value, sent: &Value) {
        let now = self.now();
        self.model.pass_to(now);
        let expected = self.model.judge(retailer, key, sale, now);
        let answer = self.tills[retailer].post_under(key, "/v1/claims", sent);
        let context =
            || format!("command {}: {sent}\nanswered {}\nexpected {expected:?}", self.done, answer.text());
        match &expected {
            Expected::Refused(code, alternatives) => {
                assert_eq!(answer.code(), *code, "{}", context());
                let problem = answer.must_refuse(code);
                if let Some(alternatives) = alternatives {
                    assert_eq!(&problem["alternatives"], alternatives, "{}", context());
                }
                self.count(code);
            }
            Expected::Replay(claim) => {
                let first = &self.model.claims[*claim].answer;
                assert!(
                    answer.is_replay() && answer.status == 201 && answer.body == first.body,
                    "{}",
                    context()
                );
                self.count("replayed");
            }
            Expected::Made { status, subsidy, programme, fund } => {
                assert_eq!(answer.status, 201, "{}", context());
                assert!(!answer.is_replay(), "{}", context());
                let claim = answer.json();
                for (member, value) in
                    [("status", *status), ("subsidy", subsidy), ("programme", programme), ("fund_id", fund)]
                {
                    assert_eq!(claim[member], value, "{member}: {}", context());
                }
                assert_eq!(
                    fen(&claim["payable"]),
                    fen(&claim["price"]) - fen(&claim["subsidy"]),
                    "{}",
                    context()
                );
                let created_at = instant(claim["created_at"].as_str().unwrap()).ms();
                assert!((created_at - now).abs() < MARGIN / 2, "{}", context());
                if *status == "held" {
                    let lasts = instant(claim["held_until"].as_str().unwrap()).ms() - created_at;
                    assert_eq!(lasts, sale["hold_minutes"].as_i64().unwrap_or(30) * MINUTE, "{}", context());
                }
                self.model.enter(retailer, key, sale, answer);
                self.count(status);
            }
        }
    }

    /// A claim made so far, most often one of the last.
    fn some_claim(&mut self) -> Option<usize> {
        let all = self.model.claims.len() as u64;
        if all == 0 {
            return None;
        }
        let reach = if self.random.chance(85) { all.min(40) } else { all };
        Some((all - 1 - self.random.below(reach)) as usize)
    }

    /// Whether the key of a claim that has ended may be near its forgetting, or past it.
    fn may_be_forgotten(&self, claim: usize) -> bool {
        let claim = &self.model.claims[claim];
        claim.ended_at != i64::MAX
            && claim.status != Status::Returned
            && self.now() - claim.ended_at > 29 * DAY
    }

    #[track_caller]
    fn must_be(&mut self, claim: usize, answer: &Answer, status: Status, what: &str) {
        let told = answer.must_be(200);
        let known = &self.model.claims[claim];
        assert_eq!(
            (told["claim_id"].as_str(), told["status"].as_str()),
            (Some(known.id.as_str()), Some(status.name())),
            "{what}"
        );
        assert_eq!(fen(&told["subsidy"]), known.subsidy, "{what}");
        self.count(what);
    }

    /// A verb on a claim, sent by its retailer and now and then by another.
    fn verb(&mut self) {
        let Some(claim) = self.some_claim() else { return };
        let now = self.now();
        self.model.pass_to(now);
        let verb = *self.random.pick(&["redeem", "redeem", "redeem", "release", "return", "get"]);
        let known = &self.model.claims[claim];
        let (id, status, device) = (json!({"claim_id": known.id}), known.status, known.device.clone());
        let sold_at = instant(known.sale["sold_at"].as_str().unwrap()).ms();
        let mut retailer = known.retailer;
        if self.random.chance(4) {
            retailer = (retailer + 1) % self.tills.len();
        }
        let offered = match self.random.below(5) {
            0 => device.clone(),
            1 if !self.devices.is_empty() => Some(self.random.pick(&self.devices).clone()),
            2 | 3 => {
                let fresh =
                    json!({"sn": format!("SN-{}", fresh_number()), "barcode": fresh_barcode(), "imei": []});
                self.devices.push(fresh.clone());
                Some(fresh)
            }
            _ => None,
        };
        let reason = *self.random.pick(&["unwanted", "unwanted", "defective"]);
        let till = self.tills[retailer].clone();
        let answer = match verb {
            "redeem" => till.act(
                &id,
                "redeem",
                &offered.as_ref().map_or(json!({}), |device| json!({"device": device})),
            ),
            "release" => till.release(&id),
            "return" => {
                let at = Timestamp::from_ms(now.max(sold_at)).to_string();
                till.act(&id, "return", &json!({"reason": reason, "returned_at": at}))
            }
            _ => till.get(&format!("/v1/claims/{}", id_of(&id))),
        };
        if retailer != self.model.claims[claim].retailer {
            answer.must_refuse("claim-not-found");
            return self.count("not found");
        }
        let same_device = |offered: &Value| {
            device.as_ref().is_some_and(|device| {
                let (mut one, mut other) = (Model::device_names(device), Model::device_names(offered));
                one.sort();
                other.sort();
                one == other
            })
        };
        match (verb, status) {
            ("get", _) => self.must_be(claim, &answer, status, "looked at"),
            ("redeem", Status::Held) => {
                let fault = match &offered {
                    None if device.is_none() => Some("device-required"),
                    None => None,
                    Some(offered) if device.is_some() => {
                        (!same_device(offered)).then_some("claim-state-conflict")
                    }
                    Some(offered) => {
                        let taken =
                            Model::device_names(offered).iter().any(|name| self.model.taken.contains(name));
                        taken.then_some("device-already-subsidised")
                    }
                };
                if let Some(code) = fault {
                    assert_eq!(answer.code(), code, "{}: {offered:?} {}", self.done, answer.text());
                    return self.count(code);
                }
                self.must_be(claim, &answer, Status::Redeemed, "hold redeemed");
                let known = &mut self.model.claims[claim];
                if let (None, Some(offered)) = (&known.device, offered) {
                    let names = Model::device_names(&offered);
                    known.names.extend(names.iter().cloned());
                    self.model.taken.extend(names);
                    known.device = Some(offered);
                }
                known.status = Status::Redeemed;
                known.held_until = i64::MAX;
                let fund = self.model.funds.get_mut(&known.fund).unwrap();
                fund.held -= known.subsidy;
                fund.redeemed += known.subsidy;
            }
            ("redeem", Status::Redeemed) if offered.as_ref().is_none_or(same_device) => {
                self.must_be(claim, &answer, Status::Redeemed, "redeemed again");
            }
            ("release", Status::Held) => {
                self.must_be(claim, &answer, Status::Released, "hold released");
                self.model.end(claim, Status::Released, now);
            }
            ("release", Status::Released | Status::Expired) => {
                self.must_be(claim, &answer, status, "released again")
            }
            ("return", Status::Redeemed) => {
                self.must_be(claim, &answer, Status::Returned, "claim returned");
                self.model.end(claim, Status::Returned, now);
                self.model.claims[claim].reason = reason;
            }
            ("return", Status::Returned) if reason == self.model.claims[claim].reason => {
                self.must_be(claim, &answer, Status::Returned, "returned again");
            }
            _ => {
                assert_eq!(
                    answer.code(),
                    "claim-state-conflict",
                    "{}: {verb} {status:?}: {}",
                    self.done,
                    answer.text()
                );
                self.count("claim-state-conflict");
            }
        }
    }

    fn cancel(&mut self) {
        let now = self.now();
        self.model.pass_to(now);
        let (retailer, key) = match self.some_claim() {
            Some(claim) if self.random.chance(85) => {
                if self.may_be_forgotten(claim) {
                    return;
                }
                (self.model.claims[claim].retailer, self.model.claims[claim].key.clone())
            }
            _ => (0, fresh_key()),
        };
        let answer = self.tills[retailer].cancel(&key);
        match self.model.keys.get(&(retailer, key.clone())).cloned() {
            None => {
                assert_eq!(answer.must_be(200)["outcome"], "key_spent");
                self.model.keys.insert((retailer, key.clone()), KeyState::Spent(now));
                assert_eq!(self.tills[retailer].cancel(&key).text(), answer.text());
                self.count("key spent");
            }
            Some(KeyState::Spent(_)) => assert_eq!(answer.must_be(200)["outcome"], "key_spent"),
            Some(KeyState::Claim(claim)) => {
                let known = &self.model.claims[claim];
                let status = known.status;
                if status == Status::Redeemed && now - known.created_at > 24 * HOUR {
                    answer.must_refuse("claim-state-conflict");
                    return self.count("too late to cancel");
                }
                let outcome = match status {
                    Status::Held | Status::Redeemed | Status::Cancelled => "cancelled",
                    _ => "nothing_to_cancel",
                };
                if matches!(status, Status::Held | Status::Redeemed) {
                    self.model.end(claim, Status::Cancelled, now);
                }
                let told = answer.must_be(200);
                let after = self.model.claims[claim].status.name();
                assert_eq!(
                    (told["outcome"].as_str(), told["claim"]["status"].as_str()),
                    (Some(outcome), Some(after)),
                    "{}",
                    self.done
                );
                self.count(outcome);
            }
        }
    }

    /// An earlier post again: as it was, in other words, or with other content.
    fn retry(&mut self) {
        let spent: Vec<_> = self
            .model
            .keys
            .iter()
            .filter(|(_, state)| matches!(state, KeyState::Spent(at) if self.now() - at < 29 * DAY))
            .map(|(key, _)| key.clone())
            .collect();
        if !spent.is_empty() && self.random.chance(5) {
            let mut spent = spent;
            spent.sort();
            let (retailer, key) = self.random.pick(&spent).clone();
            let sale = self.sale();
            return self.claim(retailer, &key, &sale, &sale);
        }
        let Some(claim) = self.some_claim() else { return };
        if self.may_be_forgotten(claim) {
            return;
        }
        let known = &self.model.claims[claim];
        let (retailer, key, mut sale) = (known.retailer, known.key.clone(), known.sale.clone());
        let mut sent = sale.clone();
        match self.random.below(4) {
            0 => {
                sale["price"] = yuan(fen(&sale["price"]) + 1).into();
                sent = sale.clone();
            }
            1 => sent = self.respelled(&sale),
            _ => {}
        }
        self.claim(retailer, &key, &sale, &sent);
    }

    /// Something about a fund.
    fn fund(&mut self) {
        let now = self.now();
        self.model.pass_to(now);
        let regulator = self.service.regulator();
        let own: Vec<_> = self.model.funds.keys().filter(|id| id.starts_with("own")).cloned().collect();
        if own.is_empty() || self.random.chance(25) {
            let known = !own.is_empty() && self.random.chance(20);
            let id = if known { self.random.pick(&own).clone() } else { format!("own-{}", fresh_number()) };
            let programme = self.random.pick(&PROGRAMMES).id;
            let region = *self.random.pick(&["330106", "330106", "330108", "330206", "330100", "330000"]);
            let from = now - i64::try_from(self.random.below(3)).unwrap() * DAY;
            let to = now + i64::try_from(self.random.below(6)).unwrap() * DAY;
            let (from, to) = (day(from), day(to));
            let budget = 100_000 * i64::try_from(self.random.below(20) + 1).unwrap();
            let body = json!({"fund_id": id, "programme": programme, "region_code": region, "from": from, "to": to, "budget": yuan(budget)});
            let answer = regulator.post_under(&fresh_key(), "/v1/funds", &body);
            let overlaps = self.model.funds.values().any(|fund| {
                fund.programme == programme && fund.region == region && fund.from <= to && from <= fund.to
            });
            let exists = self.model.funds.contains_key(&id);
            if exists {
                answer.must_refuse("fund-exists");
                self.count("fund-exists");
            } else if overlaps {
                answer.must_refuse("fund-overlaps");
                self.count("fund-overlaps");
            } else {
                answer.must_be(201);
                let fund = Fund {
                    programme: programme.into(),
                    region: region.into(),
                    from,
                    to,
                    budget,
                    held: 0,
                    redeemed: 0,
                    frozen: false,
                };
                self.model.funds.insert(id, fund);
                self.count("fund opened");
            }
            return;
        }
        let id = self.random.pick(&own).clone();
        let fund = self.model.funds.get_mut(&id).unwrap();
        if self.random.chance(50) {
            fund.frozen = !fund.frozen && self.random.chance(30);
            let verb = if fund.frozen { "freeze" } else { "unfreeze" };
            regulator.post(&format!("/v1/funds/{id}/{verb}"), &json!({})).must_be(200);
            return self.count("fund switched");
        }
        let delta = 50_000 * (i64::try_from(self.random.below(9)).unwrap() - 4);
        let delta = if delta == 0 { 1 } else { delta };
        let body = json!({"delta": yuan(delta), "reason": "correction", "document_no": "D-1"});
        let answer = regulator.post_under(&fresh_key(), &format!("/v1/funds/{id}/adjust"), &body);
        if fund.budget + delta < fund.held + fund.redeemed {
            answer.must_refuse("fund-below-usage");
            self.count("fund-below-usage");
        } else {
            fund.budget += delta;
            assert_eq!(fen(&answer.must_be(200)["budget"]), fund.budget);
            self.count("fund adjusted");
        }
    }

    fn command(&mut self) {
        match self.random.below(100) {
            0..=44 => {
                let retailer = self.random.below(self.tills.len() as u64) as usize;
                let sale = self.sale();
                self.claim(retailer, &fresh_key(), &sale, &sale);
            }
            45..=74 => self.verb(),
            75..=84 => self.retry(),
            85..=92 => self.cancel(),
            _ => self.fund(),
        }
        self.done += 1;
    }

    /// Ends the process, politely or not, and starts it with its clock at `clock` or a little later.
    fn restart(&mut self, mut clock: i64) {
        while self.model.is_delicate(clock) {
            clock += 2 * MARGIN + SECOND;
        }
        if self.random.chance(50) {
            self.service.restart_at(Timestamp::from_ms(clock));
        } else {
            self.service.kill_and_restart_at(Timestamp::from_ms(clock));
        }
        let now = self.now();
        self.model.pass_to(now);
        self.model.open_development_funds(now);
    }

    fn compare_everything(&mut self) {
        let now = self.now();
        self.model.pass_to(now);
        let regulator = self.service.regulator();
        for (id, fund) in &self.model.funds {
            let told = regulator.fund(id);
            let money =
                (fen(&told["budget"]), fen(&told["held"]), fen(&told["redeemed"]), fen(&told["remaining"]));
            assert_eq!(
                money,
                (fund.budget, fund.held, fund.redeemed, fund.budget - fund.held - fund.redeemed),
                "{id}"
            );
        }
        for (index, claim) in self.model.claims.iter().enumerate() {
            let told = self.tills[claim.retailer].look_at(&json!({"claim_id": claim.id}));
            assert_eq!(told["status"], claim.status.name(), "claim {index}");
            let sn = told["device"]["sn"].as_str();
            assert_eq!(sn, claim.device.as_ref().and_then(|device| device["sn"].as_str()), "claim {index}");
        }
        let totals = regulator.get("/v1/totals").must_be(200)["items"][0].clone();
        let sum = |status: Status| {
            let those = self.model.claims.iter().filter(|claim| claim.status == status);
            those.fold((0, 0), |(items, money), claim| (items + 1, money + claim.subsidy))
        };
        let told = |what: &str| (totals[what]["items"].as_i64().unwrap(), fen(&totals[what]["subsidy"]));
        assert_eq!(told("held"), sum(Status::Held));
        assert_eq!(told("returned"), sum(Status::Returned));
        assert_eq!(told("net"), sum(Status::Redeemed));
        self.service.must_verify();
    }
}

#[test]
fn ten_thousand_random_commands_come_out_as_a_simple_model_says() {
    let mut random = Random::seeded("oracle");
    let commands: usize =
        std::env::var("SUBSIDY_POS_TEST_COMMANDS").map_or(10_000, |text| text.parse().expect("a number"));
    let _ = random.next();
    let service = Service::start_with(Options::at("2025-12-01T10:00:00+08:00"));
    let tills = (0..3).map(|_| service.retailer()).collect();
    let people = (0..50).map(|_| fresh_resident_id()).collect();
    let mut run = Run {
        service,
        tills,
        model: Model::default(),
        random,
        people,
        devices: Vec::new(),
        done: 0,
        outcomes: BTreeMap::new(),
    };
    let now = run.now();
    run.model.open_development_funds(now);
    let mut segment = 0;
    let mut years_over = 0;
    while run.done < commands {
        let began = Instant::now();
        for _ in 0..SEGMENT_COMMANDS.min(commands / 20) {
            if began.elapsed() > SEGMENT_TIME || run.done >= commands {
                break;
            }
            run.command();
        }
        segment += 1;
        let now = run.now();
        let progress = run.done * 10 / commands;
        let year_end = |year: i32| instant(&format!("{year}-12-31T23:50:00+08:00")).ms();
        // Three tenths into the run 2025 ends, seven tenths into it 2026: once shortly before midnight,
        // once shortly after, when sales of the old year still come in.
        let clock = match (years_over, progress) {
            (0, 3..) => year_end(2025),
            (2, 7..) => year_end(2026),
            (1 | 3, _) => now + 13 * MINUTE,
            _ => now + *run.random.pick(&[3 * MINUTE, 20 * MINUTE, 100 * MINUTE, 26 * HOUR]),
        };
        if matches!((years_over, progress), (0, 3..) | (2, 7..)) || matches!(years_over, 1 | 3) {
            years_over += 1;
        }
        run.restart(clock);
        if segment % 10 == 0 {
            run.service.must_verify();
        }
    }
    assert!(years_over >= 3, "both years ended");
    run.compare_everything();
    run.restart(run.now() + HOUR);
    run.compare_everything();
    eprintln!("{} commands in {segment} segments: {:?}", run.done, run.outcomes);
    let reached = [
        "held",
        "redeemed",
        "replayed",
        "hold redeemed",
        "hold released",
        "claim returned",
        "cancelled",
        "nothing_to_cancel",
        "key spent",
        "idempotency-key-reused",
        "consumer-limit-reached",
        "device-already-subsidised",
        "fund-exhausted",
        "fund-frozen",
        "sold-at-out-of-range",
        "not-in-force",
        "region-not-covered",
        "order-line-already-claimed",
    ];
    if commands >= 10_000 {
        for outcome in reached {
            assert!(run.outcomes.contains_key(outcome), "no command came to {outcome}: {:?}", run.outcomes);
        }
    }
}

also_on_postgres!(ten_thousand_random_commands_come_out_as_a_simple_model_says,);
