//! Decides which piece to request from which host: the rules of a fetch, without sockets, files or clocks.
//!
//! Events go in (a connection opened, a piece was verified, a host disconnected), effects come out. A piece is
//! requested from one host at a time; near the end a fast host takes over pieces that a slow one has not sent yet. Each
//! request carries a fencing token, a number that only grows: if two connections deliver the same piece, the one with
//! the later token may write it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::share::pieces::PieceLayout;

#[cfg(test)]
mod tests;

/// Most hosts that one fetch remembers.
pub const HOSTS_MAX: usize = 64;
/// Most hosts that send pieces at the same time.
pub const CONNECTIONS_MAX: usize = 4;
/// How many hosts are connected to at once when one is to send the whole file: the first to answer is used.
const RACING_HOSTS_MAX: usize = 3;
/// How long the transfer of one request should take, seconds; determines its size.
const REQUEST_TARGET_S: f64 = 0.25;
/// Most bytes per request, unless a single piece is larger.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// At most one part in `UNSYNCED_DIVISOR` of the file is in flight or not yet synced: that much a kill of this process
/// would cost. The bounds keep it large enough to occupy all hosts, and no larger than is useful.
const UNSYNCED_DIVISOR: u64 = 32;
const UNSYNCED_BYTES_MIN: u64 = 8 << 20;
const UNSYNCED_BYTES_MAX: u64 = 128 << 20;
/// Time constant of the moving average of a host's speed, and the shortest interval that is measured.
const SPEED_TIME_CONSTANT: Duration = Duration::from_millis(500);
const SPEED_SAMPLE_MIN: Duration = Duration::from_millis(20);
/// A host that has sent nothing for this long may lose its pieces to a host whose speed is known.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// A connection is not judged by its speed before it is this old.
const SPEED_GRACE: Duration = Duration::from_secs(3);
/// A host slower than this fraction of the others' mean is dropped in favour of a host that has not been tried.
const SLOW_RATIO: f64 = 0.25;
/// Delay before a host is tried again after its first failure; it doubles with each consecutive failure.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
/// Upper bound of the retry delay.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// Consecutive failures after which a host counts as offline.
const OFFLINE_FAILURES: u32 = 2;
/// Consecutive invalid deliveries after which a host is banned.
const INVALID_MAX: u32 = 5;

/// Index of a host, assigned by the caller: 0 to [`HOSTS_MAX`] - 1.
pub type HostId = usize;
/// Number of a request; see the module's description.
pub type FencingToken = u32;

/// How the content is transferred.
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
    /// Close the connection; [`FetchPlan::disconnected`] follows.
    Disconnect(HostId),
    /// Request the list of pieces (META).
    RequestList(HostId),
    /// Request consecutive pieces (RANGE).
    RequestPieces {
        /// The host to ask.
        host: HostId,
        /// Indices of the pieces.
        pieces: Range<usize>,
        /// Entitles the connection to write the pieces.
        token: FencingToken,
    },
    /// Request the whole file (GET). If the piece list is known, pieces are verified as they arrive.
    RequestWhole {
        /// The host to ask.
        host: HostId,
        /// Entitles the connection to write the pieces.
        token: FencingToken,
    },
}

/// Why a connection ended.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    Closed,
    Opening,
    Open,
    Closing,
}

#[derive(Debug, Clone)]
struct SourceState {
    supports_range: bool,
    /// The registry currently lists it as having the file.
    is_listed: bool,
    connection: ConnectionState,
    opened_at: Duration,
    /// Pieces in flight, in the order in which they will arrive.
    requested: VecDeque<usize>,
    /// When a request was last sent while none was in flight.
    requested_at: Duration,
    /// It will still send pieces that another host has taken over.
    has_superseded_pieces: bool,
    is_list_requested: bool,
    is_whole_requested: bool,
    /// It sends the whole file, and there is no piece list to verify it by.
    sends_unverified: bool,
    /// There was nothing to request from it.
    is_idle: bool,
    /// Bytes received of pieces that are not complete.
    unfinished_bytes: u64,
    /// Moving average of its speed; 0 if unknown.
    bytes_per_s: f64,
    measured_at: Duration,
    measured_bytes: u64,
    failures_in_row: u32,
    invalid_in_row: u32,
    retry_at: Duration,
}

