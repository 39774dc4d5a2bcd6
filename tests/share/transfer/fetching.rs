//! Fetches from one host: our own peers, and peers written from the specification that only support GET.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use p2s2::internals::share::pieces::blake3_digest;
use p2s2::internals::share::transfer::{Fetch, FetchAction, FetchSpec, FetchStatus, StartFetchError};
use p2s2::internals::share::wire::HostEntry;

use super::proxy::Proxy;
use super::world::{
    MIB, NAME, PeerHost, Registry, bytes, completed, context, entry, fetch, get_only, interrupted, names, pieces_of,
    spec, wait_until,
};
use crate::support::{PATIENCE, eventually};

/// A peer on bare sockets that answers one request line per connection with the given function, then closes.
pub struct BarePeer {
    pub addr: SocketAddr,
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl BarePeer {
    pub fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> BarePeer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, its_requests) = (Arc::new(answer), Arc::clone(&requests));
        // It ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (answer, requests) = (Arc::clone(&answer), Arc::clone(&its_requests));
                thread::spawn(move || {
                    let mut line = String::new();
                    // A connection without a request is not answered.
                    if BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).is_ok() && !line.is_empty() {
                        requests.lock().unwrap().push(line.trim_end().to_owned());
                        answer(line.trim_end(), &mut stream);
                    }
                });
            }
        });
        BarePeer { addr, requests }
    }

    /// A peer that only supports GET.
    pub fn with(content: Vec<u8>) -> BarePeer {
        BarePeer::start(move |line, stream| {
            let _ = if line == format!("GET {NAME}") {
                writeln!(stream, "LENGTH {}", content.len()).and_then(|()| stream.write_all(&content))
            } else {
                stream.write_all(b"ERROR notfound\n")
            };
        })
    }
}

#[test]
fn a_file_comes_whole_verified_and_under_its_name() {
    for size in [0, 1, 10_000, 300_000, MIB, 5 * MIB + 123] {
        let dir = tempfile::tempdir().unwrap();
        let content = bytes(size, 3);
        fs::write(dir.path().join("source"), &content).unwrap();
        let (host, entry) = PeerHost::with_file("ann", &dir.path().join("source"));
        let to = tempfile::tempdir().unwrap();
        let reported = Arc::new(Mutex::new(Vec::new()));
        let its_reported = Arc::clone(&reported);
        let fetch = Fetch::start(
            spec("f1", &to.path().join("here"), &entry),
            Registry::of(&[&entry]),
            Arc::new(move |progress| its_reported.lock().unwrap().push(progress.clone())),
            context(),
        )
        .unwrap();
        let progress = fetch.wait();
        assert_eq!((progress.status, progress.verified), (FetchStatus::Completed, true), "{progress:?}");
        assert!(fs::read(to.path().join("here")).unwrap() == content, "{size}");
        assert_eq!(names(to.path()), ["here"]);
        assert!(progress.received_bytes >= size && progress.received_bytes <= size + 1000, "{progress:?}");
        assert_eq!(host.counter("gets"), 0);
        assert!(fetch.stop(PATIENCE));
        let reported = reported.lock().unwrap();
        assert_eq!(reported.last(), Some(&progress));
        assert!(reported.iter().filter(|reported| reported.status == FetchStatus::Completed).count() == 1);
    }
}

#[test]
fn progress_is_json_as_the_page_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source"), bytes(3 * MIB, 3)).unwrap();
    let (host, direct) = PeerHost::with_file("ann", &dir.path().join("source"));
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(2 * MIB);
    let entry = entry("ann", proxy.addr(), &dir.path().join("source"), Some(&pieces_of(&dir.path().join("source"))));
    assert_eq!(entry.file, direct.file);
    let fetch = fetch(&dir.path().join("here"), &entry, &Registry::of(&[&entry]));
    let going = wait_until(&fetch, "half of it", |progress| progress.downloaded_size > MIB + MIB / 2);
    assert_eq!((going.status, going.total_size), (FetchStatus::Downloading, 3 * MIB));
    assert!((1.0 * MIB as f64..4.0 * MIB as f64).contains(&going.speed_bps), "{going:?}");
    assert!(going.eta_seconds.is_some_and(|s| s <= 3), "{going:?}");
    assert!((50.0..100.0).contains(&going.progress_percent), "{going:?}");
    assert_eq!(going.sources, ["ann"]);
    let json = serde_json::to_value(&going).unwrap();
    for field in ["downloaded_size", "total_size", "progress_percent", "speed_bps", "eta_seconds"] {
        assert!(json[field].is_number(), "{json}");
    }
    assert_eq!((&json["status"], &json["verified"]), (&"downloading".into(), &false.into()));
    completed(&fetch);
}

