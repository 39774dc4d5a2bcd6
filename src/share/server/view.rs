//! What the registry knows, for the server API: memory work, in pages.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{STEP, Shared};
use crate::model::text::Sought;
use crate::model::{Millis, Name};
use crate::share::registry::{Cursor, Piece, Shown, Totals};
use crate::share::wire::{Digest, FileEntry, FileName, Files, HostEntry};
use crate::storage::StoreError;

/// A page of hosts with so many files ends with the host that is at its turn: strangers say how many there are.
const FILES_A_PAGE: usize = 10_000;
/// Hosts that a search looks at in one go: their names alone.
const LOOKED_AT: usize = 4_096;

/// A host that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// Its name.
    pub hostname: Name,
    /// The name for people.
    pub display_name: Arc<str>,
    /// Where its peer port is.
    pub ip: IpAddr,
    /// Its peer port.
    pub port: u16,
    /// Its published files, by name.
    pub files: Vec<(FileName, Arc<FileEntry>)>,
    /// How many those are.
    pub file_count: u64,
    /// When it was last heard.
    pub last_seen: Millis,
    /// Since when its connection, or the last one, was registered.
    pub connected_at: Millis,
    /// Its connection is open.
    pub online: bool,
}

/// A host of which something has changed, and, if it is there, whether its connection is open, and how many files it
/// has.
pub type Changed = (Name, Option<(bool, u64)>);

/// Looks at a registry that runs. Clones look at the same.
#[derive(Clone)]
pub struct View {
    shared: Arc<Shared>,
}

impl View {
    pub(super) fn of(shared: Arc<Shared>) -> View {
        View { shared }
    }

    /// What is there, counted.
    pub fn totals(&self) -> Totals {
        self.or_nothing(self.shared.keeper.look(|core, _now| core.totals()))
    }

    /// The next hosts by name, with all their files; fewer than `at_most` where those are very many.
    pub fn page(&self, after: Option<&str>, at_most: usize) -> Vec<Client> {
        let after = after.and_then(|after| Name::kept(after).ok());
        let cursor = after.map_or(Cursor::Offset(0), Cursor::After);
        let mut clients: Vec<Client> = Vec::new();
        let mut file_count = 0;
        self.walk(cursor, at_most, |piece| {
            match piece {
                Piece::Host(host) => clients.push(self.client_of(host)),
                Piece::Files(files) => {
                    file_count += files.len();
                    if let Some(client) = clients.last_mut() {
                        client.files.extend(files);
                    }
                }
            }
            file_count < FILES_A_PAGE
        });
        clients
    }

    /// How many hosts are there, and how many of them are users'.
    pub fn sizes(&self) -> (usize, usize) {
        self.or_nothing(self.shared.keeper.look(|core, _now| (core.listed(), core.listed_users())))
    }

    /// The names of hosts from the n-th on, by name.
    pub fn names_from(&self, offset: usize, at_most: usize) -> Vec<Name> {
        self.or_nothing(self.shared.keeper.look(|core, _now| core.names_from(offset, at_most)))
    }

