//! A fetch's connections to the hosts that send: the plan's effects on them, and what they report.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use log::info;

use super::sources::LookupState;
use super::{FetchEvent, FetchWorker};
use crate::share::transfer::ContentIdentity;
use crate::share::transfer::plan::{FetchEffect, FetchPlan, HostId, SourceFault};
use crate::share::transfer::saver::SaveCommand;
use crate::share::transfer::source_connection::{SourceCommand, SourceConnection, SourceEvent, SourceHandle};

/// A file without a piece list is synced each time that this much has arrived.
const FLUSH_BYTES: u64 = 64 << 20;

/// A connection that is being established, is open, or is closing.
pub(super) struct ActiveSource {
    handle: Arc<SourceHandle>,
    /// None once the connection is to close.
    commands: Option<Sender<SourceCommand>>,
    /// The handle's counts when they were last taken over.
    useful_bytes: u64,
    received_bytes: u64,
}

impl FetchWorker {
    pub(super) fn apply_effect(&mut self, effect: FetchEffect) {
        match effect {
            FetchEffect::Connect(host) => self.connect(host),
            FetchEffect::Disconnect(host) => {
                if let Some(source) = self.connections.get_mut(&host) {
                    source.commands = None;
                    source.handle.cut();
                }
            }
            FetchEffect::RequestList(host) => {
                if let ContentIdentity { size, pieces_root: Some(root), .. } = self.spec.content {
                    self.send_command(host, SourceCommand::List { size, root });
                }
            }
            FetchEffect::RequestPieces { host, pieces, token } => {
                if let Some(piece_list) = self.piece_list.clone() {
                    self.send_command(host, SourceCommand::Pieces { pieces, token, piece_list });
                }
            }
            FetchEffect::RequestWhole { host, token } => {
                let (piece_list, verified_pieces) = (self.piece_list.clone(), self.verified_pieces.clone());
                self.send_command(host, SourceCommand::Whole { token, piece_list, verified_pieces });
            }
        }
    }

    fn send_command(&self, host: HostId, command: SourceCommand) {
        let commands = self.connections.get(&host).and_then(|source| source.commands.as_ref());
        // If the connection has just ended, its event is on the way.
        let _ = commands.map(|commands| commands.send(command));
    }

    fn connect(&mut self, host: HostId) {
        let Some(part) = self.part.clone() else { return };
        let (commands, its_commands) = unbounded();
        let handle = Arc::new(SourceHandle::default());
        let inbox = self.inbox.clone();
        let source = SourceConnection {
            addr: self.hosts[host].addr,
            fname: self.spec.fname.clone(),
            layout: self.layout,
            blake3: self.spec.content.blake3,
            part,
            timing: self.timing,
            handle: Arc::clone(&handle),
            executor: Arc::clone(&self.executor),
            commands: its_commands,
            on_event: Arc::new(move |event| {
                // Fails only after the fetch's thread has ended.
                let _ = inbox.send(FetchEvent::Source(host, event));
            }),
        };
        self.connections
            .insert(host, ActiveSource { handle, commands: Some(commands), useful_bytes: 0, received_bytes: 0 });
        if self.executor.execute(move || source.run()).is_err() {
            let why = "could not be asked: no thread is left".to_owned();
            self.handle_source_event(host, SourceEvent::Disconnected { fault: SourceFault::Lost, why });
        }
    }

    pub(super) fn handle_source_event(&mut self, host: HostId, event: SourceEvent) {
        let now = self.now();
        if let Some(source) = self.connections.get_mut(&host) {
            // The plan must count the bytes before the piece that they belong to.
            record_received(&mut self.plan, host, source, &mut self.received_bytes, now);
        }
        match event {
            SourceEvent::Connected => self.plan.connected(host, now),
            SourceEvent::List(piece_list) => {
                if self.piece_list.is_none() {
                    self.piece_list = Some(Arc::clone(&piece_list));
                    self.save(SaveCommand::List(piece_list));
                }
                self.plan.list_received();
            }
            SourceEvent::Piece { piece, is_valid } => {
                self.plan.piece_received(host, piece, is_valid);
                if is_valid {
                    self.verified_pieces[piece] = true;
                    self.hosts[host].last_error = None;
                    self.save(SaveCommand::Pieces(vec![piece]));
                } else {
                    self.hosts[host].last_error = Some(format!("sent a piece ({piece}) that is not what it should be"));
                    info!("{}: {} sent piece {piece} wrong", self.spec.fname, self.hosts[host].name);
                }
            }
            SourceEvent::Whole => self.plan.whole_received(host),
            SourceEvent::DiskFailed(error) => self.fail(format!("{}: {error}", self.spec.save_path.display())),
            SourceEvent::Disconnected { fault, why } => {
                self.connections.remove(&host);
                if self.plan.disconnected(host, fault, now) {
                    // The host may offer other content by now: look it up soon.
                    if let LookupState::Due(at) = self.lookup {
                        self.lookup = LookupState::Due(at.min(now + self.timing.lookup_retry_min));
                    }
                    info!("{}: {} {why}", self.spec.fname, self.hosts[host].name);
                    self.hosts[host].last_error = Some(why);
                }
            }
        }
    }

    /// Passes the bytes received since the last call on to the plan and the speed meter.
    pub(super) fn measure_speed(&mut self) {
        let now = self.now();
        for (host, source) in &mut self.connections {
            record_received(&mut self.plan, *host, source, &mut self.received_bytes, now);
        }
        if self.plan.is_paused() || !self.plan.has_open_connection() {
            return;
        }
        self.speed.record(now, self.received_bytes);
        if self.piece_list.is_none() && self.received_bytes - self.flushed_bytes >= FLUSH_BYTES {
            self.flushed_bytes = self.received_bytes;
            self.save(SaveCommand::Flush);
        }
    }
}

fn record_received(
    plan: &mut FetchPlan,
    host: HostId,
    source: &mut ActiveSource,
    total_bytes: &mut u64,
    now: Duration,
) {
    let (useful_bytes, received_bytes) =
        (source.handle.useful_bytes.load(SeqCst), source.handle.received_bytes.load(SeqCst));
    plan.bytes_received(host, useful_bytes - source.useful_bytes, now);
    *total_bytes += received_bytes - source.received_bytes;
    (source.useful_bytes, source.received_bytes) = (useful_bytes, received_bytes);
}
