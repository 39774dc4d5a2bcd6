//! The registry's core: who is there, with which files, who may change what, and until when. No I/O; time and
//! secrets come in as arguments, what is to be kept goes out as [`Change`]s.
//!
//! | file | holds |
//! |---|---|
//! | `alike.rs` | which files look like another |
//! | `claims.rs` | REGISTER: who may have a hostname |
//! | `files.rs` | PUBLISH, UNPUBLISH, and a whole list replaced step by step |
//! | `shown.rs` | what REQUEST, DISCOVER and LIST show, in pages |
//! | `recent.rs` | what has changed of it, for who follows |
//! | `secrets.rs`, `farewells.rs` | what gives a hostname back, also when its host is gone |
//! | `room.rs` | how much there may be, and whose it is |
//! | `names.rs`, `index.rs` | names in order, and who holds what |
//! | `store.rs` | the rows of all of it |
//!
//! Every operation is memory work in short steps: whatever could be long (a list of 100,000 files that comes or
//! goes, hosts that fall silent together) is done a bounded part at a time, so that whoever guards this with one
//! lock never holds it for long.
//!
//! A host is **live** until the peer timeout after it was last heard, and then **silent**: it is not shown, and
//! its name may go to others (whatever becomes of its connection), but what it had is kept for as long as its secret
//! can bring it back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{Digest, FileName, Files};
use crate::model::{Millis, Name};
use crate::net::source::{self, Source};

mod alike;
mod claims;
mod farewells;
mod files;
mod index;
mod names;
mod recent;
mod room;
mod secrets;
mod shown;
pub mod store;
#[cfg(test)]
mod tests;

pub use claims::{Claim, Granted, Proof, Standing};
pub use recent::{Changed, Told, What};
pub use secrets::SecretKey;
pub use shown::{Cursor, Piece, Shown};
pub use store::{Change, HostRow};

use alike::Sizes;
use index::Index;
use names::Names;
use recent::Recent;
use room::{Holding, Lack, Room};
use secrets::Secrets;

/// How long a secret gives its hostname back.
pub const RESUME_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// A connection, as the core knows it. Never used twice.
pub type ConnId = u64;

/// A host's place in memory; used again once nothing speaks of it any more.
type Slot = u32;

/// How much is taken on: of hosts without an account, and as much again of users'.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Hosts, silent ones included.
    pub hosts: usize,
    /// Published files of all hosts together.
    pub files: usize,
    /// Hosts without an account from one address; from loopback half of all.
    pub hosts_of_one: usize,
    /// Their published files; from loopback half of all.
    pub files_of_one: usize,
    /// Files that are not published, which are remembered while there is room for that.
    pub hidden: usize,
    /// Those of one address; from loopback half of all.
    pub hidden_of_one: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            hosts: 500_000,
            files: 5_000_000,
            hosts_of_one: 1_000,
            files_of_one: 200_000,
            hidden: 500_000,
            hidden_of_one: 20_000,
        }
    }
}

/// Why something is not done. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address cannot be this host's.
    #[error("ip: {0}")]
    Ip(&'static str),
    /// One hostname a connection.
    #[error("hostname: this connection is registered as {0} and may change nothing else")]
    OneHostname(Name),
    /// The hostname is an account.
    #[error("token: the hostname is a user account and needs a valid token of that user")]
    NeedsToken,
    /// Somebody else has it.
    #[error("hostname in use")]
    InUse,
    /// There are as many as there may be.
    #[error("BUSY: the registry is full: it takes no more {0}")]
    Full(&'static str),
    /// One source has as many as it may have.
    #[error(
        "BUSY: {source_of_it} has {share} {what} here, as many as one source may; UNREGISTER and UNPUBLISH make room"
    )]
    ShareFull {
        /// Of what.
        what: &'static str,
        /// Whose share.
        source_of_it: Source,
        /// How many that are.
        share: usize,
    },
    /// The host has as many as it may have.
    #[error("fname: a host may have {0} files")]
    TooManyFiles(usize),
    /// Only those who have registered may do this.
    #[error("expected REGISTER first")]
    NotRegistered,
    /// There is no such host, or nothing was heard of it for long.
    #[error("hostname: no such host is there")]
    UnknownHost,
    /// The host has no such file.
    #[error("fname: this host has no such file")]
    UnknownFile,
}

/// What is shown, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Hosts heard within the peer timeout.
    pub total_clients: u64,
    /// Those of them whose connection is open.
    pub active_clients: u64,
    /// Their published files.
    pub total_files: u64,
    /// The bytes of those.
    pub total_size: u64,
}

