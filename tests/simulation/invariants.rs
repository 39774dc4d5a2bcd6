//! The invariants: what must hold whatever is lost, repeated, late, broken or switched off.
//!
//! Each rule has a name; the first violation ends the run and is reported with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use p2s2::internals::model::{Cents, Millis, Name, Token};
use p2s2::internals::storage::Journal;
use p2s2::internals::trade::deal::{DealState, LedgerOperation, Party, PaymentProgress};
use p2s2::internals::trade::exchange::NotificationId;
use p2s2::internals::trade::wire::{DealPhase, DealRequest, ErrorCode, Notification, Request, RequestBody, Response};

use crate::bank::{Account, Bank};
use crate::disk::{Disk, Rows};
use crate::peer::{Peer, about};

/// A violated rule.
#[derive(Debug, Clone)]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

/// A response about a deal, which must remain true.
#[derive(Debug, Clone)]
struct Promise {
    name: Name,
    rq: u64,
    /// `None` if the deal did not exist any more when the response was sent.
    deal: Option<u64>,
    what: Promised,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promised {
    Search,
    Offer(i64),
    Purchase,
}

/// What has been observed, as far as the rules need it.
#[derive(Default)]
pub struct Invariants {
    pub broken: Option<Violation>,
    /// The responses by peer, type and number: the content of the request and the response.
    answers: BTreeMap<(Name, &'static str, u64), (String, String)>,
    /// The tokens that responses have promised.
    registered: BTreeMap<Name, String>,
    promises: Vec<Promise>,
    /// How often each name was given up or registered anew; responses from before promise nothing afterwards.
    eras: BTreeMap<Name, u32>,
    mids: HashMap<u64, (u64, Party, Notification)>,
    numbers: HashMap<u64, (u64, Party)>,
    /// The newest FOUND of each deal that was sent.
    found: HashMap<u64, (u64, i64)>,
    addresses: AddressState,
}

/// Which addresses are validated, and how much was sent to the others.
#[derive(Default)]
struct AddressState {
    received: HashMap<IpAddr, usize>,
    sent: HashMap<IpAddr, usize>,
    tokens: HashSet<(SocketAddr, String)>,
    mids: HashSet<(SocketAddr, u64)>,
    validated: HashSet<SocketAddr>,
}

impl Invariants {
    fn hold(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Violation { rule, detail: detail() });
        }
    }

    /// Records bytes received from an address.
    pub fn bytes_received(&mut self, from: SocketAddr, bytes: usize) {
        *self.addresses.received.entry(from.ip()).or_default() += bytes;
    }

    /// Records a token from an address; it validates the address that it was sent to.
    pub fn token_received(&mut self, from: SocketAddr, token: Option<&Token>) {
        let heard = token.is_some_and(|token| self.addresses.tokens.contains(&(from, token.reveal().to_owned())));
        if heard {
            self.addresses.validated.insert(from);
        }
    }

    /// Records an acknowledgement from an address; it validates the address that the notification was sent to.
    pub fn mid_received(&mut self, from: SocketAddr, mid: u64) {
        if self.addresses.mids.contains(&(from, mid)) {
            self.addresses.validated.insert(from);
        }
    }

    pub fn token_sent(&mut self, to: SocketAddr, token: &Token) {
        self.addresses.tokens.insert((to, token.reveal().to_owned()));
    }

    pub fn mid_sent(&mut self, to: SocketAddr, notification: &Notification) {
        self.addresses.mids.insert((to, numbers_of(notification).0));
    }

    /// An address that is not validated gets at most three times what came from its IP.
    pub fn bytes_sent(&mut self, to: SocketAddr, bytes: usize) {
        if self.addresses.validated.contains(&to) {
            return;
        }
        let went = self.addresses.sent.entry(to.ip()).or_default();
        *went += bytes;
        let (went, came) = (*went, self.addresses.received.get(&to.ip()).copied().unwrap_or_default());
        self.hold(went <= 3 * came, "three times what came", || format!("{went} bytes to {to}, {came} came"));
    }

    /// Nothing is sent before the changes that it depends on are on disk.
    pub fn sent_after(&mut self, disk: &Disk, commit: u64, what: &dyn std::fmt::Debug) {
        self.hold(disk.is_committed(&commit), "stored before sent", || format!("{what:?} left with receipt {commit}"));
    }

