//! Black-box tests: every one starts the service as its users do, with a data directory and ports of its
//! own, and speaks to it through HTTP, its command line and its files.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets the unexpected shall end")]

mod support;

mod appends;
mod audit;
mod authorisation;
mod batches;
mod cancellation;
mod command_line;
mod crash;
mod devices;
mod disk;
mod documentation;
mod durability;
mod funds;
mod golden;
mod holds;
mod idempotency;
mod lists;
mod many_processes;
mod moving;
mod openapi;
mod operations;
mod oracle;
mod overload;
mod personal_data;
mod persons;
mod postgres;
mod precedence;
mod programmes;
mod quotes;
mod rate_limits;
mod returns;
mod rolling;
mod shield_redis;
mod shield_shared;
mod snapshots;
mod structure;
mod tampering;
mod totals;
mod transport;
mod upgrading;
mod validation;
