//! Programmes: the law as dated data, parsed from text and checked once.
//!
//! A programme is one file. Every number and rule in it names its clause and its basis (the text of the
//! law, a notice, an administrative choice), so that each answer can say where it comes from. Nothing is
//! read from disk here; see [`crate::programme_files`].

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;

use crate::identity::RegionCode;
use crate::limits;
use crate::money::{Fen, Rate, Rounding};
use crate::time::{Day, Timestamp};

/// A name made of few ASCII characters, cheap to copy, valid wherever it exists.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $chars_max:expr, $allowed:pat, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Reads ", $expected, "; `None` for anything else.")]
            pub fn parse(text: &str) -> Option<Self> {
                let [first, rest @ ..] = text.as_bytes() else { return None };
                let valid = first.is_ascii_lowercase()
                    && rest.iter().all(|byte| matches!(byte, $allowed))
                    && text.len() <= $chars_max;
                valid.then(|| Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).ok_or_else(|| E::custom(concat!("expected ", $expected)))
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

name!(
    /// The id of a programme (补贴政策), e.g. `zj-ai-25`; the same through all its versions.
    ProgrammeId,
    limits::PROGRAMME_ID_CHARS_MAX,
    b'a'..=b'z' | b'0'..=b'9' | b'-',
    "a programme id: a small letter, then small letters, digits and hyphens"
);

name!(
    /// A class of product (品类), e.g. `smart_glasses`. Which there are is programme data.
    Category,
    limits::CATEGORY_CHARS_MAX,
    b'a'..=b'z' | b'0'..=b'9' | b'_',
    "a category id: a small letter, then small letters, digits and underscores"
);

/// What a rule rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The text of the law.
    Text,
    /// A notice of the departments in charge.
    Notice,
    /// An administrative choice, where no text was found.
    Choice,
}

impl Basis {
    /// The name used in programme data and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Notice => "notice",
            Self::Choice => "choice",
        }
    }
}

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reference {
    /// The place in the programme's document, or that it is silent.
    pub clause: Arc<str>,
    /// What it rests on.
    pub basis: Basis,
}

/// A rule with its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter<T> {
    /// The number or rule.
    pub value: T,
    /// Where it comes from.
    #[serde(flatten)]
    pub reference: Reference,
}

/// A name in both languages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Title {
    /// In Chinese.
    pub zh: String,
    /// In English.
    pub en: String,
}

/// The document that makes a programme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Who issued it, in Chinese.
    pub authority: String,
    /// Its title, in Chinese.
    pub document: String,
    /// Its number, if it has one.
    pub number: Option<String>,
    /// The day it was published.
    #[serde(serialize_with = "text")]
    pub published: Day,
    /// The clause that stands for the programme as a whole in answers, e.g. `measure 25`.
    #[serde(flatten)]
    pub reference: Reference,
}

/// The first and the last day of the sales a programme is in force for; both included, Asia/Shanghai.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Period {
    /// The first day.
    #[serde(serialize_with = "parameter_text")]
    pub from: Parameter<Day>,
    /// The last day.
    #[serde(serialize_with = "parameter_text")]
    pub to: Parameter<Day>,
}

impl Period {
    /// Whether a sale at `at` falls into it.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.first_instant() <= at && at <= self.last_instant()
    }

    /// The first millisecond in force.
    pub const fn first_instant(&self) -> Timestamp {
        self.from.value.first_instant()
    }

    /// The last millisecond in force.
    pub const fn last_instant(&self) -> Timestamp {
        self.to.value.last_instant()
    }
}

/// The regions a programme covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regions {
    /// Every region.
    All,
    /// These and all below them.
    Only(Vec<RegionCode>),
}

impl Regions {
    /// Whether `region` is one of them or lies below one.
    pub fn cover(&self, region: &RegionCode) -> bool {
        match self {
            Self::All => true,
            Self::Only(codes) => codes.iter().any(|code| code.covers(*region)),
        }
    }

    fn read(texts: &[String]) -> Option<Self> {
        if texts.iter().map(String::as_str).eq(["*"]) {
            return Some(Self::All);
        }
        let codes: Option<Vec<_>> = texts.iter().map(|text| RegionCode::parse(text).ok()).collect();
        codes.filter(|codes| (1..=limits::PROGRAMME_LIST_MAX).contains(&codes.len())).map(Self::Only)
    }
}

/// The codes, or `["*"]` for all, as programme files write them.
impl Serialize for Regions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.collect_seq(["*"]),
            Self::Only(codes) => serializer.collect_seq(codes.iter().map(RegionCode::as_str)),
        }
    }
}

/// What the rate is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceBase {
    /// What is finally paid for the item after every discount, tax included.
    FinalPrice,
}

/// Whether the value of the old device lowers the price base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TradeInValue {
    /// The rate is applied to the whole price.
    NotDeducted,
    /// The rate is applied to what is left after the old device was given in payment.
    Deducted,
}

