//! Deciding: a command against the state at an instant yields an event, an answer or a refusal.
//!
//! Pure: the time is an argument, nothing is read or written, and the same arguments give the same
//! decision. The checks stand in the order of precedence that callers are promised, so that a retailer
//! gets the same reason every time.

use std::sync::Arc;

use smallvec::SmallVec;

use super::command::{AdjustFund, Alternative, Command, Draft, FundView, OpenFund, Quote, Redeem, Refusal};
use super::entry::{
    Balance, ClaimKeys, ClaimMade, ClaimMoved, Event, FundAdjusted, FundDelta, FundOpened, Judged, Key,
    ProgrammeFile, VERSION,
};
use super::state::{ClaimIx, ClaimRecord, Fund, FundIx, Part, Request, State, activating};
use crate::claim::{ClaimId, Device, FundId, Mode, Status, Submitter};
use crate::identity::RegionCode;
use crate::limits;
use crate::money::Fen;
use crate::programme::{EntitlementOnReturn, Parameter, Programme, ProgrammeSet};
use crate::rules::{self, Cited, Considered, Determination};
use crate::time::Timestamp;

/// What is to be done about a command.
#[derive(Debug)]
pub enum Decision {
    /// Journal this, then answer from it.
    Enter(Event),
    /// Time has ended this hold and it stands in the way: expire it, then decide again.
    ExpireFirst(ClaimIx),
    /// Nothing changes; this is the answer.
    Answer(Box<Answer>),
    /// Nothing changes; this is why.
    Refuse(Box<Refusal>),
    /// The fund is waiting for more dead holds than one command may expire.
    TryAgain,
}

/// An answer that changes nothing.
#[derive(Debug)]
pub enum Answer {
    /// A claim as of the entry at this position.
    Claim(u64),
    /// A cancellation that was made before; the claim as of the entry at this position.
    Cancelled(u64),
    /// There is nothing to cancel; the claim as of the entry at this position.
    NothingToCancel(u64),
    /// The key is spent already.
    KeySpent,
    /// What a claim would get.
    Quote(Option<Determination>, Option<Refusal>),
    /// A fund.
    Fund(FundView),
    /// Funds, by id, as of a position.
    Funds(Vec<FundView>, u64),
    /// An officer's request was answered by the entry at this position.
    FundReplay(u64),
    /// It is so already.
    Done,
    /// The journal's end.
    Head,
    /// A digest of the state.
    Digest,
    /// A digest of a part of the state.
    DigestOf(Part),
}

