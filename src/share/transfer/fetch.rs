//! One fetch: a thread that owns the plan and makes its steps real, and the threads that work for it.
//!
//! ```text
//!  lane (a connection each) ──► checker (hashing) ──┐ pieces
//!        │ writes to the part file                  ▼
//!        └───────────── reports ──────────►  the fetch's thread  ──► keeper (sync, journal)
//! ```
//!
//! Nothing is locked while anybody waits: all that comes back comes through one queue.

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

use super::keeper::{self, Kept, Task};
use super::lane::{Lane, Line, Order, Report};
use super::part::{self, Begun, FetchSpec, Part, StartError};
use super::plan::{Fault, HOSTS_MAX, HostId, Plan, Step, Way};
use super::speed::{Speed, eta_s};
use super::{Content, Sources};
use crate::model::text::nfc;
use crate::net::threads::{Executor, Full};
use crate::share::pieces::{Layout, Pieces};
use crate::share::wire::HostEntry;
use crate::storage::files::parent_of;

/// Reports that wait for the fetch's thread; who has more waits.
const WAITING_MAX: usize = 1024;
/// A file without pieces is synced each time that so much has come.
const FLUSH_EVERY: u64 = 64 << 20;
/// How long a user waits for his wish to be heard.
const DONE_WITHIN: Duration = Duration::from_secs(1);
/// Errors of hosts that are told at a time.
const TOLD_HOSTS: usize = 5;

/// How patient a fetch is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// With a host that does not take the connection.
    pub connect: Duration,
    /// With one that sends nothing.
    pub stall: Duration,
    /// Until a line is complete: an answer, a list of pieces.
    pub line: Duration,
    /// How often what changes by itself is looked at.
    pub tick: Duration,
    /// How often progress is told while bytes come.
    pub tell: Duration,
    /// The first pause before the registry is asked again while no host is left; it doubles each time.
    pub ask_again: Duration,
    /// The longest, and how often it is asked while all goes well.
    pub ask_again_max: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(10),
            line: Duration::from_secs(30),
            tick: Duration::from_millis(100),
            tell: Duration::from_millis(200),
            ask_again: Duration::from_secs(1),
            // A fetch whose content is gone is to know within 5 s.
            ask_again_max: Duration::from_secs(4),
        }
    }
}

/// What a fetch stands on.
#[derive(Debug, Clone)]
pub struct Floor {
    /// Gives it its threads: one for itself, one that syncs, two for each of up to four hosts.
    pub executor: Arc<Executor>,
    /// Its patience.
    pub pace: Pace,
}

/// Where a fetch stands. SPEC.md section 6, fetch-progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody sends yet.
    Pending,
    /// It comes.
    Downloading,
    /// It waits: for its user, or, with an error that says so, for a host that is offline.
    Paused,
    /// The file is in its place.
    Completed,
    /// It does not go on by itself; the error says why. It may be resumed.
    Failed,
    /// Nothing is left of it.
    Cancelled,
}

impl Status {
    /// Whether there is nothing more to come.
    pub fn is_over(self) -> bool {
        matches!(self, Status::Completed | Status::Cancelled)
    }
}

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// Bytes here.
    pub downloaded_size: u64,
    /// Bytes in all.
    pub total_size: u64,
    /// Of a hundred.
    pub progress_percent: f64,
    /// Bytes a second, over the last three seconds.
    pub speed_bps: f64,
    /// Seconds to go, where that is known.
    pub eta_seconds: Option<u64>,
    /// Where it stands.
    pub status: Status,
    /// Once completed: whether the content was checked by a digest that the registry knew.
    pub verified: bool,
    /// Why it is paused or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Who is asked at present.
    pub sources: Vec<String>,
    /// Bytes that came over the wire, also those that were for nothing.
    #[serde(skip)]
    pub received: u64,
}

/// A fetch that runs. Dropping it ends its threads soon; what is there stays, and the fetch can be started again.
pub struct Fetch {
    inbox: Sender<Input>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody wants it any more.
    must_stop: AtomicBool,
}

struct State {
    progress: Progress,
    /// The thread has ended.
    is_over: bool,
}

