//! What callers say of a sale: the bodies of claims and quotes, every value canonical once it is read.

use std::borrow::Cow;

use smallvec::SmallVec;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::extract::Readable;
use super::json::{self, Node, Reader, Wrong};
use crate::claim::{Device, Mode, SaleChannel, TradeIn};
use crate::identity::{Gtin, IdType, Imei, OrderLine, PersonId, Reference, RegionCode, SerialNumber};
use crate::limits;
use crate::money::Fen;
use crate::programme::{Category, ProgrammeId};
use crate::time::{Day, Timestamp};

const MODES: &[(&str, Mode)] = &[("hold", Mode::Hold), ("redeem", Mode::Redeem)];
const SALE_CHANNELS: &[(&str, SaleChannel)] =
    &[("online", SaleChannel::Online), ("offline", SaleChannel::Offline)];
const LATE_REASONS: &[(&str, LateReason)] =
    &[("offline", LateReason::Offline), ("outage", LateReason::Outage)];

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
#[derive(Clone, Copy, PartialEq, Eq, Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum LateReason {
    /// The till had no connection.
    Offline,
    /// The service, or something on the way to it, did not answer.
    Outage,
}

/// A subsidy for the same item that was paid elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, ToSchema)]
pub struct ReceivedElsewhere {
    /// Under which programme; it need not be one that is known here.
    #[schema(value_type = String, example = "national-digital-2026")]
    pub programme: ProgrammeId,
    /// How much, in yuan.
    #[schema(value_type = String, pattern = r"^(0|[1-9]\d{0,7})(\.\d{1,2})?$", example = "500.00")]
    pub amount: Fen,
}

/// The consumer's document. The number is hashed as it is read and kept nowhere.
#[derive(ToSchema)]
#[schema(as = ConsumerDocument)]
#[expect(dead_code, reason = "only described: what is read of it is a PersonId at once")]
struct Document {
    /// The kind of document.
    id_type: IdType,
    /// Its number.
    #[schema(example = "11010519491231002X")]
    id_number: String,
}

/// A device.
#[derive(ToSchema)]
#[schema(as = DeviceSold)]
#[expect(dead_code, reason = "only described: what is read of it is a Device at once")]
pub struct DeviceDescribed {
    /// The manufacturer's serial number: 1 to 64 of `A–Z 0–9 . _ / : + -`; small letters are taken for
    /// capital ones.
    #[schema(example = "RG2-8812-00417")]
    sn: String,
    /// GTIN-13 or GTIN-14.
    #[schema(example = "6901234567892")]
    barcode: String,
    /// Its IMEIs.
    #[schema(max_items = 4, example = json!(["490154203237518"]))]
    imei: Option<Vec<String>>,
}

/// The old device given in payment.
#[derive(ToSchema)]
#[schema(as = TradeIn)]
#[expect(dead_code, reason = "only described: what is read of it is a TradeIn at once")]
struct TradeInDescribed {
    /// Its serial number.
    #[schema(example = "OLD-1")]
    sn: String,
    /// What it was worth, in yuan.
    #[schema(pattern = r"^(0|[1-9]\d{0,7})(\.\d{1,2})?$", example = "100.00")]
    value: String,
}

/// What is said of a sale to be judged: what the rules look at, and of a claim anything else that is
/// known.
#[derive(Debug, ToSchema)]
#[schema(as = QuoteRequest)]
pub struct SaleBody {
    /// `hold` reserves until the sale is done, `redeem` says that it is.
    #[schema(value_type = Mode, required = false)]
    pub mode: Option<Mode>,
    /// The retailer's order number: 1 to 64 visible characters.
    #[schema(value_type = String, required = false, example = "SO20261123-000817")]
    pub order_no: Option<Reference>,
    /// The line of the order; 1 where absent.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 999, example = 1)]
    pub order_line: Option<OrderLine>,
    /// The class of product.
    #[schema(value_type = String, pattern = "^[a-z][a-z0-9_]*$", example = "smart_glasses")]
    pub category: Category,
    /// Final price of the one item in yuan, after every discount that lowers it.
    #[schema(value_type = String, pattern = r"^(0|[1-9]\d{0,7})(\.\d{1,2})?$", example = "4000.00")]
    pub price: Fen,
    /// The subsidy that the till showed, in yuan.
    #[schema(value_type = Option<String>, pattern = r"^(0|[1-9]\d{0,7})(\.\d{1,2})?$", example = "600.00")]
    pub expected_subsidy: Option<Fen>,
    /// Whose fund pays: six digits of GB/T 2260.
    #[schema(value_type = String, example = "330106")]
    pub region_code: RegionCode,
    /// When the item was sold. Of a claim at most 15 minutes ago, 72 hours with `late_reason`; at most 5
    /// minutes ahead.
    #[schema(value_type = String, format = DateTime, example = "2026-11-23T10:15:00+08:00")]
    pub sold_at: Timestamp,
    /// Why the sale is sent in late.
    pub late_reason: Option<LateReason>,
    /// Who bought it.
    #[schema(value_type = Document, required = false)]
    pub consumer: Option<PersonId>,
    /// The device; required to redeem.
    #[schema(value_type = Option<DeviceDescribed>)]
    pub device: Option<Device>,
    /// How long a hold lasts: 30 minutes where absent, at most as long as the programme that pays allows.
    #[schema(minimum = 1)]
    pub hold_minutes: Option<u32>,
    /// Judge under this programme only.
    #[schema(value_type = Option<String>, example = "zj-ai-25")]
    pub accept_programme: Option<ProgrammeId>,
    /// Where it was sold.
    #[schema(value_type = SaleChannel, required = false)]
    pub sale_channel: Option<SaleChannel>,
    /// The retailer's code of the store.
    #[schema(value_type = Option<String>, example = "HZ-0012")]
    pub store_code: Option<Reference>,
    /// The till.
    #[schema(value_type = Option<String>, example = "03")]
    pub terminal_no: Option<Reference>,
    /// The invoice.
    #[schema(value_type = Option<String>)]
    pub invoice_no: Option<Reference>,
    /// Energy grade, 1 (best) to 5.
    #[schema(minimum = 1, maximum = 5)]
    pub energy_grade: Option<u8>,
    /// The old device given in payment.
    #[schema(value_type = Option<TradeInDescribed>)]
    pub trade_in: Option<TradeIn>,
    /// Subsidies for the same item that were paid elsewhere.
    #[schema(value_type = Option<Vec<ReceivedElsewhere>>, max_items = 8)]
    pub received_elsewhere: SmallVec<[ReceivedElsewhere; 1]>,
}

