//! Entries: the journal's rows as they are written, hashed and read again.
//!
//! An entry is one line of JSON that can be read without this program. Its bytes are what is hashed
//! and stored, and they are never rewritten; each names its position, the hash algorithm and its
//! predecessor's hash. An entry carries every effect it has on the state (keys taken and freed, money
//! moved), so that folding it needs neither a clock nor configuration nor a programme file.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

use crate::bytes;
use crate::claim::{AdjustReason, ClaimId, Device, FundId, ReturnReason, Sale, Status};
use crate::identity::{Reference, RegionCode, Uscc};
use crate::json::{self, BytesAs, Unwritable};
use crate::limits;
use crate::money::Fen;
use crate::programme::ProgrammeId;
use crate::rules::{Considered, Verdict};
use crate::time::{Day, Timestamp};

/// The newest format of entries this program knows: it reads this one and all before it, and begins new
/// journals in it. A journal goes on in the format it has until [`Event::FormatActivated`] raises it.
pub const VERSION: u16 = 2;

/// The SHA-256 of an entry's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first entry names as its predecessor.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self(hash)
    }

    /// A hash read from storage; `None` unless it is 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        bytes::from_hex(text).map(Self)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The name of a thing that at most one live claim may have at a time (a device, an order line), or
/// that is counted (a person): 128 bits of a keyed hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// A key of these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

macro_rules! shown_in_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                bytes::write_hex(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                bytes::write_hex(&self.0, f)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                bytes::deserialize(deserializer).map(Self)
            }
        }
    )*};
}
shown_in_hex!(Hash, Key);

/// Outside the journal a hash is written in hexadecimal.
impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut digits = [0; 2 * bytes::BYTES_MAX];
        serializer.serialize_str(bytes::hex(&self.0, &mut digits).unwrap_or_default())
    }
}

/// In an entry a hash is bytes, written as the entry's format has them.
fn in_entry<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(&hash.0)
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

/// The hash algorithms an entry may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Algorithm {
    /// SHA-256 (FIPS 180-4).
    #[serde(rename = "sha-256")]
    Sha256,
}

/// One entry. `M` is how much of a claim was read: all of it, or its [`Effects`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<M = ClaimMade> {
    /// The format; see [`VERSION`].
    pub v: u16,
    /// Counted from 1 without gaps.
    pub position: u64,
    /// How `prev` and this entry's own hash are made.
    pub alg: Algorithm,
    /// The hash of the entry before, [`Hash::ZERO`] for the first.
    #[serde(serialize_with = "in_entry")]
    pub prev: Hash,
    /// When it was decided; never earlier than the entry before.
    #[serde(rename = "at_ms")]
    pub at: Timestamp,
    /// What happened.
    pub event: Event<M>,
}

/// What an entry says happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event<M = ClaimMade> {
    /// The first entry of every journal.
    JournalOpened {
        /// Random; keys the names of devices, orders and persons in this journal.
        journal_id: Key,
    },
    /// A key that document numbers are hashed with came into use.
    HashKeyIntroduced {
        /// Algorithm and id, e.g. `hmac-sha256/k1`.
        key: Arc<str>,
        /// Shows whether a process has the same secret under that id.
        check: Arc<str>,
    },
    /// The programmes that apply from here on, content and all.
    ProgrammesActivated {
        /// File names and texts.
        files: Vec<ProgrammeFile>,
    },
    /// Money was set aside.
    FundOpened(Box<FundOpened>),
    /// A fund's budget changed.
    FundAdjusted(Box<FundAdjusted>),
    /// New claims on a fund were stopped, or allowed again.
    FundSwitched {
        /// Which fund.
        fund_id: FundId,
        /// Whether it takes no new claims.
        frozen: bool,
        /// The officer.
        by: Arc<str>,
    },
    /// A claim was made.
    ClaimMade(Arc<M>),
    /// A claim went into another status.
    ClaimMoved(Arc<ClaimMoved>),
    /// A key that stood for nothing was cancelled: a late original is refused.
    KeySpent {
        /// The idempotency key, hashed with its scope.
        key: Key,
        /// Until when it is remembered.
        #[serde(rename = "until_ms")]
        until: Timestamp,
    },
    /// The journal's format was raised; this entry is the first in the new one. Since version 2.
    FormatActivated {
        /// The `v` of this entry and those after it.
        version: u16,
    },
    /// A snapshot of the state was kept in a file. Changes nothing. Since version 2.
    SnapshotTaken {
        /// The last entry folded into it.
        position: u64,
        /// The SHA-256 of the file.
        #[serde(serialize_with = "in_entry")]
        digest: Hash,
    },
}

