//! For those who operate the service: does it live, may it be used, what has it counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::http::StatusCode;
use arc_swap::ArcSwapOption;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Everyone};
use super::problem::Problem;
use super::{App, Reply};
use crate::ledger::{Command, Outcome};

/// Whether the process may be used, and how its journal is kept.
#[derive(Debug)]
pub struct Standing {
    stopping: AtomicBool,
    unready: ArcSwapOption<String>,
    single_copy: AtomicBool,
    head_lost: AtomicBool,
    is_dev: bool,
    audit: ArcSwapOption<Audited>,
}

/// What the last audit came to.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Audited {
    /// The journal position up to which state, book and journal agreed; null where none has yet.
    pub position: Option<u64>,
    /// What differs, since that position; null where nothing does. The log says it exactly.
    pub difference: Option<String>,
}

impl Standing {
    /// A process that has not been looked at yet. Outside development, operators are told of a single copy.
    pub fn new(dev: bool) -> Self {
        Self {
            stopping: AtomicBool::new(false),
            unready: ArcSwapOption::from_pointee("the process is starting".to_owned()),
            single_copy: AtomicBool::new(false),
            head_lost: AtomicBool::new(false),
            is_dev: dev,
            audit: ArcSwapOption::const_empty(),
        }
    }

    /// State, book and journal agree up to `position`.
    pub fn audited(&self, position: u64) {
        self.audit.store(Some(Arc::new(Audited { position: Some(position), difference: None })));
    }

    /// They do not.
    pub fn found(&self, difference: String) {
        let position = self.audit.load().as_ref().and_then(|audited| audited.position);
        self.audit.store(Some(Arc::new(Audited { position, difference: Some(difference) })));
    }

    /// Whether the process differs from what it should be, and in what; what reaches it all the same is
    /// still done.
    pub fn set_unready(&self, reason: Option<String>) {
        let told = self.unready.load();
        if reason.as_ref() != told.as_deref() {
            match &reason {
                Some(reason) => tracing::error!(reason, "unready"),
                None => tracing::info!("ready"),
            }
            self.unready.store(reason.map(Arc::new));
        }
    }

    /// Whether there is a single copy of the journal.
    pub fn set_single_copy(&self, is_single: bool) {
        self.single_copy.store(is_single && !self.is_dev, Ordering::Relaxed);
    }

    /// Whether the last signed head could not be kept.
    pub fn set_head_lost(&self, is_lost: bool) {
        self.head_lost.store(is_lost, Ordering::Relaxed);
    }

    /// What operators should know of a process that may be used.
    fn notes(&self) -> Vec<&'static str> {
        let notes = [(&self.single_copy, SINGLE_COPY), (&self.head_lost, HEAD_LOST)];
        notes.into_iter().filter(|(holds, _)| holds.load(Ordering::Relaxed)).map(|(_, note)| note).collect()
    }

    /// It is being stopped: whoever distributes requests should send no more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Whether the process lives.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `alive`.
    status: &'static str,
    /// The running version.
    version: &'static str,
}

/// Whether the process may be used.
#[derive(Debug, Serialize, ToSchema)]
struct Readiness {
    /// `ready` or `unready`.
    status: &'static str,
    /// What is the matter; null while it is ready.
    reason: Option<String>,
    /// The journal.
    journal: Place,
    /// The book.
    book: Place,
    /// The shield.
    shield: ShieldState,
    /// Whether state, book and journal agree.
    #[schema(value_type = Audited)]
    audit: Arc<Audited>,
    /// What operators should know all the same.
    notes: Vec<&'static str>,
}

/// How far something is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReadinessPlace)]
struct Place {
    /// The journal position up to which it is true.
    position: u64,
}

/// What keeps floods away.
#[derive(Debug, Serialize, ToSchema)]
struct ShieldState {
    /// `local` or `redis`.
    used: &'static str,
    /// Whether something it shares with other processes is away, so that local limits stand alone.
    degraded: bool,
}

