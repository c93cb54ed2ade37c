//! Funds: regulators set money aside, change it, and stop or allow new claims on it.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Json, Keyed, Query, Readable, Regulator};
use super::json::{self, Node, Reader, Wrong};
use super::page::{self, Listing, PageWanted};
use super::problem::{Code, Problem};
use super::{App, Reply, sale};
use crate::auth;
use crate::claim::{AdjustReason, FundId};
use crate::identity::{IdempotencyKey, Reference, RegionCode};
use crate::ledger::command::{AdjustFund, FundView, OpenFund};
use crate::ledger::entry::Event;
use crate::ledger::{Command, Outcome};
use crate::money::Fen;
use crate::programme::ProgrammeId;
use crate::time::Day;

const REASONS: &[(&str, AdjustReason)] = &[
    ("tranche", AdjustReason::Tranche),
    ("transfer", AdjustReason::Transfer),
    ("correction", AdjustReason::Correction),
    ("reclaim", AdjustReason::Reclaim),
];

// --- What callers say ---

/// A fund to open.
#[derive(Debug, ToSchema)]
#[schema(as = FundOpening)]
pub struct Opening {
    /// Its id: 1 to 64 letters, digits, dots, underscores and hyphens.
    #[schema(value_type = String, example = "zj-ai-25.330100")]
    fund_id: FundId,
    /// The programme it pays for.
    #[schema(value_type = String, example = "zj-ai-25")]
    programme: ProgrammeId,
    /// Where it pays (GB/T 2260): a province, city or county and all below it.
    #[schema(value_type = String, example = "330100")]
    region_code: RegionCode,
    /// First day of the sales it pays for.
    #[schema(value_type = String, format = Date, example = "2025-05-31")]
    from: Day,
    /// Last day of the sales it pays for.
    #[schema(value_type = String, format = Date, example = "2027-12-31")]
    to: Day,
    /// The money, in yuan.
    #[schema(value_type = String, pattern = r"^(0|[1-9]\d{0,12})(\.\d{1,2})?$", example = "1000000.00")]
    budget: Fen,
}

impl Readable for Opening {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        const ENDS_BEFORE: Wrong = Wrong::new(
            "ends-before-it-begins",
            "The last day lies before the first.",
            "结束日期早于开始日期。",
        );
        let fund_id = reader.required("fund_id", fund_id);
        let programme = reader.required("programme", sale::programme);
        let region_code = reader.required("region_code", json::text(RegionCode::parse));
        let from = reader.required("from", json::day);
        let to = reader.required("to", json::day);
        let budget = reader.required("budget", json::budget);
        if from.zip(to).is_some_and(|(from, to)| to < from) {
            reader.refuse("to", ENDS_BEFORE);
        }
        Some(Self {
            fund_id: fund_id?,
            programme: programme?,
            region_code: region_code?,
            from: from?,
            to: to?,
            budget: budget?,
        })
    }
}

impl Opening {
    /// # Errors
    /// `forbidden` for a region that is not the officer's.
    fn command(self, app: &App, officer: &auth::Regulator, key: &IdempotencyKey) -> Result<Command, Problem> {
        if !officer.covers(self.region_code) {
            return Err(Code::Forbidden.into());
        }
        let keys = app.ledger.published().keys;
        let fingerprint = keys.officer_content(&[
            b"open",
            self.fund_id.as_str().as_bytes(),
            self.programme.as_str().as_bytes(),
            self.region_code.as_bytes(),
            &self.from.number().to_be_bytes(),
            &self.to.number().to_be_bytes(),
            &self.budget.get().to_be_bytes(),
        ]);
        Ok(Command::OpenFund(Box::new(OpenFund {
            fund_id: self.fund_id,
            programme: self.programme,
            region_code: self.region_code,
            from: self.from,
            to: self.to,
            budget: self.budget,
            by: Arc::clone(&officer.officer),
            request: keys.officer_request(&officer.officer, key.as_str()),
            fingerprint,
        })))
    }
}

