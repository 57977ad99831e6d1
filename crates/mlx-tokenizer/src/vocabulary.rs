//! The tokens of a tokenizer and their texts: those of `tokenizer.json`, or those of the caller's own [`Vocabulary`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Debug;

use tokenizers::{Model as _, OffsetType, PreTokenizer as _};

use crate::check;
use crate::decoder::Decoder;
use crate::pipeline::Pipeline;
use crate::utf8::Utf8;

/// A vocabulary of your own, for [`Tokenizer::from_vocabulary`](crate::Tokenizer::from_vocabulary): which tokens a text
/// becomes, and which text a token stands for.
///
/// The special tokens are named in [`TokenizerParts`](crate::TokenizerParts) and are found in a text before `encode` is
/// called, so an implementation does not need to know of them. They have ids in this vocabulary, too.
pub trait Vocabulary: Debug + Send + Sync {
    /// The tokens of a text without special tokens.
    ///
    /// # Errors
    ///
    /// Any error, for instance if there is no token for a part of the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>>;

    /// The text of a token as bytes of UTF-8, `None` if there is no such token. The bytes of a character may be spread
    /// over several tokens.
    fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>>;

    /// The number of ids; every id is below it.
    fn size(&self) -> u32;

    /// The id of a token, by its text. The default looks at every token, which takes long in a large vocabulary.
    fn id(&self, token: &str) -> Option<u32> {
        (0..self.size()).find(|&id| self.bytes(id).is_some_and(|bytes| *bytes == *token.as_bytes()))
    }

    /// The tokens that stand before every text, such as a beginning-of-text token. There are none by default.
    fn before_text(&self) -> &[u32] {
        &[]
    }
}

/// Where tokens and their texts come from.
#[derive(Debug)]
pub(crate) enum Tokens {
    /// A `tokenizer.json`.
    Json(Box<Pipeline>),
    /// A caller's vocabulary.
    Own(Own),
}

/// A caller's vocabulary with its special tokens.
#[derive(Debug)]
pub(crate) struct Own {
    vocabulary: Box<dyn Vocabulary>,
    /// The special tokens and their ids. A token that begins with another one comes before it.
    special: Vec<(String, u32)>,
}

/// A text that arrives token by token.
#[derive(Debug, Clone)]
pub(crate) enum Pieces {
    /// Decoded by the decoder of a `tokenizer.json`.
    Decoded(Decoder),
    /// The bytes of tokens, one after the other.
    Bytes(Utf8),
}

impl Own {
    /// The error names a special token that the vocabulary does not have.
    pub(crate) fn new<'a>(
        vocabulary: Box<dyn Vocabulary>,
        special: impl Iterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let id = |token: &'a str| vocabulary.id(token).map(|id| (token.to_owned(), id)).ok_or(token);
        let mut special = special.map(id).collect::<Result<Vec<_>, _>>().map_err(missing)?;
        special.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
        special.dedup();
        Ok(Self { vocabulary, special })
    }

    fn encode(&self, text: &str, special: bool, around: bool) -> Result<Vec<u32>, String> {
        let mut ids = if around { self.vocabulary.before_text().to_vec() } else { Vec::new() };
        let mut from = 0;
        for (place, (token, id)) in self.special_in(text).take_while(|_| special) {
            ids.extend(self.encode_text(&text[from..place])?);
            ids.push(*id);
            from = place + token.len();
        }
        ids.extend(self.encode_text(&text[from..])?);
        Ok(ids)
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.is_empty() { Ok(Vec::new()) } else { self.vocabulary.encode(text).map_err(|e| e.to_string()) }
    }

    /// The special tokens in a text and their places, in order; the longest one if several begin at one place. A token is
    /// looked for again only behind the place where it was found, so that many of them cost no more than their text.
    fn special_in<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, &'t (String, u32))> {
        let find = move |token: &str, from: usize| text[from..].find(token).map(|place| from + place);
        let mut next: Vec<_> = self.special.iter().map(|(token, _)| find(token, 0)).collect();
        let mut from = 0;
        std::iter::from_fn(move || {
            for (found, (token, _)) in next.iter_mut().zip(&self.special) {
                if found.is_some_and(|place| place < from) {
                    *found = find(token, from);
                }
            }
            let found = next.iter().zip(&self.special);
            // The first of equal places is the longest token.
            let places = found.filter_map(|(found, special)| Some(((*found)?, special)));
            let (place, special) = places.min_by_key(|(place, _)| *place)?;
            from = place + special.0.len();
            Some((place, special))
        })
    }

    fn token(&self, id: u32) -> Option<String> {
        let bytes = self.vocabulary.bytes(id)?;
        Some(match str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.escape_ascii().to_string(),
        })
    }

    fn special_content(&self, id: u32) -> Option<&str> {
        self.special.iter().find(|(_, special)| *special == id).map(|(token, _)| &**token)
    }
}

