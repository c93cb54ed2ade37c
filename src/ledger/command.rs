//! What the ledger is asked, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::entry::{Balance, ClaimMade, ClaimMoved, Entry, Event, FundOpened, Hash, Key, ProgrammeFile};
use super::state::Part;
use crate::claim::{AdjustReason, ClaimId, Device, FundId, Mode, ReturnReason, Sale, Status, Submitter};
use crate::identity::{Reference, RegionCode};
use crate::journal::Head;
use crate::money::Fen;
use crate::programme::{Programme, ProgrammeId};
use crate::rules::{Cited, Determination, Refused};
use crate::time::{Day, Timestamp};

/// A request to the ledger. Everything that can be computed without the state is in it already.
#[derive(Debug)]
pub enum Command {
    /// Make a claim.
    Make(Box<Draft>),
    /// What [`Command::Make`] would answer, without doing it.
    Quote(Box<Quote>),
    /// The sale of a hold is done.
    Redeem(Box<Redeem>),
    /// Give a hold back.
    Release {
        /// Who asks.
        by: Submitter,
        /// Which claim.
        claim_id: ClaimId,
    },
    /// The goods came back.
    Return {
        /// Who asks.
        by: Submitter,
        /// Which claim.
        claim_id: ClaimId,
        /// Why.
        reason: ReturnReason,
        /// When.
        returned_at: Timestamp,
    },
    /// Take back whatever an idempotency key stands for.
    Cancel {
        /// The key, hashed with its scope.
        request: Key,
    },
    /// Where a claim's last entry is.
    Locate(ClaimId),
    /// Set money aside.
    OpenFund(Box<OpenFund>),
    /// Change a fund's budget.
    AdjustFund(Box<AdjustFund>),
    /// Stop or allow new claims on a fund.
    SwitchFund {
        /// Which fund.
        fund_id: FundId,
        /// Whether it shall take no new claims.
        frozen: bool,
        /// The officer.
        by: Arc<str>,
        /// The officer's regions.
        regions: Option<Vec<RegionCode>>,
    },
    /// One fund as it stands.
    Fund(FundId),
    /// All funds as they stand, by id.
    Funds,
    /// Make these programme files the ones that apply.
    Activate(Vec<ProgrammeFile>),
    /// Begin to use a hash key.
    IntroduceHashKey {
        /// Algorithm and id, e.g. `hmac-sha256/k1`.
        key: Arc<str>,
        /// Its check value.
        check: Arc<str>,
    },
    /// Name a snapshot of the state in the journal, so that it is believed when the ledger opens.
    NameSnapshot {
        /// The last entry folded into it.
        position: u64,
        /// The SHA-256 of its file.
        digest: Hash,
    },
    /// Go on in the newest format of entries that this program knows.
    RaiseFormat,
    /// Nothing but a look at the journal, so that what others have appended is known.
    Look,
    /// A digest of the whole state, for comparing processes; takes time in proportion to it.
    Digest,
    /// A digest of a part of the state, and the position it is true at.
    DigestOf(Part),
}

/// A claim to make.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who asks.
    pub by: Submitter,
    /// Hold or redeem.
    pub mode: Mode,
    /// What was sold.
    pub sale: Arc<Sale>,
    /// Minutes a hold shall last; `None` for the default.
    pub hold_minutes: Option<u32>,
    /// What the till showed.
    pub expected_subsidy: Option<Fen>,
    /// The only programme to judge under.
    pub accept_programme: Option<ProgrammeId>,
    /// Whether a `late_reason` was given.
    pub late: bool,
    /// Whether any subsidy received elsewhere was named.
    pub received_elsewhere: bool,
    /// Keys and fingerprints.
    pub keys: DraftKeys,
    /// The judgement under the programmes activated at `judged_at`.
    pub judgement: Result<Determination, Refused>,
    /// The position of the activation judged under; under another the ledger judges again.
    pub judged_at: u64,
    /// The hash keys by algorithm and id, each with its check value, under which the consumer and the
    /// content were hashed.
    pub hash_keys: Arc<BTreeMap<Arc<str>, Arc<str>>>,
    /// Random bits for the claim's id.
    pub entropy: u128,
    /// Whether another process is deciding the same request: then only what is known of it is answered.
    pub is_twin: bool,
}

