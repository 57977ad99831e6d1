//! The program at a pseudo-terminal, with the keys of a user.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};
use serde_json::Value;
use tempfile::TempDir;

/// The time in milliseconds after which a test fails. Everything takes less.
const PATIENCE: u64 = 60_000;
const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";
/// An answer that does not end by itself.
const ENDLESS: [&str; 4] = ["--ignore-eos", "--slide", "--max-tokens", "1000000"];

/// A terminal with a shell that runs a chat, and prints its exit status and the terminal's settings before and after.
struct Terminal {
    session: PtySession,
    device: String,
    settings: String,
}

const SCRIPT: &str = r#"trap : INT; tty; stty echo; stty -g; eval "$REDIRECTED"; echo "status $?"; stty -g"#;

impl Terminal {
    fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", env!("CARGO_BIN_EXE_mlx-models")]).args(arguments);
        command.env("XDG_CACHE_HOME", folder.join("cache")).env("TERM", "xterm").env("NO_COLOR", "1");
        command.env("REDIRECTED", "\"$@\"").envs(environment.iter().copied());
        let mut session = spawn_command(command, Some(PATIENCE)).unwrap();
        let device = session.read_line().unwrap();
        let settings = session.read_line().unwrap();
        Self { session, device, settings }
    }

    fn chat(folder: &Path, options: &[&str]) -> Self {
        Self::chat_with(folder, options, &[])
    }

    fn chat_with(folder: &Path, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let model = folder.to_str().unwrap();
        let mut terminal = Self::run(folder, &[&["chat", "--model", model], options].concat(), environment);
        terminal.expect("/help lists the commands");
        terminal.expect("> ");
        terminal
    }

    fn expect(&mut self, text: &str) -> String {
        self.session.exp_string(text).unwrap()
    }

    fn press(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
        self.session.flush().unwrap();
    }

    /// Presses these keys and Return, and waits for the next prompt.
    fn say(&mut self, keys: &str) -> String {
        self.press(&format!("{keys}\r"));
        self.expect("\r\n");
        self.expect("> ")
    }

    /// The messages so far, with their roles.
    fn conversation(&mut self, folder: &Path) -> Vec<(String, String)> {
        let name = folder.join("kept");
        self.say(&format!("/save {}", name.display()));
        let text = fs::read_to_string(name.with_extension("json")).unwrap();
        let messages: Vec<Value> = serde_json::from_str(&text).unwrap();
        let part = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
        messages.iter().map(|message| (part(message, "role"), part(message, "content"))).collect()
    }

    /// Waits for the end of the program and answers its exit status. The terminal's settings must be restored.
    fn end(mut self) -> i32 {
        self.expect("status ");
        let status = self.session.read_line().unwrap().parse().unwrap();
        assert_eq!(self.session.read_line().unwrap(), self.settings, "the terminal's settings");
        self.session.exp_eof().unwrap();
        assert!(matches!(self.session.process().wait().unwrap(), WaitStatus::Exited(_, 0)));
        status
    }
}

/// A copy of a demo whose tokenizer has a chat template.
fn model() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/olmo3")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    fs::write(copy.path().join("chat_template.jinja"), template).unwrap();
    copy
}

#[test]
fn lines_are_edited_and_remembered() {
    let folder = model();
    let folder = folder.path();
    let mut terminal = Terminal::chat(folder, &["--max-tokens", "3"]);
    terminal.say(&format!("Helo{LEFT}l"));
    terminal.say("first \\\rsecond");
    // A terminal sends pasted text between these marks.
    terminal.say("\x1b[200~above\nbelow\x1b[201~");
    terminal.say("\"\"\"\rone\rtwo\r\"\"\"");
    let said: Vec<String> =
        terminal.conversation(folder).into_iter().step_by(2).map(|(_, content)| content).collect();
    assert_eq!(said, ["Hello", "first \nsecond", "above\nbelow", "one\ntwo"]);
    // Ctrl-C discards the line and does not end the conversation.
    terminal.press("never\x03");
    terminal.expect("> ");
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0);

    // The newest line is the /save command. Repeated, it is the newest line again.
    let mut terminal = Terminal::chat(folder, &["--max-tokens", "3"]);
    terminal.say(UP);
    terminal.say(&format!("{UP}{UP}again"));
    assert_eq!(terminal.conversation(folder)[0].1, "one\ntwoagain");
    terminal.press("/quit\r");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn commands_work_and_mistakes_do_not_end_the_chat() {
    let folder = model();
    let mut terminal = Terminal::chat(folder.path(), &["--max-tokens", "3"]);
    assert!(terminal.say("/nonsense").contains("error: there is no command /nonsense"));
    assert!(terminal.say("/set temp 0.5").is_empty_but_for_escapes());
    assert!(terminal.say("/settings").contains("temp        0.5"));
    assert!(terminal.say("/help").contains("/undo"));
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn ctrl_c_stops_an_answer_and_nothing_else() {
    let folder = model();
    let folder = folder.path();
    let mut terminal = Terminal::chat(folder, &ENDLESS);
    for _ in 0..2 {
        terminal.press("Tell me a story.\r");
        terminal.expect("Once upon");
        terminal.press("\x03");
        terminal.expect("> ");
    }
    let said = terminal.conversation(folder);
    let roles: Vec<&str> = said.iter().map(|(role, _)| &**role).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert!(said[3].1.contains("Once upon"));
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0, "stopping an answer is no interruption of the conversation");
}

