//! Snapshots of all files and hosts on the network: the registry's list, read in pages and cached briefly.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::Name;
use crate::model::text::{TextFilter, folded};
use crate::share::client::{RegistryClient, RegistryClientError};
use crate::share::similarity::{Similarity, similarity};
use crate::share::wire::{ChangeEntry, Digest, FileEntry, FileName, HostEntry, ListResponse, Seconds};

/// Most hosts per page: as many as the registry handles at once.
const PAGE_HOSTS_MAX: u64 = 256;
/// Hosts in the first page: the response has a size limit, and it is unknown how many files the hosts have.
const FIRST_PAGE_HOSTS: u64 = 2;
/// After a page with more files than this, the next one is smaller.
const PAGE_FILES_MAX: usize = 20_000;
/// Most files in a snapshot; a larger network cannot be listed.
const FILES_MAX: usize = 1_000_000;
/// Most hosts in a snapshot: as many as a registry admits.
const HOSTS_MAX: u64 = 500_000;
/// Bound for reading the whole list.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum age of a snapshot while changes are followed. Not unlimited, because changes do not include when hosts were
/// last seen.
const MAX_AGE_WHILE_FOLLOWED: Duration = Duration::from_secs(30);
/// Most changes that are buffered while the list is read.
const BUFFERED_CHANGES_MAX: usize = 20_000;
/// A snapshot with more files is dropped on a change instead of being updated.
const APPLY_FILES_MAX: usize = 200_000;
/// A snapshot in which nothing was found is reused for this many times as long as reading it took.
const REREAD_FACTOR: u32 = 4;
/// Maximum age of a snapshot otherwise.
pub(super) const MAX_AGE: Duration = Duration::from_secs(1);

/// A host on the network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkHost {
    /// Its unique name.
    pub hostname: Name,
    /// Its user's display name.
    pub display_name: Name,
    /// Its address.
    pub ip: IpAddr,
    /// Its peer port.
    pub port: u16,
    /// Number of its published files.
    pub file_count: usize,
    /// When the registry last heard from it.
    pub last_seen: Option<Seconds>,
}

impl NetworkHost {
    /// The client API's JSON form.
    pub fn json(&self) -> Value {
        json!({
            "hostname": self.hostname, "display_name": self.display_name, "ip": self.ip, "port": self.port,
            "file_count": self.file_count, "last_seen": self.last_seen,
        })
    }
}

/// A published file on the network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkFile {
    /// Its name.
    pub name: FileName,
    /// Its properties, as published.
    pub entry: FileEntry,
    /// The host that publishes it.
    pub owner: Arc<NetworkHost>,
    /// Number of hosts with the same content, this one included; 1 if the content has no digest.
    pub copies: u32,
    /// Its name, folded for searching.
    folded: Box<str>,
}

impl NetworkFile {
    fn new(name: FileName, entry: FileEntry, owner: &Arc<NetworkHost>) -> NetworkFile {
        let folded = folded(name.key()).into_boxed_str();
        NetworkFile { name, entry, owner: Arc::clone(owner), copies: 1, folded }
    }

    /// The client API's JSON form.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "size": self.entry.size,
            "modified": self.entry.modified,
            "created": self.entry.created,
            "published_at": self.entry.published_at,
            "blake3": self.entry.blake3,
            "hostname": self.owner.hostname,
            "owner_hostname": self.owner.hostname,
            "owner_name": self.owner.display_name,
            "owner_ip": self.owner.ip,
            "owner_port": self.owner.port,
            "copies": self.copies,
        })
    }
}

/// The files and hosts of the network at one time.
#[derive(Debug, Clone)]
pub struct NetworkSnapshot {
    taken_at: Instant,
    /// How long it took to read.
    read_duration: Duration,
    /// All files, ordered by name and owner.
    pub files: Vec<NetworkFile>,
    /// All hosts, ordered by name.
    pub hosts: Vec<Arc<NetworkHost>>,
}

