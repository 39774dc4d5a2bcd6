//! The ready file: a JSON object with the bound addresses, written once everything is bound.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::storage::files;

/// Writes the object so that readers never see a part of it.
pub fn write(path: &Path, addresses: &Value) -> anyhow::Result<()> {
    files::replace(path, OpenOptions::new(), |file| writeln!(file, "{addresses}"))
        .with_context(|| format!("cannot write the ready file {}", path.display()))
}
