//! A datagram of the LAN. What is understood, and encoded again, is understood as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::lan::wire::{decode, encode};

fuzz_target!(|datagram: &[u8]| {
    if let Ok(message) = decode(datagram) {
        // What came may be longer than what we would send.
        if let Ok(encoded) = encode(&message) {
            assert_eq!(decode(&encoded), Ok(message));
        }
    }
});
