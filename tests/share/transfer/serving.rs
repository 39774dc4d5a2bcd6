//! The peer server, tested with bare sockets.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use p2s2::internals::share::pieces::blake3_digest;
use p2s2::internals::share::transfer::PeerServerLimits;
use serde_json::Value;

use super::world::{MIB, NAME, PeerHost, ask, bytes, write_large};
use crate::support::{PATIENCE, eventually};

fn host_with(content: &[u8]) -> (PeerHost, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("on disk");
    fs::write(&path, content).unwrap();
    (PeerHost::with_file("ann", &path).0, dir)
}

#[test]
fn get_sends_the_file_and_closes() {
    for size in [0, 1, 5000, 16 * 1024, 16 * 1024 + 1, 70_000, 3 * MIB + 17] {
        let content = bytes(size, size);
        let (host, _dir) = host_with(&content);
        let answer = ask(host.addr(), format!("GET {NAME}\n").as_bytes());
        let head = format!("LENGTH {size}\n");
        assert_eq!(&answer[..head.len()], head.as_bytes());
        assert!(answer[head.len()..] == content, "{size}");
        // Also with a line end as telnet sends it.
        assert_eq!(ask(host.addr(), format!("GET {NAME}\r\n").as_bytes()).len(), answer.len());
        assert_eq!(host.counter("bytes_sent"), 2 * size);
        eventually("no transfer to run", || (host.server.active_transfers() == 0).then_some(()));
    }
}

#[test]
fn meta_and_range_on_a_connection_that_stays_open() {
    let content = bytes(2 * MIB + 1000, 7);
    let (host, _dir) = host_with(&content);
    let mut stream = TcpStream::connect(host.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();

    stream.write_all(format!("META {NAME}\n").as_bytes()).unwrap();
    reader.read_line(&mut line).unwrap();
    let meta: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((meta["size"].as_u64(), meta["piece_size"].as_u64()), (Some(content.len() as u64), Some(MIB)));
    assert_eq!(meta["blake3"], blake3_digest(&content).to_string());
    let expected: Vec<String> = content.chunks(MIB as usize).map(|piece| blake3_digest(piece).to_string()).collect();
    assert_eq!(meta["pieces"], serde_json::json!(expected));
    assert!(meta["modified"].as_f64().unwrap() > 1.6e9);

    let size = content.len() as u64;
    for (offset, length) in [(0, size), (5, 10), (MIB - 1, MIB + 2), (size - 1, 1), (size, 0), (0, 0), (1, 20_000)] {
        stream.write_all(format!("RANGE {offset} {length} {NAME}\n").as_bytes()).unwrap();
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("LENGTH {length}\n"));
        let mut got = vec![0; length as usize];
        reader.read_exact(&mut got).unwrap();
        assert!(got == content[offset as usize..(offset + length) as usize], "{offset} {length}");
    }
    // Pipelined requests with errors among them are answered in order, and the connection stays open.
    let far = "99999999999999999999999";
    let requests = format!(
        "RANGE {size} 1 {NAME}\nRANGE 0 {} {NAME}\nRANGE {far} 1 {NAME}\nRANGE 1 {far} {NAME}\nMETA none\n\
         RANGE 0 1 none\nRANGE 0 3 {NAME}\n",
        size + 1
    );
    stream.write_all(requests.as_bytes()).unwrap();
    for expected in ["readerror", "readerror", "readerror", "readerror", "notfound", "notfound"] {
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("ERROR {expected}\n"));
    }
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "LENGTH 3\n");
    // The server closes the connection after GET.
    stream.write_all(format!("GET {NAME}\nGET {NAME}\n").as_bytes()).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 3 + "LENGTH 2098152\n".len() + content.len());
}

#[test]
fn nothing_but_what_is_published_can_be_asked_for() {
    let (host, dir) = host_with(b"published");
    fs::write(dir.path().join("secret"), "secret").unwrap();
    let absolute = dir.path().join("secret").display().to_string();
    let long = "x".repeat(4096);
    let longer = "x".repeat(4097);
    let far_longer = "x".repeat(5_000_000);
    for name in ["secret", "../secret", "./on disk", "on disk", &absolute, "/etc/passwd", "C:\\x", "a\0b", "", &long] {
        for request in [format!("GET {name}\n"), format!("META {name}\n"), format!("RANGE 0 1 {name}\n")] {
            let mut stream = TcpStream::connect(host.addr()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer).unwrap();
            assert_eq!(answer, "ERROR notfound\n", "{:?}", &request[..request.len().min(100)]);
        }
    }
    for request in [
        format!("GET {longer}\n").into_bytes(),
        format!("RANGE 0 1 {longer}\n").into_bytes(),
        format!("GET {}\n", "x".repeat(100_000)).into_bytes(),
        b"\n".to_vec(),
        b"PUT x\n".to_vec(),
        format!("get {NAME}\n").into_bytes(),
        format!("GET{NAME}\n").into_bytes(),
        format!("RANGE 0 {NAME}\n").into_bytes(),
        format!("RANGE -1 1 {NAME}\n").into_bytes(),
        b"GET \xff\xfe\n".to_vec(),
    ] {
        assert_eq!(String::from_utf8(ask(host.addr(), &request)).unwrap(), "ERROR notfound\n", "{request:?}");
    }
    // A line without any end; the response need not be read.
    let mut stream = TcpStream::connect(host.addr()).unwrap();
    let _ = stream.write_all(far_longer.as_bytes());
    drop(stream);
    assert_eq!(ask(host.addr(), format!("GET {NAME}\n").as_bytes()), b"LENGTH 9\npublished");
    // Nor can a file be requested after it was unpublished.
    host.files.unpublish(NAME);
    assert_eq!(ask(host.addr(), format!("GET {NAME}\n").as_bytes()), b"ERROR notfound\n");
}