/// What the fetch's thread is told.
enum Input {
    /// And who waits until it is done.
    Do(Do, Sender<()>),
    Stop,
    Found(Result<Vec<HostEntry>, String>),
    Lane(HostId, Report),
    Kept(Kept),
}

/// What a user may want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Do {
    Pause,
    Resume,
    Cancel,
}

/// Is told of progress: when something happened, and several times a second while bytes come. On the fetch's
/// thread: what takes long holds it up.
pub type Told = Arc<dyn Fn(&Progress) + Send + Sync>;

impl Fetch {
    /// Begins, or goes on where an earlier run of the same id ended, however it ended.
    ///
    /// # Errors
    /// Why it cannot: there is a file in the place already, for one.
    pub fn start(spec: FetchSpec, sources: Arc<dyn Sources>, told: Told, floor: Floor) -> Result<Fetch, StartError> {
        let Begun { journal, is_new, part, list, good } = part::begin(&spec)?;
        let (id, at) = (spec.id.clone(), spec.save_path.clone());
        let no_thread = |full: Full| {
            // A fetch that did not begin leaves nothing; what an earlier run has left stays.
            if let Some(folder) = parent_of(&at).filter(|_| is_new)
                && let Err(error) = part::discard_left(folder, &id)
            {
                warn!("{}: what could not be begun stays: {error}", at.display());
            }
            StartError::Full(full)
        };
        let (inbox, inputs) = bounded(WAITING_MAX);
        let (tasks, its_tasks) = unbounded();
        {
            let (inbox, part) = (inbox.clone(), part.clone());
            let keep = move || {
                keeper::keep(journal, part, &its_tasks, &|kept| {
                    // Who no longer listens has ended.
                    let _ = inbox.send(Input::Kept(kept));
                });
            };
            floor.executor.execute(keep).map_err(&no_thread)?;
        }
        let way = if spec.content.pieces_root.is_some() { Way::Pieces } else { Way::Whole };
        let layout = Layout::of(spec.content.size);
        let mut plan = Plan::new(layout, way, list.is_some(), |piece| good[piece]);
        // What was whole and in its place already needs nothing but to be put away.
        if part.is_none() {
            plan.in_place();
        }
        plan.hold(spec.is_paused);
        let progress = Progress {
            downloaded_size: plan.downloaded(),
            total_size: layout.size(),
            progress_percent: 0.0,
            speed_bps: 0.0,
            eta_seconds: None,
            status: if spec.is_paused { Status::Paused } else { Status::Pending },
            verified: false,
            error: None,
            sources: Vec::new(),
            received: 0,
        };
        let state = Mutex::new(State { progress: progress.clone(), is_over: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), must_stop: AtomicBool::new(false) });
        // The digests came out of a journal that begins with their root.
        let list = list.and_then(|list| {
            let blake3 = spec.content.blake3.unwrap_or(super::Digest([0; 32]));
            Pieces::new(layout, blake3, list).ok().map(Arc::new)
        });
        let run = Run {
            layout,
            part,
            list,
            plan,
            sources,
            told,
            pace: floor.pace,
            executor: Arc::clone(&floor.executor),
            begun: Instant::now(),
            inbox: inbox.clone(),
            inputs,
            tasks,
            hosts: Vec::new(),
            lanes: HashMap::new(),
            good,
            status: progress.status,
            error: None,
            registry_error: None,
            others: Vec::new(),
            asking: Asking::Due(Duration::ZERO),
            ask_pause: floor.pace.ask_again,
            is_finishing: false,
            is_rested: false,
            ending: None,
            received: 0,
            flushed: 0,
            speed: Speed::default(),
            last_told: Duration::ZERO,
            heard: Vec::new(),
            shared: Arc::clone(&shared),
            spec,
        };
        floor.executor.execute(move || run.run()).map_err(no_thread)?;
        Ok(Fetch { inbox, shared })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.shared.state.lock().progress.clone()
    }

    /// Lets go of all hosts; what is there stays.
    pub fn pause(&self) {
        self.want(Do::Pause);
    }

    /// Goes on, also after a failure.
    pub fn resume(&self) {
        self.want(Do::Resume);
    }

    /// Ends it and removes what is there.
    pub fn cancel(&self) {
        self.want(Do::Cancel);
    }

    /// Waits until it is completed, failed or cancelled.
    pub fn wait(&self) -> Progress {
        let mut state = self.shared.state.lock();
        while !(state.is_over || matches!(state.progress.status, Status::Failed) || state.progress.status.is_over()) {
            self.shared.changed.wait(&mut state);
        }
        state.progress.clone()
    }

    /// Ends its threads and waits for that, but no longer than `grace`; what is there is on disk then, and the
    /// fetch can be started again. Whether they have ended.
    pub fn stop(&self, grace: Duration) -> bool {
        self.tell(Input::Stop);
        let give_up_at = Instant::now() + grace;
        let mut state = self.shared.state.lock();
        while !state.is_over && Instant::now() < give_up_at {
            self.shared.changed.wait_until(&mut state, give_up_at);
        }
        state.is_over
    }

    /// Progress shows it when this returns, but for a thread that is held up for long.
    fn want(&self, what: Do) {
        let (until_done, done) = bounded(0);
        self.tell(Input::Do(what, until_done));
        // Nothing is sent: it ends.
        let _ = done.recv_timeout(DONE_WITHIN);
    }

    fn tell(&self, input: Input) {
        // One that has ended has nothing left to do.
        let _ = self.inbox.send(input);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // Perhaps on the fetch's own thread, by whoever is told of progress: so nothing may wait here.
        self.shared.must_stop.store(true, SeqCst);
        let _ = self.inbox.try_send(Input::Stop);
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// A host that was shown once.
struct Known {
    name: String,
    at: SocketAddr,
    is_listed: bool,
    last_error: Option<String>,
}

/// A connection that is being made, is there, or ends.
struct Running {
    line: Arc<Line>,
    /// None: it was told to end.
    orders: Option<Sender<Order>>,
    wanted: u64,
    received: u64,
}

/// Whether the registry is being asked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Asking {
    Now,
    Due(Duration),
}

