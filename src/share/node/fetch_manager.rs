//! A node's fetches of files from other hosts: starting, controlling and watching them, and resuming them after a
//! restart.
//!
//! The data needed to resume a transfer lies beside the unfinished file (see [`transfer`]); this is the part that users
//! see.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value, json};

use super::store::{FETCHES_MAX, FetchRow};
use super::{FileOwner, NodeError, NodeInner};
use crate::model::secret::random_hex;
use crate::model::{Clock, Name};
use crate::share::dir_handle;
use crate::share::files::FileStat;
use crate::share::folders::PathError;
use crate::share::transfer::{
    self, ContentIdentity, Fetch, FetchProgress, FetchSpec, FetchStatus, FetchTiming, SourceFinder, StartFetchError,
};
use crate::share::wire::{FileName, HostEntry, PORT_MIN};

/// Most unfinished fetches of a user; each has its own threads.
const UNFINISHED_FETCHES_MAX: usize = 32;
/// Most failed fetches that keep their threads and open files; the others only have their data on disk.
const FAILED_FETCHES_HELD_MAX: usize = 8;
/// Most hosts whose content is compared with that of the others.
const COMPARED_HOSTS_MAX: usize = 2_048;
/// Most owners that are listed when the user has to choose one.
const NAMED_OWNERS_MAX: usize = 100;
/// How long a caller waits until progress shows the effect of its action.
const ACTION_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long fetches may take to stop when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// An action of the user on a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchAction {
    /// Disconnect, keeping the data.
    Pause,
    /// Continue, also after a failure.
    Resume,
    /// End it and remove its data.
    Cancel,
}

/// A user's fetches.
pub(super) struct FetchTable {
    entries: Mutex<BTreeMap<String, FetchEntry>>,
    changed: Condvar,
    /// Held while resuming fetches that do not run, so that none is resumed twice.
    resume_lock: Mutex<()>,
}

struct FetchEntry {
    row: FetchRow,
    /// The running transfer; none if the fetch has ended or was released.
    fetch: Option<Arc<Fetch>>,
    /// The progress reported last.
    progress: Option<FetchProgress>,
}

impl FetchEntry {
    fn status(&self) -> FetchStatus {
        self.progress.as_ref().map_or(self.row.status, |progress| progress.status)
    }

    /// The client API's JSON form.
    fn json(&self) -> Value {
        let row = &self.row;
        let mut json = match &self.progress {
            Some(progress) => json!(progress),
            None => json!({
                "downloaded_size": row.downloaded_size,
                "total_size": row.total_size,
                "progress_percent": percent(row.downloaded_size, row.total_size, row.status),
                "speed_bps": 0.0,
                "eta_seconds": null,
                "status": row.status.as_text(),
                "verified": row.is_verified,
                "sources": [],
            }),
        };
        json["fetch_id"] = json!(row.id);
        json["file_name"] = json!(row.file_name);
        json["save_path"] = json!(row.save_path);
        json["error"] = match &self.progress {
            Some(progress) => json!(progress.error),
            None => json!(row.error),
        };
        // Two more names for fields above, which clients of the API expect.
        json["error_message"] = json["error"].clone();
        json["peer_hostname"] = json!(row.peer_hostname);
        json
    }
}

fn percent(done: u64, total: u64, status: FetchStatus) -> f64 {
    match total {
        0 if status == FetchStatus::Completed => 100.0,
        0 => 0.0,
        _ => done as f64 / total as f64 * 100.0,
    }
}

/// The status to store for resuming after a restart: a fetch that waits for a host, unlike one that its user has
/// paused, is to continue then.
fn stored_status(progress: &FetchProgress) -> FetchStatus {
    match progress.status {
        FetchStatus::Paused if progress.error.is_some() => FetchStatus::Downloading,
        status => status,
    }
}

