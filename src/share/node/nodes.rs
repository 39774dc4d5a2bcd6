//! The nodes of a process: one a user, each with a registry connection and a peer port of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::keep::User;
use super::{Beginning, Floor, Node, NodeError, Settings, uploads};
use crate::model::{Name, Token};
use crate::net::{listener, threads};
use crate::share::folders::Folders;

/// Most users of one process: each has threads and a port.
pub const USERS_MAX: usize = 64;

/// Why the nodes cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port that was asked for.
    #[error("{addr} is in use")]
    PortInUse {
        /// Where.
        addr: SocketAddr,
    },
    /// None of the range is free.
    #[error("no port of {min} to {max} is free: choose others with --port-min and --port-max")]
    NoPortFree {
        /// The lowest.
        min: u16,
        /// The highest.
        max: u16,
    },
    /// Another reason not to listen.
    #[error("cannot listen at {addr}: {error}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The system's.
        error: io::Error,
    },
    /// A folder.
    #[error("--folder or --repo: {0}")]
    Folder(io::Error),
    /// The node itself.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::storage::StoreError),
}

/// What a process's nodes share, and which of them there are.
pub struct Nodes {
    settings: Arc<Settings>,
    /// Whom the process is named after.
    named: Name,
    floor: Floor,
    /// Of the first account; others have the repo alone.
    folders: Folders,
    places: Arc<Mutex<Places>>,
}

/// Who has one of the [`USERS_MAX`] places.
#[derive(Default)]
struct Places {
    /// Those who take part, and whom the process is named after.
    running: BTreeMap<Name, Arc<Node>>,
    /// Those who take part no more, and send something to its end.
    leaving: Vec<Arc<Node>>,
}

impl Places {
    fn are_taken(&self) -> bool {
        self.running.len() + self.leaving.len() >= USERS_MAX
    }

    fn has(&self, node: &Arc<Node>) -> bool {
        self.running.get(node.user()).is_some_and(|running| Arc::ptr_eq(running, node))
    }
}

