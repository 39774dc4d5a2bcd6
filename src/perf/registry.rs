//! Performance of the registry: hosts with a connection each that register, publish and search.
//!
//! | preset | connections | before measuring |
//! |---|---|---|
//! | `1k`, `10k` | 1,000 or 10,000, all registered and kept open | |
//! | `100k` | 2,000 at once | 100,000 hosts arrive in batches of 2,000: each registers with a file, publishes another, queries, and leaves |
//!
//! | operation | measures |
//! |---|---|
//! | `PING`, `REQUEST`, `DISCOVER`, `LIST` | a closed loop of 64 threads over all connections; LIST asks for pages of 20 hosts |
//! | `REGISTER`, `PUBLISH` | the same; each is a change that is on disk before the response |
//! | `PACED`, `PACED-100` | 2,000 PINGs per second over all connections, or a hundred; timed from when due |
//! | `PACED-LIST` | as `PACED`, while a client reads pages of 100 hosts fifty times a second |
//! | `ARRIVAL` | with the preset `100k`: the arriving hosts |
//!
//! The limit `bare` is a read/write loop per connection with the standard library in a separate process, with the same
//! message sizes and number of connections (or as many as the limit of open files leaves to this program).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::RunArgs;
use super::limits::LimitServerKind;
use super::limits::relay::{RESPONSE_PREFIX, RelayRequest};
use super::load::{self, MeasurementLength, Pace, Sample};
use super::plan::{Benchmark, BenchmarkGroup, Comparison};
use super::run::{ScenarioRun, Target};
use super::stop::StopFlag;
use crate::net::limits::raise_open_files;

pub const OPERATIONS: &[&str] =
    &["PING", "REQUEST", "DISCOVER", "LIST", "REGISTER", "PUBLISH", "PACED", "PACED-100", "PACED-LIST", "ARRIVAL"];
/// Maximum number of concurrent connections: what most machines allow.
pub const CLIENTS_MAX: u32 = 20_000;
const CONCURRENT_CALLS: usize = 64;
/// Number of concurrent connections with the preset `100k`.
const ARRIVAL_BATCH: usize = 2_000;
const ARRIVING_HOSTS: usize = 100_000;
const ARRIVING_HOSTS_QUICK: usize = 10_000;
const PACED_PER_S: f64 = 2_000.0;
const FEW_CONNECTIONS: usize = 100;
const LIST_PAGE: usize = 20;
/// What the reader of `PACED-LIST` requests, and how often.
const READER_PAGE: usize = 100;
const READER_EVERY: Duration = Duration::from_millis(20);
/// A call that takes longer fails.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections other than those of hosts: the reader, guests that unregister.
const SPARE_CONNECTIONS: usize = 500;

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

pub fn measure(run: &mut ScenarioRun<'_>, args: &RegistryArgs) -> anyhow::Result<()> {
    let open_files = raise_open_files().context("the limit of open files stays as it is")?;
    let asked = run.args.requested_clients();
    let sizes: Vec<(usize, bool)> = if asked.is_empty() {
        let size = |preset: &Preset| match preset {
            Preset::Thousand => (1_000, false),
            Preset::TenThousand => (10_000, false),
            Preset::HundredThousand => (ARRIVAL_BATCH, true),
        };
        args.preset.iter().map(size).collect()
    } else {
        asked.into_iter().map(|clients| (clients, false)).collect()
    };
    let of_each = OPERATIONS.iter().filter(|operation| run.is_wanted(operation) && **operation != "ARRIVAL").count();
    run.expect_benchmarks(sizes.len() * of_each);
    for (connections, with_arrivals) in sizes {
        if run.stop.is_set() {
            return Ok(());
        }
        let limit_connections = limit_connections(connections, open_files)?;
        measure_size(run, connections, limit_connections, with_arrivals)?;
    }
    Ok(())
}

