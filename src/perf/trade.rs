//! The trade server's speed: STATUS, durable REGISTERs, whole rounds and purchases.
//!
//! | operation | at N clients |
//! |---|---|
//! | `STATUS`, `REGISTER` | N peers in a closed loop |
//! | `PACED` | N peers that ask STATUS at set times, together at a third of the rate of the closed loop |
//! | `ROUND`, `PURCHASE` | N buyers and one seller; each buyer asks all of them |
//! | `OFFERS` | rounds of one buyer, with offers from N sellers |
//!
//! A measured REGISTER is one of a peer that is known, from its own address, with another `tcp_port`
//! than before: each is a change that is written (the peer's row and a line of the log) and answered
//! only when it is on disk, and yet the number of registrations stays, however long it is measured.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};

use anyhow::Context;
use serde_json::json;

use super::child::{self, Server};
use super::limits::{self, Kind};
use super::load::{self, Call, Client, Length, Pace, Sample};
use super::plan::{Bench, Group, Pair};
use super::run::Run;
use super::stop::Stop;

mod market;

use market::{Goal, Market};

/// What `--only` may name.
pub const OPERATIONS: &[&str] = &["threads", "STATUS", "PACED", "REGISTER", "ROUND", "PURCHASE", "OFFERS"];

/// Of the closed loop's rate: a server with time to spare, as servers should have.
const PACED_SHARE: f64 = 0.33;

const COMMIT_1: &str = "commit (1 change)";
const COMMIT_100: &str = "commit (100 changes)";

/// What is a share of what, and how much of it is asked for (SPEC section 9, issue "Speed").
fn pairs(clients: usize) -> Vec<Pair> {
    let at = |table: &[(usize, f64)]| table.iter().find(|(n, _)| *n == clients).map(|(_, share)| *share);
    vec![
        Pair { result: "threads", limits: &["bare"], required: at(&[(1, 0.65), (100, 0.85)]) },
        Pair { result: "STATUS", limits: &["bare"], required: at(&[(1, 0.5), (10, 0.65), (100, 0.65)]) },
        Pair { result: "REGISTER", limits: &[COMMIT_1], required: at(&[(100, 3.0)]) },
        Pair { result: "REGISTER", limits: &["STATUS", COMMIT_100], required: at(&[(100, 0.4)]) },
    ]
}

