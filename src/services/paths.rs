//! Where this program's files are, and how names become file names.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::model::Name;
use crate::model::text::spellings;

/// Maximum length of a file name in bytes that every file system accepts, with room for additions.
pub const FILE_NAME_MAX: usize = 200;

/// A file name: the prefix and the text, with unsafe characters as `%XX`. Overlong texts are replaced by their SHA-256.
pub fn safe_file_name(prefix: &str, text: &str) -> String {
    let mut name = String::from(prefix);
    for c in text.chars() {
        if c.is_alphanumeric() || matches!(c, '-' | '_') {
            name.push(c);
        } else {
            let mut bytes = [0; 4];
            name.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        }
    }
    if name.len() > FILE_NAME_MAX {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        name = format!("{prefix}{}", crate::model::secret::hex(digest.as_ref()));
    }
    name
}

/// The path for a name in a folder: by default that of its NFC form, which all spellings share. An existing path of the
/// given or another spelling is preferred, because an earlier version used it.
pub fn find_path(folder: &Path, prefix: &str, text: &str, ending: &str) -> PathBuf {
    let [given, composed, apart] = candidate_paths(folder, prefix, text, ending);
    let usual = composed.clone();
    [given, composed, apart].into_iter().find(|path| path.exists()).unwrap_or(usual)
}

/// All paths that may belong to a name, one for each of [`spellings`].
pub fn candidate_paths(folder: &Path, prefix: &str, text: &str, ending: &str) -> [PathBuf; 3] {
    spellings(text).map(|text| folder.join(format!("{}{ending}", safe_file_name(prefix, &text))))
}

/// The default data dir of a participant: `data/state/PREFIXNAME`, with unsafe characters as `%XX`.
pub fn default_data_dir(prefix: &str, name: &Name) -> PathBuf {
    find_path(Path::new("data/state"), prefix, name.as_str(), "")
}

/// The user's configuration folder for all programs (sessions, confirmed servers). It is not created.
pub fn config_folder() -> anyhow::Result<PathBuf> {
    let folder = user_folder("XDG_CONFIG_HOME", ".config", "APPDATA");
    let folder = folder.context("where is your configuration folder? Set XDG_CONFIG_HOME")?;
    Ok(folder.join("p2s2"))
}

/// A folder of the user: what the variable of XDG names, else one below the home folder, else that of Windows.
pub(super) fn user_folder(xdg: &str, below_home: &str, windows: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable(xdg).or_else(|| variable("HOME").map(|home| home.join(below_home))).or_else(|| variable(windows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_folder_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let at = |text: &str| find_path(dir.path(), "peer-", text, "");
        let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
        let [of_composed, of_apart] = [composed, apart].map(|text| dir.path().join(safe_file_name("peer-", text)));
        assert_ne!(of_composed, of_apart);
        assert_eq!([at(composed), at(apart)], [of_composed.clone(), of_composed.clone()]);
        // The directory of an earlier version is used, whichever spelling is given.
        std::fs::create_dir(&of_apart).unwrap();
        assert_eq!([at(composed), at(apart)], [of_apart.clone(), of_apart.clone()]);
        // If both exist, each spelling uses its own.
        std::fs::create_dir(&of_composed).unwrap();
        assert_eq!([at(composed), at(apart)], [of_composed, of_apart]);
    }

    #[test]
    fn each_name_has_a_folder_of_its_own_inside_the_data_dir() {
        for (name, folder) in [("alice", "peer-alice"), ("../x y", "peer-%2E%2E%2Fx%20y"), ("Zoë", "peer-Zoë")] {
            assert_eq!(default_data_dir("peer-", &Name::new(name).unwrap()), Path::new("data/state").join(folder));
        }
        let long =
            |last: &str| default_data_dir("peer-", &Name::new(&format!("{}{last}", "\u{1f600}".repeat(63))).unwrap());
        assert!(long("a").file_name().unwrap().len() < 255 && long("a") != long("b"));
    }
}
