//! Which nodes run here, and which of them a command is for.
//!
//! A node leaves a note of where its client API is, for as long as it runs. Notes may be of nodes that were killed, and
//! ports may have gone to other nodes meanwhile: so whoever is found is asked who it is before anything is told to it.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::{ready, settings};
use crate::model::Name;
use crate::share::api_client::ApiClient;
use crate::storage::files::create_private_dir;

/// How long a node that runs on this machine may take to say who it is.
const ASKED_FOR: Duration = Duration::from_secs(5);
/// How long it may take to be reached.
const REACHED_WITHIN: Duration = Duration::from_millis(500);

/// A node that has said who it is.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Where its client API is.
    pub at: SocketAddr,
    /// The certificate that it must show, where it speaks TLS.
    pub cert: Option<String>,
    /// Whom it is named after.
    pub name: Name,
    /// Its server, as `host:port`.
    pub server: String,
}

/// The note of a node that runs; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            log::debug!("{}: {error}", self.0.display());
        }
    }
}

/// Leaves a note of a node. Those of nodes that run no more go.
///
/// # Errors
/// It cannot be written: commands find the node by `--api-port` alone.
pub(super) fn leave_note(name: &Name, at: SocketAddr, cert: Option<&str>) -> anyhow::Result<Note> {
    let folder = folder()?;
    create_private_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (path, note) in notes(&folder) {
        let is_gone =
            note.is_none_or(|note| note.at == at || TcpStream::connect_timeout(&note.at, REACHED_WITHIN).is_err());
        if is_gone && let Err(error) = std::fs::remove_file(&path) {
            log::debug!("{}: {error}", path.display());
        }
    }
    let path = folder.join(format!("{}.json", settings::file_name(&format!("{}-", at.port()), name.as_str())));
    ready::write(&path, &json!({"name": name, "client_api": at.to_string(), "cert_sha256": cert}))?;
    Ok(Note(path))
}

/// The node that a command is for: at the port that was named, of the name that was given, or the only one that runs
/// here.
///
/// # Errors
/// One line: nobody, somebody else, or several.
pub(super) fn find(
    port: Option<SocketAddr>,
    name: Option<&Name>,
    cert: Option<&str>,
    usual: SocketAddr,
) -> anyhow::Result<Found> {
    if let Some(at) = port {
        let found = ask(at, cert)?;
        if let Some(name) = name.filter(|name| **name != found.name) {
            bail!(
                "the node at {at} is {}'s, not {name}'s: say --name {} or another --api-port",
                found.name,
                found.name
            );
        }
        return Ok(found);
    }
    let noted = folder().map(|folder| notes(&folder)).unwrap_or_default().into_iter().filter_map(|(_, note)| note);
    let mut running: Vec<Found> = Vec::new();
    // One of another user of this machine, or of an earlier build, has left no note.
    for note in noted.chain([Noted { at: usual, cert: cert.map(str::to_owned) }]) {
        if running.iter().any(|known| known.at == note.at)
            || TcpStream::connect_timeout(&note.at, REACHED_WITHIN).is_err()
        {
            continue;
        }
        // What answers otherwise is no node, or none that could be used.
        if let Ok(found) = ask(note.at, cert.or(note.cert.as_deref())) {
            running.push(found);
        }
    }
    let all =
        |running: &[Found]| running.iter().map(|it| format!("{} ({})", it.name, it.at)).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        let (mut named, others): (Vec<Found>, Vec<Found>) = running.into_iter().partition(|found| found.name == *name);
        return match (named.pop(), named.is_empty(), others.is_empty()) {
            (Some(found), true, _) => Ok(found),
            (Some(_), false, _) => bail!("several nodes of {name} run here: say which with --api-port"),
            (None, _, true) => bail!("no node of {name} runs here: `p2s2 share --name {name}` starts one"),
            (None, _, false) => {
                bail!("no node of {name} runs here, but of {}: `p2s2 share --name {name}` starts one", all(&others))
            }
        };
    }
    match running.len() {
        0 => bail!("no node runs here: `p2s2 share --name NAME` starts one"),
        1 => Ok(running.remove(0)),
        _ => bail!("several nodes run here: {}; say which with --name", all(&running)),
    }
}

/// Asks who is there. No token is shown for that.
fn ask(at: SocketAddr, cert: Option<&str>) -> anyhow::Result<Found> {
    let api = ApiClient::new(&at.ip().to_string(), at.port(), cert, ASKED_FOR);
    let answer = api.get("/api/client/node", None).with_context(|| {
        format!("no node of yours runs at {at}: `p2s2 share --name NAME` starts one, --api-port says where it is")
    })?;
    let text = |field: &str| answer.body[field].as_str().filter(|_| answer.is_ok()).map(str::to_owned);
    let name = text("name").and_then(|name| Name::kept(&name).ok());
    let (Some(name), Some(server)) = (name, text("server")) else {
        bail!("what answers at {at} is no node, or one of an earlier build: start it again");
    };
    Ok(Found { at, cert: cert.map(str::to_owned), name, server })
}

struct Noted {
    at: SocketAddr,
    cert: Option<String>,
}

/// All notes; none where it cannot be read.
fn notes(folder: &Path) -> Vec<(PathBuf, Option<Noted>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|it| it == "json")).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn read(path: &Path) -> Option<Noted> {
    let note: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let at = note["client_api"].as_str()?.parse().ok()?;
    Some(Noted { at, cert: note["cert_sha256"].as_str().map(str::to_owned) })
}

/// Where notes are: what is true of this machine and this user, whatever configuration is used.
fn folder() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .or_else(|| variable("LOCALAPPDATA"))
        .context("where is your home folder? Set HOME")?;
    Ok(state.join("p2s2").join("nodes"))
}
