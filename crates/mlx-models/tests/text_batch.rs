//! The text of the rows of a batch: each row has the text and the end that it would have alone.
#![cfg(all(feature = "lille-130m", feature = "generate", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use mlx_models::generate::{Batch, GenerateOptions, Penalties, RowId, Session, generate};
use mlx_models::text::{TextBatch, TextError, TextFinish, TextOptions, with_text};
use mlx_models::tokenizer::{Tokenizer, TokenizerError, TokenizerParts};
use mlx_models::{CacheOptions, CausalLm};
use mlx_testing::with_cpu;
use serde_json::{Map, Value, json};

const PROMPTS: [&str; 4] = ["Once upon a time", "The fox", "A dog and a cat were in the garden. They", "In"];

/// The demo is in bfloat16.
const TIES: &str =
    "where two tokens are equally likely, rounding decides, and a GPU rounds a batch otherwise than a row";

fn demo() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m").to_owned()
}

fn options(tokenizer: &Tokenizer) -> GenerateOptions {
    GenerateOptions { max_tokens: 40, ..GenerateOptions::new(tokenizer.stop_tokens()) }
}

/// The text of a prompt alone, the number of its tokens, and why it ends.
type Answer = (String, usize, Option<TextFinish>);

fn alone(model: &mut dyn CausalLm, tokenizer: &Tokenizer, prompt: &[u32], stop: &[String]) -> Answer {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let stream = generate(model, &mut session, prompt, options(tokenizer)).unwrap();
    let mut text = with_text(stream, tokenizer).stop_at(stop).unwrap();
    let pieces: Vec<_> = text.by_ref().map(Result::unwrap).collect();
    let tokens = pieces.iter().filter(|piece| piece.token.is_some()).count();
    (pieces.iter().map(|piece| &*piece.text).collect(), tokens, text.finish_reason().cloned())
}

fn together(model: &mut dyn CausalLm, batch: &mut TextBatch) -> BTreeMap<RowId, Answer> {
    let mut found: BTreeMap<RowId, Answer> = BTreeMap::new();
    while !batch.is_empty() {
        for answer in batch.step(model).unwrap() {
            let (text, tokens, finish) = found.entry(answer.row).or_default();
            assert!(finish.is_none());
            *text += &answer.piece.text;
            *tokens += usize::from(answer.piece.token.is_some());
            *finish = answer.finish;
        }
    }
    found
}

#[test]
fn rows_have_the_text_and_the_end_that_they_have_alone() {
    with_cpu(TIES, || {
        let mut model = mlx_models::load(demo()).unwrap();
        let tokenizer = Tokenizer::from_folder(demo()).unwrap();
        let batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(3);
        let mut batch = TextBatch::new(batch, &tokenizer);
        let mut expected = BTreeMap::new();
        let mut ends = Vec::new();
        for prompt in PROMPTS {
            let prompt = tokenizer.encode(prompt).unwrap();
            let (whole, ..) = alone(&mut *model, &tokenizer, &prompt, &[]);
            // No stop string, one that never comes, and one from the middle of the answer.
            let characters: Vec<char> = whole.chars().collect();
            let third = characters.len() / 3;
            let middle: String = characters[third..third + 5].iter().collect();
            for stop in [vec![], vec!["never in there".to_owned()], vec!["\u{1f98a}".to_owned(), middle]] {
                let answer = alone(&mut *model, &tokenizer, &prompt, &stop);
                ends.push(answer.2.clone());
                let options = TextOptions::from(options(&tokenizer)).stop_at(&stop).unwrap();
                expected.insert(batch.add(&mut *model, &prompt, options).unwrap(), answer);
            }
            let row = batch.add(&mut *model, &prompt, options(&tokenizer)).unwrap();
            expected.insert(row, alone(&mut *model, &tokenizer, &prompt, &[]));
        }
        assert_eq!(
            ends.iter().filter(|end| matches!(end, Some(TextFinish::StopString(_)))).count(),
            PROMPTS.len()
        );
        assert_eq!(together(&mut *model, &mut batch), expected);
    });
}

#[test]
fn a_session_goes_on_in_a_batch_and_a_row_can_be_removed() {
    with_cpu(TIES, || {
        let mut model = mlx_models::load(demo()).unwrap();
        let tokenizer = Tokenizer::from_folder(demo()).unwrap();
        let prompt = tokenizer.encode(PROMPTS[2]).unwrap();
        let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
        let go_on = |_, _| std::ops::ControlFlow::Continue(());
        session.read_all(&mut *model, &prompt[..5], 512, go_on).unwrap();
        let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), &tokenizer);
        let row = batch.add_session(&mut *model, session, &prompt[5..], options(&tokenizer)).unwrap();
        let removed = batch.add(&mut *model, &prompt, options(&tokenizer)).unwrap();
        assert_eq!(batch.step(&mut *model).unwrap().len(), 2);
        assert!(batch.remove(removed).unwrap() && !batch.remove(removed).unwrap());
        assert_eq!(batch.batch().len(), 1);
        let found = together(&mut *model, &mut batch);
        let (text, tokens, finish) = alone(&mut *model, &tokenizer, &prompt, &[]);
        assert!(text.ends_with(&found[&row].0) && found.len() == 1);
        assert_eq!((found[&row].1, &found[&row].2), (tokens - 1, &finish));
    });
}

/// It refuses token 2.
fn refusing_tokenizer() -> Tokenizer {
    let long = "a".repeat(5000);
    let vocab: Map<String, Value> =
        ["b", "c", &long].iter().zip(0..).map(|(token, id)| ((*token).to_owned(), json!(id))).collect();
    let json = json!({
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "b"},
        "decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(256)},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), &TokenizerParts::default()).unwrap()
}

/// Three times this token.
fn always(token: u32) -> GenerateOptions {
    let penalties = Penalties { logit_bias: vec![(token, 1e4)], ..Penalties::default() };
    GenerateOptions { penalties, max_tokens: 3, ..GenerateOptions::new(&[]) }
}

/// The error of one row comes first, and then what the others got.
#[test]
fn a_row_that_is_removed_after_the_error_of_another_has_no_more_pieces() {
    let mut model = mlx_models::load(demo()).unwrap();
    let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), &refusing_tokenizer());
    let kept = batch.add(&mut *model, &[1, 2], always(1)).unwrap();
    let removed = batch.add(&mut *model, &[1, 2], always(1)).unwrap();
    batch.add(&mut *model, &[1, 2], always(2)).unwrap();
    batch.step(&mut *model).unwrap_err();
    assert!(batch.remove(removed).unwrap());
    let found = together(&mut *model, &mut batch);
    assert_eq!(found.keys().collect::<Vec<_>>(), [&kept]);
    assert_eq!(found[&kept].0, "ccc");
}

/// The row that gets the token fails, and the others go on.
#[test]
fn a_token_that_the_tokenizer_refuses_ends_its_row_alone() {
    let mut model = mlx_models::load(demo()).unwrap();
    let tokenizer = refusing_tokenizer();
    let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), &tokenizer);
    let good = batch.add(&mut *model, &[1, 2], always(1)).unwrap();
    let bad = batch.add(&mut *model, &[1, 2], always(2)).unwrap();
    let error = batch.step(&mut *model).unwrap_err();
    let is_decoding = |source: &TokenizerError| matches!(source, TokenizerError::Decode { .. });
    assert!(
        matches!(&error, TextError::Row { row, source } if *row == bad && is_decoding(source)),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "row 1 of the batch");
    assert_eq!(together(&mut *model, &mut batch)[&good].0, "ccc");
}
