use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use serde::de::DeserializeOwned;

use super::*;
use crate::bank::{BuiltinGateway, ChargeState, Gateway, ledger};
use crate::identity::HashCost;
use crate::model::{Cents, FeeRate, Millis};
use crate::shop::customer::sales::PurchaseWrites;
use crate::shop::customer::{CustomerCall, CustomerDb, CustomerDbConfig, CustomerOp, MIGRATIONS};
use crate::shop::ops::{
    Account, CompletedPurchase, LineItem, NewSession, OrphanedPurchase, PricedLine, PurchaseHistoryEntry, SellerOrder,
};
use crate::storage::Store;

mod failures;
mod turns;
mod whole;

/// A bank that may be away, lose its answers, or change its mind.
struct Bank {
    inner: BuiltinGateway,
    is_away: AtomicBool,
    refuses_capture: AtomicBool,
    captures: AtomicU32,
}

impl Bank {
    fn reach(&self) -> Result<(), GatewayError> {
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(GatewayError::Unreachable("it is away".to_owned())),
            false => Ok(()),
        }
    }
}

impl Gateway for Bank {
    fn authorise(
        &self,
        key: &str,
        amount: Cents,
        card: &PaymentCard,
        now: Millis,
    ) -> Result<AuthorisationOutcome, GatewayError> {
        self.reach()?;
        self.inner.authorise(key, amount, card, now)
    }

    fn capture(&self, key: &str, now: Millis) -> Result<CaptureOutcome, GatewayError> {
        self.captures.fetch_add(1, Ordering::Relaxed);
        self.reach()?;
        if self.refuses_capture.load(Ordering::Relaxed) {
            return Ok(CaptureOutcome::Refused { reason: "it was too long ago".to_owned() });
        }
        self.inner.capture(key, now)
    }

    fn void(&self, key: &str, now: Millis) -> Result<VoidOutcome, GatewayError> {
        self.reach()?;
        self.inner.void(key, now)
    }
}

/// A customer database with a buyer and two sellers who are signed in.
struct Shop {
    dir: tempfile::TempDir,
    running: Option<(CustomerDb, Arc<Store>)>,
    bank: Arc<Bank>,
    buyer: String,
    seller: String,
    other_seller: String,
    requests: AtomicU32,
    clock: Clock,
}

const GOOD: &str = "4111111111111111";

const DECLINED: &str = "4000000000000002";

impl Shop {
    fn new() -> Shop {
        Shop::going_by(Clock::start())
    }

