//! The book in SQL: what its tables hold and how they are asked, the same for every database.
//!
//! Claims are rows of integers in the order of the journal, and the only indexes on random keys are cut
//! into runs of 16,384 positions, so that adding a claim touches pages that are in memory however large
//! the book is. A lookup probes the runs one after the other, newest first, which is the order in which
//! lists are wanted. Days are ranges of positions, because the times of entries never fall.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use serde::Deserialize;
use serde::de::value::BorrowedStrDeserializer;
use tokio::sync::Semaphore;

use super::batch::{Batch, NewClaim, Standing, order_key, sn_key};
use super::cube::{Cell, Counters, Cube, Facets, Facts, Tally};
use super::projector::{Feed, TablesError};
use super::{
    Basis, Book, BookError, ClaimPointer, ClaimsQuery, Dimension, Group, Page, Scope, Totals, TotalsQuery,
};
use crate::claim::Status;
use crate::identity::RegionCode;
use crate::journal::Head;
use crate::ledger::entry::Hash;
use crate::limits;
use crate::money::Fen;
use crate::time::Day;

/// The format of the tables; a book of an older one is dropped and rebuilt.
pub(super) const FORMAT: i64 = 2;

/// Positions in one run of an index, as a power of two. Short runs make writing cheap (a batch of some
/// thousands shares the 100 pages of a run, and no more are carried to the disk), long ones lookups (one
/// probe, some microseconds, for each run). Tests use very short ones, so that a small journal has many.
pub(super) const RUN: u32 = if cfg!(test) { 6 } else { 14 };

/// Every kind of name, with its number in the table `names`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Retailer = 1,
    Platform = 2,
    Category = 3,
    Programme = 4,
    Fund = 5,
}

const fn status_number(status: Status) -> i64 {
    match status {
        Status::Held => 0,
        Status::Redeemed => 1,
        Status::Released => 2,
        Status::Expired => 3,
        Status::Cancelled => 4,
        Status::Returned => 5,
    }
}

/// Positions fit: 2^63 entries are more than a journal can hold.
pub(super) const fn integer(position: u64) -> i64 {
    position.cast_signed()
}

/// The value whose text form is `name`.
fn named<'de, T: Deserialize<'de>>(name: &'de str) -> Option<T> {
    T::deserialize(BorrowedStrDeserializer::<serde::de::value::Error>::new(name)).ok()
}

fn region_number(region: RegionCode) -> i64 {
    region.as_str().bytes().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}

fn region_numbered(number: i64) -> Option<RegionCode> {
    named(&format!("{number:06}"))
}

pub(super) fn garbled(what: &str) -> TablesError {
    TablesError::Unfit(format!("{what} cannot be read"))
}

/// A head as the tables hold it.
pub(super) fn head(position: i64, hash: &[u8]) -> Result<Head, TablesError> {
    let position = u64::try_from(position).map_err(|_| garbled("the head"))?;
    Ok(Head { position, hash: Hash::from_slice(hash).ok_or_else(|| garbled("the head"))? })
}

// --- What is written ---

/// The table `names` in memory, with what must be added to it.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: HashMap<Kind, HashMap<Arc<str>, i64>>,
    names: HashMap<i64, Arc<str>>,
    last: i64,
    fresh: Vec<(i64, Kind, Arc<str>)>,
}

/// The columns that [`Names::standing`] reads.
pub(super) const STANDING: &str = "made, last, status, sn_key, region, category, retailer, programme, fund, \
     sale_day, price_fen, subsidy_fen";
/// How many they are.
pub(super) const STANDING_COLUMNS: usize = 12;
/// The columns of a claim, in the order of [`Names::claim`].
pub(super) const CLAIM: &str = "made, last, status, retailer, platform, category, region, programme, fund, \
     sale_day, price_fen, subsidy_fen, order_key, sn_key";
