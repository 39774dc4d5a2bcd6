//! The calls of clients in both dialects and both framings, and their errors when components are unavailable.

use super::*;

/// Makes a call in dialect 1; returns the payload, or the error code.
fn dialect1_call(raw: &mut RawClient, session: &Value, api: &str, payload: Value) -> Value {
    let answer = raw.ask(json!({"type": "request", "api": api, "session_id": session, "payload": payload}));
    assert_eq!(answer["api"], api);
    match answer["type"].as_str() {
        Some("response") => answer["payload"].clone(),
        _ => answer["error"]["code"].clone(),
    }
}

/// Makes a call in dialect 2; returns the response without its status, or the error code.
fn dialect2_call(raw: &mut RawClient, session: &Value, mut message: Value) -> Value {
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
        assert_eq!(dialect1_call(&mut seller, &Value::Null, "CreateAccount", account("sam")), json!({"seller_id": 1}));
        assert_eq!(dialect1_call(&mut seller, &Value::Null, "CreateAccount", account("sam")), "USERNAME_TAKEN");
        assert_eq!(dialect1_call(&mut buyer, &Value::Null, "CreateAccount", account("sam")), json!({"buyer_id": 1}));
        let login = dialect1_call(&mut seller, &Value::Null, "Login", account("sam"));
        let sam = login["session_id"].clone();
        let lamp = json!({
            "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition": "New", "price": 12.5, "quantity": 5
        });
        assert_eq!(dialect1_call(&mut seller, &sam, "RegisterItemForSale", lamp), json!({"item_id": "3-1"}));
        let changed = dialect1_call(&mut seller, &sam, "ChangeItemPrice", json!({"item_id": "3-1", "price": "10.10"}));
        assert_eq!(changed, ok);
        let update = |quantity: i64| json!({"item_id": "3-1", "quantity": quantity});
        let updated = dialect1_call(&mut seller, &sam, "UpdateUnitsForSale", update(-2));
        assert_eq!(updated, json!({"status": "OK", "quantity": 3}));
        assert_eq!(dialect1_call(&mut seller, &sam, "UpdateUnitsForSale", update(-4)), "OUT_OF_STOCK");
        let items = dialect1_call(&mut seller, &sam, "DisplayItemsForSale", json!({}));
        assert_eq!(items["items"][0]["price"], 10.1);
        let item = json!({"item_id": "3-1"});
        assert_eq!(dialect1_call(&mut seller, &sam, "GetItem", item.clone())["item_name"], "Lamp");

        // Dialect 2 on the same connections, with the same sessions.
        let cup = json!({
            "type": "ADD_ITEM", "name": "Cup", "category": 4, "keywords": [], "condition": "used", "price": 2, "qty": 9
        });
        assert_eq!(dialect2_call(&mut seller, &sam, cup), json!({"item_id": "4-2"}));
        let price = json!({"type": "UPDATE_PRICE", "item": "4-2", "price": 3});
        assert_eq!(dialect2_call(&mut seller, &sam, price), json!({}));
        let units = json!({"type": "UPDATE_QTY", "item": "4-2", "delta": 1});
        assert_eq!(dialect2_call(&mut seller, &sam, units), json!({"qty": 10}));
        let items = dialect2_call(&mut seller, &sam, json!({"type": "GET_ITEMS"}));
        assert_eq!((&items["total"], &items["items"][1]["qty"]), (&json!(2), &json!(10)));

        let bob = json!({"type": "CREATE", "role": "buyer", "user": "bob", "pwd": "secret"});
        assert_eq!(dialect2_call(&mut buyer, &Value::Null, bob), json!({}));
        let login = json!({"type": "LOGIN", "role": "buyer", "user": "bob", "pwd": "secret"});
        let bob = dialect2_call(&mut buyer, &Value::Null, login)["sid"].clone();
        let found = dialect1_call(&mut buyer, &bob, "SearchItemsForSale", json!({"keywords": ["LIGHT"]}));
        assert_eq!((&found["total"], &found["items"][0]["item_id"]), (&json!(1), &json!("3-1")));
        let found = dialect2_call(&mut buyer, &bob, json!({"type": "SEARCH", "category": 4}));
        assert_eq!(found["results"][0]["seller"], "sam");
        assert_eq!(dialect1_call(&mut buyer, &bob, "GetItem", item.clone())["quantity"], 3);
        assert_eq!(
            dialect2_call(&mut buyer, &bob, json!({"type": "GET_ITEM", "item": "4-2"}))["item"]["condition"],
            "Used"
        );

        let add = |quantity: u32| json!({"item_id": "3-1", "quantity": quantity});
        assert_eq!(dialect1_call(&mut buyer, &bob, "AddItemToCart", add(2)), ok);
        assert_eq!(dialect1_call(&mut buyer, &bob, "AddItemToCart", add(2)), "OUT_OF_STOCK");
        let none = json!({"item_id": "9-9", "quantity": 1});
        assert_eq!(dialect1_call(&mut buyer, &bob, "AddItemToCart", none.clone()), "NOT_FOUND");
        assert_eq!(dialect1_call(&mut buyer, &json!("dead"), "AddItemToCart", none), "SESSION_EXPIRED");
        let cart = dialect1_call(&mut buyer, &bob, "DisplayCart", json!({}));
        assert_eq!(cart, json!({"cart": [{"item_id": "3-1", "quantity": 2}]}));
        assert_eq!(dialect1_call(&mut buyer, &bob, "SaveCart", json!({})), ok);
        let cup = json!({"type": "ADD_CART", "item": "4-2", "qty": 3});
        assert_eq!(dialect2_call(&mut buyer, &bob, cup), json!({}));
        let one_less = json!({"type": "REMOVE_CART", "item": "4-2", "qty": 1});
        assert_eq!(dialect2_call(&mut buyer, &bob, one_less), json!({"qty": 2}));
        assert_eq!(dialect2_call(&mut buyer, &bob, json!({"type": "GET_CART"})), json!({"cart": {"3-1": 2, "4-2": 2}}));
        let removed = dialect1_call(&mut buyer, &bob, "RemoveItemFromCart", json!({"item_id": "4-2"}));
        assert_eq!(removed, json!({"status": "OK", "quantity": 0}));
        assert_eq!(dialect1_call(&mut buyer, &bob, "RemoveItemFromCart", json!({"item_id": "4-2"})), "NOT_FOUND");

        let bad_card = json!({"card": {"number": "4111111111111112", "exp": "12/79", "name": "B"}});
        assert_eq!(dialect1_call(&mut buyer, &bob, "MakePurchase", bad_card), "PAYMENT_DECLINED");
        assert_eq!(dialect1_call(&mut buyer, &bob, "GetItem", item.clone())["quantity"], 3, "the stock is back");
        let purchase = dialect1_call(&mut buyer, &bob, "MakePurchase", json!({"card": card()}));
        assert_eq!(purchase["total"], 20.2);
        assert_eq!(purchase["items"], json!([{"item_id": "3-1", "quantity": 2, "price": 10.1}]));
        assert_eq!(dialect1_call(&mut buyer, &bob, "MakePurchase", json!({"card": card()})), "EMPTY_CART");
        let bought = dialect1_call(&mut buyer, &bob, "GetBuyerPurchases", json!({}));
        assert_eq!(
            (&bought["items"][0]["purchase_id"], &bought["items"][0]["purchased_at"]),
            (&purchase["purchase_id"], &json!(7))
        );
        assert_eq!(dialect2_call(&mut buyer, &bob, json!({"type": "GET_PURCHASES"})), bought);

        let vote = json!({"item_id": "3-1", "thumbs_up": true});
        assert_eq!(dialect1_call(&mut buyer, &bob, "ProvideFeedback", vote), ok);
        for vote in [json!({"seller": "sam", "vote": "up"}), json!({"item": "4-2", "vote": "down"})] {
            let mut message = vote;
            message["type"] = "FEEDBACK".into();
            assert_eq!(dialect2_call(&mut buyer, &bob, message), json!({}));
        }
        let nobody = json!({"type": "FEEDBACK", "seller": "nobody", "vote": "up"});
        assert_eq!(dialect2_call(&mut buyer, &bob, nobody), "NOT_FOUND");
        let rating = dialect1_call(&mut buyer, &bob, "GetSellerRating", json!({"seller_id": 1}));
        let expected = json!({"feedback": {"thumbs_up": 1, "thumbs_down": 1}, "rating": 0.5, "items_sold": 2});
        assert_eq!(rating, expected);
        assert_eq!(dialect1_call(&mut buyer, &bob, "GetSellerRating", json!({"seller_id": 7})), "NOT_FOUND");
        assert_eq!(dialect1_call(&mut seller, &sam, "GetSellerRating", json!({})), expected);
        let rating = json!({"type": "GET_SELLER_RATING", "seller": "sam"});
        assert_eq!(dialect2_call(&mut buyer, &bob, rating), json!({"rating": [1, 1]}));
        assert_eq!(dialect2_call(&mut seller, &sam, json!({"type": "GET_SELLER_RATING"})), json!({"rating": [1, 1]}));
        assert_eq!(dialect1_call(&mut seller, &sam, "GetSellerOrders", json!({})), json!({"items": []}));
        let shipped = json!({"purchase_id": "p", "item_id": "3-1"});
        assert_eq!(dialect1_call(&mut seller, &sam, "MarkShipped", shipped), ok);

        assert_eq!(dialect2_call(&mut buyer, &bob, json!({"type": "CLEAR_CART"})), json!({}));
        assert_eq!(dialect1_call(&mut buyer, &bob, "ClearCart", json!({})), ok);
        assert_eq!(dialect2_call(&mut buyer, &bob, json!({"type": "SAVE_CART"})), json!({}));
        assert_eq!(dialect2_call(&mut buyer, &bob, json!({"type": "LOGOUT"})), json!({}));
        assert_eq!(dialect1_call(&mut buyer, &bob, "Logout", json!({})), "SESSION_EXPIRED");
        assert_eq!(dialect1_call(&mut seller, &sam, "Logout", json!({})), ok);
        let wrong = json!({"username": "bob", "password": "wrong"});
        assert_eq!(dialect1_call(&mut buyer, &Value::Null, "Login", wrong), "BAD_CREDENTIALS");
    }
}

