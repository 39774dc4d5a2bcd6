//! The hosts' files: PUBLISH, UNPUBLISH, and replacing a whole list.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use super::quotas::{HostUsage, QuotaExceeded};
use super::{ConnId, HostRecord, Registry, RegistryChange, RegistryError, Slot};
use crate::model::{Millis, Name};
use crate::share::wire::requests::FILES_MAX;
use crate::share::wire::{FileEntry, FileMap, FileName};

impl Registry {
    /// PUBLISH: adds a file, or replaces the one of that name.
    pub fn publish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
        entry: Arc<FileEntry>,
    ) -> Result<Vec<RegistryChange>, RegistryError> {
        let now = self.advance_clock(now);
        let slot = self.owned_slot(conn, hostname)?;
        self.mark_seen(now, slot);
        // A known file keeps its spelling, which is the key of its row.
        let (id, count, known) = match &self.slots[slot as usize] {
            Some(host) => (host.id, host.files.len(), host.files.get_key_value(fname).map(|(known, _)| known.clone())),
            None => return Err(RegistryError::UnknownHost),
        };
        let is_new = known.is_none();
        let fname = known.as_ref().unwrap_or(fname);
        if is_new && count >= FILES_MAX {
            return Err(RegistryError::TooManyFiles(FILES_MAX));
        }
        if entry.is_published
            && let Some(exceeded) = self.publish_quota_exceeded(slot, fname)
        {
            return Err(exceeded.into());
        }
        self.set_file(slot, fname, Some(Arc::clone(&entry)));
        Ok(vec![RegistryChange::File { host: id, fname: fname.clone(), entry }])
    }

    pub(super) fn publish_quota_exceeded(&self, slot: Slot, fname: &FileName) -> Option<QuotaExceeded> {
        let host = self.slots[slot as usize].as_ref()?;
        let usage = host.usage.as_ref()?;
        let is_more = host.files.get(fname).is_none_or(|file| !file.is_published);
        self.quotas.exceeded_by(Some(usage), &HostUsage { files: usage.files + usize::from(is_more), ..*usage })
    }

    /// UNPUBLISH: the file is no longer listed and no longer counts as published. It is remembered while there is room
    /// for unpublished files.
    pub fn unpublish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
    ) -> Result<Vec<RegistryChange>, RegistryError> {
        let now = self.advance_clock(now);
        let slot = self.owned_slot(conn, hostname)?;
        self.mark_seen(now, slot);
        let host = self.slots[slot as usize].as_ref().ok_or(RegistryError::UnknownHost)?;
        let (fname, entry) = host.files.get_key_value(fname).ok_or(RegistryError::UnknownFile)?;
        if !entry.is_published {
            return Ok(Vec::new());
        }
        let (id, fname) = (host.id, fname.clone());
        let entry = Arc::new(FileEntry { is_published: false, ..FileEntry::clone(entry) });
        if !self.has_unpublished_room(slot) {
            self.set_file(slot, &fname, None);
            return Ok(vec![RegistryChange::DropFile { host: id, fname }]);
        }
        self.set_file(slot, &fname, Some(Arc::clone(&entry)));
        Ok(vec![RegistryChange::File { host: id, fname, entry }])
    }

    /// Replaces a host's file list in bounded steps: each call compares `at_most` names after `after` of the old and
    /// the new list. Returns the name to continue after, or `None` when done. Unchanged files are not stored again.
    pub fn replace_files(
        &mut self,
        conn: ConnId,
        new: &FileMap,
        after: Option<&FileName>,
        at_most: usize,
        changes: &mut Vec<RegistryChange>,
    ) -> Result<Option<FileName>, RegistryError> {
        let slot = *self.by_conn.get(&conn).ok_or(RegistryError::NotRegistered)?;
        let host = self.slots[slot as usize].as_ref().ok_or(RegistryError::UnknownHost)?;
        let id = host.id;
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut old = host.files.range::<FileName, _>(range).peekable();
        let mut new = new.range::<FileName, _>(range).peekable();
        let mut different: Vec<(FileName, Option<Arc<FileEntry>>)> = Vec::new();
        let mut last = None;
        for _ in 0..at_most {
            let order = match (old.peek(), new.peek()) {
                (None, None) => {
                    last = None;
                    break;
                }
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let (was, is) = match order {
                Ordering::Less => (old.next(), None),
                Ordering::Greater => (None, new.next()),
                Ordering::Equal => (old.next(), new.next()),
            };
            // Use the spelling of the existing row.
            let Some((fname, _)) = was.or(is) else { break };
            if was.map(|(_, entry)| entry) != is.map(|(_, entry)| entry) {
                different.push((fname.clone(), is.map(|(_, entry)| Arc::clone(entry))));
            }
            last = Some(fname.clone());
        }
        for (fname, entry) in different {
            let was_hidden = |host: &HostRecord| host.files.get(&fname).is_some_and(|file| !file.is_published);
            let is_hidden = entry.as_ref().is_some_and(|entry| !entry.is_published);
            let entry = entry.filter(|_| {
                let takes_no_more = self.slots[slot as usize].as_ref().is_some_and(was_hidden);
                !is_hidden || takes_no_more || self.has_unpublished_room(slot)
            });
            let is_known = self.slots[slot as usize].as_ref().is_some_and(|host| host.files.contains_key(&fname));
            if entry.is_none() && !is_known {
                continue;
            }
            self.set_file(slot, &fname, entry.clone());
            changes.push(match entry {
                Some(entry) => RegistryChange::File { host: id, fname, entry },
                None => RegistryChange::DropFile { host: id, fname },
            });
        }
        if last.is_none() {
            // The list is complete: nothing needs to be reserved any more.
            self.reserve_files(slot, 0);
        }
        Ok(last)
    }

    /// Reserves room for this many published files, whether the host has them already or not.
    pub(super) fn reserve_files(&mut self, slot: Slot, files: usize) {
        if let Some(host) = self.slots[slot as usize].as_mut() {
            host.reserved_files = files;
            self.update_usage(slot);
        }
    }

    fn has_unpublished_room(&self, slot: Slot) -> bool {
        let usage = self.slots[slot as usize].as_ref().and_then(|host| host.usage);
        usage.is_some_and(|usage| self.quotas.has_unpublished_room(&usage))
    }

    /// Inserts, replaces or removes a file: in the host's list, the indexes and all totals.
    pub(super) fn set_file(&mut self, slot: Slot, fname: &FileName, entry: Option<Arc<FileEntry>>) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let is = entry.clone();
        let was = match entry {
            Some(entry) => host.files.insert(fname.clone(), entry),
            None => host.files.remove(fname),
        };
        let shown = |entry: &Option<Arc<FileEntry>>| entry.as_ref().filter(|entry| entry.is_published).map(Arc::clone);
        let (was_shown, is_shown) = (shown(&was), shown(&is));
        let sum = |entry: &Option<Arc<FileEntry>>| entry.as_ref().map_or((0, 0), |entry| (1, entry.size));
        let ((fewer, less), (more, larger)) = (sum(&was_shown), sum(&is_shown));
        host.published_count = host.published_count + more - fewer;
        host.published_bytes = host.published_bytes + larger - less;
        if host.is_live {
            self.totals.total_files = self.totals.total_files + more - fewer;
            self.totals.total_size = self.totals.total_size + larger - less;
        }
        self.file_count = self.file_count + usize::from(is.is_some()) - usize::from(was.is_some());
        if was_shown != is_shown {
            self.log_file_change(slot, fname, is_shown.clone());
        }
        self.reindex(slot, fname, was_shown.as_deref(), is_shown.as_deref());
        if more != fewer {
            self.mark_changed(slot);
        }
        self.update_usage(slot);
    }

    pub(super) fn unindex(&mut self, slot: Slot, fname: &FileName, entry: &FileEntry) {
        self.reindex(slot, fname, Some(entry), None);
    }

    /// Updates the indexes from a file's former published entry (if any) to its current one (if any). Keys that are the
    /// same are left alone: most files that are published again differ only in some attributes.
    fn reindex(&mut self, slot: Slot, fname: &FileName, was: Option<&FileEntry>, is: Option<&FileEntry>) {
        match (was, is) {
            (Some(_), None) => self.by_file.remove(fname, &slot),
            (None, Some(_)) => self.by_file.insert(fname.clone(), slot),
            _ => {}
        }
        self.by_size.replace(slot, fname, was, is);
    }
}
