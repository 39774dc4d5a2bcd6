//! The share service of `p2s2 server`, and the HTTP port, which is there whatever services run.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::announcement::{AnnouncedService, SERVER_API};
use super::listeners::{Listeners, port_in_use};
use super::page_urls;
use super::resources::SharedResources;
use super::stores::REGISTRY_DB;
use super::tls::TlsConfig;
use super::while_alive;
use crate::identity::jwt::Jwt;
use crate::identity::users::{AdminCredentials, NewAdmin};
use crate::identity::{HashCost, PasswordHasher, Users};
use crate::model::Clock;
use crate::net::http::{HttpContext, HttpLimits, HttpServer, RequestPolicy};
use crate::net::listener;
use crate::net::tls::TlsIdentity;
use crate::share::registry::store::MIGRATIONS;
use crate::share::server::{RegistryServer, RegistryServerConfig, RegistryServerContext, RegistryStartError};
use crate::share::server_api::{Metrics, ServerApi};
use crate::storage::Store;
use crate::trade::server::TradeServer;
use crate::web::Site;
use crate::web::operator::warnings::WARNINGS;
use crate::web::operator::{OperatorApi, OperatorContext, ServerHandler, ShopDatabases};

/// Shorter secrets are accepted with a warning, because they can be guessed.
const SECRET_BYTES_RECOMMENDED: usize = 32;

pub struct ShareServiceConfig {
    pub registry: Option<RegistryServerConfig>,
    pub api_addr: SocketAddr,
    pub jwt_ttl: Duration,
    pub policy: RequestPolicy,
    pub admin: AdminCredentials,
    /// The secret that signs logins; without it, a random one is kept in the data dir.
    pub secret: Option<String>,
    pub announce_admin: fn(&NewAdmin) -> anyhow::Result<()>,
}

pub(super) struct ShareServiceDeps<'a> {
    pub data_dir: &'a Path,
    /// The bind address of all listeners but HTTP.
    pub bind: IpAddr,
    pub tls: &'a TlsConfig,
    /// The certificate of the trade service, used for TLS if no other is configured.
    pub trade_identity: Option<Arc<TlsIdentity>>,
    pub resources: &'a SharedResources,
    pub trade: Option<Arc<TradeServer>>,
    pub shop: Option<ShopDatabases>,
}

type Registry = Option<(Arc<RegistryServer>, Arc<Store>)>;

/// The running share service. Accounts and HTTP are always there, the registry only if it was requested.
pub(super) struct ShareService {
    users: Arc<Users>,
    registry: Registry,
    http: Arc<HttpServer>,
    metrics: Arc<Metrics>,
    cert_sha256: Option<String>,
}

impl ShareService {
    /// Creates the admin at the first start.
    pub(super) fn start(
        config: ShareServiceConfig,
        deps: &ShareServiceDeps<'_>,
        listeners: &mut Listeners,
    ) -> anyhow::Result<ShareService> {
        let api_addr = config.api_addr;
        let bind = if config.registry.is_some() { deps.bind } else { api_addr.ip() };
        let own = deps.tls.identity(bind, deps.data_dir)?;
        let identity = own.or_else(|| deps.trade_identity.clone());
        let cert_sha256 = identity.as_ref().map(|identity| identity.fingerprint().to_owned());

        let clock = Clock::start();
        let jwt = open_jwt(config.secret.as_deref(), config.jwt_ttl, deps.data_dir)?;
        let passwords = PasswordHasher::with_shared_threads(HashCost::default())?;
        let users = Arc::new(Users::open(deps.data_dir, clock, passwords, jwt)?);
        users.ensure_admin(config.admin, config.announce_admin)?;
        let metrics = Arc::new(Metrics::new()?);
        let start_registry = |config| start_registry(config, deps, clock, &users, identity.clone());
        let registry = config.registry.map(start_registry).transpose()?;

        let listener = bind_api(api_addr)?;
        let handler = http_handler(deps, &users, &registry, &metrics, clock)?;
        let listener_context = deps.resources.listener_context(identity, deps.tls.insecure);
        let limits = HttpLimits::default();
        let http_context = HttpContext { listener: listener_context, policy: config.policy, limits };
        let http = HttpServer::start(listener, http_context, Arc::new(handler)).context("cannot serve HTTP")?;

        let share = ShareService { users, registry, http: Arc::new(http), metrics, cert_sha256 };
        share.register_metrics(deps.resources);
        share.add_to(listeners);
        Ok(share)
    }

    fn add_to(&self, listeners: &mut Listeners) {
        if let Some(addr) = self.registry_addr() {
            listeners.add(format!("registry: tcp {addr}"), "registry", addr);
        }
        listeners.announced.extend(self.announced_services());
        let addr = self.http.local_addr();
        listeners.add(format!("server-api: http {addr}"), "server_api", addr);
        // Beyond loopback the HTTPS URL of the page is printed.
        let is_tls = !addr.ip().is_loopback() && self.cert_sha256.is_some();
        listeners.lines.extend(page_urls::lines(addr, is_tls));
    }

