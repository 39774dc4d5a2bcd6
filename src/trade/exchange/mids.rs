//! The numbers of pushes. An ACK of one proves that its sender hears what is sent to an address, so nobody
//! may guess a number that was sent to somebody else; and none may come twice.
//!
//! Both at once is a keyed permutation: numbers of the one sequence that never repeats go in, and what
//! comes out never repeats either, but cannot be foretold without the key (a Feistel network; Luby and
//! Rackoff, 1988). It runs backwards too, which tells when the number was taken.

use ring::aead::quic::{AES_128, HeaderProtectionKey};

use crate::model::Token;

/// Numbers have bit 52 set: those of earlier versions, which were plain, are below it. All are below 2^53,
/// so that every JSON reader holds them exactly.
const MARK: u64 = 1 << 52;
/// Places in the sequence come before this one.
pub(super) const PLACES: u64 = MARK;
/// The bits of each half.
const HALF: u32 = 26;
const HALF_MASK: u64 = (1 << HALF) - 1;
/// Four make it as good as random; twice as many cost half a microsecond.
const ROUNDS: u8 = 8;

/// Makes numbers of pushes, and knows its own again.
pub(super) struct Mids(HeaderProtectionKey);

impl Mids {
    /// With the same key the same numbers come out: it belongs to the data dir.
    pub(super) fn new(key: &Token) -> Mids {
        let digest = ring::digest::digest(&ring::digest::SHA256, key.reveal().as_bytes());
        let key = &digest.as_ref()[..AES_128.key_len()];
        Mids(HeaderProtectionKey::new(&AES_128, key).expect("the key is as long as it asks for"))
    }

    /// The number of the push whose place in the sequence this is.
    pub(super) fn of(&self, place: u64) -> u64 {
        assert!(place < MARK, "a sequence that takes one number a nanosecond lasts for fifty days");
        let halves = (0..ROUNDS)
            .fold((place >> HALF, place & HALF_MASK), |(left, right), round| (right, left ^ self.mix(round, right)));
        MARK | halves.0 << HALF | halves.1
    }

    /// The place in the sequence of a push with this number; nothing for numbers of earlier versions.
    pub(super) fn place(&self, mid: u64) -> Option<u64> {
        if mid & !(MARK - 1) != MARK {
            return None;
        }
        let halves = (mid >> HALF & HALF_MASK, mid & HALF_MASK);
        let (left, right) =
            (0..ROUNDS).rev().fold(halves, |(left, right), round| (right ^ self.mix(round, left), left));
        Some(left << HALF | right)
    }

    fn mix(&self, round: u8, half: u64) -> u64 {
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
        let (ours, others) = (Mids::new(&Token::from_text("a")), Mids::new(&Token::from_text("b")));
        let places = (1 << 31..(1_u64 << 31) + 50_000).chain([0, MARK - 1]);
        let mut seen = HashSet::new();
        let mut close = 0;
        let mut before = 0;
        for place in places {
            let mid = ours.of(place);
            assert!((MARK..2 * MARK).contains(&mid) && seen.insert(mid), "{place}: {mid}");
            assert_eq!(ours.place(mid), Some(place));
            assert_ne!(others.of(place), mid);
            close += u32::from(mid.abs_diff(before) < MARK >> 20);
            before = mid;
        }
        assert!(close < 10, "{close} of 50,000 neighbours are neighbours still");
        assert_eq!(ours.place(1 << 31), None, "a number of an earlier version");
        assert_eq!(ours.place(MARK << 1), None);
    }
}
