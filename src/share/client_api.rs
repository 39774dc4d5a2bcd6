//! The client API: what a user's programs and pages ask of a node. SPEC.md section 6.
//!
//! All routes are below `/api/client`. Who asks is told by the server's token; what is asked for is done by that
//! user's own node.
//!
//! | file | holds |
//! |---|---|
//! | `client_api.rs` | [`ClientApi`]: who asks, and for which node |
//! | `table.rs` | every route: what it takes and all that it answers |
//! | `local.rs` | the user's own files |
//! | `browse.rs` | lists of them, and what else may be chosen |
//! | `content.rs`, `links.rs` | what is in them |
//! | `uploads.rs` | what a browser brings |
//! | `remote.rs` | what the network has, and what is fetched from it |
//! | `sign_in.rs` | the server's tokens |

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::json;

use super::files::FilesError;
use super::folders::PathError;
use super::node::events::Session;
use super::node::nodes::Nodes;
use super::node::{Node, NodeError};
use super::wire::FileName;
use crate::model::{Name, Token};
use crate::net::http::routes::{self, Outline};
use crate::net::http::watchers::last_event_id;
use crate::net::http::{
    self, Answered, Body, Call, Fields, HeaderMap, Refusal, Request, Response, Sink, StatusCode, bearer, success,
};

mod browse;
mod content;
mod links;
mod local;
mod remote;
pub mod sign_in;
mod table;
mod uploads;

use links::Links;
use sign_in::SignIn;
use table::{Act, ROUTES};
use uploads::Coming;

/// Answers requests.
pub struct ClientApi {
    nodes: Arc<Nodes>,
    sign_in: SignIn,
    links: Links,
}

/// Somebody whose token is good.
struct User {
    name: Name,
    token: Token,
    session: Session,
}

impl ClientApi {
    /// Of these nodes.
    pub fn new(nodes: Arc<Nodes>, sign_in: SignIn) -> ClientApi {
        let links = Links::new(nodes.clock());
        ClientApi { nodes, sign_in, links }
    }

    /// Every route, for who describes the API.
    pub fn outlines() -> impl Iterator<Item = &'static Outline> {
        ROUTES.iter().map(|route| &route.outline)
    }

    fn answer(&self, request: &Request) -> Answered {
        let found = routes::find(ROUTES, request);
        let routes::Found::Route(route, call) = &found else {
            // Who is nobody learns nothing, not even what there is.
            if is_guarded(&request.path) {
                self.user(request)?;
            }
            return Ok(found.refusal().unwrap_or_else(http::not_found));
        };
        let response = self.act(route.handler, call).unwrap_or_else(Response::from);
        route.hold(&response);
        Ok(response)
    }

    fn act(&self, act: Act, call: &Call<'_>) -> Answered {
        match act {
            Act::Open(act) => act(self, call),
            Act::User(act) => act(self, &self.user(call.request)?, call),
            Act::Look(act) => act(&*self.node_of(&self.user(call.request)?)?, call),
            Act::Work(act) => {
                let node = self.node_of(&self.user(call.request)?)?;
                // The heartbeat is to know of it.
                node.work();
                act(&node, call)
            }
            // Its body goes to where `upload` says.
            Act::Upload(_) => Ok(http::not_found()),
        }
    }

    /// The node of a user who takes part.
    fn node_of(&self, user: &User) -> Result<Arc<Node>, Refusal> {
        self.nodes.get(&user.name).ok_or_else(|| refusal(&NodeError::NotBegun))
    }

    fn events(&self, user: &User, call: &Call<'_>) -> Answered {
        let node = self.node_of(user)?;
        let Some(events) = node.watch(user.session, last_event_id(&call.request.headers)) else {
            return Err(refusal(&NodeError::Busy("too many event streams of this node are open".to_owned())));
        };
        // It may have been logged out meanwhile: then nobody would end this.
        self.sign_in.user_of(&user.token)?;
        Ok(Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(events) })
    }

    /// Which node this is, and of which server.
    fn about(&self, _: &Call<'_>) -> Answered {
        let settings = self.nodes.settings();
        let host = &settings.server_host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Ok(success(json!({
            "name": self.nodes.named(),
            "version": env!("CARGO_PKG_VERSION"),
            "server": format!("{host}:{}", settings.registry_port),
        })))
    }

    fn register(&self, call: &Call<'_>) -> Answered {
        self.sign_in("register", call.request)
    }

    fn login(&self, call: &Call<'_>) -> Answered {
        self.sign_in("login", call.request)
    }

    fn sign_in(&self, what: &str, request: &Request) -> Answered {
        let fields = Fields::of(request)?;
        let mut body = json!({"username": fields.any_text("username")?, "password": fields.any_text("password")?});
        if let Some(display_name) = fields.text_if_any("display_name")? {
            body["display_name"] = display_name.into();
        }
        let signed_in = self.sign_in.sign_in(what, &body)?;
        self.nodes
            .signed_in(&signed_in.user, &signed_in.display_name, &signed_in.token)
            .map_err(|error| refusal(&error))?;
        Ok(success(json!({"token": signed_in.answer["token"], "user": signed_in.answer["user"]})))
    }

    fn user(&self, request: &Request) -> Result<User, Refusal> {
        let missing =
            || Refusal::new(StatusCode::UNAUTHORIZED, "Authorization: expected Bearer and the token of a sign-in");
        let token = bearer(&request.headers).ok_or_else(missing)?;
        let (name, session) = self.sign_in.user_of(&token)?;
        self.nodes.check_account(&name).map_err(|error| refusal(&error))?;
        Ok(User { name, token, session })
    }

    fn init(&self, user: &User, call: &Call<'_>) -> Answered {
        let fields = Fields::of(call.request)?;
        let username = fields.any_text("username")?;
        if Name::kept(username).ok().as_ref() != Some(&user.name) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "username: expected the one who signed in"));
        }
        let settings = self.nodes.settings();
        let only = |field: &str, expected: &str| {
            let reason = format!("{field}: this node has one server, {expected}: leave it out, or start another node");
            Refusal::new(StatusCode::FORBIDDEN, reason)
        };
        if fields.get("server_ip").is_some() && !is_same_host(fields.any_text("server_ip")?, &settings.server_host) {
            return Err(only("server_ip", &settings.server_host));
        }
        if let Some(port) = fields.optional_whole("server_port", u64::from(u16::MAX))?
            && port != u64::from(settings.registry_port)
        {
            return Err(only("server_port", &settings.registry_port.to_string()));
        }
        let advertise_ip = match fields.get("advertise_ip") {
            None => None,
            Some(_) => {
                let ip = fields.any_text("advertise_ip")?.parse::<IpAddr>().map(|ip| ip.to_canonical());
                let ip = ip.ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
                Some(ip.ok_or_else(|| Refusal::bad("advertise_ip: expected the IP address of one host"))?)
            }
        };
        let node = self.nodes.begin(&user.name, &user.token, advertise_ip).map_err(|error| refusal(&error))?;
        Ok(success(json!({ "client": node.client_json() })))
    }

    fn log_out(&self, user: &User, _: &Call<'_>) -> Answered {
        self.sign_in.log_out(&user.token)?;
        self.links.end_of(&user.token);
        let node = self.nodes.get(&user.name);
        // Whoever is signed in elsewhere as the same user goes on.
        let is_last = !self.sign_in.has_another(&user.name, &user.session)?;
        let ended = if is_last { self.nodes.end(&user.name) } else { Ok(()) };
        // Their last word is that the node has left, if it has.
        if let Some(node) = node {
            node.end_watching(&user.session);
        }
        ended.map_err(|error| refusal(&error))?;
        Ok(success(json!({})))
    }
}

