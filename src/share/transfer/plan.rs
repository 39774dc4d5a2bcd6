//! Which piece is asked of whom next: the rules of a fetch, without sockets, files or clocks.
//!
//! Events come in (a connection is open, a piece was right, a host is gone), steps come out. A piece is asked of
//! one host at a time; near the end a fast host takes over what a slow one has not sent yet. Each asking has a
//! turn, a number that only grows: where two connections hold the same piece, the later turn may write it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::share::pieces::Layout;

#[cfg(test)]
mod tests;

/// Most hosts that are known to one fetch.
pub const HOSTS_MAX: usize = 64;
/// Most hosts that send at the same time.
pub const LANES_MAX: usize = 4;
/// How many are tried at once where one is to send the whole: the first that answers is it.
const RACE: usize = 3;
/// How long what is asked for at a time shall take.
const ASKED_FOR: f64 = 0.25;
/// Most bytes asked for at a time, but for a piece that is larger.
const ASKED_MAX: u64 = 8 << 20;
/// At most this part of the file is under way or not yet synced: what a kill of this process would cost. Not less
/// than is needed to keep everybody at work, nor more than is of any use.
const UNSAFE_PART: u64 = 32;
const UNSAFE_MIN: u64 = 8 << 20;
const UNSAFE_MAX: u64 = 128 << 20;
/// Over how long a host's speed is averaged, and what is too short to measure it by.
const SPEED_OVER: Duration = Duration::from_millis(500);
const SPEED_MEASURED: Duration = Duration::from_millis(20);
/// A host that has sent nothing for so long may have its pieces taken over by one whose speed is known.
const SILENT: Duration = Duration::from_secs(1);
/// A connection's speed counts against it after so long.
const JUDGED_AFTER: Duration = Duration::from_secs(3);
/// A host that is slower than this part of the others' mean gives way to one that was not tried.
const TOO_SLOW: f64 = 0.25;
/// The first pause before a host is tried again; it doubles with each failure in a row.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A host that failed as often in a row counts as offline.
const OFFLINE_AFTER: u32 = 2;
/// A host that sent something wrong as often in a row is not asked again.
const WRONG_MAX: u32 = 5;

/// A host, as the caller numbers them: from 0, at most [`HOSTS_MAX`].
pub type HostId = usize;
/// The number of an asking.
pub type Turn = u32;

/// How the content is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In pieces, each checked: their root is known.
    Pieces,
    /// In one go from one host.
    Whole,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Connect to a host.
    Open(HostId),
    /// Cut the connection; [`Plan::over`] follows.
    Close(HostId),
    /// Ask for the list of pieces.
    AskList(HostId),
    /// Ask for pieces that follow each other.
    Ask {
        /// Of whom.
        host: HostId,
        /// Which.
        pieces: Range<usize>,
        /// Whose turn it is to write them.
        turn: Turn,
    },
    /// Ask for the file from its beginning; with a list its pieces are checked as they come.
    AskWhole {
        /// Of whom.
        host: HostId,
        /// As above.
        turn: Turn,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It could not be had, or broke.
    Lost,
    /// What came was not what was promised.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Missing,
    Asked(HostId),
    /// Here and checked.
    Right,
    /// And synced.
    Good,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Closed,
    Opening,
    Open,
    Closing,
}

#[derive(Debug, Clone)]
struct Host {
    takes_range: bool,
    /// The registry shows it at present.
    is_listed: bool,
    line: Line,
    opened_at: Duration,
    /// The pieces that are to come from it, in their order.
    asked: VecDeque<usize>,
    /// When it was last asked while nothing was to come.
    asked_at: Duration,
    /// Something is still to come that another was asked for meanwhile.
    has_lost_some: bool,
    is_asked_list: bool,
    is_asked_whole: bool,
    /// It sends all, and no list says which of it is right.
    is_unchecked: bool,
    /// There was nothing to ask it for.
    is_idle: bool,
    /// Bytes that came and belong to no finished piece.
    unfinished: u64,
    /// Bytes a second; 0 where not known.
    speed: f64,
    measured_at: Duration,
    measured_bytes: u64,
    failures_in_row: u32,
    wrong_in_row: u32,
    not_before: Duration,
}

