//! The two ways to load a service.
//!
//! The closed loop says how much: every connection sends its next request as soon as it has the last
//! one's answer. The open loop says how late: requests have planned times that do not wait for answers,
//! and latency counts from the planned time, so that a stall is felt by all who would have been served
//! during it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use crate::client::{Answer, Connection};
use crate::machine;

/// How often the open loop looks for requests whose time has come. This much, at most, is added to each
/// latency by the generator itself.
pub const TICK: Duration = Duration::from_micros(200);
/// How long answers may take after the last request was planned.
const GRACE: Duration = Duration::from_secs(30);

/// What one connection sends, and what it thinks of the answers.
pub trait Script: Send + 'static {
    /// The next request.
    fn next(&mut self, now: Instant) -> &[u8];
    /// Judges the answer to the last request. An error ends the run: the service was wrong.
    fn judge(&mut self, answer: &Answer<'_>) -> Result<Verdict>;
}

/// What an answer comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is right, and stands for this many items.
    Items(u64),
    /// The service says that it has too much to do.
    Overloaded,
}

/// Where the load goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The service's processes; connections go to them in turn.
    pub addresses: Vec<SocketAddr>,
    /// Processes whose time on the processors is measured beside the generator's.
    pub processes: Vec<u32>,
    /// Threads of the generator.
    pub threads: usize,
}

/// How long to load.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub window: Duration,
}

/// What a closed loop came to.
pub struct Measured<S> {
    /// Items in the window.
    pub items: u64,
    /// Requests in the window.
    pub requests: u64,
    /// Of these, answered with "too much to do".
    pub overloaded: u64,
    /// The window.
    pub window: Duration,
    /// Nanoseconds from request to answer.
    pub latency: Histogram<u64>,
    /// Time on the processors in the window: of the generator, then of each process.
    pub cpu: Vec<Duration>,
    /// The scripts, for what they know at the end.
    pub scripts: Vec<S>,
}

impl<S> Measured<S> {
    /// Items a second.
    pub fn rate(&self) -> f64 {
        self.items as f64 / self.window.as_secs_f64()
    }
}

/// An empty histogram of nanoseconds, up to a minute, to a thousandth.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).map_err(|error| anyhow!("{error:?}"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What all connections of a run share.
struct Shared {
    addresses: Vec<SocketAddr>,
    opened: AtomicUsize,
    /// The counted window.
    from: Instant,
    until: Instant,
    failed: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
    progress: AtomicU64,
}

impl Shared {
    /// A new connection, to the process whose turn it is.
    async fn connect(&self) -> Result<Connection> {
        let turn = self.opened.fetch_add(1, Ordering::Relaxed) % self.addresses.len().max(1);
        Connection::open(*self.addresses.get(turn).context("no address to load")?).await
    }

