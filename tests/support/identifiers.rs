//! Valid identifiers, never the same twice within a run.

use std::sync::atomic::{AtomicU64, Ordering};

use subsidy_pos::identity::generate::{gtin13_from, imei_from, resident_id_from, uscc_from};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that no other call in this run gets.
pub fn fresh_number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An idempotency key.
pub fn fresh_key() -> String {
    format!("key-{}", fresh_number())
}

/// A resident ID of 18 characters.
pub fn fresh_resident_id() -> String {
    resident_id_from(fresh_number())
}

/// A retailer's unified social credit code.
pub fn fresh_uscc() -> String {
    uscc_from(fresh_number())
}

/// A barcode of 13 digits; like real ones, of one manufacturer with its neighbours.
pub fn fresh_barcode() -> String {
    gtin13_from(fresh_number())
}

/// A barcode of 13 digits of the `manufacturer`th manufacturer.
pub fn barcode_of(manufacturer: u64, product: u64) -> String {
    gtin13_from(manufacturer * 100_000 + product)
}

/// An IMEI.
pub fn fresh_imei() -> String {
    imei_from(fresh_number())
}

/// The same text in full-width characters, which Unicode NFKC makes plain again.
pub fn full_width(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '!'..='~' => char::from_u32(u32::from(character) + 0xFEE0).expect("a full-width form"),
            other => other,
        })
        .collect()
}

/// The 15-digit form of a resident ID of someone born in the twentieth century.
pub fn fifteen_digits(id_number: &str) -> String {
    assert_eq!((id_number.len(), &id_number[6..8]), (18, "19"), "of the twentieth century");
    format!("{}{}", &id_number[..6], &id_number[8..17])
}
