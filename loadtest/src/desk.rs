//! A ledger in memory: decides, encodes and folds as the service's writer does, and appends nothing. Its
//! clock stands still.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use subsidy_pos::http::sale::ClaimBody;
use subsidy_pos::ledger::apply::{self, Decision};
use subsidy_pos::ledger::command::Command;
use subsidy_pos::ledger::entry::{Algorithm, Entry, Event, Hash, Key, VERSION};
use subsidy_pos::ledger::state::{State, Undo};
use subsidy_pos::ledger::{KeyRing, Published, Stored};
use subsidy_pos::secrets::DevKeys;
use subsidy_pos::time::Timestamp;

use crate::drafts::{self, Drafts};
use crate::sale::INSTANT_CHARS;

/// When everything happens: while two programmes list what is sold.
const NOW: &[u8; INSTANT_CHARS] = b"2026-06-15T10:00:00+08:00";
const JOURNAL_ID: Key = Key::new([7; 16]);

/// The ledger.
pub struct Desk {
    state: State,
    published: Published,
    drafts: Drafts,
    now: Timestamp,
    /// Sales that claims were made of.
    sales: u64,
}

impl Desk {
    /// A ledger with programmes and funds, and no claims.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let keys = DevKeys::make(directory.path()).map_err(|fault| anyhow!("{fault}"))?;
        let drafts = Drafts::new(drafts::hash_keys(&keys.hash_key_file)?)?;
        let now = Timestamp::parse(std::str::from_utf8(NOW)?).context("an instant")?;
        let state = State::default();
        let mut desk = Self { published: published(&state), state, drafts, now, sales: 0 };
        desk.enter(Event::JournalOpened { journal_id: JOURNAL_ID })?;
        for command in drafts::introduction(desk.drafts.hash_keys()) {
            desk.carry_out(&command)?;
        }
        for command in drafts::funds(desk.state.programmes().current())? {
            desk.carry_out(&command)?;
        }
        desk.published = published(&desk.state);
        Ok(desk)
    }

    /// What commands are prepared with.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// The time that stands still.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// A sale that no claim was made of: its number and its request body.
    pub fn next_sale(&mut self) -> (u64, Vec<u8>) {
        self.sales += 1;
        (self.sales, self.drafts.body(self.sales, NOW).to_owned())
    }

    /// Reads a request body.
    pub fn read(&self, body: &[u8]) -> Result<ClaimBody> {
        Drafts::read(body, self.now.day())
    }

    /// The command to make a claim of sale `n`.
    pub fn prepare(&self, n: u64, body: ClaimBody) -> Result<Command> {
        Ok(Command::Make(Box::new(self.drafts.draft(&self.published, n, body)?)))
    }

    /// What is decided about a command.
    pub fn decide(&self, command: &Command) -> Decision {
        apply::decide(&self.state, command, self.now)
    }

    /// The entry that a command comes to.
    pub fn entry_of(&self, command: &Command) -> Result<Entry> {
        match self.decide(command) {
            Decision::Enter(event) => Ok(self.entry(event)),
            other => bail!("a command was answered {other:?}"),
        }
    }

    fn entry(&self, event: Event) -> Entry {
        let head = self.state.head();
        let position = head.position + 1;
        Entry { v: VERSION, position, alg: Algorithm::Sha256, prev: head.hash, at: self.now, event }
    }

    /// Folds an entry. With `undo`, so that it can be taken back.
    pub fn fold(&mut self, entry: &Entry, hash: Hash, undo: Option<&mut Undo>) -> Result<()> {
        Ok(self.state.fold(entry, hash, undo)?)
    }

    /// Takes back what was folded since `undo` was empty.
    pub fn unfold(&mut self, undo: &mut Undo) {
        self.state.unfold(undo);
    }

    fn enter(&mut self, event: Event) -> Result<Stored> {
        let entry = self.entry(event);
        let hash = Hash::of(&entry.to_bytes()?);
        self.fold(&entry, hash, None)?;
        Ok(Stored { entry, hash })
    }

    /// Decides a command and folds what it enters.
    pub fn carry_out(&mut self, command: &Command) -> Result<Stored> {
        let entry = self.entry_of(command)?;
        self.enter(entry.event)
    }

    /// Bytes the state has set aside for its claims.
    pub fn claim_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Makes claims of that many new sales.
    pub fn fill(&mut self, claims: u64) -> Result<()> {
        for _ in 0..claims {
            let (n, body) = self.next_sale();
            let command = self.prepare(n, self.read(&body)?)?;
            self.carry_out(&command).with_context(|| format!("sale {n}"))?;
        }
        Ok(())
    }
}

fn published(state: &State) -> Published {
    Published {
        programmes: Arc::clone(state.programmes().current()),
        history: Arc::clone(state.programmes()),
        activated_at: state.activated_at(),
        format: state.format(),
        keys: KeyRing::new(JOURNAL_ID),
        hash_keys: state.hash_keys().clone(),
    }
}