/// A change of a fund's budget.
#[derive(Debug, ToSchema)]
#[schema(as = FundAdjustment)]
pub struct Adjustment {
    /// What is added, in yuan, or taken where it is negative.
    #[schema(value_type = String, pattern = r"^-?(0|[1-9]\d{0,12})(\.\d{1,2})?$", example = "-5000.00")]
    delta: Fen,
    /// Why.
    reason: AdjustReason,
    /// The document that orders it: 1 to 64 visible characters.
    #[schema(value_type = String, example = "浙财建〔2026〕12号")]
    document_no: Reference,
}

impl Readable for Adjustment {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let delta = reader.required("delta", json::change);
        let reason = reader.required("reason", json::one_of(REASONS));
        let document_no = reader.required("document_no", json::text(Reference::parse));
        Some(Self { delta: delta?, reason: reason?, document_no: document_no? })
    }
}

impl Adjustment {
    fn command(self, app: &App, fund_id: FundId, officer: &auth::Regulator, key: &IdempotencyKey) -> Command {
        let keys = app.ledger.published().keys;
        let reason = REASONS.iter().find(|(_, reason)| *reason == self.reason).map_or("", |(name, _)| name);
        let fingerprint = keys.officer_content(&[
            b"adjust",
            fund_id.as_str().as_bytes(),
            &self.delta.get().to_be_bytes(),
            reason.as_bytes(),
            self.document_no.as_str().as_bytes(),
        ]);
        Command::AdjustFund(Box::new(AdjustFund {
            fund_id,
            delta: self.delta,
            reason: self.reason,
            document_no: self.document_no,
            by: Arc::clone(&officer.officer),
            regions: officer.regions.clone(),
            request: keys.officer_request(&officer.officer, key.as_str()),
            fingerprint,
        }))
    }
}

/// Nothing: an object without members, or no body at all.
#[derive(Debug, ToSchema)]
pub struct Empty {}

impl Readable for Empty {
    const MAY_BE_EMPTY: bool = true;

    fn read(_: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        Some(Self {})
    }
}

impl Readable for PageWanted {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        Some(Self::read(reader))
    }
}

fn fund_id(node: &Node<'_>) -> Result<FundId, Wrong> {
    const MALFORMED: Wrong = Wrong::new(
        "fund-id-malformed",
        "A fund's id has 1 to 64 letters, digits, dots, underscores and hyphens, and begins with a letter or digit.",
        "资金池编号应为1至64位字母、数字、点、下划线或连字符，且以字母或数字开头。",
    );
    FundId::parse(json::string(node)?).ok_or(MALFORMED)
}

// --- What is answered ---

/// A fund as it stands. Money is in yuan.
#[derive(Debug, Serialize, ToSchema)]
pub struct Fund {
    /// Its id.
    #[schema(value_type = String, example = "zj-ai-25.330100")]
    fund_id: FundId,
    /// The programme it pays for.
    #[schema(value_type = String, example = "zj-ai-25")]
    programme: ProgrammeId,
    /// Where it pays.
    #[schema(value_type = String, example = "330100")]
    region_code: RegionCode,
    /// First day of the sales it pays for.
    #[schema(format = Date, example = "2025-05-31")]
    from: String,
    /// Last day of the sales it pays for.
    #[schema(format = Date, example = "2027-12-31")]
    to: String,
    /// What was set aside.
    #[schema(example = "1000000.00")]
    budget: String,
    /// Reserved by live holds.
    #[schema(example = "600.00")]
    held: String,
    /// Due for redeemed claims.
    #[schema(example = "1200.00")]
    redeemed: String,
    /// What new claims can still get: budget − held − redeemed.
    #[schema(example = "998200.00")]
    remaining: String,
    /// `open`, or `frozen` while new claims are stopped.
    #[schema(example = "open")]
    state: &'static str,
}

