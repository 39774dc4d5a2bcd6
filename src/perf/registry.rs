//! The registry's speed: hosts that keep a connection each, and say what they have and want.
//!
//! | preset | connections | what comes before |
//! |---|---|---|
//! | `1k`, `10k` | so many, all registered and kept open | |
//! | `100k` | 2,000 at once | 100,000 hosts arrive in turns of 2,000: each registers with a file, publishes another, asks, and goes |
//!
//! | operation | is |
//! |---|---|
//! | `PING`, `REQUEST`, `DISCOVER`, `LIST` | a closed loop of 64 threads over all connections; LIST asks for pages of 20 hosts |
//! | `REGISTER`, `PUBLISH` | the same; each is a change that is on disk before it is answered |
//! | `PACED` | 2,000 PINGs a second in all, spread over all connections, timed from when each was due |
//! | `PACED-100` | the same rate over a hundred of them |
//! | `PACED-LIST` | the same over all, while somebody reads pages of 100 hosts fifty times a second |
//! | `ARRIVAL` | with the preset `100k`: the hosts that arrive |
//!
//! `bare` is a read/write loop per connection of the standard library, in a process of its own, with as many bytes
//! and connections, or as many as the system lets this program have beside those to the registry.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::RunArgs;
use super::child::{self, Server};
use super::limits::Kind;
use super::limits::relay::{ANSWER_HEAD, Trip};
use super::load::{self, Length, Sample};
use super::plan::{Bench, Group, Pair};
use super::run::Run;
use super::stop::Stop;
use crate::net::limits::raise_open_files;

/// What `--only` may name.
pub const OPERATIONS: &[&str] =
    &["PING", "REQUEST", "DISCOVER", "LIST", "REGISTER", "PUBLISH", "PACED", "PACED-100", "PACED-LIST", "ARRIVAL"];
/// Connections at once, at most: what most machines allow.
pub const CLIENTS_MAX: u32 = 20_000;
/// Calls under way at a time.
const AT_ONCE: usize = 64;
/// Connections at once of the preset `100k`.
const TURN: usize = 2_000;
/// Hosts that arrive with it; of a quick run.
const ARRIVING: usize = 100_000;
const ARRIVING_QUICK: usize = 10_000;
const PACED_PER_S: f64 = 2_000.0;
/// Connections of `PACED-100`.
const FEW: usize = 100;
const PAGE: usize = 20;
/// What is read beside `PACED-LIST`.
const READER_PAGE: usize = 100;
const READER_EVERY: Duration = Duration::from_millis(20);
/// A longer wait is a failure.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Connections besides those of hosts: the reader, a guest's farewell.
const SPARE: usize = 500;

/// `p2s2-perf registry`.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// How many hosts: 1k and 10k are all connected at once; of 100k, 2,000 are
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "1k")]
    preset: Vec<Preset>,
    /// What every scenario takes.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How many hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// A thousand
    #[value(name = "1k")]
    Thousand,
    /// Ten thousand
    #[value(name = "10k")]
    TenThousand,
    /// A hundred thousand
    #[value(name = "100k")]
    HundredThousand,
}

/// Measures everything that is wanted, for each preset.
///
/// # Errors
/// A server that does not start or answer; the system's.
pub fn measure(run: &mut Run<'_>, args: &RegistryArgs) -> anyhow::Result<()> {
    let open_files = raise_open_files().context("the limit of open files stays as it is")?;
    let asked = run.args.asked_clients();
    let sizes: Vec<(usize, bool)> = if asked.is_empty() {
        let size = |preset: &Preset| match preset {
            Preset::Thousand => (1_000, false),
            Preset::TenThousand => (10_000, false),
            Preset::HundredThousand => (TURN, true),
        };
        args.preset.iter().map(size).collect()
    } else {
        asked.into_iter().map(|clients| (clients, false)).collect()
    };
    let of_each = OPERATIONS.iter().filter(|operation| run.wants(operation) && **operation != "ARRIVAL").count();
    run.announce(sizes.len() * of_each);
    for (connections, with_arrivals) in sizes {
        if run.stop.is_asked() {
            return Ok(());
        }
        let echoes = echoes(connections, open_files)?;
        measure_size(run, connections, echoes, with_arrivals)?;
    }
    Ok(())
}

