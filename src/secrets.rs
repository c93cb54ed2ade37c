//! Secrets and keys in files: the hash keys under which personal data is kept, the key that signs
//! the journal's heads, and the keys a development data directory makes for itself. Nothing here
//! prints a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::limits;

/// A file that cannot be used, and why. The reason never repeats what the file holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {reason}", file.display())]
pub struct FileFault {
    /// The file.
    pub file: PathBuf,
    /// The line the fault is on, counted from 1; 1 where the file as a whole is at fault.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl FileFault {
    /// A fault of the file as a whole.
    pub fn whole(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.into(), line: 1, reason: reason.into() }
    }
}

/// The cryptographic library failed, which it does only when memory or entropy runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoFailure;

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
/// When it is longer or cannot be read.
pub fn read_bounded(file: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, FileFault> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(file)
        .and_then(|open| open.take(bytes_max as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| FileFault::whole(file, format!("cannot be read: {error}")))?;
    if bytes.len() > bytes_max {
        return Err(FileFault::whole(file, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

// --- Hash keys ---

/// What a hash key is used for in its present phase. A key passes through check → write → check and stays
/// there: once claims are kept under it, it is needed for as long as their journal is. So a journal sees
/// [`limits::HASH_KEYS_MAX`] keys that write in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyUse {
    /// New claims are kept under this key. Exactly one key is.
    Write,
    /// Claims kept under this key still count.
    Check,
}

/// Where one hash key is, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashKeySource {
    /// Its name, e.g. `k1`.
    pub id: HashKeyId,
    /// The file with its secret: one line of hex or base64, at least 32 bytes decoded.
    pub file: PathBuf,
    /// What it is used for.
    #[serde(rename = "use")]
    pub key_use: KeyUse,
}

/// The name of a hash key: 1 to 8 lower-case letters and digits. Written with its algorithm in
/// front, `hmac-sha256/k1`, wherever it travels with a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct HashKeyId([u8; limits::HASH_KEY_NAME_CHARS_MAX]);

impl HashKeyId {
    /// The algorithm of every hash key there is so far.
    pub const ALGORITHM: &'static str = "hmac-sha256";

    /// Reads the name alone, `k1`.
    pub fn from_name(name: &str) -> Option<Self> {
        let characters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let mut id = [0; limits::HASH_KEY_NAME_CHARS_MAX];
        id.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        (!name.is_empty() && name.bytes().all(characters)).then_some(Self(id))
    }

    /// Reads the form that travels with a hash, `hmac-sha256/k1`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_name(text.strip_prefix(Self::ALGORITHM)?.strip_prefix('/')?)
    }

    /// The name alone, `k1`.
    pub fn name(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        self.0.get(..end).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

impl TryFrom<String> for HashKeyId {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_name(&name).ok_or_else(|| {
            let most = limits::HASH_KEY_NAME_CHARS_MAX;
            format!("a hash key is named by 1 to {most} lower-case letters and digits")
        })
    }
}

/// `hmac-sha256/k1`.
impl fmt::Display for HashKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Self::ALGORITHM, self.name())
    }
}

impl fmt::Debug for HashKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A keyed hash with the key it was made under.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyedHash {
    /// The key.
    pub key: HashKeyId,
    /// HMAC-SHA-256 of what was hashed.
    pub hash: [u8; 32],
}

/// Names the key only: the hash of a person stays out of logs.
impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedHash({})", self.key)
    }
}

/// One hash key, ready for use.
pub struct HashKey {
    id: HashKeyId,
    label: Arc<str>,
    key: hmac::Key,
}

impl HashKey {
    /// Its name.
    pub fn id(&self) -> HashKeyId {
        self.id
    }

    /// Its name as it travels with a hash, `hmac-sha256/k1`.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// The keyed hash of `bytes`.
    pub fn digest(&self, bytes: &[u8]) -> KeyedHash {
        KeyedHash { key: self.id, hash: tag_bytes(&hmac::sign(&self.key, bytes)) }
    }

    /// A keyed fingerprint of some parts in order, such as the canonical values of a request: 128
    /// bits. Each part is preceded by its length, so that no two lists of parts read the same.
    pub fn mac<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"subsidy-pos fingerprint v1");
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        tag_bytes(&context.sign())
    }

    /// What the journal remembers this key by, so that a wrong secret under a right name is
    /// noticed: the hash of a fixed text, in hex.
    pub fn check_value(&self) -> String {
        hex(&self.digest(b"subsidy-pos hash key check v1").hash)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.id)
    }
}

