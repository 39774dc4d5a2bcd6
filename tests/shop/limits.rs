//! Limits: what is refused, with which error code, and the field that the message names.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::shop::*;
use crate::support::eventually;

fn assert_refused_field(answer: CallResult, expected: &str, field: &str) {
    let refused = answer.unwrap_err();
    assert_eq!(refused.code, expected, "{}", refused.message);
    assert!(refused.message.contains(field), "{} does not name {field}", refused.message);
}

#[test]
fn every_limit_of_an_item_names_its_field() {
    let shop = Shop::in_one_process(&[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let many = vec!["k"; 6];
    for (field, value) in [
        ("item_name", json!("x".repeat(33))),
        ("item_name", json!("")),
        ("item_name", json!(5)),
        ("keywords", json!(many)),
        ("keywords", json!(["123456789"])),
        ("keywords", json!("lamp")),
        ("price", json!(1.005)),
        ("price", json!(0)),
        ("price", json!(-1)),
        ("price", json!(10_000_000.01)),
        ("price", json!("abc")),
        ("quantity", json!(-1)),
        ("quantity", json!(1.5)),
        ("quantity", json!(2_147_483_648_u64)),
        ("category", json!(-1)),
        ("category", json!(2_147_483_648_u64)),
        ("category", json!("3")),
        ("condition", json!("Broken")),
        ("condition", json!(null)),
    ] {
        let mut fields = serde_json::Map::new();
        fields.insert(field.to_owned(), value.clone());
        let answer = seller.call("RegisterItemForSale", merge(lamp(1.0, 1), serde_json::Value::Object(fields)));
        assert_refused_field(answer, "BAD_REQUEST", field);
    }
    // Values at the limit are accepted, with the condition in any letter case and the price as text.
    let widest = json!({
        "item_name": "ä".repeat(32), "keywords": ["12345678", "a", "b", "c", "d"], "condition": "nEw",
        "price": "10000000.00", "quantity": 2_147_483_647, "category": 2_147_483_647,
    });
    seller.call("RegisterItemForSale", merge(lamp(1.0, 1), widest)).unwrap();
    let own = seller.call("DisplayItemsForSale", json!({})).unwrap();
    assert_eq!(own["items"].as_array().unwrap().len(), 1, "nothing refused was kept");

    assert_refused_field(seller.call_dialect2("ADD_ITEM", json!({"name": "x"})), "BAD_REQUEST", "category");
    let flat = json!({"name": "x", "category": 1, "keywords": [], "condition": "New", "price": 1, "qty": -1});
    assert_refused_field(seller.call_dialect2("ADD_ITEM", flat), "BAD_REQUEST", "qty");
    assert_refused_field(seller.call_dialect2("UPDATE_QTY", json!({"item": "1-1"})), "BAD_REQUEST", "delta");
}

#[test]
fn accounts_and_calls_are_refused_for_what_they_are() {
    let shop = Shop::in_one_process(&[]);
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lengths, "b");
    let mut seller = Client::sign_up(shop.seller, Framing::Lengths, "s");
    let mut other = Client::sign_up(shop.seller, Framing::Lengths, "t");
    assert_eq!(code(buyer.call("CreateAccount", json!({"username": "b", "password": "x"}))), "USERNAME_TAKEN");
    assert_refused_field(
        buyer.call("CreateAccount", json!({"username": "", "password": "x"})),
        "BAD_REQUEST",
        "username",
    );
    assert_refused_field(buyer.call("CreateAccount", json!({"username": "c"})), "BAD_REQUEST", "password");
    let long = json!({"username": "c", "password": "x".repeat(257)});
    assert_refused_field(buyer.call("CreateAccount", long), "BAD_REQUEST", "password");
    assert_eq!(code(buyer.call("Login", json!({"username": "b", "password": "wrong"}))), "BAD_CREDENTIALS");
    assert_eq!(code(buyer.call("Login", json!({"username": "nobody", "password": "x"}))), "BAD_CREDENTIALS");
    assert_eq!(code(buyer.call("Teleport", json!({}))), "UNKNOWN_API");
    assert_eq!(code(buyer.call_dialect2("TELEPORT", json!({}))), "UNKNOWN_API");

    assert_eq!(code(buyer.call("RegisterItemForSale", lamp(5.0, 2))), "FORBIDDEN", "the other role's");
    assert_eq!(
        code(seller.call_dialect2("ADD_CART", json!({"item": "3-1", "qty": 1}))),
        "FORBIDDEN",
        "the other role's"
    );

    let item = seller.call("RegisterItemForSale", lamp(5.0, 2)).unwrap()["item_id"].clone();
    for call in ["GetItem", "ChangeItemPrice", "UpdateUnitsForSale"] {
        let payload = json!({"item_id": item, "price": 1, "quantity": 1});
        assert_eq!(code(other.call(call, payload.clone())), "FORBIDDEN", "{call}: another seller's item");
        let unknown = merge(payload, json!({"item_id": "3-999999"}));
        assert_eq!(code(seller.call(call, unknown)), "NOT_FOUND", "{call}");
    }
    let too_many = json!({"item_id": item, "quantity": -3});
    assert_eq!(code(seller.call("UpdateUnitsForSale", too_many)), "OUT_OF_STOCK");
    assert_eq!(seller.call("GetItem", json!({"item_id": item})).unwrap()["quantity"], 2);

    assert_refused_field(
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 0})),
        "BAD_REQUEST",
        "quantity",
    );
    assert_eq!(code(buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 3}))), "OUT_OF_STOCK");
    assert_eq!(code(buyer.call("AddItemToCart", json!({"item_id": "9-9", "quantity": 1}))), "NOT_FOUND");
    assert_eq!(code(buyer.call("RemoveItemFromCart", json!({"item_id": item}))), "NOT_FOUND");
    assert_eq!(code(buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)}))), "EMPTY_CART");
    assert_eq!(code(buyer.call("GetSellerRating", json!({"seller_id": 999_999}))), "NOT_FOUND");
    assert_refused_field(buyer.call("ProvideFeedback", json!({"item_id": item})), "BAD_REQUEST", "thumbs_up");
    assert_refused_field(
        buyer.call_dialect2("FEEDBACK", json!({"item": item, "vote": "maybe"})),
        "BAD_REQUEST",
        "vote",
    );
    let six = json!({"keywords": ["a", "b", "c", "d", "e", "f"]});
    assert_refused_field(buyer.call("SearchItemsForSale", six), "BAD_REQUEST", "keywords");
    assert_refused_field(buyer.call("SearchItemsForSale", json!({"limit": 501})), "BAD_REQUEST", "limit");
    let order = json!({"purchase_id": "none", "item_id": item});
    assert_eq!(code(seller.call("MarkShipped", order)), "NOT_FOUND");
}

