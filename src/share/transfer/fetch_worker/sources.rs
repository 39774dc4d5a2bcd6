//! The hosts that have a fetch's content: looking them up, keeping their list, and saying why none of them sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{FetchEvent, FetchWorker};
use crate::model::text::nfc;
use crate::share::transfer::pass_on_drop::PassOnDrop;
use crate::share::transfer::plan::{HOSTS_MAX, HostId};
use crate::share::wire::HostEntry;

/// Most hosts that are named in one error text.
const NAMED_HOSTS_MAX: usize = 5;

pub(super) struct SourceHost {
    pub name: String,
    pub addr: SocketAddr,
    pub is_listed: bool,
    pub last_error: Option<String>,
}

/// State of looking up hosts: running, or due at a time since the start of the fetch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LookupState {
    Running,
    Due(Duration),
}

impl FetchWorker {
    /// Looks up who has the file, on another thread because that may take long.
    pub(super) fn look_up_sources(&mut self) {
        let (finder, inbox, fname) = (Arc::clone(&self.finder), self.inbox.clone(), self.spec.fname.clone());
        let started = self.executor.execute(move || {
            let mut response = PassOnDrop::new(Err("asking it failed".to_owned()), |found| {
                // Fails only after the fetch's thread has ended.
                let _ = inbox.send(FetchEvent::SourcesFound(found));
            });
            response.set(finder.find_hosts(&fname));
        });
        self.lookup = LookupState::Running;
        if started.is_err() {
            self.handle_sources_found(Err("no thread is left to ask it".to_owned()));
        }
    }

    pub(super) fn handle_sources_found(&mut self, found: Result<Vec<HostEntry>, String>) {
        let pause = if self.plan.has_no_usable_host() {
            self.lookup_backoff.current()
        } else {
            self.timing.lookup_interval_max
        };
        let entries = match found {
            Ok(entries) => entries,
            Err(why) => {
                self.registry_error = Some(why);
                self.lookup = LookupState::Due(self.now() + self.lookup_backoff.next_pause());
                return;
            }
        };
        self.registry_error = None;
        let content = self.spec.content;
        let is_usable = |entry: &HostEntry| {
            let is_owner = entry.hostname.key() == nfc(&self.spec.hostname);
            content.matches(&entry.file) && (content.is_known() || is_owner || !self.spec.is_owner_named)
        };
        let (same, others): (Vec<&HostEntry>, Vec<&HostEntry>) = entries.iter().partition(|entry| is_usable(entry));
        self.hosts_with_other_content =
            others.iter().take(NAMED_HOSTS_MAX).map(|entry| entry.hostname.to_string()).collect();
        let is_gone = same.is_empty() && !others.is_empty() && !others.iter().any(|it| content.may_match(&it.file));
        if is_gone && self.ending.is_none() && !self.plan.is_paused() && !self.plan.is_received() {
            let (host, names) = (&self.spec.hostname, self.hosts_with_other_content.join(", "));
            self.fail(format!(
                "{host} no longer offers this content, and under this name {names} now another: fetch it anew for that one"
            ));
            return;
        }
        let listed = self.update_hosts(&same);
        self.plan.set_listed_hosts(&listed);
        // Still no usable host: look up less often each time.
        let pause = if self.plan.has_no_usable_host() { self.lookup_backoff.next_pause() } else { pause };
        self.lookup = LookupState::Due(self.now() + pause);
    }

    /// Brings the list of hosts up to date. Returns the listed ones, each with whether it offers pieces.
    fn update_hosts(&mut self, same: &[&HostEntry]) -> Vec<(HostId, bool)> {
        let content = self.spec.content;
        self.hosts.iter_mut().for_each(|host| host.is_listed = false);
        let (mut listed, mut new_entries) = (Vec::new(), Vec::new());
        for entry in same {
            match self.hosts.iter().position(|known| known.name == entry.hostname.as_str()) {
                Some(id) => {
                    let (known, addr) = (&mut self.hosts[id], SocketAddr::new(entry.ip, entry.port));
                    known.is_listed = true;
                    if known.addr != addr {
                        known.addr = addr;
                        self.plan.host_moved(id);
                    }
                    listed.push((id, content.offers_pieces(&entry.file)));
                }
                None => new_entries.push(entry),
            }
        }
        for entry in new_entries {
            let (name, addr) = (entry.hostname.to_string(), SocketAddr::new(entry.ip, entry.port));
            let known = SourceHost { name, addr, is_listed: true, last_error: None };
            let id = if self.hosts.len() < HOSTS_MAX {
                self.hosts.push(known);
                self.hosts.len() - 1
            } else {
                // With too many hosts, replace one that is no longer listed, else one that does not answer.
                let can_replace = |id: &HostId| !self.connections.contains_key(id) && self.plan.can_forget_host(*id);
                let gone = (0..HOSTS_MAX).find(|id| !self.hosts[*id].is_listed && can_replace(id));
                let silent =
                    || listed.iter().map(|(id, _)| *id).find(|id| can_replace(id) && self.plan.is_offline(*id));
                let Some(id) = gone.or_else(silent) else { break };
                listed.retain(|(known, _)| *known != id);
                self.hosts[id] = known;
                self.plan.forget_host(id);
                id
            };
            listed.push((id, content.offers_pieces(&entry.file)));
        }
        listed
    }

    pub(super) fn waiting_reason(&self) -> String {
        if let Some(error) = &self.registry_error {
            return format!("the registry cannot be asked who has the file: {error}; the fetch goes on when it can");
        }
        if self.hosts.is_empty() && !self.hosts_with_other_content.is_empty() {
            let names = self.hosts_with_other_content.join(", ");
            return format!("{names} may have this content and reads it anew; the fetch goes on when that is known");
        }
        if self.hosts.is_empty() {
            let host = &self.spec.hostname;
            return format!("{host} is offline; the fetch goes on when it is back");
        }
        let them = if self.hosts.len() == 1 { "it is" } else { "one of them is" };
        format!("{}; the fetch goes on when {them} back", self.host_errors())
    }

    pub(super) fn host_errors(&self) -> String {
        let say = |host: &SourceHost| match &host.last_error {
            Some(error) => format!("{} {error}", host.name),
            None if host.is_listed => format!("{} does not answer at {}", host.name, host.addr),
            None => format!("{} is offline", host.name),
        };
        self.hosts.iter().take(NAMED_HOSTS_MAX).map(say).collect::<Vec<_>>().join("; ")
    }
}