#[test]
fn peers_that_know_only_get_are_fetched_from() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(3 * MIB + 5, 3);
    fs::write(&source, &content).unwrap();
    let full = entry("ann", "127.0.0.1:1".parse().unwrap(), &source, Some(&pieces_of(&source)));
    for (is_known, name) in [(true, "verified"), (false, "unverified")] {
        let peer = BarePeer::with(content.clone());
        let mut shown = get_only(&full, is_known);
        shown.port = peer.addr.port();
        let fetch = fetch(&dir.path().join(name), &shown, &Registry::of(&[&shown]));
        assert_eq!(completed(&fetch).verified, is_known);
        assert!(fs::read(dir.path().join(name)).unwrap() == content);
        assert_eq!(*peer.requests.lock().unwrap(), [format!("GET {NAME}")]);
    }
}

#[test]
fn a_get_only_peer_that_is_cut_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(2 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let times = AtomicUsize::new(0);
    let sent = content.clone();
    let peer = BarePeer::start(move |_line, stream| {
        let wait_until = if times.fetch_add(1, SeqCst) < 2 { sent.len() / 2 } else { sent.len() };
        let _ = writeln!(stream, "LENGTH {}", sent.len()).and_then(|()| stream.write_all(&sent[..wait_until]));
    });
    let mut shown = get_only(&entry("ann", peer.addr, &source, Some(&pieces_of(&source))), true);
    shown.port = peer.addr.port();
    let fetch = fetch(&dir.path().join("here"), &shown, &Registry::of(&[&shown]));
    let progress = completed(&fetch);
    assert!(progress.verified && progress.received_bytes == 4 * MIB, "{progress:?}");
    assert!(fs::read(dir.path().join("here")).unwrap() == content);
}

