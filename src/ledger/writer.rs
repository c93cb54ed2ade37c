//! The writer. (Signature sketch; the body is being written.)

use std::sync::Arc;

use super::command::{ClaimAt, ClaimView, Command, Failure, Outcome, Stored};
use super::{Clock, Published};

/// A handle on the ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {}

impl Ledger {
    /// Hands a command to the writer and waits until its outcome is durable. The command is carried
    /// out even if the caller goes away.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Failure> { unimplemented!() }
    /// The same for many that are to be appended together; answers are in their order.
    pub async fn submit_all(&self, commands: Vec<Command>) -> Vec<Result<Outcome, Failure>> { unimplemented!() }
    /// The claim as of an entry.
    pub async fn view(&self, at: &ClaimAt) -> Result<ClaimView, Failure> { unimplemented!() }
    /// One entry.
    pub async fn stored(&self, position: u64) -> Result<Arc<Stored>, Failure> { unimplemented!() }
    /// What commands are prepared with.
    pub fn published(&self) -> Arc<Published> { unimplemented!() }
    /// The service's clock.
    pub fn clock(&self) -> Clock { unimplemented!() }
}
