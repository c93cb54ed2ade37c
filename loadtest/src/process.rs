//! The processes a run is made of: the service, what it is compared with, and their databases.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use subsidy_pos::auth::{self, NewToken, Role};
use subsidy_pos::clock::Clock;
use subsidy_pos::config::{Config, Mode};
use subsidy_pos::identity::generate;
use subsidy_pos::secrets::{DevKeys, SigningKey};

use crate::client;
use crate::drafts::RETAILERS;
use crate::machine;

/// How long a process may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(120);

/// The processes that run now, for [`kill_all`].
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().and_then(Pid::from_raw)
}

/// Kills every process that was started and has not been stopped, for a run that ends before its time.
pub fn kill_all() {
    for process in running().drain(..).filter_map(pid) {
        // One that has ended by itself is as good.
        let _ = rustix::process::kill_process(process, Signal::KILL);
    }
}

/// A process that is killed, if it has not been stopped, when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a command; its output goes to a file in `logs`.
    pub fn start(name: &str, logs: &Path, command: &mut Command) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let out = fs::File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        running().push(child.id());
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended.
    fn require_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or("it said nothing");
                bail!("{} has ended ({status}): {last}", self.name)
            }
            None => Ok(()),
        }
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a strange process number")?;
        rustix::process::kill_process(pid, signal)?;
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < until, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of a process that has ended there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        running().retain(|process| *process != self.child.id());
    }
}

/// An address on which nobody listens.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Waits until a process does what is asked of it.
fn wait_for(process: &mut Process, what: &str, mut ready: impl FnMut() -> bool) -> Result<Duration> {
    let began = Instant::now();
    while !ready() {
        process.require_running()?;
        ensure!(
            began.elapsed() < PATIENCE,
            "{} is not {what} after {PATIENCE:?}; see {}",
            process.name,
            process.log.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(began.elapsed())
}

/// Tokens signed with the development key of a data directory.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// One for each retailer.
    pub retailers: Vec<String>,
    /// An officer who sees everything.
    pub regulator: String,
}

impl Tokens {
    /// Makes them; the development keys too, where there are none.
    pub fn make(data: &Path) -> Result<Self> {
        let keys = DevKeys::make(data).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let key = SigningKey::load(&keys.token_key_file).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let issuer = dev_issuer()?;
        let token = |role, subject| {
            let ttl = Duration::from_secs(24 * 3600);
            let new = NewToken { role, subject, retailers: None, regions: None, ttl };
            auth::mint(&key, &issuer, &new, Clock::default().now()).context("making a token")
        };
        let retailers: Result<_> =
            (1..=RETAILERS).map(|n| token(Role::Retailer, generate::uscc_from(n))).collect();
        Ok(Self { retailers: retailers?, regulator: token(Role::Regulator, "loadtest".into())? })
    }
}

/// The issuer of development tokens.
pub fn dev_issuer() -> Result<String> {
    let config = Config::load(Mode::Development, None, std::iter::empty::<(OsString, OsString)>());
    Ok(config.map_err(|problems| anyhow::anyhow!("{problems}"))?.auth.issuer)
}

/// A server under load.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// Where it answers.
    pub address: SocketAddr,
    /// Its operations listener.
    pub operations: Option<SocketAddr>,
    /// From start to ready.
    pub started_in: Duration,
}

