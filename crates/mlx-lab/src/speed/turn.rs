//! A turn of a program, repeated where other processes disturb it.

use std::io;
use std::time::Duration;

use super::machine::Usage;

/// The share of the processor's time that other processes may use during a turn.
const LEAST_OTHERS: f64 = 0.05;
/// How often a disturbed turn is repeated, unless the user says otherwise.
pub(super) const PATIENCE: u32 = 3;

/// What was measured, and the share of the processor's time that other processes used meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Turn<T> {
    pub(super) found: T,
    pub(super) others: Option<f64>,
}

/// Runs a turn, and repeats it if other processes disturb it. The least disturbed turn counts.
pub(super) fn turn<T>(patience: u32, measure: impl Fn() -> io::Result<T>) -> io::Result<Turn<T>> {
    let mut best: Option<Turn<T>> = None;
    for attempt in 0..=patience {
        let before = Usage::now();
        let found = measure()?;
        let others = before.and_then(|before| Some(Usage::now()?.others_since(&before)));
        let better = |best: &Turn<T>| others.unwrap_or(0.0) < best.others.unwrap_or(0.0);
        if best.as_ref().is_none_or(better) {
            best = Some(Turn { found, others });
        }
        if others.is_none_or(|others| others <= LEAST_OTHERS) || attempt == patience {
            break;
        }
        let others = 100.0 * others.unwrap_or(0.0);
        workspace::complain(&format!("  other processes used {others:.0} % of the processor; running again"));
        std::thread::sleep(Duration::from_secs(2));
    }
    best.ok_or_else(|| io::Error::other("no turn was run"))
}
