//! Which claims hold a key: an index that keeps no keys of its own, but points at where a claim keeps it.
//!
//! It is split into [`limits::KEY_INDEX_SHARDS`] tables of different sizes, so that growing one is never
//! felt. A table is one array in the order of its slots' tags, which are bits of their keys: a slot stands
//! where its tag says, or as soon after it as there is room. So looking stops at the first greater tag,
//! and a table can be nine tenths full; and it grows by being copied from one end to the other, without a
//! look at the keys themselves. (A general hash map has to hash every key again, and to find it for that
//! in memory that no cache holds: that was two microseconds of every claim.)

use allocator_api2::alloc::System;
use allocator_api2::vec::Vec as VecIn;

use super::ClaimIx;
use crate::ledger::entry::Key;
use crate::limits;

/// Where a key is written: a claim, and the key's place in its run of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    claim: ClaimIx,
    place: u8,
}

impl Slot {
    pub fn new(claim: ClaimIx, place: usize) -> Self {
        Self { claim, place: place as u8 }
    }

    pub fn claim(self) -> ClaimIx {
        self.claim
    }

    pub fn place(self) -> usize {
        usize::from(self.place)
    }
}

const CLAIM_BITS: u32 = 32;
const PLACE_BITS: u32 = 4;
const TAG_BITS: u32 = u64::BITS - CLAIM_BITS - PLACE_BITS;

/// A slot as a table keeps it, in the order of tags: the tag, the place, the claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Tagged(u64);

impl Tagged {
    /// No slot. It would be the sixteenth key of a claim that there is no number for.
    const NONE: Self = Self(u64::MAX);

    fn new(tag: u32, slot: Slot) -> Self {
        let place = u64::from(slot.place) & ((1 << PLACE_BITS) - 1);
        Self(u64::from(tag) << (CLAIM_BITS + PLACE_BITS) | place << CLAIM_BITS | u64::from(slot.claim.0))
    }

    fn tag(self) -> u32 {
        (self.0 >> (CLAIM_BITS + PLACE_BITS)) as u32
    }

    fn slot(self) -> Slot {
        let place = (self.0 >> CLAIM_BITS) as u8 & ((1 << PLACE_BITS) - 1);
        Slot { claim: ClaimIx(self.0 as u32), place }
    }
}

/// Where in the index a key belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    shard: u16,
    tag: u32,
}

impl Place {
    /// The shard's number.
    pub fn shard(self) -> usize {
        usize::from(self.shard)
    }

    /// Keys are uniformly random already, so that their bits can be taken as they are.
    ///
    /// The last shard gets twice as many keys as the first, the others something between: so they grow one
    /// after the other and not all at once, which would be felt, and the room they have to spare is the
    /// same at any number of claims.
    pub fn of(key: &Key) -> Self {
        let [a, b, c, d, e, _, _, _, rest @ ..] = key.bytes();
        let one = usize::from(u16::from_be_bytes([*a, *b])) % limits::KEY_INDEX_SHARDS;
        let other = usize::from(u16::from_be_bytes([*c, *d])) % limits::KEY_INDEX_SHARDS;
        // The greater of two is in the upper half three times out of four.
        let shard = if e % 3 == 0 { one.max(other) } else { one };
        Self { shard: shard as u16, tag: (u64::from_be_bytes(*rest) >> (u64::BITS - TAG_BITS)) as u32 }
    }
}

/// One part of the index.
#[derive(Debug)]
pub struct Table {
    /// In the order of tags, with [`Tagged::NONE`] between. After the places that tags lead to there is
    /// some room for what does not find one in the last of them.
    slots: VecIn<Tagged, System>,
    /// How many places tags lead to.
    places: usize,
    len: usize,
}

/// Room after the last place; more is made where that is not enough.
const BEYOND: usize = 8;

/// The next size of a table that is at least `places`: eight sizes from each power of two to the next, so
/// that a table is at least eight ninths as full as it may be when it has grown.
fn size_from(places: usize) -> usize {
    let step = (places / 8).checked_ilog2().map_or(1, |power| 1 << power);
    places.max(8).next_multiple_of(step)
}

/// How many slots a table of this size may have.
const fn room(places: usize) -> usize {
    places / 10 * 9 + places % 10 * 9 / 10
}

impl Table {
    const fn new() -> Self {
        Self { slots: VecIn::new_in(System), places: 0, len: 0 }
    }

    /// A table that has room for `len` slots, which are still to be put into it.
    fn with_room(len: usize) -> Self {
        let mut places = size_from(len / 9 * 10);
        while room(places) < len {
            places = size_from(places + 1);
        }
        Self { slots: VecIn::with_capacity_in(places + BEYOND, System), places, len: 0 }
    }

