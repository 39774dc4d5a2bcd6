//! What is refused, with which code, and what the message names.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::shop::*;
use crate::support::eventually;

fn names(answer: Answer, expected: &str, field: &str) {
    let refused = answer.unwrap_err();
    assert_eq!(refused.code, expected, "{}", refused.message);
    assert!(refused.message.contains(field), "{} does not name {field}", refused.message);
}

#[test]
fn every_limit_of_an_item_names_its_field() {
    let shop = Shop::one(&[]);
    let mut seller = Client::joined(shop.seller, Framing::Lines, "s");
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
        let answer = seller.api("RegisterItemForSale", with(lamp(1.0, 1), serde_json::Value::Object(fields)));
        names(answer, "BAD_REQUEST", field);
    }
    // At the limit it is taken, in any case of the condition, with the price as text.
    let widest = json!({
        "item_name": "ä".repeat(32), "keywords": ["12345678", "a", "b", "c", "d"], "condition": "nEw",
        "price": "10000000.00", "quantity": 2_147_483_647, "category": 2_147_483_647,
    });
    seller.api("RegisterItemForSale", with(lamp(1.0, 1), widest)).unwrap();
    let own = seller.api("DisplayItemsForSale", json!({})).unwrap();
    assert_eq!(own["items"].as_array().unwrap().len(), 1, "nothing refused was kept");

    names(seller.flat("ADD_ITEM", json!({"name": "x"})), "BAD_REQUEST", "category");
    let flat = json!({"name": "x", "category": 1, "keywords": [], "condition": "New", "price": 1, "qty": -1});
    names(seller.flat("ADD_ITEM", flat), "BAD_REQUEST", "qty");
    names(seller.flat("UPDATE_QTY", json!({"item": "1-1"})), "BAD_REQUEST", "delta");
}

#[test]
fn accounts_and_calls_are_refused_for_what_they_are() {
    let shop = Shop::one(&[]);
    let mut buyer = Client::joined(shop.buyer, Framing::Lengths, "b");
    let mut seller = Client::joined(shop.seller, Framing::Lengths, "s");
    let mut other = Client::joined(shop.seller, Framing::Lengths, "t");
    assert_eq!(code(buyer.api("CreateAccount", json!({"username": "b", "password": "x"}))), "USERNAME_TAKEN");
    names(buyer.api("CreateAccount", json!({"username": "", "password": "x"})), "BAD_REQUEST", "username");
    names(buyer.api("CreateAccount", json!({"username": "c"})), "BAD_REQUEST", "password");
    let long = json!({"username": "c", "password": "x".repeat(257)});
    names(buyer.api("CreateAccount", long), "BAD_REQUEST", "password");
    assert_eq!(code(buyer.api("Login", json!({"username": "b", "password": "wrong"}))), "BAD_CREDENTIALS");
    assert_eq!(code(buyer.api("Login", json!({"username": "nobody", "password": "x"}))), "BAD_CREDENTIALS");
    assert_eq!(code(buyer.api("Teleport", json!({}))), "UNKNOWN_API");
    assert_eq!(code(buyer.flat("TELEPORT", json!({}))), "UNKNOWN_API");

    assert_eq!(code(buyer.api("RegisterItemForSale", lamp(5.0, 2))), "FORBIDDEN", "the other role's");
    assert_eq!(code(seller.flat("ADD_CART", json!({"item": "3-1", "qty": 1}))), "FORBIDDEN", "the other role's");

    let item = seller.api("RegisterItemForSale", lamp(5.0, 2)).unwrap()["item_id"].clone();
    for call in ["GetItem", "ChangeItemPrice", "UpdateUnitsForSale"] {
        let payload = json!({"item_id": item, "price": 1, "quantity": 1});
        assert_eq!(code(other.api(call, payload.clone())), "FORBIDDEN", "{call}: another seller's item");
        let unknown = with(payload, json!({"item_id": "3-999999"}));
        assert_eq!(code(seller.api(call, unknown)), "NOT_FOUND", "{call}");
    }
    let too_many = json!({"item_id": item, "quantity": -3});
    assert_eq!(code(seller.api("UpdateUnitsForSale", too_many)), "OUT_OF_STOCK");
    assert_eq!(seller.api("GetItem", json!({"item_id": item})).unwrap()["quantity"], 2);

    names(buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 0})), "BAD_REQUEST", "quantity");
    assert_eq!(code(buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 3}))), "OUT_OF_STOCK");
    assert_eq!(code(buyer.api("AddItemToCart", json!({"item_id": "9-9", "quantity": 1}))), "NOT_FOUND");
    assert_eq!(code(buyer.api("RemoveItemFromCart", json!({"item_id": item}))), "NOT_FOUND");
    assert_eq!(code(buyer.api("MakePurchase", json!({"card": card(GOOD_CARD)}))), "EMPTY_CART");
    assert_eq!(code(buyer.api("GetSellerRating", json!({"seller_id": 999_999}))), "NOT_FOUND");
    names(buyer.api("ProvideFeedback", json!({"item_id": item})), "BAD_REQUEST", "thumbs_up");
    names(buyer.flat("FEEDBACK", json!({"item": item, "vote": "maybe"})), "BAD_REQUEST", "vote");
    let six = json!({"keywords": ["a", "b", "c", "d", "e", "f"]});
    names(buyer.api("SearchItemsForSale", six), "BAD_REQUEST", "keywords");
    names(buyer.api("SearchItemsForSale", json!({"limit": 501})), "BAD_REQUEST", "limit");
    let order = json!({"purchase_id": "none", "item_id": item});
    assert_eq!(code(seller.api("MarkShipped", order)), "NOT_FOUND");
}

