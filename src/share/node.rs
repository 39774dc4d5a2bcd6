//! One user's node: the files that it tracks, publishes and fetches, and its connection to the registry.
//!
//! | file | holds |
//! |---|---|
//! | `node.rs` | [`Node`]: the operations of a node |
//! | `nodes.rs` | the nodes of a process, one per user |
//! | `registry_connection.rs` | the thread that owns the connection to the registry |
//! | `published_files.rs` | the files that are served to other peers |
//! | `hashing.rs` | the thread that hashes published files |
//! | `presence_scan.rs` | checks whether tracked files still exist |
//! | `uploads.rs` | files uploaded by the user's browser |
//! | `network.rs` | snapshots of all files on the network |
//! | `change_follower.rs` | the thread that follows changes on the network |
//! | `fetch_manager.rs` | fetches of files from other hosts, also across restarts |
//! | `store.rs` | what is stored on disk: users, fetches, tokens |
//! | `events.rs` | the event streams of a node |

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::client::{CertificatePin, RegistryClient, RegistryClientError};
use super::files::{FileStat, TrackedFile, TrackedFiles, TrackedFilesError, TrackedFilesPage};
use super::folders::{FolderListing, OpenedFile, PathError, SharedFolders};
use super::heartbeat::{self, Heartbeat};
use super::page;
use super::transfer::PeerServer;
use super::wire::{FileEntry, FileName, Seconds};
use crate::model::{Clock, Name, Token};
use crate::net::http;
use crate::net::listener::ListenerContext;
use crate::net::permits::Permits;
use crate::net::threads;
use crate::storage::StoreError;

mod change_follower;
pub mod events;
pub mod fetch_manager;
mod hashing;
pub mod network;
pub mod nodes;
mod presence_scan;
mod published_files;
mod registry_connection;
pub mod store;
pub mod uploads;

use change_follower::ChangeFollower;
use events::{NodeEventHub, WatchSession};
use fetch_manager::FetchTable;
use hashing::HashCommand;
use network::{Duplicates, MAX_AGE, NetworkCache, NetworkError, NetworkSnapshot};
use published_files::PublishedFiles;
use registry_connection::{RegistryCommand, RegistryConnection};
use store::NodeStore;
pub use uploads::process_upload_permits;

/// How long an operation waits for the registry, reconnecting included.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(25);
/// How long transfers to peers may take to complete when the process ends.
const SENDING_GRACE: Duration = Duration::from_secs(2);
/// The same when only the node ends. (A peer that is too slow is cut off long before.)
const RETIRED_SENDING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Files up to this size, one piece, are hashed while they are published, not in the background.
const HASH_INLINE_BYTES_MAX: u64 = 1 << 20;
/// Capacity of the queue of commands for the registry connection's thread.
const REGISTRY_COMMANDS_MAX: usize = 1024;

/// Configuration of a process's nodes.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Host of the registry and of the server API.
    pub server_host: String,
    /// The registry's port on that host.
    pub registry_port: u16,
    /// The certificate that the registry must present over TLS; none: the connection does not use TLS.
    pub pin: Option<CertificatePin>,
    /// Address that peer ports listen on.
    pub bind: IpAddr,
    /// Range from which free peer ports are taken.
    pub ports: RangeInclusive<u16>,
    /// Address to announce to the registry instead of the one that it sees.
    pub advertise_ip: Option<IpAddr>,
    /// Heartbeat interval of a node in use.
    pub heartbeat_active: Duration,
    /// Folder of the node's store.
    pub data_dir: PathBuf,
}

/// What nodes are built from.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// For the peer ports: threads, and the limits on connections and received data.
    pub listener_context: ListenerContext,
    /// The process's clock.
    pub clock: Clock,
    /// The node's store on disk.
    pub store: NodeStore,
    /// Bound the simultaneous uploads of all users: see [`process_upload_permits`].
    pub upload_permits: Permits,
}

