//! The ledger on a journal in memory that can be made to fail, to lose answers and to be written by
//! another process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, future};
use proptest::prelude::*;

use super::KeyRing;
use super::apply::{self, Decision};
use super::command::*;
use super::entry::{Algorithm, ClaimMade, Effects, Entry, Event, Hash, Key, ProgrammeFile, VERSION};
use super::snapshot::{Snapshot, Snapshots};
use super::state::image::{Image, ImageFault};
use super::state::{Part, State, Undo, activating};
use super::writer::{self, Ledger, Observer, Writer};
use crate::claim::*;
use crate::clock::Clock;
use crate::identity::*;
use crate::journal::{Head, Journal, JournalError, Reader, Row};
use crate::limits;
use crate::money::Fen;
use crate::programme::{self, Category, ProgrammeHistory, ProgrammeId};
use crate::rules;
use crate::time::{Day, Timestamp};

const JOURNAL_ID: Key = Key::new([7; 16]);

/// What the next append shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// None; the next one is for the append after.
    None,
    /// Refuse; nothing is written.
    Refuse,
    /// Write, but say that it is not known.
    LoseAnswer,
    /// Refuse, and be unreadable too.
    Unreadable,
}

#[derive(Clone, Debug, Default)]
struct Memory {
    rows: Arc<Mutex<Vec<Row>>>,
    faults: Arc<Mutex<Vec<Fault>>>,
    unreadable: Arc<Mutex<bool>>,
    /// How many looks at the head shall fail.
    failing_looks: Arc<Mutex<u32>>,
    gate: Arc<Gate>,
    /// How many rows each append had.
    appends: Arc<Mutex<Vec<usize>>>,
    /// Whether no other process can append.
    is_private: bool,
}

/// Lets appends through one by one where it is closed.
#[derive(Debug, Default)]
struct Gate {
    /// How many may pass; any number where none is given.
    may_pass: Mutex<Option<usize>>,
    changed: Condvar,
    /// How many have come to it.
    arrivals: AtomicUsize,
}

impl Gate {
    fn set(&self, may_pass: Option<usize>) {
        *self.may_pass.lock().unwrap() = may_pass;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.arrivals.fetch_add(1, Ordering::SeqCst);
        let closed = |may_pass: &mut Option<usize>| *may_pass == Some(0);
        let mut may_pass = self.changed.wait_while(self.may_pass.lock().unwrap(), closed).unwrap();
        *may_pass = may_pass.map(|count| count - 1);
    }
}

impl Memory {
    fn private() -> Self {
        Self { is_private: true, ..Self::default() }
    }

    fn head_now(&self) -> Head {
        let rows = self.rows.lock().unwrap();
        rows.last().map_or(Head::EMPTY, |row| Head { position: row.position, hash: row.hash })
    }

    fn read_now(&self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        if *self.unreadable.lock().unwrap() {
            return Err(JournalError::Unknown("unreadable".into()));
        }
        Ok(self.rows.lock().unwrap().iter().skip(after as usize).take(limit).cloned().collect())
    }
}

impl Journal for Memory {
    fn head(&mut self) -> Result<Head, JournalError> {
        let mut failing = self.failing_looks.lock().unwrap();
        match failing.checked_sub(1) {
            Some(fewer) => *failing = fewer,
            None => return Ok(self.head_now()),
        }
        Err(JournalError::Unknown("the connection was reset".into()))
    }

    fn append(&mut self, expected: Head, rows: &[Row]) -> Result<(), JournalError> {
        self.gate.pass();
        self.appends.lock().unwrap().push(rows.len());
        if self.head_now() != expected {
            return Err(JournalError::Moved);
        }
        let fault = self.faults.lock().unwrap().pop();
        match fault {
            Some(Fault::Refuse) => return Err(JournalError::Unknown("no space".into())),
            Some(Fault::Unreadable) => {
                *self.unreadable.lock().unwrap() = true;
                return Err(JournalError::Unknown("gone".into()));
            }
            Some(Fault::LoseAnswer | Fault::None) | None => {}
        }
        self.rows.lock().unwrap().extend_from_slice(rows);
        match fault {
            Some(Fault::LoseAnswer) => Err(JournalError::Unknown("the answer was lost".into())),
            _ => Ok(()),
        }
    }

    fn read(&mut self, after: u64, limit: usize) -> Result<Vec<Row>, JournalError> {
        self.read_now(after, limit)
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        !self.is_private
    }
}

impl Reader for Memory {
    fn rows<'a>(&'a self, positions: &'a [u64]) -> BoxFuture<'a, Result<Vec<Row>, JournalError>> {
        let rows = self.rows.lock().unwrap();
        let found = positions.iter().map(|position| rows[*position as usize - 1].clone()).collect();
        future::ready(Ok(found)).boxed()
    }

    fn after(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Row>, JournalError>> {
        future::ready(self.read_now(after, limit)).boxed()
    }
}

struct Deaf;

impl Observer for Deaf {
    fn appended(&mut self, _: &[Arc<Stored>]) {}
    fn batch(&mut self, _: usize, _: Duration) {}
}

fn open(memory: &Memory, clock: Clock) -> (Ledger, Writer) {
    let reader = Arc::new(memory.clone());
    Ledger::open(Box::new(memory.clone()), reader, clock, JOURNAL_ID, Box::new(Deaf)).unwrap()
}

fn ask(ledger: &Ledger, command: Command) -> Result<Outcome, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(ledger.submit(command))
}

fn shipped() -> Vec<ProgrammeFile> {
    programme::shipped().into_iter().map(|(name, text)| ProgrammeFile { name, text }).collect()
}

/// The same, with measure 25 keeping a person's entitlement used up when the goods come back.
fn consuming() -> Vec<ProgrammeFile> {
    let mut files = shipped();
    assert!(files[0].text.contains("\"restored\""));
    files[0].text = files[0].text.replace("\"restored\"", "\"consumed\"");
    files
}

fn retailer() -> Uscc {
    Uscc::parse(&generate::uscc_from(1)).unwrap()
}

fn fund(budget: i64) -> Command {
    Command::OpenFund(Box::new(OpenFund {
        fund_id: FundId::parse("zj-ai-25.330100").unwrap(),
        programme: ProgrammeId::parse("zj-ai-25").unwrap(),
        region_code: RegionCode::parse("330100").unwrap(),
        from: Day::parse("2025-05-31").unwrap(),
        to: Day::parse("2027-12-31").unwrap(),
        budget: Fen::new(budget),
        by: "officer".into(),
        request: Key::new([1; 16]),
        fingerprint: Key::new([2; 16]),
    }))
}

/// A claim for `person` on `device` under the idempotency key number `request`.
fn draft(request: u64, person: u64, device: u64, mode: Mode, sold_at: Timestamp) -> Draft {
    let ring = KeyRing::new(JOURNAL_ID);
    let sn = SerialNumber::parse(&format!("SN{device}")).unwrap();
    let device =
        Device { sn, barcode: Gtin::parse(&generate::gtin13_from(9)).unwrap(), imei: Default::default() };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&person.to_be_bytes());
    let digest = PersonDigest::new(digest);
    let keys = DraftKeys {
        request: ring.request(&retailer(), None, &request.to_string()),
        fingerprints: [("hmac-sha256/k1".into(), ring.trade_in(&device.sn))].into_iter().collect(),
        order_line: ring.order_line(
            &retailer(),
            &Reference::parse(&format!("O{request}")).unwrap(),
            OrderLine::default(),
        ),
        persons: [ring.person(&digest, "smart_glasses", sold_at.year())].into_iter().collect(),
        device: ring.device(&device),
        trade_in: None,
    };
    let sale = Sale {
        order_no: Reference::parse(&format!("O{request}")).unwrap(),
        order_line: None,
        category: Category::parse("smart_glasses").unwrap(),
        price: Fen::new(400_000),
        region_code: RegionCode::parse("330106").unwrap(),
        sold_at,
        consumer: Consumer { id_type: IdType::ResidentId, key: "hmac-sha256/k1".into(), digest },
        device: Some(device),
        sale_channel: SaleChannel::Offline,
        store_code: None,
        terminal_no: None,
        invoice_no: None,
        energy_grade: None,
        trade_in: None,
    };
    Draft {
        by: Submitter { retailer: retailer(), platform: None },
        mode,
        sale: Arc::new(sale),
        hold_minutes: None,
        expected_subsidy: None,
        accept_programme: None,
        late: false,
        received_elsewhere: false,
        keys,
        judgement: Err(rules::Refused::CategoryNotEligible(None)),
        // Under no activation: the ledger judges by itself.
        judged_at: 0,
        hash_keys: Arc::default(),
        is_twin: false,
        entropy: u128::from(request) << 13,
    }
}

