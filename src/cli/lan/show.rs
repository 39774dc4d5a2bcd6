//! Formats LAN events for people and as JSON.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::cli::output::sanitize;
use crate::cli::repl::{Screen, Style};
use crate::cli::table::{Align, table};
use crate::lan::history::{Confirmation, Direction, HistoryEntry};
use crate::lan::node::{Notification, PeerInfo, PeerLeftReason};
use crate::lan::wire::{Dm, Post, Profile, Talk, TalkBody, TalkKind};
use crate::model::{Clock, Millis, Name};

/// Prints an event: names and text; in verbose mode also times, addresses, message types and dropped datagrams.
pub(super) fn print_event(screen: &Screen, notification: &Notification, verbose: &AtomicBool) {
    let verbose = verbose.load(Relaxed);
    if !(verbose || notification.is_shown_when_terse()) {
        return;
    }
    let now = Clock::start().now();
    let shown = describe(notification);
    if screen.is_json() {
        let mut it = shown.json;
        it["at"] = (now.0 / 1000).into();
        return screen.print_json(&it);
    }
    let text = if verbose { shown.verbose_text.unwrap_or(shown.text) } else { shown.text };
    let text = clean_lines(&text);
    let text = shown.style.map_or_else(|| text.clone(), |style| screen.paint(style, &text));
    let time = if verbose { format!("[{}] ", format_time(now)) } else { String::new() };
    screen.print(&format!("{time}{text}"));
}

/// Sanitizes each line; continuation lines are indented.
fn clean_lines(text: &str) -> String {
    text.lines().map(sanitize).collect::<Vec<_>>().join("\n    ")
}

struct ShownEvent {
    style: Option<Style>,
    text: String,
    /// In verbose mode, if that says more.
    verbose_text: Option<String>,
    json: Value,
}

fn describe(notification: &Notification) -> ShownEvent {
    let dim = |text: String, json: Value| ShownEvent { style: Some(Style::Dim), text, verbose_text: None, json };
    let bad = |text: String, json: Value| ShownEvent { style: Some(Style::Bad), ..dim(text, json) };
    let with_head =
        |head: String, shown: ShownEvent| ShownEvent { verbose_text: Some(format!("{head}: {}", shown.text)), ..shown };
    match notification {
        Notification::Heard { from, talk } => describe_talk(*from, talk),
        Notification::PeerJoined(peer) => {
            let name = &peer.user_id.name;
            let text = match peer.is_server() {
                true => format!("server {name} is here: {}", services_text(peer)),
                false => format!("{name} is here"),
            };
            let head = format!("{} PEER_DISCOVERY {}", peer.addr, peer.user_id);
            with_head(head, dim(text, json!({ "event": "came", "peer": peer_json(peer) })))
        }
        Notification::PeerLeft { peer, why } => {
            let (text, why) = match why {
                PeerLeftReason::TimedOut => ("was not heard any more", "unheard"),
                PeerLeftReason::Refused => ("has gone", "refused"),
                PeerLeftReason::Replaced => ("was replaced by another at the same address", "replaced"),
            };
            let json = json!({ "event": "left", "peer": peer_json(peer), "why": why });
            with_head(format!("{} {}", peer.addr, peer.user_id), dim(format!("{} {text}", peer.user_id.name), json))
        }
        Notification::PeerRenamed { old, new } => dim(
            format!("{} is {} now", old.name, new.name),
            json!({ "event": "peer_renamed", "old": old.to_string(), "new": new.to_string() }),
        ),
        Notification::PeerMoved { user_id, old, new } => dim(
            format!("{} is at {new} now, no longer at {old}", user_id.name),
            json!({ "event": "moved", "user_id": user_id.to_string(), "old": old, "new": new }),
        ),
        Notification::PeerMoveRefused { user_id, old, new } => bad(
            format!("somebody at {new} claims to be {}, who still answers at {old}: not believed", user_id.name),
            json!({ "event": "move_refused", "user_id": user_id.to_string(), "old": old, "new": new }),
        ),
        Notification::SelfRenamed { old, new } => bad(
            format!("another {old} is on this machine: you are {new} from now on"),
            json!({ "event": "renamed", "old": old, "new": new }),
        ),
        Notification::DmConfirmed { to, message_id } => {
            let json = json!({ "event": "confirmed", "to": to.to_string(), "message_id": message_id });
            with_head(format!("ACK {to} {message_id}"), dim(format!("{} has your message", to.name), json))
        }
        Notification::DmUnconfirmed { to, message_id } => {
            let text = format!("unconfirmed: {} did not say that your message arrived", to.name);
            let json = json!({ "event": "unconfirmed", "to": to.to_string(), "message_id": message_id });
            with_head(format!("DM {to} {message_id}"), bad(text, json))
        }
        Notification::PeerTableFull { peers } => bad(
            format!("{peers} are known, which is the most there can be: newcomers are not listed"),
            json!({ "event": "full", "peers": peers }),
        ),
        Notification::DatagramDropped { from, cause, detail } => dim(
            format!("dropped ({cause}) from {from}: {detail}"),
            json!({ "event": "dropped", "from": from, "cause": cause.as_text(), "detail": detail }),
        ),
        Notification::DropSummary { counts } => {
            let texts: Vec<String> = counts.iter().map(|(cause, count)| format!("{count} ({cause})")).collect();
            let counts: Value = counts.iter().map(|(cause, count)| (cause.to_string(), *count)).collect();
            let text = format!("dropped besides, within a second: {}", texts.join(", "));
            dim(text, json!({ "event": "dropped_more", "counts": counts }))
        }
        Notification::MessageNotStored { from, sender, kind, message_id, reason } => bad(
            format!("a {kind} of {} came and could not be kept, so it is not shown: {reason}", sender.name),
            json!({
                "event": "not_kept", "from": from, "user_id": sender.to_string(), "type": kind,
                "message_id": message_id, "reason": reason,
            }),
        ),
    }
}