    fn fail(&self, error: anyhow::Error) {
        self.failed.store(true, Ordering::Relaxed);
        // The first failure is the one to tell; what follows may come from it.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What the connections of one thread have counted.
struct Tally {
    items: u64,
    requests: u64,
    overloaded: u64,
    latency: Histogram<u64>,
    /// The same by the second of the run in which a request was planned; open loop only.
    seconds: Vec<Histogram<u64>>,
}

impl Tally {
    fn new(seconds: usize) -> Result<Self> {
        let seconds = (0..seconds).map(|_| histogram()).collect::<Result<_>>()?;
        Ok(Self { items: 0, requests: 0, overloaded: 0, latency: histogram()?, seconds })
    }

    fn add(&mut self, verdict: Verdict, latency: Duration) {
        self.requests += 1;
        match verdict {
            Verdict::Items(items) => {
                self.items += items;
                self.latency.saturating_record(nanos(latency));
            }
            Verdict::Overloaded => self.overloaded += 1,
        }
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        self.items += other.items;
        self.requests += other.requests;
        self.overloaded += other.overloaded;
        self.latency.add(&other.latency).map_err(|error| anyhow!("{error:?}"))?;
        for (mine, theirs) in self.seconds.iter_mut().zip(&other.seconds) {
            mine.add(theirs).map_err(|error| anyhow!("{error:?}"))?;
        }
        Ok(())
    }
}

type Finished<S> = Result<(Vec<S>, Tally)>;

/// Deals the scripts out to threads, each with a runtime of its own.
fn start<S: Script>(
    target: &Target,
    shared: &Arc<Shared>,
    scripts: Vec<S>,
    work: impl Fn(Vec<S>, Arc<Shared>) -> Finished<S> + Clone + Send + 'static,
) -> Result<Vec<JoinHandle<Finished<S>>>> {
    let mut shares: Vec<Vec<S>> = (0..target.threads.max(1)).map(|_| Vec::new()).collect();
    for (index, script) in scripts.into_iter().enumerate() {
        let share = index % shares.len();
        if let Some(share) = shares.get_mut(share) {
            share.push(script);
        }
    }
    shares
        .into_iter()
        .map(|share| {
            let (shared, work) = (Arc::clone(shared), work.clone());
            std::thread::Builder::new()
                .name("generator".into())
                .spawn(move || work(share, shared))
                .context("starting a thread")
        })
        .collect()
}

fn finish<S: Script>(
    threads: Vec<JoinHandle<Finished<S>>>,
    shared: &Shared,
    tally: &mut Tally,
) -> Result<Vec<S>> {
    let mut scripts = Vec::new();
    for thread in threads {
        let finished = thread.join().map_err(|_| anyhow!("a thread of the generator failed"))?;
        match finished {
            Ok((mut share, counted)) => {
                scripts.append(&mut share);
                tally.merge(&counted)?;
            }
            Err(error) => shared.fail(error),
        }
    }
    match shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(scripts),
    }
}

/// Runs one task for each script on this thread and gives the scripts back. The first failure is noted at
/// once, so that the other connections end too.
fn on_this_thread<S: Script, F: Future<Output = Result<S>> + 'static>(
    shared: &Arc<Shared>,
    tasks: impl IntoIterator<Item = F>,
    beside: impl Future<Output = Result<()>> + 'static,
) -> Result<Vec<S>> {
    async fn noting<T>(shared: Arc<Shared>, task: impl Future<Output = Result<T>>) -> Option<T> {
        task.await.map_err(|error| shared.fail(error)).ok()
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let handles: Vec<_> =
        tasks.into_iter().map(|task| local.spawn_local(noting(Arc::clone(shared), task))).collect();
    let _beside = local.spawn_local(noting(Arc::clone(shared), beside));
    let joined = async {
        let mut scripts = Vec::new();
        for handle in handles {
            scripts.extend(handle.await.context("a connection's task failed")?);
        }
        anyhow::Ok(scripts)
    };
    let deadline = shared.until + GRACE;
    // The time limit must be made where the runtime's timers are.
    let joined = local.run_until(async { tokio::time::timeout_at(deadline.into(), joined).await });
    runtime.block_on(joined).map_err(|_| anyhow!("the service did not answer within {GRACE:?}"))?
}

/// Sleeps until `end`, with a look at things now and then; stops early after a failure.
fn watch(shared: &Shared, end: Instant, tick: &mut dyn FnMut(u64)) {
    const PAUSE: Duration = Duration::from_millis(250);
    while !shared.failed() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(PAUSE));
        tick(shared.progress.load(Ordering::Relaxed));
    }
}

/// Has the kernel write what was left to it: nobody is to wait for the disk while it writes another subject's.
fn quiet_disk() {
    rustix::fs::sync();
}

/// Runs a closed loop: one connection for each script. `tick` is called a few times a second with the
/// number of requests answered so far.
pub fn closed<S: Script>(
    target: &Target,
    span: Span,
    scripts: Vec<S>,
    tick: &mut dyn FnMut(u64),
) -> Result<Measured<S>> {
    quiet_disk();
    let from = Instant::now() + span.warm_up;
    let shared = Arc::new(Shared {
        addresses: target.addresses.clone(),
        opened: AtomicUsize::new(0),
        from,
        until: from + span.window,
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        progress: AtomicU64::new(0),
    });
    let threads = start(target, &shared, scripts, closed_thread)?;
    watch(&shared, shared.from, tick);
    let before = processor_times(target);
    watch(&shared, shared.until, tick);
    let after = processor_times(target);
    let mut tally = Tally::new(0)?;
    let scripts = finish(threads, &shared, &mut tally)?;
    let cpu = after.iter().zip(before).map(|(after, before)| after.saturating_sub(before)).collect();
    Ok(Measured {
        items: tally.items,
        requests: tally.requests,
        overloaded: tally.overloaded,
        window: span.window,
        latency: tally.latency,
        cpu,
        scripts,
    })
}

/// Of a process that has ended meanwhile, as those of databases do, nothing.
fn processor_times(target: &Target) -> Vec<Duration> {
    std::iter::once(std::process::id())
        .chain(target.processes.iter().copied())
        .map(|process| machine::processor_time(process).unwrap_or_default())
        .collect()
}