impl Draft {
    /// Whether the consumer was hashed under each of these keys that the journal uses.
    pub fn was_hashed_under(&self, hash_keys: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        hash_keys.iter().all(|(hash_key, check)| self.hash_keys.get(hash_key) == Some(check))
    }
}

impl DraftKeys {
    /// Whether `fingerprint` is that of the same content, under whichever live hash key.
    pub fn is_content(&self, fingerprint: &Key) -> bool {
        self.fingerprints.iter().any(|(_, own)| own == fingerprint)
    }

    /// Every key that is looked for when the claim is decided.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        [&self.request, &self.order_line]
            .into_iter()
            .chain(&self.persons)
            .chain(&self.device)
            .chain(&self.trade_in)
    }
}

/// The keys of a claim to make.
#[derive(Clone, Debug)]
pub struct DraftKeys {
    /// The idempotency key with its scope.
    pub request: Key,
    /// The content under every live hash key, the writing one first: hash key and fingerprint.
    pub fingerprints: SmallVec<[(Arc<str>, Key); 2]>,
    /// Retailer, order and line.
    pub order_line: Key,
    /// Person, category and year under every live hash key, the writing one first.
    pub persons: SmallVec<[Key; 2]>,
    /// Serial number and IMEIs.
    pub device: SmallVec<[Key; 4]>,
    /// The old device.
    pub trade_in: Option<Key>,
}

/// A claim to judge without making it. Whatever was not given is empty.
#[derive(Clone, Debug)]
pub struct Quote {
    /// The class of product.
    pub category: crate::programme::Category,
    /// Final price of the item.
    pub price: Fen,
    /// Whose fund would pay.
    pub region_code: RegionCode,
    /// When it is sold; any instant.
    pub sold_at: Timestamp,
    /// Energy grade.
    pub energy_grade: Option<u8>,
    /// What the old device is worth.
    pub trade_in_value: Option<Fen>,
    /// The only programme to judge under.
    pub accept_programme: Option<ProgrammeId>,
    /// Minutes a hold would last; `None` for the default.
    pub hold_minutes: Option<u32>,
    /// What the till shows.
    pub expected_subsidy: Option<Fen>,
    /// Whether any subsidy received elsewhere was named.
    pub received_elsewhere: bool,
    /// Retailer, order and line.
    pub order_line: Option<Key>,
    /// Person, category and year under every live hash key.
    pub persons: SmallVec<[Key; 2]>,
    /// Serial number and IMEIs.
    pub device: SmallVec<[Key; 4]>,
    /// The old device.
    pub trade_in: Option<Key>,
    /// The judgement under the programmes activated at `judged_at`.
    pub judgement: Result<Determination, Refused>,
    /// The position of the activation judged under.
    pub judged_at: u64,
}

/// A hold to redeem.
#[derive(Clone, Debug)]
pub struct Redeem {
    /// Who asks.
    pub by: Submitter,
    /// Which claim.
    pub claim_id: ClaimId,
    /// The device and its keys.
    pub device: Option<(Device, SmallVec<[Key; 4]>)>,
    /// The invoice.
    pub invoice_no: Option<Reference>,
}

/// A fund to open.
#[derive(Clone, Debug)]
pub struct OpenFund {
    /// Its id.
    pub fund_id: FundId,
    /// The programme it pays for.
    pub programme: ProgrammeId,
    /// Where it pays.
    pub region_code: RegionCode,
    /// First day of the sales it pays for.
    pub from: Day,
    /// Last day of the sales it pays for.
    pub to: Day,
    /// The money.
    pub budget: Fen,
    /// The officer.
    pub by: Arc<str>,
    /// The idempotency key with its scope.
    pub request: Key,
    /// The content.
    pub fingerprint: Key,
}

/// A change of a fund's budget.
#[derive(Clone, Debug)]
pub struct AdjustFund {
    /// Which fund.
    pub fund_id: FundId,
    /// What is added, or taken where negative.
    pub delta: Fen,
    /// Why.
    pub reason: AdjustReason,
    /// The document that orders it.
    pub document_no: Reference,
    /// The officer.
    pub by: Arc<str>,
    /// The officer's regions.
    pub regions: Option<Vec<RegionCode>>,
    /// The idempotency key with its scope.
    pub request: Key,
    /// The content.
    pub fingerprint: Key,
}

