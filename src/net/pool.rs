//! A bounded pool of links, which are kept open for the next request. A link serves one request at a time and is read
//! by the thread that sent the request: no other thread has to be woken for a response. A link that turns out to be
//! dead is replaced, and the request repeated once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::backoff::Backoff;
use super::counters::counters;
use super::link::{Link, LinkError, LinkTarget};
use super::log_throttle::LogThrottle;

/// How long a request waits for a link when all are in use.
const WAIT_FOR_LINK: Duration = Duration::from_secs(5);
/// How long connecting is retried while the server has no room, with pauses that double.
const CONNECT_RETRY_FOR: Duration = Duration::from_secs(2);
const CONNECT_RETRY_PAUSE: Duration = Duration::from_millis(20);
const CONNECT_RETRY_PAUSE_MAX: Duration = Duration::from_millis(320);
const IDLE_LINK_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum LinkPoolError {
    /// The other component cannot be reached or does not respond.
    #[error("the {to} at {at} cannot be reached: {source}")]
    Unavailable {
        to: &'static str,
        /// Its address, and the flag that sets it.
        at: String,
        source: LinkError,
    },
    /// Waiting for a link timed out, or too many requests wait already.
    #[error("all links to the {to} are in use")]
    Busy { to: &'static str },
}

#[derive(Debug)]
pub struct LinkPool {
    target: LinkTarget,
    max_links: usize,
    max_waiting: usize,
    state: Mutex<LinkPoolState>,
    permit_released: Condvar,
    counters: LinkPoolCounters,
    log_throttle: LogThrottle,
    is_unavailable: AtomicBool,
}

#[derive(Debug, Default)]
struct LinkPoolState {
    /// Open and unused links with the time at which they became idle, the most recent at the back.
    idle: VecDeque<(Link, Instant)>,
    /// Links in use or being connected.
    in_use: usize,
    waiting: usize,
}

counters! {
    pub struct LinkPoolCounters {
        requests,
        connects,
        /// Requests repeated because their link was dead.
        retries = "repeats",
        /// Requests without a response.
        unavailable = "away",
        busy,
    }
}

impl LinkPool {
    /// It opens at most `max_links`, for which at most `max_waiting` requests wait.
    pub fn new(target: LinkTarget, max_links: usize, max_waiting: usize) -> LinkPool {
        LinkPool {
            target,
            max_links,
            max_waiting,
            state: Mutex::default(),
            permit_released: Condvar::new(),
            counters: LinkPoolCounters::default(),
            log_throttle: LogThrottle::every_minute(),
            is_unavailable: AtomicBool::new(false),
        }
    }

    /// Connects one link ahead of the first request, so that a process learns at its start that the other component
    /// is missing.
    pub fn ensure_connected(&self) -> Result<(), LinkPoolError> {
        let mut permit = self.acquire_permit()?;
        if permit.link.is_none() {
            permit.link = Some(self.connect()?);
        }
        Ok(())
    }

    pub fn counters(&self) -> &LinkPoolCounters {
        &self.counters
    }

    /// Sends a request without waiting for the response, so that another can be sent elsewhere meanwhile. Requests on
    /// two pools must be sent in the same order everywhere, otherwise two callers could wait for each other's links.
    pub fn send(&self, request: Vec<u8>) -> Result<PendingResponse<'_>, LinkPoolError> {
        self.counters.requests.add(1);
        let mut permit = self.acquire_permit()?;
        let (link, is_fresh) = match permit.link.take() {
            Some(link) => (link, false),
            None => (self.connect()?, true),
        };
        let mut pending = PendingResponse { permit, link, is_fresh, request, is_retry: false };
        if let Err(error) = pending.link.send_request(&pending.request) {
            pending.retry(error)?;
        }
        Ok(pending)
    }

    /// An idle link, or the right to connect one.
    fn acquire_permit(&self) -> Result<LinkPermit<'_>, LinkPoolError> {
        let mut state = self.state.lock();
        let mut give_up_at = None;
        loop {
            let idle = state.idle.pop_back();
            if idle.is_some() || state.in_use < self.max_links {
                state.in_use += 1;
                return Ok(LinkPermit { pool: self, link: idle.map(|(link, _)| link) });
            }
            let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + WAIT_FOR_LINK);
            if state.waiting >= self.max_waiting || Instant::now() >= give_up_at {
                drop(state);
                self.counters.busy.add(1);
                return Err(LinkPoolError::Busy { to: self.target.server_name });
            }
            state.waiting += 1;
            self.permit_released.wait_until(&mut state, give_up_at);
            state.waiting -= 1;
        }
    }

    /// While the server is there but has no room, because unauthenticated clients occupy it and are about to be
    /// evicted, it retries for a moment.
    fn connect(&self) -> Result<Link, LinkPoolError> {
        let give_up_at = Instant::now() + CONNECT_RETRY_FOR;
        let mut backoff = Backoff::new(CONNECT_RETRY_PAUSE, CONNECT_RETRY_PAUSE_MAX);
        loop {
            self.counters.connects.add(1);
            match Link::connect(&self.target) {
                Err(error) if error.is_busy() && Instant::now() < give_up_at => {
                    std::thread::sleep(backoff.next_pause());
                }
                Ok(link) => {
                    if self.is_unavailable.swap(false, Relaxed) {
                        log::info!("the {} at {} is there", self.target.server_name, self.target.address);
                    }
                    return Ok(link);
                }
                Err(error) => {
                    // Becoming unavailable is logged each time, whatever the throttle says.
                    let has_just_gone = !self.is_unavailable.swap(true, Relaxed);
                    return Err(self.unavailable(error, has_just_gone));
                }
            }
        }
    }

    fn unavailable(&self, source: LinkError, is_news: bool) -> LinkPoolError {
        self.counters.unavailable.add(1);
        let LinkTarget { server_name: to, address, address_flag: flag, .. } = &self.target;
        let at = if flag.is_empty() { address.clone() } else { format!("{address} ({flag})") };
        let error = LinkPoolError::Unavailable { to, at, source };
        let is_due = self.log_throttle.should_log();
        if is_due || is_news {
            log::warn!("{error}; it is tried again");
        }
        error
    }

    /// Closes all idle links: they were connected before the server ended, too.
    fn close_idle(&self) {
        let dead = std::mem::take(&mut self.state.lock().idle);
        drop(dead);
    }
}

