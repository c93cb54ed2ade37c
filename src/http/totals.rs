//! Totals: what was held, redeemed and returned, added up as regulators ask.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Query, Readable, Regulator};
use super::json::{self, Node, Reader, Wrong};
use super::problem::Problem;
use super::{App, Reply};
use crate::auth;
use crate::book::cube::{Counters, Tally};
use crate::book::{Basis, Dimension, Group, TotalsQuery};
use crate::limits;
use crate::time::Day;

const BASES: &[(&str, Basis)] = &[("day", Basis::Day), ("sale", Basis::Sale)];

/// Which totals.
#[derive(Debug)]
pub struct Wanted {
    from: Option<Day>,
    to: Option<Day>,
    basis: Basis,
    group_by: BTreeSet<Dimension>,
}

impl Readable for Wanted {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let (from, to) = json::days(reader);
        Some(Self {
            from,
            to,
            basis: reader.optional("basis", json::one_of(BASES)).unwrap_or_default(),
            group_by: reader.optional("group_by", dimensions).unwrap_or_default(),
        })
    }
}

/// Names of dimensions, separated by commas, each at most once.
fn dimensions(node: &Node<'_>) -> Result<BTreeSet<Dimension>, Wrong> {
    let mut dimensions = BTreeSet::new();
    for name in json::string(node)?.split(',') {
        if !Dimension::parse(name).is_some_and(|dimension| dimensions.insert(dimension)) {
            let names = Dimension::ALL.map(Dimension::name);
            return Err(Wrong::with_texts(
                "not-one-of",
                format!("Name each of these at most once, separated by commas: {}.", names.join(", ")),
                format!("请以逗号分隔，每项至多一次：{}。", names.join("、")),
            ));
        }
    }
    Ok(dimensions)
}

/// Totals at a position of the journal.
#[derive(Debug, Serialize, ToSchema)]
pub struct Totals {
    /// One row for each combination of what is grouped by, in that order; one row where nothing is.
    items: Vec<Row>,
    /// The journal position this is true at.
    as_of: u64,
}

/// A row of totals. What is not grouped by is absent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TotalsRow)]
struct Row {
    /// The day, of the entry or of the sale.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = Date, example = "2026-11-23")]
    day: Option<String>,
    /// The city of the claim's region; the region itself where it is a province.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "330100")]
    city: Option<String>,
    /// The category.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "smart_glasses")]
    category: Option<String>,
    /// The retailer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "91330100799655058B")]
    retailer: Option<String>,
    /// The programme.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "zj-ai-25")]
    programme: Option<String>,
    /// The fund.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "zj-ai-25.330100")]
    fund: Option<String>,
    /// Holds made minus holds ended: over all days, what is held now.
    held: Count,
    /// Claims redeemed, including those returned or cancelled later.
    redeemed: Count,
    /// Redeemed claims returned.
    returned: Count,
    /// Redeemed claims cancelled.
    cancelled: Count,
    /// Redeemed − returned − cancelled.
    net: Count,
    /// Prices of what was redeemed minus prices of what was returned or cancelled, in yuan.
    #[schema(example = "4000.00")]
    sales: String,
}

/// A number of items and their subsidies.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TotalsCount)]
struct Count {
    /// How many.
    #[schema(example = 1)]
    items: i64,
    /// Their subsidies, in yuan.
    #[schema(example = "600.00")]
    subsidy: String,
}

impl From<Tally> for Count {
    fn from(tally: Tally) -> Self {
        Self { items: tally.items, subsidy: tally.money.to_string() }
    }
}

impl Row {
    /// # Errors
    /// Where a difference does not fit, which no journal comes to.
    fn new((group, counters): (Group, Counters)) -> Result<Self, Problem> {
        let net = counters.net().ok_or_else(|| Problem::internal("totals are out of range"))?;
        Ok(Self {
            day: group.day.map(|day| day.to_string()),
            city: group.city.map(|city| city.to_string()),
            category: group.category.map(|category| category.to_string()),
            retailer: group.retailer.map(|retailer| retailer.to_string()),
            programme: group.programme.map(|programme| programme.to_string()),
            fund: group.fund.map(|fund| fund.to_string()),
            held: counters.held.into(),
            redeemed: counters.redeemed.into(),
            returned: counters.returned.into(),
            cancelled: counters.cancelled.into(),
            net: net.into(),
            sales: counters.sales.to_string(),
        })
    }
}

/// Adds up what the officer may see, once the book has caught up with the journal or a second has passed.
async fn added_up(app: &App, wanted: Wanted, officer: &auth::Regulator) -> Result<Totals, Problem> {
    let arrived_at = app.ledger.look().await?;
    app.book.wait_for(arrived_at, Instant::now() + limits::BOOK_WAIT).await;
    let Wanted { from, to, basis, group_by } = wanted;
    let query = TotalsQuery { regions: officer.regions.clone(), from, to, basis, group_by };
    let totals = app.book.totals(query).await?;
    let items = totals.rows.into_iter().map(Row::new).collect::<Result<_, _>>()?;
    Ok(Totals { items, as_of: totals.as_of })
}

/// Totals
///
/// Items and money of the officer's regions, over the days from `from` to `to` and by whatever is named
/// in `group_by`. True at the journal position `as_of`.
#[utoipa::path(get, path = "/v1/totals", tag = "Totals and journal", params(
    ("from" = Option<String>, Query, description = "First day, such as 2026-11-01"),
    ("to" = Option<String>, Query, description = "Last day"),
    ("basis" = Option<String>, Query, description = "What makes the day: day, that of the entry (where absent), or sale"),
    ("group_by" = Option<String>, Query, description = "Any of day, city, category, retailer, programme, fund, separated by commas"),
), responses(
    (status = 200, description = "The totals", body = Totals),
))]
pub async fn totals(call: Call<Regulator, Query<Wanted>>) -> Result<Reply, Problem> {
    let totals = added_up(&call.app, call.body.0, &call.role.0).await?;
    Reply::ok(&totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_named_once_each() {
        let read = |text| json::query(text, |reader| reader.required("group_by", dimensions));
        assert_eq!(read("group_by=city,day").unwrap().len(), 2);
        for bad in ["group_by=", "group_by=day,day", "group_by=day,", "group_by=week"] {
            assert_eq!(read(bad).unwrap_err()[0].wrong.code, "not-one-of", "{bad}");
        }
    }
}
