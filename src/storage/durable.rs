//! The one way in which a room keeps its state in memory without losing anything that it has acknowledged.
//!
//! A room changes its state in memory and appends each change to the store's queue under the lock of what it changed,
//! so that both have the same order. A response leaves once the newest change that it depends on is on disk. When a
//! change cannot be stored, memory is ahead of the disk: it is loaded anew before the next request, the requests that
//! waited are told that nothing has happened, and nothing that they saw of the old memory is ever acknowledged.
//!
//! [`Durable`] holds the memory of the current epoch and replaces it. An [`Appender`] proves that its owner still owns
//! the state: an epoch ends when a transaction fails, and then every change of it is refused. (For several processes on
//! one database it stands for the owner's lease, and also ends when another process takes over.)

use std::marker::PhantomData;
use std::ops::{ControlFlow, Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use super::{CommitHandle, CommitState, Epoch, Store, StoreError, Tx};
use crate::model::Clock;

/// Appends changes to the store's queue, in order, as long as its epoch lasts.
#[derive(Debug, Clone)]
pub struct Appender {
    store: Arc<Store>,
    epoch: Epoch,
}

impl Appender {
    /// An appender in the store's current epoch. Its changes build on what is read from the store afterwards. Waits
    /// while a failed epoch is being ended.
    pub fn begin(store: Arc<Store>) -> Appender {
        let epoch = store.current_epoch();
        Appender { store, epoch }
    }

    /// The change builds on all earlier ones. To be called under the lock of what was changed in memory; does not block
    /// on disk. If the change fails, so does every later one of the epoch.
    pub fn append(&self, change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static) -> CommitHandle {
        self.store.append(self.epoch, change)
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// Accepts the changes of a core in the order in which they are made, so that the core depends on no store. The disk
/// always holds a prefix of them. If a change cannot be stored, no later one is, and the core must be loaded anew.
pub trait Journal {
    type Change;
    /// Stands for a change and all earlier ones. The default depends on nothing.
    type Commit: Clone + Default;

    /// The changes are stored together or not at all. Never waits for the disk.
    fn append(&self, changes: Vec<Self::Change>) -> Self::Commit;

    fn latest(a: Self::Commit, b: Self::Commit) -> Self::Commit;

    /// This change and all earlier ones are on disk.
    fn is_committed(&self, commit: &Self::Commit) -> bool;
}

/// A change of a core, as a [`StoreJournal`] stores it.
pub trait StoredChange: Send + 'static {
    /// The change as the writer needs it.
    type Prepared: Send + 'static;

    /// Runs on the caller's thread: the writer is one thread for everybody. The core's instants become dates where they
    /// outlive the process.
    fn prepare(self, clock: &Clock) -> Self::Prepared;

    /// Fails with the store, or if the preparation did.
    fn write(prepared: &Self::Prepared, tx: &mut dyn Tx) -> Result<(), StoreError>;
}

/// The journal of a running core.
#[derive(Debug, Clone)]
pub struct StoreJournal<C> {
    appender: Appender,
    clock: Clock,
    changes: PhantomData<fn(C)>,
}

impl<C> StoreJournal<C> {
    pub fn new(appender: Appender, clock: Clock) -> StoreJournal<C> {
        StoreJournal { appender, clock, changes: PhantomData }
    }

    #[cfg(test)]
    pub fn appender(&self) -> &Appender {
        &self.appender
    }
}

impl<C: StoredChange> Journal for StoreJournal<C> {
    type Change = C;
    type Commit = CommitHandle;

    fn append(&self, changes: Vec<C>) -> CommitHandle {
        let prepared: Vec<C::Prepared> = changes.into_iter().map(|change| change.prepare(&self.clock)).collect();
        self.appender.append(move |tx| prepared.iter().try_for_each(|change| C::write(change, tx)))
    }

    fn latest(a: CommitHandle, b: CommitHandle) -> CommitHandle {
        CommitHandle::latest(a, b)
    }

    fn is_committed(&self, commit: &CommitHandle) -> bool {
        commit.state() == CommitState::Committed
    }
}

/// The second argument is the memory that is replaced, if any, for state that is not on disk and continues, such as
/// open connections.
type Load<M> = Box<dyn Fn(Appender, Option<&M>) -> Result<M, StoreError> + Send + Sync>;

/// The memory of a room, and how to load it anew after a change could not be stored.
pub struct Durable<M> {
    /// The room's name in the log.
    room: &'static str,
    store: Arc<Store>,
    load: Load<M>,
    current: RwLock<Arc<M>>,
}

impl<M> Durable<M> {
    pub fn open(
        room: &'static str,
        store: Arc<Store>,
        load: impl Fn(Appender, Option<&M>) -> Result<M, StoreError> + Send + Sync + 'static,
    ) -> Result<Durable<M>, StoreError> {
        let memory = load(Appender::begin(Arc::clone(&store)), None)?;
        Ok(Durable { room, store, load: Box::new(load), current: RwLock::new(Arc::new(memory)) })
    }

    /// A request keeps using the same memory until it ends.
    pub fn current(&self) -> Arc<M> {
        Arc::clone(&self.current.read())
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Waits until a change of this memory, and all before it, is on disk. If it could not be stored, memory has been
    /// loaded anew, unless the disk cannot be read either.
    pub fn wait_committed(&self, memory: &Arc<M>, newest: &CommitHandle) -> Result<(), StoreError> {
        newest.wait().inspect_err(|_error| drop(self.reload(memory)))
    }

    /// Replaces memory of which a change could not be stored. Returns the new memory if this call has loaded it, so
    /// that the caller can resume its work; `None` if another call has, or if the disk cannot be read. In that case the
    /// old memory stays: all its changes are refused, and the next request tries again. Not on the writer's thread: it
    /// may wait for the writer.
    pub fn reload(&self, failed: &Arc<M>) -> Option<Arc<M>> {
        // Deliberately held while the store is read: no request may start on outdated memory.
        let mut current = self.current.write();
        if !Arc::ptr_eq(&current, failed) {
            return None;
        }
        match (self.load)(Appender::begin(Arc::clone(&self.store)), Some(failed)) {
            Ok(memory) => {
                *current = Arc::new(memory);
                log::warn!("{}: memory was loaded anew from the disk", self.room);
                Some(Arc::clone(&current))
            }
            Err(error) => {
                log::error!("{}: the store cannot be read: {error}", self.room);
                None
            }
        }
    }
}

/// A core behind a single lock, with the commit of its newest change.
pub struct SharedCore<C> {
    state: Mutex<CoreState<C>>,
    changed: Condvar,
}

/// The core, while its lock is held.
pub struct CoreState<C> {
    core: C,
    appender: Appender,
    newest: CommitHandle,
    /// Another memory has taken its place, where all further work is done.
    is_replaced: bool,
    /// Set by [`wake_waiting`](CoreState::wake_waiting).
    wakes_waiting: bool,
}

/// A value that was computed under the lock, with the commit that it depends on.
pub struct Pending<C, T> {
    /// It may be acknowledged once [`Durable::wait`] has returned it.
    pub value: T,
    newest: CommitHandle,
    memory: Arc<SharedCore<C>>,
}

impl<C> Deref for CoreState<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.core
    }
}

impl<C> DerefMut for CoreState<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.core
    }
}