#[test]
fn peers_that_do_not_do_as_they_should_are_named_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(2 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let pieces = pieces_of(&source);
    let full = entry("mal", "127.0.0.1:1".parse().unwrap(), &source, Some(&pieces));
    let (good, good_entry) = PeerHost::with_file("ann", &source);
    let meta = {
        let list: Vec<String> = pieces.digests().iter().map(|digest| format!("\"{digest}\"")).collect();
        format!(
            "{{\"size\":{},\"modified\":1,\"blake3\":\"{}\",\"piece_size\":1048576,\"pieces\":[{}]}}\n",
            content.len(),
            pieces.blake3(),
            list.join(",")
        )
    };
    type Answer = Box<dyn Fn(&str, &mut TcpStream) + Send + Sync>;
    let say = |text: &str| -> Answer {
        let text = text.to_owned();
        Box::new(move |_, stream| {
            let _ = stream.write_all(text.as_bytes());
        })
    };
    let meta_and = |text: String| -> Answer {
        let meta = meta.clone();
        Box::new(move |_, stream| {
            // The same response to all further requests.
            let _ = stream.write_all(meta.as_bytes());
            for _ in 0..4 {
                let _ = stream.write_all(text.as_bytes());
            }
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        })
    };
    let endless: Answer = Box::new(|_, stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
    let wrong = "x".repeat(MIB as usize);
    let cases: Vec<(&str, Answer)> = vec![
        ("an endless list", endless),
        (
            "a list of another file",
            say(&meta.replace(&pieces.digests()[0].to_string(), &blake3_digest(b"x").to_string())),
        ),
        ("a list of another whole", say(&meta.replace(&pieces.blake3().to_string(), &blake3_digest(b"x").to_string()))),
        ("another size", say(&meta.replace("2097152", "2097153"))),
        ("no list", say("hello there\n")),
        ("no such file", say("ERROR notfound\n")),
        ("another length", meta_and("LENGTH 5\nabcde".to_owned())),
        ("a length of no number", meta_and("LENGTH -1\n".to_owned())),
        ("silence", Box::new(|_, stream| drop(stream.read_to_end(&mut Vec::new())))),
        ("wrong pieces", meta_and(format!("LENGTH {MIB}\n{wrong}"))),
    ];
    for (i, (what, answer)) in cases.into_iter().enumerate() {
        let peer = BarePeer::start(answer);
        let mut shown = full.clone();
        shown.port = peer.addr.port();
        let registry = Registry::of(&[&shown]);
        let to = dir.path().join(format!("here {i}"));
        let fetch = fetch(&to, &shown, &registry);
        let progress = wait_until(&fetch, what, |progress| progress.error.is_some());
        assert!(progress.error.as_ref().unwrap().contains("mal "), "{what}: {progress:?}");
        if what == "a list of another whole" {
            assert!(progress.error.as_ref().unwrap().contains("belongs to another BLAKE3"), "{progress:?}");
        }
        assert!(matches!(progress.status, FetchStatus::Paused | FetchStatus::Failed), "{what}: {progress:?}");
        assert!(progress.received_bytes < 12 * MIB, "{what}: {progress:?}");
        // Another host has the content.
        registry.set(&[&shown, &good_entry]);
        if progress.status == FetchStatus::Failed {
            fetch.act(FetchAction::Resume);
        }
        assert!(completed(&fetch).verified);
        assert!(fs::read(&to).unwrap() == content, "{what}");
    }
    drop(good);
}

#[test]
fn a_whole_file_that_is_not_what_its_digest_says_never_appears() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, bytes(MIB, 3)).unwrap();
    let peer = BarePeer::with(bytes(MIB, 4));
    let mut shown = get_only(&entry("mal", peer.addr, &source, Some(&pieces_of(&source))), true);
    shown.port = peer.addr.port();
    let fetch = fetch(&dir.path().join("here"), &shown, &Registry::of(&[&shown]));
    let progress = wait_until(&fetch, "the error", |progress| progress.status == FetchStatus::Failed);
    assert!(progress.error.unwrap().contains("mal sent the wrong thing: its content is not what its BLAKE3 says"));
    assert!(!dir.path().join("here").exists());
    fetch.act(FetchAction::Cancel);
    assert_eq!(wait_until(&fetch, "the end", |progress| progress.status.is_final()).status, FetchStatus::Cancelled);
    assert_eq!(names(dir.path()), ["source"]);
}

