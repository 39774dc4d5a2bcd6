//! What the operator sees of a server, and what he may do to it: users, deals, ledgers, the log, figures over time,
//! and what happens as it happens. SPEC.md section 6, "Server API, for the operator".
//!
//! | file | holds |
//! |---|---|
//! | `table.rs` | every route: what it takes and all that it answers |
//! | `figures.rs` | the figures of the last quarter of an hour |
//! | `books.rs` | the ledgers of all rooms as one |
//! | `people.rs` | users, and who may not sign in |
//! | `log.rs` | trade's log, and the process's own warnings |
//! | `goods.rs` | what is taken out of the shop |
//! | `events.rs` | what happens, as it happens |
//! | `warnings.rs` | the newest lines that the process has warned by |
//!
//! A process may run any of the services: what asks for one that does not run here is told so (503), and lists of
//! several rooms have what is here. Everything is read a page at a time, beside those who write.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::identity::Users;
use crate::model::Clock;
use crate::net::http::routes::{self, Found, Outline};
use crate::net::http::{Handler, Refusal, Request, Response, StatusCode, not_found};
use crate::share::server::RegistryServer;
use crate::share::server_api::{Metrics, ServerApi, only_admin};
use crate::shop::customer::CustomerDb;
use crate::shop::product::ProductDb;
use crate::storage::StoreError;
use crate::trade::server::TradeServer;

mod books;
mod deals;
mod events;
mod figures;
mod goods;
mod log;
mod people;
mod table;
#[cfg(test)]
mod tests;
pub mod warnings;

use books::Books;
use events::News;
use figures::Figures;
use table::ROUTES;
use warnings::Warnings;

/// Entries of a page where the request does not say how many.
const USUAL: usize = 100;

/// The shop's databases.
#[derive(Debug, Clone)]
pub struct ShopDatabases {
    /// The items.
    pub products: Arc<ProductDb>,
    /// The accounts, and the money.
    pub customers: Arc<CustomerDb>,
}

/// What a server's process has, as far as its operator may look.
pub struct Sight {
    /// The accounts.
    pub users: Arc<Users>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What was warned of lately.
    pub warnings: &'static Warnings,
    /// Trade, where it runs here.
    pub trade: Option<Arc<TradeServer>>,
    /// The shop, likewise.
    pub shop: Option<ShopDatabases>,
    /// The registry, likewise.
    pub registry: Option<Arc<RegistryServer>>,
    /// The process's clock.
    pub clock: Clock,
}

/// What answers the operator.
pub struct Operator {
    sight: Sight,
    books: Books,
    figures: Figures,
    news: News,
    /// Whoever blocks somebody, or does so no more, one at a time.
    blocking: Mutex<()>,
}

impl Operator {
    /// Begins to take figures.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(sight: Sight) -> io::Result<Operator> {
        let figures = Figures::start(Arc::clone(&sight.metrics))?;
        let news = News::start(&sight)?;
        Ok(Operator { sight, books: Books::default(), figures, news, blocking: Mutex::default() })
    }

    /// Every route, for who describes the API.
    pub fn outlines() -> impl Iterator<Item = &'static Outline> {
        ROUTES.iter().map(|route| &route.outline)
    }

    /// The answer to a request for one of these routes; none for any other.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        let began_at = Instant::now();
        let found = routes::find(ROUTES, request);
        let Found::Route(route, call) = &found else {
            return matches!(found, Found::OtherMethods(_)).then(|| found.refusal().unwrap_or_else(not_found));
        };
        // The token is looked at before anything else.
        let admin = only_admin(&self.sight.users, request);
        let answer = admin.and_then(|_| (route.handler)(self, call)).unwrap_or_else(Response::from);
        route.hold(&answer);
        self.sight.metrics.count(route.outline.name(), answer.status, began_at.elapsed());
        Some(answer)
    }

    fn trade(&self) -> Result<&Arc<TradeServer>, Refusal> {
        self.sight.trade.as_ref().ok_or_else(|| absent("there is no trade here: the service trade does not run"))
    }

    fn shop(&self) -> Result<&ShopDatabases, Refusal> {
        self.sight.shop.as_ref().ok_or_else(|| absent("there is no shop here: the service shop does not run"))
    }
}

/// What answers at a server's port: the operator's routes, and all others.
#[derive(Debug)]
pub struct ServerSide {
    /// All others.
    pub api: ServerApi,
    /// The operator's.
    pub operator: Operator,
}

impl ServerSide {
    /// Every route, for who describes the API.
    pub fn outlines() -> impl Iterator<Item = &'static Outline> {
        ServerApi::outlines().chain(Operator::outlines())
    }
}

impl Handler for ServerSide {
    fn handle(&self, request: Request) -> Response {
        self.operator.answer(&request).unwrap_or_else(|| self.api.handle(request))
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("users", &self.sight.users).finish_non_exhaustive()
    }
}

fn absent(reason: &str) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// What cannot be read or stored at the moment.
fn unavailable(error: &StoreError) -> Refusal {
    ::log::error!("the operator's view: {error}");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "it could not be read or stored at the moment: try again")
}
