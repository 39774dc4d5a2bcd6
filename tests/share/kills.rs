//! The registry killed under load, again and again: what it acknowledged is there when it is back, without any
//! client doing anything. The clients are bare sockets, written from SPEC.md alone.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{eventually, program, scaled};

const CLIENTS: usize = 8;
/// Files of each client: they are published and unpublished again and again.
const FILES: usize = 12;

struct Registry {
    child: Child,
    addr: SocketAddr,
}

impl Registry {
    /// The same data each time, and the same port from the second time on.
    fn start(dir: &Path, port: u16) -> Registry {
        let ready = dir.join("ready.json");
        if ready.exists() {
            std::fs::remove_file(&ready).unwrap();
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut child = program("server")
            .args(["--services", "share", "--api-port", "0", "--registry-port", &port.to_string()])
            .args([Path::new("--data-dir"), &dir.join("state"), Path::new("--ready-file"), &ready])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let addr = eventually("the registry to be ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", std::fs::read_to_string(dir.join("log")).unwrap());
            }
            let ready: Value = serde_json::from_str(&std::fs::read_to_string(&ready).ok()?).unwrap();
            Some(ready["registry"].as_str().unwrap().parse().unwrap())
        });
        Registry { child, addr }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // After a kill there is nothing left to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    fn connect(addr: SocketAddr) -> std::io::Result<Line> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Line { reader: BufReader::new(stream) })
    }

    fn ask(&mut self, action: &str, data: Value) -> std::io::Result<Value> {
        self.reader.get_mut().write_all(format!("{}\n", json!({"action": action, "data": data})).as_bytes())?;
        let mut answer = String::new();
        if self.reader.read_line(&mut answer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer).unwrap())
    }
}

/// What a client knows of its files: the size, or that it is not shown.
type Shown = BTreeMap<String, Option<u64>>;

struct Client {
    hostname: String,
    resume: Option<String>,
    acknowledged: Shown,
    /// Asked for and not answered: it may have happened, or not.
    open: Option<(String, Option<u64>)>,
    changes: u64,
}

impl Client {
    /// Changes one file after the other until the registry is gone.
    fn work(&mut self, addr: SocketAddr) {
        let until_gone = || -> std::io::Result<()> {
            let mut line = Line::connect(addr)?;
            let mut register = json!({"hostname": self.hostname, "port": 6001});
            if let Some(resume) = &self.resume {
                register["resume"] = json!(resume);
            }
            let registered = line.ask("REGISTER", register)?;
            assert_eq!(registered["status"], "OK", "{registered}");
            self.resume = Some(registered["resume"].as_str().unwrap().to_owned());
            loop {
                self.changes += 1;
                let fname = format!("file-{}.bin", self.changes as usize % FILES);
                let is_shown = self.acknowledged.get(&fname).is_some_and(Option::is_some);
                // Mostly new sizes, now and then no more.
                let wanted = (!is_shown || self.changes % 3 > 0).then_some(self.changes);
                self.open = Some((fname.clone(), wanted));
                let answer = match wanted {
                    Some(size) => {
                        let file = json!({"hostname": self.hostname, "fname": fname, "size": size, "modified": 1.5});
                        line.ask("PUBLISH", file)?
                    }
                    None => line.ask("UNPUBLISH", json!({"hostname": self.hostname, "fname": fname}))?,
                };
                assert_eq!(answer["status"], "ACK", "{answer}");
                self.acknowledged.insert(fname, wanted);
                self.open = None;
            }
        };
        // The end is a connection that broke: the registry was killed.
        let mut until_gone = until_gone;
        until_gone().unwrap_err();
    }

    /// Compares what the registry shows of it with what it was told; takes over what was open.
    fn check(&mut self, line: &mut Line) {
        let answer = line.ask("DISCOVER", json!({"hostname": self.hostname})).unwrap();
        if self.resume.is_none() {
            // Killed before it was answered: whether it is there is not known.
            return;
        }
        assert_eq!(answer["status"], "OK", "{}: {answer}", self.hostname);
        let files = answer["files"].as_object().unwrap();
        let shown = |fname: &str| files.get(fname).map(|file| file["size"].as_u64().unwrap());
        if let Some((fname, wanted)) = self.open.take() {
            let before = self.acknowledged.get(&fname).copied().flatten();
            let now = shown(&fname);
            assert!(now == before || now == wanted, "{fname} of {}: {now:?}, not {before:?} or {wanted:?}", self.hostname);
            self.acknowledged.insert(fname, now);
        }
        for (fname, acknowledged) in &self.acknowledged {
            assert_eq!(shown(fname), *acknowledged, "{fname} of {}", self.hostname);
        }
        let known = self.acknowledged.values().filter(|size| size.is_some()).count();
        assert_eq!(files.len(), known, "{}: {files:?}", self.hostname);
    }
}

#[test]
fn a_registry_killed_under_load_has_everything_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().to_owned();
    let client = |nth| Client {
        hostname: format!("host-{nth}"),
        resume: None,
        acknowledged: Shown::new(),
        open: None,
        changes: 0,
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(client).collect();
    let mut registry = Registry::start(&path, 0);
    let addr = registry.addr;
    let kills = scaled(50);
    for round in 0..kills {
        let before: u64 = clients.iter().map(|client| client.changes).sum();
        std::thread::scope(|scope| {
            let work: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.work(addr))).collect();
            // Sooner and later in the midst of their work, by another moment each time.
            std::thread::sleep(Duration::from_millis(30 + (round as u64 * 37) % 200));
            registry.kill();
            work.into_iter().for_each(|thread| thread.join().unwrap());
        });
        registry = Registry::start(&path, addr.port());
        let mut line = Line::connect(addr).unwrap();
        clients.iter_mut().for_each(|client| client.check(&mut line));
        let changes: u64 = clients.iter().map(|client| client.changes).sum();
        println!("kill {round}: {} changes", changes - before);
    }
    let changes: u64 = clients.iter().map(|client| client.changes).sum();
    assert!(changes > kills as u64 * 10, "{changes} changes in {kills} rounds are no load");
    println!("{kills} kills, {changes} changes: everything acknowledged was there");
}
