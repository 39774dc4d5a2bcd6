//! The server: the real state machines, joined to the simulated world by the rule to store, then send, then arm
//! timers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use p2s2::internals::model::{FeeRate, Millis, Name};
use p2s2::internals::storage::Journal;
use p2s2::internals::trade::deal::{DealInput, Windows};
use p2s2::internals::trade::exchange::{
    Exchange, ExchangeEffects, ExchangeRules, NotificationId, OutgoingNotification, RequestOrigin, ResumedWork,
    Transport,
};
use p2s2::internals::trade::settlement::{Settlement, SettlementAction, SettlementInput, SettlementMilestone};
use p2s2::internals::trade::wire::{
    DATAGRAM_MAX, DealRequest, ErrorCode, Request, RequestBody, Response, Side, encode, encode_ack, encode_request,
};

use crate::Fault;
use crate::bank::{Answer, Call};
use crate::disk::Disk;
use crate::peer::about;
use crate::world::{Event, World};

/// The pauses after which a notification is repeated.
const RESEND_MS: [u64; 4] = [500, 1_000, 2_000, 4_000];
const SETTLE_TIMEOUT_MS: u64 = 10_000;
const SWEEP_MS: u64 = 30_000;

pub struct Server {
    pub exchange: Exchange<Disk>,
    waiting: Vec<PendingEffects>,
    commit_is_due: bool,
    settlements: BTreeMap<u64, Running>,
    departing_peers: Vec<DepartingPeer>,
    /// The deviation of the server's clock from the true time.
    clock_ms: i64,
}

/// What happens with effects once they are on disk.
enum AfterCommit {
    /// Responds to this address and request. The number is the era of the name when the request was made; the flag
    /// tells whether the address was validated.
    Answer(SocketAddr, Box<Request>, u32, bool),
    Leave(SocketAddr, Box<Request>, bool),
    Nothing,
    Stored(u64),
}

struct PendingEffects(ExchangeEffects<u64>, AfterCommit);

struct Running {
    core: Settlement,
    /// The peers at the open connections.
    lines: [Option<usize>; 2],
    /// The step whose timeout is running.
    step: Option<u8>,
    storing: Option<SettlementMilestone>,
}

struct DepartingPeer {
    source: SocketAddr,
    request: Box<Request>,
    is_validated: bool,
    registration_id: u64,
    until_ms: u64,
}

impl Server {
    fn has_line(&self, deal: u64, side: Side) -> bool {
        self.settlements.get(&deal).is_some_and(|running| running.lines[place(side)].is_some())
    }

    fn is_in_step(&self, deal: u64, step: u8) -> bool {
        self.settlements.get(&deal).is_some_and(|running| running.step == Some(step))
    }
}

fn rules() -> ExchangeRules {
    let windows =
        Windows { offer: Duration::from_secs(5), negotiate: Duration::from_secs(10), reserve: Duration::from_secs(60) };
    ExchangeRules { windows, fee: FeeRate::default(), cert_sha256: None }
}

fn place(side: Side) -> usize {
    usize::from(side == Side::Seller)
}

impl World {
    fn clock(&self, skew: i64) -> Millis {
        Millis(self.now.saturating_add_signed(skew))
    }

    fn server_now(&self) -> Millis {
        self.clock(self.server.as_ref().map_or(0, |server| server.clock_ms))
    }

    /// Starts from what is on disk. The clock may have been set meanwhile.
    pub fn start(&mut self) {
        self.starts += 1;
        let skew =
            if self.starts > 1 && self.rng.permille(200) { self.rng.range(0, 120_000) as i64 - 60_000 } else { 0 };
        let (exchange, resumed) = Exchange::load(self.disk.clone(), rules(), self.disk.snapshot(), 0, self.clock(skew));
        self.server = Some(Server {
            exchange,
            waiting: Vec::new(),
            commit_is_due: false,
            settlements: BTreeMap::new(),
            departing_peers: Vec::new(),
            clock_ms: skew,
        });
        self.rules.loaded(&self.disk.lock().rows);
        self.resume(resumed);
        let start = self.starts;
        self.at(SWEEP_MS, Event::Sweep { start });
        self.at(1_000, Event::DepartingPeers { start });
    }

    fn resume(&mut self, resumed: ResumedWork) {
        for (at, deal) in resumed.deadlines {
            self.arm(at, deal);
        }
        for id in resumed.notifications {
            self.send_notification(id, 0);
        }
        for (deal, _) in resumed.settlements {
            let Some(server) = &self.server else { return };
            if server.settlements.contains_key(&deal) {
                continue;
            }
            if let Some(order) = server.exchange.settlement_order(deal) {
                let (core, actions) = Settlement::recover(order);
                self.run_settlement(deal, Running { core, lines: [None; 2], step: None, storing: None }, actions);
            }
        }
    }

