//! Every api of both dialects, in both framings.

use serde_json::{Value, json};

use crate::shop::*;

#[test]
fn dialect_1_in_both_framings() {
    let shop = Shop::in_four_processes(&[], &[]);
    for framing in FRAMINGS {
        let (seller_name, buyer_name) = (format!("s-{framing:?}"), format!("b-{framing:?}"));
        let mut seller = Client::connect(shop.seller, framing);
        let created = seller.call("CreateAccount", json!({"username": seller_name, "password": "secret"})).unwrap();
        let seller_id = created["seller_id"].as_u64().unwrap();
        let request = json!({
            "type": "request", "api": "Login", "payload": {"username": seller_name, "password": "secret"},
        });
        let login = seller.ask(&request);
        assert_eq!(login["session_id"], login["payload"]["session_id"], "the envelope has it too: {login}");
        assert_eq!(login["payload"]["seller_id"], seller_id);
        seller.sid = Some(login["session_id"].as_str().unwrap().to_owned());

        let item_id =
            seller.call("RegisterItemForSale", lamp(10.5, 5)).unwrap()["item_id"].as_str().unwrap().to_owned();
        assert!(item_id.starts_with("3-"), "{item_id}");
        let changed = seller.call("ChangeItemPrice", json!({"item_id": item_id, "price": "12.00"})).unwrap();
        assert_eq!(changed["status"], "OK");
        let taken = seller.call("UpdateUnitsForSale", json!({"item_id": item_id, "quantity": -2})).unwrap();
        assert_eq!((&taken["status"], &taken["quantity"]), (&json!("OK"), &json!(3)));
        let item = seller.call("GetItem", json!({"item_id": item_id})).unwrap();
        let expected = json!({
            "item_id": item_id, "item_name": "Brass Lamp", "category": 3, "keywords": ["lamp", "brass"],
            "condition_is_new": false, "price": 12, "quantity": 3, "seller_id": seller_id,
            "feedback": {"thumbs_up": 0, "thumbs_down": 0},
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&item[field], value, "{field} of {item}");
        }
        let own = seller.call("DisplayItemsForSale", json!({})).unwrap();
        assert_eq!(own["items"].as_array().unwrap().len(), 1);
        let rating = seller.call("GetSellerRating", json!({})).unwrap();
        assert_eq!(rating, json!({"feedback": {"thumbs_up": 0, "thumbs_down": 0}, "rating": null, "items_sold": 0}));

        let mut buyer = Client::connect(shop.buyer, framing);
        let account = json!({"username": buyer_name, "password": "secret", "name": "Bea"});
        assert!(buyer.call("CreateAccount", account).unwrap()["buyer_id"].is_u64());
        buyer.log_in(&buyer_name);
        let found = buyer.call("SearchItemsForSale", json!({"category": 3, "keywords": ["Lamp"]})).unwrap();
        assert!(found["items"].as_array().unwrap().iter().any(|item| item["item_id"] == item_id), "{found}");
        assert!(found["total"].as_u64().unwrap() >= 1);
        assert_eq!(buyer.call("GetItem", json!({"item_id": item_id})).unwrap()["price"], 12.0);
        let put = json!({"item_id": item_id, "quantity": 3});
        assert_eq!(buyer.call("AddItemToCart", put).unwrap()["status"], "OK");
        let left = buyer.call("RemoveItemFromCart", json!({"item_id": item_id, "quantity": 1})).unwrap();
        assert_eq!((&left["status"], &left["quantity"]), (&json!("OK"), &json!(2)));
        let cart = buyer.call("DisplayCart", json!({})).unwrap();
        assert_eq!(cart, json!({"cart": [{"item_id": item_id, "quantity": 2}]}));
        assert_eq!(buyer.call("SaveCart", json!({})).unwrap()["status"], "OK");
        let bought = buyer.call("MakePurchase", json!({"card": card(GOOD_CARD), "address": "1 Elm Street"})).unwrap();
        let purchase_id = bought["purchase_id"].as_str().unwrap().to_owned();
        assert_eq!(bought["total"], 24.0);
        assert_eq!(bought["items"], json!([{"item_id": item_id, "quantity": 2, "price": 12}]));
        assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
        let vote = json!({"item_id": item_id, "thumbs_up": true});
        assert_eq!(buyer.call("ProvideFeedback", vote).unwrap()["status"], "OK");
        let rating = buyer.call("GetSellerRating", json!({"seller_id": seller_id})).unwrap();
        assert_eq!(rating, json!({"feedback": {"thumbs_up": 1, "thumbs_down": 0}, "rating": 1.0, "items_sold": 2}));

        let orders = seller.call("GetSellerOrders", json!({})).unwrap()["items"].clone();
        let order = &orders[0];
        assert_eq!((&order["purchase_id"], &order["item_id"]), (&json!(purchase_id), &json!(item_id)));
        // Two at 12.00, less 10 %.
        assert_eq!((&order["quantity"], &order["price"], &order["payout"]), (&json!(2), &json!(12), &json!(21.6)));
        assert_eq!((&order["buyer_name"], &order["address"]), (&json!("Bea"), &json!("1 Elm Street")));
        assert!(order["purchased_at"].is_number() && order["shipped_at"].is_null(), "{order}");
        let line = json!({"purchase_id": purchase_id, "item_id": item_id});
        assert_eq!(seller.call("MarkShipped", line).unwrap()["status"], "OK");
        let history = buyer.call("GetBuyerPurchases", json!({})).unwrap()["items"].clone();
        assert_eq!((&history[0]["purchase_id"], &history[0]["price"]), (&json!(purchase_id), &json!(12)));
        assert!(history[0]["shipped_at"].is_number(), "{history}");
        assert_eq!(buyer.call("ClearCart", json!({})).unwrap()["status"], "OK");
        assert_eq!(buyer.call("Logout", json!({})).unwrap()["status"], "OK");
        assert_eq!(seller.call("Logout", json!({})).unwrap()["status"], "OK");
        assert_eq!(code(buyer.call("DisplayCart", json!({}))), "SESSION_EXPIRED");
    }
}

