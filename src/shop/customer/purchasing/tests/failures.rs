//! Banks and stores that fail, and what follows a restart.

use super::*;

#[test]
fn a_bank_that_is_away_is_asked_until_it_answers() {
    let mut shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    shop.authorise(&id, lease, GOOD).unwrap();
    shop.bank.is_away.store(true, Ordering::Relaxed);
    assert_eq!(code(shop.complete(&id, lease)), ErrorCode::Unavailable);
    // Nothing to take over, nothing to undo: it is decided.
    assert_eq!(code(shop.undo(&id, lease)), ErrorCode::Forbidden);
    shop.restart_much_later();
    assert_eq!(shop.ask::<Option<OrphanedPurchase>>(CustomerOp::TakeOver), Ok(None));
    assert_eq!((shop.purchases(), shop.cart().len()), (vec![], 2));
    shop.bank.is_away.store(false, Ordering::Relaxed);
    // With nobody asking for it.
    while shop.db().open_purchase_count() > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((shop.purchases().len(), shop.cart()), (2, vec![]));
    assert_eq!(shop.complete(&id, lease).unwrap().total, Cents(510));
    assert_eq!(shop.charges(), [ChargeState::Captured]);
}

#[test]
fn a_charge_that_was_interrupted_is_done_when_it_opens() {
    let mut shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    shop.authorise(&id, lease, GOOD).unwrap();
    shop.running = None;
    // The power went between the record and the bank's answer.
    let store = Store::open(&shop.dir.path().join("customer.db"), MIGRATIONS).unwrap();
    store
        .write(|tx| {
            let mut purchase = sales::open_purchases(tx)?.pop().unwrap();
            let step = purchase.handle(Millis(0), PurchaseEvent::Complete { lease: 1 });
            PurchaseWrites::new(&purchase, step.writes, FeeRate::default(), Millis(0)).write(tx)
        })
        .unwrap();
    drop(store);
    shop.bank.inner.capture(&id, Millis(0)).unwrap();
    shop.open();
    assert_eq!((shop.db().open_purchase_count(), shop.purchases().len(), shop.cart()), (0, 2, vec![]));
    assert_eq!(shop.balances().len(), 4);
}

#[test]
fn a_transaction_that_failed_is_as_if_it_had_not_been() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    let break_it = || {
        let failing = |_tx: &mut dyn crate::storage::Tx| Err(StoreError::Rejected("on purpose".to_owned()));
        let ticket = shop.db().inner.memory.current().lock().journal.appender().append(failing);
        assert!(ticket.wait().is_err());
    };
    break_it();
    assert_eq!(code(shop.authorise(&id, lease, GOOD)), ErrorCode::Unavailable);
    assert_eq!(shop.charges(), [], "the bank was asked before the record was on disk");
    shop.authorise(&id, lease, GOOD).unwrap();
    break_it();
    assert_eq!(code(shop.complete(&id, lease)), ErrorCode::Unavailable);
    assert_eq!((shop.charges(), shop.cart().len()), (vec![ChargeState::Authorised], 2));
    shop.complete(&id, lease).unwrap();
    assert_eq!((shop.charges(), shop.cart().len()), (vec![ChargeState::Captured], 0));
}

#[test]
fn a_store_that_fails_changes_nothing() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    let before = shop.balances();
    shop.store().close();
    assert_eq!(code(shop.authorise(&id, lease, GOOD)), ErrorCode::Unavailable);
    assert_eq!(shop.charges(), [], "the bank was asked before the record was on disk");
    assert!(before.is_empty());
}

#[test]
fn a_clock_that_started_ten_years_behind_and_was_set_right_dates_nothing_wrong() {
    let shop = Shop::going_by(Clock::behind(Duration::from_secs(10 * 365 * 24 * 3600)));
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    // A card that ended five years ago was good when that clock stood still.
    let ended = format!("01/{:02}", (Clock::wall().to_utc().year() - 5) % 100);
    assert_eq!(code(shop.authorise_until(&id, lease, GOOD, &ended)), ErrorCode::PaymentDeclined);
    assert_eq!(shop.closed(&id, lease), Ok(()));
    let (id, lease, _) = shop.begin(None);
    shop.authorise(&id, lease, GOOD).unwrap();
    shop.complete(&id, lease).unwrap();
    let is_now = |at: Millis| at.0.abs_diff(Clock::wall().0) < 60_000;
    assert!(is_now(shop.purchases()[0].purchased_at), "{:?}", shop.purchases());
    let sale = CustomerOp::InSession {
        sid: shop.seller.clone(),
        uses_saved_cart: false,
        call: CustomerCall::MarkShipped { purchase_id: id.clone(), item_id: "1-1".to_owned() },
    };
    shop.ask::<()>(sale).unwrap();
    let orders = shop.orders(&shop.seller, 0, 10);
    assert!(orders.iter().all(|order| is_now(order.purchased_at)), "{orders:?}");
    assert!(orders.iter().any(|order| order.shipped_at.is_some_and(is_now)), "{orders:?}");
}
