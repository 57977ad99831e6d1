//! Reads the files beside `tokenizer.json`: special tokens, chat templates, stop tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::TokenizerError;
use crate::pipeline::Pipeline;

/// The special tokens that every model can have.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The name of a template if the model has only one.
const DEFAULT: &str = "default";

/// The maximum number of template files. Real folders have two.
const MOST_TEMPLATES: usize = 64;

/// Ends of turns in the templates of the supported models and related ones.
const ENDS_OF_TURN: [&str; 5] = ["<end_of_turn>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>"];

/// The contents of a folder's files, if they exist.
pub(crate) struct Config<'a> {
    folder: &'a Path,
    tokenizer_config: Map<String, Value>,
}

impl<'a> Config<'a> {
    pub(crate) fn read(folder: &'a Path) -> Result<Self, TokenizerError> {
        let mut tokenizer_config = object(&folder.join("tokenizer_config.json"))?;
        // Written by transformers before 4.34. If the file exists, it decides.
        if !tokenizer_config.contains_key("added_tokens_decoder") {
            tokenizer_config.extend(object(&folder.join("special_tokens_map.json"))?);
        }
        Ok(Self { folder, tokenizer_config })
    }

    /// The special tokens with a name: `bos_token` and the like, and further ones of the model, such as
    /// `image_token`.
    pub(crate) fn special_tokens(&self) -> Result<BTreeMap<String, String>, TokenizerError> {
        let mut tokens = BTreeMap::new();
        for (name, value) in &self.tokenizer_config {
            if !name.ends_with("_token") {
                continue;
            }
            match content(value) {
                Some(token) => {
                    tokens.insert(name.clone(), token.to_owned());
                }
                // Other keys that end in `_token` may be anything, such as the switch `add_bos_token`.
                None if !value.is_null() && NAMES.contains(&&**name) => {
                    let problem =
                        format!("{name} is {value}, and must be a token or an object with its content");
                    return Err(self.invalid(problem));
                }
                None => {}
            }
        }
        if let Some(Value::Object(named)) = self.tokenizer_config.get("extra_special_tokens") {
            let named =
                named.iter().filter_map(|(name, value)| Some((name.clone(), content(value)?.to_owned())));
            tokens.extend(named);
        }
        Ok(tokens)
    }

    /// Special tokens without a name.
    pub(crate) fn extra_special_tokens(&self) -> impl Iterator<Item = &str> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let lists = lists.into_iter().filter_map(|key| self.tokenizer_config.get(key)?.as_array());
        lists.flatten().filter_map(content)
    }

    /// The chat templates by name. They come from `chat_template.jinja` and the folder beside it, or else from
    /// `tokenizer_config.json`, or else from `chat_template.json`.
    pub(crate) fn chat_templates(&self) -> Result<BTreeMap<String, String>, TokenizerError> {
        let mut templates = BTreeMap::new();
        if let Some(text) = text(&self.folder.join("chat_template.jinja"))? {
            templates.insert(DEFAULT.to_owned(), text);
        }
        for file in jinja_files(&self.folder.join("additional_chat_templates"))? {
            if let (Some(name), Some(text)) = (file.file_stem(), text(&file)?) {
                templates.insert(name.to_string_lossy().into_owned(), text);
            }
        }
        if !templates.is_empty() {
            return Ok(templates);
        }
        let templates = self.templates_of(&self.tokenizer_config, "tokenizer_config.json")?;
        if !templates.is_empty() {
            return Ok(templates);
        }
        let name = "chat_template.json";
        self.templates_of(&object(&self.folder.join(name))?, name)
    }

    fn templates_of(
        &self,
        config: &Map<String, Value>,
        file: &str,
    ) -> Result<BTreeMap<String, String>, TokenizerError> {
        let invalid = || TokenizerError::Invalid {
            file: self.folder.join(file),
            problem: "chat_template must be a template or a list of objects with a name and a template"
                .to_owned(),
        };
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(Value::String(text)) => Ok([(DEFAULT.to_owned(), text.clone())].into()),
            Some(Value::Array(list)) => {
                let field = |entry: &Value, name| Some(entry.get(name)?.as_str()?.to_owned());
                let entry = |entry| Some((field(entry, "name")?, field(entry, "template")?));
                list.iter().map(entry).collect::<Option<_>>().ok_or_else(invalid)
            }
            Some(_) => Err(invalid()),
        }
    }

    /// The stop tokens.
    ///
    /// They are `eos_token_id` of `generation_config.json` and of `config.json`, and `eos_token` of
    /// `tokenizer_config.json`, all together: the files of a checkpoint do not always agree, and a token that
    /// any of them declares as the end should not be printed.
    ///
    /// Converted checkpoints have often lost the list of `generation_config.json`, and only declare the end of
    /// a text. If no template writes any of the declared tokens, the end of a turn that a template writes is
    /// added. If a template does write one, the declaration is complete.
    pub(crate) fn stop_tokens(
        &self,
        tokenizer: &Pipeline,
        special: &BTreeMap<String, String>,
        templates: &BTreeMap<String, String>,
    ) -> Result<BTreeSet<u32>, TokenizerError> {
        let mut stop = BTreeSet::new();
        for name in ["generation_config.json", "config.json"] {
            let file = self.folder.join(name);
            let value = object(&file)?.remove("eos_token_id").unwrap_or_default();
            let ids = ids(&value).ok_or_else(|| TokenizerError::Invalid {
                file,
                problem: format!("eos_token_id is {value}, and must be a token id or a list of them"),
            })?;
            stop.extend(ids);
        }
        stop.extend(special.get("eos_token").and_then(|token| tokenizer.token_to_id(token)));

        let written = |token: &str| templates.values().any(|template| template.contains(token));
        let knew = stop.iter().any(|&id| tokenizer.id_to_token(id).is_some_and(|token| written(&token)));
        if !knew {
            let ends = ENDS_OF_TURN.iter().filter(|token| written(token));
            stop.extend(ends.filter_map(|token| tokenizer.token_to_id(token)));
        }
        Ok(stop)
    }

    fn invalid(&self, problem: String) -> TokenizerError {
        TokenizerError::Invalid { file: self.folder.join("tokenizer_config.json"), problem }
    }
}

