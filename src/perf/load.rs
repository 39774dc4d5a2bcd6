//! UDP clients in a closed loop: each has a thread and a connected socket, and sends the next request as soon as the
//! response arrives.
//!
//! The load generator shares the machine with the measured server, so a call must be cheap: a request is built once and
//! only its number is overwritten, the response is compared with its expected prefix, and the clock is read once.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::bounded;
use hdrhistogram::Histogram;
use serde_json::Value;

use super::stop::StopFlag;
use super::usage::Usage;

/// After this time a response counts as lost and the request is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 20;
/// Stack size of a client thread in bytes; its calls are not deep.
const STACK_BYTES: usize = 128 * 1024;
/// Request numbers always have nine digits, so that they can be overwritten in place.
const RQ_DIGITS: usize = 9;
const RQ_FIRST: u64 = 100_000_000;
const RQ_END: u64 = 1_000_000_000;
const RESPONSE_MAX: usize = 8 * 1024;

#[derive(Debug, Clone, Copy)]
pub enum MeasurementLength {
    /// This many calls per client.
    Calls(u64),
    Time(Duration),
}

impl MeasurementLength {
    pub fn is_over(self, calls: u64, started: Instant, now: Instant) -> bool {
        match self {
            MeasurementLength::Calls(most) => calls >= most,
            MeasurementLength::Time(most) => now - started >= most,
        }
    }

    /// The length for whoever makes the calls of this many clients.
    pub fn for_clients(self, clients: usize) -> MeasurementLength {
        match self {
            MeasurementLength::Calls(calls) => MeasurementLength::Calls(calls * clients as u64),
            time => time,
        }
    }
}

/// The fixed rate of each client, independent of response times.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    interval: Duration,
    clients: usize,
}

impl Pace {
    /// A total rate, divided among the clients.
    pub fn from_total(ops_per_s: f64, clients: usize) -> Pace {
        // At least one call per second and client: at a rate of zero a measurement would never end.
        let each = (ops_per_s / clients.max(1) as f64).max(1.0);
        Pace { interval: Duration::from_secs_f64(1.0 / each), clients: clients.max(1) }
    }

    fn offset(self, nth: usize) -> Duration {
        self.interval.mul_f64(nth as f64 / self.clients as f64)
    }
}

#[derive(Debug, Clone)]
pub struct Sample {
    pub done: u64,
    /// Calls that were refused, answered incorrectly or not at all.
    pub failed: u64,
    /// Datagrams that were repeated because no response arrived.
    pub lost: u64,
    /// Payload bytes of the calls, if throughput is measured.
    pub bytes: u64,
    /// From the start of the first call to the end of the last one.
    pub elapsed: Duration,
    /// LatencyHistogram of successful calls in nanoseconds; empty if calls were not timed individually.
    pub latency_ns: Histogram<u64>,
    pub server: Option<Usage>,
    /// The operations of a mix, in the order in which they first occurred. They are included in the totals above.
    pub parts: Vec<(&'static str, Sample)>,
}

fn histogram() -> Histogram<u64> {
    // A minute is far more than a call can take: see `ATTEMPTS_MAX`.
    Histogram::new_with_bounds(64, 60_000_000_000, 3).expect("the bounds are in order")
}

impl Sample {
    pub fn new() -> Sample {
        let (latency_ns, parts) = (histogram(), Vec::new());
        Sample { done: 0, failed: 0, lost: 0, bytes: 0, elapsed: Duration::ZERO, latency_ns, server: None, parts }
    }

