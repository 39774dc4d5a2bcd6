//! One user's node: the files that it tracks, publishes and fetches, and its connection to the registry.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::client::{CertificatePin, HostFiles, RegistryClient, RegistryClientError};
use super::files::{TrackedFile, TrackedFiles, TrackedFilesPage};
use super::folders::{FolderListing, OpenedFile};
use super::heartbeat::{self, Heartbeat};
use super::page;
use super::transfer::PeerServer;
use super::wire::{Action, FileName};
use crate::model::{Clock, Name, Token};
use crate::net::http;
use crate::net::listener::ListenerContext;
use crate::net::permits::Permits;

mod change_follower;
pub mod duplicates;
mod error;
pub mod events;
mod fetch_manager;
mod hashing;
mod lifecycle;
pub mod network;
pub mod nodes;
mod presence_scan;
mod published_files;
mod publishing;
mod registry_connection;
pub mod store;
pub mod uploads;

pub use error::{FileOwner, NodeError};
pub use lifecycle::JoinOptions;

use events::{NodeEventHub, WatchSession};
use fetch_manager::FetchTable;
use hashing::HashCommand;
use network::{MAX_AGE, NetworkCache, NetworkSnapshot};
use published_files::PublishedFiles;
use registry_connection::RegistryCommand;
use store::NodeStore;
pub use uploads::process_upload_permits;

/// How long an operation waits for the registry, reconnecting included.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The host of both the registry and the server API.
    pub server_host: String,
    pub registry_port: u16,
    /// The certificate that the registry must present over TLS; without it, the connection does not use TLS.
    pub pin: Option<CertificatePin>,
    pub bind: IpAddr,
    /// Free peer ports are taken from this range.
    pub ports: RangeInclusive<u16>,
    /// Address to announce to the registry instead of the one that it sees.
    pub advertise_ip: Option<IpAddr>,
    /// The heartbeat interval of a node in use.
    pub heartbeat_active: Duration,
    pub data_dir: PathBuf,
}

#[derive(Debug, Clone)]
pub struct NodeContext {
    pub listener: ListenerContext,
    pub clock: Clock,
    pub store: NodeStore,
    /// These bound the uploads of all users: see [`process_upload_permits`].
    pub upload_permits: Permits,
}

/// One user's node. It runs until [`Node::stop`].
pub struct Node {
    inner: Arc<NodeInner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    membership_lock: Mutex<()>,
    follower_wakeup: Sender<()>,
}

pub(super) struct NodeInner {
    user: Name,
    settings: Arc<NodeSettings>,
    context: NodeContext,
    files: TrackedFiles,
    published_files: Arc<PublishedFiles>,
    port: u16,
    state: Mutex<NodeState>,
    events: NodeEventHub,
    network: NetworkCache,
    fetches: FetchTable,
    registry_commands: Sender<RegistryCommand>,
    hash_commands: Sender<HashCommand>,
    follower_connection: Mutex<Option<Arc<RegistryClient>>>,
    peer_server: PeerServer,
    upload_permits: Permits,
    listing_lock: Mutex<()>,
    is_stopping: AtomicBool,
}

struct NodeState {
    is_joined: bool,
    display_name: String,
    /// Presented to the registry, also after it has expired: only the registry decides that.
    token: Option<Token>,
    advertise_ip: Option<IpAddr>,
    registry: Option<Arc<RegistryClient>>,
    /// The registry's address in the last connection.
    registry_addr: Option<SocketAddr>,
    heartbeat: Heartbeat,
    /// Why there is no connection, for users.
    connect_error: Option<String>,
}

impl NodeInner {
    fn is_joined(&self) -> bool {
        self.state.lock().is_joined
    }

    fn registry_unreachable(&self) -> NodeError {
        let why = self.state.lock().connect_error.clone();
        NodeError::RegistryUnreachable(why.unwrap_or_else(|| "the registry has not been reached yet".to_owned()))
    }

    fn registry(&self) -> Result<Arc<RegistryClient>, NodeError> {
        let registry = {
            let state = self.state.lock();
            if !state.is_joined {
                return Err(NodeError::NotJoined);
            }
            state.registry.clone()
        };
        registry.filter(|registry| !registry.is_closed()).ok_or_else(|| self.registry_unreachable())
    }

    /// Only in that case may peers at loopback addresses be fetched from.
    fn is_registry_on_loopback(&self) -> bool {
        self.state.lock().registry_addr.is_some_and(|addr| addr.ip().to_canonical().is_loopback())
    }

    /// Notifies subscribers if the node's status changes by the event.
    fn handle_heartbeat_event(&self, event: heartbeat::HeartbeatEvent) {
        let now = self.context.clock.now();
        let (before, after) = {
            let mut state = self.state.lock();
            let before = state.heartbeat.state(now);
            state.heartbeat.handle(now, event);
            (before, state.heartbeat.state(now))
        };
        if before != after {
            self.events.publish((), "node", &self.status());
        }
    }

    fn active_transfers(&self) -> usize {
        self.peer_server.active_transfers() + self.fetches.active_count()
    }