impl From<Refusal> for Decision {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

impl From<Answer> for Decision {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

/// Decides `command` at `now`, which is not before the state's last entry.
pub fn decide(state: &State, command: &Command, now: Timestamp) -> Decision {
    let decided = match command {
        Command::Make(draft) => make(state, draft, now),
        Command::Quote(asked) => Ok(quote(state, asked, now)),
        Command::Redeem(asked) => redeem(state, asked, now),
        Command::Release { by, claim_id } => release(state, by, claim_id, now),
        Command::Return { by, claim_id, reason, returned_at } => {
            give_back(state, by, claim_id, now).map(|decision| match decision {
                Decision::Enter(Event::ClaimMoved(mut moved)) => {
                    let returned = Arc::make_mut(&mut moved);
                    returned.reason = Some(*reason);
                    returned.returned_at = Some(*returned_at);
                    Decision::Enter(Event::ClaimMoved(moved))
                }
                other => other,
            })
        }
        Command::Cancel { request } => cancel(state, request, now),
        Command::Locate(claim_id) => locate(state, claim_id, now),
        Command::OpenFund(asked) => open_fund(state, asked),
        Command::AdjustFund(asked) => adjust_fund(state, asked, now),
        Command::SwitchFund { fund_id, frozen, by, regions } => {
            switch_fund(state, fund_id, *frozen, by, regions.as_deref())
        }
        Command::Fund(id) => match state.find_fund(id).and_then(|ix| state.fund(ix)) {
            Some(fund) => Ok(Answer::Fund(view(fund)).into()),
            None => Err(Refusal::FundNotFound.into()),
        },
        Command::Funds => {
            let mut funds: Vec<FundView> = state.funds().iter().map(view).collect();
            funds.sort_by(|a, b| a.fund_id.cmp(&b.fund_id));
            Ok(Answer::Funds(funds, state.head().position).into())
        }
        Command::Activate(files) => activate(state, files),
        Command::IntroduceHashKey { key, check } => match state.hash_keys().get(key) {
            Some(known) if known == check => Ok(Answer::Done.into()),
            Some(_) => Err(Refusal::HashKeyDiffers.into()),
            None => Ok(Decision::Enter(Event::HashKeyIntroduced {
                key: Arc::clone(key),
                check: Arc::clone(check),
            })),
        },
        Command::NameSnapshot { position, digest } => {
            Ok(Decision::Enter(Event::SnapshotTaken { position: *position, digest: *digest }))
        }
        Command::RaiseFormat if state.format() >= VERSION => Err(Refusal::FormatIsNewest.into()),
        Command::RaiseFormat => Ok(Decision::Enter(Event::FormatActivated { version: VERSION })),
        Command::Look => Ok(Answer::Head.into()),
        Command::Digest => Ok(Answer::Digest.into()),
        Command::DigestOf(part) => Ok(Answer::DigestOf(*part).into()),
    };
    decided.unwrap_or_else(|decision| decision)
}

/// The event that ends a dead hold.
pub fn expire(state: &State, claim: ClaimIx, now: Timestamp) -> Option<Event> {
    let record = state.claim(claim)?;
    end(state, record, Status::Expired, now)
}

/// Early returns of anything but the way through.
type Deciding<T = Decision> = Result<T, Decision>;

/// What is done about a dead hold that stands in the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// It is expired before going on.
    Expire,
    /// It is looked past, for whoever only asks.
    LookPast,
}

/// The keys and money a sale asks for, of a claim or a quote.
struct Asked<'a> {
    region_code: RegionCode,
    sold_at: Timestamp,
    category: &'a crate::programme::Category,
    received_elsewhere: bool,
    expected_subsidy: Option<Fen>,
    order_line: Option<&'a Key>,
    persons: &'a [Key],
    device: &'a [Key],
    trade_in: Option<&'a Key>,
}

// --- Claims ---

fn make(state: &State, draft: &Draft, now: Timestamp) -> Deciding {
    let keys = &draft.keys;
    if !draft.was_hashed_under(state.hash_keys()) {
        return Err(Refusal::HashKeyMissing.into());
    }
    let request = state.request(&keys.request, now);
    if let Request::Claim(ix) = request
        && let Some(replay) = replay(state, draft, ix)?
    {
        return Ok(replay);
    }
    let judged_again;
    let judgement = if draft.judged_at == state.activated_at() {
        &draft.judgement
    } else {
        judged_again = rules::determine(state.programmes().current(), &draft_sale(draft));
        &judged_again
    };
    check_hold(draft.hold_minutes, judgement)?;
    match request {
        Request::Unknown if draft.is_twin => return Err(Refusal::RequestInProgress.into()),
        Request::Unknown => {}
        Request::Spent => return Err(Refusal::CancelledBeforeArrival.into()),
        Request::Claim(_) => return Err(Refusal::IdempotencyKeyReused.into()),
    }
    if let Err(refused) = judgement
        && refused.before_window()
    {
        return Err(Refusal::Policy(refused.clone()).into());
    }
    if let Some(late_until) = rules::late_until(judgement)
        && !rules::window(now, draft.sale.sold_at, draft.late, late_until)
    {
        return Err(match judgement {
            Ok(determination) => out_of_range(&determination.chosen().programme),
            Err(refused) => match refused.cited() {
                Some(cited) => out_of_range(&cited.programme),
                None => Refusal::Policy(refused.clone()),
            },
        }
        .into());
    }
    let determination = judgement.as_ref().map_err(|refused| Refusal::Policy(refused.clone()))?;
    let sale = &draft.sale;
    let asked = Asked {
        region_code: sale.region_code,
        sold_at: sale.sold_at,
        category: &sale.category,
        received_elsewhere: draft.received_elsewhere,
        expected_subsidy: draft.expected_subsidy,
        order_line: Some(&keys.order_line),
        persons: &keys.persons,
        device: &keys.device,
        trade_in: keys.trade_in.as_ref(),
    };
    let (chosen, fund) = payable(state, determination, &asked, now, Dead::Expire)?;
    let (Some(person), Some((_, fingerprint))) = (keys.persons.first(), keys.fingerprints.first()) else {
        return Err(Decision::TryAgain);
    };
    let subsidy = chosen.amount;
    let (status, held_until, held, redeemed) = match draft.mode {
        Mode::Hold => {
            let minutes = i64::from(draft.hold_minutes.unwrap_or(limits::HOLD_MINUTES_DEFAULT));
            (Status::Held, Some(now.plus_ms(minutes * 60_000)), subsidy, Fen::ZERO)
        }
        Mode::Redeem => (Status::Redeemed, None, Fen::ZERO, subsidy),
    };
    let restores = chosen.programme.entitlement_on_return.value == EntitlementOnReturn::Restored;
    Ok(Decision::Enter(Event::ClaimMade(Arc::new(ClaimMade {
        claim_id: ClaimId::following(state.last_claim_id(), now, draft.entropy),
        retailer: draft.by.retailer,
        platform: draft.by.platform.clone(),
        sale: Arc::clone(sale),
        status,
        held_until,
        subsidy,
        considered: determination
            .considered()
            .map(|considered| Judged::new(considered, sale.price, subsidy))
            .collect(),
        return_restores: (!restores).then_some(false),
        keys: ClaimKeys {
            request: keys.request,
            order_line: keys.order_line,
            person: *person,
            device: keys.device.clone(),
            trade_in: keys.trade_in,
        },
        fingerprint: *fingerprint,
        fund: FundDelta { id: fund.id.clone(), held, redeemed },
    }))))
}

