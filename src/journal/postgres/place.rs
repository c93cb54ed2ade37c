//! Where a PostgreSQL database is, and connections to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::journal::JournalError;
use crate::limits;

/// A database and how it is reached. Prints no password.
#[derive(Clone)]
pub struct Place {
    config: Arc<Config>,
    /// What makes connections secret, where the URL asks for it.
    tls: Option<MakeRustlsConnect>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("config", &self.config).field("tls", &self.tls.is_some()).finish()
    }
}

impl Place {
    /// Reads a URL, `postgres://user:password@host:port/database`. With several hosts, the one that can be
    /// written to is used. With `sslmode=require`, or `verify-full`, which is the same, connections are made
    /// with TLS only, to a server whose certificate is for its host and signed by one of `sslrootcert` (a
    /// file in PEM), or of those that the system trusts; without it they are not secret.
    ///
    /// # Errors
    /// When it is not one, or certificates cannot be read. The text does not repeat it.
    pub fn parse(url: &str) -> Result<Self, JournalError> {
        let fault = |what: &str| JournalError::Unusable(format!("ledger.url: {what}"));
        let (url, options) = url.split_once('?').unwrap_or((url, ""));
        let mut root_file = None;
        let mut others = Vec::new();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslrootcert", file)) => root_file = Some(file),
                Some(("sslmode", "verify-full")) => others.push("sslmode=require"),
                _ => others.push(option),
            }
        }
        let mut config: Config = format!("{url}?{}", others.join("&"))
            .parse()
            .map_err(|_| fault("not of the form postgres://user:password@host:port/database?option=value"))?;
        if config.get_hosts().is_empty() {
            return Err(fault("names no host"));
        }
        if config.get_user().is_none() {
            return Err(fault("names no user"));
        }
        let tls = match config.get_ssl_mode() {
            SslMode::Require => Some(tls(root_file).map_err(|reason| fault(&reason))?),
            _ if root_file.is_some() => return Err(fault("sslrootcert without sslmode=require")),
            _ => None,
        };
        if tls.is_none() {
            config.ssl_mode(SslMode::Disable);
        }
        config.connect_timeout(limits::POSTGRES_TIMEOUT);
        config.tcp_user_timeout(limits::POSTGRES_TIMEOUT);
        config.keepalives_idle(limits::POSTGRES_KEEPALIVE);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.application_name("subsidy-pos");
        Ok(Self { config: Arc::new(config), tls })
    }

    /// The same, where a server that cannot be written to, such as a standby, will do.
    pub fn for_reading(&self) -> Self {
        let mut config = Config::clone(&self.config);
        config.target_session_attrs(TargetSessionAttrs::Any);
        Self { config: Arc::new(config), tls: self.tls.clone() }
    }

    /// A connection that gives up a statement after `statement` and waiting for a lock after `lock`. It is
    /// driven by the current runtime.
    ///
    /// # Errors
    /// When there is none to be had; the text says what to do.
    pub async fn connect(&self, statement: Duration, lock: Duration) -> Result<Client, JournalError> {
        let connecting = async {
            match self.tls.clone() {
                Some(tls) => self.config.connect(tls).await.map(drive),
                None => self.config.connect(NoTls).await.map(drive),
            }
        };
        let client = match tokio::time::timeout(limits::POSTGRES_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.unreachable(&error))?,
            Err(_) => return Err(JournalError::Unknown("PostgreSQL did not answer in time".into())),
        };
        // A client that is gone must not keep a lock for hours: the server too asks whether it is there.
        let (idle, answer) = (limits::POSTGRES_KEEPALIVE.as_secs(), limits::POSTGRES_TIMEOUT);
        let settings = format!(
            "SET statement_timeout = {}; SET lock_timeout = {}; SET tcp_keepalives_idle = {idle};
             SET tcp_keepalives_interval = {}; SET tcp_keepalives_count = 1; SET tcp_user_timeout = {}",
            statement.as_millis(),
            lock.as_millis(),
            answer.as_secs(),
            answer.as_millis()
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
            Some(
                &SqlState::CANNOT_CONNECT_NOW
                | &SqlState::ADMIN_SHUTDOWN
                | &SqlState::CRASH_SHUTDOWN
                | &SqlState::TOO_MANY_CONNECTIONS,
            ) => {
                return JournalError::Unknown(format!("PostgreSQL lets nobody in ({})", words(error)));
            }
            Some(_) => "see what PostgreSQL has logged".to_owned(),
            None if words(error).contains("TLS") => "the server needs a certificate for its host, signed by \
                one of sslrootcert in ledger.url or of those the system trusts"
                .to_owned(),
            None => {
                return JournalError::Unknown(format!(
                    "PostgreSQL cannot be reached ({}): start it, or correct host and port in ledger.url",
                    words(error)
                ));
            }
        };
        JournalError::Unusable(format!("PostgreSQL cannot be reached ({}): {what_to_do}", words(error)))
    }
}

/// Lets the current runtime drive a connection.
fn drive<S, T>((client, connection): (Client, Connection<S, T>)) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(error = words(&error), "a connection to PostgreSQL ended");
        }
    });
    client
}

/// Believes servers whose certificate is signed by one in `root_file`, or by one that the system trusts.
fn tls(root_file: Option<&str>) -> Result<MakeRustlsConnect, String> {
    let mut roots = RootCertStore::empty();
    match root_file {
        Some(file) => {
            let fault = |reason: String| format!("sslrootcert, {file}: {reason}");
            let found = CertificateDer::pem_file_iter(file).map_err(|error| fault(error.to_string()))?;
            for certificate in found {
                let certificate = certificate.map_err(|error| fault(error.to_string()))?;
                roots.add(certificate).map_err(|error| fault(error.to_string()))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err("there is no certificate to believe servers by; name a file in sslrootcert".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
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
            "postgres://u:a-secret@host/database?sslmode=require&sslrootcert=/no/such/file",
            "postgres://u:a-secret@host/database?sslrootcert=/no/such/file",
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