fn make(request: u64, person: u64, device: u64, mode: Mode) -> Command {
    Command::Make(Box::new(draft(request, person, device, mode, Clock::default().now())))
}

fn claim_at(outcome: Result<Outcome, Failure>) -> ClaimAt {
    match outcome {
        Ok(Outcome::Claim(at)) => at,
        other => panic!("not a claim: {other:?}"),
    }
}

fn digest(ledger: &Ledger) -> Hash {
    match ask(ledger, Command::Digest) {
        Ok(Outcome::Digest { digest, .. }) => digest,
        other => panic!("no digest: {other:?}"),
    }
}

#[test]
fn a_failed_append_leaves_nothing_behind_and_the_same_request_succeeds_later() {
    let memory = Memory::private();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(60_000)).unwrap();
    let before = digest(&ledger);

    memory.faults.lock().unwrap().push(Fault::Refuse);
    assert!(matches!(ask(&ledger, make(1, 1, 1, Mode::Redeem)), Err(Failure::Unavailable)));
    assert_eq!(digest(&ledger), before, "the state is as if nothing had been asked");

    let made = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert!(!made.unchanged);
    let refused = ask(&ledger, make(2, 2, 2, Mode::Redeem));
    let Err(Failure::Refused(refusal)) = refused else { panic!("the fund is spent: {refused:?}") };
    assert!(matches!(*refusal, Refusal::FundExhausted { .. }));
    writer.stop();
}

#[test]
fn an_append_whose_answer_was_lost_is_found_and_answered() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    memory.faults.lock().unwrap().push(Fault::LoseAnswer);
    let made = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    let again = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert_eq!((made.position, made.unchanged), (again.position, false));
    assert!(again.unchanged);
    writer.stop();
}

#[test]
fn entries_whose_append_failed_are_sent_again_where_others_may_have_appended() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    *memory.faults.lock().unwrap() = vec![Fault::Refuse, Fault::Refuse];
    let made = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert!(!made.unchanged);
    assert_eq!(memory.head_now().position, made.position);
    writer.stop();
}

#[test]
fn a_shared_journal_that_is_away_is_found_again_without_being_asked_for() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    memory.faults.lock().unwrap().push(Fault::Unreadable);
    assert!(matches!(ask(&ledger, make(1, 1, 1, Mode::Redeem)), Err(Failure::Unavailable)));
    for _ in 0..1000 {
        assert!(matches!(ask(&ledger, Command::Funds), Err(Failure::Unavailable)), "nobody waits");
    }
    *memory.unreadable.lock().unwrap() = false;
    let began = std::time::Instant::now();
    while ledger.trouble().is_some() {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    writer.stop();
}

#[test]
fn while_the_journal_cannot_be_read_nothing_is_answered_and_then_everything_is() {
    let memory = Memory::private();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    memory.faults.lock().unwrap().push(Fault::Unreadable);
    assert!(matches!(ask(&ledger, make(1, 1, 1, Mode::Redeem)), Err(Failure::Unavailable)));
    assert!(matches!(ask(&ledger, Command::Funds), Err(Failure::Unavailable)));
    *memory.unreadable.lock().unwrap() = false;
    assert!(matches!(ask(&ledger, Command::Funds), Ok(Outcome::Funds { .. })));
    claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    writer.stop();
}

#[test]
fn a_look_that_failed_is_taken_again_before_anything_is_answered() {
    let memory = Memory::default();
    let (one, first) = open(&memory, Clock::default());
    ask(&one, Command::Activate(shipped())).unwrap();
    ask(&one, fund(600_000)).unwrap();
    let (two, second) = open(&memory, Clock::default());
    claim_at(ask(&one, make(1, 1, 1, Mode::Redeem)));
    // What the other has appended is known, although the look for it failed at first.
    *memory.failing_looks.lock().unwrap() = 1;
    let Ok(Outcome::Digest { position, .. }) = ask(&two, Command::Digest) else { panic!("a digest") };
    assert_eq!(position, memory.head_now().position);
    claim_at(ask(&one, make(2, 2, 2, Mode::Redeem)));
    *memory.failing_looks.lock().unwrap() = 1;
    let again = claim_at(ask(&two, make(2, 2, 2, Mode::Redeem)));
    assert!(again.unchanged);
    first.stop();
    second.stop();
}

#[test]
fn a_command_whose_entry_cannot_be_folded_fails_alone() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    let mut impossible = draft(2, 2, 2, Mode::Redeem, Clock::default().now());
    // More keys than a claim can have; no request gets as far as this.
    impossible.keys.device = (0..20).map(|number| Key::new([number + 100; 16])).collect();
    let commands =
        vec![make(1, 1, 1, Mode::Redeem), Command::Make(Box::new(impossible)), make(3, 3, 3, Mode::Redeem)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let outcomes = runtime.block_on(ledger.submit_all(commands)).unwrap();
    assert!(matches!(outcomes[1], Err(Failure::Unavailable)), "{outcomes:?}");
    let made = [claim_at(outcomes[0].clone()), claim_at(outcomes[2].clone())];
    assert_eq!(made[1].position, made[0].position + 1, "those beside it are made");
    let before = digest(&ledger);
    writer.stop();
    let (again, writer) = open(&memory, Clock::default());
    assert_eq!(digest(&again), before, "and nothing of it is left behind");
    writer.stop();
}

/// What is answered to `command` while `busy` is being written: whoever has to wait for the writer waits for
/// that, and gets nothing.
fn meanwhile(memory: &Memory, ledger: &Ledger, busy: Command, command: Command) -> Option<Outcome> {
    let at_gate = memory.gate.arrivals.load(Ordering::SeqCst);
    memory.gate.set(Some(0));
    let other = ledger.clone();
    let writing = std::thread::spawn(move || ask(&other, busy));
    while memory.gate.arrivals.load(Ordering::SeqCst) == at_gate {
        std::thread::sleep(Duration::from_millis(1));
    }
    let answered = soon(ledger, command);
    memory.gate.set(None);
    writing.join().unwrap().unwrap();
    answered
}

/// What is answered to `command` without waiting for anything.
fn soon(ledger: &Ledger, command: Command) -> Option<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let asked = async { tokio::time::timeout(Duration::from_millis(100), ledger.submit(command)).await };
    runtime.block_on(asked).ok().map(Result::unwrap)
}

/// The same while a claim of somebody else is being written.
fn at_once(memory: &Memory, ledger: &Ledger, command: Command) -> Option<Outcome> {
    let number = 1_000_000 + ledger.position();
    meanwhile(memory, ledger, make(number, number, number, Mode::Redeem), command)
}

