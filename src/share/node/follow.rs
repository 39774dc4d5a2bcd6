//! The thread that follows what changes on the network, as long as somebody watches: over a connection of its own, on
//! which the registry tells of each change when it happens. What it hears goes to whoever watches, and keeps the list of
//! the network's files as it is, so that nobody has to read all of it again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::json;

use super::{Inner, link};
use crate::share::client::{RegistryClient, RegistryError};
use crate::share::wire::{Changed, Followed, Seconds};

/// How long the registry is to wait for the first change, seconds.
const WAIT_S: u32 = 20;
/// For a connection, and for each answer: the registry takes its time before it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it looks whether somebody watches, where nothing wakes it.
const IDLE: Duration = Duration::from_secs(1);
/// How long it goes on after the last has gone who watched.
const GOES_ON_FOR: Duration = Duration::from_secs(30);
/// After a connection that came to nothing.
const RETRY: Duration = Duration::from_secs(1);
/// After a registry that does not know how: an older one, that may be replaced.
const RETRY_OLDER: Duration = Duration::from_secs(60);
/// With more changes at once, whoever watches reads the lists anew.
const TOLD_MAX: usize = 100;
/// Whoever watches for longer before it follows may have read lists of before.
const AT_ONCE: Duration = Duration::from_millis(300);

pub(super) struct Follow {
    inner: Arc<Inner>,
    /// The number of the last change that was heard of; none before the first answer. It stays good for a while when
    /// nobody watches, and so does whatever was told: who comes back goes on where he was.
    version: Option<u64>,
    /// Everything up to now was heard of.
    is_abreast: bool,
    /// When somebody watched last.
    watched_at: Option<Instant>,
    /// Since when somebody watches and is told nothing.
    is_late_since: Option<Instant>,
}

impl Follow {
    pub(super) fn new(inner: Arc<Inner>) -> Follow {
        Follow { inner, version: None, is_abreast: false, watched_at: None, is_late_since: None }
    }

    /// Until the node stops. A wake-up says that there may be something to do.
    pub(super) fn run(mut self, wakes: &Receiver<()>) {
        while !self.inner.is_stopping.load(Relaxed) {
            let pause = if self.is_wanted() {
                self.is_late_since.get_or_insert_with(Instant::now);
                self.follow()
            } else {
                self.is_late_since = None;
                IDLE
            };
            self.let_go();
            if !pause.is_zero() && wakes.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn is_wanted(&mut self) -> bool {
        if self.inner.watchers.any() {
            self.watched_at = Some(Instant::now());
        }
        // A page that is loaded anew, or was cut off, is back at once.
        self.inner.is_on() && self.watched_at.is_some_and(|at| at.elapsed() < GOES_ON_FOR)
    }

    /// Follows for as long as that goes well; how long to wait then.
    fn follow(&mut self) -> Duration {
        // Where the registry cannot be reached, the other connection's thread finds out, and says so.
        if self.inner.registry().is_err() {
            return RETRY;
        }
        let registry = match link::dial(&self.inner.settings, TIMEOUT) {
            Ok((registry, _)) => Arc::new(registry),
            Err(error) => {
                log::debug!("{}: following the registry: {error}", self.inner.user);
                return RETRY;
            }
        };
        *self.inner.following.lock() = Some(Arc::clone(&registry));
        // Looked at behind that: whoever stops the node either sees the connection, or is seen here.
        while self.is_wanted() && !self.inner.is_stopping.load(Relaxed) {
            match self.hear(&registry) {
                Ok(()) => {}
                // It names what it knows.
                Err(RegistryError::Refused(reason)) if reason.starts_with("action") => {
                    log::debug!("{}: the registry tells of no changes: {reason}", self.inner.user);
                    return RETRY_OLDER;
                }
                Err(error) => {
                    log::debug!("{}: following the registry: {error}", self.inner.user);
                    return RETRY;
                }
            }
        }
        Duration::ZERO
    }

    /// One question, and what is done with its answer.
    fn hear(&mut self, registry: &RegistryClient) -> Result<(), RegistryError> {
        let wait = Seconds::whole(if self.is_abreast { WAIT_S } else { 0 });
        let Followed { version, changes } = registry.changes(self.version, wait)?;
        let had_begun = self.version.replace(version).is_some();
        let inner = &self.inner;
        match changes {
            Some(changes) if self.is_abreast => {
                inner.network.apply(&changes);
                self.tell(&changes);
            }
            // What came while nobody listened: of what was read meanwhile nobody knows how much of it is in it.
            Some(changes) => {
                self.tell(&changes);
                self.is_abreast = changes.is_empty();
                if self.is_abreast {
                    inner.network.follow();
                }
            }
            None => {
                self.is_abreast = true;
                inner.network.follow();
                let is_late = self.is_late_since.is_some_and(|since| since.elapsed() > AT_ONCE);
                if had_begun || is_late {
                    inner.watchers.tell("reset", &json!({}));
                }
            }
        }
        self.is_late_since = None;
        Ok(())
    }

    fn tell(&self, changes: &[Changed]) {
        let inner = &self.inner;
        if changes.len() > TOLD_MAX {
            return inner.watchers.tell("reset", &json!({}));
        }
        for changed in changes {
            let (ip, port) = changed.addr;
            match &changed.fname {
                None => inner.watchers.tell(
                    "peers",
                    &json!({
                        "hostname": changed.hostname, "online": !changed.is_host_gone(),
                        "display_name": changed.display_name, "ip": ip, "port": port,
                    }),
                ),
                // One's own are told of when they change.
                Some(_) if changed.hostname == inner.user => {}
                Some(fname) => inner.watchers.tell(
                    "files",
                    &json!({
                        "fname": fname, "hostname": changed.hostname, "entry": changed.entry.as_ref().and_then(Option::as_ref),
                        "owner_name": changed.display_name, "owner_ip": ip, "owner_port": port,
                    }),
                ),
            }
        }
    }

    /// Follows no more.
    fn let_go(&mut self) {
        if let Some(registry) = self.inner.following.lock().take() {
            registry.close();
        }
        self.inner.network.follow_no_more();
        self.is_abreast = false;
    }
}
