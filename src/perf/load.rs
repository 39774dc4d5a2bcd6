//! Clients in a closed loop: each has a thread and a connected UDP socket, and asks again as soon as it
//! was answered.
//!
//! What is measured shares the machine with us, so a call costs as little as can be: the request is made
//! once and only its number is written into it, the answer is compared with the beginning that it must
//! have, and the clock is read once.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::bounded;
use hdrhistogram::Histogram;
use serde_json::Value;

use super::stop::Stop;

/// An answer that takes longer counts as lost, and the request is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A call fails after so many sendings.
const SENDINGS_MAX: u32 = 20;
/// Stack of a client's thread, bytes: it calls nothing deep.
const STACK_BYTES: usize = 128 * 1024;
/// Numbers of requests all have nine digits, so that one can be written over the other.
const RQ_DIGITS: usize = 9;
const RQ_FIRST: u64 = 100_000_000;
const RQ_END: u64 = 1_000_000_000;
/// The longest answer.
const ANSWER_MAX: usize = 8 * 1024;

/// How long a measurement lasts.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// So many calls of each client.
    Calls(u64),
    /// So long.
    Time(Duration),
}

impl Length {
    /// Whether that was enough.
    pub fn is_over(self, calls: u64, started: Instant, now: Instant) -> bool {
        match self {
            Length::Calls(most) => calls >= most,
            Length::Time(most) => now - started >= most,
        }
    }
}

/// How often each of some clients calls, however long answers take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    interval: Duration,
    clients: usize,
}

impl Pace {
    /// So many calls a second of so many clients together.
    pub fn of_all(ops_per_s: f64, clients: usize) -> Pace {
        // Not slower than a call a second of each: a rate of nothing would never end.
        let each = (ops_per_s / clients.max(1) as f64).max(1.0);
        Pace { interval: Duration::from_secs_f64(1.0 / each), clients: clients.max(1) }
    }
}

/// What one measurement brought.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Calls that were answered as they should be.
    pub done: u64,
    /// Calls that were refused, answered wrongly, or never.
    pub failed: u64,
    /// Datagrams that were sent again because no answer came.
    pub lost: u64,
    /// Payload that calls carried, where it is what counts.
    pub bytes: u64,
    /// From the first call's beginning to the last one's end.
    pub elapsed: Duration,
    /// Of the calls that were answered, nanoseconds; none where calls were not timed one by one.
    pub latency_ns: Histogram<u64>,
    /// What the server used meanwhile, where it is known.
    pub server: Option<super::child::Usage>,
    /// Of a mix of operations, each by itself, in the order in which they first came; all are in the above.
    pub parts: Vec<Part>,
}

/// One operation of a mix.
#[derive(Debug, Clone)]
pub struct Part {
    /// As reports call it.
    pub name: &'static str,
    /// Calls that were answered as they should be.
    pub done: u64,
    /// The others.
    pub failed: u64,
    /// Of those that were answered, nanoseconds.
    pub latency_ns: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    // A minute is far above what a call may take: see SENDINGS_MAX.
    Histogram::new_with_bounds(64, 60_000_000_000, 3).expect("the bounds are in order")
}

impl Sample {
    /// Nothing yet.
    pub fn new() -> Sample {
        let (latency_ns, parts) = (histogram(), Vec::new());
        Sample { done: 0, failed: 0, lost: 0, bytes: 0, elapsed: Duration::ZERO, latency_ns, server: None, parts }
    }

    /// Calls a second that were answered as they should be.
    pub fn ops_per_s(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Counts a call that was answered.
    pub fn answered(&mut self, latency: Duration) {
        self.done += 1;
        self.latency_ns.saturating_record(latency.as_nanos() as u64);
    }

    /// Counts a call of one operation of a mix; without a latency it failed.
    pub fn of_part(&mut self, name: &'static str, latency: Option<Duration>) {
        let part = self.part(name);
        match latency {
            Some(latency) => {
                part.done += 1;
                part.latency_ns.saturating_record(latency.as_nanos() as u64);
                self.answered(latency);
            }
            None => {
                part.failed += 1;
                self.failed += 1;
            }
        }
    }

    fn part(&mut self, name: &'static str) -> &mut Part {
        let place = self.parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
            self.parts.push(Part { name, done: 0, failed: 0, latency_ns: histogram() });
            self.parts.len() - 1
        });
        &mut self.parts[place]
    }

    /// Adds what another client of the same measurement did; the time stays.
    pub fn absorb(&mut self, other: &Sample) {
        self.done += other.done;
        self.failed += other.failed;
        self.lost += other.lost;
        self.bytes += other.bytes;
        self.latency_ns += &other.latency_ns;
        for theirs in &other.parts {
            let part = self.part(theirs.name);
            part.done += theirs.done;
            part.failed += theirs.failed;
            part.latency_ns += &theirs.latency_ns;
        }
    }
}

