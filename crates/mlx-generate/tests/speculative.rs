//! Speculative decoding: the tokens are those of plain decoding, whatever is drafted.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use approx::assert_abs_diff_eq;
use common::{model, model_of, text};
use mlx_causal_lm::{CausalLm, trace};
use mlx_generate::{
    Draft, DraftModel, FinishReason, GenerateError, GenerateOptions, Penalties, Penalty, PromptLookup,
    Proposal, Sampling, Session, Speculation, Token, Tokens, generate, generate_speculative,
};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;

const MOST: usize = 4;

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::new(&[]) }
}

fn session(model: &Phi3, rewind: i32) -> Session {
    Session::new(model.new_cache(&CacheOptions { rewind, ..CacheOptions::default() }).unwrap())
}

fn plain(model: &mut Phi3, prompt: &[u32], options: GenerateOptions) -> (Vec<u32>, Option<FinishReason>) {
    let mut session = session(model, 0);
    let mut stream = generate(model, &mut session, prompt, options).unwrap();
    let tokens = stream.by_ref().map(|token| token.unwrap().id).collect();
    (tokens, stream.finish_reason())
}

/// The tokens, why they ended, how many were drafted, and the session's length at the end.
fn speculative(
    model: &mut Phi3,
    draft: &mut dyn Draft,
    prompt: &[u32],
    options: GenerateOptions,
    rewind: i32,
) -> (Vec<u32>, Option<FinishReason>, usize, usize) {
    let mut session = session(model, rewind);
    let mut stream =
        generate_speculative(model, &mut session, prompt, options, Speculation { draft, most: MOST })
            .unwrap();
    let found: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
    let finish = stream.finish_reason();
    drop(stream);
    let drafted = found.iter().filter(|token| token.drafted).count();
    (found.iter().map(|token| token.id).collect(), finish, drafted, session.offset() as usize)
}

/// A draft that knows the answer, and is wrong wherever the position is a multiple of `wrong_at`.
#[derive(Debug)]
struct Oracle {
    answer: Vec<u32>,
    wrong_at: usize,
}

impl Draft for Oracle {
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal, GenerateError> {
        let coming = self.answer.iter().enumerate().skip(text.len()).take(most);
        let tokens = coming.map(|(i, &id)| if i % self.wrong_at == 0 { (id + 1) % 96 } else { id }).collect();
        Ok(Proposal { tokens, probabilities: None })
    }
}

#[test]
fn greedy_tokens_are_those_of_plain_decoding() {
    // More than ten times the window, and over LongRoPE's border.
    for (window, border) in [(None, None), (Some(6), None), (None, Some(40)), (Some(8), Some(40))] {
        let mut model = model(window, border);
        let mut small = model_of(window, border, 96, 12);
        let prompt = text(11);
        let (expected, finish) = plain(&mut model, &prompt, options(90));
        let answer: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
        let what = format!("window {window:?}, border {border:?}");

        for (wrong_at, rewind) in [(1000, 4), (5, 4), (3, 4), (2, 4), (1, 4), (3, 0)] {
            let mut oracle = Oracle { answer: answer.clone(), wrong_at };
            let (found, why, drafted, length) =
                speculative(&mut model, &mut oracle, &prompt, options(90), rewind);
            assert_eq!((&found, why), (&expected, finish), "{what}, wrong at {wrong_at}");
            assert!((100..=101).contains(&length), "{length}");
            // With each call four drafted tokens and one of the model's own; none is kept where all are wrong.
            let least = match wrong_at {
                1000 => 70,
                1 => 0,
                _ => 20,
            };
            assert!(drafted >= least && (wrong_at > 1 || drafted == 0), "{what}, {wrong_at}: {drafted}");
        }
        let lookup = speculative(&mut model, &mut PromptLookup::default(), &prompt, options(90), 4);
        assert_eq!((&lookup.0, lookup.1), (&expected, finish), "{what}, lookup");

        let mut draft = DraftModel::new(&mut small, &options(90)).unwrap();
        let drafted = speculative(&mut model, &mut draft, &prompt, options(90), 4);
        assert_eq!((&drafted.0, drafted.1), (&expected, finish), "{what}, draft");
    }
}

/// How many tokens a model reads during a call.
fn tokens_read<R>(model: &mut dyn CausalLm, run: impl FnOnce(&mut dyn CausalLm) -> R) -> (R, i32) {
    let (answer, outputs) = trace(model, run);
    let embedded = outputs.iter().filter(|traced| traced.name == "embeddings");
    (answer, embedded.map(|traced| traced.output.dim(1)).sum())
}

