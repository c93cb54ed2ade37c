//! The totals: counters by day, day of the sale, region, category, retailer, programme and fund.
//!
//! The projector posts every entry to a [`Cube`] and adds the result to the book's table; whoever
//! compares the book with its journal posts every entry to a [`Refold`] and expects the same cube.
//! Posting is in one place, [`Cube::post`], and is pure.

use std::collections::{BTreeMap, HashMap};

use super::batch::Contradiction;
use crate::claim::{FundId, Status};
use crate::identity::{RegionCode, Uscc};
use crate::ledger::entry::{ClaimMade, Entry, Event};
use crate::money::Fen;
use crate::programme::{Category, ProgrammeId};
use crate::time::Day;

/// What totals are kept by, besides days.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Facets {
    /// Whose fund pays, as the claim names it: a county where it names one.
    pub region_code: RegionCode,
    /// The class of product.
    pub category: Category,
    /// Who sold.
    pub retailer: Uscc,
    /// Which programme pays.
    pub programme: ProgrammeId,
    /// Which fund pays.
    pub fund: FundId,
}

/// What the totals need to know of a claim; nothing in it ever changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Where it counts.
    pub facets: Facets,
    /// The day of the sale.
    pub sale_day: Day,
    /// The price.
    pub price: Fen,
    /// The subsidy.
    pub subsidy: Fen,
}

impl Facts {
    /// The facts of a new claim; `None` if the entry names no programme.
    pub fn of(made: &ClaimMade) -> Option<Self> {
        Some(Self {
            facets: Facets {
                region_code: made.sale.region_code,
                category: made.sale.category.clone(),
                retailer: made.retailer,
                programme: made.considered.first()?.programme.clone(),
                fund: made.fund.id.clone(),
            },
            sale_day: made.sale.sold_at.day(),
            price: made.sale.price,
            subsidy: made.subsidy,
        })
    }
}

/// A number of items and their subsidies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How many.
    pub items: i64,
    /// How much.
    pub money: Fen,
}

impl Tally {
    fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            items: self.items.checked_add(other.items)?,
            money: self.money.checked_add(other.money)?,
        })
    }

    fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self {
            items: self.items.checked_sub(other.items)?,
            money: self.money.checked_sub(other.money)?,
        })
    }
}

/// What is counted, or a change of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Holds made minus holds ended: over all days, what is held now; over some days, by how much that
    /// changed in them.
    pub held: Tally,
    /// Claims redeemed, including those returned or cancelled later.
    pub redeemed: Tally,
    /// Redeemed claims returned.
    pub returned: Tally,
    /// Redeemed claims cancelled.
    pub cancelled: Tally,
    /// Prices of what was redeemed minus prices of what was returned or cancelled.
    pub sales: Fen,
}

impl Counters {
    /// Redeemed − returned − cancelled; `None` if out of range.
    pub fn net(&self) -> Option<Tally> {
        self.redeemed.checked_sub(self.returned)?.checked_sub(self.cancelled)
    }

    /// The sum; `None` if out of range.
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        Some(Self {
            held: self.held.checked_add(other.held)?,
            redeemed: self.redeemed.checked_add(other.redeemed)?,
            returned: self.returned.checked_add(other.returned)?,
            cancelled: self.cancelled.checked_add(other.cancelled)?,
            sales: self.sales.checked_add(other.sales)?,
        })
    }

    /// What a claim's step changes; `None` is the status before a claim is made. No result if claims
    /// do not take that step.
    fn of_step(claim: &Facts, from: Option<Status>, to: Status) -> Option<Self> {
        let one = Tally { items: 1, money: claim.subsidy };
        let none = Self::default();
        let less_one = Tally { items: -1, money: claim.subsidy.negated() };
        let change = match (from, to) {
            (None, Status::Held) => Self { held: one, ..none },
            (None, Status::Redeemed) => Self { redeemed: one, sales: claim.price, ..none },
            (Some(Status::Held), Status::Redeemed) => {
                Self { held: less_one, redeemed: one, sales: claim.price, ..none }
            }
            (Some(Status::Held), Status::Released | Status::Expired | Status::Cancelled) => {
                Self { held: less_one, ..none }
            }
            (Some(Status::Redeemed), Status::Returned) => {
                Self { returned: one, sales: claim.price.negated(), ..none }
            }
            (Some(Status::Redeemed), Status::Cancelled) => {
                Self { cancelled: one, sales: claim.price.negated(), ..none }
            }
            _ => return None,
        };
        Some(change)
    }
}

/// Where something is counted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cell {
    /// The day of the entry.
    pub day: Day,
    /// The day of the sale.
    pub sale_day: Day,
    /// The rest.
    pub facets: Facets,
}

/// Counters by [`Cell`]; equal journals make equal cubes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cube {
    cells: BTreeMap<Cell, Counters>,
}

impl Cube {
    /// Counts the step that the entry at `position`, of `day`, takes a claim.
    pub fn post(
        &mut self,
        position: u64,
        day: Day,
        claim: &Facts,
        from: Option<Status>,
        to: Status,
    ) -> Result<(), Contradiction> {
        let change = Counters::of_step(claim, from, to)
            .ok_or(Contradiction::at(position, "moves a claim as claims do not move"))?;
        let cell = Cell { day, sale_day: claim.sale_day, facets: claim.facets.clone() };
        self.add(cell, &change).ok_or(Contradiction::at(position, "makes a total too large"))
    }

    /// Adds to one cell; `None` if the sum is out of range.
    pub fn add(&mut self, cell: Cell, change: &Counters) -> Option<()> {
        let counters = self.cells.entry(cell).or_default();
        *counters = counters.checked_add(change)?;
        Some(())
    }

