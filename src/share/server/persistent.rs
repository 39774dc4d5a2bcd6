//! The registry's core behind its lock, and its persistence ([`Durable`]).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{RequestError, STEP_SIZE};
use crate::model::{Clock, Millis, Name};
use crate::share::registry::{
    ConnId, HostnameClaim, HostnameGrant, Registry, RegistryChange, RegistryError, RegistryLimits, store,
};
use crate::share::wire::FileMap;
use crate::storage::{CoreState, Durable, Pending, SharedCore, Store, StoreError, Tx};

const LAST_SEEN_BATCH: usize = 4096;

pub(super) struct PersistentRegistry {
    memory: Durable<SharedCore<Registry>>,
    clock: Clock,
    /// Up to this sequence number, every change is on disk.
    committed: AtomicU64,
    is_stopping: AtomicBool,
}

type State = CoreState<Registry>;

impl PersistentRegistry {
    pub(super) fn open(
        store: Arc<Store>,
        clock: Clock,
        peer_timeout: Duration,
        limits: RegistryLimits,
    ) -> Result<PersistentRegistry, StoreError> {
        let memory = Durable::open_shared("registry", store, move |store, before: Option<&Registry>| {
            // Followers were told changes of the invalid state: they must read the whole list.
            let at_least = before.map_or(0, |before| before.version() + 1);
            let mut core = load(store, &clock, peer_timeout, limits, at_least)?;
            before.into_iter().for_each(|before| core.adopt_runtime_state(before));
            Ok(core)
        })?;
        Ok(PersistentRegistry { memory, clock, committed: AtomicU64::new(0), is_stopping: AtomicBool::new(false) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Pending<Registry, T> {
        self.memory.with(|state| run_and_wake(state, work))
    }

    /// Waits until the listing has changed since `version`, or until a deadline. It also returns when the next host
    /// times out, since nothing else signals that. Returns false when waiting is to end.
    pub(super) fn wait_for_change(&self, version: u64, until: Instant) -> bool {
        let mut silence: Option<Instant> = None;
        self.memory.wait_for(until, |state| {
            let is_silent = silence.is_some_and(|at| Instant::now() >= at);
            if self.is_stopping.load(Ordering::Relaxed) || state.version() != version || is_silent {
                return ControlFlow::Break(());
            }
            silence = state.next_expiry().map(|at| Instant::now() + self.clock.now().until(at));
            ControlFlow::Continue(silence)
        });
        !self.is_stopping.load(Ordering::Relaxed)
    }

    pub(super) fn stop_waiting(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.memory.notify();
    }

    /// Appends the changes that `work` collects.
    fn collect<T>(&self, state: &mut State, work: impl FnOnce(&mut State, &mut Vec<RegistryChange>) -> T) -> T {
        let mut changes = Vec::new();
        let value = work(state, &mut changes);
        self.append(state, changes);
        value
    }

    fn append(&self, state: &mut State, mut changes: Vec<RegistryChange>) {
        if changes.is_empty() {
            return;
        }
        // Stored as dates: after a restart the clock starts from the wall clock of that moment.
        changes.iter_mut().for_each(|change| change.map_times(&|instant| self.clock.date_of(instant)));
        state.append(move |tx: &mut dyn Tx| changes.iter().try_for_each(|change| change.write(tx)));
    }

    /// Applies one change of the connection's host; returns once it is on disk.
    pub(super) fn update(
        &self,
        conn: ConnId,
        work: impl FnOnce(&mut Registry, Millis, &mut Vec<RegistryChange>) -> Result<(), RegistryError>,
    ) -> Result<(), RequestError> {
        let now = self.clock.now();
        let pending = self.with(|state| {
            // Changes of a refused request are kept too: other hosts may have been evicted for it.
            let refused = self.collect(state, |state, changes| work(state, now, changes).err());
            if refused.is_none() {
                mark_newest_change(state, conn);
            }
            refused
        });
        // A refusal, too, depends on earlier changes.
        self.wait(pending)?.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// REGISTER with its file list, in steps that release the lock in between.
    pub(super) fn register(
        &self,
        conn: ConnId,
        claim: &HostnameClaim,
        files: &FileMap,
    ) -> Result<HostnameGrant, RequestError> {
        let now = self.clock.now();
        let evict =
            |state: &mut State, changes: &mut Vec<_>| state.evict_for_claim(now, conn, claim, STEP_SIZE, changes);
        while self.with(|state| self.collect(state, evict)).value {}
        let registered = self.with(|state| {
            let mut granted = state.register(now, conn, claim)?;
            self.append(state, std::mem::take(&mut granted.changes));
            mark_newest_change(state, conn);
            Ok::<_, RegistryError>(granted)
        });
        let mut after = None;
        let mut is_done = registered.value.as_ref().map_or(true, |granted| granted.keeps_files);
        let mut last = None;
        while !is_done {
            let step = self.memory.with_same(&registered, |state| {
                run_and_wake(state, |state| {
                    let next = self.collect(state, |state, changes| {
                        state.replace_files(conn, files, after.as_ref(), STEP_SIZE, changes)
                    });
                    mark_newest_change(state, conn);
                    next
                })
            });
            let Some(step) = step else {
                let superseded = "memory was loaded anew in the middle of a REGISTER";
                return Err(StoreError::Unavailable(superseded.to_owned()).into());
            };
            after = step.value.clone()?;
            is_done = after.is_none();
            last = Some(step);
        }
        // All of them are of one epoch: the last is on disk only if the others are.
        if let Some(last) = last {
            self.wait(last)??;
        }
        Ok(self.wait(registered)??)
    }

    /// Also counts as a sign of life of the connection's own host.
    pub(super) fn ping(&self, conn: ConnId, hostname: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        // Read first: a later value may include commits of a memory that was loaded since.
        let committed = self.committed.load(Ordering::Acquire);
        let pending = self.with(|state| {
            state.record_activity(now, conn);
            state.presence(now, hostname)
        });
        // Nearly always the host's latest change was on disk long ago.
        if pending.value.is_some_and(|mark| mark <= committed) {
            return Ok(true);
        }
        Ok(self.wait(pending)?.is_some())
    }

    /// Counts a request as a sign of life of the connection's host.
    pub(super) fn record_activity(&self, conn: ConnId) {
        let now = self.clock.now();
        self.with(|state| state.record_activity(now, conn));
    }

    pub(super) fn connection_closed(&self, conn: ConnId) {
        self.with(|state| state.connection_closed(conn));
    }

    /// Runs one bounded read after making all timed-out hosts silent, and returns its result once everything that it
    /// depends on is on disk.
    pub(super) fn read<T>(&self, work: impl FnOnce(&mut Registry, Millis) -> T) -> Result<T, StoreError> {
        let now = self.clock.now();
        let mut work = Some(work);
        loop {
            let pending = self.with(|state| {
                // All that is due is expired first, in steps.
                let is_due = state.expire(now, STEP_SIZE);
                work.take_if(|_| !is_due).map(|work| work(state, now))
            });
            if pending.value.is_some()
                && let Some(seen) = self.wait(pending)?
            {
                return Ok(seen);
            }
        }
    }

    pub(super) fn anonymous_hostnames(&self) -> Vec<Name> {
        self.with(|state| state.anonymous_hostnames()).value
    }

    /// The hostname is that of a user account from now on.
    pub(super) fn account_created(&self, hostname: &str) -> Result<(), StoreError> {
        self.wait(self.with(|state| {
            let changes = state.account_created(hostname);
            self.append(state, changes);
        }))
    }

    /// Makes timed-out hosts silent, removes what has expired, and stores when hosts were last seen.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        while self.with(|state| state.expire(now, STEP_SIZE)).value {}
        let purge = |state: &mut State, changes: &mut Vec<_>| state.purge_expired(now, STEP_SIZE, changes);
        // Waited for, so that the writer's queue is not filled by it alone.
        while self.wait(self.with(|state| self.collect(state, purge)))? {}
        loop {
            let heard = self.with(|state| state.take_unsaved_last_seen(LAST_SEEN_BATCH)).value;
            if heard.is_empty() {
                return Ok(());
            }
            let heard: Vec<_> = heard.into_iter().map(|(id, at)| (id, self.clock.date_of(at))).collect();
            // Independent of the epoch: if it fails, those hosts only time out earlier after a restart.
            self.memory.store().submit(move |tx| store::write_last_seen(tx, &heard)).wait()?;
        }
    }

    pub(super) fn wall_time(&self, instant: Millis) -> Millis {
        self.clock.date_of(instant)
    }

    pub(super) fn sizes(&self) -> Vec<(&'static str, u64)> {
        let pending = self.with(|state| {
            let shown = state.totals();
            let live = [("hosts_live", shown.total_clients), ("files_live", shown.total_files)];
            state.sizes().into_iter().chain(live).collect()
        });
        pending.value
    }

    /// Waits until the commit that the value depends on is on disk.
    fn wait<T>(&self, pending: Pending<Registry, T>) -> Result<T, StoreError> {
        let seq = pending.sequence_number();
        let value = self.memory.wait(pending)?;
        self.committed.fetch_max(seq, Ordering::AcqRel);
        Ok(value)
    }
}

fn mark_newest_change(state: &mut State, conn: ConnId) {
    let mark = state.newest().sequence_number();
    state.set_change_seq(conn, mark);
}

/// Runs `work` on the core, and wakes those who wait for a change of the listing if there was one.
fn run_and_wake<T>(state: &mut State, work: impl FnOnce(&mut State) -> T) -> T {
    let version = state.version();
    let value = work(state);
    if state.version() != version {
        state.wake_waiting();
    }
    value
}

/// The change numbers start from the time, but not below `at_least`.
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
        assert!(registry.memory.reload(&registry.memory.current()).is_some());
        let again = registry.register(2, &elsewhere, &FileMap::new()).unwrap();
        assert!(again.is_resumed && again.replaced_conn == Some(1), "{again:?}");
        let seen = registry.read(|core, now| core.discover(now, "ann")).unwrap().unwrap();
        assert!(registry.wall_time(seen.connected_at).until(Clock::wall()) < Duration::from_secs(60));
        registry.memory.store().close();
        drop(registry);
        let registry = begin(Clock::start());
        assert!(registry.ping(9, "ann").unwrap(), "it was heard just now");
        assert!(registry.register(3, &elsewhere, &FileMap::new()).unwrap().is_resumed);
        registry.memory.store().close();
    }
}
