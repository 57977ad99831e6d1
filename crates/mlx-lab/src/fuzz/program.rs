//! Runs the program `mlx-models` with all kinds of options on the files of a case.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::folder::{self, Folder};
use super::kind::{LARGEST_MEMORY, Settings, Verdict};
use super::random::Random;
use super::values::{any_float, any_size, interesting_text};
use crate::memory;

/// The largest output; more is a fault.
const LONGEST_OUTPUT: u64 = 16 << 20;
/// The largest standard error; more is a fault.
const LONGEST_MESSAGES: usize = 64 << 10;

/// The kind of value that an option takes.
#[derive(Debug, Clone, Copy)]
enum Value {
    Flag,
    Size,
    Number,
    Text,
    /// Mostly one of these.
    Of(&'static [&'static str]),
    /// A path, to read or to write.
    File,
}

const MODEL: &[(&str, Value)] =
    &[("--longrope", Value::Of(&["by-length", "mlx-lm"])), ("--device", Value::Of(&["auto", "cpu", "gpu"]))];
const CACHE: &[(&str, Value)] = &[
    ("--max-kv-size", Value::Size),
    ("--slide", Value::Flag),
    ("--kv-bits", Value::Of(&["2", "3", "4", "8", "0", "1", "7"])),
    ("--kv-group-size", Value::Of(&["32", "64", "128", "0", "5"])),
    ("--quantized-kv-start", Value::Size),
    ("--prefill-step-size", Value::Size),
];
const PROMPT: &[(&str, Value)] = &[
    ("--ignore-chat-template", Value::Flag),
    ("--system-prompt", Value::Text),
    ("--chat-template-arg", Value::Of(&["a=b", "messages=1", "enable_thinking=true", "=", "a"])),
    ("--chat-template-config", Value::Of(&["{}", "{\"a\": 1e999}", "[1]", "{\"messages\": null}", "{"])),
    ("--chat-template", Value::Text),
];
const SAMPLING: &[(&str, Value)] = &[
    ("--min-tokens", Value::Size),
    ("--stop", Value::Text),
    ("--extra-eos-token", Value::Of(&["<|endoftext|>", "a", "0", "99999999999", ""])),
    ("--ignore-eos", Value::Flag),
    ("--temp", Value::Number),
    ("--top-p", Value::Number),
    ("--min-p", Value::Number),
    ("--min-tokens-to-keep", Value::Size),
    ("--top-k", Value::Size),
    ("--xtc-probability", Value::Number),
    ("--xtc-threshold", Value::Number),
    ("--seed", Value::Size),
    ("--logit-bias", Value::Of(&["1:5", "1:-inf", "1023:nan", "5000:1", ":", "-1:1"])),
    ("--repetition-penalty", Value::Number),
    ("--repetition-context-size", Value::Size),
    ("--presence-penalty", Value::Number),
    ("--frequency-penalty", Value::Number),
    ("--dry-multiplier", Value::Number),
    ("--dry-base", Value::Number),
    ("--dry-allowed-length", Value::Size),
    ("--dry-penalty-last-n", Value::Size),
    ("--dry-sequence-breaker", Value::Text),
    ("--draft-model", Value::Of(&["demo:gemma3", "demo:phi3", "/dev/null"])),
    ("--prompt-lookup", Value::Flag),
    ("--num-draft-tokens", Value::Size),
];
const GENERATE: &[(&str, Value)] = &[
    ("--no-escape", Value::Flag),
    ("--prefill-response", Value::Text),
    ("--prompt-cache-file", Value::File),
    ("--top-logprobs", Value::Size),
    ("--json", Value::Flag),
    ("--verbose", Value::Of(&["true", "F", "maybe"])),
];
const PERPLEXITY: &[(&str, Value)] = &[
    ("--sequence-length", Value::Size),
    ("--stride", Value::Size),
    ("--no-bos", Value::Flag),
    ("--whole-pieces", Value::Flag),
    ("--json", Value::Flag),
];
const CONVERT: &[(&str, Value)] = &[
    ("--quantize", Value::Flag),
    ("--bits", Value::Of(&["2", "3", "4", "8", "0", "7"])),
    ("--group-size", Value::Of(&["32", "64", "128", "0"])),
    ("--mode", Value::Of(&["affine", "mxfp4", "mxfp8", "nvfp4"])),
    ("--recipe", Value::Of(&["mixed_2_6", "mixed_3_4", "mixed"])),
    ("--layers", Value::Of(&["*=4", "lm_head=none", "a=b", "=", "*_proj=8:32", "q_proj=mxfp4"])),
    ("--dequantize", Value::Flag),
    ("--dtype", Value::Of(&["float32", "float16", "bfloat16"])),
    ("--max-shard-size", Value::Of(&["1MB", "5GiB", "0", "1B", "99999999999999999999GB"])),
    ("--json", Value::Flag),
];
const BENCH: &[(&str, Value)] = &[("--json", Value::Flag), ("--prefill-step-size", Value::Size)];