#[test]
fn dialect_2_in_both_framings_and_both_mixed_on_one_connection() {
    let shop = Shop::in_four_processes(&[], &[]);
    for framing in FRAMINGS {
        let (seller_name, buyer_name) = (format!("s-{framing:?}"), format!("b-{framing:?}"));
        let join = |addr, role: &str, user: &str| {
            let mut client = Client::connect(addr, framing);
            let account = json!({"role": role, "user": user, "pwd": "secret"});
            client.call_dialect2("CREATE", account.clone()).unwrap();
            assert_eq!(code(client.call_dialect2("CREATE", account.clone())), "USERNAME_TAKEN");
            client.sid = Some(client.call_dialect2("LOGIN", account).unwrap()["sid"].as_str().unwrap().to_owned());
            client
        };
        let mut seller = join(shop.seller, "seller", &seller_name);
        let mut buyer = join(shop.buyer, "buyer", &buyer_name);
        assert_eq!(
            code(buyer.call_dialect2("CREATE", json!({"role": "seller", "user": "x", "pwd": "x"}))),
            "FORBIDDEN",
            "the role must fit the port"
        );

        let item = json!({
            "name": "Oak Chair", "category": 7, "keywords": ["chair", "oak"], "condition": "New", "price": 20, "qty": 9,
        });
        let item = seller.call_dialect2("ADD_ITEM", item).unwrap()["item_id"].clone();
        seller.call_dialect2("UPDATE_PRICE", json!({"item": item, "price": 19.99})).unwrap();
        seller.call_dialect2("UPDATE_QTY", json!({"item": item, "delta": -1})).unwrap();
        let own = seller.call_dialect2("GET_ITEMS", json!({})).unwrap();
        assert_eq!((own["total"].as_u64(), own["items"].as_array().map(Vec::len)), (Some(1), Some(1)));
        assert_eq!(seller.call_dialect2("GET_SELLER_RATING", json!({})).unwrap()["rating"], json!([0, 0]));

        let found = buyer.call_dialect2("SEARCH", json!({"category": 7, "keywords": ["oak"]})).unwrap();
        let shown = found["results"].as_array().unwrap().iter().find(|shown| shown["item_id"] == item).unwrap();
        let expected = json!({
            "item_id": item, "name": "Oak Chair", "seller": seller_name, "category": 7, "keywords": ["chair", "oak"],
            "condition": "New", "price": 19.99, "qty": 8, "feedback": [0, 0],
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&shown[field], value, "{field} of {shown}");
        }
        assert_eq!(buyer.call_dialect2("GET_ITEM", json!({"item": item})).unwrap()["item"]["qty"], 8);
        buyer.call_dialect2("ADD_CART", json!({"item": item, "qty": 3})).unwrap();
        buyer.call_dialect2("REMOVE_CART", json!({"item": item, "qty": 1})).unwrap();
        let mut expected = serde_json::Map::new();
        expected.insert(item.as_str().unwrap().to_owned(), json!(2));
        assert_eq!(buyer.call_dialect2("GET_CART", json!({})).unwrap()["cart"], Value::Object(expected));
        // Both dialects share the session, also on this connection.
        let cart = buyer.call("DisplayCart", json!({})).unwrap();
        assert_eq!(cart, json!({"cart": [{"item_id": item, "quantity": 2}]}));
        buyer.call_dialect2("SAVE_CART", json!({})).unwrap();
        let bought = buyer.call_dialect2("PURCHASE", json!({"card": card(GOOD_CARD)})).unwrap();
        assert_eq!(bought["total"], 39.98);
        assert_eq!(buyer.call_dialect2("GET_PURCHASES", json!({})).unwrap()["items"].as_array().unwrap().len(), 1);
        buyer.call_dialect2("FEEDBACK", json!({"seller": seller_name, "vote": "up"})).unwrap();
        buyer.call_dialect2("FEEDBACK", json!({"item": item, "vote": "down"})).unwrap();
        assert_eq!(
            buyer.call_dialect2("GET_SELLER_RATING", json!({"seller": seller_name})).unwrap()["rating"],
            json!([1, 1])
        );
        assert_eq!(buyer.call_dialect2("GET_ITEM", json!({"item": item})).unwrap()["item"]["feedback"], json!([0, 1]));
        buyer.call_dialect2("CLEAR_CART", json!({})).unwrap();
        buyer.call_dialect2("LOGOUT", json!({})).unwrap();
        assert_eq!(code(buyer.call_dialect2("GET_CART", json!({}))), "SESSION_EXPIRED");
    }
}