/// A token, or an object that describes one.
fn content(value: &Value) -> Option<&str> {
    value.get("content").unwrap_or(value).as_str()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => Some(vec![id(value)?]),
    }
}

fn jinja_files(folder: &Path) -> Result<Vec<PathBuf>, TokenizerError> {
    let invalid = |problem: std::io::Error| TokenizerError::Invalid {
        file: folder.to_owned(),
        problem: problem.to_string(),
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // A broken link was meant to lead to templates, so it is an error.
        Err(e) if e.kind() == ErrorKind::NotFound && fs::symlink_metadata(folder).is_err() => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(invalid(e)),
    };
    let files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    let files: Vec<_> =
        files.into_iter().filter(|file| file.extension().is_some_and(|of| of == "jinja")).collect();
    if files.len() > MOST_TEMPLATES {
        let problem =
            format!("there are {} templates, and at most {MOST_TEMPLATES} are allowed", files.len());
        return Err(TokenizerError::Invalid { file: folder.to_owned(), problem });
    }
    Ok(files)
}

/// The keys of a config; empty if there is no such file.
fn object(file: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let invalid = |problem: String| TokenizerError::Invalid { file: file.to_owned(), problem };
    let Some(text) = text(file)? else { return Ok(Map::new()) };
    match serde_json::from_str(&text).map_err(|e| invalid(format!("not valid JSON: {e}")))? {
        Value::Object(config) => Ok(config),
        other => Err(invalid(format!("{other} is not an object"))),
    }
}

/// The contents of a file; `None` if there is no such file.
fn text(file: &Path) -> Result<Option<String>, TokenizerError> {
    let read = || match mlx_files::is_present(file)? {
        true => mlx_files::read_to_string(file, mlx_files::LARGEST_CONFIG).map(Some),
        false => Ok(None),
    };
    read().map_err(|e: io::Error| TokenizerError::Invalid { file: file.to_owned(), problem: e.to_string() })
}

/// A file in the folder that contains another library's tokenizer.
pub(crate) fn other_tokenizer(folder: &Path) -> Option<String> {
    let is_there = |name: &str| folder.join(name).is_file();
    if let Some(name) =
        ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"].iter().find(|name| is_there(name))
    {
        return Some((*name).to_owned());
    }
    if is_there("vocab.json") && is_there("merges.txt") {
        return Some("vocab.json and merges.txt".to_owned());
    }
    if is_there("vocab.txt") {
        return Some("vocab.txt".to_owned());
    }
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".tiktoken")).min()
}
