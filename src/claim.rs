//! The nouns: what was sold to whom, what a claim is and the states it goes through.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smallvec::SmallVec;

use crate::bytes::{Ascii, BYTES_MAX, Shown, hex};
use crate::identity::{Gtin, IdType, Imei, OrderLine, Reference, RegionCode, SerialNumber, Uscc};
use crate::money::Fen;
use crate::programme::Category;
use crate::time::Timestamp;

/// Names one claim: a UUIDv7 (RFC 9562) whose time is that of the claim's first entry.
///
/// Ids rise strictly with the journal's positions, so the claim table needs no index by id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId([u8; 16]);

impl ClaimId {
    /// The id of a claim made at `at`: `entropy` fills the random bits, unless the result would not
    /// lie above `after`, the last id given out; then it is the next one (RFC 9562, 6.2 method 2).
    pub fn following(after: Option<Self>, at: Timestamp, entropy: u128) -> Self {
        const VERSION_AND_VARIANT: u128 = (0xF << 76) | (0b11 << 62);
        let time = (at.ms().max(0) as u128) << 80;
        let random = entropy & ((1 << 80) - 1) & !VERSION_AND_VARIANT;
        let fresh = Self((time | (7 << 76) | random | (0b10 << 62)).to_be_bytes());
        match after {
            Some(last) if last >= fresh => last.next(),
            _ => fresh,
        }
    }

    /// The least valid id above this one.
    fn next(self) -> Self {
        let bits = u128::from_be_bytes(self.0);
        let low = (bits & ((1 << 62) - 1)) + 1;
        let middle = ((bits >> 64) & 0xFFF) + (low >> 62);
        let time = (bits >> 80) + (middle >> 12);
        let low = low & ((1 << 62) - 1);
        Self(((time << 80) | (7 << 76) | ((middle & 0xFFF) << 64) | (0b10 << 62) | low).to_be_bytes())
    }

    /// Reads the canonical text form, 36 characters; anything else names no claim.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return None;
        }
        let mut id = [0_u8; 16];
        let mut nibbles = 0_usize;
        for (index, &byte) in bytes.iter().enumerate() {
            if matches!(index, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = (byte as char).to_digit(16)? as u8;
            let slot = id.get_mut(nibbles / 2)?;
            *slot = (*slot << 4) | digit;
            nibbles += 1;
        }
        (id[6] >> 4 == 7 && id[8] >> 6 == 0b10).then_some(Self(id))
    }

    /// The id of these sixteen bytes, which [`ClaimId::bytes`] gave.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// When the claim was made, to the millisecond.
    pub fn made_at(&self) -> Timestamp {
        let ms = u128::from_be_bytes(self.0) >> 80;
        Timestamp::from_ms(i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

impl Shown for ClaimId {
    fn shown(&self) -> Ascii {
        let mut digits = [0; 2 * BYTES_MAX];
        hex(&self.0, &mut digits);
        let mut text = Ascii::EMPTY;
        for (begin, end) in [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)] {
            if begin > 0 {
                text.push(b"-");
            }
            text.push(&digits[begin..end]);
        }
        text
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown().as_str())
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ClaimId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown().as_str())
    }
}

impl<'de> Deserialize<'de> for ClaimId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::parse(text).ok_or_else(|| de::Error::custom("not a claim id"))
    }
}

/// Names one fund: 1–64 of `A–Z a–z 0–9 . _ -`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct FundId(std::sync::Arc<str>);

impl FundId {
    /// Reads a fund's id.
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.bytes().next()?;
        let fits = text.len() <= crate::limits::REFERENCE_CHARS_MAX
            && first.is_ascii_alphanumeric()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        fits.then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FundId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::parse(text).ok_or_else(|| de::Error::custom("not a fund id"))
    }
}

/// What a claim is at a moment. `held` is the only one that time alone ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Entitlement, device and money are reserved for a while (预核销).
    Held,
    /// The sale is done, the subsidy is due (核销).
    Redeemed,
    /// The hold was given back (预核销撤销).
    Released,
    /// Time gave the hold back.
    Expired,
    /// Taken back as if it had never been, because its answer was lost.
    Cancelled,
    /// The goods came back after redemption (退货).
    Returned,
}

