//! Reading what callers send: one path for JSON bodies and query strings, fast when all is well and
//! naming every fault, with its place, when it is not.
//!
//! The bytes become a tree that borrows from them ([`Node`]); a [`Reader`] then asks an object for
//! its members one by one. Whatever was not asked for, stands there twice or cannot be read is a
//! [`Fault`]. No fault repeats a value.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::identity::IdFault;
use crate::limits;
use crate::money::Fen;
use crate::time::{Day, Timestamp};

/// A JSON value that borrows its texts from the bytes it was read from.
#[derive(Debug)]
pub enum Node<'a> {
    /// `null`, which is the same as absent.
    Null,
    /// `true` or `false`.
    Bool,
    /// A number; `None` where it is not a whole number from 0 to 2⁶⁴ − 1.
    Number(Option<u64>),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// An object; members in the order they came, repeated ones too.
    Object(Vec<Member<'a>>),
}

/// A member of an object: name and value.
pub type Member<'a> = (Cow<'a, str>, Node<'a>);

/// Most members an object may have; no body of this service asks for as many.
const MEMBERS_MAX: usize = 64;
/// Most values a body may hold; a full batch of full claims has fewer.
const NODES_MAX: usize = limits::BATCH_ITEMS_MAX * MEMBERS_MAX;
/// Characters of a caller's member name that a pointer shows.
const POINTER_NAME_CHARS_MAX: usize = 64;

// --- Faults ---

/// Why a value cannot be what it should. Carries no part of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The stable name integrators may test for.
    pub code: &'static str,
    /// What is wrong, in English.
    pub en: Cow<'static, str>,
    /// What is wrong, in Chinese.
    pub zh: Cow<'static, str>,
}

impl Wrong {
    /// A fault with a fixed text.
    pub const fn new(code: &'static str, en: &'static str, zh: &'static str) -> Self {
        Self { code, en: Cow::Borrowed(en), zh: Cow::Borrowed(zh) }
    }

    /// A fault whose text names bounds or choices of this service.
    pub const fn with_texts(code: &'static str, en: String, zh: String) -> Self {
        Self { code, en: Cow::Owned(en), zh: Cow::Owned(zh) }
    }
}

impl From<IdFault> for Wrong {
    fn from(fault: IdFault) -> Self {
        Self::new(fault.code(), fault.en(), fault.zh())
    }
}

pub(super) const REQUIRED: Wrong = Wrong::new("required", "This member is required.", "此项必填。");
const UNKNOWN: Wrong = Wrong::new("unknown-member", "There is no member of this name.", "不存在此项。");
const REPEATED: Wrong =
    Wrong::new("duplicate-member", "This member stands here more than once.", "此项重复出现。");
const NOT_TEXT: Wrong = Wrong::new("wrong-type", "This must be a string.", "此项应为字符串。");
const NOT_WHOLE: Wrong = Wrong::new("wrong-type", "This must be a whole number.", "此项应为整数。");
const NOT_OBJECT: Wrong = Wrong::new("wrong-type", "This must be an object.", "此项应为对象。");
const NOT_ARRAY: Wrong = Wrong::new("wrong-type", "This must be an array.", "此项应为数组。");
const MONEY_AS_NUMBER: Wrong = Wrong::new(
    "amount-is-number",
    "Send money as a decimal string in yuan, such as \"4000.00\", not as a JSON number.",
    "金额应为以元为单位的十进制字符串，例如\"4000.00\"，不能使用JSON数字。",
);
const MONEY_MALFORMED: Wrong = Wrong::new(
    "amount-malformed",
    "An amount is a decimal string in yuan: up to 8 digits, no leading zero, no sign, at most two decimals.",
    "金额为以元为单位的十进制字符串：整数部分最多8位，无前导零，无符号，最多两位小数。",
);
const BUDGET_MALFORMED: Wrong = Wrong::new(
    "amount-malformed",
    "A budget is a decimal string in yuan: up to 13 digits, no leading zero, no sign, at most two decimals.",
    "预算为以元为单位的十进制字符串：整数部分最多13位，无前导零，无符号，最多两位小数。",
);
const CHANGE_MALFORMED: Wrong = Wrong::new(
    "amount-malformed",
    "A change is a decimal string in yuan, with a minus sign where money is taken: up to 13 digits, no leading zero, at most two decimals, not zero.",
    "调整金额为以元为单位的十进制字符串，调减时带负号：整数部分最多13位，无前导零，最多两位小数，不得为零。",
);
const INSTANT_MALFORMED: Wrong = Wrong::new(
    "instant-malformed",
    "An instant is RFC 3339 with an offset, such as 2026-11-23T10:15:00+08:00.",
    "时间应为带时区偏移的RFC 3339格式，例如2026-11-23T10:15:00+08:00。",
);
const DAY_MALFORMED: Wrong =
    Wrong::new("day-malformed", "A day is written as 2026-11-23.", "日期应写作2026-11-23的形式。");
