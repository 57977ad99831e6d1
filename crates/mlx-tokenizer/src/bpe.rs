//! Byte-pair encoding: a text becomes tokens by joining two neighbours again and again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use ahash::AHashMap;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Result, Token};

use crate::token_texts::{TextHash, TextPlace, TokenTexts};

/// A vocabulary whose tokens are joined pair by pair. It gives the same ids as the model `BPE` of the `tokenizers` crate, which
/// needs a table of all pairs with two texts each. Building that table for 262,144 tokens takes longer than a small model
/// takes to answer.
#[derive(Debug)]
pub(crate) struct Bpe {
    pub(crate) texts: TokenTexts,
    pub(crate) order: Order,
    /// The tokens of single bytes, such as `<0x0A>`, for characters without a token. `None` for a byte without a token.
    pub(crate) bytes: Option<Box<[Option<u32>; 256]>>,
    /// The token of characters that have no token and no tokens of bytes.
    pub(crate) unknown: Option<u32>,
    /// Whether neighbouring characters without a token become one unknown token.
    pub(crate) fuse_unknown: bool,
    /// Whether a word that is a token becomes this token, even if joining pairs gives others.
    pub(crate) whole_words: bool,
}

/// Which of several pairs is joined first. Equal pairs are joined from left to right.
#[derive(Debug)]
pub(crate) enum Order {
    /// For each pair of ids its place in a list, and the id of both together.
    Listed(AHashMap<(u32, u32), (u32, u32)>),
    /// By the score of the token that a pair becomes.
    Scored {
        /// For each id its place in the order of scores, the highest first; [`NEVER`] for a token that no pair becomes.
        places: Vec<u32>,
        /// How pairs of the same score are ordered.
        ties: Ties,
    },
}

/// The place of a token that no pair becomes.
pub(crate) const NEVER: u32 = u32::MAX;

/// Which of two pairs is joined first if the tokens that they become have the same score. The scores of SentencePiece leave
/// it open, and the tools that wrote `tokenizer.json` files decided it in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ties {
    /// The pair of the lower ids: the token that it becomes, its left part, its right part. Llama 2, Mistral and Phi-3 do so.
    LowestIds,
    /// The pair with more characters in its left part, then in its right part. Gemma does so.
    LongestParts,
}

/// A part of a text that is being joined.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    hash: TextHash,
    id: u32,
    /// The number of its characters; 0 for a byte or an unknown character, which have no text that could be joined.
    chars: u32,
    /// Its bytes in the text. It was joined with the one before if it has none.
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
}

/// The most parts of a short word: looking at all pairs is faster than keeping them in order.
const SHORT: usize = 24;

/// No symbol.
const NONE: u32 = u32::MAX;

/// A pair that can be joined. The order of the fields is the order of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair<R> {
    rank: R,
    left: u32,
    /// Where the right part ends. The pair is still there if its left part exists and the part next to it ends here.
    end: u32,
    id: u32,
}

impl Bpe {
    /// The tokens of a word.
    fn symbols(&self, text: &str) -> Result<Vec<Symbol>> {
        if text.len() >= NONE as usize {
            return Err("a text of more than 4 GiB cannot be encoded at once".into());
        }
        let mut symbols = self.characters(text);
        match &self.order {
            Order::Listed(pairs) => {
                self.join(&mut symbols, |left, right| pairs.get(&(left.id, right.id)).copied());
            }
            Order::Scored { .. } => self.join(&mut symbols, |left, right| self.scored(left, right, text)),
        }
        Ok(symbols)
    }

    /// Joins pairs of neighbours as long as there are any. `pair` gives the rank of two neighbours and the token that they become.
    fn join<R: Ord + Copy>(
        &self,
        symbols: &mut Vec<Symbol>,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(R, u32)>,
    ) {
        if symbols.len() <= SHORT { self.join_short(symbols, pair) } else { self.join_long(symbols, pair) }
    }

    /// Looks at all pairs for each that is joined.
    fn join_short<R: Ord + Copy>(
        &self,
        symbols: &mut Vec<Symbol>,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(R, u32)>,
    ) {
        let mut pairs = [None; SHORT];
        for (place, two) in symbols.windows(2).enumerate() {
            pairs[place] = pair(&two[0], &two[1]);
        }
        let first = |pairs: &[Option<(R, u32)>]| {
            let ranks = pairs.iter().zip(0..).filter_map(|(pair, place)| Some((pair.as_ref()?, place)));
            ranks.min_by_key(|((rank, _), place)| (*rank, *place)).map(|((_, id), place)| (*id, place))
        };
        while let Some((id, left)) = first(&pairs[..symbols.len().saturating_sub(1)]) {
            symbols[left] = self.joined(&symbols[left], &symbols[left + 1], id);
            symbols.remove(left + 1);
            pairs.copy_within(left + 1.., left);
            for place in [left.wrapping_sub(1), left] {
                if let (Some(left), Some(right)) = (symbols.get(place), symbols.get(place.wrapping_add(1))) {
                    pairs[place] = pair(left, right);
                }
            }
        }
    }

