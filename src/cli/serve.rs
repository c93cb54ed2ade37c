//! `subsidy-pos serve`: opens what the service is made of, runs it, and closes it in order.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use subsidy_pos::audit::{Audit, Finding, Tasks};
use subsidy_pos::auth::{self, NewToken, Role, Verifier};
use subsidy_pos::book::{Book, Feed, Projector};
use subsidy_pos::claim::FundId;
use subsidy_pos::clock::Clock;
use subsidy_pos::config::{Config, Mode, Secret, ShieldUrl};
use subsidy_pos::heads::SignedHead;
use subsidy_pos::http::operations::Standing;
use subsidy_pos::http::{self, App};
use subsidy_pos::identity::RegionCode;
use subsidy_pos::journal::Journal;
use subsidy_pos::ledger::command::{Command, Failure, OpenFund, Outcome, Refusal};
use subsidy_pos::ledger::entry::{Key, ProgrammeFile, VERSION};
use subsidy_pos::ledger::writer::{Observer, Writer};
use subsidy_pos::ledger::{Ledger, Snapshot, Stored};
use subsidy_pos::limits;
use subsidy_pos::money::Fen;
use subsidy_pos::programme::Programme;
use subsidy_pos::secrets::{DevKeys, HashKeys, SigningKey};
use subsidy_pos::shield::local::Local;
use subsidy_pos::shield::redis::{self, Redis};
use subsidy_pos::shield::{Limit, Shield};
use subsidy_pos::telemetry::{self, Metrics};

use super::store::{self, Store, beside};
use super::watch::{self, Watch};
use super::{Failed, Serve, Settings, failed, programme_files};

/// The cities of Zhejiang (GB/T 2260).
const ZHEJIANG_CITIES: [&str; 11] = [
    "330100", "330200", "330300", "330400", "330500", "330600", "330700", "330800", "330900", "331000",
    "331100",
];
/// The budget of a development fund: 1,000,000,000.00 yuan.
const DEV_BUDGET: Fen = Fen::new(100_000_000_000);
/// The retailer that development examples use; the code of a published example, not of a shop.
const DEV_RETAILER: &str = "91350100M000100Y43";

/// Runs the service until it is told to stop.
pub fn serve(arguments: &Serve) -> Result<(), Failed> {
    let mode = if arguments.dev { Mode::Development } else { Mode::Production };
    let mut config = arguments.settings.load(mode)?;
    if let Some(listen) = arguments.listen {
        config.server.listen = listen;
    }
    make_directory(&config.ledger.data_dir)?;
    if arguments.dev {
        config.use_dev_keys(&DevKeys::make(&config.ledger.data_dir).map_err(failed)?);
    }
    ensure_sound(&config, &arguments.settings)?;
    telemetry::init(config.log.level, config.log.format).map_err(failed)?;
    have_files_open();
    let clock = Clock::ahead_by(arguments.clock_offset.unwrap_or(0));
    actix_web::rt::System::new().block_on(run(&config, clock, arguments.dev))
}

/// Makes the configured programmes the ones that apply, on a journal that nobody else has open.
pub fn activate(settings: &Settings) -> Result<(), Failed> {
    let config = settings.load(Mode::Production)?;
    let files = programme_files(&config)?;
    let Activations { before, after } = on_ledger(&config, Command::Activate(as_entry(files)))?;
    let done = match before == after {
        true => "nothing to activate: the journal has these programmes already",
        false => "the programmes are activated",
    };
    println!("{done}");
    Ok(())
}

/// Goes on in the newest format, in a journal that nobody else has open if it is an embedded one.
pub fn upgrade(settings: &Settings) -> Result<(), Failed> {
    let config = settings.load(Mode::Production)?;
    // There must be one; nothing is made.
    drop(Store::of(&config)?.existing_journal()?);
    on_ledger(&config, Command::RaiseFormat)?;
    println!("the journal is written in format {VERSION} from here on");
    Ok(())
}

/// The entry by which programmes apply, before a command and after it.
struct Activations {
    before: u64,
    after: u64,
}

/// Has the ledger carry out one command.
fn on_ledger(config: &Config, command: Command) -> Result<Activations, Failed> {
    actix_web::rt::System::new().block_on(async {
        let metrics = Metrics::new(&[], &[]);
        let herald = Herald::new(&Feed::new(), &metrics);
        let Opened { ledger, writer, .. } = open_ledger(config, Clock::default(), herald).await?;
        let before = ledger.published().activated_at;
        let done = ledger.submit(command).await.map_err(why);
        let after = ledger.published().activated_at;
        beside(move |_| {
            writer.stop();
            Ok(())
        })
        .await?;
        done.map(|_| Activations { before, after })
    })
}

