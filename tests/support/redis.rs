//! Redis servers that a test starts, breaks and stops.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;

/// Commands that put what no process of ours has written under a key, `{}`.
pub const NONSENSE: &[&[&str]] = &[
    &["SET", "{}", "nonsense"],
    &["SET", "{}", "99999999999999999999999"],
    &["SET", "{}", "-5"],
    &["SET", "{}", "inf"],
    &["SET", "{}", "nan"],
    &["SETRANGE", "{}", "1000000", "x"],
    &["LPUSH", "{}", "1", "2"],
    &["HSET", "{}", "0123456789abcdef", "nonsense", "f", "9", "0123456789abcdee", "99999999999999999 x"],
    &["ZADD", "{}", "1", "x"],
];

/// Redis, or what `SUBSIDY_POS_TEST_REDIS` names, such as `valkey-server`.
fn program() -> std::ffi::OsString {
    std::env::var_os("SUBSIDY_POS_TEST_REDIS").unwrap_or_else(|| "redis-server".into())
}

/// A server of its own, stopped with the test.
pub struct Server {
    /// Where it listens.
    pub port: u16,
    options: Vec<String>,
    directory: TempDir,
    process: Option<Child>,
}

impl Server {
    /// A server on any port.
    pub fn start() -> Self {
        Self::with(None, &[])
    }

    /// A server with these options, on this port, or on any.
    pub fn with(port: Option<u16>, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let directory = TempDir::new().expect("a directory");
        let mut server = Self { port: port.unwrap_or_else(free_port), options, directory, process: None };
        while !server.is_run() {
            // Someone has taken the port in the meantime.
            server.port = port.unwrap_or_else(free_port);
        }
        server
    }

    /// Starts it again, empty, on the same port.
    pub fn run(&mut self) {
        assert!(self.is_run(), "nobody else takes port {}", self.port);
    }

