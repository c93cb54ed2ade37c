//! The book: tables for people who ask questions. It is a fold of the journal and may be dropped and
//! rebuilt at any moment.
//!
//! It answers two kinds of question, lists of claims and totals, each as of a position of the journal.
//! Lists point at journal entries and hold no content of their own. The [`projector`] feeds the book a
//! moment behind the journal; [`batch`] and [`cube`] work out what entries do to it, without a
//! database; `sqlite` and `postgres` keep it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;

use self::cube::{Counters, Cube};
use crate::claim::{FundId, Status};
use crate::identity::{Reference, RegionCode, SerialNumber, Uscc};
use crate::programme::{Category, ProgrammeId};
use crate::time::Day;

pub mod batch;
pub mod cube;
pub mod postgres;
pub mod projector;
mod sql;
pub mod sqlite;

#[cfg(test)]
mod tests;

pub use projector::{Feed, Projector};

/// What can be asked. Every answer is taken from one snapshot and says how far the journal had been
/// folded in then.
pub trait Book: Send + Sync {
    /// The position up to which the book is true, as far as this process knows.
    fn position(&self) -> u64;

    /// Waits until the book has reached `position`, until `deadline` at most; says whether it has.
    fn wait_for(&self, position: u64, deadline: Instant) -> BoxFuture<'_, bool>;

    /// A page of claims.
    fn claims(&self, query: ClaimsQuery) -> BoxFuture<'_, Result<Page, BookError>>;

    /// Totals.
    fn totals(&self, query: TotalsQuery) -> BoxFuture<'_, Result<Totals, BookError>>;

    /// All totals, for comparing them with the journal, and the position they are true at. Takes time
    /// in proportion to their number.
    fn cube(&self) -> BoxFuture<'_, Result<(u64, Cube), BookError>>;
}

/// Why a question is not answered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BookError {
    /// It takes longer than [`BOOK_QUERY_TIMEOUT`](crate::limits::BOOK_QUERY_TIMEOUT); a narrower one
    /// may not.
    #[error("the query takes too long")]
    TooSlow,
    /// The answer has more than [`TOTALS_ROWS_MAX`](crate::limits::TOTALS_ROWS_MAX) rows; fewer days or
    /// a coarser grouping have fewer.
    #[error("the answer has too many rows")]
    TooManyRows,
    /// Too many questions are being answered; ask again.
    #[error("the book is answering too many queries")]
    Overloaded,
    /// The book cannot be read now. The text is for the log.
    #[error("the book cannot be read: {0}")]
    Unavailable(String),
}

/// Whose claims are seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of one retailer, whoever submitted them.
    Retailer(Uscc),
    /// Those one platform submitted.
    Platform {
        /// The platform's name.
        name: Arc<str>,
        /// For these retailers only; `None` for all.
        retailers: Option<Vec<Uscc>>,
    },
    /// Those of a regulator.
    Regulator {
        /// In these regions and what lies in them; `None` for all.
        regions: Option<Vec<RegionCode>>,
    },
}

/// Which claims to list, newest first. What is `None` does not restrict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimsQuery {
    /// Whose claims are seen.
    pub scope: Scope,
    /// Those of this order number, whatever the retailer. Looked up by a key that two numbers can share:
    /// see [`batch::order_key`].
    pub order_no: Option<Reference>,
    /// Those of the device with this serial number, whatever the manufacturer. Looked up by a key that
    /// two numbers can share: see [`batch::sn_key`].
    pub sn: Option<SerialNumber>,
    /// Those in this status.
    pub status: Option<Status>,
    /// Those made on this day or later.
    pub from: Option<Day>,
    /// Those made on this day or earlier.
    pub to: Option<Day>,
    /// Those of this category.
    pub category: Option<Category>,
    /// Those of this region and what lies in it.
    pub region_code: Option<RegionCode>,
    /// Those of this retailer.
    pub retailer: Option<Uscc>,
    /// Those made before the entry at this position: [`Page::next`] of the page before.
    pub before: Option<u64>,
    /// How many at most; never more than [`PAGE_ITEMS_MAX`](crate::limits::PAGE_ITEMS_MAX).
    pub limit: usize,
}

impl ClaimsQuery {
    /// The newest claims seen by `scope`.
    pub fn all(scope: Scope, limit: usize) -> Self {
        Self {
            scope,
            order_no: None,
            sn: None,
            status: None,
            from: None,
            to: None,
            category: None,
            region_code: None,
            retailer: None,
            before: None,
            limit,
        }
    }
}

/// A claim, by journal entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimPointer {
    /// The position of the entry that made it.
    pub made: u64,
    /// The position of its last entry up to the page's `as_of`.
    pub last: u64,
}

/// A page of claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The claims, newest first.
    pub items: Vec<ClaimPointer>,
    /// What [`ClaimsQuery::before`] gets the following page; `None` on the last one.
    pub next: Option<u64>,
    /// The journal position this is true at.
    pub as_of: u64,
}

/// Which day a total belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Basis {
    /// The day of the entry that moved it.
    #[default]
    Day,
    /// The day of the sale.
    Sale,
}

impl Basis {
    /// The basis called `name` on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "day" => Some(Self::Day),
            "sale" => Some(Self::Sale),
            _ => None,
        }
    }
}

/// What totals can be grouped by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Dimension {
    /// The day, by the basis asked for.
    Day,
    /// The city of the claim's region; the region itself where it is a province.
    City,
    /// The category.
    Category,
    /// The retailer.
    Retailer,
    /// The programme.
    Programme,
    /// The fund.
    Fund,
}

impl Dimension {
    /// Every dimension, in the order in which rows are sorted.
    pub const ALL: [Self; 6] =
        [Self::Day, Self::City, Self::Category, Self::Retailer, Self::Programme, Self::Fund];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::City => "city",
            Self::Category => "category",
            Self::Retailer => "retailer",
            Self::Programme => "programme",
            Self::Fund => "fund",
        }
    }

    /// The dimension called `name` on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dimension| dimension.name() == name)
    }
}

/// Which totals to add up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TotalsQuery {
    /// Of these regions and what lies in them; `None` for all.
    pub regions: Option<Vec<RegionCode>>,
    /// From this day on, by the basis.
    pub from: Option<Day>,
    /// Up to this day, by the basis.
    pub to: Option<Day>,
    /// What makes the day.
    pub basis: Basis,
    /// One row for each combination of these; none for a single row.
    pub group_by: BTreeSet<Dimension>,
}

/// What a row of totals is about; what it is not grouped by is `None`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Group {
    /// The day.
    pub day: Option<Day>,
    /// The city.
    pub city: Option<RegionCode>,
    /// The category.
    pub category: Option<Category>,
    /// The retailer.
    pub retailer: Option<Uscc>,
    /// The programme.
    pub programme: Option<ProgrammeId>,
    /// The fund.
    pub fund: Option<FundId>,
}

/// Totals at a position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Ascending by group. A query without grouping has one row, of zeros where nothing counts.
    pub rows: Vec<(Group, Counters)>,
    /// The journal position this is true at.
    pub as_of: u64,
}
