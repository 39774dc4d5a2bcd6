//! Passwords as they are stored: Argon2id, slow on purpose, so never more at once than the machine has cores
//! for, each in a work area that is kept and used again, and never more in the queue than can be answered soon.
//!
//! A password is its text in Normalization Form C, whatever form it was typed in. The queue is shared out by
//! where the passwords come from: sources take turns, and where it is full, the one that has most of it gives
//! way. So who sends very many makes others wait for a turn of theirs, not for all of his.

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
use crate::net::source::{self, Source};

/// Longest that anybody waits for his turn.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// How many times as many are let into the queue as would have their turns in time by what a hash took lately: some
/// are not wanted any more by then, and a machine that was busy a moment ago may not be. Who hoped in vain is told so
/// when his time is up.
const HOPE: u128 = 2;
/// Most that wait, however quick the machine is.
pub const WAITING_MAX: usize = 4096;
/// Bytes of a salt.
const SALT_LENGTH: usize = 16;

/// What one hash costs. The default is OWASP's: 19 MiB, two passes, one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory of one hash.
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
}

impl Default for Cost {
    fn default() -> Cost {
        Cost { memory_kib: Params::DEFAULT_M_COST, passes: Params::DEFAULT_T_COST }
    }
}

/// Why a password was neither hashed nor checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Its turn would come too late.
    #[error("too many passwords wait to be checked: try again")]
    Busy,
    /// When its turn came nobody wanted it any more.
    #[error("what a password was to be checked for was settled meanwhile: try again")]
    NotWanted,
    /// The hash could not be computed.
    #[error("a password could not be hashed: {0}")]
    Failed(String),
}

/// Hashes and checks passwords, a bounded number at a time.
pub struct Passwords {
    argon2: Argon2<'static>,
    /// What no password has: checked for users that do not exist.
    nobody: String,
    workers: Arc<Workers>,
}

/// The threads that compute. They end when nobody needs them any more.
struct Workers {
    at_once: usize,
    queue: Arc<Queue>,
}

/// What waits for the threads that compute. Each of them has a work area of its own: memory allocators keep
/// what a thread has used once, and a hash uses far more than anything else that a connection's thread does.
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

struct Waiting {
    /// The jobs of each source that has any, oldest first.
    jobs: HashMap<Source, VecDeque<Job>>,
    /// Those sources in the order of their turns.
    turns: VecDeque<Source>,
    count: usize,
    running: usize,
    /// How long a hash took lately.
    hash_takes: Duration,
    is_closed: bool,
}

/// One password's way through the queue. Whoever asked hears [`PasswordError::Busy`] where it was dropped.
struct Job {
    argon2: Argon2<'static>,
    work: Work,
    is_wanted: Box<dyn FnOnce() -> bool + Send>,
    since: Instant,
    answer: Sender<Result<Outcome, PasswordError>>,
}

enum Work {
    Hash(String),
    /// Whether one of the texts has that hash.
    Check(Vec<String>, String),
    #[cfg(test)]
    Test(Box<dyn FnOnce() + Send>),
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Hash(String),
    IsRight(bool),
}

impl Waiting {
    /// How many may wait so that the last may have its turn in time.
    fn bound(&self, at_once: usize) -> usize {
        let turns = HOPE * WAIT_MAX.as_nanos() / self.hash_takes.as_nanos().max(1) * at_once as u128;
        usize::try_from(turns).unwrap_or(WAITING_MAX).clamp(at_once, WAITING_MAX)
    }

    /// Takes a job in, if there is room: of all where only this source waits, of half where others do too. Where
    /// all is taken, the source that has most gives way, if it has more than this one is to have.
    fn enter(&mut self, source: Source, job: Job, at_once: usize) -> Result<(), PasswordError> {
        let bound = self.bound(at_once);
        let own = self.jobs.get(&source).map_or(0, VecDeque::len);
        let is_alone = own == self.count;
        if !is_alone && own >= bound.div_ceil(2) {
            return Err(PasswordError::Busy);
        }
        if self.count >= bound {
            let most = self.jobs.iter().map(|(source, jobs)| (jobs.len(), *source)).max_by_key(|(count, _)| *count);
            match most {
                Some((count, most)) if most != source && count > own + 1 => self.take_newest(most),
                _ => return Err(PasswordError::Busy),
            }
        }
        let jobs = self.jobs.entry(source).or_default();
        if jobs.is_empty() {
            self.turns.push_back(source);
        }
        jobs.push_back(job);
        self.count += 1;
        Ok(())
    }

