//! subsidy-pos decides, holds, redeems and takes back trade-in subsidies at the point of sale.
pub mod audit;
pub mod auth;
pub mod background;
pub mod book;
pub mod bytes;
pub mod claim;
pub mod clock;
pub mod config;
pub mod heads;
pub mod http;
pub mod identity;
pub mod journal;
pub mod json;
pub mod ledger;
pub mod limits;
pub mod money;
pub mod programme;
pub mod programme_files;
pub mod rules;
pub mod secrets;
pub mod shield;
pub mod telemetry;
pub mod time;
pub mod verify;

#[cfg(test)]
#[expect(dead_code, reason = "the black-box tests use more of it")]
#[path = "../tests/support/postgres.rs"]
mod postgres_server;
