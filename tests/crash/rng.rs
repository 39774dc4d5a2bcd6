//! A seedable random number generator.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and good enough for choosing moments.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True with this probability in percent.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An independent generator.
    pub fn fork(&mut self) -> Rng {
        Rng(self.next())
    }
}

/// The seed of a test: `P2S2_TEST_SEED`, else the time. Printed when the test fails, so that the run can be repeated.
pub struct Seed(pub u64);

impl Seed {
    pub fn of_this_run() -> Seed {
        let given = std::env::var("P2S2_TEST_SEED").ok().map(|seed| seed.parse().expect("P2S2_TEST_SEED: a number"));
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        Seed(given.unwrap_or_else(now))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed of this failure: P2S2_TEST_SEED={}", self.0);
        }
    }
}
