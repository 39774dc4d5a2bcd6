//! The deals that are open.

use serde::Serialize;

use super::{Operator, USUAL, unavailable};
use crate::net::http::{Answered, Call, StatusCode, json};
use crate::share::page::Page;
use crate::trade::deal::DealLine;

#[derive(Serialize)]
struct Deals {
    success: bool,
    deals: Vec<DealLine>,
    total: usize,
}

pub(super) fn deals(operator: &Operator, call: &Call<'_>) -> Answered {
    let page = Page::of(call.request, USUAL)?;
    let (deals, total) = operator.trade()?.open_deals(page.offset, page.limit).map_err(|error| unavailable(&error))?;
    Ok(json(StatusCode::OK, &Deals { success: true, deals, total }))
}
