//! Which programme pays what for a sale, and why the others do not. Pure: time is an argument.
//!
//! Amounts are judged item by item, never per order. Of all programmes a sale qualifies for, the one that
//! pays most applies, and only that one; where two pay the same, the one with the lowest priority number.

use std::cmp::Reverse;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::identity::RegionCode;
use crate::limits;
use crate::money::Fen;
use crate::programme::{Programme, ProgrammeSet, Reference, TradeInValue};
use crate::time::Timestamp;

/// What is known of a sale when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Sale<'a> {
    /// The class of product.
    pub category: &'a str,
    /// Final price of the one item, after every discount, tax included.
    pub price: Fen,
    /// Whose fund would pay.
    pub region: RegionCode,
    /// When it was sold; decides which programmes are in force.
    pub sold_at: Timestamp,
    /// Energy grade of the item, 1 (best) to 5.
    pub energy_grade: Option<u8>,
    /// What the old device was worth, where one was given in payment.
    pub trade_in_value: Option<Fen>,
    /// The only programme to judge under, where the till names one.
    pub accept_programme: Option<&'a str>,
}

/// How one programme judged a sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It pays.
    Chosen,
    /// It would pay, but less than the chosen one.
    Lower,
    /// It would pay the same as the chosen one, whose priority is lower.
    Tie,
    /// It would pay, but the till accepts another programme only.
    NotAccepted,
    /// The price is above its ceiling.
    PriceAboveCeiling,
    /// What it pays rounds to nothing.
    RoundsToZero,
    /// The item's energy grade is not good enough, or not named.
    ConditionNotMet,
}

impl Verdict {
    /// Why the programme was not chosen, as answers say it; `None` for the chosen one.
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Chosen => None,
            Self::Lower => Some("lower"),
            Self::Tie => Some("lower_priority"),
            Self::NotAccepted => Some("not_accepted"),
            Self::PriceAboveCeiling => Some("price_above_ceiling"),
            Self::RoundsToZero => Some("rounds_to_zero"),
            Self::ConditionNotMet => Some("condition_not_met"),
        }
    }
}

/// A programme that was in force for a sale, listed its category and covered its region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The programme.
    pub programme: Arc<Programme>,
    /// What the rate is applied to.
    pub price_base: Fen,
    /// Rate times base, rounded.
    pub computed: Fen,
    /// The most it pays for one item.
    pub cap: Fen,
    /// What it would pay if it were the only one; zero where its own rules exclude the sale.
    pub amount: Fen,
    /// Whether it pays, or why not.
    pub verdict: Verdict,
}

impl Considered {
    /// Judges by the programme's own rules, with [`Verdict::Chosen`] for as long as nothing speaks against.
    fn judge(programme: &Arc<Programme>, sale: &Sale) -> Self {
        let price_base = match (programme.trade_in_value.value, sale.trade_in_value) {
            (TradeInValue::Deducted, Some(value)) => {
                sale.price.checked_sub(value).unwrap_or_default().max(Fen::ZERO)
            }
            (TradeInValue::Deducted, None) | (TradeInValue::NotDeducted, _) => sale.price,
        };
        let computed = price_base.at_rate(programme.rate.value, programme.rounding.value).unwrap_or_default();
        let cap = programme.cap.value;
        let verdict = if programme.price_ceiling.as_ref().is_some_and(|ceiling| sale.price > ceiling.value) {
            Verdict::PriceAboveCeiling
        } else if computed <= Fen::ZERO {
            Verdict::RoundsToZero
        } else if !grade_suffices(programme, sale.energy_grade) {
            Verdict::ConditionNotMet
        } else if !accepts(sale, programme) {
            Verdict::NotAccepted
        } else {
            Verdict::Chosen
        };
        let pays = matches!(verdict, Verdict::Chosen | Verdict::NotAccepted);
        let amount = if pays { computed.min(cap) } else { Fen::ZERO };
        Self { programme: Arc::clone(programme), price_base, computed, cap, amount, verdict }
    }
}