/// Connections to the limit's process. Some 64 calls are under way at a time, over as many connections as there
/// are: with fewer of them it is no slower.
fn echoes(connections: usize, open_files: u64) -> anyhow::Result<usize> {
    let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
    let left = open_files.saturating_sub(connections + SPARE);
    ensure!(
        left >= AT_ONCE,
        "{connections} connections want {} open files, and this system allows {open_files}: raise it (ulimit -Hn)",
        connections + SPARE + AT_ONCE
    );
    Ok(connections.min(left))
}

fn measure_size(run: &mut Run<'_>, connections: usize, echoes: usize, with_arrivals: bool) -> anyhow::Result<()> {
    let registry = Registry::start(run, connections)?;
    let brand = format!("perf-{:07}", std::process::id() % 10_000_000);
    if with_arrivals && (run.wants("ARRIVAL") || run.wants("PACED-LIST")) {
        measure_arrivals(run, &registry, &brand)?;
    }
    run.say("connecting everybody");
    let everybody = Everybody { brand, connections };
    let mut crews = crews(connections, |nth| everybody.admit(registry.addr, "held", nth))?;
    let _guests = Guests::of(&registry, &crews);
    for operation in ["PING", "REQUEST", "DISCOVER", "LIST", "REGISTER", "PUBLISH"] {
        if run.wants(operation) && !run.stop.is_asked() {
            measure_closed_loop(run, &registry, &everybody, &mut crews, echoes, operation)?;
        }
    }
    measure_paced(run, &registry, &everybody, crews)
}

/// One operation beside an echo.
fn measure_closed_loop(
    run: &mut Run<'_>,
    registry: &Registry,
    everybody: &Everybody,
    crews: &mut [Crew],
    echoes: usize,
    operation: &'static str,
) -> anyhow::Result<()> {
    let (request_bytes, answer_bytes) = crews[0].learn(operation, everybody)?;
    run.say("starting the limit");
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let words = |_dir: &std::path::Path| Kind::RelayFront.relay_words(&[]);
    let echo = Server::start("bare", &own, &run.args.out, words, run.stop)?;
    let at = echo.said("tcp ")?;
    let mut echoing = self::crews(echoes, |_nth| Member::connect(at, String::new()))?;
    let mut message = Trip { request_bytes, answer_bytes, steps: Vec::new() }.message()?;
    message.push(b'\n');
    let benches = vec![
        Bench::limit("bare", |length, stop| {
            load::run_all(&mut echoing, |crew| crew.drive(length, stop, |_, _, out| out.extend(&message), ANSWER_HEAD))
        }),
        Bench::new(operation, |length, stop| {
            let expected = expected(operation);
            load::run_all(crews, |crew| {
                crew.drive(length, stop, |member, nth, out| everybody.write(operation, member, nth, out), expected)
            })
        })
        .on(registry.server.as_slice()),
    ];
    let pairs = vec![Pair { result: operation, limits: &["bare"], required: None }];
    run.measure(Group { clients: everybody.connections, benches, pairs })
}

