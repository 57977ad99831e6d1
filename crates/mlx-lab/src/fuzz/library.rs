//! Uses the files of a case through the libraries: loading, generating, saving, converting.

use std::error::Error;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx_models::generate::{
    Batch, DraftModel, PerplexityOptions, PromptLookup, Session, Speculation, generate, generate_speculative,
    perplexity,
};
use mlx_models::tokenizer::{
    Around, ChatEnd, ChatOptions, ChatTemplate, EncodeOptions, Message, StopStrings, Tokenizer,
    TokenizerError, Written,
};
use mlx_models::{
    CacheOptions, CausalLm, CheckpointError, FuseOptions, LoadError, LoadOptions, Logits, LongRopeMode, text,
};
use mlx_rs::{Array, Dtype};
use mlx_sys::cpu_kernels;

use super::folder::{self, Folder};
use super::kind::{Kind, Verdict};
use super::random::Random;
use super::tensors::TensorFile;
use super::values::{any_size, interesting_text, prompt};
use super::{options, template};

/// Is told each step before it runs, so that for a case that never ends, the last step is known.
pub(super) type Tell<'t> = &'t mut dyn FnMut(&str);

/// The reason why a case ends early.
enum Stop {
    /// An error of the library, which is a valid outcome.
    Refused(String),
    /// A result that is wrong.
    Fault(String),
}

impl<E: Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let _ = write!(message, ": {error}");
            source = error.source();
        }
        Self::Refused(message)
    }
}

type Outcome = Result<(), Stop>;

fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Accepted,
        Err(Stop::Refused(message)) => Verdict::Refused(message),
        Err(Stop::Fault(fault)) => Verdict::Fault(fault),
    }
}

/// Encodes and decodes texts, and renders conversations.
pub(super) fn text(folder: &Folder, random: &mut Random, tell: Tell) -> Verdict {
    verdict(use_tokenizer(folder, random, tell))
}

fn use_tokenizer(folder: &Folder, random: &mut Random, tell: Tell) -> Outcome {
    tell("read the tokenizer");
    let mut tokenizer = Tokenizer::from_folder(&folder.model)?;
    for _ in 0..3 {
        let text = prompt(random);
        let options = EncodeOptions {
            around: random.one(&[Around::SpecialTokens, Around::Nothing]),
            written: random.one(&[Written::SpecialTokens, Written::Text]),
        };
        tell("encode");
        let tokens = tokenizer.encode_with(&text, options)?;
        tell("decode");
        tokenizer.decode(&tokens[..tokens.len().min(500)])?;
    }
    let ids: Vec<u32> = (0..20)
        .map(|_| if random.once_in(8) { random.next() as u32 } else { random.below(1030) as u32 })
        .collect();
    tokenizer.decode(&ids)?;
    tell("find stop strings");
    let mut stop = StopStrings::new(["e", "<|endoftext|>"])?;
    let mut stream = tokenizer.stream();
    for id in ids {
        stop.push(&stream.push(id)?);
    }
    stop.push(&stream.finish()?);
    tell("compare tokenizers");
    let demo = workspace::root().join("crates/mlx-models-cli/demo").join(folder::DEMOS[1]);
    let _ = Tokenizer::from_folder(demo)?.shared_tokens(&tokenizer);
    let _ = tokenizer.add_stop_token(&interesting_text(random));
    // Rendering takes little time compared with reading a tokenizer.
    for _ in 0..8 {
        let text = template::template(random);
        tell("render a template");
        let options = ChatOptions { template: ChatTemplate::Text(text), ..ChatOptions::default() };
        match tokenizer.chat_text(&[Message::user("a"), Message::assistant("b")], &options) {
            Err(error) if error.to_string().len() > 10_000 => return Err(error.into()),
            _ => {}
        }
    }
    chat(&tokenizer, random, tell)
}

