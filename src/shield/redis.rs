//! The shield of many processes: limits that all of them share, and requests in flight, in Redis or
//! Valkey, one server or a cluster.
//!
//! - **A rate is leased.** A process leases tokens of a key in the background and spends them without
//!   asking; only the first request of a key that was idle waits for Redis. Redis keeps one number for a
//!   key (`redis/lease.lua`); what a process has heard of it heals what Redis has lost.
//! - **A local limit stands in front**, as wide as the whole limit, so that a flood does not reach Redis.
//!   **When Redis is away it stands alone**, divided by the number of processes that were there last:
//!   together they let through what they did before, as far as load is spread evenly. A process that has
//!   never heard Redis takes it that there are [`limits::SHIELD_PROCESSES_ASSUMED`].
//! - **Requests in flight** are told among processes in one hash (`redis/exchange.lua`), in which each has
//!   a field. It also tells how many processes there are.
//!
//! One thread speaks with Redis: what gathers while it waits for an answer goes in one pipeline next.
//! Whatever Redis does, a caller waits for it no longer than the timeout, and is never told of an error.

use std::collections::BTreeMap;
use std::future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::redis::{RedisError, RedisResult};
use futures_util::future::Either;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tokio::sync::{Notify, oneshot};

use self::account::{Account, Lease, Spend};
use self::board::Board;
use self::breaker::Breaker;
use self::link::{Ask, Exchange, Link, Name, Nodes, Outcome};
use super::local::Local;
use super::{Admission, Admitting, Limit, Mark, Marked, Marking, RateKey, Shield};
use crate::limits;

mod account;
mod board;
mod breaker;
mod link;

/// What the shield is made of.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// Addresses, with passwords where there are any: one, or several nodes of a cluster.
    pub nodes: &'a [&'a str],
    /// How long a caller waits for Redis at most.
    pub timeout: Duration,
    /// The same in every process of a service, and known to nobody else. Keys in Redis are hashes over it.
    pub salt: [u8; 16],
    /// The limit of each retailer.
    pub retailers: Limit,
    /// The limit of each platform.
    pub platforms: Limit,
    /// The limit of each officer.
    pub regulators: Limit,
}