/// The same rate over all connections, over a few, and beside somebody who reads pages.
fn measure_paced(
    run: &mut Run<'_>,
    registry: &Registry,
    everybody: &Everybody,
    crews: Vec<Crew>,
) -> anyhow::Result<()> {
    let wanted: Vec<&'static str> =
        ["PACED", "PACED-100", "PACED-LIST"].into_iter().filter(|operation| run.wants(operation)).collect();
    if wanted.is_empty() || run.stop.is_asked() {
        return Ok(());
    }
    let few = self::crews(FEW.min(everybody.connections), |nth| everybody.admit(registry.addr, "few", nth))?;
    let _guests = Guests::of(registry, &few);
    let (crews, few) = (std::cell::RefCell::new(crews), std::cell::RefCell::new(few));
    let paced = |crews: &std::cell::RefCell<Vec<Crew>>, length, stop: &Stop| {
        let mut crews = crews.borrow_mut();
        let interval = Duration::from_secs_f64(crews.len() as f64 / PACED_PER_S);
        let count = crews.len();
        let mut numbered: Vec<(usize, &mut Crew)> = crews.iter_mut().enumerate().collect();
        load::run_all(&mut numbered, |(nth, crew)| {
            let first = interval.mul_f64(*nth as f64 / count as f64);
            crew.drive_paced(interval, first, length, stop, everybody)
        })
    };
    let mut benches = Vec::new();
    for operation in wanted {
        let bench = match operation {
            "PACED" => Bench::new(operation, |length, stop| paced(&crews, length, stop)),
            "PACED-100" => Bench::new(operation, |length, stop| paced(&few, length, stop)),
            _ => Bench::new(operation, |length, stop| beside_reader(registry.addr, || paced(&crews, length, stop))),
        };
        benches.push(bench.on(registry.server.as_slice()));
    }
    run.measure(Group { clients: everybody.connections, benches, pairs: Vec::new() })
}

/// Measures while somebody reads one page after the other, as fast as people turn them.
fn beside_reader(at: SocketAddr, work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
    let is_over = AtomicBool::new(false);
    let mut reader = Member::connect(at, String::new())?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| -> anyhow::Result<()> {
            let (mut answer, mut offset, mut due) = (Vec::new(), 0, Instant::now());
            while !is_over.load(SeqCst) {
                let request = json!({"action": "LIST", "data": {"offset": offset, "limit": READER_PAGE}});
                reader.call(format!("{request}\n").as_bytes(), &mut answer)?;
                let page: Value = serde_json::from_slice(&answer).context("a page is no JSON")?;
                let total = page["total"].as_u64().context("a page tells no total")?;
                ensure!(page["registry"].as_object().is_some_and(|hosts| !hosts.is_empty()), "a page is empty");
                offset = if offset + READER_PAGE as u64 >= total { 0 } else { offset + READER_PAGE as u64 };
                due += READER_EVERY;
                if let Some(early) = due.checked_duration_since(Instant::now()) {
                    std::thread::sleep(early);
                }
            }
            Ok(())
        });
        let sample = work();
        is_over.store(true, SeqCst);
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?.context("reading pages of LIST")?;
        sample
    })
}

/// Hosts that come, say what they have, and go, two thousand at once.
fn measure_arrivals(run: &mut Run<'_>, registry: &Registry, brand: &str) -> anyhow::Result<()> {
    let arriving = if run.args.quick { ARRIVING_QUICK } else { ARRIVING };
    let before = run.effort;
    run.effort.runs = 1;
    run.announce(1);
    let mut is_warm = false;
    let bench = Bench::new("ARRIVAL", |_length, stop| {
        // The first time is the warm-up: others, and few.
        let (count, kind) = if is_warm { (arriving, "host") } else { (AT_ONCE, "warm") };
        is_warm = true;
        let mut total = Sample::new();
        let started = Instant::now();
        for from in (0..count).step_by(TURN) {
            if stop.is_asked() {
                break;
            }
            let size = TURN.min(count - from);
            let everybody = Everybody { brand: brand.to_owned(), connections: size };
            let mut crews = crews(size, |nth| everybody.admit(registry.addr, kind, from + nth))?;
            for operation in ["PUBLISH", "REQUEST", "DISCOVER", "LIST", "PING"] {
                let sample = load::run_all(&mut crews, |crew| crew.each_once(operation, &everybody, stop))?;
                total.absorb(&sample);
            }
        }
        total.elapsed = started.elapsed();
        Ok(total)
    });
    let benches = vec![bench.on(registry.server.as_slice())];
    let measured = run.measure(Group { clients: TURN, benches, pairs: Vec::new() });
    run.effort = before;
    measured
}

/// A registry: one of ours, or the one that was named.
struct Registry {
    addr: SocketAddr,
    server: Option<Server>,
}

