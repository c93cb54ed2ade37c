//! From what a caller sent to a command of the ledger.
//!
//! Everything that does not depend on the ledger's state is done here, outside its one writer:
//! identifiers are parsed, the person is hashed, keys and fingerprint are made, and the programmes
//! judge the sale. Past this point a document number exists only as a keyed hash.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::json::{self, Fault, Node, Reader, Wrong};
use crate::claim::{
    ClaimId, Consumer, Device, Mode, ReturnReason, Sale, SaleChannel, Submitter, TradeIn,
};
use crate::identity::{
    Gtin, IdType, IdempotencyKey, Imei, OrderLine, PersonDigest, PersonId, Reference, RegionCode,
    SerialNumber,
};
use crate::ledger::Published;
use crate::ledger::command::{Draft, DraftKeys, Quote, Redeem};
use crate::ledger::entry::Key;
use crate::limits;
use crate::money::Fen;
use crate::programme::{Category, ProgrammeId};
use crate::rules::{self, Determination, Refused};
use crate::secrets::{HashKey, HashKeys};
use crate::time::{Day, Timestamp};

const MODES: &[(&str, Mode)] = &[("hold", Mode::Hold), ("redeem", Mode::Redeem)];
const SALE_CHANNELS: &[(&str, SaleChannel)] =
    &[("online", SaleChannel::Online), ("offline", SaleChannel::Offline)];
const LATE_REASONS: &[(&str, LateReason)] =
    &[("offline", LateReason::Offline), ("outage", LateReason::Outage)];
const RETURN_REASONS: &[(&str, ReturnReason)] = &[
    ("unwanted", ReturnReason::Unwanted),
    ("defective", ReturnReason::Defective),
    ("wrong_item", ReturnReason::WrongItem),
    ("other", ReturnReason::Other),
];

const ZERO_PRICE: Wrong = Wrong::new("amount-zero", "A price of nothing is no sale.", "售价不得为零。");
const CATEGORY_MALFORMED: Wrong = Wrong::new(
    "category-malformed",
    "A category is a small letter followed by small letters, digits and underscores.",
    "品类代码以小写字母开头，其后为小写字母、数字或下划线。",
);
const PROGRAMME_MALFORMED: Wrong = Wrong::new(
    "programme-malformed",
    "A programme is a small letter followed by small letters, digits and hyphens.",
    "补贴政策代码以小写字母开头，其后为小写字母、数字或连字符。",
);
const IMEI_REPEATED: Wrong =
    Wrong::new("imei-repeated", "The same IMEI stands here twice.", "同一IMEI重复出现。");
const HOLDS_ONLY: Wrong =
    Wrong::new("holds-only", "Only a hold lasts a number of minutes.", "仅预核销可指定时长。");

/// Why a sale is sent in late. Coded, so that no free text is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LateReason {
    /// The till had no connection.
    Offline,
    /// The service, or something on the way to it, did not answer.
    Outage,
}

/// A subsidy for the same item that another service paid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceivedElsewhere {
    /// Under which programme; it need not be one that is known here.
    pub programme: ProgrammeId,
    /// How much.
    pub amount: Fen,
}

// --- Bodies ---

/// The members of a claim as far as they were given, each canonical.
#[derive(Debug)]
struct Members {
    mode: Option<Mode>,
    order_no: Option<Reference>,
    order_line: Option<OrderLine>,
    category: Option<Category>,
    price: Option<Fen>,
    expected_subsidy: Option<Fen>,
    region_code: Option<RegionCode>,
    sold_at: Option<Timestamp>,
    late_reason: Option<LateReason>,
    consumer: Option<PersonId>,
    device: Option<Device>,
    hold_minutes: Option<u32>,
    accept_programme: Option<ProgrammeId>,
    sale_channel: Option<SaleChannel>,
    store_code: Option<Reference>,
    terminal_no: Option<Reference>,
    invoice_no: Option<Reference>,
    energy_grade: Option<u8>,
    trade_in: Option<TradeIn>,
    received_elsewhere: SmallVec<[ReceivedElsewhere; 1]>,
}

