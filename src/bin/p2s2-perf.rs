//! The load generator: parse the command line, call one function.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2s2::perf::main()
}
