//! Formats a node's responses for people.

use indicatif::HumanBytes;
use serde_json::Value;

use crate::cli::response_fields::{counted_noun, plain_text, rows, time};
use crate::cli::table::{Align, table};

fn size(bytes: &Value) -> String {
    bytes.as_u64().map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default()
}

/// The user's tracked files.
pub(super) fn own_files(response: &Value) -> String {
    let rows = rows(&response["files"], |file| {
        let is_published = file["is_published"] == true;
        let shown = if is_published { "yes" } else { "no" };
        vec![
            plain_text(&file["name"]),
            size(&file["size"]),
            shown.to_owned(),
            time(&file["modified"]),
            plain_text(&file["path"]),
        ]
    });
    if rows.is_empty() {
        return "no files yet: `p2s2 share add FILE`, or `publish FILE`".to_owned();
    }
    let columns = [
        ("name", Align::Left),
        ("size", Align::Right),
        ("published", Align::Left),
        ("modified", Align::Left),
        ("path", Align::Left),
    ];
    table(&columns, &rows)
}

/// Everybody's published files, and their total number.
pub(super) fn network_files(response: &Value) -> String {
    let rows = rows(&response["files"], |file| {
        let owner = match (plain_text(&file["owner_name"]), plain_text(&file["owner_hostname"])) {
            (name, hostname) if name == hostname || name.is_empty() => hostname,
            (name, hostname) => format!("{name} ({hostname})"),
        };
        vec![plain_text(&file["name"]), size(&file["size"]), time(&file["modified"]), owner]
    });
    let columns = [("name", Align::Left), ("size", Align::Right), ("modified", Align::Left), ("owner", Align::Left)];
    part_of(&table(&columns, &rows), rows.len(), &response["total"], "file")
}

/// The hosts of the network, and their total number.
pub(super) fn peers(response: &Value) -> String {
    let rows = rows(&response["peers"], |host| {
        vec![
            plain_text(&host["hostname"]),
            plain_text(&host["display_name"]),
            format!("{}:{}", plain_text(&host["ip"]), plain_text(&host["port"])),
            plain_text(&host["file_count"]),
            time(&host["last_seen"]),
        ]
    });
    let columns = [
        ("hostname", Align::Left),
        ("name", Align::Left),
        ("address", Align::Left),
        ("files", Align::Right),
        ("last seen", Align::Left),
    ];
    part_of(&table(&columns, &rows), rows.len(), &response["total"], "peer")
}

fn part_of(table: &str, shown: usize, total: &Value, what: &str) -> String {
    let total = total.as_u64().unwrap_or_default();
    let all = counted_noun(total, what);
    if shown == 0 {
        return all;
    }
    if shown as u64 == total { format!("{table}\n{all}") } else { format!("{table}\n{shown} of {all}") }
}

/// A published file, and the files of others that look like duplicates of it.
pub(super) fn published(name: &str, duplicates: &Value) -> String {
    let mut said = format!("{name} is published");
    for (field, how) in [("exact_matches", "has the same size and time"), ("partial_matches", "has the same size")] {
        for other in duplicates[field].as_array().into_iter().flatten() {
            said.push_str(&format!(
                "\nnote: {} of {} {how}",
                plain_text(&other["name"]),
                plain_text(&other["owner_hostname"])
            ));
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

/// The state of one fetch.
pub(super) fn fetch(response: &Value) -> String {
    let progress = &response["progress"];
    let mut said = format!("{}: {}", plain_text(&progress["file_name"]), plain_text(&progress["status"]));
    if let Some(error) = progress["error"].as_str() {
        said.push_str(&format!(" ({error})"));
    }
    said
}

/// A table of all fetches.
pub(super) fn fetches(response: &Value) -> String {
    let rows: Vec<Vec<String>> = response["fetches"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(id, it)| {
            let percent = it["progress_percent"].as_f64().unwrap_or_default();
            vec![
                id.clone(),
                plain_text(&it["file_name"]),
                format!("{percent:.0} %"),
                plain_text(&it["status"]),
                plain_text(&it["save_path"]),
                plain_text(&it["error"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no fetches yet".to_owned();
    }
    let columns = [
        ("id", Align::Left),
        ("name", Align::Left),
        ("done", Align::Right),
        ("status", Align::Left),
        ("to", Align::Left),
        ("note", Align::Left),
    ];
    table(&columns, &rows)
}

/// The state of the node.
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
    fn a_published_file_comes_with_what_looks_like_it() {
        let others = json!({"exact_matches": [{"name": "b", "owner_hostname": "bob"}], "partial_matches": []});
        assert_eq!(published("a", &others), "a is published\nnote: b of bob has the same size and time");
        assert_eq!(published("a", &json!({})), "a is published");
    }
}
