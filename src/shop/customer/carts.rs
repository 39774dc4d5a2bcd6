//! Carts: one for each session, and the buyer's saved one (`docs/spec/shop.md`, "Cart"). Changes are passed to the
//! journal under the lock of the carts that were changed; there is no other I/O.
//!
//! All carts of one buyer share a lock, because they change together: dialect 2 works on the saved cart through the
//! session's, and a purchase empties one and removes units from the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::store::{AnsweredRow, Journal, SessionChange};
use super::{PendingResult, session_expired};
use crate::identity::SessionKey;
use crate::model::Millis;
use crate::shop::ops::{ErrorCode, LineItem, Refusal, RemainingQuantity, Role, ShopResult};
use crate::storage::{CommitHandle, CommitState};

/// The maximum number of different items in a cart.
pub const LINES_MAX: usize = 1_000;
/// How long the response to a request is remembered.
pub const ANSWER_RETENTION: Duration = Duration::from_secs(600);
/// The number of responses that are remembered per session. It can be small, because a retry follows within seconds.
pub const ANSWERS_MAX: usize = 32;

/// The units of each item.
pub type CartLines = BTreeMap<Arc<str>, u32>;

/// The carts of a buyer who has a session or an open purchase.
#[derive(Debug)]
pub struct BuyerCarts {
    pub user_id: u64,
    carts: Mutex<BuyerCartsState>,
}

#[derive(Debug)]
struct BuyerCartsState {
    saved: CartLines,
    by_session: HashMap<SessionKey, SessionCart>,
    /// The commit of the newest change of any of the carts.
    last_commit: CommitHandle,
}

#[derive(Debug, Default)]
struct SessionCart {
    lines: CartLines,
    answers: AnsweredRequests,
}

/// A request that changes a cart once, however often it is retried.
pub struct IdempotentRequest<'r> {
    pub id: &'r str,
    /// The present time, which decides how long its response is remembered.
    pub now: Millis,
}

impl BuyerCarts {
    /// Creates a buyer with a saved cart and no session.
    pub fn new(user_id: u64, saved: CartLines) -> BuyerCarts {
        let carts = BuyerCartsState { saved, by_session: HashMap::new(), last_commit: CommitHandle::committed() };
        BuyerCarts { user_id, carts: Mutex::new(carts) }
    }

    /// Restores a session of before the start, with its cart and its remembered responses, oldest first.
    pub(super) fn resume_session(&self, session: SessionKey, lines: CartLines, answered: Vec<AnsweredRow>) {
        let mut answers = AnsweredRequests::default();
        for row in answered {
            answers.next = row.number + 1;
            answers.rows.push_back(row);
        }
        self.carts.lock().by_session.insert(session, SessionCart { lines, answers });
    }

    /// Opens a session, whose cart begins as a copy of the saved one.
    pub(super) fn open_session(&self, journal: &Journal, session: SessionKey, now: Millis) -> CommitHandle {
        let mut carts = self.carts.lock();
        let lines = carts.saved.clone();
        let mut changes =
            vec![SessionChange::OpenSession { session, role: Role::Buyer, user_id: self.user_id, at: now }];
        changes.extend(lines.iter().map(|(item_id, quantity)| SessionChange::CartLine {
            session,
            item_id: Arc::clone(item_id),
            quantity: *quantity,
        }));
        carts.by_session.insert(session, SessionCart { lines, answers: AnsweredRequests::default() });
        carts.last_commit = journal.append(changes);
        carts.last_commit.clone()
    }

    /// Ends a session and discards its cart.
    pub(super) fn close_session(&self, journal: &Journal, session: &SessionKey) -> CommitHandle {
        let mut carts = self.carts.lock();
        carts.by_session.remove(session);
        carts.last_commit = journal.append(vec![SessionChange::CloseSession(*session)]);
        carts.last_commit.clone()
    }

