//! What clients can do, in both dialects and both framings, and what they hear when components are away.

use super::*;

/// A message of dialect 1 on a raw connection; the payload, or the error's code.
fn one(raw: &mut Raw, session: &Value, api: &str, payload: Value) -> Value {
    let answer = raw.ask(json!({"type": "request", "api": api, "session_id": session, "payload": payload}));
    assert_eq!(answer["api"], api);
    match answer["type"].as_str() {
        Some("response") => answer["payload"].clone(),
        _ => answer["error"]["code"].clone(),
    }
}

/// A message of dialect 2; the answer without its status, or the error's code.
fn two(raw: &mut Raw, session: &Value, mut message: Value) -> Value {
    message["sid"] = session.clone();
    let mut answer = raw.ask(message);
    let status = answer.as_object_mut().unwrap().remove("status").unwrap();
    if status == "OK" { answer } else { answer["error"]["code"].clone() }
}

#[test]
fn a_whole_story_in_each_dialect_and_framing() {
    for framing in [Framing::Frames, Framing::Lines] {
        let shop = Shop::open();
        let (mut seller, mut buyer) = (shop.raw(Role::Seller, framing), shop.raw(Role::Buyer, framing));
        let ok = json!({"status": "OK"});

        let account = |name: &str| json!({"username": name, "password": "secret", "name": "N"});
        assert_eq!(one(&mut seller, &Value::Null, "CreateAccount", account("sam")), json!({"seller_id": 1}));
        assert_eq!(one(&mut seller, &Value::Null, "CreateAccount", account("sam")), "USERNAME_TAKEN");
        assert_eq!(one(&mut buyer, &Value::Null, "CreateAccount", account("sam")), json!({"buyer_id": 1}));
        let login = one(&mut seller, &Value::Null, "Login", account("sam"));
        let sam = login["session_id"].clone();
        let lamp = json!({
            "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition": "New", "price": 12.5, "quantity": 5
        });
        assert_eq!(one(&mut seller, &sam, "RegisterItemForSale", lamp), json!({"item_id": "3-1"}));
        let changed = one(&mut seller, &sam, "ChangeItemPrice", json!({"item_id": "3-1", "price": "10.10"}));
        assert_eq!(changed, ok);
        let update = |quantity: i64| json!({"item_id": "3-1", "quantity": quantity});
        let updated = one(&mut seller, &sam, "UpdateUnitsForSale", update(-2));
        assert_eq!(updated, json!({"status": "OK", "quantity": 3}));
        assert_eq!(one(&mut seller, &sam, "UpdateUnitsForSale", update(-4)), "OUT_OF_STOCK");
        let items = one(&mut seller, &sam, "DisplayItemsForSale", json!({}));
        assert_eq!(items["items"][0]["price"], 10.1);
        let item = json!({"item_id": "3-1"});
        assert_eq!(one(&mut seller, &sam, "GetItem", item.clone())["item_name"], "Lamp");

        // Dialect 2 on the same connections, with the same sessions.
        let cup = json!({
            "type": "ADD_ITEM", "name": "Cup", "category": 4, "keywords": [], "condition": "used", "price": 2, "qty": 9
        });
        assert_eq!(two(&mut seller, &sam, cup), json!({"item_id": "4-2"}));
        let price = json!({"type": "UPDATE_PRICE", "item": "4-2", "price": 3});
        assert_eq!(two(&mut seller, &sam, price), json!({}));
        let units = json!({"type": "UPDATE_QTY", "item": "4-2", "delta": 1});
        assert_eq!(two(&mut seller, &sam, units), json!({"qty": 10}));
        let items = two(&mut seller, &sam, json!({"type": "GET_ITEMS"}));
        assert_eq!((&items["total"], &items["items"][1]["qty"]), (&json!(2), &json!(10)));

        let bob = json!({"type": "CREATE", "role": "buyer", "user": "bob", "pwd": "secret"});
        assert_eq!(two(&mut buyer, &Value::Null, bob), json!({}));
        let login = json!({"type": "LOGIN", "role": "buyer", "user": "bob", "pwd": "secret"});
        let bob = two(&mut buyer, &Value::Null, login)["sid"].clone();
        let found = one(&mut buyer, &bob, "SearchItemsForSale", json!({"keywords": ["LIGHT"]}));
        assert_eq!((&found["total"], &found["items"][0]["item_id"]), (&json!(1), &json!("3-1")));
        let found = two(&mut buyer, &bob, json!({"type": "SEARCH", "category": 4}));
        assert_eq!(found["results"][0]["seller"], "sam");
        assert_eq!(one(&mut buyer, &bob, "GetItem", item.clone())["quantity"], 3);
        assert_eq!(two(&mut buyer, &bob, json!({"type": "GET_ITEM", "item": "4-2"}))["item"]["condition"], "Used");

        let add = |quantity: u32| json!({"item_id": "3-1", "quantity": quantity});
        assert_eq!(one(&mut buyer, &bob, "AddItemToCart", add(2)), ok);
        assert_eq!(one(&mut buyer, &bob, "AddItemToCart", add(2)), "OUT_OF_STOCK");
        let none = json!({"item_id": "9-9", "quantity": 1});
        assert_eq!(one(&mut buyer, &bob, "AddItemToCart", none.clone()), "NOT_FOUND");
        assert_eq!(one(&mut buyer, &json!("dead"), "AddItemToCart", none), "SESSION_EXPIRED");
        let cart = one(&mut buyer, &bob, "DisplayCart", json!({}));
        assert_eq!(cart, json!({"cart": [{"item_id": "3-1", "quantity": 2}]}));
        assert_eq!(one(&mut buyer, &bob, "SaveCart", json!({})), ok);
        let cup = json!({"type": "ADD_CART", "item": "4-2", "qty": 3});
        assert_eq!(two(&mut buyer, &bob, cup), json!({}));
        let one_less = json!({"type": "REMOVE_CART", "item": "4-2", "qty": 1});
        assert_eq!(two(&mut buyer, &bob, one_less), json!({"qty": 2}));
        assert_eq!(two(&mut buyer, &bob, json!({"type": "GET_CART"})), json!({"cart": {"3-1": 2, "4-2": 2}}));
        let removed = one(&mut buyer, &bob, "RemoveItemFromCart", json!({"item_id": "4-2"}));
        assert_eq!(removed, json!({"status": "OK", "quantity": 0}));
        assert_eq!(one(&mut buyer, &bob, "RemoveItemFromCart", json!({"item_id": "4-2"})), "NOT_FOUND");

        let bad_card = json!({"card": {"number": "4111111111111112", "exp": "12/79", "name": "B"}});
        assert_eq!(one(&mut buyer, &bob, "MakePurchase", bad_card), "PAYMENT_DECLINED");
        assert_eq!(one(&mut buyer, &bob, "GetItem", item.clone())["quantity"], 3, "the stock is back");
        let purchase = one(&mut buyer, &bob, "MakePurchase", json!({"card": card()}));
        assert_eq!(purchase["total"], 20.2);
        assert_eq!(purchase["items"], json!([{"item_id": "3-1", "quantity": 2, "price": 10.1}]));
        assert_eq!(one(&mut buyer, &bob, "MakePurchase", json!({"card": card()})), "EMPTY_CART");
        let bought = one(&mut buyer, &bob, "GetBuyerPurchases", json!({}));
        assert_eq!(
            (&bought["items"][0]["purchase_id"], &bought["items"][0]["purchased_at"]),
            (&purchase["purchase_id"], &json!(7))
        );
        assert_eq!(two(&mut buyer, &bob, json!({"type": "GET_PURCHASES"})), bought);

        let vote = json!({"item_id": "3-1", "thumbs_up": true});
        assert_eq!(one(&mut buyer, &bob, "ProvideFeedback", vote), ok);
        for vote in [json!({"seller": "sam", "vote": "up"}), json!({"item": "4-2", "vote": "down"})] {
            let mut message = vote;
            message["type"] = "FEEDBACK".into();
            assert_eq!(two(&mut buyer, &bob, message), json!({}));
        }
        let nobody = json!({"type": "FEEDBACK", "seller": "nobody", "vote": "up"});
        assert_eq!(two(&mut buyer, &bob, nobody), "NOT_FOUND");
        let rating = one(&mut buyer, &bob, "GetSellerRating", json!({"seller_id": 1}));
        let expected = json!({"feedback": {"thumbs_up": 1, "thumbs_down": 1}, "rating": 0.5, "items_sold": 2});
        assert_eq!(rating, expected);
        assert_eq!(one(&mut buyer, &bob, "GetSellerRating", json!({"seller_id": 7})), "NOT_FOUND");
        assert_eq!(one(&mut seller, &sam, "GetSellerRating", json!({})), expected);
        let rating = json!({"type": "GET_SELLER_RATING", "seller": "sam"});
        assert_eq!(two(&mut buyer, &bob, rating), json!({"rating": [1, 1]}));
        assert_eq!(two(&mut seller, &sam, json!({"type": "GET_SELLER_RATING"})), json!({"rating": [1, 1]}));
        assert_eq!(one(&mut seller, &sam, "GetSellerOrders", json!({})), json!({"items": []}));
        let shipped = json!({"purchase_id": "p", "item_id": "3-1"});
        assert_eq!(one(&mut seller, &sam, "MarkShipped", shipped), ok);

        assert_eq!(two(&mut buyer, &bob, json!({"type": "CLEAR_CART"})), json!({}));
        assert_eq!(one(&mut buyer, &bob, "ClearCart", json!({})), ok);
        assert_eq!(two(&mut buyer, &bob, json!({"type": "SAVE_CART"})), json!({}));
        assert_eq!(two(&mut buyer, &bob, json!({"type": "LOGOUT"})), json!({}));
        assert_eq!(one(&mut buyer, &bob, "Logout", json!({})), "SESSION_EXPIRED");
        assert_eq!(one(&mut seller, &sam, "Logout", json!({})), ok);
        let wrong = json!({"username": "bob", "password": "wrong"});
        assert_eq!(one(&mut buyer, &Value::Null, "Login", wrong), "BAD_CREDENTIALS");
    }
}

