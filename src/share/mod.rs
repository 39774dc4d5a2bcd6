//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | files and hosts as messages show them |
//! | `pieces.rs` | what a file and its pieces are checked by |
//! | `transfer.rs` | serving published files, fetching those of others |

pub mod pieces;
pub mod transfer;
pub mod wire;
