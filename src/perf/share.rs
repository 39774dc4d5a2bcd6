//! A registry and nodes that share files, as processes of our own: what the scenarios `transfer` and
//! `duplicates` stand on. Nodes are driven as a page drives them, over their client API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::child::{self, Server, WorkDir};
use super::run::Run;
use super::stop::Stop;
use crate::model::Token;
use crate::share::api_client::ApiClient;

/// A call takes no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a file may take to be published with its pieces, or fetched.
const DONE_WITHIN: Duration = Duration::from_secs(300);
/// Between two looks at a fetch: what it adds to the time of a small one.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// A server and its nodes.
pub struct Net {
    /// Each with an account of its own, signed in and registered.
    pub nodes: Vec<Node>,
    /// The registry and the accounts.
    pub server: Server,
    /// Where it is.
    pub registry: SocketAddr,
    /// What nodes may name files in.
    pub dir: WorkDir,
}

/// One node.
pub struct Node {
    /// Its process, in a list because that is how usage is asked for.
    pub process: [Server; 1],
    /// The name of its account.
    pub name: String,
    api: ApiClient,
    token: Token,
}

impl Net {
    /// So many nodes.
    ///
    /// # Errors
    /// A process that does not start, or refuses.
    pub fn start(run: &Run<'_>, nodes: usize) -> anyhow::Result<Net> {
        run.say("starting the server and its nodes");
        let dir = WorkDir::create(&run.args.out)?;
        let program = child::sibling("p2s2")?;
        let words = |dir: &Path| {
            let state = dir.join("state").display().to_string();
            let ports = ["--registry-port", "0", "--api-port", "0"];
            [&["server", "--services", "share", "--data-dir", &state], &ports[..]]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let server = Server::start("p2s2 server", &program, &run.args.out, words, run.stop)?;
        let registry: SocketAddr = server.said("registry: tcp ")?;
        let server_api: SocketAddr = server.said("server-api: http ")?;
        let node = |nth| Node::start(run, &program, dir.path(), registry, server_api, nth);
        let nodes = (0..nodes).map(node).collect::<anyhow::Result<_>>()?;
        Ok(Net { nodes, server, registry, dir })
    }
}

impl Node {
    fn start(
        run: &Run<'_>,
        program: &Path,
        folder: &Path,
        registry: SocketAddr,
        server_api: SocketAddr,
        nth: usize,
    ) -> anyhow::Result<Node> {
        let name = format!("node-{nth}");
        let words = |dir: &Path| {
            let text = |path: PathBuf| path.display().to_string();
            let (registry_port, api_port) = (registry.port().to_string(), server_api.port().to_string());
            [
                ("--name", name.clone()),
                ("--server", registry.ip().to_string()),
                ("--registry-port", registry_port),
                ("--server-api-port", api_port),
                ("--bind", "127.0.0.1".to_owned()),
                ("--api-port", "0".to_owned()),
                ("--data-dir", text(dir.join("state"))),
                ("--repo", text(dir.join("repo"))),
                ("--folder", text(folder.to_owned())),
            ]
            .into_iter()
            .fold(vec!["share".to_owned()], |words, (flag, value)| [words, vec![flag.to_owned(), value]].concat())
        };
        let process = Server::start("p2s2 share", program, &run.args.out, words, run.stop)?;
        let api: String = process.said("client api: http://")?;
        let api: SocketAddr = api.trim_end_matches("/api/client").parse().context("the node names no client API")?;
        let api = ApiClient::new(&api.ip().to_string(), api.port(), None, ANSWER_WITHIN);
        let account = json!({"username": name, "password": "correct horse battery", "display_name": name});
        let signed_in = api.post("/api/client/register", None, &account)?;
        ensure!(signed_in.is_ok(), "{name} cannot sign in: {}", signed_in.error());
        let token = Token::from_text(signed_in.body["token"].as_str().context("signing in gave no token")?);
        let node = Node { process: [process], name, api, token };
        node.post("init", &json!({"username": node.name}))?;
        Ok(node)
    }

    /// Asks the client API to do something.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn post(&self, route: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.api.post(&format!("/api/client/{route}"), Some(&self.token), body)?;
        ensure!(answer.is_ok(), "{}: {route} was refused: {}", self.name, answer.error());
        Ok(answer.body)
    }

    /// Asks the client API for something.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn get(&self, route: &str) -> anyhow::Result<Value> {
        let answer = self.api.get(&format!("/api/client/{route}"), Some(&self.token))?;
        ensure!(answer.is_ok(), "{}: {route} was refused: {}", self.name, answer.error());
        Ok(answer.body)
    }

    /// Publishes a file, and waits until others can see its pieces.
    ///
    /// # Errors
    /// A refusal, or it takes too long.
    pub fn publish(&self, file: &Path, fname: &str, stop: &Stop) -> anyhow::Result<()> {
        self.post("publish", &json!({"fname": fname, "local_path": file}))?;
        let deadline = Instant::now() + DONE_WITHIN;
        let own = format!("discover/{}", self.name);
        while !stop.is_asked() {
            let shown = self.get(&own)?;
            if shown["files"][fname]["pieces_root"].is_string() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{fname} has no pieces after {} s", DONE_WITHIN.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fetches a file and waits for its end; how long it took. The file is at `save_path` then.
    ///
    /// # Errors
    /// A refusal; a fetch that fails or takes too long.
    pub fn fetch(&self, fname: &str, save_path: &Path, stop: &Stop) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let begun = self.post("fetch", &json!({"fname": fname, "save_path": save_path}))?;
        let id = begun["fetch_id"].as_str().context("a fetch has no id")?;
        let route = format!("fetch-progress/{id}");
        while !stop.is_asked() {
            let progress = &self.get(&route)?["progress"];
            match progress["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => anyhow::bail!("{fname} was not fetched: {progress}"),
                _ => ensure!(started.elapsed() < DONE_WITHIN, "{fname} is not there in time: {progress}"),
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(started.elapsed())
    }
}