#[test]
fn roles_and_owners_are_kept_apart() {
    let shop = Shop::open();
    let item = json!({"item_id": shop.lamps(1)});
    let (mut other, mut buyer) = (shop.user(Role::Seller, "other"), shop.user(Role::Buyer, "bob"));
    assert_eq!(code(other.call("GetItem", item.clone())), Code::Forbidden);
    let price = json!({"item_id": item["item_id"], "price": 1});
    assert_eq!(code(other.call("ChangeItemPrice", price)), Code::Forbidden);
    let mut stranger = shop.client(Role::Buyer);
    for (session, code_) in
        [(other.session_id(), Code::Forbidden), (Some("dead"), Code::SessionExpired), (None, Code::NotLoggedIn)]
    {
        stranger.set_session_id(session.map(str::to_owned));
        for (api, payload) in [
            ("SearchItemsForSale", json!({})),
            ("GetItem", item.clone()),
            ("DisplayCart", json!({})),
            ("AddItemToCart", json!({"item_id": item["item_id"], "quantity": 1})),
            ("ProvideFeedback", json!({"item_id": item["item_id"], "thumbs_up": true})),
            ("GetSellerRating", json!({"seller_id": 1})),
            ("GetBuyerPurchases", json!({})),
            ("MakePurchase", json!({"card": card()})),
        ] {
            assert_eq!(code(stranger.call(api, payload)), code_, "{api}");
        }
    }
    let mut stranger = shop.client(Role::Seller);
    stranger.set_session_id(buyer.session_id().map(str::to_owned));
    for api in ["DisplayItemsForSale", "GetSellerRating", "GetSellerOrders"] {
        assert_eq!(code(stranger.call(api, json!({}))), Code::Forbidden, "{api}");
    }
    assert_eq!(code(buyer.call("DisplayItemsForSale", json!({}))), Code::Forbidden);
}

