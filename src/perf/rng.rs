//! A seeded random number generator (SplitMix64), so that runs can be repeated.

#[derive(Debug, Clone)]
pub struct SeededRng(u64);

impl SeededRng {
    pub fn new(seed: u64) -> SeededRng {
        let mut rng = SeededRng(seed);
        // Mixed, because the sequences of adjacent seeds would overlap.
        rng.0 = rng.next().rotate_left(32) ^ seed;
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniformly distributed, above 0 and at most 1.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed with this mean, as the time until an event of a Poisson process is.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.uniform().ln() * mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_what_they_should_be_and_sequences_differ() {
        let mut rng = SeededRng::new(1);
        let mean = |values: &mut dyn FnMut() -> f64| (0..100_000).map(|_| values()).sum::<f64>() / 1e5;
        let uniform = mean(&mut || rng.uniform());
        assert!((uniform - 0.5).abs() < 0.01, "{uniform}");
        let waits = mean(&mut || rng.exponential(3.0));
        assert!((waits - 3.0).abs() < 0.06, "{waits}");
        assert_ne!(SeededRng::new(1).uniform(), SeededRng::new(2).uniform());
        assert_eq!(SeededRng::new(5).uniform(), SeededRng::new(5).uniform());
    }
}
