//! The service as a process of its own, with its own data directory and ports.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use subsidy_pos::time::Timestamp;
use tempfile::TempDir;

use super::client::{Address, Answer, Caller};
use super::identifiers::{fresh_key, fresh_number, fresh_uscc};
use super::postgres::Database;
use super::{JUNE_2026, Sale, ended_within, eventually, instant};

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_subsidy-pos");

/// How a service is started.
#[derive(Clone)]
pub struct Options {
    /// What the service's clock shows when the test begins; `None` for the machine's own time.
    pub clock: Option<Timestamp>,
    /// Whether `--dev` is given.
    pub dev: bool,
    /// A configuration file.
    pub config: Option<PathBuf>,
    /// Where the data lives; `None` for a new temporary directory.
    pub data: Option<PathBuf>,
    /// Variables of the environment.
    pub env: Vec<(String, String)>,
    /// How many open files it is allowed at first; `None` for as many as the tests are.
    pub files: Option<u32>,
    /// Where the ledger is kept; `None` for files in the data directory.
    pub database: Option<Database>,
}

impl Default for Options {
    fn default() -> Self {
        let database = ON_POSTGRES.get().then(Database::new);
        Self {
            clock: Some(instant(JUNE_2026)),
            dev: true,
            config: None,
            data: None,
            env: Vec::new(),
            files: None,
            database,
        }
    }
}

