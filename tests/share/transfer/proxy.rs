//! A proxy in front of a host that can cut, slow down or corrupt what the host sends, and counts it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Default)]
struct ProxySettings {
    target: Mutex<Option<SocketAddr>>,
    /// Rate limit; 0: none.
    bytes_per_s: AtomicU64,
    /// Whether to change one of the next bytes.
    must_flip: AtomicBool,
    /// Bytes from the host that were passed on.
    passed: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    is_over: AtomicBool,
}

pub struct Proxy {
    at: SocketAddr,
    settings: Arc<ProxySettings>,
}

impl Proxy {
    pub fn before(target: SocketAddr) -> Proxy {
        Proxy::at("127.0.0.1:0".parse().unwrap(), target)
    }

    /// Starts a proxy that listens at a given address.
    pub fn at(at: SocketAddr, target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(at).unwrap();
        let at = listener.local_addr().unwrap();
        let settings = Arc::new(ProxySettings { target: Mutex::new(Some(target)), ..ProxySettings::default() });
        let shared_settings = Arc::clone(&settings);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if shared_settings.is_over.load(SeqCst) {
                    return;
                }
                let Some(target) = *shared_settings.target.lock().unwrap() else { continue };
                // If the host is away, the proxy closes the connection.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let clones = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                shared_settings.open.lock().unwrap().extend(clones);
                let (up_from, up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass_up(&up_from, &up_to));
                let settings = Arc::clone(&shared_settings);
                thread::spawn(move || pass_down(&server, &client, &settings));
            }
        });
        Proxy { at, settings }
    }

    pub fn addr(&self) -> SocketAddr {
        self.at
    }

    /// None: connections are closed at once.
    pub fn set_target(&self, target: Option<SocketAddr>) {
        *self.settings.target.lock().unwrap() = target;
    }

    pub fn set_bytes_per_s(&self, bytes_per_s: u64) {
        self.settings.bytes_per_s.store(bytes_per_s, SeqCst);
    }

    pub fn passed(&self) -> u64 {
        self.settings.passed.load(SeqCst)
    }

    pub fn flip_a_byte(&self) {
        self.settings.must_flip.store(true, SeqCst);
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for stream in self.settings.open.lock().unwrap().drain(..) {
            // It may have closed by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.settings.is_over.store(true, SeqCst);
        self.cut();
        // Wake up the accepting thread, so that it ends.
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

/// With a rate limit it reads little at a time, so that few bytes are in flight.
fn pass_down(mut from: &TcpStream, mut to: &TcpStream, settings: &ProxySettings) {
    let mut buffer = vec![0; 64 * 1024];
    let mut begun = Instant::now();
    let mut since = 0;
    loop {
        let bytes_per_s = settings.bytes_per_s.load(SeqCst);
        let most =
            if bytes_per_s == 0 { buffer.len() } else { buffer.len().min((bytes_per_s / 200).max(512) as usize) };
        let len = match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // Long enough that the byte is part of a file's data.
        if len > 256 && settings.must_flip.swap(false, SeqCst) {
            buffer[len / 2] ^= 0x10;
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        settings.passed.fetch_add(len as u64, SeqCst);
        since += len as u64;
        if bytes_per_s > 0 {
            let due = begun + Duration::from_secs_f64(since as f64 / bytes_per_s as f64);
            let now = Instant::now();
            if due > now {
                thread::sleep(due - now);
            } else if now - due > Duration::from_millis(50) {
                // Do not catch up after a delay.
                (begun, since) = (now, 0);
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
