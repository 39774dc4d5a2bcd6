//! Lists trade's open deals.

use serde::Serialize;

use super::{DEFAULT_PAGE_LIMIT, OperatorApi, storage_unavailable};
use crate::net::http::{HandlerResult, RouteCall, StatusCode, json};
use crate::share::page::PageRequest;
use crate::trade::deal::DealSummary;

#[derive(Serialize)]
struct DealsResponse {
    success: bool,
    deals: Vec<DealSummary>,
    total: usize,
}

pub(super) fn deals(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, DEFAULT_PAGE_LIMIT)?;
    let (deals, total) =
        operator.trade()?.open_deals(page.offset, page.limit).map_err(|error| storage_unavailable(&error))?;
    Ok(json(StatusCode::OK, &DealsResponse { success: true, deals, total }))
}
