//! What REGISTER answers, and what gives the hostname back: of the secrets only their SHA-256 is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Bound;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::farewells::Farewells;
use super::{Bounds, Change, RESUME_FOR};
use crate::model::{Millis, Name, Token};
use crate::net::source;

/// Most secrets of a hostname; of more, the newest.
const SECRETS_MAX: usize = 4;

/// What stands for a secret: its SHA-256.
#[derive(Clone, Copy)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// Of a secret as a client says it.
    pub fn of(secret: &Token) -> SecretKey {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, secret.reveal().as_bytes()).as_ref());
        SecretKey(key)
    }

    /// As it was stored.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<SecretKey> {
        bytes.try_into().ok().map(SecretKey)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In constant time.
impl PartialEq for SecretKey {
    fn eq(&self, other: &SecretKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretKey {}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// A secret that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Secret {
    pub(super) key: SecretKey,
    /// Of which tenure of the hostname.
    pub(super) tenure: u64,
    /// It was answered to the user whose account bears the hostname.
    pub(super) by_account: bool,
    /// When it was answered last, or its host was last heard before it went.
    pub(super) made_at: Millis,
    /// Where it was answered to.
    pub(super) source: IpAddr,
}

impl Secret {
    /// Until when it is good: 30 days from when it was answered, and from when its host was last heard.
    fn ends_at(&self, heard: Option<Millis>) -> Millis {
        self.made_at.max(heard.unwrap_or_default()).plus(RESUME_FOR)
    }
}

/// The secrets of every hostname that has some.
#[derive(Debug)]
pub(super) struct Secrets {
    by_name: BTreeMap<Name, Vec<Secret>>,
    /// Up to where they were looked through.
    looked_at: Option<Name>,
    /// Whose host is gone. (Not users': of those there are no more than accounts.)
    farewells: Farewells,
}

impl Secrets {
    pub(super) fn new(bounds: &Bounds) -> Secrets {
        let farewells = Farewells::new(bounds.hosts, bounds.hosts_of_one);
        Secrets { by_name: BTreeMap::new(), looked_at: None, farewells }
    }

    /// One that is still good. `heard`: the tenure of the host that has the name, and when it was last heard.
    pub(super) fn find(
        &self,
        now: Millis,
        hostname: &Name,
        key: &SecretKey,
        heard: Option<(u64, Millis)>,
    ) -> Option<&Secret> {
        let secret = self.by_name.get(hostname)?.iter().find(|secret| secret.key == *key)?;
        let heard = heard.filter(|(tenure, _)| *tenure == secret.tenure).map(|(_, at)| at);
        (now < secret.ends_at(heard)).then_some(secret)
    }

    /// Keeps a secret; the oldest goes where there are too many.
    pub(super) fn put(&mut self, hostname: &Name, secret: Secret, changes: &mut Vec<Change>) {
        let entry = self.by_name.entry(hostname.clone());
        // All of a hostname are kept under one spelling.
        changes.push(change(entry.key(), &secret));
        let secrets = entry.or_default();
        secrets.retain(|known| known.key != secret.key);
        secrets.push(secret);
        self.farewells.remove(hostname.as_str());
        if secrets.len() > SECRETS_MAX {
            // In the order in which they were answered.
            let oldest = secrets.remove(0);
            changes.push(Change::DropSecret { hostname: hostname.clone(), key: oldest.key });
        }
    }

    /// Those of a hostname whose time is up are worth nothing any more, whoever has it from now on. `heard`: as in
    /// [`find`](Secrets::find).
    pub(super) fn end(
        &mut self,
        now: Millis,
        hostname: &Name,
        heard: Option<(u64, Millis)>,
        changes: &mut Vec<Change>,
    ) {
        let heard = |tenure: u64| heard.filter(|(of, _)| *of == tenure).map(|(_, at)| at);
        self.drop_where(hostname.as_str(), |secret| secret.ends_at(heard(secret.tenure)) <= now, changes);
    }

    /// As it was stored; in the order of `made_at`.
    pub(super) fn restore(&mut self, hostname: Name, secret: Secret) {
        self.by_name.entry(hostname).or_default().push(secret);
    }

