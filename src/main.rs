//! The `p2s2` program: parses the command line and calls one function.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2s2::programs::p2s2()
}
