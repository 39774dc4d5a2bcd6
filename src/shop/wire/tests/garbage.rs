//! Whatever is sent, nothing panics and each refusal names its field.

use proptest::prelude::*;

use super::*;

const PORTS: [ServerKind; 4] = [ServerKind::Buyer, ServerKind::Seller, ServerKind::Customer, ServerKind::Product];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,70}".prop_map(Value::from),
        Just(json!("1-1")),
        Just(json!(1)),
    ];
    leaf.prop_recursive(2, 8, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..7).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,9}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_always_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for server_kind in PORTS {
            let InvalidRequest { envelope, refusal, .. } = parse_request(server_kind, &bytes).unwrap_err();
            let answer: Value = serde_json::from_slice(&write_refusal(&envelope, &refusal)).unwrap();
            prop_assert_eq!(&answer["status"], "ERR");
        }
    }

    #[test]
    fn whatever_is_in_the_fields_it_is_read_or_refused_with_its_field(
        values in prop::collection::vec(json_value(), 20),
        parse_in_session in any::<bool>(),
    ) {
        const APIS: [&str; 22] = [
            "CreateAccount", "Login", "Logout", "SearchItemsForSale", "GetItem", "AddItemToCart", "RemoveItemFromCart",
            "SaveCart", "ClearCart", "DisplayCart", "MakePurchase", "ProvideFeedback", "GetSellerRating",
            "GetBuyerPurchases", "RegisterItemForSale", "ChangeItemPrice", "UpdateUnitsForSale", "DisplayItemsForSale",
            "GetSellerOrders", "MarkShipped", "", "Nonsense",
        ];
        const TYPES: [&str; 22] = [
            "CREATE", "LOGIN", "LOGOUT", "VALIDATE", "SEARCH", "GET_ITEM", "ADD_CART", "REMOVE_CART", "GET_CART",
            "CLEAR_CART", "SAVE_CART", "FEEDBACK", "GET_PURCHASES", "PURCHASE", "GET_SELLER_RATING", "ADD_ITEM",
            "UPDATE_PRICE", "UPDATE_QTY", "GET_ITEMS", "", "LINK", "Nonsense",
        ];
        const FIELDS: [&str; 20] = [
            "username", "password", "name", "category", "keywords", "offset", "limit", "item_id", "quantity", "card",
            "address", "thumbs_up", "seller_id", "price", "condition", "user", "item", "qty", "vote", "item_name",
        ];
        let mut fields: Map<String, Value> =
            FIELDS.iter().map(|field| (*field).to_owned()).zip(values.iter().cloned()).collect();
        let sid = if parse_in_session { json!("s") } else { values[0].clone() };
        for api in APIS {
            let message = json!({"type": "request", "api": api, "session_id": sid, "payload": fields});
            for server_kind in PORTS {
                if let Err(InvalidRequest { envelope, refusal, sid: said }) = parse_request(server_kind, message.to_string().as_bytes()) {
                    let is_dialect1 = matches!(envelope, ResponseEnvelope::Dialect1 { .. });
                    prop_assert!(is_dialect1);
                    prop_assert!(said.is_none() || refusal.code == ErrorCode::BadRequest);
                    prop_assert!(!refusal.message.is_empty());
                }
            }
        }
        fields.insert("sid".to_owned(), sid);
        for kind in TYPES {
            fields.insert("type".to_owned(), kind.into());
            for server_kind in PORTS {
                if let Err(InvalidRequest { envelope, refusal, sid: said }) = parse_request(server_kind, json!(fields).to_string().as_bytes()) {
                    prop_assert!(envelope.is_dialect2());
                    prop_assert!(said.is_none() || refusal.code == ErrorCode::BadRequest);
                    prop_assert!(!refusal.message.is_empty());
                }
            }
        }
    }
}
