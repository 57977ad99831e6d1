//! Writes a tokenizer as the files of a checkpoint folder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::vocabulary::Tokens;
use crate::{Tokenizer, TokenizerError};

impl Tokenizer {
    /// The files of a checkpoint folder that describe this tokenizer, each with its path in the folder and its contents:
    /// `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` with the stop tokens, and the chat templates.
    /// [`from_folder`](Self::from_folder), transformers and mlx-lm read them. A tokenizer from a GGUF file becomes a folder this
    /// way.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Parts`] if the tokenizer has a [vocabulary of your own](Self::from_vocabulary), or a chat template whose
    /// name is no file name.
    pub fn files(&self) -> Result<Vec<(PathBuf, String)>, TokenizerError> {
        let wrong = |problem: String| TokenizerError::Parts { problem };
        let Tokens::Json(pipeline) = &self.parts.tokens else {
            return Err(wrong("a vocabulary of your own has no tokenizer.json".to_owned()));
        };
        let tokenizer = pipeline.to_string(false).map_err(|e| wrong(e.to_string()))?;
        let mut added: Vec<_> = pipeline.get_added_vocabulary().get_added_tokens_decoder().iter().collect();
        added.sort_unstable_by_key(|(id, _)| **id);
        let mut files = vec![
            ("tokenizer.json".into(), tokenizer),
            ("tokenizer_config.json".into(), indented(&self.tokenizer_config(&added))),
        ];
        if !self.stop_tokens.is_empty() {
            files.push(("generation_config.json".into(), indented(&self.generation_config())));
        }
        for (name, template) in &self.parts.templates {
            files.push((template_file(name).map_err(wrong)?, template.clone()));
        }
        Ok(files)
    }

    fn tokenizer_config(&self, added: &[(&u32, &AddedToken)]) -> Value {
        let mut config = Map::new();
        let described = |token: &AddedToken| {
            json!({
                "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
            })
        };
        let tokens: Map<_, _> = added.iter().map(|(id, token)| (id.to_string(), described(token))).collect();
        config.insert("added_tokens_decoder".to_owned(), tokens.into());
        config.extend(self.parts.special.iter().map(|(name, token)| (name.clone(), token.clone().into())));
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        config.into()
    }

    fn generation_config(&self) -> Value {
        let mut config = Map::new();
        for (name, key) in [("bos_token", "bos_token_id"), ("pad_token", "pad_token_id")] {
            let id = self.special_token(name).and_then(|token| self.token_id(token));
            config.extend(id.map(|id| (key.to_owned(), id.into())));
        }
        config.insert("eos_token_id".to_owned(), self.stop_tokens.clone().into());
        config.into()
    }
}

fn indented(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The file of a chat template.
fn template_file(name: &str) -> Result<PathBuf, String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match name {
        "default" => Ok("chat_template.jinja".into()),
        name if !name.is_empty() && name.bytes().all(known) => {
            Ok(Path::new("additional_chat_templates").join(format!("{name}.jinja")))
        }
        name => Err(format!("the chat template {name:?} has a name that cannot be a file name")),
    }
}
