//! Files and hosts of the network, and fetches from it.

use serde_json::json;

use super::{file_name, host_name, text_if_given, to_field_http_error};
use crate::model::Name;
use crate::net::http::{self, HandlerResult, HttpError, JsonFields, RouteCall, StatusCode, success};
use crate::share::node::{Node, NodeError};
use crate::share::page::{PAGE_MAX, PageRequest};
use crate::share::transfer::FetchAction;
use crate::share::wire::PingRequest;

pub(super) fn network_files(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, PAGE_MAX)?;
    let mut network = node.network()?;
    if !network.has_match(&page.query) {
        // Before reporting no results, refresh: the file may have been published a moment ago.
        network = node.refreshed_network()?;
    }
    let (total, found) = network.search(&page.query, page.offset, page.limit);
    Ok(success(json!({"files": found.iter().map(|file| file.json()).collect::<Vec<_>>(), "total": total})))
}

pub(super) fn peers(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, PAGE_MAX)?;
    let network = node.network()?;
    Ok(success(json!({"peers": page.slice(&network.hosts), "total": network.hosts.len()})))
}

pub(super) fn discover(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let hostname = call.param(0);
    let (files, addr) = node.discover(&host_name(hostname)?)?;
    Ok(success(json!({"hostname": hostname, "files": files, "addr": addr})))
}

pub(super) fn ping(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let hostname = call.param(0);
    let answer = node.ask(&PingRequest { hostname: host_name(hostname)?, state: None })?;
    Ok(success(json!({"hostname": hostname, "status": answer.status})))
}

pub(super) fn fetch(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let fields = JsonFields::from_body(call.request)?;
    let name = file_name(&fields, "fname")?;
    let save_path = text_if_given(&fields, "save_path")?;
    let owner = text_if_given(&fields, "owner_hostname")?;
    let owner = owner.map(|owner| Name::from_stored(owner).map_err(|wrong| format!("owner_hostname: {wrong}")));
    let owner = owner.transpose().map_err(HttpError::bad_request)?;
    let begun = match node.fetch(&name, owner.as_ref(), save_path) {
        // The client must say whose it wants.
        Err(ref error @ NodeError::SeveralOwners(ref owners)) => {
            let body = json!({"success": false, "error": error.to_string(), "owners": owners});
            return Ok(http::json(StatusCode::CONFLICT, &body));
        }
        begun => begun.map_err(|error| to_field_http_error("save_path", error))?,
    };
    Ok(success(json!({
        "fetch_id": begun.id, "file_name": begun.file_name, "total_size": begun.total_size,
        "save_path": begun.save_path, "peer_hostname": begun.peer_hostname, "peer_ip": begun.peer_ip,
    })))
}

pub(super) fn fetches(node: &Node, _: &RouteCall<'_>) -> HandlerResult {
    Ok(success(json!({ "fetches": node.all_fetches() })))
}

pub(super) fn fetch_progress(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let progress = node.fetch_progress(call.param(0))?;
    Ok(success(json!({ "progress": progress })))
}

pub(super) fn act_on_fetch(node: &Node, call: &RouteCall<'_>, action: FetchAction) -> HandlerResult {
    let progress = node.act_on_fetch(call.param(0), action)?;
    Ok(success(json!({ "progress": progress })))
}
