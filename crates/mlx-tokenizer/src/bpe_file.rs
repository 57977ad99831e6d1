//! Reads the model `BPE` of a `tokenizer.json`.

use std::borrow::Cow;
use std::fmt;

use ahash::AHashMap;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::bpe::{Bpe, Order, byte_tokens};
use crate::token_texts::TokenTexts;

/// The longest token that is read here, in bytes. The longest of released models have some hundreds.
const LONGEST_TOKEN: usize = 1 << 16;

/// The model as the file has it. Texts are parts of the file, unless they contain escapes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File<'a> {
    #[serde(rename = "type")]
    _kind: Kind,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Ids<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

/// The only model that is read here.
#[derive(Deserialize)]
enum Kind {
    #[serde(rename = "BPE")]
    Bpe,
}

struct Text<'a>(Cow<'a, str>);

/// Texts with their ids.
struct Ids<'a>(Vec<(Text<'a>, u32)>);

/// Two tokens that are joined.
struct Merge<'a> {
    left: Cow<'a, str>,
    right: Cow<'a, str>,
    /// Whether the file has them as one text, as older files do.
    in_one: bool,
}

impl File<'_> {
    /// The model. `None` if it has one of the rare settings, or is not as all released files are: then the `tokenizers` crate reads
    /// it, and decides whether it is an error.
    pub(crate) fn model(&self) -> Option<Bpe> {
        let unset = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        let plain = self.dropout.is_none()
            && unset(&self.continuing_subword_prefix)
            && unset(&self.end_of_word_suffix)
            && self.merges.iter().all(|merge| merge.in_one == self.merges[0].in_one);
        if !plain {
            return None;
        }
        let texts = texts(&self.vocab.0)?;
        let unknown = match &self.unk_token {
            Some(token) => Some(texts.id(token)?),
            None => None,
        };
        let mut pairs = AHashMap::with_capacity(self.merges.len());
        for (rank, merge) in (0..).zip(&self.merges) {
            let (left, right) = (texts.place(&merge.left)?, texts.place(&merge.right)?);
            let hash = texts.joined(left.hash, right.hash, merge.right.len())?;
            let joined = texts.id_of_parts(hash, &merge.left, &merge.right)?;
            pairs.insert((left.id, right.id), (rank, joined));
        }
        Some(Bpe {
            bytes: self.byte_fallback.unwrap_or_default().then(|| byte_tokens(&texts)),
            order: Order::Listed(pairs),
            unknown,
            fuse_unknown: self.fuse_unk.unwrap_or_default(),
            whole_words: self.ignore_merges.unwrap_or_default(),
            texts,
        })
    }
}

/// The texts by their ids; `None` if two tokens have one id or one text, if a token is empty, or if most ids have no token.
fn texts(ids: &[(Text<'_>, u32)]) -> Option<TokenTexts> {
    let count = ids.iter().map(|(_, id)| *id as usize + 1).max().unwrap_or(0);
    if count > 2 * ids.len() + 1000 {
        return None;
    }
    let mut texts = vec![""; count];
    for (text, id) in ids {
        let place = &mut texts[*id as usize];
        if !place.is_empty() || text.0.is_empty() || text.0.len() > LONGEST_TOKEN {
            return None;
        }
        *place = &text.0;
    }
    TokenTexts::new(texts.into_iter()).ok()
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;

        impl<'de> Visitor<'de> for OfText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(text.to_owned().into()))
            }
        }

        deserializer.deserialize_str(OfText)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Ids<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfIds;

        impl<'de> Visitor<'de> for OfIds {
            type Value = Ids<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids<'de>, A::Error> {
                let mut ids = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    ids.push(entry);
                }
                Ok(Ids(ids))
            }
        }

        deserializer.deserialize_map(OfIds)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMerge;

        impl<'de> Visitor<'de> for OfMerge {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Merge<'de>, E> {
                let (left, right) = parts(text)?;
                Ok(Merge { left: left.into(), right: right.into(), in_one: true })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge<'de>, E> {
                let (left, right) = parts(text)?;
                Ok(Merge { left: left.to_owned().into(), right: right.to_owned().into(), in_one: true })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge<'de>, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<Text<'_>>()?) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Merge { left, right, in_one: false }),
                    _ => Err(A::Error::custom("not two tokens")),
                }
            }
        }

        deserializer.deserialize_any(OfMerge)
    }
}

/// The two tokens of a line of the older form. A line with a version, which that form can have, is not read here.
fn parts<E: Error>(line: &str) -> Result<(&str, &str), E> {
    let two = line.split_once(' ').filter(|(_, right)| !right.contains(' ') && !line.starts_with("#version"));
    two.ok_or_else(|| E::custom("not two tokens"))
}
