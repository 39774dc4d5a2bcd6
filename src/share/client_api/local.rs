//! The user's own files: what is tracked and published.

use serde_json::json;

use super::{file_name, refusal, refusal_of};
use crate::net::http::{self, Answered, Call, Fields, Refusal, StatusCode, success};
use crate::share::node::{Node, NodeError};
use crate::share::wire::{FILE_SIZE_MAX, Seconds};

pub(super) fn status(node: &Node, _: &Call<'_>) -> Answered {
    Ok(success(json!({ "client": node.status() })))
}

pub(super) fn add_file(node: &Node, call: &Call<'_>) -> Answered {
    let fields = Fields::of(call.request)?;
    let file = node.add(fields.any_text("filepath")?).map_err(|error| refusal_of("filepath", &error))?;
    Ok(success(json!({ "file": file.json() })))
}

pub(super) fn check_duplicate(node: &Node, call: &Call<'_>) -> Answered {
    let fields = Fields::of(call.request)?;
    let name = file_name(&fields, "fname")?;
    let size = fields.whole("size", FILE_SIZE_MAX)?;
    let modified = match fields.get("modified") {
        None => None,
        Some(value) => {
            let modified = value.as_f64().ok_or_else(|| "expected Unix seconds".to_owned());
            let modified = modified.and_then(Seconds::new);
            Some(modified.map_err(|wrong| Refusal::bad(format!("modified: {wrong}")))?)
        }
    };
    Ok(success(node.duplicates(&name, size, modified).map_err(|error| refusal(&error))?.json()))
}

pub(super) fn check_local_duplicate(node: &Node, call: &Call<'_>) -> Answered {
    let name = file_name(&Fields::of(call.request)?, "fname")?;
    Ok(success(match node.file(&name).map_err(|error| refusal(&error))? {
        Some(file) => json!({"exists": true, "local_file": file.json()}),
        None => json!({"exists": false}),
    }))
}

pub(super) fn publish(node: &Node, call: &Call<'_>) -> Answered {
    let fields = Fields::of(call.request)?;
    let name = file_name(&fields, "fname")?;
    let given = ["local_path", "path"].into_iter().find(|field| fields.get(field).is_some());
    let path = given.map(|field| fields.any_text(field)).transpose()?;
    let overwrite = fields.flag("overwrite", true)?;
    match node.publish(&name, path, overwrite) {
        Ok(published) => Ok(success(json!({
            "path": published.file.facts.path.to_string_lossy(),
            "file": published.file.json(),
            "duplicates": published.duplicates.json(),
        }))),
        Err(error @ NodeError::Duplicates(_)) => {
            let reason = error.to_string();
            let NodeError::Duplicates(duplicates) = error else { unreachable!("matched above") };
            let mut body = duplicates.json();
            (body["success"], body["error"]) = (false.into(), reason.into());
            Ok(http::json(StatusCode::CONFLICT, &body))
        }
        Err(error) => Err(given.map_or_else(|| refusal(&error), |field| refusal_of(field, &error))),
    }
}

pub(super) fn unpublish(node: &Node, call: &Call<'_>) -> Answered {
    let name = file_name(&Fields::of(call.request)?, "fname")?;
    let file = node.unpublish(&name).map_err(|error| refusal(&error))?;
    Ok(success(json!({ "file": file.json() })))
}
