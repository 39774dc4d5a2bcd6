//! Carts: a session's own, and the one that a buyer has saved (SPEC.md section 4, Cart). No I/O but the
//! hand-over to the journal, under the lock of the carts that were changed.
//!
//! All carts of one buyer share a lock, for they change together: dialect 2 works on the saved one through
//! the session's, and a purchase empties one and takes from the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::store::{AnsweredRow, Change, Journal};
use super::{Done, session_expired};
use crate::identity::SessionKey;
use crate::model::Millis;
use crate::shop::ops::{Answer, Code, Line, Quantity, Refusal, Role};
use crate::storage::{Ticket, TicketState};

/// Most different items in a cart.
pub const LINES_MAX: usize = 1_000;
/// How long an answered request is remembered.
pub const ANSWERS_KEPT: Duration = Duration::from_secs(600);
/// Answered requests remembered of one session: a repeat follows its first within seconds.
pub const ANSWERS_MAX: usize = 32;

/// How many of which item.
pub type Cart = BTreeMap<Arc<str>, u32>;

/// A buyer who is here: everybody who has a session, and whoever a purchase is under way for.
#[derive(Debug)]
pub struct Buyer {
    /// Who.
    pub user_id: u64,
    carts: Mutex<Carts>,
}

#[derive(Debug)]
struct Carts {
    saved: Cart,
    of: HashMap<SessionKey, SessionCart>,
    /// The newest change of any of them.
    last: Ticket,
}

#[derive(Debug, Default)]
struct SessionCart {
    lines: Cart,
    answers: Answers,
}

/// A request to a cart that does its work once, however often it comes.
pub struct Once<'r> {
    /// What tells it from all others.
    pub request: &'r str,
    /// What time it is.
    pub now: Millis,
}

impl Buyer {
    /// A buyer with a saved cart, and no session yet.
    pub fn new(user_id: u64, saved: Cart) -> Buyer {
        let carts = Carts { saved, of: HashMap::new(), last: Ticket::committed() };
        Buyer { user_id, carts: Mutex::new(carts) }
    }

    /// A session of before the start, with what was in its cart and what it was answered, oldest first.
    pub(super) fn resume(&self, session: SessionKey, lines: Cart, answered: Vec<AnsweredRow>) {
        let mut answers = Answers::default();
        for row in answered {
            answers.next = row.number + 1;
            answers.kept.push_back(row);
        }
        self.carts.lock().of.insert(session, SessionCart { lines, answers });
    }

    /// A session begins, with the saved cart as its own.
    pub(super) fn open(&self, journal: &Journal, session: SessionKey, now: Millis) -> Ticket {
        let mut carts = self.carts.lock();
        let lines = carts.saved.clone();
        let mut changes = vec![Change::Open { session, role: Role::Buyer, user_id: self.user_id, at: now }];
        changes.extend(lines.iter().map(|(item_id, quantity)| Change::Line {
            session,
            item_id: Arc::clone(item_id),
            quantity: *quantity,
        }));
        carts.of.insert(session, SessionCart { lines, answers: Answers::default() });
        carts.last = journal.append(changes);
        carts.last.clone()
    }

    /// A session has ended: what was in its cart and not saved goes.
    pub(super) fn close(&self, journal: &Journal, session: &SessionKey) -> Ticket {
        let mut carts = self.carts.lock();
        carts.of.remove(session);
        carts.last = journal.append(vec![Change::Close(*session)]);
        carts.last.clone()
    }

    /// Puts units into a cart, if it then holds at most so many of them.
    pub(super) fn add(
        &self,
        journal: &Journal,
        (session, users): (&SessionKey, bool),
        once: &Once<'_>,
        line: &Line,
        at_most: u32,
    ) -> Done<()> {
        let (answer, ticket) = self.change(journal, (session, users), Some(once), |cart| {
            let there = cart.get(line.item_id.as_str()).copied();
            let wanted = there.unwrap_or(0).checked_add(line.quantity).filter(|wanted| *wanted <= at_most);
            let Some(wanted) = wanted else {
                let text =
                    format!("item_id: of {} there are {at_most}, not as many as the cart would hold", line.item_id);
                return Err(Refusal::new(Code::OutOfStock, text));
            };
            if there.is_none() && cart.len() >= LINES_MAX {
                return Err(Refusal::new(Code::Busy, format!("a cart holds at most {LINES_MAX} different items")));
            }
            if wanted > 0 {
                cart.insert(Arc::from(line.item_id.as_str()), wanted);
            }
            Ok(None)
        });
        (answer.map(|_| ()), ticket)
    }

