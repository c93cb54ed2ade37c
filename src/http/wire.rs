//! The objects of answers, as `GET /openapi.json` describes them.
//!
//! A claim is rendered from its entries and the programme versions they name, and from nothing else:
//! the same entry always gives the same bytes, so that a repeated request is answered as it was the
//! first time.

use serde::{Serialize, Serializer};
use smallvec::SmallVec;
use utoipa::ToSchema;

use crate::bytes::Shown;
use crate::claim::{self, ClaimId, FundId, Status};
use crate::identity::{Gtin, IdType, Imei, OrderLine, Reference, RegionCode, SerialNumber, Uscc};
use crate::ledger::ClaimView;
use crate::ledger::entry::{ClaimMade, Hash, Judged};
use crate::money::{Fen, Rate};
use crate::programme::{Category, Programme, ProgrammeHistory, ProgrammeId};
use crate::rules::{self, Verdict};
use crate::time::Timestamp;

/// A value that answers show as its text.
#[derive(Clone, Copy, Debug)]
pub struct Text<T>(pub T);

impl<T: Shown> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.shown().as_str())
    }
}

/// A claim as it stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct Claim<'a> {
    /// Names the claim: a UUIDv7.
    #[schema(value_type = String, format = "uuid")]
    claim_id: ClaimId,
    /// `held` → `redeemed` | `released` | `expired` | `cancelled`; `redeemed` → `returned` | `cancelled`.
    status: Status,
    /// The unified social credit code of the retailer it belongs to.
    #[schema(value_type = String, example = "91350100M000100Y43")]
    retailer: Uscc,
    /// The platform that submitted it, or the retailer itself.
    submitted_by: &'a str,
    /// The retailer's order number.
    #[schema(value_type = String, example = "SO20261123-000817")]
    order_no: &'a Reference,
    /// The line of the order.
    #[schema(value_type = u16, example = 1)]
    order_line: OrderLine,
    /// The class of product.
    #[schema(value_type = String, example = "smart_glasses")]
    category: &'a Category,
    /// Final price of the item in yuan.
    #[schema(value_type = String, example = "4000.00")]
    price: Text<Fen>,
    /// What the programme pays, in yuan.
    #[schema(value_type = String, example = "600.00")]
    subsidy: Text<Fen>,
    /// What the consumer pays, in yuan.
    #[schema(value_type = String, example = "3400.00")]
    payable: Text<Fen>,
    /// The programme that pays.
    #[schema(value_type = String, example = "zj-ai-25")]
    programme: &'a ProgrammeId,
    /// The fund that pays.
    #[schema(value_type = String, example = "zj-ai-25.330100")]
    fund_id: &'a FundId,
    /// Whose fund it is that was asked for.
    #[schema(value_type = String, example = "330106")]
    region_code: RegionCode,
    /// Until when the claim is or was held; null where it was not, or the hold did not end by time.
    #[schema(value_type = Option<String>, format = DateTime, required = true)]
    held_until: Option<Text<Timestamp>>,
    /// When the item was sold.
    #[schema(value_type = String, format = DateTime)]
    sold_at: Text<Timestamp>,
    /// When the claim was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Text<Timestamp>,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Text<Timestamp>,
    /// The device; null on a hold that has none yet.
    #[schema(required = true)]
    device: Option<Device<'a>>,
    /// The consumer, as far as the service shows one.
    consumer: Consumer,
    /// How the programmes judged the sale.
    determination: Determination<'a>,
    /// The claim's last entry in the journal.
    journal: Journal,
}

/// A device, canonical.
#[derive(Debug, Serialize, ToSchema)]
struct Device<'a> {
    /// The manufacturer's serial number.
    #[schema(value_type = String, example = "RG2-8812-00417")]
    sn: &'a SerialNumber,
    /// The product's GTIN-14.
    #[schema(value_type = String, example = "06901234567892")]
    barcode: Gtin,
    /// Its IMEIs.
    #[schema(value_type = Vec<String>)]
    imei: &'a [Imei],
}

/// The consumer: no more than the kind of document.
#[derive(Debug, Serialize, ToSchema)]
struct Consumer {
    /// The kind of document.
    id_type: IdType,
}

/// A place in the journal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JournalPlace)]
struct Journal {
    /// Its position.
    position: u64,
    /// The SHA-256 of its bytes, in hexadecimal.
    #[schema(value_type = String)]
    hash: Hash,
}