    fn registry_addr(&self) -> Option<SocketAddr> {
        self.registry.as_ref().map(|(server, _)| server.local_addr())
    }

    /// The services that are announced to nodes: the registry, and the server API if it has the same address.
    fn announced_services(&self) -> Vec<AnnouncedService> {
        let Some(registry) = self.registry_addr() else { return Vec::new() };
        let api = self.http.local_addr();
        let service = |name, addr: SocketAddr| AnnouncedService {
            name,
            port: addr.port(),
            cert_sha256: self.cert_sha256.clone(),
        };
        let mut all = vec![service("registry", registry)];
        if api.ip().is_unspecified() || api.ip() == registry.ip() {
            all.push(service(SERVER_API, api));
        }
        all
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn register_metrics(&self, resources: &SharedResources) {
        let metrics = &self.metrics;
        metrics.add_counters("http", while_alive(&self.http, HttpServer::counters));
        let streams = |http: &HttpServer| vec![("event_streams_open", http.event_streams() as u64)];
        metrics.add_sizes("http", while_alive(&self.http, streams));
        metrics.add_sizes("users", while_alive(&self.users, |users| vec![("accounts", users.count() as u64)]));
        if let Some((server, _)) = &self.registry {
            metrics.add_counters("registry", while_alive(server, RegistryServer::counters));
            metrics.add_latencies("registry_requests", while_alive(server, RegistryServer::latencies));
            metrics.add_sizes("registry", while_alive(server, RegistryServer::sizes));
        }
        let (executor, limiter) = (Arc::clone(&resources.executor), Arc::clone(&resources.limiter));
        let (started, open) = (Arc::clone(&executor), Arc::clone(&limiter));
        metrics.add_counters("threads", move || started.counters().list());
        metrics.add_sizes("threads", move || {
            vec![("running", executor.threads() as u64), ("busy", executor.running_jobs() as u64)]
        });
        metrics.add_counters("connections", move || limiter.counters().list());
        metrics.add_sizes("connections", move || {
            vec![("open", open.open_connections() as u64), ("pending", open.pending_connections() as u64)]
        });
    }

    /// Stops HTTP first: its pending requests need the registry.
    pub(super) fn stop(&self, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        self.http.stop(left());
        let mut all = vec![("http", self.http.counters())];
        if let Some((server, store)) = &self.registry {
            server.stop(left());
            all.push(("registry", server.counters()));
            store.close();
        }
        self.users.close();
        for (part, counters) in all {
            for (name, count) in counters {
                log::debug!("{part}_{name} {count}");
            }
        }
    }
}

fn open_jwt(secret: Option<&str>, ttl: Duration, data_dir: &Path) -> anyhow::Result<Jwt> {
    let Some(secret) = secret else { return Ok(Jwt::load_or_create(data_dir, ttl)?) };
    if secret.len() < SECRET_BYTES_RECOMMENDED {
        log::warn!("JWT_SECRET_KEY has less than {SECRET_BYTES_RECOMMENDED} bytes: who guesses it can be anybody");
    }
    Ok(Jwt::with_secret(secret.as_bytes(), ttl))
}

fn start_registry(
    config: RegistryServerConfig,
    deps: &ShareServiceDeps<'_>,
    clock: Clock,
    users: &Arc<Users>,
    identity: Option<Arc<TlsIdentity>>,
) -> anyhow::Result<(Arc<RegistryServer>, Arc<Store>)> {
    let store = Arc::new(Store::open(&deps.data_dir.join(REGISTRY_DB), MIGRATIONS)?);
    let context = RegistryServerContext {
        listener: deps.resources.listener_context(identity, deps.tls.insecure),
        clock,
        store: Arc::clone(&store),
        accounts: Arc::clone(users) as _,
    };
    let server = RegistryServer::start(config, context).map_err(|error| match error {
        RegistryStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
            port_in_use(addr, "--registry-port")
        }
        error => error.into(),
    })?;
    Ok((Arc::new(server), store))
}

fn bind_api(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    listener::listen(addr).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => port_in_use(addr, "--api-port"),
        _ => anyhow::Error::new(error).context(format!("cannot bind {addr}")),
    })
}

fn http_handler(
    deps: &ShareServiceDeps<'_>,
    users: &Arc<Users>,
    registry: &Registry,
    metrics: &Arc<Metrics>,
    clock: Clock,
) -> anyhow::Result<Site<ServerHandler>> {
    let registry = registry.as_ref().map(|(server, _)| Arc::clone(server));
    let operator_context = OperatorContext {
        users: Arc::clone(users),
        metrics: Arc::clone(metrics),
        warnings: &WARNINGS,
        trade: deps.trade.clone(),
        shop: deps.shop.clone(),
        registry: registry.clone(),
        clock,
    };
    let operator = OperatorApi::start(operator_context).context("cannot look after the server")?;
    let api = ServerApi::new(Arc::clone(users), registry, Arc::clone(metrics));
    Ok(Site::of_server(ServerHandler { api, operator }))
}
