//! Links to files for clients that cannot send a header: a media player, or a browser download. Each is for one file of
//! one user, and valid for an hour, but no longer than the token that created it.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde_json::json;

use super::content::{file_name_of, file_not_found, serve};
use super::{AuthenticatedUser, ClientApi};
use crate::model::secret::random_hex;
use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::{HandlerResult, RouteCall, query_pairs, success};
use crate::share::wire::FileName;

const LINK_LIFETIME_MS: u64 = 3_600_000;
/// The oldest links of the user are dropped.
const LINKS_PER_USER_MAX: usize = 256;
const LINKS_MAX: usize = 64 * LINKS_PER_USER_MAX;

/// What a ticket gives access to. Links are found by the ticket's digest, so that the time of a lookup reveals nothing
/// about valid tickets.
#[derive(Debug, Clone)]
struct DownloadLink {
    user: Name,
    name: FileName,
    /// The token that created it; verified again each time the link is used.
    token: Token,
    expires_at: Millis,
    /// Orders links that were created in the same millisecond.
    sequence: u64,
}

#[derive(Debug)]
pub struct DownloadLinks {
    clock: Clock,
    table: Mutex<LinkTable>,
}

#[derive(Debug, Default)]
struct LinkTable {
    by_digest: HashMap<[u8; 32], DownloadLink>,
    created_count: u64,
}

impl DownloadLinks {
    pub fn new(clock: Clock) -> DownloadLinks {
        DownloadLinks { clock, table: Mutex::default() }
    }

    fn create(&self, user: &Name, token: &Token, name: &FileName) -> String {
        let (now, ticket) = (self.clock.now(), random_hex::<32>());
        let mut table = self.table.lock();
        table.by_digest.retain(|_, link| now < link.expires_at);
        for (limit, owner) in [(LINKS_PER_USER_MAX, Some(user)), (LINKS_MAX, None)] {
            let in_scope = |link: &&DownloadLink| owner.is_none_or(|user| link.user == *user);
            if table.by_digest.values().filter(in_scope).count() >= limit {
                let links = table.by_digest.iter().filter(|(_, link)| in_scope(link));
                let oldest = links.min_by_key(|(_, link)| link.sequence).map(|(digest, _)| *digest);
                oldest.map(|oldest| table.by_digest.remove(&oldest));
            }
        }
        table.created_count += 1;
        let sequence = table.created_count;
        let expires_at = now.plus_ms(LINK_LIFETIME_MS);
        let (user, name, token) = (user.clone(), name.clone(), token.clone());
        table.by_digest.insert(digest(&ticket), DownloadLink { user, name, token, expires_at, sequence });
        ticket
    }

    fn resolve(&self, ticket: &str) -> Option<DownloadLink> {
        let now = self.clock.now();
        self.table.lock().by_digest.get(&digest(ticket)).filter(|link| now < link.expires_at).cloned()
    }

    pub(super) fn revoke(&self, token: &Token) {
        self.table.lock().by_digest.retain(|_, link| !link.token.matches(token));
    }
}

fn digest(ticket: &str) -> [u8; 32] {
    *blake3::hash(ticket.as_bytes()).as_bytes()
}

pub(super) fn link(api: &ClientApi, user: &AuthenticatedUser, call: &RouteCall<'_>) -> HandlerResult {
    let node = api.node_of(user)?;
    let name = file_name_of(call)?;
    node.open(&name)?;
    let ticket = api.links.create(&user.name, &user.token, &name);
    Ok(success(json!({ "url": format!("content?ticket={ticket}") })))
}

/// 404 if the link is no longer valid or the file is gone; 503 if the token cannot be verified now.
pub(super) fn linked_content(api: &ClientApi, call: &RouteCall<'_>) -> HandlerResult {
    let pairs = query_pairs(&call.request.query).unwrap_or_default();
    let ticket = pairs.iter().find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.as_str());
    let link = ticket.and_then(|ticket| api.links.resolve(ticket)).ok_or_else(file_not_found)?;
    match api.authenticator.authenticate(&link.token) {
        Ok((user, _)) if user == link.user => {}
        Err(unknown) if unknown.status.is_server_error() => return Err(unknown),
        _ => {
            api.links.revoke(&link.token);
            return Err(file_not_found());
        }
    }
    let node = api.nodes.get(&link.user).ok_or_else(file_not_found)?;
    serve(&node, call.request, &link.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_ticket_stands_for_one_file_as_long_as_its_token() {
        let links = DownloadLinks::new(Clock::start());
        let (ann, file) = (name("ann"), FileName::new("a").unwrap());
        let (first, second) = (Token::from_text("first"), Token::from_text("second"));
        let [one, other] = [&first, &second].map(|token| links.create(&ann, token, &file));
        assert!(one.len() == 64 && one != other);
        let found = links.resolve(&one).unwrap();
        assert_eq!((&found.user, &found.name), (&ann, &file));
        assert!(found.token.matches(&first));
        for wrong in ["", "x", &one[1..], &one.to_uppercase()] {
            assert!(wrong == one || links.resolve(wrong).is_none(), "{wrong}");
        }
        links.revoke(&first);
        assert!(links.resolve(&one).is_none() && links.resolve(&other).is_some());
        let now = links.clock.now();
        links.table.lock().by_digest.values_mut().for_each(|link| link.expires_at = now);
        assert!(links.resolve(&other).is_none(), "an hour is over");
        links.create(&ann, &first, &file);
        assert_eq!(links.table.lock().by_digest.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn the_oldest_of_a_user_goes_and_no_others() {
        let links = DownloadLinks::new(Clock::start());
        let (token, file) = (Token::from_text("t"), FileName::new("a").unwrap());
        let bobs = links.create(&name("bob"), &token, &file);
        let anns: Vec<String> = (0..=LINKS_PER_USER_MAX).map(|_| links.create(&name("ann"), &token, &file)).collect();
        assert!(
            links.resolve(&anns[0]).is_none() && links.resolve(&anns[1]).is_some() && links.resolve(&bobs).is_some()
        );
        assert_eq!(links.table.lock().by_digest.len(), LINKS_PER_USER_MAX + 1);
    }
}
