//! What the network has: the registry's list, read in pages and kept for a moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::Name;
use crate::model::text::{Sought, folded};
use crate::share::client::{RegistryClient, RegistryError};
use crate::share::files::{Likeness, likeness};
use crate::share::wire::{Changed, Digest, FileEntry, FileName, HostEntry, Listing, Seconds};

/// Hosts that are asked for at a time: as many as the registry looks at in one go.
const PAGE: u64 = 256;
/// And at first: nobody knows yet how many files they have, and an answer has a bound.
const PAGE_FIRST: u64 = 2;
/// After a page with more files than this the next is smaller.
const PAGE_FILES: usize = 20_000;
/// Most files that are held; a network with more is not shown as a list.
const FILES_MAX: usize = 1_000_000;
/// Most hosts that are held: as many as a registry takes on.
const HOSTS_MAX: u64 = 500_000;
/// How long reading all of it may take.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// While each change is heard of: when hosts were heard last is not told.
const FRESH_IF_FOLLOWED: Duration = Duration::from_secs(30);
/// Most changes that are kept while a list is read.
const HEARD_MAX: usize = 20_000;
/// Of more files, the list is read again when one changes.
const APPLIED_AT: usize = 200_000;
/// How many times as long as reading took what was read is good for whoever finds nothing in it.
const READ_RARELY: u32 = 4;
/// For whoever looks at a list.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// A host as the registry lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name, which is nobody else's.
    pub hostname: Name,
    /// The name for people.
    pub display_name: Name,
    /// Where its peer port is.
    pub ip: IpAddr,
    /// Its peer port.
    pub port: u16,
    /// How many files it shows.
    pub file_count: usize,
    /// When it was heard last.
    pub last_seen: Option<Seconds>,
}

impl Host {
    /// As the client API shows it.
    pub fn json(&self) -> Value {
        json!({
            "hostname": self.hostname, "display_name": self.display_name, "ip": self.ip, "port": self.port,
            "file_count": self.file_count, "last_seen": self.last_seen,
        })
    }
}

/// A file that some host has published.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkFile {
    /// Its name.
    pub name: FileName,
    /// What is known of it.
    pub entry: FileEntry,
    /// Who has it.
    pub owner: Arc<Host>,
    /// How many hosts have a file of this content, this one among them. Of one that is not known: this one alone.
    pub copies: u32,
    /// Its name as it is searched.
    folded: Box<str>,
}

impl NetworkFile {
    fn new(name: FileName, entry: FileEntry, owner: &Arc<Host>) -> NetworkFile {
        let folded = folded(name.key()).into_boxed_str();
        NetworkFile { name, entry, owner: Arc::clone(owner), copies: 1, folded }
    }

    /// As the client API shows it.
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

/// The network at one time. Files by name and owner, hosts by name.
#[derive(Debug, Clone)]
pub struct Snapshot {
    taken_at: Instant,
    /// How long reading it took.
    read_in: Duration,
    /// All files.
    pub files: Vec<NetworkFile>,
    /// All hosts.
    pub hosts: Vec<Arc<Host>>,
}

/// A file of somebody else that looks like one of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Its name there.
    pub name: FileName,
    /// Who has it, and what is known of it.
    pub host: HostEntry,
}

impl Match {
    /// As the client API shows it.
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

/// Files that look like one that is about to be published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Duplicates {
    /// Same size, and modified within two seconds.
    pub exact: Vec<Match>,
    /// Same size, or same name.
    pub partial: Vec<Match>,
}

impl Duplicates {
    /// Of what the registry has found for a file of that size and time: our own is none.
    pub fn of(own: &Name, size: u64, modified: Option<f64>, found: Vec<(FileName, HostEntry)>) -> Duplicates {
        let mut duplicates = Duplicates::default();
        for (name, host) in found.into_iter().filter(|(_, host)| host.hostname != *own) {
            let list = match likeness(size, modified, host.file.size, host.file.modified.get()) {
                Some(Likeness::Exact) => &mut duplicates.exact,
                Some(Likeness::Likely) | None => &mut duplicates.partial,
            };
            if list.len() < DUPLICATES_MAX {
                list.push(Match { name, host });
            }
        }
        duplicates
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.partial.is_empty()
    }

