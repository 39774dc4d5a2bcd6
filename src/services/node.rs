//! A file-sharing node: its peer port, its store and its client API.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::listeners::{Listeners, port_in_use};
use super::resources::SharedResources;
use super::running_nodes::{self, NodeRecordFile};
use super::tls::TlsConfig;
use super::{ServiceProcess, page_urls, stores};
use crate::model::{Clock, Name};
use crate::net::http::{HttpContext, HttpLimits, HttpServer, RequestPolicy};
use crate::net::interfaces::reachable_addr;
use crate::net::limits::RequestedBounds;
use crate::net::listener;
use crate::net::tls::TlsIdentity;
use crate::share::api_client::ApiClient;
use crate::share::client_api::ClientApi;
use crate::share::client_api::authenticator::Authenticator;
use crate::share::node::nodes::{Nodes, StartNodesError};
use crate::share::node::store::NodeStore;
use crate::share::node::{NodeContext, NodeSettings, process_upload_permits};
use crate::storage::create_private_dir;
use crate::storage::lock::DataDirLock;
use crate::web::Site;

/// The client API's port if none is chosen and it is free.
pub const API_PORT: u16 = 5501;
/// Ports for the client API that are tried in turn if none was given.
const API_PORTS_TRIED: u16 = 100;
/// How long pending work may take to finish at shutdown; `API_SHUTDOWN_GRACE` of it is for the API.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(4_500);
const API_SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Connections of peers and API clients together.
const CONNECTIONS_MAX: usize = 4_000;
/// Threads other than those of connections: nodes, fetches, the store.
const OTHER_THREADS: usize = 1_024;
/// Files that a node keeps open: standard streams, locks, a store, two ports, the server connection, and files that are
/// opened briefly.
pub const OWN_FILES: u64 = 30;
/// How long the server may take to check a token or a password.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct NodeProcessConfig {
    pub name: Name,
    pub settings: NodeSettings,
    /// The server API's port and certificate; without one it is asked without TLS.
    pub server_api_port: u16,
    pub server_cert: Option<String>,
    /// The port for other peers; without it the last one, or a free one.
    pub port: Option<u16>,
    /// What may be shared and written to lies below these.
    pub folders: Vec<PathBuf>,
    /// Where fetched files go; `repo` in the data dir without it.
    pub repo: Option<PathBuf>,
    /// The address of the client API; without a port the first free one from [`API_PORT`] on.
    pub api_ip: IpAddr,
    pub api_port: Option<u16>,
    pub policy: RequestPolicy,
    pub tls: TlsConfig,
}

/// Starts a node. The process must have been prepared for [`OWN_FILES`].
pub fn start(config: NodeProcessConfig) -> anyhow::Result<ServiceProcess> {
    let NodeProcessConfig { name, settings, tls, .. } = &config;
    let data_dir = &settings.data_dir;
    let lock = DataDirLock::acquire(data_dir)?;
    // Checked before a certificate is created.
    stores::check_node_stores(data_dir)?;
    let identity = api_identity(&config)?;
    let repo = config.repo.clone().unwrap_or_else(|| data_dir.join("repo"));
    create_private_dir(&repo).with_context(|| format!("--repo: cannot create {}", repo.display()))?;
    let wanted = RequestedBounds {
        connections: CONNECTIONS_MAX,
        own_files: OWN_FILES,
        other_threads: OTHER_THREADS,
        other_files: OTHER_THREADS,
    };
    let resources = SharedResources::within_bounds(wanted, "connections at once:", "share");
    // Bound before anything in the data dir is changed.
    let listener = api_listener(config.api_ip, config.api_port)?;
    let store = NodeStore::open(data_dir)?;
    let clock = Clock::start();
    let nodes = Arc::new(start_nodes(&config, &repo, &resources, identity.clone(), &store, clock)?);

    let api =
        ApiClient::new(&settings.server_host, config.server_api_port, config.server_cert.as_deref(), SERVER_TIMEOUT);
    let handler = Site::of_node(ClientApi::new(Arc::clone(&nodes), Authenticator::new(api, store.clone(), clock)));
    let fingerprint = identity.as_ref().map(|identity| identity.fingerprint().to_owned());
    let (listener_context, policy) = (resources.listener_context(identity, tls.insecure), config.policy.clone());
    let http_context = HttpContext { listener: listener_context, policy, limits: HttpLimits::default() };
    let http = HttpServer::start(listener, http_context, Arc::new(handler)).context("cannot serve the client API")?;
    let peer = nodes.peer_addr(name).context("the node has ended")?;
    let api_addr = http.local_addr();
    let record = write_record(name, api_addr, fingerprint.as_deref());
    let listeners = listeners(peer, api_addr, fingerprint.is_some());
    let stop = move || {
        log::info!("stopping: what is in hand has {} s", SHUTDOWN_GRACE.as_secs());
        let deadline = Instant::now() + SHUTDOWN_GRACE;
        http.stop(API_SHUTDOWN_GRACE);
        nodes.stop(deadline.saturating_duration_since(Instant::now()));
        store.database().close();
        drop((http, nodes, store, record, lock));
    };
    Ok(ServiceProcess { listeners, stop: Box::new(stop) })
}

