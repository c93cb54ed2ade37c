//! The connection to Redis, and what is said over it: two scripts, each on one key, many to a pipeline.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, RedisResult, Value};
use aws_lc_rs::digest;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::super::Limit;
use super::account::Lease;
use super::board::{MARK_BYTES, Voice};
use crate::limits;

/// Under what a rate is kept: a hash, and with it the slot of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name([u8; 16]);

impl Name {
    /// The name of `parts` in the service with this salt; says nothing of them to who lacks the salt.
    pub fn new(salt: &[u8; 16], parts: [&str; 2]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(salt);
        for part in parts {
            context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            context.update(part.as_bytes());
        }
        Self(context.finish().as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// Which of the slots it shares with others.
    pub fn slot(self) -> usize {
        usize::from(self.0[0] % limits::SHIELD_SLOTS)
    }

    /// The key in Redis. What stands in braces makes the slot of a cluster, so that what shares it can go
    /// in one pipeline.
    fn key(self, kind: &str) -> String {
        let mut key = format!("subsidy-pos:{{{:02}}}:{kind}:", self.slot());
        for byte in self.0 {
            // Writing to a string does not fail.
            let _ = write!(key, "{byte:02x}");
        }
        key
    }
}

/// What is asked of one rate.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Where it is kept.
    pub name: Name,
    /// Its limit.
    pub limit: Limit,
    /// When a whole burst may come again on Redis's clock, as was heard last; 0 for never.
    pub heard: u64,
    /// Tokens wanted ahead of requests.
    pub ahead: u32,
    /// Requests that wait for one token.
    pub ones: u32,
    /// Tokens for which each other request waits.
    pub larger: Vec<u32>,
}

/// What a process says to the others.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    /// Where all meet.
    pub place: Name,
    /// Who says it.
    pub process: u64,
    /// Its marks.
    pub marks: Vec<u8>,
}

/// What came of one thing asked.
pub(super) enum Outcome {
    /// Of the ask at this place in the list.
    Leased(usize, RedisResult<Lease>),
    /// What the others say.
    Exchanged(RedisResult<Vec<Voice>>),
}

/// Where Redis is.
pub(super) struct Nodes {
    client: Kind,
    timeout: Duration,
    lease: Script,
    exchange: Script,
}

enum Kind {
    One(Box<Client>),
    Cluster(Box<ClusterClient>),
}