/// Why an operation of a node failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node has not joined the network.
    #[error("not begun yet: init comes first")]
    NotJoined,
    /// A path cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file cannot be tracked or published.
    #[error(transparent)]
    Files(#[from] TrackedFilesError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A field of the request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// A file exceeds the largest size that is supported.
    #[error("{0}")]
    TooLarge(String),
    /// There is no file, host or fetch of that name.
    #[error("{0}")]
    NotFound(String),
    /// The operation conflicts with the present state.
    #[error("{0}")]
    Conflict(String),
    /// Several hosts have different files of that name, and no owner was given.
    #[error("{}", several_owners(.0))]
    SeveralOwners(Vec<FileOwner>),
    /// A folder cannot be written to.
    #[error("{reason}")]
    Folder {
        /// One line that names the folder.
        reason: String,
        /// The disk or the quota is full.
        is_full: bool,
    },
    /// Similar files are on the network already.
    #[error(
        "the network has a file that looks the same: with `overwrite` (the command line: without --unless-duplicate) yours is published all the same"
    )]
    Duplicates(Box<Duplicates>),
    /// The registry cannot be reached, or does not respond.
    #[error("{0}")]
    RegistryUnreachable(String),
    /// The registry refused the request.
    #[error("the registry refuses: {0}")]
    RegistryRefused(String),
    /// A limit is reached; the operation can be tried again later.
    #[error("{0}")]
    Busy(String),
    /// Another error of the system.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// A host that has published a file of the requested name.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOwner {
    /// The host's name.
    pub hostname: Name,
    /// Size of its file, bytes.
    pub size: u64,
    /// When its file was last modified.
    pub modified: Seconds,
}

fn several_owners(owners: &[FileOwner]) -> String {
    const NAMED: usize = 5;
    let mut names: Vec<&str> = owners.iter().take(NAMED).map(|owner| owner.hostname.as_str()).collect();
    if owners.len() > NAMED {
        names.push("others");
    }
    format!(
        "{} have different files of that name: say whose you want (owner_hostname; `share fetch --from`)",
        names.join(", ")
    )
}

impl From<NetworkError> for NodeError {
    fn from(error: NetworkError) -> NodeError {
        match error {
            NetworkError::Registry(error) => error.into(),
            NetworkError::TooLarge | NetworkError::TooSlow => NodeError::Busy(error.to_string()),
        }
    }
}

impl From<RegistryClientError> for NodeError {
    fn from(error: RegistryClientError) -> NodeError {
        match error {
            RegistryClientError::Refused(reason) => NodeError::RegistryRefused(reason),
            error => NodeError::RegistryUnreachable(format!("the registry does not answer: {error}")),
        }
    }
}

/// Result of publishing a file.
#[derive(Debug)]
pub struct PublishOutcome {
    /// The published file.
    pub file: TrackedFile,
    /// Similar files of other hosts; empty also if the registry could not be asked.
    pub duplicates: Duplicates,
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
    /// The change follower's connection to the registry.
    follower_connection: Mutex<Option<Arc<RegistryClient>>>,
    peer_server: PeerServer,
    upload_permits: Permits,
    /// See [`Node::lock_listing`].
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

    /// The connection to the registry, if there is one.
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

    /// Whether the registry is on this host; only then may peers at loopback addresses be fetched from.
    fn is_registry_on_loopback(&self) -> bool {
        self.state.lock().registry_addr.is_some_and(|addr| addr.ip().to_canonical().is_loopback())
    }

