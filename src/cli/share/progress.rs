//! How far a fetch is, on one line of a terminal that never becomes two.

use std::io::{self, IsTerminal};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::cli::repl::clean;

/// The line. Shown at a terminal, on the error output: what is printed stays what was asked for.
pub(super) struct Line {
    name: String,
    bar: ProgressBar,
}

impl Line {
    /// Of a file.
    pub(super) fn new(name: &str, is_wanted: bool) -> Line {
        let is_shown = is_wanted && io::stderr().is_terminal() && io::stdout().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        // A style that is written here is one that can be read. What is too wide for the terminal is cut.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Line { name: clean(name), bar }
    }

    /// Nobody sees it.
    pub(super) fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Says something above it.
    pub(super) fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("note: {}", clean(text)));
    }

    /// How far it is now.
    pub(super) fn show(&self, progress: &Value) {
        if !self.is_hidden() {
            self.bar.set_message(text(&self.name, progress, width()));
            self.bar.tick();
        }
    }

    /// Takes it away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Characters of a line, as the terminal is now.
fn width() -> usize {
    #[cfg(unix)]
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stderr())
        && size.ws_col > 0
    {
        return usize::from(size.ws_col);
    }
    80
}

/// What fits into so many characters, the most important first: how far, or why nothing comes; how fast; how long; of
/// which file.
fn text(name: &str, progress: &Value, width: usize) -> String {
    let percent = format!("{:.0} %", progress["progress_percent"].as_f64().unwrap_or_default().floor());
    let speed = progress["speed_bps"].as_f64().unwrap_or_default();
    let comes = progress["status"] == "downloading" && speed >= 1.0;
    let mut parts = vec![percent];
    if comes {
        // Beyond an f64's whole numbers nothing is so fast.
        parts.push(format!("{}/s", HumanBytes(speed as u64)));
        if let Some(seconds) = progress["eta_seconds"].as_u64() {
            parts.push(format!("{} left", HumanDuration(std::time::Duration::from_secs(seconds))));
        }
    } else {
        let why = progress["error"].as_str().map(clean);
        parts.push(match (why, progress["status"].as_str()) {
            (Some(why), _) => format!("nobody sends: {why}"),
            (None, Some("paused")) => "paused".to_owned(),
            // All of it has come, and is looked at once more.
            (None, _) if progress["progress_percent"].as_f64().is_some_and(|percent| percent >= 100.0) => {
                "being checked".to_owned()
            }
            (None, _) => "nobody sends yet".to_owned(),
        });
    }
    let mut said = String::new();
    for part in parts {
        let wider = if said.is_empty() { part } else { format!("{said}, {part}") };
        if !said.is_empty() && wider.chars().count() > width {
            // The reason may be cut, a number not.
            if !comes {
                said = wider.chars().take(width).collect();
            }
            break;
        }
        said = wider;
    }
    let with_name = format!("{name}: {said}");
    if with_name.chars().count() <= width { with_name } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_fits_at_any_width_and_says_what_matters_first() {
        let comes =
            json!({"status": "downloading", "progress_percent": 45.9, "speed_bps": 1_200_000.0, "eta_seconds": 75});
        let waits = json!({"status": "paused", "progress_percent": 45.9, "speed_bps": 0.0,
            "error": "bob is not to be reached at 192.0.2.1:6001; the fetch goes on when it is back"});
        let name = "a-holiday-film-with-a-long-name.mov";
        for width in [20, 40, 80, 200] {
            for progress in [&comes, &waits] {
                let said = text(name, progress, width);
                assert!(
                    said.chars().count() <= width && said.contains("45 %") && !said.contains('\n'),
                    "{width}: {said}"
                );
            }
            assert!(text(name, &waits, width).contains("nobody sends"), "{width}");
        }
        assert_eq!(text(name, &comes, 20), "45 %, 1.14 MiB/s");
        assert!(text(name, &comes, 80).starts_with("a-holiday-film-with-a-long-name.mov: 45 %, 1.14 MiB/s, "));
        assert!(text(name, &waits, 200).ends_with("when it is back"));
        let pending = json!({"status": "pending", "progress_percent": 0.0, "speed_bps": 0.0});
        assert_eq!(text("a", &pending, 40), "a: 0 %, nobody sends yet");
        let all = json!({"status": "downloading", "progress_percent": 100.0, "speed_bps": 0.0});
        assert_eq!(text("a", &all, 40), "a: 100 %, being checked");
    }
}
