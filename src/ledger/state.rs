//! The state: what deciding needs to know, and nothing else. It is a fold of the journal.
//!
//! The state changes in one way only: [`State::fold`] applies an entry, and every entry is applied as
//! a handful of [`Change`]s, each of which yields its own inverse. The writer folds entries that are
//! not durable yet and keeps the inverses; if the append fails it takes them back. `fold` checks what
//! the deciding code promised (keys free, money there, times in order) and refuses a journal that
//! breaks it.
//!
//! Memory: a claim costs 56 bytes for its record, 16 for each key and about 9 for the key's place in the
//! [`index`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use allocator_api2::alloc::System;
use allocator_api2::vec::Vec as VecIn;
use aws_lc_rs::digest;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::entry::{
    Balance, ClaimKeys, ClaimMade, ClaimMoved, Entry, Event, FundDelta, Hash, Key, ProgrammeFile, VERSION,
};
use crate::claim::{ClaimId, FundId, Status, Submitter};
use crate::identity::RegionCode;
use crate::journal::Head;
use crate::limits;
use crate::money::Fen;
use crate::programme::{ProgrammeHistory, ProgrammeId, ProgrammeSet};
use crate::time::{Day, Timestamp};
use index::{Index, Slot};

pub mod image;
mod index;

/// The index of a claim in the order of making.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ClaimIx(u32);

/// The index of a fund in the order of opening.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FundIx(u16);

/// Where the keys of a claim stand in its run of keys.
const REQUEST: usize = 0;
const ORDER_LINE: usize = 1;
const PERSON: usize = 2;
/// The old device's key if there is one; the device's keys follow.
const TRADE_IN: usize = 3;

/// Five bytes of a position: 2^40 entries are thirty years of 1,000 a second.
type Position = [u8; 5];

fn pack(position: u64) -> Position {
    let [_, _, _, bytes @ ..] = position.to_be_bytes();
    bytes
}

fn unpack(position: Position) -> u64 {
    position.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// What the state knows of one claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimRecord {
    id: ClaimId,
    /// Half of the content's fingerprint: it is keyed, so 64 bits cannot be matched on purpose.
    fingerprint: [u8; 8],
    made: Position,
    last: Position,
    /// Bits 0 to 41 in milliseconds: of a hold, when it ends; of a released or expired one, until when its
    /// request key is remembered. Bits 42 to 44: the status. Bit 45: whether a return restores the
    /// entitlement. Bit 46: whether there is an old device.
    until_and_flags: [u8; 6],
    /// The number of its retailer and platform.
    submitter: SubmitterNumber,
    keys_at: u32,
    subsidy_fen: u32,
    fund: u16,
    /// Which of the keys are held, by their place in the run.
    held: u16,
    keys_len: u8,
}

/// Where in [`ClaimRecord::until_and_flags`] the flags stand.
const FLAGS_AT: u32 = 42;
const STATUS_MASK: u64 = 0b111;
const RETURN_RESTORES: u64 = 1 << 3;
const HAS_TRADE_IN: u64 = 1 << 4;
/// The first instant that is too late for a record: in 2109.
const TOO_LATE_MS: i64 = 1 << FLAGS_AT;

/// Three bytes of a submitter's number: sixteen million retailers and platforms.
type SubmitterNumber = [u8; 3];

const _: () = assert!(size_of::<ClaimRecord>() <= 56);
// Whatever a programme may pay fits into a record.
const _: () = assert!(limits::SUBSIDY_FEN_MAX <= u32::MAX as i64);
// Request, order line, person and old device; serial number, IMEIs, and the serial number as IMEI.
const _: () = assert!(4 + 2 + limits::IMEI_MAX <= 16);

impl ClaimRecord {
    /// The position of the entry that made the claim.
    pub fn made(&self) -> u64 {
        unpack(self.made)
    }

    /// The position of its last entry.
    pub fn last(&self) -> u64 {
        unpack(self.last)
    }

    /// Its id.
    pub fn id(&self) -> ClaimId {
        self.id
    }

    /// Its status as journaled.
    pub fn status(&self) -> Status {
        let number = (self.flags() & STATUS_MASK) as usize;
        Status::ALL.get(number).copied().unwrap_or(Status::Cancelled)
    }

    /// Whether the status is one and no other flag is set than there is.
    fn has_known_flags(&self) -> bool {
        self.flags() & !(STATUS_MASK | RETURN_RESTORES | HAS_TRADE_IN) == 0
            && ((self.flags() & STATUS_MASK) as usize) < Status::ALL.len()
    }

    /// Its subsidy.
    pub fn subsidy(&self) -> Fen {
        Fen::new(i64::from(self.subsidy_fen))
    }

    /// Its fund.
    pub fn fund(&self) -> FundIx {
        FundIx(self.fund)
    }

    /// Whether a return gives the person's entitlement back.
    pub fn return_restores(&self) -> bool {
        self.flags() & RETURN_RESTORES != 0
    }

    /// Whether time has ended this hold, written or not.
    pub fn is_dead_hold(&self, now: Timestamp) -> bool {
        self.status() == Status::Held && self.until() <= now
    }

    /// Whether the request key of this ended hold stands for nothing any more.
    fn request_is_forgotten(&self, now: Timestamp) -> bool {
        matches!(self.status(), Status::Released | Status::Expired) && self.until() <= now
    }

    /// Whether `fingerprint` is that of the content the claim was made with.
    pub fn fingerprint_is(&self, fingerprint: &Key) -> bool {
        fingerprint.bytes().starts_with(&self.fingerprint)
    }

    fn has_trade_in(&self) -> bool {
        self.flags() & HAS_TRADE_IN != 0
    }

