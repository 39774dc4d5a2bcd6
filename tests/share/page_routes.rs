//! The routes that the node's web page uses: folders to choose from, uploads, file contents, links, and lists.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, content, http};
use crate::support::{PATIENCE, eventually};

/// A response with its head and body.
struct HttpResponse {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl HttpResponse {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }
}

/// One request; returns everything received until the connection ends.
fn ask(api: SocketAddr, method: &str, path: &str, token: Option<&str>, headers: &[&str], body: &[u8]) -> HttpResponse {
    let mut stream = TcpStream::connect(api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n");
    if let Some(token) = token {
        head += &format!("Authorization: Bearer {token}\r\n");
    }
    if method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // It may be refused before it was sent completely.
    let _ = stream.write_all(body);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let at = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(all[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    HttpResponse { status, head, body: all[at + 4..].to_vec() }
}

fn get(node: &Node, path: &str, headers: &[&str]) -> HttpResponse {
    ask(node.api(), "GET", &format!("/api/client/{path}"), node.token.as_deref(), headers, b"")
}

fn upload(node: &Node, name: &str, body: &[u8]) -> HttpResponse {
    let path = format!("/api/client/upload/{name}");
    ask(node.api(), "POST", &path, node.token.as_deref(), &["Content-Type: application/x-anything"], body)
}

fn repo(node: &Node) -> std::path::PathBuf {
    node.shows("status")["client"]["repo"].as_str().unwrap().into()
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn names(answer: &Value, list: &str, field: &str) -> Vec<String> {
    answer[list].as_array().unwrap().iter().map(|it| it[field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_may_be_chosen_is_shown_and_nothing_else_is_there() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    for file in ["b10", "b9", "sub/deep", ".hidden"] {
        place.file(file, 10);
    }
    fs::write(place.path("outside"), "x").unwrap();
    symlink(place.path("outside"), place.path("shared/out")).unwrap();
    symlink(place.path(""), place.path("shared/up")).unwrap();
    symlink(place.path("shared/sub"), place.path("shared/link")).unwrap();
    let shared = place.text("shared");
    let roots = node.shows("browse");
    assert_eq!(names(&roots, "entries", "path"), [shared.clone(), repo(&node).to_str().unwrap().to_owned()]);
    assert_eq!(
        (&roots["path"], &roots["total"], &roots["entries"][0]["kind"]),
        (&json!(""), &json!(2), &json!("folder"))
    );
    let shown = node.shows(&format!("browse?path={shared}"));
    assert_eq!(names(&shown, "entries", "name"), ["link", "sub", "b9", "b10"]);
    assert_eq!(shown["entries"][0]["path"], place.text("shared/sub"), "what it leads to");
    assert_eq!((&shown["path"], &shown["truncated"]), (&json!(shared), &json!(false)));
    let file = &shown["entries"][2];
    assert_eq!((&file["kind"], &file["size"]), (&json!("file"), &json!(10)));
    let page = node.shows(&format!("browse?path={shared}&offset=1&limit=2"));
    assert_eq!((names(&page, "entries", "name"), &page["total"]), (vec!["sub".to_owned(), "b9".to_owned()], &json!(4)));
    // The same response for what may not be seen and for what does not exist.
    let outside = [place.text(""), place.text("outside"), place.text("shared/up"), place.text("shared/none")];
    let others = ["/", "/etc", "/none", "..", "x", "/a%00b", "~"].map(str::to_owned);
    let said: Vec<Value> = outside
        .iter()
        .chain(&others)
        .chain([&place.text("shared/b9"), &place.text("state-ann"), &format!("{shared}/../shared/.hidden")])
        .map(|path| {
            let (status, answer) = node.get(&format!("browse?path={path}"));
            assert_eq!(status, 404, "{path}: {answer}");
            answer
        })
        .collect();
    assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
    assert_eq!(http(node.api(), "GET", "/api/client/browse", None, None).0, 401);
    // A later user sees only the repo.
    "zoe".clone_into(&mut node.name);
    node.register();
    assert_eq!(names(&node.shows("browse"), "entries", "path"), [repo(&node).to_str().unwrap()]);
    assert_eq!(node.get(&format!("browse?path={shared}")).0, 404);
    fs::write(repo(&node).join("in-repo"), "x").unwrap();
    let shown = node.shows(&format!("browse?path={}", repo(&node).display()));
    assert_eq!(names(&shown, "entries", "name"), ["in-repo"]);
}

#[test]
fn a_file_is_brought_in_whole_and_once() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let node = Node::begun(&place, &server, "ann", &[]);
    let repo = repo(&node);
    let bytes = content("up", 3_000_001);
    let answer = upload(&node, "my%20file.bin", &bytes);
    assert_eq!(answer.status, 200, "{}", answer.head);
    let file = answer.json()["file"].clone();
    assert_eq!(
        (&file["name"], &file["size"], &file["is_published"]),
        (&json!("my file.bin"), &json!(3_000_001), &json!(false))
    );
    assert_eq!(file["path"], json!(repo.join("my file.bin")));
    assert!(fs::read(repo.join("my file.bin")).unwrap() == bytes);
    assert_eq!(names(&node.shows("local-files"), "files", "name"), ["my file.bin"]);
    assert_eq!(server.hosts_of("my file.bin"), [""; 0]);
    // An existing file is not replaced.
    let again = upload(&node, "my%20file.bin", b"other");
    assert_eq!((again.status, &again.json()["success"]), (409, &json!(false)));
    assert!(fs::read(repo.join("my file.bin")).unwrap() == bytes);
    // A name that is used for a file elsewhere.
    node.does("add-file", json!({ "filepath": place.file("elsewhere", 5) }));
    assert_eq!(upload(&node, "elsewhere", b"x").status, 409);
    for bad in [".hidden", "..", ".", "a%2Fb", "a%5Cb", "a%00b", "a%0Ab", &"x".repeat(256)] {
        assert_eq!(upload(&node, bad, b"x").status, 400, "{bad}");
    }
    let part = ["Content-Range: bytes 0-4/10", "Content-Type: text/plain"];
    let path = "/api/client/upload/part";
    assert_eq!(ask(node.api(), "POST", path, node.token.as_deref(), &part, b"12345").status, 400);
    assert_eq!(ask(node.api(), "POST", path, None, &[], b"12345").status, 401);
    assert_eq!(ask(node.api(), "POST", "/api/client/upload/empty", node.token.as_deref(), &[], b"").status, 200);
    assert_eq!(ask(node.api(), "GET", path, node.token.as_deref(), &[], b"").status, 405);
    assert_eq!(names_in(&repo), ["empty", "my file.bin"], "and nothing else");
    // A file that is larger than any may be is refused before it is sent.
    let mut stream = TcpStream::connect(node.api()).unwrap();
    let token = node.token.clone().unwrap();
    let huge = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        node.api(),
        200_u64 << 30
    );
    stream.write_all(huge.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains(" 413 ") || line.contains(" 507 "), "{line}");
    assert_eq!(names_in(&repo), ["empty", "my file.bin"]);
}

#[test]
fn a_folder_of_the_node_that_is_gone_is_named_and_not_the_file_that_was_brought() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let node = Node::begun(&place, &server, "ann", &[]);
    let repo = repo(&node);
    fs::remove_dir_all(&repo).unwrap();
    for is_replaced in [false, true] {
        if is_replaced {
            fs::write(&repo, "no folder").unwrap();
        }
        let refused = upload(&node, "a.txt", b"a");
        let error = refused.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(refused.status, 503, "{error}");
        assert!(error.contains(repo.to_str().unwrap()) && !error.contains("a.txt"), "{error}");
    }
    fs::remove_file(&repo).unwrap();
    fs::create_dir(&repo).unwrap();
    assert_eq!(upload(&node, "a.txt", b"a").status, 200, "once it is back");
}

#[test]
fn of_several_that_bring_one_name_one_wins_and_what_is_cut_off_leaves_nothing() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let node = Node::begun(&place, &server, "ann", &[]);
    let repo = repo(&node);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let node = &node;
        let all: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || upload(node, "one", &content(&n.to_string(), 400_000)).status))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409)), "{statuses:?}");
    let kept = fs::read(repo.join("one")).unwrap();
    assert!((0..8).any(|n| content(&n.to_string(), 400_000) == kept), "whole, and of one of them");
    assert_eq!(names_in(&repo), ["one"]);

    let begin = || {
        let mut stream = TcpStream::connect(node.api()).unwrap();
        let token = node.token.clone().unwrap();
        let head = format!(
            "POST /api/client/upload/cut HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Length: 5000000\r\n\r\n",
            node.api()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&content("cut", 1_000_000)).unwrap();
        stream
    };
    let parts = || names_in(&repo).into_iter().filter(|name| name != "one").count();
    let stream = begin();
    eventually("a part to be there", || (parts() == 1).then_some(()));
    stream.shutdown(Shutdown::Both).unwrap();
    eventually("it to go", || (parts() == 0).then_some(()));
    // Also if the node is killed in the meantime.
    let _stream = begin();
    eventually("a part to be there", || (parts() == 1).then_some(()));
    let node = node.kill()();
    assert_eq!(names_in(&repo), ["one"]);
    assert_eq!(names(&node.shows("local-files"), "files", "name"), ["one"]);
    assert_eq!(upload(&node, "cut", b"whole").status, 200);
}

