//! What a caller can bring along: objects that change logits or say which tokens are allowed.

use std::error::Error;
use std::fmt::Debug;

use mlx_rs::Array;

use super::TokenSet;

/// Why a [`LogitsProcessor`] cannot go on. The caller gets it as the source of
/// [`GenerateError::Processor`](crate::GenerateError::Processor).
pub type ProcessorError = Box<dyn Error + Send + Sync>;

/// An object of the caller's own that takes part in the choice of every token of one sequence: it changes the logits,
/// says which tokens are allowed, or ends the sequence.
///
/// Processors are given in [`GenerateOptions::processors`](crate::GenerateOptions::processors). Each sequence works on
/// its own clones, and they work alike in a stream, in a row of a [`Batch`](crate::Batch) and in speculative decoding.
/// They see the logits after the [`Penalties`](crate::Penalties), in the order in which they are given, and before the
/// sampler.
///
/// For one token the calls are: [`process`](Self::process), [`allowed`](Self::allowed), then [`accept`](Self::accept)
/// with the token that was chosen, then [`is_complete`](Self::is_complete). Speculative decoding first assumes that the
/// drafted tokens are right: it calls `accept` for each and takes all of them back with [`rollback`](Self::rollback)
/// before it accepts the tokens that were chosen. A drafted token that `allowed` rules out is not accepted; one that only
/// `process` rules out may be, and is taken back. An error because of a rejected token is ignored, so a call that fails
/// must leave the processor as it was.
///
/// A processor needs the id of each token before the next one can be chosen. The device works on the model's next answer
/// meanwhile, so that a processor costs the time that its calls take beyond that.
///
/// ```
/// use mlx_generate::{GenerateOptions, LogitsProcessor, ProcessorError, TokenSet};
///
/// /// Allows even ids only, and ends the sequence behind a zero.
/// #[derive(Debug, Clone)]
/// struct EvenIds {
///     allowed: TokenSet,
///     ids: Vec<u32>,
/// }
///
/// impl LogitsProcessor for EvenIds {
///     fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
///         Ok(Some(self.allowed.clone()))
///     }
///
///     fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
///         self.ids.push(token);
///         Ok(())
///     }
///
///     fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
///         self.ids.truncate(self.ids.len() - tokens);
///         Ok(())
///     }
///
///     fn is_complete(&self) -> bool {
///         self.ids.last() == Some(&0)
///     }
/// }
///
/// # fn f(model: &mut dyn mlx_causal_lm::CausalLm) -> Result<(), Box<dyn std::error::Error>> {
/// # use mlx_generate::{Session, generate};
/// # let stop_tokens = [2];
/// # let mut session = Session::new(model.new_cache(&mlx_kvcache::CacheOptions::default())?);
/// let vocab_size = model.info().vocab_size as u32;
/// let even = EvenIds { allowed: (0..vocab_size).step_by(2).collect(), ids: Vec::new() };
/// let options = GenerateOptions { processors: vec![Box::new(even)], ..GenerateOptions::new(&stop_tokens) };
/// for token in generate(model, &mut session, &[3, 1, 4], options)? {
///     assert_eq!(token?.id % 2, 0);
/// }
/// # Ok(())
/// # }
/// ```
pub trait LogitsProcessor: CloneProcessor + Debug + Send {
    /// Gets the tokens that the sequence has before its first token is chosen: the session's and the prompt's.
    ///
    /// # Errors
    ///
    /// Whatever keeps the processor from going on. The sequence does not begin.
    fn begin(&mut self, _tokens: &[u32]) -> Result<(), ProcessorError> {
        Ok(())
    }

    /// Gets a token that was taken: chosen, or drafted in speculative decoding.
    ///
    /// # Errors
    ///
    /// Whatever keeps the processor from going on. The sequence ends with the error, as in all of these functions.
    fn accept(&mut self, token: u32) -> Result<(), ProcessorError>;

    /// Takes back the newest `tokens` tokens that were accepted.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError>;

    /// Changes the logits `[1, V]` of the next token, in the same shape and dtype. By default they stay.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        Ok(logits.clone())
    }

    /// The tokens that may come next; by default, and where there is no set, all of them.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
        Ok(None)
    }

    /// Whether the sequence ends with the newest token that was accepted, with
    /// [`FinishReason::Complete`](crate::FinishReason::Complete). By default it does not.
    fn is_complete(&self) -> bool {
        false
    }
}

/// Clones a [`LogitsProcessor`] behind its trait. Every processor that is `Clone` has it.
pub trait CloneProcessor {
    /// A clone with its own state.
    fn clone_processor(&self) -> Box<dyn LogitsProcessor>;
}

impl<P: LogitsProcessor + Clone + 'static> CloneProcessor for P {
    fn clone_processor(&self) -> Box<dyn LogitsProcessor> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn LogitsProcessor> {
    fn clone(&self) -> Self {
        (**self).clone_processor()
    }
}