impl Registry {
    fn start(run: &Run<'_>, connections: usize) -> anyhow::Result<Registry> {
        if let Some(target) = &run.args.target {
            let addrs = target.to_socket_addrs().with_context(|| format!("--target {target}"))?;
            let addr = addrs.into_iter().next().with_context(|| format!("--target {target}: no such host"))?;
            return Ok(Registry { addr, server: None });
        }
        run.say("starting the server");
        let words = |dir: &std::path::Path| {
            // A server keeps a sixteenth free for those who come next: whoever has not registered gives way.
            let most = (connections + connections / 8 + SPARE).to_string();
            let state = dir.join("state").display().to_string();
            ["server", "--services", "share", "--registry-port", "0", "--api-port", "0", "--data-dir", &state]
                .into_iter()
                .chain(["--max-connections", &most])
                .map(str::to_owned)
                .collect()
        };
        let server = Server::start("p2s2 server", &child::sibling("p2s2")?, &run.args.out, words, run.stop)?;
        Ok(Registry { addr: server.said("registry: tcp ")?, server: Some(server) })
    }
}

/// Hosts at a registry that is not ours: they leave at the end.
struct Guests {
    at: SocketAddr,
    names: Vec<String>,
}

impl Guests {
    fn of(registry: &Registry, crews: &[Crew]) -> Option<Guests> {
        let names = || crews.iter().flat_map(|crew| crew.members.iter().map(|member| member.name.clone())).collect();
        registry.server.is_none().then(|| Guests { at: registry.addr, names: names() })
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        // Their connections are closed: whoever comes from the same address has their names back at once. That a
        // registry which is gone hears nothing of it harms nobody.
        let mut answer = Vec::new();
        for name in &self.names {
            let Ok(mut member) = Member::connect(self.at, name.clone()) else { return };
            for action in [
                json!({"action": "REGISTER", "data": {"hostname": name, "port": 6001}}),
                json!({"action": "UNREGISTER", "data": {"hostname": name}}),
            ] {
                let _ = member.call(format!("{action}\n").as_bytes(), &mut answer);
            }
        }
    }
}

/// Of the same length for all, and of this process alone.
fn name(brand: &str, kind: &str, nth: usize) -> String {
    format!("{brand}-{kind}-{nth:06}")
}

/// Whom a call may be about.
struct Everybody {
    brand: String,
    connections: usize,
}

impl Everybody {
    /// A host that is connected and registered: who is connected and says nothing gives way to others.
    fn admit(&self, at: SocketAddr, kind: &str, nth: usize) -> anyhow::Result<Member> {
        let mut member = Member::connect(at, name(&self.brand, kind, nth))?;
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        self.write("REGISTER", &member, 0, &mut request);
        member.call(&request, &mut answer).context("a host's connection failed")?;
        let is_in = answer.windows(expected("REGISTER").len()).any(|window| window == expected("REGISTER"));
        ensure!(is_in, "a host is not registered: {}", String::from_utf8_lossy(&answer).trim_end());
        Ok(member)
    }

    /// Writes the line that asks for it.
    fn write(&self, operation: &str, member: &Member, nth: u64, out: &mut Vec<u8>) {
        let own = &member.name;
        // Another one each time: a number that has nothing in common with theirs.
        let other = (nth.wrapping_mul(7919) + member.nth as u64) as usize % self.connections;
        let file = |place: usize| format!("held-{place:06}.bin");
        let data = match operation {
            "REGISTER" => json!({
                "hostname": own, "port": 6001, "display_name": "A host of the load",
                "files_metadata": {file(member.nth): {"size": 1_048_576, "modified": 1_700_000_000, "is_published": true}},
            }),
            "PUBLISH" => json!({
                "hostname": own, "fname": file(member.nth), "size": 1_048_576 + nth, "modified": 1_700_000_000,
            }),
            "REQUEST" => json!({"fname": file(other)}),
            "DISCOVER" => json!({"hostname": name(&self.brand, member.kind(), member.turn(other))}),
            "LIST" => json!({"offset": other - other % PAGE, "limit": PAGE}),
            _ => json!({"hostname": own, "state": "active"}),
        };
        let action = if operation.starts_with("PACED") { "PING" } else { operation };
        // Writing to memory cannot fail.
        let _ = writeln!(out, "{}", json!({"action": action, "data": data}));
    }
}