fn closed_thread<S: Script>(scripts: Vec<S>, shared: Arc<Shared>) -> Finished<S> {
    let tally = Rc::new(RefCell::new(Tally::new(0)?));
    let tasks: Vec<_> = scripts
        .into_iter()
        .map(|script| closed_connection(script, Arc::clone(&shared), Rc::clone(&tally)))
        .collect();
    let scripts = on_this_thread(&shared, tasks, std::future::pending())?;
    let tally = Rc::try_unwrap(tally).map_err(|_| anyhow!("a connection is still counting"))?;
    Ok((scripts, tally.into_inner()))
}

async fn closed_connection<S: Script>(
    mut script: S,
    shared: Arc<Shared>,
    tally: Rc<RefCell<Tally>>,
) -> Result<S> {
    let mut connection = shared.connect().await?;
    let mut now = Instant::now();
    while now < shared.until && !shared.failed() {
        let began = now;
        let answer = connection.exchange(script.next(now)).await?;
        now = Instant::now();
        let verdict = script.judge(&answer)?;
        shared.progress.fetch_add(1, Ordering::Relaxed);
        if now >= shared.from && now < shared.until {
            tally.borrow_mut().add(verdict, now - began);
        }
    }
    Ok(script)
}

/// A stretch of an open loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Requests a second.
    pub rate: u64,
    /// For how long.
    pub length: Duration,
}

/// What an open loop came to.
pub struct Paced<S> {
    /// Items.
    pub items: u64,
    /// Requests.
    pub requests: u64,
    /// Of these, answered with "too much to do".
    pub overloaded: u64,
    /// Nanoseconds from the planned time to the answer.
    pub latency: Histogram<u64>,
    /// The same by the second in which requests were planned.
    pub seconds: Vec<Histogram<u64>>,
    /// The scripts.
    pub scripts: Vec<S>,
}

/// The planned times of one thread's requests.
#[derive(Debug)]
struct Plan {
    start: Instant,
    steps: VecDeque<Step>,
    /// When the present step began, after the start, and how many of its requests have been given out.
    step_began: Duration,
    given: u64,
}

impl Plan {
    fn new(start: Instant, steps: &[Step]) -> Self {
        Self { start, steps: steps.iter().copied().collect(), step_began: Duration::ZERO, given: 0 }
    }