/// The caches of the model and of its draft make room for drafted tokens, whatever their options are. So no token is read
/// again when drafts are wrong.
#[test]
fn caches_with_windows_make_room_for_drafts_themselves() {
    let (mut model, mut small) = (model(Some(6), None), model_of(Some(6), None, 96, 12));
    let prompt = text(11);
    let (expected, _) = plain(&mut model, &prompt, options(40));
    let answer: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    let new = |rewind| CacheOptions { rewind, ..CacheOptions::default() };
    for own in [0, 7] {
        let mut session = Session::new(model.new_cache(&new(own)).unwrap());
        // Twice, since the room is made once.
        for (rest, count) in [(&prompt[..], 20), (&answer[prompt.len() + 19..][..1], 20)] {
            let mut oracle = Oracle { answer: answer.clone(), wrong_at: 3 };
            let (found, read) = tokens_read(&mut model, |model| {
                let speculation = Speculation { draft: &mut oracle, most: MOST };
                let stream = generate_speculative(model, &mut session, rest, options(count), speculation);
                stream.unwrap().map(|token| token.unwrap()).collect::<Vec<Token>>()
            });
            let ids: Vec<u32> = found.iter().map(|token| token.id).collect();
            let start = if rest.len() > 1 { 0 } else { 20 };
            assert_eq!(ids, expected[start..start + count]);
            // Each call chooses one token and reads at most four drafted ones.
            let calls = found.iter().filter(|token| !token.drafted).count();
            assert!(read as usize <= rest.len() + calls * (MOST + 1), "{read} tokens in {calls} calls");
            assert_eq!(session.cache().rewind(), Some(own + MOST as i32));
        }
    }
    let mut draft = DraftModel::new(&mut small, &options(40)).unwrap();
    let drafted = speculative(&mut model, &mut draft, &prompt, options(40), 0);
    assert_eq!(drafted.0, expected);
    assert_eq!(draft.into_session().cache().rewind(), Some(MOST as i32));

    // A session that is kept for the next answer.
    let mut first = DraftModel::new(&mut small, &options(40)).unwrap();
    first.propose(&prompt, 3).unwrap();
    let kept = first.into_session();
    let mut second = DraftModel::new(&mut small, &options(40)).unwrap().with_session(kept);
    second.propose(&answer, 3).unwrap();
    assert_eq!(second.into_session().offset() as usize, answer.len() + 2);
}

#[test]
fn a_draft_that_is_the_model_itself_is_always_right() {
    let (mut model, mut twin) = (model(Some(6), None), model(Some(6), None));
    // The last token of the prompt is a chunk of its own, so that the first answer is drafted too.
    let options = |count| GenerateOptions { prefill_chunk: Some(4), ..options(count) };
    let mut draft = DraftModel::new(&mut twin, &options(50)).unwrap();
    let (_, _, drafted, _) = speculative(&mut model, &mut draft, &text(9), options(50), 4);
    assert_eq!(drafted, 40);

    // Drawn tokens too: p and q are the same, so every drafted token is kept.
    let drawn = GenerateOptions {
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        ..options(50)
    };
    let mut draft = DraftModel::new(&mut twin, &drawn).unwrap();
    let (_, _, drafted, _) = speculative(&mut model, &mut draft, &text(9), drawn, 4);
    assert!(drafted >= 39, "{drafted}");
}

#[test]
fn stop_tokens_and_limits_end_the_stream_where_plain_decoding_ends() {
    let mut model = model(Some(6), None);
    let prompt = text(11);
    let (expected, _) = plain(&mut model, &prompt, options(30));
    let answer: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    for at in [0, 1, 5, 12, 29] {
        let options = GenerateOptions { stop_tokens: vec![expected[at]], ..options(30) };
        let (tokens, finish) = plain(&mut model, &prompt, options.clone());
        let mut oracle = Oracle { answer: answer.clone(), wrong_at: 1000 };
        let (found, why, _, length) = speculative(&mut model, &mut oracle, &prompt, options, 4);
        assert_eq!((&found, why), (&tokens, finish));
        assert_eq!(why, Some(FinishReason::StopToken));
        assert_eq!(length, prompt.len() + tokens.len() - 1);
    }
    for max_tokens in [0, 1, 2, 5, 6, 7] {
        let mut oracle = Oracle { answer: answer.clone(), wrong_at: 1000 };
        let found = speculative(&mut model, &mut oracle, &prompt, options(max_tokens), 4);
        assert_eq!((found.0, found.1), (expected[..max_tokens].to_vec(), Some(FinishReason::MaxTokens)));
    }
    // The context of 128 tokens.
    let long: Vec<u32> = (0..120).map(|i| i % 96).collect();
    let (expected, finish) = plain(&mut model, &long, options(50));
    let answer: Vec<u32> = long.iter().chain(&expected).copied().collect();
    let mut oracle = Oracle { answer, wrong_at: 1000 };
    let found = speculative(&mut model, &mut oracle, &long, options(50), 4);
    assert_eq!((found.0, found.1), (expected, finish));
    assert_eq!(finish, Some(FinishReason::ContextFull));
}

