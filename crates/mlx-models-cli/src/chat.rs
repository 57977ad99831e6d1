//! `mlx-models chat`: a conversation with a model, at a terminal or through a pipe.

mod conversation;
mod lines;
mod saved;

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use mlx_models::generate::{GenerateError, Reuse};
use mlx_models::tokenizer::{ChatEnd, Message, TokenizerError};
use rustyline::error::ReadlineError;
use rustyline::history::History;
use rustyline::{Behavior, Config, DefaultEditor};

use crate::answer::Answer;
use crate::decoding::DecodingArguments;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::interrupt;
use crate::model::ModelArguments;
use crate::prompt::ChatArguments;
use crate::style::{Style, say, say_error, shown};
use conversation::Conversation;
use lines::{line, read_message};
use saved::{check_is_conversation, files, read_messages};

/// Tokens that can be removed from the cache at once where a layer has a window: a template may write the end of an answer in
/// another way than the model did.
const REWIND: usize = 64;
/// Lines of input that are remembered from one conversation to the next.
const HISTORY: usize = 1000;

/// Arguments of `mlx-models chat`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Resume the conversation that `/save NAME` saved
    #[arg(long, value_name = "NAME")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    decoding: DecodingArguments,
}

const HELP: &str = "\
/reset          start a new conversation
/retry          answer the last message again
/undo           remove the last message and its answer
/system TEXT    start a new conversation with this system prompt, or with none
/set NAME VALUE change a setting: temp, top-p, min-p, top-k, seed, max-tokens
/settings       show the settings
/save NAME      save the conversation to NAME.json and its cache to NAME.safetensors
/load NAME      load a conversation that /save saved
/quit           end the chat, as Ctrl-D does
A message may have several lines: end each but the last with \\, or put them between two lines of \"\"\".
Ctrl-C stops an answer.";

struct Chat {
    engine: Engine,
    arguments: ChatArguments,
    conversation: Conversation,
    /// Without a chat template the conversation is one text, and the model continues it.
    has_template: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { model, resume, chat: chat_arguments, decoding } = arguments;
    let loaded = model.load()?;
    let has_template = loaded.tokenizer.chat_templates().next().is_some();
    let engine = Engine::new(loaded, decoding, REWIND)?;
    let messages = chat_arguments.beginning();
    if !has_template {
        if !messages.is_empty() {
            return Err(TokenizerError::NoChatTemplate.into());
        }
        say(
            "note: the tokenizer has no chat template; the messages and answers form one text, which the model continues",
        );
    }
    let conversation = Conversation::new(messages);
    let mut chat = Chat { engine, arguments: chat_arguments, conversation, has_template };
    if let Some(name) = resume {
        chat.load(&name)?;
    }
    interrupt::install();
    if io::stdin().is_terminal() { chat.talk_at_terminal() } else { chat.talk_through_pipe() }
}

/// What to do after a line.
enum Next {
    GoOn,
    Quit,
}