    /// What `work` records, with the time that it takes.
    pub fn timed(work: impl FnOnce(&mut Sample) -> anyhow::Result<()>) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        work(&mut sample)?;
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    pub fn ops_per_s(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Records a call; its latency counts only if it was answered correctly.
    pub fn record(&mut self, is_right: bool, latency: Duration) {
        if is_right {
            self.done += 1;
            self.latency_ns.saturating_record(latency.as_nanos() as u64);
        } else {
            self.failed += 1;
        }
    }

    fn part(&mut self, name: &'static str) -> &mut Sample {
        let place = self.parts.iter().position(|(part, _)| *part == name).unwrap_or_else(|| {
            self.parts.push((name, Sample::new()));
            self.parts.len() - 1
        });
        &mut self.parts[place].1
    }

    /// Adds the counts of another client of the same measurement; `elapsed` stays.
    pub fn merge(&mut self, other: &Sample) {
        self.done += other.done;
        self.failed += other.failed;
        self.lost += other.lost;
        self.bytes += other.bytes;
        self.latency_ns += &other.latency_ns;
        for (name, theirs) in &other.parts {
            self.part(name).merge(theirs);
        }
    }
}

/// A request whose number can be overwritten, and the prefix that its response must have.
#[derive(Debug, Clone)]
pub struct RequestTemplate {
    request: Vec<u8>,
    rq_at: usize,
    /// Position of a digit that alternates between 0 and 1, so that each call requests a change.
    vary_at: Option<usize>,
    /// The response up to its number.
    response_prefix: Vec<u8>,
}

impl RequestTemplate {
    /// Builds a template from a text, in which `RQ` stands for the number and `~` (optional) for the alternating digit.
    /// The response is known after [`UdpClient::learn_response`].
    pub fn new(text: &str) -> RequestTemplate {
        let digits = RQ_FIRST.to_string();
        let rq_at = text.find("RQ").expect("a request has a number");
        let text = text.replacen("RQ", &digits, 1);
        let vary_at = text.find('~');
        RequestTemplate { request: text.replace('~', "9").into_bytes(), rq_at, vary_at, response_prefix: Vec::new() }
    }

    /// The same request to an echo server.
    pub fn expecting_echo(&self) -> RequestTemplate {
        RequestTemplate { response_prefix: self.request[..self.rq_at].to_vec(), ..self.clone() }
    }

    fn number(&mut self, rq: u64) {
        let mut left = rq;
        for digit in self.request[self.rq_at..self.rq_at + RQ_DIGITS].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        if let Some(at) = self.vary_at {
            self.request[at] = b'0' + (rq % 2) as u8;
        }
    }

    fn digits(&self) -> &[u8] {
        &self.request[self.rq_at..self.rq_at + RQ_DIGITS]
    }
}

#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    call: RequestTemplate,
    next_rq: u64,
    response: Box<[u8]>,
}

enum ResponseCheck {
    Right,
    Wrong,
    None,
}

impl UdpClient {
    pub fn connect(server: SocketAddr, call: RequestTemplate) -> io::Result<UdpClient> {
        Ok(UdpClient::over(connect(server)?, call))
    }

    pub fn over(socket: UdpSocket, call: RequestTemplate) -> UdpClient {
        UdpClient { socket, call, next_rq: RQ_FIRST, response: vec![0; RESPONSE_MAX].into() }
    }

    /// Sends one request, checks type and number of the response, and remembers its prefix.
    pub fn learn_response(&mut self, response_type: &str) -> anyhow::Result<Vec<u8>> {
        self.call.number(self.next_rq);
        let response = ask(&self.socket, &self.call.request)?;
        let value: Value = serde_json::from_slice(&response).context("the server's answer is no JSON")?;
        if value["type"] != response_type || value["rq"] != self.next_rq {
            bail!("expected {response_type} from the server, not {}", String::from_utf8_lossy(&response));
        }
        self.next_rq += 1;
        let digits = self.call.digits();
        let at = response.windows(RQ_DIGITS).position(|window| window == digits);
        let at = at.context("the server writes rq in a way of its own")?;
        self.call.response_prefix = response[..at].to_vec();
        Ok(response)
    }

    pub fn call(&self) -> &RequestTemplate {
        &self.call
    }

    /// Returns whether the response was as expected.
    fn call_once(&mut self, lost: &mut u64, stop: &StopFlag) -> io::Result<bool> {
        self.call.number(self.next_rq);
        let response = self.exchange(lost, stop)?;
        self.next_rq = if self.next_rq + 1 == RQ_END { RQ_FIRST } else { self.next_rq + 1 };
        Ok(matches!(response, ResponseCheck::Right))
    }

