//! Sales to send: unique, valid, and all of one length, so that a request is prepared by writing a few
//! digits into bytes made beforehand.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use subsidy_pos::identity::generate;
use subsidy_pos::time::Timestamp;

/// Counties of Zhejiang, one of each city, so that all cities' funds pay.
const REGIONS: [&str; 11] = [
    "330106", "330203", "330302", "330402", "330502", "330602", "330702", "330802", "330902", "331002",
    "331102",
];
/// Products a retailer sells; more would only cost the generator time.
const PRODUCTS: u64 = 1024;
/// Numbers taken from the common counter at a time.
const BLOCK: u64 = 1024;

/// The length of an instant as tills write it: `2026-11-23T10:15:00+08:00`.
pub const INSTANT_CHARS: usize = 25;
/// Sales in one batch.
pub const BATCH_SALES: usize = 500;

/// Numbers of sales. No two sales of one process have the same.
#[derive(Debug, Default)]
pub struct Numbers(Range<u64>);

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Numbers {
    /// The next number.
    pub fn take(&mut self) -> u64 {
        match self.0.next() {
            Some(n) => n,
            None => {
                let from = NEXT.fetch_add(BLOCK, Ordering::Relaxed);
                self.0 = from + 1..from + BLOCK;
                from
            }
        }
    }
}

/// The price of sale `n` in fen, between 1,000.00 and 4,999.99 yuan.
pub const fn price_fen(n: u64) -> u64 {
    100_000 + n.wrapping_mul(7919) % 400_000
}

/// What measure 25 pays for sale `n` in fen: 15%, rounded down. Below the cap at these prices, and never
/// less than the national programme pays. Worked out here anew, so that a wrong amount is noticed.
pub const fn subsidy_fen(n: u64) -> u64 {
    price_fen(n) * 15 / 100
}

/// The product code of sale `n`.
fn barcode(n: u64) -> &'static str {
    static BARCODES: OnceLock<Vec<String>> = OnceLock::new();
    let barcodes = BARCODES.get_or_init(|| (0..PRODUCTS).map(generate::gtin13_from).collect());
    barcodes.get((n % PRODUCTS) as usize).map_or("", String::as_str)
}

/// The time as tills write it, looked up once a second.
#[derive(Clone, Copy, Debug)]
pub struct TillClock {
    text: [u8; INSTANT_CHARS],
    until: Option<Instant>,
}

impl Default for TillClock {
    fn default() -> Self {
        Self { text: [b'0'; INSTANT_CHARS], until: None }
    }
}

impl TillClock {
    /// The second that `now` lies in.
    pub fn text(&mut self, now: Instant) -> [u8; INSTANT_CHARS] {
        if self.until.is_none_or(|until| now >= until) {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let second = Timestamp::from_ms(i64::try_from(since.as_secs()).unwrap_or_default() * 1000);
            put(&mut self.text, second.to_string().as_bytes());
            self.until =
                Some(now + Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into()));
        }
        self.text
    }
}

/// Where the parts of a sale that change stand in its text, from its first byte.
#[derive(Clone, Debug, Default)]
struct Slots {
    order_no: Range<usize>,
    price: Range<usize>,
    expected_subsidy: Range<usize>,
    region_code: Range<usize>,
    sold_at: Range<usize>,
    id_number: Range<usize>,
    sn: Range<usize>,
    barcode: Range<usize>,
    imei: Range<usize>,
}

/// What the text of a sale is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Claim,
    Quote,
}

/// Text being put together, with holes.
#[derive(Default)]
struct Composer {
    bytes: Vec<u8>,
}

impl Composer {
    fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// A hole as wide as `like`, filled with it for now.
    fn hole(&mut self, like: &str) -> Range<usize> {
        let from = self.bytes.len();
        self.text(like);
        from..self.bytes.len()
    }