/// How the programmes in force judged a sale.
#[derive(Debug, Serialize, ToSchema)]
pub struct Determination<'a> {
    /// Each programme that lists the category and covers the region, the one that pays first.
    #[schema(value_type = Vec<Considered>)]
    considered: SmallVec<[Considered<'a>; 4]>,
    /// How the subsidy became whole fen.
    #[schema(example = "down_to_fen")]
    rounding: &'static str,
    /// What applies where several would pay.
    #[schema(example = "highest_only")]
    overlap: &'static str,
}

/// How one programme judged a sale.
#[derive(Debug, Serialize, ToSchema)]
struct Considered<'a> {
    /// The programme.
    #[schema(example = "zj-ai-25")]
    programme: &'a str,
    /// Its place in the law.
    #[schema(example = "measure 25")]
    clause: &'a str,
    /// What the rate is applied to, in yuan.
    #[schema(value_type = String, example = "4000.00")]
    price_base: Text<Fen>,
    /// The share it pays.
    #[schema(value_type = String, example = "0.15")]
    rate: Text<Rate>,
    /// Rate times base, rounded, in yuan.
    #[schema(value_type = String, example = "600.00")]
    computed: Text<Fen>,
    /// The most it pays for one item, in yuan.
    #[schema(value_type = String, example = "2000.00")]
    cap: Text<Fen>,
    /// What it would pay, in yuan; nothing where its own rules exclude the sale.
    #[schema(value_type = String, example = "600.00")]
    amount: Text<Fen>,
    /// Whether it is the one that pays.
    chosen: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "lower")]
    reason: Option<&'static str>,
}

impl<'a> Considered<'a> {
    fn new(programme: &'a Programme, price_base: Fen, computed: Fen, amount: Fen, verdict: Verdict) -> Self {
        Self {
            programme: programme.id.as_str(),
            clause: &programme.source.reference.clause,
            price_base: Text(price_base),
            rate: Text(programme.rate.value),
            computed: Text(computed),
            cap: Text(programme.cap.value),
            amount: Text(amount),
            chosen: verdict == Verdict::Chosen,
            reason: verdict.reason(),
        }
    }

    fn judged(judged: &'a rules::Considered) -> Self {
        Self::new(&judged.programme, judged.price_base, judged.computed, judged.amount, judged.verdict)
    }
}

impl<'a> Determination<'a> {
    /// A judgement just made.
    pub fn new(determination: &'a rules::Determination) -> Self {
        let leading = &determination.chosen().programme;
        Self::of(leading, determination.considered().map(Considered::judged).collect())
    }

    /// What was considered where no programme pays; `None` where none came into question.
    pub fn without_choice(considered: &'a [rules::Considered]) -> Option<Self> {
        let leading = &considered.first()?.programme;
        Some(Self::of(leading, considered.iter().map(Considered::judged).collect()))
    }

    /// The judgement recorded of a claim; `None` where it names a programme version that `history` lacks.
    fn recorded(made: &'a ClaimMade, history: &'a ProgrammeHistory) -> Option<Self> {
        let version = |judged: &'a Judged| {
            let programme = history.get(judged.programme.as_str(), judged.version)?;
            Some(Considered::new(
                programme,
                judged.price_base(made),
                judged.computed(made),
                judged.amount(made),
                judged.verdict(),
            ))
        };
        let first = made.considered.first()?;
        let leading = history.get(first.programme.as_str(), first.version)?;
        Some(Self::of(leading, made.considered.iter().map(version).collect::<Option<_>>()?))
    }

    fn of(leading: &Programme, considered: SmallVec<[Considered<'a>; 4]>) -> Self {
        let (rounding, overlap) = (leading.rounding.value.name(), leading.overlap.value.name());
        Self { considered, rounding, overlap }
    }
}