    fn exchange(&mut self, lost: &mut u64, stop: &StopFlag) -> io::Result<ResponseCheck> {
        for _ in 0..ATTEMPTS_MAX {
            self.socket.send(&self.call.request)?;
            loop {
                match self.socket.recv(&mut self.response) {
                    Ok(length) => match self.classify_response(length) {
                        // A late response, or a notification.
                        ResponseCheck::None => {}
                        known => return Ok(known),
                    },
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut => break,
                        ErrorKind::Interrupted => {}
                        _ => return Err(error),
                    },
                }
            }
            if stop.is_set() {
                break;
            }
            *lost += 1;
        }
        Ok(ResponseCheck::None)
    }

    fn classify_response(&self, length: usize) -> ResponseCheck {
        let (response, digits) = (&self.response[..length], self.call.digits());
        match response.strip_prefix(self.call.response_prefix.as_slice()) {
            Some(rest) if rest.starts_with(digits) => ResponseCheck::Right,
            Some(_) => ResponseCheck::None,
            None if response.windows(RQ_DIGITS).any(|window| window == digits) => ResponseCheck::Wrong,
            None => ResponseCheck::None,
        }
    }
}

/// A socket that is connected to the server and has a read timeout.
pub fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(RETRY_AFTER))?;
    Ok(socket)
}

/// Sends a request outside of a measurement, repeating it for five seconds.
pub fn ask(socket: &UdpSocket, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut response = vec![0; RESPONSE_MAX];
    for _ in 0..ATTEMPTS_MAX {
        socket.send(request).context("the server cannot be reached")?;
        match socket.recv(&mut response) {
            Ok(length) => {
                response.truncate(length);
                return Ok(response);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(error).context("the server does not answer"),
            },
        }
    }
    bail!("the server does not answer");
}

