//! Fixtures of these tests: files, hosts that publish them, a registry, and fetches.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use p2s2::internals::model::Name;
use p2s2::internals::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use p2s2::internals::net::listener::{ConnectionLimiter, ListenerContext, listen};
use p2s2::internals::net::threads::Executor;
use p2s2::internals::share::pieces::FileDigests;
use p2s2::internals::share::transfer::{
    ContentIdentity, Fetch, FetchContext, FetchProgress, FetchSpec, FetchStatus, FetchTiming, FileProvider,
    FileUnavailable, PeerServer, PeerServerLimits, ServedFile, SourceFinder, find_interrupted,
};
use p2s2::internals::share::wire::{FileEntry, FileName, HostEntry, Seconds};

/// The fetch `f1`, if the folder has its journal.
pub fn interrupted(dir: &Path) -> Option<FetchSpec> {
    find_interrupted(dir, "f1").unwrap()
}

pub const MIB: u64 = 1 << 20;
pub const NAME: &str = "a file.bin";

/// Pseudo-random bytes, the same for the same seed.
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

/// Writes a sparse file whose pieces all differ: each MiB begins with a block of its own, and the rest is holes.
pub fn write_large(path: &Path, size: u64) {
    let mut file = File::create(path).unwrap();
    for at in (0..size).step_by(MIB as usize) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes((size - at).min(4096), size + at)).unwrap();
    }
    file.set_len(size).unwrap();
}

pub fn pieces_of(path: &Path) -> FileDigests {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    FileDigests::hash(&mut file, size, &|| true).unwrap().unwrap()
}

/// The files that one host publishes.
#[derive(Default)]
pub struct PublishedTestFiles(Mutex<HashMap<Vec<u8>, PublishedTestFile>>);

#[derive(Clone)]
struct PublishedTestFile {
    path: PathBuf,
    size: u64,
    modified: SystemTime,
    pieces: Option<Arc<FileDigests>>,
}

impl PublishedTestFiles {
    pub fn publish(&self, name: &str, path: &Path, has_pieces: bool) -> Option<Arc<FileDigests>> {
        let found = fs::metadata(path).unwrap();
        let pieces = has_pieces.then(|| Arc::new(pieces_of(path)));
        let (size, modified) = (found.len(), found.modified().unwrap());
        let published = PublishedTestFile { path: path.to_owned(), size, modified, pieces: pieces.clone() };
        self.0.lock().unwrap().insert(name.as_bytes().to_vec(), published);
        pieces
    }

    pub fn unpublish(&self, name: &str) {
        self.0.lock().unwrap().remove(name.as_bytes());
    }
}

impl FileProvider for PublishedTestFiles {
    fn open(&self, name: &[u8]) -> Result<ServedFile, FileUnavailable> {
        let published = self.0.lock().unwrap().get(name).cloned().ok_or(FileUnavailable::NotFound)?;
        let file = File::open(&published.path).map_err(|_| FileUnavailable::Moved)?;
        Ok(ServedFile { file, size: published.size, modified: published.modified, pieces: published.pieces })
    }
}

/// A host with its peer server.
pub struct PeerHost {
    pub files: Arc<PublishedTestFiles>,
    pub server: PeerServer,
    pub limiter: Arc<ConnectionLimiter>,
}

impl PeerHost {
    pub fn start() -> PeerHost {
        PeerHost::start_at("127.0.0.1:0".parse().unwrap(), PeerServerLimits::default(), 100)
    }