/// The date that decides which programmes are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidingDate {
    /// The sale.
    Sale,
}

/// What a return does to the person's entitlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntitlementOnReturn {
    /// The person may claim again.
    Restored,
    /// The entitlement stays used up.
    Consumed,
}

/// What applies where several programmes would pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The one that pays most, and only that one (从优、就高、不重复).
    HighestOnly,
}

impl Overlap {
    /// The name used in programme data and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HighestOnly => "highest_only",
        }
    }
}

/// A category that a programme lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedCategory {
    /// Its id.
    pub category: Category,
    /// Its names.
    #[serde(flatten)]
    pub title: Title,
    /// Where it is listed.
    #[serde(flatten)]
    pub reference: Reference,
    /// Items per person and year, where it differs from the programme's.
    pub person_limit: Option<Parameter<u16>>,
}

/// One version of one programme. It exists only as parsed and checked; serialised, it shows every number
/// with its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Programme {
    /// Its id.
    pub id: ProgrammeId,
    /// Its version; a change of the file needs a higher one.
    pub version: u32,
    /// Its name.
    pub title: Title,
    /// The document that makes it.
    pub source: Source,
    /// Among programmes that pay the same, the lowest pays; no two of a set have the same.
    pub priority: Parameter<u16>,
    /// The sales it is in force for.
    pub in_force: Period,
    /// Where.
    pub regions: Parameter<Regions>,
    /// The share of the price base it pays.
    #[serde(serialize_with = "parameter_text")]
    pub rate: Parameter<Rate>,
    /// The most it pays for one item.
    #[serde(serialize_with = "parameter_text")]
    pub cap: Parameter<Fen>,
    /// Items with a higher final price get nothing.
    #[serde(serialize_with = "optional_parameter_text")]
    pub price_ceiling: Option<Parameter<Fen>>,
    /// The worst energy grade it pays for, 1 (best) to 5; a sale that names none gets nothing.
    pub energy_grade_max: Option<Parameter<u8>>,
    /// How the subsidy becomes whole fen.
    pub rounding: Parameter<Rounding>,
    /// What the rate is applied to.
    pub price_base: Parameter<PriceBase>,
    /// Whether an old device lowers the price base.
    pub trade_in_value: Parameter<TradeInValue>,
    /// Items per person, category and calendar year of the sale, counted over all programmes. See
    /// [`Programme::person_limit`] for a category's own.
    pub person_limit: Parameter<u16>,
    /// Which date decides.
    pub deciding_date: Parameter<DecidingDate>,
    /// Longest hold, in days.
    pub hold_days_max: Parameter<u16>,
    /// What a return does.
    pub entitlement_on_return: Parameter<EntitlementOnReturn>,
    /// What applies where several would pay.
    pub overlap: Parameter<Overlap>,
    /// What it pays for, in the order of the file.
    pub categories: Vec<ListedCategory>,
    /// The file it was parsed from, exactly.
    #[serde(skip)]
    text: Arc<str>,
}

impl Programme {
    /// The exact text it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The category as this programme lists it, if it does.
    pub fn category(&self, category: &str) -> Option<&ListedCategory> {
        self.categories.iter().find(|listed| listed.category.as_str() == category)
    }

    /// The most that one item can get: the cap, or what the rate makes of the highest price where that is less.
    fn highest_amount(&self) -> Fen {
        let price = self.price_ceiling.as_ref().map_or(Fen::new(limits::PRICE_FEN_MAX), |rule| rule.value);
        let computed = price.at_rate(self.rate.value, self.rounding.value);
        computed.map_or(self.cap.value, |computed| computed.min(self.cap.value))
    }

    /// Items of `category` that one person may have in a calendar year; `None` if it is not listed.
    pub fn person_limit(&self, category: &str) -> Option<u16> {
        self.person_limit_rule(category).map(|rule| rule.value)
    }

    /// [`Programme::person_limit`] with its source.
    pub fn person_limit_rule(&self, category: &str) -> Option<&Parameter<u16>> {
        let listed = self.category(category)?;
        Some(listed.person_limit.as_ref().unwrap_or(&self.person_limit))
    }
}

fn text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn parameter_text<T: fmt::Display, S: Serializer>(
    parameter: &Parameter<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let value = parameter.value.to_string();
    Parameter { value, reference: parameter.reference.clone() }.serialize(serializer)
}

fn optional_parameter_text<T: fmt::Display, S: Serializer>(
    parameter: &Option<Parameter<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match parameter {
        Some(parameter) => parameter_text(parameter, serializer),
        None => serializer.serialize_none(),
    }
}

// --- Reading files ---

/// One thing that is wrong with a programme file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong and what is wanted instead.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.reason)
    }
}

/// Programme files that cannot be used, with every fault found; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgrammeError {
    /// The faults, in the order of the files.
    pub faults: Vec<Fault>,
}

/// One fault a line.
impl fmt::Display for ProgrammeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ProgrammeError {}

