//! The ledger: commands go in, durable decisions come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::programme::{ProgrammeHistory, ProgrammeSet};

pub mod apply;
pub mod command;
mod desk;
pub mod entry;
pub mod keys;
mod recent;
pub mod snapshot;
pub mod state;
mod views;
pub mod writer;

#[cfg(test)]
mod tests;

use entry::ProgrammeFile;

pub use command::{ClaimAt, ClaimView, Command, Failure, Outcome, Refusal, Stored};
pub use keys::KeyRing;
pub use snapshot::{Snapshot, Snapshots};
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
    /// The format of the journal's entries; see [`State::format`](state::State::format).
    pub format: u16,
    /// Makes this journal's keys.
    pub keys: KeyRing,
    /// The hash keys in use, with their check values.
    pub hash_keys: BTreeMap<Arc<str>, Arc<str>>,
}

impl Published {
    /// Whether `files` are not the programmes that apply.
    pub fn is_other_than(&self, files: &[ProgrammeFile]) -> bool {
        match state::activating(&self.history, files) {
            Ok(history) => history.current() != &self.programmes,
            Err(_) => true,
        }
    }
}