    /// As the client API shows them.
    pub fn json(&self) -> Value {
        let list = |files: &[Match]| files.iter().map(Match::json).collect::<Vec<_>>();
        json!({
            "has_exact_duplicate": !self.exact.is_empty(),
            "has_partial_duplicate": !self.partial.is_empty(),
            "exact_matches": list(&self.exact),
            "partial_matches": list(&self.partial),
        })
    }
}

/// Most of either kind that are told: an older registry gives all that have the name.
const DUPLICATES_MAX: usize = 100;

impl Snapshot {
    /// A snapshot of what was listed.
    pub fn new(pages: impl IntoIterator<Item = Listing>) -> Snapshot {
        let mut snapshot =
            Snapshot { taken_at: Instant::now(), read_in: Duration::ZERO, files: Vec::new(), hosts: Vec::new() };
        let mut seen = BTreeSet::new();
        for page in pages {
            snapshot.add(page, &mut seen);
        }
        snapshot.finish();
        snapshot
    }

    /// A host that moved to another page meanwhile counts once.
    fn add(&mut self, page: Listing, seen: &mut BTreeSet<Name>) {
        for (hostname, listed) in page.registry {
            if !seen.insert(hostname.clone()) {
                continue;
            }
            let (ip, port) = listed.addr;
            let display_name = listed.display_name.unwrap_or_else(|| hostname.clone());
            let (file_count, last_seen) = (listed.files.len(), listed.last_seen);
            let owner = Arc::new(Host { hostname, display_name, ip, port, file_count, last_seen });
            self.hosts.push(Arc::clone(&owner));
            let files = listed.files.into_iter();
            self.files.extend(files.map(|(name, entry)| NetworkFile::new(name, entry, &owner)));
        }
    }

    /// What has changed of it, in order. What is there already, or gone already, stays so.
    fn apply(&mut self, changes: &[Changed]) {
        if changes.is_empty() {
            return;
        }
        // The last word on each: one host may change much.
        let mut hosts: HashMap<&Name, Option<Arc<Host>>> = HashMap::new();
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
                let host = Host { hostname, display_name, ip, port, file_count: 0, last_seen: None };
                hosts.insert(&changed.hostname, Some(Arc::new(host)));
            }
        }
        let gone: HashSet<&Name> = changes.iter().filter(|it| it.is_host_gone()).map(|it| &it.hostname).collect();
        self.files.retain(|file| {
            let owner = &file.owner.hostname;
            !gone.contains(owner) && !files.contains_key(&(owner, &file.name))
        });
        for ((hostname, fname), entry) in files {
            let (Some(entry), Some(Some(owner))) = (entry, hosts.get(hostname)) else { continue };
            self.files.push(NetworkFile::new(fname.clone(), entry.clone(), owner));
        }
        // Each host anew, as it is now and with as many files as it has.
        let mut known: BTreeMap<Name, Host> =
            self.hosts.drain(..).map(|host| (host.hostname.clone(), Host::clone(&host))).collect();
        for (hostname, host) in hosts {
            match host {
                None => drop(known.remove(hostname)),
                Some(host) => {
                    let last_seen = known.get(hostname).and_then(|known| known.last_seen);
                    known.insert(hostname.clone(), Host { last_seen, ..Host::clone(&host) });
                }
            }
        }
        known.values_mut().for_each(|host| host.file_count = 0);
        for file in &self.files {
            if let Some(host) = known.get_mut(&file.owner.hostname) {
                host.file_count += 1;
            }
        }
        let known: BTreeMap<Name, Arc<Host>> = known.into_iter().map(|(name, host)| (name, Arc::new(host))).collect();
        for file in &mut self.files {
            if let Some(host) = known.get(&file.owner.hostname) {
                file.owner = Arc::clone(host);
            }
            file.copies = 1;
        }
        self.hosts = known.into_values().collect();
        self.finish();
    }

    /// Tells each file how many hosts have its content. What one host has under several names it has once.
    fn count_copies(&mut self) {
        let content = |file: &NetworkFile| file.entry.blake3.map(|blake3| (blake3, file.entry.size));
        let held = |file: &NetworkFile| content(file).map(|content| (content, Arc::as_ptr(&file.owner)));
        let mut held: Vec<((Digest, u64), *const Host)> = self.files.iter().filter_map(held).collect();
        held.sort_unstable();
        held.dedup();
        let mut counts: HashMap<(Digest, u64), u32> = HashMap::new();
        for same in held.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
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

    /// Whether there is such a file.
    pub fn finds(&self, sought: &Sought) -> bool {
        self.files.iter().any(|file| sought.is_in_folded(&file.folded))
    }

    /// The files whose name has this in it, in any case: how many, and those from `offset` on.
    pub fn search(&self, sought: &Sought, offset: usize, limit: usize) -> (usize, Vec<&NetworkFile>) {
        let is_wanted = |file: &&NetworkFile| sought.is_in_folded(&file.folded);
        let (mut total, mut found) = (0, Vec::new());
        for file in self.files.iter().filter(is_wanted) {
            if total >= offset && found.len() < limit {
                found.push(file);
            }
            total += 1;
        }
        (total, found)
    }
}

