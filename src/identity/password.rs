//! Hashes and verifies passwords with Argon2id, which is slow on purpose. Never more hashes run at once than the
//! machine has cores, each in a work area that is reused, and never more wait in the queue than can be answered soon.
//!
//! A password is its text in Normalization Form C, whatever form it was typed in. The queue is shared fairly by source
//! address: sources take turns, and when the queue is full, the source with the most jobs loses its newest one. So a
//! source that sends very many passwords makes others wait for one turn of theirs, not for all of its jobs.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;

use crate::model::Token;
use crate::model::text::nfc;
use crate::net::source::{self, SourceKey};

/// Longest time that a job waits for its turn.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// The queue admits this many times the jobs that would have their turns in time at the recent hash time: some are no
/// longer needed by then, and a machine that was busy a moment ago may not be now. A job that is not reached in time
/// fails with [`PasswordError::Busy`].
const OVERCOMMIT_FACTOR: u128 = 2;
/// Limit of queued jobs, however fast the machine is.
pub const QUEUE_LENGTH_MAX: usize = 4096;
const SALT_BYTES: usize = 16;

/// The cost of one hash. The default is OWASP's: 19 MiB, two passes, one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashCost {
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
}

impl Default for HashCost {
    fn default() -> HashCost {
        HashCost { memory_kib: Params::DEFAULT_M_COST, passes: Params::DEFAULT_T_COST }
    }
}

/// Why a password was neither hashed nor verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Its turn would come too late.
    #[error("too many passwords wait to be checked: try again")]
    Busy,
    /// When its turn came, the result was no longer needed.
    #[error("what a password was to be checked for was settled meanwhile: try again")]
    NoLongerNeeded,
    /// The hash could not be computed.
    #[error("a password could not be hashed: {0}")]
    Failed(String),
}

/// Hashes and verifies passwords, a bounded number at a time.
pub struct PasswordHasher {
    argon2: Argon2<'static>,
    /// The hash of no known password, verified for users that do not exist.
    dummy_hash: String,
    workers: Arc<HashWorkers>,
}

/// The threads that compute hashes. They end when this is dropped.
struct HashWorkers {
    thread_count: usize,
    queue: Arc<HashQueue>,
}

/// The queue of the worker threads. Each of them has a work area of its own: memory allocators keep what a thread has
/// used once, and a hash uses far more than anything else that a connection's thread does.
struct HashQueue {
    state: Mutex<HashQueueState>,
    job_added: Condvar,
}

struct HashQueueState {
    /// The jobs of each source that has any, oldest first.
    jobs: HashMap<SourceKey, VecDeque<HashJob>>,
    /// Those sources in the order of their turns.
    turns: VecDeque<SourceKey>,
    queued: usize,
    running: usize,
    /// The average time of recent hashes.
    recent_hash_time: Duration,
    is_closed: bool,
}

/// One queued password. If it is dropped, the caller gets [`PasswordError::Busy`].
struct HashJob {
    argon2: Argon2<'static>,
    task: HashTask,
    is_still_needed: Box<dyn FnOnce() -> bool + Send>,
    queued_at: Instant,
    result_sender: Sender<Result<HashOutput, PasswordError>>,
}

enum HashTask {
    Hash(String),
    /// Whether one of the texts has that hash.
    Verify(Vec<String>, String),
    #[cfg(test)]
    Test(Box<dyn FnOnce() + Send>),
}

#[derive(Debug, PartialEq, Eq)]
enum HashOutput {
    Hash(String),
    Matches(bool),
}

impl HashQueueState {
    /// How many jobs may wait so that the last one gets its turn in time.
    fn length_max(&self, thread_count: usize) -> usize {
        let turns =
            OVERCOMMIT_FACTOR * WAIT_MAX.as_nanos() / self.recent_hash_time.as_nanos().max(1) * thread_count as u128;
        usize::try_from(turns).unwrap_or(QUEUE_LENGTH_MAX).clamp(thread_count, QUEUE_LENGTH_MAX)
    }

