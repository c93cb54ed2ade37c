//! The image of a state: everything in it as bytes, from which it is made again much faster than by
//! folding its journal.
//!
//! The same journal gives the same image at the same position, on every machine: numbers are big-endian,
//! claims stand in the order of making with their keys after them, and what follows from the rest (which
//! holds end when, which keys are taken) is left out and made anew. Programmes are left out too but for
//! the entries that activated them; they are read from the journal.
//!
//! Whoever reads an image has yet to find out whether it is one to believe. Until then it is only not
//! believed to be dangerous: no length in it is used that the file does not have, and nothing in it makes
//! reading fail in any other way than by an [`ImageFault`].

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use aws_lc_rs::digest;

use super::index::{Index, Place, Slot, Table, Unordered};
use super::{Change, ClaimIx, ClaimRecord, Fund, FundIx, Passing, REQUEST, State};
use crate::claim::{ClaimId, FundId, Status, Submitter};
use crate::identity::{RegionCode, Uscc};
use crate::journal::Head;
use crate::ledger::entry::{Balance, Hash, Key};
use crate::limits;
use crate::money::Fen;
use crate::programme::{ProgrammeHistory, ProgrammeId};
use crate::time::{Day, Timestamp};

/// What every image begins with.
const MAGIC: [u8; 8] = *b"SPOSIMG\n";
/// How the bytes are arranged; the number rises with every change of it, and of how keys are spread over
/// the index. There is nothing to carry over from an older one: the state is folded from the journal.
const ARRANGEMENT: u32 = 2;
/// Bytes of [`Header`].
const HEADER_BYTES: usize = 84;
/// Bytes of a claim without its keys.
const RECORD_BYTES: usize = 52;
/// Where among them the number of its keys stands.
const KEYS_LEN_AT: usize = 51;
const KEY_BYTES: usize = 16;
/// Keys of one claim.
const KEYS_MAX: u8 = 16;
/// Claims that stand together, before the keys of all of them.
const BLOCK_CLAIMS: usize = limits::CLAIM_CHUNK;

/// Why no state can be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is something else.
    #[error("it is no snapshot")]
    Other,
    /// Another version of this program made it.
    #[error("its bytes are arranged in way {0}, this program reads way {ARRANGEMENT}")]
    Arrangement(u32),
    /// It is shorter or longer than it says.
    #[error("it has {found} bytes and should have {expected}")]
    Length {
        /// Bytes that it says it has.
        expected: u128,
        /// Bytes that it has.
        found: u64,
    },
    /// Its bytes mean nothing.
    #[error("it makes no sense: {0}")]
    Malformed(&'static str),
    /// What it says of the journal is not so.
    #[error("{0}")]
    Foreign(String),
}

/// What an image says of itself at its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    head: Head,
    journal_id: Key,
    rest_bytes: u64,
    claims: u32,
    keys: u32,
}

impl Header {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&ARRANGEMENT.to_be_bytes());
        out.extend_from_slice(&self.head.position.to_be_bytes());
        out.extend_from_slice(self.head.hash.bytes());
        out.extend_from_slice(self.journal_id.bytes());
        out.extend_from_slice(&self.rest_bytes.to_be_bytes());
        out.extend_from_slice(&self.claims.to_be_bytes());
        out.extend_from_slice(&self.keys.to_be_bytes());
    }

    fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ImageFault> {
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC {
            return Err(ImageFault::Other);
        }
        match fields.u32()? {
            ARRANGEMENT => {}
            other => return Err(ImageFault::Arrangement(other)),
        }
        Ok(Self {
            head: fields.head()?,
            journal_id: fields.key()?,
            rest_bytes: fields.u64()?,
            claims: fields.u32()?,
            keys: fields.u32()?,
        })
    }

    /// Bytes of the whole image.
    fn image_bytes(&self) -> u128 {
        HEADER_BYTES as u128
            + u128::from(self.rest_bytes)
            + u128::from(self.claims) * RECORD_BYTES as u128
            + u128::from(self.keys) * KEY_BYTES as u128
    }
}

