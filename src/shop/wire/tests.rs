use super::*;
use crate::model::Millis;
use crate::shop::ops::{Feedback, Found, Item, Line, PricedLine};
use proptest::prelude::*;
use serde_json::json;

fn ask(port: Port, message: Value) -> Result<Call, Refusal> {
    read(port, message.to_string().as_bytes()).map(|request| request.call).map_err(|rejected| rejected.refusal)
}

/// In dialect 1, with a session.
fn one(port: Port, api: &str, payload: Value) -> Result<Act, Refusal> {
    let message = json!({"type": "request", "api": api, "session_id": "s", "payload": payload});
    match ask(port, message)? {
        Call::Act { sid, act } if sid == "s" => Ok(act),
        other => panic!("{api} was read as {other:?}"),
    }
}

/// In dialect 2, with a session.
fn two(port: Port, mut message: Value) -> Result<Act, Refusal> {
    message["sid"] = "s".into();
    match ask(port, message)? {
        Call::Act { sid, act } if sid == "s" => Ok(act),
        other => panic!("read as {other:?}"),
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Refusal>, code: Code, message: &str) {
    let refusal = result.unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
}

fn page(offset: u64, limit: u64) -> Page {
    Page { offset, limit }
}

fn lamp() -> Value {
    json!({
        "item_name": "Lamp", "category": 3, "keywords": ["light", "desk"], "condition": "NEW", "price": "12.50",
        "quantity": 7
    })
}

#[test]
fn both_dialects_say_the_same() {
    let item = || json!({"item_id": "3-1"});
    for (port, api, payload, flat) in [
        (
            Port::Buyer,
            "SearchItemsForSale",
            json!({"category": 3, "keywords": ["a", "A", "b"], "limit": 500}),
            json!({"type": "SEARCH", "category": 3, "keywords": ["A", "b"]}),
        ),
        (Port::Buyer, "GetItem", item(), json!({"type": "GET_ITEM", "item": "3-1"})),
        (
            Port::Buyer,
            "AddItemToCart",
            json!({"item_id": "3-1", "quantity": 2.0}),
            json!({"type": "ADD_CART", "item": "3-1", "qty": 2}),
        ),
        (
            Port::Buyer,
            "RemoveItemFromCart",
            json!({"item_id": "3-1", "quantity": 2}),
            json!({"type": "REMOVE_CART", "item": "3-1", "qty": 2}),
        ),
        (Port::Buyer, "RemoveItemFromCart", item(), json!({"type": "REMOVE_CART", "item": "3-1", "qty": null})),
        (Port::Buyer, "SaveCart", json!({}), json!({"type": "SAVE_CART"})),
        (Port::Buyer, "ClearCart", json!({}), json!({"type": "CLEAR_CART"})),
        (Port::Buyer, "DisplayCart", Value::Null, json!({"type": "GET_CART"})),
        (
            Port::Buyer,
            "MakePurchase",
            json!({"card": {"number": "4111 1111 1111 1111", "exp": "01/30", "name": "n"}, "address": "a\nb"}),
            json!({"type": "PURCHASE", "card_number": "4111111111111111", "expiration_date": "01/30", "name": "n",
                   "address": "a\nb"}),
        ),
        (
            Port::Buyer,
            "ProvideFeedback",
            json!({"item_id": "3-1", "thumbs_up": false}),
            json!({"type": "FEEDBACK", "item": "3-1", "vote": "down"}),
        ),
        (Port::Buyer, "GetBuyerPurchases", json!({"offset": 4}), json!({"type": "GET_PURCHASES", "offset": 4})),
        (Port::Seller, "GetSellerRating", json!({}), json!({"type": "GET_SELLER_RATING"})),
        (
            Port::Seller,
            "RegisterItemForSale",
            lamp(),
            json!({"type": "ADD_ITEM", "name": "Lamp", "category": 3, "keywords": ["light", "desk"],
                   "condition": "new", "price": 12.5, "qty": 7}),
        ),
        (
            Port::Seller,
            "ChangeItemPrice",
            json!({"item_id": "3-1", "price": 1}),
            json!({"type": "UPDATE_PRICE", "item": "3-1", "price": "1.00"}),
        ),
        (
            Port::Seller,
            "UpdateUnitsForSale",
            json!({"item_id": "3-1", "quantity": -3}),
            json!({"type": "UPDATE_QTY", "item": "3-1", "delta": -3}),
        ),
        (Port::Seller, "DisplayItemsForSale", json!({}), json!({"type": "GET_ITEMS"})),
    ] {
        assert_eq!(one(port, api, payload).unwrap(), two(port, flat).unwrap(), "{api}");
    }
    let sellers = |api, payload| one(Port::Seller, api, payload).unwrap();
    assert_eq!(sellers("GetItem", item()), Act::GetOwnItem { item_id: "3-1".into() });
    assert_eq!(sellers("GetSellerOrders", json!({"limit": 0})), Act::Orders(page(0, 0)));
    let shipped = Act::MarkShipped { purchase_id: "p".into(), item_id: "3-1".into() };
    assert_eq!(sellers("MarkShipped", json!({"purchase_id": "p", "item_id": "3-1"})), shipped);
    let rating = |seller| Act::RatingOf(seller);
    assert_eq!(one(Port::Buyer, "GetSellerRating", json!({"seller_id": 9})).unwrap(), rating(SellerRef::Id(9)));
    let flat = json!({"type": "GET_SELLER_RATING", "seller": "sam"});
    assert_eq!(two(Port::Buyer, flat).unwrap(), rating(SellerRef::Username("sam".into())));
    let vote = json!({"type": "FEEDBACK", "seller": "sam", "vote": "up"});
    assert_eq!(two(Port::Buyer, vote).unwrap(), Act::VoteSeller { seller: "sam".into(), up: true });
    // A search of dialect 1 gives 50 unless told otherwise.
    let search = |payload| match one(Port::Buyer, "SearchItemsForSale", payload).unwrap() {
        Act::Search { category, keywords, page } => (category, keywords, page),
        other => panic!("{other:?}"),
    };
    assert_eq!(search(json!({})), (None, vec![], page(0, 50)));
    assert_eq!(search(json!({"keywords": ["ÄB"], "limit": 7})), (None, vec!["äb".to_owned()], page(0, 7)));
}

#[test]
fn accounts_in_both_dialects() {
    let login = |role| Call::Login { role, username: "u".into(), password: "p".into() };
    let one = |port, api: &str| {
        ask(port, json!({"type": "request", "api": api, "payload": {"username": "u", "password": "p", "name": "N"}}))
    };
    let two = |port, kind: &str, role: &str| ask(port, json!({"type": kind, "role": role, "user": "u", "pwd": "p"}));
    assert_eq!(one(Port::Seller, "Login").unwrap(), login(Role::Seller));
    assert_eq!(two(Port::Seller, "LOGIN", "seller").unwrap(), login(Role::Seller));
    assert_eq!(two(Port::Customer, "LOGIN", "buyer").unwrap(), login(Role::Buyer));
    let created = |name: Option<&str>| Call::Create {
        role: Role::Buyer,
        username: "u".into(),
        password: "p".into(),
        name: name.map(str::to_owned),
    };
    assert_eq!(one(Port::Buyer, "CreateAccount").unwrap(), created(Some("N")));
    assert_eq!(two(Port::Buyer, "CREATE", "buyer").unwrap(), created(None));
    assert_refused(two(Port::Buyer, "CREATE", "seller"), Code::Forbidden, "role: this port is for buyers");
    assert_refused(two(Port::Buyer, "CREATE", "king"), Code::BadRequest, "role: expected buyer or seller");
    let logout = Call::Logout { sid: "s".into() };
    assert_eq!(ask(Port::Customer, json!({"type": "LOGOUT", "sid": "s"})).unwrap(), logout);
    assert_eq!(ask(Port::Buyer, json!({"type": "request", "api": "Logout", "session_id": "s"})).unwrap(), logout);
    let validate = json!({"type": "VALIDATE", "sid": "s"});
    assert_eq!(ask(Port::Customer, validate.clone()).unwrap(), Call::Validate { sid: "s".into() });
    assert_eq!(ask(Port::Buyer, validate).unwrap_err().code, Code::UnknownApi);
    let secret = "x".repeat(PASSWORD_MAX);
    let with = |password: &str| {
        let payload = json!({"username": "u", "password": password});
        ask(Port::Buyer, json!({"type": "request", "api": "Login", "payload": payload}))
    };
    assert!(with(&secret).is_ok() && with("\n").is_ok());
    let error = with(&format!("{secret}y")).unwrap_err();
    assert_eq!(error.message, "password: expected 1 to 256 characters, not 257");
}

#[test]
fn strangers_and_the_other_role_get_nowhere() {
    for message in [
        json!({"type": "SEARCH", "sid": "s"}),
        json!({"type": "LOGIN", "role": "buyer", "user": "u", "pwd": "p"}),
        json!({"type": "request", "api": "GetItem"}),
        json!({"type": "nonsense"}),
    ] {
        assert_eq!(ask(Port::Product, message.clone()).unwrap_err().code, Code::Forbidden, "{message}");
    }
    for message in [
        json!({"type": "SEARCH", "sid": "s"}),
        json!({"type": "request", "api": "Login", "payload": {"username": "u", "password": "p"}}),
    ] {
        assert_eq!(ask(Port::Customer, message.clone()).unwrap_err().code, Code::Forbidden, "{message}");
    }
    assert_refused(
        one(Port::Buyer, "RegisterItemForSale", lamp()),
        Code::Forbidden,
        "there is no RegisterItemForSale for buyers",
    );
    assert_eq!(one(Port::Seller, "MakePurchase", json!({})).unwrap_err().code, Code::Forbidden);
    assert_eq!(two(Port::Seller, json!({"type": "GET_CART"})).unwrap_err().code, Code::Forbidden);
    assert_eq!(two(Port::Buyer, json!({"type": "ADD_ITEM"})).unwrap_err().code, Code::Forbidden);
}

#[test]
fn who_is_not_logged_in_hears_that_first() {
    for sid in [Value::Null, "".into()] {
        let message = json!({"type": "request", "api": "AddItemToCart", "session_id": sid, "payload": {}});
        assert_refused(ask(Port::Buyer, message), Code::NotLoggedIn, "session_id: missing; log in first");
        let message = json!({"type": "ADD_CART", "sid": sid});
        assert_refused(ask(Port::Buyer, message), Code::NotLoggedIn, "sid: missing; log in first");
    }
    let message = json!({"type": "GET_CART", "sid": 7});
    assert_refused(ask(Port::Buyer, message), Code::BadRequest, "sid: expected a text");
}

#[test]
fn what_is_wrong_with_the_fields_bears_the_session_and_nothing_else_does() {
    let one = |api: &str, payload: Value| json!({"type": "request", "api": api, "session_id": "s", "payload": payload});
    for (port, message) in [
        (Port::Buyer, one("GetItem", json!({}))),
        (Port::Buyer, one("DisplayCart", json!(5))),
        (Port::Buyer, one("Logout", json!(5))),
        (Port::Buyer, one("MakePurchase", json!({"card": {"number": "1"}}))),
        (Port::Seller, one("ChangeItemPrice", json!({"item_id": "1-1", "price": -1}))),
        (Port::Buyer, json!({"type": "FEEDBACK", "sid": "s"})),
        (Port::Seller, json!({"type": "ADD_ITEM", "sid": "s", "qty": -1})),
    ] {
        let rejected = read(port, message.to_string().as_bytes()).unwrap_err();
        assert_eq!((rejected.refusal.code, rejected.sid.as_deref()), (Code::BadRequest, Some("s")), "{message}");
        assert!(!format!("{rejected:?}").contains("\"s\""), "no session id is shown");
    }
    for (port, message, code) in [
        (Port::Buyer, one("Nonsense", json!({})), Code::UnknownApi),
        (Port::Buyer, one("MarkShipped", json!({})), Code::Forbidden),
        (Port::Buyer, one("Login", json!({})), Code::BadRequest),
        (Port::Buyer, json!({"type": "ADD_ITEM", "sid": "s"}), Code::Forbidden),
        (Port::Buyer, json!({"type": "GET_ITEM"}), Code::NotLoggedIn),
        (Port::Customer, json!({"type": "SEARCH", "sid": "s", "category": -1}), Code::Forbidden),
        (Port::Customer, json!({"type": "CREATE", "sid": "s"}), Code::BadRequest),
    ] {
        let rejected = read(port, message.to_string().as_bytes()).unwrap_err();
        assert_eq!((rejected.refusal.code, rejected.sid), (code, None), "{message}");
    }
}

#[test]
fn what_is_found_later_is_told_by_the_names_of_the_dialect_that_was_asked_in() {
    let flat = json!({"type": "UPDATE_QTY", "sid": "s", "item": "3-1", "delta": -9});
    let full = json!({"type": "request", "api": "UpdateUnitsForSale", "session_id": "s",
                      "payload": {"item_id": "3-1", "quantity": -9}});
    for (message, error, expected) in
        [(&flat, "/error/message", "delta: there are 3"), (&full, "/error/message", "quantity: there are 3")]
    {
        let request = read(Port::Seller, message.to_string().as_bytes()).unwrap();
        let refusal = Refusal::new(Code::OutOfStock, "quantity: there are 3");
        let answer: Value = serde_json::from_slice(&write(&request.envelope, &Err(refusal))).unwrap();
        assert_eq!(answer.pointer(error).unwrap(), expected);
    }
}

#[test]
fn errors_name_the_field_and_limits_are_exact() {
    let with = |field: &str, value: Value| {
        let mut payload = lamp();
        payload[field] = value;
        one(Port::Seller, "RegisterItemForSale", payload)
    };
    let ok = |field, value| assert!(with(field, value).is_ok(), "{field}");
    let name = "expected 1 to 32 characters, not";
    let price = "expected an amount from 0.01 to 10000000.00 with at most two decimals, as a number or a string";
    ok("item_name", "ü".repeat(32).into());
    ok("keywords", json!(["12345678", "a", "b", "c", "d"]));
    ok("keywords", json!([]));
    ok("category", json!(2147483647));
    ok("quantity", json!(0));
    for (field, value, message) in [
        ("item_name", json!("x".repeat(33)), format!("item_name: {name} 33")),
        ("item_name", json!(""), format!("item_name: {name} 0")),
        ("item_name", json!(5), "item_name: expected a text".to_owned()),
        ("item_name", json!("a\u{7}"), "item_name: expected no control characters".to_owned()),
        ("item_name", Value::Null, "item_name: missing".to_owned()),
        ("category", json!(-1), "category: expected a whole number from 0 to 2147483647".to_owned()),
        ("category", json!(2147483648_u64), "category: expected a whole number from 0 to 2147483647".to_owned()),
        ("category", json!(1.5), "category: expected a whole number from 0 to 2147483647".to_owned()),
        ("category", json!("1"), "category: expected a whole number from 0 to 2147483647".to_owned()),
        ("keywords", json!(["a", "b", "c", "d", "e", "f"]), "keywords: expected at most 5".to_owned()),
        ("keywords", json!(["123456789"]), "keywords: expected 1 to 8 characters, not 9".to_owned()),
        ("keywords", json!([""]), "keywords: expected 1 to 8 characters, not 0".to_owned()),
        ("keywords", json!("a"), "keywords: expected a list of texts".to_owned()),
        ("keywords", json!([1]), "keywords: expected a list of texts".to_owned()),
        ("condition", json!("broken"), "condition: expected New or Used".to_owned()),
        ("price", json!(1.005), format!("price: {price}")),
        ("price", json!("0"), format!("price: {price}")),
        ("price", json!(-1), format!("price: {price}")),
        ("price", json!(10_000_000.01), format!("price: {price}")),
        ("quantity", json!(-1), "quantity: expected a whole number from 0 to 2147483647".to_owned()),
    ] {
        assert_refused(with(field, value), Code::BadRequest, &message);
    }
    let buyer = |api: &str, payload: Value, message: &str| {
        assert_refused(one(Port::Buyer, api, payload), Code::BadRequest, message);
    };
    buyer(
        "AddItemToCart",
        json!({"item_id": "1-1", "quantity": 0}),
        "quantity: expected a whole number from 1 to 2147483647",
    );
    buyer("AddItemToCart", json!({"quantity": 1}), "item_id: missing");
    buyer("SearchItemsForSale", json!({"limit": 501}), "limit: expected a whole number from 0 to 500");
    buyer("SearchItemsForSale", json!({"offset": -1}), "offset: expected a whole number from 0 to 9007199254740991");
    buyer("SearchItemsForSale", json!({"keywords": ["x".repeat(65)]}), "keywords: expected 1 to 64 characters, not 65");
    buyer("SearchItemsForSale", json!({"keywords": ["a", "a", "a", "a", "a", "a"]}), "keywords: expected at most 5");
    buyer("ProvideFeedback", json!({"item_id": "1-1", "thumbs_up": "yes"}), "thumbs_up: expected true or false");
    buyer("GetSellerRating", json!({}), "seller_id: missing");
    buyer("SearchItemsForSale", json!([]), "payload: expected an object");
    let card = |card: Value| json!({"card": card});
    let number = "expected a card number of 12 to 19 digits";
    buyer("MakePurchase", json!({}), "card: missing");
    buyer("MakePurchase", card(json!("4111")), "card: expected an object with number, exp and name");
    buyer(
        "MakePurchase",
        card(json!({"number": "411", "exp": "01/30", "name": "n"})),
        &format!("card.number: {number}"),
    );
    buyer(
        "MakePurchase",
        card(json!({"number": "4111111111111111", "exp": "1/30", "name": "n"})),
        "card.exp: expected a card's expiry as MM/YY",
    );
    buyer("MakePurchase", card(json!({"number": "4111111111111111", "exp": "01/30"})), "card.name: missing");
    buyer(
        "MakePurchase",
        json!({"card_number": "x", "expiration_date": "01/30", "name": "n"}),
        &format!("card_number: {number}"),
    );
    let good = json!({"number": "4111111111111111", "exp": "01/30", "name": "n"});
    buyer(
        "MakePurchase",
        json!({"card": good, "idempotency_key": "k".repeat(65)}),
        "idempotency_key: expected 1 to 64 characters, not 65",
    );
    buyer(
        "MakePurchase",
        json!({"card": good, "address": "a".repeat(1025)}),
        "address: expected a text of 1 to 1024 characters",
    );
    assert_refused(
        two(Port::Buyer, json!({"type": "FEEDBACK", "vote": "up"})),
        Code::BadRequest,
        "seller: missing (or item)",
    );
    assert_refused(
        two(Port::Buyer, json!({"type": "FEEDBACK", "item": "1-1", "vote": 1})),
        Code::BadRequest,
        "vote: expected up or down",
    );
}

#[test]
fn what_is_no_message_is_answered_in_dialect_2() {
    for (bytes, message) in [
        (&b""[..], "expected one JSON object: it ends too early"),
        (b"{\"type\":", "expected one JSON object: it ends too early"),
        (b"hello", "expected one JSON object: syntax error at line 1, column 1"),
        (b"[1]", "expected one JSON object"),
        (b"\xff", "expected one JSON object: it is not UTF-8"),
        (b"{\"type\":\"GET_CART\",\"unknown\":\"\xff\"}", "expected one JSON object: it is not UTF-8"),
        (b"{}", "type: missing"),
        (b"{\"type\":5}", "type: expected a text"),
    ] {
        let Rejected { envelope, refusal, sid } = read(Port::Buyer, bytes).unwrap_err();
        assert_eq!(sid, None);
        assert_eq!(
            (envelope.clone(), refusal.code, refusal.message.as_str()),
            (Envelope::NO_MESSAGE, Code::BadRequest, message)
        );
        let answer: Value = serde_json::from_slice(&write(&envelope, &Err(refusal))).unwrap();
        assert_eq!(answer, json!({"status": "ERR", "error": {"code": "BAD_REQUEST", "message": message}}));
    }
    let Rejected { envelope, refusal, .. } = read(Port::Buyer, br#"{"type":"request","session_id":"s"}"#).unwrap_err();
    let answer: Value = serde_json::from_slice(&write(&envelope, &Err(refusal))).unwrap();
    let error = json!({"code": "BAD_REQUEST", "message": "api: missing"});
    assert_eq!(answer, json!({"type": "error", "api": null, "session_id": "s", "error": error}));
}

fn written(outcome: &dyn Fn() -> Outcome) -> [Value; 2] {
    let one = Envelope::One { api: Some("Api".to_owned()), session_id: Some("s".to_owned()) };
    [one, Envelope::NO_MESSAGE].map(|envelope| serde_json::from_slice(&write(&envelope, &Ok(outcome()))).unwrap())
}

#[track_caller]
fn assert_written(outcome: &dyn Fn() -> Outcome, payload: Value, mut fields: Value) {
    let [one, two] = written(outcome);
    assert_eq!(one, json!({"type": "response", "api": "Api", "session_id": "s", "payload": payload}));
    fields["status"] = "OK".into();
    assert_eq!(two, fields);
}

#[test]
fn outcomes_in_both_dialects() {
    let text = |value: &dyn erased::Json| value.json();
    let item = Item {
        item_id: "3-1".into(),
        item_name: "Lamp".into(),
        category: 3,
        keywords: vec!["light".into()],
        condition_is_new: false,
        price: Cents(1250),
        quantity: 7,
        seller_id: 9,
        seller: "sam".into(),
        feedback: Feedback { thumbs_up: 2, thumbs_down: 1 },
    };
    let one = json!({
        "item_id": "3-1", "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition_is_new": false,
        "price": 12.5, "quantity": 7, "seller_id": 9, "seller": "sam",
        "feedback": {"thumbs_up": 2, "thumbs_down": 1}
    });
    let two = json!({
        "item_id": "3-1", "name": "Lamp", "category": 3, "keywords": ["light"], "condition": "Used", "price": 12.5,
        "qty": 7, "seller": "sam", "feedback": [2, 1]
    });
    let found = |total_is_at_least| text(&Found { items: vec![item.clone()], total: 10_000, total_is_at_least });
    assert_written(&|| Outcome::Done, json!({"status": "OK"}), json!({}));
    assert_written(&|| Outcome::Item(text(&item)), one.clone(), json!({"item": two}));
    assert_written(
        &|| Outcome::Search(found(true)),
        json!({"items": [one], "total": 10_000, "total_is_at_least": true}),
        json!({"results": [two], "total": 10_000, "total_is_at_least": true}),
    );
    assert_written(
        &|| Outcome::Items(found(false)),
        json!({"items": [one], "total": 10_000}),
        json!({"items": [two], "total": 10_000}),
    );
    let lines = vec![Line { item_id: "3-1".into(), quantity: 2 }];
    assert_written(
        &|| Outcome::Cart(text(&lines)),
        json!({"cart": [{"item_id": "3-1", "quantity": 2}]}),
        json!({"cart": {"3-1": 2}}),
    );
    assert_written(&|| Outcome::Quantity(3), json!({"status": "OK", "quantity": 3}), json!({"qty": 3}));
    let registered = || Outcome::Registered(r#"{"item_id":"3-1"}"#.to_owned());
    assert_written(&registered, json!({"item_id": "3-1"}), json!({"item_id": "3-1"}));
    let rating = |thumbs_up, thumbs_down| {
        move || Outcome::Rating(Rating { feedback: Feedback { thumbs_up, thumbs_down }, items_sold: 5 })
    };
    assert_written(
        &rating(3, 1),
        json!({"feedback": {"thumbs_up": 3, "thumbs_down": 1}, "rating": 0.75, "items_sold": 5}),
        json!({"rating": [3, 1]}),
    );
    assert_eq!(written(&rating(0, 0))[0]["payload"]["rating"], Value::Null);
    let account = || Account { user_id: 4, username: "u".into(), name: "U".into() };
    assert_written(&|| Outcome::Created(Role::Seller, account()), json!({"seller_id": 4}), json!({}));
    let priced =
        PricedLine { item_id: "3-1".into(), quantity: 2, price: Cents(1250), seller_id: 9, seller: "sam".into() };
    let purchased = Purchased { purchase_id: "p".into(), total: Cents(5_000_000_000), items: vec![priced] };
    let fields = json!({
        "purchase_id": "p", "total": 50_000_000, "items": [{"item_id": "3-1", "quantity": 2, "price": 12.5}]
    });
    assert_written(&|| Outcome::Purchased(purchased.clone()), fields.clone(), fields);
    let bought = || Bought {
        purchase_id: "p".into(),
        item_id: "3-1".into(),
        quantity: 2,
        price: Cents(1250),
        purchased_at: Millis(1_795_253_400_999),
        shipped_at: None,
    };
    let fields = json!({"items": [{
        "purchase_id": "p", "item_id": "3-1", "quantity": 2, "price": 12.5, "purchased_at": 1_795_253_400,
        "shipped_at": null
    }]});
    assert_written(&|| Outcome::Purchases(vec![bought()]), fields.clone(), fields);
    let order = || Order {
        purchase_id: "p".into(),
        item_id: "3-1".into(),
        quantity: 2,
        price: Cents(1250),
        payout: Cents(2250),
        buyer_name: "B".into(),
        address: Some("Elm St".into()),
        purchased_at: Millis(1_795_253_400_000),
        shipped_at: Some(Millis(1_795_253_401_000)),
    };
    let fields = json!({"items": [{
        "purchase_id": "p", "item_id": "3-1", "quantity": 2, "price": 12.5, "payout": 22.5, "buyer_name": "B",
        "address": "Elm St", "purchased_at": 1_795_253_400, "shipped_at": 1_795_253_401
    }]});
    assert_written(&|| Outcome::Orders(vec![order()]), fields.clone(), fields);
    // A login's session is in the envelope, too.
    let [one, two] = written(&|| Outcome::LoggedIn(Role::Buyer, LoggedIn { sid: "new".into(), user_id: 4 }));
    assert_eq!((&one["session_id"], &one["payload"]), (&json!("new"), &json!({"session_id": "new", "buyer_id": 4})));
    assert_eq!(two, json!({"status": "OK", "sid": "new"}));
    let [_, two] = written(&|| Outcome::Session(Session { user: "u".into(), role: Role::Seller }));
    assert_eq!(two, json!({"status": "OK", "user": "u", "role": "seller"}));
}

/// Anything that is JSON, in a list of different things.
mod erased {
    pub(super) trait Json {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}

#[test]
fn a_database_that_talks_nonsense_is_unavailable() {
    for outcome in [Outcome::Search("[]".into()), Outcome::Item("x".into()), Outcome::Cart("{}".into())] {
        let answer: Value = serde_json::from_slice(&write(&Envelope::NO_MESSAGE, &Ok(outcome))).unwrap();
        assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("UNAVAILABLE")));
    }
}

#[test]
fn nothing_secret_shows() {
    let login = ask(Port::Customer, json!({"type": "LOGIN", "role": "buyer", "user": "u", "pwd": "hunter2"})).unwrap();
    let purchase = json!({"type": "PURCHASE", "sid": "se55ion", "address": "Elm St", "card_number": "4111111111111111",
                          "expiration_date": "01/30", "name": "n"});
    let purchase = ask(Port::Buyer, purchase).unwrap();
    let shown = format!("{login:?} {purchase:?}");
    assert!(!["hunter2", "se55ion", "4111", "Elm"].iter().any(|secret| shown.contains(secret)), "{shown}");
    let wrong = json!({"type": "PURCHASE", "sid": "s", "card_number": "41111111111111x1", "expiration_date": "01/30", "name": "n"});
    assert!(!ask(Port::Buyer, wrong).unwrap_err().message.contains("4111"));
}

const PORTS: [Port; 4] = [Port::Buyer, Port::Seller, Port::Customer, Port::Product];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,70}".prop_map(Value::from),
        Just(json!("1-1")),
        Just(json!(1)),
    ];
    leaf.prop_recursive(2, 8, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..7).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,9}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_always_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for port in PORTS {
            let Rejected { envelope, refusal, .. } = read(port, &bytes).unwrap_err();
            let answer: Value = serde_json::from_slice(&write(&envelope, &Err(refusal))).unwrap();
            prop_assert_eq!(&answer["status"], "ERR");
        }
    }

    #[test]
    fn whatever_is_in_the_fields_it_is_read_or_refused_with_its_field(
        values in prop::collection::vec(json_value(), 20),
        in_session in any::<bool>(),
    ) {
        const APIS: [&str; 22] = [
            "CreateAccount", "Login", "Logout", "SearchItemsForSale", "GetItem", "AddItemToCart", "RemoveItemFromCart",
            "SaveCart", "ClearCart", "DisplayCart", "MakePurchase", "ProvideFeedback", "GetSellerRating",
            "GetBuyerPurchases", "RegisterItemForSale", "ChangeItemPrice", "UpdateUnitsForSale", "DisplayItemsForSale",
            "GetSellerOrders", "MarkShipped", "", "Nonsense",
        ];
        const TYPES: [&str; 22] = [
            "CREATE", "LOGIN", "LOGOUT", "VALIDATE", "SEARCH", "GET_ITEM", "ADD_CART", "REMOVE_CART", "GET_CART",
            "CLEAR_CART", "SAVE_CART", "FEEDBACK", "GET_PURCHASES", "PURCHASE", "GET_SELLER_RATING", "ADD_ITEM",
            "UPDATE_PRICE", "UPDATE_QTY", "GET_ITEMS", "", "LINK", "Nonsense",
        ];
        const FIELDS: [&str; 20] = [
            "username", "password", "name", "category", "keywords", "offset", "limit", "item_id", "quantity", "card",
            "address", "thumbs_up", "seller_id", "price", "condition", "user", "item", "qty", "vote", "item_name",
        ];
        let mut fields: Map<String, Value> =
            FIELDS.iter().map(|field| (*field).to_owned()).zip(values.iter().cloned()).collect();
        let sid = if in_session { json!("s") } else { values[0].clone() };
        for api in APIS {
            let message = json!({"type": "request", "api": api, "session_id": sid, "payload": fields});
            for port in PORTS {
                if let Err(Rejected { envelope, refusal, sid: said }) = read(port, message.to_string().as_bytes()) {
                    let is_one = matches!(envelope, Envelope::One { .. });
                    prop_assert!(is_one);
                    prop_assert!(said.is_none() || refusal.code == Code::BadRequest);
                    prop_assert!(!refusal.message.is_empty());
                }
            }
        }
        fields.insert("sid".to_owned(), sid);
        for kind in TYPES {
            fields.insert("type".to_owned(), kind.into());
            for port in PORTS {
                if let Err(Rejected { envelope, refusal, sid: said }) = read(port, json!(fields).to_string().as_bytes()) {
                    prop_assert!(envelope.is_flat());
                    prop_assert!(said.is_none() || refusal.code == Code::BadRequest);
                    prop_assert!(!refusal.message.is_empty());
                }
            }
        }
    }
}
