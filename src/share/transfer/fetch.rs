//! One fetch: a thread that owns the plan and applies its effects, and the threads that work for it.
//!
//! ```text
//!  source connection (one per host) ──► verifier (hashing) ──┐ verdicts
//!        │ writes to the part file                           ▼
//!        └───────────────── events ───────────────►  the fetch's thread  ──► saver (sync, journal)
//! ```
//!
//! No lock is held while anybody waits: all results come back through one event queue.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use log::{info, warn};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::part_file::{self, FetchSpec, PartFile, PreparedFetch, StartFetchError};
use super::plan::{FetchEffect, FetchPlan, HOSTS_MAX, HostId, SourceFault, TransferMode};
use super::saver::{self, SaveCommand, SaveEvent};
use super::source_connection::{SourceCommand, SourceConnection, SourceEvent, SourceHandle};
use super::speed::{SpeedMeter, eta_s};
use super::{ContentIdentity, SourceFinder};
use crate::model::text::nfc;
use crate::net::threads::{Executor, ExecutorFull};
use crate::share::pieces::{FileDigests, PieceLayout};
use crate::share::wire::HostEntry;
use crate::storage::files::parent_of;

/// Capacity of the fetch's event queue; senders block when it is full.
const EVENTS_MAX: usize = 1024;
/// A file without a piece list is synced each time that this much has arrived.
const FLUSH_BYTES: u64 = 64 << 20;
/// How long a caller waits for its command to be handled.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(1);
/// Most hosts that are named in one error text.
const NAMED_HOSTS_MAX: usize = 5;

/// Timeouts and intervals of a fetch.
#[derive(Debug, Clone, Copy)]
pub struct FetchTiming {
    /// Bound for establishing a connection.
    pub connect_timeout: Duration,
    /// How long a host may send nothing while data is expected.
    pub stall_timeout: Duration,
    /// Bound for a complete response line; the list of pieces is one, too.
    pub line_timeout: Duration,
    /// How often the fetch acts without any event.
    pub tick_interval: Duration,
    /// How often progress is reported while data arrives.
    pub progress_interval: Duration,
    /// First delay before hosts are looked up again while none is usable; it doubles each time.
    pub lookup_retry_min: Duration,
    /// Upper bound of that delay, and the interval of look-ups while data arrives.
    pub lookup_interval_max: Duration,
}

impl Default for FetchTiming {
    fn default() -> FetchTiming {
        FetchTiming {
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            line_timeout: Duration::from_secs(30),
            tick_interval: Duration::from_millis(100),
            progress_interval: Duration::from_millis(200),
            lookup_retry_min: Duration::from_secs(1),
            // A fetch whose content is gone must find out within 5 s.
            lookup_interval_max: Duration::from_secs(4),
        }
    }
}

/// What a fetch is built from.
#[derive(Debug, Clone)]
pub struct FetchContext {
    /// Provides its threads: one for itself, one that syncs, two for each of up to four hosts.
    pub executor: Arc<Executor>,
    /// Timeouts and intervals.
    pub timing: FetchTiming,
}

/// Status of a fetch, as its progress reports it; see `docs/spec/share.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferStatus {
    /// No host sends yet.
    Pending,
    /// Data arrives.
    Downloading,
    /// It waits for its user or, if there is an error text, for a host to come back.
    Paused,
    /// The file is complete and in its final place.
    Completed,
    /// It does not continue by itself, for the reason given as its error. It can be resumed.
    Failed,
    /// It was cancelled and its files were removed.
    Cancelled,
}

impl TransferStatus {
    /// Whether the status is final: a failed fetch can still be resumed.
    pub fn is_over(self) -> bool {
        matches!(self, TransferStatus::Completed | TransferStatus::Cancelled)
    }
}

/// Progress of a fetch, in the JSON form of the client API.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FetchProgress {
    /// Bytes received, those of incomplete pieces included.
    pub downloaded_size: u64,
    /// Size of the file, bytes.
    pub total_size: u64,
    /// 0 to 100.
    pub progress_percent: f64,
    /// Bytes per second, over the last three seconds.
    pub speed_bps: f64,
    /// Estimated seconds until completion, if known.
    pub eta_seconds: Option<u64>,
    /// Current status.
    pub status: TransferStatus,
    /// Once completed: whether the content was verified against a digest that the registry knew.
    pub verified: bool,
    /// Why it is paused or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Names of the hosts with a connection.
    pub sources: Vec<String>,
    /// Bytes received over the network, wasted ones included.
    #[serde(skip)]
    pub received_bytes: u64,
}