    /// Adds a job if there is room: a source may fill the whole queue while only it waits, and half of it while others
    /// do too. If the queue is full, the source with the most jobs loses its newest one, if it has more than this
    /// source would have.
    fn push(&mut self, source: SourceKey, job: HashJob, thread_count: usize) -> Result<(), PasswordError> {
        let length_max = self.length_max(thread_count);
        let own = self.jobs.get(&source).map_or(0, VecDeque::len);
        let is_alone = own == self.queued;
        if !is_alone && own >= length_max.div_ceil(2) {
            return Err(PasswordError::Busy);
        }
        if self.queued >= length_max {
            let busiest = self.jobs.iter().map(|(source, jobs)| (jobs.len(), *source)).max_by_key(|(count, _)| *count);
            match busiest {
                Some((count, busiest)) if busiest != source && count > own + 1 => self.drop_newest(busiest),
                _ => return Err(PasswordError::Busy),
            }
        }
        let jobs = self.jobs.entry(source).or_default();
        if jobs.is_empty() {
            self.turns.push_back(source);
        }
        jobs.push_back(job);
        self.queued += 1;
        Ok(())
    }

    /// Drops the newest job of a source without an answer.
    fn drop_newest(&mut self, source: SourceKey) {
        let Some(jobs) = self.jobs.get_mut(&source) else { return };
        self.queued -= usize::from(jobs.pop_back().is_some());
        if jobs.is_empty() {
            self.jobs.remove(&source);
            self.turns.retain(|other| *other != source);
        }
    }

    /// The oldest job of the source whose turn it is.
    fn pop(&mut self) -> Option<HashJob> {
        let source = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&source)?;
        let job = jobs.pop_front()?;
        self.queued -= 1;
        if jobs.is_empty() {
            self.jobs.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        Some(job)
    }
}

impl PasswordHasher {
    /// A hasher with the threads that all hashers of the process share: one per core.
    ///
    /// # Errors
    /// A cost that Argon2 does not allow, or no memory or thread for it.
    pub fn with_shared_threads(cost: HashCost) -> Result<PasswordHasher, PasswordError> {
        static SHARED: Mutex<Option<Arc<HashWorkers>>> = Mutex::new(None);
        let mut shared = SHARED.lock();
        let workers = match &*shared {
            Some(workers) => Arc::clone(workers),
            None => {
                let cores = thread::available_parallelism().map_or(1, usize::from);
                Arc::clone(shared.insert(Arc::new(HashWorkers::start(cores)?)))
            }
        };
        drop(shared);
        PasswordHasher::with_workers(cost, workers)
    }

    /// A hasher with `thread_count` threads of its own.
    ///
    /// # Errors
    /// A cost that Argon2 does not allow, or no memory or thread for it.
    pub fn with_own_threads(cost: HashCost, thread_count: usize) -> Result<PasswordHasher, PasswordError> {
        PasswordHasher::with_workers(cost, Arc::new(HashWorkers::start(thread_count.max(1))?))
    }

    fn with_workers(cost: HashCost, workers: Arc<HashWorkers>) -> Result<PasswordHasher, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(failed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut passwords = PasswordHasher { argon2, dummy_hash: String::new(), workers };
        // Of a random password that nobody knows. It also measures how long a hash takes here.
        let local = source::key_of(Ipv4Addr::LOCALHOST.into());
        passwords.dummy_hash = passwords.hash(Token::random().reveal(), local)?;
        Ok(passwords)
    }

    /// The text under which a password is stored (PHC: algorithm, cost, salt and hash).
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late.
    pub fn hash(&self, password: &str, source: SourceKey) -> Result<String, PasswordError> {
        self.hash_if(password, source, || true)
    }