fn refusal(outcome: Result<Outcome, Failure>) -> Refusal {
    match outcome {
        Err(Failure::Refused(refusal)) => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn cancel(number: u64) -> Command {
    let request = draft(number, 0, 0, Mode::Redeem, Clock::default().now()).keys.request;
    Command::Cancel { request }
}

/// A ledger of its own with a fund.
fn funded() -> (Memory, Ledger, Writer) {
    let memory = Memory::private();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(100_000_000_000)).unwrap();
    (memory, ledger, writer)
}

#[test]
fn a_claim_asked_for_again_is_answered_at_once_where_nobody_else_appends() {
    let (memory, ledger, writer) = funded();
    let made = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    let again = claim_at(at_once(&memory, &ledger, make(1, 1, 1, Mode::Redeem)).ok_or(Failure::Overloaded));
    assert_eq!((again.position, again.unchanged), (made.position, true));
    assert_eq!(again.fresh, made.fresh, "the entry itself");

    let other_content = at_once(&memory, &ledger, make(1, 1, 2, Mode::Redeem));
    assert!(other_content.is_none(), "the state has to say what is wrong: {other_content:?}");
    let refused = refusal(ask(&ledger, make(1, 1, 2, Mode::Redeem)));
    assert!(matches!(refused, Refusal::IdempotencyKeyReused));
    writer.stop();
}

#[test]
fn a_claim_is_not_answered_again_before_it_is_durable_and_in_the_journals_head() {
    let (memory, ledger, writer) = funded();
    let answered = meanwhile(&memory, &ledger, make(1, 1, 1, Mode::Redeem), make(1, 1, 1, Mode::Redeem));
    assert!(answered.is_none(), "its entry is not durable: {answered:?}");
    writer.stop();

    // Held up after it was written, before anybody is told.
    struct Slow(Arc<Gate>);
    impl Observer for Slow {
        fn appended(&mut self, _: &[Arc<Stored>]) {
            self.0.pass();
        }
        fn batch(&mut self, _: usize, _: Duration) {}
    }
    let telling = Arc::new(Gate::default());
    let reader = Arc::new(memory.clone());
    let observer = Box::new(Slow(Arc::clone(&telling)));
    let (ledger, writer) =
        Ledger::open(Box::new(memory.clone()), reader, Clock::default(), JOURNAL_ID, observer).unwrap();
    telling.set(Some(0));
    let other = ledger.clone();
    let first = std::thread::spawn(move || ask(&other, make(2, 2, 2, Mode::Redeem)));
    while telling.arrivals.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let answered = soon(&ledger, make(2, 2, 2, Mode::Redeem));
    assert!(answered.is_none(), "the journal's head is still before it: {answered:?}");
    telling.set(None);
    claim_at(first.join().unwrap());
    writer.stop();
}

#[test]
fn what_a_request_stands_for_once_its_claim_has_moved_is_left_to_the_state() {
    let (memory, ledger, writer) = funded();
    let held = claim_at(ask(&ledger, make(1, 1, 1, Mode::Hold)));
    let Event::ClaimMade(made) = &held.fresh.unwrap().entry.event else { panic!("a claim") };
    let by = Submitter { retailer: retailer(), platform: None };
    ask(&ledger, Command::Release { by, claim_id: made.claim_id }).unwrap();
    assert!(at_once(&memory, &ledger, make(1, 1, 1, Mode::Hold)).is_none());
    let again = claim_at(ask(&ledger, make(1, 1, 1, Mode::Hold)));
    assert_eq!((again.position, again.unchanged), (held.position, true), "it gets the first answer");

    claim_at(ask(&ledger, make(2, 2, 2, Mode::Redeem)));
    let answered = meanwhile(&memory, &ledger, cancel(2), make(2, 2, 2, Mode::Redeem));
    assert!(answered.is_none(), "its cancellation may be in the journal already: {answered:?}");
    assert!(matches!(refusal(ask(&ledger, make(2, 2, 2, Mode::Redeem))), Refusal::Cancelled));
    writer.stop();
}

#[test]
fn a_cancellation_that_came_before_its_claim_was_written_is_not_passed_over() {
    // Behind a claim alone it is decided when that is written, on top of many while they are.
    for count in [1, limits::WRITER_SENT_COMMANDS_MIN as u64] {
        let (memory, ledger, writer) = funded();
        let at_gate = memory.gate.arrivals.load(Ordering::SeqCst);
        let arrived = |count| {
            while memory.gate.arrivals.load(Ordering::SeqCst) < at_gate + count {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        memory.gate.set(Some(0));
        let other = ledger.clone();
        let making = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let claims = (1..=count).map(|number| make(number, number, number, Mode::Redeem)).collect();
            runtime.block_on(other.submit_all(claims)).unwrap()
        });
        arrived(1);
        let other = ledger.clone();
        let cancelling = std::thread::spawn(move || ask(&other, cancel(1)));
        std::thread::sleep(Duration::from_millis(50));
        memory.gate.set(Some(1));
        making.join().unwrap().into_iter().for_each(|outcome| drop(claim_at(outcome)));
        arrived(2);
        let answered = soon(&ledger, make(1, 1, 1, Mode::Redeem));
        assert!(answered.is_none(), "its cancellation is being written: {answered:?}");
        memory.gate.set(None);
        cancelling.join().unwrap().unwrap();
        assert!(matches!(refusal(ask(&ledger, make(1, 1, 1, Mode::Redeem))), Refusal::Cancelled));
        writer.stop();
    }
}

#[test]
fn a_cancellation_that_was_found_in_the_journal_later_counts() {
    let (memory, ledger, writer) = funded();
    claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    memory.faults.lock().unwrap().push(Fault::LoseAnswer);
    *memory.unreadable.lock().unwrap() = true;
    assert!(matches!(ask(&ledger, cancel(1)), Err(Failure::Unavailable)));
    assert!(matches!(ask(&ledger, make(1, 1, 1, Mode::Redeem)), Err(Failure::Unavailable)));
    *memory.unreadable.lock().unwrap() = false;
    ask(&ledger, Command::Funds).unwrap();
    for _ in 0..2 {
        assert!(matches!(refusal(ask(&ledger, make(1, 1, 1, Mode::Redeem))), Refusal::Cancelled));
    }
    writer.stop();
}

#[test]
fn while_it_is_not_known_what_was_appended_no_claim_is_answered_again() {
    let (memory, ledger, writer) = funded();
    claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    memory.faults.lock().unwrap().push(Fault::Unreadable);
    assert!(matches!(ask(&ledger, make(2, 2, 2, Mode::Redeem)), Err(Failure::Unavailable)));
    assert!(matches!(ask(&ledger, make(1, 1, 1, Mode::Redeem)), Err(Failure::Unavailable)));
    *memory.unreadable.lock().unwrap() = false;
    assert!(claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem))).unchanged);
    writer.stop();
}

#[test]
fn a_claim_asked_for_again_without_a_hash_key_of_the_journal_is_refused() {
    let (_, ledger, writer) = funded();
    claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    let (key, check) = ("hmac-sha256/k2".into(), "another".into());
    ask(&ledger, Command::IntroduceHashKey { key, check }).unwrap();
    assert!(matches!(refusal(ask(&ledger, make(1, 1, 1, Mode::Redeem))), Refusal::HashKeyMissing));
    writer.stop();
}

#[test]
fn a_shared_journal_is_looked_at_before_a_claim_is_answered_again() {
    let memory = Memory::default();
    let (one, first) = open(&memory, Clock::default());
    ask(&one, Command::Activate(shipped())).unwrap();
    ask(&one, fund(100_000_000)).unwrap();
    claim_at(ask(&one, make(1, 1, 1, Mode::Redeem)));
    let (two, second) = open(&memory, Clock::default());
    ask(&two, cancel(1)).unwrap();
    let refused = refusal(ask(&one, make(1, 1, 1, Mode::Redeem)));
    assert!(matches!(refused, Refusal::Cancelled), "the other process has cancelled it: {refused:?}");
    first.stop();
    second.stop();
}

