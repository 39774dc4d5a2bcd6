//! Standard output, for what every command says. What cannot be written there is told, and the program ends
//! with 1: half a list must not pass for the whole. Who stops reading (`| head`) has seen enough: that is no
//! failure.

use std::io::{self, Write};
use std::sync::OnceLock;

/// Why something could not be written, once that has happened.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Prints a text, which may have several lines, and ends it. It is written when this returns.
///
/// # Errors
/// The system's. Unless nobody reads any more, [`failure`] tells it from then on.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).inspect_err(note)
}

/// What was written by other means could not be.
pub(super) fn note(error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        // The first one says why.
        FAILURE.get_or_init(|| error.to_string());
    }
}

/// Why not everything was written.
pub(super) fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}