thread_local! {
    /// Whether the services that this thread starts keep their ledger in PostgreSQL unless they are told
    /// where.
    static ON_POSTGRES: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test once more, with the ledgers of its services in PostgreSQL.
pub fn on_postgres(test: impl FnOnce()) {
    ON_POSTGRES.set(true);
    test();
}

/// Makes tests of these tests once more, in a module of their own, on PostgreSQL.
macro_rules! also_on_postgres {
    ($($test:ident),* $(,)?) => {
        mod on_postgres {
            $(
                #[test]
                fn $test() {
                    crate::support::service::on_postgres(super::$test);
                }
            )*
        }
    };
}
pub(crate) use also_on_postgres;

impl Options {
    /// A service whose clock starts at `clock`.
    pub fn at(clock: &str) -> Self {
        Self { clock: Some(instant(clock)), ..Self::default() }
    }

    /// A service that keeps its data in `data`.
    pub fn on(data: &Path) -> Self {
        Self { data: Some(data.to_owned()), ..Self::default() }
    }

    /// The same with the ledger in `database`.
    pub fn in_database(mut self, database: &Database) -> Self {
        self.database = Some(database.clone());
        self
    }

    /// The same begun by whoever allows it no more open files than `files` unless it asks for more.
    pub fn files(mut self, files: u32) -> Self {
        self.files = Some(files);
        self
    }

    /// The same with a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How a service that did not come up ended.
#[derive(Debug)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// Everything it printed.
    pub output: String,
}

/// A running service, or one that was stopped and can be started again on the same data. It is killed
/// when the test is done with it.
pub struct Service {
    options: Options,
    data: PathBuf,
    /// The database's URL, or else the data directory.
    ledger: String,
    /// Deletes the data with the service.
    _directory: Option<TempDir>,
    address: Address,
    operations: Address,
    /// What the service's clock is ahead of the machine's, in milliseconds.
    offset_ms: i64,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
    tokens: Mutex<HashMap<Vec<String>, String>>,
    regulator: Mutex<Option<Caller>>,
}

impl Service {
    /// A service for development on an empty directory, in June 2026.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// A service started so.
    #[track_caller]
    pub fn start_with(options: Options) -> Self {
        match Self::try_start(options) {
            Ok(service) => service,
            Err(exit) => panic!("the service ended with {}:\n{}", exit.status, exit.output),
        }
    }

    /// A service started so, or how it ended.
    pub fn try_start(options: Options) -> Result<Self, Exit> {
        let directory =
            options.data.is_none().then(|| TempDir::with_prefix("subsidy-pos-").expect("a directory"));
        let data = match (&options.data, &directory) {
            (Some(data), _) => data.clone(),
            (None, Some(directory)) => directory.path().join("data"),
            (None, None) => unreachable!("one of them is there"),
        };
        let offset_ms = options.clock.map_or(0, |clock| clock.ms() - machine_ms());
        let in_files = || data.to_str().expect("a path in UTF-8").to_owned();
        let ledger = options.database.as_ref().map_or_else(in_files, Database::url);
        let mut service = Self {
            options,
            data,
            ledger,
            _directory: directory,
            address: Arc::new(RwLock::new(String::new())),
            operations: Arc::new(RwLock::new(String::new())),
            offset_ms,
            child: None,
            log: Arc::default(),
            tokens: Mutex::default(),
            regulator: Mutex::default(),
        };
        service.run()?;
        Ok(service)
    }

    /// Starts the process and waits until it is ready.
    fn run(&mut self) -> Result<(), Exit> {
        super::watch();
        let mut command = match self.options.files {
            Some(files) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files}:")).arg(PROGRAM);
                command
            }
            None => Command::new(PROGRAM),
        };
        command.arg("serve").arg("--data").arg(&self.data).args(["--listen", "127.0.0.1:0"]);
        if self.options.dev {
            command.arg("--dev");
        }
        if self.offset_ms != 0 {
            command.arg(format!("--clock-offset={}s", self.offset_ms.div_euclid(1000)));
            self.offset_ms = self.offset_ms.div_euclid(1000) * 1000;
        }
        if let Some(config) = &self.options.config {
            command.arg("--config").arg(config);
        }
        if let Some(database) = &self.options.database {
            command.env("SUBSIDY_POS__LEDGER__URL", database.url());
        }
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the service starts");
        let printed_before = self.log.lock().expect("the log").len();
        let readers = [
            collect(child.stdout.take().expect("its output"), &self.log),
            collect(child.stderr.take().expect("its errors"), &self.log),
        ];
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("the process's state") {
                for reader in readers {
                    reader.join().expect("its output to the end");
                }
                let output = self.log.lock().expect("the log")[printed_before..].join("\n");
                return Err(Exit { status, output });
            }
            let addresses = printed_addresses(&self.log.lock().expect("the log")[printed_before..]);
            if let Some((address, operations)) = addresses {
                *self.address.write().expect("the address") = address;
                *self.operations.write().expect("the address") = operations;
                let ready = self.nobody().try_send("GET", "/readyz", &[], None);
                if ready.is_ok_and(|answer| answer.status == 200) {
                    self.child = Some(child);
                    return Ok(());
                }
            }
            if began.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                panic!(
                    "not ready within a minute:\n{}",
                    self.log.lock().expect("the log")[printed_before..].join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the service's clock shows, give or take the machine's pace.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_ms(machine_ms() + self.offset_ms)
    }

    /// A sale made just now.
    pub fn sale(&self) -> Sale {
        Sale::at(self.now())
    }

    /// Where the ledger is kept, if not in files.
    pub fn database(&self) -> &Database {
        self.options.database.as_ref().expect("a service on PostgreSQL")
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `host:port` of the interface for tills.
    pub fn address(&self) -> String {
        self.address.read().expect("the address").clone()
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running service").id()
    }

    /// Everything printed so far, by every process on this data.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").join("\n")
    }

    /// Sends a signal to the process.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill runs").success(), "the process is there");
    }

    /// Asks the process to stop and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// Waits until the process has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running service");
        eventually("the process ends", Duration::from_secs(40), || child.try_wait().expect("its state"))
    }

    /// Ends the process without a word (SIGKILL).
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running service");
        child.kill().expect("it can be killed");
        ended_within(&mut child, Duration::from_secs(20)).expect("it ended");
    }

    /// Starts the process again on the same data, its clock going on.
    #[track_caller]
    pub fn start_again(&mut self) {
        if let Err(exit) = self.try_start_again() {
            panic!("the service did not start again, {}:\n{}", exit.status, exit.output);
        }
    }

    /// The same, or how it ended.
    pub fn try_start_again(&mut self) -> Result<(), Exit> {
        assert!(self.child.is_none(), "it was stopped");
        self.run()
    }

    /// Stops the service as an operator would and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(self.stop().success(), "it stops without complaint:\n{}", self.log());
        self.start_again();
    }

    /// Moves the clock of the next start `ms` further on.
    pub fn wake_later(&mut self, ms: i64) {
        self.offset_ms += ms;
    }

    /// Restarts the service with its clock `ms` further on.
    #[track_caller]
    pub fn restart_later(&mut self, ms: i64) {
        assert!(self.stop().success(), "it stops without complaint:\n{}", self.log());
        self.wake_later(ms);
        self.start_again();
    }

    /// Restarts the service with its clock at `clock`.
    #[track_caller]
    pub fn restart_at(&mut self, clock: Timestamp) {
        let ahead = clock.ms() - self.now().ms();
        self.restart_later(ahead);
    }

    /// Kills the process and starts it with its clock at `clock`.
    #[track_caller]
    pub fn kill_and_restart_at(&mut self, clock: Timestamp) {
        self.kill();
        self.offset_ms += clock.ms() - self.now().ms();
        self.start_again();
    }

    /// A token as `subsidy-pos token` prints it.
    #[track_caller]
    pub fn token(&self, role: &str, subject: &str, more: &[&str]) -> String {
        let mut arguments = vec!["--role", role, "--subject", subject];
        arguments.extend(more);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut tokens = self.tokens.lock().expect("the tokens");
        if let Some(token) = tokens.get(&arguments) {
            return token.clone();
        }
        let output =
            Command::new(PROGRAM).arg("token").arg("--data").arg(&self.data).args(&arguments).output();
        let output = output.expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let token = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        tokens.insert(arguments, token.clone());
        token
    }

    /// Who has no token.
    pub fn nobody(&self) -> Caller {
        Caller::nobody(&self.address)
    }

    /// Who looks at the operations listener.
    pub fn operator(&self) -> Caller {
        Caller::nobody(&self.operations)
    }

    /// Who bears a token like this.
    #[track_caller]
    pub fn caller(&self, role: &str, subject: &str, more: &[&str]) -> Caller {
        self.nobody().bearing(subject, &self.token(role, subject, more))
    }

    /// A retailer that nobody else is.
    #[track_caller]
    pub fn retailer(&self) -> Caller {
        self.caller("retailer", &fresh_uscc(), &[])
    }

    /// A platform that may speak for every retailer.
    #[track_caller]
    pub fn platform(&self) -> Caller {
        self.caller("platform", &format!("platform-{}", fresh_number()), &["--retailers", "*"])
    }

    /// The regulator of all regions.
    #[track_caller]
    pub fn regulator(&self) -> Caller {
        let mut regulator = self.regulator.lock().expect("the regulator");
        regulator.get_or_insert_with(|| self.caller("regulator", "officer-1", &[])).clone()
    }

    /// Opens a fund of `budget` yuan for the whole time of the programmes in 2026 and returns its id.
    #[track_caller]
    pub fn open_fund(&self, programme: &str, region_code: &str, budget: &str) -> String {
        let fund_id = format!("{programme}.{region_code}.{}", fresh_number());
        let body = fund_body(&fund_id, programme, region_code, budget);
        self.regulator().post_under(&fresh_key(), "/v1/funds", &body).must_be(201);
        fund_id
    }

    /// Freezes the fund `fund_id`.
    #[track_caller]
    pub fn freeze(&self, fund_id: &str) -> Answer {
        let answer = self.regulator().post(&format!("/v1/funds/{fund_id}/freeze"), &json!({}));
        answer.must_be(200);
        answer
    }

    /// Every entry of the journal, parsed, as the regulator gets it.
    #[track_caller]
    pub fn entries(&self) -> Vec<Value> {
        super::journal::rows(&self.regulator()).into_iter().map(|row| row.parsed()).collect()
    }

    /// A metric that has no labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("subsidy_pos_{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().expect("a number")
    }

    /// The metrics as text.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let answer = self.operator().get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// The journal, as an argument that may be a directory or a URL.
    pub fn ledger(&self) -> &str {
        &self.ledger
    }

    /// The arguments that name the journal to a command.
    pub fn place(&self) -> [&str; 2] {
        [if self.options.database.is_some() { "--database-url" } else { "--data" }, &self.ledger]
    }

    /// What `verify` says about the data; it may run beside the service.
    pub fn verify(&self, more: &[&str]) -> Output {
        command(&[&["verify"], &self.place()[..], more].concat())
    }

    /// Fails unless `verify` is content.
    #[track_caller]
    pub fn must_verify(&self) {
        let output = self.verify(&[]);
        assert!(output.status.success(), "verify: {}", said(&output));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            if ended_within(&mut child, Duration::from_secs(20)).is_none() {
                eprintln!("the service was killed and has not ended");
            }
        }
        if std::thread::panicking() {
            let log = self.log.lock().map(|log| log.clone()).unwrap_or_default();
            eprintln!("the end of the service's log:\n{}", log[log.len().saturating_sub(20)..].join("\n"));
        }
    }
}

