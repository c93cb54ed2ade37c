//! The ledger: commands go in, durable decisions come out.

use std::sync::Arc;

use crate::programme::{ProgrammeHistory, ProgrammeSet};

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
