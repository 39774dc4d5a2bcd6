//! The share service of `p2s2 server`, and the HTTP port, which is there whatever services run.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::announce::AnnouncedService;
use super::server_discovery::SERVER_API;
use super::settings;
use super::shop::{TlsArgs, port_in_use};
use crate::identity::jwt::Jwt;
use crate::identity::users::{AdminCredentials, NewAdmin};
use crate::identity::{HashCost, PasswordHasher, Users};
use crate::model::{Clock, Name};
use crate::net::budget::ReceiveBudget;
use crate::net::counters::LatencySnapshot;
use crate::net::http::{self, HttpServer, RequestPolicy, parse_allowed_origin, parse_host_name};
use crate::net::listener::{self, ConnectionLimiter};
use crate::net::threads::Executor;
use crate::net::tls::TlsIdentity;
use crate::share::registry::store::MIGRATIONS;
use crate::share::server::{AuthMode, RegistryServer, RegistryServerConfig, RegistryServerContext, RegistryStartError};
use crate::share::server_api::{Metrics, ServerApi};
use crate::storage::Store;
use crate::trade::server::TradeServer;
use crate::web::Site;
use crate::web::operator::warnings::WARNINGS;
use crate::web::operator::{OperatorApi, OperatorContext, ServerHandler, ShopDatabases};

/// The registry's database in the data dir.
pub const REGISTRY_DB: &str = "registry.db";
/// Shorter secrets are accepted with a warning, because they can be guessed.
const SECRET_BYTES_RECOMMENDED: usize = 32;

/// The settings of share, and of the HTTP port.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing files, and the HTTP port")]
pub struct ShareServiceArgs {
    /// The registry's port [default: 9000]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, env = "P2S2_SERVER_REGISTRY_PORT")]
    registry_port: Option<u16>,
    /// The HTTP port: server API, admin page, metrics [default: 5500]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, env = "P2S2_SERVER_API_PORT")]
    api_port: Option<u16>,
    /// Address to bind for HTTP, if not that of --bind
    #[arg(long, value_name = "IP", env = "P2S2_SERVER_API_BIND")]
    api_bind: Option<IpAddr>,
    /// How long a host of the registry counts as there after it was last heard [default: 20min]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_PEER_TIMEOUT")]
    peer_timeout: Option<Duration>,
    /// What gives a client the hostname that is a user's name: the token, or also the address the user logged in from
    #[arg(long, value_name = "HOW", env = "P2S2_SERVER_REGISTRY_AUTH", default_value = "strict")]
    registry_auth: RegistryAuth,
    /// How long a login lasts [default: 1h]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_JWT_TTL")]
    jwt_ttl: Option<Duration>,
    /// Pages of this origin may use the HTTP port; may repeat
    #[arg(long, value_name = "URL", value_parser = parse_allowed_origin, value_delimiter = ',', env = "P2S2_SERVER_ALLOW_ORIGIN")]
    allow_origin: Vec<String>,
    /// The HTTP port answers under this name too, not only under addresses and localhost; may repeat
    #[arg(long, value_name = "NAME", value_parser = parse_host_name, value_delimiter = ',', env = "P2S2_SERVER_HTTP_HOST")]
    http_host: Vec<String>,
}

/// Who gets the hostname of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RegistryAuth {
    Strict,
    Address,
}

/// What the share service needs from the server process.
pub struct ShareServiceDeps<'a> {
    pub data_dir: &'a Path,
    /// The bind address of all listeners but HTTP.
    pub bind: IpAddr,
    /// The TLS settings of listeners beyond loopback.
    pub tls: &'a TlsArgs,
    /// The certificate of the trade service, used for TLS if no other is configured.
    pub trade_identity: Option<Arc<TlsIdentity>>,
    /// Threads for connections.
    pub executor: &'a Arc<Executor>,
    /// Limits the number of connections.
    pub limiter: &'a Arc<ConnectionLimiter>,
    /// Limits the bytes that were received and not yet handled.
    pub budget: &'a Arc<ReceiveBudget>,
    /// The trade service, if it runs in this process.
    pub trade: Option<Arc<TradeServer>>,
    /// The shop's databases, if they run in this process.
    pub shop: Option<ShopDatabases>,
}

/// The running share service. Accounts and HTTP are always there, the registry only if it was requested.
pub struct ShareService {
    users: Arc<Users>,
    registry: Option<(Arc<RegistryServer>, Arc<Store>)>,
    http: Arc<HttpServer>,
    metrics: Arc<Metrics>,
    /// Fingerprint of the certificate in use.
    cert_sha256: Option<String>,
}

/// The settings after flags, variables and defaults were combined. They are validated before anything is created.
pub struct ShareServiceConfig {
    registry_addr: SocketAddr,
    api_addr: SocketAddr,
    peer_timeout: Duration,
    jwt_ttl: Duration,
    auth: AuthMode,
    policy: RequestPolicy,
    admin: AdminCredentials,
    secret: Option<String>,
}

