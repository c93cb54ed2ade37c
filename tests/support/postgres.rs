//! PostgreSQL servers of the tests' own: on free ports, with passwords, durable as in production, and gone
//! with the test that started them, however it ends.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The role that owns everything in a server, and its password.
pub const OWNER: &str = "postgres";
/// The password of [`OWNER`].
pub const PASSWORD: &str = "a-password-of-the-tests";
/// How long PostgreSQL may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, stopped and removed with the last that holds it.
pub struct Postgres {
    port: u16,
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
    place: Place,
}

/// A database of its own in a server.
#[derive(Clone)]
pub struct Database {
    /// The server.
    pub server: Arc<Postgres>,
    /// The database's name.
    pub name: String,
}

/// How PostgreSQL is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// What is running is broken off and undone; everything is written.
    Fast,
    /// Nothing is written; the next start recovers from the log.
    Immediate,
}

impl Postgres {
    /// The server that tests share which do nothing to it but use a database of their own.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<Postgres>> = LazyLock::new(Postgres::start);
        Arc::clone(&SHARED)
    }

    /// A server of this test's own.
    pub fn start() -> Arc<Self> {
        Self::start_with(&[])
    }

    /// The same with settings such as `fsync=off`.
    pub fn start_with(settings: &[&str]) -> Arc<Self> {
        Self::start_prepared(settings, |_| {})
    }

    /// The same after `prepare` was at the data directory.
    pub fn start_prepared(settings: &[&str], prepare: impl FnOnce(&Path)) -> Arc<Self> {
        let place = Place::new();
        let data = place.directory.path().join("data");
        let copied = as_account("cp").arg("-a").arg(template()).arg(&data).status();
        assert!(copied.expect("cp runs").success(), "the template is copied");
        prepare(&data);
        Self::on(place, settings)
    }

    /// A server that follows this one, which waits for it with every commit.
    pub fn start_standby(&self) -> Arc<Self> {
        let place = Place::new();
        let copied = as_account(bin().join("pg_basebackup"))
            .args(["--write-recovery-conf", "--no-sync", "--checkpoint=fast", "--dbname"])
            .arg(self.url("postgres") + "?application_name=standby")
            .arg("--pgdata")
            .arg(place.directory.path().join("data"))
            .output()
            .expect("pg_basebackup runs");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let standby = Self::on(place, &[]);
        self.execute("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        self.execute("postgres", "SELECT pg_reload_conf()");
        let in_step = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        let began = Instant::now();
        while self.execute("postgres", in_step) != "1" {
            assert!(began.elapsed() < PATIENCE, "the standby follows");
            std::thread::sleep(Duration::from_millis(10));
        }
        standby
    }

    /// Makes a standby the server that is written to.
    pub fn promote(&self) {
        self.execute("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''");
        assert_eq!(self.execute("postgres", "SELECT pg_promote()"), "t");
    }

    fn on(place: Place, settings: &[&str]) -> Arc<Self> {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Self { port: free_port(), settings, process: Mutex::new(None), place };
        while !server.is_run() {
            // Someone has taken the port in the meantime.
            server.port = free_port();
        }
        Arc::new(server)
    }

    /// A new, empty database.
    pub fn database(self: &Arc<Self>) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: Arc::clone(self), name }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How the owner reaches `database`.
    pub fn url(&self, database: &str) -> String {
        self.url_as(OWNER, PASSWORD, database)
    }

    /// How someone reaches `database`.
    pub fn url_as(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@{}/{database}", self.address())
    }

    /// What `psql` prints about `sql`: rows a line, columns separated by `|`.
    #[track_caller]
    pub fn execute(&self, database: &str, sql: &str) -> String {
        let output = psql(&self.url(database), sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Stops the server; it can be started again.
    pub fn stop(&self, how: Stop) {
        let mut process = self.process().take().expect("a running server");
        signal(&process, if how == Stop::Fast { "INT" } else { "QUIT" });
        let began = Instant::now();
        while process.try_wait().expect("its state").is_none() {
            assert!(began.elapsed() < PATIENCE, "PostgreSQL stops");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the server again after [`Postgres::stop`], on the same port.
    pub fn start_again(&self) {
        assert!(self.is_run(), "nobody else takes port {}", self.port);
    }

    /// Stops the server as a loss of power would, and starts it again.
    pub fn restart_immediately(&self) {
        self.stop(Stop::Immediate);
        self.start_again();
    }

    /// Sends a signal, such as `STOP` or `CONT`, to the server's first process and to all those that serve
    /// connections.
    pub fn signal_all(&self, name: &str) {
        let process = self.process();
        let process = process.as_ref().expect("a running server");
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        signal(process, name);
        for child in std::fs::read_to_string(children).expect("its children").split_ascii_whitespace() {
            // One that has ended meanwhile needs none.
            let _ = Command::new("kill").args([&format!("-{name}"), child]).status();
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.place.directory.path().join("log")
    }

    /// Runs it; says whether it could have its port.
    fn is_run(&self) -> bool {
        let directory = self.place.directory.path();
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("its log");
        let mut command = as_account(bin().join("postgres"));
        command.arg("-D").arg(directory.join("data")).args(["-p", &self.port.to_string()]);
        command.arg("-k").arg(directory).args(["-c", "listen_addresses=127.0.0.1"]);
        for setting in ["shared_buffers=64MB", "max_connections=200", "fsync=on"] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut process = command.spawn().expect("PostgreSQL starts");
        let began = Instant::now();
        loop {
            if process.try_wait().expect("its state").is_some() {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                assert!(log.contains("could not bind"), "PostgreSQL has ended:\n{log}");
                return false;
            }
            if psql(&self.url("postgres"), "SELECT 1").status.success() {
                *self.process() = Some(process);
                return true;
            }
            if began.elapsed() > PATIENCE {
                let _ = process.kill();
                panic!(
                    "PostgreSQL does not start:\n{}",
                    std::fs::read_to_string(self.log()).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut process) = self.process().take() {
            signal(&process, "QUIT");
            let _ = process.wait();
        }
    }
}

impl Database {
    /// A new, empty database in the server that tests share.
    pub fn new() -> Self {
        Postgres::shared().database()
    }

    /// How the owner reaches it.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// What `psql` prints about `sql`.
    #[track_caller]
    pub fn execute(&self, sql: &str) -> String {
        self.server.execute(&self.name, sql)
    }

    /// Ends every connection to it, as an administrator would; says how many there were.
    #[track_caller]
    pub fn terminate_backends(&self) -> usize {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
            self.name
        );
        self.server.execute("postgres", &sql).parse().expect("a number")
    }
}

/// `psql` with one command.
pub fn psql(url: &str, sql: &str) -> Output {
    let mut command = Command::new(bin().join("psql"));
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
    command.current_dir("/").stdin(Stdio::null()).output().expect("psql runs")
}

/// A directory for a server. A watchman of its own stops the server and removes the directory when this
/// process ends without having done so.
struct Place {
    watchman: Child,
    directory: TempDir,
}

const WATCHMAN: &str = r#"
trap '' INT TERM
read -r _
if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
    kill -QUIT "$pid"
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
fi
rm -rf "$1"
"#;

impl Place {
    fn new() -> Self {
        let directory = TempDir::with_prefix("subsidy-pos-postgres-").expect("a directory");
        if let Some((user, group)) = *ACCOUNT {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).expect("given away");
        }
        let mut command = Command::new("sh");
        command.args(["-c", WATCHMAN, "watchman"]).arg(directory.path());
        let watchman = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { watchman: watchman.expect("sh runs"), directory }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its input ends, and so does its watch.
        drop(self.watchman.stdin.take());
        let _ = self.watchman.wait();
    }
}

/// A data directory as `initdb` makes it, made once in a process and copied for every server.
fn template() -> PathBuf {
    static TEMPLATE: LazyLock<Place> = LazyLock::new(|| {
        let place = Place::new();
        let directory = place.directory.path();
        let password = directory.join("password");
        std::fs::write(&password, PASSWORD).expect("written");
        let output = as_account(bin().join("initdb"))
            .args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"])
            .arg(format!("--username={OWNER}"))
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(directory.join("template"))
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        place
    });
    TEMPLATE.directory.path().join("template")
}

/// Where the newest PostgreSQL installed has its programs: Debian keeps them off the path.
fn bin() -> &'static Path {
    static BIN: LazyLock<PathBuf> = LazyLock::new(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let installed = versions.filter_map(|version| {
            Some((version.file_name().to_str()?.parse::<u32>().ok()?, version.path().join("bin")))
        });
        let newest = installed.filter(|(_, bin)| bin.join("postgres").exists()).max().map(|(_, bin)| bin);
        let on_path = || {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).find(|bin| bin.join("postgres").exists())
        };
        newest.or_else(on_path).expect("PostgreSQL is installed (Debian: apt-get install postgresql)")
    });
    &BIN
}

/// Who runs PostgreSQL: nobody but root needs another account, as PostgreSQL refuses to run as root.
static ACCOUNT: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
    let own = Command::new("id").arg("-u").output().expect("id runs");
    if own.stdout.trim_ascii() != b"0" {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").expect("the accounts");
    let account = accounts.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut numbers = account.expect("an account called postgres").split(':').skip(1);
    let mut number = || numbers.next().and_then(|number| number.parse().ok()).expect("a number");
    Some((number(), number()))
});

fn as_account(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = *ACCOUNT {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

fn signal(process: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.id().to_string()]).status();
    assert!(status.expect("kill runs").success(), "PostgreSQL is there");
}

/// A port that nobody listens on, below those that the machine gives to whoever connects somewhere.
fn free_port() -> u16 {
    const PORTS: u16 = 9_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(PORTS)).expect("below it");
    loop {
        let port = 11_000 + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Copies a file into a data directory so that PostgreSQL, and nobody else, can read it.
pub fn give(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::copy(from, to).expect("copied");
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o600)).expect("closed to others");
    if let Some((user, group)) = *ACCOUNT {
        std::os::unix::fs::chown(to, Some(user), Some(group)).expect("given away");
    }
}
