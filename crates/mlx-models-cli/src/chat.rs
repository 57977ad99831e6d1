//! `mlx-models chat`: a conversation at a terminal.

mod conversation;

use std::fs;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use mlx_files::{LARGEST_TEXT, Partial};
use mlx_models::generate::{GenerateError, Reuse};
use mlx_models::tokenizer::{ChatEnd, Message, TokenizerError};
use rustyline::error::ReadlineError;
use rustyline::history::History;
use rustyline::{Behavior, Config, DefaultEditor};

use crate::engine::{Answer, DecodingArguments, Engine, ModelArguments};
use crate::failure::Failure;
use crate::interrupt;
use crate::prompt::ChatArguments;
use crate::style::{Style, say, say_error, shown};
use conversation::Conversation;

/// Tokens that can be taken back at once where a layer has a window: a template may write the end of an answer
/// in another way than the model did.
const REWIND: usize = 64;
/// Lines that are kept from one conversation to the next.
const HISTORY: usize = 1000;

/// Arguments of `mlx-models chat`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Go on with what `/save NAME` wrote
    #[arg(long, value_name = "NAME")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    decoding: DecodingArguments,
}

const HELP: &str = "\
/reset          forget the conversation
/retry          answer the last message again
/undo           take the last message and its answer back
/system TEXT    begin anew, with this system prompt; without a text, with none
/set NAME VALUE change a setting: temp, top-p, min-p, top-k, seed, max-tokens
/settings       show them
/save NAME      write the conversation to NAME.json and what was read to NAME.safetensors
/load NAME      go on with what /save wrote
/quit           end, as Ctrl-D does
A line that ends in \\ goes on in the next one; so does everything between two lines of \"\"\".
Ctrl-C stops an answer.";

struct Chat {
    engine: Engine,
    arguments: ChatArguments,
    conversation: Conversation,
    /// Without a chat template the conversation is one text, which the model continues.
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
        say("note: the tokenizer has no chat template; the model continues one common text");
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
        // Where the answers go into a file or a pipe, the prompt does not.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).build();
        let mut editor = DefaultEditor::with_config(config).map_err(failed)?;
        // Without a helper the line editor leaves out the style of its prompt.
        editor.set_helper(Some(()));
        editor.history_mut().set_max_len(HISTORY).map_err(failed)?;
        let history = crate::demo::cache_folder().map(|folder| folder.join("mlx-models/chat-history"));
        // None in the first conversation.
        if let Some(file) = history.as_ref().filter(|file| mlx_files::is_present(file).unwrap_or(false)) {
            let _ = editor.load_history(file);
        }
        say("/help lists the commands");
        loop {
            let mut line = |prompt: &str| editor.readline(&(prompt, Style::Prompt.paint(prompt)));
            let text = match read_message(|prompt| interrupt::waiting(|| line(prompt))) {
                Ok(text) => text,
                // A line that is given up, and not the conversation.
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => break,
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
                    say("note: a byte came that is not UTF-8 text; the line is given up");
                    continue;
                }
                Err(e) => return Err(failed(e)),
            };
            if text.trim().is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(&text);
            // Sent while nothing was underway, it is not about this answer.
            interrupt::forget();
            match self.hear(&text) {
                Ok(Next::GoOn) => {}
                Ok(Next::Quit) => break,
                Err(e @ Failure::Output(_)) => return Err(e),
                // A wrong command or a full context is no end of the conversation.
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
        // Two conversations may end at once: the line editor locks the file, and keeps what another one wrote. A history
        // that cannot be kept ends nothing.
        if mlx_files::check_replaceable(&file).is_ok() {
            let _ = editor.append_history(&file);
        }
        Ok(())
    }

    /// Lines of a script: the first thing that goes wrong ends it.
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

