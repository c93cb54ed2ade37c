//! The one error table: what can go wrong, with its stable code, HTTP status, and the texts that
//! callers see, in the order in which refusals take precedence. Whatever else maps an error to HTTP
//! does it by naming a [`Code`].
//!
//! A [`Problem`] is an error on its way to a caller (RFC 9457). What the caller reads comes from the
//! table; what operators read is its `cause`, which goes to the log and never to the caller.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use utoipa::ToSchema;

use super::json::{Fault, Wrong};
use super::wire;
use crate::auth::Unauthenticated;
use crate::book::BookError;
use crate::journal::JournalError;
use crate::ledger::command::Alternative;
use crate::ledger::{Failure, Refusal};
use crate::programme::{Basis, Programme, Reference};
use crate::rules::{Cited, Determination, Refused};
use crate::shield::Admission;

/// The languages errors are told in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Language {
    /// English, where the caller does not say.
    #[default]
    English,
    /// Chinese.
    Chinese,
}

impl Language {
    /// The tag of BCP 47.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    /// What an `Accept-Language` header (RFC 9110, 12.5.4) prefers; the one named first wins a tie.
    pub fn accepted(header: &str) -> Self {
        let mut best = (0, Self::English);
        for range in header.split(',').take(16) {
            let (tag, weight) = range.split_once(';').unwrap_or((range, "q=1"));
            let language = match tag.trim().get(..2) {
                Some(tag) if tag.eq_ignore_ascii_case("zh") => Self::Chinese,
                Some(tag) if tag.eq_ignore_ascii_case("en") => Self::English,
                _ => continue,
            };
            let weight = thousandths(weight.trim().strip_prefix("q=").unwrap_or("0"));
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }
}

/// A quality value, `0.5`, in thousandths; 0 for anything that is not one.
fn thousandths(quality: &str) -> u32 {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    let mut decimals = fraction.bytes().chain(std::iter::repeat(b'0')).take(3);
    let digits = decimals.try_fold(0, |sum, byte| Some(sum * 10 + (byte as char).to_digit(10)?));
    match (whole, digits) {
        ("1", _) => 1000,
        ("0", Some(digits)) => digits,
        _ => 0,
    }
}

/// A text in both languages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    /// In English.
    pub en: Cow<'static, str>,
    /// In Chinese.
    pub zh: Cow<'static, str>,
}

impl Text {
    /// A text that never changes.
    pub const fn new(en: &'static str, zh: &'static str) -> Self {
        Self { en: Cow::Borrowed(en), zh: Cow::Borrowed(zh) }
    }

