//! Callers of the HTTP interface.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Sale, fresh_key};

/// Every code of the error table, each with the statuses it may come with. A problem with any other code
/// fails the test that meets it, and each of these has a page.
pub const CODES: &[(&str, u16)] = &[
    ("overloaded", 503),
    ("ledger-unavailable", 503),
    ("not-found", 404),
    ("method-not-allowed", 405),
    ("unauthenticated", 401),
    ("forbidden", 403),
    ("rate-limited", 429),
    ("invalid-request", 400),
    ("idempotency-key-missing", 400),
    ("idempotency-key-invalid", 400),
    ("request-timeout", 408),
    ("too-large", 413),
    ("unsupported-media-type", 415),
    ("request-in-progress", 409),
    ("idempotency-key-reused", 422),
    ("cancelled-before-arrival", 409),
    ("cancelled", 409),
    ("claim-not-found", 404),
    ("fund-not-found", 404),
    ("claim-state-conflict", 409),
    ("device-required", 409),
    ("category-not-eligible", 422),
    ("programme-not-applicable", 422),
    ("region-not-covered", 422),
    ("not-in-force", 422),
    ("sold-at-out-of-range", 422),
    ("price-not-eligible", 422),
    ("condition-not-met", 422),
    ("received-elsewhere", 409),
    ("order-line-already-claimed", 409),
    ("device-already-subsidised", 409),
    ("trade-in-already-used", 409),
    ("consumer-limit-reached", 409),
    ("fund-not-open", 409),
    ("fund-frozen", 409),
    ("fund-exhausted", 409),
    ("subsidy-differs", 409),
    ("fund-exists", 409),
    ("fund-overlaps", 409),
    ("fund-below-usage", 409),
];

/// Where a service listens; it moves when the service is restarted.
pub type Address = Arc<RwLock<String>>;

/// One HTTP answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers in the order sent, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The exact bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header called `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|fault| panic!("not JSON ({fault}): {} {}", self.status, self.text()))
    }

    /// The code of the problem, empty where the answer is none.
    pub fn code(&self) -> String {
        serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|body| body["code"].as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Whether this answer repeats an earlier one.
    pub fn is_replay(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }

    /// Fails unless the status is `status`; the body.
    #[track_caller]
    pub fn must_be(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(
            self.header("x-request-id").is_some_and(|id| !id.is_empty()),
            "every answer has an X-Request-Id"
        );
        self.json()
    }

    /// Fails unless this is the problem `code` in good form; the problem.
    #[track_caller]
    pub fn must_refuse(&self, code: &str) -> Value {
        let (_, status) = CODES.iter().find(|(known, _)| *known == code).expect("a code of the table");
        assert_eq!((self.status, self.code().as_str()), (*status, code), "{}", self.text());
        assert_eq!(
            self.header("content-type").map(|kind| kind.split(';').next()),
            Some(Some("application/problem+json"))
        );
        let problem = self.json();
        assert_eq!(problem["status"], *status, "the status stands in the body");
        let page = problem["type"].as_str().unwrap_or_default();
        assert!(page.ends_with(&format!("/problems/{code}")), "type names the page: {page}");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "one request id");
        for text in ["title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text} is said: {problem}");
        }
        if matches!(status, 429 | 503) {
            let seconds: u32 =
                self.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
            assert!((1..=60).contains(&seconds), "a reasonable wait: {seconds}");
        }
        problem
    }

    /// The pointers of a 400, sorted.
    #[track_caller]
    pub fn pointers(&self) -> Vec<String> {
        let problem = self.must_refuse("invalid-request");
        let faults = problem["errors"].as_array().expect("a 400 lists its faults");
        let mut pointers: Vec<_> = faults
            .iter()
            .map(|fault| {
                assert!(fault["code"].is_string() && fault["detail"].is_string(), "{fault}");
                fault["pointer"].as_str().expect("a pointer").to_owned()
            })
            .collect();
        pointers.sort();
        pointers
    }
}

/// Somebody who calls: an address, a token and headers to send with every request.
#[derive(Clone)]
pub struct Caller {
    agent: ureq::Agent,
    address: Address,
    headers: Vec<(String, String)>,
    /// The token's `sub`; empty of a caller without one.
    pub subject: String,
}

