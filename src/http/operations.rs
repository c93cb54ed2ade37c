//! For those who operate the service: does it live, may it be used, what has it counted.

use std::sync::Arc;

use actix_web::http::StatusCode;
use arc_swap::ArcSwapOption;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Everyone};
use super::problem::Problem;
use super::{App, Reply};

/// Whether the process may be used, and how its journal is kept.
#[derive(Debug)]
pub struct Standing {
    unready: ArcSwapOption<String>,
    single_copy: bool,
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
    /// A process that may be used. Outside development, operators are told of a single copy.
    pub const fn new(dev: bool) -> Self {
        Self { unready: ArcSwapOption::const_empty(), single_copy: !dev, audit: ArcSwapOption::const_empty() }
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

    /// From now on it may not be used, because of `reason`; what reaches it all the same is still done.
    pub fn set_unready(&self, reason: impl Into<String>) {
        self.unready.store(Some(Arc::new(reason.into())));
    }

    /// It is being stopped: whoever distributes requests should send no more.
    pub fn stop(&self) {
        self.set_unready("the process is stopping");
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
    #[schema(value_type = Option<String>)]
    reason: Option<Arc<String>>,
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

/// What a journal in a file of one machine comes to.
const SINGLE_COPY: &str = "there is a single copy of the journal";

fn readiness(app: &App) -> (StatusCode, Readiness) {
    let silent = || (!app.ledger.is_healthy()).then(|| Arc::new("the ledger does not answer".to_owned()));
    let reason = app.standing.unready.load_full().or_else(silent);
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
        notes: if app.standing.single_copy { vec![SINGLE_COPY] } else { Vec::new() },
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
    metrics.shield_degraded.set(u64::from(app.shield.is_degraded()));
    Ok(Reply::new(StatusCode::OK, OPEN_METRICS, metrics.render().into()))
}
