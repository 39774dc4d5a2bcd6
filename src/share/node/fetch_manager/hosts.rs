//! The hosts that have a file: which of them can be reached, and whose content is fetched.

use std::sync::Weak;

use crate::model::Name;
use crate::share::node::{FileOwner, NodeError, NodeInner};
use crate::share::transfer::{ContentIdentity, SourceFinder};
use crate::share::wire::{FileName, HostEntry, PORT_MIN};

/// So many hosts' contents are compared with each other.
const COMPARED_HOSTS_MAX: usize = 2_048;
/// So many owners are listed when the user has to choose one.
const NAMED_OWNERS_MAX: usize = 100;

/// Leaves out ourselves and, unless the registry is on loopback, hosts on loopback. With it comes one of those that
/// announce an unreachable address.
pub(super) fn find_reachable_hosts(
    inner: &NodeInner,
    name: &FileName,
) -> Result<(Vec<HostEntry>, Option<Name>), NodeError> {
    let mut hosts = inner.registry()?.request(name)?;
    hosts.retain(|host| host.hostname != inner.user);
    let allows_loopback = inner.is_registry_on_loopback();
    let is_on_loopback = |host: &&HostEntry| host.ip.to_canonical().is_loopback();
    let unreachable = hosts.iter().find(is_on_loopback).filter(|_| !allows_loopback).map(|host| host.hostname.clone());
    hosts.retain(|host| is_reachable(host, &inner.user, allows_loopback));
    Ok((hosts, unreachable))
}

pub(super) fn is_reachable(host: &HostEntry, own: &Name, allows_loopback: bool) -> bool {
    let ip = host.ip.to_canonical();
    // Peers do not use lower ports: another service would answer there.
    host.port >= PORT_MIN
        && host.hostname != *own
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && (allows_loopback || !ip.is_loopback())
}

pub(super) struct RegistrySourceFinder(pub Weak<NodeInner>);

impl SourceFinder for RegistrySourceFinder {
    fn find_hosts(&self, fname: &FileName) -> Result<Vec<HostEntry>, String> {
        let inner = self.0.upgrade().ok_or("the node has ended")?;
        find_reachable_hosts(&inner, fname).map(|(hosts, _)| hosts).map_err(|error| error.to_string())
    }
}

/// Prefers content that is verifiable in pieces, then as a whole, then the content that most hosts have.
pub(super) fn choose_host(hosts: &[HostEntry]) -> Option<&HostEntry> {
    // Comparing each with all others is quadratic: of very many hosts, an evenly spaced sample is compared.
    let hosts: Vec<&HostEntry> = hosts.iter().step_by(hosts.len().div_ceil(COMPARED_HOSTS_MAX).max(1)).collect();
    let rank = |host: &&&HostEntry| {
        let content = ContentIdentity::of(&host.file);
        let same = hosts.iter().filter(|other| content.matches(&other.file)).count();
        (content.pieces_root.is_some(), content.blake3.is_some(), same)
    };
    hosts.iter().max_by_key(rank).copied()
}

/// As far as is known, they have: the sizes are equal, and so are the digests where there are any.
pub(super) fn have_same_content(hosts: &[HostEntry]) -> bool {
    let mut digests = hosts.iter().filter_map(|host| host.file.blake3);
    let digest = digests.next();
    digests.all(|other| Some(other) == digest) && hosts.windows(2).all(|two| two[0].file.size == two[1].file.size)
}

pub(super) fn owners_of(hosts: &[HostEntry]) -> Vec<FileOwner> {
    let owner = |HostEntry { hostname, file, .. }: &HostEntry| FileOwner {
        hostname: hostname.clone(),
        size: file.size,
        modified: file.modified,
    };
    hosts.iter().take(NAMED_OWNERS_MAX).map(owner).collect()
}
