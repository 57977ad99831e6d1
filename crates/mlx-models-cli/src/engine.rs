//! A loaded model that answers prompts, one after the other, for every subcommand that generates.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use mlx_models::generate::{
    Draft, DraftModel, FinishReason, GenerateError, GenerateOptions, KvQuantization, Overflow, PREFILL_CHUNK,
    PromptLookup, Sampler, Session, Speculation, Token, Tokens, generate_speculative, generate_with_progress,
};
use mlx_models::text::{TextFinish, TextPiece, with_text};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{
    CacheError, CacheOptions, CausalLm, Checkpoint, Limit, LoadError, LoadOptions, LongRopeMode, Quantization,
};
use serde::Serialize;

use crate::demo::Source;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, Unit};
use crate::sampling::SamplingArguments;
use crate::style::{Style, say};

/// First tokens that a limited cache keeps, as in mlx-lm.
const SINKS: i32 = 4;

/// Which model.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ModelArguments {
    /// Checkpoint folder, demo:NAME, or hub id (owner/name); without it, a small demo model that tells stories
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<Source>,
    /// Folder of adapters for it (LoRA, DoRA), as mlx-lm or PEFT writes them
    #[arg(long, alias = "adapter-path", value_name = "DIR")]
    pub(crate) adapters: Option<PathBuf>,
    /// Choose LongRoPE's factors (Phi-3) by the length of the text, as the paper does, or always take the long ones, as
    /// mlx-lm does
    #[arg(long, value_name = "RULE", default_value = "by-length")]
    pub(crate) longrope: LongRope,
}

/// Which of its factors LongRoPE uses when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LongRope {
    #[default]
    ByLength,
    MlxLm,
}

impl From<LongRope> for LongRopeMode {
    fn from(rule: LongRope) -> Self {
        match rule {
            LongRope::ByLength => Self::ByLength,
            LongRope::MlxLm => Self::MlxLm,
        }
    }
}

/// A model and its tokenizer.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) time: Duration,
}

impl ModelArguments {
    pub(crate) fn load(self) -> Result<Loaded, Failure> {
        let (folder, options) = self.resolved()?;
        let started = Instant::now();
        // What is no model is said first, and what is wrong with the tokenizer before gigabytes are read.
        let checkpoint = Checkpoint::open(&folder).map_err(LoadError::from)?;
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let model = mlx_models::load_checkpoint(&checkpoint, &options)?;
        Ok(Loaded { model, tokenizer, time: started.elapsed() })
    }

    /// The model without its tokenizer.
    pub(crate) fn load_model(self) -> Result<Box<dyn CausalLm>, Failure> {
        let (folder, options) = self.resolved()?;
        Ok(mlx_models::load_with(folder, &options)?)
    }

    fn resolved(self) -> Result<(PathBuf, LoadOptions), Failure> {
        let Self { model, adapters, longrope } = self;
        let options = LoadOptions { adapters, long_rope: longrope.into(), ..LoadOptions::default() };
        Ok((model.unwrap_or_default().folder()?, options))
    }
}

/// More than this would never all be right, and each takes a place in every rotating cache.
const MOST_DRAFT_TOKENS: i64 = 256;

/// How an answer is decoded.
#[derive(clap::Args)]
#[command(next_help_heading = "Length and end of the text")]
pub(crate) struct DecodingArguments {
    /// Stop after this many tokens
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Let the model end the text only after this many tokens; --stop and --max-tokens still end it
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// End the text before this text or special token; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// End the text at this token, named by its text or its id, as well as at the model's own; may be given several times
    #[arg(long, value_name = "TOKEN", num_args = 1..)]
    extra_eos_token: Vec<String>,
    /// Go on where the model ends the text
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) cache: CacheArguments,
    /// Let a smaller model with the same tokens propose several tokens at a time
    #[arg(long, value_name = "DIR", help_heading = "Speculative decoding", conflicts_with = "prompt_lookup")]
    draft_model: Option<Source>,
    /// Propose that the text goes on as it did before
    #[arg(long, help_heading = "Speculative decoding")]
    prompt_lookup: bool,
    /// Propose up to this many tokens at a time; 0 proposes none
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Speculative decoding",
          value_parser = clap::value_parser!(u16).range(..=MOST_DRAFT_TOKENS))]
    num_draft_tokens: u16,
}

