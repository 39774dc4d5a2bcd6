//! Values that people and peers write: names, prices, cards, durations, times, digests, hosts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::lan::wire::UserId;
use p2s2::internals::model::{Cents, Digest, Expiry, FeeRate, Millis, Name, duration, money};

fuzz_target!(|text: &str| {
    if let Ok(price) = Cents::parse_price(text) {
        assert!(price.0 > 0 && Cents::parse_price(&price.to_string()) == Ok(price));
    }
    if let Ok(name) = Name::new(text) {
        assert!(Name::new(name.as_str()) == Ok(name));
    }
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
    }
    if let Ok(user) = UserId::parse(text) {
        assert_eq!(UserId::parse(&user.to_string()), Ok(user));
    }
    let _ = (duration::parse(text), FeeRate::parse_percent(text), Expiry::parse(text), Millis::parse_iso(text));
    let _ = money::parse_verbatim(text);
});
