//! The registry's core behind its lock, and its way to disk ([`Durable`]).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Failure, STEP};
use crate::model::{Clock, Millis, Name};
use crate::share::registry::{Bounds, Change, Claim, ConnId, Granted, Refusal, Registry, store};
use crate::share::wire::Files;
use crate::storage::{CoreState, Durable, Pending, SharedCore, Store, StoreError, Tx};

/// How many hosts' last signs of life are written in one transaction.
const HEARD_AT_ONCE: usize = 4096;

pub(super) struct Keeper {
    memory: Durable<SharedCore<Registry>>,
    clock: Clock,
    /// Every change up to this one is on disk.
    committed: AtomicU64,
    /// Nobody is to wait for changes any more.
    is_ending: AtomicBool,
}

type State = CoreState<Registry>;

impl Keeper {
    /// Reads what the store holds.
    pub(super) fn open(
        store: Arc<Store>,
        clock: Clock,
        timeout: Duration,
        bounds: Bounds,
    ) -> Result<Keeper, StoreError> {
        let memory = Durable::open_shared("registry", store, move |store, before: Option<&Registry>| {
            // What was told of changes was of memory that was wrong: everybody reads anew.
            let at_least = before.map_or(0, |before| before.version() + 1);
            let mut core = load(store, &clock, timeout, bounds, at_least)?;
            before.into_iter().for_each(|before| core.adopt(before));
            Ok(core)
        })?;
        Ok(Keeper { memory, clock, committed: AtomicU64::new(0), is_ending: AtomicBool::new(false) })
    }

