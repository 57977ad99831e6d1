//! The steps from a text to tokens, as a `tokenizer.json` describes them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokenizers::models::TrainerWrapper;
use tokenizers::{
    DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Result, Token, TokenizerBuilder, TokenizerImpl,
};

use crate::bpe::Bpe;
use crate::bpe_file;

/// A tokenizer of the `tokenizers` crate with a vocabulary of ours.
pub(crate) type Pipeline =
    TokenizerImpl<AnyModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// How a word becomes tokens.
#[derive(Debug)]
pub(crate) enum AnyModel {
    /// Byte-pair encoding, by this crate.
    Bpe(Box<Bpe>),
    /// A model of the `tokenizers` crate.
    Other(Box<ModelWrapper>),
}

/// Calls a method of the model.
macro_rules! of_model {
    ($self:ident, $model:ident => $call:expr) => {
        match $self {
            AnyModel::Bpe($model) => $call,
            AnyModel::Other($model) => $call,
        }
    };
}

impl Model for AnyModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        of_model!(self, model => model.tokenize(sequence))
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        of_model!(self, model => model.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        of_model!(self, model => model.id_to_token(id))
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        of_model!(self, model => model.get_vocab())
    }

    fn get_vocab_size(&self) -> usize {
        of_model!(self, model => model.get_vocab_size())
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        of_model!(self, model => model.save(folder, prefix))
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Bpe(model) => model.get_trainer().into(),
            Self::Other(model) => model.get_trainer(),
        }
    }
}

/// A model that this crate has. Others are an error.
impl<'de> Deserialize<'de> for AnyModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let model = bpe_file::File::deserialize(deserializer)?.model();
        Ok(Self::Bpe(Box::new(model.ok_or_else(|| D::Error::custom("a model of the tokenizers crate"))?)))
    }
}

/// Reads a `tokenizer.json`.
pub(crate) fn read(json: &[u8]) -> Result<Pipeline> {
    match serde_json::from_slice(json) {
        Ok(pipeline) => Ok(pipeline),
        Err(_) => with_other_model(&tokenizers::Tokenizer::from_bytes(json)?),
    }
}

/// The same tokenizer with a model of the `tokenizers` crate.
fn with_other_model(tokenizer: &tokenizers::Tokenizer) -> Result<Pipeline> {
    TokenizerBuilder::new()
        .with_model(AnyModel::Other(Box::new(tokenizer.get_model().clone())))
        .with_normalizer(tokenizer.get_normalizer().cloned())
        .with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned())
        .with_post_processor(tokenizer.get_post_processor().cloned())
        .with_decoder(tokenizer.get_decoder().cloned())
        .with_added_vocabulary(tokenizer.get_added_vocabulary().clone())
        .build()
}

impl Serialize for AnyModel {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        of_model!(self, model => model.serialize(serializer))
    }
}
