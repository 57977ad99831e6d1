//! Which tokens end a text: what the configs of a checkpoint say.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use crate::TokenizerError;

/// `eos_token_id` of `generation_config.json` and `config.json`, `eos_token` of
/// `tokenizer_config.json`, all together: a checkpoint's files do not always agree, and a token that
/// any of them calls the end is not one to print.
pub(crate) fn read(folder: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    let mut stop = BTreeSet::new();
    for name in ["generation_config.json", "config.json"] {
        let value = key_of(folder, name, "eos_token_id")?;
        let ids = ids(&value).ok_or_else(|| TokenizerError::Invalid {
            file: folder.join(name),
            problem: format!("eos_token_id is {value}, and must be a token id or a list of them"),
        })?;
        stop.extend(ids);
    }
    let name = "tokenizer_config.json";
    match key_of(folder, name, "eos_token")? {
        Value::Null => {}
        // A token, or an object that describes one.
        value => match value.get("content").unwrap_or(&value).as_str() {
            Some(token) => stop.extend(tokenizer.token_to_id(token)),
            None => {
                let problem =
                    format!("eos_token is {value}, and must be a token or an object with its content");
                return Err(TokenizerError::Invalid { file: folder.join(name), problem });
            }
        },
    }
    Ok(stop.into_iter().collect())
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => Some(vec![id(value)?]),
    }
}

/// A key of a config; null where there is no such key or no such file.
fn key_of(folder: &Path, name: &str, key: &str) -> Result<Value, TokenizerError> {
    let file = folder.join(name);
    let invalid = |problem: String| TokenizerError::Invalid { file: file.clone(), problem };
    match std::fs::read_to_string(&file) {
        Ok(text) => match serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))? {
            Value::Object(mut config) => Ok(config.remove(key).unwrap_or_default()),
            other => Err(invalid(format!("{other} is not an object"))),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(invalid(e.to_string())),
    }
}
