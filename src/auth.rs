//! From a bearer token to a caller with a role.
//!
//! Tokens are JWTs (RFC 7519) signed with EdDSA, ES256 or RS256 under a key of the JWKS file; the
//! key decides the algorithm, never the token. The file is read again when it changes. What was
//! verified is remembered per thread for a minute at most.

mod cache;
mod jwks;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Deserializer, Serialize};

use self::cache::TokenCache;
use self::jwks::KeySet;
use crate::identity::{RegionCode, Uscc};
use crate::limits;
use crate::secrets::{FileFault, SigningKey, read_bounded};
use crate::telemetry::{Level, Metrics};
use crate::time::Timestamp;

/// The audience every token must name.
pub const AUDIENCE: &str = "subsidy-pos";

// --- Callers ---

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A retailer, for itself.
    Retailer(Uscc),
    /// A platform, for retailers.
    Platform(Platform),
    /// An officer of a regulator.
    Regulator(Regulator),
}

/// A platform that integrates on behalf of retailers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Its name: 1 to 64 visible ASCII characters.
    pub name: Arc<str>,
    /// The retailers it may act for.
    pub retailers: Retailers,
}

/// The retailers a platform may act for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retailers {
    /// Every retailer.
    All,
    /// These, in ascending order.
    Only(Box<[Uscc]>),
}

impl Retailers {
    /// Whether `retailer` is one of them.
    pub fn contains(&self, retailer: &Uscc) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.binary_search(retailer).is_ok(),
        }
    }
}

/// An officer of a regulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regulator {
    /// Who it is: 1 to 64 visible ASCII characters.
    pub officer: Arc<str>,
    /// The regions seen; `None` is all of them.
    pub regions: Option<Vec<RegionCode>>,
}

impl Regulator {
    /// Whether what concerns `region` may be seen.
    pub fn covers(&self, region: RegionCode) -> bool {
        self.regions.as_ref().is_none_or(|regions| regions.iter().any(|own| own.covers(region)))
    }
}

/// The role a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `sub` is the retailer's unified social credit code.
    Retailer,
    /// `sub` is the platform's name, `retailers` lists whom it acts for.
    Platform,
    /// `sub` is an officer, `regions` limits what is seen.
    Regulator,
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "retailer" => Ok(Self::Retailer),
            "platform" => Ok(Self::Platform),
            "regulator" => Ok(Self::Regulator),
            _ => Err("a role is retailer, platform or regulator"),
        }
    }
}

// --- Refusals ---

/// Why a request is not authenticated. For the log only: the caller is told one and the same
/// thing, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// No `Authorization` header.
    #[error("no_token")]
    NoToken,
    /// The header is not `Bearer` and a token, or the token is too long.
    #[error("header_malformed")]
    HeaderMalformed,
    /// Not a signed JWT, or one with an algorithm that no key here has.
    #[error("token_malformed")]
    TokenMalformed,
    /// The token's header asks for something not supported (`crit`, another `typ`, …).
    #[error("token_not_supported")]
    TokenNotSupported,
    /// No `kid`, or one that is not in the JWKS.
    #[error("key_unknown")]
    KeyUnknown,
    /// Another algorithm than the key's.
    #[error("algorithm_differs")]
    AlgorithmDiffers,
    /// The signature is wrong.
    #[error("signature_wrong")]
    SignatureWrong,
    /// A required claim is missing or of the wrong type.
    #[error("claims_malformed")]
    ClaimsMalformed,
    /// Another issuer.
    #[error("issuer_differs")]
    IssuerDiffers,
    /// For another audience.
    #[error("audience_differs")]
    AudienceDiffers,
    /// `exp` has passed.
    #[error("expired")]
    Expired,
    /// `nbf` or `iat` lies ahead.
    #[error("not_yet_valid")]
    NotYetValid,
    /// `sub` is not what the role requires.
    #[error("subject_invalid")]
    SubjectInvalid,
    /// `retailers` is missing, empty or holds something else than valid codes.
    #[error("retailers_invalid")]
    RetailersInvalid,
    /// `regions` is empty or holds something else than valid codes.
    #[error("regions_invalid")]
    RegionsInvalid,
}

/// The token of an `Authorization` header: `Bearer`, in any case, one or more spaces, the token.
///
/// # Errors
/// When there is no header, or it is something else.
pub fn bearer(header: Option<&[u8]>) -> Result<&str, Unauthenticated> {
    let header = header.ok_or(Unauthenticated::NoToken)?;
    let text = std::str::from_utf8(header).map_err(|_| Unauthenticated::HeaderMalformed)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_matches(' ')),
        _ => Err(Unauthenticated::HeaderMalformed),
    }
}

// --- Claims ---

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    sub: String,
    /// Whole seconds since 1970, as `iat` and `nbf`.
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    role: Role,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    retailers: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    regions: Option<Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// A claim that may be absent but not null: `"regions": null` must not mean all regions.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

impl Claims {
    fn check_times(&self, now: Timestamp) -> Result<(), Unauthenticated> {
        let leeway_ms = instant(limits::TOKEN_LEEWAY_S).ms();
        if instant(self.exp).plus_ms(leeway_ms) <= now {
            return Err(Unauthenticated::Expired);
        }
        let latest = now.plus_ms(leeway_ms);
        if instant(self.iat) > latest || self.nbf.is_some_and(|nbf| instant(nbf) > latest) {
            return Err(Unauthenticated::NotYetValid);
        }
        Ok(())
    }

