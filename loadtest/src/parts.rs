//! What the service does with a sale between the socket and the disk, part by part. All of it follows from
//! arguments, so that any part can be repeated and measured alone.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use subsidy_pos::http::wire;
use subsidy_pos::identity::{Gtin, IdType, Imei, PersonId, SerialNumber, Uscc, generate};
use subsidy_pos::json::{self, BytesAs};
use subsidy_pos::ledger::apply::{Answer, Decision};
use subsidy_pos::ledger::entry::{ClaimMade, Effects, Entry, Hash};
use subsidy_pos::ledger::state::Undo;
use subsidy_pos::ledger::{ClaimView, Command, Stored};
use subsidy_pos::{limits, rules};

use crate::desk::Desk;

/// How many sales each part is done for in a row.
pub const SALES: u64 = 256;

/// One part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Reads a resident's document number.
    DocumentNumber,
    /// Reads a product code.
    Gtin,
    /// Reads a serial number.
    SerialNumber,
    /// Reads an IMEI.
    Imei,
    /// Reads a unified social credit code.
    Uscc,
    /// Reads a request body, identifiers and all.
    Read,
    /// Finds which of the shipped programmes pays, and how much.
    Determine,
    /// Hashes the person, makes keys and fingerprint, and determines.
    Prepare,
    /// Decides a claim on the state.
    Decide,
    /// Finds that a claim was made before.
    Replay,
    /// Encodes the claim's entry.
    Encode,
    /// Hashes the entry.
    Hash,
    /// Folds the entry into the state, in such a way that it can be taken back.
    Fold,
    /// Writes the answer.
    Answer,
    /// Reads an entry, all of it.
    Decode,
    /// Reads of an entry what the state needs, as at start.
    DecodeEffects,
}

impl Part {
    /// Every part, in the order in which a sale meets them.
    pub const ALL: [Self; 16] = [
        Self::DocumentNumber,
        Self::Gtin,
        Self::SerialNumber,
        Self::Imei,
        Self::Uscc,
        Self::Read,
        Self::Determine,
        Self::Prepare,
        Self::Decide,
        Self::Replay,
        Self::Encode,
        Self::Hash,
        Self::Fold,
        Self::Answer,
        Self::Decode,
        Self::DecodeEffects,
    ];

    /// What it is called in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DocumentNumber => "document number",
            Self::Gtin => "product code",
            Self::SerialNumber => "serial number",
            Self::Imei => "IMEI",
            Self::Uscc => "social credit code",
            Self::Read => "read a body",
            Self::Determine => "determine",
            Self::Prepare => "prepare a draft",
            Self::Decide => "decide",
            Self::Replay => "decide a replay",
            Self::Encode => "encode an entry",
            Self::Hash => "hash an entry",
            Self::Fold => "fold an entry",
            Self::Answer => "write an answer",
            Self::Decode => "decode an entry",
            Self::DecodeEffects => "decode its effects",
        }
    }
}

/// Sales at every step of their way.
pub struct Parts {
    desk: Desk,
    undo: Undo,
    identifiers: Vec<Identifiers>,
    /// Number and request body.
    bodies: Vec<(u64, Vec<u8>)>,
    /// Claims to make, of these bodies.
    fresh: Vec<Command>,
    /// Claims that were made.
    known: Vec<Command>,
    /// Entries of the claims to make, each following the one before.
    entries: Vec<Entry>,
    encoded: Vec<Vec<u8>>,
    hashes: Vec<Hash>,
    views: Vec<ClaimView>,
}

struct Identifiers {
    document_number: String,
    gtin: String,
    serial_number: String,
    imei: String,
    uscc: String,
}

impl Identifiers {
    fn from(n: u64) -> Self {
        Self {
            document_number: generate::resident_id_from(n),
            gtin: generate::gtin13_from(n),
            serial_number: format!("RG2-8812-{n:012}"),
            imei: generate::imei_from(n),
            uscc: generate::uscc_from(n),
        }
    }
}

impl Parts {
    /// On a state with at least this many claims.
    pub fn new(claims: u64) -> Result<Self> {
        let mut desk = Desk::new()?;
        desk.fill(claims.saturating_sub(SALES))?;
        let mut known = Vec::new();
        for _ in 0..SALES {
            let (n, body) = desk.next_sale();
            let command = desk.prepare(n, desk.read(&body)?)?;
            desk.carry_out(&command)?;
            known.push(command);
        }
        let bodies: Vec<_> = (0..SALES).map(|_| desk.next_sale()).collect();
        let fresh: Result<Vec<_>> =
            bodies.iter().map(|(n, body)| desk.prepare(*n, desk.read(body)?)).collect();
        let mut parts = Self {
            desk,
            undo: Undo::default(),
            identifiers: (0..SALES).map(Identifiers::from).collect(),
            bodies,
            fresh: fresh?,
            known,
            entries: Vec::new(),
            encoded: Vec::new(),
            hashes: Vec::new(),
            views: Vec::new(),
        };
        for command in &parts.fresh {
            let entry = parts.desk.entry_of(command)?;
            let bytes = entry.to_bytes()?;
            let hash = Hash::of(&bytes);
            parts.desk.fold(&entry, hash, Some(&mut parts.undo))?;
            let stored = Arc::new(Stored { entry: entry.clone(), hash });
            parts.views.push(ClaimView::new(&[stored]).context("a claim's entry")?);
            parts.encoded.push(bytes);
            parts.hashes.push(hash);
            parts.entries.push(entry);
        }
        parts.desk.unfold(&mut parts.undo);
        Ok(parts)
    }