/// The key stands for a claim: the same content gets the creating answer, or learns what became of it,
/// whatever the rules are by now. `None` for other content.
fn replay(state: &State, draft: &Draft, ix: ClaimIx) -> Deciding<Option<Decision>> {
    let record = known(state, ix)?;
    if !draft.keys.fingerprints.iter().any(|(_, fingerprint)| record.fingerprint_is(fingerprint)) {
        return Ok(None);
    }
    if record.status() == Status::Cancelled {
        return Err(Refusal::Cancelled.into());
    }
    Ok(Some(Answer::Claim(record.made()).into()))
}

/// Refuses a hold longer than the programme that pays allows. Where none pays there is no such bound,
/// and no hold either.
fn check_hold(minutes: Option<u32>, judgement: &Result<Determination, rules::Refused>) -> Deciding<()> {
    let (Some(minutes), Ok(determination)) = (minutes, judgement) else { return Ok(()) };
    let minutes_max = u32::from(determination.chosen().programme.hold_days_max.value) * 24 * 60;
    if minutes > minutes_max { Err(Refusal::HoldTooLong { minutes_max }.into()) } else { Ok(()) }
}

fn draft_sale(draft: &Draft) -> rules::Sale<'_> {
    let sale = &draft.sale;
    rules::Sale {
        category: sale.category.as_str(),
        price: sale.price,
        region: sale.region_code,
        sold_at: sale.sold_at,
        energy_grade: sale.energy_grade,
        trade_in_value: sale.trade_in.as_ref().map(|trade_in| trade_in.value),
        accept_programme: draft.accept_programme.as_ref().map(|programme| programme.as_str()),
    }
}

fn out_of_range(programme: &Arc<Programme>) -> Refusal {
    Refusal::SoldAtOutOfRange(Cited::new(programme, &programme.deciding_date.reference))
}

fn already_subsidised(programme: &Arc<Programme>) -> Cited {
    Cited::new(programme, &programme.overlap.reference)
}

