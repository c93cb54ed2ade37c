//! From what a caller sent to a command of the ledger.
//!
//! Everything that does not depend on the ledger's state is done here, outside its one writer: the
//! person is hashed, keys and fingerprint are made, and the programmes judge the sale. Past this point
//! a document number exists only as a keyed hash.

use std::sync::Arc;

use smallvec::smallvec;

use super::sale::{ClaimBody, SaleBody};
use crate::claim::{ClaimId, Consumer, Device, Sale, Submitter};
use crate::identity::{IdempotencyKey, OrderLine, PersonDigest, PersonId, Reference};
use crate::ledger::Published;
use crate::ledger::command::{Draft, DraftKeys, Quote, Redeem};
use crate::ledger::entry::Key;
use crate::programme::ProgrammeId;
use crate::rules::{self, Determination, Refused};
use crate::secrets::{HashKey, HashKeys};

/// What commands are prepared with.
#[derive(Clone, Copy, Debug)]
pub struct Preparation<'a> {
    /// The programmes that apply and the maker of keys.
    pub published: &'a Published,
    /// The live hash keys.
    pub hash_keys: &'a HashKeys,
}

impl Preparation<'_> {
    /// The claim to make under `idempotency_key`; `entropy` is random.
    pub fn draft(
        &self,
        by: Submitter,
        idempotency_key: &IdempotencyKey,
        body: ClaimBody,
        entropy: u128,
    ) -> Draft {
        let ClaimBody { mode, order_no, consumer, sale_channel, sale } = &body;
        let judgement = self.judge(sale);
        let keys = &self.published.keys;
        let order_line = sale.order_line.unwrap_or_default();
        let year = sale.sold_at.year();
        let content = body.content();
        let hashed = |hash_key: &HashKey| {
            let digest = PersonDigest::new(hash_key.digest(consumer.identity_bytes()).hash);
            let fingerprint = hash_key.mac([b"claim", content.bytes(), digest.bytes()]);
            let person = keys.person(&digest, sale.category.as_str(), year);
            (digest, person, (Arc::clone(hash_key.label()), Key::new(fingerprint)))
        };
        let (digest, person, fingerprint) = hashed(self.hash_keys.writing());
        let written = Consumer { id_type: consumer.id_type(), key: Arc::clone(&fingerprint.0), digest };
        let mut persons = smallvec![person];
        let mut fingerprints = smallvec![fingerprint];
        for hash_key in self.hash_keys.live().skip(1) {
            let (_, person, fingerprint) = hashed(hash_key);
            persons.push(person);
            fingerprints.push(fingerprint);
        }
        Draft {
            mode: *mode,
            hold_minutes: sale.hold_minutes,
            expected_subsidy: sale.expected_subsidy,
            late: sale.late_reason.is_some(),
            received_elsewhere: !sale.received_elsewhere.is_empty(),
            keys: DraftKeys {
                request: self.request(&by, idempotency_key),
                fingerprints,
                order_line: keys.order_line(&by.retailer, order_no, order_line),
                persons,
                device: sale.device.as_ref().map(|device| keys.device(device)).unwrap_or_default(),
                trade_in: sale.trade_in.as_ref().map(|trade_in| keys.trade_in(&trade_in.sn)),
            },
            judgement,
            judged_at: self.published.activated_at,
            hash_keys: Arc::clone(self.hash_keys.check_values()),
            entropy,
            is_twin: false,
            sale: Arc::new(Sale {
                order_line: sale.order_line.filter(|line| *line != OrderLine::default()),
                price: sale.price,
                region_code: sale.region_code,
                sold_at: sale.sold_at,
                consumer: written,
                sale_channel: *sale_channel,
                energy_grade: sale.energy_grade,
                order_no: body.order_no,
                category: body.sale.category,
                device: body.sale.device,
                store_code: body.sale.store_code,
                terminal_no: body.sale.terminal_no,
                invoice_no: body.sale.invoice_no,
                trade_in: body.sale.trade_in,
            }),
            accept_programme: body.sale.accept_programme,
            by,
        }
    }

    /// What `by` would get for a sale, to be judged without making a claim.
    pub fn quote(&self, by: &Submitter, sale: SaleBody) -> Quote {
        let judgement = self.judge(&sale);
        let keys = &self.published.keys;
        let order_line = sale.order_line.unwrap_or_default();
        let year = sale.sold_at.year();
        let person = |person: &PersonId| {
            let hashed = self.hash_keys.live().map(|hash_key| hash_key.digest(person.identity_bytes()).hash);
            hashed.map(|hash| keys.person(&PersonDigest::new(hash), sale.category.as_str(), year)).collect()
        };
        Quote {
            hold_minutes: sale.hold_minutes,
            price: sale.price,
            region_code: sale.region_code,
            sold_at: sale.sold_at,
            energy_grade: sale.energy_grade,
            trade_in_value: sale.trade_in.as_ref().map(|trade_in| trade_in.value),
            expected_subsidy: sale.expected_subsidy,
            received_elsewhere: !sale.received_elsewhere.is_empty(),
            order_line: sale.order_no.as_ref().map(|order| keys.order_line(&by.retailer, order, order_line)),
            persons: sale.consumer.as_ref().map(person).unwrap_or_default(),
            device: sale.device.as_ref().map(|device| keys.device(device)).unwrap_or_default(),
            trade_in: sale.trade_in.as_ref().map(|trade_in| keys.trade_in(&trade_in.sn)),
            judgement,
            judged_at: self.published.activated_at,
            category: sale.category,
            accept_programme: sale.accept_programme,
        }
    }

    /// The hold to redeem, with the device it is redeemed with.
    pub fn redeem(
        &self,
        by: Submitter,
        claim_id: ClaimId,
        device: Option<Device>,
        invoice_no: Option<Reference>,
    ) -> Redeem {
        let device = device.map(|device| {
            let keys = self.published.keys.device(&device);
            (device, keys)
        });
        Redeem { by, claim_id, device, invoice_no }
    }

    /// The name of a request: its idempotency key within retailer and integrator.
    pub fn request(&self, by: &Submitter, idempotency_key: &IdempotencyKey) -> Key {
        self.published.keys.request(&by.retailer, by.platform.as_deref(), idempotency_key.as_str())
    }

    /// What the programmes say of a sale.
    fn judge(&self, sale: &SaleBody) -> Result<Determination, Refused> {
        rules::determine(
            &self.published.programmes,
            &rules::Sale {
                category: sale.category.as_str(),
                price: sale.price,
                region: sale.region_code,
                sold_at: sale.sold_at,
                energy_grade: sale.energy_grade,
                trade_in_value: sale.trade_in.as_ref().map(|trade_in| trade_in.value),
                accept_programme: sale.accept_programme.as_ref().map(ProgrammeId::as_str),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::extract::Readable;
    use crate::http::json::{self, Fault};
    use crate::identity::Uscc;
    use crate::ledger::KeyRing;
    use crate::money::Fen;
    use crate::programme::{ProgrammeHistory, ProgrammeSet, shipped};
    use crate::secrets::{HashKeyId, HashKeySource, KeyUse};
    use crate::time::Day;

    const TODAY: &str = "2026-11-23";

    fn published() -> Published {
        let programmes = Arc::new(ProgrammeSet::parse(&shipped()).unwrap());
        let mut history = ProgrammeHistory::default();
        history.activate(Arc::clone(&programmes)).unwrap();
        let keys = KeyRing::new(Key::new([7; 16]));
        Published {
            programmes,
            history: Arc::new(history),
            activated_at: 2,
            format: 2,
            keys,
            hash_keys: Default::default(),
        }
    }

    /// Live hash keys: one that writes and one that only checks, with secrets made of these bytes.
    fn hash_keys(named: [(&str, u8); 2]) -> HashKeys {
        let directory = tempfile::tempdir().unwrap();
        let source = |(at, (name, byte)): (usize, (&str, u8))| {
            let file = directory.path().join(name);
            let secret: String = (0..32).map(|place| format!("{:02x}", byte ^ place)).collect();
            std::fs::write(&file, secret).unwrap();
            let key_use = if at == 0 { KeyUse::Write } else { KeyUse::Check };
            HashKeySource { id: HashKeyId::from_name(name).unwrap(), file, key_use }
        };
        HashKeys::load(&named.into_iter().enumerate().map(source).collect::<Vec<_>>()).unwrap()
    }

    fn retailer() -> Submitter {
        Submitter { retailer: Uscc::parse("91110000600037341L").unwrap(), platform: None }
    }

    fn sale() -> Value {
        json!({
            "mode": "redeem", "order_no": "SO-1", "order_line": 1, "category": "smart_glasses",
            "price": "4000.00", "expected_subsidy": "600.00", "region_code": "330106",
            "sold_at": "2026-11-23T10:15:00+08:00",
            "consumer": {"id_type": "resident_id", "id_number": "11010519491231002X"},
            "device": {
                "sn": "RG2-8812-00417", "barcode": "6901234567892",
                "imei": ["490154203237518", "356938035643809"]
            },
            "sale_channel": "offline", "store_code": "HZ-0012", "terminal_no": "03",
            "invoice_no": "F1", "energy_grade": 1, "accept_programme": "zj-ai-25",
            "late_reason": "offline", "trade_in": {"sn": "OLD-1", "value": "100.00"},
            "received_elsewhere": [{"programme": "other", "amount": "1.00"}],
        })
    }

    fn claim(body: &Value) -> Result<ClaimBody, Vec<Fault>> {
        claim_of(&body.to_string())
    }

    fn claim_of(body: &str) -> Result<ClaimBody, Vec<Fault>> {
        let today = Day::parse(TODAY).unwrap();
        json::body(body.as_bytes(), |reader| ClaimBody::read(reader, today))
    }

    fn fingerprint(body: &Value) -> Key {
        fingerprint_of(&body.to_string())
    }

    fn fingerprint_of(body: &str) -> Key {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim_of(body).unwrap(), 0);
        draft.keys.fingerprints[0].1
    }

    /// `body` with the member at `pointer` replaced, or taken away where `value` is nothing.
    fn with(body: &Value, pointer: &str, value: Option<Value>) -> Value {
        let mut body = body.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let members = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => members.insert(name.to_owned(), value),
            None => members.remove(name),
        };
        body
    }

    fn hold() -> Value {
        with(&sale(), "/mode", Some("hold".into()))
    }

    #[test]
    fn two_ways_to_write_one_content_have_one_fingerprint() {
        let absent = None;
        for (body, pointer, value) in [
            (sale(), "/price", Some(json!("4000"))),
            (sale(), "/price", Some(json!("4000.0"))),
            (sale(), "/expected_subsidy", Some(json!("600"))),
            (sale(), "/sold_at", Some(json!("2026-11-23T02:15:00Z"))),
            (sale(), "/sold_at", Some(json!("2026-11-23T10:15:00.000+08:00"))),
            (sale(), "/order_line", absent.clone()),
            (sale(), "/order_line", Some(Value::Null)),
            (sale(), "/consumer/id_number", Some(json!("110105491231002"))),
            (sale(), "/consumer/id_number", Some(json!(" 11010519491231002x "))),
            (sale(), "/consumer/id_number", Some(json!("１１０１０５１９４９１２３１００２Ｘ"))),
            (sale(), "/device/sn", Some(json!(" rg2-8812-00417"))),
            (sale(), "/device/barcode", Some(json!("06901234567892"))),
            (sale(), "/device/imei", Some(json!(["356938035643809", "490154203237518"]))),
            (sale(), "/trade_in/sn", Some(json!("old-1"))),
            (sale(), "/trade_in/value", Some(json!("100"))),
            (hold(), "/hold_minutes", Some(json!(30))),
            (hold(), "/hold_minutes", Some(Value::Null)),
        ] {
            let other = with(&body, pointer, value.clone());
            assert_eq!(fingerprint(&body), fingerprint(&other), "{pointer}: {value:?}");
        }
        let without = |pointer, empty| {
            let bare = with(&sale(), pointer, None);
            assert_eq!(
                fingerprint(&bare),
                fingerprint(&with(&bare, pointer, Some(Value::Null))),
                "{pointer}"
            );
            assert_eq!(fingerprint(&bare), fingerprint(&with(&bare, pointer, Some(empty))), "{pointer}");
        };
        without("/device/imei", json!([]));
        without("/received_elsewhere", json!([]));
        for pointer in ["/store_code", "/invoice_no", "/energy_grade", "/trade_in", "/late_reason"] {
            without(pointer, Value::Null);
        }
        let members = sale().as_object().unwrap().clone();
        let backwards: Vec<_> =
            members.iter().rev().map(|(name, value)| format!(" {name:?}:\t{value}\n")).collect();
        assert_eq!(fingerprint(&sale()), fingerprint_of(&format!("{{{}}}", backwards.join(","))));
    }

    #[test]
    fn every_real_difference_changes_the_fingerprint() {
        let mut seen = vec![fingerprint(&sale())];
        for (pointer, value) in [
            ("/mode", Some(json!("hold"))),
            ("/order_no", Some(json!("so-1"))),
            ("/order_line", Some(json!(2))),
            ("/category", Some(json!("smart_health"))),
            ("/price", Some(json!("4000.01"))),
            ("/expected_subsidy", Some(json!("600.01"))),
            ("/expected_subsidy", None),
            ("/region_code", Some(json!("330100"))),
            ("/sold_at", Some(json!("2026-11-23T10:15:00.001+08:00"))),
            ("/late_reason", Some(json!("outage"))),
            ("/late_reason", None),
            ("/consumer/id_number", Some(json!("440524188001010014"))),
            ("/device/sn", Some(json!("RG2-8812-00418"))),
            ("/device/barcode", Some(json!("10614141000415"))),
            ("/device/imei", Some(json!(["490154203237518"]))),
            ("/device/imei", None),
            ("/accept_programme", Some(json!("national-digital-2026"))),
            ("/accept_programme", None),
            ("/sale_channel", Some(json!("online"))),
            ("/store_code", Some(json!("HZ-0013"))),
            ("/store_code", None),
            ("/terminal_no", Some(json!("04"))),
            ("/terminal_no", None),
            ("/invoice_no", Some(json!("F2"))),
            ("/invoice_no", None),
            ("/energy_grade", Some(json!(2))),
            ("/energy_grade", None),
            ("/trade_in/sn", Some(json!("OLD-2"))),
            ("/trade_in/value", Some(json!("100.01"))),
            ("/trade_in", None),
            ("/received_elsewhere", Some(json!([{"programme": "other", "amount": "2.00"}]))),
            ("/received_elsewhere", Some(json!([{"programme": "another", "amount": "1.00"}]))),
            ("/received_elsewhere", None),
        ] {
            let other = fingerprint(&with(&sale(), pointer, value.clone()));
            assert!(!seen.contains(&other), "{pointer}: {value:?}");
            seen.push(other);
        }
        let passport = json!({"id_type": "hm_travel_permit", "id_number": "H12345678"});
        let other = fingerprint(&with(&sale(), "/consumer", Some(passport)));
        assert!(!seen.contains(&other));
        seen.push(other);
        for other in [with(&hold(), "/hold_minutes", Some(json!(31))), with(&hold(), "/device", None)] {
            let other = fingerprint(&other);
            assert!(!seen.contains(&other));
            seen.push(other);
        }
    }

    #[test]
    fn values_cannot_slide_from_one_member_into_the_next() {
        let moved = |store: &str, terminal: &str| {
            let body = with(&sale(), "/store_code", Some(store.into()));
            fingerprint(&with(&body, "/terminal_no", Some(terminal.into())))
        };
        assert_ne!(moved("AB", "C"), moved("A", "BC"));
        let only_store = with(&with(&sale(), "/store_code", Some("A".into())), "/terminal_no", None);
        let only_terminal = with(&with(&sale(), "/terminal_no", Some("A".into())), "/store_code", None);
        assert_ne!(fingerprint(&only_store), fingerprint(&only_terminal));
    }

    #[test]
    fn whoever_writes_under_one_key_is_known_to_whoever_checks_it() {
        let published = published();
        let draft = |hash_keys: &HashKeys| {
            let preparation = Preparation { published: &published, hash_keys };
            let key = IdempotencyKey::parse("key").unwrap();
            preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 0)
        };
        let (older, newer) =
            (draft(&hash_keys([("k1", 1), ("k2", 2)])), draft(&hash_keys([("k2", 2), ("k1", 1)])));
        assert_eq!(&*older.sale.consumer.key, "hmac-sha256/k1");
        assert_eq!(&*newer.sale.consumer.key, "hmac-sha256/k2");
        assert_eq!(older.keys.persons[0], newer.keys.persons[1]);
        assert_eq!(older.keys.persons[1], newer.keys.persons[0]);
        assert_eq!(older.keys.fingerprints[0], newer.keys.fingerprints[1]);
        assert_eq!(older.keys.fingerprints[1], newer.keys.fingerprints[0]);
        assert_ne!(older.sale.consumer.digest, newer.sale.consumer.digest);
        assert_eq!(older.keys.device, newer.keys.device);
    }

    #[test]
    fn a_person_has_one_entitlement_a_category_and_year_of_the_sale() {
        let published = published();
        let hash_keys = hash_keys([("k1", 1), ("k2", 2)]);
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let person = |pointer: &str, value: &str| {
            let body = claim(&with(&sale(), pointer, Some(value.into()))).unwrap();
            let key = IdempotencyKey::parse("key").unwrap();
            preparation.draft(retailer(), &key, body, 0).keys.persons[0]
        };
        let one = person("/price", "4000");
        assert_eq!(one, person("/sold_at", "2026-01-01T00:00:00+08:00"));
        assert_ne!(one, person("/sold_at", "2025-12-31T23:59:59+08:00"));
        assert_ne!(one, person("/category", "smart_health"));
        assert_ne!(one, person("/consumer/id_number", "440524188001010014"));
    }

    #[test]
    fn the_draft_is_judged_and_names_only_what_was_sent() {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 5);
        let determination = draft.judgement.as_ref().unwrap();
        assert_eq!(determination.chosen().amount, Fen::new(60_000));
        assert_eq!((draft.judged_at, draft.entropy, draft.late), (2, 5, true));
        assert!(draft.received_elsewhere);
        assert_eq!(draft.keys.device.len(), 3);
        assert_eq!(draft.sale.device.as_ref().unwrap().barcode.as_str(), "06901234567892");
        let shown = format!("{draft:?}");
        assert!(!shown.contains("110105") && !shown.contains("491231"), "no part of the number is left");

        let bare = json!({
            "category": "smart_glasses", "price": "4000.00", "region_code": "330106",
            "sold_at": "2020-01-01T00:00:00+08:00",
        });
        let quote = quote(&bare).unwrap();
        let quote = preparation.quote(&retailer(), quote);
        assert!(matches!(quote.judgement, Err(Refused::NotInForce(_))));
        assert!(quote.order_line.is_none() && quote.persons.is_empty() && quote.device.is_empty());
    }

    fn quote(body: &Value) -> Result<SaleBody, Vec<Fault>> {
        let today = Day::parse(TODAY).unwrap();
        json::body(body.to_string().as_bytes(), |reader| <SaleBody as Readable>::read(reader, today))
    }

    #[test]
    fn a_quote_finds_the_same_keys_as_its_claim() {
        let (published, hash_keys) = (published(), hash_keys([("k1", 1), ("k2", 2)]));
        let preparation = Preparation { published: &published, hash_keys: &hash_keys };
        let key = IdempotencyKey::parse("key").unwrap();
        let draft = preparation.draft(retailer(), &key, claim(&sale()).unwrap(), 0);
        let quote = preparation.quote(&retailer(), quote(&sale()).unwrap());
        assert_eq!(quote.persons, draft.keys.persons);
        assert_eq!(quote.device, draft.keys.device);
        assert_eq!(quote.order_line, Some(draft.keys.order_line));
        assert_eq!(quote.trade_in, draft.keys.trade_in);
        assert_eq!(quote.judgement, draft.judgement);
    }

    fn faults(body: &Value) -> Vec<(String, &'static str)> {
        let faults = claim(body).expect_err("it has faults");
        faults.into_iter().map(|fault| (fault.pointer, fault.wrong.code)).collect()
    }

    #[test]
    fn every_fault_of_a_claim_is_named() {
        for (pointer, value, expected) in [
            ("/mode", json!("Redeem"), "not-one-of"),
            ("/order_no", json!("a b"), "reference-malformed"),
            ("/order_line", json!(0), "out-of-range"),
            ("/order_line", json!(1000), "out-of-range"),
            ("/order_line", json!("1"), "wrong-type"),
            ("/category", json!("Smart"), "category-malformed"),
            ("/price", json!("0.00"), "amount-zero"),
            ("/price", json!(4000), "amount-is-number"),
            ("/price", json!("4000.001"), "amount-malformed"),
            ("/region_code", json!("33010"), "region-malformed"),
            ("/sold_at", json!("2026-11-23T10:15:00"), "instant-malformed"),
            ("/late_reason", json!("late"), "not-one-of"),
            ("/consumer", Value::Null, "required"),
            ("/consumer/id_type", json!("passport"), "id-type-unknown"),
            ("/consumer/id_number", json!("110105194912310021"), "id-number-check-digit"),
            ("/consumer/code", json!("1"), "unknown-member"),
            ("/device", Value::Null, "required"),
            ("/device/sn", json!("a b"), "sn-malformed"),
            ("/device/barcode", json!("6901234567890"), "barcode-check-digit"),
            ("/device/imei", json!(["490154203237518", "490154203237518"]), "imei-repeated"),
            ("/hold_minutes", json!(30), "holds-only"),
            ("/accept_programme", json!("ZJ"), "programme-malformed"),
            ("/sale_channel", Value::Null, "required"),
            ("/energy_grade", json!(6), "out-of-range"),
            ("/trade_in/value", json!("-1"), "amount-malformed"),
            ("/subsidy", json!("600.00"), "unknown-member"),
        ] {
            assert_eq!(faults(&with(&sale(), pointer, Some(value))), [(pointer.to_owned(), expected)]);
        }
        let required: Vec<_> = faults(&json!({})).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(
            required,
            [
                "/mode",
                "/order_no",
                "/category",
                "/price",
                "/region_code",
                "/sold_at",
                "/consumer",
                "/sale_channel"
            ]
        );
    }

    #[test]
    fn a_hold_needs_no_device_and_lasts_a_minute_at_least() {
        assert_eq!(faults(&with(&hold(), "/hold_minutes", Some(json!(0))))[0].1, "out-of-range");
        assert!(claim(&with(&hold(), "/device", None)).is_ok(), "a hold needs no device");
    }
}
