//! Programmes: the rules in force, each number with its source.

use std::sync::Arc;

use super::extract::{Call, Query, Readable, Viewer};
use super::json::{self, Reader};
use super::page::{self, Listing, PageWanted};
use super::problem::{Code, Problem};
use super::{App, Reply};
use crate::programme::Programme;
use crate::time::{Day, Timestamp};

/// Which programmes.
#[derive(Debug)]
pub struct ListWanted {
    at: Option<Timestamp>,
    page: PageWanted,
}

impl Readable for ListWanted {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        Some(Self { at: reader.optional("at", json::instant), page: PageWanted::read(reader) })
    }
}

/// When.
#[derive(Debug)]
pub struct Moment(Option<Timestamp>);

impl Readable for Moment {
    fn read(reader: &mut Reader<'_, '_>, _: Day) -> Option<Self> {
        Some(Self(reader.optional("at", json::instant)))
    }
}

/// The programmes in force at an instant, by id.
fn in_force(app: &App, wanted: &ListWanted) -> Result<Listing<Arc<Programme>>, Problem> {
    let published = app.ledger.published();
    let at = wanted.at.unwrap_or_else(|| app.ledger.clock().now());
    let mut programmes: Vec<_> =
        published.programmes.iter().filter(|programme| programme.in_force.contains(at)).cloned().collect();
    programmes.sort_by(|one, other| one.id.cmp(&other.id));
    let bound = format!("programmes {:?}", wanted.at);
    let as_of = published.activated_at;
    page::of_all(
        programmes,
        |programme| programme.id.as_str(),
        |programme| programme,
        &wanted.page,
        &app.hash_keys,
        &bound,
        as_of,
    )
}

/// The programme of this id, if it is in force at an instant.
fn one_in_force(app: &App, id: &str, at: Option<Timestamp>) -> Result<Arc<Programme>, Problem> {
    let at = at.unwrap_or_else(|| app.ledger.clock().now());
    let published = app.ledger.published();
    let programme = published.programmes.get(id).filter(|programme| programme.in_force.contains(at));
    programme.cloned().ok_or_else(|| Code::NotFound.into())
}

/// List programmes
///
/// The rules in force at an instant, each number with its clause and whether that is the text of the
/// law, a notice or an administrative choice. `as_of` is the position at which these rules were activated.
#[utoipa::path(get, path = "/v1/programmes", tag = "Programmes", params(
    ("at" = Option<String>, Query, description = "The instant, RFC 3339 with an offset; now where absent"),
    ("limit" = Option<u32>, Query, description = "Items on the page: 1 to 200, 50 where absent"),
    ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
), responses(
    (status = 200, description = "Programmes", body = Listing<serde_json::Value>),
))]
pub async fn list(call: Call<Viewer, Query<ListWanted>>) -> Result<Reply, Problem> {
    let programmes = in_force(&call.app, &call.body.0)?;
    Reply::ok(&programmes)
}

/// Read a programme
///
/// Its rules in force at an instant, each number with its source.
#[utoipa::path(get, path = "/v1/programmes/{id}", tag = "Programmes", params(
    ("id" = String, Path, description = "The programme's id"),
    ("at" = Option<String>, Query, description = "The instant, RFC 3339 with an offset; now where absent"),
), responses(
    (status = 200, description = "The programme", body = serde_json::Value),
))]
pub async fn read(call: Call<Viewer, Query<Moment>>) -> Result<Reply, Problem> {
    let programme = one_in_force(&call.app, call.path_id(), call.body.0.0)?;
    Reply::ok(&programme)
}