/// Why the shield cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be understood.
    #[error("shield.url: {0}; an address is redis[s]://[[user]:password@]host[:port][/number]")]
    Address(String),
    /// Redis answers, and will never do what is asked.
    #[error("Redis cannot be the shield: {0}")]
    Refused(&'static str),
    /// The machine has no room for a thread.
    #[error("the shield's thread could not be started: {0}")]
    Thread(#[from] io::Error),
}

/// Counts with other processes. Dropping it stops its thread.
pub struct Redis {
    shared: Arc<Shared>,
    local: Local,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What requests and the thread have in common.
struct Shared {
    began: Instant,
    timeout: Duration,
    salt: [u8; 16],
    hasher: RandomState,
    retailers: Limit,
    platforms: Limit,
    regulators: Limit,
    /// Whether Redis is left alone.
    is_away: AtomicBool,
    /// Until when some of Redis is taken to be away.
    partly_until_us: AtomicU64,
    lanes: Mutex<Lanes>,
    exchange: Mutex<Exchanging>,
    /// Wakes the thread.
    wake: Notify,
}

/// The keys that are in use.
struct Lanes {
    lanes: HashMap<u64, Lane>,
    /// Those to be asked for next.
    wanted: Vec<u64>,
    swept_us: u64,
    /// By slot, how Redis does. One that is no cluster has one slot, and does well or is away.
    slots: [Slot; limits::SHIELD_SLOTS as usize],
}

/// How Redis does in one slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// How often in a row it has failed.
    failures: u32,
    /// Until when its keys are left to the local limit.
    alone_until_us: u64,
}

/// One key.
struct Lane {
    name: Name,
    limit: Limit,
    account: Account,
    /// Requests that wait to be asked for.
    waiters: Vec<Waiter>,
    /// Whether the key is to be asked for.
    is_wanted: bool,
}

struct Waiter {
    cost: u32,
    /// Tokens asked for; the rest has been put aside.
    lacking: u32,
    answer: oneshot::Sender<Admission>,
}

#[derive(Default)]
struct Exchanging {
    board: Board,
    /// Whether the next exchange is not to wait for its time.
    is_wanted: bool,
    /// Requests that wait for it.
    waiters: Vec<oneshot::Sender<()>>,
}

/// What is known at once of a request.
enum Standing {
    Known(Admission),
    Alone,
    Coming(oneshot::Receiver<Admission>),
}

impl Redis {
    /// Connects and starts. A Redis that is away is no error: the shield is then degraded.
    ///
    /// # Errors
    /// When Redis can never be used as configured.
    pub fn start(settings: Settings<'_>) -> Result<Self, StartError> {
        // Which crypto library is TLS's is said once for a process; whoever said it first said the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nodes = Nodes::new(settings.nodes, settings.timeout)
            .map_err(|error| StartError::Address(error.category().to_owned()))?;
        let Settings { retailers, platforms, regulators, .. } = settings;
        let shared = Arc::new(Shared::new(&settings));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let speaker = Speaker::new(Arc::clone(&shared), nodes);
        let thread = std::thread::Builder::new()
            .name("shield".into())
            .spawn(move || runtime.block_on(speaker.run(&started, stopped)))?;
        let local = Local::new(retailers, platforms, regulators);
        let shield = Self { shared, local, stop: Some(stop), thread: Some(thread) };
        match starting.recv() {
            Ok(Some(why)) => Err(StartError::Refused(why)),
            Ok(None) => Ok(shield),
            Err(_) => Err(io::Error::other("it ended").into()),
        }
    }

    /// What the local limit says when it stands alone. Every request counts as many times as there are
    /// processes, which leaves each its share; `counted` says how often this one has been counted already.
    fn alone(&self, key: RateKey<'_>, cost: u32, counted: u32) -> Admission {
        let processes = self.shared.processes().max(1);
        let count = processes.saturating_sub(counted).max(1);
        let admission = self.local.count(key, cost.saturating_mul(count));
        Admission { remaining: admission.remaining / processes, ..admission }
    }

    /// The same where the local limit has counted the request once, and let it on.
    fn alone_after(&self, key: RateKey<'_>, cost: u32, local: Admission) -> Admission {
        if self.shared.processes() <= 1 { local } else { self.alone(key, cost, 1) }
    }
}

impl Shield for Redis {
    fn admit<'s>(&'s self, key: RateKey<'s>, cost: u32) -> Admitting<'s> {
        let at_once = |admission| Either::Left(future::ready(admission));
        let cost = cost.clamp(1, self.shared.limit(key).burst.max(1));
        if self.shared.is_away.load(Ordering::Relaxed) {
            return at_once(self.alone(key, cost, 0));
        }
        let local = self.local.count(key, cost);
        if !local.allowed {
            return at_once(local);
        }
        match self.shared.spend(key, cost) {
            Standing::Known(admission) => at_once(both(local, admission)),
            Standing::Alone => at_once(self.alone_after(key, cost, local)),
            Standing::Coming(answer) => Either::Right(Box::pin(async move {
                match tokio::time::timeout(self.shared.timeout, answer).await {
                    Ok(Ok(admission)) => both(local, admission),
                    _ => self.alone_after(key, cost, local),
                }
            })),
        }
    }

    fn mark<'s>(&'s self, request: [u8; 16], fingerprint: [u8; 16]) -> Marking<'s> {
        let now_us = self.shared.now_us();
        let mut exchange = lock(&self.shared.exchange);
        let mark = exchange.board.mark(request, fingerprint, now_us);
        let guard = Guard { shared: Arc::clone(&self.shared), mark };
        let is_away = self.shared.is_away.load(Ordering::Relaxed);
        if is_away || !exchange.board.is_elsewhere(request, fingerprint, now_us) {
            return Either::Left(future::ready(Marked::Free(Mark::new(guard))));
        }
        // What was heard may be past: what counts is what is heard from now on.
        let (sender, heard) = oneshot::channel();
        if exchange.waiters.len() < limits::SHIELD_WAITERS_MAX {
            exchange.waiters.push(sender);
            exchange.is_wanted = true;
            self.shared.wake.notify_one();
        }
        drop(exchange);
        Either::Right(Box::pin(async move {
            let heard = tokio::time::timeout(self.shared.timeout, heard).await;
            let is_elsewhere = || {
                let now_us = self.shared.now_us();
                lock(&self.shared.exchange).board.is_elsewhere(request, fingerprint, now_us)
            };
            if matches!(heard, Ok(Ok(()))) && is_elsewhere() {
                return Marked::Twin;
            }
            Marked::Free(Mark::new(guard))
        }))
    }

    fn name(&self) -> &'static str {
        "redis"
    }

    fn is_degraded(&self) -> bool {
        self.shared.is_away.load(Ordering::Relaxed)
            || self.shared.now_us() < self.shared.partly_until_us.load(Ordering::Relaxed)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The stricter of two limits that both let a request on, or the one that does not.
fn both(local: Admission, shared: Admission) -> Admission {
    Admission {
        remaining: local.remaining.min(shared.remaining),
        reset_s: local.reset_s.max(shared.reset_s),
        ..shared
    }
}

/// Takes a mark off when the request is done.
struct Guard {
    shared: Arc<Shared>,
    mark: Option<u64>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mark) = self.mark else { return };
        let mut exchange = lock(&self.shared.exchange);
        if exchange.board.unmark(mark) {
            exchange.is_wanted = true;
            self.shared.wake.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks panics half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

impl Shared {
    /// What there is before anybody has spoken with Redis.
    fn new(settings: &Settings<'_>) -> Self {
        Self {
            began: Instant::now(),
            timeout: settings.timeout,
            salt: settings.salt,
            hasher: RandomState::new(),
            retailers: settings.retailers,
            platforms: settings.platforms,
            regulators: settings.regulators,
            is_away: AtomicBool::new(true),
            partly_until_us: AtomicU64::new(0),
            lanes: Mutex::new(Lanes {
                lanes: HashMap::new(),
                wanted: Vec::new(),
                swept_us: 0,
                slots: [Slot::default(); limits::SHIELD_SLOTS as usize],
            }),
            exchange: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn now_us(&self) -> u64 {
        // Never 0, which means never.
        micros(self.began.elapsed()).saturating_add(1)
    }

    const fn limit(&self, key: RateKey<'_>) -> Limit {
        match key {
            RateKey::Retailer(_) => self.retailers,
            RateKey::Platform(_) => self.platforms,
            RateKey::Regulator(_) => self.regulators,
        }
    }

    fn processes(&self) -> u32 {
        lock(&self.exchange).board.processes()
    }

    /// Spends what is leased, or asks for more.
    fn spend(&self, key: RateKey<'_>, cost: u32) -> Standing {
        let id = self.hasher.hash_one(key);
        let (limit, now_us) = (self.limit(key), self.now_us());
        let mut lanes = lock(&self.lanes);
        let Lanes { lanes, wanted, slots, .. } = &mut *lanes;
        let is_full = lanes.len() >= limits::RATE_KEYS_MAX;
        let lane = match lanes.entry(id) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(_) if is_full => return Standing::Alone,
            Entry::Vacant(place) => place.insert(Lane::new(Name::new(&self.salt, parts(&key)), limit)),
        };
        if slots.get(lane.name.slot()).is_some_and(|slot| now_us < slot.alone_until_us) {
            return Standing::Alone;
        }
        match lane.account.spend(cost, limit, now_us) {
            Spend::Done { is_low } => {
                if is_low {
                    lane.want(id, wanted);
                }
                Standing::Known(lane.account.admission(true, cost, limit, now_us))
            }
            Spend::Refused => Standing::Known(lane.account.admission(false, cost, limit, now_us)),
            Spend::Ask { lacking } => {
                if lane.waiters.len() >= limits::SHIELD_WAITERS_MAX {
                    lane.account.put_back(cost - lacking);
                    return Standing::Alone;
                }
                let (answer, coming) = oneshot::channel();
                lane.waiters.push(Waiter { cost, lacking, answer });
                lane.want(id, wanted);
                self.wake.notify_one();
                Standing::Coming(coming)
            }
        }
    }

    /// Takes what is to be asked for.
    fn gather(&self, now_us: u64) -> (Vec<Ask>, Vec<(u64, Vec<Waiter>)>) {
        let mut lanes = lock(&self.lanes);
        let Lanes { lanes, wanted, swept_us, .. } = &mut *lanes;
        // Half full is soon enough to look for keys that may be forgotten, and once a second often enough.
        if lanes.len() > limits::RATE_KEYS_MAX / 2 && *swept_us + 1_000_000 < now_us {
            *swept_us = now_us;
            lanes.retain(|_, lane| lane.is_wanted || !lane.account.is_idle(now_us));
        }
        let count = wanted.len().min(limits::SHIELD_FLUSH_KEYS_MAX);
        if count < wanted.len() {
            self.wake.notify_one();
        }
        let (mut asks, mut waiting) = (Vec::new(), Vec::new());
        for id in wanted.drain(..count) {
            let Some(lane) = lanes.get_mut(&id) else { continue };
            lane.is_wanted = false;
            let waiters = std::mem::take(&mut lane.waiters);
            let ones = waiters.iter().filter(|waiter| waiter.lacking == 1).count();
            asks.push(Ask {
                name: lane.name,
                limit: lane.limit,
                heard: lane.account.heard(),
                ahead: lane.account.ahead(lane.limit, now_us),
                ones: u32::try_from(ones).unwrap_or(u32::MAX),
                larger: waiters.iter().map(|waiter| waiter.lacking).filter(|lacking| *lacking > 1).collect(),
            });
            waiting.push((id, waiters));
        }
        (asks, waiting)
    }

    /// Takes a lease, and gives it to those who wait for it: in the order in which it was counted.
    fn take(&self, id: u64, waiters: Vec<Waiter>, lease: Lease, asked_us: u64) {
        let now_us = self.now_us();
        let mut lanes = lock(&self.lanes);
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        let limit = lane.limit;
        lane.account.take(lease, limit, asked_us, now_us);
        let (ones, larger): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|waiter| waiter.lacking == 1);
        for Waiter { cost, lacking, answer } in ones.into_iter().chain(larger) {
            let allowed = lane.account.serve(lacking, now_us);
            if !allowed {
                lane.account.put_back(cost - lacking);
            }
            let admission = lane.account.admission(allowed, cost, limit, now_us);
            if answer.send(admission).is_err() && allowed {
                // It did not wait so long, and went by the local limit.
                lane.account.put_back(cost);
            }
        }
    }

    /// Counts what slots did, and leaves those that fail again and again to the local limit for a while;
    /// says whether there are any.
    fn judge(&self, slots: &BTreeMap<usize, bool>, now_us: u64) -> bool {
        let mut lanes = lock(&self.lanes);
        let mut is_any = false;
        for (place, is_well) in slots {
            let Some(slot) = lanes.slots.get_mut(*place) else { continue };
            slot.failures = if *is_well { 0 } else { slot.failures.saturating_add(1) };
            if slot.failures >= limits::SHIELD_SLOT_FAILURES_MAX {
                slot.alone_until_us = now_us.saturating_add(jittered(limits::SHIELD_SLOT_PAUSE));
                is_any = true;
            }
        }
        is_any
    }

    /// Redis is there: every key may be asked for.
    fn set_there(&self) {
        lock(&self.lanes).slots.fill(Slot::default());
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// Leaves Redis alone: nobody waits for it any longer.
    fn set_away(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        {
            let mut lanes = lock(&self.lanes);
            let Lanes { lanes, wanted, .. } = &mut *lanes;
            for id in wanted.drain(..) {
                if let Some(lane) = lanes.get_mut(&id) {
                    lane.is_wanted = false;
                    lane.waiters.clear();
                }
            }
        }
        lock(&self.exchange).waiters.clear();
    }
}

impl Lane {
    fn new(name: Name, limit: Limit) -> Self {
        Self { name, limit, account: Account::default(), waiters: Vec::new(), is_wanted: false }
    }

    fn want(&mut self, id: u64, wanted: &mut Vec<u64>) {
        if !self.is_wanted {
            self.is_wanted = true;
            wanted.push(id);
        }
    }
}

fn parts<'k>(key: &'k RateKey<'k>) -> [&'k str; 2] {
    let name = match key {
        RateKey::Retailer(uscc) => uscc.as_str(),
        RateKey::Platform(name) | RateKey::Regulator(name) => name,
    };
    [key.class(), name]
}

/// `duration` in microseconds, a quarter more or less.
fn jittered(duration: Duration) -> u64 {
    let us = micros(duration);
    us - us / 4 + rand::random_range(0..=us / 2)
}

/// Leaves everyone to the local limits when nobody speaks with Redis any more, however that ended.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.set_away();
        if std::thread::panicking() {
            tracing::error!("the shield failed: local limits stand alone until the process is started anew");
        }
    }
}