    /// Adds units to a cart, unless it would then hold more than `at_most` of the item.
    pub(super) fn add(
        &self,
        journal: &Journal,
        (session, uses_saved_cart): (&SessionKey, bool),
        request: &IdempotentRequest<'_>,
        line: &LineItem,
        at_most: u32,
    ) -> PendingResult<()> {
        let (result, commit) = self.update_cart(journal, (session, uses_saved_cart), Some(request), |cart| {
            let current = cart.get(line.item_id.as_str()).copied();
            let new_quantity =
                current.unwrap_or(0).checked_add(line.quantity).filter(|new_quantity| *new_quantity <= at_most);
            let Some(new_quantity) = new_quantity else {
                let text =
                    format!("item_id: of {} there are {at_most}, not as many as the cart would hold", line.item_id);
                return Err(Refusal::new(ErrorCode::OutOfStock, text));
            };
            if current.is_none() && cart.len() >= LINES_MAX {
                return Err(Refusal::new(ErrorCode::Busy, format!("a cart holds at most {LINES_MAX} different items")));
            }
            if new_quantity > 0 {
                cart.insert(Arc::from(line.item_id.as_str()), new_quantity);
            }
            Ok(None)
        });
        (result.map(|_| ()), commit)
    }

    /// Removes units from a cart: all of them if `quantity` is `None` or more than there are. Returns how many are
    /// left.
    pub(super) fn remove(
        &self,
        journal: &Journal,
        (session, uses_saved_cart): (&SessionKey, bool),
        request: &IdempotentRequest<'_>,
        item_id: &str,
        quantity: Option<u32>,
    ) -> PendingResult<RemainingQuantity> {
        let (result, commit) = self.update_cart(journal, (session, uses_saved_cart), Some(request), |cart| {
            let Some(current) = cart.get_mut(item_id) else {
                return Err(Refusal::new(ErrorCode::NotFound, format!("item_id: {item_id} is not in the cart")));
            };
            *current = quantity.map_or(0, |quantity| current.saturating_sub(quantity));
            let left = *current;
            if left == 0 {
                cart.remove(item_id);
            }
            Ok(Some(left))
        });
        (result.map(|left| RemainingQuantity { quantity: left.unwrap_or(0) }), commit)
    }

    pub(super) fn clear(
        &self,
        journal: &Journal,
        (session, uses_saved_cart): (&SessionKey, bool),
    ) -> PendingResult<()> {
        let (result, commit) = self.update_cart(journal, (session, uses_saved_cart), None, |cart| {
            cart.clear();
            Ok(None)
        });
        (result.map(|_| ()), commit)
    }

