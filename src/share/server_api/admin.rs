//! What only the admin may see: the registry with everybody in it.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{ServerApi, not_so, seconds, stats, token_of};
use crate::identity::{Role, User, Users};
use crate::model::Name;
use crate::net::http::{Body, Fields, Refusal, Request, Response, StatusCode, success};
use crate::share::page::Page;
use crate::share::server::{Client, View};
use crate::share::wire::{FileEntry, FileName};

/// Hosts looked at in one go.
const PAGE: usize = 256;
/// Accounts looked at in one go where most of them are passed over.
const ACCOUNTS_AT_ONCE: usize = 4_096;
/// Entries of a page where the request does not say how many.
const USUAL: usize = 100;

impl ServerApi {
    pub(super) fn admin_login(&self, request: &Request) -> Result<Response, Refusal> {
        let fields = Fields::of(request)?;
        let username = fields.any_text("username")?;
        let password = fields.any_text("password")?;
        let admin = self.users.admin_login(username, password, request.source.ip()).map_err(not_so)?;
        let (token, _) = self.users.issue(&admin, Role::Admin);
        Ok(success(json!({"token": token.reveal(), "username": admin})))
    }

    pub(super) fn admin_verify(&self, request: &Request) -> Result<Response, Refusal> {
        let token = token_of(request, true)?;
        let admin = self.users.admin_of(token.reveal()).map_err(not_so)?;
        Ok(success(json!({ "username": admin })))
    }

    pub(super) fn admins_registry(&self, request: &Request) -> Result<Response, Refusal> {
        let page = Page::if_asked(request, USUAL)?;
        let view = self.view()?;
        let mut stats = stats(&view.totals());
        if let Some(stats) = stats.as_object_mut() {
            stats.remove("total_size");
        }
        let users = Arc::clone(&self.users);
        if let Some(page) = page {
            let found = find(&view, &users, &page)?;
            let total = found.total;
            let head = format!("{{\"success\":true,\"stats\":{stats},\"total\":{total},\"clients\":[").into_bytes();
            return Ok(chunked(head, found.shown(view, users)));
        }
        let head = format!("{{\"success\":true,\"stats\":{stats},\"clients\":[").into_bytes();
        let hosts =
            Clients { view: view.clone(), users: Arc::clone(&users), after: None, page: Vec::new().into_iter() };
        let offline = OfflineAccounts { view, users, after: None, page: Vec::new().into_iter() };
        Ok(chunked(head, hosts.chain(offline)))
    }

    pub(super) fn discover(&self, hostname: &str) -> Result<Response, Refusal> {
        let (files, addr) = self.view()?.discover(hostname).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "hostname: no such host is registered, or it was not heard for long")
        })?;
        Ok(success(json!({"hostname": hostname, "files": files, "addr": addr})))
    }

    pub(super) fn ping(&self, hostname: &str) -> Result<Response, Refusal> {
        let status = if self.view()?.ping(hostname) { "ALIVE" } else { "DEAD" };
        Ok(success(json!({"hostname": hostname, "status": status})))
    }
}

