//! A peer: buys and sells, forgets nothing, and is not always nice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use p2s2::model::{Cents, Name, Token};
use p2s2::trade::wire::{Ask, Code, DealStatus, Goods, Phase, Push, Reach, Reply, Request, SettlementLine, Side};

use crate::rng::Rng;

pub const ITEM: &str = "lamp";
/// No datagram is under way for longer than this.
pub const DELAY_MAX_MS: u64 = 4_000;

/// What a peer does.
#[derive(Debug)]
pub enum Do {
    Ask(Request),
    Ack(u64),
}

/// What a peer answers on a settlement line.
pub enum Say {
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

/// Habits, drawn from the seed.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub silent: bool,
    pub never_acks: bool,
    pub liar: bool,
    pub bad_card: bool,
    /// Shows its token with every request.
    pub shows_token: bool,
    /// Does not remember what it has promised: must be caught.
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
    /// Asked and not answered.
    pub pending: BTreeMap<u64, Request>,
    seen: BTreeSet<u64>,
    /// How far each deal was when it was heard of last: what stands before that is old.
    newest: BTreeMap<u64, u8>,
    /// Units held for someone, by the server's number.
    pub bound: BTreeMap<u64, Unit>,
    searches: BTreeMap<u64, Search>,
    pub sold: Vec<i64>,
    pub bought: Vec<i64>,
    pub sold_in_doubt: usize,
    pub bought_in_doubt: usize,
    /// The number of the last STATUS, when it was asked, and the deal if it was about one.
    asked_status: Option<(u64, u64, Option<u64>)>,
    /// The last list of deals was cut.
    not_all_fitted: bool,
    /// The server does not know it by this address.
    astray: bool,
    /// What it said earlier, for liars.
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

    /// Units that are sold or may be.
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

    fn ask(&mut self, rq: u64, ask: Ask) -> Do {
        let token = self.token.clone().filter(|_| self.habits.shows_token || matches!(ask, Ask::Login(_)));
        let request = Request { rq, name: self.name.clone(), token, ask };
        self.pending.insert(rq, request.clone());
        if self.habits.liar {
            self.said.push(request.clone());
        }
        Do::Ask(request)
    }

    fn reach(&self) -> Reach {
        Reach { ip: self.home.ip(), udp_port: self.home.port().into(), tcp_port: self.tcp_port.into() }
    }