/// The first `N` bytes of an HMAC; `N` is at most 32.
fn tag_bytes<const N: usize>(tag: &hmac::Tag) -> [u8; N] {
    const { assert!(N <= 32) };
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    bytes
}

/// The live hash keys: the one that new claims are kept under, and those that still count.
pub struct HashKeys {
    writing: HashKey,
    checking: Vec<HashKey>,
    check_values: Arc<BTreeMap<Arc<str>, Arc<str>>>,
}

impl fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writing, checking, check_values: _ } = self;
        f.debug_struct("HashKeys").field("writing", writing).field("checking", checking).finish()
    }
}

impl HashKeys {
    /// Loads the keys the configuration names.
    ///
    /// # Errors
    /// Every fault found: a file that cannot be read or holds no secret, a name or secret used
    /// twice, no key or more than one that writes.
    pub fn load(sources: &[HashKeySource]) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut secrets: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut writing = None;
        let mut checking: Vec<HashKey> = Vec::new();
        if sources.len() > limits::HASH_KEYS_MAX {
            return Err(vec![format!("more than {} hash keys", limits::HASH_KEYS_MAX)]);
        }
        for (at, source) in sources.iter().enumerate() {
            let name = source.id.name();
            if sources.iter().take(at).any(|before| before.id == source.id) {
                faults.push(format!("hash key {name} is named twice"));
            }
            let secret = match read_secret(&source.file) {
                Ok(secret) => secret,
                Err(fault) => {
                    faults.push(fault.to_string());
                    continue;
                }
            };
            if secrets.contains(&secret) {
                faults.push(format!("{}: the same secret as another hash key", source.file.display()));
            }
            let key = HashKey {
                id: source.id,
                label: source.id.to_string().into(),
                key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            };
            secrets.push(secret);
            match source.key_use {
                KeyUse::Write => writing = Some(key),
                KeyUse::Check => checking.push(key),
            }
        }
        let writers = sources.iter().filter(|source| source.key_use == KeyUse::Write).count();
        if writers != 1 {
            faults.push(format!("{writers} hash keys have use = \"write\"; exactly one must"));
        }
        match writing {
            Some(writing) if faults.is_empty() => {
                let live = std::iter::once(&writing).chain(&checking);
                let check_values = live.map(|key| (Arc::clone(&key.label), key.check_value().into()));
                Ok(Self { check_values: Arc::new(check_values.collect()), writing, checking })
            }
            _ => Err(faults),
        }
    }

    /// The key that new claims are kept under.
    pub fn writing(&self) -> &HashKey {
        &self.writing
    }

    /// All live keys, the writing one first.
    pub fn live(&self) -> impl Iterator<Item = &HashKey> {
        std::iter::once(&self.writing).chain(&self.checking)
    }

    /// The live keys by algorithm and id, each with its check value.
    pub fn check_values(&self) -> &Arc<BTreeMap<Arc<str>, Arc<str>>> {
        &self.check_values
    }
}

/// Base64 in either alphabet is told apart before; padding may be there or not.
const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, PADDING);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, PADDING);

/// Reads the secret of a hash key: one line of hex or base64.
fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, FileFault> {
    let fault = |reason: &str| FileFault::whole(file, reason);
    let bytes = read_bounded(file, limits::KEY_FILE_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| fault("not text"))?.trim();
    if text.is_empty() {
        return Err(fault("empty"));
    }
    // What can be read as hex is hex, although its digits are base64 too.
    let secret = if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        unhex(text).ok_or_else(|| fault("an odd number of hex digits"))?
    } else {
        let engine = if text.contains(['-', '_']) { &BASE64_URL } else { &BASE64 };
        Zeroizing::new(engine.decode(text).map_err(|_| fault("neither one line of hex nor of base64"))?)
    };
    let least = limits::HASH_KEY_BYTES_MIN;
    if secret.len() < least {
        return Err(fault(&format!("a secret of {} bytes; at least {least} are needed", secret.len())));
    }
    if secret.iter().all(|byte| Some(byte) == secret.first()) {
        return Err(fault("a secret that repeats one byte"));
    }
    Ok(secret)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?));
    rest.is_empty().then(|| bytes.collect::<Option<Vec<u8>>>().map(Zeroizing::new))?
}

// --- Signing ---