/// Renders a conversation. A model without a template does not count as an error.
fn chat(tokenizer: &Tokenizer, random: &mut Random, tell: Tell) -> Outcome {
    let messages: Vec<Message> = (0..=random.below(4))
        .map(|turn| Message::new(if turn % 2 == 0 { "user" } else { "assistant" }, &interesting_text(random)))
        .collect();
    let template = match random.below(16) {
        0 => ChatTemplate::Named(interesting_text(random)),
        1 => ChatTemplate::Named("tool_use".to_owned()),
        _ => ChatTemplate::Default,
    };
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"a": [1, null, 1.5]}}}"#;
    let tools = random.once_in(4).then(|| tool.parse().ok().into_iter().collect());
    let end = random.one(&[ChatEnd::Answer, ChatEnd::Nothing, ChatEnd::Continue]);
    tell("render the chat template");
    match tokenizer.chat(&messages, &ChatOptions { end, tools, template, ..ChatOptions::default() }) {
        Err(TokenizerError::NoChatTemplate) => Ok(()),
        answer => {
            answer?;
            Ok(())
        }
    }
}

/// Loads the model of a folder and uses it in one of several ways.
pub(super) fn model(
    folder: &Folder,
    kind: Kind,
    random: &mut Random,
    tell: Tell,
    outputs: &mut Vec<PathBuf>,
) -> Verdict {
    verdict(use_model(folder, kind, random, tell, outputs))
}

fn use_model(
    folder: &Folder,
    kind: Kind,
    random: &mut Random,
    tell: Tell,
    outputs: &mut Vec<PathBuf>,
) -> Outcome {
    tell("read the tokenizer");
    let tokenizer = Tokenizer::from_folder(&folder.model)?;
    let options = LoadOptions {
        lazy: random.once_in(4),
        long_rope: random.one(&[LongRopeMode::ByLength, LongRopeMode::MlxLm]),
        adapters: folder.adapters.clone(),
    };
    tell("load");
    let mut model = load(folder, &options, random, tell, outputs)?;
    let model = &mut *model;
    tell("encode");
    let prompt = tokens(&tokenizer, model, random)?;
    if random.once_in(2) {
        chat(&tokenizer, random, tell)?;
    }
    let is_single = |parameter: &Array| matches!(parameter.dtype(), Dtype::Float32 | Dtype::Uint32);
    if model.parameters().flatten().values().all(|parameter| is_single(parameter))
        && !prompt.is_empty()
        && random.once_in(2)
    {
        agree(model, &prompt, random, tell)?;
    }
    let extreme = kind == Kind::Options;
    match if extreme { random.below(7) } else { random.below(14) } {
        0 => perplexities(model, &prompt, random, tell),
        1 => convert(folder, random, tell, outputs),
        2 => batch(model, &prompt, extreme, random, tell),
        3 => drafts(model, &tokenizer, &prompt, extreme, random, tell),
        4 => save(model, &prompt, folder, random, tell, outputs),
        _ => answer(model, &tokenizer, &prompt, extreme, random, tell),
    }
}

/// Loads a model. If a config asks for tensors of other shapes, they are made, so that the code after the shape
/// check is tested too.
fn load(
    folder: &Folder,
    options: &LoadOptions,
    random: &mut Random,
    tell: Tell,
    outputs: &mut Vec<PathBuf>,
) -> Result<Box<dyn CausalLm>, Stop> {
    for _ in 0..3 {
        let problems = match mlx_models::load_with(&folder.model, options) {
            Err(LoadError::Checkpoint(CheckpointError::Tensors { problems, .. })) => problems,
            answer => return Ok(answer?),
        };
        use mlx_models::TensorProblem as Problem;
        let (mut wanted, mut left_over) = (Vec::new(), Vec::new());
        for problem in problems {
            match problem {
                Problem::Missing { key, shape } | Problem::Shape { key, expected: shape, .. } => {
                    wanted.push((key, shape))
                }
                problem => left_over.push(problem.key().to_owned()),
            }
        }
        tell("make the missing tensors");
        let single = folder.model.join("model.safetensors");
        if !single.is_file() || !folder.give(&wanted, &left_over, random).unwrap_or(false) {
            break;
        }
        outputs.push(single);
        tell("load again");
    }
    Ok(mlx_models::load_with(&folder.model, options)?)
}

