//! The progress of a fetch on a single terminal line.

use std::io::{self, IsTerminal};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::cli::output::sanitize;

/// Shown only at a terminal and on standard error, so that standard output has nothing but results.
pub(super) struct FetchProgressLine {
    name: String,
    bar: ProgressBar,
}

impl FetchProgressLine {
    pub(super) fn new(name: &str, is_enabled: bool) -> FetchProgressLine {
        let is_shown = is_enabled && io::stderr().is_terminal() && io::stdout().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        // The template is constant and valid. Text that is wider than the terminal is cut.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        FetchProgressLine { name: sanitize(name), bar }
    }

    pub(super) fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    pub(super) fn print_note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("note: {}", sanitize(text)));
    }

    pub(super) fn show(&self, progress: &Value) {
        if !self.is_hidden() {
            self.bar.set_message(progress_text(&self.name, progress, width()));
            self.bar.tick();
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Width of the terminal in characters; 80 if it is unknown.
fn width() -> usize {
    #[cfg(unix)]
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stderr())
        && size.ws_col > 0
    {
        return usize::from(size.ws_col);
    }
    80
}

/// The progress, fitted to a width. In order of importance: percentage or reason for waiting, speed, remaining time,
/// file name.
fn progress_text(name: &str, progress: &Value, width: usize) -> String {
    let percent = format!("{:.0} %", progress["progress_percent"].as_f64().unwrap_or_default().floor());
    let speed = progress["speed_bps"].as_f64().unwrap_or_default();
    let is_receiving = progress["status"] == "downloading" && speed >= 1.0;
    let mut parts = vec![percent];
    if is_receiving {
        parts.push(format!("{}/s", HumanBytes(speed as u64)));
        if let Some(seconds) = progress["eta_seconds"].as_u64() {
            parts.push(format!("{} left", HumanDuration(std::time::Duration::from_secs(seconds))));
        }
    } else {
        let why = progress["error"].as_str().map(sanitize);
        parts.push(match (why, progress["status"].as_str()) {
            (Some(why), _) => format!("nobody sends: {why}"),
            (None, Some("paused")) => "paused".to_owned(),
            // Everything was received and is being verified.
            (None, _) if progress["progress_percent"].as_f64().is_some_and(|percent| percent >= 100.0) => {
                "being checked".to_owned()
            }
            (None, _) => "nobody sends yet".to_owned(),
        });
    }
    let mut line = String::new();
    for part in parts {
        let wider = if line.is_empty() { part } else { format!("{line}, {part}") };
        if !line.is_empty() && wider.chars().count() > width {
            // A reason may be cut, a number must not.
            if !is_receiving {
                line = wider.chars().take(width).collect();
            }
            break;
        }
        line = wider;
    }
    let with_name = format!("{name}: {line}");
    if with_name.chars().count() <= width { with_name } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_fits_at_any_width_and_says_what_matters_first() {
        let is_receiving =
            json!({"status": "downloading", "progress_percent": 45.9, "speed_bps": 1_200_000.0, "eta_seconds": 75});
        let waits = json!({"status": "paused", "progress_percent": 45.9, "speed_bps": 0.0,
            "error": "bob is not to be reached at 192.0.2.1:6001; the fetch goes on when it is back"});
        let name = "a-holiday-film-with-a-long-name.mov";
        for width in [20, 40, 80, 200] {
            for progress in [&is_receiving, &waits] {
                let line = progress_text(name, progress, width);
                assert!(
                    line.chars().count() <= width && line.contains("45 %") && !line.contains('\n'),
                    "{width}: {line}"
                );
            }
            assert!(progress_text(name, &waits, width).contains("nobody sends"), "{width}");
        }
        assert_eq!(progress_text(name, &is_receiving, 20), "45 %, 1.14 MiB/s");
        assert!(
            progress_text(name, &is_receiving, 80)
                .starts_with("a-holiday-film-with-a-long-name.mov: 45 %, 1.14 MiB/s, ")
        );
        assert!(progress_text(name, &waits, 200).ends_with("when it is back"));
        let pending = json!({"status": "pending", "progress_percent": 0.0, "speed_bps": 0.0});
        assert_eq!(progress_text("a", &pending, 40), "a: 0 %, nobody sends yet");
        let all = json!({"status": "downloading", "progress_percent": 100.0, "speed_bps": 0.0});
        assert_eq!(progress_text("a", &all, 40), "a: 100 %, being checked");
    }
}
