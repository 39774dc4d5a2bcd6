//! Fake databases for the frontends' tests: without disk, timeouts, or ranking.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::Barrier;

use parking_lot::Mutex;
use serde::Serialize;

use crate::model::{CardNumber, Cents, Millis, Token};
use crate::shop::customer::{CustomerCall, CustomerOp};
use crate::shop::listener::Database;
use crate::shop::ops::*;
use crate::shop::product::{NewItem, ProductOp};

fn ok(value: impl Serialize) -> ShopResult<String> {
    Ok(serde_json::to_string(&value).unwrap())
}

fn refuse(code: ErrorCode) -> ShopResult<String> {
    Err(Refusal::new(code, format!("{code:?}")))
}

/// If set, each operation waits at this barrier for one of the other database.
type Rendezvous = Mutex<Option<Arc<Barrier>>>;

fn rendezvous_with_other(rendezvous: &Rendezvous) {
    let barrier = rendezvous.lock().clone();
    if let Some(barrier) = barrier {
        barrier.wait();
    }
}

#[derive(Default)]
pub(super) struct FakeCustomerDb {
    state: Mutex<FakeCustomerDbState>,
    pub(super) rendezvous: Rendezvous,
}

#[derive(Default)]
struct FakeCustomerDbState {
    accounts: Vec<(Role, String, Account)>,
    sessions: HashMap<String, (Role, u64)>,
    carts: HashMap<String, BTreeMap<String, u32>>,
    saved: HashMap<u64, BTreeMap<String, u32>>,
    open: HashMap<String, (String, Vec<PricedLine>)>,
    bought: Vec<CompletedPurchase>,
    keys: HashMap<String, CompletedPurchase>,
    orphans: VecDeque<OrphanedPurchase>,
    log: Vec<String>,
}

impl FakeCustomerDb {
    /// The operations so far that concern purchases.
    pub(super) fn log(&self) -> Vec<String> {
        self.state.lock().log.clone()
    }

    pub(super) fn add_orphan(&self, orphan: OrphanedPurchase) {
        self.state.lock().orphans.push_back(orphan);
    }
}

impl FakeCustomerDbState {
    fn session(&self, wanted: Role, sid: &str) -> ShopResult<u64> {
        match self.sessions.get(sid) {
            Some((role, user_id)) if *role == wanted => Ok(*user_id),
            Some(_) => Err(Refusal::new(ErrorCode::Forbidden, "the other role's session")),
            None => Err(Refusal::new(ErrorCode::SessionExpired, "no such session")),
        }
    }

    /// The session's cart; with `uses_saved_cart` the saved one is loaded into it first.
    fn cart(&mut self, sid: &str, uses_saved_cart: bool) -> ShopResult<&mut BTreeMap<String, u32>> {
        let user = self.session(Role::Buyer, sid)?;
        let cart = self.carts.entry(sid.to_owned()).or_default();
        if uses_saved_cart {
            *cart = self.saved.get(&user).cloned().unwrap_or_default();
        }
        Ok(cart)
    }

    fn save(&mut self, sid: &str) {
        let user = self.sessions[sid].1;
        self.saved.insert(user, self.carts[sid].clone());
    }
}

impl FakeCustomerDbState {
    fn call(&mut self, sid: &str, uses_saved_cart: bool, call: CustomerCall) -> ShopResult<String> {
        match call {
            CustomerCall::SaveCart => {
                self.cart(sid, uses_saved_cart)?;
                self.save(sid);
                ok(())
            }
            CustomerCall::ClearCart => {
                self.cart(sid, uses_saved_cart)?.clear();
                if uses_saved_cart {
                    self.save(sid);
                }
                ok(())
            }
            CustomerCall::ShowCart => {
                let cart = self.cart(sid, uses_saved_cart)?;
                let line =
                    |(item_id, quantity): (&String, &u32)| LineItem { item_id: item_id.clone(), quantity: *quantity };
                ok(cart.iter().map(line).collect::<Vec<_>>())
            }
            CustomerCall::Purchases { .. } => {
                self.session(Role::Buyer, sid)?;
                let bought = |purchase: &CompletedPurchase| PurchaseHistoryEntry {
                    purchase_id: purchase.purchase_id.clone(),
                    item_id: purchase.items[0].item_id.clone(),
                    quantity: purchase.items[0].quantity,
                    price: purchase.items[0].price,
                    purchased_at: Millis::from_unix_s(7),
                    shipped_at: None,
                };
                ok(self.bought.iter().map(bought).collect::<Vec<_>>())
            }
            CustomerCall::Orders { .. } => {
                self.session(Role::Seller, sid)?;
                ok(Vec::<SellerOrder>::new())
            }
            CustomerCall::MarkShipped { .. } => {
                self.session(Role::Seller, sid)?;
                ok(())
            }
        }
    }
}

