//! Points in time as milliseconds since 1970 (UTC), so that a deadline means the same after a restart.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time, in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// The time that many whole seconds after 1970.
    pub fn from_unix_s(seconds: u64) -> Millis {
        Millis(seconds.saturating_mul(1000))
    }

    pub fn plus(self, duration: Duration) -> Millis {
        self.plus_ms(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn plus_ms(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }

    /// The time is earlier if `by_ms` is negative.
    pub fn shifted(self, by_ms: i64) -> Millis {
        Millis(self.0.saturating_add_signed(by_ms))
    }

    /// The duration until `later`; zero if it has passed.
    pub fn until(self, later: Millis) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }

    /// The calendar date (UTC), at most in the year 9999.
    pub fn to_utc(self) -> OffsetDateTime {
        const LAST_S: i64 = 253_402_300_799;
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(LAST_S).min(LAST_S);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Parses a date (midnight, UTC) or a date with time and zone, from 1970 on.
    pub fn parse_iso(text: &str) -> Option<Millis> {
        let midnight = format!("{text}T00:00:00Z");
        let date =
            OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339)).ok()?;
        u64::try_from(date.unix_timestamp()).ok().map(Millis::from_unix_s)
    }

    /// Formats it like `2026-11-21T09:30:00Z`.
    pub fn to_iso(self) -> String {
        self.to_utc().format(&Rfc3339).unwrap_or_default()
    }
}

/// A clock that starts at the wall-clock time and then advances evenly, also while the machine is suspended; it never
/// goes back. What is measured by it (windows, timeouts, elapsed times) has its true length, even if the machine's
/// clock is set meanwhile; a restart reads the wall clock again. A date that is shown, stored or used in a decision
/// (about a card, a token) is [`Clock::wall`], read anew each time: a machine may have started with a wrong clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The wall-clock time at the start, less how long the machine had been running then.
    booted_at_ms: i64,
}

/// Smaller differences are not a step of the machine's clock but its drift, or due to two clocks that are not read at
/// the same instant: a date that is shown twice must be the same.
const CLOCK_STEP_MS: u64 = 50;

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Clock {
        Clock { booted_at_ms: booted_at_ms() }
    }

    /// The current time for windows and timeouts.
    pub fn now(&self) -> Millis {
        Millis(uptime_ms().saturating_add_signed(self.booted_at_ms))
    }

    /// The current time for dates, by the machine's clock as it is set now.
    pub fn wall() -> Millis {
        Millis::default().plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// The date of a time of this clock, by the machine's clock as it is set now.
    pub fn date_of(&self, instant: Millis) -> Millis {
        instant.shifted(self.wall_ahead_ms())
    }

    /// The opposite of [`date_of`](Clock::date_of).
    pub fn instant_of(&self, date: Millis) -> Millis {
        date.shifted(self.wall_ahead_ms().saturating_neg())
    }

    /// By how much the machine's clock was set forward since the start; negative if it was set back.
    pub fn wall_ahead_ms(&self) -> i64 {
        booted_at_ms().saturating_sub(self.booted_at_ms)
    }

    /// As if the machine had started with its clock that far behind, and it was corrected since.
    #[cfg(test)]
    pub(crate) fn behind(by: Duration) -> Clock {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Clock { booted_at_ms: booted_at_ms().saturating_sub(by) }
    }
}

/// When the machine was started, by its clock as it is set now: one number for the whole process, which changes only
/// when that clock is set.
fn booted_at_ms() -> i64 {
    static KNOWN: AtomicI64 = AtomicI64::new(i64::MIN);
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let measured = signed(Clock::wall().0).saturating_sub(signed(uptime_ms()));
    // Relaxed: the number guards no other memory.
    let known = KNOWN.load(Relaxed);
    if measured.abs_diff(known) < CLOCK_STEP_MS {
        return known;
    }
    // If several threads see the first reading or a step at the same time, all use the one that was stored first.
    match KNOWN.compare_exchange(known, measured, Relaxed, Relaxed) {
        Ok(_) => measured,
        Err(by_another) => by_another,
    }
}

fn uptime_ms() -> u64 {
    u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX)
}

/// How long the machine has been running, including suspend.
#[cfg(target_os = "linux")]
fn uptime() -> Duration {
    read(libc::CLOCK_BOOTTIME)
}

#[cfg(target_os = "linux")]
fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is there.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    // It can fail only where the kernel has no such clock, which every kernel since 2.6.39 has.
    assert_eq!(result, 0, "the kernel has clock {clock}");
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// How long the machine has been suspended since it was started, which [`std::time::Instant`] does not count there.
#[cfg(target_os = "linux")]
pub(crate) fn suspended_for() -> Duration {
    read(libc::CLOCK_BOOTTIME).saturating_sub(read(libc::CLOCK_MONOTONIC))
}

/// Zero: whether instants count suspend depends on the system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn suspended_for() -> Duration {
    Duration::ZERO
}

/// How long the process has been running. Whether suspend counts depends on the system.
#[cfg(not(target_os = "linux"))]
fn uptime() -> Duration {
    static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(std::time::Instant::now).elapsed()
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

    #[test]
    fn dates_follow_the_wall_and_windows_do_not() {
        let ten_years = Duration::from_secs(10 * 365 * 24 * 3600);
        let clock = Clock::behind(ten_years);
        let (began, wall) = (clock.now(), Clock::wall());
        let near = |a: Millis, b: Millis| a.0.abs_diff(b.0) < 5_000;
        assert!(near(began.plus(ten_years), wall), "{began:?} {wall:?}");
        assert!(near(clock.date_of(began), wall) && clock.instant_of(clock.date_of(began)) == began);
        // What was an hour ago bears the date of an hour ago.
        assert!(near(clock.date_of(began.shifted(-3_600_000)), wall.shifted(-3_600_000)));
        assert!(clock.wall_ahead_ms().abs_diff(ten_years.as_millis() as i64) < 5_000);
        // Set back: dates are earlier than the clock.
        let ahead = Clock { booted_at_ms: clock.booted_at_ms + 2 * ten_years.as_millis() as i64 };
        assert!(near(ahead.date_of(ahead.now()), wall) && ahead.wall_ahead_ms() < 0);
        assert_eq!((Millis(5).shifted(-6), Millis(5).shifted(6)), (Millis(0), Millis(11)));
    }

    #[test]
    fn a_clock_runs_as_fast_as_time_does() {
        let (clock, began) = (Clock::start(), std::time::Instant::now());
        let first = clock.now();
        while began.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let (measured, passed) = (first.until(clock.now()), began.elapsed());
        assert!(measured >= Duration::from_millis(19) && measured <= passed + Duration::from_millis(2), "{measured:?}");
    }
}