#[test]
fn what_a_database_finds_is_told_by_the_names_of_the_dialect_that_asks() {
    let shop = Shop::four(&[], &[]);
    let mut seller = Client::joined(shop.seller, Framing::Lines, "s");
    let mut other = Client::joined(shop.seller, Framing::Lines, "t");
    let mut buyer = Client::joined(shop.buyer, Framing::Lines, "b");
    let item = seller.api("RegisterItemForSale", lamp(5.0, 2)).unwrap()["item_id"].clone();
    let starts = |answer: Answer, expected: &str, field: &str| {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code, expected, "{}", refused.message);
        assert!(refused.message.starts_with(&format!("{field}: ")), "{} for {field}", refused.message);
    };
    starts(seller.flat("UPDATE_QTY", json!({"item": item, "delta": -3})), "OUT_OF_STOCK", "delta");
    starts(seller.flat("UPDATE_QTY", json!({"item": item, "delta": 2_147_483_647})), "BAD_REQUEST", "delta");
    starts(seller.api("UpdateUnitsForSale", json!({"item_id": item, "quantity": -3})), "OUT_OF_STOCK", "quantity");
    starts(seller.flat("UPDATE_PRICE", json!({"item": "3-99", "price": 1})), "NOT_FOUND", "item");
    starts(other.flat("UPDATE_PRICE", json!({"item": item, "price": 1})), "FORBIDDEN", "item");
    starts(buyer.flat("ADD_CART", json!({"item": item, "qty": 3})), "OUT_OF_STOCK", "item");
    starts(buyer.flat("REMOVE_CART", json!({"item": item})), "NOT_FOUND", "item");
    starts(buyer.api("RemoveItemFromCart", json!({"item_id": item})), "NOT_FOUND", "item_id");
    starts(buyer.flat("GET_ITEM", json!({"item": "3-99"})), "NOT_FOUND", "item");
    starts(buyer.flat("FEEDBACK", json!({"item": "3-99", "vote": "up"})), "NOT_FOUND", "item");
    let account = json!({"role": "buyer", "user": "b", "pwd": "secret"});
    starts(buyer.flat("CREATE", account.clone()), "USERNAME_TAKEN", "user");
    starts(Client::connect(shop.customer, Framing::Lines).flat("CREATE", account), "USERNAME_TAKEN", "user");
    starts(
        Client::connect(shop.customer, Framing::Lines).flat("VALIDATE", json!({"sid": "x"})),
        "SESSION_EXPIRED",
        "sid",
    );
    buyer.sid = seller.sid.clone();
    starts(buyer.flat("GET_CART", json!({})), "FORBIDDEN", "sid");
    buyer.sid = Some("x".to_owned());
    starts(buyer.flat("GET_CART", json!({})), "SESSION_EXPIRED", "sid");
    starts(buyer.api("DisplayCart", json!({})), "SESSION_EXPIRED", "session_id");
}

