//! Who is who: REGISTER, LOGIN, DE-REGISTER.

use std::net::SocketAddr;
use std::sync::Arc;

use super::hearing::Held;
use super::{ANSWERS_KEPT, Exchange, Origin, Outcome, PEERS_MAX, PeerCell, Refused};
use crate::model::{Millis, Name, Token, text};
use crate::storage;
use crate::net::source;
use crate::trade::deal::{Event, State};
use crate::trade::journal::{Change, FarewellRow, Hearing, Journal, LoginRow, PeerRow};
use crate::trade::wire::{Code, Reach, Refusal, Reply, Request, Secret};
use std::sync::atomic::Ordering;

/// LOGINs remembered of one peer.
const LOGINS_MAX: usize = 16;
/// The ports that a peer may name: no service of a machine listens below.
const PORTS: std::ops::RangeInclusive<u32> = 1024..=65535;

type Done<J> = Result<Outcome<<J as storage::Journal>::Receipt>, Refused<J>>;

/// What became of a registration: done, or its address is held by another name.
type Registered<J> = Result<Outcome<<J as storage::Journal>::Receipt>, Held>;

impl<J: Journal> Exchange<J> {
    pub(super) fn register(&self, now: Millis, origin: &Origin, request: &Request, reach: &Reach) -> Done<J> {
        let source = origin.source;
        let denied = |reason: String, receipt| {
            let answer = Some(Reply::RegisterDenied { rq: request.rq, reason });
            Ok(Outcome { receipt, answer, ..Outcome::default() })
        };
        if let Err(reason) = reach.check(source) {
            return denied(reason, J::Receipt::default());
        }
        loop {
            let Some(peer) = self.peer(&request.name) else {
                // Who has a name from before this was asked keeps it; from here on nobody gets one.
                text::check_visible(request.name.as_str()).map_err(|wrong| {
                    let refusal = Refusal::new(Code::BadRequest, format!("name: {wrong}"));
                    (refusal, self.directory_changed.lock().clone())
                })?;
                match self.register_new(now, origin, request, reach)? {
                    Some(Ok(outcome)) => return Ok(outcome),
                    Some(Err(Held)) => return denied(held(reach), self.directory_changed.lock().clone()),
                    // Someone else was quicker: look at who.
                    None => continue,
                }
            };
            let mut state = peer.state.lock();
            if state.leaving {
                return denied("that name is about to become free; try again".to_owned(), state.last.clone());
            }
            let own = state.row.proves(request.token.as_ref(), origin).is_ok();
            let repeat = request.token.is_none()
                && source == state.row.first_source
                && reach.is_of(&state.row)
                && state.row.registered_at.until(now) < ANSWERS_KEPT;
            if !own && !repeat {
                let last = state.last.clone();
                let unused = state.open_searches == 0 && state.open_sides == 0;
                if unused && peer.has_lapsed(now, &state) {
                    // Nobody has heard of the holder for so long: the name is free again.
                    state.leaving = true;
                    drop(state);
                    self.remove(now, &peer, None);
                    continue;
                }
                return denied("name: taken by another peer".to_owned(), last);
            }
            let reached = |row: &PeerRow| (row.addr, row.tcp_port, row.asked, row.displaced);
            let before = reached(&state.row);
            let Ok(displaced) = self.move_to(now, &peer, &mut state.row, origin, reach) else {
                return denied(held(reach), state.last.clone());
            };
            // A REGISTER begins anew: numbers of deals that have ended may be used again.
            let mut changes = Vec::new();
            let ended: Vec<u64> = state.ended.iter().chain(&state.ended_aside).copied().collect();
            let forgets = ended.iter().any(|deal| state.knows_number(*deal));
            if forgets {
                for deal in &ended {
                    state.forget_number(*deal);
                }
                state.row.forgotten = ended;
            }
            if (state.row.addr, state.row.tcp_port) != (before.0, before.1) {
                changes.push(state.row.log("register", now, format!("now at {}", state.row.addr)));
            }
            if forgets || reached(&state.row) != before {
                changes.push(Change::Peer(Box::new(state.row.clone())));
            }
            if !changes.is_empty() {
                state.last = self.journal.append(changes);
            }
            if request.token.is_some() {
                self.token_came(&peer, &mut state, source);
            }
            let (receipt, token) = (state.last.clone(), state.row.token.clone());
            drop(state);
            self.displace(now, displaced, address(reach));
            peer.heard(now);
            peer.unanswered.store(0, Ordering::Relaxed);
            return Ok(Outcome { receipt, answer: Some(self.registered(request.rq, token)), ..Outcome::default() });
        }
    }