/// The tokens of a prompt, limited to the model's vocabulary.
fn tokens(tokenizer: &Tokenizer, model: &dyn CausalLm, random: &mut Random) -> Result<Vec<u32>, Stop> {
    let mut tokens = tokenizer.encode(&prompt(random))?;
    tokens.truncate(600);
    let vocab_size = model.info().vocab_size.max(1) as u32;
    if !random.once_in(20) {
        tokens.iter_mut().for_each(|id| *id %= vocab_size);
    }
    if tokens.is_empty() && !random.once_in(4) {
        tokens.push(0);
    }
    Ok(tokens)
}

/// Continues a prompt by a few tokens, whose log-probabilities must be numbers.
fn answer(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    extreme: bool,
    random: &mut Random,
    tell: Tell,
) -> Outcome {
    let mut cache_options = options::cache(extreme, random);
    if !extreme && model.new_cache(&cache_options).is_err() {
        cache_options = CacheOptions::default();
    }
    tell(&format!("generate after {} tokens with {cache_options:?}", prompt.len()));
    let mut session = Session::new(model.new_cache(&cache_options)?);
    let mut options = options::generate(extreme, tokenizer.stop_tokens(), random);
    options.penalties = options::penalties(extreme, random);
    tell(&format!("generate with {options:?}"));
    let vocab_size = model.info().vocab_size;
    let stop: Vec<String> = if extreme { vec![interesting_text(random)] } else { Vec::new() };
    let stream = generate(model, &mut session, prompt, options)?;
    for piece in text::with_text(stream, tokenizer).stop_at(stop)?.take(4) {
        if let Some(token) = piece?.token {
            check_token(token.id, token.logprob, vocab_size)?;
        }
    }
    Ok(())
}

fn check_token(id: u32, logprob: f32, vocab_size: i32) -> Outcome {
    if i64::from(id) >= i64::from(vocab_size) || logprob.is_nan() {
        return Err(Stop::Fault(format!("token {id} of {vocab_size} with log-probability {logprob}")));
    }
    Ok(())
}

/// Checks that the logits of a prompt are the same when it is read in pieces, and with the kernels and stock
/// MLX, up to the rounding of float32. Half precision is not checked: its rounding errors can grow from layer
/// to layer until the logits are unrelated.
fn agree(model: &mut dyn CausalLm, prompt: &[u32], random: &mut Random, tell: Tell) -> Outcome {
    let prompt = &prompt[..prompt.len().min(model.info().context_length.max(1) as usize).min(100)];
    let tokens = Array::from_slice(prompt, &[1, prompt.len() as i32]);
    let kernels = cpu_kernels::is_enabled();
    let mut read = |piece: usize, kernels: bool| -> Result<Vec<f32>, Stop> {
        cpu_kernels::set_enabled(kernels);
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        let logits = session.read_in_chunks(model, &tokens, Logits::All, piece)?.as_dtype(Dtype::Float32)?;
        Ok(logits
            .reshape(&[-1])?
            .contiguous()?
            .try_as_slice::<f32>()
            .map_err(|e| Stop::Fault(e.to_string()))?
            .to_vec())
    };
    let piece = 1 + random.below(20);
    tell(&format!(
        "compare the logits of {} tokens with those in pieces of {piece}, and by other kernels",
        prompt.len()
    ));
    let whole = read(1000, kernels)?;
    for (what, others) in [("in pieces", read(piece, kernels)?), ("by other kernels", read(1000, !kernels)?)]
    {
        let largest = whole.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let mut differences = whole.iter().zip(&others).map(|(a, b)| (a - b).abs());
        let most = 0.01 * largest + 0.001;
        if whole.iter().all(|logit| logit.is_finite())
            && let Some(difference) = differences.find(|difference| difference.is_nan() || *difference > most)
        {
            return Err(Stop::Fault(format!(
                "logits up to {largest} differ by {difference} {what} ({piece})"
            )));
        }
    }
    cpu_kernels::set_enabled(kernels);
    Ok(())
}

