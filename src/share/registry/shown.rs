//! What others see: live hosts and their published files, a page at a time.

use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::{Host, Registry, Slot};
use crate::model::text::Sought;
use crate::model::{Millis, Name};
use crate::share::wire::{Digest, FileEntry, FileName, HostEntry};

/// A host as LIST and DISCOVER show it, without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub hostname: Name,
    /// The name for people.
    pub display_name: Arc<str>,
    /// Where its peer port is.
    pub ip: IpAddr,
    /// Its peer port.
    pub port: u16,
    /// How many files it has published.
    pub file_count: u64,
    /// When it was last heard.
    pub last_seen: Millis,
    /// Since when its connection, or the last one, was registered.
    pub connected_at: Millis,
    /// Its connection is open.
    pub is_open: bool,
    /// Which registration of the name it is.
    id: u64,
}

/// A part of a list of hosts.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// The next host; its files follow.
    Host(Shown),
    /// More files of the last host.
    Files(Vec<(FileName, Arc<FileEntry>)>),
}

/// Files with one content under their names, and from where to go on, if there may be more.
pub type Copies = (Vec<(FileName, HostEntry)>, Option<(u32, FileName)>);

/// Where a list of hosts goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// With the n-th name, counting from 0.
    Offset(usize),
    /// Behind a name.
    After(Name),
    /// In the middle of a host's files, behind that one.
    Within(Name, u64, Option<FileName>),
    /// It is at its end.
    End,
}

impl Cursor {
    /// At the first file of this host.
    pub fn files_of(host: &Shown) -> Cursor {
        Cursor::Within(host.hostname.clone(), host.id, None)
    }
}

impl Registry {
    /// The next part of the live hosts by name, `hosts` at most, with their published files; about `items` of both
    /// together. After [`Registry::expire`].
    pub fn list(&self, cursor: Cursor, hosts: &mut usize, items: usize) -> (Vec<Piece>, Cursor) {
        let (mut pieces, mut left) = (Vec::new(), items);
        let mut at = match cursor {
            Cursor::Within(name, id, after) => {
                let host = self.host_named(name.as_str()).map(|(_, host)| host);
                // Whoever is gone, or somebody else by now, has no more files.
                if let Some(host) = host.filter(|host| host.id == id && host.is_live)
                    && let Some(last) = files_page(host, after.as_ref(), &mut left, &mut pieces)
                {
                    return (pieces, Cursor::Within(name, id, last));
                }
                Cursor::After(name)
            }
            cursor => cursor,
        };
        loop {
            if *hosts == 0 {
                return (pieces, Cursor::End);
            }
            if left == 0 {
                return (pieces, at);
            }
            let next = match &at {
                Cursor::Offset(offset) => self.names.from(*offset).next(),
                Cursor::After(name) => self.names.after(name.as_str()).next(),
                Cursor::Within(..) | Cursor::End => None,
            };
            let Some((name, slot)) = next else { return (pieces, Cursor::End) };
            let Some(host) = &self.slots[*slot as usize] else { return (pieces, Cursor::End) };
            *hosts -= 1;
            left -= 1;
            pieces.push(Piece::Host(host.shown()));
            if let Some(last) = files_page(host, None, &mut left, &mut pieces) {
                return (pieces, Cursor::Within(name.clone(), host.id, last));
            }
            at = Cursor::After(name.clone());
        }
    }

    /// How many hosts there are to list. After [`Registry::expire`].
    pub fn listed(&self) -> usize {
        self.names.len()
    }

    /// How many of them are users'.
    pub fn listed_users(&self) -> usize {
        self.live_users
    }

    /// The names of the live hosts from the n-th on, counting from 0. After [`Registry::expire`].
    pub fn names_from(&self, offset: usize, at_most: usize) -> Vec<Name> {
        self.names.from(offset).take(at_most).map(|(name, _)| name.clone()).collect()
    }

