//! `--server auto`: finds servers that announce themselves and chooses one.
//!
//! Anybody on the network can announce anything, under any name. Servers are told apart by their certificates: the user
//! confirms a fingerprint once, at a terminal, and from then on the client insists on it. A forged announcement
//! therefore gains nothing: without the certificate's key no payment goes through it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};

use super::output::sanitize;
use super::prompt;
use super::table::{Align, Column, table_of};
use crate::identity::{KnownServer, KnownServers};
use crate::lan::discover::{DiscoverConfig, DiscoveredPeer, discover};
use crate::model::Clock;
use crate::services::announcement::SERVER_API;
use crate::services::paths;

/// Given instead of HOST:PORT.
pub(super) const AUTO: &str = "auto";
/// The second wait follows a repeated request if nobody answered, because datagrams get lost.
const ANSWER_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1); 2];
/// Characters of a fingerprint shown in the table; the confirmation prompt shows all of them.
const FINGERPRINT_PREFIX_LEN: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct ServerQuery<'a> {
    /// The service that it must offer: `trade`, `seller`, `buyer` or `registry`.
    pub service: &'static str,
    /// The local address; with 127.0.0.1 nothing leaves this machine.
    pub bind: Ipv4Addr,
    pub discovery_port: u16,
    /// Only a server with this certificate matches.
    pub server_cert: Option<&'a str>,
}

/// A server that answers, or the one of them that was chosen and confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundServer {
    name: String,
    /// The address of the requested service.
    pub addr: SocketAddr,
    /// The certificate, which the client must insist on; `None` if the server has none.
    pub cert_sha256: Option<String>,
    /// All services of the server with their ports.
    pub serves: Vec<(String, u16)>,
    trust: TrustStatus,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TrustStatus {
    Confirmed,
    New,
    /// A server at the same address was confirmed with this other certificate.
    Changed(String),
}

/// Finds the server for a query. Prompts at a terminal if the choice is not clear or the server is not confirmed yet.
pub(super) fn find(query: &ServerQuery) -> anyhow::Result<FoundServer> {
    let known_servers = KnownServers::in_dir(paths::config_folder()?);
    // Read before anything is sent, so that an unreadable file is reported first.
    let known = known_servers.all()?;
    let mut candidates = Vec::new();
    for wait in ANSWER_TIMEOUTS {
        let config = DiscoverConfig { bind: query.bind, discovery_port: query.discovery_port, wait };
        let found = discover(&config).context("--server auto")?;
        candidates = find_candidates(found.peers, query, &known);
        if !candidates.is_empty() {
            break;
        }
    }
    let chosen = match select_without_asking(&candidates, query) {
        Selection::Server(chosen) => {
            eprintln!("note: {} ({})", sanitize(&describe(chosen)), describe_certificate(chosen));
            chosen
        }
        Selection::Unavailable(why) => bail!("--server auto: {why}"),
        Selection::AskUser if prompt::is_interactive() => ask_which(&candidates)?,
        Selection::AskUser => bail!("--server auto: {}", refusal_without_terminal(&candidates, query)),
    };
    let is_as_known = known.iter().any(|known| is_at_known_address(known, chosen) && known.serves == chosen.serves);
    if !is_as_known {
        let (cert_sha256, serves) = (chosen.cert_sha256.clone(), chosen.serves.clone());
        let address = chosen.addr.to_string();
        known_servers.confirm(KnownServer { cert_sha256, address, serves, at: Clock::start().now() })?;
    }
    Ok(chosen.clone())
}

impl FoundServer {
    /// Refuses payments through a server without a confirmed certificate, unless it is on this machine: its address
    /// proves nothing. `flags` are added to the advice on how to use it nevertheless.
    pub(super) fn check_payment(&self, flags: &str) -> anyhow::Result<()> {
        if self.cert_sha256.is_none() && !self.addr.ip().is_loopback() {
            bail!(
                "--server auto: nothing is paid through {}, which has no certificate that could be confirmed; whoever \
                 trusts the network up to it gives --server {}{flags}",
                self.addr,
                self.addr
            );
        }
        Ok(())
    }
}

