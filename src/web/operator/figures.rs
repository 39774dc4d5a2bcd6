//! The figures of the last quarter of an hour: what is counted anyway, looked at every two seconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::Operator;
use crate::model::Clock;
use crate::net::http::{Answered, Call, StatusCode, json};
use crate::net::limits;
use crate::net::periodic::Periodic;
use crate::share::server_api::{Kind, Metrics, Reading};

/// Between two looks, seconds.
const STEP_S: u64 = 2;
/// How many are kept: those of 15 minutes.
const KEPT: usize = 450;

/// What a point is made of.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// How much these counters of a part have grown together, a second.
    Rate(&'static str, &'static [&'static str]),
    /// How much there is.
    Size(&'static str, &'static str),
    /// Below how many milliseconds this part (0.5: half) of what was done since the last look stayed.
    Latency(&'static str, f64),
    /// What the system says of the process.
    Process(fn(&limits::Usage) -> Option<u64>),
}

/// A line of a chart.
#[derive(Debug, Clone, Copy)]
struct Line {
    room: &'static str,
    name: &'static str,
    unit: &'static str,
    from: Source,
}

const fn line(room: &'static str, name: &'static str, unit: &'static str, from: Source) -> Line {
    Line { room, name, unit, from }
}

/// All that is shown, where its part runs.
const LINES: &[Line] = &[
    line("trade", "requests", "1/s", Source::Rate("trade", &["requests"])),
    line("trade", "errors", "1/s", Source::Rate("trade", &["errors", "unavailable"])),
    line("trade", "p50", "ms", Source::Latency("trade_requests", 0.5)),
    line("trade", "p95", "ms", Source::Latency("trade_requests", 0.95)),
    line("trade", "commit p95", "ms", Source::Latency("trade_commits", 0.95)),
    line("trade", "peers", "count", Source::Size("trade", "peers")),
    line("trade", "open deals", "count", Source::Size("trade", "deals_open")),
    line("trade", "purchases", "1/s", Source::Rate("trade", &["settlements_paid"])),
    line("shop", "requests", "1/s", Source::Rate("shop", &["buyer_requests", "seller_requests"])),
    line("shop", "errors", "1/s", Source::Rate("shop", &["buyer_requests_refused", "seller_requests_refused"])),
    line("shop", "p50", "ms", Source::Latency("shop_requests", 0.5)),
    line("shop", "p95", "ms", Source::Latency("shop_requests", 0.95)),
    line("shop", "commit p95", "ms", Source::Latency("shop_commits", 0.95)),
    line("shop", "purchases", "1/s", Source::Rate("shop", &["buyer_purchases"])),
    line("shop", "items on sale", "count", Source::Size("shop", "items_on_sale")),
    line("shop", "sessions", "count", Source::Size("shop", "sessions")),
    line("shop", "purchases under way", "count", Source::Size("shop", "purchases_under_way")),
    line("share", "requests", "1/s", Source::Rate("registry", &["requests"])),
    line("share", "errors", "1/s", Source::Rate("registry", &["requests_refused"])),
    line("share", "p50", "ms", Source::Latency("registry_requests", 0.5)),
    line("share", "p95", "ms", Source::Latency("registry_requests", 0.95)),
    line("share", "hosts", "count", Source::Size("registry", "hosts_live")),
    line("share", "files", "count", Source::Size("registry", "files_live")),
    line("http", "requests", "1/s", Source::Rate("http", &["requests"])),
    line("http", "errors", "1/s", Source::Rate("http", &["requests_refused", "requests_failed", "requests_late"])),
    line("http", "p50", "ms", Source::Latency("http", 0.5)),
    line("http", "p95", "ms", Source::Latency("http", 0.95)),
    line("http", "event streams", "count", Source::Size("http", "event_streams_open")),
    line("process", "connections", "count", Source::Size("connections", "open")),
    line("process", "connections refused", "1/s", Source::Rate("connections", &["refused_full", "refused_address"])),
    line("process", "threads", "count", Source::Process(|usage| usage.threads)),
    line("process", "memory", "bytes", Source::Process(|usage| usage.memory)),
    line("process", "open files", "count", Source::Process(|usage| usage.files)),
];

/// All sources at one instant.
struct Look {
    at: Instant,
    reading: Reading,
    usage: limits::Usage,
}

impl Line {
    /// Its point; none in the inner where there is none to be told, none at all where its part does not run.
    fn point(&self, now: &Look, before: Option<&Look>) -> Option<Option<f64>> {
        let counters = |look: &Look, part: &str, names: &[&str]| {
            names.iter().map(|name| look.reading.number(part, Kind::Counters, name)).sum::<Option<u64>>()
        };
        // What was not there has counted since the start, when everything was 0.

        match self.from {
            Source::Rate(part, names) => {
                let count = counters(now, part, names)?;
                let grown = before.and_then(|before| {
                    let passed = (now.at - before.at).as_secs_f64();
                    let counted = counters(before, part, names).unwrap_or(0);
                    Some(count.checked_sub(counted)? as f64 / passed).filter(|_| passed > 0.0)
                });
                Some(grown)
            }
            Source::Size(part, name) => Some(Some(now.reading.number(part, Kind::Sizes, name)? as f64)),
            Source::Latency(part, share) => {
                let counts = now.reading.latencies(part)?;
                let counted = before.map(|before| before.reading.latencies(part).copied().unwrap_or_default());
                let told = counted.and_then(|counted| counts.since(&counted).quantile(share));
                Some(told.map(|time| time.as_secs_f64() * 1000.0))
            }
            Source::Process(of) => Some(Some(of(&now.usage)? as f64)),
        }
    }
}

/// A point of each line.
struct Step {
    /// Unix seconds.
    at: u64,
    points: Vec<Option<f64>>,
}

#[derive(Default)]
struct Kept {
    last: Option<Look>,
    steps: VecDeque<Step>,
    /// Whether each line's part ran when it was looked last.
    is_there: Vec<bool>,
}

impl Kept {
    fn push(&mut self, step: Step) {
        if self.steps.len() == KEPT {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    fn take(&mut self, now: Look, wall_s: u64) {
        let before = self.last.as_ref();
        // Where looks were missed (the machine slept, or had no time), nothing is known.
        let passed = before.map_or(Duration::ZERO, |before| now.at - before.at);
        let missed = (passed.as_secs_f64() / STEP_S as f64).round() as u64;
        let missed = missed.saturating_sub(1).min(KEPT as u64);
        let points: Vec<_> = LINES.iter().map(|line| line.point(&now, before.filter(|_| missed == 0))).collect();
        for nth in (1..=missed).rev() {
            self.push(Step { at: wall_s.saturating_sub(nth * STEP_S), points: vec![None; LINES.len()] });
        }
        self.is_there = points.iter().map(Option::is_some).collect();
        self.push(Step { at: wall_s, points: points.into_iter().map(Option::flatten).collect() });
        self.last = Some(now);
    }
}

/// Looks every two seconds.
pub(super) struct Figures {
    kept: Arc<Mutex<Kept>>,
    _looking: Periodic,
}

impl Figures {
    pub(super) fn start(metrics: Arc<Metrics>) -> std::io::Result<Figures> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let look = {
            let kept = Arc::clone(&kept);
            move || {
                let look = Look { at: Instant::now(), reading: metrics.read(), usage: limits::usage() };
                kept.lock().take(look, Clock::wall().0 / 1000);
            }
        };
        look();
        let looking = Periodic::start("figures", Duration::from_secs(STEP_S), look)?;
        Ok(Figures { kept, _looking: looking })
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
struct Shown {
    success: bool,
    step_s: u64,
    times: Vec<u64>,
    series: Vec<Series>,
}

pub(super) fn metrics(operator: &Operator, _: &Call<'_>) -> Answered {
    let shown = shown(&operator.figures.kept.lock());
    Ok(json(StatusCode::OK, &shown))
}

fn shown(kept: &Kept) -> Shown {
    let of = |place: usize, line: &Line| Series {
        room: line.room,
        name: line.name,
        unit: line.unit,
        points: kept.steps.iter().map(|step| step.points[place].map(shortened)).collect(),
    };
    let there = LINES.iter().enumerate().filter(|(place, _)| kept.is_there.get(*place) == Some(&true));
    Shown {
        success: true,
        step_s: STEP_S,
        times: kept.steps.iter().map(|step| step.at).collect(),
        series: there.map(|(place, line)| of(place, line)).collect(),
    }
}

/// To the thousandth: what more there is of it is chance.
fn shortened(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::counters::{Counter, Latencies};

    /// A server in which trade alone runs.
    struct World {
        metrics: Metrics,
        requests: Arc<Counter>,
        latencies: Arc<Latencies>,
        began_at: Instant,
    }

    impl World {
        fn new() -> World {
            let metrics = Metrics::new().unwrap();
            let (requests, latencies) = (Arc::<Counter>::default(), Arc::<Latencies>::default());
            let (count, times) = (Arc::clone(&requests), Arc::clone(&latencies));
            metrics.add_counters("trade", move || vec![("requests", count.get())]);
            metrics.add_sizes("trade", || vec![("peers", 5)]);
            metrics.add_latencies("trade_requests", move || times.counts());
            World { metrics, requests, latencies, began_at: Instant::now() }
        }

        fn look(&self, at_s: u64) -> Look {
            let usage = limits::Usage { threads: Some(9), memory: None, files: None };
            Look { at: self.began_at + Duration::from_secs(at_s), reading: self.metrics.read(), usage }
        }
    }

    fn points(shown: &Shown, room: &str, name: &str) -> Vec<Option<f64>> {
        shown.series.iter().find(|series| series.room == room && series.name == name).unwrap().points.clone()
    }

    #[test]
    fn what_is_counted_becomes_lines_and_what_is_not_known_a_gap() {
        let (world, mut kept) = (World::new(), Kept::default());
        kept.take(world.look(0), 1000);
        world.requests.add(20);
        world.latencies.took(Duration::from_millis(3));
        kept.take(world.look(2), 1002);
        world.requests.add(1);
        kept.take(world.look(4), 1004);
        // Nobody looked for six seconds.
        world.requests.add(600);
        kept.take(world.look(10), 1010);
        // A part that came late has counted since it is there.
        world.metrics.add_counters("registry", || vec![("requests", 8)]);
        kept.take(world.look(12), 1012);
        let shown = shown(&kept);
        assert_eq!(shown.times, [1000, 1002, 1004, 1006, 1008, 1010, 1012]);
        let requests = [None, Some(10.0), Some(0.5), None, None, None, Some(0.0)];
        assert_eq!(points(&shown, "trade", "requests"), requests);
        let peers = [Some(5.0), Some(5.0), Some(5.0), None, None, Some(5.0), Some(5.0)];
        assert_eq!(points(&shown, "trade", "peers"), peers);
        let latency = points(&shown, "trade", "p95");
        assert!((2.0..4.3).contains(&latency[1].unwrap()), "{latency:?}");
        assert_eq!(latency[2], None, "nothing was asked");
        assert_eq!(points(&shown, "process", "threads")[0], Some(9.0));
        assert_eq!(points(&shown, "share", "requests")[5..], [None, Some(4.0)]);
        let names: Vec<_> = shown.series.iter().map(|series| (series.room, series.name)).collect();
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
        let (world, mut kept) = (World::new(), Kept::default());
        for nth in 0..500 {
            kept.take(world.look(2 * nth), 1000 + 2 * nth);
        }
        let whole = shown(&kept);
        assert_eq!((whole.times.len(), whole.times[0]), (KEPT, 1000 + 2 * 50));
        assert!(whole.series.iter().all(|series| series.points.len() == KEPT));
        // A machine that slept for a day has nothing to show of it.
        kept.take(world.look(100_000), 101_000);
        let after = shown(&kept);
        assert_eq!(after.times.len(), KEPT);
        assert_eq!(points(&after, "trade", "peers").iter().flatten().count(), 1);
    }

    #[test]
    fn there_are_so_many_lines_and_each_is_one() {
        let mut names: Vec<_> = LINES.iter().map(|line| (line.room, line.name)).collect();
        assert!(names.len() <= 40, "what a page draws again every few seconds");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LINES.len());
    }
}
