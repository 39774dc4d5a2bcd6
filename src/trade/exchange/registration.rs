use std::net::SocketAddr;
use std::sync::Arc;

use super::addresses::AddressInUse;
use super::{
    ANSWER_RETENTION, Exchange, ExchangeEffects, FailedRequest, PEERS_MAX, RegisteredPeer, RegisteredPeerState,
    RequestOrigin, RequestResult,
};
use crate::model::{Millis, Name, Token, text};
use crate::net::source;
use crate::trade::deal::DealInput;
use crate::trade::journal::{AddressValidation, DepartureRow, ExchangeChange, Journal, LoginRow, PeerRow};
use crate::trade::wire::{ErrorCode, PeerEndpoint, Request, RequestError, Response};
use std::sync::atomic::Ordering;

/// LOGINs remembered of one peer.
const LOGINS_MAX: usize = 16;
/// Lower ports belong to system services.
const PORTS: std::ops::RangeInclusive<u32> = 1024..=65535;

/// An error if the address is held by another peer.
type RegistrationResult<J> = Result<ExchangeEffects<<J as crate::storage::Journal>::Commit>, AddressInUse>;

impl<J: Journal> Exchange<J> {
    pub(super) fn register(
        &self,
        now: Millis,
        origin: &RequestOrigin,
        request: &Request,
        endpoint: &PeerEndpoint,
    ) -> RequestResult<J> {
        let source = origin.source;
        let denied = |reason: String, commit| {
            Ok(ExchangeEffects::answer(commit, Response::RegisterDenied { rq: request.rq, reason }))
        };
        if let Err(reason) = endpoint.check(source) {
            return denied(reason, J::Commit::default());
        }
        loop {
            let Some(peer) = self.peer(&request.name) else {
                // Names with invisible characters from before this check remain valid.
                text::check_visible(request.name.as_str()).map_err(|wrong| {
                    let error = RequestError::new(ErrorCode::BadRequest, format!("name: {wrong}"));
                    (error, self.directory_commit.lock().clone())
                })?;
                match self.register_new(now, origin, request, endpoint)? {
                    Some(Ok(effects)) => return Ok(effects),
                    Some(Err(AddressInUse)) => {
                        return denied(address_in_use(endpoint), self.directory_commit.lock().clone());
                    }
                    // Another request registered the name first.
                    None => continue,
                }
            };
            let mut state = peer.state.lock();
            if state.is_leaving {
                return denied("that name is about to become free; try again".to_owned(), state.last_commit.clone());
            }
            let is_own = state.row.proves(request.token.as_ref(), origin).is_ok();
            let is_repeat = request.token.is_none()
                && source == state.row.first_source
                && endpoint.matches_row(&state.row)
                && state.row.registered_at.until(now) < ANSWER_RETENTION;
            if !is_own && !is_repeat {
                let last = state.last_commit.clone();
                let is_unused = state.open_searches == 0 && state.open_received == 0;
                if is_unused && peer.has_lapsed(now, &state) {
                    state.is_leaving = true;
                    drop(state);
                    self.remove_peer(now, &peer, None);
                    continue;
                }
                return denied("name: taken by another peer".to_owned(), last);
            }
            let Ok(displaced) = self.renew_registration(now, &peer, &mut state, origin, request, endpoint) else {
                return denied(address_in_use(endpoint), state.last_commit.clone());
            };
            let (commit, token) = (state.last_commit.clone(), state.row.token.clone());
            drop(state);
            self.displace(now, displaced, udp_address(endpoint));
            peer.mark_seen(now);
            peer.unanswered_searches.store(0, Ordering::Relaxed);
            return Ok(ExchangeEffects::answer(commit, self.registered_response(request.rq, token)));
        }
    }

    /// A REGISTER of the peer that holds the name. Returns the peer that held the address before, to be
    /// [displaced](Exchange::displace).
    fn renew_registration(
        &self,
        now: Millis,
        peer: &Arc<RegisteredPeer<J>>,
        state: &mut RegisteredPeerState<J>,
        origin: &RequestOrigin,
        request: &Request,
        endpoint: &PeerEndpoint,
    ) -> Result<Option<Arc<RegisteredPeer<J>>>, AddressInUse> {
        let reachable_at = |row: &PeerRow| (row.addr, row.tcp_port, row.local_ip, row.displaced);
        let before = reachable_at(&state.row);
        let displaced = self.set_endpoint(now, peer, &mut state.row, origin, endpoint)?;
        // A REGISTER makes the numbers of ended deals available again.
        let mut changes = Vec::new();
        let ended: Vec<u64> = state.ended.iter().chain(&state.ended_as_recipient).copied().collect();
        let frees_numbers = ended.iter().any(|deal| state.owns_rq(*deal));
        if frees_numbers {
            for deal in &ended {
                state.free_rq(*deal);
            }
            state.row.forgotten = ended;
        }
        if (state.row.addr, state.row.tcp_port) != (before.0, before.1) {
            changes.push(state.row.log("register", now, format!("now at {}", state.row.addr)));
        }
        if frees_numbers || reachable_at(&state.row) != before {
            changes.push(ExchangeChange::Peer(Box::new(state.row.clone())));
        }
        if !changes.is_empty() {
            state.last_commit = self.journal.append(changes);
        }
        if request.token.is_some() {
            self.token_presented(peer, state, origin.source);
        }
        Ok(displaced)
    }

