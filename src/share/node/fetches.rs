//! What a node fetches from others: begun, watched, and gone on with after a restart.
//!
//! What is needed to go on with the bytes lies beside the unfinished file (see [`transfer`]); here is what a user
//! sees of it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value, json};

use super::keep::{FETCHES_MAX, FetchRow, Status};
use super::{Inner, NodeError, Owner};
use crate::model::secret::random_hex;
use crate::model::{Clock, Name};
use crate::share::beneath;
use crate::share::files::Facts;
use crate::share::folders::PathError;
use crate::share::transfer::{self, Content, Fetch, FetchSpec, Pace, Progress, Sources, StartError};
use crate::share::wire::{FileName, HostEntry, PORT_MIN};

/// Most fetches of a user that have not ended: each has threads of its own.
const UNFINISHED_MAX: usize = 32;
/// Most that have failed and still hold their threads and files; of the others what has come lies on disk.
const FAILED_HELD_MAX: usize = 8;
/// Most hosts of a file that are compared with each other.
const COMPARED_MAX: usize = 2_048;
/// Most owners that are named to who has to choose.
const OWNERS_MAX: usize = 100;
/// How long whoever wants a fetch to stand still waits to see it so.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How long fetches have to let go when the node ends.
const LET_GO: Duration = Duration::from_secs(3);

/// What a user wants of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Let it stand still.
    Pause,
    /// Let it go on, also after a failure.
    Resume,
    /// End it, and leave nothing.
    Cancel,
}

/// A user's fetches.
pub(super) struct Fetches {
    list: Mutex<BTreeMap<String, Entry>>,
    changed: Condvar,
    /// Held by whoever begins again what was let go of, so that nobody else does.
    beginning_again: Mutex<()>,
}

struct Entry {
    row: FetchRow,
    /// Where it runs.
    fetch: Option<Arc<Fetch>>,
    /// As it was told last.
    progress: Option<Progress>,
}

impl Entry {
    fn status(&self) -> Status {
        self.progress.as_ref().map_or(self.row.status, |progress| status_of(progress.status))
    }

    /// As the client API shows it.
    fn json(&self) -> Value {
        let row = &self.row;
        let mut shown = match &self.progress {
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
        shown["fetch_id"] = json!(row.id);
        shown["file_name"] = json!(row.file_name);
        shown["save_path"] = json!(row.save_path);
        shown["error"] = match &self.progress {
            Some(progress) => json!(progress.error),
            None => json!(row.error),
        };
        // Under the names that document 004 gives them.
        shown["error_message"] = shown["error"].clone();
        shown["peer_hostname"] = json!(row.peer_hostname);
        shown
    }
}

fn percent(done: u64, total: u64, status: Status) -> f64 {
    match total {
        0 if status == Status::Completed => 100.0,
        0 => 0.0,
        _ => done as f64 / total as f64 * 100.0,
    }
}

fn status_of(status: transfer::Status) -> Status {
    match status {
        transfer::Status::Pending => Status::Pending,
        transfer::Status::Downloading => Status::Downloading,
        transfer::Status::Paused => Status::Paused,
        transfer::Status::Completed => Status::Completed,
        transfer::Status::Failed => Status::Failed,
        transfer::Status::Cancelled => Status::Cancelled,
    }
}

/// What a fetch is to be after a restart: one that waits for a host is not one that its user has paused.
fn kept_status(progress: &Progress) -> Status {
    match status_of(progress.status) {
        Status::Paused if progress.error.is_some() => Status::Downloading,
        status => status,
    }
}

impl Fetches {
    /// Those that were kept.
    pub(super) fn new(kept: Vec<FetchRow>) -> Fetches {
        let entry = |row: FetchRow| (row.id.clone(), Entry { row, fetch: None, progress: None });
        let list = Mutex::new(kept.into_iter().map(entry).collect());
        Fetches { list, changed: Condvar::new(), beginning_again: Mutex::default() }
    }