impl Chat {
    fn talk_at_terminal(&mut self) -> Result<(), Failure> {
        let failed = |e: ReadlineError| Failure::Io {
            doing: "reading a line from the terminal".to_owned(),
            source: io::Error::other(e),
        };
        // The prompt is shown at the terminal even if the answers go to a file or a pipe.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).build();
        let mut editor = DefaultEditor::with_config(config).map_err(failed)?;
        // Without a helper the line editor ignores the style of its prompt.
        editor.set_helper(Some(()));
        editor.history_mut().set_max_len(HISTORY).map_err(failed)?;
        let history = crate::demo::cache_folder().map(|folder| folder.join("mlx-models/chat-history"));
        // The first conversation has no history.
        if let Some(file) = history.as_ref().filter(|file| mlx_files::is_present(file).unwrap_or(false)) {
            let _ = editor.load_history(file);
        }
        say("/help lists the commands");
        loop {
            let mut line = |prompt: &str| editor.readline(&(prompt, Style::Prompt.paint(prompt)));
            let text = match read_message(|prompt| interrupt::waiting(|| line(prompt))) {
                Ok(text) => text,
                // Ctrl-C discards the line and does not end the conversation.
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => break,
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
                    say("note: the line has a byte that is not UTF-8 text, and is discarded");
                    continue;
                }
                Err(e) => return Err(failed(e)),
            };
            if text.trim().is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(&text);
            // A Ctrl-C from before this message does not stop its answer.
            interrupt::forget();
            match self.hear(&text) {
                Ok(Next::GoOn) => {}
                Ok(Next::Quit) => break,
                Err(e @ Failure::Output(_)) => return Err(e),
                // A wrong command or a full context does not end the conversation.
                Err(e) => say_error(&e.in_full()),
            }
            interrupt::forget();
            if interrupt::ended() {
                break;
            }
        }
        let Some(file) = history else { return Ok(()) };
        if let Some(folder) = file.parent() {
            let _ = fs::create_dir_all(folder);
        }
        // Two conversations may end at once: the line editor locks the file, and keeps what the other one wrote. A history that
        // cannot be written is no error.
        if mlx_files::check_replaceable(&file).is_ok() {
            let _ = editor.append_history(&file);
        }
        Ok(())
    }

    /// Reads the lines of a script. The first error ends the program.
    fn talk_through_pipe(&mut self) -> Result<(), Failure> {
        let mut input = io::stdin().lock();
        let mut next = |_: &str| match interrupt::waiting(|| line(&mut input)) {
            Ok(None) => Err(ReadlineError::Eof),
            Ok(Some(line)) => Ok(line),
            Err(e) => Err(ReadlineError::Io(e)),
        };
        loop {
            let text = match read_message(&mut next) {
                Ok(text) => text,
                Err(ReadlineError::Io(source)) => {
                    return Err(Failure::Io { doing: "reading standard input".to_owned(), source });
                }
                Err(_) => return Ok(()),
            };
            if text.trim().is_empty() {
                continue;
            }
            if matches!(self.hear(&text)?, Next::Quit) || interrupt::requested() {
                return Ok(());
            }
        }
    }

    /// Does what a line asks for: answers a message, or runs a command.
    fn hear(&mut self, text: &str) -> Result<Next, Failure> {
        if let Some(command) = text.strip_prefix('/') {
            return self.command(command);
        }
        let follows_user = self.conversation.last_is("user");
        self.conversation.push(Message::user(text));
        let answered = self.answer();
        if !matches!(answered, Ok(true)) {
            // A message without an answer is not part of the conversation.
            self.conversation.pop();
        }
        if answered.is_err() && follows_user {
            say("note: the last message has no answer; /retry answers it, and /undo removes it");
        }
        answered.map(|_| Next::GoOn)
    }

    fn command(&mut self, command: &str) -> Result<Next, Failure> {
        let (command, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (command, rest) {
            ("help", _) => say(HELP),
            ("quit" | "exit", _) => return Ok(Next::Quit),
            ("reset", _) => self.reset()?,
            ("system", text) => {
                if !self.has_template {
                    return Err(TokenizerError::NoChatTemplate.into());
                }
                self.arguments.system_prompt = (!text.is_empty()).then(|| text.to_owned());
                self.reset()?;
            }
            ("undo", _) => {
                self.conversation.pop_if("assistant");
                self.conversation.pop_if("user");
            }
            ("retry", _) => self.retry()?,
            ("settings", _) => say(&self.engine.settings()),
            ("set", rest) => {
                let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                self.engine.set(name, value.trim()).map_err(Failure::Arguments)?;
            }
            ("save" | "load", "") => {
                return Err(Failure::Arguments(format!("/{command} NAME: a name is needed")));
            }
            ("save", name) => self.save(Path::new(name))?,
            ("load", name) => self.load(Path::new(name))?,
            _ => return Err(Failure::Arguments(format!("there is no command /{command}; /help lists them"))),
        }
        Ok(Next::GoOn)
    }

    /// Starts a new conversation.
    fn reset(&mut self) -> Result<(), Failure> {
        self.conversation = Conversation::new(self.arguments.beginning());
        self.engine.reset()
    }

    /// Answers the last message again. If that fails, the old answer stays.
    fn retry(&mut self) -> Result<(), Failure> {
        let old = self.conversation.pop_if("assistant");
        let answered = if self.conversation.last_is("user") {
            self.answer()
        } else {
            Err(Failure::Arguments("/retry: there is nothing to answer yet".to_owned()))
        };
        if !matches!(answered, Ok(true)) {
            old.into_iter().for_each(|turn| self.conversation.put_back(turn));
        }
        answered.map(|_| ())
    }

    /// Answers the last message. False if Ctrl-C came before the first token.
    fn answer(&mut self) -> Result<bool, Failure> {
        let text = self.text()?;
        let (reuse, rest) = self.engine.session.turn_to(&*self.engine.model, &text)?;
        if let Reuse::ReadAgain { tokens } = reuse {
            say(&format!("note: {tokens} tokens are read again"));
        }
        let rest = rest.to_vec();
        let answer = self.engine.answer(&rest, &mut |piece| {
            let mut out = io::stdout().lock();
            out.write_all(shown(piece).as_bytes())?;
            out.flush()
        })?;
        writeln!(io::stdout())?;
        if answer.finish_reason == "context_full" {
            say(
                "note: the model's context is full; /reset starts a new conversation, and --slide continues beyond the context",
            );
        }
        let Answer { text, mut tokens, finish_reason, .. } = answer;
        if finish_reason == "interrupted" && tokens.is_empty() {
            return Ok(false);
        }
        // The conversation keeps the tokens of the answer, so that nothing is read twice. The stop token is not kept: it would
        // end the conversation. After a stop string no tokens are kept, since they go on after the text.
        if finish_reason == "stop_token" {
            tokens.pop();
        }
        self.conversation.push_answer(&text, (finish_reason != "stop_string").then_some(tokens));
        Ok(true)
    }

    /// The tokens of the whole conversation.
    fn text(&mut self) -> Result<Vec<u32>, Failure> {
        let tokenizer = &self.engine.tokenizer;
        if self.has_template {
            let options = self.arguments.options(ChatEnd::Answer)?;
            return Ok(tokenizer.chat(&self.conversation.messages(), &options)?.tokens);
        }
        self.conversation.plain_text(tokenizer)
    }

    fn save(&self, name: &Path) -> Result<(), Failure> {
        let (conversation, cache) = files(name);
        let text = serde_json::to_string_pretty(&self.conversation.messages()).map_err(io::Error::from)?;
        let io = |source| Failure::Io { doing: format!("writing {}", conversation.display()), source };
        // Both files are checked before the first is written.
        check_is_conversation(&conversation).map_err(io)?;
        mlx_models::check_destination(&cache).map_err(GenerateError::from)?;
        mlx_files::write(&conversation, format!("{text}\n")).map_err(io)?;
        self.engine.session.save(&*self.engine.model, &cache)?;
        say(&format!("saved in {} and {}", conversation.display(), cache.display()));
        Ok(())
    }

    fn load(&mut self, name: &Path) -> Result<(), Failure> {
        let (conversation, cache) = files(name);
        let io = |source| Failure::Io { doing: format!("reading {}", conversation.display()), source };
        let messages = read_messages(&conversation).map_err(io)?;
        // Without the cache, all messages are read again.
        let is_there = mlx_files::is_present(&cache);
        let in_cache = |source| Failure::Io { doing: format!("reading {}", cache.display()), source };
        if is_there.map_err(in_cache)? {
            self.engine.load_session(&cache)?;
            let session = &self.engine.session;
            if session.ids()?.len() != session.offset() as usize {
                say("note: the cache file has no token ids, as those of mlx-lm; the messages are read again");
                self.engine.reset()?;
            }
        } else {
            self.engine.reset()?;
        }
        self.conversation = Conversation::new(messages);
        say(&format!("{} messages, {} tokens", self.conversation.len(), self.engine.session.offset()));
        Ok(())
    }
}
