//! Processors of the caller: a stream, a row of a batch and speculative decoding give the same tokens.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use approx::assert_abs_diff_eq;
use common::{model, text};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_generate::{
    Batch, Draft, FinishReason, GenerateError, GenerateOptions, LogitsProcessor, Penalties, Penalty,
    ProcessorError, PromptLookup, Proposal, Sampling, Session, Speculation, Token, TokenSet, Tokens,
    generate, generate_speculative,
};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;
use mlx_rs::Array;

const VOCAB_SIZE: u32 = 96;

/// Allows the ids that leave the same remainder by 3 as the sum of all tokens so far, and prefers small ones. It refuses
/// tokens that it does not allow, and counts wrongly where a token is not taken back.
#[derive(Debug, Clone, Default)]
struct Remainder {
    tokens: Vec<u32>,
    prompt: usize,
    /// Complete with a token below this, which is none where it is 0.
    complete_below: u32,
}

impl Remainder {
    fn allows(tokens: &[u32], id: u32) -> bool {
        id % 3 == tokens.iter().sum::<u32>() % 3
    }

    /// What it adds to the logit of a token.
    fn bonus(id: u32) -> f32 {
        (VOCAB_SIZE - id) as f32 / 32.0
    }
}

impl LogitsProcessor for Remainder {
    fn begin(&mut self, tokens: &[u32]) -> Result<(), ProcessorError> {
        (self.tokens, self.prompt) = (tokens.to_vec(), tokens.len());
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        if !Self::allows(&self.tokens, token) {
            return Err(format!("{token} is not allowed").into());
        }
        self.tokens.push(token);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        let left = self.tokens.len() - tokens;
        if left < self.prompt {
            return Err("more tokens are taken back than were accepted".into());
        }
        self.tokens.truncate(left);
        Ok(())
    }

    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        assert_eq!(logits.shape(), [1, VOCAB_SIZE as i32]);
        let bonus: Vec<f32> = (0..VOCAB_SIZE).map(Self::bonus).collect();
        Ok(logits.add(Array::from_slice(&bonus, &[1, VOCAB_SIZE as i32]))?)
    }

    fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
        Ok(Some((0..VOCAB_SIZE).filter(|&id| Self::allows(&self.tokens, id)).collect()))
    }

    fn is_complete(&self) -> bool {
        self.tokens.len() > self.prompt && self.tokens.last().is_some_and(|&id| id < self.complete_below)
    }
}

/// Forbids the token before, through the logits alone.
#[derive(Debug, Clone, Default)]
struct NeverTwice {
    tokens: Vec<u32>,
}

impl LogitsProcessor for NeverTwice {
    fn begin(&mut self, tokens: &[u32]) -> Result<(), ProcessorError> {
        self.tokens = tokens.to_vec();
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        self.tokens.push(token);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.tokens.truncate(self.tokens.len() - tokens);
        Ok(())
    }

    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        let last = *self.tokens.last().ok_or("nothing came before")?;
        let others: TokenSet = (0..VOCAB_SIZE).filter(|&id| id != last).collect();
        Ok(others.keep(logits)?)
    }
}

fn options(max_tokens: usize, complete_below: u32) -> GenerateOptions {
    let remainder = Remainder { complete_below, ..Remainder::default() };
    GenerateOptions {
        max_tokens,
        processors: vec![Box::new(NeverTwice::default()), Box::new(remainder)],
        ..GenerateOptions::new(&[])
    }
}

fn new_session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions { rewind: 4, ..CacheOptions::default() }).unwrap())
}

type Answer = (Vec<Token>, Option<FinishReason>);

fn streamed(model: &mut Phi3, prompt: &[u32], options: GenerateOptions) -> Answer {
    let mut session = new_session(model);
    let mut stream = generate(model, &mut session, prompt, options).unwrap();
    (stream.by_ref().map(Result::unwrap).collect(), stream.finish_reason())
}

