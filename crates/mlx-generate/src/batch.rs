//! Several sequences, decoded together.

use std::collections::VecDeque;
use std::fmt;

use mlx_causal_lm::CausalLm;
use mlx_kvcache::CacheOptions;
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;

use crate::chooser::Step;
use crate::sequence::Sequence;
use crate::session::tail_of_prompt;
use crate::{
    FinishReason, GenerateError, GenerateOptions, Session, StepOptions, Token, as_i32, default_prefill_chunk,
};

/// Names a sequence of a [`Batch`]. It stays the same when other sequences leave the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(u64);

/// The number of sequences that were added before it.
impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
/// the model once, however many sequences there are. Sequences come and go at any time. This is the way to serve many
/// users with one model.
///
/// A prompt is read alone, and then its sequence becomes a row of one [`Session`]. Prompts are read by the steps, a
/// [limited number of tokens](Self::prompt_tokens_per_step) in each, so that a long prompt does not hold up the other
/// rows. A row has its own options, among them penalties, processors and random numbers, and gets the tokens that it
/// would get alone: rows do not see each other. (Logits may differ in their last bits where the device's kernels add in
/// another order for several rows than for one.)
///
/// ```no_run
/// # use mlx_causal_lm::CausalLm;
/// # use mlx_generate::{Batch, GenerateError, GenerateOptions};
/// # use mlx_kvcache::CacheOptions;
/// # fn f(model: &mut dyn CausalLm, prompts: &[Vec<u32>], stop_tokens: &[u32]) -> Result<(), GenerateError> {
/// let mut batch = Batch::new(CacheOptions::default());
/// for prompt in prompts {
///     batch.add(model, prompt, GenerateOptions::new(stop_tokens))?;
/// }
/// while !batch.is_empty() {
///     match batch.step(model) {
///         Ok(answers) => println!("{answers:?}"),
///         // This row has left the batch, and the others go on.
///         Err(GenerateError::Row { row, source }) => println!("row {row}: {source}"),
///         Err(e) => return Err(e),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch {
    options: CacheOptions,
    /// How many tokens of prompts a step reads at most; `None` stands for [`default_prefill_chunk`].
    prompt_tokens: Option<usize>,
    /// Sequences whose prompts are not read to their ends, in the order in which they were added.
    waiting: VecDeque<Waiting>,
    /// The session of all rows; `None` where there are none.
    session: Option<Session>,
    /// The rows, in the order of the session's.
    rows: Vec<Row>,
    /// How many sequences were added.
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

/// A sequence whose prompt is being read.
#[derive(Debug)]
struct Waiting {
    row: Row,
    session: Session,
    /// The tokens of the prompt that are not read yet.
    unread: Vec<u32>,
}

/// A sequence that has its first token, and is not part of the batch's session yet.
type Begun = (Row, Session);

impl Batch {
    /// A batch without sequences. `options` are those of the cache; their padding has no effect.
    pub fn new(options: CacheOptions) -> Self {
        let options = CacheOptions { left_padding: Vec::new(), ..options };
        Self {
            options,
            prompt_tokens: None,
            waiting: VecDeque::new(),
            session: None,
            rows: Vec::new(),
            added: 0,
            failed: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// The same batch, whose steps read at most this many tokens of prompts, at least one; without this call,
    /// [`default_prefill_chunk`]. With fewer, the rows that are decoded wait less for new prompts, and new prompts take more
    /// steps. A call of the model reads at most [`GenerateOptions::prefill_chunk`] of them.
    #[must_use]
    pub fn prompt_tokens_per_step(self, tokens: usize) -> Self {
        Self { prompt_tokens: Some(tokens.max(1)), ..self }
    }

    /// How many sequences there are, those included whose prompts are being read.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.rows.len()
    }

    /// Whether there is no sequence, and [`step`](Self::step) has nothing left to tell of earlier ones.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.failed.is_empty() && self.answers.is_empty()
    }

