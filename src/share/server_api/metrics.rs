//! `/metrics`: everything that the server counts, as Prometheus reads it.

use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, TextEncoder};

use crate::net::counters::{Latencies, LatencyCounts};
use crate::net::http::{Response, StatusCode, error};

/// Where the latencies of one part come from.
type LatencySource = Box<dyn Fn() -> LatencyCounts + Send + Sync>;

/// The part whose latencies are counted here, for [`Metrics::read`].
const HTTP: &str = "http";

/// Where the numbers of one part of the server come from.
type Source = Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;

/// What a part's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// How often something happened since the start.
    Counters,
    /// How much there is now.
    Sizes,
}

/// What is counted here, and where the rest is counted.
pub struct Metrics {
    registry: Registry,
    seconds: HistogramVec,
    sources: Mutex<Vec<(&'static str, Kind, Source)>>,
    latencies: Mutex<Vec<(&'static str, LatencySource)>>,
    /// Of all routes together.
    http: Latencies,
}

/// What all sources say at one time.
#[derive(Debug, Default)]
pub struct Reading {
    /// Part, kind, name, and how much.
    numbers: Vec<(&'static str, Kind, String, u64)>,
    latencies: Vec<(&'static str, LatencyCounts)>,
}

impl Reading {
    /// A number of a part.
    pub fn number(&self, part: &str, kind: Kind, name: &str) -> Option<u64> {
        let is_it = |(its_part, its_kind, its_name, _): &&(&str, Kind, String, u64)| {
            *its_part == part && *its_kind == kind && its_name == name
        };
        self.numbers.iter().find(is_it).map(|(.., number)| *number)
    }

    /// How long what a part does took.
    pub fn latencies(&self, part: &str) -> Option<&LatencyCounts> {
        self.latencies.iter().find(|(its_part, _)| *its_part == part).map(|(_, counts)| counts)
    }
}

impl Metrics {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// A name that Prometheus does not allow: a mistake in this program.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let what = "How long requests at the HTTP port took to be answered, seconds";
        let seconds = HistogramVec::new(HistogramOpts::new("p2s2_http_request_seconds", what), &["route", "status"])?;
        let registry = Registry::new();
        registry.register(Box::new(seconds.clone()))?;
        Ok(Metrics {
            registry,
            seconds,
            sources: Mutex::default(),
            latencies: Mutex::default(),
            http: Latencies::default(),
        })
    }

    /// What a part of the server has counted, asked for whenever it is to be shown: each becomes the counter
    /// `p2s2_PART_NAME_total`.
    pub fn add_counters<N: Into<String>>(
        &self,
        part: &'static str,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        self.add(part, Kind::Counters, source);
    }

    /// How much a part of the server has now: each becomes the gauge `p2s2_PART_NAME`.
    pub fn add_sizes<N: Into<String>>(
        &self,
        part: &'static str,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        self.add(part, Kind::Sizes, source);
    }

    /// How long what a part of the server does took: the histogram `p2s2_PART_seconds`.
    pub fn add_latencies(&self, part: &'static str, source: impl Fn() -> LatencyCounts + Send + Sync + 'static) {
        self.latencies.lock().push((part, Box::new(source)));
    }

    /// Asks all sources.
    pub fn read(&self) -> Reading {
        let sources = self.sources.lock();
        let all = sources.iter().flat_map(|(part, kind, source)| {
            source().into_iter().map(move |(name, number)| (*part, *kind, name, number))
        });
        let numbers = all.collect();
        drop(sources);
        let mut latencies: Vec<_> = self.latencies.lock().iter().map(|(part, source)| (*part, source())).collect();
        latencies.push((HTTP, self.http.counts()));
        Reading { numbers, latencies }
    }

    fn add<N: Into<String>>(
        &self,
        part: &'static str,
        kind: Kind,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        let named = move || source().into_iter().map(|(name, count)| (name.into(), count)).collect();
        self.sources.lock().push((part, kind, Box::new(named)));
    }

    /// A request was answered.
    pub fn count(&self, route: &str, status: StatusCode, took: Duration) {
        self.seconds.with_label_values(&[route, status.as_str()]).observe(took.as_secs_f64());
        self.http.took(took);
    }

    /// All of it as text.
    pub(super) fn show(&self) -> Response {
        match self.text() {
            Ok(text) => Response::new(StatusCode::OK, "text/plain; version=0.0.4", text),
            Err(failed) => {
                log::error!("metrics: {failed}");
                error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written")
            }
        }
    }

    fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let now = Registry::new();
        for (part, kind, source) in &*self.sources.lock() {
            for (name, count) in source() {
                let what = format!("{part}: {}", name.replace('_', " "));
                match kind {
                    Kind::Counters => {
                        let counter = IntCounter::new(format!("p2s2_{part}_{name}_total"), what)?;
                        counter.inc_by(count);
                        now.register(Box::new(counter))?;
                    }
                    Kind::Sizes => {
                        let gauge = IntGauge::new(format!("p2s2_{part}_{name}"), what)?;
                        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                        now.register(Box::new(gauge))?;
                    }
                }
            }
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        TextEncoder::new().encode(&now.gather(), &mut text)?;
        for (part, source) in &*self.latencies.lock() {
            text.extend_from_slice(histogram(part, &source()).as_bytes());
        }
        Ok(text)
    }
}

/// The shortest and the longest time that have a line of their own, nanoseconds: a microsecond, a minute.
const SHOWN_NS: std::ops::RangeInclusive<u128> = 1 << 10..=1 << 36;

/// Latencies as Prometheus reads them. (Its crate has no histogram that somebody else has counted.)
fn histogram(part: &str, counts: &LatencyCounts) -> String {
    let (name, count, sum) = (format!("p2s2_{part}_seconds"), counts.count(), counts.sum().as_secs_f64());
    let mut text = format!("# HELP {name} {part}: seconds\n# TYPE {name} histogram\n");
    let shown = counts.up_to().filter(|(up_to, _)| SHOWN_NS.contains(&up_to.as_nanos()));
    for (up_to, below) in shown {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {below}", up_to.as_secs_f64());
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    text
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_prometheus_reads_them() {
        let metrics = Metrics::new().unwrap();
        metrics.add_counters("registry", || vec![("requests", 7), ("pings", 3)]);
        metrics.add_sizes("registry", || vec![("hosts", 2)]);
        metrics.count("health", StatusCode::OK, Duration::from_millis(2));
        let latencies = Latencies::default();
        latencies.took(Duration::from_millis(3));
        let counts = latencies.counts();
        metrics.add_latencies("trade_requests", move || counts);
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for line in [
            "# TYPE p2s2_registry_requests_total counter",
            "p2s2_registry_requests_total 7",
            "p2s2_registry_pings_total 3",
            "# TYPE p2s2_registry_hosts gauge",
            "p2s2_registry_hosts 2",
            "# TYPE p2s2_http_request_seconds histogram",
            "p2s2_http_request_seconds_count{route=\"health\",status=\"200\"} 1",
            "# TYPE p2s2_trade_requests_seconds histogram",
            "p2s2_trade_requests_seconds_bucket{le=\"0.002097152\"} 0",
            "p2s2_trade_requests_seconds_bucket{le=\"0.004194304\"} 1",
            "p2s2_trade_requests_seconds_bucket{le=\"+Inf\"} 1",
            "p2s2_trade_requests_seconds_sum 0.003",
            "p2s2_trade_requests_seconds_count 1",
        ] {
            assert!(text.lines().any(|said| said == line), "{line}: {text}");
        }
        assert_eq!(text, String::from_utf8(metrics.text().unwrap()).unwrap(), "shown as often as it is asked for");
        let reading = metrics.read();
        assert_eq!(reading.number("registry", Kind::Counters, "requests"), Some(7));
        assert_eq!(reading.number("registry", Kind::Sizes, "hosts"), Some(2));
        assert_eq!(reading.number("registry", Kind::Sizes, "requests"), None);
        assert_eq!(reading.latencies("trade_requests").map(LatencyCounts::count), Some(1));
        assert_eq!(reading.latencies("http").map(LatencyCounts::count), Some(1));
        // The same name twice would be no metrics: said, and nothing ends.
        metrics.add_counters("registry", || vec![("requests", 1)]);
        assert_eq!(metrics.show().status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