const _: () = assert!(limits::PRICE_YUAN_DIGITS_MAX == 8 && limits::BUDGET_YUAN_DIGITS_MAX == 13);

/// One fault and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// An RFC 6901 pointer into the body, empty for the body as a whole; `/query/<name>` for a
    /// parameter of the query string, `/header/<name>` for a header.
    pub pointer: String,
    /// What is wrong there.
    pub wrong: Wrong,
}

/// The faults of one request, the first [`limits::FAULTS_MAX`] of them.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    #[cfg(test)]
    asked: Option<Vec<Asked>>,
}

/// What a reader asked an object for; lets tests compare readers with the published schema.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The member's pointer; items of arrays are all numbered 0.
    pub pointer: String,
    /// Whether it may not be absent.
    pub required: bool,
}

impl Faults {
    /// Adds a fault at `pointer`.
    pub fn add(&mut self, pointer: String, wrong: Wrong) {
        if self.list.len() < limits::FAULTS_MAX {
            self.list.push(Fault { pointer, wrong });
        }
    }

    /// Whether all is well so far.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `value`, unless there are faults.
    ///
    /// # Errors
    /// The faults. A value that is missing without any is the fault of its reader and told as one
    /// of the whole body.
    pub fn settle<T>(mut self, value: Option<T>) -> Result<T, Vec<Fault>> {
        match value {
            Some(value) if self.list.is_empty() => Ok(value),
            _ => {
                if self.list.is_empty() {
                    self.add(String::new(), NOT_OBJECT);
                }
                Err(self.list)
            }
        }
    }

    fn is_recording(&self) -> bool {
        #[cfg(test)]
        return self.asked.is_some();
        #[cfg(not(test))]
        false
    }
}

// --- Places and readers ---

/// A step from a value to one inside it.
#[derive(Clone, Copy)]
enum Step<'p> {
    Body,
    Query,
    Member(&'p str),
    Item(usize),
}

/// Where a value is; becomes text only when there is a fault to tell.
#[derive(Clone, Copy)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

impl<'p> Path<'p> {
    const fn to(&'p self, step: Step<'p>) -> Self {
        Self { parent: Some(self), step }
    }

    fn pointer(&self) -> String {
        let mut pointer = self.parent.map(Path::pointer).unwrap_or_default();
        match self.step {
            Step::Body => {}
            Step::Query => pointer.push_str("/query"),
            Step::Item(index) => {
                pointer.push('/');
                pointer.push_str(&index.to_string());
            }
            Step::Member(name) => {
                pointer.push('/');
                // Names may be the caller's: kept short, without anything that could forge a log line.
                let name = if might_be_personal(name) { "?" } else { name };
                for character in name.chars().take(POINTER_NAME_CHARS_MAX) {
                    match character {
                        '~' => pointer.push_str("~0"),
                        '/' => pointer.push_str("~1"),
                        control if control.is_control() => pointer.push('\u{FFFD}'),
                        plain => pointer.push(plain),
                    }
                }
            }
        }
        pointer
    }
}

/// Whether a member's name could be a person's number written in the wrong place; it is not repeated.
fn might_be_personal(name: &str) -> bool {
    const DIGITS_MAX: usize = 5;
    name.bytes().filter(u8::is_ascii_digit).count() > DIGITS_MAX
}

/// A value with its place.
pub struct Place<'f, 'r> {
    node: &'r Node<'r>,
    path: Path<'f>,
    faults: &'f mut Faults,
}

