//! A node on a bench: 10.0.0.1 and loopback, port 8001, with time that a test moves.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::lan::wire::{Dm, Post, Profile};

mod discovery;
mod limits;
mod lists;
mod namesakes;
mod other_makes;
mod ports;
mod talk;

const DISCOVERY_PORT: u16 = 50_999;
const BEGAN: Millis = Millis(1_700_000_000_000);

struct Bench {
    node: Node,
    now: Millis,
    random: u64,
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn addr_v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn user(text: &str) -> UserId {
    let (who, at) = text.rsplit_once('@').unwrap();
    UserId { name: name(who), ip: ip(at) }
}

fn stamp(message_id: &str) -> Stamp {
    Stamp { timestamp: Some(1), message_id: (!message_id.is_empty()).then(|| message_id.to_owned()) }
}

/// What a peer of this program announces.
fn announced(who: &str, port: u16, instance: &str) -> Discovery {
    Discovery {
        user_id: user(who),
        port,
        instance: (!instance.is_empty()).then(|| instance.to_owned()),
        features: Features { ack: !instance.is_empty(), probe: false },
        serves: Vec::new(),
        cert_sha256: None,
        stamp: stamp("d"),
    }
}

fn dm(from: &str, to: &str, id: &str) -> Message {
    Message::Dm(Dm { from: user(from), to: user(to), content: "hello".into(), stamp: stamp(id) })
}

fn post(from: &str, id: &str) -> Message {
    Message::Post(Post { user_id: user(from), content: "hello".into(), stamp: stamp(id) })
}

fn settings(kind: Kind) -> Settings {
    Settings {
        name: name("alice"),
        instance: "5000000000000000".into(),
        kind,
        port: 8001,
        discovery_port: DISCOVERY_PORT,
        announce_every: Duration::from_secs(30),
        forget_after: Duration::from_secs(300),
    }
}

fn interface(own: &str, netmask: &str) -> Interface {
    Interface { ip: ip(own), netmask: ip(netmask), from: Some(ip(own)) }
}

impl Bench {
    /// Not started.
    fn asleep(settings: Settings) -> Bench {
        let mut bench = Bench { node: Node::new(settings), now: BEGAN, random: 7 };
        let interfaces = vec![interface("127.0.0.1", "255.0.0.0"), interface("10.0.0.1", "255.255.255.0")];
        assert!(bench.event(Event::Interfaces(interfaces)).is_empty());
        bench
    }

    fn of(kind: Kind) -> Bench {
        let mut bench = Bench::asleep(settings(kind));
        bench.event(Event::Started);
        bench
    }

    /// Started long ago, so that nobody takes it for young.
    fn new() -> Bench {
        let mut bench = Bench::of(Kind::Person);
        bench.wait(3_000);
        bench
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let random = &mut self.random;
        self.node.handle(self.now, event, &mut || {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random.rotate_right(16)
        })
    }

    fn command(&mut self, command: Command) -> Result<(Done, Vec<Effect>), CommandError> {
        let random = &mut self.random;
        self.node.command(self.now, command, &mut || {
            *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *random
        })
    }

    fn hear(&mut self, from: &str, door: Door, message: Message) -> Vec<Effect> {
        self.event(Event::Datagram { from: addr(from), door, message: Ok(message), bytes: 100 })
    }

    fn broadcast(&mut self, from: &str, said: Discovery) -> Vec<Effect> {
        self.hear(from, Door::Discovery, Message::Discovery(said))
    }

    fn direct(&mut self, from: &str, said: Discovery) -> Vec<Effect> {
        self.hear(from, Door::Own, Message::Discovery(said))
    }

    /// A peer that is known, and was answered long ago.
    fn known(&mut self, who: &str, port: u16, instance: &str) {
        let from = format!("{}:{port}", user(who).ip);
        let effects = self.broadcast(&from, announced(who, port, instance));
        assert!(matches!(&came(&effects)[..], [known] if *known == who), "{effects:?}");
        self.wait(11_000);
    }

    /// What happens by itself in this time, with when.
    fn events(&mut self, ms: u64) -> Vec<(u64, Effect)> {
        let (began, end) = (self.now, self.now.plus_ms(ms));
        let mut effects = Vec::new();
        while let Some(at) = self.node.next_deadline().filter(|at| *at <= end) {
            assert!(at >= self.now || effects.len() < 100_000, "time stands still");
            self.now = self.now.max(at);
            let at_ms = began.until(self.now).as_millis() as u64;
            effects.extend(self.event(Event::Tick).into_iter().map(|effect| (at_ms, effect)));
        }
        self.now = end;
        effects
    }

    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.events(ms).into_iter().map(|(_, effect)| effect).collect()
    }

    fn dropped(&self, cause: Cause) -> u64 {
        self.node.counters().dropped(cause)
    }

    /// `name@ip ip:port` of each peer.
    fn list(&self) -> Vec<String> {
        self.node.peers().iter().map(|known| format!("{} {}", known.user_id, known.addr)).collect()
    }
}

fn came(effects: &[Effect]) -> Vec<String> {
    let came = effects.iter().filter_map(|effect| match effect {
        Effect::Show(Shown::Came(known)) => Some(known.user_id.to_string()),
        _ => None,
    });
    came.collect()
}

/// Announcements to one address.
fn told(effects: &[Effect]) -> Vec<SocketAddr> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, message: Message::Discovery(_) } => Some(*to),
        _ => None,
    });
    told.collect()
}

fn sends(effects: &[Effect]) -> Vec<(SocketAddr, &Message)> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, message } => Some((*to, message)),
        _ => None,
    });
    sends.collect()
}

fn broadcasts(effects: &[Effect]) -> Vec<(Ipv4Addr, &Discovery)> {
    let broadcasts = effects.iter().filter_map(|effect| match effect {
        Effect::Broadcast { by, message: Message::Discovery(said) } => Some((*by, said)),
        _ => None,
    });
    broadcasts.collect()
}

fn shown(effects: &[Effect]) -> Vec<&Shown> {
    let shown = effects.iter().filter_map(|effect| match effect {
        Effect::Show(shown) => Some(shown),
        _ => None,
    });
    shown.collect()
}