/// The body that opens a fund for the time from the start of `zj-ai-25` or of 2026 to the end of 2026.
pub fn fund_body(fund_id: &str, programme: &str, region_code: &str, budget: &str) -> Value {
    json!({
        "fund_id": fund_id, "programme": programme, "region_code": region_code,
        "from": "2026-01-01", "to": "2026-12-31", "budget": budget,
    })
}

/// Settings that a service without `--dev` needs, with the keys that one with it has made in `data`.
pub fn key_settings(data: &Path) -> String {
    let keys = data.display();
    format!(
        "[auth]\njwks_file = \"{keys}/dev-jwks.json\"\nissuer = \"subsidy-pos-dev\"\n\
         [privacy]\nhash_keys = [{{ id = \"k1\", file = \"{keys}/dev-hash.key\", use = \"write\" }}]\n\
         [journal]\nsigning_key_file = \"{keys}/dev-head.pem\"\n"
    )
}

/// `subsidy-pos` with these arguments, to its end.
pub fn command(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().expect("the command runs")
}

/// `subsidy-pos verify --data DIR`.
pub fn verify(data: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["verify", "--data", data.to_str().expect("a path")];
    arguments.extend(more);
    command(&arguments)
}

/// Everything a command printed.
pub fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The file below `directory` whose name pleases `wanted`.
#[track_caller]
pub fn find_file(directory: &Path, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let files = files_below(directory);
    let found = files.iter().find(|file| wanted(&file.file_name().expect("a name").to_string_lossy()));
    found.cloned().unwrap_or_else(|| panic!("none of {files:?}"))
}

/// Every file below `directory`.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}

fn machine_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_millis()).expect("a clock before the end of time")
}

fn collect(source: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) -> std::thread::JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines() {
            let Ok(line) = line else { break };
            log.lock().expect("the log").push(line);
        }
    })
}

/// The addresses of tills and operators, once the service has told both.
fn printed_addresses(lines: &[String]) -> Option<(String, String)> {
    let ready = lines.iter().position(|line| line.starts_with("subsidy-pos is ready on"))?;
    let told = lines[ready..].join(" ");
    let (_, of_operators) = told.split_once("operations")?;
    let address = |text: &str| {
        let (_, address) = text.split_once("http://")?;
        let end = address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
        Some(address[..end.unwrap_or(address.len())].to_owned())
    };
    Some((address(&told)?, address(of_operators)?))
}
