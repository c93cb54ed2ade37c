//! Where the journal and the book are kept, as the settings say.

use std::path::PathBuf;
use std::sync::Arc;

use subsidy_pos::book::cube::Cube;
use subsidy_pos::book::projector::Tables;
use subsidy_pos::book::{self, Book, Feed};
use subsidy_pos::config::{Config, LedgerUrl};
use subsidy_pos::journal::postgres::{Place, PostgresJournal, PostgresReader};
use subsidy_pos::journal::sqlite::{SqliteJournal, SqliteReader};
use subsidy_pos::journal::{self, Journal, JournalError, Reader, Row};
use subsidy_pos::ledger::Snapshots;
use tokio::runtime::Handle;

use super::{Failed, failed};

/// Reads at most so many rows after a position.
pub type Read = Box<dyn FnMut(u64, usize) -> Result<Vec<Row>, JournalError>>;

/// The projector's and the readers' side of a book.
pub type BookSides = (Box<dyn Tables>, Arc<dyn Book>);

/// A place for a journal and a book.
#[derive(Clone)]
pub enum Store {
    /// Files of one process in a directory.
    Files(PathBuf),
    /// A database of any number of processes.
    Postgres(Place),
}

impl Store {
    /// The configured one.
    pub fn of(config: &Config) -> Result<Self, Failed> {
        Ok(match &config.ledger.url {
            LedgerUrl::Sqlite => Self::Files(config.ledger.data_dir.clone()),
            LedgerUrl::Postgres(url) => Self::Postgres(Place::parse(url.expose()).map_err(failed)?),
        })
    }

    /// The one that the arguments of a command name.
    pub fn named(place: &super::Place) -> Result<Self, Failed> {
        match (&place.data, &place.database_url) {
            (_, Some(url)) => Ok(Self::Postgres(Place::parse(url).map_err(failed)?)),
            (Some(data), None) => Ok(Self::Files(data.clone())),
            (None, None) => Err(failed("neither --data nor --database-url is given")),
        }
    }

    /// The one at `place`, a directory or a URL.
    pub fn at(place: &str) -> Result<Self, Failed> {
        match place.starts_with("postgres://") || place.starts_with("postgresql://") {
            true => Ok(Self::Postgres(Place::parse(place).map_err(failed)?)),
            false => Ok(Self::Files(place.into())),
        }
    }

    /// The writer's side of the journal, which is made where there is none. This and all that follows
    /// waits, and must be called beside the runtime: see [`beside`].
    pub fn new_journal(&self) -> Result<Box<dyn Journal>, Failed> {
        Ok(match self {
            Self::Files(directory) => {
                std::fs::create_dir_all(directory)
                    .map_err(|error| failed(format!("{}: {error}", directory.display())))?;
                Box::new(SqliteJournal::open(directory).map_err(failed)?)
            }
            Self::Postgres(place) => Box::new(PostgresJournal::open(place).map_err(failed)?),
        })
    }

    /// The readers' side of the journal, which must be there.
    pub fn reader(&self, runtime: Handle) -> Result<Arc<dyn Reader>, Failed> {
        Ok(match self {
            Self::Files(directory) => Arc::new(SqliteReader::new(directory).map_err(failed)?),
            Self::Postgres(place) => Arc::new(PostgresReader::new(place, runtime)),
        })
    }

    /// What reads the journal, at most so many rows after a position, beside a live service or without one.
    /// Nothing is made where there is none.
    pub fn existing_journal(&self) -> Result<Read, Failed> {
        match self {
            Self::Files(directory) => {
                let file = directory.join(journal::sqlite::FILE);
                if !file.is_file() {
                    return Err(failed(format!("{}: there is no journal", file.display())));
                }
                let reader = SqliteReader::new(directory).map_err(failed)?;
                Ok(Box::new(move |after, limit| reader.read_after(after, limit)))
            }
            Self::Postgres(place) => {
                let mut journal = PostgresJournal::open_to_read(place).map_err(failed)?;
                Ok(Box::new(move |after, limit| journal.read(after, limit)))
            }
        }
    }

    /// The book's totals and the position they are true at, if there is a book.
    pub fn cube(&self) -> Result<Option<(u64, Cube)>, Failed> {
        match self {
            Self::Files(directory) => {
                let file = directory.join(book::sqlite::FILE);
                file.is_file().then(|| book::sqlite::read_cube(&file).map_err(failed)).transpose()
            }
            Self::Postgres(place) => book::postgres::read_cube(&place.for_reading()).map_err(failed),
        }
    }

    /// Both sides of the book, which is made where there is none.
    pub fn book(&self, feed: Feed, runtime: Handle) -> Result<BookSides, Failed> {
        Ok(match self {
            Self::Files(directory) => {
                let (tables, book) =
                    book::sqlite::open(&directory.join(book::sqlite::FILE), feed).map_err(failed)?;
                (Box::new(tables), Arc::new(book))
            }
            Self::Postgres(place) => {
                let (tables, book) = book::postgres::open(place, feed, runtime).map_err(failed)?;
                (Box::new(tables), Arc::new(book))
            }
        })
    }
}

/// Where the configured process keeps its snapshots, if it takes and uses any.
pub fn snapshots(config: &Config) -> Option<Snapshots> {
    (config.ledger.snapshot_interval_s.get() > 0).then(|| Snapshots::new(config.snapshot_dir()))
}

/// Does what waits beside the runtime.
pub async fn beside<T: Send + 'static>(
    work: impl FnOnce(Handle) -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || work(runtime)).await.map_err(failed)?
}