// --- Writing ---

/// Appends fields as they are read by [`Fields`].
trait Put {
    fn number(&mut self, number: u64);
    fn text(&mut self, text: &str);
    fn time(&mut self, at: Timestamp);
    fn key(&mut self, key: &Key);
    fn fen(&mut self, fen: Fen);
}

impl Put for Vec<u8> {
    fn number(&mut self, number: u64) {
        self.extend_from_slice(&number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.extend_from_slice(text.as_bytes());
    }

    fn time(&mut self, at: Timestamp) {
        self.extend_from_slice(&at.ms().to_be_bytes());
    }

    fn key(&mut self, key: &Key) {
        self.extend_from_slice(key.bytes());
    }

    fn fen(&mut self, fen: Fen) {
        self.extend_from_slice(&fen.get().to_be_bytes());
    }
}

impl State {
    /// Gives the state's image to `sink`, piece by piece; each piece is at most some megabytes.
    ///
    /// # Errors
    /// What `sink` says; and where the state has no journal yet, or too much for an image.
    pub fn write_image(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let records = &self.claims.records;
        let mut keys = 0;
        for record in records.iter() {
            keys += u64::from(record.keys_len);
        }
        let too_many = |_| io::Error::other("there are too many claims or keys for a snapshot");
        let rest = self.rest();
        let header = Header {
            head: self.head,
            journal_id: self.journal_id.ok_or_else(|| io::Error::other("the journal is empty"))?,
            rest_bytes: rest.len() as u64,
            claims: u32::try_from(records.len).map_err(too_many)?,
            keys: u32::try_from(keys).map_err(too_many)?,
        };
        let mut piece = Vec::new();
        header.write(&mut piece);
        sink(&piece)?;
        sink(&rest)?;
        for block in records.chunks.chunks(BLOCK_CLAIMS / limits::CLAIM_CHUNK) {
            piece.clear();
            block.iter().flatten().for_each(|record| put_record(record, &mut piece));
            for record in block.iter().flatten() {
                for place in 0..usize::from(record.keys_len) {
                    let key = self.claims.key(record, place);
                    piece.key(key.ok_or_else(|| io::Error::other("the state lacks a key of a claim"))?);
                }
            }
            sink(&piece)?;
        }
        Ok(())
    }

