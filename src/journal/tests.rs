//! What every journal must do, whatever keeps it.

use std::sync::Arc;

use super::postgres::{PostgresJournal, PostgresReader};
use super::sqlite::{SqliteJournal, SqliteReader};
use super::{Head, Journal, JournalError, Reader, Row};
use crate::ledger::entry::Hash;
use crate::postgres_server::{Database, Postgres};

/// Rows that follow `after`: with texts as they occur, and longer ones.
fn rows(after: Head, count: u64, what: &str) -> Vec<Row> {
    (1..=count)
        .map(|number| {
            let position = after.position + number;
            let text = format!("{{\"position\":{position},\"what\":\"{what} 以旧换新 \\u0000 \u{1F576}\"}}");
            let entry = text.repeat(if position.is_multiple_of(7) { 100 } else { 1 });
            Row { position, hash: Hash::of(entry.as_bytes()), entry: Arc::from(entry.as_bytes()) }
        })
        .collect()
}

fn head_of(rows: &[Row]) -> Head {
    rows.last().map_or(Head::EMPTY, |last| Head { position: last.position, hash: last.hash })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A place that keeps one journal.
trait Place {
    fn open(&self) -> Box<dyn Journal>;
    fn reader(&self) -> Arc<dyn Reader>;
}

fn what_is_appended_is_read_back_byte_for_byte(place: &dyn Place) {
    let mut journal = place.open();
    assert_eq!(journal.head().unwrap(), Head::EMPTY);
    assert_eq!(journal.read(0, 10).unwrap(), []);
    let mut all = Vec::new();
    for count in [1, 2, 40, 500] {
        let new = rows(head_of(&all), count, "claim");
        journal.append(head_of(&all), &new).unwrap();
        all.extend(new);
        assert_eq!(journal.head().unwrap(), head_of(&all));
    }
    assert_eq!(journal.read(0, 1000).unwrap(), all);
    assert_eq!(journal.read(3, 7).unwrap(), all[3..10]);
    assert_eq!(journal.read(543, 7).unwrap(), []);
    journal.reopen().unwrap();
    assert_eq!(journal.read(0, 1000).unwrap(), all);
    drop(journal);
    assert_eq!(place.open().read(0, 1000).unwrap(), all);
}

fn an_append_after_another_head_changes_nothing(place: &dyn Place) {
    let mut journal = place.open();
    let first = rows(Head::EMPTY, 5, "first");
    let head = head_of(&first);
    let ahead = Head { position: 1, hash: first[0].hash };
    for expected in [ahead, head] {
        let lost = journal.append(expected, &rows(expected, 2, "other"));
        assert!(matches!(lost, Err(JournalError::Moved)), "the journal is empty: {lost:?}");
    }
    journal.append(Head::EMPTY, &first).unwrap();
    let other_history = Head { hash: Hash::of(b"other"), ..head };
    let beyond = Head { position: 6, hash: Hash::of(b"other") };
    for expected in [Head::EMPTY, ahead, other_history, beyond] {
        let lost = journal.append(expected, &rows(expected, 2, "other"));
        assert!(matches!(lost, Err(JournalError::Moved)), "{expected:?}: {lost:?}");
        assert_eq!(journal.read(0, 100).unwrap(), first);
    }
    journal.append(head, &rows(head, 1, "next")).unwrap();
    assert_eq!(journal.head().unwrap().position, 6);
}

fn readers_see_what_was_appended_in_the_order_asked_for(place: &dyn Place) {
    let runtime = runtime();
    let _inside = runtime.enter();
    let mut journal = place.open();
    let all = rows(Head::EMPTY, 30, "claim");
    journal.append(Head::EMPTY, &all).unwrap();
    let reader = place.reader();
    let at = |positions: &[u64]| runtime.block_on(reader.rows(positions));
    assert_eq!(at(&[]).unwrap(), []);
    assert_eq!(at(&[7, 30, 1, 7]).unwrap(), [6, 29, 0, 6].map(|index: usize| all[index].clone()));
    assert!(at(&[1, 31]).is_err(), "there is no entry 31");
    assert_eq!(at(&[2]).unwrap(), all[1..2], "a reader goes on after an error");
    assert_eq!(runtime.block_on(reader.after(28, 5)).unwrap(), all[28..]);
    let more = rows(head_of(&all), 1, "next");
    journal.append(head_of(&all), &more).unwrap();
    assert_eq!(at(&[31]).unwrap(), more);
}

macro_rules! contract {
    ($place:expr; $($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            super::$name(&$place);
        }
    )*};
}

