//! Watches whether this process still is what its journal says a process should be: the same programmes,
//! the same hash keys, the right time. What differs makes it unready, with the reason, until it agrees
//! again; entries of a kind it does not know, or a journal other than the one it knows, the ledger notices
//! by itself as soon as it looks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use subsidy_pos::clock::Clock;
use subsidy_pos::config::Config;
use subsidy_pos::http::operations::Standing;
use subsidy_pos::journal::{JournalError, Reader};
use subsidy_pos::ledger::{Command, Ledger, Published};
use subsidy_pos::limits;
use subsidy_pos::programme::{Programme, ProgrammeSet};
use subsidy_pos::secrets::HashKeys;
use subsidy_pos::time::Timestamp;

use super::{Failed, failed};

/// What this process has, to be held against the journal.
pub struct Watch {
    /// The ledger.
    pub ledger: Ledger,
    /// The hash keys.
    pub hash_keys: Arc<HashKeys>,
    /// The settings, which say where the programme files are.
    pub config: Config,
    /// Where differences are told.
    pub standing: Arc<Standing>,
}

impl Watch {
    /// Looks again and again, for ever.
    pub async fn keep(self) {
        let began = Instant::now();
        let mut time = TimeWatch::default();
        // The activation that the files were last held against, and what was wrong with them.
        let mut activated = (0, None);
        loop {
            // What others have appended is known after this, and a journal that answers again is noticed
            // without anybody's request. What keeps the ledger from answering is told by the ledger.
            let _ = self.ledger.submit(Command::Look).await;
            // While PostgreSQL does not answer, the process has nothing but its own clocks.
            let theirs = other_clock(&**self.ledger.journal()).await.ok().flatten();
            let (elapsed, wall) = (began.elapsed(), Clock::default().now());
            if let Ok(is_single) = self.ledger.journal().is_single_copy().await {
                self.standing.set_single_copy(is_single);
            }
            let published = self.ledger.published();
            // Files that were put there before the activation, or are now, are read then.
            if activated.0 != published.activated_at || activated.1.is_some() {
                activated = (published.activated_at, other_files(&published, &self.config));
            }
            let clock = time.look(elapsed, wall, theirs);
            if theirs.is_some() {
                self.ledger.set_clock_off(clock.is_some());
            }
            let differs =
                clock.or_else(|| missing_key(&published, &self.hash_keys)).or_else(|| activated.1.clone());
            drop(published);
            self.standing.set_unready(differs);
            tokio::time::sleep(limits::WATCH_PACE).await;
        }
    }
}

/// Refuses a machine whose clock is not PostgreSQL's, where the journal is there, before it is stamped with.
///
/// # Errors
/// When it is not, or PostgreSQL does not answer.
pub async fn ensure_right_time(reader: &dyn Reader) -> Result<(), Failed> {
    let theirs = other_clock(reader).await.map_err(failed)?;
    match TimeWatch::default().look(Duration::ZERO, Clock::default().now(), theirs) {
        Some(off) => Err(failed(format!("{off}: put it right (NTP) and start again"))),
        None => Ok(()),
    }
}

/// What the clock of the journal's machine says now, where that is another machine.
async fn other_clock(reader: &dyn Reader) -> Result<Option<Timestamp>, JournalError> {
    let asked = Clock::default().now();
    let theirs = reader.now().await?;
    Ok(theirs.map(|theirs| when_answered(theirs, asked, Clock::default().now())))
}

/// Which of the programme files are not what is activated, if any.
fn other_files(published: &Published, config: &Config) -> Option<String> {
    let files = super::programme_files(config);
    let ours = match files.and_then(|files| ProgrammeSet::parse(&files).map_err(super::failed)) {
        Ok(ours) => ours,
        Err(fault) => {
            tracing::error!(%fault, "the programme files cannot be used");
            return Some("the programme files cannot be used; the log says why".to_owned());
        }
    };
    let theirs = &published.programmes;
    let known = |set: &ProgrammeSet, one: &Programme| set.iter().any(|other| **other == *one);
    let missing = theirs.iter().filter(|theirs| !known(&ours, theirs));
    let new = ours.iter().filter(|ours| !known(theirs, ours));
    let ids: BTreeSet<String> = missing.chain(new).map(|programme| programme.id.to_string()).collect();
    let list = ids.into_iter().collect::<Vec<_>>().join(", ");
    (!list.is_empty())
        .then(|| format!("the programme files differ from those activated in the journal: {list}"))
}

/// Which hash key this process lacks to recognise everyone in the journal.
pub fn missing_key(published: &Published, hash_keys: &HashKeys) -> Option<String> {
    published.hash_keys.iter().find_map(|(key, check)| match hash_keys.check_values().get(key) {
        Some(ours) if ours == check => None,
        Some(_) => Some(format!("privacy.hash_keys: the journal knows {key} with another secret")),
        None => Some(format!("privacy.hash_keys: {key}, which the journal has claims under, is missing")),
    })
}