/// A file as written; what it says is checked by [`Reader::programme`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: Spanned<ProgrammeId>,
    version: Spanned<u32>,
    title: TitleTable,
    source: SourceTable,
    priority: Table<u16>,
    in_force: PeriodTable,
    regions: Table<Vec<String>>,
    rate: Table<String>,
    cap: Table<String>,
    price_ceiling: Option<Table<String>>,
    energy_grade_max: Option<Table<u8>>,
    rounding: Table<Rounding>,
    price_base: Table<PriceBase>,
    trade_in_value: Table<TradeInValue>,
    person_limit: Table<u16>,
    deciding_date: Table<DecidingDate>,
    hold_days_max: Table<u16>,
    entitlement_on_return: Table<EntitlementOnReturn>,
    overlap: Table<Overlap>,
    #[serde(default)]
    category: Vec<CategoryTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: DeserializeOwned"))]
struct Table<T> {
    value: Spanned<T>,
    clause: Spanned<String>,
    basis: Basis,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TitleTable {
    zh: Spanned<String>,
    en: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    authority: Spanned<String>,
    document: Spanned<String>,
    number: Option<Spanned<String>>,
    published: Spanned<String>,
    clause: Spanned<String>,
    basis: Basis,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeriodTable {
    from: Table<String>,
    to: Table<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CategoryTable {
    id: Spanned<Category>,
    zh: Spanned<String>,
    en: Spanned<String>,
    clause: Spanned<String>,
    basis: Basis,
    person_limit: Option<Table<u16>>,
}

/// Reads one file and collects what is wrong with it.
struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, at: usize, reason: impl fmt::Display) {
        let line = 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        self.faults.push(Fault { file: self.name.to_owned(), line, reason: reason.to_string() });
    }

    /// `raw` as `read` understands it; otherwise a fault that says what is `wanted`.
    fn value<T, U>(
        &mut self,
        raw: &Spanned<T>,
        read: impl FnOnce(&T) -> Option<U>,
        wanted: &str,
    ) -> Option<U> {
        let value = read(raw.get_ref());
        if value.is_none() {
            self.fault(raw.span().start, format_args!("wanted here: {wanted}"));
        }
        value
    }

    fn prose(&mut self, raw: &Spanned<String>) -> String {
        let prose = raw.get_ref();
        if prose.trim().is_empty() || prose.chars().count() > limits::PROGRAMME_PROSE_CHARS_MAX {
            let chars_max = limits::PROGRAMME_PROSE_CHARS_MAX;
            self.fault(raw.span().start, format_args!("wanted here: 1 to {chars_max} characters"));
        }
        prose.clone()
    }

    fn reference(&mut self, clause: &Spanned<String>, basis: Basis) -> Reference {
        Reference { clause: self.prose(clause).into(), basis }
    }

    fn parameter<T, U>(
        &mut self,
        raw: &Table<T>,
        read: impl FnOnce(&T) -> Option<U>,
        wanted: &str,
    ) -> Option<Parameter<U>> {
        let value = self.value(&raw.value, read, wanted);
        let reference = self.reference(&raw.clause, raw.basis);
        value.map(|value| Parameter { value, reference })
    }

    /// A parameter that is right as soon as it could be read.
    fn plain<T: Copy>(&mut self, raw: &Table<T>) -> Parameter<T> {
        let reference = self.reference(&raw.clause, raw.basis);
        Parameter { value: *raw.value.get_ref(), reference }
    }

    fn day(&mut self, raw: &Table<String>) -> Option<Parameter<Day>> {
        self.parameter(raw, |text| Day::parse(text), A_DAY)
    }

    fn yuan(&mut self, raw: &Table<String>) -> Option<Parameter<Fen>> {
        let positive = |text: &String| Fen::parse_yuan(text).filter(|fen| *fen > Fen::ZERO);
        self.parameter(raw, positive, "yuan above zero in quotes, such as \"2000.00\"")
    }

    fn person_limit(&mut self, raw: &Table<u16>) -> Option<Parameter<u16>> {
        let wanted = format!("a whole number from 1 to {}", limits::PERSON_LIMIT_MAX);
        self.parameter(raw, |limit| within(*limit, limits::PERSON_LIMIT_MAX), &wanted)
    }

    fn period(&mut self, raw: &PeriodTable) -> Option<Period> {
        let (from, to) = (self.day(&raw.from), self.day(&raw.to));
        let (from, to) = (from?, to?);
        if to.value < from.value {
            self.fault(raw.to.value.span().start, "the last day in force lies before the first");
        }
        Some(Period { from, to })
    }

    fn title(&mut self, zh: &Spanned<String>, en: &Spanned<String>) -> Title {
        Title { zh: self.prose(zh), en: self.prose(en) }
    }

    fn source(&mut self, raw: &SourceTable) -> Option<Source> {
        let published = self.value(&raw.published, |text| Day::parse(text), A_DAY);
        let source = Source {
            authority: self.prose(&raw.authority),
            document: self.prose(&raw.document),
            number: raw.number.as_ref().map(|number| self.prose(number)),
            reference: self.reference(&raw.clause, raw.basis),
            published: published?,
        };
        Some(source)
    }

    fn categories(&mut self, raw: &[CategoryTable]) -> Vec<ListedCategory> {
        if !(1..=limits::PROGRAMME_LIST_MAX).contains(&raw.len()) {
            let list_max = limits::PROGRAMME_LIST_MAX;
            self.fault(0, format_args!("wanted: 1 to {list_max} [[category]] tables"));
        }
        let mut categories: Vec<ListedCategory> = Vec::new();
        for table in raw.iter().take(limits::PROGRAMME_LIST_MAX) {
            let category = table.id.get_ref().clone();
            if categories.iter().any(|listed| listed.category == category) {
                self.fault(table.id.span().start, format_args!("category {category} is listed twice"));
            }
            categories.push(ListedCategory {
                category,
                title: self.title(&table.zh, &table.en),
                reference: self.reference(&table.clause, table.basis),
                person_limit: table.person_limit.as_ref().and_then(|limit| self.person_limit(limit)),
            });
        }
        categories
    }

    /// Refuses a programme under which there could be claims that the ledger has no room for.
    fn bound(&mut self, programme: &Programme, cap_at: usize) {
        let most = Fen::new(limits::SUBSIDY_FEN_MAX);
        if programme.highest_amount() > most {
            self.fault(cap_at, format_args!("wanted here: at most \"{most}\", as the rate allows more"));
        }
    }

    /// The programme, and where its id and priority stand; `None` or a wrong one comes with faults.
    fn programme(&mut self) -> Option<(Programme, Places)> {
        let file: File = match toml::from_str(self.text) {
            Ok(file) => file,
            Err(error) => {
                self.fault(error.span().map_or(0, |span| span.start), error.message());
                return None;
            }
        };
        let places = Places { id: file.id.span().start, priority: file.priority.value.span().start };
        let cap_at = file.cap.value.span().start;
        self.value(&file.version, |version| (*version > 0).then_some(()), "a whole number from 1");
        let source = self.source(&file.source);
        let in_force = self.period(&file.in_force);
        let regions = self.parameter(
            &file.regions,
            |texts| Regions::read(texts),
            "region codes of six digits, or [\"*\"]",
        );
        let rate = self.parameter(&file.rate, |text| rate(text), "a decimal above 0, at most 1, in quotes");
        let cap = self.yuan(&file.cap);
        let price_ceiling = file.price_ceiling.as_ref().map(|raw| self.yuan(raw));
        let energy_grade_max = file.energy_grade_max.as_ref().map(|raw| {
            self.parameter(raw, |grade| (1..=5).contains(grade).then_some(*grade), "a grade from 1 to 5")
        });
        let person_limit = self.person_limit(&file.person_limit);
        let wanted = format!("whole days from 1 to {}", limits::HOLD_DAYS_MAX);
        let hold_days_max =
            self.parameter(&file.hold_days_max, |days| within(*days, limits::HOLD_DAYS_MAX), &wanted);
        let programme = Programme {
            id: file.id.into_inner(),
            version: file.version.into_inner(),
            title: self.title(&file.title.zh, &file.title.en),
            priority: self.plain(&file.priority),
            rounding: self.plain(&file.rounding),
            price_base: self.plain(&file.price_base),
            trade_in_value: self.plain(&file.trade_in_value),
            deciding_date: self.plain(&file.deciding_date),
            entitlement_on_return: self.plain(&file.entitlement_on_return),
            overlap: self.plain(&file.overlap),
            categories: self.categories(&file.category),
            source: source?,
            in_force: in_force?,
            regions: regions?,
            rate: rate?,
            cap: cap?,
            price_ceiling: flatten(price_ceiling)?,
            energy_grade_max: flatten(energy_grade_max)?,
            person_limit: person_limit?,
            hold_days_max: hold_days_max?,
            text: self.text.into(),
        };
        self.bound(&programme, cap_at);
        Some((programme, places))
    }
}

/// Where in a file stands what is compared between files, in bytes.
struct Places {
    id: usize,
    priority: usize,
}

const A_DAY: &str = "a day in quotes, such as \"2026-11-23\"";

/// `None` where something is given and wrong.
fn flatten<T>(given: Option<Option<T>>) -> Option<Option<T>> {
    match given {
        Some(read) => read.map(Some),
        None => Some(None),
    }
}

fn within(number: u16, max: u16) -> Option<u16> {
    (1..=max).contains(&number).then_some(number)
}

fn rate(text: &str) -> Option<Rate> {
    let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let zero = text.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    Rate::parse(text).filter(|_| !zero && decimals <= limits::RATE_DECIMALS_MAX)
}

// --- Sets ---

/// The programmes that apply together, ordered by id. Two sets are equal when their texts are.
#[derive(Clone, Debug, Default)]
pub struct ProgrammeSet {
    programmes: Vec<Arc<Programme>>,
    /// Who lists a category, the lowest priority first.
    listing: BTreeMap<Category, Vec<Arc<Programme>>>,
}

impl ProgrammeSet {
    /// Reads and checks files given as name and text, in any order. An error names every fault of every
    /// file; where a file's syntax is wrong or a key unknown, only the first such fault of that file.
    pub fn parse(files: &[(String, String)]) -> Result<Self, ProgrammeError> {
        let mut faults = Vec::new();
        let mut read: Vec<(&str, Programme)> = Vec::new();
        let bytes: usize = files.iter().map(|(_, text)| text.len()).sum();
        if files.len() > limits::PROGRAMMES_MAX || bytes > limits::PROGRAMME_SET_BYTES_MAX {
            let reason = format!(
                "the set has {} files with {bytes} bytes; allowed are {} with {}",
                files.len(),
                limits::PROGRAMMES_MAX,
                limits::PROGRAMME_SET_BYTES_MAX
            );
            let file = files.first().map(|(name, _)| name.clone()).unwrap_or_default();
            return Err(ProgrammeError { faults: vec![Fault { file, line: 1, reason }] });
        }
        for (name, text) in files {
            let mut reader = Reader { name, text, faults: Vec::new() };
            if let Some((programme, places)) = reader.programme() {
                for (other_name, other) in &read {
                    if other.id == programme.id {
                        reader.fault(places.id, format_args!("{other_name} has the same id"));
                    }
                    if other.priority.value == programme.priority.value {
                        reader.fault(places.priority, format_args!("{other_name} has the same priority"));
                    }
                }
                read.push((name, programme));
            }
            faults.append(&mut reader.faults);
        }
        if !faults.is_empty() {
            return Err(ProgrammeError { faults });
        }
        let mut programmes: Vec<_> = read.into_iter().map(|(_, programme)| Arc::new(programme)).collect();
        programmes.sort_by_key(|programme| programme.priority.value);
        let mut listing: BTreeMap<Category, Vec<Arc<Programme>>> = BTreeMap::new();
        for programme in &programmes {
            for listed in &programme.categories {
                listing.entry(listed.category.clone()).or_default().push(Arc::clone(programme));
            }
        }
        programmes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self { programmes, listing })
    }

