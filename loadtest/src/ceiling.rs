//! The ceiling: a server that authenticates, parses and answers as many bytes as the service does, and
//! decides and stores nothing. What the service reaches of it is what deciding and storing cost.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use anyhow::Result;
use clap::{Args, ValueEnum};
use subsidy_pos::auth::{self, Verifier};
use subsidy_pos::clock::Clock;
use subsidy_pos::limits;
use subsidy_pos::secrets::DevKeys;
use subsidy_pos::telemetry::Metrics;

use crate::body::SaleBody;
use crate::process;

/// How the ceiling reads bodies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Parse {
    /// With the service's own reader: every identifier is checked.
    Service,
    /// With serde into a struct of strings, which checks form only.
    Serde,
}

/// What the ceiling is told at start.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The data directory whose development key signs the tokens
    #[arg(long)]
    keys: PathBuf,
    /// Bytes of an answer's head and body together
    #[arg(long)]
    answer_bytes: usize,
    /// How bodies are read
    #[arg(long)]
    parse: Parse,
}

struct Ceiling {
    verifier: Verifier,
    parse: Parse,
    body: Bytes,
}

/// Runs the ceiling until it is told to end.
pub fn run(arguments: &Arguments) -> Result<()> {
    let keys = DevKeys::in_dir(&arguments.keys);
    let metrics = Metrics::new(&[], &[]);
    let verifier = Verifier::open(&keys.jwks_file, &process::dev_issuer()?, &metrics)
        .map_err(|fault| anyhow::anyhow!("{fault}"))?;
    // What the head takes: status line, content-length, content-type and date.
    const HEAD_BYTES: usize = 128;
    let body = vec![b'x'; arguments.answer_bytes.saturating_sub(HEAD_BYTES)];
    let ceiling = Arc::new(Ceiling { verifier, parse: arguments.parse, body: body.into() });
    let server = HttpServer::new(move || {
        App::new().app_data(web::Data::from(Arc::clone(&ceiling))).route("/v1/claims", web::post().to(claim))
    });
    // As the service has them: one worker for each core, connections kept.
    let server = server.workers(std::thread::available_parallelism()?.get()).keep_alive(limits::KEEP_ALIVE);
    actix_web::rt::System::new().block_on(server.bind(arguments.listen)?.run())?;
    Ok(())
}

async fn claim(request: HttpRequest, body: Bytes, ceiling: web::Data<Ceiling>) -> HttpResponse {
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let now = Clock::default().now();
    let caller = auth::bearer(authorization).and_then(|token| ceiling.verifier.verify(token, now));
    if caller.is_err() {
        return HttpResponse::Unauthorized().finish();
    }
    let read = match ceiling.parse {
        Parse::Serde => serde_json::from_slice::<SaleBody<'_>>(&body).is_ok(),
        Parse::Service => crate::body::read_as_the_service_does(&body, now),
    };
    if !read {
        return HttpResponse::BadRequest().finish();
    }
    HttpResponse::Created().content_type("application/json").body(ceiling.body.clone())
}