impl Server {
    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Starts the service under `--dev`, with limits so high that only its speed is measured. `settings`
    /// are names and values as the environment has them, without the prefix.
    pub fn service(
        name: &str,
        binary: &Path,
        data: &Path,
        logs: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let (address, operations) = (free_address()?, free_address()?);
        let mut command = Command::new(binary);
        command.args(["serve", "--dev", "--listen"]).arg(address.to_string()).arg("--data").arg(data);
        let most = subsidy_pos::limits::RATE_PER_SECOND_MAX.to_string();
        let own = [
            ("SERVER__OPERATIONS_LISTEN", operations.to_string()),
            ("SHIELD__RETAILER_PER_SECOND", most.clone()),
            ("SHIELD__RETAILER_BURST", most.clone()),
            ("SHIELD__REGULATOR_PER_SECOND", most),
            ("LOG__LEVEL", "warn".to_owned()),
        ];
        let given = settings.iter().map(|(key, value)| (*key, (*value).to_owned()));
        for (key, value) in own.into_iter().chain(given) {
            command.env(format!("{}{key}", subsidy_pos::config::VARIABLE_PREFIX), value);
        }
        let mut process = Process::start(name, logs, &mut command)?;
        let ready = || client::get_blocking(address, "/readyz", None).is_ok_and(|(status, _)| status == 200);
        let started_in = wait_for(&mut process, "ready", ready)?;
        Ok(Self { process, address, operations: Some(operations), started_in })
    }

    /// Starts another server of this program's own.
    pub fn own(name: &str, logs: &Path, arguments: &[(&str, String)]) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name.split('-').next().unwrap_or(name)).arg("--listen").arg(address.to_string());
        for (flag, value) in arguments {
            command.arg(flag).arg(value);
        }
        let mut process = Process::start(name, logs, &mut command)?;
        let started_in = wait_for(&mut process, "listening", || TcpStream::connect(address).is_ok())?;
        Ok(Self { process, address, operations: None, started_in })
    }

    /// Main memory it holds, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        machine::resident_bytes(self.process.id())
    }

    /// Ends it in an orderly way.
    pub fn stop(self) -> Result<()> {
        self.process.stop(Signal::TERM)
    }
}

/// The service's program: built again if it can be, else the one beside this program.
pub fn service_binary() -> Result<PathBuf> {
    let beside = std::env::current_exe()?;
    let directory = beside.parent().context("this program lies nowhere")?;
    let binary = directory.join("subsidy-pos");
    // Under `cargo run` the service is brought up to date, built as this program was.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        // Both packages, so that their dependencies are those built already.
        command.args(["build", "--quiet", "--package", "subsidy-pos", "--package", "subsidy-pos-loadtest"]);
        command.args(["--bin", "subsidy-pos"]);
        if directory.file_name().is_some_and(|name| name == "release") {
            command.arg("--release");
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        ensure!(command.status()?.success(), "the service could not be built");
    }
    ensure!(binary.exists(), "{} is missing: build the service first", binary.display());
    Ok(binary)
}

/// A PostgreSQL of this run's own, on a free port.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    bin: PathBuf,
}

/// Who runs PostgreSQL where this program runs as root, which PostgreSQL refuses to.
const POSTGRES_USER: &str = "postgres";

/// Files of 16 MiB that PostgreSQL's log has from the start, somewhat less than it keeps for use again.
const LOG_FILES: u32 = 240;