/// Why the thread is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Stop,
    Cancel,
}

/// The fetch's thread.
struct Run {
    spec: FetchSpec,
    layout: Layout,
    part: Option<Arc<Part>>,
    list: Option<Arc<Pieces>>,
    plan: Plan,
    sources: Arc<dyn Sources>,
    told: Told,
    pace: Pace,
    executor: Arc<Executor>,
    begun: Instant,
    inbox: Sender<Input>,
    inputs: Receiver<Input>,
    tasks: Sender<Task>,
    hosts: Vec<Known>,
    lanes: HashMap<HostId, Running>,
    /// Pieces that are right, for whoever sends all of them.
    good: Vec<bool>,
    status: Status,
    error: Option<String>,
    registry_error: Option<String>,
    /// Those who have another content under the name.
    others: Vec<String>,
    asking: Asking,
    ask_pause: Duration,
    is_finishing: bool,
    is_rested: bool,
    ending: Option<Ending>,
    received: u64,
    flushed: u64,
    speed: Speed,
    last_told: Duration,
    /// Those whose wishes were heard since the last time that progress was told.
    heard: Vec<Sender<()>>,
    shared: Arc<Shared>,
}

/// Brings what the registry said, also that there was a panic instead.
struct Answer {
    inbox: Sender<Input>,
    found: Result<Vec<HostEntry>, String>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Who no longer listens has ended.
        let _ = self.inbox.send(Input::Found(std::mem::replace(&mut self.found, Ok(Vec::new()))));
    }
}