/// Allows the process as many open files as it may have: a connection takes two, and a shell mostly allows 1,024.
fn have_files_open() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, files = limit.current, "the process may not have more files open");
    }
}

fn make_directory(path: &Path) -> Result<(), Failed> {
    std::fs::create_dir_all(path).map_err(|error| failed(format!("{}: {error}", path.display())))
}

fn ensure_sound(config: &Config, settings: &Settings) -> Result<(), Failed> {
    let faults = super::faults_of(config);
    if faults.is_empty() { Ok(()) } else { Err(settings.faulty(&faults)) }
}

fn why(failure: Failure) -> Failed {
    match failure {
        Failure::Refused(refusal) => match *refusal {
            Refusal::ActivationRefused(reason) => {
                failed(format!("the programmes cannot be activated: {reason}"))
            }
            Refusal::FormatIsNewest => failed(format!(
                "there is nothing to upgrade: the journal is written in format {VERSION}, the newest that this \
                 program knows"
            )),
            other => failed(format!("the ledger refuses: {other:?}")),
        },
        Failure::Overloaded => failed("the ledger is overloaded"),
        Failure::Unavailable => failed("the journal does not answer"),
    }
}

/// Files as the journal keeps them.
pub fn as_entry(files: Vec<(String, String)>) -> Vec<ProgrammeFile> {
    files.into_iter().map(|(name, text)| ProgrammeFile { name, text }).collect()
}

/// Hands what the writer appends to the book, and counts.
struct Herald {
    feed: Feed,
    batch: prometheus_client::metrics::histogram::Histogram,
    append: prometheus_client::metrics::histogram::Histogram,
}

impl Herald {
    fn new(feed: &Feed, metrics: &Metrics) -> Box<Self> {
        Box::new(Self {
            feed: feed.clone(),
            batch: metrics.writer_batch_entries.clone(),
            append: metrics.journal_append_seconds.clone(),
        })
    }
}

impl Observer for Herald {
    fn appended(&mut self, entries: &[Arc<Stored>]) {
        self.feed.offer(entries);
    }

    fn batch(&mut self, entries: usize, append: Duration) {
        self.batch.observe(f64::from(u32::try_from(entries).unwrap_or(u32::MAX)));
        self.append.observe(append.as_secs_f64());
    }
}

/// A ledger that was opened, and the snapshot that it was opened from.
struct Opened {
    ledger: Ledger,
    writer: Writer,
    snapshot: Option<Snapshot>,
}

async fn open_ledger(config: &Config, clock: Clock, herald: Box<Herald>) -> Result<Opened, Failed> {
    let (store, snapshots, head_file) = (Store::of(config)?, store::snapshots(config), config.head_file());
    beside(move |runtime| {
        let (mut journal, reader) = (store.new_journal()?, store.reader(runtime.clone())?);
        // Before anything is appended: an older copy stays as it was found.
        ensure_head_is_in(&mut *journal, &head_file)?;
        runtime.block_on(watch::ensure_right_time(&*reader))?;
        let opened = snapshots.and_then(|snapshots| snapshots.open(&mut *journal));
        let (state, snapshot) = opened.map_or_else(Default::default, |(state, used)| (state, Some(used)));
        let journal_id = Key::new(rand::random());
        let (ledger, writer) =
            Ledger::open_from(state, journal, reader, clock, journal_id, herald).map_err(failed)?;
        Ok(Opened { ledger, writer, snapshot })
    })
    .await
}

/// Opens the book and starts to carry the ledger's entries into it.
async fn open_book(store: &Store, ledger: &Ledger, feed: Feed) -> Result<(Arc<dyn Book>, Projector), Failed> {
    let (store, ledger) = (store.clone(), ledger.clone());
    beside(move |runtime| {
        let (mut tables, book) = store.book(feed.clone(), runtime.clone())?;
        let seen = tables.head().map_err(failed)?.position;
        runtime.block_on(ledger.submit(Command::Look)).map_err(why)?;
        if seen > ledger.position() {
            return Err(failed(format!(
                "the book has seen entry {seen}, but the journal ends at entry {}: the journal has lost entries, \
                 as an older copy of it would have. Restore the one that has them; if the loss is accepted, \
                 `subsidy-pos book rebuild` makes the book that of this journal",
                ledger.position()
            )));
        }
        let projector = Projector::start(tables, Arc::clone(ledger.journal()), feed, runtime);
        let fault = |error| failed(format!("the book's projector could not be started: {error}"));
        Ok((book, projector.map_err(fault)?))
    })
    .await
}

