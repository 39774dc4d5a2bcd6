//! Purchases and the carts, transactions that fail, and answers that wait for the disk.

use super::*;

/// Rows of a purchase that cannot be stored: its line's seller has no name.
fn rows_that_fail() -> CustomerChange {
    let purchase = serde_json::json!({
        "id": "p", "buyer": {"user_id": 1, "username": "ann", "name": "Ann"}, "request": "r",
        "cart": {"session": SessionKey::of("a"), "users": false, "lines": [{"item_id": "1-1", "quantity": 2}]},
        "key": null, "address": null,
        "priced": [{"item_id": "1-1", "quantity": 2, "price": 1, "seller_id": 1, "seller": ""}],
        "begun_at": NOW, "captured_at": NOW, "stage": "captured", "lease": 1, "leased_until": NOW, "is_booked": true,
        "why": null,
    });
    let purchase: Purchase = serde_json::from_value(purchase).unwrap();
    CustomerChange::Purchase(Box::new(PurchaseWrites::new(
        &purchase,
        vec![PurchaseWrite::PostSale],
        FeeRate::default(),
        NOW,
    )))
}

#[test]
fn a_purchase_empties_the_sessions_cart_and_takes_from_the_saved_one() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    for (item_id, quantity) in [("1-1", 2), ("1-2", 5), ("1-3", 1)] {
        parts.put("a", true, item_id, quantity);
    }
    parts.open("b", 1, NOW).unwrap();
    bought(&parts, "a", &[("1-1", 2), ("1-2", 3), ("9-9", 1)], Vec::new()).wait().unwrap();
    for _ in 0..2 {
        assert_eq!(parts.cart("a", false), "");
        assert_eq!(parts.cart("b", false), "1-1 x 2, 1-2 x 5, 1-3 x 1", "another session's is its own");
        parts.crash(NOW);
    }
    assert_eq!(parts.cart("a", true), "1-2 x 2, 1-3 x 1");
}

#[test]
fn a_purchase_that_is_not_stored_leaves_the_carts_as_they_were() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 2);
    let newest = bought(&parts, "a", &[("1-1", 2)], vec![rows_that_fail()]);
    assert!(newest.wait().is_err());
    parts.crash(NOW);
    assert_eq!(parts.cart("a", false), "1-1 x 2");
    assert_eq!(parts.cart("a", true), "1-1 x 2");
}

#[test]
fn a_purchase_whose_buyer_has_left_takes_from_the_saved_cart_and_revives_no_session() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 2);
    assert_eq!(parts.end("a", NOW).0, Ok(()));
    parts.crash(NOW);
    assert_eq!(parts.sizes(), (0, 0));
    let evictions = parts.core.lock().sessions.evictions();
    let saved = parts.saved_cart(1, evictions);
    assert!(parts.core.lock().sessions.put_buyer(1, saved));
    bought(&parts, "a", &[("1-1", 1)], Vec::new()).wait().unwrap();
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 0), "nobody holds the buyer any more");
    assert!(!parts.is_alive("a", NOW));
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 1");
}

// When the disk fails.

#[test]
fn what_could_not_be_stored_has_not_happened_and_the_next_operation_works() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&ann, true, "1-1", 1).unwrap();
    db.break_chain();
    assert_eq!(db.ask::<()>(add("again", &ann, true, "1-1", 1)), Err(ErrorCode::Unavailable));
    assert_eq!(db.cart(&ann, true).as_deref(), Ok("1-1 x 1"));
    assert_eq!(db.ask::<()>(add("again", &ann, true, "1-1", 1)), Ok(()));
    assert_eq!(db.cart(&ann, true).as_deref(), Ok("1-1 x 2"));

    db.break_chain();
    assert_eq!(db.logout(&bob), Err(ErrorCode::Unavailable));
    assert_eq!(db.touch(Role::Buyer, &bob).as_deref(), Ok("bob"), "that logout was not");
    assert_eq!(db.logout(&bob), Ok(()));

    db.break_chain();
    let refused = db.ask::<NewSession>(login(Role::Buyer, "bob", "secret", "::1"));
    assert_eq!(refused.map(|_| ()), Err(ErrorCode::Unavailable));
    assert_eq!(db.customers().session_and_buyer_counts().0, 1);
    db.login(Role::Buyer, "bob");
    db.restart();
    assert_eq!(db.cart(&ann, false).as_deref(), Ok("1-1 x 2"));
}

