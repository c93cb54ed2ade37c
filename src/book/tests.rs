//! What every book must do, whatever keeps it: lists and totals against a plain model, over seeded
//! random journals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use smallvec::smallvec;
use tokio::runtime::Runtime;

use super::batch::{Batch, Contradiction, Line};
use super::cube::{Counters, Cube, Refold, Tally};
use super::projector::{self, Projector, Tables, TablesError};
use super::sql::FORMAT;
use super::{
    Basis, Book, BookError, ClaimPointer, ClaimsQuery, Dimension, Feed, Group, Page, Scope, TotalsQuery,
    postgres, sqlite,
};
use crate::claim::{ClaimId, Consumer, Device, FundId, Sale, SaleChannel, Status};
use crate::identity::{Gtin, IdType, PersonDigest, Reference, RegionCode, SerialNumber, Uscc, generate};
use crate::journal::{Head, JournalError, Reader, Row};
use crate::ledger::Stored;
use crate::ledger::entry::{
    Algorithm, ClaimKeys, ClaimMade, ClaimMoved, Entry, Event, FundDelta, Hash, Judged, Key, VERSION,
};
use crate::limits;
use crate::money::Fen;
use crate::programme::{Category, ProgrammeId};
use crate::time::{Day, Timestamp};

// --- A journal made up at random, and what a person would note beside it ---

/// SplitMix64: enough for making things up, the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize].clone()
    }

    fn maybe<T>(&mut self, one_in: u64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.roll(one_in) == 0).then(|| make(self))
    }
}

const REGIONS: [&str; 7] = ["330106", "330110", "330203", "330212", "330000", "330100", "340103"];

fn retailer(n: u64) -> Uscc {
    Uscc::parse(&generate::uscc_from(n)).unwrap()
}

fn region(code: &str) -> RegionCode {
    RegionCode::parse(code).unwrap()
}

fn category(name: &str) -> Category {
    Category::parse(name).unwrap()
}

fn order_no(n: u64) -> Reference {
    Reference::parse(&format!("SO-{n}")).unwrap()
}

fn device(n: u64) -> Device {
    let barcode = Gtin::parse(&generate::gtin13_from(1)).unwrap();
    Device { sn: SerialNumber::parse(&format!("SN-{n}")).unwrap(), barcode, imei: smallvec![] }
}

/// A claim as noted beside the journal.
#[derive(Clone)]
struct Noted {
    made: u64,
    last: u64,
    day: Day,
    status: Status,
    platform: Option<Arc<str>>,
    entry: ClaimMade,
    sn: Option<SerialNumber>,
    /// Every step: the day and the status entered.
    steps: Vec<(Day, Status)>,
}

/// A journal and what is noted beside it.
struct Story {
    dice: Dice,
    at: Timestamp,
    entries: Vec<Arc<Stored>>,
    claims: Vec<Noted>,
}

