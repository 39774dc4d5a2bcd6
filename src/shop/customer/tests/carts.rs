//! Carts, in both dialects, whatever happens.

use proptest::prelude::*;

use super::*;

#[test]
fn a_cart_belongs_to_its_session_unless_it_is_saved() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    db.add(&one, false, "1-2", 2).unwrap();
    db.add(&one, false, "1-1", 1).unwrap();
    db.add(&one, false, "1-2", 3).unwrap();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 5"));
    assert_eq!(db.cart(&two, false).as_deref(), Ok(""));
    assert_eq!(db.logout(&one), Ok(()));
    let one = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&one, false).as_deref(), Ok(""), "logout dropped what was not saved");

    db.add(&one, false, "1-1", 1).unwrap();
    db.add(&two, false, "1-2", 2).unwrap();
    db.save(&one, false).unwrap();
    db.save(&two, false).unwrap();
    db.add(&two, false, "1-3", 3).unwrap();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1"), "saving touches no other session");
    let three = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&three, false).as_deref(), Ok("1-2 x 2"), "the last one saved wins");
    db.clear(&three, false).unwrap();
    db.logout(&three).unwrap();
    let three = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&three, false).as_deref(), Ok("1-2 x 2"), "what is saved stays until it is saved anew");
    let other = db.buyer("bob");
    assert_eq!(db.cart(&other, false).as_deref(), Ok(""));

    db.restart();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1"));
    assert_eq!(db.cart(&two, false).as_deref(), Ok("1-2 x 2, 1-3 x 3"), "saved or not, a session keeps its cart");
    let four = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&four, false).as_deref(), Ok("1-2 x 2"));
}

#[test]
fn a_saved_cart_waits_for_the_next_login_when_nobody_is_here() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.add(&sid, false, "1-1", 4).unwrap();
    db.save(&sid, false).unwrap();
    db.logout(&sid).unwrap();
    db.customers().inner.tick(false);
    assert_eq!(db.customers().session_and_buyer_counts(), (0, 0));
    let sid = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&sid, false).as_deref(), Ok("1-1 x 4"));
}

#[test]
fn carts_have_their_limits() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    assert_eq!(db.add(&sid, false, "1-1", 11), Err(ErrorCode::OutOfStock), "there are ten");
    db.add(&sid, false, "1-1", 6).unwrap();
    assert_eq!(db.add(&sid, false, "1-1", 5), Err(ErrorCode::OutOfStock), "it would hold eleven");
    assert_eq!(db.add(&sid, false, "1-1", u32::MAX), Err(ErrorCode::OutOfStock));
    db.add(&sid, false, "1-1", 4).unwrap();
    assert_eq!(db.remove(&sid, false, "1-2", None), Err(ErrorCode::NotFound));
    assert_eq!(db.remove(&sid, false, "1-1", Some(3)), Ok(7));
    assert_eq!(db.remove(&sid, false, "1-1", Some(8)), Ok(0), "more than there is: all of it");
    assert_eq!(db.remove(&sid, false, "1-1", Some(1)), Err(ErrorCode::NotFound));
    db.add(&sid, false, "1-1", 2).unwrap();
    assert_eq!(db.remove(&sid, false, "1-1", None), Ok(0));
    assert_eq!(db.cart(&sid, false).as_deref(), Ok(""));
    assert_eq!(db.count("shop_cart"), 0);
}

#[test]
fn a_cart_holds_a_bounded_number_of_items() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let put = |n: usize| {
        let line = LineItem { item_id: format!("1-{n}"), quantity: 1 };
        add_to_cart(&mut parts.core.lock(), NOW, cart_of("a", false), &n.to_string(), &line, 10).0
    };
    for n in 0..LINES_MAX {
        put(n).unwrap();
    }
    assert_eq!(put(LINES_MAX).map_err(|refusal| refusal.code), Err(ErrorCode::Busy));
    assert_eq!(put(0), Ok(()), "one that is there already");
}

