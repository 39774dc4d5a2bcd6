//! A peer that buys and sells, keeps its state for ever, and does not always follow the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use p2s2::internals::model::{Cents, Name, Token};
use p2s2::internals::trade::wire::{
    DealPhase, DealRequest, DealStatus, ErrorCode, Goods, Notification, PeerEndpoint, Request, RequestBody, Response,
    SettlementMessage, Side,
};

use crate::rng::Rng;

/// The pattern of a request about a deal.
macro_rules! about {
    ($request:pat) => {
        RequestBody::Deal { request: $request, .. }
    };
}
pub(crate) use about;

pub const ITEM: &str = "lamp";
/// The maximum delay of a datagram.
pub const DELAY_MAX_MS: u64 = 4_000;

/// A message that a peer sends.
#[derive(Debug)]
pub enum PeerAction {
    Ask(Request),
    Ack(u64),
}

/// A peer's reaction to a settlement line.
pub enum SettlementReaction {
    Line(String),
    Nothing,
    HangUp,
}

#[derive(Debug, Clone, Default)]
pub struct Unit {
    pub reserved: Option<i64>,
    pub shipped: bool,
    touched_ms: u64,
}

#[derive(Debug, Clone, Default)]
struct Search {
    found: Option<i64>,
    bought: Option<i64>,
    informed: bool,
    touched_ms: u64,
}

/// The habits of a peer, drawn from the seed.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub silent: bool,
    pub never_acks: bool,
    pub liar: bool,
    pub bad_card: bool,
    /// Sends its token with every request.
    pub shows_token: bool,
    /// Forgets the units it has promised; this must be detected.
    pub forgets_units: bool,
}

pub struct Peer {
    pub name: Name,
    pub home: SocketAddr,
    pub tcp_port: u16,
    pub token: Option<Token>,
    pub habits: Habits,
    pub stock: usize,
    price: i64,
    next_rq: u64,
    /// Requests without a response so far.
    pub pending: BTreeMap<u64, Request>,
    seen: BTreeSet<u64>,
    /// The latest stage of each deal; notifications of earlier stages are outdated.
    newest: BTreeMap<u64, u8>,
    /// Units bound to deals, by the server's number.
    pub bound: BTreeMap<u64, Unit>,
    searches: BTreeMap<u64, Search>,
    pub sold: Vec<i64>,
    pub bought: Vec<i64>,
    pub sold_in_doubt: usize,
    pub bought_in_doubt: usize,
    /// The number of the last STATUS, when it was sent, and the deal if it was about only one.
    asked_status: Option<(u64, u64, Option<u64>)>,
    /// The last list of deals was incomplete.
    not_all_fitted: bool,
    /// The server does not know the peer at this address.
    astray: bool,
    /// Earlier requests, to be contradicted by liars.
    said: Vec<Request>,
}

impl Peer {
    pub fn new(place: usize, habits: Habits, rng: &mut Rng) -> Peer {
        let ip: IpAddr = if rng.permille(500) { [127, 0, 0, 1].into() } else { [10, 0, 0, place as u8 + 1].into() };
        Peer {
            name: Name::new(&format!("p{place}")).expect("a name"),
            home: SocketAddr::new(ip, 2_000 + 1_000 * place as u16),
            tcp_port: 40_000 + place as u16,
            token: None,
            habits,
            stock: rng.range(1, 3) as usize,
            price: rng.range(50, 150) as i64 * 100,
            next_rq: 1,
            pending: BTreeMap::new(),
            seen: BTreeSet::new(),
            newest: BTreeMap::new(),
            bound: BTreeMap::new(),
            searches: BTreeMap::new(),
            sold: Vec::new(),
            bought: Vec::new(),
            sold_in_doubt: 0,
            bought_in_doubt: 0,
            asked_status: None,
            not_all_fitted: false,
            astray: false,
            said: Vec::new(),
        }
    }

    /// The number of units that are sold or may be.
    pub fn used(&self) -> usize {
        self.bound.len() + self.sold.len() + self.sold_in_doubt
    }

    fn has_unit(&self) -> bool {
        self.habits.forgets_units || self.used() < self.stock
    }