impl<C> CoreState<C> {
    pub fn append(&mut self, change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static) {
        self.newest = self.appender.append(change);
    }

    /// Wakes all callers of [`Durable::wait_for`] at the end of the work that calls this: under the lock that it holds
    /// anyway, which another round through it would make contended.
    pub fn wake_waiting(&mut self) {
        self.wakes_waiting = true;
    }

    /// The commit of the newest change, on which everything that is read now depends.
    pub fn newest(&self) -> &CommitHandle {
        &self.newest
    }
}

impl<C: Send + 'static> Durable<SharedCore<C>> {
    /// `load` gets the core that it replaces, if any, which stays locked meanwhile.
    pub fn open_shared(
        room: &'static str,
        store: Arc<Store>,
        load: impl Fn(&Store, Option<&C>) -> Result<C, StoreError> + Send + Sync + 'static,
    ) -> Result<Durable<SharedCore<C>>, StoreError> {
        Durable::open(room, store, move |appender, before: Option<&SharedCore<C>>| {
            let mut replaced = before.map(|before| before.state.lock());
            let core = load(&appender.store, replaced.as_deref().map(|state| &state.core))?;
            if let Some(state) = &mut replaced {
                state.is_replaced = true;
            }
            if let Some(before) = before {
                before.changed.notify_all();
            }
            let newest = CommitHandle::committed();
            let state = CoreState { core, appender, newest, is_replaced: false, wakes_waiting: false };
            Ok(SharedCore { state: Mutex::new(state), changed: Condvar::new() })
        })
    }

    /// Runs `work` on the core, under its lock. It must not block.
    pub fn with<T>(&self, work: impl FnOnce(&mut CoreState<C>) -> T) -> Pending<C, T> {
        loop {
            let memory = self.current();
            let mut state = memory.state.lock();
            if state.is_replaced {
                continue;
            }
            let value = work(&mut state);
            let newest = state.newest.clone();
            if std::mem::take(&mut state.wakes_waiting) {
                memory.changed.notify_all();
            }
            drop(state);
            return Pending { value, newest, memory };
        }
    }

    /// Runs `work` on the memory of an earlier value; `None` if it has been replaced since.
    pub fn with_same<T, U>(
        &self,
        earlier: &Pending<C, U>,
        work: impl FnOnce(&mut CoreState<C>) -> T,
    ) -> Option<Pending<C, T>> {
        let memory = Arc::clone(&earlier.memory);
        let mut state = memory.state.lock();
        if state.is_replaced {
            return None;
        }
        let value = work(&mut state);
        let newest = state.newest.clone();
        if std::mem::take(&mut state.wakes_waiting) {
            memory.changed.notify_all();
        }
        drop(state);
        Some(Pending { value, newest, memory })
    }

    /// Returns the value once the commit that it depends on is on disk: see [`Durable::wait_committed`].
    pub fn wait<T>(&self, pending: Pending<C, T>) -> Result<T, StoreError> {
        self.wait_committed(&pending.memory, &pending.newest)?;
        Ok(pending.value)
    }

    /// Does [`Durable::with`], then [`Durable::wait`].
    pub fn update<T>(&self, work: impl FnOnce(&mut CoreState<C>) -> T) -> Result<T, StoreError> {
        self.wait(self.with(work))
    }

    /// Calls `look` on the core, again after each [`Durable::notify`] and at the instant that it returned, until it
    /// breaks with a value; `None` after the deadline. The value may be acknowledged after [`Durable::wait`].
    pub fn wait_for<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut CoreState<C>) -> ControlFlow<T, Option<Instant>>,
    ) -> Option<Pending<C, T>> {
        loop {
            let memory = self.current();
            let mut state = memory.state.lock();
            while !state.is_replaced {
                match look(&mut state) {
                    ControlFlow::Break(value) => {
                        let newest = state.newest.clone();
                        drop(state);
                        return Some(Pending { value, newest, memory });
                    }
                    ControlFlow::Continue(_) if Instant::now() >= deadline => return None,
                    ControlFlow::Continue(look_at) => {
                        let until = look_at.map_or(deadline, |at| at.min(deadline));
                        memory.changed.wait_until(&mut state, until);
                    }
                }
            }
        }
    }

    pub fn notify(&self) {
        let memory = self.current();
        // Under the lock, so that no caller is between its look and the beginning of its wait.
        let _state = memory.state.lock();
        memory.changed.notify_all();
    }
}

