//! The entry point of the program: runs the command line, prints the error with its causes and sets the exit code.

use std::process::ExitCode;

/// Scoring constantly allocates and frees buffers of several megabytes; the system's allocator returns them to the kernel, so
/// that each use faults the pages in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match diagnose::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(diagnose::cli::fail(&error)),
    }
}