/// As a row of a batch with two others, one longer and one shorter.
fn batched(model: &mut Phi3, prompt: &[u32], options: GenerateOptions) -> Answer {
    let mut batch = Batch::new(CacheOptions::default());
    let others = GenerateOptions { max_tokens: 30, ..GenerateOptions::new(&[]) };
    batch.add(model, &text(20), others.clone()).unwrap();
    let row = batch.add(model, prompt, options).unwrap();
    batch.add(model, &text(2), others).unwrap();
    let (mut tokens, mut finish) = (Vec::new(), None);
    while finish.is_none() {
        let answers = batch.step(model).unwrap();
        let answer = answers.into_iter().find(|answer| answer.row == row).unwrap();
        tokens.extend(answer.token);
        finish = answer.finish;
    }
    (tokens, finish)
}

fn speculative(
    model: &mut Phi3,
    draft: &mut dyn Draft,
    prompt: &[u32],
    options: GenerateOptions,
) -> (Answer, usize) {
    let mut session = new_session(model);
    let speculation = Speculation { draft, most: 4 };
    let mut stream = generate_speculative(model, &mut session, prompt, options, speculation).unwrap();
    let tokens: Vec<Token> = stream.by_ref().map(Result::unwrap).collect();
    let drafted = tokens.iter().filter(|token| token.drafted).count();
    ((tokens, stream.finish_reason()), drafted)
}

/// Knows the answer, and is wrong at every multiple of `wrong_at`: with a token that is not allowed, or one that is.
#[derive(Debug)]
struct Oracle {
    answer: Vec<u32>,
    wrong_at: usize,
    wrong_by: u32,
}

impl Draft for Oracle {
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal, GenerateError> {
        let coming = self.answer.iter().enumerate().skip(text.len()).take(most);
        let wrong = |id: u32| (id + self.wrong_by) % VOCAB_SIZE;
        let tokens = coming.map(|(i, &id)| if i % self.wrong_at == 0 { wrong(id) } else { id });
        Ok(Proposal { tokens: tokens.collect(), probabilities: None })
    }
}

#[track_caller]
fn assert_same((found, finish): &Answer, (expected, why): &Answer) {
    assert_eq!(finish, why);
    let ids = |tokens: &[Token]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    assert_eq!(ids(found), ids(expected));
    for (found, expected) in found.iter().zip(expected) {
        assert_abs_diff_eq!(found.logprob, expected.logprob, epsilon = 1e-4);
        let ids = |token: &Token| token.alternatives.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(found), ids(expected));
    }
}

/// Greedy decoding without a cache and without processors, by the rules that they have.
fn naive(model: &mut Phi3, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
        let input = Array::from_slice(&tokens, &[1, tokens.len() as i32]);
        let logits = model.forward(&input, &mut cache, Logits::Last).unwrap();
        let logits = logits.as_slice::<f32>();
        let score = |id: u32| logits[id as usize] + Remainder::bonus(id);
        let possible = (0..VOCAB_SIZE)
            .filter(|&id| Remainder::allows(&tokens, id) && Some(&id) != tokens.last())
            .max_by(|&a, &b| score(a).total_cmp(&score(b)));
        tokens.push(possible.unwrap());
    }
    tokens.split_off(prompt.len())
}

#[test]
fn tokens_are_those_of_a_loop_that_applies_the_rules() {
    for (window, border) in [(None, None), (Some(6), Some(16))] {
        let mut model = model(window, border);
        let expected = naive(&mut model, &text(11), 24);
        let (found, finish) = streamed(&mut model, &text(11), options(24, 0));
        assert_eq!(found.iter().map(|token| token.id).collect::<Vec<_>>(), expected);
        assert_eq!(finish, Some(FinishReason::MaxTokens));
        // A session that has the beginning of the prompt already.
        let mut session = new_session(&model);
        let beginning = Array::from_slice(&text(11)[..6], &[1, 6]);
        session.read(&mut model, &beginning, Logits::None).unwrap();
        let stream = generate(&mut model, &mut session, &text(11)[6..], options(24, 0)).unwrap();
        assert_eq!(stream.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn rows_and_speculation_give_the_tokens_of_a_stream() {
    let penalties = Penalties {
        logit_bias: vec![(3, 2.0), (7, f64::NEG_INFINITY)],
        repetition: Penalty::new(1.3),
        ..Penalties::default()
    };
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16))] {
        let mut model = model(window, border);
        let prompt = text(11);
        let plain = options(30, 0);
        let stop = streamed(&mut model, &prompt, plain.clone()).0[3].id;
        let rich = GenerateOptions {
            penalties: penalties.clone(),
            stop_tokens: vec![stop],
            min_tokens: 12,
            top_logprobs: 3,
            ..options(30, 0)
        };
        for options in [plain, rich, options(30, 9)] {
            let expected = streamed(&mut model, &prompt, options.clone());
            assert_same(&batched(&mut model, &prompt, options.clone()), &expected);
            let answer: Vec<u32> =
                prompt.iter().copied().chain(expected.0.iter().map(|token| token.id)).collect();
            for (wrong_at, wrong_by) in [(1000, 1), (3, 1), (2, 3), (5, 6), (1, 1)] {
                let mut oracle = Oracle { answer: answer.clone(), wrong_at, wrong_by };
                let (found, drafted) = speculative(&mut model, &mut oracle, &prompt, options.clone());
                assert_same(&found, &expected);
                let all = expected.0.len();
                assert!(wrong_at < 1000 || drafted >= all * 3 / 5, "{drafted} of {all}");
            }
            let lookup = &mut PromptLookup::default();
            assert_same(&speculative(&mut model, lookup, &prompt, options.clone()).0, &expected);
        }
    }
}

