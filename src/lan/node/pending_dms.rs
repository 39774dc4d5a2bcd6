//! DMs that wait for an ACK, and their repetition.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddrV4;

use crate::lan::wire::{Message, UserId};
use crate::model::Millis;

pub(super) const PENDING_DMS_MAX: usize = 1_000;
pub(super) const STRANGERS_MAX: usize = 1_000;
/// The delay after each transmission until the next; after the last delay the DM is given up.
const RESEND_DELAYS_MS: [u64; 4] = [500, 1_000, 2_000, 2_000];

#[derive(Debug)]
pub(super) struct PendingDm {
    /// Where it was sent and is resent; the ACK must come from there.
    pub to: SocketAddrV4,
    pub user_id: UserId,
    pub message: Message,
    sent: usize,
    due: Millis,
}

pub(super) enum DueDm {
    Resend { to: SocketAddrV4, message: Message },
    GiveUp { message_id: String, user_id: UserId },
}

#[derive(Debug, Default)]
pub(super) struct PendingDms {
    by_id: HashMap<String, PendingDm>,
    by_due: BTreeSet<(Millis, String)>,
}

impl PendingDms {
    /// The DM has just been sent. The caller checks [`PENDING_DMS_MAX`].
    pub fn add(&mut self, now: Millis, message_id: String, to: SocketAddrV4, user_id: UserId, message: Message) {
        let due = now.plus_ms(RESEND_DELAYS_MS[0]);
        self.by_due.insert((due, message_id.clone()));
        self.by_id.insert(message_id, PendingDm { to, user_id, message, sent: 1, due });
    }

    pub fn is_awaited(&self, from: SocketAddrV4, message_id: &str) -> bool {
        self.by_id.get(message_id).is_some_and(|pending| pending.to == from)
    }

    pub fn acknowledge(&mut self, from: SocketAddrV4, message_id: &str) -> Option<PendingDm> {
        if self.is_awaited(from, message_id) { self.remove(message_id) } else { None }
    }

    pub fn remove(&mut self, message_id: &str) -> Option<PendingDm> {
        let (id, pending) = self.by_id.remove_entry(message_id)?;
        self.by_due.remove(&(pending.due, id));
        Some(pending)
    }

    /// The next DM that is due, already rescheduled or removed.
    pub fn pop_due(&mut self, now: Millis) -> Option<DueDm> {
        let (_, message_id) = self.by_due.first().filter(|(due, _)| *due <= now)?.clone();
        self.by_due.pop_first();
        let pending = self.by_id.get_mut(&message_id)?;
        let Some(wait_ms) = RESEND_DELAYS_MS.get(pending.sent) else {
            let pending = self.by_id.remove(&message_id)?;
            return Some(DueDm::GiveUp { message_id, user_id: pending.user_id });
        };
        pending.sent += 1;
        pending.due = now.plus_ms(*wait_ms);
        self.by_due.insert((pending.due, message_id));
        Some(DueDm::Resend { to: pending.to, message: pending.message.clone() })
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.by_due.first().map(|(due, _)| *due)
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.by_id.len(), self.by_due.len());
        self.by_id.len()
    }
}

/// Addresses of unknown peers that have sent an ACK: they understand ACKs, so their DMs are acknowledged too.
#[derive(Debug, Default)]
pub(super) struct AcknowledgingStrangers {
    addrs: HashSet<SocketAddrV4>,
    by_age: VecDeque<SocketAddrV4>,
}

impl AcknowledgingStrangers {
    pub fn add(&mut self, addr: SocketAddrV4) {
        if !self.addrs.insert(addr) {
            return;
        }
        self.by_age.push_back(addr);
        if self.by_age.len() > STRANGERS_MAX
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
