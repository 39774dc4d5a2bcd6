//! What stands behind a route of the client API.

use super::{AuthenticatedUser, ClientApi};
use crate::net::http::routes::{RouteAccess, RouteHandler};
use crate::net::http::{HandlerResult, HttpError, RouteCall};
use crate::share::node::Node;
use crate::share::node::uploads::Upload;

#[derive(Debug, Clone, Copy)]
pub(super) enum ClientRouteHandler {
    /// Needs no token.
    Public(fn(&ClientApi, &RouteCall<'_>) -> HandlerResult),
    /// Needs a token, but not that the user's node has been initialized.
    User(fn(&ClientApi, &AuthenticatedUser, &RouteCall<'_>) -> HandlerResult),
    /// Reads from the user's node without counting as activity.
    NodeQuery(fn(&Node, &RouteCall<'_>) -> HandlerResult),
    /// Uses the user's node, which counts as activity for the heartbeat.
    NodeAction(fn(&Node, &RouteCall<'_>) -> HandlerResult),
    /// The same with a streamed request body.
    Upload(fn(&Node, &RouteCall<'_>) -> Result<Upload, HttpError>),
}

impl RouteHandler for ClientRouteHandler {
    fn access(self) -> RouteAccess {
        match self {
            ClientRouteHandler::Public(_) => RouteAccess::Anybody,
            _ => RouteAccess::User,
        }
    }
}