impl Database<CustomerOp> for FakeCustomerDb {
    fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        if !matches!(op, CustomerOp::TakeOver | CustomerOp::Renew { .. }) {
            rendezvous_with_other(&self.rendezvous);
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        if matches!(
            op,
            CustomerOp::Authorise { .. }
                | CustomerOp::Complete { .. }
                | CustomerOp::Undo { .. }
                | CustomerOp::Closed { .. }
        ) {
            state.log.push(format!("{op:?}"));
        }
        match op {
            CustomerOp::Create { role, username, password, name, .. } => {
                let of_role = || state.accounts.iter().filter(|(of, ..)| *of == role);
                if of_role().any(|(_, _, account)| account.username == username) {
                    return refuse(ErrorCode::UsernameTaken);
                }
                let user_id = of_role().count() as u64 + 1;
                let name = name.unwrap_or_else(|| username.clone());
                let account = Account { user_id, username, name };
                state.accounts.push((role, password, account.clone()));
                ok(account)
            }
            CustomerOp::Login { role, username, password, source } => {
                assert_eq!(source, "127.0.0.1");
                let is_it = |(of, secret, account): &&(Role, String, Account)| {
                    *of == role && *secret == password && account.username == username
                };
                let Some((_, _, account)) = state.accounts.iter().find(is_it) else {
                    return refuse(ErrorCode::BadCredentials);
                };
                let session = NewSession { sid: Token::random().reveal().to_owned(), user_id: account.user_id };
                state.sessions.insert(session.sid.clone(), (role, session.user_id));
                ok(session)
            }
            CustomerOp::Logout { role, sid } => {
                state.session(role, &sid)?;
                state.sessions.remove(&sid);
                ok(())
            }
            CustomerOp::Validate { sid } => {
                let Some((role, user_id)) = state.sessions.get(&sid).copied() else {
                    return refuse(ErrorCode::SessionExpired);
                };
                let of = |(of, _, account): &&(Role, String, Account)| *of == role && account.user_id == user_id;
                let (_, _, account) = state.accounts.iter().find(of).unwrap();
                ok(SessionInfo { user: account.username.clone(), role })
            }
            CustomerOp::Touch { role, sid } => {
                let user_id = state.session(role, &sid)?;
                let of = |(of, _, account): &&(Role, String, Account)| *of == role && account.user_id == user_id;
                ok(&state.accounts.iter().find(of).unwrap().2)
            }
            CustomerOp::FindUser { role, username, user_id } => {
                let of = |(of, _, account): &&(Role, String, Account)| {
                    *of == role && (username.as_ref() == Some(&account.username) || user_id == Some(account.user_id))
                };
                state
                    .accounts
                    .iter()
                    .find(of)
                    .map_or_else(|| refuse(ErrorCode::NotFound), |(_, _, account)| ok(account))
            }
            CustomerOp::AddToCart { sid, uses_saved_cart, item_id, quantity, at_most, .. } => {
                let cart = state.cart(&sid, uses_saved_cart)?;
                let all = cart.get(&item_id).copied().unwrap_or(0) + quantity;
                if all > at_most {
                    return refuse(ErrorCode::OutOfStock);
                }
                cart.insert(item_id, all);
                if uses_saved_cart {
                    state.save(&sid);
                }
                ok(())
            }
            CustomerOp::RemoveFromCart { sid, uses_saved_cart, item_id, quantity, .. } => {
                let cart = state.cart(&sid, uses_saved_cart)?;
                let Some(had) = cart.remove(&item_id) else { return refuse(ErrorCode::NotFound) };
                let left = had.saturating_sub(quantity.unwrap_or(had));
                if left > 0 {
                    cart.insert(item_id, left);
                }
                if uses_saved_cart {
                    state.save(&sid);
                }
                ok(RemainingQuantity { quantity: left })
            }
            CustomerOp::Begin { sid, uses_saved_cart, idempotency_key, .. } => {
                if let Some(purchased) = idempotency_key.and_then(|key| state.keys.get(&key).cloned()) {
                    return ok(BeginResponse::Done { purchased });
                }
                let cart = state.cart(&sid, uses_saved_cart)?;
                if cart.is_empty() {
                    return refuse(ErrorCode::EmptyCart);
                }
                let line =
                    |(item_id, quantity): (&String, &u32)| LineItem { item_id: item_id.clone(), quantity: *quantity };
                let lines = cart.iter().map(line).collect();
                let purchase_id = Token::random().reveal().to_owned();
                state.open.insert(purchase_id.clone(), (sid, Vec::new()));
                ok(BeginResponse::Drive { purchase_id, lease: 1, lease_ms: 10_000, lines })
            }
            CustomerOp::Authorise { purchase_id, lines, card, .. } => {
                if !CardNumber::new(&card.number).unwrap().passes_luhn() {
                    return refuse(ErrorCode::PaymentDeclined);
                }
                state.open.get_mut(&purchase_id).unwrap().1 = lines;
                ok(())
            }
            CustomerOp::Complete { purchase_id, .. } => {
                let Some((sid, items)) = state.open.remove(&purchase_id) else { return refuse(ErrorCode::NotFound) };
                let total = Cents(items.iter().map(|line| line.price.0 * i64::from(line.quantity)).sum());
                let purchased = CompletedPurchase { purchase_id, total, items };
                state.bought.push(purchased.clone());
                state.carts.remove(&sid);
                ok(purchased)
            }
            CustomerOp::Undo { .. } | CustomerOp::Closed { .. } | CustomerOp::Renew { .. } => ok(()),
            CustomerOp::TakeOver => ok(state.orphans.pop_front()),
            CustomerOp::InSession { sid, uses_saved_cart, call } => state.call(&sid, uses_saved_cart, call),
        }
    }
}

