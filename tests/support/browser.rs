//! A real browser controlled over WebDriver, with one request per connection and JSON in both directions.
#![allow(dead_code, reason = "each test target uses its part")]

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Timeout of starting the browser and of every command.
const PATIENCE: Duration = Duration::from_secs(90);
/// Timeout of waiting for something to appear on a page.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Browsers that run concurrently: each keeps a core busy.
const BROWSERS_MAX: usize = 2;
/// The key under which WebDriver returns elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// The script that searches pages.
const FIND_SCRIPT: &str = include_str!("find.js");

static FREE_PERMITS: Mutex<usize> = Mutex::new(BROWSERS_MAX);
static PERMIT_RELEASED: Condvar = Condvar::new();

/// Permission to run this many browsers, returned when dropped.
struct BrowserPermits(usize);

impl BrowserPermits {
    /// Acquires all permits at once, so that two tests that need two each cannot deadlock.
    fn acquire(count: usize) -> BrowserPermits {
        let mut free = PERMIT_RELEASED.wait_while(FREE_PERMITS.lock().unwrap(), |free| *free < count).unwrap();
        *free -= count;
        BrowserPermits(count)
    }

    fn split(mut self) -> (BrowserPermits, BrowserPermits) {
        self.0 -= 1;
        (BrowserPermits(1), self)
    }
}

impl Drop for BrowserPermits {
    fn drop(&mut self) {
        *FREE_PERMITS.lock().unwrap() += self.0;
        PERMIT_RELEASED.notify_all();
    }
}

/// An error reported by WebDriver.
#[derive(Debug)]
pub struct WebDriverError {
    pub error: String,
    pub message: String,
}

impl WebDriverError {
    /// Whether a retry may succeed: the page has changed meanwhile, or another element was in front.
    fn is_transient(&self) -> bool {
        let passing = [
            "stale element reference",
            "element click intercepted",
            "element not interactable",
            "no such element",
            "invalid element state",
        ];
        passing.contains(&self.error.as_str())
            // Errors of a page that is being left.
            || self.message.contains("execution context")
            || self.message.contains("Cannot find context")
            || self.message.contains("does not belong to the document")
    }
}

impl fmt::Display for WebDriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error, self.message)
    }
}

/// Describes an element to look for.
#[derive(Debug, Clone)]
pub struct Locator(Value);

/// Elements that match a CSS selector.
pub fn css(selector: &str) -> Locator {
    Locator(json!({ "css": selector }))
}

/// Elements that match a CSS selector, visible or not.
pub fn hidden(selector: &str) -> Locator {
    Locator(json!({"css": selector, "isHidden": true}))
}

/// Elements with an accessible role and a name that begins with these words.
pub fn role(role: &str, name: &str) -> Locator {
    Locator(json!({"role": role, "name": name}))
}

pub fn button(name: &str) -> Locator {
    role("button", name)
}

pub fn textbox(name: &str) -> Locator {
    role("textbox", name)
}

/// The innermost element with this text.
pub fn text(text: &str) -> Locator {
    Locator(json!({ "text": text }))
}

/// A table row or list item with this text.
pub fn row(text: &str) -> Locator {
    Locator(json!({ "row": text }))
}

impl Locator {
    /// Restricts the search to elements inside `outer`.
    pub fn within(mut self, outer: Locator) -> Locator {
        self.0["within"] = outer.0;
        self
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Headless Chromium without network access, with a temporary profile. It ends when dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    folder: tempfile::TempDir,
    _permits: BrowserPermits,
}

/// Starts the driver. Returns it with its remaining output and its port, or what it printed before it ended.
fn start_driver() -> Result<(Child, BufReader<ChildStdout>, u16), String> {
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
        Browser::start_at(BrowserPermits::acquire(1))
    }

    /// Two independent browsers.
    pub fn two() -> (Browser, Browser) {
        let (one, other) = BrowserPermits::acquire(2).split();
        (Browser::start_at(one), Browser::start_at(other))
    }

