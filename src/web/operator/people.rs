//! The users, and who of them may not sign in.

use serde::Serialize;

use super::{Operator, ShopDatabases, USUAL, unavailable};
use crate::identity::User;
use crate::model::Name;
use crate::net::http::{Answered, Call, Refusal, StatusCode, json};
use crate::share::page::Page;
use crate::share::server_api::not_so;
use crate::shop::customer::store::user_named;
use crate::shop::ops::Role;
use crate::storage::StoreError;

/// A user as the operator sees him.
#[derive(Debug, Serialize)]
struct Shown {
    username: Name,
    display_name: Name,
    created_at: String,
    last_login: Option<String>,
    /// Whether the shop has an account of that name; nothing where there is no shop here.
    shop: Option<bool>,
    /// Whether the host of that name is there; likewise.
    hostname: Option<bool>,
    blocked: bool,
}

#[derive(Serialize)]
struct Users {
    success: bool,
    users: Vec<Shown>,
    total: usize,
}

#[derive(Serialize)]
struct One {
    success: bool,
    user: Shown,
}

pub(super) fn users(operator: &Operator, call: &Call<'_>) -> Answered {
    let page = Page::of(call.request, USUAL)?;
    let (users, total) = operator.sight.users.search(&page.sought, page.offset, page.limit).map_err(not_so)?;
    Ok(json(StatusCode::OK, &Users { success: true, users: shown(operator, users)?, total }))
}

fn shown(operator: &Operator, users: Vec<User>) -> Result<Vec<Shown>, Refusal> {
    let names: Vec<&str> = users.iter().map(|user| user.username.as_str()).collect();
    let in_shop = operator.sight.shop.as_ref().map(|shop| have_accounts(shop, &names)).transpose();
    let in_shop = in_shop.map_err(|error| unavailable(&error))?;
    let are_there = operator.sight.registry.as_ref().map(|registry| registry.view().are_there(&names));
    let accounts = &operator.sight.users;
    let all = users.into_iter().enumerate().map(|(place, user)| Shown {
        shop: in_shop.as_ref().map(|all| all[place]),
        hostname: are_there.as_ref().map(|all| all[place] && accounts.has_hostname(&user.username)),
        username: user.username,
        display_name: user.display_name,
        created_at: user.created_at.to_iso(),
        last_login: user.last_login.map(|at| at.to_iso()),
        blocked: user.is_blocked,
    });
    Ok(all.collect())
}

fn have_accounts(shop: &ShopDatabases, names: &[&str]) -> Result<Vec<bool>, StoreError> {
    shop.customers.store().read(|reader| {
        let has = |name: &&str| {
            Ok(user_named(reader, Role::Buyer, name)?.is_some() || user_named(reader, Role::Seller, name)?.is_some())
        };
        names.iter().map(has).collect()
    })
}

pub(super) fn block(operator: &Operator, call: &Call<'_>) -> Answered {
    set_blocked(operator, call.param(0), true)
}

pub(super) fn unblock(operator: &Operator, call: &Call<'_>) -> Answered {
    set_blocked(operator, call.param(0), false)
}

fn set_blocked(operator: &Operator, name: &str, blocked: bool) -> Answered {
    let users = &operator.sight.users;
    // Held until all of it is stored, on purpose: of two who say this at once the last one's word is that of the shop,
    // too.
    let _turn = operator.blocking.lock();
    let account = users.to_be_blocked(name, blocked).map_err(not_so)?;
    if let Some(shop) = &operator.sight.shop {
        // Before the account: where all ends in between, that is seen to be as it was, and whoever says it again finishes
        // it. Nothing is done twice.
        hide_items(shop, &account, blocked).map_err(|error| unavailable(&error))?;
    }
    let user = users.set_blocked(account.as_str(), blocked).map_err(not_so)?;
    ::log::info!("{} was {} by the operator", user.username, if blocked { "blocked" } else { "unblocked" });
    let [user] = <[Shown; 1]>::try_from(shown(operator, vec![user])?)
        .map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the user was not found again"))?;
    Ok(json(StatusCode::OK, &One { success: true, user }))
}

/// What the seller of that name sells is not shown, or is again.
fn hide_items(shop: &ShopDatabases, name: &Name, hides: bool) -> Result<(), StoreError> {
    let seller = shop.customers.store().read(|reader| user_named(reader, Role::Seller, name.as_str()))?;
    match seller {
        Some(seller) => shop.products.hide_seller(seller.account.user_id, hides),
        None => Ok(()),
    }
}
