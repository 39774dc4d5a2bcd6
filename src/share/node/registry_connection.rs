//! The thread that owns a node's connection to the registry.
//!
//! All changes to what the registry knows of this node go through it, one after the other, and it always sends the
//! state that is in the store. So after a connection has broken in the middle of something, registering again with all
//! published files restores the registry's state.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde_json::json;

use super::{NodeError, NodeInner, NodeSettings, network};
use crate::model::{Name, Token};
use crate::net::backoff;
use crate::share::client::{RegistryClient, RegistryClientError};
use crate::share::heartbeat::HeartbeatEvent;
use crate::share::wire::{FileMap, FileName, RegisterRequest};

const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// For connecting, and for each response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The delay between attempts to connect doubles each time.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(20);
/// A connection that lasted this long is followed by a new one without delay.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// A request by the user triggers an attempt before it is due, but no more often than this.
const FORCED_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The line of REGISTER has a size limit; further files are published one by one.
const REGISTER_FILES_MAX: usize = 20_000;
/// Hosts are polled only if changes are not followed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
const POLL_HOSTS_MAX: u64 = 64;
/// Polling takes at most one part of the time in this many.
const POLL_TIME_DIVISOR: u32 = 20;

pub(super) enum RegistryCommand {
    /// Replies with the result of the first attempt.
    Join(Sender<Result<(), NodeError>>),
    /// Bring the registry's state of this file in line with the store.
    Sync {
        name: FileName,
        reply: Option<Sender<Result<(), NodeError>>>,
    },
    Leave(Sender<()>),
    Stop,
}

#[derive(Default)]
struct ReconnectBackoff {
    attempted_at: Option<Instant>,
    connected_at: Option<Instant>,
    failed_attempts: u32,
    /// Consecutive connections that lasted less than [`STABLE_AFTER`].
    short_lived: u32,
}

impl ReconnectBackoff {
    fn attempted(&mut self, now: Instant) {
        self.attempted_at = Some(now);
    }

    fn failed(&mut self) {
        self.failed_attempts = self.failed_attempts.saturating_add(1);
    }

    fn connected(&mut self, now: Instant) {
        (self.connected_at, self.failed_attempts) = (Some(now), 0);
    }

    /// Resets the delay after a stable connection. A short-lived one increases it: another node of the same user may
    /// have taken the hostname over, and the two must not keep taking it from each other.
    fn lost(&mut self, now: Instant) {
        let connected_at = self.connected_at.take();
        if connected_at.is_some_and(|at| now.saturating_duration_since(at) >= STABLE_AFTER) {
            *self = ReconnectBackoff::default();
        } else {
            self.short_lived = self.short_lived.saturating_add(1);
        }
    }

    fn delay(&self) -> Duration {
        backoff::doubled(RETRY_DELAY_MIN, self.failed_attempts.max(self.short_lived), RETRY_DELAY_MAX)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.attempted_at.is_none_or(|at| now.saturating_duration_since(at) >= self.delay())
    }
}

pub(super) struct RegistryConnection {
    inner: Arc<NodeInner>,
    backoff: ReconnectBackoff,
    /// The number that was last reported to the heartbeat.
    transfers: usize,
    next_poll_at: Option<Instant>,
    poll_page_hosts: u64,
    /// The hosts of the last poll, with their numbers of files.
    last_seen_hosts: Vec<(Name, usize)>,
}

impl RegistryConnection {
    pub(super) fn new(inner: Arc<NodeInner>) -> RegistryConnection {
        RegistryConnection {
            inner,
            backoff: ReconnectBackoff::default(),
            transfers: 0,
            next_poll_at: None,
            poll_page_hosts: POLL_HOSTS_MAX,
            last_seen_hosts: Vec::new(),
        }
    }

