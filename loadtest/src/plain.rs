//! What one would write first: actix-web, a pool of connections to PostgreSQL, prepared statements, and
//! one transaction for each claim. Unique indexes keep devices, order lines and idempotency keys apart, a
//! counter limits persons, and a fund is a row that every claim on it updates.
//!
//! It authenticates, parses, hashes and judges with the service's own parts, so that what differs is how
//! claims are stored. It does claims and nothing else: no holds, no returns, no cancellation, no journal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use serde::Serialize;
use subsidy_pos::auth::{self, Caller, Verifier};
use subsidy_pos::clock::Clock;
use subsidy_pos::identity::{Gtin, IdType, Imei, PersonId, Reference, RegionCode, SerialNumber, Uscc};
use subsidy_pos::money::Fen;
use subsidy_pos::programme::{self, ProgrammeSet};
use subsidy_pos::rules;
use subsidy_pos::secrets::{DevKeys, HashKeys};
use subsidy_pos::telemetry::Metrics;
use subsidy_pos::time::Timestamp;
use tokio_postgres::NoTls;

use crate::body::SaleBody;
use crate::drafts::hash_keys;
use crate::process;

/// What the plain service is told at start.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The data directory whose development keys sign tokens and hash persons
    #[arg(long)]
    keys: PathBuf,
    /// The database
    #[arg(long)]
    database: String,
    /// Connections to it
    #[arg(long)]
    connections: usize,
    /// Which funds pay
    #[arg(long)]
    funds: Funds,
}

/// Which funds of a programme pay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Funds {
    /// One for each city, as the sales are spread.
    Cities,
    /// One, as on the first day in one city.
    One,
}

impl Funds {
    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cities => "cities",
            Self::One => "one",
        }
    }
}

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS fund (
        id        text PRIMARY KEY,
        budget    bigint NOT NULL,
        redeemed  bigint NOT NULL DEFAULT 0 CHECK (redeemed <= budget)
    );
    CREATE TABLE IF NOT EXISTS claim (
        claim_id         bytea PRIMARY KEY,
        retailer         text NOT NULL,
        idempotency_key  text NOT NULL,
        fingerprint      bytea NOT NULL,
        order_no         text NOT NULL,
        order_line       integer NOT NULL,
        person           bytea NOT NULL,
        category         text NOT NULL,
        region_code      text NOT NULL,
        sold_at          bigint NOT NULL,
        price_fen        bigint NOT NULL,
        subsidy_fen      bigint NOT NULL,
        fund             text NOT NULL,
        answer           text NOT NULL,
        UNIQUE (retailer, idempotency_key),
        UNIQUE (retailer, order_no, order_line)
    );
    CREATE TABLE IF NOT EXISTS device (
        name      text PRIMARY KEY,
        claim_id  bytea NOT NULL
    );
    CREATE TABLE IF NOT EXISTS person (
        person    bytea NOT NULL,
        category  text NOT NULL,
        year      integer NOT NULL,
        claims    integer NOT NULL,
        PRIMARY KEY (person, category, year)
    )";

const INSERT_CLAIM: &str = "
    INSERT INTO claim (claim_id, retailer, idempotency_key, fingerprint, order_no, order_line, person, category,
                       region_code, sold_at, price_fen, subsidy_fen, fund, answer)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    ON CONFLICT (retailer, idempotency_key) DO NOTHING";
const INSERT_DEVICE: &str = "INSERT INTO device (name, claim_id) SELECT name, $2 FROM unnest($1::text[]) AS name ON CONFLICT DO NOTHING";
const COUNT_PERSON: &str = "
    INSERT INTO person AS known (person, category, year, claims) VALUES ($1, $2, $3, 1)
    ON CONFLICT (person, category, year) DO UPDATE SET claims = known.claims + 1 WHERE known.claims < $4";
const PAY: &str = "UPDATE fund SET redeemed = redeemed + $2 WHERE id = $1 AND budget - redeemed >= $2";
const FIND_KEY: &str = "SELECT fingerprint, answer FROM claim WHERE retailer = $1 AND idempotency_key = $2";

struct Plain {
    verifier: Verifier,
    hash_keys: HashKeys,
    programmes: ProgrammeSet,
    pool: Pool,
    funds: Funds,
}

