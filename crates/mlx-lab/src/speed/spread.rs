//! The median of the turns, and how far they are apart.

use serde::Serialize;

/// The median, minimum and maximum of some turns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        } else {
            at(middle)
        };
        Self { min: at(0), median, max: at(values.len().saturating_sub(1)) }
    }

    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { min: f(self.min), median: f(self.median), max: f(self.max) }
    }

    /// With this many digits after the point.
    pub(super) fn text(self, digits: usize) -> String {
        let Self { min, median, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }

    /// With fewer digits for larger numbers.
    pub(super) fn figure(self) -> String {
        self.text(match self.median {
            median if median < 10.0 => 2,
            median if median < 300.0 => 1,
            _ => 0,
        })
    }
}

pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_turns_is_between_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]), Spread { min: 1.0, median: 3.0, max: 8.0 });
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn large_numbers_have_fewer_digits() {
        assert_eq!(Spread::of([1.234, 1.25, 1.26]).figure(), "1.25 (1.23 to 1.26)");
        assert_eq!(Spread::of([1234.5]).figure(), "1234 (1234 to 1234)");
    }
}
