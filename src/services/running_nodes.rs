//! Finds the node that a command is for among those that run on this machine.
//!
//! A running node has a record file with the address of its client API. Records may be left over from killed nodes, and
//! ports may since belong to other nodes; so each candidate is asked for its name before anything else is sent to it.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{paths, ready_file};
use crate::model::Name;
use crate::share::api_client::ApiClient;
use crate::storage::files::create_private_dir;

const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct RunningNode {
    pub api_addr: SocketAddr,
    /// The certificate that it must show, if it uses TLS.
    pub cert: Option<String>,
    pub name: Name,
    /// Its server, as `host:port`.
    pub server: String,
}

/// The record file of a running node. It is removed when this is dropped.
#[derive(Debug)]
pub struct NodeRecordFile(PathBuf);

impl Drop for NodeRecordFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            log::debug!("{}: {error}", self.0.display());
        }
    }
}

/// Also removes the records of nodes that no longer run. Without a record, commands find the node by `--api-port` only.
pub fn write_node_record(name: &Name, api_addr: SocketAddr, cert: Option<&str>) -> anyhow::Result<NodeRecordFile> {
    let folder = records_folder()?;
    create_private_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (path, record) in read_node_records(&folder) {
        let is_gone = record.is_none_or(|record| {
            record.api_addr == api_addr || TcpStream::connect_timeout(&record.api_addr, CONNECT_TIMEOUT).is_err()
        });
        if is_gone && let Err(error) = std::fs::remove_file(&path) {
            log::debug!("{}: {error}", path.display());
        }
    }
    let path = folder.join(format!("{}.json", paths::safe_file_name(&format!("{}-", api_addr.port()), name.as_str())));
    ready_file::write(&path, &json!({"name": name, "client_api": api_addr.to_string(), "cert_sha256": cert}))?;
    Ok(NodeRecordFile(path))
}

/// Which node a command is for.
#[derive(Debug)]
pub struct NodeQuery<'a> {
    /// The address given with `--api-port`.
    pub addr: Option<SocketAddr>,
    pub name: Option<&'a Name>,
    pub cert: Option<&'a str>,
    /// For a node that has no record file.
    pub default_addr: SocketAddr,
}

/// Finds the node that a command is for: the one at the given address, the one of the given name, or the only one that
/// runs here.
pub fn find(query: &NodeQuery<'_>) -> anyhow::Result<RunningNode> {
    let NodeQuery { addr, name, cert, default_addr } = *query;
    if let Some(api_addr) = addr {
        let found = identify(api_addr, cert)?;
        if let Some(name) = name.filter(|name| **name != found.name) {
            bail!(
                "the node at {api_addr} is {}'s, not {name}'s: say --name {} or another --api-port",
                found.name,
                found.name
            );
        }
        return Ok(found);
    }
    let records = records_folder()
        .map(|folder| read_node_records(&folder))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(_, record)| record);
    let mut running: Vec<RunningNode> = Vec::new();
    // Nodes of other users of this machine and of earlier versions have no record here.
    for record in records.chain([NodeRecord { api_addr: default_addr, cert: cert.map(str::to_owned) }]) {
        if running.iter().any(|known| known.api_addr == record.api_addr)
            || TcpStream::connect_timeout(&record.api_addr, CONNECT_TIMEOUT).is_err()
        {
            continue;
        }
        // A candidate that fails to identify itself is no usable node.
        if let Ok(found) = identify(record.api_addr, cert.or(record.cert.as_deref())) {
            running.push(found);
        }
    }
    let all = |running: &[RunningNode]| {
        running.iter().map(|it| format!("{} ({})", it.name, it.api_addr)).collect::<Vec<_>>().join(", ")
    };
    if let Some(name) = name {
        let (mut named, others): (Vec<RunningNode>, Vec<RunningNode>) =
            running.into_iter().partition(|found| found.name == *name);
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

/// Asks for the node's name and server. No token is sent.
fn identify(api_addr: SocketAddr, cert: Option<&str>) -> anyhow::Result<RunningNode> {
    let api = ApiClient::new(&api_addr.ip().to_string(), api_addr.port(), cert, IDENTIFY_TIMEOUT);
    let response = api.get("/api/client/node", None).with_context(|| {
        format!("no node of yours runs at {api_addr}: `p2s2 share --name NAME` starts one, --api-port says where it is")
    })?;
    let text = |field: &str| response.body[field].as_str().filter(|_| response.is_ok()).map(str::to_owned);
    let name = text("name").and_then(|name| Name::from_stored(&name).ok());
    let (Some(name), Some(server)) = (name, text("server")) else {
        bail!("what answers at {api_addr} is no node, or one of an earlier build: start it again");
    };
    Ok(RunningNode { api_addr, cert: cert.map(str::to_owned), name, server })
}

struct NodeRecord {
    api_addr: SocketAddr,
    cert: Option<String>,
}

/// All record files with their contents; empty if the folder cannot be read.
fn read_node_records(folder: &Path) -> Vec<(PathBuf, Option<NodeRecord>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|it| it == "json")).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read_record(&path))).collect()
}

fn read_record(path: &Path) -> Option<NodeRecord> {
    let record: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let api_addr = record["client_api"].as_str()?.parse().ok()?;
    Some(NodeRecord { api_addr, cert: record["cert_sha256"].as_str().map(str::to_owned) })
}

/// The folder of record files. They belong to this machine and user, whatever configuration is used.
fn records_folder() -> anyhow::Result<PathBuf> {
    let state = paths::user_folder("XDG_STATE_HOME", ".local/state", "LOCALAPPDATA");
    let state = state.context("where is your home folder? Set HOME")?;
    Ok(state.join("p2s2").join("nodes"))
}
