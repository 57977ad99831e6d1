//! Several sequences, decoded together.

use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::{CacheOptions, ModelCache};
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;

use crate::chooser::Chooser;
use crate::{FinishReason, GenerateError, GenerateOptions, Session, Token, as_i32, prefill};

/// Names a sequence of a [`Batch`], also after others have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(u64);

impl RowId {
    /// How many sequences were added before it.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// A token of one of the sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchToken {
    /// Whose it is.
    pub row: RowId,
    /// The token.
    pub token: Token,
    /// Why it was the last one; none where the sequence goes on.
    pub finish: Option<FinishReason>,
}

/// Sequences that get their tokens together, one each with every [`step`](Self::step): a step reads all weights
/// once, however many rows it serves. Rows come and go at any time.
///
/// Prompts are read one by one and then lie in one cache, filled up on the left to the longest. Each row has its
/// own options, random numbers among them, and its tokens are those that it would have alone: rows do not see
/// each other. (To the last bit of a logit where the kernels of the device add in the same order for one row as for
/// many.)
///
/// ```no_run
/// # use mlx_causal_lm::CausalLm;
/// # use mlx_generate::{Batch, GenerateOptions};
/// # use mlx_kvcache::CacheOptions;
/// # fn f(model: &mut dyn CausalLm, prompts: &[Vec<u32>]) -> Result<(), mlx_generate::GenerateError> {
/// let mut batch = Batch::new(CacheOptions::default());
/// for prompt in prompts {
///     batch.add(model, prompt, GenerateOptions::default())?;
/// }
/// while !batch.is_empty() {
///     for answer in batch.step(model)? {
///         println!("{:?}: {}", answer.row, answer.token.id);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch {
    options: CacheOptions,
    cache: Option<ModelCache>,
    /// In the order of the cache's rows.
    rows: Vec<Row>,
    added: u64,
    /// Rows that failed in the last step and were not told of yet.
    failed: Vec<(RowId, GenerateError)>,
    /// The tokens of the others in that step.
    kept_back: Vec<BatchToken>,
}

#[derive(Debug)]
struct Row {
    id: RowId,
    /// All tokens so far, prompt and answer. The cache has all of them but the last.
    tokens: Vec<u32>,
    /// The length of the sequence that the cached keys are rotated for.
    rotated_for: i32,
    decoded: usize,
    chooser: Chooser,
    options: GenerateOptions,
}

impl Batch {
    /// A batch without rows. `options` are those of the cache; its padding is not looked at.
    pub fn new(options: CacheOptions) -> Self {
        let options = CacheOptions { left_padding: Vec::new(), ..options };
        Self { options, cache: None, rows: Vec::new(), added: 0, failed: Vec::new(), kept_back: Vec::new() }
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none, and [`step`](Self::step) has nothing to tell of those that were.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.failed.is_empty() && self.kept_back.is_empty()
    }

    /// The tokens of a sequence so far, prompt and answer; none where it has ended.
    pub fn tokens(&self, row: RowId) -> Option<&[u32]> {
        self.rows.iter().find(|found| found.id == row).map(|row| &*row.tokens)
    }

