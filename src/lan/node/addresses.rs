//! The addresses of this host.

use std::net::Ipv4Addr;

use super::Interface;

/// The addresses of this host, and the networks behind them.
#[derive(Debug, Default)]
pub(super) struct Addresses(Vec<Interface>);

impl Addresses {
    /// Takes the new ones; whether one of them was not there before.
    pub fn set(&mut self, interfaces: Vec<Interface>) -> bool {
        let before = std::mem::replace(&mut self.0, interfaces);
        self.0.iter().any(|interface| before.iter().all(|old| old.ip != interface.ip))
    }

    /// Each once.
    pub fn ips(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let earlier = |at: usize, ip| self.0[..at].iter().any(|interface| interface.ip == ip);
        self.0.iter().enumerate().filter(move |(at, own)| !earlier(*at, own.ip)).map(|(_, own)| own.ip)
    }

    /// Whether it is of this host.
    pub fn is_own(&self, ip: Ipv4Addr) -> bool {
        ip.is_loopback() || self.0.iter().any(|interface| interface.ip == ip)
    }

    /// Whether a datagram from there may say that it is from `claimed`: the addresses of this host count
    /// as equal.
    pub fn may_say(&self, source: Ipv4Addr, claimed: Ipv4Addr) -> bool {
        source == claimed || self.is_own(source) && self.is_own(claimed)
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

    /// Which of the own addresses a datagram to there leaves by.
    pub fn towards(&self, to: Ipv4Addr) -> Ipv4Addr {
        if to.is_loopback() {
            return Ipv4Addr::LOCALHOST;
        }
        // To oneself the address is the same on both ends.
        if self.is_own(to) {
            return to;
        }
        let behind = |own: &&Interface| (u32::from(own.ip) ^ u32::from(to)) & u32::from(own.netmask) == 0;
        let nearest = self.0.iter().filter(behind).max_by_key(|own| u32::from(own.netmask));
        let first = || self.0.iter().find(|own| !own.ip.is_loopback());
        nearest.or_else(first).map_or(Ipv4Addr::LOCALHOST, |own| own.ip)
    }

    /// The first that others can reach.
    pub fn first(&self) -> Ipv4Addr {
        self.0.iter().map(|own| own.ip).find(|ip| !ip.is_loopback()).unwrap_or(Ipv4Addr::LOCALHOST)
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
        let interfaces = of.iter().map(|(own, netmask)| Interface { ip: ip(own), netmask: ip(netmask) });
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
        left.push(Interface { ip: ip("10.0.0.7"), netmask: ip("255.0.0.0") });
        left.push(left[0]);
        assert!(two.set(left));
        assert_eq!(two.ips().collect::<Vec<_>>(), [ip("127.0.0.1"), ip("192.168.1.11"), ip("10.0.0.7")]);
    }
}