impl ShareServiceArgs {
    /// Combines flags, legacy variables and defaults.
    ///
    /// # Errors
    /// An invalid value, or HTTP beyond loopback without TLS or `--insecure`.
    pub fn resolve(&self, bind: IpAddr, tls: &TlsArgs) -> anyhow::Result<ShareServiceConfig> {
        let api_bind = match self.api_bind {
            Some(api_bind) => api_bind,
            None => settings::bind_address_from("ADMIN_API_HOST", "--api-bind")?.unwrap_or(bind),
        };
        if !api_bind.is_loopback() && !tls.is_guarded() {
            bail!(
                "HTTP at {api_bind} is open to other hosts: say --tls (with the data dir's own certificate), --insecure, \
                 or --api-bind 127.0.0.1"
            );
        }
        let username = secret_variable("ADMIN_USERNAME")?
            .map(|text| Name::new(&text).map_err(|rule| anyhow::anyhow!("ADMIN_USERNAME: {rule}")))
            .transpose()?;
        Ok(ShareServiceConfig {
            registry_addr: SocketAddr::new(bind, port(self.registry_port, "SERVER_PORT", 9000)?),
            api_addr: SocketAddr::new(api_bind, port(self.api_port, "ADMIN_API_PORT", 5500)?),
            peer_timeout: time(self.peer_timeout, "CLIENT_INACTIVE_TIMEOUT", Duration::from_secs(20 * 60))?,
            jwt_ttl: time(self.jwt_ttl, "SESSION_TIMEOUT", Duration::from_secs(3600))?,
            auth: match self.registry_auth {
                RegistryAuth::Strict => AuthMode::Strict,
                RegistryAuth::Address => AuthMode::Address,
            },
            policy: RequestPolicy::from_flags(self.http_host.clone(), self.allow_origin.clone()),
            admin: AdminCredentials { username, password: secret_variable("ADMIN_PASSWORD")? },
            secret: secret_variable("JWT_SECRET_KEY")?,
        })
    }
}

impl ShareService {
    /// Opens the stores, creates the admin at the first start, and listens.
    ///
    /// # Errors
    /// A one-line description of what kept it from starting.
    pub fn start(
        config: ShareServiceConfig,
        deps: &ShareServiceDeps<'_>,
        with_registry: bool,
    ) -> anyhow::Result<ShareService> {
        let (dir, tls, api_addr) = (deps.data_dir, deps.tls, config.api_addr);
        let own = tls.identity(if with_registry { deps.bind } else { api_addr.ip() }, dir)?;
        let identity = own.or_else(|| deps.trade_identity.clone());
        let cert_sha256 = identity.as_ref().map(|identity| identity.fingerprint().to_owned());

        let clock = Clock::start();
        let jwt = match &config.secret {
            Some(secret) => {
                if secret.len() < SECRET_BYTES_RECOMMENDED {
                    log::warn!(
                        "JWT_SECRET_KEY has less than {SECRET_BYTES_RECOMMENDED} bytes: who guesses it can be anybody"
                    );
                }
                Jwt::with_secret(secret.as_bytes(), config.jwt_ttl)
            }
            None => Jwt::load_or_create(dir, config.jwt_ttl)?,
        };
        let passwords = PasswordHasher::with_shared_threads(HashCost::default())?;
        let users = Arc::new(Users::open(dir, clock, passwords, jwt)?);
        users.ensure_admin(config.admin, print_new_admin)?;
        let metrics = Arc::new(Metrics::new()?);

        let registry = if with_registry {
            let store = Arc::new(Store::open(&dir.join(REGISTRY_DB), MIGRATIONS)?);
            let ShareServiceConfig { registry_addr: addr, peer_timeout, auth, .. } = config;
            let config = RegistryServerConfig { addr, peer_timeout, auth };
            let registry_context = RegistryServerContext {
                executor: Arc::clone(deps.executor),
                limiter: Arc::clone(deps.limiter),
                budget: Arc::clone(deps.budget),
                identity: identity.clone(),
                allows_remote_plaintext: tls.insecure,
                clock,
                store: Arc::clone(&store),
                accounts: Arc::clone(&users) as _,
            };
            let server = RegistryServer::start(config, registry_context).map_err(|error| match error {
                RegistryStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                    port_in_use(addr, "--registry-port")
                }
                error => error.into(),
            })?;
            Some((Arc::new(server), store))
        } else {
            None
        };

