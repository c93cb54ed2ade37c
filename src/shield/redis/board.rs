//! Requests in flight, told among processes. Pure: instants are microseconds of the process's own clock.
//!
//! Only requests that have been in flight for a while are told, so that in quiet times nothing is: a
//! twin of one that is quickly done meets its outcome in the ledger. What is told is one hash over the
//! request's key and its content's fingerprint; neither can be had from it.

use aws_lc_rs::digest;
use hashbrown::HashMap;

use crate::limits;

/// Bytes of one mark: its hash, and its age in milliseconds.
pub(super) const MARK_BYTES: usize = HASH_BYTES + 2;
const HASH_BYTES: usize = 16;

const AFTER_US: u64 = limits::SHIELD_MARK_AFTER.as_micros() as u64;
const LIFE_US: u64 = limits::SHIELD_MARK_LIFE.as_micros() as u64;
const PAST_US: u64 = limits::SHIELD_PAST_MARK_LIFE.as_micros() as u64;

/// What another process said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Voice {
    /// Its name.
    pub name: u64,
    /// How long ago, in microseconds.
    pub age_us: u64,
    /// Its marks.
    pub marks: Vec<u8>,
}

/// What this process has in flight, and what the others have.
#[derive(Debug, Default)]
pub(super) struct Board {
    next: u64,
    own: HashMap<u64, Own>,
    /// The others' marks, and when each dies.
    others: HashMap<[u8; HASH_BYTES], u64>,
    /// Marks that are told no more, and when each dies or died; for a while.
    past: HashMap<[u8; HASH_BYTES], u64>,
    /// When those whose while is over were last dropped.
    swept_us: u64,
    /// The other processes, and when each was last heard of.
    processes: HashMap<u64, u64>,
    /// When the others were last heard; none if never.
    heard_us: Option<u64>,
}

#[derive(Debug)]
struct Own {
    request: [u8; 16],
    fingerprint: [u8; 16],
    since_us: u64,
    is_told: bool,
}

impl Board {
    /// Marks a request; returns what takes the mark off again, or none where there are too many.
    pub fn mark(&mut self, request: [u8; 16], fingerprint: [u8; 16], now_us: u64) -> Option<u64> {
        if self.own.len() >= limits::SHIELD_IN_FLIGHT_MAX {
            return None;
        }
        let mark = self.next;
        self.next = self.next.wrapping_add(1);
        self.own.insert(mark, Own { request, fingerprint, since_us: now_us, is_told: false });
        Some(mark)
    }

    /// Takes a mark off; says whether the others have been told of it.
    pub fn unmark(&mut self, mark: u64) -> bool {
        self.own.remove(&mark).is_some_and(|own| own.is_told)
    }

    /// Whether another process has the same request with the same content in flight.
    pub fn is_elsewhere(&self, request: [u8; 16], fingerprint: [u8; 16], now_us: u64) -> bool {
        // Nearly always there are none, and nothing is hashed.
        !self.others.is_empty()
            && self.others.get(&hash(request, fingerprint)).is_some_and(|dies_us| now_us < *dies_us)
    }

    /// What to tell the others.
    pub fn tell(&mut self, now_us: u64) -> Vec<u8> {
        let mut marks = Vec::new();
        for own in self.own.values_mut() {
            let age_us = now_us.saturating_sub(own.since_us);
            own.is_told =
                (AFTER_US..LIFE_US).contains(&age_us) && marks.len() < limits::SHIELD_MARKS_MAX * MARK_BYTES;
            if own.is_told {
                marks.extend_from_slice(&hash(own.request, own.fingerprint));
                let age_ms = u16::try_from(age_us / 1000).unwrap_or(u16::MAX);
                marks.extend_from_slice(&age_ms.to_be_bytes());
            }
        }
        marks
    }

    /// Takes what the others told. A mark that was heard before dies when it was to die then, whatever is said of
    /// its age now, and also if it was left out for a time: Redis can hold a request up for no longer than one lasts.
    pub fn hear(&mut self, voices: &[Voice], now_us: u64) {
        self.heard_us = Some(now_us);
        let mut before = std::mem::take(&mut self.others);
        for voice in voices.iter().take(limits::SHIELD_PROCESSES_MAX) {
            self.processes.insert(voice.name, now_us.saturating_sub(voice.age_us));
            for mark in voice.marks.chunks_exact(MARK_BYTES).take(limits::SHIELD_MARKS_MAX) {
                let Some((hash, [high, low])) = mark.split_first_chunk::<HASH_BYTES>() else { continue };
                let age_ms = u16::from_be_bytes([*high, *low]);
                let age_us = voice.age_us.saturating_add(u64::from(age_ms) * 1000);
                let left_us = LIFE_US.checked_sub(age_us);
                let told_us = left_us.map(|left_us| now_us.saturating_add(left_us));
                let known_us = before.remove(hash).or_else(|| self.past.remove(hash));
                let known_us = known_us.or_else(|| self.others.get(hash).copied());
                // One that is past is remembered for as long as it is told. What comes while there is no room to
                // remember it is not believed.
                let dies_us = match (told_us, known_us) {
                    (Some(told_us), Some(known_us)) => told_us.min(known_us),
                    (None, Some(known_us)) => known_us,
                    (Some(told_us), None) if self.past.len() < limits::SHIELD_PAST_MARKS_MAX => told_us,
                    _ => continue,
                };
                self.others.insert(*hash, dies_us);
            }
        }
        self.past.extend(before);
        self.sweep(now_us);
        let since_us = now_us.saturating_sub(LIFE_US);
        self.processes.retain(|_, seen_us| since_us <= *seen_us);
    }

