//! The shield: keeps floods away from the ledger. It is never believed about money, and may be wiped
//! at any moment without a double payment or a false refusal.

use std::future::Ready;

use futures_util::future::{BoxFuture, Either};

use crate::identity::Uscc;

pub mod local;

/// Whose rate is counted. Each class has its own limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RateKey<'a> {
    /// A retailer, whether it calls itself or through platforms.
    Retailer(Uscc),
    /// A platform, by its name.
    Platform(&'a str),
    /// An officer of a regulator, by name.
    Regulator(&'a str),
}

impl RateKey<'_> {
    /// The name of the class, which is that of its limit.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Retailer(_) => "retailer",
            Self::Platform(_) => "platform",
            Self::Regulator(_) => "regulator",
        }
    }
}

/// How many requests may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// In the long run, each second.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// What the shield says of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// Whether it may go on.
    pub allowed: bool,
    /// The limit that was asked.
    pub limit: Limit,
    /// How many more may come at once.
    pub remaining: u32,
    /// Seconds until a whole burst may come again.
    pub reset_s: u32,
    /// Seconds after which a request that was not allowed may be; 0 where it was.
    pub retry_after_s: u32,
}

/// An admission that is there at once, or comes later from another machine.
pub type Admitting<'s> = Either<Ready<Admission>, BoxFuture<'s, Admission>>;

/// What keeps floods away.
pub trait Shield: Send + Sync {
    /// Counts `cost` requests of `key`. One that costs more than a burst is counted as a burst, so that
    /// it is possible after a pause.
    fn admit<'s>(&'s self, key: RateKey<'s>, cost: u32) -> Admitting<'s>;

    /// What it is, for those who operate the service.
    fn name(&self) -> &'static str;

    /// Whether something it shares with other processes is away, so that local limits stand alone.
    fn is_degraded(&self) -> bool;
}
