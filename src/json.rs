//! JSON as entries and answers are written: without white space, straight into one text.
//!
//! Entries and answers have the characters that `serde_json` gives them, in half the time: most of what a claim
//! is made of is short, and that looks for what must be escaped in every name of a member and every piece of
//! every text. Bytes, which it writes as arrays of numbers, are digits here.

use std::fmt::{self, Display, Write};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::ser::{self, Serialize};

use crate::bytes::{BYTES_MAX, base64url_digits, hex};

/// How bytes (`serialize_bytes`, at most 32) are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BytesAs {
    /// As hexadecimal digits.
    Hex,
    /// As base64url.
    Base64Url,
}

/// Why a value cannot be written. No value of this service is such a one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not written as JSON: {0}")]
pub struct Unwritable(String);

impl ser::Error for Unwritable {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Appends `value` to `text`.
///
/// # Errors
/// For floats, 128-bit numbers, JSON that was written before (`RawValue`), maps whose keys are no texts, and
/// bytes that are too many. What was written until then is left there.
pub fn write(text: &mut String, bytes: BytesAs, value: &impl Serialize) -> Result<(), Unwritable> {
    value.serialize(&mut Writer { text, bytes })
}

struct Writer<'t> {
    text: &'t mut String,
    bytes: BytesAs,
}

/// Whether a character of ASCII is not written as it is.
const fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

impl Writer<'_> {
    fn string(&mut self, value: &str) {
        self.text.push('"');
        // Without an end before the last, so that many are looked at at once.
        if value.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
            self.escaped(value);
        } else {
            self.text.push_str(value);
        }
        self.text.push('"');
    }

    #[cold]
    fn escaped(&mut self, value: &str) {
        for character in value.chars() {
            let short = match character {
                '"' => '"',
                '\\' => '\\',
                '\n' => 'n',
                '\r' => 'r',
                '\t' => 't',
                '\u{8}' => 'b',
                '\u{c}' => 'f',
                '\0'..='\u{1f}' => {
                    // Writing to a text does not fail.
                    let _ = write!(self.text, "\\u{:04x}", u32::from(character));
                    continue;
                }
                other => {
                    self.text.push(other);
                    continue;
                }
            };
            self.text.extend(['\\', short]);
        }
    }

    /// A member's name, which is one of this program's own and has nothing to escape.
    fn name(&mut self, name: &'static str) {
        self.text.push('"');
        self.text.push_str(name);
        self.text.push_str("\":");
    }

    /// A variant with content is an object with one member.
    fn variant(&mut self, name: &'static str) -> &mut Self {
        self.text.push('{');
        self.name(name);
        self
    }

    fn number(&mut self, number: impl itoa::Integer) {
        self.text.push_str(itoa::Buffer::new().format(number));
    }
}

/// What `serde_json` calls JSON that was written before; only its own serializer knows what is meant.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

fn refused<T>(what: &str) -> Result<T, Unwritable> {
    Err(Unwritable(what.to_owned()))
}

macro_rules! numbers {
    ($($method:ident: $type:ty),*) => {$(
        fn $method(self, number: $type) -> Result<(), Unwritable> {
            self.number(number);
            Ok(())
        }
    )*};
}

impl<'w, 't> ser::Serializer for &'w mut Writer<'t> {
    type Ok = ();
    type Error = Unwritable;
    type SerializeSeq = Compound<'w, 't>;
    type SerializeTuple = Compound<'w, 't>;
    type SerializeTupleStruct = Compound<'w, 't>;
    type SerializeTupleVariant = Compound<'w, 't>;
    type SerializeMap = Compound<'w, 't>;
    type SerializeStruct = Compound<'w, 't>;
    type SerializeStructVariant = Compound<'w, 't>;