    /// The next planned time, unless it is still to come.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let step = *self.steps.front()?;
            let after = Duration::from_nanos(self.given.saturating_mul(1_000_000_000) / step.rate.max(1));
            if after >= step.length || step.rate == 0 {
                self.step_began += step.length;
                self.given = 0;
                self.steps.pop_front();
                continue;
            }
            let planned = self.start + self.step_began + after;
            if planned > now {
                return None;
            }
            self.given += 1;
            return Some(planned);
        }
    }

    fn is_over(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Requests whose time has come and that no connection has taken yet; `None` tells one connection to end.
struct Backlog {
    planned: RefCell<VecDeque<Option<Instant>>>,
    /// One permit for each of them; whoever has waited longest is served first.
    ready: Semaphore,
}

impl Backlog {
    fn new() -> Self {
        Self { planned: RefCell::default(), ready: Semaphore::new(0) }
    }

    fn push(&self, planned: impl IntoIterator<Item = Option<Instant>>) {
        let mut queue = self.planned.borrow_mut();
        let before = queue.len();
        queue.extend(planned);
        self.ready.add_permits(queue.len() - before);
    }

    async fn take(&self) -> Option<Instant> {
        self.ready.acquire().await.ok()?.forget();
        self.planned.borrow_mut().pop_front().flatten()
    }
}

/// Runs an open loop after `steps`, over one connection for each script.
pub fn open<S: Script>(
    target: &Target,
    steps: &[Step],
    scripts: Vec<S>,
    tick: &mut dyn FnMut(u64),
) -> Result<Paced<S>> {
    quiet_disk();
    const SETTLING: Duration = Duration::from_millis(200);
    let length: Duration = steps.iter().map(|step| step.length).sum();
    let seconds = usize::try_from(length.as_secs())? + 1;
    let from = Instant::now() + SETTLING;
    let shared = Arc::new(Shared {
        addresses: target.addresses.clone(),
        opened: AtomicUsize::new(0),
        from,
        until: from + length,
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        progress: AtomicU64::new(0),
    });
    let threads = u64::try_from(target.threads.max(1))?;
    let steps: Vec<Step> = steps.iter().map(|step| Step { rate: step.rate / threads, ..*step }).collect();
    let threads = start(target, &shared, scripts, move |scripts, shared| {
        open_thread(scripts, &shared, Plan::new(shared.from, &steps), seconds)
    })?;
    watch(&shared, shared.until, tick);
    let mut tally = Tally::new(seconds)?;
    let scripts = finish(threads, &shared, &mut tally)?;
    Ok(Paced {
        items: tally.items,
        requests: tally.requests,
        overloaded: tally.overloaded,
        latency: tally.latency,
        seconds: tally.seconds,
        scripts,
    })
}

fn open_thread<S: Script>(scripts: Vec<S>, shared: &Arc<Shared>, plan: Plan, seconds: usize) -> Finished<S> {
    let tally = Rc::new(RefCell::new(Tally::new(seconds)?));
    let backlog = Rc::new(Backlog::new());
    let connections = scripts.len();
    let tasks: Vec<_> = scripts
        .into_iter()
        .map(|script| open_connection(script, Arc::clone(shared), Rc::clone(&tally), Rc::clone(&backlog)))
        .collect();
    let pacer = pacer(plan, Arc::clone(shared), Rc::clone(&backlog), connections);
    let scripts = on_this_thread(shared, tasks, pacer)?;
    let tally = Rc::try_unwrap(tally).map_err(|_| anyhow!("a connection is still counting"))?;
    Ok((scripts, tally.into_inner()))
}

async fn open_connection<S: Script>(
    mut script: S,
    shared: Arc<Shared>,
    tally: Rc<RefCell<Tally>>,
    backlog: Rc<Backlog>,
) -> Result<S> {
    let mut connection = shared.connect().await?;
    while let Some(planned) = backlog.take().await {
        if shared.failed() {
            break;
        }
        let answer = connection.exchange(script.next(Instant::now())).await?;
        let latency = planned.elapsed();
        let verdict = script.judge(&answer)?;
        shared.progress.fetch_add(1, Ordering::Relaxed);
        let mut tally = tally.borrow_mut();
        tally.add(verdict, latency);
        let second =
            usize::try_from(planned.saturating_duration_since(shared.from).as_secs()).unwrap_or(usize::MAX);
        if let (Verdict::Items(_), Some(second)) = (verdict, tally.seconds.get_mut(second)) {
            second.saturating_record(nanos(latency));
        }
    }
    Ok(script)
}

/// Puts requests into the backlog when their time has come. The runtime's own timers are no finer than a
/// millisecond, so the kernel's are used.
async fn pacer(mut plan: Plan, shared: Arc<Shared>, backlog: Rc<Backlog>, connections: usize) -> Result<()> {
    // It is read as a pipe is: each read waits for the next expiry.
    let mut timer = Receiver::from_owned_fd_unchecked(timer(TICK)?)?;
    let mut expiries = [0_u8; 8];
    loop {
        let now = Instant::now();
        backlog.push(std::iter::from_fn(|| plan.due(now)).map(Some));
        if plan.is_over() || shared.failed() {
            // As many as there are connections: each takes one and ends.
            backlog.push(std::iter::repeat_n(None, connections));
            return Ok(());
        }
        timer.read_exact(&mut expiries).await.context("the timer failed")?;
    }
}

fn timer(period: Duration) -> Result<OwnedFd> {
    let every = Timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
    let timer = rustix::time::timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    let setting = Itimerspec { it_interval: every, it_value: every };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_gives_out_each_step_at_its_rate() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let steps = [Step { rate: 100, length: second }, Step { rate: 2000, length: second }];
        let mut plan = Plan::new(start, &steps);
        let mut planned = Vec::new();
        let mut now = start;
        while !plan.is_over() {
            planned.extend(std::iter::from_fn(|| plan.due(now)));
            now += TICK;
        }
        assert_eq!(planned.len(), 2100);
        assert_eq!(planned.iter().filter(|at| **at < start + second).count(), 100);
        assert!(planned.is_sorted());
        assert_eq!(planned[1] - planned[0], Duration::from_millis(10));
    }

    #[test]
    fn nothing_is_given_out_before_its_time() {
        let start = Instant::now();
        let mut plan = Plan::new(start, &[Step { rate: 10, length: Duration::from_secs(1) }]);
        assert_eq!(plan.due(start), Some(start));
        assert_eq!(plan.due(start + Duration::from_millis(99)), None);
        assert_eq!(plan.due(start + Duration::from_millis(100)), Some(start + Duration::from_millis(100)));
    }
}
