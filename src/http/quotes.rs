//! Quotes: what a claim would get, without making it.

use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Hearer, Json, Submitting};
use super::prepare::Preparation;
use super::problem::{Problem, ProblemBody};
use super::sale::SaleBody;
use super::wire::{Determination, Text};
use super::{App, Reply};
use crate::claim::Submitter;
use crate::ledger::Refusal;
use crate::ledger::command::{Command, Outcome, Quoted};
use crate::money::Fen;

/// What a claim would get.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quote)]
struct Quotation<'a> {
    /// Whether a claim would be made.
    eligible: bool,
    /// What would be paid, in yuan; `0.00` where nothing would.
    #[schema(value_type = String, example = "600.00")]
    subsidy: Text<Fen>,
    /// What the consumer would pay, in yuan.
    #[schema(value_type = String, example = "3400.00")]
    payable: Text<Fen>,
    /// The programme that would pay.
    #[schema(required = true, example = "zj-ai-25")]
    programme: Option<&'a str>,
    /// How the programmes judged; null where none came into question.
    #[schema(required = true)]
    determination: Option<Determination<'a>>,
    /// The problem that a claim would get.
    #[schema(required = true)]
    refusal: Option<ProblemBody<'a>>,
}

/// Answers with what would be paid for an item of this price.
fn reply(price: Fen, quoted: &Quoted, hearer: &Hearer) -> Result<Reply, Problem> {
    let problem = quoted.refusal.clone().map(Problem::from);
    let considered = match &quoted.refusal {
        Some(Refusal::Policy(refused)) => refused.considered(),
        _ => &[],
    };
    let judged = quoted.determination.as_ref();
    let chosen = judged.filter(|_| problem.is_none()).map(|determination| determination.chosen());
    let subsidy = chosen.map_or(Fen::ZERO, |chosen| chosen.amount);
    Reply::ok(&Quotation {
        eligible: chosen.is_some(),
        subsidy: Text(subsidy),
        payable: Text(price.checked_sub(subsidy).unwrap_or(price)),
        programme: chosen.map(|chosen| chosen.programme.id.as_str()),
        determination: judged.map(Determination::new).or_else(|| Determination::without_choice(considered)),
        refusal: problem.as_ref().map(|problem| problem.body(hearer.language, hearer.request_id.as_str())),
    })
}

fn command(app: &App, by: &Submitter, sale: SaleBody) -> Command {
    let published = app.ledger.published();
    let preparation = Preparation { published: &published, hash_keys: &app.hash_keys };
    Command::Quote(Box::new(preparation.quote(by, sale)))
}

/// Ask for a quote
///
/// What a claim would get now, judged by the rules and, as far as fund, person and device are given, by
/// their state. Whether the time of the sale is near enough for a claim does not count. Changes nothing.
#[utoipa::path(post, path = "/v1/quotes", tag = "Claims", request_body = SaleBody, responses(
    (status = 200, description = "The quote", body = Quotation),
))]
pub async fn quote(call: Call<Submitting, Json<SaleBody>>) -> Result<Reply, Problem> {
    let Call { app, role: Submitting(by), body: Json(sale), hearer, .. } = call;
    let price = sale.price;
    match app.ledger.submit(command(&app, &by, sale)).await? {
        Outcome::Quote(quoted) => reply(price, &quoted, &hearer),
        _ => Err(Problem::internal("the outcome is of another kind than the command")),
    }
}
