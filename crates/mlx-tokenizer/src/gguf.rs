//! A tokenizer from the metadata of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ahash::AHashMap;
use mlx_gguf::{Gguf, GgufError, Metadata, Problem, Texts};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder,
};

use crate::bpe::{Bpe, NEVER, Order, Ties, byte_tokens};
use crate::parts::{self, Parts};
use crate::pipeline::{AnyModel, Pipeline};
use crate::token_texts::TokenTexts;
use crate::vocabulary::Tokens;
use crate::word_split::{WORD_SPLITS, WordSplit};
use crate::{Tokenizer, TokenizerError, check};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

/// The special tokens that have a name in chat templates, the keys of their ids, and the ids that files without these keys mean
/// if their vocabulary is that of SentencePiece.
const NAMED: [(&str, &str, Option<usize>); 7] = [
    ("bos_token", "tokenizer.ggml.bos_token_id", Some(1)),
    ("eos_token", "tokenizer.ggml.eos_token_id", Some(2)),
    ("unk_token", "tokenizer.ggml.unknown_token_id", Some(0)),
    // As the format spells it.
    ("sep_token", "tokenizer.ggml.seperator_token_id", None),
    ("pad_token", "tokenizer.ggml.padding_token_id", None),
    ("cls_token", "tokenizer.ggml.cls_token_id", None),
    ("mask_token", "tokenizer.ggml.mask_token_id", None),
];

/// The keys of further tokens that end a text: the end of a turn, and of a message that calls a tool.
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Control tokens that end a text or a turn in some model, whatever the file says.
const ENDS_BY_NAME: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<eos>",
    "<turn|>",
];

/// Tokens that llama.cpp's converter marks as control tokens, although the models use them as ordinary text.
const NOT_CONTROL: [&str; 3] = ["<mask>", "<2mass>", "[@BOS@]"];

/// The maximum length of a token in bytes. The longest of released models have some hundreds.
const LONGEST_TOKEN: usize = 1 << 16;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// How the tokens of a vocabulary are written, and how a text is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Texts with `▁` for a space, and tokens for single bytes. `begins_with_space` says whether a space is put before a text.
    Spaces { begins_with_space: bool },
    /// Words whose bytes are written as characters.
    Bytes(&'static WordSplit),
}

impl Tokenizer {
    /// Reads a checkpoint: a folder, or a GGUF file (any of its parts, if there are several).
    ///
    /// # Errors
    ///
    /// Those of [`from_folder`](Self::from_folder) and of [`from_gguf`](Self::from_gguf), and [`TokenizerError::Gguf`] if the file
    /// is no GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        if path.is_file() { Self::from_gguf(&Gguf::open(path)?, path) } else { Self::from_folder(path) }
    }

    /// The tokenizer of a GGUF file that is open already. `path` is its name in errors.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Invalid`] if its vocabulary is missing, is of a kind that is not supported, or contradicts itself. The
    /// error names the key.
    pub fn from_gguf(file: &Gguf, path: &Path) -> Result<Self, TokenizerError> {
        read(file.metadata()).map_err(|problem| TokenizerError::Invalid { file: path.to_owned(), problem })
    }
}

/// Why a vocabulary cannot be used.
type Wrong = String;

/// Special tokens by name, with their ids.
type Named = BTreeMap<&'static str, (usize, String)>;

fn read(metadata: &Metadata) -> Result<Tokenizer, Wrong> {
    let vocabulary = Vocabulary::read(metadata)?;
    let special = vocabulary.named(metadata)?;
    let stop_tokens = vocabulary.ends(metadata)?.into_iter().collect();
    let pipeline = vocabulary.pipeline(metadata, &special)?;
    let tokens = Tokens::Json(Box::new(pipeline));
    let special = special.into_iter().map(|(name, (_, token))| (name.to_owned(), token)).collect();
    let parts = Parts { tokens, special, templates: templates(metadata)? };
    Ok(Tokenizer { parts: parts.into(), stop_tokens })
}

