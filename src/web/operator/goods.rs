//! What the operator takes out of the shop.

use super::{Operator, unavailable};
use crate::net::http::{Answered, Call, Refusal, StatusCode, success};
use serde_json::json;

pub(super) fn remove(operator: &Operator, call: &Call<'_>) -> Answered {
    let item_id = call.param(0);
    let is_there = operator.shop()?.products.remove_item(item_id).map_err(|error| unavailable(&error))?;
    if !is_there {
        return Err(Refusal::new(StatusCode::NOT_FOUND, format!("item_id: there is no item {item_id:?}")));
    }
    ::log::info!("item {item_id} was removed by the operator");
    Ok(success(json!({ "item_id": item_id })))
}