    fn hold(&mut self, rq: u64, now: u64) {
        if !self.habits.forgets_units {
            self.bound.insert(rq, Unit { touched_ms: now, ..Unit::default() });
        }
    }

    fn rq(&mut self) -> u64 {
        self.next_rq += 1;
        self.next_rq
    }

    fn ask(&mut self, rq: u64, body: RequestBody) -> PeerAction {
        let token = self.token.clone().filter(|_| self.habits.shows_token || matches!(body, RequestBody::Login { .. }));
        let request = Request { rq, name: self.name.clone(), token, body };
        self.pending.insert(rq, request.clone());
        if self.habits.liar {
            self.said.push(request.clone());
        }
        PeerAction::Ask(request)
    }

    fn endpoint(&self) -> PeerEndpoint {
        PeerEndpoint { ip: self.home.ip(), udp_port: self.home.port().into(), tcp_port: self.tcp_port.into() }
    }

    /// Acts spontaneously: does something, or asks for the state of its deals.
    pub fn wake(&mut self, now: u64, healed: bool, rng: &mut Rng) -> Vec<PeerAction> {
        let mut done = Vec::new();
        if self.token.is_none() {
            if self.pending.is_empty() {
                let rq = self.rq();
                done.push(self.ask(rq, RequestBody::Register { endpoint: self.endpoint() }));
            }
            return done;
        }
        if std::mem::take(&mut self.astray) {
            let rq = self.rq();
            done.push(self.ask(rq, RequestBody::Login { endpoint: self.endpoint() }));
        }
        if healed || rng.permille(250) {
            let rq = self.rq();
            let open: Vec<u64> = self.bound.keys().chain(self.searches.keys()).copied().collect();
            let about = if std::mem::take(&mut self.not_all_fitted) { rng.pick(&open).copied() } else { None };
            self.asked_status = Some((rq, now, about));
            done.push(self.ask(rq, RequestBody::Status { rq_deal: about }));
        }
        if healed {
            return done;
        }
        match rng.below(100) {
            0..30 => {
                let (rq, max) = (self.rq(), rng.range(40, 160) as i64 * 100);
                self.searches.insert(rq, Search { touched_ms: now, ..Search::default() });
                done.push(self.look_for(rq, max, ""));
            }
            30..70 => {
                let open: Vec<u64> = self.searches.keys().copied().collect();
                if let Some(rq) = rng.pick(&open).copied().filter(|rq| !self.pending.contains_key(rq)) {
                    done.extend(self.decide(rq, now, rng));
                }
            }
            70..74 => {
                let bound: Vec<u64> = self.bound.keys().copied().collect();
                if let Some(rq) = rng.pick(&bound).copied().filter(|rq| !self.pending.contains_key(rq)) {
                    done.push(self.ask(rq, DealRequest::Cancel.about(ITEM.into())));
                }
            }
            74..76 => {
                let rq = self.rq();
                done.push(self.ask(rq, RequestBody::DeRegister));
            }
            // A peer that never acknowledges is validated only where it was told its token.
            76..79 if !self.habits.never_acks => {
                self.home.set_port(self.home.port() + 1);
                let rq = self.rq();
                done.push(self.ask(rq, RequestBody::Login { endpoint: self.endpoint() }));
            }
            79..81 => {
                let rq = self.rq();
                done.push(self.ask(rq, RequestBody::Register { endpoint: self.endpoint() }));
            }
            81..86 if self.habits.liar => done.extend(self.lie(rng)),
            _ => {}
        }
        done
    }

    fn look_for(&mut self, rq: u64, max: i64, description: &str) -> PeerAction {
        self.ask(
            rq,
            RequestBody::LookingFor { item_name: ITEM.into(), description: description.into(), max_price: Cents(max) },
        )
    }

    fn decide(&mut self, rq: u64, now: u64, rng: &mut Rng) -> Option<PeerAction> {
        let search = self.searches.get_mut(&rq)?;
        search.touched_ms = now;
        match search.found {
            Some(price) if rng.permille(900) => {
                search.bought = Some(price);
                let wrong = self.habits.liar && rng.permille(200);
                let price = Cents(if wrong { 1 } else { price });
                Some(self.ask(rq, DealRequest::Buy { price }.about(ITEM.into())))
            }
            _ if rng.permille(200) => Some(self.ask(rq, DealRequest::Cancel.about(ITEM.into()))),
            _ => None,
        }
    }

