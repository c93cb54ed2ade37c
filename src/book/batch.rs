//! What a run of entries does to the book, worked out in memory before a table is touched.
//!
//! Pure, and the same for every database: a store looks up the claims that [`older_claims`] names,
//! makes a [`Batch`] and writes it down.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cube::{Cube, Facts};
use crate::claim::{Device, Status};
use crate::identity::{Reference, SerialNumber};
use crate::ledger::Stored;
use crate::ledger::entry::{ClaimMade, ClaimMoved, Entry, Event, Hash};
use crate::time::Day;

/// The journal says what cannot be, or the book has lost what it was told before.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("entry {position} {what}")]
pub struct Contradiction {
    /// The entry at which it shows.
    pub position: u64,
    /// What the entry does.
    pub what: &'static str,
}

impl Contradiction {
    /// Says that `entry` does `what`.
    pub fn at(entry: &Entry, what: &'static str) -> Self {
        Self { position: entry.position, what }
    }
}

/// What the book looks an order number up by: 64 bits of its SHA-256. Two numbers can share a key, so
/// whoever lists by order number looks at the claims themselves before showing them.
pub fn order_key(order_no: &Reference) -> i64 {
    key(order_no.as_str())
}

/// What the book looks a serial number up by; as [`order_key`].
pub fn sn_key(sn: &SerialNumber) -> i64 {
    key(sn.as_str())
}

fn key(text: &str) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *Hash::of(text.as_bytes()).bytes();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What the book knows of a claim and may have to change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The position of its last entry.
    pub last: u64,
    /// Its status.
    pub status: Status,
    /// The key of its device's serial number.
    pub sn_key: Option<i64>,
    /// What its totals are made of.
    pub facts: Facts,
}

/// A claim the book does not have yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewClaim {
    /// How it stands after the batch.
    pub standing: Standing,
    /// The platform that submitted it.
    pub platform: Option<Arc<str>>,
    /// The key of its order number.
    pub order_key: i64,
}

/// The claims made before `entries` that `entries` move, by the positions of the entries that made
/// them, ascending.
pub fn older_claims(entries: &[Arc<Stored>]) -> BTreeSet<u64> {
    let first = entries.first().map_or(0, |stored| stored.entry.position);
    entries
        .iter()
        .filter_map(|stored| match &stored.entry.event {
            Event::ClaimMoved(moved) if moved.made < first => Some(moved.made),
            _ => None,
        })
        .collect()
}

/// What a run of entries does to the book. Claims are named by the position of the entry that made
/// them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Claims to add.
    pub made: BTreeMap<u64, NewClaim>,
    /// Claims to change.
    pub moved: BTreeMap<u64, Standing>,
    /// Days with an entry, and each one's first position within the batch.
    pub days: BTreeMap<Day, u64>,
    /// What to add to the totals.
    pub cube: Cube,
}

impl Batch {
    /// Folds `entries`, given the [`older_claims`] as they stand before them.
    pub fn fold(entries: &[Arc<Stored>], older: BTreeMap<u64, Standing>) -> Result<Self, Contradiction> {
        let mut batch = Self { moved: older, ..Self::default() };
        for stored in entries {
            let entry = &stored.entry;
            batch.days.entry(entry.at.day()).or_insert(entry.position);
            match &entry.event {
                Event::ClaimMade(made) => batch.make(entry, made)?,
                Event::ClaimMoved(moved) => batch.carry(entry, moved)?,
                _ => {}
            }
        }
        Ok(batch)
    }

    fn make(&mut self, entry: &Entry, made: &ClaimMade) -> Result<(), Contradiction> {
        let facts = Facts::of(made).ok_or_else(|| Contradiction::at(entry, "names no programme"))?;
        self.cube.post(entry, &facts, None, made.status)?;
        let Slot::Vacant(slot) = self.made.entry(entry.position) else {
            return Err(Contradiction::at(entry, "stands in the journal twice"));
        };
        slot.insert(NewClaim {
            standing: Standing {
                last: entry.position,
                status: made.status,
                sn_key: made.sale.device.as_ref().map(key_of),
                facts,
            },
            platform: made.platform.clone(),
            order_key: order_key(&made.sale.order_no),
        });
        Ok(())
    }

    fn carry(&mut self, entry: &Entry, moved: &ClaimMoved) -> Result<(), Contradiction> {
        let claim = match self.made.get_mut(&moved.made) {
            Some(new) => &mut new.standing,
            None => self
                .moved
                .get_mut(&moved.made)
                .ok_or_else(|| Contradiction::at(entry, "moves a claim that was never made"))?,
        };
        if (claim.status, claim.last) != (moved.from, moved.prior) {
            return Err(Contradiction::at(entry, "does not follow its claim's last entry"));
        }
        self.cube.post(entry, &claim.facts, Some(moved.from), moved.to)?;
        claim.status = moved.to;
        claim.last = entry.position;
        if let Some(device) = &moved.device {
            claim.sn_key = Some(key_of(device));
        }
        Ok(())
    }
}

fn key_of(device: &Device) -> i64 {
    sn_key(&device.sn)
}