    fn until(&self) -> Timestamp {
        Timestamp::from_ms(self.until_and_flags() as i64 & (TOO_LATE_MS - 1))
    }

    fn set_until(&mut self, until: Timestamp) -> Folded {
        ensure((0..TOO_LATE_MS).contains(&until.ms()), "it names a time that is too late")?;
        self.set(until.ms() as u64, self.flags());
        Ok(())
    }

    /// Moves the claim on; the new status has no time that ends it.
    fn set_status(&mut self, status: Status) {
        self.set(0, self.flags() & !STATUS_MASK | status as u64);
    }

    fn flags(&self) -> u64 {
        self.until_and_flags() >> FLAGS_AT
    }

    fn until_and_flags(&self) -> u64 {
        self.until_and_flags.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }

    fn set(&mut self, until_ms: u64, flags: u64) {
        let [_, _, bytes @ ..] = (flags << FLAGS_AT | until_ms).to_be_bytes();
        self.until_and_flags = bytes;
    }

    fn devices_from(&self) -> usize {
        TRADE_IN + usize::from(self.has_trade_in())
    }

    fn holds(&self, place: usize) -> bool {
        self.held & (1 << place) != 0
    }
}

/// A fund.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fund {
    /// Its id.
    pub id: FundId,
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

impl Fund {
    /// What is neither held nor redeemed.
    pub fn remaining(&self) -> Fen {
        let used = self.balance.held.get().saturating_add(self.balance.redeemed.get());
        Fen::new(self.balance.budget.get().saturating_sub(used))
    }
}

/// What an idempotency key stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Nothing.
    Unknown,
    /// It was cancelled before its claim arrived.
    Spent,
    /// A claim.
    Claim(ClaimIx),
}

/// Why an entry cannot follow the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {position} does not follow from the entries before it: {reason}")]
pub struct FoldError {
    /// Where.
    pub position: u64,
    /// Why.
    pub reason: &'static str,
}

/// Items in chunks that never move, so that growing never copies what is there. The program's allocator
/// would round their sizes up by an eighth; the machine's takes them as they are.
#[derive(Debug)]
struct Chunked<T> {
    chunks: Vec<VecIn<T, System>>,
    len: usize,
}

impl<T: Copy> Chunked<T> {
    const fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / limits::CLAIM_CHUNK)?.get(index % limits::CLAIM_CHUNK)
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / limits::CLAIM_CHUNK)?.get_mut(index % limits::CLAIM_CHUNK)
    }

    fn push(&mut self, item: T) {
        if self.len / limits::CLAIM_CHUNK == self.chunks.len() {
            self.chunks.push(VecIn::with_capacity_in(limits::CLAIM_CHUNK, System));
        }
        if let Some(chunk) = self.chunks.get_mut(self.len / limits::CLAIM_CHUNK) {
            chunk.push(item);
            self.len += 1;
        }
    }

    fn truncate(&mut self, len: usize) {
        while self.len > len {
            let last = self.len - 1;
            if let Some(chunk) = self.chunks.get_mut(last / limits::CLAIM_CHUNK) {
                chunk.pop();
            }
            self.len = last;
        }
    }

    fn extend<U>(&mut self, mut items: &[U], make: impl Fn(&U) -> T) {
        while !items.is_empty() {
            if self.len / limits::CLAIM_CHUNK == self.chunks.len() {
                self.chunks.push(VecIn::with_capacity_in(limits::CLAIM_CHUNK, System));
            }
            let room = limits::CLAIM_CHUNK - self.len % limits::CLAIM_CHUNK;
            let (fitting, rest) = items.split_at(room.min(items.len()));
            if let Some(chunk) = self.chunks.get_mut(self.len / limits::CLAIM_CHUNK) {
                chunk.extend(fitting.iter().map(&make));
                self.len += fitting.len();
            }
            items = rest;
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.capacity() * size_of::<T>()).sum()
    }
}

/// The claims and their keys.
#[derive(Debug)]
struct Claims {
    records: Chunked<ClaimRecord>,
    keys: Chunked<Key>,
}

impl Claims {
    fn key(&self, record: &ClaimRecord, place: usize) -> Option<&Key> {
        self.keys.get(record.keys_at as usize + place)
    }

    fn key_of(&self, slot: Slot) -> Option<&Key> {
        let record = self.records.get(slot.claim().0 as usize)?;
        self.key(record, slot.place())
    }
}

/// A key that stands for something only until a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Passing {
    Claim(u32),
    Spent(Key),
}

/// One change of the state. Applying it yields the change that takes it back.
#[derive(Debug)]
enum Change {
    Stamp(Head, Timestamp),
    Journal(Option<Key>),
    Format(u16),
    HashKey(Arc<str>, Option<Arc<str>>),
    Programmes(Arc<ProgrammeHistory>, Arc<[Head]>),
    PushClaim(ClaimRecord),
    PopClaim,
    SetClaim(ClaimIx, ClaimRecord),
    TruncateKeys(usize),
    Take(Slot),
    Free(Slot),
    PushFund(Box<Fund>),
    PopFund,
    SetBalance(FundIx, Balance),
    Hold(FundIx, Timestamp, ClaimIx),
    Unhold(FundIx, Timestamp, ClaimIx),
    Remember(Timestamp, Passing),
    Forget(Timestamp, Passing),
    OfficerRequest(Key, Option<(u64, Key)>),
}

/// The inverses of what was folded, for taking it back.
#[derive(Debug, Default)]
pub struct Undo(Vec<Change>);