fn perplexities(model: &mut dyn CausalLm, text: &[u32], random: &mut Random, tell: Tell) -> Outcome {
    let options = PerplexityOptions {
        piece: any_size(random),
        begin: random.once_in(2).then_some(0),
        context: any_size(random),
        with_rest: random.once_in(2),
    };
    tell(&format!("perplexity of {} tokens with {options:?}", text.len()));
    let answer = perplexity(model, text, options, |_, _| ControlFlow::Continue(()))?;
    if answer.mean_nll.is_nan() {
        return Err(Stop::Fault(format!("a perplexity that is not a number: {answer:?}")));
    }
    Ok(())
}

fn convert(folder: &Folder, random: &mut Random, tell: Tell, outputs: &mut Vec<PathBuf>) -> Outcome {
    let options = options::convert(random);
    // If the destination already exists, nothing must be written.
    let out = match random.below(4) {
        0 => folder.model.clone(),
        1 => {
            let place = folder.root.join("special");
            folder::put_in_place(&place, random)?;
            place
        }
        _ => folder.root.join("out"),
    };
    let was_special = folder::is_special(&out) || out.is_file();
    if out != folder.model {
        outputs.push(out.clone());
    }
    tell(&format!("convert to {} with {options:?}", out.display()));
    let go_on = |_: mlx_models::Progress<'_>| ControlFlow::Continue(());
    let adapters = folder.adapters.as_deref();
    match adapters {
        Some(adapters) if random.once_in(2) => {
            mlx_models::fuse(&folder.model, adapters, &out, &FuseOptions { dequantize: random.once_in(2) })?;
        }
        _ => drop(mlx_models::convert(&folder.model, adapters, &out, &options, go_on)?),
    }
    if was_special && !out.is_dir() {
        return Err(Stop::Fault(format!("{} was replaced", out.display())));
    }
    tell("load the converted model");
    mlx_models::load(&out).map_err(|e| Stop::Fault(format!("the converted model does not load: {e}")))?;
    Ok(())
}

fn batch(
    model: &mut dyn CausalLm,
    prompt: &[u32],
    extreme: bool,
    random: &mut Random,
    tell: Tell,
) -> Outcome {
    let cache_options = options::cache(extreme, random);
    tell(&format!("a batch with {cache_options:?}"));
    let mut batch = Batch::new(cache_options);
    for _ in 0..=random.below(3) {
        let mut options = options::generate(extreme, &[], random);
        options.max_tokens = options.max_tokens.min(4);
        let prompt = &prompt[random.below(prompt.len())..];
        tell(&format!("add {} tokens with {options:?}", prompt.len()));
        batch.add(model, prompt, options)?;
    }
    let vocab_size = model.info().vocab_size;
    while !batch.is_empty() {
        for answer in batch.step(model)? {
            if let Some(token) = answer.token {
                check_token(token.id, token.logprob, vocab_size)?;
            }
        }
    }
    Ok(())
}

/// Speculative decoding, with prompt lookup or a draft model.
fn drafts(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    extreme: bool,
    random: &mut Random,
    tell: Tell,
) -> Outcome {
    let most = any_size(random);
    let options = options::generate(extreme, tokenizer.stop_tokens(), random);
    let cache_options = CacheOptions { rewind: random.below(5) as i32, ..options::cache(false, random) };
    tell(&format!("draft {most} tokens with {options:?}, {cache_options:?}"));
    let mut session = Session::new(model.new_cache(&cache_options)?);
    let mut lookup = PromptLookup { longest: any_size(random), shortest: any_size(random) };
    let demo = workspace::root().join("crates/mlx-models-cli/demo").join(random.one(&folder::DEMOS));
    let mut small;
    let mut draft;
    let draft: &mut dyn mlx_models::generate::Draft = if random.once_in(2) {
        &mut lookup
    } else {
        small = mlx_models::load(demo)?;
        let session = Session::new(small.new_cache(&cache_options)?);
        draft = DraftModel::new(&mut *small, &options)?.with_session(session);
        &mut draft
    };
    let vocab_size = model.info().vocab_size;
    // Each round drafts this many tokens.
    let count = if most > 64 { 1 } else { 5 };
    for token in
        generate_speculative(model, &mut session, prompt, options, Speculation { draft, most })?.take(count)
    {
        let token = token?;
        check_token(token.id, token.logprob, vocab_size)?;
    }
    Ok(())
}

