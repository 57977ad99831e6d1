//! What a tokenizer is made of, and tokenizers that are made without a checkpoint folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokenizers::AddedToken;

use crate::pipeline::{self, Pipeline};
use crate::vocabulary::{Own, Tokens, missing};
use crate::{Tokenizer, TokenizerError, Vocabulary, check};

/// What a tokenizer is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) tokens: Tokens,
    /// Special tokens by name, such as `bos_token`.
    pub(crate) special: BTreeMap<String, String>,
    /// Chat templates by name.
    pub(crate) templates: BTreeMap<String, String>,
}

/// What a tokenizer of your own needs beside its vocabulary. A checkpoint folder has it in several files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerParts {
    /// Special tokens by the name that chat templates have for them, such as `bos_token`. `eos_token` is a stop token.
    pub special_tokens: BTreeMap<String, String>,
    /// Special tokens without a name, such as the marks around the turns of a conversation.
    pub extra_special_tokens: Vec<String>,
    /// Further stop tokens, each given by its text or its id.
    pub stop_tokens: Vec<String>,
    /// The chat template, a program in Jinja2.
    pub chat_template: Option<String>,
}

impl TokenizerParts {
    fn special(&self) -> impl Iterator<Item = &str> {
        let all = self.special_tokens.values().chain(&self.extra_special_tokens).map(String::as_str);
        all.filter(|token| !token.is_empty())
    }
}

impl Tokenizer {
    /// A tokenizer with a vocabulary of your own. It does what a checkpoint's tokenizer does: chat templates, streams of
    /// text, stop strings.
    ///
    /// ```
    /// use std::borrow::Cow;
    /// use std::error::Error;
    ///
    /// use mlx_tokenizer::{Tokenizer, TokenizerParts, Vocabulary};
    ///
    /// /// Each token is a word, and a space follows it.
    /// #[derive(Debug)]
    /// struct Words(Vec<&'static str>);
    ///
    /// impl Vocabulary for Words {
    ///     fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
    ///         let id = |word| self.id(&format!("{word} ")).ok_or_else(|| format!("no token for {word:?}").into());
    ///         text.split_whitespace().map(id).collect()
    ///     }
    ///     fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
    ///         self.0.get(id as usize).map(|word| word.as_bytes().into())
    ///     }
    ///     fn size(&self) -> u32 {
    ///         self.0.len() as u32
    ///     }
    /// }
    ///
    /// let words = Words(vec!["<end>", "a ", "red ", "fox "]);
    /// let special_tokens = [("eos_token".to_owned(), "<end>".to_owned())].into();
    /// let parts = TokenizerParts { special_tokens, ..TokenizerParts::default() };
    /// let tokenizer = Tokenizer::from_vocabulary(words, &parts)?;
    /// assert_eq!(tokenizer.encode("a fox<end>")?, [1, 3, 0]);
    /// assert_eq!(tokenizer.decode(&[1, 2, 3, 0])?, "a red fox ");
    /// assert_eq!(tokenizer.stop_tokens(), [0]);
    /// # Ok::<(), mlx_tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Parts`] if the vocabulary does not have a special token, [`TokenizerError::UnknownToken`] if it
    /// does not have a stop token.
    pub fn from_vocabulary(
        vocabulary: impl Vocabulary + 'static,
        parts: &TokenizerParts,
    ) -> Result<Self, TokenizerError> {
        let own = Own::new(Box::new(vocabulary), parts.special());
        Self::from_tokens(Tokens::Own(own.map_err(|problem| TokenizerError::Parts { problem })?), parts)
    }

    /// A tokenizer from the contents of a `tokenizer.json`. The `tokenizers` crate writes one for each of its tokenizers,
    /// with `to_string`. A token that is named as special in `parts` is special, whatever the JSON says.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Parts`] if the JSON is invalid or does not have a special token, [`TokenizerError::UnknownToken`] if
    /// it does not have a stop token.
    pub fn from_json(json: &[u8], parts: &TokenizerParts) -> Result<Self, TokenizerError> {
        let read = || {
            let mut tokenizer = read_json(json)?;
            if let Some(token) = parts.special().find(|token| tokenizer.token_to_id(token).is_none()) {
                return Err(missing(token));
            }
            make_special(&mut tokenizer, parts.special())?;
            Ok(tokenizer)
        };
        let tokenizer = read().map_err(|problem| TokenizerError::Parts { problem })?;
        Self::from_tokens(Tokens::Json(Box::new(tokenizer)), parts)
    }

    fn from_tokens(tokens: Tokens, parts: &TokenizerParts) -> Result<Self, TokenizerError> {
        let special = parts.special_tokens.clone();
        let templates = parts.chat_template.iter().map(|text| ("default".to_owned(), text.clone())).collect();
        let mut tokenizer =
            Self { parts: Arc::new(Parts { tokens, special, templates }), stop_tokens: Vec::new() };
        let end = parts.special_tokens.get("eos_token").filter(|token| !token.is_empty());
        end.into_iter().chain(&parts.stop_tokens).try_for_each(|token| tokenizer.add_stop_token(token))?;
        Ok(tokenizer)
    }
}

/// Checks and reads a `tokenizer.json`. The error says what is wrong with it.
pub(crate) fn read_json(json: &[u8]) -> Result<Pipeline, String> {
    check::check(json)?;
    let read = check::guarded(|| pipeline::read(json));
    let mut tokenizer = read?.map_err(|e| e.to_string())?;
    check::check_whole(&tokenizer)?;
    // These settings are left over from training.
    tokenizer.with_padding(None).with_truncation(None).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// Makes tokens special that have the name of a special token, whatever `tokenizer.json` says.
pub(crate) fn make_special<'a>(
    tokenizer: &mut Pipeline,
    named: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let plain: Vec<AddedToken> = named
        .filter(|token| {
            tokenizer.token_to_id(token).is_some()
                && !tokenizer.get_added_vocabulary().is_special_token(token)
        })
        .map(|token| AddedToken::from(token, true))
        .collect();
    check::guarded(|| tokenizer.add_special_tokens(plain))?.map_err(|e| e.to_string())?;
    Ok(())
}
