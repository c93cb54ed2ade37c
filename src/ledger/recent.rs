//! The entries appended last, kept for whoever asks again at once: a till that lost its answer.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::command::{Draft, Stored};
use super::entry::{ClaimMade, Event, Key};
use crate::limits;

/// The last [`limits::RECENT_ENTRIES`] entries that this process has appended, each in the place of its
/// position. They are durable: what is in here was put there after it was written.
pub(super) struct Recent(RwLock<Kept>);

struct Kept {
    entries: Vec<Option<Arc<Stored>>>,
    /// Where the claims are that have not moved since they were made, by their requests.
    requests: HashMap<Key, u64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self(RwLock::new(Kept { entries: vec![None; limits::RECENT_ENTRIES], requests: HashMap::new() }))
    }
}

fn place(position: u64) -> usize {
    (position % limits::RECENT_ENTRIES as u64) as usize
}

fn claim_made(stored: &Stored) -> Option<&ClaimMade> {
    match &stored.entry.event {
        Event::ClaimMade(made) => Some(made),
        _ => None,
    }
}

impl Kept {
    fn at(&self, position: u64) -> Option<&Arc<Stored>> {
        let stored = self.entries.get(place(position))?.as_ref()?;
        (stored.entry.position == position).then_some(stored)
    }

    /// Forgets the request of a claim, if that is still the one that stands for it.
    fn forget_request(&mut self, stored: &Stored) {
        if let Some(made) = claim_made(stored)
            && self.requests.get(&made.keys.request) == Some(&stored.entry.position)
        {
            self.requests.remove(&made.keys.request);
        }
    }

    /// Keeps an entry, and gives back the one that had its place.
    fn keep(&mut self, stored: Arc<Stored>) -> Option<Arc<Stored>> {
        match &stored.entry.event {
            Event::ClaimMade(made) => {
                self.requests.insert(made.keys.request, stored.entry.position);
            }
            Event::ClaimMoved(moved) => {
                if let Some(made) = self.at(moved.made).map(Arc::clone) {
                    self.forget_request(&made);
                }
            }
            _ => {}
        }
        let former = self.entries.get_mut(place(stored.entry.position))?.replace(stored)?;
        self.forget_request(&former);
        Some(former)
    }
}

impl Recent {
    /// Keeps entries that are durable now.
    pub fn keep(&self, fresh: &[Arc<Stored>]) {
        let former: Vec<Option<Arc<Stored>>> = {
            let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
            fresh.iter().map(|stored| kept.keep(Arc::clone(stored))).collect()
        };
        // They are freed when nobody waits for it.
        drop(former);
    }

    /// The entries at these positions, in the order asked for; `None` unless all are here.
    pub fn entries(&self, positions: &[u64]) -> Option<Vec<Arc<Stored>>> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        positions.iter().map(|position| kept.at(*position).map(Arc::clone)).collect()
    }

    /// The entry that made the claim which `draft` asks for again, with the same content. Not where the claim
    /// has moved since: what its request stands for then is for the state to say.
    pub fn claim_of(&self, draft: &Draft) -> Option<Arc<Stored>> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let stored = kept.at(*kept.requests.get(&draft.keys.request)?)?;
        let is_same = draft.keys.is_content(&claim_made(stored)?.fingerprint);
        is_same.then(|| Arc::clone(stored))
    }
}
