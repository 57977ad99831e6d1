//! The tokens so far, as penalties need them.

use mlx_rs::error::Exception;
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};

use super::ids;

/// The tokens of one sequence so far, the prompt's too.
///
/// The device may still be computing the newest one. [`recent`](Self::recent), which is for the device, does not wait for
/// it; [`ids`](Self::ids) does.
#[derive(Debug, Clone, Default)]
pub struct History {
    ids: Vec<u32>,
    newest: Option<Array>,
}

impl History {
    /// A history that begins with these tokens.
    pub fn new(tokens: &[u32]) -> Self {
        Self { ids: tokens.to_vec(), newest: None }
    }

    /// Adds a token, one id of an integer dtype that may not be computed yet.
    ///
    /// Waits for the token before it, which costs nothing where that was read already.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn push(&mut self, token: &Array) -> Result<(), Exception> {
        self.settle()?;
        self.newest = Some(token.reshape(&[1])?.as_dtype(Dtype::Uint32)?);
        Ok(())
    }

    /// Takes back the newest `tokens` tokens, or all where there are fewer.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), Exception> {
        self.settle()?;
        self.ids.truncate(self.ids.len().saturating_sub(tokens));
        Ok(())
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ids.len() + usize::from(self.newest.is_some())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last `count` tokens, or all where there are fewer or `count` is 0, uint32 `[n]`; none where there
    /// are none.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn recent(&self, count: usize) -> Result<Option<Array>, Exception> {
        let known = match count {
            0 => self.ids.len(),
            _ => (count - usize::from(self.newest.is_some())).min(self.ids.len()),
        };
        let known = &self.ids[self.ids.len() - known..];
        match (known, &self.newest) {
            ([], newest) => Ok(newest.clone()),
            (known, None) => Ok(Some(ids(known))),
            (known, Some(newest)) => Ok(Some(concatenate(&[ids(known), newest.clone()], 0)?)),
        }
    }

    /// The ids of all tokens. Waits for the newest.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn ids(&mut self) -> Result<&[u32], Exception> {
        self.settle()?;
        Ok(&self.ids)
    }

    /// Reads the id of the newest token, which waits for it.
    fn settle(&mut self) -> Result<(), Exception> {
        if let Some(newest) = self.newest.take() {
            let id = newest.try_item_exact::<u32>().map_err(|e| Exception::custom(e.to_string()))?;
            self.ids.push(id);
        }
        Ok(())
    }
}