    /// Drops what is past for long enough; once a second is often enough.
    fn sweep(&mut self, now_us: u64) {
        if self.swept_us.saturating_add(1_000_000) < now_us {
            self.swept_us = now_us;
            self.past.retain(|_, dies_us| now_us < dies_us.saturating_add(PAST_US));
        }
    }

    /// How many processes share the limits, this one included, as far as was heard last.
    pub fn processes(&self) -> u32 {
        match self.heard_us {
            None => limits::SHIELD_PROCESSES_ASSUMED,
            Some(_) => {
                let others = self.processes.len().min(limits::SHIELD_PROCESSES_MAX - 1);
                u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1)
            }
        }
    }
}

fn hash(request: [u8; 16], fingerprint: [u8; 16]) -> [u8; HASH_BYTES] {
    let mut both = [0; 32];
    both[..16].copy_from_slice(&request);
    both[16..].copy_from_slice(&fingerprint);
    let digest = digest::digest(&digest::SHA256, &both);
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 9_000_000;
    const KEY: [u8; 16] = [1; 16];
    const CONTENT: [u8; 16] = [2; 16];

    fn voice(name: u64, age_us: u64, marks: Vec<u8>) -> Voice {
        Voice { name, age_us, marks }
    }

    #[test]
    fn a_request_in_flight_for_a_while_is_known_to_the_other_process() {
        let (mut here, mut there) = (Board::default(), Board::default());
        let mark = here.mark(KEY, CONTENT, NOW).unwrap();
        assert!(here.tell(NOW + AFTER_US - 1).is_empty());
        let told = here.tell(NOW + AFTER_US);
        assert_eq!(told.len(), MARK_BYTES);
        there.hear(&[voice(1, 0, told)], NOW);
        assert!(there.is_elsewhere(KEY, CONTENT, NOW));
        assert!(!there.is_elsewhere(KEY, [3; 16], NOW), "other content is no twin");
        assert!(!there.is_elsewhere(CONTENT, KEY, NOW));
        assert!(here.unmark(mark));
        there.hear(&[voice(1, 0, here.tell(NOW + AFTER_US))], NOW);
        assert!(!there.is_elsewhere(KEY, CONTENT, NOW));
    }

    #[test]
    fn a_request_is_not_its_own_twin_and_one_soon_done_is_never_told() {
        let mut here = Board::default();
        let mark = here.mark(KEY, CONTENT, NOW).unwrap();
        assert!(!here.is_elsewhere(KEY, CONTENT, NOW));
        assert!(!here.unmark(mark));
        assert!(here.tell(NOW + AFTER_US).is_empty());
    }

    #[test]
    fn a_mark_lives_two_seconds_from_its_request_however_late_it_is_heard() {
        let (mut here, mut there) = (Board::default(), Board::default());
        here.mark(KEY, CONTENT, NOW).unwrap();
        let told = here.tell(NOW + 500_000);
        there.hear(&[voice(1, 300_000, told)], NOW);
        assert!(there.is_elsewhere(KEY, CONTENT, NOW + 1_199_999));
        assert!(!there.is_elsewhere(KEY, CONTENT, NOW + 1_200_000));
        assert!(here.tell(NOW + LIFE_US).is_empty());
    }

    #[test]
    fn a_mark_that_is_told_with_an_ever_younger_age_dies_all_the_same() {
        let (mut here, mut there) = (Board::default(), Board::default());
        here.mark(KEY, CONTENT, NOW).unwrap();
        let told = here.tell(NOW + AFTER_US);
        let mut now = NOW;
        let mut refused_us = 0;
        while now < NOW + 5 * LIFE_US {
            there.hear(&[voice(1, 0, told.clone())], now);
            refused_us += if there.is_elsewhere(KEY, CONTENT, now) { 10_000 } else { 0 };
            now += 10_000;
        }
        assert!(refused_us <= LIFE_US, "{refused_us}");
    }

    #[test]
    fn a_mark_that_is_left_out_and_told_again_is_no_younger_for_it() {
        let (mut here, mut there) = (Board::default(), Board::default());
        here.mark(KEY, CONTENT, NOW).unwrap();
        let told = here.tell(NOW + AFTER_US);
        there.hear(&[voice(1, 0, told.clone())], NOW);
        there.hear(&[], NOW + 500_000);
        assert!(!there.is_elsewhere(KEY, CONTENT, NOW + 500_000));
        let mut now = NOW + 510_000;
        there.hear(&[voice(1, 0, told.clone())], now);
        assert!(there.is_elsewhere(KEY, CONTENT, now), "Redis had lost it");
        let mut refused_us = 0;
        while now < NOW + 5 * LIFE_US {
            let is_left_out = now.is_multiple_of(LIFE_US / 2);
            let voices = if is_left_out { vec![] } else { vec![voice(1, 0, told.clone())] };
            there.hear(&voices, now);
            refused_us += if there.is_elsewhere(KEY, CONTENT, now) { 10_000 } else { 0 };
            now += 10_000;
        }
        assert!(refused_us <= LIFE_US, "{refused_us}");
        there.hear(&[], now + PAST_US);
        there.hear(&[voice(1, 0, told)], now + PAST_US);
        assert!(there.is_elsewhere(KEY, CONTENT, now + PAST_US), "by now it is another request of that key");
        assert_eq!(there.past.len(), 0);
    }

    #[test]
    fn a_voice_of_any_age_is_heard() {
        let (mut here, mut there) = (Board::default(), Board::default());
        here.mark(KEY, CONTENT, NOW).unwrap();
        there.hear(&[voice(1, u64::MAX, here.tell(NOW + AFTER_US))], NOW);
        assert!(!there.is_elsewhere(KEY, CONTENT, NOW));
        assert_eq!(there.processes(), 1);
    }

    #[test]
    fn processes_count_until_they_have_been_silent_for_two_seconds() {
        let mut here = Board::default();
        assert_eq!(here.processes(), limits::SHIELD_PROCESSES_ASSUMED);
        here.hear(&[], NOW);
        assert_eq!(here.processes(), 1);
        here.hear(&[voice(1, 0, vec![]), voice(2, 0, vec![])], NOW);
        assert_eq!(here.processes(), 3);
        // The hash was lost: they are still there.
        here.hear(&[], NOW + 10_000);
        assert_eq!(here.processes(), 3);
        here.hear(&[voice(2, 0, vec![])], NOW + LIFE_US + 1);
        assert_eq!(here.processes(), 2);
    }

    /// Voices that each say more than they may, each mark another's and young.
    fn crowd(round: u8) -> Vec<Voice> {
        let mark = |name: u64, number: usize| {
            let mut mark = [0; MARK_BYTES];
            mark[0] = round;
            mark[1..9].copy_from_slice(&name.to_be_bytes());
            mark[9..13].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
            mark
        };
        let marks = |name| (0..=limits::SHIELD_MARKS_MAX).flat_map(|number| mark(name, number)).collect();
        (0..=limits::SHIELD_PROCESSES_MAX as u64).map(|name| voice(name, 0, marks(name))).collect()
    }

    #[test]
    fn what_the_other_processes_say_is_bounded() {
        let mut here = Board::default();
        here.hear(&crowd(1), NOW);
        assert_eq!(here.processes.len(), limits::SHIELD_PROCESSES_MAX);
        assert_eq!(here.processes() as usize, limits::SHIELD_PROCESSES_MAX);
        assert_eq!(here.others.len(), limits::SHIELD_PROCESSES_MAX * limits::SHIELD_MARKS_MAX);
        // While as much is remembered as may be, nothing new is believed.
        here.hear(&[], NOW);
        for round in 2..5 {
            here.hear(&crowd(round), NOW);
            assert_eq!((here.others.len(), here.past.len()), (0, limits::SHIELD_PAST_MARKS_MAX));
        }
        let later = NOW + LIFE_US + PAST_US;
        here.hear(&[], later);
        assert_eq!(here.past.len(), 0);
        here.hear(&crowd(2), later);
        assert_eq!(here.others.len(), limits::SHIELD_PROCESSES_MAX * limits::SHIELD_MARKS_MAX);
    }

    #[test]
    fn what_this_process_says_is_bounded() {
        let mut here = Board::default();
        for _ in 0..limits::SHIELD_IN_FLIGHT_MAX {
            assert!(here.mark(KEY, CONTENT, NOW).is_some());
        }
        assert!(here.mark(KEY, CONTENT, NOW).is_none());
        assert_eq!(here.tell(NOW + AFTER_US).len(), limits::SHIELD_MARKS_MAX * MARK_BYTES);
    }
}