impl<'a> Claim<'a> {
    /// The claim that `view` stands for. `None` where one of its entries names a programme version that
    /// was never activated, which no journal of this service does.
    pub fn new(view: &'a ClaimView, history: &'a ProgrammeHistory) -> Option<Self> {
        let made = view.made();
        let sale = &made.sale;
        let status = view.status();
        let (position, hash) = view.journal();
        let held_until = made.held_until.filter(|_| matches!(status, Status::Held | Status::Expired));
        Some(Self {
            claim_id: made.claim_id,
            status,
            retailer: made.retailer,
            submitted_by: made.platform.as_deref().unwrap_or_else(|| made.retailer.as_str()),
            order_no: &sale.order_no,
            order_line: sale.order_line(),
            category: &sale.category,
            price: Text(sale.price),
            subsidy: Text(made.subsidy),
            payable: Text(sale.price.checked_sub(made.subsidy)?),
            programme: &made.considered.first()?.programme,
            fund_id: &made.fund.id,
            region_code: sale.region_code,
            held_until: held_until.map(Text),
            sold_at: Text(sale.sold_at),
            created_at: Text(view.made_at()),
            updated_at: Text(view.updated_at()),
            device: view.device().map(Device::new),
            consumer: Consumer { id_type: sale.consumer.id_type },
            determination: Determination::recorded(made, history)?,
            journal: Journal { position, hash },
        })
    }
}

impl<'a> Device<'a> {
    fn new(device: &'a claim::Device) -> Self {
        Self { sn: &device.sn, barcode: device.barcode, imei: &device.imei }
    }
}

/// What a cancellation by key came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cancellation<'a> {
    /// The key, as it was sent.
    pub idempotency_key: &'a str,
    /// What happened.
    pub outcome: CancellationOutcome,
    /// The claim; null where the key stood for nothing.
    #[schema(required = true)]
    pub claim: Option<Claim<'a>>,
}

