//! The secrets that REGISTER issues and that get a hostname back. Only their SHA-256 is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use super::RESUME_FOR;
use super::change::RegistryChange;
use super::departed::DepartedHostnames;
use super::quotas::RegistryLimits;
use super::secret_hash::SecretHash;
use crate::model::{Millis, Name};
use crate::net::source;

/// Maximum number of secrets per hostname; the newest are kept.
const SECRETS_MAX: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct ResumeSecret {
    pub(super) hash: SecretHash,
    /// The lease of the hostname that it belongs to.
    pub(super) lease_id: u64,
    /// It was issued to the user whose account has the hostname.
    pub(super) is_user: bool,
    /// When it was last issued, or when its host was last seen before it was removed.
    pub(super) issued_at: Millis,
    pub(super) source: IpAddr,
}

impl ResumeSecret {
    /// It is valid for 30 days after it was issued or its host was last seen, whichever is later.
    fn expires_at(&self, last_seen: Option<Millis>) -> Millis {
        self.issued_at.max(last_seen.unwrap_or_default()).plus(RESUME_FOR)
    }
}

#[derive(Debug)]
pub(super) struct ResumeSecrets {
    by_name: BTreeMap<Name, Vec<ResumeSecret>>,
    /// Where [`prune`](ResumeSecrets::prune) continues.
    pruned_up_to: Option<Name>,
    /// Hostnames without a host. Those of users are not included: there are no more of them than accounts.
    departed: DepartedHostnames,
}

impl ResumeSecrets {
    pub(super) fn new(limits: &RegistryLimits) -> ResumeSecrets {
        let departed = DepartedHostnames::new(limits.hosts, limits.hosts_per_source);
        ResumeSecrets { by_name: BTreeMap::new(), pruned_up_to: None, departed }
    }

    /// Finds a valid secret. `last_seen`: lease of the hostname's current host, and when that was last seen.
    pub(super) fn find(
        &self,
        now: Millis,
        hostname: &Name,
        key: &SecretHash,
        last_seen: Option<(u64, Millis)>,
    ) -> Option<&ResumeSecret> {
        let secret = self.by_name.get(hostname)?.iter().find(|secret| secret.hash == *key)?;
        let last_seen = last_seen.filter(|(lease_id, _)| *lease_id == secret.lease_id).map(|(_, at)| at);
        (now < secret.expires_at(last_seen)).then_some(secret)
    }

    /// Adds a secret, dropping the oldest if there are too many.
    pub(super) fn insert(&mut self, hostname: &Name, secret: ResumeSecret, changes: &mut Vec<RegistryChange>) {
        let entry = self.by_name.entry(hostname.clone());
        // All secrets of a hostname are stored under one spelling.
        changes.push(put_change(entry.key(), &secret));
        let secrets = entry.or_default();
        secrets.retain(|known| known.hash != secret.hash);
        secrets.push(secret);
        self.departed.remove(hostname.as_str());
        if secrets.len() > SECRETS_MAX {
            // They are in the order in which they were issued.
            let oldest = secrets.remove(0);
            changes.push(RegistryChange::DropSecret { hostname: hostname.clone(), key: oldest.hash });
        }
    }

    /// Drops the expired secrets of a hostname. `last_seen`: as in [`find`](ResumeSecrets::find).
    pub(super) fn drop_expired(
        &mut self,
        now: Millis,
        hostname: &Name,
        last_seen: Option<(u64, Millis)>,
        changes: &mut Vec<RegistryChange>,
    ) {
        let last_seen = |lease_id: u64| last_seen.filter(|(of, _)| *of == lease_id).map(|(_, at)| at);
        self.drop_where(hostname.as_str(), |secret| secret.expires_at(last_seen(secret.lease_id)) <= now, changes);
    }

    /// Adds a secret from the store; to be called in the order of `issued_at`.
    pub(super) fn restore(&mut self, hostname: Name, secret: ResumeSecret) {
        self.by_name.entry(hostname).or_default().push(secret);
    }

    /// The host has been removed. Its secrets can get the name back for 30 days after it was last seen; beyond the
    /// limit, the secrets of hosts that were removed first are dropped.
    pub(super) fn host_departed(
        &mut self,
        hostname: &Name,
        source: IpAddr,
        last_seen_at: Millis,
        changes: &mut Vec<RegistryChange>,
    ) {
        self.host_replaced(hostname, last_seen_at, changes);
        if self.by_name.get(hostname).is_none_or(|secrets| secrets.iter().all(|secret| secret.is_user)) {
            return;
        }
        for gone in self.departed.add(hostname.clone(), source::key_of(source)) {
            self.drop_all(gone.as_str(), changes);
        }
    }

