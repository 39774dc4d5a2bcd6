//! Taking turns: limit, result, limit, result, … and what comes of it.
//!
//! A shared machine is now faster, now slower. So what is compared is measured close together, again
//! and again; a share is that of one turn, and the median of the turns is reported.

use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::child::{self, Server, Usage};
use super::load::{Length, Sample};
use super::stop::Stop;

/// One measurement of this length; ends early when asked to.
pub type Measure<'a> = Box<dyn FnMut(Length, &Stop) -> anyhow::Result<Sample> + 'a>;

/// One thing that is measured.
pub struct Bench<'a> {
    /// As reports call it.
    pub name: &'static str,
    /// A limit: reported by what is a share of it, not by itself.
    pub is_limit: bool,
    /// It begins from nothing each time and warms up by itself.
    pub begins_anew: bool,
    /// What is looked at meanwhile; looking takes longer the more threads they have.
    pub servers: &'a [Server],
    /// Measures it once.
    pub measure: Measure<'a>,
}

impl<'a> Bench<'a> {
    /// A result.
    pub fn new(name: &'static str, measure: impl FnMut(Length, &Stop) -> anyhow::Result<Sample> + 'a) -> Bench<'a> {
        Bench { name, is_limit: false, begins_anew: false, servers: &[], measure: Box::new(measure) }
    }

    /// A limit.
    pub fn limit(name: &'static str, measure: impl FnMut(Length, &Stop) -> anyhow::Result<Sample> + 'a) -> Bench<'a> {
        Bench { is_limit: true, ..Bench::new(name, measure) }
    }

    /// The same with servers whose CPU time and memory are told.
    pub fn on(self, servers: &'a [Server]) -> Bench<'a> {
        Bench { servers, ..self }
    }
}

/// A result and what it is a share of.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// The result's name.
    pub result: &'static str,
    /// Names of limits: whichever is lower counts.
    pub limits: &'static [&'static str],
    /// The least share that is good enough.
    pub required: Option<f64>,
}

/// Measurements that take turns, with as many clients.
pub struct Group<'a> {
    /// Clients at once.
    pub clients: usize,
    /// In the order of a turn.
    pub benches: Vec<Bench<'a>>,
    /// What is a share of what.
    pub pairs: Vec<Pair>,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Turns.
    pub runs: usize,
    /// Of each measurement.
    pub length: Length,
    /// Before the first turn.
    pub warm_up: Duration,
    /// Before each measurement: whoever was last has left other threads awake, other pages in the caches.
    pub lead_in: Duration,
    /// From then on one turn has to do where nothing is compared.
    pub hurry_from: Option<Instant>,
}

/// What came of one bench of a group.
#[derive(Debug)]
pub struct Measured {
    /// As reports call it.
    pub name: &'static str,
    /// What was measured together has the same number.
    pub group: usize,
    /// Clients at once.
    pub clients: usize,
    /// A limit.
    pub is_limit: bool,
    /// One a turn.
    pub samples: Vec<Sample>,
}

/// What came of one pair of a group.
#[derive(Debug)]
pub struct Share {
    /// The result's name.
    pub result: &'static str,
    /// Its number among the groups.
    pub group: usize,
    /// Clients at once.
    pub clients: usize,
    /// The limits' names.
    pub limits: &'static [&'static str],
    /// The limit's rate, median, a second.
    pub limit_ops_per_s: f64,
    /// Of each turn, the result's rate by the limit's.
    pub shares: Vec<f64>,
    /// The least median that is good enough.
    pub required: Option<f64>,
}

impl Share {
    /// The median.
    pub fn median(&self) -> f64 {
        median(self.shares.iter().copied())
    }

