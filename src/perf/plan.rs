//! Runs the benchmarks of a group in turns (limit, result, limit, result, …) and computes the shares.
//!
//! The speed of a shared machine varies. Benchmarks that are compared are therefore run close together and repeatedly;
//! a share is computed within one turn, and the median over the turns is reported.

use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::child::{self, ServerProcess};
use super::load::{MeasurementLength, Sample};
use super::stop::StopFlag;
use super::usage::Usage;

/// Performs one measurement of the given length; it ends early if the flag is set.
pub type MeasureFn<'a> = Box<dyn FnMut(MeasurementLength, &StopFlag) -> anyhow::Result<Sample> + 'a>;

pub struct Benchmark<'a> {
    pub name: &'static str,
    /// It is a limit: results are reported relative to it, and it has no row of its own.
    pub is_limit: bool,
    /// Every measurement starts from scratch and warms up by itself.
    pub starts_fresh: bool,
    /// Servers whose resource usage is measured. Reading it takes longer the more threads they have.
    pub servers: &'a [ServerProcess],
    pub measure: MeasureFn<'a>,
}

impl<'a> Benchmark<'a> {
    pub fn new(
        name: &'static str,
        measure: impl FnMut(MeasurementLength, &StopFlag) -> anyhow::Result<Sample> + 'a,
    ) -> Benchmark<'a> {
        Benchmark { name, is_limit: false, starts_fresh: false, servers: &[], measure: Box::new(measure) }
    }

    pub fn limit(
        name: &'static str,
        measure: impl FnMut(MeasurementLength, &StopFlag) -> anyhow::Result<Sample> + 'a,
    ) -> Benchmark<'a> {
        Benchmark { is_limit: true, ..Benchmark::new(name, measure) }
    }

    /// Also measures CPU time and memory of these servers.
    pub fn on(self, servers: &'a [ServerProcess]) -> Benchmark<'a> {
        Benchmark { servers, ..self }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    pub result: &'static str,
    /// The limits' names; the lowest one counts.
    pub limits: &'static [&'static str],
    pub required: Option<f64>,
}

/// Benchmarks that are run in turns with the same number of clients.
pub struct BenchmarkGroup<'a> {
    pub clients: usize,
    /// In the order of a turn.
    pub benchmarks: Vec<Benchmark<'a>>,
    pub comparisons: Vec<Comparison>,
}

#[derive(Debug, Clone, Copy)]
pub struct SamplingPlan {
    pub runs: usize,
    pub length: MeasurementLength,
    pub warm_up: Duration,
    /// Run before each measurement and not counted, because the previous benchmark left other threads awake and other
    /// pages in the caches.
    pub lead_in: Duration,
    /// From this time on, groups without comparisons get a single turn.
    pub single_run_after: Option<Instant>,
}

#[derive(Debug)]
pub struct Measurement {
    pub name: &'static str,
    pub group: usize,
    pub clients: usize,
    pub is_limit: bool,
    /// One sample per turn.
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct LimitShare {
    pub comparison: Comparison,
    pub group: usize,
    pub clients: usize,
    pub limit_ops_per_s: f64,
    /// The result's rate divided by the limit's, for each turn.
    pub shares: Vec<f64>,
}

impl LimitShare {
    pub fn median(&self) -> f64 {
        median(self.shares.iter().copied())
    }

