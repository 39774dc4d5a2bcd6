//! Which hosts are live and which are silent: signs of life, timeouts, and the indexes of both.

use super::{ConnId, Registry, Slot};
use crate::model::Millis;
use crate::net::source;

impl Registry {
    /// Counts any request on a connection as a sign of life of its host.
    pub fn record_activity(&mut self, now: Millis, conn: ConnId) {
        let now = self.advance_clock(now);
        if let Some(slot) = self.by_conn.get(&conn).copied() {
            self.mark_seen(now, slot);
        }
    }

    /// The connection has closed. Its host stays live until the timeout.
    pub fn connection_closed(&mut self, conn: ConnId) {
        if let Some(slot) = self.by_conn.remove(&conn)
            && let Some(host) = self.slots[slot as usize].as_mut()
        {
            host.conn = None;
            self.totals.active_clients -= u64::from(host.is_live);
            self.mark_changed(slot);
        }
    }

    /// The sequence number of a live host's latest change; `None` if the host is not live.
    pub fn presence(&mut self, now: Millis, hostname: &str) -> Option<u64> {
        let now = self.advance_clock(now);
        let host = self.host_by_name(hostname)?.1;
        (now < host.last_seen_at.plus(self.peer_timeout)).then_some(host.change_seq)
    }

    /// Makes up to `at_most` timed-out hosts silent. Returns whether more may be due; listings and totals are exact
    /// once it returns false.
    pub fn expire(&mut self, now: Millis, at_most: usize) -> bool {
        let now = self.advance_clock(now);
        for _ in 0..at_most {
            let Some((last_seen_at, slot)) = self.live_by_last_seen.first().copied() else { return false };
            if now < last_seen_at.plus(self.peer_timeout) {
                return false;
            }
            self.make_silent(slot);
        }
        true
    }

    pub(super) fn mark_seen(&mut self, now: Millis, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        let heard_before = std::mem::replace(&mut host.last_seen_at, now);
        if !std::mem::replace(&mut host.is_last_seen_unsaved, true) {
            self.unsaved_slots.push(slot);
        }
        if host.is_live {
            if heard_before != now {
                self.live_by_last_seen.remove(&(heard_before, slot));
                self.live_by_last_seen.insert((now, slot));
            }
        } else {
            self.remove_silent(slot, heard_before);
            self.make_live(slot);
            self.log_host_listed(slot, false);
        }
    }

    pub(super) fn make_live(&mut self, slot: Slot) {
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        host.is_live = true;
        self.live_user_count += usize::from(host.is_user);
        self.live_by_last_seen.insert((host.last_seen_at, slot));
        self.live_names.insert(host.name.clone(), slot);
        self.totals.total_clients += 1;
        self.totals.active_clients += u64::from(host.conn.is_some());
        self.totals.total_files += host.published_count;
        self.totals.total_size += host.published_bytes;
        self.mark_changed(slot);
    }

    fn make_silent(&mut self, slot: Slot) {
        self.log_host_unlisted(slot);
        self.detach(slot);
        self.insert_silent(slot);
    }

    /// Stops listing the host; it is neither live nor silent then.
    pub(super) fn detach(&mut self, slot: Slot) {
        let Some(last_seen_at) = self.slots[slot as usize].as_ref().map(|host| host.last_seen_at) else { return };
        self.remove_silent(slot, last_seen_at);
        let Some(host) = self.slots[slot as usize].as_mut() else { return };
        if std::mem::take(&mut host.is_live) {
            self.live_by_last_seen.remove(&(host.last_seen_at, slot));
            self.live_names.remove(host.name.as_str());
            self.totals.total_clients -= 1;
            self.totals.active_clients -= u64::from(host.conn.is_some());
            self.totals.total_files -= host.published_count;
            self.totals.total_size -= host.published_bytes;
            self.live_user_count -= usize::from(host.is_user);
            self.mark_changed(slot);
        }
    }

    pub(super) fn insert_silent(&mut self, slot: Slot) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.is_user {
            self.silent_users.insert((host.last_seen_at, slot));
        } else {
            self.silent_anonymous.insert((host.last_seen_at, slot));
            self.silent_by_source.insert((source::key_of(host.source), host.last_seen_at, slot));
        }
    }

    /// Takes the host out of the indexes of silent hosts, where it is filed under this time.
    pub(super) fn remove_silent(&mut self, slot: Slot, last_seen_at: Millis) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if host.is_user {
            self.silent_users.remove(&(last_seen_at, slot));
        } else {
            self.silent_anonymous.remove(&(last_seen_at, slot));
            self.silent_by_source.remove(&(source::key_of(host.source), last_seen_at, slot));
        }
    }

    /// Takes up to `at_most` hosts whose last-seen time is not stored yet: row id and time.
    pub fn take_unsaved_last_seen(&mut self, at_most: usize) -> Vec<(u64, Millis)> {
        let from = self.unsaved_slots.len().saturating_sub(at_most);
        let slots = self.unsaved_slots.split_off(from);
        let mut rows = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(host) = self.slots[slot as usize].as_mut()
                && std::mem::take(&mut host.is_last_seen_unsaved)
            {
                rows.push((host.id, host.last_seen_at));
            }
        }
        rows
    }

    /// After a reload: takes over what only the former instance knew, the open connections and the last-seen times.
    pub fn adopt_runtime_state(&mut self, old: &Registry) {
        self.advance_clock(old.now);
        for host in old.slots.iter().flatten() {
            let Some(slot) = self.by_name.get(&host.name).copied() else { continue };
            let Some(own) = self.slots[slot as usize].as_mut() else { continue };
            if own.id != host.id || own.lease_id != host.lease_id {
                continue;
            }
            if let Some(conn) = host.conn {
                own.conn = Some(conn);
                self.by_conn.insert(conn, slot);
                self.totals.active_clients += u64::from(own.is_live);
            }
            let last_seen_at = host.last_seen_at.max(own.last_seen_at);
            if last_seen_at > own.last_seen_at {
                self.mark_seen(last_seen_at, slot);
            }
        }
    }
}
