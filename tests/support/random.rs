//! Randomness that can be repeated.

/// SplitMix64. It is small and will be the same for ever, so that a seed written down today means the
/// same run in a year, whatever becomes of the crates.
pub struct Random(u64);

impl Random {
    /// A generator for the test `name`. Its seed is `SUBSIDY_POS_TEST_SEED`, or else a new one, and is printed, so
    /// that a failing run can be had again.
    pub fn seeded(name: &str) -> Self {
        let seed = std::env::var("SUBSIDY_POS_TEST_SEED").map_or_else(
            |_| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.expect("a clock after 1970").as_nanos() as u64
            },
            |text| text.parse().expect("SUBSIDY_POS_TEST_SEED is a number"),
        );
        eprintln!("{name}: SUBSIDY_POS_TEST_SEED={seed}");
        Self(seed)
    }

    /// A generator that goes on from a number of another.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}