/// Everything about a claim that the state decides: keys, limits and money.
fn payable<'s, 'd>(
    state: &'s State,
    determination: &'d Determination,
    asked: &Asked<'_>,
    now: Timestamp,
    dead: Dead,
) -> Deciding<(&'d Considered, &'s Fund)> {
    let chosen = determination.chosen();
    if asked.received_elsewhere {
        return Err(Refusal::ReceivedElsewhere { programme: Arc::clone(&chosen.programme) }.into());
    }
    if taken(state, asked.order_line, now, dead)? {
        return Err(Refusal::OrderLineAlreadyClaimed.into());
    }
    let programme = &chosen.programme;
    if taken(state, asked.device, now, dead)? {
        return Err(Refusal::DeviceAlreadySubsidised(Some(already_subsidised(programme))).into());
    }
    if taken(state, asked.trade_in, now, dead)? {
        return Err(
            Refusal::TradeInAlreadyUsed(Cited::new(programme, &programme.trade_in_value.reference)).into()
        );
    }
    if let Some(limit) = reached_limit(state, chosen, asked, now, dead)? {
        let rule = Cited::new(programme, &limit.reference);
        return Err(Refusal::ConsumerLimitReached { limit: limit.value, rule }.into());
    }
    let fund = match funded(state, chosen, asked, now, dead)? {
        Ok(fund) => fund,
        Err(lack) => {
            let mut alternatives = Vec::new();
            for other in determination.payable().filter(|other| !std::ptr::eq(*other, chosen)) {
                let within_limit = reached_limit(state, other, asked, now, dead)?.is_none();
                if within_limit && funded(state, other, asked, now, dead)?.is_ok() {
                    alternatives
                        .push(Alternative { programme: other.programme.id.clone(), subsidy: other.amount });
                }
            }
            return Err(match lack {
                Lack::NotOpen => Refusal::FundNotOpen { alternatives },
                Lack::Frozen => Refusal::FundFrozen { alternatives },
                Lack::Exhausted => Refusal::FundExhausted { alternatives },
            }
            .into());
        }
    };
    if asked.expected_subsidy.is_some_and(|expected| expected != chosen.amount) {
        return Err(Refusal::SubsidyDiffers { determination: Box::new(determination.clone()) }.into());
    }
    Ok((chosen, fund))
}

/// Whether a live claim holds any of `keys`.
fn taken<'a>(
    state: &State,
    keys: impl IntoIterator<Item = &'a Key>,
    now: Timestamp,
    dead: Dead,
) -> Deciding<bool> {
    for key in keys {
        for ix in state.holders(key) {
            if !is_out_of_the_way(state, ix, now, dead)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether the holder of a key is a dead hold that may be looked past.
fn is_out_of_the_way(state: &State, ix: ClaimIx, now: Timestamp, dead: Dead) -> Deciding<bool> {
    if !known(state, ix)?.is_dead_hold(now) {
        return Ok(false);
    }
    match dead {
        Dead::Expire => Err(Decision::ExpireFirst(ix)),
        Dead::LookPast => Ok(true),
    }
}

/// The programme's limit for the category where the person has reached it, under whatever hash key.
fn reached_limit<'d>(
    state: &State,
    considered: &'d Considered,
    asked: &Asked<'_>,
    now: Timestamp,
    dead: Dead,
) -> Deciding<Option<&'d Parameter<u16>>> {
    let Some(limit) = considered.programme.person_limit_rule(asked.category.as_str()) else {
        return Ok(None);
    };
    let mut live = 0_u16;
    for key in asked.persons {
        for ix in state.holders(key) {
            live += u16::from(!is_out_of_the_way(state, ix, now, dead)?);
            if live >= limit.value {
                return Ok(Some(limit));
            }
        }
    }
    Ok(None)
}

enum Lack {
    NotOpen,
    Frozen,
    Exhausted,
}

/// The fund that pays in full, or what it lacks.
fn funded<'s>(
    state: &'s State,
    considered: &Considered,
    asked: &Asked<'_>,
    now: Timestamp,
    dead: Dead,
) -> Deciding<Result<&'s Fund, Lack>> {
    let programme = &considered.programme.id;
    let Some((ix, fund)) = state.fund_for(programme, asked.region_code, asked.sold_at.day()) else {
        return Ok(Err(Lack::NotOpen));
    };
    if fund.balance.frozen {
        return Ok(Err(Lack::Frozen));
    }
    let missing = considered.amount.get() - fund.remaining().get();
    if missing > 0 && waiting_in_dead_holds(state, ix, missing, now, dead)? < missing {
        return Ok(Err(Lack::Exhausted));
    }
    Ok(Ok(fund))
}

/// Fen that dead holds still reserve, up to `missing`.
fn waiting_in_dead_holds(
    state: &State,
    fund: FundIx,
    missing: i64,
    now: Timestamp,
    dead: Dead,
) -> Deciding<i64> {
    let mut waiting = 0;
    for (number, ix) in state.dead_holds(fund, now).enumerate() {
        if dead == Dead::Expire {
            return Err(Decision::ExpireFirst(ix));
        }
        if number >= limits::WRITER_BATCH_EXPIRIES_MAX {
            return Err(Decision::TryAgain);
        }
        waiting += known(state, ix)?.subsidy().get();
        if waiting >= missing {
            break;
        }
    }
    Ok(waiting)
}

