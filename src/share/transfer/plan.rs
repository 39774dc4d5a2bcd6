//! Decides which piece to request from which host: the rules of a fetch, without sockets, files or clocks.
//!
//! Events go in (a connection opened, a piece was verified, a host disconnected), effects come out. A piece is
//! requested from one host at a time; near the end a fast host takes over pieces that a slow one has not sent yet. Each
//! request carries a fencing token, a number that only grows: if two connections deliver the same piece, the one with
//! the later token may write it.

use std::ops::Range;
use std::time::Duration;

use crate::share::pieces::PieceLayout;

mod requests;
mod source_state;
#[cfg(test)]
mod tests;

use source_state::{ConnectionState, SourceState};

/// Most hosts that one fetch remembers.
pub const HOSTS_MAX: usize = 64;
/// Most hosts that send pieces at the same time.
pub const CONNECTIONS_MAX: usize = 4;

/// Index of a host, assigned by the caller: 0 to [`HOSTS_MAX`] - 1.
pub type HostId = usize;
/// Number of a request; see the module's description.
pub type FencingToken = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMode {
    /// In pieces that are verified one by one; needs the root of the piece list.
    Pieces,
    /// In one go, from one host.
    Whole,
}

/// What the caller has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchEffect {
    /// Open a connection to the host; [`FetchPlan::connected`] or [`FetchPlan::disconnected`] follows.
    Connect(HostId),
    Disconnect(HostId),
    /// Request the list of pieces (META).
    RequestList(HostId),
    /// Request consecutive pieces (RANGE).
    RequestPieces {
        host: HostId,
        pieces: Range<usize>,
        token: FencingToken,
    },
    /// Request the whole file (GET). If the piece list is known, pieces are verified as they arrive.
    RequestWhole {
        host: HostId,
        token: FencingToken,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFault {
    /// It could not be established, or broke.
    Lost,
    /// The host sent something invalid.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PieceState {
    Missing,
    Requested(HostId),
    /// Received and matching its digest.
    Verified,
    /// Verified and on disk.
    Synced,
}

/// The state of a fetch: its pieces, the requests in flight, and what is known of the hosts.
#[derive(Debug)]
pub struct FetchPlan {
    layout: PieceLayout,
    mode: TransferMode,
    has_list: bool,
    pieces: Vec<PieceState>,
    /// Index before which no piece is missing.
    search_from: usize,
    missing_count: usize,
    unverified_count: usize,
    unsynced_count: usize,
    is_whole_verified: bool,
    hosts: Vec<SourceState>,
    last_token: FencingToken,
    is_paused: bool,
}

impl FetchPlan {
    /// `is_synced` says which pieces are on disk already; `has_list`, whether the piece list is known.
    pub fn new(
        layout: PieceLayout,
        mode: TransferMode,
        has_list: bool,
        is_synced: impl Fn(usize) -> bool,
    ) -> FetchPlan {
        let count = if mode == TransferMode::Pieces { layout.count() } else { 0 };
        let pieces: Vec<PieceState> =
            (0..count).map(|i| if is_synced(i) { PieceState::Synced } else { PieceState::Missing }).collect();
        let missing_count = pieces.iter().filter(|piece| **piece == PieceState::Missing).count();
        FetchPlan {
            layout,
            mode,
            has_list,
            pieces,
            search_from: 0,
            missing_count,
            unverified_count: missing_count,
            unsynced_count: missing_count,
            is_whole_verified: layout.size() == 0,
            hosts: Vec::new(),
            last_token: 0,
            is_paused: false,
        }
    }

    /// Sets the hosts that the registry currently lists, each with whether it supports RANGE.
    pub fn set_listed_hosts(&mut self, listed: &[(HostId, bool)]) {
        for host in &mut self.hosts {
            host.is_listed = false;
        }
        for (id, supports_range) in listed.iter().copied().filter(|(id, _)| *id < HOSTS_MAX) {
            while self.hosts.len() <= id {
                self.hosts.push(SourceState::default());
            }
            (self.hosts[id].is_listed, self.hosts[id].supports_range) = (true, supports_range);
        }
    }

    /// Whether a host's state may be dropped: it has no connection and is not banned.
    pub fn can_forget_host(&self, id: HostId) -> bool {
        self.hosts.get(id).is_none_or(|host| host.connection == ConnectionState::Closed && !host.is_banned())
    }

    /// Whether the host has failed too often in a row to count as reachable.
    pub fn is_offline(&self, id: HostId) -> bool {
        self.hosts.get(id).is_some_and(SourceState::is_offline)
    }

    /// Drops a host's state, so that its id can be given to another host.
    pub fn forget_host(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            *host = SourceState::default();
        }
    }

    /// The host has another address now: failures at the old one no longer count.
    pub fn host_moved(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            (host.failures_in_row, host.retry_at) = (0, Duration::ZERO);
        }
    }

    /// While paused, connections are closed and nothing is requested. Resuming clears all failures and bans.
    pub fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
        if !is_paused {
            for host in &mut self.hosts {
                (host.failures_in_row, host.invalid_in_row, host.retry_at) = (0, 0, Duration::ZERO);
            }
        }
    }

    pub fn connected(&mut self, id: HostId, now: Duration) {
        let host = &mut self.hosts[id];
        if host.connection == ConnectionState::Opening {
            (host.connection, host.opened_at) = (ConnectionState::Open, now);
        }
    }

    /// The piece list has arrived and matches its root.
    pub fn list_received(&mut self) {
        self.has_list = true;
        for host in &mut self.hosts {
            host.is_list_requested = false;
        }
    }

    /// Bytes of wanted pieces arrived from a host.
    pub fn bytes_received(&mut self, id: HostId, bytes: u64, now: Duration) {
        self.hosts[id].record_bytes(bytes, now);
    }

    pub fn piece_received(&mut self, id: HostId, piece: usize, is_valid: bool) {
        let bytes = self.layout.bytes(&(piece..piece + 1));
        let host = &mut self.hosts[id];
        host.unfinished_bytes = host.unfinished_bytes.saturating_sub(bytes);
        host.requested.retain(|requested| *requested != piece);
        if is_valid {
            (host.failures_in_row, host.invalid_in_row) = (0, 0);
            let was = std::mem::replace(&mut self.pieces[piece], PieceState::Verified);
            match was {
                PieceState::Missing => self.missing_count -= 1,
                PieceState::Requested(other) if other != id => self.supersede(other, piece),
                PieceState::Requested(_) => {}
                PieceState::Verified => return,
                PieceState::Synced => {
                    self.pieces[piece] = PieceState::Synced;
                    return;
                }
            }
            self.unverified_count -= 1;
        } else {
            host.invalid_in_row += 1;
            if self.pieces[piece] == PieceState::Requested(id) {
                self.mark_missing(piece);
            }
        }
    }

    /// The whole file has arrived, and matches its digest if one is known.
    pub fn whole_received(&mut self, id: HostId) {
        (self.hosts[id].is_whole_requested, self.is_whole_verified) = (false, true);
    }

    /// The finished file is in its final place already: nothing is to be requested.
    pub fn already_in_place(&mut self) {
        self.is_whole_verified = true;
    }

    pub fn pieces_synced(&mut self, pieces: &[usize]) {
        for piece in pieces {
            if self.pieces[*piece] == PieceState::Verified {
                self.pieces[*piece] = PieceState::Synced;
                self.unsynced_count -= 1;
            }
        }
    }

    /// Verified pieces could not be synced: they have to be fetched again.
    pub fn sync_failed(&mut self, pieces: &[usize]) {
        for piece in pieces {
            if self.pieces[*piece] == PieceState::Verified {
                self.mark_missing(*piece);
                self.unverified_count += 1;
            }
        }
    }

    /// A connection has ended or could not be established. Returns whether that counts as a failure of the host: not if
    /// we closed it.
    pub fn disconnected(&mut self, id: HostId, fault: SourceFault, now: Duration) -> bool {
        let host = &mut self.hosts[id];
        let was_closing = host.connection == ConnectionState::Closing;
        if !was_closing {
            host.record_failure(fault, now);
        }
        host.connection = ConnectionState::Closed;
        (host.is_list_requested, host.is_whole_requested, host.has_superseded_pieces) = (false, false, false);
        (host.sends_unverified, host.is_busy, host.unfinished_bytes) = (false, false, 0);
        for piece in std::mem::take(&mut host.requested) {
            self.mark_missing(piece);
        }
        !was_closing
    }

    /// What to do now. Each effect is returned once.
    pub fn next_effects(&mut self, now: Duration) -> Vec<FetchEffect> {
        let mut effects = Vec::new();
        if self.is_paused || self.is_received() {
            (0..self.hosts.len()).for_each(|id| self.disconnect(id, &mut effects));
        } else if self.mode == TransferMode::Pieces {
            self.piece_effects(now, &mut effects);
        } else {
            self.whole_effects(now, &mut effects);
        }
        effects
    }

    /// Whether everything has been received and verified, though perhaps not synced.
    pub fn is_received(&self) -> bool {
        self.is_whole_verified || (self.mode == TransferMode::Pieces && self.unverified_count == 0)
    }

    /// Whether every piece is on disk. Never true of a file that was received whole, without a piece list.
    pub fn is_synced(&self) -> bool {
        self.mode == TransferMode::Pieces && self.unsynced_count == 0
    }

    pub fn mode(&self) -> TransferMode {
        self.mode
    }

    /// Whether the file was received whole, or was in its final place already.
    pub fn is_whole_received(&self) -> bool {
        self.is_whole_verified
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether data is missing and no host is connected or can be expected to accept a connection.
    pub fn has_no_usable_host(&self) -> bool {
        !self.is_received() && !self.hosts.iter().any(SourceState::is_usable)
    }

    pub fn is_every_host_banned(&self) -> bool {
        let mut listed = self.hosts.iter().filter(|host| host.is_listed).peekable();
        listed.peek().is_some() && listed.all(SourceState::is_banned)
    }

    pub fn has_open_connection(&self) -> bool {
        self.hosts.iter().any(|host| host.connection == ConnectionState::Open)
    }

    /// Whether any connection is established, being established or being closed.
    pub fn has_connections(&self) -> bool {
        self.hosts.iter().any(|host| host.connection != ConnectionState::Closed)
    }

    /// Bytes received, those of incomplete pieces included.
    pub fn downloaded_bytes(&self) -> u64 {
        if self.is_received() {
            return self.layout.size();
        }
        let right = |piece: &usize| matches!(self.pieces[*piece], PieceState::Verified | PieceState::Synced);
        let finished: u64 = (0..self.pieces.len()).filter(right).map(|i| self.layout.bytes(&(i..i + 1))).sum();
        let unfinished_bytes: u64 = self.hosts.iter().map(|host| host.unfinished_bytes).sum();
        finished.saturating_add(unfinished_bytes).min(self.layout.size())
    }

    fn mark_missing(&mut self, piece: usize) {
        self.pieces[piece] = PieceState::Missing;
        self.missing_count += 1;
        self.search_from = self.search_from.min(piece);
    }

    /// Another host has delivered the piece or will: what this one still sends of it is wasted.
    fn supersede(&mut self, id: HostId, piece: usize) {
        let host = &mut self.hosts[id];
        host.requested.retain(|requested| *requested != piece);
        host.has_superseded_pieces = true;
    }
}
