//! What adaptive heartbeats save: a simulated day of many clients, through the node's own state machine.
//!
//! | operation | every client |
//! |---|---|
//! | `FIXED` | says that it is there every 60 s |
//! | `ADAPTIVE` | stays what it is: 80 % idle, 15 % active, 5 % busy |
//! | `CHANGING` | is so in the mean, and changes all the time: whoever was active counts as such for five minutes more |
//!
//! Rates are those of the simulated day, as the registry would see them; the machine's speed has no part in
//! them. The closed form of the second is 80 %/300 s + 15 %/60 s + 5 %/30 s, 0.41 of the first.

use std::time::Duration;

use super::chance::Chance;
use super::load::Sample;
use super::plan::{Bench, Group, Pair};
use super::run::Run;
use super::stop::Stop;
use crate::model::Millis;
use crate::share::heartbeat::{ACTIVE_EVERY, Event, Heartbeat, IDLE_AFTER};

/// What `--only` may name.
pub const OPERATIONS: &[&str] = &[FIXED, "ADAPTIVE", "CHANGING"];
const FIXED: &str = "FIXED";
/// Clients, unless others are asked for.
const CLIENTS: usize = 100_000;
/// The same of a quick run.
const CLIENTS_QUICK: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often whoever is active does something.
const WORKS_EVERY_MS: u64 = 240_000;
/// How long a client stays what it is, in the mean, where clients change: 80 to 15 to 5.
const IDLE_MS: f64 = 64.0 * 60e3;
const ACTIVE_MS: f64 = 12.0 * 60e3;
const BUSY_MS: f64 = 4.0 * 60e3;

/// Simulates what is wanted.
///
/// # Errors
/// That of a measurement.
pub fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let asked = run.args.asked_clients();
    let default = if run.args.quick { CLIENTS_QUICK } else { CLIENTS };
    // The same every time: once is enough.
    run.effort.runs = run.args.runs.map_or(1, usize::from);
    let wanted: Vec<&'static str> = OPERATIONS.iter().copied().filter(|operation| run.wants(operation)).collect();
    let numbers = if asked.is_empty() { vec![default] } else { asked };
    let has_fixed = wanted.contains(&FIXED);
    run.announce(numbers.len() * (wanted.len() + usize::from(!has_fixed)));
    for clients in numbers {
        if run.stop.is_asked() {
            break;
        }
        let mut benches = vec![Bench { is_limit: !has_fixed, ..Bench::new(FIXED, simulation(clients, fixed)) }];
        let mut pairs = Vec::new();
        for (name, life) in [("ADAPTIVE", constant as Life), ("CHANGING", changing)] {
            if wanted.contains(&name) {
                benches.push(Bench::new(name, simulation(clients, life)));
                pairs.push(Pair { result: name, limits: &[FIXED], required: None });
            }
        }
        run.measure(Group { clients, benches, pairs })?;
    }
    Ok(())
}

/// The heartbeats of one client in a day.
type Life = fn(usize) -> u64;

fn simulation(
    clients: usize,
    life: Life,
) -> impl FnMut(super::load::Length, &Stop) -> anyhow::Result<Sample> + 'static {
    move |_length, stop| {
        let mut sample = Sample { elapsed: DAY, ..Sample::new() };
        for client in 0..clients {
            if stop.is_asked() {
                break;
            }
            sample.done += life(client);
        }
        Ok(sample)
    }
}

/// What a client does next, and when.
#[derive(Debug, Clone, Copy)]
struct Next {
    at: Millis,
    event: Event,
}

/// Lets a node live for a day from `began` on, and counts what it sends.
fn live(mut node: Heartbeat, began: Millis, mut next: impl FnMut(Millis) -> Option<Next>) -> u64 {
    let end = began.plus(DAY);
    let mut now = began;
    let (mut sent, mut coming) = (0, next(now));
    loop {
        // A change may make it due in the past: then it is sent now.
        let due = node.next_at().unwrap_or(end).max(now);
        match coming {
            Some(Next { at, event }) if at <= due => {
                now = at.max(now);
                if now >= end {
                    return sent;
                }
                node.handle(now, event);
                coming = next(now);
            }
            _ if due >= end => return sent,
            _ => {
                now = due;
                node.handle(now, Event::Sent);
                sent += 1;
            }
        }
    }
}