    /// The same, unless the result is no longer needed when its turn comes: of very many requests for one name at once,
    /// all but the first need none and would only delay others.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late; [`PasswordError::NoLongerNeeded`].
    pub fn hash_if(
        &self,
        password: &str,
        source: SourceKey,
        is_still_needed: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<String, PasswordError> {
        match self.run(HashTask::Hash(nfc(password).into_owned()), source, is_still_needed)? {
            HashOutput::Hash(hash) => Ok(hash),
            HashOutput::Matches(_) => Err(failed("a check was answered")),
        }
    }

    /// Whether this is the password of the stored hash. `stored_hash` is `None` for a user that does not exist: that
    /// takes as long as a wrong password.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late.
    pub fn verify(&self, password: &str, stored_hash: Option<&str>, source: SourceKey) -> Result<bool, PasswordError> {
        self.verify_if(password, stored_hash, source, || true)
    }

    /// The same, unless the result is no longer needed when its turn comes: whoever guesses very often at once is
    /// locked out by the first failures, and the remaining requests would only delay others.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late; [`PasswordError::NoLongerNeeded`].
    pub fn verify_if(
        &self,
        password: &str,
        stored_hash: Option<&str>,
        source: SourceKey,
        is_still_needed: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<bool, PasswordError> {
        let is_known = stored_hash.is_some();
        let stored_hash = stored_hash.unwrap_or(&self.dummy_hash).to_owned();
        match self.run(HashTask::Verify(stored_forms(password), stored_hash), source, is_still_needed)? {
            HashOutput::Matches(is_right) => Ok(is_right && is_known),
            HashOutput::Hash(_) => Err(failed("a hash was answered")),
        }
    }

    /// How many hashes are being computed, and how many jobs wait.
    pub fn running_and_queued(&self) -> (usize, usize) {
        let state = self.workers.queue.state.lock();
        (state.running, state.queued)
    }

    fn run(
        &self,
        task: HashTask,
        source: SourceKey,
        is_still_needed: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<HashOutput, PasswordError> {
        self.submit(task, source, is_still_needed)?.recv().unwrap_or(Err(PasswordError::Busy))
    }

    fn submit(
        &self,
        task: HashTask,
        source: SourceKey,
        is_still_needed: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Receiver<Result<HashOutput, PasswordError>>, PasswordError> {
        let (result_sender, result) = bounded(1);
        let is_still_needed = Box::new(is_still_needed);
        let job =
            HashJob { argon2: self.argon2.clone(), task, is_still_needed, queued_at: Instant::now(), result_sender };
        let queue = &self.workers.queue;
        queue.state.lock().push(source, job, self.workers.thread_count)?;
        queue.job_added.notify_one();
        Ok(result)
    }
}

impl HashWorkers {
    fn start(thread_count: usize) -> Result<HashWorkers, PasswordError> {
        let state = HashQueueState {
            jobs: HashMap::new(),
            turns: VecDeque::new(),
            queued: 0,
            running: 0,
            recent_hash_time: Duration::ZERO,
            is_closed: false,
        };
        let queue = Arc::new(HashQueue { state: Mutex::new(state), job_added: Condvar::new() });
        let workers = HashWorkers { thread_count, queue };
        for _ in 0..thread_count {
            let queue = Arc::clone(&workers.queue);
            let compute = move || queue.run_worker();
            thread::Builder::new().name("passwords".to_owned()).spawn(compute).map_err(failed)?;
        }
        Ok(workers)
    }
}

impl Drop for HashWorkers {
    fn drop(&mut self) {
        self.queue.state.lock().is_closed = true;
        self.queue.job_added.notify_all();
    }
}

impl HashQueue {
    /// Runs one worker thread until [`HashWorkers`] is dropped.
    fn run_worker(&self) {
        let mut memory = Vec::new();
        while let Some(job) = self.next() {
            let HashJob { argon2, task, is_still_needed, queued_at, result_sender } = job;
            let is_in_time = queued_at.elapsed() <= WAIT_MAX;
            // A panic is printed by its hook; the caller learns that the job failed.
            let is_still_needed = is_in_time && panic::catch_unwind(AssertUnwindSafe(is_still_needed)).unwrap_or(false);
            let started = Instant::now();
            if is_still_needed {
                let result = panic::catch_unwind(AssertUnwindSafe(|| task.run(&argon2, &mut memory)));
                let result = result.unwrap_or_else(|_| Err(failed("the thread that computed it has panicked")));
                // The caller waits for the result; if it does not, nobody misses it.
                drop(result_sender.send(result));
            } else if is_in_time {
                drop(result_sender.send(Err(PasswordError::NoLongerNeeded)));
            }
            self.finish_job(is_still_needed.then(|| started.elapsed()));
        }
    }

    fn next(&self) -> Option<HashJob> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(job) = state.pop() {
                state.running += 1;
                return Some(job);
            }
            self.job_added.wait(&mut state);
        }
    }

    fn finish_job(&self, took: Option<Duration>) {
        let mut state = self.state.lock();
        state.running -= 1;
        // The mean of about the last eight: a machine that is busy with other things for a moment counts a little.
        state.recent_hash_time = match took {
            Some(took) if state.recent_hash_time.is_zero() => took,
            Some(took) => (state.recent_hash_time * 7 + took) / 8,
            None => state.recent_hash_time,
        };
    }
}

impl HashTask {
    fn run(self, argon2: &Argon2<'_>, memory: &mut Vec<Block>) -> Result<HashOutput, PasswordError> {
        match self {
            HashTask::Hash(password) => hash(argon2, &password, memory).map(HashOutput::Hash),
            HashTask::Verify(forms, stored_hash) => {
                let stored_hash = PasswordHash::new(&stored_hash).map_err(failed)?;
                // All of them, so that the time does not reveal which one matched.
                let mut is_right = false;
                for form in forms {
                    is_right |= matches_hash(&form, &stored_hash, memory)?;
                }
                Ok(HashOutput::Matches(is_right))
            }
            #[cfg(test)]
            HashTask::Test(run) => {
                run();
                Ok(HashOutput::Matches(true))
            }
        }
    }
}

/// The texts as which a password may have been hashed: its form C; an earlier version hashed what was typed, which on a
/// Mac is form D.
fn stored_forms(password: &str) -> Vec<String> {
    let mut forms = vec![nfc(password).into_owned()];
    for form in [password.nfd().collect(), password.to_owned()] {
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// Hashes in this work area, which grows to what the hash needs.
fn hash_into(
    argon2: &Argon2<'_>,
    password: &str,
    salt: &[u8],
    out: &mut [u8],
    memory: &mut Vec<Block>,
) -> Result<(), PasswordError> {
    let blocks = argon2.params().block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::default());
    }
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, out, &mut memory[..blocks]).map_err(failed)
}

fn hash(argon2: &Argon2<'_>, password: &str, memory: &mut Vec<Block>) -> Result<String, PasswordError> {
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| failed("the system gives no randomness"))?;
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    hash_into(argon2, password, &salt, &mut out, memory)?;
    let stored_hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(failed)?,
        salt: Some(Salt::new(&salt).map_err(failed)?),
        hash: Some(Output::new(&out).map_err(failed)?),
    };
    Ok(stored_hash.to_string())
}

