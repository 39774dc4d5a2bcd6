use serde_json::json;

use super::*;
use crate::identity::users::PASSWORD_CHARS_MAX;
use crate::model::{Cents, Millis};
use crate::shop::apis::{SellerRef, SessionCall, answers};
use crate::shop::customer::CustomerCall;
use crate::shop::ops::{
    Account, CompletedPurchase, Feedback, Item, ItemPage, LineItem, NewSession, PricedLine, PurchaseHistoryEntry,
    RegisteredItem, RemainingQuantity, SellerOrder, SellerRating, SessionInfo,
};
use crate::shop::product::ProductOp;

mod garbage;
mod responses;

fn ask(server_kind: ServerKind, message: Value) -> Result<ApiCall, Refusal> {
    parse_request(server_kind, message.to_string().as_bytes())
        .map(|request| request.call)
        .map_err(|rejected| rejected.refusal)
}

/// A message of dialect 1 with a session.
fn one(server_kind: ServerKind, api: &str, payload: Value) -> Result<SessionCall, Refusal> {
    let message = json!({"type": "request", "api": api, "session_id": "s", "payload": payload});
    match ask(server_kind, message)? {
        ApiCall::InSession { sid, call } if sid == "s" => Ok(call),
        other => panic!("{api} was read as {other:?}"),
    }
}

