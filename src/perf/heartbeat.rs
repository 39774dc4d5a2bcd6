//! What adaptive heartbeats save: a simulated day of many clients, using the node's own state machine.
//!
//! | operation | every client |
//! |---|---|
//! | `FIXED` | sends a heartbeat every 60 s |
//! | `ADAPTIVE` | stays in its state: 80 % idle, 15 % active, 5 % busy |
//! | `CHANGING` | changes its state, with the same averages; after activity it counts as active for five more minutes |
//!
//! Rates are those that the registry would see during the simulated day; they do not depend on the machine. The closed
//! form for `ADAPTIVE` is 80 %/300 s + 15 %/60 s + 5 %/30 s, 0.41 of `FIXED`.

use std::time::Duration;

use super::load::Sample;
use super::plan::{Benchmark, BenchmarkGroup, Comparison};
use super::rng::SeededRng;
use super::run::ScenarioRun;
use super::stop::StopFlag;
use crate::model::Millis;
use crate::share::heartbeat::{ACTIVE_INTERVAL, Heartbeat, HeartbeatEvent, IDLE_AFTER};

pub const OPERATIONS: &[&str] = &[FIXED, "ADAPTIVE", "CHANGING"];
const FIXED: &str = "FIXED";
const CLIENTS: usize = 100_000;
const CLIENTS_QUICK: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often an active client does something.
const WORK_INTERVAL_MS: u64 = 240_000;
/// Mean durations of the phases of a changing client, in a ratio of 80 to 15 to 5.
const IDLE_MS: f64 = 64.0 * 60e3;
const ACTIVE_MS: f64 = 12.0 * 60e3;
const BUSY_MS: f64 = 4.0 * 60e3;

pub fn measure(run: &mut ScenarioRun<'_>) -> anyhow::Result<()> {
    let asked = run.args.requested_clients();
    let default = if run.args.quick { CLIENTS_QUICK } else { CLIENTS };
    // The simulation is deterministic, so one run is enough.
    run.sampling.runs = run.args.runs.map_or(1, usize::from);
    let wanted: Vec<&'static str> = OPERATIONS.iter().copied().filter(|operation| run.is_wanted(operation)).collect();
    let numbers = if asked.is_empty() { vec![default] } else { asked };
    let has_fixed = wanted.contains(&FIXED);
    run.expect_benchmarks(numbers.len() * (wanted.len() + usize::from(!has_fixed)));
    for clients in numbers {
        if run.stop.is_set() {
            break;
        }
        let mut benchmarks =
            vec![Benchmark { is_limit: !has_fixed, ..Benchmark::new(FIXED, simulation(clients, fixed)) }];
        let mut comparisons = Vec::new();
        for (name, model) in [("ADAPTIVE", constant as HeartbeatModel), ("CHANGING", changing)] {
            if wanted.contains(&name) {
                benchmarks.push(Benchmark::new(name, simulation(clients, model)));
                comparisons.push(Comparison { result: name, limits: &[FIXED], required: None });
            }
        }
        run.measure(BenchmarkGroup { clients, benchmarks, comparisons })?;
    }
    Ok(())
}

/// Computes the number of heartbeats that one client sends in a day.
type HeartbeatModel = fn(usize) -> u64;

fn simulation(
    clients: usize,
    model: HeartbeatModel,
) -> impl FnMut(super::load::MeasurementLength, &StopFlag) -> anyhow::Result<Sample> + 'static {
    move |_length, stop| {
        let mut sample = Sample { elapsed: DAY, ..Sample::new() };
        for client in 0..clients {
            if stop.is_set() {
                break;
            }
            sample.done += model(client);
        }
        Ok(sample)
    }
}

#[derive(Debug, Clone, Copy)]
struct ScheduledEvent {
    at: Millis,
    event: HeartbeatEvent,
}

/// Simulates a node for one day, beginning at `began`, and counts its heartbeats.
fn simulate_day(
    mut node: Heartbeat,
    began: Millis,
    mut next_event: impl FnMut(Millis) -> Option<ScheduledEvent>,
) -> u64 {
    let end = began.plus(DAY);
    let mut now = began;
    let (mut sent, mut upcoming) = (0, next_event(now));
    loop {
        // An event may set the due time to the past; the heartbeat is then sent at once.
        let due = node.next_due_at().unwrap_or(end).max(now);
        match upcoming {
            Some(ScheduledEvent { at, event }) if at <= due => {
                now = at.max(now);
                if now >= end {
                    return sent;
                }
                node.handle(now, event);
                upcoming = next_event(now);
            }
            _ if due >= end => return sent,
            _ => {
                now = due;
                node.handle(now, HeartbeatEvent::HeartbeatSent);
                sent += 1;
            }
        }
    }
}

