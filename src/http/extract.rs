//! From a request to a typed call: who calls in which role, and what they say.
//!
//! Every request goes through the same steps in the same order, so that a caller gets the same refusal
//! for the same request: authentication, role, rate limit, content type, size, time, the body's faults,
//! the idempotency key. A handler's signature says which role and which body it takes; it cannot be
//! reached otherwise.

use std::rc::Rc;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::web::{Bytes, BytesMut};
use futures_util::StreamExt;
use smallvec::SmallVec;

use super::App;
use super::json::{self, Reader, Wrong};
use super::problem::{Code, Language, Problem};
use crate::auth::{self, Caller, Platform};
use crate::book::Scope;
use crate::claim::{ClaimId, FundId, Submitter};
use crate::clock::Clock;
use crate::identity::{IdFault, IdempotencyKey, Uscc};
use crate::ledger::ClaimView;
use crate::limits;
use crate::shield::{Admission, RateKey};
use crate::time::Day;

static X_RETAILER: HeaderName = HeaderName::from_static("x-retailer");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

// --- Roles ---

/// Who may make a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Anyone, without a token.
    Everyone,
    /// Whoever has a valid token.
    AnyCaller,
    /// Retailers for themselves, platforms for the retailer they name.
    RetailerOrPlatform,
    /// Regulators.
    Regulator,
    /// Regulators whose token has no region limits.
    RegulatorOfAllRegions,
}

impl Who {
    /// Whether callers of `role` may; those of all regions, where regions matter.
    pub const fn admits(self, role: auth::Role) -> bool {
        match self {
            Self::Everyone | Self::AnyCaller => true,
            Self::RetailerOrPlatform => !matches!(role, auth::Role::Regulator),
            Self::Regulator | Self::RegulatorOfAllRegions => matches!(role, auth::Role::Regulator),
        }
    }
}

/// What the `X-Retailer` header says, if it is there.
pub type NamedRetailer = Option<Result<Uscc, IdFault>>;

/// A caller in a role that calls are made for. There is no other way to one than [`Role::of`].
pub trait Role: Sized + 'static {
    /// Who has it.
    const WHO: Who;

    /// The caller in this role.
    ///
    /// # Errors
    /// `forbidden` for another role or someone else's retailer; the faults of `X-Retailer`.
    fn of(caller: &Arc<Caller>, retailer: NamedRetailer) -> Result<Self, Problem>;

    /// The role of those without a token, if they have one.
    fn without_token() -> Option<Self> {
        None
    }
}

/// Whoever it is; for calls that need no token.
#[derive(Clone, Copy, Debug)]
pub struct Everyone;

impl Role for Everyone {
    const WHO: Who = Who::Everyone;

    fn of(_: &Arc<Caller>, _: NamedRetailer) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn without_token() -> Option<Self> {
        Some(Self)
    }
}

/// Who submits claims: a retailer for itself, a platform for the retailer it names.
#[derive(Clone, Debug)]
pub struct Submitting(pub Submitter);

impl Role for Submitting {
    const WHO: Who = Who::RetailerOrPlatform;

    fn of(caller: &Arc<Caller>, retailer: NamedRetailer) -> Result<Self, Problem> {
        match &**caller {
            Caller::Retailer(own) => {
                only_platforms_name_retailers(retailer)?;
                Ok(Self(Submitter { retailer: *own, platform: None }))
            }
            Caller::Platform(platform) => {
                let retailer =
                    own_retailer(platform, retailer)?.ok_or_else(|| x_retailer_fault(json::REQUIRED))?;
                Ok(Self(Submitter { retailer, platform: Some(Arc::clone(&platform.name)) }))
            }
            Caller::Regulator(_) => Err(Code::Forbidden.into()),
        }
    }
}

/// Who reads: anyone with a token, each what is theirs.
#[derive(Clone, Debug)]
pub struct Viewer {
    caller: Arc<Caller>,
    /// The only retailer a platform wants to see.
    only: Option<Uscc>,
}

impl Role for Viewer {
    const WHO: Who = Who::AnyCaller;

