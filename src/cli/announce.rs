//! How servers are found: they announce themselves on the LAN, with what they serve (`--server auto` of the
//! clients looks for that).

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;

use super::settings;
use crate::lan::DISCOVERY_PORT;
use crate::lan::node::Kind;
use crate::lan::peer::{Config, LanPeer};
use crate::model::Name;
use crate::model::text::NAME_MAX;

/// As every peer of the LAN unless it is told otherwise.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);

/// Whether and where a server announces itself.
#[derive(Debug, Clone, Args)]
pub struct AnnounceArgs {
    /// Port where everybody hears announcements: the same for all
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = DISCOVERY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    discovery_port: u16,
    /// Do not announce this server; it is then not found by --server auto
    #[arg(long, value_parser = settings::parse_switch())]
    no_announce: bool,
}

/// A service that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// What it is called in SERVES.
    pub name: &'static str,
    /// Where it is.
    pub port: u16,
    /// SHA-256 of the certificate that its clients see, if they see one.
    pub cert_sha256: Option<String>,
}

/// The services behind one certificate, or behind none: what one announcement can say.
type Group = (Option<String>, Vec<(String, u16)>);

/// A server that is announced for as long as this is there.
#[derive(Debug, Default)]
pub struct Announcer {
    peers: Vec<LanPeer>,
}

impl Announcer {
    /// Begins. To be found is a convenience: where that cannot be, a line in the log says why.
    pub fn start(args: &AnnounceArgs, command: &str, bind: IpAddr, served: Vec<Served>) -> Announcer {
        let mut announcer = Announcer::default();
        let name = name(command, &host_name());
        for (cert_sha256, serves) in by_certificate(served) {
            // Whoever is not found may still be asked for by name, with this fingerprint.
            let about = about(&serves, cert_sha256.as_deref());
            if args.no_announce {
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
            let started = LanPeer::start(Config {
                name: name.clone(),
                kind: Kind::Server { serves, cert_sha256 },
                bind,
                port: None,
                discovery_port: args.discovery_port,
                announce_every: ANNOUNCE_EVERY,
                forget_after: FORGET_AFTER,
                reach: Vec::new(),
                data_dir: None,
            });
            match started {
                Ok(peer) => {
                    log::info!("announced as {name} at discovery port {}: {about}", args.discovery_port);
                    announcer.peers.push(peer);
                }
                Err(error) => log::warn!("not announced, so that --server auto does not find {about}: {error}"),
            }
        }
        announcer
    }

    /// Ends it.
    pub fn stop(&self) {
        for peer in &self.peers {
            peer.stop();
        }
    }
}

fn by_certificate(served: Vec<Served>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Served { name, port, cert_sha256 } in served {
        let entry = (name.to_owned(), port);
        match groups.iter_mut().find(|(cert, _)| *cert == cert_sha256) {
            Some((_, serves)) => serves.push(entry),
            None => groups.push((cert_sha256, vec![entry])),
        }
    }
    groups
}

/// For the operator, whom users may ask for the fingerprint.
fn about(serves: &[(String, u16)], cert_sha256: Option<&str>) -> String {
    let list: Vec<String> = serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
    let cert = cert_sha256.map_or_else(|| "no certificate".to_owned(), |cert| format!("certificate {cert}"));
    format!("{}, {cert}", list.join(","))
}

/// `server-HOST`, within the rule of names.
fn name(command: &str, host: &str) -> Name {
    let text = format!("{command}-{host}");
    let allowed = text.trim_end_matches('-').chars().filter(|c| !c.is_control() && *c != '\u{2028}');
    let cut: String = allowed.take(NAME_MAX).collect();
    Name::new(&cut).or_else(|_| Name::new("p2s2")).expect("\"p2s2\" is a name")
}

/// Empty where the system does not tell.
fn host_name() -> String {
    #[cfg(unix)]
    {
        let mut bytes = [0_u8; 256];
        // SAFETY: gethostname writes at most so many bytes into the array that it is given.
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
            assert_eq!(name("server", host).as_str(), called);
        }
        assert!(!host_name().contains('\0'));
    }

    #[test]
    fn an_announcement_speaks_for_one_certificate() {
        let served = |name, port, cert: Option<&str>| Served { name, port, cert_sha256: cert.map(str::to_owned) };
        let groups = by_certificate(vec![
            served("trade", 7001, Some("ab")),
            served("seller", 8001, None),
            served("buyer", 8002, Some("ab")),
        ]);
        let entry = |name: &str, port| (name.to_owned(), port);
        assert_eq!(
            groups,
            [
                (Some("ab".to_owned()), vec![entry("trade", 7001), entry("buyer", 8002)]),
                (None, vec![entry("seller", 8001)]),
            ]
        );
        assert_eq!(about(&groups[0].1, Some("ab")), "trade=7001,buyer=8002, certificate ab");
        assert!(by_certificate(Vec::new()).is_empty());
    }
}
