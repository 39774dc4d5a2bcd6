//! Performance of the trade server: STATUS, durable REGISTERs, complete rounds and purchases.
//!
//! | operation | with N clients |
//! |---|---|
//! | `STATUS`, `REGISTER` | N peers in a closed loop |
//! | `PACED` | N peers that send STATUS at a fixed rate, in total a third of the closed loop's |
//! | `ROUND`, `PURCHASE` | N buyers and one seller; every search reaches all of them |
//! | `OFFERS` | rounds of one buyer, with offers from N sellers |
//!
//! A measured REGISTER comes from a known peer at its own address, with a different `tcp_port` than before. Each one is a
//! change (the peer's row and a log row) that is on disk before the response, while the number of registrations stays
//! constant however long the measurement is.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;
use serde_json::json;

use super::child::ServerProcess;
use super::limits::{self, LimitServerKind};
use super::load::{self, MeasurementLength, Pace, RequestTemplate, UdpClient};
use super::plan::{Benchmark, BenchmarkGroup, Comparison};
use super::run::{ScenarioRun, Target};
use super::stop::StopFlag;

mod market;

use market::{Market, RoundGoal};

pub const OPERATIONS: &[&str] = &["threads", "STATUS", "PACED", "REGISTER", "ROUND", "PURCHASE", "OFFERS"];

/// The share of the closed loop's rate: a server with spare capacity, as servers should be.
const PACED_SHARE: f64 = 0.33;

const COMMIT_1: &str = "commit (1 change)";
const COMMIT_100: &str = "commit (100 changes)";

/// The comparisons, and the shares that are required (docs/spec/general.md, "Performance").
fn comparisons(clients: usize) -> Vec<Comparison> {
    let at = |table: &[(usize, f64)]| table.iter().find(|(n, _)| *n == clients).map(|(_, share)| *share);
    vec![
        Comparison { result: "threads", limits: &["bare"], required: at(&[(1, 0.65), (100, 0.85)]) },
        Comparison { result: "STATUS", limits: &["bare"], required: at(&[(1, 0.5), (10, 0.65), (100, 0.65)]) },
        Comparison { result: "REGISTER", limits: &[COMMIT_1], required: at(&[(100, 3.0)]) },
        Comparison { result: "REGISTER", limits: &["STATUS", COMMIT_100], required: at(&[(100, 0.4)]) },
    ]
}