/// Servers that offer the requested service. A server on several networks answers from each, but is listed once.
fn find_candidates(peers: Vec<DiscoveredPeer>, query: &ServerQuery, known: &[KnownServer]) -> Vec<FoundServer> {
    let mut found: Vec<(Option<String>, FoundServer)> = Vec::new();
    for peer in peers {
        let Some((_, port)) = peer.serves.iter().find(|(name, _)| name == query.service) else { continue };
        if query.server_cert.is_some() && peer.cert_sha256.as_deref() != query.server_cert {
            continue;
        }
        let addr = SocketAddr::new(peer.addr.ip(), *port);
        let candidate = FoundServer {
            trust: trust_status(addr, peer.cert_sha256.as_deref(), query.server_cert, known),
            name: peer.user_id.to_string(),
            addr,
            cert_sha256: peer.cert_sha256,
            serves: peer.serves,
        };
        let same = found.iter_mut().find(|(instance, other)| {
            instance.is_some() && *instance == peer.instance && other.cert_sha256 == candidate.cert_sha256
        });
        match same {
            Some((_, other)) => {
                if address_preference(&candidate, known) < address_preference(other, known) {
                    *other = candidate;
                }
            }
            None => found.push((peer.instance, candidate)),
        }
    }
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Ranks the addresses of one server; the smallest value wins: a known address first, then loopback.
fn address_preference(candidate: &FoundServer, known: &[KnownServer]) -> (bool, bool, SocketAddr) {
    let was_there = known.iter().any(|known| is_at_known_address(known, candidate));
    (!was_there, !candidate.addr.ip().is_loopback(), candidate.addr)
}

fn trust_status(addr: SocketAddr, cert: Option<&str>, query: Option<&str>, known: &[KnownServer]) -> TrustStatus {
    // Naming the fingerprint on the command line confirms it.
    let is_named = cert.is_some() && cert == query;
    let is_known = known.iter().any(|known| match cert {
        Some(cert) => known.cert_sha256.as_deref() == Some(cert),
        // A server without a certificate is identified by its address and port.
        None => known.cert_sha256.is_none() && known.address == addr.to_string(),
    });
    if is_named || is_known {
        return TrustStatus::Confirmed;
    }
    let before = known.iter().rev().find(|known| known.cert_sha256.is_some() && is_known_address(known, addr));
    before.and_then(|known| known.cert_sha256.clone()).map_or(TrustStatus::New, TrustStatus::Changed)
}

fn is_at_known_address(known: &KnownServer, candidate: &FoundServer) -> bool {
    known.cert_sha256 == candidate.cert_sha256
        && match known.cert_sha256 {
            Some(_) => is_known_address(known, candidate.addr),
            None => known.address == candidate.addr.to_string(),
        }
}

fn is_known_address(known: &KnownServer, addr: SocketAddr) -> bool {
    known
        .address
        .parse::<SocketAddr>()
        .is_ok_and(|at| at == addr || at.ip() == addr.ip() && known.serves.iter().any(|(_, port)| *port == addr.port()))
}

enum Selection<'a> {
    Server(&'a FoundServer),
    Unavailable(String),
    AskUser,
}

fn select_without_asking<'a>(candidates: &'a [FoundServer], query: &ServerQuery) -> Selection<'a> {
    match candidates {
        [] => {
            let with = query.server_cert.map_or_else(String::new, |cert| format!(" and the certificate {cert}"));
            let only = if query.bind.is_loopback() { ", on this machine alone (--bind)" } else { "" };
            Selection::Unavailable(format!(
                "no server with the service {}{with} answers at discovery port {}{only}: start one, or give {}",
                query.service,
                query.discovery_port,
                flags_for_any_server(query)
            ))
        }
        [only] if only.trust == TrustStatus::Confirmed => Selection::Server(only),
        _ => Selection::AskUser,
    }
}

fn refusal_without_terminal(candidates: &[FoundServer], query: &ServerQuery) -> String {
    let [only] = candidates else {
        let list: Vec<String> = candidates.iter().map(describe).collect();
        return format!(
            "{} servers answer ({}): choose one at a terminal, or give {}",
            candidates.len(),
            list.join(", "),
            flags_for_any_server(query)
        );
    };
    let why = match &only.trust {
        TrustStatus::Changed(before) => format!(
            "shows {}, but {before} was confirmed for its address: this may be another server that pretends to be it",
            describe_certificate(only)
        ),
        _ => "was never confirmed".to_owned(),
    };
    let cert = only.cert_sha256.as_ref().map_or("", |_| " --server-cert HEX (as its operator tells it)");
    let plain = match query.service {
        "trade" if cert.is_empty() => " --plaintext",
        "registry" if cert.is_empty() && !only.addr.ip().is_loopback() => " --insecure",
        _ => "",
    };
    format!(
        "{} {why}: run this once at a terminal to confirm it, or give {}{plain}{cert}",
        describe(only),
        flags_for(only, query)
    )
}