/// Number of connections to the limit process. Only 64 calls are in progress at a time, so fewer connections than to
/// the registry do not slow it down.
fn limit_connections(connections: usize, open_files: u64) -> anyhow::Result<usize> {
    let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
    let left = open_files.saturating_sub(connections + SPARE_CONNECTIONS);
    ensure!(
        left >= CONCURRENT_CALLS,
        "{connections} connections want {} open files, and this system allows {open_files}: raise it (ulimit -Hn)",
        connections + SPARE_CONNECTIONS + CONCURRENT_CALLS
    );
    Ok(connections.min(left))
}

fn measure_size(
    run: &mut ScenarioRun<'_>,
    connections: usize,
    limit_connections: usize,
    with_arrivals: bool,
) -> anyhow::Result<()> {
    let registry = start_target(run, connections)?;
    let name_prefix = format!("perf-{:07}", std::process::id() % 10_000_000);
    if with_arrivals && (run.is_wanted("ARRIVAL") || run.is_wanted("PACED-LIST")) {
        measure_arrivals(run, &registry, &name_prefix)?;
    }
    run.set_status("connecting everybody");
    let population = HostPopulation { name_prefix, connections };
    let mut workers = connect_workers(connections, |nth| population.connect_host(registry.addr, "held", nth))?;
    let _guests = GuestHosts::of(&registry, &workers);
    for operation in ["PING", "REQUEST", "DISCOVER", "LIST", "REGISTER", "PUBLISH"] {
        if run.is_wanted(operation) && !run.stop.is_set() {
            measure_closed_loop(run, &registry, &population, &mut workers, limit_connections, operation)?;
        }
    }
    measure_paced(run, &registry, &population, workers)
}

fn measure_closed_loop(
    run: &mut ScenarioRun<'_>,
    registry: &Target,
    population: &HostPopulation,
    workers: &mut [Worker],
    limit_connections: usize,
    operation: &'static str,
) -> anyhow::Result<()> {
    let (request_bytes, answer_bytes) = workers[0].learn_sizes(operation, population)?;
    run.set_status("starting the limit");
    let (_echo, at) = LimitServerKind::RelayFront.start(run, "bare", [])?;
    let mut limit_workers = connect_workers(limit_connections, |_nth| HostConnection::connect(at, String::new()))?;
    let mut message = RelayRequest { request_bytes, answer_bytes, steps: Vec::new() }.message()?;
    message.push(b'\n');
    let benchmarks = vec![
        Benchmark::limit("bare", |length, stop| {
            let write = Box::new(|_: &HostConnection, _, out: &mut Vec<u8>| out.extend(&message));
            let call = HostCall { write, expected: RESPONSE_PREFIX, part: None };
            load::run_all(&mut limit_workers, |_nth, worker| worker.drive_each(&call, length, stop))
        }),
        Benchmark::new(operation, |length, stop| {
            let call = population.call(operation);
            load::run_all(workers, |_nth, worker| worker.drive_each(&call, length, stop))
        })
        .on(registry.server.as_slice()),
    ];
    let comparisons = vec![Comparison { result: operation, limits: &["bare"], required: None }];
    run.measure(BenchmarkGroup { clients: population.connections, benchmarks, comparisons })
}