impl Undo {
    /// Forgets them: what was folded is durable.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct State {
    head: Head,
    at: Timestamp,
    journal_id: Option<Key>,
    format: u16,
    hash_keys: BTreeMap<Arc<str>, Arc<str>>,
    programmes: Arc<ProgrammeHistory>,
    /// The entries that activated them, in order.
    activations: Arc<[Head]>,
    claims: Claims,
    taken: Index,
    funds: Vec<Fund>,
    fund_by_id: HashMap<FundId, FundIx>,
    funds_by_place: HashMap<ProgrammeId, HashMap<RegionCode, SmallVec<[FundIx; 2]>>>,
    holds: BTreeSet<(Timestamp, ClaimIx)>,
    holds_by_fund: BTreeSet<(FundIx, Timestamp, ClaimIx)>,
    spent: BTreeMap<Key, Timestamp>,
    passing: BTreeSet<(Timestamp, Passing)>,
    officer_requests: BTreeMap<Key, (u64, Key)>,
    // Names are numbered as they are met; the numbers never leave the state.
    submitters: Vec<Submitter>,
    submitter_numbers: HashMap<Submitter, SubmitterNumber>,
    /// Empty; kept between entries for its room.
    scratch: Vec<Change>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            head: Head::EMPTY,
            at: Timestamp::from_ms(0),
            journal_id: None,
            format: 0,
            hash_keys: BTreeMap::new(),
            programmes: Arc::default(),
            activations: Arc::default(),
            claims: Claims { records: Chunked::new(), keys: Chunked::new() },
            taken: Index::default(),
            funds: Vec::new(),
            fund_by_id: HashMap::new(),
            funds_by_place: HashMap::new(),
            holds: BTreeSet::new(),
            holds_by_fund: BTreeSet::new(),
            spent: BTreeMap::new(),
            passing: BTreeSet::new(),
            officer_requests: BTreeMap::new(),
            submitters: Vec::new(),
            submitter_numbers: HashMap::new(),
            scratch: Vec::new(),
        }
    }
}

// --- Looking ---

impl State {
    /// Bytes set aside for claims, their keys and the index, used or not. Nothing else grows with every
    /// claim.
    pub fn bytes(&self) -> usize {
        self.taken.bytes() + self.claims.records.bytes() + self.claims.keys.bytes()
    }

    /// Position and hash of the last entry folded.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The time of the last entry folded.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The journal's id; `None` of an empty journal.
    pub fn journal_id(&self) -> Option<Key> {
        self.journal_id
    }

    /// The format its entries are written in: the version of the first, until a later one raises it; 0 of
    /// an empty journal.
    pub fn format(&self) -> u16 {
        self.format
    }

    /// The hash keys in use and their check values.
    pub fn hash_keys(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.hash_keys
    }

    /// The programmes that apply, and all that ever did.
    pub fn programmes(&self) -> &Arc<ProgrammeHistory> {
        &self.programmes
    }

    /// The position of the entry that activated the programmes; 0 if none did.
    pub fn activated_at(&self) -> u64 {
        self.activations.last().map_or(0, |activation| activation.position)
    }

    /// How many claims were ever made.
    pub fn claim_count(&self) -> usize {
        self.claims.records.len
    }

    /// What is known of a claim.
    pub fn claim(&self, ix: ClaimIx) -> Option<&ClaimRecord> {
        self.claims.records.get(ix.0 as usize)
    }

    /// Finds a claim by its id.
    pub fn find_claim(&self, id: &ClaimId) -> Option<ClaimIx> {
        let records = &self.claims.records;
        let chunk =
            records.chunks.partition_point(|chunk| chunk.first().is_some_and(|first| first.id <= *id));
        let chunk = chunk.checked_sub(1)?;
        let within = records.chunks.get(chunk)?.binary_search_by_key(id, |record| record.id).ok()?;
        u32::try_from(chunk * limits::CLAIM_CHUNK + within).ok().map(ClaimIx)
    }

    /// Whether `by` may act on the claim.
    pub fn is_owned_by(&self, record: &ClaimRecord, by: &Submitter) -> bool {
        self.submitter_of(record)
            .is_some_and(|submitter| by.may_act_on(&submitter.retailer, submitter.platform.as_deref()))
    }