/// What the metadata says of the tokens.
struct Vocabulary<'a> {
    tokens: &'a Texts,
    kinds: Vec<Kind>,
    form: Form,
    /// Whether the tokens have scores, and not a list of pairs.
    scored: bool,
    phi3: bool,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, Wrong> {
        let model = metadata.text(MODEL).map_err(text)?.ok_or_else(|| missing(MODEL))?;
        let pre = metadata.text(PRE).map_err(text)?.unwrap_or("default");
        let prefix = metadata.bool("tokenizer.ggml.add_space_prefix").map_err(text)?;
        let form = match (model, pre) {
            ("llama", _) => Form::Spaces { begins_with_space: prefix.unwrap_or(true) },
            ("gemma4", _) | ("gpt2", "gemma4") => Form::Spaces { begins_with_space: false },
            ("gpt2", pre) => Form::Bytes(WordSplit::named(pre).ok_or_else(|| unknown_pre(pre))?),
            (model, _) => {
                return Err(format!(
                    "{MODEL} is {model:?}, which is not supported; known are llama, gpt2 and gemma4"
                ));
            }
        };
        let tokens = metadata.texts(TOKENS).map_err(text)?.ok_or_else(|| missing(TOKENS))?;
        if tokens.is_empty() {
            return Err(format!("{TOKENS} is empty"));
        }
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, token)| token.len() > LONGEST_TOKEN) {
            let length = token.len();
            return Err(format!("{TOKENS}[{id}] has {length} bytes, and may have at most {LONGEST_TOKEN}"));
        }
        let kinds = match metadata.integers(TYPES).map_err(text)? {
            Some(types) => {
                same_length(TYPES, types.len(), tokens)?;
                types.iter().map(|&number| Kind::from_number(number)).collect()
            }
            None => vec![Kind::Normal; tokens.len()],
        };
        let architecture = metadata.text("general.architecture").map_err(text)?.unwrap_or_default();
        Ok(Self { tokens, kinds, form, scored: model == "llama", phi3: architecture == "phi3" })
    }

    /// The text and the kind of a token.
    fn token(&self, id: usize) -> (&'a str, Kind) {
        let text = self.tokens.get(id).unwrap_or_default();
        let kind = match self.kinds[id] {
            Kind::Unused if text != format!("[PAD{id}]") => Kind::Normal,
            Kind::Control if NOT_CONTROL.contains(&text) || text.starts_with("<unused") => Kind::UserDefined,
            kind => kind,
        };
        (text, kind)
    }

    fn all(&self) -> impl Iterator<Item = (&'a str, Kind)> {
        (0..self.tokens.len()).map(|id| self.token(id))
    }

    /// The id that a key names.
    fn id(&self, metadata: &Metadata, key: &str) -> Result<Option<usize>, Wrong> {
        let Some(id) = metadata.integer(key).map_err(text)? else { return Ok(None) };
        let known = usize::try_from(id).ok().filter(|&id| id < self.tokens.len());
        let wrong = || format!("{key} is {id}, and there are only {} tokens", self.tokens.len());
        known.map(Some).ok_or_else(wrong)
    }

    /// The special tokens by name, with their ids.
    fn named(&self, metadata: &Metadata) -> Result<Named, Wrong> {
        let mut named = BTreeMap::new();
        for (name, key, usual) in NAMED {
            let usual = usual.filter(|&id| {
                self.scored
                    && id < self.tokens.len()
                    && matches!(self.kinds[id], Kind::Control | Kind::Unknown)
            });
            let Some(id) = self.id(metadata, key)?.or(usual) else { continue };
            let (text, kind) = self.token(id);
            if text.is_empty() {
                return Err(format!("{key} is {id}, a token without a text"));
            }
            named.insert(name, (id, self.written(text, kind)));
        }
        Ok(named)
    }

    /// The tokens that end a text.
    fn ends(&self, metadata: &Metadata) -> Result<BTreeSet<u32>, Wrong> {
        let mut ends = BTreeSet::new();
        for key in
            ENDS.iter().chain(NAMED.iter().filter(|named| named.0 == "eos_token").map(|(_, key, _)| key))
        {
            ends.extend(self.id(metadata, key)?.map(|id| id as u32));
        }
        let control = self.all().zip(0..).filter(|((_, kind), _)| *kind == Kind::Control);
        ends.extend(control.filter(|((text, _), _)| ENDS_BY_NAME.contains(text)).map(|(_, id)| id));
        Ok(ends)
    }

    /// What puts the beginning and the end of a text around it.
    fn post_processor(&self, metadata: &Metadata, special: &Named) -> Result<Value, Wrong> {
        let begins = match self.form {
            Form::Spaces { .. } => true,
            Form::Bytes(split) => split.begins,
        };
        let mut around = [Vec::new(), Vec::new()];
        let mut tokens = serde_json::Map::new();
        let ends = [("add_bos_token", "bos_token", begins), ("add_eos_token", "eos_token", false)];
        for (place, (key, name, usual)) in around.iter_mut().zip(ends) {
            let adds = metadata.bool(&format!("tokenizer.ggml.{key}")).map_err(text)?.unwrap_or(usual);
            let Some((id, token)) = special.get(name).filter(|_| adds) else { continue };
            place.push(json!({"SpecialToken": {"id": token, "type_id": 0}}));
            tokens.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        if tokens.is_empty() {
            return Ok(Value::Null);
        }
        let [before, behind] = around;
        let sequence = |name, kind| {
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let mut pieces = before.clone();
            pieces.push(text);
            pieces.extend(behind.iter().cloned());
            pieces
        };
        let pair: Vec<Value> = sequence("A", 0).into_iter().chain(sequence("B", 1)).collect();
        Ok(json!({
            "type": "TemplateProcessing", "single": sequence("A", 0), "pair": pair, "special_tokens": tokens
        }))
    }

    fn pipeline(&self, metadata: &Metadata, special: &Named) -> Result<Pipeline, Wrong> {
        let model = self.bpe(metadata)?;
        let post_processor = self.post_processor(metadata, special)?;
        let built = |e: serde_json::Error| format!("the tokenizer cannot be built: {e}");
        let normalizer: Option<NormalizerWrapper> =
            serde_json::from_value(self.normalizer()).map_err(built)?;
        let pre_tokenizer: Option<PreTokenizerWrapper> =
            serde_json::from_value(self.pre_tokenizer()).map_err(built)?;
        let post_processor: Option<PostProcessorWrapper> =
            serde_json::from_value(post_processor).map_err(built)?;
        let decoder: Option<DecoderWrapper> = serde_json::from_value(self.decoder()).map_err(built)?;
        let built = TokenizerBuilder::new()
            .with_model(AnyModel::Bpe(Box::new(model)))
            .with_normalizer(normalizer)
            .with_pre_tokenizer(pre_tokenizer)
            .with_post_processor(post_processor)
            .with_decoder(decoder)
            .build();
        let mut pipeline: Pipeline = built.map_err(|e| format!("the tokenizer cannot be built: {e}"))?;
        let added = check::guarded(|| pipeline.add_tokens(self.added_tokens()))?;
        added.map_err(|e| format!("{TOKENS}: {e}"))?;
        parts::make_special(&mut pipeline, special.values().map(|(_, token)| &**token))?;
        Ok(pipeline)
    }

    /// The tokens that are found in a text before it is cut into words.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let added = self.all().filter(|(text, kind)| {
            !text.is_empty() && matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown)
        });
        added
            .map(|(text, kind)| {
                // The tokens of Phi-3 take the white space behind them, which no key says.
                let takes_space =
                    self.phi3 && self.scored && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
                let special = kind != Kind::UserDefined;
                AddedToken::from(self.written(text, kind), special).normalized(false).rstrip(takes_space)
            })
            .collect()
    }

    /// The text of a token in a `tokenizer.json`. The converter wrote the spaces of user-defined tokens as such.
    fn written(&self, text: &str, kind: Kind) -> String {
        match self.form {
            Form::Spaces { .. } if kind == Kind::UserDefined => text.replace(' ', "▁"),
            _ => text.to_owned(),
        }
    }

    fn bpe(&self, metadata: &Metadata) -> Result<Bpe, Wrong> {
        let written = (0..self.tokens.len()).map(|id| match self.token(id) {
            (_, Kind::Unused) => String::new(),
            (text, kind) => self.written(text, kind),
        });
        let texts = TokenTexts::new(written).map_err(|(first, second)| {
            let text = self.token(second as usize).0;
            format!("{TOKENS}: {text:?} occurs twice, at {first} and at {second}")
        })?;
        let order = if self.scored { self.scores(metadata)? } else { listed(metadata, &texts)? };
        let whole_words = matches!(self.form, Form::Bytes(split) if split.whole_words);
        let spaces = matches!(self.form, Form::Spaces { .. });
        let bytes = spaces.then(|| byte_tokens(&texts));
        let unknown = (0..self.tokens.len()).find(|&id| spaces && self.kinds[id] == Kind::Unknown);
        let named = self.id(metadata, "tokenizer.ggml.unknown_token_id")?.filter(|_| spaces);
        let unknown = named.or(unknown).map(|id| id as u32);
        Ok(Bpe { texts, order, bytes, unknown, fuse_unknown: spaces, whole_words })
    }

    /// The order of tokens by their scores.
    fn scores(&self, metadata: &Metadata) -> Result<Order, Wrong> {
        let scores = metadata.floats(SCORES).map_err(text)?.ok_or_else(|| missing(SCORES))?;
        same_length(SCORES, scores.len(), self.tokens)?;
        let mut ids = Vec::new();
        for (id, (_, kind)) in self.all().enumerate() {
            if scores[id].is_nan() {
                return Err(format!("{SCORES}[{id}] is not a number"));
            }
            // The converter replaced the scores of user-defined tokens, which SentencePiece has as 0.
            let score = if kind == Kind::UserDefined { 0.0 } else { scores[id] };
            if matches!(kind, Kind::Normal | Kind::UserDefined) {
                ids.push((score, id));
            }
        }
        ids.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut places = vec![NEVER; self.tokens.len()];
        let mut place = 0;
        for (index, &(score, id)) in ids.iter().enumerate() {
            if index > 0 && score != ids[index - 1].0 {
                place += 1;
            }
            places[id] = place;
        }
        let ties = match self.form {
            Form::Spaces { begins_with_space: false } => Ties::LongestParts,
            _ => Ties::LowestIds,
        };
        Ok(Order::Scored { places, ties })
    }

    fn normalizer(&self) -> Value {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        match self.form {
            Form::Spaces { begins_with_space: true } => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
            }
            Form::Spaces { begins_with_space: false } => replace,
            Form::Bytes(split) => split.normalizer(),
        }
    }

    fn pre_tokenizer(&self) -> Value {
        match self.form {
            Form::Spaces { .. } => Value::Null,
            Form::Bytes(split) => split.pre_tokenizer(),
        }
    }

    fn decoder(&self) -> Value {
        let Form::Spaces { begins_with_space } = self.form else {
            return json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        };
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let mut decoders = vec![replace, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if begins_with_space {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": decoders})
    }
}

/// The pairs that a file lists, in the order of joining.
fn listed(metadata: &Metadata, texts: &TokenTexts) -> Result<Order, Wrong> {
    let merges = metadata.texts(MERGES).map_err(text)?.ok_or_else(|| missing(MERGES))?;
    let mut pairs = AHashMap::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let wrong = |problem: &str| format!("{MERGES}[{rank}] is {merge:?}: {problem}");
        // A part may begin with the space.
        let after_first = merge.chars().next().map_or(0, char::len_utf8);
        let Some(space) = merge[after_first..].find(' ').map(|place| after_first + place) else {
            return Err(wrong("it must be two tokens with a space between them"));
        };
        let (left, right) = (&merge[..space], &merge[space + 1..]);
        let place = |part: &str| texts.place(part).ok_or_else(|| wrong(&format!("{part:?} is no token")));
        let (first, second) = (place(left)?, place(right)?);
        let joined = texts.joined(first.hash, second.hash, right.len());
        let joined = joined.and_then(|hash| texts.id_of_parts(hash, left, right));
        let joined = joined.ok_or_else(|| wrong("its parts together are no token"))?;
        pairs.insert((first.id, second.id), (rank as u32, joined));
    }
    Ok(Order::Listed(pairs))
}

