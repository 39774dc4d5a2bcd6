//! Chance that is the same each time, so that two runs are: SplitMix64.

/// A sequence of numbers by chance.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of this number.
    pub fn new(seed: u64) -> Chance {
        let mut chance = Chance(seed);
        // Neighbours' sequences are to have nothing in common.
        chance.0 = chance.next().rotate_left(32) ^ seed;
        chance
    }

    /// 64 bits.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Above 0 and at most 1, each as likely.
    pub fn even(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// How long one waits for what may come at any moment, with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.even().ln() * mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_what_they_should_be_and_sequences_differ() {
        let mut chance = Chance::new(1);
        let mean = |values: &mut dyn FnMut() -> f64| (0..100_000).map(|_| values()).sum::<f64>() / 1e5;
        let even = mean(&mut || chance.even());
        assert!((even - 0.5).abs() < 0.01, "{even}");
        let waits = mean(&mut || chance.exponential(3.0));
        assert!((waits - 3.0).abs() < 0.06, "{waits}");
        assert_ne!(Chance::new(1).even(), Chance::new(2).even());
        assert_eq!(Chance::new(5).even(), Chance::new(5).even());
    }
}
