//! Sets of tokens, as one bit for each.

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::ops::select;

use super::scalar;

const BITS: u32 = u32::BITS;

/// A set of token ids: those that a [`LogitsProcessor`](super::LogitsProcessor) allows, for example.
///
/// ```
/// use mlx_generate::TokenSet;
/// use mlx_rs::Array;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let set: TokenSet = [1, 2].into_iter().collect();
/// assert!(set.contains(2) && !set.contains(0));
/// assert_eq!(set, TokenSet::from_words(vec![0b110]));
/// let logits = set.keep(&Array::from_slice(&[0.5_f32, 0.3, 0.2], &[1, 3]))?;
/// assert_eq!(logits.as_slice::<f32>(), [f32::NEG_INFINITY, 0.3, 0.2]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct TokenSet {
    /// Bit `id % 32` of word `id / 32`. Ids behind the last word are not in the set.
    words: Vec<u32>,
}

impl TokenSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A set from its bits: token `id` is in it where bit `id % 32`, counted from the lowest, of word `id / 32` is 1.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Adds a token. Memory grows with the largest id: one bit for each id below it.
    pub fn insert(&mut self, id: u32) {
        let word = (id / BITS) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % BITS);
    }

    /// Takes a token out.
    pub fn remove(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut((id / BITS) as usize) {
            *word &= !(1 << (id % BITS));
        }
    }

    /// Whether the token is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get((id / BITS) as usize).is_some_and(|word| word & (1 << (id % BITS)) != 0)
    }

    /// Logits `[1, V]` in which every token outside of the set has minus infinity; the others keep their bits.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn keep(&self, logits: &Array) -> Result<Array, Exception> {
        let vocab_size = logits.dim(-1).max(0);
        let mut kept = vec![false; vocab_size as usize];
        for (kept, &word) in kept.chunks_mut(BITS as usize).zip(&self.words) {
            kept.iter_mut().enumerate().for_each(|(bit, kept)| *kept = word >> bit & 1 == 1);
        }
        let kept = Array::from_slice(&kept, &[1, vocab_size]);
        select(kept, logits, scalar(f64::NEG_INFINITY, logits.dtype())?)
    }
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut set = Self::new();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

/// Sets are equal where they have the same tokens, whatever the number of their words.
impl PartialEq for TokenSet {
    fn eq(&self, other: &Self) -> bool {
        let longest = self.words.len().max(other.words.len());
        let word = |set: &Self, at: usize| set.words.get(at).copied().unwrap_or(0);
        (0..longest).all(|at| word(self, at) == word(other, at))
    }
}

impl Eq for TokenSet {}

#[cfg(test)]
mod tests {
    use mlx_rs::Dtype;

    use super::*;

    #[test]
    fn tokens_come_and_go() {
        let mut set = TokenSet::new();
        for id in [0, 31, 32, 95] {
            assert!(!set.contains(id));
            set.insert(id);
            assert!(set.contains(id) && !set.contains(id + 1));
        }
        assert_eq!(set, TokenSet::from_words(vec![1 | 1 << 31, 1, 1 << 31, 0, 0]));
        set.remove(95);
        set.remove(1000);
        assert_eq!(set, [32, 0, 31].into_iter().collect());
        assert_ne!(set, TokenSet::new());
    }

    /// The table may have more rows than the tokenizer has tokens, or fewer.
    #[test]
    fn logits_of_other_tokens_are_impossible_in_every_dtype() {
        let set: TokenSet = [1, 70].into_iter().collect();
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            for vocab_size in [3, 100] {
                let logits = Array::zeros::<f32>(&[1, vocab_size]).unwrap().as_dtype(dtype).unwrap();
                let kept = set.keep(&logits).unwrap();
                assert_eq!((kept.dtype(), kept.shape()), (dtype, logits.shape()));
                let kept = kept.as_dtype(Dtype::Float32).unwrap();
                for (id, &logit) in kept.as_slice::<f32>().iter().enumerate() {
                    assert_eq!(logit, if set.contains(id as u32) { 0.0 } else { f32::NEG_INFINITY });
                }
            }
        }
    }
}
