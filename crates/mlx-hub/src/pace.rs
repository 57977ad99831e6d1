//! The least speed of a download.

use std::time::Duration;

/// The time over which the speed of a connection is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// Bytes that must arrive in that time. A server that sends a byte now and then could otherwise hold the program forever.
pub(crate) const LEAST: u64 = 60_000;

/// Measures the speed of one connection.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the present measurement began, since the connection was made.
    since: Duration,
    bytes: u64,
}

impl Pace {
    /// Counts bytes that have arrived, at the time `now` since the connection was made. Answers whether it is fast enough.
    pub(crate) fn is_fast_enough(&mut self, bytes: usize, now: Duration) -> bool {
        self.bytes += bytes as u64;
        if now.saturating_sub(self.since) < WINDOW {
            return true;
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.since = now;
        bytes >= LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_too_slow() {
        let at = Duration::from_secs;
        let mut pace = Pace::default();
        assert!(pace.is_fast_enough(1, at(20)) && pace.is_fast_enough(1, at(40)));
        assert!(!pace.is_fast_enough(1, at(60)));
        // A modem of 14,400 bits per second is fast enough.
        let mut pace = Pace::default();
        assert!((1..1000).all(|second| pace.is_fast_enough(1_800, at(second))));
        // What came before the last minute does not count.
        let mut pace = Pace::default();
        assert!(pace.is_fast_enough(1 << 30, at(60)) && !pace.is_fast_enough(1, at(120)));
    }
}