/// A node that connected so long ago that it is idle, and whose heartbeats fall at another time than others'.
fn idle_node(client: usize) -> (Heartbeat, Millis) {
    let mut node = Heartbeat::new(ACTIVE_EVERY);
    // Spread evenly over the longest interval, whatever the number of clients.
    let phase_ms = (client as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) % 300_000;
    let connected = Millis(phase_ms);
    node.handle(connected, Event::Connected);
    let began = connected.plus(IDLE_AFTER);
    node.handle(began, Event::Sent);
    (node, began)
}

fn fixed(client: usize) -> u64 {
    let (_, began) = idle_node(client);
    let (end, mut at, mut sent) = (began.plus(DAY), began.plus(ACTIVE_EVERY), 0);
    while at <= end {
        sent += 1;
        at = at.plus(ACTIVE_EVERY);
    }
    sent
}

fn constant(client: usize) -> u64 {
    let (mut node, began) = idle_node(client);
    match client % 20 {
        0..16 => live(node, began, |_now| None),
        16..19 => {
            node.handle(began, Event::Work);
            live(node, began, |now| Some(Next { at: now.plus_ms(WORKS_EVERY_MS), event: Event::Work }))
        }
        _ => {
            node.handle(began, Event::TransferBegan);
            live(node, began, |_now| None)
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Active,
    Busy,
}

/// From idle to active to busy and back to idle, each for a time by chance.
fn changing(client: usize) -> u64 {
    let (node, began) = idle_node(client);
    let mut chance = Chance::new(client as u64);
    // In the middle of a phase, as likely as phases are long.
    let mut phase = match client % 20 {
        0..16 => Phase::Idle,
        16..19 => Phase::Active,
        _ => Phase::Busy,
    };
    let mut until = began.plus_ms(chance.exponential(mean_ms(phase)) as u64);
    // What it is at the beginning, it has to be told first.
    let mut opening = match phase {
        Phase::Idle => None,
        Phase::Active => Some(Event::Work),
        Phase::Busy => Some(Event::TransferBegan),
    };
    live(node, began, move |now| {
        if let Some(event) = opening.take() {
            return Some(Next { at: now, event });
        }
        if let Phase::Active = phase
            && now.plus_ms(WORKS_EVERY_MS) < until
        {
            return Some(Next { at: now.plus_ms(WORKS_EVERY_MS), event: Event::Work });
        }
        let at = until;
        let event;
        (phase, event) = match phase {
            Phase::Idle => (Phase::Active, Event::Work),
            Phase::Active => (Phase::Busy, Event::TransferBegan),
            Phase::Busy => (Phase::Idle, Event::TransferEnded),
        };
        until = at.plus_ms(chance.exponential(mean_ms(phase)) as u64);
        Some(Next { at, event })
    })
}

fn mean_ms(phase: Phase) -> f64 {
    match phase {
        Phase::Idle => IDLE_MS,
        Phase::Active => ACTIVE_MS,
        Phase::Busy => BUSY_MS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(clients: usize, life: Life) -> f64 {
        (0..clients).map(life).sum::<u64>() as f64 / DAY.as_secs_f64()
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
        // Each round of 80 minutes: 64 idle ones less the five minutes after the transfer, which count as
        // active ones; to be busy or active, a node says so at once.
        let idle = 59.0 / 5.0;
        let active = 12.0 + 5.0;
        let busy = 4.0 * 2.0;
        let expected = (idle + active + busy) / 80.0;
        assert!((share - expected).abs() < 0.04, "{share} instead of about {expected}");
    }
}