impl Postgres {
    /// Makes a database cluster in `directory` and starts it. Durability is as PostgreSQL ships it; memory
    /// and log size are what a careful administrator would give it. The files of its log are there already, as
    /// they are where one has been running for a day: whoever commits does not have to make them.
    pub fn start(directory: &Path, logs: &Path) -> Result<Self> {
        let bin = postgres_bin()?;
        let account = account()?;
        let as_account = |program: &str| {
            let mut command = Command::new(bin.join(program));
            if let Some((user, group)) = account {
                command.uid(user).gid(group);
            }
            command.current_dir("/");
            command
        };
        fs::create_dir_all(directory)?;
        if let Some((user, group)) = account {
            std::os::unix::fs::chown(directory, Some(user), Some(group))?;
        }
        let data = directory.join("data");
        let mut initdb = Process::start(
            "initdb",
            logs,
            as_account("initdb")
                .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "-D"])
                .arg(&data),
        )?;
        ensure!(initdb.child.wait()?.success(), "initdb failed; see {}", initdb.log.display());
        let port = free_address()?.port();
        let mut command = as_account("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        command.arg("-k").arg(directory);
        for setting in [
            "listen_addresses=127.0.0.1",
            "shared_buffers=1GB",
            "max_wal_size=8GB",
            "min_wal_size=4GB",
            "max_connections=200",
        ] {
            command.args(["-c", setting]);
        }
        let mut process = Process::start("postgres", logs, &mut command)?;
        let ready = || {
            let mut command = Command::new(bin.join("pg_isready"));
            command.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            command.status().is_ok_and(|status| status.success())
        };
        wait_for(&mut process, "ready", ready)?;
        let postgres = Self { process, port, bin };
        postgres.make_log()?;
        Ok(postgres)
    }

    /// Fills files of the log with nothing and has them used again from the next on.
    fn make_log(&self) -> Result<()> {
        let fill = format!(
            "DO $$ BEGIN FOR i IN 1..{LOG_FILES} LOOP \
             PERFORM pg_logical_emit_message(false, '', ''); PERFORM pg_switch_wal(); END LOOP; END $$"
        );
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"]);
        command.args(["-c", &fill, "-c", "CHECKPOINT"]);
        ensure!(command.status()?.success(), "the log of PostgreSQL could not be made");
        Ok(())
    }

    /// Makes a database and gives its URL.
    pub fn database(&self, name: &str) -> Result<String> {
        let mut command = Command::new(self.bin.join("createdb"));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", name]);
        ensure!(command.status()?.success(), "the database {name} could not be made");
        Ok(self.database_url(name))
    }

    /// The URL of a database that was made.
    pub fn database_url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Its first process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.process.stop(Signal::INT)
    }
}

/// A process and the children that it has now: PostgreSQL has one for each connection.
pub fn with_children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let children = text.split_ascii_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(process).chain(children).collect()
}

fn postgres_bin() -> Result<PathBuf> {
    let shipped = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = shipped
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("postgres").exists())
        .max();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
    };
    newest
        .map(|(_, bin)| bin)
        .or_else(on_path)
        .context("PostgreSQL is not installed (Debian: apt-get install postgresql)")
}

/// The account PostgreSQL runs under, if not this program's.
fn account() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd")?;
    let mut fields = accounts
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&POSTGRES_USER))
        .context("no account called postgres, and PostgreSQL refuses to run as root")?
        .into_iter()
        .skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    Ok(number().zip(number()))
}

/// A Redis of this run's own, on a free port, that keeps nothing on disk.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    /// Its URL.
    pub url: String,
}

impl Redis {
    /// Starts it.
    pub fn start(logs: &Path) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no"]).arg("--dir").arg(logs);
        let mut process = Process::start("redis", logs, &mut command)
            .context("Redis is not installed (Debian: apt-get install redis-server)")?;
        wait_for(&mut process, "listening", || TcpStream::connect(address).is_ok())?;
        Ok(Self { process, url: format!("redis://{address}") })
    }

    /// Makes it say nothing while `work` goes on, with its connections open, as a machine does that hangs.
    pub fn hung<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let process = pid(self.process.id()).context("a strange process number")?;
        rustix::process::kill_process(process, Signal::STOP)?;
        let done = work();
        rustix::process::kill_process(process, Signal::CONT)?;
        done
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.process.stop(Signal::TERM)
    }
}

/// A directory on a disk, removed at the end.
#[derive(Debug)]
pub struct Workplace {
    path: PathBuf,
    keep: bool,
}

impl Workplace {
    /// A new directory in `parent`.
    pub fn new(parent: &Path, keep: bool) -> Result<Self> {
        let path = parent.join(format!("subsidy-pos-loadtest-{}", std::process::id()));
        fs::create_dir_all(path.join("logs"))?;
        machine::require_disk(&path)?;
        Ok(Self { path: path.canonicalize()?, keep })
    }

    /// A directory in it.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Where processes write their logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there, for a look at the logs.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("data and logs are left in {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}
