//! The journal itself, for regulators who keep their own copy or check the chain.

use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Call, Query, Readable, RegulatorOfAllRegions};
use super::json::{self, Reader};
use super::page::Listing;
use super::problem::Problem;
use super::{App, Reply};
use crate::heads::SignedHead;
use crate::limits;
use crate::time::Day;

/// Which entries.
#[derive(Debug)]
pub struct Wanted {
    after: u64,
    limit: usize,
}

impl Readable for Wanted {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        let after = reader.optional("after", json::whole_text(0, POSITION_MAX));
        let limit = reader.optional("limit", json::whole_text(1, limits::PAGE_ITEMS_MAX as u64));
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Some(Self { after: after.unwrap_or(0), limit: limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT) })
    }
}

/// The highest position that databases, which count in signed numbers, can be asked for.
const POSITION_MAX: u64 = i64::MAX as u64;

/// An entry as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JournalEntry)]
pub struct Entry {
    /// Counted from 1 without gaps.
    position: u64,
    /// The SHA-256 of the bytes of `entry`, in hexadecimal.
    hash: String,
    /// The exact bytes: JSON in UTF-8, as a string.
    entry: String,
}

/// The entries after a position.
async fn page(app: &App, wanted: &Wanted) -> Result<Listing<Entry>, Problem> {
    let as_of = app.ledger.look().await?;
    let rows = app.ledger.journal().after(wanted.after, wanted.limit).await?;
    let items: Vec<Entry> = rows
        .into_iter()
        .map(|row| Entry {
            position: row.position,
            hash: row.hash.to_string(),
            entry: String::from_utf8_lossy(&row.entry).into_owned(),
        })
        .collect();
    let last = items.last().map_or(wanted.after, |entry| entry.position);
    Ok(Listing { next_cursor: (last < as_of).then(|| last.to_string()), as_of: as_of.max(last), items })
}

/// The last entry's position and hash, signed.
async fn signed(app: &App) -> Result<SignedHead, Problem> {
    SignedHead::sign(&app.signing_key, &*app.ledger.last().await?).map_err(Problem::internal)
}

/// Read the journal
///
/// Entries in order, each with its position, its hash and its exact bytes, so that the chain can be
/// checked. For regulators without region limits.
#[utoipa::path(get, path = "/v1/journal", tag = "Totals and journal", params(
    ("after" = Option<u64>, Query, description = "The position to begin after; 0 where absent. next_cursor is the one for the next page"),
    ("limit" = Option<u32>, Query, description = "Entries on the page: 1 to 200, 50 where absent"),
), responses(
    (status = 200, description = "Entries", body = Listing<Entry>),
))]
pub async fn entries(call: Call<RegulatorOfAllRegions, Query<Wanted>>) -> Result<Reply, Problem> {
    let entries = page(&call.app, &call.body.0).await?;
    Reply::ok(&entries)
}

/// Read the signed head
///
/// Position and hash of the last entry, signed with Ed25519. Keep it outside the service: it shows
/// whether a journal was cut short or rewritten.
#[utoipa::path(get, path = "/v1/journal/head", tag = "Totals and journal", responses(
    (status = 200, description = "The head", body = SignedHead),
))]
pub async fn head(call: Call<RegulatorOfAllRegions>) -> Result<Reply, Problem> {
    let head = signed(&call.app).await?;
    Reply::ok(&head)
}