    /// `None` if the name was taken in the meantime.
    fn register_new(
        &self,
        now: Millis,
        origin: &RequestOrigin,
        request: &Request,
        endpoint: &PeerEndpoint,
    ) -> Result<Option<RegistrationResult<J>>, FailedRequest<J>> {
        let source = origin.source;
        let registration_id = self.allocate_ids(1);
        let row = PeerRow {
            name: request.name.clone(),
            addr: udp_address(endpoint),
            tcp_port: endpoint.tcp_port as u16,
            token: Token::random(),
            registration_id,
            registered_at: now,
            first_source: source,
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_sequence: registration_id,
            displaced: false,
            validation: AddressValidation::UNVALIDATED,
            local_ip: origin.local_ip,
        };
        let token = row.token.clone();
        let mut peers = self.peers.write();
        if peers.contains_key(&row.name) {
            return Ok(None);
        }
        // Recent departures count as well, which bounds them too.
        if peers.len() + self.departures.lock().len() >= 2 * PEERS_MAX || peers.len() >= PEERS_MAX {
            let reason = "there are too many registrations; try again later";
            return Err((RequestError::new(ErrorCode::Busy, reason), self.directory_commit.lock().clone()));
        }
        let from = source::key_of(source.ip());
        let mut names = self.names_by_source.lock();
        if let Err(full) = names.check_room(from, 1) {
            // The registrations that fill the quota may not be on disk yet; the refusal is not sent before they are.
            let reason = format!("{full}: DE-REGISTER some of the names");
            return Err((RequestError::new(ErrorCode::Busy, reason), self.directory_commit.lock().clone()));
        }
        let peer = Arc::new(RegisteredPeer::new(row.clone(), now));
        let displaced = match self.claim_address(now, row.addr, &peer) {
            Ok(displaced) => displaced,
            Err(other) => return Ok(Some(Err(other))),
        };
        names.acquire(from, 1);
        drop(names);
        let log = row.log("register", now, format!("at {}", row.addr));
        let mut changes = vec![ExchangeChange::Peer(Box::new(row.clone())), log];
        // The peer is back and its numbers begin anew, so a DE-REGISTER with an old number is not a repeat.
        let mut departures = self.departures.lock();
        let later_requests = (row.name.clone(), request.rq)..=(row.name.clone(), u64::MAX);
        let is_same_source = |departure: &DepartureRow| [source, row.addr].contains(&departure.source);
        let superseded = departures.range(later_requests).map(|(_, departure)| departure);
        let superseded: Vec<u64> = superseded.filter(|it| is_same_source(it)).map(|it| it.rq).collect();
        for rq in superseded {
            departures.remove(&(row.name.clone(), rq));
            changes.push(ExchangeChange::DropDeparture { name: row.name.clone(), rq });
        }
        drop(departures);
        let commit = self.journal.append(changes);
        peer.state.lock().last_commit = commit.clone();
        peers.insert(request.name.clone(), peer);
        *self.directory_commit.lock() = commit.clone();
        drop(peers);
        self.displace(now, displaced, row.addr);
        Ok(Some(Ok(ExchangeEffects::answer(commit, self.registered_response(request.rq, token)))))
    }

    fn registered_response(&self, rq: u64, token: Token) -> Response {
        Response::Registered { rq, token, cert_sha256: self.rules.cert_sha256.clone() }
    }