#[test]
fn what_a_database_finds_is_told_by_the_names_of_the_dialect_that_asks() {
    let shop = Shop::in_four_processes(&[], &[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let mut other = Client::sign_up(shop.seller, Framing::Lines, "t");
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let item = seller.call("RegisterItemForSale", lamp(5.0, 2)).unwrap()["item_id"].clone();
    let starts = |answer: CallResult, expected: &str, field: &str| {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code, expected, "{}", refused.message);
        assert!(refused.message.starts_with(&format!("{field}: ")), "{} for {field}", refused.message);
    };
    starts(seller.call_dialect2("UPDATE_QTY", json!({"item": item, "delta": -3})), "OUT_OF_STOCK", "delta");
    starts(seller.call_dialect2("UPDATE_QTY", json!({"item": item, "delta": 2_147_483_647})), "BAD_REQUEST", "delta");
    starts(seller.call("UpdateUnitsForSale", json!({"item_id": item, "quantity": -3})), "OUT_OF_STOCK", "quantity");
    starts(seller.call_dialect2("UPDATE_PRICE", json!({"item": "3-99", "price": 1})), "NOT_FOUND", "item");
    starts(other.call_dialect2("UPDATE_PRICE", json!({"item": item, "price": 1})), "FORBIDDEN", "item");
    starts(buyer.call_dialect2("ADD_CART", json!({"item": item, "qty": 3})), "OUT_OF_STOCK", "item");
    starts(buyer.call_dialect2("REMOVE_CART", json!({"item": item})), "NOT_FOUND", "item");
    starts(buyer.call("RemoveItemFromCart", json!({"item_id": item})), "NOT_FOUND", "item_id");
    starts(buyer.call_dialect2("GET_ITEM", json!({"item": "3-99"})), "NOT_FOUND", "item");
    starts(buyer.call_dialect2("FEEDBACK", json!({"item": "3-99", "vote": "up"})), "NOT_FOUND", "item");
    let account = json!({"role": "buyer", "user": "b", "pwd": "secret"});
    starts(buyer.call_dialect2("CREATE", account.clone()), "USERNAME_TAKEN", "user");
    starts(Client::connect(shop.customer, Framing::Lines).call_dialect2("CREATE", account), "USERNAME_TAKEN", "user");
    starts(
        Client::connect(shop.customer, Framing::Lines).call_dialect2("VALIDATE", json!({"sid": "x"})),
        "SESSION_EXPIRED",
        "sid",
    );
    buyer.sid = seller.sid.clone();
    starts(buyer.call_dialect2("GET_CART", json!({})), "FORBIDDEN", "sid");
    buyer.sid = Some("x".to_owned());
    starts(buyer.call_dialect2("GET_CART", json!({})), "SESSION_EXPIRED", "sid");
    starts(buyer.call("DisplayCart", json!({})), "SESSION_EXPIRED", "session_id");
}

#[test]
fn what_is_no_message_is_answered_and_what_never_ends_is_closed() {
    let shop = Shop::in_one_process(&[]);
    // A message that is not JSON gets an error of dialect 2, and the connection stays open.
    let mut client = Client::connect(shop.buyer, Framing::Lines);
    client.send_raw(b"{not json}\n").unwrap();
    let answer = client.receive().unwrap().unwrap();
    assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("BAD_REQUEST")));
    assert_eq!(code(client.call_dialect2("GET_CART", json!({}))), "NOT_LOGGED_IN");
    // The same for a message that is not UTF-8 in any part.
    for framing in FRAMINGS {
        let mut client = Client::connect(shop.buyer, framing);
        for garbled in [&b"{\"type\":\"GET_CART\",\"sid\":\"\xff\"}"[..], b"{\"type\":\"GET_CART\",\"note\":\"\xc3\"}"]
        {
            client.send_bytes(garbled).unwrap();
            let answer = client.receive().unwrap().unwrap();
            assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("BAD_REQUEST")));
            assert!(answer["error"]["message"].as_str().unwrap().contains("UTF-8"), "{answer}");
        }
        assert_eq!(
            code(client.call_dialect2("GET_CART", json!({}))),
            "NOT_LOGGED_IN",
            "{framing:?}: the connection goes on"
        );
    }

    let mut client = Client::connect(shop.buyer, Framing::Lines);
    let mut long = format!(r#"{{"type":"request","api":"{}"#, "x".repeat(2 << 20)).into_bytes();
    long.push(b'\n');
    // The server may close before everything is written.
    let _ = client.send_raw(&long);
    if let Ok(Some(answer)) = client.receive() {
        assert_eq!(answer["error"]["code"], "BAD_REQUEST");
    }
    assert!(client.is_closed_soon());

    let mut client = Client::connect(shop.buyer, Framing::Lengths);
    client.send_raw(&[0, 0x20, 0, 0]).unwrap();
    let answer = client.receive().unwrap().unwrap();
    assert_eq!(answer["error"]["code"], "BAD_REQUEST", "{answer}");
    assert!(client.is_closed_soon());

    // A prefix of 4 GiB begins with a byte that no framing begins with.
    let mut client = Client::connect(shop.buyer, Framing::Lengths);
    client.send_raw(&[0xff; 4]).unwrap();
    assert!(client.is_closed_soon());

    // Half a message and then silence.
    for (framing, half) in [(Framing::Lines, &b"{\"type\":"[..]), (Framing::Lengths, &[0, 0, 0, 9, b'{'][..])] {
        let mut client = Client::connect(shop.buyer, framing);
        client.send_raw(half).unwrap();
        assert!(client.is_closed_soon(), "{framing:?}");
    }
    assert_eq!(code(Client::connect(shop.buyer, Framing::Lines).call("DisplayCart", json!({}))), "NOT_LOGGED_IN");
}