impl FetchTable {
    /// Starts with the stored fetches, none of them running.
    pub(super) fn new(rows: Vec<FetchRow>) -> FetchTable {
        let entry = |row: FetchRow| (row.id.clone(), FetchEntry { row, fetch: None, progress: None });
        let entries = Mutex::new(rows.into_iter().map(entry).collect());
        FetchTable { entries, changed: Condvar::new(), resume_lock: Mutex::default() }
    }

    /// Number of fetches that receive data.
    pub(super) fn active_count(&self) -> usize {
        self.entries
            .lock()
            .values()
            .filter(|entry| entry.fetch.is_some() && entry.status() == FetchStatus::Downloading)
            .count()
    }
}

/// The operations on a node's fetches.
pub struct FetchManager<'a> {
    inner: &'a Arc<NodeInner>,
}

impl<'a> FetchManager<'a> {
    pub(super) fn of(inner: &'a Arc<NodeInner>) -> FetchManager<'a> {
        FetchManager { inner }
    }

    /// Starts to fetch a file, from any host or one owner's content, and saves it at `save_path`.
    ///
    /// # Errors
    /// [`NodeError::NotFound`] if nobody, or not that owner, has the file; [`NodeError::SeveralOwners`] if hosts have
    /// different files of the name and no owner is given; or any other.
    pub fn start(&self, name: &FileName, owner: Option<&Name>, save_path: Option<&str>) -> Result<FetchRow, NodeError> {
        let inner = self.inner;
        // Check the destination before contacting the registry.
        let target = inner.published_files.folders().save_target(save_path, name)?;
        let found = find_reachable_hosts(inner, name)?;
        let mut hosts = found.hosts;
        if let Some(owner) = owner {
            hosts.retain(|host| host.hostname == *owner);
        } else if !have_same_content(&hosts) {
            return Err(NodeError::SeveralOwners(owners_of(&hosts)));
        }
        let Some(chosen) = choose_host(&hosts) else {
            let unreachable = found.unreachable.filter(|host| owner.is_none_or(|owner| owner == host));
            return Err(NodeError::NotFound(match (unreachable, owner) {
                (Some(host), _) => {
                    format!(
                        "{host} has {name}, but says that it is at a loopback address, where nobody else reaches it"
                    )
                }
                (None, Some(owner)) => format!("{owner} has no {name} on the network"),
                (None, None) => format!("nobody else on the network has {name}"),
            }));
        };
        let save_path = target.to_str().ok_or_else(|| NodeError::Invalid("save_path: expected UTF-8".to_owned()))?;
        let row = FetchRow {
            id: random_hex::<8>(),
            file_name: name.clone(),
            save_path: save_path.to_owned(),
            total_size: chosen.file.size,
            downloaded_size: 0,
            status: FetchStatus::Pending,
            error: None,
            is_verified: false,
            peer_hostname: chosen.hostname.to_string(),
            peer_ip: chosen.ip.to_string(),
            began_at: Clock::wall(),
        };
        {
            let mut entries = inner.fetches.entries.lock();
            let unfinished = || entries.values().filter(|entry| !entry.status().has_ended());
            if unfinished().any(|entry| entry.row.save_path == row.save_path) {
                return Err(NodeError::Conflict(format!("{save_path} is being fetched already")));
            }
            if unfinished().count() >= UNFINISHED_FETCHES_MAX {
                return Err(NodeError::Busy(format!("{UNFINISHED_FETCHES_MAX} files are being fetched already")));
            }
            evict_oldest(&mut entries);
            release_failed(&mut entries);
            entries.insert(row.id.clone(), FetchEntry { row: row.clone(), fetch: None, progress: None });
        }
        let spec = FetchSpec {
            id: row.id.clone(),
            fname: name.clone(),
            save_path: target,
            hostname: row.peer_hostname.clone(),
            content: ContentIdentity::of(&chosen.file),
            is_owner_named: owner.is_some(),
            is_paused: false,
        };
        let started = inner.context.store.put_fetch(&inner.user, &row).map_err(NodeError::from);
        if let Err(error) = started.and_then(|()| start_transfer(inner, spec)) {
            inner.fetches.entries.lock().remove(&row.id);
            // A fetch that could not start must not be listed.
            if let Err(error) = inner.context.store.delete_fetch(&row.id) {
                log::warn!("{}: fetch {}: {error}", inner.user, row.id);
            }
            return Err(error);
        }
        Ok(row)
    }

    /// Progress of a fetch, in the client API's JSON form.
    ///
    /// # Errors
    /// There is no fetch with that id.
    pub fn progress(&self, id: &str) -> Result<Value, NodeError> {
        self.inner.fetches.entries.lock().get(id).map(FetchEntry::json).ok_or_else(|| unknown_fetch_error(id))
    }

    /// Progress of all fetches, as a JSON object by id.
    pub fn all(&self) -> Value {
        let entries = self.inner.fetches.entries.lock();
        Value::Object(entries.iter().map(|(id, entry)| (id.clone(), entry.json())).collect::<Map<_, _>>())
    }

    /// Applies an action and returns the resulting progress.
    ///
    /// # Errors
    /// There is no fetch with that id, or it has ended.
    pub fn apply(&self, id: &str, action: FetchAction) -> Result<Value, NodeError> {
        let fetches = &self.inner.fetches;
        {
            let _resume_guard = fetches.resume_lock.lock();
            let released = {
                let entries = fetches.entries.lock();
                let entry =
                    entries.get(id).filter(|entry| entry.fetch.is_none() && entry.status() == FetchStatus::Failed);
                entry.map(|entry| entry.row.clone())
            };
            if let Some(row) = released {
                if action == FetchAction::Cancel {
                    return discard(self.inner, row);
                }
                // It starts paused; the action follows below.
                resume(self.inner, &row)?;
            }
        }
        let fetch = {
            let entries = fetches.entries.lock();
            let entry = entries.get(id).ok_or_else(|| unknown_fetch_error(id))?;
            // A failed fetch can be resumed or cancelled, as long as it runs.
            match (&entry.fetch, entry.status()) {
                (Some(fetch), status) if !status.is_final() => Arc::clone(fetch),
                (_, status) => {
                    return Err(NodeError::Conflict(format!("the fetch has ended: it is {}", status.as_text())));
                }
            }
        };
        match action {
            FetchAction::Pause => fetch.pause(),
            FetchAction::Resume => fetch.resume(),
            FetchAction::Cancel => fetch.cancel(),
        }
        let is_applied = |status: FetchStatus| match action {
            FetchAction::Pause => !matches!(status, FetchStatus::Pending | FetchStatus::Downloading),
            // The fetch may have completed meanwhile.
            FetchAction::Resume => status != FetchStatus::Failed,
            FetchAction::Cancel => status.is_final(),
        };
        let until = Instant::now() + ACTION_WAIT_MAX;
        let mut entries = fetches.entries.lock();
        loop {
            let entry = entries.get(id).ok_or_else(|| unknown_fetch_error(id))?;
            if is_applied(entry.status()) || Instant::now() >= until {
                return Ok(entry.json());
            }
            fetches.changed.wait_until(&mut entries, until);
        }
    }
}

fn unknown_fetch_error(id: &str) -> NodeError {
    NodeError::NotFound(format!("there is no fetch {id:?}"))
}

/// Evicts ended fetches, oldest first, to make room for one more.
fn evict_oldest(entries: &mut BTreeMap<String, FetchEntry>) {
    while entries.len() >= FETCHES_MAX {
        let ended = entries.iter().filter(|(_, entry)| entry.status().has_ended());
        let Some(oldest) = ended.min_by_key(|(_, entry)| entry.row.began_at).map(|(id, _)| id.clone()) else { return };
        entries.remove(&oldest);
    }
}

/// Releases the threads of all but the newest failed fetches.
fn release_failed(entries: &mut BTreeMap<String, FetchEntry>) {
    let is_held = |entry: &&mut FetchEntry| entry.fetch.is_some() && entry.status() == FetchStatus::Failed;
    let mut failed: Vec<&mut FetchEntry> = entries.values_mut().filter(is_held).collect();
    failed.sort_by_key(|entry| std::cmp::Reverse(entry.row.began_at));
    for entry in failed.into_iter().skip(FAILED_FETCHES_HELD_MAX) {
        // From now on the stored row is shown. The threads are not waited for.
        (entry.fetch, entry.progress) = (None, None);
    }
}

/// Cancels a fetch that does not run, removing its data.
fn discard(inner: &NodeInner, row: FetchRow) -> Result<Value, NodeError> {
    let folder = folder_of(&row);
    transfer::discard_leftovers(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
    let id = row.id.clone();
    set_row(inner, FetchRow { status: FetchStatus::Cancelled, error: None, ..row });
    let json = inner.fetches.entries.lock().get(&id).map(FetchEntry::json).ok_or_else(|| unknown_fetch_error(&id))?;
    inner.events.notify("fetches", &json!({ "id": id, "progress": &json }));
    Ok(json)
}

fn folder_of(row: &FetchRow) -> &Path {
    Path::new(&row.save_path).parent().unwrap_or(Path::new("/"))
}

/// The error to report when nothing can be written in a folder.
pub(super) fn folder_write_error(folder: &Path, error: &io::Error) -> NodeError {
    let path = folder.display();
    match error.kind() {
        _ if dir_handle::is_symlink_error(error) => {
            NodeError::Path(PathError::Forbidden(format!("{path} was exchanged for a link meanwhile")))
        }
        io::ErrorKind::PermissionDenied => {
            NodeError::Path(PathError::Forbidden(format!("{path}: this node may not write there")))
        }
        io::ErrorKind::NotFound => NodeError::Path(PathError::FolderNotFound(path.to_string())),
        kind => NodeError::Folder {
            reason: format!("{path} cannot be written to: {error}"),
            is_full: matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        },
    }
}

/// Whether all hosts have the same content, as far as is known: equal sizes, and equal digests where there are any.
fn have_same_content(hosts: &[HostEntry]) -> bool {
    let mut digests = hosts.iter().filter_map(|host| host.file.blake3);
    let digest = digests.next();
    digests.all(|other| Some(other) == digest) && hosts.windows(2).all(|two| two[0].file.size == two[1].file.size)
}

/// The owners to choose from, at most [`NAMED_OWNERS_MAX`].
fn owners_of(hosts: &[HostEntry]) -> Vec<FileOwner> {
    let owner = |host: &HostEntry| FileOwner {
        hostname: host.hostname.clone(),
        size: host.file.size,
        modified: host.file.modified,
    };
    hosts.iter().take(NAMED_OWNERS_MAX).map(owner).collect()
}

/// Chooses the host whose content is to be fetched: preferably verifiable in pieces, then as a whole, then the content
/// that most hosts have.
fn choose_host(hosts: &[HostEntry]) -> Option<&HostEntry> {
    // Comparing each with all others is quadratic: of very many hosts, an evenly spaced sample is compared.
    let hosts: Vec<&HostEntry> = hosts.iter().step_by(hosts.len().div_ceil(COMPARED_HOSTS_MAX).max(1)).collect();
    let rank = |host: &&&HostEntry| {
        let content = ContentIdentity::of(&host.file);
        let same = hosts.iter().filter(|other| content.matches(&other.file)).count();
        (content.pieces_root.is_some(), content.blake3.is_some(), same)
    };
    hosts.iter().max_by_key(rank).copied()
}

/// The hosts that have a file.
struct ReachableHosts {
    /// Hosts that it may be fetched from.
    hosts: Vec<HostEntry>,
    /// One of the hosts that announce an unreachable address, if there are any.
    unreachable: Option<Name>,
}

/// Asks the registry for the hosts that have a file, without ourselves and, unless the registry is on loopback, without
/// hosts on loopback.
fn find_reachable_hosts(inner: &NodeInner, name: &FileName) -> Result<ReachableHosts, NodeError> {
    let mut hosts = inner.registry()?.request(name)?;
    hosts.retain(|host| host.hostname != inner.user);
    let allows_loopback = inner.is_registry_on_loopback();
    let is_on_loopback = |host: &&HostEntry| host.ip.to_canonical().is_loopback();
    let unreachable = hosts.iter().find(is_on_loopback).filter(|_| !allows_loopback).map(|host| host.hostname.clone());
    hosts.retain(|host| is_reachable(host, &inner.user, allows_loopback));
    Ok(ReachableHosts { hosts, unreachable })
}

fn is_reachable(host: &HostEntry, own: &Name, allows_loopback: bool) -> bool {
    let ip = host.ip.to_canonical();
    // Peers do not use lower ports: another service would answer there.
    let is_peer = host.port >= PORT_MIN;
    is_peer
        && host.hostname != *own
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && (allows_loopback || !ip.is_loopback())
}

/// Looks up the hosts of a file for a running fetch.
struct RegistrySourceFinder(Weak<NodeInner>);

impl SourceFinder for RegistrySourceFinder {
    fn find_hosts(&self, fname: &FileName) -> Result<Vec<HostEntry>, String> {
        let inner = self.0.upgrade().ok_or("the node has ended")?;
        find_reachable_hosts(&inner, fname).map(|found| found.hosts).map_err(|error| error.to_string())
    }
}

fn start_transfer(inner: &Arc<NodeInner>, spec: FetchSpec) -> Result<(), NodeError> {
    let id = spec.id.clone();
    let on_progress = {
        let (weak, id) = (Arc::downgrade(inner), id.clone());
        Arc::new(move |progress: &FetchProgress| {
            if let Some(inner) = weak.upgrade() {
                record_progress(&inner, &id, progress);
            }
        })
    };
    let context = transfer::FetchContext {
        executor: Arc::clone(&inner.context.listener_context.executor),
        timing: FetchTiming::default(),
    };
    let target = spec.save_path.clone();
    let fetch = Fetch::start(spec, Arc::new(RegistrySourceFinder(Arc::downgrade(inner))), on_progress, context);
    let fetch = fetch.map_err(|error| match error {
        StartFetchError::Exists(_) => NodeError::Path(PathError::AlreadyExists(target.display().to_string())),
        StartFetchError::Io { error, .. } => folder_write_error(target.parent().unwrap_or(Path::new("/")), &error),
        StartFetchError::Full(_) => NodeError::Busy(error.to_string()),
        other => NodeError::Invalid(other.to_string()),
    })?;
    let fetch = Arc::new(fetch);
    let mut entries = inner.fetches.entries.lock();
    if let Some(entry) = entries.get_mut(&id) {
        entry.progress.get_or_insert_with(|| fetch.progress());
        entry.fetch = Some(fetch);
    }
    Ok(())
}

/// Records progress of a fetch: in the table, in the store if its status changed, and as a notification. Runs on the
/// fetch's thread.
fn record_progress(inner: &Arc<NodeInner>, id: &str, progress: &FetchProgress) {
    let fetches = &inner.fetches;
    let row = {
        let entries = fetches.entries.lock();
        let Some(entry) = entries.get(id) else { return };
        // Also for a fetch that was released, so that it can be resumed later.
        let has_changed = entry.row.status != stored_status(progress) || entry.row.error != progress.error;
        let row = FetchRow {
            downloaded_size: progress.downloaded_size,
            status: stored_status(progress),
            error: progress.error.clone(),
            is_verified: progress.verified,
            ..entry.row.clone()
        };
        has_changed.then_some(row)
    };
    if let Some(row) = &row {
        // Before the status is visible: whoever sees it completed finds the file tracked.
        if row.status == FetchStatus::Completed
            && let Err(error) = track_fetched(inner, row)
        {
            log::warn!("{}: {} came whole, but is not tracked: {error}", inner.user, row.save_path);
        }
        if let Err(error) = inner.context.store.put_fetch(&inner.user, row) {
            log::warn!("{}: fetch {id}: {error}", inner.user);
        }
    }
    let json = {
        let mut entries = fetches.entries.lock();
        let Some(entry) = entries.get_mut(id) else { return };
        if let Some(row) = row {
            entry.row = row;
        }
        entry.progress = Some(progress.clone());
        entry.json()
    };
    fetches.changed.notify_all();
    inner.events.notify("fetches", &json!({ "id": id, "progress": json }));
}

/// Tracks a fetched file, unpublished.
fn track_fetched(inner: &NodeInner, row: &FetchRow) -> Result<(), NodeError> {
    let path = Path::new(&row.save_path);
    let opened = inner.published_files.folders().reopen(path)?;
    let name = inner.files.free_name(&row.file_name, path)?;
    let file = inner.files.track(&name, FileStat::of(&opened.path, &opened.metadata), Clock::wall())?;
    inner.notify_file_changed("fetched", &file);
    Ok(())
}

/// Resumes the fetches that were in progress when the process or the user's session ended.
pub(super) fn resume_all(inner: &Arc<NodeInner>) {
    let _resume_guard = inner.fetches.resume_lock.lock();
    let interrupted: Vec<FetchRow> = {
        let entries = inner.fetches.entries.lock();
        // Failed fetches wait on disk until the user acts on them.
        let is_left = |entry: &&FetchEntry| entry.fetch.is_none() && !entry.row.status.has_ended();
        entries.values().filter(is_left).map(|entry| entry.row.clone()).collect()
    };
    for row in interrupted {
        if let Err(error) = resume(inner, &row) {
            log::warn!("{}: fetch of {}: {error}", inner.user, row.file_name);
            let row = FetchRow { status: FetchStatus::Failed, error: Some(error.to_string()), ..row };
            set_row(inner, row);
        }
    }
}

fn resume(inner: &Arc<NodeInner>, row: &FetchRow) -> Result<(), NodeError> {
    let target = Path::new(&row.save_path);
    // The shared folders may have changed since the start. If so, the data stays until the fetch is cancelled.
    inner.published_files.folders().check_target(target)?;
    let folder = folder_of(row);
    let left = transfer::find_interrupted(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
    match left {
        Some(spec) if spec.save_path == target => {
            // A failed fetch starts paused, until the user resumes it.
            let is_paused = matches!(row.status, FetchStatus::Paused | FetchStatus::Failed);
            start_transfer(inner, FetchSpec { is_paused, ..spec })
        }
        // The process ended just after the file was moved to its final place, before the completion was recorded.
        None if matches!(row.status, FetchStatus::Pending | FetchStatus::Downloading)
            && inner.published_files.folders().reopen(target).is_ok_and(|it| it.metadata.len() == row.total_size) =>
        {
            track_fetched(inner, row)?;
            let downloaded_size = row.total_size;
            set_row(inner, FetchRow { status: FetchStatus::Completed, error: None, downloaded_size, ..row.clone() });
            Ok(())
        }
        _ => {
            // A part file without a journal is useless.
            transfer::discard_leftovers(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
            Err(NodeError::NotFound("nothing is left of what had come: fetch it again".to_owned()))
        }
    }
}

fn set_row(inner: &NodeInner, row: FetchRow) {
    if let Err(error) = inner.context.store.put_fetch(&inner.user, &row) {
        log::warn!("{}: fetch {}: {error}", inner.user, row.id);
    }
    if let Some(entry) = inner.fetches.entries.lock().get_mut(&row.id) {
        (entry.row, entry.progress) = (row, None);
    }
}

/// Stops all running fetches, keeping their data, so that [`resume_all`] can continue them.
pub(super) fn suspend_all(inner: &NodeInner) {
    let running: Vec<Arc<Fetch>> = {
        let mut entries = inner.fetches.entries.lock();
        entries.values_mut().filter(|entry| !entry.status().is_final()).filter_map(|entry| entry.fetch.take()).collect()
    };
    std::thread::scope(|scope| {
        for fetch in &running {
            scope.spawn(|| {
                if !fetch.stop(STOP_TIMEOUT) {
                    log::warn!("{}: a fetch is slow to let go", inner.user);
                }
            });
        }
    });
    // From now on the stored rows are shown; the last progress is outdated.
    for entry in inner.fetches.entries.lock().values_mut() {
        if !entry.status().is_final() {
            entry.progress = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::wire::{Digest, FileEntry, Seconds};

    fn host(name: &str, ip: &str, size: u64, root: Option<u8>) -> HostEntry {
        let digest = root.map(|byte| Digest([byte; 32]));
        HostEntry {
            hostname: Name::new(name).unwrap(),
            display_name: name.into(),
            ip: ip.parse().unwrap(),
            port: 6001,
            file: Arc::new(FileEntry {
                size,
                modified: Seconds::new(1.0).unwrap(),
                created: None,
                published_at: None,
                is_published: true,
                blake3: digest,
                pieces_root: digest,
                features: Arc::new([]),
            }),
        }
    }

    #[test]
    fn the_content_that_can_be_checked_and_that_most_have_is_chosen() {
        let hosts = [
            host("ann", "192.0.2.1", 5, None),
            host("bob", "192.0.2.2", 5, Some(1)),
            host("cy", "192.0.2.3", 6, Some(2)),
            host("dee", "192.0.2.4", 6, Some(2)),
        ];
        assert_eq!(choose_host(&hosts).unwrap().file.size, 6);
        assert_eq!(choose_host(&hosts[..2]).unwrap().hostname.as_str(), "bob");
        assert!(choose_host(&[]).is_none());
    }

    #[test]
    fn equal_is_the_same_size_and_where_it_is_given_the_same_digest() {
        let (ann, bob) = (host("ann", "192.0.2.1", 5, Some(1)), host("bob", "192.0.2.2", 5, Some(1)));
        let unread = host("cy", "192.0.2.3", 5, None);
        assert!(have_same_content(&[]) && have_same_content(std::slice::from_ref(&ann)));
        assert!(have_same_content(&[ann.clone(), unread.clone(), bob.clone()]));
        let (longer, other) = (host("dee", "192.0.2.4", 6, None), host("eve", "192.0.2.5", 5, Some(2)));
        assert!(!have_same_content(&[ann.clone(), bob.clone(), longer]));
        assert!(!have_same_content(&[ann, unread, other.clone()]) && !have_same_content(&[bob, other]));
    }

    #[test]
    fn among_very_many_hosts_the_choice_takes_no_longer() {
        let mut hosts = vec![host("ann", "192.0.2.1", 5, Some(1)); 300_000];
        for one in &mut hosts[100_000..] {
            one.file = host("bob", "192.0.2.2", 6, Some(2)).file;
        }
        let started = Instant::now();
        assert_eq!(choose_host(&hosts).unwrap().file.size, 6);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn nobody_fetches_from_himself_or_from_loopback_by_a_far_registry() {
        let own = Name::new("ann").unwrap();
        for (name, ip, near, far) in [
            ("bob", "192.0.2.1", true, true),
            ("bob", "127.0.0.1", true, false),
            ("bob", "127.9.9.9", true, false),
            ("bob", "::1", true, false),
            ("bob", "::ffff:127.0.0.1", true, false),
            ("bob", "0.0.0.0", false, false),
            ("bob", "224.0.0.1", false, false),
            ("ann", "192.0.2.1", false, false),
        ] {
            let host = host(name, ip, 5, None);
            assert_eq!(is_reachable(&host, &own, true), near, "{name} {ip}");
            assert_eq!(is_reachable(&host, &own, false), far, "{name} {ip}");
        }
        let mut mail = host("bob", "192.0.2.1", 5, None);
        mail.port = 25;
        assert!(!is_reachable(&mail, &own, true), "no peer listens there");
    }
}