#[test]
fn what_is_in_a_file_is_had_by_its_owner_in_parts_and_by_an_address() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    let bytes = content("film", 300_000);
    assert_eq!(upload(&node, "film.mp4", &bytes).status, 200);
    assert_eq!(upload(&node, "page.html", b"<script>").status, 200);
    let whole = get(&node, "files/film.mp4/content", &[]);
    assert!(whole.status == 200 && whole.body == bytes, "{}", whole.head);
    assert_eq!((whole.header("content-type"), whole.header("accept-ranges")), (Some("video/mp4"), Some("bytes")));
    assert!(whole.header("content-disposition").unwrap().starts_with("inline; "));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"') && whole.header("last-modified").is_some());
    let part = get(&node, "files/film.mp4/content", &["Range: bytes=10-19"]);
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 10-19/300000")));
    assert_eq!(part.body, bytes[10..20]);
    assert_eq!(get(&node, "files/film.mp4/content", &["Range: bytes=300000-"]).status, 416);
    assert_eq!(get(&node, "files/film.mp4/content", &[&format!("If-None-Match: {etag}")]).status, 304);
    let stale = get(&node, "files/film.mp4/content", &["Range: bytes=10-19", "If-Range: \"other\""]);
    assert_eq!((stale.status, stale.body.len()), (200, bytes.len()));
    let page = get(&node, "files/page.html/content", &[]);
    assert_eq!(page.header("content-type"), Some("application/octet-stream"));
    assert!(page.header("content-disposition").unwrap().starts_with("attachment; "));

    let link = |node: &Node, name: &str| node.post(&format!("files/{name}/link"), json!({}));
    let (status, made) = link(&node, "film.mp4");
    assert_eq!(status, 200, "{made}");
    let url = made["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("content?ticket=") && url.len() > 70, "{url}");
    let url = format!("/api/client/{url}");
    let by = |url: &str, method: &str, headers: &[&str]| ask(node.api(), method, url, None, headers, b"");
    assert!(by(&url, "GET", &[]).body == bytes);
    let part = by(&url, "GET", &["Range: bytes=-5"]);
    assert!(part.status == 206 && part.body == bytes[bytes.len() - 5..]);
    let head = by(&url, "HEAD", &[]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("300000"), 0));
    for wrong in ["", "?ticket=", "?ticket=x", &format!("?ticket={}", "0".repeat(64)), "?token=x"] {
        assert_eq!(by(&format!("/api/client/content{wrong}"), "GET", &[]).status, 404, "{wrong}");
    }
    assert_eq!((link(&node, "none").0, get(&node, "files/none/content", &[]).status), (404, 404));
    assert_eq!(get(&node, "files/..%2Ffilm.mp4/content", &[]).status, 404);
    assert_eq!(ask(node.api(), "GET", "/api/client/files/film.mp4/content", None, &[], b"").status, 401);
    // Another user of the node also has the repo, but none of the first user's files.
    let anns = node.token.clone();
    "zoe".clone_into(&mut node.name);
    node.register();
    assert_eq!((get(&node, "files/film.mp4/content", &[]).status, link(&node, "film.mp4").0), (404, 404));
    // A link in its place is not followed, and a removed file is gone.
    node.token = anns;
    let path = repo(&node).join("film.mp4");
    fs::remove_file(&path).unwrap();
    fs::write(place.path("secret"), "secret").unwrap();
    symlink(place.path("secret"), &path).unwrap();
    assert_eq!(get(&node, "files/film.mp4/content", &[]).status, 404);
    fs::remove_file(&path).unwrap();
    assert_eq!(get(&node, "files/film.mp4/content", &[]).status, 404);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(ask(node.api(), "GET", &url, None, &[], b"").status, 200);
    // It expires with its token.
    node.does("logout", json!({}));
    assert_eq!(ask(node.api(), "GET", &url, None, &[], b"").status, 404);
}