    /// Looks at `at_most` live hosts behind a name: those whose name, or name for people, has that in it, and from
    /// where to go on, if there are more. After [`Registry::expire`].
    pub fn named_like(&self, sought: &Sought, after: Option<&Name>, at_most: usize) -> (Vec<Name>, Option<Name>) {
        // No name is empty: all are behind that.
        let mut hosts = self.names.after(after.map_or("", Name::as_str));
        let (mut found, mut last) = (Vec::new(), None);
        for (name, slot) in hosts.by_ref().take(at_most) {
            let display_name = self.slots[*slot as usize].as_ref().map_or("", |host| &host.display_name);
            if sought.is_in(name.as_str()) || sought.is_in(display_name) {
                found.push(name.clone());
            }
            last = Some(name);
        }
        let more = last.filter(|_| hosts.next().is_some()).cloned();
        (found, more)
    }

    /// A live host.
    pub fn discover(&mut self, now: Millis, hostname: &str) -> Option<Shown> {
        let now = self.at(now);
        let (_, host) = self.host_named(hostname)?;
        (now < host.heard_at.plus(self.timeout)).then(|| host.shown())
    }

    /// Who has published a file of that name: of `at_most` holders behind `after`, those that are live. And from
    /// where to go on, if there may be more.
    pub fn holders(
        &mut self,
        now: Millis,
        fname: &FileName,
        after: Option<u32>,
        at_most: usize,
    ) -> (Vec<HostEntry>, Option<u32>) {
        let now = self.at(now);
        let slots = self.by_file.page(fname, after.as_ref(), at_most);
        let next = if slots.len() < at_most { None } else { slots.last().copied() };
        let entries = slots.into_iter().filter_map(|slot| self.host_entry(now, slot, fname)).collect();
        (entries, next)
    }

    /// Who has published this content, whatever its name there: of `at_most` holders behind `after`, those that are
    /// live, with that name.
    pub fn copies(&mut self, now: Millis, content: &Digest, after: Option<&(u32, FileName)>, at_most: usize) -> Copies {
        let now = self.at(now);
        let found = self.by_content.page(content, after, at_most);
        let next = if found.len() < at_most { None } else { found.last().cloned() };
        let with_name = |(slot, fname): (Slot, FileName)| self.host_entry(now, slot, &fname).map(|host| (fname, host));
        (found.into_iter().filter_map(with_name).collect(), next)
    }

    /// Whether a host is there, and was heard within the timeout.
    pub(super) fn is_heard(&self, now: Millis, slot: Slot) -> bool {
        self.slots[slot as usize].as_ref().is_some_and(|host| now < host.heard_at.plus(self.timeout))
    }

    /// Of a host that is gone, files may still be in the indices.
    pub(super) fn host_entry(&self, now: Millis, slot: Slot, fname: &FileName) -> Option<HostEntry> {
        let host = self.slots[slot as usize].as_ref().filter(|_| self.is_heard(now, slot))?;
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

impl Host {
    fn shown(&self) -> Shown {
        Shown {
            hostname: self.name.clone(),
            display_name: Arc::clone(&self.display_name),
            ip: self.ip,
            port: self.port,
            file_count: self.published,
            last_seen: self.heard_at,
            connected_at: self.connected_at,
            is_open: self.conn.is_some(),
            id: self.id,
        }
    }
}

/// The next published files of a host. The last name that was looked at, if there may be more.
fn files_page(
    host: &Host,
    after: Option<&FileName>,
    left: &mut usize,
    pieces: &mut Vec<Piece>,
) -> Option<Option<FileName>> {
    let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
    let mut files = Vec::new();
    let mut last = after;
    let mut more = None;
    for (fname, entry) in host.files.range::<FileName, _>(range) {
        if *left == 0 {
            more = Some(last.cloned());
            break;
        }
        *left -= 1;
        if entry.is_published {
            files.push((fname.clone(), Arc::clone(entry)));
        }
        last = Some(fname);
    }
    if !files.is_empty() {
        pieces.push(Piece::Files(files));
    }
    more
}