fn quote(state: &State, quote: &Quote, now: Timestamp) -> Decision {
    let judged_again;
    let judgement = if quote.judged_at == state.activated_at() {
        &quote.judgement
    } else {
        judged_again = rules::determine(
            state.programmes().current(),
            &rules::Sale {
                category: quote.category.as_str(),
                price: quote.price,
                region: quote.region_code,
                sold_at: quote.sold_at,
                energy_grade: quote.energy_grade,
                trade_in_value: quote.trade_in_value,
                accept_programme: quote.accept_programme.as_ref().map(|programme| programme.as_str()),
            },
        );
        &judged_again
    };
    if let Err(refused) = check_hold(quote.hold_minutes, judgement) {
        return refused;
    }
    let determination = match judgement {
        Ok(determination) => determination,
        Err(refused) => return Answer::Quote(None, Some(Refusal::Policy(refused.clone()))).into(),
    };
    let asked = Asked {
        region_code: quote.region_code,
        sold_at: quote.sold_at,
        category: &quote.category,
        received_elsewhere: quote.received_elsewhere,
        expected_subsidy: quote.expected_subsidy,
        order_line: quote.order_line.as_ref(),
        persons: &quote.persons,
        device: &quote.device,
        trade_in: quote.trade_in.as_ref(),
    };
    match payable(state, determination, &asked, now, Dead::LookPast) {
        Ok(_) => Answer::Quote(Some(determination.clone()), None).into(),
        Err(Decision::Refuse(refusal)) => Answer::Quote(Some(determination.clone()), Some(*refusal)).into(),
        Err(other) => other,
    }
}

// --- Verbs ---

fn known(state: &State, ix: ClaimIx) -> Deciding<&ClaimRecord> {
    state.claim(ix).ok_or(Decision::TryAgain)
}

/// The claim a verb is about, if `by` may act on it; a hold that time has ended is expired first.
fn owned<'s>(state: &'s State, by: &Submitter, id: &ClaimId, now: Timestamp) -> Deciding<&'s ClaimRecord> {
    let ix = state.find_claim(id).ok_or(Refusal::ClaimNotFound)?;
    let record = known(state, ix)?;
    if !state.is_owned_by(record, by) {
        return Err(Refusal::ClaimNotFound.into());
    }
    if record.is_dead_hold(now) {
        return Err(Decision::ExpireFirst(ix));
    }
    Ok(record)
}

fn locate(state: &State, id: &ClaimId, now: Timestamp) -> Deciding {
    let ix = state.find_claim(id).ok_or(Refusal::ClaimNotFound)?;
    let record = known(state, ix)?;
    if record.is_dead_hold(now) {
        return Err(Decision::ExpireFirst(ix));
    }
    Ok(Answer::Claim(record.last()).into())
}

fn conflict(record: &ClaimRecord) -> Decision {
    Refusal::ClaimStateConflict { status: record.status() }.into()
}

fn redeem(state: &State, asked: &Redeem, now: Timestamp) -> Deciding {
    let record = owned(state, &asked.by, &asked.claim_id, now)?;
    match record.status() {
        Status::Held => {}
        // Whether the content is the same is for the caller to see: it has the claim's.
        Status::Redeemed => return Ok(Answer::Claim(record.last()).into()),
        _ => return Err(conflict(record)),
    }
    let bound = state.device_keys(record);
    let (device, takes): (Option<Device>, SmallVec<[Key; 4]>) = match &asked.device {
        None if bound.is_empty() => return Err(Refusal::DeviceRequired.into()),
        None => (None, SmallVec::new()),
        Some((device, keys)) if bound.is_empty() => (Some(device.clone()), keys.clone()),
        Some((_, keys)) => {
            let same = keys.len() == bound.len() && keys.iter().all(|key| bound.contains(key));
            if !same {
                return Err(conflict(record));
            }
            (None, SmallVec::new())
        }
    };
    let subsidy = record.subsidy();
    let fund = state.fund(record.fund()).ok_or(Decision::TryAgain)?;
    if taken(state, &takes, now, Dead::Expire)? {
        let programme = state.programmes().current().get(fund.programme.as_str());
        return Err(Refusal::DeviceAlreadySubsidised(programme.map(already_subsidised)).into());
    }
    Ok(Decision::Enter(Event::ClaimMoved(Arc::new(ClaimMoved {
        device,
        invoice_no: asked.invoice_no.clone(),
        takes,
        fund: FundDelta { id: fund.id.clone(), held: subsidy.negated(), redeemed: subsidy },
        ..moving(record, Status::Redeemed, fund.id.clone())
    }))))
}

