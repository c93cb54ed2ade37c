//! The settings of a process, typed and checked before anything starts.
//!
//! They come in layers, each overriding the one before: the built-in `config/default.toml`, under
//! `--dev` the built-in `config/dev.toml`, a configuration file, the environment, and last the
//! flags, which `main` sets on the fields. Every layer is held against the same types, so a fault
//! is found where it was made, and all of them are listed at once.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use zeroize::Zeroizing;

use crate::auth;
use crate::limits;
use crate::secrets::{DevKeys, HashKeyId, HashKeySource, HashKeys, KeyUse, SigningKey, read_bounded};
use crate::telemetry::{LogFormat, LogLevel};

/// What precedes the section and key of a setting in the environment.
pub const VARIABLE_PREFIX: &str = "SUBSIDY_POS__";
/// Every key with its meaning, unit, limit and default.
pub const DEFAULT_TOML: &str = include_str!("../config/default.toml");
const DEV_TOML: &str = include_str!("../config/dev.toml");

/// All settings. `config/default.toml` says more about each key: limits, defaults, how to choose.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How requests come in.
    pub server: Server,
    /// Where claims are kept.
    pub ledger: Ledger,
    /// What keeps floods away.
    pub shield: Shield,
    /// Who may call.
    pub auth: Auth,
    /// How personal data is hashed.
    pub privacy: Privacy,
    /// How the journal's heads are signed.
    pub journal: Journal,
    /// Which programmes there are.
    pub programmes: Programmes,
    /// What is logged, and how.
    pub log: Log,
}

/// Section `server`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address and port of the API.
    pub listen: SocketAddr,
    /// Address and port of metrics and health.
    pub operations_listen: SocketAddr,
    /// HTTP worker threads; 0 is one per core.
    pub workers: Whole<0, { limits::WORKERS_MAX }>,
    /// Seconds for which requests are still served after the process was asked to stop.
    pub drain_s: Whole<0, { limits::DRAIN_S_MAX }>,
}

/// Section `ledger`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Files or PostgreSQL.
    pub url: LedgerUrl,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where snapshots of the state are kept; see [`Config::snapshot_dir`].
    pub snapshot_dir: PathBuf,
    /// Seconds between snapshots, at least; 0 is that none are taken or used.
    pub snapshot_interval_s: Whole<0, 86_400>,
}

/// Section `shield`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shield {
    /// In the process or Redis.
    pub url: ShieldUrl,
    /// How long Redis is waited for, in milliseconds.
    pub timeout_ms: Whole<1, 1000>,
    /// Requests per second of one retailer, itself and through platforms.
    pub retailer_per_second: Rate,
    /// Requests at once of one retailer after a pause.
    pub retailer_burst: Rate,
    /// Requests per second, and at once, of one platform.
    pub platform_per_second: Rate,
    /// Requests per second, and at once, of one officer.
    pub regulator_per_second: Rate,
}

/// Section `auth`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The JWKS file; empty is not set.
    pub jwks_file: PathBuf,
    /// The `iss` of every token; empty is not set.
    pub issuer: String,
}

/// Section `privacy`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// The live hash keys; none is not set.
    pub hash_keys: Vec<HashKeySource>,
}

/// Section `journal`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// The private key that signs the journal's heads; empty is not set.
    pub signing_key_file: PathBuf,
    /// Where the latest signed head goes; see [`Config::head_file`].
    pub head_file: PathBuf,
    /// Seconds between signed heads.
    pub head_interval_s: Whole<1, 86_400>,
    /// Seconds between audits; 0 is never.
    pub audit_interval_s: Whole<0, 2_678_400>,
}

/// Section `programmes`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programmes {
    /// Directory of programme files; empty is the built-in set.
    pub dir: PathBuf,
}

/// Section `log`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least severe events logged.
    pub level: LogLevel,
    /// JSON or text.
    pub format: LogFormat,
}

/// Requests per second, or at once.
pub type Rate = Whole<1, { limits::RATE_PER_SECOND_MAX }>;

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Whole<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Whole<MIN, MAX> {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Whole<MIN, MAX> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not between {MIN} and {MAX}")),
        }
    }
}

/// A text that is never printed, such as an address with a password in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself, to be handed on and not kept.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where the journal and the book are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LedgerUrl {
    /// In files of the data directory.
    Sqlite,
    /// In PostgreSQL.
    Postgres(Secret),
}

