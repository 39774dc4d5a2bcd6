//! Whole deals: buyers that search, and sellers that have everything.
//!
//! Every peer is asked in every search: the other buyers answer NOT_AVAILABLE, the sellers offer, so a
//! search is answered when all have answered. Each peer has a thread that reads its datagrams (and
//! acknowledges and answers what the server asks), one that settles, and a buyer's driver.

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
use crate::perf::load::{self, Length, Sample};
use crate::perf::stop::Stop;

/// A request is sent again when nothing came for so long.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// So often.
const SENDINGS_MAX: u32 = 8;
/// A search, and a settlement, may take so long: longer than the server's own windows.
const STEP_TIMEOUT: Duration = Duration::from_secs(12);
/// What a buyer has not taken notice of yet.
const NEWS_MAX: usize = 1024;
const ITEM: &str = "brass lamp";
const PRICE: u32 = 10;
/// A number that passes every check and is nobody's.
const CARD: &str = "4111111111111111";

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// LOOKING_FOR → OFFER → FOUND → CANCEL.
    Cancel,
    /// The same up to FOUND, then BUY and the settlement with both sides.
    Buy,
}

/// Registered buyers and sellers, ready to trade.
pub struct Market {
    buyers: Mutex<Vec<Buyer>>,
    peers: Vec<Arc<Peer>>,
    threads: Vec<JoinHandle<()>>,
    /// The server is not ours: peers leave it at the end.
    are_guests: bool,
}

struct Buyer {
    peer: Arc<Peer>,
    news: Receiver<News>,
    next_rq: u64,
}

struct Peer {
    name: String,
    socket: UdpSocket,
    listener: TcpListener,
    /// What REGISTER answered.
    token: String,
    pin: Option<String>,
    /// Where a buyer's driver listens; a seller has none.
    driver: Option<Sender<News>>,
    is_closing: AtomicBool,
}

/// What a driver should know.
#[derive(Debug)]
enum News {
    Heard(Heard),
    Paid(u64),
    NotPaid(u64),
}

#[derive(Debug, Deserialize)]
struct Heard {
    r#type: String,
    rq: Option<u64>,
    mid: Option<u64>,
    price: Option<Value>,
    item_name: Option<String>,
}

impl Market {
    /// Registers everyone.
    ///
    /// # Errors
    /// A server that does not answer; no sockets or threads.
    pub fn open(server: SocketAddr, buyers: usize, sellers: usize, are_guests: bool) -> anyhow::Result<Market> {
        let mut market = Market { buyers: Mutex::default(), peers: Vec::new(), threads: Vec::new(), are_guests };
        for nth in 0..sellers {
            market.join(server, super::name('v', nth), None)?;
        }
        for nth in 0..buyers {
            let (driver, news) = bounded(NEWS_MAX);
            let peer = market.join(server, super::name('b', nth), Some(driver))?;
            market.buyers.lock().push(Buyer { peer, news, next_rq: 1 });
        }
        Ok(market)
    }