    pub(super) fn run(mut self, registry_commands: &Receiver<RegistryCommand>) {
        loop {
            self.inner.events.close_expired();
            match registry_commands.recv_timeout(TICK_INTERVAL) {
                Ok(RegistryCommand::Join(reply)) => {
                    // Connects anew, because token or address may have changed.
                    self.inner.state.lock().registry = None;
                    // Fails if the caller no longer waits.
                    let _ = reply.send(self.connect());
                }
                Ok(RegistryCommand::Sync { name, reply }) => {
                    let result = self.sync(&name);
                    if let Some(reply) = reply {
                        let _ = reply.send(result);
                    }
                }
                Ok(RegistryCommand::Leave(reply)) => {
                    self.leave();
                    let _ = reply.send(());
                }
                Ok(RegistryCommand::Stop) | Err(RecvTimeoutError::Disconnected) => return self.disconnect(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.tick();
        }
    }

    fn leave(&mut self) {
        let registry = self.inner.state.lock().registry.take();
        if let Some(registry) = registry {
            // If this fails, the registry drops the host once heartbeats are missing.
            if let Err(error) = registry.unregister(&self.inner.user) {
                log::debug!("{}: unregistering: {error}", self.inner.user);
            }
            // After signing out, nothing may remain here that reclaims the hostname.
            if let Err(error) = self.inner.context.store.set_resume_secret(&self.inner.user, None) {
                log::warn!("{}: {error}", self.inner.user);
            }
        }
        self.inner.handle_heartbeat_event(HeartbeatEvent::Disconnected);
    }

    /// Unregisters when the process ends, so that nobody tries to fetch from here. The resume secret stays stored: the
    /// next start reclaims the hostname with it, unless another host has held it since.
    fn disconnect(&mut self) {
        let registry = self.inner.state.lock().registry.take();
        if let Some(registry) = registry.filter(|registry| !registry.detect_disconnect())
            && let Err(error) = registry.unregister(&self.inner.user)
        {
            log::debug!("{}: leaving: {error}", self.inner.user);
        }
    }

    fn tick(&mut self) {
        if !self.inner.is_joined() {
            return;
        }
        let registry = self.inner.state.lock().registry.clone();
        match registry {
            Some(registry) if !registry.detect_disconnect() => {
                self.update_transfer_count();
                self.send_heartbeat_if_due(&registry);
                return self.poll_hosts(&registry);
            }
            Some(_) => self.connection_lost("the registry has closed the connection"),
            None => {}
        }
        if self.backoff.is_due(Instant::now()) {
            // The error is in the node's state, and another attempt follows.
            let _ = self.connect();
        }
    }

    fn sync(&mut self, name: &FileName) -> Result<(), NodeError> {
        self.inner.network.invalidate();
        if !self.inner.is_joined() {
            return Err(NodeError::NotJoined);
        }
        let registry = self.inner.state.lock().registry.clone();
        let Some(registry) = registry.filter(|registry| !registry.is_closed()) else {
            if self.backoff.failed_attempts > 0
                && self.backoff.attempted_at.is_some_and(|at| at.elapsed() < FORCED_RETRY_INTERVAL)
            {
                return Err(self.inner.registry_unreachable());
            }
            // Registering sends all published files, and so this one.
            return self.connect();
        };
        let tracked = self.inner.files.get(name)?;
        let result = match tracked.filter(|tracked| tracked.is_published) {
            Some(tracked) => registry.publish(&self.inner.user, name, &tracked.entry()),
            None => match registry.unpublish(&self.inner.user, name) {
                Err(RegistryClientError::Refused(reason)) => match registry.request(name) {
                    // The registry does not list the file: nothing to do.
                    Ok(hosts) if hosts.iter().all(|host| host.hostname != self.inner.user) => {
                        log::debug!("{}: unpublishing {name}: {reason}", self.inner.user);
                        Ok(())
                    }
                    // The registry still lists the file: register anew, without it.
                    Ok(_) => {
                        self.connection_lost(&format!("the registry did not hide {name}: {reason}"));
                        return self.connect();
                    }
                    Err(error) => Err(error),
                },
                result => result,
            },
        };
        match result {
            Ok(()) => Ok(()),
            Err(RegistryClientError::Refused(reason)) if !registry.is_closed() => {
                Err(NodeError::RegistryRefused(reason))
            }
            Err(error) => {
                self.connection_lost(&error.to_string());
                self.connect()
            }
        }
    }

    fn connect(&mut self) -> Result<(), NodeError> {
        self.backoff.attempted(Instant::now());
        self.inner.handle_heartbeat_event(HeartbeatEvent::Connecting);
        match self.try_connect() {
            Ok((registry, addr)) => {
                self.backoff.connected(Instant::now());
                {
                    let mut state = self.inner.state.lock();
                    (state.registry, state.registry_addr, state.connect_error) =
                        (Some(Arc::new(registry)), Some(addr), None);
                }
                self.inner.network.invalidate();
                self.inner.handle_heartbeat_event(HeartbeatEvent::Connected);
                log::info!("{}: registered at {addr}, peer port {}", self.inner.user, self.inner.port);
                Ok(())
            }
            Err(error) => {
                self.backoff.failed();
                let why = error.to_string();
                let former = self.inner.state.lock().connect_error.replace(why.clone());
                if former.as_ref() != Some(&why) {
                    log::warn!("{}: {why}; trying again", self.inner.user);
                }
                self.inner.handle_heartbeat_event(HeartbeatEvent::Disconnected);
                Err(error)
            }
        }
    }

    fn try_connect(&self) -> Result<(RegistryClient, SocketAddr), NodeError> {
        let inner = &*self.inner;
        let (registry, addr) = connect_to_registry(&inner.settings, TIMEOUT)?;
        let unreachable_error = |why: &dyn std::fmt::Display| unreachable_error(&inner.settings, why);
        let published = inner.files.list(true)?;
        let (first, others) = published.split_at(published.len().min(REGISTER_FILES_MAX));
        let files: FileMap = first.iter().map(|file| (file.name.clone(), Arc::new(file.entry()))).collect();
        let register = self.registration(files)?;
        let resume = register_with_available_proof(&registry, register).map_err(|error| match error {
            // A registry that closes the connection, because it is overloaded, counts as unreachable.
            RegistryClientError::Refused(reason) if !registry.is_closed() => NodeError::RegistryRefused(reason),
            error => unreachable_error(&error),
        })?;
        if !resume.is_empty() {
            inner.context.store.set_resume_secret(&inner.user, Some(&resume))?;
        }
        for file in others {
            registry.publish(&inner.user, &file.name, &file.entry()).map_err(|error| unreachable_error(&error))?;
        }
        Ok((registry, addr))
    }

    fn registration(&self, files: FileMap) -> Result<RegisterRequest, NodeError> {
        let inner = &*self.inner;
        let resume = inner.context.store.resume_secret(&inner.user)?.map(Token::from_text);
        let state = inner.state.lock();
        Ok(RegisterRequest {
            hostname: inner.user.clone(),
            port: inner.port,
            ip: state.advertise_ip,
            // A display name from an earlier version may be invalid now: then the hostname is shown instead.
            display_name: Name::new(&state.display_name).ok(),
            files: Some(files),
            token: state.token.clone(),
            resume,
        })
    }

    fn connection_lost(&mut self, why: &str) {
        log::info!("{}: {why}", self.inner.user);
        {
            let mut state = self.inner.state.lock();
            state.registry = None;
            state.connect_error = Some(why.to_owned());
        }
        self.backoff.lost(Instant::now());
        self.inner.network.invalidate();
        self.inner.handle_heartbeat_event(HeartbeatEvent::Disconnected);
    }

    fn send_heartbeat_if_due(&mut self, registry: &RegistryClient) {
        let now = self.inner.context.clock.now();
        let (due, state) = {
            let heartbeat = &self.inner.state.lock().heartbeat;
            (heartbeat.next_due_at(), heartbeat.state(now))
        };
        if due.is_none_or(|due| now < due) {
            return;
        }
        match registry.ping(&self.inner.user, Some(state.as_text())) {
            Ok(true) => self.inner.handle_heartbeat_event(HeartbeatEvent::HeartbeatSent),
            // The registry has dropped this host: register again.
            Ok(false) => self.connection_lost("the registry does not know this host any more"),
            Err(error) => self.connection_lost(&error.to_string()),
        }
    }

    /// Heartbeats are more frequent during transfers.
    fn update_transfer_count(&mut self) {
        let now = self.inner.active_transfers();
        for _ in self.transfers..now {
            self.inner.handle_heartbeat_event(HeartbeatEvent::TransferStarted);
        }
        for _ in now..self.transfers {
            self.inner.handle_heartbeat_event(HeartbeatEvent::TransferEnded);
        }
        self.transfers = now;
    }

    /// Notifies subscribers when other hosts come, go or change their number of files.
    fn poll_hosts(&mut self, registry: &RegistryClient) {
        let begun = Instant::now();
        // Not needed while changes are followed.
        let is_followed = self.inner.network.is_followed();
        if is_followed || !self.inner.events.has_subscribers() || self.next_poll_at.is_some_and(|at| begun < at) {
            return;
        }
        // Only the first page is compared: an exact result would take the whole list every time.
        let page = registry.list(Some(0), Some(self.poll_page_hosts));
        self.next_poll_at = Some(begun + POLL_INTERVAL.max(begun.elapsed() * POLL_TIME_DIVISOR));
        let Ok(page) = page else {
            // The response may have been too large.
            self.poll_page_hosts = (self.poll_page_hosts / 2).max(1);
            return;
        };
        self.poll_page_hosts =
            network::next_page_hosts(self.poll_page_hosts, network::file_count_of(&page)).min(POLL_HOSTS_MAX);
        let last_seen_hosts: Vec<(Name, usize)> =
            page.registry.iter().map(|(hostname, listed)| (hostname.clone(), listed.files.len())).collect();
        if last_seen_hosts != self.last_seen_hosts {
            self.last_seen_hosts = last_seen_hosts;
            self.inner.network.invalidate();
            // It is not known exactly what changed: subscribers are to read the lists again.
            self.inner.events.publish((), "reset", &json!({}));
        }
    }
}

/// Connects to the registry at the first of its addresses that responds. `timeout` also bounds each later call.
pub(super) fn connect_to_registry(
    settings: &NodeSettings,
    timeout: Duration,
) -> Result<(RegistryClient, SocketAddr), NodeError> {
    let addrs = (settings.server_host.as_str(), settings.registry_port).to_socket_addrs();
    let mut why = "it has no address".to_owned();
    for addr in addrs.map_err(|error| unreachable_error(settings, &error))? {
        match RegistryClient::connect(addr, settings.pin.clone(), timeout) {
            Ok(registry) => return Ok((registry, addr)),
            Err(error) => why = error.to_string(),
        }
    }
    Err(unreachable_error(settings, &why))
}

fn unreachable_error(settings: &NodeSettings, why: &dyn std::fmt::Display) -> NodeError {
    let (host, port) = (&settings.server_host, settings.registry_port);
    NodeError::RegistryUnreachable(format!("the registry at {host}:{port} cannot be reached: {why}"))
}

/// Registers with token and resume secret; if that is refused, with either of them, as the other may have expired.
fn register_with_available_proof(
    registry: &RegistryClient,
    register: RegisterRequest,
) -> Result<String, RegistryClientError> {
    let refused = match registry.register(&register) {
        Err(RegistryClientError::Refused(reason)) if register.token.is_some() && register.resume.is_some() => reason,
        result => return result,
    };
    let without_token = RegisterRequest { token: None, ..register.clone() };
    let without_resume = RegisterRequest { resume: None, ..register };
    for attempt in [without_resume, without_token] {
        match registry.register(&attempt) {
            Err(RegistryClientError::Refused(_)) => {}
            result => return result,
        }
    }
    Err(RegistryClientError::Refused(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_made_less_often_each_time_until_a_connection_has_lasted() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut backoff = ReconnectBackoff::default();
        assert!(backoff.is_due(at(0)));
        for (now, wait) in [(0, 400), (400, 800), (1_200, 1_600), (2_800, 3_200)] {
            backoff.attempted(at(now));
            backoff.failed();
            assert!(!backoff.is_due(at(now + wait - 1)) && backoff.is_due(at(now + wait)), "{now}");
        }
        (0..100).for_each(|_| backoff.failed());
        assert_eq!(backoff.delay(), RETRY_DELAY_MAX);
        // After a stable connection there is no delay; after a short-lived one, a short delay.
        backoff.connected(at(10_000));
        backoff.lost(at(40_000));
        assert!(backoff.is_due(at(40_000)));
        backoff.attempted(at(40_000));
        backoff.connected(at(40_000));
        backoff.lost(at(40_001));
        assert!(!backoff.is_due(at(40_399)) && backoff.is_due(at(40_400)));
    }

    #[test]
    fn two_nodes_of_one_user_do_not_take_the_connection_from_each_other_all_the_time() {
        let begun = Instant::now();
        let mut nodes = [ReconnectBackoff::default(), ReconnectBackoff::default()];
        let (mut holder, mut taken) = (None, 0);
        for tick in 0..2_400 {
            let now = begun + TICK_INTERVAL * tick;
            for own in [0, 1] {
                if holder != Some(own) && nodes[own].is_due(now) {
                    nodes[own].attempted(now);
                    nodes[own].connected(now);
                    if let Some(other) = holder.replace(own) {
                        nodes[other].lost(now);
                    }
                    taken += 1;
                }
            }
        }
        // In ten minutes, mostly at the beginning.
        assert!(taken <= 80, "{taken}");
    }
}