#[test]
fn a_connection_for_every_request_works_as_well() {
    let shop = Shop::in_one_process(&[]);
    let sid = Client::sign_up(shop.seller, Framing::Lines, "s").sid;
    for nth in 0..50 {
        let framing = FRAMINGS[nth % 2];
        let mut client = Client::connect(shop.seller, framing);
        client.sid = sid.clone();
        client.call("RegisterItemForSale", lamp(1.0 + nth as f64, 1)).unwrap();
    }
    let mut client = Client::connect(shop.seller, Framing::Lines);
    client.sid = sid;
    assert_eq!(client.call("DisplayItemsForSale", json!({})).unwrap()["items"].as_array().unwrap().len(), 50);
}

#[test]
fn strangers_may_sign_in_at_the_customer_database_and_nothing_else() {
    let shop = Shop::in_four_processes(&[], &[]);
    for framing in FRAMINGS {
        let mut client = Client::connect(shop.customer, framing);
        let user = format!("u-{framing:?}");
        let account = json!({"role": "buyer", "user": user, "pwd": "secret"});
        client.call_dialect2("CREATE", account.clone()).unwrap();
        let sid = client.call_dialect2("LOGIN", account).unwrap()["sid"].clone();
        let valid = client.call_dialect2("VALIDATE", json!({"sid": sid})).unwrap();
        assert_eq!((&valid["user"], &valid["role"]), (&json!(user), &json!("buyer")));
        // The session is as good as one from the frontend.
        let mut buyer = Client::connect(shop.buyer, framing);
        buyer.sid = sid.as_str().map(str::to_owned);
        assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), json!({"cart": []}));
        client.call_dialect2("LOGOUT", json!({"sid": sid})).unwrap();
        assert_eq!(code(client.call_dialect2("VALIDATE", json!({"sid": sid}))), "SESSION_EXPIRED");
        let mut stranger = Client::connect(shop.customer, framing);
        assert_eq!(code(stranger.call_dialect2("GET_CART", json!({"sid": sid}))), "FORBIDDEN");
        let mut stranger = Client::connect(shop.product, framing);
        assert_eq!(code(stranger.call_dialect2("SEARCH", json!({"category": 1, "keywords": []}))), "FORBIDDEN");
        let mut stranger = Client::connect(shop.product, framing);
        assert_eq!(code(stranger.call("GetItem", json!({"item_id": "3-1"}))), "FORBIDDEN");
    }
}