    /// The host has gone that was last heard then. What it was answered gives the name back for 30 days from that;
    /// at the bound those of whoever went first end.
    pub(super) fn left(&mut self, hostname: &Name, source: IpAddr, heard_at: Millis, changes: &mut Vec<Change>) {
        let Some(secrets) = self.by_name.get_mut(hostname) else { return };
        for secret in secrets.iter_mut().filter(|secret| secret.made_at < heard_at) {
            secret.made_at = heard_at;
            changes.push(change(hostname, secret));
        }
        if secrets.iter().all(|secret| secret.by_account) {
            return;
        }
        for gone in self.farewells.add(hostname.clone(), source::of(source)) {
            self.forget_all(gone.as_str(), changes);
        }
    }

    /// Those that were not answered to the user are worth nothing any more.
    pub(super) fn forget_strangers(&mut self, hostname: &str, changes: &mut Vec<Change>) {
        self.drop_where(hostname, |secret| !secret.by_account, changes);
    }

    /// All of a hostname are worth nothing any more.
    pub(super) fn forget_all(&mut self, hostname: &str, changes: &mut Vec<Change>) {
        self.drop_where(hostname, |_| true, changes);
    }

    /// After all were restored: whose host is not there has gone, in the order in which they were last heard.
    pub(super) fn restore_farewells(&mut self, has_host: impl Fn(&Name) -> bool) {
        let mut gone: Vec<(Millis, &Name, IpAddr)> = Vec::new();
        for (name, secrets) in self.by_name.iter().filter(|(name, _)| !has_host(name)) {
            let newest = secrets.iter().filter(|secret| !secret.by_account).max_by_key(|secret| secret.made_at);
            gone.extend(newest.map(|secret| (secret.made_at, name, secret.source)));
        }
        gone.sort();
        for (_, name, source) in gone {
            self.farewells.restore(name.clone(), source::of(source));
        }
    }

    /// How many hostnames are left without a host.
    pub(super) fn farewells(&self) -> usize {
        self.farewells.len()
    }

    fn drop_where(&mut self, hostname: &str, is_over: impl Fn(&Secret) -> bool, changes: &mut Vec<Change>) {
        let Ok(hostname) = Name::kept(hostname) else { return };
        let Some((name, _)) = self.by_name.get_key_value(&hostname) else { return };
        let name = name.clone();
        let Some(secrets) = self.by_name.get_mut(&name) else { return };
        secrets.retain(|secret| {
            let goes = is_over(secret);
            if goes {
                changes.push(Change::DropSecret { hostname: name.clone(), key: secret.key });
            }
            !goes
        });
        if secrets.is_empty() {
            self.by_name.remove(&name);
            self.farewells.remove(name.as_str());
        }
    }

    /// Looks through the next so many hostnames, and begins anew at the end. `heard`: when the host of that name
    /// and tenure was last heard, if there is one.
    pub(super) fn prune(
        &mut self,
        now: Millis,
        at_most: usize,
        heard: impl Fn(&Name, u64) -> Option<Millis>,
        changes: &mut Vec<Change>,
    ) {
        if at_most == 0 {
            return;
        }
        let from = self.looked_at.take();
        let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let names: Vec<Name> = self
            .by_name
            .range::<Name, _>((from, Bound::Unbounded))
            .take(at_most)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            self.drop_where(name.as_str(), |secret| secret.ends_at(heard(name, secret.tenure)) <= now, changes);
        }
        self.looked_at = if names.len() < at_most { None } else { names.last().cloned() };
    }

    /// The largest tenure, for numbers that must be new.
    pub(super) fn last_tenure(&self) -> u64 {
        self.by_name.values().flatten().map(|secret| secret.tenure).max().unwrap_or_default()
    }

    /// The hostnames without a host, in the order in which those went.
    #[cfg(test)]
    pub(super) fn without_host(&self) -> Vec<Name> {
        self.farewells.names()
    }

    /// How many there are of a hostname.
    #[cfg(test)]
    pub(super) fn count(&self, hostname: &str) -> usize {
        self.by_name.get(&Name::new(hostname).unwrap()).map_or(0, Vec::len)
    }
}

fn change(hostname: &Name, secret: &Secret) -> Change {
    Change::Secret {
        hostname: hostname.clone(),
        key: secret.key,
        tenure: secret.tenure,
        by_account: secret.by_account,
        made_at: secret.made_at,
        source: secret.source,
    }
}
