//! `--server auto`: which servers announce themselves, and which of them is meant.
//!
//! Whoever is on the network may answer, under any name. What tells servers apart is the certificate: the
//! user confirms its fingerprint once, at a terminal, and from then on it is what the client insists on. So
//! an answer can lie only in vain: whoever has not that certificate's key is not paid through.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};

use super::repl::clean;
use super::settings;
use super::shopper::ask;
use super::table::{Align, table};
use crate::identity::{KnownServer, KnownServers};
use crate::lan::discover::{Answered, Question, ask as ask_around};
use crate::model::Clock;

/// In the place of HOST:PORT.
pub(super) const AUTO: &str = "auto";
/// What the server API is called among what a server serves.
pub(super) const SERVER_API: &str = "server_api";
/// How long answers are waited for; and once more so long where nobody answered: a network may lose a
/// question.
const WAITS: [Duration; 2] = [Duration::from_secs(1); 2];
/// How much of a fingerprint a table shows: who confirms one sees all of it.
const SHORT: usize = 16;

/// What is looked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// What the server must serve: `trade`, `seller`, `buyer`, `registry`.
    pub service: &'static str,
    /// Where is asked from: with 127.0.0.1 nothing leaves this machine.
    pub bind: Ipv4Addr,
    /// Where servers hear that.
    pub discovery_port: u16,
    /// With this certificate alone, which the user knows already.
    pub server_cert: Option<&'a str>,
}

/// The server that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Of the service.
    pub addr: SocketAddr,
    /// The one certificate that it may show, as the user has confirmed; none: it has none.
    pub cert_sha256: Option<String>,
    /// What else there is, and at which port.
    pub serves: Vec<(String, u16)>,
}

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    /// What it calls itself.
    name: String,
    addr: SocketAddr,
    cert_sha256: Option<String>,
    serves: Vec<(String, u16)>,
    standing: Standing,
}

/// What the user has had to do with a server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Confirmed,
    New,
    /// At its address one with this certificate was confirmed.
    Changed(String),
}

/// Looks for servers and takes the one that is meant, asking at a terminal.
///
/// # Errors
/// No server can be taken, and what to do about it.
pub(super) fn find(wanted: &Wanted) -> anyhow::Result<Chosen> {
    let known_servers = KnownServers::in_folder(settings::config_folder()?);
    // Before anybody is asked: a file that cannot be read is to be told first.
    let known = known_servers.all()?;
    let mut candidates = Vec::new();
    for wait in WAITS {
        let question = Question { bind: wanted.bind, discovery_port: wanted.discovery_port, wait };
        let found = ask_around(&question).context("--server auto")?;
        candidates = candidates_of(found.peers, wanted, &known);
        if !candidates.is_empty() {
            break;
        }
    }
    let chosen = match without_asking(&candidates, wanted) {
        Taken::This(chosen) => {
            eprintln!("note: {} ({})", clean(&described(chosen)), certificate(chosen));
            chosen
        }
        Taken::None(why) => bail!("--server auto: {why}"),
        Taken::Ask if ask::somebody_is_there() => choose(&candidates)?,
        Taken::Ask => bail!("--server auto: {}", not_in_a_pipe(&candidates, wanted)),
    };
    let is_as_known = known.iter().any(|known| is_at(known, chosen) && known.serves == chosen.serves);
    if !is_as_known {
        let (cert_sha256, serves) = (chosen.cert_sha256.clone(), chosen.serves.clone());
        let address = chosen.addr.to_string();
        known_servers.confirm(KnownServer { cert_sha256, address, serves, at: Clock::start().now() })?;
    }
    Ok(Chosen { addr: chosen.addr, cert_sha256: chosen.cert_sha256.clone(), serves: chosen.serves.clone() })
}

