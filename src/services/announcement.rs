//! LAN announcements of servers: each names the services that it offers, so that clients with `--server auto` find
//! them.

use std::net::IpAddr;
use std::time::Duration;

use crate::lan::node::NodeKind;
use crate::lan::peer::{LanPeer, LanPeerConfig};
use crate::model::Name;
use crate::model::text::NAME_MAX;

pub const SERVER_API: &str = "server_api";
/// The same intervals that LAN peers have by default.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(30);
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone)]
pub struct AnnounceConfig {
    /// The port where everybody hears announcements.
    pub discovery_port: u16,
    /// If not, the services are only logged.
    pub enabled: bool,
}

/// A service that clients connect to, as it is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedService {
    /// The service's name in the SERVES field of an announcement.
    pub name: &'static str,
    pub port: u16,
    /// SHA-256 of the certificate that clients see; none if the service has no certificate.
    pub cert_sha256: Option<String>,
}

/// Services that share a certificate (or have none). One announcement can carry only one certificate.
type CertificateGroup = (Option<String>, Vec<(String, u16)>);

/// Announces a server's services until it is stopped or dropped.
#[derive(Debug, Default)]
pub struct Announcer {
    peers: Vec<LanPeer>,
}

impl Announcer {
    /// Starts announcing. Failures are only logged, because a server is usable without being discoverable.
    pub fn start(config: &AnnounceConfig, command: &str, bind: IpAddr, services: Vec<AnnouncedService>) -> Announcer {
        let mut announcer = Announcer::default();
        let name = announced_name(command, &host_name());
        for (cert_sha256, serves) in group_by_certificate(services) {
            // Logged even when the server is not announced: users may connect by address and verify this fingerprint.
            let about = describe_services(&serves, cert_sha256.as_deref());
            if !config.enabled {
                log::info!("not announced: {about}");
                continue;
            }
            let IpAddr::V4(bind) = bind.to_canonical() else {
                log::warn!(
                    "not announced, because the LAN speaks IPv4 and --bind is {bind}, so that --server auto does not \
                     find {about}"
                );
                continue;
            };
            let started = LanPeer::start(LanPeerConfig {
                name: name.clone(),
                kind: NodeKind::Server { serves, cert_sha256 },
                bind,
                port: None,
                discovery_port: config.discovery_port,
                announce_every: ANNOUNCE_INTERVAL,
                forget_after: FORGET_AFTER,
                static_peers: Vec::new(),
                data_dir: None,
            });
            match started {
                Ok(peer) => {
                    log::info!("announced as {name} at discovery port {}: {about}", config.discovery_port);
                    announcer.peers.push(peer);
                }
                Err(error) => log::warn!("not announced, so that --server auto does not find {about}: {error}"),
            }
        }
        announcer
    }

    pub fn stop(&self) {
        for peer in &self.peers {
            peer.stop();
        }
    }
}

fn group_by_certificate(services: Vec<AnnouncedService>) -> Vec<CertificateGroup> {
    let mut groups: Vec<CertificateGroup> = Vec::new();
    for AnnouncedService { name, port, cert_sha256 } in services {
        let entry = (name.to_owned(), port);
        match groups.iter_mut().find(|(cert, _)| *cert == cert_sha256) {
            Some((_, serves)) => serves.push(entry),
            None => groups.push((cert_sha256, vec![entry])),
        }
    }
    groups
}

/// Services and certificate for the log, where operators look up the fingerprint that users ask for.
fn describe_services(serves: &[(String, u16)], cert_sha256: Option<&str>) -> String {
    let list: Vec<String> = serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
    let cert = cert_sha256.map_or_else(|| "no certificate".to_owned(), |cert| format!("certificate {cert}"));
    format!("{}, {cert}", list.join(","))
}

/// `COMMAND-HOST`, shortened and cleaned so that it is a valid name.
fn announced_name(command: &str, host: &str) -> Name {
    let text = format!("{command}-{host}");
    let allowed = text.trim_end_matches('-').chars().filter(|c| !c.is_control() && *c != '\u{2028}');
    let cut: String = allowed.take(NAME_MAX).collect();
    Name::new(&cut).or_else(|_| Name::new("p2s2")).expect("\"p2s2\" is a name")
}

/// The host's name; empty if the system does not tell it.
fn host_name() -> String {
    #[cfg(unix)]
    {
        let mut bytes = [0_u8; 256];
        // SAFETY: gethostname writes at most `bytes.len()` bytes into the array.
        let failed = unsafe { libc::gethostname(bytes.as_mut_ptr().cast(), bytes.len()) } != 0;
        let length = if failed { 0 } else { bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()) };
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
    #[cfg(not(unix))]
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_called_after_its_host() {
        let long = format!("server-{}", "x".repeat(NAME_MAX - 7));
        for (host, called) in
            [("box", "server-box"), ("", "server"), ("a\nb", "server-ab"), (&*"x".repeat(99), long.as_str())]
        {
            assert_eq!(announced_name("server", host).as_str(), called);
        }
        assert!(!host_name().contains('\0'));
    }

    #[test]
    fn an_announcement_speaks_for_one_certificate() {
        let services =
            |name, port, cert: Option<&str>| AnnouncedService { name, port, cert_sha256: cert.map(str::to_owned) };
        let groups = group_by_certificate(vec![
            services("trade", 7001, Some("ab")),
            services("seller", 8001, None),
            services("buyer", 8002, Some("ab")),
        ]);
        let entry = |name: &str, port| (name.to_owned(), port);
        assert_eq!(
            groups,
            [
                (Some("ab".to_owned()), vec![entry("trade", 7001), entry("buyer", 8002)]),
                (None, vec![entry("seller", 8001)]),
            ]
        );
        assert_eq!(describe_services(&groups[0].1, Some("ab")), "trade=7001,buyer=8002, certificate ab");
        assert!(group_by_certificate(Vec::new()).is_empty());
    }
}
