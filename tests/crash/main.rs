//! What a server must preserve whatever ends it: SIGKILL, a power cut, a failing disk.

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
