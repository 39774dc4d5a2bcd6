//! Removal of shop items by the operator.

use super::{OperatorApi, storage_unavailable};
use crate::net::http::{HandlerResult, HttpError, RouteCall, StatusCode, success};
use serde_json::json;

pub(super) fn remove(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let item_id = call.param(0);
    let is_there = operator.shop()?.products.remove_item(item_id).map_err(|error| storage_unavailable(&error))?;
    if !is_there {
        return Err(HttpError::new(StatusCode::NOT_FOUND, format!("item_id: there is no item {item_id:?}")));
    }
    ::log::info!("item {item_id} was removed by the operator");
    Ok(success(json!({ "item_id": item_id })))
}