    /// Everything but the header, the claims and their keys.
    fn rest(&self) -> Vec<u8> {
        // Every member is named: a new one does not compile until it is known how it is made again.
        let Self {
            head: _,
            at,
            journal_id: _,
            format,
            hash_keys,
            programmes: _,
            activations,
            claims: _,
            taken,
            funds,
            fund_by_id: _,
            funds_by_place: _,
            holds: _,
            holds_by_fund: _,
            spent,
            passing: _,
            officer_requests,
            submitters,
            submitter_numbers: _,
            scratch: _,
        } = self;
        let mut out = Vec::new();
        out.time(*at);
        out.extend_from_slice(&format.to_be_bytes());
        out.number(activations.len() as u64);
        for activation in activations.iter() {
            out.number(activation.position);
            out.extend_from_slice(activation.hash.bytes());
        }
        out.number(hash_keys.len() as u64);
        for (key, check) in hash_keys {
            out.text(key);
            out.text(check);
        }
        out.number(funds.len() as u64);
        for fund in funds {
            let Fund { id, programme, region_code, from, to, balance } = fund;
            let Balance { budget, held, redeemed, frozen } = balance;
            out.text(id.as_str());
            out.text(programme.as_str());
            out.text(region_code.as_str());
            out.extend_from_slice(&from.number().to_be_bytes());
            out.extend_from_slice(&to.number().to_be_bytes());
            out.fen(*budget);
            out.fen(*held);
            out.fen(*redeemed);
            out.push(u8::from(*frozen));
        }
        out.number(spent.len() as u64);
        for (key, until) in spent {
            out.key(key);
            out.time(*until);
        }
        out.number(officer_requests.len() as u64);
        for (key, (position, fingerprint)) in officer_requests {
            out.key(key);
            out.number(*position);
            out.key(fingerprint);
        }
        out.number(submitters.len() as u64);
        for Submitter { retailer, platform } in submitters {
            out.text(retailer.as_str());
            out.push(u8::from(platform.is_some()));
            out.text(platform.as_deref().unwrap_or_default());
        }
        // So that room for each is made only once.
        for keys in taken.lens() {
            out.extend_from_slice(&u32::try_from(keys).unwrap_or(u32::MAX).to_be_bytes());
        }
        out
    }
}

fn put_record(record: &ClaimRecord, out: &mut Vec<u8>) {
    let ClaimRecord {
        id,
        fingerprint,
        made,
        last,
        until_and_flags,
        submitter,
        keys_at: _,
        subsidy_fen,
        fund,
        held,
        keys_len,
    } = record;
    out.extend_from_slice(id.bytes());
    out.extend_from_slice(fingerprint);
    out.extend_from_slice(made);
    out.extend_from_slice(last);
    out.extend_from_slice(until_and_flags);
    out.extend_from_slice(submitter);
    out.extend_from_slice(&subsidy_fen.to_be_bytes());
    out.extend_from_slice(&fund.to_be_bytes());
    out.extend_from_slice(&held.to_be_bytes());
    out.push(*keys_len);
}

// --- Reading ---

/// Takes fields off the front of bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageFault> {
        let (array, rest) = self.0.split_first_chunk().ok_or(ImageFault::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, ImageFault> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, ImageFault> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ImageFault> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ImageFault> {
        self.array().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Result<Timestamp, ImageFault> {
        self.array().map(i64::from_be_bytes).map(Timestamp::from_ms)
    }

    fn day(&mut self) -> Result<Day, ImageFault> {
        self.array().map(i32::from_be_bytes).map(Day::from_number)
    }

    fn fen(&mut self) -> Result<Fen, ImageFault> {
        self.array().map(i64::from_be_bytes).map(Fen::new)
    }

    fn key(&mut self) -> Result<Key, ImageFault> {
        self.array().map(Key::new)
    }

    fn flag(&mut self) -> Result<bool, ImageFault> {
        Ok(self.u8()? != 0)
    }

    fn head(&mut self) -> Result<Head, ImageFault> {
        let (position, hash) = (self.u64()?, self.array::<32>()?);
        let hash = Hash::from_slice(&hash).ok_or(ImageFault::Malformed("a hash"))?;
        Ok(Head { position, hash })
    }

    fn text(&mut self) -> Result<&'a str, ImageFault> {
        let len = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let (text, rest) = self.0.split_at_checked(len).ok_or(ImageFault::Malformed("it ends too early"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| ImageFault::Malformed("a text is none"))
    }

    /// A text that `parse` understands.
    fn parsed<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, ImageFault> {
        parse(self.text()?).ok_or(ImageFault::Malformed("a name is none"))
    }

    /// As many as a number before them says. Each takes some bytes, so there are never more than bytes.
    fn list<T, L: FromIterator<T>>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, ImageFault>,
    ) -> Result<L, ImageFault> {
        let count = self.u64()?;
        (0..count).map(|_| one(self)).collect()
    }
}

/// An image that is being read: its header is.
pub struct Image<R> {
    header: Header,
    source: Hashing<R>,
}

/// Hashes what is read.
struct Hashing<R> {
    source: R,
    digest: digest::Context,
}

impl<R: Read> Hashing<R> {
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.source.read_exact(bytes)?;
        self.digest.update(bytes);
        Ok(())
    }
}

/// Claims that stand together, and their keys. Blocks are used again and again: buffers of this size that
/// come and go among what is to stay would leave holes in the memory of the process.
#[derive(Default)]
struct Block {
    records: Vec<u8>,
    keys: Vec<u8>,
}