impl Story {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let at = Timestamp::parse("2026-11-20T22:00:00+08:00").unwrap();
        let mut story = Self { dice: Dice(seed), at, entries: Vec::new(), claims: Vec::new() };
        story.enter(Event::JournalOpened { journal_id: Key::new([7; 16]) });
        story
    }

    fn head(&self) -> Head {
        self.entries
            .last()
            .map_or(Head::EMPTY, |stored| Head { position: stored.entry.position, hash: stored.hash })
    }

    fn enter(&mut self, event: Event) -> u64 {
        let Head { position, hash: prev } = self.head();
        let position = position + 1;
        let entry = Entry { v: VERSION, position, alg: Algorithm::Sha256, prev, at: self.at, event };
        let bytes = entry.to_bytes().unwrap();
        self.entries.push(Arc::new(Stored { entry, hash: Hash::of(&bytes) }));
        position
    }

    fn go_on(&mut self, entries: usize) {
        for _ in 0..entries {
            let pause = self.dice.roll(600_000) as i64;
            self.at = self.at.plus_ms(pause);
            match self.dice.roll(10) {
                0 => {
                    let until = self.at.plus_ms(1);
                    self.enter(Event::KeySpent { key: Key::new([0; 16]), until });
                }
                1..=4 if !self.claims.is_empty() => self.carry_on(),
                _ => self.make(),
            }
        }
    }

    fn make(&mut self) {
        let dice = &mut self.dice;
        let held = dice.roll(2) == 0;
        let device =
            if held { dice.maybe(2, |dice| device(dice.roll(400))) } else { Some(device(dice.roll(400))) };
        let sold_at = self.at.plus_ms(-(dice.roll(200_000_000) as i64));
        let price = Fen::new(1 + dice.roll(1_000_000) as i64);
        let subsidy = Fen::new(1 + dice.roll(200_000) as i64);
        let fund = FundId::parse(&format!("fund.{}", dice.roll(3))).unwrap();
        let programme = ProgrammeId::parse(&format!("p-{}", dice.roll(2))).unwrap();
        let key = Key::new([0; 16]);
        let made = ClaimMade {
            claim_id: ClaimId::following(None, self.at, self.entries.len() as u128),
            retailer: retailer(dice.roll(5)),
            platform: dice.maybe(3, |dice| format!("platform-{}", dice.roll(2)).into()),
            sale: Arc::new(Sale {
                order_no: order_no(dice.roll(400)),
                order_line: None,
                category: category(["smart_glasses", "phone", "smart_health"][dice.roll(3) as usize]),
                price,
                region_code: region(dice.pick(&REGIONS)),
                sold_at,
                consumer: Consumer {
                    id_type: IdType::ResidentId,
                    key: "hmac-sha256/k1".into(),
                    digest: PersonDigest::new([3; 32]),
                },
                device,
                sale_channel: SaleChannel::Offline,
                store_code: None,
                terminal_no: None,
                invoice_no: None,
                energy_grade: None,
                trade_in: None,
            }),
            status: if held { Status::Held } else { Status::Redeemed },
            held_until: None,
            subsidy,
            considered: smallvec![Judged {
                programme,
                version: 1,
                price_base: None,
                computed: None,
                amount: None,
                verdict: None,
            }],
            return_restores: None,
            keys: ClaimKeys {
                request: key,
                order_line: key,
                person: key,
                device: smallvec![],
                trade_in: None,
            },
            fingerprint: key,
            fund: FundDelta { id: fund, held: Fen::ZERO, redeemed: Fen::ZERO },
        };
        let position = self.enter(Event::ClaimMade(Arc::new(made.clone())));
        self.claims.push(Noted {
            made: position,
            last: position,
            day: self.at.day(),
            status: made.status,
            platform: made.platform.clone(),
            sn: made.sale.device.as_ref().map(|device| device.sn.clone()),
            steps: vec![(self.at.day(), made.status)],
            entry: made,
        });
    }

    fn carry_on(&mut self) {
        let index = self.dice.roll(self.claims.len() as u64) as usize;
        let claim = self.claims[index].clone();
        let to = match claim.status {
            Status::Held => {
                self.dice.pick(&[Status::Redeemed, Status::Released, Status::Expired, Status::Cancelled])
            }
            Status::Redeemed => self.dice.pick(&[Status::Returned, Status::Cancelled]),
            _ => return,
        };
        let binds = to == Status::Redeemed && claim.sn.is_none();
        let device = binds.then(|| device(self.dice.roll(400)));
        let position = self.enter(Event::ClaimMoved(Arc::new(ClaimMoved {
            claim_id: claim.entry.claim_id,
            made: claim.made,
            prior: claim.last,
            from: claim.status,
            to,
            device: device.clone(),
            invoice_no: None,
            reason: None,
            returned_at: None,
            takes: smallvec![],
            frees: smallvec![],
            request_until: None,
            fund: claim.entry.fund.clone(),
        })));
        let day = self.at.day();
        let claim = &mut self.claims[index];
        claim.last = position;
        claim.status = to;
        claim.steps.push((day, to));
        if let Some(device) = device {
            claim.sn = Some(device.sn);
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.entries.iter().map(|stored| row(stored)).collect()
    }

    /// What a list shows, by looking at every claim.
    fn listed(&self, query: &ClaimsQuery) -> Vec<ClaimPointer> {
        let covered = |regions: &[RegionCode], claim: &Noted| {
            regions.iter().any(|region| region.covers(claim.entry.sale.region_code))
        };
        let seen = |claim: &&Noted| match &query.scope {
            Scope::Retailer(own) => claim.entry.retailer == *own,
            Scope::Platform { name, retailers } => {
                claim.platform.as_ref() == Some(name)
                    && retailers.as_ref().is_none_or(|these| these.contains(&claim.entry.retailer))
            }
            Scope::Regulator { regions } => regions.as_ref().is_none_or(|regions| covered(regions, claim)),
        };
        let wanted = |claim: &&Noted| {
            query.order_no.as_ref().is_none_or(|order_no| claim.entry.sale.order_no == *order_no)
                && query.sn.as_ref().is_none_or(|sn| claim.sn.as_ref() == Some(sn))
                && query.status.is_none_or(|status| claim.status == status)
                && query.from.is_none_or(|from| claim.day >= from)
                && query.to.is_none_or(|to| claim.day <= to)
                && query.category.as_ref().is_none_or(|category| claim.entry.sale.category == *category)
                && query.region_code.is_none_or(|region| covered(&[region], claim))
                && query.retailer.is_none_or(|retailer| claim.entry.retailer == retailer)
        };
        let claims = self.claims.iter().rev().filter(seen).filter(wanted);
        claims.map(|claim| ClaimPointer { made: claim.made, last: claim.last }).collect()
    }

    /// Totals, by looking at every step of every claim.
    fn totalled(&self, query: &TotalsQuery) -> Vec<(Group, Counters)> {
        let mut rows: BTreeMap<Group, Counters> = BTreeMap::new();
        if query.group_by.is_empty() {
            rows.insert(Group::default(), Counters::default());
        }
        for claim in &self.claims {
            let ClaimMade { sale, retailer, considered, fund, subsidy, .. } = &claim.entry;
            if query.regions.as_ref().is_some_and(|all| !all.iter().any(|own| own.covers(sale.region_code))) {
                continue;
            }
            for (index, (day, to)) in claim.steps.iter().enumerate() {
                let day = match query.basis {
                    Basis::Day => *day,
                    Basis::Sale => sale.sold_at.day(),
                };
                if query.from.is_some_and(|from| day < from) || query.to.is_some_and(|to| day > to) {
                    continue;
                }
                let by = |dimension| query.group_by.contains(&dimension);
                let city = format!("{}00", &sale.region_code.as_str()[..4]);
                let group = Group {
                    day: by(Dimension::Day).then_some(day),
                    city: by(Dimension::City).then(|| region(&city)),
                    category: by(Dimension::Category).then(|| sale.category.clone()),
                    retailer: by(Dimension::Retailer).then_some(*retailer),
                    programme: by(Dimension::Programme).then(|| considered[0].programme.clone()),
                    fund: by(Dimension::Fund).then(|| fund.id.clone()),
                };
                let was_held = index > 0 && claim.steps[index - 1].1 == Status::Held;
                let was_redeemed = index > 0 && claim.steps[index - 1].1 == Status::Redeemed;
                let counters = rows.entry(group).or_default();
                let mut count = |pick: fn(&mut Counters) -> &mut Tally, items: i64| {
                    let tally = pick(counters);
                    tally.items += items;
                    tally.money = Fen::new(tally.money.get() + items * subsidy.get());
                };
                if was_held {
                    count(|counters| &mut counters.held, -1);
                }
                match to {
                    Status::Held => count(|counters| &mut counters.held, 1),
                    Status::Redeemed => count(|counters| &mut counters.redeemed, 1),
                    Status::Returned => count(|counters| &mut counters.returned, 1),
                    Status::Cancelled if was_redeemed => count(|counters| &mut counters.cancelled, 1),
                    _ => {}
                }
                let sold = i64::from(*to == Status::Redeemed) - i64::from(was_redeemed);
                counters.sales = Fen::new(counters.sales.get() + sold * sale.price.get());
            }
        }
        rows.into_iter().collect()
    }

    fn random_claims_query(&mut self) -> ClaimsQuery {
        let dice = &mut self.dice;
        let scope = match dice.roll(5) {
            0 => Scope::Retailer(retailer(dice.roll(6))),
            1 => Scope::Platform { name: format!("platform-{}", dice.roll(3)).into(), retailers: None },
            2 => Scope::Platform {
                name: "platform-0".into(),
                retailers: Some((0..dice.roll(4)).map(|_| retailer(dice.roll(6))).collect()),
            },
            3 => Scope::Regulator {
                regions: Some((0..dice.roll(3)).map(|_| region(dice.pick(&REGIONS))).collect()),
            },
            _ => Scope::Regulator { regions: None },
        };
        ClaimsQuery {
            order_no: dice.maybe(6, |dice| order_no(dice.roll(400))),
            sn: dice.maybe(6, |dice| device(dice.roll(400)).sn),
            status: dice.maybe(3, |dice| dice.pick(&Status::ALL)),
            from: dice.maybe(3, |dice| self.at.plus_ms(-(dice.roll(900_000_000) as i64)).day()),
            to: dice.maybe(3, |dice| self.at.plus_ms(-(dice.roll(900_000_000) as i64)).day()),
            category: dice.maybe(3, |dice| category(dice.pick(&["smart_glasses", "phone", "television"]))),
            region_code: dice.maybe(3, |dice| region(dice.pick(&REGIONS))),
            retailer: dice.maybe(3, |dice| retailer(dice.roll(6))),
            ..ClaimsQuery::all(scope, 1 + dice.roll(20) as usize)
        }
    }

    fn random_totals_query(&mut self) -> TotalsQuery {
        let dice = &mut self.dice;
        TotalsQuery {
            regions: dice.maybe(3, |dice| (0..dice.roll(3)).map(|_| region(dice.pick(&REGIONS))).collect()),
            from: dice.maybe(3, |dice| self.at.plus_ms(-(dice.roll(900_000_000) as i64)).day()),
            to: dice.maybe(3, |dice| self.at.plus_ms(-(dice.roll(900_000_000) as i64)).day()),
            basis: dice.pick(&[Basis::Day, Basis::Sale]),
            group_by: Dimension::ALL.into_iter().filter(|_| dice.roll(2) == 0).collect(),
        }
    }
}

