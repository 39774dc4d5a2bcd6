//! A proxy in front of a shop's frontends that injects faults chosen and counted by a test.
//!
//! The shop executes a faulty call nevertheless, so that carts and goods are in the expected state and no other call
//! fails because of it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

/// What happens to a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallFault {
    PassedOn,
    /// An error is sent instead.
    Refused,
    /// The connection is closed instead.
    Dropped,
    /// The connection is closed in the middle of it.
    Torn,
}

/// A kind of call that a test selects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallKind {
    pub api: String,
    pub is_lines: bool,
}

type Choose = dyn Fn(&str, bool, u64) -> (Duration, CallFault) + Send + Sync;

struct ProxyState {
    choose: Box<Choose>,
    counts: Mutex<BTreeMap<(CallKind, CallFault), u64>>,
    is_over: AtomicBool,
}

/// Runs until it is dropped.
pub struct Proxy {
    addrs: Vec<SocketAddr>,
    shared: Arc<ProxyState>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// `choose` gets a call's API, whether it came as a line, and its number among calls of that kind (from 1), and
    /// returns the delay of the response and its fault.
    pub fn start(
        servers: &[SocketAddr],
        choose: impl Fn(&str, bool, u64) -> (Duration, CallFault) + Send + Sync + 'static,
    ) -> Proxy {
        let (counts, is_over) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(ProxyState { choose: Box::new(choose), counts, is_over });
        let (mut addrs, mut threads) = (Vec::new(), Vec::new());
        for server in servers.iter().copied() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            addrs.push(listener.local_addr().unwrap());
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || {
                loop {
                    let client = listener.accept().unwrap().0;
                    if shared.is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let shared = Arc::clone(&shared);
                    // The thread ends with its client's connection, which may break.
                    thread::spawn(move || pass_on(&client, server, &shared));
                }
            }));
        }
        Proxy { addrs, shared, threads }
    }

    /// The addresses in the form of `--target`.
    pub fn target(&self) -> String {
        self.addrs.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }

    /// The number of calls of this kind with this fault.
    pub fn count(&self, api: &str, is_lines: bool, fault: CallFault) -> u64 {
        let kind = CallKind { api: api.to_owned(), is_lines };
        self.shared.counts.lock().unwrap().get(&(kind, fault)).copied().unwrap_or(0)
    }

    /// The number of calls of this kind.
    pub fn calls(&self, api: &str, is_lines: bool) -> u64 {
        use CallFault::{Dropped, PassedOn, Refused, Torn};
        [PassedOn, Refused, Dropped, Torn].into_iter().map(|fault| self.count(api, is_lines, fault)).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for addr in &self.addrs {
            TcpStream::connect(addr).unwrap();
        }
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl ProxyState {
    /// Counts the call with its fault before it is forwarded.
    fn decide(&self, api: &str, is_lines: bool) -> (Duration, CallFault) {
        let mut counts = self.counts.lock().unwrap();
        let kind = CallKind { api: api.to_owned(), is_lines };
        let before: u64 = counts.iter().filter(|((one, _), _)| *one == kind).map(|(_, count)| count).sum();
        let (delay, fault) = (self.choose)(api, is_lines, before + 1);
        *counts.entry((kind, fault)).or_default() += 1;
        (delay, fault)
    }
}

fn pass_on(client: &TcpStream, server: SocketAddr, shared: &ProxyState) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut from_server) = (BufReader::new(client), BufReader::new(&server));
    while let Some((request, is_lines)) = read(&mut from_client)? {
        let value: Value = serde_json::from_slice(&request)?;
        let api = value["api"].as_str().unwrap_or_default();
        let (delay, fault) = shared.decide(api, is_lines);
        (&server).write_all(&framed(&request, is_lines))?;
        let Some((answer, _)) = read(&mut from_server)? else { break };
        thread::sleep(delay);
        let mut client = client;
        match fault {
            CallFault::PassedOn => client.write_all(&framed(&answer, is_lines))?,
            CallFault::Refused => {
                let error = json!({"code": "UNAVAILABLE", "message": "on purpose"});
                let answer = json!({"type": "error", "api": api, "session_id": null, "error": error});
                client.write_all(&framed(answer.to_string().as_bytes(), is_lines))?;
            }
            CallFault::Dropped => break,
            CallFault::Torn => {
                let answer = framed(&answer, is_lines);
                client.write_all(&answer[..answer.len() / 2])?;
                break;
            }
        }
    }
    Ok(())
}

/// The next message, and whether it is a line; `None` at the end.
fn read(stream: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, bool)>> {
    let Some(first) = stream.fill_buf()?.first().copied() else { return Ok(None) };
    let mut message = Vec::new();
    if first == 0 {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        message.resize(u32::from_be_bytes(length) as usize, 0);
        stream.read_exact(&mut message)?;
    } else {
        stream.read_until(b'\n', &mut message)?;
        message.pop();
    }
    Ok(Some((message, first != 0)))
}

fn framed(message: &[u8], is_lines: bool) -> Vec<u8> {
    if is_lines {
        [message, b"\n"].concat()
    } else {
        [&u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    }
}