/// A file of another host that is similar to one of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct DuplicateMatch {
    /// Its name at that host.
    pub name: FileName,
    /// The host, and the file's properties.
    pub host: HostEntry,
}

impl DuplicateMatch {
    /// The client API's JSON form.
    fn json(&self) -> Value {
        let (host, file) = (&self.host, &self.host.file);
        json!({
            "hostname": host.hostname,
            "owner_hostname": host.hostname,
            "name": self.name,
            "size": file.size,
            "modified": file.modified,
            "created": file.created,
            "published_at": file.published_at,
            "blake3": file.blake3,
            "owner_name": host.display_name,
            "owner_ip": host.ip,
            "owner_port": host.port,
        })
    }
}

/// Files of other hosts that are similar to one that is about to be published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Duplicates {
    /// Same size, and modified within two seconds.
    pub exact: Vec<DuplicateMatch>,
    /// Same size, or same name.
    pub partial: Vec<DuplicateMatch>,
}

impl Duplicates {
    /// Classifies what the registry found for a file of that size and modification time, leaving out our own files.
    pub fn of(own: &Name, size: u64, modified: Option<f64>, found: Vec<(FileName, HostEntry)>) -> Duplicates {
        let mut duplicates = Duplicates::default();
        for (name, host) in found.into_iter().filter(|(_, host)| host.hostname != *own) {
            let list = match similarity(size, modified, host.file.size, host.file.modified.get()) {
                Some(Similarity::Exact) => &mut duplicates.exact,
                Some(Similarity::SameSize) | None => &mut duplicates.partial,
            };
            if list.len() < DUPLICATES_MAX {
                list.push(DuplicateMatch { name, host });
            }
        }
        duplicates
    }

    /// Whether no similar file was found.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.partial.is_empty()
    }

    /// The client API's JSON form.
    pub fn json(&self) -> Value {
        let list = |files: &[DuplicateMatch]| files.iter().map(DuplicateMatch::json).collect::<Vec<_>>();
        json!({
            "has_exact_duplicate": !self.exact.is_empty(),
            "has_partial_duplicate": !self.partial.is_empty(),
            "exact_matches": list(&self.exact),
            "partial_matches": list(&self.partial),
        })
    }
}

/// Most similar files of either kind that are reported: older registries return all files of the name.
const DUPLICATES_MAX: usize = 100;

