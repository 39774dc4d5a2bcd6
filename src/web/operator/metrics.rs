//! Metrics of the last 15 minutes as time series, sampled every two seconds from the process's counters.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::OperatorApi;
use crate::model::Clock;
use crate::net::http::{HandlerResult, RouteCall, StatusCode, json};
use crate::net::limits;
use crate::net::periodic::PeriodicTask;
use crate::share::server_api::{MetricKind, Metrics, MetricsSnapshot};

const SAMPLE_INTERVAL_S: u64 = 2;
/// The samples of 15 minutes.
const SAMPLES_MAX: usize = 450;

#[derive(Debug, Clone, Copy)]
enum SeriesSource {
    /// The growth per second of the sum of these counters of a component.
    Rate(&'static str, &'static [&'static str]),
    Size(&'static str, &'static str),
    /// A quantile, in milliseconds, of the latencies since the last sample (0.5: the median).
    Latency(&'static str, f64),
    Process(fn(&limits::ProcessUsage) -> Option<u64>),
}

#[derive(Debug, Clone, Copy)]
struct SeriesDefinition {
    room: &'static str,
    name: &'static str,
    unit: &'static str,
    source: SeriesSource,
}

const fn series(room: &'static str, name: &'static str, unit: &'static str, source: SeriesSource) -> SeriesDefinition {
    SeriesDefinition { room, name, unit, source }
}

/// All series. Those whose component does not run in this process are left out of responses.
const SERIES: &[SeriesDefinition] = &[
    series("trade", "requests", "1/s", SeriesSource::Rate("trade", &["requests"])),
    series("trade", "errors", "1/s", SeriesSource::Rate("trade", &["errors", "unavailable"])),
    series("trade", "p50", "ms", SeriesSource::Latency("trade_requests", 0.5)),
    series("trade", "p95", "ms", SeriesSource::Latency("trade_requests", 0.95)),
    series("trade", "commit p95", "ms", SeriesSource::Latency("trade_commits", 0.95)),
    series("trade", "peers", "count", SeriesSource::Size("trade", "peers")),
    series("trade", "open deals", "count", SeriesSource::Size("trade", "deals_open")),
    series("trade", "purchases", "1/s", SeriesSource::Rate("trade", &["settlements_paid"])),
    series("shop", "requests", "1/s", SeriesSource::Rate("shop", &["buyer_requests", "seller_requests"])),
    series("shop", "errors", "1/s", SeriesSource::Rate("shop", &["buyer_requests_refused", "seller_requests_refused"])),
    series("shop", "p50", "ms", SeriesSource::Latency("shop_requests", 0.5)),
    series("shop", "p95", "ms", SeriesSource::Latency("shop_requests", 0.95)),
    series("shop", "commit p95", "ms", SeriesSource::Latency("shop_commits", 0.95)),
    series("shop", "purchases", "1/s", SeriesSource::Rate("shop", &["buyer_purchases"])),
    series("shop", "items on sale", "count", SeriesSource::Size("shop", "items_on_sale")),
    series("shop", "sessions", "count", SeriesSource::Size("shop", "sessions")),
    series("shop", "purchases under way", "count", SeriesSource::Size("shop", "purchases_under_way")),
    series("share", "requests", "1/s", SeriesSource::Rate("registry", &["requests"])),
    series("share", "errors", "1/s", SeriesSource::Rate("registry", &["requests_refused"])),
    series("share", "p50", "ms", SeriesSource::Latency("registry_requests", 0.5)),
    series("share", "p95", "ms", SeriesSource::Latency("registry_requests", 0.95)),
    series("share", "hosts", "count", SeriesSource::Size("registry", "hosts_live")),
    series("share", "files", "count", SeriesSource::Size("registry", "files_live")),
    series("http", "requests", "1/s", SeriesSource::Rate("http", &["requests"])),
    series(
        "http",
        "errors",
        "1/s",
        SeriesSource::Rate("http", &["requests_refused", "requests_failed", "requests_late"]),
    ),
    series("http", "p50", "ms", SeriesSource::Latency("http", 0.5)),
    series("http", "p95", "ms", SeriesSource::Latency("http", 0.95)),
    series("http", "event streams", "count", SeriesSource::Size("http", "event_streams_open")),
    series("process", "connections", "count", SeriesSource::Size("connections", "open")),
    series(
        "process",
        "connections refused",
        "1/s",
        SeriesSource::Rate("connections", &["refused_full", "refused_address"]),
    ),
    series("process", "threads", "count", SeriesSource::Process(|usage| usage.threads)),
    series("process", "memory", "bytes", SeriesSource::Process(|usage| usage.memory)),
    series("process", "open files", "count", SeriesSource::Process(|usage| usage.files)),
];

struct Measurement {
    at: Instant,
    reading: MetricsSnapshot,
    usage: limits::ProcessUsage,
}

impl SeriesDefinition {
    /// The point of this series: `Some(None)` if the value is not known, `None` if the component does not run.
    fn point(&self, now: &Measurement, before: Option<&Measurement>) -> Option<Option<f64>> {
        let counters = |measurement: &Measurement, part: &str, names: &[&str]| {
            names.iter().map(|name| measurement.reading.value(part, MetricKind::Counters, name)).sum::<Option<u64>>()
        };
        // A component that was missing before counts from 0: everything is 0 when it starts.
        match self.source {
            SeriesSource::Rate(part, names) => {
                let count = counters(now, part, names)?;
                let grown = before.and_then(|before| {
                    let passed = (now.at - before.at).as_secs_f64();
                    let counted = counters(before, part, names).unwrap_or(0);
                    Some(count.checked_sub(counted)? as f64 / passed).filter(|_| passed > 0.0)
                });
                Some(grown)
            }
            SeriesSource::Size(part, name) => Some(Some(now.reading.value(part, MetricKind::Sizes, name)? as f64)),
            SeriesSource::Latency(part, share) => {
                let counts = now.reading.latencies(part)?;
                let counted = before.map(|before| before.reading.latencies(part).copied().unwrap_or_default());
                let told = counted.and_then(|counted| counts.since(&counted).quantile(share));
                Some(told.map(|time| time.as_secs_f64() * 1000.0))
            }
            SeriesSource::Process(of) => Some(Some(of(&now.usage)? as f64)),
        }
    }
}

struct Sample {
    /// Unix seconds.
    at: u64,
    points: Vec<Option<f64>>,
}

#[derive(Default)]
struct SampleHistory {
    last: Option<Measurement>,
    samples: VecDeque<Sample>,
    /// Whether the component of each series ran at the last sample.
    is_available: Vec<bool>,
}

impl SampleHistory {
    fn push(&mut self, sample: Sample) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    fn record(&mut self, now: Measurement, wall_s: u64) {
        let before = self.last.as_ref();
        // Where samples were missed (the machine slept or was overloaded), the series have gaps.
        let passed = before.map_or(Duration::ZERO, |before| now.at - before.at);
        let missed = (passed.as_secs_f64() / SAMPLE_INTERVAL_S as f64).round() as u64;
        let missed = missed.saturating_sub(1).min(SAMPLES_MAX as u64);
        let points: Vec<_> = SERIES.iter().map(|series| series.point(&now, before.filter(|_| missed == 0))).collect();
        for number in (1..=missed).rev() {
            self.push(Sample {
                at: wall_s.saturating_sub(number * SAMPLE_INTERVAL_S),
                points: vec![None; SERIES.len()],
            });
        }
        self.is_available = points.iter().map(Option::is_some).collect();
        self.push(Sample { at: wall_s, points: points.into_iter().map(Option::flatten).collect() });
        self.last = Some(now);
    }
}

pub(super) struct MetricsRecorder {
    history: Arc<Mutex<SampleHistory>>,
    _timer: PeriodicTask,
}

impl MetricsRecorder {
    pub(super) fn start(metrics: Arc<Metrics>) -> std::io::Result<MetricsRecorder> {
        let history = Arc::new(Mutex::new(SampleHistory::default()));
        let measure = {
            let history = Arc::clone(&history);
            move || {
                let measurement =
                    Measurement { at: Instant::now(), reading: metrics.snapshot(), usage: limits::process_usage() };
                history.lock().record(measurement, Clock::wall().0 / 1000);
            }
        };
        measure();
        let timer = PeriodicTask::start("figures", Duration::from_secs(SAMPLE_INTERVAL_S), measure)?;
        Ok(MetricsRecorder { history, _timer: timer })
    }
}

#[derive(Serialize)]
struct Series {
    room: &'static str,
    name: &'static str,
    unit: &'static str,
    points: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct MetricsResponse {
    success: bool,
    step_s: u64,
    times: Vec<u64>,
    series: Vec<Series>,
}

pub(super) fn metrics(operator: &OperatorApi, _: &RouteCall<'_>) -> HandlerResult {
    let response = metrics_response(&operator.metrics_recorder.history.lock());
    Ok(json(StatusCode::OK, &response))
}

fn metrics_response(history: &SampleHistory) -> MetricsResponse {
    let of = |place: usize, series: &SeriesDefinition| Series {
        room: series.room,
        name: series.name,
        unit: series.unit,
        points: history.samples.iter().map(|sample| sample.points[place].map(rounded)).collect(),
    };
    let there = SERIES.iter().enumerate().filter(|(place, _)| history.is_available.get(*place) == Some(&true));
    MetricsResponse {
        success: true,
        step_s: SAMPLE_INTERVAL_S,
        times: history.samples.iter().map(|sample| sample.at).collect(),
        series: there.map(|(place, series)| of(place, series)).collect(),
    }
}

/// Rounds to thousandths: further digits are noise.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::counters::{Counter, LatencyHistogram};

    /// A server process in which only trade runs.
    struct World {
        metrics: Metrics,
        requests: Arc<Counter>,
        latencies: Arc<LatencyHistogram>,
        began_at: Instant,
    }

    impl World {
        fn new() -> World {
            let metrics = Metrics::new().unwrap();
            let (requests, latencies) = (Arc::<Counter>::default(), Arc::<LatencyHistogram>::default());
            let (count, times) = (Arc::clone(&requests), Arc::clone(&latencies));
            metrics.add_counters("trade", move || vec![("requests", count.get())]);
            metrics.add_sizes("trade", || vec![("peers", 5)]);
            metrics.add_latencies("trade_requests", move || times.snapshot());
            World { metrics, requests, latencies, began_at: Instant::now() }
        }

        fn measure(&self, at_s: u64) -> Measurement {
            let usage = limits::ProcessUsage { threads: Some(9), memory: None, files: None };
            Measurement { at: self.began_at + Duration::from_secs(at_s), reading: self.metrics.snapshot(), usage }
        }
    }

    fn points(response: &MetricsResponse, room: &str, name: &str) -> Vec<Option<f64>> {
        response.series.iter().find(|series| series.room == room && series.name == name).unwrap().points.clone()
    }

    #[test]
    fn what_is_counted_becomes_lines_and_what_is_not_known_a_gap() {
        let (world, mut history) = (World::new(), SampleHistory::default());
        history.record(world.measure(0), 1000);
        world.requests.add(20);
        world.latencies.record(Duration::from_millis(3));
        history.record(world.measure(2), 1002);
        world.requests.add(1);
        history.record(world.measure(4), 1004);
        // No sample for six seconds.
        world.requests.add(600);
        history.record(world.measure(10), 1010);
        // A component that starts late counts from its start.
        world.metrics.add_counters("registry", || vec![("requests", 8)]);
        history.record(world.measure(12), 1012);
        let response = metrics_response(&history);
        assert_eq!(response.times, [1000, 1002, 1004, 1006, 1008, 1010, 1012]);
        let requests = [None, Some(10.0), Some(0.5), None, None, None, Some(0.0)];
        assert_eq!(points(&response, "trade", "requests"), requests);
        let peers = [Some(5.0), Some(5.0), Some(5.0), None, None, Some(5.0), Some(5.0)];
        assert_eq!(points(&response, "trade", "peers"), peers);
        let latency = points(&response, "trade", "p95");
        assert!((2.0..4.3).contains(&latency[1].unwrap()), "{latency:?}");
        assert_eq!(latency[2], None, "nothing was asked");
        assert_eq!(points(&response, "process", "threads")[0], Some(9.0));
        assert_eq!(points(&response, "share", "requests")[5..], [None, Some(4.0)]);
        let names: Vec<_> = response.series.iter().map(|series| (series.room, series.name)).collect();
        let there = [
            ("trade", "requests"),
            ("trade", "p50"),
            ("trade", "p95"),
            ("trade", "peers"),
            ("share", "requests"),
            ("http", "p50"),
            ("http", "p95"),
            ("process", "threads"),
        ];
        assert_eq!(names, there, "of what runs here");
    }

    #[test]
    fn a_quarter_of_an_hour_is_kept_and_no_more() {
        let (world, mut history) = (World::new(), SampleHistory::default());
        for number in 0..500 {
            history.record(world.measure(2 * number), 1000 + 2 * number);
        }
        let whole = metrics_response(&history);
        assert_eq!((whole.times.len(), whole.times[0]), (SAMPLES_MAX, 1000 + 2 * 50));
        assert!(whole.series.iter().all(|series| series.points.len() == SAMPLES_MAX));
        // After a machine has slept for a day, all but the newest sample is a gap.
        history.record(world.measure(100_000), 101_000);
        let after = metrics_response(&history);
        assert_eq!(after.times.len(), SAMPLES_MAX);
        assert_eq!(points(&after, "trade", "peers").iter().flatten().count(), 1);
    }

    #[test]
    fn there_are_so_many_lines_and_each_is_one() {
        let mut names: Vec<_> = SERIES.iter().map(|series| (series.room, series.name)).collect();
        assert!(names.len() <= 40, "what a page draws again every few seconds");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SERIES.len());
    }
}