    /// A message, or a command.
    fn hear(&mut self, text: &str) -> Result<Next, Failure> {
        let Some(command) = text.strip_prefix('/') else {
            let follows_user = self.conversation.last_is("user");
            self.conversation.push(Message::user(text));
            let answered = self.answer();
            if !matches!(answered, Ok(true)) {
                // As if it had not been said.
                self.conversation.pop();
            }
            if answered.is_err() && follows_user {
                say("note: the last message has no answer; /retry answers it, and /undo takes it back");
            }
            return answered.map(|_| Next::GoOn);
        };
        let (command, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (command, rest) {
            ("help", _) => say(HELP),
            ("quit" | "exit", _) => return Ok(Next::Quit),
            ("reset", _) => {
                self.conversation = Conversation::new(self.arguments.beginning());
                self.engine.reset()?;
            }
            ("system", text) => {
                if !self.has_template {
                    return Err(TokenizerError::NoChatTemplate.into());
                }
                self.arguments.system_prompt = (!text.is_empty()).then(|| text.to_owned());
                self.conversation = Conversation::new(self.arguments.beginning());
                self.engine.reset()?;
            }
            ("undo", _) => {
                self.conversation.pop_if("assistant");
                self.conversation.pop_if("user");
            }
            ("retry", _) => {
                let old = self.conversation.pop_if("assistant");
                let answered = if self.conversation.last_is("user") {
                    self.answer()
                } else {
                    Err(Failure::Arguments("/retry: there is nothing to answer yet".to_owned()))
                };
                if !matches!(answered, Ok(true)) {
                    old.into_iter().for_each(|turn| self.conversation.put_back(turn));
                }
                answered?;
            }
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

    /// Answers the last message. False where Ctrl-C came before the first token.
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
            say("note: the model's context is full; /reset begins anew, and --slide goes on");
        }
        let Answer { text, mut tokens, finish_reason, .. } = answer;
        if finish_reason == "interrupted" && tokens.is_empty() {
            return Ok(false);
        }
        // What was read stays, token for token. An end of the text would be one of the conversation, and behind a stop
        // string the tokens go on where the text does not.
        if finish_reason == "stop_token" {
            tokens.pop();
        }
        self.conversation.push_answer(&text, (finish_reason != "stop_string").then_some(tokens));
        Ok(true)
    }

    /// The whole conversation as the model reads it.
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
        // Both before either is written.
        check_is_conversation(&conversation).map_err(io)?;
        mlx_models::check_destination(&cache).map_err(GenerateError::from)?;
        let partial = Partial::file(&conversation).map_err(io)?;
        writeln!(partial.as_file(), "{text}").map_err(io)?;
        partial.commit().map_err(io)?;
        self.engine.session.save(&*self.engine.model, &cache)?;
        say(&format!("saved in {} and {}", conversation.display(), cache.display()));
        Ok(())
    }

    fn load(&mut self, name: &Path) -> Result<(), Failure> {
        let (conversation, cache) = files(name);
        let io = |source| Failure::Io { doing: format!("reading {}", conversation.display()), source };
        let messages = read_messages(&conversation).map_err(io)?;
        // Without it, everything is read again.
        let is_there = mlx_files::is_present(&cache);
        let in_cache = |source| Failure::Io { doing: format!("reading {}", cache.display()), source };
        if is_there.map_err(in_cache)? {
            self.engine.load_session(&cache)?;
            let session = &self.engine.session;
            if session.ids()?.len() != session.offset() as usize {
                say(
                    "note: the cache came without the ids of its tokens, as mlx-lm's files do; everything is read again",
                );
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

fn files(name: &Path) -> (PathBuf, PathBuf) {
    let with = |extension: &str| {
        let mut name = name.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    (with(".json"), with(".safetensors"))
}

fn read_messages(file: &Path) -> io::Result<Vec<Message>> {
    Ok(serde_json::from_str(&mlx_files::read_to_string(file, LARGEST_TEXT)?)?)
}

/// `/save` replaces conversations and no other files.
fn check_is_conversation(file: &Path) -> io::Result<()> {
    let is_one = |messages: Vec<Message>| messages.iter().all(|message| message.role().is_some());
    if mlx_files::is_present(file)? && !read_messages(file).is_ok_and(is_one) {
        let problem = "it holds something other than a conversation, and is kept; choose another name";
        return Err(io::Error::new(ErrorKind::AlreadyExists, problem));
    }
    Ok(())
}

/// One message of one or several lines. Where the input ends in the middle of one, it is what has come.
fn read_message(
    mut line: impl FnMut(&str) -> Result<String, ReadlineError>,
) -> Result<String, ReadlineError> {
    let mut text = line("> ")?;
    if text.trim() == "\"\"\"" {
        let mut lines = Vec::new();
        loop {
            match line(". ") {
                Ok(end) if end.trim() == "\"\"\"" => return Ok(lines.join("\n")),
                Ok(next) => lines.push(next),
                Err(ReadlineError::Eof) if !lines.is_empty() => return Ok(lines.join("\n")),
                Err(e) => return Err(e),
            }
        }
    }
    while let Some(open) = text.strip_suffix('\\') {
        text = match line(". ") {
            Ok(next) => format!("{open}\n{next}"),
            Err(ReadlineError::Eof) => return Ok(open.to_owned()),
            Err(e) => return Err(e),
        };
    }
    Ok(text)
}

/// The next line of a file or pipe, without its end. Bytes that are not UTF-8 become replacement characters, and a
/// note says so.
fn line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    input.take(LARGEST_TEXT).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 == LARGEST_TEXT && bytes.last() != Some(&b'\n') {
        let problem = format!("a line is longer than {LARGEST_TEXT} bytes");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let end = end.strip_suffix(b"\r").unwrap_or(end);
    let text = String::from_utf8_lossy(end);
    if matches!(text, std::borrow::Cow::Owned(_)) {
        say("note: a line has bytes that are not UTF-8 text; they are read as replacement characters");
    }
    Ok(Some(text.into_owned()))
}
