//! The temporary folder of the story, and how its processes are started in it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::process::StoryProcess;
use super::{STEP_TIMEOUT, ServerAddresses};
use crate::cli::prompt::PASSWORD_VARIABLE;
use crate::model::Token;
use crate::storage::files;

/// A temporary folder for the story's processes, removed at the end.
pub(super) struct StoryEnvironment {
    pub(super) dir: PathBuf,
    password: String,
}

impl StoryEnvironment {
    pub(super) fn create(suffix: &str) -> anyhow::Result<StoryEnvironment> {
        // Absolute, because the processes run in this folder.
        let temporary =
            std::path::absolute(std::env::temp_dir()).context("where is the folder for temporary files?")?;
        let dir = temporary.join(format!("p2s2-story-{}-{suffix}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(StoryEnvironment { dir, password: Token::random().reveal().to_owned() })
    }

    /// A server with every service that the story needs.
    pub(super) fn start_server(&self, name: &str) -> anyhow::Result<(StoryProcess, ServerAddresses)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("server")?;
        command.args(["--bind", "127.0.0.1", "--services", "trade,shop,share"]);
        command.args(["--trade-port", "0", "--product-port", "0"]);
        // Other clients must not discover it.
        command.arg("--no-announce");
        command.args(["--registry-port", "0", "--api-port", "0"]);
        command.args(["--customer-port", "0", "--seller-port", "0", "--buyer-port", "0", "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut server = StoryProcess::start(name, command)?;
        server.is_server = true;
        server.await_line("ready")?;
        let ready = wait_for_file(&ready)?;
        let addr = |field: &str| -> anyhow::Result<SocketAddr> {
            let addr = ready[field].as_str().with_context(|| format!("the server's ready file names no {field}"))?;
            Ok(addr.parse()?)
        };
        let addresses = ServerAddresses {
            trade: addr("trade_udp")?,
            seller: addr("seller")?,
            buyer: addr("buyer")?,
            registry: addr("registry")?,
            api: addr("server_api")?,
        };
        Ok((server, addresses))
    }

    pub(super) fn start_client(
        &self,
        role: &str,
        name: &str,
        server: SocketAddr,
        suffix: &str,
    ) -> anyhow::Result<StoryProcess> {
        let name = format!("{name}-{suffix}");
        let mut command = self.program(role)?;
        command.args(["--server", &server.to_string()]).env(PASSWORD_VARIABLE, Token::random().reveal());
        if role == "buyer" {
            let wallet = self.write_wallet(&name, "4111111111111111", "7 Mill Road, Oakfield")?;
            command.arg("--wallet").arg(wallet);
        }
        let mut client = StoryProcess::start(&name, command)?;
        client.send_line(&format!("create-account {name}"))?;
        client.await_line("has an account")?;
        client.send_line(&format!("login {name}"))?;
        client.await_line("logged in as")?;
        Ok(client)
    }

    fn write_wallet(&self, name: &str, card: &str, address: &str) -> anyhow::Result<PathBuf> {
        let wallet = self.dir.join(format!("{name}.wallet.json"));
        write_private(&wallet, &json!({"cc_number": card, "cc_exp": "12/39", "address": address}))?;
        Ok(wallet)
    }

    pub(super) fn start_peer(
        &self,
        name: &str,
        server: (SocketAddr, bool),
        card: &str,
        address: &str,
    ) -> anyhow::Result<StoryProcess> {
        let (server, plaintext) = server;
        let wallet = self.write_wallet(name, card, address)?;
        let mut command = self.program("peer")?;
        command.args(if plaintext { &["--plaintext"][..] } else { &[] });
        command.args(["--name", name, "--bind", "127.0.0.1", "--server", &server.to_string(), "--wallet"]).arg(&wallet);
        command.arg("--data-dir").arg(self.dir.join(name));
        let mut peer = StoryProcess::start(name, command)?;
        peer.await_line("registered as")?;
        Ok(peer)
    }

    /// A LAN peer on loopback, and its address; `known` is a peer to contact where broadcasts do not work.
    pub(super) fn start_lan_peer(
        &self,
        name: &str,
        port: u16,
        known: Option<SocketAddr>,
    ) -> anyhow::Result<(StoryProcess, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("lan")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--discovery-port", &port.to_string(), "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        if let Some(known) = known {
            command.args(["--peer", &known.to_string()]);
        }
        let mut peer = StoryProcess::start(name, command)?;
        peer.await_line("HELP lists the commands")?;
        let addr = wait_for_file(&ready)?["lan"].as_str().context("the ready file names no lan")?.parse()?;
        Ok((peer, addr))
    }

    pub(super) fn start_node(&self, name: &str, server: ServerAddresses) -> anyhow::Result<(StoryProcess, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("share")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--port", "0", "--api-port", "0"]);
        command.args(["--server", &server.registry.ip().to_string()]);
        command.args(["--registry-port", &server.registry.port().to_string()]);
        command.args(["--server-api-port", &server.api.port().to_string(), "--folder"]).arg(&self.dir);
        command.arg("--data-dir").arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut node = StoryProcess::start(name, command)?;
        node.is_server = true;
        node.await_line("ready")?;
        let addr =
            wait_for_file(&ready)?["client_api"].as_str().context("the ready file names no client_api")?.parse()?;
        Ok((node, addr))
    }

    pub(super) fn run_node_command(&self, name: &str, api: SocketAddr, words: &[&str]) -> anyhow::Result<()> {
        say!("{name:>12} > p2s2 share {}", words.join(" "));
        let mut command = self.program("share")?;
        command.args(words).args(["--api-port", &api.port().to_string()]);
        // The token goes to the temporary folder, not to the user's own configuration.
        command.env("XDG_CONFIG_HOME", self.dir.join(format!("{name}-config"))).env(PASSWORD_VARIABLE, &self.password);
        StoryProcess::start(name, command)?.finish()
    }

    /// This program, without any settings from the environment or from `.env`.
    fn program(&self, command: &str) -> anyhow::Result<Command> {
        let mut program = Command::new(std::env::current_exe().context("where is this program?")?);
        program.arg(command).current_dir(&self.dir);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("P2S2_") {
                program.env_remove(name);
            }
        }
        Ok(program)
    }
}

impl Drop for StoryEnvironment {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn wait_for_file(path: &Path) -> anyhow::Result<Value> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return Ok(serde_json::from_str(&text)?);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn write_private(path: &Path, value: &Value) -> anyhow::Result<()> {
    let file = files::private_file_options().write(true).create_new(true).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(writeln!(file, "{value}")?)
}