/// The right to use one link. When dropped it is returned, with its link if that is still usable.
struct LinkPermit<'a> {
    pool: &'a LinkPool,
    link: Option<Link>,
}

impl Drop for LinkPermit<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.in_use -= 1;
        if let Some(link) = self.link.take() {
            state.idle.push_back((link, Instant::now()));
        }
        let is_retired = |(_, since): &(Link, Instant)| since.elapsed() > IDLE_LINK_TIMEOUT;
        let retired = if state.idle.front().is_some_and(is_retired) { state.idle.pop_front() } else { None };
        let somebody_waits = state.waiting > 0;
        drop(state);
        // Closing is a system call: not under the lock.
        drop(retired);
        if somebody_waits {
            self.pool.permit_released.notify_one();
        }
    }
}

pub struct PendingResponse<'a> {
    permit: LinkPermit<'a>,
    link: Link,
    /// The link was connected for this request: that it is dead says nothing about the idle ones.
    is_fresh: bool,
    request: Vec<u8>,
    is_retry: bool,
}

impl PendingResponse<'_> {
    /// The first byte must come within `timeout`. After `Unavailable` it is unknown whether the request was executed.
    pub fn wait(mut self, timeout: Duration) -> Result<Vec<u8>, LinkPoolError> {
        loop {
            match self.link.read_response(Instant::now() + timeout) {
                Ok(response) => {
                    let PendingResponse { mut permit, link, .. } = self;
                    permit.link = Some(link);
                    return Ok(response);
                }
                Err(error) => self.retry(error)?,
            }
        }
    }

    /// Sends the request over a new link, but only once.
    fn retry(&mut self, error: LinkError) -> Result<(), LinkPoolError> {
        let pool = self.permit.pool;
        if self.is_retry || error.is_timeout() {
            return Err(pool.unavailable(error, false));
        }
        self.is_retry = true;
        pool.counters.retries.add(1);
        if !std::mem::replace(&mut self.is_fresh, true) {
            pool.close_idle();
        }
        self.link = pool.connect()?;
        self.link.send_request(&self.request).map_err(|error| pool.unavailable(error, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::cluster::ClusterKey;
    use crate::net::link::tests::{echo, echo_at, target};
    use crate::net::listener::listen;

    const SOON: Duration = Duration::from_secs(10);

    fn request(pool: &LinkPool, request: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, LinkPoolError> {
        pool.send(request)?.wait(timeout)
    }

    #[test]
    fn links_are_kept_and_shared() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = LinkPool::new(target(&server, &key), 2, 10);
        for n in 0..10 {
            let text = format!("request {n}").into_bytes();
            assert_eq!(request(&pool, text.clone(), SOON).unwrap(), text);
        }
        assert_eq!(pool.counters().connects.get(), 1);
        let (one, other) = (pool.send(b"one".to_vec()).unwrap(), pool.send(b"other".to_vec()).unwrap());
        assert_eq!(other.wait(SOON).unwrap(), b"other");
        assert_eq!(one.wait(SOON).unwrap(), b"one");
        assert_eq!((pool.counters().connects.get(), pool.state.lock().in_use), (2, 0));
    }

    #[test]
    fn past_the_bound_requests_wait_and_past_that_it_is_busy() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = LinkPool::new(target(&server, &key), 1, 1);
        let first = pool.send(b"first".to_vec()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| request(&pool, b"second".to_vec(), SOON));
            crate::net::testing::eventually(|| pool.state.lock().waiting == 1);
            assert!(matches!(pool.send(b"third".to_vec()), Err(LinkPoolError::Busy { .. })));
            assert_eq!(first.wait(SOON).unwrap(), b"first");
            assert_eq!(waiting.join().unwrap().unwrap(), b"second");
        });
        assert_eq!(pool.counters().connects.get(), 1);
        // An abandoned request returns its permit, but not its link, on which its response is still to come.
        drop(pool.send(b"dropped".to_vec()).unwrap());
        assert_eq!(request(&pool, b"next".to_vec(), SOON).unwrap(), b"next");
        assert_eq!(pool.counters().connects.get(), 2);
    }

    #[test]
    fn a_dead_link_is_replaced_and_the_request_repeated_once() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let address = server.local_addr();
        let pool = LinkPool::new(target(&server, &key), 4, 4);
        let two = [pool.send(b"a".to_vec()).unwrap(), pool.send(b"b".to_vec()).unwrap()];
        let answers = two.map(|pending| pending.wait(SOON).unwrap());
        assert_eq!(answers, [b"a", b"b"]);
        drop(server);
        let error = request(&pool, b"c".to_vec(), SOON).unwrap_err();
        assert!(
            matches!(error, LinkPoolError::Unavailable { .. }) && error.to_string().contains("cannot connect"),
            "{error}"
        );
        let server = echo_at(listen(address).unwrap(), &key, None);
        assert_eq!(request(&pool, b"d".to_vec(), SOON).unwrap(), b"d");
        drop(server);
        let _server = echo_at(listen(address).unwrap(), &key, None);
        assert_eq!(request(&pool, b"e".to_vec(), SOON).unwrap(), b"e", "restarted between two requests");
        // One that kills every link it is asked over is asked twice, no more.
        let before = pool.counters().connects.get();
        assert!(matches!(request(&pool, b"close".to_vec(), SOON), Err(LinkPoolError::Unavailable { .. })));
        assert_eq!(pool.counters().connects.get(), before + 1);
        assert_eq!(pool.state.lock().in_use, 0);
    }

    #[test]
    fn one_that_is_not_there_yet_is_greeted_until_it_is() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = LinkPool::new(target(&server, &key), 1, 1);
        pool.ensure_connected().unwrap();
        pool.ensure_connected().unwrap();
        // The link that was made is there for the first request.
        assert_eq!(request(&pool, b"x".to_vec(), SOON).unwrap(), b"x");
        assert_eq!((pool.counters().connects.get(), pool.state.lock().in_use), (1, 0));
        let address = echo(&key, None).local_addr();
        let target = LinkTarget { address: address.to_string(), ..pool.target.clone() };
        let pool = LinkPool::new(target, 1, 1);
        let error = pool.ensure_connected().unwrap_err().to_string();
        assert!(error.contains(&format!("echo at {address} (--echo) cannot be reached")), "{error}");
        assert!(pool.is_unavailable.load(Relaxed) && pool.state.lock().in_use == 0);
        let _server = echo_at(listen(address).unwrap(), &key, None);
        pool.ensure_connected().unwrap();
        assert!(!pool.is_unavailable.load(Relaxed));
    }

    #[test]
    fn a_silent_component_is_not_asked_again() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let pool = LinkPool::new(target(&server, &key), 4, 4);
        let error = request(&pool, b"silent".to_vec(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, LinkPoolError::Unavailable { .. }), "{error}");
        assert_eq!((pool.counters().retries.get(), pool.counters().connects.get()), (0, 1));
        assert_eq!(request(&pool, b"x".to_vec(), SOON).unwrap(), b"x");
    }
}
