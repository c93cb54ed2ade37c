//! subsidy-pos
pub mod auth;
pub mod config;
pub mod identity;
pub mod limits;
pub mod money;
pub mod secrets;
pub mod telemetry;
pub mod time;
