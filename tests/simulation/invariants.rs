//! What must hold, whatever is lost, repeated, late, broken or switched off.
//!
//! Each rule has a name; the first that is broken ends the run and is reported with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use p2s2::model::{Cents, Millis, Name, Token};
use p2s2::storage::Journal;
use p2s2::trade::deal::{Money, Party, Payment, State};
use p2s2::trade::exchange::Told;
use p2s2::trade::wire::{Ask, Code, Phase, Push, Reply, Request};

use crate::bank::{Account, Bank};
use crate::disk::{Disk, Rows};
use crate::peer::{Peer, kind};

/// A rule that does not hold.
#[derive(Debug, Clone)]
pub struct Broken {
    pub rule: &'static str,
    pub detail: String,
}

/// An answer that speaks of a deal: what it said must be found again.
#[derive(Debug, Clone)]
struct Promise {
    name: Name,
    rq: u64,
    /// None: it was not even there when the answer left.
    deal: Option<u64>,
    what: Promised,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promised {
    Search,
    Offer(i64),
    Purchase,
}

/// What was seen so far, as far as rules speak of it.
#[derive(Default)]
pub struct Invariants {
    pub broken: Option<Broken>,
    /// What was answered: to whom, on which kind and number; its content and the answer.
    answers: BTreeMap<(Name, &'static str, u64), (String, String)>,
    /// What was promised by an answer that left.
    registered: BTreeMap<Name, String>,
    promises: Vec<Promise>,
    /// How often a name was given up or began anew: an answer from before promises nothing after.
    eras: BTreeMap<Name, u32>,
    mids: HashMap<u64, (u64, Party, Push)>,
    numbers: HashMap<u64, (u64, Party)>,
    /// The newest FOUND of each deal that left.
    found: HashMap<u64, (u64, i64)>,
    hearing: Hearing,
}

/// Who has shown that it hears, and what went to the others.
#[derive(Default)]
struct Hearing {
    came: HashMap<IpAddr, usize>,
    went: HashMap<IpAddr, usize>,
    tokens: HashSet<(SocketAddr, String)>,
    mids: HashSet<(SocketAddr, u64)>,
    proved: HashSet<SocketAddr>,
}

impl Invariants {
    fn hold(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Broken { rule, detail: detail() });
        }
    }

    /// So many bytes came from there.
    pub fn came(&mut self, from: SocketAddr, bytes: usize) {
        *self.hearing.came.entry(from.ip()).or_default() += bytes;
    }

    /// A token that was told to this very address comes from there.
    pub fn token_came(&mut self, from: SocketAddr, token: Option<&Token>) {
        let heard = token.is_some_and(|token| self.hearing.tokens.contains(&(from, token.reveal().to_owned())));
        if heard {
            self.hearing.proved.insert(from);
        }
    }

    /// A push that was sent to this very address is acknowledged from there.
    pub fn mid_came(&mut self, from: SocketAddr, mid: u64) {
        if self.hearing.mids.contains(&(from, mid)) {
            self.hearing.proved.insert(from);
        }
    }

    pub fn token_goes(&mut self, to: SocketAddr, token: &Token) {
        self.hearing.tokens.insert((to, token.reveal().to_owned()));
    }

    pub fn mid_goes(&mut self, to: SocketAddr, push: &Push) {
        self.hearing.mids.insert((to, numbers_of(push).0));
    }

    /// To who has not shown that it hears goes at most three times what came from that IP.
    pub fn goes(&mut self, to: SocketAddr, bytes: usize) {
        if self.hearing.proved.contains(&to) {
            return;
        }
        let went = self.hearing.went.entry(to.ip()).or_default();
        *went += bytes;
        let (went, came) = (*went, self.hearing.came.get(&to.ip()).copied().unwrap_or_default());
        self.hold(went <= 3 * came, "three times what came", || format!("{went} bytes to {to}, {came} came"));
    }

    /// Nothing leaves before what it is built on is on disk.
    pub fn leaves(&mut self, disk: &Disk, receipt: u64, what: &dyn std::fmt::Debug) {
        self.hold(disk.is_committed(&receipt), "stored before sent", || {
            format!("{what:?} left with receipt {receipt}")
        });
    }

