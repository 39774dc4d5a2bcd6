//! The server: the very cores, and the rule that joins them to the world: store, then send, then arm.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use p2s2::model::{FeeRate, Millis, Name};
use p2s2::storage::Journal;
use p2s2::trade::client::messages::{encode_ack, encode_request};
use p2s2::trade::deal::{Event as DealEvent, Windows};
use p2s2::trade::exchange::{Exchange, Origin, Outcome, Outgoing, Resumed, Rules, Told, Via};
use p2s2::trade::settlement::{Action, Input, Milestone, Settlement};
use p2s2::trade::wire::{Ask, Code, DATAGRAM_MAX, Reply, Request, Side, encode};

use crate::Fault;
use crate::bank::{Answer, Call};
use crate::disk::Disk;
use crate::world::{Event, World};

/// A push is sent again after these.
const RESEND_MS: [u64; 4] = [500, 1_000, 2_000, 4_000];
const SETTLE_TIMEOUT_MS: u64 = 10_000;
const SWEEP_MS: u64 = 30_000;

pub struct Server {
    pub exchange: Exchange<Disk>,
    waiting: Vec<Waiting>,
    commit_is_due: bool,
    settlements: BTreeMap<u64, Running>,
    leavers: Vec<Leaver>,
    /// How far its clock is from the true time.
    clock_ms: i64,
}

/// What becomes of an outcome once it is on disk.
enum Then {
    /// To whom, to what, and in which era of that name it was asked.
    /// And whether that address had proved that it hears.
    Answer(SocketAddr, Box<Request>, u32, bool),
    Leave(SocketAddr, Box<Request>, bool),
    Nothing,
    Stored(u64),
}

struct Waiting(Outcome<u64>, Then);

struct Running {
    core: Settlement,
    /// The peer at the other end of each line that is open.
    lines: [Option<usize>; 2],
    /// The step whose time runs.
    step: Option<u8>,
    storing: Option<Milestone>,
}

