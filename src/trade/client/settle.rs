//! A settlement as the peer sees it: the server connects, asks, and says how it ended.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::messages::{encode_inform, encode_shipped};
use super::{Handler, Security, Shared, Shipping};
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};
use crate::trade::wire::{DATAGRAM_MAX, SettlementLine, read_object};

/// How long the server may be silent between its lines: the other side, the bank and the disk have
/// their time too, and a charge is tried again until the bank answers.
const PATIENCE: Duration = Duration::from_secs(120);

impl Shared {
    /// One connection, from its first byte to its last.
    pub(super) fn settle(&self, stream: Arc<TcpStream>, source: SocketAddr, handler: &dyn Handler) {
        if source.ip().to_canonical() != self.config.server.ip().to_canonical() {
            // Not a word: a stranger learns nothing, not even what this port is for.
            self.counters.strangers.add(1);
            log::warn!("a connection from {source} was refused: it is not the server");
            return;
        }
        let place = self.unproven.enter(&stream);
        // Not told to the person: it is not the server that was sent away.
        let refused = |why: &str| match place.leave() {
            true => self.counters.pushed_out.add(1),
            false => handler.refused(why),
        };
        let security = self.security.lock().clone();
        let deadline = Instant::now() + self.config.settle_timeout;
        let conn = match security {
            Security::Unknown => return refused("the server has not told its certificate yet"),
            Security::Refused(why) => return refused(&format!("a settlement was refused: {why}")),
            Security::Plaintext => Conn::plain(stream),
            Security::Pinned(pin) => match Conn::tls_client(stream, &pin, deadline) {
                Ok(conn) => conn,
                Err(error) => return refused(&format!("a settlement was refused: {error}")),
            },
        };
        let (reader, writer) = conn.split();
        let reader = LineReader::new(reader, LineLimits::new(DATAGRAM_MAX));
        let mut line = Line { reader, writer, step: self.config.settle_timeout };
        let said = line.next(self.config.settle_timeout);
        let first = match said.and_then(|said| said.map(|said| read(&said)).transpose()) {
            Ok(Some(first)) => first,
            // It went away without a word, as whoever only looks whether someone listens; or it had to go.
            Ok(None) => return self.counters.pushed_out.add(u64::from(place.leave())),
            Err(why) => {
                refused(&why);
                return line.writer.close();
            }
        };
        if place.leave() {
            return self.counters.pushed_out.add(1);
        }
        let (rq, why) = match line.informed(first, handler) {
            Ok(Some(rq)) => (rq, line.finish(rq, handler)),
            // The other side could not be reached.
            Ok(None) => return,
            Err(why) => {
                handler.refused(&why);
                return line.writer.close();
            }
        };
        line.writer.close();
        if let Err(why) = why {
            handler.broke(rq, &why);
        }
    }
}

struct Line {
    reader: LineReader<ConnReader>,
    writer: ConnWriter,
    step: Duration,
}

impl Line {
    /// INFORM_REQ and its answer. Nothing if it was a CANCEL.
    fn informed(&mut self, first: SettlementLine, handler: &dyn Handler) -> Result<Option<u64>, String> {
        let (rq, item_name, price) = match first {
            SettlementLine::InformReq { rq, item_name, price } => (rq, item_name, price),
            SettlementLine::Cancel { rq, reason, .. } => {
                handler.cancelled(rq, reason);
                return Ok(None);
            }
            _ => return Err("a settlement was refused: expected INFORM_REQ".to_owned()),
        };
        // Half of the step is for waiting: the answer must be there before the server's step is over.
        let inform = handler
            .inform(rq, &item_name, price, Instant::now() + self.step / 2)
            .map_err(|why| format!("a settlement was refused: {why}"))?;
        self.write(&encode_inform(rq, &inform))?;
        Ok(Some(rq))
    }

    /// Everything after INFORM_RES, until the settlement has ended one way or the other.
    fn finish(&mut self, rq: u64, handler: &dyn Handler) -> Result<(), String> {
        loop {
            let line = self.next(PATIENCE)?.ok_or("the server ended the connection")?;
            match read(&line)? {
                SettlementLine::ShippingInfo { rq: ours, name, address, price, fee, payout } if ours == rq => {
                    handler.ship(&Shipping { rq, name, address, price, fee, payout })?;
                    self.write(&encode_shipped(rq))?;
                }
                SettlementLine::Settled { rq: ours, payout } if ours == rq => {
                    handler.settled(rq, payout);
                    return Ok(());
                }
                SettlementLine::Receipt { rq: ours, item_name, price, seller, .. } if ours == rq => {
                    handler.receipt(rq, item_name, price, seller);
                    return Ok(());
                }
                SettlementLine::Cancel { rq: ours, reason, .. } if ours == rq => {
                    handler.cancelled(rq, reason);
                    return Ok(());
                }
                _ => return Err(format!("the server said something else than what belongs to deal {rq}")),
            }
        }
    }

    /// The next line that says something: blank ones do not, and give no more time either.
    fn next(&mut self, at_most: Duration) -> Result<Option<String>, String> {
        let deadline = Instant::now() + at_most;
        loop {
            match self.reader.read_line_before(deadline) {
                Ok(Some(line)) if line.trim().is_empty() => {
                    if Instant::now() >= deadline {
                        return Err("the server said nothing but blank lines".to_owned());
                    }
                }
                line => return line.map_err(|error| error.to_string()),
            }
        }
    }

    fn write(&self, line: &[u8]) -> Result<(), String> {
        self.writer.write_line(line, Instant::now() + self.step).map_err(|error| error.to_string())
    }
}

/// Reads a line of the server, without quoting it: it may hold an address.
fn read(line: &str) -> Result<SettlementLine, String> {
    read_object(line.as_bytes()).map_err(|_| "the server said something that is no line of a settlement".to_owned())
}
