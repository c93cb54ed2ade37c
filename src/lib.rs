//! subsidy-pos
pub mod identity;
pub mod limits;
pub mod money;
pub mod time;