/// A key on its way into the index.
type Placed = (Place, Slot);

impl<R: Read + Send> Image<R> {
    /// Reads the header of an image of `len` bytes.
    ///
    /// # Errors
    /// When it is no image, or of another length than its header says.
    pub fn open(source: R, len: u64) -> Result<Self, ImageFault> {
        let mut source = Hashing { source, digest: digest::Context::new(&digest::SHA256) };
        let mut bytes = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Err(ImageFault::Length { expected: HEADER_BYTES as u128, found: len });
        }
        source.take(&mut bytes)?;
        let header = Header::read(&bytes)?;
        if header.image_bytes() != u128::from(len) {
            return Err(ImageFault::Length { expected: header.image_bytes(), found: len });
        }
        Ok(Self { header, source })
    }

    /// The last entry folded into it.
    pub fn head(&self) -> Head {
        self.header.head
    }

    /// Makes the state again, and the SHA-256 of the image. `activated` gives the programmes once these
    /// entries have activated theirs.
    ///
    /// Reading and hashing, making the claims, and filling the index go on beside each other.
    ///
    /// # Errors
    /// When the image cannot be read or makes no sense, and what `activated` says.
    pub fn read(
        mut self,
        activated: impl FnOnce(&[Head]) -> Result<ProgrammeHistory, ImageFault>,
    ) -> Result<(State, Hash), ImageFault> {
        let rest_bytes = usize::try_from(self.header.rest_bytes);
        let mut rest = vec![0; rest_bytes.map_err(|_| ImageFault::Malformed("it is too big"))?];
        self.source.take(&mut rest)?;
        let (mut state, held) = self.rest(&rest)?;
        state.programmes = Arc::new(activated(&state.activations)?);
        if held.iter().map(|count| u64::from(*count)).sum::<u64>() > u64::from(self.header.keys) {
            return Err(ImageFault::Malformed("more keys are held than there are"));
        }
        let digest = self.claims(&mut state, &held)?;
        Ok((state, digest))
    }

    /// A state without claims and programmes, and how many keys each shard of the index will have.
    fn rest(&self, rest: &[u8]) -> Result<(State, Vec<u32>), ImageFault> {
        let mut fields = Fields(rest);
        let mut state = State {
            head: self.header.head,
            journal_id: Some(self.header.journal_id),
            at: fields.time()?,
            format: fields.u16()?,
            activations: fields.list::<_, Vec<_>>(Fields::head)?.into(),
            hash_keys: fields.list(|fields| Ok((fields.text()?.into(), fields.text()?.into())))?,
            ..State::default()
        };
        let funds: Vec<Fund> = fields.list(|fields| {
            Ok(Fund {
                id: fields.parsed(FundId::parse)?,
                programme: fields.parsed(ProgrammeId::parse)?,
                region_code: fields.parsed(|text| RegionCode::parse(text).ok())?,
                from: fields.day()?,
                to: fields.day()?,
                balance: Balance {
                    budget: fields.fen()?,
                    held: fields.fen()?,
                    redeemed: fields.fen()?,
                    frozen: fields.flag()?,
                },
            })
        })?;
        if funds.len() > usize::from(u16::MAX) {
            return Err(ImageFault::Malformed("there are too many funds"));
        }
        for fund in funds {
            state.change(Change::PushFund(Box::new(fund)));
        }
        let spent: BTreeMap<Key, Timestamp> = fields.list(|fields| Ok((fields.key()?, fields.time()?)))?;
        for (key, until) in spent {
            state.change(Change::Remember(until, Passing::Spent(key)));
        }
        state.officer_requests = fields.list(|fields| Ok((fields.key()?, (fields.u64()?, fields.key()?))))?;
        let submitters: Vec<Submitter> = fields.list(|fields| {
            let retailer = fields.parsed(|text| Uscc::parse(text).ok())?;
            let has_platform = fields.flag()?;
            let platform = fields.text()?;
            Ok(Submitter { retailer, platform: has_platform.then(|| platform.into()) })
        })?;
        for submitter in submitters {
            let number = state.submitter_number(submitter);
            number.ok_or(ImageFault::Malformed("it names too many retailers"))?;
        }
        let held = (0..limits::KEY_INDEX_SHARDS).map(|_| fields.u32()).collect::<Result<_, _>>()?;
        match fields.0 {
            [] => Ok((state, held)),
            _ => Err(ImageFault::Malformed("it goes on where it should end")),
        }
    }

    /// Reads the claims into a state that has everything else. `held` says how many keys each shard of the
    /// index will have.
    fn claims(self, state: &mut State, held: &[u32]) -> Result<Hash, ImageFault> {
        const THREADS: usize = limits::IMAGE_INDEXERS;
        std::thread::scope(|scope| {
            let (blocks_out, blocks) = sync_channel(limits::IMAGE_BLOCKS_AHEAD);
            let (used_out, used) = sync_channel(limits::IMAGE_BLOCKS_AHEAD);
            let reading = scope.spawn(move || self.blocks(&blocks_out, &used));
            let (mut to_index, mut indexing) = (Vec::new(), Vec::new());
            for held in held.chunks(limits::KEY_INDEX_SHARDS / THREADS) {
                let (out, placed) = sync_channel(limits::IMAGE_BLOCKS_AHEAD);
                to_index.push(Batch { keys: Vec::new(), out });
                // Made here: what is to stay would else lie among what other threads use and free.
                let shards = held.iter().map(|count| Unordered::with_room(*count as usize)).collect();
                indexing.push(scope.spawn(move || index(shards, &placed)));
            }
            let made = make_claims(state, &blocks, &used_out, to_index);
            // Whoever still sends learns that nobody listens.
            drop(blocks);
            let ended = |_| ImageFault::Malformed("a thread failed");
            let read = reading.join().map_err(ended).flatten();
            let mut tables = Vec::with_capacity(held.len());
            for indexed in indexing {
                tables.append(&mut indexed.join().map_err(ended).flatten()?);
            }
            made?;
            state.taken = Index::of(tables);
            read
        })
    }

    /// Reads block by block, as long as somebody takes them. The SHA-256 of everything.
    fn blocks(mut self, out: &SyncSender<Block>, used: &Receiver<Block>) -> Result<Hash, ImageFault> {
        let mut claims_left = self.header.claims as usize;
        let mut keys_left = self.header.keys as usize;
        while claims_left > 0 {
            let claims = claims_left.min(BLOCK_CLAIMS);
            claims_left -= claims;
            let Block { mut records, mut keys } = used.try_recv().unwrap_or_default();
            records.resize(claims * RECORD_BYTES, 0);
            self.source.take(&mut records)?;
            let records_read = records.as_chunks::<RECORD_BYTES>().0;
            let count: usize =
                records_read.iter().map(|record| usize::from(record[KEYS_LEN_AT].min(KEYS_MAX))).sum();
            keys_left = keys_left.checked_sub(count).ok_or(ImageFault::Malformed("it has too few keys"))?;
            keys.resize(count * KEY_BYTES, 0);
            self.source.take(&mut keys)?;
            let taken = out.send(Block { records, keys });
            taken.map_err(|_| ImageFault::Malformed("it was not read to its end"))?;
        }
        if keys_left > 0 {
            return Err(ImageFault::Malformed("it has too many keys"));
        }
        let digest = self.source.digest.finish();
        Hash::from_slice(digest.as_ref()).ok_or(ImageFault::Malformed("no digest"))
    }
}