/// How many they are.
pub(super) const CLAIM_COLUMNS: usize = 14;
/// How many columns a total has: its cell's and its counters'.
pub(super) const TOTAL_COLUMNS: usize = 16;
/// What becomes of a total that is there already.
pub(super) const ADD_TO_TOTAL: &str =
    "ON CONFLICT (day, sale_day, region, category, retailer, programme, fund) DO UPDATE SET
        held_items = totals.held_items + excluded.held_items,
        held_fen = totals.held_fen + excluded.held_fen,
        redeemed_items = totals.redeemed_items + excluded.redeemed_items,
        redeemed_fen = totals.redeemed_fen + excluded.redeemed_fen,
        returned_items = totals.returned_items + excluded.returned_items,
        returned_fen = totals.returned_fen + excluded.returned_fen,
        cancelled_items = totals.cancelled_items + excluded.cancelled_items,
        cancelled_fen = totals.cancelled_fen + excluded.cancelled_fen,
        sales_fen = totals.sales_fen + excluded.sales_fen";

impl Names {
    /// Takes in a row of the table.
    pub(super) fn know(&mut self, id: i64, kind: i64, name: &str) -> Result<(), TablesError> {
        let kind = [Kind::Retailer, Kind::Platform, Kind::Category, Kind::Programme, Kind::Fund]
            .into_iter()
            .find(|known| *known as i64 == kind)
            .ok_or_else(|| garbled("a name"))?;
        self.insert(id, kind, name.into());
        Ok(())
    }

    fn insert(&mut self, id: i64, kind: Kind, name: Arc<str>) {
        self.ids.entry(kind).or_default().insert(Arc::clone(&name), id);
        self.names.insert(id, name);
        self.last = self.last.max(id);
    }

    /// The number that stands for `name`; a new one must be written down.
    fn id(&mut self, kind: Kind, name: &str) -> i64 {
        if let Some(id) = self.ids.get(&kind).and_then(|ids| ids.get(name)) {
            return *id;
        }
        let (id, name) = (self.last + 1, Arc::<str>::from(name));
        self.insert(id, kind, Arc::clone(&name));
        self.fresh.push((id, kind, name));
        id
    }

    /// The names that must be added to the table before the rows that were made of them.
    pub(super) fn take_fresh(&mut self) -> Vec<(i64, Kind, Arc<str>)> {
        std::mem::take(&mut self.fresh)
    }

    fn name<'a, T: Deserialize<'a>>(&'a self, id: i64) -> Result<T, TablesError> {
        self.names.get(&id).and_then(|name| named(name)).ok_or_else(|| garbled("a name"))
    }

    /// A claim from a row of [`STANDING`], and the position of the entry that made it.
    pub(super) fn standing(
        &self,
        row: [Option<i64>; STANDING_COLUMNS],
    ) -> Result<(u64, Standing), TablesError> {
        let [made, last, status, sn_key, region, category, retailer, programme, fund, day, price, subsidy] =
            row;
        let there = |number: Option<i64>| number.ok_or_else(|| garbled("a claim"));
        let position = |number| u64::try_from(there(number)?).map_err(|_| garbled("a position"));
        let status = there(status)?;
        let standing = Standing {
            last: position(last)?,
            status: Status::ALL
                .into_iter()
                .find(|known| status_number(*known) == status)
                .ok_or_else(|| garbled("a status"))?,
            sn_key,
            facts: Facts {
                facets: Facets {
                    region_code: region_numbered(there(region)?).ok_or_else(|| garbled("a region"))?,
                    category: self.name(there(category)?)?,
                    retailer: self.name(there(retailer)?)?,
                    programme: self.name(there(programme)?)?,
                    fund: self.name(there(fund)?)?,
                },
                sale_day: i32::try_from(there(day)?).map(Day::from_number).map_err(|_| garbled("a day"))?,
                price: Fen::new(there(price)?),
                subsidy: Fen::new(there(subsidy)?),
            },
        };
        Ok((position(made)?, standing))
    }