    /// The text in one language.
    pub fn in_language(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Chinese => &self.zh,
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Which problem.
    pub code: Code,
    /// Its stable name on the wire; `/problems/<name>` explains it.
    pub name: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Whether the same request may succeed when sent again, unchanged, after a while.
    pub retryable: bool,
    /// What it is called.
    pub title: Text,
    /// What it means.
    pub detail: Text,
    /// What the caller can do about it.
    pub remedy: Text,
}

macro_rules! table {
    ($($(#[$doc:meta])* $code:ident, $name:literal, $status:literal, $retryable:ident,
        $title:literal, $title_zh:literal,
        $detail:literal, $detail_zh:literal,
        $remedy:literal, $remedy_zh:literal;)*) => {
        /// Everything that can go wrong, in order of precedence.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        /// The table, in the order of [`Code`].
        pub static TABLE: &[Row] = &[$(Row {
            code: Code::$code,
            name: $name,
            status: $status,
            retryable: table!(@ $retryable),
            title: Text::new($title, $title_zh),
            detail: Text::new($detail, $detail_zh),
            remedy: Text::new($remedy, $remedy_zh),
        },)*];

        /// The codes' names, in the order of [`Code`], for metrics.
        pub const NAMES: &[&str] = &[$($name,)*];

        impl Code {
            /// This code's row.
            pub fn row(self) -> &'static Row {
                // The table has one row for each code, in the same order: both are written here.
                TABLE.get(self as usize).unwrap_or(&FALLBACK)
            }
        }
    };
    (@ retry) => { true };
    (@ no_retry) => { false };
}

/// What [`Code::row`] would fall back to; never seen, since there is a row for each code.
static FALLBACK: Row = Row {
    code: Code::InternalError,
    name: "internal-error",
    status: 500,
    retryable: false,
    title: Text::new("Internal error", "内部错误"),
    detail: Text::new("Something is wrong in the service.", "服务内部出错。"),
    remedy: Text::new("Tell the operator.", "请联系运营方。"),
};

table! {
    /// Too much is waiting.
    Overloaded, "overloaded", 503, retry,
        "Overloaded", "服务过载",
        "Too many requests are waiting; this one was not carried out.", "等待处理的请求过多，本次请求未执行。",
        "Send it again after the time in Retry-After, under the same idempotency key.", "请在Retry-After所示时间后使用相同的幂等键重发。";
    /// The journal does not answer.
    LedgerUnavailable, "ledger-unavailable", 503, retry,
        "Ledger unavailable", "账本暂不可用",
        "The ledger did not answer; whether this request was carried out is not known.", "账本未作出应答，本次请求是否已执行尚不确定。",
        "Send it again after the time in Retry-After, under the same idempotency key: if it was carried out, the first answer is given again.", "请在Retry-After所示时间后使用相同的幂等键重发：如已执行，将返回首次的应答。";
    /// A fault of this service.
    InternalError, "internal-error", 500, no_retry,
        "Internal error", "内部错误",
        "Something is wrong in the service.", "服务内部出错。",
        "Tell the operator the request_id.", "请将request_id告知运营方。";

    /// No such path.
    NotFound, "not-found", 404, no_retry,
        "Not found", "资源不存在",
        "There is nothing at this address.", "该地址下没有任何内容。",
        "Compare the address with the API description at /docs.", "请对照/docs中的接口说明检查地址。";
    /// The path exists, for other methods.
    MethodNotAllowed, "method-not-allowed", 405, no_retry,
        "Method not allowed", "不支持该方法",
        "This address does not take this method.", "该地址不支持此HTTP方法。",
        "Use one of the methods in the Allow header.", "请使用Allow响应头所列的方法。";

    /// No token, or one that is not believed.
    Unauthenticated, "unauthenticated", 401, no_retry,
        "Not authenticated", "未通过身份认证",
        "A valid bearer token is required.", "需要有效的Bearer令牌。",
        "Send Authorization: Bearer with a token that is signed by the issuer, meant for this service and not expired.", "请在Authorization: Bearer中发送由签发方签名、面向本服务且未过期的令牌。";
    /// The caller's role does not allow this.
    Forbidden, "forbidden", 403, no_retry,
        "Forbidden", "无权操作",
        "The token's role, retailers or regions do not allow this.", "令牌的角色、企业范围或地区范围不允许此操作。",
        "Use a token that allows it.", "请使用具有相应权限的令牌。";

    /// Too many requests.
    RateLimited, "rate-limited", 429, retry,
        "Rate limit exceeded", "请求过于频繁",
        "More requests came than the rate limit allows.", "请求数超过了速率限制。",
        "Send it again after the time in Retry-After; RateLimit-Policy says how many may come.", "请在Retry-After所示时间后重发；限额见RateLimit-Policy响应头。";

    /// The request has faults.
    InvalidRequest, "invalid-request", 400, no_retry,
        "Invalid request", "请求无效",
        "The request has faults; they are listed in errors.", "请求存在错误，详见errors。",
        "Correct every fault that is listed.", "请改正所列的每一处错误。";
    /// A key is required.
    IdempotencyKeyMissing, "idempotency-key-missing", 400, no_retry,
        "Idempotency key missing", "缺少幂等键",
        "This request needs an Idempotency-Key header.", "此请求必须携带Idempotency-Key请求头。",
        "Send a key that is unique to this sale, and the same one whenever this request is repeated.", "请为每笔交易使用唯一的幂等键，重发时保持不变。";
    /// The key is not one.
    IdempotencyKeyInvalid, "idempotency-key-invalid", 400, no_retry,
        "Idempotency key invalid", "幂等键无效",
        "An idempotency key has 1 to 255 visible ASCII characters, quoted or not.", "幂等键应为1至255个可见ASCII字符，可加引号。",
        "Send one key of that form, once.", "请发送一个且仅一个符合格式的幂等键。";
    /// The request did not arrive in time.
    RequestTimeout, "request-timeout", 408, retry,
        "Request timeout", "请求超时",
        "The request did not arrive whole in time.", "请求未能在规定时间内完整到达。",
        "Send it again; a request must be complete within 10 seconds.", "请重发；请求须在10秒内完整送达。";
    /// The body is too large.
    TooLarge, "too-large", 413, no_retry,
        "Too large", "请求体过大",
        "The body is larger than this call takes.", "请求体超过了该接口允许的大小。",
        "Send at most 16 KiB, or 1 MiB in a batch.", "请求体不得超过16 KiB，批量请求不得超过1 MiB。";
    /// Not JSON, or encoded.
    UnsupportedMediaType, "unsupported-media-type", 415, no_retry,
        "Unsupported media type", "不支持的媒体类型",
        "The body must be application/json in UTF-8 without a content encoding.", "请求体应为UTF-8编码的application/json，且不得使用内容编码。",
        "Send Content-Type: application/json and no Content-Encoding.", "请使用Content-Type: application/json，且不要使用Content-Encoding。";

    /// A twin of the request is being decided.
    RequestInProgress, "request-in-progress", 409, retry,
        "Request in progress", "请求处理中",
        "The first request under this idempotency key is still being decided.", "使用同一幂等键的首个请求仍在处理中。",
        "Send it again after the time in Retry-After.", "请在Retry-After所示时间后重发。";
    /// The key was used for something else.
    IdempotencyKeyReused, "idempotency-key-reused", 422, no_retry,
        "Idempotency key reused", "幂等键已被使用",
        "This idempotency key was used with other content.", "该幂等键已用于内容不同的请求。",
        "Use a new key for a new request; repeat a request unchanged.", "新请求请使用新的幂等键；重发时内容须保持不变。";
    /// The key was cancelled before its claim came.
    CancelledBeforeArrival, "cancelled-before-arrival", 409, no_retry,
        "Cancelled before arrival", "到达前已撤销",
        "This idempotency key was cancelled before its claim arrived; no claim was made.", "该幂等键在申领到达之前已被撤销，未产生申领。",
        "Make the claim under a new key, if the sale is to be subsidised after all.", "如仍需补贴该笔销售，请使用新的幂等键重新申领。";
    /// The key's claim was cancelled.
    Cancelled, "cancelled", 409, no_retry,
        "Cancelled", "已撤销",
        "The claim made under this idempotency key was cancelled.", "使用该幂等键的申领已被撤销。",
        "Make the claim under a new key, if the sale is to be subsidised after all.", "如仍需补贴该笔销售，请使用新的幂等键重新申领。";

    /// No such claim, or someone else's.
    ClaimNotFound, "claim-not-found", 404, no_retry,
        "Claim not found", "申领不存在",
        "There is no claim of this id that you may see.", "不存在您可查看的该编号申领。",
        "Check the claim_id and whose token is used.", "请检查claim_id以及所用令牌的归属。";
    /// No such fund, or one of other regions.
    FundNotFound, "fund-not-found", 404, no_retry,
        "Fund not found", "资金池不存在",
        "There is no fund of this id in your regions.", "您的地区范围内不存在该编号的资金池。",
        "Check the fund_id and the regions of the token.", "请检查fund_id以及令牌的地区范围。";
    /// The claim's status does not allow it.
    ClaimStateConflict, "claim-state-conflict", 409, no_retry,
        "Claim state conflict", "申领状态冲突",
        "The claim's present state, or what it was made with, does not allow this.", "申领的当前状态或原有内容不允许此操作。",
        "Read the claim and act on the state it has.", "请查询该申领，并按其当前状态处理。";
    /// No device to redeem with.
    DeviceRequired, "device-required", 409, no_retry,
        "Device required", "缺少商品信息",
        "A claim cannot be redeemed without a device, and the hold has none.", "核销必须有商品信息，而该预核销未绑定商品。",
        "Send device with its serial number and barcode.", "请在device中提供SN码和商品条码。";

    /// No programme has the category.
    CategoryNotEligible, "category-not-eligible", 422, no_retry,
        "Category not eligible", "品类不在补贴范围",
        "No programme subsidises this category at any date.", "没有任何补贴政策涵盖该品类。",
        "Sell without subsidy; GET /v1/programmes lists the categories.", "请按无补贴销售；补贴品类见GET /v1/programmes。";
    /// The programme asked for does not apply.
    ProgrammeNotApplicable, "programme-not-applicable", 422, no_retry,
        "Programme not applicable", "补贴政策不适用",
        "The programme that was named does not exist or does not apply to this.", "指定的补贴政策不存在或不适用。",
        "Name another programme, or none, so that the best one is found.", "请指定其他补贴政策，或不指定以自动适用最优政策。";
    /// No programme covers the region.
    RegionNotCovered, "region-not-covered", 422, no_retry,
        "Region not covered", "地区不在补贴范围",
        "No programme that lists the category covers this region.", "涵盖该品类的补贴政策均不覆盖该地区。",
        "Check region_code: it names whose fund pays.", "请检查region_code：它决定由哪个资金池支付。";
    /// No programme is in force.
    NotInForce, "not-in-force", 422, no_retry,
        "Not in force", "不在政策有效期内",
        "No programme that lists the category and covers the region is in force at sold_at.", "在sold_at时点，没有涵盖该品类和地区的有效补贴政策。",
        "Sell without subsidy.", "请按无补贴销售。";
    /// Too long ago or too far ahead.
    SoldAtOutOfRange, "sold-at-out-of-range", 422, no_retry,
        "Time of sale out of range", "销售时间超出允许范围",
        "sold_at lies too far back or ahead.", "sold_at过早或过晚。",
        "Set the till's clock; send sales of up to 72 hours ago with late_reason, if neither a programme nor a year has ended since.", "请校准终端时钟；72小时内的补报须附late_reason，且不得跨越政策截止日或年度。";
    /// The price is over every ceiling, or gives no subsidy.
    PriceNotEligible, "price-not-eligible", 422, no_retry,
        "Price not eligible", "价格不符合条件",
        "The price lies over the ceiling of every programme, or is so low that the subsidy rounds to 0.00.", "价格超过所有适用政策的限价，或过低致补贴金额为0.00。",
        "Sell without subsidy.", "请按无补贴销售。";
    /// A condition such as the energy grade.
    ConditionNotMet, "condition-not-met", 422, no_retry,
        "Condition not met", "不符合补贴条件",
        "The goods do not meet a condition of the programme, such as the energy grade.", "商品不符合补贴政策的条件，例如能效等级。",
        "Send energy_grade if it was left out; otherwise sell without subsidy.", "如漏填energy_grade请补充；否则请按无补贴销售。";

    /// A subsidy was received elsewhere.
    ReceivedElsewhere, "received-elsewhere", 409, no_retry,
        "Received elsewhere", "已在他处享受补贴",
        "A subsidy was received elsewhere for this sale, and nothing is paid on top of it. That any such subsidy counts is an administrative choice.", "该笔销售已在他处享受补贴，不得重复享受。凡他处补贴一律计入，系行政裁量规定。",
        "Give the other subsidy back first, or sell without this one.", "请先退回他处补贴，或按无补贴销售。";
    /// The order line has a live claim.
    OrderLineAlreadyClaimed, "order-line-already-claimed", 409, no_retry,
        "Order line already claimed", "订单行已申领",
        "This line of this order has a claim already.", "该订单行已有申领。",
        "Use another order_line for another item; cancel or return the other claim if it is a mistake.", "其他商品请使用不同的order_line；如原申领有误，请撤销或退货。";
    /// The device has a live claim.
    DeviceAlreadySubsidised, "device-already-subsidised", 409, no_retry,
        "Device already subsidised", "商品已享受补贴",
        "This device, by its serial number or an IMEI, has a claim already.", "该商品的SN码或IMEI已有申领。",
        "Check the serial number; a device can be subsidised again once it was returned.", "请核对SN码；商品退货后可再次享受补贴。";
    /// The old device serves a live claim.
    TradeInAlreadyUsed, "trade-in-already-used", 409, no_retry,
        "Trade-in already used", "旧机已被使用",
        "The old device serves another claim already.", "该旧机已用于其他申领。",
        "Check the old device's serial number.", "请核对旧机的SN码。";
    /// The person has had what the programme allows.
    ConsumerLimitReached, "consumer-limit-reached", 409, no_retry,
        "Consumer limit reached", "消费者已达补贴上限",
        "This consumer has had the subsidies that the programme allows a person for this category and year.", "该消费者在该品类本年度的补贴次数已达政策上限。",
        "Sell without subsidy.", "请按无补贴销售。";

    /// No fund covers it.
    FundNotOpen, "fund-not-open", 409, no_retry,
        "Fund not open", "资金池未开放",
        "No fund of the programme is open for this region and day.", "该补贴政策在该地区和日期没有开放的资金池。",
        "Send accept_programme with one of the alternatives, or sell without subsidy.", "请在accept_programme中指定alternatives所列政策之一，或按无补贴销售。";
    /// The fund takes no new claims.
    FundFrozen, "fund-frozen", 409, no_retry,
        "Fund frozen", "资金池已冻结",
        "The fund takes no new claims at present.", "该资金池目前暂停新的申领。",
        "Send accept_programme with one of the alternatives, wait until the fund is open again, or sell without subsidy.", "请在accept_programme中指定alternatives所列政策之一，等待资金池恢复，或按无补贴销售。";
    /// The fund cannot pay in full.
    FundExhausted, "fund-exhausted", 409, no_retry,
        "Fund exhausted", "资金池余额不足",
        "The fund cannot pay the subsidy in full, and nothing is paid in part.", "资金池余额不足以全额支付补贴，且不支持部分支付。",
        "Send accept_programme with one of the alternatives, or sell without subsidy.", "请在accept_programme中指定alternatives所列政策之一，或按无补贴销售。";
    /// The till showed another amount.
    SubsidyDiffers, "subsidy-differs", 409, no_retry,
        "Subsidy differs", "补贴金额不一致",
        "The subsidy is another than expected_subsidy; nothing was stored.", "补贴金额与expected_subsidy不一致，未作任何记录。",
        "Show the consumer the amount in determination and send the claim again.", "请向消费者展示determination中的金额后重新申领。";

    /// The fund's id is taken.
    FundExists, "fund-exists", 409, no_retry,
        "Fund exists", "资金池已存在",
        "There is a fund of this id already.", "该编号的资金池已存在。",
        "Choose another fund_id.", "请更换fund_id。";
    /// Two funds for the same money.
    FundOverlaps, "fund-overlaps", 409, no_retry,
        "Fund overlaps", "资金池期间重叠",
        "Another fund of this programme and region has days in common with this one.", "同一政策、同一地区的另一资金池与其期间重叠。",
        "Choose days that no other fund of the programme and region has, or adjust that fund.", "请选择不重叠的期间，或调整已有的资金池。";
    /// The budget would not cover what is used.
    FundBelowUsage, "fund-below-usage", 409, no_retry,
        "Fund below usage", "预算低于已用金额",
        "The budget would fall below what is held and redeemed, or grow out of bounds.", "调整后预算将低于预核销与已核销金额之和，或超出上限。",
        "Take no more than what remains.", "调减金额不得超过剩余金额。";
}

/// How long callers are asked to wait where nothing better is known, in seconds.
const RETRY_AFTER_S: u32 = 1;

/// An error on its way to a caller.
pub struct Problem(Box<Parts>);

struct Parts {
    code: Code,
    detail: Option<Text>,
    faults: Vec<Fault>,
    clause: Option<Clause>,
    alternatives: Option<Vec<AlternativeBody>>,
    determination: Option<Box<Determination>>,
    retry_after_s: Option<u32>,
    allow: Option<Rc<str>>,
    challenge: Option<&'static str>,
    cause: Option<String>,
}

/// The clause that a refusal by policy rests on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Clause {
    /// The programme.
    #[schema(example = "zj-ai-25")]
    pub programme: String,
    /// Where it says so.
    #[schema(example = "measure 25")]
    pub article: String,
    /// `text` of the law, `notice` or administrative `choice`.
    #[schema(example = "text")]
    pub basis: &'static str,
}

