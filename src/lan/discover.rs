//! One question to everybody: who is there? And whether the network carries what peers need.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::sockets::{Config, Door, Heard, LanSockets, OpenError, Port};
use super::wire::{self, Discovery, Features, Message, Stamp, UserId};
use crate::model::secret::random_hex;
use crate::model::{Clock, Name};
use crate::net::interfaces::Interface;
use crate::net::threads;

/// Answers that wait to be looked at, and peers that are listed.
const ANSWERS_MAX: usize = 10_000;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// As of a peer: 127.0.0.1 and nothing leaves this host.
    pub bind: Ipv4Addr,
    /// Where everybody hears it.
    pub discovery_port: u16,
    /// How long answers are waited for.
    pub wait: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Found {
    /// The addresses of this host that were asked from.
    pub interfaces: Vec<Interface>,
    /// Whether what was broadcast on a network came back; none where no interface has broadcast.
    pub broadcast_works: Option<bool>,
    /// The same on this host.
    pub loopback_works: Option<bool>,
    /// Who answered, by name, and by each interface; servers too.
    pub peers: Vec<Answered>,
}

/// Somebody who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Who.
    pub user_id: UserId,
    /// Where he is spoken to.
    pub addr: SocketAddr,
    /// What a server serves; of people, empty.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate.
    pub cert_sha256: Option<String>,
    /// Random, one per run: who bears the same is the same, seen through another interface.
    pub instance: Option<String>,
}

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The sockets cannot be had.
    #[error(transparent)]
    Sockets(#[from] OpenError),
    /// The system gave no thread, or does not tell the host's addresses.
    #[error("cannot ask")]
    System(#[from] io::Error),
}

/// Announces itself once, under a name that nobody lists, and listens.
///
/// # Errors
/// [`AskError`].
pub fn ask(question: &Question) -> Result<Found, AskError> {
    let Question { bind, discovery_port, wait } = *question;
    let sockets =
        std::sync::Arc::new(LanSockets::open(Config { bind, port: Port::Free { last: None }, discovery_port })?);
    let instance = random_hex::<8>();
    // Six letters and digits: within the rule of names.
    let name = Name::new(&format!("discover-{}", &random_hex::<3>())).map_err(io::Error::other)?;
    let (heard, came) = bounded(ANSWERS_MAX);
    let mut readers = Vec::new();
    for door in [Door::Own, Door::Discovery] {
        let (sockets, heard) = (std::sync::Arc::clone(&sockets), heard.clone());
        readers.push(threads::spawn("lan-discover", move || read(&sockets, door, &heard))?);
    }
    drop(heard);
    let all = sockets.interfaces()?;
    let own: Vec<Ipv4Addr> = all.iter().map(|interface| interface.ip).collect();
    let mut asked = Vec::new();
    let deadline = Instant::now() + wait;
    for interface in all {
        let Some(ip) = sockets.source(&interface) else { continue };
        // What comes back is told apart by it: bound to one address, all of it comes from there.
        let message_id = random_hex::<8>();
        let announcement = Message::Discovery(Discovery {
            user_id: UserId { name: name.clone(), ip },
            port: sockets.own_addr().port(),
            instance: Some(instance.clone()),
            features: Features { ack: false, probe: true },
            serves: Vec::new(),
            cert_sha256: None,
            stamp: Stamp { timestamp: Some(Clock::start().now().0 / 1000), message_id: Some(message_id.clone()) },
        });
        let bytes = wire::write(&announcement).map_err(io::Error::other)?;
        if let Err(error) = sockets.broadcast(&interface, &bytes) {
            // That it does not come back says the same to whoever asked.
            log::debug!("announcing by {}: {error}", interface.name);
        }
        asked.push((message_id, interface));
    }
    let found = listen(&came, deadline, &instance, &own, asked);
    sockets.stop();
    for reader in readers {
        // An Err would be a panic, which `threads::spawn` has caught and logged.
        let _ = reader.join();
    }
    Ok(found)
}

fn read(sockets: &LanSockets, door: Door, heard: &Sender<(Door, SocketAddr, Discovery)>) {
    sockets.read(door, |it| {
        if let Heard::Datagram { source, bytes } = it
            && let Ok(Message::Discovery(discovery)) = wire::read(bytes)
        {
            // More than can be listed are left out.
            let _ = heard.try_send((door, source, discovery));
        }
    });
}

fn listen(
    came: &Receiver<(Door, SocketAddr, Discovery)>,
    deadline: Instant,
    instance: &str,
    own: &[Ipv4Addr],
    asked: Vec<(String, Interface)>,
) -> Found {
    let is_own = |ip: IpAddr| ip.is_loopback() || own.iter().any(|own| IpAddr::V4(*own) == ip);
    let has =
        |loopback: bool| asked.iter().any(|(_, each)| each.ip.is_loopback() == loopback && each.broadcast.is_some());
    let mut broadcast_works = has(false).then_some(false);
    let mut loopback_works = has(true).then_some(false);
    let mut peers: Vec<Answered> = Vec::new();
    while let Ok((door, source, discovery)) = came.recv_deadline(deadline) {
        if discovery.instance.as_deref() == Some(instance) {
            let by = asked.iter().find(|(message_id, _)| discovery.stamp.message_id.as_ref() == Some(message_id));
            if let Some((_, interface)) = by {
                let works = if interface.ip.is_loopback() { &mut loopback_works } else { &mut broadcast_works };
                *works = Some(true);
            }
            continue;
        }
        // Announcements of others are no answers, and who only asks is not there.
        if door != Door::Own || discovery.features.probe && !discovery.features.ack {
            continue;
        }
        let claimed = IpAddr::V4(discovery.user_id.ip);
        if source.ip() != claimed && !(is_own(source.ip()) && is_own(claimed)) {
            continue;
        }
        let addr = SocketAddr::new(source.ip(), discovery.port);
        let answered = Answered {
            user_id: discovery.user_id,
            addr,
            serves: discovery.serves,
            cert_sha256: discovery.cert_sha256,
            instance: discovery.instance,
        };
        if peers.len() < ANSWERS_MAX && !peers.iter().any(|peer| peer.user_id == answered.user_id && peer.addr == addr)
        {
            peers.push(answered);
        }
    }
    peers.sort_by(|a, b| (&a.user_id, a.addr).cmp(&(&b.user_id, b.addr)));
    let interfaces = asked.into_iter().map(|(_, interface)| interface).collect();
    Found { interfaces, broadcast_works, loopback_works, peers }
}

impl Found {
    /// Everybody once, though he may have answered by several interfaces: as others reach him, where he said so.
    pub fn each_once(&self) -> Vec<&Answered> {
        let mut once: Vec<&Answered> = Vec::new();
        for peer in &self.peers {
            let same = once.iter_mut().find(|other| peer.instance.is_some() && other.instance == peer.instance);
            match same {
                None => once.push(peer),
                Some(other) if other.addr.ip().is_loopback() => *other = peer,
                Some(_) => {}
            }
        }
        once
    }
}
