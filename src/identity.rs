//! Chinese and trade identifiers: parsed once, canonical inside.
//!
//! Every type here holds a valid value or does not exist. Reading one brings the text into
//! canonical form first (Unicode NFKC, no surrounding white space, upper case) and checks it then,
//! so two spellings of one thing are one value: a difference that survived would be a second
//! subsidy. [`Reference`], [`IdempotencyKey`] and [`IdType`] are the exceptions, said where they
//! are defined.
//!
//! A natural person's document ends up in [`PersonId`], which cannot be printed, copied or
//! serialised; what is kept of it is a [`PersonDigest`], keyed elsewhere. No fault repeats the
//! text it is about.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ::time::{Date, Month};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::UnicodeNormalization;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::time::Day;
use crate::{bytes, limits};

// --- Faults ---

/// Defines [`IdFault`] from a table of variant, code, English and Chinese; the English documents it.
macro_rules! faults {
    ($($variant:ident $code:literal $en:literal $zh:literal)*) => {
        /// Why a text is not the identifier it should be. Carries no part of the text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum IdFault {
            $(#[doc = $en] $variant,)*
        }

        impl IdFault {
            /// Every fault.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name integrators may test for.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What is wrong, in English.
            pub const fn en(self) -> &'static str {
                match self { $(Self::$variant => $en,)* }
            }

            /// What is wrong, in Chinese.
            pub const fn zh(self) -> &'static str {
                match self { $(Self::$variant => $zh,)* }
            }
        }
    };
}

faults! {
    UsccMalformed "uscc-malformed"
        "A unified social credit code has 18 characters, digits and capital letters without I, O, S, V and Z; places 3 to 8 are digits."
        "统一社会信用代码应为18位数字或大写字母（不含I、O、S、V、Z），第3至8位为数字。"
    UsccCheckCharacter "uscc-check-character"
        "The check character of the unified social credit code is wrong."
        "统一社会信用代码校验位错误。"
    UsccOrganisationCode "uscc-organisation-code"
        "The organisation code in places 9 to 17 of the unified social credit code is wrong."
        "统一社会信用代码第9至17位的主体标识码（组织机构代码）校验错误。"
    IdTypeUnknown "id-type-unknown"
        "There is no document type of this name."
        "证件类型不存在。"
    IdNumberMalformed "id-number-malformed"
        "The number does not have the form of this document type."
        "证件号码格式与证件类型不符。"
    IdTypeMismatch "id-type-mismatch"
        "The number belongs to another document type."
        "证件号码属于其他证件类型。"
    IdRegionUnknown "id-number-region"
        "The number starts with no region that issues this document."
        "证件号码的行政区划代码无效。"
    IdBirthDate "id-number-birth-date"
        "The date of birth in the number is not a real date in the past."
        "证件号码中的出生日期无效。"
    IdCheckDigit "id-number-check-digit"
        "The check digit of the number is wrong."
        "证件号码校验位错误。"
    GtinMalformed "barcode-malformed"
        "A barcode has 13 or 14 digits."
        "商品条码应为13位或14位数字。"
    GtinCheckDigit "barcode-check-digit"
        "The check digit of the barcode is wrong."
        "商品条码校验位错误。"
    GtinZero "barcode-zero"
        "A barcode of zeros names no product."
        "商品条码不能全为零。"
    ImeiMalformed "imei-malformed"
        "An IMEI has 15 digits; the 16-digit IMEISV is not one."
        "IMEI应为15位数字（16位的IMEISV无效）。"
    ImeiCheckDigit "imei-check-digit"
        "The check digit of the IMEI is wrong."
        "IMEI校验位错误。"
    ImeiZero "imei-zero"
        "An IMEI of zeros names no device."
        "IMEI不能全为零。"
    SerialNumberMalformed "sn-malformed"
        "A serial number has 1 to 64 of the characters A–Z 0–9 . _ / : + -"
        "SN码应为1至64位，仅限A–Z、0–9及 . _ / : + - 字符。"
    RegionMalformed "region-malformed"
        "A region code has six digits: province, city, county."
        "行政区划代码应为六位数字（省、市、县）。"
    RegionUnknown "region-unknown"
        "The region code starts with no province."
        "行政区划代码的省级代码不存在。"
    ReferenceMalformed "reference-malformed"
        "A reference has 1 to 64 visible characters and no white space."
        "单号应为1至64个可见字符，且不含空白字符。"
    IdempotencyKeyMalformed "idempotency-key-malformed"
        "An idempotency key has 1 to 255 visible ASCII characters, quoted or not, and does not itself begin with a quotation mark."
        "幂等键应为1至255个可见ASCII字符，可加引号，键本身不得以引号开头。"
    OrderLineOutOfRange "order-line-out-of-range"
        "An order line lies between 1 and 999."
        "订单行号应在1至999之间。"
}

// The texts above name these bounds.
const _: () = assert!(limits::SN_CHARS_MAX == 64 && limits::REFERENCE_CHARS_MAX == 64);
const _: () = assert!(limits::IDEMPOTENCY_KEY_CHARS_MAX == 255 && limits::ORDER_LINE_MAX == 999);

/// The English text.
impl fmt::Display for IdFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.en())
    }
}

impl std::error::Error for IdFault {}

// --- Canonical form, and what every identifier shares ---

/// Bytes in the longest identifier that has a canonical form.
const CANONICAL_BYTES_MAX: usize = limits::SN_CHARS_MAX;

/// Brings `text` into canonical form: NFKC, no surrounding white space, upper case. `None` where
/// the outcome cannot be an identifier: outside ASCII, with white space inside, or longer than any
/// of them. Text that is canonical already is returned as it came; `buffer` holds anything else.
fn canonical<'a>(text: &'a str, buffer: &'a mut [u8; CANONICAL_BYTES_MAX]) -> Option<&'a [u8]> {
    if text.is_ascii() {
        let text = text.trim().as_bytes();
        if text.len() > CANONICAL_BYTES_MAX || text.iter().any(u8::is_ascii_whitespace) {
            return None;
        }
        if !text.iter().any(u8::is_ascii_lowercase) {
            return Some(text);
        }
        let target = buffer.get_mut(..text.len())?;
        target.copy_from_slice(text);
        target.make_ascii_uppercase();
        return Some(target);
    }
    let mut length = 0;
    let mut ended = false;
    for character in text.nfkc().flat_map(char::to_uppercase) {
        if character.is_whitespace() {
            ended = length > 0;
        } else if ended || !character.is_ascii() {
            return None;
        } else {
            *buffer.get_mut(length)? = u8::try_from(character).ok()?;
            length += 1;
        }
    }
    buffer.get(..length)
}

/// Writes `bytes` into `slots` until either runs out.
fn fill<'a>(slots: impl IntoIterator<Item = &'a mut u8>, bytes: impl IntoIterator<Item = &'a u8>) {
    for (slot, byte) in slots.into_iter().zip(bytes) {
        *slot = *byte;
    }
}

fn all_digits(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_digit)
}

/// The number that ASCII digits write; 19 of them fit.
fn decimal(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'))
}