impl Clause {
    fn new(programme: &Programme, reference: &Reference) -> Self {
        Self {
            programme: programme.id.to_string(),
            article: reference.clause.to_string(),
            basis: reference.basis.name(),
        }
    }
}

/// Another programme that could pay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[schema(as = Alternative)]
pub struct AlternativeBody {
    /// The programme.
    #[schema(example = "national-digital-2026")]
    pub programme: String,
    /// What it would pay, in yuan.
    #[schema(example = "500.00")]
    pub subsidy: String,
}

impl From<Alternative> for AlternativeBody {
    fn from(alternative: Alternative) -> Self {
        Self { programme: alternative.programme.to_string(), subsidy: alternative.subsidy.to_string() }
    }
}

impl Problem {
    /// The problem as the table tells it.
    pub fn new(code: Code) -> Self {
        Self(Box::new(Parts {
            code,
            detail: None,
            faults: Vec::new(),
            clause: None,
            alternatives: None,
            determination: None,
            retry_after_s: code.row().retryable.then_some(RETRY_AFTER_S),
            allow: None,
            challenge: None,
            cause: None,
        }))
    }

    /// A request with faults.
    pub fn invalid(faults: Vec<Fault>) -> Self {
        let mut problem = Self::new(Code::InvalidRequest);
        problem.0.faults = faults;
        problem
    }

