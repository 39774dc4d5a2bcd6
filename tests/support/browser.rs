//! A real browser, spoken to over WebDriver: one request a connection, JSON both ways.
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

/// The browser starts within this, and does whatever it is told.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a page is to show comes within this.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
/// Browsers that run at once: each keeps a core busy.
const AT_ONCE: usize = 2;
/// Under which name WebDriver hands elements over.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// How pages are searched.
const FIND: &str = include_str!("find.js");

static FREE: Mutex<usize> = Mutex::new(AT_ONCE);
static FREED: Condvar = Condvar::new();

/// The right to run so many browsers, given back when it is dropped.
struct Places(usize);

impl Places {
    /// All of them or none, so that two tests that want two each do not wait for each other.
    fn take(count: usize) -> Places {
        let mut free = FREED.wait_while(FREE.lock().unwrap(), |free| *free < count).unwrap();
        *free -= count;
        Places(count)
    }

    fn split(mut self) -> (Places, Places) {
        self.0 -= 1;
        (Places(1), self)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        *FREE.lock().unwrap() += self.0;
        FREED.notify_all();
    }
}

/// Why the browser did not do what it was told.
#[derive(Debug)]
pub struct Fault {
    pub error: String,
    pub message: String,
}

impl Fault {
    /// Whether it may go better the next time: the page has changed meanwhile, or something stood in front.
    fn is_passing(&self) -> bool {
        let passing = [
            "stale element reference",
            "element click intercepted",
            "element not interactable",
            "no such element",
            "invalid element state",
        ];
        passing.contains(&self.error.as_str())
            // What a page is left in the middle of.
            || self.message.contains("execution context")
            || self.message.contains("Cannot find context")
            || self.message.contains("does not belong to the document")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error, self.message)
    }
}

/// What is looked for on a page.
#[derive(Debug, Clone)]
pub struct What(Value);

/// What a selector says.
pub fn css(selector: &str) -> What {
    What(json!({ "css": selector }))
}

/// What a selector says, whether it is shown or not.
pub fn hidden(selector: &str) -> What {
    What(json!({"css": selector, "isHidden": true}))
}

/// By its role and its name, as it is read out; its name may go on after these words.
pub fn role(role: &str, name: &str) -> What {
    What(json!({"role": role, "name": name}))
}

pub fn button(name: &str) -> What {
    role("button", name)
}

pub fn textbox(name: &str) -> What {
    role("textbox", name)
}

/// The innermost element that says this.
pub fn text(text: &str) -> What {
    What(json!({ "text": text }))
}

/// A row of a table or a list that says this.
pub fn row(text: &str) -> What {
    What(json!({ "row": text }))
}

impl What {
    /// Somewhere in that.
    pub fn within(mut self, outer: What) -> What {
        self.0["within"] = outer.0;
        self
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chromium without a window, without a network, in a folder of its own. Ends when it is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    folder: tempfile::TempDir,
    _place: Places,
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
        Browser::start_at(Places::take(1))
    }

    /// Two that know nothing of each other.
    pub fn two() -> (Browser, Browser) {
        let (one, other) = Places::take(2).split();
        (Browser::start_at(one), Browser::start_at(other))
    }

