//! The HTTP API: the route table, and what every request and answer goes through.
//!
//! A handler takes a [`Call`], whose type says who may make it and what it says, makes one call to the
//! core and answers with a [`Reply`] or a [`Problem`]. No handler is reached, and nothing is answered,
//! in any other way than through [`serve`].

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::{Payload, Server};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, HttpServer, guard};
use serde::Serialize;

use self::extract::{Admissions, Body, Call, Hearer, Role, Who};
use self::problem::{Code, Problem};
use crate::book::Book;
use crate::json::{self as json_text, BytesAs, Unwritable};
use crate::ledger::Ledger;
use crate::limits;
use crate::secrets::{HashKeys, SigningKey};
use crate::shield::Shield;
use crate::telemetry::Metrics;

#[macro_use]
mod table;

pub mod claims;
mod connection;
pub mod extract;
pub mod funds;
pub mod journal;
pub mod json;
pub mod openapi;
pub mod operations;
pub mod page;
pub mod pages;
pub mod prepare;
pub mod problem;
pub mod programmes;
pub mod quotes;
pub mod sale;
pub mod totals;
pub mod wire;

routes! {
    // Claims
    Api POST "/v1/claims" claims::make;
    Api GET "/v1/claims" claims::list;
    Api POST "/v1/claims/batch" claims::batch;
    Api POST "/v1/claims/cancel" claims::cancel;
    Api GET "/v1/claims/{id}" claims::read;
    Api POST "/v1/claims/{id}/redeem" claims::redeem;
    Api POST "/v1/claims/{id}/release" claims::release;
    Api POST "/v1/claims/{id}/return" claims::give_back;
    Api POST "/v1/quotes" quotes::quote;
    // Programmes
    Api GET "/v1/programmes" programmes::list;
    Api GET "/v1/programmes/{id}" programmes::read;
    // Regulators
    Api POST "/v1/funds" funds::open;
    Api GET "/v1/funds" funds::list;
    Api GET "/v1/funds/{id}" funds::read;
    Api POST "/v1/funds/{id}/adjust" funds::adjust;
    Api POST "/v1/funds/{id}/freeze" funds::freeze;
    Api POST "/v1/funds/{id}/unfreeze" funds::unfreeze;
    Api GET "/v1/totals" totals::totals;
    Api GET "/v1/journal" journal::entries;
    Api GET "/v1/journal/head" journal::head;
    // Operations
    Both GET "/healthz" operations::healthz;
    Both GET "/readyz" operations::readyz;
    Operations GET "/digest" operations::digest;
    Operations GET "/metrics" operations::metrics;
    // For people
    Api GET "/openapi.json" openapi::document;
    Api GET "/docs" pages::docs;
    Api GET "/problems/" pages::problems;
    Api GET "/problems/{id}" pages::problem;
}

/// Everything the service is made of; cheap to clone.
#[derive(Clone)]
pub struct App {
    /// Decides.
    pub ledger: Ledger,
    /// Answers questions.
    pub book: Arc<dyn Book>,
    /// Knows callers.
    pub verifier: Arc<crate::auth::Verifier>,
    /// Hash document numbers, and seal cursors.
    pub hash_keys: Arc<HashKeys>,
    /// Signs heads of the journal.
    pub signing_key: Arc<SigningKey>,
    /// Keeps floods away.
    pub shield: Arc<dyn Shield>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Whether it may be used, and how it is kept.
    pub standing: Arc<operations::Standing>,
}

/// Where a route is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// Where callers come.
    Api,
    /// Where operators come.
    Operations,
    /// On both.
    Both,
}

/// A row of the route table.
pub struct Route {
    /// Where it is served.
    pub listener: Listener,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path, with `{id}` for what names one thing.
    pub path: &'static str,
    /// Who may.
    pub who: Who,
    /// Whether an `Idempotency-Key` is required.
    pub is_keyed: bool,
    #[cfg(test)]
    asked: fn() -> Vec<json::Asked>,
    mount: fn(&Rc<App>, usize) -> actix_web::Route,
}

/// What a handler answers.
pub struct Reply {
    status: StatusCode,
    content_type: &'static str,
    policy: Option<&'static str>,
    location: Option<String>,
    replayed: bool,
    body: Bytes,
}