    /// The row of a claim that was made at this position, of [`CLAIM`].
    pub(super) fn claim(&mut self, made: u64, claim: &NewClaim) -> [Option<i64>; CLAIM_COLUMNS] {
        let Standing { last, status, sn_key, facts } = &claim.standing;
        let Facts { facets, sale_day, price, subsidy } = facts;
        [
            Some(integer(made)),
            Some(integer(*last)),
            Some(status_number(*status)),
            Some(self.id(Kind::Retailer, facets.retailer.as_str())),
            claim.platform.as_ref().map(|platform| self.id(Kind::Platform, platform)),
            Some(self.id(Kind::Category, facets.category.as_str())),
            Some(region_number(facets.region_code)),
            Some(self.id(Kind::Programme, facets.programme.as_str())),
            Some(self.id(Kind::Fund, facets.fund.as_str())),
            Some(sale_day.number().into()),
            Some(price.get()),
            Some(subsidy.get()),
            Some(claim.order_key),
            *sn_key,
        ]
    }

    /// The rows to add to the totals.
    pub(super) fn totals(&mut self, cube: &Cube) -> Vec<[i64; TOTAL_COLUMNS]> {
        let mut rows = Vec::new();
        for (Cell { day, sale_day, facets }, counters) in cube.cells() {
            rows.push([
                day.number().into(),
                sale_day.number().into(),
                region_number(facets.region_code),
                self.id(Kind::Category, facets.category.as_str()),
                self.id(Kind::Retailer, facets.retailer.as_str()),
                self.id(Kind::Programme, facets.programme.as_str()),
                self.id(Kind::Fund, facets.fund.as_str()),
                counters.held.items,
                counters.held.money.get(),
                counters.redeemed.items,
                counters.redeemed.money.get(),
                counters.returned.items,
                counters.returned.money.get(),
                counters.cancelled.items,
                counters.cancelled.money.get(),
                counters.sales.get(),
            ]);
        }
        rows
    }
}

/// What `batch` changes of claims: made, last, status, sn_key.
pub(super) fn moves(batch: &Batch) -> Vec<[Option<i64>; 4]> {
    let row = |(made, claim): (&u64, &Standing)| {
        [Some(integer(*made)), Some(integer(claim.last)), Some(status_number(claim.status)), claim.sn_key]
    };
    batch.moved.iter().map(row).collect()
}

// --- What is asked ---

/// Why a query failed, before it is put into words for the caller.
pub enum ReadFault {
    /// What was found cannot be so.
    Garbled(&'static str),
    /// The database says that its files are damaged.
    Damaged(String),
    /// The database cannot be asked.
    Unavailable(String),
    TooSlow,
    TooManyRows,
}

impl ReadFault {
    /// What the caller is told; the projector is told of damage.
    pub(super) fn report(self, feed: &Feed) -> BookError {
        match self {
            Self::TooSlow => BookError::TooSlow,
            Self::TooManyRows => BookError::TooManyRows,
            Self::Unavailable(reason) => BookError::Unavailable(reason),
            Self::Damaged(reason) => {
                feed.doubt();
                BookError::Unavailable(reason)
            }
            Self::Garbled(what) => {
                feed.doubt();
                BookError::Unavailable(format!("{what} cannot be read"))
            }
        }
    }
}

/// A snapshot of the tables.
pub trait Source {
    /// The rows that `sql` gives, a query for integers that are never null. `$1`, `$2`, … stand for
    /// `values`, in the order in which they are first met.
    fn integers(&self, sql: &str, values: &[i64]) -> Result<Vec<Vec<i64>>, ReadFault>;

    /// The number that stands for `name`, if there is one.
    fn id(&self, kind: Kind, name: &str) -> Result<Option<i64>, ReadFault>;

    /// The name that `id` stands for.
    fn name(&self, id: i64) -> Result<String, ReadFault>;

