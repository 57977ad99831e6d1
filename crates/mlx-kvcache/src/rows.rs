//! The rows of a batch on one line of time.

use crate::CacheError;

/// Rows of different lengths share one count of steps: the newest tokens of all rows stand at the
/// same step, and a shorter row begins later. Its padding is the number of steps before its first
/// token, and its token at position p stands at step `padding + p`.
///
/// The longest row has no padding, so that steps are its positions. (Only where all rows but such that
/// have not begun yet are filtered out, what is left of their padding stays.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows {
    steps: i32,
    /// How many there are, where they were made as a batch; otherwise the first append says it.
    count: Option<usize>,
    /// Padding of each row; none where no row has any, however many there are.
    padding: Vec<i32>,
    /// Position of the next token of each row, or the one number for all.
    offsets: Vec<i32>,
}

/// More padding than any prompt has, and little enough that sums with sizes do not overflow.
const MOST_PADDING: i32 = 1 << 30;

impl Rows {
    pub(crate) fn new() -> Self {
        Self { steps: 0, count: None, padding: Vec::new(), offsets: vec![0] }
    }

    /// Rows with this padding, before the first step.
    pub(crate) fn padded(padding: &[i32]) -> Result<Self, CacheError> {
        if padding.iter().any(|row| !(0..=MOST_PADDING).contains(row)) || !padding.contains(&0) {
            return Err(CacheError::Padding { padding: padding.to_vec() });
        }
        Ok(Self::at(0, padding.to_vec()))
    }

    /// Rows with this padding, which have come to this step.
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

    /// Steps so far: tokens of the longest row.
    pub(crate) fn steps(&self) -> i32 {
        self.steps
    }

    /// The step after `tokens` more.
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

    /// The number of rows, where they were made as a batch.
    pub(crate) fn count(&self) -> Option<usize> {
        self.count
    }

    /// The padding of every row of what was made as a batch; none otherwise.
    pub(crate) fn padding_of_batch(&self) -> Vec<i32> {
        (0..self.count.unwrap_or(0)).map(|row| self.padding_of(row)).collect()
    }

    /// The one row that there is, no longer as a batch.
    pub(crate) fn single(self) -> Self {
        if self.padding.is_empty() { Self { count: None, ..self } } else { self }
    }

    /// Goes on, or back where negative.
    pub(crate) fn advance(&mut self, steps: i32) {
        self.steps += steps;
        for offset in &mut self.offsets {
            *offset += steps;
        }
    }

    /// The number of steps to take back if `tokens` were asked for.
    pub(crate) fn back(&self, tokens: i32) -> Result<i32, CacheError> {
        if tokens < 0 { Err(CacheError::Negative { tokens }) } else { Ok(tokens.min(self.steps)) }
    }

    /// These rows of `batch`, and by how many steps their time now begins later.
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

    /// All rows of these caches as one batch, and by how many steps the time of each begins later.
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
