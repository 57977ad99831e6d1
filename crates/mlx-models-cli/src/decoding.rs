//! The options of decoding, for the subcommands that generate: length, end, sampling, cache and drafts.

use mlx_models::generate::{GenerateOptions, Overflow};
use mlx_models::tokenizer::Tokenizer;

use crate::cache::CacheArguments;
use crate::demo::Source;
use crate::failure::Failure;
use crate::sampling::SamplingArguments;

/// The most tokens that are drafted at a time. Longer drafts are never accepted as a whole, and each token of a draft takes a
/// place in every rotating cache.
const MOST_DRAFT_TOKENS: i64 = 256;

/// Options of how an answer is decoded.
#[derive(clap::Args)]
#[command(next_help_heading = "Length and end of the text")]
pub(crate) struct DecodingArguments {
    /// Generate at most this many tokens
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Generate at least this many tokens before the model may end the text; --stop and --max-tokens still end it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_tokens: usize,
    /// Stop before this text or special token; can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Stop at this token, given by its text or id, as well as at the model's own stop tokens; can be repeated
    #[arg(long, value_name = "TOKEN", num_args = 1..)]
    pub(crate) extra_eos_token: Vec<String>,
    /// Continue where the model would end the text
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) cache: CacheArguments,
    /// Draft tokens with this smaller model, whose token ids must mean the same tokens
    #[arg(
        long,
        value_name = "MODEL",
        help_heading = "Speculative decoding",
        conflicts_with = "prompt_lookup"
    )]
    pub(crate) draft_model: Option<Source>,
    /// Draft tokens by looking up how the text continued before
    #[arg(long, help_heading = "Speculative decoding")]
    pub(crate) prompt_lookup: bool,
    /// Draft up to this many tokens at a time; 0 turns drafting off
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Speculative decoding",
          value_parser = clap::value_parser!(u16).range(..=MOST_DRAFT_TOKENS))]
    pub(crate) num_draft_tokens: u16,
}

impl DecodingArguments {
    /// The options that the library decodes with.
    pub(crate) fn options(&self, tokenizer: &Tokenizer) -> Result<GenerateOptions, Failure> {
        let stop_tokens = if self.ignore_eos { &[] } else { tokenizer.stop_tokens() };
        Ok(GenerateOptions {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            penalties: self.sampling.penalties(tokenizer)?,
            sampling: self.sampling.sampling(tokenizer)?,
            prefill_chunk: self.cache.prefill_step_size,
            overflow: if self.cache.slide { Overflow::Slide } else { Overflow::Stop },
            ..GenerateOptions::new(stop_tokens)
        })
    }
}
