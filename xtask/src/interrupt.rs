//! Ctrl-C in commands that write files: the first ends them at their next step, with nothing half done left behind, and
//! the second at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a program that ended because of Ctrl-C: 128 and the signal's number.
const EXIT_STATUS: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C no longer kills the program, which looks at [`requested`] or calls [`check`].
pub(crate) fn install() -> io::Result<()> {
    let handler = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_STATUS);
        }
    };
    ctrlc::set_handler(handler).map_err(io::Error::other)
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Fails where the user asked to stop.
pub(crate) fn check() -> io::Result<()> {
    if requested() { Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")) } else { Ok(()) }
}