/// Keys on their way to the thread that fills a part of the index.
struct Batch {
    keys: Vec<Placed>,
    out: SyncSender<Vec<Placed>>,
}

impl Batch {
    fn send(&mut self, room: usize) -> Result<(), ImageFault> {
        let keys = std::mem::replace(&mut self.keys, Vec::with_capacity(room));
        self.out.send(keys).map_err(|_| ImageFault::Malformed("the index cannot be filled"))
    }
}

/// Makes claims of blocks, and hands on the keys they hold.
fn make_claims(
    state: &mut State,
    blocks: &Receiver<Block>,
    used: &SyncSender<Block>,
    mut to_index: Vec<Batch>,
) -> Result<(), ImageFault> {
    let shards = limits::KEY_INDEX_SHARDS / to_index.len().max(1);
    let (mut holds, mut holds_by_fund, mut passing) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        let (mut keys, _) = block.keys.as_chunks::<KEY_BYTES>();
        let mut keys_at = state.claims.keys.len;
        state.claims.keys.extend(keys, |bytes| Key::new(*bytes));
        for bytes in block.records.as_chunks::<RECORD_BYTES>().0 {
            let record = record(bytes, keys_at as u32)?;
            let ix = ClaimIx(state.claims.records.len as u32);
            state.claims.records.push(record);
            match record.status() {
                Status::Held => {
                    holds.push((record.until(), ix));
                    holds_by_fund.push((FundIx(record.fund), record.until(), ix));
                }
                Status::Released | Status::Expired if record.holds(REQUEST) => {
                    passing.push((record.until(), Passing::Claim(ix.0)));
                }
                _ => {}
            }
            let (own, others) = keys
                .split_at_checked(usize::from(record.keys_len))
                .ok_or(ImageFault::Malformed("it has too few keys"))?;
            (keys, keys_at) = (others, keys_at + own.len());
            for (place, key) in own.iter().enumerate().filter(|(place, _)| record.holds(*place)) {
                let at = Place::of(&Key::new(*key));
                if let Some(batch) = to_index.get_mut(at.shard() / shards) {
                    batch.keys.push((at, Slot::new(ix, place)));
                    if batch.keys.len() == limits::IMAGE_INDEX_BATCH {
                        batch.send(limits::IMAGE_INDEX_BATCH)?;
                    }
                }
            }
        }
        // Whether it is used again is the reader's affair.
        let _ = used.try_send(block);
    }
    to_index.iter_mut().try_for_each(|batch| batch.send(0))?;
    state.holds = holds.into_iter().collect();
    state.holds_by_fund = holds_by_fund.into_iter().collect();
    state.passing.extend(passing);
    Ok(())
}

