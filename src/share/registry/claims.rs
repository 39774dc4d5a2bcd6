//! REGISTER: who may have a hostname, and what is kept of its former holder. See `docs/spec/share.md`.

use std::net::IpAddr;
use std::sync::Arc;

use super::change::HostRow;
use super::quotas::HostUsage;
use super::secrets::ResumeSecret;
use super::{ConnId, HostRecord, Registry, RegistryChange, RegistryError, SecretHash};
use crate::model::{Millis, Name};
use crate::net::source;

#[derive(Debug, Clone)]
pub struct HostnameClaim {
    pub hostname: Name,
    pub display_name: Arc<str>,
    pub port: u16,
    /// Address of the peer server, if it is not the source address.
    pub ip: Option<IpAddr>,
    pub source: IpAddr,
    /// Whether the hostname belongs to an account, and how the claim proves to come from its user.
    pub status: HostnameStatus,
    pub resume_secret: Option<SecretHash>,
    /// The secret to issue unless `resume_secret` is valid.
    pub new_secret: SecretHash,
    /// No file list was given: with a valid `resume_secret` the former one stays.
    pub keeps_files: bool,
    pub file_count: usize,
    /// `ip` is an address of the registry's own machine, which a client on loopback may use.
    pub is_local_ip: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostnameStatus {
    Free,
    Account(AccountProof),
}

/// How a claim proves to come from the account's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountProof {
    None,
    /// It has a valid token of that user.
    Token,
    /// The user has signed in from the same address, and the server accepts that.
    Address,
}

#[derive(Debug, PartialEq)]
pub struct HostnameGrant {
    /// The presented secret was valid and stays in use; the new one is not issued.
    pub is_resumed: bool,
    /// The former file list stays; otherwise [`Registry::replace_files`] is to be called with the new one until done.
    pub keeps_files: bool,
    pub ip: IpAddr,
    /// The connection that held the hostname until now.
    pub replaced_conn: Option<ConnId>,
    pub changes: Vec<RegistryChange>,
}

/// A claim that passes all rules; only the quotas remain to be checked.
pub(super) struct ClaimPlan {
    /// The presented secret, if it is valid.
    secret: Option<ResumeSecret>,
    retained: Retained,
    ip: IpAddr,
    keeps_files: bool,
    /// What the quotas count for the current holder of the name.
    pub(super) before: Option<HostUsage>,
    /// What they would count afterwards.
    pub(super) after: HostUsage,
}

/// What is kept of the hostname's current holder.
enum Retained {
    /// Nothing: there is none, or it is a different host.
    Nothing,
    /// The record but not its secrets: another client at the same address may take over a closed host.
    Record,
    /// Everything: it is the same host.
    Everything,
}

impl Registry {
    /// Checks all rules but the quotas.
    pub(super) fn plan_claim(
        &self,
        now: Millis,
        conn: ConnId,
        claim: &HostnameClaim,
    ) -> Result<ClaimPlan, RegistryError> {
        if let Some(held) = self.hostname_of(conn)
            && *held != claim.hostname
        {
            return Err(RegistryError::OneHostname(held.clone()));
        }
        let known = self.host_by_name(claim.hostname.as_str()).map(|(_, host)| host);
        let is_account = matches!(claim.status, HostnameStatus::Account(_));
        let last_seen = known.map(|host| (host.lease_id, host.last_seen_at));
        let secret =
            claim.resume_secret.and_then(|key| self.secrets.find(now, &claim.hostname, &key, last_seen).copied());
        // A secret issued to an anonymous host is void once the hostname belongs to a user.
        let secret = secret.filter(|secret| secret.is_user || !is_account);
        let retained = self.check_claim(now, conn, claim, known, secret.as_ref())?;
        let retains_everything = matches!(retained, Retained::Everything);
        let former_ip = known.filter(|host| retains_everything && host.is_user).map(|host| host.ip);
        let ip = allowed_ip(claim, claim.source.to_canonical(), former_ip)?;
        let keeps_files = claim.keeps_files && secret.is_some() && retains_everything;
        let before = known.and_then(|host| host.usage);
        let files = match before {
            Some(held) if keeps_files => held.files,
            _ if keeps_files => 0,
            _ => claim.file_count,
        };
        let source = source::key_of(claim.source);
        let after = HostUsage { is_user: is_account, source, hosts: 1, files, unpublished_files: 0 };
        Ok(ClaimPlan { secret, retained, ip, keeps_files, before, after })
    }