    /// Whether the query has taken as long as it may.
    fn is_overdue(&self) -> bool;

    /// What makes the database use this index, or none.
    fn using(&self, index: Option<&'static str>) -> String;
}

/// A snapshot of the book.
pub struct Snapshot<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) as_of: u64,
}

/// Tables that are read as they stand at one moment.
pub trait Readable: fmt::Debug + Send + Sync + 'static {
    /// How far the projector is, and who tells it of damage.
    fn feed(&self) -> &Feed;

    /// Runs `query` on the tables as they are now, for no longer than `time_limit`. Waits.
    fn read<T>(
        &self,
        time_limit: Option<Duration>,
        query: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadFault>,
    ) -> Result<T, ReadFault>;

    /// All totals and the position they are true at.
    fn cube(&self) -> Result<(u64, Cube), BookError> {
        self.read(None, |snapshot| snapshot.cube()).map_err(|fault| fault.report(self.feed()))
    }
}

/// The book as it is asked, in whichever database its tables are.
#[derive(Debug)]
pub struct SqlBook<R> {
    pub(super) tables: Arc<R>,
    pub(super) queries: Queries,
}

impl<R: Readable> SqlBook<R> {
    pub(super) fn new(tables: Arc<R>) -> Self {
        Self { tables, queries: Queries::default() }
    }

    fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadFault> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, BookError>> {
        let tables = Arc::clone(&self.tables);
        self.queries.run(move || {
            tables.read(Some(limits::BOOK_QUERY_TIMEOUT), query).map_err(|fault| fault.report(tables.feed()))
        })
    }
}

impl<R: Readable> Book for SqlBook<R> {
    fn position(&self) -> u64 {
        self.tables.feed().position()
    }

    fn wait_for(&self, position: u64, deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(self.tables.feed().wait_for(position, deadline))
    }

    fn claims(&self, query: ClaimsQuery) -> BoxFuture<'_, Result<Page, BookError>> {
        self.ask(move |snapshot| snapshot.claims(&query))
    }

    fn totals(&self, query: TotalsQuery) -> BoxFuture<'_, Result<Totals, BookError>> {
        self.ask(move |snapshot| snapshot.totals(&query))
    }

    fn cube(&self) -> BoxFuture<'_, Result<(u64, Cube), BookError>> {
        let tables = Arc::clone(&self.tables);
        self.queries.run(move || tables.cube())
    }
}

/// Where claims are looked for: positions from `low` up to but not including `high`.
struct Search {
    low: i64,
    high: i64,
    /// The index to use; the conditions lead into it.
    index: Option<&'static str>,
    /// What the claims found must meet; of integers that were integers here, no text from outside.
    conditions: String,
}

