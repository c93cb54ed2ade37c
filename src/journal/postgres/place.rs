//! Where a PostgreSQL database is, and connections to it.

use std::time::{Duration, Instant};

use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::journal::JournalError;
use crate::limits;

/// A database and how it is reached. Prints no password.
#[derive(Clone, Debug)]
pub struct Place {
    config: Config,
}

impl Place {
    /// Reads a URL, `postgres://user:password@host:port/database`. With several hosts, the one that can be
    /// written to is used.
    ///
    /// # Errors
    /// When it is not one. The text does not repeat it.
    pub fn parse(url: &str) -> Result<Self, JournalError> {
        let fault = |what: &str| JournalError::Unusable(format!("ledger.url: {what}"));
        let mut config: Config = url
            .parse()
            .map_err(|_| fault("not of the form postgres://user:password@host:port/database?option=value"))?;
        if config.get_hosts().is_empty() {
            return Err(fault("names no host"));
        }
        if config.get_user().is_none() {
            return Err(fault("names no user"));
        }
        config.connect_timeout(limits::POSTGRES_TIMEOUT);
        config.tcp_user_timeout(limits::POSTGRES_TIMEOUT);
        config.keepalives_idle(limits::POSTGRES_KEEPALIVE);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.application_name("subsidy-pos");
        Ok(Self { config })
    }

    /// The same, where a server that cannot be written to, such as a standby, will do.
    pub fn for_reading(&self) -> Self {
        let mut config = self.config.clone();
        config.target_session_attrs(TargetSessionAttrs::Any);
        Self { config }
    }

    /// A connection that gives up a statement after `statement` and waiting for a lock after `lock`. It is
    /// driven by the current runtime.
    ///
    /// # Errors
    /// When there is none to be had; the text says what to do.
    pub async fn connect(&self, statement: Duration, lock: Duration) -> Result<Client, JournalError> {
        let connected = tokio::time::timeout(limits::POSTGRES_TIMEOUT, self.config.connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.map_err(|error| self.unreachable(&error))?,
            Err(_) => return Err(JournalError::Unknown("PostgreSQL did not answer in time".into())),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = words(&error), "a connection to PostgreSQL ended");
            }
        });
        let settings = format!(
            "SET statement_timeout = {}; SET lock_timeout = {}",
            statement.as_millis(),
            lock.as_millis()
        );
        within(client.batch_execute(&settings)).await?;
        Ok(client)
    }

    fn unreachable(&self, error: &tokio_postgres::Error) -> JournalError {
        let role = self.config.get_user().unwrap_or_default();
        let database = self.config.get_dbname().unwrap_or(role);
        let what_to_do = match error.code() {
            Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
                format!("correct user and password in ledger.url, or let {role} in (pg_hba.conf)")
            }
            Some(&SqlState::INVALID_CATALOG_NAME) => {
                format!("create the database {database}, or correct its name in ledger.url")
            }
            Some(_) => "see what PostgreSQL has logged".to_owned(),
            None => "start it, or correct host and port in ledger.url".to_owned(),
        };
        JournalError::Unusable(format!("PostgreSQL cannot be reached ({}): {what_to_do}", words(error)))
    }
}

/// Waits for `work`, not longer than PostgreSQL may take for anything.
///
/// # Errors
/// That nothing is known about what became of it.
pub async fn within<T>(
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, JournalError> {
    match tokio::time::timeout(limits::POSTGRES_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| JournalError::Unknown(words(&error))),
        Err(_) => Err(JournalError::Unknown("PostgreSQL took too long".into())),
    }
}

/// What the driver says, with the server's own words, but without the values that a statement had.
pub fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {}", said.code().code(), said.message()),
        None => error.to_string(),
    }
}

/// When a connection that failed may be tried again: at once after the first failure, later and later
/// after further ones, and not at the same time as other processes.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Fails until it may be tried again.
    ///
    /// # Errors
    /// That it is too early.
    pub fn check(&self) -> Result<(), JournalError> {
        if self.until.is_some_and(|until| Instant::now() < until) {
            return Err(JournalError::Unknown("PostgreSQL has failed and is not tried again yet".into()));
        }
        Ok(())
    }

    /// It worked.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// It failed.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.until = (self.failures > 1).then(|| {
            let most = limits::POSTGRES_RETRY_MS_MAX.min(10_u64 << self.failures.min(10));
            Instant::now() + Duration::from_millis(rand::random_range(most / 2..=most))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_at_fault_is_refused_without_being_repeated() {
        for url in [
            "postgres://",
            "postgres:///database",
            "postgres://host/database",
            "postgres://u:a-secret@host:port/database",
            "postgres://u:a-secret@host/database?nonsense=a-secret",
            "postgres://u:a-secret@host/database?sslmode=a-secret",
            "a-secret",
        ] {
            let fault = Place::parse(url).unwrap_err().to_string();
            assert!(fault.contains("ledger.url") && !fault.contains("a-secret"), "{fault}");
        }
    }

    #[test]
    fn a_place_prints_no_password() {
        let place = Place::parse("postgres://u:a-secret@one:5432,two:5433/database").unwrap();
        let printed = format!("{place:?}");
        assert!(printed.contains("two") && !printed.contains("a-secret"), "{printed}");
    }

    #[test]
    fn after_failures_it_is_tried_later_and_later_but_within_a_second() {
        let mut backoff = Backoff::default();
        backoff.failed();
        assert!(backoff.check().is_ok());
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            backoff.failed();
            assert!(backoff.check().is_err());
            last = backoff.until.unwrap().saturating_duration_since(Instant::now());
            assert!(last <= Duration::from_millis(limits::POSTGRES_RETRY_MS_MAX));
        }
        assert!(last >= Duration::from_millis(limits::POSTGRES_RETRY_MS_MAX / 3));
        backoff.succeeded();
        assert!(backoff.check().is_ok());
    }
}
