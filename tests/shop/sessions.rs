//! Sessions: how long, for whom, and what survives.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::shop::*;
use crate::support::eventually;

#[test]
fn a_session_lasts_while_it_is_used_and_ends_after_the_timeout() {
    let timeout = Duration::from_secs(3);
    let shop = Shop::four(&[], &["--session-timeout", "3s"]);
    let mut used = Client::joined(shop.buyer, Framing::Lines, "used");
    let mut idle = Client::joined(shop.buyer, Framing::Lines, "idle");
    let began = Instant::now();
    // Used again and again, past the timeout.
    eventually("twice the timeout", || {
        used.api("DisplayCart", json!({})).unwrap();
        (began.elapsed() > 2 * timeout).then_some(())
    });
    assert_eq!(code(idle.api("DisplayCart", json!({}))), "SESSION_EXPIRED");
    let unused_since = Instant::now();
    // VALIDATE shows it and does not count as a use.
    let mut asker = Client::connect(shop.customer, Framing::Lines);
    let sid = json!({"sid": used.sid});
    let ended_after = eventually("the session to end", || {
        asker.flat("VALIDATE", sid.clone()).is_err().then(|| unused_since.elapsed())
    });
    assert!(ended_after >= timeout - Duration::from_millis(200), "it ended after {ended_after:?}");
}

#[test]
fn sessions_are_of_one_role_and_end_one_by_one() {
    let shop = Shop::one(&[]);
    let mut here = Client::joined(shop.buyer, Framing::Lines, "b");
    let mut there = Client::connect(shop.buyer, Framing::Lengths);
    there.log_in("b");
    assert_ne!(here.sid, there.sid);
    let mut seller = Client::joined(shop.seller, Framing::Lines, "b");
    // The other role's port, with a session of this one.
    let mut crossed = Client::connect(shop.seller, Framing::Lines);
    crossed.sid = here.sid.clone();
    assert_eq!(code(crossed.api("DisplayItemsForSale", json!({}))), "FORBIDDEN");
    let mut crossed = Client::connect(shop.buyer, Framing::Lines);
    crossed.sid = seller.sid.clone();
    assert_eq!(code(crossed.api("DisplayCart", json!({}))), "FORBIDDEN");
    assert_eq!(code(crossed.flat("GET_CART", json!({}))), "FORBIDDEN");

    here.api("Logout", json!({})).unwrap();
    assert_eq!(code(here.api("Logout", json!({}))), "SESSION_EXPIRED");
    there.api("DisplayCart", json!({})).unwrap();
    seller.api("DisplayItemsForSale", json!({})).unwrap();
    let mut nobody = Client::connect(shop.buyer, Framing::Lines);
    assert_eq!(code(nobody.api("DisplayCart", json!({}))), "NOT_LOGGED_IN");
    nobody.sid = Some("0123456789abcdef0123456789abcdef".to_owned());
    assert_eq!(code(nobody.api("DisplayCart", json!({}))), "SESSION_EXPIRED");
}

#[test]
fn what_is_wrong_with_a_session_goes_before_what_is_wrong_with_the_fields() {
    let timeout = Duration::from_secs(3);
    let shop = Shop::four(&[], &["--session-timeout", "3s"]);
    let mut idle = Client::joined(shop.buyer, Framing::Lines, "idle");
    let mut used = Client::joined(shop.buyer, Framing::Lines, "used");
    let mut crossed = Client::joined(shop.seller, Framing::Lines, "s");
    let began = Instant::now();
    // Calls that are wrong use the session all the same.
    eventually("twice the timeout", || {
        assert_eq!(code(used.api("AddItemToCart", json!({"item_id": 5}))), "BAD_REQUEST");
        assert_eq!(code(used.flat("ADD_CART", json!({"item": "3-1", "qty": 0}))), "BAD_REQUEST");
        // So that this one is alive below.
        crossed.api("DisplayItemsForSale", json!({})).unwrap();
        (began.elapsed() > 2 * timeout).then_some(())
    });
    used.api("DisplayCart", json!({})).unwrap();
    let mut stranger = Client::connect(shop.buyer, Framing::Lengths);
    for (sid, expected) in [(&idle.sid, "SESSION_EXPIRED"), (&crossed.sid, "FORBIDDEN"), (&None, "NOT_LOGGED_IN")] {
        stranger.sid = sid.clone();
        assert_eq!(code(stranger.api("AddItemToCart", json!({"item_id": 5}))), expected);
        assert_eq!(code(stranger.api("MakePurchase", json!({"card": 5}))), expected);
        assert_eq!(code(stranger.flat("SEARCH", json!({"category": -1}))), expected);
        assert_eq!(code(stranger.api("Nonsense", json!({}))), "UNKNOWN_API");
        assert_eq!(code(stranger.flat("ADD_ITEM", json!({}))), "FORBIDDEN");
    }
    assert_eq!(code(idle.flat("GET_CART", json!({}))), "SESSION_EXPIRED");
}

#[test]
fn sessions_and_carts_outlive_every_component() {
    let mut shop = Shop::four(&[], &[]);
    let mut seller = Client::joined(shop.seller, Framing::Lines, "s");
    let item = seller.api("RegisterItemForSale", lamp(2.0, 9)).unwrap()["item_id"].clone();
    let mut buyer = Client::joined(shop.buyer, Framing::Lengths, "b");
    buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 4})).unwrap();
    for part in [PRODUCT, CUSTOMER, SELLER, BUYER] {
        shop.parts[part].kill_and_restart();
        // The frontend finds its way back by itself; a client connects again.
        let cart = eventually("the shop to be whole again", || {
            let mut again = Client::connect(shop.buyer, Framing::Lengths);
            again.sid = buyer.sid.clone();
            match again.api("DisplayCart", json!({})) {
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
    let mut shop = Shop::four(&[], &[]);
    let mut buyer = Client::joined(shop.buyer, Framing::Lines, "b");
    shop.parts[PRODUCT].kill();
    assert_eq!(code(buyer.api("SearchItemsForSale", json!({"keywords": ["x"]}))), "UNAVAILABLE");
    assert_eq!(buyer.api("DisplayCart", json!({})).unwrap(), json!({"cart": []}), "the other one is there");
    shop.parts[PRODUCT].kill_and_restart();
    eventually("the products to be back", || buyer.api("SearchItemsForSale", json!({"keywords": ["x"]})).ok());
    shop.parts[CUSTOMER].kill();
    assert_eq!(code(buyer.api("DisplayCart", json!({}))), "UNAVAILABLE");
    shop.parts[CUSTOMER].kill_and_restart();
    eventually("the customers to be back", || buyer.api("DisplayCart", json!({})).ok());
}

#[test]
fn passwords_cannot_be_tried_without_end() {
    let shop = Shop::one(&[]);
    let mut client = Client::joined(shop.buyer, Framing::Lines, "victim");
    let codes: Vec<String> = (0..11)
        .map(|nth| code(client.api("Login", json!({"username": "victim", "password": format!("guess {nth}")}))))
        .collect();
    assert!(codes[..10].iter().all(|code| code == "BAD_CREDENTIALS"), "{codes:?}");
    assert_eq!(codes[10], "BUSY");
    // Also with the right one, for a minute; others are not kept out.
    assert_eq!(code(client.api("Login", json!({"username": "victim", "password": "secret"}))), "BUSY");
    Client::joined(shop.buyer, Framing::Lines, "other");
}