#[test]
fn who_is_told_that_a_session_has_ended_is_told_when_that_is_on_disk() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    // The writer is kept busy, so that what comes after it waits.
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    let busy = parts.store.submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    let (answer, ended) = parts.end("a", NOW);
    assert_eq!((answer, ended.state()), (Ok(()), CommitState::Pending));
    let (refusal, newest) = parts.core.lock().use_session(NOW, Role::Buyer, &SessionKey::of("a")).unwrap_err();
    assert_eq!((refusal.code, newest.state()), (ErrorCode::SessionExpired, CommitState::Pending));
    drop(let_go);
    newest.wait().unwrap();
    busy.wait().unwrap();
    assert_eq!(ended.state(), CommitState::Committed);
}

#[test]
fn no_answer_leaves_before_what_it_is_built_on_is_on_disk() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&ann, false, "1-1", 5).unwrap();
    let sid = || ann.clone();
    let ops = [
        create("c", Role::Seller, "sue"),
        login(Role::Buyer, "bob", "secret", "::1"),
        add("a", &ann, false, "1-1", 1),
        CustomerOp::InSession { sid: sid(), uses_saved_cart: false, call: CustomerCall::SaveCart },
        add("b", &ann, true, "1-2", 1),
        CustomerOp::RemoveFromCart {
            request: "r".to_owned(),
            sid: sid(),
            uses_saved_cart: false,
            item_id: "1-2".to_owned(),
            quantity: None,
        },
        CustomerOp::InSession { sid: sid(), uses_saved_cart: true, call: CustomerCall::ShowCart },
        CustomerOp::InSession { sid: sid(), uses_saved_cart: true, call: CustomerCall::ClearCart },
        CustomerOp::Logout { role: Role::Buyer, sid: bob },
    ];
    for op in ops {
        let kind = format!("{op:?}");
        // The writer is kept busy, so that what is handed over now waits.
        let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
        db.store().submit(move |_tx| {
            let _ = wait.recv();
            Ok(())
        });
        thread::scope(|scope| {
            let (answered, answer) = crossbeam_channel::bounded(1);
            let db = &db;
            scope.spawn(move || answered.send(db.customers().handle(op)));
            let early = answer.recv_timeout(Duration::from_millis(100));
            drop(let_go);
            assert!(early.is_err(), "{kind}: answered before it was on disk");
            assert!(answer.recv().unwrap().is_ok(), "{kind}");
        });
    }
}

#[test]
fn what_is_only_looked_at_waits_for_no_one_elses_change() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    db.store().submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    thread::scope(|scope| {
        let db = &db;
        let adding = scope.spawn({
            let ann = ann.clone();
            move || db.ask::<()>(add("a", &ann, false, "1-1", 1))
        });
        while db.store().queued_changes() == 0 {
            thread::yield_now();
        }
        // All of these would wait for ever if they waited for that.
        assert_eq!(db.touch(Role::Buyer, &ann).as_deref(), Ok("ann"));
        assert_eq!(db.cart(&bob, false).as_deref(), Ok(""));
        assert!(db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: ann }).is_ok());
        drop(let_go);
        assert_eq!(adding.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_database_that_is_closed_answers_unavailable() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.customers().close();
    db.customers().close();
    db.store().close();
    assert_eq!(db.add(&sid, false, "1-1", 1), Err(ErrorCode::Unavailable));
    assert_eq!(db.create(Role::Buyer, "bob"), Err(ErrorCode::Unavailable));
}