#[test]
fn a_file_of_one_buffer_is_checked_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for size in [1, 10_000, 256 * 1024] {
        fs::write(&source, bytes(size, 3)).unwrap();
        let pieces = pieces_of(&source);
        let meta = format!(
            "{{\"size\":{size},\"modified\":1,\"blake3\":\"{}\",\"piece_size\":1048576,\"pieces\":[\"{}\"]}}\n",
            pieces.blake3(),
            pieces.digests()[0]
        );
        let peer = BarePeer::start(move |line, stream| {
            if line.starts_with("META") {
                let _ = stream.write_all(meta.as_bytes());
            }
            let _ = writeln!(stream, "LENGTH {size}").and_then(|()| stream.write_all(&bytes(size, 4)));
            // Keep the connection open until the other end closes it.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let full = entry("mal", peer.addr, &source, Some(&pieces));
        for shown in [get_only(&full, true), full] {
            let fetch = fetch(&dir.path().join("here"), &shown, &Registry::of(&[&shown]));
            let progress = wait_until(&fetch, "the error", |progress| progress.status == FetchStatus::Failed);
            assert!(progress.error.as_ref().unwrap().contains("mal sent"), "{progress:?}");
            assert!(!dir.path().join("here").exists());
            fetch.act(FetchAction::Cancel);
            wait_until(&fetch, "the end", |progress| progress.status.is_final());
        }
    }
}

#[test]
fn pause_resume_and_cancel() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(8 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let (host, mut shown) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(20 * MIB);
    shown.port = proxy.addr().port();
    let to = tempfile::tempdir().unwrap();
    let registry = Registry::of(&[&shown]);
    let paused = FetchSpec { is_paused: true, ..spec("f1", &to.path().join("here"), &shown) };
    let fetch = Fetch::start(paused, Arc::clone(&registry) as _, Arc::new(|_| {}), context()).unwrap();
    assert_eq!((fetch.progress().status, proxy.passed()), (FetchStatus::Paused, 0));
    fetch.act(FetchAction::Resume);
    wait_until(&fetch, "something", |progress| progress.downloaded_size > 2 * MIB);
    fetch.act(FetchAction::Pause);
    let progress = wait_until(&fetch, "the pause", |progress| {
        progress.status == FetchStatus::Paused && progress.sources.is_empty()
    });
    assert_eq!((progress.error, progress.speed_bps), (None, 0.0));
    let had = proxy.passed();
    assert!(!to.path().join("here").exists());
    // The paused fetch can be found on disk, and continues where it was.
    assert_eq!(interrupted(to.path()), Some(spec("f1", &to.path().join("here"), &shown)));
    fetch.act(FetchAction::Resume);
    completed(&fetch);
    assert!(fs::read(to.path().join("here")).unwrap() == content);
    assert!(proxy.passed() < 10 * MIB && had < proxy.passed(), "{} of them before", had);

    let again = fetch_as("f2", &to.path().join("there"), &shown, &registry);
    wait_until(&again, "something", |progress| progress.downloaded_size > MIB);
    again.act(FetchAction::Cancel);
    let progress = wait_until(&again, "its end", |progress| progress.status.is_final());
    assert_eq!((progress.status, names(to.path())), (FetchStatus::Cancelled, vec!["here".to_owned()]));
    assert_eq!(again.wait().status, FetchStatus::Cancelled);
}

fn fetch_as(
    id: &str,
    to: &std::path::Path,
    shown: &p2s2::internals::share::wire::HostEntry,
    registry: &Arc<Registry>,
) -> Fetch {
    Fetch::start(spec(id, to, shown), Arc::clone(registry) as _, Arc::new(|_| {}), context()).unwrap()
}

#[test]
fn an_existing_file_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, bytes(4 * MIB, 3)).unwrap();
    let (host, mut shown) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(8 * MIB);
    shown.port = proxy.addr().port();
    let registry = Registry::of(&[&shown]);
    let to = dir.path().join("here");
    fs::write(&to, "mine").unwrap();
    let refused = Fetch::start(spec("f1", &to, &shown), Arc::clone(&registry) as _, Arc::new(|_| {}), context());
    assert!(matches!(refused, Err(StartFetchError::Exists(_))));
    fs::remove_file(&to).unwrap();
    let fetch = fetch(&to, &shown, &registry);
    wait_until(&fetch, "something", |progress| progress.downloaded_size > MIB);
    fs::write(&to, "mine").unwrap();
    let progress = fetch.wait();
    assert_eq!(progress.status, FetchStatus::Failed);
    assert!(progress.error.unwrap().contains("exists already"));
    assert_eq!(fs::read(&to).unwrap(), b"mine");
    fs::rename(&to, dir.path().join("mine")).unwrap();
    let passed = proxy.passed();
    fetch.act(FetchAction::Resume);
    completed(&fetch);
    assert_eq!(proxy.passed(), passed, "all of it was here");
}

