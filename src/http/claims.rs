//! Claims: making, reading, redeeming, releasing, returning and cancelling them.

use std::time::Instant;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use futures_util::future;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Body, Call, Json, Keyed, Query, Readable, Submitting, Viewer};
use super::funds::Empty;
use super::json::{self, Fault, Place, Reader, Wrong};
use super::page::{self, Listing, PageWanted};
use super::prepare::Preparation;
use super::problem::{Code, Problem, ProblemBody};
use super::sale::{self, ClaimBody};
use super::wire::{Cancellation, CancellationOutcome, Claim};
use super::{App, Reply, note};
use crate::book::ClaimsQuery;
use crate::bytes::Shown as _;
use crate::claim::{ClaimId, Device, ReturnReason, Status, Submitter};
use crate::identity::{IdempotencyKey, Reference, RegionCode, SerialNumber, Uscc};
use crate::ledger::command::{CancelOutcome, Draft};
use crate::ledger::{ClaimAt, ClaimView, Command, Outcome, Refusal};
use crate::limits;
use crate::programme::Category;
use crate::shield::{Mark, Marked};
use crate::time::{Day, Timestamp};

const RETURN_REASONS: &[(&str, ReturnReason)] = &[
    ("unwanted", ReturnReason::Unwanted),
    ("defective", ReturnReason::Defective),
    ("wrong_item", ReturnReason::WrongItem),
    ("other", ReturnReason::Other),
];

// --- What callers say ---

/// The redemption of a hold.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = RedeemRequest)]
pub struct RedeemBody {
    /// The device; required where the hold had none.
    #[schema(value_type = Option<sale::DeviceDescribed>)]
    device: Option<Device>,
    /// The invoice; takes the place of one that the hold was made with.
    #[schema(value_type = Option<String>)]
    invoice_no: Option<Reference>,
}

impl Readable for RedeemBody {
    const MAY_BE_EMPTY: bool = true;

    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let device = reader.optional_object("device", sale::device);
        let invoice_no = reader.optional("invoice_no", json::text(Reference::parse));
        Some(Self { device, invoice_no })
    }
}

impl RedeemBody {
    /// Refuses a hold that has another device than this names. The ledger cannot tell: it keeps what a device is
    /// known by, which another barcode of its manufacturer does not change. A hold keeps the device that it was
    /// made with, so that nothing comes in between.
    fn check_device(&self, claim: &ClaimView) -> Result<(), Refusal> {
        let status = claim.status();
        let is_bound = status == Status::Held && claim.device().is_some();
        if is_bound && !self.agrees_on_device(claim) {
            return Err(Refusal::ClaimStateConflict { status });
        }
        Ok(())
    }

    fn agrees_on_device(&self, claim: &ClaimView) -> bool {
        let same_device = |ours: &Device, theirs: &Device| {
            let (ours_imei, theirs_imei) = (sale::sorted(&ours.imei), sale::sorted(&theirs.imei));
            ours.sn == theirs.sn && ours.barcode == theirs.barcode && ours_imei == theirs_imei
        };
        let device = self.device.as_ref();
        device.is_none_or(|ours| claim.device().is_some_and(|theirs| same_device(ours, theirs)))
    }

    /// Whether a redeemed claim has what this says; what is left out is as the claim has it.
    fn agrees_with(&self, claim: &ClaimView) -> bool {
        self.agrees_on_device(claim)
            && self.invoice_no.as_ref().is_none_or(|invoice| claim.invoice_no() == Some(invoice))
    }
}

/// The return of goods.
#[derive(Clone, Copy, Debug, ToSchema)]
#[schema(as = ReturnRequest)]
pub struct ReturnBody {
    /// Why they came back.
    reason: ReturnReason,
    /// When they did: not before the sale, and at most 5 minutes ahead.
    #[schema(value_type = String, format = DateTime)]
    returned_at: Timestamp,
}

impl Readable for ReturnBody {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let reason = reader.required("reason", json::one_of(RETURN_REASONS));
        let returned_at = reader.required("returned_at", json::instant);
        Some(Self { reason: reason?, returned_at: returned_at? })
    }
}

