//! The service share of `p2s2 server`, and the HTTP port, which is there whatever services run.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::announce::Served;
use super::auto::SERVER_API;
use super::settings;
use super::shop::{TlsArgs, in_use};
use crate::identity::jwt::Jwt;
use crate::identity::users::{AdminSettings, NewAdmin};
use crate::identity::{Cost, Passwords, Users};
use crate::model::{Clock, Name};
use crate::net::budget::Budget;
use crate::net::counters::LatencyCounts;
use crate::net::http::{self, HttpServer, Rules, parse_allowed_origin, parse_host_name};
use crate::net::listener::{self, ConnectionLimiter};
use crate::net::threads::Executor;
use crate::net::tls::Identity;
use crate::share::registry::store::MIGRATIONS;
use crate::share::server::{AuthMode, Config, Floor, RegistryServer, StartError};
use crate::share::server_api::{Metrics, ServerApi};
use crate::storage::Store;
use crate::trade::server::TradeServer;
use crate::web::Site;
use crate::web::operator::warnings::WARNINGS;
use crate::web::operator::{Operator, ServerSide, ShopDatabases, Sight};

/// The registry's file in the data dir.
pub const REGISTRY_DB: &str = "registry.db";
/// Below this a secret that was given can be guessed.
const SECRET_BYTES_WISE: usize = 32;

/// The settings of share, and of the HTTP port.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing files, and the HTTP port")]
pub struct ShareArgs {
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

/// What of the process share needs.
pub struct Ground<'a> {
    /// Where everything is kept.
    pub data_dir: &'a Path,
    /// The address of all listeners.
    pub bind: IpAddr,
    /// How listeners beyond loopback are guarded.
    pub tls: &'a TlsArgs,
    /// The certificate that others of this server show, for those who ask for TLS where there is no other.
    pub settled_by: Option<Arc<Identity>>,
    /// Threads for connections.
    pub executor: &'a Arc<Executor>,
    /// The bound of connections.
    pub limiter: &'a Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled, likewise.
    pub budget: &'a Arc<Budget>,
    /// Trade, where it runs here.
    pub trade: Option<Arc<TradeServer>>,
    /// The shop, likewise.
    pub shop: Option<ShopDatabases>,
}

/// What runs: accounts and HTTP always, the registry if it was asked for.
pub struct Share {
    users: Arc<Users>,
    registry: Option<(Arc<RegistryServer>, Arc<Store>)>,
    http: Arc<HttpServer>,
    metrics: Arc<Metrics>,
    /// Of the certificate that is shown, if there is one.
    cert_sha256: Option<String>,
}

/// What was chosen, from wherever: looked at before anything is made.
pub struct Chosen {
    registry_addr: SocketAddr,
    api_addr: SocketAddr,
    peer_timeout: Duration,
    jwt_ttl: Duration,
    auth: AuthMode,
    rules: Rules,
    admin: AdminSettings,
    secret: Option<String>,
}

impl ShareArgs {
    /// Flags, else document 004's names, else the defaults.
    ///
    /// # Errors
    /// Something that is not what it must be, or HTTP beyond loopback without a guard.
    pub fn choose(&self, bind: IpAddr, tls: &TlsArgs) -> anyhow::Result<Chosen> {
        let api_bind = match self.api_bind {
            Some(api_bind) => api_bind,
            None => settings::host_of("ADMIN_API_HOST", "--api-bind")?.unwrap_or(bind),
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
        Ok(Chosen {
            registry_addr: SocketAddr::new(bind, port(self.registry_port, "SERVER_PORT", 9000)?),
            api_addr: SocketAddr::new(api_bind, port(self.api_port, "ADMIN_API_PORT", 5500)?),
            peer_timeout: time(self.peer_timeout, "CLIENT_INACTIVE_TIMEOUT", Duration::from_secs(20 * 60))?,
            jwt_ttl: time(self.jwt_ttl, "SESSION_TIMEOUT", Duration::from_secs(3600))?,
            auth: match self.registry_auth {
                RegistryAuth::Strict => AuthMode::Strict,
                RegistryAuth::Address => AuthMode::Address,
            },
            rules: Rules::chosen(self.http_host.clone(), self.allow_origin.clone()),
            admin: AdminSettings { username, password: secret_variable("ADMIN_PASSWORD")? },
            secret: secret_variable("JWT_SECRET_KEY")?,
        })
    }
}

impl Share {
    /// Opens what is kept, makes the admin at the first start, and listens.
    ///
    /// # Errors
    /// What kept it from starting, in one line.
    pub fn start(chosen: Chosen, ground: &Ground<'_>, with_registry: bool) -> anyhow::Result<Share> {
        let (dir, tls, api_addr) = (ground.data_dir, ground.tls, chosen.api_addr);
        let own = tls.identity(if with_registry { ground.bind } else { api_addr.ip() }, dir)?;
        let identity = own.or_else(|| ground.settled_by.clone());
        let cert_sha256 = identity.as_ref().map(|identity| identity.fingerprint().to_owned());

        let clock = Clock::start();
        let jwt = match &chosen.secret {
            Some(secret) => {
                if secret.len() < SECRET_BYTES_WISE {
                    log::warn!("JWT_SECRET_KEY has less than {SECRET_BYTES_WISE} bytes: who guesses it can be anybody");
                }
                Jwt::with_secret(secret.as_bytes(), chosen.jwt_ttl)
            }
            None => Jwt::load_or_create(dir, chosen.jwt_ttl)?,
        };
        let passwords = Passwords::sharing(Cost::default())?;
        let users = Arc::new(Users::open(dir, clock, passwords, jwt)?);
        users.settle_admin(chosen.admin, tell)?;
        let metrics = Arc::new(Metrics::new()?);

        let registry = if with_registry {
            let store = Arc::new(Store::open(&dir.join(REGISTRY_DB), MIGRATIONS)?);
            let Chosen { registry_addr: addr, peer_timeout, auth, .. } = chosen;
            let config = Config { addr, peer_timeout, auth };
            let floor = Floor {
                executor: Arc::clone(ground.executor),
                limiter: Arc::clone(ground.limiter),
                budget: Arc::clone(ground.budget),
                identity: identity.clone(),
                plain_from_afar: tls.insecure,
                clock,
                store: Arc::clone(&store),
                accounts: Arc::clone(&users) as _,
            };
            let server = RegistryServer::start(config, floor).map_err(|error| match error {
                StartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                    in_use(addr, "--registry-port")
                }
                error => error.into(),
            })?;
            Some((Arc::new(server), store))
        } else {
            None
        };