    /// The claims that hold `key`, in no particular order.
    pub fn holders<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = ClaimIx> + 'a {
        self.slots(key).map(Slot::claim)
    }

    fn slots<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = Slot> + 'a {
        self.taken.candidates(key).filter(move |slot| self.claims.key_of(*slot) == Some(key))
    }

    /// Looks where `keys` would be in the index. Where that is larger than the processor's caches each look
    /// waits for memory; of looks that follow each other directly several wait at the same time, and whoever
    /// asks for the same keys soon does not wait again.
    pub fn warm<'k>(&self, keys: impl Iterator<Item = &'k Key>) {
        std::hint::black_box(keys.fold(0, |all, key| all ^ self.taken.touch(key)));
    }

    /// What an idempotency key stands for at `now`.
    pub fn request(&self, key: &Key, now: Timestamp) -> Request {
        if let Some(claim) = self.holders(key).next() {
            let forgotten = self.claim(claim).is_none_or(|record| record.request_is_forgotten(now));
            return if forgotten { Request::Unknown } else { Request::Claim(claim) };
        }
        match self.spent.get(key) {
            Some(until) if *until > now => Request::Spent,
            _ => Request::Unknown,
        }
    }

    /// The keys a claim holds that ending it frees: all but the request's, the person's only if asked.
    pub fn keys_to_free(&self, record: &ClaimRecord, with_person: bool) -> SmallVec<[Key; 8]> {
        (ORDER_LINE..usize::from(record.keys_len))
            .filter(|place| record.holds(*place) && (*place != PERSON || with_person))
            .filter_map(|place| self.claims.key(record, place).copied())
            .collect()
    }

    /// The device keys a claim was given, held or not.
    pub fn device_keys(&self, record: &ClaimRecord) -> SmallVec<[Key; 4]> {
        (record.devices_from()..usize::from(record.keys_len))
            .filter_map(|place| self.claims.key(record, place).copied())
            .collect()
    }

    /// A fund.
    pub fn fund(&self, ix: FundIx) -> Option<&Fund> {
        self.funds.get(usize::from(ix.0))
    }

    /// All funds, in the order of opening.
    pub fn funds(&self) -> &[Fund] {
        &self.funds
    }

    /// Finds a fund by its id.
    pub fn find_fund(&self, id: &FundId) -> Option<FundIx> {
        self.fund_by_id.get(id).copied()
    }

    /// The funds of a programme for exactly this region.
    pub fn funds_at(
        &self,
        programme: &ProgrammeId,
        region: RegionCode,
    ) -> impl Iterator<Item = (FundIx, &Fund)> {
        let found = self.funds_by_place.get(programme).and_then(|places| places.get(&region));
        found.into_iter().flatten().filter_map(|ix| Some((*ix, self.fund(*ix)?)))
    }

    /// The fund that pays for a sale: the most specific one of the programme whose region covers the
    /// sale's and whose period contains its day.
    pub fn fund_for(&self, programme: &ProgrammeId, region: RegionCode, day: Day) -> Option<(FundIx, &Fund)> {
        [region, region.city(), region.province()].into_iter().find_map(|region| {
            self.funds_at(programme, region).find(|(_, fund)| fund.from <= day && day <= fund.to)
        })
    }

    /// The hold that ends first, and when.
    pub fn first_hold(&self) -> Option<(Timestamp, ClaimIx)> {
        self.holds.first().copied()
    }

    /// The holds on a fund that time has ended by `now`, earliest first.
    pub fn dead_holds(&self, fund: FundIx, now: Timestamp) -> impl Iterator<Item = ClaimIx> {
        let from = (fund, Timestamp::from_ms(i64::MIN), ClaimIx(0));
        self.holds_by_fund.range(from..=(fund, now, ClaimIx(u32::MAX))).map(|(_, _, claim)| *claim)
    }

    /// The position and the content of an officer's earlier request under this key.
    pub fn officer_request(&self, key: &Key) -> Option<(u64, Key)> {
        self.officer_requests.get(key).copied()
    }

    /// The id of the last claim made.
    pub fn last_claim_id(&self) -> Option<ClaimId> {
        let records = &self.claims.records;
        records.get(records.len.checked_sub(1)?).map(|record| record.id)
    }

    /// A digest of everything in the state, the same for the same journal on every backend, machine,
    /// restart and version of this program. Takes time in proportion to the state. It also looks every
    /// held key up in the index, so that an index that lost one shows.
    pub fn digest(&self) -> Hash {
        let mut digest = Digest::default();
        self.put_rest(&mut digest);
        for (number, record) in self.claims.records.iter().enumerate() {
            self.put_claim(number, record, &mut digest);
        }
        let index_is_whole = digest.index_is_whole && digest.held == self.taken.len();
        digest.number(u64::from(index_is_whole));
        digest.finish()
    }

    /// A digest of one part of the state; takes no longer than [`limits::DIGEST_CLAIMS_MAX`] claims do.
    pub fn digest_of(&self, part: Part) -> Hash {
        let mut digest = Digest::default();
        match part {
            Part::Rest => {
                self.put_rest(&mut digest);
                digest.number(self.claims.records.len as u64);
                digest.number(self.taken.len());
                digest.number(self.holds.len() as u64);
            }
            Part::Claims { first } => {
                for number in first..first.saturating_add(limits::DIGEST_CLAIMS_MAX) {
                    let Some(record) = self.claims.records.get(number) else { break };
                    self.put_claim(number, record, &mut digest);
                }
                digest.number(u64::from(digest.index_is_whole));
            }
        }
        digest.finish()
    }

    /// Everything but the claims.
    fn put_rest(&self, digest: &mut Digest) {
        digest.number(self.head.position);
        digest.bytes(self.head.hash.bytes());
        digest.time(self.at);
        digest.bytes(self.journal_id.as_ref().map_or(&[], |id| id.bytes().as_slice()));
        // Digests of journals in the first format were made before there was another.
        if self.format > 1 {
            digest.number(u64::from(self.format));
        }
        digest.number(self.activated_at());
        digest.number(self.hash_keys.len() as u64);
        for (key, check) in &self.hash_keys {
            digest.text(key);
            digest.text(check);
        }
        digest.number(self.spent.len() as u64);
        for (key, until) in &self.spent {
            digest.bytes(key.bytes());
            digest.time(*until);
        }
        digest.number(self.officer_requests.len() as u64);
        for (key, (position, fingerprint)) in &self.officer_requests {
            digest.bytes(key.bytes());
            digest.number(*position);
            digest.bytes(fingerprint.bytes());
        }
        for fund in &self.funds {
            let Balance { budget, held, redeemed, frozen } = fund.balance;
            digest.text(fund.id.as_str());
            digest.text(fund.programme.as_str());
            digest.text(fund.region_code.as_str());
            for day in [fund.from, fund.to] {
                digest.bytes(&day.number().to_be_bytes());
            }
            for fen in [budget, held, redeemed] {
                digest.bytes(&fen.get().to_be_bytes());
            }
            digest.number(u64::from(frozen));
        }
    }

    /// The `number`th claim with its keys, each of which must be in the index if it is held.
    fn put_claim(&self, number: usize, record: &ClaimRecord, digest: &mut Digest) {
        let mut bytes: SmallVec<[u8; 256]> = SmallVec::new();
        bytes.extend_from_slice(record.id.bytes());
        bytes.extend_from_slice(&record.fingerprint);
        bytes.extend_from_slice(&record.made);
        bytes.extend_from_slice(&record.last);
        let [_, _, until @ ..] = record.until().ms().to_be_bytes();
        bytes.extend_from_slice(&until);
        bytes.extend_from_slice(&record.subsidy_fen.to_be_bytes());
        bytes.extend_from_slice(&record.fund.to_be_bytes());
        bytes.extend_from_slice(&record.held.to_be_bytes());
        bytes.push(record.keys_len);
        bytes.extend_from_slice(&[u8::from(record.return_restores()), u8::from(record.has_trade_in())]);
        bytes.extend_from_slice(record.status().name().as_bytes());
        if let Some(submitter) = self.submitter_of(record) {
            bytes.extend_from_slice(submitter.retailer.as_bytes());
            bytes.extend_from_slice(submitter.platform.as_deref().unwrap_or_default().as_bytes());
        }
        let claim = ClaimIx(number as u32);
        for place in 0..usize::from(record.keys_len) {
            let Some(key) = self.claims.key(record, place) else { continue };
            bytes.extend_from_slice(key.bytes());
            if record.holds(place) {
                digest.held += 1;
                let slot = Slot::new(claim, place);
                digest.index_is_whole &= self.slots(key).any(|found| found == slot);
            }
        }
        digest.index_is_whole &=
            record.status() != Status::Held || self.holds.contains(&(record.until(), claim));
        digest.context.update(&bytes);
    }
}

