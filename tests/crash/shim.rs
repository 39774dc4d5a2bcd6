//! The preloaded library of `preloaded.rs`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The library's path; `None`, with a printed reason, on systems without it.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        println!("skipped: the shim under the server is for Linux with glibc");
        return None;
    }
    Some(LIBRARY.get_or_init(|| {
        let examples = crate::support::build_example("powercut");
        let library = examples.join("libpowercut.so");
        assert!(library.is_file(), "{} is missing", library.display());
        library
    }))
}
