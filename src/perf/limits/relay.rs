//! `relay`: what it costs to cross processes, without work.
//!
//! A front takes messages in either framing, asks backs over connections that it keeps, and answers; a
//! back answers. Each message tells in its first bytes what is to be sent on and back, so that sizes and
//! hops are those of the call that is compared. The standard library only, one thread a connection, no
//! deadlines: a frontend cannot do better than this.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::ensure;
use parking_lot::Mutex;

use crate::net::frames::Framing;
use crate::net::threads;

/// Bytes of a buffer to begin with; the length that stands before a frame.
const BUFFER_BYTES: usize = 16 * 1024;
const LENGTH_BYTES: usize = 4;
/// What messages are filled up with.
const FILLER: u8 = b'x';
/// How an answer of an echo begins.
pub const ANSWER_HEAD: &[u8] = b"xx";

/// One question of a front to a back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Which back.
    pub back: usize,
    /// Bytes of the question, without framing.
    pub request_bytes: usize,
    /// Bytes of the answer, likewise.
    pub answer_bytes: usize,
}

/// A message to the front, and all that follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trip {
    /// Bytes of the message.
    pub request_bytes: usize,
    /// Bytes of its answer.
    pub answer_bytes: usize,
    /// One after the other; those of one step at the same time.
    pub steps: Vec<Vec<Hop>>,
}

impl Trip {
    /// The message that makes a front do this.
    ///
    /// # Errors
    /// It is too short to tell it.
    pub fn message(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = self.answer_bytes.to_string();
        for step in &self.steps {
            for (nth, hop) in step.iter().enumerate() {
                let sign = if nth == 0 { ' ' } else { '+' };
                // Writing to a text cannot fail.
                let _ = write!(text, "{sign}{}:{}:{}", hop.back, hop.request_bytes, hop.answer_bytes);
            }
        }
        text.push(';');
        ensure!(text.len() <= self.request_bytes, "a message of {} bytes cannot hold {text:?}", self.request_bytes);
        let mut message = text.into_bytes();
        message.resize(self.request_bytes, FILLER);
        Ok(message)
    }
}

/// The same with what tells it from the next message.
pub fn framed(framing: Framing, message: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Frames => [&(message.len() as u32).to_be_bytes(), message].concat(),
        Framing::Lines => [message, b"\n"].concat(),
    }
}

/// A connection on which one message is under way at a time.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    /// Told by the first byte that comes, unless it is known.
    framing: Option<Framing>,
    buffer: Vec<u8>,
}

impl Wire {
    /// A connection of ours.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(addr: SocketAddr, framing: Framing) -> io::Result<Wire> {
        let wire = Wire::accepted(TcpStream::connect(addr)?)?;
        Ok(Wire { framing: Some(framing), ..wire })
    }

    fn accepted(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        Ok(Wire { stream, framing: None, buffer: vec![0; BUFFER_BYTES] })
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends what is [framed] already.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&self, framed: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(framed)
    }

    /// The next message; none at a clean end.
    ///
    /// # Errors
    /// The system's; an end or a message where none may be.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        let mut filled = 0;
        loop {
            match (&self.stream).read(&mut self.buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let told = if self.buffer[0] == 0 { Framing::Frames } else { Framing::Lines };
            let ends_at = match *self.framing.get_or_insert(told) {
                Framing::Lines => (self.buffer[filled - 1] == b'\n').then_some((0, filled - 1)),
                Framing::Frames => match self.buffer[..filled].split_first_chunk::<LENGTH_BYTES>() {
                    Some((length, come)) if u32::from_be_bytes(*length) as usize == come.len() => {
                        Some((LENGTH_BYTES, filled))
                    }
                    Some((length, come)) if (u32::from_be_bytes(*length) as usize) < come.len() => {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    _ => None,
                },
            };
            if let Some((start, end)) = ends_at {
                return Ok(Some(&self.buffer[start..end]));
            }
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
        }
    }
}

/// Answers clients, each on a thread, until the process ends.
///
/// # Errors
/// The system gives no more threads.
pub fn front(listener: &TcpListener, backs: &[SocketAddr]) -> anyhow::Result<()> {
    let backs: Arc<[Back]> = backs.iter().map(|addr| Back { addr: *addr, idle: Mutex::default() }).collect();
    accept(listener, move |wire| relay(wire, &backs))
}

/// Answers fronts, each connection on a thread, until the process ends.
///
/// # Errors
/// The system gives no more threads.
pub fn back(listener: &TcpListener) -> anyhow::Result<()> {
    accept(listener, |wire| {
        let mut answer = Vec::new();
        while let Some(message) = wire.receive()? {
            let (answer_bytes, _) = head(message)?;
            fill(&mut answer, Framing::Frames, "", number(answer_bytes)?);
            wire.send(&answer)?;
        }
        Ok(())
    })
}