#[test]
fn a_host_that_is_offline_is_named_and_the_fetch_goes_on_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(6 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let (host, shown) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(12 * MIB);
    let mut behind = shown.clone();
    behind.port = proxy.addr().port();
    let registry = Registry::of(&[&behind]);
    let fetch = fetch(&dir.path().join("here"), &behind, &registry);
    wait_until(&fetch, "something", |progress| progress.downloaded_size > 2 * MIB);
    proxy.set_target(None);
    proxy.cut();
    let progress = wait_until(&fetch, "the error", |progress| progress.error.is_some());
    let error = progress.error.clone().unwrap();
    assert!(
        // Either nobody listens there any more, or the listener has just closed.
        (error.starts_with("ann is not to be reached at 127.0.0.1:") || error.starts_with("ann went offline"))
            && error.contains("goes on when it is back"),
        "{error}"
    );
    assert_eq!(progress.status, FetchStatus::Paused);
    // The host is back, at another address.
    registry.set(&[&shown]);
    completed(&fetch);
    assert!(fs::read(dir.path().join("here")).unwrap() == content);

    // In turn: no host has it, the registry cannot tell, a host has other content.
    let nowhere = Registry::of(&[]);
    let waiting = fetch_as("f2", &dir.path().join("there"), &shown, &nowhere);
    let says = |what: &str| {
        wait_until(&waiting, what, |progress| progress.error.as_ref().is_some_and(|error| error.contains(what)));
    };
    says("ann is offline; the fetch goes on when it is back");
    *nowhere.0.lock().unwrap() = Err("it is away".to_owned());
    says("the registry cannot be asked who has the file: it is away");
    let mut changed = (*shown.file).clone();
    changed.size += 1;
    let changed = p2s2::internals::share::wire::HostEntry { file: Arc::new(changed), ..shown.clone() };
    nowhere.set(&[&changed]);
    let started_at = std::time::Instant::now();
    says("ann no longer offers this content, and under this name ann now another");
    assert_eq!(waiting.progress().status, FetchStatus::Failed, "nobody waits for what is gone");
    assert!(started_at.elapsed() < std::time::Duration::from_secs(5));
    // It does not continue by itself, but can be resumed once the content is back.
    nowhere.set(&[&shown]);
    waiting.act(FetchAction::Resume);
    completed(&waiting);
}

#[test]
fn a_host_that_reads_its_file_anew_may_still_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, bytes(2 * MIB, 7)).unwrap();
    let (_host, shown) = PeerHost::with_file("ann", &source);
    let mut unread = (*shown.file).clone();
    (unread.blake3, unread.pieces_root, unread.features) = (None, None, Arc::new([]));
    let unread = p2s2::internals::share::wire::HostEntry { file: Arc::new(unread), ..shown.clone() };
    let registry = Registry::of(&[&unread]);
    let fetch = fetch(&dir.path().join("here"), &shown, &registry);
    let waits = wait_until(&fetch, "the reason", |progress| progress.error.is_some());
    assert!(waits.status == FetchStatus::Paused && waits.error.unwrap().contains("reads it anew"));
    registry.set(&[&shown]);
    completed(&fetch);
}

#[test]
fn what_is_wanted_of_one_owner_and_has_no_digest_comes_from_that_one() {
    let dir = tempfile::tempdir().unwrap();
    let (anns, mallorys) = (dir.path().join("anns"), dir.path().join("mallorys"));
    fs::write(&anns, bytes(4096, 1)).unwrap();
    fs::write(&mallorys, bytes(4096, 2)).unwrap();
    let (_ann, ann) = PeerHost::with_file("ann", &anns);
    let (_mallory, mut mallory) = PeerHost::with_file("mallory", &mallorys);
    let ann = get_only(&ann, false);
    mallory.file = Arc::new(p2s2::internals::share::wire::FileEntry {
        modified: ann.file.modified,
        ..(*get_only(&mallory, false).file).clone()
    });
    for round in 0..4 {
        let to = dir.path().join(format!("here-{round}"));
        // Mallory comes first in the list.
        let registry = Registry::of(&[&mallory, &ann]);
        let spec = p2s2::internals::share::transfer::FetchSpec { is_owner_named: true, ..spec("f1", &to, &ann) };
        let fetch = Fetch::start(spec, registry, Arc::new(|_| {}), context()).unwrap();
        completed(&fetch);
        assert!(fs::read(&to).unwrap() == fs::read(&anns).unwrap());
    }
}

