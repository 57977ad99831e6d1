//! What a download tells its caller, and how its caller cancels it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::HubError;

/// How often a wait looks whether the download was cancelled.
const GLANCE: Duration = Duration::from_millis(50);

/// What happens during a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Bytes arrived.
    Progress {
        /// Bytes of all files that are in the cache, those of earlier runs included.
        done: u64,
        /// Bytes of all files that this run downloads or completes. It is never less than `done`, and grows where the
        /// Hub does not announce the length of a file.
        total: u64,
        /// The file that is being downloaded.
        file: &'a str,
    },
    /// Another process downloads this file; the download waits for it.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// An attempt failed, and another one follows.
    Retrying {
        /// What went wrong.
        problem: &'a str,
    },
    /// The Hub cannot be asked, and the model that is in the cache is used.
    UsingCache {
        /// Why the Hub cannot be asked.
        problem: &'a str,
    },
}

/// Cancels downloads, from any thread. Clones cancel the same downloads.
///
/// A download notices between two pieces of a file, between two requests and while it waits. While a connection is
/// silent it notices after [`Timeouts::silence`](crate::Timeouts::silence) at the latest.
///
/// ```
/// let cancel = mlx_hub::Cancel::new();
/// let for_another_thread = cancel.clone();
/// for_another_thread.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A handle that nobody has cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all downloads with this handle to end with [`HubError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The caller's side of one download: who hears its events, and who may cancel it.
pub(crate) struct Caller<'a> {
    pub(crate) on_event: Box<dyn FnMut(Event<'_>) + 'a>,
    pub(crate) cancel: Cancel,
    /// Bytes of the files before the one that is being downloaded.
    pub(crate) bytes_before: u64,
    /// Bytes of all files, as far as the Hub announces them.
    pub(crate) bytes_in_all: u64,
    /// Whether bytes that arrive are worth an event.
    pub(crate) hears_progress: bool,
}

impl Caller<'_> {
    /// A caller who hears nothing and never cancels.
    pub(crate) fn silent() -> Self {
        Self {
            on_event: Box::new(|_| {}),
            cancel: Cancel::new(),
            bytes_before: 0,
            bytes_in_all: 0,
            hears_progress: true,
        }
    }

    pub(crate) fn tell(&mut self, event: Event<'_>) {
        (self.on_event)(event);
    }

    /// Tells how many bytes of a file are in the cache.
    pub(crate) fn tell_progress(&mut self, bytes_of_file: u64, file: &str) {
        if self.hears_progress {
            let done = self.bytes_before.saturating_add(bytes_of_file);
            self.tell(Event::Progress { done, total: self.bytes_in_all.max(done), file });
        }
    }

    /// Fails where the caller has cancelled the download.
    pub(crate) fn check(&self) -> Result<(), HubError> {
        if self.cancel.is_cancelled() { Err(HubError::Cancelled) } else { Ok(()) }
    }

    /// Waits for this long, unless the caller cancels.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), HubError> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(GLANCE));
        }
    }

    /// Waits until a condition holds, unless the caller cancels.
    pub(crate) fn wait_until(&self, mut holds: impl FnMut() -> bool) -> Result<(), HubError> {
        while !holds() {
            self.check()?;
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}
