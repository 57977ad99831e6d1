//! Several sequences, decoded together.

use std::ops::ControlFlow;

use mlx_causal_lm::CausalLm;
use mlx_kvcache::CacheOptions;
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;

use crate::chooser::Step;
use crate::sequence::Sequence;
use crate::{FinishReason, GenerateError, GenerateOptions, PREFILL_CHUNK, Session, StepOptions, Token};

/// Names a sequence of a [`Batch`]. It stays the same when other sequences leave the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(u64);

impl RowId {
    /// How many sequences were added before it.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// What a step of a [`Batch`] has for one of its sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchToken {
    /// The sequence.
    pub row: RowId,
    /// Its next token. `None` where the sequence ended before it got one: it was cancelled, or no token was asked for.
    pub token: Option<Token>,
    /// Why the sequence ended; `None` where it goes on. A sequence that ended has left the batch.
    pub finish: Option<FinishReason>,
}

/// Sequences that are decoded together: each gets one token with every [`step`](Self::step). A step reads all weights of
/// the model once, however many sequences there are. Sequences come and go at any time.
///
/// Each prompt is read alone, and then its sequence becomes a row of one [`Session`]. A row has its own options, among
/// them penalties, processors and random numbers, and gets the tokens that it would get alone: rows do not see each
/// other. (Logits may differ in their last bits where the device's kernels add in another order for several rows than
/// for one.)
///
/// ```no_run
/// # use mlx_causal_lm::CausalLm;
/// # use mlx_generate::{Batch, GenerateOptions};
/// # use mlx_kvcache::CacheOptions;
/// # fn f(model: &mut dyn CausalLm, prompts: &[Vec<u32>], stop_tokens: &[u32]) -> Result<(), mlx_generate::GenerateError> {
/// let mut batch = Batch::new(CacheOptions::default());
/// for prompt in prompts {
///     batch.add(model, prompt, GenerateOptions::new(stop_tokens))?;
/// }
/// while !batch.is_empty() {
///     for answer in batch.step(model)? {
///         println!("{:?}: {:?} {:?}", answer.row, answer.token, answer.finish);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch {
    options: CacheOptions,
    /// None where there are no rows.
    session: Option<Session>,
    /// In the order of the session's rows.
    rows: Vec<Row>,
    added: u64,
    /// Rows that failed, of which [`step`](Self::step) has not told yet.
    failed: Vec<(RowId, GenerateError)>,
    /// What other rows got or why they ended, of which [`step`](Self::step) has not told yet.
    answers: Vec<BatchToken>,
}

#[derive(Debug)]
struct Row {
    id: RowId,
    sequence: Sequence,
}

impl Batch {
    /// A batch without sequences. `options` are those of the cache; their padding has no effect.
    pub fn new(options: CacheOptions) -> Self {
        let options = CacheOptions { left_padding: Vec::new(), ..options };
        Self { options, session: None, rows: Vec::new(), added: 0, failed: Vec::new(), answers: Vec::new() }
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sequence, and [`step`](Self::step) has nothing left to tell of earlier ones.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.failed.is_empty() && self.answers.is_empty()
    }

    /// The tokens of a sequence so far, prompt and answer; `None` where it has ended.
    pub fn tokens(&self, row: RowId) -> Option<&[u32]> {
        self.rows.iter().find(|found| found.id == row).map(|row| row.sequence.ids())
    }

    /// A copy of a sequence's session, which has read all of its tokens but the last; `None` where the sequence has
    /// ended.
    ///
    /// # Errors
    ///
    /// Those of [`Session::row`].
    pub fn session(&self, row: RowId) -> Result<Option<Session>, GenerateError> {
        let at = self.rows.iter().position(|found| found.id == row);
        let found = self.session.as_ref().zip(at);
        found.map(|(session, at)| session.row(at)).transpose()
    }

