//! Signals that ask the program to stop: SIGINT (Ctrl-C), SIGTERM (`kill`, a service manager) and SIGHUP (the terminal
//! was closed).
//!
//! Long work ends at its next step after the first of them, so that it removes its partial files, and at once after the
//! second. A download, whose parts stay to be completed later, ends at once after the first. So does a chat that waits
//! for a line, which gets its terminal back as it was.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The signal that came, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Whether somebody looks at [`requested`].
static IS_HEARD: AtomicBool = AtomicBool::new(false);
/// Whether the program does nothing but [wait](waiting), so that what is to end it ends it at once.
static IS_WAITING: AtomicBool = AtomicBool::new(false);
/// The terminal's settings before the program changed them.
static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// From here on the first signal no longer ends the program, which looks at [`requested`].
pub(crate) fn install() {
    if io::stdin().is_terminal() {
        let mut terminal = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
        *terminal = terminal.take().or_else(|| tcgetattr(io::stdin()).ok());
    }
    IS_HEARD.store(true, SeqCst);
    handle();
}

/// From here on a signal ends the program with its own exit status, also where a shell has started it with Ctrl-C
/// ignored.
pub(crate) fn end_at_once() {
    handle();
}

/// Runs `wait`, which waits for a person or another program. Meanwhile a signal ends the program at once. At a terminal
/// SIGINT does not: there it is Ctrl-C, by which a line is given up.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    IS_WAITING.store(true, SeqCst);
    if ends_a_wait(SIGNAL.load(SeqCst)) {
        leave(SIGNAL.load(SeqCst));
    }
    let line = wait();
    IS_WAITING.store(false, SeqCst);
    line
}

/// Forgets a Ctrl-C, for the next answer of a conversation. The other signals end the conversation.
pub(crate) fn forget() {
    let _ = SIGNAL.compare_exchange(SIGINT, 0, SeqCst, SeqCst);
}

/// Whether a signal asked the program to stop what it does.
pub(crate) fn requested() -> bool {
    SIGNAL.load(SeqCst) != 0
}

/// Whether the program is to end, and not only what it does now: SIGTERM or SIGHUP came.
pub(crate) fn ended() -> bool {
    !matches!(SIGNAL.load(SeqCst), 0 | SIGINT)
}

/// Whether a signal, or 0 for none, ends a program that waits.
fn ends_a_wait(signal: i32) -> bool {
    signal != 0 && (signal != SIGINT || !io::stdin().is_terminal())
}

/// The exit status of a program that a signal stopped, as shells have it: 128 and the signal's number.
pub(crate) fn exit_status() -> Option<u8> {
    status(SIGNAL.load(SeqCst))
}

fn status(signal: i32) -> Option<u8> {
    u8::try_from(128 + signal).ok().filter(|_| signal != 0)
}

/// Starts the thread that hears signals. Where it cannot be started, signals end the program as they do by default.
fn handle() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, is_ready) = mpsc::channel();
        let listen = move || {
            let mut signals =
                Signals::new([SIGINT, SIGTERM].into_iter().chain((!hangup_is_ignored()).then_some(SIGHUP)));
            drop(ready);
            for signal in signals.iter_mut().flat_map(Signals::forever) {
                hear(signal);
            }
        };
        if thread::Builder::new().name("signals".to_owned()).spawn(listen).is_ok() {
            // It ends with an error when the sender is dropped.
            let _ = is_ready.recv() as Result<(), _>;
        }
    });
}

fn hear(signal: i32) {
    // A Ctrl-C does not take the place of what is to end the program.
    let before =
        SIGNAL.fetch_update(SeqCst, SeqCst, |before| (before == 0 || signal != SIGINT).then_some(signal));
    let is_first = before == Ok(0);
    if !IS_HEARD.load(SeqCst) || !is_first || (IS_WAITING.load(SeqCst) && ends_a_wait(signal)) {
        leave(signal);
    }
}

/// Ends the program at once: other threads may be in the middle of anything, so nothing of them is run or freed.
fn leave(signal: i32) -> ! {
    if let Some(before) = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        && tcgetattr(io::stdin()).is_ok_and(|now| now != *before)
    {
        // What is to be done for a terminal that is gone? Nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        // The line editor has asked for marks around text that is pasted.
        let terminal = OpenOptions::new().write(true).open("/dev/tty");
        let _ = terminal.and_then(|mut terminal| terminal.write_all(b"\x1b[?2004l\r\n"));
    }
    signal_hook::low_level::exit(i32::from(status(signal).unwrap_or(1)))
}

/// Whether the program was started to outlive its terminal, as `nohup` does it.
fn hangup_is_ignored() -> bool {
    if !cfg!(target_os = "linux") {
        // There is no file to read it from. What `nohup` starts writes to no terminal.
        return !io::stdout().is_terminal() && !io::stderr().is_terminal();
    }
    let about = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = about.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (SIGHUP - 1) & 1 == 1
}