impl ReturnBody {
    /// Refuses a time that cannot be that of the claim's return.
    fn check_time(&self, claim: &ClaimView, now: Timestamp) -> Result<(), Fault> {
        const BEFORE_SALE: Wrong = Wrong::new(
            "before-sale",
            "The goods cannot have come back before they were sold.",
            "退货时间不得早于销售时间。",
        );
        const AHEAD: Wrong = Wrong::new(
            "too-far-ahead",
            "This lies more than 5 minutes ahead of the service's clock.",
            "此时间晚于服务时钟5分钟以上。",
        );
        let wrong = if self.returned_at < claim.made().sale.sold_at {
            BEFORE_SALE
        } else if self.returned_at > now.plus_ms(limits::SOLD_AT_AHEAD_MS) {
            AHEAD
        } else {
            return Ok(());
        };
        Err(Fault { pointer: "/returned_at".to_owned(), wrong })
    }

    /// Whether a returned claim came back for this reason. The time is not compared, so that a till may
    /// send its own again.
    fn agrees_with(&self, claim: &ClaimView) -> bool {
        claim.moves().last().and_then(|moved| moved.reason) == Some(self.reason)
    }
}

/// The cancellation of whatever a key stands for.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = CancelRequest)]
pub struct CancelBody {
    /// The key of the request whose answer was lost.
    #[schema(value_type = String)]
    idempotency_key: IdempotencyKey,
}

impl Readable for CancelBody {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let idempotency_key = reader.required("idempotency_key", json::text(IdempotencyKey::parse));
        Some(Self { idempotency_key: idempotency_key? })
    }
}

/// Many claims, each on its own.
#[derive(Debug, ToSchema)]
#[schema(as = BatchRequest)]
pub struct Batch {
    /// The claims.
    #[schema(value_type = Vec<BatchItem>, min_items = 1, max_items = 500)]
    items: Vec<Result<BatchItem, Vec<Fault>>>,
}

/// One claim of a batch.
#[derive(Debug, ToSchema)]
struct BatchItem {
    /// Names the claim's request, as the `Idempotency-Key` header does for a single one.
    #[schema(value_type = String)]
    idempotency_key: IdempotencyKey,
    /// The claim.
    claim: ClaimBody,
}

impl Body for Batch {
    const BYTES_MAX: usize = limits::BATCH_BODY_BYTES_MAX;
    const COSTS_ITEMS: bool = true;

    fn read(request: &HttpRequest, bytes: &[u8], today: Day) -> Result<Self, Problem> {
        const KEYS_ARE_INSIDE: Wrong = Wrong::new(
            "not-on-a-batch",
            "A batch has no key of its own; each of its items has one.",
            "批量请求不使用此请求头，每项各自携带幂等键。",
        );
        <() as Body>::read(request, bytes, today)?;
        if request.headers().contains_key("idempotency-key") {
            return Err(Problem::fault("/header/Idempotency-Key", KEYS_ARE_INSIDE));
        }
        Ok(json::body(bytes, |reader| Self::read_envelope(reader, today))?)
    }

    #[cfg(test)]
    fn asked() -> Vec<json::Asked> {
        json::asked_by(|reader| Self::read_envelope(reader, Day::from_number(20_000)))
    }

    fn items(&self) -> usize {
        self.items.len()
    }
}

impl Batch {
    fn read_envelope(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self> {
        const NO_ITEMS: Wrong =
            Wrong::new("too-few-items", "At least one item must stand here.", "至少包含一项。");
        let items: Vec<_> =
            reader.array("items", limits::BATCH_ITEMS_MAX, |place| BatchItem::read(place, today))?;
        if items.is_empty() {
            reader.refuse("items", NO_ITEMS);
        }
        Some(Self { items })
    }
}

impl BatchItem {
    /// That an item has its two members is a matter of the envelope; what is wrong in them is the item's.
    fn read(mut place: Place<'_, '_>, today: Day) -> Option<Result<Self, Vec<Fault>>> {
        if !place.has_members(&["idempotency_key", "claim"]) {
            return None;
        }
        Some(place.apart(|place| {
            place.object(|reader| {
                let idempotency_key = reader.required("idempotency_key", json::text(IdempotencyKey::parse));
                let claim = reader.object("claim", |reader| ClaimBody::read(reader, today));
                Some(Self { idempotency_key: idempotency_key?, claim: claim? })
            })
        }))
    }

