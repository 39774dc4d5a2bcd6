//! The ready file: a JSON object with the bound addresses, written once everything is bound.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// Writes the object under a temporary name and renames it, so that readers never see a partial file.
///
/// # Errors
/// The directory is missing or not writable.
pub fn write(path: &Path, addresses: &Value) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let result = fs::File::create(&temporary)
        .and_then(|mut file| writeln!(file, "{addresses}").and_then(|()| file.flush()))
        .and_then(|()| fs::rename(&temporary, path));
    result.with_context(|| format!("cannot write the ready file {}", path.display()))
}
