//! `relay`: the cost of crossing processes without doing any work.
//!
//! A frontend receives messages in either framing, queries backends over persistent connections, and responds; a
//! backend responds. Each message states in its first bytes what is to be sent on and back, so that sizes and hops are
//! those of the call that it is compared with. It uses only the standard library, one thread per connection and no
//! timeouts: a real frontend cannot be faster.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::ensure;
use parking_lot::Mutex;

use crate::net::frames::Framing;
use crate::net::threads;

const BUFFER_BYTES: usize = 16 * 1024;
const LENGTH_BYTES: usize = 4;
const FILLER: u8 = b'x';
/// How a response of the echo begins.
pub const RESPONSE_PREFIX: &[u8] = b"xx";

/// One request of a frontend to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub back: usize,
    pub request_bytes: usize,
    pub answer_bytes: usize,
}

/// A message to the frontend, and everything that it causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRequest {
    pub request_bytes: usize,
    pub answer_bytes: usize,
    /// Steps are executed in order; the hops of one step concurrently.
    pub steps: Vec<Vec<Hop>>,
}

impl RelayRequest {
    /// The message that makes a frontend do this; an error if `request_bytes` is too small for the description.
    pub fn message(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = self.answer_bytes.to_string();
        for step in &self.steps {
            for (nth, hop) in step.iter().enumerate() {
                let sign = if nth == 0 { ' ' } else { '+' };
                // Writing to a `String` cannot fail.
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

pub fn framed(framing: Framing, message: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Frames => [&(message.len() as u32).to_be_bytes(), message].concat(),
        Framing::Lines => [message, b"\n"].concat(),
    }
}

/// A connection with at most one message in progress.
#[derive(Debug)]
pub struct FramedConnection {
    stream: TcpStream,
    /// Detected from the first byte received, unless it is known.
    framing: Option<Framing>,
    buffer: Vec<u8>,
}

impl FramedConnection {
    pub fn connect(addr: SocketAddr, framing: Framing) -> io::Result<FramedConnection> {
        let connection = FramedConnection::accepted(TcpStream::connect(addr)?)?;
        Ok(FramedConnection { framing: Some(framing), ..connection })
    }

    fn accepted(stream: TcpStream) -> io::Result<FramedConnection> {
        stream.set_nodelay(true)?;
        Ok(FramedConnection { stream, framing: None, buffer: vec![0; BUFFER_BYTES] })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a message that is already [framed].
    pub fn send(&self, framed: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(framed)
    }

    /// The next message; `None` at a clean end, and an error if more than one message arrives.
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
            let detected = if self.buffer[0] == 0 { Framing::Frames } else { Framing::Lines };
            let ends_at = match *self.framing.get_or_insert(detected) {
                Framing::Lines => (self.buffer[filled - 1] == b'\n').then_some((0, filled - 1)),
                Framing::Frames => match self.buffer[..filled].split_first_chunk::<LENGTH_BYTES>() {
                    Some((length, body)) if u32::from_be_bytes(*length) as usize == body.len() => {
                        Some((LENGTH_BYTES, filled))
                    }
                    Some((length, body)) if (u32::from_be_bytes(*length) as usize) < body.len() => {
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

pub fn serve_frontend(listener: &TcpListener, backs: &[SocketAddr]) -> anyhow::Result<()> {
    let backs: Arc<[Backend]> = backs.iter().map(|addr| Backend { addr: *addr, idle: Mutex::default() }).collect();
    accept_connections(listener, move |connection| relay(connection, &backs))
}

pub fn serve_backend(listener: &TcpListener) -> anyhow::Result<()> {
    accept_connections(listener, |connection| {
        let mut response = Vec::new();
        while let Some(message) = connection.receive()? {
            let (answer_bytes, _) = parse_request(message)?;
            write_message(&mut response, Framing::Frames, "", number(answer_bytes)?);
            connection.send(&response)?;
        }
        Ok(())
    })
}

pub fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn accept_connections(
    listener: &TcpListener,
    serve: impl Fn(&mut FramedConnection) -> io::Result<()> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    loop {
        let mut connection = FramedConnection::accepted(listener.accept()?.0)?;
        let serve = serve.clone();
        threads::spawn("relay", move || serve(&mut connection))?;
    }
}

/// A backend, with the open connections that are idle.
struct Backend {
    addr: SocketAddr,
    idle: Mutex<Vec<FramedConnection>>,
}

fn relay(client: &mut FramedConnection, backs: &[Backend]) -> io::Result<()> {
    let (mut bytes, mut pending) = (Vec::new(), Vec::new());
    let mut text = String::new();
    while let Some(message) = client.receive()? {
        let (answer_bytes, steps) = parse_request(message)?;
        for step in steps {
            for hop in step.split('+') {
                let mut numbers = hop.split(':').map(number);
                let mut next = || numbers.next().unwrap_or(Err(ErrorKind::InvalidData.into()));
                let (back, request_bytes, answer_bytes) = (next()?, next()?, next()?);
                let back = backs.get(back).ok_or(ErrorKind::InvalidData)?;
                let idle = back.idle.lock().pop();
                let connection = idle.map_or_else(|| FramedConnection::connect(back.addr, Framing::Frames), Ok)?;
                text.clear();
                // Writing to a `String` cannot fail.
                let _ = write!(text, "{answer_bytes};");
                write_message(&mut bytes, Framing::Frames, &text, request_bytes);
                connection.send(&bytes)?;
                pending.push((back, connection));
            }
            for (back, mut connection) in pending.drain(..) {
                connection.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
                back.idle.lock().push(connection);
            }
        }
        let answer_bytes = number(answer_bytes)?;
        write_message(&mut bytes, client.framing.unwrap_or(Framing::Frames), "", answer_bytes);
        client.send(&bytes)?;
    }
    Ok(())
}

/// The part before the semicolon: the response's length, and the steps.
fn parse_request(message: &[u8]) -> io::Result<(&str, impl Iterator<Item = &str>)> {
    let end = message.iter().position(|byte| *byte == b';').ok_or(ErrorKind::InvalidData)?;
    let mut steps = str::from_utf8(&message[..end]).map_err(|_| ErrorKind::InvalidData)?.split(' ');
    Ok((steps.next().unwrap_or_default(), steps))
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| ErrorKind::InvalidData.into())
}

/// Builds a framed message of the given length that begins with this text.
fn write_message(bytes: &mut Vec<u8>, framing: Framing, text: &str, length: usize) {
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
        // The threads end with the test process.
        for listener in [one, other] {
            threads::spawn("back", move || serve_backend(&listener)).unwrap();
        }
        threads::spawn("front", move || serve_frontend(&front_at, &backs)).unwrap();
        let hop = |back, answer_bytes| Hop { back, request_bytes: 60, answer_bytes };
        let both = vec![hop(0, 120), hop(1, 40_000)];
        for framing in [Framing::Frames, Framing::Lines] {
            let mut connection = FramedConnection::connect(addr, framing).unwrap();
            for steps in [vec![both.clone()], vec![vec![hop(1, 5)], both.clone()], vec![]] {
                let request = RelayRequest { request_bytes: 150, answer_bytes: 40_100, steps };
                let message = request.message().unwrap();
                assert_eq!(message.len(), 150);
                connection.send(&framed(framing, &message)).unwrap();
                let response = connection.receive().unwrap().unwrap();
                assert_eq!((response.len(), &response[..2]), (40_100, RESPONSE_PREFIX));
            }
        }
        let short = RelayRequest { request_bytes: 10, answer_bytes: 1000, steps: vec![both] };
        assert!(short.message().unwrap_err().to_string().contains("a message of 10 bytes"));
    }

    #[test]
    fn a_back_that_is_asked_for_and_is_not_there_ends_the_connection() {
        let front_at = listen().unwrap();
        let addr = front_at.local_addr().unwrap();
        threads::spawn("front", move || serve_frontend(&front_at, &[])).unwrap();
        let mut connection = FramedConnection::connect(addr, Framing::Frames).unwrap();
        connection.send(&framed(Framing::Frames, b"10 0:20:20;")).unwrap();
        assert!(matches!(connection.receive(), Ok(None) | Err(_)));
    }
}