impl<'f, 'r> Place<'f, 'r> {
    /// A value that stands on its own: pointers begin here.
    pub fn root(node: &'r Node<'r>, faults: &'f mut Faults) -> Self {
        Self { node, path: Path { parent: None, step: Step::Body }, faults }
    }

    /// Reads a plain value; `None` where it has a fault.
    pub fn value<T>(self, parse: impl FnOnce(&'r Node<'r>) -> Result<T, Wrong>) -> Option<T> {
        match parse(self.node) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.faults.add(self.path.pointer(), wrong);
                None
            }
        }
    }

    /// Whether this is an object with these members; tells those that are missing.
    pub fn has_members(&mut self, names: &[&'static str]) -> bool {
        if self.faults.is_recording() {
            return true;
        }
        let Node::Object(members) = self.node else {
            self.faults.add(self.path.pointer(), NOT_OBJECT);
            return false;
        };
        let missing = names.iter().filter(|name| !members.iter().any(|(member, _)| member == *name));
        let mut whole = true;
        for name in missing {
            self.faults.add(self.path.to(Step::Member(name)).pointer(), REQUIRED);
            whole = false;
        }
        whole
    }

    /// Reads a value whose faults are its own and not the body's.
    ///
    /// # Errors
    /// Its faults, with pointers into the body.
    pub fn apart<T>(self, read: impl FnOnce(Place<'_, 'r>) -> Option<T>) -> Result<T, Vec<Fault>> {
        if self.faults.is_recording() {
            return read(self).ok_or_else(Vec::new);
        }
        let mut faults = Faults::default();
        let value = read(Place { node: self.node, path: self.path, faults: &mut faults });
        faults.settle(value)
    }

    /// Reads an object; `None` where it, or what `read` makes of it, has a fault.
    pub fn object<T>(self, read: impl FnOnce(&mut Reader<'_, 'r>) -> Option<T>) -> Option<T> {
        let members: &[Member<'r>] = match self.node {
            Node::Object(members) => members,
            _ if self.faults.is_recording() => &[],
            _ => {
                self.faults.add(self.path.pointer(), NOT_OBJECT);
                return None;
            }
        };
        if members.len() > MEMBERS_MAX {
            let wrong = Wrong::with_texts(
                "too-many-members",
                format!("An object has at most {MEMBERS_MAX} members."),
                format!("对象最多包含{MEMBERS_MAX}项。"),
            );
            self.faults.add(self.path.pointer(), wrong);
            return None;
        }
        let mut reader = Reader { members, path: self.path, faults: self.faults, seen: 0, next: 0 };
        let value = read(&mut reader);
        reader.finish().then_some(value)?
    }

    /// Reads an array of at most `items_max` items; `None` where it or one of them has a fault.
    pub fn array<T, C: FromIterator<T>>(
        self,
        items_max: usize,
        mut each: impl FnMut(Place<'_, 'r>) -> Option<T>,
    ) -> Option<C> {
        let items: &[Node<'r>] = match self.node {
            Node::Array(items) => items,
            _ if self.faults.is_recording() => &[Node::Null],
            _ => {
                self.faults.add(self.path.pointer(), NOT_ARRAY);
                return None;
            }
        };
        if items.len() > items_max {
            let wrong = Wrong::with_texts(
                "too-many-items",
                format!("At most {items_max} items may stand here."),
                format!("最多包含{items_max}项。"),
            );
            self.faults.add(self.path.pointer(), wrong);
            return None;
        }
        let mut whole = true;
        let Self { path, faults, .. } = self;
        let collected = items
            .iter()
            .enumerate()
            .filter_map(|(index, node)| {
                let value = each(Place { node, path: path.to(Step::Item(index)), faults });
                whole &= value.is_some();
                value
            })
            .collect();
        whole.then_some(collected)
    }
}

/// Asks one object for its members. Every member the object may have must be asked for on every
/// path, whatever the others say: what was not asked for is refused when the reader is done.
///
/// Each question is answered with `None` where the member is absent or has a fault; the faults are
/// kept, so that a value made in spite of one never reaches a caller.
pub struct Reader<'f, 'r> {
    members: &'r [Member<'r>],
    path: Path<'f>,
    faults: &'f mut Faults,
    /// One bit for each member that was asked for.
    seen: u64,
    /// Where the next member is looked for first: callers mostly write them in our order.
    next: usize,
}

