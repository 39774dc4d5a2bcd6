//! A trade server that only registers and answers STATUS, with manners that a test knows.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

/// How it answers STATUS. `every`: each so many-th of them; 0 is never.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    pub delay: Duration,
    pub refuse_every: u64,
    pub drop_every: u64,
    pub wrong_every: u64,
}

impl Manners {
    pub fn good() -> Manners {
        Manners { delay: Duration::ZERO, refuse_every: 0, drop_every: 0, wrong_every: 0 }
    }
}

/// Runs until it is dropped.
pub struct Fake {
    addr: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn start(manners: Manners) -> Fake {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || serve(&Arc::new(socket), manners, &over));
        Fake { addr, is_over, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"", self.addr).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(socket: &Arc<UdpSocket>, manners: Manners, over: &AtomicBool) {
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
                if is_turn(manners.drop_every) {
                    continue;
                }
                if is_turn(manners.refuse_every) {
                    json!({"type": "ERROR", "rq": rq, "code": "BUSY", "reason": "not now"})
                } else if is_turn(manners.wrong_every) {
                    json!({"type": "SEARCHING", "rq": rq, "peers": 1})
                } else {
                    json!({"type": "DEALS", "rq": rq, "deals": [], "more": false})
                }
            }
            _ => continue,
        };
        if manners.delay.is_zero() || request["type"] != "STATUS" {
            socket.send_to(answer.to_string().as_bytes(), source).unwrap();
        } else {
            // The delay is what is measured; others are answered meanwhile.
            let socket = Arc::clone(socket);
            answering.push(thread::spawn(move || {
                thread::sleep(manners.delay);
                socket.send_to(answer.to_string().as_bytes(), source).unwrap();
            }));
        }
    }
    answering.into_iter().for_each(|thread| thread.join().unwrap());
}