/// What precedes the 32 bytes of an Ed25519 public key in its DER form (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 key that signs: journal heads, or the tokens of a development data directory.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Loads an unencrypted PKCS#8 private key, PEM or DER, as `openssl genpkey -algorithm
    /// ed25519` writes it.
    ///
    /// # Errors
    /// When the file cannot be read or is none.
    pub fn load(file: &Path) -> Result<Self, FileFault> {
        let bytes = read_bounded(file, limits::KEY_FILE_BYTES_MAX)?;
        let der = if bytes.starts_with(b"-----") {
            pem_contents(file, &bytes, "PRIVATE KEY").map(Zeroizing::new)?
        } else {
            bytes
        };
        Ed25519KeyPair::from_pkcs8(&der)
            .map(Self)
            .map_err(|_| FileFault::whole(file, "not an Ed25519 private key in PKCS#8"))
    }

    /// Signs `bytes`.
    ///
    /// # Errors
    /// Only when the library fails.
    pub fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], CryptoFailure> {
        let signature = self.0.try_sign(bytes).map_err(|_| CryptoFailure)?;
        signature.as_ref().try_into().map_err(|_| CryptoFailure)
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(self.0.public_key().as_ref()) {
            *to = *from;
        }
        PublicKey(bytes)
    }

    /// The private key in PKCS#8 (version 1) DER.
    ///
    /// # Errors
    /// Only when the library fails.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, CryptoFailure> {
        let document = self.0.to_pkcs8v1().map_err(|_| CryptoFailure)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key().thumbprint())
    }
}

/// An Ed25519 key that verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Loads a public key from a PEM file (`-----BEGIN PUBLIC KEY-----`).
    ///
    /// # Errors
    /// When the file cannot be read or is none.
    pub fn load(file: &Path) -> Result<Self, FileFault> {
        let bytes = read_bounded(file, limits::KEY_FILE_BYTES_MAX)?;
        pem_contents(file, &bytes, "PUBLIC KEY")?
            .strip_prefix(&ED25519_SPKI)
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or_else(|| FileFault::whole(file, "not an Ed25519 public key"))
    }

    /// Whether `signature` is this key's over `bytes`.
    pub fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).is_ok()
    }

    /// The key in PEM.
    pub fn to_pem(&self) -> String {
        pem_text("PUBLIC KEY", &[ED25519_SPKI.as_slice(), &self.0].concat())
    }

    /// The key's name: its JWK thumbprint (RFC 7638).
    pub fn thumbprint(&self) -> String {
        let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(self.0));
        URL_SAFE_NO_PAD.encode(digest(&SHA256, jwk.as_bytes()))
    }

    /// A JWKS with this key alone, to verify tokens with; its `kid` is the thumbprint.
    pub fn to_jwks(&self) -> String {
        let (kid, x) = (self.thumbprint(), URL_SAFE_NO_PAD.encode(self.0));
        format!(
            r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "{kid}", "x": "{x}"}}]}}"#
        ) + "\n"
    }
}

fn pem_contents(file: &Path, bytes: &[u8], tag: &str) -> Result<Vec<u8>, FileFault> {
    let pem = pem::parse(bytes).map_err(|_| FileFault::whole(file, "not a PEM file"))?;
    if pem.tag() != tag {
        return Err(FileFault::whole(file, format!("a PEM file without \"BEGIN {tag}\"")));
    }
    Ok(pem.into_contents())
}

fn pem_text(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

// --- Development keys ---

/// The keys a development data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevKeys {
    /// The secret of hash key `k1`.
    pub hash_key_file: PathBuf,
    /// The private key that signs journal heads.
    pub signing_key_file: PathBuf,
    /// The public key that verifies them.
    pub public_key_file: PathBuf,
    /// The private key that signs tokens.
    pub token_key_file: PathBuf,
    /// The JWKS that verifies them.
    pub jwks_file: PathBuf,
}