    /// A push goes to the peer's registered address; its mid and its number mean one thing for ever.
    pub fn push(&mut self, disk: &Disk, told: Told, push: &Push, to: SocketAddr) {
        if let Some(name) = disk.name_of(told.deal, told.party) {
            let home = disk.newest_address(&name);
            self.hold(home == Some(to), "pushes go home", || format!("{push:?} for {name} at {home:?} went to {to}"));
        }
        if let Push::Found { mid, price, .. } = push {
            // One whose number was never seen is newer than all before it.
            if !self.mids.contains_key(mid) {
                self.found.insert(told.deal, (*mid, price.0));
            }
        }
        let (mid, rq) = numbers_of(push);
        let meant = self.mids.entry(mid).or_insert_with(|| (told.deal, told.party, push.clone())).clone();
        let now = (told.deal, told.party, push.clone());
        self.hold(meant == now, "a mid is used once", || format!("mid {mid} meant {meant:?} and now {now:?}"));
        if told.party != Party::Buyer {
            let side = *self.numbers.entry(rq).or_insert((told.deal, told.party));
            let now = (told.deal, told.party);
            self.hold(side == now, "a number is used once", || format!("rq {rq} meant {side:?} and now {now:?}"));
        }
    }

    /// BUY is taken at the price of the newest FOUND, and at no other.
    pub fn bought(&mut self, deal: u64, price: i64) {
        let found = self.found.get(&deal).copied();
        self.hold(found.is_some_and(|(_, found)| found == price), "buy at the price found", || {
            format!("deal {deal} was bought at {price}, found: {found:?}")
        });
    }

    /// The same request gets the same answer; another under its number is refused.
    /// `asked_in` is the [`Invariants::era`] in which it was asked.
    pub fn answer(&mut self, rows: &Rows, request: &Request, asked_in: u32, reply: &Reply) {
        let name = &request.name;
        if asked_in != self.era(name) {
            return;
        }
        let mut promise = |what| {
            let deal = rows.deal_of(name, request.rq);
            self.promises.push(Promise { name: name.clone(), rq: request.rq, deal, what });
        };
        match (&request.ask, reply) {
            (Ask::Register(_), Reply::Registered { token, .. }) => {
                let before = self.registered.insert(name.clone(), token.0.reveal().to_owned());
                self.hold(before.is_none_or(|before| before == token.0.reveal()), "a name has one token", || {
                    format!("{name} has another token now")
                });
            }
            (Ask::LookingFor { .. }, Reply::Searching { .. }) => promise(Promised::Search),
            (Ask::Offer { price, .. }, Reply::Offered { .. }) => promise(Promised::Offer(price.0)),
            (Ask::Buy { .. }, Reply::Buying { .. }) => promise(Promised::Purchase),
            _ => {}
        }
        if matches!(request.ask, Ask::Register(_) | Ask::Login(_) | Ask::Status { .. } | Ask::DeRegister) {
            return;
        }
        let temporary = [Code::Unavailable, Code::Busy, Code::Forbidden, Code::NotRegistered];
        let refused = match reply {
            Reply::Error { code, .. } if temporary.contains(code) => return,
            Reply::Error { .. } => true,
            _ => false,
        };
        let key = (name.clone(), kind(&request.ask), request.rq);
        let (content, given) = (format!("{:?}", request.ask), format!("{reply:?}"));
        match self.answers.get(&key).cloned() {
            Some((before, answer)) if before == content => {
                self.hold(answer == given, "one answer to one request", || {
                    format!("{key:?} {content} got {answer}, now {given}")
                });
            }
            Some((before, answer)) => self.hold(refused, "one request to one number", || {
                format!("{key:?} was {before} with {answer}; {content} got {given}")
            }),
            None if refused => {}
            None => drop(self.answers.insert(key, (content, given))),
        }
    }

    /// Which DE-REGISTER or REGISTER of a name was the last.
    pub fn era(&self, name: &Name) -> u32 {
        self.eras.get(name).copied().unwrap_or_default()
    }

    /// A DE-REGISTER has been read: what was promised to that name may end at any moment.
    pub fn leaving(&mut self, name: &Name) {
        self.begins_anew(name);
        self.registered.remove(name);
        self.promises.retain(|promise| promise.name != *name);
    }