impl Members {
    /// Asks for every member a claim may have. Where `whole`, those that a claim must have are
    /// required; a quote needs only what the rules look at.
    fn read(reader: &mut Reader<'_, '_>, today: Day, whole: bool) -> Self {
        let mode = member(reader, "mode", whole, json::one_of(MODES));
        let members = Self {
            mode,
            order_no: member(reader, "order_no", whole, reference),
            order_line: reader.optional("order_line", order_line),
            category: reader.required("category", category),
            price: reader.required("price", price),
            expected_subsidy: reader.optional("expected_subsidy", json::yuan),
            region_code: reader.required("region_code", json::text(RegionCode::parse)),
            sold_at: reader.required("sold_at", json::instant),
            late_reason: reader.optional("late_reason", json::one_of(LATE_REASONS)),
            consumer: if whole {
                reader.object("consumer", |reader| consumer(reader, today))
            } else {
                reader.optional_object("consumer", |reader| consumer(reader, today))
            },
            device: if whole && mode == Some(Mode::Redeem) {
                reader.object("device", device)
            } else {
                reader.optional_object("device", device)
            },
            hold_minutes: reader.optional("hold_minutes", json::whole(1, HOLD_MINUTES_MAX)),
            accept_programme: reader.optional("accept_programme", programme),
            sale_channel: member(reader, "sale_channel", whole, json::one_of(SALE_CHANNELS)),
            store_code: reader.optional("store_code", reference),
            terminal_no: reader.optional("terminal_no", reference),
            invoice_no: reader.optional("invoice_no", reference),
            energy_grade: reader.optional("energy_grade", energy_grade),
            trade_in: reader.optional_object("trade_in", trade_in),
            received_elsewhere: reader
                .optional_array("received_elsewhere", limits::RECEIVED_ELSEWHERE_MAX, |place| {
                    place.object(received_elsewhere)
                })
                .unwrap_or_default(),
        };
        if mode == Some(Mode::Redeem) && members.hold_minutes.is_some() {
            reader.refuse("hold_minutes", HOLDS_ONLY);
        }
        members
    }
}

/// Minutes that no programme's longest hold exceeds.
const HOLD_MINUTES_MAX: u32 = hold_minutes(limits::HOLD_DAYS_MAX);
const _: () = assert!(limits::HOLD_MINUTES_DEFAULT <= hold_minutes(1));

const fn hold_minutes(days: u16) -> u32 {
    days as u32 * 24 * 60
}

