//! A line of a buyer or seller during a settlement.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::trade::wire::{Side, parse_settlement_response};

fuzz_target!(|line: &str| {
    for side in [Side::Buyer, Side::Seller] {
        if let Err(error) = parse_settlement_response(line, side) {
            assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        }
    }
});