/// A part of the state, for comparing two of them piece by piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Everything but the claims, and how many of those there are.
    Rest,
    /// At most [`limits::DIGEST_CLAIMS_MAX`] claims.
    Claims {
        /// The first of them, in the order of making.
        first: usize,
    },
}

/// What a digest is made of, in bytes that do not depend on how this program keeps it.
struct Digest {
    context: digest::Context,
    /// Keys held by the claims put in.
    held: u64,
    /// Whether the index has each of them.
    index_is_whole: bool,
}

impl Default for Digest {
    fn default() -> Self {
        Self { context: digest::Context::new(&digest::SHA256), held: 0, index_is_whole: true }
    }
}

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }

    fn time(&mut self, at: Timestamp) {
        self.bytes(&at.ms().to_be_bytes());
    }

    fn finish(self) -> Hash {
        Hash::from_slice(self.context.finish().as_ref()).unwrap_or(Hash::ZERO)
    }
}

// --- Changing ---

impl State {
    /// Applies the entry whose bytes hash to `hash`. With `undo`, the inverses are kept there.
    ///
    /// On an error the state is unchanged.
    pub fn fold<S, C>(
        &mut self,
        entry: &Entry<ClaimMade<S, C>>,
        hash: Hash,
        undo: Option<&mut Undo>,
    ) -> Result<(), FoldError> {
        let log = std::mem::take(&mut self.scratch);
        let mut fold = Folding { state: self, at: entry.at, position: entry.position, log };
        let folded = fold.entry(entry, hash);
        let mut log = fold.log;
        match (&folded, undo) {
            (Ok(()), Some(undo)) => undo.0.append(&mut log),
            (Ok(()), None) => log.clear(),
            (Err(_), _) => self.take_back(&mut log),
        }
        self.scratch = log;
        folded.map_err(|reason| FoldError { position: entry.position, reason })
    }

    /// Takes back everything folded since `undo` was last empty.
    pub fn unfold(&mut self, undo: &mut Undo) {
        self.take_back(&mut undo.0);
    }

    fn take_back(&mut self, log: &mut Vec<Change>) {
        while let Some(change) = log.pop() {
            self.change(change);
        }
    }

