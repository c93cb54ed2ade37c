//! The commands. Each is one file, but for the small ones.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use subsidy_pos::auth::{self, NewToken, Role};
use subsidy_pos::clock::Clock;
use subsidy_pos::config::{Config, Mode};
use subsidy_pos::http::problem::Problem;
use subsidy_pos::identity::RegionCode;
use subsidy_pos::ledger::Refusal;
use subsidy_pos::money::Fen;
use subsidy_pos::programme::ProgrammeSet;
use subsidy_pos::secrets::{DevKeys, SigningKey};
use subsidy_pos::time::Timestamp;
use subsidy_pos::{programme, programme_files, rules};

mod journal;
mod serve;
mod store;
mod verify;
mod watch;

/// Trade-in subsidies at the point of sale.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve(Serve),
    /// Say what is wrong with the configuration, if anything
    CheckConfig(Settings),
    /// Make the configured programme files the ones that apply; the service must not be running on an
    /// embedded journal
    Activate(Settings),
    /// Print a token signed with the development key of a data directory
    Token(Token),
    /// Check every hash, fold the journal again and compare funds, totals and signed head; in PostgreSQL a role
    /// that only reads (`subsidy_auditor`) is enough
    Verify(Verify),
    /// Move and upgrade journals
    #[command(subcommand)]
    Journal(Journal),
    /// Mend the book
    #[command(subcommand)]
    Book(Book),
    /// Say what a sale would get by the rules alone
    Quote(Quote),
}

/// Where settings come from: file, environment (`SUBSIDY_POS__SECTION__KEY`), flags; later ones win.
#[derive(Debug, Args)]
struct Settings {
    /// A TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where journal, book and development keys are kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Settings {
    fn load(&self, mode: Mode) -> Result<Config, Failed> {
        let mut config = Config::load(mode, self.config.as_deref(), std::env::vars_os()).map_err(failed)?;
        if let Some(data) = &self.data {
            config.ledger.data_dir.clone_from(data);
        }
        Ok(config)
    }

    /// Settings that each can be read but do not fit together, or name what cannot be used.
    fn faulty(&self, faults: &[String]) -> Failed {
        let place = self.config.as_deref().map_or_else(|| "the settings".into(), Path::to_string_lossy);
        failed(format!("{place}: the configuration has faults\n{}", faults.join("\n")))
    }
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// Where the service listens
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Make keys, open funds and admit any valid retailer code: for trying out, never for real money
    #[arg(long)]
    dev: bool,
    /// Run the service's clock ahead (`40d`, `90m`, `30s`) or behind (`-1h`)
    #[arg(long, value_name = "TIME", requires = "dev", value_parser = parse_offset, allow_hyphen_values = true)]
    clock_offset: Option<i64>,
}

#[derive(Debug, Args)]
struct Token {
    /// The data directory whose development key signs
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// retailer, platform or regulator
    #[arg(long)]
    role: Role,
    /// A retailer's unified social credit code, a platform's name, or an officer
    #[arg(long)]
    subject: String,
    /// A platform's retailers, or * for all
    #[arg(long, value_delimiter = ',', value_name = "A,B|*")]
    retailers: Option<Vec<String>>,
    /// A regulator's regions; all if absent
    #[arg(long, value_delimiter = ',')]
    regions: Option<Vec<String>>,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = auth::parse_ttl)]
    ttl: Duration,
}

#[derive(Debug, Subcommand)]
enum Journal {
    /// Copy a journal byte for byte to a place that has none, also from beside a live service
    Copy(Copy),
    /// Make the tables of an empty journal, for a service that may not
    Make(Make),
    /// Take a snapshot now, so that the next start is quick; the service must not be running on an embedded
    /// journal
    Snapshot(Settings),
    /// Go on in the newest format of entries, once every process of the service knows it; the service must
    /// not be running on an embedded journal
    Upgrade(Settings),
}

#[derive(Debug, Args)]
struct Make {
    /// A data directory, or postgres://… as a role that may make tables
    #[arg(long, value_name = "DIR|URL")]
    at: String,
}

#[derive(Debug, Args)]
struct Copy {
    /// A data directory, or postgres://…
    #[arg(long, value_name = "DIR|URL")]
    from: String,
    /// An empty or new data directory, or postgres://… of an empty database
    #[arg(long, value_name = "DIR|URL")]
    to: String,
}

#[derive(Debug, Subcommand)]
enum Book {
    /// Empty the book and make it from the journal again, also beside a live service; in PostgreSQL as the role
    /// that owns the book (`subsidy_pos`)
    Rebuild(Place),
}

/// A journal and its book.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The data directory of an embedded journal
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The database of a journal in PostgreSQL
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    place: Place,
    /// A signed head kept elsewhere
    #[arg(long, value_name = "FILE", requires = "public_key")]
    head: Option<PathBuf>,
    /// The public key, in PEM, that the head was signed with
    #[arg(long, value_name = "FILE", requires = "head")]
    public_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Quote {
    /// The class of product, e.g. smart_glasses
    #[arg(long)]
    category: String,
    /// Final price of one item in yuan
    #[arg(long)]
    price: String,
    /// When it is sold (RFC 3339); now if absent
    #[arg(long)]
    at: Option<String>,
    /// Whose fund would pay
    #[arg(long, default_value = "330100")]
    region: String,
    /// Energy grade, 1 to 5
    #[arg(long)]
    energy_grade: Option<u8>,
    #[command(flatten)]
    settings: Settings,
}