fn record(bytes: &[u8; RECORD_BYTES], keys_at: u32) -> Result<ClaimRecord, ImageFault> {
    let mut fields = Fields(bytes);
    let record = ClaimRecord {
        id: ClaimId::from_bytes(fields.array()?),
        fingerprint: fields.array()?,
        made: fields.array()?,
        last: fields.array()?,
        until_and_flags: fields.array()?,
        submitter: fields.array()?,
        keys_at,
        subsidy_fen: fields.u32()?,
        fund: fields.u16()?,
        held: fields.u16()?,
        keys_len: fields.u8()?,
    };
    if !record.has_known_flags() {
        return Err(ImageFault::Malformed("a claim has no known status"));
    }
    if record.keys_len > KEYS_MAX || u32::from(record.held) >> record.keys_len != 0 {
        return Err(ImageFault::Malformed("a claim has too many keys"));
    }
    Ok(record)
}

/// Makes a part of the index of the keys that come.
fn index(mut shards: Vec<Unordered>, placed: &Receiver<Vec<Placed>>) -> Result<Vec<Table>, ImageFault> {
    let count = shards.len().max(1);
    for (place, slot) in placed.iter().flatten() {
        let shard = shards.get_mut(place.shard() % count);
        if !shard.is_some_and(|shard| shard.push(place, slot)) {
            return Err(ImageFault::Malformed("a part of the index has too many keys"));
        }
    }
    let mut places = Vec::new();
    Ok(shards.into_iter().map(|shard| shard.order(&mut places)).collect())
}