#[test]
fn the_last_entries_are_kept_and_their_requests_with_them() {
    let (memory, ledger, writer) = funded();
    let first = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let many = |numbers: std::ops::Range<u64>| {
        let commands = numbers.map(|number| make(number, number, number, Mode::Redeem)).collect();
        runtime.block_on(ledger.submit_all(commands)).unwrap().into_iter().map(claim_at).last().unwrap()
    };
    let kept = limits::RECENT_ENTRIES as u64;
    let mut last = first.position;
    for number in (2..=kept).step_by(500) {
        last = many(number..(number + 500).min(kept + 1)).position;
    }
    assert_eq!(last, first.position + kept - 1, "as many as are kept, the first of them the oldest");
    let oldest = at_once(&memory, &ledger, make(1, 1, 1, Mode::Redeem));
    assert_eq!(claim_at(oldest.ok_or(Failure::Overloaded)).position, first.position);
    // The claim beside it has taken its place.
    assert!(at_once(&memory, &ledger, make(1, 1, 1, Mode::Redeem)).is_none());
    let again = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert_eq!((again.position, again.fresh.is_none()), (first.position, true), "the journal has it");
    writer.stop();
}

/// Has a batch as big as can be written while a claim is decided on top of it, the claim being for a
/// device of the batch; what happens to the batch's append is `fault`, and another process may come first.
/// Gives what became of the batch's claim, of the one on top and of a question that came with it.
fn on_top_of_a_batch(fault: Fault, another_comes_first: bool) -> [Result<Outcome, Failure>; 3] {
    let memory = Memory { is_private: !another_comes_first, ..Memory::default() };
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(100_000_000)).unwrap();
    let beside = Memory { gate: Arc::default(), faults: Arc::default(), ..memory.clone() };
    let (another, other_writer) = open(&beside, Clock::default());
    let before = ledger.position();

    memory.gate.set(Some(0));
    *memory.faults.lock().unwrap() = vec![fault, Fault::None];
    let asked = |commands: Vec<Command>| {
        let ledger = ledger.clone();
        let asked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(ledger.submit_all(commands)).unwrap()
        });
        std::thread::sleep(Duration::from_millis(50));
        asked
    };
    let first = asked(vec![make(1, 1, 1, Mode::Redeem)]);
    assert_eq!(ledger.queued(), 0, "it is being written");
    let mut bulk = vec![make(2, 2, 2, Mode::Redeem)];
    bulk.resize_with(limits::WRITER_BATCH_COMMANDS_MAX, || Command::Funds);
    let batch = asked(bulk);
    let on_top = asked(vec![make(3, 3, 2, Mode::Redeem), Command::Funds]);
    memory.gate.set(Some(1));
    claim_at(first.join().unwrap().remove(0));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ledger.queued(), 0, "all are decided");
    assert!(!batch.is_finished() && !on_top.is_finished(), "and nobody is answered before it is written");
    assert_eq!(ledger.position(), before + 1, "nor told of");

    if another_comes_first {
        claim_at(ask(&another, make(4, 4, 4, Mode::Redeem)));
    }
    memory.gate.set(None);
    let (mut batch, mut on_top) = (batch.join().unwrap(), on_top.join().unwrap());
    let after = digest(&ledger);
    writer.stop();
    other_writer.stop();
    let (again, writer) = open(&memory, Clock::default());
    assert_eq!(digest(&again), after, "the state is what the journal gives");
    writer.stop();
    [batch.swap_remove(0), on_top.swap_remove(0), on_top.swap_remove(0)]
}

#[test]
fn while_an_append_hangs_no_more_holds_expire_on_top_of_it_than_one_batch_may_have() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(100_000_000)).unwrap();
    memory.gate.set(Some(0));
    let holds = 3 * limits::WRITER_BATCH_EXPIRIES_MAX;
    let over_at_once = |number: u64| {
        let mut hold = draft(number, number, number, Mode::Hold, Clock::default().now());
        hold.hold_minutes = Some(0);
        Command::Make(Box::new(hold))
    };
    let commands: Vec<Command> = (0..holds as u64).map(over_at_once).collect();
    let making = {
        let ledger = ledger.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(ledger.submit_all(commands)).unwrap()
        })
    };
    std::thread::sleep(Duration::from_millis(200));
    memory.gate.set(None);
    making.join().unwrap().into_iter().for_each(|made| drop(claim_at(made)));
    let began = std::time::Instant::now();
    while ledger.position() < 3 + 2 * holds as u64 {
        assert!(began.elapsed() < Duration::from_secs(10), "the holds expire: {}", ledger.position());
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.stop();
    let appends = memory.appends.lock().unwrap();
    let expired: Vec<usize> = appends.iter().copied().skip_while(|rows| *rows != holds).skip(1).collect();
    assert_eq!(expired.iter().sum::<usize>(), holds, "{appends:?}");
    assert!(expired.iter().all(|rows| *rows <= limits::WRITER_BATCH_EXPIRIES_MAX), "{appends:?}");
}

#[test]
fn while_nothing_can_be_appended_a_hold_that_is_over_is_not_tried_again_and_again() {
    let memory = Memory::private();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(100_000_000)).unwrap();
    let mut hold = draft(1, 1, 1, Mode::Hold, Clock::default().now());
    hold.hold_minutes = Some(0);
    // Faults are taken from the end: the hold is made.
    let mut faults = vec![Fault::Refuse; 10_000];
    faults.push(Fault::None);
    *memory.faults.lock().unwrap() = faults;
    claim_at(ask(&ledger, Command::Make(Box::new(hold))));
    let before = memory.appends.lock().unwrap().len();
    std::thread::sleep(Duration::from_millis(1500));
    let tried = memory.appends.lock().unwrap().len() - before;
    assert!((1..=3).contains(&tried), "{tried} times in a second and a half");
    memory.faults.lock().unwrap().clear();
    let began = std::time::Instant::now();
    while ledger.position() < 5 {
        assert!(began.elapsed() < Duration::from_secs(10), "it expires when it can");
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.stop();
}

fn redeemed(funds: Result<Outcome, Failure>) -> Fen {
    match funds {
        Ok(Outcome::Funds { funds, .. }) => funds[0].balance.redeemed,
        other => panic!("no funds: {other:?}"),
    }
}

fn is_taken(outcome: &Result<Outcome, Failure>) -> bool {
    matches!(outcome, Err(Failure::Refused(refusal)) if matches!(**refusal, Refusal::DeviceAlreadySubsidised { .. }))
}

#[test]
fn what_is_decided_on_top_of_a_batch_is_answered_once_both_are_written() {
    let [batch, on_top, funds] = on_top_of_a_batch(Fault::None, false);
    claim_at(batch);
    assert!(is_taken(&on_top), "{on_top:?}");
    assert_eq!(redeemed(funds), Fen::new(120_000));
}

#[test]
fn what_was_decided_on_top_of_a_batch_that_is_not_written_is_decided_anew() {
    let [batch, on_top, funds] = on_top_of_a_batch(Fault::Refuse, false);
    assert!(matches!(batch, Err(Failure::Unavailable)), "{batch:?}");
    claim_at(on_top);
    assert_eq!(redeemed(funds), Fen::new(120_000));
}

#[test]
fn what_was_decided_on_top_of_a_batch_whose_answer_was_lost_stands_on_it() {
    let [batch, on_top, funds] = on_top_of_a_batch(Fault::LoseAnswer, false);
    claim_at(batch);
    assert!(is_taken(&on_top), "{on_top:?}");
    assert_eq!(redeemed(funds), Fen::new(120_000));
}

#[test]
fn what_was_decided_before_another_process_wrote_is_decided_anew_in_order() {
    let [batch, on_top, funds] = on_top_of_a_batch(Fault::None, true);
    claim_at(batch);
    assert!(is_taken(&on_top), "{on_top:?}");
    assert_eq!(redeemed(funds), Fen::new(180_000));
}

