//! The server API: accounts, the operator's view of the registry, and the server's status. See `docs/spec/share.md`.
//!
//! The API runs whichever services the server has. Without a registry, requests that need it get 503.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::registry::RegistryTotals;
use super::server::{RegistryServer, RegistryView};
use super::unix_time::unix_seconds_of;
use crate::identity::{UserError, Users};
use crate::model::{Clock, Name, Token};
use crate::net::http::routes::{self, RouteAccess, RouteMatch, RouteSpec};
use crate::net::http::{
    HandlerResult, HttpError, HttpHandler, JsonFields, Request, Response, RouteCall, StatusCode, bearer, not_found,
    success,
};

mod accounts;
mod admin;
mod metrics;
mod table;

pub use metrics::{MetricKind, Metrics, MetricsSnapshot};
use table::{ROUTES, ServerRouteHandler};

const TOKEN_CHARS_MAX: usize = 4096;

pub struct ServerApi {
    users: Arc<Users>,
    registry: Option<Arc<RegistryServer>>,
    metrics: Arc<Metrics>,
}

impl ServerApi {
    pub fn new(users: Arc<Users>, registry: Option<Arc<RegistryServer>>, metrics: Arc<Metrics>) -> ServerApi {
        ServerApi { users, registry, metrics }
    }

    pub fn route_specs() -> impl Iterator<Item = (RouteAccess, &'static RouteSpec)> {
        routes::specs(ROUTES)
    }

    fn dispatch(&self, handler: ServerRouteHandler, call: &RouteCall<'_>) -> HandlerResult {
        match handler {
            ServerRouteHandler::Public(handler) => handler(self, call),
            ServerRouteHandler::Admin(handler) => {
                require_admin(&self.users, call.request)?;
                handler(self, call)
            }
        }
    }

    fn stats(&self, _: &RouteCall<'_>) -> HandlerResult {
        let mut stats = stats(&self.view()?.totals());
        stats["timestamp"] = json!(unix_seconds_of(Clock::wall()));
        Ok(success(json!({ "stats": stats })))
    }

    fn metrics(&self, call: &RouteCall<'_>) -> HandlerResult {
        if call.request.source.ip().is_loopback() {
            Ok(self.metrics.render_response())
        } else {
            Err(HttpError::new(StatusCode::FORBIDDEN, "metrics are told on this machine alone"))
        }
    }

    fn view(&self) -> Result<RegistryView, HttpError> {
        let reason = "there is no registry here: the service share does not run";
        let none = || HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason);
        self.registry.as_ref().map(|registry| registry.view()).ok_or_else(none)
    }
}

impl HttpHandler for ServerApi {
    fn handle(&self, request: Request) -> Response {
        let started_at = Instant::now();
        let found = routes::match_route(ROUTES, &request);
        let RouteMatch::Route(route, call) = &found else { return found.error_response().unwrap_or_else(not_found) };
        let answer = self.dispatch(route.handler, call).unwrap_or_else(Response::from);
        route.assert_conforms(&answer);
        self.metrics.record_request(route.spec.name(), answer.status, started_at.elapsed());
        answer
    }
}

fn stats(totals: &RegistryTotals) -> Value {
    json!({
        "total_clients": totals.total_clients, "active_clients": totals.active_clients,
        "total_files": totals.total_files, "total_size": totals.total_size,
    })
}

/// Returns the admin's name. 401 without a valid token, 403 with a user's.
pub fn require_admin(users: &Users, request: &Request) -> Result<Name, HttpError> {
    let token = request_token(request, false)?;
    users.authenticate_admin(token.reveal()).map_err(to_http_error)
}

pub fn to_http_error(wrong: UserError) -> HttpError {
    let status = match &wrong {
        UserError::InvalidField(_) => StatusCode::BAD_REQUEST,
        UserError::UsernameTaken(_) | UserError::IsAdmin(_) => StatusCode::CONFLICT,
        UserError::UnknownUser(_) => StatusCode::NOT_FOUND,
        UserError::WrongCredentials | UserError::Token(_) => StatusCode::UNAUTHORIZED,
        UserError::WrongRole(_) | UserError::Blocked => StatusCode::FORBIDDEN,
        UserError::LockedOut(_) => StatusCode::TOO_MANY_REQUESTS,
        UserError::Busy(_) | UserError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let refusal = HttpError::new(status, wrong.to_string());
    if let UserError::LockedOut(wait) = wrong { refusal.retry_after(UserError::whole_seconds(wait)) } else { refusal }
}

/// From the header or, if `also_in_body`, from the body; 401 without a token.
pub fn request_token(request: &Request, also_in_body: bool) -> Result<Token, HttpError> {
    if let Some(token) = bearer(&request.headers) {
        return Ok(token);
    }
    if also_in_body
        && let Some(token) = JsonFields::from_optional_body(request)?.optional_text("token", 1, TOKEN_CHARS_MAX)?
    {
        return Ok(Token::from_text(token));
    }
    Err(HttpError::new(StatusCode::UNAUTHORIZED, "a token is missing: Authorization: Bearer TOKEN"))
}

#[cfg(test)]
mod tests;
