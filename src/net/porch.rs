//! The porch: connections that have not said yet who they are, at a door behind which some are at home.
//!
//! Nobody is turned away for being silent as long as there is room. When it gets short, who has waited
//! longest goes first: so whoever says at once who he is always gets in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::counters::Counter;
use super::gate::Gate;

/// Which part of a gate's bound is kept free for those who come next: connections that are closed take a
/// moment to be gone.
const SPARE_SHARE: usize = 16;

/// Counts the connections behind a gate that are not known yet.
#[derive(Debug)]
pub struct Porch {
    gate: Arc<Gate>,
    waiting: Mutex<Waiting>,
    closed: Counter,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    streams: BTreeMap<u64, (IpAddr, Weak<TcpStream>)>,
}

/// A connection on the porch; known, or gone, when dropped.
#[derive(Debug)]
pub struct Newcomer {
    porch: Arc<Porch>,
    place: u64,
}

impl Porch {
    /// Before this gate, which has let in whoever comes here.
    pub fn new(gate: Arc<Gate>) -> Arc<Porch> {
        Arc::new(Porch { gate, waiting: Mutex::default(), closed: Counter::default() })
    }

    /// One more; closes the one that has waited longest if room is short. Where it is short for this address
    /// alone, it is one of its own.
    pub fn enter(self: &Arc<Self>, stream: &Arc<TcpStream>, source: IpAddr) -> Newcomer {
        let source = source.to_canonical();
        let spare = (self.gate.max_connections() / SPARE_SHARE).max(1);
        let (in_all, of_source) = self.gate.left(source);
        let mut waiting = self.waiting.lock();
        let oldest = if in_all < spare {
            waiting.streams.pop_first()
        } else if of_source < spare {
            let place = waiting.streams.iter().find(|(_, (address, _))| *address == source).map(|(place, _)| *place);
            place.and_then(|place| waiting.streams.remove_entry(&place))
        } else {
            None
        };
        let place = waiting.next;
        waiting.next += 1;
        waiting.streams.insert(place, (source, Arc::downgrade(stream)));
        drop(waiting);
        if let Some(stream) = oldest.and_then(|(_, (_, stream))| stream.upgrade()) {
            self.closed.add(1);
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                // It has ended by itself meanwhile.
                log::debug!("closing a silent connection: {error}");
            }
        }
        Newcomer { porch: Arc::clone(self), place }
    }

    /// How many were closed to make room.
    pub fn closed(&self) -> u64 {
        self.closed.get()
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.porch.waiting.lock().streams.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::deadline::tests::pair;
    use std::io::Read;

    #[test]
    fn when_room_is_short_who_waited_longest_goes() {
        let here = "127.0.0.1".parse().unwrap();
        let gate = Gate::new(4);
        let porch = Porch::new(Arc::clone(&gate));
        let come = || {
            let (client, server) = pair();
            let server = Arc::new(server);
            let pass = gate.enter(here).unwrap();
            (client, porch.enter(&server, here), server, pass)
        };
        let is_closed = |client: &mut TcpStream| {
            client.set_nonblocking(true).unwrap();
            matches!(client.read(&mut [0]), Ok(0))
        };
        let (mut first, mut second, mut third) = (come(), come(), come());
        assert_eq!(porch.closed(), 0);
        // The first one is known from here on; the next takes the last place.
        drop(first.1);
        let fourth = come();
        assert_eq!(porch.closed(), 1);
        assert!(is_closed(&mut second.0) && !is_closed(&mut first.0) && !is_closed(&mut third.0));
        drop((second, third, fourth));
        assert!(porch.waiting.lock().streams.is_empty());
    }

    #[test]
    fn an_address_that_has_its_half_makes_room_for_itself() {
        let gate = Gate::new(8);
        let porch = Porch::new(Arc::clone(&gate));
        let come = |from: &str| {
            let (client, server) = pair();
            let (server, from) = (Arc::new(server), from.parse().unwrap());
            let pass = gate.enter(from).unwrap();
            (client, porch.enter(&server, from), server, pass)
        };
        let other = come("10.0.0.9");
        let _of_one: Vec<_> = (0..3).map(|_| come("10.0.0.5")).collect();
        assert_eq!(porch.closed(), 0);
        let _last = come("10.0.0.5");
        // Its half is full; the other one, who has waited longer, has nothing to do with it.
        assert_eq!(porch.closed(), 1);
        assert!(porch.waiting.lock().streams.contains_key(&other.1.place));
    }
}