fn grade_suffices(programme: &Programme, energy_grade: Option<u8>) -> bool {
    let Some(worst) = &programme.energy_grade_max else { return true };
    energy_grade.is_some_and(|grade| (1..=worst.value).contains(&grade))
}

fn accepts(sale: &Sale, programme: &Programme) -> bool {
    sale.accept_programme.is_none_or(|only| only == programme.id.as_str())
}

/// What a sale gets: exactly one programme pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Determination {
    chosen: Considered,
    /// Best first.
    others: SmallVec<[Considered; 3]>,
    late_until: Timestamp,
}

impl Determination {
    /// The programme that pays.
    pub fn chosen(&self) -> &Considered {
        &self.chosen
    }

    /// Every programme that was considered: the chosen one, then the others by what they would pay.
    pub fn considered(&self) -> impl Iterator<Item = &Considered> {
        std::iter::once(&self.chosen).chain(&self.others)
    }

    /// Those that could pay, the chosen one first, then by what they would pay.
    pub fn payable(&self) -> impl Iterator<Item = &Considered> {
        self.considered().filter(|considered| considered.amount > Fen::ZERO)
    }
}

/// The rule that a refusal rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cited {
    /// The programme.
    pub programme: Arc<Programme>,
    /// Its clause and basis.
    pub reference: Reference,
}

impl Cited {
    /// `reference` of `programme`.
    pub fn new(programme: &Arc<Programme>, reference: &Reference) -> Self {
        Self { programme: Arc::clone(programme), reference: reference.clone() }
    }

    fn whole(programme: &Arc<Programme>) -> Self {
        Self::new(programme, &programme.source.reference)
    }
}

/// Programmes were in force, but none of them pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonePays {
    /// The rule that excludes the sale.
    pub cited: Cited,
    /// Every programme that was in force for the sale, by priority.
    pub considered: SmallVec<[Considered; 4]>,
    late_until: Timestamp,
}

/// Why no programme pays. The variants stand in the order in which they take precedence; whether
/// `sold_at` lies in the [`window`] is asked between the fourth and the fifth.
///
/// Each names the rule it rests on; of several programmes that exclude a sale, the one with the lowest
/// priority number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No programme lists the category at any date. Nothing is cited where there are no programmes.
    CategoryNotEligible(Option<Cited>),
    /// The accepted programme does not list the category, or does not exist: then the one that does list
    /// it is cited.
    ProgrammeNotApplicable(Cited),
    /// No programme that lists the category covers the region.
    RegionNotCovered(Cited),
    /// None of those is in force at `sold_at`; the one nearest in time is cited.
    NotInForce(Cited),
    /// The price is over every ceiling, or the subsidy rounds to nothing.
    PriceNotEligible(Box<NonePays>),
    /// The energy grade is not good enough, or not named.
    ConditionNotMet(Box<NonePays>),
}

impl Refused {
    /// Whether this takes precedence over `sold_at` lying outside the [`window`].
    pub const fn before_window(&self) -> bool {
        self.none_pays().is_none()
    }

    /// The rule it rests on.
    pub const fn cited(&self) -> Option<&Cited> {
        match self {
            Self::CategoryNotEligible(cited) => cited.as_ref(),
            Self::ProgrammeNotApplicable(cited) | Self::RegionNotCovered(cited) | Self::NotInForce(cited) => {
                Some(cited)
            }
            Self::PriceNotEligible(none_pays) | Self::ConditionNotMet(none_pays) => Some(&none_pays.cited),
        }
    }

    /// Every programme that was in force for the sale; none where it did not come to that.
    pub fn considered(&self) -> &[Considered] {
        self.none_pays().map_or(&[], |none_pays| none_pays.considered.as_slice())
    }

    const fn none_pays(&self) -> Option<&NonePays> {
        match self {
            Self::PriceNotEligible(none_pays) | Self::ConditionNotMet(none_pays) => Some(none_pays),
            Self::CategoryNotEligible(_)
            | Self::ProgrammeNotApplicable(_)
            | Self::RegionNotCovered(_)
            | Self::NotInForce(_) => None,
        }
    }
}

