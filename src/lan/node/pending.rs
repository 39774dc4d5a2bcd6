//! DMs that wait to be acknowledged.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddrV4;

use crate::lan::wire::{Message, UserId};
use crate::model::Millis;

/// How many may wait at once.
pub(super) const PENDING_MAX: usize = 1_000;
/// Strangers that are remembered to have sent an ACK.
pub(super) const ACKED_MAX: usize = 1_000;
/// How long after each sending the next follows; after the last of them it is given up.
const WAITS_MS: [u64; 4] = [500, 1_000, 2_000, 2_000];

/// A DM that waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// Where it went, goes again, and is acknowledged from.
    pub to: SocketAddrV4,
    /// To whom.
    pub user_id: UserId,
    /// As it was sent.
    pub message: Message,
    sent: usize,
    due: Millis,
}

/// What is due.
pub(super) enum Due {
    /// To be sent once more.
    Again { to: SocketAddrV4, message: Message },
    /// Repeated in vain.
    GivenUp { message_id: String, user_id: UserId },
}

/// DMs that wait, by MESSAGE_ID.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_id: HashMap<String, Pending>,
    by_due: BTreeSet<(Millis, String)>,
}

impl Waiting {
    /// One that has just been sent. There must be room: see [`PENDING_MAX`].
    pub fn add(&mut self, now: Millis, message_id: String, to: SocketAddrV4, user_id: UserId, message: Message) {
        let due = now.plus_ms(WAITS_MS[0]);
        self.by_due.insert((due, message_id.clone()));
        self.by_id.insert(message_id, Pending { to, user_id, message, sent: 1, due });
    }

    /// Whether its ACK is waited for, from there.
    pub fn is_awaited(&self, from: SocketAddrV4, message_id: &str) -> bool {
        self.by_id.get(message_id).is_some_and(|pending| pending.to == from)
    }

    /// It arrived: who says so must be whom it went to.
    pub fn acknowledged(&mut self, from: SocketAddrV4, message_id: &str) -> Option<Pending> {
        if self.is_awaited(from, message_id) { self.forget(message_id) } else { None }
    }

    /// It waits no more.
    pub fn forget(&mut self, message_id: &str) -> Option<Pending> {
        let (id, pending) = self.by_id.remove_entry(message_id)?;
        self.by_due.remove(&(pending.due, id));
        Some(pending)
    }

    /// The next that is due now.
    pub fn next_due(&mut self, now: Millis) -> Option<Due> {
        let (_, message_id) = self.by_due.first().filter(|(due, _)| *due <= now)?.clone();
        self.by_due.pop_first();
        let pending = self.by_id.get_mut(&message_id)?;
        let Some(wait_ms) = WAITS_MS.get(pending.sent) else {
            let pending = self.by_id.remove(&message_id)?;
            return Some(Due::GivenUp { message_id, user_id: pending.user_id });
        };
        pending.sent += 1;
        pending.due = now.plus_ms(*wait_ms);
        self.by_due.insert((pending.due, message_id));
        Some(Due::Again { to: pending.to, message: pending.message.clone() })
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.by_due.first().map(|(due, _)| *due)
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.by_id.len(), self.by_due.len());
        self.by_id.len()
    }
}

/// Strangers that sent an ACK: they acknowledge, and may be acknowledged to.
#[derive(Debug, Default)]
pub(super) struct Acked {
    addrs: HashSet<SocketAddrV4>,
    by_age: VecDeque<SocketAddrV4>,
}

impl Acked {
    pub fn add(&mut self, addr: SocketAddrV4) {
        if !self.addrs.insert(addr) {
            return;
        }
        self.by_age.push_back(addr);
        if self.by_age.len() > ACKED_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.addrs.remove(&oldest);
        }
    }

    pub fn contains(&self, addr: SocketAddrV4) -> bool {
        self.addrs.contains(&addr)
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.addrs.len(), self.by_age.len());
        self.addrs.len()
    }
}
