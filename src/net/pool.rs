//! A bounded pool of links that are kept open for the next request.
//!
//! A link serves one request at a time and is read by the thread that asked: no other thread has to be
//! woken for an answer. A link that turns out to be dead is replaced, and the request repeated once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::counters::{Counter, Seldom};
use super::link::{Link, LinkError, Target};

/// How long a request waits for a link when all are in use.
const WAIT_FOR_LINK: Duration = Duration::from_secs(5);
/// How long a link is asked for at a door that is crowded.
const CROWDED_FOR: Duration = Duration::from_secs(2);
/// The first pause between; each is twice the one before.
const CROWDED_PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const CROWDED_PAUSE_MAX: Duration = Duration::from_millis(320);
/// A link that was not needed for so long is closed.
const RETIRE_AFTER: Duration = Duration::from_secs(60);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The other component cannot be reached, or does not answer.
    #[error("the {to} at {at} cannot be reached: {source}")]
    Away {
        /// Which component.
        to: &'static str,
        /// Where it should be, and who says so.
        at: String,
        /// Why.
        source: LinkError,
    },
    /// All links are in use, for long.
    #[error("all links to the {to} are in use")]
    Busy {
        /// Which component.
        to: &'static str,
    },
}

/// Links to one component.
pub struct Pool {
    target: Target,
    max_links: usize,
    max_waiting: usize,
    state: Mutex<State>,
    /// Told when a link is put back or has ended.
    freed: Condvar,
    counters: PoolCounters,
    complaints: Seldom,
    /// The last attempt to make a link failed.
    is_away: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Open and unused, the most recent at the back.
    idle: VecDeque<(Link, Instant)>,
    /// In use or being made.
    in_use: usize,
    waiting: usize,
}

/// What a pool did so far.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Requests asked.
    pub requests: Counter,
    /// Links made.
    pub connects: Counter,
    /// Requests repeated because their link was dead.
    pub repeats: Counter,
    /// Requests without an answer.
    pub away: Counter,
    /// Requests refused because all links were in use.
    pub busy: Counter,
}

impl PoolCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.get()),
            ("connects", self.connects.get()),
            ("repeats", self.repeats.get()),
            ("away", self.away.get()),
            ("busy", self.busy.get()),
        ]
    }
}

impl Pool {
    /// A pool without links yet: at most so many, for which at most so many requests wait.
    pub fn new(target: Target, max_links: usize, max_waiting: usize) -> Pool {
        Pool {
            target,
            max_links,
            max_waiting,
            state: Mutex::default(),
            freed: Condvar::new(),
            counters: PoolCounters::default(),
            complaints: Seldom::minutely(),
            is_away: AtomicBool::new(false),
        }
    }

    /// Sees to it that there is a link before one is needed: whoever starts learns at once that nobody is there.
    ///
    /// # Errors
    /// [`PoolError`], which has been logged.
    pub fn greet(&self) -> Result<(), PoolError> {
        let mut place = self.take_place()?;
        if place.link.is_none() {
            place.link = Some(self.connect()?);
        }
        Ok(())
    }

    /// What was counted so far.
    pub fn counters(&self) -> &PoolCounters {
        &self.counters
    }

    /// Asks and waits for the answer, which must begin within that time.
    ///
    /// # Errors
    /// [`PoolError`]. After `Away` it is unknown whether the request was done.
    pub fn ask(&self, request: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, PoolError> {
        self.send(request)?.answer(timeout)
    }

    /// Sends a request; meanwhile another may be sent elsewhere. Who has requests on two pools sends them
    /// in one order everywhere, lest two wait for each other's links.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn send(&self, request: Vec<u8>) -> Result<Asked<'_>, PoolError> {
        self.counters.requests.add(1);
        let mut place = self.take_place()?;
        let (link, is_fresh) = match place.link.take() {
            Some(link) => (link, false),
            None => (self.connect()?, true),
        };
        let mut asked = Asked { place, link, is_fresh, request, is_repeated: false };
        if let Err(error) = asked.link.ask(&asked.request) {
            asked.repeat(error)?;
        }
        Ok(asked)
    }

