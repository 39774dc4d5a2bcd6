//! The thread that follows changes on the network while somebody watches. It long-polls the registry on a connection of
//! its own, notifies subscribers of each change, and applies the changes to the cached snapshot of the network, so that
//! the whole list need not be read again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::json;

use super::{NodeInner, registry_connection};
use crate::share::client::{RegistryClient, RegistryClientError};
use crate::share::wire::{ChangeEntry, ChangesResponse, Seconds};

/// How long the registry holds a poll until the first change, seconds.
const LONG_POLL_S: u32 = 20;
/// For connecting and for each response; longer than a poll is held.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it looks for subscribers without a wake-up.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// It continues for this long after the last subscriber has left.
const LINGER: Duration = Duration::from_secs(30);
/// After a failed connection.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// After a registry that does not support this: an older version, which may be upgraded.
const UNSUPPORTED_RETRY_DELAY: Duration = Duration::from_secs(60);
/// With more changes at once, subscribers are told to read the lists again.
const NOTIFIED_CHANGES_MAX: usize = 100;
/// A subscriber that had to wait longer than this for the first poll may have read outdated lists.
const PROMPT_FOLLOW_MAX: Duration = Duration::from_millis(300);

pub(super) struct ChangeFollower {
    inner: Arc<NodeInner>,
    /// Number of the last change received; none before the first response. It is kept while nobody watches, so that a
    /// subscriber who comes back can continue.
    version: Option<u64>,
    is_up_to_date: bool,
    last_watched_at: Option<Instant>,
    /// Since when subscribers have been waiting for the first poll.
    waiting_since: Option<Instant>,
}

impl ChangeFollower {
    pub(super) fn new(inner: Arc<NodeInner>) -> ChangeFollower {
        ChangeFollower { inner, version: None, is_up_to_date: false, last_watched_at: None, waiting_since: None }
    }

    /// Runs until the node stops. A wake-up means that there may be a new subscriber.
    pub(super) fn run(mut self, wakeups: &Receiver<()>) {
        while !self.inner.is_stopping.load(Relaxed) {
            let pause = if self.should_follow() {
                self.waiting_since.get_or_insert_with(Instant::now);
                self.follow()
            } else {
                self.waiting_since = None;
                IDLE_CHECK_INTERVAL
            };
            self.stop_following();
            if !pause.is_zero() && wakeups.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn should_follow(&mut self) -> bool {
        if self.inner.events.has_subscribers() {
            self.last_watched_at = Some(Instant::now());
        }
        // A page that is reloaded or was disconnected comes back soon.
        self.inner.is_joined() && self.last_watched_at.is_some_and(|at| at.elapsed() < LINGER)
    }

    /// Follows changes until that fails or is no longer needed; returns how long to wait then.
    fn follow(&mut self) -> Duration {
        // An unreachable registry is detected and reported by the node's main connection.
        if self.inner.registry().is_err() {
            return RETRY_DELAY;
        }
        let registry = match registry_connection::connect_to_registry(&self.inner.settings, TIMEOUT) {
            Ok((registry, _)) => Arc::new(registry),
            Err(error) => {
                log::debug!("{}: following the registry: {error}", self.inner.user);
                return RETRY_DELAY;
            }
        };
        *self.inner.follower_connection.lock() = Some(Arc::clone(&registry));
        // Checked after the connection is stored: whoever stops the node either finds the connection there, or is
        // noticed here.
        while self.should_follow() && !self.inner.is_stopping.load(Relaxed) {
            match self.poll_changes(&registry) {
                Ok(()) => {}
                // The registry does not know the action, and lists those that it knows.
                Err(RegistryClientError::Refused(reason)) if reason.starts_with("action") => {
                    log::debug!("{}: the registry tells of no changes: {reason}", self.inner.user);
                    return UNSUPPORTED_RETRY_DELAY;
                }
                Err(error) => {
                    log::debug!("{}: following the registry: {error}", self.inner.user);
                    return RETRY_DELAY;
                }
            }
        }
        Duration::ZERO
    }

    fn poll_changes(&mut self, registry: &RegistryClient) -> Result<(), RegistryClientError> {
        let wait = Seconds::whole(if self.is_up_to_date { LONG_POLL_S } else { 0 });
        let ChangesResponse { version, changes } = registry.changes(self.version, wait)?;
        let had_version = self.version.replace(version).is_some();
        let inner = &self.inner;
        match changes {
            Some(changes) if self.is_up_to_date => {
                inner.network.apply(&changes);
                self.notify(&changes);
            }
            // Changes from before: it is unknown which of them the cached snapshot contains already.
            Some(changes) => {
                self.notify(&changes);
                self.is_up_to_date = changes.is_empty();
                if self.is_up_to_date {
                    inner.network.begin_following();
                }
            }
            None => {
                self.is_up_to_date = true;
                inner.network.begin_following();
                let is_late = self.waiting_since.is_some_and(|since| since.elapsed() > PROMPT_FOLLOW_MAX);
                if had_version || is_late {
                    inner.events.publish((), "reset", &json!({}));
                }
            }
        }
        self.waiting_since = None;
        Ok(())
    }

    fn notify(&self, changes: &[ChangeEntry]) {
        let inner = &self.inner;
        if changes.len() > NOTIFIED_CHANGES_MAX {
            return inner.events.publish((), "reset", &json!({}));
        }
        for changed in changes {
            let (ip, port) = changed.addr;
            match &changed.fname {
                None => {
                    let peer = json!({
                        "hostname": changed.hostname, "online": !changed.is_host_gone(),
                        "display_name": changed.display_name, "ip": ip, "port": port,
                    });
                    inner.events.publish((), "peers", &peer);
                }
                // Changes to this node's own files have been notified when they happened.
                Some(_) if changed.hostname == inner.user => {}
                Some(fname) => {
                    let entry = changed.entry.as_ref().and_then(Option::as_ref);
                    let file = json!({
                        "fname": fname, "hostname": changed.hostname, "entry": entry,
                        "owner_name": changed.display_name, "owner_ip": ip, "owner_port": port,
                    });
                    inner.events.publish((), "files", &file);
                }
            }
        }
    }

    fn stop_following(&mut self) {
        if let Some(registry) = self.inner.follower_connection.lock().take() {
            registry.close();
        }
        self.inner.network.stop_following();
        self.is_up_to_date = false;
    }
}
