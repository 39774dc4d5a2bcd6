//! What these tests share: files, hosts that offer them, somebody who knows who has what, and fetches.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use p2s2::model::Name;
use p2s2::net::budget::{Budget, RECEIVED_MAX};
use p2s2::net::listener::{ConnectionLimiter, ListenerContext, listen};
use p2s2::net::threads::Executor;
use p2s2::share::pieces::Pieces;
use p2s2::share::transfer::{
    Content, Fetch, FetchSpec, Floor, Limits, NotServed, Offer, Pace, PeerServer, Progress, Published, Sources, Status,
};
use p2s2::share::wire::{FileEntry, FileName, HostEntry, Seconds};

pub const MIB: u64 = 1 << 20;
pub const NAME: &str = "a file.bin";

/// Bytes without any pattern, the same for the same seed.
pub fn bytes(size: u64, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while (bytes.len() as u64) < size {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}

/// Writes a file of which no two pieces are the same, and which takes next to no room: each MiB begins with a
/// block of its own, and the rest are holes.
pub fn write_large(path: &Path, size: u64) {
    let mut file = File::create(path).unwrap();
    for at in (0..size).step_by(MIB as usize) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes((size - at).min(4096), size + at)).unwrap();
    }
    file.set_len(size).unwrap();
}

pub fn pieces_of(path: &Path) -> Pieces {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    Pieces::of(&mut file, size, &|| true).unwrap().unwrap()
}

/// What one host publishes.
#[derive(Default)]
pub struct Shelf(Mutex<HashMap<Vec<u8>, Published1>>);

#[derive(Clone)]
struct Published1 {
    path: PathBuf,
    size: u64,
    modified: SystemTime,
    pieces: Option<Arc<Pieces>>,
}

impl Shelf {
    pub fn publish(&self, name: &str, path: &Path, has_pieces: bool) -> Option<Arc<Pieces>> {
        let found = fs::metadata(path).unwrap();
        let pieces = has_pieces.then(|| Arc::new(pieces_of(path)));
        let (size, modified) = (found.len(), found.modified().unwrap());
        let published = Published1 { path: path.to_owned(), size, modified, pieces: pieces.clone() };
        self.0.lock().unwrap().insert(name.as_bytes().to_vec(), published);
        pieces
    }

    pub fn unpublish(&self, name: &str) {
        self.0.lock().unwrap().remove(name.as_bytes());
    }
}

impl Published for Shelf {
    fn open(&self, name: &[u8]) -> Result<Offer, NotServed> {
        let published = self.0.lock().unwrap().get(name).cloned().ok_or(NotServed::NotFound)?;
        let file = File::open(&published.path).map_err(|_| NotServed::Moved)?;
        Ok(Offer { file, size: published.size, modified: published.modified, pieces: published.pieces })
    }
}

/// A host with its peer server.
pub struct Host {
    pub shelf: Arc<Shelf>,
    pub server: PeerServer,
    pub limiter: Arc<ConnectionLimiter>,
}

impl Host {
    pub fn start() -> Host {
        Host::start_at("127.0.0.1:0".parse().unwrap(), Limits::default(), 100)
    }

