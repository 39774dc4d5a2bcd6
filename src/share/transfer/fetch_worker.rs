//! The thread of a fetch: it owns the plan, applies its effects, and handles what all other threads report.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use log::warn;
use parking_lot::{Condvar, Mutex};

use super::SourceFinder;
use super::context::{FetchContext, FetchTiming};
use super::part_file::{FetchSpec, PartFile, PreparedFetch};
use super::plan::{FetchPlan, HostId, TransferMode};
use super::progress::{FetchProgress, FetchStatus, ProgressCallback};
use super::saver::{SaveCommand, SaveEvent, run_saver};
use super::source_connection::SourceEvent;
use super::speed::SpeedMeter;
use crate::net::backoff::Backoff;
use crate::net::threads::{Executor, ExecutorFull};
use crate::share::pieces::{FileDigests, PieceLayout};
use crate::share::wire::{Digest, HostEntry};

mod connections;
mod reporting;
mod sources;

use connections::ActiveSource;
use sources::{LookupState, SourceHost};

/// Capacity of the fetch's event queue; senders block when it is full.
const EVENTS_MAX: usize = 1024;

pub(super) struct FetchWorker {
    spec: FetchSpec,
    layout: PieceLayout,
    part: Option<Arc<PartFile>>,
    piece_list: Option<Arc<FileDigests>>,
    plan: FetchPlan,
    finder: Arc<dyn SourceFinder>,
    on_progress: ProgressCallback,
    timing: FetchTiming,
    executor: Arc<Executor>,
    started_at: Instant,
    inbox: Sender<FetchEvent>,
    events: Receiver<FetchEvent>,
    save_commands: Sender<SaveCommand>,
    hosts: Vec<SourceHost>,
    connections: HashMap<HostId, ActiveSource>,
    /// Pieces that a host which sends the whole file need not deliver.
    verified_pieces: Vec<bool>,
    status: FetchStatus,
    error: Option<String>,
    registry_error: Option<String>,
    /// Names of hosts that have different content under this file name.
    hosts_with_other_content: Vec<String>,
    lookup: LookupState,
    lookup_backoff: Backoff,
    /// The saver's last command has been sent.
    is_finishing: bool,
    is_saver_stopped: bool,
    ending: Option<FetchEnding>,
    received_bytes: u64,
    flushed_bytes: u64,
    speed: SpeedMeter,
    last_reported_at: Duration,
    /// Callers whose actions were handled since progress was last reported.
    waiting_callers: Vec<Sender<()>>,
    shared: Arc<FetchShared>,
}

/// State that the handle shares with the fetch's thread.
pub(super) struct FetchShared {
    pub state: Mutex<FetchState>,
    pub changed: Condvar,
    /// The handle was dropped: the thread is to stop.
    pub must_stop: AtomicBool,
}

pub(super) struct FetchState {
    pub progress: FetchProgress,
    pub is_over: bool,
}

pub(super) enum FetchEvent {
    /// The sender is dropped once progress shows the action's effect.
    Action(FetchAction, Sender<()>),
    Stop,
    SourcesFound(Result<Vec<HostEntry>, String>),
    Source(HostId, SourceEvent),
    Saver(SaveEvent),
}

/// What its user can do with a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchAction {
    /// Disconnects from all hosts; received data stays.
    Pause,
    /// Continues after a pause or a failure.
    Resume,
    /// Ends the fetch and removes its files.
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchEnding {
    Stop,
    Cancel,
}

/// Marks the fetch as ended when dropped, also if its thread panics.
struct FetchEndGuard(Arc<FetchShared>);