impl DevKeys {
    /// Where the keys of this directory are, made or not.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            hash_key_file: dir.join("dev-hash.key"),
            signing_key_file: dir.join("dev-head.pem"),
            public_key_file: dir.join("dev-head-public.pem"),
            token_key_file: dir.join("dev-token.pem"),
            jwks_file: dir.join("dev-jwks.json"),
        }
    }

    /// Makes what is missing in this directory and leaves what is there. Several processes may do
    /// so at once; all get the same keys. Private files are readable by their owner only, and a
    /// file is either there whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be written or a key in it is malformed.
    pub fn make(dir: &Path) -> Result<Self, FileFault> {
        let keys = Self::in_dir(dir);
        let failed = |error: io::Error| FileFault::whole(dir, format!("cannot be written: {error}"));
        std::fs::create_dir_all(dir).map_err(failed)?;
        // Held until the end of this function; the system drops it when the process dies.
        let lock = File::create(dir.join("dev-keys.lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;

        if !keys.hash_key_file.exists() {
            let mut secret = Zeroizing::new([0; limits::HASH_KEY_BYTES_MIN]);
            aws_lc_rs::rand::fill(secret.as_mut_slice())
                .map_err(|_| FileFault::whole(&keys.hash_key_file, CryptoFailure.to_string()))?;
            let text = Zeroizing::new(hex(secret.as_slice()) + "\n");
            write_whole(&keys.hash_key_file, text.as_bytes(), 0o600)?;
        }
        let head_key = make_signing_key(&keys.signing_key_file)?;
        let token_key = make_signing_key(&keys.token_key_file)?;
        // The public key follows the private one; the JWKS is left alone, for others may be added to it.
        write_if_other(&keys.public_key_file, &head_key.public_key().to_pem())?;
        if !keys.jwks_file.exists() {
            write_whole(&keys.jwks_file, token_key.public_key().to_jwks().as_bytes(), 0o644)?;
        }
        Ok(keys)
    }
}

fn make_signing_key(file: &Path) -> Result<SigningKey, FileFault> {
    if !file.exists() {
        let failed = |_| FileFault::whole(file, CryptoFailure.to_string());
        let key = SigningKey(Ed25519KeyPair::generate().map_err(|_| failed(CryptoFailure))?);
        let text = Zeroizing::new(pem_text("PRIVATE KEY", &key.to_pkcs8().map_err(failed)?));
        write_whole(file, text.as_bytes(), 0o600)?;
    }
    SigningKey::load(file)
}

fn write_if_other(file: &Path, text: &str) -> Result<(), FileFault> {
    match std::fs::read(file) {
        Ok(bytes) if bytes == text.as_bytes() => Ok(()),
        _ => write_whole(file, text.as_bytes(), 0o644),
    }
}

/// Writes a file so that it is there whole or not at all, also after a power failure.
fn write_whole(file: &Path, bytes: &[u8], mode: u32) -> Result<(), FileFault> {
    let part = file.with_extension("part");
    let write = || -> io::Result<()> {
        // What a process left that died while writing; its mode might be another.
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        open.write_all(bytes)?;
        open.sync_all()?;
        std::fs::rename(&part, file)?;
        if let Some(dir) = file.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| FileFault::whole(file, format!("cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The Ed25519 key of RFC 8410, section 10.3, as OpenSSL writes it.
    const RFC_8410_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const RFC_8410_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn source(dir: &tempfile::TempDir, id: &str, text: &str, key_use: KeyUse) -> HashKeySource {
        let file = dir.path().join(id);
        std::fs::write(&file, text).unwrap();
        HashKeySource { id: HashKeyId::from_name(id).unwrap(), file, key_use }
    }

    fn faults(sources: &[HashKeySource]) -> String {
        HashKeys::load(sources).unwrap_err().join("\n")
    }

    const SECRET_HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    const SECRET_BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_secret_in_hex_or_base64_is_the_same_secret() {
        let dir = dir();
        let spellings =
            [SECRET_HEX, SECRET_BASE64, SECRET_BASE64.trim_end_matches('='), &format!("{SECRET_HEX}\r\n")];
        let values = spellings.map(|text| {
            let keys = HashKeys::load(&[source(&dir, "k1", text, KeyUse::Write)]).unwrap();
            keys.writing().check_value()
        });
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert_eq!(values[0].len(), 64);
    }

    #[test]
    fn a_hash_is_the_hmac_that_others_compute() {
        // RFC 4231, test case 1 needs a 20-byte key, which is refused here; this one was computed
        // with `openssl dgst -sha256 -mac hmac`.
        let dir = dir();
        let keys = HashKeys::load(&[source(&dir, "k1", SECRET_HEX, KeyUse::Write)]).unwrap();
        assert_eq!(hex(&keys.writing().digest(b"subsidy-pos hash key check v1").hash), OPENSSL_CHECK_VALUE);
        assert_eq!(keys.writing().check_value(), OPENSSL_CHECK_VALUE);
    }
    const OPENSSL_CHECK_VALUE: &str = "54da6958d1c11b43328c7377db87d3c377854a9b76c9e4639e06ac1a4aed9e07";

    #[test]
    fn malformed_secrets_are_refused_with_the_file_and_without_the_secret() {
        let dir = dir();
        for (text, reason) in [
            ("", "empty"),
            ("00ff", "a secret of 2 bytes"),
            (&SECRET_HEX[1..], "odd number"),
            ("AAECAwQFBgcICQoLDA0ODw==", "a secret of 16 bytes"),
            ("SEKRET SEKRET SEKRET SEKRET SEKRET SEKRET", "neither"),
            (&"ab".repeat(32), "repeats one byte"),
            (&"0".repeat(limits::KEY_FILE_BYTES_MAX + 1), "longer than"),
        ] {
            let fault = faults(&[source(&dir, "k1", text, KeyUse::Write)]);
            assert!(fault.contains(&format!("{}:1: ", dir.path().join("k1").display())), "{fault}");
            assert!(fault.contains(reason), "{fault}");
            assert!(!fault.contains("SEKRET") && !fault.contains("0102"), "{fault}");
        }
        let missing =
            HashKeySource { file: "/nowhere/k1".into(), ..source(&dir, "k1", SECRET_HEX, KeyUse::Write) };
        assert!(faults(&[missing]).contains("/nowhere/k1:1: cannot be read"));
    }

    #[test]
    fn all_faults_of_the_hash_keys_are_listed() {
        let dir = dir();
        let one = source(&dir, "k1", SECRET_HEX, KeyUse::Check);
        let same_secret = source(&dir, "k2", SECRET_BASE64, KeyUse::Check);
        let short = source(&dir, "k3", "00", KeyUse::Check);
        let listed = faults(&[one.clone(), one.clone(), same_secret, short]);
        for fault in ["k1 is named twice", "the same secret", "k3:1: a secret of 1 bytes", "0 hash keys"] {
            assert!(listed.contains(fault), "{fault}: {listed}");
        }
        let writers = source(&dir, "k1", SECRET_HEX, KeyUse::Write);
        assert!(faults(&[writers.clone(), writers.clone()]).contains("2 hash keys have use"));
        assert!(faults(&vec![writers; limits::HASH_KEYS_MAX + 1]).contains("more than"));
        assert!(faults(&[]).contains("0 hash keys"));
    }

    #[test]
    fn a_person_is_found_under_every_live_key_and_the_writing_one_comes_first() {
        let dir = dir();
        let old = source(&dir, "k1", SECRET_HEX, KeyUse::Check);
        let new = source(&dir, "k2", &"0f1e".repeat(16), KeyUse::Write);
        let alone = HashKeys::load(&[HashKeySource { key_use: KeyUse::Write, ..old.clone() }]).unwrap();
        let both = HashKeys::load(&[old, new]).unwrap();
        let hashes: Vec<_> = both.live().map(|key| key.digest(b"11010519491231002X")).collect();
        assert_eq!(
            hashes.iter().map(|hash| hash.key.to_string()).collect::<Vec<_>>(),
            ["hmac-sha256/k2", "hmac-sha256/k1"]
        );
        assert!(hashes[1] == alone.writing().digest(b"11010519491231002X"));
        assert!(hashes[0].hash != hashes[1].hash);
        let labels: Vec<_> = both.check_values().keys().map(|label| &**label).collect();
        assert_eq!(labels, ["hmac-sha256/k1", "hmac-sha256/k2"]);
        assert_eq!(*both.check_values()["hmac-sha256/k1"], *alone.writing().check_value());
    }

    #[test]
    fn a_fingerprint_depends_on_every_part_and_on_where_it_ends() {
        let dir = dir();
        let keys = HashKeys::load(&[source(&dir, "k1", SECRET_HEX, KeyUse::Write)]).unwrap();
        let mac = |parts: &[&[u8]]| keys.writing().mac(parts.iter().copied());
        assert_eq!(mac(&[b"ab", b"c"]), mac(&[b"ab", b"c"]));
        let others: [&[&[u8]]; 5] = [&[b"a", b"bc"], &[b"abc"], &[b"ab", b"c", b""], &[b"c", b"ab"], &[]];
        assert!(others.iter().all(|parts| mac(parts) != mac(&[b"ab", b"c"])));
    }

    #[test]
    fn a_hash_key_has_a_short_plain_name() {
        for name in ["k1", "abcdefgh", "2026"] {
            let id = HashKeyId::from_name(name).unwrap();
            assert_eq!(id.name(), name);
            assert_eq!(HashKeyId::parse(&id.to_string()), Some(id));
        }
        for name in ["", "K1", "k 1", "abcdefghi", "k/1", "k\u{e9}", "k\0"] {
            assert_eq!(HashKeyId::from_name(name), None, "{name}");
        }
        for text in ["k1", "hmac-sm3/k1", "hmac-sha256k1", "hmac-sha256/"] {
            assert_eq!(HashKeyId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_that_openssl_made_signs_and_verifies() {
        let dir = dir();
        let (private, public) = (dir.path().join("private.pem"), dir.path().join("public.pem"));
        std::fs::write(&private, RFC_8410_PRIVATE).unwrap();
        std::fs::write(&public, RFC_8410_PUBLIC).unwrap();
        let key = SigningKey::load(&private).unwrap();
        assert_eq!(key.public_key(), PublicKey::load(&public).unwrap());
        assert_eq!(key.public_key().to_pem(), RFC_8410_PUBLIC);
        let signature = key.sign(b"head").unwrap();
        assert!(key.public_key().verifies(b"head", &signature));
        assert!(!key.public_key().verifies(b"heaD", &signature));
        assert!(!key.public_key().verifies(b"head", &signature[..63]));

        let der = dir.path().join("private.der");
        std::fs::write(&der, key.to_pkcs8().unwrap().as_slice()).unwrap();
        assert_eq!(SigningKey::load(&der).unwrap().public_key(), key.public_key());
    }

    #[test]
    fn files_that_hold_no_such_key_are_refused_with_the_reason() {
        let dir = dir();
        let file = dir.path().join("key");
        for (text, reason) in [
            ("", "not an Ed25519 private key"),
            (RFC_8410_PUBLIC, "without \"BEGIN PRIVATE KEY\""),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not an Ed25519 private key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA", "not a PEM file"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(SigningKey::load(&file).unwrap_err().to_string().contains(reason), "{reason}");
        }
        std::fs::write(&file, RFC_8410_PRIVATE).unwrap();
        assert!(PublicKey::load(&file).is_err());
    }

    #[test]
    fn nothing_prints_a_secret() {
        let dir = dir();
        let keys = HashKeys::load(&[source(&dir, "k1", SECRET_HEX, KeyUse::Write)]).unwrap();
        assert_eq!(format!("{keys:?}"), "HashKeys { writing: HashKey(hmac-sha256/k1), checking: [] }");
        assert_eq!(format!("{:?}", keys.writing().digest(b"person")), "KeyedHash(hmac-sha256/k1)");
        let file = dir.path().join("private.pem");
        std::fs::write(&file, RFC_8410_PRIVATE).unwrap();
        let key = SigningKey::load(&file).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public_key().thumbprint()));
    }

    #[test]
    fn processes_that_start_at_once_get_the_same_development_keys() {
        let dir = dir();
        let made = || {
            let keys = DevKeys::make(&dir.path().join("data")).unwrap();
            let files =
                [&keys.hash_key_file, &keys.signing_key_file, &keys.public_key_file, &keys.token_key_file];
            files.map(|file| std::fs::read(file).unwrap())
        };
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(made)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(all.iter().all(|files| *files == all[0]));
        assert_eq!(made(), all[0], "a later start changes nothing");
    }

    #[test]
    fn development_keys_can_be_used_and_their_private_halves_are_the_owners_alone() {
        let dir = dir();
        std::fs::write(dir.path().join("dev-hash.part"), "left by a process that died").unwrap();
        let keys = DevKeys::make(dir.path()).unwrap();
        assert_eq!(keys, DevKeys::in_dir(dir.path()));
        for file in [&keys.hash_key_file, &keys.signing_key_file, &keys.token_key_file] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let id = HashKeyId::from_name("k1").unwrap();
        HashKeys::load(&[HashKeySource { id, file: keys.hash_key_file, key_use: KeyUse::Write }]).unwrap();
        let head = SigningKey::load(&keys.signing_key_file).unwrap();
        assert_eq!(PublicKey::load(&keys.public_key_file).unwrap(), head.public_key());
        let token = SigningKey::load(&keys.token_key_file).unwrap();
        assert_eq!(std::fs::read_to_string(&keys.jwks_file).unwrap(), token.public_key().to_jwks());
        assert_ne!(head.public_key(), token.public_key());
    }

    #[test]
    fn a_malformed_development_key_is_reported_not_replaced() {
        let dir = dir();
        let keys = DevKeys::in_dir(dir.path());
        std::fs::write(&keys.signing_key_file, "mine").unwrap();
        assert_eq!(DevKeys::make(dir.path()).unwrap_err().file, keys.signing_key_file);
        assert_eq!(std::fs::read(&keys.signing_key_file).unwrap(), b"mine");
    }
}