#[test]
fn roles_and_owners_are_kept_apart() {
    let shop = Shop::open();
    let item = json!({"item_id": shop.list_lamps(1)});
    let (mut other, mut buyer) = (shop.user(Role::Seller, "other"), shop.user(Role::Buyer, "bob"));
    assert_eq!(code(other.call("GetItem", item.clone())), ErrorCode::Forbidden);
    let price = json!({"item_id": item["item_id"], "price": 1});
    assert_eq!(code(other.call("ChangeItemPrice", price)), ErrorCode::Forbidden);
    let mut stranger = shop.client(Role::Buyer);
    for (session, code_) in [
        (other.session_id(), ErrorCode::Forbidden),
        (Some("dead"), ErrorCode::SessionExpired),
        (None, ErrorCode::NotLoggedIn),
    ] {
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
        assert_eq!(code(stranger.call(api, json!({}))), ErrorCode::Forbidden, "{api}");
    }
    assert_eq!(code(buyer.call("DisplayItemsForSale", json!({}))), ErrorCode::Forbidden);
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
        assert_eq!(dialect1_call(&mut raw, session, api, fields.clone()), code);
        assert_eq!(dialect2_call(&mut raw, session, flat()), code);
        assert_eq!(asked(), before + 2, "{code}");
    }
    let before = asked();
    assert_eq!(dialect1_call(&mut raw, &Value::Null, api, fields.clone()), "NOT_LOGGED_IN");
    assert_eq!(dialect1_call(&mut raw, &json!("dead"), "MakePurchase", fields.clone()), "FORBIDDEN");
    assert_eq!(dialect1_call(&mut raw, &json!("dead"), "Nonsense", fields), "UNKNOWN_API");
    assert_eq!(asked(), before, "nobody is asked for these");
    // A valid call still costs only one check of the session.
    assert_eq!(dialect1_call(&mut raw, &sam, api, json!({"item_id": "3-1", "price": 1})), "NOT_FOUND");
    assert_eq!(asked(), before + 1);
}

