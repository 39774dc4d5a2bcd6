//! A settlement from the peer's point of view: the server connects, asks, and tells how it ended.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ClientHandler, ClientInner, SettlementSecurity, ShippingOrder};
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};
use crate::trade::wire::{DATAGRAM_MAX, SettlementMessage, encode_inform, encode_shipped, parse_settlement_message};

/// How long the server may be silent between its lines: the other side, the bank and the disk take their time too,
/// and a charge is retried until the bank answers.
const LINE_PATIENCE: Duration = Duration::from_secs(120);

impl ClientInner {
    pub(super) fn serve_settlement(&self, stream: Arc<TcpStream>, source: SocketAddr, handler: &dyn ClientHandler) {
        if source.ip().to_canonical() != self.config.server.ip().to_canonical() {
            // Nothing is written: a stranger does not learn what this port is for.
            self.counters.foreign_connections.add(1);
            log::warn!("a connection from {source} was refused: it is not the server");
            return;
        }
        let slot = self.unauthenticated.insert(&stream);
        // The handler is not told of evicted connections, which are not the server's.
        let refused = |why: &str| match slot.release() {
            true => self.counters.evicted_connections.add(1),
            false => handler.rejected(why),
        };
        let security = self.security.lock().clone();
        let deadline = Instant::now() + self.config.settle_timeout;
        let conn = match security {
            SettlementSecurity::Unknown => return refused("the server has not told its certificate yet"),
            SettlementSecurity::Untrusted(why) => return refused(&format!("a settlement was refused: {why}")),
            SettlementSecurity::Plaintext => Conn::plain(stream),
            SettlementSecurity::Pinned(pin) => match Conn::tls_client(stream, &pin, deadline) {
                Ok(conn) => conn,
                Err(error) => return refused(&format!("a settlement was refused: {error}")),
            },
        };
        let (reader, writer) = conn.split();
        let reader = LineReader::new(reader, LineLimits::new(DATAGRAM_MAX));
        let mut line = SettlementConnection { reader, writer, step: self.config.settle_timeout };
        let text = line.next_line(self.config.settle_timeout);
        let first = match text.and_then(|text| text.map(|text| parse_line(&text)).transpose()) {
            Ok(Some(first)) => first,
            // Closed without a line, like a port scan; or evicted.
            Ok(None) => return self.counters.evicted_connections.add(u64::from(slot.release())),
            Err(why) => {
                refused(&why);
                return line.writer.close();
            }
        };
        if slot.release() {
            return self.counters.evicted_connections.add(1);
        }
        let (rq, why) = match line.answer_inform_request(first, handler) {
            Ok(Some(rq)) => (rq, line.finish(rq, handler)),
            // The server could not reach the other side.
            Ok(None) => return,
            Err(why) => {
                handler.rejected(&why);
                return line.writer.close();
            }
        };
        line.writer.close();
        if let Err(why) = why {
            handler.interrupted(rq, &why);
        }
    }
}

struct SettlementConnection {
    reader: LineReader<ConnReader>,
    writer: ConnWriter,
    step: Duration,
}

impl SettlementConnection {
    /// Answers INFORM_REQ. `None` if the line was a CANCEL.
    fn answer_inform_request(
        &mut self,
        first: SettlementMessage,
        handler: &dyn ClientHandler,
    ) -> Result<Option<u64>, String> {
        let (rq, item_name, price) = match first {
            SettlementMessage::InformReq { rq, item_name, price } => (rq, item_name, price),
            SettlementMessage::Cancel { rq, reason, .. } => {
                handler.cancelled(rq, reason);
                return Ok(None);
            }
            _ => return Err("a settlement was refused: expected INFORM_REQ".to_owned()),
        };
        // Only half of the time may be spent waiting: the answer must arrive before the server's own timeout.
        let inform = handler
            .inform(rq, &item_name, price, Instant::now() + self.step / 2)
            .map_err(|why| format!("a settlement was refused: {why}"))?;
        self.write(&encode_inform(rq, &inform))?;
        Ok(Some(rq))
    }

    /// Handles all lines after INFORM_RES until the settlement has ended.
    fn finish(&mut self, rq: u64, handler: &dyn ClientHandler) -> Result<(), String> {
        let unexpected = || format!("the server said something else than what belongs to deal {rq}");
        loop {
            let line = self.next_line(LINE_PATIENCE)?.ok_or("the server ended the connection")?;
            let message = parse_line(&line)?;
            if message.rq() != rq {
                return Err(unexpected());
            }
            match message {
                SettlementMessage::ShippingInfo { name, address, price, fee, payout, .. } => {
                    handler.ship(&ShippingOrder { rq, name, address, price, fee, payout })?;
                    self.write(&encode_shipped(rq))?;
                    continue;
                }
                SettlementMessage::Settled { payout, .. } => handler.settled(rq, payout),
                SettlementMessage::Receipt { item_name, price, seller, .. } => {
                    handler.receipt(rq, item_name, price, seller);
                }
                SettlementMessage::Cancel { reason, .. } => handler.cancelled(rq, reason),
                SettlementMessage::InformReq { .. } => return Err(unexpected()),
            }
            return Ok(());
        }
    }

    /// The next line that is not empty. Empty lines do not extend the timeout.
    fn next_line(&mut self, at_most: Duration) -> Result<Option<String>, String> {
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

/// Parses a line of the server. The error does not quote it: it may contain an address.
fn parse_line(line: &str) -> Result<SettlementMessage, String> {
    parse_settlement_message(line).map_err(|_| "the server said something that is no line of a settlement".to_owned())
}