    /// Applies a change and returns its inverse.
    fn change(&mut self, change: Change) -> Change {
        match change {
            Change::Stamp(head, at) => {
                Change::Stamp(std::mem::replace(&mut self.head, head), std::mem::replace(&mut self.at, at))
            }
            Change::Journal(id) => Change::Journal(std::mem::replace(&mut self.journal_id, id)),
            Change::Format(version) => Change::Format(std::mem::replace(&mut self.format, version)),
            Change::HashKey(key, check) => {
                let before = match check {
                    Some(check) => self.hash_keys.insert(Arc::clone(&key), check),
                    None => self.hash_keys.remove(&key),
                };
                Change::HashKey(key, before)
            }
            Change::Programmes(history, activations) => Change::Programmes(
                std::mem::replace(&mut self.programmes, history),
                std::mem::replace(&mut self.activations, activations),
            ),
            Change::PushClaim(record) => {
                self.claims.records.push(record);
                Change::PopClaim
            }
            Change::PopClaim => {
                let len = self.claims.records.len.saturating_sub(1);
                let last = self.claims.records.get(len).copied();
                self.claims.records.truncate(len);
                last.map_or(Change::PopClaim, Change::PushClaim)
            }
            Change::SetClaim(ix, record) => match self.claims.records.get_mut(ix.0 as usize) {
                Some(place) => Change::SetClaim(ix, std::mem::replace(place, record)),
                None => Change::SetClaim(ix, record),
            },
            Change::TruncateKeys(len) => {
                self.claims.keys.truncate(len);
                Change::TruncateKeys(len)
            }
            Change::Take(slot) => {
                if let Some(key) = self.claims.key_of(slot).copied() {
                    self.taken.insert(&key, slot);
                }
                Change::Free(slot)
            }
            Change::Free(slot) => {
                if let Some(key) = self.claims.key_of(slot).copied() {
                    self.taken.remove(&key, slot);
                }
                Change::Take(slot)
            }
            Change::PushFund(fund) => {
                let ix = FundIx(self.funds.len() as u16);
                self.fund_by_id.insert(fund.id.clone(), ix);
                let places = self.funds_by_place.entry(fund.programme.clone()).or_default();
                places.entry(fund.region_code).or_default().push(ix);
                self.funds.push(*fund);
                Change::PopFund
            }
            Change::PopFund => match self.funds.pop() {
                Some(fund) => {
                    self.fund_by_id.remove(&fund.id);
                    let places = self.funds_by_place.get_mut(&fund.programme);
                    if let Some(list) = places.and_then(|places| places.get_mut(&fund.region_code)) {
                        list.pop();
                    }
                    Change::PushFund(Box::new(fund))
                }
                None => Change::PopFund,
            },
            Change::SetBalance(ix, balance) => match self.funds.get_mut(usize::from(ix.0)) {
                Some(fund) => Change::SetBalance(ix, std::mem::replace(&mut fund.balance, balance)),
                None => Change::SetBalance(ix, balance),
            },
            Change::Hold(fund, until, claim) => {
                self.holds.insert((until, claim));
                self.holds_by_fund.insert((fund, until, claim));
                Change::Unhold(fund, until, claim)
            }
            Change::Unhold(fund, until, claim) => {
                self.holds.remove(&(until, claim));
                self.holds_by_fund.remove(&(fund, until, claim));
                Change::Hold(fund, until, claim)
            }
            Change::Remember(until, what) => {
                self.passing.insert((until, what));
                if let Passing::Spent(key) = what {
                    self.spent.insert(key, until);
                }
                Change::Forget(until, what)
            }
            Change::Forget(until, what) => {
                self.passing.remove(&(until, what));
                if let Passing::Spent(key) = what {
                    self.spent.remove(&key);
                }
                Change::Remember(until, what)
            }
            Change::OfficerRequest(key, request) => {
                let before = match request {
                    Some(request) => self.officer_requests.insert(key, request),
                    None => self.officer_requests.remove(&key),
                };
                Change::OfficerRequest(key, before)
            }
        }
    }

    /// The number of a submitter, a new one for a new one; `None` where there are too many.
    fn submitter_number(&mut self, submitter: Submitter) -> Option<SubmitterNumber> {
        if let Some(number) = self.submitter_numbers.get(&submitter) {
            return Some(*number);
        }
        let [0, next @ ..] = u32::try_from(self.submitters.len()).ok()?.to_be_bytes() else { return None };
        self.submitters.push(submitter.clone());
        self.submitter_numbers.insert(submitter, next);
        Some(next)
    }

    fn submitter_of(&self, record: &ClaimRecord) -> Option<&Submitter> {
        let [high, middle, low] = record.submitter;
        self.submitters.get(u32::from_be_bytes([0, high, middle, low]) as usize)
    }
}

/// One entry being applied.
struct Folding<'a> {
    state: &'a mut State,
    at: Timestamp,
    position: u64,
    log: Vec<Change>,
}

type Folded = Result<(), &'static str>;

