//! Pages of lists: how many, from where, and the cursors that say so.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use utoipa::ToSchema;

use super::json::{self, Reader, Wrong};
use super::problem::Problem;
use crate::limits;
use crate::secrets::{HashKey, HashKeys};

/// What a caller wants of a list.
#[derive(Clone, Debug)]
pub struct PageWanted {
    /// How many items.
    pub limit: usize,
    cursor: Option<String>,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listing<T> {
    /// The items.
    pub items: Vec<T>,
    /// What `cursor` gets the next page; null on the last one.
    pub next_cursor: Option<String>,
    /// The journal position this is true at.
    pub as_of: u64,
}

impl PageWanted {
    /// Asks for `limit` and `cursor`.
    pub fn read(reader: &mut Reader<'_, '_>) -> Self {
        let limit = reader.optional("limit", json::whole_text(1, limits::PAGE_ITEMS_MAX as u64));
        let cursor = reader.optional("cursor", |node| json::string(node).map(str::to_owned));
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Self { limit: limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT), cursor }
    }

    /// Where the page begins: what [`cursor`] was given for the page before; `None` for the first page.
    /// `bound` says whose list this is and how it is filtered.
    ///
    /// # Errors
    /// A cursor of another caller or other filters, or something else than a cursor.
    pub fn begins_after(&self, keys: &HashKeys, bound: &str) -> Result<Option<String>, Problem> {
        const NOT_THIS_LISTS: Wrong = Wrong::new(
            "cursor-invalid",
            "This is not a cursor of this list with these filters and this caller.",
            "该游标不属于当前调用方及筛选条件下的列表。",
        );
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let opened = BASE64.decode(cursor).ok().and_then(|bytes| {
            let (seal, place) = bytes.split_first_chunk::<SEAL_BYTES>()?;
            let place = std::str::from_utf8(place).ok()?;
            keys.live().any(|key| sealed(key, bound, place) == *seal).then(|| place.to_owned())
        });
        opened.map(Some).ok_or_else(|| Problem::fault("/query/cursor", NOT_THIS_LISTS))
    }
}

const SEAL_BYTES: usize = 16;

/// A cursor that begins the next page after `place`, for the same `bound` only.
pub fn cursor(keys: &HashKeys, bound: &str, place: &str) -> String {
    let mut bytes = sealed(keys.writing(), bound, place).to_vec();
    bytes.extend_from_slice(place.as_bytes());
    BASE64.encode(bytes)
}

fn sealed(key: &HashKey, bound: &str, place: &str) -> [u8; SEAL_BYTES] {
    key.mac([b"cursor".as_slice(), bound.as_bytes(), place.as_bytes()])
}

/// A page of a list that is at hand as a whole, in ascending order of `name`.
///
/// # Errors
/// As [`PageWanted::begins_after`].
pub fn of_all<T, U>(
    all: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> &str,
    show: impl Fn(T) -> U,
    wanted: &PageWanted,
    keys: &HashKeys,
    bound: &str,
    as_of: u64,
) -> Result<Listing<U>, Problem> {
    let after = wanted.begins_after(keys, bound)?;
    let mut rest =
        all.into_iter().skip_while(|item| after.as_deref().is_some_and(|after| name(item) <= after));
    let mut items: Vec<T> = rest.by_ref().take(wanted.limit).collect();
    let last = rest.next().and_then(|_| items.last()).map(|last| cursor(keys, bound, name(last)));
    Ok(Listing { items: items.drain(..).map(show).collect(), next_cursor: last, as_of })
}
