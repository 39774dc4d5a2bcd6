//! Responses in both dialects.

use super::*;

fn written(answer: Answer, payload: ResponsePayload) -> [Value; 2] {
    let one = ResponseEnvelope::Dialect1 { api: Some("Api".to_owned()), session_id: Some("s".to_owned()) };
    let payload = Ok(payload);
    [one, ResponseEnvelope::UNPARSED]
        .map(|envelope| serde_json::from_slice(&write_response(&envelope, answer, &payload)).unwrap())
}

#[track_caller]
fn assert_written(answer: Answer, response: ResponsePayload, payload: Value, mut fields: Value) {
    let [one, two] = written(answer, response);
    assert_eq!(one, json!({"type": "response", "api": "Api", "session_id": "s", "payload": payload}));
    fields["status"] = "OK".into();
    assert_eq!(two, fields);
}

fn text(value: &impl Serialize) -> ResponsePayload {
    ResponsePayload::Json(serde_json::to_string(value).unwrap())
}

#[test]
fn outcomes_in_both_dialects() {
    let item = Item {
        item_id: "3-1".into(),
        item_name: "Lamp".into(),
        category: 3,
        keywords: vec!["light".into()],
        condition_is_new: false,
        price: Cents(1250),
        quantity: 7,
        seller_id: 9,
        seller: "sam".into(),
        feedback: Feedback { thumbs_up: 2, thumbs_down: 1 },
    };
    let one = json!({
        "item_id": "3-1", "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition_is_new": false,
        "price": 12.5, "quantity": 7, "seller_id": 9, "seller": "sam",
        "feedback": {"thumbs_up": 2, "thumbs_down": 1}
    });
    let two = json!({
        "item_id": "3-1", "name": "Lamp", "category": 3, "keywords": ["light"], "condition": "Used", "price": 12.5,
        "qty": 7, "seller": "sam", "feedback": [2, 1]
    });
    let found = |total_is_at_least| text(&ItemPage { items: vec![item.clone()], total: 10_000, total_is_at_least });
    assert_written(answers::DONE, text(&()), json!({"status": "OK"}), json!({}));
    assert_written(answers::ITEM, text(&item), one.clone(), json!({"item": two}));
    assert_written(
        answers::SEARCH,
        found(true),
        json!({"items": [one], "total": 10_000, "total_is_at_least": true}),
        json!({"results": [two], "total": 10_000, "total_is_at_least": true}),
    );
    assert_written(
        answers::ITEMS,
        found(false),
        json!({"items": [one], "total": 10_000}),
        json!({"items": [two], "total": 10_000}),
    );
    let lines = vec![LineItem { item_id: "3-1".into(), quantity: 2 }];
    assert_written(
        answers::CART,
        text(&lines),
        json!({"cart": [{"item_id": "3-1", "quantity": 2}]}),
        json!({"cart": {"3-1": 2}}),
    );
    assert_written(
        answers::QUANTITY,
        text(&RemainingQuantity { quantity: 3 }),
        json!({"status": "OK", "quantity": 3}),
        json!({"qty": 3}),
    );
    let registered = RegisteredItem { item_id: "3-1".to_owned() };
    assert_written(answers::JSON, text(&registered), json!({"item_id": "3-1"}), json!({"item_id": "3-1"}));
    let rating =
        |thumbs_up, thumbs_down| text(&SellerRating { feedback: Feedback { thumbs_up, thumbs_down }, items_sold: 5 });
    assert_written(
        answers::RATING,
        rating(3, 1),
        json!({"feedback": {"thumbs_up": 3, "thumbs_down": 1}, "rating": 0.75, "items_sold": 5}),
        json!({"rating": [3, 1]}),
    );
    assert_eq!(written(answers::RATING, rating(0, 0))[0]["payload"]["rating"], Value::Null);
    let account = Account { user_id: 4, username: "u".into(), name: "U".into() };
    assert_written(answers::BUILT, ResponsePayload::Created(Role::Seller, account), json!({"seller_id": 4}), json!({}));
    let priced =
        PricedLine { item_id: "3-1".into(), quantity: 2, price: Cents(1250), seller_id: 9, seller: "sam".into() };
    let purchased = CompletedPurchase { purchase_id: "p".into(), total: Cents(5_000_000_000), items: vec![priced] };
    let fields = json!({
        "purchase_id": "p", "total": 50_000_000, "items": [{"item_id": "3-1", "quantity": 2, "price": 12.5}]
    });
    assert_written(answers::BUILT, ResponsePayload::Purchased(purchased), fields.clone(), fields);
    let bought = PurchaseHistoryEntry {
        purchase_id: "p".into(),
        item_id: "3-1".into(),
        quantity: 2,
        price: Cents(1250),
        purchased_at: Millis(1_795_253_400_999),
        shipped_at: None,
    };
    let fields = json!({"items": [{
        "purchase_id": "p", "item_id": "3-1", "quantity": 2, "price": 12.5, "purchased_at": 1_795_253_400,
        "shipped_at": null
    }]});
    assert_written(answers::PURCHASES, text(&vec![bought]), fields.clone(), fields);
    let order = SellerOrder {
        purchase_id: "p".into(),
        item_id: "3-1".into(),
        quantity: 2,
        price: Cents(1250),
        payout: Cents(2250),
        buyer_name: "B".into(),
        address: Some("Elm St".into()),
        purchased_at: Millis(1_795_253_400_000),
        shipped_at: Some(Millis(1_795_253_401_000)),
    };
    let fields = json!({"items": [{
        "purchase_id": "p", "item_id": "3-1", "quantity": 2, "price": 12.5, "payout": 22.5, "buyer_name": "B",
        "address": "Elm St", "purchased_at": 1_795_253_400, "shipped_at": 1_795_253_401
    }]});
    assert_written(answers::ORDERS, text(&vec![order]), fields.clone(), fields);
    // The session of a login is also in the envelope.
    let [one, two] =
        written(answers::BUILT, ResponsePayload::LoggedIn(Role::Buyer, NewSession { sid: "new".into(), user_id: 4 }));
    assert_eq!((&one["session_id"], &one["payload"]), (&json!("new"), &json!({"session_id": "new", "buyer_id": 4})));
    assert_eq!(two, json!({"status": "OK", "sid": "new"}));
    let [_, two] = written(answers::SESSION, text(&SessionInfo { user: "u".into(), role: Role::Seller }));
    assert_eq!(two, json!({"status": "OK", "user": "u", "role": "seller"}));
}

#[test]
fn a_database_that_talks_nonsense_is_unavailable() {
    for (answer, json) in [(answers::SEARCH, "[]"), (answers::ITEM, "x"), (answers::CART, "{}"), (answers::JSON, "[]")]
    {
        let payload = Ok(ResponsePayload::Json(json.to_owned()));
        let written = write_response(&ResponseEnvelope::UNPARSED, answer, &payload);
        let answer: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("UNAVAILABLE")));
    }
}