    fn going_by(clock: Clock) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let bank = Arc::new(Bank {
            inner: BuiltinGateway::open(dir.path()).unwrap(),
            is_away: AtomicBool::new(false),
            refuses_capture: AtomicBool::new(false),
            captures: AtomicU32::new(0),
        });
        let (buyer, seller, other_seller) = Default::default();
        let requests = AtomicU32::new(0);
        let mut shop = Shop { dir, running: None, bank, buyer, seller, other_seller, requests, clock };
        shop.open();
        shop.buyer = shop.sign_up(Role::Buyer, "bea");
        shop.seller = shop.sign_up(Role::Seller, "sam");
        shop.other_seller = shop.sign_up(Role::Seller, "sue");
        shop
    }

    fn open(&mut self) {
        let store = Arc::new(Store::open(&self.dir.path().join("customer.db"), MIGRATIONS).unwrap());
        let password_cost = HashCost { memory_kib: 8, passes: 1 };
        let config = CustomerDbConfig { password_cost, clock: self.clock, ..CustomerDbConfig::default() };
        let db = CustomerDb::open(Arc::clone(&store), Arc::clone(&self.bank) as Arc<dyn Gateway>, config).unwrap();
        self.running = Some((db, store));
    }

    /// Closes it, lets the time of all leases pass, and opens it again.
    fn restart_much_later(&mut self) {
        self.running = None;
        self.open();
        self.db().inner.memory.current().lock().purchases.expire_leases();
    }

    fn db(&self) -> &CustomerDb {
        &self.running.as_ref().unwrap().0
    }

    fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().1
    }

    fn ask<T: DeserializeOwned>(&self, op: CustomerOp) -> ShopResult<T> {
        self.db().handle(op).map(|json| serde_json::from_str(&json).unwrap())
    }

    fn request(&self) -> String {
        format!("request {}", self.requests.fetch_add(1, Ordering::Relaxed))
    }

    fn sign_up(&self, role: Role, username: &str) -> String {
        let (username, password) = (username.to_owned(), "secret".to_owned());
        let create = CustomerOp::Create {
            request: self.request(),
            role,
            username: username.clone(),
            password: password.clone(),
            name: Some(format!("{username} the {}", role.as_str())),
            source: "127.0.0.1".to_owned(),
        };
        self.ask::<Account>(create).unwrap();
        self.ask::<NewSession>(CustomerOp::Login { role, username, password, source: "127.0.0.1".to_owned() })
            .unwrap()
            .sid
    }

    fn put(&self, item_id: &str, quantity: u32) {
        let (request, sid, item_id) = (self.request(), self.buyer.clone(), item_id.to_owned());
        let op = CustomerOp::AddToCart { request, sid, uses_saved_cart: false, item_id, quantity, at_most: 1_000 };
        self.ask::<()>(op).unwrap();
    }

    fn cart(&self) -> Vec<LineItem> {
        self.ask(CustomerOp::InSession {
            sid: self.buyer.clone(),
            uses_saved_cart: false,
            call: CustomerCall::ShowCart,
        })
        .unwrap()
    }

    fn begin_op(&self, key: Option<&str>, address: &str) -> CustomerOp {
        CustomerOp::Begin {
            request: self.request(),
            sid: self.buyer.clone(),
            uses_saved_cart: false,
            idempotency_key: key.map(str::to_owned),
            address: Some(address.to_owned()),
        }
    }

    fn begin(&self, key: Option<&str>) -> (String, u64, Vec<LineItem>) {
        match self.ask(self.begin_op(key, "1 Main Street")).unwrap() {
            BeginResponse::Drive { purchase_id, lease, lines, .. } => (purchase_id, lease, lines),
            done => panic!("{done:?}"),
        }
    }

    fn authorise(&self, id: &str, lease: u64, number: &str) -> ShopResult<()> {
        self.authorise_until(id, lease, number, "12/79")
    }

    fn authorise_until(&self, id: &str, lease: u64, number: &str, exp: &str) -> ShopResult<()> {
        let card = CardDetails { number: number.to_owned(), exp: exp.to_owned(), name: "Bea".to_owned() };
        self.ask(CustomerOp::Authorise { purchase_id: id.to_owned(), lease, lines: priced(), card })
    }

    fn complete(&self, id: &str, lease: u64) -> ShopResult<CompletedPurchase> {
        self.ask(CustomerOp::Complete { purchase_id: id.to_owned(), lease })
    }

    fn undo(&self, id: &str, lease: u64) -> ShopResult<()> {
        let why = Refusal::new(ErrorCode::OutOfStock, "there are not as many");
        self.ask(CustomerOp::Undo { purchase_id: id.to_owned(), lease, why })
    }

    fn closed(&self, id: &str, lease: u64) -> ShopResult<()> {
        self.ask(CustomerOp::Closed { purchase_id: id.to_owned(), lease })
    }

    fn fill(&self) {
        self.put("1-1", 2);
        self.put("1-2", 1);
    }

    fn purchase(&self, key: Option<&str>) -> CompletedPurchase {
        self.fill();
        let (id, lease, lines) = self.begin(key);
        assert_eq!(lines, [line("1-1", 2), line("1-2", 1)]);
        self.authorise(&id, lease, GOOD).unwrap();
        self.complete(&id, lease).unwrap()
    }

    fn balances(&self) -> Vec<String> {
        let balances = self.store().read(ledger::balances).unwrap();
        assert_eq!(self.store().read(ledger::sum), Ok(crate::model::Total(0)));
        let shown = balances.iter().filter(|(_, cents)| cents.0 != 0);
        shown.map(|(account, cents)| format!("{account} {cents}")).collect()
    }

    fn charges(&self) -> Vec<ChargeState> {
        self.bank.inner.charges().unwrap().iter().map(|charge| charge.state).collect()
    }

    fn purchases(&self) -> Vec<PurchaseHistoryEntry> {
        self.ask(CustomerOp::InSession {
            sid: self.buyer.clone(),
            uses_saved_cart: false,
            call: CustomerCall::Purchases { offset: 0, limit: 500 },
        })
        .unwrap()
    }

    fn orders(&self, sid: &str, offset: u64, limit: u64) -> Vec<SellerOrder> {
        self.ask(CustomerOp::InSession {
            sid: sid.to_owned(),
            uses_saved_cart: false,
            call: CustomerCall::Orders { offset, limit },
        })
        .unwrap()
    }
}

fn line(item_id: &str, quantity: u32) -> LineItem {
    LineItem { item_id: item_id.to_owned(), quantity }
}

fn priced() -> Vec<PricedLine> {
    let line = |item_id: &str, quantity, cents, seller_id, seller: &str| {
        let (item_id, seller) = (item_id.to_owned(), seller.to_owned());
        PricedLine { item_id, quantity, price: Cents(cents), seller_id, seller }
    };
    vec![line("1-1", 2, 205, 1, "sam"), line("1-2", 1, 100, 2, "sue")]
}

fn code<T: std::fmt::Debug>(answer: ShopResult<T>) -> ErrorCode {
    answer.unwrap_err().code
}

