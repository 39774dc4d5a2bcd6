//! Whom others know, and addresses that a person names: how peers are found that broadcast cannot reach.

use std::net::{SocketAddr, SocketAddrV4};

use super::{Cause, CommandError, Done, Door, Kind, Node, Step};
use crate::lan::wire::{DATAGRAM_MAX, Message, PeerList, UserId};

/// Most that are asked for their peers at once.
const ASKED_MAX: usize = 32;
/// How long they have to tell.
const ASKED_MS: u64 = 10_000;
/// Most addresses of one list that are tried.
const TRIED_MAX: usize = 100;
/// Most addresses that a person may name.
pub(super) const INVITED_MAX: usize = 64;
/// What is left for everything but the lists.
const FRAME_MAX: usize = 1024;

impl Node {
    /// Asks some of those we know whom they know.
    pub(super) fn ask_peers(&mut self, step: &mut Step) -> Result<Done, CommandError> {
        let people = self.peers.iter().filter(|peer| !peer.is_server());
        let mut to: Vec<SocketAddrV4> = people.map(|peer| peer.current().addr).collect();
        if to.is_empty() {
            return Err(CommandError::Alone);
        }
        // Each knows about the same: of many, any few will do.
        for chosen in 0..to.len().min(ASKED_MAX) {
            let other = chosen + step.below((to.len() - chosen) as u64) as usize;
            to.swap(chosen, other);
        }
        to.truncate(ASKED_MAX);
        self.asked = to.iter().map(|addr| (*addr, step.now.plus_ms(ASKED_MS))).collect();
        let stamp = step.stamp();
        for addr in &to {
            let from = self.user_id_towards(*addr.ip());
            self.send(step, *addr, Message::PeerListRequest { from, stamp: stamp.clone() });
        }
        Ok(Done::Asked { peers: to.len() })
    }

    /// Somebody wants to know whom we know.
    pub(super) fn asked_for_peers(&mut self, step: &mut Step, source: SocketAddrV4, door: Door, asker: &UserId) {
        if self.settings.kind == Kind::Probe {
            return self.drop(step, source, Cause::NotAPerson, || "this is no person's peer".to_owned());
        }
        // All would answer a broadcast, each with up to a whole datagram.
        let has_share = |node: &mut Node| node.lists_told_to.take(step.now, node.addresses.share_of(source));
        if door == Door::Discovery || !has_share(self) || !self.lists_told.take(step.now) {
            return self.drop(step, source, Cause::TooManyLists, || {
                "lists are told to who asks directly, and not too often".to_owned()
            });
        }
        if !self.may_send(source) {
            return self.drop(step, source, Cause::Unanswerable, || format!("nothing may be sent to {source}"));
        }
        let near = self.addresses.is_own(*source.ip());
        let mut room = DATAGRAM_MAX - FRAME_MAX;
        let mut peers = Vec::new();
        for peer in self.peers.iter().filter(|peer| !peer.is_server()) {
            if peer.addresses().iter().any(|at| at.user_id == *asker || self.is_same_place(at.addr, source)) {
                continue;
            }
            // What is on loopback is there for this host only.
            let Some(at) = peer.addresses().iter().find(|at| near || !at.addr.ip().is_loopback()) else { continue };
            let quoted = serde_json::to_string(&at.user_id.to_string()).map_or(usize::MAX, |text| text.len());
            let bytes = quoted.saturating_add(at.addr.to_string().len() + r#","",""#.len());
            let Some(left) = room.checked_sub(bytes) else { break };
            room = left;
            peers.push((at.user_id.clone(), Some(SocketAddr::V4(at.addr))));
        }
        let from = self.user_id_towards(*source.ip());
        let stamp = step.stamp();
        self.send(step, source, Message::PeerListResponse(PeerList { from, peers, stamp }));
    }

    /// Whom another knows: those we do not know are told that we are here.
    pub(super) fn told_of_peers(&mut self, step: &mut Step, source: SocketAddrV4, list: &PeerList) {
        // Else anybody could have us send to a hundred addresses of his choice.
        if self.asked.remove(&source).is_none_or(|until| until <= step.now) {
            return self
                .drop(step, source, Cause::Unasked, || "PEERS: a list is believed once from who was asked".to_owned());
        }
        let near = self.addresses.is_own(*source.ip());
        let mut tried = 0;
        for addr in list.peers.iter().filter_map(|(_, addr)| *addr) {
            let SocketAddr::V4(addr) = addr else { continue };
            let shared = addr.port() == self.settings.discovery_port;
            let here = self.is_self(addr) || addr.ip().is_loopback() && !near;
            if shared || here || !self.may_send(addr) || self.peers.with_addr(addr).is_some() {
                continue;
            }
            if tried == TRIED_MAX || !self.answers.add(step.now, addr, None) {
                break;
            }
            tried += 1;
        }
    }

    /// Announces itself to an address that broadcast cannot reach.
    pub(super) fn add_peer(&mut self, step: &mut Step, addr: SocketAddr) -> Result<Done, CommandError> {
        let bad = |problem: &str| Err(CommandError::Bad(format!("--peer {addr}: {problem}")));
        let SocketAddr::V4(to) = addr else { return bad("expected an IPv4 address") };
        if self.is_self(to) {
            return bad("that is this peer itself");
        }
        if to.port() == self.settings.discovery_port && self.addresses.is_own(*to.ip()) {
            return bad("that is this host's discovery port; name the peer's own port");
        }
        if !self.may_send(to) {
            return bad("expected the address of one host, and a port from 1 to 65535");
        }
        if !self.invited.contains(&to) {
            if self.invited.len() >= INVITED_MAX {
                return bad(&format!("at most {INVITED_MAX} addresses may be named"));
            }
            self.invited.push(to);
        }
        if self.started {
            self.announce_to(step, to, false);
        }
        Ok(Done::Added { addr })
    }
}
