//! One user's node: what it tracks, publishes and fetches, and its connection to the registry.
//!
//! | file | holds |
//! |---|---|
//! | `node.rs` | [`Node`]: what a user can ask of it |
//! | `link.rs` | the thread that owns the connection to the registry |
//! | `shelf.rs` | what is given to other peers |
//! | `hashing.rs` | the thread that reads published files for their digests |
//! | `uploads.rs` | what its user's browser brings |
//! | `follow.rs` | what changes on the network, as it happens |
//! | `looking.rs` | whether what is tracked is still there |
//! | `fetches.rs` | what is fetched from others, also after a restart |
//! | `network.rs` | what the network has |
//! | `keep.rs` | what outlives the process |
//! | `events.rs` | who watches |
//! | `nodes.rs` | the nodes of a process, one a user |

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

use super::client::{Pin, RegistryClient, RegistryError};
use super::files::{Facts, Files, FilesError, Page, Tracked};
use super::folders::{Folders, Opened, PathError, Shelves};
use super::heartbeat::{self, Heartbeat};
use super::page;
use super::transfer::PeerServer;
use super::wire::{FileEntry, FileName, Seconds};
use crate::model::{Clock, Name, Token};
use crate::net::http;
use crate::net::listener::ListenerContext;
use crate::net::threads;
use crate::storage::StoreError;

pub mod events;
pub mod fetches;
mod follow;
mod hashing;
pub mod keep;
mod link;
mod looking;
pub mod network;
pub mod nodes;
mod shelf;
pub mod uploads;

use events::{Session, Watchers};
use fetches::Fetches;
use follow::Follow;
use keep::Keep;
use link::{Link, Order};
use network::{Duplicates, FRESH, Network, NetworkError, Snapshot};
use shelf::Shelf;

/// How long whoever publishes waits for the registry, with a connection that is made anew in between.
const REGISTRY_WAIT: Duration = Duration::from_secs(25);
/// When the process ends, how long what is being sent may take to its end.
const SENDING_MAY_END_IN: Duration = Duration::from_secs(2);
/// The same when only the node ends. (Whoever takes too little each time is cut off long before.)
const LAST_SENDING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Files up to this size, bytes, are read for their digests while they are published: one piece.
const READ_AT_ONCE_MAX: u64 = 1 << 20;
/// Changes that wait for the registry.
const ORDERS_MAX: usize = 1024;

/// How nodes are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the registry and the server API are.
    pub server_host: String,
    /// The registry's port there.
    pub registry_port: u16,
    /// The certificate that the registry must show, over TLS; none: it is asked without TLS.
    pub pin: Option<Pin>,
    /// Where peer ports listen.
    pub bind: IpAddr,
    /// Of which one that is free is taken.
    pub ports: RangeInclusive<u16>,
    /// The address that the registry is told, where it is not the one that it sees.
    pub advertise_ip: Option<IpAddr>,
    /// Between heartbeats of a node that is used.
    pub heartbeat_active: Duration,
    /// Where everything is kept.
    pub data_dir: PathBuf,
}

/// What nodes stand on.
#[derive(Debug, Clone)]
pub struct Floor {
    /// Threads, and the bounds of what peers may open and send.
    pub listening: ListenerContext,
    /// The time.
    pub clock: Clock,
    /// What outlives the process.
    pub keep: Keep,
    /// How many uploads there are at once.
    pub uploads: uploads::Room,
}

/// Why a node did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It does not take part yet.
    #[error("not begun yet: init comes first")]
    NotBegun,
    /// A path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A tracked file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A field of what was asked.
    #[error("{0}")]
    Invalid(String),
    /// It is larger than anything may be.
    #[error("{0}")]
    TooLarge(String),
    /// There is nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// It does not go with what is there.
    #[error("{0}")]
    Conflict(String),
    /// Several have a file of that name, and not the same.
    #[error("{}", several_owners(.0))]
    Owners(Vec<Owner>),
    /// A folder cannot be written to; the disk is full, if that is so.
    #[error("{reason}")]
    Folder {
        /// One line that names it.
        reason: String,
        /// There is no room.
        is_full: bool,
    },
    /// Files that look the same are on the network already.
    #[error(
        "the network has a file that looks the same: with `overwrite` (the command line: without --unless-duplicate) yours is published all the same"
    )]
    Duplicates(Box<Duplicates>),
    /// The registry cannot be reached.
    #[error("{0}")]
    Away(String),
    /// The registry does not want it.
    #[error("the registry refuses: {0}")]
    Refused(String),
    /// Too much at once.
    #[error("{0}")]
    Busy(String),
    /// The system.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Somebody who has published a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Owner {
    /// The host.
    pub hostname: Name,
    /// Bytes.
    pub size: u64,
    /// When it last changed there.
    pub modified: Seconds,
}

