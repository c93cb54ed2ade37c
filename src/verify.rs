//! Verifying a journal from outside: every hash, every entry against those before it, the funds against
//! the claims, the book's totals against the journal, and the journal against a signed head.

use std::collections::BTreeMap;

use crate::book::cube::{Cube, Refold};
use crate::claim::FundId;
use crate::heads::SignedHead;
use crate::journal::{Head, JournalError, Row};
use crate::ledger::entry::Hash;
use crate::ledger::state::{Part, State};
use crate::ledger::writer::{self, OpenError};
use crate::limits;

/// What a sound journal came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// The last entry.
    pub head: Head,
    /// How many claims were ever made.
    pub claims: usize,
    /// How many funds there are.
    pub funds: usize,
    /// The digest of the state.
    pub digest: Hash,
    /// The position at which the book's totals were compared, if there is a book.
    pub book_at: Option<u64>,
    /// The position of the signed head compared, if one was given.
    pub head_at: Option<u64>,
}

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] JournalError),
    /// From this position on the journal is not to be believed.
    #[error("first bad position {position}: {reason}")]
    Bad {
        /// Where.
        position: u64,
        /// Why.
        reason: String,
    },
    /// A fund's money is not what its claims add up to.
    #[error("fund {fund}: {reason}")]
    Fund {
        /// Which fund.
        fund: FundId,
        /// Why.
        reason: String,
    },
    /// The state that decides is not a fold of this journal.
    #[error("the state at position {position} differs from the journal: {part:?}")]
    State {
        /// Where.
        position: u64,
        /// In which part.
        part: Part,
    },
    /// The book is not a fold of this journal.
    #[error("the book differs from the journal: {0}")]
    Book(String),
    /// The signed head does not fit.
    #[error("{0}")]
    Head(String),
}

/// A journal folded anew from its first entry, every row checked against those before it.
#[derive(Debug, Default)]
pub struct Refolded {
    state: State,
    totals: Refold,
}

impl Refolded {
    /// Folds the row that must come next.
    ///
    /// # Errors
    /// [`Fault::Bad`] where it is another one, its hash is wrong or it does not follow.
    pub fn fold(&mut self, row: &Row) -> Result<(), Fault> {
        let position = self.head().position + 1;
        let bad = |reason: String| Fault::Bad { position, reason };
        if row.position != position {
            return Err(bad(format!("the entry is missing; the next one there is {}", row.position)));
        }
        let stored = writer::stored(row).map_err(|error: OpenError| bad(error.to_string()))?;
        self.state.fold(&stored.entry, stored.hash, None).map_err(|error| bad(error.to_string()))?;
        self.totals.fold(&stored.entry).map_err(|error| bad(error.to_string()))
    }

    /// The last row folded.
    pub fn head(&self) -> Head {
        self.state.head()
    }

    /// The state there.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The totals there.
    pub fn totals(&self) -> &Cube {
        self.totals.cube()
    }

    /// Compares a book's totals, taken at this position, with what they must be.
    ///
    /// # Errors
    /// [`Fault::Book`] where they differ.
    pub fn compare_book(&self, book: &Cube) -> Result<(), Fault> {
        match book.first_difference(self.totals()) {
            None => Ok(()),
            Some(difference) => {
                Err(Fault::Book(format!("at position {}: {difference:?}", self.head().position)))
            }
        }
    }

    /// Compares what the funds say with what the claims on them add up to.
    ///
    /// # Errors
    /// [`Fault::Fund`] where a fund's money is another.
    pub fn compare_funds(&self) -> Result<(), Fault> {
        compare_funds(&self.state, self.totals())
    }
}

impl Fault {
    /// Whether journal or state are at fault, and not the book alone.
    pub const fn is_of_the_ledger(&self) -> bool {
        !matches!(self, Self::Book(_))
    }