    /// REGISTER: grants the hostname if all rules and quotas allow it; otherwise nothing has changed.
    pub fn register(
        &mut self,
        now: Millis,
        conn: ConnId,
        claim: &HostnameClaim,
    ) -> Result<HostnameGrant, RegistryError> {
        let now = self.advance_clock(now);
        let source = claim.source.to_canonical();
        let ClaimPlan { secret, retained, ip, keeps_files, before, after } = self.plan_claim(now, conn, claim)?;
        if let Some(exceeded) = self.quotas.exceeded_by(before.as_ref(), &after) {
            return Err(exceeded.into());
        }

        let is_account = after.is_user;
        let known = self.host_by_name(claim.hostname.as_str());
        let last_seen = known.map(|(_, host)| (host.lease_id, host.last_seen_at));
        let known = known.map(|(slot, _)| slot);
        let mut changes = Vec::new();
        self.secrets.drop_expired(now, &claim.hostname, last_seen, &mut changes);
        let mut replaced = None;
        let is_holder = self.by_conn.contains_key(&conn);
        let slot = match (known, &retained) {
            (Some(slot), Retained::Record | Retained::Everything) => slot,
            (known, _) => {
                if let Some(former) = known.and_then(|slot| self.take_host(slot, &mut changes)) {
                    replaced = former.conn;
                    self.secrets.host_replaced(&former.name, former.last_seen_at, &mut changes);
                }
                let id = self.allocate_id();
                self.insert_host(new_host(id, claim, ip))
            }
        };
        let lease_id = match (&retained, &secret, &self.slots[slot as usize]) {
            (Retained::Everything, _, Some(host)) => host.lease_id,
            // Coming back with a secret after the host was removed continues the former lease.
            (_, Some(secret), _) => secret.lease_id,
            _ => {
                // A new holder: secrets of the former one must not give the name back.
                self.secrets.drop_all(claim.hostname.as_str(), &mut changes);
                self.allocate_id()
            }
        };
        let was_shown = self.slots[slot as usize].as_ref().is_some_and(|host| host.is_live);
        // Detach and attach again, so that every index and total follows the new values.
        self.detach(slot);
        let Some(host) = self.slots[slot as usize].as_mut() else { return Err(RegistryError::UnknownHost) };
        if let Some(other) = host.conn.replace(conn).filter(|other| *other != conn) {
            self.by_conn.remove(&other);
            replaced = Some(other);
        }
        if !is_holder {
            host.connected_at = now;
        }
        (host.ip, host.port, host.source) = (ip, claim.port, source);
        host.display_name = Arc::clone(&claim.display_name);
        (host.is_user, host.lease_id, host.last_seen_at) = (is_account, lease_id, now);
        host.reserved_files = if keeps_files { 0 } else { after.files };
        changes.push(RegistryChange::Host(Box::new(host.row())));
        self.update_usage(slot);
        self.by_conn.insert(conn, slot);
        self.make_live(slot);
        self.log_host_listed(slot, was_shown);

        let is_resumed = secret.is_some();
        let key = match (&claim.resume_secret, is_resumed) {
            (Some(key), true) => *key,
            _ => claim.new_secret,
        };
        let secret = ResumeSecret { hash: key, lease_id, is_user: is_account, issued_at: now, source };
        self.secrets.insert(&claim.hostname, secret, &mut changes);
        Ok(HostnameGrant { is_resumed, keeps_files, ip, replaced_conn: replaced, changes })
    }

    /// Checks whether the claim may have its hostname, and returns what is kept of the current holder.
    fn check_claim(
        &self,
        now: Millis,
        conn: ConnId,
        claim: &HostnameClaim,
        known: Option<&HostRecord>,
        secret: Option<&ResumeSecret>,
    ) -> Result<Retained, RegistryError> {
        let is_account = matches!(claim.status, HostnameStatus::Account(_));
        let is_proved = matches!(claim.status, HostnameStatus::Account(AccountProof::Token | AccountProof::Address));
        let is_holder = known.is_some_and(|host| host.conn == Some(conn) && (host.is_user || !is_account));
        if is_account && !is_proved && secret.is_none() && !is_holder {
            return Err(RegistryError::NeedsToken);
        }
        let Some(host) = known else { return Ok(Retained::Nothing) };
        let is_same_user = is_account && host.is_user;
        let is_same_lease = secret.is_some_and(|secret| secret.lease_id == host.lease_id);
        if is_holder || is_same_user || is_same_lease && host.is_user == is_account {
            return Ok(Retained::Everything);
        }
        if is_proved || secret.is_some() {
            return Ok(Retained::Nothing);
        }
        // A timed-out host does not hold its name, even if its connection is still open.
        if now >= host.last_seen_at.plus(self.peer_timeout) {
            return Ok(Retained::Nothing);
        }
        if host.conn.is_none() && host.source == claim.source.to_canonical() {
            return Ok(Retained::Record);
        }
        Err(RegistryError::InUse)
    }
}

fn new_host(id: u64, claim: &HostnameClaim, ip: IpAddr) -> HostRecord {
    HostRecord::of(HostRow {
        id,
        hostname: claim.hostname.clone(),
        display_name: Arc::clone(&claim.display_name),
        ip,
        port: claim.port,
        source: claim.source,
        is_user: false,
        lease_id: 0,
        connected_at: Millis::default(),
        last_seen_at: Millis::default(),
    })
}

/// The address under which the host is listed: its source address (from loopback any address of this machine), or the
/// one given by a user with a valid token. An address that such a user gave before stays valid when resuming, so that
/// an expired token locks nobody out.
fn allowed_ip(claim: &HostnameClaim, source: IpAddr, former: Option<IpAddr>) -> Result<IpAddr, RegistryError> {
    let ip = claim.ip.map_or(source, |ip| ip.to_canonical());
    if ip.is_unspecified() {
        return Err(RegistryError::Ip("expected an address of this host, not the unspecified one"));
    }
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_multicast() || is_broadcast {
        return Err(RegistryError::Ip("expected an address of this host, not one of many"));
    }
    if ip.is_loopback() && !source.is_loopback() {
        return Err(RegistryError::Ip("expected no loopback address from another host"));
    }
    let is_own = ip == source || source.is_loopback() && (ip.is_loopback() || claim.is_local_ip);
    if !is_own && claim.status != HostnameStatus::Account(AccountProof::Token) && former != Some(ip) {
        return Err(RegistryError::Ip("expected the address that this connection comes from (or a user's token)"));
    }
    Ok(ip)
}