fn several_owners(owners: &[Owner]) -> String {
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

impl From<RegistryError> for NodeError {
    fn from(error: RegistryError) -> NodeError {
        match error {
            RegistryError::Refused(reason) => NodeError::Refused(reason),
            error => NodeError::Away(format!("the registry does not answer: {error}")),
        }
    }
}

/// A file that is published now, and those that look like it.
#[derive(Debug)]
pub struct PublishedFile {
    /// The file.
    pub file: Tracked,
    /// Others' files that look the same; none also where nobody could be asked.
    pub duplicates: Duplicates,
}

/// One user's node. It runs until [`Node::stop`].
pub struct Node {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    turn: Mutex<()>,
    wakes_follow: Sender<()>,
}

pub(super) struct Inner {
    user: Name,
    settings: Arc<Settings>,
    floor: Floor,
    files: Files,
    shelf: Arc<Shelf>,
    port: u16,
    state: Mutex<State>,
    watchers: Watchers,
    network: Network,
    fetches: Fetches,
    orders: Sender<Order>,
    to_hash: Sender<hashing::Order>,
    /// The connection on which changes are heard.
    following: Mutex<Option<Arc<RegistryClient>>>,
    peer: PeerServer,
    uploads: uploads::Room,
    /// Held while a long list is made.
    listing: Mutex<()>,
    is_stopping: AtomicBool,
}

struct State {
    is_on: bool,
    display_name: String,
    /// What the registry is shown; also once it has ended, for the registry alone can tell.
    token: Option<Token>,
    advertise_ip: Option<IpAddr>,
    registry: Option<Arc<RegistryClient>>,
    /// Where it was reached last.
    registry_addr: Option<SocketAddr>,
    heartbeat: Heartbeat,
    /// Why there is no connection.
    why_not: Option<String>,
}

impl Inner {
    fn is_on(&self) -> bool {
        self.state.lock().is_on
    }

    fn away(&self) -> NodeError {
        let why = self.state.lock().why_not.clone();
        NodeError::Away(why.unwrap_or_else(|| "the registry has not been reached yet".to_owned()))
    }

    /// The connection, if there is one.
    fn registry(&self) -> Result<Arc<RegistryClient>, NodeError> {
        let registry = {
            let state = self.state.lock();
            if !state.is_on {
                return Err(NodeError::NotBegun);
            }
            state.registry.clone()
        };
        registry.filter(|registry| !registry.is_over()).ok_or_else(|| self.away())
    }

    /// Whether others of this host's own addresses may be fetched from.
    fn is_registry_on_loopback(&self) -> bool {
        self.state.lock().registry_addr.is_some_and(|addr| addr.ip().to_canonical().is_loopback())
    }

    /// Something happened that the heartbeat depends on. Who watches is told when that shows.
    fn beat(&self, event: heartbeat::Event) {
        let now = self.floor.clock.now();
        let (before, after) = {
            let mut state = self.state.lock();
            let before = state.heartbeat.state(now);
            state.heartbeat.handle(now, event);
            (before, state.heartbeat.state(now))
        };
        if before != after {
            self.watchers.tell("node", &self.status());
        }
    }

    fn transfers(&self) -> usize {
        self.peer.busy() + self.fetches.running()
    }

    fn status(&self) -> Value {
        let now = self.floor.clock.now();
        let state = self.state.lock();
        let doing = state.heartbeat.state(now);
        json!({
            "hostname": self.user,
            "display_name": state.display_name,
            "port": self.port,
            "repo": self.shelf.folders().repo().to_string_lossy(),
            "state": doing.as_text(),
            "heartbeat_interval": state.heartbeat.interval(doing).as_secs_f64(),
            "error": state.why_not,
        })
    }

    /// Something is otherwise with a file of one's own: `entry` is what others see of it.
    fn files_changed(&self, change: &str, file: &Tracked) {
        // What others do not see, before and after, is nothing to the network.
        if file.is_published || change == "unpublished" {
            self.network.forget();
        }
        let entry = file.is_published.then(|| file.entry());
        self.watchers.tell(
            "files",
            &json!({
                "fname": file.name, "hostname": self.user, "entry": entry,
                "change": change, "name": file.name,
            }),
        );
    }

    /// Has the registry told of a file, and waits until it knows.
    fn sync_and_wait(&self, name: &FileName) -> Result<(), NodeError> {
        let (reply, answer) = bounded(1);
        let order = Order::Sync { name: name.clone(), reply: Some(reply) };
        self.orders.send_timeout(order, REGISTRY_WAIT).map_err(|_| self.away())?;
        match answer.recv_timeout(REGISTRY_WAIT) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(NodeError::Away("the registry does not answer in time".to_owned()))
            }
        }
    }

    /// The same, some time. Lost only when the connection is, and with a new one all is told anew.
    fn sync_later(&self, name: &FileName) {
        let order = Order::Sync { name: name.clone(), reply: None };
        if self.orders.send_timeout(order, REGISTRY_WAIT).is_err() {
            log::warn!("{}: the registry is told of {name} with the next connection", self.user);
        }
    }
}

