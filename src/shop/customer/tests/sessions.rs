//! Sessions: whose they are, and when they and their buyers leave memory.

use super::*;

#[test]
fn sessions_are_many_belong_to_one_role_and_end_one_by_one() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    assert_eq!(db.touch(Role::Buyer, &one).as_deref(), Ok("ann"));
    assert_eq!(db.touch(Role::Seller, &one), Err(ErrorCode::Forbidden));
    assert_eq!(db.touch(Role::Buyer, "no such id"), Err(ErrorCode::SessionExpired));
    let shown: ops::SessionInfo = db.ask(CustomerOp::Validate { sid: one.clone() }).unwrap();
    assert_eq!(shown, ops::SessionInfo { user: "ann".to_owned(), role: Role::Buyer });

    let as_seller: Result<(), ErrorCode> = db.ask(CustomerOp::Logout { role: Role::Seller, sid: one.clone() });
    assert_eq!(as_seller, Err(ErrorCode::Forbidden));
    assert_eq!(db.logout(&one), Ok(()));
    assert_eq!(db.logout(&one), Err(ErrorCode::SessionExpired));
    assert_eq!(db.touch(Role::Buyer, &one), Err(ErrorCode::SessionExpired));
    assert_eq!(db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: one.clone() }), Err(ErrorCode::SessionExpired));
    assert_eq!(db.touch(Role::Buyer, &two).as_deref(), Ok("ann"));
    db.restart();
    assert_eq!(db.touch(Role::Buyer, &one), Err(ErrorCode::SessionExpired), "a logout outlives a restart");
    assert_eq!(db.touch(Role::Buyer, &two).as_deref(), Ok("ann"), "so does a session");
}

#[test]
fn a_sellers_session_has_no_cart() {
    let mut db = Db::new();
    db.create(Role::Seller, "sue").unwrap();
    let sid = db.login(Role::Seller, "sue");
    assert_eq!(db.touch(Role::Seller, &sid).as_deref(), Ok("sue"));
    assert_eq!(db.cart(&sid, false), Err(ErrorCode::Forbidden));
    assert_eq!(db.add(&sid, true, "1-1", 1), Err(ErrorCode::Forbidden));
    db.restart();
    assert_eq!(db.touch(Role::Seller, &sid).as_deref(), Ok("sue"));
    assert_eq!(db.ask(CustomerOp::Logout { role: Role::Seller, sid: sid.clone() }), Ok(()));
    assert_eq!((db.touch(Role::Seller, &sid), db.count("shop_session")), (Err(ErrorCode::SessionExpired), 0));
}

#[test]
fn the_background_thread_ends_sessions_that_nobody_uses() {
    let timeout = Duration::from_millis(1500);
    let mut db = Db::with_timeout(timeout);
    let (used, unused) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&unused, false, "1-1", 1).unwrap();
    let begun = Instant::now();
    let mut used_at = begun;
    while db.customers().session_and_buyer_counts().0 == 2 {
        let alive = db.touch(Role::Buyer, &used);
        // (Unless this machine was away for so long.)
        assert!(alive.as_deref() == Ok("ann") || used_at.elapsed() >= timeout, "it is used all the time");
        used_at = Instant::now();
        assert!(begun.elapsed() < timeout * 20, "the other one does not end");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= timeout, "after {:?}", begun.elapsed());
    assert_eq!(db.touch(Role::Buyer, &unused), Err(ErrorCode::SessionExpired));
    assert_eq!((db.count("shop_session"), db.count("shop_cart")), (1, 0));
    // Whether it is alive may be asked without keeping it so.
    while db.customers().session_and_buyer_counts() != (0, 0) {
        let _ = db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: used.clone() });
        assert!(begun.elapsed() < timeout * 40, "looking at it keeps it alive");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn after_a_crash_every_session_that_was_alive_at_the_last_flush_has_its_full_time() {
    let mut parts = Parts::new();
    parts.open("used", 1, NOW).unwrap();
    parts.open("unused", 2, NOW).unwrap();
    let flushed = NOW.plus_ms(299_000);
    parts.touch("used", flushed);
    parts.flush(flushed);
    // Hours later.
    let later = NOW.plus_ms(10_000_000);
    parts.crash(later);
    for sid in ["used", "unused"] {
        assert!(parts.is_alive(sid, later.plus_ms(299_999)) && !parts.is_alive(sid, later.plus(TIMEOUT)), "{sid}");
    }
    // One that was over when the others were written down stays over, though its end was not written.
    parts.touch("used", later.plus_ms(200_000));
    let flushed = later.plus_ms(300_000);
    parts.flush(flushed);
    parts.crash(flushed);
    assert!(parts.is_alive("used", flushed) && !parts.is_alive("unused", flushed));
    parts.crash(flushed);
    assert_eq!(parts.sizes().0, 1);
}

