//! Stop strings through the hook for processors: a stream, a row of a batch and speculation end at the same token.
#![cfg(all(feature = "lille-130m", feature = "generate", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_models::generate::{
    Batch, Draft, DraftModel, FinishReason, GenerateOptions, LogitsProcessor, PromptLookup, Session,
    Speculation, Tokens, generate, generate_speculative,
};
use mlx_models::text::{StopStringProcessor, TextFinish, with_text};
use mlx_models::tokenizer::{Tokenizer, TokenizerError};
use mlx_models::{CacheOptions, CausalLm};
use mlx_testing::with_cpu;

/// The demo is in bfloat16.
const TIES: &str =
    "where two tokens are equally likely, rounding decides, and a GPU rounds a batch otherwise than a row";

fn demo() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m").to_owned()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(demo()).unwrap()
}

fn options(stop: Option<StopStringProcessor>) -> GenerateOptions {
    let processors = stop.into_iter().map(|stop| Box::new(stop) as Box<dyn LogitsProcessor>).collect();
    GenerateOptions { max_tokens: 40, processors, ..GenerateOptions::new(&[]) }
}

fn session(model: &dyn CausalLm) -> Session {
    Session::new(model.new_cache(&CacheOptions { rewind: 4, ..CacheOptions::default() }).unwrap())
}

type Answer = (Vec<u32>, Option<FinishReason>);

fn streamed(model: &mut dyn CausalLm, prompt: &[u32], options: GenerateOptions) -> Answer {
    let mut session = session(model);
    let mut stream = generate(model, &mut session, prompt, options).unwrap();
    (stream.by_ref().map(|token| token.unwrap().id).collect(), stream.finish_reason())
}

fn batched(model: &mut dyn CausalLm, prompt: &[u32], options: GenerateOptions) -> Answer {
    let mut batch = Batch::new(CacheOptions::default());
    batch.add(model, &prompt[1..], self::options(None)).unwrap();
    let row = batch.add(model, prompt, options).unwrap();
    let (mut tokens, mut finish) = (Vec::new(), None);
    while finish.is_none() {
        let answer = batch.step(model).unwrap().into_iter().find(|answer| answer.row == row).unwrap();
        tokens.extend(answer.token.map(|token| token.id));
        finish = answer.finish;
    }
    (tokens, finish)
}

fn speculative(
    model: &mut dyn CausalLm,
    draft: &mut dyn Draft,
    prompt: &[u32],
    options: GenerateOptions,
) -> Answer {
    let mut session = session(model);
    let speculation = Speculation { draft, most: 4 };
    let mut stream = generate_speculative(model, &mut session, prompt, options, speculation).unwrap();
    (stream.by_ref().map(|token| token.unwrap().id).collect(), stream.finish_reason())
}

#[test]
fn streams_rows_and_speculation_end_at_the_same_token() {
    with_cpu(TIES, || {
        let mut model = mlx_models::load(demo()).unwrap();
        let mut twin = mlx_models::load(demo()).unwrap();
        let tokenizer = tokenizer();
        let prompt = tokenizer.encode("Once upon a time there was a fox").unwrap();
        let (all, _) = streamed(&mut *model, &prompt, options(None));
        let text = tokenizer.decode(&all).unwrap();
        // Strings from the answer, each beginning somewhere in a token, and one that never comes.
        let characters: Vec<char> = text.chars().collect();
        let at =
            |start: usize, length: usize| -> String { characters[start..start + length].iter().collect() };
        let third = characters.len() / 3;
        for string in [at(third, 7), at(third + 1, 4), at(2 * third, 11), "never in there".to_owned()] {
            let stop =
                StopStringProcessor::new(&tokenizer, [string.clone(), "\u{1f98a}".to_owned()]).unwrap();
            let options = options(Some(stop));
            // The first token with which the text has the string.
            let complete = (1..=all.len()).find(|&n| tokenizer.decode(&all[..n]).unwrap().contains(&string));
            let expected = match complete {
                Some(n) => (all[..n].to_vec(), Some(FinishReason::Complete { processor: 0 })),
                None => (all.clone(), Some(FinishReason::MaxTokens)),
            };
            assert_eq!(streamed(&mut *model, &prompt, options.clone()), expected, "{string:?}");
            assert_eq!(batched(&mut *model, &prompt, options.clone()), expected, "{string:?}");
            let lookup = &mut PromptLookup { longest: 2, shortest: 1 };
            assert_eq!(speculative(&mut *model, lookup, &prompt, options.clone()), expected, "{string:?}");
            let its_session = session(&*twin);
            let mut draft = DraftModel::new(&mut *twin, &options).unwrap().with_session(its_session);
            assert_eq!(
                speculative(&mut *model, &mut draft, &prompt, options.clone()),
                expected,
                "{string:?}"
            );

            // With text, the stop string is left out.
            let mut session = session(&*model);
            let stream = generate(&mut *model, &mut session, &prompt, options).unwrap();
            let mut pieces = with_text(stream, &tokenizer).stop_at([string.clone()]).unwrap();
            let shown: String = pieces.by_ref().map(|piece| piece.unwrap().text).collect();
            assert_eq!(shown, text.split(&string).next().unwrap());
            if complete.is_some() {
                assert_eq!(pieces.finish_reason(), Some(&TextFinish::StopString(string)));
            }
        }
    });
}

#[test]
fn rejected_tokens_are_removed_from_stop_strings() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("A fox ran through the wood, and then the fox came home. The end.").unwrap();
    let new = || StopStringProcessor::new(&tokenizer, ["The end"]).unwrap();
    let complete = |processor: &StopStringProcessor| processor.is_complete();
    let mut whole = new();
    let ends_at = ids.iter().position(|&id| {
        whole.accept(id).unwrap();
        complete(&whole)
    });
    let ends_at = ends_at.unwrap();
    assert_eq!(whole.found(), Some("The end"));
    // Few tokens back, and more than the processor keeps states for.
    for (times, back) in [(1, 1), (1, 5), (4, ids.len()), (9, 7 * ids.len())] {
        let mut processor = new();
        let before: Vec<u32> = ids[..ends_at].to_vec();
        before.iter().for_each(|&id| processor.accept(id).unwrap());
        let others: Vec<u32> = ids[..back.min(ends_at)].iter().copied().cycle().take(back).collect();
        for _ in 0..times {
            others.iter().for_each(|&id| processor.accept(id).unwrap());
            processor.rollback(others.len()).unwrap();
            assert!(!complete(&processor));
        }
        processor.accept(ids[ends_at]).unwrap();
        assert_eq!(processor.found(), Some("The end"), "{times} {back}");
        processor.rollback(1).unwrap();
        assert!(!complete(&processor));
    }
}

#[test]
fn an_empty_stop_string_is_an_error() {
    let error = StopStringProcessor::new(&tokenizer(), [""]).unwrap_err();
    assert!(matches!(error, TokenizerError::EmptyStopString), "{error}");
}
