//! The addresses of this host, and from which of them datagrams are sent.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::InterfaceAddress;

#[derive(Debug, Default)]
pub(super) struct HostAddresses(Vec<InterfaceAddress>);

impl HostAddresses {
    /// Replaces the addresses. Returns whether there is a new one that can be sent from.
    pub fn set(&mut self, interfaces: Vec<InterfaceAddress>) -> bool {
        let before = std::mem::replace(&mut self.0, interfaces);
        let was = |by: Ipv4Addr| before.iter().any(|old| old.ip == by && old.source_ip.is_some());
        self.routes().any(|(by, _)| !was(by.ip))
    }

    /// The interfaces that are sent by, each with the source address.
    fn routes(&self) -> impl Iterator<Item = (&InterfaceAddress, Ipv4Addr)> {
        self.0.iter().filter_map(|own| own.source_ip.map(|from| (own, from)))
    }

    /// How to announce: the address of each interface once, and the source address that the announcement must name.
    pub fn announcement_routes(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let mut all: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for (by, from) in self.routes() {
            if all.iter().all(|(ip, _)| *ip != by.ip) {
                all.push((by.ip, from));
            }
        }
        all
    }

    /// Whether an address belongs to this host, even if it is not sent from.
    pub fn is_own(&self, ip: Ipv4Addr) -> bool {
        ip.is_loopback() || self.0.iter().any(|own| own.ip == ip || own.source_ip == Some(ip))
    }

    /// Whether datagrams to an address arrive at our own socket, which may be bound to a single address.
    pub fn reaches_own_socket(&self, ip: Ipv4Addr) -> bool {
        self.routes().any(|(_, from)| from == ip || from.is_loopback() && ip.is_loopback())
    }

    /// Whether a datagram from `source` may claim to be from `claimed`: they must be equal, or both of this host.
    pub fn may_claim(&self, source: Ipv4Addr, claimed: Ipv4Addr) -> bool {
        source == claimed || self.is_own(source) && self.is_own(claimed)
    }

    /// One representative for all addresses of this host; other addresses stay as they are.
    pub fn canonical(&self, ip: Ipv4Addr) -> Ipv4Addr {
        if self.is_own(ip) { Ipv4Addr::LOCALHOST } else { ip }
    }

    /// This address, and if it belongs to this host, all others of this host.
    pub fn equivalents(&self, ip: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let others = if self.is_own(ip) { &*self.0 } else { &[] };
        std::iter::once(ip).chain(others.iter().map(|own| own.ip).filter(move |own| *own != ip))
    }

    /// The key by which per-host limits apply: the host, or on this host, the address and port.
    pub fn rate_limit_key(&self, source: SocketAddrV4) -> SocketAddrV4 {
        if self.is_own(*source.ip()) { source } else { SocketAddrV4::new(*source.ip(), 0) }
    }

    /// Whether an address can be that of a single host, as far as our networks tell.
    pub fn is_unicast(&self, ip: Ipv4Addr) -> bool {
        let broadcast = |own: &InterfaceAddress| {
            let mask = u32::from(own.netmask);
            // Networks of one or two addresses have no broadcast address.
            mask < u32::MAX - 1 && u32::from(ip) == u32::from(own.ip) | !mask
        };
        // 0.x.x.x is this network, 240 and above is reserved, 127.255.255.255 is loopback's broadcast address.
        let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240 || ip == Ipv4Addr::new(127, 255, 255, 255);
        !(reserved || ip.is_multicast() || self.0.iter().any(broadcast))
    }

    pub fn source_for(&self, to: Ipv4Addr) -> Ipv4Addr {
        // To an own address, source and destination are the same.
        if let Some((_, from)) = self.routes().find(|(own, _)| own.ip == to) {
            return from;
        }
        let behind = |(own, _): &(&InterfaceAddress, Ipv4Addr)| {
            (u32::from(own.ip) ^ u32::from(to)) & u32::from(own.netmask) == 0
        };
        let nearest = self.routes().filter(behind).max_by_key(|(own, _)| u32::from(own.netmask));
        nearest.map_or_else(|| self.primary(), |(_, from)| from)
    }

