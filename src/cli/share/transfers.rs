//! Publishes, hides and fetches files, several at a time.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::node_client::{AlreadyReported, Interrupted, NodeClient, text};
use super::progress::FetchProgressLine;
use super::show;
use super::words::{absolute, dedup_names, glob_matches, is_pattern, matching_paths, percent_encoded, shell_quoted};
use crate::cli::output::sanitize;
use crate::model::text::nfc;
use crate::net::shutdown::ShutdownSignal;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Files that are published or fetched concurrently.
const CONCURRENT_FILES_MAX: usize = 8;
/// Page size when the files of the network are listed.
const PAGE: usize = 1000;

pub(super) struct FetchOptions<'a> {
    pub(super) to: Option<&'a str>,
    pub(super) from: Option<&'a str>,
    pub(super) background: bool,
}

/// Replaces each pattern by the names that match it; each name once.
fn expand_patterns(
    files: &[String],
    matching: impl Fn(&str) -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in files {
        if is_pattern(file) {
            names.extend(matching(file)?);
        } else {
            names.push(file.clone());
        }
    }
    Ok(dedup_names(names))
}

impl NodeClient {
    /// Publishes the files concurrently, so that node and registry can group their commits.
    pub(super) fn publish_all(&self, files: &[String], named: Option<String>, overwrite: bool) -> anyhow::Result<()> {
        let files: Vec<String> = files.iter().flat_map(|file| matching_paths(file)).collect();
        if let [file] = &files[..] {
            return self.publish(file, named, overwrite);
        }
        if named.is_some() {
            bail!("--as: {} files cannot have one name", files.len());
        }
        let files = files.into_iter().filter(|file| {
            let is_folder = Path::new(file).is_dir();
            if is_folder {
                eprintln!("note: {} is a folder: left out", sanitize(file));
            }
            !is_folder
        });
        self.for_each_concurrently(files.collect(), |file| self.publish(file, None, overwrite))
    }

    pub(super) fn unpublish_all(&self, files: &[String]) -> anyhow::Result<()> {
        let names = expand_patterns(files, |pattern| {
            let published = self.get("published-files")?;
            let all = published["files"].as_array().into_iter().flatten().filter_map(|file| file["name"].as_str());
            let found: Vec<String> = all.filter(|name| glob_matches(pattern, name)).map(str::to_owned).collect();
            if found.is_empty() {
                bail!("you publish no file like {pattern}");
            }
            Ok(found)
        })?;
        let unpublish = |name: &str| -> anyhow::Result<()> {
            let is_hidden = |_: &Value| format!("{name} is hidden from others");
            self.post_and_print("unpublish", "unpublish", &json!({ "fname": name }), is_hidden)
        };
        match &names[..] {
            [name] => unpublish(name),
            _ => self.for_each_concurrently(names, unpublish),
        }
    }

    pub(super) fn fetch_all(&self, files: &[String], options: &FetchOptions<'_>) -> anyhow::Result<()> {
        let names = expand_patterns(files, |pattern| self.matching_names(pattern, options.from))?;
        let shutdown = ShutdownSignal::install().unwrap_or_else(|error| {
            log::debug!("Ctrl-C ends at once: {error}");
            self.shutdown.clone()
        });
        if let [name] = &names[..] {
            return self.fetch(name, options, &shutdown, true);
        }
        if let Some(to) = options.to.filter(|to| !Path::new(to).is_dir()) {
            bail!("--to {to}: {} files want a folder that is there", names.len());
        }
        self.for_each_concurrently(names, |name| self.fetch(name, options, &shutdown, false))
    }

    /// The names on the network that match a pattern: of one owner, or of everybody but this user.
    fn matching_names(&self, pattern: &str, from: Option<&str>) -> anyhow::Result<Vec<String>> {
        let names = match from {
            Some(from) => self.names_of_owner(from, pattern)?,
            None => self.names_of_others(pattern)?,
        };
        match from {
            Some(from) if names.is_empty() => bail!("{from} has no file like {pattern} on the network"),
            None if names.is_empty() => bail!("nobody else on the network has a file like {pattern}"),
            _ => Ok(names.into_iter().collect()),
        }
    }

    /// The matching names of one owner, as the registry lists them now.
    fn names_of_owner(&self, owner: &str, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let host = self.get(&format!("discover/{}", percent_encoded(owner)))?;
        let names = host["files"].as_object().into_iter().flat_map(|files| files.keys());
        Ok(names.filter(|name| glob_matches(pattern, name)).cloned().collect())
    }

    fn names_of_others(&self, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let is_meant = |owner: &str| nfc(owner) != self.user.key();
        let longest = pattern.split(['*', '?']).max_by_key(|part| part.len()).unwrap_or_default();
        let (mut names, mut offset) = (BTreeSet::new(), 0);
        loop {
            let page =
                self.get(&format!("network-files?q={}&offset={offset}&limit={PAGE}", percent_encoded(longest)))?;
            let files = page["files"].as_array().cloned().unwrap_or_default();
            let found = files.iter().filter(|file| file["owner_hostname"].as_str().is_some_and(is_meant));
            let found = found.filter_map(|file| file["name"].as_str()).filter(|name| glob_matches(pattern, name));
            names.extend(found.map(str::to_owned));
            offset += PAGE;
            if files.len() < PAGE {
                return Ok(names);
            }
        }
    }

