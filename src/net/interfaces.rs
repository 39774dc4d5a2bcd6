//! This host's IPv4 addresses, read anew whenever they are needed: cables are unplugged, and networks are joined.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use if_addrs::{IfAddr, IfOperStatus};

/// One address of this host. An interface with several addresses is listed once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: Option<u32>,
    pub ip: Ipv4Addr,
    pub netmask: Ipv4Addr,
    /// `None` where there is no broadcast.
    pub broadcast: Option<Ipv4Addr>,
}

impl Interface {
    /// Whether a socket bound to `bind` uses this interface: all of them with 0.0.0.0, loopback only with one of its
    /// addresses, otherwise the one with that address and loopback.
    pub fn is_used_by(&self, bind: Ipv4Addr) -> bool {
        bind.is_unspecified() || self.ip == bind || self.ip.is_loopback()
    }
}

/// Any host outside our networks: an address reserved for documentation, to which nothing is sent.
const OUTBOUND_PROBE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The addresses that are usable now and [used](Interface::is_used_by) by a socket bound to `bind`: that of the
/// default route first, loopback last.
pub fn interfaces(bind: Ipv4Addr) -> io::Result<Vec<Interface>> {
    let mut all: Vec<Interface> = if_addrs::get_if_addrs()?.into_iter().filter_map(usable).collect();
    all.retain(|interface| interface.is_used_by(bind));
    let outbound_ip = outbound_ip();
    all.sort_by_key(|interface| (interface.ip.is_loopback(), Some(interface.ip) != outbound_ip));
    Ok(all)
}

/// The address from which this host would reach others: connecting a UDP socket only looks up the route.
fn outbound_ip() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTBOUND_PROBE).ok()?;
    let SocketAddr::V4(own) = socket.local_addr().ok()? else { return None };
    Some(*own.ip())
}

/// The address at which this host reaches a listener: loopback if the listener is bound to all interfaces.
pub fn reachable_addr(mut bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => bound.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => bound.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    bound
}

pub fn is_local_address(ip: impl Into<IpAddr>) -> io::Result<bool> {
    let ip = ip.into().to_canonical();
    let is_own = |interface: &if_addrs::Interface| interface.ip() == ip;
    Ok(ip.is_loopback() || if_addrs::get_if_addrs()?.iter().any(is_own))
}

/// The IPv4 address of an interface that is up and connected.
fn usable(interface: if_addrs::Interface) -> Option<Interface> {
    let is_point_to_point = interface.is_p2p();
    let IfAddr::V4(address) = interface.addr else { return None };
    let broadcast = broadcast_of(address.ip, address.netmask, address.broadcast, is_point_to_point);
    (interface.oper_status == IfOperStatus::Up).then_some(Interface {
        name: interface.name,
        index: interface.index,
        ip: address.ip,
        netmask: address.netmask,
        broadcast,
    })
}

fn broadcast_of(ip: Ipv4Addr, netmask: Ipv4Addr, given: Option<Ipv4Addr>, is_point_to_point: bool) -> Option<Ipv4Addr> {
    // Linux has a broadcast route for 127.255.255.255, though the interface claims no broadcast. The other systems
    // have none, so peers on one such host find each other by its other interfaces or by name.
    if ip.is_loopback() && !cfg!(target_os = "linux") {
        return None;
    }
    // Networks of one or two addresses have no broadcast address.
    let host_bits = (!netmask).to_bits().count_ones();
    if is_point_to_point || host_bits < 2 {
        return None;
    }
    // An address that was added without its broadcast address has one all the same: the kernel treats the last
    // address of the network as such. getifaddrs then reports the address itself in its place.
    let given = given.filter(|given| *given != ip && !given.is_unspecified());
    Some(given.unwrap_or(ip | !netmask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_is_there_and_last() {
        let all = interfaces(Ipv4Addr::UNSPECIFIED).unwrap();
        let loopback = all.last().unwrap();
        assert_eq!(loopback.ip, Ipv4Addr::LOCALHOST);
        assert_eq!(loopback.netmask, ip("255.0.0.0"));
        let broadcast = cfg!(target_os = "linux").then_some(ip("127.255.255.255"));
        assert_eq!(loopback.broadcast, broadcast);
    }

    #[test]
    fn one_address_restricts_to_itself_and_loopback() {
        for bind in interfaces(Ipv4Addr::UNSPECIFIED).unwrap().iter().map(|interface| interface.ip) {
            let ips: Vec<_> = interfaces(bind).unwrap().iter().map(|interface| interface.ip).collect();
            assert!(ips.contains(&bind) && ips.iter().all(|ip| *ip == bind || ip.is_loopback()), "{bind}: {ips:?}");
        }
        // One that is gone (or never was): loopback is left.
        assert!(interfaces(ip("192.0.2.1")).unwrap().iter().all(|interface| interface.ip.is_loopback()));
    }

    #[test]
    fn own_addresses_are_known() {
        for interface in interfaces(Ipv4Addr::UNSPECIFIED).unwrap() {
            assert!(is_local_address(interface.ip).unwrap());
        }
        assert!(is_local_address(ip("127.1.2.3")).unwrap());
        assert!(!is_local_address(ip("192.0.2.1")).unwrap());
    }

    #[test]
    fn broadcast_addresses() {
        let of = |at, mask, given: Option<&str>| broadcast_of(ip(at), ip(mask), given.map(ip), false);
        assert_eq!(of("10.77.0.1", "255.255.255.0", Some("10.77.0.255")), Some(ip("10.77.0.255")));
        // None was set: the system shows nothing, or the address itself.
        assert_eq!(of("10.77.0.1", "255.255.255.0", None), Some(ip("10.77.0.255")));
        assert_eq!(of("10.77.0.1", "255.255.0.0", Some("10.77.0.1")), Some(ip("10.77.255.255")));
        // An unusual one is believed.
        assert_eq!(of("10.77.0.1", "255.255.255.0", Some("10.77.0.0")), Some(ip("10.77.0.0")));
        assert_eq!(of("10.77.0.1", "255.255.255.254", None), None);
        assert_eq!(of("10.77.0.1", "255.255.255.255", Some("10.77.0.1")), None);
        assert_eq!(broadcast_of(ip("10.77.0.1"), ip("255.255.255.0"), None, true), None);
    }
}