    /// Deals that ended a while ago may be forgotten, and what was answered in them.
    pub fn may_forget(&mut self, rows: &Rows, ended_before: Millis) {
        let kept = |deal: Option<u64>| {
            let deal = deal.and_then(|deal| rows.deals.get(&deal));
            deal.is_some_and(|deal| deal.ended_at().is_none_or(|at| at > ended_before))
        };
        self.answers.retain(|(name, _, rq), _| kept(rows.deal_of(name, *rq)));
        self.promises.retain(|promise| kept(promise.deal));
    }

    /// A REGISTER has been read: numbers of ended deals may mean something else from here on.
    pub fn begins_anew(&mut self, name: &Name) {
        *self.eras.entry(name.clone()).or_default() += 1;
        self.answers.retain(|(whose, ..), _| whose != name);
    }

    /// After a start: everything that was acknowledged is there.
    pub fn loaded(&mut self, rows: &Rows) {
        for (name, token) in self.registered.clone() {
            let kept = rows.peers.get(&name).is_some_and(|(row, _)| row.token.reveal() == token);
            self.hold(kept, "a registration is kept", || format!("{name} was registered"));
        }
        for promise in self.promises.clone() {
            let deal = promise.deal.and_then(|deal| rows.whole_deal(deal));
            let party = deal.as_ref().and_then(|deal| deal.party_of(promise.rq));
            let status = deal.as_ref().zip(party).and_then(|(deal, party)| deal.status(party, deal.opened_at));
            let phase = status.as_ref().map(|status| status.state);
            let (rule, kept) = match promise.what {
                Promised::Search => ("a search is kept", status.is_some()),
                Promised::Offer(price) => {
                    let same = status.as_ref().and_then(|status| status.price) == Some(Cents(price));
                    ("an offer is kept", same || phase.is_some_and(|phase| phase != Phase::Searching))
                }
                Promised::Purchase => {
                    let after = [Phase::Settling, Phase::Completed, Phase::Cancelled];
                    ("a purchase is kept", phase.is_some_and(|phase| after.contains(&phase)))
                }
            };
            self.hold(kept, rule, || format!("{promise:?} was given, on disk is {status:?}"));
        }
    }

    /// The ledger sums to zero, and escrow holds exactly what is authorised and not yet over.
    pub fn ledger(&mut self, rows: &Rows) {
        let mut accounts: BTreeMap<String, i64> = BTreeMap::new();
        for row in &rows.money {
            let mut book = |account: String, cents: i64| *accounts.entry(account).or_default() += cents;
            match row.money {
                Money::Authorise => {
                    book(format!("card of {}", row.buyer), -row.price.0);
                    book("escrow".to_owned(), row.price.0);
                }
                Money::Void => {
                    book("escrow".to_owned(), -row.price.0);
                    book(format!("card of {}", row.buyer), row.price.0);
                }
                Money::Capture => {
                    book("escrow".to_owned(), -row.price.0);
                    book(format!("payout to {}", row.seller), row.price.0 - row.fee.0);
                    book("fee".to_owned(), row.fee.0);
                }
            }
        }
        let sum: i64 = accounts.values().sum();
        self.hold(sum == 0, "the ledger sums to zero", || format!("{accounts:?}"));
        let held = rows.deals.values().filter_map(|deal| deal.settling());
        let held: i64 = held.filter(|(.., payment)| *payment > Payment::Asked).map(|(_, price, _)| price.0).sum();
        let escrow = accounts.get("escrow").copied().unwrap_or_default();
        self.hold(escrow == held, "escrow is what is held", || format!("escrow {escrow}, held {held}: {accounts:?}"));
    }

    /// One key is charged once, never after it was let go, and never before SHIPPED is on disk.
    pub fn charged(&mut self, rows: &Rows, deal: u64, before: Account, after: Account) {
        self.hold(after.captured <= 1 && after.authorised <= 1, "charged once", || format!("deal {deal}: {after:?}"));
        self.hold(after.captured == 0 || after.voided == 0, "charged or let go", || format!("deal {deal}: {after:?}"));
        if after.captured > before.captured {
            let payment = rows.deals.get(&deal).and_then(|deal| deal.settling()).map(|(.., payment)| payment);
            self.hold(payment == Some(Payment::Shipped), "charged after SHIPPED", || {
                format!("deal {deal}: {payment:?}")
            });
        }
    }

