//! A fake trade server that only handles REGISTER, DE-REGISTER and STATUS, with configurable behaviour.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

/// How STATUS is answered. `*_every`: every n-th request; 0 is never.
#[derive(Debug, Clone, Copy)]
pub struct FakeBehaviour {
    pub delay: Duration,
    pub refuse_every: u64,
    pub drop_every: u64,
    pub wrong_every: u64,
}

impl FakeBehaviour {
    pub fn good() -> FakeBehaviour {
        FakeBehaviour { delay: Duration::ZERO, refuse_every: 0, drop_every: 0, wrong_every: 0 }
    }
}

/// Runs until it is dropped.
pub struct FakeServer {
    addr: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    pub fn start(behaviour: FakeBehaviour) -> FakeServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || serve(&Arc::new(socket), behaviour, &over));
        FakeServer { addr, is_over, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"", self.addr).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(socket: &Arc<UdpSocket>, behaviour: FakeBehaviour, over: &AtomicBool) {
    let mut buffer = [0; 8192];
    let mut asked = 0;
    let mut answering = Vec::new();
    loop {
        let (length, source) = socket.recv_from(&mut buffer).unwrap();
        if over.load(Ordering::SeqCst) {
            break;
        }
        let Ok(request) = serde_json::from_slice::<Value>(&buffer[..length]) else { continue };
        let rq = &request["rq"];
        let answer = match request["type"].as_str() {
            Some("REGISTER") => json!({"type": "REGISTERED", "rq": rq, "token": "t", "cert_sha256": null}),
            Some("DE-REGISTER") => json!({"type": "DE-REGISTERED", "rq": rq}),
            Some("STATUS") => {
                asked += 1;
                let is_turn = |every: u64| every > 0 && asked % every == 0;
                if is_turn(behaviour.drop_every) {
                    continue;
                }
                if is_turn(behaviour.refuse_every) {
                    json!({"type": "ERROR", "rq": rq, "code": "BUSY", "reason": "not now"})
                } else if is_turn(behaviour.wrong_every) {
                    json!({"type": "SEARCHING", "rq": rq, "peers": 1})
                } else {
                    json!({"type": "DEALS", "rq": rq, "deals": [], "more": false})
                }
            }
            _ => continue,
        };
        if behaviour.delay.is_zero() || request["type"] != "STATUS" {
            socket.send_to(answer.to_string().as_bytes(), source).unwrap();
        } else {
            // The delay is what is measured; other requests are answered meanwhile.
            let socket = Arc::clone(socket);
            answering.push(thread::spawn(move || {
                thread::sleep(behaviour.delay);
                socket.send_to(answer.to_string().as_bytes(), source).unwrap();
            }));
        }
    }
    answering.into_iter().for_each(|thread| thread.join().unwrap());
}
