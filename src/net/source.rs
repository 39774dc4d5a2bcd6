//! What is counted "per address" (`docs/spec/general.md`) is counted per [`SourceKey`]: a host with IPv6 has as many
//! addresses as its /64 holds, and a process on this host can use any of 127.0.0.0/8.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

const NETWORK_BITS: u32 = 64;

/// One IPv4 address, one /64 of IPv6, or this host as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey(SourceKind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum SourceKind {
    Loopback,
    /// An IPv4 address, or the first address of an IPv6 network.
    Network(IpAddr),
}

/// IPv4 in an IPv6 socket (`::ffff:…`) counts as IPv4.
pub fn key_of(address: IpAddr) -> SourceKey {
    let address = address.to_canonical();
    SourceKey(match address {
        address if address.is_loopback() => SourceKind::Loopback,
        IpAddr::V4(_) => SourceKind::Network(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> (128 - NETWORK_BITS) << (128 - NETWORK_BITS);
            SourceKind::Network(Ipv6Addr::from_bits(network).into())
        }
    })
}

impl SourceKey {
    pub fn is_loopback(self) -> bool {
        self.0 == SourceKind::Loopback
    }
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SourceKind::Loopback => f.write_str("loopback"),
            SourceKind::Network(address @ IpAddr::V4(_)) => address.fmt(f),
            SourceKind::Network(address @ IpAddr::V6(_)) => write!(f, "{address}/{NETWORK_BITS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(text: &str) -> SourceKey {
        super::key_of(text.parse().unwrap())
    }

    #[test]
    fn ipv4_is_told_apart_by_address_ipv6_by_its_64_and_this_machine_is_one() {
        assert_eq!(key_of("::ffff:192.0.2.1"), key_of("192.0.2.1"));
        assert_ne!(key_of("192.0.2.2"), key_of("192.0.2.1"));
        assert_eq!(key_of("2001:db8:1:2::1"), key_of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key_of("2001:db8:1:2::1"), key_of("2001:db8:1:3::1"));
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(key_of(here), key_of("127.0.0.1"), "{here}");
            assert!(key_of(here).is_loopback());
        }
        for elsewhere in ["192.0.2.1", "::", "::2", "fe80::1", "0.0.0.0"] {
            assert!(!key_of(elsewhere).is_loopback(), "{elsewhere}");
        }
    }

    #[test]
    fn it_is_shown_as_what_it_is() {
        assert_eq!(key_of("127.0.0.2").to_string(), "loopback");
        assert_eq!(key_of("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(key_of("2001:db8:1:2:3::4").to_string(), "2001:db8:1:2::/64");
    }
}