impl Snapshot<'_> {
    pub(super) fn claims(&self, query: &ClaimsQuery) -> Result<Page, ReadFault> {
        let limit = query.limit.min(limits::PAGE_ITEMS_MAX);
        let mut items = match self.search(query)? {
            Some(search) => self.find(&search, limit + 1)?,
            None => Vec::new(),
        };
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|claim| claim.made);
        Ok(Page { items, next, as_of: self.as_of })
    }

    /// What `query` comes to in numbers; `None` if nothing can be found, for instance because the book
    /// has never seen something it names. (SQLite refuses a condition that is false in itself together
    /// with a named index.)
    fn search(&self, query: &ClaimsQuery) -> Result<Option<Search>, ReadFault> {
        let id = |kind, name: &str| self.source.id(kind, name);
        let mut conditions = String::new();
        let mut retailer = None;
        let mut platform = None;
        if let Some(wanted) = &query.retailer {
            let Some(id) = id(Kind::Retailer, wanted.as_str())? else { return Ok(None) };
            retailer = Some(id);
        }
        match &query.scope {
            Scope::Retailer(own) => {
                if query.retailer.is_some_and(|wanted| wanted != *own) {
                    return Ok(None);
                }
                let Some(id) = id(Kind::Retailer, own.as_str())? else { return Ok(None) };
                retailer = Some(id);
            }
            Scope::Platform { name, retailers } => {
                let Some(found) = id(Kind::Platform, name)? else { return Ok(None) };
                platform = Some(found);
                conditions += &format!(" AND platform = {found}");
                if let Some(retailers) = retailers {
                    let mut ids = Vec::new();
                    for retailer in retailers {
                        ids.extend(id(Kind::Retailer, retailer.as_str())?.map(|id| id.to_string()));
                    }
                    if ids.is_empty() {
                        return Ok(None);
                    }
                    conditions += &format!(" AND retailer IN ({})", ids.join(","));
                }
            }
            Scope::Regulator { regions: Some(regions) } if regions.is_empty() => return Ok(None),
            Scope::Regulator { regions } => conditions += &within(regions.as_deref()),
        }
        if let Some(id) = retailer {
            conditions += &format!(" AND retailer = {id}");
        }
        if let Some(status) = query.status {
            conditions += &format!(" AND status = {}", status_number(status));
        }
        if let Some(category) = &query.category {
            let Some(id) = id(Kind::Category, category.as_str())? else { return Ok(None) };
            conditions += &format!(" AND category = {id}");
        }
        if let Some(region) = query.region_code {
            conditions += &within(Some(&[region]));
        }
        let mut index = platform.map(|_| "claims_by_platform");
        if retailer.is_some() {
            index = Some("claims_by_retailer");
        }
        if let Some(order_no) = &query.order_no {
            index = Some("claims_by_order");
            conditions += &format!(" AND order_key = {}", order_key(order_no));
        }
        if let Some(sn) = &query.sn {
            index = Some("claims_by_sn");
            conditions += &format!(" AND sn_key = {}", sn_key(sn));
        }
        let Some((low, high)) = self.positions(query)? else { return Ok(None) };
        Ok(Some(Search { low, high, index, conditions }))
    }

    /// The positions that the days and the page asked for leave.
    fn positions(&self, query: &ClaimsQuery) -> Result<Option<(i64, i64)>, ReadFault> {
        let mut high = integer(self.as_of) + 1;
        if let Some(before) = query.before {
            high = high.min(i64::try_from(before).unwrap_or(i64::MAX));
        }
        let mut low = 1;
        if let Some(from) = query.from {
            let Some(first) = self.first_position(">=", from)? else { return Ok(None) };
            low = first;
        }
        if let Some(to) = query.to
            && let Some(first) = self.first_position(">", to)?
        {
            high = high.min(first);
        }
        Ok((low < high).then_some((low, high)))
    }

    /// The first position of the first day that is `at or after` one.
    fn first_position(&self, compared: &str, day: Day) -> Result<Option<i64>, ReadFault> {
        let sql = format!("SELECT first FROM days WHERE day {compared} $1 ORDER BY day LIMIT 1");
        let found = self.source.integers(&sql, &[day.number().into()])?;
        Ok(found.first().and_then(|row| row.first()).copied())
    }

    /// The newest `limit` claims: run by run where there is an index for them, else in one go.
    fn find(&self, search: &Search, limit: usize) -> Result<Vec<ClaimPointer>, ReadFault> {
        let Search { low, high, index, conditions } = search;
        let (condition, runs) = match index {
            Some(_) => (format!("made >> {RUN} = $1"), (*low >> RUN)..=((*high - 1) >> RUN)),
            None => ("CAST($1 AS BIGINT) = 0".to_owned(), 0..=0),
        };
        let using = self.source.using(*index);
        let mut found: Vec<ClaimPointer> = Vec::new();
        for run in runs.rev() {
            if found.len() >= limit {
                break;
            }
            if self.source.is_overdue() {
                return Err(ReadFault::TooSlow);
            }
            let (mut low, mut high) = (*low, *high);
            if index.is_some() {
                (low, high) = (low.max(run << RUN), high.min((run + 1) << RUN));
            }
            let sql = format!(
                "SELECT made, last FROM claims {using} WHERE {condition} AND made >= $2 AND made < $3{conditions}
                 ORDER BY made DESC LIMIT $4"
            );
            let missing = i64::try_from(limit - found.len()).unwrap_or(i64::MAX);
            for row in self.source.integers(&sql, &[run, low, high, missing])? {
                let [made, last] = row[..] else { return Err(ReadFault::Garbled("a claim")) };
                found.push(ClaimPointer { made: made.cast_unsigned(), last: last.cast_unsigned() });
            }
        }
        Ok(found)
    }

    pub(super) fn totals(&self, query: &TotalsQuery) -> Result<Totals, ReadFault> {
        let day = match query.basis {
            Basis::Day => "day",
            Basis::Sale => "sale_day",
        };
        let columns: Vec<&str> = query
            .group_by
            .iter()
            .map(|dimension| match dimension {
                Dimension::Day => day,
                Dimension::City => "region / 100 * 100",
                Dimension::Category => "category",
                Dimension::Retailer => "retailer",
                Dimension::Programme => "programme",
                Dimension::Fund => "fund",
            })
            .collect();
        let mut sql = String::from("SELECT ");
        for column in &columns {
            sql += &format!("{column}, ");
        }
        let sums = COUNTERS.map(|column| format!("CAST(coalesce(sum({column}), 0) AS BIGINT)"));
        sql += &format!("{} FROM totals WHERE TRUE{}", sums.join(", "), within(query.regions.as_deref()));
        if let Some(from) = query.from {
            sql += &format!(" AND {day} >= {}", from.number());
        }
        if let Some(to) = query.to {
            sql += &format!(" AND {day} <= {}", to.number());
        }
        if !columns.is_empty() {
            sql += &format!(" GROUP BY {}", columns.join(", "));
        }
        sql += &format!(" LIMIT {}", limits::TOTALS_ROWS_MAX + 1);

        let rows = self.source.integers(&sql, &[])?;
        if rows.len() > limits::TOTALS_ROWS_MAX {
            return Err(ReadFault::TooManyRows);
        }
        let mut names = HashMap::new();
        let mut totals = Vec::with_capacity(rows.len());
        for row in rows {
            let Some((facets, sums)) = row.split_at_checked(columns.len()) else {
                return Err(ReadFault::Garbled("a total"));
            };
            let mut group = Group::default();
            for (&number, dimension) in facets.iter().zip(&query.group_by) {
                match dimension {
                    Dimension::Day => group.day = Some(day_numbered(number)?),
                    Dimension::City => group.city = Some(region(number)?),
                    Dimension::Category => group.category = Some(self.named(&mut names, number)?),
                    Dimension::Retailer => group.retailer = Some(self.named(&mut names, number)?),
                    Dimension::Programme => group.programme = Some(self.named(&mut names, number)?),
                    Dimension::Fund => group.fund = Some(self.named(&mut names, number)?),
                }
            }
            totals.push((group, counters(sums)?));
        }
        totals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Totals { rows: totals, as_of: self.as_of })
    }

    pub(super) fn cube(&self) -> Result<(u64, Cube), ReadFault> {
        let sql = format!(
            "SELECT day, sale_day, region, category, retailer, programme, fund, {} FROM totals",
            COUNTERS.join(", ")
        );
        let mut names = HashMap::new();
        let mut cube = Cube::default();
        for row in self.source.integers(&sql, &[])? {
            let [day, sale_day, region_code, category, retailer, programme, fund, sums @ ..] = &row[..]
            else {
                return Err(ReadFault::Garbled("a total"));
            };
            let cell = Cell {
                day: day_numbered(*day)?,
                sale_day: day_numbered(*sale_day)?,
                facets: Facets {
                    region_code: region(*region_code)?,
                    category: self.named(&mut names, *category)?,
                    retailer: self.named(&mut names, *retailer)?,
                    programme: self.named(&mut names, *programme)?,
                    fund: self.named(&mut names, *fund)?,
                },
            };
            cube.add(cell, &counters(sums)?).ok_or(ReadFault::Garbled("a total"))?;
        }
        Ok((self.as_of, cube))
    }

    /// The value that `id` stands for; `names` remembers what was looked up.
    fn named<T: for<'de> Deserialize<'de>>(
        &self,
        names: &mut HashMap<i64, String>,
        id: i64,
    ) -> Result<T, ReadFault> {
        let name = match names.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.source.name(id)?),
        };
        named(name).ok_or(ReadFault::Garbled("a name"))
    }
}