async fn run(config: &Config, clock: Clock, dev: bool) -> Result<(), Failed> {
    let metrics = Arc::new(Metrics::new(http::ROUTE_NAMES, http::problem::NAMES));
    let verifier =
        Arc::new(Verifier::open(&config.auth.jwks_file, &config.auth.issuer, &metrics).map_err(failed)?);
    verifier.watch().map_err(failed)?;
    let hash_keys = HashKeys::load(&config.privacy.hash_keys).map_err(|faults| failed(faults.join("\n")))?;
    let signing_key = Arc::new(SigningKey::load(&config.journal.signing_key_file).map_err(failed)?);

    let feed = Feed::new();
    let began = Instant::now();
    let Opened { ledger, writer, snapshot } =
        open_ledger(config, clock, Herald::new(&feed, &metrics)).await?;
    metrics.journal_open_seconds.set(began.elapsed().as_secs_f64());
    metrics.snapshot_position.set(snapshot.map_or(0, |snapshot| snapshot.position));
    prepare_journal(config, &ledger, &hash_keys, dev).await?;
    let (book, projector) = open_book(&Store::of(config)?, &ledger, feed).await?;

    let standing = Arc::new(Standing::new(dev));
    let app = App {
        ledger: ledger.clone(),
        book,
        verifier,
        hash_keys: Arc::new(hash_keys),
        signing_key,
        shield: shield(config, ledger.published().keys.shield_salt())?,
        metrics,
        standing: Arc::clone(&standing),
    };
    let listen = |address: SocketAddr| {
        let socket = TcpListener::bind(address).map_err(|error| failed(format!("{address}: {error}")))?;
        let address = socket.local_addr().map_err(failed)?;
        Ok((socket, address))
    };
    let (api, api_address) = listen(config.server.listen)?;
    let (operations, operations_address) = listen(config.server.operations_listen)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match config.server.workers.get() {
        0 => cores,
        workers => workers as usize,
    };
    let (api, operations) = http::servers(&app, api, operations, workers).map_err(failed)?;
    let watch = Watch {
        ledger: ledger.clone(),
        hash_keys: Arc::clone(&app.hash_keys),
        config: config.clone(),
        standing: Arc::clone(&standing),
    };
    let watch = actix_web::rt::spawn(watch.keep());
    let (api_handle, operations_handle) = (api.handle(), operations.handle());
    let api = actix_web::rt::spawn(api);
    let operations = actix_web::rt::spawn(operations);
    let heads = actix_web::rt::spawn(keep_heads(
        app.clone(),
        config.head_file(),
        Duration::from_secs(config.journal.head_interval_s.get().into()),
    ));
    let audit = start_audit(config, &app, snapshot)?;
    println!("subsidy-pos is ready on http://{api_address}");
    println!("for operations: http://{operations_address}");
    if dev {
        introduce(config, clock, api_address)?;
    }

    wait_for_signal().await?;
    standing.stop();
    let drain_s = config.server.drain_s.get();
    tracing::info!(drain_s, "stopping: requests are served until they are sent elsewhere, and finished");
    // Whoever asks twice is in a hurry.
    let _ = tokio::time::timeout(Duration::from_secs(drain_s.into()), wait_for_signal()).await;
    api_handle.stop(true).await;
    heads.abort();
    watch.abort();
    let knows_its_journal = ledger.trouble().is_none();
    let stopping = tokio::task::spawn_blocking(move || {
        if let Some(audit) = audit {
            audit.stop();
        }
        let head = writer.stop();
        projector.stop();
        head
    });
    let head = stopping.await.map_err(failed)?;
    if let Some(head) = head.filter(|_| knows_its_journal)
        && let Ok(last) = ledger.stored_at(head).await
    {
        sign_head(&last, &app.signing_key, &config.head_file());
    }
    operations_handle.stop(false).await;
    let _ = api.await;
    let _ = operations.await;
    tracing::info!(position = ledger.position(), "stopped");
    Ok(())
}

