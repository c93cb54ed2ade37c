//! Signed heads: the journal's end, signed with Ed25519 and kept outside the database, so that a cut
//! tail or a history rewritten from some point on is found.
//!
//! Everything in a head follows from the entry it names, and Ed25519 signs the same bytes alike: there
//! are never two heads for one position.

use std::fs;
use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::journal::Head;
use crate::ledger::Stored;
use crate::ledger::entry::Hash;
use crate::secrets::{CryptoFailure, PublicKey, SigningKey};
use crate::time::Timestamp;

/// A head with its signature.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// The position of the last entry.
    pub position: u64,
    /// Its hash, 64 hexadecimal digits.
    #[schema(value_type = String)]
    pub hash: Hash,
    /// Its time, in milliseconds since 1970 in UTC.
    #[schema(value_type = i64)]
    pub at_ms: Timestamp,
    /// The thumbprint (RFC 7638) of the key that signed.
    pub key: String,
    /// Ed25519 over `subsidy-pos signed head v1`, position, hash and at_ms, each followed by a newline; in base64.
    pub signature: String,
}

/// Why a signed head is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadFault {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The signature is not of this key over this head.
    #[error("the signature of the head at position {position} does not verify with the public key given")]
    Signature {
        /// The position it names.
        position: u64,
    },
}

impl SignedHead {
    /// Signs the head that `last` makes.
    pub fn sign(key: &SigningKey, last: &Stored) -> Result<Self, CryptoFailure> {
        let (head, at) = (Head { position: last.entry.position, hash: last.hash }, last.entry.at);
        Ok(Self {
            position: head.position,
            hash: head.hash,
            at_ms: at,
            key: key.public_key().thumbprint(),
            signature: BASE64.encode(key.sign(Self::text(head, at).as_bytes())?),
        })
    }

    /// What is signed: four lines of text.
    pub fn text(head: Head, at: Timestamp) -> String {
        format!("subsidy-pos signed head v1\n{}\n{}\n{}\n", head.position, head.hash, at.ms())
    }

    /// Whether `key` signed this.
    pub fn check(&self, key: &PublicKey) -> Result<(), HeadFault> {
        let text = Self::text(Head { position: self.position, hash: self.hash }, self.at_ms);
        let signed =
            BASE64.decode(&self.signature).is_ok_and(|signature| key.verifies(text.as_bytes(), &signature));
        if signed { Ok(()) } else { Err(HeadFault::Signature { position: self.position }) }
    }

    /// Reads a head from a file.
    pub fn load(file: &Path) -> Result<Self, HeadFault> {
        let unreadable = |reason: String| HeadFault::Unreadable(format!("{}: {reason}", file.display()));
        let text = crate::secrets::read_bounded(file, 64 * 1024).map_err(|fault| unreadable(fault.reason))?;
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))
    }

    /// Replaces the file by this head, durably and in one step.
    pub fn save(&self, file: &Path) -> std::io::Result<()> {
        // Several processes may keep their heads in one place.
        let beside = file.with_extension(format!("{}.new", std::process::id()));
        let mut new = fs::File::create(&beside)?;
        serde_json::to_writer(&mut new, self)?;
        new.write_all(b"\n")?;
        new.sync_all()?;
        fs::rename(&beside, file)
    }
}