#[test]
fn drawn_tokens_obey_processors() {
    let mut model = model(None, None);
    let prompt = text(9);
    for seed in 0..3 {
        let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed, ..Sampling::default() };
        let options = GenerateOptions { sampling, ..options(25, 0) };
        let expected = streamed(&mut model, &prompt, options.clone());
        assert_same(&batched(&mut model, &prompt, options.clone()), &expected);
        // Speculation draws other tokens of the same distribution. `Remainder` would refuse a wrong one.
        let answer: Vec<u32> =
            prompt.iter().copied().chain(expected.0.iter().map(|token| token.id)).collect();
        let mut oracle = Oracle { answer, wrong_at: 3, wrong_by: 1 };
        let ((found, finish), _) = speculative(&mut model, &mut oracle, &prompt, options);
        assert_eq!((found.len(), finish), (25, Some(FinishReason::MaxTokens)));
        assert!(found.iter().all(|token| token.logprob.is_finite()));
    }
}

/// The reasons in their order: a stop token, a processor, the maximum of tokens.
#[test]
fn a_processor_ends_the_sequence_with_a_reason_of_its_own() {
    let mut model = model(None, None);
    let prompt = text(11);
    let (free, _) = streamed(&mut model, &prompt, options(30, 0));
    let at = free.iter().position(|token| token.id < 9).unwrap();
    let id = free[at].id;
    let answer: Vec<u32> = prompt.iter().copied().chain(free.iter().map(|token| token.id)).collect();
    let complete = FinishReason::Complete { processor: 1 };
    for (options, reason) in [
        (options(30, 9), complete),
        (options(at + 1, 9), complete),
        (GenerateOptions { stop_tokens: vec![id], ..options(at + 1, 9) }, FinishReason::StopToken),
        (options(at + 1, 0), FinishReason::MaxTokens),
    ] {
        let oracle = &mut Oracle { answer: answer.clone(), wrong_at: 1000, wrong_by: 1 };
        for (found, finish) in [
            streamed(&mut model, &prompt, options.clone()),
            batched(&mut model, &prompt, options.clone()),
            speculative(&mut model, oracle, &prompt, options.clone()).0,
        ] {
            assert_eq!((found.len(), finish), (at + 1, Some(reason)));
        }
    }
    // The session has the answer up to its last token, or with it.
    let mut session = new_session(&model);
    generate(&mut model, &mut session, &prompt, options(30, 9)).unwrap().for_each(drop);
    let read = session.offset() as usize - prompt.len();
    assert!((at..=at + 1).contains(&read), "{read} {at}");
}

/// Reports an error with its third token.
#[derive(Debug, Clone)]
struct Failing(usize);

impl LogitsProcessor for Failing {
    fn accept(&mut self, _token: u32) -> Result<(), ProcessorError> {
        self.0 += 1;
        if self.0 < 3 { Ok(()) } else { Err("no third token".into()) }
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.0 -= tokens;
        Ok(())
    }
}

