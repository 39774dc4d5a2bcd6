//! The latest snapshot of the network: read from the registry in pages, kept for a while, and kept up to date while
//! changes are followed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::NetworkSnapshot;
use crate::share::client::RegistryClient;
use crate::share::node::NodeError;
use crate::share::wire::{ChangeEntry, ListResponse};

/// A page has at most as many hosts as the registry handles at once.
const PAGE_HOSTS_MAX: u64 = 256;
/// The response has a size limit, and it is unknown how many files the hosts have.
const FIRST_PAGE_HOSTS: u64 = 2;
/// After a page with more files than this, the next one is smaller.
pub(super) const PAGE_FILES_MAX: usize = 20_000;
/// A network with more files cannot be listed.
const FILES_MAX: usize = 1_000_000;
/// A registry admits no more hosts.
const HOSTS_MAX: u64 = 500_000;
/// The whole list must be read within this time.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// This is not unlimited, because changes do not include when hosts were last seen.
const MAX_AGE_WHILE_FOLLOWED: Duration = Duration::from_secs(30);
const BUFFERED_CHANGES_MAX: usize = 20_000;
/// A snapshot with more files is dropped on a change instead of being updated.
const APPLY_FILES_MAX: usize = 200_000;
/// A snapshot in which nothing was found is reused for this many times as long as reading it took.
const REREAD_FACTOR: u32 = 4;
pub(in crate::share::node) const MAX_AGE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct NetworkCacheState {
    pub latest: Option<Arc<NetworkSnapshot>>,
    pub is_followed: bool,
    /// While a snapshot is being read: the changes since, which it may not contain. None also after too many changes.
    pub buffered_changes: Option<Vec<ChangeEntry>>,
    /// How often the cache was invalidated; tells whether that happened while a snapshot was being read.
    pub invalidations: u64,
}

/// While changes are followed, the snapshot is kept up to date and for longer.
#[derive(Debug, Default)]
pub(in crate::share::node) struct NetworkCache {
    pub(super) state: Mutex<NetworkCacheState>,
    /// Held while the list is read: simultaneous callers wait, and share the result.
    read_lock: Mutex<()>,
}

impl NetworkCache {
    /// At most `max_age` old; reads the list if necessary.
    pub fn snapshot(&self, max_age: Duration, registry: &RegistryClient) -> Result<Arc<NetworkSnapshot>, NodeError> {
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

    fn read(registry: &RegistryClient) -> Result<NetworkSnapshot, NodeError> {
        let mut snapshot = NetworkSnapshot::new([]);
        let mut seen = BTreeSet::new();
        let (mut offset, mut limit) = (0, FIRST_PAGE_HOSTS);
        let deadline = Instant::now() + READ_TIMEOUT;
        loop {
            let page = registry.list(Some(offset), Some(limit))?;
            let (total, listed, files) = (page.total, page.registry.len() as u64, file_count_of(&page));
            snapshot.add(page, &mut seen);
            if snapshot.files.len() > FILES_MAX {
                return Err(too_large());
            }
            offset += limit;
            limit = next_page_hosts(limit, files);
            if listed == 0 || offset >= total {
                break;
            }
            // The total is the registry's claim: it must not make us read without end.
            if offset >= HOSTS_MAX {
                return Err(too_large());
            }
            if Instant::now() >= deadline {
                let limit_s = READ_TIMEOUT.as_secs();
                return Err(NodeError::Busy(format!(
                    "the registry has not told in {limit_s} s what the network has: ask for one file by its name"
                )));
            }
        }
        snapshot.finish();
        snapshot.read_duration = snapshot.taken_at.elapsed();
        Ok(snapshot)
    }

    /// For a search without results. However often it is called, only a fraction of the time goes into reading the
    /// list.
    pub fn refreshed(&self, registry: &RegistryClient) -> Result<Arc<NetworkSnapshot>, NodeError> {
        let read_duration = self.state.lock().latest.as_ref().map_or(Duration::ZERO, |latest| latest.read_duration);
        self.snapshot((read_duration * REREAD_FACTOR).min(MAX_AGE), registry)
    }

    /// From now on all changes are passed to [`NetworkCache::apply`]; drops the snapshot, which may lack earlier ones.
    pub fn begin_following(&self) {
        let mut state = self.state.lock();
        (state.latest, state.is_followed) = (None, true);
        state.invalidations += 1;
    }

    pub fn is_followed(&self) -> bool {
        self.state.lock().is_followed
    }

    /// No more changes are passed to [`NetworkCache::apply`].
    pub fn stop_following(&self) {
        self.state.lock().is_followed = false;
    }

    pub fn apply(&self, changes: &[ChangeEntry]) {
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

    pub fn invalidate(&self) {
        let mut state = self.state.lock();
        state.latest = None;
        state.invalidations += 1;
    }
}

fn too_large() -> NodeError {
    let limits = format!("{FILES_MAX} files or {HOSTS_MAX} hosts");
    NodeError::Busy(format!("the network has more than {limits}: ask for one by its name"))
}

/// How many hosts to ask for after a page of `hosts` hosts with `files` files.
pub(in crate::share::node) fn next_page_hosts(hosts: u64, files: usize) -> u64 {
    match files {
        0..5_000 => (hosts * 2).min(PAGE_HOSTS_MAX),
        5_000..=PAGE_FILES_MAX => hosts,
        _ => (hosts / 2).max(1),
    }
}

pub(in crate::share::node) fn file_count_of(page: &ListResponse) -> usize {
    page.registry.values().map(|listed| listed.files.len()).sum()
}