#[test]
fn the_session_and_the_product_are_asked_at_the_same_time() {
    let shop = Shop::open();
    let item = json!({"item_id": shop.list_lamps(1)});
    let mut buyer = shop.user(Role::Buyer, "bob");
    // From here on each database responds only when the other one also has a request.
    let barrier = Arc::new(Barrier::new(2));
    *shop.customer_db.rendezvous.lock() = Some(Arc::clone(&barrier));
    *shop.product_db.rendezvous.lock() = Some(barrier);
    assert_eq!(buyer.call("GetItem", item).unwrap()["item_name"], "Lamp");
    assert_eq!(buyer.call("SearchItemsForSale", json!({})).unwrap()["total"], 1);
    (*shop.customer_db.rendezvous.lock(), *shop.product_db.rendezvous.lock()) = (None, None);
}

#[test]
fn a_connection_for_every_request_is_as_good_as_one_for_all() {
    let shop = Shop::open();
    let buyer = shop.user(Role::Buyer, "bob");
    let session: Value = buyer.session_id().unwrap().into();
    for n in 0..50 {
        let mut raw = shop.raw(Role::Buyer, if n % 2 == 0 { Framing::Frames } else { Framing::Lines });
        assert_eq!(dialect2_call(&mut raw, &session, json!({"type": "SEARCH"})), json!({"results": [], "total": 0}));
    }
    let answer = shop.client(Role::Buyer).exchange_raw(br#"{"type":"GET_CART"}"#).unwrap();
    assert!(answer.starts_with(br#"{"error":{"code":"NOT_LOGGED_IN""#), "{answer:?}");
    let counters = shop.buyers.counters();
    let count = |name: &str| counters.iter().find(|(counted, _)| counted == name).unwrap().1;
    assert_eq!((count("requests"), count("requests_refused")), (53, 1));
    // This has opened no further links.
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
    let item = json!({"item_id": shop.list_lamps(3)});
    let mut buyer = shop.user(Role::Buyer, "bob");
    let (customer_at, product_at) =
        (shop.customer.as_ref().unwrap().local_addr(), shop.product.as_ref().unwrap().local_addr());
    shop.product = None;
    let error = buyer.call("GetItem", item.clone()).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unavailable));
    assert_eq!(error.to_string(), "the product-db cannot be reached; try again");
    assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}), "that needs the other one alone");
    shop.product =
        Some(ShopListener::open_product(product_at, context(&shop.key), Arc::clone(&shop.product_db) as _).unwrap());
    assert_eq!(buyer.call("GetItem", item.clone()).unwrap()["quantity"], 3);

    shop.customer = None;
    assert_eq!(code(buyer.call("GetItem", item.clone())), ErrorCode::Unavailable);
    assert_eq!(code(buyer.call("DisplayCart", json!({}))), ErrorCode::Unavailable);
    let customer_db = Arc::clone(&shop.customer_db) as _;
    shop.customer = Some(ShopListener::open_customer(customer_at, context(&shop.key), customer_db).unwrap());
    assert_eq!(buyer.call("GetItem", item).unwrap()["quantity"], 3, "with the same session");
}