    /// What an item that cannot be read is refused with.
    fn refusal(faults: Vec<Fault>) -> Problem {
        match faults.iter().all(|fault| fault.pointer.ends_with("/idempotency_key")) {
            true => Code::IdempotencyKeyInvalid.into(),
            false => faults.into(),
        }
    }
}

/// Which claims to list.
#[derive(Debug)]
pub struct Wanted {
    order_no: Option<Reference>,
    status: Option<Status>,
    from: Option<Day>,
    to: Option<Day>,
    category: Option<Category>,
    region_code: Option<RegionCode>,
    sn: Option<SerialNumber>,
    retailer: Option<Uscc>,
    page: PageWanted,
}

impl Readable for Wanted {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let statuses = Status::ALL.map(|status| (status.name(), status));
        let (from, to) = json::days(reader);
        Some(Self {
            order_no: reader.optional("order_no", json::text(Reference::parse)),
            status: reader.optional("status", json::one_of(&statuses)),
            from,
            to,
            category: reader.optional("category", sale::category),
            region_code: reader.optional("region_code", json::text(RegionCode::parse)),
            sn: reader.optional("sn", json::text(SerialNumber::parse)),
            retailer: reader.optional("retailer", json::text(Uscc::parse)),
            page: PageWanted::read(reader),
        })
    }
}

impl Wanted {
    fn query(&self, viewer: &Viewer) -> ClaimsQuery {
        ClaimsQuery {
            order_no: self.order_no.clone(),
            sn: self.sn.clone(),
            status: self.status,
            from: self.from,
            to: self.to,
            category: self.category.clone(),
            region_code: self.region_code,
            retailer: self.retailer,
            ..ClaimsQuery::all(viewer.scope(), self.page.limit)
        }
    }

    /// Whether a claim that the book found is one of those asked for: it looks order and serial numbers
    /// up by keys that two of them can share.
    fn matches(&self, claim: &ClaimView) -> bool {
        self.order_no.as_ref().is_none_or(|order_no| claim.made().sale.order_no == *order_no)
            && self.sn.as_ref().is_none_or(|sn| claim.device().is_some_and(|device| device.sn == *sn))
    }
}

// --- What is answered ---

/// What became of a batch, in the order of its items.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchResponse)]
struct Results<'a> {
    results: Vec<ItemResult<'a>>,
}

/// What became of one claim of a batch.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchResult)]
struct ItemResult<'a> {
    /// The status it would have had on its own.
    #[schema(example = 201)]
    status: u16,
    /// The claim, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    claim: Option<Claim<'a>>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<ProblemBody<'a>>,
    /// Whether the claim was made before, and this is the answer given then.
    replayed: bool,
}

/// The core answered with something else than what it was asked.
fn unexpected() -> Problem {
    Problem::internal("the outcome is of another kind than the command")
}

/// The claim an outcome is about.
async fn claim_of(app: &App, outcome: Outcome) -> Result<(ClaimAt, ClaimView), Problem> {
    match outcome {
        Outcome::Claim(at) => {
            let view = app.ledger.view(&at).await?;
            Ok((at, view))
        }
        _ => Err(unexpected()),
    }
}

/// Answers with a claim.
fn reply(app: &App, status: StatusCode, view: &ClaimView) -> Result<Reply, Problem> {
    let published = app.ledger.published();
    let claim = Claim::new(view, &published.history).ok_or_else(|| unknown_version(view))?;
    Reply::json(status, &claim)
}

fn unknown_version(view: &ClaimView) -> Problem {
    let claim_id = view.made().claim_id;
    Problem::internal(format_args!("claim {claim_id} names a programme version that was never activated"))
}

// --- Making ---

fn draft(app: &App, by: Submitter, key: &IdempotencyKey, body: ClaimBody) -> Draft {
    let published = app.ledger.published();
    Preparation { published: &published, hash_keys: &app.hash_keys }.draft(by, key, body, rand::random())
}

/// Tells other processes that a claim is being decided, until the mark is dropped. A claim that another
/// process says it is deciding is left to it: the ledger, looked at once more, then knows the outcome or
/// tells the caller to come again.
async fn mark(app: &App, draft: &mut Draft) -> Option<Mark> {
    let keys = &draft.keys;
    // The same on every process, whichever hash key it writes under.
    let (_, fingerprint) = keys.fingerprints.iter().min_by_key(|(hash_key, _)| hash_key)?;
    match app.shield.mark(*keys.request.bytes(), *fingerprint.bytes()).await {
        Marked::Free(mark) => Some(mark),
        Marked::Twin => {
            draft.is_twin = true;
            None
        }
    }
}