impl<M> Event<M> {
    /// The claim that was made, if one was.
    pub fn claim_made(&self) -> Option<&M> {
        match self {
            Self::ClaimMade(made) => Some(made),
            _ => None,
        }
    }

    /// The first version whose entries may be of this kind.
    pub const fn since(&self) -> u16 {
        match self {
            Self::FormatActivated { .. } | Self::SnapshotTaken { .. } => 2,
            _ => 1,
        }
    }
}

/// A programme file as activated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgrammeFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// See [`Event::FundOpened`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FundOpened {
    /// Its id.
    pub fund_id: FundId,
    /// The programme it pays for.
    pub programme: ProgrammeId,
    /// The region it pays in.
    pub region_code: RegionCode,
    /// First day of the sales it pays for.
    #[serde(rename = "from_day")]
    pub from: Day,
    /// Last day of the sales it pays for.
    #[serde(rename = "to_day")]
    pub to: Day,
    /// The money.
    #[serde(rename = "budget_fen")]
    pub budget: Fen,
    /// The officer.
    pub by: Arc<str>,
    /// The request's idempotency key, hashed with its scope.
    pub request: Key,
    /// The request's content.
    pub fingerprint: Key,
}

/// See [`Event::FundAdjusted`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FundAdjusted {
    /// Which fund.
    pub fund_id: FundId,
    /// What is added, or taken where negative.
    #[serde(rename = "delta_fen")]
    pub delta: Fen,
    /// Why.
    pub reason: AdjustReason,
    /// The document that orders it.
    pub document_no: Reference,
    /// The officer.
    pub by: Arc<str>,
    /// The request's idempotency key, hashed with its scope.
    pub request: Key,
    /// The request's content.
    pub fingerprint: Key,
    /// The fund as it stood afterwards, so that a replay answers the same.
    pub after: Balance,
}

/// The money of a fund at a moment: `held + redeemed ≤ budget`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// What was set aside.
    #[serde(rename = "budget_fen")]
    pub budget: Fen,
    /// Reserved by live holds.
    #[serde(rename = "held_fen")]
    pub held: Fen,
    /// Due for redeemed claims.
    #[serde(rename = "redeemed_fen")]
    pub redeemed: Fen,
    /// Whether new claims are stopped.
    pub frozen: bool,
}

/// What an entry moves in its claim's fund.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FundDelta {
    /// Which fund.
    pub id: FundId,
    /// Change of the money held.
    #[serde(rename = "held_fen", default, skip_serializing_if = "is_zero")]
    pub held: Fen,
    /// Change of the money redeemed.
    #[serde(rename = "redeemed_fen", default, skip_serializing_if = "is_zero")]
    pub redeemed: Fen,
}

fn is_zero(fen: &Fen) -> bool {
    *fen == Fen::ZERO
}

/// How one programme judged a sale; rate, cap and clause are in the programme's version. What is as it
/// mostly is, is left out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// Which programme.
    pub programme: ProgrammeId,
    /// Which version of it.
    pub version: u32,
    /// What the rate is applied to; `None` for the price.
    #[serde(rename = "base_fen", default, skip_serializing_if = "Option::is_none")]
    pub price_base: Option<Fen>,
    /// Rate times base, rounded; `None` for what it would pay.
    #[serde(rename = "computed_fen", default, skip_serializing_if = "Option::is_none")]
    pub computed: Option<Fen>,
    /// What it would pay; `None` for the claim's subsidy.
    #[serde(rename = "amount_fen", default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Fen>,
    /// Whether it pays, or why not; `None` for the one that pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