fn row(stored: &Stored) -> Row {
    let bytes = stored.entry.to_bytes().unwrap();
    Row { position: stored.entry.position, hash: stored.hash, entry: bytes.into() }
}

fn refolded(entries: &[Arc<Stored>]) -> Cube {
    let mut refold = Refold::default();
    for stored in entries {
        refold.fold(&stored.entry).unwrap();
    }
    refold.cube().clone()
}

/// A journal that can be swapped under the projector's feet.
#[derive(Default)]
struct Shelf(Mutex<Vec<Row>>);

impl Reader for Shelf {
    fn rows<'a>(&'a self, _: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>> {
        std::future::ready(Err(JournalError::Unusable("a projector reads in order".into()))).boxed()
    }

    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>> {
        let rows = self.0.lock().unwrap().iter().skip(after as usize).take(limit).cloned().collect();
        std::future::ready(Ok(rows)).boxed()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

// --- The contract ---

/// A place that keeps one book, to be opened as often as one likes.
trait Place: Send + Sync {
    fn open(&self, feed: Feed) -> (Box<dyn Tables>, Arc<dyn Book>);
}

/// Folds `entries` into a book.
fn advance(tables: &mut dyn Tables, head: Head, entries: &[Arc<Stored>]) -> Result<Head, TablesError> {
    let lines: Vec<Line> = entries.iter().map(|stored| Line::of(stored)).collect();
    projector::advance(tables, head, &lines, &mut || {})
}

/// Folds in what the book does not have of `entries`, a journal.
fn fold_all(tables: &mut dyn Tables, entries: &[Arc<Stored>], mut batch: impl FnMut() -> usize) {
    let mut rest = &entries[tables.head().unwrap().position as usize..];
    while !rest.is_empty() {
        let head = tables.head().unwrap();
        let (now, later) = rest.split_at(batch().clamp(1, rest.len()));
        advance(tables, head, now).unwrap();
        rest = later;
    }
}

fn pages(runtime: &Runtime, book: &dyn Book, query: &ClaimsQuery) -> Vec<ClaimPointer> {
    let mut query = query.clone();
    let mut items = Vec::new();
    loop {
        let page =
            runtime.block_on(book.claims(query.clone())).unwrap_or_else(|error| panic!("{query:?}: {error}"));
        assert!(page.items.len() <= query.limit);
        items.extend(page.items);
        match page.next {
            Some(next) => query.before = Some(next),
            None => return items,
        }
    }
}

fn lists_show_what_a_search_of_every_claim_finds(place: &dyn Place) {
    let runtime = runtime();
    let (mut tables, book) = place.open(Feed::new());
    let mut story = Story::new(11);
    let mut found = 0;
    for _ in 0..4 {
        let known = story.entries.len();
        story.go_on(500);
        let mut dice = Dice(known as u64);
        fold_all(tables.as_mut(), &story.entries, || dice.roll(200) as usize);
        for _ in 0..150 {
            let query = story.random_claims_query();
            let expected = story.listed(&query);
            assert_eq!(pages(&runtime, book.as_ref(), &query), expected, "{query:?}");
            found += expected.len();
        }
    }
    assert!(found > 5_000, "the queries find something: {found}");
    let page =
        runtime.block_on(book.claims(ClaimsQuery::all(Scope::Regulator { regions: None }, 1))).unwrap();
    assert_eq!(page.as_of, story.head().position);
}

fn totals_are_what_every_step_of_every_claim_adds_up_to(place: &dyn Place) {
    let runtime = runtime();
    let (mut tables, book) = place.open(Feed::new());
    let mut story = Story::new(12);
    let empty = runtime.block_on(book.totals(TotalsQuery::default())).unwrap();
    assert_eq!((empty.rows, empty.as_of), (vec![(Group::default(), Counters::default())], 0));
    for _ in 0..4 {
        let known = story.entries.len();
        story.go_on(500);
        let mut dice = Dice(known as u64);
        fold_all(tables.as_mut(), &story.entries, || dice.roll(200) as usize);
        for _ in 0..50 {
            let query = story.random_totals_query();
            let totals = runtime.block_on(book.totals(query.clone())).unwrap();
            assert_eq!(totals.rows, story.totalled(&query), "{query:?}");
            assert_eq!(totals.as_of, story.head().position);
        }
        let (as_of, cube) = runtime.block_on(book.cube()).unwrap();
        assert_eq!(as_of, story.head().position);
        assert_eq!(cube.first_difference(&refolded(&story.entries)), None);
        assert_eq!(cube, refolded(&story.entries));
    }
}

fn a_walk_through_pages_is_not_disturbed_by_new_claims(place: &dyn Place) {
    let runtime = runtime();
    let (mut tables, book) = place.open(Feed::new());
    let mut story = Story::new(13);
    story.go_on(300);
    fold_all(tables.as_mut(), &story.entries, || 100);
    let mut query = ClaimsQuery::all(Scope::Regulator { regions: None }, 7);
    let expected: Vec<u64> = story.listed(&query).into_iter().map(|claim| claim.made).collect();
    let mut walked = Vec::new();
    loop {
        let Page { items, next, as_of } = runtime.block_on(book.claims(query.clone())).unwrap();
        assert!(items.iter().all(|claim| claim.made <= claim.last && claim.last <= as_of));
        walked.extend(items.into_iter().map(|claim| claim.made));
        story.go_on(5);
        fold_all(tables.as_mut(), &story.entries, || 5);
        match next {
            Some(next) => query.before = Some(next),
            None => break,
        }
    }
    assert_eq!(walked, expected);
}

fn an_entry_that_contradicts_the_book_changes_nothing(place: &dyn Place) {
    let runtime = runtime();
    let (mut tables, book) = place.open(Feed::new());
    let mut story = Story::new(14);
    story.go_on(200);
    fold_all(tables.as_mut(), &story.entries, || 50);
    let before = runtime.block_on(book.cube()).unwrap();
    let head = story.head();
    let claim = story.claims.iter().find(|claim| claim.status == Status::Held).unwrap().clone();
    let wrong = |made, prior, from, to| ClaimMoved {
        claim_id: claim.entry.claim_id,
        made,
        prior,
        from,
        to,
        device: None,
        invoice_no: None,
        reason: None,
        returned_at: None,
        takes: smallvec![],
        frees: smallvec![],
        request_until: None,
        fund: claim.entry.fund.clone(),
    };
    for moved in [
        wrong(1, claim.last, Status::Held, Status::Released),
        wrong(claim.made, claim.last + 1, Status::Held, Status::Released),
        wrong(claim.made, claim.last, Status::Redeemed, Status::Returned),
        wrong(claim.made, claim.last, Status::Held, Status::Returned),
    ] {
        story.make();
        story.enter(Event::ClaimMoved(Arc::new(moved)));
        let entries = story.entries.split_off(head.position as usize);
        let refused = advance(tables.as_mut(), head, &entries).unwrap_err();
        assert!(
            matches!(refused, TablesError::Contradiction(Contradiction { position, .. }) if position == head.position + 2),
            "{refused}"
        );
        assert_eq!(tables.head().unwrap(), head);
        assert_eq!(runtime.block_on(book.cube()).unwrap(), before);
    }
    story.go_on(200);
    fold_all(tables.as_mut(), &story.entries, || 50);
    assert_eq!(runtime.block_on(book.cube()).unwrap().1, refolded(&story.entries));
}

fn entries_that_do_not_follow_are_refused(place: &dyn Place) {
    let (mut tables, _book) = place.open(Feed::new());
    let mut story = Story::new(15);
    story.go_on(20);
    let gap = advance(tables.as_mut(), Head::EMPTY, &story.entries[1..]).unwrap_err();
    assert!(matches!(gap, TablesError::Unfit(_)), "{gap}");
    let head = advance(tables.as_mut(), Head::EMPTY, &story.entries[..10]).unwrap();
    let twice = advance(tables.as_mut(), Head::EMPTY, &story.entries[..10]).unwrap_err();
    assert!(matches!(twice, TablesError::Moved), "{twice}");
    let other = Head { hash: Hash::ZERO, ..head };
    let other = advance(tables.as_mut(), other, &story.entries[10..]).unwrap_err();
    assert!(matches!(other, TablesError::Unfit(_)), "{other}");
    advance(tables.as_mut(), head, &story.entries[10..]).unwrap();
}

fn projectors_side_by_side_count_nothing_twice(place: &dyn Place) {
    let runtime = runtime();
    let (_, book) = place.open(Feed::new());
    let mut story = Story::new(16);
    story.go_on(1_500);
    let entries = &story.entries;
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (mut tables, _) = place.open(Feed::new());
            scope.spawn(move || {
                let mut dice = Dice(seed);
                loop {
                    let head = tables.head().unwrap();
                    let rest = &entries[head.position as usize..];
                    if rest.is_empty() {
                        return;
                    }
                    let batch = (1 + dice.roll(40) as usize).min(rest.len());
                    match advance(tables.as_mut(), head, &rest[..batch]) {
                        Ok(_) | Err(TablesError::Moved) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(runtime.block_on(book.cube()).unwrap(), (story.head().position, refolded(entries)));
    let query = ClaimsQuery::all(Scope::Regulator { regions: None }, 200);
    assert_eq!(pages(&runtime, book.as_ref(), &query), story.listed(&query));
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn the_projector_follows_what_is_offered_and_what_is_not(place: &dyn Place) {
    let runtime = runtime();
    let feed = Feed::new();
    let (tables, book) = place.open(feed.clone());
    let shelf = Arc::new(Shelf::default());
    let projector = Projector::start(tables, shelf.clone(), feed.clone(), runtime.handle().clone()).unwrap();
    let mut story = Story::new(17);
    for round in 0..6 {
        let known = story.entries.len();
        story.go_on(200);
        *shelf.0.lock().unwrap() = story.rows();
        let new = &story.entries[known..];
        match round % 3 {
            0 => new.chunks(7).for_each(|batch| feed.offer(batch)),
            1 => feed.offer(&new[100..]),
            _ => {}
        }
        assert!(runtime.block_on(book.wait_for(story.head().position, soon())));
        assert_eq!(book.position(), story.head().position);
        let (as_of, cube) = runtime.block_on(book.cube()).unwrap();
        assert_eq!((as_of, cube), (story.head().position, refolded(&story.entries)));
    }
    let early = Instant::now() + Duration::from_millis(30);
    assert!(!runtime.block_on(book.wait_for(story.head().position + 1, early)), "there is no such entry yet");
    projector.stop();
}

fn a_book_of_another_journal_is_rebuilt(place: &dyn Place) {
    let runtime = runtime();
    let mut before = Story::new(18);
    before.go_on(300);
    let mut tables = place.open(Feed::new()).0;
    fold_all(tables.as_mut(), &before.entries, || 100);
    drop(tables);
    let mut longer = Story::new(19);
    longer.go_on(400);
    let mut shorter = Story::new(20);
    shorter.go_on(200);
    for story in [&longer, &shorter] {
        let feed = Feed::new();
        let (tables, book) = place.open(feed.clone());
        let shelf = Arc::new(Shelf(Mutex::new(story.rows())));
        let projector = Projector::start(tables, shelf, feed, runtime.handle().clone()).unwrap();
        let end = soon();
        while runtime.block_on(book.cube()) != Ok((story.head().position, refolded(&story.entries))) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        let query = ClaimsQuery::all(Scope::Retailer(retailer(1)), 50);
        assert_eq!(pages(&runtime, book.as_ref(), &query), story.listed(&query));
        projector.stop();
    }
}

fn a_book_of_the_same_journal_goes_on_where_it_was(place: &dyn Place) {
    let runtime = runtime();
    let mut story = Story::new(21);
    story.go_on(300);
    let mut tables = place.open(Feed::new()).0;
    fold_all(tables.as_mut(), &story.entries, || 100);
    drop(tables);
    let known = story.entries.len();
    story.go_on(100);
    // A journal that would not do to rebuild from: only the last entry the book has, and the new ones.
    let mut rows = story.rows();
    for row in &mut rows[..known - 1] {
        row.entry = Arc::from(&b"gone"[..]);
    }
    let feed = Feed::new();
    let (tables, book) = place.open(feed.clone());
    let shelf = Arc::new(Shelf(Mutex::new(rows)));
    let projector = Projector::start(tables, shelf, feed, runtime.handle().clone()).unwrap();
    assert!(runtime.block_on(book.wait_for(story.head().position, soon())));
    assert_eq!(runtime.block_on(book.cube()).unwrap().1, refolded(&story.entries));
    projector.stop();
}

fn a_book_that_another_process_has_emptied_is_made_again(place: &dyn Place) {
    let runtime = runtime();
    let mut story = Story::new(30);
    story.go_on(300);
    let feed = Feed::new();
    let (tables, book) = place.open(feed.clone());
    let shelf = Arc::new(Shelf(Mutex::new(story.rows())));
    let projector = Projector::start(tables, shelf.clone(), feed, runtime.handle().clone()).unwrap();
    assert!(runtime.block_on(book.wait_for(story.head().position, soon())));
    let (mut other, _) = place.open(Feed::new());
    for _ in 0..3 {
        other.clear().unwrap();
        story.go_on(20);
        *shelf.0.lock().unwrap() = story.rows();
        let end = soon();
        while runtime.block_on(book.cube()) != Ok((story.head().position, refolded(&story.entries))) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        let query = ClaimsQuery::all(Scope::Retailer(retailer(1)), 50);
        assert_eq!(pages(&runtime, book.as_ref(), &query), story.listed(&query));
    }
    projector.stop();
}

fn others_may_have_the_processor_between_any_two_entries(place: &dyn Place) {
    let mut tables = place.open(Feed::new()).0;
    let mut story = Story::new(27);
    story.go_on(400);
    let lines: Vec<Line> = story.entries.iter().map(|stored| Line::of(stored)).collect();
    let mut folding = 0;
    Batch::fold(&lines, BTreeMap::new(), &mut || folding += 1).unwrap();
    assert_eq!(folding, lines.len());
    let mut breaths = 0;
    projector::advance(tables.as_mut(), Head::EMPTY, &lines, &mut || breaths += 1).unwrap();
    assert!(breaths > folding, "while rows are written too: {breaths} of {folding}");
}

fn totals_with_too_many_rows_are_refused(place: &dyn Place) {
    let runtime = runtime();
    let (mut tables, book) = place.open(Feed::new());
    let mut story = Story::new(22);
    let mut claims = 0;
    while claims <= limits::TOTALS_ROWS_MAX {
        // A day each.
        story.at = story.at.plus_ms(86_400_000);
        story.make();
        claims += 1;
    }
    fold_all(tables.as_mut(), &story.entries, || 10_000);
    let mut query = TotalsQuery { group_by: BTreeSet::from([Dimension::Day]), ..TotalsQuery::default() };
    assert_eq!(runtime.block_on(book.totals(query.clone())), Err(BookError::TooManyRows));
    query.to = Some(story.at.plus_ms(-86_400_000).day());
    assert_eq!(runtime.block_on(book.totals(query)).unwrap().rows.len(), limits::TOTALS_ROWS_MAX);
}

#[test]
fn the_feed_stays_within_its_bounds_when_nobody_takes_from_it() {
    let feed = Feed::new();
    let mut story = Story::new(26);
    while story.entries.len() < limits::BOOK_INBOX_ENTRIES_MAX + 2_000 {
        story.go_on(100);
    }
    let mut most = 0;
    for batch in story.entries.chunks(500) {
        feed.offer(batch);
        most = most.max(feed.waiting());
    }
    assert!(most > limits::BOOK_INBOX_ENTRIES_MAX - 500 && most <= limits::BOOK_INBOX_ENTRIES_MAX, "{most}");
    assert!(feed.waiting() < most, "it was emptied and keeps the newest");
}

macro_rules! contract {
    ($place:expr; $($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            super::$name(&$place);
        }
    )*};
}

mod on_sqlite {
    use super::*;

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self) -> std::path::PathBuf {
            self.0.path().join(sqlite::FILE)
        }
    }

    impl Place for Directory {
        fn open(&self, feed: Feed) -> (Box<dyn Tables>, Arc<dyn Book>) {
            let (tables, book) = sqlite::open(&self.file(), feed).unwrap();
            (Box::new(tables), Arc::new(book))
        }
    }

    contract!(Directory::new();
        lists_show_what_a_search_of_every_claim_finds,
        totals_are_what_every_step_of_every_claim_adds_up_to,
        a_walk_through_pages_is_not_disturbed_by_new_claims,
        an_entry_that_contradicts_the_book_changes_nothing,
        entries_that_do_not_follow_are_refused,
        projectors_side_by_side_count_nothing_twice,
        the_projector_follows_what_is_offered_and_what_is_not,
        a_book_of_another_journal_is_rebuilt,
        a_book_of_the_same_journal_goes_on_where_it_was,
        a_book_that_another_process_has_emptied_is_made_again,
        others_may_have_the_processor_between_any_two_entries,
        totals_with_too_many_rows_are_refused,
    );

    #[test]
    fn a_deleted_or_damaged_file_is_rebuilt() {
        let runtime = runtime();
        let place = Directory::new();
        let mut story = Story::new(23);
        story.go_on(300);
        let damages: [&dyn Fn(); 5] = [
            &|| {},
            &|| std::fs::remove_file(place.file()).unwrap(),
            &|| std::fs::write(place.file(), "this was never a database, though long enough").unwrap(),
            &|| {
                let other = rusqlite::Connection::open(place.file()).unwrap();
                other.pragma_update(None, "user_version", 99).unwrap();
            },
            &|| {
                let mut bytes = std::fs::read(place.file()).unwrap();
                bytes[4096..].fill(0xA5);
                std::fs::write(place.file(), bytes).unwrap();
            },
        ];
        for damage in damages {
            damage();
            let feed = Feed::new();
            let (tables, book) = place.open(feed.clone());
            let shelf = Arc::new(Shelf(Mutex::new(story.rows())));
            let projector = Projector::start(tables, shelf, feed, runtime.handle().clone()).unwrap();
            assert!(runtime.block_on(book.wait_for(story.head().position, soon())));
            assert_eq!(
                runtime.block_on(book.cube()).unwrap(),
                (story.head().position, refolded(&story.entries))
            );
            projector.stop();
        }
    }

    #[test]
    fn damage_that_a_query_finds_makes_the_projector_rebuild() {
        let runtime = runtime();
        let place = Directory::new();
        let feed = Feed::new();
        let (tables, book) = place.open(feed.clone());
        let mut story = Story::new(24);
        story.go_on(300);
        let shelf = Arc::new(Shelf(Mutex::new(story.rows())));
        let projector = Projector::start(tables, shelf, feed, runtime.handle().clone()).unwrap();
        assert!(runtime.block_on(book.wait_for(story.head().position, soon())));
        let other = rusqlite::Connection::open(place.file()).unwrap();
        other.execute("UPDATE names SET name = name || '?'", []).unwrap();
        drop(other);
        let by_retailer = BTreeSet::from([Dimension::Retailer]);
        let query = TotalsQuery { group_by: by_retailer, ..TotalsQuery::default() };
        let failed = runtime.block_on(book.totals(query.clone())).unwrap_err();
        assert!(matches!(failed, BookError::Unavailable(_)), "{failed}");
        let end = soon();
        while runtime.block_on(book.totals(query.clone())).map(|totals| totals.rows)
            != Ok(story.totalled(&query))
        {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        projector.stop();
    }

    #[test]
    fn the_cube_can_be_read_beside_the_writer() {
        let place = Directory::new();
        let mut story = Story::new(25);
        story.go_on(300);
        assert!(sqlite::read_cube(&place.file()).is_err(), "there is no book yet, and none is made");
        assert!(!place.file().exists());
        let mut tables = place.open(Feed::new()).0;
        fold_all(tables.as_mut(), &story.entries, || 50);
        assert_eq!(sqlite::read_cube(&place.file()), Ok((story.head().position, refolded(&story.entries))));
    }
}

mod on_postgres {
    use super::*;
    use crate::journal::postgres::Place as Url;
    use crate::postgres_server::Database;

    /// A database, and what drives the connections to it.
    struct Driven {
        database: Database,
        runtime: tokio::runtime::Handle,
        /// The runtime ends when this is dropped.
        _end: tokio::sync::oneshot::Sender<()>,
    }

    impl Driven {
        fn new() -> Self {
            let runtime = runtime();
            let handle = runtime.handle().clone();
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            std::thread::spawn(move || drop(runtime.block_on(ended)));
            Self { database: Database::new(), runtime: handle, _end: end }
        }

        fn url(&self) -> Url {
            Url::parse(&self.database.url()).unwrap()
        }
    }

    impl Place for Driven {
        fn open(&self, feed: Feed) -> (Box<dyn Tables>, Arc<dyn Book>) {
            let (tables, book) = postgres::open(&self.url(), feed, self.runtime.clone()).unwrap();
            (Box::new(tables), Arc::new(book))
        }
    }

    contract!(Driven::new();
        lists_show_what_a_search_of_every_claim_finds,
        totals_are_what_every_step_of_every_claim_adds_up_to,
        a_walk_through_pages_is_not_disturbed_by_new_claims,
        an_entry_that_contradicts_the_book_changes_nothing,
        entries_that_do_not_follow_are_refused,
        projectors_side_by_side_count_nothing_twice,
        the_projector_follows_what_is_offered_and_what_is_not,
        a_book_of_another_journal_is_rebuilt,
        a_book_of_the_same_journal_goes_on_where_it_was,
        a_book_that_another_process_has_emptied_is_made_again,
        others_may_have_the_processor_between_any_two_entries,
        totals_with_too_many_rows_are_refused,
    );

    /// Every way in which the tables can be at fault is found and mended by a projector that runs.
    #[test]
    fn tables_that_are_gone_old_or_damaged_are_rebuilt() {
        let runtime = runtime();
        let place = Driven::new();
        let mut story = Story::new(27);
        story.go_on(300);
        for damage in [
            "SELECT 1",
            "DROP SCHEMA book CASCADE",
            "DROP TABLE book.claims",
            "ALTER TABLE book.totals DROP COLUMN sales_fen",
            "UPDATE book.format SET version = 0",
            "DELETE FROM book.head",
            "UPDATE book.names SET kind = 9",
        ] {
            if damage != "SELECT 1" {
                place.database.execute(damage);
            }
            story.go_on(10);
            let feed = Feed::new();
            let (tables, book) = place.open(feed.clone());
            let shelf = Arc::new(Shelf(Mutex::new(story.rows())));
            let projector = Projector::start(tables, shelf, feed, runtime.handle().clone()).unwrap();
            let end = soon();
            while runtime.block_on(book.cube()) != Ok((story.head().position, refolded(&story.entries))) {
                assert!(Instant::now() < end, "{damage}");
                std::thread::sleep(Duration::from_millis(5));
            }
            projector.stop();
        }
    }

    #[test]
    fn the_book_of_a_newer_program_is_left_alone() {
        let place = Driven::new();
        drop(place.open(Feed::new()));
        let newer = (FORMAT + 1).to_string();
        place.database.execute(&format!("UPDATE book.format SET version = {newer}"));
        let refused = postgres::open(&place.url(), Feed::new(), place.runtime.clone()).unwrap_err();
        assert!(matches!(refused, TablesError::Unavailable(_)), "{refused}");
        assert_eq!(place.database.execute("SELECT version FROM book.format"), newer);
    }

    #[test]
    fn queries_go_on_after_their_connections_were_ended() {
        let runtime = runtime();
        let place = Driven::new();
        let (mut tables, book) = place.open(Feed::new());
        let mut story = Story::new(28);
        story.go_on(100);
        fold_all(tables.as_mut(), &story.entries, || 50);
        let expected = (story.head().position, refolded(&story.entries));
        for _ in 0..3 {
            assert_eq!(runtime.block_on(book.cube()).unwrap(), expected);
            assert!(place.database.terminate_backends() > 0);
        }
        assert_eq!(runtime.block_on(book.cube()).unwrap(), expected);
    }

    #[test]
    fn the_cube_can_be_read_beside_the_writer() {
        let place = Driven::new();
        assert_eq!(postgres::read_cube(&place.url()), Ok(None), "there is no book yet, and none is made");
        assert_eq!(place.database.execute("SELECT to_regnamespace('book') IS NULL"), "t");
        let mut story = Story::new(29);
        story.go_on(300);
        let mut tables = place.open(Feed::new()).0;
        fold_all(tables.as_mut(), &story.entries, || 50);
        let expected = (story.head().position, refolded(&story.entries));
        assert_eq!(postgres::read_cube(&place.url()), Ok(Some(expected)));
    }
}

#[test]
fn the_projector_pauses_for_longer_than_it_worked_unless_somebody_waits() {
    const WORKED: Duration = Duration::from_millis(100);
    let feed = Feed::new();
    let pause = |feed: &Feed| {
        let mut breath = projector::Breath::new(feed);
        std::thread::sleep(WORKED);
        let began = Instant::now();
        breath.take();
        began.elapsed()
    };
    assert!(pause(&feed) >= WORKED * limits::BOOK_BREATH);

    let waits = feed.wait_for(1, Instant::now());
    assert!(!tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(waits));
    assert!(pause(&feed) < WORKED);
}