/// Make a claim
///
/// Judges the sale under every programme in force, and holds or redeems what the best one pays. Nothing
/// is paid in part. The same key and content get the first answer again, with `Idempotency-Replayed`.
#[utoipa::path(post, path = "/v1/claims", tag = "Claims", request_body = ClaimBody, responses(
    (status = 201, description = "The claim", body = Claim),
))]
pub async fn make(call: Call<Submitting, Keyed<ClaimBody>>) -> Result<Reply, Problem> {
    let Call { app, role: Submitting(by), body: Keyed { key, body }, .. } = call;
    let mut draft = draft(&app, by, &key, body);
    let _mark = mark(&app, &mut draft).await;
    let outcome = app.ledger.submit(Command::Make(Box::new(draft))).await?;
    let (at, view) = claim_of(&app, outcome).await?;
    let location = ["/v1/claims/", view.made().claim_id.shown().as_str()].concat();
    Ok(reply(&app, StatusCode::CREATED, &view)?.located(location).replayed(at.unchanged))
}

/// Make many claims
///
/// Up to 500, each on its own, appended together. Results stand in the order of the items; a twin
/// within the batch is answered like its first.
#[utoipa::path(post, path = "/v1/claims/batch", tag = "Claims", request_body = Batch, responses(
    (status = 200, description = "What became of each", body = Results),
))]
pub async fn batch(call: Call<Submitting, Batch>) -> Result<Reply, Problem> {
    let Call { app, role: Submitting(by), body: Batch { items }, hearer, .. } = call;
    let mut drafts = Vec::with_capacity(items.len());
    let mut drafted: Vec<Result<(), Problem>> = Vec::with_capacity(items.len());
    for item in items {
        drafted.push(item.map_err(BatchItem::refusal).map(|item| {
            drafts.push(Box::new(draft(&app, by.clone(), &item.idempotency_key, item.claim)));
        }));
    }
    let _marks = future::join_all(drafts.iter_mut().map(|draft| mark(&app, draft))).await;
    let commands = drafts.into_iter().map(Command::Make).collect();
    let mut outcomes = app.ledger.submit_all(commands).await?.into_iter();
    let decided: Vec<Result<ClaimAt, Problem>> = drafted
        .into_iter()
        .enumerate()
        .map(|(index, drafted)| {
            drafted.and_then(|()| match outcomes.next() {
                Some(Ok(Outcome::Claim(at))) => Ok(at),
                Some(Ok(_)) => Err(unexpected()),
                Some(Err(failure)) => Err(Problem::from(failure).inside(&format!("/items/{index}/claim"))),
                None => Err(Problem::internal("fewer outcomes than commands")),
            })
        })
        .collect();
    let claims: Vec<ClaimAt> = decided.iter().filter_map(|item| item.as_ref().ok()).cloned().collect();
    let views = app.ledger.views(&claims).await?;

    let published = app.ledger.published();
    let mut views = views.iter();
    let mut results = Vec::with_capacity(decided.len());
    for item in &decided {
        results.push(match item {
            Ok(at) => {
                let view = views.next().ok_or_else(|| Problem::internal("fewer claims than answers"))?;
                let claim = Claim::new(view, &published.history).ok_or_else(|| unknown_version(view))?;
                let status = StatusCode::CREATED.as_u16();
                ItemResult { status, claim: Some(claim), problem: None, replayed: at.unchanged }
            }
            Err(problem) => {
                note(&app, &hearer, problem);
                let body = problem.body(hearer.language, hearer.request_id.as_str());
                ItemResult { status: problem.status(), claim: None, problem: Some(body), replayed: false }
            }
        });
    }
    Reply::ok(&Results { results })
}

// --- Verbs ---

/// The claim a verb left, which was there before if `agrees` says that nothing else was asked for.
async fn moved(
    app: &App,
    outcome: Outcome,
    agrees: impl FnOnce(&ClaimView) -> bool,
) -> Result<Reply, Problem> {
    let (at, view) = claim_of(app, outcome).await?;
    if at.unchanged && !agrees(&view) {
        return Err(Refusal::ClaimStateConflict { status: view.status() }.into());
    }
    reply(app, StatusCode::OK, &view)
}