    /// Adds a sequence: reads its prompt, which the next step continues.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](crate::generate). The batch is then as it was.
    pub fn add(
        &mut self,
        model: &mut dyn CausalLm,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<RowId, GenerateError> {
        let session = Session::new(model.new_cache(&self.options)?);
        self.add_session(model, session, prompt, options)
    }

    /// Adds a sequence that continues a session of one row: a prompt whose beginning was read before, for example. The
    /// session's cache must have the options of this batch.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](crate::generate) and of [`Session::join`]. The batch is then as it was.
    pub fn add_session(
        &mut self,
        model: &mut dyn CausalLm,
        mut session: Session,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<RowId, GenerateError> {
        session.check_joinable()?; // Also the first one, which others will join.
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let (sequence, _) = Sequence::begin(model, &mut session, prompt, options, go_on)?;
        match &mut self.session {
            Some(all) => all.join(model, session)?,
            none => *none = Some(session),
        }
        let id = RowId(self.added);
        self.rows.push(Row { id, sequence });
        self.added += 1;
        Ok(id)
    }

    /// Takes a sequence out, and returns whether it was there.
    ///
    /// # Errors
    ///
    /// What the cache reports.
    pub fn remove(&mut self, row: RowId) -> Result<bool, GenerateError> {
        let before = self.rows.len();
        self.keep(|found| found.id != row)?;
        Ok(self.rows.len() < before)
    }

    /// Gives every sequence its next token, and returns the tokens in the order in which the sequences were added.
    /// Sequences that ended are gone afterwards.
    ///
    /// # Errors
    ///
    /// What the model reports; [`GenerateError::Row`] where one sequence failed: no token was possible, or one of its
    /// processors reported an error. That sequence has left the batch, and the next call returns the tokens of the others.
    pub fn step(&mut self, model: &mut dyn CausalLm) -> Result<Vec<BatchToken>, GenerateError> {
        if self.failed.is_empty() && self.answers.is_empty() {
            self.end_rows_before_step()?;
            self.read_and_choose(model)?;
        }
        match self.failed.pop() {
            Some((row, source)) => Err(GenerateError::Row { row, source: Box::new(source) }),
            None => {
                let mut answers = std::mem::take(&mut self.answers);
                answers.sort_by_key(|answer| answer.row);
                Ok(answers)
            }
        }
    }

    /// Takes out the rows that get no token: they were cancelled, or asked for none.
    fn end_rows_before_step(&mut self) -> Result<(), GenerateError> {
        for Row { id, sequence } in &mut self.rows {
            if sequence.finish().is_some() || sequence.is_cancelled() {
                self.answers.push(BatchToken { row: *id, token: None, finish: sequence.finish() });
            }
        }
        self.keep(|row| row.sequence.finish().is_none())
    }

    /// Reads the last token of every row in one call, and chooses the next one for each.
    fn read_and_choose(&mut self, model: &mut dyn CausalLm) -> Result<(), GenerateError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let last: Vec<u32> = self.rows.iter().filter_map(|row| row.sequence.ids().last().copied()).collect();
        let last = Array::from_slice(&last, &[last.len() as i32, 1]);
        let chunk = self.rows.iter().map(|row| row.sequence.options.prefill_chunk).min();
        let options = StepOptions { chunk: chunk.unwrap_or(PREFILL_CHUNK), ..StepOptions::default() };
        let logits = session.next_logits(model, &last, options)?.squeeze_axes(&[1])?; // [B, V]
        if self.rows.iter().any(|row| row.sequence.needs_ids()) {
            // The device computes them while processors work.
            async_eval([&logits])?;
        }
        // All choices are started before the first one is waited for.
        let mut steps = Vec::with_capacity(self.rows.len());
        for (index, row) in (0..).zip(&mut self.rows) {
            let logits = logits.try_index(index..index + 1)?;
            steps.push(row.sequence.choose(&last.try_index((index, ..))?, logits));
        }
        for (row, step) in self.rows.iter_mut().zip(steps) {
            match step.and_then(|step| row.take(&step)) {
                Ok(answer) => self.answers.push(answer),
                Err(e) => self.failed.push((row.id, e)),
            }
        }
        let failed: Vec<RowId> = self.failed.iter().map(|(row, _)| *row).collect();
        self.keep(|row| row.sequence.finish().is_none() && !failed.contains(&row.id))
    }

    fn keep(&mut self, is_kept: impl Fn(&Row) -> bool) -> Result<(), GenerateError> {
        let kept: Vec<usize> = (0..self.rows.len()).filter(|&index| is_kept(&self.rows[index])).collect();
        if kept.len() == self.rows.len() {
            return Ok(());
        }
        match &mut self.session {
            Some(session) if !kept.is_empty() => session.keep_rows(&kept)?,
            session => *session = None,
        }
        self.rows.retain(is_kept);
        Ok(())
    }
}

impl Row {
    /// Waits for the token that was chosen.
    fn take(&mut self, step: &Step) -> Result<BatchToken, GenerateError> {
        let token = step.read()?;
        let finish = self.sequence.take(token.id)?;
        Ok(BatchToken { row: self.id, token: Some(token), finish })
    }
}