/// ASCII bytes as text. The types here hold nothing else, so the empty text is never the answer.
fn ascii(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// Reads any identifier from a serialised string, without an allocation of its own.
fn deserialize_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err = IdFault>,
    D: Deserializer<'de>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err = IdFault>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(PhantomData))
}

/// What every identifier that is text offers: `FromStr` as `parse`, `Display`, `Debug` and serde
/// as the canonical string.
macro_rules! identifier_as_text {
    ($name:ident, $text:ident) => {
        impl FromStr for $name {
            type Err = IdFault;

            fn from_str(text: &str) -> Result<Self, IdFault> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.$text())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.$text())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.$text())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_text(deserializer)
            }
        }
    };
}

// --- Retailers ---

/// 31 characters: no I, O, S, V, Z (GB 32100-2015).
const USCC_ALPHABET: &[u8; 31] = b"0123456789ABCDEFGHJKLMNPQRTUWXY";
/// Powers of 3 modulo 31.
const USCC_WEIGHTS: [u32; 17] = [1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28];
/// GB 11714-1997.
const ORGANISATION_WEIGHTS: [u32; 8] = [3, 7, 9, 10, 5, 8, 4, 2];
/// What a character outside the alphabet is worth in [`USCC_VALUES`].
const NO_VALUE: u8 = u8::MAX;

/// Place of each byte in the alphabet.
const USCC_VALUES: [u8; 256] = {
    let mut values = [NO_VALUE; 256];
    let mut value = 0;
    while value < USCC_ALPHABET.len() {
        values[USCC_ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

fn weighted(values: impl IntoIterator<Item = u32>, weights: &[u32]) -> u32 {
    values.into_iter().zip(weights).map(|(value, weight)| value * weight).sum()
}

/// The 18th character that the first 17 require (GB 32100-2015).
fn uscc_check_character(body: &[u8; 17]) -> u8 {
    let sum = weighted(body.iter().map(|byte| u32::from(USCC_VALUES[usize::from(*byte)])), &USCC_WEIGHTS);
    USCC_ALPHABET[(31 - sum % 31) as usize % 31]
}

/// The ninth character that the first eight of an organisation code require. A letter is worth
/// its place among all 26 plus 9 here (GB 11714-1997), unlike in the code around it.
fn organisation_check_character(body: impl IntoIterator<Item = u8>) -> u8 {
    let value = |byte: u8| u32::from(if byte.is_ascii_digit() { byte - b'0' } else { byte - b'A' + 10 });
    match 11 - weighted(body.into_iter().map(value), &ORGANISATION_WEIGHTS) % 11 {
        11 => b'0',
        10 => b'X',
        digit => b'0' + digit as u8,
    }
}

/// A unified social credit code (统一社会信用代码, GB 32100-2015): 18 characters, of which the
/// 18th checks all others and the 17th checks the organisation code in places 9 to 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uscc([u8; 18]);

impl Uscc {
    /// Reads a code; a [fault](IdFault) says whether form, check character or organisation code
    /// is wrong, in this order.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let mut buffer = [0; CANONICAL_BYTES_MAX];
        let text = canonical(text, &mut buffer).ok_or(IdFault::UsccMalformed)?;
        let code = <[u8; 18]>::try_from(text).map_err(|_| IdFault::UsccMalformed)?;
        let in_alphabet = code.iter().all(|byte| USCC_VALUES[usize::from(*byte)] != NO_VALUE);
        if !in_alphabet || !code.iter().skip(2).take(6).all(u8::is_ascii_digit) {
            return Err(IdFault::UsccMalformed);
        }
        let [body @ .., check] = &code;
        if *check != uscc_check_character(body) {
            return Err(IdFault::UsccCheckCharacter);
        }
        let [.., organisation_check, _] = code;
        if organisation_check != organisation_check_character(code.into_iter().skip(8).take(8)) {
            return Err(IdFault::UsccOrganisationCode);
        }
        Ok(Self(code))
    }

    /// The 18 characters.
    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }

    /// The same as bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

identifier_as_text!(Uscc, as_str);

// --- Natural persons ---

/// The documents a consumer may show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum IdType {
    /// Resident identity card, 居民身份证.
    ResidentId,
    /// Residence permit for residents of Hong Kong, Macau and Taiwan, 港澳台居民居住证.
    HmtResidencePermit,
    /// Foreigner's permanent residence card, 外国人永久居留身份证.
    ForeignPermanentResident,
    /// Mainland travel permit for residents of Hong Kong and Macau, 港澳居民来往内地通行证.
    HmTravelPermit,
    /// Mainland travel permit for residents of Taiwan, 台湾居民来往大陆通行证.
    TwTravelPermit,
}

impl IdType {
    /// Every type.
    pub const ALL: [Self; 5] = [
        Self::ResidentId,
        Self::HmtResidencePermit,
        Self::ForeignPermanentResident,
        Self::HmTravelPermit,
        Self::TwTravelPermit,
    ];

    /// Reads a [name](Self::name), spelled exactly.
    pub fn parse(name: &str) -> Result<Self, IdFault> {
        Self::ALL.into_iter().find(|id_type| id_type.name() == name).ok_or(IdFault::IdTypeUnknown)
    }

    /// The name on the wire, in the journal and in front of a person's identity.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResidentId => "resident_id",
            Self::HmtResidencePermit => "hmt_residence_permit",
            Self::ForeignPermanentResident => "foreign_permanent_resident",
            Self::HmTravelPermit => "hm_travel_permit",
            Self::TwTravelPermit => "tw_travel_permit",
        }
    }
}

identifier_as_text!(IdType, name);

/// Bytes in the longest identity: the longest type name, a colon and 18 characters.
const IDENTITY_BYTES_MAX: usize = IdType::ForeignPermanentResident.name().len() + 1 + 18;
const _: () = {
    let mut index = 0;
    while index < IdType::ALL.len() {
        assert!(IdType::ALL[index].name().len() + 1 + 18 <= IDENTITY_BYTES_MAX);
        index += 1;
    }
};

/// Year before which no holder of a document was born. *Choice*: resident cards exist since 1984,
/// and numbers of people born in the nineteenth century were given out.
const BIRTH_YEAR_MIN: i32 = 1800;
/// GB 11643-1999: powers of 2 modulo 11, from the right.
const RESIDENT_WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];

/// One natural person, as one document names them.
///
/// One person with one kind of document is one identity, whatever the spelling: 15- and 18-digit
/// resident numbers are equal, and so are the reissues of a travel permit. Documents of different
/// kinds never collide. Which documents of different kinds belong to one person, and which old
/// 15-character foreigner's card became which 18-digit one, cannot be told from the numbers.
///
/// The value exists to be hashed with a key and dropped. It cannot be displayed, serialised or
/// cloned, `Debug` shows the document type only, and the memory is wiped on drop.
#[derive(ZeroizeOnDrop)]
pub struct PersonId {
    #[zeroize(skip)]
    id_type: IdType,
    identity: [u8; IDENTITY_BYTES_MAX],
    length: usize,
}