    /// `None` when the name was taken in the meantime.
    fn register_new(
        &self,
        now: Millis,
        origin: &Origin,
        request: &Request,
        reach: &Reach,
    ) -> Result<Option<Registered<J>>, Refused<J>> {
        let source = origin.source;
        let since = self.number(1);
        let row = PeerRow {
            name: request.name.clone(),
            addr: address(reach),
            tcp_port: reach.tcp_port as u16,
            token: Token::random(),
            since,
            registered_at: now,
            first_source: source,
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_since: since,
            displaced: false,
            hearing: Hearing::UNPROVED,
            asked: origin.asked,
        };
        let token = row.token.clone();
        let mut peers = self.peers.write();
        if peers.contains_key(&row.name) {
            return Ok(None);
        }
        // Those who left lately count as well: what is kept of them is bounded like the rest.
        if peers.len() + self.farewells.lock().len() >= 2 * PEERS_MAX || peers.len() >= PEERS_MAX {
            let reason = "there are too many registrations; try again later";
            return Err((Refusal::new(Code::Busy, reason), self.directory_changed.lock().clone()));
        }
        let from = source::of(source.ip());
        let mut names = self.names.lock();
        if let Err(full) = names.has_room(from, 1) {
            // Those that fill it may not be on disk yet: their answers leave first.
            let reason = format!("{full}: DE-REGISTER some of the names");
            return Err((Refusal::new(Code::Busy, reason), self.directory_changed.lock().clone()));
        }
        let peer = Arc::new(PeerCell::new(row.clone(), now));
        let displaced = match self.claim(now, row.addr, &peer) {
            Ok(displaced) => displaced,
            Err(held) => return Ok(Some(Err(held))),
        };
        names.take(from, 1);
        drop(names);
        let log = row.log("register", now, format!("at {}", row.addr));
        let mut changes = vec![Change::Peer(Box::new(row.clone())), log];
        // The one who left is back, and its numbers begin anew: a DE-REGISTER of theirs is no repeat.
        let mut farewells = self.farewells.lock();
        let later = (row.name.clone(), request.rq)..=(row.name.clone(), u64::MAX);
        let same = |farewell: &&FarewellRow| [source, row.addr].contains(&farewell.source);
        let undone: Vec<u64> =
            farewells.range(later).map(|(_, farewell)| farewell).filter(same).map(|it| it.rq).collect();
        for rq in undone {
            farewells.remove(&(row.name.clone(), rq));
            changes.push(Change::DropFarewell { name: row.name.clone(), rq });
        }
        drop(farewells);
        let receipt = self.journal.append(changes);
        peer.state.lock().last = receipt.clone();
        peers.insert(request.name.clone(), peer);
        *self.directory_changed.lock() = receipt.clone();
        drop(peers);
        self.displace(now, displaced, row.addr);
        Ok(Some(Ok(Outcome { receipt, answer: Some(self.registered(request.rq, token)), ..Outcome::default() })))
    }

    fn registered(&self, rq: u64, token: Token) -> Reply {
        Reply::Registered { rq, token: Secret(token), cert_sha256: self.rules.cert_sha256.clone() }
    }

