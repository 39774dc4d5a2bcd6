//! Purchases with both databases on files and a bank: many concurrent drivers, some of which die at any step, databases
//! that restart meanwhile, and a bank that is unavailable at times.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::*;
use crate::model::Clock;
use crate::model::Total;
use crate::shop::ops::{HoldState, ItemPage, RegisteredItem};
use crate::shop::product::{NewItem, ProductDb, ProductDbSettings, ProductOp};
use crate::shop::purchase::driver::{DatabaseOp, Driver, DriverStep as Next};

const BUYERS: usize = 12;

/// Both databases. A restart waits until no operation is in progress, so only drivers die.
struct WholeShop {
    shop: RwLock<Option<(Shop, ProductDb)>>,
    clock: Clock,
    buyers: Vec<String>,
}

fn open_product(shop: &Shop) -> ProductDb {
    let settings = ProductDbSettings { hold_timeout: Duration::from_secs(60), first_id_range: 0 };
    ProductDb::open(shop.dir.path(), settings).unwrap()
}

fn random(below: u64) -> u64 {
    let token = Token::random();
    u64::from_str_radix(&token.reveal()[..15], 16).unwrap() % below
}

impl WholeShop {
    fn open(items: &[u32]) -> (WholeShop, Vec<String>) {
        let shop = Shop::new();
        let product = open_product(&shop);
        let ids = items.iter().enumerate().map(|(place, quantity)| {
            let item = NewItem {
                seller_id: 1,
                seller: "sam".to_owned(),
                item_name: "thing".to_owned(),
                category: 1,
                keywords: Vec::new(),
                condition_is_new: true,
                price: Cents(101 + place as i64),
                quantity: *quantity,
            };
            let op = ProductOp::Register { request: format!("item {place}"), item };
            serde_json::from_str::<RegisteredItem>(&product.handle(op).unwrap()).unwrap().item_id
        });
        let ids = ids.collect();
        let buyers = (0..BUYERS).map(|n| shop.sign_up(Role::Buyer, &format!("buyer {n}"))).collect();
        (WholeShop { shop: RwLock::new(Some((shop, product))), clock: Clock::start(), buyers }, ids)
    }

    fn customer(&self, op: CustomerOp) -> ShopResult<String> {
        self.shop.read().as_ref().unwrap().0.db().handle(op)
    }

    fn ask(&self, op: DatabaseOp) -> ShopResult<String> {
        match op {
            DatabaseOp::Customer(op) => self.customer(op),
            DatabaseOp::Product(op) => self.shop.read().as_ref().unwrap().1.handle(op),
        }
    }

    fn put(&self, sid: &str, item_id: &str, quantity: u32) {
        let request = Token::random().reveal().to_owned();
        let (sid, item_id) = (sid.to_owned(), item_id.to_owned());
        let op = CustomerOp::AddToCart { request, sid, uses_saved_cart: false, item_id, quantity, at_most: 1_000 };
        self.customer(op).unwrap();
    }

    /// Makes one purchase as a frontend does; `None` if its driver died, which it does once in `dies_once_in` steps.
    fn purchase(
        &self,
        sid: &str,
        key: Option<String>,
        dies_once_in: Option<u64>,
    ) -> Option<ShopResult<CompletedPurchase>> {
        let request = Token::random().reveal().to_owned();
        let op = CustomerOp::Begin {
            request,
            sid: sid.to_owned(),
            uses_saved_cart: false,
            idempotency_key: key,
            address: None,
        };
        let begun = match self.customer(op) {
            Ok(json) => serde_json::from_str(&json).unwrap(),
            Err(refusal) => return Some(Err(refusal)),
        };
        match begun {
            BeginResponse::Done { purchased } => Some(Ok(purchased)),
            BeginResponse::Drive { purchase_id, lease, lines, .. } => {
                let card = CardDetails { number: GOOD.to_owned(), exp: "12/79".to_owned(), name: "b".to_owned() };
                let driver = Driver::begin(self.clock.now(), purchase_id, lease, lines, 60_000, card);
                self.drive(driver, dies_once_in)
            }
        }
    }

    fn drive(
        &self,
        (mut driver, mut step): (Driver, Next),
        dies_once_in: Option<u64>,
    ) -> Option<ShopResult<CompletedPurchase>> {
        loop {
            match step {
                Next::Finished(answer) => return Some(answer),
                Next::Send { op, .. } => {
                    if dies_once_in.is_some_and(|steps| random(steps) == 0) {
                        return None;
                    }
                    let answer = self.ask(op.clone());
                    if dies_once_in.is_some_and(|steps| random(steps) == 0) {
                        return None;
                    }
                    step = driver
                        .handle_response(self.clock.now(), op.parse_response(answer.as_deref().map_err(Clone::clone)));
                }
            }
        }
    }

    /// Restarts both databases after every lease has expired.
    fn restart(&self) {
        let mut whole = self.shop.write();
        let (mut shop, product) = whole.take().unwrap();
        product.close();
        drop(product);
        shop.restart_much_later();
        let product = open_product(&shop);
        *whole = Some((shop, product));
    }

    fn take_over(&self) {
        loop {
            let json = self.customer(CustomerOp::TakeOver).unwrap();
            let Some(orphan) = serde_json::from_str::<Option<OrphanedPurchase>>(&json).unwrap() else { return };
            self.drive(Driver::take_over(self.clock.now(), orphan), None);
        }
    }

