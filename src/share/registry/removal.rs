//! How hosts go: by their own request, when their time is over, or to make room for others. What a host leaves in the
//! indexes is taken out in bounded steps.

use super::change::RegistryChange;
use super::claims::HostnameClaim;
use super::error::RegistryError;
use super::quotas::QuotaExceeded;
use super::{ConnId, HostRecord, RESUME_FOR, Registry, Slot};
use crate::model::{Millis, Name};
use crate::share::wire::{FileMap, FileName};

/// A removed host whose files are still to be taken out of the indexes.
pub(super) struct HostTombstone {
    pub slot: Slot,
    pub files: FileMap,
}

impl Registry {
    /// UNREGISTER: removes the host with its files at once. Its secret can get the name back for 30 days, unless
    /// another host has held it in between.
    pub fn unregister(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
    ) -> Result<Vec<RegistryChange>, RegistryError> {
        let now = self.advance_clock(now);
        let slot = self.owned_slot(conn, hostname)?;
        self.mark_seen(now, slot);
        let mut changes = Vec::new();
        self.remove_host(slot, &mut changes);
        Ok(changes)
    }

    /// The hostname is a user account from now on: an anonymous host that holds it is removed.
    pub fn account_created(&mut self, hostname: &str) -> Vec<RegistryChange> {
        let mut changes = Vec::new();
        if let Some((slot, host)) = self.host_by_name(hostname)
            && !host.is_user
        {
            // Its secrets go with it, so it takes no place among the departed.
            self.take_host(slot, &mut changes);
        }
        self.secrets.drop_anonymous(hostname, &mut changes);
        changes
    }

    /// Removes hosts and secrets whose resume period is over, and files of removed hosts from the indexes, up to
    /// `at_most` entries. Returns whether there is more to do.
    pub fn purge_expired(&mut self, now: Millis, at_most: usize, changes: &mut Vec<RegistryChange>) -> bool {
        let now = self.advance_clock(now);
        let mut budget = at_most;
        while budget > 0
            && let oldest_of_each_kind = [self.silent_users.first(), self.silent_anonymous.first()]
            && let Some((last_seen_at, slot)) = oldest_of_each_kind.into_iter().flatten().min().copied()
            && last_seen_at.plus(RESUME_FOR) <= now
        {
            budget -= 1;
            self.remove_host(slot, changes);
        }
        self.purge_tombstones(&mut budget);
        let by_name = &self.by_name;
        let slots = &self.slots;
        let last_seen = |name: &Name, lease_id: u64| {
            let host = by_name.get(name).and_then(|slot| slots[*slot as usize].as_ref());
            host.filter(|host| host.lease_id == lease_id).map(|host| host.last_seen_at)
        };
        self.secrets.prune(now, budget.min(at_most), last_seen, changes);
        budget == 0
    }

    /// Removes up to `at_most` silent hosts, longest silent first, until the claim fits the quotas. Returns whether
    /// another call may free more.
    pub fn evict_for_claim(
        &mut self,
        now: Millis,
        conn: ConnId,
        claim: &HostnameClaim,
        at_most: usize,
        changes: &mut Vec<RegistryChange>,
    ) -> bool {
        let now = self.advance_clock(now);
        self.expire(now, at_most);
        for _ in 0..at_most {
            // A claim that would be refused anyway evicts nobody.
            let Ok(plan) = self.plan_claim(now, conn, claim) else { return false };
            let Some(exceeded) = self.quotas.exceeded_by(plan.before.as_ref(), &plan.after) else { return false };
            if !self.evict_oldest_silent(&exceeded, &claim.hostname, changes) {
                return false;
            }
        }
        true
    }

    /// The same for a file that a host is about to publish.
    pub fn evict_for_publish(
        &mut self,
        now: Millis,
        conn: ConnId,
        hostname: &Name,
        fname: &FileName,
        at_most: usize,
        changes: &mut Vec<RegistryChange>,
    ) {
        let now = self.advance_clock(now);
        for _ in 0..at_most {
            let Ok(slot) = self.owned_slot(conn, hostname) else { return };
            let Some(exceeded) = self.publish_quota_exceeded(slot, fname) else { return };
            self.expire(now, at_most);
            if !self.evict_oldest_silent(&exceeded, hostname, changes) {
                return;
            }
        }
    }

    /// Removes the longest silent host that uses the exceeded quota. Returns whether there was one.
    fn evict_oldest_silent(
        &mut self,
        exceeded: &QuotaExceeded,
        except: &Name,
        changes: &mut Vec<RegistryChange>,
    ) -> bool {
        let is_another = |slot: &Slot| self.slots[*slot as usize].as_ref().is_some_and(|host| host.name != *except);
        let oldest = match exceeded {
            QuotaExceeded::Total { is_user, .. } => {
                let silent = if *is_user { &self.silent_users } else { &self.silent_anonymous };
                silent.iter().map(|(_, slot)| *slot).find(is_another)
            }
            QuotaExceeded::PerSource { source, .. } => {
                let all = (*source, Millis(0), 0)..=(*source, Millis(u64::MAX), Slot::MAX);
                self.silent_by_source.range(all).map(|(_, _, slot)| *slot).find(is_another)
            }
        };
        if let Some(slot) = oldest {
            self.remove_host(slot, changes);
        }
        oldest.is_some()
    }

    /// Removes a host. Its secrets stay, and can get the name back as long as they are valid.
    fn remove_host(&mut self, slot: Slot, changes: &mut Vec<RegistryChange>) {
        let Some(host) = self.take_host(slot, changes) else { return };
        if host.last_seen_at.plus(RESUME_FOR) <= self.now {
            // None is valid any more, so it takes no place among the departed.
            self.secrets.drop_all(host.name.as_str(), changes);
        } else {
            self.secrets.host_departed(&host.name, host.source, host.last_seen_at, changes);
        }
    }

    /// Removes a host but for its secrets: what becomes of those is up to the caller. Returns it without its files.
    pub(super) fn take_host(&mut self, slot: Slot, changes: &mut Vec<RegistryChange>) -> Option<HostRecord> {
        if self.slots[slot as usize].as_ref().is_some_and(|host| host.is_live) {
            self.log_host_unlisted(slot);
        }
        self.detach(slot);
        let mut host = self.slots[slot as usize].take()?;
        self.by_name.remove(&host.name);
        if let Some(conn) = host.conn {
            self.by_conn.remove(&conn);
        }
        self.file_count -= host.files.len();
        if let Some(held) = &host.usage {
            self.quotas.release(held);
        }
        changes.push(RegistryChange::DropHost(host.id));
        self.tombstones.push(HostTombstone { slot, files: std::mem::take(&mut host.files) });
        Some(host)
    }

    /// Takes files of removed hosts out of the indexes, at most `budget` of them.
    fn purge_tombstones(&mut self, budget: &mut usize) {
        while *budget > 0
            && let Some(tombstone) = self.tombstones.last_mut()
        {
            let slot = tombstone.slot;
            match tombstone.files.pop_last() {
                None => {
                    self.tombstones.pop();
                    self.free_slots.push(slot);
                }
                Some((fname, entry)) => {
                    *budget -= 1;
                    if entry.is_published {
                        self.unindex(slot, &fname, &entry);
                    }
                }
            }
        }
    }
}