    /// Who the claims speak of.
    fn caller(&self) -> Result<Caller, Unauthenticated> {
        let name = || {
            let visible = self.sub.bytes().all(|byte| byte.is_ascii_graphic());
            let length = (1..=limits::TOKEN_SUBJECT_CHARS_MAX).contains(&self.sub.len());
            (visible && length).then(|| Arc::from(self.sub.as_str())).ok_or(Unauthenticated::SubjectInvalid)
        };
        Ok(match self.role {
            Role::Retailer => {
                Caller::Retailer(Uscc::parse(&self.sub).map_err(|_| Unauthenticated::SubjectInvalid)?)
            }
            Role::Platform => Caller::Platform(Platform { name: name()?, retailers: self.retailers()? }),
            Role::Regulator => Caller::Regulator(Regulator { officer: name()?, regions: self.regions()? }),
        })
    }

    fn retailers(&self) -> Result<Retailers, Unauthenticated> {
        let invalid = Unauthenticated::RetailersInvalid;
        let named = self.retailers.as_deref().filter(|named| !named.is_empty()).ok_or(invalid)?;
        if named == ["*"] {
            return Ok(Retailers::All);
        }
        let mut only =
            named.iter().map(|code| Uscc::parse(code)).collect::<Result<Vec<_>, _>>().map_err(|_| invalid)?;
        only.sort_unstable();
        Ok(Retailers::Only(only.into()))
    }

    fn regions(&self) -> Result<Option<Vec<RegionCode>>, Unauthenticated> {
        let invalid = Unauthenticated::RegionsInvalid;
        let Some(named) = self.regions.as_deref() else { return Ok(None) };
        if named.is_empty() {
            return Err(invalid);
        }
        named
            .iter()
            .map(|code| RegionCode::parse(code))
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
            .map_err(|_| invalid)
    }
}

/// The instant `s` seconds after 1970 began; one too far away to name is the last there is.
fn instant(s: u64) -> Timestamp {
    Timestamp::from_ms(i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1000))
}

// --- Verification ---

thread_local! {
    static CACHE: RefCell<TokenCache> = RefCell::new(TokenCache::new());
}

/// Verifies tokens with the keys of a JWKS file.
pub struct Verifier {
    file: PathBuf,
    issuer: String,
    keys: ArcSwap<KeySet>,
    /// What the file held when it was last looked at, so that each change is reported once.
    seen: Mutex<Result<Vec<u8>, FileFault>>,
    reload_failures: Counter,
    stale: Level,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("file", &self.file)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads the JWKS file. Tokens must come from `issuer`.
    ///
    /// # Errors
    /// When the file cannot be read or understood, or holds no usable key.
    pub fn open(file: &Path, issuer: &str, metrics: &Metrics) -> Result<Self, FileFault> {
        let bytes = read(file)?;
        let keys = KeySet::parse(file, &bytes)?;
        log_keys(file, &keys);
        Ok(Self {
            file: file.into(),
            issuer: issuer.into(),
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(Ok(bytes)),
            reload_failures: metrics.jwks_reload_failures.clone(),
            stale: metrics.jwks_stale.clone(),
        })
    }

    /// Looks at the file every second, from a thread of its own that ends with the verifier.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn watch(self: &Arc<Self>) -> io::Result<()> {
        let verifier = Arc::downgrade(self);
        std::thread::Builder::new().name("jwks".into()).spawn(move || {
            loop {
                std::thread::sleep(limits::JWKS_POLL);
                match verifier.upgrade() {
                    Some(verifier) => verifier.reload(),
                    None => return,
                }
            }
        })?;
        Ok(())
    }

    /// Takes the keys of the file if it has changed. A file at fault leaves the keys as they are,
    /// and says so in the log and the metrics.
    pub fn reload(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = read(&self.file);
        if *seen == bytes {
            return;
        }
        match bytes.as_ref().map_err(Clone::clone).and_then(|bytes| KeySet::parse(&self.file, bytes)) {
            Ok(keys) => {
                log_keys(&self.file, &keys);
                self.keys.store(Arc::new(keys));
                self.stale.set(0);
            }
            Err(fault) => {
                tracing::error!(%fault, "the JWKS file is at fault; the keys read before stay in use");
                self.reload_failures.inc();
                self.stale.set(1);
            }
        }
        *seen = bytes;
    }

    /// Who presents `token` at `now`.
    ///
    /// # Errors
    /// When it is not a token of ours or not valid at `now`.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<Caller>, Unauthenticated> {
        let keys = self.keys.load();
        if let Some(caller) = CACHE.with_borrow(|cache| cache.get(keys.generation, token, now)) {
            return Ok(caller);
        }
        let claims = self.verified_claims(&keys, token)?;
        claims.check_times(now)?;
        let caller = Arc::new(claims.caller()?);
        let until = now.plus_ms(CACHE_TTL_MS).min(instant(claims.exp));
        CACHE.with_borrow_mut(|cache| cache.put(keys.generation, token, Arc::clone(&caller), now, until));
        Ok(caller)
    }

    /// The claims of a token whose signature, issuer and audience are right. Times and everything
    /// that depends on the role are still to be checked.
    fn verified_claims(&self, keys: &KeySet, token: &str) -> Result<Claims, Unauthenticated> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(Unauthenticated::HeaderMalformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Unauthenticated::TokenMalformed)?;
        let known_type = |typ: &str| ["jwt", "at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known));
        let compressed_or_encrypted = header.zip.is_some() || header.enc.is_some();
        if header.crit.is_some() || compressed_or_encrypted || !header.typ.as_deref().is_none_or(known_type) {
            return Err(Unauthenticated::TokenNotSupported);
        }
        let key = header.kid.as_deref().and_then(|kid| keys.get(kid)).ok_or(Unauthenticated::KeyUnknown)?;
        if header.alg != key.algorithm {
            return Err(Unauthenticated::AlgorithmDiffers);
        }
        let mut validation = Validation::new(key.algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[self.issuer.as_str()]);
        validation.set_audience(&[AUDIENCE]);
        // The library asks the system's clock and knows no `iat`: `Claims::check_times` does both.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation).map(|data| data.claims).map_err(
            |error| match error.kind() {
                ErrorKind::InvalidSignature => Unauthenticated::SignatureWrong,
                ErrorKind::InvalidIssuer => Unauthenticated::IssuerDiffers,
                ErrorKind::InvalidAudience => Unauthenticated::AudienceDiffers,
                ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) => Unauthenticated::ClaimsMalformed,
                _ => Unauthenticated::TokenMalformed,
            },
        )
    }
}