    /// A request with one fault.
    pub fn fault(pointer: &str, wrong: Wrong) -> Self {
        Self::invalid(vec![Fault { pointer: pointer.to_owned(), wrong }])
    }

    /// A fault of this service; `cause` is for its operators.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(Code::InternalError).caused_by(cause)
    }

    /// The same with a more exact text for the caller.
    pub fn with_detail(mut self, detail: Text) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// The same with its faults' pointers below `place`: what was read on its own stands inside of that.
    pub fn inside(mut self, place: &str) -> Self {
        for fault in &mut self.0.faults {
            fault.pointer.insert_str(0, place);
        }
        self
    }

    /// The same with the clause it rests on.
    pub fn with_clause(mut self, clause: Clause) -> Self {
        self.0.clause = Some(clause);
        self
    }

    /// The same with the rule it rests on, if one is known.
    fn citing(self, cited: Option<&Cited>) -> Self {
        match cited {
            Some(cited) => self.with_clause(Clause::new(&cited.programme, &cited.reference)),
            None => self,
        }
    }

    /// The same with what else could pay.
    pub fn with_alternatives(mut self, alternatives: Vec<AlternativeBody>) -> Self {
        self.0.alternatives = Some(alternatives);
        self
    }

    /// The same with how the programmes judged.
    pub fn with_determination(mut self, determination: Box<Determination>) -> Self {
        self.0.determination = Some(determination);
        self
    }

    /// The same with how long to wait before trying again, in seconds.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds.max(1));
        self
    }

    /// The same with the methods that are allowed.
    pub fn with_allow(mut self, methods: Rc<str>) -> Self {
        self.0.allow = Some(methods);
        self
    }

    /// The same with how to authenticate (`WWW-Authenticate`).
    pub fn with_challenge(mut self, challenge: &'static str) -> Self {
        self.0.challenge = Some(challenge);
        self
    }

    /// The same with what operators should know; callers never see it.
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// Which one.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.0.code.row().status
    }

    /// The value of `Retry-After`.
    pub fn retry_after_s(&self) -> Option<u32> {
        self.0.retry_after_s
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> Option<&str> {
        self.0.allow.as_deref()
    }

    /// The value of `WWW-Authenticate`.
    pub fn challenge(&self) -> Option<&'static str> {
        self.0.challenge
    }

    /// What operators should know.
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// The object callers read; also what batches and quotes carry.
    pub fn body<'p>(&'p self, language: Language, request_id: &'p str) -> ProblemBody<'p> {
        let parts = &*self.0;
        let row = parts.code.row();
        let faults = parts.faults.iter().map(|fault| FaultBody {
            pointer: &fault.pointer,
            code: fault.wrong.code,
            detail: match language {
                Language::English => &fault.wrong.en,
                Language::Chinese => &fault.wrong.zh,
            },
        });
        ProblemBody {
            kind: Kind(row.name),
            title: row.title.in_language(language),
            status: row.status,
            detail: parts.detail.as_ref().unwrap_or(&row.detail).in_language(language),
            code: row.name,
            request_id,
            errors: faults.collect(),
            clause: parts.clause.as_ref(),
            remedy: (row.status == 409 || row.status == 422).then(|| row.remedy.in_language(language)),
            alternatives: parts.alternatives.as_deref(),
            determination: parts.determination.as_deref().map(wire::Determination::new),
        }
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Problem({}, {:?}, {:?})", self.0.code.row().name, self.0.faults, self.0.cause)
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::invalid(vec![fault])
    }
}

