//! The body of a claim as someone reads it who has no need to tell every fault.

use std::borrow::Cow;

use serde::Deserialize;
use subsidy_pos::http::extract::Readable as _;
use subsidy_pos::http::json;
use subsidy_pos::http::sale::ClaimBody;
use subsidy_pos::time::Timestamp;

/// A claim's body, its form checked and nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some members are read only to be parsed")]
pub struct SaleBody<'a> {
    #[serde(borrow)]
    pub mode: Cow<'a, str>,
    #[serde(borrow)]
    pub order_no: Cow<'a, str>,
    pub order_line: u16,
    #[serde(borrow)]
    pub category: Cow<'a, str>,
    #[serde(borrow)]
    pub price: Cow<'a, str>,
    #[serde(borrow)]
    pub expected_subsidy: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub region_code: Cow<'a, str>,
    #[serde(borrow)]
    pub sold_at: Cow<'a, str>,
    #[serde(borrow)]
    pub consumer: ConsumerBody<'a>,
    #[serde(borrow)]
    pub device: DeviceBody<'a>,
    #[serde(borrow)]
    pub sale_channel: Cow<'a, str>,
    #[serde(borrow)]
    pub store_code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub terminal_no: Option<Cow<'a, str>>,
}

/// Who bought.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerBody<'a> {
    #[serde(borrow)]
    pub id_type: Cow<'a, str>,
    #[serde(borrow)]
    pub id_number: Cow<'a, str>,
}

/// What was sold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceBody<'a> {
    #[serde(borrow)]
    pub sn: Cow<'a, str>,
    #[serde(borrow)]
    pub barcode: Cow<'a, str>,
    #[serde(borrow, default)]
    pub imei: Vec<Cow<'a, str>>,
}

/// Whether the service would read this as a claim.
pub fn read_as_the_service_does(body: &[u8], now: Timestamp) -> bool {
    json::body(body, |reader| ClaimBody::read(reader, now.day())).is_ok()
}
