//! What a user may choose from the node's own folders, and what is tracked of it.

use serde::Serialize;
use serde_json::{Value, json};

use super::{file_name, refusal};
use crate::net::http::{self, Answered, Call, Fields, Refusal, StatusCode, query_pairs, success};
use crate::share::files::{FILES_MAX, Tracked, seconds};
use crate::share::folders::Entry;
use crate::share::node::Node;
use crate::share::page::{Each, Page};

/// Entries of a folder that are shown at a time.
const ENTRIES_MAX: usize = 10_000;

/// The answer of `browse`.
#[derive(Serialize)]
struct Browsed<'a> {
    success: bool,
    path: &'a str,
    entries: Each<'a, Entry>,
    total: usize,
    truncated: bool,
}

/// The answer of `local-files` and `published-files`.
#[derive(Serialize)]
struct Files<'a> {
    success: bool,
    files: Each<'a, Tracked>,
    total: usize,
}

/// GET `browse`: what lies in a folder, or which folders there are.
///
/// # Errors
/// 404, the same for all that may not be seen or is not there.
pub(super) fn browse(node: &Node, call: &Call<'_>) -> Answered {
    let page = Page::up_to(call.request, ENTRIES_MAX)?;
    let pairs = query_pairs(&call.request.query).unwrap_or_default();
    let path = pairs.iter().find(|(name, path)| name == "path" && !path.is_empty()).map(|(_, path)| path.as_str());
    let _one = node.one_list_at_a_time();
    let shown = node.browse(path);
    let shown =
        shown.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "path: there is no such folder to choose from"))?;
    let entries = Each(page.part(&shown.entries), entry_json);
    let (path, total, truncated) = (&shown.path, shown.entries.len(), shown.is_cut);
    Ok(http::json(StatusCode::OK, &Browsed { success: true, path, entries, total, truncated }))
}

fn entry_json(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "path": entry.path,
        "kind": if entry.is_folder { "folder" } else { "file" },
        "size": entry.size,
        "modified": seconds(entry.modified_ns),
    })
}

/// GET `local-files`: what is tracked.
///
/// # Errors
/// 400, or the store's.
pub(super) fn local_files(node: &Node, call: &Call<'_>) -> Answered {
    files(node, call, false)
}

/// GET `published-files`: what others are shown of it.
///
/// # Errors
/// 400, or the store's.
pub(super) fn published_files(node: &Node, call: &Call<'_>) -> Answered {
    files(node, call, true)
}

fn files(node: &Node, call: &Call<'_>, published_alone: bool) -> Answered {
    let page = Page::up_to(call.request, usize::try_from(FILES_MAX).unwrap_or(usize::MAX))?;
    let _one = node.one_list_at_a_time();
    let found = node.files_page(published_alone, &page).map_err(|error| refusal(&error))?;
    let files = Each(&found.files, Tracked::json);
    Ok(http::json(StatusCode::OK, &Files { success: true, files, total: found.total }))
}

/// POST `remove-file`: tracks a file no more.
///
/// # Errors
/// 400, 404, or what kept it from being hidden.
pub(super) fn remove_file(node: &Node, call: &Call<'_>) -> Answered {
    let name = file_name(&Fields::of(call.request)?, "fname")?;
    node.remove(&name).map_err(|error| refusal(&error))?;
    Ok(success(json!({})))
}
