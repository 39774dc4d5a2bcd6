//! What the shop's clients keep between calls, in files of mode 600 under the user's configuration folder:
//! sessions per role, server and user, who logged in last, and certificates of servers.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::settings;
use crate::storage::files;

/// The files of one role at one server.
pub(in crate::cli) struct Keep {
    folder: PathBuf,
    prefix: String,
}

impl Keep {
    /// Where they are; nothing is created yet.
    ///
    /// # Errors
    /// Nobody knows where the user's configuration is.
    pub(in crate::cli) fn of(role: &str, server: &str) -> anyhow::Result<Keep> {
        let prefix = settings::file_name(&format!("{role}-"), server);
        Ok(Keep { folder: settings::config_folder()?, prefix })
    }

    /// The folder, which is there when this returns.
    pub(in crate::cli) fn folder(&self) -> anyhow::Result<&Path> {
        files::create_private_dir(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        Ok(&self.folder)
    }

    /// Who logged in last.
    pub(in crate::cli) fn last_user(&self) -> anyhow::Result<Option<String>> {
        self.text_in(&self.path(""), "user")
    }

    /// The session that this user has.
    pub(in crate::cli) fn session(&self, user: &str) -> anyhow::Result<Option<String>> {
        self.text_in(&self.session_path(user), "session_id")
    }

    /// Keeps a session, and who has it.
    pub(in crate::cli) fn put_session(&self, user: &str, session_id: &str) -> anyhow::Result<()> {
        self.write(&self.session_path(user), &json!({"user": user, "session_id": session_id}))?;
        self.write(&self.path(""), &json!({ "user": user }))
    }

    /// Forgets a session that has ended.
    pub(in crate::cli) fn drop_session(&self, user: &str) -> anyhow::Result<()> {
        // An earlier version kept one for each spelling of a name.
        for path in settings::paths_of(&self.folder, &format!("{}-", self.prefix), user, ".json") {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.with_context(|| format!("cannot remove {}", path.display()))?,
            }
        }
        Ok(())
    }

    /// The fingerprint of the server's certificate, once it was seen.
    pub(in crate::cli) fn certificate(&self) -> anyhow::Result<Option<String>> {
        self.text_in(&self.path(".cert"), "cert_sha256")
    }

    /// Keeps that fingerprint.
    pub(in crate::cli) fn put_certificate(&self, fingerprint: &str) -> anyhow::Result<()> {
        self.write(&self.path(".cert"), &json!({ "cert_sha256": fingerprint }))
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}.json", self.prefix))
    }

    fn session_path(&self, user: &str) -> PathBuf {
        settings::path_of(&self.folder, &format!("{}-", self.prefix), user, ".json")
    }

    /// A text of such a file; nothing when there is no file.
    fn text_in(&self, path: &Path, field: &str) -> anyhow::Result<Option<String>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let found = value[field].as_str().map(str::to_owned);
        found.map(Some).with_context(|| format!("{} is damaged: remove it and log in again", path.display()))
    }

    /// Under a temporary name first: whoever reads the file reads all of it.
    fn write(&self, path: &Path, value: &Value) -> anyhow::Result<()> {
        self.folder()?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = files::private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| writeln!(file, "{value}"))
            .and_then(|()| std::fs::rename(&temporary, path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}
