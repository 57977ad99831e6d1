//! How long each kernel takes, counted where the environment variable `MLX_CPU_PROFILE` is `1`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::stderr;

/// The calls of a kernel since the program began.
pub(crate) struct Timing {
    pub(crate) name: &'static str,
    pub(crate) calls: u64,
    /// The time of all calls together.
    pub(crate) time: Duration,
}

/// The calls and the time of one kernel.
pub(crate) struct Counter {
    pub(crate) name: &'static str,
    calls: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Counter {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, calls: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }
    }

    /// Runs `body`, and adds its time where the environment asks for a profile.
    pub(crate) fn measure<Y>(&self, body: impl FnOnce() -> Y) -> Y {
        if !is_wanted() {
            return body();
        }
        let started = Instant::now();
        FIRST_CALL.get_or_init(|| started);
        let y = body();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        y
    }
}

/// When the first kernel began.
static FIRST_CALL: OnceLock<Instant> = OnceLock::new();

/// What the report at the end of the program is about.
static REPORTED: OnceLock<&'static [&'static Counter]> = OnceLock::new();

unsafe extern "C" {
    /// The C library's: calls a function when the program ends.
    fn atexit(function: unsafe extern "C" fn()) -> std::ffi::c_int;
}

fn is_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("MLX_CPU_PROFILE").is_some_and(|value| value == "1"))
}

/// Where the environment asks for a profile, writes one to standard error when the program ends.
pub(crate) fn report_at_exit(counters: &'static [&'static Counter]) {
    if is_wanted() {
        REPORTED.get_or_init(|| counters);
        // SAFETY: the function takes no arguments and is never unloaded.
        let _ = unsafe { atexit(report) };
    }
}

unsafe extern "C" fn report() {
    let timings = timings(REPORTED.get().copied().unwrap_or_default());
    let Some(total) = timings.iter().map(|timing| timing.time).reduce(|a, b| a + b) else { return };
    let span = FIRST_CALL.get().map_or(total, Instant::elapsed);
    let percent = |time: Duration| 100.0 * time.as_secs_f64() / span.as_secs_f64().max(1e-9);
    let mut text = format!("{:<18} {:>9} {:>10} {:>9} {:>7}\n", "kernel", "calls", "ms", "us/call", "%");
    for Timing { name, calls, time } in timings {
        let us = time.as_secs_f64() * 1e6 / calls as f64;
        let ms = time.as_secs_f64() * 1e3;
        text += &format!("{name:<18} {calls:>9} {ms:>10.1} {us:>9.1} {:>7.1}\n", percent(time));
    }
    let ms = span.as_secs_f64() * 1e3;
    text += &format!("all kernels: {:.1} % of the {ms:.0} ms since the first\n", percent(total));
    stderr::write(&text);
}

/// The kernels that were called, those that took the longest first.
pub(crate) fn timings(counters: &[&Counter]) -> Vec<Timing> {
    let mut timings: Vec<Timing> = counters
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