impl TryFrom<String> for LedgerUrl {
    type Error = &'static str;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        if url == "sqlite" {
            Ok(Self::Sqlite)
        } else if has_scheme(&url, &["postgres", "postgresql"]) {
            Ok(Self::Postgres(url.into()))
        } else {
            Err("neither \"sqlite\" nor postgres://…")
        }
    }
}

/// What keeps floods and twins away from the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ShieldUrl {
    /// Counters in the process.
    Local,
    /// One Redis, or several nodes of a cluster; never empty.
    Redis(Vec<Secret>),
}

impl TryFrom<String> for ShieldUrl {
    type Error = &'static str;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        if url == "local" {
            return Ok(Self::Local);
        }
        let nodes: Vec<_> = url.split(',').map(str::trim).collect();
        if !nodes.iter().all(|node| has_scheme(node, &["redis", "rediss"])) {
            return Err("neither \"local\" nor redis://…, several of them separated by commas");
        }
        Ok(Self::Redis(nodes.into_iter().map(|node| node.to_owned().into()).collect()))
    }
}

fn has_scheme(url: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    schemes.contains(&scheme) && !rest.is_empty() && !rest.contains(char::is_whitespace)
}

/// One fault of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is: file and line, environment variable, or key.
    pub place: String,
    /// What is wrong. Repeats no value.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// Every fault found in the settings, one a line when printed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

/// What the service is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keys and secrets must be there.
    Production,
    /// `--dev`: what is missing is made.
    Development,
}

impl Config {
    /// Reads the settings from all layers below the flags. `variables` is the environment.
    ///
    /// # Errors
    /// Every fault found in the file and the environment.
    pub fn load(
        mode: Mode,
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let text = file.map(read_file).transpose().map_err(|problem| Problems(vec![problem]))?;
        // A value that is no text is read as TOML, from a document that must outlive the layers.
        let mut ours: Vec<(String, String, String)> = Vec::new();
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if !name.starts_with(VARIABLE_PREFIX) {
                continue;
            }
            match value.into_string() {
                Ok(value) => ours.push((name, format!("v = {value}"), value)),
                Err(_) => problems.push(Problem { place: name, reason: "not text in UTF-8".into() }),
            }
        }
        ours.sort_unstable();

        let mut layers = Layers::new()?;
        if mode == Mode::Development {
            layers.add_text("built-in dev.toml", DEV_TOML, &mut problems);
        }
        if let (Some(file), Some(text)) = (file, &text) {
            layers.add_text(&file.display().to_string(), text, &mut problems);
        }
        for (name, document, value) in &ours {
            if let Err(reason) = layers.add_variable(name, document, value) {
                problems.push(Problem { place: name.clone(), reason });
            }
        }
        if problems.is_empty() { Ok(layers.config) } else { Err(Problems(problems)) }
    }

    /// Names the keys of a development data directory wherever no key is named.
    pub fn use_dev_keys(&mut self, keys: &DevKeys) {
        let set = |path: &mut PathBuf, to: &Path| {
            if path.as_os_str().is_empty() {
                *path = to.into();
            }
        };
        set(&mut self.auth.jwks_file, &keys.jwks_file);
        set(&mut self.journal.signing_key_file, &keys.signing_key_file);
        if self.privacy.hash_keys.is_empty()
            && let Some(id) = HashKeyId::from_name("k1")
        {
            let file = keys.hash_key_file.clone();
            self.privacy.hash_keys.push(HashKeySource { id, file, key_use: KeyUse::Write });
        }
    }

    /// Where snapshots of the state are kept.
    pub fn snapshot_dir(&self) -> PathBuf {
        if self.ledger.snapshot_dir.as_os_str().is_empty() {
            self.ledger.data_dir.join("snapshots")
        } else {
            self.ledger.snapshot_dir.clone()
        }
    }

    /// Where the latest signed head is written.
    pub fn head_file(&self) -> PathBuf {
        if self.journal.head_file.as_os_str().is_empty() {
            self.ledger.data_dir.join("journal.head")
        } else {
            self.journal.head_file.clone()
        }
    }

    /// Every fault that only shows when the settings are seen together, or when the files they
    /// name are read; empty when the service can start. Under `--dev` to be asked after
    /// [`Config::use_dev_keys`].
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut say = |place: &str, reason: String| problems.push(Problem { place: place.into(), reason });
        let unset = |path: &Path| path.as_os_str().is_empty();
        const NOT_SET: &str = "not set; without --dev the service needs it";

        let server = &self.server;
        if server.listen == server.operations_listen && server.listen.port() != 0 {
            say("server.operations_listen", "the same as server.listen".into());
        }
        if unset(&self.ledger.data_dir) {
            say("ledger.data_dir", "empty".into());
        }
        if unset(&self.auth.jwks_file) {
            say("auth.jwks_file", NOT_SET.into());
        } else if let Err(fault) = auth::check_jwks(&self.auth.jwks_file) {
            say("auth.jwks_file", fault.to_string());
        }
        if self.auth.issuer.is_empty() {
            say("auth.issuer", NOT_SET.into());
        }
        if self.privacy.hash_keys.is_empty() {
            say("privacy.hash_keys", NOT_SET.into());
        } else if let Err(faults) = HashKeys::load(&self.privacy.hash_keys) {
            faults.into_iter().for_each(|fault| say("privacy.hash_keys", fault));
        }
        if unset(&self.journal.signing_key_file) {
            say("journal.signing_key_file", NOT_SET.into());
        } else if let Err(fault) = SigningKey::load(&self.journal.signing_key_file) {
            say("journal.signing_key_file", fault.to_string());
        }
        if !unset(&self.programmes.dir) && !self.programmes.dir.is_dir() {
            say("programmes.dir", format!("{} is not a directory", self.programmes.dir.display()));
        }
        problems
    }
}

