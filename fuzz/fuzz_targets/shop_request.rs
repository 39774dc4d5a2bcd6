//! A message to a frontend, in either dialect. What is refused gets one line in the dialect of the message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::shop::apis::ServerKind;
use p2s2::internals::shop::wire::parse_request;

fuzz_target!(|message: &[u8]| {
    for kind in [ServerKind::Buyer, ServerKind::Seller] {
        let _ = parse_request(kind, message);
    }
});