struct Leaver {
    source: SocketAddr,
    request: Box<Request>,
    proved: bool,
    since: u64,
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

fn rules() -> Rules {
    let windows =
        Windows { offer: Duration::from_secs(5), negotiate: Duration::from_secs(10), reserve: Duration::from_secs(60) };
    Rules { windows, fee: FeeRate::default(), cert_sha256: None }
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

    /// Comes up from what is on disk. A clock that was set while it was down is part of life.
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
            leavers: Vec::new(),
            clock_ms: skew,
        });
        self.rules.loaded(&self.disk.lock().rows);
        self.resume(resumed);
        let start = self.starts;
        self.at(SWEEP_MS, Event::Sweep { start });
        self.at(1_000, Event::Leavers { start });
    }

    fn resume(&mut self, resumed: Resumed) {
        for (at, deal) in resumed.deadlines {
            self.arm(at, deal);
        }
        for told in resumed.pushes {
            self.push(told, 0);
        }
        for (deal, _) in resumed.settlements {
            let Some(server) = &self.server else { return };
            if server.settlements.contains_key(&deal) {
                continue;
            }
            if let Some(order) = server.exchange.settling(deal) {
                let (core, actions) = Settlement::recover(order);
                self.run_settlement(deal, Running { core, lines: [None; 2], step: None, storing: None }, actions);
            }
        }
    }

    /// True if the power has just gone.
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

    /// The store has refused a whole batch: nothing of it happened, and memory is built anew.
    fn store_fails(&mut self) {
        self.note(|| "-- the store refuses the batch".to_owned());
        self.tally.store_failures += 1;
        self.disk.fail();
        let now = self.server_now();
        let (exchange, resumed) = Exchange::load(self.disk.clone(), rules(), self.disk.snapshot(), 0, now);
        let Some(server) = &mut self.server else { return };
        server.exchange = exchange;
        server.leavers.clear();
        let start = self.starts;
        for Waiting(_, then) in std::mem::take(&mut server.waiting) {
            match then {
                Then::Answer(to, request, _, proved) | Then::Leave(to, request, proved) => {
                    let reply =
                        Reply::Error { rq: Some(request.rq), code: Code::Unavailable, reason: "try again".to_owned() };
                    self.answer(to, reply, proved);
                }
                Then::Nothing => {}
                Then::Stored(deal) if self.rng.permille(500) => self.at(100, Event::StoreAgain { start, deal }),
                // Its thread gives up; the lines are cut, and it is taken up again by what is on disk.
                Then::Stored(deal) => {
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
        // A call that was on its way when the power went still reaches the bank, perhaps late.
        if let Event::Bank { start, deal, key, call, tries } = event {
            return self.bank_is_asked(start, deal, key, call, tries);
        }
        let now = self.server_now();
        let current = self.starts;
        let Some(server) = &mut self.server else { return };
        match event {
            Event::Request { from, request } => {
                match request.ask {
                    Ask::Register(_) => self.rules.begins_anew(&request.name),
                    Ask::LookingFor { .. } => self.tally.deals += 1,
                    _ => {}
                }
                let bytes = encode_request(request.rq, &request.name, request.token.as_ref(), &request.ask).len();
                let proved = server.exchange.came(from, bytes);
                self.rules.came(from, bytes);
                self.rules.token_came(from, request.token.as_ref());
                let origin = Origin { source: from, asked: None, via: Via::Udp };
                let outcome = server.exchange.request(now, &origin, &request);
                if let (Ask::DeRegister, None | Some(Reply::DeRegistered { .. })) = (&request.ask, &outcome.answer) {
                    self.rules.leaving(&request.name);
                }
                if let (Ask::Buy { price, .. }, Some(deal)) = (&request.ask, outcome.settle) {
                    self.rules.bought(deal, price.0);
                }
                let era = self.rules.era(&request.name);
                let then = match outcome.leaving {
                    Some(_) => Then::Leave(from, request, proved),
                    None => Then::Answer(from, request, era, proved),
                };
                self.outcome(outcome, then);
            }
            Event::Ack { from, mid } => {
                let (from, ack) = World::ack(from, mid);
                let bytes = encode_ack(mid, None).len();
                server.exchange.came(from, bytes);
                self.rules.came(from, bytes);
                self.rules.mid_came(from, mid);
                server.exchange.ack(now, from, &ack);
                self.commit_soon();
            }
            Event::Commit { start } if start == current => self.commit(),
            Event::Tick { start, deal } if start == current => {
                let outcome = server.exchange.tick(now, deal);
                self.outcome(outcome, Then::Nothing);
            }
            Event::Resend { start, told, sent } if start == current => self.push(told, sent),
            Event::Sweep { start } if start == current => {
                // Promises end a little before the server may forget them; its clock may be wrong.
                let ended_before = Millis(now.0.saturating_sub(400_000));
                self.rules.may_forget(&self.disk.lock().rows, ended_before);
                let outcome = server.exchange.sweep(now);
                self.outcome(outcome, Then::Nothing);
                self.commit_soon();
                self.at(SWEEP_MS, Event::Sweep { start });
            }
            Event::Leavers { start } if start == current => {
                self.leavers();
                self.at(1_000, Event::Leavers { start });
            }
            Event::LineToServer { start, deal, side, text } if start == current && server.has_line(deal, side) => {
                self.settlement(deal, Input::Line(side, &text));
            }
            Event::LineBroke { start, deal, side } if start == current => {
                let line = server.settlements.get_mut(&deal).and_then(|running| running.lines[place(side)].take());
                if line.is_some() {
                    self.settlement(deal, Input::Lost(side, "closed"));
                }
            }
            Event::StepTimeout { start, deal, step } if start == current && server.is_in_step(deal, step) => {
                self.settlement(deal, Input::TimedOut);
            }
            Event::BankSaid { start, deal, answer } if start == current => {
                let price = server.settlements.get(&deal).map(|running| running.core.order().price).unwrap_or_default();
                let input = match answer {
                    Answer::Authorised => Input::Authorised,
                    Answer::Declined => Input::Declined("the card is not good"),
                    Answer::Captured => Input::Captured,
                    Answer::CaptureRefused => Input::CaptureRefused("not this time"),
                    Answer::Voided => Input::Voided,
                    Answer::AlreadyCaptured => Input::AlreadyCaptured(price),
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

    fn outcome(&mut self, outcome: Outcome<u64>, then: Then) {
        let early = self.fault == Some(Fault::SendBeforeCommit);
        if early || self.disk.is_committed(&outcome.receipt) {
            return self.release(Waiting(outcome, then));
        }
        if let Some(server) = &mut self.server {
            server.waiting.push(Waiting(outcome, then));
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
                self.rules.slots(&disk.rows, server.exchange.settlements());
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

    /// It is on disk: it may leave.
    fn release(&mut self, Waiting(outcome, then): Waiting) {
        let Outcome { receipt, answer, pushes, once, deadlines, settle, leaving, .. } = outcome;
        let start = self.starts;
        if let (Then::Answer(to, request, era, proved), Some(reply)) = (&then, answer) {
            self.rules.leaves(&self.disk, receipt, &reply);
            self.rules.answer(&self.disk.lock().rows, request, *era, &reply);
            self.answer(*to, reply, *proved);
        }
        for told in pushes {
            if self.may_crash() {
                return;
            }
            self.rules.leaves(&self.disk, receipt, &told);
            self.push(told, 0);
        }
        for outgoing in once {
            self.send_push(outgoing);
        }
        for (at, deal) in deadlines {
            self.arm(at, deal);
        }
        if let Some(deal) = settle {
            self.begin_settlement(deal);
        }
        match then {
            Then::Leave(source, request, proved) => {
                let until_ms = self.now + 30_000;
                if let (Some(server), Some(since)) = (&mut self.server, leaving) {
                    server.leavers.push(Leaver { source, request, proved, since, until_ms });
                }
            }
            Then::Stored(deal) => {
                let running = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal));
                if let Some(running) = running {
                    running.storing = None;
                    self.settlement(deal, Input::Stored);
                } else {
                    self.note(|| format!("settlement {deal} of start {start} is gone"));
                }
            }
            Then::Answer(..) | Then::Nothing => {}
        }
    }

    fn push(&mut self, told: Told, sent: u32) {
        let start = self.starts;
        let outgoing = self.server.as_ref().and_then(|server| server.exchange.push(told));
        let Some(mut outgoing) = outgoing else { return };
        if self.fault == Some(Fault::PushElsewhere) {
            outgoing.to.set_port(outgoing.to.port() + 1);
        }
        self.rules.push(&self.disk, told, &outgoing.push, outgoing.to);
        self.send_push(outgoing);
        if let Some(delay) = RESEND_MS.get(sent as usize) {
            self.at(*delay, Event::Resend { start, told, sent: sent + 1 });
        }
    }

    fn send_push(&mut self, outgoing: Outgoing) {
        let Outgoing { to, proved, push, .. } = outgoing;
        let bytes = encode(&push).len();
        let may = |server: &Server| proved || server.exchange.may_send(to, bytes);
        if self.fault != Some(Fault::SendToTheSilent) && !self.server.as_ref().is_some_and(may) {
            return;
        }
        self.rules.goes(to, bytes);
        self.rules.mid_goes(to, &push);
        self.network(Event::Push { to, push: Box::new(push) });
    }

    /// To who may not hear an answer goes as far as what came from there allows.
    fn answer(&mut self, to: SocketAddr, mut reply: Reply, proved: bool) {
        let Some(server) = &self.server else { return };
        let proved = proved || server.exchange.standing(to).is_proved;
        let Some(bytes) = server.exchange.fit(&mut reply, to, proved, DATAGRAM_MAX) else { return };
        self.rules.goes(to, bytes.len());
        if let Reply::Registered { token, .. } = &reply {
            self.rules.token_goes(to, &token.0);
        }
        self.network(Event::Reply { to, reply: Box::new(reply) });
    }

    fn leavers(&mut self) {
        let now = self.server_now();
        let Some(server) = &mut self.server else { return };
        let mut outcomes = Vec::new();
        let leavers = std::mem::take(&mut server.leavers);
        for leaver in leavers {
            let Leaver { source, request, proved, since, until_ms } = leaver;
            let outcome = server.exchange.leave(now, source, request.rq, &request.name, since);
            if outcome.leaving.is_none() {
                let era = self.rules.era(&request.name);
                outcomes.push((outcome, Then::Answer(source, request, era, proved)));
                continue;
            }
            outcomes.push((outcome, Then::Nothing));
            if self.now >= until_ms {
                server.exchange.stay(&request.name, since);
            } else {
                server.leavers.push(Leaver { source, request, proved, since, until_ms });
            }
        }
        for (outcome, then) in outcomes {
            self.outcome(outcome, then);
        }
    }

    // Settlements.

    fn begin_settlement(&mut self, deal: u64) {
        let Some(order) = self.server.as_ref().and_then(|server| server.exchange.settling(deal)) else { return };
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
                self.settlement(deal, Input::Lost(side, "refused"));
            }
        }
    }

    fn run_settlement(&mut self, deal: u64, running: Running, actions: Vec<Action>) {
        if let Some(server) = &mut self.server {
            server.settlements.insert(deal, running);
        }
        self.act(deal, actions);
    }

    fn settlement(&mut self, deal: u64, input: Input) {
        let Some(running) = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal)) else { return };
        let actions = running.core.handle(input);
        self.act(deal, actions);
    }

    fn act(&mut self, deal: u64, actions: Vec<Action>) {
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
                Action::Write(side, line) => match running.lines[place(side)] {
                    Some(_) if breaks => self.at(3, Event::LineBroke { start, deal, side }),
                    Some(peer) => self.at(5, Event::LineToPeer { deal, side, peer, line: Box::new(line) }),
                    None => {}
                },
                Action::Authorise(card) => {
                    let good = card.number.passes_luhn() && card.number.last4() != "0002";
                    self.at(10, bank(Call::Authorise(good)));
                }
                Action::Capture => self.at(10, bank(Call::Capture)),
                Action::Void => self.at(10, bank(Call::Void)),
                Action::Store(milestone) => {
                    running.storing = Some(milestone);
                    self.store(deal);
                }
                Action::Close => {
                    if let Some(server) = &mut self.server {
                        server.settlements.remove(&deal);
                    }
                }
            }
        }
        let running = self.server.as_mut().and_then(|server| server.settlements.get_mut(&deal));
        let begins = |running: &Running| running.core.awaits_a_side() && running.step != Some(running.core.step());
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
            Milestone::Authorised => DealEvent::Authorised,
            Milestone::Shipped => DealEvent::Shipped,
            Milestone::Captured => DealEvent::Captured,
            Milestone::Failed(reason) => DealEvent::SettlementFailed(reason),
        };
        match server.exchange.settlement(now, deal, event) {
            Ok(outcome) if self.fault == Some(Fault::TrustTheDisk) => {
                self.outcome(outcome, Then::Nothing);
                self.settlement(deal, Input::Stored);
            }
            Ok(outcome) => self.outcome(outcome, Then::Stored(deal)),
            Err(refusal) => panic!("deal {deal} does not take {milestone:?}: {refusal}"),
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
                return self.settlement(deal, Input::Declined("the bank does not answer"));
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
            // Its answer is lost: the same call again.
            return self.at(700, Event::Bank { start, deal, key, call, tries: tries + 1 });
        }
        self.at(10, Event::BankSaid { start, deal, answer });
    }
}
