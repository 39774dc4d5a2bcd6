//! What the registry wants stored: the changes of its rows, as its rules make them.

use std::net::IpAddr;
use std::sync::Arc;

use super::secret_hash::SecretHash;
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileName};

/// A host without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    pub(super) id: u64,
    pub(super) hostname: Name,
    pub(super) display_name: Arc<str>,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    pub(super) source: IpAddr,
    pub(super) is_user: bool,
    pub(super) lease_id: u64,
    pub(super) connected_at: Millis,
    pub(super) last_seen_at: Millis,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RegistryChange {
    Host(Box<HostRow>),
    /// A host was removed with its files.
    DropHost(u64),
    File {
        host: u64,
        fname: FileName,
        entry: Arc<FileEntry>,
    },
    DropFile {
        host: u64,
        fname: FileName,
    },
    Secret {
        /// The hostname that it gets back.
        hostname: Name,
        key: SecretHash,
        /// The lease of the hostname that it belongs to.
        lease_id: u64,
        /// It was issued to the account's user.
        is_user: bool,
        /// When it was issued, or when its host was last seen before it was removed.
        issued_at: Millis,
        source: IpAddr,
    },
    DropSecret {
        hostname: Name,
        key: SecretHash,
    },
}

impl RegistryChange {
    pub fn map_times(&mut self, other: &dyn Fn(Millis) -> Millis) {
        match self {
            RegistryChange::Host(row) => {
                (row.connected_at, row.last_seen_at) = (other(row.connected_at), other(row.last_seen_at));
            }
            RegistryChange::Secret { issued_at, .. } => *issued_at = other(*issued_at),
            RegistryChange::DropHost(_)
            | RegistryChange::File { .. }
            | RegistryChange::DropFile { .. }
            | RegistryChange::DropSecret { .. } => {}
        }
    }
}