impl<'f, 'r> Reader<'f, 'r> {
    /// A member that must be there.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&'r Node<'r>) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.at(name, true)?.value(parse)
    }

    /// A member that may be absent or null.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&'r Node<'r>) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.at(name, false)?.value(parse)
    }

    /// An object that must be there.
    pub fn object<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Reader<'_, 'r>) -> Option<T>,
    ) -> Option<T> {
        self.at(name, true)?.object(read)
    }

    /// An object that may be absent or null.
    pub fn optional_object<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Reader<'_, 'r>) -> Option<T>,
    ) -> Option<T> {
        self.at(name, false)?.object(read)
    }

    /// An array of at most `items_max` items that must be there.
    pub fn array<T, C: FromIterator<T>>(
        &mut self,
        name: &'static str,
        items_max: usize,
        each: impl FnMut(Place<'_, 'r>) -> Option<T>,
    ) -> Option<C> {
        self.at(name, true)?.array(items_max, each)
    }

    /// An array of at most `items_max` items that may be absent or null.
    pub fn optional_array<T, C: FromIterator<T>>(
        &mut self,
        name: &'static str,
        items_max: usize,
        each: impl FnMut(Place<'_, 'r>) -> Option<T>,
    ) -> Option<C> {
        self.at(name, false)?.array(items_max, each)
    }

    /// A member that must be there, as it is, to be read on its own with [`Place::root`].
    pub fn raw(&mut self, name: &'static str) -> Option<&'r Node<'r>> {
        self.at(name, true).map(|place| place.node)
    }

    /// Tells a fault of member `name` that shows only beside the others.
    pub fn refuse(&mut self, name: &'static str, wrong: Wrong) {
        let pointer = self.path.to(Step::Member(name)).pointer();
        self.faults.add(pointer, wrong);
    }

    fn at(&mut self, name: &'static str, required: bool) -> Option<Place<'_, 'r>> {
        let found = self.find(name);
        #[cfg(test)]
        if self.faults.is_recording() {
            let pointer = self.path.to(Step::Member(name)).pointer();
            self.faults.asked.get_or_insert_default().push(Asked { pointer, required });
        }
        let node = match found {
            Some(node) => node,
            None if self.faults.is_recording() => &Node::Null,
            None => {
                if required {
                    self.refuse(name, REQUIRED);
                }
                return None;
            }
        };
        Some(Place { node, path: self.path.to(Step::Member(name)), faults: self.faults })
    }

    /// The member called `name`, unless it is null.
    fn find(&mut self, name: &str) -> Option<&'r Node<'r>> {
        let (before, from) = self.members.split_at_checked(self.next).unwrap_or((self.members, &[]));
        let (index, (_, node)) = from
            .iter()
            .zip(self.next..)
            .chain(before.iter().zip(0..))
            .map(|(member, index)| (index, member))
            .find(|(_, (member, _))| member == name)?;
        // A name that stands there twice may be met first in either place; which one is the
        // repeated one does not matter, since the request is refused.
        self.seen |= 1 << index;
        self.next = index + 1;
        (!matches!(node, Node::Null)).then_some(node)
    }

    /// Refuses every member that was not asked for; whether there was none.
    fn finish(&mut self) -> bool {
        if self.seen.count_ones() as usize == self.members.len() {
            return true;
        }
        for (index, (name, _)) in self.members.iter().enumerate() {
            if self.seen & (1 << index) == 0 {
                let asked =
                    |(at, (other, _)): (usize, &Member<'r>)| self.seen & (1 << at) != 0 && other == name;
                let wrong = if self.members.iter().enumerate().any(asked) { REPEATED } else { UNKNOWN };
                self.faults.add(self.path.to(Step::Member(name)).pointer(), wrong);
            }
        }
        false
    }
}

