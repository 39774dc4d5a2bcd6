//! The core behind its lock, and its way to disk.
//!
//! A change of memory and its hand-over to the store's writer happen under one lock, so that disk order is
//! memory's. If a change cannot be stored, memory is built anew from the disk before anything else is answered.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Failure, STEP};
use crate::model::{Clock, Millis, Name};
use crate::share::registry::{Bounds, Change, Claim, ConnId, Granted, Refusal, Registry, store};
use crate::share::wire::Files;
use crate::storage::{Chain, Store, StoreError, Ticket, Tx};

/// How many hosts' last signs of life are written in one transaction.
const HEARD_AT_ONCE: usize = 4096;

pub(super) struct Keeper {
    store: Arc<Store>,
    clock: Clock,
    timeout: Duration,
    bounds: Bounds,
    state: Mutex<State>,
    /// Every change up to this one is on disk.
    committed: AtomicU64,
    /// What is shown has changed, or nobody is to wait for that any more.
    changed: Condvar,
    is_ending: AtomicBool,
}

/// The lock, held: who waits for a change is told when it is let go.
struct Held<'a> {
    state: MutexGuard<'a, State>,
    changed: &'a Condvar,
    version: u64,
}

impl Deref for Held<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.state.core.version() != self.version {
            self.changed.notify_all();
        }
    }
}

struct State {
    core: Registry,
    /// Changes as when everything was read from disk and what was done since are of one chain.
    chain: Chain,
    /// The newest change.
    newest: Ticket,
}

/// A change that was handed over, and the memory that it belongs to.
struct Handed {
    ticket: Ticket,
    chain: Chain,
}

impl State {
    fn handed(&self) -> Handed {
        Handed { ticket: self.newest.clone(), chain: self.chain }
    }
}