fn release(state: &State, by: &Submitter, id: &ClaimId, now: Timestamp) -> Deciding {
    let record = owned(state, by, id, now)?;
    match record.status() {
        Status::Held => {
            end(state, record, Status::Released, now).map(Decision::Enter).ok_or(Decision::TryAgain)
        }
        Status::Released | Status::Expired => Ok(Answer::Claim(record.last()).into()),
        _ => Err(conflict(record)),
    }
}

fn give_back(state: &State, by: &Submitter, id: &ClaimId, now: Timestamp) -> Deciding {
    let record = owned(state, by, id, now)?;
    match record.status() {
        Status::Redeemed => {
            end(state, record, Status::Returned, now).map(Decision::Enter).ok_or(Decision::TryAgain)
        }
        Status::Returned => Ok(Answer::Claim(record.last()).into()),
        _ => Err(conflict(record)),
    }
}

fn cancel(state: &State, request: &Key, now: Timestamp) -> Deciding {
    let ix = match state.request(request, now) {
        Request::Unknown => {
            return Ok(Decision::Enter(Event::KeySpent {
                key: *request,
                until: now.plus_ms(limits::KEY_RETENTION_MS),
            }));
        }
        Request::Spent => return Ok(Answer::KeySpent.into()),
        Request::Claim(ix) => ix,
    };
    let record = known(state, ix)?;
    if record.is_dead_hold(now) {
        return Err(Decision::ExpireFirst(ix));
    }
    match record.status() {
        Status::Redeemed if now.ms() - record.id().made_at().ms() > limits::CANCEL_WINDOW_MS => {
            Err(conflict(record))
        }
        Status::Held | Status::Redeemed => {
            end(state, record, Status::Cancelled, now).map(Decision::Enter).ok_or(Decision::TryAgain)
        }
        Status::Cancelled => Ok(Answer::Cancelled(record.last()).into()),
        Status::Released | Status::Expired | Status::Returned => {
            Ok(Answer::NothingToCancel(record.last()).into())
        }
    }
}

/// A move of a claim that frees nothing, takes nothing and moves no money.
fn moving(record: &ClaimRecord, to: Status, fund: FundId) -> ClaimMoved {
    ClaimMoved {
        claim_id: record.id(),
        made: record.made(),
        prior: record.last(),
        from: record.status(),
        to,
        device: None,
        invoice_no: None,
        reason: None,
        returned_at: None,
        takes: SmallVec::new(),
        frees: SmallVec::new(),
        request_until: None,
        fund: FundDelta { id: fund, held: Fen::ZERO, redeemed: Fen::ZERO },
    }
}

/// The move that ends a claim: its keys are freed and its money goes back.
fn end(state: &State, record: &ClaimRecord, to: Status, now: Timestamp) -> Option<Event> {
    let fund = state.fund(record.fund())?.id.clone();
    let back = record.subsidy().negated();
    let (held, redeemed) = match record.status() {
        Status::Held => (back, Fen::ZERO),
        _ => (Fen::ZERO, back),
    };
    let with_person = to != Status::Returned || record.return_restores();
    let forgotten = matches!(to, Status::Released | Status::Expired);
    Some(Event::ClaimMoved(Arc::new(ClaimMoved {
        frees: state.keys_to_free(record, with_person),
        request_until: forgotten.then(|| now.plus_ms(limits::KEY_RETENTION_MS)),
        fund: FundDelta { id: fund.clone(), held, redeemed },
        ..moving(record, to, fund)
    })))
}

// --- Funds and programmes ---

/// A fund as its readers see it.
pub fn view(fund: &Fund) -> FundView {
    FundView {
        fund_id: fund.id.clone(),
        programme: fund.programme.clone(),
        region_code: fund.region_code,
        from: fund.from,
        to: fund.to,
        balance: fund.balance,
    }
}

/// An officer's key that was used before: the same content replays, other content is refused.
fn officer_replay(state: &State, request: &Key, fingerprint: &Key) -> Deciding<()> {
    match state.officer_request(request) {
        None => Ok(()),
        Some((position, known)) if known == *fingerprint => Err(Answer::FundReplay(position).into()),
        Some(_) => Err(Refusal::IdempotencyKeyReused.into()),
    }
}

