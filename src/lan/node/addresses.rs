//! The addresses of this host: which are its own, and which of them it speaks from.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::Interface;

/// The interfaces of this host, and the networks behind them.
#[derive(Debug, Default)]
pub(super) struct Addresses(Vec<Interface>);

impl Addresses {
    /// Takes the new ones; whether there is one to speak by that was not there before.
    pub fn set(&mut self, interfaces: Vec<Interface>) -> bool {
        let before = std::mem::replace(&mut self.0, interfaces);
        let was = |by: Ipv4Addr| before.iter().any(|old| old.ip == by && old.from.is_some());
        self.ways().any(|(by, _)| !was(by.ip))
    }

    /// The interfaces that are spoken by, and what is said there comes from.
    fn ways(&self) -> impl Iterator<Item = (&Interface, Ipv4Addr)> {
        self.0.iter().filter_map(|own| own.from.map(|from| (own, from)))
    }

    /// Where is announced: the address of each interface, each once, and that which the announcement names.
    pub fn announced_by(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let mut all: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for (by, from) in self.ways() {
            if all.iter().all(|(ip, _)| *ip != by.ip) {
                all.push((by.ip, from));
            }
        }
        all
    }

    /// Whether it is of this host, be it spoken from or not.
    pub fn is_own(&self, ip: Ipv4Addr) -> bool {
        ip.is_loopback() || self.0.iter().any(|own| own.ip == ip || own.from == Some(ip))
    }

    /// Whether what is sent there comes to our own socket: that may be bound to one address.
    pub fn is_here(&self, ip: Ipv4Addr) -> bool {
        self.ways().any(|(_, from)| from == ip || from.is_loopback() && ip.is_loopback())
    }

    /// Whether a datagram from there may say that it is from `claimed`: the addresses of this host count
    /// as equal.
    pub fn may_say(&self, source: Ipv4Addr, claimed: Ipv4Addr) -> bool {
        source == claimed || self.is_own(source) && self.is_own(claimed)
    }

    /// Two that are equal are one place: the addresses of this host stand for one another.
    pub fn one_for_all(&self, ip: Ipv4Addr) -> Ipv4Addr {
        if self.is_own(ip) { Ipv4Addr::LOCALHOST } else { ip }
    }

    /// The addresses that count as equal to this one: of this host, all; else it alone, and it first.
    pub fn equal_to(&self, ip: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let others = if self.is_own(ip) { &*self.0 } else { &[] };
        std::iter::once(ip).chain(others.iter().map(|own| own.ip).filter(move |own| *own != ip))
    }

    /// Whose share of what is there for all it takes: its host's; on this host, its own.
    pub fn share_of(&self, source: SocketAddrV4) -> SocketAddrV4 {
        if self.is_own(*source.ip()) { source } else { SocketAddrV4::new(*source.ip(), 0) }
    }

    /// Whether it is the address of one host, as far as one can tell.
    pub fn is_unicast(&self, ip: Ipv4Addr) -> bool {
        let broadcast = |own: &Interface| {
            let mask = u32::from(own.netmask);
            // Networks of two addresses or one have no broadcast.
            mask < u32::MAX - 1 && u32::from(ip) == u32::from(own.ip) | !mask
        };
        // 0.x.x.x is this network, 240 and above is reserved, 127.255.255.255 loopback's broadcast.
        let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240 || ip == Ipv4Addr::new(127, 255, 255, 255);
        !(reserved || ip.is_multicast() || self.0.iter().any(broadcast))
    }

    /// Which of the own addresses a datagram to there comes from.
    pub fn towards(&self, to: Ipv4Addr) -> Ipv4Addr {
        // To oneself the address is the same on both ends.
        if let Some((_, from)) = self.ways().find(|(own, _)| own.ip == to) {
            return from;
        }
        let behind =
            |(own, _): &(&Interface, Ipv4Addr)| (u32::from(own.ip) ^ u32::from(to)) & u32::from(own.netmask) == 0;
        let nearest = self.ways().filter(behind).max_by_key(|(own, _)| u32::from(own.netmask));
        nearest.map_or_else(|| self.first(), |(_, from)| from)
    }