#[test]
fn last_uses_are_written_to_rows_that_still_exist() {
    let parts = Parts::new();
    parts.open("stays", 1, NOW).unwrap();
    parts.open("goes", 1, NOW).unwrap();
    let later = NOW.plus_ms(5000);
    parts.touch("stays", later);
    parts.touch("goes", later);
    // Ended on disk while its last use was on its way.
    let uses = [(SessionKey::of("stays"), later), (SessionKey::of("goes"), later)];
    assert_eq!(parts.end("goes", later).0, Ok(()));
    parts.store.write(move |tx| store::write_last_uses(tx, &uses)).unwrap();
    parts.flush(later);
    let rows = parts.store.read(|reader| {
        reader
            .all("SELECT session, used_at FROM shop_session", &[], |row| Ok((row.text(0)?.to_owned(), row.millis(1)?)))
    });
    assert_eq!(rows, Ok(vec![(SessionKey::of("stays").to_text(), later)]));
}

#[test]
fn an_expired_session_goes_with_its_cart_and_a_buyer_with_the_last_session() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", false, "1-1", 2);
    assert_eq!(parts.sizes(), (1, 1));
    assert_eq!(parts.expire(NOW.plus_ms(299_999)).0, 0);
    let (over, newest) = parts.expire(NOW.plus(TIMEOUT));
    newest.wait().unwrap();
    parts.expire(NOW.plus(TIMEOUT));
    assert_eq!((over, parts.sizes()), (1, (0, 0)));
    for table in ["shop_session", "shop_cart", "shop_request"] {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        let left = parts.store.read(|reader| reader.first(&sql, &[], |row| row.int(0)));
        assert_eq!(left, Ok(Some(0)), "{table}");
    }
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "", "what was not saved is gone");
}

#[test]
fn a_buyer_for_whom_a_purchase_is_under_way_stays_until_it_is_over() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", false, "1-1", 2);
    let begin = BeginRequest { cart: cart_of("a", false), request: "r", key: None, address: None };
    let BeginResult::Decided((begun, newest)) = parts.core.lock().begin_purchase(NOW, "p".to_owned(), begin, None)
    else {
        panic!("nothing is to be read or waited for")
    };
    newest.wait().unwrap();
    let Ok(ops::BeginResponse::Drive { lease, .. }) = begun else { panic!("{begun:?}") };
    for _ in 0..2 {
        parts.expire(NOW.plus(TIMEOUT)).1.wait().unwrap();
        assert_eq!(parts.sizes(), (0, 1), "the purchase needs the carts");
    }
    let why = Refusal::new(ErrorCode::OutOfStock, "there are not as many");
    for event in [PurchaseEvent::Undo { lease, why }, PurchaseEvent::Closed { lease }] {
        let stepped = parts.core.lock().step(NOW, "p", event).unwrap();
        stepped.newest.wait().unwrap();
    }
    assert_eq!(parts.core.lock().evict("p"), Some(1));
    parts.expire(NOW.plus(TIMEOUT)).1.wait().unwrap();
    assert_eq!(parts.sizes(), (0, 0));
}

#[test]
fn a_buyer_stays_until_the_last_change_is_on_disk() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    parts.store.submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    let line = LineItem { item_id: "1-1".to_owned(), quantity: 3 };
    add_to_cart(&mut parts.core.lock(), NOW, cart_of("a", true), "r", &line, 3).0.unwrap();
    assert_eq!(parts.end("a", NOW).0, Ok(()));
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 1));
    drop(let_go);
    // Whoever comes now must not see the saved cart of before.
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 3");
}

#[test]
fn a_saved_cart_that_was_read_before_the_buyer_came_and_went_is_not_taken() {
    let parts = Parts::new();
    let evictions = parts.core.lock().sessions.evictions();
    let saved = parts.saved_cart(1, evictions);
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 3);
    parts.end("a", NOW).1.wait().unwrap();
    parts.expire(NOW);
    assert!(!parts.core.lock().sessions.put_buyer(1, saved));
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 3");
}

#[test]
fn buyers_who_come_and_go_lose_nothing() {
    const THREADS: u32 = 3;
    const ROUNDS: u32 = 60;
    let parts = Parts::new();
    thread::scope(|scope| {
        let parts = &parts;
        let visits: Vec<_> = (0..THREADS)
            .map(|n| {
                scope.spawn(move || {
                    for m in 0..ROUNDS {
                        let sid = format!("{n} {m}");
                        parts.open(&sid, 1, NOW).unwrap();
                        parts.put(&sid, true, "1-1", 1);
                        let (answer, newest) = parts.end(&sid, NOW);
                        answer.unwrap();
                        newest.wait().unwrap();
                    }
                })
            })
            .collect();
        while !visits.iter().all(thread::ScopedJoinHandle::is_finished) {
            parts.expire(NOW);
            thread::yield_now();
        }
    });
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 0));
    parts.open("last", 1, NOW).unwrap();
    assert_eq!(parts.cart("last", false), format!("1-1 x {}", THREADS * ROUNDS));
}