fn open_fund(state: &State, asked: &OpenFund) -> Deciding {
    officer_replay(state, &asked.request, &asked.fingerprint)?;
    let programme =
        state.programmes().current().get(asked.programme.as_str()).ok_or(Refusal::ProgrammeUnknown)?;
    if !programme.regions.value.cover(&asked.region_code) {
        return Err(Refusal::FundRegionNotCovered.into());
    }
    if state.find_fund(&asked.fund_id).is_some() {
        return Err(Refusal::FundExists.into());
    }
    let overlaps = state
        .funds_at(&asked.programme, asked.region_code)
        .any(|(_, fund)| fund.from <= asked.to && asked.from <= fund.to);
    if overlaps {
        return Err(Refusal::FundOverlaps.into());
    }
    Ok(Decision::Enter(Event::FundOpened(Box::new(FundOpened {
        fund_id: asked.fund_id.clone(),
        programme: asked.programme.clone(),
        region_code: asked.region_code,
        from: asked.from,
        to: asked.to,
        budget: asked.budget,
        by: Arc::clone(&asked.by),
        request: asked.request,
        fingerprint: asked.fingerprint,
    }))))
}

/// A fund that an officer with these regions may see.
fn visible_fund<'s>(
    state: &'s State,
    id: &FundId,
    regions: Option<&[RegionCode]>,
) -> Deciding<(FundIx, &'s Fund)> {
    let found = state.find_fund(id).and_then(|ix| Some((ix, state.fund(ix)?)));
    found
        .filter(|(_, fund)| {
            regions.is_none_or(|regions| regions.iter().any(|region| region.covers(fund.region_code)))
        })
        .ok_or_else(|| Refusal::FundNotFound.into())
}

fn adjust_fund(state: &State, asked: &AdjustFund, now: Timestamp) -> Deciding {
    officer_replay(state, &asked.request, &asked.fingerprint)?;
    let (ix, fund) = visible_fund(state, &asked.fund_id, asked.regions.as_deref())?;
    let below = || Decision::from(Refusal::FundBelowUsage);
    let budget = fund.balance.budget.checked_add(asked.delta).ok_or_else(below)?;
    let used = fund.balance.held.checked_add(fund.balance.redeemed).ok_or_else(below)?;
    if budget < used {
        return Err(state.dead_holds(ix, now).next().map_or_else(below, Decision::ExpireFirst));
    }
    Ok(Decision::Enter(Event::FundAdjusted(Box::new(FundAdjusted {
        fund_id: asked.fund_id.clone(),
        delta: asked.delta,
        reason: asked.reason,
        document_no: asked.document_no.clone(),
        by: Arc::clone(&asked.by),
        request: asked.request,
        fingerprint: asked.fingerprint,
        after: Balance { budget, ..fund.balance },
    }))))
}

fn switch_fund(
    state: &State,
    id: &FundId,
    frozen: bool,
    by: &Arc<str>,
    regions: Option<&[RegionCode]>,
) -> Deciding {
    let (_, fund) = visible_fund(state, id, regions)?;
    if fund.balance.frozen == frozen {
        return Ok(Answer::Fund(view(fund)).into());
    }
    Ok(Decision::Enter(Event::FundSwitched { fund_id: id.clone(), frozen, by: Arc::clone(by) }))
}

/// The set that applies may grow and change by higher versions, but it keeps every programme that money
/// was set aside for: claims rest on it, sales of its time may still be sent in, and whoever reads them
/// must find its rules. It ends by a version with an earlier last day, not by being left out.
fn activate(state: &State, files: &[ProgrammeFile]) -> Deciding {
    match activating(state.programmes(), files) {
        Ok(history) if history.current() == state.programmes().current() => Ok(Answer::Done.into()),
        Ok(history) => match orphan(state, history.current()) {
            Some(fund) => Err(Refusal::ActivationRefused(format!(
                "programme {} is left out, but fund {} pays for it; to end it, give it a version with an earlier in_force.to",
                fund.programme, fund.id
            ))
            .into()),
            None => Ok(Decision::Enter(Event::ProgrammesActivated { files: files.to_vec() })),
        },
        Err(reason) => Err(Refusal::ActivationRefused(reason).into()),
    }
}

/// A fund whose programme `set` does not have.
fn orphan<'s>(state: &'s State, set: &ProgrammeSet) -> Option<&'s Fund> {
    state.funds().iter().find(|fund| set.get(fund.programme.as_str()).is_none())
}