/// A host that is known.
struct Host {
    /// Its row on disk. Never used twice.
    id: u64,
    name: Name,
    display_name: Arc<str>,
    ip: IpAddr,
    port: u16,
    /// Where its connection came from.
    source: IpAddr,
    /// It has shown to be the user whose account bears this name.
    by_account: bool,
    /// Changes when the name goes to somebody else: who had it before does not get what that one has.
    tenure: u64,
    connected_at: Millis,
    heard_at: Millis,
    /// `heard_at` is not on its way to disk yet.
    is_unsaved: bool,
    conn: Option<ConnId>,
    is_live: bool,
    files: Files,
    published: u64,
    published_size: u64,
    /// What is counted for it.
    held: Option<Holding>,
    /// So many published files are on their way to its list, for which it has room already.
    promised: usize,
    /// Put here by whoever stores changes: which one made this host what it is.
    mark: u64,
}

/// A host that is gone, whose files are still in the indices.
struct Grave {
    slot: Slot,
    files: Files,
}

/// All hosts.
pub struct Registry {
    timeout: Duration,
    /// Time never goes back, whichever thread was quicker.
    now: Millis,
    next_number: u64,
    slots: Vec<Option<Host>>,
    free: Vec<Slot>,
    graves: Vec<Grave>,
    by_name: HashMap<Name, Slot>,
    by_conn: HashMap<ConnId, Slot>,
    /// Live hosts.
    names: Names<Slot>,
    /// All by when they were last heard.
    live: BTreeSet<(Millis, Slot)>,
    silent_users: BTreeSet<(Millis, Slot)>,
    silent_strangers: BTreeSet<(Millis, Slot)>,
    /// The latter by their source.
    silent_of: BTreeSet<(Source, Millis, Slot)>,
    /// Published files of all hosts, live or silent.
    by_file: Index<FileName, Slot>,
    by_content: Index<Digest, (Slot, FileName)>,
    by_size: Sizes,
    known_files: usize,
    room: Room,
    secrets: Secrets,
    totals: Totals,
    /// Live hosts of users.
    live_users: usize,
    /// Hosts of which something that is shown has changed, while somebody wants to know.
    touched: Option<Touched>,
    unsaved: Vec<Slot>,
    recent: Recent,
}

/// Which hosts have changed.
#[derive(Debug, Default)]
struct Touched {
    names: BTreeSet<Name>,
    /// There were more than are remembered.
    too_many: bool,
}

/// Most hosts that are remembered as changed.
const TOUCHED_MAX: usize = 4_096;

impl Registry {
    /// Without any host.
    pub fn new(timeout: Duration, bounds: Bounds) -> Registry {
        Registry {
            timeout,
            now: Millis::default(),
            next_number: 1,
            slots: Vec::new(),
            free: Vec::new(),
            graves: Vec::new(),
            by_name: HashMap::new(),
            by_conn: HashMap::new(),
            names: Names::default(),
            live: BTreeSet::new(),
            silent_users: BTreeSet::new(),
            silent_strangers: BTreeSet::new(),
            silent_of: BTreeSet::new(),
            by_file: Index::default(),
            by_content: Index::default(),
            by_size: Sizes::default(),
            known_files: 0,
            room: Room::new(bounds),
            secrets: Secrets::new(&bounds),
            totals: Totals::default(),
            live_users: 0,
            touched: None,
            unsaved: Vec::new(),
            recent: Recent::default(),
        }
    }

    /// The hostname that a connection holds.
    pub fn held_by(&self, conn: ConnId) -> Option<&Name> {
        self.host_of(conn).map(|(_, host)| &host.name)
    }

    /// A request came in over a connection: whoever holds a hostname there is heard.
    pub fn hear(&mut self, now: Millis, conn: ConnId) {
        let now = self.at(now);
        if let Some(slot) = self.by_conn.get(&conn).copied() {
            self.hear_slot(now, slot);
        }
    }