impl Caller {
    /// A caller without a token.
    pub fn nobody(address: &Address) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(256)
            .max_idle_connections_per_host(256)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        Self {
            agent: config.new_agent(),
            address: Arc::clone(address),
            headers: Vec::new(),
            subject: String::new(),
        }
    }

    /// The same caller with a token.
    pub fn bearing(mut self, subject: &str, token: &str) -> Self {
        subject.clone_into(&mut self.subject);
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// The same caller, sending one more header with every request.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `host:port` of the service.
    pub fn address(&self) -> String {
        self.address.read().expect("the address").clone()
    }

    /// Sends one request; an error where no whole answer came back.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address()));
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let own = own.filter(|(name, _)| !headers.iter().any(|(other, _)| name == other));
        for (name, value) in own.chain(headers.iter().copied()) {
            request = request.header(name, value);
        }
        let response = match body {
            Some(bytes) => self.agent.run(request.body(bytes.to_vec()).expect("a request"))?,
            None => self.agent.run(request.body(()).expect("a request"))?,
        };
        let (parts, mut body) = response.into_parts();
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect();
        let body = body.with_config().limit(64 << 20).read_to_vec()?;
        Ok(Answer { status: parts.status.as_u16(), headers, body })
    }

    /// Sends one request and must get an answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        match self.try_send(method, path, headers, body) {
            Ok(answer) => answer,
            Err(fault) => panic!("{method} {path}: {fault}"),
        }
    }

    /// Asks for `path`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None)
    }

    /// Posts `body` to `path`.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], Some(body.to_string().as_bytes()))
    }

    /// Posts text as it is, under no idempotency key.
    #[track_caller]
    pub fn post_text(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], Some(body.as_bytes()))
    }

    /// What this caller sends as `Authorization`.
    pub fn authorization(&self) -> &str {
        let found = self.headers.iter().find(|(name, _)| name == "authorization");
        found.map_or("", |(_, value)| value.as_str())
    }

    /// Posts `body` to `path` under an idempotency key.
    #[track_caller]
    pub fn post_under(&self, key: &str, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send("POST", path, &headers, Some(body.to_string().as_bytes()))
    }

    /// The same, where the connection may break.
    pub fn try_post_under(&self, key: &str, path: &str, body: &Value) -> Result<Answer, ureq::Error> {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.try_send("POST", path, &headers, Some(body.to_string().as_bytes()))
    }

    /// Claims `sale` under a key of its own.
    #[track_caller]
    pub fn claim(&self, sale: &Sale) -> Answer {
        self.claim_under(&fresh_key(), sale)
    }

    /// Claims `sale` under `key`.
    #[track_caller]
    pub fn claim_under(&self, key: &str, sale: &Sale) -> Answer {
        self.post_under(key, "/v1/claims", &sale.body)
    }

    /// Claims `sale`, which must succeed; the claim.
    #[track_caller]
    pub fn claimed(&self, sale: &Sale) -> Value {
        self.claim(sale).must_be(201)
    }

    /// A verb on a claim.
    #[track_caller]
    pub fn act(&self, claim: &Value, verb: &str, body: &Value) -> Answer {
        self.post(&format!("/v1/claims/{}/{verb}", id_of(claim)), body)
    }

    /// Redeems a hold that has its device.
    #[track_caller]
    pub fn redeem(&self, claim: &Value) -> Answer {
        self.act(claim, "redeem", &json!({}))
    }

    /// Gives a hold back.
    #[track_caller]
    pub fn release(&self, claim: &Value) -> Answer {
        self.act(claim, "release", &json!({}))
    }

    /// Takes the goods back when they were sold.
    #[track_caller]
    pub fn take_back(&self, claim: &Value) -> Answer {
        self.act(claim, "return", &json!({"reason": "unwanted", "returned_at": claim["sold_at"]}))
    }

    /// Cancels whatever `key` stands for.
    #[track_caller]
    pub fn cancel(&self, key: &str) -> Answer {
        self.post("/v1/claims/cancel", &json!({"idempotency_key": key}))
    }

    /// The claim as it stands.
    #[track_caller]
    pub fn look_at(&self, claim: &Value) -> Value {
        self.get(&format!("/v1/claims/{}", id_of(claim))).must_be(200)
    }

    /// The fund `fund_id` as it stands.
    #[track_caller]
    pub fn fund(&self, fund_id: &str) -> Value {
        self.get(&format!("/v1/funds/{fund_id}")).must_be(200)
    }

    /// Every item of a list, page by page, with the last page's `as_of`.
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let next = cursor.map_or(String::new(), |cursor| format!("{joint}cursor={cursor}"));
            let page = self.get(&format!("{path}{next}")).must_be(200);
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return items,
            }
        }
    }
}

/// The id of a claim.
#[track_caller]
pub fn id_of(claim: &Value) -> &str {
    claim["claim_id"].as_str().unwrap_or_else(|| panic!("{claim} has an id"))
}

/// Sends `pieces` over a connection of its own, with a pause before each but the first, and returns what
/// came back until the service closed the connection or `patience` ran out.
pub fn raw(address: &str, pieces: &[&[u8]], pause: Duration, patience: Duration) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            std::thread::sleep(pause);
        }
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let began = std::time::Instant::now();
    let mut answer = Vec::new();
    let mut buffer = [0_u8; 16 * 1024];
    while began.elapsed() < patience {
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(fault)
                if matches!(fault.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}