    pub fn start_at(at: SocketAddr, limits: Limits, max_connections: usize) -> Host {
        let limiter = ConnectionLimiter::new(max_connections);
        let context = ListenerContext {
            executor: Executor::new("host", 200),
            limiter: Arc::clone(&limiter),
            budget: Budget::new(RECEIVED_MAX),
            identity: None,
            plain_from_afar: true,
        };
        let shelf = Arc::new(Shelf::default());
        let published: Arc<dyn Published> = Arc::clone(&shelf) as _;
        let listener = listen(at).unwrap();
        let server = PeerServer::start_within(listener, context, published, limits).unwrap();
        Host { shelf, server, limiter }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.server.counters().iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// A host that offers a file, and what the registry shows of it.
    pub fn with_file(name: &str, path: &Path) -> (Host, HostEntry) {
        let host = Host::start();
        let pieces = host.shelf.publish(NAME, path, true);
        let entry = entry(name, host.addr(), path, pieces.as_deref());
        (host, entry)
    }
}

/// What the registry shows of a host that has the file of that path; without pieces: one who knows only GET.
pub fn entry(name: &str, at: SocketAddr, path: &Path, pieces: Option<&Pieces>) -> HostEntry {
    let found = fs::metadata(path).unwrap();
    let modified = found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let file = FileEntry {
        size: found.len(),
        modified: Seconds::new(modified.as_secs_f64()).unwrap(),
        created: None,
        published_at: None,
        is_published: true,
        blake3: pieces.map(Pieces::blake3),
        pieces_root: pieces.map(Pieces::root),
        features: if pieces.is_some() { Arc::new(["range".into()]) } else { Arc::new([]) },
    };
    HostEntry {
        hostname: Name::new(name).unwrap(),
        display_name: name.into(),
        ip: at.ip(),
        port: at.port(),
        file: Arc::new(file),
    }
}

/// The same host as one who knows only GET; the registry may have its digest all the same.
pub fn get_only(entry: &HostEntry, is_digest_known: bool) -> HostEntry {
    let mut file = (*entry.file).clone();
    file.features = Arc::new([]);
    file.pieces_root = None;
    if !is_digest_known {
        file.blake3 = None;
    }
    HostEntry { file: Arc::new(file), ..entry.clone() }
}

/// Who has the file, as a test says.
pub struct Registry(pub Mutex<Result<Vec<HostEntry>, String>>);

impl Registry {
    pub fn of(entries: &[&HostEntry]) -> Arc<Registry> {
        Arc::new(Registry(Mutex::new(Ok(entries.iter().map(|entry| (*entry).clone()).collect()))))
    }

    pub fn set(&self, entries: &[&HostEntry]) {
        *self.0.lock().unwrap() = Ok(entries.iter().map(|entry| (*entry).clone()).collect());
    }
}

impl Sources for Registry {
    fn find(&self, _fname: &FileName) -> Result<Vec<HostEntry>, String> {
        self.0.lock().unwrap().clone()
    }
}

/// Less patient than users are.
pub fn pace() -> Pace {
    Pace {
        stall: Duration::from_secs(2),
        line: Duration::from_secs(2),
        tick: Duration::from_millis(20),
        tell: Duration::from_millis(20),
        ask_again: Duration::from_millis(50),
        ask_again_max: Duration::from_millis(200),
        ..Pace::default()
    }
}

pub fn floor() -> Floor {
    Floor { executor: Executor::new("fetch", 100), pace: pace() }
}

pub fn spec(id: &str, save_path: &Path, chosen: &HostEntry) -> FetchSpec {
    FetchSpec {
        id: id.to_owned(),
        fname: FileName::new(NAME).unwrap(),
        hostname: chosen.hostname.to_string(),
        save_path: save_path.to_owned(),
        content: Content::of(&chosen.file),
        is_owner_named: false,
        is_paused: false,
    }
}

/// Begins a fetch of what `chosen` has.
pub fn fetch(save_path: &Path, chosen: &HostEntry, registry: &Arc<Registry>) -> Fetch {
    let sources: Arc<dyn Sources> = Arc::clone(registry) as _;
    Fetch::start(spec("f1", save_path, chosen), sources, Arc::new(|_| {}), floor()).unwrap()
}

/// Waits until the progress is as it should be.
#[track_caller]
pub fn until(fetch: &Fetch, what: &str, holds: impl Fn(&Progress) -> bool) -> Progress {
    let give_up_at = Instant::now() + crate::support::PATIENCE;
    loop {
        let progress = fetch.progress();
        if holds(&progress) {
            return progress;
        }
        assert!(Instant::now() < give_up_at, "waited in vain for {what}: {progress:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for its end, which must be a good one.
#[track_caller]
pub fn completed(fetch: &Fetch) -> Progress {
    until(fetch, "the end", |progress| progress.status.is_over() || progress.status == Status::Failed);
    let progress = fetch.progress();
    assert_eq!(progress.status, Status::Completed, "{progress:?}");
    assert_eq!((progress.downloaded_size, progress.progress_percent), (progress.total_size, 100.0));
    assert_eq!((progress.eta_seconds, &progress.error), (Some(0), &None));
    progress
}

/// What lies in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Says something to a peer and reads to the end.
pub fn ask(at: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
