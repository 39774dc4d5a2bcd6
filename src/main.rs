//! The `p2s2` program: parse the command line, call one function.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2s2::cli::main()
}