    /// A seller never holds and sells more than it has.
    pub fn stock(&mut self, peer: &Peer, rows: &Rows) {
        let (used, stock) = (peer.used(), peer.stock);
        self.hold(used <= stock, "no unit is sold twice", || format!("{} uses {used} of {stock}", peer.name));
        let sold = rows.completed.values().filter(|(_, seller, _)| *seller == peer.name).count();
        self.hold(sold <= stock, "no unit is sold twice", || format!("{} sold {sold} of {stock}", peer.name));
    }

    /// A place is taken by those who are being settled, and by nobody else.
    pub fn slots(&mut self, rows: &Rows, slots: usize) {
        let settling = rows.deals.values().filter(|deal| deal.settling().is_some()).count();
        self.hold(slots == settling, "slots are those of settlements", || format!("{slots} slots, {settling} settle"));
    }

    /// When all is quiet: every deal has ended, and everyone knows how.
    pub fn end(&mut self, rows: &Rows, bank: &Bank, peers: &[Peer]) {
        for deal in rows.deals.values() {
            self.hold(deal.ended_at().is_some(), "every deal ends", || format!("{deal:?}"));
        }
        for (key, account) in &bank.accounts {
            let deal: u64 = key.trim_start_matches("trade-").parse().unwrap_or_default();
            let completed = rows.completed.contains_key(&deal);
            self.hold((account.captured == 1) == completed, "charged if and only if completed", || {
                format!(
                    "{key}: {account:?}, completed: {completed}, {:?}",
                    rows.deals.get(&deal).map(|deal| deal.state())
                )
            });
            let held = account.authorised > 0 && account.captured == 0 && account.voided == 0;
            self.hold(!held, "nothing stays authorised", || format!("{key}: {account:?}"));
        }
        for peer in peers {
            let mut sold: Vec<i64> = rows
                .completed
                .values()
                .filter(|(_, seller, _)| *seller == peer.name)
                .map(|(.., price)| *price)
                .collect();
            let mut bought: Vec<i64> =
                rows.completed.values().filter(|(buyer, ..)| *buyer == peer.name).map(|(.., price)| *price).collect();
            let (mut own_sold, mut own_bought) = (peer.sold.clone(), peer.bought.clone());
            for prices in [&mut sold, &mut bought, &mut own_sold, &mut own_bought] {
                prices.sort_unstable();
            }
            // Who left with a line broken may never have heard.
            let agree = |own: &[i64], all: &[i64], doubts: usize| {
                if doubts == 0 { own == all } else { own.len() <= all.len() && all.len() <= own.len() + doubts }
            };
            self.hold(agree(&own_sold, &sold, peer.sold_in_doubt), "both sides agree", || {
                format!("{} sold {own_sold:?}, the server says {sold:?}", peer.name)
            });
            self.hold(agree(&own_bought, &bought, peer.bought_in_doubt), "both sides agree", || {
                format!("{} bought {own_bought:?}, the server says {bought:?}", peer.name)
            });
            self.hold(peer.bound.is_empty(), "units are free in the end", || {
                format!("{}: {:?}", peer.name, peer.bound)
            });
        }
        let cancelled_and_charged = rows.deals.values().find(|deal| {
            matches!(deal.state(), State::Cancelled { .. })
                && bank.accounts.get(&format!("trade-{}", deal.id)).is_some_and(|account| account.captured > 0)
        });
        self.hold(cancelled_and_charged.is_none(), "charged if and only if completed", || {
            format!("{cancelled_and_charged:?}")
        });
    }

    /// Ten minutes later nothing is left of any deal.
    pub fn swept(&mut self, rows: &Rows, in_memory: usize) {
        self.hold(in_memory == 0 && rows.deals.is_empty(), "deals are forgotten", || {
            format!("{in_memory} in memory, {} on disk", rows.deals.len())
        });
    }
}

pub fn numbers_of(push: &Push) -> (u64, u64) {
    match push {
        Push::Search { mid, rq, .. }
        | Push::Negotiate { mid, rq, .. }
        | Push::Reserve { mid, rq, .. }
        | Push::Released { mid, rq, .. }
        | Push::Found { mid, rq, .. }
        | Push::NotFound { mid, rq, .. }
        | Push::NotAvailable { mid, rq, .. }
        | Push::Cancel { mid, rq, .. } => (*mid, *rq),
    }
}