    /// What is wrong in a few words that tell nothing about any claim, fund or retailer.
    pub fn summary(&self) -> String {
        match self {
            Self::Journal(_) => "the journal cannot be read".into(),
            Self::Bad { position, .. } => format!("first bad position of the journal: {position}"),
            Self::Fund { .. } => "a fund differs from its claims".into(),
            Self::State { position, .. } => {
                format!("the state differs from the journal at position {position}")
            }
            Self::Book(_) => "the book differs from the journal".into(),
            Self::Head(_) => "a signed head differs from the journal".into(),
        }
    }
}

/// Verifies the journal that `read` gives (rows after a position, in order, at most so many), a book's
/// totals as of a position, and a signed head whose signature was checked.
pub fn verify(
    mut read: impl FnMut(u64, usize) -> Result<Vec<Row>, JournalError>,
    book: Option<(u64, Cube)>,
    signed: Option<&SignedHead>,
) -> Result<Verified, Fault> {
    let mut journal = Refolded::default();
    let mut book_compared = None;
    let mut head_compared = None;
    let mut look = |journal: &Refolded| -> Result<(), Fault> {
        let Head { position, hash } = journal.head();
        if let Some((_, cube)) = book.as_ref().filter(|(at, _)| *at == position) {
            journal.compare_book(cube)?;
            book_compared = Some(position);
        }
        if let Some(signed) = signed.filter(|signed| signed.position == position) {
            if signed.hash != hash {
                return Err(Fault::Bad {
                    position,
                    reason: format!("its hash is {hash}, but the signed head says {}", signed.hash),
                });
            }
            head_compared = Some(position);
        }
        Ok(())
    };
    look(&journal)?;
    loop {
        let rows = read(journal.head().position, limits::JOURNAL_READ_ENTRIES_MAX)?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            journal.fold(row)?;
            look(&journal)?;
        }
    }
    journal.compare_funds()?;
    let state = journal.state();
    let head = state.head();
    if let Some(signed) = signed.filter(|_| head_compared.is_none()) {
        return Err(Fault::Bad {
            position: head.position + 1,
            reason: format!(
                "the journal ends at position {}, but a head was signed at {}: its tail is missing",
                head.position, signed.position
            ),
        });
    }
    if let Some((at, _)) = book.as_ref().filter(|_| book_compared.is_none()) {
        let end = head.position;
        return Err(Fault::Book(format!("it is at position {at}, the journal ends at {end}; rebuild it")));
    }
    Ok(Verified {
        head,
        claims: state.claim_count(),
        funds: state.funds().len(),
        digest: state.digest(),
        book_at: book_compared,
        head_at: head_compared,
    })
}

/// What is held and redeemed in each fund is what the claims on it add up to.
fn compare_funds(state: &State, totals: &Cube) -> Result<(), Fault> {
    let mut sums: BTreeMap<&FundId, (i64, i64)> = BTreeMap::new();
    for (cell, counters) in totals.cells() {
        let fault = |reason: &str| Fault::Fund { fund: cell.facets.fund.clone(), reason: reason.into() };
        let net = counters.net().ok_or_else(|| fault("its totals do not fit"))?;
        let (held, redeemed) = sums.entry(&cell.facets.fund).or_default();
        *held = held.checked_add(counters.held.money.get()).ok_or_else(|| fault("its totals do not fit"))?;
        *redeemed = redeemed.checked_add(net.money.get()).ok_or_else(|| fault("its totals do not fit"))?;
    }
    for fund in state.funds() {
        let (held, redeemed) = sums.remove(&fund.id).unwrap_or_default();
        let balance = fund.balance;
        if (balance.held.get(), balance.redeemed.get()) != (held, redeemed) {
            let reason = format!(
                "it says held {}, redeemed {}; its claims add up to {held} and {redeemed} fen",
                balance.held, balance.redeemed
            );
            return Err(Fault::Fund { fund: fund.id.clone(), reason });
        }
        if fund.remaining().get() < 0 {
            return Err(Fault::Fund {
                fund: fund.id.clone(),
                reason: "more is held and redeemed than budgeted".into(),
            });
        }
    }
    match sums.keys().next() {
        Some(fund) => Err(Fault::Fund {
            fund: (*fund).clone(),
            reason: "claims name it but it was never opened".into(),
        }),
        None => Ok(()),
    }
}