/// Says that the thread has ended, also when it panics.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Run {
    fn run(mut self) {
        let _last_word = LastWord(Arc::clone(&self.shared));
        loop {
            self.look();
            for step in self.plan.steps(self.now()) {
                self.take(step);
            }
            self.tell();
            // Whoever told us something may now see what came of it.
            self.heard.clear();
            if self.has_ended() {
                return;
            }
            let is_still = !self.plan.is_at_work() && matches!(self.status, Status::Failed | Status::Paused);
            let input = match self.inputs.recv_timeout(if is_still { self.pace.ask_again } else { self.pace.tick }) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.measure();
            if self.shared.must_stop.load(SeqCst) {
                self.handle(Input::Stop);
            }
            if let Some(input) = input {
                self.handle(input);
            }
            for _ in 0..WAITING_MAX {
                let Ok(input) = self.inputs.try_recv() else { break };
                self.handle(input);
            }
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn has_ended(&self) -> bool {
        match self.ending {
            None => self.status.is_over(),
            Some(_) if self.status.is_over() => true,
            Some(Ending::Stop) => self.is_rested,
            Some(Ending::Cancel) => false,
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Do(what, until_done) => {
                self.heard.push(until_done);
                self.do_now(what);
            }
            Input::Stop => {
                self.plan.hold(true);
                self.ending = self.ending.or(Some(Ending::Stop));
            }
            Input::Found(found) => self.found(found),
            Input::Lane(host, report) => self.reported(host, report),
            Input::Kept(kept) => self.kept(kept),
        }
    }

    fn do_now(&mut self, what: Do) {
        let is_at_its_end = self.ending.is_some() || self.status.is_over() || self.is_finishing;
        match what {
            _ if is_at_its_end => {}
            Do::Pause => {
                self.plan.hold(true);
                self.set_status(Status::Paused, None);
            }
            Do::Resume => self.resume(),
            Do::Cancel => {
                self.plan.hold(true);
                self.ending = Some(Ending::Cancel);
            }
        }
    }

    fn resume(&mut self) {
        if matches!(self.status, Status::Paused | Status::Failed) {
            self.plan.hold(false);
            self.asking = Asking::Due(self.now());
            self.ask_pause = self.pace.ask_again;
            self.set_status(Status::Pending, None);
        }
    }

    fn fail(&mut self, why: String) {
        self.plan.hold(true);
        self.set_status(Status::Failed, Some(why));
    }

    fn set_status(&mut self, status: Status, error: Option<String>) {
        if status != Status::Downloading {
            self.speed.clear();
        }
        (self.status, self.error) = (status, error);
    }

    /// What is to be done beside the plan's steps.
    fn look(&mut self) {
        let now = self.now();
        if let Some(ending) = self.ending {
            if !self.plan.is_at_work() && !self.is_finishing {
                self.is_finishing = true;
                self.keep(if ending == Ending::Cancel { Task::Discard } else { Task::Rest });
            }
            return;
        }
        if matches!(self.status, Status::Failed | Status::Completed) {
            return;
        }
        if self.plan.is_here() {
            let is_safe = self.plan.is_good() || !matches!(self.plan.way(), Way::Pieces) || self.plan.is_whole();
            if is_safe && !self.plan.is_at_work() && !self.is_finishing {
                self.is_finishing = true;
                self.keep(Task::Finish);
            }
            return;
        }
        if self.plan.is_held() {
            return;
        }
        if self.plan.is_hopeless() && !self.plan.is_at_work() {
            let why = self.what_hosts_say();
            self.fail(format!("no host sends what it should: {why}"));
            return;
        }
        let is_first = matches!(self.asking, Asking::Due(at) if at == Duration::ZERO);
        if self.plan.is_stuck() && !is_first && !(self.hosts.is_empty() && self.asking == Asking::Now) {
            let why = self.why_nobody_sends();
            self.set_status(Status::Paused, Some(why));
        } else if self.plan.is_open() {
            self.set_status(Status::Downloading, None);
            self.ask_pause = self.pace.ask_again;
        } else if self.status == Status::Paused {
            self.set_status(Status::Pending, None);
        }
        if matches!(self.asking, Asking::Due(at) if at <= now) {
            self.ask_sources();
        }
    }

    /// Asks who has the file, on another thread: the answer may take its time.
    fn ask_sources(&mut self) {
        let (sources, inbox, fname) = (Arc::clone(&self.sources), self.inbox.clone(), self.spec.fname.clone());
        let asked = self.executor.execute(move || {
            let mut answer = Answer { inbox, found: Err("asking it failed".to_owned()) };
            answer.found = sources.find(&fname);
        });
        self.asking = Asking::Now;
        if asked.is_err() {
            self.found(Err("no thread is left to ask it".to_owned()));
        }
    }

    fn found(&mut self, found: Result<Vec<HostEntry>, String>) {
        let pause = if self.plan.is_stuck() { self.ask_pause } else { self.pace.ask_again_max };
        let entries = match found {
            Ok(entries) => entries,
            Err(why) => {
                self.registry_error = Some(why);
                self.asking = Asking::Due(self.now() + self.ask_pause);
                self.ask_pause = (self.ask_pause * 2).min(self.pace.ask_again_max);
                return;
            }
        };
        self.registry_error = None;
        let content = self.spec.content;
        let is_told_apart = content.blake3.is_some() || content.pieces_root.is_some();
        let is_wanted = |entry: &HostEntry| {
            let is_owner = entry.hostname.key() == nfc(&self.spec.hostname);
            content.is_at(&entry.file) && (is_told_apart || is_owner || !self.spec.is_owner_named)
        };
        let (same, others): (Vec<&HostEntry>, Vec<&HostEntry>) = entries.iter().partition(|entry| is_wanted(entry));
        self.others = others.iter().take(TOLD_HOSTS).map(|entry| entry.hostname.to_string()).collect();
        let is_gone = same.is_empty() && !others.is_empty() && !others.iter().any(|it| content.may_be_at(&it.file));
        if is_gone && self.ending.is_none() && !self.plan.is_held() && !self.plan.is_here() {
            let (host, others) = (&self.spec.hostname, self.others.join(", "));
            self.fail(format!(
                "{host} no longer offers this content, and under this name {others} now another: fetch it anew for that one"
            ));
            return;
        }
        self.hosts.iter_mut().for_each(|host| host.is_listed = false);
        let (mut shown, mut strangers) = (Vec::new(), Vec::new());
        for entry in same {
            match self.hosts.iter().position(|known| known.name == entry.hostname.as_str()) {
                Some(id) => {
                    let (known, at) = (&mut self.hosts[id], SocketAddr::new(entry.ip, entry.port));
                    known.is_listed = true;
                    if known.at != at {
                        known.at = at;
                        self.plan.moved(id);
                    }
                    shown.push((id, content.is_in_pieces_at(&entry.file)));
                }
                None => strangers.push(entry),
            }
        }
        for entry in strangers {
            let (name, at) = (entry.hostname.to_string(), SocketAddr::new(entry.ip, entry.port));
            let known = Known { name, at, is_listed: true, last_error: None };
            let id = if self.hosts.len() < HOSTS_MAX {
                self.hosts.push(known);
                self.hosts.len() - 1
            } else {
                // Of more than can be known those that are gone give way, then those that do not answer.
                let may_go = |id: &HostId| !self.lanes.contains_key(id) && self.plan.may_be_forgotten(*id);
                let gone = (0..HOSTS_MAX).find(|id| !self.hosts[*id].is_listed && may_go(id));
                let silent = || shown.iter().map(|(id, _)| *id).find(|id| may_go(id) && self.plan.is_offline(*id));
                let Some(id) = gone.or_else(silent) else { break };
                shown.retain(|(known, _)| *known != id);
                self.hosts[id] = known;
                self.plan.forget(id);
                id
            };
            shown.push((id, content.is_in_pieces_at(&entry.file)));
        }
        self.plan.offer(&shown);
        // Still nobody: less often each time.
        self.asking = Asking::Due(self.now() + if self.plan.is_stuck() { self.ask_pause } else { pause });
        if self.plan.is_stuck() {
            self.ask_pause = (self.ask_pause * 2).min(self.pace.ask_again_max);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Open(host) => self.open(host),
            Step::Close(host) => {
                if let Some(lane) = self.lanes.get_mut(&host) {
                    lane.orders = None;
                    lane.line.cut();
                }
            }
            Step::AskList(host) => {
                if let Content { size, pieces_root: Some(root), .. } = self.spec.content {
                    self.order(host, Order::List { size, root });
                }
            }
            Step::Ask { host, pieces, turn } => {
                if let Some(list) = self.list.clone() {
                    self.order(host, Order::Pieces { pieces, turn, list });
                }
            }
            Step::AskWhole { host, turn } => {
                let (list, good) = (self.list.clone(), self.good.clone());
                self.order(host, Order::Whole { turn, list, good });
            }
        }
    }

    fn order(&self, host: HostId, order: Order) {
        let orders = self.lanes.get(&host).and_then(|lane| lane.orders.as_ref());
        // One that has just ended says so itself.
        let _ = orders.map(|orders| orders.send(order));
    }

    fn open(&mut self, host: HostId) {
        let Some(part) = self.part.clone() else { return };
        let (orders, its_orders) = unbounded();
        let line = Arc::new(Line::default());
        let inbox = self.inbox.clone();
        let lane = Lane {
            at: self.hosts[host].at,
            fname: self.spec.fname.clone(),
            layout: self.layout,
            blake3: self.spec.content.blake3,
            part,
            pace: self.pace,
            line: Arc::clone(&line),
            executor: Arc::clone(&self.executor),
            orders: its_orders,
            report: Arc::new(move |report| {
                // Who no longer listens has ended.
                let _ = inbox.send(Input::Lane(host, report));
            }),
        };
        self.lanes.insert(host, Running { line, orders: Some(orders), wanted: 0, received: 0 });
        if self.executor.execute(move || lane.run()).is_err() {
            let why = "could not be asked: no thread is left".to_owned();
            self.reported(host, Report::Over { fault: Fault::Lost, why });
        }
    }

    /// Tells the plan what has come since the last time.
    fn measure(&mut self) {
        let now = self.now();
        for (host, lane) in &mut self.lanes {
            measure(&mut self.plan, *host, lane, &mut self.received, now);
        }
        if self.plan.is_held() || !self.plan.is_open() {
            return;
        }
        self.speed.note(now, self.received);
        if self.list.is_none() && self.received - self.flushed >= FLUSH_EVERY {
            self.flushed = self.received;
            self.keep(Task::Flush);
        }
    }

    fn reported(&mut self, host: HostId, report: Report) {
        let now = self.now();
        if let Some(lane) = self.lanes.get_mut(&host) {
            // Before the piece that it belongs to.
            measure(&mut self.plan, host, lane, &mut self.received, now);
        }
        match report {
            Report::Opened => self.plan.opened(host, now),
            Report::List(list) => {
                if self.list.is_none() {
                    self.list = Some(Arc::clone(&list));
                    self.keep(Task::List(list));
                }
                self.plan.listed();
            }
            Report::Piece { piece, is_right } => {
                self.plan.piece(host, piece, is_right);
                if is_right {
                    self.good[piece] = true;
                    self.hosts[host].last_error = None;
                    self.keep(Task::Pieces(vec![piece]));
                } else {
                    self.hosts[host].last_error = Some(format!("sent a piece ({piece}) that is not what it should be"));
                    info!("{}: {} sent piece {piece} wrong", self.spec.fname, self.hosts[host].name);
                }
            }
            Report::Whole => self.plan.whole(host),
            Report::Disk(error) => self.fail(format!("{}: {error}", self.spec.save_path.display())),
            Report::Over { fault, why } => {
                self.lanes.remove(&host);
                if self.plan.over(host, fault, now) {
                    // It may offer something else by now.
                    if let Asking::Due(at) = self.asking {
                        self.asking = Asking::Due(at.min(now + self.pace.ask_again));
                    }
                    info!("{}: {} {why}", self.spec.fname, self.hosts[host].name);
                    self.hosts[host].last_error = Some(why);
                }
            }
        }
    }

    fn kept(&mut self, kept: Kept) {
        match kept {
            Kept::Synced(pieces) => self.plan.synced(&pieces),
            Kept::Finished => self.set_status(Status::Completed, None),
            Kept::NotFinished(error) => {
                self.is_finishing = false;
                let at = self.spec.save_path.display();
                self.fail(match error.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        format!("{at} exists already: move it away and resume, the content is here")
                    }
                    _ => format!("{at}: {error}"),
                });
            }
            Kept::Discarded(result) => {
                if let Err(error) = result {
                    warn!("{}: what was fetched stays: {error}", self.spec.save_path.display());
                }
                self.set_status(Status::Cancelled, None);
            }
            Kept::Rested => self.is_rested = true,
            Kept::Failed(pieces, error) => {
                self.plan.unkept(&pieces);
                for piece in pieces {
                    self.good[piece] = false;
                    if let Some(part) = &self.part {
                        part.undo(piece);
                    }
                }
                self.fail(format!("{}: {error}", self.spec.save_path.display()));
            }
        }
    }

    fn keep(&self, task: Task) {
        // It ends only after its last word.
        let _ = self.tasks.send(task);
    }

    /// Names those who are offline.
    fn why_nobody_sends(&self) -> String {
        if let Some(error) = &self.registry_error {
            return format!("the registry cannot be asked who has the file: {error}; the fetch goes on when it can");
        }
        if self.hosts.is_empty() && !self.others.is_empty() {
            let others = self.others.join(", ");
            return format!("{others} may have this content and reads it anew; the fetch goes on when that is known");
        }
        if self.hosts.is_empty() {
            let host = &self.spec.hostname;
            return format!("{host} is offline; the fetch goes on when it is back");
        }
        let them = if self.hosts.len() == 1 { "it is" } else { "one of them is" };
        format!("{}; the fetch goes on when {them} back", self.what_hosts_say())
    }

    fn what_hosts_say(&self) -> String {
        let say = |host: &Known| match &host.last_error {
            Some(error) => format!("{} {error}", host.name),
            None if host.is_listed => format!("{} does not answer at {}", host.name, host.at),
            None => format!("{} is offline", host.name),
        };
        self.hosts.iter().take(TOLD_HOSTS).map(say).collect::<Vec<_>>().join("; ")
    }

    fn tell(&mut self) {
        let now = self.now();
        let is_due = now.saturating_sub(self.last_told) >= self.pace.tell;
        let has_happened = {
            let told = &self.shared.state.lock().progress;
            told.status != self.status || told.error != self.error
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
        self.last_told = now;
        (self.told)(&progress);
    }

    fn progress(&self, now: Duration) -> Progress {
        let (downloaded, total) = (self.plan.downloaded(), self.layout.size());
        let speed_bps =
            if self.status == Status::Downloading { self.speed.bytes_per_s(now, self.received) } else { 0.0 };
        let is_completed = self.status == Status::Completed;
        let eta_seconds = eta_s(total - downloaded, speed_bps);
        Progress {
            downloaded_size: downloaded,
            total_size: total,
            progress_percent: if total == 0 { 100.0 } else { downloaded as f64 / total as f64 * 100.0 },
            speed_bps,
            eta_seconds: if is_completed {
                Some(0)
            } else {
                eta_seconds.filter(|_| self.status == Status::Downloading)
            },
            status: self.status,
            verified: is_completed && (self.spec.content.blake3.is_some() || self.spec.content.pieces_root.is_some()),
            error: self.error.clone(),
            sources: self.lanes.keys().map(|host| self.hosts[*host].name.clone()).collect(),
            received: self.received,
        }
    }
}