/// What another clock says when its answer has come, if it was read at some moment since it was asked for: as
/// near to this machine's as it can be. A slow answer is no difference.
fn when_answered(theirs: Timestamp, asked: Timestamp, answered: Timestamp) -> Timestamp {
    theirs.plus_ms(answered.ms() - asked.ms()).min(answered).max(theirs)
}

/// Whether the machine's clock can be believed. Pure.
#[derive(Debug, Default)]
struct TimeWatch {
    /// What the wall clock said when the monotonic one said 0, in milliseconds; none before the first look.
    origin_ms: Option<i64>,
}

impl TimeWatch {
    /// Holds the machine's wall clock against PostgreSQL's, where there is one and it answers, or else
    /// against the time that has passed since this began; says what is wrong with it.
    fn look(&mut self, elapsed: Duration, wall: Timestamp, theirs: Option<Timestamp>) -> Option<String> {
        let most_ms = i64::try_from(limits::CLOCK_DIFFERENCE_MAX.as_millis()).unwrap_or(i64::MAX);
        let origin_ms = wall.ms() - i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        let (off_ms, whose) = match theirs {
            Some(theirs) => (wall.ms() - theirs.ms(), "PostgreSQL's"),
            None => (origin_ms - self.origin_ms.unwrap_or(origin_ms), "the time that has passed"),
        };
        if off_ms.abs() > most_ms {
            let way = if off_ms > 0 { "ahead of" } else { "behind" };
            return Some(format!("the machine's clock is {} ms {way} {whose}", off_ms.abs()));
        }
        // A clock that is put right bit by bit does not jump.
        self.origin_ms = Some(origin_ms);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_of_the_other_clock_is_no_difference() {
        let at = Timestamp::from_ms;
        for (theirs, expected) in [(1000, 4000), (2500, 4000), (4000, 4000), (5000, 5000), (900, 3900)] {
            assert_eq!(when_answered(at(theirs), at(1000), at(4000)), at(expected), "{theirs}");
        }
        assert_eq!(
            when_answered(at(1000), at(1000), at(500)),
            at(1000),
            "this machine's jumped back meanwhile"
        );
    }

    const WALL_MS: i64 = 1_800_000_000_000;

    fn look(watch: &mut TimeWatch, elapsed_ms: u64, wall_ms: i64, theirs_ms: Option<i64>) -> Option<String> {
        let at = |ms: i64| Timestamp::from_ms(WALL_MS + ms);
        watch.look(Duration::from_millis(elapsed_ms), at(wall_ms), theirs_ms.map(at))
    }

    #[test]
    fn a_clock_that_agrees_with_postgresqls_within_two_seconds_is_believed() {
        let mut watch = TimeWatch::default();
        assert_eq!(look(&mut watch, 0, 0, Some(2000)), None);
        assert_eq!(look(&mut watch, 0, 0, Some(-2000)), None);
        let behind = look(&mut watch, 0, 0, Some(2001)).unwrap();
        assert_eq!(behind, "the machine's clock is 2001 ms behind PostgreSQL's");
        let ahead = look(&mut watch, 0, 0, Some(-60_000)).unwrap();
        assert_eq!(ahead, "the machine's clock is 60000 ms ahead of PostgreSQL's");
        assert_eq!(look(&mut watch, 1000, 0, Some(0)), None);
    }

    #[test]
    fn a_clock_that_jumps_is_not_believed_until_it_is_back_or_agrees_with_postgresqls() {
        let mut watch = TimeWatch::default();
        assert_eq!(look(&mut watch, 0, 0, None), None);
        assert_eq!(look(&mut watch, 1000, 1000, None), None);
        assert!(look(&mut watch, 2000, 5000, None).unwrap().contains("3000 ms ahead of the time"));
        assert!(look(&mut watch, 3000, 6000, None).is_some());
        assert_eq!(look(&mut watch, 4000, 4000, None), None, "it is back");
        assert!(look(&mut watch, 5000, -600_000, None).unwrap().contains("605000 ms behind"));
        assert_eq!(look(&mut watch, 6000, -599_000, Some(-599_000)), None, "it was put right");
        assert_eq!(look(&mut watch, 7000, -598_000, None), None);
    }

    #[test]
    fn a_clock_that_is_put_right_bit_by_bit_is_believed() {
        let mut watch = TimeWatch::default();
        for second in 0..100 {
            let ms = second * 1000;
            assert_eq!(look(&mut watch, ms, i64::try_from(ms + ms / 2).unwrap(), None), None);
        }
    }
}
