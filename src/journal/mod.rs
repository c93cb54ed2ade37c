//! The journal: an append-only table of entries, the only truth the service keeps.
//!
//! A journal does two things: append entries after a head that it must still have, and read what
//! follows a position. The head is position **and** hash, so that another history of the same length
//! is never mistaken for one's own.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::ledger::entry::Hash;
#[cfg(doc)]
use crate::limits;
use crate::time::Timestamp;

pub mod postgres;
pub mod sqlite;

#[cfg(test)]
mod tests;

/// The end of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The last entry's position, 0 of an empty journal.
    pub position: u64,
    /// The last entry's hash, [`Hash::ZERO`] of an empty journal.
    pub hash: Hash,
}

impl Head {
    /// The head of an empty journal.
    pub const EMPTY: Self = Self { position: 0, hash: Hash::ZERO };
}

/// An entry as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Counted from 1 without gaps.
    pub position: u64,
    /// The SHA-256 of `entry`.
    pub hash: Hash,
    /// The exact bytes; text in UTF-8.
    pub entry: Arc<[u8]>,
}

impl Row {
    /// Whether the hash is that of the bytes.
    pub fn is_hashed_right(&self) -> bool {
        Hash::of(&self.entry) == self.hash
    }
}

/// Why the journal did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Nothing was appended: the journal's head is another than expected.
    #[error("another writer has appended to the journal")]
    Moved,
    /// It is not known whether anything was appended; look before doing anything else.
    #[error("the journal did not answer: {0}")]
    Unknown(String),
    /// The journal cannot be used at all.
    #[error("the journal cannot be used: {0}")]
    Unusable(String),
}

/// The writer's side of a journal; one per process.
pub trait Journal: Send {
    /// The head as it is now.
    fn head(&mut self) -> Result<Head, JournalError>;

    /// Appends `rows` durably and all together if the head is still `expected`.
    fn append(&mut self, expected: Head, rows: &[Row]) -> Result<(), JournalError>;

    /// At most `limit` rows after position `after`, in order.
    fn read(&mut self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError>;

    /// Forgets connections and cached pages, so that the next call sees what is really stored.
    fn reopen(&mut self) -> Result<(), JournalError>;

    /// Whether other processes may append to the same journal.
    fn is_shared(&self) -> bool;

    /// Waits for this process's turn where several append to one journal, so that they do not decide in
    /// vain, and gives what follows position `after` then: at most [`limits::JOURNAL_READ_ENTRIES_MAX`]
    /// rows. A turn ends with the next append. `None` while nobody else appends: there is nothing to wait
    /// for. Only a courtesy: [`Journal::append`] is what keeps two writers apart.
    fn take_turn(&mut self, _after: u64) -> Result<Option<Vec<Row>>, JournalError> {
        Ok(None)
    }

    /// Lets others have their turn; there was nothing to append.
    fn end_turn(&mut self) {}
}

/// What the readers of a journal use; they never wait for the writer.
pub trait Reader: Send + Sync {
    /// The rows at these positions, in the order asked for; one that is not there is an error.
    fn rows<'a>(&'a self, positions: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>>;

    /// What the clock of the machine that keeps the journal says, where that is another machine.
    fn now(&self) -> BoxFuture<'_, Result<Option<Timestamp>, JournalError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// Whether what is appended is on one machine only when it is confirmed.
    fn is_single_copy(&self) -> BoxFuture<'_, Result<bool, JournalError>> {
        std::future::ready(Ok(true)).boxed()
    }

    /// At most `limit` rows after position `after`, in order.
    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>>;
}

/// A number as the databases keep it.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What the positions after `position` are above. Before the first there is nothing: a row put there by
/// hand is read with the others, and refused.
fn above(position: u64) -> i64 {
    if position == 0 { i64::MIN } else { signed(position) }
}