/// Determines which programme of `set` pays for `sale`, and how much.
pub fn determine(set: &ProgrammeSet, sale: &Sale) -> Result<Determination, Refused> {
    let listing = set.listing(sale.category);
    let Some(first) = listing.first() else {
        let accepted = sale.accept_programme.and_then(|id| set.get(id));
        let cited = accepted.or_else(|| set.iter().min_by_key(|programme| programme.priority.value));
        return Err(Refused::CategoryNotEligible(cited.map(Cited::whole)));
    };
    let Some(candidate) = listing.iter().find(|programme| accepts(sale, programme)) else {
        let accepted = sale.accept_programme.and_then(|id| set.get(id));
        return Err(Refused::ProgrammeNotApplicable(Cited::whole(accepted.unwrap_or(first))));
    };
    let covers = |programme: &&Arc<Programme>| programme.regions.value.cover(&sale.region);
    let in_force = |programme: &&Arc<Programme>| programme.in_force.contains(sale.sold_at);
    let accepted = || listing.iter().filter(|programme| accepts(sale, programme));
    let Some(nearest) =
        accepted().filter(covers).min_by_key(|programme| distance_ms(programme, sale.sold_at))
    else {
        return Err(Refused::RegionNotCovered(Cited::new(candidate, &candidate.regions.reference)));
    };
    if !in_force(&nearest) {
        let period = &nearest.in_force;
        let bound = if sale.sold_at < period.first_instant() { &period.from } else { &period.to };
        return Err(Refused::NotInForce(Cited::new(nearest, &bound.reference)));
    }

    let mut considered: SmallVec<[Considered; 4]> =
        listing.iter().filter(covers).filter(in_force).map(|found| Considered::judge(found, sale)).collect();
    let last_instants = considered.iter().map(|judged| judged.programme.in_force.last_instant());
    let late_until = last_instants.min().unwrap_or(sale.sold_at);
    considered.sort_unstable_by_key(|judged| {
        (judged.verdict != Verdict::Chosen, Reverse(judged.amount), judged.programme.priority.value)
    });
    if considered.first().is_none_or(|best| best.verdict != Verdict::Chosen) {
        return Err(none_pays(sale, considered, late_until, nearest));
    }
    let chosen = considered.remove(0);
    let mut others: SmallVec<[Considered; 3]> = considered.into_iter().collect();
    for other in others.iter_mut().filter(|other| other.verdict == Verdict::Chosen) {
        other.verdict = if other.amount == chosen.amount { Verdict::Tie } else { Verdict::Lower };
    }
    Ok(Determination { chosen, others, late_until })
}

/// How far `at` lies outside a programme's period; zero inside.
fn distance_ms(programme: &Programme, at: Timestamp) -> i64 {
    let before = programme.in_force.first_instant().ms().saturating_sub(at.ms());
    let after = at.ms().saturating_sub(programme.in_force.last_instant().ms());
    before.max(after).max(0)
}

/// The refusal where programmes are in force and none of those accepted pays. A price that some programme
/// takes leaves its condition as the reason.
fn none_pays(
    sale: &Sale,
    considered: SmallVec<[Considered; 4]>,
    late_until: Timestamp,
    fallback: &Arc<Programme>,
) -> Refused {
    let accepted = || considered.iter().filter(|judged| accepts(sale, &judged.programme));
    let condition = accepted().find(|judged| judged.verdict == Verdict::ConditionNotMet);
    let judged = condition.or_else(|| accepted().next());
    let programme = judged.map_or(fallback, |judged| &judged.programme);
    let rule = match judged.map(|judged| judged.verdict) {
        Some(Verdict::ConditionNotMet) => programme.energy_grade_max.as_ref().map(|rule| &rule.reference),
        Some(Verdict::PriceAboveCeiling) => programme.price_ceiling.as_ref().map(|rule| &rule.reference),
        Some(Verdict::RoundsToZero) => Some(&programme.rounding.reference),
        _ => None,
    };
    let cited = Cited::new(programme, rule.unwrap_or(&programme.source.reference));
    let condition = condition.is_some();
    let none_pays = Box::new(NonePays { cited, considered, late_until });
    if condition { Refused::ConditionNotMet(none_pays) } else { Refused::PriceNotEligible(none_pays) }
}

