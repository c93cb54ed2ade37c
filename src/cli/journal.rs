//! `subsidy-pos journal make`, `subsidy-pos journal copy`, `subsidy-pos journal snapshot` and
//! `subsidy-pos book rebuild`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use subsidy_pos::book::{Feed, Projector};
use subsidy_pos::clock::Clock;
use subsidy_pos::config::Mode;
use subsidy_pos::journal::{Head, JournalError, Reader};
use subsidy_pos::ledger::entry::Key;
use subsidy_pos::ledger::state::State;
use subsidy_pos::ledger::writer::{self, Observer};
use subsidy_pos::ledger::{Command, Ledger, Snapshot, Stored, snapshot};
use subsidy_pos::limits;

use super::store::{self, Store, beside};
use super::{Copy, Failed, Place, Settings, failed};

/// Copies a journal byte for byte to where there is none. Every hash is checked on the way; the source may
/// be in use, and is copied as far as it goes then.
pub fn copy(arguments: &Copy) -> Result<(), Failed> {
    let (from, to) = (Store::at(&arguments.from)?, Store::at(&arguments.to)?);
    let mut read = from.existing_journal()?;
    let mut target = to.new_journal()?;
    if target.head().map_err(failed)? != Head::EMPTY {
        return Err(failed("--to: there is a journal already; copy to an empty place"));
    }
    let mut head = Head::EMPTY;
    loop {
        let rows = read(head.position, limits::JOURNAL_READ_ENTRIES_MAX).map_err(failed)?;
        for (expected, row) in (head.position + 1..).zip(&rows) {
            if row.position != expected || !row.is_hashed_right() {
                return Err(failed(format!(
                    "--from: entry {expected} is missing or changed; `subsidy-pos verify` says more. What comes \
                     before it is copied"
                )));
            }
        }
        let Some(last) = rows.last() else { break };
        target.append(head, &rows).map_err(failed)?;
        head = Head { position: last.position, hash: last.hash };
    }
    if target.head().map_err(failed)? != head {
        return Err(failed("--to: somebody else has written there"));
    }
    println!("{} entries are copied\nhead   {}", head.position, head.hash);
    Ok(())
}

/// Makes the tables of a journal where there are none.
pub fn make(place: &str) -> Result<(), Failed> {
    let head = Store::at(place)?.new_journal()?.head().map_err(failed)?;
    println!("the journal is there, with {} entries", head.position);
    Ok(())
}

/// Takes a snapshot of all that the journal has.
pub fn snapshot(settings: &Settings) -> Result<(), Failed> {
    let config = settings.load(Mode::Production)?;
    let snapshots = store::snapshots(&config).ok_or_else(|| failed("ledger.snapshot_interval_s: 0"))?;
    let store = Store::of(&config)?;
    // There must be one; nothing is made.
    drop(store.existing_journal()?);
    actix_web::rt::System::new().block_on(beside(move |runtime| {
        let (mut journal, reader) = (store.new_journal()?, store.reader(runtime.clone())?);
        let opened = snapshots.open(&mut *journal);
        let mut state = opened.map_or_else(State::default, |(state, _)| state);
        writer::fold_rest(&mut state, &mut *journal).map_err(failed)?;
        if state.format() < snapshot::FORMAT_MIN {
            return Err(failed(format!(
                "the journal's format, {}, does not know snapshots; `subsidy-pos journal upgrade` raises it",
                state.format()
            )));
        }
        let Snapshot { position, digest } = snapshots.write(&state, &mut |_| Ok(())).map_err(failed)?;
        let journal_id = Key::new(rand::random());
        let (ledger, writer) =
            Ledger::open_from(state, journal, reader, Clock::default(), journal_id, Box::new(Deaf))
                .map_err(failed)?;
        let named = runtime.block_on(ledger.submit(Command::NameSnapshot { position, digest }));
        writer.stop();
        if named.is_err() {
            snapshots.remove(position);
            return Err(failed("the journal could not name the snapshot; the log says why"));
        }
        snapshots.remove_old();
        println!("a snapshot is taken at entry {position}\nsha-256 {digest}");
        Ok(())
    }))
}

/// The position of the journal's last entry. There are no gaps, so it is found by halving.
async fn last_position(reader: &dyn Reader) -> Result<u64, JournalError> {
    let (mut last, mut beyond) = (0, 1);
    while !reader.after(beyond - 1, 1).await?.is_empty() {
        (last, beyond) = (beyond, beyond * 2);
    }
    while beyond - last > 1 {
        let middle = last.midpoint(beyond);
        match reader.after(middle - 1, 1).await?.is_empty() {
            true => beyond = middle,
            false => last = middle,
        }
    }
    Ok(last)
}

/// Whom the writer tells nothing.
struct Deaf;

impl Observer for Deaf {
    fn appended(&mut self, _: &[Arc<Stored>]) {}
    fn batch(&mut self, _: usize, _: Duration) {}
}

/// Empties the book and folds the journal into it again. A service may run meanwhile: it goes on, and its
/// lists and totals say how far they are.
pub fn rebuild(place: &Place) -> Result<(), Failed> {
    let store = Store::named(place)?;
    // There must be one; nothing is made.
    drop(store.existing_journal()?);
    actix_web::rt::System::new().block_on(async {
        let feed = Feed::new();
        let (projector, reader) = beside({
            let feed = feed.clone();
            move |runtime| {
                let reader = store.reader(runtime.clone())?;
                let (mut tables, _) = store.book(feed.clone(), runtime.clone())?;
                tables.clear().map_err(failed)?;
                let projector = Projector::start(tables, reader.clone(), feed, runtime).map_err(failed)?;
                Ok((projector, reader))
            }
        })
        .await?;
        // What is appended from here on is for whoever carries the book on.
        let end = last_position(&*reader).await.map_err(failed)?;
        let mut moved = (0, Instant::now());
        loop {
            let reached = feed.position();
            if reached >= end {
                println!("the book is that of the journal up to entry {reached}");
                break;
            }
            if reached > moved.0 {
                moved = (reached, Instant::now());
            }
            if moved.1.elapsed() > limits::BOOK_REBUILD_PATIENCE {
                return Err(failed(format!(
                    "the book does not get past entry {reached}; does `subsidy-pos verify` find a fault?"
                )));
            }
            feed.wait_for(reached + 1, Instant::now() + Duration::from_secs(1)).await;
        }
        beside(move |_| {
            projector.stop();
            Ok(())
        })
        .await
    })
}