/// An entry, or what was read of it, with the hash of its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored<M = ClaimMade> {
    /// The entry.
    pub entry: Entry<M>,
    /// The hash of its bytes.
    pub hash: Hash,
}

/// What the ledger answers once everything the answer rests on is durable.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A claim, as of one of its entries.
    Claim(ClaimAt),
    /// What a cancellation came to.
    Cancel(CancelOutcome),
    /// What a claim would get.
    Quote(Box<Quoted>),
    /// A fund.
    Fund(FundView),
    /// Funds, by id, as of a position.
    Funds {
        /// The funds.
        funds: Vec<FundView>,
        /// The position.
        position: u64,
    },
    /// A fund request answered again; render it from the entry at this position.
    FundReplay(u64),
    /// Done, and there is nothing to say.
    Done,
    /// The journal's end.
    Head(Head),
    /// A digest of the state, or of the part asked for, at a position.
    Digest {
        /// The position.
        position: u64,
        /// The digest.
        digest: Hash,
    },
}

/// A claim as of one of its entries.
#[derive(Clone, Debug)]
pub struct ClaimAt {
    /// The entry's position.
    pub position: u64,
    /// The entry itself where it is at hand.
    pub fresh: Option<Arc<Stored>>,
    /// Whether this repeats what was answered before, or nothing had to be done.
    pub unchanged: bool,
}

/// What a cancellation by key came to.
#[derive(Clone, Debug)]
pub enum CancelOutcome {
    /// The claim is as if it had never been.
    Cancelled(ClaimAt),
    /// The claim had ended already.
    NothingToCancel(ClaimAt),
    /// The key stood for nothing and is spent.
    KeySpent,
}

/// What a claim would get.
#[derive(Clone, Debug)]
pub struct Quoted {
    /// How the programmes judged; absent where none could.
    pub determination: Option<Determination>,
    /// Why it would be refused.
    pub refusal: Option<Refusal>,
}

/// A fund as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FundView {
    /// Its id.
    pub fund_id: FundId,
    /// The programme it pays for.
    pub programme: ProgrammeId,
    /// Where it pays.
    pub region_code: RegionCode,
    /// First day of the sales it pays for.
    pub from: Day,
    /// Last day of the sales it pays for.
    pub to: Day,
    /// Its money.
    pub balance: Balance,
}

impl FundView {
    /// A fund as it stands when it is opened.
    pub fn opened(opened: &FundOpened) -> Self {
        Self {
            fund_id: opened.fund_id.clone(),
            programme: opened.programme.clone(),
            region_code: opened.region_code,
            from: opened.from,
            to: opened.to,
            balance: Balance { budget: opened.budget, ..Balance::default() },
        }
    }
}

/// Another programme that could pay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternative {
    /// The programme.
    pub programme: ProgrammeId,
    /// What it would pay.
    pub subsidy: Fen,
}