impl NetworkSnapshot {
    /// A snapshot made of the registry's pages.
    pub fn new(pages: impl IntoIterator<Item = ListResponse>) -> NetworkSnapshot {
        let mut snapshot = NetworkSnapshot {
            taken_at: Instant::now(),
            read_duration: Duration::ZERO,
            files: Vec::new(),
            hosts: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for page in pages {
            snapshot.add(page, &mut seen);
        }
        snapshot.finish();
        snapshot
    }

    /// Adds a page, skipping hosts already seen: between two pages a host may have moved to the later one.
    fn add(&mut self, page: ListResponse, seen: &mut BTreeSet<Name>) {
        for (hostname, listed) in page.registry {
            if !seen.insert(hostname.clone()) {
                continue;
            }
            let (ip, port) = listed.addr;
            let display_name = listed.display_name.unwrap_or_else(|| hostname.clone());
            let (file_count, last_seen) = (listed.files.len(), listed.last_seen);
            let owner = Arc::new(NetworkHost { hostname, display_name, ip, port, file_count, last_seen });
            self.hosts.push(Arc::clone(&owner));
            let files = listed.files.into_iter();
            self.files.extend(files.map(|(name, entry)| NetworkFile::new(name, entry, &owner)));
        }
    }

    /// Applies changes in their order. Applying a change again has no effect.
    fn apply(&mut self, changes: &[ChangeEntry]) {
        if changes.is_empty() {
            return;
        }
        // Only the last state of each host and file matters.
        let mut hosts: HashMap<&Name, Option<Arc<NetworkHost>>> = HashMap::new();
        let mut files: HashMap<(&Name, &FileName), Option<&FileEntry>> = HashMap::new();
        for changed in changes {
            match (&changed.fname, &changed.entry) {
                (Some(fname), entry) => {
                    files.insert((&changed.hostname, fname), entry.as_ref().and_then(Option::as_ref));
                }
                (None, _) if changed.is_host_gone() => {
                    hosts.insert(&changed.hostname, None);
                    files.retain(|(hostname, _), _| *hostname != &changed.hostname);
                }
                (None, _) => {}
            }
            if !changed.is_host_gone() {
                let (ip, port) = changed.addr;
                let (hostname, display_name) = (changed.hostname.clone(), changed.display_name.clone());
                let host = NetworkHost { hostname, display_name, ip, port, file_count: 0, last_seen: None };
                hosts.insert(&changed.hostname, Some(Arc::new(host)));
            }
        }
        let removed: HashSet<&Name> = changes.iter().filter(|it| it.is_host_gone()).map(|it| &it.hostname).collect();
        self.files.retain(|file| {
            let owner = &file.owner.hostname;
            !removed.contains(owner) && !files.contains_key(&(owner, &file.name))
        });
        for ((hostname, fname), entry) in files {
            let (Some(entry), Some(Some(owner))) = (entry, hosts.get(hostname)) else { continue };
            self.files.push(NetworkFile::new(fname.clone(), entry.clone(), owner));
        }
        // Rebuild all hosts with their current state and number of files.
        let mut current: BTreeMap<Name, NetworkHost> =
            self.hosts.drain(..).map(|host| (host.hostname.clone(), NetworkHost::clone(&host))).collect();
        for (hostname, host) in hosts {
            match host {
                None => drop(current.remove(hostname)),
                Some(host) => {
                    let last_seen = current.get(hostname).and_then(|current| current.last_seen);
                    current.insert(hostname.clone(), NetworkHost { last_seen, ..NetworkHost::clone(&host) });
                }
            }
        }
        current.values_mut().for_each(|host| host.file_count = 0);
        for file in &self.files {
            if let Some(host) = current.get_mut(&file.owner.hostname) {
                host.file_count += 1;
            }
        }
        let current: BTreeMap<Name, Arc<NetworkHost>> =
            current.into_iter().map(|(name, host)| (name, Arc::new(host))).collect();
        for file in &mut self.files {
            if let Some(host) = current.get(&file.owner.hostname) {
                file.owner = Arc::clone(host);
            }
            file.copies = 1;
        }
        self.hosts = current.into_values().collect();
        self.finish();
    }

    /// Sets each file's number of copies. A host that has the content under several names counts once.
    fn count_copies(&mut self) {
        let content = |file: &NetworkFile| file.entry.blake3.map(|blake3| (blake3, file.entry.size));
        let holder = |file: &NetworkFile| content(file).map(|content| (content, Arc::as_ptr(&file.owner)));
        let mut holders: Vec<((Digest, u64), *const NetworkHost)> = self.files.iter().filter_map(holder).collect();
        holders.sort_unstable();
        holders.dedup();
        let mut counts: HashMap<(Digest, u64), u32> = HashMap::new();
        for same in holders.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            counts.insert(same[0].0, u32::try_from(same.len()).unwrap_or(u32::MAX));
        }
        for file in &mut self.files {
            if let Some(count) = content(file).and_then(|content| counts.get(&content)) {
                file.copies = *count;
            }
        }
    }

    fn finish(&mut self) {
        self.count_copies();
        self.files.sort_by(|a, b| (&a.name, &a.owner.hostname).cmp(&(&b.name, &b.owner.hostname)));
    }

    /// Whether any file matches the query.
    pub fn has_match(&self, query: &TextFilter) -> bool {
        self.files.iter().any(|file| query.matches_folded(&file.folded))
    }