    /// A connection is closed. Its host is there until the timeout.
    pub fn closed(&mut self, conn: ConnId) {
        if let Some(slot) = self.by_conn.remove(&conn)
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.conn = None;
            self.totals.active_clients -= u64::from(host.is_live);
            self.touch(slot);
        }
    }

    /// Whether a host is there; if so, the mark of the change that made it what it is.
    pub fn presence(&mut self, now: Millis, hostname: &str) -> Option<u64> {
        let now = self.at(now);
        let host = self.host_named(hostname)?.1;
        (now < host.heard_at.plus(self.timeout)).then_some(host.mark)
    }

    /// Remembers which change made this host what it is. Marks only grow.
    pub fn mark(&mut self, conn: ConnId, mark: u64) {
        if let Some(slot) = self.by_conn.get(&conn).copied()
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.mark = mark;
        }
    }

    /// UNREGISTER: the host ends at once, its files are forgotten and its place is free. What it was answered gives
    /// the name back, for 30 days and unless another has held it since.
    ///
    /// # Errors
    /// Not this connection's.
    pub fn unregister(&mut self, now: Millis, conn: ConnId, hostname: &Name) -> Result<Vec<Change>, Refusal> {
        let now = self.at(now);
        let slot = self.own(conn, hostname)?;
        self.hear_slot(now, slot);
        let mut changes = Vec::new();
        self.drop_host(slot, &mut changes);
        Ok(changes)
    }

    /// The hostname is an account from now on: a stranger who holds it loses it.
    pub fn account_created(&mut self, hostname: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some((slot, host)) = self.host_named(hostname)
            && !host.by_account
        {
            self.drop_host(slot, &mut changes);
        }
        self.secrets.forget_strangers(hostname, &mut changes);
        changes
    }

    /// The hosts that have not shown to be a user, for who looks whether they should have to.
    pub fn strangers(&self) -> Vec<Name> {
        self.slots.iter().flatten().filter(|host| !host.by_account).map(|host| host.name.clone()).collect()
    }

    /// Moves hosts that were not heard for long to the silent ones, `at_most` so many; whether more are due.
    /// What counts or shows hosts is exact when this has said that none is.
    pub fn expire(&mut self, now: Millis, at_most: usize) -> bool {
        let now = self.at(now);
        for _ in 0..at_most {
            let Some((heard_at, slot)) = self.live.first().copied() else { return false };
            if now < heard_at.plus(self.timeout) {
                return false;
            }
            self.fall_silent(slot);
        }
        true
    }

    /// Forgets hosts and secrets that nothing can bring back, and takes the files of those that are gone out of
    /// the indices: a bounded part of it. Whether there is more to do at once.
    pub fn tidy(&mut self, now: Millis, at_most: usize, changes: &mut Vec<Change>) -> bool {
        let now = self.at(now);
        let mut left = at_most;
        while left > 0
            && let firsts = [self.silent_users.first(), self.silent_strangers.first()]
            && let Some((heard_at, slot)) = firsts.into_iter().flatten().min().copied()
            && heard_at.plus(RESUME_FOR) <= now
        {
            left -= 1;
            self.drop_host(slot, changes);
        }
        self.bury(&mut left);
        let by_name = &self.by_name;
        let slots = &self.slots;
        let heard = |name: &Name, tenure: u64| {
            let host = by_name.get(name).and_then(|slot| slots[*slot as usize].as_ref());
            host.filter(|host| host.tenure == tenure).map(|host| host.heard_at)
        };
        self.secrets.prune(now, left.min(at_most), heard, changes);
        left == 0
    }

    /// Lets silent hosts go, those first that were silent longest, until a claim has room; a bounded part of it.
    /// Whether another call may make more.
    pub fn make_room(
        &mut self,
        now: Millis,
        conn: ConnId,
        claim: &Claim,
        at_most: usize,
        changes: &mut Vec<Change>,
    ) -> bool {
        let now = self.at(now);
        self.expire(now, at_most);
        for _ in 0..at_most {
            // For what is refused anyway nobody has to go.
            let Ok(plan) = self.plan(now, conn, claim) else { return false };
            let Some(lack) = self.room.lack(plan.before.as_ref(), &plan.after) else { return false };
            if !self.give_way(&lack, &claim.hostname, changes) {
                return false;
            }
        }
        true
    }

    /// The same for a file that a host wants to publish.
    pub fn make_room_to_publish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
        at_most: usize,
        changes: &mut Vec<Change>,
    ) {
        let now = self.at(now);
        for _ in 0..at_most {
            let Ok(slot) = self.own(conn, hostname) else { return };
            let Some(lack) = self.lack_to_publish(slot, fname) else { return };
            self.expire(now, at_most);
            if !self.give_way(&lack, hostname, changes) {
                return;
            }
        }
    }

    /// Lets the host go that was silent longest of those that hold what is lacking; whether there was one.
    fn give_way(&mut self, lack: &Lack, but_not: &Name, changes: &mut Vec<Change>) -> bool {
        let is_another = |slot: &Slot| self.slots[*slot as usize].as_ref().is_some_and(|host| host.name != *but_not);
        let oldest = match lack {
            Lack::InAll { by_account, .. } => {
                let silent = if *by_account { &self.silent_users } else { &self.silent_strangers };
                silent.iter().map(|(_, slot)| *slot).find(is_another)
            }
            Lack::OfSource { source, .. } => {
                let all = (*source, Millis(0), 0)..=(*source, Millis(u64::MAX), Slot::MAX);
                self.silent_of.range(all).map(|(_, _, slot)| *slot).find(is_another)
            }
        };
        if let Some(slot) = oldest {
            self.drop_host(slot, changes);
        }
        oldest.is_some()
    }

    /// Who was heard and is not saved yet, `at_most` so many: the rows' ids and when.
    pub fn take_unsaved(&mut self, at_most: usize) -> Vec<(u64, Millis)> {
        let from = self.unsaved.len().saturating_sub(at_most);
        let slots = self.unsaved.split_off(from);
        let mut rows = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(host) = self.slots[slot as usize].as_mut()
                && std::mem::take(&mut host.is_unsaved)
            {
                rows.push((host.id, host.heard_at));
            }
        }
        rows
    }

    /// Takes over what was only in another memory of the same disk: open connections, and who was heard when.
    pub fn adopt(&mut self, old: &Registry) {
        self.at(old.now);
        for host in old.slots.iter().flatten() {
            let Some(slot) = self.by_name.get(&host.name).copied() else { continue };
            let Some(own) = self.slots[slot as usize].as_mut() else { continue };
            if own.id != host.id || own.tenure != host.tenure {
                continue;
            }
            if let Some(conn) = host.conn {
                own.conn = Some(conn);
                self.by_conn.insert(conn, slot);
                self.totals.active_clients += u64::from(own.is_live);
            }
            let heard_at = host.heard_at.max(own.heard_at);
            if heard_at > own.heard_at {
                self.hear_slot(heard_at, slot);
            }
        }
    }

    /// What is shown, counted. Exact after [`expire`](Registry::expire).
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Hosts, silent ones included; files of all of them; different names and contents of published ones;
    /// files of hosts that are gone, which are still to be taken out of the indices; hosts and published files of
    /// users and of others, as their bounds count them; hostnames without a host that a secret gives back.
    pub fn sizes(&self) -> [(&'static str, u64); 10] {
        let buried: usize = self.graves.iter().map(|grave| grave.files.len()).sum();
        let [user_hosts, user_files, anonymous_hosts, anonymous_files] = self.room.held();
        [
            ("hosts_known", self.by_name.len()),
            ("files_known", self.known_files),
            ("file_names", self.by_file.len()),
            ("file_contents", self.by_content.len()),
            ("files_to_bury", buried),
            ("user_hosts", user_hosts),
            ("user_files", user_files),
            ("anonymous_hosts", anonymous_hosts),
            ("anonymous_files", anonymous_files),
            ("hostnames_left", self.secrets.farewells()),
        ]
        .map(|(name, size)| (name, size as u64))
    }

    // What stands in for everything above.

    fn at(&mut self, now: Millis) -> Millis {
        self.now = self.now.max(now);
        self.now
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn host_of(&self, conn: ConnId) -> Option<(Slot, &Host)> {
        let slot = *self.by_conn.get(&conn)?;
        self.slots[slot as usize].as_ref().map(|host| (slot, host))
    }

    fn host_named(&self, name: &str) -> Option<(Slot, &Host)> {
        let slot = *self.by_name.get(&Name::kept(name).ok()?)?;
        self.slots[slot as usize].as_ref().map(|host| (slot, host))
    }

    /// The slot of the host that a connection holds, if that is the one it speaks of.
    fn own(&self, conn: ConnId, hostname: &Name) -> Result<Slot, Refusal> {
        match self.host_of(conn) {
            None => Err(Refusal::NotRegistered),
            Some((slot, host)) if host.name == *hostname => Ok(slot),
            Some((_, host)) => Err(Refusal::OneHostname(host.name.clone())),
        }
    }

    /// Puts a host into a free slot. It is neither live nor silent yet.
    fn put(&mut self, host: Host) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // Far below: hosts are bounded, and so are those to be buried.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_name.insert(host.name.clone(), slot);
        self.slots[slot as usize] = Some(host);
        self.recount(slot);
        slot
    }

    /// Counts what a host holds now.
    fn recount(&mut self, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let published = usize::try_from(host.published).unwrap_or(usize::MAX);
        let now = Holding {
            by_account: host.by_account,
            source: source::of(host.source),
            hosts: 1,
            files: published.max(host.promised),
            hidden: host.files.len() - published,
        };
        let before = host.held.replace(now).unwrap_or(Holding { hosts: 0, files: 0, hidden: 0, ..now });
        self.room.replace(&before, &now);
    }

    fn hear_slot(&mut self, now: Millis, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let heard_before = std::mem::replace(&mut host.heard_at, now);
        if !std::mem::replace(&mut host.is_unsaved, true) {
            self.unsaved.push(slot);
        }
        if host.is_live {
            if heard_before != now {
                self.live.remove(&(heard_before, slot));
                self.live.insert((now, slot));
            }
        } else {
            self.unsilence(slot, heard_before);
            self.rise(slot);
            self.tell_came(slot, false);
        }
    }

    /// Among the silent ones, by when it was last heard.
    fn silence(&mut self, slot: Slot) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.by_account {
            self.silent_users.insert((host.heard_at, slot));
        } else {
            self.silent_strangers.insert((host.heard_at, slot));
            self.silent_of.insert((source::of(host.source), host.heard_at, slot));
        }
    }

    /// Not among the silent ones any more, where it stood as last heard then.
    fn unsilence(&mut self, slot: Slot, heard_at: Millis) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.by_account {
            self.silent_users.remove(&(heard_at, slot));
        } else {
            self.silent_strangers.remove(&(heard_at, slot));
            self.silent_of.remove(&(source::of(host.source), heard_at, slot));
        }
    }

    /// A host is shown from now on.
    fn rise(&mut self, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        host.is_live = true;
        self.live_users += usize::from(host.by_account);
        self.live.insert((host.heard_at, slot));
        self.names.insert(host.name.clone(), slot);
        self.totals.total_clients += 1;
        self.totals.active_clients += u64::from(host.conn.is_some());
        self.totals.total_files += host.published;
        self.totals.total_size += host.published_size;
        self.touch(slot);
    }

    fn fall_silent(&mut self, slot: Slot) {
        self.tell_gone(slot);
        self.hide(slot);
        self.silence(slot);
    }

    /// A host is not shown any more; it is neither live nor silent then.
    fn hide(&mut self, slot: Slot) {
        let Some(heard_at) = self.slots[slot as usize].as_ref().map(|host| host.heard_at) else { return };
        self.unsilence(slot, heard_at);
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        if std::mem::take(&mut host.is_live) {
            self.live.remove(&(host.heard_at, slot));
            self.names.remove(host.name.as_str());
            self.totals.total_clients -= 1;
            self.totals.active_clients -= u64::from(host.conn.is_some());
            self.totals.total_files -= host.published;
            self.totals.total_size -= host.published_size;
            self.live_users -= usize::from(host.by_account);
            self.touch(slot);
        }
    }

    /// Something of a host that is shown has changed.
    fn touch(&mut self, slot: Slot) {
        let (Some(touched), Some(host)) = (&mut self.touched, &self.slots[slot as usize]) else { return };
        if touched.names.len() < TOUCHED_MAX {
            touched.names.insert(host.name.clone());
        } else {
            touched.too_many = true;
        }
    }

    /// The hosts of which something has changed since this was asked last, and remembers those that change from now
    /// on: until it `is_wanted` no more. None: which they are is not known, there were too many, or nobody had asked.
    pub fn take_touched(&mut self, is_wanted: bool) -> Option<BTreeSet<Name>> {
        let touched = std::mem::replace(&mut self.touched, is_wanted.then(Touched::default));
        touched.filter(|touched| !touched.too_many).map(|touched| touched.names)
    }

    /// A host is gone. Its secrets stay.
    fn drop_host(&mut self, slot: Slot, changes: &mut Vec<Change>) {
        if self.slots[slot as usize].as_ref().is_some_and(|host| host.is_live) {
            self.tell_gone(slot);
        }
        self.hide(slot);
        let Some(host) = self.slots[slot as usize].take() else { return };
        self.by_name.remove(&host.name);
        self.secrets.left(&host.name, host.source, host.heard_at, changes);
        if let Some(conn) = host.conn {
            self.by_conn.remove(&conn);
        }
        self.known_files -= host.files.len();
        if let Some(held) = &host.held {
            self.room.give_back(held);
        }
        changes.push(Change::DropHost(host.id));
        self.graves.push(Grave { slot, files: host.files });
    }

    /// Takes files of hosts that are gone out of the indices.
    fn bury(&mut self, left: &mut usize) {
        while *left > 0
            && let Some(grave) = self.graves.last_mut()
        {
            let slot = grave.slot;
            match grave.files.pop_last() {
                None => {
                    self.graves.pop();
                    self.free.push(slot);
                }
                Some((fname, entry)) => {
                    *left -= 1;
                    if entry.is_published {
                        self.unindex(slot, &fname, &entry);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("hosts", &self.by_name.len())
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}