    pub(super) fn login(&self, now: Millis, origin: &Origin, request: &Request, reach: &Reach) -> Done<J> {
        let source = origin.source;
        let denied = |reason: String, receipt| {
            let answer = Some(Reply::LoginDenied { rq: request.rq, reason });
            Ok(Outcome { receipt, answer, ..Outcome::default() })
        };
        if let Err(reason) = reach.check(source) {
            return denied(reason, J::Receipt::default());
        }
        let Some(peer) = self.peer(&request.name) else {
            return denied("name: not registered".to_owned(), self.directory_changed.lock().clone());
        };
        let mut state = peer.state.lock();
        if !request.token.as_ref().is_some_and(|token| state.row.token.matches(token)) {
            return denied("token: this is not the token of that name".to_owned(), state.last.clone());
        }
        // Its row may be gone from the disk already, and must not come back.
        if state.leaving {
            return denied("that name is about to become free; try again".to_owned(), state.last.clone());
        }
        state.row.logins.retain(|login| login.at.until(now) < ANSWERS_KEPT);
        let answered = state.row.logins.iter().find(|login| login.rq == request.rq);
        let repeat = match answered {
            Some(login) if login.reach == *reach => true,
            Some(_) => return Err((Refusal::new(Code::BadRequest, "rq already used"), state.last.clone())),
            None => false,
        };
        let mut displaced = None;
        if !repeat {
            displaced = match self.move_to(now, &peer, &mut state.row, origin, reach) {
                Ok(displaced) => displaced,
                Err(Held) => return denied(held(reach), state.last.clone()),
            };
            if state.row.logins.len() == LOGINS_MAX {
                state.row.logins.remove(0);
            }
            state.row.logins.push(LoginRow { rq: request.rq, reach: *reach, at: now });
            let log = state.row.log("login", now, format!("at {}", state.row.addr));
            state.last = self.journal.append(vec![Change::Peer(Box::new(state.row.clone())), log]);
        }
        self.token_came(&peer, &mut state, source);
        let receipt = state.last.clone();
        drop(state);
        self.displace(now, displaced, address(reach));
        peer.heard(now);
        peer.unanswered.store(0, Ordering::Relaxed);
        let answer = Reply::LoggedIn { rq: request.rq, cert_sha256: self.rules.cert_sha256.clone() };
        Ok(Outcome { receipt, answer: Some(answer), ..Outcome::default() })
    }

    /// A peer that has shown who it is names its address. The peer that had it before, if there is one, is
    /// to be [displaced](Exchange::displace).
    fn move_to(
        &self,
        now: Millis,
        peer: &Arc<PeerCell<J>>,
        row: &mut PeerRow,
        origin: &Origin,
        reach: &Reach,
    ) -> Result<Option<Arc<PeerCell<J>>>, Held> {
        let addr = address(reach);
        let mut displaced = None;
        if addr != row.addr || row.displaced {
            displaced = self.claim(now, addr, peer)?;
            if addr != row.addr {
                self.leave_address(row.addr, peer);
            }
            (row.addr, row.addr_since, row.displaced) = (addr, self.number(1), false);
            (row.hearing.here, row.hearing.moved) = (false, true);
            peer.proved.store(false, Ordering::Relaxed);
        }
        row.tcp_port = reach.tcp_port as u16;
        row.asked = origin.asked;
        Ok(displaced)
    }

    pub(super) fn deregister(&self, now: Millis, origin: &Origin, request: &Request) -> Done<J> {
        let source = origin.source;
        let farewell = self.farewells.lock().get(&(request.name.clone(), request.rq)).cloned();
        let repeat =
            farewell.is_some_and(|farewell| farewell.source == source && farewell.at.until(now) < ANSWERS_KEPT);
        // A repeat of what a former holder asked cannot bear the token that came after it.
        let newer = |state: &PeerRow| request.token.as_ref().is_some_and(|token| state.token.matches(token));
        let peer = self.peer(&request.name);
        let Some(peer) = peer.filter(|peer| !repeat || newer(&peer.state.lock().row)) else {
            let receipt = self.directory_changed.lock().clone();
            let answer = Some(Reply::DeRegistered { rq: request.rq });
            return Ok(Outcome { receipt, answer, ..Outcome::default() });
        };
        let state = peer.state.lock();
        state.row.proves(request.token.as_ref(), origin).map_err(|refusal| (refusal, state.last.clone()))?;
        drop(state);
        let outcome = self.depart(now, &peer);
        if outcome.leaving.is_some() {
            return Ok(outcome);
        }
        let mut outcome = Outcome { answer: Some(Reply::DeRegistered { rq: request.rq }), ..outcome };
        outcome.receipt = J::later(outcome.receipt, self.remove(now, &peer, Some((request.rq, source))));
        Ok(outcome)
    }

