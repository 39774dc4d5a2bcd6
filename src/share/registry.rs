//! The registry's core: the registered hosts with their files, and the rules for changing them. It does no I/O:
//! time and secrets are arguments, and what must be persisted is returned as [`RegistryChange`]s.
//!
//! | file | holds |
//! |---|---|
//! | `similar_files.rs` | which files look like another |
//! | `claims.rs` | REGISTER: who may have a hostname |
//! | `files.rs` | PUBLISH, UNPUBLISH, and a whole list replaced step by step |
//! | `shown.rs` | what REQUEST, DISCOVER and LIST show, in pages |
//! | `change_log.rs` | what has changed of it, for who follows |
//! | `secrets.rs`, `departed.rs` | what gives a hostname back, also when its host is gone |
//! | `room.rs` | how much there may be, and whose it is |
//! | `names.rs`, `index.rs` | names in order, and who holds what |
//! | `store.rs` | the rows of all of it |
//!
//! Every operation works in memory and is short: whatever could be long (adding or removing a list of 100,000 files,
//! many hosts that time out together) is done in bounded steps, so that a lock around the registry is never held for
//! long.
//!
//! A host is **live** until the peer timeout has passed since its last request, and **silent** from then on: it is no
//! longer listed, and others may claim its name even if its connection is still open, but its record is kept for as
//! long as its secret can bring it back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{Digest, FileMap, FileName};
use crate::model::{Millis, Name};
use crate::net::source::{self, SourceKey};

mod change_log;
mod claims;
mod departed;
mod files;
mod index;
mod listing;
mod names;
mod quotas;
mod secrets;
mod similar;
pub mod store;
#[cfg(test)]
mod tests;

pub use change_log::{ListingChange, ListingChangeKind, ListingUpdate};
pub use claims::{AccountProof, HostnameClaim, HostnameGrant, HostnameStatus};
pub use listing::{HostSummary, ListingCursor, ListingPart};
pub use secrets::SecretHash;
pub use store::{HostRow, RegistryChange};

use change_log::ChangeLog;
use index::HolderIndex;
use names::OrderedNames;
use quotas::{HostUsage, QuotaExceeded, Quotas};
use secrets::ResumeSecrets;
use similar::SizeIndex;

/// How long a secret can be used to get a hostname back.
pub const RESUME_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Identifies a connection; never reused.
pub type ConnId = u64;

/// Index of a host in [`Registry::slots`]; reused once no index refers to it.
type Slot = u32;

/// Limits for hosts without an account. The same totals apply, separately, to hosts of user accounts.
#[derive(Debug, Clone, Copy)]
pub struct RegistryLimits {
    /// Hosts, including silent ones.
    pub hosts: usize,
    /// Published files of all hosts together.
    pub files: usize,
    /// Hosts without an account from one source address; loopback may have half of the total.
    pub hosts_per_source: usize,
    /// Their published files per source address; loopback may have half of the total.
    pub files_per_source: usize,
    /// Unpublished files that are remembered; beyond that they are forgotten.
    pub unpublished_files: usize,
    /// Unpublished files per source address; loopback may have half of the total.
    pub unpublished_files_per_source: usize,
}

impl Default for RegistryLimits {
    fn default() -> RegistryLimits {
        RegistryLimits {
            hosts: 500_000,
            files: 5_000_000,
            hosts_per_source: 1_000,
            files_per_source: 200_000,
            unpublished_files: 500_000,
            unpublished_files_per_source: 20_000,
        }
    }
}