    fn of(caller: &Arc<Caller>, retailer: NamedRetailer) -> Result<Self, Problem> {
        let only = match &**caller {
            Caller::Platform(platform) => own_retailer(platform, retailer)?,
            Caller::Retailer(_) | Caller::Regulator(_) => {
                only_platforms_name_retailers(retailer).map(|()| None)?
            }
        };
        Ok(Self { caller: Arc::clone(caller), only })
    }
}

impl Viewer {
    /// Whether a claim is one of those the caller may see.
    pub fn sees(&self, claim: &ClaimView) -> bool {
        let made = claim.made();
        match &*self.caller {
            Caller::Retailer(own) => made.retailer == *own,
            Caller::Platform(platform) => {
                made.platform.as_deref() == Some(&*platform.name)
                    && platform.retailers.contains(&made.retailer)
                    && self.only.is_none_or(|only| made.retailer == only)
            }
            Caller::Regulator(regulator) => regulator.covers(made.sale.region_code),
        }
    }

    /// Which of the regulator's officers it is, who all may see the same.
    pub fn officer(&self) -> Option<&str> {
        match &*self.caller {
            Caller::Regulator(regulator) => Some(&regulator.officer),
            Caller::Retailer(_) | Caller::Platform(_) => None,
        }
    }

    /// The same as [`Viewer::sees`] for the book.
    pub fn scope(&self) -> Scope {
        match &*self.caller {
            Caller::Retailer(own) => Scope::Retailer(*own),
            Caller::Platform(platform) => Scope::Platform {
                name: Arc::clone(&platform.name),
                retailers: match (&self.only, &platform.retailers) {
                    (Some(only), _) => Some(vec![*only]),
                    (None, auth::Retailers::All) => None,
                    (None, auth::Retailers::Only(these)) => Some(these.to_vec()),
                },
            },
            Caller::Regulator(regulator) => Scope::Regulator { regions: regulator.regions.clone() },
        }
    }
}

/// An officer of a regulator, with the regions seen.
#[derive(Clone, Debug)]
pub struct Regulator(pub auth::Regulator);

impl Role for Regulator {
    const WHO: Who = Who::Regulator;

    fn of(caller: &Arc<Caller>, retailer: NamedRetailer) -> Result<Self, Problem> {
        match &**caller {
            Caller::Regulator(regulator) => {
                only_platforms_name_retailers(retailer).map(|()| Self(regulator.clone()))
            }
            Caller::Retailer(_) | Caller::Platform(_) => Err(Code::Forbidden.into()),
        }
    }
}

/// An officer of a regulator who sees every region.
#[derive(Clone, Debug)]
pub struct RegulatorOfAllRegions(pub auth::Regulator);

impl Role for RegulatorOfAllRegions {
    const WHO: Who = Who::RegulatorOfAllRegions;

    fn of(caller: &Arc<Caller>, retailer: NamedRetailer) -> Result<Self, Problem> {
        match &**caller {
            Caller::Regulator(regulator) if regulator.regions.is_none() => {
                only_platforms_name_retailers(retailer).map(|()| Self(regulator.clone()))
            }
            _ => Err(Code::Forbidden.into()),
        }
    }
}

/// The retailer a platform names, if any.
fn own_retailer(platform: &Platform, retailer: NamedRetailer) -> Result<Option<Uscc>, Problem> {
    match retailer.transpose() {
        Err(fault) => Err(x_retailer_fault(fault.into())),
        Ok(Some(retailer)) if !platform.retailers.contains(&retailer) => Err(Code::Forbidden.into()),
        Ok(retailer) => Ok(retailer),
    }
}

fn only_platforms_name_retailers(retailer: NamedRetailer) -> Result<(), Problem> {
    const NOT_A_PLATFORM: Wrong = Wrong::new(
        "not-a-platform",
        "Only platforms send X-Retailer; this token is for another role.",
        "仅平台可发送X-Retailer请求头，当前令牌不是平台角色。",
    );
    if retailer.is_some() { Err(x_retailer_fault(NOT_A_PLATFORM)) } else { Ok(()) }
}

fn x_retailer_fault(wrong: Wrong) -> Problem {
    Problem::fault("/header/X-Retailer", wrong)
}