/// A claim: a sale to be made one, of which everything is said that is not optional.
#[derive(Debug)]
pub struct ClaimBody {
    /// Whether it reserves or is the sale itself.
    pub mode: Mode,
    /// The retailer's order number.
    pub order_no: Reference,
    /// Who bought it.
    pub consumer: PersonId,
    /// Where it was sold.
    pub sale_channel: SaleChannel,
    /// Everything else.
    pub sale: SaleBody,
}

/// What a claim must have and a quote need not.
const CLAIMS_ONLY: [&str; 4] = ["mode", "order_no", "consumer", "sale_channel"];

impl PartialSchema for ClaimBody {
    fn schema() -> RefOr<Schema> {
        let mut schema = SaleBody::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            object.description = Some("One item sold to one consumer.".to_owned());
            object.required.extend(CLAIMS_ONLY.map(str::to_owned));
        }
        schema
    }
}

impl ToSchema for ClaimBody {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ClaimRequest")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        SaleBody::schemas(schemas);
    }
}

impl Readable for SaleBody {
    fn read(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self> {
        Self::read(reader, today, false)
    }
}

impl Readable for ClaimBody {
    fn read(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self> {
        let mut sale = SaleBody::read(reader, today, true)?;
        Some(Self {
            mode: sale.mode?,
            order_no: sale.order_no.take()?,
            consumer: sale.consumer.take()?,
            sale_channel: sale.sale_channel?,
            sale,
        })
    }
}

impl SaleBody {
    /// Asks for every member; those that [`CLAIMS_ONLY`] must have are required where it is a claim.
    fn read(reader: &mut Reader<'_, '_>, today: Day, is_claim: bool) -> Option<Self> {
        let mode = either(reader, "mode", is_claim, json::one_of(MODES));
        let order_no = either(reader, "order_no", is_claim, reference);
        let order_line = reader.optional("order_line", order_line);
        let category = reader.required("category", category);
        let price = reader.required("price", price);
        let expected_subsidy = reader.optional("expected_subsidy", json::yuan);
        let region_code = reader.required("region_code", json::text(RegionCode::parse));
        let sold_at = reader.required("sold_at", json::instant);
        let late_reason = reader.optional("late_reason", json::one_of(LATE_REASONS));
        let consumer = if is_claim {
            reader.object("consumer", |reader| consumer(reader, today))
        } else {
            reader.optional_object("consumer", |reader| consumer(reader, today))
        };
        let device = if is_claim && mode == Some(Mode::Redeem) {
            reader.object("device", device)
        } else {
            reader.optional_object("device", device)
        };
        let hold_minutes = reader.optional("hold_minutes", json::whole(1, HOLD_MINUTES_MAX));
        if mode == Some(Mode::Redeem) && hold_minutes.is_some() {
            reader.refuse("hold_minutes", HOLDS_ONLY);
        }
        let accept_programme = reader.optional("accept_programme", programme);
        let sale_channel = either(reader, "sale_channel", is_claim, json::one_of(SALE_CHANNELS));
        let store_code = reader.optional("store_code", reference);
        let terminal_no = reader.optional("terminal_no", reference);
        let invoice_no = reader.optional("invoice_no", reference);
        let energy_grade = reader.optional("energy_grade", energy_grade);
        let trade_in = reader.optional_object("trade_in", trade_in);
        let received_elsewhere =
            reader.optional_array("received_elsewhere", limits::RECEIVED_ELSEWHERE_MAX, |place| {
                place.object(received_elsewhere)
            });
        Some(Self {
            mode,
            order_no,
            order_line,
            category: category?,
            price: price?,
            expected_subsidy,
            region_code: region_code?,
            sold_at: sold_at?,
            late_reason,
            consumer,
            device,
            hold_minutes,
            accept_programme,
            sale_channel,
            store_code,
            terminal_no,
            invoice_no,
            energy_grade,
            trade_in,
            received_elsewhere: received_elsewhere.unwrap_or_default(),
        })
    }
}

/// Minutes that no programme's longest hold exceeds.
const HOLD_MINUTES_MAX: u32 = limits::HOLD_DAYS_MAX as u32 * 24 * 60;
const _: () = assert!(limits::HOLD_MINUTES_DEFAULT <= 24 * 60, "every programme allows a day at least");

fn either<T>(
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

/// A class of product.
///
/// # Errors
/// Anything that no category can be called.
pub fn category(node: &Node<'_>) -> Result<Category, Wrong> {
    Category::parse(json::string(node)?).ok_or(CATEGORY_MALFORMED)
}

/// The id of a programme.
///
/// # Errors
/// Anything that no programme can be called.
pub fn programme(node: &Node<'_>) -> Result<ProgrammeId, Wrong> {
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

/// Reads a device.
pub fn device(reader: &mut Reader<'_, '_>) -> Option<Device> {
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

// --- Content ---

impl ClaimBody {
    /// The canonical bytes of everything the body says but for the person, who is hashed under each
    /// key: one item for each value that is given, of a tag, the length and the value, in the order
    /// of the tags. Two bodies have the same bytes if and only if they say the same. What is absent
    /// has no item; what stands for its default has the default's; the IMEIs, which are a set, are
    /// in ascending order.
    ///
    /// Fingerprints of these bytes are kept as long as claims: no tag and no value ever changes its
    /// meaning.
    pub fn content(&self) -> Content {
        let sale = &self.sale;
        let device = sale.device.as_ref();
        let trade_in = sale.trade_in.as_ref();
        let mut content = Content(Vec::with_capacity(CONTENT_BYTES_TYPICAL));
        content.put(
            1,
            match self.mode {
                Mode::Hold => b"h",
                Mode::Redeem => b"r",
            },
        );
        content.put(2, self.order_no.as_str());
        content.put(3, sale.order_line.unwrap_or_default().get().to_be_bytes());
        content.put(4, sale.category.as_str());
        content.put_fen(5, Some(sale.price));
        content.put_fen(6, sale.expected_subsidy);
        content.put(7, sale.region_code.as_bytes());
        content.put(8, sale.sold_at.ms().to_be_bytes());
        content.put_each(
            9,
            sale.late_reason.map(|reason| match reason {
                LateReason::Offline => b"f",
                LateReason::Outage => b"u",
            }),
        );
        content.put_each(10, device.map(|device| device.sn.as_str()));
        content.put_each(11, device.map(|device| device.barcode.as_bytes()));
        content.put_each(12, device.map(|device| sorted(&device.imei)).iter().flatten().map(Imei::as_bytes));
        if self.mode == Mode::Hold {
            content.put(13, sale.hold_minutes.unwrap_or(limits::HOLD_MINUTES_DEFAULT).to_be_bytes());
        }
        content.put_each(14, sale.accept_programme.as_ref().map(ProgrammeId::as_str));
        content.put(
            15,
            match self.sale_channel {
                SaleChannel::Online => b"n",
                SaleChannel::Offline => b"f",
            },
        );
        content.put_each(16, sale.store_code.as_ref().map(Reference::as_str));
        content.put_each(17, sale.terminal_no.as_ref().map(Reference::as_str));
        content.put_each(18, sale.invoice_no.as_ref().map(Reference::as_str));
        content.put_each(19, sale.energy_grade.map(u8::to_be_bytes));
        content.put_each(20, trade_in.map(|trade_in| trade_in.sn.as_str()));
        content.put_fen(21, trade_in.map(|trade_in| trade_in.value));
        for received in &sale.received_elsewhere {
            content.put(22, received.programme.as_str());
            content.put_fen(23, Some(received.amount));
        }
        content
    }
}

/// The IMEIs of a device in ascending order: they are a set.
pub fn sorted(imei: &[Imei]) -> SmallVec<[Imei; 2]> {
    let mut sorted = SmallVec::from_slice(imei);
    sorted.sort_unstable();
    sorted
}

/// Bytes for which a content has room from the start; a claim has fewer.
const CONTENT_BYTES_TYPICAL: usize = 512;

/// See [`ClaimBody::content`].
pub struct Content(Vec<u8>);

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put(&mut self, tag: u8, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.0.push(tag);
        self.0.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn put_each(&mut self, tag: u8, values: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for value in values {
            self.put(tag, value);
        }
    }

    fn put_fen(&mut self, tag: u8, value: Option<Fen>) {
        self.put_each(tag, value.map(|value| value.get().to_be_bytes()));
    }
}