/// Why a request is refused. The text begins with the name of the offending field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The host may not be listed under this address.
    #[error("ip: {0}")]
    Ip(&'static str),
    /// The connection is already registered under another hostname.
    #[error("hostname: this connection is registered as {0} and may change nothing else")]
    OneHostname(Name),
    /// The hostname belongs to a user account, and the claim does not prove to come from that user.
    #[error("token: the hostname is a user account and needs a valid token of that user")]
    NeedsToken,
    /// Another host has the hostname.
    #[error("hostname in use")]
    InUse,
    /// A limit on hosts or files in total is reached.
    #[error("BUSY: the registry is full: it takes no more {0}")]
    Full(&'static str),
    /// The source address has used up its share.
    #[error(
        "BUSY: {source_of_it} has {share} {what} here, as many as one source may; UNREGISTER and UNPUBLISH make room"
    )]
    ShareFull {
        /// What is counted: hostnames or files.
        what: &'static str,
        /// The source address or network.
        source_of_it: SourceKey,
        /// The maximum for one source.
        share: usize,
    },
    /// The host already has the maximum number of files.
    #[error("fname: a host may have {0} files")]
    TooManyFiles(usize),
    /// The connection has not registered.
    #[error("expected REGISTER first")]
    NotRegistered,
    /// No host of that name is live.
    #[error("hostname: no such host is there")]
    UnknownHost,
    /// The host has no file of that name.
    #[error("fname: this host has no such file")]
    UnknownFile,
}

/// Totals of the live hosts.
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

/// A registered host, live or silent.
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

/// A removed host whose files are still to be taken out of the indexes.
struct HostTombstone {
    slot: Slot,
    files: FileMap,
}

/// All hosts with their indexes.
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
    /// Live hosts.
    live_names: OrderedNames<Slot>,
    /// Live hosts, by when they were last seen.
    live_by_last_seen: BTreeSet<(Millis, Slot)>,
    silent_users: BTreeSet<(Millis, Slot)>,
    silent_anonymous: BTreeSet<(Millis, Slot)>,
    /// Silent hosts without an account, by source.
    silent_by_source: BTreeSet<(SourceKey, Millis, Slot)>,
    /// Published files of all hosts, live or silent.
    by_file: HolderIndex<FileName, Slot>,
    by_content: HolderIndex<Digest, (Slot, FileName)>,
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

/// Maximum number of changed hosts that are remembered.
const CHANGED_HOSTS_MAX: usize = 4_096;

impl Registry {
    /// An empty registry.
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
            by_content: HolderIndex::default(),
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

    /// The hostname that a connection is registered under.
    pub fn hostname_of(&self, conn: ConnId) -> Option<&Name> {
        self.host_of_connection(conn).map(|(_, host)| &host.name)
    }

    /// Counts any request on a connection as a sign of life of its host.
    pub fn record_activity(&mut self, now: Millis, conn: ConnId) {
        let now = self.advance_clock(now);
        if let Some(slot) = self.by_conn.get(&conn).copied() {
            self.mark_seen(now, slot);
        }
    }

