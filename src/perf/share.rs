//! A registry and file-sharing nodes as processes, for the scenarios `transfer` and `duplicates`. Nodes are controlled
//! through their client API, as a page does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::child::{self, ServerProcess, WorkDir};
use super::run::ScenarioRun;
use super::stop::StopFlag;
use crate::model::Token;
use crate::share::api_client::ApiClient;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long publishing a file with its pieces, or fetching it, may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);
/// Polling interval of a fetch. It adds to the time of small fetches.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

pub struct ShareNetwork {
    /// Each is signed in to an account of its own and registered.
    pub nodes: Vec<ShareNode>,
    /// The registry and the accounts: it ends when this is dropped.
    _server: ServerProcess,
    pub registry: SocketAddr,
    /// The folder from which nodes may share files.
    pub dir: WorkDir,
}

pub struct ShareNode {
    /// A list, because usage is measured for lists of processes.
    pub process: [ServerProcess; 1],
    pub name: String,
    api: ApiClient,
    token: Token,
}

impl ShareNetwork {
    pub fn start(run: &ScenarioRun<'_>, nodes: usize) -> anyhow::Result<ShareNetwork> {
        run.set_status("starting the server and its nodes");
        let dir = WorkDir::create(&run.args.out)?;
        let program = child::sibling_program("p2s2")?;
        let args = ["--services", "share", "--registry-port", "0"];
        let server = ServerProcess::start_p2s2(&args, &run.args.out, run.stop)?;
        let registry: SocketAddr = server.announced("registry: tcp ")?;
        let server_api: SocketAddr = server.announced("server-api: http ")?;
        let node = |nth| ShareNode::start(run, &program, dir.path(), registry, server_api, nth);
        let nodes = (0..nodes).map(node).collect::<anyhow::Result<_>>()?;
        Ok(ShareNetwork { nodes, _server: server, registry, dir })
    }
}

impl ShareNode {
    fn start(
        run: &ScenarioRun<'_>,
        program: &Path,
        folder: &Path,
        registry: SocketAddr,
        server_api: SocketAddr,
        nth: usize,
    ) -> anyhow::Result<ShareNode> {
        let name = format!("node-{nth}");
        let program_args = |dir: &Path| {
            let text = |path: PathBuf| path.display().to_string();
            let (registry_port, api_port) = (registry.port().to_string(), server_api.port().to_string());
            let flags = [
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
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
            ["share".to_owned()].into_iter().chain(flags).collect()
        };
        let process = ServerProcess::start("p2s2 share", program, &run.args.out, program_args, run.stop)?;
        let api: String = process.announced("client api: http://")?;
        let api: SocketAddr = api.trim_end_matches("/api/client").parse().context("the node names no client API")?;
        let api = ApiClient::new(&api.ip().to_string(), api.port(), None, RESPONSE_TIMEOUT);
        let account = json!({"username": name, "password": "correct horse battery", "display_name": name});
        let signed_in = api.post("/api/client/register", None, &account)?;
        ensure!(signed_in.is_ok(), "{name} cannot sign in: {}", signed_in.error());
        let token = Token::from_text(signed_in.body["token"].as_str().context("signing in gave no token")?);
        let node = ShareNode { process: [process], name, api, token };
        node.post("init", &json!({"username": node.name}))?;
        Ok(node)
    }

    pub fn post(&self, route: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self.api.post(&format!("/api/client/{route}"), Some(&self.token), body)?;
        ensure!(response.is_ok(), "{}: {route} was refused: {}", self.name, response.error());
        Ok(response.body)
    }

    pub fn get(&self, route: &str) -> anyhow::Result<Value> {
        let response = self.api.get(&format!("/api/client/{route}"), Some(&self.token))?;
        ensure!(response.is_ok(), "{}: {route} was refused: {}", self.name, response.error());
        Ok(response.body)
    }

    /// Publishes a file and waits until others can see its pieces.
    pub fn publish(&self, file: &Path, fname: &str, stop: &StopFlag) -> anyhow::Result<()> {
        self.post("publish", &json!({"fname": fname, "local_path": file}))?;
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        let own = format!("discover/{}", self.name);
        while !stop.is_set() {
            let shown = self.get(&own)?;
            if shown["files"][fname]["pieces_root"].is_string() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{fname} has no pieces after {} s", TRANSFER_TIMEOUT.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fetches a file to `save_path`; returns the time that it took.
    pub fn fetch(&self, fname: &str, save_path: &Path, stop: &StopFlag) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let begun = self.post("fetch", &json!({"fname": fname, "save_path": save_path}))?;
        let id = begun["fetch_id"].as_str().context("a fetch has no id")?;
        let route = format!("fetch-progress/{id}");
        while !stop.is_set() {
            let progress = &self.get(&route)?["progress"];
            match progress["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => anyhow::bail!("{fname} was not fetched: {progress}"),
                _ => ensure!(started.elapsed() < TRANSFER_TIMEOUT, "{fname} is not there in time: {progress}"),
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(started.elapsed())
    }
}
