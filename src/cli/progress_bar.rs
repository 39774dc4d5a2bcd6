//! The progress bar of commands that take a while.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with percentage and time. It is drawn on standard error, and only at a terminal.
pub(super) fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