/// Handle of a running fetch. Dropping it ends its threads soon; received data stays, and the fetch can be started
/// again.
pub struct Fetch {
    inbox: Sender<FetchEvent>,
    shared: Arc<FetchShared>,
}

/// State that the handle shares with the fetch's thread.
struct FetchShared {
    state: Mutex<FetchState>,
    changed: Condvar,
    /// The handle was dropped: the thread is to stop.
    must_stop: AtomicBool,
}

struct FetchState {
    progress: FetchProgress,
    /// The thread has ended.
    is_over: bool,
}

/// Input of the fetch's thread.
enum FetchEvent {
    /// The sender is dropped once progress shows the command's effect.
    Command(FetchCommand, Sender<()>),
    Stop,
    SourcesFound(Result<Vec<HostEntry>, String>),
    Source(HostId, SourceEvent),
    Saver(SaveEvent),
}

/// A command of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchCommand {
    Pause,
    Resume,
    Cancel,
}

/// Called with the progress on every change of status and several times a second while data arrives. It runs on the
/// fetch's thread and must not block.
pub type ProgressCallback = Arc<dyn Fn(&FetchProgress) + Send + Sync>;

impl Fetch {
    /// Starts a fetch, or resumes it where an earlier run with the same id ended, however it ended.
    ///
    /// # Errors
    /// [`StartFetchError`], for example if a file exists at the destination.
    pub fn start(
        spec: FetchSpec,
        finder: Arc<dyn SourceFinder>,
        on_progress: ProgressCallback,
        context: FetchContext,
    ) -> Result<Fetch, StartFetchError> {
        let PreparedFetch { journal, is_new, part, piece_list, synced_pieces: verified_pieces } =
            part_file::prepare(&spec)?;
        let (id, path) = (spec.id.clone(), spec.save_path.clone());
        let thread_error = |full: ExecutorFull| {
            // A new fetch that could not start leaves no files; those of an earlier run stay.
            if let Some(folder) = parent_of(&path).filter(|_| is_new)
                && let Err(error) = part_file::discard_leftovers(folder, &id)
            {
                warn!("{}: what could not be begun stays: {error}", path.display());
            }
            StartFetchError::Full(full)
        };
        let (inbox, events) = bounded(EVENTS_MAX);
        let (save_commands, its_save_commands) = unbounded();
        {
            let (inbox, part) = (inbox.clone(), part.clone());
            let run_saver = move || {
                saver::run_saver(journal, part, &its_save_commands, &|event| {
                    // Fails only after the fetch's thread has ended.
                    let _ = inbox.send(FetchEvent::Saver(event));
                });
            };
            context.executor.execute(run_saver).map_err(&thread_error)?;
        }
        let mode = if spec.content.pieces_root.is_some() { TransferMode::Pieces } else { TransferMode::Whole };
        let layout = PieceLayout::of(spec.content.size);
        let mut plan = FetchPlan::new(layout, mode, piece_list.is_some(), |piece| verified_pieces[piece]);
        // The file is in its final place already; only the journal is left to remove.
        if part.is_none() {
            plan.already_in_place();
        }
        plan.set_paused(spec.is_paused);
        let progress = FetchProgress {
            downloaded_size: plan.downloaded_bytes(),
            total_size: layout.size(),
            progress_percent: 0.0,
            speed_bps: 0.0,
            eta_seconds: None,
            status: if spec.is_paused { TransferStatus::Paused } else { TransferStatus::Pending },
            verified: false,
            error: None,
            sources: Vec::new(),
            received_bytes: 0,
        };
        let state = Mutex::new(FetchState { progress: progress.clone(), is_over: false });
        let shared = Arc::new(FetchShared { state, changed: Condvar::new(), must_stop: AtomicBool::new(false) });
        // The journal verified these digests against the root in its header.
        let piece_list = piece_list.and_then(|piece_list| {
            let blake3 = spec.content.blake3.unwrap_or(super::Digest([0; 32]));
            FileDigests::new(layout, blake3, piece_list).ok().map(Arc::new)
        });
        let worker = FetchWorker {
            layout,
            part,
            piece_list,
            plan,
            finder,
            on_progress,
            timing: context.timing,
            executor: Arc::clone(&context.executor),
            started_at: Instant::now(),
            inbox: inbox.clone(),
            events,
            save_commands,
            hosts: Vec::new(),
            connections: HashMap::new(),
            verified_pieces,
            status: progress.status,
            error: None,
            registry_error: None,
            hosts_with_other_content: Vec::new(),
            lookup: LookupState::Due(Duration::ZERO),
            lookup_delay: context.timing.lookup_retry_min,
            is_finishing: false,
            is_saver_stopped: false,
            ending: None,
            received_bytes: 0,
            flushed_bytes: 0,
            speed: SpeedMeter::default(),
            last_reported_at: Duration::ZERO,
            waiting_callers: Vec::new(),
            shared: Arc::clone(&shared),
            spec,
        };
        context.executor.execute(move || worker.run()).map_err(thread_error)?;
        Ok(Fetch { inbox, shared })
    }

