//! What the network has, and what is fetched from it.

use serde_json::{Map, Value, json};

use super::{file_name, host_name, refusal, refusal_of};
use crate::model::Name;
use crate::net::http::{self, Answered, Call, Fields, Refusal, Response, StatusCode, success};
use crate::share::node::fetches::Wish;
use crate::share::node::{Node, NodeError};
use crate::share::page::{PAGE_MAX, Page};

pub(super) fn network_files(node: &Node, call: &Call<'_>) -> Answered {
    let page = Page::of(call.request, PAGE_MAX)?;
    let mut network = node.network().map_err(|error| refusal(&error))?;
    if !network.finds(&page.sought) {
        // That there is nothing is said only of what is known now: it may have been published a moment ago.
        network = node.network_now().map_err(|error| refusal(&error))?;
    }
    let (total, found) = network.search(&page.sought, page.offset, page.limit);
    Ok(success(json!({"files": found.iter().map(|file| file.json()).collect::<Vec<_>>(), "total": total})))
}

pub(super) fn peers(node: &Node, call: &Call<'_>) -> Answered {
    let page = Page::of(call.request, PAGE_MAX)?;
    let network = node.network().map_err(|error| refusal(&error))?;
    let peers: Vec<Value> = page.part(&network.hosts).iter().map(|host| host.json()).collect();
    Ok(success(json!({"peers": peers, "total": network.hosts.len()})))
}

pub(super) fn discover(node: &Node, call: &Call<'_>) -> Answered {
    let hostname = call.param(0);
    let found = node.discover(&host_name(hostname)?).map_err(|error| refusal(&error))?;
    let files: Map<String, Value> = found.files.iter().map(|(name, entry)| (name.to_string(), json!(entry))).collect();
    Ok(success(json!({"hostname": hostname, "files": files, "addr": [found.addr.0, found.addr.1]})))
}

pub(super) fn ping(node: &Node, call: &Call<'_>) -> Answered {
    let hostname = call.param(0);
    let is_there = node.ping(&host_name(hostname)?).map_err(|error| refusal(&error))?;
    Ok(success(json!({"hostname": hostname, "status": if is_there { "ALIVE" } else { "DEAD" }})))
}

pub(super) fn fetch(node: &Node, call: &Call<'_>) -> Answered {
    let fields = Fields::of(call.request)?;
    let name = file_name(&fields, "fname")?;
    let save_path = fields.get("save_path").map(|_| fields.any_text("save_path")).transpose()?;
    let owner = fields.get("owner_hostname").map(|_| fields.any_text("owner_hostname")).transpose()?;
    let owner = owner.map(|owner| Name::kept(owner).map_err(|wrong| format!("owner_hostname: {wrong}")));
    let owner = owner.transpose().map_err(Refusal::bad)?;
    let begun = match node.fetches().begin(&name, owner.as_ref(), save_path) {
        Err(error @ NodeError::Owners(_)) => return Ok(several_owners(&error)),
        begun => begun.map_err(|error| refusal_of("save_path", &error))?,
    };
    Ok(success(json!({
        "fetch_id": begun.id, "file_name": begun.file_name, "total_size": begun.total_size,
        "save_path": begun.save_path, "peer_hostname": begun.peer_hostname, "peer_ip": begun.peer_ip,
    })))
}

/// Whose file is wanted is to be said.
fn several_owners(error: &NodeError) -> Response {
    let owners = if let NodeError::Owners(owners) = error { &owners[..] } else { &[] };
    let owners: Vec<Value> = owners
        .iter()
        .map(|it| json!({"owner_hostname": it.hostname, "size": it.size, "modified": it.modified}))
        .collect();
    http::json(StatusCode::CONFLICT, &json!({"success": false, "error": error.to_string(), "owners": owners}))
}

pub(super) fn fetches(node: &Node, _: &Call<'_>) -> Answered {
    Ok(success(json!({ "fetches": node.fetches().all() })))
}

pub(super) fn fetch_progress(node: &Node, call: &Call<'_>) -> Answered {
    let progress = node.fetches().progress(call.param(0)).map_err(|error| refusal(&error))?;
    Ok(success(json!({ "progress": progress })))
}

pub(super) fn pause(node: &Node, call: &Call<'_>) -> Answered {
    act(node, call, Wish::Pause)
}

pub(super) fn resume(node: &Node, call: &Call<'_>) -> Answered {
    act(node, call, Wish::Resume)
}

pub(super) fn cancel(node: &Node, call: &Call<'_>) -> Answered {
    act(node, call, Wish::Cancel)
}

fn act(node: &Node, call: &Call<'_>, wish: Wish) -> Answered {
    let progress = node.fetches().act(call.param(0), wish).map_err(|error| refusal(&error))?;
    Ok(success(json!({ "progress": progress })))
}