impl http::Handler for ClientApi {
    fn handle(&self, request: Request) -> Response {
        self.answer(&request).unwrap_or_else(Response::from)
    }

    fn upload(&self, head: &Request) -> Option<Result<Box<dyn Sink>, Response>> {
        let routes::Found::Route(route, call) = routes::find(ROUTES, head) else {
            // Whatever follows, there is nothing that it would be for.
            return Some(Err(self.answer(head).unwrap_or_else(Response::from)));
        };
        let Act::Upload(begin) = route.handler else { return None };
        let begun = self.user(head).and_then(|user| self.node_of(&user)).and_then(|node| {
            node.work();
            begin(&node, &call)
        });
        let begun = begun.map(|upload| Box::new(Coming::new(upload, route)) as _).map_err(|refusal| {
            let response = refusal.into();
            route.hold(&response);
            response
        });
        Some(begun)
    }
}

/// Whether a path is of the part of the API that wants a token.
fn is_guarded(path: &str) -> bool {
    path.starts_with("/api/client/")
}

fn file_name(fields: &Fields, field: &str) -> Result<FileName, Refusal> {
    FileName::new(fields.any_text(field)?).map_err(|wrong| Refusal::bad(format!("{field}: {wrong}")))
}

fn host_name(text: &str) -> Result<Name, Refusal> {
    Name::kept(text).map_err(|wrong| Refusal::bad(format!("the hostname: {wrong}")))
}

/// Whether two spellings mean one host: addresses may be written in many ways.
fn is_same_host(given: &str, server: &str) -> bool {
    let address = |text: &str| match text {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        text => text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
    };
    given.eq_ignore_ascii_case(server) || address(given).is_some_and(|ip| address(server) == Some(ip))
}

/// The same where a path stood in that field: what is wrong with it is said of the field.
fn refusal_of(field: &str, error: &NodeError) -> Refusal {
    let mut refusal = refusal(error);
    if matches!(error, NodeError::Path(_)) && !refusal.reason.starts_with(field) {
        refusal.reason = format!("{field}: {}", refusal.reason);
    }
    refusal
}

/// The status that fits.
fn refusal(error: &NodeError) -> Refusal {
    let status = match error {
        NodeError::NotBegun | NodeError::Conflict(_) | NodeError::Duplicates(_) | NodeError::Owners(_) => {
            StatusCode::CONFLICT
        }
        NodeError::Folder { is_full: true, .. } => StatusCode::INSUFFICIENT_STORAGE,
        NodeError::Folder { is_full: false, .. } => StatusCode::SERVICE_UNAVAILABLE,
        NodeError::Path(error) => match error {
            PathError::Invalid(_) => StatusCode::BAD_REQUEST,
            PathError::Forbidden(_) => StatusCode::FORBIDDEN,
            PathError::NotFound(_) | PathError::NoFolder(_) => StatusCode::NOT_FOUND,
            PathError::Exists(_) => StatusCode::CONFLICT,
        },
        NodeError::Files(error) => match error {
            FilesError::NameTaken { .. } => StatusCode::CONFLICT,
            FilesError::Unknown(_) => StatusCode::NOT_FOUND,
            FilesError::Full => StatusCode::INSUFFICIENT_STORAGE,
            FilesError::NotText(_) => StatusCode::BAD_REQUEST,
            FilesError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        },
        NodeError::Invalid(_) => StatusCode::BAD_REQUEST,
        NodeError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        NodeError::NotFound(_) => StatusCode::NOT_FOUND,
        NodeError::Refused(_) => StatusCode::CONFLICT,
        NodeError::Store(_) | NodeError::Away(_) | NodeError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        NodeError::System(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, error.to_string())
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
