//! Stands before a host and spoils what it sends: cut, slowed down, a byte changed; and counts it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Knobs {
    target: Mutex<Option<SocketAddr>>,
    /// 0: as fast as it goes.
    bytes_per_s: AtomicU64,
    /// One of the next bytes of a file is changed.
    must_flip: AtomicBool,
    /// Bytes that the host sent and that were passed on.
    passed: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    is_over: AtomicBool,
}

pub struct Proxy {
    at: SocketAddr,
    knobs: Arc<Knobs>,
}

impl Proxy {
    pub fn before(target: SocketAddr) -> Proxy {
        Proxy::at("127.0.0.1:0".parse().unwrap(), target)
    }

    /// One that listens there.
    pub fn at(at: SocketAddr, target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(at).unwrap();
        let at = listener.local_addr().unwrap();
        let knobs = Arc::new(Knobs { target: Mutex::new(Some(target)), ..Knobs::default() });
        let its_knobs = Arc::clone(&knobs);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if its_knobs.is_over.load(SeqCst) {
                    return;
                }
                let Some(target) = *its_knobs.target.lock().unwrap() else { continue };
                // A host that is away: so is the proxy.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let clones = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                its_knobs.open.lock().unwrap().extend(clones);
                let (up_from, up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass_up(&up_from, &up_to));
                let knobs = Arc::clone(&its_knobs);
                thread::spawn(move || pass_down(&server, &client, &knobs));
            }
        });
        Proxy { at, knobs }
    }

    pub fn addr(&self) -> SocketAddr {
        self.at
    }

    /// None: nobody is there.
    pub fn set_target(&self, target: Option<SocketAddr>) {
        *self.knobs.target.lock().unwrap() = target;
    }

    pub fn set_bytes_per_s(&self, bytes_per_s: u64) {
        self.knobs.bytes_per_s.store(bytes_per_s, SeqCst);
    }

    pub fn passed(&self) -> u64 {
        self.knobs.passed.load(SeqCst)
    }

    pub fn flip_a_byte(&self) {
        self.knobs.must_flip.store(true, SeqCst);
    }

    /// Cuts every connection, as if the cable had been pulled and the systems had noticed.
    pub fn cut(&self) {
        for stream in self.knobs.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.knobs.is_over.store(true, SeqCst);
        self.cut();
        // Accept is to see that it is over.
        let _ = TcpStream::connect(self.at);
    }
}

fn pass_up(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// One that is slowed down takes little at a time, so that few bytes are under way.
fn pass_down(mut from: &TcpStream, mut to: &TcpStream, knobs: &Knobs) {
    let mut buffer = vec![0; 64 * 1024];
    let mut begun = Instant::now();
    let mut since = 0;
    loop {
        let bytes_per_s = knobs.bytes_per_s.load(SeqCst);
        let most =
            if bytes_per_s == 0 { buffer.len() } else { buffer.len().min((bytes_per_s / 200).max(512) as usize) };
        let len = match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // Long enough to lie within a file's bytes.
        if len > 256 && knobs.must_flip.swap(false, SeqCst) {
            buffer[len / 2] ^= 0x10;
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        knobs.passed.fetch_add(len as u64, SeqCst);
        since += len as u64;
        if bytes_per_s > 0 {
            let due = begun + Duration::from_secs_f64(since as f64 / bytes_per_s as f64);
            let now = Instant::now();
            if due > now {
                thread::sleep(due - now);
            } else if now - due > Duration::from_millis(50) {
                // It does not catch up on what it once missed.
                (begun, since) = (now, 0);
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
