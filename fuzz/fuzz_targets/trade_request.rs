//! A datagram or line of a peer. What is understood, and encoded as a client does, is understood as the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::trade::wire::{PeerMessage, encode_request, parse_message};

fuzz_target!(|bytes: &[u8]| {
    if let PeerMessage::Request(request) = parse_message(bytes) {
        let encoded = encode_request(request.rq, &request.name, request.token.as_ref(), &request.body);
        let PeerMessage::Request(again) = parse_message(&encoded) else { panic!("{request:?} is not understood again") };
        assert_eq!(format!("{:?}", again.body), format!("{:?}", request.body));
        assert_eq!((again.rq, again.name), (request.rq, request.name));
    }
});
