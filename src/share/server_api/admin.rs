//! Routes for the admin: sign-in and the registry's hosts and accounts.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{ServerApi, request_token, stats, to_http_error};
use crate::identity::{Role, User, Users};
use crate::model::Name;
use crate::net::http::{Body, HandlerResult, HttpError, JsonFields, Response, RouteCall, StatusCode, success};
use crate::share::page::PageRequest;
use crate::share::server::{HostView, RegistryView};
use crate::share::unix_time::unix_seconds_of;
use crate::share::wire::{FileEntry, FileName, Seconds};

const HOSTS_PER_CHUNK: usize = 256;
/// More accounts are read at a time where most of them are skipped.
const ACCOUNTS_PER_SCAN: usize = 4_096;
const DEFAULT_LIMIT: usize = 100;

impl ServerApi {
    pub(super) fn admin_login(&self, call: &RouteCall<'_>) -> HandlerResult {
        let fields = JsonFields::from_body(call.request)?;
        let (username, password) = (fields.any_text("username")?, fields.any_text("password")?);
        let admin = self.users.admin_login(username, password, call.request.source.ip()).map_err(to_http_error)?;
        let (token, _) = self.users.issue_token(&admin, Role::Admin);
        Ok(success(json!({"token": token.reveal(), "username": admin})))
    }

    pub(super) fn admin_verify(&self, call: &RouteCall<'_>) -> HandlerResult {
        let token = request_token(call.request, true)?;
        let admin = self.users.authenticate_admin(token.reveal()).map_err(to_http_error)?;
        Ok(success(json!({ "username": admin })))
    }

    pub(super) fn admin_registry(&self, call: &RouteCall<'_>) -> HandlerResult {
        let page = PageRequest::from_request_if_given(call.request, DEFAULT_LIMIT)?;
        let view = self.view()?;
        let mut stats = stats(&view.totals());
        if let Some(stats) = stats.as_object_mut() {
            stats.remove("total_size");
        }
        let users = Arc::clone(&self.users);
        if let Some(page) = page {
            let found = find_page(&view, &users, &page)?;
            let total = found.total;
            let head = format!("{{\"success\":true,\"stats\":{stats},\"total\":{total},\"clients\":[").into_bytes();
            return Ok(chunked(head, found.into_chunks(view, users)));
        }
        let head = format!("{{\"success\":true,\"stats\":{stats},\"clients\":[").into_bytes();
        let hosts = all_hosts(view.clone(), Arc::clone(&users));
        Ok(chunked(head, hosts.chain(offline_accounts(view, users))))
    }

    pub(super) fn discover(&self, call: &RouteCall<'_>) -> HandlerResult {
        let hostname = call.param(0);
        let reason = "hostname: no such host is registered, or it was not heard for long";
        let unknown = || HttpError::new(StatusCode::NOT_FOUND, reason);
        let (files, addr) = self.view()?.discover(hostname).ok_or_else(unknown)?;
        Ok(success(json!({"hostname": hostname, "files": files, "addr": addr})))
    }

    pub(super) fn ping(&self, call: &RouteCall<'_>) -> HandlerResult {
        let hostname = call.param(0);
        let status = if self.view()?.is_live(hostname) { "ALIVE" } else { "DEAD" };
        Ok(success(json!({"hostname": hostname, "status": status})))
    }
}