    /// Cuts the power at random; true if that happened.
    pub fn may_crash(&mut self) -> bool {
        if self.server.is_none() || !self.rng.permille(self.weather.crash) {
            return false;
        }
        self.note(|| "-- the power is cut".to_owned());
        self.tally.crashes += 1;
        self.server = None;
        let mut rng = std::mem::replace(&mut self.rng, crate::rng::Rng::new(0));
        self.disk.crash(&mut rng);
        self.rng = rng;
        let down = self.rng.range(10, 8_000);
        self.at(down, Event::Start);
        true
    }

    /// The store refuses a whole batch: none of it happens, and the exchange is rebuilt.
    fn store_fails(&mut self) {
        self.note(|| "-- the store refuses the batch".to_owned());
        self.tally.store_failures += 1;
        self.disk.fail();
        let now = self.server_now();
        let (exchange, resumed) = Exchange::load(self.disk.clone(), rules(), self.disk.snapshot(), 0, now);
        let Some(server) = &mut self.server else { return };
        server.exchange = exchange;
        server.departing_peers.clear();
        let start = self.starts;
        for PendingEffects(_, then) in std::mem::take(&mut server.waiting) {
            match then {
                AfterCommit::Answer(to, request, _, is_validated) | AfterCommit::Leave(to, request, is_validated) => {
                    let response = Response::Error {
                        rq: Some(request.rq),
                        code: ErrorCode::Unavailable,
                        reason: "try again".to_owned(),
                    };
                    self.respond(to, response, is_validated);
                }
                AfterCommit::Nothing => {}
                AfterCommit::Stored(deal) if self.rng.permille(500) => self.at(100, Event::StoreAgain { start, deal }),
                // Its thread gives up; the connections are closed, and the settlement is recovered from the disk.
                AfterCommit::Stored(deal) => {
                    if let Some(server) = &mut self.server {
                        server.settlements.remove(&deal);
                    }
                }
            }
        }
        self.rules.loaded(&self.disk.lock().rows);
        self.resume(resumed);
    }

    pub fn server_happens(&mut self, event: Event) {
        // A call that was on its way when the power was cut still reaches the bank, perhaps late.
        if let Event::Bank { start, deal, key, call, tries } = event {
            return self.bank_is_asked(start, deal, key, call, tries);
        }
        let now = self.server_now();
        let current = self.starts;
        let Some(server) = &mut self.server else { return };
        match event {
            Event::Request { from, request } => {
                match request.body {
                    RequestBody::Register { .. } => self.rules.registered_anew(&request.name),
                    RequestBody::LookingFor { .. } => self.tally.deals += 1,
                    _ => {}
                }
                let bytes = encode_request(request.rq, &request.name, request.token.as_ref(), &request.body).len();
                let is_validated = server.exchange.datagram_received(from, bytes);
                self.rules.bytes_received(from, bytes);
                self.rules.token_received(from, request.token.as_ref());
                let origin = RequestOrigin { source: from, local_ip: None, transport: Transport::Udp };
                let effects = server.exchange.handle_request(now, &origin, &request);
                if let (RequestBody::DeRegister, None | Some(Response::DeRegistered { .. })) =
                    (&request.body, &effects.response)
                {
                    self.rules.departure_requested(&request.name);
                }
                if let (about!(DealRequest::Buy { price }), Some(deal)) = (&request.body, effects.settlement) {
                    self.rules.bought(deal, price.0);
                }
                let era = self.rules.era(&request.name);
                let then = match effects.departing {
                    Some(_) => AfterCommit::Leave(from, request, is_validated),
                    None => AfterCommit::Answer(from, request, era, is_validated),
                };
                self.apply_when_committed(effects, then);
            }
            Event::Ack { from, mid } => {
                let (from, ack) = World::ack(from, mid);
                let bytes = encode_ack(mid, None).len();
                server.exchange.datagram_received(from, bytes);
                self.rules.bytes_received(from, bytes);
                self.rules.mid_received(from, mid);
                server.exchange.acknowledge(now, from, &ack);
                self.commit_soon();
            }
            Event::Commit { start } if start == current => self.commit(),
            Event::Tick { start, deal } if start == current => {
                let effects = server.exchange.tick(now, deal);
                self.apply_when_committed(effects, AfterCommit::Nothing);
            }
            Event::Resend { start, id, sent } if start == current => self.send_notification(id, sent),
            Event::Sweep { start } if start == current => {
                // Promises end a little before the server may remove them, since its clock may be wrong.
                let ended_before = Millis(now.0.saturating_sub(400_000));
                self.rules.may_remove(&self.disk.lock().rows, ended_before);
                let effects = server.exchange.sweep(now);
                self.apply_when_committed(effects, AfterCommit::Nothing);
                self.commit_soon();
                self.at(SWEEP_MS, Event::Sweep { start });
            }
            Event::DepartingPeers { start } if start == current => {
                self.departing_peers();
                self.at(1_000, Event::DepartingPeers { start });
            }
            Event::LineToServer { start, deal, side, text } if start == current && server.has_line(deal, side) => {
                self.settlement(deal, SettlementInput::Line(side, &text));
            }
            Event::LineBroke { start, deal, side } if start == current => {
                let line = server.settlements.get_mut(&deal).and_then(|running| running.lines[place(side)].take());
                if line.is_some() {
                    self.settlement(deal, SettlementInput::Lost(side, "closed"));
                }
            }
            Event::StepTimeout { start, deal, step } if start == current && server.is_in_step(deal, step) => {
                self.settlement(deal, SettlementInput::TimedOut);
            }
            Event::BankSaid { start, deal, answer } if start == current => {
                let price = server.settlements.get(&deal).map(|running| running.core.order().price).unwrap_or_default();
                let input = match answer {
                    Answer::Authorised => SettlementInput::Authorised,
                    Answer::Declined => SettlementInput::Declined("the card is not good"),
                    Answer::Captured => SettlementInput::Captured,
                    Answer::CaptureRefused => SettlementInput::CaptureRefused("not this time"),
                    Answer::Voided => SettlementInput::Voided,
                    Answer::AlreadyCaptured => SettlementInput::AlreadyCaptured(price),
                };
                self.settlement(deal, input);
            }
            Event::StoreAgain { start, deal } if start == current => self.store(deal),
            _ => {}
        }
    }