#[test]
fn in_dialect_2_the_cart_is_the_users() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    db.add(&one, true, "1-1", 1).unwrap();
    db.add(&two, true, "1-2", 2).unwrap();
    assert_eq!(db.cart(&one, true).as_deref(), Ok("1-1 x 1, 1-2 x 2"));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 2"), "it was loaded into the session's");
    assert_eq!(db.remove(&one, true, "1-2", Some(1)), Ok(1));
    assert_eq!(db.cart(&two, false).as_deref(), Ok("1-1 x 1, 1-2 x 2"), "as it was loaded last");
    assert_eq!(db.cart(&two, true).as_deref(), Ok("1-1 x 1, 1-2 x 1"));
    db.logout(&one).unwrap();
    db.logout(&two).unwrap();
    let one = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&one, true).as_deref(), Ok("1-1 x 1, 1-2 x 1"), "it needs no SAVE_CART");
    // Mixed with dialect 1: what is only the session's is not the user's.
    db.add(&one, false, "1-3", 3).unwrap();
    assert_eq!(db.add(&one, true, "1-9", 11), Err(ErrorCode::OutOfStock));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 1, 1-3 x 3"), "a refusal changes nothing");
    assert_eq!(db.save(&one, true), Ok(()));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 1"));
    db.clear(&one, true).unwrap();
    let two = db.login(Role::Buyer, "ann");
    assert_eq!((db.cart(&one, true).as_deref(), db.cart(&two, false).as_deref()), (Ok(""), Ok("")));
    assert_eq!((db.count("shop_cart"), db.count("shop_saved")), (0, 0));
}

#[test]
fn a_repeated_request_does_its_work_once() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    for _ in 0..3 {
        assert_eq!(db.ask(add("same", &sid, false, "1-1", 2)), Ok(()));
    }
    assert_eq!(db.cart(&sid, false).as_deref(), Ok("1-1 x 2"));
    let take = || {
        let (request, sid, item_id) = ("take".to_owned(), sid.clone(), "1-1".to_owned());
        CustomerOp::RemoveFromCart { request, sid, uses_saved_cart: false, item_id, quantity: Some(2) }
    };
    assert_eq!(db.ask(take()), Ok(RemainingQuantity { quantity: 0 }));
    db.restart();
    assert_eq!(db.ask(take()), Ok(RemainingQuantity { quantity: 0 }), "also after a restart");
    assert_eq!(db.ask(add("same", &sid, false, "1-1", 2)), Ok(()));
    assert_eq!(db.cart(&sid, false).as_deref(), Ok(""));
    // One that was refused has changed nothing, and may do better later.
    assert_eq!(db.ask::<()>(add("full", &sid, false, "1-1", 11)), Err(ErrorCode::OutOfStock));
    assert_eq!(db.ask(add("full", &sid, false, "1-1", 1)), Ok(()));
}

#[test]
fn answers_are_kept_for_ten_minutes_and_in_a_bounded_number() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let add = |parts: &Parts, request: &str, now| {
        let line = LineItem { item_id: "1-1".to_owned(), quantity: 1 };
        // (Of a session that is used all the time.)
        let key = SessionKey::of("a");
        let mut core = parts.core.lock();
        let CustomerCore { sessions: active_sessions, journal, .. } = &mut *core;
        let (_, buyer) = active_sessions.use_buyers_session(NOW, &key).map_err(|(refusal, _)| refusal).unwrap();
        let cart = CartOf { session: key, uses_saved_cart: false };
        let (answer, newest) = buyer.add(journal, cart, IdempotentRequest { id: request, now }, &line, u32::MAX);
        answer.unwrap();
        newest.wait().unwrap();
    };
    add(&parts, "r", NOW);
    add(&parts, "r", NOW.plus_ms(599_999));
    assert_eq!(parts.cart("a", false), "1-1 x 1");
    add(&parts, "r", NOW.plus(ANSWER_RETENTION));
    assert_eq!(parts.cart("a", false), "1-1 x 2");
    for n in 0..3 * ANSWERS_MAX {
        add(&parts, &n.to_string(), NOW);
        if n % 7 == 0 {
            parts.crash(NOW);
        }
    }
    let rows = parts.store.read(|reader| reader.first("SELECT COUNT(*) FROM shop_request", &[], |row| row.uint(0)));
    assert_eq!(rows, Ok(Some(ANSWERS_MAX as u64)));
    let before = parts.cart("a", false);
    for n in 2 * ANSWERS_MAX..3 * ANSWERS_MAX {
        add(&parts, &n.to_string(), NOW);
    }
    assert_eq!(parts.cart("a", false), before);
}