#[test]
fn the_session_is_looked_into_before_what_is_wrong_with_the_fields_is_told() {
    let shop = Shop::open();
    let (sam, bob) = (shop.user(Role::Seller, "sam"), shop.user(Role::Buyer, "bob"));
    let [sam, bob]: [Value; 2] = [&sam, &bob].map(|user| user.session_id().unwrap().into());
    let asked = || shop.sellers.frontend.customer.counters().requests.get();
    let mut raw = shop.raw(Role::Seller, Framing::Lines);
    let (api, fields) = ("ChangeItemPrice", json!({"item_id": "3-1", "price": -1}));
    let flat = || json!({"type": "UPDATE_PRICE", "item": "3-1", "price": -1});
    for (session, code) in [(&sam, "BAD_REQUEST"), (&bob, "FORBIDDEN"), (&json!("dead"), "SESSION_EXPIRED")] {
        let before = asked();
        assert_eq!(one(&mut raw, session, api, fields.clone()), code);
        assert_eq!(two(&mut raw, session, flat()), code);
        assert_eq!(asked(), before + 2, "{code}");
    }
    let before = asked();
    assert_eq!(one(&mut raw, &Value::Null, api, fields.clone()), "NOT_LOGGED_IN");
    assert_eq!(one(&mut raw, &json!("dead"), "MakePurchase", fields.clone()), "FORBIDDEN");
    assert_eq!(one(&mut raw, &json!("dead"), "Nonsense", fields), "UNKNOWN_API");
    assert_eq!(asked(), before, "nobody is asked for these");
    // What is well formed costs what it did: one look.
    assert_eq!(one(&mut raw, &sam, api, json!({"item_id": "3-1", "price": 1})), "NOT_FOUND");
    assert_eq!(asked(), before + 1);
}