    /// The number of files whose name contains the query, ignoring case, and at most `limit` of them from `offset` on.
    pub fn search(&self, query: &TextFilter, offset: usize, limit: usize) -> (usize, Vec<&NetworkFile>) {
        let is_match = |file: &&NetworkFile| query.matches_folded(&file.folded);
        let (mut total, mut found) = (0, Vec::new());
        for file in self.files.iter().filter(is_match) {
            if total >= offset && found.len() < limit {
                found.push(file);
            }
            total += 1;
        }
        (total, found)
    }
}

/// Number of files in a page.
pub(super) fn file_count_of(page: &ListResponse) -> usize {
    page.registry.values().map(|listed| listed.files.len()).sum()
}

/// Number of hosts for the next page, after one of `hosts` hosts with `files` files.
pub(super) fn next_page_hosts(hosts: u64, files: usize) -> u64 {
    match files {
        0..5_000 => (hosts * 2).min(PAGE_HOSTS_MAX),
        5_000..=PAGE_FILES_MAX => hosts,
        _ => (hosts / 2).max(1),
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryClientError),
    /// The network has more files or hosts than a snapshot can have.
    #[error("the network has more than {FILES_MAX} files or {HOSTS_MAX} hosts: ask for one by its name")]
    TooLarge,
    /// Reading the list took too long.
    #[error("the registry has not told in {} s what the network has: ask for one file by its name", READ_TIMEOUT.as_secs())]
    TooSlow,
}

/// The cached snapshot, and what is needed to keep it up to date.
#[derive(Debug, Default)]
struct NetworkCacheState {
    latest: Option<Arc<NetworkSnapshot>>,
    is_followed: bool,
    /// While a snapshot is being read: the changes since, which it may not contain. None also after too many changes.
    buffered_changes: Option<Vec<ChangeEntry>>,
    /// How often the cache was invalidated; tells whether that happened while a snapshot was being read.
    invalidations: u64,
}

/// Caches the latest snapshot of the network. While changes are followed, it is kept up to date and for longer.
#[derive(Debug, Default)]
pub(super) struct NetworkCache {
    state: Mutex<NetworkCacheState>,
    /// Held while the list is read: simultaneous callers wait, and share the result.
    read_lock: Mutex<()>,
}

impl NetworkCache {
    /// Returns a snapshot that is at most `max_age` old, reading the list if necessary.
    pub(super) fn snapshot(
        &self,
        max_age: Duration,
        registry: &RegistryClient,
    ) -> Result<Arc<NetworkSnapshot>, NetworkError> {
        let called_at = Instant::now();
        let cached = || {
            let state = self.state.lock();
            let max_age = if state.is_followed { max_age.max(MAX_AGE_WHILE_FOLLOWED) } else { max_age };
            let is_fresh = |it: &Arc<NetworkSnapshot>| it.taken_at >= called_at || it.taken_at.elapsed() <= max_age;
            state.latest.clone().filter(is_fresh)
        };
        if let Some(snapshot) = cached() {
            return Ok(snapshot);
        }
        let _read_guard = self.read_lock.lock();
        if let Some(snapshot) = cached() {
            return Ok(snapshot);
        }
        let invalidations = {
            let mut state = self.state.lock();
            state.buffered_changes = Some(Vec::new());
            state.invalidations
        };
        let read = NetworkCache::read(registry);
        let mut state = self.state.lock();
        let buffered_changes = state.buffered_changes.take();
        let mut snapshot = read?;
        // If there were too many changes to buffer, the snapshot is not up to date.
        let is_up_to_date = buffered_changes.map(|changes| snapshot.apply(&changes)).is_some();
        let snapshot = Arc::new(snapshot);
        // If the cache was invalidated meanwhile, the snapshot is good enough only for this caller.
        if is_up_to_date && state.invalidations == invalidations {
            state.latest = Some(Arc::clone(&snapshot));
        }
        Ok(snapshot)
    }