    /// Runs `work` for each item, a few at a time. Failures are reported, and the others go on.
    fn for_each_concurrently(
        &self,
        all: Vec<String>,
        work: impl Fn(&str) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let failed = AtomicUsize::new(0);
        let interrupted = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..CONCURRENT_FILES_MAX.min(all.len()) {
                scope.spawn(|| {
                    while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let Err(error) = work(one) else { continue };
                        let error = match error.downcast::<Interrupted>() {
                            Ok(Interrupted(said)) => return interrupted.lock().push(said),
                            Err(error) => error,
                        };
                        failed.fetch_add(1, Ordering::Relaxed);
                        let why = sanitize(&format!("{one}: {error:#}"));
                        if self.screen.is_json() {
                            self.screen.print_json(&json!({"error": why, "file": one}));
                        } else {
                            eprintln!("error: {why}");
                        }
                    }
                });
            }
        });
        let mut interrupted = interrupted.into_inner();
        if !interrupted.is_empty() {
            // Each finished item was counted by `next`; an interrupted worker took no further one.
            let not_begun = all.len().saturating_sub(next.into_inner());
            if not_begun > 0 {
                interrupted.push(format!("{not_begun} of {} files were not begun", all.len()));
            }
            return Err(Interrupted(interrupted.join("\n")).into());
        }
        if failed.into_inner() > 0 { Err(AlreadyReported.into()) } else { Ok(()) }
    }

    fn publish(&self, file: &str, named: Option<String>, overwrite: bool) -> anyhow::Result<()> {
        // A file is given by its path if it has a separator or exists.
        let is_path = file.contains(std::path::is_separator) || Path::new(file).exists();
        let mut body = json!({ "overwrite": overwrite });
        let name = if is_path {
            let path = absolute(file)?;
            let last = Path::new(&path).file_name().and_then(|name| name.to_str());
            let name = named.or_else(|| last.map(str::to_owned)).context("FILE: expected the path of a file")?;
            body["local_path"] = path.into();
            name
        } else {
            if let Some(named) = named {
                bail!("--as {named}: a tracked file has its name already; give its path to publish it under another");
            }
            file.to_owned()
        };
        body["fname"] = name.clone().into();
        self.post_and_print("publish", "publish", &body, |response| show::published(&name, &response["duplicates"]))
    }

    fn fetch(
        &self,
        file: &str,
        options: &FetchOptions<'_>,
        shutdown: &ShutdownSignal,
        is_alone: bool,
    ) -> anyhow::Result<()> {
        let mut body = json!({ "fname": file });
        if let Some(to) = options.to {
            body["save_path"] = absolute(to)?.into();
        }
        if let Some(from) = options.from {
            body["owner_hostname"] = from.into();
        }
        let started = self.post("fetch", &body)?;
        let id = started["fetch_id"].as_str().context("the node answered without a fetch_id")?.to_owned();
        if options.background {
            self.screen.print_ok("fetch", started, |started| {
                format!("{file} is being fetched to {}: fetch {id}", text(&started["save_path"]))
            });
            return Ok(());
        }
        let line = FetchProgressLine::new(&sanitize(file), is_alone && !self.screen.is_json());
        let mut waits_for = String::new();
        loop {
            let progress = self.get(&format!("fetch-progress/{}", percent_encoded(&id)))?["progress"].clone();
            line.show(&progress);
            let why = progress["error"].as_str().unwrap_or_default();
            match progress["status"].as_str().unwrap_or_default() {
                "completed" => {
                    line.clear();
                    let mut fields = started;
                    for field in ["downloaded_size", "verified", "status"] {
                        fields[field] = progress[field].clone();
                    }
                    self.screen.print_ok("fetch", fields, show::fetched);
                    return Ok(());
                }
                "failed" => {
                    line.clear();
                    bail!("{file}: {}", if why.is_empty() { "the fetch failed" } else { why });
                }
                "cancelled" => {
                    line.clear();
                    bail!("{file}: the fetch was cancelled");
                }
                _ if why != waits_for => {
                    waits_for = why.to_owned();
                    // The whole reason: the progress line may have to cut it.
                    if !why.is_empty() {
                        line.print_note(&format!("{file}: {why}"));
                    }
                }
                _ => {}
            }
            if shutdown.wait_for(POLL_INTERVAL) {
                line.clear();
                return Err(Interrupted(format!(
                    "{file}: the fetch goes on in the node; `p2s2 share fetches cancel {id} --name {name}` ends it",
                    name = shell_quoted(self.user.as_str())
                ))
                .into());
            }
        }
    }
}