/// Produced while it is sent: a beginning, then the entries of a list.
fn chunked(head: Vec<u8>, entries: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Response {
    let mut is_first = true;
    let entries = entries.map(move |entry| {
        let comma: &[u8] = if std::mem::take(&mut is_first) { b"" } else { b"," };
        [comma, &entry].concat()
    });
    let chunks = std::iter::once(head).chain(entries).chain(std::iter::once(b"]}".to_vec()));
    Response { body: Body::Chunks(Box::new(chunks)), ..success(Value::Null) }
}

/// A page of the list: hosts by name, then the accounts without a live host.
struct AdminPage {
    hosts: Vec<Name>,
    offline: Vec<User>,
    total: usize,
}

impl AdminPage {
    /// Hosts that have gone in the meantime are left out.
    fn into_chunks(self, view: RegistryView, users: Arc<Users>) -> impl Iterator<Item = Vec<u8>> + Send {
        let hosts = self.hosts.into_iter().filter_map(move |hostname| {
            let host = view.host(hostname.as_str())?;
            let accounts = users.accounts_by_hostname(&[hostname.as_str()]).unwrap_or_default();
            Some(host_json(&host, accounts.get(hostname.as_str())))
        });
        hosts.chain(self.offline.into_iter().map(|user| offline_json(&user)))
    }
}

/// Finds a page without producing the rest of the list.
fn find_page(view: &RegistryView, users: &Users, page: &PageRequest) -> Result<AdminPage, HttpError> {
    let PageRequest { query: sought, offset, limit } = page;
    let (hosts, in_all) = if sought.matches_everything() {
        (view.host_names_from(*offset, *limit), view.host_counts().0)
    } else {
        view.search(sought, *offset, *limit)
    };
    let (mut to_pass, left) = (offset.saturating_sub(in_all), limit - hosts.len());
    let (mut offline, mut passed, mut after) = (Vec::new(), 0, None);
    // Without a search the total is known without examining each account.
    let counted = sought.matches_everything().then(|| users.count().saturating_sub(view.host_counts().1));
    while counted.is_none() || offline.len() < left {
        let accounts = users.list_page(after.as_ref(), ACCOUNTS_PER_SCAN).map_err(to_http_error)?;
        let Some(last) = accounts.last() else { break };
        after = Some(last.username.clone());
        let is_sought =
            |user: &User| sought.matches(user.username.as_str()) || sought.matches(user.display_name.as_str());
        let accounts: Vec<User> = accounts.into_iter().filter(is_sought).collect();
        let names: Vec<&str> = accounts.iter().map(|user| user.username.as_str()).collect();
        let are_there = view.are_live(&names);
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
    Ok(AdminPage { hosts, offline, total: in_all + counted.unwrap_or(passed) })
}

/// What pages have, one after the other while it is sent, so that neither memory nor the registry's lock is held for
/// long. `next_page` gets the last name of the page before.
fn in_pages(mut next_page: impl FnMut(Option<&Name>) -> Option<(Name, Vec<Vec<u8>>)>) -> impl Iterator<Item = Vec<u8>> {
    let mut after = None;
    let pages = std::iter::from_fn(move || {
        let (last, entries) = next_page(after.as_ref())?;
        after = Some(last);
        Some(entries)
    });
    pages.flatten()
}

fn all_hosts(view: RegistryView, users: Arc<Users>) -> impl Iterator<Item = Vec<u8>> {
    in_pages(move |after| {
        let hosts = view.page(after.map(Name::as_str), HOSTS_PER_CHUNK);
        let names: Vec<&str> = hosts.iter().map(|view| view.host.hostname.as_str()).collect();
        // The response has begun: fields that cannot be read now are left out; the failure was logged.
        let accounts = users.accounts_by_hostname(&names).unwrap_or_default();
        let entries = hosts.iter().map(|view| host_json(view, accounts.get(view.host.hostname.as_str()))).collect();
        Some((hosts.last()?.host.hostname.clone(), entries))
    })
}

/// The accounts without a live host, by name.
fn offline_accounts(view: RegistryView, users: Arc<Users>) -> impl Iterator<Item = Vec<u8>> {
    in_pages(move |after| {
        let accounts = users.list_page(after, HOSTS_PER_CHUNK).unwrap_or_else(|error| {
            log::error!("accounts cannot be listed to their end: {error}");
            Vec::new()
        });
        let has_host = |user: &&User| users.has_hostname(&user.username) && view.is_live(user.username.as_str());
        let entries = accounts.iter().filter(|user| !has_host(user)).map(offline_json).collect();
        Some((accounts.last()?.username.clone(), entries))
    })
}

#[derive(Serialize)]
struct HostJson<'c> {
    hostname: &'c Name,
    display_name: &'c str,
    ip: Option<std::net::IpAddr>,
    port: Option<u16>,
    #[serde(serialize_with = "files_as_map")]
    files: &'c [(FileName, Arc<FileEntry>)],
    file_count: u64,
    last_seen: Option<Seconds>,
    connected_at: Option<Seconds>,
    status: &'static str,
    created_at: Option<String>,
    last_login: Option<String>,
}

fn files_as_map<S: Serializer>(files: &&[(FileName, Arc<FileEntry>)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(files.iter().map(|(name, entry)| (name, entry)))
}

fn host_json(HostView { host, files }: &HostView, account: Option<&User>) -> Vec<u8> {
    to_json(&HostJson {
        hostname: &host.hostname,
        display_name: &host.display_name,
        ip: Some(host.ip),
        port: Some(host.port),
        files,
        file_count: host.file_count,
        last_seen: Some(unix_seconds_of(host.last_seen)),
        connected_at: Some(unix_seconds_of(host.connected_at)),
        status: if host.is_connected { "online" } else { "offline" },
        created_at: account.map(|user| user.created_at.to_iso()),
        last_login: account.and_then(|user| user.last_login).map(|at| at.to_iso()),
    })
}

fn offline_json(user: &User) -> Vec<u8> {
    to_json(&HostJson {
        hostname: &user.username,
        display_name: user.display_name.as_str(),
        ip: None,
        port: None,
        files: &[],
        file_count: 0,
        last_seen: None,
        connected_at: None,
        status: "offline",
        created_at: Some(user.created_at.to_iso()),
        last_login: user.last_login.map(|at| at.to_iso()),
    })
}

fn to_json(shown: &HostJson<'_>) -> Vec<u8> {
    serde_json::to_vec(shown).unwrap_or_else(|failed| {
        log::error!("a host could not be written: {failed}");
        b"null".to_vec()
    })
}