    /// The bytes of the entries.
    pub fn encoded(&self) -> &[Vec<u8>] {
        &self.encoded
    }

    /// Does `part` once for each of [`SALES`] sales. What belongs to it goes through `meter`, which must
    /// call what it is given once; what has to be made ready for it or taken back does not.
    pub fn run(&mut self, part: Part, meter: &mut Meter<'_>) -> Result<()> {
        let Self { desk, undo, identifiers, bodies, fresh, known, entries, encoded, hashes, views } = self;
        let today = desk.now().day();
        let done = match part {
            Part::DocumentNumber => each(identifiers, meter, |sale| {
                succeeds(PersonId::parse(IdType::ResidentId, &sale.document_number, today))
            }),
            Part::Gtin => each(identifiers, meter, |sale| succeeds(Gtin::parse(&sale.gtin))),
            Part::SerialNumber => {
                each(identifiers, meter, |sale| succeeds(SerialNumber::parse(&sale.serial_number)))
            }
            Part::Imei => each(identifiers, meter, |sale| succeeds(Imei::parse(&sale.imei))),
            Part::Uscc => each(identifiers, meter, |sale| succeeds(Uscc::parse(&sale.uscc))),
            Part::Read => each(bodies, meter, |(_, body)| succeeds(desk.read(body))),
            Part::Determine => {
                let programmes = &desk.published().programmes;
                each(fresh.iter().filter_map(sale_of), meter, |sale| {
                    succeeds(rules::determine(programmes, &sale))
                })
            }
            Part::Prepare => {
                let read = bodies.iter().map(|(n, body)| Ok((*n, desk.read(body)?)));
                let read = read.collect::<Result<Vec<_>>>()?;
                each(read, meter, |(n, body)| succeeds(desk.prepare(n, body)))
            }
            Part::Decide => {
                each(fresh, meter, |command| matches!(black_box(desk.decide(command)), Decision::Enter(_)))
            }
            Part::Replay => each(known, meter, |command| match black_box(desk.decide(command)) {
                Decision::Answer(answer) => matches!(*answer, Answer::Claim(_)),
                _ => false,
            }),
            Part::Encode => {
                // As the writer does: into bytes that are kept, and from there into bytes of their own.
                let mut bytes = Vec::with_capacity(limits::ENTRY_BYTES_USUAL);
                each(entries, meter, |entry| {
                    bytes.clear();
                    let written = entry.encode(&mut bytes);
                    black_box(Arc::<[u8]>::from(bytes.as_slice()));
                    succeeds(written)
                })
            }
            Part::Hash => each(encoded, meter, |bytes| black_box(Hash::of(bytes)) != Hash::ZERO),
            Part::Fold => {
                let folded = each(entries.iter().zip(&*hashes), meter, |(entry, hash)| {
                    succeeds(desk.fold(entry, *hash, Some(undo)))
                });
                desk.unfold(undo);
                folded
            }
            Part::Answer => {
                let history = &desk.published().history;
                each(views, meter, |view| {
                    let claim = wire::Claim::new(view, history);
                    let mut text = Vec::with_capacity(ANSWER_BYTES);
                    claim.is_some_and(|claim| succeeds(json::write(&mut text, BytesAs::Hex, &claim)))
                })
            }
            Part::Decode => each(entries.iter().zip(&*encoded), meter, |(entry, bytes)| {
                succeeds(Entry::<ClaimMade>::decode(entry.position, bytes))
            }),
            Part::DecodeEffects => each(entries.iter().zip(&*encoded), meter, |(entry, bytes)| {
                succeeds(Entry::<Effects>::decode(entry.position, bytes))
            }),
        };
        ensure!(done == SALES, "{part:?} was done {done} times, not {SALES} times");
        Ok(())
    }
}

/// As much as an answer has room for.
const ANSWER_BYTES: usize = 1536;

/// Calls what is to be measured, and measures it.
pub type Meter<'a> = dyn FnMut(&mut dyn FnMut()) + 'a;

/// Does something with all items, and counts how often that succeeds.
fn each<T>(
    items: impl IntoIterator<Item = T>,
    meter: &mut Meter<'_>,
    mut part: impl FnMut(T) -> bool,
) -> u64 {
    let mut items = items.into_iter();
    let mut done = 0;
    meter(&mut || {
        for item in items.by_ref() {
            done += u64::from(part(item));
        }
    });
    done
}

/// Whether it did, after all of it was made.
fn succeeds<T, E>(result: Result<T, E>) -> bool {
    black_box(result).is_ok()
}

/// What a claim says of its sale to the programmes.
fn sale_of(command: &Command) -> Option<rules::Sale<'_>> {
    let Command::Make(draft) = command else { return None };
    let sale = &draft.sale;
    Some(rules::Sale {
        category: sale.category.as_str(),
        price: sale.price,
        region: sale.region_code,
        sold_at: sale.sold_at,
        energy_grade: sale.energy_grade,
        trade_in_value: None,
        accept_programme: None,
    })
}