fn measure_paced(
    run: &mut ScenarioRun<'_>,
    registry: &Target,
    population: &HostPopulation,
    workers: Vec<Worker>,
) -> anyhow::Result<()> {
    let wanted: Vec<&'static str> =
        ["PACED", "PACED-100", "PACED-LIST"].into_iter().filter(|operation| run.is_wanted(operation)).collect();
    if wanted.is_empty() || run.stop.is_set() {
        return Ok(());
    }
    let few = connect_workers(FEW_CONNECTIONS.min(population.connections), |nth| {
        population.connect_host(registry.addr, "few", nth)
    })?;
    let _guests = GuestHosts::of(registry, &few);
    let (workers, few) = (std::cell::RefCell::new(workers), std::cell::RefCell::new(few));
    let paced = |workers: &std::cell::RefCell<Vec<Worker>>, length, stop: &StopFlag| {
        let mut workers = workers.borrow_mut();
        let (call, pace) = (population.call("PACED"), Pace::from_total(PACED_PER_S, workers.len()));
        load::run_all(&mut workers, |nth, worker| worker.drive(&call, length, Some((pace, nth)), stop))
    };
    let mut benchmarks = Vec::new();
    for operation in wanted {
        let benchmark = match operation {
            "PACED" => Benchmark::new(operation, |length, stop| paced(&workers, length, stop)),
            "PACED-100" => Benchmark::new(operation, |length, stop| paced(&few, length, stop)),
            _ => Benchmark::new(operation, |length, stop| {
                with_page_reader(registry.addr, || paced(&workers, length, stop))
            }),
        };
        benchmarks.push(benchmark.on(registry.server.as_slice()));
    }
    run.measure(BenchmarkGroup { clients: population.connections, benchmarks, comparisons: Vec::new() })
}

