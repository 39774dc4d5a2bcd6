//! The client API: what a user's programs and pages ask of a node. SPEC.md section 6.
//!
//! All routes are below `/api/client`. Who asks is told by the server's token; what is asked for is done by that
//! user's own node.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::files::FilesError;
use super::folders::PathError;
use super::node::events::Session;
use super::node::fetches::Wish;
use super::node::nodes::Nodes;
use super::node::{Node, NodeError};
use super::wire::{FILE_SIZE_MAX, FileName, Seconds};
use crate::model::{Name, Token};
use crate::net::http::watchers::last_event_id;
use crate::net::http::{
    self, Body, Fields, HeaderMap, Method, Refusal, Request, Response, StatusCode, bearer, query_pairs, segments,
    success,
};

pub mod sign_in;

use sign_in::SignIn;

/// Files that are listed at a time, unless it is asked for fewer.
const PAGE_MAX: usize = 1_000;

/// Answers requests.
pub struct ClientApi {
    nodes: Arc<Nodes>,
    sign_in: SignIn,
}

/// Somebody whose token is good.
struct User {
    name: Name,
    token: Token,
    session: Session,
}

type Answered = Result<Response, Refusal>;

impl ClientApi {
    /// Of these nodes.
    pub fn new(nodes: Arc<Nodes>, sign_in: SignIn) -> ClientApi {
        ClientApi { nodes, sign_in }
    }