#[derive(Default)]
pub(super) struct FakeProductDb {
    state: Mutex<FakeProductDbState>,
    pub(super) rendezvous: Rendezvous,
}

#[derive(Default)]
struct FakeProductDbState {
    items: Vec<Item>,
    holds: HashMap<String, (HoldState, Vec<PricedLine>)>,
    sold: u64,
}

impl FakeProductDb {
    pub(super) fn hold(&self, purchase_id: &str) -> HoldState {
        self.state.lock().holds.get(purchase_id).map_or(HoldState::Unknown, |(hold, _)| *hold)
    }
}

impl FakeProductDbState {
    fn item(&mut self, item_id: &str) -> ShopResult<&mut Item> {
        let found = self.items.iter_mut().find(|item| item.item_id == item_id);
        found.ok_or_else(|| Refusal::new(ErrorCode::NotFound, "no such item"))
    }

    fn own_item(&mut self, item_id: &str, seller_id: u64) -> ShopResult<&mut Item> {
        let item = self.item(item_id)?;
        if item.seller_id != seller_id {
            return Err(Refusal::new(ErrorCode::Forbidden, "another's"));
        }
        Ok(item)
    }
}

impl Database<ProductOp> for FakeProductDb {
    fn handle(&self, op: ProductOp) -> ShopResult<String> {
        rendezvous_with_other(&self.rendezvous);
        let mut state = self.state.lock();
        let state = &mut *state;
        match op {
            ProductOp::Search { category, keywords, .. } => {
                let is_found = |item: &&Item| {
                    category.is_none_or(|category| item.category == category)
                        && keywords.iter().all(|keyword| item.keywords.contains(keyword))
                };
                let items: Vec<Item> = state.items.iter().filter(is_found).cloned().collect();
                ok(ItemPage { total: items.len() as u64, items, total_is_at_least: false })
            }
            ProductOp::GetItem { item_id } => ok(state.item(&item_id)?),
            ProductOp::Register { item, .. } => {
                let NewItem { seller_id, seller, item_name, category, keywords, condition_is_new, price, quantity } =
                    item;
                let item_id = format!("{category}-{}", state.items.len() + 1);
                state.items.push(Item {
                    item_id: item_id.clone(),
                    item_name,
                    category,
                    keywords,
                    condition_is_new,
                    price,
                    quantity,
                    seller_id,
                    seller,
                    feedback: Feedback::default(),
                });
                ok(RegisteredItem { item_id })
            }
            ProductOp::ChangePrice { seller_id, item_id, price } => {
                state.own_item(&item_id, seller_id)?.price = price;
                ok(())
            }
            ProductOp::UpdateUnits { seller_id, item_id, delta, .. } => {
                let item = state.own_item(&item_id, seller_id)?;
                let Ok(quantity) = u32::try_from(i64::from(item.quantity) + delta) else {
                    return refuse(ErrorCode::OutOfStock);
                };
                item.quantity = quantity;
                ok(RemainingQuantity { quantity })
            }
            ProductOp::ItemsOf { seller_id, .. } => {
                let items: Vec<Item> = state.items.iter().filter(|item| item.seller_id == seller_id).cloned().collect();
                ok(ItemPage { total: items.len() as u64, items, total_is_at_least: false })
            }
            ProductOp::VoteItem { item_id, up, .. } => {
                let feedback = &mut state.item(&item_id)?.feedback;
                *if up { &mut feedback.thumbs_up } else { &mut feedback.thumbs_down } += 1;
                ok(())
            }
            ProductOp::VoteSeller { .. } => ok(()),
            ProductOp::RatingOf { seller_id } => {
                let mut rating = SellerRating { items_sold: state.sold, ..SellerRating::default() };
                for item in state.items.iter().filter(|item| item.seller_id == seller_id) {
                    rating.feedback.thumbs_up += item.feedback.thumbs_up;
                    rating.feedback.thumbs_down += item.feedback.thumbs_down;
                }
                ok(rating)
            }
            ProductOp::Hold { purchase_id, lines, .. } => {
                for line in &lines {
                    if state.item(&line.item_id)?.quantity < line.quantity {
                        return refuse(ErrorCode::OutOfStock);
                    }
                }
                let mut priced = Vec::new();
                for LineItem { item_id, quantity } in lines {
                    let item = state.item(&item_id)?;
                    item.quantity -= quantity;
                    let (price, seller_id, seller) = (item.price, item.seller_id, item.seller.clone());
                    priced.push(PricedLine { item_id, quantity, price, seller_id, seller });
                }
                state.holds.insert(purchase_id, (HoldState::Held, priced.clone()));
                ok(priced)
            }
            ProductOp::Sell { purchase_id } => {
                let (hold, lines) = state.holds.get_mut(&purchase_id).unwrap();
                *hold = HoldState::Sold;
                state.sold += lines.iter().map(|line| u64::from(line.quantity)).sum::<u64>();
                ok(HoldState::Sold)
            }
            ProductOp::Release { purchase_id } => {
                let (_, lines) = state.holds.remove(&purchase_id).unwrap_or((HoldState::Unknown, Vec::new()));
                for line in lines {
                    state.item(&line.item_id)?.quantity += line.quantity;
                }
                state.holds.insert(purchase_id, (HoldState::Released, Vec::new()));
                ok(HoldState::Released)
            }
            ProductOp::HoldState { purchase_id } => {
                ok(state.holds.get(&purchase_id).map_or(HoldState::Unknown, |(hold, _)| *hold))
            }
        }
    }
}
