//! What clients see: live hosts and their published files, a page at a time.

use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::{HostRecord, Registry, Slot};
use crate::model::text::TextFilter;
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileName, HostEntry};

/// A host as LIST and DISCOVER show it, without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSummary {
    pub hostname: Name,
    pub display_name: Arc<str>,
    pub ip: IpAddr,
    pub port: u16,
    pub file_count: u64,
    /// When its last request came.
    pub last_seen: Millis,
    /// When its current or last connection registered.
    pub connected_at: Millis,
    pub is_connected: bool,
    /// Tells this host from a later one of the same name.
    id: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ListingPart {
    /// The next host; its files follow.
    Host(HostSummary),
    /// More files of the last host.
    Files(Vec<(FileName, Arc<FileEntry>)>),
}

/// Where the host list continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListingCursor {
    /// At the n-th name, counting from 0.
    Offset(usize),
    After(Name),
    /// Within the files of the host with this name and id, after that file.
    Within(Name, u64, Option<FileName>),
    End,
}

impl ListingCursor {
    pub fn files_of(host: &HostSummary) -> ListingCursor {
        ListingCursor::Within(host.hostname.clone(), host.id, None)
    }
}

impl Registry {
    /// The next live hosts by name with their published files: at most `hosts` hosts, and about `items` hosts and files
    /// together. Call [`Registry::expire`] first.
    pub fn list(&self, cursor: ListingCursor, hosts: &mut usize, items: usize) -> (Vec<ListingPart>, ListingCursor) {
        let (mut parts, mut remaining) = (Vec::new(), items);
        let mut at = match cursor {
            ListingCursor::Within(name, id, after) => {
                let host = self.host_by_name(name.as_str()).map(|(_, host)| host);
                // A host that was removed or replaced in the meantime has no more files.
                if let Some(host) = host.filter(|host| host.id == id && host.is_live)
                    && let Some(last) = files_page(host, after.as_ref(), &mut remaining, &mut parts)
                {
                    return (parts, ListingCursor::Within(name, id, last));
                }
                ListingCursor::After(name)
            }
            cursor => cursor,
        };
        loop {
            if *hosts == 0 {
                return (parts, ListingCursor::End);
            }
            if remaining == 0 {
                return (parts, at);
            }
            let next = match &at {
                ListingCursor::Offset(offset) => self.live_names.starting_at(*offset).next(),
                ListingCursor::After(name) => self.live_names.after(name.as_str()).next(),
                ListingCursor::Within(..) | ListingCursor::End => None,
            };
            let Some((name, slot)) = next else { return (parts, ListingCursor::End) };
            let Some(host) = &self.slots[*slot as usize] else { return (parts, ListingCursor::End) };
            *hosts -= 1;
            remaining -= 1;
            parts.push(ListingPart::Host(host.summary()));
            if let Some(last) = files_page(host, None, &mut remaining, &mut parts) {
                return (parts, ListingCursor::Within(name.clone(), host.id, last));
            }
            at = ListingCursor::After(name.clone());
        }
    }

    /// Number of live hosts. Call [`Registry::expire`] first.
    pub fn live_host_count(&self) -> usize {
        self.live_names.len()
    }

    pub fn live_user_count(&self) -> usize {
        self.live_user_count
    }

    /// The names of live hosts from the n-th on, counting from 0. Call [`Registry::expire`] first.
    pub fn names_from(&self, offset: usize, at_most: usize) -> Vec<Name> {
        self.live_names.starting_at(offset).take(at_most).map(|(name, _)| name.clone()).collect()
    }

    /// Examines `at_most` live hosts after a name. Returns those whose hostname or display name matches, and where to
    /// continue if there are more. Call [`Registry::expire`] first.
    pub fn search_names(&self, query: &TextFilter, after: Option<&Name>, at_most: usize) -> (Vec<Name>, Option<Name>) {
        // No name is empty, so the empty string comes before all.
        let mut hosts = self.live_names.after(after.map_or("", Name::as_str));
        let (mut found, mut last) = (Vec::new(), None);
        for (name, slot) in hosts.by_ref().take(at_most) {
            let display_name = self.slots[*slot as usize].as_ref().map_or("", |host| &host.display_name);
            if query.matches(name.as_str()) || query.matches(display_name) {
                found.push(name.clone());
            }
            last = Some(name);
        }
        let more = last.filter(|_| hosts.next().is_some()).cloned();
        (found, more)
    }

    /// The host of that name, if it is live.
    pub fn discover(&mut self, now: Millis, hostname: &str) -> Option<HostSummary> {
        let now = self.advance_clock(now);
        let (_, host) = self.host_by_name(hostname)?;
        (now < host.last_seen_at.plus(self.peer_timeout)).then(|| host.summary())
    }

    /// The live ones of the next `at_most` holders of a file name, and where to continue if there may be more.
    pub fn holders(
        &mut self,
        now: Millis,
        fname: &FileName,
        after: Option<u32>,
        at_most: usize,
    ) -> (Vec<HostEntry>, Option<u32>) {
        let now = self.advance_clock(now);
        let slots = self.by_file.page(fname, after.as_ref(), at_most);
        let next = if slots.len() < at_most { None } else { slots.last().copied() };
        let entries = slots.into_iter().filter_map(|slot| self.host_entry(now, slot, fname)).collect();
        (entries, next)
    }

    /// Whether a host exists and was seen within the timeout.
    pub(super) fn is_live_at(&self, now: Millis, slot: Slot) -> bool {
        self.slots[slot as usize].as_ref().is_some_and(|host| now < host.last_seen_at.plus(self.peer_timeout))
    }

    /// A published file of a live host. `None` for removed hosts, whose files may still be in the indexes.
    pub(super) fn host_entry(&self, now: Millis, slot: Slot, fname: &FileName) -> Option<HostEntry> {
        let host = self.slots[slot as usize].as_ref().filter(|_| self.is_live_at(now, slot))?;
        let file = host.files.get(fname).filter(|file| file.is_published)?;
        Some(HostEntry {
            hostname: host.name.clone(),
            display_name: Arc::clone(&host.display_name),
            ip: host.ip,
            port: host.port,
            file: Arc::clone(file),
        })
    }
}

impl HostRecord {
    fn summary(&self) -> HostSummary {
        HostSummary {
            hostname: self.name.clone(),
            display_name: Arc::clone(&self.display_name),
            ip: self.ip,
            port: self.port,
            file_count: self.published_count,
            last_seen: self.last_seen_at,
            connected_at: self.connected_at,
            is_connected: self.conn.is_some(),
            id: self.id,
        }
    }
}

/// Appends a host's next published files. Returns the last name examined if there may be more.
fn files_page(
    host: &HostRecord,
    after: Option<&FileName>,
    remaining: &mut usize,
    parts: &mut Vec<ListingPart>,
) -> Option<Option<FileName>> {
    let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
    let mut files = Vec::new();
    let mut last = after;
    let mut more = None;
    for (fname, entry) in host.files.range::<FileName, _>(range) {
        if *remaining == 0 {
            more = Some(last.cloned());
            break;
        }
        *remaining -= 1;
        if entry.is_published {
            files.push((fname.clone(), Arc::clone(entry)));
        }
        last = Some(fname);
    }
    if !files.is_empty() {
        parts.push(ListingPart::Files(files));
    }
    more
}