/// What happened to what a cancelled key stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancellationOutcome {
    /// The claim is as if it had never been, and stays readable.
    Cancelled,
    /// The claim had ended before.
    NothingToCancel,
    /// The key stood for nothing; a late original will be refused.
    KeySpent,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::json::{self, BytesAs};
    use crate::ledger::Stored;
    use crate::ledger::entry::Entry;
    use crate::programme::{ProgrammeSet, shipped};

    const MADE: &str = r#"{"v":1,"position":4711,"alg":"sha-256","prev":"0000000000000000000000000000000000000000000000000000000000000000","at_ms":1795399501234,"event":{"claim_made":{"claim_id":"019a2b3c-4d5e-7f60-8182-838485868788","retailer":"91110000600037341L","sale":{"order_no":"SO20261123-000817","order_line":1,"category":"smart_glasses","price_fen":400000,"region_code":"330106","sold_at_ms":1795399500000,"consumer":{"id_type":"resident_id","key":"hmac-sha256/k1","digest":"00000000000000000000000000000000000000000000000000000000000000aa"},"device":{"sn":"RG2-8812-00417","barcode":"06901234567892","imei":["490154203237518"]},"sale_channel":"offline","store_code":"HZ-0012"},"status":"redeemed","subsidy_fen":60000,"considered":[{"programme":"zj-ai-25","version":1,"base_fen":400000,"computed_fen":60000,"amount_fen":60000,"verdict":"chosen"},{"programme":"national-digital-2026","version":1,"base_fen":400000,"computed_fen":60000,"amount_fen":50000,"verdict":"lower"}],"return_restores":true,"keys":{"request":"00000000000000000000000000000001","order_line":"00000000000000000000000000000002","person":"00000000000000000000000000000003","device":["00000000000000000000000000000004"]},"fingerprint":"00000000000000000000000000000005","fund":{"id":"zj-ai-25.330100","redeemed_fen":60000}}}}"#;

    const MOVED: &str = r#"{"v":1,"position":4720,"alg":"sha-256","prev":"0000000000000000000000000000000000000000000000000000000000000000","at_ms":1795399560000,"event":{"claim_moved":{"claim_id":"019a2b3c-4d5e-7f60-8182-838485868788","made":4711,"prior":4711,"from":"held","to":"redeemed","device":{"sn":"RG2-8812-00418","barcode":"06901234567892"},"fund":{"id":"zj-ai-25.330100","held_fen":-60000,"redeemed_fen":60000}}}}"#;

    fn stored(text: &str) -> Arc<Stored> {
        let position = serde_json::from_str::<serde_json::Value>(text).unwrap()["position"].as_u64().unwrap();
        Arc::new(Stored {
            entry: Entry::decode(position, text.as_bytes()).unwrap(),
            hash: Hash::of(text.as_bytes()),
        })
    }

    fn history() -> ProgrammeHistory {
        let mut history = ProgrammeHistory::default();
        history.activate(Arc::new(ProgrammeSet::parse(&shipped()).unwrap())).unwrap();
        history
    }

    fn shown(entries: &[&str]) -> String {
        let entries: Vec<_> = entries.iter().copied().map(stored).collect();
        let view = ClaimView::new(&entries).unwrap();
        let mut text = Vec::new();
        json::write(&mut text, BytesAs::Hex, &Claim::new(&view, &history()).unwrap()).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_claim_is_shown_byte_for_byte_as_promised() {
        let expected = concat!(
            r#"{"claim_id":"019a2b3c-4d5e-7f60-8182-838485868788","status":"redeemed","#,
            r#""retailer":"91110000600037341L","submitted_by":"91110000600037341L","#,
            r#""order_no":"SO20261123-000817","order_line":1,"category":"smart_glasses","#,
            r#""price":"4000.00","subsidy":"600.00","payable":"3400.00","programme":"zj-ai-25","#,
            r#""fund_id":"zj-ai-25.330100","region_code":"330106","held_until":null,"#,
            r#""sold_at":"2026-11-23T10:05:00+08:00","created_at":"2026-11-23T10:05:01.234+08:00","#,
            r#""updated_at":"2026-11-23T10:05:01.234+08:00","#,
            r#""device":{"sn":"RG2-8812-00417","barcode":"06901234567892","imei":["490154203237518"]},"#,
            r#""consumer":{"id_type":"resident_id"},"determination":{"considered":["#,
            r#"{"programme":"zj-ai-25","clause":"measure 25","price_base":"4000.00","rate":"0.15","#,
            r#""computed":"600.00","cap":"2000.00","amount":"600.00","chosen":true},"#,
            r#"{"programme":"national-digital-2026","clause":"CLAUSE","price_base":"4000.00","rate":"0.15","#,
            r#""computed":"600.00","cap":"500.00","amount":"500.00","chosen":false,"reason":"lower"}],"#,
            r#""rounding":"down_to_fen","overlap":"highest_only"},"#,
            r#""journal":{"position":4711,"hash":"HASH"}}"#,
        );
        let history = history();
        let national = history.get("national-digital-2026", 1).unwrap();
        let expected = expected
            .replace("CLAUSE", &national.source.reference.clause)
            .replace("HASH", &Hash::of(MADE.as_bytes()).to_string());
        assert_eq!(shown(&[MADE]), expected);
    }

    #[test]
    fn a_hold_shows_its_end_while_time_may_end_it_and_no_device_until_it_has_one() {
        let held = MADE
            .replace(r#""status":"redeemed""#, r#""status":"held","held_until_ms":1795401301234"#)
            .replace(
                r#""device":{"sn":"RG2-8812-00417","barcode":"06901234567892","imei":["490154203237518"]},"#,
                "",
            )
            .replace(r#""status":"held""#, r#""platform":"mall","status":"held""#)
            .replace(
                r#""fund":{"id":"zj-ai-25.330100","redeemed_fen""#,
                r#""fund":{"id":"zj-ai-25.330100","held_fen""#,
            );
        let on_hold = shown(&[&held]);
        assert!(on_hold.contains(r#""held_until":"2026-11-23T10:35:01.234+08:00""#), "{on_hold}");
        assert!(on_hold.contains(r#""device":null"#) && on_hold.contains(r#""submitted_by":"mall""#));
        let redeemed = shown(&[&held, MOVED]);
        assert!(redeemed.contains(r#""status":"redeemed""#) && redeemed.contains(r#""held_until":null"#));
        assert!(
            redeemed.contains(r#""device":{"sn":"RG2-8812-00418","barcode":"06901234567892","imei":[]}"#)
        );
        assert!(
            redeemed.contains(r#""updated_at":"2026-11-23T10:06:00+08:00""#)
                && redeemed.contains(r#""position":4720"#)
        );
        let expired = shown(&[&held, &MOVED.replace(r#""to":"redeemed""#, r#""to":"expired""#)]);
        assert!(expired.contains(r#""held_until":"2026-11-23T10:35:01.234+08:00""#), "{expired}");
    }

    #[test]
    fn a_claim_of_an_unknown_programme_version_is_not_shown() {
        let unknown =
            MADE.replace(r#""programme":"zj-ai-25","version":1"#, r#""programme":"zj-ai-25","version":9"#);
        let view = ClaimView::new(&[stored(&unknown)]).unwrap();
        assert!(Claim::new(&view, &history()).is_none());
    }

    #[test]
    fn nothing_of_the_consumer_is_shown_but_the_kind_of_document() {
        let claim = shown(&[MADE]);
        assert!(!claim.contains("0000aa") && !claim.contains("hmac"), "{claim}");
    }
}