    /// Takes units out of a cart, all of them if no number or a larger one is named; says what is left.
    pub(super) fn remove(
        &self,
        journal: &Journal,
        (session, users): (&SessionKey, bool),
        once: &Once<'_>,
        item_id: &str,
        quantity: Option<u32>,
    ) -> Done<Quantity> {
        let (answer, ticket) = self.change(journal, (session, users), Some(once), |cart| {
            let Some(there) = cart.get_mut(item_id) else {
                return Err(Refusal::new(Code::NotFound, format!("item_id: {item_id} is not in the cart")));
            };
            *there = quantity.map_or(0, |quantity| there.saturating_sub(quantity));
            let left = *there;
            if left == 0 {
                cart.remove(item_id);
            }
            Ok(Some(left))
        });
        (answer.map(|left| Quantity { quantity: left.unwrap_or(0) }), ticket)
    }

    /// Empties a cart.
    pub(super) fn clear(&self, journal: &Journal, (session, users): (&SessionKey, bool)) -> Done<()> {
        let (answer, ticket) = self.change(journal, (session, users), None, |cart| {
            cart.clear();
            Ok(None)
        });
        (answer.map(|_| ()), ticket)
    }

    /// Saves a session's cart for the buyer. In dialect 2 it is the saved one already: it is loaded.
    pub(super) fn save(&self, journal: &Journal, (session, users): (&SessionKey, bool)) -> Done<()> {
        if users {
            let (answer, ticket) = self.show(journal, (session, users));
            return (answer.map(|_| ()), ticket);
        }
        let mut carts = self.carts.lock();
        let Some(lines) = carts.of.get(session).map(|cart| cart.lines.clone()) else {
            return (Err(session_expired()), carts.last.clone());
        };
        let mut changes = Vec::new();
        diff(&carts.saved, &lines, |item_id, quantity| {
            changes.push(Change::Saved { user_id: self.user_id, item_id, quantity });
        });
        carts.saved = lines;
        carts.write(journal, changes);
        (Ok(()), carts.last.clone())
    }

    /// What is in a cart, by item id; what is to be bought. In dialect 2 the saved cart becomes the session's.
    pub fn show(&self, journal: &Journal, (session, users): (&SessionKey, bool)) -> Done<Vec<Line>> {
        if users {
            let loaded = self.change(journal, (session, users), None, |_cart| Ok(None));
            if let (Err(refusal), ticket) = loaded {
                return (Err(refusal), ticket);
            }
        }
        let carts = self.carts.lock();
        let lines = carts.of.get(session).ok_or_else(session_expired).map(|cart| {
            cart.lines
                .iter()
                .map(|(item_id, quantity)| Line { item_id: item_id.to_string(), quantity: *quantity })
                .collect()
        });
        (lines, carts.last.clone())
    }

    /// These were bought: empties the cart of the session, if it is still open, and takes them out of the
    /// saved one. `append` writes the changes it is given together with the purchase's own rows
    /// ([`Journal::append_with`]). It runs under the lock of the buyer's carts, so it takes none that is
    /// held around a call of this type.
    pub fn bought(&self, session: &SessionKey, lines: &[Line], append: impl FnOnce(Vec<Change>) -> Ticket) -> Ticket {
        let mut carts = self.carts.lock();
        let mut changes = Vec::new();
        if let Some(cart) = carts.of.get_mut(session) {
            let emptied = std::mem::take(&mut cart.lines);
            changes.extend(emptied.into_keys().map(|item_id| Change::Line { session: *session, item_id, quantity: 0 }));
        }
        for line in lines {
            let Some(there) = carts.saved.get_mut(line.item_id.as_str()) else { continue };
            *there = there.saturating_sub(line.quantity);
            let quantity = *there;
            if quantity == 0 {
                carts.saved.remove(line.item_id.as_str());
            }
            let item_id = Arc::from(line.item_id.as_str());
            changes.push(Change::Saved { user_id: self.user_id, item_id, quantity });
        }
        carts.last = append(changes);
        carts.last.clone()
    }

