//! A conversation: its messages, and their tokens where there is no chat template.

use mlx_models::tokenizer::{Message, Tokenizer};

use crate::failure::Failure;
use crate::prompt;

/// The messages of a conversation, in order.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    turns: Vec<Turn>,
}

/// A message and its tokens.
#[derive(Debug)]
pub(super) struct Turn {
    message: Message,
    /// The tokens of this message, for a model without a chat template, which continues all messages as one text. They are
    /// computed when they are first needed; for an answer they are the tokens that the model chose.
    tokens: Option<Vec<u32>>,
}

impl Conversation {
    pub(super) fn new(messages: Vec<Message>) -> Self {
        Self { turns: messages.into_iter().map(|message| Turn { message, tokens: None }).collect() }
    }

    pub(super) fn messages(&self) -> Vec<Message> {
        self.turns.iter().map(|turn| turn.message.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    pub(super) fn push(&mut self, message: Message) {
        self.turns.push(Turn { message, tokens: None });
    }

    /// Adds an answer, and its tokens if they are exactly those of the text.
    pub(super) fn push_answer(&mut self, text: &str, tokens: Option<Vec<u32>>) {
        self.turns.push(Turn { message: Message::assistant(text), tokens });
    }

    /// Removes the last message.
    pub(super) fn pop(&mut self) -> Option<Turn> {
        self.turns.pop()
    }

    /// Removes the last message if it has this role.
    pub(super) fn pop_if(&mut self, role: &str) -> Option<Turn> {
        if self.last_is(role) { self.pop() } else { None }
    }

    /// Puts back a message that was removed.
    pub(super) fn put_back(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    pub(super) fn last_is(&self, role: &str) -> bool {
        self.turns.last().is_some_and(|turn| turn.message.role().as_deref() == Some(role))
    }

    /// The tokens of all messages as one text, for a model without a chat template.
    pub(super) fn plain_text(&mut self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
        let mut text = Vec::new();
        for (place, Turn { message, tokens }) in self.turns.iter_mut().enumerate() {
            if tokens.is_none() {
                let content = message.content().unwrap_or_default();
                *tokens = Some(match (place, message.role().as_deref()) {
                    (0, _) => tokenizer.encode(&content)?,
                    (_, Some("user")) => prompt::behind(tokenizer, &format!(" {content}"))?,
                    _ => prompt::behind(tokenizer, &content)?,
                });
            }
            text.extend(tokens.iter().flatten());
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::path::Path;

    use super::*;

    /// After messages were added and removed, the text is that of the messages that are left.
    #[test]
    fn the_text_is_that_of_the_messages() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/gemma3");
        let tokenizer = Tokenizer::from_folder(folder).unwrap();
        let mut conversation = Conversation::default();
        conversation.push(Message::user("Once upon a time"));
        let first = conversation.plain_text(&tokenizer).unwrap();
        assert_eq!(first, tokenizer.encode("Once upon a time").unwrap());
        conversation.push_answer(" there was", Some(vec![5, 6, 7]));
        let popped = ["assistant", "user", "user"].map(|role| conversation.pop_if(role).is_some());
        assert_eq!(popped, [true, true, false]);
        conversation.push(Message::user("The dog and the cat"));
        let second = tokenizer.encode("The dog and the cat").unwrap();
        assert_eq!(conversation.plain_text(&tokenizer).unwrap(), second);
        conversation.push_answer(" ran", Some(vec![8, 9]));
        conversation.push(Message::user("away"));
        let third = prompt::behind(&tokenizer, " away").unwrap();
        assert_eq!(conversation.plain_text(&tokenizer).unwrap(), [second, vec![8, 9], third].concat());
    }
}
