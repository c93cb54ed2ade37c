//! The entries appended last, kept for whoever asks again at once: a till that lost its answer.

use std::sync::{PoisonError, RwLock};

use crate::journal::Row;
use crate::limits;

/// The last [`limits::RECENT_ENTRIES`] entries that this process has appended, each in the place of its
/// position. They are durable: what is in here was put there after it was written.
pub(super) struct Recent(RwLock<Vec<Option<Row>>>);

impl Default for Recent {
    fn default() -> Self {
        Self(RwLock::new(vec![None; limits::RECENT_ENTRIES]))
    }
}

fn place(position: u64) -> usize {
    (position % limits::RECENT_ENTRIES as u64) as usize
}

impl Recent {
    /// Keeps rows that are durable now.
    pub fn keep(&self, rows: &mut Vec<Row>) {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows.drain(..) {
            if let Some(slot) = kept.get_mut(place(row.position)) {
                *slot = Some(row);
            }
        }
    }

    /// The rows at these positions, in the order asked for; `None` unless all are here.
    pub fn rows(&self, positions: &[u64]) -> Option<Vec<Row>> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let row = |position: &u64| match kept.get(place(*position)) {
            Some(Some(row)) if row.position == *position => Some(row.clone()),
            _ => None,
        };
        positions.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::Hash;

    fn row(position: u64) -> Row {
        Row { position, hash: Hash::of(&position.to_be_bytes()), entry: position.to_be_bytes().into() }
    }

    #[test]
    fn the_last_entries_are_kept_and_no_others() {
        let recent = Recent::default();
        let newest = limits::RECENT_ENTRIES as u64 + 10;
        recent.keep(&mut (1..=newest).map(row).collect());
        assert_eq!(recent.rows(&[newest, 11]), Some(vec![row(newest), row(11)]));
        assert_eq!(recent.rows(&[newest, 10]), None, "another took its place");
        assert_eq!(recent.rows(&[newest + 1]), None);
        assert_eq!(recent.rows(&[]), Some(Vec::new()));
    }
}
