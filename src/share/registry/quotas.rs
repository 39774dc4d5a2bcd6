//! Quotas for hosts and files. Room for anonymous hosts is shared among their source addresses; see
//! `docs/spec/general.md`.
//!
//! Hosts of user accounts have a pool of their own, of the same size as that of all anonymous hosts, so that neither
//! can crowd out the other. A host counts from its REGISTER until it is removed, whether its connection is open or
//! not. A file counts while it is published; unpublished files are only remembered while there is room for them.

use super::error::RegistryError;
use crate::net::quotas::SourceQuotas;
use crate::net::source::SourceKey;

/// Limits for hosts without an account. The same totals apply, separately, to hosts of user accounts.
#[derive(Debug, Clone, Copy)]
pub struct RegistryLimits {
    /// Hosts, including silent ones.
    pub hosts: usize,
    /// Published files of all hosts together.
    pub files: usize,
    /// Hosts without an account from one source address; loopback may have half of the total.
    pub hosts_per_source: usize,
    /// Their published files per source address; loopback may have half of the total.
    pub files_per_source: usize,
    /// Unpublished files that are remembered; beyond that they are forgotten.
    pub unpublished_files: usize,
    /// Unpublished files per source address; loopback may have half of the total.
    pub unpublished_files_per_source: usize,
}

impl Default for RegistryLimits {
    fn default() -> RegistryLimits {
        RegistryLimits {
            hosts: 500_000,
            files: 5_000_000,
            hosts_per_source: 1_000,
            files_per_source: 200_000,
            unpublished_files: 500_000,
            unpublished_files_per_source: 20_000,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostUsage {
    pub(super) is_user: bool,
    /// The address or network that its connection came from.
    pub(super) source: SourceKey,
    /// 1, or 0 for a host that does not exist yet.
    pub(super) hosts: usize,
    /// Published files, or the number reserved for them if that is larger.
    pub(super) files: usize,
    pub(super) unpublished_files: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotaExceeded {
    /// The total of all users' or of all anonymous hosts.
    Total { is_user: bool, what: &'static str },
    /// The share of this source.
    PerSource { source: SourceKey, share: usize, what: &'static str },
}

impl From<QuotaExceeded> for RegistryError {
    fn from(exceeded: QuotaExceeded) -> RegistryError {
        match exceeded {
            QuotaExceeded::Total { what, .. } => RegistryError::Full(what),
            QuotaExceeded::PerSource { source, share, what } => {
                RegistryError::ShareFull { what, source_of_it: source, share }
            }
        }
    }
}

#[derive(Debug, Default)]
struct PoolUsage {
    hosts: usize,
    files: usize,
    unpublished_files: usize,
}

#[derive(Debug)]
pub(super) struct Quotas {
    limits: RegistryLimits,
    users: PoolUsage,
    anonymous: PoolUsage,
    hosts: SourceQuotas,
    files: SourceQuotas,
    unpublished_files: SourceQuotas,
}

impl Quotas {
    pub(super) fn new(limits: RegistryLimits) -> Quotas {
        Quotas {
            limits,
            users: PoolUsage::default(),
            anonymous: PoolUsage::default(),
            hosts: SourceQuotas::new(limits.hosts, limits.hosts_per_source),
            files: SourceQuotas::new(limits.files, limits.files_per_source),
            unpublished_files: SourceQuotas::new(limits.unpublished_files, limits.unpublished_files_per_source),
        }
    }

    /// The quota that would be exceeded if `after` replaced `before`.
    pub(super) fn exceeded_by(&self, before: Option<&HostUsage>, after: &HostUsage) -> Option<QuotaExceeded> {
        let before = before.filter(|before| before.is_user == after.is_user);
        let pool = self.pool(after.is_user);
        let total_exceeded = |what, used: usize, limit: usize, freed: Option<usize>, needed: usize| {
            let more = needed.saturating_sub(freed.unwrap_or_default());
            let is_too_much = more > 0 && used + more > limit;
            is_too_much.then_some(QuotaExceeded::Total { is_user: after.is_user, what })
        };
        let (hosts, files) = (before.map(|before| before.hosts), before.map(|before| before.files));
        let total = total_exceeded("hosts", pool.hosts, self.limits.hosts, hosts, after.hosts)
            .or_else(|| total_exceeded("files", pool.files, self.limits.files, files, after.files));
        if total.is_some() || after.is_user {
            return total;
        }
        let own = before.filter(|before| before.source == after.source);
        let share_exceeded = |what, quotas: &SourceQuotas, freed: Option<usize>, needed: usize| {
            let exceeded = quotas.check_room(after.source, needed.saturating_sub(freed.unwrap_or_default())).err()?;
            Some(QuotaExceeded::PerSource { source: after.source, share: exceeded.quota, what })
        };
        share_exceeded("hostnames without an account", &self.hosts, own.map(|own| own.hosts), after.hosts)
            .or_else(|| share_exceeded("files without an account", &self.files, own.map(|own| own.files), after.files))
    }

    pub(super) fn has_unpublished_room(&self, holder: &HostUsage) -> bool {
        let has_room = self.pool(holder.is_user).unpublished_files < self.limits.unpublished_files;
        has_room && (holder.is_user || self.unpublished_files.check_room(holder.source, 1).is_ok())
    }

    /// Replaces one host's former usage with its current one.
    pub(super) fn replace(&mut self, before: &HostUsage, after: &HostUsage) {
        if before != after {
            self.release(before);
            self.add(after);
        }
    }

    pub(super) fn release(&mut self, usage: &HostUsage) {
        let pool = if usage.is_user { &mut self.users } else { &mut self.anonymous };
        pool.hosts -= usage.hosts;
        pool.files -= usage.files;
        pool.unpublished_files -= usage.unpublished_files;
        if !usage.is_user {
            self.hosts.release(usage.source, usage.hosts);
            self.files.release(usage.source, usage.files);
            self.unpublished_files.release(usage.source, usage.unpublished_files);
        }
    }

    fn add(&mut self, usage: &HostUsage) {
        let pool = if usage.is_user { &mut self.users } else { &mut self.anonymous };
        pool.hosts += usage.hosts;
        pool.files += usage.files;
        pool.unpublished_files += usage.unpublished_files;
        if !usage.is_user {
            self.hosts.acquire(usage.source, usage.hosts);
            self.files.acquire(usage.source, usage.files);
            self.unpublished_files.acquire(usage.source, usage.unpublished_files);
        }
    }

    fn pool(&self, is_user: bool) -> &PoolUsage {
        if is_user { &self.users } else { &self.anonymous }
    }

    /// Users' hosts, users' published files, anonymous hosts, anonymous hosts' published files.
    pub(super) fn usage_totals(&self) -> [usize; 4] {
        [self.users.hosts, self.users.files, self.anonymous.hosts, self.anonymous.files]
    }
}