#[test]
fn what_is_no_message_is_answered_and_what_never_ends_is_closed() {
    let shop = Shop::one(&[]);
    // No JSON at all: dialect 2's error, and the connection goes on.
    let mut client = Client::connect(shop.buyer, Framing::Lines);
    client.send_raw(b"{not json}\n").unwrap();
    let answer = client.receive().unwrap().unwrap();
    assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("BAD_REQUEST")));
    assert_eq!(code(client.flat("GET_CART", json!({}))), "NOT_LOGGED_IN");
    // Nor is what is no text, wherever in it that is.
    for framing in FRAMINGS {
        let mut client = Client::connect(shop.buyer, framing);
        for garbled in [&b"{\"type\":\"GET_CART\",\"sid\":\"\xff\"}"[..], b"{\"type\":\"GET_CART\",\"note\":\"\xc3\"}"]
        {
            client.send_bytes(garbled).unwrap();
            let answer = client.receive().unwrap().unwrap();
            assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("BAD_REQUEST")));
            assert!(answer["error"]["message"].as_str().unwrap().contains("UTF-8"), "{answer}");
        }
        assert_eq!(code(client.flat("GET_CART", json!({}))), "NOT_LOGGED_IN", "{framing:?}: the connection goes on");
    }

    let mut client = Client::connect(shop.buyer, Framing::Lines);
    let mut long = format!(r#"{{"type":"request","api":"{}"#, "x".repeat(2 << 20)).into_bytes();
    long.push(b'\n');
    // The server may close before all of it was taken.
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
    assert_eq!(code(Client::connect(shop.buyer, Framing::Lines).api("DisplayCart", json!({}))), "NOT_LOGGED_IN");
}

#[test]
fn strangers_cannot_take_the_databases_from_the_frontends() {
    let mut shop = Shop::four(&["--max-connections", "64"], &["--max-connections", "64"]);
    let buyer = Client::joined(shop.buyer, Framing::Lines, "b");
    let stranger = |addr| {
        let mut client = Client::connect(addr, Framing::Lines);
        let code = code(client.flat("VALIDATE", json!({"sid": "none"})));
        (client, code)
    };
    let mut open = Vec::new();
    for (addr, told) in [(shop.customer, "SESSION_EXPIRED"), (shop.product, "FORBIDDEN")] {
        for _ in 0..32 {
            let (client, code) = stranger(addr);
            assert_eq!(code, told);
            open.push(client);
        }
        assert_eq!(stranger(addr).1, "BUSY");
        // Those who say nothing are closed when others come.
        open.extend((0..100).map(|_| Client::connect(addr, Framing::Lines)));
    }
    // A frontend that comes anew finds its way in.
    shop.parts[BUYER].kill_and_restart();
    let mut again = Client::connect(shop.buyer, Framing::Lines);
    again.sid = buyer.sid.clone();
    for _ in 0..5 {
        assert_eq!(again.api("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
        assert_eq!(again.api("SearchItemsForSale", json!({"keywords": ["x"]})).unwrap()["total"], 0);
    }
    drop(open);
    // Room for strangers is back.
    crate::support::eventually("room", || (stranger(shop.customer).1 == "SESSION_EXPIRED").then_some(()));
}

/// However long passwords take: as many as document 001 has, all from this machine, hold a place each.
#[test]
fn two_hundred_from_this_machine_find_room_at_the_customer_database() {
    let shop = Shop::one(&[]);
    let mut open = Vec::new();
    for nth in 0..200 {
        let mut client = Client::connect(shop.customer, Framing::Lines);
        assert_eq!(code(client.flat("VALIDATE", json!({"sid": "none"}))), "SESSION_EXPIRED", "{nth}");
        open.push(client);
    }
}

/// Document 001's third scenario, at the database itself, in a process whose other ports have their share of the
/// connections: each tries to log in, makes the account when refused, and tries again.
#[test]
fn a_hundred_buyers_and_a_hundred_sellers_at_once_are_all_let_in() {
    let shop = Shop::one(&[]);
    // Nobody waits for a password for more than 5 s. A machine on which 200 take longer (it does much else
    // meanwhile) lets in whoever asks again.
    let alone = Instant::now();
    Client::connect(shop.customer, Framing::Lines)
        .flat("LOGIN", json!({"role": "buyer", "user": "nobody", "pwd": "pass"}))
        .unwrap_err();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let is_slow = alone.elapsed() * 200 / cores > Duration::from_secs(3);
    let all_here = std::sync::Barrier::new(200);
    let get_in = &|role: &str| {
        let who = || json!({"role": role, "user": format!("{role}1"), "pwd": "pass"});
        all_here.wait();
        let mut client = Client::connect(shop.customer, Framing::Lines);
        if let Ok(answer) = client.flat("LOGIN", who()) {
            return answer["sid"].clone();
        }
        // Only one of a hundred makes it; the others hear that it is there.
        drop(client.flat("CREATE", who()));
        let login = |client: &mut Client| client.flat("LOGIN", who());
        let answer = if is_slow {
            eventually("a password to have its turn", || {
                drop(client.flat("CREATE", who()));
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
