//! Datagrams that a thread sends while it does some work are sent together: one system call for many, and no
//! recipient's thread takes the sender's core before the others are sent.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use super::UdpServerSocket;
use crate::net::ancillary::{self, OutgoingDatagram};

/// The most datagrams of one call.
const BATCH_MAX: usize = 64;

thread_local! {
    /// `None` while the thread sends at once.
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Outbox {
    socket: Option<Arc<UdpServerSocket>>,
    /// The content of all datagrams, one after the other.
    bytes: Vec<u8>,
    datagrams: Vec<(Range<usize>, SocketAddr, Option<IpAddr>)>,
    failed: u64,
}

/// What this thread sends by a [`UdpServerSocket`] during `work` is sent together, in order and at the end at the
/// latest. Returns how many of these datagrams could not be sent, though their senders were told that they had been.
pub fn batch_sends(work: impl FnOnce()) -> u64 {
    if OUTBOX.with_borrow(Option::is_some) {
        // The outer call sends.
        work();
        return 0;
    }
    OUTBOX.set(Some(Outbox::default()));
    // Also if the work panics: from then on this thread sends at once again.
    let gathering = BatchGuard;
    work();
    gathering.end()
}

struct BatchGuard;

impl BatchGuard {
    fn end(self) -> u64 {
        let failed = send_all();
        std::mem::forget(self);
        failed
    }
}

impl Drop for BatchGuard {
    fn drop(&mut self) {
        send_all();
    }
}

fn send_all() -> u64 {
    let Some(mut outbox) = OUTBOX.take() else { return 0 };
    outbox.flush();
    outbox.failed
}

/// Whether it is kept, to be sent with others.
pub(super) fn enqueue(socket: &Arc<UdpServerSocket>, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> bool {
    OUTBOX.with_borrow_mut(|outbox| {
        let Some(outbox) = outbox else { return false };
        let is_anothers = outbox.socket.as_ref().is_some_and(|other| !Arc::ptr_eq(other, socket));
        if is_anothers || outbox.datagrams.len() >= BATCH_MAX {
            outbox.flush();
        }
        outbox.socket.get_or_insert_with(|| Arc::clone(socket));
        let begin = outbox.bytes.len();
        outbox.bytes.extend_from_slice(bytes);
        outbox.datagrams.push((begin..outbox.bytes.len(), to, from));
        true
    })
}

impl Outbox {
    fn flush(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        let all: Vec<OutgoingDatagram<'_>> = self
            .datagrams
            .iter()
            .map(|(range, to, from)| {
                let (to, from) = socket.in_socket_family(*to, *from);
                OutgoingDatagram { bytes: &self.bytes[range.clone()], to, from }
            })
            .collect();
        let mut rest = &all[..];
        while let [first, others @ ..] = rest {
            match ancillary::send_many(socket.get(), rest) {
                Ok(sent) => rest = &rest[sent.min(rest.len())..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It is about the first. By itself it may leave from another address, as ever.
                Err(_) => {
                    if let Err(error) = socket.send_now(first.bytes, first.to, first.from) {
                        self.failed += 1;
                        log::debug!("cannot send to {}: {error}", first.to);
                    }
                    rest = others;
                }
            }
        }
        self.bytes.clear();
        self.datagrams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    fn server(at: &str) -> Arc<UdpServerSocket> {
        Arc::new(UdpServerSocket::from_socket(UdpSocket::bind(at).unwrap()).unwrap())
    }

    fn client() -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// All that is there: what, and from where.
    fn read(client: &UdpSocket) -> Vec<(String, SocketAddr)> {
        let mut buffer = [0; 100];
        let next = || client.recv_from(&mut buffer).ok().map(|(length, by)| (length, by, buffer));
        std::iter::from_fn(next)
            .map(|(length, by, buffer)| (String::from_utf8_lossy(&buffer[..length]).into_owned(), by))
            .collect()
    }

    #[test]
    fn what_is_gathered_leaves_at_the_end_in_its_order_from_where_it_should() {
        let (one, other) = (server("0.0.0.0:0"), server("127.0.0.1:0"));
        let (near, far) = (client(), client());
        let [to_near, to_far] = [&near, &far].map(|client| client.local_addr().unwrap());
        let asked: IpAddr = [127, 0, 0, 9].into();
        let failed = batch_sends(|| {
            for n in 0..BATCH_MAX {
                let (to, from) = if n % 2 == 0 { (to_near, Some(asked)) } else { (to_far, None) };
                assert_eq!(one.send_to(format!("{n}").as_bytes(), to, from).unwrap(), n.to_string().len());
            }
            assert!(read(&near).is_empty(), "nothing has left");
            // More than leave at once, and by another socket: those before leave first.
            one.send_to(b"next", to_near, Some(asked)).unwrap();
            assert_eq!(read(&near).len(), BATCH_MAX / 2);
            assert_eq!(batch_sends(|| assert!(other.send_to(b"last", to_near, None).is_ok())), 0);
            let (next, by) = read(&near).pop().unwrap();
            assert_eq!((&*next, by.ip()), ("next", asked));
        });
        assert_eq!(failed, 0);
        assert_eq!(read(&near), [("last".to_owned(), other.get().local_addr().unwrap())]);
        let far: Vec<_> = read(&far).into_iter().map(|(said, _)| said).collect();
        assert_eq!(far, (1..BATCH_MAX).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>());
        // From then on at once again.
        one.send_to(b"now", to_near, None).unwrap();
        assert_eq!(read(&near)[0].0, "now");
    }

    #[test]
    fn one_that_cannot_be_sent_costs_the_others_nothing() {
        let (server, client) = (server("127.0.0.1:0"), client());
        let to = client.local_addr().unwrap();
        let failed = batch_sends(|| {
            for n in 0..5 {
                // None goes to port 0.
                let to = if n % 2 == 0 { to } else { SocketAddr::new(to.ip(), 0) };
                server.send_to(&[b'0' + n], to, None).unwrap();
            }
        });
        assert_eq!(failed, 2);
        let said: Vec<_> = read(&client).into_iter().map(|(said, _)| said).collect();
        assert_eq!(said, ["0", "2", "4"]);
    }

    #[test]
    fn where_the_work_panics_what_was_sent_has_left_and_the_thread_sends_at_once_again() {
        let (server, client) = (server("127.0.0.1:0"), client());
        let to = client.local_addr().unwrap();
        let panics = std::panic::catch_unwind(|| {
            batch_sends(|| {
                server.send_to(b"before", to, None).unwrap();
                panic!("asked for");
            })
        });
        assert!(panics.is_err());
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        server.send_to(b"after", to, None).unwrap();
        let mut buffer = [0; 10];
        let said: Vec<_> = (0..2).map(|_| client.recv(&mut buffer).map(|length| buffer[..length].to_vec())).collect();
        assert!(said[0].as_ref().unwrap() == b"before" && said[1].as_ref().unwrap() == b"after");
    }
}
