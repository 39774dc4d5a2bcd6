//! Sessions: their expiry, their owners, and what survives a restart.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::shop::*;
use crate::support::eventually;

#[test]
fn a_session_lasts_while_it_is_used_and_ends_after_the_timeout() {
    let timeout = Duration::from_secs(3);
    let shop = Shop::in_four_processes(&[], &["--session-timeout", "3s"]);
    let mut used = Client::sign_up(shop.buyer, Framing::Lines, "used");
    let mut idle = Client::sign_up(shop.buyer, Framing::Lines, "idle");
    let began = Instant::now();
    // Repeated uses extend it beyond the timeout.
    eventually("twice the timeout", || {
        used.call("DisplayCart", json!({})).unwrap();
        (began.elapsed() > 2 * timeout).then_some(())
    });
    assert_eq!(code(idle.call("DisplayCart", json!({}))), "SESSION_EXPIRED");
    let unused_since = Instant::now();
    // VALIDATE shows it and does not count as a use.
    let mut asker = Client::connect(shop.customer, Framing::Lines);
    let sid = json!({"sid": used.sid});
    let ended_after = eventually("the session to end", || {
        asker.call_dialect2("VALIDATE", sid.clone()).is_err().then(|| unused_since.elapsed())
    });
    assert!(ended_after >= timeout - Duration::from_millis(200), "it ended after {ended_after:?}");
}

#[test]
fn sessions_are_of_one_role_and_end_one_by_one() {
    let shop = Shop::in_one_process(&[]);
    let mut here = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let mut there = Client::connect(shop.buyer, Framing::Lengths);
    there.log_in("b");
    assert_ne!(here.sid, there.sid);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "b");
    // A session of this role on the other role's port.
    let mut crossed = Client::connect(shop.seller, Framing::Lines);
    crossed.sid = here.sid.clone();
    assert_eq!(code(crossed.call("DisplayItemsForSale", json!({}))), "FORBIDDEN");
    let mut crossed = Client::connect(shop.buyer, Framing::Lines);
    crossed.sid = seller.sid.clone();
    assert_eq!(code(crossed.call("DisplayCart", json!({}))), "FORBIDDEN");
    assert_eq!(code(crossed.call_dialect2("GET_CART", json!({}))), "FORBIDDEN");

    here.call("Logout", json!({})).unwrap();
    assert_eq!(code(here.call("Logout", json!({}))), "SESSION_EXPIRED");
    there.call("DisplayCart", json!({})).unwrap();
    seller.call("DisplayItemsForSale", json!({})).unwrap();
    let mut nobody = Client::connect(shop.buyer, Framing::Lines);
    assert_eq!(code(nobody.call("DisplayCart", json!({}))), "NOT_LOGGED_IN");
    nobody.sid = Some("0123456789abcdef0123456789abcdef".to_owned());
    assert_eq!(code(nobody.call("DisplayCart", json!({}))), "SESSION_EXPIRED");
}

#[test]
fn what_is_wrong_with_a_session_goes_before_what_is_wrong_with_the_fields() {
    let timeout = Duration::from_secs(3);
    let shop = Shop::in_four_processes(&[], &["--session-timeout", "3s"]);
    let mut idle = Client::sign_up(shop.buyer, Framing::Lines, "idle");
    let mut used = Client::sign_up(shop.buyer, Framing::Lines, "used");
    let mut crossed = Client::sign_up(shop.seller, Framing::Lines, "s");
    let began = Instant::now();
    // Invalid calls also count as a use of the session.
    eventually("twice the timeout", || {
        assert_eq!(code(used.call("AddItemToCart", json!({"item_id": 5}))), "BAD_REQUEST");
        assert_eq!(code(used.call_dialect2("ADD_CART", json!({"item": "3-1", "qty": 0}))), "BAD_REQUEST");
        // Keeps this session alive for the checks below.
        crossed.call("DisplayItemsForSale", json!({})).unwrap();
        (began.elapsed() > 2 * timeout).then_some(())
    });
    used.call("DisplayCart", json!({})).unwrap();
    let mut stranger = Client::connect(shop.buyer, Framing::Lengths);
    for (sid, expected) in [(&idle.sid, "SESSION_EXPIRED"), (&crossed.sid, "FORBIDDEN"), (&None, "NOT_LOGGED_IN")] {
        stranger.sid = sid.clone();
        assert_eq!(code(stranger.call("AddItemToCart", json!({"item_id": 5}))), expected);
        assert_eq!(code(stranger.call("MakePurchase", json!({"card": 5}))), expected);
        assert_eq!(code(stranger.call_dialect2("SEARCH", json!({"category": -1}))), expected);
        assert_eq!(code(stranger.call("Nonsense", json!({}))), "UNKNOWN_API");
        assert_eq!(code(stranger.call_dialect2("ADD_ITEM", json!({}))), "FORBIDDEN");
    }
    assert_eq!(code(idle.call_dialect2("GET_CART", json!({}))), "SESSION_EXPIRED");
}

#[test]
fn sessions_and_carts_outlive_every_component() {
    let mut shop = Shop::in_four_processes(&[], &[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let item = seller.call("RegisterItemForSale", lamp(2.0, 9)).unwrap()["item_id"].clone();
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lengths, "b");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 4})).unwrap();
    for part in [PRODUCT, CUSTOMER, SELLER, BUYER] {
        shop.components[part].kill_and_restart();
        // The frontend reconnects by itself; a client has to connect again.
        let cart = eventually("the shop to be whole again", || {
            let mut again = Client::connect(shop.buyer, Framing::Lengths);
            again.sid = buyer.sid.clone();
            match again.call("DisplayCart", json!({})) {
                Ok(cart) => Some(cart),
                Err(refused) if refused.code == "UNAVAILABLE" => None,
                Err(refused) => panic!("{refused:?}"),
            }
        });
        assert_eq!(cart, json!({"cart": [{"item_id": item, "quantity": 4}]}), "after part {part}");
    }
}

#[test]
fn a_backend_that_is_away_is_unavailable_until_it_is_back() {
    let mut shop = Shop::in_four_processes(&[], &[]);
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    shop.components[PRODUCT].kill();
    assert_eq!(code(buyer.call("SearchItemsForSale", json!({"keywords": ["x"]}))), "UNAVAILABLE");
    assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}), "the other one is there");
    shop.components[PRODUCT].kill_and_restart();
    eventually("the products to be back", || buyer.call("SearchItemsForSale", json!({"keywords": ["x"]})).ok());
    shop.components[CUSTOMER].kill();
    assert_eq!(code(buyer.call("DisplayCart", json!({}))), "UNAVAILABLE");
    shop.components[CUSTOMER].kill_and_restart();
    eventually("the customers to be back", || buyer.call("DisplayCart", json!({})).ok());
}

#[test]
fn passwords_cannot_be_tried_without_end() {
    let shop = Shop::in_one_process(&[]);
    let mut client = Client::sign_up(shop.buyer, Framing::Lines, "victim");
    let codes: Vec<String> = (0..11)
        .map(|nth| code(client.call("Login", json!({"username": "victim", "password": format!("guess {nth}")}))))
        .collect();
    assert!(codes[..10].iter().all(|code| code == "BAD_CREDENTIALS"), "{codes:?}");
    assert_eq!(codes[10], "BUSY");
    // Even the right password is refused for a minute; other users can log in.
    assert_eq!(code(client.call("Login", json!({"username": "victim", "password": "secret"}))), "BUSY");
    Client::sign_up(shop.buyer, Framing::Lines, "other");
}