    /// A notification goes to the peer's registered address, and its numbers always mean the same.
    pub fn push(&mut self, disk: &Disk, id: NotificationId, notification: &Notification, to: SocketAddr) {
        if let Some(name) = disk.name_of(id.deal, id.party) {
            let home = disk.newest_address(&name);
            self.hold(home == Some(to), "pushes go home", || {
                format!("{notification:?} for {name} at {home:?} went to {to}")
            });
        }
        if let Notification::Found { mid, price, .. } = notification {
            // A number that was never seen must be newer than all before.
            if !self.mids.contains_key(mid) {
                self.found.insert(id.deal, (*mid, price.0));
            }
        }
        let (mid, rq) = numbers_of(notification);
        let meant = self.mids.entry(mid).or_insert_with(|| (id.deal, id.party, notification.clone())).clone();
        let now = (id.deal, id.party, notification.clone());
        self.hold(meant == now, "a mid is used once", || format!("mid {mid} meant {meant:?} and now {now:?}"));
        if id.party != Party::Buyer {
            let side = *self.numbers.entry(rq).or_insert((id.deal, id.party));
            let now = (id.deal, id.party);
            self.hold(side == now, "a number is used once", || format!("rq {rq} meant {side:?} and now {now:?}"));
        }
    }

    /// BUY is accepted only at the price of the newest FOUND.
    pub fn bought(&mut self, deal: u64, price: i64) {
        let found = self.found.get(&deal).copied();
        self.hold(found.is_some_and(|(_, found)| found == price), "buy at the price found", || {
            format!("deal {deal} was bought at {price}, found: {found:?}")
        });
    }