/// The flags that name a server explicitly; a share node has separate flags for its two ports.
fn flags_for_any_server(query: &ServerQuery) -> &'static str {
    if query.service == "registry" { "--server HOST" } else { "--server HOST:PORT" }
}

fn flags_for(candidate: &FoundServer, query: &ServerQuery) -> String {
    let addr = candidate.addr;
    if query.service != "registry" {
        return format!("--server {addr}");
    }
    let api = candidate.serves.iter().find(|(name, _)| name == SERVER_API);
    let api = api.map_or_else(String::new, |(_, port)| format!(" --server-api-port {port}"));
    format!("--server {} --registry-port {}{api}", addr.ip(), addr.port())
}

fn ask_which(candidates: &[FoundServer]) -> anyhow::Result<&FoundServer> {
    eprintln!("{}", candidate_table(candidates));
    let chosen = match candidates {
        [only] => only,
        several => loop {
            let answer = prompt::line(&format!("Which one (1 to {}): ", several.len()))?;
            let number = match answer.trim() {
                "" => bail!("--server auto: no server was chosen"),
                text => text.parse::<usize>().ok().and_then(|number| number.checked_sub(1)),
            };
            match number.and_then(|at| several.get(at)) {
                Some(chosen) => break chosen,
                None => eprintln!("expected a number from 1 to {}", several.len()),
            }
        },
    };
    if chosen.trust == TrustStatus::Confirmed {
        return Ok(chosen);
    }
    eprintln!("{}", confirmation_text(chosen));
    loop {
        match prompt::line("Is this your server? (yes/no): ")?.trim().to_lowercase().as_str() {
            "yes" | "y" => return Ok(chosen),
            "no" | "n" | "" => bail!("--server auto: {} was not confirmed", describe(chosen)),
            _ => eprintln!("expected yes or no"),
        }
    }
}

/// The text that the user reads before confirming a server.
fn confirmation_text(chosen: &FoundServer) -> String {
    let who = sanitize(&describe(chosen));
    let mut text = match &chosen.cert_sha256 {
        Some(cert) => format!("{who} shows the certificate\n  {cert}\nIts operator finds it in the server's log."),
        None => format!(
            "{who} has no certificate: it is known by this address alone, and whoever is on the way can read along."
        ),
    };
    if let TrustStatus::Changed(before) = &chosen.trust {
        text = format!(
            "warning: for this address you have confirmed another certificate,\n  {before}\nThis may be another \
             server that pretends to be it.\n{text}"
        );
    }
    text
}

fn candidate_table(candidates: &[FoundServer]) -> String {
    let columns: [Column<(usize, &FoundServer)>; 6] = [
        ("no", Align::Right, |(number, _)| number.to_string()),
        ("name", Align::Left, |(_, candidate)| candidate.name.clone()),
        ("address", Align::Left, |(_, candidate)| candidate.addr.to_string()),
        ("serves", Align::Left, |(_, candidate)| {
            candidate.serves.iter().map(|(name, port)| format!("{name}={port}")).collect::<Vec<_>>().join(",")
        }),
        ("certificate", Align::Left, |(_, candidate)| match &candidate.cert_sha256 {
            Some(cert) => format!("{}…", &cert[..FINGERPRINT_PREFIX_LEN]),
            None => "none".to_owned(),
        }),
        ("", Align::Left, |(_, candidate)| match candidate.trust {
            TrustStatus::Confirmed => "confirmed".to_owned(),
            TrustStatus::New => "new".to_owned(),
            TrustStatus::Changed(_) => "another certificate than before".to_owned(),
        }),
    ];
    table_of(&columns, &(1..).zip(candidates).collect::<Vec<_>>())
}

fn describe(candidate: &FoundServer) -> String {
    format!("{} at {}", candidate.name, candidate.addr)
}

fn describe_certificate(candidate: &FoundServer) -> String {
    candidate.cert_sha256.as_ref().map_or("no certificate".to_owned(), |cert| format!("the certificate {cert}"))
}

/// Stores a server as confirmed because its fingerprint was given on the command line, which counts like a confirmation
/// at the terminal. A failure is only a warning.
pub(super) fn remember_confirmed(service: &str, addr: SocketAddr, cert: &str) {
    let kept = paths::config_folder().and_then(|folder| {
        let known = KnownServers::in_dir(folder);
        if !known.is_confirmed(cert)? {
            let (cert_sha256, serves) = (Some(cert.to_owned()), vec![(service.to_owned(), addr.port())]);
            known.confirm(KnownServer { cert_sha256, address: addr.to_string(), serves, at: Clock::start().now() })?;
        }
        Ok(())
    });
    if let Err(error) = kept {
        eprintln!("warning: --server auto will not know this server: {}", sanitize(&format!("{error:#}")));
    }
}