    /// The tokens of a sequence so far, prompt and answer; `None` where it has ended.
    pub fn tokens(&self, row: RowId) -> Option<&[u32]> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.row);
        waiting.chain(&self.rows).find(|found| found.id == row).map(|row| row.sequence.ids())
    }

    /// How many tokens of a sequence's prompt have yet to be read: 0 once it gets tokens, and `None` where it has ended.
    pub fn unread(&self, row: RowId) -> Option<usize> {
        match self.waiting.iter().find(|waiting| waiting.row.id == row) {
            Some(waiting) => Some(waiting.unread.len()),
            None => self.rows.iter().any(|found| found.id == row).then_some(0),
        }
    }

    /// A copy of a sequence's session, which has read all of its tokens but the last, or less of its prompt while that is
    /// being read; `None` where the sequence has ended.
    ///
    /// # Errors
    ///
    /// Those of [`Session::row`].
    pub fn session(&self, row: RowId) -> Result<Option<Session>, GenerateError> {
        if let Some(waiting) = self.waiting.iter().find(|waiting| waiting.row.id == row) {
            return Ok(Some(waiting.session.clone()));
        }
        let at = self.rows.iter().position(|found| found.id == row);
        let found = self.session.as_ref().zip(at);
        found.map(|(session, at)| session.row(at)).transpose()
    }

    /// Adds a sequence, whose prompt is read by the next steps.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](crate::generate) for the prompt and the options. The batch is then as it was.
    pub fn add(
        &mut self,
        model: &mut dyn CausalLm,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<RowId, GenerateError> {
        let session = Session::new(model.new_cache(&self.options)?);
        self.add_session(model, session, prompt, options)
    }

    /// Adds a sequence that continues a session of one row: the conversation of a user, or a prompt whose beginning was
    /// read before. The session's cache must have the options of this batch, but for the
    /// [rewind](CacheOptions::rewind), which becomes that of the batch.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](crate::generate) for the prompt and the options; [`GenerateError::UnknownTokens`] for a cache
    /// that came with tokens; [`CacheError::Merge`](mlx_kvcache::CacheError::Merge) for a cache of other options, or a
    /// [later quantization](Session::quantize_from). The batch is then as it was.
    pub fn add_session(
        &mut self,
        model: &mut dyn CausalLm,
        session: Session,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<RowId, GenerateError> {
        // Also the first one, which others will join.
        let session = session.with_options_of(model.new_cache(&self.options)?)?;
        let sequence = Sequence::new(model, &session, prompt, options)?;
        let id = RowId(self.added);
        self.added += 1;
        self.waiting.push_back(Waiting { row: Row { id, sequence }, session, unread: prompt.to_vec() });
        Ok(id)
    }

    /// Takes a sequence out, and returns whether it was there. No later step tells of it.
    ///
    /// # Errors
    ///
    /// What the cache reports.
    pub fn remove(&mut self, row: RowId) -> Result<bool, GenerateError> {
        let before = self.len();
        self.answers.retain(|answer| answer.row != row);
        self.failed.retain(|(failed, _)| *failed != row);
        self.waiting.retain(|waiting| waiting.row.id != row);
        self.keep(|found| found.id != row)?;
        Ok(self.len() < before)
    }

    /// Reads the next part of the prompts that are not read yet, in the order in which they were added, and gives every
    /// sequence whose prompt is read its next token. Returns the tokens in the order in which the sequences were added.
    /// Sequences that ended are gone afterwards.
    ///
    /// # Errors
    ///
    /// What the model reports; [`GenerateError::Row`] where one sequence failed: its prompt could not be read, no token was
    /// possible, or one of its processors reported an error. That sequence has left the batch, and the next call returns the
    /// tokens of the others.
    pub fn step(&mut self, model: &mut dyn CausalLm) -> Result<Vec<BatchToken>, GenerateError> {
        if self.failed.is_empty() && self.answers.is_empty() {
            self.end_rows_before_step()?;
            let begun = self.read_prompts(model);
            let read = self.read_and_choose(model);
            // Also where the other rows failed: these have their first tokens.
            self.join(model, begun);
            read?;
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

    /// Takes out the sequences that get no token: they were cancelled, or asked for none.
    fn end_rows_before_step(&mut self) -> Result<(), GenerateError> {
        let waiting = self.waiting.iter_mut().map(|waiting| &mut waiting.row);
        for Row { id, sequence } in waiting.chain(&mut self.rows) {
            if sequence.finish().is_some() || sequence.is_cancelled() {
                self.answers.push(BatchToken { row: *id, token: None, finish: sequence.finish() });
            }
        }
        self.waiting.retain(|waiting| waiting.row.sequence.finish().is_none());
        self.keep(|row| row.sequence.finish().is_none())
    }

    /// Reads as much of the prompts as a step may. Returns the sequences whose prompts are read to their ends, and that go
    /// on after their first token.
    fn read_prompts(&mut self, model: &mut dyn CausalLm) -> Vec<Begun> {
        let mut begun = Vec::new();
        if self.waiting.is_empty() {
            return begun;
        }
        let mut left = self.prompt_tokens.unwrap_or_else(default_prefill_chunk);
        while let Some(mut waiting) = self.waiting.pop_front() {
            match waiting.read(model, &mut left) {
                Ok(Some(answer)) => {
                    self.answers.push(answer);
                    if waiting.row.sequence.finish().is_none() {
                        begun.push((waiting.row, waiting.session));
                    }
                }
                Ok(None) => {
                    self.waiting.push_front(waiting);
                    break;
                }
                Err(e) => self.failed.push((waiting.row.id, e)),
            }
        }
        begun
    }

    /// Makes these sequences rows.
    fn join(&mut self, model: &mut dyn CausalLm, begun: Vec<Begun>) {
        for (row, session) in begun {
            let joined = match &mut self.session {
                Some(all) => all.join(model, session),
                none => {
                    *none = Some(session);
                    Ok(())
                }
            };
            match joined {
                Ok(()) => self.rows.push(row),
                Err(e) => {
                    self.answers.retain(|answer| answer.row != row.id);
                    self.failed.push((row.id, e));
                }
            }
        }
    }

    /// Reads the last token of every row in one call, and chooses the next one for each.
    fn read_and_choose(&mut self, model: &mut dyn CausalLm) -> Result<(), GenerateError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let last: Vec<u32> = self.rows.iter().filter_map(|row| row.sequence.ids().last().copied()).collect();
        let last = Array::from_slice(&last, &[last.len() as i32, 1]);
        let chunk = self.rows.iter().map(|row| row.sequence.options.chunk()).min();
        let options = StepOptions { chunk, ..StepOptions::default() };
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

impl Waiting {
    /// Reads at most `left` tokens, which it counts down, and returns the first token where the prompt is then read.
    fn read(
        &mut self,
        model: &mut dyn CausalLm,
        left: &mut usize,
    ) -> Result<Option<BatchToken>, GenerateError> {
        let chunk = self.row.sequence.options.chunk();
        loop {
            let most = chunk.min(*left);
            let tail = tail_of_prompt(self.unread.len(), most);
            let rest = &self.unread[..self.unread.len() - tail];
            let part = self.session.prefill_part(model, rest, tail, most)?;
            self.unread.drain(..part.new);
            *left -= part.read.min(*left);
            // One token more does not matter.
            if part.left == 0 && (tail == 1 || tail <= *left) {
                *left -= tail.min(*left);
                return self.begin(model).map(Some);
            }
            if *left == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads the tail of the prompt, which is all that is unread, and chooses the first token.
    fn begin(&mut self, model: &mut dyn CausalLm) -> Result<BatchToken, GenerateError> {
        let tail = std::mem::take(&mut self.unread);
        let last = tail.last().copied().ok_or(GenerateError::EmptyPrompt)?;
        let chunk = Some(self.row.sequence.options.chunk());
        let tokens = Array::from_slice(&tail, &[1, as_i32(tail.len())]);
        let options = StepOptions { chunk, ..StepOptions::default() };
        let logits = self.session.next_logits(model, &tokens, options)?.squeeze_axes(&[1])?; // [1, V]
        let step = self.row.sequence.choose(&Array::from_slice(&[last], &[1]), logits)?;
        self.row.take(&step)
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