const CACHE_TTL_MS: i64 = limits::TOKEN_CACHE_TTL.as_millis() as i64;

/// Checks a JWKS file without using it.
///
/// # Errors
/// As [`Verifier::open`].
pub fn check_jwks(file: &Path) -> Result<(), FileFault> {
    KeySet::parse(file, &read(file)?).map(|_| ())
}

fn read(file: &Path) -> Result<Vec<u8>, FileFault> {
    read_bounded(file, limits::JWKS_BYTES_MAX).map(|bytes| bytes.to_vec())
}

fn log_keys(file: &Path, keys: &KeySet) {
    for skipped in &keys.skipped {
        tracing::warn!(file = %file.display(), "not used to verify tokens: {skipped}");
    }
    tracing::info!(file = %file.display(), keys = keys.len(), "keys to verify tokens with are in use");
}

// --- Minting ---

/// A token to be made with a development key.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its role.
    pub role: Role,
    /// Its `sub`.
    pub subject: String,
    /// For a platform, the retailers it acts for, or `*` alone for all.
    pub retailers: Option<Vec<String>>,
    /// For a regulator, the regions seen; `None` is all of them.
    pub regions: Option<Vec<String>>,
    /// How long it is valid.
    pub ttl: Duration,
}

/// Why a token was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The service would refuse the token.
    #[error("the service would refuse this token: {0}")]
    Refused(#[from] Unauthenticated),
    /// `retailers` is for platforms and `regions` for regulators.
    #[error("retailers are for the role platform, regions for the role regulator")]
    OtherRole,
    /// The key could not be used.
    #[error("the token could not be signed")]
    NotSigned,
}

/// Makes a token that is valid from `now` on.
///
/// # Errors
/// When the service would refuse it.
pub fn mint(key: &SigningKey, issuer: &str, token: &NewToken, now: Timestamp) -> Result<String, MintError> {
    if token.retailers.is_some() && token.role != Role::Platform
        || token.regions.is_some() && token.role != Role::Regulator
    {
        return Err(MintError::OtherRole);
    }
    let iat = u64::try_from(now.ms().div_euclid(1000)).unwrap_or_default();
    let claims = Claims {
        iss: issuer.into(),
        aud: Audience::One(AUDIENCE.into()),
        sub: token.subject.clone(),
        exp: iat.saturating_add(token.ttl.as_secs()),
        iat,
        nbf: None,
        role: token.role,
        retailers: token.retailers.clone(),
        regions: token.regions.clone(),
    };
    claims.caller()?;
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(key.public_key().thumbprint());
    let der = key.to_pkcs8().map_err(|_| MintError::NotSigned)?;
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&der)).map_err(|_| MintError::NotSigned)
}

