//! Batches whose rows have text.

use std::collections::BTreeMap;

use mlx_causal_lm::CausalLm;
use mlx_generate::{Batch, BatchToken, GenerateError, GenerateOptions, RowId, Session};
use mlx_tokenizer::{StopStrings, Tokenizer, TokenizerError};

use super::{StopStringProcessor, Text, TextError, TextFinish, TextPiece};

/// A [`Batch`] whose sequences have text, and end at stop strings of their own.
///
/// ```no_run
/// use mlx_models::CacheOptions;
/// use mlx_models::generate::{Batch, GenerateOptions};
/// use mlx_models::text::{TextBatch, TextOptions};
/// use mlx_models::tokenizer::Tokenizer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = mlx_models::load("path/to/checkpoint")?;
/// let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
/// let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), &tokenizer);
/// let options = GenerateOptions::new(tokenizer.stop_tokens());
/// batch.add(&mut *model, &tokenizer.encode("Once upon a time")?, options.clone())?;
/// let until_the_end = TextOptions::from(options).stop_at(["The end"])?;
/// batch.add(&mut *model, &tokenizer.encode("In the beginning")?, until_the_end)?;
/// while !batch.is_empty() {
///     for answer in batch.step(&mut *model)? {
///         println!("{:?} {:?} {:?}", answer.row, answer.piece.text, answer.finish);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextBatch {
    batch: Batch,
    tokenizer: Tokenizer,
    /// The texts of all sequences that have not ended.
    texts: BTreeMap<RowId, Text>,
    /// Sequences whose tokens have no text, of which [`step`](Self::step) has not told yet.
    failed: Vec<(RowId, TokenizerError)>,
    /// What other sequences got, of which [`step`](Self::step) has not told yet.
    pieces: Vec<BatchPiece>,
}

/// The options of a sequence of a [`TextBatch`]: [`GenerateOptions`], which this is made from, and stop strings.
#[derive(Debug, Clone)]
pub struct TextOptions {
    options: GenerateOptions,
    stop: Option<StopStrings>,
}

/// What a step of a [`TextBatch`] has for one of its sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchPiece {
    /// The sequence.
    pub row: RowId,
    /// Its next token, and the text that the token completed. There is no token where the sequence ended before it got
    /// one.
    pub piece: TextPiece,
    /// Why the text ended; `None` where it goes on. A sequence that ended has left the batch.
    pub finish: Option<TextFinish>,
}

impl From<GenerateOptions> for TextOptions {
    /// Without stop strings.
    fn from(options: GenerateOptions) -> Self {
        Self { options, stop: None }
    }
}

impl TextOptions {
    /// Ends the text before the first of these strings, which replace earlier ones: see
    /// [`TextTokens::stop_at`](super::TextTokens::stop_at).
    ///
    /// # Errors
    ///
    /// [`TokenizerError::EmptyStopString`] for an empty stop string.
    pub fn stop_at<T: Into<String>>(
        self,
        stop_strings: impl IntoIterator<Item = T>,
    ) -> Result<Self, TokenizerError> {
        Ok(Self { stop: Some(StopStrings::new(stop_strings)?), ..self })
    }
}

impl TextBatch {
    /// Gives the sequences that are added from now on their text.
    pub fn new(batch: Batch, tokenizer: &Tokenizer) -> Self {
        let tokenizer = tokenizer.clone();
        Self { batch, tokenizer, texts: BTreeMap::new(), failed: Vec::new(), pieces: Vec::new() }
    }

    /// The batch, which knows the tokens and sessions of its sequences.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Whether there is no sequence, and [`step`](Self::step) has nothing left to tell of earlier ones.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.failed.is_empty() && self.pieces.is_empty()
    }

    /// Adds a sequence: see [`Batch::add`].
    ///
    /// # Errors
    ///
    /// Those of [`Batch::add`].
    pub fn add(
        &mut self,
        model: &mut dyn CausalLm,
        prompt: &[u32],
        options: impl Into<TextOptions>,
    ) -> Result<RowId, GenerateError> {
        let (text, options) = self.begin(options.into());
        let row = self.batch.add(model, prompt, options)?;
        self.texts.insert(row, text);
        Ok(row)
    }

    /// Adds a sequence that continues a session: see [`Batch::add_session`].
    ///
    /// # Errors
    ///
    /// Those of [`Batch::add_session`].
    pub fn add_session(
        &mut self,
        model: &mut dyn CausalLm,
        session: Session,
        prompt: &[u32],
        options: impl Into<TextOptions>,
    ) -> Result<RowId, GenerateError> {
        let (text, options) = self.begin(options.into());
        let row = self.batch.add_session(model, session, prompt, options)?;
        self.texts.insert(row, text);
        Ok(row)
    }

    /// The text of a new sequence, and options with which the sequence ends where a stop string is complete.
    fn begin(&self, TextOptions { mut options, stop }: TextOptions) -> (Text, GenerateOptions) {
        if let Some(stop) = stop.clone() {
            options.processors.push(Box::new(StopStringProcessor::with(&self.tokenizer, stop)));
        }
        (Text::new(&self.tokenizer, stop.unwrap_or_default()), options)
    }

    /// Takes a sequence out, and returns whether it was there. No later step tells of it.
    ///
    /// # Errors
    ///
    /// Those of [`Batch::remove`].
    pub fn remove(&mut self, row: RowId) -> Result<bool, GenerateError> {
        self.texts.remove(&row);
        self.pieces.retain(|piece| piece.row != row);
        self.failed.retain(|(failed, _)| *failed != row);
        self.batch.remove(row)
    }

    /// Makes a [step](Batch::step) of the batch, and returns the tokens with their text.
    ///
    /// # Errors
    ///
    /// Those of [`Batch::step`]; [`TextError::Row`] where the tokenizer refused a token of a sequence. That sequence has left
    /// the batch, and the next call returns the pieces of the others.
    pub fn step(&mut self, model: &mut dyn CausalLm) -> Result<Vec<BatchPiece>, TextError> {
        if self.failed.is_empty() && self.pieces.is_empty() {
            let answers = self.batch.step(model).inspect_err(|e| {
                if let GenerateError::Row { row, .. } = e {
                    self.texts.remove(row);
                }
            })?;
            answers.into_iter().for_each(|answer| self.push(answer));
            for (row, _) in &self.failed {
                self.batch.remove(*row)?;
            }
        }
        match self.failed.pop() {
            Some((row, source)) => Err(TextError::Row { row, source }),
            None => Ok(std::mem::take(&mut self.pieces)),
        }
    }

    /// Adds a token to the text of its sequence.
    fn push(&mut self, BatchToken { row, token, finish }: BatchToken) {
        // A sequence that was in the batch before it got its text has none.
        let text =
            self.texts.entry(row).or_insert_with(|| Text::new(&self.tokenizer, StopStrings::default()));
        match text.push(token.as_ref().map(|token| token.id), finish) {
            Ok((text, finish)) => {
                if finish.is_some() {
                    self.texts.remove(&row);
                }
                self.pieces.push(BatchPiece { row, piece: TextPiece { text, token }, finish });
            }
            Err(e) => {
                self.texts.remove(&row);
                self.failed.push((row, e));
            }
        }
    }
}
