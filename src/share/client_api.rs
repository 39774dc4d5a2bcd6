//! The client API: a node's HTTP API for its user's programs and pages. See `docs/spec/share.md`.
//!
//! All routes are below `/api/client`. The server's token identifies the user, and the request is carried out by that
//! user's own node.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::json;

use super::files::TrackedFilesError;
use super::folders::PathError;
use super::node::events::WatchSession;
use super::node::nodes::Nodes;
use super::node::{Node, NodeError};
use super::wire::FileName;
use crate::model::{Name, Token};
use crate::net::http::event_hub::last_event_id;
use crate::net::http::routes::{self, RouteAccess, RouteSpec};
use crate::net::http::{
    self, Body, BodySink, HandlerResult, HeaderMap, HttpError, JsonFields, Request, Response, RouteCall, StatusCode,
    bearer, success,
};

pub mod authenticator;
mod browse;
mod content;
mod handler;
mod links;
mod local;
mod remote;
mod table;
mod uploads;

use authenticator::Authenticator;
use handler::ClientRouteHandler;
use links::DownloadLinks;
use table::ROUTES;
use uploads::UploadSink;

pub struct ClientApi {
    nodes: Arc<Nodes>,
    authenticator: Authenticator,
    links: DownloadLinks,
}

/// The user of a request with a valid token.
struct AuthenticatedUser {
    name: Name,
    token: Token,
    session: WatchSession,
}

impl ClientApi {
    pub fn new(nodes: Arc<Nodes>, authenticator: Authenticator) -> ClientApi {
        let links = DownloadLinks::new(nodes.clock());
        ClientApi { nodes, authenticator, links }
    }

    pub fn route_specs() -> impl Iterator<Item = (RouteAccess, &'static RouteSpec)> {
        routes::specs(ROUTES)
    }

    fn respond(&self, request: &Request) -> HandlerResult {
        let found = routes::match_route(ROUTES, request);
        let routes::RouteMatch::Route(route, call) = &found else {
            // Without a valid token not even the existence of a route is revealed.
            if request.path.starts_with("/api/client/") {
                self.user(request)?;
            }
            return Ok(found.error_response().unwrap_or_else(http::not_found));
        };
        let response = self.dispatch(route.handler, call).unwrap_or_else(Response::from);
        route.assert_conforms(&response);
        Ok(response)
    }

    fn dispatch(&self, handler: ClientRouteHandler, call: &RouteCall<'_>) -> HandlerResult {
        match handler {
            ClientRouteHandler::Public(handler) => handler(self, call),
            ClientRouteHandler::User(handler) => handler(self, &self.user(call.request)?, call),
            ClientRouteHandler::NodeQuery(handler) => handler(&*self.node_of(&self.user(call.request)?)?, call),
            ClientRouteHandler::NodeAction(handler) => {
                let node = self.node_of(&self.user(call.request)?)?;
                // Counts as activity for the heartbeat.
                node.note_activity();
                handler(&node, call)
            }
            // Handled by `upload`, which receives the body.
            ClientRouteHandler::Upload(_) => Ok(http::not_found()),
        }
    }

    fn node_of(&self, user: &AuthenticatedUser) -> Result<Arc<Node>, HttpError> {
        self.nodes.get(&user.name).ok_or_else(|| NodeError::NotJoined.into())
    }