/// What a process's state comes to.
#[derive(Debug, Serialize, ToSchema)]
struct StateDigest {
    /// The journal position.
    position: u64,
    /// SHA-256 in hexadecimal digits.
    digest: String,
}

/// What a journal in a file, or in a PostgreSQL without a synchronous standby, comes to.
const SINGLE_COPY: &str = "there is a single copy of the journal";
/// What a head file comes to whose disk is full, or that may not be written.
const HEAD_LOST: &str =
    "the signed head cannot be kept: a journal that is cut short later might not be noticed";

fn readiness(app: &App) -> (StatusCode, Readiness) {
    let reason = if app.standing.is_stopping() {
        Some("the process is stopping".to_owned())
    } else {
        let differs = app.standing.unready.load();
        differs.as_deref().cloned().or_else(|| app.ledger.trouble().map(str::to_owned))
    };
    let (code, status) = match reason {
        None => (StatusCode::OK, "ready"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unready"),
    };
    let readiness = Readiness {
        status,
        reason,
        journal: Place { position: app.ledger.position() },
        book: Place { position: app.book.position() },
        shield: ShieldState { used: app.shield.name(), degraded: app.shield.is_degraded() },
        audit: app.standing.audit.load_full().unwrap_or_default(),
        notes: app.standing.notes(),
    };
    (code, readiness)
}

/// Is it alive?
///
/// Answers as long as the process lives.
#[utoipa::path(get, path = "/healthz", tag = "Operations", security(()), responses(
    (status = 200, description = "It lives", body = Health),
))]
pub async fn healthz(_: Call<Everyone>) -> Result<Reply, Problem> {
    Reply::ok(&Health { status: "alive", version: env!("CARGO_PKG_VERSION") })
}

/// Is it ready?
///
/// Whether the journal is folded and the ledger answers; which shield is used and whether it is degraded.
#[utoipa::path(get, path = "/readyz", tag = "Operations", security(()), responses(
    (status = 200, description = "It may be used", body = Readiness),
    (status = 503, description = "It may not", body = Readiness),
))]
pub async fn readyz(call: Call<Everyone>) -> Result<Reply, Problem> {
    let (status, readiness) = readiness(&call.app);
    Reply::json(status, &readiness)
}

/// What does its state come to?
///
/// A digest of everything it decides by, as of a journal position: the same on every process at the same
/// position. Takes time in proportion to the state, and decides nothing meanwhile. On the operations
/// listener only.
#[utoipa::path(get, path = "/digest", tag = "Operations", security(()), responses(
    (status = 200, description = "The digest", body = StateDigest),
))]
pub async fn digest(call: Call<Everyone>) -> Result<Reply, Problem> {
    match call.app.ledger.submit(Command::Digest).await? {
        Outcome::Digest { position, digest } => {
            Reply::ok(&StateDigest { position, digest: digest.to_string() })
        }
        _ => Err(Problem::internal("the outcome is of another kind than the command")),
    }
}

/// What has it counted?
///
/// Metrics for Prometheus. On the operations listener only.
#[utoipa::path(get, path = "/metrics", tag = "Operations", security(()), responses(
    (status = 200, description = "Metrics", body = String, content_type = "application/openmetrics-text"),
))]
pub async fn metrics(call: Call<Everyone>) -> Result<Reply, Problem> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (app, metrics) = (&call.app, &call.app.metrics);
    // Levels are looked at when somebody asks; nothing counts them on the way.
    metrics.journal_position.set(app.ledger.position());
    metrics.book_position.set(app.book.position());
    metrics.writer_queue_commands.set(app.ledger.queued() as u64);
    metrics.ready.set(u64::from(readiness(app).0 == StatusCode::OK));
    metrics.set_shield(app.shield.name(), app.shield.is_degraded());
    Ok(Reply::new(StatusCode::OK, OPEN_METRICS, metrics.render().into()))
}
