//! Don't repeat yourself (DRY): a penalty for tokens that would continue a repetition.

use std::collections::BTreeMap;

use super::{from_zero, wrong};
use crate::GenerateError;

/// A penalty that grows with the length of the repetition.
///
/// Where the last `n` tokens occurred before, the token that followed them there would make the repetition longer. If `n`
/// is at least `allowed_length`, `multiplier * base^(n - allowed_length)` is subtracted from its logit; where there are
/// several such `n`, the largest counts. Unlike the other penalties, it does not penalize words that every text repeats.
///
/// mlx-lm has no such penalty. It needs the ids of all tokens on the host: see
/// [`Penalizer::waits`](super::Penalizer::waits).
///
/// # Reference
///
/// The pull request of its author: <https://github.com/oobabooga/textgen/pull/5677>; sequence breakers of
/// several tokens as in koboldcpp and llama.cpp: <https://github.com/ggml-org/llama.cpp/pull/9702>.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    /// The penalty for a repetition of `allowed_length` tokens. From 0 on; 0 changes nothing, and 0.8 is usual.
    pub multiplier: f64,
    /// The factor by which each further token makes the penalty larger. From 1 on.
    pub base: f64,
    /// Repetitions of fewer tokens are not penalized. From 1 on.
    pub allowed_length: usize,
    /// How many of the last tokens are looked at; `None` for all.
    pub penalty_last_n: Option<usize>,
    /// Sequences of tokens that end a repetition, such as a line break. A token that is such a sequence by itself is never
    /// penalized.
    pub sequence_breakers: Vec<Vec<u32>>,
}

impl Default for Dry {
    /// The values of the pull request, with the multiplier that it recommends and without sequence breakers,
    /// which depend on the tokenizer.
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            penalty_last_n: None,
            sequence_breakers: Vec::new(),
        }
    }
}

/// The largest penalty. `exp(-10_000)` is 0 in every dtype, so that a larger penalty would have the same effect; and it
/// fits into a float16, where sums of logits with it do not overflow.
const MOST: f64 = 10_000.0;

