//! What a person is shown.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::cli::repl::{Screen, Style, clean};
use crate::cli::table::{Align, table};
use crate::lan::history::{Confirmation, Direction, Entry, OwnProfile};
use crate::lan::node::{Known, Left, Shown};
use crate::lan::text_of;
use crate::lan::wire::{Message, Stamp, UserId};
use crate::model::{Clock, Millis};

/// Prints what happened: names and text, and in verbose mode times, addresses, types and drops.
pub(super) fn shown(screen: &Screen, shown: &Shown, verbose: &AtomicBool) {
    let verbose = verbose.load(Relaxed);
    if !(verbose || shown.is_terse()) {
        return;
    }
    let now = Clock::start().now();
    if screen.is_json() {
        let mut it = as_json(shown);
        it["at"] = (now.0 / 1000).into();
        return screen.print_json(&it);
    }
    let (style, text) = if verbose { in_full(shown) } else { in_short(shown) };
    let text = clean_lines(&text);
    let text = style.map_or_else(|| text.clone(), |style| screen.paint(style, &text));
    let time = if verbose { format!("[{}] ", time(now)) } else { String::new() };
    screen.print(&format!("{time}{text}"));
}

/// A text of several lines: each is safe to print, those behind the first stand below it.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n    ")
}

fn in_short(shown: &Shown) -> (Option<Style>, String) {
    match shown {
        Shown::Post { post, .. } => (None, format!("{}: {}", post.user_id.name, post.content)),
        Shown::Dm { sender, content, .. } => (Some(Style::Good), format!("{} (to you): {content}", sender.name)),
        Shown::Profile { profile, .. } => {
            (None, format!("{} is {}", profile.user_id.name, text_of(&Message::Profile(profile.clone()))))
        }
        Shown::Came(peer) if peer.is_server() => {
            (Some(Style::Dim), format!("server {} is here: {}", peer.user_id.name, serves(peer)))
        }
        Shown::Came(peer) => (Some(Style::Dim), format!("{} is here", peer.user_id.name)),
        Shown::Left { peer, why } => {
            let why = match why {
                Left::Unheard => "was not heard any more",
                Left::Refused => "has gone",
                Left::Replaced => "was replaced by another at the same address",
            };
            (Some(Style::Dim), format!("{} {why}", peer.user_id.name))
        }
        Shown::PeerRenamed { old, new } => (Some(Style::Dim), format!("{} is {} now", old.name, new.name)),
        Shown::Moved { user_id, old, new } => {
            (Some(Style::Dim), format!("{} is at {new} now, no longer at {old}", user_id.name))
        }
        Shown::MoveRefused { user_id, old, new } => (
            Some(Style::Bad),
            format!("somebody at {new} claims to be {}, who still answers at {old}: not believed", user_id.name),
        ),
        Shown::Renamed { old, new } => {
            (Some(Style::Bad), format!("another {old} is on this machine: you are {new} from now on"))
        }
        Shown::DmConfirmed { to, .. } => (Some(Style::Dim), format!("{} has your message", to.name)),
        Shown::DmUnconfirmed { to, .. } => {
            (Some(Style::Bad), format!("unconfirmed: {} did not say that your message arrived", to.name))
        }
        Shown::Full { peers } => {
            (Some(Style::Bad), format!("{peers} are known, which is the most there can be: newcomers are not listed"))
        }
        Shown::Dropped { from, cause, detail } => {
            (Some(Style::Dim), format!("dropped ({cause}) from {from}: {detail}"))
        }
        Shown::DroppedMore { counts } => {
            let counts: Vec<String> = counts.iter().map(|(cause, count)| format!("{count} ({cause})")).collect();
            (Some(Style::Dim), format!("dropped besides, within a second: {}", counts.join(", ")))
        }
        Shown::NotKept { sender, kind, reason, .. } => (
            Some(Style::Bad),
            format!("a {kind} of {} came and could not be kept, so it is not shown: {reason}", sender.name),
        ),
    }
}

