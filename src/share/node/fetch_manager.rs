//! A node's fetches of files from other hosts: starting, controlling and watching them, and resuming them after a
//! restart.
//! What is needed to resume a transfer lies beside the unfinished file (see [`transfer`]).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::folder_write_error;
use super::store::FetchRow;
use super::{Node, NodeError, NodeInner};
use crate::model::secret::random_hex;
use crate::model::{Clock, Name};
use crate::share::files::FileStat;
use crate::share::folders::PathError;
use crate::share::transfer::{
    self, ContentIdentity, Fetch, FetchAction, FetchProgress, FetchSpec, FetchStatus, FetchTiming, StartFetchError,
};
use crate::share::wire::FileName;

mod hosts;
mod resumption;
mod table;
#[cfg(test)]
mod tests;

pub(super) use resumption::{resume_all, suspend_all};
pub(super) use table::FetchTable;

use hosts::{RegistrySourceFinder, choose_host, find_reachable_hosts, have_same_content, owners_of};
use resumption::{discard, resume};
use table::{FetchEntry, evict_oldest, release_failed, stored_status};

/// The limit is for one user: each fetch has its own threads.
const UNFINISHED_FETCHES_MAX: usize = 32;
/// How long a caller waits until progress shows the effect of its action.
const ACTION_WAIT_MAX: Duration = Duration::from_secs(2);

impl Node {
    /// Starts to fetch a file, from any host or one owner's content. [`NodeError::SeveralOwners`] if hosts have
    /// different files of the name and no owner is given.
    pub fn fetch(&self, name: &FileName, owner: Option<&Name>, save_path: Option<&str>) -> Result<FetchRow, NodeError> {
        let inner = &self.inner;
        // Check the destination before contacting the registry.
        let target = inner.published_files.folders().save_target(save_path, name)?;
        let (mut hosts, unreachable) = find_reachable_hosts(inner, name)?;
        if let Some(owner) = owner {
            hosts.retain(|host| host.hostname == *owner);
        } else if !have_same_content(&hosts) {
            return Err(NodeError::SeveralOwners(owners_of(&hosts)));
        }
        let Some(chosen) = choose_host(&hosts) else {
            let unreachable = unreachable.filter(|host| owner.is_none_or(|owner| owner == host));
            return Err(NodeError::NotFound(match (unreachable, owner) {
                (Some(host), _) => {
                    format!(
                        "{host} has {name}, but says that it is at a loopback address, where nobody else reaches it"
                    )
                }
                (None, Some(owner)) => format!("{owner} has no {name} on the network"),
                (None, None) => format!("nobody else on the network has {name}"),
            }));
        };
        let save_path = target.to_str().ok_or_else(|| NodeError::Invalid("save_path: expected UTF-8".to_owned()))?;
        let row = FetchRow {
            id: random_hex::<8>(),
            file_name: name.clone(),
            save_path: save_path.to_owned(),
            total_size: chosen.file.size,
            downloaded_size: 0,
            status: FetchStatus::Pending,
            error: None,
            is_verified: false,
            peer_hostname: chosen.hostname.to_string(),
            peer_ip: chosen.ip.to_string(),
            began_at: Clock::wall(),
        };
        {
            let mut entries = inner.fetches.entries.lock();
            let unfinished = || entries.values().filter(|entry| !entry.status().has_ended());
            if unfinished().any(|entry| entry.row.save_path == row.save_path) {
                return Err(NodeError::Conflict(format!("{save_path} is being fetched already")));
            }
            if unfinished().count() >= UNFINISHED_FETCHES_MAX {
                return Err(NodeError::Busy(format!("{UNFINISHED_FETCHES_MAX} files are being fetched already")));
            }
            evict_oldest(&mut entries);
            release_failed(&mut entries);
            entries.insert(row.id.clone(), FetchEntry { row: row.clone(), fetch: None, progress: None });
        }
        let spec = FetchSpec {
            id: row.id.clone(),
            fname: name.clone(),
            save_path: target,
            hostname: row.peer_hostname.clone(),
            content: ContentIdentity::of(&chosen.file),
            is_owner_named: owner.is_some(),
            is_paused: false,
        };
        let started = inner.context.store.put_fetch(&inner.user, &row).map_err(NodeError::from);
        if let Err(error) = started.and_then(|()| start_transfer(inner, spec)) {
            inner.fetches.entries.lock().remove(&row.id);
            // A fetch that could not start must not be listed.
            if let Err(error) = inner.context.store.delete_fetch(&row.id) {
                log::warn!("{}: fetch {}: {error}", inner.user, row.id);
            }
            return Err(error);
        }
        Ok(row)
    }

    /// The progress in the client API's JSON form.
    pub fn fetch_progress(&self, id: &str) -> Result<Value, NodeError> {
        self.inner.fetches.entries.lock().get(id).map(FetchEntry::json).ok_or_else(|| unknown_fetch_error(id))
    }

    /// The progress of all fetches, by id.
    pub fn all_fetches(&self) -> Value {
        let entries = self.inner.fetches.entries.lock();
        entries.iter().map(|(id, entry)| (id.clone(), entry.json())).collect()
    }