fn ensure(holds: bool, otherwise: &'static str) -> Folded {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Folding<'_> {
    fn change(&mut self, change: Change) {
        let inverse = self.state.change(change);
        self.log.push(inverse);
    }

    fn entry<S, C>(&mut self, entry: &Entry<ClaimMade<S, C>>, hash: Hash) -> Folded {
        let head = self.state.head;
        ensure(entry.position == head.position + 1, "its position is not the next")?;
        ensure(entry.prev == head.hash, "its predecessor's hash is not the one before it")?;
        ensure(entry.at >= self.state.at, "it is earlier than the one before it")?;
        self.forget_what_has_passed();
        match &entry.event {
            Event::JournalOpened { journal_id } => {
                ensure(
                    self.state.journal_id.is_none() && entry.position == 1,
                    "the journal is open already",
                )?;
                self.change(Change::Journal(Some(*journal_id)));
                self.change(Change::Format(entry.v));
            }
            Event::HashKeyIntroduced { key, check } => {
                ensure(!self.state.hash_keys.contains_key(key), "the hash key is known already")?;
                self.change(Change::HashKey(Arc::clone(key), Some(Arc::clone(check))));
            }
            Event::ProgrammesActivated { files } => {
                let history =
                    activating(&self.state.programmes, files).map_err(|_| "its programmes cannot follow")?;
                let this = Head { position: entry.position, hash };
                let activations = self.state.activations.iter().copied().chain([this]).collect();
                self.change(Change::Programmes(Arc::new(history), activations));
            }
            Event::FundOpened(opened) => {
                ensure(self.state.find_fund(&opened.fund_id).is_none(), "the fund exists")?;
                ensure(self.state.funds.len() < usize::from(u16::MAX), "there are too many funds")?;
                ensure(opened.budget >= Fen::ZERO && opened.from <= opened.to, "the fund is malformed")?;
                self.change(Change::PushFund(Box::new(Fund {
                    id: opened.fund_id.clone(),
                    programme: opened.programme.clone(),
                    region_code: opened.region_code,
                    from: opened.from,
                    to: opened.to,
                    balance: Balance { budget: opened.budget, ..Balance::default() },
                })));
                let request = Some((entry.position, opened.fingerprint));
                self.change(Change::OfficerRequest(opened.request, request));
            }
            Event::FundAdjusted(adjusted) => {
                let (ix, mut balance) = self.balance(&adjusted.fund_id)?;
                balance.budget =
                    balance.budget.checked_add(adjusted.delta).ok_or("the budget does not fit")?;
                ensure(is_covered(&balance), "the budget is below what is held and redeemed")?;
                ensure(balance == adjusted.after, "the fund is not what the entry says")?;
                self.change(Change::SetBalance(ix, balance));
                let request = Some((entry.position, adjusted.fingerprint));
                self.change(Change::OfficerRequest(adjusted.request, request));
            }
            Event::FundSwitched { fund_id, frozen, .. } => {
                let (ix, balance) = self.balance(fund_id)?;
                ensure(balance.frozen != *frozen, "the fund is in that state already")?;
                self.change(Change::SetBalance(ix, Balance { frozen: *frozen, ..balance }));
            }
            Event::ClaimMade(made) => self.made(made)?,
            Event::ClaimMoved(moved) => self.moved(moved)?,
            Event::KeySpent { key, until } => {
                self.clear_forgotten_request(key);
                ensure(self.state.holders(key).next().is_none(), "the key stands for a claim")?;
                ensure(!self.state.spent.contains_key(key), "the key is spent already")?;
                self.change(Change::Remember(*until, Passing::Spent(*key)));
            }
            Event::FormatActivated { version } => {
                ensure(*version > self.state.format, "it does not raise the journal's format")?;
                ensure(*version <= VERSION, "it raises the format to one that is not known")?;
                self.change(Change::Format(*version));
            }
            Event::SnapshotTaken { position, .. } => {
                ensure(*position < entry.position, "its snapshot is of what comes after it")?;
            }
        }
        ensure(self.state.journal_id.is_some(), "the journal is not open")?;
        ensure(entry.v == self.state.format, "it is not in the journal's format")?;
        ensure(entry.v >= entry.event.since(), "its kind came with a later format")?;
        self.change(Change::Stamp(Head { position: entry.position, hash }, entry.at));
        Ok(())
    }

    fn balance(&self, id: &FundId) -> Result<(FundIx, Balance), &'static str> {
        let ix = self.state.find_fund(id).ok_or("there is no such fund")?;
        let fund = self.state.fund(ix).ok_or("there is no such fund")?;
        Ok((ix, fund.balance))
    }

    /// Drops keys whose time has passed; a bounded number for each entry, so that every process drops
    /// the same ones at the same position.
    fn forget_what_has_passed(&mut self) {
        for _ in 0..limits::FOLD_DROPS_MAX {
            match self.state.passing.first().copied() {
                Some((until, what)) if until <= self.at => {
                    if let Passing::Claim(ix) = what {
                        self.free_request(ClaimIx(ix));
                    }
                    self.change(Change::Forget(until, what));
                }
                _ => return,
            }
        }
    }

    fn free_request(&mut self, ix: ClaimIx) {
        let Some(mut record) = self.state.claim(ix).copied() else { return };
        if record.holds(REQUEST) {
            self.change(Change::Free(Slot::new(ix, REQUEST)));
            record.held &= !(1 << REQUEST);
            self.change(Change::SetClaim(ix, record));
        }
    }

    /// Makes room for a request key that stands for nothing any more but was not dropped yet.
    fn clear_forgotten_request(&mut self, key: &Key) {
        let holder = self.state.holders(key).next();
        if let Some(ix) = holder
            && let Some(record) = self.state.claim(ix)
            && record.request_is_forgotten(self.at)
        {
            let until = record.until();
            self.free_request(ix);
            self.change(Change::Forget(until, Passing::Claim(ix.0)));
        }
        if let Some(until) = self.state.spent.get(key).copied()
            && until <= self.at
        {
            self.change(Change::Forget(until, Passing::Spent(*key)));
        }
    }

    fn ensure_free(&self, key: &Key) -> Folded {
        ensure(self.state.holders(key).next().is_none(), "a key it takes is taken")
    }

    fn move_money(&mut self, delta: &FundDelta) -> Result<FundIx, &'static str> {
        let (ix, mut balance) = self.balance(&delta.id)?;
        balance.held = balance.held.checked_add(delta.held).ok_or("the money held does not fit")?;
        balance.redeemed =
            balance.redeemed.checked_add(delta.redeemed).ok_or("the money redeemed does not fit")?;
        ensure(is_covered(&balance), "the fund does not cover what is held and redeemed")?;
        self.change(Change::SetBalance(ix, balance));
        Ok(ix)
    }

    fn made<S, C>(&mut self, made: &ClaimMade<S, C>) -> Folded {
        let ClaimKeys { request, order_line, person, device, trade_in } = &made.keys;
        ensure(self.state.last_claim_id() < Some(made.claim_id), "its claim id is not above the last")?;
        self.clear_forgotten_request(request);
        ensure(!self.state.spent.contains_key(request), "its request key is spent")?;
        for key in [request, order_line].into_iter().chain(trade_in).chain(device) {
            self.ensure_free(key)?;
        }
        let moved = match (made.status, made.held_until) {
            (Status::Held, Some(_)) => (made.subsidy, Fen::ZERO),
            (Status::Redeemed, None) => (Fen::ZERO, made.subsidy),
            _ => return Err("a claim is made held with an end, or redeemed without"),
        };
        ensure((made.fund.held, made.fund.redeemed) == moved, "it moves other money than its subsidy")?;
        let fund = self.move_money(&made.fund)?;

        let ix =
            ClaimIx(u32::try_from(self.state.claims.records.len).map_err(|_| "there are too many claims")?);
        let keys: SmallVec<[Key; 12]> = [*request, *order_line, *person]
            .into_iter()
            .chain(*trade_in)
            .chain(device.iter().copied())
            .collect();
        let mut record = ClaimRecord {
            id: made.claim_id,
            fingerprint: [0; 8],
            made: pack(self.position),
            last: pack(self.position),
            until_and_flags: [0; 6],
            submitter: self
                .state
                .submitter_number(Submitter { retailer: made.retailer, platform: made.platform.clone() })
                .ok_or("there are too many retailers")?,
            keys_at: 0,
            subsidy_fen: u32::try_from(made.subsidy.get()).map_err(|_| "the subsidy does not fit")?,
            fund: fund.0,
            held: 0,
            keys_len: 0,
        };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        record.set(
            0,
            made.status as u64
                | flag(made.return_restores(), RETURN_RESTORES)
                | flag(trade_in.is_some(), HAS_TRADE_IN),
        );
        for (byte, given) in record.fingerprint.iter_mut().zip(made.fingerprint.bytes()) {
            *byte = *given;
        }
        if let Some(until) = made.held_until {
            record.set_until(until)?;
            self.change(Change::Hold(fund, until, ix));
        }
        self.store_keys(&mut record, &keys)?;
        self.change(Change::PushClaim(record));
        for place in 0..keys.len() {
            self.change(Change::Take(Slot::new(ix, place)));
        }
        Ok(())
    }

    /// Writes a claim's run of keys, all held, and points the record at it.
    fn store_keys(&mut self, record: &mut ClaimRecord, keys: &[Key]) -> Folded {
        ensure(keys.len() <= 16, "it has too many keys")?;
        let at = self.state.claims.keys.len;
        for key in keys {
            self.state.claims.keys.push(*key);
        }
        self.log.push(Change::TruncateKeys(at));
        record.keys_at = u32::try_from(at).map_err(|_| "there are too many keys")?;
        record.held = ((1_u32 << keys.len()) - 1) as u16;
        record.keys_len = keys.len() as u8;
        Ok(())
    }

    fn moved(&mut self, moved: &ClaimMoved) -> Folded {
        let ix = self.state.find_claim(&moved.claim_id).ok_or("there is no such claim")?;
        let mut record = self.state.claim(ix).copied().ok_or("there is no such claim")?;
        ensure(record.made() == moved.made, "it names another first entry of the claim")?;
        ensure(record.last() == moved.prior, "it names another last entry of the claim")?;
        ensure(record.status() == moved.from, "it names another status of the claim")?;
        let subsidy = record.subsidy();
        let money = match (moved.from, moved.to) {
            (Status::Held, Status::Redeemed) => (subsidy.negated(), subsidy),
            (Status::Held, Status::Released | Status::Expired | Status::Cancelled) => {
                (subsidy.negated(), Fen::ZERO)
            }
            (Status::Redeemed, Status::Returned | Status::Cancelled) => (Fen::ZERO, subsidy.negated()),
            _ => return Err("a claim cannot move like this"),
        };
        ensure((moved.fund.held, moved.fund.redeemed) == money, "it moves other money than its subsidy")?;
        ensure(moved.to == Status::Redeemed || moved.takes.is_empty(), "only a redemption binds a device")?;
        let dead = record.is_dead_hold(self.at);
        ensure(
            dead == (moved.to == Status::Expired) || record.status() != Status::Held,
            "a hold expires in its time",
        )?;
        let fund = self.move_money(&moved.fund)?;
        ensure(fund.0 == record.fund, "it names another fund than the claim's")?;

        if moved.from == Status::Held {
            self.change(Change::Unhold(fund, record.until(), ix));
        }
        for key in &moved.frees {
            let place = (ORDER_LINE..usize::from(record.keys_len))
                .find(|place| record.holds(*place) && self.state.claims.key(&record, *place) == Some(key))
                .ok_or("it frees a key that the claim does not hold")?;
            self.change(Change::Free(Slot::new(ix, place)));
            record.held &= !(1 << place);
        }
        let live = moved.to == Status::Redeemed;
        let kept = if moved.to == Status::Returned && !record.return_restores() { 1 << PERSON } else { 0 };
        ensure(live || record.held & !(1 << REQUEST) == kept, "an ended claim keeps keys")?;
        let had = usize::from(record.keys_len);
        if !moved.takes.is_empty() {
            ensure(had == record.devices_from(), "the claim has a device")?;
            for key in &moved.takes {
                self.ensure_free(key)?;
            }
            let held = record.held;
            let keys: SmallVec<[Key; 12]> = (0..had)
                .filter_map(|place| self.state.claims.key(&record, place).copied())
                .chain(moved.takes.iter().copied())
                .collect();
            self.store_keys(&mut record, &keys)?;
            record.held = held | (record.held & !((1 << had) - 1));
        }
        record.set_status(moved.to);
        record.last = pack(self.position);
        if let Some(until) = moved.request_until {
            record.set_until(until)?;
            self.change(Change::Remember(until, Passing::Claim(ix.0)));
        }
        ensure(
            moved.request_until.is_some() == matches!(moved.to, Status::Released | Status::Expired),
            "only the keys of released and expired holds are forgotten",
        )?;
        self.change(Change::SetClaim(ix, record));
        for place in had..usize::from(record.keys_len) {
            self.change(Change::Take(Slot::new(ix, place)));
        }
        Ok(())
    }
}

/// The programmes once `files` are activated after `history`, or why they cannot be.
pub fn activating(history: &ProgrammeHistory, files: &[ProgrammeFile]) -> Result<ProgrammeHistory, String> {
    let files: Vec<(String, String)> =
        files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
    let set = ProgrammeSet::parse(&files).map_err(|error| error.to_string())?;
    let mut history = history.clone();
    history.activate(Arc::new(set)).map_err(|error| error.to_string())?;
    Ok(history)
}

fn is_covered(balance: &Balance) -> bool {
    let Balance { budget, held, redeemed, .. } = *balance;
    let used = held.checked_add(redeemed);
    held >= Fen::ZERO && redeemed >= Fen::ZERO && used.is_some_and(|used| used <= budget)
}
