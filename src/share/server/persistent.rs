//! The registry's core behind its lock, and its persistence.
//!
//! Changes are applied in memory and appended to the store's queue under one lock, so that both have the same order. If
//! a change cannot be stored, the registry is reloaded from the store before any other request is answered.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{RequestError, STEP_SIZE};
use crate::model::{Clock, Millis, Name};
use crate::share::registry::{
    ConnId, HostnameClaim, HostnameGrant, Registry, RegistryChange, RegistryError, RegistryLimits, store,
};
use crate::share::wire::FileMap;
use crate::storage::{CommitHandle, Epoch, Store, StoreError, Tx};

/// How many last-seen times are written in one transaction.
const LAST_SEEN_BATCH: usize = 4096;

pub(super) struct PersistentRegistry {
    store: Arc<Store>,
    clock: Clock,
    peer_timeout: Duration,
    limits: RegistryLimits,
    state: Mutex<RegistryState>,
    /// Sequence number up to which every change is on disk.
    committed: AtomicU64,
    /// Signalled when the listing has changed, and when waiting is to end.
    changed: Condvar,
    is_stopping: AtomicBool,
}

/// Holds the lock; when dropped, wakes those who wait for a change if there was one.
struct RegistryGuard<'a> {
    state: MutexGuard<'a, RegistryState>,
    changed: &'a Condvar,
    version: u64,
}

impl Deref for RegistryGuard<'_> {
    type Target = RegistryState;

    fn deref(&self) -> &RegistryState {
        &self.state
    }
}

impl DerefMut for RegistryGuard<'_> {
    fn deref_mut(&mut self) -> &mut RegistryState {
        &mut self.state
    }
}

impl Drop for RegistryGuard<'_> {
    fn drop(&mut self) {
        if self.state.core.version() != self.version {
            self.changed.notify_all();
        }
    }
}

struct RegistryState {
    core: Registry,
    /// All changes since the registry was loaded belong to one epoch.
    epoch: Epoch,
    /// The latest change.
    last_commit: CommitHandle,
}

/// The latest appended change, and the epoch that it belongs to.
struct PendingCommit {
    commit: CommitHandle,
    epoch: Epoch,
}

impl RegistryState {
    fn pending_commit(&self) -> PendingCommit {
        PendingCommit { commit: self.last_commit.clone(), epoch: self.epoch }
    }
}

impl PersistentRegistry {
    /// Loads the registry from the store.
    pub(super) fn open(
        store: Arc<Store>,
        clock: Clock,
        peer_timeout: Duration,
        limits: RegistryLimits,
    ) -> Result<PersistentRegistry, StoreError> {
        let epoch = store.current_epoch();
        let core = load(&store, &clock, peer_timeout, limits, 0)?;
        let state = Mutex::new(RegistryState { core, epoch, last_commit: CommitHandle::committed() });
        let (committed, is_stopping) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(PersistentRegistry {
            store,
            clock,
            peer_timeout,
            limits,
            state,
            committed,
            changed: Condvar::new(),
            is_stopping,
        })
    }

