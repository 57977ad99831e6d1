//! A tokenizer as the metadata of a GGUF file.
//!
//! llama.cpp has two kinds of tokenizers for the models here. `gpt2` is byte-pair encoding on bytes, with a list of merges; how a
//! text is cut into words first is a name, `tokenizer.ggml.pre`. `llama` is SentencePiece's byte-pair encoding: there are no merges, and
//! of two neighbouring tokens that are a token together, those are joined first whose common token has the highest score.
//!
//! # Reference
//!
//! llama.cpp (<https://github.com/ggml-org/llama.cpp>), `src/llama-vocab.cpp` for the meaning of the entries, and `conversion/base.py`
//! for which tokens are control tokens.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mlx_gguf::{Gguf, Value};
use serde::Deserialize;

use crate::word_split::{WORD_SPLITS, WordSplit};
use crate::{Around, EncodeOptions, Tokenizer, TokenizerError, Written};

/// What becomes of a token in a text: the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum TokenKind {
    Normal = 1,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The parts of a `tokenizer.json` that matter here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: serde_json::Value,
    #[serde(default)]
    pre_tokenizer: serde_json::Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default = "bpe")]
    kind: String,
    #[serde(default)]
    vocab: serde_json::Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

fn bpe() -> String {
    BPE.to_owned()
}

const BPE: &str = "BPE";

/// A pair that is joined: of older versions as one text with a space.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Text(text) => text.split_once(' '),
        }
    }
}

impl Tokenizer {
    /// What a GGUF file says of this tokenizer: the entries that begin with `tokenizer.`. `path` is the checkpoint folder or the GGUF
    /// file that the tokenizer was read from. `rows` is the number of rows of the model's embedding; there are as many tokens, and those
    /// that the tokenizer does not have are unused.
    ///
    /// llama.cpp does not compose characters (Unicode's form C), so where a tokenizer does, it gives other tokens for decomposed ones.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Invalid`] where llama.cpp has no tokenizer that gives the same tokens, with the reason;
    /// [`TokenizerError::Gguf`].
    pub fn gguf_metadata(
        &self,
        path: impl AsRef<Path>,
        rows: usize,
    ) -> Result<Vec<(String, Value)>, TokenizerError> {
        let path = path.as_ref();
        if path.is_file() {
            let model = Gguf::open(path)?;
            let entries = model.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
            return Ok(entries.map(|(key, value)| (key.to_owned(), value.clone())).collect());
        }
        let path = path.join("tokenizer.json");
        let entries = || {
            let json = mlx_files::read(&path, mlx_files::LARGEST_TOKENIZER).map_err(|e| e.to_string())?;
            let file: File = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
            drop(json);
            self.entries(&file, rows)
        };
        entries().map_err(|problem| TokenizerError::Invalid { file: path.clone(), problem })
    }

    /// The error says why there are no such entries.
    fn entries(&self, file: &File, rows: usize) -> Result<Vec<(String, Value)>, String> {
        if file.model.kind != BPE {
            return Err(format!("llama.cpp has no tokenizer like the model {:?}", file.model.kind));
        }
        let vocabulary = vocabulary(&file.model)?;
        let tokens = Tokens::new(file, &vocabulary, rows)?;
        let mut entries = Entries { all: Vec::new(), rows };
        if file.model.byte_fallback {
            sentencepiece(file, &vocabulary, tokens, &mut entries)?;
        } else {
            byte_level(file, tokens, &mut entries)?;
        }
        self.special(file.model.unk_token.as_deref(), &mut entries)?;
        Ok(entries.all)
    }

