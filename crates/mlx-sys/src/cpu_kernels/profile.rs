//! How long which kernel took.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The calls of a kernel since the program began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The operation.
    pub name: &'static str,
    /// How often it was called.
    pub calls: u64,
    /// How long it took, all calls together.
    pub time: Duration,
}

/// Calls and nanoseconds.
pub(super) struct Counter {
    pub(super) name: &'static str,
    calls: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Counter {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, calls: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }
    }

    /// Runs `body`, and adds its time where somebody wants to know.
    pub(super) fn measure<Y>(&self, body: impl FnOnce() -> Y) -> Y {
        if !is_wanted() {
            return body();
        }
        let started = Instant::now();
        let y = body();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        y
    }
}

fn is_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("MLX_CPU_PROFILE").is_some_and(|value| value == "1"))
}

/// What the kernels took until now, the longest first; empty unless the environment variable
/// `MLX_CPU_PROFILE` is `1`. Stock operations of MLX are not among them.
pub fn profile() -> Vec<Timing> {
    let mut timings: Vec<Timing> = super::operations::COUNTERS
        .iter()
        .map(|counter| Timing {
            name: counter.name,
            calls: counter.calls.load(Ordering::Relaxed),
            time: Duration::from_nanos(counter.nanoseconds.load(Ordering::Relaxed)),
        })
        .filter(|timing| timing.calls > 0)
        .collect();
    timings.sort_by_key(|timing| std::cmp::Reverse(timing.time));
    timings
}
