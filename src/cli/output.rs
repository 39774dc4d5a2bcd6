//! Standard output, as all commands use it. A failed write is remembered and makes the program end with exit code 1,
//! because truncated output must not pass for complete output. A reader that stops early (`| head`) is no failure.

use std::io::{self, Write};
use std::sync::OnceLock;

use crate::model::text;

static FIRST_FAILURE: OnceLock<String> = OnceLock::new();

/// Adds a line break and flushes. Unless the reader closed the pipe, [`first_failure`] reports an error from then on.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).inspect_err(record_failure)
}

pub(super) fn record_failure(error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        // Only the first error is kept: it tells the cause.
        FIRST_FAILURE.get_or_init(|| error.to_string());
    }
}

pub(super) fn first_failure() -> Option<&'static str> {
    FIRST_FAILURE.get().map(String::as_str)
}

/// Makes text from others safe to print: see [`text::escape_unsafe`].
pub fn sanitize(text: &str) -> String {
    text::escape_unsafe(text).into_owned()
}

/// Makes a line of JSON safe to print: see [`text::escape_unsafe_json`].
pub fn sanitize_json(json: &str) -> String {
    text::escape_unsafe_json(json).into_owned()
}
