//! Why an operation of a node fails.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::duplicates::Duplicates;
use crate::model::Name;
use crate::share::client::RegistryClientError;
use crate::share::dir_handle;
use crate::share::files::TrackedFilesError;
use crate::share::folders::PathError;
use crate::share::wire::Seconds;
use crate::storage::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("not begun yet: init comes first")]
    NotJoined,
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Files(#[from] TrackedFilesError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    NotFound(String),
    /// The operation conflicts with the present state.
    #[error("{0}")]
    Conflict(String),
    /// Several hosts have different files of that name, and no owner was given.
    #[error("{}", several_owners(.0))]
    SeveralOwners(Vec<FileOwner>),
    #[error("{reason}")]
    Folder {
        /// One line that names the folder.
        reason: String,
        /// The disk or the quota is full.
        is_full: bool,
    },
    #[error(
        "the network has a file that looks the same: with `overwrite` (the command line: without --unless-duplicate) yours is published all the same"
    )]
    Duplicates(Box<Duplicates>),
    #[error("{0}")]
    RegistryUnreachable(String),
    #[error("the registry refuses: {0}")]
    RegistryRefused(String),
    /// A limit is reached; the operation can be tried again later.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    System(#[from] io::Error),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileOwner {
    #[serde(rename = "owner_hostname")]
    pub hostname: Name,
    pub size: u64,
    pub modified: Seconds,
}

fn several_owners(owners: &[FileOwner]) -> String {
    const NAMED: usize = 5;
    let mut names: Vec<&str> = owners.iter().take(NAMED).map(|owner| owner.hostname.as_str()).collect();
    if owners.len() > NAMED {
        names.push("others");
    }
    let names = names.join(", ");
    format!("{names} have different files of that name: say whose you want (owner_hostname; `share fetch --from`)")
}

impl From<RegistryClientError> for NodeError {
    fn from(error: RegistryClientError) -> NodeError {
        match error {
            RegistryClientError::Refused(reason) => NodeError::RegistryRefused(reason),
            error => NodeError::RegistryUnreachable(format!("the registry does not answer: {error}")),
        }
    }
}

pub(super) fn folder_write_error(folder: &Path, error: &io::Error) -> NodeError {
    let path = folder.display();
    let forbidden = |reason: String| NodeError::Path(PathError::Forbidden(reason));
    match error.kind() {
        _ if dir_handle::is_symlink_error(error) => forbidden(format!("{path} was exchanged for a link meanwhile")),
        io::ErrorKind::PermissionDenied => forbidden(format!("{path}: this node may not write there")),
        io::ErrorKind::NotFound => NodeError::Path(PathError::FolderNotFound(path.to_string())),
        kind => NodeError::Folder {
            reason: format!("{path} cannot be written to: {error}"),
            is_full: matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        },
    }
}