impl From<Vec<Fault>> for Problem {
    fn from(faults: Vec<Fault>) -> Self {
        Self::invalid(faults)
    }
}

// --- Conversions: nowhere else does an error become a problem ---

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => (*refusal).into(),
            Failure::Overloaded => Code::Overloaded.into(),
            Failure::Unavailable => Code::LedgerUnavailable.into(),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::HashKeyMissing => Code::LedgerUnavailable,
            Refusal::RequestInProgress => Code::RequestInProgress,
            Refusal::HoldTooLong { .. } => Code::InvalidRequest,
            Refusal::IdempotencyKeyReused => Code::IdempotencyKeyReused,
            Refusal::CancelledBeforeArrival => Code::CancelledBeforeArrival,
            Refusal::Cancelled => Code::Cancelled,
            Refusal::ClaimNotFound => Code::ClaimNotFound,
            Refusal::FundNotFound => Code::FundNotFound,
            Refusal::ClaimStateConflict { .. } => Code::ClaimStateConflict,
            Refusal::DeviceRequired => Code::DeviceRequired,
            Refusal::Policy(Refused::CategoryNotEligible(_)) => Code::CategoryNotEligible,
            Refusal::Policy(Refused::ProgrammeNotApplicable(_)) => Code::ProgrammeNotApplicable,
            Refusal::Policy(Refused::RegionNotCovered(_)) => Code::RegionNotCovered,
            Refusal::Policy(Refused::NotInForce(_)) => Code::NotInForce,
            Refusal::Policy(Refused::PriceNotEligible(_)) => Code::PriceNotEligible,
            Refusal::Policy(Refused::ConditionNotMet(_)) => Code::ConditionNotMet,
            Refusal::SoldAtOutOfRange(_) => Code::SoldAtOutOfRange,
            Refusal::ReceivedElsewhere { .. } => Code::ReceivedElsewhere,
            Refusal::OrderLineAlreadyClaimed => Code::OrderLineAlreadyClaimed,
            Refusal::DeviceAlreadySubsidised(_) => Code::DeviceAlreadySubsidised,
            Refusal::TradeInAlreadyUsed(_) => Code::TradeInAlreadyUsed,
            Refusal::ConsumerLimitReached { .. } => Code::ConsumerLimitReached,
            Refusal::FundNotOpen { .. } => Code::FundNotOpen,
            Refusal::FundFrozen { .. } => Code::FundFrozen,
            Refusal::FundExhausted { .. } => Code::FundExhausted,
            Refusal::SubsidyDiffers { .. } => Code::SubsidyDiffers,
            Refusal::ProgrammeUnknown => Code::ProgrammeNotApplicable,
            Refusal::FundRegionNotCovered => Code::RegionNotCovered,
            Refusal::FundExists => Code::FundExists,
            Refusal::FundOverlaps => Code::FundOverlaps,
            Refusal::FundBelowUsage => Code::FundBelowUsage,
            // No call asks for these.
            Refusal::ActivationRefused(_) | Refusal::HashKeyDiffers | Refusal::FormatIsNewest => {
                Code::InternalError
            }
        };
        let problem = Self::new(code);
        match refusal {
            Refusal::HoldTooLong { minutes_max } => Self::fault("/hold_minutes", hold_too_long(minutes_max)),
            Refusal::Policy(refused) => problem.citing(refused.cited()),
            Refusal::SoldAtOutOfRange(cited) | Refusal::TradeInAlreadyUsed(cited) => {
                problem.citing(Some(&cited))
            }
            Refusal::DeviceAlreadySubsidised(cited) => problem.citing(cited.as_ref()),
            Refusal::ClaimStateConflict { status } => problem.with_detail(Text {
                en: format!(
                    "The claim is {}; that, or what it was made with, does not allow this.",
                    status.name()
                )
                .into(),
                zh: format!("申领状态为{}，该状态或原有内容不允许此操作。", status.name()).into(),
            }),
            // The law forbids paying twice; that whatever was received elsewhere counts is a choice.
            Refusal::ReceivedElsewhere { programme } => problem.with_clause(Clause {
                basis: Basis::Choice.name(),
                ..Clause::new(&programme, &programme.overlap.reference)
            }),
            Refusal::ConsumerLimitReached { limit, rule } => problem.with_limit(limit, &rule),
            Refusal::FundNotOpen { alternatives }
            | Refusal::FundFrozen { alternatives }
            | Refusal::FundExhausted { alternatives } => {
                problem.with_alternatives(alternatives.into_iter().map(Into::into).collect())
            }
            Refusal::SubsidyDiffers { determination } => problem.with_determination(determination),
            Refusal::ActivationRefused(cause) => problem.caused_by(cause),
            _ => problem,
        }
    }
}