#[test]
fn a_file_that_changes_at_its_only_host_is_said_to_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, bytes(16 * MIB, 3)).unwrap();
    let (host, mut shown) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(10 * MIB);
    shown.port = proxy.addr().port();
    let fetch = fetch(&dir.path().join("here"), &shown, &Registry::of(&[&shown]));
    wait_until(&fetch, "something", |progress| progress.downloaded_size > 2 * MIB);
    fs::write(&source, bytes(16 * MIB, 4)).unwrap();
    let changed = |error: &String| error.contains("ann says that its file has been moved, deleted or changed");
    wait_until(&fetch, "the error", |progress| progress.error.as_ref().is_some_and(changed));
    drop(fetch);
}

#[test]
fn a_fetch_whose_file_was_in_its_place_when_the_process_died_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for (size, is_in_pieces) in [(0, true), (5, true), (5, false), (3 * MIB, false)] {
        fs::write(&source, bytes(size, 3)).unwrap();
        let (host, in_pieces) = PeerHost::with_file("ann", &source);
        let shown = if is_in_pieces { in_pieces } else { get_only(&in_pieces, true) };
        let to = tempfile::tempdir_in(dir.path()).unwrap();
        let begin = |spec: FetchSpec| Fetch::start(spec, Registry::of(&[&shown]), Arc::new(|_| {}), context()).unwrap();
        let here = to.path().join("here");
        // Keep the journal as it is just before it is removed.
        let (journal, aside) = (to.path().join(".p2s2-f1.journal"), to.path().join("aside"));
        let fetch = eventually("a journal to keep", || {
            let fetch = begin(FetchSpec { is_paused: true, ..spec("f1", &here, &shown) });
            if fs::hard_link(&journal, &aside).is_ok() {
                return Some(fetch);
            }
            // An empty file lacks nothing that a pause could hold back: it was completed before we came.
            assert_eq!(size, 0);
            assert!(fetch.stop(PATIENCE));
            fs::remove_file(&here).unwrap();
            None
        });
        fetch.act(FetchAction::Resume);
        completed(&fetch);
        assert!(fetch.stop(PATIENCE));
        fs::rename(&aside, &journal).unwrap();
        let requests = host.counter("gets") + host.counter("ranges");

        let again = begin(interrupted(to.path()).unwrap());
        assert!(completed(&again).verified, "{size} {is_in_pieces}");
        assert!(fs::read(&here).unwrap() == bytes(size, 3));
        assert_eq!(names(to.path()), ["here"]);
        assert_eq!(host.counter("gets") + host.counter("ranges"), requests);
    }
}

#[test]
fn a_host_that_is_busy_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(2 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let full = entry("ann", "127.0.0.1:1".parse().unwrap(), &source, Some(&pieces_of(&source)));
    for (to, shown) in [("whole", get_only(&full, true)), ("in pieces", full.clone())] {
        let (is_busy, served) = (Arc::new(AtomicBool::new(true)), content.clone());
        let its_busy = Arc::clone(&is_busy);
        let peer = BarePeer::start(move |_line, stream| {
            let _ = if its_busy.load(SeqCst) {
                stream.write_all(b"BUSY\n")
            } else {
                writeln!(stream, "LENGTH {}", served.len()).and_then(|()| stream.write_all(&served))
            };
        });
        let shown = HostEntry { port: peer.addr.port(), ..shown };
        let fetch = fetch(&dir.path().join(to), &shown, &Registry::of(&[&shown]));
        // More often than a host may send something invalid.
        let waits = wait_until(&fetch, "it to be asked again and again", |progress| {
            assert_ne!(progress.status, FetchStatus::Failed, "{progress:?}");
            progress.error.is_some() && peer.requests.lock().unwrap().len() > 5
        });
        assert!(waits.error.unwrap().starts_with("ann says that it is busy; the fetch goes on when"));
        if to == "whole" {
            is_busy.store(false, SeqCst);
            completed(&fetch);
            assert!(fs::read(dir.path().join(to)).unwrap() == content);
        }
    }
}
