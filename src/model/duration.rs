//! Durations as people write them: `500ms`, `10s`, `5m`, `20min`, `1h`, `30d`; a bare number is seconds.

use std::time::Duration;

const EXPECTED: &str =
    "expected a duration: a number with ms, s, m (or min), h or d, such as 500ms or 20min; a bare number is seconds";

/// Parses a duration; fractions are allowed (`1.5s`).
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_s = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(EXPECTED.to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    // Whole milliseconds: nothing here is finer, and 0.1 s must not become 99.999 ms.
    let ms = (number * unit_s * 1000.0).round();
    // Ten years: beyond that, sums of times become meaningless before they overflow.
    if ms > 315_360_000_000.0 {
        return Err("expected a duration of at most 3650d".to_owned());
    }
    Ok(Duration::from_millis(ms as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_show() {
        for (text, ms) in [
            ("500ms", 500),
            ("10", 10_000),
            ("10s", 10_000),
            ("1.5s", 1500),
            ("5m", 300_000),
            ("20min", 1_200_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1y", "1 2", "1e9", "1.2.3s", "4000d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
