use parking_lot::Mutex;
use serde_json::from_value;

use serde_json::json;

use super::cache::PAGE_FILES_MAX;
use super::*;
use crate::share::client::RegistryClient;
use crate::share::node::NodeError;

/// Name, size and modification time of a file.
type ListedFile<'a> = (&'a str, u64, f64);

/// A page with these hosts and their files.
fn listing(hosts: &[(&str, &[ListedFile<'_>])]) -> ListResponse {
    let registry = hosts
        .iter()
        .map(|(host, files)| {
            let files: serde_json::Map<String, Value> = files
                .iter()
                .map(|(name, size, modified)| {
                    ((*name).to_owned(), json!({"size": size, "modified": modified, "is_published": true}))
                })
                .collect();
            let listed = json!({"addr": ["127.0.0.1", 6001], "files": files});
            (Name::new(host).unwrap(), from_value(listed).unwrap())
        })
        .collect();
    ListResponse { total: hosts.len() as u64, registry }
}

fn names(files: &[&NetworkFile]) -> Vec<String> {
    files.iter().map(|file| format!("{}@{}", file.name, file.owner.hostname)).collect()
}

#[test]
fn files_are_found_by_a_part_of_their_name_and_paged() {
    let snapshot = NetworkSnapshot::new([
        listing(&[("bob", &[("Report.pdf", 5, 1.0), ("song.ogg", 6, 1.0)])]),
        listing(&[("ann", &[("report.txt", 5, 1.0)]), ("bob", &[("Report.pdf", 5, 1.0)])]),
    ]);
    assert_eq!(snapshot.hosts.len(), 2);
    let (total, found) = snapshot.search(&TextFilter::new(""), 0, 10);
    assert_eq!(
        (total, names(&found)),
        (3, vec!["Report.pdf@bob".into(), "report.txt@ann".into(), "song.ogg@bob".into()])
    );
    let (total, found) = snapshot.search(&TextFilter::new("REPORT"), 1, 1);
    assert_eq!((total, names(&found)), (2, vec!["report.txt@ann".to_owned()]));
    assert_eq!(snapshot.search(&TextFilter::new("nothing"), 0, 10), (0, vec![]));
    assert_eq!(snapshot.search(&TextFilter::new(""), 9, 10), (3, vec![]));
}

/// A change of a file, with its size if it exists, or of a host.
fn changed(host: &str, fname: Option<&str>, size: Option<u64>, is_there: bool) -> ChangeEntry {
    let mut line = json!({"hostname": host, "display_name": host.to_uppercase(), "addr": ["192.0.2.9", 6009]});
    if let Some(fname) = fname {
        line["fname"] = json!(fname);
    }
    if !is_there {
        line["entry"] = Value::Null;
    } else if let Some(size) = size {
        line["entry"] = json!({"size": size, "modified": 1, "blake3": Digest([1; 32])});
    }
    from_value(line).unwrap()
}

#[test]
fn what_has_changed_is_taken_in_in_order_and_twice_is_once() {
    let mut snapshot = NetworkSnapshot::new([listing(&[
        ("ann", &[("a", 1, 1.0), ("b", 2, 1.0)]),
        ("bob", &[("c", 3, 1.0)]),
        ("cy", &[("d", 4, 1.0)]),
    ])]);
    let changes = [
        changed("bob", None, None, false),
        changed("dee", None, None, true),
        changed("dee", Some("z"), Some(9), true),
        changed("ann", Some("a"), Some(9), true),
        changed("ann", Some("b"), None, false),
        changed("ann", Some("x"), Some(9), true),
        changed("ann", Some("x"), None, false),
        changed("cy", Some("e"), Some(5), true),
        changed("cy", None, None, false),
        changed("cy", None, None, true),
        changed("cy", Some("f"), Some(6), true),
        changed("nobody", Some("gone"), None, false),
    ];
    let shown = |snapshot: &NetworkSnapshot| -> (Vec<String>, Vec<String>) {
        let file = |it: &NetworkFile| format!("{}@{} {} {}", it.name, it.owner.hostname, it.entry.size, it.copies);
        let host = |it: &Arc<NetworkHost>| format!("{} {} {}", it.display_name, it.port, it.file_count);
        (snapshot.files.iter().map(file).collect(), snapshot.hosts.iter().map(host).collect())
    };
    for _ in 0..2 {
        snapshot.apply(&changes);
        let (files, hosts) = shown(&snapshot);
        assert_eq!(files, ["a@ann 9 2", "f@cy 6 1", "z@dee 9 2"]);
        assert_eq!(hosts, ["ANN 6009 1", "CY 6009 1", "DEE 6009 1", "NOBODY 6009 0"]);
    }
    snapshot.apply(&[changed("ann", None, None, false), changed("dee", Some("z"), Some(8), true)]);
    let (files, hosts) = shown(&snapshot);
    assert_eq!((files, hosts.len()), (vec!["f@cy 6 1".to_owned(), "z@dee 8 1".to_owned()], 3));
    assert_eq!(snapshot.search(&TextFilter::new("Z"), 0, 9).0, 1, "what came is found");
}

#[test]
fn what_is_followed_is_read_once_and_what_is_heard_meanwhile_is_in_it() {
    let (client, answered) = registry(1, 3);
    let network = NetworkCache::default();
    network.begin_following();
    let read = |network: &NetworkCache| network.snapshot(Duration::ZERO, &client).unwrap().files.len();
    assert_eq!((read(&network), read(&network), answered.lock().len()), (3, 3, 1), "as long as nothing changes");
    network.apply(&[changed("dee", Some("z"), Some(9), true)]);
    assert_eq!((read(&network), answered.lock().len()), (4, 1));
    // Changes are buffered while the list is being read.
    network.state.lock().buffered_changes = Some(Vec::new());
    network.apply(&[changed("dee", Some("y"), Some(9), true)]);
    assert_eq!(network.state.lock().buffered_changes.as_ref().map(Vec::len), Some(1));
    network.state.lock().buffered_changes = None;
    network.invalidate();
    assert_eq!((read(&network), answered.lock().len()), (3, 2));
    network.stop_following();
    assert_eq!((read(&network), answered.lock().len()), (3, 3), "nobody tells what changes");
}

#[test]
fn hosts_that_have_the_same_content_are_counted_once_each() {
    let files = |list: &[(&str, u64, Option<u8>)]| {
        let files: serde_json::Map<String, Value> = list
            .iter()
            .map(|(name, size, digest)| {
                let digest = digest.map(|byte| Digest([byte; 32]));
                ((*name).to_owned(), json!({"size": size, "modified": 1, "blake3": digest}))
            })
            .collect();
        from_value(json!({"addr": ["192.0.2.1", 6001], "files": files})).unwrap()
    };
    let registry = [
        ("ann", files(&[("a", 5, Some(1)), ("also-a", 5, Some(1)), ("b", 5, None)])),
        ("bob", files(&[("other", 5, Some(1)), ("b", 5, None), ("c", 6, Some(1))])),
        ("cy", files(&[("a", 5, Some(2)), ("z", 5, Some(1))])),
    ];
    let registry = registry.into_iter().map(|(host, listed)| (Name::new(host).unwrap(), listed)).collect();
    let snapshot = NetworkSnapshot::new([ListResponse { total: 3, registry }]);
    let counted: Vec<String> =
        snapshot.files.iter().map(|file| format!("{}@{} {}", file.name, file.owner.hostname, file.copies)).collect();
    assert_eq!(
        counted,
        ["a@ann 3", "a@cy 1", "also-a@ann 3", "b@ann 1", "b@bob 1", "c@bob 1", "other@bob 3", "z@cy 3"]
    );
}

/// A registry with this many hosts of this many files each; records the number of files in each response.
fn registry(hosts: u64, files: usize) -> (RegistryClient, Arc<Mutex<Vec<usize>>>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let answered = Arc::new(Mutex::new(Vec::new()));
    let counts = Arc::clone(&answered);
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let all: Vec<String> =
            (0..files).map(|n| format!(r#""{n}":{{"size":1,"modified":2,"is_published":true}}"#)).collect();
        let all = all.join(",");
        for line in BufReader::new(&stream).lines().map_while(Result::ok) {
            let asked: Value = serde_json::from_str(&line).unwrap();
            let number = |field: &str| asked["data"][field].as_u64().unwrap();
            let shown: Vec<String> = (number("offset")..hosts.min(number("offset") + number("limit")))
                .map(|n| format!(r#""host-{n:04}":{{"addr":["192.0.2.1",6001],"files":{{{all}}}}}"#))
                .collect();
            counts.lock().push(shown.len() * files);
            let shown = shown.join(",");
            writeln!(&stream, r#"{{"status":"OK","total":{hosts},"registry":{{{shown}}}}}"#).unwrap();
        }
    });
    (RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap(), answered)
}

#[test]
fn pages_are_of_as_many_hosts_as_do_not_have_too_many_files() {
    for (hosts, files, most_in_an_answer, most_answers) in
        [(12, 6_000, 2 * PAGE_FILES_MAX, 12), (3, 21_000, 42_000, 2), (600, 3, 1_000, 10), (0, 0, 0, 1)]
    {
        let (client, answered) = registry(hosts, files);
        let snapshot = NetworkCache::default().snapshot(MAX_AGE, &client).unwrap();
        assert_eq!((snapshot.hosts.len(), snapshot.files.len()), (hosts as usize, hosts as usize * files));
        let answered = answered.lock();
        assert!(answered.iter().all(|count| *count <= most_in_an_answer), "{answered:?}");
        assert!(answered.len() <= most_answers, "{answered:?}");
    }
}

#[test]
fn a_registry_that_never_comes_to_an_end_is_not_read_for_ever() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let answer = format!(
            "{{\"status\":\"OK\",\"total\":{},\"registry\":{{\"ann\":{{\"addr\":[\"127.0.0.1\",6001],\"files\":{{}}}}}}}}\n",
            u64::MAX
        );
        for line in BufReader::new(&stream).lines() {
            if line.is_err() || (&stream).write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let client = RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap();
    let read = NetworkCache::default().snapshot(MAX_AGE, &client);
    assert!(matches!(read, Err(NodeError::Busy(_))), "{read:?}");
    drop(client);
    served.join().unwrap();
}

#[test]
fn whoever_asks_while_it_is_read_gets_what_another_reads() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines();
        lines
            .take_while(Result::is_ok)
            .inspect(|_| {
                // As long as reading takes with very many files.
                std::thread::sleep(Duration::from_millis(300));
                (&stream).write_all(b"{\"status\":\"OK\",\"total\":0,\"registry\":{}}\n").unwrap();
            })
            .count()
    });
    let client = RegistryClient::connect(at, None, Duration::from_secs(20)).unwrap();
    let network = NetworkCache::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| network.snapshot(Duration::ZERO, &client).unwrap());
        }
    });
    drop(client);
    // The first caller's read, and one that started after all had called.
    let asked = served.join().unwrap();
    assert!(asked <= 3, "{asked}");
}
