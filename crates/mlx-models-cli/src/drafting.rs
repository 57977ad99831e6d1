//! Speculative decoding: what drafts tokens, from one answer to the next.

use mlx_models::generate::{Draft, DraftModel, GenerateOptions, PromptLookup, Session};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};

use crate::decoding::DecodingArguments;
use crate::failure::Failure;
use crate::model::ModelArguments;

/// What drafts tokens: a smaller model, or the text so far.
pub(crate) struct Drafting {
    model: Option<DraftingModel>,
    looks_up: bool,
    /// The most tokens that are drafted at a time.
    pub(crate) most: usize,
}

struct DraftingModel {
    model: Box<dyn CausalLm>,
    /// What it has read, between two answers.
    session: Option<Session>,
    /// Tokens that the other model does not have.
    never_proposed: Vec<u32>,
}

impl Drafting {
    pub(crate) fn new(arguments: &DecodingArguments, tokenizer: &Tokenizer) -> Result<Self, Failure> {
        let most = usize::from(arguments.num_draft_tokens);
        let model = match &arguments.draft_model {
            Some(draft) if most > 0 => {
                let draft = ModelArguments { model: Some(draft.clone()), ..ModelArguments::default() };
                Some(DraftingModel::load(draft, tokenizer)?)
            }
            _ => None,
        };
        Ok(Self { model, looks_up: arguments.prompt_lookup && most > 0, most })
    }

    /// Begins the drafts of one answer.
    pub(crate) fn start(&mut self, options: &GenerateOptions, rewind: i32) -> Result<Drafter<'_>, Failure> {
        match &mut self.model {
            Some(DraftingModel { model, session, never_proposed }) => {
                let empty = || model.new_cache(&CacheOptions { rewind, ..CacheOptions::default() });
                let session = session.take().map_or_else(|| empty().map(Session::new), Ok)?;
                let draft = DraftModel::new(&mut **model, options)?.with_session(session);
                Ok(Drafter::Model(Box::new(draft.never_proposing(never_proposed.clone()))))
            }
            None if self.looks_up => Ok(Drafter::Lookup(PromptLookup::default())),
            None => Ok(Drafter::None),
        }
    }

    /// Keeps what the draft model has read, for the next answer.
    pub(crate) fn keep(&mut self, read: Option<Session>) {
        if let Some(model) = &mut self.model {
            model.session = read;
        }
    }
}

impl DraftingModel {
    fn load(arguments: ModelArguments, tokenizer: &Tokenizer) -> Result<Self, Failure> {
        let (folder, options) = arguments.resolved()?;
        // The tokens first: a draft model with other tokens is refused before its weights are read.
        let shared = tokenizer.shared_tokens(&Tokenizer::open(&folder)?).map_err(|e| {
            Failure::Arguments(format!("the draft model has other tokens than the model: {e}"))
        })?;
        let never_proposed = shared.theirs_only().to_vec();
        Ok(Self { model: mlx_models::load_with(folder, &options)?, session: None, never_proposed })
    }
}

/// What drafts the tokens of one answer.
pub(crate) enum Drafter<'a> {
    Model(Box<DraftModel<'a>>),
    Lookup(PromptLookup),
    None,
}

impl<'a> Drafter<'a> {
    pub(crate) fn draft(&mut self) -> Option<&mut (dyn Draft + 'a)> {
        match self {
            Self::Model(draft) => Some(&mut **draft),
            Self::Lookup(lookup) => Some(lookup),
            Self::None => None,
        }
    }

    /// What the draft model has read.
    pub(crate) fn into_session(self) -> Option<Session> {
        match self {
            Self::Model(draft) => Some(draft.into_session()),
            Self::Lookup(_) | Self::None => None,
        }
    }
}