/// Starts to compare state, book and journal and to take snapshots, as far as that is asked for.
fn start_audit(config: &Config, app: &App, opened_from: Option<Snapshot>) -> Result<Option<Audit>, Failed> {
    let seconds = |seconds: u32| Some(Duration::from_secs(seconds.into())).filter(|some| !some.is_zero());
    let interval = seconds(config.ledger.snapshot_interval_s.get());
    let tasks = Tasks {
        ledger: app.ledger.clone(),
        book: Arc::clone(&app.book),
        audit_interval: seconds(config.journal.audit_interval_s.get()),
        snapshots: store::snapshots(config).zip(interval),
        opened_from,
    };
    if tasks.audit_interval.is_none() && tasks.snapshots.is_none() {
        return Ok(None);
    }
    let (metrics, standing) = (Arc::clone(&app.metrics), Arc::clone(&app.standing));
    let report = move |finding: Finding| match finding {
        Finding::Agree { position } => {
            metrics.audit_position.set(position);
            metrics.audit_difference.set(0);
            standing.audited(position);
        }
        Finding::Differ(fault) => {
            metrics.audit_difference.set(1);
            if fault.is_of_the_ledger() {
                metrics.snapshot_position.set(0);
            }
            standing.found(fault.summary());
        }
        Finding::Taken { snapshot, took } => {
            metrics.snapshot_position.set(snapshot.position);
            metrics.snapshot_seconds.set(took.as_secs_f64());
        }
    };
    let runtime = tokio::runtime::Handle::current();
    let audit = Audit::start(tasks, runtime, report);
    audit.map(Some).map_err(|error| failed(format!("the audit could not be started: {error}")))
}

fn shield(config: &Config, salt: [u8; 16]) -> Result<Arc<dyn Shield>, Failed> {
    let limit = |per_second: u32| Limit { per_second, burst: per_second };
    let shield = &config.shield;
    let retailers =
        Limit { per_second: shield.retailer_per_second.get(), burst: shield.retailer_burst.get() };
    let platforms = limit(shield.platform_per_second.get());
    let regulators = limit(shield.regulator_per_second.get());
    match &shield.url {
        ShieldUrl::Local => Ok(Arc::new(Local::new(retailers, platforms, regulators))),
        ShieldUrl::Redis(nodes) => {
            let timeout = Duration::from_millis(shield.timeout_ms.get().into());
            let nodes: Vec<_> = nodes.iter().map(Secret::expose).collect();
            let settings = redis::Settings { nodes: &nodes, timeout, salt, retailers, platforms, regulators };
            Ok(Arc::new(Redis::start(settings).map_err(failed)?))
        }
    }
}

/// Sees that the journal knows this process's hash keys and programmes, and opens development funds.
async fn prepare_journal(
    config: &Config,
    ledger: &Ledger,
    hash_keys: &HashKeys,
    dev: bool,
) -> Result<(), Failed> {
    // A key is told to the journal by the first process that writes under it: by then every process can
    // know it, without having been unready for the lack of it.
    let writing = hash_keys.writing();
    let (key, check) = (writing.id().to_string(), writing.check_value().into());
    let introduce = Command::IntroduceHashKey { key: key.into(), check };
    match ledger.submit(introduce).await {
        // Said below, with whatever else differs.
        Err(Failure::Refused(refusal)) if matches!(*refusal, Refusal::HashKeyDiffers) => {}
        done => drop(done.map_err(why)?),
    }
    let files = as_entry(programme_files(config)?);
    let published = ledger.published();
    if let Some(differs) = watch::missing_key(&published, hash_keys) {
        return Err(failed(format!("{differs}; without it persons would not be recognised")));
    }
    if published.activated_at == 0 || dev {
        ledger.submit(Command::Activate(files)).await.map_err(why)?;
    } else if published.is_other_than(&files) {
        return Err(failed(
            "the programme files differ from those activated in the journal; `subsidy-pos activate` makes them apply",
        ));
    }
    if dev {
        open_dev_funds(ledger).await?;
    }
    Ok(())
}

async fn open_dev_funds(ledger: &Ledger) -> Result<(), Failed> {
    let Outcome::Funds { funds: open, .. } = ledger.submit(Command::Funds).await.map_err(why)? else {
        return Ok(());
    };
    let now = ledger.clock().now();
    let published = ledger.published();
    let programmes = published.programmes.iter().filter(|programme| programme.in_force.contains(now));
    for (programme, city) in programmes.flat_map(|programme| ZHEJIANG_CITIES.map(|city| (programme, city))) {
        let Some(fund) = dev_fund(programme, city) else { continue };
        let is_open = open.iter().any(|open| {
            open.fund_id == fund.fund_id
                || (open.programme == fund.programme && open.region_code == fund.region_code)
        });
        if !is_open {
            match ledger.submit(Command::OpenFund(Box::new(fund))).await {
                Ok(_) => {}
                // Another process on the same journal was faster.
                Err(Failure::Refused(refusal))
                    if matches!(*refusal, Refusal::FundExists | Refusal::FundOverlaps) => {}
                Err(failure) => return Err(why(failure)),
            }
        }
    }
    Ok(())
}