    pub(super) fn login(
        &self,
        now: Millis,
        origin: &RequestOrigin,
        request: &Request,
        endpoint: &PeerEndpoint,
    ) -> RequestResult<J> {
        let source = origin.source;
        let denied = |reason: String, commit| {
            Ok(ExchangeEffects::answer(commit, Response::LoginDenied { rq: request.rq, reason }))
        };
        if let Err(reason) = endpoint.check(source) {
            return denied(reason, J::Commit::default());
        }
        let Some(peer) = self.peer(&request.name) else {
            return denied("name: not registered".to_owned(), self.directory_commit.lock().clone());
        };
        let mut state = peer.state.lock();
        if !request.token.as_ref().is_some_and(|token| state.row.token.matches(token)) {
            return denied("token: this is not the token of that name".to_owned(), state.last_commit.clone());
        }
        // The peer's row may already be removed from the disk.
        if state.is_leaving {
            return denied("that name is about to become free; try again".to_owned(), state.last_commit.clone());
        }
        state.row.logins.retain(|login| login.at.until(now) < ANSWER_RETENTION);
        let answered = state.row.logins.iter().find(|login| login.rq == request.rq);
        let is_repeat = match answered {
            Some(login) if login.endpoint == *endpoint => true,
            Some(_) => {
                return Err((RequestError::new(ErrorCode::BadRequest, "rq already used"), state.last_commit.clone()));
            }
            None => false,
        };
        let mut displaced = None;
        if !is_repeat {
            displaced = match self.set_endpoint(now, &peer, &mut state.row, origin, endpoint) {
                Ok(displaced) => displaced,
                Err(AddressInUse) => return denied(address_in_use(endpoint), state.last_commit.clone()),
            };
            if state.row.logins.len() == LOGINS_MAX {
                state.row.logins.remove(0);
            }
            state.row.logins.push(LoginRow { rq: request.rq, endpoint: *endpoint, at: now });
            let log = state.row.log("login", now, format!("at {}", state.row.addr));
            state.last_commit = self.journal.append(vec![ExchangeChange::Peer(Box::new(state.row.clone())), log]);
        }
        self.token_presented(&peer, &mut state, source);
        let commit = state.last_commit.clone();
        drop(state);
        self.displace(now, displaced, udp_address(endpoint));
        peer.mark_seen(now);
        peer.unanswered_searches.store(0, Ordering::Relaxed);
        let response = Response::LoggedIn { rq: request.rq, cert_sha256: self.rules.cert_sha256.clone() };
        Ok(ExchangeEffects::answer(commit, response))
    }

    /// Sets the address that an authenticated peer names. Returns the peer that held the address before, to be
    /// [displaced](Exchange::displace).
    fn set_endpoint(
        &self,
        now: Millis,
        peer: &Arc<RegisteredPeer<J>>,
        row: &mut PeerRow,
        origin: &RequestOrigin,
        endpoint: &PeerEndpoint,
    ) -> Result<Option<Arc<RegisteredPeer<J>>>, AddressInUse> {
        let addr = udp_address(endpoint);
        let mut displaced = None;
        if addr != row.addr || row.displaced {
            displaced = self.claim_address(now, addr, peer)?;
            if addr != row.addr {
                self.release_address(row.addr, peer);
            }
            (row.addr, row.addr_sequence, row.displaced) = (addr, self.allocate_ids(1), false);
            (row.validation.is_validated, row.validation.has_moved) = (false, true);
            peer.is_validated.store(false, Ordering::Relaxed);
        }
        row.tcp_port = endpoint.tcp_port as u16;
        row.local_ip = origin.local_ip;
        Ok(displaced)
    }

    pub(super) fn deregister(&self, now: Millis, origin: &RequestOrigin, request: &Request) -> RequestResult<J> {
        let source = origin.source;
        let departure = self.departures.lock().get(&(request.name.clone(), request.rq)).cloned();
        let is_repeat =
            departure.is_some_and(|departure| departure.source == source && departure.at.until(now) < ANSWER_RETENTION);
        // A repeat of a former holder's request cannot carry the token that was issued later.
        let has_newer_token = |state: &PeerRow| request.token.as_ref().is_some_and(|token| state.token.matches(token));
        let peer = self.peer(&request.name);
        let Some(peer) = peer.filter(|peer| !is_repeat || has_newer_token(&peer.state.lock().row)) else {
            let commit = self.directory_commit.lock().clone();
            return Ok(ExchangeEffects::answer(commit, Response::DeRegistered { rq: request.rq }));
        };
        let state = peer.state.lock();
        state.row.proves(request.token.as_ref(), origin).map_err(|error| (error, state.last_commit.clone()))?;
        drop(state);
        Ok(self.depart(now, source, request.rq, &peer))
    }

