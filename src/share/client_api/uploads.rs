//! Uploads from a browser: `upload/{name}`, whose body is the file, of any type and length.

use serde_json::json;

use super::handler::ClientRouteHandler;
use crate::net::http::routes::Route;
use crate::net::http::{BodySink, HttpError, Response, RouteCall, header, success};
use crate::share::node::Node;
use crate::share::node::uploads::Upload;

/// Refuses the upload before its body is read if the name is invalid or taken, or there is no room.
pub(super) fn begin(node: &Node, call: &RouteCall<'_>) -> Result<Upload, HttpError> {
    let length = call.request.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
    Ok(node.upload(call.param(0), length)?)
}

pub(super) struct UploadSink {
    pub(super) upload: Upload,
    pub(super) route: &'static Route<ClientRouteHandler>,
}

impl BodySink for UploadSink {
    fn write(&mut self, piece: &[u8]) -> Result<(), HttpError> {
        Ok(self.upload.write(piece)?)
    }

    fn finish(self: Box<Self>) -> Response {
        let response = match self.upload.finish() {
            Ok(file) => success(json!({ "file": file.to_json() })),
            Err(error) => HttpError::from(error).into(),
        };
        self.route.assert_conforms(&response);
        response
    }
}