    /// The programmes, by id.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Programme>> {
        self.programmes.iter()
    }

    /// The programme with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Programme>> {
        let index = self.programmes.binary_search_by(|programme| programme.id.as_str().cmp(id)).ok()?;
        self.programmes.get(index)
    }

    /// The programmes that list `category` at any date, the lowest priority first.
    pub fn listing(&self, category: &str) -> &[Arc<Programme>] {
        self.listing.get(category).map_or(&[], Vec::as_slice)
    }

    /// Every category that any programme lists, by id.
    pub fn categories(&self) -> impl Iterator<Item = &Category> {
        self.listing.keys()
    }

    /// The set as files again: `<id>.toml` and the exact text, by id. [`ProgrammeSet::parse`] of it is an
    /// equal set.
    pub fn contents(&self) -> Vec<(String, String)> {
        self.iter().map(|programme| (format!("{}.toml", programme.id), programme.text().to_owned())).collect()
    }
}

impl PartialEq for ProgrammeSet {
    fn eq(&self, other: &Self) -> bool {
        self.iter().map(|programme| programme.text()).eq(other.iter().map(|programme| programme.text()))
    }
}

impl Eq for ProgrammeSet {}

/// Why a set cannot follow those activated before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivationRefused {
    /// What was once in force under a version is never edited.
    #[error("programme {id}: the file changed but its version is still {version}; give it a higher one")]
    TextChanged {
        /// Which programme.
        id: ProgrammeId,
        /// The version that is known with another text.
        version: u32,
    },
    /// Versions only rise.
    #[error("programme {id}: version {version} is lower than {known}, which was activated before")]
    VersionLowered {
        /// Which programme.
        id: ProgrammeId,
        /// The version in the set.
        version: u32,
        /// The highest version known.
        known: u32,
    },
}