    /// Sends a different request under a number in use, without changing its own state.
    fn lie(&mut self, rng: &mut Rng) -> Option<PeerAction> {
        let mut request = rng.pick(&self.said)?.clone();
        // After a REGISTER the number of an ended deal begins another one and hides how the first ended: a peer that
        // lies about what it has paid for could not find out.
        let has_paid = self.searches.get(&request.rq).is_some_and(|search| search.informed);
        if has_paid && matches!(request.body, RequestBody::LookingFor { .. }) {
            return None;
        }
        match &mut request.body {
            RequestBody::LookingFor { max_price, .. } => max_price.0 += 1,
            RequestBody::Deal { item_name, request } => match request {
                DealRequest::Offer { price: amount, .. }
                | DealRequest::Buy { price: amount }
                | DealRequest::Accept { max_price: amount }
                | DealRequest::Refuse { max_price: amount } => amount.0 += 1,
                DealRequest::Cancel | DealRequest::NotAvailable => *item_name = "lump".into(),
            },
            RequestBody::Register { .. }
            | RequestBody::Login { .. }
            | RequestBody::DeRegister
            | RequestBody::Status { .. } => return None,
        }
        Some(PeerAction::Ask(request))
    }

    /// Handles a notification: acknowledges every copy, and reacts to the newest.
    pub fn push(&mut self, notification: &Notification, now: u64, rng: &mut Rng) -> Vec<PeerAction> {
        let (mid, rq) = crate::invariants::numbers_of(notification);
        let mut done = Vec::new();
        if !self.habits.never_acks {
            done.push(PeerAction::Ack(mid));
        }
        let place = place(notification);
        if !self.seen.insert(mid) || self.newest.get(&rq).is_some_and(|newest| *newest > place) {
            return done;
        }
        self.newest.insert(rq, place);
        if self.token.is_none() {
            return done;
        }
        match notification {
            Notification::Search { .. } if self.habits.silent && rng.permille(800) => {}
            Notification::Search { .. } if self.has_unit() && rng.permille(900) => {
                self.hold(rq, now);
                let price = Cents(self.price + rng.below(2_000) as i64);
                done.push(self.ask(rq, DealRequest::Offer { price, goods: Goods::default() }.about(ITEM.into())));
            }
            Notification::Search { .. } => done.push(self.ask(rq, DealRequest::NotAvailable.about(ITEM.into()))),
            Notification::Negotiate { max_price, .. } => {
                let wrong = self.habits.liar && rng.permille(300);
                let max = Cents(max_price.0 + i64::from(wrong));
                let item_name = ITEM.into();
                if (self.bound.contains_key(&rq) || self.habits.forgets_units) && max.0 * 10 >= self.price * 8 {
                    done.push(self.ask(rq, DealRequest::Accept { max_price: max }.about(item_name)));
                } else if rng.permille(800) {
                    done.push(self.ask(rq, DealRequest::Refuse { max_price: max }.about(item_name)));
                } else if rng.permille(500) {
                    done.push(self.ask(rq, DealRequest::Cancel.about(item_name)));
                }
            }
            Notification::Reserve { price, .. } => {
                if !self.bound.contains_key(&rq) && self.has_unit() {
                    self.hold(rq, now);
                }
                match self.bound.get_mut(&rq) {
                    Some(unit) => (unit.reserved, unit.touched_ms) = (Some(price.0), now),
                    None if self.habits.forgets_units => {}
                    None => done.push(self.ask(rq, DealRequest::Cancel.about(ITEM.into()))),
                }
            }
            Notification::Released { .. } => drop(self.bound.remove(&rq)),
            Notification::Found { price, .. } => {
                if let Some(search) = self.searches.get_mut(&rq) {
                    (search.found, search.touched_ms) = (Some(price.0), now);
                }
            }
            Notification::Cancel { .. } | Notification::NotFound { .. } | Notification::NotAvailable { .. } => {
                self.bound.remove(&rq);
                self.searches.remove(&rq);
            }
        }
        done
    }

