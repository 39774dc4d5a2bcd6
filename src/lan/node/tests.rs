//! Tests of the node "alice" with the addresses 10.0.0.1 and loopback, port 8001, and a simulated clock.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::lan::wire::{Dm, Post, Profile, Talk, TalkBody};

mod discovery;
mod limits;
mod lists;
mod namesakes;
mod other_makes;
mod ports;
mod talk;

const DISCOVERY_PORT: u16 = 50_999;
const START: Millis = Millis(1_700_000_000_000);

struct TestNode {
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

fn stamp(message_id: &str) -> MessageStamp {
    MessageStamp { timestamp: Some(1), message_id: (!message_id.is_empty()).then(|| message_id.to_owned()) }
}

/// The announcement of a peer; without INSTANCE and features if `instance` is empty.
fn discovery_of(who: &str, port: u16, instance: &str) -> Discovery {
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
    talk(from, Some(to), Dm { content: "hello".into() }, id)
}

fn post(from: &str, id: &str) -> Message {
    talk(from, None, Post { content: "hello".into() }, id)
}

fn talk(from: &str, to: Option<&str>, body: impl Into<TalkBody>, id: &str) -> Message {
    Message::Talk(Talk { from: user(from), to: to.map(user), body: body.into(), stamp: stamp(id) })
}

fn say(text: &str) -> NodeCommand {
    NodeCommand::Say { to: None, body: Post { content: text.to_owned() }.into() }
}

fn tell(to: &str, text: &str) -> NodeCommand {
    NodeCommand::Say { to: Some(to.to_owned()), body: Dm { content: text.to_owned() }.into() }
}

fn config_of(kind: NodeKind) -> NodeConfig {
    NodeConfig {
        name: name("alice"),
        instance: "5000000000000000".into(),
        kind,
        port: 8001,
        discovery_port: DISCOVERY_PORT,
        announce_every: Duration::from_secs(30),
        forget_after: Duration::from_secs(300),
    }
}

fn interface(own: &str, netmask: &str) -> InterfaceAddress {
    InterfaceAddress { ip: ip(own), netmask: ip(netmask), source_ip: Some(ip(own)) }
}

impl TestNode {
    /// A node that has its interfaces but is not started.
    fn not_started(config: NodeConfig) -> TestNode {
        let mut alice = TestNode { node: Node::new(config), now: START, random: 7 };
        let interfaces = vec![interface("127.0.0.1", "255.0.0.0"), interface("10.0.0.1", "255.255.255.0")];
        assert!(alice.event(NodeEvent::InterfacesChanged(interfaces)).is_empty());
        alice
    }

    fn started(kind: NodeKind) -> TestNode {
        let mut alice = TestNode::not_started(config_of(kind));
        alice.event(NodeEvent::Started);
        alice
    }

    /// Started long enough ago to count as old in a name conflict.
    fn new() -> TestNode {
        let mut alice = TestNode::started(NodeKind::Person);
        alice.wait(3_000);
        alice
    }

    fn event(&mut self, event: NodeEvent) -> Vec<NodeEffect> {
        let random = &mut self.random;
        self.node.handle(self.now, event, &mut || {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random.rotate_right(16)
        })
    }

    fn command(&mut self, command: NodeCommand) -> Result<(CommandOutcome, Vec<NodeEffect>), CommandError> {
        let random = &mut self.random;
        self.node.command(self.now, command, &mut || {
            *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *random
        })
    }

    fn receive(&mut self, from: &str, socket: SocketRole, message: Message) -> Vec<NodeEffect> {
        self.event(NodeEvent::Datagram { from: addr(from), socket, message: Ok(message), bytes: 100 })
    }

    fn broadcast(&mut self, from: &str, discovery: Discovery) -> Vec<NodeEffect> {
        self.receive(from, SocketRole::Discovery, Message::Discovery(discovery))
    }

    fn direct(&mut self, from: &str, discovery: Discovery) -> Vec<NodeEffect> {
        self.receive(from, SocketRole::Own, Message::Discovery(discovery))
    }

    /// Makes a peer known, and waits until its answer and the pause after that are over.
    fn add_known_peer(&mut self, who: &str, port: u16, instance: &str) {
        let from = format!("{}:{port}", user(who).ip);
        let effects = self.broadcast(&from, discovery_of(who, port, instance));
        assert!(matches!(&joined_peers(&effects)[..], [known] if *known == who), "{effects:?}");
        self.wait(11_000);
    }

    /// Runs the clock for some time. Returns the effects of ticks with their times.
    fn events(&mut self, ms: u64) -> Vec<(u64, NodeEffect)> {
        let (began, end) = (self.now, self.now.plus_ms(ms));
        let mut effects = Vec::new();
        while let Some(at) = self.node.next_deadline().filter(|at| *at <= end) {
            assert!(at >= self.now || effects.len() < 100_000, "time stands still");
            self.now = self.now.max(at);
            let at_ms = began.until(self.now).as_millis() as u64;
            effects.extend(self.event(NodeEvent::Tick).into_iter().map(|effect| (at_ms, effect)));
        }
        self.now = end;
        effects
    }

    fn wait(&mut self, ms: u64) -> Vec<NodeEffect> {
        self.events(ms).into_iter().map(|(_, effect)| effect).collect()
    }

    fn dropped(&self, cause: DropCause) -> u64 {
        self.node.counters().dropped(cause)
    }

    /// `name@ip ip:port` of each peer.
    fn list(&self) -> Vec<String> {
        self.node.peers().iter().map(|known| format!("{} {}", known.user_id, known.addr)).collect()
    }
}

fn joined_peers(effects: &[NodeEffect]) -> Vec<String> {
    let came = effects.iter().filter_map(|effect| match effect {
        NodeEffect::Notify(Notification::PeerJoined(known)) => Some(known.user_id.to_string()),
        _ => None,
    });
    came.collect()
}

/// Targets of unicast announcements.
fn unicast_announcements(effects: &[NodeEffect]) -> Vec<SocketAddr> {
    let targets = effects.iter().filter_map(|effect| match effect {
        NodeEffect::Send { to, message: Message::Discovery(_) } => Some(*to),
        _ => None,
    });
    targets.collect()
}

fn sends(effects: &[NodeEffect]) -> Vec<(SocketAddr, &Message)> {
    let sends = effects.iter().filter_map(|effect| match effect {
        NodeEffect::Send { to, message } => Some((*to, message)),
        _ => None,
    });
    sends.collect()
}

fn broadcasts(effects: &[NodeEffect]) -> Vec<(Ipv4Addr, &Discovery)> {
    let broadcasts = effects.iter().filter_map(|effect| match effect {
        NodeEffect::Broadcast { interface_ip, message: Message::Discovery(discovery) } => {
            Some((*interface_ip, discovery))
        }
        _ => None,
    });
    broadcasts.collect()
}

fn notifications(effects: &[NodeEffect]) -> Vec<&Notification> {
    let notifications = effects.iter().filter_map(|effect| match effect {
        NodeEffect::Notify(notification) => Some(notification),
        _ => None,
    });
    notifications.collect()
}