    /// The ids of special tokens, which of them are put around a text, and the chat templates. `unknown` is the token for unknown
    /// characters.
    fn special(&self, unknown: Option<&str>, entries: &mut Entries) -> Result<(), String> {
        let id = |name| self.special_token(name).and_then(|token| self.token_id(token));
        let mut stop = self.stop_tokens().iter().copied().filter(|&token| id("eos_token") != Some(token));
        let (bos, eos) = (id("bos_token"), id("eos_token").or_else(|| stop.next()));
        entries.id("bos", bos);
        entries.id("eos", eos);
        // Further tokens that end an answer.
        entries.id("eot", stop.next());
        entries.id("eom", stop.next());
        entries.id("unknown", id("unk_token").or_else(|| self.token_id(unknown?)));
        // As the format spells it.
        entries.id("seperator", id("sep_token"));
        entries.id("padding", id("pad_token"));
        entries.id("cls", id("cls_token"));
        entries.id("mask", id("mask_token"));
        let [adds_bos, adds_eos] = self.around(bos, eos)?;
        entries.push("add_bos_token", Value::Bool(adds_bos));
        entries.push("add_eos_token", Value::Bool(adds_eos));
        for (name, template) in &self.parts.templates {
            let name = if name == "default" { String::new() } else { format!(".{name}") };
            entries.all.push((format!("tokenizer.chat_template{name}"), Value::Text(template.clone())));
        }
        Ok(())
    }

    /// Whether a text gets the beginning-of-text token before it and the end-of-text token behind it.
    fn around(&self, bos: Option<u32>, eos: Option<u32>) -> Result<[bool; 2], String> {
        let encode = |around| {
            let options = EncodeOptions { around, written: Written::SpecialTokens };
            self.encode_with("a", options).map_err(|e| e.to_string())
        };
        let (alone, whole) = (encode(Around::Nothing)?, encode(Around::SpecialTokens)?);
        let token = |id: Option<u32>, is_added| id.filter(|_| is_added);
        for (before, behind) in [(false, false), (true, false), (false, true), (true, true)] {
            let expected =
                token(bos, before).into_iter().chain(alone.iter().copied()).chain(token(eos, behind));
            if (before && bos.is_none()) || (behind && eos.is_none()) || !expected.eq(whole.iter().copied()) {
                continue;
            }
            return Ok([before, behind]);
        }
        Err("llama.cpp can put only the beginning-of-text and the end-of-text token around a text, and this tokenizer puts others"
            .to_owned())
    }
}

/// The entries so far, of a model with this many tokens.
struct Entries {
    all: Vec<(String, Value)>,
    rows: usize,
}

impl Entries {
    fn push(&mut self, key: &str, value: Value) {
        self.all.push((format!("tokenizer.ggml.{key}"), value));
    }

    fn id(&mut self, name: &str, id: Option<u32>) {
        if let Some(id) = id.filter(|&id| (id as usize) < self.rows) {
            self.push(&format!("{name}_token_id"), Value::Integer(id.into()));
        }
    }
}

fn vocabulary(model: &Model) -> Result<HashMap<&str, u32>, String> {
    let entries = model.vocab.as_object().ok_or("its model has no vocabulary")?;
    let mut ids = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.insert(token.as_str(), id.ok_or_else(|| format!("the id of the token {token:?} is no id"))?);
    }
    Ok(ids)
}

/// The tokens by id.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
}