/// Until when a sale judged so may be sent in late: the earliest end of the programmes that were in force
/// for it. `None` where none was, for then the window is not asked.
pub fn late_until(judgement: &Result<Determination, Refused>) -> Option<Timestamp> {
    match judgement {
        Ok(determination) => Some(determination.late_until),
        Err(refused) => refused.none_pays().map(|none_pays| none_pays.late_until),
    }
}

/// Whether a sale may be sent in at `now`: at most [`limits::SOLD_AT_BACK_MS`] after it and
/// [`limits::SOLD_AT_AHEAD_MS`] before, or, where `late` (a reason is given), up to
/// [`limits::SOLD_AT_LATE_BACK_MS`] after it, but then neither after [`late_until`] nor in another calendar
/// year (Asia/Shanghai) than that of the sale. All bounds belong to the window.
pub fn window(now: Timestamp, sold_at: Timestamp, late: bool, late_until: Timestamp) -> bool {
    let age_ms = now.ms().saturating_sub(sold_at.ms());
    let prompt = (-limits::SOLD_AT_AHEAD_MS..=limits::SOLD_AT_BACK_MS).contains(&age_ms);
    let late = late && (0..=limits::SOLD_AT_LATE_BACK_MS).contains(&age_ms);
    prompt || late && now <= late_until && now.year() == sold_at.year()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::programme::tests::shipped_set;
    use crate::time::Day;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn glasses<'a>(price: &str) -> Sale<'a> {
        Sale {
            category: "smart_glasses",
            price: Fen::parse_yuan(price).unwrap(),
            region: RegionCode::parse("330106").unwrap(),
            sold_at: at("2026-11-23T10:15:00+08:00"),
            energy_grade: None,
            trade_in_value: None,
            accept_programme: None,
        }
    }

    #[test]
    fn those_that_could_pay_are_named_best_first() {
        let set = shipped_set();
        let determination = determine(&set, &glasses("4000.00")).unwrap();
        let payable: Vec<_> = determination
            .payable()
            .map(|judged| (judged.programme.id.as_str(), judged.amount.get()))
            .collect();
        assert_eq!(payable, [("zj-ai-25", 60_000), ("national-digital-2026", 50_000)]);
        let determination = determine(&set, &glasses("6000.01")).unwrap();
        assert_eq!(determination.payable().count(), 1);
        assert_eq!(determination.considered().count(), 2);
    }

    #[test]
    fn a_refusal_shows_the_number_it_rests_on() {
        let set = shipped_set();
        let refused = determine(&set, &Sale { category: "phone", ..glasses("6000.01") }).unwrap_err();
        let ceiling = set.get("national-digital-2026").unwrap().price_ceiling.as_ref().unwrap();
        assert_eq!(refused.cited().unwrap().reference, ceiling.reference);
        assert!(!refused.before_window());
        let refused = determine(&set, &Sale { category: "computer", ..glasses("6000.01") }).unwrap_err();
        let grade = set.get("national-appliances-2026").unwrap().energy_grade_max.as_ref().unwrap();
        assert_eq!(refused.cited().unwrap().reference, grade.reference);
        assert!(!refused.before_window());
        let refused = determine(&set, &Sale { category: "bicycle", ..glasses("1.00") }).unwrap_err();
        assert_eq!(&*refused.cited().unwrap().reference.clause, "measure 25");
        assert!(refused.before_window());
    }

    #[test]
    fn without_programmes_no_category_is_eligible() {
        let refused = determine(&ProgrammeSet::default(), &glasses("4000.00"));
        assert_eq!(refused, Err(Refused::CategoryNotEligible(None)));
        assert_eq!(late_until(&refused), None);
    }

    #[test]
    fn a_prompt_sale_may_cross_any_boundary() {
        let year_end = at("2026-12-31T23:59:59.999+08:00");
        for (age_ms, expected) in [
            (-limits::SOLD_AT_AHEAD_MS - 1, false),
            (-limits::SOLD_AT_AHEAD_MS, true),
            (0, true),
            (limits::SOLD_AT_BACK_MS, true),
            (limits::SOLD_AT_BACK_MS + 1, false),
        ] {
            assert_eq!(window(year_end.plus_ms(age_ms), year_end, false, year_end), expected, "{age_ms}");
        }
        assert!(window(year_end.plus_ms(limits::SOLD_AT_BACK_MS), year_end, true, year_end));
    }

    #[test]
    fn a_late_sale_has_seventy_two_hours() {
        let (sold_at, open_end) = (at("2026-11-23T10:15:00+08:00"), at("2027-12-31T23:59:59+08:00"));
        let late = |age_ms| window(sold_at.plus_ms(age_ms), sold_at, true, open_end);
        assert!(late(limits::SOLD_AT_LATE_BACK_MS));
        assert!(!late(limits::SOLD_AT_LATE_BACK_MS + 1));
        assert!(!late(-limits::SOLD_AT_AHEAD_MS - 1), "a reason for being late does not help one too early");
        assert!(!window(sold_at.plus_ms(3_600_000), sold_at, false, open_end), "without a reason");
    }

    #[test]
    fn a_late_sale_never_crosses_the_end_of_a_programme_or_of_a_year() {
        let (sold_at, last) =
            (at("2026-11-29T12:00:00+08:00"), Day::parse("2026-11-30").unwrap().last_instant());
        assert!(window(last, sold_at, true, last));
        assert!(!window(last.plus_ms(1), sold_at, true, last));
        let (sold_at, year_end) = (at("2026-12-30T12:00:00+08:00"), at("2026-12-31T23:59:59.999+08:00"));
        let open_end = at("2027-12-31T23:59:59.999+08:00");
        assert!(window(year_end, sold_at, true, open_end));
        assert!(!window(year_end.plus_ms(1), sold_at, true, open_end));
    }

    #[test]
    fn the_first_programme_in_force_to_end_bounds_a_late_sale() {
        let set = shipped_set();
        let until = |sale: &Sale| late_until(&determine(&set, sale)).map(|until| until.to_string());
        let end_of = |year: &str| Some(format!("{year}-12-31T23:59:59.999+08:00"));
        assert_eq!(until(&glasses("4000.00")), end_of("2026"), "also where the other one pays");
        assert_eq!(until(&Sale { category: "smart_health", ..glasses("4000.00") }), end_of("2027"));
        assert_eq!(
            until(&Sale { category: "phone", ..glasses("9000.00") }),
            end_of("2026"),
            "where none pays"
        );
        assert_eq!(until(&Sale { category: "bicycle", ..glasses("9000.00") }), None);
    }

    /// What the property tests vary of a programme; the rest is measure 25's.
    #[derive(Clone, Debug)]
    struct Terms {
        rate_per_mille: u16,
        cap_fen: i64,
        ceiling_fen: Option<i64>,
        grade_max: Option<u8>,
        deducted: bool,
        years: (u8, u8),
    }

    fn terms() -> impl Strategy<Value = Terms> {
        let ceiling_fen = proptest::option::of(1_i64..2_000_000);
        let grade_max = proptest::option::of(1_u8..=5);
        (1_u16..=1000, 1_i64..300_000, ceiling_fen, grade_max, any::<bool>(), (0_u8..3, 0_u8..3)).prop_map(
            |(rate_per_mille, cap_fen, ceiling_fen, grade_max, deducted, (from, years))| Terms {
                rate_per_mille,
                cap_fen,
                ceiling_fen,
                grade_max,
                deducted,
                years: (25 + from, 25 + from + years),
            },
        )
    }

    fn set_of(terms: &[Terms]) -> Vec<(String, String)> {
        let shipped = crate::programme::shipped();
        let file = |(index, terms): (usize, &Terms)| {
            let deducted = if terms.deducted { "deducted" } else { "not_deducted" };
            let mut text = shipped[0]
                .1
                .replace("\"zj-ai-25\"", &format!("\"p-{index}\""))
                .replace("value = 10\n", &format!("value = {}\n", 100 - index))
                .replace(
                    "\"0.15\"",
                    &format!("\"{}.{:03}\"", terms.rate_per_mille / 1000, terms.rate_per_mille % 1000),
                )
                .replace("2000.00", &Fen::new(terms.cap_fen).to_string())
                .replace("2025-05-31", &format!("20{}-05-31", terms.years.0))
                .replace("2027-12-31", &format!("20{}-12-31", terms.years.1))
                .replace("not_deducted", deducted);
            let source = "clause = \"c\"\nbasis = \"notice\"\n";
            if let Some(ceiling) = terms.ceiling_fen {
                text += &format!("[price_ceiling]\nvalue = \"{}\"\n{source}", Fen::new(ceiling));
            }
            if let Some(grade) = terms.grade_max {
                text += &format!("[energy_grade_max]\nvalue = {grade}\n{source}");
            }
            (format!("p-{index}.toml"), text)
        };
        terms.iter().enumerate().map(file).collect()
    }

    proptest! {
        #[test]
        fn exactly_one_pays_and_none_would_pay_more(
            terms in proptest::collection::vec(terms(), 1..7),
            price in 1_i64..3_000_000,
            trade_in in proptest::option::of(0_i64..3_000_000),
            energy_grade in proptest::option::of(1_u8..=5),
            year in 2025..2030,
        ) {
            let mut files = set_of(&terms);
            let set = ProgrammeSet::parse(&files).unwrap();
            let sale = Sale {
                price: Fen::new(price),
                trade_in_value: trade_in.map(Fen::new),
                energy_grade,
                sold_at: at(&format!("{year}-06-18T12:00:00+08:00")),
                ..glasses("1.00")
            };
            let judgement = determine(&set, &sale);
            let pays = |index: usize, terms: &Terms| {
                let in_force = (terms.years.0..=terms.years.1).contains(&u8::try_from(year - 2000).unwrap());
                let base = if terms.deducted { (price - trade_in.unwrap_or(0)).max(0) } else { price };
                let amount = (base * i64::from(terms.rate_per_mille) / 1000).min(terms.cap_fen);
                let eligible = in_force
                    && terms.ceiling_fen.is_none_or(|ceiling| price <= ceiling)
                    && terms.grade_max.is_none_or(|worst| energy_grade.is_some_and(|grade| grade <= worst));
                (eligible && amount > 0).then_some((amount, index))
            };
            // The later in the list, the lower the priority number.
            let best = terms.iter().enumerate().filter_map(|(index, terms)| pays(index, terms)).max();
            let got = judgement.as_ref().ok().map(|determination| {
                let chosen = determination.chosen();
                (chosen.amount.get(), chosen.programme.id.to_string())
            });
            prop_assert_eq!(got, best.map(|(amount, index)| (amount, format!("p-{index}"))));
            if let Ok(determination) = &judgement {
                let chosen = determination.considered().filter(|judged| judged.verdict == Verdict::Chosen);
                prop_assert_eq!(chosen.count(), 1);
                for judged in determination.considered() {
                    let index: usize = judged.programme.id.as_str()[2..].parse().unwrap();
                    prop_assert!(judged.amount <= judged.cap && judged.amount <= judged.computed);
                    let per_mille = i64::from(terms[index].rate_per_mille);
                    prop_assert!(judged.computed.get() * 1000 <= price * per_mille);
                    prop_assert!(judged.amount <= determination.chosen().amount);
                }
            }
            files.reverse();
            prop_assert_eq!(determine(&ProgrammeSet::parse(&files).unwrap(), &sale), judgement);
        }
    }
}
