//! Where the tokens of a call are.

/// The position of the first token of a call, counted in tokens from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeOffset<'a> {
    /// The same for every row of the batch.
    One(i32),
    /// One for each row of the batch.
    PerRow(&'a [i32]),
}

impl From<i32> for RopeOffset<'_> {
    fn from(offset: i32) -> Self {
        Self::One(offset)
    }
}

/// A slice with one number applies to every row.
impl<'a> From<&'a [i32]> for RopeOffset<'a> {
    fn from(offsets: &'a [i32]) -> Self {
        match *offsets {
            [one] => Self::One(one),
            _ => Self::PerRow(offsets),
        }
    }
}