/// A node that has been connected long enough to be idle. Its heartbeats are offset from those of other clients.
fn idle_node(client: usize) -> (Heartbeat, Millis) {
    let mut node = Heartbeat::new(ACTIVE_INTERVAL);
    // Offsets are spread evenly over the longest interval for any number of clients.
    let phase_ms = (client as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) % 300_000;
    let connected = Millis(phase_ms);
    node.handle(connected, HeartbeatEvent::Connected);
    let began = connected.plus(IDLE_AFTER);
    node.handle(began, HeartbeatEvent::HeartbeatSent);
    (node, began)
}

fn fixed(client: usize) -> u64 {
    let (_, began) = idle_node(client);
    let (end, mut at, mut sent) = (began.plus(DAY), began.plus(ACTIVE_INTERVAL), 0);
    while at <= end {
        sent += 1;
        at = at.plus(ACTIVE_INTERVAL);
    }
    sent
}

fn constant(client: usize) -> u64 {
    let (mut node, began) = idle_node(client);
    match client % 20 {
        0..16 => simulate_day(node, began, |_now| None),
        16..19 => {
            node.handle(began, HeartbeatEvent::Used);
            simulate_day(node, began, |now| {
                Some(ScheduledEvent { at: now.plus_ms(WORK_INTERVAL_MS), event: HeartbeatEvent::Used })
            })
        }
        _ => {
            node.handle(began, HeartbeatEvent::TransferStarted);
            simulate_day(node, began, |_now| None)
        }
    }
}

/// The phases of a changing client, in their order: how long each lasts on average, and what the node is told when it
/// begins.
const PHASES: [(f64, HeartbeatEvent); 3] = [
    (IDLE_MS, HeartbeatEvent::TransferEnded),
    (ACTIVE_MS, HeartbeatEvent::Used),
    (BUSY_MS, HeartbeatEvent::TransferStarted),
];
const IDLE: usize = 0;
const ACTIVE: usize = 1;
const BUSY: usize = 2;

/// A client that cycles through idle, active and busy, for random durations.
fn changing(client: usize) -> u64 {
    let (node, began) = idle_node(client);
    let mut rng = SeededRng::new(client as u64);
    // The starting phases are distributed as the phase durations are.
    let mut phase = match client % 20 {
        0..16 => IDLE,
        16..19 => ACTIVE,
        _ => BUSY,
    };
    let mut until = began.plus_ms(rng.exponential(PHASES[phase].0) as u64);
    // The node has to be told its starting phase first.
    let mut first_event = (phase != IDLE).then_some(PHASES[phase].1);
    simulate_day(node, began, move |now| {
        if let Some(event) = first_event.take() {
            return Some(ScheduledEvent { at: now, event });
        }
        if phase == ACTIVE && now.plus_ms(WORK_INTERVAL_MS) < until {
            return Some(ScheduledEvent { at: now.plus_ms(WORK_INTERVAL_MS), event: HeartbeatEvent::Used });
        }
        let at = until;
        phase = (phase + 1) % PHASES.len();
        let (mean_ms, event) = PHASES[phase];
        until = at.plus_ms(rng.exponential(mean_ms) as u64);
        Some(ScheduledEvent { at, event })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(clients: usize, model: HeartbeatModel) -> f64 {
        (0..clients).map(model).sum::<u64>() as f64 / DAY.as_secs_f64()
    }

    #[test]
    fn clients_that_stay_what_they_are_save_what_the_closed_form_says() {
        const CLIENTS: usize = 2_000;
        let fixed_rate = rate(CLIENTS, fixed);
        assert!((fixed_rate - CLIENTS as f64 / 60.0).abs() < 0.01 * fixed_rate, "{fixed_rate}");
        let closed_form = 60.0 * (0.80 / 300.0 + 0.15 / 60.0 + 0.05 / 30.0);
        let share = rate(CLIENTS, constant) / fixed_rate;
        assert!((share - closed_form).abs() < 0.01, "{share} instead of {closed_form}");
    }

    #[test]
    fn clients_that_change_cost_more_for_they_stay_active_for_a_while() {
        const CLIENTS: usize = 1_000;
        let share = rate(CLIENTS, changing) / rate(CLIENTS, fixed);
        // A cycle of 80 minutes has 64 idle minutes, of which the five after the transfer count as active. On becoming
        // active or busy, a node sends a heartbeat at once.
        let idle = 59.0 / 5.0;
        let active = 12.0 + 5.0;
        let busy = 4.0 * 2.0;
        let expected = (idle + active + busy) / 80.0;
        assert!((share - expected).abs() < 0.04, "{share} instead of about {expected}");
    }
}