/// What is kept of the tokens that were read.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cache")]
pub(crate) struct CacheArguments {
    /// Keep at most so many tokens in layers without a window: the first 4, and the newest ones
    #[arg(long, value_name = "N")]
    max_kv_size: Option<i32>,
    /// Go on where the model's context ends, with --max-kv-size tokens or as many as the context has
    #[arg(long)]
    slide: bool,
    /// Keep keys and values in so many bits
    #[arg(long, value_name = "BITS")]
    kv_bits: Option<i32>,
    /// Let this many numbers share a scale, with --kv-bits [default: 64, or 32 where the model's heads need it]
    #[arg(long, value_name = "N")]
    kv_group_size: Option<i32>,
    /// Begin with --kv-bits at this length
    #[arg(long, value_name = "N", default_value_t = 5000)]
    quantized_kv_start: i32,
    /// Tokens of the prompt that are read in one call
    #[arg(long, value_name = "N", default_value_t = PREFILL_CHUNK)]
    prefill_step_size: usize,
}

impl CacheArguments {
    /// What every cache is made with; `rewind` tokens can be taken back at any time.
    pub(crate) fn options(&self, model: &dyn CausalLm, rewind: usize) -> CacheOptions {
        let context = model.info().context_length;
        let max_size = self.max_kv_size.or(self.slide.then_some(context));
        let limit =
            max_size.map(|max_size| Limit { max_size, keep: SINKS.min(max_size.saturating_sub(1)).max(0) });
        CacheOptions { limit, rewind: i32::try_from(rewind).unwrap_or(i32::MAX), ..CacheOptions::default() }
    }

    /// Makes the session's cache few bits when that is due.
    pub(crate) fn quantize(&self, model: &dyn CausalLm, session: &mut Session) -> Result<(), Failure> {
        if let Some(bits) = self.kv_bits {
            let group_size = self.kv_group_size(model);
            let quantization = Quantization::affine(bits, group_size).map_err(|e| {
                Failure::Arguments(format!("--kv-bits {bits} --kv-group-size {group_size}: {e}"))
            })?;
            let from = self.quantized_kv_start;
            session.quantize_from(model, KvQuantization { quantization, from }).map_err(|e| match e {
                CacheError::Groups { .. } => {
                    let fits = largest_kv_group(model).map_or_else(
                        || "no group size fits this model; leave --kv-bits out".to_owned(),
                        |fits| format!("--kv-group-size {fits} fits"),
                    );
                    Failure::Arguments(format!("--kv-bits {bits}: {e}; {fits}"))
                }
                e => e.into(),
            })?;
        }
        Ok(())
    }

    /// The group size that was asked for, or the largest up to mlx-lm's that fits the model's heads.
    fn kv_group_size(&self, model: &dyn CausalLm) -> i32 {
        self.kv_group_size.or_else(|| largest_kv_group(model)).unwrap_or(KV_GROUP_SIZE)
    }

    /// Says where the default of --kv-group-size is not the usual one.
    pub(crate) fn say_kv_group_size(&self, model: &dyn CausalLm) {
        let found = self.kv_group_size(model);
        if self.kv_bits.is_some() && self.kv_group_size.is_none() && found != KV_GROUP_SIZE {
            say(&format!(
                "note: --kv-group-size {found}, since groups of {KV_GROUP_SIZE} do not fit this model's heads"
            ));
        }
    }

    pub(crate) fn prefill_step_size(&self) -> usize {
        self.prefill_step_size
    }
}

/// mlx-lm's default of --kv-group-size.
const KV_GROUP_SIZE: i32 = 64;

/// The largest group size up to the default that the heads of all layers can be cut into.
fn largest_kv_group(model: &dyn CausalLm) -> Option<i32> {
    let fits = |size: &i32| {
        model.info().layers.iter().all(|layer| layer.key_dim % size == 0 && layer.value_dim % size == 0)
    };
    [KV_GROUP_SIZE, 32].into_iter().find(fits)
}

/// A model with a session that goes on from answer to answer.
pub(crate) struct Engine {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) session: Session,
    pub(crate) options: GenerateOptions,
    cache: CacheArguments,
    cache_options: CacheOptions,
    stop: Vec<String>,
    /// A model that proposes tokens, what it has read, and the tokens that it must not propose.
    draft: Option<Box<dyn CausalLm>>,
    draft_session: Option<Session>,
    never_proposed: Vec<u32>,
    prompt_lookup: bool,
    guesses: usize,
}

/// What came of a prompt.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    logprobs: Vec<f32>,
    /// Ids and log-probabilities, for each token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<Vec<(u32, f32)>>,
    pub(crate) finish_reason: &'static str,
    /// The stop string that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_string: Option<String>,
    prompt_tokens: usize,
    generation_tokens: usize,
    /// Tokens that were guessed rightly, in speculative decoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    guessed_tokens: Option<usize>,
    pub(crate) load_seconds: f64,
    prompt_tokens_per_second: f64,
    generation_tokens_per_second: f64,
    peak_memory_bytes: usize,
}