/// The one who speaks with Redis.
struct Speaker {
    shared: Arc<Shared>,
    nodes: Nodes,
    breaker: Breaker,
    /// Its process's name.
    process: u64,
    /// Where processes exchange.
    place: Name,
    /// When the next exchange is due, and the last one was.
    exchange_us: u64,
    exchanged_us: u64,
    /// How often in a row it has failed.
    exchange_failures: u32,
}

impl Speaker {
    fn new(shared: Arc<Shared>, nodes: Nodes) -> Self {
        let place = Name::new(&shared.salt, ["", ""]);
        Self {
            shared,
            nodes,
            breaker: Breaker::default(),
            process: rand::random(),
            place,
            exchange_us: 0,
            exchanged_us: 0,
            exchange_failures: 0,
        }
    }

    /// Speaks until `stop`. `started` hears first why that will never work, or that it may.
    async fn run(mut self, started: &SyncSender<Option<&'static str>>, mut stop: oneshot::Receiver<()>) {
        let _until_the_end = Alarm(Arc::clone(&self.shared));
        let mut link = match self.connect().await {
            Ok(link) => Some(link),
            Err(error) => {
                let refusal = link::refusal(&error);
                if let Some(why) = refusal {
                    let _ = started.send(Some(why));
                    return;
                }
                tracing::warn!(cause = %error, "Redis is away: local limits stand alone");
                None
            }
        };
        let _ = started.send(None);
        loop {
            let Some(connected) = &link else {
                let pause = Duration::from_micros(self.breaker.pause_us(rand::random()));
                let again = async {
                    tokio::time::sleep(pause).await;
                    self.connect().await
                };
                tokio::select! {
                    _ = &mut stop => return,
                    connected = again => match connected {
                        Ok(connected) => {
                            tracing::info!("Redis is back");
                            link = Some(connected);
                        }
                        Err(error) => tracing::debug!(cause = %error, "Redis is still away"),
                    },
                }
                continue;
            };
            let wait_us = self.due_us().saturating_sub(self.shared.now_us());
            tokio::select! {
                _ = &mut stop => {
                    self.nodes.leave(connected, self.place, self.process).await;
                    return;
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(Duration::from_micros(wait_us)) => {}
            }
            if let Err(error) = self.speak(connected).await {
                // A connection that is gone is not waited for; an answer that does not come is, at first.
                if self.breaker.failed() || error.is_unrecoverable_error() {
                    self.shared.set_away();
                    link = None;
                    tracing::warn!(cause = %error, "Redis is away: local limits stand alone");
                }
            }
        }
    }

    /// Connects, and takes Redis to be there once it has done what it is there for.
    async fn connect(&mut self) -> RedisResult<Link> {
        let link = self.nodes.connect().await?;
        self.exchange_us = 0;
        self.speak(&link).await?;
        self.breaker.close(self.shared.now_us());
        self.shared.set_there();
        Ok(link)
    }

    /// When the next exchange is due.
    fn due_us(&self) -> u64 {
        if lock(&self.shared.exchange).is_wanted {
            self.exchange_us.min(self.exchanged_us.saturating_add(micros(limits::SHIELD_EXCHANGE_GAP)))
        } else {
            self.exchange_us
        }
    }

    /// Says what there is to say.
    ///
    /// # Errors
    /// When Redis did nothing of it.
    async fn speak(&mut self, link: &Link) -> RedisResult<()> {
        let asked_us = self.shared.now_us();
        let (asks, mut waiting) = self.shared.gather(asked_us);
        let mut heard_by = Vec::new();
        let exchange = (self.due_us() <= asked_us).then(|| {
            self.exchange_us = asked_us.saturating_add(jittered(limits::SHIELD_TICK));
            self.exchanged_us = asked_us;
            let mut exchange = lock(&self.shared.exchange);
            exchange.is_wanted = false;
            heard_by = std::mem::take(&mut exchange.waiters);
            let marks = exchange.board.tell(asked_us);
            Exchange { place: self.place, process: self.process, marks }
        });
        if asks.is_empty() && exchange.is_none() {
            return Ok(());
        }
        let (mut fault, mut is_any_done): (Option<RedisError>, bool) = (None, false);
        let mut slots = BTreeMap::new();
        let shared = &self.shared;
        let exchange_failures = &mut self.exchange_failures;
        self.nodes
            .say(link, &asks, exchange.as_ref(), |outcome| match outcome {
                Outcome::Leased(place, outcome) => {
                    let (Some(ask), Some((id, waiters))) = (asks.get(place), waiting.get_mut(place)) else {
                        return;
                    };
                    let waiters = std::mem::take(waiters);
                    let is_well = slots.entry(ask.name.slot()).or_insert(true);
                    match outcome {
                        Ok(lease) => {
                            is_any_done = true;
                            shared.take(*id, waiters, lease, asked_us);
                        }
                        Err(error) => {
                            *is_well = false;
                            fault = Some(error);
                        }
                    }
                }
                Outcome::Exchanged(Ok(voices)) => {
                    is_any_done = true;
                    *exchange_failures = 0;
                    lock(&shared.exchange).board.hear(&voices, shared.now_us());
                    for waiter in heard_by.drain(..) {
                        let _ = waiter.send(());
                    }
                }
                Outcome::Exchanged(Err(error)) => {
                    *exchange_failures = exchange_failures.saturating_add(1);
                    fault = Some(error);
                }
            })
            .await;
        let now_us = shared.now_us();
        if is_any_done {
            self.breaker.succeeded(now_us);
        }
        // Where only some of a cluster is away, the rest goes on. One that is none is left alone as a whole.
        let mut is_partly_away = matches!(link, Link::Cluster(_)) && shared.judge(&slots, now_us);
        if self.exchange_failures >= limits::SHIELD_FAILURES_MAX {
            // Otherwise it would have been left alone by now.
            is_partly_away = true;
            self.exchange_us = now_us.saturating_add(jittered(limits::SHIELD_SLOT_PAUSE));
            self.exchanged_us = self.exchange_us;
        }
        if is_partly_away {
            let pause_us = 2 * micros(limits::SHIELD_SLOT_PAUSE);
            shared.partly_until_us.store(now_us.saturating_add(pause_us), Ordering::Relaxed);
        }
        match fault {
            Some(fault) if is_any_done => {
                tracing::debug!(cause = %fault, "some of Redis does not answer");
                Ok(())
            }
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_fails_leaves_everyone_to_the_local_limits() {
        let limit = Limit { per_second: 1, burst: 1 };
        let settings = Settings {
            nodes: &["redis://127.0.0.1:1"],
            timeout: Duration::from_millis(100),
            salt: [0; 16],
            retailers: limit,
            platforms: limit,
            regulators: limit,
        };
        let shared = Arc::new(Shared::new(&settings));
        shared.set_there();
        let asked = shared.spend(RateKey::Platform("mall"), 1);
        let Standing::Coming(mut answer) = asked else { panic!("it is asked for") };
        let nodes = Nodes::new(settings.nodes, settings.timeout).unwrap();
        let speaker = Speaker::new(Arc::clone(&shared), nodes);
        // Without a network to connect to it fails at once.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let (_stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || runtime.block_on(speaker.run(&started, stopped)));
        assert!(thread.join().is_err());
        assert!(starting.try_recv().is_err(), "it has not said that it may work");
        assert!(shared.is_away.load(Ordering::Relaxed));
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed), "nobody waits for it");
    }
}
