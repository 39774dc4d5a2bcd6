//! A real browser, spoken to over WebDriver: one request a connection, JSON both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::wait_for;

/// The browser starts within this, and does whatever it is told.
const PATIENCE: Duration = Duration::from_secs(90);

/// Chromium without a window, without a network, in a folder of its own. Ends when it is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// The driver, what else it says, and its port; or what it said at its end.
fn begin_driver() -> Result<(Child, BufReader<ChildStdout>, u16), String> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("chromedriver: {error}: install it (Debian: chromium-driver)"));
    let mut output = BufReader::new(driver.stdout.take().unwrap());
    let mut said = String::new();
    while output.read_line(&mut said).unwrap() > 0 {
        let line = said.lines().last().unwrap_or_default();
        if let Some(rest) = line.strip_prefix("ChromeDriver was started successfully on port ") {
            let port = rest.trim().trim_end_matches('.').parse().unwrap();
            return Ok((driver, output, port));
        }
    }
    Err(format!("{}: {said}", driver.wait().unwrap()))
}

impl Browser {
    pub fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        // It takes a port that is free and its twin of the other protocol, which another program may have: then it
        // ends, and takes another port the next time.
        let begun = begin_driver().or_else(|_| begin_driver()).or_else(|_| begin_driver());
        let (driver, mut said, port) = begun.unwrap_or_else(|said| panic!("chromedriver told no port: {said}"));
        // It must not stand still because nobody reads what else it says.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        let data_dir = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // Names mean nothing and no proxy helps: whatever a page would fetch from elsewhere fails.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--no-proxy-server",
            "--window-size=1400,2000",
            &data_dir,
        ];
        let options = json!({"args": arguments});
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = browser.tell("POST", "/session", &wanted);
        browser.session = session["sessionId"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
        browser
    }

    pub fn open(&self, file: &Path) {
        self.told("/url", &json!({"url": format!("file://{}", file.canonicalize().unwrap().display())}));
    }

    /// What a script says (it says `return …`).
    pub fn ask(&self, script: &str) -> Value {
        self.told("/execute/sync", &json!({"script": script, "args": []}))
    }

    fn told(&self, path: &str, what: &Value) -> Value {
        self.tell("POST", &format!("/session/{}{path}", self.session), what)
    }

    fn tell(&self, method: &str, path: &str, what: &Value) -> Value {
        let body = what.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        let value = answer["value"].take();
        assert!(value["error"].is_null(), "{path}: {value}");
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session, whatever the test came to.
        let end = || self.tell("DELETE", &format!("/session/{}", self.session), &json!({}));
        if !self.session.is_empty() && std::panic::catch_unwind(std::panic::AssertUnwindSafe(end)).is_err() {
            eprintln!("the browser may be left: its driver did not answer");
        }
        // It may have ended already.
        let _ = self.driver.kill();
        let _ = wait_for("the driver's end", || self.driver.try_wait().unwrap());
    }
}
