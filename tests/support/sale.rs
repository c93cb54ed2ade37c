//! Sales to claim a subsidy for.

use serde_json::{Map, Value, json};
use subsidy_pos::time::Timestamp;

use super::identifiers::{fresh_barcode, fresh_imei, fresh_number, fresh_resident_id};

/// The body of a claim: smart glasses at 4,000.00 yuan in Hangzhou, valid and unlike any other until a
/// test changes it.
#[derive(Clone, Debug)]
pub struct Sale {
    /// What is posted.
    pub body: Value,
}

impl Sale {
    /// A sale made at `sold_at`.
    pub fn at(sold_at: Timestamp) -> Self {
        let body = json!({
            "mode": "redeem",
            "order_no": format!("SO-{}", fresh_number()),
            "category": "smart_glasses",
            "price": "4000.00",
            "region_code": "330106",
            "sold_at": sold_at.to_string(),
            "consumer": {"id_type": "resident_id", "id_number": fresh_resident_id()},
            "device": {"sn": format!("SN-{}", fresh_number()), "barcode": fresh_barcode(), "imei": []},
            "sale_channel": "offline",
        });
        Self { body }
    }

    /// The same sale with `value` at `pointer`, e.g. `/device/sn`.
    pub fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let mut place = &mut self.body;
        for name in pointer.split('/').skip(1) {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = place.as_object_mut().expect("an object").entry(name).or_insert(Value::Null);
        }
        *place = value.into();
        self
    }

    /// The same sale without the member at `pointer`.
    pub fn without(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.body.pointer_mut(parent).expect("a parent").as_object_mut().expect("an object");
        parent.remove(name);
        self
    }

    /// The same sale as a hold without a device.
    pub fn held(self) -> Self {
        self.with("/mode", "hold").without("/device")
    }

    /// The same sale as a hold that names its device.
    pub fn held_with_device(self) -> Self {
        self.with("/mode", "hold")
    }

    /// The same sale at another price.
    pub fn price(self, price: &str) -> Self {
        self.with("/price", price)
    }

    /// The same sale of another category.
    pub fn category(self, category: &str) -> Self {
        self.with("/category", category)
    }

    /// The same sale in another region.
    pub fn region(self, region_code: &str) -> Self {
        self.with("/region_code", region_code)
    }

    /// The same sale to another consumer.
    pub fn person(self, id_type: &str, id_number: &str) -> Self {
        self.with("/consumer", json!({"id_type": id_type, "id_number": id_number}))
    }

    /// The same sale to a consumer with this resident ID.
    pub fn resident(self, id_number: &str) -> Self {
        self.person("resident_id", id_number)
    }

    /// The same sale with a fresh IMEI on its device.
    pub fn with_imei(self) -> Self {
        self.with("/device/imei", json!([fresh_imei()]))
    }

    /// Another order, device and consumer; the rest as it is.
    pub fn another(&self) -> Self {
        let mut next =
            self.clone().with("/order_no", format!("SO-{}", fresh_number())).resident(&fresh_resident_id());
        if next.body.get("device").is_some() {
            next = next.with("/device/sn", format!("SN-{}", fresh_number())).with("/device/imei", json!([]));
        }
        next
    }

    /// Everything of which only one live claim may have it: the order's line, the person, the device's names.
    pub fn names(&self) -> Vec<String> {
        let line = self.body.get("order_line").and_then(Value::as_u64).unwrap_or(1);
        let mut names = vec![
            format!("order {} line {line}", self.text("/order_no")),
            format!("person {}", self.text("/consumer/id_number")),
            format!("device {}", self.text("/device/sn")),
        ];
        let imei = self.body["device"]["imei"].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.extend(imei.map(|imei| format!("device {imei}")));
        names
    }

    /// The member at `pointer` as text.
    #[track_caller]
    pub fn text(&self, pointer: &str) -> &str {
        self.body
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{pointer} of {}", self.body))
    }
}