impl Tokens {
    /// The tokens of a text. `special` says whether special tokens in the text count as such, and `around` whether the
    /// tokenizer's special tokens are put around it. The error is the tokenizer's message.
    pub(crate) fn encode(&self, text: &str, special: bool, around: bool) -> Result<Vec<u32>, String> {
        match self {
            Self::Own(own) => own.encode(text, special, around),
            Self::Json(json) => check::guarded(|| {
                check::grows_within_bounds(json.get_normalizer(), text)?;
                let encoding = match special {
                    true => json.encode_fast(text, around),
                    false => encode_as_text(json, text, around),
                };
                encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
            })?,
        }
    }

    /// The id of a token, by its text in the vocabulary.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Json(json) => json.token_to_id(token),
            Self::Own(own) => own.vocabulary.id(token),
        }
    }

    /// The text of an id in the vocabulary.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        match self {
            Self::Json(json) => json.id_to_token(id),
            Self::Own(own) => own.token(id),
        }
    }

    /// The content of a special token; `None` for an ordinary token.
    pub(crate) fn special_content(&self, id: u32) -> Option<String> {
        match self {
            Self::Json(json) => {
                let added = json.get_added_vocabulary();
                added.simple_id_to_token(id).filter(|token| added.is_special_token(token))
            }
            Self::Own(own) => own.special_content(id).map(str::to_owned),
        }
    }

    pub(crate) fn by_id(&self) -> BTreeMap<u32, String> {
        match self {
            Self::Json(json) => {
                let ids = json.get_vocab(true).into_values();
                ids.filter_map(|id| Some((id, json.id_to_token(id)?))).collect()
            }
            Self::Own(own) => {
                (0..own.vocabulary.size()).filter_map(|id| Some((id, own.token(id)?))).collect()
            }
        }
    }

    /// A text without tokens so far.
    pub(crate) fn no_pieces(&self) -> Pieces {
        match self {
            Self::Json(json) => Pieces::Decoded(Decoder::new(json.get_decoder())),
            Self::Own(_) => Pieces::Bytes(Utf8::default()),
        }
    }

    /// Adds a token to a text of [`no_pieces`](Self::no_pieces), and returns the text that is final. Special tokens and
    /// ids without a token have no text. The error is the tokenizer's message.
    pub(crate) fn push(&self, pieces: &mut Pieces, id: u32) -> Result<String, String> {
        match (self, pieces) {
            (Self::Json(json), Pieces::Decoded(decoder)) => match text_token(json, id) {
                Some(token) => check::guarded(|| decoder.push(token))?.map_err(|e| e.to_string()),
                None => Ok(String::new()),
            },
            (Self::Own(own), Pieces::Bytes(utf8)) if own.special_content(id).is_none() => {
                Ok(own.vocabulary.bytes(id).and_then(|bytes| utf8.push(&bytes)).unwrap_or_default())
            }
            _ => Ok(String::new()),
        }
    }
}

impl Pieces {
    /// The rest of the text. The error is the tokenizer's message.
    pub(crate) fn finish(self) -> Result<String, String> {
        match self {
            Self::Decoded(decoder) => check::guarded(|| decoder.finish())?.map_err(|e| e.to_string()),
            Self::Bytes(mut utf8) => Ok(utf8.finish().unwrap_or_default()),
        }
    }
}

/// The message for a special token that the vocabulary does not have.
pub(crate) fn missing(token: &str) -> String {
    format!("the vocabulary has no special token {token:?}")
}

/// Does the same as `encode_special_tokens` of the `tokenizers` crate. There it is a setting of the whole
/// tokenizer, so it would need a copy of the tokenizer for each text.
fn encode_as_text(json: &Pipeline, text: &str, around: bool) -> tokenizers::Result<tokenizers::Encoding> {
    let mut added = json.get_added_vocabulary().clone();
    added.set_encode_special_tokens(true);
    let mut parts = added.extract_and_normalize(json.get_normalizer(), text);
    if let Some(pre_tokenizer) = json.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut parts)?;
    }
    parts.tokenize(|part| json.get_model().tokenize(part.get()))?;
    json.post_process(parts.into_encoding(None, 0, OffsetType::None)?, None, around)
}

/// The token of an id, if it is ordinary text.
fn text_token(json: &Pipeline, id: u32) -> Option<String> {
    let added = json.get_added_vocabulary();
    let token = added.simple_id_to_token(id).or_else(|| json.get_model().id_to_token(id))?;
    (!added.is_special_token(&token)).then_some(token)
}
