//! Passwords as they are stored: Argon2id, slow on purpose, so never more at once than the machine has
//! cores for, and never more in a queue than can be answered soon.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use argon2::password_hash::{Error, PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::{Condvar, Mutex};

use crate::model::Token;

/// Most requests that wait for their turn.
pub const WAITING_MAX: usize = 64;

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
    /// Too many wait already.
    #[error("too many passwords wait to be checked: try again")]
    Busy,
    /// The hash could not be computed.
    #[error("a password could not be hashed: {0}")]
    Failed(String),
}

/// Hashes and checks passwords, a bounded number at a time.
pub struct Passwords {
    argon2: Argon2<'static>,
    /// What no password has: checked for users that do not exist.
    nobody: String,
    at_once: usize,
    gate: Mutex<Gate>,
    freed: Condvar,
    /// To the threads that compute, `at_once` of them: memory allocators keep what a thread has used once,
    /// and a hash uses far more than anything else that a connection's thread does.
    jobs: Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Gate {
    running: usize,
    waiting: usize,
}

impl Passwords {
    /// At most `at_once` hashes are computed at a time: as many as there are cores.
    ///
    /// # Errors
    /// A cost that Argon2 does not allow, or no memory for it.
    pub fn new(cost: Cost, at_once: usize) -> Result<Passwords, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(failed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        // Of a password that nobody knows, hence of nobody.
        let nobody = hash(&argon2, Token::random().reveal())?;
        let at_once = at_once.max(1);
        // Never more in it than there are turns.
        let (jobs, work): (Sender<Job>, Receiver<Job>) = unbounded();
        for _ in 0..at_once {
            let work = work.clone();
            // A panic was printed; whoever waits for that job hears that nothing came of it.
            let contained = |job: Job| drop(panic::catch_unwind(AssertUnwindSafe(job)));
            let compute = move || work.iter().for_each(contained);
            thread::Builder::new().name("passwords".to_owned()).spawn(compute).map_err(failed)?;
        }
        Ok(Passwords { argon2, nobody, at_once, gate: Mutex::default(), freed: Condvar::new(), jobs })
    }

    /// The text under which a password is kept (PHC: algorithm, cost, salt and hash).
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when [`WAITING_MAX`] wait already.
    pub fn hash(&self, password: &str) -> Result<String, PasswordError> {
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        self.compute(move || hash(&argon2, &password))
    }

    /// Whether this is the password. `kept` is none for a user that does not exist: that takes as long as
    /// a wrong password.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when [`WAITING_MAX`] wait already.
    pub fn check(&self, password: &str, kept: Option<&str>) -> Result<bool, PasswordError> {
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        let (is_known, kept) = (kept.is_some(), kept.unwrap_or(&self.nobody).to_owned());
        // The comparison of the two hashes takes the same time wherever they differ.
        self.compute(move || match argon2.verify_password(password.as_bytes(), kept.as_str()) {
            Ok(()) => Ok(is_known),
            Err(Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(failed(error)),
        })
    }

    /// Waits for a turn, and for a thread of those that compute to have done it.
    fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _turn = self.turn()?;
        let (done, result) = bounded(1);
        // Whoever waits for the result is here until it comes.
        let job = move || drop(done.send(work()));
        let gone = || failed("the thread that computes it has ended");
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }

    /// How many are computed, and how many wait.
    pub fn in_hand(&self) -> (usize, usize) {
        let gate = self.gate.lock();
        (gate.running, gate.waiting)
    }

    fn turn(&self) -> Result<Turn<'_>, PasswordError> {
        let mut gate = self.gate.lock();
        if gate.running == self.at_once {
            if gate.waiting == WAITING_MAX {
                return Err(PasswordError::Busy);
            }
            gate.waiting += 1;
            while gate.running == self.at_once {
                self.freed.wait(&mut gate);
            }
            gate.waiting -= 1;
        }
        gate.running += 1;
        Ok(Turn(self))
    }
}

/// The right to compute one hash; goes back whatever happens.
struct Turn<'p>(&'p Passwords);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.gate.lock().running -= 1;
        self.0.freed.notify_one();
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String, PasswordError> {
    Ok(argon2.hash_password(password.as_bytes()).map_err(failed)?.to_string())
}

fn failed(error: impl fmt::Display) -> PasswordError {
    PasswordError::Failed(error.to_string())
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("at_once", &self.at_once).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1 };

    #[test]
    fn a_password_is_kept_as_argon2id_and_told_from_others() {
        let passwords = Passwords::new(Cost::default(), 2).unwrap();
        let kept = passwords.hash("correct horse").unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(!kept.contains("horse"));
        assert_ne!(kept, passwords.hash("correct horse").unwrap(), "each has a salt of its own");
        assert_eq!(passwords.check("correct horse", Some(&kept)), Ok(true));
        assert_eq!(passwords.check("correct horsf", Some(&kept)), Ok(false));
        assert_eq!(passwords.check("", Some(&kept)), Ok(false));
        assert_eq!(passwords.in_hand(), (0, 0));
    }

    #[test]
    fn the_threads_that_compute_are_few_and_end_with_it() {
        let passwords = Passwords::new(CHEAP, 3).unwrap();
        let (told, tell) = unbounded();
        for _ in 0..20 {
            let told = told.clone();
            let tell = move || told.send(thread::current().id()).map_err(failed);
            passwords.compute(tell).unwrap();
        }
        drop(told);
        let failing = passwords.compute(|| -> Result<(), PasswordError> { panic!("a test's panic") });
        assert!(matches!(failing, Err(PasswordError::Failed(_))), "{failing:?}");
        let threads: std::collections::HashSet<_> = tell.iter().collect();
        assert!(threads.len() <= 3 && !threads.contains(&thread::current().id()), "{threads:?}");
    }

    #[test]
    fn what_was_kept_at_another_cost_is_still_good() {
        let kept = Passwords::new(CHEAP, 1).unwrap().hash("p").unwrap();
        let passwords = Passwords::new(Cost { memory_kib: 64, passes: 2 }, 1).unwrap();
        assert_eq!(passwords.check("p", Some(&kept)), Ok(true));
        assert!(passwords.check("p", Some("plain text")).is_err());
    }

    #[test]
    fn an_unknown_user_has_a_hash_computed_at_the_same_cost() {
        let cost = Cost { memory_kib: 4096, passes: 2 };
        let passwords = Passwords::new(cost, 1).unwrap();
        assert!(passwords.nobody.contains("m=4096,t=2,p=1"), "{}", passwords.nobody);
        assert_eq!(passwords.check("anything", None), Ok(false));
    }

    #[test]
    fn so_many_at_once_so_many_wait_and_the_rest_is_told_at_once() {
        let passwords = Arc::new(Passwords::new(CHEAP, 2).unwrap());
        // Two turns are taken, so that nothing ends while the queue fills.
        let turns = (passwords.turn().unwrap(), passwords.turn().unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let (passwords, done) = (Arc::clone(&passwords), Arc::clone(&done));
                thread::spawn(move || {
                    passwords.hash("p").unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        while passwords.in_hand() != (2, WAITING_MAX) {
            thread::yield_now();
        }
        assert_eq!(passwords.hash("p"), Err(PasswordError::Busy));
        assert_eq!(passwords.check("p", None), Err(PasswordError::Busy));
        assert_eq!(done.load(Ordering::SeqCst), 0);
        drop(turns);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(passwords.in_hand(), (0, 0));
        assert!(passwords.hash("p").is_ok());
    }
}