    fn events(&self, user: &AuthenticatedUser, call: &RouteCall<'_>) -> HandlerResult {
        let node = self.node_of(user)?;
        let Some(events) = node.watch(user.session, last_event_id(&call.request.headers)) else {
            return Err(NodeError::Busy("too many event streams of this node are open".to_owned()).into());
        };
        // If the token was logged out in the meantime, nothing would end the stream.
        self.authenticator.authenticate(&user.token)?;
        Ok(Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(events) })
    }

    fn node_info(&self, _: &RouteCall<'_>) -> HandlerResult {
        let settings = self.nodes.settings();
        let host = &settings.server_host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Ok(success(json!({
            "name": self.nodes.primary_user(),
            "version": env!("CARGO_PKG_VERSION"),
            "server": format!("{host}:{}", settings.registry_port),
        })))
    }

    fn sign_in(&self, what: &str, request: &Request) -> HandlerResult {
        let fields = JsonFields::from_body(request)?;
        let mut body = json!({"username": fields.any_text("username")?, "password": fields.any_text("password")?});
        if let Some(display_name) = fields.non_empty_text("display_name")? {
            body["display_name"] = display_name.into();
        }
        let signed_in = self.authenticator.sign_in(what, &body)?;
        self.nodes.signed_in(&signed_in.user, &signed_in.display_name, &signed_in.token)?;
        Ok(success(json!({"token": signed_in.response["token"], "user": signed_in.response["user"]})))
    }

    fn user(&self, request: &Request) -> Result<AuthenticatedUser, HttpError> {
        let missing =
            || HttpError::new(StatusCode::UNAUTHORIZED, "Authorization: expected Bearer and the token of a sign-in");
        let token = bearer(&request.headers).ok_or_else(missing)?;
        let (name, session) = self.authenticator.authenticate(&token)?;
        self.nodes.check_account(&name)?;
        Ok(AuthenticatedUser { name, token, session })
    }

    fn init(&self, user: &AuthenticatedUser, call: &RouteCall<'_>) -> HandlerResult {
        let fields = JsonFields::from_body(call.request)?;
        let username = fields.any_text("username")?;
        if Name::from_stored(username).ok().as_ref() != Some(&user.name) {
            return Err(HttpError::new(StatusCode::FORBIDDEN, "username: expected the one who signed in"));
        }
        let settings = self.nodes.settings();
        let only = |field: &str, expected: &str| {
            let reason = format!("{field}: this node has one server, {expected}: leave it out, or start another node");
            HttpError::new(StatusCode::FORBIDDEN, reason)
        };
        if text_if_given(&fields, "server_ip")?.is_some_and(|ip| !is_same_host(ip, &settings.server_host)) {
            return Err(only("server_ip", &settings.server_host));
        }
        if let Some(port) = fields.optional_integer("server_port", u64::from(u16::MAX))?
            && port != u64::from(settings.registry_port)
        {
            return Err(only("server_port", &settings.registry_port.to_string()));
        }
        let advertise_ip = match text_if_given(&fields, "advertise_ip")? {
            None => None,
            Some(ip) => {
                let ip = ip.parse::<IpAddr>().map(|ip| ip.to_canonical());
                let ip = ip.ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
                Some(ip.ok_or_else(|| HttpError::bad_request("advertise_ip: expected the IP address of one host"))?)
            }
        };
        let node = self.nodes.join(&user.name, &user.token, advertise_ip)?;
        Ok(success(json!({ "client": node.client_json() })))
    }

    fn log_out(&self, user: &AuthenticatedUser, _: &RouteCall<'_>) -> HandlerResult {
        self.authenticator.log_out(&user.token)?;
        self.links.revoke(&user.token);
        let node = self.nodes.get(&user.name);
        // The node keeps running while the user has another session.
        let is_last = !self.authenticator.has_other_session(&user.name, &user.session)?;
        let ended = if is_last { self.nodes.leave(&user.name) } else { Ok(()) };
        // After the node has ended, so that the last event of these streams says so.
        if let Some(node) = node {
            node.end_watching(&user.session);
        }
        ended?;
        Ok(success(json!({})))
    }
}

impl http::HttpHandler for ClientApi {
    fn handle(&self, request: Request) -> Response {
        self.respond(&request).unwrap_or_else(Response::from)
    }