/// Computes the hash at the stored cost and compares it in constant time.
fn matches_hash(password: &str, stored_hash: &PasswordHash, memory: &mut Vec<Block>) -> Result<bool, PasswordError> {
    let (Some(salt), Some(expected)) = (&stored_hash.salt, &stored_hash.hash) else {
        return Err(failed("what was kept has no hash"));
    };
    let algorithm = Algorithm::try_from(stored_hash.algorithm.as_str()).map_err(failed)?;
    // A hash without a version is from before versions were written.
    let version = stored_hash.version.map_or(Ok(Version::V0x10), Version::try_from).map_err(failed)?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(stored_hash).map_err(failed)?);
    let mut out = vec![0; expected.len()];
    hash_into(&argon2, password, salt, &mut out, memory)?;
    Ok(out.ct_eq(expected.as_bytes()).into())
}

fn failed(error: impl fmt::Display) -> PasswordError {
    PasswordError::Failed(error.to_string())
}

impl fmt::Debug for PasswordHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHasher").field("thread_count", &self.workers.thread_count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::unbounded;

    use super::*;

    const CHEAP: HashCost = HashCost { memory_kib: 8, passes: 1 };

    fn from(address: &str) -> SourceKey {
        source::key_of(address.parse().unwrap())
    }

    fn here() -> SourceKey {
        from("127.0.0.1")
    }

    /// Fills all worker threads with jobs that end only when the returned sender is dropped.
    fn hold(passwords: &PasswordHasher) -> Sender<()> {
        let (release, held) = bounded::<()>(0);
        for _ in 0..passwords.workers.thread_count {
            let held = held.clone();
            let work = HashTask::Test(Box::new(move || assert!(held.recv().is_err())));
            drop(passwords.submit(work, from("10.9.9.9"), || true).unwrap());
        }
        while passwords.running_and_queued() != (passwords.workers.thread_count, 0) {
            thread::yield_now();
        }
        release
    }

    #[test]
    fn a_password_is_kept_as_argon2id_and_told_from_others() {
        let passwords = PasswordHasher::with_own_threads(HashCost::default(), 2).unwrap();
        let stored_hash = passwords.hash("correct horse", here()).unwrap();
        assert!(stored_hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored_hash}");
        assert!(!stored_hash.contains("horse"));
        assert_ne!(stored_hash, passwords.hash("correct horse", here()).unwrap(), "each has a salt of its own");
        assert_eq!(passwords.verify("correct horse", Some(&stored_hash), here()), Ok(true));
        assert_eq!(passwords.verify("correct horsf", Some(&stored_hash), here()), Ok(false));
        assert_eq!(passwords.verify("", Some(&stored_hash), here()), Ok(false));
    }

    #[test]
    fn it_is_the_hash_that_everybody_computes() {
        use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
        let theirs = Argon2::default();
        let passwords = PasswordHasher::with_own_threads(HashCost::default(), 1).unwrap();
        let stored_hash = passwords.hash("correct horse", here()).unwrap();
        assert!(theirs.verify_password(b"correct horse", stored_hash.as_str()).is_ok(), "{stored_hash}");
        let stored_hash = theirs.hash_password(b"correct horse").unwrap().to_string();
        assert_eq!(
            passwords.verify("correct horse", Some(&stored_hash), here()),
            Ok(true),
            "as earlier versions kept it"
        );
    }

    #[test]
    fn both_forms_of_a_password_are_one_also_where_the_other_was_kept() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
        let (composed, apart) = ("Müßiggänger", "Mu\u{308}ßigga\u{308}nger");
        let as_typed = |password| hash(&passwords.argon2, password, &mut Vec::new()).unwrap();
        for stored_hash in
            [passwords.hash(composed, here()).unwrap(), passwords.hash(apart, here()).unwrap(), as_typed(apart)]
        {
            for typed in [composed, apart] {
                assert_eq!(passwords.verify(typed, Some(&stored_hash), here()), Ok(true));
            }
            assert_eq!(passwords.verify("Mussigganger", Some(&stored_hash), here()), Ok(false));
        }
        // Neither form C nor D: typed the same way, it still matches.
        let mixed = "Mu\u{308}ßiggänger";
        assert_eq!(passwords.verify(mixed, Some(&as_typed(mixed)), here()), Ok(true));
    }

    #[test]
    fn the_threads_that_compute_are_few_and_end_with_it() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 3).unwrap();
        let (told, tell) = unbounded();
        for _ in 0..20 {
            let told = told.clone();
            let work = HashTask::Test(Box::new(move || told.send(thread::current().id()).unwrap()));
            assert_eq!(passwords.run(work, here(), || true), Ok(HashOutput::Matches(true)));
        }
        let failing = passwords.run(HashTask::Test(Box::new(|| panic!("a test's panic"))), here(), || true);
        assert!(matches!(failing, Err(PasswordError::Failed(_))), "{failing:?}");
        assert!(passwords.hash("p", here()).is_ok(), "and the thread goes on");
        // Dropping the hasher drops the remaining jobs and their senders, so the receiver ends.
        drop((passwords, told));
        let threads: std::collections::HashSet<_> = tell.iter().collect();
        assert!(threads.len() <= 3 && !threads.contains(&thread::current().id()), "{threads:?}");
    }

    #[test]
    fn a_work_area_is_used_again() {
        let mut memory = Vec::new();
        let argon2 =
            |memory| Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, 1, 1, None).unwrap());
        let stored_hash = hash(&argon2(64), "p", &mut memory).unwrap();
        let (place, room) = (memory.as_ptr(), memory.capacity());
        for password in ["p", "q"] {
            let stored_hash = PasswordHash::new(&stored_hash).unwrap();
            assert_eq!(
                matches_hash(password, &stored_hash, &mut memory),
                Ok(password == "p"),
                "what was left there does not matter"
            );
        }
        hash(&argon2(8), "p", &mut memory).unwrap();
        assert_eq!((memory.as_ptr(), memory.capacity()), (place, room));
    }

    #[test]
    fn what_was_kept_at_another_cost_is_still_good() {
        let stored_hash = PasswordHasher::with_own_threads(CHEAP, 1).unwrap().hash("p", here()).unwrap();
        let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 64, passes: 2 }, 1).unwrap();
        assert_eq!(passwords.verify("p", Some(&stored_hash), here()), Ok(true));
        assert!(passwords.verify("p", Some("plain text"), here()).is_err());
    }

    #[test]
    fn an_unknown_user_has_a_hash_computed_at_the_same_cost() {
        let cost = HashCost { memory_kib: 4096, passes: 2 };
        let passwords = PasswordHasher::with_own_threads(cost, 1).unwrap();
        assert!(passwords.dummy_hash.contains("m=4096,t=2,p=1"), "{}", passwords.dummy_hash);
        assert_eq!(passwords.verify("anything", None, here()), Ok(false));
    }

    #[test]
    fn the_queue_is_as_long_as_can_be_answered_in_time() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 2).unwrap();
        let release = hold(&passwords);
        passwords.workers.queue.state.lock().recent_hash_time = Duration::from_millis(100);
        // Twice 5 s of two threads at 100 ms each.
        let waiting: Vec<_> =
            (0..200).map(|_| passwords.submit(HashTask::Hash("p".to_owned()), here(), || true).unwrap()).collect();
        assert_eq!(passwords.hash("p", here()), Err(PasswordError::Busy));
        assert_eq!(passwords.verify("p", None, here()), Err(PasswordError::Busy));
        assert_eq!(passwords.running_and_queued(), (2, 200));
        drop(release);
        for answer in waiting {
            assert!(matches!(answer.recv(), Ok(Ok(HashOutput::Hash(_)))));
        }
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn who_has_waited_too_long_is_told_and_costs_no_hash() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        let answer = passwords.submit(HashTask::Test(Box::new(|| panic!("it is computed"))), here(), || true).unwrap();
        for jobs in passwords.workers.queue.state.lock().jobs.values_mut() {
            jobs[0].queued_at -= WAIT_MAX + Duration::from_millis(1);
        }
        drop(release);
        assert!(answer.recv().is_err(), "dropped, which is Busy");
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn what_is_not_wanted_when_its_turn_comes_costs_no_hash() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        let (asked, turns) = unbounded();
        let begin = |number: usize| {
            let asked = asked.clone();
            let is_still_needed = move || {
                asked.send(number).unwrap();
                number == 2
            };
            passwords.submit(HashTask::Hash("p".to_owned()), here(), is_still_needed).unwrap()
        };
        let answers: Vec<_> = (0..4).map(begin).collect();
        assert!(turns.is_empty(), "asked when its turn comes, not before");
        drop(release);
        for (number, answer) in answers.into_iter().enumerate() {
            match answer.recv().unwrap() {
                Ok(HashOutput::Hash(_)) => assert_eq!(number, 2),
                other => assert_eq!((other, number == 2), (Err(PasswordError::NoLongerNeeded), false)),
            }
        }
        assert_eq!(turns.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn one_source_has_half_of_the_queue_while_others_wait_and_turns_are_taken() {
        let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        // Room for ten.
        passwords.workers.queue.state.lock().recent_hash_time = OVERCOMMIT_FACTOR as u32 * WAIT_MAX / 10;
        let (order, ended) = unbounded();
        let begin = |source: &str, n: usize| {
            let (order, who) = (order.clone(), (source.to_owned(), n));
            passwords.submit(HashTask::Test(Box::new(move || order.send(who).unwrap())), from(source), || true)
        };
        let many: Vec<_> = (0..10).map(|n| begin("10.0.0.1", n).unwrap()).collect();
        assert!(begin("10.0.0.1", 10).is_err(), "alone it has all of it, and no more");
        // A second source comes: the newest jobs of the first give way, and the second gets no more than half.
        let others: Vec<_> = (0..5).map(|n| begin("10.0.0.2", n).unwrap()).collect();
        assert!(begin("10.0.0.2", 5).is_err() && begin("10.0.0.1", 11).is_err());
        let third = begin("10.0.0.3", 0);
        assert!(third.is_ok(), "and there is room for a third");
        assert_eq!(passwords.running_and_queued(), (1, 10));
        drop(release);
        let answers: Vec<bool> = many.iter().chain(&others).map(|answer| answer.recv().is_ok()).collect();
        drop(order);
        let ended: Vec<(String, usize)> = ended.try_iter().collect();
        assert_eq!(answers.iter().filter(|is_ok| **is_ok).count() + 1, 10, "{answers:?}");
        // Sources take turns, and each source's oldest job comes first.
        let turn = |source: &str, n| (source.to_owned(), n);
        assert_eq!(ended[..3], [turn("10.0.0.1", 0), turn("10.0.0.2", 0), turn("10.0.0.3", 0)]);
        assert!(ended.contains(&turn("10.0.0.1", 4)) || ended.contains(&turn("10.0.0.2", 4)));
        assert!(!ended.iter().any(|(source, n)| source == "10.0.0.1" && *n >= 5));
    }
}