#[test]
fn the_session_and_the_product_are_asked_at_the_same_time() {
    let shop = Shop::open();
    let item = json!({"item_id": shop.lamps(1)});
    let mut buyer = shop.user(Role::Buyer, "bob");
    // From here on each database answers only when the other one is being asked, too.
    let barrier = Arc::new(Barrier::new(2));
    *shop.people.rendezvous.lock() = Some(Arc::clone(&barrier));
    *shop.goods.rendezvous.lock() = Some(barrier);
    assert_eq!(buyer.call("GetItem", item).unwrap()["item_name"], "Lamp");
    assert_eq!(buyer.call("SearchItemsForSale", json!({})).unwrap()["total"], 1);
    (*shop.people.rendezvous.lock(), *shop.goods.rendezvous.lock()) = (None, None);
}

#[test]
fn a_connection_for_every_request_is_as_good_as_one_for_all() {
    let shop = Shop::open();
    let buyer = shop.user(Role::Buyer, "bob");
    let session: Value = buyer.session_id().unwrap().into();
    for n in 0..50 {
        let mut raw = shop.raw(Role::Buyer, if n % 2 == 0 { Framing::Frames } else { Framing::Lines });
        assert_eq!(two(&mut raw, &session, json!({"type": "SEARCH"})), json!({"results": [], "total": 0}));
    }
    let answer = shop.client(Role::Buyer).exchange_raw(br#"{"type":"GET_CART"}"#).unwrap();
    assert!(answer.starts_with(br#"{"error":{"code":"NOT_LOGGED_IN""#), "{answer:?}");
    let counters = shop.buyers.counters();
    let count = |name: &str| counters.iter().find(|(counted, _)| counted == name).unwrap().1;
    assert_eq!((count("requests"), count("requests_refused")), (53, 1));
    // Which opened no further links.
    assert!(shop.buyers.frontend.product.counters().connects.get() <= 2);
}

#[test]
fn requests_that_come_all_at_once_are_answered_in_order() {
    let shop = Shop::open();
    let buyer = shop.user(Role::Buyer, "bob");
    for framing in [Framing::Frames, Framing::Lines] {
        let mut raw = shop.raw(Role::Buyer, framing);
        let sid = buyer.session_id().unwrap();
        for n in 0..100 {
            let message = match n % 2 {
                0 => json!({"type": "request", "api": "DisplayCart", "session_id": sid}),
                _ => json!({"type": "GET_CART", "sid": sid}),
            };
            raw.send(message.to_string().as_bytes());
        }
        for n in 0..100 {
            let answer = raw.read();
            assert_eq!(answer.get("status").is_some(), n % 2 == 1);
        }
    }
}

#[test]
fn a_component_that_is_away_is_told_and_back_it_is_used_again() {
    let mut shop = Shop::open();
    let item = json!({"item_id": shop.lamps(3)});
    let mut buyer = shop.user(Role::Buyer, "bob");
    let (customer_at, product_at) =
        (shop.customer.as_ref().unwrap().local_addr(), shop.product.as_ref().unwrap().local_addr());
    shop.product = None;
    let error = buyer.call("GetItem", item.clone()).unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert_eq!(error.to_string(), "the product-db cannot be reached; try again");
    assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}), "that needs the other one alone");
    shop.product = Some(Door::open_product(product_at, floor(&shop.key), Arc::clone(&shop.goods) as _).unwrap());
    assert_eq!(buyer.call("GetItem", item.clone()).unwrap()["quantity"], 3);

    shop.customer = None;
    assert_eq!(code(buyer.call("GetItem", item.clone())), Code::Unavailable);
    assert_eq!(code(buyer.call("DisplayCart", json!({}))), Code::Unavailable);
    let people = Arc::clone(&shop.people) as _;
    shop.customer = Some(Door::open_customer(customer_at, floor(&shop.key), people).unwrap());
    assert_eq!(buyer.call("GetItem", item).unwrap()["quantity"], 3, "with the same session");
}