    /// A link that is idle, or the right to make one.
    fn take_place(&self) -> Result<Place<'_>, PoolError> {
        let mut state = self.state.lock();
        let mut give_up_at = None;
        loop {
            if let Some((link, _)) = state.idle.pop_back() {
                state.in_use += 1;
                return Ok(Place { pool: self, link: Some(link) });
            }
            if state.in_use < self.max_links {
                state.in_use += 1;
                return Ok(Place { pool: self, link: None });
            }
            let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + WAIT_FOR_LINK);
            let is_over = state.waiting >= self.max_waiting || Instant::now() >= give_up_at;
            if is_over {
                drop(state);
                self.counters.busy.add(1);
                return Err(PoolError::Busy { to: self.target.to });
            }
            state.waiting += 1;
            self.freed.wait_until(&mut state, give_up_at);
            state.waiting -= 1;
        }
    }

    /// A link; asked for again for a moment where somebody is at home and has no room, because strangers
    /// crowd the door and are about to be closed.
    fn connect(&self) -> Result<Link, PoolError> {
        let give_up_at = Instant::now() + CROWDED_FOR;
        let mut pause = CROWDED_PAUSE;
        loop {
            self.counters.connects.add(1);
            match Link::connect(&self.target) {
                Err(error) if error.is_short_of_room() && Instant::now() < give_up_at => {
                    std::thread::sleep(pause);
                    pause = (2 * pause).min(CROWDED_PAUSE_MAX);
                }
                Ok(link) => {
                    if self.is_away.swap(false, Relaxed) {
                        log::info!("the {} at {} is there", self.target.to, self.target.address);
                    }
                    return Ok(link);
                }
                Err(error) => {
                    // That it is away is said each time that it goes, whatever was said in the last minute.
                    let has_just_gone = !self.is_away.swap(true, Relaxed);
                    return Err(self.tell_away(error, has_just_gone));
                }
            }
        }
    }

    fn away(&self, source: LinkError) -> PoolError {
        self.tell_away(source, false)
    }

    fn tell_away(&self, source: LinkError, is_news: bool) -> PoolError {
        self.counters.away.add(1);
        let Target { to, address, flag, .. } = &self.target;
        let at = if flag.is_empty() { address.clone() } else { format!("{address} ({flag})") };
        let error = PoolError::Away { to, at, source };
        let is_due = self.complaints.now();
        if is_due || is_news {
            log::warn!("{error}; it is tried again");
        }
        error
    }

    /// Whatever else is idle was made before the other end died, too.
    fn drop_idle(&self) {
        let dead = std::mem::take(&mut self.state.lock().idle);
        drop(dead);
    }
}

/// A place among the links in use; given back when dropped, with its link if that is still good.
struct Place<'a> {
    pool: &'a Pool,
    link: Option<Link>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.in_use -= 1;
        if let Some(link) = self.link.take() {
            state.idle.push_back((link, Instant::now()));
        }
        let is_retired = |(_, since): &(Link, Instant)| since.elapsed() > RETIRE_AFTER;
        let retired = if state.idle.front().is_some_and(is_retired) { state.idle.pop_front() } else { None };
        let somebody_waits = state.waiting > 0;
        drop(state);
        // Closing is a system call: not under the lock.
        drop(retired);
        if somebody_waits {
            self.pool.freed.notify_one();
        }
    }
}

/// A request that was sent.
pub struct Asked<'a> {
    place: Place<'a>,
    link: Link,
    /// Just made: that it is dead says nothing of those that were there before.
    is_fresh: bool,
    request: Vec<u8>,
    is_repeated: bool,
}