mod on_sqlite {
    use super::*;

    impl Place for tempfile::TempDir {
        fn open(&self) -> Box<dyn Journal> {
            Box::new(SqliteJournal::open(self.path()).unwrap())
        }

        fn reader(&self) -> Arc<dyn Reader> {
            Arc::new(SqliteReader::new(self.path()).unwrap())
        }
    }

    contract!(tempfile::tempdir().unwrap();
        what_is_appended_is_read_back_byte_for_byte,
        an_append_after_another_head_changes_nothing,
        readers_see_what_was_appended_in_the_order_asked_for,
    );
}

mod on_postgres {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::journal::postgres::Place as Url;
    use crate::limits;

    fn url(database: &Database) -> Url {
        Url::parse(&database.url()).unwrap()
    }

    fn journal(database: &Database) -> PostgresJournal {
        PostgresJournal::open(&url(database)).unwrap()
    }

    impl Place for Database {
        fn open(&self) -> Box<dyn Journal> {
            Box::new(journal(self))
        }

        fn reader(&self) -> Arc<dyn Reader> {
            Arc::new(PostgresReader::new(&url(self), tokio::runtime::Handle::current()))
        }
    }

    contract!(Database::new();
        what_is_appended_is_read_back_byte_for_byte,
        an_append_after_another_head_changes_nothing,
        readers_see_what_was_appended_in_the_order_asked_for,
    );