impl Default for Sample {
    fn default() -> Sample {
        Sample::new()
    }
}

/// A request with a place for its number, and the beginning that its answer must have.
#[derive(Debug, Clone)]
pub struct Call {
    request: Vec<u8>,
    rq_at: usize,
    /// A digit that changes from call to call between 0 and 1, so that each asks for something new.
    vary_at: Option<usize>,
    /// The answer up to its number.
    answer_head: Vec<u8>,
}

impl Call {
    /// A request of this text; `RQ` stands for the number, `~` (if there is one) for the digit that
    /// varies. The answer is known once it was [learned](Client::learn).
    pub fn new(text: &str) -> Call {
        let digits = RQ_FIRST.to_string();
        let rq_at = text.find("RQ").expect("a request has a number");
        let text = text.replacen("RQ", &digits, 1);
        let vary_at = text.find('~');
        Call { request: text.replace('~', "9").into_bytes(), rq_at, vary_at, answer_head: Vec::new() }
    }

    /// The same request to a server that sends back what it got.
    pub fn echoed(&self) -> Call {
        Call { answer_head: self.request[..self.rq_at].to_vec(), ..self.clone() }
    }

    /// Bytes of the request.
    pub fn request_bytes(&self) -> usize {
        self.request.len()
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

/// One client.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    call: Call,
    next_rq: u64,
    answer: Box<[u8]>,
}

enum Answer {
    Right,
    Wrong,
    None,
}

impl Client {
    /// A socket of its own that speaks with this server alone.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(server: SocketAddr, call: Call) -> io::Result<Client> {
        Ok(Client::over(connect(server)?, call))
    }

    /// The same with a socket that is there.
    pub fn over(socket: UdpSocket, call: Call) -> Client {
        Client { socket, call, next_rq: RQ_FIRST, answer: vec![0; ANSWER_MAX].into() }
    }

    /// Asks once, checks that the answer is of this type and bears the number, and remembers how it
    /// begins. Gives the answer.
    ///
    /// # Errors
    /// No answer, or another one.
    pub fn learn(&mut self, answer_type: &str) -> anyhow::Result<Vec<u8>> {
        self.call.number(self.next_rq);
        let answer = ask(&self.socket, &self.call.request)?;
        let value: Value = serde_json::from_slice(&answer).context("the server's answer is no JSON")?;
        if value["type"] != answer_type || value["rq"] != self.next_rq {
            bail!("expected {answer_type} from the server, not {}", String::from_utf8_lossy(&answer));
        }
        self.next_rq += 1;
        let digits = self.call.digits();
        let at = answer.windows(RQ_DIGITS).position(|window| window == digits);
        let at = at.context("the server writes rq in a way of its own")?;
        self.call.answer_head = answer[..at].to_vec();
        Ok(answer)
    }

    /// The request and the answer that it knows.
    pub fn call(&self) -> &Call {
        &self.call
    }

    fn drive(&mut self, length: Length, stop: &Stop) -> io::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        let (mut before, mut calls) = (started, 0);
        while !length.is_over(calls, started, before) && !stop.is_asked() {
            self.call.number(self.next_rq);
            let answer = self.call_once(&mut sample.lost, stop)?;
            self.next_rq = if self.next_rq + 1 == RQ_END { RQ_FIRST } else { self.next_rq + 1 };
            let now = Instant::now();
            match answer {
                Answer::Right => sample.answered(now - before),
                Answer::Wrong | Answer::None => sample.failed += 1,
            }
            before = now;
            calls += 1;
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    /// Asks at set times, whether or not the one before was quick. A call's time runs from when it was due:
    /// what a slow answer holds up is slow as well.
    fn drive_paced(&mut self, pace: Pace, nth: usize, length: Length, stop: &Stop) -> io::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        // Not all at the same moment.
        let mut due = started + pace.interval.mul_f64(nth as f64 / pace.clients as f64);
        let mut calls = 0;
        while !length.is_over(calls, started, due) && !stop.is_asked() {
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                thread::sleep(early);
            }
            self.call.number(self.next_rq);
            let answer = self.call_once(&mut sample.lost, stop)?;
            self.next_rq = if self.next_rq + 1 == RQ_END { RQ_FIRST } else { self.next_rq + 1 };
            match answer {
                Answer::Right => sample.answered(due.elapsed()),
                Answer::Wrong | Answer::None => sample.failed += 1,
            }
            due += pace.interval;
            calls += 1;
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    fn call_once(&mut self, lost: &mut u64, stop: &Stop) -> io::Result<Answer> {
        for _ in 0..SENDINGS_MAX {
            self.socket.send(&self.call.request)?;
            loop {
                match self.socket.recv(&mut self.answer) {
                    Ok(length) => match self.look(length) {
                        // Late, or of the server's own accord.
                        Answer::None => {}
                        known => return Ok(known),
                    },
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut => break,
                        ErrorKind::Interrupted => {}
                        _ => return Err(error),
                    },
                }
            }
            if stop.is_asked() {
                break;
            }
            *lost += 1;
        }
        Ok(Answer::None)
    }