/// All files of a page.
pub(super) fn files_of(page: &Listing) -> usize {
    page.registry.values().map(|listed| listed.files.len()).sum()
}

/// How many hosts to ask for, after so many had so many files.
pub(super) fn next_page(hosts: u64, files: usize) -> u64 {
    match files {
        0..5_000 => (hosts * 2).min(PAGE),
        5_000..=PAGE_FILES => hosts,
        _ => (hosts / 2).max(1),
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is too much of it.
    #[error("the network has more than {FILES_MAX} files or {HOSTS_MAX} hosts: ask for one by its name")]
    TooLarge,
    /// It takes too long.
    #[error("the registry has not told in {} s what the network has: ask for one file by its name", READ_WITHIN.as_secs())]
    TooSlow,
}

/// What is known of the network.
#[derive(Debug, Default)]
struct Known {
    newest: Option<Arc<Snapshot>>,
    is_followed: bool,
    /// What was heard while a snapshot is being read: it may have been read before that.
    heard: Option<Vec<Changed>>,
    /// How often everything was forgotten.
    forgotten: u64,
}

/// The newest snapshot, while it is fresh. While the registry tells of each change, it stays so for longer.
#[derive(Debug, Default)]
pub(super) struct Network {
    state: Mutex<Known>,
    /// Held while it is read: whoever wants it at the same time waits, and gets the same.
    reading: Mutex<()>,
}

impl Network {
    /// A snapshot that is no older than that, or one that is read now.
    pub(super) fn snapshot(&self, fresh: Duration, registry: &RegistryClient) -> Result<Arc<Snapshot>, NetworkError> {
        let asked_at = Instant::now();
        let known = || {
            let state = self.state.lock();
            let fresh = if state.is_followed { fresh.max(FRESH_IF_FOLLOWED) } else { fresh };
            let is_fresh = |it: &Arc<Snapshot>| it.taken_at >= asked_at || it.taken_at.elapsed() <= fresh;
            state.newest.clone().filter(is_fresh)
        };
        if let Some(known) = known() {
            return Ok(known);
        }
        let _nobody_else = self.reading.lock();
        if let Some(known) = known() {
            return Ok(known);
        }
        let forgotten = {
            let mut state = self.state.lock();
            state.heard = Some(Vec::new());
            state.forgotten
        };
        let read = Network::read(registry);
        let mut state = self.state.lock();
        let heard = state.heard.take();
        let mut snapshot = read?;
        // More may have been heard than was kept.
        let is_whole = heard.map(|heard| snapshot.apply(&heard)).is_some();
        let snapshot = Arc::new(snapshot);
        // It may have been read before what made others forget: then it is good for who asked before that.
        if is_whole && state.forgotten == forgotten {
            state.newest = Some(Arc::clone(&snapshot));
        }
        Ok(snapshot)
    }

    /// Reads all of it.
    fn read(registry: &RegistryClient) -> Result<Snapshot, NetworkError> {
        let mut snapshot = Snapshot::new([]);
        let mut seen = BTreeSet::new();
        let (mut offset, mut limit) = (0, PAGE_FIRST);
        let deadline = Instant::now() + READ_WITHIN;
        loop {
            let page = registry.list(Some(offset), Some(limit))?;
            let (total, listed, files) = (page.total, page.registry.len() as u64, files_of(&page));
            snapshot.add(page, &mut seen);
            if snapshot.files.len() > FILES_MAX {
                return Err(NetworkError::TooLarge);
            }
            offset += limit;
            limit = next_page(limit, files);
            if listed == 0 || offset >= total {
                break;
            }
            // How many there are is the registry's word: it does not bound how long we read.
            if offset >= HOSTS_MAX {
                return Err(NetworkError::TooLarge);
            }
            if Instant::now() >= deadline {
                return Err(NetworkError::TooSlow);
            }
        }
        snapshot.finish();
        snapshot.read_in = snapshot.taken_at.elapsed();
        Ok(snapshot)
    }

    /// A snapshot that is newer than the one in which something was sought in vain; but no more than a part of the time
    /// is spent on reading, however often that is asked for.
    pub(super) fn newer(&self, registry: &RegistryClient) -> Result<Arc<Snapshot>, NetworkError> {
        let read_in = self.state.lock().newest.as_ref().map_or(Duration::ZERO, |newest| newest.read_in);
        self.snapshot((read_in * READ_RARELY).min(FRESH), registry)
    }

    /// From now on each change is heard of; what was read before is of before.
    pub(super) fn follow(&self) {
        let mut state = self.state.lock();
        (state.newest, state.is_followed) = (None, true);
        state.forgotten += 1;
    }

    /// Whether each change is heard of.
    pub(super) fn is_followed(&self) -> bool {
        self.state.lock().is_followed
    }

    /// Changes are not heard of any more.
    pub(super) fn follow_no_more(&self) {
        self.state.lock().is_followed = false;
    }

    /// The network is otherwise than it was.
    pub(super) fn apply(&self, changes: &[Changed]) {
        let (newest, forgotten) = {
            let mut state = self.state.lock();
            match &mut state.heard {
                Some(heard) if heard.len() + changes.len() <= HEARD_MAX => heard.extend_from_slice(changes),
                _ => state.heard = None,
            }
            (state.newest.take(), state.forgotten)
        };
        // Not under the lock: it may take a while. Whoever asks meanwhile reads.
        let Some(newest) = newest.filter(|newest| newest.files.len() <= APPLIED_AT) else { return };
        let mut snapshot = Arc::unwrap_or_clone(newest);
        snapshot.apply(changes);
        let mut state = self.state.lock();
        if state.newest.is_none() && state.forgotten == forgotten {
            state.newest = Some(Arc::new(snapshot));
        }
    }

    /// What was read is not what is there any more.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.newest = None;
        state.forgotten += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    /// Name, size, modified.
    type Shown<'a> = (&'a str, u64, f64);

    /// Each host with its files.
    fn listing(hosts: &[(&str, &[Shown<'_>])]) -> Listing {
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
        Listing { total: hosts.len() as u64, registry }
    }

    fn names(files: &[&NetworkFile]) -> Vec<String> {
        files.iter().map(|file| format!("{}@{}", file.name, file.owner.hostname)).collect()
    }

    #[test]
    fn files_are_found_by_a_part_of_their_name_and_paged() {
        let snapshot = Snapshot::new([
            listing(&[("bob", &[("Report.pdf", 5, 1.0), ("song.ogg", 6, 1.0)])]),
            listing(&[("ann", &[("report.txt", 5, 1.0)]), ("bob", &[("Report.pdf", 5, 1.0)])]),
        ]);
        assert_eq!(snapshot.hosts.len(), 2);
        let (total, found) = snapshot.search(&Sought::new(""), 0, 10);
        assert_eq!(
            (total, names(&found)),
            (3, vec!["Report.pdf@bob".into(), "report.txt@ann".into(), "song.ogg@bob".into()])
        );
        let (total, found) = snapshot.search(&Sought::new("REPORT"), 1, 1);
        assert_eq!((total, names(&found)), (2, vec!["report.txt@ann".to_owned()]));
        assert_eq!(snapshot.search(&Sought::new("nothing"), 0, 10), (0, vec![]));
        assert_eq!(snapshot.search(&Sought::new(""), 9, 10), (3, vec![]));
    }

    /// A change: of a file with its size, of a file or host that is gone (none), or of a host that is there.
    fn changed(host: &str, fname: Option<&str>, size: Option<u64>, is_there: bool) -> Changed {
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
        let mut snapshot = Snapshot::new([listing(&[
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
        let shown = |snapshot: &Snapshot| -> (Vec<String>, Vec<String>) {
            let file = |it: &NetworkFile| format!("{}@{} {} {}", it.name, it.owner.hostname, it.entry.size, it.copies);
            let host = |it: &Arc<Host>| format!("{} {} {}", it.display_name, it.port, it.file_count);
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
        assert_eq!(snapshot.search(&Sought::new("Z"), 0, 9).0, 1, "what came is found");
    }

    #[test]
    fn what_is_followed_is_read_once_and_what_is_heard_meanwhile_is_in_it() {
        let (client, answered) = registry(1, 3);
        let network = Network::default();
        network.follow();
        let read = |network: &Network| network.snapshot(Duration::ZERO, &client).unwrap().files.len();
        assert_eq!((read(&network), read(&network), answered.lock().len()), (3, 3, 1), "as long as nothing changes");
        network.apply(&[changed("dee", Some("z"), Some(9), true)]);
        assert_eq!((read(&network), answered.lock().len()), (4, 1));
        // It is heard of again while everything is read anew.
        network.state.lock().heard = Some(Vec::new());
        network.apply(&[changed("dee", Some("y"), Some(9), true)]);
        assert_eq!(network.state.lock().heard.as_ref().map(Vec::len), Some(1));
        network.state.lock().heard = None;
        network.forget();
        assert_eq!((read(&network), answered.lock().len()), (3, 2));
        network.follow_no_more();
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
        let snapshot = Snapshot::new([Listing { total: 3, registry }]);
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

    /// A registry with so many hosts of so many files; how many files each answer had.
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
            [(12, 6_000, 2 * PAGE_FILES, 12), (3, 21_000, 42_000, 2), (600, 3, 1_000, 10), (0, 0, 0, 1)]
        {
            let (client, answered) = registry(hosts, files);
            let snapshot = Network::default().snapshot(FRESH, &client).unwrap();
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
        let read = Network::default().snapshot(FRESH, &client);
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
                    // As long as it takes with very many files.
                    std::thread::sleep(Duration::from_millis(300));
                    (&stream).write_all(b"{\"status\":\"OK\",\"total\":0,\"registry\":{}}\n").unwrap();
                })
                .count()
        });
        let client = RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap();
        let network = Network::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| network.snapshot(Duration::ZERO, &client).unwrap());
            }
        });
        drop(client);
        // The first one's, and one that began after all had asked.
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
        let names =
            |list: &[Match]| list.iter().map(|it| format!("{}@{}", it.name, it.host.hostname)).collect::<Vec<_>>();
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