impl Chosen {
    /// Nothing is paid through a server whose fingerprint nobody has confirmed: one that has none is known by
    /// its address, and beyond this machine that proves nothing.
    ///
    /// # Errors
    /// Why not, and what to do about it; `flags` are those with which such a server is named.
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

/// Those who serve what is wanted, each once: one that is on several networks answers from each.
fn candidates_of(peers: Vec<Answered>, wanted: &Wanted, known: &[KnownServer]) -> Vec<Candidate> {
    let mut found: Vec<(Option<String>, Candidate)> = Vec::new();
    for peer in peers {
        let Some((_, port)) = peer.serves.iter().find(|(name, _)| name == wanted.service) else { continue };
        if wanted.server_cert.is_some() && peer.cert_sha256.as_deref() != wanted.server_cert {
            continue;
        }
        let addr = SocketAddr::new(peer.addr.ip(), *port);
        let candidate = Candidate {
            standing: standing(addr, peer.cert_sha256.as_deref(), wanted.server_cert, known),
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
                if preference(&candidate, known) < preference(other, known) {
                    *other = candidate;
                }
            }
            None => found.push((peer.instance, candidate)),
        }
    }
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Which address of one server to take: where it was before, then the nearest. The smallest is the best.
fn preference(candidate: &Candidate, known: &[KnownServer]) -> (bool, bool, SocketAddr) {
    let was_there = known.iter().any(|known| is_at(known, candidate));
    (!was_there, !candidate.addr.ip().is_loopback(), candidate.addr)
}

fn standing(addr: SocketAddr, cert: Option<&str>, wanted: Option<&str>, known: &[KnownServer]) -> Standing {
    // Who names the fingerprint confirms it.
    let is_named = cert.is_some() && cert == wanted;
    let is_known = known.iter().any(|known| match cert {
        Some(cert) => known.cert_sha256.as_deref() == Some(cert),
        // One that has none is no more than its port.
        None => known.cert_sha256.is_none() && known.address == addr.to_string(),
    });
    if is_named || is_known {
        return Standing::Confirmed;
    }
    let before = known.iter().rev().find(|known| known.cert_sha256.is_some() && was_at(known, addr));
    before.and_then(|known| known.cert_sha256.clone()).map_or(Standing::New, Standing::Changed)
}

/// Whether this is the server that is known, where it was before.
fn is_at(known: &KnownServer, candidate: &Candidate) -> bool {
    known.cert_sha256 == candidate.cert_sha256
        && match known.cert_sha256 {
            Some(_) => was_at(known, candidate.addr),
            None => known.address == candidate.addr.to_string(),
        }
}

/// Whether a server was at an address with one of its services.
fn was_at(known: &KnownServer, addr: SocketAddr) -> bool {
    known
        .address
        .parse::<SocketAddr>()
        .is_ok_and(|at| at == addr || at.ip() == addr.ip() && known.serves.iter().any(|(_, port)| *port == addr.port()))
}

/// What can be said without a person.
enum Taken<'a> {
    This(&'a Candidate),
    None(String),
    Ask,
}

fn without_asking<'a>(candidates: &'a [Candidate], wanted: &Wanted) -> Taken<'a> {
    match candidates {
        [] => {
            let with = wanted.server_cert.map_or_else(String::new, |cert| format!(" and the certificate {cert}"));
            let only = if wanted.bind.is_loopback() { ", on this machine alone (--bind)" } else { "" };
            Taken::None(format!(
                "no server with the service {}{with} answers at discovery port {}{only}: start one, or give {}",
                wanted.service,
                wanted.discovery_port,
                any_by_flags(wanted)
            ))
        }
        [only] if only.standing == Standing::Confirmed => Taken::This(only),
        _ => Taken::Ask,
    }
}