    /// Runs it; says whether it could have its port.
    fn is_run(&mut self) -> bool {
        super::watch();
        let process = Command::new(program())
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .args(&self.options)
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Redis is installed");
        self.process = Some(process);
        eventually("Redis answers", Duration::from_secs(20), || {
            let process = self.process.as_mut().expect("a process");
            if process.try_wait().expect("its state").is_some() {
                return Some(false);
            }
            let is_there = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            (is_there() && !self.say("PING").contains("LOADING")).then_some(true)
        })
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it can be killed");
            process.wait().expect("it ended");
        }
    }

    /// Stops it in its tracks, or lets it go on.
    pub fn signal(&self, signal: &str) {
        let id = self.process.as_ref().expect("Redis answers").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().expect("Redis answers").success());
    }

    /// Says a line, and reads the first line of the answer.
    pub fn say(&self, line: &str) -> String {
        self.say_all(&[line]).pop().expect("Redis answers")
    }

    /// Says lines over one connection, and reads the first line of each answer.
    pub fn say_all(&self, lines: &[&str]) -> Vec<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("Redis answers");
        let mut answers = BufReader::new(stream.try_clone().expect("Redis answers"));
        let answer = |line: &&str| {
            stream.write_all(format!("{line}\r\n").as_bytes()).expect("Redis answers");
            let mut answer = String::new();
            answers.read_line(&mut answer).expect("Redis answers");
            answer.trim_end().to_owned()
        };
        lines.iter().map(answer).collect()
    }

    /// A connection to it.
    pub fn client(&self) -> redis::Connection {
        redis::Client::open(self.url()).expect("Redis answers").get_connection().expect("Redis answers")
    }

    /// Every key it holds.
    pub fn keys(&self) -> Vec<String> {
        redis::cmd("KEYS").arg("*").query(&mut self.client()).expect("Redis answers")
    }

    /// Puts what `nonsense` says in the place of what is under `keys`, at one moment each.
    pub fn poison(&self, keys: &[String], nonsense: &[&str]) {
        let mut client = self.client();
        for key in keys {
            let mut command = redis::cmd(nonsense[0]);
            for argument in &nonsense[1..] {
                command.arg(argument.replace("{}", key));
            }
            let mut both = redis::pipe();
            both.atomic().cmd("DEL").arg(key).add_command(command);
            let _: redis::Value = both.query(&mut client).expect("Redis answers");
        }
    }

    /// Its address for `shield.url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What its clock shows, in microseconds.
    pub fn now_us(&self) -> i64 {
        let (seconds, us): (i64, i64) = redis::cmd("TIME").query(&mut self.client()).expect("Redis answers");
        seconds * 1_000_000 + us
    }

    /// Puts an instant under a rate's key, this far from now, in the place of the one that is there.
    pub fn lie_about_a_rate(&self, key: &str, from_now_us: i64) {
        let instant = self.now_us() + from_now_us;
        redis::cmd("SET").arg(key).arg(instant).exec(&mut self.client()).expect("Redis answers");
    }

    /// The marks of requests in flight that processes have told each other of.
    pub fn marks(&self) -> BTreeSet<[u8; 16]> {
        let mut client = self.client();
        let told = |key: String| redis::cmd("HVALS").arg(key).query(&mut client).expect("Redis answers");
        let told: Vec<Vec<Vec<u8>>> = self.in_flight_keys().map(told).collect();
        let marks = told.iter().flatten().flat_map(|value| {
            let at = value.iter().position(|byte| *byte == b' ').map_or(value.len(), |at| at + 1);
            value[at..].chunks_exact(18)
        });
        marks.filter_map(|mark| mark.first_chunk().copied()).collect()
    }

    /// Says for a process that nobody has started that these requests have come to it this moment.
    pub fn lie_about_requests(&self, process: u64, marks: &BTreeSet<[u8; 16]>) {
        let mut said = format!("{} ", self.now_us() / 1000).into_bytes();
        for mark in marks {
            said.extend(mark);
            said.extend([0, 0]);
        }
        for key in self.in_flight_keys() {
            let mut command = redis::cmd("HSET");
            command.arg(key).arg(format!("{process:016x}")).arg(said.as_slice());
            command.exec(&mut self.client()).expect("Redis answers");
        }
    }

    fn in_flight_keys(&self) -> impl Iterator<Item = String> {
        self.keys().into_iter().filter(|key| key.contains(":in-flight:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters that share the slots.
pub struct Cluster {
    /// The masters.
    pub nodes: Vec<Server>,
}

impl Cluster {
    /// A cluster whose masters know each other.
    pub fn start() -> Self {
        let buses: Vec<_> = (0..3).map(|_| free_port()).collect();
        let nodes: Vec<_> = buses
            .iter()
            .map(|bus| {
                let bus = bus.to_string();
                let options = ["--cluster-enabled", "yes", "--cluster-port", &bus];
                let more = ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"];
                Server::with(None, &[options, more].concat())
            })
            .collect();
        for ((node, slots), (first, bus)) in
            nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]).zip([(&nodes[0], buses[0]); 3])
        {
            assert_eq!(node.say(&format!("CLUSTER ADDSLOTSRANGE {slots}")), "+OK");
            assert_eq!(node.say(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", first.port)), "+OK");
        }
        eventually("the masters know each other", Duration::from_secs(20), || {
            let knows_all = |node: &Server| {
                let info = redis::cmd("CLUSTER").arg("INFO").query(&mut node.client());
                let info: String = info.expect("Redis answers");
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            };
            nodes.iter().all(knows_all).then_some(())
        });
        Self { nodes }
    }

    /// The addresses of all masters.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }
}

/// A port that nobody listens on, below those that the machine gives to whoever connects somewhere: one of
/// these could be taken at any moment, even by its own caller.
pub fn free_port() -> u16 {
    const PORTS: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(PORTS)).expect("Redis answers");
    loop {
        let port = 20_000 + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