    pub fn start_at(at: SocketAddr, limits: PeerServerLimits, max_connections: usize) -> PeerHost {
        let limiter = ConnectionLimiter::new(max_connections);
        let context = ListenerContext {
            executor: Executor::new("host", 200),
            limiter: Arc::clone(&limiter),
            budget: ReceiveBudget::new(RECEIVE_BUDGET_BYTES),
            identity: None,
            allows_remote_plaintext: true,
        };
        let files = Arc::new(PublishedTestFiles::default());
        let provider: Arc<dyn FileProvider> = Arc::clone(&files) as _;
        let listener = listen(at).unwrap();
        let server = PeerServer::start(listener, context, provider, limits).unwrap();
        PeerHost { files, server, limiter }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.server.counters().iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// A host that publishes a file, and the registry's entry of it.
    pub fn with_file(name: &str, path: &Path) -> (PeerHost, HostEntry) {
        let host = PeerHost::start();
        let pieces = host.files.publish(NAME, path, true);
        let entry = entry(name, host.addr(), path, pieces.as_deref());
        (host, entry)
    }
}

/// The registry's entry of a host that has the file of that path; without pieces, of one that only supports GET.
pub fn entry(name: &str, at: SocketAddr, path: &Path, pieces: Option<&FileDigests>) -> HostEntry {
    let found = fs::metadata(path).unwrap();
    let modified = found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let file = FileEntry {
        size: found.len(),
        modified: Seconds::new(modified.as_secs_f64()).unwrap(),
        created: None,
        published_at: None,
        is_published: true,
        blake3: pieces.map(FileDigests::blake3),
        pieces_root: pieces.map(FileDigests::root),
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

/// The same host as one that only supports GET; the registry may know the digest all the same.
pub fn get_only(entry: &HostEntry, is_digest_known: bool) -> HostEntry {
    let mut file = (*entry.file).clone();
    file.features = Arc::new([]);
    file.pieces_root = None;
    if !is_digest_known {
        file.blake3 = None;
    }
    HostEntry { file: Arc::new(file), ..entry.clone() }
}

/// A registry whose answer the test sets.
pub struct Registry(pub Mutex<Result<Vec<HostEntry>, String>>);

impl Registry {
    pub fn of(entries: &[&HostEntry]) -> Arc<Registry> {
        Arc::new(Registry(Mutex::new(Ok(entries.iter().map(|entry| (*entry).clone()).collect()))))
    }

    pub fn set(&self, entries: &[&HostEntry]) {
        *self.0.lock().unwrap() = Ok(entries.iter().map(|entry| (*entry).clone()).collect());
    }
}

impl SourceFinder for Registry {
    fn find_hosts(&self, _fname: &FileName) -> Result<Vec<HostEntry>, String> {
        self.0.lock().unwrap().clone()
    }
}

/// Shorter timeouts and intervals than in use.
pub fn short_timing() -> FetchTiming {
    FetchTiming {
        stall_timeout: Duration::from_secs(2),
        line_timeout: Duration::from_secs(2),
        tick_interval: Duration::from_millis(20),
        progress_interval: Duration::from_millis(20),
        lookup_retry_min: Duration::from_millis(50),
        lookup_interval_max: Duration::from_millis(200),
        ..FetchTiming::default()
    }
}

pub fn context() -> FetchContext {
    FetchContext { executor: Executor::new("fetch", 100), timing: short_timing() }
}

pub fn spec(id: &str, save_path: &Path, chosen: &HostEntry) -> FetchSpec {
    FetchSpec {
        id: id.to_owned(),
        fname: FileName::new(NAME).unwrap(),
        hostname: chosen.hostname.to_string(),
        save_path: save_path.to_owned(),
        content: ContentIdentity::of(&chosen.file),
        is_owner_named: false,
        is_paused: false,
    }
}

/// Starts a fetch of the content that `chosen` has.
pub fn fetch(save_path: &Path, chosen: &HostEntry, registry: &Arc<Registry>) -> Fetch {
    let sources: Arc<dyn SourceFinder> = Arc::clone(registry) as _;
    Fetch::start(spec("f1", save_path, chosen), sources, Arc::new(|_| {}), context()).unwrap()
}

/// Waits until the progress satisfies a condition.
#[track_caller]
pub fn wait_until(fetch: &Fetch, what: &str, holds: impl Fn(&FetchProgress) -> bool) -> FetchProgress {
    let deadline = Instant::now() + crate::support::PATIENCE;
    loop {
        let progress = fetch.progress();
        if holds(&progress) {
            return progress;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}: {progress:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the fetch is completed.
#[track_caller]
pub fn completed(fetch: &Fetch) -> FetchProgress {
    wait_until(fetch, "the end", |progress| progress.status.has_ended());
    let progress = fetch.progress();
    assert_eq!(progress.status, FetchStatus::Completed, "{progress:?}");
    assert_eq!((progress.downloaded_size, progress.progress_percent), (progress.total_size, 100.0));
    assert_eq!((progress.eta_seconds, &progress.error), (Some(0), &None));
    progress
}

/// Names of the files in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Sends a request to a peer and reads until it closes the connection.
pub fn ask(at: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
