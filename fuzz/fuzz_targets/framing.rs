//! Bytes of a connection, as length-prefixed frames and as lines: every message fits the limit, and what follows is read
//! from where it begins.
#![no_main]

use std::io::{self, Read};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use p2s2::internals::net::deadline::DeadlineRead;
use p2s2::internals::net::frames::FrameReader;
use p2s2::internals::net::lines::{LineLimits, LineReader};

const MESSAGE_MAX: usize = 1000;

/// Gives a few bytes at a time.
struct InPieces<'a>(&'a [u8]);

impl DeadlineRead for InPieces<'_> {
    fn read_before(&mut self, buffer: &mut [u8], _deadline: Instant) -> io::Result<usize> {
        let piece = buffer.len().min(1 + self.0.len() % 7);
        self.0.read(&mut buffer[..piece])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut frames = FrameReader::new(InPieces(bytes), LineLimits::new(MESSAGE_MAX));
    while let Ok(Some(frame)) = frames.read_frame_before(deadline) {
        assert!(frame.len() <= MESSAGE_MAX);
    }
    let mut lines = LineReader::new(InPieces(bytes), LineLimits::new(MESSAGE_MAX));
    while let Ok(Some(line)) = lines.read_bytes_before(deadline) {
        assert!(line.len() <= MESSAGE_MAX && !line.contains(&b'\n'));
    }
});