    /// Whether nothing of it is on its way to the disk: what is read there is what is here.
    pub(super) fn is_settled(&self) -> bool {
        self.carts.lock().last.state() != TicketState::Pending
    }

    /// Works on a session's cart, or, where it is the user's, on the saved one and so on both. A refusal
    /// changes nothing. Work that is to be done once gives the quantity that is its answer.
    fn change(
        &self,
        journal: &Journal,
        (session, users): (&SessionKey, bool),
        once: Option<&Once<'_>>,
        work: impl FnOnce(&mut Cart) -> Answer<Option<u32>>,
    ) -> Done<Option<u32>> {
        let mut carts = self.carts.lock();
        let Carts { saved, of, last } = &mut *carts;
        let Some(cart) = of.get_mut(session) else { return (Err(session_expired()), last.clone()) };
        if let Some(known) = once.and_then(|once| cart.answers.find(once)) {
            return (Ok(known), last.clone());
        }
        let mut lines = if users { saved.clone() } else { cart.lines.clone() };
        let answer = match work(&mut lines) {
            Ok(answer) => answer,
            Err(refusal) => return (Err(refusal), last.clone()),
        };
        let mut changes = Vec::new();
        diff(&cart.lines, &lines, |item_id, quantity| {
            changes.push(Change::Line { session: *session, item_id, quantity });
        });
        if users {
            diff(saved, &lines, |item_id, quantity| {
                changes.push(Change::Saved { user_id: self.user_id, item_id, quantity });
            });
            saved.clone_from(&lines);
        }
        cart.lines = lines;
        if let Some(once) = once {
            changes.push(cart.answers.keep(*session, once, answer));
        }
        carts.write(journal, changes);
        (Ok(answer), carts.last.clone())
    }
}

impl Carts {
    fn write(&mut self, journal: &Journal, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.last = journal.append(changes);
        }
    }
}

/// Calls `each` with every line that is to be written so that `before` becomes `after`; 0: it goes.
fn diff(before: &Cart, after: &Cart, mut each: impl FnMut(Arc<str>, u32)) {
    for (item_id, quantity) in after {
        if before.get(item_id) != Some(quantity) {
            each(Arc::clone(item_id), *quantity);
        }
    }
    for item_id in before.keys().filter(|item_id| !after.contains_key(*item_id)) {
        each(Arc::clone(item_id), 0);
    }
}

/// The last requests of a session that were answered, oldest first.
#[derive(Debug, Default)]
struct Answers {
    next: u64,
    kept: VecDeque<AnsweredRow>,
}

impl Answers {
    fn find(&self, once: &Once<'_>) -> Option<Option<u32>> {
        let known = self.kept.iter().rev().find(|row| row.request == once.request);
        known.filter(|row| row.at.until(once.now) < ANSWERS_KEPT).map(|row| row.quantity)
    }

    fn keep(&mut self, session: SessionKey, once: &Once<'_>, quantity: Option<u32>) -> Change {
        while self.kept.len() >= ANSWERS_MAX
            || self.kept.front().is_some_and(|row| row.at.until(once.now) >= ANSWERS_KEPT)
        {
            self.kept.pop_front();
        }
        let (number, request, at) = (self.next, once.request.to_owned(), once.now);
        self.next += 1;
        self.kept.push_back(AnsweredRow { session, number, request: request.clone(), at, quantity });
        let slot = (number % ANSWERS_MAX as u64) as u32; // below ANSWERS_MAX
        Change::Answered { session, slot, number, request, at, quantity }
    }
}