#[test]
fn a_component_with_another_key_is_as_good_as_away() {
    let shop = Shop::open();
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    let other = floor(&ClusterKey::random());
    let frontend = FrontendServer::start(config(Role::Buyer, customer, product), &other).unwrap();
    let mut client = Client::new(client::Config::plain(frontend.local_addrs()[0].to_string()));
    let payload = json!({"username": "u", "password": "p"});
    assert_eq!(code(client.call("Login", payload.clone())), Code::Unavailable);
    // So is one that was given the wrong port.
    let frontend = FrontendServer::start(config(Role::Buyer, product, customer), &floor(&shop.key)).unwrap();
    let mut client = Client::new(client::Config::plain(frontend.local_addrs()[0].to_string()));
    assert_eq!(code(client.call("Login", payload)), Code::Unavailable);
}

#[test]
fn strangers_at_the_databases() {
    let shop = Shop::open();
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    for framing in [Framing::Frames, Framing::Lines] {
        let mut raw = Raw::connect(product.local_addr(), framing);
        assert_eq!(two(&mut raw, &Value::Null, json!({"type": "SEARCH"})), "FORBIDDEN");
        assert_eq!(two(&mut raw, &Value::Null, json!({"type": "LOGIN"})), "FORBIDDEN");
        assert_eq!(one(&mut raw, &Value::Null, "GetItem", json!({"item_id": "1-1"})), "FORBIDDEN");
        let op = json!({"op": "get_item", "item_id": "1-1"});
        assert_eq!(two(&mut raw, &Value::Null, op), "FORBIDDEN");

        let mut raw = Raw::connect(customer.local_addr(), framing);
        let name = format!("{framing:?}");
        let mut account = json!({"type": "CREATE", "role": "seller", "user": name, "pwd": "p"});
        assert_eq!(two(&mut raw, &Value::Null, account.clone()), json!({}));
        account["type"] = "LOGIN".into();
        let sid = two(&mut raw, &Value::Null, account)["sid"].clone();
        let validate = || json!({"type": "VALIDATE"});
        assert_eq!(two(&mut raw, &sid, validate()), json!({"user": name, "role": "seller"}));
        assert_eq!(two(&mut raw, &sid, json!({"type": "GET_CART"})), "FORBIDDEN");
        assert_eq!(one(&mut raw, &sid, "Logout", json!({})), "FORBIDDEN");
        assert_eq!(two(&mut raw, &sid, json!({"type": "LOGOUT"})), json!({}));
        assert_eq!(two(&mut raw, &sid, validate()), "SESSION_EXPIRED");
        assert_eq!(two(&mut raw, &sid, json!({"type": "LOGOUT"})), "SESSION_EXPIRED");
    }
}