    /// Reads a prompt, which the next step continues.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](crate::generate); the batch is then as it was.
    pub fn add(
        &mut self,
        model: &mut dyn CausalLm,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<RowId, GenerateError> {
        let chooser = Chooser::new(&options, model.info().vocab_size)?.after(|| {
            let rest = prompt.split_last().map_or(&[][..], |(_, rest)| rest);
            Ok(rest.to_vec())
        })?;
        let id = RowId(self.added);
        let rotated_for = as_i32(prompt.len());
        self.join(model, Row { id, tokens: prompt.to_vec(), rotated_for, decoded: 0, chooser, options })?;
        self.added += 1;
        Ok(id)
    }

    /// Ends a sequence, and says whether there was one.
    ///
    /// # Errors
    ///
    /// What the cache reports.
    pub fn remove(&mut self, row: RowId) -> Result<bool, GenerateError> {
        let before = self.rows.len();
        self.keep(|found| found.id != row)?;
        Ok(self.rows.len() < before)
    }

    /// The next token of every sequence, in the order in which they were added. Those that have come to their
    /// end are gone afterwards.
    ///
    /// # Errors
    ///
    /// What the model reports; [`GenerateError::Row`] where no token can be chosen for one sequence, which then has
    /// left the batch. The tokens of the others come with the next call.
    pub fn step(&mut self, model: &mut dyn CausalLm) -> Result<Vec<BatchToken>, GenerateError> {
        if let Some(failure) = self.next_failure() {
            return Err(failure);
        }
        if !self.kept_back.is_empty() {
            return Ok(std::mem::take(&mut self.kept_back));
        }
        // A row that was asked for no token at all.
        self.keep(|row| row.options.max_tokens > 0)?;
        self.read_again_over_borders(model)?;
        let Some(cache) = self.cache.as_mut() else { return Ok(Vec::new()) };
        let last: Vec<u32> = self.rows.iter().filter_map(|row| row.tokens.last().copied()).collect();
        let tokens = Array::from_slice(&last, &[last.len() as i32, 1]);
        let logits = model.forward(&tokens, cache, Logits::Last)?.squeeze_axes(&[1])?; // [B, V]

        let mut steps = Vec::with_capacity(self.rows.len());
        for (index, row) in (0..).zip(&mut self.rows) {
            let token = tokens.try_index((index, ..))?; // [1]
            steps.push(row.chooser.step(&token, logits.try_index(index..index + 1)?)?);
        }
        let mut answers = Vec::with_capacity(steps.len());
        for (row, step) in self.rows.iter_mut().zip(&steps) {
            let token = match step.read() {
                Ok(token) => token,
                Err(e) => {
                    self.failed.push((row.id, e));
                    continue;
                }
            };
            row.decoded += 1;
            row.tokens.push(token.id);
            let finish = if row.options.stop_tokens.contains(&token.id) {
                Some(FinishReason::StopToken)
            } else if row.options.cancel.is_cancelled() {
                Some(FinishReason::Cancelled)
            } else if row.decoded >= row.options.max_tokens {
                Some(FinishReason::MaxTokens)
            } else if row.tokens.len() > row.options.longest(model) {
                Some(FinishReason::ContextFull)
            } else {
                None
            };
            answers.push(BatchToken { row: row.id, token, finish });
        }
        let ended: Vec<RowId> = answers
            .iter()
            .filter(|answer| answer.finish.is_some())
            .map(|answer| answer.row)
            .chain(self.failed.iter().map(|(row, _)| *row))
            .collect();
        self.keep(|row| !ended.contains(&row.id))?;
        answers.sort_by_key(|answer| answer.row);
        match self.next_failure() {
            None => Ok(answers),
            Some(failure) => {
                self.kept_back = answers;
                Err(failure)
            }
        }
    }

    fn next_failure(&mut self) -> Option<GenerateError> {
        let (row, source) = self.failed.pop()?;
        Some(GenerateError::Row { row, source: Box::new(source) })
    }

    /// Rows whose next token comes over a border between two rotations (LongRoPE) are read anew.
    fn read_again_over_borders(&mut self, model: &mut dyn CausalLm) -> Result<(), GenerateError> {
        let crosses = |row: &Row| !model.rotates_alike(row.rotated_for, as_i32(row.tokens.len()));
        if !self.rows.iter().any(crosses) {
            return Ok(());
        }
        let crossing: Vec<RowId> = self.rows.iter().filter(|row| crosses(row)).map(|row| row.id).collect();
        let (gone, kept): (Vec<usize>, Vec<usize>) =
            (0..self.rows.len()).partition(|&index| crossing.contains(&self.rows[index].id));
        self.select(&kept)?;
        let mut rows: Vec<Row> = Vec::new();
        let mut gone_rows = Vec::new();
        for (index, row) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            if gone.contains(&index) { gone_rows.push(row) } else { rows.push(row) }
        }
        self.rows = rows;
        for mut row in gone_rows {
            row.rotated_for = as_i32(row.tokens.len());
            self.join(model, row)?;
        }
        Ok(())
    }

    /// Reads all but the last token of the row, and puts it behind the others.
    fn join(&mut self, model: &mut dyn CausalLm, row: Row) -> Result<(), GenerateError> {
        let mut session = self.new_session(model)?;
        prefill(model, &mut session, &row.tokens, &row.options, &mut |_, _| ControlFlow::Continue(()))?;
        let cache = session.into_cache();
        match &mut self.cache {
            Some(all) => all.extend(&cache)?,
            none => *none = Some(cache),
        }
        self.rows.push(row);
        self.start()
    }

    fn keep(&mut self, wanted: impl Fn(&Row) -> bool) -> Result<(), GenerateError> {
        let kept: Vec<usize> = (0..self.rows.len()).filter(|&index| wanted(&self.rows[index])).collect();
        if kept.len() == self.rows.len() {
            return Ok(());
        }
        self.select(&kept)?;
        self.rows.retain(wanted);
        Ok(())
    }

    /// Keeps these rows of the cache.
    fn select(&mut self, rows: &[usize]) -> Result<(), GenerateError> {
        match &mut self.cache {
            Some(cache) if !rows.is_empty() => cache.filter(rows)?,
            cache => *cache = None,
        }
        self.start()
    }

    /// As [`Session::start`].
    fn start(&self) -> Result<(), GenerateError> {
        Ok(async_eval(self.cache.iter().flat_map(ModelCache::arrays))?)
    }

    fn new_session(&self, model: &dyn CausalLm) -> Result<Session, GenerateError> {
        Ok(Session::new(model.new_cache(&self.options)?))
    }
}