fn read_file(file: &Path) -> Result<String, Problem> {
    let problem = |reason: String| Problem { place: format!("{}:1", file.display()), reason };
    let bytes = read_bounded(file, limits::CONFIG_BYTES_MAX).map_err(|fault| problem(fault.reason))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| problem("not text in UTF-8".into()))
}

/// The settings as far as they have been read, with what the next one is held against.
struct Layers<'a> {
    table: DeTable<'a>,
    config: Config,
}

impl<'a> Layers<'a> {
    fn new() -> Result<Self, Problems> {
        let place = "built-in default.toml";
        let read = || {
            let table = DeTable::parse(DEFAULT_TOML)?.into_inner();
            let config = Config::deserialize(toml::Deserializer::parse(DEFAULT_TOML)?)?;
            Ok(Self { table, config })
        };
        read().map_err(|error| Problems(vec![problem_at(place, DEFAULT_TOML, &error)]))
    }

    /// Adds the settings of a TOML text.
    fn add_text(&mut self, place: &str, text: &'a str, problems: &mut Vec<Problem>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            problems.extend(errors.iter().map(|error| problem_at(place, text, error)));
            return;
        }
        for (section, settings) in root.into_inner() {
            let span = settings.span();
            let settings = match settings.into_inner() {
                DeValue::Table(settings) if !settings.is_empty() => settings,
                // Only to be told whether there is such a section.
                DeValue::Table(_) => DeTable::new(),
                _ => {
                    let reason = "not in a section".into();
                    problems
                        .push(Problem { place: format!("{place}:{}", line_of(text, span.start)), reason });
                    continue;
                }
            };
            if settings.is_empty()
                && let Err(error) = self.add(section.clone(), None)
            {
                problems.push(problem_at(place, text, &error));
            }
            for setting in settings {
                let key = format!("{}.{}", section.get_ref(), setting.0.get_ref());
                if let Err(error) = self.add(section.clone(), Some(setting)) {
                    let Problem { place, reason } = problem_at(place, text, &error);
                    problems.push(Problem { place, reason: format!("{key}: {reason}") });
                }
            }
        }
    }

    /// Adds the setting of an environment variable. Its value is taken as the kind of value that
    /// the default is.
    fn add_variable(&mut self, name: &str, document: &'a str, value: &'a str) -> Result<(), String> {
        let (section, key, default) = self.find(name).ok_or("no such setting")?;
        let value = if matches!(default, DeValue::String(_)) {
            Spanned::new(0..0, DeValue::String(value.into()))
        } else {
            let table = DeTable::parse(document).map_err(|_| "not a value in TOML")?.into_inner();
            match table.into_iter().collect::<Vec<_>>() {
                mut one if one.len() == 1 => one.remove(0).1,
                _ => return Err("not one value in TOML".into()),
            }
        };
        self.add(section, Some((key, value))).map_err(|error| without_values(error.message()))
    }

    /// The section, key and present value of the setting a variable stands for.
    fn find(&self, name: &str) -> Option<(Spanned<DeString<'a>>, Spanned<DeString<'a>>, &DeValue<'a>)> {
        let (named_section, named_key) = name.strip_prefix(VARIABLE_PREFIX)?.split_once("__")?;
        let is = |key: &Spanned<DeString<'_>>, named: &str| key.get_ref().to_ascii_uppercase() == named;
        let (section, settings) = self.table.iter().find(|(section, _)| is(section, named_section))?;
        let settings = settings.get_ref().as_table()?;
        let (key, value) = settings.iter().find(|(key, _)| is(key, named_key))?;
        Some((section.clone(), key.clone(), value.get_ref()))
    }

    /// Adds one setting if all settings are still good with it.
    fn add(
        &mut self,
        section: Spanned<DeString<'a>>,
        setting: Option<(Spanned<DeString<'a>>, Spanned<DeValue<'a>>)>,
    ) -> Result<(), toml::de::Error> {
        let mut table = self.table.clone();
        let span = section.span();
        let settings =
            table.entry(section).or_insert_with(|| Spanned::new(span, DeValue::Table(DeTable::new())));
        if let (DeValue::Table(settings), Some((key, value))) = (settings.get_mut(), setting) {
            settings.insert(key, value);
        }
        self.config = Config::deserialize(toml::Deserializer::from(Spanned::new(0..0, table.clone())))?;
        self.table = table;
        Ok(())
    }
}