fn dev_fund(programme: &Programme, city: &str) -> Option<OpenFund> {
    let region_code = RegionCode::parse(city).ok()?;
    if !programme.regions.value.cover(&region_code) {
        return None;
    }
    Some(OpenFund {
        fund_id: FundId::parse(&format!("{}.{city}", programme.id))?,
        programme: programme.id.clone(),
        region_code,
        from: programme.in_force.from.value,
        to: programme.in_force.to.value,
        budget: DEV_BUDGET,
        by: "development".into(),
        request: Key::new(rand::random()),
        fingerprint: Key::new(rand::random()),
    })
}

/// Signs the journal's head at intervals and keeps it outside the database.
async fn keep_heads(app: App, file: std::path::PathBuf, every: Duration) {
    let mut signed = 0;
    loop {
        if app.ledger.position() != signed
            && let Ok(last) = app.ledger.last().await
        {
            let is_kept = sign_head(&last, &app.signing_key, &file);
            app.standing.set_head_lost(!is_kept);
            if is_kept {
                signed = last.entry.position;
                app.metrics.head_position.set(signed);
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Refuses a journal without the entry that the newest signed head here names: a process that signed it, or
/// another before it, has answered from that entry.
fn ensure_head_is_in(journal: &mut dyn Journal, file: &Path) -> Result<(), Failed> {
    if !file.exists() {
        return Ok(());
    }
    let head = SignedHead::load(file).map_err(failed)?;
    let found = journal.read(head.position.saturating_sub(1), 1).map_err(failed)?;
    if found.first().is_some_and(|row| (row.position, row.hash) == (head.position, head.hash)) {
        return Ok(());
    }
    Err(failed(format!(
        "the journal does not have entry {} ({}) that {} signs: it is an older copy, or another journal. Restore the \
         one that has it; if the loss is accepted, keep that file elsewhere as evidence and start again",
        head.position,
        head.hash,
        file.display()
    )))
}

/// Whether the head that `last` makes was signed and kept.
fn sign_head(last: &Stored, key: &SigningKey, file: &Path) -> bool {
    let saved = SignedHead::sign(key, last).map_err(std::io::Error::other).and_then(|head| head.save(file));
    if let Err(error) = &saved {
        tracing::error!(%error, file = %file.display(), "the signed head could not be written");
    }
    saved.is_ok()
}

async fn wait_for_signal() -> Result<(), Failed> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Prints a token for each role and a sale to paste.
fn introduce(config: &Config, clock: Clock, address: SocketAddr) -> Result<(), Failed> {
    let key = SigningKey::load(&DevKeys::in_dir(&config.ledger.data_dir).token_key_file).map_err(failed)?;
    let token = |role: Role, subject: &str, retailers: Option<Vec<String>>| {
        let new = NewToken {
            role,
            subject: subject.into(),
            retailers,
            regions: None,
            ttl: Duration::from_secs(limits::DEV_TOKEN_TTL_S),
        };
        auth::mint(&key, &config.auth.issuer, &new, Clock::default().now()).map_err(failed)
    };
    let retailer = token(Role::Retailer, DEV_RETAILER, None)?;
    println!("\nretailer token:\n{retailer}\n");
    println!("platform token:\n{}\n", token(Role::Platform, "dev-platform", Some(vec!["*".into()]))?);
    println!("regulator token:\n{}\n", token(Role::Regulator, "dev-officer", None)?);
    let ahead_s = (clock.now().ms() - Clock::default().now().ms()) / 1000;
    let date = if ahead_s == 0 { "date".to_owned() } else { format!("date -d '{ahead_s:+} seconds'") };
    println!("Paste this to sell a pair of smart glasses (a new person, device and order each time):");
    println!(
        r#"curl -sS http://{address}/v1/claims -H 'Authorization: Bearer {retailer}' -H 'Content-Type: application/json' -H "Idempotency-Key: $(date +%s%N)" -d '{{"mode":"redeem","order_no":"SO-'$(date +%s%N)'","category":"smart_glasses","price":"4000.00","region_code":"330106","sold_at":"'$({date} +%FT%T%:z)'","consumer":{{"id_type":"hm_travel_permit","id_number":"H'$(date +%s%N | tail -c 9)'"}},"device":{{"sn":"SN-'$(date +%s%N)'","barcode":"6901234567892","imei":[]}},"sale_channel":"offline"}}'"#
    );
    Ok(())
}