impl<C, T> Pending<C, T> {
    /// The position of the commit in the order of all changes of the store.
    pub fn sequence_number(&self) -> u64 {
        self.newest.sequence_number()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::ReaderExt;

    const MIGRATION: &str = "CREATE TABLE entry (id INTEGER PRIMARY KEY, value BIGINT NOT NULL)";

    /// Numbers as they are on disk; how often memory was loaded before.
    #[derive(Debug, PartialEq)]
    struct Numbers {
        all: Vec<i64>,
        loads: u32,
    }

    fn add(state: &mut CoreState<Numbers>, number: i64, result: Result<(), StoreError>) {
        state.all.push(number);
        state.append(move |tx| {
            tx.execute("INSERT INTO entry (value) VALUES ($1)", &[number.into()])?;
            result
        });
    }

    fn refused() -> Result<(), StoreError> {
        Err(StoreError::Rejected("on purpose".to_owned()))
    }

    fn open(dir: &tempfile::TempDir) -> Durable<SharedCore<Numbers>> {
        let store = Arc::new(Store::open(&dir.path().join("numbers.db"), &[MIGRATION]).unwrap());
        Durable::open_shared("numbers", store, |store, before: Option<&Numbers>| {
            let sql = "SELECT value FROM entry ORDER BY id";
            let all = store.read(|reader| reader.all(sql, &[], |row| row.int(0)))?;
            Ok(Numbers { all, loads: before.map_or(0, |before| before.loads + 1) })
        })
        .unwrap()
    }

    /// Keeps the writer busy until what is returned is dropped.
    fn hold_writer(store: &Store) -> crossbeam_channel::Sender<()> {
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        store.submit(move |_tx| {
            // It ends when the other end is dropped.
            let _ = held.recv();
            Ok(())
        });
        release
    }

    #[test]
    fn memory_that_could_not_be_stored_is_replaced_by_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = open(&dir);
        numbers.update(|state| add(state, 1, Ok(()))).unwrap();
        let (before, failing, after) = (
            numbers.with(|state| add(state, 2, refused())),
            numbers.with(|state| add(state, 3, Ok(()))),
            numbers.with(|state| state.all.clone()),
        );
        assert_eq!(after.value, [1, 2, 3]);
        for result in [numbers.wait(before), numbers.wait(failing), numbers.wait(after).map(drop)] {
            assert!(result.is_err(), "nothing that was built on it is told");
        }
        let now = numbers.update(|state| (state.all.clone(), state.loads)).unwrap();
        assert_eq!(now, (vec![1], 1), "loaded anew once, whoever noticed");
        numbers.update(|state| add(state, 4, Ok(()))).unwrap();
        numbers.store().close();
        assert_eq!(open(&dir).update(|state| state.all.clone()).unwrap(), [1, 4]);
    }