impl PersonId {
    /// Reads the number of a document of type `id_type`. Dates of birth after `today` are refused.
    ///
    /// | type | number | identity |
    /// |---|---|---|
    /// | resident | GB 11643-1999, 18 characters, or the 15 digits before 1999 | the 18 characters |
    /// | Hong Kong, Macau, Taiwan residence permit | the same form, regions 810000, 820000, 830000 | the 18 characters |
    /// | foreign permanent resident | the same form beginning with 9, or three letters and 12 digits | the number |
    /// | Hong Kong, Macau travel permit | H or M and 8 or 10 digits, the last two of ten counting reissues | the letter and 8 digits |
    /// | Taiwan travel permit | 8 or 10 digits, the last two of ten counting reissues | 8 digits |
    ///
    /// Faults come in this order: form, type, region, date of birth, check digit.
    pub fn parse(id_type: IdType, id_number: &str, today: Day) -> Result<Self, IdFault> {
        let mut buffer = Zeroizing::new([0; CANONICAL_BYTES_MAX]);
        let number = canonical(id_number, &mut buffer).ok_or(IdFault::IdNumberMalformed)?;
        match (id_type, number) {
            (IdType::HmTravelPermit, [b'H' | b'M', digits @ ..]) if is_permit_number(digits) => {
                Ok(Self::new(id_type, number.iter().take(9)))
            }
            (IdType::TwTravelPermit, digits) if is_permit_number(digits) => {
                Ok(Self::new(id_type, number.iter().take(8)))
            }
            (IdType::ForeignPermanentResident, [a, b, c, digits @ ..])
                if [a, b, c].iter().all(|byte| byte.is_ascii_uppercase())
                    && digits.len() == 12
                    && all_digits(digits) =>
            {
                Ok(Self::new(id_type, number))
            }
            (IdType::ResidentId, digits) if digits.len() == 15 && all_digits(digits) => {
                let mut full = Zeroizing::new([0; 18]);
                fill(full.iter_mut(), digits.iter().take(6).chain(b"19").chain(digits.iter().skip(6)));
                let [body @ .., check] = &mut *full;
                *check = resident_check_digit(body);
                check_resident_form(id_type, &full, today)?;
                Ok(Self::new(id_type, full.iter()))
            }
            (IdType::ResidentId | IdType::HmtResidencePermit | IdType::ForeignPermanentResident, full) => {
                let full = full.try_into().map_err(|_| IdFault::IdNumberMalformed)?;
                check_resident_form(id_type, full, today)?;
                Ok(Self::new(id_type, full))
            }
            (IdType::HmTravelPermit | IdType::TwTravelPermit, _) => Err(IdFault::IdNumberMalformed),
        }
    }

    fn new<'a>(id_type: IdType, number: impl IntoIterator<Item = &'a u8>) -> Self {
        let mut person = Self { id_type, identity: [0; IDENTITY_BYTES_MAX], length: 0 };
        let bytes = id_type.name().as_bytes().iter().chain(b":").chain(number);
        for (slot, byte) in person.identity.iter_mut().zip(bytes) {
            *slot = *byte;
            person.length += 1;
        }
        person
    }

    /// The kind of document.
    pub const fn id_type(&self) -> IdType {
        self.id_type
    }

    /// The canonical bytes to hash with a key: the name of the document type, a colon and the
    /// part of the number that stays the same for the person's life, in ASCII. They are personal
    /// data and must not be written anywhere.
    pub fn identity_bytes(&self) -> &[u8] {
        self.identity.get(..self.length).unwrap_or(&self.identity)
    }
}

impl fmt::Debug for PersonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PersonId({}, ..)", self.id_type)
    }
}

fn is_permit_number(digits: &[u8]) -> bool {
    matches!(digits.len(), 8 | 10) && all_digits(digits)
}

/// The 18th character that the first 17 digits require (GB 11643-1999; ISO 7064 MOD 11-2).
fn resident_check_digit(body: &[u8; 17]) -> u8 {
    let sum = weighted(body.iter().map(|byte| u32::from(byte - b'0')), &RESIDENT_WEIGHTS);
    match (12 - sum % 11) % 11 {
        10 => b'X',
        digit => b'0' + digit as u8,
    }
}

/// Checks a number of GB 11643-1999 form: six digits of region, eight of birth, three of order,
/// one check digit. The region decides which document has such a number, so that nobody is two
/// people by naming another type. Regions of mainland residents are checked by province: counties
/// are abolished, their numbers stay.
fn check_resident_form(id_type: IdType, number: &[u8; 18], today: Day) -> Result<(), IdFault> {
    let [body @ .., check] = number;
    if !all_digits(body) || !(check.is_ascii_digit() || *check == b'X') {
        return Err(IdFault::IdNumberMalformed);
    }
    let body_value = decimal(body);
    let region = body_value / 100_000_000_000;
    let (province, within_province) = (region / 10_000, region % 10_000);
    let (document, region_issues) = match province {
        81..=83 => (IdType::HmtResidencePermit, within_province == 0),
        90..=99 => (IdType::ForeignPermanentResident, true),
        _ => (IdType::ResidentId, is_province(province)),
    };
    if id_type != document {
        return Err(IdFault::IdTypeMismatch);
    }
    if !region_issues {
        return Err(IdFault::IdRegionUnknown);
    }
    let birth = calendar_date(body_value / 1_000 % 100_000_000).ok_or(IdFault::IdBirthDate)?;
    if birth.year() < BIRTH_YEAR_MIN || birth > today.date() {
        return Err(IdFault::IdBirthDate);
    }
    if *check != resident_check_digit(body) {
        return Err(IdFault::IdCheckDigit);
    }
    Ok(())
}

/// The date that eight digits write, year first, where there is such a date.
fn calendar_date(digits: u64) -> Option<Date> {
    let year = i32::try_from(digits / 10_000).ok()?;
    let month = Month::try_from(u8::try_from(digits / 100 % 100).ok()?).ok()?;
    Date::from_calendar_date(year, month, u8::try_from(digits % 100).ok()?).ok()
}

/// What is kept of a person: the keyed hash of a [`PersonId`]. De-identified, not anonymous, so
/// `Debug` does not show it. Serialised as bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersonDigest([u8; 32]);

impl PersonDigest {
    /// Wraps what the keyed hash yielded.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PersonDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PersonDigest(..)")
    }
}

impl Serialize for PersonDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for PersonDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes::deserialize(deserializer).map(Self)
    }
}

// --- Goods and devices ---

/// The last digit that the digits before it require: weights 3, 1, 3, … from the right (GS1).
fn gtin_check_digit(body: &[u8]) -> u8 {
    let weights = [3, 1].into_iter().cycle();
    let sum: u32 = body.iter().rev().zip(weights).map(|(byte, weight)| u32::from(byte - b'0') * weight).sum();
    b'0' + ((10 - sum % 10) % 10) as u8
}

/// A product's barcode (商品条码): a GTIN-13 or GTIN-14, held as 14 digits, so that a zero-padded
/// 13 equals its 14.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gtin([u8; 14]);