impl Status {
    /// Every status, in the order of a claim's life.
    pub const ALL: [Self; 6] =
        [Self::Held, Self::Redeemed, Self::Released, Self::Expired, Self::Cancelled, Self::Returned];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Redeemed => "redeemed",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Returned => "returned",
        }
    }

    /// The status called `name` on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Whether a claim reserves or is the sale itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Reserve until the sale is done.
    Hold,
    /// The sale is done.
    Redeem,
}

/// Where the sale happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaleChannel {
    /// On a platform or a retailer's own site.
    Online,
    /// In a store.
    Offline,
}

/// Why the goods came back; coded, so that no free text enters the journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReturnReason {
    /// The consumer changed their mind.
    Unwanted,
    /// The goods do not work.
    Defective,
    /// Not what was ordered.
    WrongItem,
    /// Anything else.
    Other,
}

/// Why a fund's budget changes; coded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdjustReason {
    /// A further instalment from the treasury.
    Tranche,
    /// Moved from or to another fund.
    Transfer,
    /// A mistake is put right.
    Correction,
    /// The treasury takes money back.
    Reclaim,
}

/// A natural person as far as the journal knows them: the kind of document and a keyed hash.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// The kind of document.
    pub id_type: IdType,
    /// The key and algorithm of the hash, e.g. `hmac-sha256/k1`.
    pub key: std::sync::Arc<str>,
    /// The keyed hash of the canonical document number.
    pub digest: crate::identity::PersonDigest,
}

/// One device, canonical.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The manufacturer's serial number.
    pub sn: SerialNumber,
    /// The product's GTIN-14.
    pub barcode: Gtin,
    /// Its IMEIs, in the order given.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub imei: SmallVec<[Imei; 2]>,
}

/// The old device given in payment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TradeIn {
    /// Its serial number.
    pub sn: SerialNumber,
    /// What it was worth.
    #[serde(rename = "value_fen")]
    pub value: Fen,
}

/// One item sold to one consumer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sale {
    /// The retailer's order number.
    pub order_no: Reference,
    /// The line of the order; `None` for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_line: Option<OrderLine>,
    /// The class of product.
    pub category: Category,
    /// Final price of the item, after every discount that lowers it.
    #[serde(rename = "price_fen")]
    pub price: Fen,
    /// Whose fund pays.
    pub region_code: RegionCode,
    /// When it was sold.
    #[serde(rename = "sold_at_ms")]
    pub sold_at: Timestamp,
    /// Who bought it.
    pub consumer: Consumer,
    /// The device; a hold may not have one yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Where it was sold.
    pub sale_channel: SaleChannel,
    /// The retailer's code of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_code: Option<Reference>,
    /// The till.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_no: Option<Reference>,
    /// The invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_no: Option<Reference>,
    /// Energy grade, 1 (best) to 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_grade: Option<u8>,
    /// The old device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trade_in: Option<TradeIn>,
}

impl Sale {
    /// The line of the order.
    pub fn order_line(&self) -> OrderLine {
        self.order_line.unwrap_or_default()
    }
}

/// Who submits: a retailer itself, or a platform for a retailer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Submitter {
    /// The retailer the claim belongs to.
    pub retailer: Uscc,
    /// The platform that speaks for it, if one does.
    pub platform: Option<std::sync::Arc<str>>,
}

impl Submitter {
    /// Whether this one may act on a claim of `retailer` that `platform` submitted, if one did: a platform on what
    /// it submitted, a retailer on all of its own.
    pub fn may_act_on(&self, retailer: &Uscc, platform: Option<&str>) -> bool {
        self.retailer == *retailer && (self.platform.is_none() || self.platform.as_deref() == platform)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_ids_rise_and_survive_their_text_form() {
        let at = Timestamp::from_ms(1_764_000_000_123);
        let mut last = ClaimId::following(None, at, u128::MAX);
        assert_eq!(last.made_at(), at);
        for entropy in [0, 5, u128::MAX, 1] {
            let next = ClaimId::following(Some(last), at, entropy);
            assert!(next > last);
            assert_eq!(ClaimId::parse(&next.to_string()), Some(next));
            last = next;
        }
        assert_eq!(ClaimId::parse("0199d0c0-0000-4000-8000-000000000000"), None, "not version 7");
        assert_eq!(ClaimId::parse("nonsense"), None);
    }
}