    /// Reads the whole list, page by page.
    fn read(registry: &RegistryClient) -> Result<NetworkSnapshot, NetworkError> {
        let mut snapshot = NetworkSnapshot::new([]);
        let mut seen = BTreeSet::new();
        let (mut offset, mut limit) = (0, FIRST_PAGE_HOSTS);
        let deadline = Instant::now() + READ_TIMEOUT;
        loop {
            let page = registry.list(Some(offset), Some(limit))?;
            let (total, listed, files) = (page.total, page.registry.len() as u64, file_count_of(&page));
            snapshot.add(page, &mut seen);
            if snapshot.files.len() > FILES_MAX {
                return Err(NetworkError::TooLarge);
            }
            offset += limit;
            limit = next_page_hosts(limit, files);
            if listed == 0 || offset >= total {
                break;
            }
            // The total is the registry's claim: it must not make us read without end.
            if offset >= HOSTS_MAX {
                return Err(NetworkError::TooLarge);
            }
            if Instant::now() >= deadline {
                return Err(NetworkError::TooSlow);
            }
        }
        snapshot.finish();
        snapshot.read_duration = snapshot.taken_at.elapsed();
        Ok(snapshot)
    }

    /// Returns a newer snapshot after a search without results. However often it is called, only a fraction of the time
    /// is spent on reading the list.
    pub(super) fn refreshed(&self, registry: &RegistryClient) -> Result<Arc<NetworkSnapshot>, NetworkError> {
        let read_duration = self.state.lock().latest.as_ref().map_or(Duration::ZERO, |latest| latest.read_duration);
        self.snapshot((read_duration * REREAD_FACTOR).min(MAX_AGE), registry)
    }

    /// From now on all changes are passed to [`NetworkCache::apply`]; drops the snapshot, which may lack earlier ones.
    pub(super) fn begin_following(&self) {
        let mut state = self.state.lock();
        (state.latest, state.is_followed) = (None, true);
        state.invalidations += 1;
    }

    /// Whether changes are being followed.
    pub(super) fn is_followed(&self) -> bool {
        self.state.lock().is_followed
    }

    /// Changes are no longer passed to [`NetworkCache::apply`].
    pub(super) fn stop_following(&self) {
        self.state.lock().is_followed = false;
    }

    /// Applies changes to the cached snapshot.
    pub(super) fn apply(&self, changes: &[ChangeEntry]) {
        let (latest, invalidations) = {
            let mut state = self.state.lock();
            match &mut state.buffered_changes {
                Some(buffered_changes) if buffered_changes.len() + changes.len() <= BUFFERED_CHANGES_MAX => {
                    buffered_changes.extend_from_slice(changes)
                }
                _ => state.buffered_changes = None,
            }
            (state.latest.take(), state.invalidations)
        };
        // Not under the lock, as it may take a while; a caller in the meantime reads the list.
        let Some(latest) = latest.filter(|latest| latest.files.len() <= APPLY_FILES_MAX) else { return };
        let mut snapshot = Arc::unwrap_or_clone(latest);
        snapshot.apply(changes);
        let mut state = self.state.lock();
        if state.latest.is_none() && state.invalidations == invalidations {
            state.latest = Some(Arc::new(snapshot));
        }
    }

    /// Drops the cached snapshot, because it is outdated.
    pub(super) fn invalidate(&self) {
        let mut state = self.state.lock();
        state.latest = None;
        state.invalidations += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    /// Name, size and modification time of a file.
    type ListedFile<'a> = (&'a str, u64, f64);

