//! Carts: one for each session, and the buyer's saved one (`docs/spec/shop.md`, "Cart"). All carts of one buyer change
//! together: dialect 2 works on the saved cart through the session's, and a purchase empties one and removes units from
//! the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::store::{AnsweredRow, CustomerChange, CustomerJournal};
use crate::identity::SessionKey;
use crate::model::Millis;
use crate::shop::ops::{ErrorCode, LineItem, Refusal, RemainingQuantity, Role, ShopResult};

/// Different items in a cart.
pub const LINES_MAX: usize = 1_000;
/// How long the response to a request is remembered.
pub const ANSWER_RETENTION: Duration = Duration::from_secs(600);
/// How many responses a session remembers. They can be few, because a retry follows within seconds.
pub const ANSWERS_MAX: usize = 32;

/// A result may be told once the commit that it depends on is on disk.
pub type PendingResult<T, C> = (ShopResult<T>, C);

pub type CartLines = BTreeMap<Arc<str>, u32>;

/// The carts of a buyer who has a session or an open purchase. `C` is the journal's type of commits.
#[derive(Debug)]
pub struct BuyerCarts<C> {
    user_id: u64,
    saved: CartLines,
    of: HashMap<SessionKey, SessionCart>,
    /// The commit of the newest change of any of the carts.
    newest: C,
}

#[derive(Debug, Default)]
struct SessionCart {
    lines: CartLines,
    answers: AnsweredRequests,
}

#[derive(Debug, Clone, Copy)]
pub struct CartOf {
    pub session: SessionKey,
    /// The buyer's saved cart, which is loaded into the session's (dialect 2).
    pub uses_saved_cart: bool,
}

impl CartOf {
    pub fn new(sid: &str, uses_saved_cart: bool) -> CartOf {
        CartOf { session: SessionKey::of(sid), uses_saved_cart }
    }
}

/// It changes a cart once, however often it is repeated.
#[derive(Debug, Clone, Copy)]
pub struct IdempotentRequest<'r> {
    /// It distinguishes the request from all others of its session.
    pub id: &'r str,
    /// Decides how long the response is remembered.
    pub now: Millis,
}

impl<C: Clone + Default> BuyerCarts<C> {
    pub fn new(user_id: u64, saved: CartLines) -> BuyerCarts<C> {
        BuyerCarts { user_id, saved, of: HashMap::new(), newest: C::default() }
    }

    pub fn has_session(&self) -> bool {
        !self.of.is_empty()
    }

    pub fn newest(&self) -> &C {
        &self.newest
    }

    /// Adds a session from before the start, with its cart and its remembered responses, oldest first.
    pub fn resume_session(&mut self, session: SessionKey, lines: CartLines, answered: Vec<AnsweredRow>) {
        let mut answers = AnsweredRequests::default();
        for row in answered {
            answers.next = row.number + 1;
            answers.kept.push_back(row);
        }
        self.of.insert(session, SessionCart { lines, answers });
    }

    /// The session's cart is a copy of the saved one.
    pub fn open_session<J: CustomerJournal<C>>(&mut self, journal: &J, session: SessionKey, now: Millis) -> C {
        let lines = self.saved.clone();
        let mut changes =
            vec![CustomerChange::OpenSession { session, role: Role::Buyer, user_id: self.user_id, at: now }];
        changes.extend(lines.iter().map(|(item_id, quantity)| CustomerChange::CartLine {
            session,
            item_id: Arc::clone(item_id),
            quantity: *quantity,
        }));
        self.of.insert(session, SessionCart { lines, answers: AnsweredRequests::default() });
        self.append(journal, changes)
    }

    pub fn close_session<J: CustomerJournal<C>>(&mut self, journal: &J, session: &SessionKey) -> C {
        self.of.remove(session);
        self.append(journal, vec![CustomerChange::CloseSession(*session)])
    }