impl Gtin {
    /// Reads 13 or 14 digits. All zeros is no barcode, though it passes the sum.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let mut buffer = [0; CANONICAL_BYTES_MAX];
        let text = canonical(text, &mut buffer).ok_or(IdFault::GtinMalformed)?;
        if !matches!(text.len(), 13 | 14) || !all_digits(text) {
            return Err(IdFault::GtinMalformed);
        }
        let mut digits = [b'0'; 14];
        fill(digits.iter_mut().rev(), text.iter().rev());
        if digits == [b'0'; 14] {
            return Err(IdFault::GtinZero);
        }
        let [body @ .., check] = &digits;
        if *check != gtin_check_digit(body) {
            return Err(IdFault::GtinCheckDigit);
        }
        Ok(Self(digits))
    }

    /// The 14 digits.
    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }

    /// The same as bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Digits 2 to 8 of the 14: what stands for the manufacturer where no goods catalogue names
    /// it, whatever the product code and the packaging level.
    pub fn manufacturer_prefix(&self) -> &str {
        let [_, prefix @ .., _, _, _, _, _, _] = &self.0;
        ascii(prefix)
    }
}

identifier_as_text!(Gtin, as_str);

/// The 15th digit of an IMEI that the first 14 require (Luhn, 3GPP TS 23.003 annex B).
fn imei_check_digit(body: &[u8; 14]) -> u8 {
    let doubled = [false, true].into_iter().cycle();
    let sum: u32 = body
        .iter()
        .zip(doubled)
        .map(|(byte, doubled)| {
            let value = u32::from(byte - b'0') << u32::from(doubled);
            value / 10 + value % 10
        })
        .sum();
    b'0' + ((10 - sum % 10) % 10) as u8
}

/// The International Mobile Equipment Identity of a device's radio: 15 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Imei([u8; 15]);

impl Imei {
    /// Reads 15 digits. All zeros, and the 16-digit IMEISV, are none.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let mut buffer = [0; CANONICAL_BYTES_MAX];
        let text = canonical(text, &mut buffer).ok_or(IdFault::ImeiMalformed)?;
        let digits = <[u8; 15]>::try_from(text).map_err(|_| IdFault::ImeiMalformed)?;
        if !all_digits(&digits) {
            return Err(IdFault::ImeiMalformed);
        }
        if digits == [b'0'; 15] {
            return Err(IdFault::ImeiZero);
        }
        let [body @ .., check] = &digits;
        if *check != imei_check_digit(body) {
            return Err(IdFault::ImeiCheckDigit);
        }
        Ok(Self(digits))
    }

    /// The 15 digits.
    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }

    /// The same as bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

identifier_as_text!(Imei, as_str);

/// A serial number (SN码), of a device sold or traded in: 1 to 64 of `A–Z 0–9 . _ / : + -`. It
/// identifies a device among those of one manufacturer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber(Box<str>);

impl SerialNumber {
    /// Reads a serial number.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let mut buffer = [0; CANONICAL_BYTES_MAX];
        let text = canonical(text, &mut buffer).ok_or(IdFault::SerialNumberMalformed)?;
        let is_allowed =
            |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'/' | b':' | b'+' | b'-');
        if text.is_empty() || text.len() > limits::SN_CHARS_MAX || !text.iter().all(is_allowed) {
            return Err(IdFault::SerialNumberMalformed);
        }
        Ok(Self(ascii(text).into()))
    }

    /// The characters, upper case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

identifier_as_text!(SerialNumber, as_str);

// --- Places ---

/// Whether two digits are a province of GB/T 2260, with Taiwan (71), Hong Kong (81), Macau (82).
const fn is_province(number: u64) -> bool {
    matches!(number, 11..=15 | 21..=23 | 31..=37 | 41..=46 | 50..=54 | 61..=65 | 71 | 81 | 82)
}

/// A region (GB/T 2260): two digits each of province, city and county, `00` for "all of it".
/// Cities and counties are not checked against a list, which would age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionCode([u8; 6]);

impl RegionCode {
    /// Reads six digits. The province must exist, and a county needs a city.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let mut buffer = [0; CANONICAL_BYTES_MAX];
        let text = canonical(text, &mut buffer).ok_or(IdFault::RegionMalformed)?;
        let digits = <[u8; 6]>::try_from(text).map_err(|_| IdFault::RegionMalformed)?;
        if !all_digits(&digits) {
            return Err(IdFault::RegionMalformed);
        }
        let value = decimal(&digits);
        let (province, city, county) = (value / 10_000, value / 100 % 100, value % 100);
        if city == 0 && county != 0 {
            return Err(IdFault::RegionMalformed);
        }
        if !is_province(province) {
            return Err(IdFault::RegionUnknown);
        }
        Ok(Self(digits))
    }

    /// The six digits.
    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }

    /// The same as bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The province this region lies in, or is.
    pub const fn province(self) -> Self {
        let [a, b, ..] = self.0;
        Self([a, b, b'0', b'0', b'0', b'0'])
    }

    /// The city this region lies in, or is; a province is its own.
    pub const fn city(self) -> Self {
        let [a, b, c, d, ..] = self.0;
        Self([a, b, c, d, b'0', b'0'])
    }

    /// 1 for a province, 2 for a city, 3 for a county.
    pub fn specificity(self) -> u8 {
        if self == self.province() {
            1
        } else if self == self.city() {
            2
        } else {
            3
        }
    }

    /// Whether `other` is this region or lies in it.
    pub fn covers(self, other: Self) -> bool {
        match self.specificity() {
            1 => self == other.province(),
            2 => self == other.city(),
            _ => self == other,
        }
    }
}

identifier_as_text!(RegionCode, as_str);

// --- What callers name ---

/// Characters nobody sees, though they are neither white space nor controls: the format
/// characters (general category Cf) and the default-ignorable ones of Unicode 16.
const INVISIBLE: [RangeInclusive<char>; 25] = [
    '\u{AD}'..='\u{AD}',
    '\u{34F}'..='\u{34F}',
    '\u{600}'..='\u{605}',
    '\u{61C}'..='\u{61C}',
    '\u{6DD}'..='\u{6DD}',
    '\u{70F}'..='\u{70F}',
    '\u{890}'..='\u{891}',
    '\u{8E2}'..='\u{8E2}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{200B}'..='\u{200F}',
    '\u{202A}'..='\u{202E}',
    '\u{2060}'..='\u{206F}',
    '\u{3164}'..='\u{3164}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FEFF}'..='\u{FEFF}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{FFF0}'..='\u{FFFB}',
    '\u{110BD}'..='\u{110BD}',
    '\u{110CD}'..='\u{110CD}',
    '\u{13430}'..='\u{1343F}',
    '\u{1BCA0}'..='\u{1BCA3}',
    '\u{1D173}'..='\u{1D17A}',
    '\u{E0000}'..='\u{E0FFF}',
];

fn is_visible(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_graphic();
    }
    let invisible = INVISIBLE.iter().any(|range| range.contains(&character));
    !invisible && !character.is_whitespace() && !character.is_control()
}

/// An order, invoice, store or terminal number: 1 to 64 visible characters. It belongs to the
/// caller and is kept as given: neither folded nor trimmed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(Box<str>);

