//! `subsidy-pos journal make`, `subsidy-pos journal copy` and `subsidy-pos book rebuild`.

use std::time::{Duration, Instant};

use subsidy_pos::book::{Feed, Projector};
use subsidy_pos::journal::Head;
use subsidy_pos::ledger::entry::Hash;
use subsidy_pos::limits;

use super::store::{Store, beside};
use super::{Copy, Failed, Place, failed};

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
            if row.position != expected || Hash::of(&row.entry) != row.hash {
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
        let mut moved = (0, Instant::now());
        loop {
            let reached = feed.position();
            if reader.after(reached, 1).await.map_err(failed)?.is_empty() {
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