/// The days `from` and `to` of a query; neither needs to be there.
pub fn days(reader: &mut Reader<'_, '_>) -> (Option<Day>, Option<Day>) {
    const ENDS_BEFORE: Wrong = Wrong::new(
        "ends-before-it-begins",
        "This day lies before the one in from.",
        "结束日期早于开始日期。",
    );
    let (from, to) = (reader.optional("from", day), reader.optional("to", day));
    if from.zip(to).is_some_and(|(from, to)| to < from) {
        reader.refuse("to", ENDS_BEFORE);
    }
    (from, to)
}

/// Reads a JSON body whose outermost value is an object.
///
/// # Errors
/// Every fault, up to [`limits::FAULTS_MAX`]. Bytes that are not JSON have one, with its place in
/// the text.
pub fn body<T>(bytes: &[u8], read: impl FnOnce(&mut Reader<'_, '_>) -> Option<T>) -> Result<T, Vec<Fault>> {
    let node = parse(bytes).map_err(|fault| vec![fault])?;
    let mut faults = Faults::default();
    let value = Place::root(&node, &mut faults).object(read);
    faults.settle(value)
}

/// Reads a query string, without its question mark.
///
/// # Errors
/// As [`body`]; pointers begin with `/query`.
pub fn query<T>(query: &str, read: impl FnOnce(&mut Reader<'_, '_>) -> Option<T>) -> Result<T, Vec<Fault>> {
    let members = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(name), Node::Text(percent_decoded(value)))
    });
    // One more than may be: the reader refuses it, and nothing grows with the query.
    let node = Node::Object(members.take(MEMBERS_MAX + 1).collect());
    let mut faults = Faults::default();
    let place = Place { node: &node, path: Path { parent: None, step: Step::Query }, faults: &mut faults };
    let value = place.object(read);
    faults.settle(value)
}

/// A query's name or value without its encoding; what is not UTF-8 inside becomes U+FFFD, which no
/// value of this service holds.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let hexadecimal =
        |byte: Option<&u8>| (*byte? as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, hexadecimal(after.first()), hexadecimal(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', ..) => decoded.push(b' '),
            (plain, ..) => decoded.push(plain),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

/// The members `read` asks for, in the order of their pointers.
#[cfg(test)]
pub fn asked_by<T>(read: impl FnOnce(&mut Reader<'_, '_>) -> Option<T>) -> Vec<Asked> {
    let mut faults = Faults { asked: Some(Vec::new()), ..Faults::default() };
    let _ = Place::root(&Node::Null, &mut faults).object(read);
    let mut asked = faults.asked.unwrap_or_default();
    asked.sort();
    asked
}

fn parse(bytes: &[u8]) -> Result<Node<'_>, Fault> {
    // Whether all of it is UTF-8 is asked once; the parser would ask for every string.
    let tree = match std::str::from_utf8(bytes) {
        Ok(text) => tree(serde_json::Deserializer::from_str(text)),
        Err(_) => tree(serde_json::Deserializer::from_slice(bytes)),
    };
    tree.map_err(|error| Fault {
        pointer: String::new(),
        wrong: Wrong::with_texts(
            "malformed-json",
            format!(
                "The body is not well-formed JSON in UTF-8: line {}, column {}.",
                error.line(),
                error.column()
            ),
            format!("请求体不是格式正确的UTF-8编码JSON：第{}行，第{}列。", error.line(), error.column()),
        ),
    })
}

fn tree<'r>(
    mut text: serde_json::Deserializer<impl serde_json::de::Read<'r>>,
) -> serde_json::Result<Node<'r>> {
    let nodes_left = Cell::new(NODES_MAX);
    let tree = Tree { nodes_left: &nodes_left, room: ROOM }.deserialize(&mut text)?;
    text.end().map(|()| tree)
}

// --- Plain values ---

/// A string that `parse` understands.
pub fn text<'r, T, E: Into<Wrong>>(
    parse: impl FnOnce(&'r str) -> Result<T, E>,
) -> impl FnOnce(&'r Node<'r>) -> Result<T, Wrong> {
    move |node| parse(string(node)?).map_err(Into::into)
}

/// A string that is one of these names.
pub fn one_of<T: Copy>(choices: &[(&'static str, T)]) -> impl Fn(&Node<'_>) -> Result<T, Wrong> {
    move |node| {
        let name = string(node)?;
        choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(known, _)| *known).collect();
            Wrong::with_texts(
                "not-one-of",
                format!("This must be one of: {}.", names.join(", ")),
                format!("此项应为以下之一：{}。", names.join("、")),
            )
        })
    }
}

