//! The registry's core: the registered hosts with their files, and the rules for changing them. It does no I/O:
//! time and secrets are arguments, and what must be persisted is returned as [`RegistryChange`]s.
//!
//! Every operation is short: whatever could be long (a list of 100,000 files, many hosts that time out together) goes
//! in bounded steps, so that a lock around the registry is never held for long.
//!
//! A host is **live** until the peer timeout has passed since its last request, and **silent** from then on: it is no
//! longer listed, and others may claim its name even if its connection is still open, but its record is kept for as
//! long as its secret can bring it back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{FileMap, FileName};
use crate::model::{Millis, Name};
use crate::net::source::{self, SourceKey};

mod change;
mod change_log;
mod claims;
mod departed;
mod error;
mod files;
mod index;
mod listing;
mod liveness;
mod names;
mod quotas;
mod removal;
mod secret_hash;
mod secrets;
mod similar;
pub mod store;
#[cfg(test)]
mod tests;

pub use change::RegistryChange;
pub use change_log::{ListingChange, ListingChangeKind, ListingUpdate};
pub use claims::{AccountProof, HostnameClaim, HostnameGrant, HostnameStatus};
pub use error::RegistryError;
pub use listing::{HostSummary, ListingCursor, ListingPart};
pub use quotas::RegistryLimits;
pub use secret_hash::SecretHash;

use change_log::ChangeLog;
use index::HolderIndex;
use names::OrderedNames;
use quotas::{HostUsage, Quotas};
use removal::HostTombstone;
use secrets::ResumeSecrets;
use similar::SizeIndex;

/// How long a secret can be used to get a hostname back.
pub const RESUME_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Identifies a connection; never reused.
pub type ConnId = u64;

/// Index of a host in [`Registry::slots`]; reused once no index refers to it.
type Slot = u32;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryTotals {
    /// Live hosts.
    pub total_clients: u64,
    /// Live hosts whose connection is open.
    pub active_clients: u64,
    /// Published files of live hosts.
    pub total_files: u64,
    /// Size of those files, bytes.
    pub total_size: u64,
}

struct HostRecord {
    /// Key of its row in the database; never reused.
    id: u64,
    name: Name,
    display_name: Arc<str>,
    ip: IpAddr,
    port: u16,
    /// The address that its connection came from.
    source: IpAddr,
    /// It proved to be the user whose account has this name.
    is_user: bool,
    /// Changes when the name goes to another host, so that secrets of the former holder do not apply to the new one.
    lease_id: u64,
    connected_at: Millis,
    last_seen_at: Millis,
    /// `last_seen_at` has not been handed to the store yet.
    is_last_seen_unsaved: bool,
    conn: Option<ConnId>,
    is_live: bool,
    files: FileMap,
    published_count: u64,
    published_bytes: u64,
    /// What is counted for it in the quotas.
    usage: Option<HostUsage>,
    /// Room that is reserved for published files while its file list is being replaced.
    reserved_files: usize,
    /// Sequence number of the stored change that made the host what it is; set by the caller.
    change_seq: u64,
}

pub struct Registry {
    peer_timeout: Duration,
    /// The latest time seen: threads may arrive out of order, and time must not go back.
    now: Millis,
    next_id: u64,
    slots: Vec<Option<HostRecord>>,
    free_slots: Vec<Slot>,
    tombstones: Vec<HostTombstone>,
    by_name: HashMap<Name, Slot>,
    by_conn: HashMap<ConnId, Slot>,
    live_names: OrderedNames<Slot>,
    /// Live hosts, by when they were last seen.
    live_by_last_seen: BTreeSet<(Millis, Slot)>,
    silent_users: BTreeSet<(Millis, Slot)>,
    silent_anonymous: BTreeSet<(Millis, Slot)>,
    /// Silent hosts without an account, by source.
    silent_by_source: BTreeSet<(SourceKey, Millis, Slot)>,
    /// Published files of all hosts, live or silent.
    by_file: HolderIndex<FileName, Slot>,
    by_size: SizeIndex,
    file_count: usize,
    quotas: Quotas,
    secrets: ResumeSecrets,
    totals: RegistryTotals,
    live_user_count: usize,
    /// Hosts whose listing has changed; collected only while a caller asks for them.
    changed_hosts: Option<ChangedHosts>,
    unsaved_slots: Vec<Slot>,
    change_log: ChangeLog,
}

#[derive(Debug, Default)]
struct ChangedHosts {
    names: BTreeSet<Name>,
    too_many: bool,
}

const CHANGED_HOSTS_MAX: usize = 4_096;

impl Registry {
    pub fn new(peer_timeout: Duration, limits: RegistryLimits) -> Registry {
        Registry {
            peer_timeout,
            now: Millis::default(),
            next_id: 1,
            slots: Vec::new(),
            free_slots: Vec::new(),
            tombstones: Vec::new(),
            by_name: HashMap::new(),
            by_conn: HashMap::new(),
            live_names: OrderedNames::default(),
            live_by_last_seen: BTreeSet::new(),
            silent_users: BTreeSet::new(),
            silent_anonymous: BTreeSet::new(),
            silent_by_source: BTreeSet::new(),
            by_file: HolderIndex::default(),
            by_size: SizeIndex::default(),
            file_count: 0,
            quotas: Quotas::new(limits),
            secrets: ResumeSecrets::new(&limits),
            totals: RegistryTotals::default(),
            live_user_count: 0,
            changed_hosts: None,
            unsaved_slots: Vec::new(),
            change_log: ChangeLog::default(),
        }
    }