    fn look(&self, length: usize) -> Answer {
        let (answer, digits) = (&self.answer[..length], self.call.digits());
        match answer.strip_prefix(self.call.answer_head.as_slice()) {
            Some(rest) if rest.starts_with(digits) => Answer::Right,
            Some(_) => Answer::None,
            None if answer.windows(RQ_DIGITS).any(|window| window == digits) => Answer::Wrong,
            None => Answer::None,
        }
    }
}

/// A socket that speaks with this server alone and does not wait for ever.
///
/// # Errors
/// The system's.
pub fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(AGAIN_AFTER))?;
    Ok(socket)
}

/// Asks outside of a measurement, again and again for five seconds.
///
/// # Errors
/// No answer.
pub fn ask(socket: &UdpSocket, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut answer = vec![0; ANSWER_MAX];
    for _ in 0..SENDINGS_MAX {
        socket.send(request).context("the server cannot be reached")?;
        match socket.recv(&mut answer) {
            Ok(length) => {
                answer.truncate(length);
                return Ok(answer);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(error).context("the server does not answer"),
            },
        }
    }
    bail!("the server does not answer");
}

/// Lets all clients call at once for that long.
///
/// # Errors
/// A thread or socket fails; a server that is gone.
pub fn run(clients: &mut [Client], length: Length, stop: &Stop) -> anyhow::Result<Sample> {
    run_all(clients, |client| client.drive(length, stop).context("a client's socket failed"))
}

/// The same at a pace.
///
/// # Errors
/// As [`run`].
pub fn run_paced(clients: &mut [Client], pace: Pace, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
    let mut numbered: Vec<(usize, &mut Client)> = clients.iter_mut().enumerate().collect();
    run_all(&mut numbered, |(nth, client)| {
        client.drive_paced(pace, *nth, length, stop).context("a client's socket failed")
    })
}

/// Lets each of them work on a thread of its own, all beginning at once, and adds up what they did.
///
/// # Errors
/// No thread, or the first error of one of them.
pub fn run_all<T: Send>(
    all: &mut [T],
    work: impl Fn(&mut T) -> anyhow::Result<Sample> + Sync,
) -> anyhow::Result<Sample> {
    // Closing the gate is the start for everyone at once.
    let (gate, start) = bounded::<()>(0);
    let mut total = Sample::new();
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(all.len());
        let mut failure = None;
        for one in all.iter_mut() {
            let (start, work) = (start.clone(), &work);
            let thread = thread::Builder::new().name("client".to_owned()).stack_size(STACK_BYTES);
            let spawned = thread.spawn_scoped(scope, move || {
                // Nothing is ever sent: an error is the start.
                let _ = start.recv();
                work(one)
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
                Ok(Ok(sample)) => total.absorb(&sample),
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

    /// Sends back what it gets; the datagram of that number only after a while.
    fn echo(stalls_at: usize, stall: Duration) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        // It ends with the process of the test.
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
        let client = || Client::connect(echo(20, stall), Call::new("{\"rq\":RQ}").echoed()).unwrap();
        let (calls, stop) = (Length::Calls(100), Stop::default());
        // In a closed loop the calls that would have come meanwhile do not come at all.
        let closed = run(&mut [client()], calls, &stop).unwrap();
        assert_eq!((closed.done, closed.failed), (100, 0));
        assert!(slow(&closed) <= 3, "{}", slow(&closed));
        // A call each 4 ms: of the 50 that were due meanwhile, about 37 were due more than 50 ms before the end.
        let paced = run_paced(&mut [client()], Pace::of_all(250.0, 1), calls, &stop).unwrap();
        assert_eq!((paced.done, paced.failed), (100, 0));
        assert!(slow(&paced) >= 25, "{}", slow(&paced));
        assert!(paced.elapsed >= Duration::from_millis(390), "{:?}", paced.elapsed);
    }

    #[test]
    fn parts_of_a_mix_add_up() {
        let mut one = Sample::new();
        one.of_part("a", Some(Duration::from_micros(10)));
        one.of_part("b", None);
        let mut other = Sample::new();
        other.of_part("b", Some(Duration::from_micros(30)));
        one.absorb(&other);
        assert_eq!((one.done, one.failed, one.latency_ns.len()), (2, 1, 2));
        let parts: Vec<_> = one.parts.iter().map(|part| (part.name, part.done, part.failed)).collect();
        assert_eq!(parts, [("a", 1, 0), ("b", 1, 1)]);
        assert_eq!(one.parts[1].latency_ns.len(), 1);
    }
}