/// A message of dialect 2 with a session.
fn two(server_kind: ServerKind, mut message: Value) -> Result<SessionCall, Refusal> {
    message["sid"] = "s".into();
    match ask(server_kind, message)? {
        ApiCall::InSession { sid, call } if sid == "s" => Ok(call),
        other => panic!("read as {other:?}"),
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Refusal>, code: ErrorCode, message: &str) {
    let refusal = result.unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
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
    for (server_kind, api, payload, flat) in [
        (
            ServerKind::Buyer,
            "SearchItemsForSale",
            json!({"category": 3, "keywords": ["a", "A", "b"], "limit": 500}),
            json!({"type": "SEARCH", "category": 3, "keywords": ["A", "b"]}),
        ),
        (ServerKind::Buyer, "GetItem", item(), json!({"type": "GET_ITEM", "item": "3-1"})),
        (
            ServerKind::Buyer,
            "AddItemToCart",
            json!({"item_id": "3-1", "quantity": 2.0}),
            json!({"type": "ADD_CART", "item": "3-1", "qty": 2}),
        ),
        (
            ServerKind::Buyer,
            "RemoveItemFromCart",
            json!({"item_id": "3-1", "quantity": 2}),
            json!({"type": "REMOVE_CART", "item": "3-1", "qty": 2}),
        ),
        (ServerKind::Buyer, "RemoveItemFromCart", item(), json!({"type": "REMOVE_CART", "item": "3-1", "qty": null})),
        (ServerKind::Buyer, "SaveCart", json!({}), json!({"type": "SAVE_CART"})),
        (ServerKind::Buyer, "ClearCart", json!({}), json!({"type": "CLEAR_CART"})),
        (ServerKind::Buyer, "DisplayCart", Value::Null, json!({"type": "GET_CART"})),
        (
            ServerKind::Buyer,
            "MakePurchase",
            json!({"card": {"number": "4111 1111 1111 1111", "exp": "01/30", "name": "n"}, "address": "a\nb"}),
            json!({"type": "PURCHASE", "card_number": "4111111111111111", "expiration_date": "01/30", "name": "n",
                   "address": "a\nb"}),
        ),
        (
            ServerKind::Buyer,
            "ProvideFeedback",
            json!({"item_id": "3-1", "thumbs_up": false}),
            json!({"type": "FEEDBACK", "item": "3-1", "vote": "down"}),
        ),
        (ServerKind::Buyer, "GetBuyerPurchases", json!({"offset": 4}), json!({"type": "GET_PURCHASES", "offset": 4})),
        (ServerKind::Seller, "GetSellerRating", json!({}), json!({"type": "GET_SELLER_RATING"})),
        (
            ServerKind::Seller,
            "RegisterItemForSale",
            lamp(),
            json!({"type": "ADD_ITEM", "name": "Lamp", "category": 3, "keywords": ["light", "desk"],
                   "condition": "new", "price": 12.5, "qty": 7}),
        ),
        (
            ServerKind::Seller,
            "ChangeItemPrice",
            json!({"item_id": "3-1", "price": 1}),
            json!({"type": "UPDATE_PRICE", "item": "3-1", "price": "1.00"}),
        ),
        (
            ServerKind::Seller,
            "UpdateUnitsForSale",
            json!({"item_id": "3-1", "quantity": -3}),
            json!({"type": "UPDATE_QTY", "item": "3-1", "delta": -3}),
        ),
        (ServerKind::Seller, "DisplayItemsForSale", json!({}), json!({"type": "GET_ITEMS"})),
    ] {
        assert_eq!(one(server_kind, api, payload).unwrap(), two(server_kind, flat).unwrap(), "{api}");
    }
    let sellers = |api, payload| one(ServerKind::Seller, api, payload).unwrap();
    assert_eq!(sellers("GetItem", item()), SessionCall::GetOwnItem { item_id: "3-1".into() });
    assert_eq!(
        sellers("GetSellerOrders", json!({"limit": 0})),
        SessionCall::AskCustomer(CustomerCall::Orders { offset: 0, limit: 0 })
    );
    let shipped = CustomerCall::MarkShipped { purchase_id: "p".into(), item_id: "3-1".into() };
    assert_eq!(
        sellers("MarkShipped", json!({"purchase_id": "p", "item_id": "3-1"})),
        SessionCall::AskCustomer(shipped)
    );
    let rating = |seller| SessionCall::RatingOf(seller);
    assert_eq!(one(ServerKind::Buyer, "GetSellerRating", json!({"seller_id": 9})).unwrap(), rating(SellerRef::Id(9)));
    let flat = json!({"type": "GET_SELLER_RATING", "seller": "sam"});
    assert_eq!(two(ServerKind::Buyer, flat).unwrap(), rating(SellerRef::Username("sam".into())));
    let vote = json!({"type": "FEEDBACK", "seller": "sam", "vote": "up"});
    assert_eq!(two(ServerKind::Buyer, vote).unwrap(), SessionCall::VoteSeller { seller: "sam".into(), up: true });
    // A search of dialect 1 has a default limit of 50.
    let search = |payload| match one(ServerKind::Buyer, "SearchItemsForSale", payload).unwrap() {
        SessionCall::AskProduct(ProductOp::Search { category, keywords, offset, limit }) => {
            (category, keywords, (offset, limit))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(search(json!({})), (None, vec![], (0, 50)));
    assert_eq!(search(json!({"keywords": ["ÄB"], "limit": 7})), (None, vec!["äb".to_owned()], (0, 7)));
}

#[test]
fn accounts_in_both_dialects() {
    let login = |role| ApiCall::Login { role, username: "u".into(), password: "p".into() };
    let one = |server_kind, api: &str| {
        ask(
            server_kind,
            json!({"type": "request", "api": api, "payload": {"username": "u", "password": "p", "name": "N"}}),
        )
    };
    let two = |server_kind, kind: &str, role: &str| {
        ask(server_kind, json!({"type": kind, "role": role, "user": "u", "pwd": "p"}))
    };
    assert_eq!(one(ServerKind::Seller, "Login").unwrap(), login(Role::Seller));
    assert_eq!(two(ServerKind::Seller, "LOGIN", "seller").unwrap(), login(Role::Seller));
    assert_eq!(two(ServerKind::Customer, "LOGIN", "buyer").unwrap(), login(Role::Buyer));
    let created = |name: Option<&str>| ApiCall::Create {
        role: Role::Buyer,
        username: "u".into(),
        password: "p".into(),
        name: name.map(str::to_owned),
    };
    assert_eq!(one(ServerKind::Buyer, "CreateAccount").unwrap(), created(Some("N")));
    assert_eq!(two(ServerKind::Buyer, "CREATE", "buyer").unwrap(), created(None));
    assert_refused(two(ServerKind::Buyer, "CREATE", "seller"), ErrorCode::Forbidden, "role: this port is for buyers");
    assert_refused(two(ServerKind::Buyer, "CREATE", "king"), ErrorCode::BadRequest, "role: expected buyer or seller");
    let logout = ApiCall::Logout { sid: "s".into() };
    assert_eq!(ask(ServerKind::Customer, json!({"type": "LOGOUT", "sid": "s"})).unwrap(), logout);
    assert_eq!(ask(ServerKind::Buyer, json!({"type": "request", "api": "Logout", "session_id": "s"})).unwrap(), logout);
    let validate = json!({"type": "VALIDATE", "sid": "s"});
    assert_eq!(ask(ServerKind::Customer, validate.clone()).unwrap(), ApiCall::Validate { sid: "s".into() });
    assert_eq!(ask(ServerKind::Buyer, validate).unwrap_err().code, ErrorCode::UnknownApi);
    let secret = "x".repeat(PASSWORD_CHARS_MAX);
    let with = |password: &str| {
        let payload = json!({"username": "u", "password": password});
        ask(ServerKind::Buyer, json!({"type": "request", "api": "Login", "payload": payload}))
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
        assert_eq!(ask(ServerKind::Product, message.clone()).unwrap_err().code, ErrorCode::Forbidden, "{message}");
    }
    for message in [
        json!({"type": "SEARCH", "sid": "s"}),
        json!({"type": "request", "api": "Login", "payload": {"username": "u", "password": "p"}}),
    ] {
        assert_eq!(ask(ServerKind::Customer, message.clone()).unwrap_err().code, ErrorCode::Forbidden, "{message}");
    }
    assert_refused(
        one(ServerKind::Buyer, "RegisterItemForSale", lamp()),
        ErrorCode::Forbidden,
        "there is no RegisterItemForSale for buyers",
    );
    assert_eq!(one(ServerKind::Seller, "MakePurchase", json!({})).unwrap_err().code, ErrorCode::Forbidden);
    assert_eq!(two(ServerKind::Seller, json!({"type": "GET_CART"})).unwrap_err().code, ErrorCode::Forbidden);
    assert_eq!(two(ServerKind::Buyer, json!({"type": "ADD_ITEM"})).unwrap_err().code, ErrorCode::Forbidden);
}

#[test]
fn who_is_not_logged_in_hears_that_first() {
    for sid in [Value::Null, "".into()] {
        let message = json!({"type": "request", "api": "AddItemToCart", "session_id": sid, "payload": {}});
        assert_refused(ask(ServerKind::Buyer, message), ErrorCode::NotLoggedIn, "session_id: missing; log in first");
        let message = json!({"type": "ADD_CART", "sid": sid});
        assert_refused(ask(ServerKind::Buyer, message), ErrorCode::NotLoggedIn, "sid: missing; log in first");
    }
    let message = json!({"type": "GET_CART", "sid": 7});
    assert_refused(ask(ServerKind::Buyer, message), ErrorCode::BadRequest, "sid: expected a text");
}

#[test]
fn what_is_wrong_with_the_fields_bears_the_session_and_nothing_else_does() {
    let one = |api: &str, payload: Value| json!({"type": "request", "api": api, "session_id": "s", "payload": payload});
    for (server_kind, message) in [
        (ServerKind::Buyer, one("GetItem", json!({}))),
        (ServerKind::Buyer, one("DisplayCart", json!(5))),
        (ServerKind::Buyer, one("Logout", json!(5))),
        (ServerKind::Buyer, one("MakePurchase", json!({"card": {"number": "1"}}))),
        (ServerKind::Seller, one("ChangeItemPrice", json!({"item_id": "1-1", "price": -1}))),
        (ServerKind::Buyer, json!({"type": "FEEDBACK", "sid": "s"})),
        (ServerKind::Seller, json!({"type": "ADD_ITEM", "sid": "s", "qty": -1})),
    ] {
        let rejected = parse_request(server_kind, message.to_string().as_bytes()).unwrap_err();
        assert_eq!((rejected.refusal.code, rejected.sid.as_deref()), (ErrorCode::BadRequest, Some("s")), "{message}");
        assert!(!format!("{rejected:?}").contains("\"s\""), "no session id is shown");
    }
    for (server_kind, message, code) in [
        (ServerKind::Buyer, one("Nonsense", json!({})), ErrorCode::UnknownApi),
        (ServerKind::Buyer, one("MarkShipped", json!({})), ErrorCode::Forbidden),
        (ServerKind::Buyer, one("Login", json!({})), ErrorCode::BadRequest),
        (ServerKind::Buyer, json!({"type": "ADD_ITEM", "sid": "s"}), ErrorCode::Forbidden),
        (ServerKind::Buyer, json!({"type": "GET_ITEM"}), ErrorCode::NotLoggedIn),
        (ServerKind::Customer, json!({"type": "SEARCH", "sid": "s", "category": -1}), ErrorCode::Forbidden),
        (ServerKind::Customer, json!({"type": "CREATE", "sid": "s"}), ErrorCode::BadRequest),
    ] {
        let rejected = parse_request(server_kind, message.to_string().as_bytes()).unwrap_err();
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
        let request = parse_request(ServerKind::Seller, message.to_string().as_bytes()).unwrap();
        let refusal = Refusal::new(ErrorCode::OutOfStock, "quantity: there are 3");
        let answer: Value = serde_json::from_slice(&write_refusal(&request.envelope, &refusal)).unwrap();
        assert_eq!(answer.pointer(error).unwrap(), expected);
    }
}

#[test]
fn only_the_field_that_leads_is_renamed() {
    for (server_kind, kind, message, expected) in [
        (ServerKind::Seller, "UPDATE_QTY", "quantity: of item_id: 3 are left", "delta: of item_id: 3 are left"),
        (ServerKind::Seller, "ADD_ITEM", "quantity: too many", "qty: too many"),
        (ServerKind::Buyer, "ADD_CART", "quantity:no", "quantity:no"),
        (ServerKind::Buyer, "GET_CART", "session_id: over; quantity: 3", "sid: over; quantity: 3"),
        (ServerKind::Buyer, "GET_CART", "the session_id: over", "the session_id: over"),
        (ServerKind::Buyer, "FEEDBACK", "username: nobody", "seller: nobody"),
        (ServerKind::Buyer, "Nonsense", "session_id: over", "session_id: over"),
        (ServerKind::Buyer, "GET_CART", "", ""),
    ] {
        let api = Api::find(server_kind, Dialect::Two, kind);
        let refusal = Refusal::new(ErrorCode::BadRequest, message);
        assert_eq!(in_dialect2(api, &refusal).message, expected, "{kind}");
    }
}

#[test]
fn errors_name_the_field_and_limits_are_exact() {
    let with = |field: &str, value: Value| {
        let mut payload = lamp();
        payload[field] = value;
        one(ServerKind::Seller, "RegisterItemForSale", payload)
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
        assert_refused(with(field, value), ErrorCode::BadRequest, &message);
    }
    let buyer = |api: &str, payload: Value, message: &str| {
        assert_refused(one(ServerKind::Buyer, api, payload), ErrorCode::BadRequest, message);
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
        two(ServerKind::Buyer, json!({"type": "FEEDBACK", "vote": "up"})),
        ErrorCode::BadRequest,
        "seller: missing (or item)",
    );
    assert_refused(
        two(ServerKind::Buyer, json!({"type": "FEEDBACK", "item": "1-1", "vote": 1})),
        ErrorCode::BadRequest,
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
        let InvalidRequest { envelope, refusal, sid } = parse_request(ServerKind::Buyer, bytes).unwrap_err();
        assert_eq!(sid, None);
        assert_eq!(
            (envelope.clone(), refusal.code, refusal.message.as_str()),
            (ResponseEnvelope::UNPARSED, ErrorCode::BadRequest, message)
        );
        let answer: Value = serde_json::from_slice(&write_refusal(&envelope, &refusal)).unwrap();
        assert_eq!(answer, json!({"status": "ERR", "error": {"code": "BAD_REQUEST", "message": message}}));
    }
    let InvalidRequest { envelope, refusal, .. } =
        parse_request(ServerKind::Buyer, br#"{"type":"request","session_id":"s"}"#).unwrap_err();
    let answer: Value = serde_json::from_slice(&write_refusal(&envelope, &refusal)).unwrap();
    let error = json!({"code": "BAD_REQUEST", "message": "api: missing"});
    assert_eq!(answer, json!({"type": "error", "api": null, "session_id": "s", "error": error}));
}

#[test]
fn nothing_secret_shows() {
    let login =
        ask(ServerKind::Customer, json!({"type": "LOGIN", "role": "buyer", "user": "u", "pwd": "hunter2"})).unwrap();
    let purchase = json!({"type": "PURCHASE", "sid": "se55ion", "address": "Elm St", "card_number": "4111111111111111",
                          "expiration_date": "01/30", "name": "n"});
    let purchase = ask(ServerKind::Buyer, purchase).unwrap();
    let shown = format!("{login:?} {purchase:?}");
    assert!(!["hunter2", "se55ion", "4111", "Elm"].iter().any(|secret| shown.contains(secret)), "{shown}");
    let wrong = json!({"type": "PURCHASE", "sid": "s", "card_number": "41111111111111x1", "expiration_date": "01/30", "name": "n"});
    assert!(!ask(ServerKind::Buyer, wrong).unwrap_err().message.contains("4111"));
}
