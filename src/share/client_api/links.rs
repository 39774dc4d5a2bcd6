//! Addresses of files for what cannot send a header: a player, or a browser that saves. Each stands for one file of one
//! user, for an hour, and for no longer than the token with which it was made is good.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde_json::json;

use super::content::{name_of, no_such_file, serve};
use super::{ClientApi, User, refusal};
use crate::model::secret::random_hex;
use crate::model::{Clock, Millis, Name, Token};
use crate::net::http::{Answered, Call, query_pairs, success};
use crate::share::wire::FileName;

/// How long one is good.
const GOOD_FOR_MS: u64 = 3_600_000;
/// Most of one user; the oldest go.
const OF_ONE_MAX: usize = 256;
/// Most of all users; the oldest go.
const IN_ALL_MAX: usize = 64 * OF_ONE_MAX;

/// What a ticket stands for. Not the ticket but its digest is kept: nobody finds one by how long looking takes.
#[derive(Debug, Clone)]
struct Link {
    user: Name,
    name: FileName,
    /// With which it was made: shown to whoever checks tokens each time it is used.
    token: Token,
    until: Millis,
    /// Of two that were made in one millisecond the later one is the newer.
    number: u64,
}

/// The addresses that are good.
#[derive(Debug)]
pub struct Links {
    clock: Clock,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    by_digest: HashMap<[u8; 32], Link>,
    made: u64,
}

impl Links {
    /// None yet.
    pub fn new(clock: Clock) -> Links {
        Links { clock, list: Mutex::default() }
    }

    /// A ticket for a file of a user, who has shown this token.
    fn make(&self, user: &Name, token: &Token, name: &FileName) -> String {
        let (now, ticket) = (self.clock.now(), random_hex::<32>());
        let mut list = self.list.lock();
        list.by_digest.retain(|_, link| now < link.until);
        for (most, of_whom) in [(OF_ONE_MAX, Some(user)), (IN_ALL_MAX, None)] {
            let of_them = |link: &&Link| of_whom.is_none_or(|user| link.user == *user);
            if list.by_digest.values().filter(of_them).count() >= most {
                let oldest =
                    list.by_digest.iter().filter(|(_, link)| of_them(link)).min_by_key(|(_, link)| link.number);
                let oldest = oldest.map(|(digest, _)| *digest);
                oldest.map(|oldest| list.by_digest.remove(&oldest));
            }
        }
        list.made += 1;
        let number = list.made;
        let until = now.plus_ms(GOOD_FOR_MS);
        list.by_digest.insert(
            digest(&ticket),
            Link { user: user.clone(), name: name.clone(), token: token.clone(), until, number },
        );
        ticket
    }

    /// What a ticket stands for, if it is good still.
    fn find(&self, ticket: &str) -> Option<Link> {
        let now = self.clock.now();
        self.list.lock().by_digest.get(&digest(ticket)).filter(|link| now < link.until).cloned()
    }

    /// Those that were made with a token are good no more.
    pub(super) fn end_of(&self, token: &Token) {
        self.list.lock().by_digest.retain(|_, link| !link.token.matches(token));
    }
}

fn digest(ticket: &str) -> [u8; 32] {
    *blake3::hash(ticket.as_bytes()).as_bytes()
}

/// POST `files/{name}/link`: an address of that file.
///
/// # Errors
/// 404 as for its content, 409 before init.
pub(super) fn link(api: &ClientApi, user: &User, call: &Call<'_>) -> Answered {
    let node = api.node_of(user)?;
    let name = name_of(call)?;
    node.open(&name).map_err(|error| refusal(&error))?;
    let ticket = api.links.make(&user.name, &user.token, &name);
    Ok(success(json!({ "url": format!("content?ticket={ticket}") })))
}

/// GET `content`: the file that a ticket stands for.
///
/// # Errors
/// 404 where it is good no more, or the file is gone; 503 where nobody can tell whether the token is good.
pub(super) fn linked(api: &ClientApi, call: &Call<'_>) -> Answered {
    let pairs = query_pairs(&call.request.query).unwrap_or_default();
    let ticket = pairs.iter().find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.as_str());
    let link = ticket.and_then(|ticket| api.links.find(ticket)).ok_or_else(no_such_file)?;
    match api.sign_in.user_of(&link.token) {
        Ok((user, _)) if user == link.user => {}
        Err(unknown) if unknown.status.is_server_error() => return Err(unknown),
        _ => {
            api.links.end_of(&link.token);
            return Err(no_such_file());
        }
    }
    let node = api.nodes.get(&link.user).ok_or_else(no_such_file)?;
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
        let links = Links::new(Clock::start());
        let (ann, file) = (name("ann"), FileName::new("a").unwrap());
        let (first, second) = (Token::from_text("first"), Token::from_text("second"));
        let [one, other] = [&first, &second].map(|token| links.make(&ann, token, &file));
        assert!(one.len() == 64 && one != other);
        let found = links.find(&one).unwrap();
        assert_eq!((&found.user, &found.name), (&ann, &file));
        assert!(found.token.matches(&first));
        for wrong in ["", "x", &one[1..], &one.to_uppercase()] {
            assert!(wrong == one || links.find(wrong).is_none(), "{wrong}");
        }
        links.end_of(&first);
        assert!(links.find(&one).is_none() && links.find(&other).is_some());
        let now = links.clock.now();
        links.list.lock().by_digest.values_mut().for_each(|link| link.until = now);
        assert!(links.find(&other).is_none(), "an hour is over");
        links.make(&ann, &first, &file);
        assert_eq!(links.list.lock().by_digest.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn the_oldest_of_a_user_goes_and_no_others() {
        let links = Links::new(Clock::start());
        let (token, file) = (Token::from_text("t"), FileName::new("a").unwrap());
        let bobs = links.make(&name("bob"), &token, &file);
        let anns: Vec<String> = (0..=OF_ONE_MAX).map(|_| links.make(&name("ann"), &token, &file)).collect();
        assert!(links.find(&anns[0]).is_none() && links.find(&anns[1]).is_some() && links.find(&bobs).is_some());
        assert_eq!(links.list.lock().by_digest.len(), OF_ONE_MAX + 1);
    }
}