/// Why a command is refused. The variants stand in the order in which they take precedence; a refusal
/// changes nothing.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Claims may have been made under a hash key that the draft was not hashed with: whether this
    /// consumer has had what is due cannot be told.
    HashKeyMissing,
    /// The same request is being decided by another process.
    RequestInProgress,
    /// The hold is longer than the programme that pays allows.
    HoldTooLong {
        /// The longest hold it allows, in minutes.
        minutes_max: u32,
    },
    /// The idempotency key was used with other content.
    IdempotencyKeyReused,
    /// The key was cancelled before its claim arrived.
    CancelledBeforeArrival,
    /// The key's claim was cancelled.
    Cancelled,
    /// There is no such claim, or it is someone else's.
    ClaimNotFound,
    /// There is no such fund, or it is outside the officer's regions.
    FundNotFound,
    /// The claim's status does not allow this.
    ClaimStateConflict {
        /// The status it has.
        status: Status,
    },
    /// A claim cannot be redeemed without a device.
    DeviceRequired,
    /// No programme applies; before or after the window of `sold_at` as the rule says.
    Policy(Refused),
    /// The sale lies too far back or ahead; the rule is the one that makes its date decide.
    SoldAtOutOfRange(Cited),
    /// A subsidy was received elsewhere.
    ReceivedElsewhere {
        /// Whose rule it is that nothing is paid on top of it.
        programme: Arc<Programme>,
    },
    /// The order line has a live claim.
    OrderLineAlreadyClaimed,
    /// The device has a live claim; the rule is that an item is subsidised once. Nothing is cited where
    /// the programme of a hold to redeem applies no more.
    DeviceAlreadySubsidised(Option<Cited>),
    /// The old device serves a live claim; the rule is what the programme says of old devices.
    TradeInAlreadyUsed(Cited),
    /// The person has had what the programme allows.
    ConsumerLimitReached {
        /// The limit.
        limit: u16,
        /// The rule that sets it: the programme's, or the category's own.
        rule: Cited,
    },
    /// No fund of the programme covers the region and the day.
    FundNotOpen {
        /// What else could pay.
        alternatives: Vec<Alternative>,
    },
    /// The fund takes no new claims.
    FundFrozen {
        /// What else could pay.
        alternatives: Vec<Alternative>,
    },
    /// The fund cannot pay in full.
    FundExhausted {
        /// What else could pay.
        alternatives: Vec<Alternative>,
    },
    /// The till showed another amount.
    SubsidyDiffers {
        /// What is right.
        determination: Box<Determination>,
    },
    /// The programme of a fund to open is not one that applies.
    ProgrammeUnknown,
    /// The programme of a fund to open does not cover its region.
    FundRegionNotCovered,
    /// The fund's id is taken.
    FundExists,
    /// Another fund of the programme and region has days in common.
    FundOverlaps,
    /// The budget would fall below what is held and redeemed, or grow out of bounds.
    FundBelowUsage,
    /// The programme files cannot be activated.
    ActivationRefused(String),
    /// A hash key is known with another secret.
    HashKeyDiffers,
    /// The journal is in the newest format already.
    FormatIsNewest,
}

/// Why there is no outcome.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The ledger refuses.
    Refused(Box<Refusal>),
    /// Too much is waiting; nothing was done.
    Overloaded,
    /// The journal does not answer; whether anything was done is found by asking again with the same
    /// idempotency key.
    Unavailable,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

/// A claim put together from its entries.
#[derive(Clone, Debug)]
pub struct ClaimView {
    made: Arc<ClaimMade>,
    made_at: Timestamp,
    /// Oldest first.
    moves: SmallVec<[Arc<ClaimMoved>; 3]>,
    /// Position, time and hash of the last entry.
    last: (u64, Timestamp, Hash),
}

impl ClaimView {
    /// Puts a claim together from its entries, oldest first; `None` unless they are one claim's.
    pub fn new(entries: &[Arc<Stored>]) -> Option<Self> {
        let (first, rest) = entries.split_first()?;
        let Event::ClaimMade(made) = &first.entry.event else { return None };
        let at = |stored: &Stored| (stored.entry.position, stored.entry.at, stored.hash);
        let mut view =
            Self { made: Arc::clone(made), made_at: first.entry.at, moves: SmallVec::new(), last: at(first) };
        for stored in rest {
            match &stored.entry.event {
                Event::ClaimMoved(moved) if moved.claim_id == made.claim_id && moved.prior == view.last.0 => {
                    view.moves.push(Arc::clone(moved));
                    view.last = at(stored);
                }
                _ => return None,
            }
        }
        Some(view)
    }

    /// What was decided when the claim was made.
    pub fn made(&self) -> &ClaimMade {
        &self.made
    }

    /// When the claim was made.
    pub fn made_at(&self) -> Timestamp {
        self.made_at
    }

    /// When it last changed.
    pub fn updated_at(&self) -> Timestamp {
        self.last.1
    }

    /// Position and hash of its last entry.
    pub fn journal(&self) -> (u64, Hash) {
        (self.last.0, self.last.2)
    }

    /// The moves, oldest first.
    pub fn moves(&self) -> &[Arc<ClaimMoved>] {
        &self.moves
    }

    /// The status.
    pub fn status(&self) -> Status {
        self.moves.last().map_or(self.made.status, |moved| moved.to)
    }

    /// The device.
    pub fn device(&self) -> Option<&Device> {
        self.moves.iter().rev().find_map(|moved| moved.device.as_ref()).or(self.made.sale.device.as_ref())
    }

    /// The invoice.
    pub fn invoice_no(&self) -> Option<&Reference> {
        self.moves.iter().rev().find_map(|moved| moved.invoice_no.as_ref()).or(self
            .made
            .sale
            .invoice_no
            .as_ref())
    }
}
