//! subsidy-pos
fn main() {}