/// The counters' columns, in the order in which [`counters`] reads them.
const COUNTERS: [&str; 9] = [
    "held_items",
    "held_fen",
    "redeemed_items",
    "redeemed_fen",
    "returned_items",
    "returned_fen",
    "cancelled_items",
    "cancelled_fen",
    "sales_fen",
];

fn counters(sums: &[i64]) -> Result<Counters, ReadFault> {
    let &[held, held_fen, redeemed, redeemed_fen, returned, returned_fen, cancelled, cancelled_fen, sales] =
        sums
    else {
        return Err(ReadFault::Garbled("a total"));
    };
    let tally = |items, money| Tally { items, money: Fen::new(money) };
    Ok(Counters {
        held: tally(held, held_fen),
        redeemed: tally(redeemed, redeemed_fen),
        returned: tally(returned, returned_fen),
        cancelled: tally(cancelled, cancelled_fen),
        sales: Fen::new(sales),
    })
}

fn day_numbered(number: i64) -> Result<Day, ReadFault> {
    i32::try_from(number).map(Day::from_number).map_err(|_| ReadFault::Garbled("a day"))
}

fn region(number: i64) -> Result<RegionCode, ReadFault> {
    region_numbered(number).ok_or(ReadFault::Garbled("a region"))
}

/// The condition that a claim's region is one of `regions` or lies in one; nothing if there is no limit.
fn within(regions: Option<&[RegionCode]>) -> String {
    let Some(regions) = regions else { return String::new() };
    let mut condition = String::from(" AND (FALSE");
    for region in regions {
        let first = region_number(*region);
        let last = match region.specificity() {
            1 => first + 9_999,
            2 => first + 99,
            _ => first,
        };
        // Writing to a string does not fail.
        let _ = write!(condition, " OR region BETWEEN {first} AND {last}");
    }
    condition + ")"
}

