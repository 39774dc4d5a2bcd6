//! Room for hosts and files, and whose it is. SPEC.md section 2: what anonymous sources may fill is shared.
//!
//! Users' hosts have room of their own, as much as all others together, so that neither takes the other's. A host
//! counts from its REGISTER until nothing can bring it back, also when it only closed. A file counts while it is
//! published; what is not published is remembered while there is room for that, and never in the way.

use super::{Bounds, Refusal};
use crate::net::shares::Shares;
use crate::net::source::Source;

/// What one host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    /// It is a user's.
    pub(super) by_account: bool,
    /// Where its connection came from.
    pub(super) source: Source,
    /// Itself: one, or none of one that is not there yet.
    pub(super) hosts: usize,
    /// Published files, and those that it was promised room for.
    pub(super) files: usize,
    /// Files that are not published.
    pub(super) hidden: usize,
}

/// What there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// Anybody of that kind.
    InAll { by_account: bool, what: &'static str },
    /// This source, which has its share.
    OfSource { source: Source, share: usize, what: &'static str },
}

impl From<Lack> for Refusal {
    fn from(lack: Lack) -> Refusal {
        match lack {
            Lack::InAll { what, .. } => Refusal::Full(what),
            Lack::OfSource { source, share, what } => Refusal::ShareFull { what, source_of_it: source, share },
        }
    }
}

#[derive(Debug, Default)]
struct Pool {
    hosts: usize,
    files: usize,
    hidden: usize,
}

/// All that is held.
#[derive(Debug)]
pub(super) struct Room {
    bounds: Bounds,
    users: Pool,
    strangers: Pool,
    hosts: Shares,
    files: Shares,
    hidden: Shares,
}

impl Room {
    pub(super) fn new(bounds: Bounds) -> Room {
        Room {
            bounds,
            users: Pool::default(),
            strangers: Pool::default(),
            hosts: Shares::new(bounds.hosts, bounds.hosts_of_one),
            files: Shares::new(bounds.files, bounds.files_of_one),
            hidden: Shares::new(bounds.hidden, bounds.hidden_of_one),
        }
    }

    /// What there is no room for, if one holding is to take another's place.
    pub(super) fn lack(&self, before: Option<&Holding>, after: &Holding) -> Option<Lack> {
        let before = before.filter(|before| before.by_account == after.by_account);
        let pool = self.pool(after.by_account);
        let wants = |what, held: usize, bound: usize, freed: Option<usize>, wanted: usize| {
            let more = wanted.saturating_sub(freed.unwrap_or_default());
            let is_too_much = more > 0 && held + more > bound;
            is_too_much.then_some(Lack::InAll { by_account: after.by_account, what })
        };
        let (hosts, files) = (before.map(|before| before.hosts), before.map(|before| before.files));
        let in_all = wants("hosts", pool.hosts, self.bounds.hosts, hosts, after.hosts)
            .or_else(|| wants("files", pool.files, self.bounds.files, files, after.files));
        if in_all.is_some() || after.by_account {
            return in_all;
        }
        let own = before.filter(|before| before.source == after.source);
        let of_source = |what, shares: &Shares, freed: Option<usize>, wanted: usize| {
            let full = shares.has_room(after.source, wanted.saturating_sub(freed.unwrap_or_default())).err()?;
            Some(Lack::OfSource { source: after.source, share: full.share, what })
        };
        of_source("hostnames without an account", &self.hosts, own.map(|own| own.hosts), after.hosts)
            .or_else(|| of_source("files without an account", &self.files, own.map(|own| own.files), after.files))
    }

    /// Whether one more file that is not published may be remembered.
    pub(super) fn may_hide(&self, holder: &Holding) -> bool {
        let has_room = self.pool(holder.by_account).hidden < self.bounds.hidden;
        has_room && (holder.by_account || self.hidden.has_room(holder.source, 1).is_ok())
    }

    /// Counts a holding in place of another.
    pub(super) fn replace(&mut self, before: &Holding, after: &Holding) {
        if before != after {
            self.give_back(before);
            self.take(after);
        }
    }

    /// Counts it no more.
    pub(super) fn give_back(&mut self, holding: &Holding) {
        let pool = if holding.by_account { &mut self.users } else { &mut self.strangers };
        pool.hosts -= holding.hosts;
        pool.files -= holding.files;
        pool.hidden -= holding.hidden;
        if !holding.by_account {
            self.hosts.give_back(holding.source, holding.hosts);
            self.files.give_back(holding.source, holding.files);
            self.hidden.give_back(holding.source, holding.hidden);
        }
    }

    fn take(&mut self, holding: &Holding) {
        let pool = if holding.by_account { &mut self.users } else { &mut self.strangers };
        pool.hosts += holding.hosts;
        pool.files += holding.files;
        pool.hidden += holding.hidden;
        if !holding.by_account {
            self.hosts.take(holding.source, holding.hosts);
            self.files.take(holding.source, holding.files);
            self.hidden.take(holding.source, holding.hidden);
        }
    }

    fn pool(&self, by_account: bool) -> &Pool {
        if by_account { &self.users } else { &self.strangers }
    }

    /// Hosts and published files of users, hosts and published files of others.
    pub(super) fn held(&self) -> [usize; 4] {
        [self.users.hosts, self.users.files, self.strangers.hosts, self.strangers.files]
    }
}