    /// A repeated request gets the same response; another one under the same number is refused. `asked_in` is the
    /// [`Invariants::era`] of the request.
    pub fn answer(&mut self, rows: &Rows, request: &Request, asked_in: u32, response: &Response) {
        let name = &request.name;
        if asked_in != self.era(name) {
            return;
        }
        let mut promise = |what| {
            let deal = rows.deal_of(name, request.rq);
            self.promises.push(Promise { name: name.clone(), rq: request.rq, deal, what });
        };
        match (&request.body, response) {
            (RequestBody::Register { .. }, Response::Registered { token, .. }) => {
                let before = self.registered.insert(name.clone(), token.reveal().to_owned());
                self.hold(before.is_none_or(|before| before == token.reveal()), "a name has one token", || {
                    format!("{name} has another token now")
                });
            }
            (RequestBody::LookingFor { .. }, Response::Searching { .. }) => promise(Promised::Search),
            (about!(DealRequest::Offer { price, .. }), Response::Offered { .. }) => promise(Promised::Offer(price.0)),
            (about!(DealRequest::Buy { .. }), Response::Buying { .. }) => promise(Promised::Purchase),
            _ => {}
        }
        if matches!(
            request.body,
            RequestBody::Register { .. }
                | RequestBody::Login { .. }
                | RequestBody::Status { .. }
                | RequestBody::DeRegister
        ) {
            return;
        }
        let temporary = [ErrorCode::Unavailable, ErrorCode::Busy, ErrorCode::Forbidden, ErrorCode::NotRegistered];
        let refused = match response {
            Response::Error { code, .. } if temporary.contains(code) => return,
            Response::Error { .. } => true,
            _ => false,
        };
        let key = (name.clone(), request.body.type_name(), request.rq);
        let (content, given) = (format!("{:?}", request.body), format!("{response:?}"));
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

    /// How many DE-REGISTERs and REGISTERs of a name have been read.
    pub fn era(&self, name: &Name) -> u32 {
        self.eras.get(name).copied().unwrap_or_default()
    }

    /// A DE-REGISTER was read: promises to that name may end at any moment.
    pub fn departure_requested(&mut self, name: &Name) {
        self.registered_anew(name);
        self.registered.remove(name);
        self.promises.retain(|promise| promise.name != *name);
    }

    /// Deals that ended a while ago may be removed, with their responses.
    pub fn may_remove(&mut self, rows: &Rows, ended_before: Millis) {
        let kept = |deal: Option<u64>| {
            let deal = deal.and_then(|deal| rows.deals.get(&deal));
            deal.is_some_and(|deal| deal.ended_at().is_none_or(|at| at > ended_before))
        };
        self.answers.retain(|(name, _, rq), _| kept(rows.deal_of(name, *rq)));
        self.promises.retain(|promise| kept(promise.deal));
    }

    /// A REGISTER was read: the numbers of ended deals may get a new meaning.
    pub fn registered_anew(&mut self, name: &Name) {
        *self.eras.entry(name.clone()).or_default() += 1;
        self.answers.retain(|(whose, ..), _| whose != name);
    }

    /// After a start, everything that was acknowledged is there.
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
                    ("an offer is kept", same || phase.is_some_and(|phase| phase != DealPhase::Searching))
                }
                Promised::Purchase => {
                    let after = [DealPhase::Settling, DealPhase::Completed, DealPhase::Cancelled];
                    ("a purchase is kept", phase.is_some_and(|phase| after.contains(&phase)))
                }
            };
            self.hold(kept, rule, || format!("{promise:?} was given, on disk is {status:?}"));
        }
    }

    /// The ledger balances, and escrow holds exactly what is authorised and not completed.
    pub fn ledger(&mut self, rows: &Rows) {
        let mut accounts: BTreeMap<String, i64> = BTreeMap::new();
        for row in &rows.money {
            let mut book = |account: String, cents: i64| *accounts.entry(account).or_default() += cents;
            match row.operation {
                LedgerOperation::Authorise => {
                    book(format!("card of {}", row.buyer), -row.price.0);
                    book("escrow".to_owned(), row.price.0);
                }
                LedgerOperation::Void => {
                    book("escrow".to_owned(), -row.price.0);
                    book(format!("card of {}", row.buyer), row.price.0);
                }
                LedgerOperation::Capture => {
                    book("escrow".to_owned(), -row.price.0);
                    book(format!("payout to {}", row.seller), row.price.0 - row.fee.0);
                    book("fee".to_owned(), row.fee.0);
                }
            }
        }
        let sum: i64 = accounts.values().sum();
        self.hold(sum == 0, "the ledger sums to zero", || format!("{accounts:?}"));
        let held = rows.deals.values().filter_map(|deal| deal.settling());
        let held: i64 =
            held.filter(|(.., payment)| *payment > PaymentProgress::Asked).map(|(_, price, _)| price.0).sum();
        let escrow = accounts.get("escrow").copied().unwrap_or_default();
        self.hold(escrow == held, "escrow is what is held", || format!("escrow {escrow}, held {held}: {accounts:?}"));
    }

    /// A key is charged once, never after it was voided, and never before SHIPPED is on disk.
    pub fn charged(&mut self, rows: &Rows, deal: u64, before: Account, after: Account) {
        self.hold(after.captured <= 1 && after.authorised <= 1, "charged once", || format!("deal {deal}: {after:?}"));
        self.hold(after.captured == 0 || after.voided == 0, "charged or let go", || format!("deal {deal}: {after:?}"));
        if after.captured > before.captured {
            let payment = rows.deals.get(&deal).and_then(|deal| deal.settling()).map(|(.., payment)| payment);
            self.hold(payment == Some(PaymentProgress::Shipped), "charged after SHIPPED", || {
                format!("deal {deal}: {payment:?}")
            });
        }
    }

    /// A seller never binds and sells more units than it has.
    pub fn stock(&mut self, peer: &Peer, rows: &Rows) {
        let (used, stock) = (peer.used(), peer.stock);
        self.hold(used <= stock, "no unit is sold twice", || format!("{} uses {used} of {stock}", peer.name));
        let sold = rows.completed.values().filter(|(_, seller, _)| *seller == peer.name).count();
        self.hold(sold <= stock, "no unit is sold twice", || format!("{} sold {sold} of {stock}", peer.name));
    }

    /// Settlement slots are held exactly by the deals that are being settled.
    pub fn slots(&mut self, rows: &Rows, slots: usize) {
        let settling = rows.deals.values().filter(|deal| deal.settling().is_some()).count();
        self.hold(slots == settling, "slots are those of settlements", || format!("{slots} slots, {settling} settle"));
    }

    /// At the end, every deal has ended and everyone knows how.
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
            // A peer that departed while a connection was broken may never have learned the result.
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
            matches!(deal.state(), DealState::Cancelled { .. })
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

pub fn numbers_of(notification: &Notification) -> (u64, u64) {
    match notification {
        Notification::Search { mid, rq, .. }
        | Notification::Negotiate { mid, rq, .. }
        | Notification::Reserve { mid, rq, .. }
        | Notification::Released { mid, rq, .. }
        | Notification::Found { mid, rq, .. }
        | Notification::NotFound { mid, rq, .. }
        | Notification::NotAvailable { mid, rq, .. }
        | Notification::Cancel { mid, rq, .. } => (*mid, *rq),
    }
}