    /// Makes the array as long as this if it is shorter, without setting aside twice as much.
    fn reach(&mut self, len: usize) {
        let missing = len.saturating_sub(self.slots.len());
        if self.slots.len() + missing > self.slots.capacity() {
            self.slots.reserve_exact(missing + BEYOND);
        }
        self.slots.resize(self.slots.len() + missing, Tagged::NONE);
    }

    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.places as u64) >> TAG_BITS) as usize
    }

    /// What stands from where `tag` leads to on.
    fn beginning_at(&self, tag: u32) -> &[Tagged] {
        self.slots.get(self.home(tag)..).unwrap_or_default()
    }

    fn with_tag(&self, tag: u32) -> impl Iterator<Item = Slot> {
        self.beginning_at(tag)
            .iter()
            .skip_while(move |slot| slot.tag() < tag)
            .take_while(move |slot| slot.tag() == tag && **slot != Tagged::NONE)
            .map(|slot| slot.slot())
    }

    fn insert(&mut self, place: Place, slot: Slot) {
        if self.len >= room(self.places) {
            self.grow();
        }
        let new = Tagged::new(place.tag, slot);
        let home = self.home(place.tag);
        let from = self.beginning_at(place.tag);
        let at = home + from.iter().take_while(|slot| **slot <= new).count();
        let moved = self.slots.get(at..).unwrap_or_default().iter().take_while(|slot| **slot != Tagged::NONE);
        let free = at + moved.count();
        self.reach(free + 1);
        if let Some(run) = self.slots.get_mut(at..=free) {
            run.rotate_right(1);
            if let Some(first) = run.first_mut() {
                *first = new;
            }
            self.len += 1;
        }
    }

    /// Whether it was there.
    fn remove(&mut self, place: Place, slot: Slot) -> bool {
        let gone = Tagged::new(place.tag, slot);
        let home = self.home(place.tag);
        let Some(at) = self
            .beginning_at(place.tag)
            .iter()
            .take_while(|slot| **slot <= gone)
            .position(|slot| *slot == gone)
        else {
            return false;
        };
        let at = home + at;
        // What stands after it only because its own place was taken moves up.
        let follow = self.slots.get(at + 1..).unwrap_or_default().iter().enumerate();
        let moved = follow
            .take_while(|(behind, slot)| **slot != Tagged::NONE && self.home(slot.tag()) <= at + behind)
            .count();
        if let Some(run) = self.slots.get_mut(at..=at + moved) {
            run.rotate_left(1);
            if let Some(last) = run.last_mut() {
                *last = Tagged::NONE;
            }
            self.len -= 1;
        }
        true
    }

    fn grow(&mut self) {
        let mut grown = Self::with_room(self.len + 1);
        for slot in self.slots.iter().filter(|slot| **slot != Tagged::NONE) {
            let place = grown.home(slot.tag()).max(grown.slots.len());
            grown.reach(place + 1);
            if let Some(last) = grown.slots.last_mut() {
                *last = *slot;
            }
        }
        grown.reach(grown.places + BEYOND);
        grown.len = self.len;
        *self = grown;
    }
}

/// A table in the making: slots in any order, of which it is known how many there will be.
#[derive(Debug)]
pub struct Unordered {
    table: Table,
    expected: usize,
}

impl Unordered {
    pub fn with_room(expected: usize) -> Self {
        Self { table: Table::with_room(expected), expected }
    }

    /// Whether there was room for it.
    pub fn push(&mut self, place: Place, slot: Slot) -> bool {
        let has_room = self.table.slots.len() < self.expected;
        if has_room {
            self.table.slots.push(Tagged::new(place.tag, slot));
        }
        has_room
    }

    /// Puts them in order, where they are: a copy would leave a hole in the memory of the process. `places`
    /// is kept for its room.
    pub fn order(self, places: &mut Vec<usize>) -> Table {
        let mut table = self.table;
        table.len = table.slots.len();
        table.slots.sort_unstable();
        places.clear();
        let mut next = 0;
        for slot in &table.slots {
            places.push(table.home(slot.tag()).max(next));
            next = places.last().map_or(0, |place| place + 1);
        }
        table.reach(next.max(table.places + BEYOND));
        // From the end: a slot only ever moves to where there is none any more.
        for (at, place) in places.iter().enumerate().rev() {
            table.slots.swap(at, *place);
        }
        table
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Index {
    shards: Vec<Table>,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..limits::KEY_INDEX_SHARDS).map(|_| Table::new()).collect() }
    }
}

impl Index {
    /// The index of these tables, one for each shard.
    pub fn of(shards: Vec<Table>) -> Self {
        Self { shards }
    }

    /// Slots that may be those of `key`: whose key this is has to be looked up.
    pub fn candidates(&self, key: &Key) -> impl Iterator<Item = Slot> {
        let place = Place::of(key);
        self.shards.get(place.shard()).into_iter().flat_map(move |shard| shard.with_tag(place.tag))
    }

