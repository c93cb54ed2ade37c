//! What connections send, and what the answers must be.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem::Finder;
use serde_json::Value;

use crate::client::Answer;
use crate::load::{Script, Verdict};
use crate::sale::{self, BATCH_SALES, INSTANT_CHARS, Numbers, Request, TillClock};

/// The length of a claim's id.
const ID_CHARS: usize = 36;
/// One answer in so many is read as a whole and every member compared.
const READ_WHOLE: u64 = 256;

/// Finds members in an answer without reading all of it.
struct Members {
    claim_id: Finder<'static>,
    subsidy: Finder<'static>,
    redeemed: Finder<'static>,
}

impl Default for Members {
    fn default() -> Self {
        Self {
            claim_id: Finder::new(r#""claim_id":""#),
            subsidy: Finder::new(r#""subsidy":""#),
            redeemed: Finder::new(r#""status":"redeemed""#),
        }
    }
}

impl Members {
    fn claim_id(&self, body: &[u8]) -> Option<[u8; ID_CHARS]> {
        let at = self.claim_id.find(body)? + self.claim_id.needle().len();
        body.get(at..at + ID_CHARS)?.try_into().ok()
    }

    /// The first amount called subsidy, in fen.
    fn subsidy_fen(&self, body: &[u8]) -> Option<u64> {
        let at = self.subsidy.find(body)? + self.subsidy.needle().len();
        fen(body.get(at..)?)
    }
}

/// Yuan with two decimals and a quotation mark after them, in fen.
fn fen(text: &[u8]) -> Option<u64> {
    let text = text.get(..text.iter().position(|byte| *byte == b'"')?)?;
    let (yuan, decimals) = text.split_at_checked(text.len().checked_sub(3)?)?;
    let digits = |text: &[u8]| {
        text.iter()
            .try_fold(0_u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
    };
    Some(digits(yuan)? * 100 + digits(decimals.strip_prefix(b".")?)?)
}

fn is_overload(answer: &Answer<'_>) -> bool {
    matches!(answer.status, 429 | 503)
}

fn unexpected(answer: &Answer<'_>, wanted: &str) -> anyhow::Error {
    anyhow::anyhow!("the service answered wrongly: {wanted} was to be expected, not\n{}", answer.text())
}

/// How a script shall treat its subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Every answer is checked, member by member now and then.
    Check,
    /// Status and amount are checked.
    Amount,
    /// The subject decides nothing; only the status is looked at.
    StatusOnly,
}

/// What the requests of a run are made of, in thousandths; the rest are new sales.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// Requests sent again with the same key, devices sold twice, devices contested by all connections.
    pub duplicates: u64,
    /// Forged tokens, wrong check digits, bodies that are not JSON.
    pub hostile: u64,
}

/// What was sent last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    Sale,
    Twin,
    SoldDevice,
    Contested(u64),
    ForgedToken,
    WrongDocument,
    NotJson,
}

/// Makes claims.
pub struct Claims {
    request: Request,
    numbers: Numbers,
    clock: TillClock,
    members: Members,
    trust: Trust,
    shares: Shares,
    /// Contested devices get numbers that no other sale has; every connection counts from here.
    contested: std::ops::RangeFrom<u64>,
    sent: Sent,
    n: u64,
    /// The last sale, if it stands and the request still holds its bytes.
    last: Option<(u64, [u8; ID_CHARS])>,
    ids: Ids,
    made: Made,
}

/// What the claims of one connection have come to.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// Claims made.
    pub claims: u64,
    /// What they were granted, in fen.
    pub subsidy_fen: u64,
    /// Contested devices this connection got.
    pub contested: Vec<u64>,
}

/// Ids of claims, thinned out in a way that keeps both of two equal ones.
#[derive(Clone, Debug, Default)]
pub struct Ids(Vec<[u8; ID_CHARS]>);

impl Ids {
    fn note(&mut self, id: [u8; ID_CHARS]) {
        // The last character is random.
        if id.last() == Some(&b'7') {
            self.0.push(id);
        }
    }
}