#[test]
fn what_many_put_into_one_cart_at_once_is_all_in_it() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    thread::scope(|scope| {
        let (db, sid) = (&db, &sid);
        for n in 0..8 {
            scope.spawn(move || {
                for m in 0..10 {
                    db.ask::<()>(add(&format!("{n} {m}"), sid, n % 2 == 0, &format!("1-{n}"), 1)).unwrap();
                }
            });
        }
    });
    // The saved one has what went through it; the session's has what came since it was last loaded.
    let saved = db.cart(&sid, true).unwrap();
    for n in [0, 2, 4, 6] {
        assert!(saved.contains(&format!("1-{n} x 10")), "{saved}");
    }
    db.restart();
    assert_eq!(db.cart(&sid, true), Ok(saved));
}

// Any order of them.

#[derive(Debug, Clone)]
enum Act {
    Login,
    Logout(usize),
    Add(usize, bool, u8, u32),
    Remove(usize, bool, u8, Option<u32>),
    Save(usize, bool),
    Clear(usize, bool),
    Show(usize, bool),
    PurchaseHistoryEntry(usize),
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    let session = 0..3usize;
    prop_oneof![
        1 => Just(Act::Login),
        1 => session.clone().prop_map(Act::Logout),
        6 => (session.clone(), any::<bool>(), 0..3u8, 1..5u32).prop_map(|(s, u, i, q)| Act::Add(s, u, i, q)),
        3 => (session.clone(), any::<bool>(), 0..3u8, prop::option::of(1..5u32)).prop_map(|(s, u, i, q)| Act::Remove(s, u, i, q)),
        2 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Save(s, u)),
        1 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Clear(s, u)),
        2 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Show(s, u)),
        1 => session.prop_map(Act::PurchaseHistoryEntry),
        1 => Just(Act::Crash),
    ]
}

