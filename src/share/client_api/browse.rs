//! Lists of the files that the node tracks, and of what the user can choose from the node's folders.

use serde::Serialize;
use serde_json::{Value, json};

use super::file_name;
use crate::net::http::{self, HandlerResult, HttpError, JsonFields, RouteCall, StatusCode, query_pairs, success};
use crate::share::files::TrackedFile;
use crate::share::folders::FolderEntry;
use crate::share::node::Node;
use crate::share::page::{LazyJsonList, PageRequest};
use crate::share::unix_time::unix_seconds;
use crate::share::wire::requests::FILES_MAX;

const ENTRIES_PER_PAGE_MAX: usize = 10_000;

#[derive(Serialize)]
struct BrowseResponse<'a> {
    success: bool,
    path: &'a str,
    entries: LazyJsonList<'a, FolderEntry>,
    total: usize,
    truncated: bool,
}

#[derive(Serialize)]
struct FilesResponse<'a> {
    success: bool,
    files: LazyJsonList<'a, TrackedFile>,
    total: usize,
}

/// A folder's content, or the list of shared folders. 404 both for what does not exist and for what may not be seen.
pub(super) fn browse(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request_up_to(call.request, ENTRIES_PER_PAGE_MAX)?;
    let pairs = query_pairs(&call.request.query).unwrap_or_default();
    let path = pairs.iter().find(|(name, path)| name == "path" && !path.is_empty()).map(|(_, path)| path.as_str());
    let _one = node.lock_listing();
    let hidden = || HttpError::new(StatusCode::NOT_FOUND, "path: there is no such folder to choose from");
    let shown = node.browse(path).ok_or_else(hidden)?;
    let entries = LazyJsonList(page.slice(&shown.entries), entry_json);
    let (path, total, truncated) = (&shown.path, shown.entries.len(), shown.is_truncated);
    Ok(http::json(StatusCode::OK, &BrowseResponse { success: true, path, entries, total, truncated }))
}

fn entry_json(entry: &FolderEntry) -> Value {
    json!({
        "name": entry.name,
        "path": entry.path,
        "kind": if entry.is_folder { "folder" } else { "file" },
        "size": entry.size,
        "modified": unix_seconds(entry.modified_ns),
    })
}

pub(super) fn files(node: &Node, call: &RouteCall<'_>, published_only: bool) -> HandlerResult {
    let page = PageRequest::from_request_up_to(call.request, FILES_MAX)?;
    let _one = node.lock_listing();
    let found = node.files_page(published_only, &page)?;
    let files = LazyJsonList(&found.files, TrackedFile::to_json);
    Ok(http::json(StatusCode::OK, &FilesResponse { success: true, files, total: found.total }))
}

pub(super) fn remove_file(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let name = file_name(&JsonFields::from_body(call.request)?, "fname")?;
    node.remove(&name)?;
    Ok(success(json!({})))
}
