//! Ctrl-C: the first ends the program at the next token, the second at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a program that ended because of Ctrl-C: 128 and the signal's number.
pub(crate) const EXIT_STATUS: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C no longer kills the program.
pub(crate) fn install() {
    // It fails only if there is a handler already; Ctrl-C then keeps its old meaning.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
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