pub fn measure(run: &mut ScenarioRun<'_>) -> anyhow::Result<()> {
    let requests = requests(run);
    let wanted = |all: &[(&'static str, RoundGoal)]| -> Vec<(&'static str, RoundGoal)> {
        all.iter().copied().filter(|(operation, _)| run.is_wanted(operation)).collect()
    };
    let deals = wanted(&[("ROUND", RoundGoal::Cancel), ("PURCHASE", RoundGoal::Buy)]);
    let offers = wanted(&[("OFFERS", RoundGoal::Cancel)]);
    run.expect_benchmarks((requests.len() + deals.len() + offers.len()) * run.args.clients().len());
    for clients in run.args.clients() {
        if !requests.is_empty() && !run.stop.is_set() {
            measure_requests(run, clients, &requests)?;
        }
    }
    for clients in run.args.clients() {
        if !deals.is_empty() && !run.stop.is_set() {
            measure_deals(run, clients, (clients, 1), &deals)?;
        }
        if !offers.is_empty() && !run.stop.is_set() {
            measure_deals(run, clients, (1, clients), &offers)?;
        }
    }
    Ok(())
}

/// The benchmarks that the requested operations need, in the order of a turn: a limit is next to its result.
fn requests(run: &ScenarioRun<'_>) -> Vec<&'static str> {
    let [threads, status, paced, register] =
        ["threads", "STATUS", "PACED", "REGISTER"].map(|operation| run.is_wanted(operation));
    [
        ("threads", threads),
        ("bare", threads || status),
        ("STATUS", status || paced || register),
        ("PACED", paced),
        (COMMIT_1, register),
        ("REGISTER", register),
        (COMMIT_100, register),
    ]
    .into_iter()
    .filter_map(|(name, needed)| needed.then_some(name))
    .collect()
}

fn start_target(run: &ScenarioRun<'_>) -> anyhow::Result<Target> {
    run.target(&["--services", "trade", "--trade-port", "0"], "trade: udp ")
}

fn measure_requests(run: &mut ScenarioRun<'_>, clients: usize, wanted: &[&'static str]) -> anyhow::Result<()> {
    let target = start_target(run)?;
    // At least one client, whose messages give the echo's message sizes.
    let mut status_peers = RegisteredPeers::register(&target, 's', clients, |name, _| {
        format!(r#"{{"type":"STATUS","rq":RQ,"name":"{name}"}}"#)
    })?;
    let mut answer_bytes = 0;
    for client in &mut status_peers.clients {
        answer_bytes = client.learn_response("DEALS")?.len();
    }
    let mut register_peers = if wanted.contains(&"REGISTER") {
        let mut register_peers = RegisteredPeers::register(&target, 'r', clients, |name, addr| {
            let (ip, port) = (addr.ip(), addr.port());
            format!(r#"{{"type":"REGISTER","rq":RQ,"name":"{name}","ip":"{ip}","udp_port":{port},"tcp_port":2000~}}"#)
        })?;
        register_peers.clients.iter_mut().try_for_each(|client| client.learn_response("REGISTERED").map(|_| ()))?;
        register_peers
    } else {
        RegisteredPeers::default()
    };
    let echo = status_peers.clients[0].call().expecting_echo();
    let echo_servers = |kind, name| start_echo(run, kind, name, clients, &echo, answer_bytes);
    let (bare_server, mut bare) = echo_servers(LimitServerKind::Bare, "bare")?;
    let (threads_server, mut threads) = echo_servers(LimitServerKind::Threads, "threads")?;
    let names = register_peers.names.clone();
    let out = run.args.out.clone();
    let commit = |per_commit| {
        let (names, out) = (&names, &out);
        move |length: MeasurementLength, stop: &StopFlag| {
            limits::commit(out, names, per_commit, length.for_clients(clients), stop)
        }
    };
    let (server, register) = (target.server.as_slice(), &mut register_peers.clients);
    let (status, rate) = (std::cell::RefCell::new(&mut status_peers.clients), std::cell::Cell::new(0.0));
    let paced = |length: MeasurementLength, stop: &StopFlag| {
        // The rate of the last closed loop.
        let pace = Pace::from_total(rate.get() * PACED_SHARE, clients);
        load::run(&mut status.borrow_mut(), Some(pace), length, stop)
    };
    let closed_loop = |length: MeasurementLength, stop: &StopFlag| {
        let sample = load::run(&mut status.borrow_mut(), None, length, stop)?;
        rate.set(sample.ops_per_s());
        Ok(sample)
    };
    let status_is_wanted = run.is_wanted("STATUS");
    let mut benchmarks = vec![
        Benchmark::new("threads", |length, stop| load::run(&mut threads, None, length, stop)).on(&threads_server),
        Benchmark::limit("bare", |length, stop| load::run(&mut bare, None, length, stop)).on(&bare_server),
        Benchmark { is_limit: !status_is_wanted, ..Benchmark::new("STATUS", closed_loop).on(server) },
        Benchmark::new("PACED", paced).on(server),
        Benchmark { starts_fresh: true, ..Benchmark::limit(COMMIT_1, commit(1)) },
        Benchmark::new("REGISTER", |length, stop| load::run(register, None, length, stop)).on(server),
        Benchmark { starts_fresh: true, ..Benchmark::limit(COMMIT_100, commit(100)) },
    ];
    benchmarks.retain(|benchmark| wanted.contains(&benchmark.name));
    let has = |name: &str| wanted.contains(&name);
    let mut comparisons = comparisons(clients);
    comparisons.retain(|comparison| has(comparison.result) && comparison.limits.iter().all(|limit| has(limit)));
    run.measure(BenchmarkGroup { clients, benchmarks, comparisons })
}

/// A server that echoes, and clients that call it.
fn start_echo(
    run: &ScenarioRun<'_>,
    kind: LimitServerKind,
    name: &str,
    clients: usize,
    call: &RequestTemplate,
    answer_bytes: usize,
) -> anyhow::Result<([ServerProcess; 1], Vec<UdpClient>)> {
    run.set_status("starting the limits");
    let (server, addr) = kind.start(run, name, ["--answer-bytes".to_owned(), answer_bytes.to_string()])?;
    let connect = |_| UdpClient::connect(addr, call.clone()).context("cannot open a socket for each client");
    Ok(([server], (0..clients).map(connect).collect::<Result<_, _>>()?))
}

#[derive(Default)]
struct RegisteredPeers {
    names: Vec<String>,
    clients: Vec<UdpClient>,
    /// Peers registered at a server that is not ours; they leave when this is dropped.
    guests: Vec<(UdpSocket, String)>,
}

impl RegisteredPeers {
    fn register(
        target: &Target,
        kind: char,
        count: usize,
        text: impl Fn(&str, SocketAddr) -> String,
    ) -> anyhow::Result<RegisteredPeers> {
        let mut peers = RegisteredPeers::default();
        for nth in 0..count {
            let name = name(kind, nth);
            let socket = load::connect(target.addr).context("cannot open a socket for each client")?;
            let addr = socket.local_addr()?;
            if target.server.is_none() {
                peers.guests.push((socket.try_clone()?, name.clone()));
            }
            register(&socket, &name, 20_005)?;
            peers.clients.push(UdpClient::over(socket, RequestTemplate::new(&text(&name, addr))));
            peers.names.push(name);
        }
        Ok(peers)
    }
}

impl Drop for RegisteredPeers {
    fn drop(&mut self) {
        for (socket, name) in &self.guests {
            leave(socket, name);
        }
    }
}

/// Names have equal length and are unique to this process.
fn name(kind: char, nth: usize) -> String {
    format!("perf-{:07}-{kind}{nth:04}", std::process::id() % 10_000_000)
}

fn register(socket: &UdpSocket, name: &str, tcp_port: u16) -> anyhow::Result<serde_json::Value> {
    let addr = socket.local_addr()?;
    let request = json!({
        "type": "REGISTER", "rq": 1, "name": name, "ip": addr.ip(), "udp_port": addr.port(), "tcp_port": tcp_port,
    });
    let response = load::ask(socket, request.to_string().as_bytes())?;
    let value: serde_json::Value = serde_json::from_slice(&response).context("the server's answer is no JSON")?;
    anyhow::ensure!(value["type"] == "REGISTERED", "the server does not register {name}: {}", value["reason"]);
    Ok(value)
}

/// De-registers a guest. Errors are ignored, since the server may be gone.
fn leave(socket: &UdpSocket, name: &str) {
    let request = json!({"type": "DE-REGISTER", "rq": 2, "name": name}).to_string();
    let _ = load::ask(socket, request.as_bytes());
}

fn measure_deals(
    run: &mut ScenarioRun<'_>,
    clients: usize,
    (buyers, sellers): (usize, usize),
    wanted: &[(&'static str, RoundGoal)],
) -> anyhow::Result<()> {
    let target = start_target(run)?;
    let market = Market::open(target.addr, buyers, sellers, target.server.is_none())?;
    let benchmark = |(name, goal): &(&'static str, RoundGoal)| {
        let (goal, market) = (*goal, &market);
        Benchmark::new(name, move |length, stop| market.trade(goal, length, stop)).on(target.server.as_slice())
    };
    run.measure(BenchmarkGroup { clients, benchmarks: wanted.iter().map(benchmark).collect(), comparisons: Vec::new() })
}
