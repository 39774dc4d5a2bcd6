//! `/metrics`: all counters, sizes and latencies of the server in the Prometheus text format.

use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, TextEncoder};

use crate::net::counters::{LatencyHistogram, LatencySnapshot};
use crate::net::http::{Response, StatusCode, error};

type LatencySource = Box<dyn Fn() -> LatencySnapshot + Send + Sync>;

/// The part whose latencies are counted here, for [`Metrics::snapshot`].
const HTTP_PART: &str = "http";

type ValueSource = Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// How often something has happened since the start.
    Counters,
    /// How much there is now.
    Sizes,
}

/// HTTP metrics, and the sources of all others.
pub struct Metrics {
    registry: Registry,
    request_seconds: HistogramVec,
    sources: Mutex<Vec<(&'static str, MetricKind, ValueSource)>>,
    latencies: Mutex<Vec<(&'static str, LatencySource)>>,
    /// All routes together.
    http_latencies: LatencyHistogram,
}

#[derive(Debug, Default)]
pub struct MetricsSnapshot {
    /// Part, kind, name and value.
    values: Vec<(&'static str, MetricKind, String, u64)>,
    latencies: Vec<(&'static str, LatencySnapshot)>,
}

impl MetricsSnapshot {
    pub fn value(&self, part: &str, kind: MetricKind, name: &str) -> Option<u64> {
        let is_it = |(its_part, its_kind, its_name, _): &&(&str, MetricKind, String, u64)| {
            *its_part == part && *its_kind == kind && its_name == name
        };
        self.values.iter().find(is_it).map(|(.., number)| *number)
    }

    pub fn latencies(&self, part: &str) -> Option<&LatencySnapshot> {
        self.latencies.iter().find(|(its_part, _)| *its_part == part).map(|(_, counts)| counts)
    }
}

impl Metrics {
    /// An error would be a bug in this program: an invalid name of a metric.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let what = "How long requests at the HTTP port took to be answered, seconds";
        let request_seconds =
            HistogramVec::new(HistogramOpts::new("p2s2_http_request_seconds", what), &["route", "status"])?;
        let registry = Registry::new();
        registry.register(Box::new(request_seconds.clone()))?;
        let (sources, latencies, http_latencies) = (Mutex::default(), Mutex::default(), LatencyHistogram::default());
        Ok(Metrics { registry, request_seconds, sources, latencies, http_latencies })
    }

    /// The source is read whenever the metrics are: each value becomes the counter `p2s2_PART_NAME_total`.
    pub fn add_counters<N: Into<String>>(
        &self,
        part: &'static str,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        self.add(part, MetricKind::Counters, source);
    }

    /// Each value becomes the gauge `p2s2_PART_NAME`.
    pub fn add_sizes<N: Into<String>>(
        &self,
        part: &'static str,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        self.add(part, MetricKind::Sizes, source);
    }

    /// They become the histogram `p2s2_PART_seconds`.
    pub fn add_latencies(&self, part: &'static str, source: impl Fn() -> LatencySnapshot + Send + Sync + 'static) {
        self.latencies.lock().push((part, Box::new(source)));
    }

    pub fn snapshot(&self) -> MetricsSnapshot {
        let values_of = |(part, kind, source): &(&'static str, MetricKind, ValueSource)| {
            let (part, kind) = (*part, *kind);
            source().into_iter().map(move |(name, number)| (part, kind, name, number))
        };
        let values = self.sources.lock().iter().flat_map(values_of).collect();
        let mut latencies: Vec<_> = self.latencies.lock().iter().map(|(part, source)| (*part, source())).collect();
        latencies.push((HTTP_PART, self.http_latencies.snapshot()));
        MetricsSnapshot { values, latencies }
    }

    fn add<N: Into<String>>(
        &self,
        part: &'static str,
        kind: MetricKind,
        source: impl Fn() -> Vec<(N, u64)> + Send + Sync + 'static,
    ) {
        let named = move || source().into_iter().map(|(name, count)| (name.into(), count)).collect();
        self.sources.lock().push((part, kind, Box::new(named)));
    }

    pub fn record_request(&self, route: &str, status: StatusCode, took: Duration) {
        self.request_seconds.with_label_values(&[route, status.as_str()]).observe(took.as_secs_f64());
        self.http_latencies.record(took);
    }

    pub(super) fn render_response(&self) -> Response {
        match self.render() {
            Ok(text) => Response::new(StatusCode::OK, "text/plain; version=0.0.4", text),
            Err(failed) => {
                log::error!("metrics: {failed}");
                error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written")
            }
        }
    }

    fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let now = Registry::new();
        for (part, kind, source) in &*self.sources.lock() {
            for (name, count) in source() {
                let what = format!("{part}: {}", name.replace('_', " "));
                match kind {
                    MetricKind::Counters => {
                        let counter = IntCounter::new(format!("p2s2_{part}_{name}_total"), what)?;
                        counter.inc_by(count);
                        now.register(Box::new(counter))?;
                    }
                    MetricKind::Sizes => {
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

/// Histogram buckets outside this range are not shown, nanoseconds: about a microsecond to about a minute.
const BUCKET_RANGE_NS: std::ops::RangeInclusive<u128> = 1 << 10..=1 << 36;

/// Latencies in the Prometheus text format. (The prometheus crate cannot show a histogram counted elsewhere.)
fn histogram(part: &str, counts: &LatencySnapshot) -> String {
    let (name, count, sum) = (format!("p2s2_{part}_seconds"), counts.count(), counts.sum().as_secs_f64());
    let mut text = format!("# HELP {name} {part}: seconds\n# TYPE {name} histogram\n");
    let shown = counts.cumulative_buckets().filter(|(up_to, _)| BUCKET_RANGE_NS.contains(&up_to.as_nanos()));
    for (up_to, below) in shown {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {below}", up_to.as_secs_f64());
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_prometheus_reads_them() {
        let metrics = Metrics::new().unwrap();
        metrics.add_counters("registry", || vec![("requests", 7), ("pings", 3)]);
        metrics.add_sizes("registry", || vec![("hosts", 2)]);
        metrics.record_request("health", StatusCode::OK, Duration::from_millis(2));
        let latencies = LatencyHistogram::default();
        latencies.record(Duration::from_millis(3));
        let counts = latencies.snapshot();
        metrics.add_latencies("trade_requests", move || counts);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
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
        assert_eq!(text, String::from_utf8(metrics.render().unwrap()).unwrap(), "shown as often as it is asked for");
        let reading = metrics.snapshot();
        assert_eq!(reading.value("registry", MetricKind::Counters, "requests"), Some(7));
        assert_eq!(reading.value("registry", MetricKind::Sizes, "hosts"), Some(2));
        assert_eq!(reading.value("registry", MetricKind::Sizes, "requests"), None);
        assert_eq!(reading.latencies("trade_requests").map(LatencySnapshot::count), Some(1));
        assert_eq!(reading.latencies("http").map(LatencySnapshot::count), Some(1));
        // A duplicate name gives an error response but no panic.
        metrics.add_counters("registry", || vec![("requests", 1)]);
        assert_eq!(metrics.render_response().status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