    /// The first address that other hosts can reach, else loopback.
    pub fn primary(&self) -> Ipv4Addr {
        let all = || self.routes().map(|(_, from)| from);
        all().find(|from| !from.is_loopback()).or_else(|| all().next()).unwrap_or(Ipv4Addr::LOCALHOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn addresses(of: &[(&str, &str)]) -> HostAddresses {
        let mut addresses = HostAddresses::default();
        let interface = |(own, netmask): &(&str, &str)| InterfaceAddress {
            ip: ip(own),
            netmask: ip(netmask),
            source_ip: Some(ip(own)),
        };
        let interfaces = of.iter().map(interface);
        assert!(addresses.set(interfaces.collect()));
        addresses
    }

    fn two() -> HostAddresses {
        addresses(&[
            ("127.0.0.1", "255.0.0.0"),
            ("192.168.1.11", "255.255.255.0"),
            ("10.0.0.7", "255.0.0.0"),
            ("10.1.0.7", "255.255.0.0"),
        ])
    }

    #[test]
    fn the_interface_is_the_nearest_to_the_target() {
        let two = two();
        for (to, from) in [
            ("192.168.1.200", "192.168.1.11"),
            ("10.9.9.9", "10.0.0.7"),
            ("10.1.9.9", "10.1.0.7"),
            ("127.0.0.5", "127.0.0.1"),
            ("10.0.0.7", "10.0.0.7"),
            ("8.8.8.8", "192.168.1.11"),
        ] {
            assert_eq!(two.source_for(ip(to)), ip(from), "to {to}");
        }
        assert_eq!(two.primary(), ip("192.168.1.11"));
        let loopback = addresses(&[("127.0.0.1", "255.0.0.0")]);
        assert_eq!(loopback.source_for(ip("8.8.8.8")), ip("127.0.0.1"));
        assert_eq!(loopback.primary(), ip("127.0.0.1"));
    }

    #[test]
    fn own_addresses_count_as_equal_and_no_others() {
        let two = two();
        assert!(two.may_claim(ip("127.0.0.1"), ip("192.168.1.11")) && two.may_claim(ip("10.0.0.7"), ip("127.0.0.1")));
        assert!(two.may_claim(ip("10.9.9.9"), ip("10.9.9.9")));
        assert!(!two.may_claim(ip("10.9.9.9"), ip("10.9.9.8")) && !two.may_claim(ip("10.9.9.9"), ip("10.0.0.7")));
        assert!(!two.may_claim(ip("10.0.0.7"), ip("10.9.9.9")));
    }

    #[test]
    fn what_is_no_host() {
        let two = two();
        for of_many in ["255.255.255.255", "192.168.1.255", "10.255.255.255", "10.1.255.255", "224.0.0.1", "0.0.0.0"] {
            assert!(!two.is_unicast(ip(of_many)), "{of_many}");
        }
        for of_one in ["192.168.2.255", "10.0.0.255", "127.0.0.1", "8.8.8.8"] {
            assert!(two.is_unicast(ip(of_one)), "{of_one}");
        }
        assert!(addresses(&[("10.0.0.1", "255.255.255.255")]).is_unicast(ip("10.0.0.1")));
    }

    #[test]
    fn a_new_address_is_noticed() {
        let mut two = two();
        let mut left: Vec<InterfaceAddress> = two.0.clone();
        left.truncate(2);
        assert!(!two.set(left.clone()));
        // An interface that is not sent by needs no announcement.
        left.push(InterfaceAddress { ip: ip("10.0.0.7"), netmask: ip("255.0.0.0"), source_ip: None });
        left.push(left[0]);
        assert!(!two.set(left.clone()));
        left[2].source_ip = Some(ip("10.0.0.7"));
        assert!(two.set(left));
        let each = ["127.0.0.1", "192.168.1.11", "10.0.0.7"].map(|own| (ip(own), ip(own)));
        assert_eq!(two.announcement_routes(), each);
    }

    /// As with `--bind`: the other interfaces still belong to this host.
    fn bound(to: &str) -> HostAddresses {
        let mut two = two();
        for own in &mut two.0 {
            own.source_ip = (own.ip == ip(to) || own.ip.is_loopback()).then_some(ip(to));
        }
        two
    }

    #[test]
    fn bound_to_one_address_everything_comes_from_that() {
        let one = bound("192.168.1.11");
        for to in ["192.168.1.200", "127.0.0.1", "127.0.0.5", "10.1.9.9", "10.0.0.7", "192.168.1.11", "8.8.8.8"] {
            assert_eq!(one.source_for(ip(to)), ip("192.168.1.11"), "to {to}");
        }
        // Announced on its own network and on loopback, and by no other interface.
        let from = ip("192.168.1.11");
        assert_eq!(one.announcement_routes(), [(ip("127.0.0.1"), from), (from, from)]);
        let loopback = bound("127.0.0.1");
        for to in ["192.168.1.200", "127.0.0.5", "10.0.0.7", "8.8.8.8"] {
            assert_eq!(loopback.source_for(ip(to)), ip("127.0.0.1"), "to {to}");
        }
        assert_eq!(loopback.announcement_routes(), [(ip("127.0.0.1"), ip("127.0.0.1"))]);
        assert_eq!((one.primary(), loopback.primary()), (from, ip("127.0.0.1")));
    }

    #[test]
    fn bound_to_one_address_all_are_its_own_and_one_is_its_socket() {
        for one in [bound("192.168.1.11"), bound("127.0.0.1"), two()] {
            for (source, claimed) in
                [("127.0.0.1", "10.0.0.7"), ("10.1.0.7", "192.168.1.11"), ("192.168.1.11", "127.0.0.1")]
            {
                assert!(one.may_claim(ip(source), ip(claimed)), "{source} {claimed}");
            }
            assert!(!one.may_claim(ip("10.9.9.9"), ip("127.0.0.1")));
        }
        let here = |addresses: HostAddresses| {
            ["127.0.0.1", "192.168.1.11", "10.0.0.7"].map(|at| addresses.reaches_own_socket(ip(at)))
        };
        assert_eq!(here(bound("192.168.1.11")), [false, true, false]);
        assert_eq!(here(bound("127.0.0.1")), [true, false, false]);
        assert_eq!(here(two()), [true, true, true]);
    }
}