    /// Every cell that something was ever counted in, in order.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = (&Cell, &Counters)> {
        self.cells.iter()
    }

    /// The first cell in which the two differ, with what each counts there.
    pub fn first_difference(&self, other: &Self) -> Option<(Cell, Option<Counters>, Option<Counters>)> {
        let differing = |mine: &Self, theirs: &Self| {
            mine.cells
                .iter()
                .find(|(cell, counters)| theirs.cells.get(cell) != Some(counters))
                .map(|(cell, _)| cell.clone())
        };
        let cell = [differing(self, other), differing(other, self)].into_iter().flatten().min()?;
        let (mine, theirs) = (self.cells.get(&cell).copied(), other.cells.get(&cell).copied());
        Some((cell, mine, theirs))
    }
}

/// What a [`Refold`] keeps of a claim: 40 bytes.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    made: u64,
    price: Fen,
    subsidy: Fen,
    sale_day: Day,
    /// Index of its facets.
    facets: usize,
}

/// Folds a journal, from its first entry, into the cube that its book must have.
#[derive(Debug, Default)]
pub struct Refold {
    cube: Cube,
    position: u64,
    /// Ascending by `made`.
    claims: Vec<Remembered>,
    facets: Vec<Facets>,
    numbers: HashMap<Facets, usize>,
}

impl Refold {
    /// Folds the next entry in.
    pub fn fold(&mut self, entry: &Entry) -> Result<(), Contradiction> {
        let (position, day) = (entry.position, entry.at.day());
        if position != self.position + 1 {
            return Err(Contradiction::at(position, "does not follow the entry before"));
        }
        match &entry.event {
            Event::ClaimMade(made) => {
                let claim = Facts::of(made).ok_or(Contradiction::at(position, "names no programme"))?;
                self.cube.post(position, day, &claim, None, made.status)?;
                self.remember(position, claim);
            }
            Event::ClaimMoved(moved) => {
                let claim = self
                    .recall(moved.made)
                    .ok_or(Contradiction::at(position, "moves a claim that was never made"))?;
                self.cube.post(position, day, &claim, Some(moved.from), moved.to)?;
            }
            _ => {}
        }
        self.position = position;
        Ok(())
    }

    /// The position of the last entry folded in, 0 if none was.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The totals at that position.
    pub fn cube(&self) -> &Cube {
        &self.cube
    }

    fn remember(&mut self, made: u64, claim: Facts) {
        let facets = match self.numbers.get(&claim.facets) {
            Some(number) => *number,
            None => {
                self.facets.push(claim.facets.clone());
                self.numbers.insert(claim.facets, self.facets.len() - 1);
                self.facets.len() - 1
            }
        };
        let Facts { sale_day, price, subsidy, .. } = claim;
        self.claims.push(Remembered { made, price, subsidy, sale_day, facets });
    }

    fn recall(&self, made: u64) -> Option<Facts> {
        let index = self.claims.binary_search_by_key(&made, |claim| claim.made).ok()?;
        let Remembered { price, subsidy, sale_day, facets, .. } = *self.claims.get(index)?;
        Some(Facts { facets: self.facets.get(facets)?.clone(), sale_day, price, subsidy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Facts {
        Facts {
            facets: Facets {
                region_code: RegionCode::parse("330106").unwrap(),
                category: Category::parse("smart_glasses").unwrap(),
                retailer: Uscc::parse("91110000600037341L").unwrap(),
                programme: ProgrammeId::parse("zj-ai-25").unwrap(),
                fund: FundId::parse("zj-ai-25.330100").unwrap(),
            },
            sale_day: Day::from_number(20_000),
            price: Fen::new(400_000),
            subsidy: Fen::new(60_000),
        }
    }

    #[test]
    fn only_the_steps_of_a_claims_life_count_and_every_life_ends_with_nothing_held() {
        let claim = claim();
        let mut counted = 0;
        for from in Status::ALL.into_iter().map(Some).chain([None]) {
            for to in Status::ALL {
                let Some(change) = Counters::of_step(&claim, from, to) else { continue };
                counted += 1;
                let lives = |status: Option<Status>| i64::from(status == Some(Status::Held));
                assert_eq!(change.held.items, lives(Some(to)) - lives(from), "{from:?} to {to:?}");
                let due = |status: Option<Status>| i64::from(status == Some(Status::Redeemed));
                let net = change.net().unwrap();
                assert_eq!(net.items, due(Some(to)) - due(from), "{from:?} to {to:?}");
                assert_eq!(net.money.get(), net.items * 60_000);
                assert_eq!(change.sales.get(), net.items * 400_000);
            }
        }
        assert_eq!(counted, 8);
    }

    #[test]
    fn the_first_difference_is_found_from_either_side() {
        let cell =
            |day| Cell { day: Day::from_number(day), sale_day: Day::from_number(1), facets: claim().facets };
        let one = Counters { sales: Fen::new(1), ..Counters::default() };
        let (mut a, mut b) = (Cube::default(), Cube::default());
        a.add(cell(5), &one).unwrap();
        b.add(cell(5), &one).unwrap();
        assert_eq!(a.first_difference(&b), None);
        b.add(cell(4), &one).unwrap();
        a.add(cell(6), &one).unwrap();
        assert_eq!(a.first_difference(&b), Some((cell(4), None, Some(one))));
        assert_eq!(b.first_difference(&a), Some((cell(4), Some(one), None)));
    }

    #[test]
    fn a_sum_out_of_range_is_noticed() {
        let most = Counters { sales: Fen::new(i64::MAX), ..Counters::default() };
        let mut cube = Cube::default();
        let cell = Cell { day: Day::from_number(1), sale_day: Day::from_number(1), facets: claim().facets };
        assert_eq!(cube.add(cell.clone(), &most), Some(()));
        assert_eq!(cube.add(cell, &most), None);
    }
}
