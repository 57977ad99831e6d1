//! Ctrl-C: during an answer the first ends it at the next token and the second at once; during a download the first
//! ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a program that ended because of Ctrl-C: 128 and the signal's number.
pub(crate) const EXIT_STATUS: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Whether somebody looks at [`requested`].
static IS_HEARD: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C no longer kills the program, which looks at [`requested`].
pub(crate) fn install() {
    IS_HEARD.store(true, Ordering::Relaxed);
    handle();
}

/// From here on Ctrl-C ends the program, also where a shell has started it with Ctrl-C ignored.
pub(crate) fn end_at_once() {
    handle();
}

fn handle() {
    // It fails only if there is a handler already, which is this one.
    let _ = ctrlc::set_handler(|| {
        if !IS_HEARD.load(Ordering::Relaxed) || REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_STATUS));
        }
    });
}

/// Forgets that the user asked to stop, for the next answer of a conversation.
pub(crate) fn forget() {
    REQUESTED.store(false, Ordering::Relaxed);
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
