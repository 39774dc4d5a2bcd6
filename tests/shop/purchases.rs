//! Purchases are atomic and happen once.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::shop::*;
use crate::support::{eventually, program};

fn stock(shop: &Shop, item: &Value, sid: &Option<String>) -> Value {
    let mut seller = Client::connect(shop.seller, Framing::Lines);
    seller.sid = sid.clone();
    seller.call("GetItem", json!({"item_id": item})).unwrap()["quantity"].clone()
}

#[test]
fn a_card_that_is_refused_leaves_everything_as_it_was() {
    let shop = Shop::in_one_process(&[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let item = seller.call("RegisterItemForSale", lamp(3.0, 10)).unwrap()["item_id"].clone();
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 4})).unwrap();
    let expired = merge(card(GOOD_CARD), json!({"exp": "01/20"}));
    for (card, expected) in [
        (card(DECLINED_CARD), "PAYMENT_DECLINED"),
        (card("4111111111111112"), "PAYMENT_DECLINED"),
        (expired, "PAYMENT_DECLINED"),
        (card("4111"), "BAD_REQUEST"),
        (json!({"number": GOOD_CARD}), "BAD_REQUEST"),
        (merge(card(GOOD_CARD), json!({"exp": "13/30"})), "BAD_REQUEST"),
        (Value::Null, "BAD_REQUEST"),
    ] {
        assert_eq!(code(buyer.call("MakePurchase", json!({"card": card}))), expected, "{card}");
        // The stock is back before the response, and the cart is unchanged.
        assert_eq!(stock(&shop, &item, &seller.sid), 10);
        assert_eq!(buyer.call("DisplayCart", json!({})).unwrap()["cart"][0]["quantity"], 4);
    }
    // The card may also be given as flat fields.
    let flat = json!({"card_number": GOOD_CARD, "expiration_date": "12/79", "name": "B"});
    assert_eq!(buyer.call("MakePurchase", flat).unwrap()["total"], 12.0);
    assert_eq!(stock(&shop, &item, &seller.sid), 6);
}

#[test]
fn a_purchase_is_all_or_nothing_at_the_price_of_the_moment() {
    let shop = Shop::in_four_processes(&[], &[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let [one, two] = [(3.0, 10), (5.0, 2)]
        .map(|(price, units)| seller.call("RegisterItemForSale", lamp(price, units)).unwrap()["item_id"].clone());
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    for item in [&one, &two] {
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 2})).unwrap();
    }
    seller.call("UpdateUnitsForSale", json!({"item_id": two, "quantity": -1})).unwrap();
    let refused = buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)})).unwrap_err();
    assert_eq!(refused.code, "OUT_OF_STOCK");
    assert!(refused.message.contains(two.as_str().unwrap()), "{}", refused.message);
    assert_eq!((stock(&shop, &one, &seller.sid), stock(&shop, &two, &seller.sid)), (json!(10), json!(1)));
    seller.call("UpdateUnitsForSale", json!({"item_id": two, "quantity": 1})).unwrap();
    seller.call("ChangeItemPrice", json!({"item_id": one, "price": 4})).unwrap();
    let bought = buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)})).unwrap();
    assert_eq!(bought["total"], 18.0);
    assert_eq!((stock(&shop, &one, &seller.sid), stock(&shop, &two, &seller.sid)), (json!(8), json!(0)));
}

#[test]
fn a_key_answers_the_same_again_and_never_charges_twice() {
    let shop = Shop::in_one_process(&[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let item = seller.call("RegisterItemForSale", lamp(3.0, 10)).unwrap()["item_id"].clone();
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    let put = json!({"item_id": item, "quantity": 2});
    buyer.call("AddItemToCart", put.clone()).unwrap();
    let call = |number: &str| json!({"card": card(number), "address": "1 Elm Street", "idempotency_key": "k-1"});
    assert_eq!(code(buyer.call("MakePurchase", call(DECLINED_CARD))), "PAYMENT_DECLINED");
    let first = buyer.call("MakePurchase", call(GOOD_CARD)).unwrap();
    // A failed attempt has left the key unused; now it is bound to a purchase.
    assert_eq!(buyer.call("MakePurchase", call(GOOD_CARD)).unwrap(), first);
    let elsewhere = merge(call(GOOD_CARD), json!({"address": "2 Oak Street"}));
    assert_eq!(code(buyer.call("MakePurchase", elsewhere)), "BAD_REQUEST");
    buyer.call("AddItemToCart", put).unwrap();
    assert_eq!(buyer.call("MakePurchase", call(GOOD_CARD)).unwrap(), first, "the cart is as it was then");
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
    assert_eq!(code(buyer.call("MakePurchase", call(GOOD_CARD))), "BAD_REQUEST", "another cart");
    assert_eq!(stock(&shop, &item, &seller.sid), 8);
    let history = buyer.call("GetBuyerPurchases", json!({})).unwrap()["items"].clone();
    assert_eq!(history.as_array().unwrap().len(), 1);

    // Many concurrent purchases of the same cart without a key: it is bought once.
    buyer.call("ClearCart", json!({})).unwrap();
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
    let outcomes: Vec<CallResult> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(shop.buyer, Framing::Lines);
                    client.sid = buyer.sid.clone();
                    client.call("MakePurchase", json!({"card": card(GOOD_CARD)}))
                })
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert_eq!(stock(&shop, &item, &seller.sid), 7);
}