#[test]
fn a_component_with_another_key_is_as_good_as_away() {
    let shop = Shop::open();
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    let other = context(&ClusterKey::random());
    let frontend = FrontendServer::start(config(Role::Buyer, customer, product), &other).unwrap();
    let mut client = Client::new(client::ClientConfig::plain(frontend.local_addrs()[0].to_string()));
    let payload = json!({"username": "u", "password": "p"});
    assert_eq!(code(client.call("Login", payload.clone())), ErrorCode::Unavailable);
    // The same with a frontend that was given the wrong port.
    let frontend = FrontendServer::start(config(Role::Buyer, product, customer), &context(&shop.key)).unwrap();
    let mut client = Client::new(client::ClientConfig::plain(frontend.local_addrs()[0].to_string()));
    assert_eq!(code(client.call("Login", payload)), ErrorCode::Unavailable);
}

#[test]
fn strangers_at_the_databases() {
    let shop = Shop::open();
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    for framing in [Framing::Frames, Framing::Lines] {
        let mut raw = RawClient::connect(product.local_addr(), framing);
        assert_eq!(dialect2_call(&mut raw, &Value::Null, json!({"type": "SEARCH"})), "FORBIDDEN");
        assert_eq!(dialect2_call(&mut raw, &Value::Null, json!({"type": "LOGIN"})), "FORBIDDEN");
        assert_eq!(dialect1_call(&mut raw, &Value::Null, "GetItem", json!({"item_id": "1-1"})), "FORBIDDEN");
        let op = json!({"op": "get_item", "item_id": "1-1"});
        assert_eq!(dialect2_call(&mut raw, &Value::Null, op), "FORBIDDEN");

        let mut raw = RawClient::connect(customer.local_addr(), framing);
        let name = format!("{framing:?}");
        let mut account = json!({"type": "CREATE", "role": "seller", "user": name, "pwd": "p"});
        assert_eq!(dialect2_call(&mut raw, &Value::Null, account.clone()), json!({}));
        account["type"] = "LOGIN".into();
        let sid = dialect2_call(&mut raw, &Value::Null, account)["sid"].clone();
        let validate = || json!({"type": "VALIDATE"});
        assert_eq!(dialect2_call(&mut raw, &sid, validate()), json!({"user": name, "role": "seller"}));
        assert_eq!(dialect2_call(&mut raw, &sid, json!({"type": "GET_CART"})), "FORBIDDEN");
        assert_eq!(dialect1_call(&mut raw, &sid, "Logout", json!({})), "FORBIDDEN");
        assert_eq!(dialect2_call(&mut raw, &sid, json!({"type": "LOGOUT"})), json!({}));
        assert_eq!(dialect2_call(&mut raw, &sid, validate()), "SESSION_EXPIRED");
        assert_eq!(dialect2_call(&mut raw, &sid, json!({"type": "LOGOUT"})), "SESSION_EXPIRED");
    }
}

