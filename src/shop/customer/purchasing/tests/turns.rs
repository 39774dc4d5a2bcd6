//! Who may begin: keys, turns and drivers that are gone.

use super::*;

#[test]
fn a_key_is_answered_once_and_for_all() {
    let mut shop = Shop::new();
    let purchased = shop.purchase(Some("k"));
    let done = |shop: &Shop, address: &str| match shop.ask::<BeginResponse>(shop.begin_op(Some("k"), address)) {
        Ok(BeginResponse::Done { purchased }) => Ok(purchased),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal.code),
    };
    assert_eq!(done(&shop, "1 Main Street"), Ok(purchased.clone()));
    assert_eq!(done(&shop, "2 Main Street"), Err(ErrorCode::BadRequest));
    shop.put("1-9", 1);
    assert_eq!(done(&shop, "1 Main Street"), Err(ErrorCode::BadRequest));
    shop.ask::<()>(CustomerOp::InSession {
        sid: shop.buyer.clone(),
        uses_saved_cart: false,
        call: CustomerCall::ClearCart,
    })
    .unwrap();
    shop.fill();
    shop.running = None;
    shop.open();
    assert_eq!(done(&shop, "1 Main Street"), Ok(purchased));
    assert_eq!(shop.charges(), [ChargeState::Captured]);
}

#[test]
fn a_second_purchase_waits_for_the_first_and_finds_the_cart_empty() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    thread::scope(|scope| {
        let second = scope.spawn(|| shop.ask::<BeginResponse>(shop.begin_op(None, "1 Main Street")));
        // Nothing shows that it waits but that it is counted.
        while shop.db().inner.begin_waiters.state.lock().all == 0 {
            thread::yield_now();
        }
        shop.authorise(&id, lease, GOOD).unwrap();
        assert!(!second.is_finished());
        shop.complete(&id, lease).unwrap();
        assert_eq!(code(second.join().unwrap()), ErrorCode::EmptyCart);
    });
    let waiting = shop.db().inner.begin_waiters.state.lock();
    assert_eq!((waiting.all, waiting.of.len()), (0, 0));
    drop(waiting);
    assert_eq!(shop.charges(), [ChargeState::Captured]);
}

#[test]
fn only_so_many_wait() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    thread::scope(|scope| {
        let ask = || shop.ask::<BeginResponse>(shop.begin_op(None, "1 Main Street"));
        let waiting: Vec<_> = (0..WAITING_BEGINS_PER_BUYER_MAX).map(|_| scope.spawn(ask)).collect();
        while shop.db().inner.begin_waiters.state.lock().all < WAITING_BEGINS_PER_BUYER_MAX {
            thread::yield_now();
        }
        assert_eq!(code(ask()), ErrorCode::Busy);
        // Another buyer is not kept waiting by that.
        let sid = shop.sign_up(Role::Buyer, "bob");
        let request = shop.request();
        let op = CustomerOp::Begin { request, sid, uses_saved_cart: false, idempotency_key: None, address: None };
        assert_eq!(code(shop.ask::<BeginResponse>(op)), ErrorCode::EmptyCart);
        shop.authorise(&id, lease, GOOD).unwrap();
        shop.complete(&id, lease).unwrap();
        for second in waiting {
            assert_eq!(code(second.join().unwrap()), ErrorCode::EmptyCart);
        }
    });
}

#[test]
fn the_message_that_began_it_may_come_again() {
    let shop = Shop::new();
    shop.fill();
    let op = shop.begin_op(None, "1 Main Street");
    let first: BeginResponse = shop.ask(op.clone()).unwrap();
    assert_eq!(shop.ask::<BeginResponse>(op), Ok(first));
    assert_eq!(shop.db().open_purchase_count(), 1);
}

#[test]
fn a_driver_that_is_gone_is_replaced() {
    let mut shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    assert_eq!(shop.ask::<Option<OrphanedPurchase>>(CustomerOp::TakeOver), Ok(None));
    for is_authorised in [false, true] {
        if is_authorised {
            shop.authorise(&id, lease + 1, GOOD).unwrap();
        }
        shop.restart_much_later();
        let orphan: OrphanedPurchase = shop.ask::<Option<OrphanedPurchase>>(CustomerOp::TakeOver).unwrap().unwrap();
        assert_eq!((&orphan.purchase_id, orphan.is_authorised, orphan.is_undone), (&id, is_authorised, false));
        assert_eq!(shop.ask::<Option<OrphanedPurchase>>(CustomerOp::TakeOver), Ok(None));
        // The one before has no say any more.
        assert_eq!(code(shop.authorise(&id, orphan.lease - 1, GOOD)), ErrorCode::Forbidden);
        assert_eq!(code(shop.undo(&id, orphan.lease - 1)), ErrorCode::Forbidden);
    }
    let lease = lease + 2;
    shop.undo(&id, lease).unwrap();
    shop.restart_much_later();
    let orphan: OrphanedPurchase = shop.ask::<Option<OrphanedPurchase>>(CustomerOp::TakeOver).unwrap().unwrap();
    assert!(orphan.is_undone);
    shop.closed(&id, orphan.lease).unwrap();
    assert_ne!(shop.begin(None).0, id);
}

#[test]
fn a_driver_that_says_that_it_is_at_work_is_not_replaced() {
    let shop = Shop::new();
    shop.fill();
    let (id, lease, _) = shop.begin(None);
    let leased_until = || shop.db().inner.memory.current().lock().purchases.get(&id).unwrap().leased_until();
    let before = leased_until();
    let deadline = Instant::now() + Duration::from_secs(20);
    while leased_until() == before {
        assert!(Instant::now() < deadline, "the lease stays as it is");
        let leases = vec![(id.clone(), lease), ("unknown".to_owned(), 1)];
        shop.ask::<()>(CustomerOp::Renew { leases }).unwrap();
    }
    assert!(leased_until() > before);
}