    fn start_at(permits: BrowserPermits) -> Browser {
        let folder = tempfile::tempdir().unwrap();
        // The driver needs a free port for both IP versions. If another program has one of them, the driver ends and is
        // started again, on another port.
        let started = start_driver().or_else(|_| start_driver()).or_else(|_| start_driver());
        let (driver, mut said, port) = started.unwrap_or_else(|said| panic!("chromedriver told no port: {said}"));
        // The output is drained so that the driver never blocks.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let mut browser = Browser { driver, port, session: String::new(), folder, _permits: permits };
        let data_dir = format!("--user-data-dir={}", browser.folder.path().join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // Host names do not resolve and no proxy is used, so that requests to other machines fail.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--no-proxy-server",
            // Background tabs must not be throttled.
            "--disable-background-timer-throttling",
            "--disable-renderer-backgrounding",
            "--disable-backgrounding-occluded-windows",
            "--window-size=1400,2000",
            &data_dir,
        ];
        let saved = browser.saved("");
        std::fs::create_dir(&saved).unwrap();
        let options = json!({
            "args": arguments,
            "prefs": {"download.default_directory": saved, "download.prompt_for_download": false},
        });
        let timeouts = json!({"script": 60_000, "pageLoad": 60_000});
        let logged = json!({"browser": "ALL"});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": logged, "timeouts": timeouts,
        }}});
        let session = browser.send("POST", "/session", &wanted).unwrap_or_else(|fault| panic!("{fault}"));
        browser.session = session["sessionId"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
        browser
    }

    /// The path of a file downloaded under this name.
    pub fn saved(&self, name: &str) -> PathBuf {
        self.folder.path().join("saved").join(name)
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    #[track_caller]
    pub fn open_file(&self, file: &Path) {
        self.open(&format!("file://{}", file.canonicalize().unwrap().display()));
    }

    #[track_caller]
    pub fn reload(&self) {
        self.post("/refresh", &json!({}));
    }

    /// The result of a script (which uses `return`).
    #[track_caller]
    pub fn ask(&self, script: &str) -> Value {
        self.ask_with(script, json!([]))
    }

    /// The result of a script with `arguments`.
    #[track_caller]
    pub fn ask_with(&self, script: &str, arguments: Value) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// The value of a promise; the script is the body of an async function.
    #[track_caller]
    pub fn ask_later(&self, script: &str, arguments: Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
             (async function () {{ {script} }})(...given).then(
                 (value) => done({{ value }}), (error) => done({{ error: String(error) }}));"
        );
        let mut answer = self.post("/execute/async", &json!({"script": script, "args": arguments}));
        assert!(answer["error"].is_null(), "{}", answer["error"]);
        answer["value"].take()
    }

    /// Runs a DevTools command.
    #[track_caller]
    pub fn command(&self, name: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": name, "params": parameters}))
    }

    /// Waits until a script returns a truthy value, and returns it.
    #[track_caller]
    pub fn until(&self, what: &str, script: &str) -> Value {
        self.until_with(what, script, &json!([]))
    }

    #[track_caller]
    pub fn until_with(&self, what: &str, script: &str, arguments: &Value) -> Value {
        self.eventually(what, || {
            let value = self.try_post("/execute/sync", &json!({"script": script, "args": arguments}))?;
            let is_so = !matches!(&value, Value::Null | Value::Bool(false)) && value != 0 && value != "";
            Ok(is_so.then_some(value))
        })
    }

    /// Waits until the element is visible.
    #[track_caller]
    pub fn sees(&self, what: &Locator) {
        self.wait_for_element(what);
    }

    #[track_caller]
    pub fn sees_text(&self, said: &str) {
        self.sees(&text(said));
    }

    /// Waits until the element is no longer visible.
    #[track_caller]
    pub fn sees_no(&self, what: &Locator) {
        self.until_with(
            &format!("{what} to be gone"),
            &format!("{FIND_SCRIPT} return find(arguments[0]).length === 0"),
            &json!([what.0]),
        );
    }

    /// The number of matching visible elements.
    #[track_caller]
    pub fn count(&self, what: &Locator) -> u64 {
        self.ask_with(&format!("{FIND_SCRIPT} return find(arguments[0]).length"), json!([what.0])).as_u64().unwrap()
    }

    #[track_caller]
    pub fn is_shown(&self, what: &Locator) -> bool {
        self.count(what) > 0
    }

    /// The element's text, once it is visible.
    #[track_caller]
    pub fn text_of(&self, what: &Locator) -> String {
        self.of(what, "el.innerText.replace(/\\s+/g, ' ').trim()").as_str().unwrap().to_owned()
    }

    /// The value of an expression with the element as `el`, once it is visible.
    #[track_caller]
    pub fn of(&self, what: &Locator, expression: &str) -> Value {
        let script = format!("{FIND_SCRIPT} const el = find(arguments[0])[0]; return el ? [{expression}] : null");
        self.until_with(&what.to_string(), &script, &json!([what.0]))[0].take()
    }

    /// Waits until an expression with the element as `el` is truthy.
    #[track_caller]
    pub fn until_of(&self, what: &Locator, expression: &str) -> Value {
        let script = format!("{FIND_SCRIPT} const el = find(arguments[0])[0]; return el ? {expression} : null");
        self.until_with(&format!("{what}: {expression}"), &script, &json!([what.0]))
    }

    #[track_caller]
    pub fn click(&self, what: &Locator) {
        self.perform(what, "click", &json!({}));
    }

    /// Replaces a field's contents by typing.
    #[track_caller]
    pub fn fill(&self, what: &Locator, text: &str) {
        self.eventually(&format!("{what} to be filled"), || {
            let Some(element) = self.try_find(what)? else { return Ok(None) };
            // The old contents are selected and deleted as a user would do it.
            let keys = ["\u{E009}a\u{E000}\u{E003}", text].concat();
            self.try_post(&format!("/element/{element}/value"), &json!({ "text": keys }))?;
            Ok(Some(()))
        });
    }

    /// Selects files for a file input, which may be hidden.
    #[track_caller]
    pub fn choose(&self, what: &Locator, files: &[&Path]) {
        let paths: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
        self.perform(what, "value", &json!({"text": paths.join("\n")}));
    }

    /// Drops files or folders onto the element.
    #[track_caller]
    pub fn drop_onto(&self, what: &Locator, paths: &[&Path]) {
        self.drag(what, paths, &["dragEnter", "dragOver", "drop"]);
    }

    /// Drags files or folders over the element.
    #[track_caller]
    pub fn drag_over(&self, what: &Locator, paths: &[&Path]) {
        self.drag(what, paths, &["dragEnter", "dragOver"]);
    }

    #[track_caller]
    fn drag(&self, what: &Locator, paths: &[&Path], steps: &[&str]) {
        let at = self.of(
            what,
            "(el.scrollIntoView({ block: 'center', behavior: 'instant' }), el.getBoundingClientRect().toJSON())",
        );
        let middle = |start: &str, length: &str| at[start].as_f64().unwrap() + at[length].as_f64().unwrap() / 2.0;
        let (x, y) = (middle("x", "width"), middle("y", "height"));
        // A copy operation, as another program would offer it.
        let data = json!({"items": [], "files": paths, "dragOperationsMask": 1});
        for step in steps {
            self.command("Input.dispatchDragEvent", json!({"type": step, "x": x, "y": y, "data": data}));
        }
    }

    /// Presses and releases a key: `Tab`, `Enter`, `Shift+Tab`, or a character.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let values: Vec<&str> = keys.split('+').map(key).collect();
        let down = values.iter().map(|value| json!({"type": "keyDown", "value": value}));
        let up = values.iter().rev().map(|value| json!({"type": "keyUp", "value": value}));
        self.perform_keys(down.chain(up).collect());
    }

    /// Types into whatever has the focus.
    #[track_caller]
    pub fn types(&self, text: &str) {
        let each = |letter: char| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": letter.to_string()}));
        self.perform_keys(text.chars().flat_map(each).collect());
    }

    fn perform_keys(&self, actions: Vec<Value>) {
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", &json!({"actions": [keyboard]}));
    }

    /// Presses Tab until the element has the focus.
    #[track_caller]
    pub fn tab_to(&self, what: &Locator) {
        let has_focus = format!("{FIND_SCRIPT} return find(arguments[0]).includes(document.activeElement)");
        let mut passed = Vec::new();
        for _ in 0..150 {
            self.sees(what);
            if self.ask_with(&has_focus, json!([what.0])) == true {
                return;
            }
            self.press("Tab");
            let name = format!("{FIND_SCRIPT} return nameOf(document.activeElement).slice(0, 60)");
            passed.push(self.ask(&name));
        }
        self.fail_with_page(&format!("the focus never came to {what}, but to {passed:?}"));
    }

    /// The handle of the current tab.
    pub fn tab(&self) -> String {
        self.get("/window").as_str().unwrap().to_owned()
    }

    /// The handles of all tabs.
    pub fn tabs(&self) -> Vec<String> {
        serde_json::from_value(self.get("/window/handles")).unwrap()
    }

    /// Opens a page in a new tab and switches to it.
    #[track_caller]
    pub fn open_tab(&self, url: &str) -> String {
        let tab = self.post("/window/new", &json!({"type": "tab"}))["handle"].as_str().unwrap().to_owned();
        self.to_tab(&tab);
        self.open(url);
        tab
    }

    #[track_caller]
    pub fn to_tab(&self, tab: &str) {
        self.post("/window", &json!({ "handle": tab }));
    }

    /// Sets the viewport's size and the colour scheme.
    #[track_caller]
    pub fn set_viewport(&self, width: u32, height: u32, is_dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size);
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            // Animations are reduced so that screenshots show their final state.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.ask_later(
            "await document.fonts.ready;
             const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
             await frame(); await frame();
             await Promise.all(document.getAnimations().map((it) => Promise.race([it.finished.catch(() => {}),
                 new Promise((resolve) => setTimeout(resolve, 500))])));",
            json!([]),
        );
    }

    /// Saves a screenshot as PNG.
    #[track_caller]
    pub fn picture(&self, to: &Path) {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let picture = self.get("/screenshot");
        std::fs::write(to, BASE64.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }

    /// The browser's log since the last call.
    #[track_caller]
    pub fn log(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Switches to a frame of the page, or back to the page.
    #[track_caller]
    pub fn to_frame(&self, number: Option<u32>) {
        self.post("/frame", &json!({ "id": number }));
    }

    /// Warnings and errors of the browser itself since the last call, such as script errors and policy violations.
    /// Responses with an error status are not included.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        let of_pages = log.as_array().unwrap().iter().filter(|entry| entry["source"] != "network");
        let grave = of_pages.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        grave.map(|entry| format!("{}: {}", entry["source"], entry["message"])).collect()
    }

    /// Waits until the element exists; returns its WebDriver id.
    #[track_caller]
    fn wait_for_element(&self, what: &Locator) -> String {
        self.eventually(&what.to_string(), || self.try_find(what))
    }

    fn try_find(&self, what: &Locator) -> Result<Option<String>, WebDriverError> {
        let script = format!("{FIND_SCRIPT} return find(arguments[0])[0] ?? null");
        let found = self.try_post("/execute/sync", &json!({"script": script, "args": [what.0]}))?;
        Ok(found[ELEMENT].as_str().map(str::to_owned))
    }

    /// Performs an action on an element, retrying if the page changes meanwhile.
    #[track_caller]
    fn perform(&self, what: &Locator, act: &str, how: &Value) {
        self.eventually(&format!("{what} to take a {act}"), || {
            let Some(element) = self.try_find(what)? else { return Ok(None) };
            self.try_post(&format!("/element/{element}/{act}"), how).map(Some)
        });
    }

    /// Waits until `check` returns a value.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, mut check: impl FnMut() -> Result<Option<T>, WebDriverError>) -> T {
        let deadline = Instant::now() + SHOWN_TIMEOUT;
        let mut last = String::new();
        loop {
            match check() {
                Ok(Some(value)) => return value,
                Ok(None) => {}
                Err(fault) if fault.is_transient() => last = fault.to_string(),
                Err(fault) => self.fail_with_page(&format!("{what}: {fault}")),
            }
            if Instant::now() >= deadline {
                self.fail_with_page(&format!("waited in vain for {what}; {last}"));
            }
            // Changes of a page cannot be waited for, so it is polled.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails the test with the page's text, the log and a screenshot.
    #[track_caller]
    fn fail_with_page(&self, why: &str) -> ! {
        let shown = self.try_post(
            "/execute/sync",
            &json!({"script": "return `${location.href}, the focus on ${document.activeElement?.outerHTML.slice(0, 200)}\n${document.body?.innerText.slice(0, 2000)}`", "args": []}),
        );
        let shown = shown.map_or_else(|fault| fault.to_string(), |shown| shown.as_str().unwrap_or_default().to_owned());
        let log = self.try_post("/se/log", &json!({"type": "browser"}));
        let log = log.map_or_else(|fault| fault.to_string(), |log| log.to_string());
        let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
        let picture = screenshots().join(format!("failed-{name}.png"));
        self.picture(&picture);
        panic!("{why}\n--- {} shows {shown}\n--- the browser's log: {log}", picture.display());
    }

    #[track_caller]
    fn post(&self, path: &str, what: &Value) -> Value {
        self.try_post(path, what).unwrap_or_else(|fault| panic!("{path}: {fault}"))
    }

    fn try_post(&self, path: &str, what: &Value) -> Result<Value, WebDriverError> {
        self.send("POST", &format!("/session/{}{path}", self.session), what)
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", &format!("/session/{}{path}", self.session), &Value::Null);
        answer.unwrap_or_else(|fault| panic!("{path}: {fault}"))
    }

    fn send(&self, method: &str, path: &str, what: &Value) -> Result<Value, WebDriverError> {
        let body = if method == "GET" { String::new() } else { what.to_string() };
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
        let Some(error) = value["error"].as_str().filter(|_| value["stacktrace"].is_string()) else {
            return Ok(value);
        };
        Err(WebDriverError {
            error: error.to_owned(),
            message: value["message"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// The folder of screenshots.
pub fn screenshots() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots")
}

/// WebDriver's code for a key.
fn key(name: &str) -> &str {
    match name {
        "Tab" => "\u{E004}",
        "Enter" => "\u{E007}",
        "Shift" => "\u{E008}",
        "Escape" => "\u{E00C}",
        "Space" => " ",
        "ArrowUp" => "\u{E013}",
        "ArrowDown" => "\u{E015}",
        "End" => "\u{E010}",
        "Home" => "\u{E011}",
        letter => letter,
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session, whether or not the test has failed.
        let end = || self.send("DELETE", &format!("/session/{}", self.session), &json!({}));
        if !self.session.is_empty() && !matches!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(end)), Ok(Ok(_)))
        {
            eprintln!("the browser may be left: its driver did not answer");
        }
        // It may have already ended.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
