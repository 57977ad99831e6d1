//! The answer to a prompt, as `--json` and the statistics report it.

use std::io::{self, Write};
use std::time::Duration;

use mlx_models::device::Device;
use mlx_models::generate::{FinishReason, Token};
use mlx_models::text::TextFinish;
use mlx_rs::error::Exception;
use serde::Serialize;

use crate::style::Style;

/// What the model answered, and how fast.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    logprobs: Vec<f32>,
    /// The most probable tokens of each step: their ids and log-probabilities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<Vec<(u32, f32)>>,
    pub(crate) finish_reason: &'static str,
    /// The stop string that ended the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_string: Option<String>,
    /// Tokens of the prompt that were read.
    pub(crate) prompt_tokens: usize,
    generation_tokens: usize,
    /// Drafted tokens that the model accepted, in speculative decoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guessed_tokens: Option<usize>,
    pub(crate) load_seconds: f64,
    pub(crate) prompt_tokens_per_second: f64,
    generation_tokens_per_second: f64,
    peak_memory_bytes: usize,
}

impl Answer {
    /// An answer of which nothing is there yet.
    pub(crate) fn new() -> Self {
        Self { finish_reason: "interrupted", ..Self::default() }
    }

    /// Adds a piece of the text, and the token that it came with.
    pub(crate) fn push(&mut self, piece: &str, token: Option<Token>) {
        self.text += piece;
        let Some(Token { id, logprob, alternatives, drafted }) = token else { return };
        self.tokens.push(id);
        self.logprobs.push(logprob);
        if drafted && let Some(count) = &mut self.guessed_tokens {
            *count += 1;
        }
        if !alternatives.is_empty() {
            // JSON has no infinite numbers, which the log-probabilities of impossible tokens are.
            let possible = alternatives.into_iter().filter(|(_, logprob)| logprob.is_finite());
            self.alternatives.push(possible.collect());
        }
    }

    /// Says why the text ended; `None` where a signal ended it.
    pub(crate) fn finish(&mut self, reason: Option<&TextFinish>) {
        match reason {
            Some(TextFinish::Tokens(reason)) => self.finish_reason = name(*reason),
            Some(TextFinish::StopString(string)) => {
                self.finish_reason = "stop_string";
                self.stop_string = Some(string.clone());
            }
            _ => {}
        }
    }

    /// Counts the tokens, and says how long their generation took.
    pub(crate) fn measure(&mut self, time: Duration) -> Result<(), Exception> {
        self.generation_tokens = self.tokens.len();
        self.generation_tokens_per_second = self.tokens.len() as f64 / time.as_secs_f64();
        self.peak_memory_bytes = mlx_rs::memory::peak_memory()?;
        Ok(())
    }

    /// Prints the device, the speed and the memory use on standard error.
    pub(crate) fn summarize(&self, device: &Device) {
        let drafted = match self.guessed_tokens {
            Some(count) => format!(", {count} of them drafted"),
            None => String::new(),
        };
        let text = format!(
            "device: {device}\nprompt: {} tokens, {:.1} tokens/s\ngeneration: {} tokens, {:.1} tokens/s ({}{drafted})\n\
             peak memory: {:.1} MB",
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.generation_tokens,
            self.generation_tokens_per_second,
            self.finish_reason,
            self.peak_memory_bytes as f64 / 1e6,
        );
        // An error means that standard error is closed, and there is no other place to report it.
        let _ = writeln!(io::stderr(), "{}", Style::Aside.for_stderr(&text));
    }
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Cancelled => "interrupted",
        reason => reason.name(),
    }
}