#[test]
fn the_error_of_a_processor_ends_its_own_sequence_alone() {
    let mut model = model(None, None);
    let plain = GenerateOptions { max_tokens: 6, ..GenerateOptions::new(&[]) };
    let failing = GenerateOptions { processors: vec![Box::new(Failing(0))], ..plain.clone() };
    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &text(5), failing.clone()).unwrap();
    assert_eq!(stream.by_ref().take_while(Result::is_ok).count(), 2);
    assert!(stream.next().is_none() && stream.finish_reason().is_none());

    let (expected, _) = streamed(&mut model, &text(7), plain.clone());
    let mut batch = Batch::new(CacheOptions::default());
    let bad = batch.add(&mut model, &text(5), failing.clone()).unwrap();
    let good = batch.add(&mut model, &text(7), plain).unwrap();
    let (mut tokens, mut errors) = (Vec::new(), Vec::new());
    while !batch.is_empty() {
        match batch.step(&mut model) {
            Ok(answers) => {
                let of_good = answers.into_iter().filter(|answer| answer.row == good);
                tokens.extend(of_good.map(|answer| answer.token.unwrap().id));
            }
            Err(GenerateError::Row { row, source }) => errors.push((row, source)),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(tokens, expected.iter().map(|token| token.id).collect::<Vec<_>>());
    let [(row, error)] = &errors[..] else { panic!("{errors:?}") };
    assert!(*row == bad && matches!(**error, GenerateError::Processor { .. }), "{error}");
    let source = std::error::Error::source(&**error).unwrap();
    assert_eq!(
        (error.to_string(), source.to_string()),
        ("a logits processor failed".into(), "no third token".into())
    );
}

/// Where the set of a processor leaves nothing, that is the error of all tokens that are impossible.
#[test]
fn a_processor_that_allows_nothing_is_an_error() {
    #[derive(Debug, Clone)]
    struct Nothing;
    impl LogitsProcessor for Nothing {
        fn accept(&mut self, _token: u32) -> Result<(), ProcessorError> {
            Ok(())
        }
        fn rollback(&mut self, _tokens: usize) -> Result<(), ProcessorError> {
            Ok(())
        }
        fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
            Ok(Some(TokenSet::new()))
        }
    }
    let mut model = model(None, None);
    let options = GenerateOptions { processors: vec![Box::new(Nothing)], ..GenerateOptions::new(&[]) };
    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &text(5), options.clone()).unwrap();
    assert!(matches!(stream.next(), Some(Err(GenerateError::NoTokenPossible))));
    drop(stream);
    let mut session = new_session(&model);
    let speculation = Speculation { draft: &mut PromptLookup::default(), most: 4 };
    let mut stream = generate_speculative(&mut model, &mut session, &text(5), options, speculation).unwrap();
    assert!(matches!(stream.next(), Some(Err(GenerateError::NoTokenPossible))));
}

/// Fails, or returns logits that are not the model's in shape or dtype, where it is asked for its third token.
#[derive(Debug, Clone)]
struct Misbehaving {
    kind: usize,
    accepted: usize,
    fails_at: usize,
}

const KINDS_OF_MISBEHAVIOUR: usize = 4;

impl LogitsProcessor for Misbehaving {
    fn accept(&mut self, _token: u32) -> Result<(), ProcessorError> {
        self.accepted += 1;
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.accepted -= tokens;
        Ok(())
    }

    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        if self.accepted < self.fails_at {
            return Ok(logits.clone());
        }
        match self.kind {
            0 => Err("no more tokens".into()),
            1 => Ok(Array::zeros::<f32>(&[1, 2 * VOCAB_SIZE as i32])?),
            2 => Ok(logits.reshape(&[2, -1])?),
            _ => Ok(Array::zeros::<i32>(&[1, VOCAB_SIZE as i32])?),
        }
    }
}

fn misbehaving(kind: usize, fails_at: usize) -> GenerateOptions {
    let processor = Misbehaving { kind, accepted: 0, fails_at };
    GenerateOptions { max_tokens: 6, processors: vec![Box::new(processor)], ..GenerateOptions::new(&[]) }
}