fn named_retailer(headers: &HeaderMap) -> NamedRetailer {
    let mut values = headers.get_all(&X_RETAILER);
    let value = values.next()?;
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    Some(text.ok_or(IdFault::UsccMalformed).and_then(Uscc::parse))
}

// --- Bodies ---

/// What a call takes, apart from its path.
pub trait Body: Sized + 'static {
    /// Most bytes of a body; 0 for calls that take none.
    const BYTES_MAX: usize;
    /// Whether an empty body is one without members.
    const MAY_BE_EMPTY: bool = false;
    /// Whether it is its items that count for the rate limit, which can be told only once they are read.
    const COSTS_ITEMS: bool = false;
    /// Whether an `Idempotency-Key` comes with it.
    const IS_KEYED: bool = false;

    /// Reads it.
    ///
    /// # Errors
    /// Every fault it has.
    fn read(request: &HttpRequest, bytes: &[u8], today: Day) -> Result<Self, Problem>;

    /// The members or parameters it is read for, to compare with what is published.
    #[cfg(test)]
    fn asked() -> Vec<json::Asked>;

    /// How many requests it counts for.
    fn items(&self) -> usize {
        1
    }
}

/// Something a [`Reader`] can read.
pub trait Readable: Sized + 'static {
    /// Most bytes.
    const BYTES_MAX: usize = limits::BODY_BYTES_MAX;
    /// See [`Body::MAY_BE_EMPTY`].
    const MAY_BE_EMPTY: bool = false;
    /// See [`Body::COSTS_ITEMS`].
    const COSTS_ITEMS: bool = false;

    /// Asks for every member there may be. `today` bounds dates of birth.
    fn read(reader: &mut Reader<'_, '_>, today: Day) -> Option<Self>;

    /// See [`Body::items`].
    fn items(&self) -> usize {
        1
    }
}

/// Nothing: neither a body nor parameters.
impl Body for () {
    const BYTES_MAX: usize = 0;

    fn read(request: &HttpRequest, _: &[u8], _: Day) -> Result<Self, Problem> {
        Ok(json::query(request.query_string(), |_| Some(()))?)
    }

    #[cfg(test)]
    fn asked() -> Vec<json::Asked> {
        Vec::new()
    }
}

