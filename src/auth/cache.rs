//! Tokens verified a moment ago, remembered per thread so that a hit takes no lock.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;

use super::Caller;
use crate::limits;
use crate::time::Timestamp;

/// Places a token may be in; more tokens than that with one hash push each other out.
const WAYS: usize = 4;
/// Bytes at the end of a token that decide which places those are: 192 bits of the signature.
const HASHED_BYTES: usize = 32;
const SETS: usize = limits::TOKEN_CACHE_ENTRIES_MAX / WAYS;
const _: () = assert!(SETS.is_power_of_two() && SETS * WAYS == limits::TOKEN_CACHE_ENTRIES_MAX);

struct Entry {
    token: Box<str>,
    caller: Arc<Caller>,
    /// Believed from this instant on …
    from: Timestamp,
    /// … and before this one.
    until: Timestamp,
}

/// A bounded cache of verified tokens. The whole token is compared, so nothing rests on the hash.
pub(super) struct TokenCache {
    /// The key set all entries were verified with.
    generation: u64,
    hasher: DefaultHashBuilder,
    sets: Vec<[Option<Entry>; WAYS]>,
}

impl TokenCache {
    pub(super) fn new() -> Self {
        Self { generation: 0, hasher: DefaultHashBuilder::default(), sets: Vec::new() }
    }

    /// Who presents `token`, if it was verified with this generation of keys and is still
    /// believed at `now`.
    pub(super) fn get(&self, generation: u64, token: &str, now: Timestamp) -> Option<Arc<Caller>> {
        if self.generation != generation {
            return None;
        }
        let entry = self.sets.get(self.set(token))?.iter().flatten().find(|entry| *entry.token == *token)?;
        // A clock that was put back must not prolong anything, hence both ends.
        (entry.from <= now && now < entry.until).then(|| Arc::clone(&entry.caller))
    }

    /// Remembers `token` from `from` until `until`, in the place of the entry that would have
    /// been forgotten first.
    pub(super) fn put(
        &mut self,
        generation: u64,
        token: &str,
        caller: Arc<Caller>,
        from: Timestamp,
        until: Timestamp,
    ) {
        if until <= from {
            return;
        }
        if self.generation != generation || self.sets.is_empty() {
            self.generation = generation;
            self.sets.clear();
            self.sets.resize_with(SETS, Default::default);
        }
        let set = self.set(token);
        let Some(ways) = self.sets.get_mut(set) else { return };
        let place = match ways.iter().position(|way| way.as_ref().is_some_and(|entry| *entry.token == *token))
        {
            Some(same) => ways.get_mut(same),
            None => ways.iter_mut().min_by_key(|way| way.as_ref().map(|entry| entry.until)),
        };
        if let Some(place) = place {
            *place = Some(Entry { token: token.into(), caller, from, until });
        }
    }

    /// Entries held, believed or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sets.iter().flatten().flatten().count()
    }

    /// Where `token` belongs. Its end is enough to go by: it is part of the signature, and only
    /// tokens with a right one are remembered.
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits of the hash are used")]
    fn set(&self, token: &str) -> usize {
        let end = token.as_bytes().last_chunk::<HASHED_BYTES>();
        self.hasher.hash_one(end) as usize & (SETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Regulator;

    fn caller() -> Arc<Caller> {
        Arc::new(Caller::Regulator(Regulator { officer: "officer".into(), regions: None }))
    }

    /// A token whose end differs, as signatures do.
    fn token(n: usize) -> String {
        format!("header.claims.{n:043}")
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    #[test]
    fn a_token_is_believed_from_its_verification_until_its_end_and_not_beside() {
        let mut cache = TokenCache::new();
        cache.put(1, "token", caller(), at(10), at(20));
        assert!(cache.get(1, "token", at(10)).is_some());
        assert!(cache.get(1, "token", at(19)).is_some());
        assert!(cache.get(1, "token", at(20)).is_none());
        assert!(cache.get(1, "token", at(9)).is_none(), "the clock was put back");
        assert!(cache.get(1, "tokem", at(10)).is_none());
        assert!(cache.get(2, "token", at(10)).is_none(), "the keys have changed");
        cache.put(1, "ended", caller(), at(10), at(10));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn new_keys_drop_everything_and_a_token_has_one_place() {
        let mut cache = TokenCache::new();
        cache.put(1, "a", caller(), at(0), at(9));
        cache.put(1, "a", caller(), at(5), at(14));
        assert_eq!(cache.len(), 1);
        assert!(cache.get(1, "a", at(13)).is_some());
        cache.put(2, "b", caller(), at(5), at(14));
        assert_eq!(cache.len(), 1);
        assert!(cache.get(2, "a", at(6)).is_none());
    }

    #[test]
    fn the_cache_never_holds_more_than_its_bound_and_keeps_the_newest() {
        let mut cache = TokenCache::new();
        let most = limits::TOKEN_CACHE_ENTRIES_MAX;
        for n in 0..most * 3 {
            let n_ms = i64::try_from(n).unwrap();
            cache.put(1, &token(n), caller(), at(0), at(1_000_000 + n_ms));
        }
        assert!(cache.len() <= most);
        assert!(cache.len() > most * 9 / 10, "{}", cache.len());
        let newest = most * 3 - 1;
        assert!(cache.get(1, &token(newest), at(1)).is_some());
    }
}
