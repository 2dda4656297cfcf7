//! The `clipgate` command.

use std::process::ExitCode;

/// With jemalloc a parked wait needs a quarter less memory than with the allocator of the system, and a hit 4 % less time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    clipgate::cli::main()
}
