//! Options of how tokens are chosen, for every subcommand that generates. The names are mlx-lm's where it has
//! them.

use std::hash::{BuildHasher, RandomState};

use mlx_models::generate::{Dry, Penalties, Penalty, Sampling, Xtc};
use mlx_models::tokenizer::{Around, EncodeOptions, Tokenizer, TokenizerError};

/// How tokens are drawn, and what their logits are changed by before.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArguments {
    /// Temperature: 0 takes the most probable token, 1 draws by the model's own probabilities
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temp: f64,
    /// Keep the fewest tokens that have this probability together; 0 or 1 keeps all
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Keep tokens that are at least so probable, as a part of the most probable one's; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f64,
    /// Keep so many tokens whatever --min-p says
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_tokens_to_keep: usize,
    /// Keep so many tokens, the most probable ones; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// How often to leave out the most probable choices (XTC), from 0 to 1. Line breaks and stop tokens stay
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    xtc_probability: f64,
    /// Tokens above this are the probable choices of which XTC leaves only the last, from 0 to 0.5
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_negative_numbers = true)]
    xtc_threshold: f64,
    /// Draw the same tokens as the last time with this seed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Add this to the logit of a token; may be given several times; -inf makes it impossible
    #[arg(long, value_name = "ID:VALUE", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f64)>,
    /// Divide the logits of tokens that were seen by this (multiply those below 0); 0 or 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// How many of the last tokens --repetition-penalty looks at; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Subtract this from the logits of tokens that were seen
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// How many of the last tokens --presence-penalty looks at; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    presence_context_size: usize,
    /// Subtract this from the logit of a token as often as it was seen
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// How many of the last tokens --frequency-penalty looks at; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    frequency_context_size: usize,
    /// Penalize what would repeat a longer text (DRY): the penalty for a repetition of the allowed length; 0.8
    /// is usual, 0 changes nothing
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    dry_multiplier: f64,
    /// What the penalty of DRY grows by with each further token
    #[arg(long, value_name = "X", default_value_t = 1.75, allow_negative_numbers = true)]
    dry_base: f64,
    /// DRY penalizes what continues a repetition of at least so many tokens
    #[arg(long, value_name = "N", default_value_t = 2)]
    dry_allowed_length: usize,
    /// How many of the last tokens DRY looks at; all without it
    #[arg(long, value_name = "N")]
    dry_penalty_last_n: Option<usize>,
    /// A text that no repetition reaches over for DRY; may be given several times, in place of the defaults: a
    /// line break, a colon, a quotation mark and an asterisk
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new(),
          allow_hyphen_values = true)]
    dry_sequence_breaker: Vec<String>,
}

/// The sequence breakers of the pull request that DRY comes from.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

impl SamplingArguments {
    /// How tokens are drawn. Without a seed, by one that nobody knows.
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

    /// What logits are changed by.
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

    /// The tokens of each sequence breaker, as it is written alone and after a letter.
    fn breakers(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let given: Vec<&str> = self.dry_sequence_breaker.iter().map(String::as_str).collect();
        let texts = if given.is_empty() { &BREAKERS } else { &given[..] };
        let mut breakers = Vec::new();
        for text in texts {
            for before in ["", "a"] {
                // Without what a tokenizer puts around a whole text, such as its end.
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
    parse().ok_or_else(|| "must be a token id, a colon and a number, such as 17:-2.5".to_owned())
}