impl Drop for FetchEndGuard {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl FetchWorker {
    /// Also starts the thread that syncs what is received and keeps the journal.
    pub(super) fn new(
        spec: FetchSpec,
        prepared: PreparedFetch,
        finder: Arc<dyn SourceFinder>,
        on_progress: ProgressCallback,
        context: FetchContext,
    ) -> Result<FetchWorker, ExecutorFull> {
        let PreparedFetch { journal, is_new: _, part, piece_list, synced_pieces: verified_pieces } = prepared;
        let ((inbox, events), (save_commands, its_commands)) = (bounded(EVENTS_MAX), unbounded());
        let (saved_part, saver_inbox) = (part.clone(), inbox.clone());
        context.executor.execute(move || {
            run_saver(journal, saved_part, &its_commands, &|event| {
                // Fails only after the fetch's thread has ended.
                let _ = saver_inbox.send(FetchEvent::Saver(event));
            });
        })?;
        let mode = if spec.content.pieces_root.is_some() { TransferMode::Pieces } else { TransferMode::Whole };
        let layout = PieceLayout::of(spec.content.size);
        let mut plan = FetchPlan::new(layout, mode, piece_list.is_some(), |piece| verified_pieces[piece]);
        // The file is in its final place already; only the journal is left to remove.
        if part.is_none() {
            plan.already_in_place();
        }
        plan.set_paused(spec.is_paused);
        let status = if spec.is_paused { FetchStatus::Paused } else { FetchStatus::Pending };
        let progress = FetchProgress {
            downloaded_size: plan.downloaded_bytes(),
            total_size: layout.size(),
            status,
            ..FetchProgress::default()
        };
        let state = Mutex::new(FetchState { progress, is_over: false });
        // The journal verified these digests against the root in its header.
        let piece_list = piece_list.and_then(|piece_list| {
            let blake3 = spec.content.blake3.unwrap_or(Digest([0; 32]));
            FileDigests::new(layout, blake3, piece_list).ok().map(Arc::new)
        });
        Ok(FetchWorker {
            layout,
            part,
            piece_list,
            plan,
            finder,
            on_progress,
            timing: context.timing,
            executor: context.executor,
            started_at: Instant::now(),
            inbox,
            events,
            save_commands,
            hosts: Vec::new(),
            connections: HashMap::new(),
            verified_pieces,
            status,
            error: None,
            registry_error: None,
            hosts_with_other_content: Vec::new(),
            lookup: LookupState::Due(Duration::ZERO),
            lookup_backoff: Backoff::new(context.timing.lookup_retry_min, context.timing.lookup_interval_max),
            is_finishing: false,
            is_saver_stopped: false,
            ending: None,
            received_bytes: 0,
            flushed_bytes: 0,
            speed: SpeedMeter::default(),
            last_reported_at: Duration::ZERO,
            waiting_callers: Vec::new(),
            shared: Arc::new(FetchShared { state, changed: Condvar::new(), must_stop: AtomicBool::new(false) }),
            spec,
        })
    }

    /// What a handle reaches the fetch's thread by.
    pub(super) fn handle(&self) -> (Sender<FetchEvent>, Arc<FetchShared>) {
        (self.inbox.clone(), Arc::clone(&self.shared))
    }

    pub(super) fn run(mut self) {
        let _end_guard = FetchEndGuard(Arc::clone(&self.shared));
        loop {
            self.update_status();
            for effect in self.plan.next_effects(self.now()) {
                self.apply_effect(effect);
            }
            self.report_progress();
            // Progress now shows the effect of their actions: let the callers go on.
            self.waiting_callers.clear();
            if self.has_ended() {
                return;
            }
            let is_idle =
                !self.plan.has_connections() && matches!(self.status, FetchStatus::Failed | FetchStatus::Paused);
            let event = match self.events.recv_timeout(if is_idle {
                self.timing.lookup_retry_min
            } else {
                self.timing.tick_interval
            }) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                // Cannot happen: `self.inbox` is a sender.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.measure_speed();
            if self.shared.must_stop.load(SeqCst) {
                self.handle_event(FetchEvent::Stop);
            }
            if let Some(event) = event {
                self.handle_event(event);
            }
            for _ in 0..EVENTS_MAX {
                let Ok(event) = self.events.try_recv() else { break };
                self.handle_event(event);
            }
        }
    }

    fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    fn has_ended(&self) -> bool {
        match self.ending {
            None => self.status.is_final(),
            Some(_) if self.status.is_final() => true,
            Some(FetchEnding::Stop) => self.is_saver_stopped,
            Some(FetchEnding::Cancel) => false,
        }
    }

    fn handle_event(&mut self, event: FetchEvent) {
        match event {
            FetchEvent::Action(action, until_done) => {
                self.waiting_callers.push(until_done);
                self.handle_action(action);
            }
            FetchEvent::Stop => {
                self.plan.set_paused(true);
                self.ending = self.ending.or(Some(FetchEnding::Stop));
            }
            FetchEvent::SourcesFound(found) => self.handle_sources_found(found),
            FetchEvent::Source(host, event) => self.handle_source_event(host, event),
            FetchEvent::Saver(event) => self.handle_save_event(event),
        }
    }