    fn join(&mut self, server: SocketAddr, name: String, driver: Option<Sender<News>>) -> anyhow::Result<Arc<Peer>> {
        let socket = load::connect(server)?;
        let listener = listener::listen(SocketAddr::new(socket.local_addr()?.ip(), 0))?;
        let answer = super::register(&socket, &name, listener.local_addr()?.port())?;
        let text = |field: &str| answer[field].as_str().map(str::to_owned);
        let peer = Arc::new(Peer {
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
        self.threads.push(threads::spawn("settling", move || settling.settle_all())?);
        Ok(peer)
    }

    /// Lets every buyer do its rounds, one after the other.
    ///
    /// # Errors
    /// A socket that fails.
    pub fn trade(&self, goal: Goal, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
        load::run_all(&mut self.buyers.lock(), |buyer| buyer.drive(goal, length, stop))
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        for peer in &self.peers {
            peer.is_closing.store(true, Ordering::Relaxed);
            // Wakes the thread that accepts; if that fails it has ended already.
            let _ =
                peer.listener.local_addr().and_then(|addr| TcpStream::connect_timeout(&addr, Duration::from_secs(1)));
        }
        for thread in self.threads.drain(..) {
            // A panic was logged by the thread itself.
            let _ = thread.join();
        }
        if self.are_guests {
            self.peers.iter().for_each(|peer| super::leave(&peer.socket, &peer.name));
        }
    }
}

impl Buyer {
    fn drive(&mut self, goal: Goal, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        let (mut before, mut rounds) = (started, 0);
        while !length.is_over(rounds, started, before) && !stop.is_asked() {
            let succeeded = self.round(goal, &mut sample.lost)?;
            let now = Instant::now();
            if succeeded {
                sample.answered(now - before);
            } else {
                sample.failed += 1;
            }
            before = now;
            rounds += 1;
        }
        Ok(sample)
    }

    fn round(&mut self, goal: Goal, lost: &mut u64) -> anyhow::Result<bool> {
        let rq = self.next_rq;
        self.next_rq += 1;
        let name = self.peer.name.clone();
        let search = json!({
            "type": "LOOKING_FOR", "rq": rq, "name": name, "item_name": ITEM, "description": "", "max_price": PRICE,
        });
        if !self.ask(rq, &search, "SEARCHING", lost)? {
            return Ok(false);
        }
        let found = self.await_news(STEP_TIMEOUT, |news| match news {
            News::Heard(heard) if heard.rq == Some(rq) && heard.mid.is_some() => Some(heard.clone_price()),
            _ => None,
        });
        let Some(Some(price)) = found else { return Ok(false) };
        if goal == Goal::Cancel {
            let cancel = json!({"type": "CANCEL", "rq": rq, "name": name, "item_name": ITEM});
            return self.ask(rq, &cancel, "CANCELLED", lost);
        }
        let buy = json!({"type": "BUY", "rq": rq, "name": name, "item_name": ITEM, "price": price});
        // The settlement begins when BUY is on disk: it may be over before we have read BUYING.
        self.peer.socket.send(buy.to_string().as_bytes())?;
        let mut bought = false;
        for _ in 0..SENDINGS_MAX {
            let mut over = None;
            let heard = self.await_news(if bought { STEP_TIMEOUT } else { AGAIN_AFTER }, |news| match news {
                News::Paid(paid) if *paid == rq => {
                    over = Some(true);
                    Some(())
                }
                News::NotPaid(failed) if *failed == rq => {
                    over = Some(false);
                    Some(())
                }
                News::Heard(heard) if heard.rq == Some(rq) && heard.mid.is_none() => {
                    if heard.r#type != "BUYING" {
                        over = Some(false);
                    }
                    Some(())
                }
                _ => None,
            });
            match (over, heard) {
                (Some(outcome), _) => return Ok(outcome),
                (None, Some(())) => bought = true,
                (None, None) if bought => return Ok(false),
                (None, None) => {
                    *lost += 1;
                    self.peer.socket.send(buy.to_string().as_bytes())?;
                }
            }
        }
        Ok(false)
    }

    /// Sends a request until it is answered; whether the answer is of this type.
    fn ask(&mut self, rq: u64, request: &Value, answer: &str, lost: &mut u64) -> anyhow::Result<bool> {
        let request = request.to_string();
        for sending in 0..SENDINGS_MAX {
            *lost += u64::from(sending > 0);
            self.peer.socket.send(request.as_bytes())?;
            let heard = self.await_news(AGAIN_AFTER, |news| match news {
                News::Heard(heard) if heard.rq == Some(rq) && heard.mid.is_none() => Some(heard.r#type == answer),
                _ => None,
            });
            if let Some(is_right) = heard {
                return Ok(is_right);
            }
        }
        Ok(false)
    }

    /// Waits for news of this kind; what else there is is of earlier rounds.
    fn await_news<T>(&self, at_most: Duration, mut of_kind: impl FnMut(&News) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + at_most;
        loop {
            let news = self.news.recv_deadline(deadline).ok()?;
            if let Some(found) = of_kind(&news) {
                return Some(found);
            }
        }
    }
}

impl Heard {
    /// The price, if this is FOUND.
    fn clone_price(&self) -> Option<Value> {
        self.price.clone().filter(|_| self.r#type == "FOUND")
    }
}

impl Peer {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Reads what the server says until the end.
    fn read(&self) -> anyhow::Result<()> {
        let mut buffer = vec![0; 8 * 1024];
        // Answers to a SEARCH that the server has not confirmed: with one missing, everyone waits.
        let mut unconfirmed: Vec<(u64, String, Instant)> = Vec::new();
        while !self.is_closing() {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        for (_, answer, sent_at) in &mut unconfirmed {
                            if sent_at.elapsed() >= AGAIN_AFTER {
                                *sent_at = Instant::now();
                                self.send(answer)?;
                            }
                        }
                        continue;
                    }
                    ErrorKind::Interrupted => continue,
                    // The server has ended: the drivers will notice.
                    _ => return Ok(()),
                },
            };
            let Ok(heard) = serde_json::from_slice::<Heard>(&buffer[..length]) else { continue };
            if let Some(mid) = heard.mid {
                self.send(&format!(r#"{{"type":"ACK","mid":{mid}}}"#))?;
            }
            match (heard.r#type.as_str(), heard.rq) {
                ("SEARCH", Some(rq)) => {
                    let answer = self.answer(rq, heard.item_name.as_deref().unwrap_or(ITEM));
                    self.send(&answer)?;
                    unconfirmed.push((rq, answer, Instant::now()));
                }
                ("OFFERED" | "NOTED" | "ERROR", Some(rq)) if rq >= crate::trade::wire::SERVER_NUMBERS => {
                    unconfirmed.retain(|(of, ..)| *of != rq);
                }
                _ => self.tell(News::Heard(heard)),
            }
        }
        Ok(())
    }

    fn send(&self, text: &str) -> anyhow::Result<()> {
        self.socket.send(text.as_bytes()).map(|_| ()).context("cannot send to the server")
    }

    fn answer(&self, rq: u64, item_name: &str) -> String {
        let answer = if self.driver.is_none() {
            json!({"type": "OFFER", "rq": rq, "name": self.name, "item_name": item_name, "price": PRICE})
        } else {
            json!({"type": "NOT_AVAILABLE", "rq": rq, "name": self.name, "item_name": item_name})
        };
        answer.to_string()
    }

    fn tell(&self, news: News) {
        if let Some(driver) = &self.driver
            && let Err(TrySendError::Full(news)) = driver.try_send(news)
        {
            // A thousand unread: the driver counts what it misses as failed.
            log::debug!("{}: {news:?} is dropped", self.name);
        }
    }

    /// Settles with whoever connects: a buyer's one purchase after the other, a seller's each on a
    /// thread of its own (as many as there are buyers).
    fn settle_all(self: Arc<Self>) -> anyhow::Result<()> {
        for stream in self.listener.incoming() {
            if self.is_closing() {
                break;
            }
            let (peer, stream) = (Arc::clone(&self), stream?);
            let settle = move || {
                let result = peer.settle(stream);
                // The driver waits and counts; what went wrong is told in the log.
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
            let heard: Heard = serde_json::from_str(&line)?;
            let rq = heard.rq.context("rq: missing")?;
            let answer = match heard.r#type.as_str() {
                "INFORM_REQ" => json!({
                    "type": "INFORM_RES", "rq": rq, "name": self.name, "token": self.token,
                    "cc_number": CARD, "cc_exp": "12/79", "address": "1 Elm Street",
                }),
                "SHIPPING_INFO" => json!({"type": "SHIPPED", "rq": rq}),
                other => {
                    match other {
                        "RECEIPT" => self.tell(News::Paid(rq)),
                        "CANCEL" => self.tell(News::NotPaid(rq)),
                        _ => {}
                    }
                    break;
                }
            };
            writer.write_line(answer.to_string(), deadline)?;
        }
        writer.finish();
        Ok(())
    }
}