/// The chat templates by name.
fn templates(metadata: &Metadata) -> Result<BTreeMap<String, String>, Wrong> {
    let mut templates = BTreeMap::new();
    for (key, _) in metadata.iter() {
        let name = match key.strip_prefix(TEMPLATE) {
            Some("") => "default",
            Some(name) if name.starts_with('.') => &name[1..],
            _ => continue,
        };
        templates.insert(name.to_owned(), metadata.text(key).map_err(text)?.unwrap_or_default().to_owned());
    }
    Ok(templates)
}

fn same_length(key: &str, length: usize, tokens: &Texts) -> Result<(), Wrong> {
    if length == tokens.len() {
        return Ok(());
    }
    Err(format!("{key} has {length} elements, and there are {} tokens", tokens.len()))
}

fn missing(key: &str) -> Wrong {
    format!("metadata {key} is missing, so the file has no tokenizer that can be used")
}

fn unknown_pre(name: &str) -> Wrong {
    let known: Vec<&str> = WORD_SPLITS.iter().flat_map(|split| split.names).copied().collect();
    format!("{PRE} is {name:?}, which is not supported; known are {}", known.join(", "))
}

fn text(problem: Problem) -> Wrong {
    problem.to_string()
}

impl From<GgufError> for TokenizerError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}
