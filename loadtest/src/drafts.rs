//! Sales on their way to the ledger, without HTTP: read, hashed and judged; and what a new journal needs
//! before it takes them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use subsidy_pos::claim::{FundId, Submitter};
use subsidy_pos::http::extract::Readable as _;
use subsidy_pos::http::json;
use subsidy_pos::http::prepare::Preparation;
use subsidy_pos::http::sale::ClaimBody;
use subsidy_pos::identity::{IdempotencyKey, RegionCode, Uscc, generate};
use subsidy_pos::ledger::Published;
use subsidy_pos::ledger::command::{Command, Draft, OpenFund};
use subsidy_pos::ledger::entry::{Key, ProgrammeFile};
use subsidy_pos::money::Fen;
use subsidy_pos::programme::{self, ProgrammeSet};
use subsidy_pos::secrets::{HashKeyId, HashKeySource, HashKeys, KeyUse};
use subsidy_pos::time::Day;

use crate::sale::{INSTANT_CHARS, Request};

/// Retailers whose sales are made.
pub const RETAILERS: u64 = 64;

/// The one hash key of a development data directory, from its file.
pub fn hash_keys(file: &Path) -> Result<HashKeys> {
    let id = HashKeyId::from_name("k1").context("the name of the development hash key")?;
    let source = HashKeySource { id, file: file.to_owned(), key_use: KeyUse::Write };
    HashKeys::load(&[source]).map_err(|faults| anyhow!(faults.join("; ")))
}

/// Has a journal know hash keys and the shipped programmes.
pub fn introduction(hash_keys: &HashKeys) -> Vec<Command> {
    let keys = hash_keys.live().map(|key| Command::IntroduceHashKey {
        key: Arc::clone(key.label()),
        check: key.check_value().into(),
    });
    let files = programme::shipped().into_iter().map(|(name, text)| ProgrammeFile { name, text });
    keys.chain([Command::Activate(files.collect())]).collect()
}

/// Opens a fund of measure 25 in every city.
pub fn funds(programmes: &ProgrammeSet) -> Result<Vec<Command>> {
    // 1,000,000,000,000.00 yuan: no journal made here uses them up.
    const BUDGET: Fen = Fen::new(100_000_000_000_000);
    let measure_25 = programmes.get("zj-ai-25").context("measure 25 is not among the programmes")?;
    let fund = |city: String| {
        Ok(Command::OpenFund(Box::new(OpenFund {
            fund_id: FundId::parse(&format!("zj-ai-25.{city}")).context("a fund's id")?,
            programme: measure_25.id.clone(),
            region_code: RegionCode::parse(&city).map_err(|fault| anyhow!("{fault:?}"))?,
            from: measure_25.in_force.from.value,
            to: measure_25.in_force.to.value,
            budget: BUDGET,
            by: "loadtest".into(),
            request: Key::new(rand::random()),
            fingerprint: Key::new(rand::random()),
        })))
    };
    (1..=11).map(|city| fund((330_000 + city * 100).to_string())).collect()
}

/// Makes drafts of claims.
pub struct Drafts {
    hash_keys: HashKeys,
    retailers: Vec<Uscc>,
    request: Request,
}

impl Drafts {
    /// Under these hash keys.
    pub fn new(hash_keys: HashKeys) -> Result<Self> {
        let retailers: Result<_, _> = (1..=RETAILERS).map(|n| Uscc::parse(&generate::uscc_from(n))).collect();
        let retailers = retailers.map_err(|fault| anyhow!("{fault:?}"))?;
        Ok(Self { hash_keys, retailers, request: Request::claim("") })
    }

    /// The keys that persons are hashed with.
    pub fn hash_keys(&self) -> &HashKeys {
        &self.hash_keys
    }

    /// The request body of sale `n`.
    pub fn body(&mut self, n: u64, sold_at: &[u8; INSTANT_CHARS]) -> &[u8] {
        self.request.write(0, n, sold_at);
        self.request.body()
    }

    /// Reads a request body.
    pub fn read(body: &[u8], today: Day) -> Result<ClaimBody> {
        json::body(body, |reader| ClaimBody::read(reader, today))
            .map_err(|faults| anyhow!("a sale is not valid: {faults:?}"))
    }

    /// The claim on sale `n`, hashed and judged.
    pub fn draft(&self, published: &Published, n: u64, body: ClaimBody) -> Result<Draft> {
        let retailer = usize::try_from(n % RETAILERS)?;
        let retailer = *self.retailers.get(retailer).context("no retailer")?;
        let key = IdempotencyKey::parse(&format!("sale-{n:016}")).map_err(|fault| anyhow!("{fault:?}"))?;
        let by = Submitter { retailer, platform: None };
        let preparation = Preparation { published, hash_keys: &self.hash_keys };
        Ok(preparation.draft(by, &key, body, rand::random()))
    }
}
