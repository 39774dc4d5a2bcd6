//! Counters of datagrams, the causes of drops, and the sizes of tables.

use crate::model::named;

named! {
    /// Why a datagram was dropped.
    #[derive(Hash, PartialOrd, Ord)]
    pub enum DropCause {
        /// It cannot be decoded.
        Malformed = "malformed",
        UnknownType = "unknown-type",
        /// Its source exceeds the rate limit.
        TooMany = "too-many",
        /// It names a sender address that is not its source.
        WrongSource = "wrong-source",
        /// Its source is not an IPv4 address.
        NotIpv4 = "not-ipv4",
        /// The message was received before.
        Repeated = "repeated",
        /// A DM to somebody else.
        NotForUs = "not-for-us",
        /// The peer table is full.
        Full = "full",
        /// An ACK for which no DM to that address waits.
        StrayAck = "stray-ack",
        /// It claims the INSTANCE or the address of another peer.
        Taken = "taken",
        /// It claims a USER_ID with a new PORT while the peer still answers at the old one.
        PortRefused = "port-refused",
        /// There are too many port checks under way.
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

/// What a node has counted since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Received datagrams, including our own broadcasts.
    pub received: u64,
    /// Bytes of the received datagrams.
    pub received_bytes: u64,
    /// Received broadcasts that were our own.
    pub own: u64,
    /// Datagrams sent to one address.
    pub sent: u64,
    /// Broadcasts sent, counted per interface.
    pub broadcasts: u64,
    dropped: [u64; DropCause::ALL.len()],
}

impl NodeCounters {
    pub fn dropped(&self, cause: DropCause) -> u64 {
        self.dropped[cause as usize]
    }

    /// Every cause that has occurred, with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.iter().copied().map(|cause| (cause, self.dropped(cause))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn count_drop(&mut self, cause: DropCause) {
        self.dropped[cause as usize] += 1;
    }
}

/// The number of entries of each of a node's tables. All are bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSizes {
    /// Known peers: at most 10,000.
    pub peers: usize,
    /// Addresses of known peers: at most 8 each.
    pub addresses: usize,
    /// Messages whose repeats are dropped: at most 200,000.
    pub seen: usize,
    /// Senders of those messages: at most 10,000.
    pub senders: usize,
    /// DMs that wait for an ACK: at most 1,000.
    pub pending_dms: usize,
    /// Unicast announcements that wait to be sent: at most 10,000.
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