impl Tokens {
    fn new(file: &File, vocabulary: &HashMap<&str, u32>, rows: usize) -> Result<Self, String> {
        let is_added = |id: u32| file.added_tokens.iter().any(|added| added.id == id);
        // Added tokens beyond the embedding belong to a part that is not here, such as one for images.
        let beyond = vocabulary.iter().filter(|(_, id)| **id as usize >= rows && !is_added(**id));
        if let Some((token, id)) = beyond.min_by_key(|(_, id)| **id) {
            return Err(format!("the token {token:?} has the id {id}, and the embedding {rows} rows"));
        }
        let mut texts = vec![None; rows];
        let mut kinds = vec![TokenKind::Unused; rows];
        for (&token, &id) in vocabulary.iter().filter(|(_, id)| (**id as usize) < rows) {
            let is_byte = file.model.byte_fallback && byte_token(token);
            let kind = if is_byte { TokenKind::Byte } else { TokenKind::Normal };
            (texts[id as usize], kinds[id as usize]) = (Some(token.to_owned()), kind);
        }
        for added in file.added_tokens.iter().filter(|added| (added.id as usize) < rows) {
            let is_control = added.special || looks_special(&added.content);
            let kind = if is_control { TokenKind::Control } else { TokenKind::UserDefined };
            // Tokens of users are looked for in the text as it was written.
            let text = if is_control { added.content.clone() } else { added.content.replace('▁', " ") };
            (texts[added.id as usize], kinds[added.id as usize]) = (Some(text), kind);
        }
        let unused = |(id, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{id}]"));
        let texts: Vec<String> = texts.into_iter().enumerate().map(unused).collect();
        let mut seen = HashSet::with_capacity(texts.len());
        if let Some(text) = texts.iter().find(|text| !seen.insert(text.as_str())) {
            return Err(format!("llama.cpp cannot have two tokens with the text {text:?}"));
        }
        Ok(Self { texts, kinds })
    }

    /// Adds them to the entries.
    fn push(self, entries: &mut Entries) {
        entries.push("tokens", Value::Texts(self.texts.into_iter().collect()));
        entries.push("token_type", Value::Integers(self.kinds.iter().map(|&kind| kind as i64).collect()));
    }
}

/// Whether this is the token of a byte, such as `<0x0A>`.
fn byte_token(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether a token that was added is a control token for llama.cpp although the tokenizer does not say so: some models forget it.
fn looks_special(token: &str) -> bool {
    let between = |start, end| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// The entries of a tokenizer on bytes.
fn byte_level(file: &File, tokens: Tokens, entries: &mut Entries) -> Result<(), String> {
    let escaped = |merge: &Merge| {
        let (left, right) = merge.pair()?;
        Some(format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ")))
    };
    let merges = file.model.merges.iter().map(escaped).collect::<Option<_>>();
    let merges = merges.ok_or("a merge is no pair of tokens")?;
    entries.push("model", Value::Text("gpt2".to_owned()));
    entries.push("pre", Value::Text(pre_name(file)?.to_owned()));
    tokens.push(entries);
    entries.push("merges", Value::Texts(merges));
    Ok(())
}

/// llama.cpp's name for how a text is cut into words.
fn pre_name(file: &File) -> Result<&'static str, String> {
    let normalizers = steps(&file.normalizer, "normalizers");
    if let Some(step) = normalizers.iter().find(|step| step["type"] != "NFC") {
        return Err(format!("llama.cpp cannot change a text by {step}"));
    }
    // llama.cpp does not compose characters, whatever the name says.
    let find = |normalizer| WordSplit::of(normalizer, &file.pre_tokenizer, file.model.ignore_merges);
    let split = find(&file.normalizer).or_else(|| find(&serde_json::Value::Null));
    split.and_then(|split| split.names.first().copied()).ok_or_else(|| {
        let known: Vec<&str> = WORD_SPLITS.iter().filter_map(|split| split.names.first().copied()).collect();
        format!(
            "a GGUF file names how a text is cut into words, and of the known names ({}) none fits the pre_tokenizer {}",
            known.join(", "),
            file.pre_tokenizer
        )
    })
}

/// The steps of a sequence, or the only one.
fn steps<'a>(component: &'a serde_json::Value, inside: &str) -> Vec<&'a serde_json::Value> {
    match component[inside].as_array() {
        Some(steps) => steps.iter().collect(),
        None if component.is_null() => Vec::new(),
        None => vec![component],
    }
}

/// The entries of a tokenizer of SentencePiece.
fn sentencepiece(
    file: &File,
    vocabulary: &HashMap<&str, u32>,
    tokens: Tokens,
    entries: &mut Entries,
) -> Result<(), String> {
    let has_prefix = space_prefix(file)?;
    let scores = scores(file, vocabulary, &tokens)?;
    entries.push("model", Value::Text("llama".to_owned()));
    entries.push("pre", Value::Text("default".to_owned()));
    tokens.push(entries);
    entries.push("scores", Value::Floats(scores));
    entries.push("add_space_prefix", Value::Bool(has_prefix));
    Ok(())
}