fn describe_talk(from: SocketAddr, talk: &Talk) -> ShownEvent {
    let (kind, sender) = (talk.body.kind(), &talk.from);
    let (style, text) = talk_text(&sender.name, &talk.body);
    let mut json = talk_json(&talk.body);
    json["event"] = event_name(kind).into();
    json["from"] = from.to_string().into();
    json["user_id"] = sender.to_string().into();
    json["timestamp"] = talk.stamp.timestamp.into();
    json["message_id"] = talk.stamp.message_id.clone().into();
    let verbose_text = Some(format!("{from} {} {sender}: {}", kind.type_name, talk.body.text()));
    ShownEvent { style, text, verbose_text, json }
}

fn talk_text(name: &Name, body: &TalkBody) -> (Option<Style>, String) {
    match body {
        TalkBody::Post(Post { content }) => (None, format!("{name}: {content}")),
        TalkBody::Dm(Dm { content }) => (Some(Style::Good), format!("{name} (to you): {content}")),
        TalkBody::Profile(profile) => (None, format!("{name} is {profile}")),
    }
}

pub(super) fn event_name(kind: &TalkKind) -> String {
    kind.type_name.to_lowercase()
}

fn talk_json(body: &TalkBody) -> Value {
    match body {
        TalkBody::Post(Post { content }) | TalkBody::Dm(Dm { content }) => json!({ "content": content }),
        TalkBody::Profile(profile) => profile_json(profile),
    }
}

/// `{"NAME": PORT, …}`.
pub(super) fn services_json(serves: &[(String, u16)]) -> Value {
    serves.iter().map(|(name, port)| (name.clone(), Value::from(*port))).collect()
}

fn peer_json(peer: &PeerInfo) -> Value {
    json!({
        "user_id": peer.user_id.to_string(), "name": peer.user_id.name, "ip": peer.addr.ip(), "port": peer.addr.port(),
        "serves": services_json(&peer.serves), "cert_sha256": peer.cert_sha256,
    })
}

fn services_text(peer: &PeerInfo) -> String {
    peer.serves.iter().map(|(name, port)| format!("{name} at {}:{port}", peer.addr.ip())).collect::<Vec<_>>().join(", ")
}

pub(super) fn peer_table(people: &[&PeerInfo], now: Millis) -> String {
    if people.is_empty() {
        return "nobody is here yet".to_owned();
    }
    let row = |peer: &&PeerInfo| {
        let last_seen = format!("{} s ago", peer.heard_at.until(now).as_secs());
        vec![peer.user_id.name.to_string(), peer.addr.ip().to_string(), peer.addr.port().to_string(), last_seen]
    };
    let rows: Vec<Vec<String>> = people.iter().map(row).collect();
    table(&[("name", Align::Left), ("ip", Align::Left), ("port", Align::Right), ("last seen", Align::Right)], &rows)
}

pub(super) fn peer_list_json(people: &[&PeerInfo], now: Millis) -> Vec<Value> {
    let one = |peer: &&PeerInfo| {
        let mut it = peer_json(peer);
        it["last_seen_s"] = peer.heard_at.until(now).as_secs().into();
        it
    };
    people.iter().map(one).collect()
}

pub(super) fn history_text(entries: &[HistoryEntry]) -> String {
    let one = |entry: &HistoryEntry| {
        let who = match entry.direction {
            Direction::Received => format!("{}:", entry.user_id.name),
            Direction::Sent if entry.kind.is_to_one => format!("you to {}:", entry.user_id.name),
            Direction::Sent => "you:".to_owned(),
        };
        let suffix = match entry.confirmation {
            Confirmation::NotAsked => "",
            Confirmation::Waiting => " (waiting to be confirmed)",
            Confirmation::Confirmed => " (confirmed)",
            Confirmation::Unconfirmed => " (unconfirmed)",
        };
        let (at, who, text) = (format_time(entry.at), sanitize(&who), clean_lines(&entry.text));
        format!("{at} {} {who} {text}{suffix}", entry.kind.type_name)
    };
    entries.iter().map(one).collect::<Vec<_>>().join("\n")
}

pub(super) fn history_json(entries: &[HistoryEntry]) -> Vec<Value> {
    let one = |entry: &HistoryEntry| {
        json!({
            "at": entry.at.0 / 1000, "sent": entry.direction == Direction::Sent, "type": entry.kind.type_name,
            "user_id": entry.user_id.to_string(), "text": entry.text, "confirmation": entry.confirmation.as_text(),
            "message_id": entry.message_id,
        })
    };
    entries.iter().map(one).collect()
}

pub(super) fn profile_json(profile: &Profile) -> Value {
    json!({
        "display_name": profile.display_name, "status": profile.status,
        "avatar_type": profile.avatar.as_ref().map(|avatar| avatar.kind.as_text()),
        "avatar_bytes": profile.avatar.as_ref().map(|avatar| avatar.bytes.len()),
    })
}

fn format_time(at: Millis) -> String {
    let iso = Millis::from_unix_s(at.0 / 1000).to_iso();
    iso.replace('T', " ").trim_end_matches('Z').to_owned()
}