    /// How many bring bytes now.
    pub(super) fn running(&self) -> usize {
        self.list.lock().values().filter(|entry| entry.fetch.is_some() && entry.status() == Status::Downloading).count()
    }
}

/// A user at his fetches.
pub struct Desk<'a> {
    inner: &'a Arc<Inner>,
}

impl<'a> Desk<'a> {
    pub(super) fn of(inner: &'a Arc<Inner>) -> Desk<'a> {
        Desk { inner }
    }

    /// Begins to fetch a file, perhaps that of one owner, to where it is to be saved.
    ///
    /// # Errors
    /// [`NodeError`]; `NotFound` where nobody, or that owner, has it; `Owners` where several have different ones and
    /// none was named.
    pub fn begin(&self, name: &FileName, owner: Option<&Name>, save_path: Option<&str>) -> Result<FetchRow, NodeError> {
        let inner = self.inner;
        // Before anybody is asked: it may not be saved anywhere.
        let target = inner.shelf.folders().save_target(save_path, name)?;
        let found = others(inner, name)?;
        let mut hosts = found.hosts;
        if let Some(owner) = owner {
            hosts.retain(|host| host.hostname == *owner);
        } else if !are_equal(&hosts) {
            return Err(NodeError::Owners(owners(&hosts)));
        }
        let Some(chosen) = choose(&hosts) else {
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
            status: Status::Pending,
            error: None,
            is_verified: false,
            peer_hostname: chosen.hostname.to_string(),
            peer_ip: chosen.ip.to_string(),
            began_at: Clock::wall(),
        };
        {
            let mut list = inner.fetches.list.lock();
            let unfinished = || list.values().filter(|entry| !entry.status().is_over());
            if unfinished().any(|entry| entry.row.save_path == row.save_path) {
                return Err(NodeError::Conflict(format!("{save_path} is being fetched already")));
            }
            if unfinished().count() >= UNFINISHED_MAX {
                return Err(NodeError::Busy(format!("{UNFINISHED_MAX} files are being fetched already")));
            }
            forget_oldest(&mut list);
            let_go_of_failed(&mut list);
            list.insert(row.id.clone(), Entry { row: row.clone(), fetch: None, progress: None });
        }
        let spec = FetchSpec {
            id: row.id.clone(),
            fname: name.clone(),
            save_path: target,
            hostname: row.peer_hostname.clone(),
            content: Content::of(&chosen.file),
            is_owner_named: owner.is_some(),
            is_paused: false,
        };
        let begun = inner.floor.keep.put_fetch(&inner.user, &row).map_err(NodeError::from);
        if let Err(error) = begun.and_then(|()| start(inner, spec)) {
            inner.fetches.list.lock().remove(&row.id);
            // What did not begin is no fetch.
            if let Err(error) = inner.floor.keep.drop_fetch(&row.id) {
                log::warn!("{}: fetch {}: {error}", inner.user, row.id);
            }
            return Err(error);
        }
        Ok(row)
    }

    /// How far a fetch is.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn progress(&self, id: &str) -> Result<Value, NodeError> {
        self.inner.fetches.list.lock().get(id).map(Entry::json).ok_or_else(|| unknown(id))
    }

    /// All of them, by id.
    pub fn all(&self) -> Value {
        let list = self.inner.fetches.list.lock();
        Value::Object(list.iter().map(|(id, entry)| (id.clone(), entry.json())).collect::<Map<_, _>>())
    }