    /// Feeds an event to the heartbeat's state machine, and notifies subscribers if the node's status changes by it.
    fn handle_heartbeat_event(&self, event: heartbeat::HeartbeatEvent) {
        let now = self.context.clock.now();
        let (before, after) = {
            let mut state = self.state.lock();
            let before = state.heartbeat.state(now);
            state.heartbeat.handle(now, event);
            (before, state.heartbeat.state(now))
        };
        if before != after {
            self.events.notify("node", &self.status());
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

    /// Notifies subscribers of a change to a file of this node. The notification's `entry` is what other hosts see of
    /// it.
    fn notify_file_changed(&self, change: &str, file: &TrackedFile) {
        // Only a file that is or was published affects the network's list.
        if file.is_published || change == "unpublished" {
            self.network.invalidate();
        }
        let entry = file.is_published.then(|| file.entry());
        self.events.notify(
            "files",
            &json!({
                "fname": file.name, "hostname": self.user, "entry": entry,
                "change": change, "name": file.name,
            }),
        );
    }

    /// Brings the registry's state of a file up to date, and waits for that.
    fn sync_and_wait(&self, name: &FileName) -> Result<(), NodeError> {
        let (reply, result) = bounded(1);
        let order = RegistryCommand::Sync { name: name.clone(), reply: Some(reply) };
        self.registry_commands.send_timeout(order, REGISTRY_TIMEOUT).map_err(|_| self.registry_unreachable())?;
        match result.recv_timeout(REGISTRY_TIMEOUT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(NodeError::RegistryUnreachable("the registry does not answer in time".to_owned()))
            }
        }
    }

    /// Brings the registry's state of a file up to date in the background. If that fails, the next connection does it,
    /// as every connection registers all files.
    fn sync_later(&self, name: &FileName) {
        let order = RegistryCommand::Sync { name: name.clone(), reply: None };
        if self.registry_commands.send_timeout(order, REGISTRY_TIMEOUT).is_err() {
            log::warn!("{}: the registry is told of {name} with the next connection", self.user);
        }
    }
}

impl Node {
    /// Starts a node that waits for [`Node::join`]: its peer port listens, but nothing is served.
    ///
    /// # Errors
    /// The store fails, or the system provides no thread.
    pub fn start(
        user: Name,
        listener: TcpListener,
        folders: SharedFolders,
        settings: Arc<NodeSettings>,
        context: NodeContext,
    ) -> Result<Node, NodeError> {
        let port = listener.local_addr()?.port();
        let files = TrackedFiles::of(Arc::clone(context.store.database()), &user);
        let published_files = Arc::new(PublishedFiles::new(files.clone(), folders));
        let peer_server =
            PeerServer::start(listener, context.listener_context.clone(), Arc::clone(&published_files) as _)?;
        let (registry_commands, registry_command_receiver) = bounded(REGISTRY_COMMANDS_MAX);
        let (hash_commands, hash_command_receiver) = bounded(1);
        let state = NodeState {
            is_joined: false,
            display_name: user.to_string(),
            token: None,
            advertise_ip: settings.advertise_ip,
            registry: None,
            registry_addr: None,
            heartbeat: Heartbeat::new(settings.heartbeat_active),
            connect_error: None,
        };
        let clock = context.clock;
        let fetches = FetchTable::new(context.store.fetches(&user)?);
        let inner = Arc::new(NodeInner {
            user,
            settings,
            context,
            files,
            published_files,
            port,
            state: Mutex::new(state),
            events: NodeEventHub::new(clock),
            network: NetworkCache::default(),
            fetches,
            registry_commands,
            hash_commands,
            follower_connection: Mutex::default(),
            peer_server,
            upload_permits: uploads::user_upload_permits(),
            listing_lock: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let (registry_connection, change_follower) =
            (RegistryConnection::new(Arc::clone(&inner)), ChangeFollower::new(Arc::clone(&inner)));
        let hashing_inner = Arc::clone(&inner);
        let (follower_wakeup, follower_wakeups) = bounded(1);
        let node = Node { inner, threads: Mutex::default(), membership_lock: Mutex::default(), follower_wakeup };
        node.threads.lock().push(threads::spawn("share-follow", move || change_follower.run(&follower_wakeups))?);
        node.threads
            .lock()
            .push(threads::spawn("share-link", move || registry_connection.run(&registry_command_receiver))?);
        node.threads
            .lock()
            .push(threads::spawn("share-hash", move || hashing::run(&hashing_inner, &hash_command_receiver))?);
        Ok(node)
    }

    /// Joins the network: connects to the registry, serves published files, and resumes interrupted work.
    ///
    /// # Errors
    /// The first attempt to register failed. If the registry is unreachable, further attempts follow; if it refused a
    /// node that had not joined before, none do.
    pub fn join(&self, options: JoinOptions) -> Result<(), NodeError> {
        let inner = &self.inner;
        let was_joined = {
            let mut state = inner.state.lock();
            state.display_name.clone_from(&options.display_name);
            state.advertise_ip = options.advertise_ip;
            if options.token.is_some() {
                state.token.clone_from(&options.token);
            }
            std::mem::replace(&mut state.is_joined, true)
        };
        inner.published_files.set_folders(options.folders);
        inner.published_files.set_serving(true);
        self.resume_work();
        let (reply, result) = bounded(1);
        inner
            .registry_commands
            .send_timeout(RegistryCommand::Join(reply), REGISTRY_TIMEOUT)
            .map_err(|_| inner.registry_unreachable())?;
        if !options.waits_for_registry {
            return Ok(());
        }
        match result.recv_timeout(REGISTRY_TIMEOUT) {
            Ok(Err(NodeError::RegistryRefused(reason))) if !was_joined => {
                self.leave();
                Err(NodeError::RegistryRefused(reason))
            }
            Ok(result) => result,
            Err(_) => Err(NodeError::RegistryUnreachable("the registry does not answer in time".to_owned())),
        }
    }

    fn resume_work(&self) {
        // If the queue is full, a wake-up is pending already.
        let _ = self.inner.hash_commands.try_send(HashCommand::HashPending);
        fetch_manager::resume_all(&self.inner);
    }

    /// Replaces the token that is presented to the registry.
    pub fn set_token(&self, token: &Token) {
        self.inner.state.lock().token = Some(token.clone());
    }

    /// Leaves the network: unregisters, serves nothing any more, and suspends fetches.
    pub fn leave(&self) {
        {
            let mut state = self.inner.state.lock();
            state.is_joined = false;
            state.token = None;
        }
        self.inner.published_files.set_serving(false);
        fetch_manager::suspend_all(&self.inner);
        let (reply, result) = bounded(1);
        if self.inner.registry_commands.send_timeout(RegistryCommand::Leave(reply), REGISTRY_TIMEOUT).is_ok() {
            // Unregistering gets as long as any other call.
            let _ = result.recv_timeout(REGISTRY_TIMEOUT);
        }
    }

    /// Stops the node when the process ends, within `grace`. Fetches are resumed at the next start.
    pub fn stop(&self, grace: Duration) {
        self.stop_within(grace, SENDING_GRACE);
    }

    /// Stops the node for good after [`Node::leave`], once transfers to peers are complete.
    pub(super) fn retire(&self) {
        self.stop_within(RETIRED_SENDING_MAX, RETIRED_SENDING_MAX);
    }

    fn stop_within(&self, grace: Duration, sending_grace: Duration) {
        let inner = &self.inner;
        let deadline = Instant::now() + grace;
        let remaining = || deadline.saturating_duration_since(Instant::now());
        inner.is_stopping.store(true, Relaxed);
        inner.published_files.set_serving(false);
        inner.events.end();
        let registry = inner.state.lock().registry.clone();
        if let Some(follower_connection) = inner.follower_connection.lock().take() {
            follower_connection.close();
        }
        // If the queue is full, a wake-up is pending already.
        let _ = self.follower_wakeup.try_send(());
        // Fails if the threads have ended already.
        let _ = inner.registry_commands.send_timeout(RegistryCommand::Stop, remaining());
        let _ = inner.hash_commands.send_timeout(HashCommand::Stop, remaining());
        fetch_manager::suspend_all(inner);
        inner.peer_server.stop(remaining().min(sending_grace));
        let threads = std::mem::take(&mut *self.threads.lock());
        while threads.iter().any(|thread| !thread.is_finished()) && !remaining().is_zero() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(registry) = registry {
            registry.close();
        }
        // A thread that still waits for an unresponsive registry is not joined: the process ends anyway.
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
    }

    /// Held while joining or leaving and storing the result, so that only one of these happens at a time. (It is held
    /// on purpose while waiting for the registry: the next caller depends on the outcome.)
    pub(super) fn lock_membership(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.membership_lock.lock()
    }

    /// Whether a transfer to a peer is in progress.
    pub(super) fn is_sending(&self) -> bool {
        self.inner.peer_server.active_transfers() > 0
    }

    /// Whether it has joined the network.
    pub fn is_joined(&self) -> bool {
        self.inner.is_joined()
    }

    /// The node's user.
    pub fn user(&self) -> &Name {
        &self.inner.user
    }

    /// Address of its peer port.
    pub fn peer_addr(&self) -> SocketAddr {
        self.inner.peer_server.local_addr()
    }

    /// Notes that the user is active, which makes heartbeats more frequent.
    pub fn note_activity(&self) {
        self.inner.handle_heartbeat_event(heartbeat::HeartbeatEvent::Used);
    }

    /// Its status, in the client API's JSON form.
    pub fn status(&self) -> Value {
        self.inner.status()
    }

    /// The response of the client API's `init`.
    pub fn client_json(&self) -> Value {
        let mut client = self.inner.status();
        let settings = &self.inner.settings;
        let advertise_ip = self.inner.state.lock().advertise_ip;
        client["username"] = json!(self.inner.user);
        client["server_host"] = json!(settings.server_host);
        client["server_port"] = json!(settings.registry_port);
        client["advertise_ip"] = json!(advertise_ip);
        client
    }

    /// Subscribes to the node's events, from now on or from after that event, until the session ends. None if there are
    /// too many subscribers.
    pub fn watch(&self, session: WatchSession, last_event_id: Option<&str>) -> Option<http::EventStream> {
        let events = self.inner.events.add(session, last_event_id);
        // If the queue is full, a wake-up is pending already.
        let _ = self.follower_wakeup.try_send(());
        events
    }

    /// Ends the event streams that were opened with this session's token.
    pub fn end_watching(&self, session: &WatchSession) {
        self.inner.events.end_session(&session.token);
    }

    /// All tracked files, or only the published ones.
    ///
    /// # Errors
    /// The store fails.
    pub fn files(&self, published_only: bool) -> Result<Vec<TrackedFile>, NodeError> {
        Ok(self.inner.files.list(published_only)?)
    }

    /// The tracked file of that name.
    ///
    /// # Errors
    /// The store fails.
    pub fn file(&self, name: &FileName) -> Result<Option<TrackedFile>, NodeError> {
        Ok(self.inner.files.get(name)?)
    }

    /// Tracks a file under its own name.
    ///
    /// # Errors
    /// The path cannot be used, or the file cannot be tracked.
    pub fn add(&self, path: &str) -> Result<TrackedFile, NodeError> {
        let opened = self.inner.published_files.folders().open(path)?;
        // The name as given, because a link may have a better name than its target.
        let last = std::path::Path::new(path).file_name().or(opened.path.file_name()).and_then(|name| name.to_str());
        let name = FileName::new(last.unwrap_or_default())
            .map_err(|wrong| NodeError::Invalid(format!("the file's name: {wrong}")))?;
        let stat = FileStat::of(&opened.path, &opened.metadata);
        let file = self.inner.files.track(&name, stat, Clock::wall())?;
        self.inner.notify_file_changed("added", &file);
        Ok(file)
    }

    /// Publishes a tracked file, or the file at `path` under the given name; its content is hashed anew. When this
    /// returns, the registry lists the file; the digests of a large one follow later.
    ///
    /// # Errors
    /// [`NodeError::Duplicates`] unless `overwrite`, or any other; the file is then in the same state as before.
    pub fn publish(&self, name: &FileName, path: Option<&str>, overwrite: bool) -> Result<PublishOutcome, NodeError> {
        let inner = &self.inner;
        let folders = inner.published_files.folders();
        let tracked = inner.files.get(name)?;
        let mut opened = match (path, &tracked) {
            (Some(path), _) => folders.open(path)?,
            (None, Some(tracked)) => folders.reopen(&tracked.stat.path)?,
            (None, None) => return Err(TrackedFilesError::NotTracked(name.clone()).into()),
        };
        let stat = FileStat::of(&opened.path, &opened.metadata);
        // A small file is hashed right away, so that the registry gets everything in one message.
        let digests = match stat.size {
            ..=HASH_INLINE_BYTES_MAX => hashing::hash_opened(&mut opened, &stat, &|| true).ok().flatten(),
            _ => None,
        };
        drop(opened);
        let duplicates = self.duplicates(name, stat.size, Some(super::unix_time::unix_seconds(stat.modified_ns)));
        let duplicates = match duplicates {
            Ok(duplicates) if !overwrite && !duplicates.is_empty() => {
                return Err(NodeError::Duplicates(Box::new(duplicates)));
            }
            Ok(duplicates) => duplicates,
            // Without the registry's answer it is unknown whether there are duplicates.
            Err(error) if !overwrite => return Err(error),
            Err(_) => Duplicates::default(),
        };
        let file = inner.files.publish(name, stat, digests.as_ref(), Clock::wall())?;
        if digests.is_none() {
            // Also if the registry is unreachable. If the queue is full, a wake-up is pending already.
            let _ = inner.hash_commands.try_send(HashCommand::HashPending);
        }
        if let Err(error) = inner.sync_and_wait(name) {
            if tracked.is_none_or(|tracked| !tracked.is_published) {
                inner.files.unpublish(name)?;
                // The registry may have received it all the same.
                inner.sync_later(name);
            }
            return Err(error);
        }
        inner.notify_file_changed("published", &file);
        Ok(PublishOutcome { file, duplicates })
    }

    /// Unpublishes a file; it stays tracked. It is no longer served from now on, even if the registry is unreachable:
    /// that learns of it with the next connection.
    ///
    /// # Errors
    /// The file is not tracked, the store fails, or the registry refuses.
    pub fn unpublish(&self, name: &FileName) -> Result<TrackedFile, NodeError> {
        let file = self.inner.files.unpublish(name)?;
        let result = self.sync_unpublished(name);
        self.inner.notify_file_changed("unpublished", &file);
        result.map(|()| file)
    }

    /// Makes the registry drop a file that is no longer published, now or with the next connection.
    fn sync_unpublished(&self, name: &FileName) -> Result<(), NodeError> {
        match self.inner.sync_and_wait(name) {
            Err(NodeError::RegistryUnreachable(why)) => {
                log::info!("{}: the registry learns later of {name}: {why}", self.inner.user);
                Ok(())
            }
            result => result,
        }
    }

    /// Stops tracking a file, unpublishing it first. The file itself stays, and transfers of it in progress complete.
    /// An unreachable registry is no error: it learns of it with the next connection.
    ///
    /// # Errors
    /// The file is not tracked, the store fails, or the registry refuses.
    pub fn remove(&self, name: &FileName) -> Result<(), NodeError> {
        let inner = &self.inner;
        let tracked = inner.files.get(name)?.ok_or_else(|| TrackedFilesError::NotTracked(name.clone()))?;
        if tracked.is_published {
            inner.files.unpublish(name)?;
            self.sync_unpublished(name)?;
            inner.network.invalidate();
        }
        let file = inner.files.remove(name)?;
        inner.notify_file_changed("removed", &TrackedFile { is_published: false, ..file });
        Ok(())
    }

    /// A page of the tracked or published files that match the request's query, by name. The first 1,000 of them are
    /// checked for whether they still exist.
    ///
    /// # Errors
    /// The store fails.
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

    /// Opens a tracked file for reading.
    ///
    /// # Errors
    /// [`NodeError::NotFound`] if it cannot be opened for whatever reason, or the store fails.
    pub fn open(&self, name: &FileName) -> Result<(TrackedFile, OpenedFile), NodeError> {
        let gone = || NodeError::NotFound(format!("there is no file {name} here"));
        let file = self.inner.files.get(name)?.ok_or_else(gone)?;
        let opened = self.inner.published_files.folders().reopen(&file.stat.path).map_err(|error| {
            log::info!("{}: {name} cannot be read: {error}", self.inner.user);
            gone()
        })?;
        Ok((file, opened))
    }

    /// Lists a folder that this user may choose files from or, without a path, these folders. None if the path may not
    /// be seen.
    pub fn browse(&self, path: Option<&str>) -> Option<FolderListing> {
        self.inner.published_files.folders().browse(path)
    }

    /// Starts the upload of a file of `length` bytes, if known.
    ///
    /// # Errors
    /// The name is invalid or taken, the disk is full, or there are too many uploads.
    pub fn upload(&self, name: &str, length: Option<u64>) -> Result<uploads::Upload, NodeError> {
        uploads::Upload::begin(&self.inner, name, length)
    }

    /// Finds files of other hosts that are similar to one with this name, size and modification time. The registry
    /// looks them up, at a cost that does not depend on the size of the network.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses.
    pub fn duplicates(&self, name: &FileName, size: u64, modified: Option<Seconds>) -> Result<Duplicates, NodeError> {
        let found = self.inner.registry()?.similar_files(name, size, modified)?;
        Ok(Duplicates::of(&self.inner.user, size, modified.map(Seconds::get), found))
    }

    /// A recent snapshot of all files on the network.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses, or the network is too large.
    pub fn network(&self) -> Result<Arc<NetworkSnapshot>, NodeError> {
        let registry = self.inner.registry()?;
        Ok(self.inner.network.snapshot(MAX_AGE, &registry)?)
    }

    /// A newer snapshot, for when nothing was found in the one of [`Node::network`].
    ///
    /// # Errors
    /// As [`Node::network`].
    pub fn refreshed_network(&self) -> Result<Arc<NetworkSnapshot>, NodeError> {
        let registry = self.inner.registry()?;
        Ok(self.inner.network.refreshed(&registry)?)
    }

    /// The files and the address of one host.
    ///
    /// # Errors
    /// [`NodeError::NotFound`], or the registry cannot be reached.
    pub fn discover(&self, hostname: &Name) -> Result<HostFiles, NodeError> {
        match self.inner.registry()?.discover(hostname) {
            Ok((files, addr)) => Ok(HostFiles { files: files.into_iter().collect(), addr }),
            Err(RegistryClientError::Refused(reason)) => Err(NodeError::NotFound(reason)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the registry considers a host online.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses.
    pub fn ping(&self, hostname: &Name) -> Result<bool, NodeError> {
        Ok(self.inner.registry()?.ping(hostname, None)?)
    }

    /// The node's fetches.
    pub fn fetches(&self) -> fetch_manager::FetchManager<'_> {
        fetch_manager::FetchManager::of(&self.inner)
    }
}

/// Parameters of [`Node::join`].
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The user's display name.
    pub display_name: String,
    /// Authenticates to the registry; without it the resume secret of the last registration is used alone.
    pub token: Option<Token>,
    /// Address to announce to the registry instead of the one that it sees.
    pub advertise_ip: Option<IpAddr>,
    /// The folders that the user's paths may lead into.
    pub folders: SharedFolders,
    /// Whether to wait for the first attempt to register.
    pub waits_for_registry: bool,
}

/// A host's files and address.
#[derive(Debug)]
pub struct HostFiles {
    /// Its published files, ordered by name.
    pub files: Vec<(FileName, FileEntry)>,
    /// Address and port of its peer port.
    pub addr: (IpAddr, u16),
}