    /// Works on the core; who waits for a change is notified of one.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Pending<Registry, T> {
        let mut has_changed = false;
        let pending = self.memory.with(|state| {
            let version = state.version();
            let value = work(state);
            has_changed = state.version() != version;
            value
        });
        if has_changed {
            self.memory.notify();
        }
        pending
    }

    /// Waits until what is shown is not what it was at that number any more, at most until then. Hosts fall silent
    /// without anybody doing anything: it ends with the next one, too. False where nobody is to wait any more.
    pub(super) fn wait_for_change(&self, version: u64, until: Instant) -> bool {
        let mut silence: Option<Instant> = None;
        self.memory.wait_for(until, |state| {
            let is_silent = silence.is_some_and(|at| Instant::now() >= at);
            if self.is_ending.load(Ordering::Relaxed) || state.version() != version || is_silent {
                return ControlFlow::Break(());
            }
            silence = state.next_silence().map(|at| Instant::now() + self.clock.now().until(at));
            ControlFlow::Continue(silence)
        });
        !self.is_ending.load(Ordering::Relaxed)
    }

    /// Nobody waits any more.
    pub(super) fn end_waiting(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.memory.notify();
    }

    fn hand_over(&self, state: &mut State, mut changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        // As dates: after the next start the clock goes by the wall as it is then.
        changes.iter_mut().for_each(|change| change.shift(&|instant| self.clock.dated(instant)));
        state.append(move |tx: &mut dyn Tx| changes.iter().try_for_each(|change| change.write(tx)));
    }

    /// One change of the host that a connection holds; returns once it is on disk.
    pub(super) fn change(
        &self,
        conn: ConnId,
        work: impl FnOnce(&mut Registry, Millis, &mut Vec<Change>) -> Result<(), Refusal>,
    ) -> Result<(), Failure> {
        let now = self.clock.now();
        let pending = self.with(|state| {
            let mut changes = Vec::new();
            let refused = work(state, now, &mut changes).err();
            // Also of what is refused: others may have given way in vain.
            self.hand_over(state, changes);
            if refused.is_none() {
                let mark = state.newest().seq();
                state.mark(conn, mark);
            }
            refused
        });
        // A refusal, too, rests on what was there.
        self.wait(pending)?.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// REGISTER, with the list that it brings: in steps, each of which lets others in between.
    pub(super) fn register(&self, conn: ConnId, claim: &Claim, files: &Files) -> Result<Granted, Failure> {
        let now = self.clock.now();
        let mut room = true;
        while room {
            let pending = self.with(|state| {
                let mut changes = Vec::new();
                let room = state.make_room(now, conn, claim, STEP, &mut changes);
                self.hand_over(state, changes);
                room
            });
            room = pending.value;
        }
        let registered = self.with(|state| {
            let mut granted = state.register(now, conn, claim)?;
            self.hand_over(state, std::mem::take(&mut granted.changes));
            let mark = state.newest().seq();
            state.mark(conn, mark);
            Ok::<_, Refusal>(granted)
        });
        let mut after = None;
        let mut is_done = registered.value.as_ref().map_or(true, |granted| granted.files_stay);
        let mut last = None;
        while !is_done {
            let step = self.with(|state| {
                let mut changes = Vec::new();
                let next = state.replace_files(conn, files, after.as_ref(), STEP, &mut changes);
                self.hand_over(state, changes);
                let mark = state.newest().seq();
                state.mark(conn, mark);
                next
            });
            if !step.is_of_same_memory(&registered) {
                let superseded =
                    StoreError::Unavailable("memory was loaded anew in the middle of a REGISTER".to_owned());
                return Err(superseded.into());
            }
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

    /// Whether a host is there. Also a sign of life of whoever holds a hostname at that connection.
    pub(super) fn ping(&self, conn: ConnId, hostname: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let pending = self.with(|state| {
            state.hear(now, conn);
            state.presence(now, hostname)
        });
        // Nearly always what made the host what it is was on disk long ago.
        if pending.value.is_some_and(|mark| mark <= self.committed.load(Ordering::Acquire)) {
            return Ok(true);
        }
        Ok(self.wait(pending)?.is_some())
    }

    /// Something came over a connection.
    pub(super) fn hear(&self, conn: ConnId) {
        let now = self.clock.now();
        self.with(|state| state.hear(now, conn));
    }

    /// A connection is closed.
    pub(super) fn closed(&self, conn: ConnId) {
        self.with(|state| state.closed(conn));
    }

    /// Looks at one step's worth of what is there, with all that is due expired, and answers once what was seen
    /// is on disk.
    pub(super) fn look<T>(&self, work: impl FnOnce(&mut Registry, Millis) -> T) -> Result<T, StoreError> {
        let now = self.clock.now();
        let mut work = Some(work);
        loop {
            let pending = self.with(|state| {
                // All that is due is expired first, in steps.
                let is_due = state.expire(now, STEP);
                work.take_if(|_| !is_due).map(|work| work(state, now))
            });
            if pending.value.is_some()
                && let Some(seen) = self.wait(pending)?
            {
                return Ok(seen);
            }
        }
    }

    /// The hosts that have not shown to be users.
    pub(super) fn strangers(&self) -> Vec<Name> {
        self.with(|state| state.strangers()).value
    }

    /// A hostname is a user's from now on.
    pub(super) fn account_created(&self, hostname: &str) -> Result<(), StoreError> {
        self.wait(self.with(|state| {
            let changes = state.account_created(hostname);
            self.hand_over(state, changes);
        }))
    }

    /// Drops who was not heard for long, tidies up, and writes down when the others were last heard.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        while self.with(|state| state.expire(now, STEP)).value {}
        let mut more = true;
        while more {
            // Waited for, so that the writer's queue is not filled by it alone.
            more = self.wait(self.with(|state| {
                let mut changes = Vec::new();
                let more = state.tidy(now, STEP, &mut changes);
                self.hand_over(state, changes);
                more
            }))?;
        }
        loop {
            let heard = self.with(|state| state.take_unsaved(HEARD_AT_ONCE)).value;
            if heard.is_empty() {
                return Ok(());
            }
            let heard: Vec<_> = heard.into_iter().map(|(id, at)| (id, self.clock.dated(at))).collect();
            // For itself: if it fails, nothing is lost but some time of those hosts after a restart.
            self.memory.store().submit(move |tx| store::write_heard(tx, &heard)).wait()?;
        }
    }

    /// The date of an instant that the core goes by.
    pub(super) fn dated(&self, instant: Millis) -> Millis {
        self.clock.dated(instant)
    }

    /// Sizes for the counters: those of memory, and what is shown of it.
    pub(super) fn sizes(&self) -> Vec<(&'static str, u64)> {
        let pending = self.with(|state| {
            let shown = state.totals();
            let live = [("hosts_live", shown.total_clients), ("files_live", shown.total_files)];
            state.sizes().into_iter().chain(live).collect()
        });
        pending.value
    }

    /// What was learnt, once it may be told.
    fn wait<T>(&self, pending: Pending<Registry, T>) -> Result<T, StoreError> {
        let seq = pending.seq();
        let value = self.memory.wait(pending)?;
        self.committed.fetch_max(seq, Ordering::AcqRel);
        Ok(value)
    }
}

/// Changes are counted from the time on, and never from less than `at_least`.
fn load(
    store: &Store,
    clock: &Clock,
    timeout: Duration,
    bounds: Bounds,
    at_least: u64,
) -> Result<Registry, StoreError> {
    let mut core = Registry::new(timeout, bounds);
    store.read(|reader| core.load(clock.now(), &|date| clock.instant(date), reader))?;
    // A thousand changes a millisecond are more than there ever are, and for the next 200 years every reader of JSON
    // holds the number exactly.
    core.count_changes_from(at_least.max(Clock::wall().0 << 10));
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Token;
    use crate::share::registry::{SecretKey, Standing};

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn claim() -> Claim {
        Claim {
            hostname: Name::new("ann").unwrap(),
            display_name: "ann".into(),
            port: 6001,
            ip: None,
            source: "192.0.2.1".parse().unwrap(),
            standing: Standing::Free,
            resume: None,
            fresh: SecretKey::of(&Token::from_text("first")),
            keeps_files: false,
            file_count: 0,
            ip_is_here: false,
        }
    }

    #[test]
    fn what_is_kept_bears_dates_also_where_the_clock_was_set_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let begin = |clock: Clock| {
            let store = Arc::new(Store::open(&path, store::MIGRATIONS).unwrap());
            Keeper::open(store, clock, Duration::from_secs(600), Bounds::default()).unwrap()
        };
        let elsewhere = Claim { source: "192.0.2.2".parse().unwrap(), resume: Some(claim().fresh), ..claim() };
        // It starts a year behind, and the machine's clock is set right while it runs.
        let keeper = begin(Clock::behind(YEAR));
        keeper.register(1, &claim(), &Files::new()).unwrap();
        // Memory that is built anew goes by the clock of before.
        assert!(keeper.memory.reload(&keeper.memory.current()).is_some());
        let again = keeper.register(2, &elsewhere, &Files::new()).unwrap();
        assert!(again.resumed && again.replaced == Some(1), "{again:?}");
        let seen = keeper.look(|core, now| core.discover(now, "ann")).unwrap().unwrap();
        assert!(keeper.dated(seen.connected_at).until(Clock::wall()) < Duration::from_secs(60));
        keeper.memory.store().close();
        drop(keeper);
        let keeper = begin(Clock::start());
        assert!(keeper.ping(9, "ann").unwrap(), "it was heard just now");
        assert!(keeper.register(3, &elsewhere, &Files::new()).unwrap().resumed);
        keeper.memory.store().close();
    }
}