/// The tokens before the error are the same in a stream, in a row and in speculation, and other rows do not notice.
#[test]
fn a_processor_that_cannot_choose_ends_its_sequence_after_the_token_before() {
    let mut model = model(None, None);
    let plain = GenerateOptions { max_tokens: 6, ..GenerateOptions::new(&[]) };
    let (free, _) = streamed(&mut model, &text(5), plain.clone());
    let (other, _) = streamed(&mut model, &text(7), plain.clone());
    for kind in 0..KINDS_OF_MISBEHAVIOUR {
        let mut session = new_session(&model);
        let stream = generate(&mut model, &mut session, &text(5), misbehaving(kind, 2)).unwrap();
        let mut found: Vec<_> = stream.collect();
        assert!(matches!(found.pop(), Some(Err(GenerateError::Processor { .. }))), "{kind}");
        let found: Vec<Token> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, free[..2], "{kind}");

        let mut batch = Batch::new(CacheOptions::default());
        let bad = batch.add(&mut model, &text(5), misbehaving(kind, 2)).unwrap();
        let good = batch.add(&mut model, &text(7), plain.clone()).unwrap();
        let (mut tokens, mut failed) = (Vec::new(), Vec::new());
        while !batch.is_empty() {
            match batch.step(&mut model) {
                Ok(answers) => tokens.extend(answers.into_iter().map(|a| (a.row, a.token.unwrap().id))),
                Err(GenerateError::Row { row, source }) => failed.push((row, source)),
                Err(e) => panic!("{kind}: {e}"),
            }
        }
        let of = |row| tokens.iter().filter(|(id, _)| *id == row).map(|(_, id)| *id).collect::<Vec<_>>();
        assert_eq!(of(good), other.iter().map(|token| token.id).collect::<Vec<_>>(), "{kind}");
        assert_eq!(of(bad), free[..2].iter().map(|token| token.id).collect::<Vec<_>>(), "{kind}");
        assert!(matches!(&failed[..], [(row, _)] if *row == bad), "{kind}: {failed:?}");
    }
}

/// Where the first token cannot be chosen, the session has the prompt, and another thread can go on with it.
#[test]
fn a_processor_that_fails_at_once_leaves_a_session_that_goes_on() {
    let mut model = model(None, None);
    mlx_rs::transforms::eval_params(mlx_rs::module::ModuleParameters::parameters(&model)).unwrap();
    let mut session = new_session(&model);
    assert!(matches!(
        generate(&mut model, &mut session, &text(5), misbehaving(0, 0)),
        Err(GenerateError::Processor { .. })
    ));
    let read = || session.read(&mut model, &Array::from_slice(&[3_u32], &[1, 1]), Logits::Last).map(drop);
    std::thread::scope(|scope| scope.spawn(read).join().unwrap()).unwrap();
}

/// Allows only multiples of 3, and after its second token nothing.
#[derive(Debug, Clone)]
struct TwoTokens(usize);

impl LogitsProcessor for TwoTokens {
    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        if self.0 == 2 || !token.is_multiple_of(3) {
            return Err(format!("{token} is not allowed").into());
        }
        self.0 += 1;
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.0 -= tokens;
        Ok(())
    }

    fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
        let ids = if self.0 == 2 { 0..0 } else { 0..VOCAB_SIZE };
        Ok(Some(ids.step_by(3).collect()))
    }
}

/// Speculation hands out the tokens before an error too, and asks no processor to accept a token that is not possible.
#[test]
fn speculation_fails_where_a_stream_fails() {
    let mut model = model(None, None);
    let prompt = text(5);
    let options = GenerateOptions { processors: vec![Box::new(TwoTokens(0))], ..GenerateOptions::new(&[]) };
    let mut session = new_session(&model);
    let mut expected: Vec<_> =
        generate(&mut model, &mut session, &prompt, options.clone()).unwrap().collect();
    assert!(matches!(expected.pop(), Some(Err(GenerateError::NoTokenPossible))));
    let expected: Vec<u32> = expected.into_iter().map(|token| token.unwrap().id).collect();
    assert_eq!(expected.len(), 2);
    let answer = [&prompt[..], &expected, &[0, 0, 0, 0]].concat();
    for wrong_at in [1000, 2, 1] {
        let draft = &mut Oracle { answer: answer.clone(), wrong_at, wrong_by: 1 };
        let mut session = new_session(&model);
        let speculation = Speculation { draft, most: 4 };
        let mut stream =
            generate_speculative(&mut model, &mut session, &prompt, options.clone(), speculation).unwrap();
        let mut found: Vec<_> = stream.by_ref().collect();
        assert!(stream.next().is_none() && stream.finish_reason().is_none());
        drop(stream);
        let error = found.pop();
        assert!(matches!(error, Some(Err(GenerateError::NoTokenPossible))), "{wrong_at}: {error:?}");
        let found: Vec<u32> = found.into_iter().map(|token| token.unwrap().id).collect();
        assert_eq!(found, expected, "{wrong_at}");
        let read = session.offset() as usize - prompt.len();
        assert!((1..=2).contains(&read), "{wrong_at}: {read}");
    }
}