impl Engine {
    /// `rewind` tokens can be taken back at any time, those of wrong guesses not counted.
    pub(crate) fn new(loaded: Loaded, arguments: DecodingArguments, rewind: usize) -> Result<Self, Failure> {
        let Loaded { model, mut tokenizer, .. } = loaded;
        for token in &arguments.extra_eos_token {
            tokenizer.add_stop_token(token)?;
        }
        let guesses = usize::from(arguments.num_draft_tokens);
        let draft = arguments.draft_model.filter(|_| guesses > 0);
        let (draft, never_proposed) = match draft {
            Some(draft) => {
                let draft = ModelArguments { model: Some(draft), ..ModelArguments::default() };
                let (folder, options) = draft.resolved()?;
                // The tokens first: a draft with others is refused before its weights are read.
                let shared = tokenizer.shared_tokens(&Tokenizer::from_folder(&folder)?).map_err(|e| {
                    Failure::Arguments(format!("the draft model has other tokens than the model: {e}"))
                })?;
                (Some(mlx_models::load_with(folder, &options)?), shared.theirs_only().to_vec())
            }
            None => (None, Vec::new()),
        };
        let prompt_lookup = arguments.prompt_lookup && guesses > 0;
        let guessed = if draft.is_some() || prompt_lookup { guesses } else { 0 };
        let cache_options = arguments.cache.options(&*model, rewind + guessed);
        let options = GenerateOptions {
            max_tokens: arguments.max_tokens,
            min_tokens: arguments.min_tokens,
            stop_tokens: if arguments.ignore_eos { Vec::new() } else { tokenizer.stop_tokens().to_vec() },
            penalties: arguments.sampling.penalties(&tokenizer)?,
            sampling: arguments.sampling.sampling(&tokenizer)?,
            prefill_chunk: arguments.cache.prefill_step_size(),
            overflow: if arguments.cache.slide { Overflow::Slide } else { Overflow::Stop },
            ..GenerateOptions::default()
        };
        let session = Session::new(model.new_cache(&cache_options)?);
        let (cache, stop) = (arguments.cache, arguments.stop);
        let mut engine = Self {
            model,
            tokenizer,
            session,
            options,
            cache,
            cache_options,
            stop,
            draft,
            draft_session: None,
            never_proposed,
            prompt_lookup,
            guesses,
        };
        engine.cache.quantize(&*engine.model, &mut engine.session)?;
        engine.cache.say_kv_group_size(&*engine.model);
        Ok(engine)
    }

    /// What a conversation may change, and its values.
    pub(crate) fn settings(&self) -> String {
        let sampling = &self.options.sampling;
        format!(
            "temp        {}\ntop-p       {}\nmin-p       {}\ntop-k       {}\nseed        {}\nmax-tokens  {}",
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.top_k,
            sampling.seed,
            self.options.max_tokens
        )
    }

