//! The thread that owns a node's connection to the registry.
//!
//! All that changes what the registry knows of this node goes through it, one after the other, and each time it
//! is the store that tells what is true: so a connection that broke in the middle of something is made whole by
//! registering again, with everything that is published.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde_json::json;

use super::{Inner, NodeError, Settings, network};
use crate::model::{Name, Token};
use crate::share::client::{RegistryClient, RegistryError};
use crate::share::heartbeat::Event;
use crate::share::wire::{FileName, Files, Register};

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_millis(250);
/// For a connection, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between attempts: each twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// A connection that was there for so long has lasted.
const LASTING: Duration = Duration::from_secs(30);
/// Somebody who asks for something may hurry an attempt, but no more often than this.
const HURRIED: Duration = Duration::from_secs(1);
/// Files that go with REGISTER, whose line has a limit; the others follow one by one.
const REGISTERED_AT_ONCE: usize = 20_000;
/// How often those who watch are told of other hosts, at most.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(2);
/// Hosts that are looked at for that, at most.
const LOOK_AROUND_AT: u64 = 64;
/// Of all time, one part in so many goes to it at most.
const LOOK_AROUND_PART: u32 = 20;

/// What the thread is asked to do.
pub(super) enum Order {
    /// Take part, and say how the first attempt went.
    Begin(Sender<Result<(), NodeError>>),
    /// Make the registry know of this file what the store says.
    Sync { name: FileName, reply: Option<Sender<Result<(), NodeError>>> },
    /// Take part no more.
    End(Sender<()>),
    /// The process ends.
    Stop,
}

/// When the next attempt is due.
#[derive(Default)]
struct Retry {
    tried_at: Option<Instant>,
    connected_at: Option<Instant>,
    /// Attempts that failed since the last that did not.
    failed: u32,
    /// Connections in a row that did not last.
    short_lived: u32,
}

impl Retry {
    fn tries(&mut self, now: Instant) {
        self.tried_at = Some(now);
    }

    fn failed(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }

    fn connected(&mut self, now: Instant) {
        (self.connected_at, self.failed) = (Some(now), 0);
    }

    /// A connection that has lasted is made anew at once. One that has not may have gone to another node of the same
    /// user, and two that take it from each other must not do so all the time.
    fn lost(&mut self, now: Instant) {
        let connected_at = self.connected_at.take();
        if connected_at.is_some_and(|at| now.saturating_duration_since(at) >= LASTING) {
            *self = Retry::default();
        } else {
            self.short_lived = self.short_lived.saturating_add(1);
        }
    }

    fn wait(&self) -> Duration {
        let doubled = self.failed.max(self.short_lived).min(16);
        FIRST_WAIT.saturating_mul(1 << doubled).min(LONGEST_WAIT)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.tried_at.is_none_or(|at| now.saturating_duration_since(at) >= self.wait())
    }
}

pub(super) struct Link {
    inner: Arc<Inner>,
    retry: Retry,
    /// Transfers that the heartbeat knows of.
    transfers: usize,
    looks_around_at: Option<Instant>,
    /// At how many hosts.
    looks_at: u64,
    /// What was seen the last time.
    seen: Vec<(Name, usize)>,
}