    /// The progress reported last.
    pub fn progress(&self) -> FetchProgress {
        self.shared.state.lock().progress.clone()
    }

    /// Disconnects from all hosts; received data stays.
    pub fn pause(&self) {
        self.request(FetchCommand::Pause);
    }

    /// Continues after a pause or a failure.
    pub fn resume(&self) {
        self.request(FetchCommand::Resume);
    }

    /// Ends the fetch and removes its files.
    pub fn cancel(&self) {
        self.request(FetchCommand::Cancel);
    }

    /// Blocks until the fetch is completed, failed or cancelled.
    pub fn wait(&self) -> FetchProgress {
        let mut state = self.shared.state.lock();
        while !(state.is_over
            || matches!(state.progress.status, TransferStatus::Failed)
            || state.progress.status.is_over())
        {
            self.shared.changed.wait(&mut state);
        }
        state.progress.clone()
    }

    /// Ends the fetch's threads and waits for that, at most `grace`. Returns whether they have ended; if so, all
    /// received data is on disk, and the fetch can be started again.
    pub fn stop(&self, grace: Duration) -> bool {
        self.send(FetchEvent::Stop);
        let deadline = Instant::now() + grace;
        let mut state = self.shared.state.lock();
        while !state.is_over && Instant::now() < deadline {
            self.shared.changed.wait_until(&mut state, deadline);
        }
        state.is_over
    }

    /// Returns once progress shows the command's effect, or after [`COMMAND_WAIT_MAX`] if the thread is held up.
    fn request(&self, command: FetchCommand) {
        let (until_done, done) = bounded(0);
        self.send(FetchEvent::Command(command, until_done));
        // Nothing is ever sent: the channel closes.
        let _ = done.recv_timeout(COMMAND_WAIT_MAX);
    }

    fn send(&self, event: FetchEvent) {
        // Fails only after the thread has ended: then there is nothing left to do.
        let _ = self.inbox.send(event);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // The progress callback may drop the handle on the fetch's own thread: so nothing may block here.
        self.shared.must_stop.store(true, SeqCst);
        let _ = self.inbox.try_send(FetchEvent::Stop);
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// A host that the registry has listed at some time.
struct SourceHost {
    name: String,
    addr: SocketAddr,
    is_listed: bool,
    last_error: Option<String>,
}

/// A connection that is being established, is open, or is closing.
struct ActiveSource {
    handle: Arc<SourceHandle>,
    /// None once the connection is to close.
    commands: Option<Sender<SourceCommand>>,
    /// The handle's counts when they were last taken over.
    useful_bytes: u64,
    received_bytes: u64,
}

/// State of looking up hosts: running, or due at a time since the start of the fetch.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LookupState {
    Running,
    Due(Duration),
}

/// Why the thread is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchEnding {
    Stop,
    Cancel,
}

/// State of the fetch's thread.
struct FetchWorker {
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
    status: TransferStatus,
    error: Option<String>,
    registry_error: Option<String>,
    /// Names of hosts that have different content under this file name.
    hosts_with_other_content: Vec<String>,
    lookup: LookupState,
    lookup_delay: Duration,
    /// The saver's last command has been sent.
    is_finishing: bool,
    is_saver_stopped: bool,
    ending: Option<FetchEnding>,
    received_bytes: u64,
    flushed_bytes: u64,
    speed: SpeedMeter,
    last_reported_at: Duration,
    /// Callers whose commands were handled since progress was last reported.
    waiting_callers: Vec<Sender<()>>,
    shared: Arc<FetchShared>,
}