    /// A page with these hosts and their files.
    fn listing(hosts: &[(&str, &[ListedFile<'_>])]) -> ListResponse {
        let registry = hosts
            .iter()
            .map(|(host, files)| {
                let files: serde_json::Map<String, Value> = files
                    .iter()
                    .map(|(name, size, modified)| {
                        ((*name).to_owned(), json!({"size": size, "modified": modified, "is_published": true}))
                    })
                    .collect();
                let listed = json!({"addr": ["127.0.0.1", 6001], "files": files});
                (Name::new(host).unwrap(), from_value(listed).unwrap())
            })
            .collect();
        ListResponse { total: hosts.len() as u64, registry }
    }

    fn names(files: &[&NetworkFile]) -> Vec<String> {
        files.iter().map(|file| format!("{}@{}", file.name, file.owner.hostname)).collect()
    }

    #[test]
    fn files_are_found_by_a_part_of_their_name_and_paged() {
        let snapshot = NetworkSnapshot::new([
            listing(&[("bob", &[("Report.pdf", 5, 1.0), ("song.ogg", 6, 1.0)])]),
            listing(&[("ann", &[("report.txt", 5, 1.0)]), ("bob", &[("Report.pdf", 5, 1.0)])]),
        ]);
        assert_eq!(snapshot.hosts.len(), 2);
        let (total, found) = snapshot.search(&TextFilter::new(""), 0, 10);
        assert_eq!(
            (total, names(&found)),
            (3, vec!["Report.pdf@bob".into(), "report.txt@ann".into(), "song.ogg@bob".into()])
        );
        let (total, found) = snapshot.search(&TextFilter::new("REPORT"), 1, 1);
        assert_eq!((total, names(&found)), (2, vec!["report.txt@ann".to_owned()]));
        assert_eq!(snapshot.search(&TextFilter::new("nothing"), 0, 10), (0, vec![]));
        assert_eq!(snapshot.search(&TextFilter::new(""), 9, 10), (3, vec![]));
    }

    /// A change of a file, with its size if it exists, or of a host.
    fn changed(host: &str, fname: Option<&str>, size: Option<u64>, is_there: bool) -> ChangeEntry {
        let mut line = json!({"hostname": host, "display_name": host.to_uppercase(), "addr": ["192.0.2.9", 6009]});
        if let Some(fname) = fname {
            line["fname"] = json!(fname);
        }
        if !is_there {
            line["entry"] = Value::Null;
        } else if let Some(size) = size {
            line["entry"] = json!({"size": size, "modified": 1, "blake3": Digest([1; 32])});
        }
        from_value(line).unwrap()
    }

    #[test]
    fn what_has_changed_is_taken_in_in_order_and_twice_is_once() {
        let mut snapshot = NetworkSnapshot::new([listing(&[
            ("ann", &[("a", 1, 1.0), ("b", 2, 1.0)]),
            ("bob", &[("c", 3, 1.0)]),
            ("cy", &[("d", 4, 1.0)]),
        ])]);
        let changes = [
            changed("bob", None, None, false),
            changed("dee", None, None, true),
            changed("dee", Some("z"), Some(9), true),
            changed("ann", Some("a"), Some(9), true),
            changed("ann", Some("b"), None, false),
            changed("ann", Some("x"), Some(9), true),
            changed("ann", Some("x"), None, false),
            changed("cy", Some("e"), Some(5), true),
            changed("cy", None, None, false),
            changed("cy", None, None, true),
            changed("cy", Some("f"), Some(6), true),
            changed("nobody", Some("gone"), None, false),
        ];
        let shown = |snapshot: &NetworkSnapshot| -> (Vec<String>, Vec<String>) {
            let file = |it: &NetworkFile| format!("{}@{} {} {}", it.name, it.owner.hostname, it.entry.size, it.copies);
            let host = |it: &Arc<NetworkHost>| format!("{} {} {}", it.display_name, it.port, it.file_count);
            (snapshot.files.iter().map(file).collect(), snapshot.hosts.iter().map(host).collect())
        };
        for _ in 0..2 {
            snapshot.apply(&changes);
            let (files, hosts) = shown(&snapshot);
            assert_eq!(files, ["a@ann 9 2", "f@cy 6 1", "z@dee 9 2"]);
            assert_eq!(hosts, ["ANN 6009 1", "CY 6009 1", "DEE 6009 1", "NOBODY 6009 0"]);
        }
        snapshot.apply(&[changed("ann", None, None, false), changed("dee", Some("z"), Some(8), true)]);
        let (files, hosts) = shown(&snapshot);
        assert_eq!((files, hosts.len()), (vec!["f@cy 6 1".to_owned(), "z@dee 8 1".to_owned()], 3));
        assert_eq!(snapshot.search(&TextFilter::new("Z"), 0, 9).0, 1, "what came is found");
    }

    #[test]
    fn what_is_followed_is_read_once_and_what_is_heard_meanwhile_is_in_it() {
        let (client, answered) = registry(1, 3);
        let network = NetworkCache::default();
        network.begin_following();
        let read = |network: &NetworkCache| network.snapshot(Duration::ZERO, &client).unwrap().files.len();
        assert_eq!((read(&network), read(&network), answered.lock().len()), (3, 3, 1), "as long as nothing changes");
        network.apply(&[changed("dee", Some("z"), Some(9), true)]);
        assert_eq!((read(&network), answered.lock().len()), (4, 1));
        // Changes are buffered while the list is being read.
        network.state.lock().buffered_changes = Some(Vec::new());
        network.apply(&[changed("dee", Some("y"), Some(9), true)]);
        assert_eq!(network.state.lock().buffered_changes.as_ref().map(Vec::len), Some(1));
        network.state.lock().buffered_changes = None;
        network.invalidate();
        assert_eq!((read(&network), answered.lock().len()), (3, 2));
        network.stop_following();
        assert_eq!((read(&network), answered.lock().len()), (3, 3), "nobody tells what changes");
    }

    #[test]
    fn hosts_that_have_the_same_content_are_counted_once_each() {
        let files = |list: &[(&str, u64, Option<u8>)]| {
            let files: serde_json::Map<String, Value> = list
                .iter()
                .map(|(name, size, digest)| {
                    let digest = digest.map(|byte| Digest([byte; 32]));
                    ((*name).to_owned(), json!({"size": size, "modified": 1, "blake3": digest}))
                })
                .collect();
            from_value(json!({"addr": ["192.0.2.1", 6001], "files": files})).unwrap()
        };
        let registry = [
            ("ann", files(&[("a", 5, Some(1)), ("also-a", 5, Some(1)), ("b", 5, None)])),
            ("bob", files(&[("other", 5, Some(1)), ("b", 5, None), ("c", 6, Some(1))])),
            ("cy", files(&[("a", 5, Some(2)), ("z", 5, Some(1))])),
        ];
        let registry = registry.into_iter().map(|(host, listed)| (Name::new(host).unwrap(), listed)).collect();
        let snapshot = NetworkSnapshot::new([ListResponse { total: 3, registry }]);
        let counted: Vec<String> = snapshot
            .files
            .iter()
            .map(|file| format!("{}@{} {}", file.name, file.owner.hostname, file.copies))
            .collect();
        assert_eq!(
            counted,
            ["a@ann 3", "a@cy 1", "also-a@ann 3", "b@ann 1", "b@bob 1", "c@bob 1", "other@bob 3", "z@cy 3"]
        );
    }

    /// A registry with this many hosts of this many files each; records the number of files in each response.
    fn registry(hosts: u64, files: usize) -> (RegistryClient, Arc<Mutex<Vec<usize>>>) {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let answered = Arc::new(Mutex::new(Vec::new()));
        let counts = Arc::clone(&answered);
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let all: Vec<String> =
                (0..files).map(|n| format!(r#""{n}":{{"size":1,"modified":2,"is_published":true}}"#)).collect();
            let all = all.join(",");
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let asked: Value = serde_json::from_str(&line).unwrap();
                let number = |field: &str| asked["data"][field].as_u64().unwrap();
                let shown: Vec<String> = (number("offset")..hosts.min(number("offset") + number("limit")))
                    .map(|n| format!(r#""host-{n:04}":{{"addr":["192.0.2.1",6001],"files":{{{all}}}}}"#))
                    .collect();
                counts.lock().push(shown.len() * files);
                let shown = shown.join(",");
                writeln!(&stream, r#"{{"status":"OK","total":{hosts},"registry":{{{shown}}}}}"#).unwrap();
            }
        });
        (RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap(), answered)
    }

    #[test]
    fn pages_are_of_as_many_hosts_as_do_not_have_too_many_files() {
        for (hosts, files, most_in_an_answer, most_answers) in
            [(12, 6_000, 2 * PAGE_FILES_MAX, 12), (3, 21_000, 42_000, 2), (600, 3, 1_000, 10), (0, 0, 0, 1)]
        {
            let (client, answered) = registry(hosts, files);
            let snapshot = NetworkCache::default().snapshot(MAX_AGE, &client).unwrap();
            assert_eq!((snapshot.hosts.len(), snapshot.files.len()), (hosts as usize, hosts as usize * files));
            let answered = answered.lock();
            assert!(answered.iter().all(|count| *count <= most_in_an_answer), "{answered:?}");
            assert!(answered.len() <= most_answers, "{answered:?}");
        }
    }

    #[test]
    fn a_registry_that_never_comes_to_an_end_is_not_read_for_ever() {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let answer = format!(
                "{{\"status\":\"OK\",\"total\":{},\"registry\":{{\"ann\":{{\"addr\":[\"127.0.0.1\",6001],\"files\":{{}}}}}}}}\n",
                u64::MAX
            );
            for line in BufReader::new(&stream).lines() {
                if line.is_err() || (&stream).write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let client = RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap();
        let read = NetworkCache::default().snapshot(MAX_AGE, &client);
        assert!(matches!(read, Err(NetworkError::TooLarge | NetworkError::TooSlow)), "{read:?}");
        drop(client);
        served.join().unwrap();
    }

    #[test]
    fn whoever_asks_while_it_is_read_gets_what_another_reads() {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(&stream).lines();
            lines
                .take_while(Result::is_ok)
                .inspect(|_| {
                    // As long as reading takes with very many files.
                    std::thread::sleep(Duration::from_millis(300));
                    (&stream).write_all(b"{\"status\":\"OK\",\"total\":0,\"registry\":{}}\n").unwrap();
                })
                .count()
        });
        let client = RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap();
        let network = NetworkCache::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| network.snapshot(Duration::ZERO, &client).unwrap());
            }
        });
        drop(client);
        // The first caller's read, and one that started after all had called.
        let asked = served.join().unwrap();
        assert!(asked <= 3, "{asked}");
    }