/// Lets queries run, on threads of their own, as many as a book can answer at a time.
#[derive(Debug)]
pub(super) struct Queries {
    running: Arc<Semaphore>,
    pub(super) admitted: Arc<Semaphore>,
}

impl Default for Queries {
    fn default() -> Self {
        Self {
            running: Arc::new(Semaphore::new(limits::BOOK_QUERIES_RUNNING_MAX)),
            admitted: Arc::new(Semaphore::new(limits::BOOK_QUERIES_MAX)),
        }
    }
}

impl Queries {
    pub(super) fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> Result<T, BookError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, BookError>> {
        Box::pin(async move {
            let admitted = self.admitted.try_acquire();
            let _admitted = admitted.map_err(|_| BookError::Overloaded)?;
            let turn = Arc::clone(&self.running).acquire_owned();
            let turn = tokio::time::timeout(limits::BOOK_QUERY_TIMEOUT, turn).await;
            let Ok(Ok(turn)) = turn else { return Err(BookError::Overloaded) };
            let reading = tokio::task::spawn_blocking(move || {
                // Kept until the query ends, even if nobody waits for it any more.
                let _turn = turn;
                query()
            });
            reading.await.unwrap_or_else(|error| Err(BookError::Unavailable(error.to_string())))
        })
    }
}
