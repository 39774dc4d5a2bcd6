//! Memory that the disk vouches for: the one way in which a room keeps its state in memory and yet loses nothing
//! that it has answered.
//!
//! A room works on memory and hands each change to the store's writer under the lock of what it changed, so that the
//! order on disk is the order of memory. An answer leaves once the newest change that it is built on is on disk. When
//! a change cannot be stored, memory holds more than the disk does: it is loaded anew before the next request, those
//! who waited are told that nothing has happened, and whatever they had seen of the old memory is never answered.
//!
//! [`Durable`] holds the memory of the present epoch and replaces it. [`Appender`] is the way to the writer within an
//! epoch; it is the owner's proof that it still owns what it changes: once the epoch is over, every change is refused.
//! (An epoch ends with a failed transaction. Where several processes share a database, it is the lease's number, and
//! ends as well when another process takes the lease over.) [`SharedCore`] is the memory of a room whose core stands
//! behind one lock.

use std::ops::{ControlFlow, Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::{CommitHandle, Epoch, Store, StoreError, Tx};

/// Hands changes to the writer, in their order, for as long as its epoch lasts.
#[derive(Debug, Clone)]
pub struct Appender {
    store: Arc<Store>,
    epoch: Epoch,
}

impl Appender {
    /// Begins to append in the store's present epoch. What is read from the store afterwards is what the changes go
    /// on from. Waits while an epoch that has failed is being ended.
    pub fn begin(store: Arc<Store>) -> Appender {
        let epoch = store.current_epoch();
        Appender { store, epoch }
    }

    /// Hands over a change that builds on all those before it. This is memory work, to be done under the lock of
    /// what was changed. If the change fails, so does every later one of the epoch.
    pub fn append(
        &self,
        change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static,
    ) -> CommitHandle {
        self.store.append(self.epoch, change)
    }

    /// The store that the changes go to.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// Takes a core's changes in the order in which they are made, so that a core needs to know of no store.
///
/// What is on disk is always a prefix of what was appended: if a change cannot be stored, none after it is, and the
/// memory that made it is loaded anew.
pub trait Journal {
    /// One row's change.
    type Change;
    /// Stands for "this and everything before it is on disk". The default depends on nothing.
    type Receipt: Clone + Default;

    /// Hands over changes that belong together: all of them are stored, or none. Memory work.
    fn append(&self, changes: Vec<Self::Change>) -> Self::Receipt;

    /// The one of the two that was appended later.
    fn later(a: Self::Receipt, b: Self::Receipt) -> Self::Receipt;

    /// Whether everything up to this receipt is on disk by now.
    fn is_committed(&self, receipt: &Self::Receipt) -> bool;
}

/// Loads memory from the disk. The second argument is the memory that it replaces, if there was any: for what is
/// not on disk and goes on all the same, such as counters and open connections.
type Load<M> = Box<dyn Fn(Appender, Option<&M>) -> Result<M, StoreError> + Send + Sync>;

/// The memory of a room, and how it is loaded anew once the disk holds less than it.
pub struct Durable<M> {
    /// The room, for the log.
    room: &'static str,
    store: Arc<Store>,
    load: Load<M>,
    current: RwLock<Arc<M>>,
}

impl<M> Durable<M> {
    /// Loads the memory from the store. `room` names it in the log.
    ///
    /// # Errors
    /// What `load` says.
    pub fn open(
        room: &'static str,
        store: Arc<Store>,
        load: impl Fn(Appender, Option<&M>) -> Result<M, StoreError> + Send + Sync + 'static,
    ) -> Result<Durable<M>, StoreError> {
        let memory = load(Appender::begin(Arc::clone(&store)), None)?;
        Ok(Durable { room, store, load: Box::new(load), current: RwLock::new(Arc::new(memory)) })
    }

    /// The memory as of now. A request works on one and the same from its beginning to its end.
    pub fn current(&self) -> Arc<M> {
        Arc::clone(&self.current.read())
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Waits until a change of this memory, and all before it, is on disk.
    ///
    /// # Errors
    /// It could not be stored. Memory has been loaded anew by then, unless the disk cannot be read either.
    pub fn wait_committed(&self, memory: &Arc<M>, newest: &CommitHandle) -> Result<(), StoreError> {
        newest.wait().inspect_err(|_error| drop(self.reload(memory)))
    }

    /// Replaces memory of which a change could not be stored. Answers the new one if this call has loaded it, for
    /// what is to be resumed; `None` if somebody else has, or if the disk cannot be read: then the old memory stays,
    /// whose changes are all refused, and the next request tries again.
    ///
    /// Never to be called on the writer's own thread, for it may have to wait for the writer.
    pub fn reload(&self, failed: &Arc<M>) -> Option<Arc<M>> {
        // Held while the store is read, on purpose: no request may begin on memory that is wrong.
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

/// A core behind one lock, with the newest change that it has handed over.
pub struct SharedCore<C> {
    state: Mutex<CoreState<C>>,
    /// Notified when the core may look different to those who wait for something, or is replaced.
    changed: Condvar,
}

/// The core while its lock is held.
pub struct CoreState<C> {
    core: C,
    appender: Appender,
    newest: CommitHandle,
    /// Another memory has taken its place: whoever waits for something looks there.
    is_replaced: bool,
}

/// What was learnt under the lock, with the change that it is built on.
pub struct Pending<C, T> {
    /// What was learnt. It may be told once [`Durable::wait`] has returned.
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
    /// Hands a change of the core to the writer.
    pub fn append(&mut self, change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static) {
        self.newest = self.appender.append(change);
    }

    /// The newest change that was handed over: what is learnt now is built on it.
    pub fn newest(&self) -> &CommitHandle {
        &self.newest
    }
}

impl<C> SharedCore<C> {
    /// A core that was loaded from what the appender goes on from.
    pub fn new(core: C, appender: Appender) -> SharedCore<C> {
        let newest = CommitHandle::committed();
        let state = CoreState { core, appender, newest, is_replaced: false };
        SharedCore { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The core, for a look that is not answered to anybody (a counter), or by a loader that replaces it.
    pub fn lock(&self) -> MutexGuard<'_, CoreState<C>> {
        self.state.lock()
    }

    /// Has everybody who waits in [`Durable::wait_for`] look again.
    pub fn notify(&self) {
        // Under the lock, so that nobody is between a look and the beginning of a wait.
        drop(self.state.lock());
        self.changed.notify_all();
    }
}

impl<C> Durable<SharedCore<C>> {
    /// Works on the core, under its lock: memory work alone.
    pub fn with<T>(&self, work: impl FnOnce(&mut CoreState<C>) -> T) -> Pending<C, T> {
        let memory = self.current();
        let (value, newest) = {
            let mut state = memory.state.lock();
            let value = work(&mut state);
            (value, state.newest.clone())
        };
        Pending { value, newest, memory }
    }

    /// What was learnt, once it may be told: the newest change that it is built on is on disk.
    ///
    /// # Errors
    /// That change could not be stored. Memory has been loaded anew by then, if the disk can be read.
    pub fn wait<T>(&self, pending: Pending<C, T>) -> Result<T, StoreError> {
        self.settle(&pending.memory, &pending.newest)?;
        Ok(pending.value)
    }

    /// Works on the core and waits until what that is built on is on disk.
    ///
    /// # Errors
    /// Those of [`Durable::wait`].
    pub fn update<T>(&self, work: impl FnOnce(&mut CoreState<C>) -> T) -> Result<T, StoreError> {
        self.wait(self.with(work))
    }

    /// Looks at the core, again after each [`SharedCore::notify`] and at the instant that `look` names, until `look`
    /// breaks with something or the deadline has passed. What was found rests on memory alone.
    pub fn wait_for<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut CoreState<C>) -> ControlFlow<T, Option<Instant>>,
    ) -> Option<T> {
        loop {
            let memory = self.current();
            let mut state = memory.state.lock();
            while !state.is_replaced {
                let look_at = match look(&mut state) {
                    ControlFlow::Break(found) => return Some(found),
                    ControlFlow::Continue(look_at) => look_at.map_or(deadline, |at| at.min(deadline)),
                };
                let is_late = memory.changed.wait_until(&mut state, look_at).timed_out();
                if is_late && Instant::now() >= deadline {
                    return match look(&mut state) {
                        ControlFlow::Break(found) => Some(found),
                        ControlFlow::Continue(_) => None,
                    };
                }
            }
        }
    }

    /// Has everybody who waits in [`Durable::wait_for`] look again.
    pub fn notify(&self) {
        self.current().notify();
    }

    fn settle(&self, memory: &Arc<SharedCore<C>>, newest: &CommitHandle) -> Result<(), StoreError> {
        newest.wait().inspect_err(|_error| {
            if self.reload(memory).is_some() {
                memory.state.lock().is_replaced = true;
                memory.changed.notify_all();
            }
        })
    }
}

impl<C, T> Pending<C, T> {
    /// Whether both were learnt from the same memory: what was learnt from one that was replaced since does not
    /// go together with it.
    pub fn is_of_same_memory<U>(&self, other: &Pending<C, U>) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }
}