fn measure(plan: &mut Plan, host: HostId, lane: &mut Running, received: &mut u64, now: Duration) {
    let (wanted, in_all) = (lane.line.wanted.load(SeqCst), lane.line.received.load(SeqCst));
    plan.heard(host, wanted - lane.wanted, now);
    *received += in_all - lane.received;
    (lane.wanted, lane.received) = (wanted, in_all);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::wire::{FileName, Seconds};

    struct Nobody;

    impl Sources for Nobody {
        fn find(&self, _fname: &FileName) -> Result<Vec<HostEntry>, String> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_fetch_without_threads_is_refused_as_such_and_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let content = Content { size: 5, modified: Seconds::new(7.0).unwrap(), blake3: None, pieces_root: None };
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
            let floor = Floor { executor: Executor::new("few", threads), pace: Pace::default() };
            Fetch::start(spec.clone(), Arc::new(Nobody), Arc::new(|_: &Progress| {}), floor)
        };
        for threads in [0, 1] {
            let refused = start(threads).err().unwrap();
            assert!(matches!(refused, StartError::Full(_)), "{refused}");
            assert_eq!(names(), 0, "{threads}");
        }
        // What has come in an earlier run is not lost by it.
        assert!(start(2).unwrap().stop(Duration::from_secs(10)));
        assert_eq!(names(), 2);
        for threads in [0, 1] {
            assert!(start(threads).is_err());
            assert_eq!(names(), 2, "{threads}");
        }
    }
}