/// Parameters of the query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: Readable> Body for Query<T> {
    const BYTES_MAX: usize = 0;

    fn read(request: &HttpRequest, _: &[u8], today: Day) -> Result<Self, Problem> {
        Ok(Self(json::query(request.query_string(), |reader| T::read(reader, today))?))
    }

    #[cfg(test)]
    fn asked() -> Vec<json::Asked> {
        json::asked_by(|reader| T::read(reader, Day::from_number(20_000)))
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: Readable> Body for Json<T> {
    const BYTES_MAX: usize = T::BYTES_MAX;
    const MAY_BE_EMPTY: bool = T::MAY_BE_EMPTY;
    const COSTS_ITEMS: bool = T::COSTS_ITEMS;

    fn read(request: &HttpRequest, bytes: &[u8], today: Day) -> Result<Self, Problem> {
        <() as Body>::read(request, bytes, today)?;
        let bytes = if T::MAY_BE_EMPTY && bytes.is_empty() { b"{}" } else { bytes };
        Ok(Self(json::body(bytes, |reader| T::read(reader, today))?))
    }

    #[cfg(test)]
    fn asked() -> Vec<json::Asked> {
        json::asked_by(|reader| T::read(reader, Day::from_number(20_000)))
    }

    fn items(&self) -> usize {
        self.0.items()
    }
}

/// A JSON body with an idempotency key, which is required.
#[derive(Debug)]
pub struct Keyed<T> {
    /// The key.
    pub key: IdempotencyKey,
    /// The body.
    pub body: T,
}

impl<T: Readable> Body for Keyed<T> {
    const BYTES_MAX: usize = T::BYTES_MAX;
    const IS_KEYED: bool = true;

    fn read(request: &HttpRequest, bytes: &[u8], today: Day) -> Result<Self, Problem> {
        let Json(body) = Json::<T>::read(request, bytes, today)?;
        let mut values = request.headers().get_all(&IDEMPOTENCY_KEY);
        let value = values.next().ok_or(Code::IdempotencyKeyMissing)?;
        let text = value.to_str().ok().filter(|_| values.next().is_none());
        let key =
            text.and_then(|text| IdempotencyKey::parse(text).ok()).ok_or(Code::IdempotencyKeyInvalid)?;
        Ok(Self { key, body })
    }

    #[cfg(test)]
    fn asked() -> Vec<json::Asked> {
        Json::<T>::asked()
    }
}

// --- Calls ---

/// A request, understood: what a handler gets.
pub struct Call<R, B = ()> {
    /// Everything the service is made of.
    pub app: Rc<App>,
    /// Who calls.
    pub role: R,
    /// What they say.
    pub body: B,
    /// How to speak to them.
    pub hearer: Hearer,
    request: HttpRequest,
}

impl<R, B> Call<R, B> {
    /// The claim the path names.
    ///
    /// # Errors
    /// `claim-not-found`: a malformed id is one that does not exist.
    pub fn claim_id(&self) -> Result<ClaimId, Problem> {
        ClaimId::parse(self.path_id()).ok_or(Problem::new(Code::ClaimNotFound))
    }

    /// The fund the path names.
    ///
    /// # Errors
    /// `fund-not-found`, likewise.
    pub fn fund_id(&self) -> Result<FundId, Problem> {
        FundId::parse(self.path_id()).ok_or(Problem::new(Code::FundNotFound))
    }

    /// What stands in the path for `{id}`.
    pub fn path_id(&self) -> &str {
        self.request.match_info().query("id")
    }
}

/// The number that names one request in answers and logs: 128 random bits in hexadecimal.
#[derive(Clone, Copy)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn new() -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let bits: u128 = rand::random();
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(bits.to_be_bytes()) {
            if let [high, low] = pair {
                *high = HEX[usize::from(byte >> 4)];
                *low = HEX[usize::from(byte & 15)];
            }
        }
        Self(text)
    }

    /// The 32 digits.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// How to speak to a caller.
#[derive(Clone, Copy)]
pub struct Hearer {
    /// The request's number.
    pub request_id: RequestId,
    /// The language of errors.
    pub language: Language,
}

impl Hearer {
    /// Whoever sends `headers`.
    pub fn of(headers: &HeaderMap) -> Self {
        let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        Self { request_id: RequestId::new(), language: accepted.map(Language::accepted).unwrap_or_default() }
    }
}

