//! File names, patterns and paths, as they are given to commands and passed on to the node.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context;

use crate::model::text::nfc;

/// The text, quoted for a shell if necessary.
pub(super) fn shell_quoted(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The text, percent-encoded for a path segment or a query.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The absolute path. The node may run in another working directory.
pub(super) fn absolute(path: &str) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("{path}: expected a path"))?;
    let mut text = absolute.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{path}: expected UTF-8"))?;
    // A trailing separator marks a folder; `std::path::absolute` may drop it.
    if path.ends_with(std::path::is_separator) && !text.ends_with(std::path::is_separator) {
        text.push(std::path::MAIN_SEPARATOR);
    }
    Ok(text)
}

pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether a name matches a pattern, in which `*` is any text and `?` any character.
pub(super) fn glob_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of) = (0, 0);
    // The position of the last star, and how much of the name it has consumed.
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        match (pattern.get(at), &mut star) {
            (Some('*'), _) => {
                star = Some((at, of));
                at += 1;
            }
            (Some(it), _) if *it == '?' || *it == name[of] => (at, of) = (at + 1, of + 1),
            (_, Some((begins, taken))) => {
                *taken += 1;
                (at, of) = (*begins + 1, *taken);
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|it| *it == '*')
}

/// Expands a path whose last component is a pattern to the matching files of its folder, unless a file of that very
/// name exists. (Shells do that too, but not for quoted arguments.) Hidden files match only patterns with a dot first.
pub(super) fn matching_paths(path: &str) -> Vec<String> {
    let there = Path::new(path);
    let pattern = there.file_name().and_then(|name| name.to_str()).filter(|name| is_pattern(name));
    let Some(pattern) = pattern.filter(|_| !there.exists()) else { return vec![path.to_owned()] };
    let folder = there.parent().unwrap_or(Path::new(""));
    let listed = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let names = listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let meant =
        names.filter(|name| glob_matches(pattern, name) && (pattern.starts_with('.') || !name.starts_with('.')));
    // A bare name would be taken for the name of a tracked file.
    let mut found: Vec<String> =
        meant.filter_map(|name| Path::new(".").join(folder).join(name).to_str().map(str::to_owned)).collect();
    found.sort();
    // Nothing matches: the path itself will be reported as missing.
    if found.is_empty() { vec![path.to_owned()] } else { found }
}

/// Removes duplicates; names stay in the order in which they were given.
pub(super) fn dedup_names(names: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|name| seen.insert(nfc(name).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_url_is_encoded() {
        assert_eq!(percent_encoded("a b&c/é~"), "a%20b%26c%2F%C3%A9~");
        assert_eq!(percent_encoded("report-1.pdf"), "report-1.pdf");
    }

    #[test]
    fn patterns_mean_what_shells_mean_by_them() {
        for (pattern, name, fits) in [
            ("*", "a", true),
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("é?", "éé", true),
            ("", "a", false),
        ] {
            assert_eq!(glob_matches(pattern, name), fits, "{pattern} {name}");
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.txt", ".c.txt", "d.pdf"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(matching_paths(&at("*.txt")), [at("a.txt"), at("b.txt")]);
        assert_eq!(matching_paths(&at("*.none")), [at("*.none")]);
        assert_eq!(matching_paths("name"), ["name"]);
    }

    #[test]
    fn paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("a.txt").unwrap(), here.join("a.txt").to_str().unwrap());
        assert_eq!(absolute("/x/a.txt").unwrap(), "/x/a.txt");
        assert!(absolute("sub/").unwrap().ends_with('/'));
        assert!(absolute("").is_err());
    }
}