/// Runs the program once.
pub(super) fn run(
    settings: &Settings,
    folder: &Folder,
    random: &mut Random,
    tell: &mut dyn FnMut(&str),
    outputs: &mut Vec<PathBuf>,
) -> io::Result<Verdict> {
    let home = folder.root.join("home");
    outputs.push(home.clone());
    fs::create_dir_all(&home)?;
    let mut command = Command::new(&settings.program);
    let arguments = arguments(folder, random, outputs)?;
    command
        .args(&arguments)
        .current_dir(&folder.root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // The program must not contact a server or write to other folders. Nothing listens on port 9 of this
    // machine.
    command
        .env("HOME", &home)
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("HF_ENDPOINT", "http://127.0.0.1:9");
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"]
    {
        command.env_remove(name);
    }
    let shown: Vec<String> = arguments.iter().map(|argument| shown(argument)).collect();
    tell(&format!("run mlx-models {}", shown.join(" ")));
    let input =
        [interesting_text(random), "/undo".to_owned(), "Hello".to_owned(), "/reset".to_owned()].join("\n");
    let ended = watch(command.spawn()?, input, settings.longest)?;
    Ok(judge(&ended, &arguments))
}

fn arguments(folder: &Folder, random: &mut Random, outputs: &mut Vec<PathBuf>) -> io::Result<Vec<String>> {
    let text = |path: &Path| path.display().to_string();
    let model =
        if random.once_in(6) { format!("demo:{}", random.one(&folder::DEMOS)) } else { text(&folder.model) };
    let verb = random.one(&[
        "generate",
        "generate",
        "generate",
        "chat",
        "cache-prompt",
        "perplexity",
        "bench",
        "convert",
        "inspect",
        "models",
        "download",
    ]);
    let mut arguments = vec![verb.to_owned()];
    let groups: &[&[(&str, Value)]] = match verb {
        "generate" => &[MODEL, CACHE, PROMPT, SAMPLING, SAMPLING, GENERATE],
        "chat" => &[MODEL, CACHE, PROMPT, SAMPLING],
        "cache-prompt" => &[MODEL, CACHE, PROMPT],
        "perplexity" => &[MODEL, PERPLEXITY],
        "bench" => &[MODEL, BENCH],
        "convert" => &[CONVERT],
        _ => &[],
    };
    match verb {
        "inspect" => arguments.push(model),
        "models" => {}
        "download" => arguments.push(without_nul(interesting_text(random))),
        _ => arguments.extend(["--model".to_owned(), model]),
    }
    arguments.extend(required(verb, folder, random, outputs)?);
    if let Some(adapters) = &folder.adapters
        && !groups.is_empty()
    {
        arguments.extend(["--adapters".to_owned(), text(adapters)]);
    }
    for _ in 0..if groups.is_empty() { 0 } else { random.below(6) } {
        let group = random.one(groups);
        let (name, value) = random.one(group);
        arguments.push(match value.random(folder, random, outputs)? {
            Some(value) => format!("{name}={}", without_nul(value)),
            None => name.to_owned(),
        });
    }
    Ok(arguments)
}

/// The arguments that a command needs besides its model.
fn required(
    verb: &str,
    folder: &Folder,
    random: &mut Random,
    outputs: &mut Vec<PathBuf>,
) -> io::Result<Vec<String>> {
    let mut arguments = Vec::new();
    match verb {
        "generate" => {
            arguments.extend(["--max-tokens".to_owned(), random.one(&["0", "1", "4", "6"]).to_string()]);
            arguments.push(format!("--prompt={}", without_nul(super::values::prompt(random))));
        }
        "chat" => arguments.extend(["--max-tokens".to_owned(), "3".to_owned()]),
        "cache-prompt" => {
            let file = place(folder, random, outputs)?;
            arguments.extend([
                "--prompt".to_owned(),
                "Once".to_owned(),
                "--prompt-cache-file".to_owned(),
                file,
            ]);
        }
        "perplexity" => {
            let file = folder.root.join("text");
            fs::write(&file, super::values::prompt(random))?;
            if random.once_in(6) {
                folder::put_in_place(&file, random)?;
            }
            outputs.push(file.clone());
            arguments.push(file.display().to_string());
        }
        "bench" => arguments.extend(["-p", "5", "-g", "3", "-n", "1"].map(str::to_owned)),
        "convert" => {
            let out = place(folder, random, outputs)?;
            arguments.extend(["--out".to_owned(), out]);
        }
        _ => {}
    }
    Ok(arguments)
}

impl Value {
    /// A value of this kind; `None` for a flag.
    fn random(
        &self,
        folder: &Folder,
        random: &mut Random,
        outputs: &mut Vec<PathBuf>,
    ) -> io::Result<Option<String>> {
        Ok(Some(match self {
            Self::Flag => return Ok(None),
            Self::Size if random.once_in(6) => {
                random.one(&["-1", "", "1e3", "18446744073709551616", "0x10"]).to_string()
            }
            Self::Size => any_size(random).to_string(),
            Self::Number => any_float(random).to_string(),
            Self::Text => interesting_text(random),
            Self::Of(_) if random.once_in(6) => interesting_text(random),
            Self::Of(values) => (*random.one(values)).to_owned(),
            Self::File => place(folder, random, outputs)?,
        }))
    }
}

/// Arguments cannot contain a zero byte, and the system limits their length.
fn without_nul(text: String) -> String {
    text.replace('\0', "").chars().take(60_000).collect()
}

/// A path at which something may exist. Afterwards it may be replaced, unless it is one that must stay.
fn place(folder: &Folder, random: &mut Random, outputs: &mut Vec<PathBuf>) -> io::Result<String> {
    let place = match random.below(5) {
        0 => folder.model.join(random.one(&["model.safetensors", "config.json"])),
        1 => folder.model.clone(),
        2 => {
            let special = folder.root.join("special");
            folder::put_in_place(&special, random)?;
            special
        }
        _ => folder.root.join("new"),
    };
    if !place.starts_with(&folder.model) {
        outputs.push(place.clone());
    }
    Ok(place.display().to_string())
}

/// The end of a program.
struct Ended {
    /// The exit status; `None` if a signal ended the program.
    status: Option<i32>,
    how: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The reason why we killed it.
    stopped: Option<String>,
}

/// Gives the program its input and waits for its end, within limits.
fn watch(mut child: Child, input: String, longest: Duration) -> io::Result<Ended> {
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(stream) = stream {
                // A stream that is not read to its end is closed, which ends the writer.
                let _ = stream.take(LONGEST_OUTPUT + 1).read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    if let Some(mut stdin) = child.stdin.take() {
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let started = Instant::now();
    let mut stopped = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let used = memory::peak(&child.id().to_string());
        if started.elapsed() > longest {
            stopped = Some(format!("no end in {} s", longest.as_secs()));
        } else if used > LARGEST_MEMORY {
            stopped = Some(format!("{} MB of memory", used >> 20));
        }
        if stopped.is_some() {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let bytes = |reader: thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (bytes(stdout), bytes(stderr));
    Ok(Ended { status: status.code(), how: status.to_string(), stdout, stderr, stopped })
}

fn judge(ended: &Ended, arguments: &[String]) -> Verdict {
    let messages = String::from_utf8_lossy(&ended.stderr);
    let start: String = messages.chars().take(400).collect();
    let fault = |what: String| {
        let arguments: Vec<String> = arguments.iter().map(|argument| shown(argument)).collect();
        Verdict::Fault(format!("{what}: mlx-models {}: {start}", arguments.join(" ")))
    };
    if let Some(why) = &ended.stopped {
        return fault(why.clone());
    }
    if messages.contains("panicked at") {
        return fault("a panic".to_owned());
    }
    // Errors about wrong arguments repeat them as they are, also with control characters.
    if ended.status != Some(2) {
        if messages.len() > LONGEST_MESSAGES {
            return fault(format!("{} bytes of messages", messages.len()));
        }
        if let Some(control) = messages.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            return fault(format!("a control character {control:?} in a message"));
        }
    }
    let is_about = matches!(arguments.first().map(String::as_str), Some("inspect" | "convert"));
    if is_about && ended.stdout.iter().any(|&byte| byte < b' ' && !matches!(byte, b'\n' | b'\t')) {
        return fault("a control character in the output".to_owned());
    }
    if ended.stdout.len() as u64 > LONGEST_OUTPUT {
        return fault("output of unlimited length".to_owned());
    }
    match ended.status {
        Some(0) => match is_json(&ended.stdout, arguments) {
            true => Verdict::Accepted,
            false => fault("output of --json that is not JSON".to_owned()),
        },
        Some(1 | 2) if messages.trim().is_empty() => fault("an error without a message".to_owned()),
        Some(1) => Verdict::Refused(messages.into_owned()),
        Some(2) => Verdict::Refused(start),
        _ => fault(format!("ended by {}", ended.how)),
    }
}

/// Whether the output is one JSON object, if one was asked for.
fn is_json(output: &[u8], arguments: &[String]) -> bool {
    !arguments.iter().any(|argument| argument == "--json")
        || serde_json::from_slice::<serde_json::Value>(output).is_ok_and(|value| value.is_object())
}

fn shown(argument: &str) -> String {
    let short: String = argument.chars().take(80).collect();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=".contains(c);
    if short == argument && short.chars().all(is_plain) { short } else { format!("{short:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_is_a_fault() {
        let ended = |status, stdout: &str, stderr: &str| Ended {
            status,
            how: "some signal".to_owned(),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
            stopped: None,
        };
        let arguments = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let is_fault =
            |ended: &Ended, texts: &[&str]| matches!(judge(ended, &arguments(texts)), Verdict::Fault(_));
        let generate: &[&str] = &["generate", "--json"];
        assert!(!is_fault(&ended(Some(0), "{}", ""), generate));
        assert!(!is_fault(&ended(Some(1), "", "error: no"), generate));
        for (status, stdout, stderr) in [
            (None, "{}", ""),
            (Some(101), "", "thread 'main' panicked at src/main.rs"),
            (Some(134), "", "error"),
            (Some(0), "{} {}", ""),
            (Some(1), "", ""),
            (Some(1), "", "error: \u{1b}[2J"),
        ] {
            assert!(is_fault(&ended(status, stdout, stderr), generate), "{status:?} {stdout} {stderr}");
        }
        assert!(is_fault(&ended(Some(1), "", &"a".repeat(LONGEST_MESSAGES + 1)), generate));
        assert!(is_fault(&ended(Some(0), "model\u{1b}[31m", ""), &["inspect", "x"]));
    }
}
