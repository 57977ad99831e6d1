//! Ctrl-C in commands that write files. The first Ctrl-C ends the command at its next step, without partial
//! files; the second ends it at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit status that a shell expects of a program ended by Ctrl-C: 128 plus the number of the signal.
const EXIT_STATUS: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// After this call, Ctrl-C no longer kills the program. The program must look at [`requested`] or call
/// [`check`].
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

/// Fails if the user asked to stop.
pub(crate) fn check() -> io::Result<()> {
    if requested() { Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")) } else { Ok(()) }
}