    fn upload(&self, head: &Request) -> Option<Result<Box<dyn BodySink>, Response>> {
        let routes::RouteMatch::Route(route, call) = routes::match_route(ROUTES, head) else {
            // No route: the body need not be read.
            return Some(Err(self.respond(head).unwrap_or_else(Response::from)));
        };
        let ClientRouteHandler::Upload(begin) = route.handler else { return None };
        let begun = self.user(head).and_then(|user| self.node_of(&user)).and_then(|node| {
            node.note_activity();
            begin(&node, &call)
        });
        let begun = begun.map(|upload| Box::new(UploadSink { upload, route }) as _).map_err(|refusal| {
            let response = refusal.into();
            route.assert_conforms(&response);
            response
        });
        Some(begun)
    }
}

fn text_if_given<'f>(fields: &'f JsonFields, field: &str) -> Result<Option<&'f str>, HttpError> {
    fields.get(field).map(|_| fields.any_text(field)).transpose()
}

fn file_name(fields: &JsonFields, field: &str) -> Result<FileName, HttpError> {
    FileName::new(fields.any_text(field)?).map_err(|wrong| HttpError::bad_request(format!("{field}: {wrong}")))
}

fn host_name(text: &str) -> Result<Name, HttpError> {
    Name::from_stored(text).map_err(|wrong| HttpError::bad_request(format!("the hostname: {wrong}")))
}

/// Addresses can be written in several ways.
fn is_same_host(given: &str, server: &str) -> bool {
    let address = |text: &str| match text {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        text => text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
    };
    given.eq_ignore_ascii_case(server) || address(given).is_some_and(|ip| address(server) == Some(ip))
}

/// The message of an error of a path begins with the name of the request's field.
fn to_field_http_error(field: &str, error: NodeError) -> HttpError {
    let is_of_path = matches!(error, NodeError::Path(_));
    let mut refusal = HttpError::from(error);
    if is_of_path && !refusal.reason.starts_with(field) {
        refusal.reason = format!("{field}: {}", refusal.reason);
    }
    refusal
}

impl From<NodeError> for HttpError {
    fn from(error: NodeError) -> HttpError {
        let status = match &error {
            NodeError::NotJoined
            | NodeError::Conflict(_)
            | NodeError::Duplicates(_)
            | NodeError::SeveralOwners(_)
            | NodeError::RegistryRefused(_) => StatusCode::CONFLICT,
            NodeError::Folder { is_full: true, .. } => StatusCode::INSUFFICIENT_STORAGE,
            NodeError::Folder { is_full: false, .. } => StatusCode::SERVICE_UNAVAILABLE,
            NodeError::Path(error) => match error {
                PathError::Invalid(_) => StatusCode::BAD_REQUEST,
                PathError::Forbidden(_) => StatusCode::FORBIDDEN,
                PathError::NotFound(_) | PathError::FolderNotFound(_) => StatusCode::NOT_FOUND,
                PathError::AlreadyExists(_) => StatusCode::CONFLICT,
            },
            NodeError::Files(error) => match error {
                TrackedFilesError::NameTaken { .. } => StatusCode::CONFLICT,
                TrackedFilesError::NotTracked(_) => StatusCode::NOT_FOUND,
                TrackedFilesError::TooManyFiles => StatusCode::INSUFFICIENT_STORAGE,
                TrackedFilesError::PathNotUtf8(_) => StatusCode::BAD_REQUEST,
                TrackedFilesError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
            NodeError::Invalid(_) => StatusCode::BAD_REQUEST,
            NodeError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            NodeError::NotFound(_) => StatusCode::NOT_FOUND,
            NodeError::Store(_) | NodeError::RegistryUnreachable(_) | NodeError::Busy(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            NodeError::System(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        HttpError::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_may_be_spelt_in_several_ways() {
        for (given, server, is_same) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("localhost", "127.0.0.1", true),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("Share.example", "share.example", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("other.example", "share.example", false),
            ("", "127.0.0.1", false),
        ] {
            assert_eq!(is_same_host(given, server), is_same, "{given} {server}");
        }
    }
}
