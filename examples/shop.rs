//! A seller puts an item on sale, and a buyer finds it and takes it into the cart.
//!
//! With `make run-server` running: `cargo run --example shop` (or with the addresses of the buyers' and the
//! sellers' frontend).

use p2s2::clients::shop::{Client, ClientConfig};
use p2s2::values::Token;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let buyers = args.next().unwrap_or_else(|| "127.0.0.1:8002".to_owned());
    let sellers = args.next().unwrap_or_else(|| "127.0.0.1:8001".to_owned());
    // Names that nobody has yet, so that the example can be run again.
    let random = &Token::random().reveal()[..8].to_owned();

    let seller = format!("seller-{random}");
    let mut client = Client::new(ClientConfig::plain(sellers));
    client.call("CreateAccount", json!({"username": seller, "password": "a secret", "seller_name": seller}))?;
    client.login(&seller, "a secret")?;
    let item = json!({
        "item_name": "Desk lamp", "category": 3, "keywords": ["lamp", random], "condition": "New", "price": 24.9,
        "quantity": 2,
    });
    let registered = client.call("RegisterItemForSale", item)?;
    println!("{seller} sells {}", registered["item_id"]);

    let buyer = format!("buyer-{random}");
    let mut client = Client::new(ClientConfig::plain(buyers));
    client.call("CreateAccount", json!({"username": buyer, "password": "a secret", "buyer_name": buyer}))?;
    client.login(&buyer, "a secret")?;
    let found = client.call("SearchItemsForSale", json!({"keywords": [random]}))?;
    let item = &found["items"][0];
    println!("{buyer} finds {} for {}", item["item_name"], item["price"]);
    client.call("AddItemToCart", json!({"item_id": item["item_id"], "quantity": 1}))?;
    println!("in the cart: {}", client.call("DisplayCart", json!({}))?["cart"]);
    Ok(client.logout()?)
}