/// Why none is taken where nobody can be asked.
fn not_in_a_pipe(candidates: &[Candidate], wanted: &Wanted) -> String {
    let [only] = candidates else {
        let list: Vec<String> = candidates.iter().map(described).collect();
        return format!(
            "{} servers answer ({}): choose one at a terminal, or give {}",
            candidates.len(),
            list.join(", "),
            any_by_flags(wanted)
        );
    };
    let why = match &only.standing {
        Standing::Changed(before) => format!(
            "shows {}, but {before} was confirmed for its address: this may be another server that pretends to be it",
            certificate(only)
        ),
        _ => "was never confirmed".to_owned(),
    };
    let cert = only.cert_sha256.as_ref().map_or("", |_| " --server-cert HEX (as its operator tells it)");
    let plain = match wanted.service {
        "trade" if cert.is_empty() => " --plaintext",
        "registry" if cert.is_empty() && !only.addr.ip().is_loopback() => " --insecure",
        _ => "",
    };
    format!(
        "{} {why}: run this once at a terminal to confirm it, or give {}{plain}{cert}",
        described(only),
        by_flags(only, wanted)
    )
}

/// How a server is named without looking for it; a node of share has a flag for each of two ports.
fn any_by_flags(wanted: &Wanted) -> &'static str {
    if wanted.service == "registry" { "--server HOST" } else { "--server HOST:PORT" }
}

fn by_flags(candidate: &Candidate, wanted: &Wanted) -> String {
    let addr = candidate.addr;
    if wanted.service != "registry" {
        return format!("--server {addr}");
    }
    let api = candidate.serves.iter().find(|(name, _)| name == SERVER_API);
    let api = api.map_or_else(String::new, |(_, port)| format!(" --server-api-port {port}"));
    format!("--server {} --registry-port {}{api}", addr.ip(), addr.port())
}

