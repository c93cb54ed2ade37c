//! The entries appended last, kept for whoever asks again at once: a till that lost its answer.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::{HashMap, HashSet};

use super::command::{Draft, Stored};
use super::entry::{Event, Key};
use crate::limits;

/// The last [`limits::RECENT_ENTRIES`] entries that this process has appended, each in the place of its
/// position. They are durable: what is in here was put there after it was written.
pub(super) struct Recent(RwLock<Kept>);

struct Kept {
    entries: Vec<Option<Arc<Stored>>>,
    /// Where the claims are that have not moved since they were made, by their requests. None where others may
    /// move them. To forget one is always safe: its request is decided by the state.
    requests: Option<HashMap<Key, u64>>,
    /// Where claims were made whose moves are being written: they may be kept only after that was said.
    moving: HashSet<u64>,
}

fn place(position: u64) -> usize {
    (position % limits::RECENT_ENTRIES as u64) as usize
}

impl Kept {
    fn at(&self, position: u64) -> Option<&Arc<Stored>> {
        let stored = self.entries.get(place(position))?.as_ref()?;
        (stored.entry.position == position).then_some(stored)
    }

    /// Forgets the request of a claim, if that is still the one that stands for it.
    fn forget_request(&mut self, stored: &Stored) {
        if let Some(requests) = &mut self.requests
            && let Some(made) = stored.entry.event.claim_made()
            && requests.get(&made.keys.request) == Some(&stored.entry.position)
        {
            requests.remove(&made.keys.request);
        }
    }

    /// Forgets the request of the claim that was made at this position.
    fn forget_claim(&mut self, made: u64) {
        if let Some(made) = self.at(made).map(Arc::clone) {
            self.forget_request(&made);
        }
    }

    /// Keeps an entry, and gives back the one that had its place.
    fn keep(&mut self, stored: Arc<Stored>) -> Option<Arc<Stored>> {
        let position = stored.entry.position;
        let slot = self.entries.get_mut(place(position));
        let former = slot.and_then(|slot| slot.replace(Arc::clone(&stored)));
        if let Some(former) = &former {
            self.forget_request(former);
        }
        match &stored.entry.event {
            Event::ClaimMade(made) => {
                if let Some(requests) = &mut self.requests
                    && !self.moving.contains(&position)
                {
                    requests.insert(made.keys.request, position);
                }
            }
            Event::ClaimMoved(moved) => {
                self.forget_claim(moved.made);
                self.moving.remove(&moved.made);
            }
            _ => {}
        }
        former
    }
}

impl Recent {
    /// Of a journal that nobody else appends to, unless it is shared.
    pub fn new(is_shared: bool) -> Self {
        let requests = (!is_shared).then(HashMap::new);
        let entries = vec![None; limits::RECENT_ENTRIES];
        Self(RwLock::new(Kept { entries, requests, moving: HashSet::new() }))
    }

    fn change(&self) -> RwLockWriteGuard<'_, Kept> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> RwLockReadGuard<'_, Kept> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps entries that are durable now, and known to be to whoever asks for the journal's head.
    pub fn keep(&self, fresh: &[Arc<Stored>]) {
        let former: Vec<Option<Arc<Stored>>> = {
            let mut kept = self.change();
            fresh.iter().map(|stored| kept.keep(Arc::clone(stored))).collect()
        };
        // They are freed without the lock.
        drop(former);
    }

    /// Says that the claim made at this position is about to move: once that is durable somebody may see it, and
    /// nobody is to be answered from before it then.
    pub fn moves(&self, made: u64) {
        let mut kept = self.change();
        kept.forget_claim(made);
        if kept.requests.is_some() {
            kept.moving.insert(made);
        }
    }

    /// Says that what a request stands for is about to change.
    pub fn forget(&self, request: &Key) {
        if let Some(requests) = &mut self.change().requests {
            requests.remove(request);
        }
    }

    /// Says that the journal may lack what was being written, or have what this process has not appended.
    pub fn forget_requests(&self) {
        let mut kept = self.change();
        kept.moving.clear();
        if let Some(requests) = &mut kept.requests {
            requests.clear();
        }
    }

    /// The entries at these positions, in the order asked for; `None` unless all are here.
    pub fn entries(&self, positions: &[u64]) -> Option<Vec<Arc<Stored>>> {
        let kept = self.look();
        positions.iter().map(|position| kept.at(*position).map(Arc::clone)).collect()
    }

    /// The entry that made the claim which `draft` asks for again, with the same content. Not where the claim
    /// has moved since: what its request stands for then is for the state to say.
    pub fn claim_of(&self, draft: &Draft) -> Option<Arc<Stored>> {
        let kept = self.look();
        let stored = kept.at(*kept.requests.as_ref()?.get(&draft.keys.request)?)?;
        let is_same = draft.keys.is_content(&stored.entry.event.claim_made()?.fingerprint);
        is_same.then(|| Arc::clone(stored))
    }
}
