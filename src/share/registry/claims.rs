//! REGISTER: who may have a hostname, and what stays of who had it. SPEC.md section 6, "Who may".

use std::net::IpAddr;
use std::sync::Arc;

use super::room::Holding;
use super::secrets::Secret;
use super::{Change, ConnId, Host, Refusal, Registry, SecretKey};
use crate::model::{Millis, Name};
use crate::net::source;
use crate::share::wire::Files;

/// Who wants to be a host.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Under which name.
    pub hostname: Name,
    /// For people.
    pub display_name: Arc<str>,
    /// Where the files can be had.
    pub port: u16,
    /// At which address, if not the source.
    pub ip: Option<IpAddr>,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// Whether the name is a user's, and how the claim shows to be of that one.
    pub standing: Standing,
    /// What was answered before.
    pub resume: Option<SecretKey>,
    /// What will be answered if `resume` is of no use.
    pub fresh: SecretKey,
    /// No list was given: with a `resume` that is good the former one stays.
    pub keeps_files: bool,
    /// How many published files the list has that was given.
    pub file_count: usize,
    /// The registry is on the host of that address: one from loopback may say it.
    pub ip_is_here: bool,
}

/// What a hostname is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody's.
    Free,
    /// A user account's.
    Account(Proof),
}

/// How a claim shows to be the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Not at all.
    None,
    /// By a valid token.
    Token,
    /// The user signed in from there, and that is enough here.
    Address,
}

/// A claim that is granted.
#[derive(Debug, PartialEq)]
pub struct Granted {
    /// The connection gets the secret that it showed, not the fresh one.
    pub resumed: bool,
    /// The former list stays; else [`Registry::replace_files`] is to be called with the new one until it is done.
    pub files_stay: bool,
    /// The address under which it is shown.
    pub ip: IpAddr,
    /// The connection that held the hostname until now.
    pub replaced: Option<ConnId>,
    /// What is to be kept.
    pub changes: Vec<Change>,
}

/// A claim that would be granted if there is room.
pub(super) struct Plan {
    /// What it showed, if that is good.
    secret: Option<Secret>,
    stays: Stays,
    ip: IpAddr,
    files_stay: bool,
    /// What is counted for whoever has the name now.
    pub(super) before: Option<Holding>,
    /// What would be counted then.
    pub(super) after: Holding,
}

/// What stays of who had the name.
enum Stays {
    /// Nothing: there was none, or somebody else.
    Nothing,
    /// The row: somebody at the same address comes first.
    Place,
    /// Everything: it is the same one.
    All,
}

impl Registry {
    /// Whether a claim would be granted if there is room, and what it would come to.
    pub(super) fn plan(&self, now: Millis, conn: ConnId, claim: &Claim) -> Result<Plan, Refusal> {
        if let Some(held) = self.held_by(conn)
            && *held != claim.hostname
        {
            return Err(Refusal::OneHostname(held.clone()));
        }
        let known = self.host_named(claim.hostname.as_str()).map(|(_, host)| host);
        let is_account = matches!(claim.standing, Standing::Account(_));
        let heard = known.map(|host| (host.tenure, host.heard_at));
        let secret = claim.resume.and_then(|key| self.secrets.find(now, &claim.hostname, &key, heard).copied());
        // Of a user's hostname, what a stranger was given before it was the user's is worth nothing.
        let secret = secret.filter(|secret| secret.by_account || !is_account);
        let stays = self.may_have(now, conn, claim, known, secret.as_ref())?;
        let stays_all = matches!(stays, Stays::All);
        let former_ip = known.filter(|host| stays_all && host.by_account).map(|host| host.ip);
        let ip = allowed_ip(claim, claim.source.to_canonical(), former_ip)?;
        let files_stay = claim.keeps_files && secret.is_some() && stays_all;
        let before = known.and_then(|host| host.held);
        let files = match before {
            Some(held) if files_stay => held.files,
            _ if files_stay => 0,
            _ => claim.file_count,
        };
        let source = source::of(claim.source);
        let after = Holding { by_account: is_account, source, hosts: 1, files, hidden: 0 };
        Ok(Plan { secret, stays, ip, files_stay, before, after })
    }

    /// REGISTER.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn register(&mut self, now: Millis, conn: ConnId, claim: &Claim) -> Result<Granted, Refusal> {
        let now = self.at(now);
        let source = claim.source.to_canonical();
        let Plan { secret, stays, ip, files_stay, before, after } = self.plan(now, conn, claim)?;
        if let Some(lack) = self.room.lack(before.as_ref(), &after) {
            return Err(lack.into());
        }

