//! Peer lists and static addresses, by which peers are found that broadcast does not reach.

use std::net::{SocketAddr, SocketAddrV4};

use super::{CallContext, CommandError, CommandOutcome, DropCause, Node, NodeKind, SocketRole};
use crate::lan::wire::{DATAGRAM_MAX, Message, PeerList, UserId};

const LIST_REQUESTS_MAX: usize = 32;
const LIST_RESPONSE_TIMEOUT_MS: u64 = 10_000;
const ADDRESSES_TRIED_MAX: usize = 100;
pub(super) const STATIC_PEERS_MAX: usize = 64;
/// Bytes of a datagram that are reserved for everything but the lists.
const FRAME_MAX: usize = 1024;

impl Node {
    pub(super) fn request_peer_lists(&mut self, ctx: &mut CallContext) -> Result<CommandOutcome, CommandError> {
        let users = self.peers.iter().filter(|peer| !peer.is_server());
        let mut to: Vec<SocketAddrV4> = users.map(|peer| peer.current().addr).collect();
        if to.is_empty() {
            return Err(CommandError::NoPeers);
        }
        // All know about the same peers, so a random few suffice.
        for chosen in 0..to.len().min(LIST_REQUESTS_MAX) {
            let other = chosen + ctx.random_below((to.len() - chosen) as u64) as usize;
            to.swap(chosen, other);
        }
        to.truncate(LIST_REQUESTS_MAX);
        self.peer_list_requests = to.iter().map(|addr| (*addr, ctx.now.plus_ms(LIST_RESPONSE_TIMEOUT_MS))).collect();
        let stamp = ctx.stamp();
        for addr in &to {
            let from = self.own_user_id_for(*addr.ip());
            self.send(ctx, *addr, Message::PeerListRequest { from, stamp: stamp.clone() });
        }
        Ok(CommandOutcome::PeerListsRequested { peers: to.len() })
    }

    /// Servers and the asker itself are left out.
    pub(super) fn handle_peer_list_request(
        &mut self,
        ctx: &mut CallContext,
        source: SocketAddrV4,
        socket: SocketRole,
        asker: &UserId,
    ) {
        if self.config.kind == NodeKind::Probe {
            return self.drop_datagram(ctx, source, DropCause::NotAPerson, || "this is no person's peer".to_owned());
        }
        // A broadcast request would be answered by all peers, each with up to a whole datagram.
        let is_allowed = |node: &mut Node| node.peer_list_limiter.take(ctx.now, node.addresses.rate_limit_key(source));
        if socket == SocketRole::Discovery || !is_allowed(self) || !self.peer_list_bucket.take(ctx.now) {
            return self.drop_datagram(ctx, source, DropCause::TooManyLists, || {
                "lists are told to who asks directly, and not too often".to_owned()
            });
        }
        if !self.may_send_to(source) {
            return self
                .drop_datagram(ctx, source, DropCause::Unanswerable, || format!("nothing may be sent to {source}"));
        }
        let is_local = self.addresses.is_own(*source.ip());
        let mut room = DATAGRAM_MAX - FRAME_MAX;
        let mut peers = Vec::new();
        for peer in self.peers.iter().filter(|peer| !peer.is_server()) {
            if peer.addresses().iter().any(|at| at.user_id == *asker || self.is_same_endpoint(at.addr, source)) {
                continue;
            }
            // Loopback addresses are useful on this host only.
            let Some(at) = peer.addresses().iter().find(|at| is_local || !at.addr.ip().is_loopback()) else { continue };
            let quoted = serde_json::to_string(&at.user_id.to_string()).map_or(usize::MAX, |text| text.len());
            let bytes = quoted.saturating_add(at.addr.to_string().len() + r#","",""#.len());
            let Some(left) = room.checked_sub(bytes) else { break };
            room = left;
            peers.push((at.user_id.clone(), Some(SocketAddr::V4(at.addr))));
        }
        let from = self.own_user_id_for(*source.ip());
        let stamp = ctx.stamp();
        self.send(ctx, source, Message::PeerListResponse(PeerList { from, peers, stamp }));
    }

    /// Announces us to the addresses that are not known yet.
    pub(super) fn handle_peer_list(&mut self, ctx: &mut CallContext, source: SocketAddrV4, list: &PeerList) {
        // Otherwise anybody could make us send to a hundred addresses of their choice.
        if self.peer_list_requests.remove(&source).is_none_or(|until| until <= ctx.now) {
            return self.drop_datagram(ctx, source, DropCause::Unasked, || {
                "PEERS: a list is believed once from who was asked".to_owned()
            });
        }
        let is_local = self.addresses.is_own(*source.ip());
        let mut announced_count = 0;
        for addr in list.peers.iter().filter_map(|(_, addr)| *addr) {
            let SocketAddr::V4(addr) = addr else { continue };
            let shared = addr.port() == self.config.discovery_port;
            let here = self.is_self(addr) || addr.ip().is_loopback() && !is_local;
            if shared || here || !self.may_send_to(addr) || self.peers.find_by_addr(addr).is_some() {
                continue;
            }
            if announced_count == ADDRESSES_TRIED_MAX || !self.announcement_queue.enqueue(ctx.now, addr, None) {
                break;
            }
            announced_count += 1;
        }
    }

    pub(super) fn add_peer(&mut self, ctx: &mut CallContext, addr: SocketAddr) -> Result<CommandOutcome, CommandError> {
        let bad = |problem: &str| Err(CommandError::InvalidArgument(format!("--peer {addr}: {problem}")));
        let SocketAddr::V4(to) = addr else { return bad("expected an IPv4 address") };
        if self.is_self(to) {
            return bad("that is this peer itself");
        }
        if to.port() == self.config.discovery_port && self.addresses.is_own(*to.ip()) {
            return bad("that is this host's discovery port; name the peer's own port");
        }
        if !self.may_send_to(to) {
            return bad("expected the address of one host, and a port from 1 to 65535");
        }
        if !self.static_peers.contains(&to) {
            if self.static_peers.len() >= STATIC_PEERS_MAX {
                return bad(&format!("at most {STATIC_PEERS_MAX} addresses may be named"));
            }
            self.static_peers.push(to);
        }
        if self.is_started {
            self.announce_to(ctx, to, false);
        }
        Ok(CommandOutcome::PeerAdded { addr })
    }
}
