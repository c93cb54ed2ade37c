//! The keys that verify tokens, read from a JWKS file (RFC 7517).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hashbrown::{HashMap, HashSet};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::limits;
use crate::secrets::FileFault;

/// Characters in a key's id.
const KEY_ID_CHARS_MAX: usize = 255;

/// One key and the only algorithm it is used with.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// The keys of one JWKS file. Each set ever read has a generation of its own, so that nothing
/// verified with one is taken for verified with another.
pub(super) struct KeySet {
    pub(super) generation: u64,
    keys: HashMap<String, Key>,
    /// Keys that are well-formed but not for verifying our tokens, and why.
    pub(super) skipped: Vec<String>,
}

static GENERATIONS: AtomicU64 = AtomicU64::new(1);

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a key that matter here; others are ignored, as the standard asks.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    key_use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    /// The private half of any asymmetric key.
    d: Option<IgnoredAny>,
    /// A symmetric key.
    k: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads the text of a JWKS file.
    ///
    /// A key for another purpose or algorithm is left out, and a token that names it is refused.
    ///
    /// # Errors
    /// With the line, when the file is not a JWKS or holds no usable key, or when a key has no
    /// `kid` or that of another one, contradicts itself, is malformed or weak, or is not public.
    pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Self, FileFault> {
        let fault = |line: usize, reason: String| FileFault { file: file.into(), line, reason };
        let text = std::str::from_utf8(bytes).map_err(|_| fault(1, "not text in UTF-8".into()))?;
        let document: Document<'_> = serde_json::from_str(text)
            .map_err(|error| fault(error.line().max(1), format!("not a JWKS: {}", message(&error))))?;
        if document.keys.len() > limits::JWKS_KEYS_MAX {
            return Err(fault(1, format!("more than {} keys", limits::JWKS_KEYS_MAX)));
        }
        let mut keys = HashMap::new();
        let mut skipped = Vec::new();
        let mut ids = HashSet::new();
        for raw in document.keys {
            let line = line_of(text, raw.get());
            let jwk: Jwk = serde_json::from_str(raw.get()).map_err(|error| {
                fault(line + error.line().max(1) - 1, format!("not a key: {}", message(&error)))
            })?;
            let kid = jwk.kid.clone().unwrap_or_default();
            if kid.is_empty() || kid.chars().count() > KEY_ID_CHARS_MAX {
                return Err(fault(line, format!("a key needs a kid of 1 to {KEY_ID_CHARS_MAX} characters")));
            }
            let about = |reason: &str| format!("key {kid:?} {reason}");
            if !ids.insert(kid.clone()) {
                return Err(fault(line, about("is there twice")));
            }
            match jwk.read().map_err(|reason| fault(line, about(&reason)))? {
                Reading::Usable(key) => _ = keys.insert(kid, key),
                Reading::Unusable(reason) => skipped.push(about(&reason)),
            }
        }
        if keys.is_empty() {
            return Err(fault(1, "no key to verify tokens with".into()));
        }
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { generation, keys, skipped })
    }

    /// The key of this id.
    pub(super) fn get(&self, kid: &str) -> Option<&Key> {
        self.keys.get(kid)
    }

    /// How many keys can be used.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

enum Reading {
    Usable(Key),
    Unusable(String),
}

impl Jwk {
    fn read(&self) -> Result<Reading, String> {
        if self.d.is_some() || self.k.is_some() {
            return Err("is a private or symmetric key; only public keys belong here".into());
        }
        if let Some(other) = self.key_use.as_deref().filter(|key_use| *key_use != "sig") {
            return Ok(Reading::Unusable(format!("has use {other:?}")));
        }
        if self.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return Ok(Reading::Unusable("has key_ops without \"verify\"".into()));
        }
        let (algorithm, name) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, "EdDSA"),
            ("EC", Some("P-256")) => (Algorithm::ES256, "ES256"),
            ("RSA", None) => (Algorithm::RS256, "RS256"),
            (kty @ ("OKP" | "EC"), None) => return Err(format!("is {kty} without crv")),
            ("RSA", Some(_)) => return Err("is RSA with crv".into()),
            (kty, crv) => return Ok(Reading::Unusable(format!("is {kty} {}", crv.unwrap_or_default()))),
        };
        match self.alg.as_deref() {
            None => {}
            Some(alg) if alg == name => {}
            Some(alg @ ("EdDSA" | "ES256" | "RS256")) => {
                return Err(format!("is for {name} but has alg {alg:?}"));
            }
            Some(alg) => return Ok(Reading::Unusable(format!("has alg {alg:?}"))),
        }
        let decoding = match algorithm {
            Algorithm::EdDSA => {
                let x = member("x", self.x.as_deref())?;
                ParsedPublicKey::new(&ED25519, &x).map_err(|_| "is not an Ed25519 public key")?;
                DecodingKey::from_ed_der(&x)
            }
            Algorithm::ES256 => {
                let (x, y) = (member("x", self.x.as_deref())?, member("y", self.y.as_deref())?);
                // The uncompressed form of a point.
                let point = [&[4], x.as_slice(), y.as_slice()].concat();
                if x.len() != 32 || ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).is_err() {
                    return Err("is not a point on P-256".into());
                }
                DecodingKey::from_ec_der(&point)
            }
            _ => {
                let (n, e) = (member("n", self.n.as_deref())?, member("e", self.e.as_deref())?);
                let (n, e) = (significant(&n), significant(&e));
                let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
                if !limits::RSA_BITS.contains(&bits) {
                    let (least, most) = (limits::RSA_BITS.start(), limits::RSA_BITS.end());
                    return Err(format!("has {bits} bits; RSA keys need {least} to {most}"));
                }
                // 3 is the smallest exponent there is; larger than four bytes is a mistake or an attack.
                let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
                if !odd(n) || !odd(e) || e == [1] || e.len() > 4 {
                    return Err("has no RSA modulus or exponent".into());
                }
                DecodingKey::from_rsa_raw_components(n, e)
            }
        };
        Ok(Reading::Usable(Key { algorithm, decoding }))
    }
}

fn member(name: &str, value: Option<&str>) -> Result<Vec<u8>, String> {
    let value = value.ok_or_else(|| format!("has no {name}"))?;
    URL_SAFE_NO_PAD.decode(value).map_err(|_| format!("has an {name} that is not base64url"))
}

/// A big-endian number without its leading zeros.
fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// What serde_json says without its position, which is relative to what it was given.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split_once(" at line ").map_or(text.as_str(), |(message, _)| message).into()
}

/// The line on which `part`, a piece of `text`, starts.
fn line_of(text: &str, part: &str) -> usize {
    let offset = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
