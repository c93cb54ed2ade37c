//! The ledger: commands go in, durable decisions come out.

use std::sync::Arc;

use crate::programme::{ProgrammeHistory, ProgrammeSet};
use crate::time::Timestamp;

pub mod apply;
pub mod command;
pub mod entry;
pub mod keys;
pub mod state;
pub mod writer;

pub use command::{ClaimAt, ClaimView, Command, Failure, Outcome, Refusal, Stored};
pub use keys::KeyRing;
pub use writer::Ledger;

/// What request handlers need to prepare a command; published by the writer, never partial.
#[derive(Clone, Debug)]
pub struct Published {
    /// The programmes that apply.
    pub programmes: Arc<ProgrammeSet>,
    /// Every version ever activated, for rendering claims.
    pub history: Arc<ProgrammeHistory>,
    /// The position of the activation.
    pub activated_at: u64,
    /// Makes this journal's keys.
    pub keys: KeyRing,
}

/// Reads the time; the only clock of the service, given to whoever needs one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    offset_ms: i64,
}

impl Clock {
    /// A clock that runs `offset_ms` ahead of the machine's; for trying out year ends.
    pub const fn ahead_by(offset_ms: i64) -> Self {
        Self { offset_ms }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).plus_ms(self.offset_ms)
    }
}