impl Reference {
    /// Reads a reference.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let length = text.chars().take(limits::REFERENCE_CHARS_MAX + 1).count();
        if length == 0 || length > limits::REFERENCE_CHARS_MAX || !text.chars().all(is_visible) {
            return Err(IdFault::ReferenceMalformed);
        }
        Ok(Self(text.into()))
    }

    /// The characters, as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

identifier_as_text!(Reference, as_str);

/// What a caller calls one POST: 1 to 255 visible ASCII characters, case kept. The quoted form
/// (a string of RFC 8941) and the bare one are the same key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// Reads a key, quoted or bare. A key whose own first character is a quotation mark is
    /// refused: bare, it could not be told from a quoted one.
    pub fn parse(text: &str) -> Result<Self, IdFault> {
        let key = match text.strip_prefix('"') {
            None => Cow::Borrowed(text),
            Some(quoted) => Cow::Owned(unquoted(quoted).ok_or(IdFault::IdempotencyKeyMalformed)?),
        };
        let in_bounds = (1..=limits::IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len());
        if !in_bounds || !key.bytes().all(|byte| byte.is_ascii_graphic()) || key.starts_with('"') {
            return Err(IdFault::IdempotencyKeyMalformed);
        }
        Ok(Self(key.into()))
    }

    /// The key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

identifier_as_text!(IdempotencyKey, as_str);

/// What stands between the quotes of an RFC 8941 string whose first quote is gone. A backslash
/// may stand before a quote or a backslash, nowhere else.
fn unquoted(quoted: &str) -> Option<String> {
    let inner = quoted.strip_suffix('"')?;
    let mut key = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        key.push(match character {
            '"' => return None,
            '\\' => characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?,
            plain => plain,
        });
    }
    Some(key)
}

/// Which line of an order a claim is for: 1 to 999, 1 where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct OrderLine(u16);

impl OrderLine {
    /// Line `number` of an order.
    pub fn new(number: u16) -> Result<Self, IdFault> {
        (1..=limits::ORDER_LINE_MAX)
            .contains(&number)
            .then_some(Self(number))
            .ok_or(IdFault::OrderLineOutOfRange)
    }

    /// The number of the line.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for OrderLine {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u16> for OrderLine {
    type Error = IdFault;

    fn try_from(number: u16) -> Result<Self, IdFault> {
        Self::new(number)
    }
}

impl From<OrderLine> for u16 {
    fn from(line: OrderLine) -> Self {
        line.0
    }
}

impl fmt::Display for OrderLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Valid identifiers made from a number, for load generators, examples and tests. None is known
/// to be anyone's. Different numbers give different identifiers up to the bound each function
/// names; beyond it they repeat.
pub mod generate {
    use super::{
        USCC_ALPHABET, ascii, fill, gtin_check_digit, imei_check_digit, organisation_check_character,
        resident_check_digit, uscc_check_character,
    };

    /// A resident ID of Zhejiang, born between 1940 and 1999. Unique below 201,398,400,000.
    pub fn resident_id_from(n: u64) -> String {
        let mut rest = n;
        let mut next = |choices: u64| {
            let choice = rest % choices;
            rest /= choices;
            choice
        };
        let order = next(999) + 1;
        let day = next(28) + 1;
        let month = next(12) + 1;
        let year = next(60) + 1940;
        let county = next(10_000);
        let body = format!("33{county:04}{year}{month:02}{day:02}{order:03}");
        with_check(&body, resident_check_digit)
    }

    /// A unified social credit code of a company in Hangzhou. Unique below 31⁸.
    pub fn uscc_from(n: u64) -> String {
        let mut organisation = [b'0'; 8];
        let mut rest = n;
        for slot in organisation.iter_mut().rev() {
            *slot = USCC_ALPHABET[(rest % 31) as usize];
            rest /= 31;
        }
        let check = char::from(organisation_check_character(organisation));
        with_check(&format!("91330100{}{check}", ascii(&organisation)), uscc_check_character)
    }

    /// A GTIN-13 of the Chinese range. Unique below 10¹⁰.
    pub fn gtin13_from(n: u64) -> String {
        with_check(&format!("69{:010}", n % 10_000_000_000), |body: &[u8; 12]| gtin_check_digit(body))
    }

    /// An IMEI. Unique below 10¹².
    pub fn imei_from(n: u64) -> String {
        with_check(&format!("35{:012}", n % 1_000_000_000_000), imei_check_digit)
    }