/// Saves a session to a path that may already exist.
fn save(
    model: &mut dyn CausalLm,
    prompt: &[u32],
    folder: &Folder,
    random: &mut Random,
    tell: Tell,
    outputs: &mut Vec<PathBuf>,
) -> Outcome {
    let mut session = Session::new(model.new_cache(&options::cache(false, random))?);
    session.read_all(model, prompt, 512, |_, _| ControlFlow::Continue(()))?;
    let special = folder.root.join("special");
    let file = match random.below(3) {
        // Weights and configs are not caches, and must stay.
        0 => folder.model.join(random.one(&["model.safetensors", "config.json", "tokenizer.json"])),
        1 => {
            folder::put_in_place(&special, random)?;
            special
        }
        _ => special,
    };
    let was_special = folder::is_special(&file);
    if !file.starts_with(&folder.model) || !file.exists() {
        outputs.push(file.clone());
    }
    tell(&format!("save {} tokens to {}", prompt.len(), file.display()));
    session.save(model, &file)?;
    if was_special {
        return Err(Stop::Fault(format!("{} was replaced or written through", file.display())));
    }
    tell("load the saved session");
    Session::load(model, &file, &CacheOptions::default())?;
    Ok(())
}

/// Saves a session, changes the file, and continues from it.
pub(super) fn prompt_cache(
    folder: &Folder,
    random: &mut Random,
    tell: Tell,
    outputs: &mut Vec<PathBuf>,
) -> Verdict {
    verdict(use_prompt_cache(folder, random, tell, outputs))
}

fn use_prompt_cache(folder: &Folder, random: &mut Random, tell: Tell, outputs: &mut Vec<PathBuf>) -> Outcome {
    tell("load");
    let mut model = mlx_models::load(&folder.model)?;
    let model = &mut *model;
    let file = folder.root.join("cache.safetensors");
    outputs.push(file.clone());
    // The file may come from another model.
    let mut other;
    let maker: &mut dyn CausalLm = if random.once_in(12) {
        other = mlx_models::load(
            workspace::root().join("crates/mlx-models-cli/demo").join(random.one(&folder::DEMOS)),
        )?;
        &mut *other
    } else {
        model
    };
    let vocab_size = maker.info().vocab_size.max(1) as usize;
    let prompt: Vec<u32> = (0..1 + random.below(80)).map(|_| random.below(vocab_size) as u32).collect();
    let mut cache_options = options::cache(false, random);
    if maker.new_cache(&cache_options).is_err() {
        cache_options.quantization = None;
    }
    tell(&format!("save {} tokens with {cache_options:?}", prompt.len()));
    let mut session = Session::new(maker.new_cache(&cache_options)?);
    session.read_all(maker, &prompt, 512, |_, _| ControlFlow::Continue(()))?;
    session.save(maker, &file)?;
    if random.once_in(3) {
        // mlx-lm's files do not contain the origin or a checksum.
        let mut tensors = TensorFile::read(&file)?;
        tensors.metadata.retain(|key, _| !key.starts_with("0.mlx_models"));
        tensors.write(&file)?;
    }
    for _ in 0..=random.below(2) {
        folder::mutate_tensors(&file, random)?;
    }
    let cache_options = if random.once_in(2) { cache_options } else { options::cache(false, random) };
    tell(&format!("read the file with {cache_options:?}"));
    let mut session = Session::load(model, &file, &cache_options)?;
    let before = session.offset();
    let options = options::generate(false, &[], random);
    tell(&format!("generate after {before} tokens with {options:?}"));
    let vocab_size = model.info().vocab_size;
    for token in generate(model, &mut session, &[1, 0], options)?.take(4) {
        let token = token?;
        check_token(token.id, token.logprob, vocab_size)?;
    }
    if random.once_in(2) {
        tell("rewind");
        session.trim(random.below(100) as i32)?;
        generate(model, &mut session, &[1], options::generate(false, &[], random))?.next().transpose()?;
    }
    Ok(())
}