    /// Adds units, if the cart then holds at most `at_most` of them.
    pub fn add<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        cart: CartOf,
        once: IdempotentRequest<'_>,
        line: &LineItem,
        at_most: u32,
    ) -> PendingResult<(), C> {
        let (answer, newest) = self.change(journal, cart, Some(once), |cart| {
            let there = cart.get(line.item_id.as_str()).copied();
            let wanted = there.unwrap_or(0).checked_add(line.quantity).filter(|wanted| *wanted <= at_most);
            let Some(wanted) = wanted else {
                let text =
                    format!("item_id: of {} there are {at_most}, not as many as the cart would hold", line.item_id);
                return Err(Refusal::new(ErrorCode::OutOfStock, text));
            };
            if there.is_none() && cart.len() >= LINES_MAX {
                return Err(Refusal::new(ErrorCode::Busy, format!("a cart holds at most {LINES_MAX} different items")));
            }
            if wanted > 0 {
                cart.insert(Arc::from(line.item_id.as_str()), wanted);
            }
            Ok(None)
        });
        (answer.map(|_| ()), newest)
    }

    /// All units if no quantity or a larger one is given; returns the rest.
    pub fn remove<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        cart: CartOf,
        once: IdempotentRequest<'_>,
        item_id: &str,
        quantity: Option<u32>,
    ) -> PendingResult<RemainingQuantity, C> {
        let (answer, newest) = self.change(journal, cart, Some(once), |cart| {
            let Some(there) = cart.get_mut(item_id) else {
                return Err(Refusal::new(ErrorCode::NotFound, format!("item_id: {item_id} is not in the cart")));
            };
            *there = quantity.map_or(0, |quantity| there.saturating_sub(quantity));
            let left = *there;
            if left == 0 {
                cart.remove(item_id);
            }
            Ok(Some(left))
        });
        (answer.map(|left| RemainingQuantity { quantity: left.unwrap_or(0) }), newest)
    }

    pub fn clear<J: CustomerJournal<C>>(&mut self, journal: &J, cart: CartOf) -> PendingResult<(), C> {
        let (answer, newest) = self.change(journal, cart, None, |cart| {
            cart.clear();
            Ok(None)
        });
        (answer.map(|_| ()), newest)
    }

    /// Saves a session's cart. In dialect 2 it is the saved one already, and is loaded.
    pub fn save<J: CustomerJournal<C>>(&mut self, journal: &J, cart: CartOf) -> PendingResult<(), C> {
        if cart.uses_saved_cart {
            let (answer, newest) = self.show(journal, cart);
            return (answer.map(|_| ()), newest);
        }
        let Some(lines) = self.of.get(&cart.session).map(|cart| cart.lines.clone()) else {
            return (Err(session_expired()), self.newest.clone());
        };
        let mut changes = Vec::new();
        diff(&self.saved, &lines, |item_id, quantity| {
            changes.push(CustomerChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
        });
        self.saved = lines;
        (Ok(()), self.append(journal, changes))
    }

    /// The lines by item id. In dialect 2 the saved cart is loaded into the session's first.
    pub fn show<J: CustomerJournal<C>>(&mut self, journal: &J, cart: CartOf) -> PendingResult<Vec<LineItem>, C> {
        if cart.uses_saved_cart
            && let (Err(refusal), newest) = self.change(journal, cart, None, |_cart| Ok(None))
        {
            return (Err(refusal), newest);
        }
        let lines = self.of.get(&cart.session).ok_or_else(session_expired).map(|cart| {
            let lines = cart.lines.iter();
            lines.map(|(item_id, quantity)| LineItem { item_id: item_id.to_string(), quantity: *quantity }).collect()
        });
        (lines, self.newest.clone())
    }

    /// Empties the cart of the session, if it is still open, and removes the lines from the saved cart, in one
    /// transaction with `changes`, those of the purchase itself.
    pub fn remove_purchased<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        session: &SessionKey,
        lines: &[LineItem],
        mut changes: Vec<CustomerChange>,
    ) -> C {
        if let Some(cart) = self.of.get_mut(session) {
            let emptied = std::mem::take(&mut cart.lines);
            changes.extend(emptied.into_keys().map(|item_id| CustomerChange::CartLine {
                session: *session,
                item_id,
                quantity: 0,
            }));
        }
        for line in lines {
            let Some(there) = self.saved.get_mut(line.item_id.as_str()) else { continue };
            *there = there.saturating_sub(line.quantity);
            let quantity = *there;
            if quantity == 0 {
                self.saved.remove(line.item_id.as_str());
            }
            let item_id = Arc::from(line.item_id.as_str());
            changes.push(CustomerChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
        }
        self.append(journal, changes)
    }

    /// Works on a session's cart or, in dialect 2, on the saved one and so on both. A refusal changes nothing. Work
    /// that is to be done once gives the quantity that is its answer.
    fn change<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        cart_of: CartOf,
        once: Option<IdempotentRequest<'_>>,
        work: impl FnOnce(&mut CartLines) -> ShopResult<Option<u32>>,
    ) -> PendingResult<Option<u32>, C> {
        let CartOf { session, uses_saved_cart } = cart_of;
        let Some(cart) = self.of.get_mut(&session) else { return (Err(session_expired()), self.newest.clone()) };
        if let Some(known) = once.and_then(|once| cart.answers.find(once)) {
            return (Ok(known), self.newest.clone());
        }
        let mut lines = if uses_saved_cart { self.saved.clone() } else { cart.lines.clone() };
        let answer = match work(&mut lines) {
            Ok(answer) => answer,
            Err(refusal) => return (Err(refusal), self.newest.clone()),
        };
        let mut changes = Vec::new();
        diff(&cart.lines, &lines, |item_id, quantity| {
            changes.push(CustomerChange::CartLine { session, item_id, quantity })
        });
        if uses_saved_cart {
            diff(&self.saved, &lines, |item_id, quantity| {
                changes.push(CustomerChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
            });
            self.saved.clone_from(&lines);
        }
        cart.lines = lines;
        if let Some(once) = once {
            changes.push(cart.answers.keep(session, once, answer));
        }
        (Ok(answer), self.append(journal, changes))
    }

    fn append<J: CustomerJournal<C>>(&mut self, journal: &J, changes: Vec<CustomerChange>) -> C {
        if !changes.is_empty() {
            self.newest = journal.append(changes);
        }
        self.newest.clone()
    }
}