    /// Does what the user wants, and shows how it is then.
    ///
    /// # Errors
    /// There is none of that id, or it has ended.
    pub fn act(&self, id: &str, wish: Wish) -> Result<Value, NodeError> {
        let fetches = &self.inner.fetches;
        {
            let _nobody_else = fetches.beginning_again.lock();
            let let_go = {
                let list = fetches.list.lock();
                let entry = list.get(id).filter(|entry| entry.fetch.is_none() && entry.status() == Status::Failed);
                entry.map(|entry| entry.row.clone())
            };
            if let Some(row) = let_go {
                if wish == Wish::Cancel {
                    return put_away(self.inner, row);
                }
                // It waits until it is told what to do.
                resume(self.inner, &row)?;
            }
        }
        let fetch = {
            let list = fetches.list.lock();
            let entry = list.get(id).ok_or_else(|| unknown(id))?;
            // One that failed may be resumed or put away, if there is anything left of it.
            match (&entry.fetch, entry.status()) {
                (Some(fetch), status) if !matches!(status, Status::Completed | Status::Cancelled) => Arc::clone(fetch),
                (_, status) => {
                    return Err(NodeError::Conflict(format!("the fetch has ended: it is {}", status.as_text())));
                }
            }
        };
        match wish {
            Wish::Pause => fetch.pause(),
            Wish::Resume => fetch.resume(),
            Wish::Cancel => fetch.cancel(),
        }
        let is_seen = |status: Status| match wish {
            Wish::Pause => !matches!(status, Status::Pending | Status::Downloading),
            // A file may have come whole meanwhile.
            Wish::Resume => status != Status::Failed,
            Wish::Cancel => matches!(status, Status::Completed | Status::Cancelled),
        };
        let until = Instant::now() + SEEN_WITHIN;
        let mut list = fetches.list.lock();
        loop {
            let entry = list.get(id).ok_or_else(|| unknown(id))?;
            if is_seen(entry.status()) || Instant::now() >= until {
                return Ok(entry.json());
            }
            fetches.changed.wait_until(&mut list, until);
        }
    }
}

fn unknown(id: &str) -> NodeError {
    NodeError::NotFound(format!("there is no fetch {id:?}"))
}

/// Makes room for one more: those that ended, the oldest first.
fn forget_oldest(list: &mut BTreeMap<String, Entry>) {
    while list.len() >= FETCHES_MAX {
        let over = list.iter().filter(|(_, entry)| entry.status().is_over());
        let Some(oldest) = over.min_by_key(|(_, entry)| entry.row.began_at).map(|(id, _)| id.clone()) else { return };
        list.remove(&oldest);
    }
}

/// Makes the threads end of those that failed, the oldest first.
fn let_go_of_failed(list: &mut BTreeMap<String, Entry>) {
    let holds = |entry: &&mut Entry| entry.fetch.is_some() && entry.status() == Status::Failed;
    let mut failed: Vec<&mut Entry> = list.values_mut().filter(holds).collect();
    failed.sort_by_key(|entry| std::cmp::Reverse(entry.row.began_at));
    for entry in failed.into_iter().skip(FAILED_HELD_MAX) {
        // As it is kept. Its threads are not waited for.
        (entry.fetch, entry.progress) = (None, None);
    }
}

/// Ends a fetch that nobody works for: nothing is left of it.
fn put_away(inner: &Inner, row: FetchRow) -> Result<Value, NodeError> {
    let folder = folder_of(&row);
    transfer::discard_left(folder, &row.id).map_err(|error| cannot_write(folder, &error))?;
    let id = row.id.clone();
    settle(inner, FetchRow { status: Status::Cancelled, error: None, ..row });
    let shown = inner.fetches.list.lock().get(&id).map(Entry::json).ok_or_else(|| unknown(&id))?;
    inner.watchers.tell("fetches", &json!({ "id": id, "progress": &shown }));
    Ok(shown)
}

fn folder_of(row: &FetchRow) -> &Path {
    Path::new(&row.save_path).parent().unwrap_or(Path::new("/"))
}

/// Why nothing can be written in a folder.
pub(super) fn cannot_write(folder: &Path, error: &io::Error) -> NodeError {
    let shown = folder.display();
    match error.kind() {
        _ if beneath::is_link(error) => {
            NodeError::Path(PathError::Forbidden(format!("{shown} was exchanged for a link meanwhile")))
        }
        io::ErrorKind::PermissionDenied => {
            NodeError::Path(PathError::Forbidden(format!("{shown}: this node may not write there")))
        }
        io::ErrorKind::NotFound => NodeError::Path(PathError::NoFolder(shown.to_string())),
        kind => NodeError::Folder {
            reason: format!("{shown} cannot be written to: {error}"),
            is_full: matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        },
    }
}