    numbers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64
    );

    fn serialize_bool(self, value: bool) -> Result<(), Unwritable> {
        self.text.push_str(if value { "true" } else { "false" });
        Ok(())
    }

    fn serialize_f32(self, _: f32) -> Result<(), Unwritable> {
        refused("a float")
    }

    fn serialize_f64(self, _: f64) -> Result<(), Unwritable> {
        refused("a float")
    }

    fn serialize_char(self, value: char) -> Result<(), Unwritable> {
        self.string(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Unwritable> {
        self.string(value);
        Ok(())
    }

    fn collect_str<T: ?Sized + Display>(self, value: &T) -> Result<(), Unwritable> {
        let begins = self.text.len();
        self.text.push('"');
        write!(self.text, "{value}").map_err(|fmt::Error| Unwritable("a text".to_owned()))?;
        if self.text.bytes().skip(begins + 1).fold(false, |any, byte| any | is_escaped(byte)) {
            let written = self.text.split_off(begins + 1);
            self.escaped(&written);
        }
        self.text.push('"');
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unwritable> {
        let mut digits = [0; 2 * BYTES_MAX];
        let written = match self.bytes {
            BytesAs::Hex => hex(value, &mut digits),
            BytesAs::Base64Url => match BASE64URL.encode_slice(value, &mut digits) {
                Ok(count) if count <= base64url_digits(BYTES_MAX) => {
                    digits.get(..count).and_then(|digits| std::str::from_utf8(digits).ok())
                }
                _ => None,
            },
        };
        let Some(written) = written else { return refused("so many bytes") };
        self.text.push('"');
        self.text.push_str(written);
        self.text.push('"');
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Unwritable> {
        self.serialize_unit()
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Unwritable> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unwritable> {
        self.text.push_str("null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unwritable> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<(), Unwritable> {
        self.string(name);
        Ok(())
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Unwritable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), Unwritable> {
        value.serialize(self.variant(name))?;
        self.text.push('}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, '[', "]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, '[', "]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, '[', "]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self.variant(name), '[', "]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, '{', "}"))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        if name == RAW_VALUE {
            return refused("JSON that was written before");
        }
        Ok(Compound::begin(self, '{', "}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self.variant(name), '{', "}}"))
    }
}

/// An array or an object that is being written.
struct Compound<'w, 't> {
    writer: &'w mut Writer<'t>,
    /// Whether something stands in it.
    goes_on: bool,
    end: &'static str,
}

impl<'w, 't> Compound<'w, 't> {
    fn begin(writer: &'w mut Writer<'t>, begin: char, end: &'static str) -> Self {
        writer.text.push(begin);
        Self { writer, goes_on: false, end }
    }

    fn comma(&mut self) {
        if std::mem::replace(&mut self.goes_on, true) {
            self.writer.text.push(',');
        }
    }

    fn element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unwritable> {
        self.comma();
        value.serialize(&mut *self.writer)
    }

    fn member<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Unwritable> {
        self.comma();
        self.writer.name(name);
        value.serialize(&mut *self.writer)
    }

    fn finish(self) -> Result<(), Unwritable> {
        self.writer.text.push_str(self.end);
        Ok(())
    }
}

macro_rules! compounds {
    ($($trait:ident: $method:ident($($name:ident: $type:ty)?) $inner:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Unwritable;

            fn $method<T: ?Sized + Serialize>(
                &mut self,
                $($name: $type,)?
                value: &T,
            ) -> Result<(), Unwritable> {
                self.$inner($($name,)? value)
            }

            fn end(self) -> Result<(), Unwritable> {
                self.finish()
            }
        }
    )*};
}

compounds! {
    SerializeSeq: serialize_element() element,
    SerializeTuple: serialize_element() element,
    SerializeTupleStruct: serialize_field() element,
    SerializeTupleVariant: serialize_field() element,
    SerializeStruct: serialize_field(name: &'static str) member,
    SerializeStructVariant: serialize_field(name: &'static str) member,
}

impl ser::SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = Unwritable;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Unwritable> {
        self.comma();
        let begins = self.writer.text.len();
        key.serialize(&mut *self.writer)?;
        if self.writer.text.as_bytes().get(begins) != Some(&b'"') {
            return refused("a key that is no text");
        }
        self.writer.text.push(':');
        Ok(())
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unwritable> {
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Unwritable> {
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    fn json(bytes: BytesAs, value: &impl Serialize) -> Result<String, Unwritable> {
        let mut text = String::new();
        write(&mut text, bytes, value).map(|()| text)
    }

    #[derive(Clone, Debug, Serialize)]
    enum Shape {
        Nothing,
        One(Box<Shape>),
        Two(i64, char),
        Named { whole: u64, part: Option<String> },
    }

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
    enum Name {
        Fixed,
    }

    #[derive(Clone, Debug, Serialize)]
    struct New(Option<u64>);

    #[derive(Clone, Debug, Serialize)]
    struct Pair(u8, String);

    #[derive(Clone, Debug, Serialize)]
    struct Unit;

    #[derive(Clone, Debug, Serialize)]
    struct Inner {
        new: New,
        pair: Pair,
        unit: Unit,
    }

    #[derive(Clone, Debug, Serialize)]
    struct Shapes {
        texts: BTreeMap<String, String>,
        named: BTreeMap<Name, u16>,
        lettered: BTreeMap<char, i32>,
        shapes: Vec<Shape>,
        pair: (bool, i8),
        unit: (),
        none: Option<u16>,
        #[serde(flatten)]
        inner: Inner,
    }

    struct Shown<'a>(&'a str);

    impl Serialize for Shown<'_> {
        fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self.0)
        }
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let leaf = prop_oneof![
            Just(Shape::Nothing),
            (any::<i64>(), any::<char>()).prop_map(|(number, character)| Shape::Two(number, character)),
            (any::<u64>(), any::<Option<String>>()).prop_map(|(whole, part)| Shape::Named { whole, part }),
        ];
        leaf.prop_recursive(3, 8, 1, |inner| inner.prop_map(|inner| Shape::One(Box::new(inner))))
    }

    proptest! {
        #[test]
        fn everything_is_written_as_serde_json_writes_it(
            texts in any::<BTreeMap<String, String>>(),
            shapes in proptest::collection::vec(shape(), 0..4),
            pair in any::<(bool, i8)>(),
            none in any::<Option<u16>>(),
            shown in any::<String>(),
        ) {
            let shapes = Shapes {
                lettered: texts.keys().filter_map(|text| text.chars().next()).map(|c| (c, -1)).collect(),
                named: none.map(|number| (Name::Fixed, number)).into_iter().collect(),
                inner: Inner { new: New(none.map(u64::from)), pair: Pair(7, shown.clone()), unit: Unit },
                texts,
                shapes,
                pair,
                unit: (),
                none,
            };
            let expected = serde_json::to_string(&shapes).unwrap();
            prop_assert_eq!(json(BytesAs::Hex, &shapes).unwrap(), expected);
            let expected = serde_json::to_string(&shown).unwrap();
            prop_assert_eq!(json(BytesAs::Hex, &Shown(&shown)).unwrap(), expected);
        }
    }

    #[test]
    fn every_character_that_must_be_escaped_is() {
        let all: String = (0..=0x80_u8).map(char::from).collect();
        assert_eq!(json(BytesAs::Hex, &all).unwrap(), serde_json::to_string(&all).unwrap());
    }

    struct Raw<'a>(&'a [u8]);

    impl Serialize for Raw<'_> {
        fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    #[test]
    fn bytes_are_written_as_digits() {
        let bytes: [u8; 32] = std::array::from_fn(|place| place as u8 * 8);
        let hex = "\"0008101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8\"";
        // As `basenc --base64url` writes them, but for the padding.
        let base64url = "\"AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8Pg\"";
        assert_eq!(json(BytesAs::Hex, &Raw(&bytes)).unwrap(), hex);
        assert_eq!(json(BytesAs::Base64Url, &Raw(&bytes)).unwrap(), base64url);
        let short: [u8; 16] = std::array::from_fn(|place| 255 - place as u8);
        assert_eq!(json(BytesAs::Base64Url, &Raw(&short)).unwrap(), "\"__79_Pv6-fj39vX08_Lx8A\"");
        assert_eq!(json(BytesAs::Base64Url, &Raw(&[])).unwrap(), "\"\"");
        for form in [BytesAs::Hex, BytesAs::Base64Url] {
            assert!(json(form, &Raw(&[0; 33])).is_err(), "too many");
        }
    }

    #[test]
    fn what_is_not_written_is_refused() {
        assert!(json(BytesAs::Hex, &0.5_f64).is_err());
        assert!(json(BytesAs::Hex, &u128::MAX).is_err());
        assert!(json(BytesAs::Hex, &BTreeMap::from([(1, 2)])).is_err());
        let raw = serde_json::value::RawValue::from_string("{}".to_owned()).unwrap();
        assert!(json(BytesAs::Hex, &raw).is_err());
    }
}