/// A free port, as the other limits have one.
///
/// # Errors
/// The system's.
pub fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn accept(
    listener: &TcpListener,
    serve: impl Fn(&mut Wire) -> io::Result<()> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    loop {
        let mut wire = Wire::accepted(listener.accept()?.0)?;
        let serve = serve.clone();
        threads::spawn("relay", move || serve(&mut wire))?;
    }
}

/// Connections to one back that nobody uses at the moment.
struct Back {
    addr: SocketAddr,
    idle: Mutex<Vec<Wire>>,
}

fn relay(client: &mut Wire, backs: &[Back]) -> io::Result<()> {
    let (mut bytes, mut asked) = (Vec::new(), Vec::new());
    let mut text = String::new();
    while let Some(message) = client.receive()? {
        let (answer_bytes, steps) = head(message)?;
        for step in steps {
            for hop in step.split('+') {
                let mut numbers = hop.split(':').map(number);
                let mut next = || numbers.next().unwrap_or(Err(ErrorKind::InvalidData.into()));
                let (back, request_bytes, answer_bytes) = (next()?, next()?, next()?);
                let back = backs.get(back).ok_or(ErrorKind::InvalidData)?;
                let idle = back.idle.lock().pop();
                let wire = idle.map_or_else(|| Wire::connect(back.addr, Framing::Frames), Ok)?;
                text.clear();
                // Writing to a text cannot fail.
                let _ = write!(text, "{answer_bytes};");
                fill(&mut bytes, Framing::Frames, &text, request_bytes);
                wire.send(&bytes)?;
                asked.push((back, wire));
            }
            for (back, mut wire) in asked.drain(..) {
                wire.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
                back.idle.lock().push(wire);
            }
        }
        let answer_bytes = number(answer_bytes)?;
        fill(&mut bytes, client.framing.unwrap_or(Framing::Frames), "", answer_bytes);
        client.send(&bytes)?;
    }
    Ok(())
}

/// What stands before the semicolon: the answer's length, and the steps.
fn head(message: &[u8]) -> io::Result<(&str, impl Iterator<Item = &str>)> {
    let end = message.iter().position(|byte| *byte == b';').ok_or(ErrorKind::InvalidData)?;
    let mut words = str::from_utf8(&message[..end]).map_err(|_| ErrorKind::InvalidData)?.split(' ');
    Ok((words.next().unwrap_or_default(), words))
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| ErrorKind::InvalidData.into())
}

/// A message of so many bytes that begins with this text, framed.
fn fill(bytes: &mut Vec<u8>, framing: Framing, text: &str, length: usize) {
    bytes.clear();
    if framing == Framing::Frames {
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
    }
    let begins_at = bytes.len();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(begins_at + length, FILLER);
    if framing == Framing::Lines {
        bytes.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_asks_its_backs_and_answers_in_size() {
        let (front_at, one, other) = (listen().unwrap(), listen().unwrap(), listen().unwrap());
        let addr = front_at.local_addr().unwrap();
        let backs = [one.local_addr().unwrap(), other.local_addr().unwrap()];
        // They end with the process of the test.
        for listener in [one, other] {
            threads::spawn("back", move || back(&listener)).unwrap();
        }
        threads::spawn("front", move || front(&front_at, &backs)).unwrap();
        let hop = |back, answer_bytes| Hop { back, request_bytes: 60, answer_bytes };
        let both = vec![hop(0, 120), hop(1, 40_000)];
        for framing in [Framing::Frames, Framing::Lines] {
            let mut wire = Wire::connect(addr, framing).unwrap();
            for steps in [vec![both.clone()], vec![vec![hop(1, 5)], both.clone()], vec![]] {
                let trip = Trip { request_bytes: 150, answer_bytes: 40_100, steps };
                let message = trip.message().unwrap();
                assert_eq!(message.len(), 150);
                wire.send(&framed(framing, &message)).unwrap();
                let answer = wire.receive().unwrap().unwrap();
                assert_eq!((answer.len(), &answer[..2]), (40_100, ANSWER_HEAD));
            }
        }
        let short = Trip { request_bytes: 10, answer_bytes: 1000, steps: vec![both] };
        assert!(short.message().unwrap_err().to_string().contains("a message of 10 bytes"));
    }

    #[test]
    fn a_back_that_is_asked_for_and_is_not_there_ends_the_connection() {
        let front_at = listen().unwrap();
        let addr = front_at.local_addr().unwrap();
        threads::spawn("front", move || front(&front_at, &[])).unwrap();
        let mut wire = Wire::connect(addr, Framing::Frames).unwrap();
        wire.send(&framed(Framing::Frames, b"10 0:20:20;")).unwrap();
        assert!(matches!(wire.receive(), Ok(None) | Err(_)));
    }
}
