//! Formats a node's responses for people.

use indicatif::HumanBytes;
use serde_json::Value;

use crate::cli::response_fields::{counted_noun, items, listing, plain_text, time};
use crate::cli::table::{Align, Column, table_of};

fn size(bytes: &Value) -> String {
    bytes.as_u64().map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default()
}

pub(super) fn own_files(response: &Value) -> String {
    let columns: &[Column<Value>] = &[
        ("name", Align::Left, |file| plain_text(&file["name"])),
        ("size", Align::Right, |file| size(&file["size"])),
        ("published", Align::Left, |file| if file["is_published"] == true { "yes" } else { "no" }.to_owned()),
        ("modified", Align::Left, |file| time(&file["modified"])),
        ("path", Align::Left, |file| plain_text(&file["path"])),
    ];
    listing(items(&response["files"]), columns, "no files yet: `p2s2 share add FILE`, or `publish FILE`")
}

pub(super) fn network_files(response: &Value) -> String {
    let columns: &[Column<Value>] = &[
        ("name", Align::Left, |file| plain_text(&file["name"])),
        ("size", Align::Right, |file| size(&file["size"])),
        ("modified", Align::Left, |file| time(&file["modified"])),
        ("owner", Align::Left, |file| match (plain_text(&file["owner_name"]), plain_text(&file["owner_hostname"])) {
            (name, hostname) if name == hostname || name.is_empty() => hostname,
            (name, hostname) => format!("{name} ({hostname})"),
        }),
    ];
    part_of(items(&response["files"]), columns, &response["total"], "file")
}

pub(super) fn peers(response: &Value) -> String {
    let columns: &[Column<Value>] = &[
        ("hostname", Align::Left, |host| plain_text(&host["hostname"])),
        ("name", Align::Left, |host| plain_text(&host["display_name"])),
        ("address", Align::Left, |host| format!("{}:{}", plain_text(&host["ip"]), plain_text(&host["port"]))),
        ("files", Align::Right, |host| plain_text(&host["file_count"])),
        ("last seen", Align::Left, |host| time(&host["last_seen"])),
    ];
    part_of(items(&response["peers"]), columns, &response["total"], "peer")
}

fn part_of(items: &[Value], columns: &[Column<Value>], total: &Value, what: &str) -> String {
    let total = total.as_u64().unwrap_or_default();
    let all = counted_noun(total, what);
    match items.len() {
        0 => all,
        shown if shown as u64 == total => format!("{}\n{all}", table_of(columns, items)),
        shown => format!("{}\n{shown} of {all}", table_of(columns, items)),
    }
}

/// A published file, and the files of others that look like duplicates of it.
pub(super) fn published(name: &str, duplicates: &Value) -> String {
    let mut said = format!("{name} is published");
    for (field, how) in [("exact_matches", "has the same size and time"), ("partial_matches", "has the same size")] {
        for other in items(&duplicates[field]) {
            let (name, owner) = (plain_text(&other["name"]), plain_text(&other["owner_hostname"]));
            said.push_str(&format!("\nnote: {name} of {owner} {how}"));
        }
    }
    said
}

pub(super) fn fetched(response: &Value) -> String {
    let checked = if response["verified"] == true { "verified" } else { "not verified: nobody published its digest" };
    format!(
        "{} is here: {} ({}, {checked})",
        plain_text(&response["file_name"]),
        plain_text(&response["save_path"]),
        size(&response["downloaded_size"])
    )
}

pub(super) fn fetch(response: &Value) -> String {
    let progress = &response["progress"];
    let mut said = format!("{}: {}", plain_text(&progress["file_name"]), plain_text(&progress["status"]));
    if let Some(error) = progress["error"].as_str() {
        said.push_str(&format!(" ({error})"));
    }
    said
}

pub(super) fn fetches(response: &Value) -> String {
    let with_id = |(id, fetch): (&String, &Value)| {
        // What is no object has nothing else to show.
        let mut fetch = fetch.as_object().cloned().unwrap_or_default();
        fetch.insert("fetch_id".to_owned(), id.as_str().into());
        Value::Object(fetch)
    };
    let all: Vec<Value> = response["fetches"].as_object().into_iter().flatten().map(with_id).collect();
    let columns: &[Column<Value>] = &[
        ("id", Align::Left, |fetch| plain_text(&fetch["fetch_id"])),
        ("name", Align::Left, |fetch| plain_text(&fetch["file_name"])),
        ("done", Align::Right, |fetch| format!("{:.0} %", fetch["progress_percent"].as_f64().unwrap_or_default())),
        ("status", Align::Left, |fetch| plain_text(&fetch["status"])),
        ("to", Align::Left, |fetch| plain_text(&fetch["save_path"])),
        ("note", Align::Left, |fetch| plain_text(&fetch["error"])),
    ];
    listing(&all, columns, "no fetches yet")
}

pub(super) fn status(response: &Value) -> String {
    let client = &response["client"];
    let mut said = format!(
        "{} ({}) is {}\npeer port {}\nfetched files go to {}\na heartbeat every {} s",
        plain_text(&client["hostname"]),
        plain_text(&client["display_name"]),
        plain_text(&client["state"]),
        plain_text(&client["port"]),
        plain_text(&client["repo"]),
        plain_text(&client["heartbeat_interval"]),
    );
    if let Some(error) = client["error"].as_str() {
        said.push_str(&format!("\n{error}"));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_say_how_much_there_is_beyond_them() {
        let file = json!({"name": "a.txt", "size": 2048, "modified": 1_795_253_400, "owner_hostname": "ann",
            "owner_name": "Ann"});
        let shown = network_files(&json!({"files": [file], "total": 3}));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[1].starts_with("a.txt  2.00 KiB  2026-11-21T09:30:00Z  Ann (ann)"), "{shown}");
        assert_eq!(lines[2], "1 of 3 files");
        assert_eq!(network_files(&json!({"files": [], "total": 0})), "0 files");
        assert_eq!(peers(&json!({"peers": [], "total": 1})), "1 peer");
    }

    #[test]
    fn a_node_that_tells_nonsense_of_a_fetch_is_shown_what_it_says() {
        let shown = fetches(&json!({"fetches": {"f1": 5, "f2": {"file_name": "a.txt", "progress_percent": 50}}}));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.len() == 3 && lines[1].starts_with("f1") && lines[2].contains("a.txt"), "{shown}");
    }

    #[test]
    fn a_published_file_comes_with_what_looks_like_it() {
        let others = json!({"exact_matches": [{"name": "b", "owner_hostname": "bob"}], "partial_matches": []});
        assert_eq!(published("a", &others), "a is published\nnote: b of bob has the same size and time");
        assert_eq!(published("a", &json!({})), "a is published");
    }
}
