//! The newest lines that the process has warned by, for its operator: whatever logs, they are kept here too.
//!
//! Lines of a log hold no secrets, and neither do these: they are the same.

use std::collections::VecDeque;

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use parking_lot::Mutex;

use crate::model::text::safe;
use crate::model::{Clock, Millis};

/// How many are kept.
pub const KEPT: usize = 1_000;
/// Most bytes of one of them.
const TEXT_MAX: usize = 2_000;

/// Those of this process.
pub static WARNINGS: Warnings = Warnings::new();

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// When.
    pub at: Millis,
    /// An error, and no warning.
    pub is_error: bool,
    /// What it says. (A line may quote what others said: nothing of it drives a terminal.)
    pub text: String,
}

/// The newest lines.
#[derive(Debug)]
pub struct Warnings(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    newest: VecDeque<Warning>,
    /// How many there were before the oldest of them.
    gone: u64,
}

impl Default for Warnings {
    fn default() -> Warnings {
        Warnings::new()
    }
}

impl Warnings {
    /// None yet.
    pub const fn new() -> Warnings {
        Warnings(Mutex::new(Lines { newest: VecDeque::new(), gone: 0 }))
    }

    /// One more.
    pub fn keep(&self, warning: Warning) {
        let mut lines = self.0.lock();
        if lines.newest.len() == KEPT {
            lines.newest.pop_front();
            lines.gone += 1;
        }
        lines.newest.push_back(warning);
    }

    /// All that are kept, newest first.
    pub fn newest(&self) -> Vec<Warning> {
        self.0.lock().newest.iter().rev().cloned().collect()
    }

    /// How many there were in all.
    pub fn count(&self) -> u64 {
        let lines = self.0.lock();
        lines.gone + lines.newest.len() as u64
    }

    /// Those behind the first so many, as far as they are kept, oldest first.
    pub fn behind(&self, count: u64) -> Vec<Warning> {
        let lines = self.0.lock();
        let passed = usize::try_from(count.saturating_sub(lines.gone)).unwrap_or(usize::MAX);
        lines.newest.iter().skip(passed).cloned().collect()
    }
}

/// A logger, whose warnings and errors are kept as well: those too that it does not write.
struct Keeping<L> {
    logger: L,
    warnings: &'static Warnings,
}

impl<L: Log> Log for Keeping<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= Level::Warn {
            let mut text = safe(&record.args().to_string()).into_owned();
            if text.len() > TEXT_MAX {
                text.truncate(text.floor_char_boundary(TEXT_MAX));
                text.push('…');
            }
            let is_error = record.level() == Level::Error;
            self.warnings.keep(Warning { at: Clock::wall(), is_error, text });
        }
        // It looks by itself at what it is to write.
        self.logger.log(record);
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// Has the process log by this logger, which writes nothing beyond that filter, and keeps its warnings.
///
/// # Errors
/// It has a logger.
pub fn log_by(logger: impl Log + 'static, filter: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Keeping { logger, warnings: &WARNINGS }))?;
    log::set_max_level(filter.max(LevelFilter::Warn));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(text: &str) -> Warning {
        Warning { at: Millis(5), is_error: false, text: text.to_owned() }
    }

    fn texts(warnings: &[Warning]) -> Vec<&str> {
        warnings.iter().map(|warning| warning.text.as_str()).collect()
    }

    #[test]
    fn the_newest_are_kept() {
        let warnings = Warnings::new();
        for nth in 0..KEPT + 5 {
            warnings.keep(warning(&nth.to_string()));
        }
        let newest = warnings.newest();
        assert_eq!((newest.len(), newest[0].text.as_str(), newest[KEPT - 1].text.as_str()), (KEPT, "1004", "5"));
        assert_eq!(warnings.count(), 1005);
        assert_eq!(texts(&warnings.behind(1003)), ["1003", "1004"]);
        assert!(warnings.behind(1005).is_empty() && warnings.behind(9999).is_empty());
        assert_eq!(warnings.behind(2).len(), KEPT, "what is gone is gone");
    }

    #[test]
    fn warnings_are_kept_whatever_is_written() {
        struct Mute;
        impl Log for Mute {
            fn enabled(&self, _: &Metadata<'_>) -> bool {
                false
            }
            fn log(&self, _: &Record<'_>) {}
            fn flush(&self) {}
        }
        static KEPT_HERE: Warnings = Warnings::new();
        let logger = Keeping { logger: Mute, warnings: &KEPT_HERE };
        for (level, text) in [(Level::Info, "no"), (Level::Warn, "a\x1b[2J"), (Level::Error, "b"), (Level::Debug, "no")]
        {
            logger.log(&Record::builder().level(level).args(format_args!("{text}")).build());
        }
        logger.log(&Record::builder().level(Level::Warn).args(format_args!("{}", "ü".repeat(5_000))).build());
        let kept = KEPT_HERE.newest();
        assert_eq!(texts(&kept[1..]), ["b", "a\u{fffd}[2J"]);
        assert!(kept[1].is_error && !kept[2].is_error);
        assert_eq!(kept[0].text, format!("{}…", "ü".repeat(TEXT_MAX / 2)));
        assert!(logger.enabled(&Metadata::builder().level(Level::Warn).build()));
        assert!(!logger.enabled(&Metadata::builder().level(Level::Info).build()));
    }
}
