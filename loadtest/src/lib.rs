//! Sales as the load test makes them, and what the service does with one besides HTTP and the disk, part
//! by part: for the load test, its benchmark and its guard.

pub mod desk;
pub mod drafts;
pub mod parts;
pub mod sale;