#[test]
fn a_purchase_empties_the_cart_and_pays_everyone() {
    let shop = Shop::new();
    shop.put("1-1", 3);
    shop.ask::<()>(CustomerOp::InSession {
        sid: shop.buyer.clone(),
        uses_saved_cart: false,
        call: CustomerCall::SaveCart,
    })
    .unwrap();
    shop.ask::<()>(CustomerOp::InSession {
        sid: shop.buyer.clone(),
        uses_saved_cart: false,
        call: CustomerCall::ClearCart,
    })
    .unwrap();
    let purchased = shop.purchase(None);
    assert_eq!((purchased.total, &purchased.items), (Cents(510), &priced()));
    assert_eq!(shop.cart(), []);
    // 4.10 less 0.41, and 1.00 less 0.10.
    assert_eq!(shop.balances(), ["card:bea -5.10", "fee 0.51", "payout:sam 3.69", "payout:sue 0.90"]);
    assert_eq!(shop.charges(), [ChargeState::Captured]);
    assert_eq!(shop.db().open_purchase_count(), 0);
    // Its driver did not hear that: the same answer, whatever lease it has.
    assert_eq!(shop.complete(&purchased.purchase_id, 9), Ok(purchased.clone()));
    assert_eq!(shop.bank.captures.load(Ordering::Relaxed), 1);
    let bought = shop.purchases();
    let shown: Vec<_> = bought.iter().map(|bought| (bought.item_id.as_str(), bought.quantity, bought.price)).collect();
    assert_eq!(shown, [("1-1", 2, Cents(205)), ("1-2", 1, Cents(100))]);
    let orders = shop.orders(&shop.seller, 0, 10);
    assert_eq!((orders.len(), orders[0].payout, orders[0].buyer_name.as_str()), (1, Cents(369), "bea the buyer"));
    assert_eq!(orders[0].address.as_deref(), Some("1 Main Street"));
    // What was bought is taken out of the saved cart, too.
    let again = shop.ask::<NewSession>(CustomerOp::Login {
        role: Role::Buyer,
        username: "bea".to_owned(),
        password: "secret".to_owned(),
        source: "127.0.0.1".to_owned(),
    });
    let saved: Vec<LineItem> = shop
        .ask(CustomerOp::InSession { sid: again.unwrap().sid, uses_saved_cart: false, call: CustomerCall::ShowCart })
        .unwrap();
    assert_eq!(saved, [line("1-1", 1)]);
}

#[test]
fn an_empty_cart_a_stranger_and_a_seller_begin_nothing() {
    let shop = Shop::new();
    assert_eq!(code(shop.ask::<BeginResponse>(shop.begin_op(None, "x"))), ErrorCode::EmptyCart);
    let begin = |sid: &str| {
        let (request, sid) = (shop.request(), sid.to_owned());
        let op = CustomerOp::Begin { request, sid, uses_saved_cart: false, idempotency_key: None, address: None };
        code(shop.ask::<BeginResponse>(op))
    };
    assert_eq!(begin("nobody"), ErrorCode::SessionExpired);
    assert_eq!(begin(&shop.seller), ErrorCode::Forbidden);
    // And none of them is in the way of the next.
    shop.purchase(None);
}

#[test]
fn a_declined_card_leaves_everything_as_it_was() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(Some("k"));
    assert_eq!(code(shop.authorise(&id, lease, DECLINED)), ErrorCode::PaymentDeclined);
    assert_eq!(code(shop.authorise(&id, lease, GOOD)), ErrorCode::PaymentDeclined);
    assert_eq!(code(shop.complete(&id, lease)), ErrorCode::PaymentDeclined);
    assert_eq!(shop.closed(&id, lease), Ok(()));
    assert_eq!(code(shop.closed(&id, lease)), ErrorCode::NotFound);
    assert_eq!((shop.balances(), shop.purchases()), (vec![], vec![]));
    assert_eq!(shop.cart(), [line("1-1", 2), line("1-2", 1)]);
    // The key is free again.
    let (id, lease, _) = shop.begin(Some("k"));
    shop.authorise(&id, lease, GOOD).unwrap();
    shop.complete(&id, lease).unwrap();
    assert_eq!(shop.charges().iter().filter(|state| **state == ChargeState::Captured).count(), 1);
}

#[test]
fn what_is_undone_is_let_go_of() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    shop.authorise(&id, lease, GOOD).unwrap();
    assert_eq!(shop.balances(), ["card:bea -5.10", "escrow 5.10"]);
    for _repeat in 0..2 {
        assert_eq!(shop.undo(&id, lease), Ok(()));
        assert_eq!((shop.balances(), shop.charges()), (vec![], vec![ChargeState::Voided]));
    }
    assert_eq!(shop.closed(&id, lease), Ok(()));
    assert_eq!(shop.db().open_purchase_count(), 0);
}