impl Claims {
    /// Claims under this retailer's token. `contested` is the first number of contested devices, the same
    /// for all connections of a run.
    pub fn new(token: &str, trust: Trust, shares: Shares, contested: u64) -> Self {
        Self {
            request: Request::claim(token),
            numbers: Numbers::default(),
            clock: TillClock::default(),
            members: Members::default(),
            trust,
            shares,
            contested: contested..,
            sent: Sent::Sale,
            n: 0,
            last: None,
            ids: Ids::default(),
            made: Made::default(),
        }
    }

    /// Chooses what to send as sale `n` would be sent.
    fn choose(&mut self) -> Sent {
        let chance = mix(self.n) % 1000;
        let which = mix(self.n ^ 0x5EED) % 3;
        if chance < self.shares.hostile {
            return [Sent::ForgedToken, Sent::WrongDocument, Sent::NotJson][which as usize];
        }
        if chance < self.shares.hostile + self.shares.duplicates {
            return match (which, self.last) {
                (0, Some(_)) => Sent::Twin,
                (1, Some(_)) => Sent::SoldDevice,
                (2, _) => Sent::Contested(self.contested.next().unwrap_or_default()),
                _ => Sent::Sale,
            };
        }
        Sent::Sale
    }

    fn judge_sale(&mut self, answer: &Answer<'_>) -> Result<()> {
        let body = answer.body;
        let granted = self.members.subsidy_fen(body);
        let id = self.members.claim_id(body);
        let (201, Some(granted), Some(id)) = (answer.status, granted, id) else {
            return Err(unexpected(answer, "201 with a claim"));
        };
        ensure!(
            granted == sale::subsidy_fen(self.n) && self.members.redeemed.find(body).is_some(),
            unexpected(answer, &format!("a redeemed claim over {} fen", sale::subsidy_fen(self.n)))
        );
        if self.trust == Trust::Check && self.n.is_multiple_of(READ_WHOLE) {
            self.read_whole(answer)?;
        }
        self.made.claims += 1;
        self.made.subsidy_fen += granted;
        self.ids.note(id);
        self.last = Some((self.n, id));
        Ok(())
    }

    /// Compares every member that was sent with what came back.
    fn read_whole(&self, answer: &Answer<'_>) -> Result<()> {
        let sent: Value = serde_json::from_slice(self.request.body())?;
        let got: Value = serde_json::from_slice(answer.body).context("an answer that is not JSON")?;
        for pointer in
            ["/order_no", "/order_line", "/category", "/price", "/region_code", "/device/sn", "/device/imei"]
        {
            ensure!(
                sent.pointer(pointer) == got.pointer(pointer),
                unexpected(answer, &format!("the {pointer} that was sent"))
            );
        }
        let amount = |pointer| {
            let text = got.pointer(pointer).and_then(Value::as_str)?;
            fen(format!("{text}\"").as_bytes())
        };
        let (price, subsidy, payable) = (amount("/price"), amount("/subsidy"), amount("/payable"));
        ensure!(
            price.zip(subsidy).map(|(price, subsidy)| price - subsidy) == payable,
            unexpected(answer, "a price that is subsidy and payable together")
        );
        let chosen = got.pointer("/determination/considered/0");
        ensure!(
            chosen.and_then(|chosen| chosen.pointer("/chosen")) == Some(&Value::Bool(true))
                && chosen.and_then(|chosen| chosen.pointer("/amount")) == got.pointer("/subsidy"),
            unexpected(answer, "a determination whose first programme pays")
        );
        Ok(())
    }

    fn judge_twin(&self, answer: &Answer<'_>) -> Result<()> {
        let right = answer.status == 201
            && answer.has("idempotency-replayed: true")
            && self.members.claim_id(answer.body) == self.last.map(|(_, id)| id);
        ensure!(right, unexpected(answer, "the first answer again"));
        Ok(())
    }
}