    fn lock(&self) -> RegistryGuard<'_> {
        let state = self.state.lock();
        let version = state.core.version();
        RegistryGuard { state, changed: &self.changed, version }
    }

    /// Waits until the listing has changed since `version`, or until a deadline. It also returns when the next host
    /// times out, since nothing else signals that. Returns false when waiting is to end.
    pub(super) fn wait_for_change(&self, version: u64, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !self.is_stopping.load(Ordering::Relaxed) && state.core.version() == version {
            let expiry = state.core.next_expiry().map(|at| Instant::now() + self.clock.now().until(at));
            let wakes_at = expiry.map_or(deadline, |expiry| expiry.min(deadline));
            if self.changed.wait_until(&mut state, wakes_at).timed_out() {
                break;
            }
        }
        !self.is_stopping.load(Ordering::Relaxed)
    }

    /// Ends all waiting for changes.
    pub(super) fn stop_waiting(&self) {
        let _state = self.state.lock();
        self.is_stopping.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn append(&self, state: &mut RegistryState, mut changes: Vec<RegistryChange>) {
        if changes.is_empty() {
            return;
        }
        // Stored as dates: after a restart the clock starts from the wall clock of that moment.
        changes.iter_mut().for_each(|change| change.map_times(&|instant| self.clock.date_of(instant)));
        let write = move |tx: &mut dyn Tx| changes.iter().try_for_each(|change| change.write(tx));
        state.last_commit = self.store.append(state.epoch, write);
    }

    /// Applies one change of the connection's host; returns once it is on disk.
    pub(super) fn update(
        &self,
        conn: ConnId,
        work: impl FnOnce(&mut Registry, Millis, &mut Vec<RegistryChange>) -> Result<(), RegistryError>,
    ) -> Result<(), RequestError> {
        let now = self.clock.now();
        let (refused, pending) = {
            let mut state = self.lock();
            let mut changes = Vec::new();
            let refused = work(&mut state.core, now, &mut changes).err();
            // Also if the request is refused: other hosts may have been evicted for it.
            self.append(&mut state, changes);
            if refused.is_none() {
                let mark = state.last_commit.sequence_number();
                state.core.set_change_seq(conn, mark);
            }
            (refused, state.pending_commit())
        };
        // A refusal, too, is based on earlier changes.
        self.wait_committed(&pending)?;
        refused.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// REGISTER with its file list, in steps that release the lock in between.
    pub(super) fn register(
        &self,
        conn: ConnId,
        claim: &HostnameClaim,
        files: &FileMap,
    ) -> Result<HostnameGrant, RequestError> {
        let now = self.clock.now();
        let mut may_free_more = true;
        while may_free_more {
            let mut state = self.lock();
            let mut changes = Vec::new();
            may_free_more = state.core.evict_for_claim(now, conn, claim, STEP_SIZE, &mut changes);
            self.append(&mut state, changes);
        }
        let (result, first) = {
            let mut state = self.lock();
            let result = state.core.register(now, conn, claim).map(|mut granted| {
                self.append(&mut state, std::mem::take(&mut granted.changes));
                let mark = state.last_commit.sequence_number();
                state.core.set_change_seq(conn, mark);
                granted
            });
            (result, state.pending_commit())
        };
        let mut pending = first;
        let mut after = None;
        let mut is_done = result.as_ref().map_or(true, |granted| granted.keeps_files);
        while !is_done {
            let mut state = self.lock();
            if state.epoch != pending.epoch {
                drop(state);
                let superseded =
                    StoreError::Unavailable("memory was built anew in the middle of a REGISTER".to_owned());
                return Err(superseded.into());
            }
            let mut changes = Vec::new();
            let next = state.core.replace_files(conn, files, after.as_ref(), STEP_SIZE, &mut changes);
            self.append(&mut state, changes);
            let mark = state.last_commit.sequence_number();
            state.core.set_change_seq(conn, mark);
            pending = state.pending_commit();
            drop(state);
            match next? {
                Some(last) => after = Some(last),
                None => is_done = true,
            }
        }
        // All changes are of one epoch: the last is on disk only if the others are.
        self.wait_committed(&pending)?;
        Ok(result?)
    }

    /// Whether a host is live. Also counts as a sign of life of the connection's own host.
    pub(super) fn ping(&self, conn: ConnId, hostname: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let (is_live, pending) = {
            let mut state = self.lock();
            state.core.record_activity(now, conn);
            let presence = state.core.presence(now, hostname);
            // Nearly always the host's latest change was on disk long ago.
            if presence.is_some_and(|mark| mark <= self.committed.load(Ordering::Acquire)) {
                return Ok(true);
            }
            (presence.is_some(), state.pending_commit())
        };
        self.wait_committed(&pending)?;
        Ok(is_live)
    }

    /// Counts a request as a sign of life of the connection's host.
    pub(super) fn record_activity(&self, conn: ConnId) {
        let now = self.clock.now();
        self.lock().core.record_activity(now, conn);
    }

    pub(super) fn connection_closed(&self, conn: ConnId) {
        self.lock().core.connection_closed(conn);
    }

    /// Runs one bounded read after making all timed-out hosts silent, and returns once everything that it saw is on
    /// disk.
    pub(super) fn read<T>(&self, work: impl FnOnce(&mut Registry, Millis) -> T) -> Result<T, StoreError> {
        let now = self.clock.now();
        loop {
            let mut state = self.lock();
            if state.core.expire(now, STEP_SIZE) {
                continue;
            }
            let seen = work(&mut state.core, now);
            let pending = state.pending_commit();
            drop(state);
            self.wait_committed(&pending)?;
            return Ok(seen);
        }
    }

    /// Hostnames of hosts without an account.
    pub(super) fn anonymous_hostnames(&self) -> Vec<Name> {
        self.lock().core.anonymous_hostnames()
    }

    /// A hostname belongs to a user account from now on.
    pub(super) fn account_created(&self, hostname: &str) -> Result<(), StoreError> {
        let pending = {
            let mut state = self.lock();
            let changes = state.core.account_created(hostname);
            self.append(&mut state, changes);
            state.pending_commit()
        };
        self.wait_committed(&pending)
    }

    /// Makes timed-out hosts silent, removes what has expired, and stores when hosts were last seen.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        while self.lock().core.expire(now, STEP_SIZE) {}
        let mut more = true;
        while more {
            let pending = {
                let mut state = self.lock();
                let mut changes = Vec::new();
                more = state.core.purge_expired(now, STEP_SIZE, &mut changes);
                self.append(&mut state, changes);
                state.pending_commit()
            };
            // Wait each time, so that this alone does not fill the writer's queue.
            self.wait_committed(&pending)?;
        }
        loop {
            let heard = self.lock().core.take_unsaved_last_seen(LAST_SEEN_BATCH);
            if heard.is_empty() {
                return Ok(());
            }
            let heard: Vec<_> = heard.into_iter().map(|(id, at)| (id, self.clock.date_of(at))).collect();
            // Independent of the epoch: if it fails, those hosts only time out earlier after a restart.
            self.store.submit(move |tx| store::write_last_seen(tx, &heard)).wait()?;
        }
    }

    /// Converts the core's time to a date.
    pub(super) fn wall_time(&self, instant: Millis) -> Millis {
        self.clock.date_of(instant)
    }

    /// Current sizes for the metrics.
    pub(super) fn sizes(&self) -> Vec<(&'static str, u64)> {
        let state = self.lock();
        let shown = state.core.totals();
        let live = [("hosts_live", shown.total_clients), ("files_live", shown.total_files)];
        state.core.sizes().into_iter().chain(live).collect()
    }

    /// Waits until a change is on disk. If it could not be stored, reloads the registry before returning the error.
    fn wait_committed(&self, pending: &PendingCommit) -> Result<(), StoreError> {
        match pending.commit.wait() {
            Ok(()) => {
                self.committed.fetch_max(pending.commit.sequence_number(), Ordering::AcqRel);
                Ok(())
            }
            Err(error) => {
                self.rebuild(pending.epoch);
                Err(error)
            }
        }
    }

    fn rebuild(&self, failed: Epoch) {
        // The lock is held while the store is read on purpose: nobody may see the invalid state.
        let mut state = self.lock();
        if state.epoch != failed {
            return;
        }
        let epoch = self.store.current_epoch();
        // Followers were told changes of the invalid state: they must read the whole list.
        match load(&self.store, &self.clock, self.peer_timeout, self.limits, state.core.version() + 1) {
            Ok(mut core) => {
                core.adopt_runtime_state(&state.core);
                *state = RegistryState { core, epoch, last_commit: CommitHandle::committed() };
                log::warn!("registry: memory was built anew from the disk");
            }
            // The old state stays, with a failed latest change: every request fails and tries this again.
            Err(error) => log::error!("registry: the store cannot be read: {error}"),
        }
    }
}