#[test]
fn strangers_cannot_take_the_databases_from_the_frontends() {
    let mut shop = Shop::in_four_processes(&["--max-connections", "64"], &["--max-connections", "64"]);
    let buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let stranger = |addr| {
        let mut client = Client::connect(addr, Framing::Lines);
        let code = code(client.call_dialect2("VALIDATE", json!({"sid": "none"})));
        (client, code)
    };
    let mut open = Vec::new();
    for (addr, expected) in [(shop.customer, "SESSION_EXPIRED"), (shop.product, "FORBIDDEN")] {
        for _ in 0..32 {
            let (client, code) = stranger(addr);
            assert_eq!(code, expected);
            open.push(client);
        }
        assert_eq!(stranger(addr).1, "BUSY");
        // Silent connections are closed when others arrive.
        open.extend((0..100).map(|_| Client::connect(addr, Framing::Lines)));
    }
    // A new frontend can still connect.
    shop.components[BUYER].kill_and_restart();
    let mut again = Client::connect(shop.buyer, Framing::Lines);
    again.sid = buyer.sid.clone();
    for _ in 0..5 {
        assert_eq!(again.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
        assert_eq!(again.call("SearchItemsForSale", json!({"keywords": ["x"]})).unwrap()["total"], 0);
    }
    drop(open);
    // Unauthenticated clients are accepted again.
    crate::support::eventually("room", || (stranger(shop.customer).1 == "SESSION_EXPIRED").then_some(()));
}

/// As many unauthenticated clients as in document 001, all from this machine, get a permit each, however long passwords
/// take.
#[test]
fn two_hundred_from_this_machine_find_room_at_the_customer_database() {
    let shop = Shop::in_one_process(&[]);
    let mut open = Vec::new();
    for nth in 0..200 {
        let mut client = Client::connect(shop.customer, Framing::Lines);
        assert_eq!(code(client.call_dialect2("VALIDATE", json!({"sid": "none"}))), "SESSION_EXPIRED", "{nth}");
        open.push(client);
    }
}

/// Document 001's third scenario at the database itself, in a process whose other ports have their share of the
/// connections: each client tries to log in, creates the account when refused, and tries again.
#[test]
fn a_hundred_buyers_and_a_hundred_sellers_at_once_are_all_let_in() {
    let shop = Shop::in_one_process(&[]);
    // The server lets nobody wait for a password for more than 5 s. On a busy machine, where 200 take longer, a retry
    // succeeds.
    let alone = Instant::now();
    Client::connect(shop.customer, Framing::Lines)
        .call_dialect2("LOGIN", json!({"role": "buyer", "user": "nobody", "pwd": "pass"}))
        .unwrap_err();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let is_slow = alone.elapsed() * 200 / cores > Duration::from_secs(3);
    let all_here = std::sync::Barrier::new(200);
    let get_in = &|role: &str| {
        let who = || json!({"role": role, "user": format!("{role}1"), "pwd": "pass"});
        all_here.wait();
        let mut client = Client::connect(shop.customer, Framing::Lines);
        if let Ok(answer) = client.call_dialect2("LOGIN", who()) {
            return answer["sid"].clone();
        }
        // Only one of a hundred creates the account; the others are told that the name is taken.
        drop(client.call_dialect2("CREATE", who()));
        let login = |client: &mut Client| client.call_dialect2("LOGIN", who());
        let answer = if is_slow {
            eventually("a password to have its turn", || {
                drop(client.call_dialect2("CREATE", who()));
                login(&mut client).ok()
            })
        } else {
            login(&mut client).unwrap_or_else(|refused| panic!("{role}: {refused:?}"))
        };
        answer["sid"].clone()
    };
    let sessions: std::collections::HashSet<String> = std::thread::scope(|scope| {
        let come = |nth: usize| scope.spawn(move || get_in(if nth.is_multiple_of(2) { "buyer" } else { "seller" }));
        let coming: Vec<_> = (0..200).map(come).collect();
        coming.into_iter().map(|one| one.join().unwrap().as_str().unwrap().to_owned()).collect()
    });
    assert_eq!(sessions.len(), 200);
}
