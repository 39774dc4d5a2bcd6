//! The server API: accounts, what the operator sees of the registry, and how the server is. SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `accounts.rs` | register, login, verify, refresh; what the registry asks of accounts |
//! | `admin.rs` | what only the admin may see |
//! | `metrics.rs` | `/metrics`: everything that is counted, for Prometheus |
//!
//! The port is there whatever services run. Where there is no registry, what asks for it is told so (503).

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::registry::Totals;
use super::server::{RegistryServer, View};
use crate::identity::{UserError, Users};
use crate::model::{Clock, Millis, Token};
use crate::net::http::{
    Fields, Handler, Method, Refusal, Request, Response, StatusCode, bearer, method_not_allowed, not_found, segments,
    success,
};

mod accounts;
mod admin;
mod metrics;

pub use metrics::{Kind, Metrics, Reading};

/// Most characters of a token in a body.
const TOKEN_MAX: usize = 4096;

/// What answers at the server's HTTP port.
pub struct ServerApi {
    users: Arc<Users>,
    registry: Option<Arc<RegistryServer>>,
    metrics: Arc<Metrics>,
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    Register,
    Login,
    Verify,
    Refresh,
    AdminLogin,
    AdminVerify,
    Registry,
    Discover(String),
    Ping(String),
    Stats,
    Health,
    Metrics,
}

impl Route {
    fn of(path: &str) -> Option<Route> {
        let segments = segments(path)?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Some(match *segments {
            ["api", "user", "register"] => Route::Register,
            ["api", "user", "login"] => Route::Login,
            ["api", "user", "verify"] => Route::Verify,
            ["api", "user", "refresh"] => Route::Refresh,
            ["api", "admin", "login"] => Route::AdminLogin,
            ["api", "admin", "verify"] => Route::AdminVerify,
            ["api", "admin", "registry"] => Route::Registry,
            ["api", "admin", "discover", hostname] => Route::Discover(hostname.to_owned()),
            ["api", "admin", "ping", hostname] => Route::Ping(hostname.to_owned()),
            ["api", "stats"] => Route::Stats,
            ["api", "health"] => Route::Health,
            ["metrics"] => Route::Metrics,
            _ => return None,
        })
    }

    fn method(&self) -> Method {
        match self {
            Route::Register
            | Route::Login
            | Route::Verify
            | Route::Refresh
            | Route::AdminLogin
            | Route::AdminVerify => Method::POST,
            Route::Registry | Route::Discover(_) | Route::Ping(_) | Route::Stats | Route::Health | Route::Metrics => {
                Method::GET
            }
        }
    }

    /// For the metrics: never a text of the client's.
    fn name(&self) -> &'static str {
        match self {
            Route::Register => "user/register",
            Route::Login => "user/login",
            Route::Verify => "user/verify",
            Route::Refresh => "user/refresh",
            Route::AdminLogin => "admin/login",
            Route::AdminVerify => "admin/verify",
            Route::Registry => "admin/registry",
            Route::Discover(_) => "admin/discover",
            Route::Ping(_) => "admin/ping",
            Route::Stats => "stats",
            Route::Health => "health",
            Route::Metrics => "metrics",
        }
    }
}

impl ServerApi {
    /// Over these accounts, and the registry if there is one here.
    pub fn new(users: Arc<Users>, registry: Option<Arc<RegistryServer>>, metrics: Arc<Metrics>) -> ServerApi {
        ServerApi { users, registry, metrics }
    }

    fn answer(&self, route: Route, request: &Request) -> Result<Response, Refusal> {
        match route {
            Route::Register => self.register(request),
            Route::Login => self.login(request),
            Route::Verify => self.verify(request),
            Route::Refresh => self.refresh(request),
            Route::AdminLogin => self.admin_login(request),
            Route::AdminVerify => self.admin_verify(request),
            Route::Registry => self.admins_registry(request),
            Route::Discover(hostname) => self.discover(request, &hostname),
            Route::Ping(hostname) => self.ping(request, &hostname),
            Route::Stats => {
                let mut stats = stats(&self.view()?.totals());
                stats["timestamp"] = seconds(Clock::wall());
                Ok(success(json!({ "stats": stats })))
            }
            Route::Health => Ok(success(json!({"status": "healthy"}))),
            Route::Metrics if !request.source.ip().is_loopback() => {
                Err(Refusal::new(StatusCode::FORBIDDEN, "metrics are told on this machine alone"))
            }
            Route::Metrics => Ok(self.metrics.show()),
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
        let Some(route) = Route::of(&request.path) else { return not_found() };
        let (name, method) = (route.name(), route.method());
        if request.method != method {
            return method_not_allowed(&[method]);
        }
        let answer = self.answer(route, &request).unwrap_or_else(Response::from);
        self.metrics.count(name, answer.status, begun.elapsed());
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

/// Unix seconds, with the milliseconds as a fraction.
fn seconds(at: Millis) -> Value {
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
fn token_of(request: &Request, also_in_body: bool) -> Result<Token, Refusal> {
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
