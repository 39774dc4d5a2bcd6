//! Servers with the shim of `preloaded.rs` under them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The shim's file; `None`, with a line that says so, where there can be none.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        println!("skipped: the shim under the server is for Linux with glibc");
        return None;
    }
    Some(LIBRARY.get_or_init(|| {
        // target/PROFILE/deps/crash-… runs; the shim is target/PROFILE/examples/libpowercut.so. Cargo
        // builds examples with all tests, but not when this target alone was asked for: so it is asked.
        let program = std::env::current_exe().unwrap();
        let profile = program.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "--example", "powercut", "--manifest-path"]);
        cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.file_name().is_some_and(|name| name == "release") {
            cargo.arg("--release");
        }
        // What cargo told this test about itself: build scripts that look at it (ring's) would run anew,
        // and everything above them be built again, here and then there.
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