/// Whether all have the same, as far as is known: the same size, and the same digest where one is given.
fn are_equal(hosts: &[HostEntry]) -> bool {
    let mut digests = hosts.iter().filter_map(|host| host.file.blake3);
    let digest = digests.next();
    digests.all(|other| Some(other) == digest) && hosts.windows(2).all(|two| two[0].file.size == two[1].file.size)
}

/// Some of those who have a file, for somebody who has to choose.
fn owners(hosts: &[HostEntry]) -> Vec<Owner> {
    let owner = |host: &HostEntry| Owner {
        hostname: host.hostname.clone(),
        size: host.file.size,
        modified: host.file.modified,
    };
    hosts.iter().take(OWNERS_MAX).map(owner).collect()
}

/// The host to go by: the content that most have, of those the one that can be checked.
fn choose(hosts: &[HostEntry]) -> Option<&HostEntry> {
    // Each is compared with all others; of very many, some that lie evenly apart stand for all.
    let hosts: Vec<&HostEntry> = hosts.iter().step_by(hosts.len().div_ceil(COMPARED_MAX).max(1)).collect();
    let rank = |host: &&&HostEntry| {
        let content = Content::of(&host.file);
        let same = hosts.iter().filter(|other| content.is_at(&other.file)).count();
        (content.pieces_root.is_some(), content.blake3.is_some(), same)
    };
    hosts.iter().max_by_key(rank).copied()
}

/// Who has a file.
struct Others {
    /// Those who may be asked for it.
    hosts: Vec<HostEntry>,
    /// One of those who cannot be reached where they say that they are.
    unreachable: Option<Name>,
}

/// Who has a file and may be asked for it: never ourselves, and nobody on loopback unless the registry is.
fn others(inner: &Inner, name: &FileName) -> Result<Others, NodeError> {
    let mut hosts = inner.registry()?.request(name)?;
    hosts.retain(|host| host.hostname != inner.user);
    let may_loop = inner.is_registry_on_loopback();
    let is_on_loopback = |host: &&HostEntry| host.ip.to_canonical().is_loopback();
    let unreachable = hosts.iter().find(is_on_loopback).filter(|_| !may_loop).map(|host| host.hostname.clone());
    hosts.retain(|host| may_be_asked(host, &inner.user, may_loop));
    Ok(Others { hosts, unreachable })
}

fn may_be_asked(host: &HostEntry, own: &Name, may_loop: bool) -> bool {
    let ip = host.ip.to_canonical();
    // No peer has a lower port: what answers there is something else.
    let is_peer = host.port >= PORT_MIN;
    is_peer && host.hostname != *own && !ip.is_unspecified() && !ip.is_multicast() && (may_loop || !ip.is_loopback())
}

/// For a fetch that looks for its hosts.
struct Finder(Weak<Inner>);

impl Sources for Finder {
    fn find(&self, fname: &FileName) -> Result<Vec<HostEntry>, String> {
        let inner = self.0.upgrade().ok_or("the node has ended")?;
        others(&inner, fname).map(|found| found.hosts).map_err(|error| error.to_string())
    }
}