impl Nodes {
    /// Binds the peer port of the user whom the process is named after, and goes on with whoever took part when
    /// it last ended.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        settings: Settings,
        floor: Floor,
        folders: &[PathBuf],
        repo: &std::path::Path,
        named: &Name,
        port: Option<u16>,
    ) -> Result<Nodes, StartError> {
        let folders = Folders::new(folders, repo, &settings.data_dir).map_err(StartError::Folder)?;
        // What is left takes room, and nothing else: a repo that cannot be read now is told of when it is used.
        if let Err(error) = uploads::remove_left(folders.repo()) {
            log::warn!("{}: what unfinished uploads have left: {error}", folders.repo().display());
        }
        let settings = Arc::new(settings);
        let nodes = Nodes { settings, named: named.clone(), floor, folders, places: Arc::default() };
        let users = nodes.floor.keep.users()?;
        let kept = users.iter().find(|user| user.name == *named).and_then(|user| user.port);
        let listener = match port {
            Some(port) => nodes.listen(port).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => StartError::PortInUse { addr: SocketAddr::new(nodes.settings.bind, port) },
                _ => StartError::Listen { addr: SocketAddr::new(nodes.settings.bind, port), error },
            })?,
            None => nodes.free_port(kept)?,
        };
        nodes.add(named, listener)?;
        for user in users.iter().filter(|user| user.is_on) {
            let node = nodes.of(user)?;
            node.begin(nodes.beginning(
                user,
                None,
                user.advertise_ip.as_deref().and_then(|ip| ip.parse().ok()),
                false,
            ))?;
        }
        Ok(nodes)
    }

    /// How they are run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whom the process is named after.
    pub fn named(&self) -> &Name {
        &self.named
    }

    /// What outlives the process.
    pub fn keep(&self) -> &super::keep::Keep {
        &self.floor.keep
    }

    /// The process's clock.
    pub fn clock(&self) -> crate::model::Clock {
        self.floor.clock
    }

    /// Where the process's own user is reached by peers.
    pub fn peer_addr(&self, named: &Name) -> Option<SocketAddr> {
        self.places.lock().running.get(named).map(|node| node.peer_addr())
    }

    /// The node of a user who takes part.
    pub fn get(&self, user: &Name) -> Option<Arc<Node>> {
        self.places.lock().running.get(user).filter(|node| node.is_on()).cloned()
    }

    /// Checks that what is kept here under a user's name is that account's. An earlier version of the server made two
    /// accounts of two spellings of one name: here the first that came is the one.
    ///
    /// # Errors
    /// [`NodeError::Conflict`], or the store's.
    pub fn check_account(&self, user: &Name) -> Result<(), NodeError> {
        if user.as_str().is_ascii() {
            return Ok(());
        }
        match self.floor.keep.first_of(user)? {
            Some(first) if first.as_str() != user.as_str() => Err(NodeError::Conflict(
                "username: another account uses this node, whose name is the same but for its spelling: use another node"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Somebody has signed in: the first one ever is the one who may name any path that is shared.
    ///
    /// # Errors
    /// As of [`Nodes::check_account`].
    pub fn signed_in(&self, user: &Name, display_name: &str, token: &Token) -> Result<(), NodeError> {
        self.check_account(user)?;
        self.floor.keep.signed_in(user, display_name)?;
        if let Some(node) = self.get(user) {
            node.set_token(token);
        }
        Ok(())
    }

    /// Takes part for a user from now on; again, with another token or address.
    ///
    /// # Errors
    /// [`NodeError`], as of [`Node::begin`].
    pub fn begin(&self, user: &Name, token: &Token, advertise_ip: Option<IpAddr>) -> Result<Arc<Node>, NodeError> {
        let known = self.floor.keep.users()?.into_iter().find(|known| known.name == *user);
        let Some(user) = known else {
            // A token of the server that was got elsewhere.
            self.floor.keep.signed_in(user, user.as_str())?;
            return self.begin(user, token, advertise_ip);
        };
        let node = self.of(&user)?;
        // One after the other with whoever logs out: what is kept is what was done last.
        let turn = node.turn();
        if !self.places.lock().has(&node) {
            // It was retired meanwhile: there will be another.
            drop(turn);
            return self.begin(&user.name, token, advertise_ip);
        }
        let advertised = advertise_ip.map(|ip| ip.to_string());
        self.floor.keep.set_on(&user.name, true, advertised.as_deref())?;
        self.floor.keep.set_port(&user.name, node.peer_addr().port())?;
        match node.begin(self.beginning(&user, Some(token.clone()), advertise_ip, true)) {
            Ok(()) => Ok(Arc::clone(&node)),
            Err(error) => {
                if !node.is_on() {
                    self.floor.keep.set_on(&user.name, false, advertised.as_deref())?;
                    self.retire(&node);
                }
                Err(error)
            }
        }
    }

    /// Takes part for a user no more. The place is free once what is being sent is over.
    ///
    /// # Errors
    /// The store's.
    pub fn end(&self, user: &Name) -> Result<(), NodeError> {
        let node = self.places.lock().running.get(user).cloned();
        let _turn = node.as_ref().map(|node| node.turn());
        self.floor.keep.set_on(user, false, None)?;
        if let Some(node) = &node {
            if node.is_on() {
                node.end();
            }
            self.retire(node);
        }
        Ok(())
    }

    /// Gives back the place of a node that has ended, whose turn the caller has. That of whom the process is named after
    /// stays: its peer port is in the ready file.
    fn retire(&self, node: &Arc<Node>) {
        if *node.user() == self.named {
            return;
        }
        {
            let mut places = self.places.lock();
            if !places.has(node) {
                return;
            }
            places.running.remove(node.user());
            places.leaving.push(Arc::clone(node));
        }
        let (places, left) = (Arc::clone(&self.places), Arc::clone(node));
        let free_place = move |how: fn(&Node)| {
            how(&left);
            places.lock().leaving.retain(|leaving| !Arc::ptr_eq(leaving, &left));
        };
        // Nothing new is sent: what is over stays over.
        if !node.is_sending() {
            return free_place(Node::retire);
        }
        let waits = free_place.clone();
        if let Err(error) = threads::spawn("share-leave", move || waits(Node::retire)) {
            log::warn!("{}: what is being sent is cut off: {error}", node.user());
            free_place(|node| node.stop(Duration::ZERO));
        }
    }

    /// Ends all of them with the process.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let Places { running, leaving } = std::mem::take(&mut *self.places.lock());
        std::thread::scope(|scope| {
            for node in running.values().chain(&leaving) {
                scope.spawn(move || node.stop(deadline.saturating_duration_since(Instant::now())));
            }
        });
    }

    fn beginning(&self, user: &User, token: Option<Token>, advertise_ip: Option<IpAddr>, waits: bool) -> Beginning {
        let folders = if user.number == 1 { self.folders.clone() } else { self.folders.repo_alone() };
        Beginning {
            display_name: user.display_name.clone(),
            token,
            advertise_ip: advertise_ip.or(self.settings.advertise_ip),
            folders,
            waits,
        }
    }

    /// The user's node, which is made if there is none.
    fn of(&self, user: &User) -> Result<Arc<Node>, NodeError> {
        if let Some(node) = self.places.lock().running.get(&user.name) {
            return Ok(Arc::clone(node));
        }
        let listener = self.free_port(user.port).map_err(|error| match error {
            StartError::Node(error) => error,
            other => NodeError::Busy(other.to_string()),
        })?;
        self.add(&user.name, listener)
    }

    fn add(&self, user: &Name, listener: TcpListener) -> Result<Arc<Node>, NodeError> {
        let port = listener.local_addr()?.port();
        let full = || NodeError::Busy(format!("{USERS_MAX} users have a node here already"));
        if self.places.lock().are_taken() {
            return Err(full());
        }
        let folders = self.folders.repo_alone();
        let node = Node::start(user.clone(), listener, folders, Arc::clone(&self.settings), self.floor.clone())?;
        self.floor.keep.set_port(user, port)?;
        let node = Arc::new(node);
        let former = {
            let mut places = self.places.lock();
            match places.running.get(user) {
                // Another request was faster.
                Some(former) => Some(Arc::clone(former)),
                None if places.are_taken() => None,
                None => {
                    places.running.insert(user.clone(), Arc::clone(&node));
                    return Ok(node);
                }
            }
        };
        node.stop(Duration::ZERO);
        former.ok_or_else(full)
    }

    fn listen(&self, port: u16) -> io::Result<TcpListener> {
        listener::listen(SocketAddr::new(self.settings.bind, port))
    }

    /// The port of last time if it is free, else the first that is.
    fn free_port(&self, kept: Option<u16>) -> Result<TcpListener, StartError> {
        let range = self.settings.ports.clone();
        let (min, max) = (*range.start(), *range.end());
        for port in kept.filter(|kept| range.contains(kept)).into_iter().chain(range) {
            match self.listen(port) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    return Err(StartError::Listen { addr: SocketAddr::new(self.settings.bind, port), error });
                }
            }
        }
        Err(StartError::NoPortFree { min, max })
    }
}