fn member<T>(
    reader: &mut Reader<'_, '_>,
    name: &'static str,
    required: bool,
    parse: impl FnOnce(&Node<'_>) -> Result<T, Wrong>,
) -> Option<T> {
    if required { reader.required(name, parse) } else { reader.optional(name, parse) }
}

fn reference(node: &Node<'_>) -> Result<Reference, Wrong> {
    Ok(Reference::parse(json::string(node)?)?)
}

fn order_line(node: &Node<'_>) -> Result<OrderLine, Wrong> {
    let number = json::whole(1, limits::ORDER_LINE_MAX.into())(node)?;
    Ok(OrderLine::new(u16::try_from(number).unwrap_or_default())?)
}

fn category(node: &Node<'_>) -> Result<Category, Wrong> {
    Category::parse(json::string(node)?).ok_or(CATEGORY_MALFORMED)
}

fn programme(node: &Node<'_>) -> Result<ProgrammeId, Wrong> {
    ProgrammeId::parse(json::string(node)?).ok_or(PROGRAMME_MALFORMED)
}

fn price(node: &Node<'_>) -> Result<Fen, Wrong> {
    Some(json::yuan(node)?).filter(|price| *price > Fen::ZERO).ok_or(ZERO_PRICE)
}

fn energy_grade(node: &Node<'_>) -> Result<u8, Wrong> {
    json::whole(1, 5)(node).map(|grade| u8::try_from(grade).unwrap_or(u8::MAX))
}

fn consumer(reader: &mut Reader<'_, '_>, today: Day) -> Option<PersonId> {
    let id_type = reader.required("id_type", json::text(IdType::parse));
    reader.required("id_number", |node| {
        let number = json::string(node)?;
        // A number cannot be judged without its type, whose fault is told already.
        id_type.map(|id_type| PersonId::parse(id_type, number, today)).transpose().map_err(Wrong::from)
    })?
}

fn device(reader: &mut Reader<'_, '_>) -> Option<Device> {
    let sn = reader.required("sn", json::text(SerialNumber::parse));
    let barcode = reader.required("barcode", json::text(Gtin::parse));
    let imei: Option<SmallVec<[Imei; 2]>> =
        reader.optional_array("imei", limits::IMEI_MAX, |place| place.value(json::text(Imei::parse)));
    let imei = imei.unwrap_or_default();
    let repeated = |(index, one): (usize, &Imei)| imei.iter().take(index).any(|before| before == one);
    if imei.iter().enumerate().any(repeated) {
        reader.refuse("imei", IMEI_REPEATED);
    }
    Some(Device { sn: sn?, barcode: barcode?, imei })
}

fn trade_in(reader: &mut Reader<'_, '_>) -> Option<TradeIn> {
    let sn = reader.required("sn", json::text(SerialNumber::parse));
    let value = reader.required("value", json::yuan);
    Some(TradeIn { sn: sn?, value: value? })
}

fn received_elsewhere(reader: &mut Reader<'_, '_>) -> Option<ReceivedElsewhere> {
    let programme = reader.required("programme", programme);
    let amount = reader.required("amount", json::yuan);
    Some(ReceivedElsewhere { programme: programme?, amount: amount? })
}

/// The body of a claim: all that a caller says of one sale.
#[derive(Debug)]
pub struct ClaimBody {
    mode: Mode,
    order_no: Reference,
    order_line: OrderLine,
    category: Category,
    price: Fen,
    expected_subsidy: Option<Fen>,
    region_code: RegionCode,
    sold_at: Timestamp,
    late_reason: Option<LateReason>,
    consumer: PersonId,
    device: Option<Device>,
    hold_minutes: Option<u32>,
    accept_programme: Option<ProgrammeId>,
    sale_channel: SaleChannel,
    store_code: Option<Reference>,
    terminal_no: Option<Reference>,
    invoice_no: Option<Reference>,
    energy_grade: Option<u8>,
    trade_in: Option<TradeIn>,
    received_elsewhere: SmallVec<[ReceivedElsewhere; 1]>,
}

impl ClaimBody {
    /// Reads a claim. `today` bounds dates of birth.
    pub fn read(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self> {
        let members = Members::read(reader, today, true);
        Some(Self {
            mode: members.mode?,
            order_no: members.order_no?,
            order_line: members.order_line.unwrap_or_default(),
            category: members.category?,
            price: members.price?,
            expected_subsidy: members.expected_subsidy,
            region_code: members.region_code?,
            sold_at: members.sold_at?,
            late_reason: members.late_reason,
            consumer: members.consumer?,
            device: members.device,
            hold_minutes: members.hold_minutes,
            accept_programme: members.accept_programme,
            sale_channel: members.sale_channel?,
            store_code: members.store_code,
            terminal_no: members.terminal_no,
            invoice_no: members.invoice_no,
            energy_grade: members.energy_grade,
            trade_in: members.trade_in,
            received_elsewhere: members.received_elsewhere,
        })
    }

    /// The canonical bytes of everything the body says but for the person, who is hashed under each
    /// key: one item for each value that is given, of a tag, the length and the value, in the order
    /// of the tags. Two bodies have the same bytes if and only if they say the same. What is absent
    /// has no item; what stands for its default has the default's; the IMEIs, which are a set, are
    /// in ascending order.
    fn content(&self) -> Content {
        let mut content = Content::default();
        let imei = self.device.as_ref().map(|device| device.imei.clone()).unwrap_or_default();
        content.put(1, mode_byte(self.mode));
        content.put(2, self.order_no.as_str());
        content.put(3, self.order_line.get().to_be_bytes());
        content.put(4, self.category.as_str());
        content.fen(5, Some(self.price));
        content.fen(6, self.expected_subsidy);
        content.put(7, self.region_code.as_str());
        content.put(8, self.sold_at.ms().to_be_bytes());
        content.optional(9, self.late_reason.map(late_reason_byte));
        content.optional(10, self.device.as_ref().map(|device| device.sn.as_str()));
        content.optional(11, self.device.as_ref().map(|device| device.barcode.as_str()));
        content.each(12, sorted(imei).iter().map(Imei::as_str));
        if self.mode == Mode::Hold {
            content.put(13, self.hold_minutes.unwrap_or(limits::HOLD_MINUTES_DEFAULT).to_be_bytes());
        }
        content.optional(14, self.accept_programme.as_ref().map(ProgrammeId::as_str));
        content.put(15, sale_channel_byte(self.sale_channel));
        content.optional(16, self.store_code.as_ref().map(Reference::as_str));
        content.optional(17, self.terminal_no.as_ref().map(Reference::as_str));
        content.optional(18, self.invoice_no.as_ref().map(Reference::as_str));
        content.optional(19, self.energy_grade.map(u8::to_be_bytes));
        content.optional(20, self.trade_in.as_ref().map(|trade_in| trade_in.sn.as_str()));
        content.fen(21, self.trade_in.as_ref().map(|trade_in| trade_in.value));
        for received in &self.received_elsewhere {
            content.put(22, received.programme.as_str());
            content.fen(23, Some(received.amount));
        }
        content
    }
}

/// See [`ClaimBody::content`].
#[derive(Default)]
struct Content(SmallVec<[u8; 512]>);

impl Content {
    fn put(&mut self, tag: u8, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.0.push(tag);
        self.0.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn optional(&mut self, tag: u8, value: Option<impl AsRef<[u8]>>) {
        if let Some(value) = value {
            self.put(tag, value);
        }
    }

    fn each(&mut self, tag: u8, values: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for value in values {
            self.put(tag, value);
        }
    }

    fn fen(&mut self, tag: u8, value: Option<Fen>) {
        self.optional(tag, value.map(|value| value.get().to_be_bytes()));
    }
}

// Fingerprints are kept as long as claims: these bytes never change their meaning.

const fn mode_byte(mode: Mode) -> [u8; 1] {
    match mode {
        Mode::Hold => *b"h",
        Mode::Redeem => *b"r",
    }
}

const fn late_reason_byte(reason: LateReason) -> [u8; 1] {
    match reason {
        LateReason::Offline => *b"f",
        LateReason::Outage => *b"u",
    }
}

const fn sale_channel_byte(channel: SaleChannel) -> [u8; 1] {
    match channel {
        SaleChannel::Online => *b"n",
        SaleChannel::Offline => *b"f",
    }
}

fn sorted(mut imei: SmallVec<[Imei; 2]>) -> SmallVec<[Imei; 2]> {
    imei.sort_unstable();
    imei
}

/// The body of a quote: of a claim, what the rules look at, and anything else as far as it is known.
#[derive(Debug)]
pub struct QuoteBody {
    category: Category,
    price: Fen,
    region_code: RegionCode,
    sold_at: Timestamp,
    others: Members,
}

impl QuoteBody {
    /// Reads a quote. `today` bounds dates of birth.
    pub fn read(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self> {
        let mut others = Members::read(reader, today, false);
        Some(Self {
            category: others.category.take()?,
            price: others.price?,
            region_code: others.region_code?,
            sold_at: others.sold_at?,
            others,
        })
    }

    /// The price.
    pub const fn price(&self) -> Fen {
        self.price
    }
}

/// The body of a redemption.
#[derive(Clone, Debug)]
pub struct RedeemBody {
    /// The device, where the hold had none.
    pub device: Option<Device>,
    /// The invoice.
    pub invoice_no: Option<Reference>,
}

impl RedeemBody {
    /// Reads a redemption.
    pub fn read(reader: &mut Reader<'_, '_>) -> Option<Self> {
        let device = reader.optional_object("device", device);
        let invoice_no = reader.optional("invoice_no", reference);
        Some(Self { device, invoice_no })
    }
}

/// The body of a return.
#[derive(Clone, Copy, Debug)]
pub struct ReturnBody {
    /// Why the goods came back.
    pub reason: ReturnReason,
    /// When they did.
    pub returned_at: Timestamp,
}

impl ReturnBody {
    /// Reads a return.
    pub fn read(reader: &mut Reader<'_, '_>) -> Option<Self> {
        let reason = reader.required("reason", json::one_of(RETURN_REASONS));
        let returned_at = reader.required("returned_at", json::instant);
        Some(Self { reason: reason?, returned_at: returned_at? })
    }
}

/// The body of a cancellation by key.
#[derive(Clone, Debug)]
pub struct CancelBody {
    /// The key that the lost request had.
    pub idempotency_key: IdempotencyKey,
}

impl CancelBody {
    /// Reads a cancellation.
    pub fn read(reader: &mut Reader<'_, '_>) -> Option<Self> {
        let idempotency_key = reader.required("idempotency_key", json::text(IdempotencyKey::parse));
        Some(Self { idempotency_key: idempotency_key? })
    }
}

// --- Commands ---

/// What commands are prepared with.
#[derive(Clone, Copy, Debug)]
pub struct Preparation<'a> {
    /// The programmes that apply and the maker of keys.
    pub published: &'a Published,
    /// The live hash keys.
    pub hash_keys: &'a HashKeys,
}

impl Preparation<'_> {
    /// The claim to make under `idempotency_key`; `entropy` is random.
    ///
    /// # Errors
    /// A hold longer than the programme that pays allows.
    pub fn draft(
        &self,
        by: Submitter,
        idempotency_key: &IdempotencyKey,
        body: ClaimBody,
        entropy: u128,
    ) -> Result<Draft, Fault> {
        let judgement = self.judge(&rules::Sale {
            category: body.category.as_str(),
            price: body.price,
            region: body.region_code,
            sold_at: body.sold_at,
            energy_grade: body.energy_grade,
            trade_in_value: body.trade_in.as_ref().map(|trade_in| trade_in.value),
            accept_programme: body.accept_programme.as_ref().map(ProgrammeId::as_str),
        });
        check_hold(body.hold_minutes, &judgement)?;

        let keys = &self.published.keys;
        let person = body.consumer.identity_bytes();
        let year = body.sold_at.year();
        let content = body.content();
        let hashed = |hash_key: &HashKey| {
            let digest = PersonDigest::new(hash_key.digest(person).hash);
            let fingerprint = hash_key.mac([b"claim".as_slice(), content.0.as_slice(), digest.bytes()]);
            (digest, (Arc::clone(hash_key.label()), Key::new(fingerprint)))
        };
        let key_of = |digest: &PersonDigest| keys.person(digest, body.category.as_str(), year);
        let (digest, fingerprint) = hashed(self.hash_keys.writing());
        let consumer =
            Consumer { id_type: body.consumer.id_type(), key: Arc::clone(&fingerprint.0), digest };
        let mut persons = smallvec![key_of(&digest)];
        let mut fingerprints = smallvec![fingerprint];
        for hash_key in self.hash_keys.live().skip(1) {
            let (digest, fingerprint) = hashed(hash_key);
            persons.push(key_of(&digest));
            fingerprints.push(fingerprint);
        }
        let draft_keys = DraftKeys {
            request: self.request(&by, idempotency_key),
            fingerprints,
            order_line: keys.order_line(&by.retailer, &body.order_no, body.order_line),
            persons,
            device: body.device.as_ref().map(|device| keys.device(device)).unwrap_or_default(),
            trade_in: body.trade_in.as_ref().map(|trade_in| keys.trade_in(&trade_in.sn)),
        };
        Ok(Draft {
            mode: body.mode,
            hold_minutes: body.hold_minutes,
            expected_subsidy: body.expected_subsidy,
            accept_programme: body.accept_programme,
            late: body.late_reason.is_some(),
            received_elsewhere: !body.received_elsewhere.is_empty(),
            keys: draft_keys,
            judgement,
            judged_at: self.published.activated_at,
            entropy,
            sale: Arc::new(Sale {
                order_no: body.order_no,
                order_line: body.order_line,
                category: body.category,
                price: body.price,
                region_code: body.region_code,
                sold_at: body.sold_at,
                consumer,
                device: body.device,
                sale_channel: body.sale_channel,
                store_code: body.store_code,
                terminal_no: body.terminal_no,
                invoice_no: body.invoice_no,
                energy_grade: body.energy_grade,
                trade_in: body.trade_in,
            }),
            by,
        })
    }

    /// The claim to judge for `by` without making it.
    ///
    /// # Errors
    /// As [`Preparation::draft`].
    pub fn quote(&self, by: &Submitter, body: QuoteBody) -> Result<Quote, Fault> {
        let others = body.others;
        let trade_in_value = others.trade_in.as_ref().map(|trade_in| trade_in.value);
        let judgement = self.judge(&rules::Sale {
            category: body.category.as_str(),
            price: body.price,
            region: body.region_code,
            sold_at: body.sold_at,
            energy_grade: others.energy_grade,
            trade_in_value,
            accept_programme: others.accept_programme.as_ref().map(ProgrammeId::as_str),
        });
        check_hold(others.hold_minutes, &judgement)?;

        let keys = &self.published.keys;
        let line = others.order_line.unwrap_or_default();
        let order_line = others.order_no.map(|order_no| keys.order_line(&by.retailer, &order_no, line));
        let year = body.sold_at.year();
        let persons = others.consumer.map(|person| {
            self.hash_keys
                .live()
                .map(|hash_key| PersonDigest::new(hash_key.digest(person.identity_bytes()).hash))
                .map(|digest| keys.person(&digest, body.category.as_str(), year))
                .collect()
        });
        Ok(Quote {
            price: body.price,
            region_code: body.region_code,
            sold_at: body.sold_at,
            energy_grade: others.energy_grade,
            trade_in_value,
            accept_programme: others.accept_programme,
            expected_subsidy: others.expected_subsidy,
            received_elsewhere: !others.received_elsewhere.is_empty(),
            order_line,
            persons: persons.unwrap_or_default(),
            device: others.device.as_ref().map(|device| keys.device(device)).unwrap_or_default(),
            trade_in: others.trade_in.as_ref().map(|trade_in| keys.trade_in(&trade_in.sn)),
            judgement,
            judged_at: self.published.activated_at,
            category: body.category,
        })
    }

    /// The hold to redeem.
    pub fn redeem(&self, by: Submitter, claim_id: ClaimId, body: RedeemBody) -> Redeem {
        let device = body.device.map(|device| {
            let keys = self.published.keys.device(&device);
            (device, keys)
        });
        Redeem { by, claim_id, device, invoice_no: body.invoice_no }
    }

    /// The name of a request: its idempotency key within retailer and integrator.
    pub fn request(&self, by: &Submitter, idempotency_key: &IdempotencyKey) -> Key {
        self.published.keys.request(&by.retailer, by.platform.as_deref(), idempotency_key.as_str())
    }

    fn judge(&self, sale: &rules::Sale<'_>) -> Result<Determination, Refused> {
        rules::determine(&self.published.programmes, sale)
    }
}

/// Refuses a hold longer than the programme that pays allows. Where none pays there is no such bound,
/// and no hold either.
fn check_hold(minutes: Option<u32>, judgement: &Result<Determination, Refused>) -> Result<(), Fault> {
    let (Some(minutes), Ok(determination)) = (minutes, judgement) else { return Ok(()) };
    let most = hold_minutes(determination.chosen().programme.hold_days_max.value);
    if minutes <= most {
        return Ok(());
    }
    let wrong = Wrong::with_texts(
        "hold-too-long",
        format!("The programme that pays allows a hold of {most} minutes at most."),
        format!("所适用的补贴政策最长允许预核销{most}分钟。"),
    );
    Err(Fault { pointer: "/hold_minutes".to_owned(), wrong })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::Uscc;
    use crate::ledger::KeyRing;
    use crate::programme::{ProgrammeHistory, ProgrammeSet, shipped};
    use crate::secrets::{HashKeyId, HashKeySource, KeyUse};

    const TODAY: &str = "2026-11-23";

    fn published() -> Published {
        let programmes = Arc::new(ProgrammeSet::parse(&shipped()).unwrap());
        let mut history = ProgrammeHistory::default();
        history.activate(Arc::clone(&programmes)).unwrap();
        let keys = KeyRing::new(Key::new([7; 16]));
        Published { programmes, history: Arc::new(history), activated_at: 2, keys }
    }

    /// Live hash keys: one that writes and one that only checks, with secrets made of these bytes.
    fn hash_keys(named: [(&str, u8); 2]) -> HashKeys {
        let directory = tempfile::tempdir().unwrap();
        let source = |(at, (name, byte)): (usize, (&str, u8))| {
            let file = directory.path().join(name);
            let secret: String = (0..32).map(|place| format!("{:02x}", byte ^ place)).collect();
            std::fs::write(&file, secret).unwrap();
            let key_use = if at == 0 { KeyUse::Write } else { KeyUse::Check };
            HashKeySource { id: HashKeyId::from_name(name).unwrap(), file, key_use }
        };
        HashKeys::load(&named.into_iter().enumerate().map(source).collect::<Vec<_>>()).unwrap()
    }

    fn retailer() -> Submitter {
        Submitter { retailer: Uscc::parse("91110000600037341L").unwrap(), platform: None }
    }

    fn sale() -> Value {
        json!({
            "mode": "redeem", "order_no": "SO-1", "order_line": 1, "category": "smart_glasses",
            "price": "4000.00", "expected_subsidy": "600.00", "region_code": "330106",
            "sold_at": "2026-11-23T10:15:00+08:00",
            "consumer": {"id_type": "resident_id", "id_number": "11010519491231002X"},
            "device": {
                "sn": "RG2-8812-00417", "barcode": "6901234567892",
                "imei": ["490154203237518", "356938035643809"]
            },
            "sale_channel": "offline", "store_code": "HZ-0012", "terminal_no": "03",
            "invoice_no": "F1", "energy_grade": 1, "accept_programme": "zj-ai-25",
            "late_reason": "offline", "trade_in": {"sn": "OLD-1", "value": "100.00"},
            "received_elsewhere": [{"programme": "other", "amount": "1.00"}],
        })
    }

    fn claim(body: &Value) -> Result<ClaimBody, Vec<Fault>> {
        claim_of(&body.to_string())
    }

    fn claim_of(body: &str) -> Result<ClaimBody, Vec<Fault>> {
        let today = Day::parse(TODAY).unwrap();
        json::body(body.as_bytes(), |reader| ClaimBody::read(reader, today))
    }

    fn fingerprint(body: &Value) -> Key {
        fingerprint_of(&body.to_string())
    }

    fn fingerprint_of(body: &str) -> Key {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim_of(body).unwrap(), 0).unwrap();
        draft.keys.fingerprints[0].1
    }

    /// `body` with the member at `pointer` replaced, or taken away where `value` is nothing.
    fn with(body: &Value, pointer: &str, value: Option<Value>) -> Value {
        let mut body = body.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let members = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => members.insert(name.to_owned(), value),
            None => members.remove(name),
        };
        body
    }

    fn hold() -> Value {
        with(&sale(), "/mode", Some("hold".into()))
    }

    #[test]
    fn two_ways_to_write_one_content_have_one_fingerprint() {
        let absent = None;
        for (body, pointer, value) in [
            (sale(), "/price", Some(json!("4000"))),
            (sale(), "/price", Some(json!("4000.0"))),
            (sale(), "/expected_subsidy", Some(json!("600"))),
            (sale(), "/sold_at", Some(json!("2026-11-23T02:15:00Z"))),
            (sale(), "/sold_at", Some(json!("2026-11-23T10:15:00.000+08:00"))),
            (sale(), "/order_line", absent.clone()),
            (sale(), "/order_line", Some(Value::Null)),
            (sale(), "/consumer/id_number", Some(json!("110105491231002"))),
            (sale(), "/consumer/id_number", Some(json!(" 11010519491231002x "))),
            (sale(), "/consumer/id_number", Some(json!("１１０１０５１９４９１２３１００２Ｘ"))),
            (sale(), "/device/sn", Some(json!(" rg2-8812-00417"))),
            (sale(), "/device/barcode", Some(json!("06901234567892"))),
            (sale(), "/device/imei", Some(json!(["356938035643809", "490154203237518"]))),
            (sale(), "/trade_in/sn", Some(json!("old-1"))),
            (sale(), "/trade_in/value", Some(json!("100"))),
            (hold(), "/hold_minutes", Some(json!(30))),
            (hold(), "/hold_minutes", Some(Value::Null)),
        ] {
            let other = with(&body, pointer, value.clone());
            assert_eq!(fingerprint(&body), fingerprint(&other), "{pointer}: {value:?}");
        }
        let without = |pointer, empty| {
            let bare = with(&sale(), pointer, None);
            assert_eq!(fingerprint(&bare), fingerprint(&with(&bare, pointer, Some(Value::Null))), "{pointer}");
            assert_eq!(fingerprint(&bare), fingerprint(&with(&bare, pointer, Some(empty))), "{pointer}");
        };
        without("/device/imei", json!([]));
        without("/received_elsewhere", json!([]));
        for pointer in ["/store_code", "/invoice_no", "/energy_grade", "/trade_in", "/late_reason"] {
            without(pointer, Value::Null);
        }
        let members = sale().as_object().unwrap().clone();
        let backwards: Vec<_> = members.iter().rev().map(|(name, value)| format!(" {name:?}:\t{value}\n")).collect();
        assert_eq!(fingerprint(&sale()), fingerprint_of(&format!("{{{}}}", backwards.join(","))));
    }

    #[test]
    fn every_real_difference_changes_the_fingerprint() {
        let mut seen = vec![fingerprint(&sale())];
        for (pointer, value) in [
            ("/mode", Some(json!("hold"))),
            ("/order_no", Some(json!("so-1"))),
            ("/order_line", Some(json!(2))),
            ("/category", Some(json!("smart_health"))),
            ("/price", Some(json!("4000.01"))),
            ("/expected_subsidy", Some(json!("600.01"))),
            ("/expected_subsidy", None),
            ("/region_code", Some(json!("330100"))),
            ("/sold_at", Some(json!("2026-11-23T10:15:00.001+08:00"))),
            ("/late_reason", Some(json!("outage"))),
            ("/late_reason", None),
            ("/consumer/id_number", Some(json!("440524188001010014"))),
            ("/device/sn", Some(json!("RG2-8812-00418"))),
            ("/device/barcode", Some(json!("10614141000415"))),
            ("/device/imei", Some(json!(["490154203237518"]))),
            ("/device/imei", None),
            ("/accept_programme", Some(json!("national-digital-2026"))),
            ("/accept_programme", None),
            ("/sale_channel", Some(json!("online"))),
            ("/store_code", Some(json!("HZ-0013"))),
            ("/store_code", None),
            ("/terminal_no", Some(json!("04"))),
            ("/terminal_no", None),
            ("/invoice_no", Some(json!("F2"))),
            ("/invoice_no", None),
            ("/energy_grade", Some(json!(2))),
            ("/energy_grade", None),
            ("/trade_in/sn", Some(json!("OLD-2"))),
            ("/trade_in/value", Some(json!("100.01"))),
            ("/trade_in", None),
            ("/received_elsewhere", Some(json!([{"programme": "other", "amount": "2.00"}]))),
            ("/received_elsewhere", Some(json!([{"programme": "another", "amount": "1.00"}]))),
            ("/received_elsewhere", None),
        ] {
            let other = fingerprint(&with(&sale(), pointer, value.clone()));
            assert!(!seen.contains(&other), "{pointer}: {value:?}");
            seen.push(other);
        }
        let passport = json!({"id_type": "hm_travel_permit", "id_number": "H12345678"});
        let other = fingerprint(&with(&sale(), "/consumer", Some(passport)));
        assert!(!seen.contains(&other));
        seen.push(other);
        for other in [with(&hold(), "/hold_minutes", Some(json!(31))), with(&hold(), "/device", None)] {
            let other = fingerprint(&other);
            assert!(!seen.contains(&other));
            seen.push(other);
        }
    }

    #[test]
    fn values_cannot_slide_from_one_member_into_the_next() {
        let moved = |store: &str, terminal: &str| {
            let body = with(&sale(), "/store_code", Some(store.into()));
            fingerprint(&with(&body, "/terminal_no", Some(terminal.into())))
        };
        assert_ne!(moved("AB", "C"), moved("A", "BC"));
        let only_store = with(&with(&sale(), "/store_code", Some("A".into())), "/terminal_no", None);
        let only_terminal = with(&with(&sale(), "/terminal_no", Some("A".into())), "/store_code", None);
        assert_ne!(fingerprint(&only_store), fingerprint(&only_terminal));
    }

    #[test]
    fn whoever_writes_under_one_key_is_known_to_whoever_checks_it() {
        let published = published();
        let draft = |hash_keys: &HashKeys| {
            let preparation = Preparation { published: &published, hash_keys };
            let key = IdempotencyKey::parse("key").unwrap();
            preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 0).unwrap()
        };
        let (older, newer) =
            (draft(&hash_keys([("k1", 1), ("k2", 2)])), draft(&hash_keys([("k2", 2), ("k1", 1)])));
        assert_eq!(&*older.sale.consumer.key, "hmac-sha256/k1");
        assert_eq!(&*newer.sale.consumer.key, "hmac-sha256/k2");
        assert_eq!(older.keys.persons[0], newer.keys.persons[1]);
        assert_eq!(older.keys.persons[1], newer.keys.persons[0]);
        assert_eq!(older.keys.fingerprints[0], newer.keys.fingerprints[1]);
        assert_eq!(older.keys.fingerprints[1], newer.keys.fingerprints[0]);
        assert_ne!(older.sale.consumer.digest, newer.sale.consumer.digest);
        assert_eq!(older.keys.device, newer.keys.device);
    }

    #[test]
    fn a_person_has_one_entitlement_a_category_and_year_of_the_sale() {
        let published = published();
        let hash_keys = hash_keys([("k1", 1), ("k2", 2)]);
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let person = |pointer: &str, value: &str| {
            let body = claim(&with(&sale(), pointer, Some(value.into()))).unwrap();
            let key = IdempotencyKey::parse("key").unwrap();
            preparation.draft(retailer(), &key, body, 0).unwrap().keys.persons[0]
        };
        let one = person("/price", "4000");
        assert_eq!(one, person("/sold_at", "2026-01-01T00:00:00+08:00"));
        assert_ne!(one, person("/sold_at", "2025-12-31T23:59:59+08:00"));
        assert_ne!(one, person("/category", "smart_health"));
        assert_ne!(one, person("/consumer/id_number", "440524188001010014"));
    }

    #[test]
    fn the_draft_is_judged_and_names_only_what_was_sent() {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 5).unwrap();
        let determination = draft.judgement.as_ref().unwrap();
        assert_eq!(determination.chosen().amount, Fen::new(60_000));
        assert_eq!((draft.judged_at, draft.entropy, draft.late), (2, 5, true));
        assert!(draft.received_elsewhere);
        assert_eq!(draft.keys.device.len(), 3);
        assert_eq!(draft.sale.device.as_ref().unwrap().barcode.as_str(), "06901234567892");
        let shown = format!("{draft:?}");
        assert!(!shown.contains("110105") && !shown.contains("491231"), "no part of the number is left");

        let bare = json!({
            "category": "smart_glasses", "price": "4000.00", "region_code": "330106",
            "sold_at": "2020-01-01T00:00:00+08:00",
        });
        let quote = quote(&bare).unwrap();
        let quote = preparation.quote(&retailer(), quote).unwrap();
        assert!(matches!(quote.judgement, Err(Refused::NotInForce(_))));
        assert!(quote.order_line.is_none() && quote.persons.is_empty() && quote.device.is_empty());
    }

    fn quote(body: &Value) -> Result<QuoteBody, Vec<Fault>> {
        let today = Day::parse(TODAY).unwrap();
        json::body(body.to_string().as_bytes(), |reader| QuoteBody::read(reader, today))
    }

    #[test]
    fn a_quote_finds_the_same_keys_as_its_claim() {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 0).unwrap();
        let quote = preparation.quote(&retailer(), quote(&sale()).unwrap()).unwrap();
        assert_eq!(quote.persons, draft.keys.persons);
        assert_eq!(quote.device, draft.keys.device);
        assert_eq!(quote.order_line, Some(draft.keys.order_line));
        assert_eq!(quote.trade_in, draft.keys.trade_in);
        assert_eq!(quote.judgement, draft.judgement);
    }

    fn faults(body: &Value) -> Vec<(String, &'static str)> {
        let faults = claim(body).expect_err("it has faults");
        faults.into_iter().map(|fault| (fault.pointer, fault.wrong.code)).collect()
    }

    #[test]
    fn every_fault_of_a_claim_is_named() {
        for (pointer, value, expected) in [
            ("/mode", json!("Redeem"), "not-one-of"),
            ("/order_no", json!("a b"), "reference-malformed"),
            ("/order_line", json!(0), "out-of-range"),
            ("/order_line", json!(1000), "out-of-range"),
            ("/order_line", json!("1"), "wrong-type"),
            ("/category", json!("Smart"), "category-malformed"),
            ("/price", json!("0.00"), "amount-zero"),
            ("/price", json!(4000), "amount-is-number"),
            ("/price", json!("4000.001"), "amount-malformed"),
            ("/region_code", json!("33010"), "region-malformed"),
            ("/sold_at", json!("2026-11-23T10:15:00"), "instant-malformed"),
            ("/late_reason", json!("late"), "not-one-of"),
            ("/consumer", Value::Null, "required"),
            ("/consumer/id_type", json!("passport"), "id-type-unknown"),
            ("/consumer/id_number", json!("110105194912310021"), "id-number-check-digit"),
            ("/consumer/code", json!("1"), "unknown-member"),
            ("/device", Value::Null, "required"),
            ("/device/sn", json!("a b"), "sn-malformed"),
            ("/device/barcode", json!("6901234567890"), "barcode-check-digit"),
            ("/device/imei", json!(["490154203237518", "490154203237518"]), "imei-repeated"),
            ("/hold_minutes", json!(30), "holds-only"),
            ("/accept_programme", json!("ZJ"), "programme-malformed"),
            ("/sale_channel", Value::Null, "required"),
            ("/energy_grade", json!(6), "out-of-range"),
            ("/trade_in/value", json!("-1"), "amount-malformed"),
            ("/subsidy", json!("600.00"), "unknown-member"),
        ] {
            assert_eq!(faults(&with(&sale(), pointer, Some(value))), [(pointer.to_owned(), expected)]);
        }
        let required: Vec<_> = faults(&json!({})).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(
            required,
            ["/mode", "/order_no", "/category", "/price", "/region_code", "/sold_at", "/consumer", "/sale_channel"]
        );
    }

    #[test]
    fn a_hold_lasts_no_longer_than_the_programme_that_pays_allows() {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let longest = 15 * 24 * 60;
        let draft = |minutes: u32| {
            let body = claim(&with(&hold(), "/hold_minutes", Some(minutes.into()))).unwrap();
            preparation.draft(retailer(), &IdempotencyKey::parse("key").unwrap(), body, 0)
        };
        assert_eq!(draft(longest).unwrap().hold_minutes, Some(longest));
        let fault = draft(longest + 1).unwrap_err();
        assert_eq!((fault.pointer.as_str(), fault.wrong.code), ("/hold_minutes", "hold-too-long"));
        assert_eq!(faults(&with(&hold(), "/hold_minutes", Some(json!(0))))[0].1, "out-of-range");
        assert!(claim(&with(&hold(), "/device", None)).is_ok(), "a hold needs no device");
    }
}
