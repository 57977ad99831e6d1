//! The rows of a batch, which share one count of steps.

use crate::CacheError;

/// Where each row of a batch begins.
///
/// All rows share one count of steps: their newest tokens have the same step, and a shorter row begins
/// later. The padding of a row is the number of steps before its first token, so its token at position p
/// has the step `padding + p`.
///
/// The longest row has no padding, so a step is its position. There is one exception: when a filter
/// leaves only rows that have not begun yet, all of them have padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows {
    steps: i32,
    /// The number of rows of a batch. `None` if the cache was not made as a batch; then the first append
    /// determines the number.
    count: Option<usize>,
    /// The padding of each row; empty if no row has padding.
    padding: Vec<i32>,
    /// The position of the next token of each row, or one number for all rows.
    offsets: Vec<i32>,
}

/// The most padding of a row: more than any prompt needs, and so small that sums with sizes do not overflow.
const MOST_PADDING: i32 = 1 << 30;

impl Rows {
    pub(crate) fn new() -> Self {
        Self { steps: 0, count: None, padding: Vec::new(), offsets: vec![0] }
    }

    /// Rows with this padding, at step 0.
    pub(crate) fn padded(padding: &[i32]) -> Result<Self, CacheError> {
        if padding.iter().any(|row| !(0..=MOST_PADDING).contains(row)) || !padding.contains(&0) {
            return Err(CacheError::Padding { padding: padding.to_vec() });
        }
        Ok(Self::at(0, padding.to_vec()))
    }

    /// Rows with this padding, where `steps` is the next step.
    pub(crate) fn at(steps: i32, padding: Vec<i32>) -> Self {
        let count = (!padding.is_empty()).then_some(padding.len());
        let mut rows = if padding.iter().all(|&row| row == 0) {
            Self { count, ..Self::new() }
        } else {
            let offsets = padding.iter().map(|&row| -row).collect();
            Self { steps: 0, count, padding, offsets }
        };
        rows.advance(steps);
        rows
    }

    /// The number of steps, which is the number of tokens of the longest row.
    pub(crate) fn steps(&self) -> i32 {
        self.steps
    }

    /// The number of steps after `tokens` more tokens.
    pub(crate) fn after(&self, tokens: i32) -> Result<i32, CacheError> {
        self.steps.checked_add(tokens).ok_or(CacheError::TooLong { offset: self.steps, tokens })
    }

    pub(crate) fn offsets(&self) -> &[i32] {
        &self.offsets
    }

    pub(crate) fn padding(&self) -> &[i32] {
        &self.padding
    }

    /// The padding of this row.
    pub(crate) fn padding_of(&self, row: usize) -> i32 {
        self.padding.get(row).copied().unwrap_or(0)
    }

    /// The number of rows, if they were made as a batch.
    pub(crate) fn count(&self) -> Option<usize> {
        self.count
    }

    /// The padding of every row, if they were made as a batch; otherwise empty.
    pub(crate) fn padding_of_batch(&self) -> Vec<i32> {
        (0..self.count.unwrap_or(0)).map(|row| self.padding_of(row)).collect()
    }

    /// The only row of a batch as a cache that is no batch.
    pub(crate) fn single(self) -> Self {
        if self.padding.is_empty() { Self { count: None, ..self } } else { self }
    }

    /// Goes forward by `steps`, or back if it is negative.
    pub(crate) fn advance(&mut self, steps: i32) {
        self.steps += steps;
        for offset in &mut self.offsets {
            *offset += steps;
        }
    }

    /// How many steps a trim of `tokens` tokens goes back.
    pub(crate) fn back(&self, tokens: i32) -> Result<i32, CacheError> {
        if tokens < 0 { Err(CacheError::Negative { tokens }) } else { Ok(tokens.min(self.steps)) }
    }

    /// These rows of the `batch` rows. The second number is by how many steps later the new step 0 is: the
    /// padding that all rows had.
    pub(crate) fn filter(&self, rows: &[usize], batch: usize) -> Result<(Self, i32), CacheError> {
        if rows.is_empty() || rows.iter().any(|&row| row >= batch) {
            return Err(CacheError::Rows { rows: rows.to_vec(), batch });
        }
        let padding: Vec<i32> = rows.iter().map(|&row| self.padding_of(row)).collect();
        let later = padding.iter().copied().min().unwrap_or(0);
        let later = later.min(self.steps);
        let padding = padding.iter().map(|row| row - later).collect();
        Ok((Self::at(self.steps - later, padding), later))
    }

    /// All rows of these caches as one batch. The second value has for each cache by how many steps later
    /// its step 0 is in the batch.
    pub(crate) fn merge(parts: &[(&Self, usize)]) -> Result<(Self, Vec<i32>), CacheError> {
        let steps = parts.iter().map(|(rows, _)| rows.steps).max().unwrap_or(0);
        let later: Vec<i32> = parts.iter().map(|(rows, _)| steps - rows.steps).collect();
        let padding = parts.iter().zip(&later).flat_map(|((rows, count), &later)| {
            let too_long = move || CacheError::TooLong { offset: rows.steps, tokens: later };
            (0..*count).map(move |row| rows.padding_of(row).checked_add(later).ok_or_else(too_long))
        });
        Ok((Self::at(steps, padding.collect::<Result<_, _>>()?), later))
    }
}
