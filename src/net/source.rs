//! Where something comes from, as the key of whatever is counted "per address" (SPEC.md section 2).
//!
//! An address is not who somebody is: a host with IPv6 has as many as its /64 holds, and who is on this machine
//! may use each of 127.0.0.0/8. So what is shared out is counted by a [`Source`], never by the bare address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that tell one network from another.
const NETWORK_BITS: u32 = 64;

/// One address of IPv4, one /64 of IPv6, or this machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Loopback,
    /// Of IPv6: the first address of the network.
    Network(IpAddr),
}

/// The source that an address belongs to. IPv4 in an IPv6 socket (`::ffff:…`) is IPv4.
pub fn of(address: IpAddr) -> Source {
    let address = address.to_canonical();
    Source(match address {
        address if address.is_loopback() => Kind::Loopback,
        IpAddr::V4(_) => Kind::Network(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> (128 - NETWORK_BITS) << (128 - NETWORK_BITS);
            Kind::Network(Ipv6Addr::from_bits(network).into())
        }
    })
}

impl Source {
    /// Whether it is this machine.
    pub fn is_loopback(self) -> bool {
        self.0 == Kind::Loopback
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Loopback => f.write_str("loopback"),
            Kind::Network(address @ IpAddr::V4(_)) => address.fmt(f),
            Kind::Network(address @ IpAddr::V6(_)) => write!(f, "{address}/{NETWORK_BITS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Source {
        super::of(text.parse().unwrap())
    }

    #[test]
    fn ipv4_is_told_apart_by_address_ipv6_by_its_64_and_this_machine_is_one() {
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(here), of("127.0.0.1"), "{here}");
            assert!(of(here).is_loopback());
        }
        for elsewhere in ["192.0.2.1", "::", "::2", "fe80::1", "0.0.0.0"] {
            assert!(!of(elsewhere).is_loopback(), "{elsewhere}");
        }
    }

    #[test]
    fn it_is_shown_as_what_it_is() {
        assert_eq!(of("127.0.0.2").to_string(), "loopback");
        assert_eq!(of("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(of("2001:db8:1:2:3::4").to_string(), "2001:db8:1:2::/64");
    }
}
