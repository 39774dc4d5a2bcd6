//! The operator's API of a server (docs/spec/share.md, "Server API, for the operator").
//!
//! A process may run any subset of the services. A request that needs a service which does not run here gets status
//! 503; lists that cover several rooms hold those that run here. Reads are paged and do not block writers.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::identity::Users;
use crate::model::Clock;
use crate::net::http::routes::{self, RouteAccess, RouteMatch, RouteSpec};
use crate::net::http::{HttpError, HttpHandler, Request, Response, StatusCode, not_found};
use crate::share::server::RegistryServer;
use crate::share::server_api::{Metrics, ServerApi, require_admin};
use crate::shop::customer::CustomerDb;
use crate::shop::product::ProductDb;
use crate::storage::StoreError;
use crate::trade::server::TradeServer;

mod deals;
mod events;
mod items;
mod ledgers;
mod log;
mod metrics;
mod route_table;
#[cfg(test)]
mod tests;
mod users;
pub mod warnings;

use events::EventFeed;
use ledgers::LedgerCache;
use metrics::MetricsRecorder;
use route_table::ROUTES;
use warnings::Warnings;

/// Entries of a page when the request has no `limit`.
const DEFAULT_PAGE_LIMIT: usize = 100;

#[derive(Debug, Clone)]
pub struct ShopDatabases {
    pub products: Arc<ProductDb>,
    /// Accounts, carts, purchases and the ledger.
    pub customers: Arc<CustomerDb>,
}

/// The parts of a server process that the operator's API reads and changes.
pub struct OperatorContext {
    pub users: Arc<Users>,
    pub metrics: Arc<Metrics>,
    pub warnings: &'static Warnings,
    pub trade: Option<Arc<TradeServer>>,
    pub shop: Option<ShopDatabases>,
    pub registry: Option<Arc<RegistryServer>>,
    pub clock: Clock,
}

/// Answers the requests below `/api/admin/` that are made for the operator.
pub struct OperatorApi {
    context: OperatorContext,
    ledger_cache: LedgerCache,
    metrics_recorder: MetricsRecorder,
    event_feed: EventFeed,
    /// Serializes blocking and unblocking of users.
    blocking_lock: Mutex<()>,
}

impl OperatorApi {
    pub fn start(context: OperatorContext) -> io::Result<OperatorApi> {
        let metrics_recorder = MetricsRecorder::start(Arc::clone(&context.metrics))?;
        let event_feed = EventFeed::start(&context)?;
        Ok(OperatorApi {
            context,
            ledger_cache: LedgerCache::default(),
            metrics_recorder,
            event_feed,
            blocking_lock: Mutex::default(),
        })
    }

    /// Every route, for the API's description.
    pub fn route_specs() -> impl Iterator<Item = (RouteAccess, &'static RouteSpec)> {
        routes::specs(ROUTES)
    }

    /// The response to a request for one of these routes; `None` for any other path.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        let began_at = Instant::now();
        let found = routes::match_route(ROUTES, request);
        let RouteMatch::Route(route, call) = &found else {
            return matches!(found, RouteMatch::MethodNotAllowed(_))
                .then(|| found.error_response().unwrap_or_else(not_found));
        };
        // The token is checked before anything else of the request.
        let admin = require_admin(&self.context.users, request);
        let answer = admin.and_then(|_| (route.handler.0)(self, call)).unwrap_or_else(Response::from);
        route.assert_conforms(&answer);
        self.context.metrics.record_request(route.spec.name(), answer.status, began_at.elapsed());
        Some(answer)
    }

    fn trade(&self) -> Result<&Arc<TradeServer>, HttpError> {
        self.context.trade.as_ref().ok_or_else(|| not_running("there is no trade here: the service trade does not run"))
    }

    fn shop(&self) -> Result<&ShopDatabases, HttpError> {
        self.context.shop.as_ref().ok_or_else(|| not_running("there is no shop here: the service shop does not run"))
    }
}

pub struct ServerHandler {
    /// Gets every request that is not for the operator.
    pub api: ServerApi,
    pub operator: OperatorApi,
}

impl ServerHandler {
    /// Every route, for the API's description.
    pub fn route_specs() -> impl Iterator<Item = (RouteAccess, &'static RouteSpec)> {
        ServerApi::route_specs().chain(OperatorApi::route_specs())
    }
}

impl HttpHandler for ServerHandler {
    fn handle(&self, request: Request) -> Response {
        self.operator.answer(&request).unwrap_or_else(|| self.api.handle(request))
    }
}

fn not_running(reason: &str) -> HttpError {
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// Logs a storage error; the response is status 503.
fn storage_unavailable(error: &StoreError) -> HttpError {
    ::log::error!("the operator's view: {error}");
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "it could not be read or stored at the moment: try again")
}
