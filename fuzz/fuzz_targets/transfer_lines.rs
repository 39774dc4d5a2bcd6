//! The lines of the peer protocol: requests, the first lines of responses, lists of digests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::share::transfer::wire::{PeerRequest, PeerResponse, parse_meta};
use p2s2::internals::share::wire::Digest;

fuzz_target!(|line: &[u8]| {
    if let Some(request) = PeerRequest::parse(line)
        && std::str::from_utf8(request.name()).is_ok()
    {
        let written = request.to_string();
        assert_eq!(PeerRequest::parse(written.strip_suffix('\n').unwrap().as_bytes()), Some(request));
    }
    let _ = PeerResponse::parse(line);
    let _ = parse_meta(line, 5 << 20, Digest([7; 32]));
});