#[test]
fn a_dropped_stream_leaves_a_session_with_the_tokens_it_returned() {
    let mut model = model(Some(6), None);
    let prompt = text(11);
    let (expected, _) = plain(&mut model, &prompt, options(30));
    let answer: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    for taken in 0..9 {
        let mut session = session(&model, 4);
        let mut oracle = Oracle { answer: answer.clone(), wrong_at: 1000 };
        let stream = generate_speculative(
            &mut model,
            &mut session,
            &prompt,
            options(30),
            Speculation { draft: &mut oracle, most: MOST },
        )
        .unwrap();
        let found: Vec<u32> = stream.take(taken).map(|token| token.unwrap().id).collect();
        assert_eq!(found, expected[..taken]);
        // And the session goes on from there as if there had been no drafted tokens.
        let so_far = answer[..prompt.len() + taken].to_vec();
        assert!((so_far.len() - 1..=so_far.len()).contains(&(session.offset() as usize)));
        let (_, rest) = session.turn_to(&model, &so_far).unwrap();
        let next: Vec<u32> = generate(&mut model, &mut session, rest, options(30 - taken))
            .unwrap()
            .map(|token| token.unwrap().id)
            .collect();
        assert_eq!(next, expected[taken..]);
    }
}

#[test]
fn lookup_finds_the_latest_place_with_the_most_tokens_in_common() {
    let propose = |text: &[u32], most| PromptLookup::default().propose(text, most).unwrap().tokens;
    // 1 2 3 came twice: what followed the second time.
    assert_eq!(propose(&[1, 2, 3, 7, 8, 1, 2, 3, 9, 4, 1, 2, 3], 2), [9, 4]);
    // Not 1 2 3, but 2 3.
    assert_eq!(propose(&[2, 3, 7, 8, 5, 1, 2, 3], 9), [7, 8, 5, 1, 2, 3]);
    // One token in common is too little, and nothing is nothing.
    assert!(propose(&[3, 7, 8, 5, 1, 2, 3], 4).is_empty());
    assert!(propose(&[], 4).is_empty() && propose(&[1], 4).is_empty());
    // Repetition of one token.
    assert_eq!(propose(&[5, 5, 5, 5], 4), [5]);
}

/// Tables are often longer than vocabularies, and not equally long: Gemma 3 has 262144 and 262208 rows.
#[test]
fn the_tables_of_draft_and_model_may_have_different_lengths() {
    for window in [None, Some(6)] {
        let mut large = model(window, None);
        let drawn = |seed| Sampling { temperature: 1.0, top_p: 0.9, seed, ..Sampling::default() };
        let greedy = plain(&mut large, &text(11), options(40));
        for rows in [64, 96, 128] {
            let mut small = model_of(window, None, rows, 12);
            for sampling in [Sampling::default(), drawn(3)] {
                let options = GenerateOptions { sampling: sampling.clone(), ..options(40) };
                let mut draft = DraftModel::new(&mut small, &options).unwrap();
                // Ids from 64 on are in the text only where all tables have them.
                let prompt: Vec<u32> =
                    text(11).iter().map(|id| if rows == 64 { id % 64 } else { *id }).collect();
                let found = speculative(&mut large, &mut draft, &prompt, options.clone(), MOST as i32);
                if sampling.temperature == 0.0 && rows > 64 {
                    assert_eq!((&found.0, found.1), (&greedy.0, greedy.1), "{rows}");
                } else if sampling.temperature == 0.0 {
                    assert_eq!(found.0, plain(&mut large, &prompt, options).0, "{rows}");
                }
                assert!(found.0.len() == 40 && found.0.iter().all(|&id| id < 96), "{rows}");
            }
        }
        // The same weights in a longer table would propose what the model answers, but for what it must not.
        let mut twin = model(window, None);
        let mut draft = DraftModel::new(&mut twin, &options(40)).unwrap();
        let all = speculative(&mut large, &mut draft, &text(11), options(40), MOST as i32);
        assert!(all.2 > 20, "{}", all.2);
        let draft = DraftModel::new(&mut twin, &options(40)).unwrap();
        let mut draft = draft.never_proposing(greedy.0.clone());
        let none = speculative(&mut large, &mut draft, &text(11), options(40), MOST as i32);
        assert_eq!((none.0, none.2), (greedy.0.clone(), 0));
    }
}