#[test]
fn lists_are_searched_and_paged_what_is_missing_is_marked_and_what_is_removed_stays() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    for name in ["Report.pdf", "song.ogg", "report 2.txt"] {
        ann.does("add-file", json!({ "filepath": place.file(name, 10) }));
    }
    ann.does("publish", json!({"fname": "song.ogg"}));
    let listed = |query: &str| {
        let answer = ann.shows(query);
        (answer["total"].as_u64().unwrap(), names(&answer, "files", "name"))
    };
    let strings = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    assert_eq!(listed("local-files"), (3, strings(&["Report.pdf", "report 2.txt", "song.ogg"])));
    assert_eq!(listed("local-files?q=REPORT&limit=1&offset=1"), (2, strings(&["report 2.txt"])));
    assert_eq!(listed("published-files?q=s"), (1, strings(&["song.ogg"])));
    assert_eq!(listed("published-files?q=report"), (0, vec![]));
    assert_eq!(ann.get("local-files?limit=x").0, 400);
    let missing = || {
        let files = ann.shows("local-files")["files"].clone();
        files.as_array().unwrap().iter().filter(|it| it["missing"] == true).count()
    };
    assert_eq!(missing(), 0);
    fs::rename(place.path("shared/song.ogg"), place.path("shared/other.ogg")).unwrap();
    assert_eq!(missing(), 1);
    fs::rename(place.path("shared/other.ogg"), place.path("shared/song.ogg")).unwrap();
    assert_eq!(missing(), 0);
    // A published file is unpublished first.
    assert_eq!(server.hosts_of("song.ogg"), ["ann"]);
    ann.does("remove-file", json!({"fname": "song.ogg"}));
    assert_eq!(server.hosts_of("song.ogg"), [""; 0]);
    assert!(place.path("shared/song.ogg").exists());
    assert_eq!(listed("local-files").0, 2);
    ann.refuses("remove-file", json!({"fname": "song.ogg"}), 404);
    ann.refuses("remove-file", json!({}), 400);
    // It can be added again.
    ann.does("publish", json!({"fname": "song.ogg", "local_path": place.path("shared/song.ogg")}));
    assert_eq!(server.hosts_of("song.ogg"), ["ann"]);
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "a build with assertions reads each answer again, to hold it against its description"
)]
fn however_many_ask_for_long_lists_at_once_they_take_little_memory() {
    const FILES: usize = 10_000;
    const ASKING: usize = 48;
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let folder = place.path("shared/many");
    fs::create_dir_all(&folder).unwrap();
    (0..FILES).for_each(|n| drop(File::create(folder.join(format!("a file among very many of them {n}"))).unwrap()));
    let node = Node::begun(&place, &server, "ann", &[]);
    let most_kib = || {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = most_kib();
    let route = format!("/api/client/browse?path={}", folder.display());
    std::thread::scope(|scope| {
        for _ in 0..ASKING {
            scope.spawn(|| {
                let (status, answer) = http(node.api(), "GET", &route, node.token.as_deref(), None);
                assert_eq!((status, answer["entries"].as_array().unwrap().len()), (200, FILES));
            });
        }
    });
    let more = most_kib() - before;
    println!("{ASKING} lists of {FILES} entries at once: {more} KiB");
    // Each response is about 2 MB.
    assert!(more < 150 << 10, "{more} KiB");
}

#[test]
fn what_has_been_missing_for_a_month_is_forgotten() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    for name in ["gone", "just-gone", "here"] {
        node.does("publish", json!({"fname": name, "local_path": place.file(name, 10)}));
    }
    fs::remove_file(place.path("shared/gone")).unwrap();
    fs::remove_file(place.path("shared/just-gone")).unwrap();
    assert_eq!(
        node.shows("local-files")["files"].as_array().unwrap().iter().filter(|it| it["missing"] == true).count(),
        2
    );
    let restart = node.kill();
    let month = "UPDATE share_file SET missing_since = missing_since - 31 * 86400000 WHERE name = 'gone'";
    let store = rusqlite::Connection::open(place.path("state-ann/share.db")).unwrap();
    assert_eq!(store.execute(month, []).unwrap(), 1);
    drop(store);
    node = restart();
    eventually("it to be forgotten", || {
        (names(&node.shows("local-files"), "files", "name") == ["here", "just-gone"]).then_some(())
    });
    eventually("the registry to know", || server.hosts_of("gone").is_empty().then_some(()));
    assert_eq!(server.hosts_of("here"), ["ann"]);
}