impl Host {
    fn new() -> Host {
        Host {
            takes_range: false,
            is_listed: false,
            line: Line::Closed,
            opened_at: Duration::ZERO,
            asked: VecDeque::new(),
            asked_at: Duration::ZERO,
            has_lost_some: false,
            is_asked_list: false,
            is_asked_whole: false,
            is_unchecked: false,
            is_idle: true,
            unfinished: 0,
            speed: 0.0,
            measured_at: Duration::ZERO,
            measured_bytes: 0,
            failures_in_row: 0,
            wrong_in_row: 0,
            not_before: Duration::ZERO,
        }
    }

    fn is_banned(&self) -> bool {
        self.wrong_in_row >= WRONG_MAX
    }

    fn may_be_opened(&self, now: Duration) -> bool {
        self.line == Line::Closed && self.is_listed && !self.is_banned() && self.not_before <= now
    }

    /// Whether something may come of it soon.
    fn is_usable(&self) -> bool {
        self.line == Line::Open || (self.is_listed && !self.is_banned() && self.failures_in_row < OFFLINE_AFTER)
    }

    fn begin_asking(&mut self, now: Duration) {
        if self.asked.is_empty() {
            self.asked_at = now;
        }
        // Time without anything to send says nothing of its speed.
        if std::mem::take(&mut self.is_idle) {
            (self.measured_at, self.measured_bytes) = (now, 0);
        }
    }
}

/// What is had, what is asked of whom, and what is known of the hosts.
#[derive(Debug)]
pub struct Plan {
    layout: Layout,
    way: Way,
    has_list: bool,
    pieces: Vec<Piece>,
    /// No piece before it is missing.
    search_from: usize,
    missing: usize,
    not_right: usize,
    not_good: usize,
    whole_is_right: bool,
    hosts: Vec<Host>,
    last_turn: Turn,
    is_held: bool,
}

impl Plan {
    /// The pieces that `is_good` names are here already. `has_list`: so is the list of all.
    pub fn new(layout: Layout, way: Way, has_list: bool, is_good: impl Fn(usize) -> bool) -> Plan {
        let count = if way == Way::Pieces { layout.count() } else { 0 };
        let pieces: Vec<Piece> = (0..count).map(|i| if is_good(i) { Piece::Good } else { Piece::Missing }).collect();
        let missing = pieces.iter().filter(|piece| **piece == Piece::Missing).count();
        Plan {
            layout,
            way,
            has_list,
            pieces,
            search_from: 0,
            missing,
            not_right: missing,
            not_good: missing,
            whole_is_right: layout.size() == 0,
            hosts: Vec::new(),
            last_turn: 0,
            is_held: false,
        }
    }

    /// The hosts that the registry shows at present, and whether they take RANGE.
    pub fn offer(&mut self, shown: &[(HostId, bool)]) {
        for host in &mut self.hosts {
            host.is_listed = false;
        }
        for (id, takes_range) in shown.iter().copied().filter(|(id, _)| *id < HOSTS_MAX) {
            while self.hosts.len() <= id {
                self.hosts.push(Host::new());
            }
            (self.hosts[id].is_listed, self.hosts[id].takes_range) = (true, takes_range);
        }
    }

    /// Whether nothing would be lost with what is known of a host: it is not asked anything, and it did nothing that
    /// is to be held against it for good.
    pub fn may_be_forgotten(&self, id: HostId) -> bool {
        self.hosts.get(id).is_none_or(|host| host.line == Line::Closed && !host.is_banned())
    }

    /// Whether it failed too often to be tried at once.
    pub fn is_offline(&self, id: HostId) -> bool {
        self.hosts.get(id).is_some_and(|host| host.failures_in_row >= OFFLINE_AFTER)
    }