fn hold_too_long(minutes_max: u32) -> Wrong {
    Wrong::with_texts(
        "hold-too-long",
        format!("The programme that pays allows a hold of {minutes_max} minutes at most."),
        format!("所适用的补贴政策最长允许预核销{minutes_max}分钟。"),
    )
}

impl Problem {
    /// The limit that a person has reached, with its source. Where it is an administrative choice the
    /// text says so.
    fn with_limit(self, limit: u16, rule: &Cited) -> Self {
        let (choice, choice_zh) = match rule.reference.basis {
            Basis::Choice => (
                " The limit is an administrative choice, not the text of the law.",
                "该上限系行政裁量规定，并非法规原文。",
            ),
            Basis::Text | Basis::Notice => ("", ""),
        };
        self.citing(Some(rule)).with_detail(Text {
            en: format!(
                "This consumer has had {limit} of {limit} subsidised items of this category in the calendar year of the sale, counted over all programmes.{choice}"
            )
            .into(),
            zh: format!("该消费者在销售所在自然年度内该品类享受补贴已达{limit}件的上限（各项政策合并计算）。{choice_zh}").into(),
        })
    }
}

impl From<Unauthenticated> for Problem {
    fn from(why: Unauthenticated) -> Self {
        let challenge = match why {
            Unauthenticated::NoToken => "Bearer realm=\"subsidy-pos\"",
            _ => "Bearer realm=\"subsidy-pos\", error=\"invalid_token\"",
        };
        Self::new(Code::Unauthenticated).with_challenge(challenge).caused_by(why)
    }
}