/// A JSON number without a fraction, between `from` and `to` inclusive.
pub fn whole(from: u32, to: u32) -> impl Fn(&Node<'_>) -> Result<u32, Wrong> {
    move |node| match node {
        Node::Number(Some(number)) => {
            within(*number, from.into(), to.into()).map(|number| u32::try_from(number).unwrap_or(to))
        }
        _ => Err(NOT_WHOLE),
    }
}

/// A whole number as query strings write it, between `from` and `to` inclusive.
pub fn whole_text(from: u64, to: u64) -> impl Fn(&Node<'_>) -> Result<u64, Wrong> {
    move |node| {
        let text = string(node)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().unwrap_or(u64::MAX)).ok_or(NOT_WHOLE)?;
        within(number, from, to)
    }
}

fn within(number: u64, from: u64, to: u64) -> Result<u64, Wrong> {
    (from..=to).contains(&number).then_some(number).ok_or_else(|| {
        Wrong::with_texts(
            "out-of-range",
            format!("This must lie between {from} and {to}."),
            format!("此项应在{from}至{to}之间。"),
        )
    })
}

/// Money as the wire writes it, zero included.
///
/// # Errors
/// JSON numbers have a message of their own.
pub fn yuan(node: &Node<'_>) -> Result<Fen, Wrong> {
    Fen::parse_yuan(amount(node)?).ok_or(MONEY_MALFORMED)
}

/// A fund's budget.
///
/// # Errors
/// As [`yuan`].
pub fn budget(node: &Node<'_>) -> Result<Fen, Wrong> {
    Fen::parse_budget_yuan(amount(node)?).ok_or(BUDGET_MALFORMED)
}

/// A change of a fund's budget; negative where money is taken, never zero.
///
/// # Errors
/// As [`yuan`].
pub fn change(node: &Node<'_>) -> Result<Fen, Wrong> {
    let text = amount(node)?;
    let (digits, taken) = text.strip_prefix('-').map_or((text, false), |digits| (digits, true));
    let fen = Fen::parse_budget_yuan(digits).filter(|fen| *fen != Fen::ZERO).ok_or(CHANGE_MALFORMED)?;
    Ok(if taken { fen.negated() } else { fen })
}

/// An instant.
///
/// # Errors
/// Anything but RFC 3339 with an offset.
pub fn instant(node: &Node<'_>) -> Result<Timestamp, Wrong> {
    Timestamp::parse(string(node)?).ok_or(INSTANT_MALFORMED)
}

/// A day.
///
/// # Errors
/// Anything but `2026-11-23`.
pub fn day(node: &Node<'_>) -> Result<Day, Wrong> {
    Day::parse(string(node)?).ok_or(DAY_MALFORMED)
}

/// A string.
///
/// # Errors
/// Anything else.
pub fn string<'r>(node: &'r Node<'_>) -> Result<&'r str, Wrong> {
    match node {
        Node::Text(text) => Ok(text),
        _ => Err(NOT_TEXT),
    }
}

fn amount<'r>(node: &'r Node<'_>) -> Result<&'r str, Wrong> {
    match node {
        Node::Number(_) => Err(MONEY_AS_NUMBER),
        other => string(other),
    }
}

// --- From bytes to the tree ---

/// Makes the tree. A short body could hold very many tiny values, each of which takes more memory
/// than it has bytes: there are at most as many as this counts down from.
#[derive(Clone, Copy)]
struct Tree<'c> {
    nodes_left: &'c Cell<usize>,
    /// Members an object has room for from its first one on.
    room: usize,
}

/// A body's outermost object has about as many members as a claim; those inside have few.
const ROOM: usize = 16;
const ROOM_INSIDE: usize = 4;