    /// The newest job of a source goes, unanswered.
    fn take_newest(&mut self, source: Source) {
        let Some(jobs) = self.jobs.get_mut(&source) else { return };
        self.count -= usize::from(jobs.pop_back().is_some());
        if jobs.is_empty() {
            self.jobs.remove(&source);
            self.turns.retain(|other| *other != source);
        }
    }

    /// The oldest job of the source whose turn it is.
    fn next(&mut self) -> Option<Job> {
        let source = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&source)?;
        let job = jobs.pop_front()?;
        self.count -= 1;
        if jobs.is_empty() {
            self.jobs.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        Some(job)
    }
}

impl Passwords {
    /// With the threads that all of a process share: as many as there are cores.
    ///
    /// # Errors
    /// A cost that Argon2 does not allow, or no memory or thread for it.
    pub fn sharing(cost: Cost) -> Result<Passwords, PasswordError> {
        static SHARED: Mutex<Option<Arc<Workers>>> = Mutex::new(None);
        let mut shared = SHARED.lock();
        let workers = match &*shared {
            Some(workers) => Arc::clone(workers),
            None => {
                let cores = thread::available_parallelism().map_or(1, usize::from);
                Arc::clone(shared.insert(Arc::new(Workers::start(cores)?)))
            }
        };
        drop(shared);
        Passwords::with(cost, workers)
    }

    /// With `at_once` threads of its own.
    ///
    /// # Errors
    /// A cost that Argon2 does not allow, or no memory or thread for it.
    pub fn new(cost: Cost, at_once: usize) -> Result<Passwords, PasswordError> {
        Passwords::with(cost, Arc::new(Workers::start(at_once.max(1))?))
    }

    fn with(cost: Cost, workers: Arc<Workers>) -> Result<Passwords, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(failed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut passwords = Passwords { argon2, nobody: String::new(), workers };
        // Of a password that nobody knows, hence of nobody. It also tells how long a hash takes here.
        let local = source::of(Ipv4Addr::LOCALHOST.into());
        passwords.nobody = passwords.hash(Token::random().reveal(), local)?;
        Ok(passwords)
    }

    /// The text under which a password is kept (PHC: algorithm, cost, salt and hash).
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late.
    pub fn hash(&self, password: &str, source: Source) -> Result<String, PasswordError> {
        self.hash_if(password, source, || true)
    }