    /// Whether it is good enough, if that is asked for.
    pub fn is_met(&self, relax: f64) -> Option<bool> {
        self.required.map(|required| self.median() >= required * relax)
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Every bench.
    pub measured: Vec<Measured>,
    /// Every pair.
    pub shares: Vec<Share>,
}

/// Measures a group and adds what came of it; ends early when asked to, with what there is then.
///
/// # Errors
/// That of a measurement; what was measured before is added all the same.
pub fn measure(
    group: Group<'_>,
    effort: Effort,
    progress: &ProgressBar,
    stop: &Stop,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let Group { clients, mut benches, pairs } = group;
    let mut samples: Vec<Vec<Sample>> = benches.iter().map(|_| Vec::new()).collect();
    let is_comparing = !pairs.is_empty();
    let result = take_turns(clients, is_comparing, &mut benches, &mut samples, effort, progress, stop);
    // A turn that was cut short compares nothing.
    let whole = samples.iter().map(Vec::len).min().unwrap_or(0);
    samples.iter_mut().for_each(|of_bench| of_bench.truncate(whole));
    if whole > 0 {
        let group = outcome.measured.last().map_or(0, |last| last.group + 1);
        for pair in pairs {
            outcome.shares.push(Share { group, ..share(clients, pair, &benches, &samples) });
        }
        for (bench, samples) in benches.iter().zip(samples) {
            outcome.measured.push(Measured { name: bench.name, group, clients, is_limit: bench.is_limit, samples });
        }
    }
    result
}

fn take_turns(
    clients: usize,
    is_comparing: bool,
    benches: &mut [Bench<'_>],
    samples: &mut [Vec<Sample>],
    effort: Effort,
    progress: &ProgressBar,
    stop: &Stop,
) -> anyhow::Result<()> {
    let describe = |name: &str| format!("{name} with {clients} clients");
    for bench in benches.iter_mut() {
        progress.set_message(format!("warming up {}", describe(bench.name)));
        let length = match effort.length {
            Length::Calls(calls) => Length::Calls(calls.div_ceil(10)),
            Length::Time(_) => Length::Time(effort.warm_up),
        };
        (bench.measure)(length, stop).with_context(|| describe(bench.name))?;
    }
    for turn in 0..effort.runs {
        let is_late = effort.hurry_from.is_some_and(|from| Instant::now() > from);
        if turn > 0 && is_late && !is_comparing {
            progress.inc(((effort.runs - turn) * benches.len()) as u64);
            return Ok(());
        }
        let mut order: Vec<usize> = (0..benches.len()).collect();
        // Every other turn backwards, so that a machine that grows slower favours nobody.
        if turn % 2 == 1 {
            order.reverse();
        }
        for place in order {
            if stop.is_asked() {
                return Ok(());
            }
            let bench = &mut benches[place];
            progress.set_message(describe(bench.name));
            if matches!(effort.length, Length::Time(_)) && !effort.lead_in.is_zero() && !bench.begins_anew {
                (bench.measure)(Length::Time(effort.lead_in), stop).with_context(|| describe(bench.name))?;
            }
            let sample = child::watch(bench.servers, || (bench.measure)(effort.length, stop));
            let sample = sample.with_context(|| describe(bench.name))?;
            if stop.is_asked() {
                return Ok(());
            }
            samples[place].push(sample);
            progress.inc(1);
        }
    }
    Ok(())
}

fn share(clients: usize, pair: Pair, benches: &[Bench<'_>], samples: &[Vec<Sample>]) -> Share {
    let of = |name: &str| {
        let place = benches.iter().position(|bench| bench.name == name);
        // The scenario's own tables: a wrong name is a mistake in the program.
        &samples[place.unwrap_or_else(|| panic!("{name} is not in its group"))]
    };
    let limits: Vec<f64> = (0..of(pair.result).len())
        .map(|turn| pair.limits.iter().map(|limit| of(limit)[turn].ops_per_s()).fold(f64::INFINITY, f64::min))
        .collect();
    let shares = of(pair.result).iter().zip(&limits).map(|(sample, limit)| sample.ops_per_s() / limit.max(1e-9));
    Share {
        result: pair.result,
        group: 0,
        clients,
        limits: pair.limits,
        limit_ops_per_s: median(limits.iter().copied()),
        shares: shares.collect(),
        required: pair.required,
    }
}

impl Measured {
    /// All calls of all turns.
    pub fn total(&self) -> Sample {
        let mut total = Sample::new();
        for sample in &self.samples {
            total.absorb(sample);
            total.elapsed += sample.elapsed;
        }
        let usages = self.samples.iter().map(|sample| sample.server);
        total.server = usages
            .reduce(|a, b| {
                let (a, b) = (a?, b?);
                Some(Usage {
                    cpu_s: a.cpu_s + b.cpu_s,
                    peak_rss_mb: a.peak_rss_mb.max(b.peak_rss_mb),
                    switches: a.switches + b.switches,
                })
            })
            .flatten();
        total
    }

    /// The rate, median of the turns, a second.
    pub fn ops_per_s(&self) -> f64 {
        median(self.samples.iter().map(Sample::ops_per_s))
    }

    /// Each turn's rate, a second.
    pub fn rates(&self) -> Vec<f64> {
        self.samples.iter().map(Sample::ops_per_s).collect()
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// How far they lie apart: the standard deviation of the sample.
pub fn stddev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The middle one; of an even number, the mean of the two in the middle; 0 of nothing.
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

    const EFFORT: Effort = Effort {
        runs: 5,
        length: Length::Calls(10),
        warm_up: Duration::from_millis(1),
        lead_in: Duration::ZERO,
        hurry_from: None,
    };

    #[test]
    fn what_goes_on_is_led_in_and_does_not_count() {
        let lengths = std::cell::RefCell::new(Vec::new());
        let note = |name: &'static str| {
            let lengths = &lengths;
            move |length: Length, _: &Stop| {
                let Length::Time(time) = length else { panic!("{length:?}") };
                lengths.borrow_mut().push((name, time.as_millis()));
                Ok(sample(time.as_millis() as u64))
            }
        };
        let benches = vec![Bench::new("a", note("a")), Bench { begins_anew: true, ..Bench::new("b", note("b")) }];
        let ms = Duration::from_millis;
        let effort = Effort { runs: 1, length: Length::Time(ms(9)), warm_up: ms(3), lead_in: ms(2), ..EFFORT };
        let mut outcome = Outcome::default();
        let group = Group { clients: 1, benches, pairs: Vec::new() };
        measure(group, effort, &ProgressBar::hidden(), &Stop::default(), &mut outcome).unwrap();
        assert_eq!(*lengths.borrow(), [("a", 3), ("b", 3), ("a", 2), ("a", 9), ("b", 9)]);
        assert!(outcome.measured.iter().all(|one| one.total().done == 9));
    }

    #[test]
    fn a_share_is_that_of_its_turn_and_the_lower_limit_counts() {
        // The warm-up comes first and does not count; every other turn runs backwards.
        let mut limit = [9999, 100, 200, 100, 400, 100].into_iter();
        let mut other = [9999, 150, 150, 150, 150, 150].into_iter();
        let mut result = [9999, 50, 50, 80, 75, 90].into_iter();
        let group = Group {
            clients: 3,
            benches: vec![
                Bench::limit("limit", move |_, _| Ok(sample(limit.next().unwrap()))),
                Bench::limit("other", move |_, _| Ok(sample(other.next().unwrap()))),
                Bench::new("result", move |_, _| Ok(sample(result.next().unwrap()))),
            ],
            pairs: vec![Pair { result: "result", limits: &["limit", "other"], required: Some(0.5) }],
        };
        let mut outcome = Outcome::default();
        measure(group, EFFORT, &ProgressBar::hidden(), &Stop::default(), &mut outcome).unwrap();
        let share = &outcome.shares[0];
        assert_eq!(share.shares, [0.5, 50.0 / 150.0, 0.8, 0.5, 0.9]);
        assert_eq!((share.median(), share.is_met(1.0), share.limit_ops_per_s), (0.5, Some(true), 100.0));
        let measured = &outcome.measured[2];
        assert_eq!((measured.ops_per_s(), measured.total().done), (75.0, 345));
        assert!((stddev(&measured.rates()) - 18.165_902).abs() < 1e-3);
    }

    #[test]
    fn limits_of_one_name_belong_to_their_groups() {
        let mut outcome = Outcome::default();
        for done in [100, 400] {
            let group = Group {
                clients: 1,
                benches: vec![
                    Bench::limit("limit", move |_, _| Ok(sample(done))),
                    Bench::new(if done == 100 { "a" } else { "b" }, |_, _| Ok(sample(100))),
                ],
                pairs: vec![Pair { result: if done == 100 { "a" } else { "b" }, limits: &["limit"], required: None }],
            };
            measure(group, EFFORT, &ProgressBar::hidden(), &Stop::default(), &mut outcome).unwrap();
        }
        assert_eq!(outcome.measured.iter().map(|one| one.group).collect::<Vec<_>>(), [0, 0, 1, 1]);
        assert_eq!(
            outcome.shares.iter().map(|one| (one.group, one.median())).collect::<Vec<_>>(),
            [(0, 1.0), (1, 0.25)]
        );
    }

    #[test]
    fn an_early_end_keeps_whole_turns() {
        let stop = Stop::default();
        let (asking, mut calls) = (stop.clone(), 0);
        let group = Group {
            clients: 1,
            benches: vec![
                Bench::limit("limit", |_, _| Ok(sample(10))),
                Bench::new("result", move |_, _| {
                    calls += 1;
                    if calls == 4 {
                        asking.ask();
                    }
                    Ok(sample(5))
                }),
            ],
            pairs: vec![Pair { result: "result", limits: &["limit"], required: None }],
        };
        let mut outcome = Outcome::default();
        measure(group, EFFORT, &ProgressBar::hidden(), &stop, &mut outcome).unwrap();
        assert_eq!(outcome.shares[0].shares, [0.5, 0.5]);
        assert_eq!(outcome.measured.iter().map(|one| one.samples.len()).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median([].into_iter()), 0.0);
    }
}