    /// The same of those whose name, or name for people, has that in it; and how many those are.
    pub fn search(&self, sought: &Sought, offset: usize, at_most: usize) -> (Vec<Name>, usize) {
        let (mut found, mut total, mut after) = (Vec::new(), 0_usize, None);
        loop {
            let look = self.shared.keeper.look(|core, _now| core.named_like(sought, after.as_ref(), LOOKED_AT));
            let (more, next) = self.or_nothing(look);
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

    /// Which of these hosts are there.
    pub fn are_there(&self, hostnames: &[&str]) -> Vec<bool> {
        let mut all = Vec::with_capacity(hostnames.len());
        for some in hostnames.chunks(STEP) {
            let look = self.shared.keeper.look(|core, now| {
                some.iter().map(|hostname| core.presence(now, hostname).is_some()).collect::<Vec<_>>()
            });
            all.extend(look.unwrap_or_else(|error| {
                log::error!("registry: {error}");
                vec![false; some.len()]
            }));
        }
        all
    }

    /// A host with all its files; none if it is not there.
    pub fn client(&self, hostname: &str) -> Option<Client> {
        let host = self.or_nothing(self.shared.keeper.look(|core, now| core.discover(now, hostname)))?;
        let mut client = self.client_of(host.clone());
        self.walk(Cursor::files_of(&host), 0, |piece| {
            if let Piece::Files(more) = piece {
                client.files.extend(more);
            }
            true
        });
        Some(client)
    }

    /// Of which hosts something has changed since this was asked last, as each is now: its name, and, if it is
    /// there, whether its connection is open, and how many files it has. None: there were too many, or nobody had
    /// asked before. They are remembered until it `is_wanted` no more; while it is not, that costs nothing.
    pub fn changed(&self, is_wanted: bool) -> Option<Vec<Changed>> {
        let names = self.or_nothing(self.shared.keeper.look(|core, _now| core.take_touched(is_wanted)))?;
        let names: Vec<Name> = names.into_iter().collect();
        let mut all = Vec::with_capacity(names.len());
        for some in names.chunks(STEP) {
            let look = self.shared.keeper.look(|core, now| {
                let shown = some.iter().map(|name| (name.clone(), core.discover(now, name.as_str())));
                shown.map(|(name, host)| (name, host.map(|host| (host.is_open, host.file_count)))).collect::<Vec<_>>()
            });
            all.extend(self.or_nothing(look));
        }
        Some(all)
    }

    /// A host's published files, and where it is; none if it is not there.
    pub fn discover(&self, hostname: &str) -> Option<(Files, (IpAddr, u16))> {
        let host = self.or_nothing(self.shared.keeper.look(|core, now| core.discover(now, hostname)))?;
        let mut files = BTreeMap::new();
        self.walk(Cursor::files_of(&host), 0, |piece| {
            if let Piece::Files(more) = piece {
                files.extend(more);
            }
            true
        });
        Some((files, (host.ip, host.port)))
    }

    /// Whether a host is there.
    pub fn ping(&self, hostname: &str) -> bool {
        self.or_nothing(self.shared.keeper.look(|core, now| core.presence(now, hostname).is_some()))
    }

    /// Who has published this content, whatever its name there; `at_most` so many.
    pub fn copies(&self, content: &Digest, at_most: usize) -> Vec<(FileName, HostEntry)> {
        let (mut copies, mut after) = (Vec::new(), None);
        loop {
            let look = self.shared.keeper.look(|core, now| core.copies(now, content, after.as_ref(), STEP));
            let (more, next) = self.or_nothing(look);
            copies.extend(more);
            if next.is_none() || copies.len() >= at_most {
                copies.truncate(at_most);
                return copies;
            }
            after = next;
        }
    }

    /// `each` says whether another host may follow.
    fn walk(&self, mut cursor: Cursor, mut hosts: usize, mut each: impl FnMut(Piece) -> bool) {
        while cursor != Cursor::End {
            match self.shared.keeper.look(|core, _now| core.list(cursor, &mut hosts, STEP)) {
                Ok((pieces, next)) => {
                    for piece in pieces {
                        if !each(piece) {
                            hosts = 0;
                        }
                    }
                    cursor = next;
                }
                Err(error) => {
                    log::error!("registry: {error}");
                    return;
                }
            }
        }
    }

    fn client_of(&self, host: Shown) -> Client {
        let dated = |at| self.shared.keeper.dated(at);
        Client {
            hostname: host.hostname,
            display_name: host.display_name,
            ip: host.ip,
            port: host.port,
            files: Vec::new(),
            file_count: host.file_count,
            last_seen: dated(host.last_seen),
            connected_at: dated(host.connected_at),
            online: host.is_open,
        }
    }

    /// Memory is built anew when this fails: whoever asks again gets it.
    fn or_nothing<T: Default>(&self, looked: Result<T, StoreError>) -> T {
        looked.unwrap_or_else(|error| {
            log::error!("registry: {error}");
            T::default()
        })
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}