fn start(inner: &Arc<Inner>, spec: FetchSpec) -> Result<(), NodeError> {
    let id = spec.id.clone();
    let told = {
        let (weak, id) = (Arc::downgrade(inner), id.clone());
        Arc::new(move |progress: &Progress| {
            if let Some(inner) = weak.upgrade() {
                note(&inner, &id, progress);
            }
        })
    };
    let floor = transfer::Floor { executor: Arc::clone(&inner.floor.listening.executor), pace: Pace::default() };
    let target = spec.save_path.clone();
    let fetch = Fetch::start(spec, Arc::new(Finder(Arc::downgrade(inner))), told, floor);
    let fetch = fetch.map_err(|error| match error {
        StartError::Exists(_) => NodeError::Path(PathError::Exists(target.display().to_string())),
        StartError::Io { error, .. } => cannot_write(target.parent().unwrap_or(Path::new("/")), &error),
        StartError::Full(_) => NodeError::Busy(error.to_string()),
        other => NodeError::Invalid(other.to_string()),
    })?;
    let fetch = Arc::new(fetch);
    let mut list = inner.fetches.list.lock();
    if let Some(entry) = list.get_mut(&id) {
        entry.progress.get_or_insert_with(|| fetch.progress());
        entry.fetch = Some(fetch);
    }
    Ok(())
}

/// On the fetch's thread.
fn note(inner: &Arc<Inner>, id: &str, progress: &Progress) {
    let fetches = &inner.fetches;
    let row = {
        let list = fetches.list.lock();
        let Some(entry) = list.get(id) else { return };
        // A last word of one that was let go of, so that it can go on later.
        let is_news = entry.row.status != kept_status(progress) || entry.row.error != progress.error;
        let row = FetchRow {
            downloaded_size: progress.downloaded_size,
            status: kept_status(progress),
            error: progress.error.clone(),
            is_verified: progress.verified,
            ..entry.row.clone()
        };
        is_news.then_some(row)
    };
    if let Some(row) = &row {
        // Whoever sees that it is completed finds the file among the tracked ones.
        if row.status == Status::Completed
            && let Err(error) = track(inner, row)
        {
            log::warn!("{}: {} came whole, but is not tracked: {error}", inner.user, row.save_path);
        }
        if let Err(error) = inner.floor.keep.put_fetch(&inner.user, row) {
            log::warn!("{}: fetch {id}: {error}", inner.user);
        }
    }
    let shown = {
        let mut list = fetches.list.lock();
        let Some(entry) = list.get_mut(id) else { return };
        if let Some(row) = row {
            entry.row = row;
        }
        entry.progress = Some(progress.clone());
        entry.json()
    };
    fetches.changed.notify_all();
    inner.watchers.tell("fetches", &json!({ "id": id, "progress": shown }));
}

/// A fetched file is a local one, and not published.
fn track(inner: &Inner, row: &FetchRow) -> Result<(), NodeError> {
    let path = Path::new(&row.save_path);
    let opened = inner.shelf.folders().open_resolved(path)?;
    let name = inner.files.free_name(&row.file_name, path)?;
    let file = inner.files.track(&name, Facts::of(&opened.path, &opened.metadata), Clock::wall())?;
    inner.files_changed("fetched", &file);
    Ok(())
}

/// Goes on with what was under way when the process or the user's session ended.
pub(super) fn resume_all(inner: &Arc<Inner>) {
    let _nobody_else = inner.fetches.beginning_again.lock();
    let waiting: Vec<FetchRow> = {
        let list = inner.fetches.list.lock();
        // What failed waits on disk until its user wants something of it.
        let is_left = |entry: &&Entry| entry.fetch.is_none() && !entry.row.status.is_over();
        list.values().filter(is_left).map(|entry| entry.row.clone()).collect()
    };
    for row in waiting {
        if let Err(error) = resume(inner, &row) {
            log::warn!("{}: fetch of {}: {error}", inner.user, row.file_name);
            let row = FetchRow { status: Status::Failed, error: Some(error.to_string()), ..row };
            settle(inner, row);
        }
    }
}