    /// Handles a response, which may be a late copy.
    pub fn response(&mut self, response: &Response, now: u64) {
        let rq = match response {
            Response::Registered { rq, .. }
            | Response::RegisterDenied { rq, .. }
            | Response::LoggedIn { rq, .. }
            | Response::LoginDenied { rq, .. }
            | Response::DeRegistered { rq }
            | Response::Searching { rq, .. }
            | Response::Offered { rq }
            | Response::Noted { rq }
            | Response::Buying { rq }
            | Response::Cancelled { rq }
            | Response::Deals { rq, .. }
            | Response::Error { rq: Some(rq), .. } => *rq,
            Response::Error { rq: None, .. } => return,
        };
        let Some(request) = self.pending.get(&rq) else { return };
        let asked = request.body.clone();
        match (&asked, response) {
            (RequestBody::Register { .. }, Response::Registered { token, .. }) => self.token = Some(token.clone()),
            (RequestBody::Register { .. }, Response::RegisterDenied { .. })
            | (RequestBody::Login { .. }, Response::LoginDenied { .. }) => {}
            (RequestBody::Login { .. }, Response::LoggedIn { .. })
            | (RequestBody::LookingFor { .. }, Response::Searching { .. })
            | (about!(DealRequest::Offer { .. }), Response::Offered { .. })
            | (
                about!(DealRequest::NotAvailable | DealRequest::Accept { .. } | DealRequest::Refuse { .. }),
                Response::Noted { .. },
            )
            | (about!(DealRequest::Buy { .. }), Response::Buying { .. }) => {}
            (about!(DealRequest::Cancel), Response::Cancelled { .. }) => {
                self.bound.remove(&rq);
                self.searches.remove(&rq);
            }
            (RequestBody::DeRegister, Response::DeRegistered { .. }) => self.left(),
            (RequestBody::Status { .. }, Response::Deals { deals, more, .. }) => {
                if let Some((asked, at, about)) = self.asked_status
                    && asked == rq
                {
                    // To an address that is not validated, little is sent at a time.
                    self.not_all_fitted = *more || about.is_some();
                    self.learn(deals, *more, about, at, now);
                }
            }
            (_, Response::Error { code: ErrorCode::Forbidden, .. }) => {
                self.astray = true;
                return;
            }
            (_, Response::Error { code: ErrorCode::Unavailable | ErrorCode::Busy, .. }) => return,
            (_, Response::Error { code: ErrorCode::NotRegistered, .. }) => return self.left(),
            // A late offer binds nothing.
            (about!(DealRequest::Offer { .. }), Response::Error { .. }) => drop(self.bound.remove(&rq)),
            (RequestBody::LookingFor { .. }, Response::Error { .. }) => drop(self.searches.remove(&rq)),
            (_, Response::Error { .. }) => {}
            // A late copy of the response to another request.
            _ => return,
        }
        self.pending.remove(&rq);
    }

    /// The registration has ended; what was shipped or paid without confirmation stays open for ever.
    fn left(&mut self) {
        self.sold_in_doubt += self.bound.values().filter(|unit| unit.shipped).count();
        self.bought_in_doubt += self.searches.values().filter(|search| search.informed).count();
        self.bound.clear();
        self.searches.clear();
        self.pending.clear();
        self.asked_status = None;
        self.token = None;
    }