    /// Ends every deal of a peer that can be ended, and lets it begin no other. `leaving` is set when a
    /// settlement is under way: [`Exchange::leave`] goes on when that is over.
    pub(super) fn depart(&self, now: Millis, peer: &PeerCell<J>) -> Outcome<J::Receipt> {
        let deals: Vec<u64> = {
            let mut state = peer.state.lock();
            state.leaving = true;
            state.links.keys().copied().collect()
        };
        let mut outcome = Outcome { receipt: peer.state.lock().last.clone(), ..Outcome::default() };
        for id in deals {
            let Some(cell) = self.deal(id) else { continue };
            let mut state = cell.state.lock();
            let party = state.deal.parties().find(|party| *state.deal.name_of(*party) == peer.name);
            let Some(party) = party.filter(|_| !state.forgotten) else { continue };
            if matches!(state.deal.state(), State::Settling { .. }) && state.deal.is_settling_with(party) {
                outcome.leaving = Some(peer.since);
                continue;
            }
            // Gone is never refused.
            if let Ok(step) = self.step(now, &mut state, Event::Gone(party)) {
                outcome.absorb::<J>(step);
            }
        }
        self.let_go(&mut outcome);
        outcome
    }

    /// Goes on with a DE-REGISTER that waited for settlements: answers, or says that some still run.
    /// `since` is what [`Outcome::leaving`] said: whoever has the name by now may be someone else.
    pub fn leave(&self, now: Millis, source: SocketAddr, rq: u64, name: &Name, since: u64) -> Outcome<J::Receipt> {
        let Some(peer) = self.peer(name).filter(|peer| peer.since == since) else {
            let receipt = self.directory_changed.lock().clone();
            return Outcome { receipt, answer: Some(Reply::DeRegistered { rq }), ..Outcome::default() };
        };
        let outcome = self.depart(now, &peer);
        if outcome.leaving.is_some() {
            return outcome;
        }
        let receipt = J::later(outcome.receipt.clone(), self.remove(now, &peer, Some((rq, source))));
        Outcome { answer: Some(Reply::DeRegistered { rq }), receipt, ..outcome }
    }

    /// A DE-REGISTER that could not wait any longer: the peer stays.
    pub fn stay(&self, name: &Name, since: u64) {
        // Held meanwhile: who is being removed at this moment must not be thought to stay.
        let peers = self.peers.read();
        if let Some(peer) = peers.get(name).filter(|peer| peer.since == since) {
            peer.state.lock().leaving = false;
        }
    }

    pub(super) fn remove(&self, now: Millis, peer: &PeerCell<J>, asked: Option<(u64, SocketAddr)>) -> J::Receipt {
        let mut peers = self.peers.write();
        // Another thread may have removed it, and someone else may have the name by now.
        if peers.get(&peer.name).is_none_or(|held| held.since != peer.since) {
            return self.directory_changed.lock().clone();
        }
        peers.remove(&peer.name);
        self.names.lock().give_back(peer.registered_from(), 1);
        let row = {
            let mut state = peer.state.lock();
            // From here on no row of it can follow the one that drops it.
            state.leaving = true;
            state.row.clone()
        };
        self.leave_address(row.addr, peer);
        let mut changes = vec![Change::DropPeer(peer.name.clone()), row.log("de-register", now, String::new())];
        if let Some((rq, source)) = asked {
            let farewell = FarewellRow { name: peer.name.clone(), rq, source, at: now };
            self.farewells.lock().insert((peer.name.clone(), rq), farewell.clone());
            changes.push(Change::Farewell(farewell));
        }
        let receipt = self.journal.append(changes);
        *self.directory_changed.lock() = receipt.clone();
        drop(peers);
        let links: Vec<u64> = peer.state.lock().links.keys().copied().collect();
        self.release_holders(links);
        receipt
    }
}

fn address(reach: &Reach) -> SocketAddr {
    SocketAddr::new(reach.ip, reach.udp_port as u16)
}

/// Why an address is not given; whose it is does not concern who asks.
fn held(reach: &Reach) -> String {
    format!("udp_port: {} is another peer's; choose another port", address(reach))
}

impl Reach {
    /// The server must not be made to talk to a stranger, or to a service.
    fn check(&self, source: SocketAddr) -> Result<(), String> {
        if self.ip != source.ip().to_canonical() {
            return Err(format!("ip: expected {}, where this comes from", source.ip().to_canonical()));
        }
        for (field, port) in [("udp_port", self.udp_port), ("tcp_port", self.tcp_port)] {
            if !PORTS.contains(&port) {
                return Err(format!("{field}: expected a port from 1024 to 65535, not {port}"));
            }
        }
        Ok(())
    }

    fn is_of(&self, row: &PeerRow) -> bool {
        let Reach { ip, udp_port, tcp_port } = *self;
        ip == row.addr.ip() && udp_port == u32::from(row.addr.port()) && tcp_port == u32::from(row.tcp_port)
    }
}
