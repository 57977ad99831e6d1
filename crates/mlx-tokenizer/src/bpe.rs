//! Byte-pair encoding: a text becomes tokens by joining two neighbours again and again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use ahash::AHashMap;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Result, Token};

use crate::token_texts::{TextHash, TokenTexts};

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
    /// Its token; `None` if it can not be joined.
    id: u32,
    joins: bool,
    hash: TextHash,
    chars: u32,
    /// Its bytes in the text. It was joined with the one before if it has none.
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
}

/// No symbol.
const NONE: usize = usize::MAX;

/// A pair that can be joined. The order of the fields is the order of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: [u32; 4],
    left: usize,
    /// Where the right part ends. The pair is still there if its left part exists and the part next to it ends here.
    end: usize,
    id: u32,
}

impl Bpe {
    /// The tokens of a word.
    fn symbols(&self, text: &str) -> Result<Vec<Symbol>> {
        let mut symbols = self.characters(text)?;
        for place in 0..symbols.len() {
            symbols[place].previous = place.checked_sub(1).unwrap_or(NONE);
            symbols[place].next = if place + 1 < symbols.len() { place + 1 } else { NONE };
        }
        let pairs = (0..symbols.len()).filter_map(|left| self.pair(&symbols, left, text));
        let mut pairs: BinaryHeap<_> = pairs.map(Reverse).collect();
        while let Some(Reverse(pair)) = pairs.pop() {
            let left = symbols[pair.left];
            if left.start == left.end || left.next == NONE || symbols[left.next].end != pair.end {
                continue;
            }
            let right = symbols[left.next];
            let hash = self.texts.joined(left.hash, right.hash, right.end - right.start).unwrap_or(left.hash);
            symbols[left.next].start = right.end;
            let joined = &mut symbols[pair.left];
            joined.id = pair.id;
            joined.hash = hash;
            joined.chars += right.chars;
            joined.end = right.end;
            joined.next = right.next;
            if right.next != NONE {
                symbols[right.next].previous = pair.left;
            }
            let neighbours = [left.previous, pair.left].into_iter().filter(|&place| place != NONE);
            pairs.extend(neighbours.filter_map(|place| self.pair(&symbols, place, text)).map(Reverse));
        }
        symbols.retain(|symbol| symbol.start != symbol.end);
        Ok(symbols)
    }

    /// The characters of a word, before any are joined.
    fn characters(&self, text: &str) -> Result<Vec<Symbol>> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut unknown: Option<Symbol> = None;
        for (start, character) in text.char_indices() {
            let end = start + character.len_utf8();
            let hash = self.texts.hash(&text[start..end]);
            let symbol = |id, start, end, joins| Symbol {
                id,
                joins,
                hash,
                chars: 1,
                start,
                end,
                previous: NONE,
                next: NONE,
            };
            if let Some(id) = self.texts.id_of(hash, &text[start..end]) {
                symbols.extend(unknown.take());
                symbols.push(symbol(id, start, end, true));
            } else if let Some(ids) = self.bytes_of(&text[start..end]) {
                // A pending unknown token comes behind, as in the `tokenizers` crate.
                symbols.extend(ids.zip(start..).map(|(id, start)| symbol(id, start, start + 1, false)));
            } else if let Some(id) = self.unknown {
                match &mut unknown {
                    Some(unknown) if self.fuse_unknown => unknown.end = end,
                    unknown => symbols.extend(unknown.replace(symbol(id, start, end, false))),
                }
            }
        }
        symbols.extend(unknown);
        Ok(symbols)
    }

    /// The tokens of the bytes of a character, if there are tokens for all of them.
    fn bytes_of<'a>(&'a self, character: &'a str) -> Option<impl Iterator<Item = u32> + 'a> {
        let bytes = self.bytes.as_ref()?;
        let id = |byte| bytes[usize::from(byte)];
        character.bytes().all(|byte| id(byte).is_some()).then(|| character.bytes().filter_map(id))
    }

    /// The pair of a symbol and the next one, if they can be joined.
    fn pair(&self, symbols: &[Symbol], place: usize, text: &str) -> Option<Pair> {
        let left = &symbols[place];
        let right = symbols.get(left.next)?;
        let (rank, id) = match &self.order {
            Order::Listed(pairs) => {
                let (rank, id) = *pairs.get(&(left.id, right.id))?;
                ([rank, 0, 0, 0], id)
            }
            Order::Scored { .. } => {
                if !left.joins || !right.joins || right.end - left.start > self.texts.longest() {
                    return None;
                }
                let hash = self.texts.joined(left.hash, right.hash, right.end - right.start)?;
                let id = self.texts.id_of(hash, &text[left.start..right.end])?;
                let rank = self.rank(id, (left.id, left.chars), (right.id, right.chars))?;
                (rank, id)
            }
        };
        Some(Pair { rank, left: place, end: right.end, id })
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
        Ok(symbols.iter().map(|symbol| token(symbol.id, symbol.start, symbol.end)).collect())
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