    /// Returns the resulting progress.
    pub fn act_on_fetch(&self, id: &str, action: FetchAction) -> Result<Value, NodeError> {
        let fetches = &self.inner.fetches;
        {
            let _resume_guard = fetches.resume_lock.lock();
            let released = {
                let entries = fetches.entries.lock();
                let entry =
                    entries.get(id).filter(|entry| entry.fetch.is_none() && entry.status() == FetchStatus::Failed);
                entry.map(|entry| entry.row.clone())
            };
            if let Some(row) = released {
                if action == FetchAction::Cancel {
                    return discard(&self.inner, row);
                }
                // It starts paused; the action follows below.
                resume(&self.inner, &row)?;
            }
        }
        let fetch = {
            let entries = fetches.entries.lock();
            let entry = entries.get(id).ok_or_else(|| unknown_fetch_error(id))?;
            // A failed fetch can be resumed or cancelled, as long as it runs.
            match (&entry.fetch, entry.status()) {
                (Some(fetch), status) if !status.is_final() => Arc::clone(fetch),
                (_, status) => {
                    return Err(NodeError::Conflict(format!("the fetch has ended: it is {}", status.as_text())));
                }
            }
        };
        fetch.act(action);
        let is_applied = |status: FetchStatus| match action {
            FetchAction::Pause => !matches!(status, FetchStatus::Pending | FetchStatus::Downloading),
            // The fetch may have completed meanwhile.
            FetchAction::Resume => status != FetchStatus::Failed,
            FetchAction::Cancel => status.is_final(),
        };
        let until = Instant::now() + ACTION_WAIT_MAX;
        let mut entries = fetches.entries.lock();
        loop {
            let entry = entries.get(id).ok_or_else(|| unknown_fetch_error(id))?;
            if is_applied(entry.status()) || Instant::now() >= until {
                return Ok(entry.json());
            }
            fetches.changed.wait_until(&mut entries, until);
        }
    }
}

fn unknown_fetch_error(id: &str) -> NodeError {
    NodeError::NotFound(format!("there is no fetch {id:?}"))
}

fn start_transfer(inner: &Arc<NodeInner>, spec: FetchSpec) -> Result<(), NodeError> {
    let id = spec.id.clone();
    let on_progress = {
        let (weak, id) = (Arc::downgrade(inner), id.clone());
        Arc::new(move |progress: &FetchProgress| {
            if let Some(inner) = weak.upgrade() {
                record_progress(&inner, &id, progress);
            }
        })
    };
    let context = transfer::FetchContext {
        executor: Arc::clone(&inner.context.listener.executor),
        timing: FetchTiming::default(),
    };
    let target = spec.save_path.clone();
    let fetch = Fetch::start(spec, Arc::new(RegistrySourceFinder(Arc::downgrade(inner))), on_progress, context);
    let fetch = fetch.map_err(|error| match error {
        StartFetchError::Exists(_) => NodeError::Path(PathError::AlreadyExists(target.display().to_string())),
        StartFetchError::Io { error, .. } => folder_write_error(target.parent().unwrap_or(Path::new("/")), &error),
        StartFetchError::Full(_) => NodeError::Busy(error.to_string()),
        other => NodeError::Invalid(other.to_string()),
    })?;
    let fetch = Arc::new(fetch);
    let mut entries = inner.fetches.entries.lock();
    if let Some(entry) = entries.get_mut(&id) {
        entry.progress.get_or_insert_with(|| fetch.progress());
        entry.fetch = Some(fetch);
    }
    Ok(())
}

/// Writes to the table, and to the store if the status changed, and notifies. It runs on the fetch's thread.
fn record_progress(inner: &Arc<NodeInner>, id: &str, progress: &FetchProgress) {
    let fetches = &inner.fetches;
    let row = {
        let entries = fetches.entries.lock();
        let Some(entry) = entries.get(id) else { return };
        // Also for a fetch that was released, so that it can be resumed later.
        let has_changed = entry.row.status != stored_status(progress) || entry.row.error != progress.error;
        let row = FetchRow {
            downloaded_size: progress.downloaded_size,
            status: stored_status(progress),
            error: progress.error.clone(),
            is_verified: progress.verified,
            ..entry.row.clone()
        };
        has_changed.then_some(row)
    };
    if let Some(row) = &row {
        // Before the status is visible: whoever sees it completed finds the file tracked.
        if row.status == FetchStatus::Completed
            && let Err(error) = track_fetched(inner, row)
        {
            log::warn!("{}: {} came whole, but is not tracked: {error}", inner.user, row.save_path);
        }
        if let Err(error) = inner.context.store.put_fetch(&inner.user, row) {
            log::warn!("{}: fetch {id}: {error}", inner.user);
        }
    }
    let json = {
        let mut entries = fetches.entries.lock();
        let Some(entry) = entries.get_mut(id) else { return };
        if let Some(row) = row {
            entry.row = row;
        }
        entry.progress = Some(progress.clone());
        entry.json()
    };
    fetches.changed.notify_all();
    inner.events.publish((), "fetches", &json!({ "id": id, "progress": json }));
}

/// The file is tracked, but not published.
fn track_fetched(inner: &NodeInner, row: &FetchRow) -> Result<(), NodeError> {
    let path = Path::new(&row.save_path);
    let opened = inner.published_files.folders().reopen(path)?;
    let name = inner.files.free_name(&row.file_name, path)?;
    let file = inner.files.track(&name, FileStat::of(&opened.path, &opened.metadata), Clock::wall())?;
    inner.notify_file_changed("fetched", &file);
    Ok(())
}
