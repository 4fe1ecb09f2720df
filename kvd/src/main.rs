//! The binary: the daemon and the command line of those who look after it.
//!
//! It parses arguments, runs one command of `cli` and turns its outcome into the exit code. Everything it can do is
//! in the library or in `cli`; nothing is decided here.

mod cli;
mod demo;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