impl Asked<'_> {
    /// Waits for the answer, which must begin within that time.
    ///
    /// # Errors
    /// [`PoolError`]. After `Away` it is unknown whether the request was done.
    pub fn answer(mut self, timeout: Duration) -> Result<Vec<u8>, PoolError> {
        loop {
            match self.link.answer(Instant::now() + timeout) {
                Ok(answer) => {
                    let Asked { mut place, link, .. } = self;
                    place.link = Some(link);
                    return Ok(answer);
                }
                Err(error) => self.repeat(error)?,
            }
        }
    }

    /// Asks the same again over a new link, but only once.
    fn repeat(&mut self, error: LinkError) -> Result<(), PoolError> {
        let pool = self.place.pool;
        if self.is_repeated || error.is_timeout() {
            return Err(pool.away(error));
        }
        self.is_repeated = true;
        pool.counters.repeats.add(1);
        if !std::mem::replace(&mut self.is_fresh, true) {
            pool.drop_idle();
        }
        self.link = pool.connect()?;
        self.link.ask(&self.request).map_err(|error| pool.away(error))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Pool")
            .field("to", &self.target.to)
            .field("idle", &state.idle.len())
            .field("in_use", &state.in_use)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::cluster::ClusterKey;
    use crate::net::link::tests::{echo, echo_at, target};
    use crate::net::listener::listen;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn links_are_kept_and_shared() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = Pool::new(target(&server, &key), 2, 10);
        for n in 0..10 {
            let request = format!("request {n}").into_bytes();
            assert_eq!(pool.ask(request.clone(), SOON).unwrap(), request);
        }
        assert_eq!(pool.counters().connects.get(), 1);
        let (one, other) = (pool.send(b"one".to_vec()).unwrap(), pool.send(b"other".to_vec()).unwrap());
        assert_eq!(other.answer(SOON).unwrap(), b"other");
        assert_eq!(one.answer(SOON).unwrap(), b"one");
        assert_eq!((pool.counters().connects.get(), pool.state.lock().in_use), (2, 0));
    }

    #[test]
    fn past_the_bound_requests_wait_and_past_that_it_is_busy() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = Pool::new(target(&server, &key), 1, 1);
        let first = pool.send(b"first".to_vec()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.ask(b"second".to_vec(), SOON));
            crate::net::testing::eventually(|| pool.state.lock().waiting == 1);
            assert!(matches!(pool.send(b"third".to_vec()), Err(PoolError::Busy { .. })));
            assert_eq!(first.answer(SOON).unwrap(), b"first");
            assert_eq!(waiting.join().unwrap().unwrap(), b"second");
        });
        assert_eq!(pool.counters().connects.get(), 1);
        // A request that nobody waits for any more gives its place back, but not its link, on which an
        // answer is still to come.
        drop(pool.send(b"dropped".to_vec()).unwrap());
        assert_eq!(pool.ask(b"next".to_vec(), SOON).unwrap(), b"next");
        assert_eq!(pool.counters().connects.get(), 2);
    }

    #[test]
    fn a_dead_link_is_replaced_and_the_request_repeated_once() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let address = server.local_addr();
        let pool = Pool::new(target(&server, &key), 4, 4);
        let two = [pool.send(b"a".to_vec()).unwrap(), pool.send(b"b".to_vec()).unwrap()];
        let answers = two.map(|asked| asked.answer(SOON).unwrap());
        assert_eq!(answers, [b"a", b"b"]);
        drop(server);
        let error = pool.ask(b"c".to_vec(), SOON).unwrap_err();
        assert!(matches!(error, PoolError::Away { .. }) && error.to_string().contains("cannot connect"), "{error}");
        let server = echo_at(listen(address).unwrap(), &key, None);
        assert_eq!(pool.ask(b"d".to_vec(), SOON).unwrap(), b"d");
        drop(server);
        let _server = echo_at(listen(address).unwrap(), &key, None);
        assert_eq!(pool.ask(b"e".to_vec(), SOON).unwrap(), b"e", "restarted between two requests");
        // One that kills every link it is asked over is asked twice, no more.
        let before = pool.counters().connects.get();
        assert!(matches!(pool.ask(b"close".to_vec(), SOON), Err(PoolError::Away { .. })));
        assert_eq!(pool.counters().connects.get(), before + 1);
        assert_eq!(pool.state.lock().in_use, 0);
    }

    #[test]
    fn one_that_is_not_there_yet_is_greeted_until_it_is() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = Pool::new(target(&server, &key), 1, 1);
        pool.greet().unwrap();
        pool.greet().unwrap();
        // The link that was made is there for the first request.
        assert_eq!(pool.ask(b"x".to_vec(), SOON).unwrap(), b"x");
        assert_eq!((pool.counters().connects.get(), pool.state.lock().in_use), (1, 0));
        let address = echo(&key, None).local_addr();
        let target = Target { address: address.to_string(), ..pool.target.clone() };
        let pool = Pool::new(target, 1, 1);
        let error = pool.greet().unwrap_err().to_string();
        assert!(error.contains(&format!("echo at {address} (--echo) cannot be reached")), "{error}");
        assert!(pool.is_away.load(Relaxed) && pool.state.lock().in_use == 0);
        let _server = echo_at(listen(address).unwrap(), &key, None);
        pool.greet().unwrap();
        assert!(!pool.is_away.load(Relaxed));
    }

    #[test]
    fn a_silent_component_is_not_asked_again() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = Pool::new(target(&server, &key), 4, 4);
        let error = pool.ask(b"silent".to_vec(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, PoolError::Away { .. }), "{error}");
        assert_eq!((pool.counters().repeats.get(), pool.counters().connects.get()), (0, 1));
        assert_eq!(pool.ask(b"x".to_vec(), SOON).unwrap(), b"x");
    }
}
