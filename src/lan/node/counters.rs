//! Counters of datagrams, the causes of drops, and the sizes of tables.

use crate::model::named;

named! {
    #[derive(Hash, PartialOrd, Ord)]
    pub enum DropCause {
        Malformed = "malformed",
        UnknownType = "unknown-type",
        TooMany = "too-many",
        /// It names a sender address that is not its source.
        WrongSource = "wrong-source",
        NotIpv4 = "not-ipv4",
        Repeated = "repeated",
        /// A DM to somebody else.
        NotForUs = "not-for-us",
        Full = "full",
        /// An ACK for which no DM to that address waits.
        StrayAck = "stray-ack",
        /// It claims the INSTANCE or the address of another peer.
        Taken = "taken",
        /// It claims a USER_ID with a new PORT while the peer still answers at the old one.
        PortRefused = "port-refused",
        TooManyChecks = "too-many-checks",
        /// A peer list request beyond the rate limit, or one that was broadcast.
        TooManyLists = "too-many-lists",
        /// A peer list that was not requested.
        Unasked = "unasked",
        /// A message or request to a server or a probe, which takes none.
        NotAPerson = "not-a-person",
        /// It would need an answer that cannot be sent: the queue is full, or nothing may be sent to that address.
        Unanswerable = "unanswerable",
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Received datagrams, including our own broadcasts.
    pub received: u64,
    pub received_bytes: u64,
    pub own: u64,
    pub sent: u64,
    /// Broadcasts sent, counted per interface.
    pub broadcasts: u64,
    dropped: [u64; DropCause::ALL.len()],
}

impl NodeCounters {
    pub fn dropped(&self, cause: DropCause) -> u64 {
        self.dropped[cause as usize]
    }

    pub fn drops(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.iter().copied().map(|cause| (cause, self.dropped(cause))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn count_drop(&mut self, cause: DropCause) {
        self.dropped[cause as usize] += 1;
    }
}

/// How many entries each table has, and the most that it may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSizes {
    /// At most 10,000.
    pub peers: usize,
    /// At most 8 of each peer.
    pub addresses: usize,
    /// Messages whose repeats are dropped: at most 200,000.
    pub seen: usize,
    /// At most 10,000.
    pub senders: usize,
    /// At most 1,000.
    pub pending_dms: usize,
    /// At most 10,000.
    pub queued_announcements: usize,
    /// Changes of PORT that are being checked: at most 100.
    pub port_checks: usize,
    /// Other peers of this host that have our name: at most 16.
    pub name_conflicts: usize,
    /// Addresses added by the user (`--peer`): at most 64.
    pub static_peers: usize,
    /// Sources in the largest of the rate limiters: at most 10,000.
    pub sources: usize,
    /// Unknown addresses that have sent an ACK: at most 1,000.
    pub acknowledging_strangers: usize,
    /// Peers whose list was requested: at most 32.
    pub peer_list_requests: usize,
}
