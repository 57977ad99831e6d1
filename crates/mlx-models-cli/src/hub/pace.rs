//! How fast a download must be.

use std::time::Duration;

/// How long a slow connection is looked at.
const WINDOW: Duration = Duration::from_secs(60);

/// What must come in that time. A server that sends a byte now and then would otherwise keep a program forever.
pub(super) const LEAST: u64 = 60_000;

/// Counts what comes over one connection.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the counting began.
    since: Duration,
    bytes: u64,
}

impl Pace {
    /// So many bytes have come, at this time since the connection was made. Answers whether it is fast enough.
    pub(super) fn is_fast_enough(&mut self, bytes: usize, now: Duration) -> bool {
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
        // A modem of 14,400 bits in a second is not.
        let mut pace = Pace::default();
        assert!((1..1000).all(|second| pace.is_fast_enough(1_800, at(second))));
        // What came before the last minute does not count.
        let mut pace = Pace::default();
        assert!(pace.is_fast_enough(1 << 30, at(60)) && !pace.is_fast_enough(1, at(120)));
    }
}