    /// Saves a session's cart. If the session uses the saved cart, this loads that cart into the session's instead.
    pub(super) fn save(&self, journal: &Journal, (session, uses_saved_cart): (&SessionKey, bool)) -> PendingResult<()> {
        if uses_saved_cart {
            let (result, commit) = self.show(journal, (session, uses_saved_cart));
            return (result.map(|_| ()), commit);
        }
        let mut carts = self.carts.lock();
        let Some(lines) = carts.by_session.get(session).map(|cart| cart.lines.clone()) else {
            return (Err(session_expired()), carts.last_commit.clone());
        };
        let mut changes = Vec::new();
        diff(&carts.saved, &lines, |item_id, quantity| {
            changes.push(SessionChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
        });
        carts.saved = lines;
        carts.write(journal, changes);
        (Ok(()), carts.last_commit.clone())
    }

    /// The lines of a cart, ordered by item id. If the session uses the saved cart, that is loaded into the session's
    /// first.
    pub fn show(
        &self,
        journal: &Journal,
        (session, uses_saved_cart): (&SessionKey, bool),
    ) -> PendingResult<Vec<LineItem>> {
        if uses_saved_cart {
            let loaded = self.update_cart(journal, (session, uses_saved_cart), None, |_cart| Ok(None));
            if let (Err(refusal), commit) = loaded {
                return (Err(refusal), commit);
            }
        }
        let carts = self.carts.lock();
        let lines = carts.by_session.get(session).ok_or_else(session_expired).map(|cart| {
            cart.lines
                .iter()
                .map(|(item_id, quantity)| LineItem { item_id: item_id.to_string(), quantity: *quantity })
                .collect()
        });
        (lines, carts.last_commit.clone())
    }

    /// Removes what was bought: empties the cart of the session, if it is still open, and removes the lines' units from
    /// the saved cart. `append` writes the changes together with those of the purchase ([`Journal::append_with`]). It
    /// runs under the lock of the carts, so it must not take a lock under which methods of this type are called.
    pub fn remove_purchased(
        &self,
        session: &SessionKey,
        lines: &[LineItem],
        append: impl FnOnce(Vec<SessionChange>) -> CommitHandle,
    ) -> CommitHandle {
        let mut carts = self.carts.lock();
        let mut changes = Vec::new();
        if let Some(cart) = carts.by_session.get_mut(session) {
            let emptied = std::mem::take(&mut cart.lines);
            changes.extend(emptied.into_keys().map(|item_id| SessionChange::CartLine {
                session: *session,
                item_id,
                quantity: 0,
            }));
        }
        for line in lines {
            let Some(current) = carts.saved.get_mut(line.item_id.as_str()) else { continue };
            *current = current.saturating_sub(line.quantity);
            let quantity = *current;
            if quantity == 0 {
                carts.saved.remove(line.item_id.as_str());
            }
            let item_id = Arc::from(line.item_id.as_str());
            changes.push(SessionChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
        }
        carts.last_commit = append(changes);
        carts.last_commit.clone()
    }

    /// Whether all changes are on disk or have failed, so that the carts can be evicted and loaded again.
    pub(super) fn is_committed(&self) -> bool {
        self.carts.lock().last_commit.state() != CommitState::Pending
    }

    /// Applies `work` to a session's cart or, with `uses_saved_cart`, to the saved cart, which then replaces the
    /// session's. A refusal changes nothing. The quantity that `work` returns is the response that is remembered for
    /// `request`.
    fn update_cart(
        &self,
        journal: &Journal,
        (session, uses_saved_cart): (&SessionKey, bool),
        request: Option<&IdempotentRequest<'_>>,
        work: impl FnOnce(&mut CartLines) -> ShopResult<Option<u32>>,
    ) -> PendingResult<Option<u32>> {
        let mut carts = self.carts.lock();
        let BuyerCartsState { saved, by_session, last_commit } = &mut *carts;
        let Some(cart) = by_session.get_mut(session) else { return (Err(session_expired()), last_commit.clone()) };
        if let Some(remembered) = request.and_then(|request| cart.answers.find(request)) {
            return (Ok(remembered), last_commit.clone());
        }
        let mut lines = if uses_saved_cart { saved.clone() } else { cart.lines.clone() };
        let result = match work(&mut lines) {
            Ok(result) => result,
            Err(refusal) => return (Err(refusal), last_commit.clone()),
        };
        let mut changes = Vec::new();
        diff(&cart.lines, &lines, |item_id, quantity| {
            changes.push(SessionChange::CartLine { session: *session, item_id, quantity });
        });
        if uses_saved_cart {
            diff(saved, &lines, |item_id, quantity| {
                changes.push(SessionChange::SavedCartLine { user_id: self.user_id, item_id, quantity });
            });
            saved.clone_from(&lines);
        }
        cart.lines = lines;
        if let Some(request) = request {
            changes.push(cart.answers.remember(*session, request, result));
        }
        carts.write(journal, changes);
        (Ok(result), carts.last_commit.clone())
    }
}

impl BuyerCartsState {
    fn write(&mut self, journal: &Journal, changes: Vec<SessionChange>) {
        if !changes.is_empty() {
            self.last_commit = journal.append(changes);
        }
    }
}

/// Calls `each` with every line that differs, and its quantity in `after`; 0 if it is missing there.
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

/// The remembered responses of a session, oldest first.
#[derive(Debug, Default)]
struct AnsweredRequests {
    next: u64,
    rows: VecDeque<AnsweredRow>,
}

impl AnsweredRequests {
    fn find(&self, request: &IdempotentRequest<'_>) -> Option<Option<u32>> {
        let remembered = self.rows.iter().rev().find(|row| row.request == request.id);
        remembered.filter(|row| row.at.until(request.now) < ANSWER_RETENTION).map(|row| row.quantity)
    }

    fn remember(
        &mut self,
        session: SessionKey,
        request: &IdempotentRequest<'_>,
        quantity: Option<u32>,
    ) -> SessionChange {
        while self.rows.len() >= ANSWERS_MAX
            || self.rows.front().is_some_and(|row| row.at.until(request.now) >= ANSWER_RETENTION)
        {
            self.rows.pop_front();
        }
        let (number, request, at) = (self.next, request.id.to_owned(), request.now);
        self.next += 1;
        self.rows.push_back(AnsweredRow { session, number, request: request.clone(), at, quantity });
        let slot = (number % ANSWERS_MAX as u64) as u32; // below ANSWERS_MAX
        SessionChange::AnsweredRequest { session, slot, number, request, at, quantity }
    }
}
