//! The choice of the next effects: which hosts to connect to, and which pieces to request from them.

use std::ops::Range;
use std::time::Duration;

use super::source_state::{ConnectionState, SourceState};
use super::{CONNECTIONS_MAX, FencingToken, FetchEffect, FetchPlan, HostId, PieceState};

/// How many hosts are connected to at once when one is to send the whole file: the first to answer is used.
const RACING_HOSTS_MAX: usize = 3;
/// How long the transfer of one request should take, seconds; determines its size.
const REQUEST_TARGET_S: f64 = 0.25;
/// Most bytes per request, unless a single piece is larger.
pub(super) const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// At most one part in `UNSYNCED_DIVISOR` of the file is in flight or not yet synced: that much a kill of this process
/// would cost. The bounds keep it large enough to occupy all hosts, and no larger than is useful.
const UNSYNCED_DIVISOR: u64 = 32;
const UNSYNCED_BYTES_MIN: u64 = 8 << 20;
const UNSYNCED_BYTES_MAX: u64 = 128 << 20;
/// A host that has sent nothing for this long may lose its pieces to a host whose speed is known.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// A connection is not judged by its speed before it is this old.
pub(super) const SPEED_GRACE: Duration = Duration::from_secs(3);
/// A host slower than this fraction of the others' mean is dropped in favour of a host that has not been tried.
const SLOW_RATIO: f64 = 0.25;

impl FetchPlan {
    pub(super) fn piece_effects(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        self.disconnect_useless(effects);
        self.connect_range_hosts(now, effects);
        self.request_list(effects);
        self.request_pieces(now, effects);
        self.fall_back_to_whole(now, effects);
    }

    pub(super) fn whole_effects(&mut self, now: Duration, effects: &mut Vec<FetchEffect>) {
        self.disconnect_useless(effects);
        self.race_hosts(now, None, effects);
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
            self.hosts[id].is_busy = !self.hosts[id].requested.is_empty();
        }
    }

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

    fn outstanding_bytes(&self, id: HostId) -> u64 {
        let host = &self.hosts[id];
        let requested: u64 = host.requested.iter().map(|piece| self.layout.bytes(&(*piece..*piece + 1))).sum();
        requested.saturating_sub(host.unfinished_bytes)
    }

    fn next_token(&mut self) -> FencingToken {
        // u32::MAX marks a finished piece in the part file; there are never that many requests.
        self.last_token = self.last_token.saturating_add(1).min(FencingToken::MAX - 1);
        self.last_token
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

    /// Disconnects hosts that only send pieces which others have taken over, and banned hosts.
    fn disconnect_useless(&mut self, effects: &mut Vec<FetchEffect>) {
        for id in 0..self.hosts.len() {
            let host = &self.hosts[id];
            if (host.has_superseded_pieces && host.requested.is_empty()) || host.is_banned() {
                self.disconnect(id, effects);
            }
        }
    }

    /// Hosts to connect to, the most promising first: fewest failures, then fastest or untried, then listed order.
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

    pub(super) fn disconnect(&mut self, id: HostId, effects: &mut Vec<FetchEffect>) {
        if matches!(self.hosts[id].connection, ConnectionState::Opening | ConnectionState::Open) {
            self.hosts[id].connection = ConnectionState::Closing;
            effects.push(FetchEffect::Disconnect(id));
        }
    }
}
