//! Logs and metrics. Logs go to standard error, one event a line, never with personal data.
//! Metrics are counted through handles resolved beforehand: an observation neither allocates nor
//! looks anything up by name.

use std::fmt::Write as _;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde::Deserialize;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The least severe events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What an operator must act on.
    Error,
    /// Also what an operator should look at.
    Warn,
    /// Also starts, stops, reloads and activations.
    Info,
    /// Also what helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line, for collectors.
    Json,
    /// Text for people.
    Text,
}

/// Sends this process's events to standard error from now on.
///
/// # Errors
/// When a subscriber was installed before.
pub fn init(level: LogLevel, format: LogFormat) -> io::Result<()> {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Libraries tell their warnings only: at finer levels they repeat what callers send.
    // What is wrong with bytes that are no request is their sender's business: whoever can reach the port
    // could fill the log with it.
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("actix_http", LevelFilter::OFF)
        .with_target("subsidy_pos", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => lines.with_target(false).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(targets)).try_init().map_err(io::Error::other)
}

/// Upper ends of the buckets for durations, in seconds.
const SECONDS: [f64; 13] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Upper ends of the buckets for entries in an append.
const ENTRIES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The statuses this service answers with; any other one is counted under `other`.
const STATUSES: [(u16, &str); 15] = [
    (200, "200"),
    (201, "201"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (409, "409"),
    (413, "413"),
    (415, "415"),
    (422, "422"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
];
const STATUS_SLOTS: usize = STATUSES.len() + 1;

type RequestLabels = [(&'static str, &'static str); 2];
type Requests = Family<RequestLabels, Histogram, Seconds>;
type CodeLabels = [(&'static str, &'static str); 1];
type ShieldLabels = [(&'static str, &'static str); 1];

/// A gauge of whole numbers.
pub type Level = Gauge<u64, AtomicU64>;

#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The histograms of one route by status, each made when its status is first answered, so that
/// statuses a route never gives take no lines.
struct Route {
    name: &'static str,
    by_status: [OnceLock<Histogram>; STATUS_SLOTS],
}

/// Every metric of this process. The handles are cheap to clone and to use.
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    routes: Box<[Route]>,
    refusals: Box<[Counter]>,
    /// Entries appended at once.
    pub writer_batch_entries: Histogram,
    /// Seconds until one append was durable.
    pub journal_append_seconds: Histogram,
    /// Commands waiting for the writer.
    pub writer_queue_commands: Level,
    /// 1 while the process may be used, else 0.
    pub ready: Level,
    /// Position of the last durable entry this process knows.
    pub journal_position: Level,
    /// Position up to which the book is true.
    pub book_position: Level,
    book_lag_entries: Level,
    /// Position up to which the last audit found state, book and journal to agree.
    pub audit_position: Level,
    /// 1 from an audit that found a difference until one that finds none, else 0.
    pub audit_difference: Level,
    /// Position of the last signed head that was kept; 0 while there is none.
    pub head_position: Level,
    /// Position of the snapshot that the next start may be from; 0 while there is none.
    pub snapshot_position: Level,
    snapshot_lag_entries: Level,
    /// Seconds it took to take the last snapshot, beside everything else.
    pub snapshot_seconds: Gauge<f64, AtomicU64>,
    /// Seconds it took to open the journal when the process started.
    pub journal_open_seconds: Gauge<f64, AtomicU64>,
    /// 1 while the shared shield is away and local limits stand alone, else 0.
    shield_degraded: Level,
    shield: Family<ShieldLabels, Level>,
    /// Requests answered 429.
    pub rate_limited: Counter,
    /// JWKS files that could not be read or understood.
    pub jwks_reload_failures: Counter,
    /// 1 while the keys in use are not those of the JWKS file, because it is at fault; else 0.
    pub jwks_stale: Level,
}

impl Metrics {
    /// Metrics for these routes and refusal codes; both are named by their place in the slice
    /// when something is observed.
    pub fn new(routes: &[&'static str], codes: &[&'static str]) -> Self {
        let mut registry = Registry::with_prefix("subsidy_pos");
        let requests = Requests::new_with_constructor(Seconds);
        let refusals = Family::<CodeLabels, Counter>::default();
        let metrics = Self {
            routes: routes
                .iter()
                .map(|name| Route { name, by_status: [const { OnceLock::new() }; STATUS_SLOTS] })
                .collect(),
            refusals: codes.iter().map(|code| refusals.get_or_create_owned(&[("code", code)])).collect(),
            writer_batch_entries: Histogram::new(ENTRIES),
            journal_append_seconds: Histogram::new(SECONDS),
            writer_queue_commands: Level::default(),
            ready: Level::default(),
            journal_position: Level::default(),
            book_position: Level::default(),
            book_lag_entries: Level::default(),
            audit_position: Level::default(),
            audit_difference: Level::default(),
            head_position: Level::default(),
            snapshot_position: Level::default(),
            snapshot_lag_entries: Level::default(),
            snapshot_seconds: Gauge::default(),
            journal_open_seconds: Gauge::default(),
            shield_degraded: Level::default(),
            shield: Family::default(),
            rate_limited: Counter::default(),
            jwks_reload_failures: Counter::default(),
            jwks_stale: Level::default(),
            requests: requests.clone(),
            registry: Registry::default(),
        };
        registry.register(
            "build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time from request to answer",
            Unit::Seconds,
            requests,
        );
        registry.register("refusals", "Requests refused, by code", refusals);
        registry.register(
            "writer_batch_entries",
            "Entries appended at once",
            metrics.writer_batch_entries.clone(),
        );
        registry.register_with_unit(
            "journal_append",
            "Time until one append was durable",
            Unit::Seconds,
            metrics.journal_append_seconds.clone(),
        );
        let levels = [
            ("writer_queue_commands", "Commands waiting for the writer", &metrics.writer_queue_commands),
            ("ready", "1 while the process may be used", &metrics.ready),
            ("journal_position", "Position of the last durable entry", &metrics.journal_position),
            ("book_position", "Position up to which the book is true", &metrics.book_position),
            ("book_lag_entries", "Entries the book is behind the journal", &metrics.book_lag_entries),
            (
                "audit_position",
                "Position up to which state, book and journal agreed",
                &metrics.audit_position,
            ),
            ("audit_difference", "1 while the last audit found a difference", &metrics.audit_difference),
            ("head_position", "Position of the last signed head that was kept", &metrics.head_position),
            ("snapshot_position", "Position of the last snapshot", &metrics.snapshot_position),
            (
                "snapshot_lag_entries",
                "Entries that a start from the last snapshot would fold",
                &metrics.snapshot_lag_entries,
            ),
            ("shield_degraded", "1 while local limits stand alone", &metrics.shield_degraded),
            ("jwks_stale", "1 while the JWKS file is at fault and older keys are used", &metrics.jwks_stale),
        ];
        for (name, help, level) in levels {
            registry.register(name, help, level.clone());
        }
        let durations = [
            ("snapshot_duration", "Time it took to take the last snapshot", &metrics.snapshot_seconds),
            ("journal_open_duration", "Time it took to open the journal", &metrics.journal_open_seconds),
        ];
        for (name, help, seconds) in durations {
            registry.register_with_unit(name, help, Unit::Seconds, seconds.clone());
        }
        registry.register("shield", "1 for the shield in use", metrics.shield.clone());
        registry.register("rate_limited", "Requests answered 429", metrics.rate_limited.clone());
        registry.register(
            "jwks_reload_failures",
            "JWKS files that could not be read or understood",
            metrics.jwks_reload_failures.clone(),
        );
        Self { registry, ..metrics }
    }

    /// Counts one answered request. `route` is the place of its route in the list given to
    /// [`Metrics::new`]; one beyond it is not counted.
    pub fn observe_request(&self, route: usize, status: u16, elapsed: Duration) {
        let Some(route) = self.routes.get(route) else { return };
        let known = STATUSES.iter().position(|(known, _)| *known == status);
        let Some(slot) = route.by_status.get(known.unwrap_or(STATUSES.len())) else { return };
        slot.get_or_init(|| {
            let label = known.and_then(|at| STATUSES.get(at)).map_or("other", |(_, label)| label);
            self.requests.get_or_create_owned(&[("route", route.name), ("status", label)])
        })
        .observe(elapsed.as_secs_f64());
    }

    /// Counts one refusal. `code` is the place of its code in the list given to
    /// [`Metrics::new`]; one beyond it is not counted.
    pub fn observe_refusal(&self, code: usize) {
        if let Some(counter) = self.refusals.get(code) {
            counter.inc();
        }
    }

    /// Says which shield is in use, and whether local limits stand alone.
    pub fn set_shield(&self, name: &'static str, is_degraded: bool) {
        self.shield.get_or_create(&[("used", name)]).set(1);
        self.shield_degraded.set(u64::from(is_degraded));
    }

    /// All metrics in the text format of Prometheus (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let position = self.journal_position.get();
        self.book_lag_entries.set(position.saturating_sub(self.book_position.get()));
        self.snapshot_lag_entries.set(position.saturating_sub(self.snapshot_position.get()));
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // Writing to a string does not fail; a scrape with nothing in it would look like health.
            text.clear();
            let _ = writeln!(text, "# metrics could not be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&["/v1/claims", "/healthz"], &["forbidden", "fund-exhausted"])
    }

    #[test]
    fn a_request_is_counted_under_its_route_and_status() {
        let metrics = metrics();
        metrics.observe_request(0, 201, Duration::from_millis(3));
        metrics.observe_request(0, 201, Duration::from_micros(10));
        metrics.observe_request(1, 418, Duration::ZERO);
        metrics.observe_request(7, 200, Duration::ZERO);
        let text = metrics.render();
        let count = "subsidy_pos_http_request_duration_seconds_count";
        assert!(text.contains(&format!("{count}{{route=\"/v1/claims\",status=\"201\"}} 2")), "{text}");
        assert!(text.contains(&format!("{count}{{route=\"/healthz\",status=\"other\"}} 1")), "{text}");
        assert_eq!(text.matches(count).count(), 2, "only what was answered takes lines: {text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn refusals_are_counted_by_code_from_the_start() {
        let metrics = metrics();
        metrics.observe_refusal(1);
        metrics.observe_refusal(99);
        let text = metrics.render();
        assert!(text.contains("subsidy_pos_refusals_total{code=\"fund-exhausted\"} 1"), "{text}");
        assert!(text.contains("subsidy_pos_refusals_total{code=\"forbidden\"} 0"), "{text}");
    }

    #[test]
    fn the_books_lag_is_counted_against_the_journal_and_never_below_zero() {
        let metrics = metrics();
        metrics.journal_position.set(12);
        metrics.book_position.set(5);
        assert!(metrics.render().contains("subsidy_pos_book_lag_entries 7"));
        metrics.book_position.set(13);
        assert!(metrics.render().contains("subsidy_pos_book_lag_entries 0"));
    }

    #[test]
    fn the_shield_in_use_is_named_and_told_to_be_degraded() {
        let metrics = metrics();
        metrics.set_shield("redis", true);
        let text = metrics.render();
        assert!(text.contains("\nsubsidy_pos_shield{used=\"redis\"} 1\n"), "{text}");
        assert!(text.contains("\nsubsidy_pos_shield_degraded 1\n"), "{text}");
    }

    #[test]
    fn everything_an_operator_watches_is_there_before_the_first_request() {
        let text = metrics().render();
        for name in [
            "writer_batch_entries_count",
            "journal_append_seconds_count",
            "writer_queue_commands",
            "ready",
            "journal_position",
            "book_position",
            "audit_position",
            "audit_difference",
            "head_position",
            "snapshot_position",
            "snapshot_lag_entries",
            "snapshot_duration_seconds",
            "journal_open_duration_seconds",
            "shield_degraded",
            "rate_limited_total",
            "jwks_reload_failures_total",
            "jwks_stale",
            "build_info",
        ] {
            assert!(text.contains(&format!("\nsubsidy_pos_{name}")), "{name} is missing: {text}");
        }
    }
}