/// Loads a registry. Its change numbers start from the time, but not below `at_least`.
fn load(
    store: &Store,
    clock: &Clock,
    peer_timeout: Duration,
    limits: RegistryLimits,
    at_least: u64,
) -> Result<Registry, StoreError> {
    let mut core = Registry::new(peer_timeout, limits);
    store.read(|reader| core.load(clock.now(), &|date| clock.instant_of(date), reader))?;
    // There are never a thousand changes per millisecond, and for the next 200 years the number stays within what
    // JSON readers represent exactly.
    core.restart_change_log(at_least.max(Clock::wall().0 << 10));
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Token;
    use crate::share::registry::{HostnameStatus, SecretHash};

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn claim() -> HostnameClaim {
        HostnameClaim {
            hostname: Name::new("ann").unwrap(),
            display_name: "ann".into(),
            port: 6001,
            ip: None,
            source: "192.0.2.1".parse().unwrap(),
            status: HostnameStatus::Free,
            resume_secret: None,
            new_secret: SecretHash::of(&Token::from_text("first")),
            keeps_files: false,
            file_count: 0,
            is_local_ip: false,
        }
    }

    #[test]
    fn what_is_kept_bears_dates_also_where_the_clock_was_set_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let begin = |clock: Clock| {
            let store = Arc::new(Store::open(&path, store::MIGRATIONS).unwrap());
            PersistentRegistry::open(store, clock, Duration::from_secs(600), RegistryLimits::default()).unwrap()
        };
        let elsewhere =
            HostnameClaim { source: "192.0.2.2".parse().unwrap(), resume_secret: Some(claim().new_secret), ..claim() };
        // It starts with a clock that is a year behind and is corrected while it runs.
        let registry = begin(Clock::behind(YEAR));
        registry.register(1, &claim(), &FileMap::new()).unwrap();
        // A reloaded registry uses the same clock.
        let epoch = registry.state.lock().epoch;
        registry.rebuild(epoch);
        let again = registry.register(2, &elsewhere, &FileMap::new()).unwrap();
        assert!(again.is_resumed && again.replaced_conn == Some(1), "{again:?}");
        let seen = registry.read(|core, now| core.discover(now, "ann")).unwrap().unwrap();
        assert!(registry.wall_time(seen.connected_at).until(Clock::wall()) < Duration::from_secs(60));
        registry.store.close();
        drop(registry);
        let registry = begin(Clock::start());
        assert!(registry.ping(9, "ann").unwrap(), "it was heard just now");
        assert!(registry.register(3, &elsewhere, &FileMap::new()).unwrap().is_resumed);
        registry.store.close();
    }
}
