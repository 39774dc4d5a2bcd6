//! A logger that also keeps the newest warnings and errors of the process in memory, for the operator's API. Log lines
//! hold no secrets, so these do not either.

use std::collections::VecDeque;

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use parking_lot::Mutex;

use crate::model::text::escape_unsafe;
use crate::model::{Clock, Millis};

pub const WARNINGS_MAX: usize = 1_000;
/// Longer texts are truncated.
const TEXT_MAX_BYTES: usize = 2_000;

pub static WARNINGS: Warnings = Warnings::new();

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// When it was logged, by the wall clock.
    pub at: Millis,
    pub is_error: bool,
    /// The message, without control characters: it may quote what others have sent.
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Warnings(Mutex<WarningBuffer>);

#[derive(Debug, Default)]
struct WarningBuffer {
    newest: VecDeque<Warning>,
    /// How many older ones have been evicted.
    evicted: u64,
}

impl Warnings {
    pub const fn new() -> Warnings {
        Warnings(Mutex::new(WarningBuffer { newest: VecDeque::new(), evicted: 0 }))
    }

    /// Adds a warning; the oldest is evicted if the buffer is full.
    pub fn push(&self, warning: Warning) {
        let mut buffer = self.0.lock();
        if buffer.newest.len() == WARNINGS_MAX {
            buffer.newest.pop_front();
            buffer.evicted += 1;
        }
        buffer.newest.push_back(warning);
    }

    pub fn newest(&self) -> Vec<Warning> {
        self.0.lock().newest.iter().rev().cloned().collect()
    }

    /// How many have ever been added.
    pub fn count(&self) -> u64 {
        let buffer = self.0.lock();
        buffer.evicted + buffer.newest.len() as u64
    }

    /// Those that were added after the first `count`, as far as they are still kept, oldest first.
    pub fn since(&self, count: u64) -> Vec<Warning> {
        let buffer = self.0.lock();
        let skipped = usize::try_from(count.saturating_sub(buffer.evicted)).unwrap_or(usize::MAX);
        buffer.newest.iter().skip(skipped).cloned().collect()
    }
}

/// Wraps a logger and records all warnings and errors, also those that the logger does not write.
struct RecordingLogger<L> {
    logger: L,
    warnings: &'static Warnings,
}

impl<L: Log> Log for RecordingLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= Level::Warn {
            let mut text = escape_unsafe(&record.args().to_string()).into_owned();
            if text.len() > TEXT_MAX_BYTES {
                text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
                text.push('…');
            }
            let is_error = record.level() == Level::Error;
            self.warnings.push(Warning { at: Clock::wall(), is_error, text });
        }
        // The logger applies its own filter.
        self.logger.log(record);
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// Installs `logger` for the process, wrapped so that its warnings are recorded in [`WARNINGS`]. `filter` is the most
/// verbose level that the logger writes.
pub fn install_logger(logger: impl Log + 'static, filter: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(RecordingLogger { logger, warnings: &WARNINGS }))?;
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
        for nth in 0..WARNINGS_MAX + 5 {
            warnings.push(warning(&nth.to_string()));
        }
        let newest = warnings.newest();
        assert_eq!(
            (newest.len(), newest[0].text.as_str(), newest[WARNINGS_MAX - 1].text.as_str()),
            (WARNINGS_MAX, "1004", "5")
        );
        assert_eq!(warnings.count(), 1005);
        assert_eq!(texts(&warnings.since(1003)), ["1003", "1004"]);
        assert!(warnings.since(1005).is_empty() && warnings.since(9999).is_empty());
        assert_eq!(warnings.since(2).len(), WARNINGS_MAX, "what is gone is gone");
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
        let logger = RecordingLogger { logger: Mute, warnings: &KEPT_HERE };
        for (level, text) in [(Level::Info, "no"), (Level::Warn, "a\x1b[2J"), (Level::Error, "b"), (Level::Debug, "no")]
        {
            logger.log(&Record::builder().level(level).args(format_args!("{text}")).build());
        }
        logger.log(&Record::builder().level(Level::Warn).args(format_args!("{}", "ü".repeat(5_000))).build());
        let kept = KEPT_HERE.newest();
        assert_eq!(texts(&kept[1..]), ["b", "a\u{fffd}[2J"]);
        assert!(kept[1].is_error && !kept[2].is_error);
        assert_eq!(kept[0].text, format!("{}…", "ü".repeat(TEXT_MAX_BYTES / 2)));
        assert!(logger.enabled(&Metadata::builder().level(Level::Warn).build()));
        assert!(!logger.enabled(&Metadata::builder().level(Level::Info).build()));
    }
}
