//! A loaded model that answers prompts, one after the other, for every subcommand that generates.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use mlx_models::generate::{
    GenerateError, GenerateOptions, Sampler, Session, Speculation, Tokens,
    generate_speculative_with_progress, generate_with_progress,
};
use mlx_models::text::{TextPiece, with_text};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};

use crate::answer::Answer;
use crate::cache::CacheArguments;
use crate::decoding::DecodingArguments;
use crate::drafting::Drafting;
use crate::failure::Failure;
use crate::interrupt;
use crate::model::Loaded;
use crate::progress::{Progress, Unit};

/// A model with a session that continues from answer to answer.
pub(crate) struct Engine {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) session: Session,
    pub(crate) options: GenerateOptions,
    cache: CacheArguments,
    cache_options: CacheOptions,
    stop: Vec<String>,
    drafting: Drafting,
}

impl Engine {
    /// An engine with an empty session. The last `rewind` tokens can be removed from the session at any time; drafted
    /// tokens that the model does not accept do not count.
    pub(crate) fn new(loaded: Loaded, arguments: DecodingArguments, rewind: usize) -> Result<Self, Failure> {
        let Loaded { model, mut tokenizer, .. } = loaded;
        for token in &arguments.extra_eos_token {
            tokenizer.add_stop_token(token)?;
        }
        let drafting = Drafting::new(&arguments, &tokenizer)?;
        let cache_options = arguments.cache.options(&*model, rewind);
        let options = arguments.options(&tokenizer)?;
        let session = Session::new(model.new_cache(&cache_options)?);
        let DecodingArguments { cache, stop, .. } = arguments;
        let mut engine = Self { model, tokenizer, session, options, cache, cache_options, stop, drafting };
        engine.cache.quantize(&*engine.model, &mut engine.session)?;
        engine.cache.say_kv_group_size(&*engine.model);
        Ok(engine)
    }

    /// The settings that a conversation may change, and their values.
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

    /// Changes one of the [`settings`](Self::settings), or says what is wrong with the value.
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

    /// Starts again with an empty cache.
    pub(crate) fn reset(&mut self) -> Result<(), Failure> {
        self.session = Session::new(self.model.new_cache(&self.cache_options)?);
        self.cache.quantize(&*self.model, &mut self.session)
    }

    /// Continues from the session in a file.
    pub(crate) fn load_session(&mut self, file: &Path) -> Result<(), Failure> {
        self.session = Session::load(&*self.model, file, &self.cache_options)?;
        self.cache.quantize(&*self.model, &mut self.session)
    }

    /// Reads a prompt after what the session has read, and answers it. `emit` gets each piece of the text at once.
    pub(crate) fn answer(
        &mut self,
        prompt: &[u32],
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, Failure> {
        let Self { model, tokenizer, session, options, cache_options, stop, drafting, .. } = self;
        let mut answer = Answer::new();
        let most = drafting.most;
        let mut drafter = drafting.start(options, cache_options.rewind)?;
        let draft = drafter.draft();
        let is_drafting = draft.is_some();
        let started = Instant::now();
        let mut bar = Progress::new(Unit::Count).worth_lines_above(options.chunk());
        let progress = |read: usize, total: usize| {
            bar.set(read as u64, total as u64, "tokens of the prompt");
            answer.prompt_tokens = read;
            if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stream: Result<Box<dyn Tokens + '_>, GenerateError> = match draft {
            Some(draft) => {
                let speculation = Speculation { draft, most };
                generate_speculative_with_progress(
                    &mut **model,
                    session,
                    prompt,
                    options.clone(),
                    speculation,
                    progress,
                )
                .map(|stream| Box::new(stream) as Box<dyn Tokens>)
            }
            None => generate_with_progress(&mut **model, session, prompt, options.clone(), progress)
                .map(|stream| Box::new(stream) as Box<dyn Tokens>),
        };
        bar.clear();
        let Some(stream) = unless_cancelled(stream)? else { return Ok(answer) };
        answer.prompt_tokens_per_second = answer.prompt_tokens as f64 / started.elapsed().as_secs_f64();
        answer.guessed_tokens = is_drafting.then_some(0);

        let started = Instant::now();
        let mut text = with_text(stream, tokenizer).stop_at(stop.iter().cloned())?;
        while !interrupt::requested()
            && let Some(piece) = text.next()
        {
            let TextPiece { text: piece, token } = piece?;
            answer.push(&piece, token);
            if !piece.is_empty() {
                emit(&piece)?;
            }
        }
        answer.finish(text.finish_reason());
        drop(text);
        let read = drafter.into_session();
        drafting.keep(read);
        answer.measure(started.elapsed())?;
        Ok(answer)
    }
}

/// The result, or `None` if a signal stopped the work.
pub(crate) fn unless_cancelled<T>(result: Result<T, GenerateError>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(GenerateError::Cancelled) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