impl Reply {
    /// 200 with JSON.
    ///
    /// # Errors
    /// `internal-error` where `value` cannot be written.
    pub fn ok(value: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::OK, value)
    }

    /// 201 with JSON.
    ///
    /// # Errors
    /// As [`Reply::ok`].
    pub fn created(value: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::CREATED, value)
    }

    /// JSON with another status.
    ///
    /// # Errors
    /// As [`Reply::ok`].
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, Problem> {
        Ok(Self::new(status, "application/json", written(value).map_err(Problem::internal)?))
    }

    /// A page for people. `policy` is its content security policy.
    pub fn html(status: StatusCode, policy: &'static str, body: impl Into<Bytes>) -> Self {
        Self { policy: Some(policy), ..Self::new(status, "text/html; charset=utf-8", body.into()) }
    }

    /// Anything else.
    pub fn new(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        Self { status, content_type, policy: None, location: None, replayed: false, body }
    }

    /// The same, saying at which path what was made can be read.
    pub fn located(self, path: String) -> Self {
        Self { location: Some(path), ..self }
    }

    /// The same, saying whether it repeats an answer given before.
    pub fn replayed(self, replayed: bool) -> Self {
        Self { replayed, ..self }
    }
}

/// Bytes for which an answer has room from the start; a claim has fewer.
const REPLY_BYTES_TYPICAL: usize = 1536;

/// What every answer that is JSON is written with.
fn written(value: &impl Serialize) -> Result<Bytes, Unwritable> {
    let mut text = Vec::with_capacity(REPLY_BYTES_TYPICAL);
    json_text::write(&mut text, BytesAs::Hex, value)?;
    Ok(text.into())
}

/// Who may make the calls of a handler.
const fn who<R: Role, B: Body, H, F>(_: &H) -> Who
where
    H: Fn(Call<R, B>) -> F,
{
    R::WHO
}

/// Whether the calls of a handler need an idempotency key.
const fn is_keyed<R: Role, B: Body, H, F>(_: &H) -> bool
where
    H: Fn(Call<R, B>) -> F,
{
    B::IS_KEYED
}

/// What the calls of a handler are read for.
#[cfg(test)]
fn asked<R: Role, B: Body, H, F>(_: &H) -> Vec<json::Asked>
where
    H: Fn(Call<R, B>) -> F,
{
    B::asked()
}

fn mount<R: Role, B: Body, H, F>(app: &Rc<App>, index: usize, method: &str, handler: H) -> actix_web::Route
where
    H: Fn(Call<R, B>) -> F + Copy + 'static,
    F: Future<Output = Result<Reply, Problem>> + 'static,
{
    let app = Rc::clone(app);
    let serve = move |request, payload: web::Payload| {
        serve(Rc::clone(&app), index, handler, request, payload.into_inner())
    };
    match method {
        "GET" => actix_web::Route::new().guard(guard::Any(guard::Get()).or(guard::Head())).to(serve),
        _ => actix_web::Route::new().guard(guard::Post()).to(serve),
    }
}

