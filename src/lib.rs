//! subsidy-pos
pub mod limits;
pub mod money;
pub mod time;