impl Judged {
    /// A judgement on a sale at `price` that is paid `subsidy`.
    pub fn new(considered: &Considered, price: Fen, subsidy: Fen) -> Self {
        let Considered { programme, price_base, computed, amount, verdict, .. } = considered;
        Self {
            programme: programme.id.clone(),
            version: programme.version,
            price_base: unless(*price_base, price),
            computed: unless(*computed, *amount),
            amount: unless(*amount, subsidy),
            verdict: unless(*verdict, Verdict::Chosen),
        }
    }

    /// What the rate was applied to, in the judgement on `made`.
    pub fn price_base(&self, made: &ClaimMade) -> Fen {
        self.price_base.unwrap_or(made.sale.price)
    }

    /// Rate times base, rounded, in the judgement on `made`.
    pub fn computed(&self, made: &ClaimMade) -> Fen {
        self.computed.unwrap_or_else(|| self.amount(made))
    }

    /// What it would pay, in the judgement on `made`.
    pub fn amount(&self, made: &ClaimMade) -> Fen {
        self.amount.unwrap_or(made.subsidy)
    }

    /// Whether it pays, or why not.
    pub fn verdict(&self) -> Verdict {
        self.verdict.unwrap_or(Verdict::Chosen)
    }
}

fn unless<T: PartialEq>(value: T, usual: T) -> Option<T> {
    (value != usual).then_some(value)
}

/// The keys a claim takes. Each is freed by a later entry that lists it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimKeys {
    /// The idempotency key with its scope; kept, not freed, by most moves.
    pub request: Key,
    /// Retailer, order and line.
    pub order_line: Key,
    /// Person, category and year of the sale.
    pub person: Key,
    /// The device's serial number with its manufacturer, and every IMEI.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub device: SmallVec<[Key; 4]>,
    /// The old device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trade_in: Option<Key>,
}

impl ClaimKeys {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        [&self.request, &self.order_line, &self.person].into_iter().chain(&self.device).chain(&self.trade_in)
    }
}

/// See [`Event::ClaimMade`]. `S` and `C` stand for what the state does not keep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimMade<S = Arc<Sale>, C = SmallVec<[Judged; 4]>> {
    /// The claim.
    pub claim_id: ClaimId,
    /// Whose claim it is.
    pub retailer: Uscc,
    /// The platform that submitted it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Arc<str>>,
    /// What was sold.
    pub sale: S,
    /// `held` or `redeemed`.
    pub status: Status,
    /// When the hold ends.
    #[serde(rename = "held_until_ms", default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// The subsidy.
    #[serde(rename = "subsidy_fen")]
    pub subsidy: Fen,
    /// Every programme that judged the sale, the one that pays first.
    pub considered: C,
    /// Whether a return gives the person's entitlement back; `None` if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_restores: Option<bool>,
    /// The keys taken.
    pub keys: ClaimKeys,
    /// The request's content, keyed.
    pub fingerprint: Key,
    /// The money moved.
    pub fund: FundDelta,
}

impl<S, C> ClaimMade<S, C> {
    /// Whether a return gives the person's entitlement back.
    pub fn return_restores(&self) -> bool {
        self.return_restores.unwrap_or(true)
    }
}

impl ClaimMade {
    /// The same with nothing left out, as the first format has it.
    fn in_full(&self) -> Self {
        let in_full = |judged: &Judged| Judged {
            price_base: Some(judged.price_base(self)),
            computed: Some(judged.computed(self)),
            amount: Some(judged.amount(self)),
            verdict: Some(judged.verdict()),
            ..judged.clone()
        };
        Self {
            sale: Arc::new(Sale { order_line: Some(self.sale.order_line()), ..(*self.sale).clone() }),
            considered: self.considered.iter().map(in_full).collect(),
            return_restores: Some(self.return_restores()),
            ..self.clone()
        }
    }
}

