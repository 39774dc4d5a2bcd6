//! Complete deals between buyers that search and sellers that have everything.
//!
//! Every search reaches every peer: other buyers answer NOT_AVAILABLE, sellers offer, and the search ends when all have
//! answered. Each peer has a thread that receives datagrams (and acknowledges and answers them) and one for
//! settlements; a buyer also has a driver.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::net::conn::Conn;
use crate::net::lines::{LineLimits, LineReader};
use crate::net::{listener, threads};
use crate::perf::load::{self, MeasurementLength, Sample};
use crate::perf::stop::StopFlag;

const RETRY_AFTER: Duration = Duration::from_millis(500);
const ATTEMPTS_MAX: u32 = 8;
/// Timeout of a search or a settlement: longer than the server's own time limits.
const STEP_TIMEOUT: Duration = Duration::from_secs(12);
/// Maximum number of unread events of a buyer.
const EVENTS_MAX: usize = 1024;
const ITEM: &str = "brass lamp";
const PRICE: u32 = 10;
/// A card number that passes every check and belongs to nobody.
const CARD: &str = "4111111111111111";

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundGoal {
    /// LOOKING_FOR → OFFER → FOUND → CANCEL.
    Cancel,
    /// As `Cancel` up to FOUND, then BUY and the settlement with both sides.
    Buy,
}

/// Registered buyers and sellers, ready to trade.
pub struct Market {
    buyers: Mutex<Vec<Buyer>>,
    peers: Vec<Arc<MarketPeer>>,
    threads: Vec<JoinHandle<()>>,
    /// The server is not ours, so peers de-register at the end.
    leave_at_end: bool,
}

struct Buyer {
    peer: Arc<MarketPeer>,
    events: Receiver<MarketEvent>,
    next_rq: u64,
}

struct MarketPeer {
    name: String,
    socket: UdpSocket,
    listener: TcpListener,
    token: String,
    pin: Option<String>,
    /// Sends events to a buyer's driver; sellers have none.
    driver: Option<Sender<MarketEvent>>,
    is_closing: AtomicBool,
}

#[derive(Debug)]
enum MarketEvent {
    ServerMessage(ServerMessage),
    Paid(u64),
    NotPaid(u64),
}

#[derive(Debug, Deserialize)]
struct ServerMessage {
    r#type: String,
    rq: Option<u64>,
    mid: Option<u64>,
    price: Option<Value>,
    item_name: Option<String>,
}

impl Market {
    pub fn open(server: SocketAddr, buyers: usize, sellers: usize, leave_at_end: bool) -> anyhow::Result<Market> {
        let mut market = Market { buyers: Mutex::default(), peers: Vec::new(), threads: Vec::new(), leave_at_end };
        for nth in 0..sellers {
            market.add_peer(server, super::name('v', nth), None)?;
        }
        for nth in 0..buyers {
            let (driver, events) = bounded(EVENTS_MAX);
            let peer = market.add_peer(server, super::name('b', nth), Some(driver))?;
            market.buyers.lock().push(Buyer { peer, events, next_rq: 1 });
        }
        Ok(market)
    }

    fn add_peer(
        &mut self,
        server: SocketAddr,
        name: String,
        driver: Option<Sender<MarketEvent>>,
    ) -> anyhow::Result<Arc<MarketPeer>> {
        let socket = load::connect(server)?;
        let listener = listener::listen(SocketAddr::new(socket.local_addr()?.ip(), 0))?;
        let response = super::register(&socket, &name, listener.local_addr()?.port())?;
        let text = |field: &str| response[field].as_str().map(str::to_owned);
        let peer = Arc::new(MarketPeer {
            token: text("token").context("token: missing in REGISTERED")?,
            pin: text("cert_sha256"),
            name,
            socket,
            listener,
            driver,
            is_closing: AtomicBool::new(false),
        });
        self.peers.push(Arc::clone(&peer));
        let reading = Arc::clone(&peer);
        self.threads.push(threads::spawn("peer", move || reading.read())?);
        let settling = Arc::clone(&peer);
        self.threads.push(threads::spawn("settling", move || settling.accept_settlements())?);
        Ok(peer)
    }