    #[test]
    fn duplicates_are_others_files_of_the_same_size_or_name() {
        let found = |name: &str, host: &str, size: u64, modified: f64| {
            let entry = json!({"hostname": host, "ip": "192.0.2.1", "port": 6001, "size": size, "modified": modified});
            (FileName::new(name).unwrap(), from_value::<HostEntry>(entry).unwrap())
        };
        let all = vec![
            found("a", "ann", 5, 100.0),
            found("b", "bob", 5, 101.5),
            found("c", "bob", 5, 200.0),
            found("a", "cy", 6, 100.0),
        ];
        let ann = Name::new("ann").unwrap();
        let names = |list: &[DuplicateMatch]| {
            list.iter().map(|it| format!("{}@{}", it.name, it.host.hostname)).collect::<Vec<_>>()
        };
        let duplicates = Duplicates::of(&ann, 5, Some(100.0), all.clone());
        assert_eq!(
            (names(&duplicates.exact), names(&duplicates.partial)),
            (vec!["b@bob".to_owned()], vec!["c@bob".to_owned(), "a@cy".to_owned()])
        );
        let shown = duplicates.json();
        assert_eq!(
            (&shown["has_exact_duplicate"], &shown["exact_matches"][0]["hostname"]),
            (&json!(true), &json!("bob"))
        );
        assert_eq!(Duplicates::of(&ann, 5, None, all).partial.len(), 3);
        assert!(Duplicates::of(&ann, 5, None, Vec::new()).is_empty());
    }
}
