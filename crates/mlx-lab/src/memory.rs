//! The memory that processes use, as Linux reports it. On other systems it is unknown.

use std::fs;

/// The peak memory of a process, in bytes. `process` is its id or `self`. Returns 0 if it is unknown.
pub(crate) fn peak(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = kilobytes.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

/// Resets the [`peak`] of this process.
pub(crate) fn forget_peak() {
    // If this is not possible, the peak is that of all cases of a worker.
    let _ = fs::write("/proc/self/clear_refs", "5");
}
