//! The preloaded library of `preloaded.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library's path; `None`, with a printed reason, on systems without it.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        println!("skipped: the shim under the server is for Linux with glibc");
        return None;
    }
    Some(LIBRARY.get_or_init(|| {
        // This program is target/PROFILE/deps/crash-…, the library target/PROFILE/examples/libpowercut.so. Cargo builds
        // examples with all tests, but not if this target alone was requested, so it is built here.
        let program = std::env::current_exe().unwrap();
        let profile = program.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "--example", "powercut", "--manifest-path"]);
        cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.file_name().is_some_and(|name| name == "release") {
            cargo.arg("--release");
        }
        // Variables that cargo set for this test are removed: build scripts that read them (ring's) would run again,
        // and everything that depends on them would be rebuilt, here and in the next ordinary build.
        for (name, _) in std::env::vars_os() {
            let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
            if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                cargo.env_remove(name);
            }
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let library = profile.join("examples/libpowercut.so");
        assert!(library.is_file(), "{} is missing", library.display());
        library
    }))
}
