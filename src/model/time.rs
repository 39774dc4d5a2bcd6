//! Instants: milliseconds since 1970 (UTC), so that a deadline means the same after a restart.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// The instant that many whole seconds after 1970.
    pub fn from_unix_s(seconds: u64) -> Millis {
        Millis(seconds.saturating_mul(1000))
    }

    /// Later by a duration.
    pub fn plus(self, duration: Duration) -> Millis {
        self.plus_ms(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Later by milliseconds.
    pub fn plus_ms(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }

    /// How long until `later`; nothing if it has passed.
    pub fn until(self, later: Millis) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }

    /// The same instant as a calendar date (UTC), at most the year 9999.
    pub fn to_utc(self) -> OffsetDateTime {
        const LAST_S: i64 = 253_402_300_799;
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(LAST_S).min(LAST_S);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Reads a date (midnight, UTC) or a date with time and zone, from 1970 on.
    pub fn parse_iso(text: &str) -> Option<Millis> {
        let midnight = format!("{text}T00:00:00Z");
        let date =
            OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339)).ok()?;
        u64::try_from(date.unix_timestamp()).ok().map(Millis::from_unix_s)
    }

    /// `2026-11-21T09:30:00Z`.
    pub fn to_iso(self) -> String {
        self.to_utc().format(&Rfc3339).unwrap_or_default()
    }
}

/// A clock that starts at the wall's time and never goes back while the process lives.
///
/// Someone who sets the machine's clock changes nothing for a running server; a restart reads the
/// wall again.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    started_at: Millis,
}

impl Clock {
    /// Reads the wall's time once.
    pub fn start() -> Clock {
        Clock { started: Instant::now(), started_at: Clock::wall() }
    }

    /// What time it is.
    pub fn now(&self) -> Millis {
        self.started_at.plus(self.started.elapsed())
    }

    /// What time of day it is, by the machine's clock as it is set now: for what others compare with theirs. (The
    /// clock itself stands still while the machine sleeps.)
    pub fn wall() -> Millis {
        Millis::default().plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// As after the machine has slept for so long.
    #[cfg(test)]
    pub(crate) fn behind(by: Duration) -> Clock {
        let clock = Clock::start();
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Clock { started_at: Millis(clock.started_at.0.saturating_sub(by)), ..clock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_add_and_show() {
        let instant = Millis::from_unix_s(1_795_253_400);
        assert_eq!(instant.to_iso(), "2026-11-21T09:30:00Z");
        assert_eq!(Millis::parse_iso("2026-11-21T09:30:00Z"), Some(instant));
        assert_eq!(Millis::parse_iso("2026-11-21"), Some(Millis::from_unix_s(1_795_219_200)));
        assert_eq!(Millis::parse_iso("yesterday"), None);
        assert_eq!(instant.until(instant.plus_ms(5)), Duration::from_millis(5));
        assert_eq!(instant.plus_ms(5).until(instant), Duration::ZERO);
        assert_eq!(Millis(u64::MAX).plus_ms(1), Millis(u64::MAX));
        assert!(Millis(u64::MAX).to_iso().starts_with("9999-12-31"));
    }

    #[test]
    fn a_clock_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(clock.now() >= first && first > Millis::from_unix_s(1_700_000_000));
    }
}