impl Tree<'_> {
    /// The same for a value inside another.
    const fn inside(self) -> Self {
        Self { room: ROOM_INSIDE, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        let left = self.nodes_left.get().checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        self.nodes_left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Node::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Node::Number(Some(number)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Node::Number(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Node::Number(None))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self.inside())? {
            array.push(item);
        }
        Ok(Node::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = Vec::new();
        while let Some(name) = members.next_key_seed(Name)? {
            if object.is_empty() {
                object.reserve_exact(self.room);
            }
            object.push((name, members.next_value_seed(self.inside())?));
        }
        Ok(Node::Object(object))
    }
}

/// Reads a member's name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Imei, Reference, RegionCode};

    #[derive(Debug, PartialEq)]
    struct Sample {
        price: Fen,
        line: u32,
        region: Option<RegionCode>,
        inner: Option<(String, Vec<Imei>)>,
    }

    fn sample(o: &mut Reader<'_, '_>) -> Option<Sample> {
        let price = o.required("price", yuan);
        let line = o.optional("line", whole(1, 999)).unwrap_or(1);
        let region = o.optional("region", text(RegionCode::parse));
        let inner = o.optional_object("inner", |o| {
            let reference = o.required("no", text(Reference::parse));
            let imei = o.optional_array("imei", 2, |item| item.value(text(Imei::parse)));
            Some((reference?.as_str().to_owned(), imei.unwrap_or_default()))
        });
        Some(Sample { price: price?, line, region, inner })
    }

    fn faults(json: &str) -> Vec<(String, &'static str)> {
        let faults = body(json.as_bytes(), sample).expect_err(json);
        faults.into_iter().map(|fault| (fault.pointer, fault.wrong.code)).collect()
    }

    #[test]
    fn members_are_read_in_any_order_and_null_is_absent() {
        let expected = Sample { price: Fen::new(100), line: 1, region: None, inner: None };
        for json in [
            r#"{"price":"1.00"}"#,
            r#"{"price":"1","line":1,"region":null,"inner":null}"#,
            r#" { "inner" : null, "line" : 1, "pri\u0063e" : "1.0" } "#,
        ] {
            assert_eq!(body(json.as_bytes(), sample).as_ref(), Ok(&expected), "{json}");
        }
        let full =
            r#"{"inner":{"imei":["490154203237518"],"no":"A"},"region":"330106","line":2,"price":"0.5"}"#;
        let read = body(full.as_bytes(), sample).unwrap();
        assert_eq!(read.inner, Some(("A".to_owned(), vec![Imei::parse("490154203237518").unwrap()])));
        assert_eq!((read.line, read.price), (2, Fen::new(50)));
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        assert_eq!(
            faults(
                r#"{"price":4000,"line":"2","region":"999999","inner":{"imei":["1","2"],"a/b~":1,"no":7}}"#
            ),
            [
                ("/price".to_owned(), "amount-is-number"),
                ("/line".to_owned(), "wrong-type"),
                ("/region".to_owned(), "region-unknown"),
                ("/inner/no".to_owned(), "wrong-type"),
                ("/inner/imei/0".to_owned(), "imei-malformed"),
                ("/inner/imei/1".to_owned(), "imei-malformed"),
                ("/inner/a~1b~0".to_owned(), "unknown-member"),
            ]
        );
        assert_eq!(faults("{}"), [("/price".to_owned(), "required")]);
        assert_eq!(faults(r#"{"price":null}"#), [("/price".to_owned(), "required")]);
        assert_eq!(faults("[]"), [(String::new(), "wrong-type")]);
        assert_eq!(faults(r#"{"price":"1","line":1.5}"#), [("/line".to_owned(), "wrong-type")]);
        assert_eq!(faults(r#"{"price":"1","line":-1}"#), [("/line".to_owned(), "wrong-type")]);
        assert_eq!(faults(r#"{"price":"1","line":1000}"#), [("/line".to_owned(), "out-of-range")]);
        assert_eq!(
            faults(
                r#"{"price":"1","inner":{"no":"a","imei":["490154203237518","490154203237518","490154203237518"]}}"#
            ),
            [("/inner/imei".to_owned(), "too-many-items")]
        );
    }

    #[test]
    fn a_member_that_stands_twice_is_refused_wherever_it_stands() {
        for json in [
            r#"{"price":"1","price":"1"}"#,
            r#"{"price":"1","line":1,"price":"2"}"#,
            r#"{"price":null,"line":1,"pr\u0069ce":"2"}"#,
        ] {
            assert!(faults(json).contains(&("/price".to_owned(), "duplicate-member")), "{json}");
        }
        assert_eq!(faults(r#"{"price":"1","x":1,"x":1}"#).len(), 2, "unknown is unknown, however often");
    }

    #[test]
    fn text_that_is_not_json_is_told_with_line_and_column() {
        for json in
            ["", "{", "{\n\"price\":}", "nul", "{}x", "\u{feff}{}", r#"{"price":"\ud800"}"#, "{'a':1}"]
        {
            let faults = body(json.as_bytes(), sample).expect_err(json);
            assert_eq!((faults.len(), faults[0].wrong.code), (1, "malformed-json"), "{json}");
            assert!(faults[0].wrong.en.contains("line"), "{json}");
        }
        assert_eq!(body(b"{\"price\":\"\xff\"}", sample).unwrap_err()[0].wrong.code, "malformed-json");
        let deep = "[".repeat(10_000);
        assert_eq!(faults(&deep)[0].1, "malformed-json");
    }

    #[test]
    fn what_a_caller_sends_never_makes_much_more_of_itself() {
        let many = format!(
            "{{{}}}",
            (0..MEMBERS_MAX + 1).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",")
        );
        assert_eq!(faults(&many), [(String::new(), "too-many-members")]);
        let unknown = many.replacen(",\"64\":0", "", 1);
        assert_eq!(faults(&unknown).len(), limits::FAULTS_MAX);
        let tiny = format!("[{}]", vec!["0"; NODES_MAX].join(","));
        assert_eq!(faults(&tiny)[0].1, "malformed-json");
        let long = format!("{{\"{}\\n\":0,\"price\":\"1\"}}", "长".repeat(1000));
        assert_eq!(faults(&long)[0].0.chars().count(), 1 + POINTER_NAME_CHARS_MAX);
    }

    #[test]
    fn a_query_string_is_read_like_a_body() {
        let read = |text| {
            query(text, |o| {
                let limit = o.optional("limit", whole_text(1, 200));
                let order = o.optional("order_no", text_of);
                Some((limit, order))
            })
        };
        fn text_of(node: &Node<'_>) -> Result<String, Wrong> {
            string(node).map(str::to_owned)
        }
        assert_eq!(read(""), Ok((None, None)));
        assert_eq!(read("limit=20&order_no=a%2Fb+c%E4%BA%BA"), Ok((Some(20), Some("a/b c人".to_owned()))));
        assert_eq!(read("order_no=%zz%2"), Ok((None, Some("%zz%2".to_owned()))));
        for (text, pointer, code) in [
            ("limit=0", "/query/limit", "out-of-range"),
            ("limit=99999999999999999999999", "/query/limit", "out-of-range"),
            ("limit=", "/query/limit", "wrong-type"),
            ("limit=%2B1", "/query/limit", "wrong-type"),
            ("limit=1&limit=1", "/query/limit", "duplicate-member"),
            ("other=1", "/query/other", "unknown-member"),
        ] {
            let faults = read(text).expect_err(text);
            assert_eq!((faults[0].pointer.as_str(), faults[0].wrong.code), (pointer, code), "{text}");
        }
    }

    #[test]
    fn a_change_of_budget_has_a_sign_only_where_money_is_taken() {
        let read = |json: &str| body(json.as_bytes(), |o| o.required("delta", change)).ok();
        assert_eq!(read(r#"{"delta":"-1000000000.00"}"#), Some(Fen::new(-100_000_000_000)));
        assert_eq!(read(r#"{"delta":"0.01"}"#), Some(Fen::new(1)));
        for bad in ["-0", "0.00", "+1", "--1", "- 1", "", "-"] {
            assert_eq!(read(&format!(r#"{{"delta":"{bad}"}}"#)), None, "{bad}");
        }
    }

    #[test]
    fn what_a_reader_asks_for_can_be_listed_without_a_body() {
        let asked = asked_by(sample);
        let names: Vec<_> = asked.iter().map(|asked| (asked.pointer.as_str(), asked.required)).collect();
        assert_eq!(
            names,
            [
                ("/inner", false),
                ("/inner/imei", false),
                ("/inner/no", true),
                ("/line", false),
                ("/price", true),
                ("/region", false)
            ]
        );
    }
}
