//! Which tokens end a text: what the configs of a checkpoint say.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::TokenizerError;

/// `generation_config.json` and `config.json`: ids.
#[derive(Deserialize, Default)]
struct ModelConfig {
    eos_token_id: Option<OneOrMany>,
}

/// `tokenizer_config.json`: the token itself.
#[derive(Deserialize, Default)]
struct TokenizerConfig {
    eos_token: Option<TextOrObject>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrObject {
    Text(String),
    Object { content: String },
}

/// All of them together: a checkpoint's files do not always agree, and a token that any of them
/// calls the end is not one to print.
pub(crate) fn read(folder: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    let mut stop = BTreeSet::new();
    for name in ["generation_config.json", "config.json"] {
        match parse::<ModelConfig>(folder, name)?.eos_token_id {
            Some(OneOrMany::One(id)) => stop.extend([id]),
            Some(OneOrMany::Many(ids)) => stop.extend(ids),
            None => {}
        }
    }
    let config: TokenizerConfig = parse(folder, "tokenizer_config.json")?;
    if let Some(TextOrObject::Text(token) | TextOrObject::Object { content: token }) = config.eos_token {
        stop.extend(tokenizer.token_to_id(&token));
    }
    Ok(stop.into_iter().collect())
}

/// A config, or an empty one where there is no such file.
fn parse<T: DeserializeOwned + Default>(folder: &Path, name: &str) -> Result<T, TokenizerError> {
    let file = folder.join(name);
    let invalid = |problem: String| TokenizerError::Invalid { file: file.clone(), problem };
    match std::fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| invalid(e.to_string())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(T::default()),
        Err(e) => Err(invalid(e.to_string())),
    }
}