fn problem_at(place: &str, text: &str, error: &toml::de::Error) -> Problem {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    Problem { place: format!("{place}:{line}"), reason: without_values(error.message()) }
}

/// The line, counted from 1, that the byte at `offset` is on.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// An error of deserialisation without the value it quotes, which may be a secret in the wrong
/// place: `invalid type: string "…", expected u16` becomes `invalid type: string, expected u16`.
fn without_values(message: &str) -> String {
    let message = message.trim();
    let quoted = ["invalid type: ", "invalid value: "].iter().any(|start| message.starts_with(start));
    match (quoted, message.find(['"', '`']), message.rfind(", expected ")) {
        (true, Some(value), Some(expected)) if value < expected => {
            let (before, after) = (message.get(..value), message.get(expected..));
            format!("{}{}", before.unwrap_or_default().trim_end(), after.unwrap_or_default())
        }
        _ => message.lines().collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(mode: Mode, text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.toml");
        std::fs::write(&file, text).unwrap();
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Config::load(mode, Some(&file), variables).map_err(|problems| {
            let dir = format!("{}/", dir.path().display());
            let strip = |problem: Problem| Problem { place: problem.place.replace(&dir, ""), ..problem };
            Problems(problems.0.into_iter().map(strip).collect())
        })
    }

    fn file(text: &str) -> Result<Config, Problems> {
        load(Mode::Production, text, &[])
    }

    fn variable(name: &str, value: &str) -> Result<Config, Problems> {
        load(Mode::Production, "", &[(&format!("{VARIABLE_PREFIX}{name}"), value)])
    }

    fn defaults() -> Config {
        Config::load(Mode::Production, None, []).unwrap()
    }

    #[test]
    fn the_default_file_says_what_holds_without_any_file() {
        let own = file(DEFAULT_TOML).unwrap();
        assert_eq!(own, defaults());
        assert_eq!(own.server.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(own.server.operations_listen.to_string(), "127.0.0.1:9090");
        assert_eq!(own.ledger.url, LedgerUrl::Sqlite);
        assert_eq!(own.shield.url, ShieldUrl::Local);
        assert_eq!((own.shield.retailer_per_second.get(), own.shield.retailer_burst.get()), (1000, 1000));
        assert_eq!(own.shield.timeout_ms.get(), 20);
    }

    #[test]
    fn the_default_file_names_every_key_and_says_something_about_each() {
        // No key has another default: left out of the file, it is missed.
        let lines: Vec<_> = DEFAULT_TOML.lines().collect();
        let is_key = |line: &str| line.starts_with(|first: char| first.is_ascii_lowercase());
        assert_eq!(lines.iter().filter(|line| is_key(line)).count(), 24);
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_key(line)) {
            let without: Vec<_> =
                lines.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, line)| *line).collect();
            let error = toml::from_str::<Config>(&without.join("\n")).unwrap_err();
            assert!(error.message().contains("missing field"), "{line}: {error}");
            assert!(lines[at - 1].starts_with('#'), "{line} has no comment");
        }
    }

    #[test]
    fn the_environment_overrides_the_file_and_the_file_the_defaults() {
        let config = load(
            Mode::Production,
            "[server]\nlisten = \"0.0.0.0:80\"\nworkers = 3\n[auth]\nissuer = \"file\"",
            &[("SUBSIDY_POS__SERVER__WORKERS", "4"), ("SUBSIDY_POS__AUTH__ISSUER", "7"), ("PATH", "/bin")],
        )
        .unwrap();
        assert_eq!(config.server.listen.to_string(), "0.0.0.0:80");
        assert_eq!(config.server.workers.get(), 4);
        assert_eq!(config.auth.issuer, "7");
        assert_eq!(config.server.operations_listen, defaults().server.operations_listen);
    }

    #[test]
    fn every_key_can_be_set_from_the_environment() {
        let table: toml::Table = DEFAULT_TOML.parse().unwrap();
        for (section, settings) in table {
            for (key, value) in settings.as_table().unwrap() {
                let name = format!("{}__{}", section.to_uppercase(), key.to_uppercase());
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!(variable(&name, &value).unwrap(), defaults(), "{name}");
            }
        }
        let keys =
            r#"[{id = "k1", file = "/s/k1", use = "write"}, {id = "k2", file = "/s/k2", use = "check"}]"#;
        let set = variable("PRIVACY__HASH_KEYS", keys).unwrap().privacy.hash_keys;
        assert_eq!(set.iter().map(|key| key.key_use).collect::<Vec<_>>(), [KeyUse::Write, KeyUse::Check]);
    }

    #[test]
    fn hash_keys_can_be_written_in_either_form_of_toml() {
        let inline = "[privacy]\nhash_keys = [{ id = \"k1\", file = \"/s/k1\", use = \"write\" }]";
        let tables = "[[privacy.hash_keys]]\nid = \"k1\"\nfile = \"/s/k1\"\nuse = \"write\"";
        assert_eq!(file(inline).unwrap(), file(tables).unwrap());
    }

    #[test]
    fn under_dev_ports_are_free_rates_high_and_logs_for_people_unless_said_otherwise() {
        let dev = load(Mode::Development, "[shield]\nretailer_burst = 5", &[]).unwrap();
        assert_eq!((dev.server.listen.port(), dev.server.operations_listen.port()), (0, 0));
        assert_eq!((dev.shield.retailer_per_second.get(), dev.shield.retailer_burst.get()), (50_000, 5));
        assert_eq!(dev.log.format, LogFormat::Text);
        assert_eq!(dev.auth.issuer, "subsidy-pos-dev");
    }

    #[test]
    fn each_fault_in_a_file_is_named_by_its_line_and_reason() {
        for (text, place, reason) in [
            ("\n[server]\nlisten = \"8080\"", "own.toml:3", "server.listen: invalid socket address"),
            (
                "[server]\n\nlisten = \"localhost:8080\"",
                "own.toml:3",
                "server.listen: invalid socket address",
            ),
            ("[server]\nlisten = 8080", "own.toml:2", "server.listen: invalid type: integer, expected"),
            ("[server]\nworkers = 257", "own.toml:2", "server.workers: 257 is not between 0 and 256"),
            ("[server]\nworkers = -1", "own.toml:2", "server.workers: -1 is not between"),
            (
                "[server]\nworkers = 1.5",
                "own.toml:2",
                "server.workers: invalid type: floating point, expected i64",
            ),
            (
                "[server]\nlisen = \"1.2.3.4:5\"",
                "own.toml:2",
                "server.lisen: unknown field `lisen`, expected one of",
            ),
            ("\n[sever]\nlisten = 1", "own.toml:2", "unknown field `sever`, expected one of"),
            ("\n\n[sever]", "own.toml:3", "unknown field `sever`, expected one of"),
            ("\nlisten = 1", "own.toml:2", "not in a section"),
            ("[server]\nlisten = ", "own.toml:2", ""),
            ("[server]\nworkers = 1\nworkers = 1", "own.toml:3", "duplicate key"),
            ("[ledger]\nurl = \"mysql://x\"", "own.toml:2", "neither \"sqlite\" nor postgres"),
            ("[ledger]\nurl = \"postgres://\"", "own.toml:2", "neither \"sqlite\" nor postgres"),
            ("[shield]\nurl = \"redis://a,http://b\"", "own.toml:2", "neither \"local\" nor redis"),
            ("[shield]\nurl = \"redis://a,\"", "own.toml:2", "neither \"local\" nor redis"),
            ("[shield]\ntimeout_ms = 0", "own.toml:2", "0 is not between 1 and 1000"),
            ("[shield]\nretailer_per_second = 0", "own.toml:2", "0 is not between 1 and 1000000"),
            ("[log]\nlevel = \"loud\"", "own.toml:2", "unknown variant `loud`, expected one of `error`"),
            (
                "[[privacy.hash_keys]]\nid = \"K1\"\nfile = \"f\"\nuse = \"write\"",
                "own.toml:2",
                "a hash key is named",
            ),
            (
                "[[privacy.hash_keys]]\nid = \"k1\"\nfile = \"f\"\nuse = \"read\"",
                "own.toml:4",
                "unknown variant `read`",
            ),
            ("[[privacy.hash_keys]]\nid = \"k1\"\nfile = \"f\"", "own.toml:1", "missing field `use`"),
            (
                "[[privacy.hash_keys]]\nid = \"k1\"\nfile = \"f\"\nuse = \"write\"\nsecret = 1",
                "own.toml:5",
                "unknown field `secret`",
            ),
        ] {
            let problems = file(text).unwrap_err().0;
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].place, place, "{text}: {}", problems[0]);
            assert!(problems[0].reason.contains(reason), "{text}: {}", problems[0]);
        }
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let text = "[server]\nworkers = 999\nlisten = 1\n[nothing]\nx = 1\n[log]\nlevel = \"loud\"";
        let problems = load(Mode::Production, text, &[("SUBSIDY_POS__LOG__FORMAT", "xml")]).unwrap_err();
        let mut places: Vec<_> = problems.0.iter().map(|problem| problem.place.as_str()).collect();
        places.sort_unstable();
        assert_eq!(
            places,
            ["SUBSIDY_POS__LOG__FORMAT", "own.toml:2", "own.toml:3", "own.toml:4", "own.toml:7"]
        );
        assert_eq!(problems.to_string().lines().count(), 5);
    }

    #[test]
    fn a_variable_under_the_prefix_must_be_a_setting() {
        for name in
            ["SERVER__LISEN", "SERVER", "SERVER__", "server__listen", "SERVER__LISTEN__X", "X__LISTEN", ""]
        {
            let problem = &variable(name, "x").unwrap_err().0[0];
            assert_eq!(problem.to_string(), format!("{VARIABLE_PREFIX}{name}: no such setting"));
        }
    }

    #[test]
    fn a_variable_with_a_bad_value_is_refused_by_name() {
        for (name, value, reason) in [
            ("SERVER__WORKERS", "many", "not a value in TOML"),
            ("SERVER__WORKERS", "", "not a value in TOML"),
            ("SERVER__WORKERS", "1\nw = 2", "not one value in TOML"),
            ("SERVER__WORKERS", "257", "257 is not between 0 and 256"),
            ("SERVER__WORKERS", "\"3\"", "invalid type: string, expected i64"),
            ("SERVER__LISTEN", "8080", "invalid socket address"),
            ("PRIVACY__HASH_KEYS", "[1]", "invalid type: integer, expected"),
            ("LOG__LEVEL", "LOUD", "unknown variant"),
        ] {
            let problem = &variable(name, value).unwrap_err().0[0];
            assert_eq!(problem.place, format!("{VARIABLE_PREFIX}{name}"));
            assert!(problem.reason.contains(reason), "{problem}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let name = OsString::from("SUBSIDY_POS__AUTH__ISSUER");
        let value = OsString::from_vec(b"https://\xff".to_vec());
        let refused = Config::load(Mode::Production, None, [(name, value)]).unwrap_err();
        assert_eq!(refused.to_string(), "SUBSIDY_POS__AUTH__ISSUER: not text in UTF-8");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.toml");
        std::fs::write(&path, b"\xff").unwrap();
        assert!(
            Config::load(Mode::Production, Some(&path), []).unwrap_err().to_string().contains("not text")
        );
        let missing = Config::load(Mode::Production, Some(Path::new("/nowhere.toml")), []).unwrap_err();
        assert!(missing.to_string().starts_with("/nowhere.toml:1: cannot be read"), "{missing}");
    }

    #[test]
    fn secrets_are_not_printed_in_settings_or_faults() {
        let config = load(
            Mode::Production,
            "[ledger]\nurl = \"postgres://till:PASSWORD@db/ledger\"",
            &[("SUBSIDY_POS__SHIELD__URL", "redis://:PASSWORD@a:6379, redis://:PASSWORD@b:6379")],
        )
        .unwrap();
        assert!(!format!("{config:?}").contains("PASSWORD"), "{config:?}");
        let ShieldUrl::Redis(nodes) = &config.shield.url else { panic!() };
        assert_eq!(
            nodes.iter().map(Secret::expose).collect::<Vec<_>>(),
            ["redis://:PASSWORD@a:6379", "redis://:PASSWORD@b:6379"]
        );
        for text in [
            "[ledger]\nurl = \"postgre://till:PASSWORD@db\"",
            "[shield]\nurl = \"redis://:PASSWORD@a,:PASSWORD@b\"",
            "[server]\nworkers = \"PASSWORD, expected \\\" `x`\"",
            "[server]\nlisten = \"PASSWORD\"",
            "[privacy]\nhash_keys = \"PASSWORD\"",
            "[privacy]\nhash_keys = [\"PASSWORD\"]",
            "[ledger]\nurl = \"postgres://PASSWORD",
        ] {
            let problems = file(text).unwrap_err();
            assert!(!problems.to_string().contains("PASSWORD"), "{problems}");
            assert!(!format!("{problems:?}").contains("PASSWORD"), "{problems:?}");
        }
    }

    #[test]
    fn a_production_service_needs_its_keys_and_a_development_one_makes_them() {
        let mut config = defaults();
        let places =
            |config: &Config| config.check().into_iter().map(|problem| problem.place).collect::<Vec<_>>();
        let needed = ["auth.jwks_file", "auth.issuer", "privacy.hash_keys", "journal.signing_key_file"];
        assert_eq!(places(&config), needed);

        let dir = tempfile::tempdir().unwrap();
        config.use_dev_keys(&DevKeys::make(dir.path()).unwrap());
        config.auth.issuer = "https://login.example".into();
        assert_eq!(config.check(), []);
        let mut own = config.clone();
        own.use_dev_keys(&DevKeys::in_dir(Path::new("/elsewhere")));
        assert_eq!(own, config, "keys that are named stay");
        assert_eq!(config.head_file(), Path::new("data/journal.head"));
    }

    #[test]
    fn a_check_reads_the_files_that_are_named_and_lists_every_fault() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = defaults();
        config.use_dev_keys(&DevKeys::make(dir.path()).unwrap());
        std::fs::write(&config.auth.jwks_file, "{\"keys\": [\n{}]}").unwrap();
        std::fs::write(&config.privacy.hash_keys[0].file, "00ff").unwrap();
        std::fs::write(&config.journal.signing_key_file, "").unwrap();
        config.server.operations_listen = config.server.listen;
        config.ledger.data_dir = "".into();
        config.programmes.dir = "/nowhere".into();
        let listed = Problems(config.check()).to_string();
        for problem in [
            "server.operations_listen: the same as server.listen",
            "ledger.data_dir: empty",
            "dev-jwks.json:2: not a key: missing field `kty`",
            "auth.issuer: not set",
            "dev-hash.key:1: a secret of 2 bytes",
            "dev-head.pem:1: not an Ed25519 private key",
            "programmes.dir: /nowhere is not a directory",
        ] {
            assert!(listed.contains(problem), "{problem} is missing:\n{listed}");
        }
    }
}