    /// It has time: does something, or asks how its deals stand.
    pub fn wake(&mut self, now: u64, healed: bool, rng: &mut Rng) -> Vec<Do> {
        let mut done = Vec::new();
        if self.token.is_none() {
            if self.pending.is_empty() {
                let rq = self.rq();
                done.push(self.ask(rq, Ask::Register(self.reach())));
            }
            return done;
        }
        if std::mem::take(&mut self.astray) {
            let rq = self.rq();
            done.push(self.ask(rq, Ask::Login(self.reach())));
        }
        if healed || rng.permille(250) {
            let rq = self.rq();
            let open: Vec<u64> = self.bound.keys().chain(self.searches.keys()).copied().collect();
            let about = if std::mem::take(&mut self.not_all_fitted) { rng.pick(&open).copied() } else { None };
            self.asked_status = Some((rq, now, about));
            done.push(self.ask(rq, Ask::Status { rq_deal: about }));
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
                    done.push(self.ask(rq, Ask::Cancel { item_name: ITEM.into() }));
                }
            }
            74..76 => {
                let rq = self.rq();
                done.push(self.ask(rq, Ask::DeRegister));
            }
            // Who never acknowledges is heard of only where it was told its token.
            76..79 if !self.habits.never_acks => {
                self.home.set_port(self.home.port() + 1);
                let rq = self.rq();
                done.push(self.ask(rq, Ask::Login(self.reach())));
            }
            79..81 => {
                let rq = self.rq();
                done.push(self.ask(rq, Ask::Register(self.reach())));
            }
            81..86 if self.habits.liar => done.extend(self.lie(rng)),
            _ => {}
        }
        done
    }

    fn look_for(&mut self, rq: u64, max: i64, description: &str) -> Do {
        self.ask(rq, Ask::LookingFor { item_name: ITEM.into(), description: description.into(), max_price: Cents(max) })
    }

    fn decide(&mut self, rq: u64, now: u64, rng: &mut Rng) -> Option<Do> {
        let search = self.searches.get_mut(&rq)?;
        search.touched_ms = now;
        match search.found {
            Some(price) if rng.permille(900) => {
                search.bought = Some(price);
                let wrong = self.habits.liar && rng.permille(200);
                let price = Cents(if wrong { 1 } else { price });
                Some(self.ask(rq, Ask::Buy { item_name: ITEM.into(), price }))
            }
            _ if rng.permille(200) => Some(self.ask(rq, Ask::Cancel { item_name: ITEM.into() })),
            _ => None,
        }
    }

    /// Says something else under a number that is taken. Its own state stays what it was.
    fn lie(&mut self, rng: &mut Rng) -> Option<Do> {
        let mut request = rng.pick(&self.said)?.clone();
        // After a REGISTER the number of a deal that has ended begins another one, and hides how the first has ended:
        // who lies so about what he has paid for does not know it any more.
        let has_paid = self.searches.get(&request.rq).is_some_and(|search| search.informed);
        if has_paid && matches!(request.ask, Ask::LookingFor { .. }) {
            return None;
        }
        match &mut request.ask {
            Ask::Offer { price: amount, .. }
            | Ask::Buy { price: amount, .. }
            | Ask::LookingFor { max_price: amount, .. }
            | Ask::Accept { max_price: amount, .. }
            | Ask::Refuse { max_price: amount, .. } => amount.0 += 1,
            Ask::Cancel { item_name } | Ask::NotAvailable { item_name } => *item_name = "lump".into(),
            _ => return None,
        }
        Some(Do::Ask(request))
    }

    /// A push has come; every copy is acknowledged, the newest word counts.
    pub fn push(&mut self, push: &Push, now: u64, rng: &mut Rng) -> Vec<Do> {
        let (mid, rq) = crate::invariants::numbers_of(push);
        let mut done = Vec::new();
        if !self.habits.never_acks {
            done.push(Do::Ack(mid));
        }
        let place = place(push);
        if !self.seen.insert(mid) || self.newest.get(&rq).is_some_and(|newest| *newest > place) {
            return done;
        }
        self.newest.insert(rq, place);
        if self.token.is_none() {
            return done;
        }
        match push {
            Push::Search { .. } if self.habits.silent && rng.permille(800) => {}
            Push::Search { .. } if self.has_unit() && rng.permille(900) => {
                self.hold(rq, now);
                let price = Cents(self.price + rng.below(2_000) as i64);
                done.push(self.ask(rq, Ask::Offer { item_name: ITEM.into(), price, goods: Goods::default() }));
            }
            Push::Search { .. } => done.push(self.ask(rq, Ask::NotAvailable { item_name: ITEM.into() })),
            Push::Negotiate { max_price, .. } => {
                let wrong = self.habits.liar && rng.permille(300);
                let max = Cents(max_price.0 + i64::from(wrong));
                let item_name = ITEM.into();
                if (self.bound.contains_key(&rq) || self.habits.forgets_units) && max.0 * 10 >= self.price * 8 {
                    done.push(self.ask(rq, Ask::Accept { item_name, max_price: max }));
                } else if rng.permille(800) {
                    done.push(self.ask(rq, Ask::Refuse { item_name, max_price: max }));
                } else if rng.permille(500) {
                    done.push(self.ask(rq, Ask::Cancel { item_name }));
                }
            }
            Push::Reserve { price, .. } => {
                if !self.bound.contains_key(&rq) && self.has_unit() {
                    self.hold(rq, now);
                }
                match self.bound.get_mut(&rq) {
                    Some(unit) => (unit.reserved, unit.touched_ms) = (Some(price.0), now),
                    None if self.habits.forgets_units => {}
                    None => done.push(self.ask(rq, Ask::Cancel { item_name: ITEM.into() })),
                }
            }
            Push::Released { .. } => drop(self.bound.remove(&rq)),
            Push::Found { price, .. } => {
                if let Some(search) = self.searches.get_mut(&rq) {
                    (search.found, search.touched_ms) = (Some(price.0), now);
                }
            }
            Push::Cancel { .. } | Push::NotFound { .. } | Push::NotAvailable { .. } => {
                self.bound.remove(&rq);
                self.searches.remove(&rq);
            }
        }
        done
    }

    /// An answer has come, perhaps a late copy of one.
    pub fn reply(&mut self, reply: &Reply, now: u64) {
        let rq = match reply {
            Reply::Registered { rq, .. }
            | Reply::RegisterDenied { rq, .. }
            | Reply::LoggedIn { rq, .. }
            | Reply::LoginDenied { rq, .. }
            | Reply::DeRegistered { rq }
            | Reply::Searching { rq, .. }
            | Reply::Offered { rq }
            | Reply::Noted { rq }
            | Reply::Buying { rq }
            | Reply::Cancelled { rq }
            | Reply::Deals { rq, .. }
            | Reply::Error { rq: Some(rq), .. } => *rq,
            Reply::Error { rq: None, .. } => return,
        };
        let Some(request) = self.pending.get(&rq) else { return };
        let asked = request.ask.clone();
        match (&asked, reply) {
            (Ask::Register(_), Reply::Registered { token, .. }) => self.token = Some(token.0.clone()),
            (Ask::Register(_), Reply::RegisterDenied { .. }) | (Ask::Login(_), Reply::LoginDenied { .. }) => {}
            (Ask::Login(_), Reply::LoggedIn { .. })
            | (Ask::LookingFor { .. }, Reply::Searching { .. })
            | (Ask::Offer { .. }, Reply::Offered { .. })
            | (Ask::NotAvailable { .. } | Ask::Accept { .. } | Ask::Refuse { .. }, Reply::Noted { .. })
            | (Ask::Buy { .. }, Reply::Buying { .. }) => {}
            (Ask::Cancel { .. }, Reply::Cancelled { .. }) => {
                self.bound.remove(&rq);
                self.searches.remove(&rq);
            }
            (Ask::DeRegister, Reply::DeRegistered { .. }) => self.left(),
            (Ask::Status { .. }, Reply::Deals { deals, more, .. }) => {
                if let Some((asked, at, about)) = self.asked_status
                    && asked == rq
                {
                    // Who may not hear is told little at a time.
                    self.not_all_fitted = *more || about.is_some();
                    self.learn(deals, *more, about, at, now);
                }
            }
            (_, Reply::Error { code: Code::Forbidden, .. }) => {
                self.astray = true;
                return;
            }
            (_, Reply::Error { code: Code::Unavailable | Code::Busy, .. }) => return,
            (_, Reply::Error { code: Code::NotRegistered, .. }) => return self.left(),
            // A late offer binds nothing.
            (Ask::Offer { .. }, Reply::Error { .. }) => drop(self.bound.remove(&rq)),
            (Ask::LookingFor { .. }, Reply::Error { .. }) => drop(self.searches.remove(&rq)),
            (_, Reply::Error { .. }) => {}
            // A late copy of the answer to something else.
            _ => return,
        }
        self.pending.remove(&rq);
    }

    /// It is registered no more; what was shipped or paid and not confirmed stays open for ever.
    fn left(&mut self) {
        self.sold_in_doubt += self.bound.values().filter(|unit| unit.shipped).count();
        self.bought_in_doubt += self.searches.values().filter(|search| search.informed).count();
        self.bound.clear();
        self.searches.clear();
        self.pending.clear();
        self.asked_status = None;
        self.token = None;
    }

    /// STATUS tells how deals ended whose last word was lost.
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
                Some(deal) if deal.state == Phase::Completed => self.settled(rq, deal.price.map_or(0, |price| price.0)),
                Some(deal) if deal.state == Phase::Cancelled => drop(self.bound.remove(&rq)),
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
                Some(deal) if deal.state == Phase::Completed => {
                    self.received(rq, deal.price.map_or(0, |price| price.0))
                }
                Some(deal) if deal.state == Phase::Cancelled => drop(self.searches.remove(&rq)),
                Some(deal) if deal.state == Phase::Reserved => {
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

    /// A line of a settlement has come.
    pub fn line(&mut self, line: &SettlementLine, now: u64, rng: &mut Rng) -> Say {
        let token = self.token.as_ref().map_or("none", |token| token.reveal());
        let card = if self.habits.bad_card { "4000000000000002" } else { "4111111111111111" };
        match line {
            SettlementLine::InformReq { rq, price, .. } => {
                let seller =
                    self.habits.forgets_units || self.bound.get(rq).is_some_and(|unit| unit.reserved == Some(price.0));
                let buyer = self.searches.get_mut(rq).filter(|search| search.bought == Some(price.0));
                if let Some(search) = buyer {
                    (search.informed, search.touched_ms) = (true, now);
                } else if !seller {
                    return Say::HangUp;
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
            SettlementLine::ShippingInfo { rq, .. } => {
                if let Some(unit) = self.bound.get_mut(rq) {
                    (unit.shipped, unit.touched_ms) = (true, now);
                }
                misbehave(format!(r#"{{"type":"SHIPPED","rq":{rq}}}"#), rng)
            }
            SettlementLine::Settled { rq, .. } => {
                let price = self.bound.get(rq).and_then(|unit| unit.reserved).unwrap_or_default();
                self.settled(*rq, price);
                Say::Nothing
            }
            SettlementLine::Receipt { rq, price, .. } => {
                self.received(*rq, price.0);
                Say::Nothing
            }
            SettlementLine::Cancel { rq, .. } => {
                self.bound.remove(rq);
                self.searches.remove(rq);
                Say::Nothing
            }
        }
    }
}

/// A seller's side is told things in this order, whatever overtakes what on the way.
fn place(push: &Push) -> u8 {
    match push {
        Push::Search { .. } => 0,
        Push::Negotiate { .. } => 1,
        Push::Released { .. } => 2,
        Push::Reserve { .. } | Push::Found { .. } => 3,
        Push::NotFound { .. } | Push::NotAvailable { .. } | Push::Cancel { .. } => 4,
    }
}

fn misbehave(line: String, rng: &mut Rng) -> Say {
    match rng.below(40) {
        0 => Say::HangUp,
        1 => Say::Line("nonsense".to_owned()),
        2 => Say::Nothing,
        _ => Say::Line(line),
    }
}

/// The type of a request, as on the wire.
pub fn kind(ask: &Ask) -> &'static str {
    match ask {
        Ask::Register(_) => "REGISTER",
        Ask::Login(_) => "LOGIN",
        Ask::DeRegister => "DE-REGISTER",
        Ask::LookingFor { .. } => "LOOKING_FOR",
        Ask::Offer { .. } => "OFFER",
        Ask::NotAvailable { .. } => "NOT_AVAILABLE",
        Ask::Accept { .. } => "ACCEPT",
        Ask::Refuse { .. } => "REFUSE",
        Ask::Buy { .. } => "BUY",
        Ask::Cancel { .. } => "CANCEL",
        Ask::Status { .. } => "STATUS",
    }
}