#[test]
fn a_hundred_buyers_after_the_last_ten_units() {
    let shop = Shop::in_four_processes(&[], &[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    let item = seller.call("RegisterItemForSale", lamp(7.0, 10)).unwrap()["item_id"].clone();
    let mut buyers: Vec<Client> = (0..100)
        .map(|nth| {
            let mut buyer = Client::sign_up(shop.buyer, FRAMINGS[nth % 2], &format!("b{nth}"));
            buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
            buyer
        })
        .collect();
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let asks: Vec<_> = buyers
            .iter_mut()
            .map(|buyer| {
                scope.spawn(|| match buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)})) {
                    Ok(_) => "bought".to_owned(),
                    Err(refused) => refused.code,
                })
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    let mut counts = HashMap::new();
    outcomes.iter().for_each(|outcome| *counts.entry(outcome.as_str()).or_insert(0) += 1);
    assert_eq!(counts, HashMap::from([("bought", 10), ("OUT_OF_STOCK", 90)]));
    assert_eq!(stock(&shop, &item, &seller.sid), 0);
    let orders = seller.call("GetSellerOrders", json!({})).unwrap()["items"].clone();
    assert_eq!(orders.as_array().unwrap().len(), 10);
}

#[test]
fn the_largest_totals_are_exact_to_the_cent_everywhere() {
    let shop = Shop::in_one_process(&[]);
    let mut seller = Client::sign_up(shop.seller, Framing::Lines, "s");
    const UNITS: u64 = 2_147_483_647;
    let mut sell = |price: &str, units: u64| {
        let item = merge(lamp(1.0, 1), json!({"price": price, "quantity": units}));
        seller.call("RegisterItemForSale", item).unwrap()["item_id"].clone()
    };
    // Of each of the first four 21,474,836,448,525,163.53 (less than 2^63 cents together), then one too much.
    let items: Vec<Value> = (0..5).map(|_| sell("9999999.99", UNITS)).collect();
    let mut buyer = Client::sign_up(shop.buyer, Framing::Lines, "b");
    for item in &items {
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": UNITS})).unwrap();
    }
    let refused = buyer.call("MakePurchase", json!({"card": card(GOOD_CARD)})).unwrap_err();
    assert_eq!(refused.code, "BAD_REQUEST");
    assert!(refused.message.contains("92233720368547758.07"), "{}", refused.message);
    buyer.call("RemoveItemFromCart", json!({"item_id": items[4]})).unwrap();
    let ask = |client: &mut Client, api: &str, payload: Value| {
        let request = json!({"type": "request", "api": api, "session_id": client.sid, "payload": payload});
        client.send(&request).unwrap();
        client.receive_text().unwrap().unwrap()
    };
    let bought = ask(&mut buyer, "MakePurchase", json!({"card": card(GOOD_CARD)}));
    assert!(bought.contains(r#""total":85899345794100654.12"#), "{bought}");
    // Ten percent of a line is 2147483644852516.353, rounded to a cent.
    let orders = ask(&mut seller, "GetSellerOrders", json!({}));
    assert_eq!(orders.matches(r#""payout":19327352803672647.18"#).count(), 4, "{orders}");
    // In dialect 2 as well, and once more, so that the accounts exceed 64 bits.
    seller.call("UpdateUnitsForSale", json!({"item_id": items[4], "quantity": -1})).unwrap();
    for item in &items[..4] {
        seller.call("UpdateUnitsForSale", json!({"item_id": item, "quantity": UNITS})).unwrap();
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": UNITS})).unwrap();
    }
    // Dialect 2 takes it from the saved cart.
    buyer.call("SaveCart", json!({})).unwrap();
    buyer.send(&json!({"type": "PURCHASE", "sid": buyer.sid, "card": card(GOOD_CARD)})).unwrap();
    let bought = buyer.receive_text().unwrap().unwrap();
    assert!(bought.contains(r#""total":85899345794100654.12"#), "{bought}");

    let state = shop.dir.path().join("state");
    let admin = |arguments: &[&str]| {
        let output = program("admin").arg("ledger").arg("--data-dir").arg(&state).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let captured = eventually("both to be captured", || {
        let text = admin(&["--json"]);
        text.contains(r#"{"account":"escrow","balance":0}"#).then_some(text)
    });
    for line in [
        r#"{"account":"card:b","balance":-171798691588201308.24}"#,
        r#"{"account":"fee","balance":17179869158820130.8}"#,
        r#"{"account":"payout:s","balance":154618822429381177.44}"#,
        r#""account":"card:b","amount":-85899345794100654.12}"#,
        r#"{"sum":0}"#,
    ] {
        assert!(captured.contains(line), "{line} is missing: {captured}");
    }
    let text = admin(&[]);
    for expected in ["-171798691588201308.24", "154618822429381177.44", "sum: 0.00"] {
        assert!(text.contains(expected), "{expected} is missing: {text}");
    }
}