    fn arm(&mut self, at: Millis, deal: u64) {
        let start = self.starts;
        let in_ms = at.0.saturating_sub(self.server_now().0);
        self.at(in_ms, Event::Tick { start, deal });
    }

    fn apply_when_committed(&mut self, effects: ExchangeEffects<u64>, then: AfterCommit) {
        let early = self.fault == Some(Fault::SendBeforeCommit);
        if early || self.disk.is_committed(&effects.commit) {
            return self.release(PendingEffects(effects, then));
        }
        if let Some(server) = &mut self.server {
            server.waiting.push(PendingEffects(effects, then));
        }
        self.commit_soon();
    }

    fn commit_soon(&mut self) {
        let start = self.starts;
        let Some(server) = self.server.as_mut().filter(|server| !server.commit_is_due) else { return };
        server.commit_is_due = true;
        let delay = self.rng.range(0, 5);
        self.at(delay, Event::Commit { start });
    }

    fn commit(&mut self) {
        if let Some(server) = &mut self.server {
            server.commit_is_due = false;
        }
        if self.rng.permille(self.weather.store_fails) {
            return self.store_fails();
        }
        self.disk.commit();
        {
            let disk = self.disk.lock();
            self.rules.ledger(&disk.rows);
            if let Some(server) = &self.server {
                self.rules.slots(&disk.rows, server.exchange.settlement_count());
            }
        }
        if self.may_crash() {
            return;
        }
        let waiting = self.server.as_mut().map(|server| std::mem::take(&mut server.waiting));
        for one in waiting.into_iter().flatten() {
            if self.may_crash() {
                return;
            }
            self.release(one);
        }
    }