    /// Changes one of the [`settings`](Self::settings); says what is wrong with it, if anything is.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
            value.parse().map_err(|_| format!("/set {name} {value}: a number is needed"))
        }
        let mut options = self.options.clone();
        match name {
            "temp" => options.sampling.temperature = number(name, value)?,
            "top-p" => options.sampling.top_p = number(name, value)?,
            "min-p" => options.sampling.min_p = number(name, value)?,
            "top-k" => options.sampling.top_k = number(name, value)?,
            "seed" => options.sampling.seed = number(name, value)?,
            "max-tokens" => options.max_tokens = number(name, value)?,
            _ => return Err(format!("there is no setting {name:?}; /settings shows them")),
        }
        Sampler::new(options.sampling.clone()).map_err(|e| format!("/set {name} {value}: {e}"))?;
        self.options = options;
        Ok(())
    }

    /// Begins anew, with nothing read.
    pub(crate) fn reset(&mut self) -> Result<(), Failure> {
        self.session = Session::new(self.model.new_cache(&self.cache_options)?);
        self.cache.quantize(&*self.model, &mut self.session)
    }

    /// Goes on from a session in a file.
    pub(crate) fn load_session(&mut self, file: &Path) -> Result<(), Failure> {
        self.session = Session::load(&*self.model, file, &self.cache_options)?;
        self.cache.quantize(&*self.model, &mut self.session)
    }

    /// Reads a prompt behind what the session has, and answers it; `emit` gets the text as it comes.
    pub(crate) fn answer(
        &mut self,
        prompt: &[u32],
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, Failure> {
        let mut answer = Answer { finish_reason: "interrupted", ..Answer::default() };
        let Self { model, tokenizer, session, options, cache_options, stop, guesses, .. } = self;
        let Self { draft, draft_session, never_proposed, prompt_lookup, .. } = self;
        let started = Instant::now();
        let mut bar = Progress::new(Unit::Count).worth_lines_above(options.prefill_chunk);
        let progress = |read: usize, total: usize| {
            bar.set(read as u64, total as u64, "tokens of the prompt");
            answer.prompt_tokens = read;
            if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut looks_up = PromptLookup::default();
        let mut draft_model = match draft {
            Some(model) => {
                let rewind = cache_options.rewind;
                let empty = || model.new_cache(&CacheOptions { rewind, ..CacheOptions::default() });
                let session = draft_session.take().map_or_else(|| empty().map(Session::new), Ok)?;
                let draft = DraftModel::new(&mut **model, session, options)?;
                Some(draft.never_proposing(never_proposed.clone()))
            }
            None => None,
        };
        let draft: Option<&mut dyn Draft> = match &mut draft_model {
            Some(draft) => Some(draft),
            None if *prompt_lookup => Some(&mut looks_up),
            None => None,
        };
        let counts_guesses = draft.is_some();
        let stream: Result<Box<dyn Tokens + '_>, GenerateError> = match draft {
            Some(draft) => {
                let speculation = Speculation { draft, most: *guesses };
                generate_speculative(&mut **model, session, prompt, options.clone(), speculation, progress)
                    .map(|stream| Box::new(stream) as Box<dyn Tokens>)
            }
            None => generate_with_progress(&mut **model, session, prompt, options.clone(), progress)
                .map(|stream| Box::new(stream) as Box<dyn Tokens>),
        };
        bar.clear();
        let Some(stream) = unless_cancelled(stream)? else { return Ok(answer) };
        answer.prompt_tokens_per_second = answer.prompt_tokens as f64 / started.elapsed().as_secs_f64();

        let started = Instant::now();
        let mut text = with_text(stream, tokenizer, stop.iter().cloned())?;
        let mut guessed = 0;
        while !interrupt::requested()
            && let Some(piece) = text.next()
        {
            let TextPiece { text: piece, token } = piece?;
            if let Some(Token { id, logprob, alternatives, guessed: was_guessed }) = token {
                answer.tokens.push(id);
                answer.logprobs.push(logprob);
                guessed += usize::from(was_guessed);
                if !alternatives.is_empty() {
                    // JSON has no number for the logarithm of nothing.
                    let possible = alternatives.into_iter().filter(|(_, logprob)| logprob.is_finite());
                    answer.alternatives.push(possible.collect());
                }
            }
            if !piece.is_empty() {
                emit(&piece)?;
            }
            answer.text += &piece;
        }
        match text.finish_reason() {
            Some(TextFinish::Tokens(reason)) => answer.finish_reason = name(*reason),
            Some(TextFinish::StopString(string)) => {
                answer.finish_reason = "stop_string";
                answer.stop_string = Some(string.clone());
            }
            _ => {}
        }
        drop(text);
        *draft_session = draft_model.map(DraftModel::into_session);
        answer.guessed_tokens = counts_guesses.then_some(guessed);
        answer.generation_tokens = answer.tokens.len();
        answer.generation_tokens_per_second = answer.tokens.len() as f64 / started.elapsed().as_secs_f64();
        answer.peak_memory_bytes = mlx_rs::memory::peak_memory()?;
        Ok(answer)
    }
}

/// None where Ctrl-C stopped it.
pub(crate) fn unless_cancelled<T>(result: Result<T, GenerateError>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(GenerateError::Cancelled) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::StopToken => "stop_token",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::ContextFull => "context_full",
        FinishReason::Cancelled => "interrupted",
        _ => "other",
    }
}

impl Answer {
    /// The figures, for a person, on standard error.
    pub(crate) fn summarize(&self) {
        let guesses = match self.guessed_tokens {
            Some(guessed) => format!(", {guessed} of them guessed"),
            None => String::new(),
        };
        let text = format!(
            "prompt: {} tokens, {:.1} tokens/s\ngeneration: {} tokens, {:.1} tokens/s ({}{guesses})\n\
             peak memory: {:.1} MB",
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.generation_tokens,
            self.generation_tokens_per_second,
            self.finish_reason,
            self.peak_memory_bytes as f64 / 1e6,
        );
        // Nothing is left to do for a closed standard error.
        let _ = writeln!(io::stderr(), "{}", Style::Aside.for_stderr(&text));
    }
}