    fn handle_action(&mut self, action: FetchAction) {
        let is_ending = self.ending.is_some() || self.status.is_final() || self.is_finishing;
        match action {
            _ if is_ending => {}
            FetchAction::Pause => {
                self.plan.set_paused(true);
                self.set_status(FetchStatus::Paused, None);
            }
            FetchAction::Resume => self.resume(),
            FetchAction::Cancel => {
                self.plan.set_paused(true);
                self.ending = Some(FetchEnding::Cancel);
            }
        }
    }

    fn resume(&mut self) {
        if matches!(self.status, FetchStatus::Paused | FetchStatus::Failed) {
            self.plan.set_paused(false);
            self.lookup = LookupState::Due(self.now());
            self.lookup_backoff.reset();
            self.set_status(FetchStatus::Pending, None);
        }
    }

    fn fail(&mut self, why: String) {
        self.plan.set_paused(true);
        self.set_status(FetchStatus::Failed, Some(why));
    }

    fn set_status(&mut self, status: FetchStatus, error: Option<String>) {
        if status != FetchStatus::Downloading {
            self.speed = SpeedMeter::default();
        }
        (self.status, self.error) = (status, error);
    }

    /// Updates the status, and starts what is not decided by the plan: finishing, failing, looking up hosts.
    fn update_status(&mut self) {
        let now = self.now();
        if let Some(ending) = self.ending {
            if !self.plan.has_connections() && !self.is_finishing {
                self.is_finishing = true;
                self.save(if ending == FetchEnding::Cancel { SaveCommand::Discard } else { SaveCommand::Stop });
            }
            return;
        }
        if matches!(self.status, FetchStatus::Failed | FetchStatus::Completed) {
            return;
        }
        if self.plan.is_received() {
            let is_complete = self.plan.is_synced()
                || !matches!(self.plan.mode(), TransferMode::Pieces)
                || self.plan.is_whole_received();
            if is_complete && !self.plan.has_connections() && !self.is_finishing {
                self.is_finishing = true;
                self.save(SaveCommand::Finish);
            }
            return;
        }
        if self.plan.is_paused() {
            return;
        }
        if self.plan.is_every_host_banned() && !self.plan.has_connections() {
            let why = self.host_errors();
            self.fail(format!("no host sends what it should: {why}"));
            return;
        }
        let is_first_lookup = matches!(self.lookup, LookupState::Due(at) if at == Duration::ZERO);
        if self.plan.has_no_usable_host()
            && !is_first_lookup
            && !(self.hosts.is_empty() && self.lookup == LookupState::Running)
        {
            let why = self.waiting_reason();
            self.set_status(FetchStatus::Paused, Some(why));
        } else if self.plan.has_open_connection() {
            self.set_status(FetchStatus::Downloading, None);
            self.lookup_backoff.reset();
        } else if self.status == FetchStatus::Paused {
            self.set_status(FetchStatus::Pending, None);
        }
        if matches!(self.lookup, LookupState::Due(at) if at <= now) {
            self.look_up_sources();
        }
    }

    fn handle_save_event(&mut self, event: SaveEvent) {
        match event {
            SaveEvent::Synced(pieces) => self.plan.pieces_synced(&pieces),
            SaveEvent::Finished => self.set_status(FetchStatus::Completed, None),
            SaveEvent::FinishFailed(error) => {
                self.is_finishing = false;
                let path = self.spec.save_path.display();
                self.fail(match error.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        format!("{path} exists already: move it away and resume, the content is here")
                    }
                    _ => format!("{path}: {error}"),
                });
            }
            SaveEvent::Discarded(result) => {
                if let Err(error) = result {
                    warn!("{}: what was fetched stays: {error}", self.spec.save_path.display());
                }
                self.set_status(FetchStatus::Cancelled, None);
            }
            SaveEvent::Stopped => self.is_saver_stopped = true,
            SaveEvent::SyncFailed(pieces, error) => {
                self.plan.sync_failed(&pieces);
                for piece in pieces {
                    self.verified_pieces[piece] = false;
                    if let Some(part) = &self.part {
                        part.reopen_piece(piece);
                    }
                }
                self.fail(format!("{}: {error}", self.spec.save_path.display()));
            }
        }
    }

    fn save(&self, command: SaveCommand) {
        // Fails only after the saver has sent its last event.
        let _ = self.save_commands.send(command);
    }
}