/// A text with tokens that the draft cannot read: it proposes nothing.
#[test]
fn a_draft_proposes_nothing_after_tokens_that_it_does_not_have() {
    let mut large = model(None, None);
    let mut small = model_of(None, None, 16, 12);
    let mut draft = DraftModel::new(&mut small, &options(9)).unwrap();
    let found = speculative(&mut large, &mut draft, &[95, 3], options(9), MOST as i32);
    assert_eq!((found.0, found.2), (plain(&mut large, &[95, 3], options(9)).0, 0));
}

/// A draft of somebody else's may propose anything.
#[test]
fn proposals_that_the_model_does_not_have_are_left_out() {
    #[derive(Debug)]
    struct Stranger;
    impl Draft for Stranger {
        fn propose(&mut self, _text: &[u32], _most: usize) -> Result<Proposal, GenerateError> {
            Ok(Proposal { tokens: vec![96, 1_000_000], probabilities: None })
        }
    }
    let mut model = model(None, None);
    let expected = plain(&mut model, &text(5), options(9)).0;
    assert_eq!(speculative(&mut model, &mut Stranger, &text(5), options(9), 4).0, expected);
}

#[test]
fn penalties_and_the_minimum_length_apply_to_drafted_tokens() {
    let mut model = model(None, None);
    let prompt = text(11);
    let (free, _) = plain(&mut model, &prompt, options(40));
    let options = GenerateOptions {
        penalties: Penalties {
            repetition: Penalty::new(1.5),
            presence: Penalty::new(0.5),
            ..Penalties::default()
        },
        stop_tokens: free[..3].to_vec(),
        min_tokens: 9,
        top_logprobs: 3,
        ..options(40)
    };
    let mut session = session(&model, 0);
    let expected: Vec<Token> =
        generate(&mut model, &mut session, &prompt, options.clone()).unwrap().map(Result::unwrap).collect();
    let ids: Vec<u32> = expected.iter().map(|token| token.id).collect();
    assert!(ids.len() >= 9 && ids != free[..ids.len()], "the options change nothing");
    let answer: Vec<u32> = prompt.iter().chain(&ids).copied().collect();
    for wrong_at in [1000, 4] {
        let mut oracle = Oracle { answer: answer.clone(), wrong_at };
        let mut session = self::session(&model, 4);
        let speculation = Speculation { draft: &mut oracle, most: MOST };
        let stream =
            generate_speculative(&mut model, &mut session, &prompt, options.clone(), speculation).unwrap();
        for (found, expected) in stream.map(Result::unwrap).zip(&expected) {
            assert_eq!(found.id, expected.id);
            assert_abs_diff_eq!(found.logprob, expected.logprob, epsilon = 1e-4);
            let ids = |token: &Token| token.alternatives.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(ids(&found), ids(expected));
        }
    }
}

#[test]
fn a_cancelled_stream_ends_before_its_next_token() {
    let mut model = model(None, None);
    let prompt = text(11);
    let (expected, _) = plain(&mut model, &prompt, options(30));
    let answer: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    let options = options(30);
    let cancel = options.cancel.clone();
    let mut session = session(&model, 4);
    let mut oracle = Oracle { answer, wrong_at: 1000 };
    let speculation = Speculation { draft: &mut oracle, most: MOST };
    let mut stream = generate_speculative(&mut model, &mut session, &prompt, options, speculation).unwrap();
    assert_eq!(stream.by_ref().take(3).count(), 3);
    cancel.cancel();
    assert!(stream.next().is_none());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
    drop(stream);
    assert!((13..=14).contains(&session.offset()), "{}", session.offset());
}