        let is_account = after.by_account;
        let known = self.host_named(claim.hostname.as_str());
        let heard = known.map(|(_, host)| (host.tenure, host.heard_at));
        let known = known.map(|(slot, _)| slot);
        let mut changes = Vec::new();
        self.secrets.end(now, &claim.hostname, heard, &mut changes);
        let mut replaced = None;
        let is_holder = self.by_conn.contains_key(&conn);
        let slot = match (known, &stays) {
            (Some(slot), Stays::Place | Stays::All) => slot,
            (known, _) => {
                if let Some(slot) = known {
                    replaced = self.slots[slot as usize].as_ref().and_then(|host| host.conn);
                    self.drop_host(slot, &mut changes);
                }
                let id = self.number();
                self.put(new_host(id, claim, ip))
            }
        };
        let tenure = match (&stays, &secret, &self.slots[slot as usize]) {
            (Stays::All, _, Some(host)) => host.tenure,
            // Who comes back with a secret after its host went goes on where it was.
            (_, Some(secret), _) => secret.tenure,
            _ => {
                // Another holds the name from now on: what was answered to whoever had it before gives nothing back.
                self.secrets.forget_all(claim.hostname.as_str(), &mut changes);
                self.number()
            }
        };
        let was_shown = self.slots[slot as usize].as_ref().is_some_and(|host| host.is_live);
        // Taken out and put back, so that every count follows.
        self.hide(slot);
        let Some(host) = self.slots[slot as usize].as_mut() else { return Err(Refusal::UnknownHost) };
        if let Some(other) = host.conn.replace(conn).filter(|other| *other != conn) {
            self.by_conn.remove(&other);
            replaced = Some(other);
        }
        if !is_holder {
            host.connected_at = now;
        }
        (host.ip, host.port, host.source) = (ip, claim.port, source);
        host.display_name = Arc::clone(&claim.display_name);
        (host.by_account, host.tenure, host.heard_at) = (is_account, tenure, now);
        host.promised = if files_stay { 0 } else { after.files };
        changes.push(Change::Host(Box::new(host.row())));
        self.recount(slot);
        self.by_conn.insert(conn, slot);
        self.rise(slot);
        self.tell_came(slot, was_shown);

        let resumed = secret.is_some();
        let key = match (&claim.resume, resumed) {
            (Some(key), true) => *key,
            _ => claim.fresh,
        };
        let secret = Secret { key, tenure, by_account: is_account, made_at: now, source };
        self.secrets.put(&claim.hostname, secret, &mut changes);
        Ok(Granted { resumed, files_stay, ip, replaced, changes })
    }

    /// Whether a claim may have its hostname, and what stays then.
    fn may_have(
        &self,
        now: Millis,
        conn: ConnId,
        claim: &Claim,
        known: Option<&Host>,
        secret: Option<&Secret>,
    ) -> Result<Stays, Refusal> {
        let is_account = matches!(claim.standing, Standing::Account(_));
        let is_proved = matches!(claim.standing, Standing::Account(Proof::Token | Proof::Address));
        let is_holder = known.is_some_and(|host| host.conn == Some(conn) && (host.by_account || !is_account));
        if is_account && !is_proved && secret.is_none() && !is_holder {
            return Err(Refusal::NeedsToken);
        }
        let Some(host) = known else { return Ok(Stays::Nothing) };
        let is_same_user = is_account && host.by_account;
        let is_same_tenure = secret.is_some_and(|secret| secret.tenure == host.tenure);
        if is_holder || is_same_user || is_same_tenure && host.by_account == is_account {
            return Ok(Stays::All);
        }
        if is_proved || secret.is_some() {
            return Ok(Stays::Nothing);
        }
        // One that was not heard for so long holds no name, whatever becomes of its connection.
        if now >= host.heard_at.plus(self.timeout) {
            return Ok(Stays::Nothing);
        }
        if host.conn.is_none() && host.source == claim.source.to_canonical() {
            return Ok(Stays::Place);
        }
        Err(Refusal::InUse)
    }
}

fn new_host(id: u64, claim: &Claim, ip: IpAddr) -> Host {
    Host {
        id,
        name: claim.hostname.clone(),
        display_name: Arc::clone(&claim.display_name),
        ip,
        port: claim.port,
        source: claim.source,
        by_account: false,
        tenure: 0,
        connected_at: Millis::default(),
        heard_at: Millis::default(),
        is_unsaved: false,
        conn: None,
        is_live: false,
        files: Files::new(),
        published: 0,
        published_size: 0,
        held: None,
        promised: 0,
        mark: 0,
    }
}

/// The address that is shown: the source (from loopback any of this host), or what a user with a valid token says. One
/// that such a user gave before stays good for who resumes, so that a token that has expired meanwhile locks nobody out.
fn allowed_ip(claim: &Claim, source: IpAddr, former: Option<IpAddr>) -> Result<IpAddr, Refusal> {
    let ip = claim.ip.map_or(source, |ip| ip.to_canonical());
    if ip.is_unspecified() {
        return Err(Refusal::Ip("expected an address of this host, not the unspecified one"));
    }
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_multicast() || is_broadcast {
        return Err(Refusal::Ip("expected an address of this host, not one of many"));
    }
    if ip.is_loopback() && !source.is_loopback() {
        return Err(Refusal::Ip("expected no loopback address from another host"));
    }
    let is_own = ip == source || source.is_loopback() && (ip.is_loopback() || claim.ip_is_here);
    if !is_own && claim.standing != Standing::Account(Proof::Token) && former != Some(ip) {
        return Err(Refusal::Ip("expected the address that this connection comes from (or a user's token)"));
    }
    Ok(ip)
}