    /// Keeps the pairs in their order, so that the time grows little faster than the length.
    fn join_long<R: Ord>(
        &self,
        symbols: &mut Vec<Symbol>,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(R, u32)>,
    ) {
        for place in 0..symbols.len() as u32 {
            let symbol = &mut symbols[place as usize];
            // Before the first and behind the last there is none.
            (symbol.previous, symbol.next) = (place.wrapping_sub(1), place + 1);
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let at = |symbols: &[Symbol], place: u32| {
            let left = symbols.get(place as usize)?;
            let right = symbols.get(left.next as usize)?;
            let (rank, id) = pair(left, right)?;
            Some(Reverse(Pair { rank, left: place, end: right.end, id }))
        };
        let mut pairs = Vec::with_capacity(symbols.len());
        pairs.extend((0..symbols.len() as u32).filter_map(|place| at(symbols, place)));
        let mut pairs = BinaryHeap::from(pairs);
        while let Some(Reverse(pair)) = pairs.pop() {
            let left = symbols[pair.left as usize];
            let Some(&right) = symbols.get(left.next as usize) else { continue };
            if left.start == left.end || right.end != pair.end {
                continue;
            }
            symbols[left.next as usize].start = right.end;
            symbols[pair.left as usize] = self.joined(&left, &right, pair.id);
            if let Some(next) = symbols.get_mut(right.next as usize) {
                next.previous = pair.left;
            }
            for place in [left.previous, pair.left] {
                if let Some(pair) = at(symbols, place) {
                    pairs.push(pair);
                }
            }
        }
        symbols.retain(|symbol| symbol.start != symbol.end);
    }

    /// Two neighbours as one token.
    fn joined(&self, left: &Symbol, right: &Symbol, id: u32) -> Symbol {
        let length = (right.end - right.start) as usize;
        Symbol {
            hash: self.texts.joined(left.hash, right.hash, length).unwrap_or_default(),
            id,
            chars: left.chars + right.chars,
            end: right.end,
            next: right.next,
            ..*left
        }
    }

    /// The rank of two neighbours and the token that they become, by the scores of tokens.
    fn scored(&self, left: &Symbol, right: &Symbol, text: &str) -> Option<([u32; 4], u32)> {
        let whole = left.start as usize..right.end as usize;
        if left.chars == 0 || right.chars == 0 || whole.len() > self.texts.longest() {
            return None;
        }
        let hash = self.texts.joined(left.hash, right.hash, (right.end - right.start) as usize)?;
        let id = self.texts.id_of(hash, &text[whole])?;
        Some((self.rank(id, (left.id, left.chars), (right.id, right.chars))?, id))
    }

    /// The characters of a word, before any are joined.
    fn characters(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut unknown: Option<Symbol> = None;
        for (start, character) in text.char_indices() {
            let (start, end) = (start as u32, (start + character.len_utf8()) as u32);
            let part = &text[start as usize..end as usize];
            let symbol = |id, hash, chars, start, end| Symbol {
                hash,
                id,
                chars,
                start,
                end,
                previous: NONE,
                next: NONE,
            };
            if let Some(TextPlace { id, hash }) = self.texts.character(character, part) {
                symbols.extend(unknown.take());
                symbols.push(symbol(id, hash, 1, start, end));
            } else if let Some(ids) = self.bytes_of(part) {
                // A pending unknown token comes behind, as in the `tokenizers` crate.
                let byte = |(id, start)| symbol(id, TextHash::default(), 0, start, start + 1);
                symbols.extend(ids.zip(start..).map(byte));
            } else if let Some(id) = self.unknown {
                match &mut unknown {
                    Some(unknown) if self.fuse_unknown => unknown.end = end,
                    unknown => {
                        symbols.extend(unknown.replace(symbol(id, TextHash::default(), 0, start, end)));
                    }
                }
            }
        }
        symbols.extend(unknown);
        symbols
    }

    /// The tokens of the bytes of a character, if there are tokens for all of them.
    fn bytes_of<'a>(&'a self, character: &'a str) -> Option<impl Iterator<Item = u32> + 'a> {
        let bytes = self.bytes.as_ref()?;
        let id = |byte| bytes[usize::from(byte)];
        character.bytes().all(|byte| id(byte).is_some()).then(|| character.bytes().filter_map(id))
    }
}

impl Bpe {
    /// All pairs that are joined to tokens, in the order of joining.
    fn pairs(&self) -> Vec<(&str, &str)> {
        let text = |id| self.texts.text(id).unwrap_or_default();
        let places = match &self.order {
            Order::Listed(pairs) => {
                let mut pairs: Vec<_> = pairs.iter().map(|(ids, (rank, _))| (rank, ids)).collect();
                pairs.sort_unstable();
                return pairs.into_iter().map(|(_, &(left, right))| (text(left), text(right))).collect();
            }
            Order::Scored { places, .. } => places,
        };
        let mut pairs = Vec::new();
        for id in (0..self.texts.len() as u32).filter(|&id| places[id as usize] != NEVER) {
            let whole = text(id);
            for (cut, _) in whole.char_indices().skip(1) {
                let (left, right) = whole.split_at(cut);
                if let (Some(left_id), Some(right_id)) = (self.texts.id(left), self.texts.id(right)) {
                    let chars = |part: &str| part.chars().count() as u32;
                    let rank = self.rank(id, (left_id, chars(left)), (right_id, chars(right)));
                    pairs.extend(rank.map(|rank| (rank, left, right)));
                }
            }
        }
        pairs.sort_unstable();
        pairs.into_iter().map(|(_, left, right)| (left, right)).collect()
    }