    /// What a writer does: takes its turn, looks, appends; again if another was faster. Says how often it was.
    fn append_until_it_is_in(journal: &mut PostgresJournal, what: &str) -> u32 {
        let mut lost = 0;
        loop {
            let head = journal.head().unwrap();
            let head = match journal.take_turn(head.position).unwrap() {
                Some(others) if others.is_empty() => head,
                Some(others) => head_of(&others),
                None => head,
            };
            match journal.append(head, &rows(head, 1, what)) {
                Ok(()) => return lost,
                Err(JournalError::Moved) => lost += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn writers_side_by_side_neither_fork_the_journal_nor_starve() {
        const WRITERS: u64 = 3;
        const EACH: u64 = 150;
        let database = Database::new();
        let began = Instant::now();
        let took: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let database = &database;
                    scope.spawn(move || {
                        let mut journal = journal(database);
                        let mut lost = 0;
                        for number in 0..EACH {
                            lost += append_until_it_is_in(&mut journal, &format!("{writer}/{number}"));
                        }
                        journal.end_turn();
                        (began.elapsed(), lost)
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let mut journal = journal(&database);
        let all = journal.read(0, 1000).unwrap();
        assert_eq!(all.len() as u64, WRITERS * EACH);
        assert!(all.iter().zip(1..).all(|(row, position)| row.position == position));
        for writer in 0..WRITERS {
            let own = |row: &&Row| String::from_utf8_lossy(&row.entry).contains(&format!("\"{writer}/"));
            assert_eq!(all.iter().filter(own).count() as u64, EACH);
        }
        let lost: u32 = took.iter().map(|(_, lost)| lost).sum();
        assert!(u64::from(lost) < WRITERS * EACH / 4, "races are lost rarely: {took:?}");
        let (first, last) = (took.iter().min().unwrap().0, took.iter().max().unwrap().0);
        assert!(first * 3 > last, "all come to their turn: {took:?}");
    }

    #[test]
    fn a_writer_that_stops_during_its_turn_does_not_stop_the_others() {
        let database = Database::new();
        let holder = std::thread::scope(|scope| {
            // Holds the lock for turns, and does nothing.
            scope
                .spawn(|| {
                    let mut one = journal(&database);
                    let mut two = journal(&database);
                    append_until_it_is_in(&mut one, "one");
                    append_until_it_is_in(&mut two, "two");
                    assert!(matches!(
                        one.append(Head::EMPTY, &rows(Head::EMPTY, 1, "x")),
                        Err(JournalError::Moved)
                    ));
                    assert!(one.take_turn(1).unwrap().is_some(), "it has lost a race and takes turns");
                    one
                })
                .join()
                .unwrap()
        });
        let mut other = journal(&database);
        let began = Instant::now();
        for number in 0..100 {
            append_until_it_is_in(&mut other, &format!("{number}"));
            other.end_turn();
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        drop(holder);
    }

    #[test]
    fn a_connection_that_was_ended_is_made_again() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let database = Database::new();
        let (mut journal, reader) = (journal(&database), database.reader());
        let all = rows(Head::EMPTY, 3, "claim");
        journal.append(Head::EMPTY, &all).unwrap();
        for _ in 0..3 {
            runtime.block_on(reader.after(0, 3)).unwrap();
            assert!(database.terminate_backends() >= 2);
            let mut tries = 0;
            while journal.read(0, 3).is_err() || runtime.block_on(reader.rows(&[1])).is_err() {
                tries += 1;
                assert!(tries < 100);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert_eq!(journal.read(0, 3).unwrap(), all);
    }

    #[test]
    fn a_server_that_is_away_is_told_at_once_and_found_again() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let server = Postgres::start();
        let database = server.database();
        let (mut journal, reader) = (journal(&database), database.reader());
        journal.append(Head::EMPTY, &rows(Head::EMPTY, 3, "claim")).unwrap();
        server.stop(crate::postgres_server::Stop::Immediate);
        let began = Instant::now();
        for _ in 0..500 {
            assert!(journal.head().is_err());
            assert!(runtime.block_on(reader.after(0, 3)).is_err());
        }
        assert!(began.elapsed() < limits::POSTGRES_TIMEOUT, "{:?}", began.elapsed());
        server.start_again();
        let began = Instant::now();
        while journal.head().is_err() || runtime.block_on(reader.rows(&[3])).is_err() {
            assert!(began.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(journal.read(0, 10).unwrap().len(), 3);
    }

    #[test]
    fn a_server_that_can_lose_what_it_confirms_is_refused() {
        let server = Postgres::start_with(&["full_page_writes=off"]);
        let refused = PostgresJournal::open(&url(&server.database())).unwrap_err().to_string();
        assert!(refused.contains("full_page_writes = off"), "{refused}");
        let database = Database::new();
        database.execute(&format!("ALTER DATABASE {} SET synchronous_commit = off", database.name));
        let refused = PostgresJournal::open(&url(&database)).unwrap_err().to_string();
        assert!(refused.contains("synchronous_commit = off"), "{refused}");
        let server = Postgres::shared();
        server.execute("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
        let refused =
            PostgresJournal::open(&Url::parse(&server.url("latin")).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("server_encoding = LATIN1"), "{refused}");
    }

    #[test]
    fn tables_of_another_version_are_refused_and_left_alone() {
        let database = Database::new();
        assert!(PostgresJournal::open_to_read(&url(&database)).is_err(), "there is nothing yet");
        assert_eq!(database.execute("SELECT to_regclass('journal') IS NULL"), "t", "and nothing was made");
        drop(journal(&database));
        drop(PostgresJournal::open_to_read(&url(&database)).unwrap());
        database.execute("UPDATE subsidy_pos_schema SET version = 7");
        for refused in
            [PostgresJournal::open(&url(&database)), PostgresJournal::open_to_read(&url(&database))]
        {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("version 7, this program knows version 1"), "{refused}");
        }
    }

    #[test]
    fn processes_that_start_at_once_make_the_tables_once() {
        let database = Database::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| journal(&database).head().unwrap());
            }
        });
        assert_eq!(database.execute("SELECT count(*) FROM subsidy_pos_schema"), "1");
    }

    #[test]
    fn whoever_cannot_be_reached_is_named_without_the_password() {
        let server = Postgres::shared();
        let database = server.database();
        for (url, expected) in [
            (server.url_as("postgres", "a-wrong-one", &database.name), "correct user and password"),
            (server.url_as("nobody", "a-wrong-one", &database.name), "correct user and password"),
            (server.url("no_such_database"), "create the database no_such_database"),
            ("postgres://u:a-wrong-one@127.0.0.1:1/d".to_owned(), "start it, or correct host and port"),
        ] {
            let refused = PostgresJournal::open(&Url::parse(&url).unwrap()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
            let secret = ["a-wrong-one", crate::postgres_server::PASSWORD];
            assert!(!secret.iter().any(|secret| refused.contains(secret)), "{refused}");
        }
    }
}