/// Redeem a hold
///
/// The sale is done. Of a redeemed claim with the same or omitted content the claim as it is.
#[utoipa::path(post, path = "/v1/claims/{id}/redeem", tag = "Claims", request_body = RedeemBody, params(
    ("id" = String, Path, description = "The claim_id"),
), responses(
    (status = 200, description = "The claim", body = Claim),
))]
pub async fn redeem(call: Call<Submitting, Json<RedeemBody>>) -> Result<Reply, Problem> {
    let claim_id = call.claim_id()?;
    let Call { app, role: Submitting(by), body: Json(body), .. } = call;
    if body.device.is_some() {
        let claim = own(&app, claim_id, &by).await?;
        body.check_device(&claim)?;
    }
    let command = redemption(&app, by, claim_id, body.clone());
    let outcome = app.ledger.submit(command).await?;
    moved(&app, outcome, |claim| body.agrees_with(claim)).await
}

fn redemption(app: &App, by: Submitter, claim_id: ClaimId, body: RedeemBody) -> Command {
    let published = app.ledger.published();
    let preparation = Preparation { published: &published, hash_keys: &app.hash_keys };
    Command::Redeem(Box::new(preparation.redeem(by, claim_id, body.device, body.invoice_no)))
}

/// Release a hold
///
/// Gives it back. Of a hold that is released already, or that time has ended, the claim as it is.
#[utoipa::path(post, path = "/v1/claims/{id}/release", tag = "Claims", request_body = Empty, params(
    ("id" = String, Path, description = "The claim_id"),
), responses(
    (status = 200, description = "The claim", body = Claim),
))]
pub async fn release(call: Call<Submitting, Json<Empty>>) -> Result<Reply, Problem> {
    let claim_id = call.claim_id()?;
    let Call { app, role: Submitting(by), .. } = call;
    let outcome = app.ledger.submit(Command::Release { by, claim_id }).await?;
    moved(&app, outcome, |_| true).await
}

/// Return goods
///
/// The money goes back to the fund and the device is free; whether the person may claim again is the
/// programme's rule. Of a returned claim with the same reason the claim as it is.
#[utoipa::path(post, path = "/v1/claims/{id}/return", tag = "Claims", request_body = ReturnBody, params(
    ("id" = String, Path, description = "The claim_id"),
), responses(
    (status = 200, description = "The claim", body = Claim),
))]
pub async fn give_back(call: Call<Submitting, Json<ReturnBody>>) -> Result<Reply, Problem> {
    let claim_id = call.claim_id()?;
    let Call { app, role: Submitting(by), body: Json(body), .. } = call;
    let claim = own(&app, claim_id, &by).await?;
    if claim.status() != Status::Returned {
        body.check_time(&claim, app.ledger.clock().now())?;
    }
    let ReturnBody { reason, returned_at } = body;
    let outcome = app.ledger.submit(Command::Return { by, claim_id, reason, returned_at }).await?;
    moved(&app, outcome, |claim| body.agrees_with(claim)).await
}

/// The claim of this id, if `by` may act on it.
async fn own(app: &App, claim_id: ClaimId, by: &Submitter) -> Result<ClaimView, Problem> {
    let may_act_on = |claim: &ClaimView| {
        let made = claim.made();
        by.may_act_on(&made.retailer, made.platform.as_deref())
    };
    located(app, claim_id, may_act_on).await
}

/// The claim of this id, if `is_visible`; otherwise it is as if it did not exist.
async fn located(
    app: &App,
    claim_id: ClaimId,
    is_visible: impl FnOnce(&ClaimView) -> bool,
) -> Result<ClaimView, Problem> {
    let outcome = app.ledger.submit(Command::Locate(claim_id)).await?;
    let (_, view) = claim_of(app, outcome).await?;
    if is_visible(&view) { Ok(view) } else { Err(Code::ClaimNotFound.into()) }
}