#[test]
fn an_upload_in_the_place_of_one_that_was_published_is_not_published() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let node = Node::begun(&place, &server, "ann", &[]);
    assert_eq!(upload(&node, "a", b"first").status, 200);
    node.does("publish", json!({"fname": "a"}));
    assert_eq!(server.hosts_of("a"), ["ann"]);
    fs::remove_file(repo(&node).join("a")).unwrap();
    let answer = upload(&node, "a", b"second");
    assert_eq!((answer.status, &answer.json()["file"]["is_published"]), (200, &json!(false)));
    eventually("it to be hidden", || server.hosts_of("a").is_empty().then_some(()));
    assert_eq!(get(&node, "files/a/content", &[]).body, b"second");
}

#[test]
fn how_many_have_a_content_is_told() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    let path = place.file("a", 2_000_000);
    fs::copy(&path, place.path("shared/copy")).unwrap();
    ann.publishes(&server, &path);
    bob.publishes(&server, &place.path("shared/copy"));
    bob.publishes(&server, &place.file("b", 5));
    let copies = eventually("all to be seen", || {
        let found = bob.shows("network-files");
        let files = found["files"].as_array().unwrap().clone();
        let all: Vec<_> = files.iter().map(|it| format!("{} {}", it["name"], it["copies"])).collect();
        (all.len() == 3 && all[0].ends_with('2')).then_some(all)
    });
    assert_eq!(copies, ["\"a\" 2", "\"b\" 1", "\"copy\" 2"]);
}
