//! What was dropped, and why; what was sent.

use std::fmt;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// It is no message.
    Malformed,
    /// Its TYPE is not known.
    UnknownType,
    /// Its source sends too many.
    TooMany,
    /// Its source is not the address that it names.
    WrongSource,
    /// Not from an IPv4 address.
    NotIpv4,
    /// Shown already.
    Repeated,
    /// A DM for somebody else.
    NotForUs,
    /// There are as many peers as are remembered.
    Full,
    /// An ACK of nothing that waits for one from there.
    StrayAck,
    /// The INSTANCE, or the address, of another peer.
    Taken,
    /// A USER_ID at a new PORT while the old one still answers.
    PortRefused,
    /// More changes of PORT at once than are looked into.
    TooManyChecks,
    /// A question for peers too many, or one that was broadcast.
    TooManyLists,
    /// A list of peers that was not asked for.
    Unasked,
    /// A message to a server or a probe.
    NotAPerson,
    /// It asks for answers that cannot be given: more than are queued, or to a port where none may go.
    Unanswerable,
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Cause; 16] = [
        Cause::Malformed,
        Cause::UnknownType,
        Cause::TooMany,
        Cause::WrongSource,
        Cause::NotIpv4,
        Cause::Repeated,
        Cause::NotForUs,
        Cause::Full,
        Cause::StrayAck,
        Cause::Taken,
        Cause::PortRefused,
        Cause::TooManyChecks,
        Cause::TooManyLists,
        Cause::Unasked,
        Cause::NotAPerson,
        Cause::Unanswerable,
    ];

    /// One word for tables and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Malformed => "malformed",
            Cause::UnknownType => "unknown-type",
            Cause::TooMany => "too-many",
            Cause::WrongSource => "wrong-source",
            Cause::NotIpv4 => "not-ipv4",
            Cause::Repeated => "repeated",
            Cause::NotForUs => "not-for-us",
            Cause::Full => "full",
            Cause::StrayAck => "stray-ack",
            Cause::Taken => "taken",
            Cause::PortRefused => "port-refused",
            Cause::TooManyChecks => "too-many-checks",
            Cause::TooManyLists => "too-many-lists",
            Cause::Unasked => "unasked",
            Cause::NotAPerson => "not-a-person",
            Cause::Unanswerable => "unanswerable",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a node has counted since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came, own broadcasts that came back among them.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Own broadcasts that came back.
    pub own: u64,
    /// Datagrams sent to one address.
    pub sent: u64,
    /// Broadcasts, one for each interface.
    pub broadcasts: u64,
    dropped: [u64; Cause::ALL.len()],
}

impl Counters {
    /// How many were dropped for this cause.
    pub fn dropped(&self, cause: Cause) -> u64 {
        self.dropped[cause as usize]
    }

    /// Every cause that occurred, and how often.
    pub fn drops(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        Cause::ALL.into_iter().map(|cause| (cause, self.dropped(cause))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn drop(&mut self, cause: Cause) {
        self.dropped[cause as usize] += 1;
    }
}

/// How many entries the tables of a node have. Each has a bound, whatever is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Known peers, at most 10,000.
    pub peers: usize,
    /// Their addresses, at most 8 each.
    pub addresses: usize,
    /// Messages that are not shown again, at most 200,000.
    pub seen: usize,
    /// Their senders, at most 10,000.
    pub senders: usize,
    /// DMs that wait to be acknowledged, at most 1,000.
    pub waiting: usize,
    /// Answers that are about to go, at most 10,000.
    pub answers: usize,
    /// Changes of PORT that are looked into, at most 100.
    pub checks: usize,
    /// Others that bear our name, at most 16.
    pub rivals: usize,
    /// Addresses that broadcast cannot reach, at most 64.
    pub invited: usize,
    /// Sources whose datagrams are counted, at most 10,000.
    pub sources: usize,
    /// Strangers that sent an ACK, at most 1,000.
    pub acked: usize,
    /// Peers whose list was asked for, at most 32.
    pub asked: usize,
}
