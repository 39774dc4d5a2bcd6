//! What the network has: the registry's list, read in pages and kept for a moment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::model::Name;
use crate::model::text::nfc;
use crate::share::client::{RegistryClient, RegistryError};
use crate::share::files::{Likeness, likeness};
use crate::share::wire::{FileEntry, FileName, HostEntry, Listing, Seconds};

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
}

impl NetworkFile {
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
        })
    }
}

/// The network at one time. Files by name and owner, hosts by name.
#[derive(Debug)]
pub struct Snapshot {
    taken_at: Instant,
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
        let mut snapshot = Snapshot { taken_at: Instant::now(), files: Vec::new(), hosts: Vec::new() };
        let mut seen = BTreeSet::new();
        for page in pages {
            snapshot.add(page, &mut seen);
        }
        snapshot.sort();
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
            self.files.extend(files.map(|(name, entry)| NetworkFile { name, entry, owner: Arc::clone(&owner) }));
        }
    }

    fn sort(&mut self) {
        self.files.sort_by(|a, b| (&a.name, &a.owner.hostname).cmp(&(&b.name, &b.owner.hostname)));
    }

    /// The files whose name has this in it, in any case: how many, and those from `offset` on.
    pub fn search(&self, q: &str, offset: usize, limit: usize) -> (usize, Vec<&NetworkFile>) {
        let lower = |text: &str| nfc(&text.to_lowercase()).into_owned();
        let wanted = lower(q);
        let is_wanted = |file: &&NetworkFile| wanted.is_empty() || lower(file.name.key()).contains(&wanted);
        let total = self.files.iter().filter(is_wanted).count();
        (total, self.files.iter().filter(is_wanted).skip(offset).take(limit).collect())
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

/// The newest snapshot, while it is fresh.
#[derive(Debug, Default)]
pub(super) struct Network {
    newest: Mutex<Option<Arc<Snapshot>>>,
    /// Held while it is read: whoever wants it at the same time waits, and gets the same.
    reading: Mutex<()>,
}

impl Network {
    /// A snapshot that is no older than that, or one that is read now.
    pub(super) fn snapshot(&self, fresh: Duration, registry: &RegistryClient) -> Result<Arc<Snapshot>, NetworkError> {
        let asked_at = Instant::now();
        let is_fresh = |snapshot: &Arc<Snapshot>| snapshot.taken_at >= asked_at || snapshot.taken_at.elapsed() <= fresh;
        if let Some(known) = self.newest.lock().clone().filter(is_fresh) {
            return Ok(known);
        }
        let _nobody_else = self.reading.lock();
        if let Some(known) = self.newest.lock().clone().filter(is_fresh) {
            return Ok(known);
        }
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
        snapshot.sort();
        let snapshot = Arc::new(snapshot);
        *self.newest.lock() = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// What was read is not what is there any more.
    pub(super) fn forget(&self) {
        *self.newest.lock() = None;
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
        let (total, found) = snapshot.search("", 0, 10);
        assert_eq!(
            (total, names(&found)),
            (3, vec!["Report.pdf@bob".into(), "report.txt@ann".into(), "song.ogg@bob".into()])
        );
        let (total, found) = snapshot.search("REPORT", 1, 1);
        assert_eq!((total, names(&found)), (2, vec!["report.txt@ann".to_owned()]));
        assert_eq!(snapshot.search("nothing", 0, 10), (0, vec![]));
        assert_eq!(snapshot.search("", 9, 10), (3, vec![]));
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