impl From<FundView> for Fund {
    fn from(fund: FundView) -> Self {
        let balance = fund.balance;
        let used = balance.held.checked_add(balance.redeemed);
        let remaining = used.and_then(|used| balance.budget.checked_sub(used));
        Self {
            fund_id: fund.fund_id,
            programme: fund.programme,
            region_code: fund.region_code,
            from: fund.from.to_string(),
            to: fund.to.to_string(),
            budget: balance.budget.to_string(),
            held: balance.held.to_string(),
            redeemed: balance.redeemed.to_string(),
            // A fund is never below zero, so there is always something to show.
            remaining: remaining.unwrap_or_default().to_string(),
            state: if balance.frozen { "frozen" } else { "open" },
        }
    }
}

/// Puts a command about one fund to the ledger: the fund, and whether this repeats an answer.
async fn settled(app: &App, command: Command) -> Result<(Fund, bool), Problem> {
    match app.ledger.submit(command).await? {
        Outcome::Fund(fund) => Ok((fund.into(), false)),
        Outcome::FundReplay(position) => Ok((replayed(app, position).await?.into(), true)),
        _ => Err(Problem::internal("the ledger did not answer with a fund")),
    }
}

/// The fund as it was answered when the entry at `position` was made.
async fn replayed(app: &App, position: u64) -> Result<FundView, Problem> {
    let stored = app.ledger.stored(position).await?;
    let adjusted = match &stored.entry.event {
        Event::FundOpened(opened) => return Ok(FundView::opened(opened)),
        Event::FundAdjusted(adjusted) => adjusted,
        _ => return Err(Problem::internal("an entry that is not about a fund")),
    };
    match app.ledger.submit(Command::Fund(adjusted.fund_id.clone())).await? {
        Outcome::Fund(fund) => Ok(FundView { balance: adjusted.after, ..fund }),
        _ => Err(Problem::internal("the ledger did not answer with a fund")),
    }
}

/// The fund of this id, if the officer may see it.
async fn visible(app: &App, fund_id: FundId, officer: &auth::Regulator) -> Result<Fund, Problem> {
    match app.ledger.submit(Command::Fund(fund_id)).await? {
        Outcome::Fund(fund) if officer.covers(fund.region_code) => Ok(fund.into()),
        _ => Err(Code::FundNotFound.into()),
    }
}

/// The funds that the officer may see.
async fn all_visible(
    app: &App,
    wanted: &PageWanted,
    officer: &auth::Regulator,
) -> Result<Listing<Fund>, Problem> {
    let Outcome::Funds { funds, position } = app.ledger.submit(Command::Funds).await? else {
        return Err(Problem::internal("the ledger did not answer with funds"));
    };
    let visible = funds.into_iter().filter(|fund| officer.covers(fund.region_code));
    let bound = format!("funds {} {:?}", officer.officer, officer.regions);
    page::of_all(visible, |fund| fund.fund_id.as_str(), Fund::from, wanted, &app.hash_keys, &bound, position)
}

async fn switched(call: Call<Regulator, Json<Empty>>, frozen: bool) -> Result<Reply, Problem> {
    let auth::Regulator { officer, regions } = call.role.0.clone();
    let command = Command::SwitchFund { fund_id: call.fund_id()?, frozen, by: officer, regions };
    let (fund, _) = settled(&call.app, command).await?;
    Reply::ok(&fund)
}

// --- Handlers ---

/// Open a fund
///
/// Sets money aside for one programme, region and period. Two funds of one programme and region may not
/// have days in common.
#[utoipa::path(post, path = "/v1/funds", tag = "Funds", request_body = Opening, responses(
    (status = 201, description = "The fund", body = Fund),
))]
pub async fn open(call: Call<Regulator, Keyed<Opening>>) -> Result<Reply, Problem> {
    let Keyed { key, body } = call.body;
    let command = body.command(&call.app, &call.role.0, &key)?;
    let (fund, replayed) = settled(&call.app, command).await?;
    Ok(Reply::created(&fund)?.replayed(replayed))
}

/// List funds
///
/// Those in the officer's regions, by id.
#[utoipa::path(get, path = "/v1/funds", tag = "Funds", params(
    ("limit" = Option<u32>, Query, description = "Items on the page: 1 to 200, 50 where absent"),
    ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
), responses(
    (status = 200, description = "A page of funds", body = Listing<Fund>),
))]
pub async fn list(call: Call<Regulator, Query<PageWanted>>) -> Result<Reply, Problem> {
    let funds = all_visible(&call.app, &call.body.0, &call.role.0).await?;
    Reply::ok(&funds)
}

