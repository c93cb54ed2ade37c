//! `subsidy-pos serve`.