    /// The first that others can reach.
    pub fn first(&self) -> Ipv4Addr {
        let all = || self.ways().map(|(_, from)| from);
        all().find(|from| !from.is_loopback()).or_else(|| all().next()).unwrap_or(Ipv4Addr::LOCALHOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn addresses(of: &[(&str, &str)]) -> Addresses {
        let mut addresses = Addresses::default();
        let interface =
            |(own, netmask): &(&str, &str)| Interface { ip: ip(own), netmask: ip(netmask), from: Some(ip(own)) };
        let interfaces = of.iter().map(interface);
        assert!(addresses.set(interfaces.collect()));
        addresses
    }

    fn two() -> Addresses {
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
            assert_eq!(two.towards(ip(to)), ip(from), "to {to}");
        }
        assert_eq!(two.first(), ip("192.168.1.11"));
        let loopback = addresses(&[("127.0.0.1", "255.0.0.0")]);
        assert_eq!(loopback.towards(ip("8.8.8.8")), ip("127.0.0.1"));
        assert_eq!(loopback.first(), ip("127.0.0.1"));
    }

    #[test]
    fn own_addresses_count_as_equal_and_no_others() {
        let two = two();
        assert!(two.may_say(ip("127.0.0.1"), ip("192.168.1.11")) && two.may_say(ip("10.0.0.7"), ip("127.0.0.1")));
        assert!(two.may_say(ip("10.9.9.9"), ip("10.9.9.9")));
        assert!(!two.may_say(ip("10.9.9.9"), ip("10.9.9.8")) && !two.may_say(ip("10.9.9.9"), ip("10.0.0.7")));
        assert!(!two.may_say(ip("10.0.0.7"), ip("10.9.9.9")));
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
        let mut left: Vec<Interface> = two.0.clone();
        left.truncate(2);
        assert!(!two.set(left.clone()));
        // One that is not spoken by is none to announce oneself by.
        left.push(Interface { ip: ip("10.0.0.7"), netmask: ip("255.0.0.0"), from: None });
        left.push(left[0]);
        assert!(!two.set(left.clone()));
        left[2].from = Some(ip("10.0.0.7"));
        assert!(two.set(left));
        let each = ["127.0.0.1", "192.168.1.11", "10.0.0.7"].map(|own| (ip(own), ip(own)));
        assert_eq!(two.announced_by(), each);
    }

    /// As with `--bind`: the other interfaces are this host's all the same.
    fn bound(to: &str) -> Addresses {
        let mut two = two();
        for own in &mut two.0 {
            own.from = (own.ip == ip(to) || own.ip.is_loopback()).then_some(ip(to));
        }
        two
    }

    #[test]
    fn bound_to_one_address_everything_comes_from_that() {
        let one = bound("192.168.1.11");
        for to in ["192.168.1.200", "127.0.0.1", "127.0.0.5", "10.1.9.9", "10.0.0.7", "192.168.1.11", "8.8.8.8"] {
            assert_eq!(one.towards(ip(to)), ip("192.168.1.11"), "to {to}");
        }
        // On its own network and on loopback, and by no other interface.
        let from = ip("192.168.1.11");
        assert_eq!(one.announced_by(), [(ip("127.0.0.1"), from), (from, from)]);
        let loopback = bound("127.0.0.1");
        for to in ["192.168.1.200", "127.0.0.5", "10.0.0.7", "8.8.8.8"] {
            assert_eq!(loopback.towards(ip(to)), ip("127.0.0.1"), "to {to}");
        }
        assert_eq!(loopback.announced_by(), [(ip("127.0.0.1"), ip("127.0.0.1"))]);
        assert_eq!((one.first(), loopback.first()), (from, ip("127.0.0.1")));
    }

    #[test]
    fn bound_to_one_address_all_are_its_own_and_one_is_its_socket() {
        for one in [bound("192.168.1.11"), bound("127.0.0.1"), two()] {
            for (source, claimed) in
                [("127.0.0.1", "10.0.0.7"), ("10.1.0.7", "192.168.1.11"), ("192.168.1.11", "127.0.0.1")]
            {
                assert!(one.may_say(ip(source), ip(claimed)), "{source} {claimed}");
            }
            assert!(!one.may_say(ip("10.9.9.9"), ip("127.0.0.1")));
        }
        let here = |addresses: Addresses| ["127.0.0.1", "192.168.1.11", "10.0.0.7"].map(|at| addresses.is_here(ip(at)));
        assert_eq!(here(bound("192.168.1.11")), [false, true, false]);
        assert_eq!(here(bound("127.0.0.1")), [true, false, false]);
        assert_eq!(here(two()), [true, true, true]);
    }
}