#[test]
fn an_idempotency_key_of_its_own_lets_the_client_repeat() {
    let shop = Shop::open();
    let item = shop.lamps(3);
    let mut buyer = shop.user(Role::Buyer, "bob");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 3})).unwrap();
    let purchased = buyer.call("MakePurchase", json!({"card": card(), "address": "Elm St"})).unwrap();
    let purchase_id = purchased["purchase_id"].as_str().unwrap();
    assert_eq!(shop.goods.hold(purchase_id), crate::shop::ops::Hold::Sold);
    assert_eq!(shop.people.log(), ["authorise", "complete"]);
}

#[test]
fn a_purchase_whose_driver_is_gone_is_brought_to_its_end() {
    let shop = Shop::open();
    let orphan = |purchase_id: &str, is_undone, is_authorised| Orphan {
        purchase_id: purchase_id.to_owned(),
        lease: 2,
        lease_ms: 10_000,
        is_undone,
        is_authorised,
    };
    // Two at once: the second does not wait for the next look.
    shop.people.add_orphan(orphan("begun", false, false));
    shop.people.add_orphan(orphan("undone", true, false));
    eventually(|| shop.people.log().len() == 3);
    assert_eq!(shop.people.log(), ["undo", "closed", "closed"]);
    for purchase_id in ["begun", "undone"] {
        assert_eq!(shop.goods.hold(purchase_id), crate::shop::ops::Hold::Released);
    }
    assert_eq!(shop.buyers.frontend.counters.taken_over.get(), 2);
}

#[test]
fn a_client_goes_on_with_another_frontend() {
    let shop = Shop::open();
    let mut buyer = shop.user(Role::Buyer, "bob");
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    let first = FrontendServer::start(config(Role::Buyer, customer, product), &floor(&shop.key)).unwrap();
    let at = first.local_addrs()[0];
    let mut client = Client::new(client::Config::plain(at.to_string()));
    client.set_session_id(buyer.session_id().map(str::to_owned));
    assert!(client.call("DisplayCart", json!({})).is_ok());
    drop(first);
    assert!(matches!(client.call("DisplayCart", json!({})), Err(ClientError::Unreachable { .. })));
    let mut second = config(Role::Buyer, customer, product);
    second.addrs = vec![at, ANY.parse().unwrap()];
    let second = FrontendServer::start(second, &floor(&shop.key)).unwrap();
    assert_eq!(second.local_addrs().len(), 2, "a port list");
    assert!(client.call("DisplayCart", json!({})).is_ok());
    buyer.logout().unwrap();
    assert_eq!(code(client.call("DisplayCart", json!({}))), Code::SessionExpired, "a logout holds everywhere");
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    // A server that takes requests and closes.
    let listener = std::net::TcpListener::bind(ANY).unwrap();
    let at = listener.local_addr().unwrap();
    let taken = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
        }
    });
    let mut client = Client::new(client::Config::plain(at.to_string()));
    client.set_session_id(Some("s".to_owned()));
    let error = client.call("AddItemToCart", json!({"item_id": "1-1", "quantity": 1})).unwrap_err();
    assert!(error.to_string().starts_with("the connection was lost: it is not known whether AddItemToCart was done"));
    assert!(matches!(client.call("DisplayCart", json!({})), Err(ClientError::Lost { .. })), "asked twice");
    taken.join().unwrap();
}

#[test]
fn tls_is_told_by_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(dir.path()).unwrap());
    let fingerprint = identity.fingerprint().to_owned();
    let shop = Shop::open_with(|floor| floor.identity = Some(identity));
    let with = |tls| Client::new(client::Config { tls, ..client::Config::plain(shop.port(Role::Buyer).to_string()) });
    let account = json!({"username": "bob", "password": "secret"});
    let mut client = with(Some(Trust::Pinned(fingerprint.clone())));
    client.call("CreateAccount", account.clone()).unwrap();
    client.login("bob", "secret").unwrap();
    assert_eq!(client.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
    let mut asking = with(Some(Trust::Anyone));
    asking.connect().unwrap();
    assert_eq!(asking.fingerprint(), Some(fingerprint.as_str()));
    let wrong = with(Some(Trust::Pinned("0".repeat(64)))).call("Login", account.clone());
    assert!(matches!(wrong, Err(ClientError::Unreachable { .. })), "{wrong:?}");
    assert!(with(None).call("Login", account).is_ok(), "without TLS from this host");
}