/// Reads how long a token is to be valid: a whole number of seconds, minutes, hours or days, as
/// `90s`, `15m`, `1h`, `7d`.
///
/// # Errors
/// When it is something else, zero, or more than a year.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    const YEAR_S: u64 = 366 * 86_400;
    let unit_s = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let read = || {
        let unit = text.chars().next_back()?;
        let number = text.strip_suffix(unit)?;
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let s = digits.then(|| number.parse::<u64>().ok())??.checked_mul(unit_s(unit)?)?;
        (1..=YEAR_S).contains(&s).then(|| Duration::from_secs(s))
    };
    read().ok_or_else(|| "a time is a number and its unit, at most a year: 90s, 15m, 1h, 7d".into())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    };
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;
    use crate::secrets::DevKeys;

    const ISSUER: &str = "https://login.example";
    const RETAILER: &str = "9144030071526726XG";
    /// The instant the tests take place at, in seconds.
    const NOW_S: i64 = 1_795_400_100;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_ms(s * 1000)
    }

    fn now() -> Timestamp {
        at(NOW_S)
    }

    fn b64(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A key that signs any header over any claims, sensible or not.
    enum TestKey {
        Ed(Ed25519KeyPair),
        Ec(EcdsaKeyPair),
        Rsa(RsaKeyPair),
    }

    impl TestKey {
        fn ed() -> Self {
            Self::Ed(Ed25519KeyPair::generate().unwrap())
        }

        fn ec() -> Self {
            Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        fn rsa() -> Self {
            Self::Rsa(RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap())
        }

        fn alg(&self) -> &'static str {
            match self {
                Self::Ed(_) => "EdDSA",
                Self::Ec(_) => "ES256",
                Self::Rsa(_) => "RS256",
            }
        }

        fn jwk(&self, kid: &str) -> Value {
            let mut jwk = match self {
                Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key())}),
                Self::Ec(key) => {
                    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                    json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)})
                }
                Self::Rsa(key) => {
                    // DER: a sequence of the modulus (with a leading zero) and the exponent 65537.
                    let der = key.public_key().as_ref();
                    assert_eq!(der[der.len() - 5..], [2, 3, 1, 0, 1]);
                    json!({"kty": "RSA", "n": b64(&der[9..9 + 256]), "e": "AQAB"})
                }
            };
            jwk["kid"] = kid.into();
            jwk
        }

        fn sign_text(&self, header: &str, claims: &str) -> String {
            let message = format!("{}.{}", b64(header), b64(claims));
            let signature = match self {
                Self::Ed(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
                Self::Ec(key) => {
                    key.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec()
                }
                Self::Rsa(key) => {
                    let mut signature = vec![0; key.public_modulus_len()];
                    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
                        .unwrap();
                    signature
                }
            };
            format!("{message}.{}", b64(signature))
        }

        fn sign(&self, claims: &Value) -> String {
            self.sign_text(
                &json!({"alg": self.alg(), "kid": "a", "typ": "JWT"}).to_string(),
                &claims.to_string(),
            )
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": RETAILER, "role": "retailer",
            "iat": NOW_S, "exp": NOW_S + 3600,
        })
    }

    /// The claims with some set, or removed where the value is null.
    fn claims_with(changes: Value) -> Value {
        let mut claims = claims();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }

    struct Issuer {
        key: TestKey,
        verifier: Arc<Verifier>,
        metrics: Metrics,
        file: PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Issuer {
        /// An issuer with `key` under the id `a`.
        fn new(key: TestKey) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("jwks.json");
            std::fs::write(&file, json!({"keys": [key.jwk("a")]}).to_string()).unwrap();
            let metrics = Metrics::new(&[], &[]);
            let verifier = Arc::new(Verifier::open(&file, ISSUER, &metrics).unwrap());
            Self { key, verifier, metrics, file, _dir: dir }
        }

        fn verify(&self, claims: &Value) -> Result<Arc<Caller>, Unauthenticated> {
            self.verifier.verify(&self.key.sign(claims), now())
        }

        fn publish(&self, jwks: &Value) {
            std::fs::write(&self.file, jwks.to_string()).unwrap();
            self.verifier.reload();
        }
    }

    fn uscc(code: &str) -> Uscc {
        Uscc::parse(code).unwrap()
    }

    #[test]
    fn a_token_of_each_algorithm_is_verified() {
        for key in [TestKey::ed(), TestKey::ec(), TestKey::rsa()] {
            let issuer = Issuer::new(key);
            assert_eq!(*issuer.verify(&claims()).unwrap(), Caller::Retailer(uscc(RETAILER)));
        }
    }

    #[test]
    fn each_role_becomes_its_caller() {
        let issuer = Issuer::new(TestKey::ed());
        let other = "91350100M000100Y43";
        let platform =
            claims_with(json!({"role": "platform", "sub": "mall", "retailers": [RETAILER, other]}));
        let Caller::Platform(platform) = (*issuer.verify(&platform).unwrap()).clone() else { panic!() };
        assert_eq!(&*platform.name, "mall");
        assert!(platform.retailers.contains(&uscc(RETAILER)) && platform.retailers.contains(&uscc(other)));
        assert!(!platform.retailers.contains(&uscc("91110000600037341L")));

        let all = claims_with(json!({"role": "platform", "sub": "mall", "retailers": ["*"]}));
        let Caller::Platform(all) = (*issuer.verify(&all).unwrap()).clone() else { panic!() };
        assert_eq!(all.retailers, Retailers::All);

        let city = claims_with(json!({"role": "regulator", "sub": "officer.7", "regions": ["330100"]}));
        let Caller::Regulator(city) = (*issuer.verify(&city).unwrap()).clone() else { panic!() };
        assert!(city.covers(RegionCode::parse("330106").unwrap()));
        assert!(!city.covers(RegionCode::parse("330206").unwrap()));

        let everywhere = claims_with(json!({"role": "regulator", "sub": "officer.7"}));
        let Caller::Regulator(everywhere) = (*issuer.verify(&everywhere).unwrap()).clone() else { panic!() };
        assert_eq!(everywhere.regions, None);
        assert!(everywhere.covers(RegionCode::parse("110105").unwrap()));
    }

    #[test]
    fn one_of_several_audiences_may_be_ours() {
        let issuer = Issuer::new(TestKey::ed());
        assert!(issuer.verify(&claims_with(json!({"aud": ["till", AUDIENCE]}))).is_ok());
    }

    #[test]
    fn claims_that_are_missing_or_wrong_are_refused() {
        use Unauthenticated::*;
        let issuer = Issuer::new(TestKey::ed());
        for name in ["iss", "aud", "sub", "exp", "iat", "role"] {
            assert_eq!(
                issuer.verify(&claims_with(json!({name: null}))).unwrap_err(),
                ClaimsMalformed,
                "{name}"
            );
        }
        let platform = |retailers: Value| json!({"role": "platform", "sub": "mall", "retailers": retailers});
        let regulator = |regions: Value| json!({"role": "regulator", "sub": "officer", "regions": regions});
        for (changes, reason) in [
            (json!({"iss": "https://other.example"}), IssuerDiffers),
            (json!({"iss": [ISSUER]}), ClaimsMalformed),
            (json!({"aud": "other"}), AudienceDiffers),
            (json!({"aud": []}), AudienceDiffers),
            (json!({"aud": ["other"]}), AudienceDiffers),
            (json!({"aud": 1}), ClaimsMalformed),
            (json!({"exp": (NOW_S + 3600).to_string()}), ClaimsMalformed),
            (json!({"exp": 1e300}), ClaimsMalformed),
            (json!({"exp": -1}), ClaimsMalformed),
            (json!({"iat": "now"}), ClaimsMalformed),
            (json!({"iat": NOW_S + 31}), NotYetValid),
            (json!({"nbf": "now"}), ClaimsMalformed),
            (json!({"nbf": NOW_S + 31}), NotYetValid),
            (json!({"role": "admin"}), ClaimsMalformed),
            (json!({"role": "Retailer"}), ClaimsMalformed),
            (json!({"role": ["retailer"]}), ClaimsMalformed),
            (json!({"sub": ""}), SubjectInvalid),
            (json!({"sub": "91110000600037341N"}), SubjectInvalid),
            (json!({"sub": 7}), ClaimsMalformed),
            (json!({"role": "platform", "sub": "mall"}), RetailersInvalid),
            (platform(json!([])), RetailersInvalid),
            (platform(json!(["*", RETAILER])), RetailersInvalid),
            (platform(json!(["91110000600037341N"])), RetailersInvalid),
            (platform(json!("*")), ClaimsMalformed),
            (json!({"role": "platform", "sub": "a b", "retailers": ["*"]}), SubjectInvalid),
            (json!({"role": "platform", "sub": "", "retailers": ["*"]}), SubjectInvalid),
            (json!({"role": "platform", "sub": "平台", "retailers": ["*"]}), SubjectInvalid),
            (json!({"role": "platform", "sub": "x".repeat(65), "retailers": ["*"]}), SubjectInvalid),
            (regulator(json!([])), RegionsInvalid),
            (regulator(json!(["33"])), RegionsInvalid),
            (regulator(json!(["330100", ""])), RegionsInvalid),
            (regulator(json!("330100")), ClaimsMalformed),
        ] {
            assert_eq!(issuer.verify(&claims_with(changes.clone())).unwrap_err(), reason, "{changes}");
        }
    }

    #[test]
    fn a_claim_that_is_null_or_there_twice_is_refused() {
        let issuer = Issuer::new(TestKey::ed());
        let officer = json!({"role": "regulator", "sub": "officer", "regions": ["330100"]});
        let text = claims_with(officer).to_string();
        for changed in [
            text.replace(r#"["330100"]"#, "null"),
            text.replace(r#""regions""#, r#""regions":["110000"],"regions""#),
            text.replace(r#""exp""#, r#""exp":1,"exp""#),
            text.replace(r#""iat""#, r#""nbf":null,"iat""#),
        ] {
            assert_ne!(changed, text);
            let token = issuer.key.sign_text(r#"{"alg":"EdDSA","kid":"a"}"#, &changed);
            let refused = issuer.verifier.verify(&token, now()).unwrap_err();
            assert_eq!(refused, Unauthenticated::ClaimsMalformed, "{changed}");
        }
    }

    #[test]
    fn a_token_is_valid_from_nbf_to_exp_with_thirty_seconds_of_leeway() {
        let issuer = Issuer::new(TestKey::ed());
        let token =
            issuer.key.sign(&claims_with(json!({"iat": NOW_S, "nbf": NOW_S + 100, "exp": NOW_S + 200})));
        let verify = |s| issuer.verifier.verify(&token, at(s)).map(|_| ());
        assert_eq!(verify(NOW_S + 69), Err(Unauthenticated::NotYetValid));
        assert_eq!(verify(NOW_S + 70), Ok(()));
        assert_eq!(verify(NOW_S + 229), Ok(()));
        assert_eq!(verify(NOW_S + 230), Err(Unauthenticated::Expired));
        assert_eq!(verify(NOW_S + 69), Err(Unauthenticated::NotYetValid), "also when remembered");
    }

    #[test]
    fn headers_that_ask_for_anything_unusual_are_refused() {
        use Unauthenticated::*;
        let issuer = Issuer::new(TestKey::ed());
        let own_key = TestKey::ed();
        for (header, reason) in [
            (json!({"alg": "none", "kid": "a"}), TokenMalformed),
            (json!({"alg": "Ed448", "kid": "a"}), TokenMalformed),
            (json!({"kid": "a"}), TokenMalformed),
            (json!({"alg": "HS256", "kid": "a"}), AlgorithmDiffers),
            (json!({"alg": "ES256", "kid": "a"}), AlgorithmDiffers),
            (json!({"alg": "EdDSA"}), KeyUnknown),
            (json!({"alg": "EdDSA", "kid": "b"}), KeyUnknown),
            (json!({"alg": "EdDSA", "kid": 1}), TokenMalformed),
            (json!({"alg": "EdDSA", "kid": "a", "crit": ["exp"]}), TokenNotSupported),
            (json!({"alg": "EdDSA", "kid": "a", "crit": []}), TokenNotSupported),
            (json!({"alg": "EdDSA", "kid": "a", "zip": "DEF"}), TokenNotSupported),
            (json!({"alg": "EdDSA", "kid": "a", "typ": "logout+jwt"}), TokenNotSupported),
        ] {
            let token = issuer.key.sign_text(&header.to_string(), &claims().to_string());
            assert_eq!(issuer.verifier.verify(&token, now()).unwrap_err(), reason, "{header}");
        }
        for header in
            [json!({"alg": "EdDSA", "kid": "a"}), json!({"alg": "EdDSA", "kid": "a", "typ": "at+jwt"})]
        {
            let token = issuer.key.sign_text(&header.to_string(), &claims().to_string());
            assert!(issuer.verifier.verify(&token, now()).is_ok(), "{header}");
        }
        // A key that comes with the token counts for nothing.
        let embedded = json!({"alg": "EdDSA", "kid": "a", "jwk": own_key.jwk("a")}).to_string();
        let token = own_key.sign_text(&embedded, &claims().to_string());
        assert_eq!(issuer.verifier.verify(&token, now()).unwrap_err(), SignatureWrong);
        let twice = r#"{"alg":"none","alg":"EdDSA","kid":"a"}"#;
        let token = issuer.key.sign_text(twice, &claims().to_string());
        assert_eq!(issuer.verifier.verify(&token, now()).unwrap_err(), TokenMalformed);
    }

    #[test]
    fn a_public_key_used_as_a_shared_secret_signs_nothing() {
        let issuer = Issuer::new(TestKey::ec());
        let TestKey::Ec(key) = &issuer.key else { panic!() };
        let message = format!("{}.{}", b64(r#"{"alg":"HS256","kid":"a"}"#), b64(claims().to_string()));
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key.public_key().as_ref());
        let token = format!("{message}.{}", b64(aws_lc_rs::hmac::sign(&secret, message.as_bytes())));
        assert_eq!(issuer.verifier.verify(&token, now()).unwrap_err(), Unauthenticated::AlgorithmDiffers);
    }

    #[test]
    fn any_change_to_a_token_is_noticed_also_after_it_was_verified() {
        for key in [TestKey::ed(), TestKey::ec()] {
            let issuer = Issuer::new(key);
            let token = issuer.key.sign(&claims());
            assert!(issuer.verifier.verify(&token, now()).is_ok());
            for at in 0..token.len() {
                let mut changed = token.clone().into_bytes();
                changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(changed).unwrap();
                assert!(issuer.verifier.verify(&changed, now()).is_err(), "{at}");
            }
            let (rest, _) = token.rsplit_once('.').unwrap();
            for cut in ["", ".", "..", "a.b.c", rest, &format!("{rest}."), &format!("{token}."), &token[1..]]
            {
                assert!(issuer.verifier.verify(cut, now()).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn an_overlong_token_is_not_even_looked_at() {
        let issuer = Issuer::new(TestKey::ed());
        let token = issuer.key.sign(&claims_with(json!({"more": "x".repeat(limits::TOKEN_BYTES_MAX)})));
        assert_eq!(issuer.verifier.verify(&token, now()).unwrap_err(), Unauthenticated::HeaderMalformed);
    }

    #[test]
    fn the_header_is_bearer_and_a_token() {
        assert_eq!(bearer(Some(b"Bearer abc")), Ok("abc"));
        assert_eq!(bearer(Some(b"bearer  abc ")), Ok("abc"));
        assert_eq!(bearer(None), Err(Unauthenticated::NoToken));
        for other in [&b"Basic abc"[..], b"Bearer", b"abc", b"", b"Bearer\xff abc", b"Bearerabc"] {
            assert_eq!(bearer(Some(other)), Err(Unauthenticated::HeaderMalformed));
        }
    }

    #[test]
    fn a_verified_token_is_remembered_for_a_minute_and_never_past_its_end() {
        let issuer = Issuer::new(TestKey::ed());
        let remembered = |claims: Value, later_s: i64| {
            let token = issuer.key.sign(&claims);
            let first = issuer.verifier.verify(&token, now()).unwrap();
            Arc::ptr_eq(&first, &issuer.verifier.verify(&token, at(NOW_S + later_s)).unwrap())
        };
        assert!(remembered(claims(), 59));
        assert!(!remembered(claims_with(json!({"jti": "1"})), 60));
        assert!(remembered(claims_with(json!({"exp": NOW_S + 10})), 9));
        assert!(
            !remembered(claims_with(json!({"exp": NOW_S + 10})), 10),
            "valid by leeway, but verified again"
        );
        assert!(!remembered(claims_with(json!({"exp": NOW_S - 5})), 0));
    }

    #[test]
    fn another_thread_and_another_verifier_remember_nothing() {
        let (issuer, stranger) = (Issuer::new(TestKey::ed()), Issuer::new(TestKey::ed()));
        let token = issuer.key.sign(&claims());
        let first = issuer.verifier.verify(&token, now()).unwrap();
        assert_eq!(stranger.verifier.verify(&token, now()).unwrap_err(), Unauthenticated::SignatureWrong);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| issuer.verifier.verify(&token, now()).unwrap());
            assert!(!Arc::ptr_eq(&first, &thread.join().unwrap()));
        });
    }

    #[test]
    fn keys_follow_the_file_and_a_withdrawn_key_is_refused_at_once() {
        let issuer = Issuer::new(TestKey::ed());
        let next = TestKey::ec();
        let old_token = issuer.key.sign(&claims());
        let header = json!({"alg": "ES256", "kid": "b"}).to_string();
        let new_token = next.sign_text(&header, &claims().to_string());
        let verify = |token: &str| issuer.verifier.verify(token, now()).map(|_| ());
        assert_eq!(verify(&old_token), Ok(()));
        assert_eq!(verify(&new_token), Err(Unauthenticated::KeyUnknown));
        issuer.publish(&json!({"keys": [issuer.key.jwk("a"), next.jwk("b")]}));
        assert_eq!((verify(&old_token), verify(&new_token)), (Ok(()), Ok(())));
        issuer.publish(&json!({"keys": [next.jwk("b")]}));
        assert_eq!(verify(&old_token), Err(Unauthenticated::KeyUnknown));
        assert_eq!(verify(&new_token), Ok(()));
        // The same id with another key: what the first one signed is worth nothing.
        issuer.publish(&json!({"keys": [TestKey::ec().jwk("b")]}));
        assert_eq!(verify(&new_token), Err(Unauthenticated::SignatureWrong));
        assert_eq!(issuer.metrics.jwks_reload_failures.get(), 0);
    }

    #[test]
    fn a_file_at_fault_leaves_the_keys_in_use_and_is_reported_once() {
        let issuer = Issuer::new(TestKey::ed());
        let token = issuer.key.sign(&claims());
        let good = std::fs::read(&issuer.file).unwrap();
        let failures = || (issuer.metrics.jwks_reload_failures.get(), issuer.metrics.jwks_stale.get());
        for (n, bad) in [&b"{\"keys\": ["[..], b"", b"\xff", b"{\"keys\": []}"].iter().enumerate() {
            std::fs::write(&issuer.file, bad).unwrap();
            issuer.verifier.reload();
            issuer.verifier.reload();
            assert_eq!(failures(), (n as u64 + 1, 1));
            assert!(issuer.verifier.verify(&token, now()).is_ok());
        }
        std::fs::remove_file(&issuer.file).unwrap();
        issuer.verifier.reload();
        issuer.verifier.reload();
        assert_eq!(failures(), (5, 1));
        std::fs::write(&issuer.file, good).unwrap();
        issuer.verifier.reload();
        assert_eq!(failures(), (5, 0));
        assert!(issuer.verifier.verify(&token, now()).is_ok());
    }

    #[test]
    fn a_changed_file_is_noticed_by_itself() {
        let issuer = Issuer::new(TestKey::ed());
        issuer.verifier.watch().unwrap();
        let next = TestKey::ed();
        std::fs::write(&issuer.file, json!({"keys": [next.jwk("a")]}).to_string()).unwrap();
        let token = next.sign(&claims());
        let deadline = std::time::Instant::now() + limits::JWKS_POLL * 20;
        while issuer.verifier.verify(&token, now()).is_err() {
            assert!(std::time::Instant::now() < deadline, "the new key was never taken");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_malformed_jwks_is_refused_with_its_line_and_reason() {
        let (ed, ec, rsa) = (TestKey::ed(), TestKey::ec(), TestKey::rsa());
        let with = |key: &TestKey, name: &str, value: Value| {
            let mut jwk = key.jwk("b");
            jwk[name] = value;
            jwk
        };
        let weak = json!({"kty": "RSA", "kid": "b", "e": "AQAB", "n": b64([0xff; 255])});
        for (jwk, reason) in [
            (with(&ed, "kid", json!("a")), "key \"a\" is there twice"),
            (with(&ed, "kid", Value::Null), "needs a kid"),
            (with(&ed, "kid", json!("")), "needs a kid"),
            (with(&ed, "kid", json!(7)), "not a key"),
            (with(&ed, "alg", json!("RS256")), "is for EdDSA but has alg \"RS256\""),
            (with(&ec, "alg", json!("EdDSA")), "is for ES256 but has alg"),
            (with(&rsa, "alg", json!("ES256")), "is for RS256 but has alg"),
            (with(&ed, "d", json!("AAAA")), "private or symmetric"),
            (json!({"kty": "oct", "kid": "b", "k": "AAAA"}), "private or symmetric"),
            (with(&ed, "crv", Value::Null), "without crv"),
            (with(&ed, "x", json!("AAAA")), "not an Ed25519 public key"),
            (with(&ed, "x", json!("=")), "not base64url"),
            (with(&ed, "x", Value::Null), "has no x"),
            (with(&ec, "x", json!(b64([1; 32]))), "not a point on P-256"),
            (with(&ec, "y", json!("AAAA")), "not a point on P-256"),
            (weak, "has 2040 bits"),
            (with(&rsa, "e", json!("AQ")), "no RSA modulus or exponent"),
            (with(&rsa, "e", json!("AgAA")), "no RSA modulus or exponent"),
            (with(&rsa, "n", Value::Null), "has no n"),
        ] {
            let text = format!("{{\"keys\": [\n{},\n\n{jwk}]}}", ed.jwk("a"));
            let fault = KeySet::parse(Path::new("jwks.json"), text.as_bytes()).map(|_| ()).unwrap_err();
            assert!(fault.reason.contains(reason), "{reason}: {fault}");
            assert_eq!(fault.line, 4, "{fault}");
            assert!(fault.to_string().starts_with("jwks.json:4: "), "{fault}");
        }
        for (text, line) in
            [("", 1), ("{\n\"keys\": 1}", 2), ("[]", 1), ("{\"keys\": [\n\n{]}", 3), ("{}", 1)]
        {
            let fault = KeySet::parse(Path::new("jwks.json"), text.as_bytes()).map(|_| ()).unwrap_err();
            assert_eq!(fault.line, line, "{fault}");
        }
        let many: Vec<_> = (0..=limits::JWKS_KEYS_MAX).map(|n| ed.jwk(&n.to_string())).collect();
        assert!(KeySet::parse(Path::new("f"), json!({"keys": many}).to_string().as_bytes()).is_err());
    }

    #[test]
    fn a_key_for_another_purpose_is_left_out_and_its_tokens_are_refused() {
        let (other, issuer) = (TestKey::rsa(), Issuer::new(TestKey::ed()));
        let header = json!({"alg": "RS256", "kid": "b"}).to_string();
        let token = other.sign_text(&header, &claims().to_string());
        for (name, value) in [
            ("use", json!("enc")),
            ("alg", json!("RSA-OAEP")),
            ("alg", json!("RS512")),
            ("key_ops", json!(["encrypt"])),
            ("kty", json!("AKP")),
        ] {
            let mut jwk = other.jwk("b");
            jwk[name] = value;
            issuer.publish(&json!({"keys": [issuer.key.jwk("a"), jwk]}));
            assert_eq!(
                issuer.verifier.verify(&token, now()).unwrap_err(),
                Unauthenticated::KeyUnknown,
                "{name}"
            );
            assert_eq!(issuer.metrics.jwks_reload_failures.get(), 0);
        }
        for (name, value) in [("use", json!("sig")), ("alg", json!("RS256")), ("key_ops", json!(["verify"]))]
        {
            let mut jwk = other.jwk("b");
            jwk[name] = value;
            issuer.publish(&json!({"keys": [jwk]}));
            assert!(issuer.verifier.verify(&token, now()).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_service_does_not_start_without_keys() {
        let metrics = Metrics::new(&[], &[]);
        let fault = Verifier::open(Path::new("/nowhere/jwks.json"), ISSUER, &metrics).unwrap_err();
        assert!(fault.to_string().starts_with("/nowhere/jwks.json:1: cannot be read"), "{fault}");
    }

    #[test]
    fn a_minted_token_is_accepted_by_a_service_on_the_same_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let keys = DevKeys::make(dir.path()).unwrap();
        let verifier = Verifier::open(&keys.jwks_file, "subsidy-pos-dev", &Metrics::new(&[], &[])).unwrap();
        let key = SigningKey::load(&keys.token_key_file).unwrap();
        let new = |role, subject: &str| NewToken {
            role,
            subject: subject.into(),
            retailers: None,
            regions: None,
            ttl: parse_ttl("1h").unwrap(),
        };
        let mint = |token: &NewToken| mint(&key, "subsidy-pos-dev", token, now());
        let token = mint(&new(Role::Retailer, RETAILER)).unwrap();
        assert_eq!(*verifier.verify(&token, now()).unwrap(), Caller::Retailer(uscc(RETAILER)));
        assert!(verifier.verify(&token, at(NOW_S + 3600 + 30)).is_err());

        let all = NewToken { retailers: Some(vec!["*".into()]), ..new(Role::Platform, "mall") };
        assert!(verifier.verify(&mint(&all).unwrap(), now()).is_ok());
        let city = NewToken { regions: Some(vec!["330100".into()]), ..new(Role::Regulator, "officer") };
        assert!(verifier.verify(&mint(&city).unwrap(), now()).is_ok());

        let refused = |token: &NewToken| mint(token).unwrap_err();
        assert_eq!(refused(&new(Role::Retailer, "mall")), Unauthenticated::SubjectInvalid.into());
        assert_eq!(refused(&new(Role::Platform, "mall")), Unauthenticated::RetailersInvalid.into());
        assert_eq!(refused(&NewToken { role: Role::Retailer, ..all }), MintError::OtherRole);
        assert_eq!(refused(&NewToken { role: Role::Platform, ..city }), MintError::OtherRole);
    }

    #[test]
    fn a_time_to_live_is_a_number_and_a_unit() {
        for (text, s) in [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800), ("366d", 31_622_400)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(s)));
        }
        for text in
            ["", "h", "1", "0s", "-1h", "+1h", "1.5h", "1H", "1 h", "367d", "99999999999999999999d", "1年"]
        {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