/// What the shield said of a request: of the caller first, then of the retailer a platform speaks for.
pub type Admissions = SmallVec<[(&'static str, Admission); 2]>;

/// Understands a request. What the shield says is left in `admissions` whatever comes of it, as soon as
/// the caller is known.
///
/// # Errors
/// The first refusal in the order of the module's description.
pub async fn call<R: Role, B: Body>(
    app: &Rc<App>,
    request: HttpRequest,
    payload: Payload,
    hearer: Hearer,
    admissions: &mut Admissions,
) -> Result<Call<R, B>, Problem> {
    let (role, body) = match R::without_token() {
        Some(role) => (role, body::<B>(app, &request, payload).await?),
        None => {
            let caller = authenticated(app, &request)?;
            let retailer = named_retailer(request.headers());
            let mut gate = Gate { app, caller: &caller, retailer, admissions };
            let role = R::of(&caller, retailer);
            let forbidden = role.as_ref().is_err_and(|problem| problem.code() == Code::Forbidden);
            if forbidden || !B::COSTS_ITEMS {
                // Whoever is forbidden is told so, however often.
                let admitted = gate.admit(1).await;
                if !forbidden {
                    admitted?;
                }
                (role?, body::<B>(app, &request, payload).await?)
            } else {
                match with_role::<R, B>(role, app, &request, payload).await {
                    Ok((role, body)) => {
                        gate.admit(u32::try_from(body.items()).unwrap_or(u32::MAX)).await?;
                        (role, body)
                    }
                    Err(problem) => {
                        // An envelope with faults is told so, and counts as one request.
                        let _ = gate.admit(1).await;
                        return Err(problem);
                    }
                }
            }
        }
    };
    Ok(Call { app: Rc::clone(app), role, body, hearer, request })
}

async fn with_role<R, B: Body>(
    role: Result<R, Problem>,
    app: &App,
    request: &HttpRequest,
    payload: Payload,
) -> Result<(R, B), Problem> {
    Ok((role?, body(app, request, payload).await?))
}

fn authenticated(app: &App, request: &HttpRequest) -> Result<Arc<Caller>, Problem> {
    let mut values = request.headers().get_all(header::AUTHORIZATION);
    let value = values.next().map(|value| value.as_bytes());
    let token = match values.next() {
        Some(_) => Err(auth::Unauthenticated::HeaderMalformed),
        None => auth::bearer(value),
    };
    // The machine's time, even where the service's clock is moved: whoever issues tokens does not move
    // with it.
    Ok(token.and_then(|token| app.verifier.verify(token, Clock::default().now()))?)
}

/// The way past the shield.
struct Gate<'c> {
    app: &'c App,
    caller: &'c Caller,
    retailer: NamedRetailer,
    admissions: &'c mut Admissions,
}

impl Gate<'_> {
    /// Counts the request for the caller, and what a platform sends for its retailer too.
    async fn admit(&mut self, cost: u32) -> Result<(), Problem> {
        let (own, other) = match self.caller {
            Caller::Retailer(uscc) => (RateKey::Retailer(*uscc), None),
            Caller::Regulator(regulator) => (RateKey::Regulator(&regulator.officer), None),
            Caller::Platform(platform) => {
                let named = self.retailer.and_then(Result::ok);
                let theirs = named.filter(|retailer| platform.retailers.contains(retailer));
                (RateKey::Platform(&platform.name), theirs.map(RateKey::Retailer))
            }
        };
        for key in std::iter::once(own).chain(other) {
            let admission = self.app.shield.admit(key, cost).await;
            self.admissions.push((key.class(), admission));
            if !admission.allowed {
                return Err(admission.into());
            }
        }
        Ok(())
    }
}

// --- The body's bytes ---

async fn body<B: Body>(app: &App, request: &HttpRequest, payload: Payload) -> Result<B, Problem> {
    let bytes = if B::BYTES_MAX == 0 {
        Bytes::new()
    } else {
        let headers = request.headers();
        let typed = is_json(headers);
        if typed == Some(false) || (typed.is_none() && !B::MAY_BE_EMPTY) {
            return Err(Code::UnsupportedMediaType.into());
        }
        if length(headers).is_some_and(|length| length > B::BYTES_MAX) {
            return Err(Code::TooLarge.into());
        }
        let bytes = tokio::time::timeout(limits::REQUEST_TIMEOUT, bytes(payload, B::BYTES_MAX))
            .await
            .unwrap_or_else(|_| Err(Code::RequestTimeout.into()))?;
        if typed.is_none() && !bytes.is_empty() {
            return Err(Code::UnsupportedMediaType.into());
        }
        bytes
    };
    B::read(request, &bytes, app.ledger.clock().now().day())
}

async fn bytes(mut payload: Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    const CUT_SHORT: Wrong =
        Wrong::new("body-incomplete", "The body ended before its length was reached.", "请求体不完整。");
    // Nearly every body comes in one piece, which is then used as it is.
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| Problem::fault("", CUT_SHORT).caused_by(error))?;
        if first.len() + joined.len() + piece.len() > bytes_max {
            return Err(Code::TooLarge.into());
        }
        if first.is_empty() && joined.is_empty() {
            first = piece;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&piece);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

