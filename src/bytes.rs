//! Bytes as text: hexadecimal digits, or base64url (RFC 4648, 5) without padding, which is a third shorter; and
//! short texts that are put together in place.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::de::{self, Deserializer, Visitor};

/// The most bytes that are written as one text.
pub const BYTES_MAX: usize = 32;
/// Digits of base64url that so many bytes have.
const fn base64url_digits(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

/// The value of every hexadecimal digit, and 255 for what is none.
const UNHEX: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// The `N` bytes that lower-case hexadecimal digits write.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    let mut faults = 0;
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (UNHEX[usize::from(pair[0])], UNHEX[usize::from(pair[1])]);
        // Only what is no digit has the upper bits set.
        faults |= high | low;
        *byte = (high << 4) | (low & 15);
    }
    (faults < 16).then_some(bytes)
}

/// The `N` bytes that a text of hexadecimal or base64url digits writes; its length says which they are.
pub fn from_text<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != base64url_digits(N) {
        return from_hex(text);
    }
    let mut bytes = [0; N];
    (BASE64URL.decode_slice(text, &mut bytes) == Ok(N)).then_some(bytes)
}

/// A short text in ASCII. Answers have two dozen of them (amounts, instants, ids), for which neither memory nor a
/// formatter is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ascii {
    bytes: [u8; ASCII_CHARS_MAX],
    length: usize,
}

/// The most characters of a short text: those of a hash.
const ASCII_CHARS_MAX: usize = 2 * BYTES_MAX;

impl Ascii {
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; ASCII_CHARS_MAX], length: 0 };

    /// Adds characters of ASCII, unless there is no room for them.
    #[inline]
    pub fn push(&mut self, characters: &[u8]) {
        let end = self.length + characters.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(characters);
            self.length = end;
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

/// What is shown as a short text.
pub trait Shown {
    /// The text.
    fn shown(&self) -> Ascii;
}

impl fmt::Write for Ascii {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.is_ascii() && text.len() <= ASCII_CHARS_MAX - self.length;
        fits.then(|| self.push(text.as_bytes())).ok_or(fmt::Error)
    }
}

impl fmt::Debug for Ascii {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Writes at most 32 bytes as lower-case hexadecimal digits.
pub fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut digits = [0; 2 * BYTES_MAX];
    f.write_str(hex(bytes, &mut digits).ok_or(fmt::Error)?)
}

/// The hexadecimal digits of at most 32 bytes.
pub fn hex<'a>(bytes: &[u8], digits: &'a mut [u8; 2 * BYTES_MAX]) -> Option<&'a str> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    std::str::from_utf8(digits.get(..bytes.len() * 2)?).ok()
}

/// Reads `N` bytes from a text as [`from_text`] does.
///
/// # Errors
/// When it is another text, or none.
pub fn deserialize<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
    struct Text<const N: usize>;

    impl<const N: usize> Visitor<'_> for Text<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes in hexadecimal or base64url digits")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            from_text(text).ok_or_else(|| E::invalid_value(de::Unexpected::Other("a text"), &self))
        }
    }

    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn bytes_are_read_from_either_of_the_texts_they_are_written_as() {
        let bytes: [u8; 32] = std::array::from_fn(|place| place as u8 * 8);
        let hex = "\"0008101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8\"";
        // As `basenc --base64url` writes them, but for the padding.
        let base64url = "\"AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8Pg\"";
        for text in [hex, base64url] {
            assert_eq!(from_text(text.trim_matches('"')), Some(bytes));
            assert_eq!(deserialize(&mut serde_json::Deserializer::from_str(text)).ok(), Some(bytes));
        }
        let short: [u8; 16] = std::array::from_fn(|place| 255 - place as u8);
        assert_eq!(from_text("__79_Pv6-fj39vX08_Lx8A"), Some(short));
    }

    #[test]
    fn a_short_text_takes_what_it_has_room_for() {
        let mut text = Ascii::EMPTY;
        assert_eq!(text.as_str(), "");
        text.push(&[b'a'; ASCII_CHARS_MAX - 2]);
        text.push(b"bcd");
        assert_eq!(text.as_str(), "a".repeat(ASCII_CHARS_MAX - 2), "there is no room for three more");
        assert!(write!(text, "é").is_err() && write!(text, "bcd").is_err());
        write!(text, "{}", 12).unwrap();
        assert_eq!(text.as_str(), format!("{}12", "a".repeat(ASCII_CHARS_MAX - 2)));
    }

    #[test]
    fn another_text_writes_no_bytes() {
        let hex = "0008101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8";
        let base64url = "AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8Pg";
        for malformed in [
            "",
            &hex[1..],
            &hex[2..],
            &hex.to_uppercase(),
            &format!("{hex}00"),
            &hex.replace('a', "g"),
            &base64url[1..],
            &format!("{base64url}="),
            &base64url.replace('C', "+"),
            // The same bytes, with bits to spare that are not zero.
            &base64url.replace("Pg", "Ph"),
        ] {
            assert_eq!(from_text::<32>(malformed), None, "{malformed}");
        }
        assert_eq!(from_hex::<32>(base64url), None);
    }
}
