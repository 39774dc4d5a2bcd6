//! The user's own files: tracking and publishing.

use serde_json::json;

use super::{file_name, to_field_http_error};
use crate::net::http::{self, HandlerResult, HttpError, JsonFields, RouteCall, StatusCode, success};
use crate::share::node::{Node, NodeError};
use crate::share::wire::{FILE_SIZE_MAX, Seconds};

pub(super) fn status(node: &Node, _: &RouteCall<'_>) -> HandlerResult {
    Ok(success(json!({ "client": node.status() })))
}

pub(super) fn add_file(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let fields = JsonFields::from_body(call.request)?;
    let file = node.add(fields.any_text("filepath")?).map_err(|error| to_field_http_error("filepath", error))?;
    Ok(success(json!({ "file": file.to_json() })))
}

pub(super) fn check_duplicate(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let fields = JsonFields::from_body(call.request)?;
    let name = file_name(&fields, "fname")?;
    let size = fields.integer("size", FILE_SIZE_MAX)?;
    let modified = fields.get("modified").map(|value| {
        let modified = value.as_f64().ok_or_else(|| "expected Unix seconds".to_owned()).and_then(Seconds::new);
        modified.map_err(|wrong| HttpError::bad_request(format!("modified: {wrong}")))
    });
    let modified = modified.transpose()?;
    Ok(success(node.duplicates(&name, size, modified)?.json()))
}

pub(super) fn check_local_duplicate(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let name = file_name(&JsonFields::from_body(call.request)?, "fname")?;
    Ok(success(match node.file(&name)? {
        Some(file) => json!({"exists": true, "local_file": file.to_json()}),
        None => json!({"exists": false}),
    }))
}

pub(super) fn publish(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let fields = JsonFields::from_body(call.request)?;
    let name = file_name(&fields, "fname")?;
    let given = ["local_path", "path"].into_iter().find(|field| fields.get(field).is_some());
    let path = given.map(|field| fields.any_text(field)).transpose()?;
    let overwrite = fields.boolean("overwrite", true)?;
    match node.publish(&name, path, overwrite) {
        Ok((file, duplicates)) => Ok(success(json!({
            "path": file.stat.path.to_string_lossy(), "file": file.to_json(), "duplicates": duplicates.json(),
        }))),
        Err(ref error @ NodeError::Duplicates(ref duplicates)) => {
            let mut body = duplicates.json();
            (body["success"], body["error"]) = (false.into(), error.to_string().into());
            Ok(http::json(StatusCode::CONFLICT, &body))
        }
        Err(error) => Err(match given {
            Some(field) => to_field_http_error(field, error),
            None => error.into(),
        }),
    }
}

pub(super) fn unpublish(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    let name = file_name(&JsonFields::from_body(call.request)?, "fname")?;
    let file = node.unpublish(&name)?;
    Ok(success(json!({ "file": file.to_json() })))
}