    /// The same, unless it is not wanted any more when its turn comes: of very many that ask for one name at once,
    /// all but the first need none, and would only keep others waiting.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late; [`PasswordError::NotWanted`].
    pub fn hash_if(
        &self,
        password: &str,
        source: Source,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<String, PasswordError> {
        match self.ask(Work::Hash(nfc(password).into_owned()), source, is_wanted)? {
            Outcome::Hash(hash) => Ok(hash),
            Outcome::IsRight(_) => Err(failed("a check was answered")),
        }
    }

    /// Whether this is the password. `kept` is none for a user that does not exist: that takes as long as
    /// a wrong password.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late.
    pub fn check(&self, password: &str, kept: Option<&str>, source: Source) -> Result<bool, PasswordError> {
        self.check_if(password, kept, source, || true)
    }

    /// The same, unless it is not wanted any more when its turn comes: who guesses very often at once is paused by
    /// his first failures, and what he has asked beyond them would only keep others waiting.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when its turn would come too late; [`PasswordError::NotWanted`].
    pub fn check_if(
        &self,
        password: &str,
        kept: Option<&str>,
        source: Source,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<bool, PasswordError> {
        let is_known = kept.is_some();
        let kept = kept.unwrap_or(&self.nobody).to_owned();
        match self.ask(Work::Check(forms(password), kept), source, is_wanted)? {
            Outcome::IsRight(is_right) => Ok(is_right && is_known),
            Outcome::Hash(_) => Err(failed("a hash was answered")),
        }
    }

    /// How many are computed, and how many wait.
    pub fn in_hand(&self) -> (usize, usize) {
        let waiting = self.workers.queue.waiting.lock();
        (waiting.running, waiting.count)
    }

    fn ask(
        &self,
        work: Work,
        source: Source,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Outcome, PasswordError> {
        self.begin(work, source, is_wanted)?.recv().unwrap_or(Err(PasswordError::Busy))
    }

    fn begin(
        &self,
        work: Work,
        source: Source,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Receiver<Result<Outcome, PasswordError>>, PasswordError> {
        let (answer, answered) = bounded(1);
        let is_wanted = Box::new(is_wanted);
        let job = Job { argon2: self.argon2.clone(), work, is_wanted, since: Instant::now(), answer };
        let queue = &self.workers.queue;
        queue.waiting.lock().enter(source, job, self.workers.at_once)?;
        queue.filled.notify_one();
        Ok(answered)
    }
}

impl Workers {
    fn start(at_once: usize) -> Result<Workers, PasswordError> {
        let waiting = Waiting {
            jobs: HashMap::new(),
            turns: VecDeque::new(),
            count: 0,
            running: 0,
            hash_takes: Duration::ZERO,
            is_closed: false,
        };
        let queue = Arc::new(Queue { waiting: Mutex::new(waiting), filled: Condvar::new() });
        let workers = Workers { at_once, queue };
        for _ in 0..at_once {
            let queue = Arc::clone(&workers.queue);
            let compute = move || queue.compute();
            thread::Builder::new().name("passwords".to_owned()).spawn(compute).map_err(failed)?;
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.waiting.lock().is_closed = true;
        self.queue.filled.notify_all();
    }
}

impl Queue {
    /// One of the threads that compute: until [`Workers`] is dropped.
    fn compute(&self) {
        let mut area = Vec::new();
        while let Some(job) = self.next() {
            let Job { argon2, work, is_wanted, since, answer } = job;
            let is_in_time = since.elapsed() <= WAIT_MAX;
            // A panic was printed; whoever waits for that job hears that nothing came of it.
            let is_wanted = is_in_time && panic::catch_unwind(AssertUnwindSafe(is_wanted)).unwrap_or(false);
            let begun = Instant::now();
            if is_wanted {
                let done = panic::catch_unwind(AssertUnwindSafe(|| work.run(&argon2, &mut area)));
                let done = done.unwrap_or_else(|_| Err(failed("the thread that computed it has panicked")));
                // Whoever asked waits until it comes; if not, nobody misses it.
                drop(answer.send(done));
            } else if is_in_time {
                drop(answer.send(Err(PasswordError::NotWanted)));
            }
            self.done(is_wanted.then(|| begun.elapsed()));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.is_closed {
                return None;
            }
            if let Some(job) = waiting.next() {
                waiting.running += 1;
                return Some(job);
            }
            self.filled.wait(&mut waiting);
        }
    }

    fn done(&self, took: Option<Duration>) {
        let mut waiting = self.waiting.lock();
        waiting.running -= 1;
        // The mean of about the last eight: a machine that is busy with other things for a moment counts a little.
        waiting.hash_takes = match took {
            Some(took) if waiting.hash_takes.is_zero() => took,
            Some(took) => (waiting.hash_takes * 7 + took) / 8,
            None => waiting.hash_takes,
        };
    }
}

impl Work {
    fn run(self, argon2: &Argon2<'_>, area: &mut Vec<Block>) -> Result<Outcome, PasswordError> {
        match self {
            Work::Hash(password) => hash(argon2, &password, area).map(Outcome::Hash),
            Work::Check(forms, kept) => {
                let kept = PasswordHash::new(&kept).map_err(failed)?;
                // All of them, so that the time does not tell which it was.
                let mut is_right = false;
                for form in forms {
                    is_right |= has_hash(&form, &kept, area)?;
                }
                Ok(Outcome::IsRight(is_right))
            }
            #[cfg(test)]
            Work::Test(run) => {
                run();
                Ok(Outcome::IsRight(true))
            }
        }
    }
}

/// The texts that a password may have been kept as: its form C; an earlier version kept what was typed, which on
/// a Mac is form D.
fn forms(password: &str) -> Vec<String> {
    let mut forms = vec![nfc(password).into_owned()];
    for form in [password.nfd().collect(), password.to_owned()] {
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// In this work area, which grows to what the hash needs.
fn hash_into(
    argon2: &Argon2<'_>,
    password: &str,
    salt: &[u8],
    out: &mut [u8],
    area: &mut Vec<Block>,
) -> Result<(), PasswordError> {
    let blocks = argon2.params().block_count();
    if area.len() < blocks {
        area.resize(blocks, Block::default());
    }
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, out, &mut area[..blocks]).map_err(failed)
}

fn hash(argon2: &Argon2<'_>, password: &str, area: &mut Vec<Block>) -> Result<String, PasswordError> {
    let mut salt = [0; SALT_LENGTH];
    SystemRandom::new().fill(&mut salt).map_err(|_| failed("the system gives no randomness"))?;
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    hash_into(argon2, password, &salt, &mut out, area)?;
    let kept = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(failed)?,
        salt: Some(Salt::new(&salt).map_err(failed)?),
        hash: Some(Output::new(&out).map_err(failed)?),
    };
    Ok(kept.to_string())
}

/// At the cost at which it was kept. The comparison takes the same time wherever the hashes differ.
fn has_hash(password: &str, kept: &PasswordHash, area: &mut Vec<Block>) -> Result<bool, PasswordError> {
    let (Some(salt), Some(expected)) = (&kept.salt, &kept.hash) else {
        return Err(failed("what was kept has no hash"));
    };
    let algorithm = Algorithm::try_from(kept.algorithm.as_str()).map_err(failed)?;
    // Without a version it is the one before versions were written.
    let version = kept.version.map_or(Ok(Version::V0x10), Version::try_from).map_err(failed)?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(kept).map_err(failed)?);
    let mut out = vec![0; expected.len()];
    hash_into(&argon2, password, salt, &mut out, area)?;
    Ok(out.ct_eq(expected.as_bytes()).into())
}

fn failed(error: impl fmt::Display) -> PasswordError {
    PasswordError::Failed(error.to_string())
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("at_once", &self.workers.at_once).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::unbounded;

    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1 };

    fn from(address: &str) -> Source {
        source::of(address.parse().unwrap())
    }

    fn here() -> Source {
        from("127.0.0.1")
    }

    /// As many jobs as may run begin and do not end before what is returned is dropped.
    fn hold(passwords: &Passwords) -> Sender<()> {
        let (release, held) = bounded::<()>(0);
        for _ in 0..passwords.workers.at_once {
            let held = held.clone();
            let work = Work::Test(Box::new(move || assert!(held.recv().is_err())));
            drop(passwords.begin(work, from("10.9.9.9"), || true).unwrap());
        }
        while passwords.in_hand() != (passwords.workers.at_once, 0) {
            thread::yield_now();
        }
        release
    }

    #[test]
    fn a_password_is_kept_as_argon2id_and_told_from_others() {
        let passwords = Passwords::new(Cost::default(), 2).unwrap();
        let kept = passwords.hash("correct horse", here()).unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(!kept.contains("horse"));
        assert_ne!(kept, passwords.hash("correct horse", here()).unwrap(), "each has a salt of its own");
        assert_eq!(passwords.check("correct horse", Some(&kept), here()), Ok(true));
        assert_eq!(passwords.check("correct horsf", Some(&kept), here()), Ok(false));
        assert_eq!(passwords.check("", Some(&kept), here()), Ok(false));
    }

    #[test]
    fn it_is_the_hash_that_everybody_computes() {
        use argon2::password_hash::{PasswordHasher, PasswordVerifier};
        let theirs = Argon2::default();
        let passwords = Passwords::new(Cost::default(), 1).unwrap();
        let kept = passwords.hash("correct horse", here()).unwrap();
        assert!(theirs.verify_password(b"correct horse", kept.as_str()).is_ok(), "{kept}");
        let kept = theirs.hash_password(b"correct horse").unwrap().to_string();
        assert_eq!(passwords.check("correct horse", Some(&kept), here()), Ok(true), "as earlier versions kept it");
    }

    #[test]
    fn both_forms_of_a_password_are_one_also_where_the_other_was_kept() {
        let passwords = Passwords::new(CHEAP, 1).unwrap();
        let (composed, apart) = ("Müßiggänger", "Mu\u{308}ßigga\u{308}nger");
        let as_typed = |password| hash(&passwords.argon2, password, &mut Vec::new()).unwrap();
        for kept in [passwords.hash(composed, here()).unwrap(), passwords.hash(apart, here()).unwrap(), as_typed(apart)]
        {
            for typed in [composed, apart] {
                assert_eq!(passwords.check(typed, Some(&kept), here()), Ok(true));
            }
            assert_eq!(passwords.check("Mussigganger", Some(&kept), here()), Ok(false));
        }
        // Neither C nor D: who types it as then still gets in.
        let mixed = "Mu\u{308}ßiggänger";
        assert_eq!(passwords.check(mixed, Some(&as_typed(mixed)), here()), Ok(true));
    }

    #[test]
    fn the_threads_that_compute_are_few_and_end_with_it() {
        let passwords = Passwords::new(CHEAP, 3).unwrap();
        let (told, tell) = unbounded();
        for _ in 0..20 {
            let told = told.clone();
            let work = Work::Test(Box::new(move || told.send(thread::current().id()).unwrap()));
            assert_eq!(passwords.ask(work, here(), || true), Ok(Outcome::IsRight(true)));
        }
        let failing = passwords.ask(Work::Test(Box::new(|| panic!("a test's panic"))), here(), || true);
        assert!(matches!(failing, Err(PasswordError::Failed(_))), "{failing:?}");
        assert!(passwords.hash("p", here()).is_ok(), "and the thread goes on");
        // A job that ends with the last of the threads: the work that is left is dropped, and so is its sender.
        drop((passwords, told));
        let threads: std::collections::HashSet<_> = tell.iter().collect();
        assert!(threads.len() <= 3 && !threads.contains(&thread::current().id()), "{threads:?}");
    }

    #[test]
    fn a_work_area_is_used_again() {
        let mut area = Vec::new();
        let argon2 =
            |memory| Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, 1, 1, None).unwrap());
        let kept = hash(&argon2(64), "p", &mut area).unwrap();
        let (place, room) = (area.as_ptr(), area.capacity());
        for password in ["p", "q"] {
            let kept = PasswordHash::new(&kept).unwrap();
            assert_eq!(
                has_hash(password, &kept, &mut area),
                Ok(password == "p"),
                "what was left there does not matter"
            );
        }
        hash(&argon2(8), "p", &mut area).unwrap();
        assert_eq!((area.as_ptr(), area.capacity()), (place, room));
    }

    #[test]
    fn what_was_kept_at_another_cost_is_still_good() {
        let kept = Passwords::new(CHEAP, 1).unwrap().hash("p", here()).unwrap();
        let passwords = Passwords::new(Cost { memory_kib: 64, passes: 2 }, 1).unwrap();
        assert_eq!(passwords.check("p", Some(&kept), here()), Ok(true));
        assert!(passwords.check("p", Some("plain text"), here()).is_err());
    }

    #[test]
    fn an_unknown_user_has_a_hash_computed_at_the_same_cost() {
        let cost = Cost { memory_kib: 4096, passes: 2 };
        let passwords = Passwords::new(cost, 1).unwrap();
        assert!(passwords.nobody.contains("m=4096,t=2,p=1"), "{}", passwords.nobody);
        assert_eq!(passwords.check("anything", None, here()), Ok(false));
    }

    #[test]
    fn the_queue_is_as_long_as_can_be_answered_in_time() {
        let passwords = Passwords::new(CHEAP, 2).unwrap();
        let release = hold(&passwords);
        passwords.workers.queue.waiting.lock().hash_takes = Duration::from_millis(100);
        // Twice 5 s of two threads, 100 ms each.
        let waiting: Vec<_> =
            (0..200).map(|_| passwords.begin(Work::Hash("p".to_owned()), here(), || true).unwrap()).collect();
        assert_eq!(passwords.hash("p", here()), Err(PasswordError::Busy));
        assert_eq!(passwords.check("p", None, here()), Err(PasswordError::Busy));
        assert_eq!(passwords.in_hand(), (2, 200));
        drop(release);
        for answer in waiting {
            assert!(matches!(answer.recv(), Ok(Ok(Outcome::Hash(_)))));
        }
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn who_has_waited_too_long_is_told_and_costs_no_hash() {
        let passwords = Passwords::new(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        let answer = passwords.begin(Work::Test(Box::new(|| panic!("it is computed"))), here(), || true).unwrap();
        for jobs in passwords.workers.queue.waiting.lock().jobs.values_mut() {
            jobs[0].since -= WAIT_MAX + Duration::from_millis(1);
        }
        drop(release);
        assert!(answer.recv().is_err(), "dropped, which is Busy");
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn what_is_not_wanted_when_its_turn_comes_costs_no_hash() {
        let passwords = Passwords::new(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        let (asked, turns) = unbounded();
        let begin = |number: usize| {
            let asked = asked.clone();
            let is_wanted = move || {
                asked.send(number).unwrap();
                number == 2
            };
            passwords.begin(Work::Hash("p".to_owned()), here(), is_wanted).unwrap()
        };
        let answers: Vec<_> = (0..4).map(begin).collect();
        assert!(turns.is_empty(), "asked when its turn comes, not before");
        drop(release);
        for (number, answer) in answers.into_iter().enumerate() {
            match answer.recv().unwrap() {
                Ok(Outcome::Hash(_)) => assert_eq!(number, 2),
                other => assert_eq!((other, number == 2), (Err(PasswordError::NotWanted), false)),
            }
        }
        assert_eq!(turns.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(passwords.hash("p", here()).is_ok());
    }

    #[test]
    fn one_source_has_half_of_the_queue_while_others_wait_and_turns_are_taken() {
        let passwords = Passwords::new(CHEAP, 1).unwrap();
        let release = hold(&passwords);
        // Room for ten.
        passwords.workers.queue.waiting.lock().hash_takes = HOPE as u32 * WAIT_MAX / 10;
        let (order, ended) = unbounded();
        let begin = |source: &str, n: usize| {
            let (order, who) = (order.clone(), (source.to_owned(), n));
            passwords.begin(Work::Test(Box::new(move || order.send(who).unwrap())), from(source), || true)
        };
        let many: Vec<_> = (0..10).map(|n| begin("10.0.0.1", n).unwrap()).collect();
        assert!(begin("10.0.0.1", 10).is_err(), "alone it has all of it, and no more");
        // Another comes: the newest of the first give way, and it gets no more than half.
        let others: Vec<_> = (0..5).map(|n| begin("10.0.0.2", n).unwrap()).collect();
        assert!(begin("10.0.0.2", 5).is_err() && begin("10.0.0.1", 11).is_err());
        let third = begin("10.0.0.3", 0);
        assert!(third.is_ok(), "and there is room for a third");
        assert_eq!(passwords.in_hand(), (1, 10));
        drop(release);
        let answers: Vec<bool> = many.iter().chain(&others).map(|answer| answer.recv().is_ok()).collect();
        drop(order);
        let ended: Vec<(String, usize)> = ended.try_iter().collect();
        assert_eq!(answers.iter().filter(|is_ok| **is_ok).count() + 1, 10, "{answers:?}");
        // Each in its turn, the oldest of each first.
        let turn = |source: &str, n| (source.to_owned(), n);
        assert_eq!(ended[..3], [turn("10.0.0.1", 0), turn("10.0.0.2", 0), turn("10.0.0.3", 0)]);
        assert!(ended.contains(&turn("10.0.0.1", 4)) || ended.contains(&turn("10.0.0.2", 4)));
        assert!(!ended.iter().any(|(source, n)| source == "10.0.0.1" && *n >= 5));
    }
}
