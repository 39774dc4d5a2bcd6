//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | files and hosts as messages show them |

pub mod wire;