    /// Another host has the name from now on: the secrets of the former one are valid for 30 days after it was last
    /// seen, and nobody has departed.
    pub(super) fn host_replaced(&mut self, hostname: &Name, last_seen_at: Millis, changes: &mut Vec<RegistryChange>) {
        let secrets = self.by_name.get_mut(hostname).into_iter().flatten();
        for secret in secrets.filter(|secret| secret.issued_at < last_seen_at) {
            secret.issued_at = last_seen_at;
            changes.push(put_change(hostname, secret));
        }
    }

    pub(super) fn drop_anonymous(&mut self, hostname: &str, changes: &mut Vec<RegistryChange>) {
        self.drop_where(hostname, |secret| !secret.is_user, changes);
    }

    pub(super) fn drop_all(&mut self, hostname: &str, changes: &mut Vec<RegistryChange>) {
        self.drop_where(hostname, |_| true, changes);
    }

    /// After all secrets were restored: collects the hostnames without a host, by when they were last seen.
    pub(super) fn restore_departed(&mut self, has_host: impl Fn(&Name) -> bool) {
        let mut gone: Vec<(Millis, &Name, IpAddr)> = Vec::new();
        for (name, secrets) in self.by_name.iter().filter(|(name, _)| !has_host(name)) {
            let newest = secrets.iter().filter(|secret| !secret.is_user).max_by_key(|secret| secret.issued_at);
            gone.extend(newest.map(|secret| (secret.issued_at, name, secret.source)));
        }
        gone.sort();
        for (_, name, source) in gone {
            self.departed.restore(name.clone(), source::key_of(source));
        }
    }

    pub(super) fn departed_count(&self) -> usize {
        self.departed.len()
    }

    fn drop_where(
        &mut self,
        hostname: &str,
        should_drop: impl Fn(&ResumeSecret) -> bool,
        changes: &mut Vec<RegistryChange>,
    ) {
        let Ok(hostname) = Name::from_stored(hostname) else { return };
        let Some((name, _)) = self.by_name.get_key_value(&hostname) else { return };
        let name = name.clone();
        let Some(secrets) = self.by_name.get_mut(&name) else { return };
        secrets.retain(|secret| {
            let is_dropped = should_drop(secret);
            if is_dropped {
                changes.push(RegistryChange::DropSecret { hostname: name.clone(), key: secret.hash });
            }
            !is_dropped
        });
        if secrets.is_empty() {
            self.by_name.remove(&name);
            self.departed.remove(name.as_str());
        }
    }

    /// Drops expired secrets of the next `at_most` hostnames, starting over at the end. `last_seen`: when the host with
    /// that name and lease was last seen, if there is one.
    pub(super) fn prune(
        &mut self,
        now: Millis,
        at_most: usize,
        last_seen: impl Fn(&Name, u64) -> Option<Millis>,
        changes: &mut Vec<RegistryChange>,
    ) {
        if at_most == 0 {
            return;
        }
        let from = self.pruned_up_to.take();
        let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let names: Vec<Name> = self
            .by_name
            .range::<Name, _>((from, Bound::Unbounded))
            .take(at_most)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            let is_over = |secret: &ResumeSecret| secret.expires_at(last_seen(name, secret.lease_id)) <= now;
            self.drop_where(name.as_str(), is_over, changes);
        }
        self.pruned_up_to = if names.len() < at_most { None } else { names.last().cloned() };
    }

    /// The largest lease id, so that new ids do not repeat it.
    pub(super) fn last_lease_id(&self) -> u64 {
        self.by_name.values().flatten().map(|secret| secret.lease_id).max().unwrap_or_default()
    }

    /// The hostnames without a host, in the order in which their hosts were removed.
    #[cfg(test)]
    pub(super) fn departed_names(&self) -> Vec<Name> {
        self.departed.names()
    }

    #[cfg(test)]
    pub(super) fn count(&self, hostname: &str) -> usize {
        self.by_name.get(&Name::new(hostname).unwrap()).map_or(0, Vec::len)
    }
}

fn put_change(hostname: &Name, secret: &ResumeSecret) -> RegistryChange {
    RegistryChange::Secret {
        hostname: hostname.clone(),
        key: secret.hash,
        lease_id: secret.lease_id,
        is_user: secret.is_user,
        issued_at: secret.issued_at,
        source: secret.source,
    }
}