    /// Sends what is now on disk.
    fn release(&mut self, PendingEffects(effects, then): PendingEffects) {
        let ExchangeEffects { commit, response, notifications, notify_once, deadlines, settlement, departing, .. } =
            effects;
        let start = self.starts;
        if let (AfterCommit::Answer(to, request, era, is_validated), Some(response)) = (&then, response) {
            self.rules.sent_after(&self.disk, commit, &response);
            self.rules.answer(&self.disk.lock().rows, request, *era, &response);
            self.respond(*to, response, *is_validated);
        }
        for id in notifications {
            if self.may_crash() {
                return;
            }
            self.rules.sent_after(&self.disk, commit, &id);
            self.send_notification(id, 0);
        }
        for outgoing in notify_once {
            self.send_outgoing(outgoing);
        }
        for (at, deal) in deadlines {
            self.arm(at, deal);
        }
        if let Some(deal) = settlement {
            self.begin_settlement(deal);
        }
        match then {
            AfterCommit::Leave(source, request, is_validated) => {
                let until_ms = self.now + 30_000;
                if let (Some(server), Some(registration_id)) = (&mut self.server, departing) {
                    server.departing_peers.push(DepartingPeer {
                        source,
                        request,
                        is_validated,
                        registration_id,
                        until_ms,
                    });
                }
            }
            AfterCommit::Stored(deal) => {
                let running = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal));
                if let Some(running) = running {
                    running.storing = None;
                    self.settlement(deal, SettlementInput::Stored);
                } else {
                    self.note(|| format!("settlement {deal} of start {start} is gone"));
                }
            }
            AfterCommit::Answer(..) | AfterCommit::Nothing => {}
        }
    }

    fn send_notification(&mut self, id: NotificationId, sent: u32) {
        let start = self.starts;
        let outgoing = self.server.as_ref().and_then(|server| server.exchange.outgoing_notification(id));
        let Some(mut outgoing) = outgoing else { return };
        if self.fault == Some(Fault::PushElsewhere) {
            outgoing.to.set_port(outgoing.to.port() + 1);
        }
        self.rules.push(&self.disk, id, &outgoing.notification, outgoing.to);
        self.send_outgoing(outgoing);
        if let Some(delay) = RESEND_MS.get(sent as usize) {
            self.at(*delay, Event::Resend { start, id, sent: sent + 1 });
        }
    }

    fn send_outgoing(&mut self, outgoing: OutgoingNotification) {
        let OutgoingNotification { to, is_validated, notification, .. } = outgoing;
        let bytes = encode(&notification).len();
        let may = |server: &Server| is_validated || server.exchange.may_send(to, bytes);
        if self.fault != Some(Fault::SendToTheSilent) && !self.server.as_ref().is_some_and(may) {
            return;
        }
        self.rules.bytes_sent(to, bytes);
        self.rules.mid_sent(to, &notification);
        self.network(Event::Notification { to, notification: Box::new(notification) });
    }

    /// Responds within the limits for addresses that are not validated.
    fn respond(&mut self, to: SocketAddr, mut response: Response, is_validated: bool) {
        let Some(server) = &self.server else { return };
        let is_validated = is_validated || server.exchange.address_status(to).is_validated;
        let Some(bytes) = server.exchange.fit_response(&mut response, to, is_validated, DATAGRAM_MAX) else { return };
        self.rules.bytes_sent(to, bytes.len());
        if let Response::Registered { token, .. } = &response {
            self.rules.token_sent(to, token);
        }
        self.network(Event::Response { to, response: Box::new(response) });
    }

    fn departing_peers(&mut self) {
        let now = self.server_now();
        let Some(server) = &mut self.server else { return };
        let mut pending = Vec::new();
        let departing_peers = std::mem::take(&mut server.departing_peers);
        for departing in departing_peers {
            let DepartingPeer { source, request, is_validated, registration_id, until_ms } = departing;
            let effects = server.exchange.resume_departure(now, source, request.rq, &request.name, registration_id);
            if effects.departing.is_none() {
                let era = self.rules.era(&request.name);
                pending.push((effects, AfterCommit::Answer(source, request, era, is_validated)));
                continue;
            }
            pending.push((effects, AfterCommit::Nothing));
            if self.now >= until_ms {
                server.exchange.cancel_departure(&request.name, registration_id);
            } else {
                server.departing_peers.push(DepartingPeer { source, request, is_validated, registration_id, until_ms });
            }
        }
        for (effects, then) in pending {
            self.apply_when_committed(effects, then);
        }
    }

    // Settlements.

    fn begin_settlement(&mut self, deal: u64) {
        let Some(order) = self.server.as_ref().and_then(|server| server.exchange.settlement_order(deal)) else {
            return;
        };
        let find = |name: &Name, tcp: Option<SocketAddr>| {
            let at = |peer: &crate::peer::Peer| {
                peer.name == *name
                    && tcp == Some(SocketAddr::new(peer.home.ip(), peer.tcp_port))
                    && peer.token.is_some()
            };
            self.peers.iter().position(at)
        };
        let lines = [find(&order.buyer.name, order.buyer.tcp), find(&order.seller.name, order.seller.tcp)];
        let (core, actions) = Settlement::begin(order);
        self.run_settlement(deal, Running { core, lines, step: None, storing: None }, actions);
        for (side, line) in [Side::Buyer, Side::Seller].into_iter().zip(lines) {
            if line.is_none() {
                self.settlement(deal, SettlementInput::Lost(side, "refused"));
            }
        }
    }

    fn run_settlement(&mut self, deal: u64, running: Running, actions: Vec<SettlementAction>) {
        if let Some(server) = &mut self.server {
            server.settlements.insert(deal, running);
        }
        self.act(deal, actions);
    }

    fn settlement(&mut self, deal: u64, input: SettlementInput) {
        let Some(running) = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal)) else { return };
        let actions = running.core.handle(input);
        self.act(deal, actions);
    }

    fn act(&mut self, deal: u64, actions: Vec<SettlementAction>) {
        let start = self.starts;
        for action in actions {
            if self.may_crash() {
                return;
            }
            self.note(|| format!("settlement {deal}: {action:?}"));
            let breaks = self.rng.permille(self.weather.lines_break);
            let Some(running) = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal)) else {
                return;
            };
            let key = running.core.order().key.clone();
            let bank = |call| Event::Bank { start, deal, key: key.clone(), call, tries: 0 };
            match action {
                SettlementAction::Write(side, line) => match running.lines[place(side)] {
                    Some(_) if breaks => self.at(3, Event::LineBroke { start, deal, side }),
                    Some(peer) => self.at(5, Event::LineToPeer { deal, side, peer, line: Box::new(line) }),
                    None => {}
                },
                SettlementAction::Authorise(card) => {
                    let good = card.number.passes_luhn() && card.number.last4() != "0002";
                    self.at(10, bank(Call::Authorise(good)));
                }
                SettlementAction::Capture => self.at(10, bank(Call::Capture)),
                SettlementAction::Void => self.at(10, bank(Call::Void)),
                SettlementAction::Store(milestone) => {
                    running.storing = Some(milestone);
                    self.store(deal);
                }
                SettlementAction::Close => {
                    if let Some(server) = &mut self.server {
                        server.settlements.remove(&deal);
                    }
                }
            }
        }
        let running = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal));
        let begins = |running: &Running| running.core.awaits_peer() && running.step != Some(running.core.step());
        if let Some(running) = running.filter(|running| begins(running)) {
            let step = running.core.step();
            running.step = Some(step);
            self.at(SETTLE_TIMEOUT_MS, Event::StepTimeout { start, deal, step });
        }
    }

    fn store(&mut self, deal: u64) {
        let now = self.server_now();
        let Some(server) = &mut self.server else { return };
        let Some(milestone) = server.settlements.get(&deal).and_then(|running| running.storing.clone()) else { return };
        let event = match &milestone {
            SettlementMilestone::Authorised => DealInput::Authorised,
            SettlementMilestone::Shipped => DealInput::Shipped,
            SettlementMilestone::Captured => DealInput::Captured,
            SettlementMilestone::Failed(reason) => DealInput::SettlementFailed(reason),
        };
        match server.exchange.advance_settlement(now, deal, event) {
            Ok(effects) if self.fault == Some(Fault::TrustTheDisk) => {
                self.apply_when_committed(effects, AfterCommit::Nothing);
                self.settlement(deal, SettlementInput::Stored);
            }
            Ok(effects) => self.apply_when_committed(effects, AfterCommit::Stored(deal)),
            Err(error) => panic!("deal {deal} does not take {milestone:?}: {error}"),
        }
    }

    fn bank_is_asked(&mut self, start: u32, deal: u64, key: String, call: Call, tries: u32) {
        let stale = start != self.starts || self.server.is_none();
        if self.now >= self.bank.away_until_ms && self.rng.permille(self.weather.bank_away / 10) {
            self.bank.away_until_ms = self.now + self.rng.range(500, 15_000);
        }
        if self.now < self.bank.away_until_ms || self.rng.permille(self.weather.bank_away) {
            if stale {
                return;
            }
            if tries >= 6 && matches!(call, Call::Authorise(_)) {
                return self.settlement(deal, SettlementInput::Declined("the bank does not answer"));
            }
            return self.at(700, Event::Bank { start, deal, key, call, tries: tries + 1 });
        }
        let before = self.bank.accounts.get(&key).copied().unwrap_or_default();
        let refuses = self.rng.permille(40);
        let answer = if call == Call::Void && self.fault == Some(Fault::SkipVoid) {
            Answer::Voided
        } else {
            self.bank.call(&key, call, refuses)
        };
        let after = self.bank.accounts.get(&key).copied().unwrap_or_default();
        self.note(|| format!("the bank: {call:?} of {key} is {answer:?}"));
        self.rules.charged(&self.disk.lock().rows, deal, before, after);
        if stale {
            return;
        }
        if self.rng.permille(self.weather.bank_away) {
            // The bank's answer is lost: the call is repeated.
            return self.at(700, Event::Bank { start, deal, key, call, tries: tries + 1 });
        }
        self.at(10, Event::BankSaid { start, deal, answer });
    }
}