/// Measures everything that is wanted, for each number of clients.
///
/// # Errors
/// A server that does not start or answer; the system's.
pub fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let requests = requests(run);
    let deals: Vec<(&'static str, Goal)> = [("ROUND", Goal::Cancel), ("PURCHASE", Goal::Buy)]
        .into_iter()
        .filter(|(operation, _)| run.wants(operation))
        .collect();
    let offers: Vec<(&'static str, Goal)> =
        run.wants("OFFERS").then_some(("OFFERS", Goal::Cancel)).into_iter().collect();
    run.announce((requests.len() + deals.len() + offers.len()) * run.args.clients.len());
    for clients in run.args.clients.clone() {
        if !requests.is_empty() && !run.stop.is_asked() {
            measure_requests(run, usize::from(clients), &requests)?;
        }
    }
    for clients in run.args.clients.clone() {
        let clients = usize::from(clients);
        if !deals.is_empty() && !run.stop.is_asked() {
            measure_deals(run, clients, (clients, 1), &deals)?;
        }
        if !offers.is_empty() && !run.stop.is_asked() {
            measure_deals(run, clients, (1, clients), &offers)?;
        }
    }
    Ok(())
}

/// What has to be measured for what is wanted, in the order of a turn: a limit stands beside its result.
fn requests(run: &Run<'_>) -> Vec<&'static str> {
    let [threads, status, paced, register] =
        ["threads", "STATUS", "PACED", "REGISTER"].map(|operation| run.wants(operation));
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

/// A trade server: one of ours, or the one that was named.
struct Host {
    addr: SocketAddr,
    server: Option<Server>,
}

impl Host {
    fn start(run: &Run<'_>) -> anyhow::Result<Host> {
        if let Some(target) = &run.args.target {
            let addrs = target.to_socket_addrs().with_context(|| format!("--target {target}"))?;
            let addr = addrs.into_iter().next().with_context(|| format!("--target {target}: no such host"))?;
            return Ok(Host { addr, server: None });
        }
        run.say("starting the server");
        let words = |dir: &std::path::Path| {
            let state = dir.join("state").display().to_string();
            let ports = ["--trade-port", "0", "--api-port", "0"];
            [&["server", "--services", "trade"][..], &ports, &["--data-dir", &state]]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let server = Server::start("p2s2 server", &child::sibling("p2s2")?, &run.args.out, words, run.stop)?;
        Ok(Host { addr: server.said("trade: udp ")?, server: Some(server) })
    }

    /// Measures, and what the server used meanwhile.
    fn watch(&self, work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
        child::watch(self.server.as_slice(), work)
    }
}

fn measure_requests(run: &mut Run<'_>, clients: usize, wanted: &[&'static str]) -> anyhow::Result<()> {
    let host = Host::start(run)?;
    // At least one, whose messages tell the sizes of the echo.
    let mut asking =
        Peers::register(&host, 's', clients, |name, _| format!(r#"{{"type":"STATUS","rq":RQ,"name":"{name}"}}"#))?;
    let mut answer_bytes = 0;
    for client in &mut asking.clients {
        answer_bytes = client.learn("DEALS")?.len();
    }
    let mut moving = if wanted.contains(&"REGISTER") {
        let mut moving = Peers::register(&host, 'r', clients, |name, addr| {
            let (ip, port) = (addr.ip(), addr.port());
            format!(r#"{{"type":"REGISTER","rq":RQ,"name":"{name}","ip":"{ip}","udp_port":{port},"tcp_port":2000~}}"#)
        })?;
        moving.clients.iter_mut().try_for_each(|client| client.learn("REGISTERED").map(|_| ()))?;
        moving
    } else {
        Peers::none()
    };
    let echo = asking.clients[0].call().echoed();
    let mut bare = Echo::start(run, Kind::Bare, clients, &echo, answer_bytes)?;
    let mut threads = Echo::start(run, Kind::Threads, clients, &echo, answer_bytes)?;
    let names = moving.names.clone();
    let out = run.args.out.clone();
    let commit = |per_commit| {
        let (names, out) = (&names, &out);
        move |length: Length, stop: &Stop| {
            let length = match length {
                Length::Calls(calls) => Length::Calls(calls * clients as u64),
                time => time,
            };
            limits::commit(out, names, per_commit, length, stop)
        }
    };
    let (host, register) = (&host, &mut moving.clients);
    let (status, rate) = (std::cell::RefCell::new(&mut asking.clients), std::cell::Cell::new(0.0));
    let mut paced = |length: Length, stop: &Stop| {
        // What the closed loop came to last.
        let pace = Pace::of_all(rate.get() * PACED_SHARE, clients);
        host.watch(|| load::run_paced(&mut status.borrow_mut(), pace, length, stop))
    };
    let mut closed_loop = |length: Length, stop: &Stop| {
        let sample = host.watch(|| load::run(&mut status.borrow_mut(), length, stop))?;
        rate.set(sample.ops_per_s());
        Ok(sample)
    };
    let status_is_wanted = run.wants("STATUS");
    let mut benches = vec![
        Bench::new("threads", |length, stop| threads.run(length, stop)),
        Bench::limit("bare", |length, stop| bare.run(length, stop)),
        Bench { is_limit: !status_is_wanted, ..Bench::new("STATUS", &mut closed_loop) },
        Bench::new("PACED", &mut paced),
        Bench { begins_anew: true, ..Bench::limit(COMMIT_1, commit(1)) },
        Bench::new("REGISTER", |length, stop| host.watch(|| load::run(register, length, stop))),
        Bench { begins_anew: true, ..Bench::limit(COMMIT_100, commit(100)) },
    ];
    benches.retain(|bench| wanted.contains(&bench.name));
    let has = |name: &str| wanted.contains(&name);
    let mut pairs = pairs(clients);
    pairs.retain(|pair| has(pair.result) && pair.limits.iter().all(|limit| has(limit)));
    run.measure(Group { clients, benches, pairs })
}

/// An echo server and its clients.
struct Echo {
    server: Server,
    clients: Vec<Client>,
}

impl Echo {
    fn start(run: &Run<'_>, kind: Kind, clients: usize, call: &Call, answer_bytes: usize) -> anyhow::Result<Echo> {
        run.say("starting the limits");
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let server = Server::start(kind.name(), &own, &run.args.out, |_| kind.words(answer_bytes), run.stop)?;
        let addr = server.said("udp ")?;
        let connect = |_| Client::connect(addr, call.clone()).context("cannot open a socket for each client");
        Ok(Echo { clients: (0..clients).map(connect).collect::<Result<_, _>>()?, server })
    }

    fn run(&mut self, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
        child::watch(std::slice::from_ref(&self.server), || load::run(&mut self.clients, length, stop))
    }
}

/// Registered peers, each with a client of its own.
struct Peers {
    names: Vec<String>,
    clients: Vec<Client>,
    /// Where they are registered, if that is not our own server: then they leave at the end.
    guests: Vec<(UdpSocket, String)>,
}

impl Peers {
    fn none() -> Peers {
        Peers { names: Vec::new(), clients: Vec::new(), guests: Vec::new() }
    }

    fn register(
        host: &Host,
        kind: char,
        count: usize,
        text: impl Fn(&str, SocketAddr) -> String,
    ) -> anyhow::Result<Peers> {
        let mut peers = Peers::none();
        for nth in 0..count {
            let name = name(kind, nth);
            let socket = load::connect(host.addr).context("cannot open a socket for each client")?;
            let addr = socket.local_addr()?;
            if host.server.is_none() {
                peers.guests.push((socket.try_clone()?, name.clone()));
            }
            register(&socket, &name, 20_005)?;
            peers.clients.push(Client::over(socket, Call::new(&text(&name, addr))));
            peers.names.push(name);
        }
        Ok(peers)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for (socket, name) in &self.guests {
            leave(socket, name);
        }
    }
}

/// Of the same length for all, and of this process alone.
fn name(kind: char, nth: usize) -> String {
    format!("perf-{:07}-{kind}{nth:04}", std::process::id() % 10_000_000)
}

/// Registers a peer and gives what the server answered.
fn register(socket: &UdpSocket, name: &str, tcp_port: u16) -> anyhow::Result<serde_json::Value> {
    let addr = socket.local_addr()?;
    let request = json!({
        "type": "REGISTER", "rq": 1, "name": name, "ip": addr.ip(), "udp_port": addr.port(), "tcp_port": tcp_port,
    });
    let answer = load::ask(socket, request.to_string().as_bytes())?;
    let value: serde_json::Value = serde_json::from_slice(&answer).context("the server's answer is no JSON")?;
    anyhow::ensure!(value["type"] == "REGISTERED", "the server does not register {name}: {}", value["reason"]);
    Ok(value)
}

/// A guest takes its leave; that a server which is gone hears nothing of it harms nobody.
fn leave(socket: &UdpSocket, name: &str) {
    let request = json!({"type": "DE-REGISTER", "rq": 2, "name": name}).to_string();
    let _ = load::ask(socket, request.as_bytes());
}

fn measure_deals(
    run: &mut Run<'_>,
    clients: usize,
    (buyers, sellers): (usize, usize),
    wanted: &[(&'static str, Goal)],
) -> anyhow::Result<()> {
    let host = Host::start(run)?;
    let market = Market::open(host.addr, buyers, sellers, host.server.is_none())?;
    let (host, market) = (&host, &market);
    let bench = |(name, goal): &(&'static str, Goal)| {
        let goal = *goal;
        Bench::new(name, move |length, stop| host.watch(|| market.trade(goal, length, stop)))
    };
    run.measure(Group { clients, benches: wanted.iter().map(bench).collect(), pairs: Vec::new() })
}
