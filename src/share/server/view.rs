//! Read access to the registry for the server API, in pages.

use std::net::IpAddr;
use std::sync::Arc;

use super::{RegistryServerInner, STEP_SIZE};
use crate::model::text::TextFilter;
use crate::model::{Millis, Name};
use crate::share::registry::{HostSummary, ListingCursor, ListingPart, Registry, RegistryTotals};
use crate::share::wire::{FileEntry, FileMap, FileName};

/// A page ends with the host that reaches this number of files, since clients decide how many files hosts have.
const FILES_PER_PAGE: usize = 10_000;
const SEARCH_BATCH: usize = 4_096;

/// A live host with its files.
#[derive(Debug, Clone, PartialEq)]
pub struct HostView {
    /// Its times are by the wall clock.
    pub host: HostSummary,
    /// Its published files, by name.
    pub files: Vec<(FileName, Arc<FileEntry>)>,
}

/// A host that has changed: its name and, if it is live, whether its connection is open and its number of files.
pub type ChangedHost = (Name, Option<(bool, u64)>);

/// Clones access the same registry.
#[derive(Clone)]
pub struct RegistryView {
    pub(super) inner: Arc<RegistryServerInner>,
}

impl RegistryView {
    pub fn totals(&self) -> RegistryTotals {
        self.read(|core, _now| core.totals())
    }

    /// The next hosts by name with all their files; fewer than `at_most` if they have very many files.
    pub fn page(&self, after: Option<&str>, at_most: usize) -> Vec<HostView> {
        let after = after.and_then(|after| Name::from_stored(after).ok());
        let cursor = after.map_or(ListingCursor::Offset(0), ListingCursor::After);
        let mut hosts: Vec<HostView> = Vec::new();
        let mut file_count = 0;
        self.walk(cursor, at_most, |part| {
            match part {
                ListingPart::Host(host) => hosts.push(HostView { host: self.dated(host), files: Vec::new() }),
                ListingPart::Files(files) => {
                    file_count += files.len();
                    if let Some(client) = hosts.last_mut() {
                        client.files.extend(files);
                    }
                }
            }
            file_count < FILES_PER_PAGE
        });
        hosts
    }

    /// The number of live hosts, and how many of them belong to users.
    pub fn host_counts(&self) -> (usize, usize) {
        self.read(|core, _now| (core.live_host_count(), core.live_user_count()))
    }

    /// The names of live hosts from the n-th on.
    pub fn host_names_from(&self, offset: usize, at_most: usize) -> Vec<Name> {
        self.read(|core, _now| core.names_from(offset, at_most))
    }

    /// The same for hosts whose hostname or display name matches, and how many match in total.
    pub fn search(&self, query: &TextFilter, offset: usize, at_most: usize) -> (Vec<Name>, usize) {
        let (mut found, mut total, mut after) = (Vec::new(), 0_usize, None);
        loop {
            let (more, next) = self.read(|core, _now| core.search_names(query, after.as_ref(), SEARCH_BATCH));
            let passed = offset.saturating_sub(total).min(more.len());
            total += more.len();
            let left = at_most - found.len();
            found.extend(more.into_iter().skip(passed).take(left));
            if next.is_none() {
                return (found, total);
            }
            after = next;
        }
    }

    pub fn are_live(&self, hostnames: &[&str]) -> Vec<bool> {
        let mut all = Vec::with_capacity(hostnames.len());
        for some in hostnames.chunks(STEP_SIZE) {
            let is_live = |core: &mut Registry, now| some.iter().map(|it| core.presence(now, it).is_some()).collect();
            let mut live: Vec<bool> = self.read(is_live);
            // After a failure, none counts as live.
            live.resize(some.len(), false);
            all.extend(live);
        }
        all
    }

    /// A live host with all its files.
    pub fn host(&self, hostname: &str) -> Option<HostView> {
        let host = self.read(|core, now| core.discover(now, hostname))?;
        let mut files = Vec::new();
        self.walk(ListingCursor::files_of(&host), 0, |part| {
            if let ListingPart::Files(more) = part {
                files.extend(more);
            }
            true
        });
        Some(HostView { host: self.dated(host), files })
    }

    /// The current state of hosts that have changed since the last call. `None` if they are not known: there were too
    /// many, or they were not being collected. Changes are collected while `is_wanted`; otherwise this costs nothing.
    pub fn changed_hosts(&self, is_wanted: bool) -> Option<Vec<ChangedHost>> {
        let names: Vec<Name> = self.read(|core, _now| core.take_changed_hosts(is_wanted))?.into_iter().collect();
        let mut all = Vec::with_capacity(names.len());
        for some in names.chunks(STEP_SIZE) {
            let changed: Vec<ChangedHost> = self.read(|core, now| {
                let shown = some.iter().map(|name| (name.clone(), core.discover(now, name.as_str())));
                shown.map(|(name, host)| (name, host.map(|host| (host.is_connected, host.file_count)))).collect()
            });
            all.extend(changed);
        }
        Some(all)
    }

    pub fn discover(&self, hostname: &str) -> Option<(FileMap, (IpAddr, u16))> {
        let HostView { host, files } = self.host(hostname)?;
        Some((files.into_iter().collect(), (host.ip, host.port)))
    }

    pub fn is_live(&self, hostname: &str) -> bool {
        self.read(|core, now| core.presence(now, hostname).is_some())
    }

    /// Passes the parts of a listing to `each`, which returns whether another host may follow.
    fn walk(&self, mut cursor: ListingCursor, mut hosts: usize, mut each: impl FnMut(ListingPart) -> bool) {
        while cursor != ListingCursor::End {
            let page = self.read(|core, _now| Some(core.list(cursor, &mut hosts, STEP_SIZE)));
            let Some((parts, next)) = page else { return };
            for part in parts {
                if !each(part) {
                    hosts = 0;
                }
            }
            cursor = next;
        }
    }

    fn dated(&self, mut host: HostSummary) -> HostSummary {
        for at in [&mut host.last_seen, &mut host.connected_at] {
            *at = self.inner.registry.wall_time(*at);
        }
        host
    }

    /// A failure is logged; the registry has been reloaded then, and a later call succeeds.
    fn read<T: Default>(&self, work: impl FnOnce(&mut Registry, Millis) -> T) -> T {
        self.inner.registry.read(work).unwrap_or_else(|error| {
            log::error!("registry: {error}");
            T::default()
        })
    }
}