/// How an answer must say that it was done.
fn expected(operation: &str) -> &'static [u8] {
    match operation {
        "PUBLISH" => br#""status":"ACK""#,
        "REQUEST" => br#""status":"FOUND""#,
        "PING" | "PACED" => br#""status":"ALIVE""#,
        _ => br#""status":"OK""#,
    }
}

/// One host's connection.
struct Member {
    stream: TcpStream,
    name: String,
    nth: usize,
}

impl Member {
    fn connect(at: SocketAddr, name: String) -> anyhow::Result<Member> {
        let stream = TcpStream::connect(at).context("cannot connect each client")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let nth = name.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        Ok(Member { stream, name, nth })
    }

    /// What its name says between the brand and the number.
    fn kind(&self) -> &str {
        self.name.rsplit('-').nth(1).unwrap_or_default()
    }

    /// The number of another one of those that are there at the same time.
    fn turn(&self, other: usize) -> usize {
        self.nth - self.nth % TURN + other % TURN
    }

    /// Sends one line and waits for its answer, a line as well.
    fn call(&mut self, request: &[u8], answer: &mut Vec<u8>) -> io::Result<()> {
        self.stream.write_all(request)?;
        answer.clear();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    answer.extend_from_slice(&buffer[..length]);
                    if buffer[length - 1] == b'\n' {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The connections of one thread, which calls over one after the other.
struct Crew {
    members: Vec<Member>,
    next: usize,
    calls: u64,
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// So many connections, shared out among the threads.
fn crews(connections: usize, connect: impl Fn(usize) -> anyhow::Result<Member> + Sync) -> anyhow::Result<Vec<Crew>> {
    let threads = AT_ONCE.min(connections).max(1);
    let mut crews: Vec<Crew> = (0..threads)
        .map(|_| Crew { members: Vec::new(), next: 0, calls: 0, request: Vec::new(), answer: Vec::new() })
        .collect();
    let mut numbered: Vec<(usize, &mut Crew)> = crews.iter_mut().enumerate().collect();
    load::run_all(&mut numbered, |(thread, crew)| {
        crew.members = (*thread..connections).step_by(threads).map(&connect).collect::<anyhow::Result<_>>()?;
        Ok(Sample::new())
    })?;
    Ok(crews)
}

impl Crew {
    /// One call of the next one; whether it was answered as it should be.
    fn call_next(&mut self, write: &impl Fn(&Member, u64, &mut Vec<u8>), expected: &[u8]) -> anyhow::Result<bool> {
        let member = &mut self.members[self.next];
        self.request.clear();
        write(member, self.calls, &mut self.request);
        member.call(&self.request, &mut self.answer).context("a client's connection failed")?;
        self.next = (self.next + 1) % self.members.len();
        self.calls += 1;
        Ok(self.answer.windows(expected.len()).any(|window| window == expected))
    }

    /// A closed loop.
    fn drive(
        &mut self,
        length: Length,
        stop: &Stop,
        write: impl Fn(&Member, u64, &mut Vec<u8>),
        expected: &[u8],
    ) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        // So many of each client.
        let length = match length {
            Length::Calls(calls) => Length::Calls(calls * self.members.len() as u64),
            time => time,
        };
        let (mut before, mut calls) = (started, 0);
        while !length.is_over(calls, started, before) && !stop.is_asked() {
            let is_right = self.call_next(&write, expected)?;
            let now = Instant::now();
            if is_right {
                sample.answered(now - before);
            } else {
                sample.failed += 1;
            }
            before = now;
            calls += 1;
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    /// Every member once; a part of a mix.
    fn each_once(&mut self, operation: &'static str, everybody: &Everybody, stop: &Stop) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let expected = expected(operation);
        self.next = 0;
        for _ in 0..self.members.len() {
            if stop.is_asked() {
                break;
            }
            let started = Instant::now();
            let write = |member: &Member, nth, out: &mut Vec<u8>| everybody.write(operation, member, nth, out);
            let is_right = self.call_next(&write, expected)?;
            sample.of_part(operation, is_right.then(|| started.elapsed()));
        }
        Ok(sample)
    }

    /// PINGs at set times, whether or not the one before was quick: timed from when each was due.
    fn drive_paced(
        &mut self,
        interval: Duration,
        first: Duration,
        length: Length,
        stop: &Stop,
        everybody: &Everybody,
    ) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        let (mut due, mut calls) = (started + first, 0);
        let write = |member: &Member, nth, out: &mut Vec<u8>| everybody.write("PACED", member, nth, out);
        while !length.is_over(calls, started, due) && !stop.is_asked() {
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            if self.call_next(&write, expected("PACED"))? {
                sample.answered(due.elapsed());
            } else {
                sample.failed += 1;
            }
            due += interval;
            calls += 1;
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    /// Bytes of such a call and of its answer, without the line's end.
    fn learn(&mut self, operation: &str, everybody: &Everybody) -> anyhow::Result<(usize, usize)> {
        let write = |member: &Member, nth, out: &mut Vec<u8>| everybody.write(operation, member, nth, out);
        let is_right = self.call_next(&write, expected(operation))?;
        ensure!(is_right, "{operation} was answered {}", String::from_utf8_lossy(&self.answer).trim_end());
        Ok((self.request.len() - 1, self.answer.len() - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_has_as_many_connections_as_are_left() {
        assert_eq!(echoes(1_000, 20_000).unwrap(), 1_000);
        assert_eq!(echoes(10_000, 20_000).unwrap(), 20_000 - 10_000 - SPARE);
        assert_eq!(echoes(10_000, u64::MAX).unwrap(), 10_000);
        let error = echoes(10_000, 10_000).unwrap_err().to_string();
        assert!(error.contains("10564 open files") && error.contains("ulimit"), "{error}");
    }

    #[test]
    fn calls_are_lines_of_json_about_those_who_are_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let everybody = Everybody { brand: "perf-0000001".to_owned(), connections: 3 };
        let member = Member::connect(at, name(&everybody.brand, "host", TURN + 1)).unwrap();
        for operation in OPERATIONS.iter().filter(|operation| **operation != "ARRIVAL") {
            for nth in 0..10 {
                let mut line = Vec::new();
                everybody.write(operation, &member, nth, &mut line);
                assert_eq!(line.pop(), Some(b'\n'));
                let call: Value = serde_json::from_slice(&line).unwrap();
                let action = call["action"].as_str().unwrap();
                assert!(operation.starts_with(action) || action == "PING", "{call}");
                if action == "DISCOVER" {
                    let host = call["data"]["hostname"].as_str().unwrap();
                    assert!((TURN..TURN + 3).any(|there| host == name(&everybody.brand, "host", there)), "{host}");
                }
            }
        }
    }

    #[test]
    fn every_member_of_every_crew_is_connected_and_calls_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        stream.write_all(b"{\"status\":\"OK\"}\n").unwrap();
                    }
                });
            }
        });
        let everybody = Everybody { brand: "b".to_owned(), connections: 150 };
        let mut all = crews(150, |nth| Member::connect(at, name("b", "held", nth))).unwrap();
        let mut names: Vec<usize> = all.iter().flat_map(|crew| crew.members.iter().map(|one| one.nth)).collect();
        names.sort_unstable();
        assert_eq!(names, (0..150).collect::<Vec<_>>());
        let stop = Stop::default();
        let once = |operation| load::run_all(&mut all, |crew| crew.each_once(operation, &everybody, &stop)).unwrap();
        let [registered, pinged] = ["REGISTER", "PING"].map(once);
        assert_eq!((registered.done, registered.failed), (150, 0));
        // The wrong answer is no success.
        assert_eq!((pinged.done, pinged.failed), (0, 150));
    }
}
