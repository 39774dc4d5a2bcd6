//! How a node starts, joins the network, leaves it and stops.

use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::change_follower::ChangeFollower;
use super::events::new_event_hub;
use super::fetch_manager::{self, FetchTable};
use super::hashing::{self, HashCommand};
use super::network::NetworkCache;
use super::published_files::PublishedFiles;
use super::registry_connection::{RegistryCommand, RegistryConnection};
use super::uploads::UPLOADS_PER_USER_MAX;
use super::{Node, NodeContext, NodeError, NodeInner, NodeSettings, NodeState, REGISTRY_TIMEOUT};
use crate::model::{Name, Token};
use crate::net::permits::Permits;
use crate::net::threads;
use crate::share::files::TrackedFiles;
use crate::share::folders::SharedFolders;
use crate::share::heartbeat::Heartbeat;
use crate::share::transfer::{PeerServer, PeerServerLimits};

/// How long transfers to peers may take to complete when the process ends.
const SENDING_GRACE: Duration = Duration::from_secs(2);
/// The same when only the node ends. (A peer that is too slow is cut off long before.)
const RETIRED_SENDING_MAX: Duration = Duration::from_secs(24 * 3600);
const REGISTRY_COMMANDS_MAX: usize = 1024;

impl Node {
    /// Starts a node that waits for [`Node::join`]: its peer port listens, but nothing is served.
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
        let (peer_context, limits) = (context.listener.clone(), PeerServerLimits::default());
        let peer_server = PeerServer::start(listener, peer_context, Arc::clone(&published_files) as _, limits)?;
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
            events: new_event_hub(clock),
            network: NetworkCache::default(),
            fetches,
            registry_commands,
            hash_commands,
            follower_connection: Mutex::default(),
            peer_server,
            upload_permits: Permits::new(UPLOADS_PER_USER_MAX),
            listing_lock: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let (connection, follower) =
            (RegistryConnection::new(Arc::clone(&inner)), ChangeFollower::new(Arc::clone(&inner)));
        let hashing_inner = Arc::clone(&inner);
        let (follower_wakeup, wakeups) = bounded(1);
        let threads = Mutex::new(vec![
            threads::spawn("share-follow", move || follower.run(&wakeups))?,
            threads::spawn("share-link", move || connection.run(&registry_command_receiver))?,
            threads::spawn("share-hash", move || hashing::run(&hashing_inner, &hash_command_receiver))?,
        ]);
        Ok(Node { inner, threads, membership_lock: Mutex::default(), follower_wakeup })
    }

    /// Connects to the registry, serves published files, and resumes interrupted work. If the first attempt to register
    /// fails, further ones follow, unless the registry refused a node that had not joined before.
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
        // If the queue is full, a wake-up is pending already.
        let _ = inner.hash_commands.try_send(HashCommand::HashPending);
        fetch_manager::resume_all(inner);
        let (reply, result) = bounded(1);
        let sent = inner.registry_commands.send_timeout(RegistryCommand::Join(reply), REGISTRY_TIMEOUT);
        sent.map_err(|_| inner.registry_unreachable())?;
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

    pub fn set_token(&self, token: &Token) {
        self.inner.state.lock().token = Some(token.clone());
    }

    /// Unregisters, serves nothing any more, and suspends fetches.
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

    /// The process ends within `grace`. Fetches are resumed at the next start.
    pub fn stop(&self, grace: Duration) {
        self.stop_within(grace, SENDING_GRACE);
    }

    /// Stops for good after [`Node::leave`], once transfers to peers are complete.
    pub(super) fn retire(&self) {
        self.stop_within(RETIRED_SENDING_MAX, RETIRED_SENDING_MAX);
    }

    fn stop_within(&self, grace: Duration, sending_grace: Duration) {
        let inner = &self.inner;
        let deadline = Instant::now() + grace;
        let remaining = || deadline.saturating_duration_since(Instant::now());
        inner.is_stopping.store(true, Relaxed);
        inner.published_files.set_serving(false);
        inner.events.close_all();
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
        let counts = inner.peer_server.counters();
        let counts = counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name}={count}"));
        log::debug!("{}: sent to peers: {}", inner.user, counts.collect::<Vec<_>>().join(" "));
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
}

#[derive(Debug, Clone)]
pub struct JoinOptions {
    pub display_name: String,
    /// Without it, the resume secret of the last registration alone authenticates to the registry.
    pub token: Option<Token>,
    /// It is announced to the registry instead of the address that the registry sees.
    pub advertise_ip: Option<IpAddr>,
    pub folders: SharedFolders,
    pub waits_for_registry: bool,
}
