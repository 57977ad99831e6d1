//! The sampling options of the subcommands that generate. Options that mlx-lm has too have its names.

use std::hash::{BuildHasher, RandomState};

use mlx_models::generate::{Dry, Penalties, Penalty, Sampling, Xtc};
use mlx_models::tokenizer::{Around, EncodeOptions, Tokenizer, TokenizerError};

/// Options of sampling, and of the penalties on logits before it.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArguments {
    /// Set the temperature: 0 always takes the most probable token, 1 samples with the model's own probabilities
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temp: f64,
    /// Sample from the smallest set of most probable tokens that together have this probability; 0 or 1 keeps all tokens
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Exclude tokens whose probability is below this fraction of the largest one; 0 keeps all tokens
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f64,
    /// Keep at least this many tokens with --min-p
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_tokens_to_keep: usize,
    /// Sample from this many of the most probable tokens; 0 keeps all tokens
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Exclude the most probable tokens (XTC) with this probability at each step, from 0 to 1; line breaks and stop tokens
    /// are never excluded
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    xtc_probability: f64,
    /// Exclude with XTC all tokens above this probability but the least probable of them, from 0 to 0.5
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_negative_numbers = true)]
    xtc_threshold: f64,
    /// Set the random seed; the same seed samples the same tokens [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Add this value to the logit of a token; -inf forbids the token; can be repeated
    #[arg(long, value_name = "ID:VALUE", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f64)>,
    /// Penalize tokens that occurred before: divide their logits by this, or multiply logits below 0; 0 or 1 turns it off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// Apply --repetition-penalty to tokens among the last N; 0 means all tokens
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Subtract this from the logits of tokens that occurred before; 0 turns it off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Apply --presence-penalty to tokens among the last N; 0 means all tokens
    #[arg(long, value_name = "N", default_value_t = 20)]
    presence_context_size: usize,
    /// Subtract this from the logit of a token for each time that it occurred before; 0 turns it off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Apply --frequency-penalty to tokens among the last N; 0 means all tokens
    #[arg(long, value_name = "N", default_value_t = 20)]
    frequency_context_size: usize,
    /// Penalize tokens that would continue a repetition (DRY): subtract this at --dry-allowed-length, and more for longer
    /// repetitions; 0.8 is usual, 0 turns it off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    dry_multiplier: f64,
    /// Multiply DRY's penalty by this for each further token of the repetition
    #[arg(long, value_name = "X", default_value_t = 1.75, allow_negative_numbers = true)]
    dry_base: f64,
    /// Penalize repetitions of at least this many tokens with DRY
    #[arg(long, value_name = "N", default_value_t = 2)]
    dry_allowed_length: usize,
    /// Search the last N tokens for repetitions with DRY [default: all tokens]
    #[arg(long, value_name = "N")]
    dry_penalty_last_n: Option<usize>,
    /// End DRY's repetitions at this text; can be repeated, and replaces the defaults: a line break, a colon, a quotation
    /// mark and an asterisk
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new(),
          allow_hyphen_values = true)]
    dry_sequence_breaker: Vec<String>,
}

/// The sequence breakers of the pull request that DRY comes from.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

impl SamplingArguments {
    /// How tokens are sampled: with a random seed if none was given.
    pub(crate) fn sampling(&self, tokenizer: &Tokenizer) -> Result<Sampling, TokenizerError> {
        let special_tokens = if self.xtc_probability > 0.0 {
            [&tokenizer.encode("\n")?, tokenizer.stop_tokens()].concat()
        } else {
            Vec::new()
        };
        Ok(Sampling {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            min_tokens_to_keep: self.min_tokens_to_keep,
            top_k: self.top_k,
            xtc: Xtc { probability: self.xtc_probability, threshold: self.xtc_threshold, special_tokens },
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
        })
    }

    /// The penalties and the bias on logits.
    pub(crate) fn penalties(&self, tokenizer: &Tokenizer) -> Result<Penalties, TokenizerError> {
        let penalty = |penalty, context_size| Penalty { penalty, context_size };
        let dry = if self.dry_multiplier == 0.0 {
            None
        } else {
            Some(Dry {
                multiplier: self.dry_multiplier,
                base: self.dry_base,
                allowed_length: self.dry_allowed_length,
                penalty_last_n: self.dry_penalty_last_n,
                sequence_breakers: self.breakers(tokenizer)?,
            })
        };
        Ok(Penalties {
            logit_bias: self.logit_bias.clone(),
            repetition: penalty(self.repetition_penalty, self.repetition_context_size),
            presence: penalty(self.presence_penalty, self.presence_context_size),
            frequency: penalty(self.frequency_penalty, self.frequency_context_size),
            dry,
        })
    }

    /// The tokens of each sequence breaker, written alone and after a letter, since tokenizers may differ between the two.
    fn breakers(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let given: Vec<&str> = self.dry_sequence_breaker.iter().map(String::as_str).collect();
        let texts = if given.is_empty() { &BREAKERS } else { &given[..] };
        let mut breakers = Vec::new();
        for text in texts {
            for before in ["", "a"] {
                // Without the special tokens that a tokenizer puts around a whole text.
                let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
                let start = tokenizer.encode_with(before, options)?;
                let all = tokenizer.encode_with(&format!("{before}{text}"), options)?;
                let same = start.iter().zip(&all).take_while(|(a, b)| a == b).count();
                let tokens = all[same..].to_vec();
                if !tokens.is_empty() && !breakers.contains(&tokens) {
                    breakers.push(tokens);
                }
            }
        }
        Ok(breakers)
    }
}

fn parse_bias(text: &str) -> Result<(u32, f64), String> {
    let parse = || {
        let (id, value) = text.split_once(':')?;
        Some((id.trim().parse().ok()?, value.trim().parse().ok()?))
    };
    parse().ok_or_else(|| "a token id, a colon and a number are needed, such as 17:-2.5".to_owned())
}