/// Read a fund
///
/// As it stands in the ledger.
#[utoipa::path(get, path = "/v1/funds/{id}", tag = "Funds", params(
    ("id" = String, Path, description = "The fund's id"),
), responses(
    (status = 200, description = "The fund", body = Fund),
))]
pub async fn read(call: Call<Regulator>) -> Result<Reply, Problem> {
    let fund = visible(&call.app, call.fund_id()?, &call.role.0).await?;
    Reply::ok(&fund)
}

/// Adjust a fund's budget
///
/// Adds to it or takes from it, never below what is held and redeemed.
#[utoipa::path(post, path = "/v1/funds/{id}/adjust", tag = "Funds", params(
    ("id" = String, Path, description = "The fund's id"),
), request_body = Adjustment, responses(
    (status = 200, description = "The fund", body = Fund),
))]
pub async fn adjust(call: Call<Regulator, Keyed<Adjustment>>) -> Result<Reply, Problem> {
    let fund_id = call.fund_id()?;
    let Keyed { key, body } = call.body;
    let (fund, replayed) = settled(&call.app, body.command(&call.app, fund_id, &call.role.0, &key)).await?;
    Ok(Reply::ok(&fund)?.replayed(replayed))
}

/// Freeze a fund
///
/// Stops new claims; holds, returns and cancellations go on. Freezing a frozen fund changes nothing.
#[utoipa::path(post, path = "/v1/funds/{id}/freeze", tag = "Funds", params(
    ("id" = String, Path, description = "The fund's id"),
), request_body = Empty, responses(
    (status = 200, description = "The fund", body = Fund),
))]
pub async fn freeze(call: Call<Regulator, Json<Empty>>) -> Result<Reply, Problem> {
    switched(call, true).await
}

/// Unfreeze a fund
///
/// Allows new claims again. Unfreezing an open fund changes nothing.
#[utoipa::path(post, path = "/v1/funds/{id}/unfreeze", tag = "Funds", params(
    ("id" = String, Path, description = "The fund's id"),
), request_body = Empty, responses(
    (status = 200, description = "The fund", body = Fund),
))]
pub async fn unfreeze(call: Call<Regulator, Json<Empty>>) -> Result<Reply, Problem> {
    switched(call, false).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Readable>(json: &str) -> Result<T, Vec<(String, &'static str)>> {
        let today = Day::parse("2026-11-23").unwrap();
        json::body(json.as_bytes(), |reader| T::read(reader, today))
            .map_err(|faults| faults.into_iter().map(|fault| (fault.pointer, fault.wrong.code)).collect())
    }

    #[test]
    fn a_fund_may_hold_thirteen_digits_of_yuan_and_must_end_after_it_begins() {
        let json = |budget: &str, to: &str| {
            format!(
                r#"{{"fund_id":"f","programme":"zj-ai-25","region_code":"330100","from":"2026-01-01","to":"{to}","budget":"{budget}"}}"#
            )
        };
        let opening = read::<Opening>(&json("9999999999999.99", "2026-01-01")).unwrap();
        assert_eq!(opening.budget, Fen::new(999_999_999_999_999));
        assert_eq!(
            read::<Opening>(&json("10000000000000", "2025-12-31")).unwrap_err(),
            [("/budget".to_owned(), "amount-malformed"), ("/to".to_owned(), "ends-before-it-begins")]
        );
    }

    #[test]
    fn an_adjustment_names_a_coded_reason() {
        let json = |reason: &str| format!(r#"{{"delta":"-1.00","reason":"{reason}","document_no":"D1"}}"#);
        assert_eq!(read::<Adjustment>(&json("reclaim")).unwrap().delta, Fen::new(-100));
        assert_eq!(read::<Adjustment>(&json("because")).unwrap_err(), [("/reason".to_owned(), "not-one-of")]);
    }
}
