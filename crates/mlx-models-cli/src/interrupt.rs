//! Signals that ask the program to stop: SIGINT (Ctrl-C), SIGTERM (`kill`, a service manager) and SIGHUP (the terminal
//! was closed).
//!
//! The first signal ends long work at its next step, so that it can remove its partial files. The second ends the program at
//! once. A download ends at once at the first signal, since its parts stay and are completed later. So does a chat that waits
//! for a line, after it has restored the terminal.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The signal that was received, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Whether the program looks at [`requested`], so that the first signal does not end it.
static IS_HEARD: AtomicBool = AtomicBool::new(false);
/// Whether the program [waits](waiting), so that a signal that ends it can end it at once.
static IS_WAITING: AtomicBool = AtomicBool::new(false);
/// The terminal's settings before the program changed them.
static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// From now on the first signal does not end the program; the program looks at [`requested`].
pub(crate) fn install() {
    if io::stdin().is_terminal() {
        let mut terminal = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
        *terminal = terminal.take().or_else(|| tcgetattr(io::stdin()).ok());
    }
    IS_HEARD.store(true, SeqCst);
    handle();
}

/// From now on a signal ends the program at once with the exit status of that signal, even if a shell has started the program
/// with Ctrl-C ignored.
pub(crate) fn end_at_once() {
    handle();
}

/// Runs `wait`, which waits for a user or another program. Meanwhile a signal ends the program at once, except for SIGINT at a
/// terminal: there it is Ctrl-C, which discards a line.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    IS_WAITING.store(true, SeqCst);
    if ends_a_wait(SIGNAL.load(SeqCst)) {
        leave(SIGNAL.load(SeqCst));
    }
    let line = wait();
    IS_WAITING.store(false, SeqCst);
    line
}

/// Forgets a Ctrl-C, before the next answer of a conversation. The other signals end the conversation.
pub(crate) fn forget() {
    let _ = SIGNAL.compare_exchange(SIGINT, 0, SeqCst, SeqCst);
}

/// Whether a signal asked the program to stop its present work.
pub(crate) fn requested() -> bool {
    SIGNAL.load(SeqCst) != 0
}

/// Whether a signal asked the program to end, and not only to stop its present work: SIGTERM or SIGHUP.
pub(crate) fn ended() -> bool {
    !matches!(SIGNAL.load(SeqCst), 0 | SIGINT)
}

/// Whether a signal (0 for none) ends a program that waits.
fn ends_a_wait(signal: i32) -> bool {
    signal != 0 && (signal != SIGINT || !io::stdin().is_terminal())
}

/// The exit status of a program that a signal stopped, as in shells: 128 plus the number of the signal.
pub(crate) fn exit_status() -> Option<u8> {
    status(SIGNAL.load(SeqCst))
}

fn status(signal: i32) -> Option<u8> {
    u8::try_from(128 + signal).ok().filter(|_| signal != 0)
}

/// Starts the thread that receives signals. If it cannot be started, signals end the program as they do by default.
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
            // This returns when the thread drops the sender: the handlers are in place then.
            let _ = is_ready.recv() as Result<(), _>;
        }
    });
}

fn hear(signal: i32) {
    // A later Ctrl-C does not replace a signal that ends the program.
    let before =
        SIGNAL.fetch_update(SeqCst, SeqCst, |before| (before == 0 || signal != SIGINT).then_some(signal));
    let is_first = before == Ok(0);
    if !IS_HEARD.load(SeqCst) || !is_first || (IS_WAITING.load(SeqCst) && ends_a_wait(signal)) {
        leave(signal);
    }
}

/// Ends the program at once. Other threads may be in the middle of their work, so no destructors run.
fn leave(signal: i32) -> ! {
    if let Some(before) = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        && tcgetattr(io::stdin()).is_ok_and(|now| now != *before)
    {
        // An error means that the terminal is gone, and needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        // Switches off the marks around pasted text, which the line editor has asked for.
        let terminal = OpenOptions::new().write(true).open("/dev/tty");
        let _ = terminal.and_then(|mut terminal| terminal.write_all(b"\x1b[?2004l\r\n"));
    }
    signal_hook::low_level::exit(i32::from(status(signal).unwrap_or(1)))
}

/// Whether the program was started to outlive its terminal, as by `nohup`.
fn hangup_is_ignored() -> bool {
    if !cfg!(target_os = "linux") {
        // Other systems have no file to read it from. A program under `nohup` writes to no terminal.
        return !io::stdout().is_terminal() && !io::stderr().is_terminal();
    }
    let about = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = about.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (SIGHUP - 1) & 1 == 1
}