impl Dry {
    pub(super) fn check(&self) -> Result<(), GenerateError> {
        from_zero("dry multiplier", self.multiplier)?;
        if !(self.base.is_finite() && self.base >= 1.0) {
            return Err(wrong("dry base", self.base, "a number from 1 on"));
        }
        if self.allowed_length == 0 {
            return Err(wrong("dry allowed length", 0, "1 or more"));
        }
        match self.sequence_breakers.iter().any(Vec::is_empty) {
            true => Err(wrong("a dry sequence breaker", "empty", "one token or more")),
            false => Ok(()),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.multiplier == 0.0 || self.penalty_last_n == Some(0)
    }

    /// The tokens that are penalized after `history`, each once, and what is subtracted from their logits.
    pub(super) fn penalties(&self, history: &[u32]) -> (Vec<u32>, Vec<f32>) {
        if self.is_off() {
            return Default::default();
        }
        let first = history.len().saturating_sub(self.penalty_last_n.unwrap_or(usize::MAX));
        let history = &history[first..];
        let limit = self.since_breaker(history);
        if limit < self.allowed_length {
            return Default::default();
        }
        let mut longest = BTreeMap::<u32, usize>::new();
        for (end, length) in repeated_suffixes(history).into_iter().enumerate() {
            let (length, next) = (length.min(limit), history[end + 1]);
            if length >= self.allowed_length && !self.sequence_breakers.iter().any(|b| b == &[next]) {
                let known = longest.entry(next).or_default();
                *known = length.max(*known);
            }
        }
        longest.into_iter().map(|(token, length)| (token, self.penalty(length))).unzip()
    }

    fn penalty(&self, length: usize) -> f32 {
        let exponent = i32::try_from(length - self.allowed_length).unwrap_or(i32::MAX);
        (self.multiplier * self.base.powi(exponent)).min(MOST) as f32
    }

    /// How many tokens came after the last sequence breaker.
    fn since_breaker(&self, history: &[u32]) -> usize {
        (0..history.len())
            .find(|&after| {
                let before = &history[..history.len() - after];
                self.sequence_breakers.iter().any(|breaker| before.ends_with(breaker))
            })
            .unwrap_or(history.len())
    }
}

/// For each position but the last: how many tokens up to and with it equal as many at the end.
///
/// The Z function of the reversed tokens, in linear time: Gusfield, Algorithms on Strings, Trees and Sequences,
/// section 1.4.
fn repeated_suffixes(tokens: &[u32]) -> Vec<usize> {
    let count = tokens.len();
    let back = |i: usize| tokens[count - 1 - i];
    let mut matches = vec![0; count]; // of the reversed tokens, from each on
    let (mut left, mut right) = (0, 0); // the match that reaches farthest, without its end
    for start in 1..count {
        let mut length = if start < right { matches[start - left].min(right - start) } else { 0 };
        while start + length < count && back(length) == back(start + length) {
            length += 1;
        }
        if start + length > right {
            (left, right) = (start, start + length);
        }
        matches[start] = length;
    }
    matches.into_iter().skip(1).rev().collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    use super::*;

    /// llama.cpp's example: the tokens, and how many of them up to each are those at the end.
    #[test]
    fn repeated_suffixes_of_llama_cpps_example() {
        let tokens = b"abccbcyabc".map(u32::from);
        assert_eq!(repeated_suffixes(&tokens), [0, 0, 3, 1, 0, 2, 0, 0, 0]);
        assert_eq!(repeated_suffixes(&[]), [0; 0]);
        assert_eq!(repeated_suffixes(&[4, 4, 4]), [1, 2]);
    }

    fn dry(multiplier: f64, allowed_length: usize, breakers: &[&[u32]]) -> Dry {
        let sequence_breakers = breakers.iter().map(|breaker| breaker.to_vec()).collect();
        Dry { multiplier, base: 1.1, allowed_length, sequence_breakers, ..Dry::default() }
    }

    /// The probabilities in the tests of llama.cpp (`tests/test-sampling.cpp`), all tokens having had the same.
    #[test]
    fn probabilities_of_llama_cpps_tests() {
        let cases: [(Dry, &[u32], &[f64]); 5] = [
            (dry(1.0, 2, &[]), &[0, 1], &[0.25; 4]),
            (dry(1.0, 2, &[]), &[0, 1, 2, 0, 1], &[0.296923, 0.296923, 0.109232, 0.296923]),
            (dry(1.0, 2, &[&[3]]), &[0, 1, 3, 4, 0, 1], &[0.2; 5]),
            (dry(2.0, 2, &[]), &[0, 1, 2, 0, 1], &[0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
            (dry(1.0, 4, &[]), &[0, 1, 2, 3, 4, 0, 1], &[0.2; 5]),
        ];
        for (dry, history, expected) in cases {
            let mut weights = vec![1.0_f64; expected.len()];
            let (tokens, penalties) = dry.penalties(history);
            for (token, penalty) in tokens.into_iter().zip(penalties) {
                weights[token as usize] = (-f64::from(penalty)).exp();
            }
            let sum: f64 = weights.iter().sum();
            for (weight, expected) in weights.iter().zip(expected) {
                assert_abs_diff_eq!(weight / sum, *expected, epsilon = 1e-6);
            }
        }
    }

    #[test]
    fn a_penalty_grows_with_the_repetition_and_does_not_overflow() {
        // After 5 6 7 comes 8 or 9, and 8 has come after 4 5 6 7 too.
        let history = [4, 5, 6, 7, 8, 1, 5, 6, 7, 9, 4, 5, 6, 7];
        let dry = Dry { base: 2.0, ..dry(0.5, 2, &[]) };
        assert_eq!(dry.penalties(&history), (vec![8, 9], vec![0.5 * 4.0, 0.5 * 2.0]));
        let long = [3; 3000];
        assert_eq!(dry.penalties(&long), (vec![3], vec![10_000.0]));
    }

    #[test]
    fn only_the_last_tokens_are_looked_at() {
        let history = [1, 2, 3, 1, 2];
        let within = |last| Dry { penalty_last_n: last, ..dry(1.0, 2, &[]) }.penalties(&history).0;
        assert_eq!(within(Some(5)), [3]);
        assert_eq!(within(Some(4)), [0; 0]);
        assert_eq!(within(Some(0)), [0; 0]);
        assert_eq!(within(None), [3]);
    }

    #[test]
    fn a_repetition_does_not_reach_over_a_breaker_of_several_tokens() {
        let history = [5, 6, 7, 8, 1, 5, 6, 7, 8];
        assert_eq!(dry(1.0, 2, &[]).penalties(&history).0, [1]);
        assert_eq!(dry(1.0, 2, &[&[5, 6]]).penalties(&history), (vec![1], vec![1.0])); // 7 8 are left
        assert_eq!(dry(1.0, 2, &[&[6, 7]]).penalties(&history).0, [0; 0]);
        assert_eq!(dry(1.0, 2, &[&[7, 8]]).penalties(&history).0, [0; 0]);
        assert_eq!(dry(1.0, 2, &[&[1, 9]]).penalties(&history).0, [1]); // the breaker has not come
        assert_eq!(dry(1.0, 2, &[&[1]]).penalties(&history).0, [0; 0]); // a breaker may always come
    }

    #[test]
    fn wrong_options_are_named() {
        let cases = [
            (
                Dry { multiplier: -1.0, ..Dry::default() },
                "dry multiplier is -1, and must be a number from 0 on",
            ),
            (Dry { base: 0.5, ..Dry::default() }, "dry base is 0.5, and must be a number from 1 on"),
            (Dry { base: f64::NAN, ..Dry::default() }, "dry base is NaN, and must be a number from 1 on"),
            (Dry { allowed_length: 0, ..Dry::default() }, "dry allowed length is 0, and must be 1 or more"),
            (dry(1.0, 2, &[&[]]), "a dry sequence breaker is empty, and must be one token or more"),
        ];
        for (dry, message) in cases {
            assert_eq!(dry.check().unwrap_err().to_string(), message);
        }
    }

    /// By the definition, token for token.
    fn naive(dry: &Dry, history: &[u32]) -> BTreeMap<u32, f32> {
        let last = dry.penalty_last_n.unwrap_or(history.len()).min(history.len());
        let history = &history[history.len() - last..];
        let mut penalties = BTreeMap::new();
        for next in 1..history.len() {
            let token = history[next];
            if dry.sequence_breakers.contains(&vec![token]) {
                continue;
            }
            for length in dry.allowed_length..=next {
                let suffix = &history[history.len() - length..];
                // A breaker that ends within the suffix breaks it, even if it begins before.
                let broken = (history.len() - length + 1..=history.len())
                    .any(|end| dry.sequence_breakers.iter().any(|breaker| history[..end].ends_with(breaker)));
                if !broken && &history[next - length..next] == suffix {
                    let penalty = dry.multiplier * dry.base.powi((length - dry.allowed_length) as i32);
                    let known: &mut f32 = penalties.entry(token).or_default();
                    *known = known.max(penalty as f32);
                }
            }
        }
        penalties
    }

    proptest! {
        #[test]
        fn penalties_are_those_of_the_definition(
            history in prop::collection::vec(0_u32..3, 0..40),
            allowed_length in 1_usize..5,
            penalty_last_n in prop::option::of(0_usize..45),
            sequence_breakers in prop::collection::vec(prop::collection::vec(0_u32..3, 1..5), 0..3),
        ) {
            let dry = Dry { multiplier: 0.7, base: 1.2, allowed_length, penalty_last_n, sequence_breakers };
            let (tokens, penalties) = dry.penalties(&history);
            let found: BTreeMap<u32, f32> = tokens.into_iter().zip(penalties).collect();
            prop_assert_eq!(found, naive(&dry, &history));
        }
    }
}