/// Cancel by key
///
/// The reversal for a lost answer: takes back whatever the key stands for, for 24 hours after a
/// redemption. A key that stands for nothing is spent, so that a late original is refused.
#[utoipa::path(post, path = "/v1/claims/cancel", tag = "Claims", request_body = CancelBody, responses(
    (status = 200, description = "What it came to", body = Cancellation),
))]
pub async fn cancel(call: Call<Submitting, Json<CancelBody>>) -> Result<Reply, Problem> {
    let Call { app, role: Submitting(by), body: Json(CancelBody { idempotency_key }), .. } = call;
    let request =
        app.ledger.published().keys.request(&by.retailer, by.platform.as_deref(), idempotency_key.as_str());
    let (outcome, at) = match app.ledger.submit(Command::Cancel { request }).await? {
        Outcome::Cancel(CancelOutcome::Cancelled(at)) => (CancellationOutcome::Cancelled, Some(at)),
        Outcome::Cancel(CancelOutcome::NothingToCancel(at)) => {
            (CancellationOutcome::NothingToCancel, Some(at))
        }
        Outcome::Cancel(CancelOutcome::KeySpent) => (CancellationOutcome::KeySpent, None),
        _ => return Err(unexpected()),
    };
    let view = match at {
        Some(at) => Some(app.ledger.view(&at).await?),
        None => None,
    };
    let published = app.ledger.published();
    let shown = |view| Claim::new(view, &published.history).ok_or_else(|| unknown_version(view));
    let claim = view.as_ref().map(shown).transpose()?;
    Reply::ok(&Cancellation { idempotency_key: idempotency_key.as_str(), outcome, claim })
}

// --- Reading ---

/// Read a claim
///
/// As it stands; final ones stay readable.
#[utoipa::path(get, path = "/v1/claims/{id}", tag = "Claims", params(
    ("id" = String, Path, description = "The claim_id"),
), responses(
    (status = 200, description = "The claim", body = Claim),
))]
pub async fn read(call: Call<Viewer>) -> Result<Reply, Problem> {
    let claim_id = call.claim_id()?;
    let claim = located(&call.app, claim_id, |claim| call.role.sees(claim)).await?;
    reply(&call.app, StatusCode::OK, &claim)
}

/// List claims
///
/// Newest first, each as it stood at the position `as_of`.
#[utoipa::path(get, path = "/v1/claims", tag = "Claims", params(
    ("order_no" = Option<String>, Query, description = "Those of this order number"),
    ("status" = Option<String>, Query, description = "Those in this status"),
    ("from" = Option<String>, Query, description = "Those made on this day (Asia/Shanghai) or later"),
    ("to" = Option<String>, Query, description = "Those made on this day or earlier"),
    ("category" = Option<String>, Query, description = "Those of this category"),
    ("region_code" = Option<String>, Query, description = "Those of this region and what lies in it"),
    ("sn" = Option<String>, Query, description = "Those of the device with this serial number"),
    ("retailer" = Option<String>, Query, description = "Those of this retailer"),
    ("limit" = Option<u32>, Query, description = "Claims on the page: 1 to 200, 50 where absent"),
    ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
), responses(
    (status = 200, description = "Claims", body = Listing<Claim>),
))]
pub async fn list(call: Call<Viewer, Query<Wanted>>) -> Result<Reply, Problem> {
    let Call { app, role: viewer, body: Query(wanted), .. } = call;
    let arrived_at = app.ledger.look().await?;
    let mut query = wanted.query(&viewer);
    // The cursor is bound to all that is asked for but where and how long the page is.
    let bound = format!("claims {:?} {:?}", viewer.officer(), ClaimsQuery { limit: 0, ..query.clone() });
    let place = wanted.page.begins_after(&app.hash_keys, &bound)?;
    query.before = place.and_then(|place| place.parse().ok());
    app.book.wait_for(arrived_at, Instant::now() + limits::BOOK_WAIT).await;
    let found = app.book.claims(query).await?;
    let at = |position| ClaimAt { position, fresh: None, unchanged: true };
    let claims: Vec<ClaimAt> = found.items.iter().map(|pointer| at(pointer.last)).collect();
    let views = app.ledger.views(&claims).await?;

    let published = app.ledger.published();
    let shown = |view| Claim::new(view, &published.history).ok_or_else(|| unknown_version(view));
    let items = views.iter().filter(|claim| wanted.matches(claim)).map(shown).collect::<Result<_, _>>()?;
    let next_cursor = found.next.map(|next| page::cursor(&app.hash_keys, &bound, &next.to_string()));
    Reply::ok(&Listing::<Claim<'_>> { items, next_cursor, as_of: found.as_of })
}