impl SourceState {
    fn new() -> SourceState {
        SourceState {
            supports_range: false,
            is_listed: false,
            connection: ConnectionState::Closed,
            opened_at: Duration::ZERO,
            requested: VecDeque::new(),
            requested_at: Duration::ZERO,
            has_superseded_pieces: false,
            is_list_requested: false,
            is_whole_requested: false,
            sends_unverified: false,
            is_idle: true,
            unfinished_bytes: 0,
            bytes_per_s: 0.0,
            measured_at: Duration::ZERO,
            measured_bytes: 0,
            failures_in_row: 0,
            invalid_in_row: 0,
            retry_at: Duration::ZERO,
        }
    }

    fn is_banned(&self) -> bool {
        self.invalid_in_row >= INVALID_MAX
    }

    fn can_connect(&self, now: Duration) -> bool {
        self.connection == ConnectionState::Closed && self.is_listed && !self.is_banned() && self.retry_at <= now
    }

    /// Whether it is connected, or can be expected to accept a connection.
    fn is_usable(&self) -> bool {
        self.connection == ConnectionState::Open
            || (self.is_listed && !self.is_banned() && self.failures_in_row < OFFLINE_FAILURES)
    }

    fn begin_request(&mut self, now: Duration) {
        if self.requested.is_empty() {
            self.requested_at = now;
        }
        // Idle time must not count against its speed.
        if std::mem::take(&mut self.is_idle) {
            (self.measured_at, self.measured_bytes) = (now, 0);
        }
    }
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
                self.hosts.push(SourceState::new());
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
        self.hosts.get(id).is_some_and(|host| host.failures_in_row >= OFFLINE_FAILURES)
    }

    /// Drops a host's state, so that its id can be given to another host.
    pub fn forget_host(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            *host = SourceState::new();
        }
    }

    /// The host has another address now: failures at the old one no longer count.
    pub fn host_moved(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            (host.failures_in_row, host.retry_at) = (0, Duration::ZERO);
        }
    }

    /// Pauses or resumes. While paused, connections are closed and nothing is requested. Resuming clears all failures
    /// and bans.
    pub fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
        if !is_paused {
            for host in &mut self.hosts {
                (host.failures_in_row, host.invalid_in_row, host.retry_at) = (0, 0, Duration::ZERO);
            }
        }
    }

    /// A connection has been established.
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
        let host = &mut self.hosts[id];
        host.unfinished_bytes += bytes;
        host.measured_bytes += bytes;
        let elapsed = now.saturating_sub(host.measured_at);
        let is_idle = host.requested.is_empty() && !host.is_whole_requested;
        if elapsed < SPEED_SAMPLE_MIN || is_idle {
            return;
        }
        let bytes_per_s = host.measured_bytes as f64 / elapsed.as_secs_f64();
        // The first sample stands alone; the longer the interval, the less the earlier average weighs.
        let old_weight = if host.bytes_per_s == 0.0 {
            0.0
        } else {
            (-elapsed.as_secs_f64() / SPEED_TIME_CONSTANT.as_secs_f64()).exp()
        };
        host.bytes_per_s = host.bytes_per_s * old_weight + bytes_per_s * (1.0 - old_weight);
        (host.measured_at, host.measured_bytes) = (now, 0);
    }

    /// A piece has arrived in full, with or without the right digest.
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

    /// Pieces have been synced to disk.
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
            host.failures_in_row = host.failures_in_row.saturating_add(1);
            if fault == SourceFault::Invalid {
                // A whole file is expensive, so it gets only one more attempt, in case the network corrupted it.
                host.invalid_in_row += if host.is_whole_requested { INVALID_MAX.div_ceil(2) } else { 1 };
            }
            let pause = RETRY_DELAY_MIN.saturating_mul(1 << (host.failures_in_row - 1).min(16));
            host.retry_at = now + pause.min(RETRY_DELAY_MAX);
        }
        host.connection = ConnectionState::Closed;
        (host.is_list_requested, host.is_whole_requested, host.has_superseded_pieces) = (false, false, false);
        (host.sends_unverified, host.is_idle, host.unfinished_bytes) = (false, true, 0);
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
            self.disconnect_useless(&mut effects);
            self.connect_range_hosts(now, &mut effects);
            self.request_list(&mut effects);
            self.request_pieces(now, &mut effects);
            self.fall_back_to_whole(now, &mut effects);
        } else {
            self.request_whole(now, &mut effects);
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

    /// How the content is transferred.
    pub fn mode(&self) -> TransferMode {
        self.mode
    }

    /// Whether the file was received whole, or was in its final place already.
    pub fn is_whole_received(&self) -> bool {
        self.is_whole_verified
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether data is missing and no host is connected or can be expected to accept a connection.
    pub fn has_no_usable_host(&self) -> bool {
        !self.is_received() && !self.hosts.iter().any(SourceState::is_usable)
    }

    /// Whether hosts are listed, and all of them are banned.
    pub fn is_every_host_banned(&self) -> bool {
        let mut listed = self.hosts.iter().filter(|host| host.is_listed).peekable();
        listed.peek().is_some() && listed.all(SourceState::is_banned)
    }

    /// Whether a connection is established.
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

    fn next_token(&mut self) -> FencingToken {
        // u32::MAX marks a finished piece in the part file; there are never that many requests.
        self.last_token = self.last_token.saturating_add(1).min(FencingToken::MAX - 1);
        self.last_token
    }

    fn disconnect(&mut self, id: HostId, effects: &mut Vec<FetchEffect>) {
        if matches!(self.hosts[id].connection, ConnectionState::Opening | ConnectionState::Open) {
            self.hosts[id].connection = ConnectionState::Closing;
            effects.push(FetchEffect::Disconnect(id));
        }
    }

    /// Disconnects hosts that only send pieces which others have taken over, and banned hosts.
    fn disconnect_useless(&mut self, effects: &mut Vec<FetchEffect>) {
        for id in 0..self.hosts.len() {
            let host = &self.hosts[id];
            if (host.has_superseded_pieces && host.requested.is_empty()) || host.is_banned() {
                self.disconnect(id, effects);
            }
        }
    }

    /// Hosts that may be connected to, most promising first: fewest failures, then fastest or untried, then in listed
    /// order.
    fn candidates(&self, now: Duration, supports_range: Option<bool>) -> Vec<HostId> {
        let fits = |host: &SourceState| supports_range.is_none_or(|required| host.supports_range == required);
        let mut found: Vec<HostId> =
            (0..self.hosts.len()).filter(|id| fits(&self.hosts[*id]) && self.hosts[*id].can_connect(now)).collect();
        let rank = |id: &HostId| {
            let host = &self.hosts[*id];
            let slowness = if host.bytes_per_s > 0.0 { 1.0 / host.bytes_per_s } else { 0.0 };
            (host.failures_in_row, slowness)
        };
        found.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        found
    }

    fn connect(&mut self, id: HostId, effects: &mut Vec<FetchEffect>) {
        self.hosts[id].connection = ConnectionState::Opening;
        effects.push(FetchEffect::Connect(id));
    }

    fn connect_range_hosts(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        let connected =
            self.hosts.iter().filter(|host| host.supports_range && host.connection != ConnectionState::Closed).count();
        let candidates = self.candidates(now, Some(true));
        for id in candidates.iter().take(CONNECTIONS_MAX.saturating_sub(connected)) {
            self.connect(*id, effects);
        }
        if connected >= CONNECTIONS_MAX
            && candidates.iter().any(|id| self.hosts[*id].bytes_per_s == 0.0 && self.hosts[*id].failures_in_row == 0)
            && let Some(slow) = self.slow_host(now)
        {
            self.disconnect(slow, effects);
        }
    }

    /// The slowest connected host, if it is far slower than the others.
    fn slow_host(&self, now: Duration) -> Option<HostId> {
        let is_judged = |id: &HostId| {
            let host = &self.hosts[*id];
            host.connection == ConnectionState::Open && now.saturating_sub(host.opened_at) >= SPEED_GRACE
        };
        let bytes_per_s = |id: &HostId| self.hosts[*id].bytes_per_s;
        let active: Vec<HostId> = (0..self.hosts.len()).filter(is_judged).collect();
        let slowest = active.iter().copied().min_by(|a, b| bytes_per_s(a).total_cmp(&bytes_per_s(b)))?;
        let others = active.len() - 1;
        let total: f64 = active.iter().filter(|id| **id != slowest).map(bytes_per_s).sum();
        (others > 0 && bytes_per_s(&slowest) < SLOW_RATIO * total / others as f64).then_some(slowest)
    }

    fn request_list(&mut self, effects: &mut Vec<FetchEffect>) {
        if self.has_list || self.hosts.iter().any(|host| host.is_list_requested) {
            return;
        }
        let first = self.hosts.iter().position(|host| host.connection == ConnectionState::Open && host.supports_range);
        if let Some(id) = first {
            self.hosts[id].is_list_requested = true;
            effects.push(FetchEffect::RequestList(id));
        }
    }

    fn request_pieces(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        // A host that sends the whole file unverified may still write anywhere: no pieces until it is gone.
        if !self.has_list || self.hosts.iter().any(|host| host.sends_unverified) {
            return;
        }
        let is_ready = |host: &SourceState| {
            host.connection == ConnectionState::Open && host.supports_range && !host.has_superseded_pieces
        };
        let mut ready: Vec<HostId> = (0..self.hosts.len()).filter(|id| is_ready(&self.hosts[*id])).collect();
        ready.sort_by(|a, b| self.hosts[*b].bytes_per_s.total_cmp(&self.hosts[*a].bytes_per_s));
        let unsynced_max = (self.layout.size() / UNSYNCED_DIVISOR).clamp(UNSYNCED_BYTES_MIN, UNSYNCED_BYTES_MAX);
        let unsynced_bytes = (self.unsynced_count - self.unverified_count) as u64 * self.layout.piece_size();
        let mut at_risk_bytes =
            unsynced_bytes + (0..self.hosts.len()).map(|id| self.outstanding_bytes(id)).sum::<u64>();
        for id in ready {
            while at_risk_bytes < unsynced_max {
                let Some(pieces) = self.next_pieces(id, now) else { break };
                at_risk_bytes += self.layout.bytes(&pieces);
                self.hosts[id].begin_request(now);
                for piece in pieces.clone() {
                    self.pieces[piece] = PieceState::Requested(id);
                    self.hosts[id].requested.push_back(piece);
                }
                let token = self.next_token();
                effects.push(FetchEffect::RequestPieces { host: id, pieces, token });
            }
            self.hosts[id].is_idle = self.hosts[id].requested.is_empty();
        }
    }

    /// The pieces to request from a host next, if any.
    fn next_pieces(&mut self, id: HostId, now: Duration) -> Option<Range<usize>> {
        let host = &self.hosts[id];
        let piece_size = self.layout.piece_size();
        let request_bytes =
            ((host.bytes_per_s * REQUEST_TARGET_S) as u64).clamp(piece_size, REQUEST_BYTES_MAX.max(piece_size));
        // Up to two requests in flight, so that no host ever waits for us.
        if self.outstanding_bytes(id) > request_bytes {
            return None;
        }
        if self.missing_count == 0 {
            return self.piece_to_take_over(id, now).map(|piece| {
                if let PieceState::Requested(other) = self.pieces[piece] {
                    self.supersede(other, piece);
                }
                piece..piece + 1
            });
        }
        let is_missing = |piece: &usize| self.pieces[*piece] == PieceState::Missing;
        let first = (self.search_from..self.pieces.len()).find(is_missing)?;
        let pieces_max = usize::try_from(request_bytes / piece_size).unwrap_or(1).max(1);
        let end = (first..self.pieces.len()).take(pieces_max).take_while(is_missing).last()? + 1;
        self.search_from = end;
        self.missing_count -= end - first;
        Some(first..end)
    }

    /// Bytes requested from a host that have not arrived.
    fn outstanding_bytes(&self, id: HostId) -> u64 {
        let host = &self.hosts[id];
        let requested: u64 = host.requested.iter().map(|piece| self.layout.bytes(&(*piece..*piece + 1))).sum();
        requested.saturating_sub(host.unfinished_bytes)
    }

    /// The piece that would arrive last from other hosts, if this host can deliver it in less than half that time.
    fn piece_to_take_over(&self, id: HostId, now: Duration) -> Option<usize> {
        let own = &self.hosts[id];
        if own.bytes_per_s == 0.0 {
            return None;
        }
        let own_outstanding = self.outstanding_bytes(id) as f64;
        let mut last: Option<(usize, f64)> = None;
        for (other, host) in self.hosts.iter().enumerate().filter(|(other, _)| *other != id) {
            let Some(piece) = host.requested.back().copied() else { continue };
            let is_silent = now.saturating_sub(host.requested_at.max(host.measured_at)) >= SILENCE_MAX;
            let arrives_in_s = match host.bytes_per_s {
                bytes_per_s if bytes_per_s > 0.0 => self.outstanding_bytes(other) as f64 / bytes_per_s,
                _ if is_silent || now.saturating_sub(host.requested_at) >= SILENCE_MAX => f64::INFINITY,
                _ => continue,
            };
            if last.is_none_or(|(_, latest)| arrives_in_s > latest) {
                last = Some((piece, arrives_in_s));
            }
        }
        let (piece, arrives_in_s) = last?;
        let own_arrival_s = (own_outstanding + self.layout.bytes(&(piece..piece + 1)) as f64) / own.bytes_per_s;
        (arrives_in_s > 2.0 * own_arrival_s).then_some(piece)
    }

    /// If no host that supports RANGE is usable, requests the whole file from one that only supports GET.
    fn fall_back_to_whole(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        if self.hosts.iter().any(|host| host.supports_range && host.connection == ConnectionState::Open) {
            let others: Vec<HostId> = (0..self.hosts.len()).filter(|id| !self.hosts[*id].supports_range).collect();
            others.into_iter().for_each(|id| self.disconnect(id, effects));
        } else if !self.hosts.iter().any(|host| host.supports_range && host.is_usable()) {
            self.race_hosts(now, Some(false), effects);
        }
    }

    fn request_whole(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        (0..self.hosts.len()).filter(|id| self.hosts[*id].is_banned()).collect::<Vec<_>>().into_iter().for_each(|id| {
            self.disconnect(id, effects);
        });
        self.race_hosts(now, None, effects);
    }

    /// Connects to a few hosts at once; the first to connect sends the whole file, the others are disconnected.
    fn race_hosts(&mut self, now: Duration, supports_range: Option<bool>, effects: &mut Vec<FetchEffect>) {
        let fits = |host: &SourceState| supports_range.is_none_or(|required| host.supports_range == required);
        let ids: Vec<HostId> = (0..self.hosts.len()).filter(|id| fits(&self.hosts[*id])).collect();
        let sends = |id: &HostId| self.hosts[*id].is_whole_requested;
        let first = ids.iter().copied().find(sends).or_else(|| {
            let found = ids.iter().copied().find(|id| self.hosts[*id].connection == ConnectionState::Open)?;
            self.hosts[found].begin_request(now);
            (self.hosts[found].is_whole_requested, self.hosts[found].sends_unverified) = (true, !self.has_list);
            let token = self.next_token();
            effects.push(FetchEffect::RequestWhole { host: found, token });
            Some(found)
        });
        if let Some(first) = first {
            ids.into_iter().filter(|id| *id != first).for_each(|id| self.disconnect(id, effects));
            return;
        }
        let active = ids.iter().filter(|id| self.hosts[**id].connection != ConnectionState::Closed).count();
        for id in self.candidates(now, supports_range).into_iter().take(RACING_HOSTS_MAX.saturating_sub(active)) {
            self.connect(id, effects);
        }
    }
}
