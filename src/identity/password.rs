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

use crate::model::text::{distinct_spellings, nfc};
use crate::model::{Token, debug_fields};
use crate::net::source::{self, SourceKey};

/// The longest time that a job waits for its turn.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// The queue admits this many times the jobs that would have their turns in time at the recent hash time: some are no
/// longer needed by then, and a machine that was busy a moment ago may not be now. A job that is not reached in time
/// fails with [`PasswordError::Busy`].
const OVERCOMMIT_FACTOR: u128 = 2;
/// The queue is never longer, however fast the machine is.
pub const QUEUE_LENGTH_MAX: usize = 4096;
const SALT_BYTES: usize = 16;

/// The default is OWASP's: 19 MiB, two passes, one lane.
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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// The password's turn would come too late.
    #[error("too many passwords wait to be checked: try again")]
    Busy,
    /// When its turn came, the result was no longer needed.
    #[error("what a password was to be checked for was settled meanwhile: try again")]
    NoLongerNeeded,
    #[error("a password could not be hashed: {0}")]
    Failed(String),
    /// Logins of this user have failed too often; what is left of the pause.
    #[error("too many failed logins: try again in {} s", .0.as_secs() + 1)]
    LockedOut(Duration),
}

pub struct PasswordHasher {
    argon2: Argon2<'static>,
    /// The hash of no known password, verified for users that do not exist.
    dummy_hash: String,
    workers: Arc<HashWorkers>,
}

/// The threads end when this is dropped.
struct HashWorkers {
    thread_count: usize,
    queue: Arc<HashQueue>,
}

/// Each worker thread has a work area of its own: memory allocators keep what a thread has used once, and a hash uses
/// far more than anything else that a connection's thread does.
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

/// If a job is dropped, the caller gets [`PasswordError::Busy`].
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
    /// So many jobs may wait that the last one gets its turn in time.
    fn length_max(&self, thread_count: usize) -> usize {
        let turns =
            OVERCOMMIT_FACTOR * WAIT_MAX.as_nanos() / self.recent_hash_time.as_nanos().max(1) * thread_count as u128;
        usize::try_from(turns).unwrap_or(QUEUE_LENGTH_MAX).clamp(thread_count, QUEUE_LENGTH_MAX)
    }

    /// A source may fill the whole queue while only it waits, and half of it while others do too. If the queue is full,
    /// the source with the most jobs loses its newest one, if it has more than this source would have.
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

    /// The job gets no answer.
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
    /// All hashers of the process share these threads: one per core.
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

    #[cfg(test)]
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
    pub fn hash(&self, password: &str, source: SourceKey) -> Result<String, PasswordError> {
        self.hash_if(password, source, || true)
    }

    /// Fails with [`PasswordError::NoLongerNeeded`] if the result is not needed when its turn comes: of very many
    /// requests for one name at once, all but the first need none and would only delay others.
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

    /// `stored_hash` is `None` for a user that does not exist: that takes as long as a wrong password.
    pub fn verify(&self, password: &str, stored_hash: Option<&str>, source: SourceKey) -> Result<bool, PasswordError> {
        self.verify_if(password, stored_hash, source, || true)
    }

    /// Fails with [`PasswordError::NoLongerNeeded`] if the result is not needed when its turn comes: whoever guesses
    /// very often at once is locked out by the first failures, and the remaining requests would only delay others.
    pub fn verify_if(
        &self,
        password: &str,
        stored_hash: Option<&str>,
        source: SourceKey,
        is_still_needed: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<bool, PasswordError> {
        let is_known = stored_hash.is_some();
        let stored_hash = stored_hash.unwrap_or(&self.dummy_hash).to_owned();
        // An earlier version hashed what was typed, which on a Mac is form D.
        match self.run(HashTask::Verify(distinct_spellings(password), stored_hash), source, is_still_needed)? {
            HashOutput::Matches(is_right) => Ok(is_right && is_known),
            HashOutput::Hash(_) => Err(failed("a hash was answered")),
        }
    }

    #[cfg(test)]
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

/// The work area grows to what the hash needs.
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

/// Hashes at the stored cost and compares in constant time.
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

debug_fields!(PasswordHasher, |hasher| thread_count: hasher.workers.thread_count);

#[cfg(test)]
mod tests;