/// Excludes odd ids through the logits alone, refuses to accept one, and cannot go on behind a multiple of `stuck_behind`.
#[derive(Debug, Clone)]
struct EvenByLogits {
    ids: Vec<u32>,
    stuck_behind: u32,
}

impl LogitsProcessor for EvenByLogits {
    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        if !token.is_multiple_of(2) {
            return Err(format!("{token} is odd").into());
        }
        self.ids.push(token);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        let left =
            self.ids.len().checked_sub(tokens).ok_or("more tokens are taken back than were accepted")?;
        self.ids.truncate(left);
        Ok(())
    }

    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        match self.ids.last() {
            Some(last) if last.is_multiple_of(self.stuck_behind) => {
                Err(format!("stuck behind {last}").into())
            }
            _ => Ok((0..VOCAB_SIZE).step_by(2).collect::<TokenSet>().keep(logits)?),
        }
    }
}

/// Accepts every token, and prefers an id that depends on the number of tokens.
#[derive(Debug, Clone, Default)]
struct Counting(u32);

impl LogitsProcessor for Counting {
    fn accept(&mut self, _token: u32) -> Result<(), ProcessorError> {
        self.0 += 1;
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.0 -= tokens as u32;
        Ok(())
    }

    fn process(&mut self, logits: &Array) -> Result<Array, ProcessorError> {
        let preferred = self.0 * 10 % VOCAB_SIZE;
        let bonus: Vec<f32> = (0..VOCAB_SIZE).map(|id| if id == preferred { 1.0 } else { 0.0 }).collect();
        Ok(logits.add(Array::from_slice(&bonus, &[1, VOCAB_SIZE as i32]))?)
    }
}

/// What a processor says about a rejected token is of no interest: the tokens and the end are those of a stream, also for
/// processors before the one that fails and with penalties, which have to take the token back too.
#[test]
fn a_processor_that_fails_at_a_rejected_token_does_not_end_the_sequence() {
    let mut model = model(None, None);
    let prompt = text(5);
    for stuck_behind in [10_000, 2, 6] {
        let even = EvenByLogits { ids: vec![1], stuck_behind };
        let processors: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(Counting::default()), Box::new(even)];
        let mut options = GenerateOptions { processors, max_tokens: 20, ..GenerateOptions::new(&[]) };
        options.penalties.presence = Penalty::new(2.0);
        let mut session = new_session(&model);
        let all = generate(&mut model, &mut session, &prompt, options.clone()).unwrap();
        let all: Vec<_> = all.map(|token| token.map(|token| token.id).map_err(|e| e.to_string())).collect();
        let ids: Vec<u32> = all.iter().flatten().copied().collect();
        let answer = [&prompt[..], &ids, &[0; 4]].concat();
        for (wrong_at, wrong_by) in [(2, 1), (3, 1), (3, 6), (1, 12), (100, 1)] {
            let draft = &mut Oracle { answer: answer.clone(), wrong_at, wrong_by };
            let mut session = new_session(&model);
            let speculation = Speculation { draft, most: 4 };
            let stream =
                generate_speculative(&mut model, &mut session, &prompt, options.clone(), speculation);
            let found: Vec<_> =
                stream.unwrap().map(|token| token.map(|token| token.id).map_err(|e| e.to_string())).collect();
            assert_eq!(found, all, "stuck behind {stuck_behind}, wrong at {wrong_at} by {wrong_by}");
        }
    }
}
