//! The numbers of notifications. An ACK with such a number proves that its sender receives at an address, so it must be
//! unpredictable for everyone else, and none may occur twice. A keyed permutation of the exchange's id sequence, which
//! never repeats, provides both (a Feistel network; Luby and Rackoff, 1988). Its inverse tells when the number was
//! made.

use ring::aead::quic::{AES_128, HeaderProtectionKey};

use crate::model::Token;

/// A bit that is set in every number. The plain numbers of earlier versions are below it, and all are below 2^53, which
/// every JSON reader represents exactly.
const MARK: u64 = 1 << 52;
pub(super) const SEQUENCE_MAX: u64 = MARK;
const HALF_BITS: u32 = 26;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;
/// Four make the permutation indistinguishable from a random one; eight cost half a microsecond.
const ROUNDS: u8 = 8;

pub(super) struct MidCipher(HeaderProtectionKey);

impl MidCipher {
    /// The key must stay the same for the lifetime of the data directory.
    pub(super) fn new(key: &Token) -> MidCipher {
        let digest = ring::digest::digest(&ring::digest::SHA256, key.reveal().as_bytes());
        let key = &digest.as_ref()[..AES_128.key_len()];
        MidCipher(HeaderProtectionKey::new(&AES_128, key).expect("the key is as long as it asks for"))
    }

    pub(super) fn encrypt(&self, sequence: u64) -> u64 {
        assert!(sequence < MARK, "a sequence that takes one number a nanosecond lasts for fifty days");
        let halves = (0..ROUNDS).fold((sequence >> HALF_BITS, sequence & HALF_MASK), |(left, right), round| {
            (right, left ^ self.round_function(round, right))
        });
        MARK | halves.0 << HALF_BITS | halves.1
    }

    /// `None` for numbers of earlier versions.
    pub(super) fn decrypt(&self, mid: u64) -> Option<u64> {
        if mid & !(MARK - 1) != MARK {
            return None;
        }
        let halves = (mid >> HALF_BITS & HALF_MASK, mid & HALF_MASK);
        let (left, right) =
            (0..ROUNDS).rev().fold(halves, |(left, right), round| (right ^ self.round_function(round, left), left));
        Some(left << HALF_BITS | right)
    }

    fn round_function(&self, round: u8, half: u64) -> u64 {
        let mut sample = [0; 16];
        sample[0] = round;
        sample[8..].copy_from_slice(&half.to_be_bytes());
        let mask = self.0.new_mask(&sample).expect("the sample is as long as it asks for");
        u64::from(u32::from_be_bytes([mask[0], mask[1], mask[2], mask[3]])) & HALF_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_scattered_and_never_come_twice() {
        let (ours, others) = (MidCipher::new(&Token::from_text("a")), MidCipher::new(&Token::from_text("b")));
        let sequences = (1 << 31..(1_u64 << 31) + 50_000).chain([0, MARK - 1]);
        let mut seen = HashSet::new();
        let mut close = 0;
        let mut before = 0;
        for sequence in sequences {
            let mid = ours.encrypt(sequence);
            assert!((MARK..2 * MARK).contains(&mid) && seen.insert(mid), "{sequence}: {mid}");
            assert_eq!(ours.decrypt(mid), Some(sequence));
            assert_ne!(others.encrypt(sequence), mid);
            close += u32::from(mid.abs_diff(before) < MARK >> 20);
            before = mid;
        }
        assert!(close < 10, "{close} of 50,000 neighbours are neighbours still");
        assert_eq!(ours.decrypt(1 << 31), None, "a number of an earlier version");
        assert_eq!(ours.decrypt(MARK << 1), None);
    }
}