#[test]
fn an_idempotency_key_of_its_own_lets_the_client_repeat() {
    let shop = Shop::open();
    let item = shop.list_lamps(3);
    let mut buyer = shop.user(Role::Buyer, "bob");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 3})).unwrap();
    let purchased = buyer.call("MakePurchase", json!({"card": card(), "address": "Elm St"})).unwrap();
    let purchase_id = purchased["purchase_id"].as_str().unwrap();
    assert_eq!(shop.product_db.hold(purchase_id), crate::shop::ops::HoldState::Sold);
    assert_eq!(shop.customer_db.log(), ["authorise", "complete"]);
}

#[test]
fn a_purchase_whose_driver_is_gone_is_brought_to_its_end() {
    let shop = Shop::open();
    let orphan = |purchase_id: &str, is_undone, is_authorised| OrphanedPurchase {
        purchase_id: purchase_id.to_owned(),
        lease: 2,
        lease_ms: 10_000,
        is_undone,
        is_authorised,
    };
    // Two orphans at once: the second is taken over immediately after the first.
    shop.customer_db.add_orphan(orphan("begun", false, false));
    shop.customer_db.add_orphan(orphan("undone", true, false));
    eventually(|| shop.customer_db.log().len() == 3);
    assert_eq!(shop.customer_db.log(), ["undo", "closed", "closed"]);
    for purchase_id in ["begun", "undone"] {
        assert_eq!(shop.product_db.hold(purchase_id), crate::shop::ops::HoldState::Released);
    }
    assert_eq!(shop.buyers.frontend.counters.taken_over.get(), 2);
}

#[test]
fn a_client_goes_on_with_another_frontend() {
    let shop = Shop::open();
    let mut buyer = shop.user(Role::Buyer, "bob");
    let (customer, product) = (shop.customer.as_ref().unwrap(), shop.product.as_ref().unwrap());
    let first = FrontendServer::start(config(Role::Buyer, customer, product), &context(&shop.key)).unwrap();
    let at = first.local_addrs()[0];
    let mut client = Client::new(client::ClientConfig::plain(at.to_string()));
    client.set_session_id(buyer.session_id().map(str::to_owned));
    assert!(client.call("DisplayCart", json!({})).is_ok());
    drop(first);
    assert!(matches!(client.call("DisplayCart", json!({})), Err(ClientError::Unreachable { .. })));
    let mut second = config(Role::Buyer, customer, product);
    second.addrs = vec![at, ANY_PORT.parse().unwrap()];
    let second = FrontendServer::start(second, &context(&shop.key)).unwrap();
    assert_eq!(second.local_addrs().len(), 2, "a port list");
    assert!(client.call("DisplayCart", json!({})).is_ok());
    buyer.logout().unwrap();
    assert_eq!(code(client.call("DisplayCart", json!({}))), ErrorCode::SessionExpired, "a logout holds everywhere");
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    // A server that reads requests and closes the connection.
    let listener = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let at = listener.local_addr().unwrap();
    let taken = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
        }
    });
    let mut client = Client::new(client::ClientConfig::plain(at.to_string()));
    client.set_session_id(Some("s".to_owned()));
    let error = client.call("AddItemToCart", json!({"item_id": "1-1", "quantity": 1})).unwrap_err();
    assert!(error.to_string().starts_with("the connection was lost: it is not known whether AddItemToCart was done"));
    assert!(matches!(client.call("DisplayCart", json!({})), Err(ClientError::Lost { .. })), "asked twice");
    taken.join().unwrap();
}

#[test]
fn tls_is_told_by_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap());
    let fingerprint = identity.fingerprint().to_owned();
    let shop = Shop::open_with(|context| context.listener.identity = Some(identity));
    let with = |tls| {
        Client::new(client::ClientConfig { tls, ..client::ClientConfig::plain(shop.port(Role::Buyer).to_string()) })
    };
    let account = json!({"username": "bob", "password": "secret"});
    let mut client = with(Some(CertificateTrust::Pinned(fingerprint.clone())));
    client.call("CreateAccount", account.clone()).unwrap();
    client.login("bob", "secret").unwrap();
    assert_eq!(client.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
    let mut asking = with(Some(CertificateTrust::Any));
    asking.connect().unwrap();
    assert_eq!(asking.fingerprint(), Some(fingerprint.as_str()));
    let wrong = with(Some(CertificateTrust::Pinned("0".repeat(64)))).call("Login", account.clone());
    assert!(matches!(wrong, Err(ClientError::Unreachable { .. })), "{wrong:?}");
    assert!(with(None).call("Login", account).is_ok(), "without TLS from this host");
}