/// Asks which, and whether its certificate is the right one.
fn choose(candidates: &[Candidate]) -> anyhow::Result<&Candidate> {
    eprintln!("{}", listed(candidates));
    let chosen = match candidates {
        [only] => only,
        several => loop {
            let answer = ask::line(&format!("Which one (1 to {}): ", several.len()))?;
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
    if chosen.standing == Standing::Confirmed {
        return Ok(chosen);
    }
    eprintln!("{}", to_confirm(chosen));
    loop {
        match ask::line("Is this your server? (yes/no): ")?.trim().to_lowercase().as_str() {
            "yes" | "y" => return Ok(chosen),
            "no" | "n" | "" => bail!("--server auto: {} was not confirmed", described(chosen)),
            _ => eprintln!("expected yes or no"),
        }
    }
}

/// What a person reads before he confirms a server.
fn to_confirm(chosen: &Candidate) -> String {
    let who = clean(&described(chosen));
    let mut text = match &chosen.cert_sha256 {
        Some(cert) => format!("{who} shows the certificate\n  {cert}\nIts operator finds it in the server's log."),
        None => format!(
            "{who} has no certificate: it is known by this address alone, and whoever is on the way can read along."
        ),
    };
    if let Standing::Changed(before) = &chosen.standing {
        text = format!(
            "warning: for this address you have confirmed another certificate,\n  {before}\nThis may be another \
             server that pretends to be it.\n{text}"
        );
    }
    text
}

fn listed(candidates: &[Candidate]) -> String {
    let columns = [
        ("no", Align::Right),
        ("name", Align::Left),
        ("address", Align::Left),
        ("serves", Align::Left),
        ("certificate", Align::Left),
        ("", Align::Left),
    ];
    let rows: Vec<Vec<String>> = (1..)
        .zip(candidates)
        .map(|(number, candidate): (usize, _)| {
            let serves: Vec<String> = candidate.serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
            let short = candidate.cert_sha256.as_ref().map_or("none".to_owned(), |cert| format!("{}…", &cert[..SHORT]));
            let standing = match candidate.standing {
                Standing::Confirmed => "confirmed",
                Standing::New => "new",
                Standing::Changed(_) => "another certificate than before",
            };
            let (name, address) = (candidate.name.clone(), candidate.addr.to_string());
            vec![number.to_string(), name, address, serves.join(","), short, standing.to_owned()]
        })
        .collect();
    table(&columns, &rows)
}

fn described(candidate: &Candidate) -> String {
    format!("{} at {}", candidate.name, candidate.addr)
}

fn certificate(candidate: &Candidate) -> String {
    candidate.cert_sha256.as_ref().map_or("no certificate".to_owned(), |cert| format!("the certificate {cert}"))
}

/// Keeps a server as confirmed whose fingerprint the user has given with its address: that is the same word as
/// the one at a terminal. Where it cannot be kept, it counts for this once.
pub(super) fn remember(service: &str, addr: SocketAddr, cert: &str) {
    let kept = settings::config_folder().and_then(|folder| {
        let known = KnownServers::in_folder(folder);
        if !known.is_confirmed(cert)? {
            let (cert_sha256, serves) = (Some(cert.to_owned()), vec![(service.to_owned(), addr.port())]);
            known.confirm(KnownServer { cert_sha256, address: addr.to_string(), serves, at: Clock::start().now() })?;
        }
        Ok(())
    });
    if let Err(error) = kept {
        eprintln!("warning: --server auto will not know this server: {}", clean(&format!("{error:#}")));
    }
}

/// The address to look from, for a client that is bound to it.
///
/// # Errors
/// It is not of the LAN.
pub(super) fn bind(ip: IpAddr) -> anyhow::Result<Ipv4Addr> {
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

    fn answered(instance: &str, ip: &str, port: u16, cert: Option<String>) -> Answered {
        let serves = [("trade", port), ("buyer", port + 1)].map(|(name, port)| (name.to_owned(), port)).to_vec();
        Answered {
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

    fn wanted(server_cert: Option<&str>) -> Wanted<'_> {
        Wanted { service: "trade", bind: Ipv4Addr::LOCALHOST, discovery_port: 50_999, server_cert }
    }

    fn standings(peers: Vec<Answered>, known: &[KnownServer]) -> Vec<Standing> {
        candidates_of(peers, &wanted(None), known).into_iter().map(|candidate| candidate.standing).collect()
    }

    #[test]
    fn a_server_counts_once_and_where_it_was_before() {
        let peers = || {
            vec![
                answered("one", "10.0.0.1", 7001, Some(cert(0))),
                answered("one", "10.1.0.1", 7001, Some(cert(0))),
                answered("one", "127.0.0.1", 7001, Some(cert(0))),
                // Somebody else who claims the same certificate is somebody else.
                answered("two", "10.0.0.2", 7001, Some(cert(0))),
            ]
        };
        let addrs = |known: &[KnownServer]| -> Vec<String> {
            candidates_of(peers(), &wanted(None), known).iter().map(|found| found.addr.to_string()).collect()
        };
        assert_eq!(addrs(&[]), ["127.0.0.1:7001", "10.0.0.2:7001"]);
        assert_eq!(addrs(&[known(Some(cert(0)), "10.1.0.1:7001")]), ["10.1.0.1:7001", "10.0.0.2:7001"]);
        let other = Wanted { service: "registry", ..wanted(None) };
        assert!(candidates_of(peers(), &other, &[]).is_empty());
    }

    #[test]
    fn a_server_is_its_certificate_and_without_one_its_address() {
        let with = |nth| vec![answered("one", "10.0.0.1", 7001, Some(cert(nth)))];
        let without = || vec![answered("one", "10.0.0.1", 7001, None)];
        let elsewhere = known(Some(cert(0)), "10.9.9.9:7001");
        assert_eq!(standings(with(0), std::slice::from_ref(&elsewhere)), [Standing::Confirmed]);
        assert_eq!(standings(with(1), &[elsewhere]), [Standing::New]);
        for before in [known(Some(cert(0)), "10.0.0.1:7001"), known(Some(cert(0)), "10.0.0.1:7002")] {
            assert_eq!(standings(with(1), std::slice::from_ref(&before)), [Standing::Changed(cert(0))], "{before:?}");
            assert_eq!(standings(without(), &[before]), [Standing::Changed(cert(0))]);
        }
        let plain = known(None, "10.0.0.1:7001");
        assert_eq!(standings(without(), std::slice::from_ref(&plain)), [Standing::Confirmed]);
        assert_eq!(standings(with(0), &[plain]), [Standing::New]);
        assert_eq!(standings(without(), &[known(None, "10.0.0.1:7002")]), [Standing::New]);
    }

    #[test]
    fn who_names_the_fingerprint_confirms_it() {
        let peers = vec![
            answered("one", "10.0.0.1", 7001, Some(cert(0))),
            answered("two", "10.0.0.2", 7001, Some(cert(1))),
            answered("six", "10.0.0.6", 7001, None),
        ];
        let (cert, none) = (cert(1), cert(2));
        let found = candidates_of(peers.clone(), &wanted(Some(&cert)), &[]);
        assert!(matches!(&found[..], [only] if only.standing == Standing::Confirmed && only.name.contains("two")));
        assert!(candidates_of(peers, &wanted(Some(&none)), &[]).is_empty());
    }

    #[test]
    fn without_a_person_only_one_that_was_confirmed_is_taken() {
        let taken = |peers: Vec<Answered>, known: &[KnownServer]| {
            let found = candidates_of(peers, &wanted(None), known);
            match without_asking(&found, &wanted(None)) {
                Taken::This(this) => this.addr.to_string(),
                Taken::None(why) => why,
                Taken::Ask => not_in_a_pipe(&found, &wanted(None)),
            }
        };
        let one = || answered("one", "10.0.0.1", 7001, Some(cert(0)));
        let two = || answered("two", "10.0.0.2", 7001, None);
        let known = [known(Some(cert(0)), "10.0.0.1:7001")];
        assert_eq!(taken(vec![one()], &known), "10.0.0.1:7001");
        let why = taken(vec![], &known);
        assert!(why.starts_with("no server with the service trade answers at discovery port 50999"), "{why}");
        let why = taken(vec![one(), two()], &known);
        assert!(why.starts_with("2 servers answer (server-one@10.0.0.1 at 10.0.0.1:7001, server-two"), "{why}");
        let why = taken(vec![one()], &[]);
        assert!(why.contains("never confirmed") && why.contains("--server 10.0.0.1:7001 --server-cert HEX"), "{why}");
        let why = taken(vec![two()], &[]);
        assert!(why.contains("never confirmed") && why.ends_with("--server 10.0.0.2:7001 --plaintext"), "{why}");
        let why = taken(vec![answered("one", "10.0.0.1", 7001, Some(cert(1)))], &known);
        assert!(why.contains(&cert(0)) && why.contains(&cert(1)) && why.contains("pretends"), "{why}");
    }

    #[test]
    fn without_a_certificate_nothing_is_paid_beyond_this_machine() {
        let chosen = |addr: &str, cert_sha256| Chosen { addr: addr.parse().unwrap(), cert_sha256, serves: Vec::new() };
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
        let found = candidates_of(peers, &wanted(None), &known);
        let list = listed(&found);
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(lines[1].contains("trade=7001,buyer=7002  aaaaaaaaaaaaaaaa…  confirmed"), "{list}");
        assert!(lines[2].ends_with("bbbbbbbbbbbbbbbb…  another certificate than before"), "{list}");
        assert!(lines[3].ends_with("none               new"), "{list}");
        let question = to_confirm(&found[1]);
        assert!(question.contains(&cert(0)) && question.contains(&cert(1)), "{question}");
        assert!(to_confirm(&found[2]).contains("no certificate"));
    }

    #[test]
    fn servers_are_looked_for_by_ipv4() {
        assert_eq!(bind("127.0.0.1".parse().unwrap()).unwrap(), Ipv4Addr::LOCALHOST);
        assert!(bind("::1".parse().unwrap()).unwrap_err().to_string().contains("--bind"));
    }
}