fn in_full(shown: &Shown) -> (Option<Style>, String) {
    let (style, short) = in_short(shown);
    let text = match shown {
        Shown::Post { from, post } => format!("{from} POST {}: {}", post.user_id, post.content),
        Shown::Dm { from, sender, content, .. } => format!("{from} DM {sender}: {content}"),
        Shown::Profile { from, profile } => {
            format!("{from} PROFILE {}: {}", profile.user_id, text_of(&Message::Profile(profile.clone())))
        }
        Shown::Came(peer) => format!("{} PEER_DISCOVERY {}: {short}", peer.addr, peer.user_id),
        Shown::Left { peer, .. } => format!("{} {}: {short}", peer.addr, peer.user_id),
        Shown::DmConfirmed { to, message_id } => format!("ACK {to} {message_id}: {short}"),
        Shown::DmUnconfirmed { to, message_id } => format!("DM {to} {message_id}: {short}"),
        _ => short,
    };
    (style, text)
}

fn as_json(shown: &Shown) -> Value {
    let id = |stamp: &Stamp| stamp.message_id.clone();
    match shown {
        Shown::Post { from, post } => json!({
            "event": "post", "from": from, "user_id": post.user_id.to_string(), "content": post.content,
            "timestamp": post.stamp.timestamp, "message_id": id(&post.stamp),
        }),
        Shown::Dm { from, sender, content, message_id, timestamp } => json!({
            "event": "dm", "from": from, "user_id": sender.to_string(), "content": content,
            "timestamp": timestamp, "message_id": message_id,
        }),
        Shown::Profile { from, profile } => json!({
            "event": "profile", "from": from, "user_id": profile.user_id.to_string(),
            "display_name": profile.display_name, "status": profile.status,
            "avatar_type": profile.avatar.as_ref().map(|avatar| avatar.kind.mime()),
            "avatar_bytes": profile.avatar.as_ref().map(|avatar| avatar.bytes.len()),
            "timestamp": profile.stamp.timestamp, "message_id": id(&profile.stamp),
        }),
        Shown::Came(peer) => json!({ "event": "came", "peer": peer_json(peer) }),
        Shown::Left { peer, why } => {
            let why = match why {
                Left::Unheard => "unheard",
                Left::Refused => "refused",
                Left::Replaced => "replaced",
            };
            json!({ "event": "left", "peer": peer_json(peer), "why": why })
        }
        Shown::PeerRenamed { old, new } => {
            json!({ "event": "peer_renamed", "old": old.to_string(), "new": new.to_string() })
        }
        Shown::Moved { user_id, old, new } => moved("moved", user_id, *old, *new),
        Shown::MoveRefused { user_id, old, new } => moved("move_refused", user_id, *old, *new),
        Shown::Renamed { old, new } => json!({ "event": "renamed", "old": old, "new": new }),
        Shown::DmConfirmed { to, message_id } => {
            json!({ "event": "confirmed", "to": to.to_string(), "message_id": message_id })
        }
        Shown::DmUnconfirmed { to, message_id } => {
            json!({ "event": "unconfirmed", "to": to.to_string(), "message_id": message_id })
        }
        Shown::Full { peers } => json!({ "event": "full", "peers": peers }),
        Shown::Dropped { from, cause, detail } => {
            json!({ "event": "dropped", "from": from, "cause": cause.as_str(), "detail": detail })
        }
        Shown::DroppedMore { counts } => {
            let counts: serde_json::Map<String, Value> =
                counts.iter().map(|(cause, count)| (cause.as_str().to_owned(), (*count).into())).collect();
            json!({ "event": "dropped_more", "counts": counts })
        }
        Shown::NotKept { from, sender, kind, message_id, reason } => json!({
            "event": "not_kept", "from": from, "user_id": sender.to_string(), "type": kind,
            "message_id": message_id, "reason": reason,
        }),
    }
}