/// What the shield said of a request that it does not let on.
impl From<Admission> for Problem {
    fn from(admission: Admission) -> Self {
        Self::new(Code::RateLimited).retry_after(admission.retry_after_s)
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        Self::new(Code::LedgerUnavailable).caused_by(error)
    }
}

impl From<BookError> for Problem {
    fn from(error: BookError) -> Self {
        const TOO_BROAD: Wrong = Wrong::new(
            "too-broad",
            "This asks for too much at once: name fewer days, or group by less.",
            "查询范围过大，请缩短日期范围或减少分组。",
        );
        match error {
            BookError::TooSlow | BookError::TooManyRows => Self::fault("/query", TOO_BROAD),
            BookError::Overloaded => Code::Overloaded.into(),
            BookError::Unavailable(cause) => Self::new(Code::LedgerUnavailable).caused_by(cause),
        }
    }
}

/// A problem as `application/problem+json` (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'p> {
    /// The page that explains it.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "/problems/fund-exhausted")]
    kind: Kind,
    /// What it is called, in the language of `Accept-Language`.
    title: &'p str,
    /// The HTTP status.
    status: u16,
    /// What it means here, in the same language.
    detail: &'p str,
    /// Its stable name.
    #[schema(example = "fund-exhausted")]
    code: &'static str,
    /// Names this request; `X-Request-Id` says the same.
    request_id: &'p str,
    /// Every fault of the request, 32 at most; with `invalid-request` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FaultBody<'p>>,
    /// What a refusal by policy rests on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    clause: Option<&'p Clause>,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    remedy: Option<&'p str>,
    /// What else could pay, where a fund cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<AlternativeBody>>, nullable = false)]
    alternatives: Option<&'p [AlternativeBody]>,
    /// What is right, with `subsidy-differs` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    determination: Option<wire::Determination<'p>>,
}