/// Runs a measurement while another client reads page after page at a human pace.
fn with_page_reader(at: SocketAddr, work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
    let is_over = AtomicBool::new(false);
    let mut reader = HostConnection::connect(at, String::new())?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| -> anyhow::Result<()> {
            let (mut response, mut offset, mut due) = (Vec::new(), 0, Instant::now());
            while !is_over.load(SeqCst) {
                let request = json!({"action": "LIST", "data": {"offset": offset, "limit": READER_PAGE}});
                reader.call(format!("{request}\n").as_bytes(), &mut response)?;
                let page: Value = serde_json::from_slice(&response).context("a page is no JSON")?;
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

/// Measures hosts that arrive, register, publish, search and leave, 2,000 at a time.
fn measure_arrivals(run: &mut ScenarioRun<'_>, registry: &Target, name_prefix: &str) -> anyhow::Result<()> {
    let arriving = if run.args.quick { ARRIVING_HOSTS_QUICK } else { ARRIVING_HOSTS };
    let before = run.sampling;
    run.sampling.runs = 1;
    run.expect_benchmarks(1);
    let mut is_warm = false;
    let benchmark = Benchmark::new("ARRIVAL", |_length, stop| {
        // The first call is the warm-up, with other and fewer hosts.
        let (count, kind) = if is_warm { (arriving, "host") } else { (CONCURRENT_CALLS, "warm") };
        is_warm = true;
        Sample::timed(|total| {
            for from in (0..count).step_by(ARRIVAL_BATCH) {
                if stop.is_set() {
                    break;
                }
                let size = ARRIVAL_BATCH.min(count - from);
                let population = HostPopulation { name_prefix: name_prefix.to_owned(), connections: size };
                let connect = |nth| population.connect_host(registry.addr, kind, from + nth);
                let mut workers = connect_workers(size, connect)?;
                for operation in ["PUBLISH", "REQUEST", "DISCOVER", "LIST", "PING"] {
                    let call = HostCall { part: Some(operation), ..population.call(operation) };
                    let each_once = MeasurementLength::Calls(1);
                    let calls = |_nth, worker: &mut Worker| worker.drive_each(&call, each_once, stop);
                    total.merge(&load::run_all(&mut workers, calls)?);
                }
            }
            Ok(())
        })
    });
    let benchmarks = vec![benchmark.on(registry.server.as_slice())];
    let measured = run.measure(BenchmarkGroup { clients: ARRIVAL_BATCH, benchmarks, comparisons: Vec::new() });
    run.sampling = before;
    measured
}

fn start_target(run: &ScenarioRun<'_>, connections: usize) -> anyhow::Result<Target> {
    // A server keeps a sixteenth of its connections free for newcomers by closing unregistered ones.
    let most = (connections + connections / 8 + SPARE_CONNECTIONS).to_string();
    let args = ["--services", "share", "--registry-port", "0", "--max-connections", &most];
    run.target(&args, "registry: tcp ")
}

/// Our hosts at a registry that is not ours; they unregister when this is dropped.
struct GuestHosts {
    at: SocketAddr,
    names: Vec<String>,
}

impl GuestHosts {
    fn of(registry: &Target, workers: &[Worker]) -> Option<GuestHosts> {
        let names = || workers.iter().flat_map(|worker| worker.hosts.iter().map(|host| host.name.clone())).collect();
        registry.server.is_none().then(|| GuestHosts { at: registry.addr, names: names() })
    }
}

impl Drop for GuestHosts {
    fn drop(&mut self) {
        // The connections are closed, so a client from the same address gets the names back at once. Errors are
        // ignored, since the registry may be gone.
        let mut response = Vec::new();
        for name in &self.names {
            let Ok(mut host) = HostConnection::connect(self.at, name.clone()) else { return };
            for action in [
                json!({"action": "REGISTER", "data": {"hostname": name, "port": 6001}}),
                json!({"action": "UNREGISTER", "data": {"hostname": name}}),
            ] {
                let _ = host.call(format!("{action}\n").as_bytes(), &mut response);
            }
        }
    }
}

/// Names have equal length and are unique to this process.
fn name(name_prefix: &str, kind: &str, nth: usize) -> String {
    format!("{name_prefix}-{kind}-{nth:06}")
}

struct HostPopulation {
    name_prefix: String,
    connections: usize,
}

impl HostPopulation {
    /// Connects and registers a host; a registry may close unregistered connections.
    fn connect_host(&self, at: SocketAddr, kind: &str, nth: usize) -> anyhow::Result<HostConnection> {
        let mut host = HostConnection::connect(at, name(&self.name_prefix, kind, nth))?;
        let (mut request, mut response) = (Vec::new(), Vec::new());
        self.write("REGISTER", &host, 0, &mut request);
        host.call(&request, &mut response).context("a host's connection failed")?;
        let is_in =
            response.windows(expected_status("REGISTER").len()).any(|window| window == expected_status("REGISTER"));
        ensure!(is_in, "a host is not registered: {}", String::from_utf8_lossy(&response).trim_end());
        Ok(host)
    }

    /// What a call of this operation sends and expects.
    fn call(&self, operation: &'static str) -> HostCall<'_> {
        let write = move |host: &HostConnection, nth, out: &mut Vec<u8>| self.write(operation, host, nth, out);
        HostCall { write: Box::new(write), expected: expected_status(operation), part: None }
    }

    fn write(&self, operation: &str, host: &HostConnection, nth: u64, out: &mut Vec<u8>) {
        let own = &host.name;
        // A different host for each call; 7919 is coprime to the numbers of hosts.
        let other = (nth.wrapping_mul(7919) + host.nth as u64) as usize % self.connections;
        let file = |place: usize| format!("held-{place:06}.bin");
        let data = match operation {
            "REGISTER" => json!({
                "hostname": own, "port": 6001, "display_name": "A host of the load",
                "files_metadata": {file(host.nth): {"size": 1_048_576, "modified": 1_700_000_000, "is_published": true}},
            }),
            "PUBLISH" => json!({
                "hostname": own, "fname": file(host.nth), "size": 1_048_576 + nth, "modified": 1_700_000_000,
            }),
            "REQUEST" => json!({"fname": file(other)}),
            "DISCOVER" => json!({"hostname": name(&self.name_prefix, host.kind(), host.concurrent_with(other))}),
            "LIST" => json!({"offset": other - other % LIST_PAGE, "limit": LIST_PAGE}),
            _ => json!({"hostname": own, "state": "active"}),
        };
        let action = if operation.starts_with("PACED") { "PING" } else { operation };
        // Writing to a `Vec` cannot fail.
        let _ = writeln!(out, "{}", json!({"action": action, "data": data}));
    }
}

fn expected_status(operation: &str) -> &'static [u8] {
    match operation {
        "PUBLISH" => br#""status":"ACK""#,
        "REQUEST" => br#""status":"FOUND""#,
        "PING" | "PACED" => br#""status":"ALIVE""#,
        _ => br#""status":"OK""#,
    }
}

/// Writes the request of a host, given the number of calls before it.
type WriteRequest<'a> = dyn Fn(&HostConnection, u64, &mut Vec<u8>) + Sync + 'a;

/// A call that hosts make one after the other.
struct HostCall<'a> {
    write: Box<WriteRequest<'a>>,
    /// It stands in a response that is as expected.
    expected: &'static [u8],
    /// In a mix, the operation.
    part: Option<&'static str>,
}

struct HostConnection {
    stream: TcpStream,
    name: String,
    nth: usize,
}

impl HostConnection {
    fn connect(at: SocketAddr, name: String) -> anyhow::Result<HostConnection> {
        let stream = TcpStream::connect(at).context("cannot connect each client")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        let nth = name.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        Ok(HostConnection { stream, name, nth })
    }

    /// The part of its name between prefix and number.
    fn kind(&self) -> &str {
        self.name.rsplit('-').nth(1).unwrap_or_default()
    }

    /// The number of another host of the same batch.
    fn concurrent_with(&self, other: usize) -> usize {
        self.nth - self.nth % ARRIVAL_BATCH + other % ARRIVAL_BATCH
    }

    fn call(&mut self, request: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        self.stream.write_all(request)?;
        response.clear();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    response.extend_from_slice(&buffer[..length]);
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

/// The connections of one thread, which are used in turn.
struct Worker {
    hosts: Vec<HostConnection>,
    next: usize,
    calls: u64,
    request: Vec<u8>,
    response: Vec<u8>,
}

fn connect_workers(
    connections: usize,
    connect: impl Fn(usize) -> anyhow::Result<HostConnection> + Sync,
) -> anyhow::Result<Vec<Worker>> {
    let threads = CONCURRENT_CALLS.min(connections).max(1);
    let mut workers: Vec<Worker> = (0..threads)
        .map(|_| Worker { hosts: Vec::new(), next: 0, calls: 0, request: Vec::new(), response: Vec::new() })
        .collect();
    load::run_all(&mut workers, |thread, worker| {
        worker.hosts = (thread..connections).step_by(threads).map(&connect).collect::<anyhow::Result<_>>()?;
        Ok(Sample::new())
    })?;
    Ok(workers)
}

impl Worker {
    /// Makes one call on the next connection; returns whether the response was as expected.
    fn call_next(&mut self, call: &HostCall<'_>) -> anyhow::Result<bool> {
        let host = &mut self.hosts[self.next];
        self.request.clear();
        (call.write)(host, self.calls, &mut self.request);
        host.call(&self.request, &mut self.response).context("a client's connection failed")?;
        self.next = (self.next + 1) % self.hosts.len();
        self.calls += 1;
        Ok(self.response.windows(call.expected.len()).any(|window| window == call.expected))
    }

    /// The length is that of this thread; see [`load::drive`].
    fn drive(
        &mut self,
        call: &HostCall<'_>,
        length: MeasurementLength,
        paced: Option<(Pace, usize)>,
        stop: &StopFlag,
    ) -> anyhow::Result<Sample> {
        load::drive(length, paced, stop, |_sample| Ok((call.part, self.call_next(call)?)))
    }

    /// The length is that of each connection.
    fn drive_each(
        &mut self,
        call: &HostCall<'_>,
        length: MeasurementLength,
        stop: &StopFlag,
    ) -> anyhow::Result<Sample> {
        self.drive(call, length.for_clients(self.hosts.len()), None, stop)
    }

    /// Lengths of a request and of its response in bytes, without line breaks.
    fn learn_sizes(&mut self, operation: &'static str, population: &HostPopulation) -> anyhow::Result<(usize, usize)> {
        let is_right = self.call_next(&population.call(operation))?;
        ensure!(is_right, "{operation} was answered {}", String::from_utf8_lossy(&self.response).trim_end());
        Ok((self.request.len() - 1, self.response.len() - 1))
    }
}

#[cfg(test)]
mod tests;