pub fn session_expired() -> Refusal {
    Refusal::new(ErrorCode::SessionExpired, "session_id: this session is unknown or has ended; log in again")
}

/// Calls `each` with every line that is to be written; 0: it goes.
fn diff(before: &CartLines, after: &CartLines, mut each: impl FnMut(Arc<str>, u32)) {
    for (item_id, quantity) in after {
        if before.get(item_id) != Some(quantity) {
            each(Arc::clone(item_id), *quantity);
        }
    }
    for item_id in before.keys().filter(|item_id| !after.contains_key(*item_id)) {
        each(Arc::clone(item_id), 0);
    }
}

/// The last requests of a session, oldest first.
#[derive(Debug, Default)]
struct AnsweredRequests {
    next: u64,
    kept: VecDeque<AnsweredRow>,
}

impl AnsweredRequests {
    fn find(&self, once: IdempotentRequest<'_>) -> Option<Option<u32>> {
        let known = self.kept.iter().rev().find(|row| row.request == once.id);
        known.filter(|row| row.at.until(once.now) < ANSWER_RETENTION).map(|row| row.quantity)
    }

    fn keep(&mut self, session: SessionKey, once: IdempotentRequest<'_>, quantity: Option<u32>) -> CustomerChange {
        while self.kept.len() >= ANSWERS_MAX
            || self.kept.front().is_some_and(|row| row.at.until(once.now) >= ANSWER_RETENTION)
        {
            self.kept.pop_front();
        }
        let (number, request, at) = (self.next, once.id.to_owned(), once.now);
        self.next += 1;
        self.kept.push_back(AnsweredRow { session, number, request: request.clone(), at, quantity });
        let slot = (number % ANSWERS_MAX as u64) as u32; // below ANSWERS_MAX
        CustomerChange::AnsweredRequest { session, slot, number, request, at, quantity }
    }
}