fn resume(inner: &Arc<Inner>, row: &FetchRow) -> Result<(), NodeError> {
    let target = Path::new(&row.save_path);
    // What the node shares may be other folders than when it began. What has come stays until it is put away.
    inner.shelf.folders().check_target(target)?;
    let folder = folder_of(row);
    let left = transfer::left_of(folder, &row.id).map_err(|error| cannot_write(folder, &error))?;
    match left {
        Some(spec) if spec.save_path == target => {
            // It failed: it waits until its user wants it again.
            let is_paused = matches!(row.status, Status::Paused | Status::Failed);
            start(inner, FetchSpec { is_paused, ..spec })
        }
        // The end came just after the file was put into its place; what is small was never seen to come.
        None if matches!(row.status, Status::Pending | Status::Downloading)
            && inner.shelf.folders().open_resolved(target).is_ok_and(|it| it.metadata.len() == row.total_size) =>
        {
            track(inner, row)?;
            let downloaded_size = row.total_size;
            settle(inner, FetchRow { status: Status::Completed, error: None, downloaded_size, ..row.clone() });
            Ok(())
        }
        _ => {
            // A part without a journal is of no use.
            transfer::discard_left(folder, &row.id).map_err(|error| cannot_write(folder, &error))?;
            Err(NodeError::NotFound("nothing is left of what had come: fetch it again".to_owned()))
        }
    }
}

fn settle(inner: &Inner, row: FetchRow) {
    if let Err(error) = inner.floor.keep.put_fetch(&inner.user, &row) {
        log::warn!("{}: fetch {}: {error}", inner.user, row.id);
    }
    if let Some(entry) = inner.fetches.list.lock().get_mut(&row.id) {
        (entry.row, entry.progress) = (row, None);
    }
}

/// Lets go of all; what has come stays, and [`resume_all`] goes on with it.
pub(super) fn suspend_all(inner: &Inner) {
    let running: Vec<Arc<Fetch>> = {
        let mut list = inner.fetches.list.lock();
        list.values_mut()
            .filter(|entry| !matches!(entry.status(), Status::Completed | Status::Cancelled))
            .filter_map(|entry| entry.fetch.take())
            .collect()
    };
    std::thread::scope(|scope| {
        for fetch in &running {
            scope.spawn(|| {
                if !fetch.stop(LET_GO) {
                    log::warn!("{}: a fetch is slow to let go", inner.user);
                }
            });
        }
    });
    // As it is kept: what was told last is of before.
    for entry in inner.fetches.list.lock().values_mut() {
        if !matches!(entry.status(), Status::Completed | Status::Cancelled) {
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
        assert_eq!(choose(&hosts).unwrap().file.size, 6);
        assert_eq!(choose(&hosts[..2]).unwrap().hostname.as_str(), "bob");
        assert!(choose(&[]).is_none());
    }

    #[test]
    fn equal_is_the_same_size_and_where_it_is_given_the_same_digest() {
        let (ann, bob) = (host("ann", "192.0.2.1", 5, Some(1)), host("bob", "192.0.2.2", 5, Some(1)));
        let unread = host("cy", "192.0.2.3", 5, None);
        assert!(are_equal(&[]) && are_equal(std::slice::from_ref(&ann)));
        assert!(are_equal(&[ann.clone(), unread.clone(), bob.clone()]));
        let (longer, other) = (host("dee", "192.0.2.4", 6, None), host("eve", "192.0.2.5", 5, Some(2)));
        assert!(!are_equal(&[ann.clone(), bob.clone(), longer]));
        assert!(!are_equal(&[ann, unread, other.clone()]) && !are_equal(&[bob, other]));
    }

    #[test]
    fn among_very_many_hosts_the_choice_takes_no_longer() {
        let mut hosts = vec![host("ann", "192.0.2.1", 5, Some(1)); 300_000];
        for one in &mut hosts[100_000..] {
            one.file = host("bob", "192.0.2.2", 6, Some(2)).file;
        }
        let begun = Instant::now();
        assert_eq!(choose(&hosts).unwrap().file.size, 6);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
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
            assert_eq!(may_be_asked(&host, &own, true), near, "{name} {ip}");
            assert_eq!(may_be_asked(&host, &own, false), far, "{name} {ip}");
        }
        let mut mail = host("bob", "192.0.2.1", 5, None);
        mail.port = 25;
        assert!(!may_be_asked(&mail, &own, true), "no peer listens there");
    }
}
