//! State that the shop's clients keep between calls, in files of mode 600 under the user's configuration folder:
//! sessions by role, server and user, the user of the last login, and server certificates.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::services::paths;
use crate::storage::files;

pub(super) struct SessionStore {
    folder: PathBuf,
    prefix: String,
}

impl SessionStore {
    /// Locates the files; creates nothing.
    pub(super) fn new(role: &str, server: &str) -> anyhow::Result<SessionStore> {
        let prefix = paths::safe_file_name(&format!("{role}-"), server);
        Ok(SessionStore { folder: paths::config_folder()?, prefix })
    }

    /// The folder; it is created if it does not exist.
    pub(super) fn folder(&self) -> anyhow::Result<&Path> {
        files::create_private_dir(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        Ok(&self.folder)
    }

    pub(super) fn last_user(&self) -> anyhow::Result<Option<String>> {
        self.read_field(&self.path(""), "user")
    }

    pub(super) fn session(&self, user: &str) -> anyhow::Result<Option<String>> {
        self.read_field(&self.session_path(user), "session_id")
    }

    /// Stores a session and makes its user the one of the last login.
    pub(super) fn save_session(&self, user: &str, session_id: &str) -> anyhow::Result<()> {
        self.write(&self.session_path(user), &json!({"user": user, "session_id": session_id}))?;
        self.write(&self.path(""), &json!({ "user": user }))
    }

    pub(super) fn remove_session(&self, user: &str) -> anyhow::Result<()> {
        // An earlier version stored one for each spelling of a name.
        for path in paths::candidate_paths(&self.folder, &format!("{}-", self.prefix), user, ".json") {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.with_context(|| format!("cannot remove {}", path.display()))?,
            }
        }
        Ok(())
    }

    pub(super) fn certificate(&self) -> anyhow::Result<Option<String>> {
        self.read_field(&self.path(".cert"), "cert_sha256")
    }

    pub(super) fn save_certificate(&self, fingerprint: &str) -> anyhow::Result<()> {
        self.write(&self.path(".cert"), &json!({ "cert_sha256": fingerprint }))
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}.json", self.prefix))
    }

    fn session_path(&self, user: &str) -> PathBuf {
        paths::find_path(&self.folder, &format!("{}-", self.prefix), user, ".json")
    }

    /// A text field of a JSON file; `None` if there is no file.
    fn read_field(&self, path: &Path, field: &str) -> anyhow::Result<Option<String>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let found = value[field].as_str().map(str::to_owned);
        found.map(Some).with_context(|| format!("{} is damaged: remove it and log in again", path.display()))
    }

    fn write(&self, path: &Path, value: &Value) -> anyhow::Result<()> {
        self.folder()?;
        files::replace(path, files::private_file_options(), |file| writeln!(file, "{value}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