/// Makes calls until the measurement is over. `call` returns the operation of a mix, if it is one, and whether the
/// response was as expected.
///
/// In a closed loop a call is made as soon as the one before is answered. With a pace, of the client of this number,
/// calls are made at fixed times, however long responses take; latency is then measured from the time at which a call
/// was due, so that calls delayed by a slow response count as slow too.
pub fn drive(
    length: MeasurementLength,
    paced: Option<(Pace, usize)>,
    stop: &StopFlag,
    mut call: impl FnMut(&mut Sample) -> anyhow::Result<(Option<&'static str>, bool)>,
) -> anyhow::Result<Sample> {
    let mut sample = Sample::new();
    let started = Instant::now();
    // Clients start at different times.
    let mut due = started + paced.map_or(Duration::ZERO, |(pace, nth)| pace.offset(nth));
    let mut calls = 0;
    while !length.is_over(calls, started, due) && !stop.is_set() {
        if paced.is_some()
            && let Some(early) = due.checked_duration_since(Instant::now())
        {
            thread::sleep(early);
        }
        let (part, is_right) = call(&mut sample)?;
        let now = Instant::now();
        if let Some(part) = part {
            sample.part(part).record(is_right, now - due);
        }
        sample.record(is_right, now - due);
        due = paced.map_or(now, |(pace, _)| due + pace.interval);
        calls += 1;
    }
    sample.elapsed = started.elapsed();
    Ok(sample)
}

/// Lets all clients call, in a closed loop or at a pace.
pub fn run(
    clients: &mut [UdpClient],
    pace: Option<Pace>,
    length: MeasurementLength,
    stop: &StopFlag,
) -> anyhow::Result<Sample> {
    run_all(clients, |nth, client| {
        let call = |sample: &mut Sample| Ok((None, client.call_once(&mut sample.lost, stop)?));
        drive(length, pace.map(|pace| (pace, nth)), stop, call).context("a client's socket failed")
    })
}

/// Runs `work` for each item, with its number, on a thread of its own, starting all at once, and merges the samples.
pub fn run_all<T: Send>(
    all: &mut [T],
    work: impl Fn(usize, &mut T) -> anyhow::Result<Sample> + Sync,
) -> anyhow::Result<Sample> {
    // Dropping the gate starts all threads at once.
    let (gate, start) = bounded::<()>(0);
    let mut total = Sample::new();
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(all.len());
        let mut failure = None;
        for (nth, one) in all.iter_mut().enumerate() {
            let (start, work) = (start.clone(), &work);
            let thread = thread::Builder::new().name("client".to_owned()).stack_size(STACK_BYTES);
            let spawned = thread.spawn_scoped(scope, move || {
                // Nothing is ever sent: the error is the start signal.
                let _ = start.recv();
                work(nth, one)
            });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    failure = Some(anyhow::Error::new(error).context("the system gives no more threads"));
                    break;
                }
            }
        }
        let started = Instant::now();
        drop(gate);
        for thread in threads {
            match thread.join() {
                Ok(Ok(sample)) => total.merge(&sample),
                Ok(Err(error)) => failure = failure.take().or(Some(error)),
                Err(_) => failure = failure.take().or_else(|| Some(anyhow::anyhow!("a client panicked"))),
            }
        }
        total.elapsed = started.elapsed();
        failure.map_or(Ok(()), Err)
    })?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server that delays the response to one datagram, given by its number.
    fn echo(stalls_at: usize, stall: Duration) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        // The thread ends with the test process.
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            for nth in 0.. {
                let (length, source) = socket.recv_from(&mut buffer).unwrap();
                if nth == stalls_at {
                    thread::sleep(stall);
                }
                socket.send_to(&buffer[..length], source).unwrap();
            }
        });
        addr
    }

    #[test]
    fn what_a_stall_holds_up_counts_when_load_is_paced() {
        let stall = Duration::from_millis(200);
        let slow = |sample: &Sample| {
            let is_slow = |value: &hdrhistogram::iterators::IterationValue<u64>| value.value_iterated_to() > 50_000_000;
            let recorded = sample.latency_ns.iter_recorded();
            recorded.filter(is_slow).map(|value| value.count_since_last_iteration()).sum::<u64>()
        };
        let client =
            || UdpClient::connect(echo(20, stall), RequestTemplate::new("{\"rq\":RQ}").expecting_echo()).unwrap();
        let (calls, stop) = (MeasurementLength::Calls(100), StopFlag::default());
        // In a closed loop the calls that would have been due meanwhile are never made.
        let closed = run(&mut [client()], None, calls, &stop).unwrap();
        assert_eq!((closed.done, closed.failed), (100, 0));
        assert!(slow(&closed) <= 3, "{}", slow(&closed));
        // One call every 4 ms: of the 50 that were due during the stall, about 37 were due more than 50 ms before its
        // end.
        let paced = run(&mut [client()], Some(Pace::from_total(250.0, 1)), calls, &stop).unwrap();
        assert_eq!((paced.done, paced.failed), (100, 0));
        assert!(slow(&paced) >= 25, "{}", slow(&paced));
        assert!(paced.elapsed >= Duration::from_millis(390), "{:?}", paced.elapsed);
    }

    #[test]
    fn parts_of_a_mix_add_up() {
        let calls = |calls: &[(&'static str, bool)]| {
            let mut left = calls.iter();
            let call = |_: &mut Sample| Ok(left.next().map(|(name, is_right)| (Some(*name), *is_right)).unwrap());
            drive(MeasurementLength::Calls(calls.len() as u64), None, &StopFlag::default(), call).unwrap()
        };
        let mut one = calls(&[("a", true), ("b", false)]);
        one.merge(&calls(&[("b", true)]));
        assert_eq!((one.done, one.failed, one.latency_ns.len()), (2, 1, 2));
        let parts: Vec<_> = one.parts.iter().map(|(name, part)| (*name, part.done, part.failed)).collect();
        assert_eq!(parts, [("a", 1, 0), ("b", 1, 1)]);
        assert_eq!(one.parts[1].1.latency_ns.len(), 1);
    }
}