/// Why a command failed, for a person to read.
pub struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed(reason: impl fmt::Display) -> Failed {
    Failed(reason.to_string())
}

impl Arguments {
    /// Carries out the command.
    pub fn run(self) -> Result<(), Failed> {
        match self.command {
            Command::Serve(arguments) => serve::serve(&arguments),
            Command::CheckConfig(settings) => check_config(&settings),
            Command::Activate(settings) => serve::activate(&settings),
            Command::Token(arguments) => token(arguments),
            Command::Verify(arguments) => verify::verify(&arguments),
            Command::Journal(Journal::Copy(arguments)) => journal::copy(&arguments),
            Command::Journal(Journal::Make(arguments)) => journal::make(&arguments.at),
            Command::Journal(Journal::Snapshot(settings)) => journal::snapshot(&settings),
            Command::Journal(Journal::Upgrade(settings)) => serve::upgrade(&settings),
            Command::Book(Book::Rebuild(place)) => journal::rebuild(&place),
            Command::Quote(arguments) => quote(&arguments),
        }
    }
}

/// The programme files to apply: those of the configured directory, or the shipped ones.
fn programme_files(config: &Config) -> Result<Vec<(String, String)>, Failed> {
    let dir = &config.programmes.dir;
    let files = if dir.as_os_str().is_empty() {
        programme::shipped()
    } else {
        programme_files::read_dir(dir).map_err(failed)?
    };
    ProgrammeSet::parse(&files).map_err(failed)?;
    Ok(files)
}

/// Every fault of the settings that shows before anything is opened.
fn faults_of(config: &Config) -> Vec<String> {
    let mut faults: Vec<String> = config.check().iter().map(ToString::to_string).collect();
    faults.extend(store::Store::of(config).err().map(|fault| fault.to_string()));
    // The data directory is made where there is none.
    let head_file = config.head_file();
    let directory = head_file.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory.filter(|directory| *directory != config.ledger.data_dir)
        && !directory.is_dir()
    {
        faults.push(format!("journal.head_file: {} is not a directory", directory.display()));
    }
    faults
}

fn check_config(settings: &Settings) -> Result<(), Failed> {
    let config = settings.load(Mode::Production)?;
    let mut faults = faults_of(&config);
    if let Err(fault) = programme_files(&config) {
        faults.push(fault.to_string());
    }
    if faults.is_empty() {
        println!("the configuration is sound");
        return Ok(());
    }
    Err(settings.faulty(&faults))
}

fn token(arguments: Token) -> Result<(), Failed> {
    let config = Config::load(Mode::Development, None, std::env::vars_os()).map_err(failed)?;
    let keys = DevKeys::in_dir(&arguments.data);
    let key = SigningKey::load(&keys.token_key_file)
        .map_err(|fault| failed(format!("{fault}; `subsidy-pos serve --dev` makes the development keys")))?;
    let new = NewToken {
        role: arguments.role,
        subject: arguments.subject,
        retailers: arguments.retailers,
        regions: arguments.regions,
        ttl: arguments.ttl,
    };
    println!("{}", auth::mint(&key, &config.auth.issuer, &new, Clock::default().now()).map_err(failed)?);
    Ok(())
}

fn quote(arguments: &Quote) -> Result<(), Failed> {
    let config = arguments.settings.load(Mode::Production)?;
    let set = ProgrammeSet::parse(&programme_files(&config)?).map_err(failed)?;
    let sold_at = match &arguments.at {
        Some(text) => {
            Timestamp::parse(text).ok_or_else(|| failed("--at: not an RFC 3339 time with an offset"))?
        }
        None => Clock::default().now(),
    };
    let price = Fen::parse_yuan(&arguments.price)
        .filter(|price| *price > Fen::ZERO)
        .ok_or_else(|| failed("--price: yuan with at most two decimals, above zero"))?;
    let sale = rules::Sale {
        category: &arguments.category,
        price,
        region: RegionCode::parse(&arguments.region).map_err(|fault| failed(format!("--region: {fault}")))?,
        sold_at,
        energy_grade: arguments.energy_grade,
        trade_in_value: None,
        accept_programme: None,
    };
    let judgement = rules::determine(&set, &sale);
    let considered: Vec<_> = match &judgement {
        Ok(determination) => determination.considered().collect(),
        Err(refused) => refused.considered().iter().collect(),
    };
    for one in considered {
        let verdict = one.verdict.reason().unwrap_or("pays");
        println!("{:<26} {:>12}  {verdict}", one.programme.id.as_str(), one.amount.to_string());
    }
    match judgement {
        Ok(determination) => {
            let subsidy = determination.chosen().amount;
            let payable = Fen::new(price.get() - subsidy.get());
            println!("subsidy {subsidy}, payable {payable}");
            Ok(())
        }
        Err(refused) => Err(failed(format!(
            "not eligible: {}",
            Problem::from(Refusal::Policy(refused)).code().row().name
        ))),
    }
}

/// `40d`, `-1h`, `90m`, `30s` or `1500ms`, in milliseconds; a bare number is seconds.
fn parse_offset(text: &str) -> Result<i64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms: i64 = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("a number with ms, s, m, h or d".into()),
    };
    let number: i64 = digits.parse().map_err(|_| "a number with ms, s, m, h or d".to_owned())?;
    number.checked_mul(unit_ms).ok_or_else(|| "too far".into())
}
