//! Whether the system lets the program start the threads that a model needs.

use std::sync::{Arc, Barrier, Once};
use std::thread;

use crate::failure::Failure;

/// Threads that MLX starts when it reads and computes, and those of the program beside it. MLX waits forever for one
/// that it could not start, so that it must not come to that.
const NEEDED: usize = 8;

/// The size of the stacks that MLX's threads get, in bytes: the usual one of the system.
const STACK: usize = 8 << 20;

/// Starts as many threads as a model needs, once, and lets them go.
pub(crate) fn check() -> Result<(), Failure> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| outcome = start(NEEDED + workers()));
    outcome
}

/// The threads of the CPU's kernels beside the one that calls them.
fn workers() -> usize {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let named = std::env::var("MLX_CPU_THREADS").ok().and_then(|number| number.trim().parse().ok());
    named.filter(|&number| number > 0).unwrap_or(cores).min(cores) - 1
}

fn start(count: usize) -> Result<(), Failure> {
    let together = Arc::new(Barrier::new(count + 1));
    let mut threads = Vec::with_capacity(count);
    for number in 0..count {
        let barrier = Arc::clone(&together);
        let thread = thread::Builder::new().stack_size(STACK).spawn(move || _ = barrier.wait());
        // Where one is missing the others wait forever, but the program ends.
        threads.push(thread.map_err(|source| Failure::Io {
            doing: format!(
                "starting thread {number} of {count} that a model needs; allow more threads or more memory (`ulimit -u`, \
                 `ulimit -v`), or name fewer in MLX_CPU_THREADS"
            ),
            source,
        })?);
    }
    together.wait();
    // So that their memory is free again for those that follow.
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}
