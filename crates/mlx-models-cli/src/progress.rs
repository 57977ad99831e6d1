//! Progress of long work, on standard error: a bar at a terminal, a few lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::style::{printable, say};

/// The width of the bar, in characters.
const WIDTH: u64 = 24;

/// The time between two updates of the bar.
const PAUSE: Duration = Duration::from_millis(100);

/// The percentage between two lines where there is no terminal.
const STEP: u64 = 10;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Items, such as layers.
    Count,
    /// Bytes; their rate is shown too.
    Bytes,
}

/// The progress of one piece of work.
#[derive(Debug)]
pub(crate) struct Progress {
    unit: Unit,
    terminal: bool,
    started: Instant,
    /// What was done before this run, and does not count for the rate.
    before: Option<u64>,
    shown: Option<Instant>,
    next_step: u64,
    /// Without a terminal, work up to this total gets no lines.
    worth_a_line: u64,
}

impl Progress {
    pub(crate) fn new(unit: Unit) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            unit,
            terminal,
            started: Instant::now(),
            before: None,
            shown: None,
            next_step: 0,
            worth_a_line: 0,
        }
    }

    /// Without a terminal, only work of more than this total gets lines.
    pub(crate) fn worth_lines_above(mut self, total: usize) -> Self {
        self.worth_a_line = total as u64;
        self
    }

    /// Shows that `done` of `total` is done; `what` names the present item.
    pub(crate) fn set(&mut self, done: u64, total: u64, what: &str) {
        let before = *self.before.get_or_insert(if self.unit == Unit::Bytes { done } else { 0 });
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        if self.terminal {
            if self.shown.is_some_and(|shown| shown.elapsed() < PAUSE) && done < total {
                return;
            }
            self.shown = Some(Instant::now());
            let full = done.saturating_mul(WIDTH).checked_div(total).unwrap_or(WIDTH).min(WIDTH) as usize;
            let bar: String = (0..WIDTH as usize).map(|i| if i < full { '#' } else { '-' }).collect();
            let seconds = self.started.elapsed().as_secs_f64().max(0.001);
            let amount = amount(self.unit, done, total, (done - before.min(done)) as f64 / seconds);
            let what = printable(what);
            write(&format!("\r\x1b[2K[{bar}] {percent:3} %  {amount}  {what}"));
        } else if percent >= self.next_step && total > self.worth_a_line {
            self.next_step = percent / STEP * STEP + STEP;
            say(&format!("{percent} %  {}  {what}", amount(self.unit, done, total, 0.0)));
        }
    }

    /// Prints a line, and removes the bar first.
    pub(crate) fn say(&mut self, text: &str) {
        self.clear();
        say(text);
    }

    /// Removes the bar.
    pub(crate) fn clear(&mut self) {
        if self.terminal && self.shown.take().is_some() {
            write("\r\x1b[2K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn amount(unit: Unit, done: u64, total: u64, per_second: f64) -> String {
    match unit {
        Unit::Count => format!("{done} of {total}"),
        Unit::Bytes if per_second > 0.0 => {
            format!("{} of {}, {}/s", bytes(done), bytes(total), bytes(per_second as u64))
        }
        Unit::Bytes => format!("{} of {}", bytes(done), bytes(total)),
    }
}

/// A number of bytes as text: `1.50 GB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Writes the bar, with control sequences.
fn write(text: &str) {
    // An error means that standard error is closed, and there is no other place to report it.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_for_people() {
        for (n, text) in
            [(999, "999 B"), (1_500, "1.5 kB"), (2_000_000, "2.0 MB"), (5_368_709_120, "5.37 GB")]
        {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(amount(Unit::Bytes, 1_000, 4_000, 500.0), "1.0 kB of 4.0 kB, 500 B/s");
        assert_eq!(amount(Unit::Count, 3, 29, 10.0), "3 of 29");
    }
}
