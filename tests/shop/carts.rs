//! What a cart holds, for how long, and for whom.

use serde_json::{Value, json};

use crate::shop::*;
use crate::support::eventually;

fn cart(client: &mut Client) -> Value {
    client.api("DisplayCart", json!({})).unwrap()["cart"].clone()
}

fn item(shop: &Shop, seller: &str) -> Value {
    let mut seller = Client::joined(shop.seller, Framing::Lines, seller);
    seller.api("RegisterItemForSale", lamp(3.0, 100)).unwrap()["item_id"].clone()
}

#[test]
fn an_unsaved_cart_goes_with_its_session_and_a_saved_one_comes_back() {
    let shop = Shop::one(&[]);
    let item = item(&shop, "s");
    let mut buyer = Client::joined(shop.buyer, Framing::Lines, "b");
    buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    buyer.api("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([]));
    buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    buyer.api("SaveCart", json!({})).unwrap();
    buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
    buyer.api("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 2}]), "as it was saved");
    // More than the cart holds takes all of it.
    let left = buyer.api("RemoveItemFromCart", json!({"item_id": item, "quantity": 50})).unwrap();
    assert_eq!(left["quantity"], 0);
    assert_eq!(cart(&mut buyer), json!([]));
}

#[test]
fn a_session_that_ends_by_itself_drops_its_cart_and_the_saved_one_comes_back() {
    let shop = Shop::one(&["--session-timeout", "2s"]);
    let item = item(&shop, "s");
    let mut asker = Client::connect(shop.customer, Framing::Lines);
    for saves in [true, false] {
        let name = if saves { "saves" } else { "forgets" };
        let mut buyer = Client::joined(shop.buyer, Framing::Lines, name);
        buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
        if saves {
            buyer.api("SaveCart", json!({})).unwrap();
        }
        buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
        assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 7}]));
        let sid = json!({"sid": buyer.sid});
        // Which is no use of it.
        eventually("the session to end", || asker.flat("VALIDATE", sid.clone()).is_err().then_some(()));
        assert_eq!(code(buyer.api("DisplayCart", json!({}))), "SESSION_EXPIRED");
        buyer.log_in(name);
        let expected = if saves { json!([{"item_id": item, "quantity": 2}]) } else { json!([]) };
        assert_eq!(cart(&mut buyer), expected, "{name}");
    }
}

#[test]
fn two_sessions_have_two_carts_and_the_last_saved_wins() {
    let shop = Shop::one(&[]);
    let item = item(&shop, "s");
    let mut one = Client::joined(shop.buyer, Framing::Lines, "b");
    let mut two = Client::connect(shop.buyer, Framing::Lines);
    two.log_in("b");
    one.api("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
    two.api("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    assert_eq!(cart(&mut one), json!([{"item_id": item, "quantity": 1}]));
    assert_eq!(cart(&mut two), json!([{"item_id": item, "quantity": 2}]));
    two.api("SaveCart", json!({})).unwrap();
    one.api("SaveCart", json!({})).unwrap();
    let mut three = Client::connect(shop.buyer, Framing::Lines);
    three.log_in("b");
    assert_eq!(cart(&mut three), json!([{"item_id": item, "quantity": 1}]));
}

#[test]
fn in_dialect_2_the_cart_is_the_users() {
    let shop = Shop::one(&[]);
    let item = item(&shop, "s");
    let id = item.as_str().unwrap();
    let mut one = Client::joined(shop.buyer, Framing::Lines, "b");
    let mut two = Client::connect(shop.buyer, Framing::Lengths);
    two.log_in("b");
    one.flat("ADD_CART", json!({"item": item, "qty": 2})).unwrap();
    two.flat("ADD_CART", json!({"item": item, "qty": 3})).unwrap();
    assert_eq!(one.flat("GET_CART", json!({})).unwrap()["cart"][id], 5);
    one.flat("LOGOUT", json!({})).unwrap();
    one.log_in("b");
    assert_eq!(one.flat("GET_CART", json!({})).unwrap()["cart"][id], 5);
    two.flat("PURCHASE", json!({"card": card(GOOD_CARD)})).unwrap();
    assert_eq!(one.flat("GET_CART", json!({})).unwrap()["cart"], json!({}), "what was bought is out of it");
}

#[test]
fn a_purchase_takes_what_it_bought_out_of_the_saved_cart() {
    let shop = Shop::one(&[]);
    let item = item(&shop, "s");
    let mut buyer = Client::joined(shop.buyer, Framing::Lines, "b");
    buyer.api("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
    buyer.api("SaveCart", json!({})).unwrap();
    buyer.api("RemoveItemFromCart", json!({"item_id": item, "quantity": 3})).unwrap();
    buyer.api("MakePurchase", json!({"card": card(GOOD_CARD)})).unwrap();
    assert_eq!(cart(&mut buyer), json!([]));
    buyer.api("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 3}]));
}