    /// Whether the requirement, multiplied by `relax`, is met; `None` if there is none.
    pub fn is_met(&self, relax: f64) -> Option<bool> {
        self.comparison.required.map(|required| self.median() >= required * relax)
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub measurements: Vec<Measurement>,
    pub shares: Vec<LimitShare>,
}

/// Measures a group and adds the results to `outcome`. After an error, or if the flag is set, it keeps the turns that
/// are complete.
pub fn measure(
    group: BenchmarkGroup<'_>,
    sampling: SamplingPlan,
    progress: &ProgressBar,
    stop: &StopFlag,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let BenchmarkGroup { clients, mut benchmarks, comparisons } = group;
    let mut samples: Vec<Vec<Sample>> = benchmarks.iter().map(|_| Vec::new()).collect();
    let is_comparing = !comparisons.is_empty();
    let result = take_turns(clients, is_comparing, &mut benchmarks, &mut samples, sampling, progress, stop);
    // An incomplete turn cannot be compared.
    let whole = samples.iter().map(Vec::len).min().unwrap_or(0);
    samples.iter_mut().for_each(|of_benchmark| of_benchmark.truncate(whole));
    if whole > 0 {
        let group = outcome.measurements.last().map_or(0, |last| last.group + 1);
        for comparison in comparisons {
            outcome.shares.push(share(group, clients, comparison, &benchmarks, &samples));
        }
        for (benchmark, samples) in benchmarks.iter().zip(samples) {
            outcome.measurements.push(Measurement {
                name: benchmark.name,
                group,
                clients,
                is_limit: benchmark.is_limit,
                samples,
            });
        }
    }
    result
}

fn take_turns(
    clients: usize,
    is_comparing: bool,
    benchmarks: &mut [Benchmark<'_>],
    samples: &mut [Vec<Sample>],
    sampling: SamplingPlan,
    progress: &ProgressBar,
    stop: &StopFlag,
) -> anyhow::Result<()> {
    let describe = |name: &str| format!("{name} with {clients} clients");
    for benchmark in benchmarks.iter_mut() {
        progress.set_message(format!("warming up {}", describe(benchmark.name)));
        let length = match sampling.length {
            MeasurementLength::Calls(calls) => MeasurementLength::Calls(calls.div_ceil(10)),
            MeasurementLength::Time(_) => MeasurementLength::Time(sampling.warm_up),
        };
        (benchmark.measure)(length, stop).with_context(|| describe(benchmark.name))?;
    }
    for turn in 0..sampling.runs {
        let is_late = sampling.single_run_after.is_some_and(|from| Instant::now() > from);
        if turn > 0 && is_late && !is_comparing {
            progress.inc(((sampling.runs - turn) * benchmarks.len()) as u64);
            return Ok(());
        }
        let mut order: Vec<usize> = (0..benchmarks.len()).collect();
        // Every other turn runs backwards, so that a machine that slows down favours no benchmark.
        if turn % 2 == 1 {
            order.reverse();
        }
        for place in order {
            if stop.is_set() {
                return Ok(());
            }
            let benchmark = &mut benchmarks[place];
            progress.set_message(describe(benchmark.name));
            if matches!(sampling.length, MeasurementLength::Time(_))
                && !sampling.lead_in.is_zero()
                && !benchmark.starts_fresh
            {
                (benchmark.measure)(MeasurementLength::Time(sampling.lead_in), stop)
                    .with_context(|| describe(benchmark.name))?;
            }
            let sample = child::with_usage(benchmark.servers, || (benchmark.measure)(sampling.length, stop));
            let sample = sample.with_context(|| describe(benchmark.name))?;
            if stop.is_set() {
                return Ok(());
            }
            samples[place].push(sample);
            progress.inc(1);
        }
    }
    Ok(())
}

fn share(
    group: usize,
    clients: usize,
    comparison: Comparison,
    benchmarks: &[Benchmark<'_>],
    samples: &[Vec<Sample>],
) -> LimitShare {
    let of = |name: &str| {
        let place = benchmarks.iter().position(|benchmark| benchmark.name == name);
        // The names come from the scenario's own tables, so a wrong one is a bug.
        &samples[place.unwrap_or_else(|| panic!("{name} is not in its group"))]
    };
    let limits: Vec<f64> = (0..of(comparison.result).len())
        .map(|turn| comparison.limits.iter().map(|limit| of(limit)[turn].ops_per_s()).fold(f64::INFINITY, f64::min))
        .collect();
    let shares = of(comparison.result).iter().zip(&limits).map(|(sample, limit)| sample.ops_per_s() / limit.max(1e-9));
    let (shares, limit_ops_per_s) = (shares.collect(), median(limits.iter().copied()));
    LimitShare { comparison, group, clients, limit_ops_per_s, shares }
}

impl Measurement {
    pub fn total(&self) -> Sample {
        let mut total = Sample::new();
        for sample in &self.samples {
            total.merge(sample);
            total.elapsed += sample.elapsed;
        }
        let usages = self.samples.iter().map(|sample| sample.server);
        let both = |a: Usage, b: Usage| Usage { peak_rss_mb: a.peak_rss_mb.max(b.peak_rss_mb), ..a.plus(b) };
        total.server = usages.reduce(|a, b| Some(both(a?, b?))).flatten();
        total
    }

    pub fn ops_per_s(&self) -> f64 {
        median(self.samples.iter().map(Sample::ops_per_s))
    }

    pub fn rates(&self) -> Vec<f64> {
        self.samples.iter().map(Sample::ops_per_s).collect()
    }
}

/// The mean; 0 if there are no values.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

pub fn stddev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The median; 0 if there are no values.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(done: u64) -> Sample {
        Sample { done, elapsed: Duration::from_secs(1), ..Sample::new() }
    }

    const SAMPLING: SamplingPlan = SamplingPlan {
        runs: 5,
        length: MeasurementLength::Calls(10),
        warm_up: Duration::from_millis(1),
        lead_in: Duration::ZERO,
        single_run_after: None,
    };

    #[test]
    fn what_goes_on_is_led_in_and_does_not_count() {
        let lengths = std::cell::RefCell::new(Vec::new());
        let note = |name: &'static str| {
            let lengths = &lengths;
            move |length: MeasurementLength, _: &StopFlag| {
                let MeasurementLength::Time(time) = length else { panic!("{length:?}") };
                lengths.borrow_mut().push((name, time.as_millis()));
                Ok(sample(time.as_millis() as u64))
            }
        };
        let benchmarks =
            vec![Benchmark::new("a", note("a")), Benchmark { starts_fresh: true, ..Benchmark::new("b", note("b")) }];
        let ms = Duration::from_millis;
        let sampling = SamplingPlan {
            runs: 1,
            length: MeasurementLength::Time(ms(9)),
            warm_up: ms(3),
            lead_in: ms(2),
            ..SAMPLING
        };
        let mut outcome = Outcome::default();
        let group = BenchmarkGroup { clients: 1, benchmarks, comparisons: Vec::new() };
        measure(group, sampling, &ProgressBar::hidden(), &StopFlag::default(), &mut outcome).unwrap();
        assert_eq!(*lengths.borrow(), [("a", 3), ("b", 3), ("a", 2), ("a", 9), ("b", 9)]);
        assert!(outcome.measurements.iter().all(|one| one.total().done == 9));
    }

    #[test]
    fn a_share_is_that_of_its_turn_and_the_lower_limit_counts() {
        // The first value is the warm-up, which does not count; every other turn runs backwards.
        let mut limit = [9999, 100, 200, 100, 400, 100].into_iter();
        let mut other = [9999, 150, 150, 150, 150, 150].into_iter();
        let mut result = [9999, 50, 50, 80, 75, 90].into_iter();
        let group = BenchmarkGroup {
            clients: 3,
            benchmarks: vec![
                Benchmark::limit("limit", move |_, _| Ok(sample(limit.next().unwrap()))),
                Benchmark::limit("other", move |_, _| Ok(sample(other.next().unwrap()))),
                Benchmark::new("result", move |_, _| Ok(sample(result.next().unwrap()))),
            ],
            comparisons: vec![Comparison { result: "result", limits: &["limit", "other"], required: Some(0.5) }],
        };
        let mut outcome = Outcome::default();
        measure(group, SAMPLING, &ProgressBar::hidden(), &StopFlag::default(), &mut outcome).unwrap();
        let share = &outcome.shares[0];
        assert_eq!(share.shares, [0.5, 50.0 / 150.0, 0.8, 0.5, 0.9]);
        assert_eq!((share.median(), share.is_met(1.0), share.limit_ops_per_s), (0.5, Some(true), 100.0));
        let measured = &outcome.measurements[2];
        assert_eq!((measured.ops_per_s(), measured.total().done), (75.0, 345));
        assert!((stddev(&measured.rates()) - 18.165_902).abs() < 1e-3);
    }

    #[test]
    fn limits_of_one_name_belong_to_their_groups() {
        let mut outcome = Outcome::default();
        for done in [100, 400] {
            let group = BenchmarkGroup {
                clients: 1,
                benchmarks: vec![
                    Benchmark::limit("limit", move |_, _| Ok(sample(done))),
                    Benchmark::new(if done == 100 { "a" } else { "b" }, |_, _| Ok(sample(100))),
                ],
                comparisons: vec![Comparison {
                    result: if done == 100 { "a" } else { "b" },
                    limits: &["limit"],
                    required: None,
                }],
            };
            measure(group, SAMPLING, &ProgressBar::hidden(), &StopFlag::default(), &mut outcome).unwrap();
        }
        assert_eq!(outcome.measurements.iter().map(|one| one.group).collect::<Vec<_>>(), [0, 0, 1, 1]);
        assert_eq!(
            outcome.shares.iter().map(|one| (one.group, one.median())).collect::<Vec<_>>(),
            [(0, 1.0), (1, 0.25)]
        );
    }

    #[test]
    fn an_early_end_keeps_whole_turns() {
        let stop = StopFlag::default();
        let (asking, mut calls) = (stop.clone(), 0);
        let group = BenchmarkGroup {
            clients: 1,
            benchmarks: vec![
                Benchmark::limit("limit", |_, _| Ok(sample(10))),
                Benchmark::new("result", move |_, _| {
                    calls += 1;
                    if calls == 4 {
                        asking.set();
                    }
                    Ok(sample(5))
                }),
            ],
            comparisons: vec![Comparison { result: "result", limits: &["limit"], required: None }],
        };
        let mut outcome = Outcome::default();
        measure(group, SAMPLING, &ProgressBar::hidden(), &stop, &mut outcome).unwrap();
        assert_eq!(outcome.shares[0].shares, [0.5, 0.5]);
        assert_eq!(outcome.measurements.iter().map(|one| one.samples.len()).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median([].into_iter()), 0.0);
    }
}
