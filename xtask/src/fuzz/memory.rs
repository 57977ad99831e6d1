//! How much memory processes use, as Linux says it; elsewhere nothing is known.

use std::fs;

/// The most memory that a process had, in bytes: of the one with this id, or of `self`. 0 where that is not known.
pub(super) fn peak(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = kilobytes.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

/// From here on, [`peak`] of this process counts anew.
pub(super) fn forget_peak() {
    // Where that is not possible, the peak is that of all cases of a worker.
    let _ = fs::write("/proc/self/clear_refs", "5");
}