/// An answer that is written while it is sent: its head, then a list's entries.
fn chunked(head: Vec<u8>, entries: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Response {
    let mut is_first = true;
    let entries = entries.map(move |entry| {
        let comma: &[u8] = if std::mem::take(&mut is_first) { b"" } else { b"," };
        [comma, &entry].concat()
    });
    let chunks = std::iter::once(head).chain(entries).chain(std::iter::once(b"]}".to_vec()));
    Response { body: Body::Chunks(Box::new(chunks)), ..success(Value::Null) }
}

/// A part of the list: hosts by name, then the accounts that have none online.
struct Found {
    hosts: Vec<Name>,
    offline: Vec<User>,
    /// Of both, on all pages.
    total: usize,
}

impl Found {
    /// As pieces of JSON. (Whoever has gone meanwhile is left out.)
    fn shown(self, view: View, users: Arc<Users>) -> impl Iterator<Item = Vec<u8>> + Send {
        let hosts = self.hosts.into_iter().filter_map(move |hostname| {
            let client = view.client(hostname.as_str())?;
            let accounts = users.accounts(&[hostname.as_str()]).unwrap_or_default();
            Some(write(&client, accounts.get(hostname.as_str())))
        });
        hosts.chain(self.offline.into_iter().map(|user| write_offline(&user)))
    }
}

/// Finds a part of the list without making the rest of it.
fn find(view: &View, users: &Users, page: &Page) -> Result<Found, Refusal> {
    let Page { sought, offset, limit } = page;
    let (hosts, in_all) = if sought.is_anything() {
        (view.names_from(*offset, *limit), view.sizes().0)
    } else {
        view.search(sought, *offset, *limit)
    };
    let (mut to_pass, left) = (offset.saturating_sub(in_all), limit - hosts.len());
    let (mut offline, mut passed, mut after) = (Vec::new(), 0, None);
    // Where nothing is sought they need not be counted by looking at each.
    let counted = sought.is_anything().then(|| users.len().saturating_sub(view.sizes().1));
    while counted.is_none() || offline.len() < left {
        let accounts = users.page(after.as_ref(), ACCOUNTS_AT_ONCE).map_err(not_so)?;
        let Some(last) = accounts.last() else { break };
        after = Some(last.username.clone());
        let is_sought = |user: &User| sought.is_in(user.username.as_str()) || sought.is_in(user.display_name.as_str());
        let accounts: Vec<User> = accounts.into_iter().filter(is_sought).collect();
        let names: Vec<&str> = accounts.iter().map(|user| user.username.as_str()).collect();
        let are_there = view.are_there(&names);
        for (user, is_there) in accounts.into_iter().zip(are_there) {
            if is_there && users.has_hostname(&user.username) {
                continue;
            }
            passed += 1;
            if to_pass > 0 {
                to_pass -= 1;
            } else if offline.len() < left {
                offline.push(user);
            }
        }
    }
    Ok(Found { hosts, offline, total: in_all + counted.unwrap_or(passed) })
}

/// Every host as a piece of JSON, made page by page while it is sent: nothing is held for long, neither memory
/// nor the registry.
struct Clients {
    view: View,
    users: Arc<Users>,
    after: Option<Name>,
    page: std::vec::IntoIter<Vec<u8>>,
}

impl Iterator for Clients {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(piece) = self.page.next() {
            return Some(piece);
        }
        let clients = self.view.page(self.after.as_ref().map(Name::as_str), PAGE);
        self.after = Some(clients.last()?.hostname.clone());
        let names: Vec<&str> = clients.iter().map(|client| client.hostname.as_str()).collect();
        // The answer has begun: what cannot be known now is left out (and was logged).
        let accounts = self.users.accounts(&names).unwrap_or_default();
        let pieces = clients.iter().map(|client| write(client, accounts.get(client.hostname.as_str())));
        self.page = pieces.collect::<Vec<_>>().into_iter();
        self.page.next()
    }
}

/// Every account that has no host there, likewise, by name.
struct OfflineAccounts {
    view: View,
    users: Arc<Users>,
    after: Option<Name>,
    page: std::vec::IntoIter<Vec<u8>>,
}

impl Iterator for OfflineAccounts {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(piece) = self.page.next() {
                return Some(piece);
            }
            let users = self.users.page(self.after.as_ref(), PAGE).unwrap_or_else(|error| {
                log::error!("accounts cannot be listed to their end: {error}");
                Vec::new()
            });
            self.after = Some(users.last()?.username.clone());
            let has_host =
                |user: &&User| self.users.has_hostname(&user.username) && self.view.ping(user.username.as_str());
            let offline = users.iter().filter(|user| !has_host(user));
            self.page = offline.map(write_offline).collect::<Vec<_>>().into_iter();
        }
    }
}

#[derive(Serialize)]
struct Shown<'c> {
    hostname: &'c Name,
    display_name: &'c str,
    ip: Option<std::net::IpAddr>,
    port: Option<u16>,
    #[serde(serialize_with = "as_map")]
    files: &'c [(FileName, Arc<FileEntry>)],
    file_count: u64,
    last_seen: Value,
    connected_at: Value,
    status: &'static str,
    created_at: Option<String>,
    last_login: Option<String>,
}

fn as_map<S: Serializer>(files: &&[(FileName, Arc<FileEntry>)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(files.iter().map(|(name, entry)| (name, entry)))
}

fn write(client: &Client, account: Option<&User>) -> Vec<u8> {
    to_bytes(&Shown {
        hostname: &client.hostname,
        display_name: &client.display_name,
        ip: Some(client.ip),
        port: Some(client.port),
        files: &client.files,
        file_count: client.file_count,
        last_seen: seconds(client.last_seen),
        connected_at: seconds(client.connected_at),
        status: if client.online { "online" } else { "offline" },
        created_at: account.map(|user| user.created_at.to_iso()),
        last_login: account.and_then(|user| user.last_login).map(|at| at.to_iso()),
    })
}

fn write_offline(user: &User) -> Vec<u8> {
    to_bytes(&Shown {
        hostname: &user.username,
        display_name: user.display_name.as_str(),
        ip: None,
        port: None,
        files: &[],
        file_count: 0,
        last_seen: Value::Null,
        connected_at: Value::Null,
        status: "offline",
        created_at: Some(user.created_at.to_iso()),
        last_login: user.last_login.map(|at| at.to_iso()),
    })
}

fn to_bytes(shown: &Shown<'_>) -> Vec<u8> {
    serde_json::to_vec(shown).unwrap_or_else(|failed| {
        log::error!("a host could not be written: {failed}");
        b"null".to_vec()
    })
}
