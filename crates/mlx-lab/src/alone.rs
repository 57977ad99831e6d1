//! Lets tests that compare numbers run one at a time: some turn the kernels off for a while, for the whole process.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other test holds this.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