/// `/problems/<code>`.
#[derive(Debug)]
struct Kind(&'static str);

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("/problems/{}", self.0))
    }
}

/// One fault of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Fault)]
struct FaultBody<'p> {
    /// Where: an RFC 6901 pointer into the body, `/query/<name>` or `/header/<name>`.
    #[schema(example = "/device/sn")]
    pointer: &'p str,
    /// Its stable name.
    #[schema(example = "required")]
    code: &'static str,
    /// What is wrong, in the language of `Accept-Language`.
    detail: &'p str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_row_and_both_languages() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        for row in TABLE {
            assert_eq!(row.code.row().name, row.name);
            assert!(row.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", row.name);
            for text in [&row.title, &row.detail, &row.remedy] {
                assert!(!text.en.is_empty() && text.en.is_ascii(), "{}: {}", row.name, text.en);
                assert!(text.zh.chars().any(|character| character > '\u{4DFF}'), "{}: {}", row.name, text.zh);
            }
        }
        assert_eq!(names, NAMES);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn what_may_be_tried_again_says_when() {
        for row in TABLE {
            let promised = matches!(row.status, 408 | 429 | 503) || row.name == "request-in-progress";
            assert_eq!(row.retryable, promised, "{}", row.name);
            assert_eq!(Problem::new(row.code).retry_after_s().is_some(), promised, "{}", row.name);
        }
        assert_eq!(Problem::new(Code::RateLimited).retry_after(0).retry_after_s(), Some(1));
    }

    #[test]
    fn the_caller_picks_the_language() {
        for (header, language) in [
            ("", Language::English),
            ("fr, de;q=0.5", Language::English),
            ("zh-CN", Language::Chinese),
            ("en-GB,zh;q=0.9", Language::English),
            ("en;q=0.8, zh-Hans;q=0.9", Language::Chinese),
            ("en, zh", Language::English),
            ("zh, en", Language::Chinese),
            ("zh;q=0", Language::English),
            ("zh;q=banana", Language::English),
            ("ZH-hant;q=1.000", Language::Chinese),
        ] {
            assert_eq!(Language::accepted(header), language, "{header}");
        }
    }

    #[test]
    fn a_problem_tells_callers_what_to_do_and_operators_why() {
        let problem =
            Problem::fault("/price", Wrong::new("required", "Needed.", "必填。")).caused_by("secret");
        let json = serde_json::to_string(&problem.body(Language::Chinese, "ab")).unwrap();
        assert_eq!(
            json,
            "{\"type\":\"/problems/invalid-request\",\"title\":\"请求无效\",\"status\":400,\
             \"detail\":\"请求存在错误，详见errors。\",\"code\":\"invalid-request\",\"request_id\":\"ab\",\
             \"errors\":[{\"pointer\":\"/price\",\"code\":\"required\",\"detail\":\"必填。\"}]}"
        );
        assert_eq!(problem.cause(), Some("secret"));
    }
}