fn api_identity(config: &NodeProcessConfig) -> anyhow::Result<Option<Arc<TlsIdentity>>> {
    let (ip, tls) = (config.api_ip, &config.tls);
    match tls.identity(ip, &config.settings.data_dir) {
        Err(_) if !tls.has_certificate() => {
            bail!(
                "--api-bind {ip} is open to other hosts: say --tls (with the data dir's own certificate) or --insecure"
            )
        }
        identity => identity,
    }
}

fn api_listener(ip: IpAddr, port: Option<u16>) -> anyhow::Result<TcpListener> {
    if let Some(port) = port {
        let addr = SocketAddr::new(ip, port);
        return listener::listen(addr).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => port_in_use(addr, "--api-port"),
            _ => anyhow::Error::from(error).context(format!("cannot listen at {addr} (--api-bind, --api-port)")),
        });
    }
    for port in API_PORT..API_PORT + API_PORTS_TRIED {
        let addr = SocketAddr::new(ip, port);
        match listener::listen(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("cannot listen at {addr} (--api-bind)")),
        }
    }
    bail!("no port of {API_PORT} to {} is free: choose one with --api-port", API_PORT + API_PORTS_TRIED - 1)
}

fn start_nodes(
    config: &NodeProcessConfig,
    repo: &Path,
    resources: &SharedResources,
    identity: Option<Arc<TlsIdentity>>,
    store: &NodeStore,
    clock: Clock,
) -> anyhow::Result<Nodes> {
    let context = NodeContext {
        listener: resources.listener_context(identity, config.tls.insecure),
        clock,
        store: store.clone(),
        upload_permits: process_upload_permits(),
    };
    let NodeProcessConfig { settings, folders, name, port, .. } = config;
    Nodes::start(settings.clone(), context, folders, repo, name, *port).map_err(|error| match error {
        StartNodesError::PortInUse { addr } => port_in_use(addr, "--port"),
        error => error.into(),
    })
}

fn write_record(name: &Name, api_addr: SocketAddr, cert_sha256: Option<&str>) -> Option<NodeRecordFile> {
    let at = reachable_addr(api_addr);
    running_nodes::write_node_record(name, at, cert_sha256)
        .inspect_err(|error| log::warn!("commands find this node by --api-port {} alone: {error:#}", at.port()))
        .ok()
}

fn listeners(peer: SocketAddr, api_addr: SocketAddr, is_tls: bool) -> Listeners {
    let scheme = if is_tls { "https" } else { "http" };
    let mut listeners = Listeners::default();
    listeners.add(format!("peer: tcp {peer}"), "peer", peer);
    listeners.add(format!("client api: {scheme}://{api_addr}/api/client"), "client_api", api_addr);
    listeners.lines.extend(page_urls::lines(api_addr, is_tls));
    listeners
}