/// A connection that many may use at once.
#[derive(Clone)]
pub(super) enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    async fn run(mut self, pipeline: Pipeline, timeout: Duration) -> RedisResult<Vec<RedisResult<Value>>> {
        let answers = async {
            match &mut self {
                Self::One(connection) => pipeline.query_async(connection).await,
                Self::Cluster(connection) => pipeline.query_async(connection).await,
            }
        };
        tokio::time::timeout(timeout, answers).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

impl Nodes {
    /// One node, or some nodes of a cluster; `timeout` is for every answer.
    ///
    /// # Errors
    /// When an address is none.
    pub fn new(nodes: &[&str], timeout: Duration) -> RedisResult<Self> {
        let client = match nodes {
            [node] => Kind::One(Box::new(Client::open(*node)?)),
            nodes => {
                let builder = ClusterClient::builder(nodes.iter().copied())
                    .connection_timeout(limits::SHIELD_CONNECT_TIMEOUT)
                    .response_timeout(timeout)
                    // To follow a slot that has moved, and no more: a retry later would be too late.
                    .retries(2)
                    .min_retry_wait(1)
                    .max_retry_wait(5);
                Kind::Cluster(Box::new(builder.build()?))
            }
        };
        Ok(Self {
            client,
            timeout,
            lease: Script::new(include_str!("lease.lua")),
            exchange: Script::new(include_str!("exchange.lua")),
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// When that fails, or takes too long.
    pub async fn connect(&self) -> RedisResult<Link> {
        let timeout = limits::SHIELD_CONNECT_TIMEOUT;
        let connecting = async {
            Ok(match &self.client {
                Kind::One(client) => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(timeout))
                        .set_response_timeout(Some(self.timeout));
                    Link::One(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Kind::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
            })
        };
        tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Asks and exchanges, everything at once: in one pipeline, or in one for each slot of a cluster.
    /// `hear` is told each outcome as soon as it is there.
    pub async fn say(
        &self,
        link: &Link,
        asks: &[Ask],
        exchange: Option<&Exchange>,
        mut hear: impl FnMut(Outcome),
    ) {
        let slot = |name: Name| if matches!(link, Link::One(_)) { 0 } else { name.slot() };
        let mut slots: BTreeMap<usize, (Vec<usize>, Option<&Exchange>)> = BTreeMap::new();
        for (place, ask) in asks.iter().enumerate() {
            slots.entry(slot(ask.name)).or_default().0.push(place);
        }
        if let Some(exchange) = exchange {
            slots.entry(slot(exchange.place)).or_default().1 = Some(exchange);
        }
        let mut running: FuturesUnordered<_> = slots
            .into_values()
            .map(|(places, exchange)| {
                let pipeline = self.pipeline(places.iter().filter_map(|place| asks.get(*place)), exchange);
                let link = link.clone();
                async move { (places, exchange.is_some(), link.run(pipeline, self.timeout).await) }
            })
            .collect();
        while let Some((places, has_exchange, answers)) = running.next().await {
            let (mut answers, fault) = match answers {
                Ok(answers) => (answers.into_iter(), None),
                Err(fault) => (Vec::new().into_iter(), Some(fault)),
            };
            let mut next = || {
                answers
                    .next()
                    .unwrap_or_else(|| Err(fault.clone().unwrap_or_else(|| not_understood("nothing"))))
            };
            for place in places {
                hear(Outcome::Leased(place, next().and_then(|answer| lease(&answer))));
            }
            if has_exchange {
                hear(Outcome::Exchanged(next().and_then(voices)));
            }
        }
    }

    fn pipeline<'a>(&self, asks: impl Iterator<Item = &'a Ask>, exchange: Option<&'a Exchange>) -> Pipeline {
        let mut pipeline = ::redis::pipe();
        pipeline.ignore_errors();
        for (index, ask) in asks.enumerate() {
            let mut command = self.lease.on(&ask.name.key("rate"), index == 0);
            command.arg(ask.limit.per_second.max(1)).arg(ask.limit.burst).arg(ask.heard);
            command.arg(ask.ahead).arg(ask.ones).arg(&ask.larger);
            pipeline.add_command(command);
        }
        if let Some(exchange) = exchange {
            let mut command = self.exchange.on(&exchange.place.key("in-flight"), true);
            command.arg(format!("{:016x}", exchange.process)).arg(exchange.marks.as_slice());
            command.arg(u64::try_from(limits::SHIELD_MARK_LIFE.as_millis()).unwrap_or(u64::MAX));
            command.arg(limits::SHIELD_MARKS_MAX * MARK_BYTES).arg(limits::SHIELD_PROCESSES_MAX);
            pipeline.add_command(command);
        }
        pipeline
    }

    /// Takes what a process said from where all meet.
    pub async fn leave(&self, link: &Link, place: Name, process: u64) {
        let mut pipeline = ::redis::pipe();
        pipeline.ignore_errors();
        pipeline.cmd("HDEL").arg(place.key("in-flight")).arg(format!("{process:016x}"));
        // The others forget it in a while anyway.
        let _ = link.clone().run(pipeline, self.timeout).await;
    }
}

struct Script {
    source: &'static str,
    hash: String,
}

impl Script {
    fn new(source: &'static str) -> Self {
        let mut hash = String::new();
        for byte in digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes()).as_ref() {
            // Writing to a string does not fail.
            let _ = write!(hash, "{byte:02x}");
        }
        Self { source, hash }
    }

    /// The script on one key. The first in a pipeline brings the source, so that Redis has it for the
    /// others whatever it has forgotten.
    fn on(&self, key: &str, is_first: bool) -> Cmd {
        let mut command = if is_first { ::redis::cmd("EVAL") } else { ::redis::cmd("EVALSHA") };
        command.arg(if is_first { self.source } else { &self.hash }).arg(1).arg(key);
        command
    }
}

fn lease(answer: &Value) -> RedisResult<Lease> {
    let whole = |value: &Value| match value {
        Value::Int(whole) => u64::try_from(*whole).ok(),
        _ => None,
    };
    let parse = || {
        let Value::Array(parts) = answer else { return None };
        let [tokens, full_in_us, full_at] = parts.as_slice() else { return None };
        Some(Lease {
            tokens: u32::try_from(whole(tokens)?).ok()?,
            full_in_us: whole(full_in_us)?,
            full_at: whole(full_at)?,
        })
    };
    parse().ok_or_else(|| not_understood("a lease"))
}

fn voices(answer: Value) -> RedisResult<Vec<Voice>> {
    let Value::Array(parts) = answer else { return Err(not_understood("an exchange")) };
    let mut parts = parts.into_iter();
    let mut voices = Vec::new();
    while let (Some(Value::BulkString(name)), Some(Value::Int(age_ms)), Some(Value::BulkString(marks))) =
        (parts.next(), parts.next(), parts.next())
    {
        let name = std::str::from_utf8(&name).ok().and_then(|name| u64::from_str_radix(name, 16).ok());
        if let (Some(name), Ok(age_ms)) = (name, u64::try_from(age_ms)) {
            voices.push(Voice { name, age_us: age_ms.saturating_mul(1000), marks });
        }
    }
    Ok(voices)
}

fn not_understood(what: &'static str) -> RedisError {
    (::redis::ErrorKind::UnexpectedReturnType, "Redis answered what was not asked", what.to_owned()).into()
}

/// Why a connection as configured can never work, if that is what `error` says.
pub(super) fn refusal(error: &RedisError) -> Option<&'static str> {
    // A cluster's connection gives its nodes' errors as text only.
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if error.kind() == ::redis::ErrorKind::AuthenticationFailed
        || says(&["WRONGPASS", "NOAUTH", "NOPERM", "AuthenticationFailed"])
    {
        Some("it refuses the user or the password of shield.url")
    } else if matches!(error.kind(), ::redis::ErrorKind::Server(::redis::ServerErrorKind::Moved)) {
        Some("it is a node of a cluster: name several of its nodes in shield.url, separated by commas")
    } else if says(&["cluster support disabled"]) {
        Some("it is no cluster: name one node in shield.url")
    } else {
        None
    }
}