    /// `body`, of `N` characters, with the check character that `check` finds for it.
    fn with_check<const N: usize>(body: &str, check: impl Fn(&[u8; N]) -> u8) -> String {
        let mut bytes = [b'0'; N];
        fill(&mut bytes, body.as_bytes());
        format!("{body}{}", char::from(check(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::generate::*;
    use super::*;

    const ALPHANUMERICS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    fn today() -> Day {
        Day::parse("2026-11-23").unwrap()
    }

    /// The identity as text, or the fault.
    fn person(id_type: IdType, id_number: &str) -> Result<String, IdFault> {
        PersonId::parse(id_type, id_number, today()).map(|person| ascii(person.identity_bytes()).to_owned())
    }

    fn resident(id_number: &str) -> Result<String, IdFault> {
        person(IdType::ResidentId, id_number)
    }

    /// The check digit of a resident number by the formula of the standard, written another way.
    fn with_resident_check(body: &str) -> String {
        let sum: usize = body
            .chars()
            .rev()
            .fold((0, 2), |(sum, weight), digit| (sum + digit as usize % 48 * weight, weight * 2 % 11))
            .0;
        format!("{body}{}", char::from(b"10X98765432"[sum % 11]))
    }

    /// Spellings of `text` that canonicalisation makes equal to it.
    fn spellings(text: &str) -> Vec<String> {
        let full_width = |c: char| char::from_u32(u32::from(c) + 0xFEE0).unwrap();
        let mathematical = |c: char| match c {
            '0'..='9' => char::from_u32(u32::from(c) - 0x30 + 0x1D7CE).unwrap(),
            other => other,
        };
        vec![
            text.to_lowercase(),
            format!("  {text}\t\r\n"),
            format!("\u{3000}{text}\u{A0}\u{2028}"),
            text.chars().map(full_width).collect(),
            text.to_lowercase().chars().map(full_width).collect(),
            text.chars().map(mathematical).collect(),
        ]
    }

    /// Every text that differs from `text` in one character, letters and digits tried.
    fn single_changes(text: &str) -> impl Iterator<Item = String> {
        (0..text.len()).flat_map(move |place| {
            let (before, rest) = text.split_at(place);
            let changes = ALPHANUMERICS.chars().filter(|change| !rest.starts_with(*change));
            changes.map(move |change| format!("{before}{change}{}", &rest[1..]))
        })
    }

    // --- Retailers ---

    #[test]
    fn a_retailer_code_needs_both_its_check_characters() {
        for valid in ["91110000600037341L", "91350100M000100Y43", "9144030071526726XG", "91330100MA27U0000U"]
        {
            assert_eq!(Uscc::parse(valid).unwrap().as_str(), valid);
        }
        // Letters from J on are worth more in the organisation code than in the code around it.
        for valid in ["91330100NPQRTUWX4D", "92330108YJ2KL0T40K"] {
            assert_eq!(Uscc::parse(valid).unwrap().as_str(), valid);
        }
        assert_eq!(Uscc::parse("91110000600037341N"), Err(IdFault::UsccCheckCharacter));
        assert_eq!(Uscc::parse("91330100MA27U0001Y"), Err(IdFault::UsccOrganisationCode));
        for malformed in
            ["", "9111000060003734", "91110000600037341LL", "9111000060003734IL", "911100A0600037341L"]
        {
            assert_eq!(Uscc::parse(malformed), Err(IdFault::UsccMalformed), "{malformed}");
        }
    }

    // --- Natural persons ---

    #[test]
    fn resident_numbers_of_the_standard_are_valid() {
        for valid in ["11010519491231002X", "440524188001010014", "360426199101010071"] {
            assert_eq!(resident(valid).unwrap(), format!("resident_id:{valid}"));
        }
        assert_eq!(resident("110105194912310021"), Err(IdFault::IdCheckDigit));
        assert_eq!(resident("330106199002290015"), Err(IdFault::IdBirthDate));
        assert_eq!(resident("330102209912310012"), Err(IdFault::IdBirthDate));
    }

    #[test]
    fn both_lengths_of_a_resident_number_are_one_person() {
        assert_eq!(resident("110105491231002"), resident("11010519491231002X"));
        assert_eq!(resident("110105491331002"), Err(IdFault::IdBirthDate));
        assert_eq!(resident("160105491231002"), Err(IdFault::IdRegionUnknown));
    }

    #[test]
    fn a_birth_date_is_real_and_neither_ahead_nor_before_the_nineteenth_century() {
        let born = |date: &str| resident(&with_resident_check(&format!("330106{date}001"))).map(|_| ());
        for date in ["18000101", "19040229", "20000229", "20261123"] {
            assert_eq!(born(date), Ok(()), "{date}");
        }
        for date in
            ["17991231", "19000229", "19900231", "19901301", "19900001", "19900100", "20261124", "00000000"]
        {
            assert_eq!(born(date), Err(IdFault::IdBirthDate), "{date}");
        }
    }

    #[test]
    fn resident_numbers_of_every_province_are_valid_and_of_no_other() {
        for province in 0..100 {
            let number = with_resident_check(&format!("{province:02}010119900101001"));
            let expected = match province {
                11..=15 | 21..=23 | 31..=37 | 41..=46 | 50..=54 | 61..=65 | 71 => Ok(()),
                81..=83 | 90..=99 => Err(IdFault::IdTypeMismatch),
                _ => Err(IdFault::IdRegionUnknown),
            };
            assert_eq!(resident(&number).map(|_| ()), expected, "{number}");
        }
    }

    #[test]
    fn a_number_is_valid_under_its_own_document_type_only() {
        let numbers = [
            (IdType::ResidentId, "11010519491231002X"),
            (IdType::HmtResidencePermit, "810000199408230021"),
            (IdType::HmtResidencePermit, "820000199001010010"),
            (IdType::HmtResidencePermit, "830000199001010012"),
            (IdType::ForeignPermanentResident, "911124198108030024"),
        ];
        for (own, number) in numbers {
            for id_type in [IdType::ResidentId, IdType::HmtResidencePermit, IdType::ForeignPermanentResident]
            {
                let expected =
                    if id_type == own { Ok(format!("{own}:{number}")) } else { Err(IdFault::IdTypeMismatch) };
                assert_eq!(person(id_type, number), expected, "{id_type} {number}");
            }
            for id_type in [IdType::HmTravelPermit, IdType::TwTravelPermit] {
                assert_eq!(person(id_type, number), Err(IdFault::IdNumberMalformed));
            }
        }
    }

    #[test]
    fn a_residence_permit_names_exactly_hong_kong_macau_or_taiwan() {
        for region in ["810001", "810100", "829999", "830010"] {
            let number = with_resident_check(&format!("{region}19900101001"));
            assert_eq!(person(IdType::HmtResidencePermit, &number), Err(IdFault::IdRegionUnknown));
        }
        assert_eq!(person(IdType::HmtResidencePermit, "810000940823002"), Err(IdFault::IdNumberMalformed));
        assert_eq!(person(IdType::HmtResidencePermit, "810000199408230022"), Err(IdFault::IdCheckDigit));
        assert_eq!(resident("810000940823002"), Err(IdFault::IdTypeMismatch));
    }

    #[test]
    fn a_foreigners_card_is_checked_in_both_its_forms() {
        let foreigner = |number: &str| person(IdType::ForeignPermanentResident, number);
        assert_eq!(foreigner("can110081080310").unwrap(), "foreign_permanent_resident:CAN110081080310");
        assert_eq!(foreigner("911124198108030025"), Err(IdFault::IdCheckDigit));
        assert_eq!(foreigner("911124202701010015"), Err(IdFault::IdBirthDate));
        for malformed in
            ["CA1110081080310", "CANN10081080310", "CAN11008108031", "CAN1100810803100", "110105491231002"]
        {
            assert_eq!(foreigner(malformed), Err(IdFault::IdNumberMalformed), "{malformed}");
        }
    }

    #[test]
    fn reissues_of_a_travel_permit_are_one_person() {
        let hm = |number: &str| person(IdType::HmTravelPermit, number);
        assert_eq!(hm("H1234567800").unwrap(), "hm_travel_permit:H12345678");
        assert_eq!(hm("H1234567807"), hm("h12345678"));
        assert_ne!(hm("H12345678"), hm("M12345678"));
        let tw = |number: &str| person(IdType::TwTravelPermit, number);
        assert_eq!(tw("1234567801").unwrap(), "tw_travel_permit:12345678");
        assert_eq!(tw("12345678"), tw("1234567899"));
        for malformed in ["", "H1234567", "H123456789", "H123456780000", "A12345678", "12345678", "HM1234567"]
        {
            assert_eq!(hm(malformed), Err(IdFault::IdNumberMalformed), "{malformed}");
        }
        for malformed in ["", "1234567", "123456789", "12345678901", "H12345678", "12345678(B)"] {
            assert_eq!(tw(malformed), Err(IdFault::IdNumberMalformed), "{malformed}");
        }
    }

    #[test]
    fn nothing_but_the_document_type_of_a_person_is_shown_and_memory_is_wiped() {
        fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}
        let person = PersonId::parse(IdType::ResidentId, "11010519491231002X", today()).unwrap();
        is_wiped(&person);
        assert_eq!(person.id_type(), IdType::ResidentId);
        assert_eq!(format!("{person:?}"), "PersonId(resident_id, ..)");
        assert_eq!(format!("{:?}", PersonDigest::new([7; 32])), "PersonDigest(..)");
    }

    #[test]
    fn a_document_type_is_known_by_its_exact_name() {
        for id_type in IdType::ALL {
            assert_eq!(IdType::parse(id_type.name()), Ok(id_type));
            assert_eq!(serde_json::to_string(&id_type).unwrap(), format!("\"{}\"", id_type.name()));
        }
        assert_eq!(IdType::parse("RESIDENT_ID"), Err(IdFault::IdTypeUnknown));
        assert_eq!(IdType::parse("passport"), Err(IdFault::IdTypeUnknown));
    }

    // --- Goods and devices ---

    #[test]
    fn a_barcode_of_13_digits_equals_its_zero_padded_14() {
        let short = Gtin::parse("6901234567892").unwrap();
        assert_eq!(short, Gtin::parse("06901234567892").unwrap());
        assert_eq!(short.as_str(), "06901234567892");
        assert_eq!(short.manufacturer_prefix(), "6901234");
        assert_eq!(Gtin::parse("10614141000415").unwrap().manufacturer_prefix(), "0614141");
        assert_eq!(Gtin::parse("6901234567890"), Err(IdFault::GtinCheckDigit));
        assert_eq!(Gtin::parse("0000000000000"), Err(IdFault::GtinZero));
        assert_eq!(Gtin::parse("00000000000000"), Err(IdFault::GtinZero));
        for malformed in ["", "690123456789", "006901234567892", "690123456789X", "690 1234567892"] {
            assert_eq!(Gtin::parse(malformed), Err(IdFault::GtinMalformed), "{malformed}");
        }
    }

    #[test]
    fn an_imei_has_15_digits_that_pass_luhn() {
        for valid in ["490154203237518", "356938035643809"] {
            assert_eq!(Imei::parse(valid).unwrap().as_str(), valid);
        }
        assert_eq!(Imei::parse("490154203237517"), Err(IdFault::ImeiCheckDigit));
        assert_eq!(Imei::parse("000000000000000"), Err(IdFault::ImeiZero));
        for malformed in ["", "49015420323751", "4901542032375180", "49015420323751A", "49-015420-323751-8"] {
            assert_eq!(Imei::parse(malformed), Err(IdFault::ImeiMalformed), "{malformed}");
        }
    }

    #[test]
    fn a_serial_number_has_1_to_64_characters_of_its_alphabet() {
        assert_eq!(SerialNumber::parse(" rg2-8812-00417").unwrap().as_str(), "RG2-8812-00417");
        assert_eq!(SerialNumber::parse("a.B_c/D:e+F-0").unwrap().as_str(), "A.B_C/D:E+F-0");
        assert_eq!(SerialNumber::parse(&"x".repeat(64)).unwrap().as_str(), "X".repeat(64));
        for malformed in [
            "",
            "  ",
            "A B",
            "A\u{200B}",
            "A,B",
            "序列号",
            "A\0",
            "Ａ　Ｂ",
            &"X".repeat(65),
            &"Ｘ".repeat(65),
        ] {
            assert_eq!(SerialNumber::parse(malformed), Err(IdFault::SerialNumberMalformed), "{malformed}");
        }
    }

    // --- Places ---

    #[test]
    fn a_region_covers_itself_and_what_lies_in_it() {
        let region = |text| RegionCode::parse(text).unwrap();
        let (province, city, county) = (region("330000"), region("330100"), region("330106"));
        assert_eq!([province, city, county].map(RegionCode::specificity), [1, 2, 3]);
        assert_eq!([province, city, county].map(RegionCode::province), [province; 3]);
        assert_eq!([province, city, county].map(RegionCode::city), [province, city, city]);
        for inside in [province, city, county, region("331100"), region("331082")] {
            assert!(province.covers(inside));
        }
        assert!(city.covers(city) && city.covers(county) && county.covers(county));
        assert!(!city.covers(province) && !city.covers(region("330206")) && !city.covers(region("331001")));
        assert!(
            !county.covers(city) && !county.covers(region("330108")) && !province.covers(region("340000"))
        );
    }

    #[test]
    fn a_region_is_six_digits_of_a_province() {
        for valid in ["330106", "110101", "429004", "710000", "810000", "820000"] {
            assert_eq!(RegionCode::parse(valid).unwrap().as_str(), valid);
        }
        for unknown in ["000000", "830000", "160000", "990000"] {
            assert_eq!(RegionCode::parse(unknown), Err(IdFault::RegionUnknown), "{unknown}");
        }
        for malformed in ["", "33", "33010", "3301066", "33010A", "33-106", "330006"] {
            assert_eq!(RegionCode::parse(malformed), Err(IdFault::RegionMalformed), "{malformed}");
        }
    }

    // --- What callers name ---

    #[test]
    fn a_reference_is_kept_as_given_and_wholly_visible() {
        let longest = "单".repeat(64);
        for valid in ["SO20261123-000817", "so1", "ＳＯ１", "订单#1", "\"q\"", "e\u{301}", &longest] {
            assert_eq!(Reference::parse(valid).unwrap().as_str(), valid);
        }
        let invisible = [
            "",
            " SO1",
            "SO 1",
            "SO1\n",
            "SO\u{3000}1",
            "SO\u{A0}1",
            "SO\u{85}1",
            "SO\u{7F}1",
            "SO\0",
            "SO1\u{200B}",
            "SO1\u{FE0F}",
            "\u{FEFF}SO1",
            "SO\u{AD}1",
            "SO\u{202E}1",
            "SO1\u{E0041}",
            "SO\u{2028}1",
            &"x".repeat(65),
            &"单".repeat(65),
        ];
        for malformed in invisible {
            assert_eq!(Reference::parse(malformed), Err(IdFault::ReferenceMalformed), "{malformed:?}");
        }
    }

    #[test]
    fn a_quoted_idempotency_key_equals_the_bare_one() {
        let key = |text: &str| IdempotencyKey::parse(text).map(|key| key.as_str().to_owned());
        for (text, expected) in [
            ("abc", "abc"),
            (r#""abc""#, "abc"),
            ("ABC", "ABC"),
            (r#"a"b\c"#, r#"a"b\c"#),
            (r#""a\"b\\c""#, r#"a"b\c"#),
        ] {
            assert_eq!(key(text).as_deref(), Ok(expected), "{text}");
        }
        let longest = "k".repeat(255);
        assert_eq!(key(&longest), key(&format!("\"{longest}\"")));
        assert_eq!(key(&longest), Ok(longest.clone()));
        for malformed in [
            "",
            r#""""#,
            r#"""#,
            r#""abc"#,
            r#""a"b""#,
            r#""a\b""#,
            r#""abc\""#,
            r#""\"abc""#,
            "a b",
            r#""a b""#,
            "é",
            "a\n",
            &format!("{longest}k"),
            &format!("\"{longest}k\""),
        ] {
            assert_eq!(key(malformed), Err(IdFault::IdempotencyKeyMalformed), "{malformed:?}");
        }
    }

    #[test]
    fn an_order_line_lies_between_1_and_999() {
        assert_eq!(OrderLine::default().get(), 1);
        assert_eq!(serde_json::from_str::<OrderLine>("999").unwrap(), OrderLine::new(999).unwrap());
        assert_eq!(serde_json::to_string(&OrderLine::new(7).unwrap()).unwrap(), "7");
        for bad in ["0", "1000", "65537", "-1", "1.0", "\"1\""] {
            assert!(serde_json::from_str::<OrderLine>(bad).is_err(), "{bad}");
        }
    }

    // --- Faults and serialised form ---

    #[test]
    fn every_fault_has_a_code_of_its_own_and_two_texts() {
        let codes: HashSet<_> = IdFault::ALL.iter().map(|fault| fault.code()).collect();
        assert_eq!(codes.len(), IdFault::ALL.len());
        for fault in IdFault::ALL {
            assert!(fault.code().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{fault:?}");
            assert!(fault.zh().ends_with('。') && fault.en().starts_with(['A', 'T']), "{fault:?}");
        }
    }

    #[test]
    fn a_serialised_identifier_is_checked_when_read_and_its_fault_echoes_nothing() {
        let json = serde_json::to_string(&Gtin::parse("6901234567892").unwrap()).unwrap();
        assert_eq!(json, "\"06901234567892\"");
        assert_eq!(
            serde_json::from_str::<Gtin>("\"\\u0036901234567892\"").unwrap().as_str(),
            "06901234567892"
        );
        let fault = serde_json::from_str::<Imei>("\"490154203237517\"").unwrap_err().to_string();
        assert!(fault.starts_with(IdFault::ImeiCheckDigit.en()) && !fault.contains("4901"), "{fault}");
        assert!(serde_json::from_str::<Uscc>("91110000600037341").is_err());
    }

    // --- What the checksums promise, over generated numbers ---

    proptest! {
        #[test]
        fn generated_identifiers_are_valid(n: u64) {
            prop_assert!(resident(&resident_id_from(n)).is_ok());
            prop_assert!(Uscc::parse(&uscc_from(n)).is_ok());
            prop_assert!(Gtin::parse(&gtin13_from(n)).is_ok());
            prop_assert!(Imei::parse(&imei_from(n)).is_ok());
        }

        #[test]
        fn generated_resident_numbers_agree_with_the_formula_of_the_standard(n: u64) {
            let number = resident_id_from(n);
            prop_assert_eq!(with_resident_check(&number[..17]), number);
        }

        #[test]
        fn every_single_change_of_a_valid_number_is_refused(n: u64) {
            for changed in single_changes(&uscc_from(n)) {
                prop_assert!(Uscc::parse(&changed).is_err(), "{}", changed);
            }
            for changed in single_changes(&resident_id_from(n)) {
                prop_assert!(resident(&changed).is_err(), "{}", changed);
            }
            for changed in single_changes(&gtin13_from(n)) {
                prop_assert!(Gtin::parse(&changed).is_err(), "{}", changed);
            }
            for changed in single_changes(&imei_from(n)) {
                prop_assert!(Imei::parse(&changed).is_err(), "{}", changed);
            }
        }

        #[test]
        fn every_single_change_of_a_permit_of_resident_form_is_refused(order in 0u32..1000, foreign: bool) {
            let (id_type, front) = if foreign {
                (IdType::ForeignPermanentResident, "91112419810803")
            } else {
                (IdType::HmtResidencePermit, "81000019940823")
            };
            let number = with_resident_check(&format!("{front}{order:03}"));
            prop_assert!(person(id_type, &number).is_ok());
            for changed in single_changes(&number) {
                prop_assert!(person(id_type, &changed).is_err(), "{}", changed);
            }
        }

        #[test]
        fn all_spellings_are_one_identifier(n: u64) {
            let sn = format!("SN-{n:X}/Z:0+1.2_3");
            for spelling in spellings(&sn) {
                prop_assert_eq!(SerialNumber::parse(&spelling).unwrap().to_string(), sn.clone());
            }
            let uscc = uscc_from(n);
            for spelling in spellings(&uscc) {
                prop_assert_eq!(Uscc::parse(&spelling).unwrap().to_string(), uscc.clone());
            }
            let number = resident_id_from(n);
            for spelling in spellings(&number) {
                prop_assert_eq!(resident(&spelling), resident(&number));
            }
            for spelling in spellings(&gtin13_from(n)).into_iter().chain(spellings(&format!("0{}", gtin13_from(n)))) {
                prop_assert_eq!(Gtin::parse(&spelling), Gtin::parse(&gtin13_from(n)));
            }
            for spelling in spellings(&imei_from(n)) {
                prop_assert_eq!(Imei::parse(&spelling), Imei::parse(&imei_from(n)));
            }
            for spelling in spellings("H1234567801") {
                prop_assert_eq!(person(IdType::HmTravelPermit, &spelling), person(IdType::HmTravelPermit, "H12345678"));
            }
            for spelling in spellings("330106") {
                prop_assert_eq!(RegionCode::parse(&spelling), RegionCode::parse("330106"));
            }
        }

        #[test]
        fn the_15_digits_of_before_1999_are_the_same_person_as_the_18(n: u64) {
            let full = resident_id_from(n);
            prop_assert_eq!(resident(&format!("{}{}", &full[..6], &full[8..17])), resident(&full));
        }

        #[test]
        fn canonical_form_is_what_the_standard_library_makes_of_it(
            text in r"[ \t\u{b}\u{a0}\u{3000}]{0,2}([0-9a-zA-Z.:\-]|[０-９ａ-ｚＡ-Ｚ]|[ßıſ²①℡ﬁÅ\u{301}\u{200b}\u{e0020}中 ]){0,12}[ \n\u{85}\u{2003}]{0,2}",
        ) {
            let expected = text.nfkc().collect::<String>().trim().to_uppercase();
            let expected = (expected.is_ascii() && !expected.contains(char::is_whitespace)).then_some(expected);
            let mut buffer = [0; CANONICAL_BYTES_MAX];
            prop_assert_eq!(canonical(&text, &mut buffer).map(ascii), expected.as_deref());
        }

        #[test]
        fn reading_any_text_yields_a_canonical_value_or_a_fault(text in r"\PC{0,70}|[ -~]{0,70}|[A-Za-z0-9]{18}|[0-9]{6,18}") {
            macro_rules! is_stable {
                ($($name:ident)*) => { $(
                    if let Ok(value) = $name::parse(&text) {
                        prop_assert_eq!($name::parse(value.as_str()).unwrap(), value.clone());
                        let json = serde_json::to_string(&value).unwrap();
                        prop_assert_eq!(serde_json::from_str::<$name>(&json).unwrap(), value);
                    }
                )* };
            }
            is_stable!(Uscc Gtin Imei SerialNumber RegionCode Reference IdempotencyKey);
            for id_type in IdType::ALL {
                if let Ok(identity) = person(id_type, &text) {
                    let number = identity.split_once(':').unwrap().1;
                    prop_assert_eq!(person(id_type, number).unwrap(), identity);
                }
            }
        }
    }

    #[test]
    fn different_numbers_generate_different_identifiers() {
        for make in [resident_id_from, uscc_from, gtin13_from, imei_from] {
            assert_eq!((0..50_000).map(make).collect::<HashSet<_>>().len(), 50_000);
        }
    }
}
