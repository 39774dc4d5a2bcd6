//! The server API: accounts, what the operator sees of the registry, and how the server is. SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `accounts.rs` | register, login, verify, refresh; what the registry asks of accounts |
//! | `admin.rs` | what only the admin may see |
//! | `metrics.rs` | `/metrics`: everything that is counted, for Prometheus |
//! | `table.rs` | every route: what it takes and all that it answers |
//!
//! The port is there whatever services run. Where there is no registry, what asks for it is told so (503).

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::registry::Totals;
use super::server::{RegistryServer, View};
use crate::identity::{UserError, Users};
use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::routes::{self, Found, Outline};
use crate::net::http::{
    Answered, Call, Fields, Handler, Refusal, Request, Response, StatusCode, bearer, not_found, success,
};

mod accounts;
mod admin;
mod metrics;
mod table;

pub use metrics::{Kind, Metrics, Reading};
use table::{Act, ROUTES};

/// Most characters of a token in a body.
const TOKEN_MAX: usize = 4096;

/// What answers at the server's HTTP port.
pub struct ServerApi {
    users: Arc<Users>,
    registry: Option<Arc<RegistryServer>>,
    metrics: Arc<Metrics>,
}

impl ServerApi {
    /// Over these accounts, and the registry if there is one here.
    pub fn new(users: Arc<Users>, registry: Option<Arc<RegistryServer>>, metrics: Arc<Metrics>) -> ServerApi {
        ServerApi { users, registry, metrics }
    }

    /// Every route, for who describes the API.
    pub fn outlines() -> impl Iterator<Item = &'static Outline> {
        ROUTES.iter().map(|route| &route.outline)
    }

    fn act(&self, act: Act, call: &Call<'_>) -> Answered {
        match act {
            Act::Open(act) => act(self, call),
            Act::Admin(act) => {
                only_admin(&self.users, call.request)?;
                act(self, call)
            }
        }
    }

    fn stats(&self) -> Answered {
        let mut stats = stats(&self.view()?.totals());
        stats["timestamp"] = seconds(Clock::wall());
        Ok(success(json!({ "stats": stats })))
    }

    fn metrics(&self, request: &Request) -> Answered {
        if request.source.ip().is_loopback() {
            Ok(self.metrics.show())
        } else {
            Err(Refusal::new(StatusCode::FORBIDDEN, "metrics are told on this machine alone"))
        }
    }

    fn view(&self) -> Result<View, Refusal> {
        let reason = "there is no registry here: the service share does not run";
        let none = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason);
        self.registry.as_ref().map(|registry| registry.view()).ok_or_else(none)
    }
}

impl Handler for ServerApi {
    fn handle(&self, request: Request) -> Response {
        let begun = Instant::now();
        let found = routes::find(ROUTES, &request);
        let Found::Route(route, call) = &found else { return found.refusal().unwrap_or_else(not_found) };
        let answer = self.act(route.handler, call).unwrap_or_else(Response::from);
        route.hold(&answer);
        self.metrics.count(route.outline.name(), answer.status, begun.elapsed());
        answer
    }
}

impl fmt::Debug for ServerApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerApi").field("users", &self.users).finish_non_exhaustive()
    }
}

fn stats(totals: &Totals) -> Value {
    json!({
        "total_clients": totals.total_clients, "active_clients": totals.active_clients,
        "total_files": totals.total_files, "total_size": totals.total_size,
    })
}

/// Whose token a request bears, if that is the admin's.
///
/// # Errors
/// 401 without one that is good, 403 with a user's.
pub fn only_admin(users: &Users, request: &Request) -> Result<Name, Refusal> {
    let token = token_of(request, false)?;
    users.admin_of(token.reveal()).map_err(not_so)
}

/// Unix seconds, with the milliseconds as a fraction.
pub fn seconds(at: Millis) -> Value {
    if at.0.is_multiple_of(1000) { (at.0 / 1000).into() } else { (at.0 as f64 / 1000.0).into() }
}

/// What went wrong with an account or a token, with the status that fits.
pub fn not_so(wrong: UserError) -> Refusal {
    let status = match &wrong {
        UserError::Bad(_) => StatusCode::BAD_REQUEST,
        UserError::Taken(_) | UserError::IsAdmin(_) => StatusCode::CONFLICT,
        UserError::Unknown(_) => StatusCode::NOT_FOUND,
        UserError::WrongCredentials | UserError::Token(_) => StatusCode::UNAUTHORIZED,
        UserError::NotForThis(_) | UserError::Blocked => StatusCode::FORBIDDEN,
        UserError::Paused(_) => StatusCode::TOO_MANY_REQUESTS,
        UserError::Busy(_) | UserError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let refusal = Refusal::new(status, wrong.to_string());
    if let UserError::Paused(wait) = wrong { refusal.retry_after(UserError::seconds(wait)) } else { refusal }
}

/// The token that a request bears: in its header, or where that may be in its body.
///
/// # Errors
/// 401 without one.
pub fn token_of(request: &Request, also_in_body: bool) -> Result<Token, Refusal> {
    if let Some(token) = bearer(&request.headers) {
        return Ok(token);
    }
    if also_in_body && let Some(token) = Fields::of_any(request)?.optional_text("token", 1, TOKEN_MAX)? {
        return Ok(Token::from_text(token));
    }
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "a token is missing: Authorization: Bearer TOKEN"))
}

#[cfg(test)]
mod tests;