        let listener = listener::listen(api_addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => in_use(api_addr, "--api-port"),
            _ => anyhow::Error::new(error).context(format!("cannot bind {api_addr}")),
        })?;
        let api = {
            let registry = registry.as_ref().map(|(server, _)| Arc::clone(server));
            let sight = Sight {
                users: Arc::clone(&users),
                metrics: Arc::clone(&metrics),
                warnings: &WARNINGS,
                trade: ground.trade.clone(),
                shop: ground.shop.clone(),
                registry: registry.clone(),
                clock,
            };
            let operator = Operator::start(sight).context("cannot look after the server")?;
            let api = ServerApi::new(Arc::clone(&users), registry, Arc::clone(&metrics));
            Site::of_server(ServerSide { api, operator })
        };
        let floor = http::Floor {
            executor: Arc::clone(ground.executor),
            limiter: Arc::clone(ground.limiter),
            budget: Arc::clone(ground.budget),
            identity,
            plain_from_afar: tls.insecure,
            rules: chosen.rules,
            limits: http::Limits::default(),
        };
        let http = Arc::new(HttpServer::start(listener, floor, Arc::new(api)).context("cannot serve HTTP")?);

        let share = Share { users, registry, http, metrics, cert_sha256 };
        share.count(ground);
        Ok(share)
    }

    /// Where the registry is, if it is there.
    pub fn registry_addr(&self) -> Option<SocketAddr> {
        self.registry.as_ref().map(|(server, _)| server.local_addr())
    }

    /// What nodes that look for a server are told of: the registry, and the API where it is at the same address.
    pub fn served(&self) -> Vec<Served> {
        let Some(registry) = self.registry_addr() else { return Vec::new() };
        let api = self.api_addr();
        let served = |name, addr: SocketAddr| Served { name, port: addr.port(), cert_sha256: self.cert_sha256.clone() };
        let mut all = vec![served("registry", registry)];
        if api.ip().is_unspecified() || api.ip() == registry.ip() {
            all.push(served(SERVER_API, api));
        }
        all
    }

    /// Where HTTP is.
    pub fn api_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Whether HTTP is answered over TLS too.
    pub fn has_certificate(&self) -> bool {
        self.cert_sha256.is_some()
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Has everything of here shown in the metrics. (Weakly: the metrics are part of what they show.)
    fn count(&self, ground: &Ground<'_>) {
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
                times.upgrade().map_or_else(LatencyCounts::default, |server| server.latencies())
            });
            self.metrics.add_sizes("registry", move || sizes.upgrade().map_or_else(Vec::new, |server| server.sizes()));
        }
        let (executor, limiter) = (Arc::clone(ground.executor), Arc::clone(ground.limiter));
        let (started, open) = (Arc::clone(&executor), Arc::clone(&limiter));
        self.metrics.add_counters("threads", move || started.counters().list());
        self.metrics.add_sizes("threads", move || {
            vec![("running", executor.threads() as u64), ("busy", executor.in_hand() as u64)]
        });
        self.metrics.add_counters("connections", move || limiter.counters().list());
        self.metrics
            .add_sizes("connections", move || vec![("open", open.open() as u64), ("pending", open.pending() as u64)]);
    }

    /// HTTP first: what it has in hand asks the registry.
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
    settings::or_variable(flag, variable, default, |text| text.parse().map_err(|_| "expected a port".to_owned()))
}

fn time(flag: Option<Duration>, variable: &str, default: Duration) -> anyhow::Result<Duration> {
    settings::or_variable(flag, variable, default, settings::parse_window)
}

/// A variable that may be a secret: what is wrong with it is not told with its value. It ends at its last line
/// break, which files of secrets have.
fn secret_variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name}: expected UTF-8"),
    }
}

/// Tells of the admin who was made up, once and to the operator alone: not in the log, which is kept.
fn tell(made: &NewAdmin) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let (username, password) = (&made.username, made.password.reveal());
    writeln!(out, "admin: made at this first start, told this once: username {username}, password {password}")
        .and_then(|()| out.flush())
        .map_err(|error| {
            anyhow::anyhow!("standard output cannot be written: {error}; send it to a file or to /dev/null")
        })
}