    fn start_at(place: Places) -> Browser {
        let folder = tempfile::tempdir().unwrap();
        // It takes a port that is free and its twin of the other protocol, which another program may have: then it
        // ends, and takes another port the next time.
        let begun = begin_driver().or_else(|_| begin_driver()).or_else(|_| begin_driver());
        let (driver, mut said, port) = begun.unwrap_or_else(|said| panic!("chromedriver told no port: {said}"));
        // It must not stand still because nobody reads what else it says.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let mut browser = Browser { driver, port, session: String::new(), folder, _place: place };
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
            // Names mean nothing and no proxy helps: whatever a page would fetch from another machine fails.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--no-proxy-server",
            // Tabs that nobody looks at are as quick as the others.
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
        let session = browser.tell("POST", "/session", &wanted).unwrap_or_else(|fault| panic!("{fault}"));
        browser.session = session["sessionId"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
        browser
    }

    /// Where it saves a file of that name.
    pub fn saved(&self, name: &str) -> PathBuf {
        self.folder.path().join("saved").join(name)
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.told("/url", &json!({ "url": url }));
    }

    #[track_caller]
    pub fn open_file(&self, file: &Path) {
        self.open(&format!("file://{}", file.canonicalize().unwrap().display()));
    }

    #[track_caller]
    pub fn reload(&self) {
        self.told("/refresh", &json!({}));
    }

    /// What a script says (it says `return …`).
    #[track_caller]
    pub fn ask(&self, script: &str) -> Value {
        self.ask_with(script, json!([]))
    }

    /// The same with `arguments`.
    #[track_caller]
    pub fn ask_with(&self, script: &str, arguments: Value) -> Value {
        self.told("/execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// What a promise comes to; its script is the body of an asynchronous function.
    #[track_caller]
    pub fn ask_later(&self, script: &str, arguments: Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
             (async function () {{ {script} }})(...given).then(
                 (value) => done({{ value }}), (error) => done({{ error: String(error) }}));"
        );
        let mut answer = self.told("/execute/async", &json!({"script": script, "args": arguments}));
        assert!(answer["error"].is_null(), "{}", answer["error"]);
        answer["value"].take()
    }

    /// A command of the developer tools.
    #[track_caller]
    pub fn command(&self, name: &str, parameters: Value) -> Value {
        self.told("/goog/cdp/execute", &json!({"cmd": name, "params": parameters}))
    }

    /// Waits until a script says something that is true of the page; what it said.
    #[track_caller]
    pub fn until(&self, what: &str, script: &str) -> Value {
        self.until_with(what, script, &json!([]))
    }

    #[track_caller]
    pub fn until_with(&self, what: &str, script: &str, arguments: &Value) -> Value {
        self.eventually(what, || {
            let value = self.try_told("/execute/sync", &json!({"script": script, "args": arguments}))?;
            let is_so = !matches!(&value, Value::Null | Value::Bool(false)) && value != 0 && value != "";
            Ok(is_so.then_some(value))
        })
    }

    /// Waits until it is shown.
    #[track_caller]
    pub fn sees(&self, what: &What) {
        self.found(what);
    }

    #[track_caller]
    pub fn sees_text(&self, said: &str) {
        self.sees(&text(said));
    }

    /// Waits until it is shown no more.
    #[track_caller]
    pub fn sees_no(&self, what: &What) {
        self.until_with(
            &format!("{what} to be gone"),
            &format!("{FIND} return find(arguments[0]).length === 0"),
            &json!([what.0]),
        );
    }

    /// How many of it are shown now.
    #[track_caller]
    pub fn count(&self, what: &What) -> u64 {
        self.ask_with(&format!("{FIND} return find(arguments[0]).length"), json!([what.0])).as_u64().unwrap()
    }

    #[track_caller]
    pub fn is_shown(&self, what: &What) -> bool {
        self.count(what) > 0
    }

    /// What it says, once it is shown.
    #[track_caller]
    pub fn words_of(&self, what: &What) -> String {
        self.of(what, "el.innerText.replace(/\\s+/g, ' ').trim()").as_str().unwrap().to_owned()
    }

    /// What an expression says of it (of `el`), once it is shown.
    #[track_caller]
    pub fn of(&self, what: &What, expression: &str) -> Value {
        let script = format!("{FIND} const el = find(arguments[0])[0]; return el ? [{expression}] : null");
        self.until_with(&what.to_string(), &script, &json!([what.0]))[0].take()
    }

    /// Waits until an expression is true of it (of `el`).
    #[track_caller]
    pub fn until_of(&self, what: &What, expression: &str) -> Value {
        let script = format!("{FIND} const el = find(arguments[0])[0]; return el ? {expression} : null");
        self.until_with(&format!("{what}: {expression}"), &script, &json!([what.0]))
    }

    #[track_caller]
    pub fn click(&self, what: &What) {
        self.does(what, "click", &json!({}));
    }

    /// Types into a field what is to be in it.
    #[track_caller]
    pub fn fill(&self, what: &What, text: &str) {
        self.eventually(&format!("{what} to be filled"), || {
            let Some(element) = self.try_find(what)? else { return Ok(None) };
            // What was in it goes as people have it go: all of it is marked, and deleted.
            let keys = ["\u{E009}a\u{E000}\u{E003}", text].concat();
            self.try_told(&format!("/element/{element}/value"), &json!({ "text": keys }))?;
            Ok(Some(()))
        });
    }

    /// Chooses files of the disk in a file input, which may be hidden.
    #[track_caller]
    pub fn choose(&self, what: &What, files: &[&Path]) {
        let paths: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
        self.does(what, "value", &json!({"text": paths.join("\n")}));
    }

    /// Drops files or folders of the disk onto it.
    #[track_caller]
    pub fn drop_onto(&self, what: &What, paths: &[&Path]) {
        self.drag(what, paths, &["dragEnter", "dragOver", "drop"]);
    }

    /// Holds files or folders of the disk above it.
    #[track_caller]
    pub fn drag_over(&self, what: &What, paths: &[&Path]) {
        self.drag(what, paths, &["dragEnter", "dragOver"]);
    }

    #[track_caller]
    fn drag(&self, what: &What, paths: &[&Path], steps: &[&str]) {
        let at = self.of(
            what,
            "(el.scrollIntoView({ block: 'center', behavior: 'instant' }), el.getBoundingClientRect().toJSON())",
        );
        let middle = |start: &str, length: &str| at[start].as_f64().unwrap() + at[length].as_f64().unwrap() / 2.0;
        let (x, y) = (middle("x", "width"), middle("y", "height"));
        // Copying, as an outside program offers it.
        let data = json!({"items": [], "files": paths, "dragOperationsMask": 1});
        for step in steps {
            self.command("Input.dispatchDragEvent", json!({"type": step, "x": x, "y": y, "data": data}));
        }
    }

    /// Presses a key and lets it go: `Tab`, `Enter`, `Shift+Tab`, or a character.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let values: Vec<&str> = keys.split('+').map(key).collect();
        let down = values.iter().map(|value| json!({"type": "keyDown", "value": value}));
        let up = values.iter().rev().map(|value| json!({"type": "keyUp", "value": value}));
        self.acts(down.chain(up).collect());
    }

    /// Types it, wherever the focus is.
    #[track_caller]
    pub fn types(&self, text: &str) {
        let each = |letter: char| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": letter.to_string()}));
        self.acts(text.chars().flat_map(each).collect());
    }

    fn acts(&self, actions: Vec<Value>) {
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.told("/actions", &json!({"actions": [keyboard]}));
    }

    /// Goes on with the Tab key until it has the focus.
    #[track_caller]
    pub fn tab_to(&self, what: &What) {
        let has_focus = format!("{FIND} return find(arguments[0]).includes(document.activeElement)");
        let mut passed = Vec::new();
        for _ in 0..150 {
            self.sees(what);
            if self.ask_with(&has_focus, json!([what.0])) == true {
                return;
            }
            self.press("Tab");
            let name = format!("{FIND} return nameOf(document.activeElement).slice(0, 60)");
            passed.push(self.ask(&name));
        }
        self.fails(&format!("the focus never came to {what}, but to {passed:?}"));
    }

    /// The tab that is looked at.
    pub fn tab(&self) -> String {
        self.asked("/window").as_str().unwrap().to_owned()
    }

    /// All tabs.
    pub fn tabs(&self) -> Vec<String> {
        serde_json::from_value(self.asked("/window/handles")).unwrap()
    }

    /// Opens a page in another tab, and looks at that.
    #[track_caller]
    pub fn open_tab(&self, url: &str) -> String {
        let tab = self.told("/window/new", &json!({"type": "tab"}))["handle"].as_str().unwrap().to_owned();
        self.to_tab(&tab);
        self.open(url);
        tab
    }

    #[track_caller]
    pub fn to_tab(&self, tab: &str) {
        self.told("/window", &json!({ "handle": tab }));
    }

    /// As large as that, and light or dark.
    #[track_caller]
    pub fn looks(&self, width: u32, height: u32, is_dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size);
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            // What moves is looked at where it comes to rest.
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

    /// What is seen now, as a PNG file.
    #[track_caller]
    pub fn picture(&self, to: &Path) {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let picture = self.asked("/screenshot");
        std::fs::write(to, BASE64.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }

    /// What the browser has written since it was asked last.
    #[track_caller]
    pub fn log(&self) -> Vec<String> {
        let log = self.told("/se/log", &json!({"type": "browser"}));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Looks into a frame of the page, or at the page again.
    #[track_caller]
    pub fn to_frame(&self, number: Option<u32>) {
        self.told("/frame", &json!({ "id": number }));
    }

    /// What the browser itself complained of since it was asked last: faults of scripts, what a policy forbade.
    /// Answers that are no success are none of it.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.told("/se/log", &json!({"type": "browser"}));
        let of_pages = log.as_array().unwrap().iter().filter(|entry| entry["source"] != "network");
        let grave = of_pages.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        grave.map(|entry| format!("{}: {}", entry["source"], entry["message"])).collect()
    }

    /// Waits until it is there; the element, as WebDriver knows it.
    #[track_caller]
    fn found(&self, what: &What) -> String {
        self.eventually(&what.to_string(), || self.try_find(what))
    }

    fn try_find(&self, what: &What) -> Result<Option<String>, Fault> {
        let script = format!("{FIND} return find(arguments[0])[0] ?? null");
        let found = self.try_told("/execute/sync", &json!({"script": script, "args": [what.0]}))?;
        Ok(found[ELEMENT].as_str().map(str::to_owned))
    }

    /// Has something done to an element, as often as the page changes in the middle of it.
    #[track_caller]
    fn does(&self, what: &What, act: &str, how: &Value) {
        self.eventually(&format!("{what} to take a {act}"), || {
            let Some(element) = self.try_find(what)? else { return Ok(None) };
            self.try_told(&format!("/element/{element}/{act}"), how).map(Some)
        });
    }

    /// Waits until there is something.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, mut check: impl FnMut() -> Result<Option<T>, Fault>) -> T {
        let deadline = Instant::now() + SHOWN_WITHIN;
        let mut last = String::new();
        loop {
            match check() {
                Ok(Some(value)) => return value,
                Ok(None) => {}
                Err(fault) if fault.is_passing() => last = fault.to_string(),
                Err(fault) => self.fails(&format!("{what}: {fault}")),
            }
            if Instant::now() >= deadline {
                self.fails(&format!("waited in vain for {what}; {last}"));
            }
            // Nothing wakes us for what happens in a page.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails the test, and tells what there was to be seen.
    #[track_caller]
    fn fails(&self, why: &str) -> ! {
        let shown = self.try_told(
            "/execute/sync",
            &json!({"script": "return `${location.href}, the focus on ${document.activeElement?.outerHTML.slice(0, 200)}\n${document.body?.innerText.slice(0, 2000)}`", "args": []}),
        );
        let shown = shown.map_or_else(|fault| fault.to_string(), |shown| shown.as_str().unwrap_or_default().to_owned());
        let log = self.try_told("/se/log", &json!({"type": "browser"}));
        let log = log.map_or_else(|fault| fault.to_string(), |log| log.to_string());
        let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
        let picture = screenshots().join(format!("failed-{name}.png"));
        self.picture(&picture);
        panic!("{why}\n--- {} shows {shown}\n--- the browser's log: {log}", picture.display());
    }

    #[track_caller]
    fn told(&self, path: &str, what: &Value) -> Value {
        self.try_told(path, what).unwrap_or_else(|fault| panic!("{path}: {fault}"))
    }

    fn try_told(&self, path: &str, what: &Value) -> Result<Value, Fault> {
        self.tell("POST", &format!("/session/{}{path}", self.session), what)
    }

    #[track_caller]
    fn asked(&self, path: &str) -> Value {
        let answer = self.tell("GET", &format!("/session/{}{path}", self.session), &Value::Null);
        answer.unwrap_or_else(|fault| panic!("{path}: {fault}"))
    }

    fn tell(&self, method: &str, path: &str, what: &Value) -> Result<Value, Fault> {
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
        Err(Fault { error: error.to_owned(), message: value["message"].as_str().unwrap_or_default().to_owned() })
    }
}

/// Where pictures of pages go.
pub fn screenshots() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots")
}

/// A key as WebDriver names it.
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
        // The browser ends with its session, whatever the test came to.
        let end = || self.tell("DELETE", &format!("/session/{}", self.session), &json!({}));
        if !self.session.is_empty() && !matches!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(end)), Ok(Ok(_)))
        {
            eprintln!("the browser may be left: its driver did not answer");
        }
        // It may have ended already.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