/// Runs the plain service until it is told to end.
pub fn run(arguments: &Arguments) -> Result<()> {
    actix_web::rt::System::new().block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<()> {
    let keys = DevKeys::in_dir(&arguments.keys);
    let metrics = Metrics::new(&[], &[]);
    let verifier = Verifier::open(&keys.jwks_file, &process::dev_issuer()?, &metrics)
        .map_err(|fault| anyhow!("{fault}"))?;
    let programmes = ProgrammeSet::parse(&programme::shipped()).map_err(|error| anyhow!("{error}"))?;
    let manager = Manager::from_config(
        arguments.database.parse()?,
        NoTls,
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    let pool = Pool::builder(manager).max_size(arguments.connections).build()?;
    make_tables(&pool, &programmes).await?;
    let (hash_keys, funds) = (hash_keys(&keys.hash_key_file)?, arguments.funds);
    let plain = Arc::new(Plain { verifier, hash_keys, programmes, pool, funds });
    HttpServer::new(move || {
        App::new().app_data(web::Data::from(Arc::clone(&plain))).route("/v1/claims", web::post().to(claim))
    })
    .bind(arguments.listen)?
    .run()
    .await?;
    Ok(())
}

async fn make_tables(pool: &Pool, programmes: &ProgrammeSet) -> Result<()> {
    const BUDGET_FEN: i64 = 100_000_000_000;
    let client = pool.get().await?;
    client.batch_execute(TABLES).await?;
    let insert =
        client.prepare("INSERT INTO fund (id, budget) VALUES ($1, $2) ON CONFLICT DO NOTHING").await?;
    for programme in programmes.iter() {
        for place in (0..=11).map(|city| 330_000 + city * 100) {
            client.execute(&insert, &[&format!("{}.{place}", programme.id), &BUDGET_FEN]).await?;
        }
    }
    Ok(())
}

/// Why a claim is not made: a status, and a code of the service.
#[derive(Debug)]
struct Refusal(u16, &'static str);

#[derive(Debug, Serialize)]
struct Problem {
    status: u16,
    code: &'static str,
}

async fn claim(request: HttpRequest, body: Bytes, plain: web::Data<Plain>) -> HttpResponse {
    match plain.claim(&request, &body).await {
        Ok(Ok(answer)) => HttpResponse::Created().content_type("application/json").body(answer.body),
        Ok(Err(Refusal(status, code))) => {
            let status = actix_web::http::StatusCode::from_u16(status).unwrap_or_default();
            HttpResponse::build(status).json(Problem { status: status.as_u16(), code })
        }
        Err(error) => {
            eprintln!("{error:#}");
            HttpResponse::ServiceUnavailable().finish()
        }
    }
}

/// A claim, ready to be stored.
struct Sale {
    retailer: Uscc,
    key: String,
    fingerprint: [u8; 16],
    order_no: Reference,
    order_line: u16,
    person: [u8; 32],
    category: String,
    year: i32,
    region_code: RegionCode,
    sold_at: Timestamp,
    price: Fen,
    subsidy: Fen,
    programme: String,
    limit: i32,
    fund: String,
    devices: Vec<String>,
}

struct Stored {
    body: String,
}

impl Plain {
    async fn claim(
        &self,
        request: &HttpRequest,
        body: &[u8],
    ) -> Result<std::result::Result<Stored, Refusal>> {
        match self.read(request, body) {
            Ok(sale) => self.store(&sale).await,
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn read(&self, request: &HttpRequest, body: &[u8]) -> std::result::Result<Sale, Refusal> {
        const INVALID: Refusal = Refusal(400, "invalid-request");
        let header = |name| request.headers().get(name).map(|value| value.as_bytes());
        let now = Clock::default().now();
        let caller = auth::bearer(header(header::AUTHORIZATION))
            .and_then(|token| self.verifier.verify(token, now))
            .map_err(|_| Refusal(401, "unauthenticated"))?;
        let Caller::Retailer(retailer) = *caller else { return Err(Refusal(403, "forbidden")) };
        let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
        let key = key.ok_or(Refusal(400, "idempotency-key-missing"))?.to_owned();
        let sale: SaleBody<'_> = serde_json::from_slice(body).map_err(|_| INVALID)?;
        let price = Fen::parse_yuan(&sale.price).ok_or(INVALID)?;
        let region_code = RegionCode::parse(&sale.region_code).map_err(|_| INVALID)?;
        let sold_at = Timestamp::parse(&sale.sold_at).ok_or(INVALID)?;
        let id_type = IdType::parse(&sale.consumer.id_type).map_err(|_| INVALID)?;
        let person = PersonId::parse(id_type, &sale.consumer.id_number, now.day()).map_err(|_| INVALID)?;
        let barcode = Gtin::parse(&sale.device.barcode).map_err(|_| INVALID)?;
        let sn = SerialNumber::parse(&sale.device.sn).map_err(|_| INVALID)?;
        let mut devices = vec![format!("sn {} {}", barcode.manufacturer_prefix(), sn.as_str())];
        for imei in &sale.device.imei {
            devices.push(format!("imei {}", Imei::parse(imei).map_err(|_| INVALID)?.as_str()));
        }
        let judgement = rules::determine(
            &self.programmes,
            &rules::Sale {
                category: &sale.category,
                price,
                region: region_code,
                sold_at,
                energy_grade: None,
                trade_in_value: None,
                accept_programme: None,
            },
        );
        let Ok(determination) = judgement else { return Err(Refusal(422, "not-in-force")) };
        let chosen = determination.chosen();
        let expected = sale.expected_subsidy.as_deref().map(Fen::parse_yuan);
        if expected.is_some_and(|expected| expected != Some(chosen.amount)) {
            return Err(Refusal(409, "subsidy-differs"));
        }
        let hash_key = self.hash_keys.writing();
        Ok(Sale {
            retailer,
            key,
            fingerprint: hash_key.mac([body]),
            order_no: Reference::parse(&sale.order_no).map_err(|_| INVALID)?,
            order_line: sale.order_line,
            person: hash_key.digest(person.identity_bytes()).hash,
            limit: chosen.programme.person_limit(&sale.category).map_or(i32::MAX, i32::from),
            category: sale.category.into_owned(),
            year: sold_at.year(),
            region_code,
            sold_at,
            price,
            subsidy: chosen.amount,
            programme: chosen.programme.id.as_str().to_owned(),
            fund: match self.funds {
                Funds::One => format!("{}.330000", chosen.programme.id),
                Funds::Cities => format!("{}.{}", chosen.programme.id, region_code.city()),
            },
            devices,
        })
    }

    async fn store(&self, sale: &Sale) -> Result<std::result::Result<Stored, Refusal>> {
        let claim_id = subsidy_pos::claim::ClaimId::following(None, Clock::default().now(), rand::random());
        let body = sale.answer(&claim_id.to_string());
        let mut client = self.pool.get().await?;
        let insert_claim = client.prepare_cached(INSERT_CLAIM).await?;
        let insert_device = client.prepare_cached(INSERT_DEVICE).await?;
        let count_person = client.prepare_cached(COUNT_PERSON).await?;
        let pay = client.prepare_cached(PAY).await?;
        let find_key = client.prepare_cached(FIND_KEY).await?;
        let retailer = sale.retailer.as_str();
        let (region_code, order_line) = (sale.region_code.as_str(), i32::from(sale.order_line));
        let id = claim_id.bytes().as_slice();

        // Whatever returns before the commit rolls back.
        let transaction = client.transaction().await?;
        let inserted = transaction
            .execute(
                &insert_claim,
                &[
                    &id,
                    &retailer,
                    &sale.key,
                    &sale.fingerprint.as_slice(),
                    &sale.order_no.as_str(),
                    &order_line,
                    &sale.person.as_slice(),
                    &sale.category,
                    &region_code,
                    &sale.sold_at.ms(),
                    &sale.price.get(),
                    &sale.subsidy.get(),
                    &sale.fund,
                    &body,
                ],
            )
            .await;
        match inserted {
            Ok(1) => {}
            Ok(_) => {
                let row = transaction.query_one(&find_key, &[&retailer, &sale.key]).await?;
                let same = row.get::<_, &[u8]>(0) == sale.fingerprint;
                return Ok(if same {
                    Ok(Stored { body: row.get(1) })
                } else {
                    Err(Refusal(422, "idempotency-key-reused"))
                });
            }
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => {
                return Ok(Err(Refusal(409, "order-line-already-claimed")));
            }
            Err(error) => return Err(error.into()),
        }
        let names = transaction.execute(&insert_device, &[&sale.devices, &id]).await?;
        if names != sale.devices.len() as u64 {
            return Ok(Err(Refusal(409, "device-already-subsidised")));
        }
        let person = sale.person.as_slice();
        if transaction.execute(&count_person, &[&person, &sale.category, &sale.year, &sale.limit]).await? != 1
        {
            return Ok(Err(Refusal(409, "consumer-limit-reached")));
        }
        // Last, so that the lock on the fund's row is held as briefly as can be.
        if transaction.execute(&pay, &[&sale.fund, &sale.subsidy.get()]).await? != 1 {
            return Ok(Err(Refusal(409, "fund-exhausted")));
        }
        transaction.commit().await?;
        Ok(Ok(Stored { body }))
    }
}

impl Sale {
    /// As much of the service's answer as there is here.
    fn answer(&self, claim_id: &str) -> String {
        serde_json::json!({
            "claim_id": claim_id,
            "status": "redeemed",
            "retailer": self.retailer.as_str(),
            "order_no": self.order_no.as_str(),
            "order_line": self.order_line,
            "category": self.category,
            "price": self.price.to_string(),
            "subsidy": self.subsidy.to_string(),
            "payable": Fen::new(self.price.get() - self.subsidy.get()).to_string(),
            "programme": self.programme,
            "fund_id": self.fund,
            "region_code": self.region_code.as_str(),
            "sold_at": self.sold_at.to_string(),
        })
        .to_string()
    }
}
