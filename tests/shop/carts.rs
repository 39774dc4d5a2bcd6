//! Carts: their content, their lifetime, and their owners.

use serde_json::{Value, json};

use crate::shop::*;
use crate::support::eventually;

fn cart(client: &mut Client) -> Value {
    client.call("DisplayCart", json!({})).unwrap()["cart"].clone()
}

fn item(shop: &Shop, seller: &str) -> Value {
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, seller);
    seller.call("RegisterItemForSale", lamp(3.0, 100)).unwrap()["item_id"].clone()
}

#[test]
fn an_unsaved_cart_goes_with_its_session_and_a_saved_one_comes_back() {
    let shop = Shop::in_one_process(&[]);
    let item = item(&shop, "s");
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    buyer.call("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([]));
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    buyer.call("SaveCart", json!({})).unwrap();
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
    buyer.call("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 2}]), "as it was saved");
    // Removing more than the cart holds removes all of it.
    let left = buyer.call("RemoveItemFromCart", json!({"item_id": item, "quantity": 50})).unwrap();
    assert_eq!(left["quantity"], 0);
    assert_eq!(cart(&mut buyer), json!([]));
}

#[test]
fn a_session_that_ends_by_itself_drops_its_cart_and_the_saved_one_comes_back() {
    let shop = Shop::in_one_process(&["--session-timeout", "2s"]);
    let item = item(&shop, "s");
    let mut asker = Client::connect(shop.customer, Framing::Lines);
    for saves in [true, false] {
        let name = if saves { "saves" } else { "forgets" };
        let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, name);
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
        if saves {
            buyer.call("SaveCart", json!({})).unwrap();
        }
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
        assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 7}]));
        let sid = json!({"sid": buyer.sid});
        // This does not count as a use of the session.
        eventually("the session to end", || asker.call_dialect2("VALIDATE", sid.clone()).is_err().then_some(()));
        assert_eq!(code(buyer.call("DisplayCart", json!({}))), "SESSION_EXPIRED");
        buyer.log_in(name);
        let expected = if saves { json!([{"item_id": item, "quantity": 2}]) } else { json!([]) };
        assert_eq!(cart(&mut buyer), expected, "{name}");
    }
}

#[test]
fn two_sessions_have_two_carts_and_the_last_saved_wins() {
    let shop = Shop::in_one_process(&[]);
    let item = item(&shop, "s");
    let mut one = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let mut two = Client::connect(shop.buyer, Framing::Lines);
    two.log_in("b");
    one.call("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
    two.call("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    assert_eq!(cart(&mut one), json!([{"item_id": item, "quantity": 1}]));
    assert_eq!(cart(&mut two), json!([{"item_id": item, "quantity": 2}]));
    two.call("SaveCart", json!({})).unwrap();
    one.call("SaveCart", json!({})).unwrap();
    let mut three = Client::connect(shop.buyer, Framing::Lines);
    three.log_in("b");
    assert_eq!(cart(&mut three), json!([{"item_id": item, "quantity": 1}]));
}

#[test]
fn in_dialect_2_the_cart_is_the_users() {
    let shop = Shop::in_one_process(&[]);
    let item = item(&shop, "s");
    let id = item.as_str().unwrap();
    let mut one = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let mut two = Client::connect(shop.buyer, Framing::Lengths);
    two.log_in("b");
    one.call_dialect2("ADD_CART", json!({"item": item, "qty": 2})).unwrap();
    two.call_dialect2("ADD_CART", json!({"item": item, "qty": 3})).unwrap();
    assert_eq!(one.call_dialect2("GET_CART", json!({})).unwrap()["cart"][id], 5);
    one.call_dialect2("LOGOUT", json!({})).unwrap();
    one.log_in("b");
    assert_eq!(one.call_dialect2("GET_CART", json!({})).unwrap()["cart"][id], 5);
    two.call_dialect2("PURCHASE", json!({"card": card(GOOD_CARD)})).unwrap();
    assert_eq!(one.call_dialect2("GET_CART", json!({})).unwrap()["cart"], json!({}), "what was bought is out of it");
}

#[test]
fn a_purchase_takes_what_it_bought_out_of_the_saved_cart() {
    let shop = Shop::in_one_process(&[]);
    let item = item(&shop, "s");
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 5})).unwrap();
    buyer.call("SaveCart", json!({})).unwrap();
    buyer.call("RemoveItemFromCart", json!({"item_id": item, "quantity": 3})).unwrap();
    buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)})).unwrap();
    assert_eq!(cart(&mut buyer), json!([]));
    buyer.call("Logout", json!({})).unwrap();
    buyer.log_in("b");
    assert_eq!(cart(&mut buyer), json!([{"item_id": item, "quantity": 3}]));
}