    /// Lets every buyer run rounds, one after the other.
    pub fn trade(&self, goal: RoundGoal, length: MeasurementLength, stop: &StopFlag) -> anyhow::Result<Sample> {
        load::run_all(&mut self.buyers.lock(), |_nth, buyer| {
            load::drive(length, None, stop, |sample| Ok((None, buyer.round(goal, &mut sample.lost)?)))
        })
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        for peer in &self.peers {
            peer.is_closing.store(true, Ordering::Relaxed);
            // Wakes the accepting thread; if connecting fails, it has already ended.
            let _ =
                peer.listener.local_addr().and_then(|addr| TcpStream::connect_timeout(&addr, Duration::from_secs(1)));
        }
        for thread in self.threads.drain(..) {
            // A panic was logged by the thread itself.
            let _ = thread.join();
        }
        if self.leave_at_end {
            self.peers.iter().for_each(|peer| super::leave(&peer.socket, &peer.name));
        }
    }
}

impl Buyer {
    fn round(&mut self, goal: RoundGoal, lost: &mut u64) -> anyhow::Result<bool> {
        let rq = self.next_rq;
        self.next_rq += 1;
        let name = self.peer.name.clone();
        let search = json!({
            "type": "LOOKING_FOR", "rq": rq, "name": name, "item_name": ITEM, "description": "", "max_price": PRICE,
        });
        if !self.ask(rq, &search, "SEARCHING", lost)? {
            return Ok(false);
        }
        let found = self.await_event(STEP_TIMEOUT, |event| match event {
            MarketEvent::ServerMessage(message) if message.rq == Some(rq) && message.mid.is_some() => {
                Some(message.price.clone().filter(|_| message.r#type == "FOUND"))
            }
            _ => None,
        });
        let Some(Some(price)) = found else { return Ok(false) };
        if goal == RoundGoal::Cancel {
            let cancel = json!({"type": "CANCEL", "rq": rq, "name": name, "item_name": ITEM});
            return self.ask(rq, &cancel, "CANCELLED", lost);
        }
        let buy = json!({"type": "BUY", "rq": rq, "name": name, "item_name": ITEM, "price": price});
        // The settlement starts when BUY is on disk and may be over before BUYING is read.
        self.peer.socket.send(buy.to_string().as_bytes())?;
        let mut bought = false;
        for _ in 0..ATTEMPTS_MAX {
            // How the purchase has ended; `None`: it goes on.
            let news = self.await_event(if bought { STEP_TIMEOUT } else { RETRY_AFTER }, |event| match event {
                MarketEvent::Paid(paid) if *paid == rq => Some(Some(true)),
                MarketEvent::NotPaid(failed) if *failed == rq => Some(Some(false)),
                MarketEvent::ServerMessage(message) if message.rq == Some(rq) && message.mid.is_none() => {
                    Some((message.r#type != "BUYING").then_some(false))
                }
                _ => None,
            });
            match news {
                Some(Some(outcome)) => return Ok(outcome),
                Some(None) => bought = true,
                None if bought => return Ok(false),
                None => {
                    *lost += 1;
                    self.peer.socket.send(buy.to_string().as_bytes())?;
                }
            }
        }
        Ok(false)
    }

    /// Sends a request until it is answered; returns whether the response has this type.
    fn ask(&mut self, rq: u64, request: &Value, response: &str, lost: &mut u64) -> anyhow::Result<bool> {
        let request = request.to_string();
        for sending in 0..ATTEMPTS_MAX {
            *lost += u64::from(sending > 0);
            self.peer.socket.send(request.as_bytes())?;
            let message = self.await_event(RETRY_AFTER, |event| match event {
                MarketEvent::ServerMessage(message) if message.rq == Some(rq) && message.mid.is_none() => {
                    Some(message.r#type == response)
                }
                _ => None,
            });
            if let Some(is_right) = message {
                return Ok(is_right);
            }
        }
        Ok(false)
    }

    /// Waits for an event that `of_kind` accepts; others belong to earlier rounds.
    fn await_event<T>(&self, at_most: Duration, mut of_kind: impl FnMut(&MarketEvent) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + at_most;
        loop {
            let event = self.events.recv_deadline(deadline).ok()?;
            if let Some(found) = of_kind(&event) {
                return Some(found);
            }
        }
    }
}

impl MarketPeer {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    fn read(&self) -> anyhow::Result<()> {
        let mut buffer = vec![0; 8 * 1024];
        // Answers to SEARCH that the server has not confirmed. If one is lost, the whole search waits.
        let mut unconfirmed: Vec<(u64, String, Instant)> = Vec::new();
        while !self.is_closing() {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        for (_, response, sent_at) in &mut unconfirmed {
                            if sent_at.elapsed() >= RETRY_AFTER {
                                *sent_at = Instant::now();
                                self.send(response)?;
                            }
                        }
                        continue;
                    }
                    ErrorKind::Interrupted => continue,
                    // The server has ended, which the drivers will notice.
                    _ => return Ok(()),
                },
            };
            let Ok(message) = serde_json::from_slice::<ServerMessage>(&buffer[..length]) else { continue };
            if let Some(mid) = message.mid {
                self.send(&format!(r#"{{"type":"ACK","mid":{mid}}}"#))?;
            }
            match (message.r#type.as_str(), message.rq) {
                ("SEARCH", Some(rq)) => {
                    let response = self.response(rq, message.item_name.as_deref().unwrap_or(ITEM));
                    self.send(&response)?;
                    unconfirmed.push((rq, response, Instant::now()));
                }
                ("OFFERED" | "NOTED" | "ERROR", Some(rq)) if rq >= crate::trade::wire::FIRST_SERVER_NUMBER => {
                    unconfirmed.retain(|(of, ..)| *of != rq);
                }
                _ => self.notify_driver(MarketEvent::ServerMessage(message)),
            }
        }
        Ok(())
    }

    fn send(&self, text: &str) -> anyhow::Result<()> {
        self.socket.send(text.as_bytes()).map(|_| ()).context("cannot send to the server")
    }

    fn response(&self, rq: u64, item_name: &str) -> String {
        let response = if self.driver.is_none() {
            json!({"type": "OFFER", "rq": rq, "name": self.name, "item_name": item_name, "price": PRICE})
        } else {
            json!({"type": "NOT_AVAILABLE", "rq": rq, "name": self.name, "item_name": item_name})
        };
        response.to_string()
    }

    fn notify_driver(&self, event: MarketEvent) {
        if let Some(driver) = &self.driver
            && let Err(TrySendError::Full(event)) = driver.try_send(event)
        {
            // A thousand events are unread; the driver counts what it misses as failed.
            log::debug!("{}: {event:?} is dropped", self.name);
        }
    }

    /// A buyer handles one purchase after the other, a seller each on its own thread (as many as there are buyers).
    fn accept_settlements(self: Arc<Self>) -> anyhow::Result<()> {
        for stream in self.listener.incoming() {
            if self.is_closing() {
                break;
            }
            let (peer, stream) = (Arc::clone(&self), stream?);
            let settle = move || {
                let result = peer.settle(stream);
                // The driver counts the failure; the log tells the cause.
                result.with_context(|| format!("{}: settling", peer.name))
            };
            if self.driver.is_some() {
                if let Err(error) = settle() {
                    log::warn!("{error:#}");
                }
            } else {
                threads::spawn("settling", settle)?;
            }
        }
        Ok(())
    }

    fn settle(&self, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let conn = match &self.pin {
            Some(pin) => Conn::tls_client(stream, pin, deadline)?,
            None => Conn::plain(stream),
        };
        let (reader, writer) = conn.split();
        let mut lines = LineReader::new(reader, LineLimits::new(1 << 16));
        while let Some(line) = lines.read_line()? {
            let message: ServerMessage = serde_json::from_str(&line)?;
            let rq = message.rq.context("rq: missing")?;
            let response = match message.r#type.as_str() {
                "INFORM_REQ" => json!({
                    "type": "INFORM_RES", "rq": rq, "name": self.name, "token": self.token,
                    "cc_number": CARD, "cc_exp": "12/79", "address": "1 Elm Street",
                }),
                "SHIPPING_INFO" => json!({"type": "SHIPPED", "rq": rq}),
                other => {
                    match other {
                        "RECEIPT" => self.notify_driver(MarketEvent::Paid(rq)),
                        "CANCEL" => self.notify_driver(MarketEvent::NotPaid(rq)),
                        _ => {}
                    }
                    break;
                }
            };
            writer.write_line(response.to_string(), deadline)?;
        }
        writer.shut_down_write();
        Ok(())
    }
}
