//! What a run of entries does to the book, worked out in memory before a table is touched.
//!
//! Pure, and the same for every database: a store looks up the claims that [`older_claims`] names,
//! makes a [`Batch`] and writes it down. What is folded are [`Line`]s, not entries: a line is made of its
//! entry while that is at hand anyway, and waits for the projector in a fraction of the room.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cube::{Cube, Facts};
use crate::claim::{Device, Status};
use crate::identity::{Reference, SerialNumber};
use crate::journal::Head;
use crate::ledger::Stored;
use crate::ledger::entry::{ClaimMade, ClaimMoved, Event, Hash};
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
    /// Says that the entry at `position` does `what`.
    pub const fn at(position: u64, what: &'static str) -> Self {
        Self { position, what }
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

/// What the book needs of one entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Position and hash.
    pub head: Head,
    /// The hash of the entry before.
    pub prev: Hash,
    /// The day of the entry.
    day: Day,
    what: What,
}

/// What an entry does to the book.
#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    /// A claim was made; `None` where it names no programme, which no entry of this service does.
    Made(Option<NewClaim>),
    Moved(Step),
    /// Nothing but that the book goes on.
    Nothing,
}

/// A step of a claim's life.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Step {
    /// The position of the entry that made the claim.
    made: u64,
    /// The position of its last entry before this one.
    prior: u64,
    from: Status,
    to: Status,
    /// The key of the device bound now.
    sn_key: Option<i64>,
}

impl Line {
    /// What the book needs of `stored`.
    pub fn of(stored: &Stored) -> Self {
        let entry = &stored.entry;
        Self {
            head: Head { position: entry.position, hash: stored.hash },
            prev: entry.prev,
            day: entry.at.day(),
            what: match &entry.event {
                Event::ClaimMade(made) => What::Made(NewClaim::of(entry.position, made)),
                Event::ClaimMoved(moved) => What::Moved(Step::of(moved)),
                _ => What::Nothing,
            },
        }
    }
}

impl NewClaim {
    fn of(position: u64, made: &ClaimMade) -> Option<Self> {
        Some(Self {
            standing: Standing {
                last: position,
                status: made.status,
                sn_key: made.sale.device.as_ref().map(key_of),
                facts: Facts::of(made)?,
            },
            platform: made.platform.clone(),
            order_key: order_key(&made.sale.order_no),
        })
    }
}

impl Step {
    fn of(moved: &ClaimMoved) -> Self {
        let ClaimMoved { made, prior, from, to, ref device, .. } = *moved;
        Self { made, prior, from, to, sn_key: device.as_ref().map(key_of) }
    }
}

/// The claims made before `lines` that `lines` move, by the positions of the entries that made them,
/// ascending.
pub fn older_claims(lines: &[Line]) -> BTreeSet<u64> {
    let first = lines.first().map_or(0, |line| line.head.position);
    lines
        .iter()
        .filter_map(|line| match &line.what {
            What::Moved(step) if step.made < first => Some(step.made),
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
    /// Folds `lines`, given the [`older_claims`] as they stand before them. Calls `breathe` as
    /// [`Tables::apply`](super::projector::Tables::apply) does.
    pub fn fold(
        lines: &[Line],
        older: BTreeMap<u64, Standing>,
        breathe: &mut dyn FnMut(),
    ) -> Result<Self, Contradiction> {
        let mut batch = Self { moved: older, ..Self::default() };
        for line in lines {
            breathe();
            batch.days.entry(line.day).or_insert(line.head.position);
            match &line.what {
                What::Made(claim) => batch.make(line, claim.as_ref())?,
                What::Moved(step) => batch.carry(line, step)?,
                What::Nothing => {}
            }
        }
        Ok(batch)
    }

    fn make(&mut self, line: &Line, claim: Option<&NewClaim>) -> Result<(), Contradiction> {
        let position = line.head.position;
        let claim = claim.ok_or(Contradiction::at(position, "names no programme"))?;
        self.cube.post(position, line.day, &claim.standing.facts, None, claim.standing.status)?;
        let Slot::Vacant(slot) = self.made.entry(position) else {
            return Err(Contradiction::at(position, "stands in the journal twice"));
        };
        slot.insert(claim.clone());
        Ok(())
    }

    fn carry(&mut self, line: &Line, step: &Step) -> Result<(), Contradiction> {
        let position = line.head.position;
        let claim = match self.made.get_mut(&step.made) {
            Some(new) => &mut new.standing,
            None => self
                .moved
                .get_mut(&step.made)
                .ok_or(Contradiction::at(position, "moves a claim that was never made"))?,
        };
        if (claim.status, claim.last) != (step.from, step.prior) {
            return Err(Contradiction::at(position, "does not follow its claim's last entry"));
        }
        self.cube.post(position, line.day, &claim.facts, Some(step.from), step.to)?;
        claim.status = step.to;
        claim.last = position;
        claim.sn_key = step.sn_key.or(claim.sn_key);
        Ok(())
    }
}

fn key_of(device: &Device) -> i64 {
    sn_key(&device.sn)
}
