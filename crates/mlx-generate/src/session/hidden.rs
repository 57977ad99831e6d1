//! Hidden states: what a model computes of each token, before its head makes logits of it.

use mlx_causal_lm::{CausalLm, Traced, trace};
use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::eval;

use super::{Output, Session, check_vocabulary, chunk_length, default_prefill_chunk, length_of};
use crate::GenerateError;

/// The hidden states of a text, from [`Session::hidden_states`].
///
/// # Shapes
///
/// All are `[B, L, D]`: rows, tokens, features of the model. Their dtype is that of the model's activations.
#[derive(Debug, Clone)]
pub struct HiddenStates {
    /// The input of the first block, which is the embedded tokens, and then the output of each block: one more than the
    /// model has blocks. None of them is normalized. (Models of this project record them; a model of your own does where it
    /// uses `mlx_layers::through_blocks`, and has none otherwise.)
    pub layers: Vec<Array>,
    /// What the head makes the logits of: the output of the last block after the last norm.
    pub last: Array,
}

impl Session {
    /// Reads the next tokens, int32 or uint32 `[B, L]`, as [`read`](Self::read) does, and returns their hidden states in
    /// place of logits. They are computed when this returns.
    ///
    /// For a text embedding take one token of `last` or their mean; for a probe take one of `layers`. Where only the last
    /// hidden state is needed, [`last_hidden_state`](Self::last_hidden_state) keeps less in memory.
    ///
    /// ```no_run
    /// use mlx_generate::Session;
    /// # use mlx_causal_lm::CausalLm;
    /// # use mlx_kvcache::CacheOptions;
    /// # use mlx_rs::Array;
    ///
    /// # fn f(model: &mut dyn CausalLm) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    /// let states = session.hidden_states(model, &Array::from_slice(&[3_u32, 1, 4], &[1, 3]))?;
    /// assert_eq!(states.layers.len(), 1 + model.info().layers.len());
    /// let embedding = states.last.mean_axis(1, false)?; // [1, D]
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn hidden_states(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
    ) -> Result<HiddenStates, GenerateError> {
        let (mut layers, mut last) = (Vec::<Vec<Array>>::new(), Vec::new());
        self.hidden_in_chunks(model, tokens, |session, model, chunk| {
            let (hidden, traced) = trace(model, |model| session.append(model, chunk, Output::Hidden));
            for (index, output) in traced.into_iter().filter_map(residual_stream).enumerate() {
                match layers.get_mut(index) {
                    Some(layer) => layer.push(output),
                    None => layers.push(vec![output]),
                }
            }
            last.push(hidden?);
            Ok(eval(last.last().into_iter().chain(layers.iter().filter_map(|layer| layer.last())))?)
        })?;
        let layers = layers.iter().map(|chunks| joined(chunks)).collect::<Result<_, _>>()?;
        Ok(HiddenStates { layers, last: joined(&last)? })
    }

    /// [`hidden_states`](Self::hidden_states) without those of the layers: `[B, L, D]`, what the head makes the logits of.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn last_hidden_state(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
    ) -> Result<Array, GenerateError> {
        let mut last = Vec::new();
        self.hidden_in_chunks(model, tokens, |session, model, chunk| {
            let hidden = session.append(model, chunk, Output::Hidden)?;
            hidden.eval()?;
            last.push(hidden);
            Ok(())
        })?;
        joined(&last)
    }

    /// Calls `read` for each chunk of the tokens, once the cache is prepared for it.
    fn hidden_in_chunks(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        mut read: impl FnMut(&mut Self, &mut dyn CausalLm, &Array) -> Result<(), GenerateError>,
    ) -> Result<(), GenerateError> {
        check_vocabulary(model, tokens)?;
        let length = length_of(tokens);
        let chunk = default_prefill_chunk();
        let mut start = 0_i32;
        loop {
            let end = start.saturating_add(chunk_length(chunk)).min(length);
            self.prepare_and_catch_up(model, length - start, Some(chunk))?;
            match end - start == length {
                true => read(self, model, tokens)?,
                false => read(self, model, &tokens.try_index((.., start..end))?)?,
            }
            self.tidy()?;
            start = end;
            if start >= length {
                return self.start();
            }
        }
    }
}

/// The output of a step that is the input of a block, or the output of one.
fn residual_stream(traced: Traced) -> Option<Array> {
    matches!(&*traced.name, "embeddings" | "output").then_some(traced.output)
}

/// The hidden states of all chunks, computed.
fn joined(chunks: &[Array]) -> Result<Array, GenerateError> {
    match chunks {
        [all] => Ok(all.clone()),
        chunks => {
            let all = concatenate(chunks, 1)?;
            all.eval()?;
            Ok(all)
        }
    }
}
