//! URLs of the browser pages, as they are printed at start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::net::interfaces::{self, reachable_addr};

/// Maximum number of LAN addresses that are listed. Hosts with more of them use those for other purposes.
const LAN_ADDRESSES_MAX: usize = 3;

/// One line per URL: that for this host, then those by which other devices reach it.
pub fn lines(bound: SocketAddr, is_tls: bool) -> Vec<String> {
    let mut ips = vec![reachable_addr(bound).ip()];
    if bound.ip().is_unspecified() {
        // If the LAN addresses are unknown, the URL for this host is still printed.
        let others = interfaces::interfaces(Ipv4Addr::UNSPECIFIED).unwrap_or_else(|error| {
            log::debug!("the addresses of this host are not known: {error}");
            Vec::new()
        });
        let others = others.iter().map(|interface| interface.ip).filter(|ip| !ip.is_loopback());
        ips.extend(others.take(LAN_ADDRESSES_MAX).map(IpAddr::from));
    }
    let scheme = if is_tls { "https" } else { "http" };
    ips.into_iter().map(|ip| format!("page: {scheme}://{}/", SocketAddr::new(ip, bound.port()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_by_an_address_that_can_be_opened() {
        let at = |bound: &str| lines(bound.parse().unwrap(), false);
        assert_eq!(at("127.0.0.1:5501"), ["page: http://127.0.0.1:5501/"]);
        assert_eq!(at("192.0.2.7:80"), ["page: http://192.0.2.7:80/"]);
        assert_eq!(lines("[::1]:5501".parse().unwrap(), true), ["page: https://[::1]:5501/"]);
        let all = at("0.0.0.0:5501");
        assert_eq!(all[0], "page: http://127.0.0.1:5501/");
        assert!(all.len() <= 1 + LAN_ADDRESSES_MAX && all.iter().all(|line| !line.contains("0.0.0.0")), "{all:?}");
    }

    #[test]
    fn what_is_bound_everywhere_is_reached_over_loopback() {
        for (bound, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("192.0.2.1:3", "192.0.2.1:3")] {
            assert_eq!(reachable_addr(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