impl Keeper {
    /// Reads what the store holds.
    pub(super) fn open(
        store: Arc<Store>,
        clock: Clock,
        timeout: Duration,
        bounds: Bounds,
    ) -> Result<Keeper, StoreError> {
        let chain = store.chain();
        let core = load(&store, &clock, timeout, bounds, 0)?;
        let state = Mutex::new(State { core, chain, newest: Ticket::committed() });
        let (committed, is_ending) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Keeper { store, clock, timeout, bounds, state, committed, changed: Condvar::new(), is_ending })
    }

    fn lock(&self) -> Held<'_> {
        let state = self.state.lock();
        let version = state.core.version();
        Held { state, changed: &self.changed, version }
    }

    /// Waits until what is shown is not what it was at that number any more, at most until then. Hosts fall silent
    /// without anybody doing anything: it ends with the next one, too. False where nobody is to wait any more.
    pub(super) fn wait_for_change(&self, version: u64, until: Instant) -> bool {
        let mut state = self.state.lock();
        while !self.is_ending.load(Ordering::Relaxed) && state.core.version() == version {
            let silence = state.core.next_silence().map(|at| Instant::now() + self.clock.now().until(at));
            let wakes_at = silence.map_or(until, |silence| silence.min(until));
            if self.changed.wait_until(&mut state, wakes_at).timed_out() {
                break;
            }
        }
        !self.is_ending.load(Ordering::Relaxed)
    }

    /// Nobody waits any more.
    pub(super) fn end_waiting(&self) {
        let _state = self.state.lock();
        self.is_ending.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn hand_over(&self, state: &mut State, mut changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        // As dates: after the next start the clock goes by the wall as it is then.
        changes.iter_mut().for_each(|change| change.shift(&|instant| self.clock.dated(instant)));
        let write = move |tx: &mut dyn Tx| changes.iter().try_for_each(|change| change.write(tx));
        state.newest = self.store.append(state.chain, write);
    }

    /// One change of the host that a connection holds; returns once it is on disk.
    pub(super) fn change(
        &self,
        conn: ConnId,
        work: impl FnOnce(&mut Registry, Millis, &mut Vec<Change>) -> Result<(), Refusal>,
    ) -> Result<(), Failure> {
        let now = self.clock.now();
        let (refused, handed) = {
            let mut state = self.lock();
            let mut changes = Vec::new();
            let refused = work(&mut state.core, now, &mut changes).err();
            // Also of what is refused: others may have given way in vain.
            self.hand_over(&mut state, changes);
            if refused.is_none() {
                let mark = state.newest.seq();
                state.core.mark(conn, mark);
            }
            (refused, state.handed())
        };
        // A refusal, too, rests on what was there.
        self.settle(&handed)?;
        refused.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// REGISTER, with the list that it brings: in steps, each of which lets others in between.
    pub(super) fn register(&self, conn: ConnId, claim: &Claim, files: &Files) -> Result<Granted, Failure> {
        let now = self.clock.now();
        let mut room = true;
        while room {
            let mut state = self.lock();
            let mut changes = Vec::new();
            room = state.core.make_room(now, conn, claim, STEP, &mut changes);
            self.hand_over(&mut state, changes);
        }
        let (result, first) = {
            let mut state = self.lock();
            let result = state.core.register(now, conn, claim).map(|mut granted| {
                self.hand_over(&mut state, std::mem::take(&mut granted.changes));
                let mark = state.newest.seq();
                state.core.mark(conn, mark);
                granted
            });
            (result, state.handed())
        };
        let mut handed = first;
        let mut after = None;
        let mut is_done = result.as_ref().map_or(true, |granted| granted.files_stay);
        while !is_done {
            let mut state = self.lock();
            if state.chain != handed.chain {
                drop(state);
                let superseded =
                    StoreError::Unavailable("memory was built anew in the middle of a REGISTER".to_owned());
                return Err(superseded.into());
            }
            let mut changes = Vec::new();
            let next = state.core.replace_files(conn, files, after.as_ref(), STEP, &mut changes);
            self.hand_over(&mut state, changes);
            let mark = state.newest.seq();
            state.core.mark(conn, mark);
            handed = state.handed();
            drop(state);
            match next? {
                Some(last) => after = Some(last),
                None => is_done = true,
            }
        }
        // All of them are of one chain: the last is on disk only if the others are.
        self.settle(&handed)?;
        Ok(result?)
    }

    /// Whether a host is there. Also a sign of life of whoever holds a hostname at that connection.
    pub(super) fn ping(&self, conn: ConnId, hostname: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let (is_there, handed) = {
            let mut state = self.lock();
            state.core.hear(now, conn);
            let presence = state.core.presence(now, hostname);
            // Nearly always what made the host what it is was on disk long ago.
            if presence.is_some_and(|mark| mark <= self.committed.load(Ordering::Acquire)) {
                return Ok(true);
            }
            (presence.is_some(), state.handed())
        };
        self.settle(&handed)?;
        Ok(is_there)
    }

    /// Something came over a connection.
    pub(super) fn hear(&self, conn: ConnId) {
        let now = self.clock.now();
        self.lock().core.hear(now, conn);
    }

    /// A connection is closed.
    pub(super) fn closed(&self, conn: ConnId) {
        self.lock().core.closed(conn);
    }

    /// Looks at one step's worth of what is there, with all that is due expired, and answers once what was seen
    /// is on disk.
    pub(super) fn look<T>(&self, work: impl FnOnce(&mut Registry, Millis) -> T) -> Result<T, StoreError> {
        let now = self.clock.now();
        loop {
            let mut state = self.lock();
            if state.core.expire(now, STEP) {
                continue;
            }
            let seen = work(&mut state.core, now);
            let handed = state.handed();
            drop(state);
            self.settle(&handed)?;
            return Ok(seen);
        }
    }

    /// The hosts that have not shown to be users.
    pub(super) fn strangers(&self) -> Vec<Name> {
        self.lock().core.strangers()
    }

    /// A hostname is a user's from now on.
    pub(super) fn account_created(&self, hostname: &str) -> Result<(), StoreError> {
        let handed = {
            let mut state = self.lock();
            let changes = state.core.account_created(hostname);
            self.hand_over(&mut state, changes);
            state.handed()
        };
        self.settle(&handed)
    }

    /// Drops who was not heard for long, tidies up, and writes down when the others were last heard.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        while self.lock().core.expire(now, STEP) {}
        let mut more = true;
        while more {
            let handed = {
                let mut state = self.lock();
                let mut changes = Vec::new();
                more = state.core.tidy(now, STEP, &mut changes);
                self.hand_over(&mut state, changes);
                state.handed()
            };
            // Waited for, so that the writer's queue is not filled by it alone.
            self.settle(&handed)?;
        }
        loop {
            let heard = self.lock().core.take_unsaved(HEARD_AT_ONCE);
            if heard.is_empty() {
                return Ok(());
            }
            let heard: Vec<_> = heard.into_iter().map(|(id, at)| (id, self.clock.dated(at))).collect();
            // For itself: if it fails, nothing is lost but some time of those hosts after a restart.
            self.store.submit(move |tx| store::write_heard(tx, &heard)).wait()?;
        }
    }

    /// The date of an instant that the core goes by.
    pub(super) fn dated(&self, instant: Millis) -> Millis {
        self.clock.dated(instant)
    }

    /// Sizes for the counters: those of memory, and what is shown of it.
    pub(super) fn sizes(&self) -> Vec<(&'static str, u64)> {
        let state = self.lock();
        let shown = state.core.totals();
        let live = [("hosts_live", shown.total_clients), ("files_live", shown.total_files)];
        state.core.sizes().into_iter().chain(live).collect()
    }

    /// Waits until a change is on disk. When it could not be stored, memory is built anew before this returns.
    fn settle(&self, handed: &Handed) -> Result<(), StoreError> {
        match handed.ticket.wait() {
            Ok(()) => {
                self.committed.fetch_max(handed.ticket.seq(), Ordering::AcqRel);
                Ok(())
            }
            Err(error) => {
                self.rebuild(handed.chain);
                Err(error)
            }
        }
    }

    fn rebuild(&self, failed: Chain) {
        // Held while the store is read, on purpose: nobody may look at the memory that is wrong.
        let mut state = self.lock();
        if state.chain != failed {
            return;
        }
        let chain = self.store.chain();
        // What was told of changes was of the memory that was wrong: everybody reads anew.
        match load(&self.store, &self.clock, self.timeout, self.bounds, state.core.version() + 1) {
            Ok(mut core) => {
                core.adopt(&state.core);
                *state = State { core, chain, newest: Ticket::committed() };
                log::warn!("registry: memory was built anew from the disk");
            }
            // The old one stays, with a newest change that has failed: whatever is asked fails and tries this again.
            Err(error) => log::error!("registry: the store cannot be read: {error}"),
        }
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
        let chain = keeper.state.lock().chain;
        keeper.rebuild(chain);
        let again = keeper.register(2, &elsewhere, &Files::new()).unwrap();
        assert!(again.resumed && again.replaced == Some(1), "{again:?}");
        let seen = keeper.look(|core, now| core.discover(now, "ann")).unwrap().unwrap();
        assert!(keeper.dated(seen.connected_at).until(Clock::wall()) < Duration::from_secs(60));
        keeper.store.close();
        drop(keeper);
        let keeper = begin(Clock::start());
        assert!(keeper.ping(9, "ann").unwrap(), "it was heard just now");
        assert!(keeper.register(3, &elsewhere, &Files::new()).unwrap().resumed);
        keeper.store.close();
    }
}