    /// The rank of a pair of two tokens, each with the number of its characters, that become the token `id`; `None` if no pair
    /// becomes it, or if the order is a list.
    fn rank(&self, id: u32, left: (u32, u32), right: (u32, u32)) -> Option<[u32; 4]> {
        let Order::Scored { places, ties } = &self.order else { return None };
        let score = Some(places[id as usize]).filter(|&score| score != NEVER)?;
        Some(match ties {
            Ties::LowestIds => [score, id, left.0, right.0],
            Ties::LongestParts => [score, !left.1, !right.1, id],
        })
    }
}

/// The tokens of single bytes.
pub(crate) fn byte_tokens(texts: &TokenTexts) -> Box<[Option<u32>; 256]> {
    let mut bytes = Box::new([None; 256]);
    (0..=255_u8).for_each(|byte| bytes[usize::from(byte)] = texts.id(&format!("<0x{byte:02X}>")));
    bytes
}

/// As the model `BPE` in a `tokenizer.json`.
impl Serialize for Bpe {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut model = serializer.serialize_struct("BPE", 10)?;
        model.serialize_field("type", "BPE")?;
        model.serialize_field("dropout", &())?;
        model.serialize_field("unk_token", &self.unknown.and_then(|id| self.texts.text(id)))?;
        model.serialize_field("continuing_subword_prefix", &())?;
        model.serialize_field("end_of_word_suffix", &())?;
        model.serialize_field("fuse_unk", &self.fuse_unknown)?;
        model.serialize_field("byte_fallback", &self.bytes.is_some())?;
        model.serialize_field("ignore_merges", &self.whole_words)?;
        model.serialize_field("vocab", &ById(&self.texts))?;
        model.serialize_field("merges", &self.pairs())?;
        model.end()
    }
}

/// The ids of texts, in their order.
struct ById<'a>(&'a TokenTexts);

impl Serialize for ById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let ids = (0..self.0.len() as u32).filter_map(|id| Some((self.0.text(id)?, id)));
        serializer.collect_map(ids.filter(|(text, _)| !text.is_empty()))
    }
}

impl Model for Bpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        let token = |id: u32, start, end| {
            Token::new(id, self.texts.text(id).unwrap_or_default().to_owned(), (start, end))
        };
        if self.whole_words
            && let Some(id) = self.texts.id(sequence)
        {
            return Ok(vec![token(id, 0, sequence.len())]);
        }
        let symbols = self.symbols(sequence)?;
        let token = |symbol: &Symbol| token(symbol.id, symbol.start as usize, symbol.end as usize);
        Ok(symbols.iter().map(token).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.texts.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.texts.text(id).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        (0..self.texts.len() as u32).filter_map(|id| Some((self.id_to_token(id)?, id))).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.texts.count()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a model that is read from metadata is written with its tokenizer only".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
