//! Claims put together from the journal.

use std::slice;
use std::sync::Arc;

use super::command::{ClaimAt, ClaimView, Failure, Stored};
use super::entry::Event;
use super::writer::Ledger;

impl Ledger {
    /// The claim as of an entry.
    ///
    /// # Errors
    /// As [`Ledger::views`].
    pub async fn view(&self, at: &ClaimAt) -> Result<ClaimView, Failure> {
        // Of a claim that was just made there is one entry, and it is at hand.
        if let Some(view) = at.fresh.as_ref().and_then(|fresh| ClaimView::new(slice::from_ref(fresh))) {
            return Ok(view);
        }
        self.views(slice::from_ref(at)).await?.pop().ok_or(Failure::Unavailable)
    }

    /// The claims as of these entries, in their order. All entries that are as far back are read at once,
    /// and no claim has many.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn views(&self, claims: &[ClaimAt]) -> Result<Vec<ClaimView>, Failure> {
        // Each claim's entries, newest first, as far as they are known.
        let mut chains: Vec<Vec<Arc<Stored>>> =
            claims.iter().map(|at| at.fresh.iter().map(Arc::clone).collect()).collect();
        loop {
            let missing: Vec<(usize, u64)> = chains
                .iter()
                .zip(claims)
                .enumerate()
                .filter_map(|(index, (chain, at))| Some((index, before(chain, at)?)))
                .collect();
            if missing.is_empty() {
                break;
            }
            let positions: Vec<u64> = missing.iter().map(|(_, position)| *position).collect();
            let entries = self.stored_all(&positions).await?;
            for ((index, _), entry) in missing.iter().zip(entries) {
                if let Some(chain) = chains.get_mut(*index) {
                    chain.push(entry);
                }
            }
        }
        chains
            .into_iter()
            .map(|mut chain| {
                chain.reverse();
                ClaimView::new(&chain).ok_or(Failure::Unavailable)
            })
            .collect()
    }
}

/// The position of the entry that comes before those known of a claim; `None` where the first is.
fn before(chain: &[Arc<Stored>], at: &ClaimAt) -> Option<u64> {
    match chain.last() {
        None => Some(at.position),
        Some(oldest) => match &oldest.entry.event {
            Event::ClaimMoved(moved) => Some(moved.prior),
            _ => None,
        },
    }
}