    pub fn hostname_of(&self, conn: ConnId) -> Option<&Name> {
        self.host_of_connection(conn).map(|(_, host)| &host.name)
    }

    /// Records the sequence number of the stored change that made this host what it is. The numbers only grow.
    pub fn set_change_seq(&mut self, conn: ConnId, change_seq: u64) {
        if let Some(slot) = self.by_conn.get(&conn).copied()
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.change_seq = change_seq;
        }
    }

    /// Hostnames of hosts that have not authenticated as a user, to check whether they now belong to an account.
    pub fn anonymous_hostnames(&self) -> Vec<Name> {
        self.slots.iter().flatten().filter(|host| !host.is_user).map(|host| host.name.clone()).collect()
    }

    /// Exact after [`expire`](Registry::expire).
    pub fn totals(&self) -> RegistryTotals {
        self.totals
    }

    /// Gauges for the metrics. `files_to_bury` are those of removed hosts that are still in the indexes; users' and
    /// others' hosts and files are those that the quotas count; `hostnames_left` are those that a secret can get back.
    pub fn sizes(&self) -> [(&'static str, u64); 9] {
        let tombstone_files: usize = self.tombstones.iter().map(|tombstone| tombstone.files.len()).sum();
        let [user_hosts, user_files, anonymous_hosts, anonymous_files] = self.quotas.usage_totals();
        [
            ("hosts_known", self.by_name.len()),
            ("files_known", self.file_count),
            ("file_names", self.by_file.len()),
            ("files_to_bury", tombstone_files),
            ("user_hosts", user_hosts),
            ("user_files", user_files),
            ("anonymous_hosts", anonymous_hosts),
            ("anonymous_files", anonymous_files),
            ("hostnames_left", self.secrets.departed_count()),
        ]
        .map(|(name, size)| (name, size as u64))
    }

    fn advance_clock(&mut self, now: Millis) -> Millis {
        self.now = self.now.max(now);
        self.now
    }

    fn allocate_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn host_of_connection(&self, conn: ConnId) -> Option<(Slot, &HostRecord)> {
        let slot = *self.by_conn.get(&conn)?;
        self.slots[slot as usize].as_ref().map(|host| (slot, host))
    }

    fn host_by_name(&self, name: &str) -> Option<(Slot, &HostRecord)> {
        let slot = *self.by_name.get(&Name::from_stored(name).ok()?)?;
        self.slots[slot as usize].as_ref().map(|host| (slot, host))
    }

    /// The slot of the host that a connection is registered as, provided that it is the one the request names.
    fn owned_slot(&self, conn: ConnId, hostname: &Name) -> Result<Slot, RegistryError> {
        match self.host_of_connection(conn) {
            None => Err(RegistryError::NotRegistered),
            Some((slot, host)) if host.name == *hostname => Ok(slot),
            Some((_, host)) => Err(RegistryError::OneHostname(host.name.clone())),
        }
    }

    /// Stores a host in a free slot. It is neither live nor silent yet.
    fn insert_host(&mut self, host: HostRecord) -> Slot {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // Never reached: both hosts and tombstones are limited.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_name.insert(host.name.clone(), slot);
        self.slots[slot as usize] = Some(host);
        self.update_usage(slot);
        slot
    }

    fn update_usage(&mut self, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let published = usize::try_from(host.published_count).unwrap_or(usize::MAX);
        let now = HostUsage {
            is_user: host.is_user,
            source: source::key_of(host.source),
            hosts: 1,
            files: published.max(host.reserved_files),
            unpublished_files: host.files.len() - published,
        };
        let before = host.usage.replace(now).unwrap_or(HostUsage { hosts: 0, files: 0, unpublished_files: 0, ..now });
        self.quotas.replace(&before, &now);
    }

    fn mark_changed(&mut self, slot: Slot) {
        let (Some(changed_hosts), Some(host)) = (&mut self.changed_hosts, &self.slots[slot as usize]) else { return };
        if changed_hosts.names.len() < CHANGED_HOSTS_MAX {
            changed_hosts.names.insert(host.name.clone());
        } else {
            changed_hosts.too_many = true;
        }
    }

    /// Takes the hosts whose listing has changed since the last call, and keeps collecting while `is_wanted`. `None` if
    /// they are not known: there were too many, or they were not being collected.
    pub fn take_changed_hosts(&mut self, is_wanted: bool) -> Option<BTreeSet<Name>> {
        let changed_hosts = std::mem::replace(&mut self.changed_hosts, is_wanted.then(ChangedHosts::default));
        changed_hosts.filter(|changed_hosts| !changed_hosts.too_many).map(|changed_hosts| changed_hosts.names)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("hosts", &self.by_name.len())
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}