/// The programmes that apply now, and every version that ever did: old claims are rendered from it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgrammeHistory {
    versions: BTreeMap<ProgrammeId, BTreeMap<u32, Arc<Programme>>>,
    current: Arc<ProgrammeSet>,
}

impl ProgrammeHistory {
    /// The set that applies; empty before the first activation.
    pub fn current(&self) -> &Arc<ProgrammeSet> {
        &self.current
    }

    /// One version of one programme.
    pub fn get(&self, id: &str, version: u32) -> Option<&Arc<Programme>> {
        self.versions.get(id)?.get(&version)
    }

    /// Whether `set` may be activated: no known version with another text, no lower version.
    pub fn check(&self, set: &ProgrammeSet) -> Result<(), ActivationRefused> {
        for programme in set.iter() {
            let (id, version) = (&programme.id, programme.version);
            let Some((&known, latest)) = self.versions.get(id).and_then(BTreeMap::last_key_value) else {
                continue;
            };
            if version < known {
                return Err(ActivationRefused::VersionLowered { id: id.clone(), version, known });
            }
            if version == known && latest.text() != programme.text() {
                return Err(ActivationRefused::TextChanged { id: id.clone(), version });
            }
        }
        Ok(())
    }

    /// Makes `set` the one that applies, if [`ProgrammeHistory::check`] allows it.
    pub fn activate(&mut self, set: Arc<ProgrammeSet>) -> Result<(), ActivationRefused> {
        self.check(&set)?;
        for programme in set.iter() {
            let versions = self.versions.entry(programme.id.clone()).or_default();
            versions.insert(programme.version, Arc::clone(programme));
        }
        self.current = set;
        Ok(())
    }
}