    /// Learns from STATUS how deals ended whose last notification was lost.
    fn learn(&mut self, deals: &[DealStatus], more: bool, about: Option<u64>, asked_at: u64, now: u64) {
        let listed: BTreeMap<(bool, u64), &DealStatus> =
            deals.iter().map(|deal| ((deal.side == Side::Buyer, deal.rq), deal)).collect();
        let settled = |touched: u64| touched + DELAY_MAX_MS < asked_at;
        for rq in self.bound.keys().copied().collect::<Vec<_>>() {
            let asked_about = about.is_none_or(|about| about == rq);
            if !asked_about || self.pending.contains_key(&rq) || !settled(self.bound[&rq].touched_ms) {
                continue;
            }
            match listed.get(&(false, rq)) {
                Some(deal) if deal.state == DealPhase::Completed => {
                    self.settled(rq, deal.price.map_or(0, |price| price.0))
                }
                Some(deal) if deal.state == DealPhase::Cancelled => drop(self.bound.remove(&rq)),
                None if !more => drop(self.bound.remove(&rq)),
                _ => {}
            }
        }
        for rq in self.searches.keys().copied().collect::<Vec<_>>() {
            let asked_about = about.is_none_or(|about| about == rq);
            if !asked_about || self.pending.contains_key(&rq) || !settled(self.searches[&rq].touched_ms) {
                continue;
            }
            match listed.get(&(true, rq)) {
                Some(deal) if deal.state == DealPhase::Completed => {
                    self.received(rq, deal.price.map_or(0, |price| price.0))
                }
                Some(deal) if deal.state == DealPhase::Cancelled => drop(self.searches.remove(&rq)),
                Some(deal) if deal.state == DealPhase::Reserved => {
                    // FOUND may have been lost for good.
                    if let Some(search) = self.searches.get_mut(&rq) {
                        (search.found, search.touched_ms) = (deal.price.map(|price| price.0), now);
                    }
                }
                None if !more => drop(self.searches.remove(&rq)),
                _ => {}
            }
        }
    }

    fn settled(&mut self, rq: u64, price: i64) {
        if self.bound.remove(&rq).is_some() || self.habits.forgets_units {
            self.sold.push(price);
        }
    }

    fn received(&mut self, rq: u64, price: i64) {
        if self.searches.remove(&rq).is_some() {
            self.bought.push(price);
        }
    }

    /// Handles a settlement line.
    pub fn line(&mut self, line: &SettlementMessage, now: u64, rng: &mut Rng) -> SettlementReaction {
        let token = self.token.as_ref().map_or("none", |token| token.reveal());
        let card = if self.habits.bad_card { "4000000000000002" } else { "4111111111111111" };
        match line {
            SettlementMessage::InformReq { rq, price, .. } => {
                let seller =
                    self.habits.forgets_units || self.bound.get(rq).is_some_and(|unit| unit.reserved == Some(price.0));
                let buyer = self.searches.get_mut(rq).filter(|search| search.bought == Some(price.0));
                if let Some(search) = buyer {
                    (search.informed, search.touched_ms) = (true, now);
                } else if !seller {
                    return SettlementReaction::HangUp;
                }
                if let Some(unit) = self.bound.get_mut(rq) {
                    unit.touched_ms = now;
                }
                let name = &self.name;
                let line = format!(
                    r#"{{"type":"INFORM_RES","rq":{rq},"name":"{name}","token":"{token}","cc_number":"{card}","cc_exp":"12/99","address":"Elm St"}}"#
                );
                misbehave(line, rng)
            }
            SettlementMessage::ShippingInfo { rq, .. } => {
                if let Some(unit) = self.bound.get_mut(rq) {
                    (unit.shipped, unit.touched_ms) = (true, now);
                }
                misbehave(format!(r#"{{"type":"SHIPPED","rq":{rq}}}"#), rng)
            }
            SettlementMessage::Settled { rq, .. } => {
                let price = self.bound.get(rq).and_then(|unit| unit.reserved).unwrap_or_default();
                self.settled(*rq, price);
                SettlementReaction::Nothing
            }
            SettlementMessage::Receipt { rq, price, .. } => {
                self.received(*rq, price.0);
                SettlementReaction::Nothing
            }
            SettlementMessage::Cancel { rq, .. } => {
                self.bound.remove(rq);
                self.searches.remove(rq);
                SettlementReaction::Nothing
            }
        }
    }
}

/// The order in which the server sends notifications to a seller, even if they overtake each other.
fn place(notification: &Notification) -> u8 {
    match notification {
        Notification::Search { .. } => 0,
        Notification::Negotiate { .. } => 1,
        Notification::Released { .. } => 2,
        Notification::Reserve { .. } | Notification::Found { .. } => 3,
        Notification::NotFound { .. } | Notification::NotAvailable { .. } | Notification::Cancel { .. } => 4,
    }
}

fn misbehave(line: String, rng: &mut Rng) -> SettlementReaction {
    match rng.below(40) {
        0 => SettlementReaction::HangUp,
        1 => SettlementReaction::Line("nonsense".to_owned()),
        2 => SettlementReaction::Nothing,
        _ => SettlementReaction::Line(line),
    }
}
