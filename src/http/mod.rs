//! The HTTP API.
pub mod json;
