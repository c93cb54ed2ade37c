//! JSON as entries and answers are written: without white space, straight into one text.
//!
//! Entries and answers have the characters that `serde_json` gives them, in half the time: most of what a claim
//! is made of is short, and that looks for what must be escaped in every name of a member and every piece of
//! every text. Bytes, which it writes as arrays of numbers, are digits here.

use std::fmt::{self, Display, Write};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::ser::{self, Serialize};

use crate::bytes::{BYTES_MAX, hex};

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
pub fn write(text: &mut Vec<u8>, bytes: BytesAs, value: &impl Serialize) -> Result<(), Unwritable> {
    value.serialize(&mut Writer { text, bytes })
}

struct Writer<'t> {
    /// In UTF-8: texts and ASCII are all that is added.
    text: &'t mut Vec<u8>,
    bytes: BytesAs,
}

/// Whether a character of ASCII is not written as it is.
const fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether any of these characters is not written as it is. Eight are looked at at once: most texts are short.
fn has_escaped(text: &[u8]) -> bool {
    let eight = |bytes: &[u8; 8]| {
        const EACH: u64 = u64::from_le_bytes([1; 8]);
        const TOP: u64 = EACH << 7;
        let word = u64::from_le_bytes(*bytes);
        // A byte borrows from its top bit if and only if it, or one before it, is less than what is taken from
        // it; one whose top bit is set is no ASCII.
        let any_below = |word: u64, least: u64| word.wrapping_sub(EACH * least) & !word & TOP;
        let is_any = |byte: u8| any_below(word ^ (EACH * u64::from(byte)), 1);
        any_below(word, 0x20) | is_any(b'"') | is_any(b'\\') != 0
    };
    match text.last_chunk() {
        Some(last) => text.as_chunks().0.iter().any(eight) || eight(last),
        None => text.iter().any(|byte| is_escaped(*byte)),
    }
}

impl Writer<'_> {
    fn string(&mut self, value: &str) {
        self.text.push(b'"');
        if has_escaped(value.as_bytes()) {
            self.escaped(value);
        } else {
            self.text.extend_from_slice(value.as_bytes());
        }
        self.text.push(b'"');
    }

    #[cold]
    fn escaped(&mut self, value: &str) {
        for character in value.chars() {
            let short = match character {
                '"' => b'"',
                '\\' => b'\\',
                '\n' => b'n',
                '\r' => b'r',
                '\t' => b't',
                '\u{8}' => b'b',
                '\u{c}' => b'f',
                '\0'..='\u{1f}' => {
                    self.text.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
                    continue;
                }
                other => {
                    self.text.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            self.text.extend_from_slice(&[b'\\', short]);
        }
    }

    /// A member's name, which is one of this program's own and has nothing to escape.
    fn name(&mut self, name: &'static str) {
        self.text.push(b'"');
        self.end_of_name(name);
    }

    fn end_of_name(&mut self, name: &'static str) {
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    /// A variant with content is an object with one member.
    fn variant(&mut self, name: &'static str) -> &mut Self {
        self.text.push(b'{');
        self.name(name);
        self
    }

    fn number(&mut self, number: impl itoa::Integer) {
        self.text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
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
        let word: &[u8] = if value { b"true" } else { b"false" };
        self.text.extend_from_slice(word);
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
        let mut shown = String::new();
        write!(shown, "{value}").map_err(|fmt::Error| Unwritable("a text".to_owned()))?;
        self.string(&shown);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unwritable> {
        let mut digits = [0; 2 * BYTES_MAX];
        let written = match self.bytes {
            BytesAs::Hex => hex(value, &mut digits).map(str::as_bytes),
            BytesAs::Base64Url if value.len() <= BYTES_MAX => {
                BASE64URL.encode_slice(value, &mut digits).ok().and_then(|count| digits.get(..count))
            }
            BytesAs::Base64Url => None,
        };
        let Some(written) = written else { return refused("so many bytes") };
        self.text.push(b'"');
        self.text.extend_from_slice(written);
        self.text.push(b'"');
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Unwritable> {
        self.serialize_unit()
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Unwritable> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unwritable> {
        self.text.extend_from_slice(b"null");
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
        self.text.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, b'[', b"]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, b'[', b"]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, b'[', b"]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self.variant(name), b'[', b"]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self, b'{', b"}"))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Compound<'w, 't>, Unwritable> {
        if name == RAW_VALUE {
            return refused("JSON that was written before");
        }
        Ok(Compound::begin(self, b'{', b"}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Compound<'w, 't>, Unwritable> {
        Ok(Compound::begin(self.variant(name), b'{', b"}}"))
    }
}

/// An array or an object that is being written.
struct Compound<'w, 't> {
    writer: &'w mut Writer<'t>,
    /// Whether something stands in it.
    goes_on: bool,
    end: &'static [u8],
}

impl<'w, 't> Compound<'w, 't> {
    fn begin(writer: &'w mut Writer<'t>, begin: u8, end: &'static [u8]) -> Self {
        writer.text.push(begin);
        Self { writer, goes_on: false, end }
    }

    fn comma(&mut self) {
        if std::mem::replace(&mut self.goes_on, true) {
            self.writer.text.push(b',');
        }
    }

    fn element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unwritable> {
        self.comma();
        value.serialize(&mut *self.writer)
    }

    fn member<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Unwritable> {
        if std::mem::replace(&mut self.goes_on, true) {
            self.writer.text.extend_from_slice(b",\"");
        } else {
            self.writer.text.push(b'"');
        }
        self.writer.end_of_name(name);
        value.serialize(&mut *self.writer)
    }

    fn finish(self) -> Result<(), Unwritable> {
        self.writer.text.extend_from_slice(self.end);
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
        if self.writer.text.get(begins) != Some(&b'"') {
            return refused("a key that is no text");
        }
        self.writer.text.push(b':');
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
        let mut text = Vec::new();
        write(&mut text, bytes, value).map(|()| String::from_utf8(text).unwrap())
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

    #[test]
    fn what_must_be_escaped_is_found_wherever_it_stands() {
        for length in 0..20 {
            for at in 0..length {
                // Beside those, too, that are next to what is escaped, and that are no ASCII.
                for (byte, other) in
                    (0..=255).flat_map(|byte| b"a !#[]\x7f\x80\xff".map(|other| (byte, other)))
                {
                    let mut text = vec![other; length];
                    text[at] = byte;
                    assert_eq!(has_escaped(&text), is_escaped(byte), "{byte} at {at} of {length}");
                }
            }
        }
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