    fn answer(&self, request: &Request, path: &[&str]) -> Answered {
        let get = request.method == Method::GET;
        let post = request.method == Method::POST;
        match path {
            ["register" | "login"] if post => return self.sign_in(path[0], request),
            // Whoever holds a token finds out by this whether it is for this node, before it is shown.
            ["node"] if get => return Ok(success(self.about())),
            ["node"] => return Ok(http::method_not_allowed(&[Method::GET])),
            _ => {}
        }
        let (allowed, known) = match path {
            [
                "register"
                | "login"
                | "init"
                | "logout"
                | "add-file"
                | "check-duplicate"
                | "check-local-duplicate"
                | "publish"
                | "unpublish"
                | "fetch",
            ]
            | ["fetches", _, "pause" | "resume" | "cancel"] => (Method::POST, true),
            ["status" | "local-files" | "published-files" | "network-files" | "peers" | "fetches" | "events"]
            | ["fetch-progress" | "discover" | "ping", _] => (Method::GET, true),
            _ => (Method::GET, false),
        };
        // Who is nobody learns nothing, not even what there is.
        let user = self.user(request)?;
        if !known {
            return Ok(http::not_found());
        }
        if !(get && allowed == Method::GET || post && allowed == Method::POST) {
            return Ok(http::method_not_allowed(&[allowed]));
        }
        match path {
            ["init"] => return self.init(&user, &Fields::of(request)?),
            ["logout"] => return self.log_out(&user),
            _ => {}
        }
        let node = self.nodes.get(&user.name).ok_or_else(|| refusal(&NodeError::NotBegun))?;
        match path {
            ["status"] => Ok(success(json!({ "client": node.status() }))),
            ["local-files"] => files(&node, false),
            ["published-files"] => files(&node, true),
            ["fetches"] => Ok(success(json!({ "fetches": node.fetches().all() }))),
            ["fetch-progress", id] => {
                let progress = node.fetches().progress(id).map_err(|error| refusal(&error))?;
                Ok(success(json!({ "progress": progress })))
            }
            ["events"] => match node.watch(user.session, last_event_id(&request.headers)) {
                Some(events) => {
                    // It may have been logged out meanwhile: then nobody would end this.
                    self.sign_in.user_of(&user.token)?;
                    Ok(Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(events) })
                }
                None => Err(refusal(&NodeError::Busy("too many event streams of this node are open".to_owned()))),
            },
            _ => {
                // The rest is work, which the heartbeat is to know of.
                node.work();
                answer_work(&node, request, path)
            }
        }
    }

    /// Which node this is, and of which server.
    fn about(&self) -> Value {
        let settings = self.nodes.settings();
        let host = &settings.server_host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        json!({
            "name": self.nodes.named(),
            "version": env!("CARGO_PKG_VERSION"),
            "server": format!("{host}:{}", settings.registry_port),
        })
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

    fn init(&self, user: &User, fields: &Fields) -> Answered {
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

    fn log_out(&self, user: &User) -> Answered {
        self.sign_in.log_out(&user.token)?;
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
        let Some(path) = segments(&request.path) else {
            return Refusal::bad("the path: expected UTF-8 behind %XX").into();
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.strip_prefix(&["api", "client"]) {
            Some(path) => self.answer(&request, path).unwrap_or_else(Response::from),
            None => http::not_found(),
        }
    }
}

/// What a node is asked to do by who uses it.
fn answer_work(node: &Node, request: &Request, path: &[&str]) -> Answered {
    let no = |error: NodeError| refusal(&error);
    match path {
        ["network-files"] => network_files(node, request),
        ["peers"] => {
            let page = Page::of(request)?;
            let network = node.network().map_err(no)?;
            let peers: Vec<Value> =
                network.hosts.iter().skip(page.offset).take(page.limit).map(|host| host.json()).collect();
            Ok(success(json!({"peers": peers, "total": network.hosts.len()})))
        }
        ["discover", hostname] => {
            let found = node.discover(&host_name(hostname)?).map_err(no)?;
            let files: Map<String, Value> =
                found.files.iter().map(|(name, entry)| (name.to_string(), json!(entry))).collect();
            Ok(success(json!({"hostname": hostname, "files": files, "addr": [found.addr.0, found.addr.1]})))
        }
        ["ping", hostname] => {
            let is_there = node.ping(&host_name(hostname)?).map_err(no)?;
            Ok(success(json!({"hostname": hostname, "status": if is_there { "ALIVE" } else { "DEAD" }})))
        }
        ["add-file"] => {
            let fields = Fields::of(request)?;
            let file = node.add(fields.any_text("filepath")?).map_err(|error| refusal_of("filepath", &error))?;
            Ok(success(json!({ "file": file.json() })))
        }
        ["check-duplicate"] => {
            let fields = Fields::of(request)?;
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
            Ok(success(node.duplicates(&name, size, modified).map_err(no)?.json()))
        }
        ["check-local-duplicate"] => {
            let file = node.file(&file_name(&Fields::of(request)?, "fname")?).map_err(no)?;
            Ok(success(match file {
                Some(file) => json!({"exists": true, "local_file": file.json()}),
                None => json!({"exists": false}),
            }))
        }
        ["publish"] => publish(node, &Fields::of(request)?),
        ["unpublish"] => {
            let name = file_name(&Fields::of(request)?, "fname")?;
            let file = node.unpublish(&name).map_err(no)?;
            Ok(success(json!({ "file": file.json() })))
        }
        ["fetch"] => {
            let fields = Fields::of(request)?;
            let name = file_name(&fields, "fname")?;
            let save_path = fields.get("save_path").map(|_| fields.any_text("save_path")).transpose()?;
            let owner = fields.get("owner_hostname").map(|_| fields.any_text("owner_hostname")).transpose()?;
            let owner = owner.map(|owner| Name::kept(owner).map_err(|wrong| format!("owner_hostname: {wrong}")));
            let owner = owner.transpose().map_err(Refusal::bad)?;
            let begun = match node.fetches().begin(&name, owner.as_ref(), save_path) {
                Err(error @ NodeError::Owners(_)) => return Ok(several_owners(&error)),
                begun => begun.map_err(|error| refusal_of("save_path", &error))?,
            };
            Ok(success(json!({
                "fetch_id": begun.id, "file_name": begun.file_name, "total_size": begun.total_size,
                "save_path": begun.save_path, "peer_hostname": begun.peer_hostname, "peer_ip": begun.peer_ip,
            })))
        }
        ["fetches", id, wish] => {
            let wish = match *wish {
                "pause" => Wish::Pause,
                "resume" => Wish::Resume,
                _ => Wish::Cancel,
            };
            let progress = node.fetches().act(id, wish).map_err(no)?;
            Ok(success(json!({ "progress": progress })))
        }
        _ => Ok(http::not_found()),
    }
}

/// Whose file is wanted is to be said.
fn several_owners(error: &NodeError) -> Response {
    let owners = if let NodeError::Owners(owners) = error { &owners[..] } else { &[] };
    let owners: Vec<Value> = owners
        .iter()
        .map(|it| json!({"owner_hostname": it.hostname, "size": it.size, "modified": it.modified}))
        .collect();
    http::json(StatusCode::CONFLICT, &json!({"success": false, "error": error.to_string(), "owners": owners}))
}

fn files(node: &Node, published_alone: bool) -> Answered {
    let files = node.files(published_alone).map_err(|error| refusal(&error))?;
    Ok(success(json!({ "files": files.iter().map(|file| file.json()).collect::<Vec<_>>() })))
}

fn network_files(node: &Node, request: &Request) -> Answered {
    let page = Page::of(request)?;
    let network = node.network().map_err(|error| refusal(&error))?;
    let (total, found) = network.search(&page.q, page.offset, page.limit);
    Ok(success(json!({"files": found.iter().map(|file| file.json()).collect::<Vec<_>>(), "total": total})))
}

fn publish(node: &Node, fields: &Fields) -> Answered {
    let name = file_name(fields, "fname")?;
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

/// A part of a list.
struct Page {
    q: String,
    offset: usize,
    limit: usize,
}

impl Page {
    fn of(request: &Request) -> Result<Page, Refusal> {
        let pairs = query_pairs(&request.query).ok_or_else(|| Refusal::bad("the query: expected UTF-8 behind %XX"))?;
        let mut page = Page { q: String::new(), offset: 0, limit: PAGE_MAX };
        for (name, value) in pairs {
            let number = || {
                let wrong = || Refusal::bad(format!("{name}: expected a whole number"));
                value.parse::<usize>().map_err(|_| wrong())
            };
            match name.as_str() {
                "q" => page.q.clone_from(&value),
                "offset" => page.offset = number()?,
                "limit" => page.limit = number()?.min(PAGE_MAX),
                _ => {}
            }
        }
        Ok(page)
    }
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

    #[test]
    fn a_page_is_what_the_query_says_within_bounds() {
        let of = |query: &str| {
            Page::of(&Request {
                method: Method::GET,
                path: "/".to_owned(),
                query: query.to_owned(),
                headers: HeaderMap::new(),
                body: Vec::new(),
                source: ([127, 0, 0, 1], 1).into(),
            })
        };
        let page = of("q=a+b&offset=5&limit=7").unwrap();
        assert_eq!((&*page.q, page.offset, page.limit), ("a b", 5, 7));
        let page = of("limit=999999&other=x").unwrap();
        assert_eq!((&*page.q, page.offset, page.limit), ("", 0, PAGE_MAX));
        for wrong in ["offset=-1", "limit=x", "q=%ff"] {
            assert_eq!(of(wrong).map(|_| ()).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