/// One request, from its arrival to its answer.
async fn serve<R: Role, B: Body, H, F>(
    app: Rc<App>,
    index: usize,
    handler: H,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse
where
    H: Fn(Call<R, B>) -> F,
    F: Future<Output = Result<Reply, Problem>>,
{
    let begun = Instant::now();
    connection::has_come(&request, begun);
    let hearer = Hearer::of(request.headers());
    let mut admissions = Admissions::new();
    let result = match extract::call::<R, B>(&app, request, payload, hearer, &mut admissions).await {
        Ok(call) => handler(call).await,
        Err(problem) => Err(problem),
    };
    let response = respond(&app, &hearer, &admissions, result);
    let elapsed = begun.elapsed();
    app.metrics.observe_request(index, response.status().as_u16(), elapsed);
    log(&hearer, index, &response, elapsed);
    response
}

/// One line for each request, for whoever looks for one; nothing of what was said in it.
fn log(hearer: &Hearer, index: usize, response: &HttpResponse, elapsed: Duration) {
    tracing::debug!(
        request_id = hearer.request_id.as_str(),
        route = ROUTE_NAMES.get(index).copied().unwrap_or_default(),
        status = response.status().as_u16(),
        elapsed_us = elapsed.as_micros() as u64
    );
}

/// What has no route: the path is unknown, or known for other methods.
async fn unrouted(app: Rc<App>, allow: Option<Rc<str>>, request: HttpRequest) -> HttpResponse {
    connection::has_come(&request, Instant::now());
    let hearer = Hearer::of(request.headers());
    let result = match allow {
        Some(allow) if request.method() == Method::OPTIONS => {
            let reply = Reply::new(StatusCode::NO_CONTENT, "", Bytes::new());
            let mut response = respond(&app, &hearer, &Admissions::new(), Ok(reply));
            set(&mut response, header::ALLOW, allow.to_string());
            return response;
        }
        Some(allow) => Err(Problem::new(Code::MethodNotAllowed).with_allow(allow)),
        None => Err(Code::NotFound.into()),
    };
    let response = respond(&app, &hearer, &Admissions::new(), result);
    app.metrics.observe_request(ROUTES.len(), response.status().as_u16(), Duration::ZERO);
    response
}

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Makes an answer of what came of a request.
fn respond(
    app: &App,
    hearer: &Hearer,
    admissions: &Admissions,
    result: Result<Reply, Problem>,
) -> HttpResponse {
    let mut response = match result {
        Ok(reply) => answer(reply),
        Err(problem) => refusal(app, hearer, &problem),
    };
    set(&mut response, REQUEST_ID.clone(), Bytes::copy_from_slice(hearer.request_id.as_bytes()));
    if app.standing.is_stopping() {
        // The next request goes elsewhere.
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    if !admissions.is_empty() {
        let (policy, standing) = rate_limits(admissions);
        set(&mut response, RATE_LIMIT_POLICY.clone(), policy);
        set(&mut response, RATE_LIMIT.clone(), standing);
    }
    response
}

fn answer(reply: Reply) -> HttpResponse {
    let mut response = HttpResponse::with_body(reply.status, reply.body).map_into_boxed_body();
    if response.status() != StatusCode::NO_CONTENT {
        set_static(&mut response, header::CONTENT_TYPE, reply.content_type);
    }
    match reply.policy {
        None => set_static(&mut response, header::CACHE_CONTROL, "no-store"),
        Some(policy) => {
            set_static(&mut response, header::CONTENT_SECURITY_POLICY, policy);
            set_static(&mut response, header::CACHE_CONTROL, "public, max-age=300");
            set_static(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
            set_static(&mut response, header::X_FRAME_OPTIONS, "DENY");
            set_static(&mut response, header::REFERRER_POLICY, "no-referrer");
        }
    }
    if reply.status == StatusCode::SERVICE_UNAVAILABLE {
        set_static(&mut response, header::RETRY_AFTER, "1");
    }
    if let Some(path) = reply.location {
        set(&mut response, header::LOCATION, path);
    }
    if reply.replayed {
        set_static(&mut response, REPLAYED.clone(), "true");
    }
    response
}

/// Counts a refusal, and logs what its caller is not told.
fn note(app: &App, hearer: &Hearer, problem: &Problem) {
    app.metrics.observe_refusal(problem.code() as usize);
    if problem.code() == Code::RateLimited {
        app.metrics.rate_limited.inc();
    }
    // The caller has the rest; the cause stays here.
    if let Some(cause) = problem.cause() {
        let (code, request_id) = (problem.code().row().name, hearer.request_id.as_str());
        match problem.status() {
            500.. => tracing::error!(code, request_id, cause, "a request failed"),
            _ => tracing::trace!(code, request_id, cause, "a request was refused"),
        }
    }
}

fn refusal(app: &App, hearer: &Hearer, problem: &Problem) -> HttpResponse {
    note(app, hearer, problem);
    let body = problem.body(hearer.language, hearer.request_id.as_str());
    let body = written(&body).unwrap_or_default();
    let status = StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::with_body(status, body).map_into_boxed_body();
    set_static(&mut response, header::CONTENT_TYPE, "application/problem+json");
    set_static(&mut response, header::CONTENT_LANGUAGE, hearer.language.tag());
    set_static(&mut response, header::CACHE_CONTROL, "no-store");
    if let Some(seconds) = problem.retry_after_s() {
        set(&mut response, header::RETRY_AFTER, seconds.to_string());
    }
    if let Some(methods) = problem.allow() {
        set(&mut response, header::ALLOW, methods.to_owned());
    }
    if let Some(challenge) = problem.challenge() {
        set_static(&mut response, header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers): each limit by the name of
/// its class; the requests of a window, how many may come at once, how many more may now, and in how
/// many seconds all of them may again.
fn rate_limits(admissions: &Admissions) -> (String, String) {
    let (mut policies, mut standing) = (String::with_capacity(64), String::with_capacity(64));
    for (class, admission) in admissions {
        let separator = if policies.is_empty() { "\"" } else { ", \"" };
        // Every answer has these: no formatter.
        let put = |text: &mut String, [first, second]: [(&str, u32); 2]| {
            text.extend([separator, class, "\"", first.0, itoa::Buffer::new().format(first.1)]);
            text.extend([second.0, itoa::Buffer::new().format(second.1)]);
        };
        let limit = admission.limit;
        put(&mut policies, [(";q=", limit.per_second), (";w=1;burst=", limit.burst)]);
        put(&mut standing, [(";r=", admission.remaining), (";t=", admission.reset_s)]);
    }
    (policies, standing)
}

fn set(response: &mut HttpResponse, name: HeaderName, value: impl Into<Bytes>) {
    if let Ok(value) = HeaderValue::from_maybe_shared(value.into()) {
        response.headers_mut().insert(name, value);
    }
}

fn set_static(response: &mut HttpResponse, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

// --- Servers ---

/// Mounts the routes of one listener: every path takes its own methods, tells them to `OPTIONS`, and
/// refuses any other.
fn configure(service: &mut web::ServiceConfig, app: &Rc<App>, listener: Listener) {
    let here = |route: &&Route| route.listener == listener || route.listener == Listener::Both;
    // Paths are tried in order, and one that names a thing by a regular expression: whole ones come first.
    let (whole, naming): (Vec<&str>, Vec<&str>) =
        ROUTES.iter().filter(here).map(|route| route.path).partition(|path| !path.contains('{'));
    let mut mounted: Vec<&str> = Vec::new();
    for path in whole.into_iter().chain(naming) {
        if mounted.contains(&path) {
            continue;
        }
        mounted.push(path);
        let mut resource = web::resource(path);
        let mut allow = String::from("OPTIONS");
        for (index, route) in ROUTES.iter().enumerate().filter(|(_, route)| here(route) && route.path == path)
        {
            resource = resource.route((route.mount)(app, index));
            allow.push_str(if route.method == "GET" { ", GET, HEAD" } else { ", POST" });
        }
        let (app, allow) = (Rc::clone(app), Rc::<str>::from(allow));
        let other = move |request| unrouted(Rc::clone(&app), Some(Rc::clone(&allow)), request);
        service.service(resource.default_service(web::to(other)));
    }
    let app = Rc::clone(app);
    service.default_service(web::to(move |request| unrouted(Rc::clone(&app), None, request)));
}

/// Serves the API on one listener and operations on the other, until the servers' handles stop them.
/// Signals are left to the caller.
///
/// # Errors
/// When a listener cannot be used.
pub fn servers(
    app: &App,
    api: TcpListener,
    operations: TcpListener,
    workers: usize,
) -> io::Result<(Server, Server)> {
    Ok((server(app, Listener::Api, api, workers)?, server(app, Listener::Operations, operations, 1)?))
}

fn server(app: &App, listener: Listener, socket: TcpListener, workers: usize) -> io::Result<Server> {
    let app = app.clone();
    let factory = move || {
        let app = Rc::new(app.clone());
        actix_web::App::new().configure(|service| configure(service, &app, listener))
    };
    let server = HttpServer::new(factory)
        .workers(workers)
        .max_connections(limits::CONNECTIONS_MAX)
        .on_connect(connection::watch)
        .keep_alive(limits::KEEP_ALIVE)
        .client_request_timeout(limits::REQUEST_TIMEOUT)
        .client_disconnect_timeout(limits::DISCONNECT_TIMEOUT)
        .shutdown_timeout(limits::SHUTDOWN_TIMEOUT.as_secs())
        .disable_signals()
        .listen(socket)?;
    Ok(server.run())
}