/// Sends the result of a look-up when dropped, so that one arrives even if the look-up panics.
struct LookupResponse {
    inbox: Sender<FetchEvent>,
    found: Result<Vec<HostEntry>, String>,
}

impl Drop for LookupResponse {
    fn drop(&mut self) {
        // Fails only after the fetch's thread has ended.
        let _ = self.inbox.send(FetchEvent::SourcesFound(std::mem::replace(&mut self.found, Ok(Vec::new()))));
    }
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
    fn run(mut self) {
        let _end_guard = FetchEndGuard(Arc::clone(&self.shared));
        loop {
            self.update_status();
            for effect in self.plan.next_effects(self.now()) {
                self.apply_effect(effect);
            }
            self.report_progress();
            // Progress now shows the effect of their commands: let the callers go on.
            self.waiting_callers.clear();
            if self.has_ended() {
                return;
            }
            let is_idle =
                !self.plan.has_connections() && matches!(self.status, TransferStatus::Failed | TransferStatus::Paused);
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
                self.handle(FetchEvent::Stop);
            }
            if let Some(event) = event {
                self.handle(event);
            }
            for _ in 0..EVENTS_MAX {
                let Ok(event) = self.events.try_recv() else { break };
                self.handle(event);
            }
        }
    }

    fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    fn has_ended(&self) -> bool {
        match self.ending {
            None => self.status.is_over(),
            Some(_) if self.status.is_over() => true,
            Some(FetchEnding::Stop) => self.is_saver_stopped,
            Some(FetchEnding::Cancel) => false,
        }
    }

    fn handle(&mut self, event: FetchEvent) {
        match event {
            FetchEvent::Command(command, until_done) => {
                self.waiting_callers.push(until_done);
                self.handle_command(command);
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

    fn handle_command(&mut self, command: FetchCommand) {
        let is_ending = self.ending.is_some() || self.status.is_over() || self.is_finishing;
        match command {
            _ if is_ending => {}
            FetchCommand::Pause => {
                self.plan.set_paused(true);
                self.set_status(TransferStatus::Paused, None);
            }
            FetchCommand::Resume => self.resume(),
            FetchCommand::Cancel => {
                self.plan.set_paused(true);
                self.ending = Some(FetchEnding::Cancel);
            }
        }
    }

    fn resume(&mut self) {
        if matches!(self.status, TransferStatus::Paused | TransferStatus::Failed) {
            self.plan.set_paused(false);
            self.lookup = LookupState::Due(self.now());
            self.lookup_delay = self.timing.lookup_retry_min;
            self.set_status(TransferStatus::Pending, None);
        }
    }

    fn fail(&mut self, why: String) {
        self.plan.set_paused(true);
        self.set_status(TransferStatus::Failed, Some(why));
    }

    fn set_status(&mut self, status: TransferStatus, error: Option<String>) {
        if status != TransferStatus::Downloading {
            self.speed.reset();
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
        if matches!(self.status, TransferStatus::Failed | TransferStatus::Completed) {
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
            self.set_status(TransferStatus::Paused, Some(why));
        } else if self.plan.has_open_connection() {
            self.set_status(TransferStatus::Downloading, None);
            self.lookup_delay = self.timing.lookup_retry_min;
        } else if self.status == TransferStatus::Paused {
            self.set_status(TransferStatus::Pending, None);
        }
        if matches!(self.lookup, LookupState::Due(at) if at <= now) {
            self.look_up_sources();
        }
    }

    /// Looks up who has the file, on another thread because that may take long.
    fn look_up_sources(&mut self) {
        let (finder, inbox, fname) = (Arc::clone(&self.finder), self.inbox.clone(), self.spec.fname.clone());
        let started = self.executor.execute(move || {
            let mut response = LookupResponse { inbox, found: Err("asking it failed".to_owned()) };
            response.found = finder.find_hosts(&fname);
        });
        self.lookup = LookupState::Running;
        if started.is_err() {
            self.handle_sources_found(Err("no thread is left to ask it".to_owned()));
        }
    }

    fn handle_sources_found(&mut self, found: Result<Vec<HostEntry>, String>) {
        let pause = if self.plan.has_no_usable_host() { self.lookup_delay } else { self.timing.lookup_interval_max };
        let entries = match found {
            Ok(entries) => entries,
            Err(why) => {
                self.registry_error = Some(why);
                self.lookup = LookupState::Due(self.now() + self.lookup_delay);
                self.lookup_delay = (self.lookup_delay * 2).min(self.timing.lookup_interval_max);
                return;
            }
        };
        self.registry_error = None;
        let content = self.spec.content;
        let has_digest = content.blake3.is_some() || content.pieces_root.is_some();
        let is_usable = |entry: &HostEntry| {
            let is_owner = entry.hostname.key() == nfc(&self.spec.hostname);
            content.matches(&entry.file) && (has_digest || is_owner || !self.spec.is_owner_named)
        };
        let (same, others): (Vec<&HostEntry>, Vec<&HostEntry>) = entries.iter().partition(|entry| is_usable(entry));
        self.hosts_with_other_content =
            others.iter().take(NAMED_HOSTS_MAX).map(|entry| entry.hostname.to_string()).collect();
        let is_gone = same.is_empty() && !others.is_empty() && !others.iter().any(|it| content.may_match(&it.file));
        if is_gone && self.ending.is_none() && !self.plan.is_paused() && !self.plan.is_received() {
            let (host, names) = (&self.spec.hostname, self.hosts_with_other_content.join(", "));
            self.fail(format!(
                "{host} no longer offers this content, and under this name {names} now another: fetch it anew for that one"
            ));
            return;
        }
        self.hosts.iter_mut().for_each(|host| host.is_listed = false);
        let (mut listed, mut new_entries) = (Vec::new(), Vec::new());
        for entry in same {
            match self.hosts.iter().position(|known| known.name == entry.hostname.as_str()) {
                Some(id) => {
                    let (known, addr) = (&mut self.hosts[id], SocketAddr::new(entry.ip, entry.port));
                    known.is_listed = true;
                    if known.addr != addr {
                        known.addr = addr;
                        self.plan.host_moved(id);
                    }
                    listed.push((id, content.offers_pieces(&entry.file)));
                }
                None => new_entries.push(entry),
            }
        }
        for entry in new_entries {
            let (name, addr) = (entry.hostname.to_string(), SocketAddr::new(entry.ip, entry.port));
            let known = SourceHost { name, addr, is_listed: true, last_error: None };
            let id = if self.hosts.len() < HOSTS_MAX {
                self.hosts.push(known);
                self.hosts.len() - 1
            } else {
                // With too many hosts, replace one that is no longer listed, else one that does not answer.
                let can_replace = |id: &HostId| !self.connections.contains_key(id) && self.plan.can_forget_host(*id);
                let gone = (0..HOSTS_MAX).find(|id| !self.hosts[*id].is_listed && can_replace(id));
                let silent =
                    || listed.iter().map(|(id, _)| *id).find(|id| can_replace(id) && self.plan.is_offline(*id));
                let Some(id) = gone.or_else(silent) else { break };
                listed.retain(|(known, _)| *known != id);
                self.hosts[id] = known;
                self.plan.forget_host(id);
                id
            };
            listed.push((id, content.offers_pieces(&entry.file)));
        }
        self.plan.set_listed_hosts(&listed);
        // Still no usable host: look up less often each time.
        self.lookup =
            LookupState::Due(self.now() + if self.plan.has_no_usable_host() { self.lookup_delay } else { pause });
        if self.plan.has_no_usable_host() {
            self.lookup_delay = (self.lookup_delay * 2).min(self.timing.lookup_interval_max);
        }
    }

    fn apply_effect(&mut self, effect: FetchEffect) {
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

    /// Passes the bytes received since the last call on to the plan and the speed meter.
    fn measure_speed(&mut self) {
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

    fn handle_source_event(&mut self, host: HostId, event: SourceEvent) {
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

    fn handle_save_event(&mut self, event: SaveEvent) {
        match event {
            SaveEvent::Synced(pieces) => self.plan.pieces_synced(&pieces),
            SaveEvent::Finished => self.set_status(TransferStatus::Completed, None),
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
                self.set_status(TransferStatus::Cancelled, None);
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

    /// Explains why no host sends, naming the hosts.
    fn waiting_reason(&self) -> String {
        if let Some(error) = &self.registry_error {
            return format!("the registry cannot be asked who has the file: {error}; the fetch goes on when it can");
        }
        if self.hosts.is_empty() && !self.hosts_with_other_content.is_empty() {
            let names = self.hosts_with_other_content.join(", ");
            return format!("{names} may have this content and reads it anew; the fetch goes on when that is known");
        }
        if self.hosts.is_empty() {
            let host = &self.spec.hostname;
            return format!("{host} is offline; the fetch goes on when it is back");
        }
        let them = if self.hosts.len() == 1 { "it is" } else { "one of them is" };
        format!("{}; the fetch goes on when {them} back", self.host_errors())
    }

    fn host_errors(&self) -> String {
        let say = |host: &SourceHost| match &host.last_error {
            Some(error) => format!("{} {error}", host.name),
            None if host.is_listed => format!("{} does not answer at {}", host.name, host.addr),
            None => format!("{} is offline", host.name),
        };
        self.hosts.iter().take(NAMED_HOSTS_MAX).map(say).collect::<Vec<_>>().join("; ")
    }

    fn report_progress(&mut self) {
        let now = self.now();
        let is_due = now.saturating_sub(self.last_reported_at) >= self.timing.progress_interval;
        let has_happened = {
            let last = &self.shared.state.lock().progress;
            last.status != self.status || last.error != self.error
        };
        if !has_happened && !is_due {
            return;
        }
        let progress = self.progress(now);
        {
            let mut state = self.shared.state.lock();
            if state.progress == progress {
                return;
            }
            state.progress = progress.clone();
        }
        self.shared.changed.notify_all();
        self.last_reported_at = now;
        (self.on_progress)(&progress);
    }

    fn progress(&self, now: Duration) -> FetchProgress {
        let (downloaded, total) = (self.plan.downloaded_bytes(), self.layout.size());
        let speed_bps = if self.status == TransferStatus::Downloading {
            self.speed.bytes_per_s(now, self.received_bytes)
        } else {
            0.0
        };
        let is_completed = self.status == TransferStatus::Completed;
        let eta_seconds = eta_s(total - downloaded, speed_bps);
        FetchProgress {
            downloaded_size: downloaded,
            total_size: total,
            progress_percent: if total == 0 { 100.0 } else { downloaded as f64 / total as f64 * 100.0 },
            speed_bps,
            eta_seconds: if is_completed {
                Some(0)
            } else {
                eta_seconds.filter(|_| self.status == TransferStatus::Downloading)
            },
            status: self.status,
            verified: is_completed && (self.spec.content.blake3.is_some() || self.spec.content.pieces_root.is_some()),
            error: self.error.clone(),
            sources: self.connections.keys().map(|host| self.hosts[*host].name.clone()).collect(),
            received_bytes: self.received_bytes,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::wire::{FileName, Seconds};

    struct Nobody;

    impl SourceFinder for Nobody {
        fn find_hosts(&self, _fname: &FileName) -> Result<Vec<HostEntry>, String> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_fetch_without_threads_is_refused_as_such_and_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let content =
            ContentIdentity { size: 5, modified: Seconds::new(7.0).unwrap(), blake3: None, pieces_root: None };
        let spec = FetchSpec {
            id: "f-1".to_owned(),
            fname: FileName::new("a").unwrap(),
            hostname: "ann".to_owned(),
            save_path: dir.path().join("a"),
            content,
            is_owner_named: false,
            is_paused: true,
        };
        let start = |threads: usize| {
            let context = FetchContext { executor: Executor::new("few", threads), timing: FetchTiming::default() };
            Fetch::start(spec.clone(), Arc::new(Nobody), Arc::new(|_: &FetchProgress| {}), context)
        };
        for threads in [0, 1] {
            let refused = start(threads).err().unwrap();
            assert!(matches!(refused, StartFetchError::Full(_)), "{refused}");
            assert_eq!(names(), 0, "{threads}");
        }
        // Data of an earlier run is not lost by it.
        assert!(start(2).unwrap().stop(Duration::from_secs(10)));
        assert_eq!(names(), 2);
        for threads in [0, 1] {
            assert!(start(threads).is_err());
            assert_eq!(names(), 2, "{threads}");
        }
    }
}
