//! What a server must keep whatever ends it: SIGKILL, a power cut, a disk that fails.

#[path = "../support/mod.rs"]
mod support;

mod claims;
mod disk;
mod disk_log;
mod kill;
mod lost;
mod money;
mod powercut;
mod rng;
mod shim;
mod traders;
mod whole;
