//! Tracking, publishing and unpublishing a node's files, and telling the registry of them.

use crossbeam_channel::bounded;
use serde_json::json;

use super::duplicates::Duplicates;
use super::hashing::{self, HashCommand};
use super::registry_connection::RegistryCommand;
use super::{Node, NodeError, NodeInner, REGISTRY_TIMEOUT};
use crate::model::Clock;
use crate::share::files::{FileStat, TrackedFile, TrackedFilesError};
use crate::share::unix_time::unix_seconds;
use crate::share::wire::{FileName, Seconds};

/// Files up to this size, one piece, are hashed while they are published, not in the background.
const HASH_INLINE_BYTES_MAX: u64 = 1 << 20;

impl Node {
    /// Tracks a file under its own name.
    pub fn add(&self, path: &str) -> Result<TrackedFile, NodeError> {
        let opened = self.inner.published_files.folders().open(path)?;
        // The name as given, because a link may have a better name than its target.
        let last = std::path::Path::new(path).file_name().or(opened.path.file_name()).and_then(|name| name.to_str());
        let name = FileName::new(last.unwrap_or_default())
            .map_err(|wrong| NodeError::Invalid(format!("the file's name: {wrong}")))?;
        let stat = FileStat::of(&opened.path, &opened.metadata);
        let file = self.inner.files.track(&name, stat, Clock::wall())?;
        self.inner.notify_file_changed("added", &file);
        Ok(file)
    }

    /// Publishes a tracked file, or the file at `path` under the given name; its content is hashed anew. When this
    /// returns, the registry lists the file; the digests of a large one follow later. After an error, which is
    /// [`NodeError::Duplicates`] only without `overwrite`, the file is in the same state as before. With the file come
    /// similar ones of other hosts; none also if the registry could not be asked.
    pub fn publish(
        &self,
        name: &FileName,
        path: Option<&str>,
        overwrite: bool,
    ) -> Result<(TrackedFile, Duplicates), NodeError> {
        let inner = &self.inner;
        let folders = inner.published_files.folders();
        let tracked = inner.files.get(name)?;
        let mut opened = match (path, &tracked) {
            (Some(path), _) => folders.open(path)?,
            (None, Some(tracked)) => folders.reopen(&tracked.stat.path)?,
            (None, None) => return Err(TrackedFilesError::NotTracked(name.clone()).into()),
        };
        let stat = FileStat::of(&opened.path, &opened.metadata);
        // A small file is hashed right away, so that the registry gets everything in one message.
        let digests = match stat.size {
            ..=HASH_INLINE_BYTES_MAX => hashing::hash_opened(&mut opened, &stat, &|| true).ok().flatten(),
            _ => None,
        };
        drop(opened);
        let duplicates = self.duplicates(name, stat.size, Some(unix_seconds(stat.modified_ns)));
        let duplicates = match duplicates {
            Ok(duplicates) if !overwrite && !duplicates.is_empty() => {
                return Err(NodeError::Duplicates(Box::new(duplicates)));
            }
            Ok(duplicates) => duplicates,
            // Without the registry's answer it is unknown whether there are duplicates.
            Err(error) if !overwrite => return Err(error),
            Err(_) => Duplicates::default(),
        };
        let file = inner.files.publish(name, stat, digests.as_ref(), Clock::wall())?;
        if digests.is_none() {
            // Also if the registry is unreachable. If the queue is full, a wake-up is pending already.
            let _ = inner.hash_commands.try_send(HashCommand::HashPending);
        }
        if let Err(error) = inner.sync_and_wait(name) {
            if tracked.is_none_or(|tracked| !tracked.is_published) {
                inner.files.unpublish(name)?;
                // The registry may have received it all the same.
                inner.sync_later(name);
            }
            return Err(error);
        }
        inner.notify_file_changed("published", &file);
        Ok((file, duplicates))
    }

    /// The file stays tracked, but is no longer served, even if the registry is unreachable: it learns of that with the
    /// next connection.
    pub fn unpublish(&self, name: &FileName) -> Result<TrackedFile, NodeError> {
        let file = self.inner.files.unpublish(name)?;
        let result = self.sync_unpublished(name);
        self.inner.notify_file_changed("unpublished", &file);
        result.map(|()| file)
    }

    /// The registry drops the file now or with the next connection.
    fn sync_unpublished(&self, name: &FileName) -> Result<(), NodeError> {
        match self.inner.sync_and_wait(name) {
            Err(NodeError::RegistryUnreachable(why)) => {
                log::info!("{}: the registry learns later of {name}: {why}", self.inner.user);
                Ok(())
            }
            result => result,
        }
    }

    /// Stops tracking a file, unpublishing it first. The file itself stays, and transfers of it in progress complete.
    /// An unreachable registry is no error: it learns of it with the next connection.
    pub fn remove(&self, name: &FileName) -> Result<(), NodeError> {
        let inner = &self.inner;
        let tracked = inner.files.get(name)?.ok_or_else(|| TrackedFilesError::NotTracked(name.clone()))?;
        if tracked.is_published {
            inner.files.unpublish(name)?;
            self.sync_unpublished(name)?;
            inner.network.invalidate();
        }
        let file = inner.files.remove(name)?;
        inner.notify_file_changed("removed", &TrackedFile { is_published: false, ..file });
        Ok(())
    }

    /// Files of other hosts that are similar to such a one. The registry looks them up, at a cost that does not depend
    /// on the size of the network.
    pub fn duplicates(&self, name: &FileName, size: u64, modified: Option<Seconds>) -> Result<Duplicates, NodeError> {
        let found = self.inner.registry()?.similar_files(name, size, modified)?;
        Ok(Duplicates::of(&self.inner.user, size, modified.map(Seconds::get), found))
    }
}

impl NodeInner {
    /// The notification's `entry` is what other hosts see of the file.
    pub(super) fn notify_file_changed(&self, change: &str, file: &TrackedFile) {
        // Only a file that is or was published affects the network's list.
        if file.is_published || change == "unpublished" {
            self.network.invalidate();
        }
        let (name, entry) = (&file.name, file.is_published.then(|| file.entry()));
        let data = json!({ "fname": name, "hostname": self.user, "entry": entry, "change": change, "name": name });
        self.events.publish((), "files", &data);
    }

    /// Returns when the registry's state of the file is up to date.
    fn sync_and_wait(&self, name: &FileName) -> Result<(), NodeError> {
        let (reply, result) = bounded(1);
        let order = RegistryCommand::Sync { name: name.clone(), reply: Some(reply) };
        self.registry_commands.send_timeout(order, REGISTRY_TIMEOUT).map_err(|_| self.registry_unreachable())?;
        let too_slow = || NodeError::RegistryUnreachable("the registry does not answer in time".to_owned());
        result.recv_timeout(REGISTRY_TIMEOUT).unwrap_or_else(|_| Err(too_slow()))
    }

    /// Works in the background. If it fails, the next connection does it, as every connection registers all files.
    pub(super) fn sync_later(&self, name: &FileName) {
        let order = RegistryCommand::Sync { name: name.clone(), reply: None };
        if self.registry_commands.send_timeout(order, REGISTRY_TIMEOUT).is_err() {
            log::warn!("{}: the registry is told of {name} with the next connection", self.user);
        }
    }
}
