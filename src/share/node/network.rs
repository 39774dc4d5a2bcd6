//! Snapshots of all files and hosts on the network. `cache.rs` reads them from the registry and keeps the latest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::duplicates::file_json;
use crate::model::Name;
use crate::model::text::{TextFilter, folded};
use crate::share::wire::{ChangeEntry, Digest, FileEntry, FileName, ListResponse, Seconds};

mod cache;
#[cfg(test)]
mod tests;

pub(super) use cache::{MAX_AGE, NetworkCache, file_count_of, next_page_hosts};

/// Serialized, it has the client API's form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkHost {
    pub hostname: Name,
    pub display_name: Name,
    pub ip: IpAddr,
    pub port: u16,
    pub file_count: usize,
    /// When the registry last heard from it.
    pub last_seen: Option<Seconds>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NetworkFile {
    pub name: FileName,
    pub entry: FileEntry,
    pub owner: Arc<NetworkHost>,
    /// Number of hosts with the same content, this one included; 1 if the content has no digest.
    pub copies: u32,
    /// The name, folded for searching.
    folded: Box<str>,
}

impl NetworkFile {
    fn new(name: FileName, entry: FileEntry, owner: &Arc<NetworkHost>) -> NetworkFile {
        let folded = folded(name.key()).into_boxed_str();
        NetworkFile { name, entry, owner: Arc::clone(owner), copies: 1, folded }
    }

    pub fn json(&self) -> Value {
        let owner = &*self.owner;
        let (display_name, addr) = (owner.display_name.as_str(), (owner.ip, owner.port));
        let mut json = file_json(&self.name, &self.entry, &owner.hostname, display_name, addr);
        json["copies"] = self.copies.into();
        json
    }
}

/// The files and hosts of the network at one time.
#[derive(Debug, Clone)]
pub struct NetworkSnapshot {
    taken_at: Instant,
    read_duration: Duration,
    /// All files, ordered by name and owner.
    pub files: Vec<NetworkFile>,
    /// All hosts, ordered by name.
    pub hosts: Vec<Arc<NetworkHost>>,
}

impl NetworkSnapshot {
    pub fn new(pages: impl IntoIterator<Item = ListResponse>) -> NetworkSnapshot {
        let (taken_at, read_duration) = (Instant::now(), Duration::ZERO);
        let mut snapshot = NetworkSnapshot { taken_at, read_duration, files: Vec::new(), hosts: Vec::new() };
        let mut seen = BTreeSet::new();
        for page in pages {
            snapshot.add(page, &mut seen);
        }
        snapshot.finish();
        snapshot
    }

    /// Skips hosts already seen: between two pages a host may have moved to the later one.
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

    /// Changes are applied in their order. Applying one again has no effect.
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

    /// A host that has the content under several names counts once.
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