    /// The connection has closed. Its host stays live until the timeout.
    pub fn connection_closed(&mut self, conn: ConnId) {
        if let Some(slot) = self.by_conn.remove(&conn)
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.conn = None;
            self.totals.active_clients -= u64::from(host.is_live);
            self.mark_changed(slot);
        }
    }

    /// The sequence number of a live host's latest change; `None` if the host is not live.
    pub fn presence(&mut self, now: Millis, hostname: &str) -> Option<u64> {
        let now = self.advance_clock(now);
        let host = self.host_by_name(hostname)?.1;
        (now < host.last_seen_at.plus(self.peer_timeout)).then_some(host.change_seq)
    }

    /// Records the sequence number of the stored change that made this host what it is. The numbers only grow.
    pub fn set_change_seq(&mut self, conn: ConnId, change_seq: u64) {
        if let Some(slot) = self.by_conn.get(&conn).copied()
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.change_seq = change_seq;
        }
    }

    /// UNREGISTER: removes the host with its files at once. Its secret can get the name back for 30 days, unless
    /// another host has held it in between.
    ///
    /// # Errors
    /// The connection is not registered under this hostname.
    pub fn unregister(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
    ) -> Result<Vec<RegistryChange>, RegistryError> {
        let now = self.advance_clock(now);
        let slot = self.owned_slot(conn, hostname)?;
        self.mark_seen(now, slot);
        let mut changes = Vec::new();
        self.remove_host(slot, &mut changes);
        Ok(changes)
    }

    /// The hostname is a user account from now on: an anonymous host that holds it is removed.
    pub fn account_created(&mut self, hostname: &str) -> Vec<RegistryChange> {
        let mut changes = Vec::new();
        if let Some((slot, host)) = self.host_by_name(hostname)
            && !host.is_user
        {
            self.remove_host(slot, &mut changes);
        }
        self.secrets.drop_anonymous(hostname, &mut changes);
        changes
    }

    /// Hostnames of hosts that have not authenticated as a user, to check whether they now belong to an account.
    pub fn anonymous_hostnames(&self) -> Vec<Name> {
        self.slots.iter().flatten().filter(|host| !host.is_user).map(|host| host.name.clone()).collect()
    }

    /// Makes up to `at_most` timed-out hosts silent. Returns whether more may be due; listings and totals are exact
    /// once it returns false.
    pub fn expire(&mut self, now: Millis, at_most: usize) -> bool {
        let now = self.advance_clock(now);
        for _ in 0..at_most {
            let Some((last_seen_at, slot)) = self.live_by_last_seen.first().copied() else { return false };
            if now < last_seen_at.plus(self.peer_timeout) {
                return false;
            }
            self.make_silent(slot);
        }
        true
    }

    /// Removes hosts and secrets whose resume period is over, and takes files of removed hosts out of the indexes, up
    /// to `at_most` entries. Returns whether there is more to do.
    pub fn purge_expired(&mut self, now: Millis, at_most: usize, changes: &mut Vec<RegistryChange>) -> bool {
        let now = self.advance_clock(now);
        let mut budget = at_most;
        while budget > 0
            && let oldest_of_each_kind = [self.silent_users.first(), self.silent_anonymous.first()]
            && let Some((last_seen_at, slot)) = oldest_of_each_kind.into_iter().flatten().min().copied()
            && last_seen_at.plus(RESUME_FOR) <= now
        {
            budget -= 1;
            self.remove_host(slot, changes);
        }
        self.purge_tombstones(&mut budget);
        let by_name = &self.by_name;
        let slots = &self.slots;
        let last_seen = |name: &Name, lease_id: u64| {
            let host = by_name.get(name).and_then(|slot| slots[*slot as usize].as_ref());
            host.filter(|host| host.lease_id == lease_id).map(|host| host.last_seen_at)
        };
        self.secrets.prune(now, budget.min(at_most), last_seen, changes);
        budget == 0
    }

    /// Removes up to `at_most` silent hosts, longest silent first, until the claim fits the quotas. Returns whether
    /// another call may free more.
    pub fn evict_for_claim(
        &mut self,
        now: Millis,
        conn: ConnId,
        claim: &HostnameClaim,
        at_most: usize,
        changes: &mut Vec<RegistryChange>,
    ) -> bool {
        let now = self.advance_clock(now);
        self.expire(now, at_most);
        for _ in 0..at_most {
            // A claim that would be refused anyway evicts nobody.
            let Ok(plan) = self.plan_claim(now, conn, claim) else { return false };
            let Some(exceeded) = self.quotas.exceeded_by(plan.before.as_ref(), &plan.after) else { return false };
            if !self.evict_oldest_silent(&exceeded, &claim.hostname, changes) {
                return false;
            }
        }
        true
    }

    /// The same for a file that a host is about to publish.
    pub fn evict_for_publish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
        at_most: usize,
        changes: &mut Vec<RegistryChange>,
    ) {
        let now = self.advance_clock(now);
        for _ in 0..at_most {
            let Ok(slot) = self.owned_slot(conn, hostname) else { return };
            let Some(exceeded) = self.publish_quota_exceeded(slot, fname) else { return };
            self.expire(now, at_most);
            if !self.evict_oldest_silent(&exceeded, hostname, changes) {
                return;
            }
        }
    }

    /// Removes the longest silent host that uses the exceeded quota. Returns whether there was one.
    fn evict_oldest_silent(
        &mut self,
        exceeded: &QuotaExceeded,
        except: &Name,
        changes: &mut Vec<RegistryChange>,
    ) -> bool {
        let is_another = |slot: &Slot| self.slots[*slot as usize].as_ref().is_some_and(|host| host.name != *except);
        let oldest = match exceeded {
            QuotaExceeded::Total { is_user, .. } => {
                let silent = if *is_user { &self.silent_users } else { &self.silent_anonymous };
                silent.iter().map(|(_, slot)| *slot).find(is_another)
            }
            QuotaExceeded::PerSource { source, .. } => {
                let all = (*source, Millis(0), 0)..=(*source, Millis(u64::MAX), Slot::MAX);
                self.silent_by_source.range(all).map(|(_, _, slot)| *slot).find(is_another)
            }
        };
        if let Some(slot) = oldest {
            self.remove_host(slot, changes);
        }
        oldest.is_some()
    }

    /// Takes up to `at_most` hosts whose last-seen time is not stored yet: row id and time.
    pub fn take_unsaved_last_seen(&mut self, at_most: usize) -> Vec<(u64, Millis)> {
        let from = self.unsaved_slots.len().saturating_sub(at_most);
        let slots = self.unsaved_slots.split_off(from);
        let mut rows = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(host) = self.slots[slot as usize].as_mut()
                && std::mem::take(&mut host.is_last_seen_unsaved)
            {
                rows.push((host.id, host.last_seen_at));
            }
        }
        rows
    }

    /// After a reload from the store: takes over what only the former instance knew, the open connections and the
    /// last-seen times.
    pub fn adopt_runtime_state(&mut self, old: &Registry) {
        self.advance_clock(old.now);
        for host in old.slots.iter().flatten() {
            let Some(slot) = self.by_name.get(&host.name).copied() else { continue };
            let Some(own) = self.slots[slot as usize].as_mut() else { continue };
            if own.id != host.id || own.lease_id != host.lease_id {
                continue;
            }
            if let Some(conn) = host.conn {
                own.conn = Some(conn);
                self.by_conn.insert(conn, slot);
                self.totals.active_clients += u64::from(own.is_live);
            }
            let last_seen_at = host.last_seen_at.max(own.last_seen_at);
            if last_seen_at > own.last_seen_at {
                self.mark_seen(last_seen_at, slot);
            }
        }
    }

    /// Exact after [`expire`](Registry::expire).
    pub fn totals(&self) -> RegistryTotals {
        self.totals
    }

    /// Gauges for the metrics: hosts (silent ones included) and their files; distinct names and contents of published
    /// files; files of removed hosts that are still in the indexes; hosts and published files of users and of others,
    /// as the quotas count them; hostnames without a host that a secret can still get back.
    pub fn sizes(&self) -> [(&'static str, u64); 10] {
        let tombstone_files: usize = self.tombstones.iter().map(|tombstone| tombstone.files.len()).sum();
        let [user_hosts, user_files, anonymous_hosts, anonymous_files] = self.quotas.usage_totals();
        [
            ("hosts_known", self.by_name.len()),
            ("files_known", self.file_count),
            ("file_names", self.by_file.len()),
            ("file_contents", self.by_content.len()),
            ("files_to_bury", tombstone_files),
            ("user_hosts", user_hosts),
            ("user_files", user_files),
            ("anonymous_hosts", anonymous_hosts),
            ("anonymous_files", anonymous_files),
            ("hostnames_left", self.secrets.departed_count()),
        ]
        .map(|(name, size)| (name, size as u64))
    }

    // Internals.

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

    /// Updates the quotas to what the host uses now.
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

    fn mark_seen(&mut self, now: Millis, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let heard_before = std::mem::replace(&mut host.last_seen_at, now);
        if !std::mem::replace(&mut host.is_last_seen_unsaved, true) {
            self.unsaved_slots.push(slot);
        }
        if host.is_live {
            if heard_before != now {
                self.live_by_last_seen.remove(&(heard_before, slot));
                self.live_by_last_seen.insert((now, slot));
            }
        } else {
            self.remove_silent(slot, heard_before);
            self.make_live(slot);
            self.log_host_listed(slot, false);
        }
    }

    /// Adds the host to the indexes of silent hosts.
    fn insert_silent(&mut self, slot: Slot) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.is_user {
            self.silent_users.insert((host.last_seen_at, slot));
        } else {
            self.silent_anonymous.insert((host.last_seen_at, slot));
            self.silent_by_source.insert((source::key_of(host.source), host.last_seen_at, slot));
        }
    }

    /// Takes the host out of the indexes of silent hosts, where it is filed under this time.
    fn remove_silent(&mut self, slot: Slot, last_seen_at: Millis) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.is_user {
            self.silent_users.remove(&(last_seen_at, slot));
        } else {
            self.silent_anonymous.remove(&(last_seen_at, slot));
            self.silent_by_source.remove(&(source::key_of(host.source), last_seen_at, slot));
        }
    }

    /// Lists the host from now on.
    fn make_live(&mut self, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        host.is_live = true;
        self.live_user_count += usize::from(host.is_user);
        self.live_by_last_seen.insert((host.last_seen_at, slot));
        self.live_names.insert(host.name.clone(), slot);
        self.totals.total_clients += 1;
        self.totals.active_clients += u64::from(host.conn.is_some());
        self.totals.total_files += host.published_count;
        self.totals.total_size += host.published_bytes;
        self.mark_changed(slot);
    }

    fn make_silent(&mut self, slot: Slot) {
        self.log_host_unlisted(slot);
        self.detach(slot);
        self.insert_silent(slot);
    }

    /// Stops listing the host; it is neither live nor silent then.
    fn detach(&mut self, slot: Slot) {
        let Some(last_seen_at) = self.slots[slot as usize].as_ref().map(|host| host.last_seen_at) else { return };
        self.remove_silent(slot, last_seen_at);
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        if std::mem::take(&mut host.is_live) {
            self.live_by_last_seen.remove(&(host.last_seen_at, slot));
            self.live_names.remove(host.name.as_str());
            self.totals.total_clients -= 1;
            self.totals.active_clients -= u64::from(host.conn.is_some());
            self.totals.total_files -= host.published_count;
            self.totals.total_size -= host.published_bytes;
            self.live_user_count -= usize::from(host.is_user);
            self.mark_changed(slot);
        }
    }

    /// Notes that the host's listing has changed.
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

    /// Removes a host. Its secrets stay.
    fn remove_host(&mut self, slot: Slot, changes: &mut Vec<RegistryChange>) {
        if self.slots[slot as usize].as_ref().is_some_and(|host| host.is_live) {
            self.log_host_unlisted(slot);
        }
        self.detach(slot);
        let Some(host) = self.slots[slot as usize].take() else { return };
        self.by_name.remove(&host.name);
        self.secrets.host_departed(&host.name, host.source, host.last_seen_at, changes);
        if let Some(conn) = host.conn {
            self.by_conn.remove(&conn);
        }
        self.file_count -= host.files.len();
        if let Some(held) = &host.usage {
            self.quotas.release(held);
        }
        changes.push(RegistryChange::DropHost(host.id));
        self.tombstones.push(HostTombstone { slot, files: host.files });
    }

    /// Takes files of removed hosts out of the indexes, at most `budget` of them.
    fn purge_tombstones(&mut self, budget: &mut usize) {
        while *budget > 0
            && let Some(tombstone) = self.tombstones.last_mut()
        {
            let slot = tombstone.slot;
            match tombstone.files.pop_last() {
                None => {
                    self.tombstones.pop();
                    self.free_slots.push(slot);
                }
                Some((fname, entry)) => {
                    *budget -= 1;
                    if entry.is_published {
                        self.unindex(slot, &fname, &entry);
                    }
                }
            }
        }
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