    /// One sale.
    fn sale(&mut self, purpose: Purpose) -> Slots {
        let mut slots = Slots::default();
        if purpose == Purpose::Claim {
            self.text(r#"{"mode":"redeem","order_no":""#);
            slots.order_no = self.hole("SO20261123-000000000000");
            self.text(r#"","order_line":1,"category":"smart_glasses","price":""#);
        } else {
            self.text(r#"{"category":"smart_glasses","price":""#);
        }
        slots.price = self.hole("4000.00");
        self.text(r#"","expected_subsidy":""#);
        slots.expected_subsidy = self.hole("600.00");
        self.text(r#"","region_code":""#);
        slots.region_code = self.hole("330106");
        self.text(r#"","sold_at":""#);
        slots.sold_at = self.hole("2026-11-23T10:15:00+08:00");
        self.text(r#"","consumer":{"id_type":"resident_id","id_number":""#);
        slots.id_number = self.hole("11010519491231002X");
        self.text(r#""},"device":{"sn":""#);
        slots.sn = self.hole("RG2-8812-000000000000");
        self.text(r#"","barcode":""#);
        slots.barcode = self.hole("6901234567892");
        self.text(r#"","imei":[""#);
        slots.imei = self.hole("490154203237518");
        if purpose == Purpose::Claim {
            self.text(r#""]},"sale_channel":"offline","store_code":"HZ-0012","terminal_no":"03"}"#);
        } else {
            self.text(r#""]},"sale_channel":"offline"}"#);
        }
        slots
    }
}

/// Writes `text` into a slot of its length.
fn put(slot: &mut [u8], text: &[u8]) {
    debug_assert_eq!(slot.len(), text.len());
    for (slot, byte) in slot.iter_mut().zip(text) {
        *slot = *byte;
    }
}

/// Writes `n` into a slot, with zeros before it.
fn put_number(slot: &mut [u8], mut n: u64) {
    for slot in slot.iter_mut().rev() {
        *slot = b'0' + (n % 10) as u8;
        n /= 10;
    }
    debug_assert_eq!(n, 0, "the slot is too narrow");
}

/// Writes an amount into a slot: yuan and two decimals.
fn put_fen(slot: &mut [u8], fen: u64) {
    if let Some((yuan, [point, decimals @ ..])) = slot.split_at_mut_checked(slot.len().saturating_sub(3)) {
        put_number(yuan, fen / 100);
        *point = b'.';
        put_number(decimals, fen % 100);
    }
}

impl Slots {
    fn write(&self, sale: &mut [u8], n: u64, sold_at: &[u8; INSTANT_CHARS]) {
        let mut fill = |range: &Range<usize>, text: &[u8]| {
            if let Some(slot) = sale.get_mut(range.clone()) {
                put(slot, text);
            }
        };
        fill(&self.region_code, REGIONS.get((n % 11) as usize).copied().unwrap_or_default().as_bytes());
        fill(&self.sold_at, sold_at);
        fill(&self.id_number, generate::resident_id_from(n).as_bytes());
        if let Some(slot) = sale.get_mut(self.order_no.clone()).and_then(|slot| slot.get_mut(11..)) {
            put_number(slot, n);
        }
        if let Some(slot) = sale.get_mut(self.price.clone()) {
            put_fen(slot, price_fen(n));
        }
        if let Some(slot) = sale.get_mut(self.expected_subsidy.clone()) {
            put_fen(slot, subsidy_fen(n));
        }
        self.write_device(sale, n);
    }

    fn write_device(&self, sale: &mut [u8], n: u64) {
        if let Some(slot) = sale.get_mut(self.sn.clone()).and_then(|slot| slot.get_mut(9..)) {
            put_number(slot, n);
        }
        if let Some(slot) = sale.get_mut(self.barcode.clone()) {
            put(slot, barcode(n).as_bytes());
        }
        if let Some(slot) = sale.get_mut(self.imei.clone()) {
            put(slot, generate::imei_from(n).as_bytes());
        }
    }
}

/// The bytes of one request, rewritten for each sale.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    token: Range<usize>,
    /// The byte that [`Request::flip_token`] has replaced.
    token_byte: Option<u8>,
    /// The `Idempotency-Key` header's number; empty where there is none.
    key: Range<usize>,
    body: Range<usize>,
    /// Of each sale: the number in its idempotency key, where it has one in the body, and its text.
    sales: Vec<(Range<usize>, Range<usize>)>,
    slots: Slots,
}

/// Idempotency keys are this and the number of the sale.
const KEY: &str = "sale-";
const KEY_NUMBER: &str = "0000000000000000";

impl Request {
    /// `POST /v1/claims` with one sale.
    pub fn claim(token: &str) -> Self {
        let mut body = Composer::default();
        let slots = body.sale(Purpose::Claim);
        let sale = 0..body.bytes.len();
        Self::new("/v1/claims", token, true, body, vec![(0..0, sale)], slots)
    }

    /// `POST /v1/quotes` for one sale.
    pub fn quote(token: &str) -> Self {
        let mut body = Composer::default();
        let slots = body.sale(Purpose::Quote);
        let sale = 0..body.bytes.len();
        Self::new("/v1/quotes", token, false, body, vec![(0..0, sale)], slots)
    }

    /// `POST /v1/claims/batch` with [`BATCH_SALES`] sales.
    pub fn batch(token: &str) -> Self {
        let mut body = Composer::default();
        let mut slots = Slots::default();
        let mut sales = Vec::new();
        body.text(r#"{"items":["#);
        for index in 0..BATCH_SALES {
            body.text(if index == 0 { r#"{"idempotency_key":""# } else { r#",{"idempotency_key":""# });
            body.text(KEY);
            let key = body.hole(KEY_NUMBER);
            body.text(r#"","claim":"#);
            let from = body.bytes.len();
            let mut sale = Composer::default();
            slots = sale.sale(Purpose::Claim);
            body.bytes.extend_from_slice(&sale.bytes);
            sales.push((key, from..body.bytes.len()));
            body.text("}");
        }
        body.text("]}");
        Self::new("/v1/claims/batch", token, false, body, sales, slots)
    }

    fn new(
        path: &str,
        token: &str,
        keyed: bool,
        body: Composer,
        sales: Vec<(Range<usize>, Range<usize>)>,
        slots: Slots,
    ) -> Self {
        let mut head = Composer::default();
        head.text(&format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "));
        let token = head.hole(token);
        head.text("\r\nContent-Type: application/json\r\n");
        let mut key = 0..0;
        if keyed {
            head.text("Idempotency-Key: ");
            head.text(KEY);
            key = head.hole(KEY_NUMBER);
            head.text("\r\n");
        }
        head.text(&format!("Content-Length: {}\r\n\r\n", body.bytes.len()));
        let start = head.bytes.len();
        let moved = |range: Range<usize>| range.start + start..range.end + start;
        let sales = sales.into_iter().map(|(key, sale)| (moved(key), moved(sale))).collect();
        head.bytes.extend_from_slice(&body.bytes);
        let body = start..head.bytes.len();
        Self { bytes: head.bytes, token, token_byte: None, key, body, sales, slots }
    }

    /// Makes this the request for sale `n`; of a batch, for the sale in place `index`.
    pub fn write(&mut self, index: usize, n: u64, sold_at: &[u8; INSTANT_CHARS]) {
        if let Some(slot) = self.bytes.get_mut(self.key.clone()).filter(|slot| !slot.is_empty()) {
            put_number(slot, n);
        }
        let Some((key, sale)) = self.sales.get(index) else { return };
        if let Some(slot) = self.bytes.get_mut(key.clone()).filter(|slot| slot.len() == KEY_NUMBER.len()) {
            put_number(slot, n);
        }
        if let Some(sale) = self.bytes.get_mut(sale.clone()) {
            self.slots.write(sale, n, sold_at);
        }
    }

    /// Gives the (only) sale the device of sale `n`.
    pub fn write_device(&mut self, n: u64) {
        let Some((_, sale)) = self.sales.first() else { return };
        if let Some(sale) = self.bytes.get_mut(sale.clone()) {
            self.slots.write_device(sale, n);
        }
    }

    /// Makes the check character of the document wrong; the next [`Request::write`] mends it.
    pub fn spoil_document(&mut self) {
        let Some((_, sale)) = self.sales.first() else { return };
        let last = sale.start + self.slots.id_number.end.saturating_sub(1);
        if let Some(check) = self.bytes.get_mut(last) {
            *check = if *check == b'1' { b'2' } else { b'1' };
        }
    }

    /// Makes the body something else than JSON, or JSON again.
    pub fn flip_json(&mut self) {
        if let Some(last) = self.bytes.get_mut(self.body.end.saturating_sub(1)) {
            *last = if *last == b'}' { b']' } else { b'}' };
        }
    }

    /// Makes the token's signature wrong, or right again.
    pub fn flip_token(&mut self) {
        // Not the last character, of which some bits carry nothing.
        let Some(one) = self.bytes.get_mut(self.token.end.saturating_sub(9)) else { return };
        self.token_byte = match self.token_byte.take() {
            Some(right) => {
                *one = right;
                None
            }
            None => Some(std::mem::replace(one, if *one == b'A' { b'B' } else { b'A' })),
        };
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body alone.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.body.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use subsidy_pos::identity::{Gtin, IdType, Imei, PersonId, Reference, RegionCode, SerialNumber};
    use subsidy_pos::time::Day;

    use super::*;

    const SOLD_AT: &[u8; INSTANT_CHARS] = b"2026-11-23T10:15:00+08:00";

    fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
        value.pointer(pointer).and_then(Value::as_str).unwrap()
    }

    #[test]
    fn every_sale_is_valid_and_asks_for_fifteen_percent() {
        let mut request = Request::claim("token");
        for n in [1, 2, 999, 123_456, 9_999_999, 88_888_888] {
            request.write(0, n, SOLD_AT);
            let sale: Value = serde_json::from_slice(request.body()).unwrap();
            let today = Day::parse("2026-11-23").unwrap();
            assert!(PersonId::parse(IdType::ResidentId, text(&sale, "/consumer/id_number"), today).is_ok());
            assert!(Gtin::parse(text(&sale, "/device/barcode")).is_ok());
            assert!(Imei::parse(text(&sale, "/device/imei/0")).is_ok());
            assert!(SerialNumber::parse(text(&sale, "/device/sn")).is_ok());
            assert!(Reference::parse(text(&sale, "/order_no")).is_ok());
            assert!(RegionCode::parse(text(&sale, "/region_code")).is_ok());
            let fen = |pointer| text(&sale, pointer).replace('.', "").parse::<u64>().unwrap();
            assert_eq!(fen("/price"), price_fen(n));
            assert_eq!(fen("/expected_subsidy"), fen("/price") * 15 / 100);
            assert!(text(&sale, "/order_no").ends_with(&n.to_string()));
        }
    }

    #[test]
    fn a_batch_holds_five_hundred_sales_each_with_its_own_key() {
        let mut request = Request::batch("token");
        for index in 0..BATCH_SALES {
            request.write(index, 5000 + index as u64, SOLD_AT);
        }
        let batch: Value = serde_json::from_slice(request.body()).unwrap();
        let items = batch["items"].as_array().unwrap();
        assert_eq!(items.len(), BATCH_SALES);
        for (index, item) in items.iter().enumerate() {
            assert_eq!(item["idempotency_key"], format!("sale-{:016}", 5000 + index));
            assert!(text(item, "/claim/order_no").ends_with(&(5000 + index).to_string()));
        }
    }

    #[test]
    fn the_head_says_how_long_the_body_is() {
        let mut request = Request::claim("token");
        request.write(0, 77, SOLD_AT);
        let whole = std::str::from_utf8(request.bytes()).unwrap();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(head.contains("Idempotency-Key: sale-0000000000000077"));
    }

    #[test]
    fn what_is_flipped_is_flipped_back() {
        let mut request = Request::claim("abcdefghijklmnopqrstuvwxyz_-0123456789");
        let right = request.bytes().to_vec();
        request.flip_token();
        assert_ne!(request.bytes(), right);
        request.flip_token();
        assert_eq!(request.bytes(), right);
        request.flip_json();
        assert!(serde_json::from_slice::<Value>(request.body()).is_err());
        request.flip_json();
        assert_eq!(request.bytes(), right);
    }

    #[test]
    fn numbers_never_repeat() {
        let (mut one, mut other) = (Numbers::default(), Numbers::default());
        let mut all: Vec<u64> = (0..3000).flat_map(|_| [one.take(), other.take()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6000);
    }
}