/// The files this program is shipped with, as name and text.
pub fn shipped() -> Vec<(String, String)> {
    SHIPPED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

macro_rules! shipped {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../config/programmes/", $name)))),*]
    };
}

const SHIPPED: [(&str, &str); 4] = shipped![
    "zj-ai-25.toml",
    "national-digital-2025.toml",
    "national-digital-2026.toml",
    "national-appliances-2026.toml"
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn shipped_set() -> ProgrammeSet {
        ProgrammeSet::parse(&shipped()).unwrap()
    }

    fn measure_25() -> String {
        shipped().swap_remove(0).1
    }

    fn file(text: impl Into<String>) -> (String, String) {
        ("a.toml".to_owned(), text.into())
    }

    fn faults_of(text: &str) -> Vec<(usize, String)> {
        let faults = ProgrammeSet::parse(&[file(text)]).unwrap_err().faults;
        faults.into_iter().map(|fault| (fault.line, fault.reason)).collect()
    }

    fn line_of(text: &str, part: &str) -> usize {
        1 + text[..text.find(part).unwrap()].matches('\n').count()
    }

    /// Measure 25 with `old` changed to `new`, and the line of it.
    fn changed(old: &str, new: &str) -> (String, usize) {
        let text = measure_25();
        assert_eq!(text.matches(old).count(), 1, "{old}");
        let line = line_of(&text, old);
        (text.replace(old, new), line)
    }

    #[test]
    fn measure_25_reads_as_the_law_says() {
        let set = shipped_set();
        let programme = set.get("zj-ai-25").unwrap();
        assert_eq!(&*programme.source.reference.clause, "measure 25");
        assert_eq!(programme.rate.value.to_string(), "0.15");
        assert_eq!(programme.cap.value, Fen::new(200_000));
        assert_eq!(programme.in_force.first_instant().to_string(), "2025-05-31T00:00:00+08:00");
        assert_eq!(programme.in_force.last_instant().to_string(), "2027-12-31T23:59:59.999+08:00");
        assert_eq!(programme.person_limit("smart_glasses"), Some(1));
        assert_eq!(programme.person_limit.reference.basis, Basis::Choice);
        assert_eq!(programme.person_limit("phone"), None);
        assert_eq!(programme.category("smart_glasses").unwrap().title.zh, "智能眼镜");
        let categories: Vec<_> = programme.categories.iter().map(|listed| listed.category.as_str()).collect();
        assert_eq!(categories, ["smart_home_robot", "smart_glasses", "smart_bionic", "smart_health"]);
    }

    #[test]
    fn every_category_of_the_shipped_programmes_is_known() {
        let set = shipped_set();
        let categories: Vec<_> = set.categories().map(Category::as_str).collect();
        let mut expected = [
            "phone",
            "tablet",
            "watch_band",
            "smart_glasses",
            "smart_home_robot",
            "smart_bionic",
            "smart_health",
            "refrigerator",
            "washing_machine",
            "television",
            "air_conditioner",
            "computer",
            "water_heater",
        ];
        expected.sort_unstable();
        assert_eq!(categories, expected);
    }

    #[test]
    fn each_number_is_shown_with_its_source() {
        let set = shipped_set();
        let shown = serde_json::to_value(&**set.get("national-digital-2026").unwrap()).unwrap();
        let clause = "categories, scope and standards";
        let parameter =
            |value: &str| serde_json::json!({"value": value, "clause": clause, "basis": "notice"});
        assert_eq!(shown["id"], "national-digital-2026");
        assert_eq!(shown["cap"], parameter("500.00"));
        assert_eq!(shown["rate"], parameter("0.15"));
        assert_eq!(shown["price_ceiling"]["value"], "6000.00");
        assert_eq!(shown["in_force"]["from"]["value"], "2026-01-01");
        assert_eq!(shown["in_force"]["to"]["basis"], "choice");
        assert_eq!(shown["regions"]["value"], serde_json::json!(["*"]));
        assert_eq!(shown["source"]["number"], "商办流通函〔2025〕469号");
        assert_eq!(shown["person_limit"]["value"], 1);
        assert!(shown.get("text").is_none());
        for (key, part) in shown.as_object().unwrap() {
            let sourced = |part: &serde_json::Value| part.is_null() || part["basis"].is_string();
            let ok = match key.as_str() {
                "id" | "version" | "title" => true,
                "in_force" => sourced(&part["from"]) && sourced(&part["to"]),
                "categories" => part.as_array().unwrap().iter().all(sourced),
                _ => sourced(part),
            };
            assert!(ok, "{key} has no source: {part}");
        }
    }

    #[test]
    fn a_category_can_be_added_without_code() {
        let text = measure_25()
            + "\n[[category]]\nid = \"smart_ring\"\nzh = \"智能戒指\"\nen = \"smart ring\"\n\
               clause = \"measure 25\"\nbasis = \"choice\"\n\
               person_limit = { value = 3, clause = \"a later notice\", basis = \"notice\" }\n";
        let set = ProgrammeSet::parse(&[file(text)]).unwrap();
        let [programme] = set.listing("smart_ring") else { panic!("{set:?}") };
        assert_eq!(programme.person_limit("smart_ring"), Some(3));
        assert_eq!(programme.person_limit_rule("smart_ring").unwrap().reference.basis, Basis::Notice);
        assert_eq!(programme.person_limit("smart_glasses"), Some(1));
    }

    #[test]
    fn a_fault_names_file_line_and_what_is_wanted() {
        for (old, new, reason) in [
            ("value = \"0.15\"", "value = \"1.5\"", "a decimal above 0"),
            ("value = \"0.15\"", "value = \"0\"", "a decimal above 0"),
            ("value = \"0.15\"", "value = \"0.00\"", "a decimal above 0"),
            ("value = \"0.15\"", "value = \"-0.15\"", "a decimal above 0"),
            ("value = \"0.15\"", "value = \"0.1500001\"", "a decimal above 0"),
            ("value = \"0.15\"", "value = 0.15", "expected a string"),
            ("value = \"2000.00\"", "value = \"0.00\"", "yuan above zero"),
            ("value = \"2000.00\"", "value = \"2,000\"", "yuan above zero"),
            ("value = \"2025-05-31\"", "value = \"2025-05-32\"", "a day in quotes"),
            ("value = \"2027-12-31\"", "value = \"2025-05-30\"", "before the first"),
            ("value = 1\n", "value = 0\n", "from 1 to 100"),
            ("value = 1\n", "value = 101\n", "from 1 to 100"),
            ("value = 15\n", "value = 61\n", "from 1 to 60"),
            ("version = 1", "version = 0", "from 1"),
            ("version = 1", "version = -1", "u32"),
            ("\"restored\"", "\"kept\"", "unknown variant `kept`"),
            ("\"sale\"", "\"invoice\"", "unknown variant `invoice`"),
            ("[\"330000\"]", "[]", "region codes"),
            ("[\"330000\"]", "[\"330000\", \"*\"]", "region codes"),
            ("[\"330000\"]", "[\"33\"]", "region codes"),
            ("\"zj-ai-25\"", "\"ZJ AI\"", "a programme id"),
            ("\"smart_bionic\"", "\"Smart Bionic\"", "a category id"),
            ("\"smart_bionic\"", "\"smart_glasses\"", "category smart_glasses is listed twice"),
            ("zh = \"智能仿生\"", "zh = \" \"", "1 to 200 characters"),
            ("[rate]", "[rate]\nunit = \"1\"", "unknown field `unit`"),
            ("[rate]", "[price]", "unknown field `price`"),
            ("version = 1", "version = = 1", "version"),
        ] {
            let (text, line) = changed(old, new);
            let faults = faults_of(&text);
            let [(at, found)] = faults.as_slice() else { panic!("{new}: {faults:?}") };
            assert!(found.contains(reason) || reason == "version", "{new}: {found}");
            assert!((line..=line + 1).contains(at), "{new}: line {at}, not {line}: {found}");
        }
    }

    #[test]
    fn a_programme_pays_no_more_for_one_item_than_a_claim_can_hold() {
        let of = |rate: &str, cap: &str, more: &str| {
            let text = measure_25().replace("\"0.15\"", &format!("\"{rate}\"")).replace("2000.00", cap);
            let line = line_of(&text, cap);
            (text + more, line)
        };
        let ceiling = |yuan: &str| {
            format!("[price_ceiling]\nvalue = \"{yuan}\"\nclause = \"a notice\"\nbasis = \"notice\"\n")
        };
        for (rate, cap, more) in [
            ("1", "42949672.96", String::new()),
            ("0.43", "99999999.99", String::new()),
            ("1", "99999999.99", ceiling("42949672.96")),
        ] {
            let (text, line) = of(rate, cap, &more);
            let faults = faults_of(&text);
            let [(at, reason)] = faults.as_slice() else { panic!("{rate} {cap}: {faults:?}") };
            assert!(reason.contains("at most \"42949672.95\""), "{reason}");
            assert_eq!(*at, line);
        }
        for (rate, cap, more) in [
            ("1", "42949672.95", String::new()),
            ("0.42", "99999999.99", String::new()),
            ("1", "99999999.99", ceiling("42949672.95")),
        ] {
            assert!(ProgrammeSet::parse(&[file(of(rate, cap, &more).0)]).is_ok(), "{rate} {cap} {more}");
        }
    }

    #[test]
    fn an_unknown_basis_and_a_missing_clause_are_refused() {
        let text = measure_25().replacen("basis = \"text\"", "basis = \"rumour\"", 1);
        assert_eq!(faults_of(&text)[0].0, line_of(&text, "rumour"));
        let text = measure_25().replacen("clause = \"measure 25\"\n", "", 1);
        assert!(faults_of(&text)[0].1.contains("missing field `clause`"));
    }

    #[test]
    fn all_faults_of_all_files_are_named() {
        let first = measure_25().replace("\"0.15\"", "\"15\"").replace("\"2000.00\"", "\"-1\"");
        let files = [file(first), ("b.toml".to_owned(), "id = 7".to_owned())];
        let error = ProgrammeSet::parse(&files).unwrap_err();
        let places: Vec<_> = error.faults.iter().map(|fault| (fault.file.as_str(), fault.line)).collect();
        assert_eq!(places, [("a.toml", 44), ("a.toml", 50), ("b.toml", 1)]);
        assert_eq!(error.to_string().lines().count(), 3);
        assert!(error.to_string().starts_with("a.toml:44: "), "{error}");
    }

    #[test]
    fn two_files_with_one_id_or_one_priority_are_refused() {
        let files = [file(measure_25()), ("b.toml".to_owned(), measure_25())];
        let error = ProgrammeSet::parse(&files).unwrap_err().to_string();
        assert!(error.contains("b.toml:5: a.toml has the same id"), "{error}");
        assert!(error.contains("a.toml has the same priority"), "{error}");
    }

    #[test]
    fn a_set_too_large_for_one_entry_is_refused() {
        let padding = format!("# {}\n", "x".repeat(limits::PROGRAMME_SET_BYTES_MAX));
        assert!(ProgrammeSet::parse(&[file(measure_25() + &padding)]).is_err());
    }

    #[test]
    fn a_set_survives_its_contents_whatever_the_order_of_files() {
        let set = shipped_set();
        let mut reversed = shipped();
        reversed.reverse();
        assert_eq!(ProgrammeSet::parse(&reversed).unwrap(), set);
        assert_eq!(ProgrammeSet::parse(&set.contents()).unwrap(), set);
        let fewer = ProgrammeSet::parse(&shipped()[1..]).unwrap();
        assert_ne!(fewer, set);
    }

    #[test]
    fn the_past_is_not_edited() {
        let parse = |text: String| Arc::new(ProgrammeSet::parse(&[file(text)]).unwrap());
        let version = |number: u32, cap: &str| {
            let text = measure_25().replace("version = 1", &format!("version = {number}"));
            parse(text.replace("2000.00", cap))
        };
        let id = ProgrammeId::parse("zj-ai-25").unwrap();
        let mut history = ProgrammeHistory::default();
        assert_eq!(history.current().iter().count(), 0);
        history.activate(version(1, "2000.00")).unwrap();
        history.activate(version(1, "2000.00")).unwrap();
        let changed = history.activate(version(1, "2500.00"));
        assert_eq!(changed, Err(ActivationRefused::TextChanged { id: id.clone(), version: 1 }));
        history.activate(version(3, "2500.00")).unwrap();
        let lowered = history.activate(version(2, "2500.00"));
        assert_eq!(lowered, Err(ActivationRefused::VersionLowered { id, version: 2, known: 3 }));
        assert_eq!(history.get("zj-ai-25", 1).unwrap().cap.value, Fen::new(200_000));
        assert_eq!(history.get("zj-ai-25", 3).unwrap().cap.value, Fen::new(250_000));
        assert_eq!(history.get("zj-ai-25", 2), None);
        assert_eq!(history.current().get("zj-ai-25").unwrap().version, 3);
    }

    #[test]
    fn names_hold_only_what_they_may() {
        assert!(Category::parse("smart_glasses").is_some());
        for bad in ["", "Smart", "_a", "1a", "a-b", "a b", "智能眼镜", &"a".repeat(49)] {
            assert_eq!(Category::parse(bad), None, "{bad}");
        }
        for bad in ["", "-a", "a_b", "a.b", "A", "2025-a"] {
            assert_eq!(ProgrammeId::parse(bad), None, "{bad}");
        }
        let category: Category = serde_json::from_str("\"phone\"").unwrap();
        assert_eq!(serde_json::to_string(&category).unwrap(), "\"phone\"");
        assert!(serde_json::from_str::<Category>("\"Phone\"").is_err());
    }
}