    /// Reads what stands where `key` would; it means nothing. Nothing is decided by it, so that the processor
    /// goes on to the next key while memory is slow to answer.
    pub fn touch(&self, key: &Key) -> u64 {
        let place = Place::of(key);
        let shard = self.shards.get(place.shard());
        shard.and_then(|shard| shard.slots.get(shard.home(place.tag))).map_or(0, |slot| slot.0)
    }

    pub fn insert(&mut self, key: &Key, slot: Slot) {
        let place = Place::of(key);
        if let Some(shard) = self.shards.get_mut(place.shard()) {
            shard.insert(place, slot);
        }
    }

    pub fn remove(&mut self, key: &Key, slot: Slot) {
        let place = Place::of(key);
        if let Some(shard) = self.shards.get_mut(place.shard()) {
            shard.remove(place, slot);
        }
    }

    /// How many keys are in it.
    pub fn len(&self) -> u64 {
        self.lens().map(|len| len as u64).sum()
    }

    /// How many keys are in each shard.
    pub fn lens(&self) -> impl Iterator<Item = usize> {
        self.shards.iter().map(|shard| shard.len)
    }

    /// Bytes set aside, used or not.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.slots.capacity() * size_of::<Tagged>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const _: () = assert!(size_of::<Tagged>() == 8 && TAG_BITS == 28);

    /// What a table has to be at any time.
    fn assert_in_order(table: &Table, held: &BTreeSet<(u32, u32)>) {
        let mut found = Vec::new();
        for (at, slot) in table.slots.iter().enumerate().filter(|(_, slot)| **slot != Tagged::NONE) {
            found.push((slot.tag(), slot.slot().claim().0));
            let home = table.home(slot.tag());
            assert!(home <= at, "before its place");
            assert!(!table.slots[home..at].contains(&Tagged::NONE), "a gap where looking for it would end");
        }
        assert_eq!(found, held.iter().copied().collect::<Vec<_>>());
        assert_eq!(table.len, held.len());
        assert!(table.len <= room(table.places));
        for (tag, claim) in held {
            assert!(table.with_tag(*tag).any(|slot| slot == Slot::new(ClaimIx(*claim), 3)));
        }
    }

    fn place(tag: u32) -> Place {
        Place { shard: 0, tag }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_table_finds_what_was_inserted_and_not_removed(
            // Few tags at either end make long runs; the others are spread.
            steps in prop::collection::vec(
                (any::<bool>(), any::<bool>(), prop_oneof![0..4_u32, (1 << 28) - 4..1_u32 << 28, 0..1_u32 << 28], 0..50_u32),
                0..400,
            ),
        ) {
            let mut table = Table::new();
            let mut held = BTreeSet::new();
            for (removes, one_held, tag, claim) in steps {
                let wanted = (tag, claim);
                let (tag, claim) = match held.range(wanted..).next() {
                    Some(next) if one_held => *next,
                    _ => wanted,
                };
                let slot = Slot::new(ClaimIx(claim), 3);
                if removes {
                    prop_assert_eq!(table.remove(place(tag), slot), held.remove(&(tag, claim)));
                } else if held.insert((tag, claim)) {
                    table.insert(place(tag), slot);
                }
            }
            assert_in_order(&table, &held);
            let mut at_once = Unordered::with_room(held.len());
            for (tag, claim) in held.iter().rev() {
                prop_assert!(at_once.push(place(*tag), Slot::new(ClaimIx(*claim), 3)));
            }
            prop_assert!(!at_once.push(place(0), Slot::new(ClaimIx(0), 0)), "more than expected");
            assert_in_order(&at_once.order(&mut Vec::new()), &held);
            for tag in 0..4 {
                prop_assert_eq!(table.with_tag(tag).count(), held.range((tag, 0)..(tag + 1, 0)).count());
            }
        }
    }

    #[test]
    fn a_table_is_never_much_larger_than_it_must_be() {
        let mut table = Table::new();
        let mut tag = 1_u32;
        for number in 0..200_000_u32 {
            tag = tag.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            table.insert(place(tag >> 4), Slot::new(ClaimIx(number), 0));
            let bytes = table.slots.capacity() * size_of::<Tagged>();
            assert!(bytes <= table.len * 11 + 8 * (8 + BEYOND), "{bytes} bytes for {number}");
        }
        assert_eq!(
            Table::with_room(table.len).places,
            table.places,
            "made at once as it is when it has grown"
        );
    }

    #[test]
    fn no_slot_is_taken_for_none() {
        let tag = (1 << TAG_BITS) - 1;
        let slot = Slot::new(ClaimIx(u32::MAX - 1), 15);
        let mut table = Table::new();
        table.insert(place(tag), slot);
        assert_eq!(table.with_tag(tag).collect::<Vec<_>>(), [slot]);
        assert!(table.remove(place(tag), slot));
        assert_eq!(table.with_tag(tag).count(), 0);
    }
}
