//! The shield: keeps floods away from the ledger. It is never believed about money, and may be wiped
//! at any moment without a double payment or a false refusal.

use std::future::Ready;

use futures_util::future::{BoxFuture, Either};

use crate::identity::Uscc;

pub mod local;
pub mod redis;

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

/// A request that other processes are told is in flight, until this is dropped.
#[must_use = "the mark is taken off when this is dropped"]
pub struct Mark {
    _guard: Option<Box<dyn Send + Sync>>,
}

impl Mark {
    /// A mark that nobody is told of.
    pub const fn none() -> Self {
        Self { _guard: None }
    }

    /// A mark that is taken off by dropping `guard`.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self { _guard: Some(Box::new(guard)) }
    }
}

/// Whether a request may be decided here.
pub enum Marked {
    /// It may, as far as is known; the mark is kept until it is answered.
    Free(Mark),
    /// The same request with the same content is in flight on another process, or was within the last two
    /// seconds on one that is gone.
    Twin,
}

/// A mark that is there at once, or comes once another process has been asked.
pub type Marking<'s> = Either<Ready<Marked>, BoxFuture<'s, Marked>>;

/// What keeps floods away.
pub trait Shield: Send + Sync {
    /// Counts `cost` requests of `key`. One that costs more than a burst is counted as a burst, so that
    /// it is possible after a pause.
    fn admit<'s>(&'s self, key: RateKey<'s>, cost: u32) -> Admitting<'s>;

    /// Marks a request as in flight. `request` and `fingerprint` are keyed hashes of its idempotency key in
    /// its scope and of its content.
    ///
    /// What this says is never believed about money: a twin is told to wait once the ledger, looked at
    /// after this, does not know the key; whatever is free is decided by the ledger alone.
    fn mark<'s>(&'s self, request: [u8; 16], fingerprint: [u8; 16]) -> Marking<'s> {
        let _ = (request, fingerprint);
        Either::Left(std::future::ready(Marked::Free(Mark::none())))
    }

    /// What it is, for those who operate the service.
    fn name(&self) -> &'static str;

    /// Whether something it shares with other processes is away, so that local limits stand alone.
    fn is_degraded(&self) -> bool;
}
