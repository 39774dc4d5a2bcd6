//! The nodes of a process: one per user, each with its own registry connection and peer port.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::store::NodeUser;
use super::{JoinOptions, Node, NodeContext, NodeError, NodeSettings, uploads};
use crate::model::{Name, Token};
use crate::net::{listener, threads};
use crate::share::folders::SharedFolders;

/// Each user's node has its own threads and port.
pub const USERS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum StartNodesError {
    #[error("{addr} is in use")]
    PortInUse { addr: SocketAddr },
    #[error("no port of {min} to {max} is free: choose others with --port-min and --port-max")]
    NoPortFree { min: u16, max: u16 },
    #[error("cannot listen at {addr}: {error}")]
    Listen { addr: SocketAddr, error: io::Error },
    #[error("--folder or --repo: {0}")]
    Folder(io::Error),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Store(#[from] crate::storage::StoreError),
}

pub struct Nodes {
    settings: Arc<NodeSettings>,
    /// Whom the process was started for.
    primary_user: Name,
    context: NodeContext,
    /// The folders of the first user; other users have the repo alone.
    folders: SharedFolders,
    slots: Arc<Mutex<NodeSlots>>,
}

/// The nodes that occupy one of the [`USERS_MAX`] slots.
#[derive(Default)]
struct NodeSlots {
    /// Nodes that have joined, and the primary user's node.
    running: BTreeMap<Name, Arc<Node>>,
    /// Nodes that have left, and complete their transfers to peers.
    leaving: Vec<Arc<Node>>,
}

impl NodeSlots {
    fn is_full(&self) -> bool {
        self.running.len() + self.leaving.len() >= USERS_MAX
    }

    fn is_running(&self, node: &Arc<Node>) -> bool {
        self.running.get(node.user()).is_some_and(|running| Arc::ptr_eq(running, node))
    }
}

impl Nodes {
    /// Starts the primary user's node, and the nodes of all users that were joined when the process last ended.
    pub fn start(
        settings: NodeSettings,
        context: NodeContext,
        folders: &[PathBuf],
        repo: &std::path::Path,
        primary_user: &Name,
        port: Option<u16>,
    ) -> Result<Nodes, StartNodesError> {
        let folders = SharedFolders::new(folders, repo, &settings.data_dir).map_err(StartNodesError::Folder)?;
        // Leftovers only waste space. A repo that cannot be read is reported when it is used.
        if let Err(error) = uploads::remove_leftovers(folders.repo()) {
            log::warn!("{}: what unfinished uploads have left: {error}", folders.repo().display());
        }
        let settings = Arc::new(settings);
        let nodes = Nodes { settings, primary_user: primary_user.clone(), context, folders, slots: Arc::default() };
        let users = nodes.context.store.users()?;
        let last_port = users.iter().find(|user| user.name == *primary_user).and_then(|user| user.port);
        let listener = match port {
            Some(port) => nodes.listen(port)?,
            None => nodes.bind_free_port(last_port)?,
        };
        nodes.add(primary_user, listener)?;
        for user in users.iter().filter(|user| user.is_joined) {
            let node = nodes.get_or_start(user)?;
            let advertise_ip = user.advertise_ip.as_deref().and_then(|ip| ip.parse().ok());
            node.join(nodes.join_options(user, None, advertise_ip, false))?;
        }
        Ok(nodes)
    }

    pub fn settings(&self) -> &NodeSettings {
        &self.settings
    }

    pub fn primary_user(&self) -> &Name {
        &self.primary_user
    }

    pub fn clock(&self) -> crate::model::Clock {
        self.context.clock
    }

    pub fn peer_addr(&self, user: &Name) -> Option<SocketAddr> {
        self.slots.lock().running.get(user).map(|node| node.peer_addr())
    }

    /// The user's node, if it has joined.
    pub fn get(&self, user: &Name) -> Option<Arc<Node>> {
        self.slots.lock().running.get(user).filter(|node| node.is_joined()).cloned()
    }

    /// Checks that the data stored here under a user's name belongs to that account. An earlier version of the server
    /// could have two accounts with different spellings of one name; the first to sign in here owns the data.
    pub fn check_account(&self, user: &Name) -> Result<(), NodeError> {
        if user.as_str().is_ascii() {
            return Ok(());
        }
        match self.context.store.first_spelling_of(user)? {
            Some(first) if first.as_str() != user.as_str() => Err(NodeError::Conflict(
                "username: another account uses this node, whose name is the same but for its spelling: use another node"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// The first user ever to sign in may use all shared folders.
    pub fn signed_in(&self, user: &Name, display_name: &str, token: &Token) -> Result<(), NodeError> {
        self.check_account(user)?;
        self.context.store.signed_in(user, display_name)?;
        if let Some(node) = self.get(user) {
            node.set_token(token);
        }
        Ok(())
    }

    /// Joins the network, or joins again with another token or address.
    pub fn join(&self, user: &Name, token: &Token, advertise_ip: Option<IpAddr>) -> Result<Arc<Node>, NodeError> {
        let stored = self.context.store.users()?.into_iter().find(|stored| stored.name == *user);
        let Some(user) = stored else {
            // The token was obtained elsewhere, not by signing in at this node.
            self.context.store.signed_in(user, user.as_str())?;
            return self.join(user, token, advertise_ip);
        };
        let node = self.get_or_start(&user)?;
        // Excludes a simultaneous logout, so that the store ends up with what was done last.
        let membership = node.lock_membership();
        if !self.slots.lock().is_running(&node) {
            // The node was retired meanwhile: start another one.
            drop(membership);
            return self.join(&user.name, token, advertise_ip);
        }
        let advertise_ip_text = advertise_ip.map(|ip| ip.to_string());
        self.context.store.set_joined(&user.name, true, advertise_ip_text.as_deref())?;
        self.context.store.set_port(&user.name, node.peer_addr().port())?;
        match node.join(self.join_options(&user, Some(token.clone()), advertise_ip, true)) {
            Ok(()) => Ok(Arc::clone(&node)),
            Err(error) => {
                if !node.is_joined() {
                    self.context.store.set_joined(&user.name, false, advertise_ip_text.as_deref())?;
                    self.retire(&node);
                }
                Err(error)
            }
        }
    }

    /// The slot becomes free once transfers to peers are complete.
    pub fn leave(&self, user: &Name) -> Result<(), NodeError> {
        let node = self.slots.lock().running.get(user).cloned();
        let _membership = node.as_ref().map(|node| node.lock_membership());
        self.context.store.set_joined(user, false, None)?;
        if let Some(node) = &node {
            if node.is_joined() {
                node.leave();
            }
            self.retire(node);
        }
        Ok(())
    }

    /// Frees the slot of a node that has left; the caller holds its membership lock. The primary user's node stays,
    /// because its peer port is in the ready file.
    fn retire(&self, node: &Arc<Node>) {
        if *node.user() == self.primary_user {
            return;
        }
        {
            let mut slots = self.slots.lock();
            if !slots.is_running(node) {
                return;
            }
            slots.running.remove(node.user());
            slots.leaving.push(Arc::clone(node));
        }
        let (slots, retired) = (Arc::clone(&self.slots), Arc::clone(node));
        let free_slot = move |stop: fn(&Node)| {
            stop(&retired);
            slots.lock().leaving.retain(|leaving| !Arc::ptr_eq(leaving, &retired));
        };
        // No new transfer can start any more.
        if !node.is_sending() {
            return free_slot(Node::retire);
        }
        let free_slot_later = free_slot.clone();
        if let Err(error) = threads::spawn("share-leave", move || free_slot_later(Node::retire)) {
            log::warn!("{}: what is being sent is cut off: {error}", node.user());
            free_slot(|node| node.stop(Duration::ZERO));
        }
    }

    /// The process ends within `grace`.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let NodeSlots { running, leaving } = std::mem::take(&mut *self.slots.lock());
        std::thread::scope(|scope| {
            for node in running.values().chain(&leaving) {
                scope.spawn(move || node.stop(deadline.saturating_duration_since(Instant::now())));
            }
        });
    }

    fn join_options(
        &self,
        user: &NodeUser,
        token: Option<Token>,
        advertise_ip: Option<IpAddr>,
        waits_for_registry: bool,
    ) -> JoinOptions {
        let folders = if user.number == 1 { self.folders.clone() } else { self.folders.repo_only() };
        let (display_name, advertise_ip) = (user.display_name.clone(), advertise_ip.or(self.settings.advertise_ip));
        JoinOptions { display_name, token, advertise_ip, folders, waits_for_registry }
    }

    fn get_or_start(&self, user: &NodeUser) -> Result<Arc<Node>, NodeError> {
        if let Some(node) = self.slots.lock().running.get(&user.name) {
            return Ok(Arc::clone(node));
        }
        let listener = self.bind_free_port(user.port).map_err(|error| match error {
            StartNodesError::Node(error) => error,
            other => NodeError::Busy(other.to_string()),
        })?;
        self.add(&user.name, listener)
    }

    fn add(&self, user: &Name, listener: TcpListener) -> Result<Arc<Node>, NodeError> {
        let port = listener.local_addr()?.port();
        let full_error = || NodeError::Busy(format!("{USERS_MAX} users have a node here already"));
        if self.slots.lock().is_full() {
            return Err(full_error());
        }
        let folders = self.folders.repo_only();
        let node = Node::start(user.clone(), listener, folders, Arc::clone(&self.settings), self.context.clone())?;
        self.context.store.set_port(user, port)?;
        let node = Arc::new(node);
        let existing = {
            let mut slots = self.slots.lock();
            match slots.running.get(user) {
                // Another request started it first.
                Some(existing) => Some(Arc::clone(existing)),
                None if slots.is_full() => None,
                None => {
                    slots.running.insert(user.clone(), Arc::clone(&node));
                    return Ok(node);
                }
            }
        };
        node.stop(Duration::ZERO);
        existing.ok_or_else(full_error)
    }

    fn listen(&self, port: u16) -> Result<TcpListener, StartNodesError> {
        let addr = SocketAddr::new(self.settings.bind, port);
        listener::listen(addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => StartNodesError::PortInUse { addr },
            _ => StartNodesError::Listen { addr, error },
        })
    }

    /// Binds the port of last time if it is free, else the first free one of the range.
    fn bind_free_port(&self, last_port: Option<u16>) -> Result<TcpListener, StartNodesError> {
        let range = self.settings.ports.clone();
        let (min, max) = (*range.start(), *range.end());
        for port in last_port.filter(|last_port| range.contains(last_port)).into_iter().chain(range) {
            match self.listen(port) {
                Err(StartNodesError::PortInUse { .. }) => {}
                result => return result,
            }
        }
        Err(StartNodesError::NoPortFree { min, max })
    }
}
