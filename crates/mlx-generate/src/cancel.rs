//! Stopping a prompt or a stream from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handle that stops a prompt or a stream, from another thread or from a signal handler. All clones stop the same one.
///
/// ```
/// use mlx_generate::{Cancel, GenerateOptions};
///
/// # let stop_tokens = [2];
/// let cancel = Cancel::default();
/// let options = GenerateOptions { cancel: cancel.clone(), ..GenerateOptions::new(&stop_tokens) };
/// std::thread::spawn(move || cancel.cancel()).join().unwrap();
/// assert!(options.cancel.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops what has the handle: a prompt before its next chunk, a stream or a row of a batch before its next token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
