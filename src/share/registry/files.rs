//! What hosts have: PUBLISH, UNPUBLISH, and a whole list replaced.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use super::room::{Holding, Lack};
use super::{Change, ConnId, Host, Refusal, Registry, Slot};
use crate::model::{Millis, Name};
use crate::share::wire::requests::FILES_MAX;
use crate::share::wire::{FileEntry, FileName, Files};

impl Registry {
    /// PUBLISH: the host has this file, in place of one of that name.
    ///
    /// # Errors
    /// Not this connection's, or past a bound.
    pub fn publish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
        entry: Arc<FileEntry>,
    ) -> Result<Vec<Change>, Refusal> {
        let now = self.at(now);
        let slot = self.own(conn, hostname)?;
        self.hear_slot(now, slot);
        // A file that is there keeps its spelling: it is that of its row.
        let (id, count, known) = match &self.slots[slot as usize] {
            Some(host) => (host.id, host.files.len(), host.files.get_key_value(fname).map(|(known, _)| known.clone())),
            None => return Err(Refusal::UnknownHost),
        };
        let is_new = known.is_none();
        let fname = known.as_ref().unwrap_or(fname);
        if is_new && count >= FILES_MAX {
            return Err(Refusal::TooManyFiles(FILES_MAX));
        }
        if entry.is_published
            && let Some(lack) = self.lack_to_publish(slot, fname)
        {
            return Err(lack.into());
        }
        self.set_file(slot, fname, Some(Arc::clone(&entry)));
        Ok(vec![Change::File { host: id, fname: fname.clone(), entry }])
    }

    /// What a host has no room for that publishes this file.
    pub(super) fn lack_to_publish(&self, slot: Slot, fname: &FileName) -> Option<Lack> {
        let host = self.slots[slot as usize].as_ref()?;
        let held = host.held.as_ref()?;
        let is_more = host.files.get(fname).is_none_or(|file| !file.is_published);
        self.room.lack(Some(held), &Holding { files: held.files + usize::from(is_more), ..*held })
    }

    /// UNPUBLISH: the file is not shown, and takes nobody's room any more. It is remembered while there is room for
    /// what is not shown.
    ///
    /// # Errors
    /// Not this connection's, or no such file.
    pub fn unpublish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
    ) -> Result<Vec<Change>, Refusal> {
        let now = self.at(now);
        let slot = self.own(conn, hostname)?;
        self.hear_slot(now, slot);
        let host = self.slots[slot as usize].as_ref().ok_or(Refusal::UnknownHost)?;
        let (fname, entry) = host.files.get_key_value(fname).ok_or(Refusal::UnknownFile)?;
        if !entry.is_published {
            return Ok(Vec::new());
        }
        let (id, fname) = (host.id, fname.clone());
        let entry = Arc::new(FileEntry { is_published: false, ..FileEntry::clone(entry) });
        if !self.may_hide(slot) {
            self.set_file(slot, &fname, None);
            return Ok(vec![Change::DropFile { host: id, fname }]);
        }
        self.set_file(slot, &fname, Some(Arc::clone(&entry)));
        Ok(vec![Change::File { host: id, fname, entry }])
    }

    /// Makes a host's list this one, a bounded part of it: looks at `at_most` names behind `after` in the old and
    /// the new list together. From where to go on; none when it is done. What is the same is not stored again.
    ///
    /// # Errors
    /// The connection has lost its hostname meanwhile.
    pub fn replace_files(
        &mut self,
        conn: ConnId,
        new: &Files,
        after: Option<&FileName>,
        at_most: usize,
        changes: &mut Vec<Change>,
    ) -> Result<Option<FileName>, Refusal> {
        let slot = *self.by_conn.get(&conn).ok_or(Refusal::NotRegistered)?;
        let host = self.slots[slot as usize].as_ref().ok_or(Refusal::UnknownHost)?;
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
            // As it is spelled in the row that is there.
            let Some((fname, _)) = was.or(is) else { break };
            if was.map(|(_, entry)| entry) != is.map(|(_, entry)| entry) {
                different.push((fname.clone(), is.map(|(_, entry)| Arc::clone(entry))));
            }
            last = Some(fname.clone());
        }
        for (fname, entry) in different {
            let was_hidden = |host: &Host| host.files.get(&fname).is_some_and(|file| !file.is_published);
            let is_hidden = entry.as_ref().is_some_and(|entry| !entry.is_published);
            let entry = entry.filter(|_| {
                let takes_no_more = self.slots[slot as usize].as_ref().is_some_and(was_hidden);
                !is_hidden || takes_no_more || self.may_hide(slot)
            });
            let is_known = self.slots[slot as usize].as_ref().is_some_and(|host| host.files.contains_key(&fname));
            if entry.is_none() && !is_known {
                continue;
            }
            self.set_file(slot, &fname, entry.clone());
            changes.push(match entry {
                Some(entry) => Change::File { host: id, fname, entry },
                None => Change::DropFile { host: id, fname },
            });
        }
        if last.is_none() {
            // It has what it was promised.
            self.promise(slot, 0);
        }
        Ok(last)
    }

    /// Room for so many published files is a host's, whether they are there already or not.
    pub(super) fn promise(&mut self, slot: Slot, files: usize) {
        if let Some(host) = self.slots[slot as usize].as_mut() {
            host.promised = files;
            self.recount(slot);
        }
    }

    fn may_hide(&self, slot: Slot) -> bool {
        let held = self.slots[slot as usize].as_ref().and_then(|host| host.held);
        held.is_some_and(|held| self.room.may_hide(&held))
    }

    /// Puts a file in its place, or takes it away: in the list, the indices and all counts.
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
        host.published = host.published + more - fewer;
        host.published_size = host.published_size + larger - less;
        if host.is_live {
            self.totals.total_files = self.totals.total_files + more - fewer;
            self.totals.total_size = self.totals.total_size + larger - less;
        }
        self.known_files = self.known_files + usize::from(is.is_some()) - usize::from(was.is_some());
        if was_shown != is_shown {
            self.tell_file(slot, fname, is_shown.clone());
        }
        self.reindex(slot, fname, was_shown.as_deref(), is_shown.as_deref());
        if more != fewer {
            self.touch(slot);
        }
        self.recount(slot);
    }

    /// Takes a published file out of the indices.
    pub(super) fn unindex(&mut self, slot: Slot, fname: &FileName, entry: &FileEntry) {
        self.reindex(slot, fname, Some(entry), None);
    }

    /// Makes the indices show a file as it is published now, in place of how it was before. What of it is the same stays
    /// as it is: most of what is published again has only changed.
    fn reindex(&mut self, slot: Slot, fname: &FileName, was: Option<&FileEntry>, is: Option<&FileEntry>) {
        match (was, is) {
            (Some(_), None) => self.by_file.remove(fname, &slot),
            (None, Some(_)) => self.by_file.insert(fname.clone(), slot),
            _ => {}
        }
        let content = |entry: Option<&FileEntry>| entry.and_then(|entry| entry.blake3);
        let (former, content) = (content(was), content(is));
        if former != content {
            if let Some(former) = former {
                self.by_content.remove(&former, &(slot, fname.clone()));
            }
            if let Some(content) = content {
                self.by_content.insert(content, (slot, fname.clone()));
            }
        }
        self.by_size.replace(slot, fname, was, is);
    }
}