    fn depart(&self, now: Millis, source: SocketAddr, rq: u64, peer: &RegisteredPeer<J>) -> ExchangeEffects<J::Commit> {
        let mut effects = self.begin_departure(now, peer);
        if effects.departing.is_none() {
            effects.response = Some(Response::DeRegistered { rq });
            effects.commit = J::latest(effects.commit, self.remove_peer(now, peer, Some((rq, source))));
        }
        effects
    }

    /// Ends all deals of a peer that can be ended, and lets it begin no other. Sets `departing` if a settlement is in
    /// progress: [`Exchange::resume_departure`] continues when that is over.
    pub(super) fn begin_departure(&self, now: Millis, peer: &RegisteredPeer<J>) -> ExchangeEffects<J::Commit> {
        let deals: Vec<u64> = {
            let mut state = peer.state.lock();
            state.is_leaving = true;
            state.rq_by_deal.keys().copied().collect()
        };
        let mut effects =
            ExchangeEffects { commit: peer.state.lock().last_commit.clone(), ..ExchangeEffects::default() };
        for id in deals {
            let Some(tracked) = self.deal(id) else { continue };
            let mut state = tracked.state.lock();
            let party = state.deal.parties().find(|party| *state.deal.name_of(*party) == peer.name);
            let Some(party) = party.filter(|_| !state.is_removed) else { continue };
            if state.deal.is_settling_with(party) {
                effects.departing = Some(peer.registration_id);
                continue;
            }
            if let Ok(more) = self.step_deal(now, &mut state, DealInput::Departed(party)) {
                effects.absorb::<J>(more);
            }
        }
        self.release_deals(&mut effects);
        effects
    }

    /// Continues a DE-REGISTER that waited for settlements, and may have to wait on. `registration_id` comes from
    /// [`ExchangeEffects::departing`], since the name may have a new holder by now.
    pub fn resume_departure(
        &self,
        now: Millis,
        source: SocketAddr,
        rq: u64,
        name: &Name,
        registration_id: u64,
    ) -> ExchangeEffects<J::Commit> {
        let Some(peer) = self.peer(name).filter(|peer| peer.registration_id == registration_id) else {
            return ExchangeEffects::answer(self.directory_commit.lock().clone(), Response::DeRegistered { rq });
        };
        self.depart(now, source, rq, &peer)
    }

    /// A DE-REGISTER has waited too long: the peer stays registered.
    pub fn cancel_departure(&self, name: &Name, registration_id: u64) {
        // Held so that a peer that is just being removed is not restored.
        let peers = self.peers.read();
        if let Some(peer) = peers.get(name).filter(|peer| peer.registration_id == registration_id) {
            peer.state.lock().is_leaving = false;
        }
    }

    pub(super) fn remove_peer(
        &self,
        now: Millis,
        peer: &RegisteredPeer<J>,
        request: Option<(u64, SocketAddr)>,
    ) -> J::Commit {
        let mut peers = self.peers.write();
        // Another thread may have removed it, and the name may have a new holder.
        if peers.get(&peer.name).is_none_or(|other| other.registration_id != peer.registration_id) {
            return self.directory_commit.lock().clone();
        }
        peers.remove(&peer.name);
        self.names_by_source.lock().release(peer.registration_source(), 1);
        let row = {
            let mut state = peer.state.lock();
            // From here on, no row of this peer can follow its removal.
            state.is_leaving = true;
            state.row.clone()
        };
        self.release_address(row.addr, peer);
        let mut changes = vec![ExchangeChange::DropPeer(peer.name.clone()), row.log("de-register", now, String::new())];
        if let Some((rq, source)) = request {
            let departure = DepartureRow { name: peer.name.clone(), rq, source, at: now };
            self.departures.lock().insert((peer.name.clone(), rq), departure.clone());
            changes.push(ExchangeChange::Departure(departure));
        }
        let commit = self.journal.append(changes);
        *self.directory_commit.lock() = commit.clone();
        drop(peers);
        let deals: Vec<u64> = peer.state.lock().rq_by_deal.keys().copied().collect();
        self.release_holders(deals);
        commit
    }
}

fn udp_address(endpoint: &PeerEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.ip, endpoint.udp_port as u16)
}

/// Does not tell whose address it is.
fn address_in_use(endpoint: &PeerEndpoint) -> String {
    format!("udp_port: {} is another peer's; choose another port", udp_address(endpoint))
}

impl PeerEndpoint {
    /// The server must not send to a third party or to a system service.
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

    fn matches_row(&self, row: &PeerRow) -> bool {
        let PeerEndpoint { ip, udp_port, tcp_port } = *self;
        ip == row.addr.ip() && udp_port == u32::from(row.addr.port()) && tcp_port == u32::from(row.tcp_port)
    }
}