    #[test]
    fn what_goes_on_from_an_earlier_value_changes_no_memory_that_was_loaded_since() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = open(&dir);
        let first = numbers.with(|state| add(state, 1, Ok(())));
        let second = numbers.with_same(&first, |state| add(state, 2, Ok(()))).unwrap();
        numbers.wait(second).unwrap();
        assert!(numbers.update(|state| add(state, 3, refused())).is_err());
        assert!(numbers.with_same(&first, |state| add(state, 4, Ok(()))).is_none());
        assert_eq!(numbers.update(|state| state.all.clone()).unwrap(), [1, 2]);
    }

    #[test]
    fn what_is_learnt_waits_for_the_change_that_it_is_built_on() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = open(&dir);
        let release = hold_writer(numbers.store());
        let adding = numbers.with(|state| add(state, 1, Ok(())));
        std::thread::scope(|scope| {
            let (told, learnt) = crossbeam_channel::bounded(1);
            let numbers = &numbers;
            scope.spawn(move || told.send(numbers.update(|state| state.all.clone())));
            assert!(learnt.recv_timeout(Duration::from_millis(100)).is_err(), "told before it was on disk");
            drop(release);
            assert_eq!(learnt.recv().unwrap(), Ok(vec![1]));
        });
        assert!(numbers.wait(adding).is_ok());
    }

    #[test]
    fn who_waits_for_something_looks_again_where_memory_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = open(&dir);
        let far = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let (looks, looked) = crossbeam_channel::unbounded();
            let waiting = scope.spawn({
                let numbers = &numbers;
                move || {
                    numbers.wait_for(far, |state| {
                        looks.send(state.loads).unwrap();
                        match state.all.contains(&5) {
                            true => ControlFlow::Break(state.loads),
                            false => ControlFlow::Continue(None),
                        }
                    })
                }
            });
            assert_eq!(looked.recv().unwrap(), 0);
            assert!(numbers.update(|state| add(state, 2, refused())).is_err());
            assert_eq!(looked.recv().unwrap(), 1, "the new memory is looked at without a word");
            numbers.update(|state| add(state, 5, Ok(()))).unwrap();
            numbers.notify();
            assert_eq!(waiting.join().unwrap().map(|found| found.value), Some(1));
        });
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(numbers.wait_for::<()>(soon, |_state| ControlFlow::Continue(None)).is_none());
    }

    #[test]
    fn while_the_disk_cannot_be_read_nothing_is_told_and_each_request_tries_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("numbers.db"), &[MIGRATION]).unwrap());
        let is_away = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let away = Arc::clone(&is_away);
        let numbers = Durable::open_shared("numbers", store, move |store, before: Option<&Numbers>| {
            if away.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(StoreError::Unavailable("away".to_owned()));
            }
            let all = store.read(|reader| reader.all("SELECT value FROM entry", &[], |row| row.int(0)))?;
            Ok(Numbers { all, loads: before.map_or(0, |before| before.loads + 1) })
        })
        .unwrap();
        is_away.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(numbers.update(|state| add(state, 1, refused())).is_err());
        for _ in 0..2 {
            assert!(numbers.update(|state| add(state, 2, Ok(()))).is_err());
            assert!(numbers.update(|state| state.all.clone()).is_err());
        }
        is_away.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(numbers.update(|state| state.all.clone()).is_err(), "this one has noticed, and memory is loaded");
        assert_eq!(numbers.update(|state| (state.all.clone(), state.loads)).unwrap(), (vec![], 1));
    }
}