    /// Checks that stock, history, bank and ledger agree, and returns the number of purchases.
    fn agrees(&self, items: &[String], registered: &[u32]) -> usize {
        let whole = self.shop.read();
        let (shop, product) = whole.as_ref().unwrap();
        assert_eq!(shop.db().open_purchase_count(), 0);
        let orders = shop.orders(&shop.seller, 0, 500);
        assert!(orders.len() < 500, "one page shows them all");
        let mut sold: BTreeMap<&str, u32> = BTreeMap::new();
        let mut by_purchase: BTreeMap<&str, i64> = BTreeMap::new();
        for order in &orders {
            *sold.entry(&order.item_id).or_default() += order.quantity;
            *by_purchase.entry(&order.purchase_id).or_default() += order.price.0 * i64::from(order.quantity);
        }
        let json = product.handle(ProductOp::ItemsOf { seller_id: 1, offset: 0, limit: 500 }).unwrap();
        let found: ItemPage = serde_json::from_str(&json).unwrap();
        for (item_id, registered) in items.iter().zip(registered) {
            let left = found.items.iter().find(|item| item.item_id == *item_id).unwrap().quantity;
            let sold = sold.get(item_id.as_str()).copied().unwrap_or(0);
            assert_eq!(left + sold, *registered, "{item_id}: {left} left, {sold} sold");
        }
        for charge in shop.bank.inner.charges().unwrap() {
            let hold = ProductOp::HoldState { purchase_id: charge.key.clone() };
            let hold: HoldState = serde_json::from_str(&product.handle(hold).unwrap()).unwrap();
            match by_purchase.get(charge.key.as_str()) {
                Some(cents) => {
                    assert_eq!(
                        (charge.state, charge.amount, hold),
                        (ChargeState::Captured, Some(Cents(*cents)), HoldState::Sold)
                    );
                }
                None => assert_eq!((charge.state, hold), (ChargeState::Voided, HoldState::Released), "{}", charge.key),
            }
        }
        let balances: BTreeMap<String, Total> = shop
            .store()
            .read(ledger::balances)
            .unwrap()
            .into_iter()
            .map(|(account, cents)| (account.to_string(), cents))
            .collect();
        assert_eq!(shop.store().read(ledger::sum), Ok(Total(0)));
        assert_eq!(balances.get("escrow").copied().unwrap_or_default(), Total(0), "{balances:?}");
        let charged: i128 =
            balances.iter().filter(|(name, _)| name.starts_with("card:")).map(|(_, cents)| -cents.0).sum();
        assert_eq!(charged, i128::from(by_purchase.values().sum::<i64>()));
        by_purchase.len()
    }
}

#[test]
fn the_last_units_go_to_as_many_buyers() {
    let (whole, items) = WholeShop::open(&[5]);
    let outcomes: Vec<ShopResult<CompletedPurchase>> = thread::scope(|scope| {
        let buyers = whole.buyers.iter().map(|sid| {
            let (whole, item) = (&whole, &items[0]);
            scope.spawn(move || {
                whole.put(sid, item, 1);
                whole.purchase(sid, None, None).unwrap()
            })
        });
        buyers.collect::<Vec<_>>().into_iter().map(|buyer| buyer.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5);
    let refused: Vec<ErrorCode> =
        outcomes.into_iter().filter_map(|outcome| outcome.err().map(|refusal| refusal.code)).collect();
    assert_eq!(refused, vec![ErrorCode::OutOfStock; BUYERS - 5]);
    assert_eq!(whole.agrees(&items, &[5]), 5);
}

#[test]
fn stock_charges_and_history_agree_whoever_dies() {
    const ROUNDS: usize = 4;
    const TRIES: usize = 4;
    let registered = [40, 25, 60];
    let (whole, items) = WholeShop::open(&registered);
    let (mut died, mut promised) = (0, Vec::new());
    for round in 0..ROUNDS {
        let seen: Vec<(usize, Vec<CompletedPurchase>)> = thread::scope(|scope| {
            let buyers = whole.buyers.iter().enumerate().map(|(n, sid)| {
                let (whole, items) = (&whole, &items);
                scope.spawn(move || {
                    let (mut died, mut promised) = (0, Vec::new());
                    for attempt in 0..TRIES {
                        whole.put(sid, &items[random(3) as usize], 1 + random(2) as u32);
                        let key = (random(2) == 0).then(|| format!("{n} {round} {attempt}"));
                        match whole.purchase(sid, key, Some(25)) {
                            Some(Ok(purchased)) => promised.push(purchased),
                            Some(Err(_)) => {}
                            // The buyer's slot is taken until the lease expires: try again in the next round.
                            None => {
                                died += 1;
                                break;
                            }
                        }
                    }
                    (died, promised)
                })
            });
            let buyers: Vec<_> = buyers.collect();
            // At times the bank is unavailable, and the databases restart while drivers run.
            let shop = whole.shop.read();
            let bank = Arc::clone(&shop.as_ref().unwrap().0.bank);
            drop(shop);
            bank.is_away.store(round % 2 == 1, Ordering::Relaxed);
            whole.restart();
            bank.is_away.store(false, Ordering::Relaxed);
            buyers.into_iter().map(|buyer| buyer.join().unwrap()).collect()
        });
        for (deaths, purchases) in seen {
            died += deaths;
            promised.extend(purchases);
        }
        whole.restart();
        whole.take_over();
        let made = whole.agrees(&items, &registered);
        assert!(made >= promised.len());
        for purchased in &promised {
            let complete = CustomerOp::Complete { purchase_id: purchased.purchase_id.clone(), lease: 0 };
            let kept: CompletedPurchase = serde_json::from_str(&whole.customer(complete).unwrap()).unwrap();
            assert_eq!(kept, *purchased);
        }
    }
    assert!(died > ROUNDS && promised.len() > ROUNDS, "{died} drivers died, {} were told", promised.len());
}