/// Whether a space is put before a text. Spaces become `▁`, and nothing else is changed or split.
fn space_prefix(file: &File) -> Result<bool, String> {
    let (mut has_prefix, mut is_escaped) = (false, false);
    for step in
        steps(&file.normalizer, "normalizers").into_iter().chain(steps(&file.pre_tokenizer, "pretokenizers"))
    {
        let is_space = step["pattern"]["String"] == " ";
        match step["type"].as_str().unwrap_or_default() {
            "Prepend" if step["prepend"] == "▁" => has_prefix = true,
            "Replace" if is_space && step["content"] == "▁" => is_escaped = true,
            // No space is left to split at.
            "Split" if is_space && is_escaped => {}
            "Metaspace" if step["replacement"] == "▁" && step["split"] == false => {
                is_escaped = true;
                has_prefix |= step["prepend_scheme"] != "never";
            }
            _ => return Err(format!("llama.cpp cannot change or split a text by {step}")),
        }
    }
    if is_escaped { Ok(has_prefix) } else { Err("its normalizer does not replace spaces by ▁".to_owned()) }
}

/// The score of each token that was not trained.
const NO_SCORE: f32 = -1000.0;

/// The scores: a token that is made by an earlier merge has a higher one. SentencePiece numbers its tokens by their scores, from 0 down
/// by 1. Some models have tokens whose merges come later than their ids say; these get scores below all others.
///
/// llama.cpp joins any two tokens that are a token together. So it gives the same tokens only if each such pair is a merge, and if the
/// merges that make a token follow each other.
fn scores(file: &File, vocabulary: &HashMap<&str, u32>, tokens: &Tokens) -> Result<Vec<f32>, String> {
    let kinds = &tokens.kinds;
    let is_normal = |id: u32| kinds.get(id as usize) == Some(&TokenKind::Normal);
    let first = kinds.iter().position(|&kind| kind == TokenKind::Normal).unwrap_or_default();
    let score = |(id, kind): (usize, &TokenKind)| match kind {
        TokenKind::Normal => first as f32 - id as f32,
        TokenKind::Byte => 0.0,
        TokenKind::Control | TokenKind::UserDefined | TokenKind::Unused => NO_SCORE,
    };
    let mut scores: Vec<f32> = kinds.iter().enumerate().map(score).collect();
    let mut merges = HashSet::with_capacity(file.model.merges.len());
    let (mut last, mut made, mut late) = (0, HashSet::new(), kinds.len() as f32);
    let mut is_late = false;
    for merge in &file.model.merges {
        let (left, right) = merge.pair().ok_or("a merge is no pair of tokens")?;
        let together = format!("{left}{right}");
        let id = *vocabulary
            .get(&*together)
            .ok_or_else(|| format!("its merges make {together:?}, which is no token"))?;
        merges.insert((left, right));
        if id == last || !is_normal(id) {
            continue;
        }
        if !made.insert(id) {
            return Err(format!(
                "its merges make {together:?} at several places, and llama.cpp cannot do this"
            ));
        }
        is_late |= id < last;
        if is_late {
            scores[id as usize] = -late;
            late += 1.0;
        }
        last = id;
    }
    for (token, _) in tokens.texts.iter().zip(0..).filter(|(_, id)| is_normal(*id)) {
        for (left, right) in token.char_indices().skip(1).map(|(place, _)| token.split_at(place)) {
            let is_pair = vocabulary.contains_key(left) && vocabulary.contains_key(right);
            if is_pair && !merges.contains(&(left, right)) {
                return Err(format!(
                    "llama.cpp would join {left:?} and {right:?}, which are none of its merges"
                ));
            }
        }
    }
    Ok(scores)
}