#[test]
fn a_file_that_is_not_what_was_published_is_not_sent() {
    let content = bytes(100_000, 1);
    let (host, dir) = host_with(&content);
    let path = dir.path().join("on disk");
    let get = || ask(host.addr(), format!("GET {NAME}\n").as_bytes());
    let not_found = b"ERROR filenotfound\n";
    fs::write(&path, &content[1..]).unwrap();
    assert_eq!(get(), not_found, "another size");
    fs::write(&path, &content).unwrap();
    assert_eq!(get(), not_found, "another time");
    host.files.publish(NAME, &path, true);
    assert_eq!(get().len(), content.len() + "LENGTH 100000\n".len());
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    assert_eq!(get(), not_found, "moved");
    assert_eq!(host.counter("file_not_found"), 3);
}

#[test]
fn a_file_that_changes_while_it_is_sent_cuts_the_connection() {
    const SIZE: u64 = 60 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("on disk");
    write_large(&path, SIZE);
    let host = PeerHost::start();
    host.files.publish(NAME, &path, true);
    let mut stream = TcpStream::connect(host.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {NAME}\n").as_bytes()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    stream.read_exact(&mut buffer[..1000]).unwrap();
    // All socket buffers are full by then, and most of the file has not been sent.
    eventually("a transfer to run", || (host.server.active_transfers() == 1).then_some(()));
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"another beginning").unwrap();
    let mut came = 1000;
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(len) => came += len,
            Err(error) => break Some(error.kind()),
        }
    };
    assert!(came < SIZE as usize, "all of it came");
    assert!(matches!(ended, None | Some(ErrorKind::ConnectionReset)), "{ended:?}");
    eventually("it to be counted", || (host.counter("changed_while_sent") == 1).then_some(()));
}

#[test]
fn readers_that_stop_are_cut_off_and_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("on disk");
    write_large(&path, 60 * MIB);
    let limits = PeerServerLimits {
        stall_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        ..PeerServerLimits::default()
    };
    let host = PeerHost::start_at("127.0.0.1:0".parse().unwrap(), limits, 20);
    host.files.publish(NAME, &path, true);
    let stopped: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = TcpStream::connect(host.addr()).unwrap();
            stream.write_all(format!("GET {NAME}\n").as_bytes()).unwrap();
            stream
        })
        .collect();
    eventually("all to be sent to", || (host.server.active_transfers() == 10).then_some(()));
    // Meanwhile other requests are served, and files can be published.
    host.files.publish("small", &dir.path().join("on disk"), false);
    let answer = ask(host.addr(), b"META none\n");
    assert_eq!(answer, b"ERROR notfound\n", "and the idle connection ends by itself");
    eventually("them to be cut off", || {
        (host.counter("cut_off") == 10 && host.server.open_connections() == 0).then_some(())
    });
    assert_eq!((host.server.active_transfers(), host.limiter.open_connections()), (0, 0));
    drop(stopped);
}

#[test]
fn connections_are_bounded_and_a_half_request_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("on disk");
    write_large(&path, 64 * MIB);
    let limits = PeerServerLimits { request_timeout: Duration::from_millis(200), ..PeerServerLimits::default() };
    let host = PeerHost::start_at("127.0.0.1:0".parse().unwrap(), limits, 2);
    host.files.publish(NAME, &path, false);
    let mut half = TcpStream::connect(host.addr()).unwrap();
    half.write_all(b"GET ").unwrap();
    let mut rest = Vec::new();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop(half);
    eventually("it to be gone", || (host.server.open_connections() == 0).then_some(()));
    // Connections with a transfer in progress stay.
    let mut sent_to = Vec::new();
    for count in 1..=2 {
        let mut stream = TcpStream::connect(host.addr()).unwrap();
        stream.write_all(format!("GET {NAME}\n").as_bytes()).unwrap();
        eventually("it to be sent to", || (host.server.active_transfers() == count).then_some(()));
        sent_to.push(stream);
    }
    assert_eq!(ask(host.addr(), b""), b"BUSY\n");
    assert_eq!(host.server.open_connections(), 2);
    drop(sent_to);
    eventually("room again", || (host.server.open_connections() < 2).then_some(()));
}

#[test]
fn connections_that_ask_for_nothing_leave_room_for_those_that_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("on disk");
    fs::write(&path, b"content").unwrap();
    let host = PeerHost::start_at("127.0.0.1:0".parse().unwrap(), PeerServerLimits::default(), 8);
    host.files.publish(NAME, &path, true);
    let mut held = Vec::new();
    for said in ["", "GET ", "META no such file\n"] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(host.addr()).unwrap();
            // The connection may have been closed already.
            let _ = stream.write_all(said.as_bytes());
            held.push(stream);
        }
        // A closed connection takes a moment to free its slot.
        eventually("the file", || {
            let mut stream = TcpStream::connect(host.addr()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = String::new();
            let requests = stream.write_all(format!("GET {NAME}\n").as_bytes());
            (requests.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer == "LENGTH 7\ncontent")
                .then_some(())
        });
    }
    assert!(host.counter("newcomers_closed") > 0);
}