impl Node {
    /// A node that waits for [`Node::begin`]: its peer port is bound, and nothing is given.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        user: Name,
        listener: TcpListener,
        folders: Folders,
        settings: Arc<Settings>,
        floor: Floor,
    ) -> Result<Node, NodeError> {
        let port = listener.local_addr()?.port();
        let files = Files::of(Arc::clone(floor.keep.store()), &user);
        let shelf = Arc::new(Shelf::new(files.clone(), folders));
        let peer = PeerServer::start(listener, floor.listening.clone(), Arc::clone(&shelf) as _)?;
        let (orders, ordered) = bounded(ORDERS_MAX);
        let (to_hash, hashed) = bounded(1);
        let state = State {
            is_on: false,
            display_name: user.to_string(),
            token: None,
            advertise_ip: settings.advertise_ip,
            registry: None,
            registry_addr: None,
            heartbeat: Heartbeat::new(settings.heartbeat_active),
            why_not: None,
        };
        let clock = floor.clock;
        let fetches = Fetches::new(floor.keep.fetches(&user)?);
        let inner = Arc::new(Inner {
            user,
            settings,
            floor,
            files,
            shelf,
            port,
            state: Mutex::new(state),
            watchers: Watchers::new(clock),
            network: Network::default(),
            fetches,
            orders,
            to_hash,
            following: Mutex::default(),
            peer,
            uploads: uploads::Room::default(),
            listing: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let (link, follow) = (Link::new(Arc::clone(&inner)), Follow::new(Arc::clone(&inner)));
        let for_hashing = Arc::clone(&inner);
        let (wakes_follow, follows) = bounded(1);
        let node = Node { inner, threads: Mutex::default(), turn: Mutex::default(), wakes_follow };
        node.threads.lock().push(threads::spawn("share-follow", move || follow.run(&follows))?);
        node.threads.lock().push(threads::spawn("share-link", move || link.run(&ordered))?);
        node.threads.lock().push(threads::spawn("share-hash", move || hashing::run(&for_hashing, &hashed))?);
        Ok(node)
    }

    /// Takes part from now on, with what the registry is to be shown, and goes on with what was interrupted.
    ///
    /// # Errors
    /// How the first attempt went. It goes on trying where the registry is away; where it refuses, it does not.
    pub fn begin(&self, beginning: Beginning) -> Result<(), NodeError> {
        let inner = &self.inner;
        let was_on = {
            let mut state = inner.state.lock();
            state.display_name.clone_from(&beginning.display_name);
            state.advertise_ip = beginning.advertise_ip;
            if beginning.token.is_some() {
                state.token.clone_from(&beginning.token);
            }
            std::mem::replace(&mut state.is_on, true)
        };
        inner.shelf.set_folders(beginning.folders);
        inner.shelf.set_open(true);
        self.resume_work();
        let (reply, answer) = bounded(1);
        inner.orders.send_timeout(Order::Begin(reply), REGISTRY_WAIT).map_err(|_| inner.away())?;
        if !beginning.waits {
            return Ok(());
        }
        match answer.recv_timeout(REGISTRY_WAIT) {
            Ok(Err(NodeError::Refused(reason))) if !was_on => {
                self.end();
                Err(NodeError::Refused(reason))
            }
            Ok(done) => done,
            Err(_) => Err(NodeError::Away("the registry does not answer in time".to_owned())),
        }
    }

    fn resume_work(&self) {
        // One wake-up that waits is enough.
        let _ = self.inner.to_hash.try_send(hashing::Order::Look);
        fetches::resume_all(&self.inner);
    }

    /// A newer token, for when the registry has to be shown one.
    pub fn set_token(&self, token: &Token) {
        self.inner.state.lock().token = Some(token.clone());
    }

    /// Takes part no more: the registry forgets it, nothing is given, fetches stand still.
    pub fn end(&self) {
        {
            let mut state = self.inner.state.lock();
            state.is_on = false;
            state.token = None;
        }
        self.inner.shelf.set_open(false);
        fetches::suspend_all(&self.inner);
        let (reply, answer) = bounded(1);
        if self.inner.orders.send_timeout(Order::End(reply), REGISTRY_WAIT).is_ok() {
            // The registry has as long as for any other call.
            let _ = answer.recv_timeout(REGISTRY_WAIT);
        }
    }

    /// Ends it with the process, within `grace`: fetches go on at the next start.
    pub fn stop(&self, grace: Duration) {
        self.stop_within(grace, SENDING_MAY_END_IN);
    }

    /// Ends it for good after [`Node::end`], once what is being sent is over.
    pub(super) fn retire(&self) {
        self.stop_within(LAST_SENDING_MAX, LAST_SENDING_MAX);
    }

    fn stop_within(&self, grace: Duration, sending: Duration) {
        let inner = &self.inner;
        let deadline = Instant::now() + grace;
        let left = || deadline.saturating_duration_since(Instant::now());
        inner.is_stopping.store(true, Relaxed);
        inner.shelf.set_open(false);
        inner.watchers.end();
        let registry = inner.state.lock().registry.clone();
        if let Some(following) = inner.following.lock().take() {
            following.close();
        }
        // One wake-up that waits is enough.
        let _ = self.wakes_follow.try_send(());
        // They may have ended already.
        let _ = inner.orders.send_timeout(Order::Stop, left());
        let _ = inner.to_hash.send_timeout(hashing::Order::Stop, left());
        fetches::suspend_all(inner);
        inner.peer.stop(left().min(sending));
        let threads = std::mem::take(&mut *self.threads.lock());
        while threads.iter().any(|thread| !thread.is_finished()) && !left().is_zero() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(registry) = registry {
            registry.close();
        }
        // One that waits for a registry that does not answer is left behind: the process ends.
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
    }

    /// For whoever has it take part, or no more, and keeps that: one at a time. (Held while the registry is asked,
    /// on purpose: whoever comes next needs to know how that went.)
    pub(super) fn turn(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Whether something is being sent to a peer.
    pub(super) fn is_sending(&self) -> bool {
        self.inner.peer.busy() > 0
    }

    /// Whether it takes part.
    pub fn is_on(&self) -> bool {
        self.inner.is_on()
    }

    /// Whose it is.
    pub fn user(&self) -> &Name {
        &self.inner.user
    }

    /// Where other peers reach it.
    pub fn peer_addr(&self) -> SocketAddr {
        self.inner.peer.local_addr()
    }

    /// Somebody uses it.
    pub fn work(&self) {
        self.inner.beat(heartbeat::Event::Work);
    }

    /// What it does, as the client API shows it.
    pub fn status(&self) -> Value {
        self.inner.status()
    }

    /// What `init` answers.
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

    /// Tells what changes from now on, or from that event on, as long as the session lasts; none when too many are told
    /// already.
    pub fn watch(&self, session: Session, last_event_id: Option<&str>) -> Option<http::Events> {
        let events = self.inner.watchers.add(session, last_event_id);
        // One wake-up that waits is enough.
        let _ = self.wakes_follow.try_send(());
        events
    }

    /// Tells those nothing more who watch with this token.
    pub fn end_watching(&self, session: &Session) {
        self.inner.watchers.end_of(&session.token);
    }

    /// What is tracked; or only what is published.
    ///
    /// # Errors
    /// The store's.
    pub fn files(&self, published_alone: bool) -> Result<Vec<Tracked>, NodeError> {
        Ok(self.inner.files.list(published_alone)?)
    }

    /// The tracked file of that name.
    ///
    /// # Errors
    /// The store's.
    pub fn file(&self, name: &FileName) -> Result<Option<Tracked>, NodeError> {
        Ok(self.inner.files.get(name)?)
    }

    /// Tracks a file under the name that it has.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn add(&self, path: &str) -> Result<Tracked, NodeError> {
        let opened = self.inner.shelf.folders().open(path)?;
        // As it was named: a link may have a better name than what it leads to.
        let last = std::path::Path::new(path).file_name().or(opened.path.file_name()).and_then(|name| name.to_str());
        let name = FileName::new(last.unwrap_or_default())
            .map_err(|wrong| NodeError::Invalid(format!("the file's name: {wrong}")))?;
        let facts = Facts::of(&opened.path, &opened.metadata);
        let file = self.inner.files.track(&name, facts, Clock::wall())?;
        self.inner.files_changed("added", &file);
        Ok(file)
    }

    /// Publishes a file: one that is tracked, or the one at this path under this name; what was known of its content
    /// is read anew. When this returns, the registry has it. The digests of a large one follow.
    ///
    /// # Errors
    /// [`NodeError`]; then it is published no more than before.
    pub fn publish(&self, name: &FileName, path: Option<&str>, overwrite: bool) -> Result<PublishedFile, NodeError> {
        let inner = &self.inner;
        let folders = inner.shelf.folders();
        let known = inner.files.get(name)?;
        let mut opened = match (path, &known) {
            (Some(path), _) => folders.open(path)?,
            (None, Some(known)) => folders.open_resolved(&known.facts.path)?,
            (None, None) => return Err(FilesError::Unknown(name.clone()).into()),
        };
        let facts = Facts::of(&opened.path, &opened.metadata);
        // What is small is read at once: then the registry is told once, and everything.
        let read = match facts.size {
            ..=READ_AT_ONCE_MAX => hashing::read_opened(&mut opened, &facts, &|| true).ok().flatten(),
            _ => None,
        };
        drop(opened);
        let duplicates = self.duplicates(name, facts.size, Some(super::files::seconds(facts.modified_ns)));
        let duplicates = match duplicates {
            Ok(duplicates) if !overwrite && !duplicates.is_empty() => {
                return Err(NodeError::Duplicates(Box::new(duplicates)));
            }
            Ok(duplicates) => duplicates,
            // Nobody can tell, and it is not to be published unasked.
            Err(error) if !overwrite => return Err(error),
            Err(_) => Duplicates::default(),
        };
        let file = inner.files.publish(name, facts, read.as_ref(), Clock::wall())?;
        if read.is_none() {
            // Also where the registry is away. One wake-up that waits is enough.
            let _ = inner.to_hash.try_send(hashing::Order::Look);
        }
        if let Err(error) = inner.sync_and_wait(name) {
            if known.is_none_or(|known| !known.is_published) {
                inner.files.unpublish(name)?;
                // It may have got there all the same.
                inner.sync_later(name);
            }
            return Err(error);
        }
        inner.files_changed("published", &file);
        Ok(PublishedFile { file, duplicates })
    }

    /// Hides a file from others at once; it stays tracked.
    ///
    /// # Errors
    /// [`NodeError`]. Where the registry is away it is hidden all the same: it is not given any more, and the
    /// registry learns of it with the next connection.
    pub fn unpublish(&self, name: &FileName) -> Result<Tracked, NodeError> {
        let file = self.inner.files.unpublish(name)?;
        let done = self.tell_hidden(name);
        self.inner.files_changed("unpublished", &file);
        done.map(|()| file)
    }

    /// A file is given to nobody any more: the registry is to know, now or with the next connection.
    fn tell_hidden(&self, name: &FileName) -> Result<(), NodeError> {
        match self.inner.sync_and_wait(name) {
            Err(NodeError::Away(why)) => {
                log::info!("{}: the registry learns later of {name}: {why}", self.inner.user);
                Ok(())
            }
            done => done,
        }
    }

    /// Tracks a file no more; one that is published is hidden first. It stays where it lies, and whoever is being sent
    /// it gets it to its end.
    ///
    /// # Errors
    /// [`NodeError`]. Where the registry is away it is forgotten all the same: it is not given any more, and the
    /// registry learns of it with the next connection.
    pub fn remove(&self, name: &FileName) -> Result<(), NodeError> {
        let inner = &self.inner;
        let known = inner.files.get(name)?.ok_or_else(|| FilesError::Unknown(name.clone()))?;
        if known.is_published {
            inner.files.unpublish(name)?;
            self.tell_hidden(name)?;
            inner.network.forget();
        }
        let file = inner.files.remove(name)?;
        inner.files_changed("removed", &Tracked { is_published: false, ..file });
        Ok(())
    }

    /// A part of what is tracked, or of what is published, by name: what has `q` in its name. Of these it is looked now
    /// whether they are still there; where that are very many, of the first.
    ///
    /// # Errors
    /// The store's.
    pub fn files_page(&self, published_alone: bool, asked: &page::Page) -> Result<Page, NodeError> {
        let mut page = self.inner.files.page(published_alone, &asked.sought, (asked.offset, asked.limit))?;
        let looked_at = page.files.len().min(looking::AT_ONCE);
        looking::look(&self.inner, &mut page.files[..looked_at])?;
        Ok(page)
    }

    /// To be held while a list of any length is made and written: however many are asked for at once, they take the
    /// memory of one.
    pub fn one_list_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.inner.listing.lock()
    }

    /// A tracked file's content as it is now.
    ///
    /// # Errors
    /// [`NodeError::NotFound`], for whatever reason it cannot be had; or the store's.
    pub fn open(&self, name: &FileName) -> Result<(Tracked, Opened), NodeError> {
        let gone = || NodeError::NotFound(format!("there is no file {name} here"));
        let file = self.inner.files.get(name)?.ok_or_else(gone)?;
        let opened = self.inner.shelf.folders().open_resolved(&file.facts.path).map_err(|error| {
            log::info!("{}: {name} cannot be read: {error}", self.inner.user);
            gone()
        })?;
        Ok((file, opened))
    }

    /// What lies in a folder that this user may choose files from; without one, which folders there are. None where
    /// there is nothing that may be seen.
    pub fn browse(&self, path: Option<&str>) -> Option<Shelves> {
        self.inner.shelf.folders().browse(path)
    }

    /// A file comes, of so many bytes if that is known.
    ///
    /// # Errors
    /// [`NodeError`]: its name is none or taken, or there is no room.
    pub fn upload(&self, name: &str, length: Option<u64>) -> Result<uploads::Upload, NodeError> {
        uploads::Upload::begin(&self.inner, name, length)
    }

    /// Others' files that look like one of this name, size and time. The registry finds them: that costs the same
    /// however much the network has.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub fn duplicates(&self, name: &FileName, size: u64, modified: Option<Seconds>) -> Result<Duplicates, NodeError> {
        let found = self.inner.registry()?.alike(name, size, modified)?;
        Ok(Duplicates::of(&self.inner.user, size, modified.map(Seconds::get), found))
    }

    /// All that the network has.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub fn network(&self) -> Result<Arc<Snapshot>, NodeError> {
        let registry = self.inner.registry()?;
        Ok(self.inner.network.snapshot(FRESH, &registry)?)
    }

    /// The same, read anew where nothing was found in what was known.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub fn network_now(&self) -> Result<Arc<Snapshot>, NodeError> {
        let registry = self.inner.registry()?;
        Ok(self.inner.network.newer(&registry)?)
    }

    /// What one host has, and where it is.
    ///
    /// # Errors
    /// [`NodeError::NotFound`], or the registry cannot be asked.
    pub fn discover(&self, hostname: &Name) -> Result<HostFiles, NodeError> {
        match self.inner.registry()?.discover(hostname) {
            Ok((files, addr)) => Ok(HostFiles { files: files.into_iter().collect(), addr }),
            Err(RegistryError::Refused(reason)) => Err(NodeError::NotFound(reason)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a host is there.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub fn ping(&self, hostname: &Name) -> Result<bool, NodeError> {
        Ok(self.inner.registry()?.ping(hostname, None)?)
    }

    /// Its fetches.
    pub fn fetches(&self) -> fetches::Desk<'_> {
        fetches::Desk::of(&self.inner)
    }
}

/// How a node begins to take part.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The name for people.
    pub display_name: String,
    /// What the registry is to be shown; without it the secret of last time has to do.
    pub token: Option<Token>,
    /// The address that the registry is told, where it is not the one that it sees.
    pub advertise_ip: Option<IpAddr>,
    /// Which paths the user may name.
    pub folders: Folders,
    /// Whether the first attempt is waited for.
    pub waits: bool,
}

/// What a host shows.
#[derive(Debug)]
pub struct HostFiles {
    /// By name.
    pub files: Vec<(FileName, FileEntry)>,
    /// Where its peer port is.
    pub addr: (IpAddr, u16),
}