/// The rules of docs/spec/shop.md in the fewest words: carts by session, and the saved one.
#[derive(Default)]
struct Model {
    saved: BTreeMap<String, u32>,
    of: BTreeMap<usize, BTreeMap<String, u32>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn carts_are_what_the_rules_say_whatever_happens_and_whenever_it_crashes(acts in prop::collection::vec(act(), 1..60)) {
        let mut parts = Parts::new();
        let mut model = Model::default();
        let mut logins = 0;
        for act in acts {
            // The newest sessions are the ones that are spoken of.
            let session = |n: usize| model.of.keys().rev().nth(n).copied();
            match act {
                Act::Login => {
                    logins += 1;
                    parts.open(&logins.to_string(), 1, NOW).unwrap();
                    model.of.insert(logins, model.saved.clone());
                }
                Act::Crash => parts.crash(NOW),
                Act::Logout(n) => {
                    let Some(s) = session(n) else { continue };
                    prop_assert_eq!(parts.end(&s.to_string(), NOW).0, Ok(()));
                    model.of.remove(&s);
                }
                Act::Add(n, uses_saved_cart, item, quantity) => {
                    let Some(s) = session(n) else { continue };
                    let item_id = format!("1-{item}");
                    let line = LineItem { item_id: item_id.clone(), quantity };
                    let (sid, request) = (s.to_string(), Token::random());
                    let cart = cart_of(&sid, uses_saved_cart);
                    let (answer, _) = add_to_cart(&mut parts.core.lock(), NOW, cart, request.reveal(), &line, 8);
                    let mut cart = if uses_saved_cart { model.saved.clone() } else { model.of[&s].clone() };
                    let wanted = cart.get(&item_id).copied().unwrap_or(0) + quantity;
                    prop_assert_eq!(answer.is_ok(), wanted <= 8);
                    if wanted <= 8 {
                        cart.insert(item_id, wanted);
                        if uses_saved_cart {
                            model.saved = cart.clone();
                        }
                        model.of.insert(s, cart);
                    }
                }
                Act::Remove(n, uses_saved_cart, item, quantity) => {
                    let Some(s) = session(n) else { continue };
                    let item_id = format!("1-{item}");
                    let (sid, request) = (s.to_string(), Token::random());
                    let cart = cart_of(&sid, uses_saved_cart);
                    let (answer, _) =
                        parts.core.lock().with_cart(NOW, cart, |buyer, journal, cart| {
                            let once = IdempotentRequest { id: request.reveal(), now: NOW };
                            buyer.remove(journal, cart, once, &item_id, quantity)
                        });
                    let mut cart = if uses_saved_cart { model.saved.clone() } else { model.of[&s].clone() };
                    let left = cart.get(&item_id).map(|there| there - quantity.unwrap_or(*there).min(*there));
                    prop_assert_eq!(answer.ok().map(|left| left.quantity), left);
                    if let Some(left) = left {
                        cart.insert(item_id, left);
                        cart.retain(|_, quantity| *quantity > 0);
                        if uses_saved_cart {
                            model.saved = cart.clone();
                        }
                        model.of.insert(s, cart);
                    }
                }
                Act::Save(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    parts.core.lock().with_cart(NOW, cart_of(&s.to_string(), uses_saved_cart), |buyer, journal, cart| buyer.save(journal, cart)).0.unwrap();
                    if uses_saved_cart { model.of.insert(s, model.saved.clone()); } else { model.saved = model.of[&s].clone(); }
                }
                Act::Clear(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    parts.core.lock().with_cart(NOW, cart_of(&s.to_string(), uses_saved_cart), |buyer, journal, cart| buyer.clear(journal, cart)).0.unwrap();
                    model.of.insert(s, BTreeMap::new());
                    if uses_saved_cart { model.saved.clear(); }
                }
                Act::Show(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    if uses_saved_cart { model.of.insert(s, model.saved.clone()); }
                    let wanted = model.of[&s].iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
                    prop_assert_eq!(parts.cart(&s.to_string(), uses_saved_cart), wanted.join(", "));
                }
                Act::PurchaseHistoryEntry(n) => {
                    let Some(s) = session(n) else { continue };
                    let lines = model.of.insert(s, BTreeMap::new()).unwrap_or_default();
                    let lines: Vec<(&str, u32)> = lines.iter().map(|(item_id, n)| (item_id.as_str(), *n)).collect();
                    bought(&parts, &s.to_string(), &lines, Vec::new());
                    for (item_id, n) in lines {
                        if let Some(there) = model.saved.get_mut(item_id) { *there -= n.min(*there); }
                    }
                    model.saved.retain(|_, quantity| *quantity > 0);
                }
            }
        }
        for _ in 0..2 {
            for (s, cart) in &model.of {
                let wanted = cart.iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
                prop_assert_eq!(parts.cart(&s.to_string(), false), wanted.join(", "));
            }
            parts.crash(NOW);
        }
        parts.open("last", 1, NOW).unwrap();
        let wanted = model.saved.iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
        prop_assert_eq!(parts.cart("last", false), wanted.join(", "));
    }
}