    fn status(&self) -> Value {
        let now = self.context.clock.now();
        let state = self.state.lock();
        let heartbeat_state = state.heartbeat.state(now);
        json!({
            "hostname": self.user,
            "display_name": state.display_name,
            "port": self.port,
            "repo": self.published_files.folders().repo().to_string_lossy(),
            "state": heartbeat_state.as_text(),
            "heartbeat_interval": state.heartbeat.interval(heartbeat_state).as_secs_f64(),
            "error": state.connect_error,
        })
    }
}

impl Node {
    pub(super) fn is_sending(&self) -> bool {
        self.inner.peer_server.active_transfers() > 0
    }

    pub fn is_joined(&self) -> bool {
        self.inner.is_joined()
    }

    pub fn user(&self) -> &Name {
        &self.inner.user
    }

    pub fn peer_addr(&self) -> SocketAddr {
        self.inner.peer_server.local_addr()
    }

    /// Makes heartbeats more frequent.
    pub fn note_activity(&self) {
        self.inner.handle_heartbeat_event(heartbeat::HeartbeatEvent::Used);
    }

    /// In the client API's JSON form.
    pub fn status(&self) -> Value {
        self.inner.status()
    }

    /// The response of the client API's `init`.
    pub fn client_json(&self) -> Value {
        let mut client = self.inner.status();
        client["username"] = json!(self.inner.user);
        client["server_host"] = json!(self.inner.settings.server_host);
        client["server_port"] = json!(self.inner.settings.registry_port);
        client["advertise_ip"] = json!(self.inner.state.lock().advertise_ip);
        client
    }

    /// Subscribes from now on or from after that event, until the session ends; none if there are too many subscribers.
    pub fn watch(&self, session: WatchSession, last_event_id: Option<&str>) -> Option<http::EventStream> {
        let events = self.inner.events.subscribe(session, last_event_id);
        // If the queue is full, a wake-up is pending already.
        let _ = self.follower_wakeup.try_send(());
        events
    }

    pub fn end_watching(&self, session: &WatchSession) {
        self.inner.events.close_where(|open| open.token == session.token);
    }

    pub fn file(&self, name: &FileName) -> Result<Option<TrackedFile>, NodeError> {
        Ok(self.inner.files.get(name)?)
    }

    /// The files that match the request's query, by name. The first 1,000 are checked for whether they still exist.
    pub fn files_page(&self, published_only: bool, asked: &page::PageRequest) -> Result<TrackedFilesPage, NodeError> {
        let mut page = self.inner.files.page(published_only, &asked.query, (asked.offset, asked.limit))?;
        let checked = page.files.len().min(presence_scan::BATCH_MAX);
        presence_scan::check_presence(&self.inner, &mut page.files[..checked])?;
        Ok(page)
    }

    /// To be held while a list is built and sent, so that simultaneous requests together need the memory of one list.
    pub fn lock_listing(&self) -> MutexGuard<'_, ()> {
        self.inner.listing_lock.lock()
    }

    /// [`NodeError::NotFound`] if the file cannot be opened for whatever reason.
    pub fn open(&self, name: &FileName) -> Result<(TrackedFile, OpenedFile), NodeError> {
        let gone = || NodeError::NotFound(format!("there is no file {name} here"));
        let file = self.inner.files.get(name)?.ok_or_else(gone)?;
        let opened = self.inner.published_files.folders().reopen(&file.stat.path).map_err(|error| {
            log::info!("{}: {name} cannot be read: {error}", self.inner.user);
            gone()
        })?;
        Ok((file, opened))
    }

    /// A folder that this user may choose files from; without a path, all of these. None if the path may not be seen.
    pub fn browse(&self, path: Option<&str>) -> Option<FolderListing> {
        self.inner.published_files.folders().browse(path)
    }

    /// `length` is in bytes, if it is known.
    pub fn upload(&self, name: &str, length: Option<u64>) -> Result<uploads::Upload, NodeError> {
        uploads::Upload::begin(&self.inner, name, length)
    }

    /// The snapshot is recent.
    pub fn network(&self) -> Result<Arc<NetworkSnapshot>, NodeError> {
        let registry = self.inner.registry()?;
        self.inner.network.snapshot(MAX_AGE, &registry)
    }

    /// A newer snapshot, for when nothing was found in the one of [`Node::network`].
    pub fn refreshed_network(&self) -> Result<Arc<NetworkSnapshot>, NodeError> {
        let registry = self.inner.registry()?;
        self.inner.network.refreshed(&registry)
    }

    pub fn discover(&self, hostname: &Name) -> Result<HostFiles, NodeError> {
        self.inner.registry()?.discover(hostname).map_err(|error| match error {
            RegistryClientError::Refused(reason) => NodeError::NotFound(reason),
            error => error.into(),
        })
    }

    /// Asks the registry, for what needs nothing else of the node.
    pub fn ask<A: Action>(&self, request: &A) -> Result<A::Answer, NodeError> {
        Ok(self.inner.registry()?.call(request)?)
    }
}