    /// Another host has its number from now on.
    pub fn forget(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            *host = Host::new();
        }
    }

    /// The host has another address now: what failed at the old one says nothing.
    pub fn moved(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            (host.failures_in_row, host.not_before) = (0, Duration::ZERO);
        }
    }

    /// Nothing is asked, and all connections close, until it goes on; then nothing counts against anybody.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
        if !is_held {
            for host in &mut self.hosts {
                (host.failures_in_row, host.wrong_in_row, host.not_before) = (0, 0, Duration::ZERO);
            }
        }
    }

    /// The connection is there.
    pub fn opened(&mut self, id: HostId, now: Duration) {
        let host = &mut self.hosts[id];
        if host.line == Line::Opening {
            (host.line, host.opened_at) = (Line::Open, now);
        }
    }

    /// The list of pieces has come and is the right one.
    pub fn listed(&mut self) {
        self.has_list = true;
        for host in &mut self.hosts {
            host.is_asked_list = false;
        }
    }

    /// So many bytes came from a host.
    pub fn heard(&mut self, id: HostId, bytes: u64, now: Duration) {
        let host = &mut self.hosts[id];
        host.unfinished += bytes;
        host.measured_bytes += bytes;
        let over = now.saturating_sub(host.measured_at);
        let is_silent = host.asked.is_empty() && !host.is_asked_whole;
        if over < SPEED_MEASURED || is_silent {
            return;
        }
        let speed = host.measured_bytes as f64 / over.as_secs_f64();
        // The first measure stands alone; a long silence outweighs what was before.
        let kept = if host.speed == 0.0 { 0.0 } else { (-over.as_secs_f64() / SPEED_OVER.as_secs_f64()).exp() };
        host.speed = host.speed * kept + speed * (1.0 - kept);
        (host.measured_at, host.measured_bytes) = (now, 0);
    }

    /// A piece is here in full, and right or not.
    pub fn piece(&mut self, id: HostId, piece: usize, is_right: bool) {
        let bytes = self.layout.bytes(&(piece..piece + 1));
        let host = &mut self.hosts[id];
        host.unfinished = host.unfinished.saturating_sub(bytes);
        host.asked.retain(|asked| *asked != piece);
        if is_right {
            (host.failures_in_row, host.wrong_in_row) = (0, 0);
            let was = std::mem::replace(&mut self.pieces[piece], Piece::Right);
            match was {
                Piece::Missing => self.missing -= 1,
                Piece::Asked(other) if other != id => self.take_from(other, piece),
                Piece::Asked(_) => {}
                Piece::Right => return,
                Piece::Good => {
                    self.pieces[piece] = Piece::Good;
                    return;
                }
            }
            self.not_right -= 1;
        } else {
            host.wrong_in_row += 1;
            if self.pieces[piece] == Piece::Asked(id) {
                self.now_missing(piece);
            }
        }
    }

    /// The whole is here, and as far as that can be known, right.
    pub fn whole(&mut self, id: HostId) {
        (self.hosts[id].is_asked_whole, self.whole_is_right) = (false, true);
    }

    /// The file is in its place already: nothing is to be asked for.
    pub fn in_place(&mut self) {
        self.whole_is_right = true;
    }

    /// Pieces are on disk for good.
    pub fn synced(&mut self, pieces: &[usize]) {
        for piece in pieces {
            if self.pieces[*piece] == Piece::Right {
                self.pieces[*piece] = Piece::Good;
                self.not_good -= 1;
            }
        }
    }

    /// Pieces that were right could not be kept: they are to come again.
    pub fn unkept(&mut self, pieces: &[usize]) {
        for piece in pieces {
            if self.pieces[*piece] == Piece::Right {
                self.now_missing(*piece);
                self.not_right += 1;
            }
        }
    }

    /// A connection has ended, or could not be had. Whether that is held against the host: not if it was to end.
    pub fn over(&mut self, id: HostId, fault: Fault, now: Duration) -> bool {
        let host = &mut self.hosts[id];
        let was_to_end = host.line == Line::Closing;
        if !was_to_end {
            host.failures_in_row = host.failures_in_row.saturating_add(1);
            if fault == Fault::Wrong {
                // Once more, for it may have been the wire: a whole file costs much.
                host.wrong_in_row += if host.is_asked_whole { WRONG_MAX.div_ceil(2) } else { 1 };
            }
            let pause = PAUSE_MIN.saturating_mul(1 << (host.failures_in_row - 1).min(16));
            host.not_before = now + pause.min(PAUSE_MAX);
        }
        host.line = Line::Closed;
        (host.is_asked_list, host.is_asked_whole, host.has_lost_some) = (false, false, false);
        (host.is_unchecked, host.is_idle, host.unfinished) = (false, true, 0);
        for piece in std::mem::take(&mut host.asked) {
            self.now_missing(piece);
        }
        !was_to_end
    }

    /// What is to be done now; each step is given once.
    pub fn steps(&mut self, now: Duration) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_held || self.is_here() {
            (0..self.hosts.len()).for_each(|id| self.close(id, &mut steps));
        } else if self.way == Way::Pieces {
            self.close_useless(&mut steps);
            self.open_range(now, &mut steps);
            self.ask_list(&mut steps);
            self.ask_pieces(now, &mut steps);
            self.whole_where_nothing_else(now, &mut steps);
        } else {
            self.whole_of_the_first(now, &mut steps);
        }
        steps
    }

    /// Whether everything is here, but perhaps not yet on disk.
    pub fn is_here(&self) -> bool {
        self.whole_is_right || (self.way == Way::Pieces && self.not_right == 0)
    }

    /// Whether every piece is on disk. Never true of what came whole without a list.
    pub fn is_good(&self) -> bool {
        self.way == Way::Pieces && self.not_good == 0
    }

    /// How the content is had.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Whether it came whole, without a list.
    pub fn is_whole(&self) -> bool {
        self.whole_is_right
    }

    /// Whether it waits.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Whether no host is left of which something may come soon.
    pub fn is_stuck(&self) -> bool {
        !self.is_here() && !self.hosts.iter().any(Host::is_usable)
    }

    /// Whether hosts are shown, and each of them has sent the wrong thing too often.
    pub fn is_hopeless(&self) -> bool {
        let mut shown = self.hosts.iter().filter(|host| host.is_listed).peekable();
        shown.peek().is_some() && shown.all(Host::is_banned)
    }

    /// Whether something is being sent to us.
    pub fn is_open(&self) -> bool {
        self.hosts.iter().any(|host| host.line == Line::Open)
    }

    /// Whether a connection exists or is being made.
    pub fn is_at_work(&self) -> bool {
        self.hosts.iter().any(|host| host.line != Line::Closed)
    }

    /// Bytes that are here, those of unfinished pieces included.
    pub fn downloaded(&self) -> u64 {
        if self.is_here() {
            return self.layout.size();
        }
        let right = |piece: &usize| matches!(self.pieces[*piece], Piece::Right | Piece::Good);
        let finished: u64 = (0..self.pieces.len()).filter(right).map(|i| self.layout.bytes(&(i..i + 1))).sum();
        let unfinished: u64 = self.hosts.iter().map(|host| host.unfinished).sum();
        finished.saturating_add(unfinished).min(self.layout.size())
    }

    fn now_missing(&mut self, piece: usize) {
        self.pieces[piece] = Piece::Missing;
        self.missing += 1;
        self.search_from = self.search_from.min(piece);
    }

    /// Another has it, or is asked for it: what still comes of it from here is for nothing.
    fn take_from(&mut self, id: HostId, piece: usize) {
        let host = &mut self.hosts[id];
        host.asked.retain(|asked| *asked != piece);
        host.has_lost_some = true;
    }

    fn turn(&mut self) -> Turn {
        // u32::MAX stands for "done" elsewhere; so many askings there never are.
        self.last_turn = self.last_turn.saturating_add(1).min(Turn::MAX - 1);
        self.last_turn
    }

    fn close(&mut self, id: HostId, steps: &mut Vec<Step>) {
        if matches!(self.hosts[id].line, Line::Opening | Line::Open) {
            self.hosts[id].line = Line::Closing;
            steps.push(Step::Close(id));
        }
    }

    /// Those who send only what others have, and those who have sent the wrong thing too often.
    fn close_useless(&mut self, steps: &mut Vec<Step>) {
        for id in 0..self.hosts.len() {
            let host = &self.hosts[id];
            if (host.has_lost_some && host.asked.is_empty()) || host.is_banned() {
                self.close(id, steps);
            }
        }
    }

    /// Whoever may be opened, the most promising first: few failures, fast or not known, in the order shown.
    fn candidates(&self, now: Duration, takes_range: Option<bool>) -> Vec<HostId> {
        let fits = |host: &Host| takes_range.is_none_or(|wanted| host.takes_range == wanted);
        let mut found: Vec<HostId> =
            (0..self.hosts.len()).filter(|id| fits(&self.hosts[*id]) && self.hosts[*id].may_be_opened(now)).collect();
        let rank = |id: &HostId| {
            let host = &self.hosts[*id];
            let slowness = if host.speed > 0.0 { 1.0 / host.speed } else { 0.0 };
            (host.failures_in_row, slowness)
        };
        found.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        found
    }

    fn open(&mut self, id: HostId, steps: &mut Vec<Step>) {
        self.hosts[id].line = Line::Opening;
        steps.push(Step::Open(id));
    }

    fn open_range(&mut self, now: Duration, steps: &mut Vec<Step>) {
        let lanes = self.hosts.iter().filter(|host| host.takes_range && host.line != Line::Closed).count();
        let candidates = self.candidates(now, Some(true));
        for id in candidates.iter().take(LANES_MAX.saturating_sub(lanes)) {
            self.open(*id, steps);
        }
        if lanes >= LANES_MAX
            && candidates.iter().any(|id| self.hosts[*id].speed == 0.0 && self.hosts[*id].failures_in_row == 0)
            && let Some(slow) = self.too_slow(now)
        {
            self.close(slow, steps);
        }
    }

    /// The slowest of those at work, if it is far behind the others.
    fn too_slow(&self, now: Duration) -> Option<HostId> {
        let judged = |id: &HostId| {
            let host = &self.hosts[*id];
            host.line == Line::Open && now.saturating_sub(host.opened_at) >= JUDGED_AFTER
        };
        let speed = |id: &HostId| self.hosts[*id].speed;
        let at_work: Vec<HostId> = (0..self.hosts.len()).filter(judged).collect();
        let slowest = at_work.iter().copied().min_by(|a, b| speed(a).total_cmp(&speed(b)))?;
        let others = at_work.len() - 1;
        let total: f64 = at_work.iter().filter(|id| **id != slowest).map(speed).sum();
        (others > 0 && speed(&slowest) < TOO_SLOW * total / others as f64).then_some(slowest)
    }

    fn ask_list(&mut self, steps: &mut Vec<Step>) {
        if self.has_list || self.hosts.iter().any(|host| host.is_asked_list) {
            return;
        }
        let first = self.hosts.iter().position(|host| host.line == Line::Open && host.takes_range);
        if let Some(id) = first {
            self.hosts[id].is_asked_list = true;
            steps.push(Step::AskList(id));
        }
    }

    fn ask_pieces(&mut self, now: Duration, steps: &mut Vec<Step>) {
        // Nor while one that was asked for all may still write, wherever, what nobody has checked.
        if !self.has_list || self.hosts.iter().any(|host| host.is_unchecked) {
            return;
        }
        let is_ready = |host: &Host| host.line == Line::Open && host.takes_range && !host.has_lost_some;
        let mut ready: Vec<HostId> = (0..self.hosts.len()).filter(|id| is_ready(&self.hosts[*id])).collect();
        ready.sort_by(|a, b| self.hosts[*b].speed.total_cmp(&self.hosts[*a].speed));
        let at_most = (self.layout.size() / UNSAFE_PART).clamp(UNSAFE_MIN, UNSAFE_MAX);
        let not_synced = (self.not_good - self.not_right) as u64 * self.layout.piece_size();
        let mut is_unsafe = not_synced + (0..self.hosts.len()).map(|id| self.to_come(id)).sum::<u64>();
        for id in ready {
            while is_unsafe < at_most {
                let Some(pieces) = self.next_of(id, now) else { break };
                is_unsafe += self.layout.bytes(&pieces);
                self.hosts[id].begin_asking(now);
                for piece in pieces.clone() {
                    self.pieces[piece] = Piece::Asked(id);
                    self.hosts[id].asked.push_back(piece);
                }
                let turn = self.turn();
                steps.push(Step::Ask { host: id, pieces, turn });
            }
            self.hosts[id].is_idle = self.hosts[id].asked.is_empty();
        }
    }

    /// What a host is to be asked for next, if it is to be asked at all.
    fn next_of(&mut self, id: HostId, now: Duration) -> Option<Range<usize>> {
        let host = &self.hosts[id];
        let piece_size = self.layout.piece_size();
        let at_a_time = ((host.speed * ASKED_FOR) as u64).clamp(piece_size, ASKED_MAX.max(piece_size));
        // Two askings under way, so that no host ever waits for us.
        if self.to_come(id) > at_a_time {
            return None;
        }
        if self.missing == 0 {
            return self.of_a_slower_one(id, now).map(|piece| {
                if let Piece::Asked(other) = self.pieces[piece] {
                    self.take_from(other, piece);
                }
                piece..piece + 1
            });
        }
        let is_missing = |piece: &usize| self.pieces[*piece] == Piece::Missing;
        let first = (self.search_from..self.pieces.len()).find(is_missing)?;
        let most = usize::try_from(at_a_time / piece_size).unwrap_or(1).max(1);
        let end = (first..self.pieces.len()).take(most).take_while(is_missing).last()? + 1;
        self.search_from = end;
        self.missing -= end - first;
        Some(first..end)
    }

    /// Bytes that were asked of a host and are not here.
    fn to_come(&self, id: HostId) -> u64 {
        let host = &self.hosts[id];
        let asked: u64 = host.asked.iter().map(|piece| self.layout.bytes(&(*piece..*piece + 1))).sum();
        asked.saturating_sub(host.unfinished)
    }

    /// The piece that would come last of all from others, if this host would have it in half the time.
    fn of_a_slower_one(&self, id: HostId, now: Duration) -> Option<usize> {
        let own = &self.hosts[id];
        if own.speed == 0.0 {
            return None;
        }
        let own_to_come = self.to_come(id) as f64;
        let mut last: Option<(usize, f64)> = None;
        for (other, host) in self.hosts.iter().enumerate().filter(|(other, _)| *other != id) {
            let Some(piece) = host.asked.back().copied() else { continue };
            let is_silent = now.saturating_sub(host.asked_at.max(host.measured_at)) >= SILENT;
            let comes_in = match host.speed {
                speed if speed > 0.0 => self.to_come(other) as f64 / speed,
                _ if is_silent || now.saturating_sub(host.asked_at) >= SILENT => f64::INFINITY,
                _ => continue,
            };
            if last.is_none_or(|(_, latest)| comes_in > latest) {
                last = Some((piece, comes_in));
            }
        }
        let (piece, comes_in) = last?;
        let by_us = (own_to_come + self.layout.bytes(&(piece..piece + 1)) as f64) / own.speed;
        (comes_in > 2.0 * by_us).then_some(piece)
    }

    /// Nobody who takes RANGE can be had: the whole file of one who knows only GET.
    fn whole_where_nothing_else(&mut self, now: Duration, steps: &mut Vec<Step>) {
        if self.hosts.iter().any(|host| host.takes_range && host.line == Line::Open) {
            let others: Vec<HostId> = (0..self.hosts.len()).filter(|id| !self.hosts[*id].takes_range).collect();
            others.into_iter().for_each(|id| self.close(id, steps));
        } else if !self.hosts.iter().any(|host| host.takes_range && host.is_usable()) {
            self.race(now, Some(false), steps);
        }
    }

    fn whole_of_the_first(&mut self, now: Duration, steps: &mut Vec<Step>) {
        (0..self.hosts.len()).filter(|id| self.hosts[*id].is_banned()).collect::<Vec<_>>().into_iter().for_each(|id| {
            self.close(id, steps);
        });
        self.race(now, None, steps);
    }

    /// Tries a few at once; the first that is open sends, the others close.
    fn race(&mut self, now: Duration, takes_range: Option<bool>, steps: &mut Vec<Step>) {
        let fits = |host: &Host| takes_range.is_none_or(|wanted| host.takes_range == wanted);
        let ids: Vec<HostId> = (0..self.hosts.len()).filter(|id| fits(&self.hosts[*id])).collect();
        let sends = |id: &HostId| self.hosts[*id].is_asked_whole;
        let first = ids.iter().copied().find(sends).or_else(|| {
            let found = ids.iter().copied().find(|id| self.hosts[*id].line == Line::Open)?;
            self.hosts[found].begin_asking(now);
            (self.hosts[found].is_asked_whole, self.hosts[found].is_unchecked) = (true, !self.has_list);
            let turn = self.turn();
            steps.push(Step::AskWhole { host: found, turn });
            Some(found)
        });
        if let Some(first) = first {
            ids.into_iter().filter(|id| *id != first).for_each(|id| self.close(id, steps));
            return;
        }
        let at_work = ids.iter().filter(|id| self.hosts[**id].line != Line::Closed).count();
        for id in self.candidates(now, takes_range).into_iter().take(RACE.saturating_sub(at_work)) {
            self.open(id, steps);
        }
    }
}
