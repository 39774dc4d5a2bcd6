//! Files that a browser brings: `upload/{name}`, whose body is the file, of any type and length.

use serde_json::json;

use super::refusal;
use super::table::Act;
use crate::net::http::routes::Route;
use crate::net::http::{Call, Refusal, Response, Sink, header, success};
use crate::share::node::Node;
use crate::share::node::uploads::Upload;

/// Begins one, before the first byte of the body is read.
///
/// # Errors
/// What is to be answered instead: the name is none or taken, or there is no room.
pub(super) fn begin(node: &Node, call: &Call<'_>) -> Result<Upload, Refusal> {
    let length = call.request.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
    node.upload(call.param(0), length).map_err(|error| refusal(&error))
}

/// The body on its way into the file.
pub(super) struct Coming {
    upload: Upload,
    route: &'static Route<Act>,
}

impl Coming {
    pub(super) fn new(upload: Upload, route: &'static Route<Act>) -> Coming {
        Coming { upload, route }
    }
}

impl Sink for Coming {
    fn write(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        self.upload.write(piece).map_err(|error| refusal(&error))
    }

    fn finish(self: Box<Self>) -> Response {
        let response = match self.upload.finish() {
            Ok(file) => success(json!({ "file": file.json() })),
            Err(error) => refusal(&error).into(),
        };
        self.route.hold(&response);
        response
    }
}