#[test]
fn a_charge_that_the_bank_refuses_is_undone() {
    let shop = Shop::new();
    shop.bank.refuses_capture.store(true, Ordering::Relaxed);
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    shop.authorise(&id, lease, GOOD).unwrap();
    assert_eq!(code(shop.complete(&id, lease)), ErrorCode::PaymentDeclined);
    assert_eq!((shop.balances(), shop.charges()), (vec![], vec![ChargeState::Voided]));
    assert_eq!((shop.purchases(), shop.cart().len()), (vec![], 2));
    assert_eq!(shop.closed(&id, lease), Ok(()));
}

#[test]
fn the_users_cart_is_loaded_and_both_are_emptied() {
    let shop = Shop::new();
    let uses_saved_cart = |request: String, sid: &str| {
        let (sid, idempotency_key, address) = (sid.to_owned(), None, None);
        CustomerOp::Begin { request, sid, uses_saved_cart: true, idempotency_key, address }
    };
    shop.fill();
    shop.ask::<()>(CustomerOp::InSession {
        sid: shop.buyer.clone(),
        uses_saved_cart: false,
        call: CustomerCall::SaveCart,
    })
    .unwrap();
    // What is in the session's cart alone is not the user's.
    shop.put("1-9", 7);
    let begun = shop.ask(uses_saved_cart(shop.request(), &shop.buyer)).unwrap();
    let BeginResponse::Drive { purchase_id: id, lease, lines, .. } = begun else { panic!("{begun:?}") };
    assert_eq!(lines, [line("1-1", 2), line("1-2", 1)]);
    shop.authorise(&id, lease, GOOD).unwrap();
    shop.complete(&id, lease).unwrap();
    assert_eq!(code(shop.ask::<BeginResponse>(uses_saved_cart(shop.request(), &shop.buyer))), ErrorCode::EmptyCart);
}

#[test]
fn goods_are_shipped_by_their_seller_once() {
    let shop = Shop::new();
    let id = shop.purchase(None).purchase_id;
    let ship = |sid: &str, id: &str, item_id: &str| {
        let (sid, purchase_id, item_id) = (sid.to_owned(), id.to_owned(), item_id.to_owned());
        shop.ask::<()>(CustomerOp::InSession {
            sid,
            uses_saved_cart: false,
            call: CustomerCall::MarkShipped { purchase_id, item_id },
        })
        .map_err(|refusal| refusal.code)
    };
    assert_eq!(ship(&shop.other_seller, &id, "1-1"), Err(ErrorCode::Forbidden));
    assert_eq!(ship(&shop.buyer, &id, "1-1"), Err(ErrorCode::Forbidden));
    assert_eq!(ship(&shop.seller, &id, "1-9"), Err(ErrorCode::NotFound));
    assert_eq!(ship(&shop.seller, "p", "1-1"), Err(ErrorCode::NotFound));
    assert!(shop.purchases().iter().all(|bought| bought.shipped_at.is_none()));
    assert_eq!(ship(&shop.seller, &id, "1-1"), Ok(()));
    let shipped_at = shop.orders(&shop.seller, 0, 1)[0].shipped_at;
    assert!(shipped_at.is_some());
    assert_eq!(ship(&shop.seller, &id, "1-1"), Ok(()));
    let bought = shop.purchases();
    assert_eq!((bought[0].shipped_at, bought[1].shipped_at), (shipped_at, None));
}

#[test]
fn history_comes_in_pages_newest_first() {
    let shop = Shop::new();
    let ids: Vec<String> = (0..3).map(|_| shop.purchase(None).purchase_id).collect();
    let all = shop.orders(&shop.seller, 0, 500);
    assert!(all.windows(2).all(|pair| pair[0].purchased_at >= pair[1].purchased_at));
    assert_eq!(all.len(), 3);
    assert!(ids.iter().all(|id| all.iter().any(|order| order.purchase_id == *id)));
    assert_eq!(shop.orders(&shop.seller, 1, 1), all[1..2]);
    assert_eq!(shop.orders(&shop.seller, 3, 500), []);
    assert_eq!(shop.orders(&shop.seller, u64::MAX, u64::MAX), []);
    assert_eq!(shop.purchases().len(), 6);
}

#[test]
fn a_card_of_no_form_names_its_field() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    for (number, exp, field) in [("4111", "12/79", "number"), (GOOD, "13/79", "exp")] {
        let card = CardDetails { number: number.to_owned(), exp: exp.to_owned(), name: "Bea".to_owned() };
        let op = CustomerOp::Authorise { purchase_id: id.clone(), lease, lines: priced(), card };
        let refusal = shop.ask::<()>(op).unwrap_err();
        assert!(refusal.code == ErrorCode::BadRequest && refusal.message.starts_with(field), "{refusal:?}");
    }
}