/// Whether the body is JSON in UTF-8 and not encoded; `None` where nothing is said of its type.
fn is_json(headers: &HeaderMap) -> Option<bool> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    if text(header::CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Some(false);
    }
    let value = text(header::CONTENT_TYPE)?;
    if [header::CONTENT_TYPE, header::CONTENT_ENCODING].iter().any(|name| headers.get_all(name).count() > 1) {
        return Some(false);
    }
    if value == "application/json" {
        return Some(true);
    }
    let mut parts = value.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let is_utf8 = |parameter: &str| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    Some(is_json && parts.all(is_utf8))
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    const RETAILER: &str = "91110000600037341L";
    const OTHER: &str = "91350100M000100Y43";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn uscc(text: &str) -> Uscc {
        Uscc::parse(text).unwrap()
    }

    fn platform() -> Arc<Caller> {
        let retailers = auth::Retailers::Only(Box::new([uscc(RETAILER)]));
        Arc::new(Caller::Platform(Platform { name: "mall".into(), retailers }))
    }

    fn regulator(regions: Option<&[&str]>) -> Arc<Caller> {
        let region = |code: &&str| crate::identity::RegionCode::parse(code).unwrap();
        let regions = regions.map(|codes| codes.iter().map(region).collect());
        Arc::new(Caller::Regulator(auth::Regulator { officer: "li".into(), regions }))
    }

    fn code<R: Role>(caller: &Arc<Caller>, retailer: &[(&'static str, &'static str)]) -> Option<Code> {
        R::of(caller, named_retailer(&headers(retailer))).err().map(|problem| problem.code())
    }

    #[test]
    fn a_platform_names_one_of_its_own_retailers_and_nobody_else_names_any() {
        let own: &[_] = &[("x-retailer", RETAILER)];
        let retailer = Arc::new(Caller::Retailer(uscc(RETAILER)));
        assert_eq!(code::<Submitting>(&platform(), own), None);
        assert_eq!(code::<Submitting>(&platform(), &[]), Some(Code::InvalidRequest));
        assert_eq!(code::<Submitting>(&platform(), &[("x-retailer", OTHER)]), Some(Code::Forbidden));
        assert_eq!(code::<Submitting>(&platform(), &[("x-retailer", "x")]), Some(Code::InvalidRequest));
        let twice = [("x-retailer", RETAILER), ("x-retailer", RETAILER)];
        assert_eq!(code::<Submitting>(&platform(), &twice), Some(Code::InvalidRequest));
        assert_eq!(code::<Submitting>(&retailer, &[]), None);
        assert_eq!(code::<Submitting>(&retailer, own), Some(Code::InvalidRequest));
        assert_eq!(code::<Submitting>(&regulator(None), &[]), Some(Code::Forbidden));
        assert_eq!(code::<Viewer>(&platform(), &[]), None);
        assert_eq!(code::<Viewer>(&platform(), &[("x-retailer", OTHER)]), Some(Code::Forbidden));
        assert_eq!(code::<Viewer>(&regulator(None), own), Some(Code::InvalidRequest));
    }

    #[test]
    fn only_regulators_regulate_and_only_those_of_all_regions_read_the_journal() {
        assert_eq!(code::<Regulator>(&regulator(Some(&["330100"])), &[]), None);
        assert_eq!(code::<Regulator>(&platform(), &[]), Some(Code::Forbidden));
        assert_eq!(code::<RegulatorOfAllRegions>(&regulator(None), &[]), None);
        assert_eq!(code::<RegulatorOfAllRegions>(&regulator(Some(&["330100"])), &[]), Some(Code::Forbidden));
    }

    #[test]
    fn only_json_in_utf_8_without_an_encoding_is_taken() {
        for (pairs, expected) in [
            (&[("content-type", "application/json")][..], Some(true)),
            (&[("content-type", "Application/JSON; charset=\"UTF-8\"")], Some(true)),
            (&[("content-type", "application/json"), ("content-encoding", "identity")], Some(true)),
            (&[("content-type", "application/json"), ("content-encoding", "gzip")], Some(false)),
            (&[("content-type", "application/json; charset=gbk")], Some(false)),
            (&[("content-type", "application/json"), ("content-type", "text/plain")], Some(false)),
            (&[("content-type", "application/json; v=1")], Some(false)),
            (&[("content-type", "text/json")], Some(false)),
            (&[], None),
        ] {
            assert_eq!(is_json(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn request_ids_are_long_and_differ() {
        let (one, other) = (RequestId::new(), RequestId::new());
        assert_eq!(one.as_str().len(), 32);
        assert_ne!(one.as_str(), other.as_str());
    }
}