/// Refused with this status and code.
fn judge_refusal(answer: &Answer<'_>, status: u16, code: &str) -> Result<()> {
    let found = memchr::memmem::find(answer.body, format!(r#""code":"{code}""#).as_bytes()).is_some();
    ensure!(answer.status == status && found, unexpected(answer, &format!("{status} {code}")));
    Ok(())
}

/// Splitmix64: numbers in order become numbers without one.
const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

impl Script for Claims {
    fn next(&mut self, now: Instant) -> &[u8] {
        self.n = self.numbers.take();
        self.sent = self.choose();
        let sold_at = self.clock.text(now);
        let sold = self.last.map(|(n, _)| n);
        if self.sent != Sent::Twin {
            self.request.write(0, self.n, &sold_at);
        }
        match self.sent {
            Sent::Sale | Sent::Twin => {}
            Sent::SoldDevice => self.request.write_device(sold.unwrap_or_default()),
            Sent::Contested(device) => self.request.write_device(device),
            Sent::ForgedToken => self.request.flip_token(),
            Sent::WrongDocument => self.request.spoil_document(),
            Sent::NotJson => self.request.flip_json(),
        }
        if self.sent != Sent::Twin {
            self.last = None;
        }
        self.request.bytes()
    }

    fn judge(&mut self, answer: &Answer<'_>) -> Result<Verdict> {
        match self.sent {
            Sent::ForgedToken => self.request.flip_token(),
            Sent::NotJson => self.request.flip_json(),
            _ => {}
        }
        if is_overload(answer) {
            return Ok(Verdict::Overloaded);
        }
        if self.trust == Trust::StatusOnly {
            ensure!(answer.status == 201, unexpected(answer, "201"));
            return Ok(Verdict::Items(1));
        }
        match self.sent {
            Sent::Sale => self.judge_sale(answer)?,
            Sent::Twin => self.judge_twin(answer)?,
            Sent::Contested(device) if answer.status == 201 => {
                self.made.contested.push(device);
                self.judge_sale(answer)?;
                // The request holds another sale's device: it is no sale to repeat.
                self.last = None;
            }
            Sent::SoldDevice | Sent::Contested(_) => judge_refusal(answer, 409, "device-already-subsidised")?,
            Sent::ForgedToken => judge_refusal(answer, 401, "unauthenticated")?,
            Sent::WrongDocument | Sent::NotJson => judge_refusal(answer, 400, "invalid-request")?,
        }
        Ok(Verdict::Items(1))
    }
}

/// What all connections together must not have got: one device twice, one id twice.
pub fn settle<'a>(scripts: impl IntoIterator<Item = &'a Claims>) -> Result<Made> {
    let mut all = Made::default();
    let mut ids = HashSet::new();
    let mut devices = HashSet::new();
    for script in scripts {
        all.claims += script.made.claims;
        all.subsidy_fen += script.made.subsidy_fen;
        for id in &script.ids.0 {
            ensure!(ids.insert(*id), "two claims have the id {}", String::from_utf8_lossy(id));
        }
        for device in &script.made.contested {
            ensure!(devices.insert(*device), "the device of sale {device} was subsidised twice");
        }
    }
    all.contested = devices.into_iter().collect();
    Ok(all)
}

/// Sends the same claims over and over, after making them during the warm-up.
pub struct Replays {
    request: Request,
    numbers: Numbers,
    clock: TillClock,
    members: Members,
    made: Vec<(u64, [u8; INSTANT_CHARS], [u8; ID_CHARS])>,
    /// How many to make first.
    to_make: usize,
    place: usize,
    sent: (u64, [u8; INSTANT_CHARS]),
    /// What the claims were granted in all, in fen.
    granted_fen: u64,
}

impl Replays {
    /// Replays of `to_make` claims under this retailer's token.
    pub fn new(token: &str, to_make: usize) -> Self {
        Self {
            request: Request::claim(token),
            numbers: Numbers::default(),
            clock: TillClock::default(),
            members: Members::default(),
            made: Vec::with_capacity(to_make),
            to_make,
            place: 0,
            sent: (0, [b'0'; INSTANT_CHARS]),
            granted_fen: 0,
        }
    }

    /// What the claims were granted in all, in fen.
    pub fn granted_fen(&self) -> u64 {
        self.granted_fen
    }
}

impl Script for Replays {
    fn next(&mut self, now: Instant) -> &[u8] {
        self.sent = match self.made.get(self.place) {
            Some((n, sold_at, _)) if self.made.len() == self.to_make => (*n, *sold_at),
            _ => (self.numbers.take(), self.clock.text(now)),
        };
        self.request.write(0, self.sent.0, &self.sent.1);
        self.request.bytes()
    }

    fn judge(&mut self, answer: &Answer<'_>) -> Result<Verdict> {
        if is_overload(answer) {
            return Ok(Verdict::Overloaded);
        }
        let id = self.members.claim_id(answer.body);
        let (201, Some(id)) = (answer.status, id) else { return Err(unexpected(answer, "201 with a claim")) };
        if self.made.len() < self.to_make {
            self.granted_fen += sale::subsidy_fen(self.sent.0);
            self.made.push((self.sent.0, self.sent.1, id));
            return Ok(Verdict::Items(0));
        }
        let first = self.made.get(self.place).map(|(_, _, id)| *id);
        ensure!(
            first == Some(id) && answer.has("idempotency-replayed: true"),
            unexpected(answer, "the first answer again")
        );
        self.place = (self.place + 1) % self.to_make;
        Ok(Verdict::Items(1))
    }
}

/// Asks what sales would get.
pub struct Quotes {
    request: Request,
    numbers: Numbers,
    clock: TillClock,
    members: Members,
    eligible: Finder<'static>,
    n: u64,
}

impl Quotes {
    /// Quotes under this retailer's token.
    pub fn new(token: &str) -> Self {
        Self {
            request: Request::quote(token),
            numbers: Numbers::default(),
            clock: TillClock::default(),
            members: Members::default(),
            eligible: Finder::new(r#""eligible":true"#),
            n: 0,
        }
    }
}

impl Script for Quotes {
    fn next(&mut self, now: Instant) -> &[u8] {
        self.n = self.numbers.take();
        self.request.write(0, self.n, &self.clock.text(now));
        self.request.bytes()
    }

    fn judge(&mut self, answer: &Answer<'_>) -> Result<Verdict> {
        if is_overload(answer) {
            return Ok(Verdict::Overloaded);
        }
        let right = answer.status == 200
            && self.eligible.find(answer.body).is_some()
            && self.members.subsidy_fen(answer.body) == Some(sale::subsidy_fen(self.n));
        ensure!(right, unexpected(answer, &format!("a quote of {} fen", sale::subsidy_fen(self.n))));
        Ok(Verdict::Items(1))
    }
}

/// Makes claims, [`BATCH_SALES`] to a request.
pub struct Batches {
    request: Request,
    numbers: Numbers,
    clock: TillClock,
    created: Finder<'static>,
    members: Members,
    sent: Vec<u64>,
    granted_fen: u64,
}

impl Batches {
    /// Batches under this retailer's token.
    pub fn new(token: &str) -> Self {
        Self {
            request: Request::batch(token),
            numbers: Numbers::default(),
            clock: TillClock::default(),
            created: Finder::new(r#""status":201"#),
            members: Members::default(),
            sent: Vec::with_capacity(BATCH_SALES),
            granted_fen: 0,
        }
    }

    /// What the claims were granted in all, in fen.
    pub fn granted_fen(&self) -> u64 {
        self.granted_fen
    }
}

impl Script for Batches {
    fn next(&mut self, now: Instant) -> &[u8] {
        let sold_at = self.clock.text(now);
        self.sent.clear();
        for index in 0..BATCH_SALES {
            let n = self.numbers.take();
            self.request.write(index, n, &sold_at);
            self.sent.push(n);
        }
        self.request.bytes()
    }

    fn judge(&mut self, answer: &Answer<'_>) -> Result<Verdict> {
        if is_overload(answer) {
            return Ok(Verdict::Overloaded);
        }
        let mut granted = self.members.subsidy.find_iter(answer.body).map(|at| {
            let after = at + self.members.subsidy.needle().len();
            answer.body.get(after..).and_then(fen)
        });
        let amounts = self.sent.iter().all(|n| granted.next() == Some(Some(sale::subsidy_fen(*n))));
        let made = self.created.find_iter(answer.body).count();
        if answer.status != 200 || made != BATCH_SALES || !amounts {
            bail!(unexpected(answer, &format!("{BATCH_SALES} claims made, in order")));
        }
        self.granted_fen += self.sent.iter().map(|n| sale::subsidy_fen(*n)).sum::<u64>();
        Ok(Verdict::Items(BATCH_SALES as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 201 Created\r\n\r\n";

    fn claims() -> Claims {
        Claims::new("token", Trust::Check, Shares::default(), 500_000_000_000)
    }

    fn answer_to(claims: &Claims, id: &str, subsidy_fen: u64) -> String {
        let sale: Value = serde_json::from_slice(claims.request.body()).unwrap();
        let yuan = |fen: u64| format!("{}.{:02}", fen / 100, fen % 100);
        format!(
            r#"{{"claim_id":"{id}","status":"redeemed","order_no":{},"order_line":1,"category":"smart_glasses","price":{},
               "subsidy":"{}","payable":"{}","region_code":{},"device":{},
               "determination":{{"considered":[{{"chosen":true,"amount":"{}"}}]}}}}"#,
            sale["order_no"],
            sale["price"],
            yuan(subsidy_fen),
            yuan(sale::price_fen(claims.n) - subsidy_fen),
            sale["region_code"],
            sale["device"],
            yuan(subsidy_fen),
        )
    }

    fn judge(claims: &mut Claims, id: &str, subsidy_fen: u64) -> Result<Verdict> {
        let body = answer_to(claims, id, subsidy_fen);
        claims.judge(&Answer { status: 201, head: HEAD, body: body.as_bytes() })
    }

    const ID: &str = "0199d0c0-0000-7000-8000-000000000007";

    #[test]
    fn the_right_amount_passes_and_a_fen_more_fails() {
        let mut claims = claims();
        for _ in 0..600 {
            claims.next(Instant::now());
            let right = sale::subsidy_fen(claims.n);
            assert_eq!(judge(&mut claims, ID, right).unwrap(), Verdict::Items(1));
        }
        claims.next(Instant::now());
        let wrong = sale::subsidy_fen(claims.n) + 1;
        assert!(judge(&mut claims, ID, wrong).is_err());
    }

    #[test]
    fn an_id_given_twice_is_found_at_the_end() {
        let (mut one, mut other) = (claims(), claims());
        for claims in [&mut one, &mut other] {
            claims.next(Instant::now());
            let right = sale::subsidy_fen(claims.n);
            judge(claims, ID, right).unwrap();
        }
        assert!(settle([&one]).is_ok());
        assert!(settle([&one, &other]).is_err());
    }

    #[test]
    fn a_contested_device_paid_twice_is_found_at_the_end() {
        let (mut one, mut other) = (claims(), claims());
        one.made.contested.push(5);
        other.made.contested.push(6);
        assert!(settle([&one, &other]).is_ok());
        other.made.contested.push(5);
        assert!(settle([&one, &other]).is_err());
    }

    #[test]
    fn shares_are_kept_and_wrong_answers_to_hostile_requests_fail() {
        let shares = Shares { duplicates: 100, hostile: 100 };
        let mut claims = Claims::new("abcdefghijklmnop", Trust::Check, shares, 500_000_000_000);
        let mut hostile = 0;
        for _ in 0..2000 {
            claims.next(Instant::now());
            if matches!(claims.sent, Sent::ForgedToken | Sent::WrongDocument | Sent::NotJson) {
                hostile += 1;
                let made = Answer { status: 201, head: HEAD, body: br#"{"claim_id":"x"}"# };
                assert!(claims.judge(&made).is_err(), "a claim was made for {:?}", claims.sent);
            } else if claims.sent == Sent::Sale {
                let right = sale::subsidy_fen(claims.n);
                judge(&mut claims, ID, right).unwrap();
            }
        }
        assert!((100..300).contains(&hostile), "{hostile}");
    }

    #[test]
    fn amounts_are_read_to_the_fen() {
        assert_eq!(fen(br#"600.00","#), Some(60_000));
        assert_eq!(fen(br#"1234.56""#), Some(123_456));
        assert_eq!(fen(br#"6""#), None);
        assert_eq!(fen(br#"6,00""#), None);
    }
}