fn moved(event: &str, user_id: &UserId, old: SocketAddr, new: SocketAddr) -> Value {
    json!({ "event": event, "user_id": user_id.to_string(), "old": old, "new": new })
}

fn peer_json(peer: &Known) -> Value {
    let serves: serde_json::Map<String, Value> =
        peer.serves.iter().map(|(name, port)| (name.clone(), (*port).into())).collect();
    json!({
        "user_id": peer.user_id.to_string(), "name": peer.user_id.name, "ip": peer.addr.ip(), "port": peer.addr.port(),
        "serves": serves, "cert_sha256": peer.cert_sha256,
    })
}

fn serves(peer: &Known) -> String {
    peer.serves.iter().map(|(name, port)| format!("{name} at {}:{port}", peer.addr.ip())).collect::<Vec<_>>().join(", ")
}

/// Who is here.
pub(super) fn list(people: &[&Known], now: Millis) -> String {
    if people.is_empty() {
        return "nobody is here yet".to_owned();
    }
    let rows: Vec<Vec<String>> = people
        .iter()
        .map(|peer| {
            vec![
                peer.user_id.name.to_string(),
                peer.addr.ip().to_string(),
                peer.addr.port().to_string(),
                format!("{} s ago", peer.heard_at.until(now).as_secs()),
            ]
        })
        .collect();
    table(&[("name", Align::Left), ("ip", Align::Left), ("port", Align::Right), ("last seen", Align::Right)], &rows)
}

pub(super) fn list_json(people: &[&Known], now: Millis) -> Vec<Value> {
    let one = |peer: &&Known| {
        let mut it = peer_json(peer);
        it["last_seen_s"] = peer.heard_at.until(now).as_secs().into();
        it
    };
    people.iter().map(one).collect()
}

/// Messages that were kept, oldest first.
pub(super) fn history(entries: &[Entry]) -> String {
    let one = |entry: &Entry| {
        let who = match entry.direction {
            Direction::Received => format!("{}:", entry.who.name),
            Direction::Sent if entry.kind == crate::lan::history::Kind::Dm => format!("you to {}:", entry.who.name),
            Direction::Sent => "you:".to_owned(),
        };
        let fate = match entry.confirmation {
            Confirmation::NotAsked => "",
            Confirmation::Waiting => " (waiting to be confirmed)",
            Confirmation::Confirmed => " (confirmed)",
            Confirmation::Unconfirmed => " (unconfirmed)",
        };
        format!("{} {} {} {}{fate}", time(entry.at), entry.kind, clean(&who), clean_lines(&entry.text))
    };
    entries.iter().map(one).collect::<Vec<_>>().join("\n")
}

pub(super) fn history_json(entries: &[Entry]) -> Vec<Value> {
    let one = |entry: &Entry| {
        json!({
            "at": entry.at.0 / 1000, "sent": entry.direction == Direction::Sent, "type": entry.kind.as_text(),
            "user_id": entry.who.to_string(), "text": entry.text, "confirmation": entry.confirmation.as_text(),
            "message_id": entry.message_id,
        })
    };
    entries.iter().map(one).collect()
}

/// One's own profile, as it was kept.
pub(super) fn profile_json(profile: &OwnProfile) -> Value {
    json!({
        "display_name": profile.display_name, "status": profile.status,
        "avatar_type": profile.avatar.as_ref().map(|avatar| avatar.kind.mime()),
        "avatar_bytes": profile.avatar.as_ref().map(|avatar| avatar.bytes.len()),
    })
}

fn time(at: Millis) -> String {
    let iso = Millis::from_unix_s(at.0 / 1000).to_iso();
    iso.replace('T', " ").trim_end_matches('Z').to_owned()
}

/// `1 peer`, `2 peers`.
pub(super) fn peers(count: usize) -> String {
    if count == 1 { "1 peer".to_owned() } else { format!("{count} peers") }
}
