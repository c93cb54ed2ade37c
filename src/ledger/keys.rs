//! The keys under which the state knows devices, order lines, persons and requests.
//!
//! Each is 128 bits of SHA-256 over the journal's id, a namespace and the canonical parts, every part
//! preceded by its length. The journal's id is random and in its first entry, so that every process
//! makes the same keys and nobody outside can look for collisions. The keys do not depend on the
//! privacy keys: rotating those never makes a new device.

use aws_lc_rs::digest;
use smallvec::SmallVec;

use super::entry::Key;
use crate::claim::Device;
use crate::identity::{Imei, OrderLine, PersonDigest, Reference, SerialNumber, Uscc};

/// Makes the keys of one journal.
#[derive(Clone, Copy, Debug)]
pub struct KeyRing {
    journal_id: Key,
}

impl KeyRing {
    /// The keys of the journal with this id.
    pub const fn new(journal_id: Key) -> Self {
        Self { journal_id }
    }

    fn key(&self, namespace: u8, parts: &[&[u8]]) -> Key {
        let mut input: SmallVec<[u8; 256]> = SmallVec::new();
        input.extend_from_slice(self.journal_id.bytes());
        input.push(namespace);
        for part in parts {
            input.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            input.extend_from_slice(part);
        }
        let mut key = [0; 16];
        for (byte, hashed) in key.iter_mut().zip(digest::digest(&digest::SHA256, &input).as_ref()) {
            *byte = *hashed;
        }
        Key::new(key)
    }

    /// What the names of this journal's things in the shield are hashed with.
    pub fn shield_salt(&self) -> [u8; 16] {
        *self.key(9, &[]).bytes()
    }

    /// A request: an idempotency key within retailer and integrator (a platform's name, or empty).
    pub fn request(&self, retailer: &Uscc, platform: Option<&str>, idempotency_key: &str) -> Key {
        self.key(1, &[retailer.as_bytes(), platform.unwrap_or("").as_bytes(), idempotency_key.as_bytes()])
    }

    /// A regulator's request: an idempotency key of one officer.
    pub fn officer_request(&self, officer: &str, idempotency_key: &str) -> Key {
        self.key(2, &[officer.as_bytes(), idempotency_key.as_bytes()])
    }

    /// The content of a regulator's request, as its canonical parts.
    pub fn officer_content(&self, parts: &[&[u8]]) -> Key {
        self.key(8, parts)
    }

    /// A line of a retailer's order.
    pub fn order_line(&self, retailer: &Uscc, order_no: &Reference, line: OrderLine) -> Key {
        let line = line.get().to_be_bytes();
        self.key(3, &[retailer.as_bytes(), order_no.as_str().as_bytes(), &line])
    }

    /// A person's entitlement in one category and one calendar year of the sale.
    pub fn person(&self, digest: &PersonDigest, category: &str, year: i32) -> Key {
        self.key(4, &[digest.bytes(), category.as_bytes(), &year.to_be_bytes()])
    }

    /// The names of one device: its serial number under its manufacturer, and every IMEI. A serial
    /// number that reads as an IMEI names the device as that IMEI too, so that writing the IMEI in the
    /// other member does not make a second device.
    pub fn device(&self, device: &Device) -> SmallVec<[Key; 4]> {
        let mut keys = SmallVec::new();
        let manufacturer = device.barcode.manufacturer_prefix();
        keys.push(self.key(5, &[manufacturer.as_bytes(), device.sn.as_str().as_bytes()]));
        let written_as_sn = Imei::parse(device.sn.as_str()).ok();
        for imei in device.imei.iter().chain(written_as_sn.as_ref()) {
            let key = self.key(6, &[imei.as_bytes()]);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// An old device given in payment.
    pub fn trade_in(&self, sn: &SerialNumber) -> Key {
        self.key(7, &[sn.as_str().as_bytes()])
    }
}