        let listener = listener::listen(api_addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => port_in_use(api_addr, "--api-port"),
            _ => anyhow::Error::new(error).context(format!("cannot bind {api_addr}")),
        })?;
        let api = {
            let registry = registry.as_ref().map(|(server, _)| Arc::clone(server));
            let operator_context = OperatorContext {
                users: Arc::clone(&users),
                metrics: Arc::clone(&metrics),
                warnings: &WARNINGS,
                trade: deps.trade.clone(),
                shop: deps.shop.clone(),
                registry: registry.clone(),
                clock,
            };
            let operator = OperatorApi::start(operator_context).context("cannot look after the server")?;
            let api = ServerApi::new(Arc::clone(&users), registry, Arc::clone(&metrics));
            Site::of_server(ServerHandler { api, operator })
        };
        let http_context = http::HttpContext {
            executor: Arc::clone(deps.executor),
            limiter: Arc::clone(deps.limiter),
            budget: Arc::clone(deps.budget),
            identity,
            allows_remote_plaintext: tls.insecure,
            policy: config.policy,
            limits: http::HttpLimits::default(),
        };
        let http = Arc::new(HttpServer::start(listener, http_context, Arc::new(api)).context("cannot serve HTTP")?);

        let share = ShareService { users, registry, http, metrics, cert_sha256 };
        share.register_metrics(deps);
        Ok(share)
    }

    /// The registry's address, if it runs.
    pub fn registry_addr(&self) -> Option<SocketAddr> {
        self.registry.as_ref().map(|(server, _)| server.local_addr())
    }

    /// The services that are announced to nodes: the registry, and the server API if it has the same address.
    pub fn announced_services(&self) -> Vec<AnnouncedService> {
        let Some(registry) = self.registry_addr() else { return Vec::new() };
        let api = self.api_addr();
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

    /// The address of the HTTP port.
    pub fn api_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Whether the HTTP port also accepts TLS.
    pub fn has_certificate(&self) -> bool {
        self.cert_sha256.is_some()
    }

    /// The metrics that `/metrics` shows.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Registers counters and sizes with the metrics. Weak references, because the HTTP server itself holds the
    /// metrics.
    fn register_metrics(&self, deps: &ShareServiceDeps<'_>) {
        let (http, users) = (Arc::downgrade(&self.http), Arc::downgrade(&self.users));
        let streams = Weak::clone(&http);
        self.metrics.add_counters("http", move || http.upgrade().map_or_else(Vec::new, |http| http.counters()));
        self.metrics.add_sizes("http", move || {
            let open = |http: Arc<HttpServer>| vec![("event_streams_open", http.event_streams() as u64)];
            streams.upgrade().map_or_else(Vec::new, open)
        });
        self.metrics.add_sizes("users", move || {
            users.upgrade().map_or_else(Vec::new, |users| vec![("accounts", users.len() as u64)])
        });
        if let Some((server, _)) = &self.registry {
            let (counts, sizes) = (Arc::downgrade(server), Arc::downgrade(server));
            self.metrics
                .add_counters("registry", move || counts.upgrade().map_or_else(Vec::new, |server| server.counters()));
            let times = Arc::downgrade(server);
            self.metrics.add_latencies("registry_requests", move || {
                times.upgrade().map_or_else(LatencySnapshot::default, |server| server.latencies())
            });
            self.metrics.add_sizes("registry", move || sizes.upgrade().map_or_else(Vec::new, |server| server.sizes()));
        }
        let (executor, limiter) = (Arc::clone(deps.executor), Arc::clone(deps.limiter));
        let (started, open) = (Arc::clone(&executor), Arc::clone(&limiter));
        self.metrics.add_counters("threads", move || started.counters().list());
        self.metrics.add_sizes("threads", move || {
            vec![("running", executor.threads() as u64), ("busy", executor.running_jobs() as u64)]
        });
        self.metrics.add_counters("connections", move || limiter.counters().list());
        self.metrics.add_sizes("connections", move || {
            vec![("open", open.open_connections() as u64), ("pending", open.pending_connections() as u64)]
        });
    }

    /// Stops HTTP first: its pending requests need the registry.
    pub fn stop(&self, deadline: Instant) {
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

fn port(flag: Option<u16>, variable: &str, default: u16) -> anyhow::Result<u16> {
    settings::flag_or_variable(flag, variable, default, |text| text.parse().map_err(|_| "expected a port".to_owned()))
}

fn time(flag: Option<Duration>, variable: &str, default: Duration) -> anyhow::Result<Duration> {
    settings::flag_or_variable(flag, variable, default, settings::parse_window)
}

/// The value of a variable that may hold a secret, so errors do not quote it. Trailing line breaks are removed, because
/// files of secrets end with one.
fn secret_variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name}: expected UTF-8"),
    }
}

/// Prints the generated admin account, once and only to the operator: logs are kept.
fn print_new_admin(made: &NewAdmin) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let (username, password) = (&made.username, made.password.reveal());
    writeln!(out, "admin: made at this first start, told this once: username {username}, password {password}")
        .and_then(|()| out.flush())
        .map_err(|error| {
            anyhow::anyhow!("standard output cannot be written: {error}; send it to a file or to /dev/null")
        })
}