/// The local IPv4 address from which to look for servers; an error if it is IPv6.
pub(super) fn bind_address(ip: IpAddr) -> anyhow::Result<Ipv4Addr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => bail!("--server auto looks for servers by IPv4: choose another --bind than {ip}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lan::wire::UserId;
    use crate::model::Millis;

    const CERTS: [&str; 3] = ["a", "b", "c"];

    fn cert(nth: usize) -> String {
        CERTS[nth].repeat(64)
    }

    fn answered(instance: &str, ip: &str, port: u16, cert: Option<String>) -> DiscoveredPeer {
        let serves = [("trade", port), ("buyer", port + 1)].map(|(name, port)| (name.to_owned(), port)).to_vec();
        DiscoveredPeer {
            user_id: UserId::parse(&format!("server-{instance}@{ip}")).unwrap(),
            addr: format!("{ip}:9999").parse().unwrap(),
            serves,
            cert_sha256: cert,
            instance: Some(instance.to_owned()),
        }
    }

    fn known(cert_sha256: Option<String>, address: &str) -> KnownServer {
        let serves = vec![("trade".to_owned(), 7001), ("buyer".to_owned(), 7002)];
        KnownServer { cert_sha256, address: address.to_owned(), serves, at: Millis(1) }
    }

    fn query(server_cert: Option<&str>) -> ServerQuery<'_> {
        ServerQuery { service: "trade", bind: Ipv4Addr::LOCALHOST, discovery_port: 50_999, server_cert }
    }

    fn standings(peers: Vec<DiscoveredPeer>, known: &[KnownServer]) -> Vec<TrustStatus> {
        find_candidates(peers, &query(None), known).into_iter().map(|candidate| candidate.trust).collect()
    }

    #[test]
    fn a_server_counts_once_and_where_it_was_before() {
        let peers = || {
            vec![
                answered("one", "10.0.0.1", 7001, Some(cert(0))),
                answered("one", "10.1.0.1", 7001, Some(cert(0))),
                answered("one", "127.0.0.1", 7001, Some(cert(0))),
                // Another server that claims the same certificate is a separate candidate.
                answered("two", "10.0.0.2", 7001, Some(cert(0))),
            ]
        };
        let addrs = |known: &[KnownServer]| -> Vec<String> {
            find_candidates(peers(), &query(None), known).iter().map(|found| found.addr.to_string()).collect()
        };
        assert_eq!(addrs(&[]), ["127.0.0.1:7001", "10.0.0.2:7001"]);
        assert_eq!(addrs(&[known(Some(cert(0)), "10.1.0.1:7001")]), ["10.1.0.1:7001", "10.0.0.2:7001"]);
        let other = ServerQuery { service: "registry", ..query(None) };
        assert!(find_candidates(peers(), &other, &[]).is_empty());
    }

    #[test]
    fn a_server_is_its_certificate_and_without_one_its_address() {
        let with = |nth| vec![answered("one", "10.0.0.1", 7001, Some(cert(nth)))];
        let without = || vec![answered("one", "10.0.0.1", 7001, None)];
        let elsewhere = known(Some(cert(0)), "10.9.9.9:7001");
        assert_eq!(standings(with(0), std::slice::from_ref(&elsewhere)), [TrustStatus::Confirmed]);
        assert_eq!(standings(with(1), &[elsewhere]), [TrustStatus::New]);
        for before in [known(Some(cert(0)), "10.0.0.1:7001"), known(Some(cert(0)), "10.0.0.1:7002")] {
            assert_eq!(
                standings(with(1), std::slice::from_ref(&before)),
                [TrustStatus::Changed(cert(0))],
                "{before:?}"
            );
            assert_eq!(standings(without(), &[before]), [TrustStatus::Changed(cert(0))]);
        }
        let plain = known(None, "10.0.0.1:7001");
        assert_eq!(standings(without(), std::slice::from_ref(&plain)), [TrustStatus::Confirmed]);
        assert_eq!(standings(with(0), &[plain]), [TrustStatus::New]);
        assert_eq!(standings(without(), &[known(None, "10.0.0.1:7002")]), [TrustStatus::New]);
    }

    #[test]
    fn who_names_the_fingerprint_confirms_it() {
        let peers = vec![
            answered("one", "10.0.0.1", 7001, Some(cert(0))),
            answered("two", "10.0.0.2", 7001, Some(cert(1))),
            answered("six", "10.0.0.6", 7001, None),
        ];
        let (cert, none) = (cert(1), cert(2));
        let found = find_candidates(peers.clone(), &query(Some(&cert)), &[]);
        assert!(matches!(&found[..], [only] if only.trust == TrustStatus::Confirmed && only.name.contains("two")));
        assert!(find_candidates(peers, &query(Some(&none)), &[]).is_empty());
    }

    #[test]
    fn without_a_person_only_one_that_was_confirmed_is_taken() {
        let selected = |peers: Vec<DiscoveredPeer>, known: &[KnownServer]| {
            let found = find_candidates(peers, &query(None), known);
            match select_without_asking(&found, &query(None)) {
                Selection::Server(this) => this.addr.to_string(),
                Selection::Unavailable(why) => why,
                Selection::AskUser => refusal_without_terminal(&found, &query(None)),
            }
        };
        let one = || answered("one", "10.0.0.1", 7001, Some(cert(0)));
        let two = || answered("two", "10.0.0.2", 7001, None);
        let known = [known(Some(cert(0)), "10.0.0.1:7001")];
        assert_eq!(selected(vec![one()], &known), "10.0.0.1:7001");
        let why = selected(vec![], &known);
        assert!(why.starts_with("no server with the service trade answers at discovery port 50999"), "{why}");
        let why = selected(vec![one(), two()], &known);
        assert!(why.starts_with("2 servers answer (server-one@10.0.0.1 at 10.0.0.1:7001, server-two"), "{why}");
        let why = selected(vec![one()], &[]);
        assert!(why.contains("never confirmed") && why.contains("--server 10.0.0.1:7001 --server-cert HEX"), "{why}");
        let why = selected(vec![two()], &[]);
        assert!(why.contains("never confirmed") && why.ends_with("--server 10.0.0.2:7001 --plaintext"), "{why}");
        let why = selected(vec![answered("one", "10.0.0.1", 7001, Some(cert(1)))], &known);
        assert!(why.contains(&cert(0)) && why.contains(&cert(1)) && why.contains("pretends"), "{why}");
    }

    #[test]
    fn without_a_certificate_nothing_is_paid_beyond_this_machine() {
        let chosen = |addr: &str, cert_sha256| {
            let (addr, serves, trust) = (addr.parse().unwrap(), Vec::new(), TrustStatus::Confirmed);
            FoundServer { name: String::new(), addr, cert_sha256, serves, trust }
        };
        assert!(chosen("127.0.0.1:8002", None).check_payment("").is_ok());
        assert!(chosen("10.0.0.1:8002", Some(cert(0))).check_payment("").is_ok());
        let why = chosen("10.0.0.1:7001", None).check_payment(" --plaintext").unwrap_err().to_string();
        assert!(why.contains("nothing is paid") && why.ends_with("--server 10.0.0.1:7001 --plaintext"), "{why}");
    }

    #[test]
    fn the_list_is_short_and_the_question_whole() {
        let known = [known(Some(cert(0)), "10.0.0.1:7001")];
        let peers = vec![
            answered("one", "10.0.0.1", 7001, Some(cert(0))),
            answered("two", "10.0.0.1", 7001, Some(cert(1))),
            answered("six", "10.0.0.6", 7001, None),
        ];
        let found = find_candidates(peers, &query(None), &known);
        let list = candidate_table(&found);
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(lines[1].contains("trade=7001,buyer=7002  aaaaaaaaaaaaaaaa…  confirmed"), "{list}");
        assert!(lines[2].ends_with("bbbbbbbbbbbbbbbb…  another certificate than before"), "{list}");
        assert!(lines[3].ends_with("none               new"), "{list}");
        let question = confirmation_text(&found[1]);
        assert!(question.contains(&cert(0)) && question.contains(&cert(1)), "{question}");
        assert!(confirmation_text(&found[2]).contains("no certificate"));
    }

    #[test]
    fn servers_are_looked_for_by_ipv4() {
        assert_eq!(bind_address("127.0.0.1".parse().unwrap()).unwrap(), Ipv4Addr::LOCALHOST);
        assert!(bind_address("::1".parse().unwrap()).unwrap_err().to_string().contains("--bind"));
    }
}