#[test]
fn two_writers_on_one_journal_never_claim_a_device_twice_and_their_folds_agree() {
    let memory = Memory::default();
    let (one, first) = open(&memory, Clock::default());
    ask(&one, Command::Activate(shipped())).unwrap();
    ask(&one, fund(100_000_000)).unwrap();
    let (two, second) = open(&memory, Clock::default());
    let claims: Vec<_> = (0..40)
        .map(|number| {
            let ledger = if number % 2 == 0 { one.clone() } else { two.clone() };
            std::thread::spawn(move || ask(&ledger, make(number, number, number / 4, Mode::Redeem)))
        })
        .collect();
    let made = claims
        .into_iter()
        .filter(|_| true)
        .map(|thread| thread.join().unwrap())
        .filter(Result::is_ok)
        .count();
    assert_eq!(made, 10, "each of ten devices once");
    assert_eq!(digest(&one), digest(&two));
    first.stop();
    second.stop();
}

#[test]
fn a_dead_hold_is_expired_by_whoever_wants_its_device() {
    let memory = Memory::default();
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    let held = claim_at(ask(&ledger, make(1, 1, 1, Mode::Hold)));
    writer.stop();
    let ahead = Clock::ahead_by(31 * 60_000);
    let (ledger, writer) = open(&memory, ahead);
    let sold = Command::Make(Box::new(draft(2, 1, 1, Mode::Redeem, ahead.now())));
    claim_at(ask(&ledger, sold));
    let id = match &held.fresh.unwrap().entry.event {
        Event::ClaimMade(made) => made.claim_id,
        other => panic!("{other:?}"),
    };
    let at = claim_at(ask(&ledger, Command::Locate(id)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert_eq!(runtime.block_on(ledger.view(&at)).unwrap().status(), Status::Expired);
    writer.stop();
}

#[test]
fn a_difference_in_one_claim_shows_in_the_digest_of_its_part_alone() {
    let mut state = State::default();
    let now = Timestamp::parse("2026-06-01T10:00:00+08:00").unwrap();
    let (mut undo, mut entries) = (Undo::default(), Vec::new());
    for event in
        [Event::JournalOpened { journal_id: JOURNAL_ID }, Event::ProgrammesActivated { files: shipped() }]
    {
        enter(&mut state, event, now, &mut undo, &mut entries);
    }
    step(&mut state, &fund(100_000_000), now, &mut undo, &mut entries);
    let count = crate::limits::DIGEST_CLAIMS_MAX as u64 + 10;
    for number in 0..count {
        let hold = Command::Make(Box::new(draft(number, number, number, Mode::Hold, now)));
        step(&mut state, &hold, now, &mut undo, &mut entries);
    }
    let last = state.last_claim_id().unwrap();
    let (one, two) = (Part::Claims { first: 0 }, Part::Claims { first: crate::limits::DIGEST_CLAIMS_MAX });
    let before = [one, two, Part::Rest].map(|part| state.digest_of(part));
    let release = Command::Release { by: Submitter { retailer: retailer(), platform: None }, claim_id: last };
    step(&mut state, &release, now, &mut undo, &mut entries);
    let after = [one, two, Part::Rest].map(|part| state.digest_of(part));
    assert_eq!(before[0], after[0], "the first part has nothing to do with it");
    assert_ne!(before[1], after[1]);
    assert_ne!(before[2], after[2], "the fund's money and the head");
    assert_ne!(state.digest_of(one), state.digest_of(two));
}

/// A small world to fold in: what happens, by number.
fn commands() -> impl Strategy<Value = Vec<(u8, u64, u64, i64)>> {
    prop::collection::vec((0_u8..6, 0_u64..12, 0_u64..8, 0_i64..40), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn taking_back_what_was_folded_gives_the_state_before_and_folding_again_the_state_after(
        first in commands(), second in commands(), is_consumed in any::<bool>()
    ) {
        let mut state = State::default();
        let mut now = Timestamp::parse("2026-06-01T10:00:00+08:00").unwrap();
        let mut entries = Vec::new();
        let mut undo = Undo::default();
        let files = if is_consumed { consuming() } else { shipped() };
        let begin =
            vec![Event::JournalOpened { journal_id: JOURNAL_ID }, Event::ProgrammesActivated { files }];
        for event in begin {
            enter(&mut state, event, now, &mut undo, &mut entries);
        }
        step(&mut state, &fund(900_000), now, &mut undo, &mut entries);
        run(&mut state, &first, &mut now, &mut undo, &mut entries);
        undo.clear();
        let (before, kept) = (state.digest(), entries.len());
        let mut from_image = again(&image(&state), &entries).unwrap();
        prop_assert_eq!(from_image.digest(), before);
        prop_assert_eq!(image(&from_image), image(&state), "the same state gives the same image");
        run(&mut state, &second, &mut now, &mut undo, &mut entries);
        let after = state.digest();
        state.unfold(&mut undo);
        prop_assert_eq!(state.digest(), before);
        for (entry, hash) in &entries[kept..] {
            state.fold(entry, *hash, None).unwrap();
        }
        prop_assert_eq!(state.digest(), after);
        let mut fresh = State::default();
        for (entry, hash) in &entries {
            let bytes = entry.to_bytes().unwrap();
            prop_assert_eq!(Hash::of(&bytes), *hash);
            // As at start: no more is read than the state needs.
            let effects: Entry<Effects> = Entry::decode(entry.position, &bytes).unwrap();
            fresh.fold(&effects, *hash, None).unwrap();
        }
        prop_assert_eq!(fresh.digest(), after);

        // A state made of an image folds and takes back like the one it was made of.
        let mut undo = Undo::default();
        for (entry, hash) in &entries[kept..] {
            from_image.fold(entry, *hash, Some(&mut undo)).unwrap();
        }
        prop_assert_eq!(from_image.digest(), after);
        prop_assert_eq!(image(&from_image), image(&fresh));
        from_image.unfold(&mut undo);
        prop_assert_eq!(from_image.digest(), before);
        for (entry, hash) in &entries[kept..] {
            from_image.fold(entry, *hash, None).unwrap();
        }
        prop_assert_eq!(from_image.digest(), after);
    }
}

fn run(
    state: &mut State,
    steps: &[(u8, u64, u64, i64)],
    now: &mut Timestamp,
    undo: &mut Undo,
    entries: &mut Vec<(Entry, Hash)>,
) {
    let ring = KeyRing::new(JOURNAL_ID);
    let by = Submitter { retailer: retailer(), platform: None };
    for (kind, a, b, minutes) in steps {
        *now = now.plus_ms(minutes * 60_000);
        let existing = entries.iter().rev().skip(*a as usize).find_map(|(entry, _)| match &entry.event {
            Event::ClaimMade(made) => Some(made.claim_id),
            _ => None,
        });
        let command = match (kind, existing) {
            (0 | 1, _) => {
                let mode = if *kind == 0 { Mode::Hold } else { Mode::Redeem };
                Command::Make(Box::new(draft(a * 8 + b, *a, *b, mode, *now)))
            }
            (2, Some(claim_id)) => Command::Release { by: by.clone(), claim_id },
            (3, Some(claim_id)) => {
                Command::Redeem(Box::new(Redeem { by: by.clone(), claim_id, device: None, invoice_no: None }))
            }
            (4, Some(claim_id)) => {
                Command::Return { by: by.clone(), claim_id, reason: ReturnReason::Other, returned_at: *now }
            }
            _ => Command::Cancel { request: ring.request(&retailer(), None, &(a * 8 + b).to_string()) },
        };
        step(state, &command, *now, undo, entries);
    }
}

fn step(
    state: &mut State,
    command: &Command,
    now: Timestamp,
    undo: &mut Undo,
    entries: &mut Vec<(Entry, Hash)>,
) {
    loop {
        match apply::decide(state, command, now) {
            Decision::Enter(event) => return enter(state, event, now, undo, entries),
            Decision::ExpireFirst(claim) => {
                let event = apply::expire(state, claim, now).unwrap();
                enter(state, event, now, undo, entries);
            }
            _ => return,
        }
    }
}

fn enter(state: &mut State, event: Event, now: Timestamp, undo: &mut Undo, entries: &mut Vec<(Entry, Hash)>) {
    let head = state.head();
    let entry = Entry {
        v: VERSION,
        position: head.position + 1,
        alg: Algorithm::Sha256,
        prev: head.hash,
        at: now,
        event,
    };
    let bytes = entry.to_bytes().unwrap();
    let hash = Hash::of(&bytes);
    state.fold(&entry, hash, Some(undo)).unwrap();
    entries.push((entry, hash));
}

/// Folds entries made of these versions and events, one after the other.
fn folded(entries: &[(u16, Event)]) -> Result<State, &'static str> {
    let mut state = State::default();
    for (v, event) in entries {
        let head = state.head();
        let entry = Entry {
            v: *v,
            position: head.position + 1,
            alg: Algorithm::Sha256,
            prev: head.hash,
            at: Timestamp::from_ms(1_795_000_000_000),
            event: event.clone(),
        };
        let bytes = entry.to_bytes().unwrap();
        let before = state.digest();
        if let Err(error) = state.fold(&entry, Hash::of(&bytes), None) {
            assert_eq!((state.digest(), error.position), (before, entry.position), "nothing is changed");
            return Err(error.reason);
        }
        assert_eq!(Entry::decode(entry.position, &bytes).unwrap(), entry);
    }
    Ok(state)
}

#[test]
fn an_entry_in_another_format_than_its_journals_does_not_follow() {
    let opened = Event::JournalOpened { journal_id: JOURNAL_ID };
    let spent =
        |byte| Event::KeySpent { key: Key::new([byte; 16]), until: Timestamp::from_ms(1_796_000_000_000) };
    let raised = |version| Event::FormatActivated { version };
    let taken = |position| Event::SnapshotTaken { position, digest: Hash::of(b"") };
    let format = |entries: &[_]| folded(entries).map(|state| state.format());

    assert_eq!(State::default().format(), 0);
    assert_eq!(format(&[(1, opened.clone()), (1, spent(1))]), Ok(1));
    assert_eq!(format(&[(2, opened.clone()), (2, spent(1)), (2, taken(2))]), Ok(2));
    let upgraded =
        [(1, opened.clone()), (1, spent(1)), (2, raised(2)), (2, spent(2)), (2, taken(4)), (2, taken(0))];
    assert_eq!(format(&upgraded), Ok(2));

    let other = Err("it is not in the journal's format");
    assert_eq!(format(&[(1, opened.clone()), (2, spent(1))]), other);
    assert_eq!(format(&[(2, opened.clone()), (1, spent(1))]), other);
    assert_eq!(format(&[(1, opened.clone()), (2, raised(2)), (1, spent(1))]), other);
    assert_eq!(format(&[(1, opened.clone()), (1, raised(2))]), other, "it is the first in its format");
    assert_eq!(format(&[(1, opened.clone()), (2, taken(1))]), other);
    let later = Err("its kind came with a later format");
    assert_eq!(format(&[(1, opened.clone()), (1, taken(1))]), later);
    let not_raised = Err("it does not raise the journal's format");
    assert_eq!(format(&[(1, opened.clone()), (1, raised(1))]), not_raised);
    assert_eq!(format(&[(1, opened.clone()), (2, raised(2)), (2, raised(2))]), not_raised);
    assert_eq!(format(&[(2, opened.clone()), (2, raised(1))]), not_raised);
    let unknown = Err("it raises the format to one that is not known");
    assert_eq!(format(&[(1, opened.clone()), (VERSION + 1, raised(VERSION + 1))]), unknown);
    assert_eq!(format(&[(1, spent(1))]), Err("the journal is not open"));
    assert_eq!(format(&[(2, raised(2))]), Err("the journal is not open"));
    let ahead = Err("its snapshot is of what comes after it");
    assert_eq!(format(&[(2, opened.clone()), (2, taken(2))]), ahead);

    let digest = |entries: &[_]| folded(entries).unwrap().digest();
    assert_ne!(digest(&[(1, opened.clone())]), digest(&[(2, opened)]));
}

#[test]
fn a_ledger_writes_the_format_its_journal_has_and_raises_it_once() {
    let memory = Memory::private();
    let opened = Entry {
        v: 1,
        position: 1,
        alg: Algorithm::Sha256,
        prev: Hash::ZERO,
        at: Timestamp::from_ms(0),
        event: Event::JournalOpened { journal_id: JOURNAL_ID },
    };
    let bytes = opened.to_bytes().unwrap();
    memory.rows.lock().unwrap().push(Row { position: 1, hash: Hash::of(&bytes), entry: bytes.into() });
    let (ledger, writer) = open(&memory, Clock::default());
    ask(&ledger, Command::Activate(shipped())).unwrap();
    ask(&ledger, fund(600_000)).unwrap();
    let last = || String::from_utf8(memory.rows.lock().unwrap().last().unwrap().entry.to_vec()).unwrap();
    let first = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert!(last().starts_with(r#"{"v":1,"#) && last().contains(r#","base_fen":400000,"#), "{}", last());
    assert!(last().contains(r#""order_line":1,"#) && last().contains(r#""return_restores":true"#));
    let before = digest(&ledger);

    // Taking back an append that failed takes the format back, too.
    memory.faults.lock().unwrap().push(Fault::Refuse);
    assert!(matches!(ask(&ledger, Command::RaiseFormat), Err(Failure::Unavailable)));
    assert_eq!(digest(&ledger), before);
    assert!(matches!(ask(&ledger, Command::RaiseFormat), Ok(Outcome::Done)));
    assert!(last().starts_with(r#"{"v":2,"#) && last().ends_with(r#"{"format_activated":{"version":2}}}"#));
    let Err(Failure::Refused(refusal)) = ask(&ledger, Command::RaiseFormat) else { panic!("it is raised") };
    assert!(matches!(*refusal, Refusal::FormatIsNewest));

    claim_at(ask(&ledger, make(2, 2, 2, Mode::Redeem)));
    assert!(last().starts_with(r#"{"v":2,"#) && !last().contains("base_fen"), "{}", last());
    let again = claim_at(ask(&ledger, make(1, 1, 1, Mode::Redeem)));
    assert_eq!((again.position, again.unchanged), (first.position, true));
    let after = digest(&ledger);
    writer.stop();
    let (again, writer) = open(&memory, Clock::default());
    assert_eq!(digest(&again), after);
    writer.stop();
}

// --- Snapshots ---

/// The bytes of a state's image.
fn image(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state
        .write_image(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    bytes
}

/// A state made of an image, its programmes taken from these entries.
fn again(image: &[u8], entries: &[(Entry, Hash)]) -> Result<State, ImageFault> {
    let programmes = |activations: &[Head]| {
        let mut history = ProgrammeHistory::default();
        for activation in activations {
            let foreign = || ImageFault::Foreign("no activation".into());
            let before = usize::try_from(activation.position).unwrap().checked_sub(1).ok_or_else(foreign)?;
            match entries.get(before) {
                Some((Entry { event: Event::ProgrammesActivated { files }, .. }, hash))
                    if *hash == activation.hash =>
                {
                    history = activating(&history, files).map_err(ImageFault::Foreign)?;
                }
                _ => return Err(foreign()),
            }
        }
        Ok(history)
    };
    let (state, digest) = Image::open(image, image.len() as u64)?.read(programmes)?;
    assert_eq!(digest, Hash::of(image));
    Ok(state)
}

/// A state with claims of every status, and the entries it was folded from.
fn lived_in() -> (State, Vec<(Entry, Hash)>) {
    let (mut state, mut undo, mut entries) = (State::default(), Undo::default(), Vec::new());
    let mut now = Timestamp::parse("2026-06-01T10:00:00+08:00").unwrap();
    for event in
        [Event::JournalOpened { journal_id: JOURNAL_ID }, Event::ProgrammesActivated { files: shipped() }]
    {
        enter(&mut state, event, now, &mut undo, &mut entries);
    }
    step(&mut state, &fund(9_000_000), now, &mut undo, &mut entries);
    let mut random = 1_u64;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut steps: Vec<_> =
        (0..160).map(|_| (below(6) as u8, below(12), below(8), below(12) as i64)).collect();
    // A month later the requests of holds that ended are forgotten, and spent keys too.
    steps[110].3 = limits::KEY_RETENTION_MS / 60_000;
    run(&mut state, &steps, &mut now, &mut undo, &mut entries);
    let introduce = Command::IntroduceHashKey { key: "hmac-sha256/k1".into(), check: "check".into() };
    for command in [introduce, Command::Activate(shipped().split_off(1))] {
        step(&mut state, &command, now, &mut undo, &mut entries);
    }
    (state, entries)
}

#[test]
fn a_state_made_of_an_image_is_the_one_it_was_made_of_at_every_position() {
    let (state, entries) = lived_in();
    let mut statuses: Vec<_> = entries
        .iter()
        .filter_map(|(entry, _)| match &entry.event {
            Event::ClaimMade(made) => Some(made.status),
            Event::ClaimMoved(moved) => Some(moved.to),
            _ => None,
        })
        .collect();
    statuses.sort_unstable_by_key(|status| status.name());
    statuses.dedup();
    assert_eq!(statuses.len(), Status::ALL.len(), "{statuses:?}");
    let mut folded = State::default();
    for (count, (entry, hash)) in (1..).zip(&entries) {
        folded.fold(entry, *hash, None).unwrap();
        let mut made = again(&image(&folded), &entries).unwrap();
        assert_eq!(made.digest(), folded.digest(), "position {count}");
        assert_eq!(made.programmes(), folded.programmes());
        for (entry, hash) in &entries[count..] {
            made.fold(entry, *hash, None).unwrap();
        }
        assert_eq!(made.digest(), state.digest(), "from position {count}");
        assert_eq!(image(&made), image(&state), "from position {count}");
    }
}

#[test]
fn an_image_with_any_bit_changed_or_any_part_missing_is_refused_or_has_another_digest() {
    let (state, entries) = lived_in();
    let whole = image(&state);
    let mut refused = 0;
    // The counts of the index's shards are many and alike: some of them are enough.
    let shards = limits::KEY_INDEX_SHARDS * size_of::<u32>();
    let claims_at = whole.len() - state.claim_count() * 54 - keys_in(&state) * 16;
    let counts = claims_at - shards..claims_at;
    let places = (0..whole.len()).filter(|place| !counts.contains(place) || place % 501 == 0);
    for place in places {
        for bit in [1, 0x80] {
            let mut bent = whole.clone();
            bent[place] ^= bit;
            match Image::open(&*bent, bent.len() as u64) {
                Ok(image) => {
                    let any = |_: &[Head]| Ok(ProgrammeHistory::default());
                    match image.read(any) {
                        Ok((_, digest)) => assert_ne!(digest, Hash::of(&whole), "byte {place}"),
                        Err(_) => refused += 1,
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 100, "{refused}");
    for len in [0, 1, 83, 84, 85, whole.len() / 2, whole.len() - 16, whole.len() - 1] {
        let cut = &whole[..len];
        let fault = again(cut, &entries).unwrap_err();
        assert!(matches!(fault, ImageFault::Length { .. }), "{len}: {fault}");
        // A file that became shorter while it was read.
        let torn = Image::open(cut, whole.len() as u64)
            .and_then(|image| image.read(|_| Ok(ProgrammeHistory::default())));
        assert!(matches!(torn.unwrap_err(), ImageFault::Unreadable(_)), "{len}");
    }
    let longer = [&*whole, &[0]].concat();
    assert!(matches!(again(&longer, &entries).unwrap_err(), ImageFault::Length { .. }));
}

fn keys_in(state: &State) -> usize {
    let image = image(state);
    u32::from_be_bytes(image[80..84].try_into().unwrap()) as usize
}

#[test]
fn an_image_that_claims_to_be_huge_is_refused_before_any_room_is_made_for_it() {
    let (state, entries) = lived_in();
    let whole = image(&state);
    // Lengths of what follows the header, claims, keys: all of them as high as they can be.
    for (at, len) in [(68, 8), (76, 4), (80, 4)] {
        let mut bent = whole.clone();
        bent[at..at + len].fill(0xFF);
        assert!(matches!(again(&bent, &entries).unwrap_err(), ImageFault::Length { .. }), "{at}");
    }
    // How many activations there are: the first number after time and format.
    let mut bent = whole.clone();
    bent[94..102].fill(0xFF);
    assert!(matches!(again(&bent, &entries).unwrap_err(), ImageFault::Malformed(_)));
    let mut other = whole;
    other[11] ^= 3;
    assert!(matches!(again(&other, &entries).unwrap_err(), ImageFault::Arrangement(_)));
    other[0] = b'X';
    assert!(matches!(again(&other, &entries).unwrap_err(), ImageFault::Other));
    assert!(matches!(again(b"", &entries).unwrap_err(), ImageFault::Length { .. }));
}

/// A journal with a snapshot that it names, some claims before and some after, and what its state is in the
/// end.
struct Kept {
    memory: Memory,
    directory: tempfile::TempDir,
    snapshot: Snapshot,
    digest: Hash,
}

impl Kept {
    fn new() -> Self {
        let memory = Memory::private();
        let directory = tempfile::tempdir().unwrap();
        let (ledger, writer) = open(&memory, Clock::default());
        ask(&ledger, Command::Activate(shipped())).unwrap();
        ask(&ledger, fund(100_000_000)).unwrap();
        for number in 0..30 {
            let mode = if number % 2 == 0 { Mode::Redeem } else { Mode::Hold };
            claim_at(ask(&ledger, make(number, number, number, mode)));
        }
        let snapshots = Snapshots::new(directory.path().to_owned());
        let mut state = State::default();
        writer::fold_rest(&mut state, &mut memory.clone()).unwrap();
        for number in 30..35 {
            claim_at(ask(&ledger, make(number, number, number, Mode::Redeem)));
        }
        let snapshot = snapshots.write(&state, &mut |_| Ok(())).unwrap();
        let Snapshot { position, digest: named } = snapshot;
        ask(&ledger, Command::NameSnapshot { position, digest: named }).unwrap();
        for number in 35..40 {
            claim_at(ask(&ledger, make(number, number, number, Mode::Redeem)));
        }
        let digest = digest(&ledger);
        writer.stop();
        Self { memory, directory, snapshot, digest }
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.directory.path().to_owned())
    }

    fn opened(&self) -> Option<(State, Snapshot)> {
        self.snapshots().open(&mut self.memory.clone())
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("{:020}.snapshot", self.snapshot.position))
    }

    /// Changes what is stored.
    fn rows(&self, change: impl FnOnce(&mut Vec<Row>)) {
        change(&mut self.memory.rows.lock().unwrap());
    }

    /// The snapshot is not used, and a ledger that folds everything has the right state.
    fn must_be_passed_over(&self) {
        assert!(self.opened().is_none());
        let (ledger, writer) = open(&self.memory, Clock::default());
        assert_eq!(digest(&ledger), self.digest);
        writer.stop();
    }
}

#[test]
fn a_ledger_opened_from_a_snapshot_is_the_one_that_folds_everything_and_goes_on_like_it() {
    let kept = Kept::new();
    let (state, used) = kept.opened().unwrap();
    assert_eq!((state.digest(), used), (kept.digest, kept.snapshot));
    let reader = Arc::new(kept.memory.clone());
    // By then the holds, all made before the snapshot, are over.
    let ahead = Clock::ahead_by(31 * 60_000);
    let sold = |request, person, device| {
        Command::Make(Box::new(draft(request, person, device, Mode::Redeem, ahead.now())))
    };
    let (ledger, writer) =
        Ledger::open_from(state, Box::new(kept.memory.clone()), reader, ahead, JOURNAL_ID, Box::new(Deaf))
            .unwrap();
    let again = claim_at(ask(&ledger, make(2, 2, 2, Mode::Redeem)));
    assert!(again.unchanged, "a request from before is known");
    assert!(is_taken(&ask(&ledger, sold(41, 41, 4))), "and so is a device");
    // What is not written is taken back, and a device of an expired hold is free.
    let before = digest(&ledger);
    kept.memory.faults.lock().unwrap().push(Fault::Refuse);
    assert!(matches!(ask(&ledger, sold(42, 1, 1)), Err(Failure::Unavailable)));
    assert_eq!(digest(&ledger), before);
    claim_at(ask(&ledger, sold(42, 1, 1)));
    let after = digest(&ledger);
    writer.stop();
    let (ledger, writer) = open(&kept.memory, Clock::default());
    assert_eq!(digest(&ledger), after);
    writer.stop();
}

#[test]
fn the_file_of_a_snapshot_is_of_use_wherever_the_journal_is() {
    let kept = Kept::new();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(kept.file(), elsewhere.path().join("7.snapshot")).unwrap();
    let (state, used) =
        Snapshots::new(elsewhere.path().to_owned()).open(&mut kept.memory.clone()).expect("it is believed");
    assert_eq!((state.digest(), used), (kept.digest, kept.snapshot));
}

#[test]
fn a_snapshot_that_was_altered_or_cut_off_is_passed_over() {
    let kept = Kept::new();
    let whole = std::fs::read(kept.file()).unwrap();
    // A claim's subsidy, which makes as much sense as another; and bytes that make none.
    let subsidy = whole.len() - keys_in(&kept.opened().unwrap().0) * 16 + 5 * 16;
    for place in [0, 9, 20, 30, 60, 70, 90, 101, subsidy.min(whole.len() - 1), whole.len() - 1] {
        let mut bent = whole.clone();
        bent[place] ^= 1;
        std::fs::write(kept.file(), bent).unwrap();
        kept.must_be_passed_over();
    }
    for len in [0, 50, whole.len() - 1] {
        std::fs::write(kept.file(), &whole[..len]).unwrap();
        kept.must_be_passed_over();
    }
    std::fs::remove_file(kept.file()).unwrap();
    std::fs::create_dir(kept.file()).unwrap();
    kept.must_be_passed_over();
}

#[test]
fn a_snapshot_of_another_journal_is_passed_over() {
    let (kept, other) = (Kept::new(), Kept::new());
    assert_eq!(kept.snapshot.position, other.snapshot.position);
    std::fs::copy(other.file(), kept.file()).unwrap();
    kept.must_be_passed_over();
}

#[test]
fn a_snapshot_that_no_entry_names_is_passed_over() {
    let kept = Kept::new();
    let mut before = State::default();
    for row in kept.memory.rows.lock().unwrap().iter().take(20) {
        let stored: Stored = writer::stored(row).unwrap();
        before.fold(&stored.entry, stored.hash, None).unwrap();
    }
    // A true image, at a position that no entry names; and the one of before is as good as ever.
    kept.snapshots().write(&before, &mut |_| Ok(())).unwrap();
    let (state, used) = kept.opened().unwrap();
    assert_eq!((state.digest(), used), (kept.digest, kept.snapshot));
    std::fs::remove_file(kept.file()).unwrap();
    kept.must_be_passed_over();
}

#[test]
fn a_snapshot_is_passed_over_when_an_older_journal_is_restored() {
    let kept = Kept::new();
    // First the entry that names it is gone, then the last one folded into it, then much of the rest.
    let named_at = kept.snapshot.position as usize + 6;
    for len in [named_at - 1, kept.snapshot.position as usize, kept.snapshot.position as usize - 1, 3] {
        kept.rows(|rows| rows.truncate(len));
        assert!(kept.opened().is_none(), "{len}");
        let (_, writer) = open(&kept.memory, Clock::default());
        writer.stop();
    }
    kept.rows(Vec::clear);
    assert!(kept.opened().is_none());
}

#[test]
fn a_snapshot_is_passed_over_when_what_follows_it_or_activated_its_programmes_is_altered() {
    let bend = |row: &mut Row| {
        let text = String::from_utf8(row.entry.to_vec()).unwrap();
        row.entry = text.replacen("\"position\":", "\"position\": ", 1).into_bytes().into();
        row.hash = Hash::of(&row.entry);
    };
    let kept = Kept::new();
    kept.rows(|rows| bend(rows.last_mut().unwrap()));
    assert!(kept.opened().is_some(), "only the last row names its own hash");
    for position in [kept.snapshot.position + 3, kept.snapshot.position, 2] {
        let kept = Kept::new();
        kept.rows(|rows| bend(&mut rows[position as usize - 1]));
        assert!(kept.opened().is_none(), "{position}");
    }
}

#[test]
fn a_broken_row_before_a_snapshot_is_left_to_the_audit() {
    let kept = Kept::new();
    kept.rows(|rows| rows[9].entry = Arc::from(*b"{}"));
    let (state, _) = kept.opened().expect("only what follows it is looked at");
    assert_eq!(state.digest(), kept.digest);
}

#[test]
fn writing_a_snapshot_stops_when_it_is_told_to_and_leaves_nothing() {
    let kept = Kept::new();
    let (state, _) = kept.opened().unwrap();
    let stopped = kept.snapshots().write(&state, &mut |_| Err(std::io::Error::other("stopping")));
    assert_eq!(stopped.unwrap_err().to_string(), "stopping");
    let files: Vec<_> = std::fs::read_dir(kept.directory.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[test]
fn the_newest_two_snapshots_are_kept_and_none_that_was_found_to_differ_is_used_again() {
    let kept = Kept::new();
    let names = || {
        let listed = std::fs::read_dir(kept.directory.path()).unwrap();
        let mut names: Vec<_> = listed.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    for name in ["1.snapshot", "2.snapshot", "3.part", "notes.txt", "x.snapshot"] {
        std::fs::write(kept.directory.path().join(name), "").unwrap();
    }
    kept.snapshots().remove_old();
    let own = kept.file().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(names(), [&*own, "2.snapshot", "notes.txt", "x.snapshot"]);
    assert!(kept.opened().is_some());
    kept.snapshots().distrust();
    assert!(kept.opened().is_none());
    assert_eq!(names(), [&*own.replace("snapshot", "distrusted"), "2.distrusted", "notes.txt", "x.snapshot"]);
}

#[test]
fn a_journal_in_the_first_format_names_no_snapshot() {
    let memory = Memory::private();
    let opened = Entry::<ClaimMade> {
        v: 1,
        position: 1,
        alg: Algorithm::Sha256,
        prev: Hash::ZERO,
        at: Timestamp::from_ms(0),
        event: Event::JournalOpened { journal_id: JOURNAL_ID },
    };
    let bytes = opened.to_bytes().unwrap();
    memory.rows.lock().unwrap().push(Row { position: 1, hash: Hash::of(&bytes), entry: bytes.into() });
    let (ledger, writer) = open(&memory, Clock::default());
    assert_eq!(ledger.published().format, 1);
    let named = ask(&ledger, Command::NameSnapshot { position: 1, digest: Hash::ZERO });
    assert!(matches!(named, Err(Failure::Unavailable)), "{named:?}");
    assert_eq!(ledger.position(), 1);
    writer.stop();
}