#[test]
fn a_second_ctrl_c_ends_the_program() {
    let folder = model();
    let mut terminal = Terminal::chat(folder.path(), &ENDLESS);
    terminal.press("Tell me a story.\r");
    terminal.expect("Once upon");
    terminal.press("\x03\x03");
    // The program may have stopped the answer before the second Ctrl-C came.
    let (_, found) = terminal.session.exp_regex("status |> ").unwrap();
    if found == "> " {
        terminal.press("\x04");
        assert_eq!(terminal.end(), 0);
        return;
    }
    assert_eq!(terminal.session.read_line().unwrap(), "130");
    assert_eq!(terminal.session.read_line().unwrap(), terminal.settings);
}

#[test]
fn a_signal_ends_the_conversation_and_the_terminal_is_as_it_was() {
    let folder = model();
    let model = folder.path().to_str().unwrap();
    // The shell prints the number of the process first.
    // Signals have their defaults, even if the tests were started with one ignored (`nohup`).
    let env = if cfg!(target_os = "linux") { "env --default-signal=HUP" } else { "" };
    let numbered = format!(r#"sh -c 'echo "number $$"; exec {env} "$@"' sh "$@""#);
    let numbered = [("REDIRECTED", &*numbered)];
    let chat = || {
        let arguments = [&["chat", "--model", model], &ENDLESS[..]].concat();
        let mut terminal = Terminal::run(folder.path(), &arguments, &numbered);
        terminal.expect("number ");
        let number = terminal.session.read_line().unwrap();
        terminal.expect("> ");
        (terminal, number)
    };
    for (signal, status) in [("-TERM", 143), ("-HUP", 129)] {
        let send = |number: &str| Command::new("kill").args([signal, number.trim()]).status().unwrap();
        // A signal while the chat waits for a line.
        let (mut terminal, number) = chat();
        terminal.press("half a line");
        terminal.expect("line");
        assert!(send(&number).success());
        terminal.expect("\x1b[?2004l");
        assert_eq!(terminal.end(), status);
        // A signal while the chat answers.
        let (mut terminal, number) = chat();
        terminal.press("Tell me a story.\r");
        terminal.expect("Once upon");
        assert!(send(&number).success());
        assert_eq!(terminal.end(), status);
    }
}

#[test]
fn a_line_follows_the_width_of_the_terminal() {
    let folder = model();
    let folder = folder.path();
    let mut terminal = Terminal::chat(folder, &["--max-tokens", "3"]);
    terminal.press("abcdefghijklmnopqrst");
    terminal.expect("t");
    let name = if cfg!(target_os = "linux") { "-F" } else { "-f" };
    let resized = Command::new("stty").args([name, &terminal.device, "cols", "20"]).status();
    assert!(resized.unwrap().success());
    // The line is drawn again, with the cursor in the third column of the second line: two of its 22 characters.
    terminal.expect("> abcdefghijklmnopqrst\r\x1b[2C");
    terminal.say("");
    assert_eq!(terminal.conversation(folder)[0].1, "abcdefghijklmnopqrst");
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn a_redirected_output_has_only_the_answers() {
    let folder = model();
    let folder = folder.path();
    let file = folder.join("answers");
    let redirected = format!("\"$@\" > {}", file.display());
    let options = ["--max-tokens", "5"];
    let mut terminal = Terminal::chat_with(folder, &options, &[("REDIRECTED", &redirected)]);
    terminal.say("Hello");
    let answer = terminal.conversation(folder)[1].1.clone();
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0);
    assert_eq!(fs::read_to_string(file).unwrap(), format!("{answer}\n"));
}

#[test]
fn colours_are_used_on_terminals_without_no_color() {
    let folder = model();
    let folder = folder.path();
    let colourful = [("NO_COLOR", "")];
    let mut terminal = Terminal::chat_with(folder, &["--max-tokens", "3"], &colourful);
    terminal.press("/nonsense\r");
    terminal.expect("\x1b[1;31merror:\x1b[0m there is no command");
    terminal.expect("\x1b[1;32m> \x1b[0m");
    terminal.press("\x04");
    assert_eq!(terminal.end(), 0);

    let arguments = ["generate", "--prompt", "Once", "--max-tokens", "3"];
    let mut terminal = Terminal::run(folder, &arguments, &colourful);
    terminal.expect("\x1b[2mdevice: ");
    assert_eq!(terminal.end(), 0);
    let mut terminal = Terminal::run(folder, &arguments, &[]);
    assert!(terminal.expect("device: ").ends_with("\r\n"), "NO_COLOR");
    assert_eq!(terminal.end(), 0);
}

trait Escapes {
    /// Whether a text has only the control sequences of the line editor.
    fn is_empty_but_for_escapes(&self) -> bool;
}

impl Escapes for String {
    fn is_empty_but_for_escapes(&self) -> bool {
        let is_part = |c: char| c.is_ascii_digit() || "\x1b[?;\r\nhlKC".contains(c);
        self.chars().all(is_part)
    }
}