/// A member of an entry that was passed over when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// What the state needs of a made claim: everything but what was sold and how it was judged. Reading no
/// more than that is what makes starting fast.
pub type Effects = ClaimMade<Skipped, Skipped>;

/// See [`Event::ClaimMoved`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimMoved {
    /// The claim.
    pub claim_id: ClaimId,
    /// The position of the entry that made it.
    pub made: u64,
    /// The position of its last entry before this one.
    pub prior: u64,
    /// The status left.
    pub from: Status,
    /// The status entered.
    pub to: Status,
    /// The device bound now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// The invoice named now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_no: Option<Reference>,
    /// Why the goods came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReturnReason>,
    /// When they did.
    #[serde(rename = "returned_at_ms", default, skip_serializing_if = "Option::is_none")]
    pub returned_at: Option<Timestamp>,
    /// Device keys taken.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub takes: SmallVec<[Key; 4]>,
    /// Keys freed.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub frees: SmallVec<[Key; 8]>,
    /// From when the idempotency key stands for nothing again.
    #[serde(rename = "request_until_ms", default, skip_serializing_if = "Option::is_none")]
    pub request_until: Option<Timestamp>,
    /// The money moved.
    pub fund: FundDelta,
}

/// Why an entry cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Written by a later version of this program.
    #[error("entry {position} has version {version}; this program reads up to {VERSION}: update it")]
    Version {
        /// Where.
        position: u64,
        /// The version it names.
        version: u16,
    },
    /// Not an entry, or of a kind that this program does not know.
    #[error("entry {position} cannot be read: {cause}")]
    Malformed {
        /// Where.
        position: u64,
        /// What the parser says.
        cause: serde_json::Error,
    },
    /// The row's number is not the one its bytes name.
    #[error("entry {position} says that its position is {claimed}")]
    Position {
        /// Where it was found.
        position: u64,
        /// What it says.
        claimed: u64,
    },
}

impl<M: DeserializeOwned> Entry<M> {
    /// Reads the entry stored at `position`.
    pub fn decode(position: u64, bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Versioned {
            v: u16,
        }
        // Whether all of it is UTF-8 is asked once; the parser would ask for every string.
        let parsed = match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(bytes),
        };
        let entry: Self = parsed.map_err(|cause| match serde_json::from_slice::<Versioned>(bytes) {
            Ok(Versioned { v }) if v > VERSION => Unreadable::Version { position, version: v },
            _ => Unreadable::Malformed { position, cause },
        })?;
        if entry.v == 0 || entry.v > VERSION {
            return Err(Unreadable::Version { position, version: entry.v });
        }
        if entry.position != position {
            return Err(Unreadable::Position { position, claimed: entry.position });
        }
        Ok(entry)
    }
}

impl Entry {
    /// Appends the bytes to store and hash to `buffer`, in the format that [`Entry::v`] names.
    ///
    /// The first format writes bytes in hexadecimal and leaves nothing out of a claim; since the second
    /// bytes are written in base64url, and what a claim leaves out is as it mostly is.
    pub fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), Unwritable> {
        match (self.v, &self.event) {
            (1, Event::ClaimMade(made)) => {
                let event = Event::ClaimMade(Arc::new(made.in_full()));
                json::write(buffer, BytesAs::Hex, &Entry { event, ..self.clone() })
            }
            (1, _) => json::write(buffer, BytesAs::Hex, self),
            _ => json::write(buffer, BytesAs::Base64Url, self),
        }
    }

    /// The same as bytes of their own.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Unwritable> {
        let mut bytes = Vec::with_capacity(limits::ENTRY_BYTES_USUAL);
        self.encode(&mut bytes)?;
        Ok(bytes)
    }
}