impl Link {
    pub(super) fn new(inner: Arc<Inner>) -> Link {
        Link {
            inner,
            retry: Retry::default(),
            transfers: 0,
            looks_around_at: None,
            looks_at: LOOK_AROUND_AT,
            seen: Vec::new(),
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        loop {
            self.inner.watchers.end_expired();
            match orders.recv_timeout(TICK) {
                // Whoever asked may have gone.
                Ok(Order::Begin(reply)) => drop(reply.send(self.begin())),
                Ok(Order::Sync { name, reply }) => {
                    let done = self.sync(&name);
                    if let Some(reply) = reply {
                        let _ = reply.send(done);
                    }
                }
                Ok(Order::End(reply)) => {
                    self.end();
                    let _ = reply.send(());
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return self.leave(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.tick();
        }
    }

    /// A connection that is there serves; with another token or address it is made anew.
    fn begin(&mut self) -> Result<(), NodeError> {
        if let Some(former) = self.inner.state.lock().registry.take() {
            drop(former);
        }
        self.connect()
    }

    fn end(&mut self) {
        let registry = self.inner.state.lock().registry.take();
        if let Some(registry) = registry {
            // It would find out by itself, once nothing is heard.
            if let Err(error) = registry.unregister(&self.inner.user) {
                log::debug!("{}: unregistering: {error}", self.inner.user);
            }
            // Who has signed out shall have nothing here that gives the hostname back.
            if let Err(error) = self.inner.floor.keep.set_resume(&self.inner.user, None) {
                log::warn!("{}: {error}", self.inner.user);
            }
        }
        self.tell(Event::Disconnected);
    }

    /// The process ends: nobody is to be sent here in vain. The secret is kept, by which the next start has the
    /// hostname again, unless another has held it since.
    fn leave(&mut self) {
        let registry = self.inner.state.lock().registry.take();
        if let Some(registry) = registry.filter(|registry| !registry.has_ended())
            && let Err(error) = registry.unregister(&self.inner.user)
        {
            log::debug!("{}: leaving: {error}", self.inner.user);
        }
    }

    fn tick(&mut self) {
        if !self.inner.is_on() {
            return;
        }
        let registry = self.inner.state.lock().registry.clone();
        match registry {
            Some(registry) if registry.has_ended() => self.lost("the registry has closed the connection"),
            Some(registry) => {
                self.count_transfers();
                self.beat(&registry);
                self.look_around(&registry);
                return;
            }
            None => {}
        }
        if self.retry.is_due(Instant::now()) {
            // Kept in the state, for whoever asks; and tried again.
            let _ = self.connect();
        }
    }

    fn sync(&mut self, name: &FileName) -> Result<(), NodeError> {
        self.inner.network.forget();
        if !self.inner.is_on() {
            return Err(NodeError::NotBegun);
        }
        let registry = self.inner.state.lock().registry.clone();
        let Some(registry) = registry.filter(|registry| !registry.is_over()) else {
            if self.retry.failed > 0 && self.retry.tried_at.is_some_and(|at| at.elapsed() < HURRIED) {
                return Err(self.inner.away());
            }
            // With everything that is published, so with this.
            return self.connect();
        };
        let tracked = self.inner.files.get(name)?;
        let done = match tracked.filter(|tracked| tracked.is_published) {
            Some(tracked) => registry.publish(&self.inner.user, name, &tracked.entry()),
            None => match registry.unpublish(&self.inner.user, name) {
                Err(RegistryError::Refused(reason)) => match registry.request(name) {
                    // It never knew of it.
                    Ok(hosts) if hosts.iter().all(|host| host.hostname != self.inner.user) => {
                        log::debug!("{}: unpublishing {name}: {reason}", self.inner.user);
                        Ok(())
                    }
                    // It still shows it: it is told everything anew, and this is not among it.
                    Ok(_) => {
                        self.lost(&format!("the registry did not hide {name}: {reason}"));
                        return self.connect();
                    }
                    Err(error) => Err(error),
                },
                done => done,
            },
        };
        match done {
            Ok(()) => Ok(()),
            Err(RegistryError::Refused(reason)) if !registry.is_over() => Err(NodeError::Refused(reason)),
            Err(error) => {
                self.lost(&error.to_string());
                self.connect()
            }
        }
    }

    fn connect(&mut self) -> Result<(), NodeError> {
        self.retry.tries(Instant::now());
        self.tell(Event::Connecting);
        match self.try_connect() {
            Ok((registry, addr)) => {
                self.retry.connected(Instant::now());
                {
                    let mut state = self.inner.state.lock();
                    (state.registry, state.registry_addr, state.why_not) = (Some(Arc::new(registry)), Some(addr), None);
                }
                self.inner.network.forget();
                self.tell(Event::Connected);
                log::info!("{}: registered at {addr}, peer port {}", self.inner.user, self.inner.port);
                Ok(())
            }
            Err(error) => {
                self.retry.failed();
                let why = error.to_string();
                let is_news = {
                    let mut state = self.inner.state.lock();
                    state.why_not.replace(why.clone()) != Some(why.clone())
                };
                if is_news {
                    log::warn!("{}: {why}; trying again", self.inner.user);
                }
                self.tell(Event::Disconnected);
                Err(error)
            }
        }
    }

    fn try_connect(&self) -> Result<(RegistryClient, SocketAddr), NodeError> {
        let inner = &*self.inner;
        let (registry, addr) = dial(&inner.settings, TIMEOUT)?;
        let away = |why: &dyn std::fmt::Display| away(&inner.settings, why);
        let published = inner.files.list(true)?;
        let (first, others) = published.split_at(published.len().min(REGISTERED_AT_ONCE));
        let files: Files = first.iter().map(|file| (file.name.clone(), Arc::new(file.entry()))).collect();
        let register = self.registration(files)?;
        let resume = register_with_what_is_there(&registry, register).map_err(|error| match error {
            // One that is too busy is as good as away.
            RegistryError::Refused(reason) if !registry.is_over() => NodeError::Refused(reason),
            error => away(&error),
        })?;
        if !resume.is_empty() {
            inner.floor.keep.set_resume(&inner.user, Some(&resume))?;
        }
        for file in others {
            registry.publish(&inner.user, &file.name, &file.entry()).map_err(|error| away(&error))?;
        }
        Ok((registry, addr))
    }

    fn registration(&self, files: Files) -> Result<Register, NodeError> {
        let inner = &*self.inner;
        let resume = inner.floor.keep.resume(&inner.user)?.map(Token::from_text);
        let state = inner.state.lock();
        Ok(Register {
            hostname: inner.user.clone(),
            port: inner.port,
            ip: state.advertise_ip,
            // One that was good in an earlier version may be none any more: the hostname stands for it then.
            display_name: Name::new(&state.display_name).ok(),
            files: Some(files),
            token: state.token.clone(),
            resume,
        })
    }

    fn lost(&mut self, why: &str) {
        log::info!("{}: {why}", self.inner.user);
        {
            let mut state = self.inner.state.lock();
            state.registry = None;
            state.why_not = Some(why.to_owned());
        }
        self.retry.lost(Instant::now());
        self.inner.network.forget();
        self.tell(Event::Disconnected);
    }

    fn beat(&mut self, registry: &RegistryClient) {
        let now = self.inner.floor.clock.now();
        let (due, state) = {
            let heartbeat = &self.inner.state.lock().heartbeat;
            (heartbeat.next_at(), heartbeat.state(now))
        };
        if due.is_none_or(|due| now < due) {
            return;
        }
        match registry.ping(&self.inner.user, Some(state.as_text())) {
            Ok(true) => self.tell(Event::Sent),
            // It has forgotten us: everything again.
            Ok(false) => self.lost("the registry does not know this host any more"),
            Err(error) => self.lost(&error.to_string()),
        }
    }

    /// What is sent and fetched makes the heart beat faster.
    fn count_transfers(&mut self) {
        let now = self.inner.transfers();
        for _ in self.transfers..now {
            self.tell(Event::TransferBegan);
        }
        for _ in now..self.transfers {
            self.tell(Event::TransferEnded);
        }
        self.transfers = now;
    }

    /// Tells those who watch when other hosts come, go or show something else.
    fn look_around(&mut self, registry: &RegistryClient) {
        let begun = Instant::now();
        // Where the registry tells by itself what changes, nobody has to look.
        let is_told = self.inner.network.is_followed();
        if is_told || !self.inner.watchers.any() || self.looks_around_at.is_some_and(|at| begun < at) {
            return;
        }
        // The first page stands for all: an exact answer would be the whole list every time.
        let page = registry.list(Some(0), Some(self.looks_at));
        self.looks_around_at = Some(begun + LOOK_AROUND_EVERY.max(begun.elapsed() * LOOK_AROUND_PART));
        let Ok(page) = page else {
            // It may have been too long.
            self.looks_at = (self.looks_at / 2).max(1);
            return;
        };
        self.looks_at = network::next_page(self.looks_at, network::files_of(&page)).min(LOOK_AROUND_AT);
        let seen: Vec<(Name, usize)> =
            page.registry.iter().map(|(hostname, listed)| (hostname.clone(), listed.files.len())).collect();
        if seen != self.seen {
            self.seen = seen;
            self.inner.network.forget();
            // Who it was is not known exactly: whoever watches reads the lists anew.
            self.inner.watchers.tell("reset", &json!({}));
        }
    }

    fn tell(&self, event: Event) {
        self.inner.beat(event);
    }
}

/// A connection to the registry, at the first of its addresses that answers; `timeout` is for each of its calls, too.
pub(super) fn dial(settings: &Settings, timeout: Duration) -> Result<(RegistryClient, SocketAddr), NodeError> {
    let addrs = (settings.server_host.as_str(), settings.registry_port).to_socket_addrs();
    let mut why = "it has no address".to_owned();
    for addr in addrs.map_err(|error| away(settings, &error))? {
        match RegistryClient::connect(addr, settings.pin.clone(), timeout) {
            Ok(registry) => return Ok((registry, addr)),
            Err(error) => why = error.to_string(),
        }
    }
    Err(away(settings, &why))
}

fn away(settings: &Settings, why: &dyn std::fmt::Display) -> NodeError {
    let (host, port) = (&settings.server_host, settings.registry_port);
    NodeError::Away(format!("the registry at {host}:{port} cannot be reached: {why}"))
}

/// With token and secret; where one of them has ended, with the other.
fn register_with_what_is_there(registry: &RegistryClient, register: Register) -> Result<String, RegistryError> {
    let refused = match registry.register(&register) {
        Err(RegistryError::Refused(reason)) if register.token.is_some() && register.resume.is_some() => reason,
        done => return done,
    };
    let without_token = Register { token: None, ..register.clone() };
    let without_resume = Register { resume: None, ..register };
    for part in [without_resume, without_token] {
        match registry.register(&part) {
            Err(RegistryError::Refused(_)) => {}
            done => return done,
        }
    }
    Err(RegistryError::Refused(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_made_less_often_each_time_until_a_connection_has_lasted() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut retry = Retry::default();
        assert!(retry.is_due(at(0)));
        for (now, wait) in [(0, 400), (400, 800), (1_200, 1_600), (2_800, 3_200)] {
            retry.tries(at(now));
            retry.failed();
            assert!(!retry.is_due(at(now + wait - 1)) && retry.is_due(at(now + wait)), "{now}");
        }
        (0..100).for_each(|_| retry.failed());
        assert_eq!(retry.wait(), LONGEST_WAIT);
        // One that lasted is made anew at once; and one that did not, soon.
        retry.connected(at(10_000));
        retry.lost(at(40_000));
        assert!(retry.is_due(at(40_000)));
        retry.tries(at(40_000));
        retry.connected(at(40_000));
        retry.lost(at(40_001));
        assert!(!retry.is_due(at(40_399)) && retry.is_due(at(40_400)));
    }

    #[test]
    fn two_nodes_of_one_user_do_not_take_the_connection_from_each_other_all_the_time() {
        let begun = Instant::now();
        let mut nodes = [Retry::default(), Retry::default()];
        let (mut holder, mut taken) = (None, 0);
        for tick in 0..2_400 {
            let now = begun + TICK * tick;
            for own in [0, 1] {
                if holder != Some(own) && nodes[own].is_due(now) {
                    nodes[own].tries(now);
                    nodes[own].connected(now);
                    if let Some(other) = holder.replace(own) {
                        nodes[other].lost(now);
                    }
                    taken += 1;
                }
            }
        }
        // In ten minutes; at first more often.
        assert!(taken <= 80, "{taken}");
    }
}
