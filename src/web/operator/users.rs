//! Lists users, and blocks and unblocks them.

use serde::Serialize;

use super::{DEFAULT_PAGE_LIMIT, OperatorApi, ShopDatabases, storage_unavailable};
use crate::identity::User;
use crate::model::Name;
use crate::net::http::{HandlerResult, HttpError, RouteCall, StatusCode, json};
use crate::share::page::PageRequest;
use crate::share::server_api::to_http_error;
use crate::shop::customer::store::user_by_name;
use crate::shop::ops::Role;
use crate::storage::StoreError;

#[derive(Debug, Serialize)]
struct UserView {
    username: Name,
    display_name: Name,
    created_at: String,
    last_login: Option<String>,
    /// Whether the shop has an account of that name; `None` if the shop does not run here.
    shop: Option<bool>,
    /// Whether the host of that name is connected; `None` if the registry does not run here.
    hostname: Option<bool>,
    blocked: bool,
}

#[derive(Serialize)]
struct UsersResponse {
    success: bool,
    users: Vec<UserView>,
    total: usize,
}

#[derive(Serialize)]
struct UserResponse {
    success: bool,
    user: UserView,
}

pub(super) fn users(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, DEFAULT_PAGE_LIMIT)?;
    let (users, total) = operator.context.users.search(&page.query, page.offset, page.limit).map_err(to_http_error)?;
    Ok(json(StatusCode::OK, &UsersResponse { success: true, users: user_views(operator, users)?, total }))
}

fn user_views(operator: &OperatorApi, users: Vec<User>) -> Result<Vec<UserView>, HttpError> {
    let names: Vec<&str> = users.iter().map(|user| user.username.as_str()).collect();
    let in_shop = operator.context.shop.as_ref().map(|shop| have_shop_accounts(shop, &names)).transpose();
    let in_shop = in_shop.map_err(|error| storage_unavailable(&error))?;
    let are_online = operator.context.registry.as_ref().map(|registry| registry.view().are_live(&names));
    let accounts = &operator.context.users;
    let all = users.into_iter().enumerate().map(|(place, user)| UserView {
        shop: in_shop.as_ref().map(|all| all[place]),
        hostname: are_online.as_ref().map(|all| all[place] && accounts.has_hostname(&user.username)),
        username: user.username,
        display_name: user.display_name,
        created_at: user.created_at.to_iso(),
        last_login: user.last_login.map(|at| at.to_iso()),
        blocked: user.is_blocked,
    });
    Ok(all.collect())
}

fn have_shop_accounts(shop: &ShopDatabases, names: &[&str]) -> Result<Vec<bool>, StoreError> {
    shop.customers.store().read(|reader| {
        let has = |name: &&str| {
            Ok(user_by_name(reader, Role::Buyer, name)?.is_some()
                || user_by_name(reader, Role::Seller, name)?.is_some())
        };
        names.iter().map(has).collect()
    })
}

pub(super) fn block(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    set_blocked(operator, call.param(0), true)
}

pub(super) fn unblock(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    set_blocked(operator, call.param(0), false)
}

fn set_blocked(operator: &OperatorApi, name: &str, blocked: bool) -> HandlerResult {
    let users = &operator.context.users;
    // Held until everything is stored: of two concurrent requests, the last one then wins in both databases.
    let _turn = operator.blocking_lock.lock();
    let account = users.account_to_block(name, blocked).map_err(to_http_error)?;
    if let Some(shop) = &operator.context.shop {
        // Before the account: after a crash in between, the account is still in its former state, and repeating the
        // request completes it. Both steps are idempotent.
        set_items_hidden(shop, &account, blocked).map_err(|error| storage_unavailable(&error))?;
    }
    let user = users.set_blocked(account.as_str(), blocked).map_err(to_http_error)?;
    ::log::info!("{} was {} by the operator", user.username, if blocked { "blocked" } else { "unblocked" });
    let [user] = <[UserView; 1]>::try_from(user_views(operator, vec![user])?)
        .map_err(|_| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "the user was not found again"))?;
    Ok(json(StatusCode::OK, &UserResponse { success: true, user }))
}

/// Hides the items of the seller of that name, or shows them again.
fn set_items_hidden(shop: &ShopDatabases, name: &Name, is_hidden: bool) -> Result<(), StoreError> {
    let seller = shop.customers.store().read(|reader| user_by_name(reader, Role::Seller, name.as_str()))?;
    match seller {
        Some(seller) => shop.products.hide_seller(seller.account.user_id, is_hidden),
        None => Ok(()),
    }
}
