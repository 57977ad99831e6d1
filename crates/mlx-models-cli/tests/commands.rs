//! The subcommands besides `generate`, and its options of caches and drafts, as a user or a script calls them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/signals.rs"]
mod signals;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use approx::assert_abs_diff_eq;
use serde_json::Value;

const STORY: &str = "In a little cottage by the sea lived a brave girl named Zoe.";

fn program() -> Command {
    let mut command = signals::program();
    // The tests do not touch the user's cache.
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    // On the CPU: the demos are in bfloat16, where rounding decides between tokens that are equally likely, and a GPU
    // rounds several tokens in one call otherwise than one by one.
    command.env("MLX_MODELS_DEVICE", "cpu");
    command
}

#[track_caller]
fn succeed(arguments: &[&str], input: &str) -> (String, String) {
    let output = run(arguments, input);
    let (out, said) = texts(&output);
    assert!(output.status.success(), "{arguments:?}: {said}");
    (out, said)
}

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = program();
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn story(options: &[&str]) -> Value {
    let arguments = [&["generate", "--json", "--prompt", STORY, "--max-tokens", "150"], options].concat();
    serde_json::from_str(&succeed(&arguments, "").0).unwrap()
}

/// A copy of a demo whose tokenizer has a chat template.
fn chat_model() -> tempfile::TempDir {
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
fn drafts_change_nothing_but_the_time() {
    for model in ["demo:olmo3", "demo:gemma3"] {
        let plain = story(&["--model", model]);
        assert_eq!(plain.get("guessed_tokens"), None);
        let looked_up = story(&["--model", model, "--prompt-lookup"]);
        let drafted = story(&["--model", model, "--draft-model", "demo:phi3", "--num-draft-tokens", "5"]);
        for guessed in [looked_up, drafted] {
            assert_eq!(guessed["tokens"], plain["tokens"], "{model}");
            assert_eq!(guessed["text"], plain["text"]);
            assert!(guessed["guessed_tokens"].as_u64().is_some());
        }
    }
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let whole = story(&["--model", "demo:olmo3"])["text"].as_str().unwrap().to_owned();
    let (before, _) = whole.split_once("butterfly").unwrap();
    let found = story(&["--model", "demo:olmo3", "--stop", "no such thing", "--stop", "butterfly"]);
    assert_eq!(found["text"], before);
    assert_eq!(
        (&found["finish_reason"], &found["stop_string"]),
        (&"stop_string".into(), &"butterfly".into())
    );
}

#[test]
fn a_cached_prompt_continues_like_the_whole_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.safetensors");
    let file = file.to_str().unwrap();
    for model in ["demo:olmo3", "demo:lille-130m"] {
        let (beginning, rest) = ("In a little cottage by the sea", " lived a brave girl named Zoe.");
        succeed(&["cache-prompt", "--model", model, "--prompt", beginning, "--prompt-cache-file", file], "");
        let arguments = ["generate", "--model", model, "--prompt", rest, "--prompt-cache-file", file];
        let (cached, _) = succeed(&[&arguments[..], &["--max-tokens", "60"]].concat(), "");
        let (whole, _) =
            succeed(&["generate", "--model", model, "--prompt", STORY, "--max-tokens", "60"], "");
        assert_eq!(cached, whole, "{model}");
    }
    // Another model refuses the cache.
    let arguments = ["generate", "--model", "demo:phi3", "--prompt", "x", "--prompt-cache-file", file];
    let (_, said) = texts(&run(&arguments, ""));
    assert!(said.contains("lille-130m") && said.contains("phi3"), "{said}");
}

#[test]
fn quantized_caches_and_limited_caches_generate_text() {
    let options = ["--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "20"];
    let found = story(&[&["--model", "demo:olmo3"][..], &options].concat());
    assert_eq!(found["generation_tokens"], story(&["--model", "demo:olmo3"])["generation_tokens"]);
    let arguments = ["generate", "--model", "demo:olmo3", "--prompt", STORY, "--kv-bits", "8"];
    let (_, said) = texts(&run(&arguments, ""));
    assert!(said.contains("groups of 64"), "heads have 32 features: {said}");

    // Beyond the context of 512 tokens, with 64 tokens in the cache.
    let arguments = ["generate", "--json", "--prompt", STORY, "--slide", "--max-kv-size", "64"];
    let arguments = [&arguments[..], &["--max-tokens", "700", "--min-tokens", "700"]].concat();
    let found: Value = serde_json::from_str(&succeed(&arguments, "").0).unwrap();
    assert_eq!((&found["generation_tokens"], &found["finish_reason"]), (&700.into(), &"max_tokens".into()));
}

#[test]
fn perplexity_is_that_of_the_likelihoods() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("story.txt");
    fs::write(&file, STORY).unwrap();
    let of = |file: &str, input: &str| -> Value {
        let arguments = ["perplexity", "--model", "demo:olmo3", "--json", file];
        serde_json::from_str(&succeed(&arguments, input).0).unwrap()
    };
    let found = of(file.to_str().unwrap(), "");
    let (perplexity, nll) = (found["perplexity"].as_f64().unwrap(), found["mean_nll"].as_f64().unwrap());
    assert_abs_diff_eq!(perplexity, nll.exp(), epsilon = 1e-9);
    // A story like those in the training data has a low perplexity, and a meaningless text a high one.
    assert!(perplexity < 4.0, "{found}");
    assert_eq!(of("-", STORY)["mean_nll"], found["mean_nll"]);
    assert!(of("-", "zqx vvk 77 !! {}{}")["perplexity"].as_f64().unwrap() > 100.0);
    let (_, said) = texts(&run(&["perplexity", "-"], "a"));
    assert!(said.contains("at least 2"), "{said}");
}

#[test]
fn bench_has_the_figures_that_it_promises() {
    let arguments = [
        "bench",
        "--json",
        "--prompt-tokens",
        "9",
        "--gen-tokens",
        "7",
        "--repeats",
        "2",
        "--model",
        "demo:phi3",
    ];
    let found: Value = serde_json::from_str(&succeed(&arguments, "").0).unwrap();
    assert!(found["device"] == "cpu" || found["device"] == "gpu", "{found}");
    for key in ["prefill_tps", "decode_tps", "load_s", "first_token_s", "peak_memory_bytes"] {
        let figure = |which: &str| found[key][which].as_f64().unwrap();
        assert!(
            figure("min") > 0.0 && figure("min") <= figure("median") && figure("median") <= figure("max")
        );
    }
    let (_, said) = texts(&run(&["bench", "--prompt-tokens", "500", "--gen-tokens", "100"], ""));
    assert!(said.contains("--gen-tokens"), "{said}");
}

#[test]
fn a_conversation_goes_back_and_is_kept() {
    let model = chat_model();
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("kept");
    let name = name.to_str().unwrap();
    let chat = |input: &str| {
        let arguments = ["chat", "--model", model.path().to_str().unwrap(), "--max-tokens", "12"];
        succeed(&arguments, input)
    };
    let (two, _) = chat("Hello\nTell me \\\na story.\n");
    let answers: Vec<&str> = two.lines().collect();
    assert!(answers.len() >= 2, "{two:?}");

    // /undo, /retry and /reset lead to the same answers.
    let (again, _) = chat("Hello\nNo\n/undo\nTell me \\\na story.\n/retry\n/reset\nHello\n");
    let again: Vec<&str> = again.lines().collect();
    assert_eq!((again[0], again[2], again[3], again[4]), (answers[0], answers[1], answers[1], answers[0]));

    // The conversation is saved and loaded.
    let (_, said) = chat(&format!("Hello\n/save {name}\n"));
    assert!(said.contains("kept.json") && said.contains("kept.safetensors"), "{said}");
    let (on, _) = chat(&format!("/load {name}\n\"\"\"\nTell me \na story.\n\"\"\"\n"));
    assert_eq!(on.lines().next(), Some(answers[1]));
}

#[test]
fn a_wrong_command_is_named() {
    let model = chat_model();
    for (input, needle) in [
        ("/nonsense\n", "/nonsense"),
        ("/retry\n", "nothing to answer"),
        ("/set temp warm\n", "a number is needed"),
        ("/set temp -1\n", "temperature"),
        ("/set colour 3\n", "colour"),
        ("/load\n", "a name is needed"),
        ("/load /no/such/file\n", "/no/such/file.json"),
    ] {
        let output = run(&["chat", "--model", model.path().to_str().unwrap()], input);
        let (out, said) = texts(&output);
        assert_eq!((output.status.code(), &*out), (Some(1), ""), "{input}");
        assert!(said.contains(needle) && !said.contains("panicked"), "{input}: {said}");
    }
}

#[test]
fn a_chat_template_is_used_where_there_is_one() {
    let model = chat_model();
    let model = model.path().to_str().unwrap();
    let tokens = |options: &[&str]| {
        let arguments = [&["generate", "--json", "--model", model, "--max-tokens", "4"], options].concat();
        let found: Value = serde_json::from_str(&succeed(&arguments, "").0).unwrap();
        found["prompt_tokens"].as_u64().unwrap()
    };
    let plain = tokens(&["--prompt", "Hello", "--ignore-chat-template"]);
    let asked = tokens(&["--prompt", "Hello"]);
    let with_system = tokens(&["--prompt", "Hello", "--system-prompt", "Be kind."]);
    assert!(plain < asked && asked < with_system, "{plain} {asked} {with_system}");
    let (_, said) = texts(&run(&["generate", "--prompt", "x", "--system-prompt", "y"], ""));
    assert!(said.contains("no chat template"), "{said}");
}

/// The metadata of a safetensors file.
fn metadata(file: &Path) -> Value {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"].clone()
}

#[test]
fn a_cached_beginning_of_a_message_and_its_end_are_one_message() {
    let model = chat_model();
    let file = model.path().join("prompt.safetensors");
    let (model, file) = (model.path().to_str().unwrap(), file.to_str().unwrap());
    let answer = |options: &[&str]| -> Value {
        let arguments = ["generate", "--json", "--model", model, "--max-tokens", "20", "--ignore-eos"];
        serde_json::from_str(&succeed(&[&arguments[..], options].concat(), "").0).unwrap()
    };
    for system in [&[][..], &["--system-prompt", "Be kind."]] {
        let arguments = ["cache-prompt", "--model", model, "--prompt-cache-file", file, "--json"];
        let prompt = ["--prompt", "Tell me a story"];
        let cached = succeed(&[&arguments[..], &prompt, system].concat(), "").0;
        let cached: Value = serde_json::from_str(&cached).unwrap();
        let whole = answer(&[&["--prompt", "Tell me a story about a fox."][..], system].concat());
        let rest = answer(&["--prompt", " about a fox.", "--prompt-cache-file", file]);
        assert_eq!(rest["tokens"], whole["tokens"]);
        let read = cached["tokens"].as_u64().unwrap() + rest["prompt_tokens"].as_u64().unwrap();
        assert_eq!(whole["prompt_tokens"], read, "nothing is read twice");
        // The beginning of the answer comes after the message.
        let prefill = ["--prefill-response", "Once"];
        let whole = answer(&[&["--prompt", "Tell me a story about a fox."][..], &prefill, system].concat());
        let rest =
            answer(&[&["--prompt", " about a fox.", "--prompt-cache-file", file][..], &prefill].concat());
        assert_eq!(rest["tokens"], whole["tokens"]);
    }
    // mlx-lm's program needs these two entries.
    let entries = metadata(Path::new(file));
    assert_eq!((&entries["0.model"], &entries["0.tokenizer_config"]), (&model.into(), &"{}".into()));

    let too_late = ["--prompt", "x", "--prompt-cache-file", file, "--system-prompt", "y"];
    let output = run(&[&["generate", "--model", model], &too_late[..]].concat(), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("give --system-prompt to cache-prompt"), "{}", texts(&output).1);
}

#[test]
fn variables_of_a_template_come_one_by_one_or_as_an_object() {
    let model = chat_model();
    let template = "{{ messages[0].content }}{% if loud %} Loud.{% endif %}{{ more or '' }}";
    fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    let model = model.path().to_str().unwrap();
    let tokens = |options: &[&str]| {
        let arguments = ["generate", "--json", "--model", model, "--prompt", "Hello", "--max-tokens", "1"];
        let found: Value = serde_json::from_str(&succeed(&[&arguments[..], options].concat(), "").0).unwrap();
        found["prompt_tokens"].as_u64().unwrap()
    };
    let (plain, loud) = (tokens(&[]), tokens(&["--chat-template-arg", "loud=true"]));
    assert!(plain < loud);
    assert_eq!(tokens(&["--chat-template-config", r#"{"loud": true}"#]), loud);
    assert_eq!(tokens(&["--chat-template-config", r#"{"loud": false}"#]), plain);
    let both = ["--chat-template-config", r#"{"loud": true}"#, "--chat-template-arg", "more= and longer"];
    assert!(tokens(&both) > loud);
    for wrong in ["[1]", "loud", "{"] {
        let arguments = ["generate", "--model", model, "--prompt", "x", "--chat-template-config", wrong];
        let output = run(&arguments, "");
        assert_eq!(output.status.code(), Some(2));
        assert!(texts(&output).1.contains("must be a JSON object"), "{}", texts(&output).1);
    }
}

#[test]
fn verbose_false_prints_no_figures() {
    let generate = ["generate", "--prompt", "Once", "-m", "3"];
    for (value, wanted) in [("true", true), ("T", true), ("false", false), ("F", false)] {
        let (_, said) = succeed(&[&generate[..], &["--verbose", value]].concat(), "");
        assert_eq!(said.contains("tokens/s"), wanted, "{value}");
    }
    assert_eq!(run(&[&generate[..], &["--verbose", "maybe"]].concat(), "").status.code(), Some(2));
}

/// JSON has no infinite numbers, which the log-probabilities of impossible tokens are.
#[test]
fn alternatives_are_numbers() {
    let every = ["--model", "demo:olmo3", "--top-logprobs", "1024"];
    let plain = story(&every);
    assert_eq!(plain["alternatives"][0].as_array().unwrap().len(), 1024);
    let best = plain["tokens"][0].as_u64().unwrap();
    let bias = format!("{best}:-inf");
    let found = story(&[&every[..], &["--logit-bias", &bias]].concat());
    for step in found["alternatives"].as_array().unwrap() {
        let step = step.as_array().unwrap();
        assert_eq!(step.len(), 1023, "without the impossible one");
        assert!(step.iter().all(|pair| pair[0] != best && pair[1].is_f64()));
    }
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(succeed(&["completions", shell], "").0.contains("cache-prompt"));
    }
    let (page, _) = succeed(&["man"], "");
    assert!(page.contains(".TH mlx-models") && page.contains("perplexity"));
}

#[test]
fn bash_completes_subcommands_and_their_options() {
    let (script, _) = succeed(&["completions", "bash"], "");
    let completed = |words: &[&str]| {
        let (last, before) = words.split_last().unwrap();
        let mut bash = Command::new("bash");
        bash.args([
            "-c",
            r#"eval "$1"; cur=$2 prev=$3; shift 3; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _mlx__models mlx-models "$cur" "$prev"; echo " ${COMPREPLY[*]} ""#,
        ]);
        let output = bash.args(["bash", &script, last, before.last().unwrap()]).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        texts(&output).0
    };
    for (words, expected) in [
        (&["mlx-models", "per"][..], " perplexity "),
        (&["mlx-models", "--dev"], " --device "),
        (&["mlx-models", "generate", "--max-t"], " --max-tokens "),
        (&["mlx-models", "cache-prompt", "--max-kv"], " --max-kv-size "),
        (&["mlx-models", "convert", "--device", "c"], " cpu "),
    ] {
        assert_eq!(completed(words), format!("{expected}\n"), "{words:?}");
    }
}

/// Renames a tensor in a safetensors file.
fn rename_tensor(file: &Path, from: &str, to: &str) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = header.remove(from).unwrap();
    header.insert(to.to_owned(), tensor);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(
        file,
        [&length[..], &header, &bytes[8 + usize::from_le_bytes(bytes[..8].try_into().unwrap())..]].concat(),
    )
    .unwrap();
}

#[test]
fn names_and_messages_of_files_cannot_steer_a_terminal() {
    let shown = |output: &Output| {
        let (_, said) = texts(output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            !said.contains(|c: char| c.is_control() && c != '\n') && !said.contains('\u{202e}'),
            "{said:?}"
        );
        said
    };
    // Control sequences in the name of a tensor, an error of a template, a model_type, and the name of a file.
    let model = chat_model();
    let folder = model.path().to_str().unwrap();
    rename_tensor(
        &model.path().join("model.safetensors"),
        "model.norm.weight",
        "\x1b]0;a title\x07\u{9b}2J\u{202e}",
    );
    let said = shown(&run(&["inspect", folder], ""));
    assert!(said.contains(r"\u{1b}]0;a title\u{7}\u{9b}2J\u{202e}"), "{said}");

    let model = chat_model();
    let folder = model.path().to_str().unwrap();
    fs::write(model.path().join("chat_template.jinja"), "{{ raise_exception('\x1b[2J no') }}").unwrap();
    let said = shown(&run(&["generate", "--prompt", "x", "--model", folder], ""));
    assert!(said.contains(r"\u{1b}[2J no"), "{said}");

    let config = fs::read_to_string(model.path().join("config.json")).unwrap();
    fs::write(model.path().join("config.json"), config.replace("olmo3", r"\u001b[2Jolmo")).unwrap();
    shown(&run(&["inspect", folder], ""));
    shown(&run(&["inspect", "/no/such/\x1b[2J"], ""));
}

#[test]
#[cfg(unix)]
fn a_cause_is_said_once() {
    let missing = ["generate", "--prompt", "x", "--prompt-cache-file", "/no/such/file"];
    let no_folder = "/dev/null/file";
    for (arguments, cause) in [
        (&missing[..], "os error 2)"),
        (&["chat", "--resume", "/no/such/file"], "os error 2)"),
        (&["perplexity", "/no/such/file"], "os error 2)"),
        (&["convert", "--model", "demo:phi3", "--out", no_folder], "os error 17)"),
        (&["cache-prompt", "--prompt", "x", "--prompt-cache-file", no_folder], "os error 20)"),
    ] {
        let (_, said) = texts(&run(arguments, ""));
        let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains("/file") && error.matches(cause).count() == 1, "{said}");
    }
    if cfg!(target_os = "linux") {
        for arguments in [&["generate", "--prompt", "x", "-m", "2"][..], &["inspect", "demo:phi3"], &["man"]]
        {
            let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let output = program().args(arguments).stdout(full).output().unwrap();
            let (_, said) = texts(&output);
            assert_eq!((output.status.code(), said.matches("os error 28").count()), (Some(1), 1), "{said}");
        }
    }
}

#[test]
#[cfg(unix)]
fn a_demo_needs_no_folder_of_its_own() {
    let temporary = tempfile::tempdir().unwrap();
    let generate = |folders: [&str; 2]| {
        let mut program = program();
        program.args(["generate", "--prompt", "Once", "-m", "2"]).env("HOME", "/dev/null");
        program.env("XDG_CACHE_HOME", folders[0]).env("TMPDIR", folders[1]).output().unwrap()
    };
    let place = temporary.path().to_str().unwrap();
    for _ in 0..2 {
        let output = generate(["/dev/null/x", place]);
        assert!(output.status.success(), "{output:?}");
    }
    let entries = || fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path());
    // The folder has the id of the user in its name.
    let user = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap());
    let demos = temporary.path().join(format!("mlx-models-demos-{user}"));
    assert!(entries().eq([demos.clone()]), "{:?}", entries().collect::<Vec<_>>());
    assert_eq!(fs::read_dir(&demos).unwrap().count(), 1);
    // Neither folder can be written to.
    let output = generate(["/dev/null/x", "/dev/null/y"]);
    let (_, said) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("in XDG_CACHE_HOME") && said.contains("/dev/null/y"), "{said}");
    // A folder that other users can write to is refused.
    let mode =
        |mode| fs::set_permissions(&demos, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o777);
    let (_, said) = texts(&generate(["/dev/null/x", place]));
    assert!(said.contains("a folder of this user alone"), "{said}");
    mode(0o700);
    // A relative path is ignored, and a tilde stands for the home folder, which is not a folder here.
    for named in ["~/c", "c"] {
        assert!(generate([named, place]).status.success());
        assert!(!Path::new("~").exists() && !Path::new("c").exists());
    }

    // The next run that writes removes what a killed run left behind.
    let cache = tempfile::tempdir().unwrap();
    let output = generate([cache.path().to_str().unwrap(), place]);
    assert!(output.status.success(), "{output:?}");
    let cache = cache.path().join("mlx-models");
    let demo = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let name = demo.file_name().unwrap().to_str().unwrap();
    fs::create_dir(cache.join(format!(".{name}.1-0.partial"))).unwrap();
    fs::write(demo.join("config.json"), "damaged").unwrap();
    assert!(generate([cache.parent().unwrap().to_str().unwrap(), place]).status.success());
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn too_many_threads_are_limited_or_an_error() {
    let mut generate = program();
    generate.args(["generate", "--prompt", "Once", "-m", "2"]).env("MLX_CPU_KERNELS", "on");
    let output = generate.env("MLX_CPU_THREADS", "100000").output().unwrap();
    let (_, said) = texts(&output);
    assert!(output.status.success() && said.contains("MLX_CPU_THREADS=100000 is more than the"), "{said}");
    // With memory for some of its threads only, MLX would wait forever for the others.
    let mut limited = Command::new("timeout");
    limited.args([
        "60",
        "sh",
        "-c",
        r#"ulimit -v 100000; exec "$@""#,
        "sh",
        env!("CARGO_BIN_EXE_mlx-models"),
    ]);
    limited
        .args(["generate", "--prompt", "Once", "-m", "2"])
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    let output = limited.output().unwrap();
    let (_, said) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("starting thread") && said.contains("ulimit"), "{said}");
}

/// Signals that end a program, with their numbers and exit statuses.
#[cfg(target_os = "linux")]
const SIGNALS: [(&str, u32, i32); 3] = [("-INT", 2, 130), ("-TERM", 15, 143), ("-HUP", 1, 129)];

/// Waits until a running program has done something. If it never does, ends the program and fails.
#[cfg(target_os = "linux")]
fn wait_until(child: &mut std::process::Child, is_there: impl Fn() -> bool) {
    for _ in 0..30_000 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        if is_there() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!("it does not come");
}

/// Sends a signal as soon as the program has a handler for it.
#[cfg(target_os = "linux")]
fn send(child: &mut std::process::Child, (name, number, _): (&str, u32, i32)) {
    let about = format!("/proc/{}/status", child.id());
    let is_handled = || {
        let about = fs::read_to_string(&about).unwrap();
        let handled = about.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(handled.trim(), 16).unwrap() >> (number - 1) & 1 == 1
    };
    wait_until(child, is_handled);
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Each subcommand that writes files is stopped in the middle of its work, while it waits for a reader of its messages.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_ends_the_work_and_nothing_is_left() {
    use std::io::Read;

    let folder = tempfile::tempdir().unwrap();
    let (out, file) = (folder.path().join("out"), folder.path().join("cache.safetensors"));
    let (out, file) = (out.to_str().unwrap(), file.to_str().unwrap());
    let prompt = STORY.repeat(20);
    for arguments in [
        &["convert", "--model", "demo:phi3", "--quantize", "--out", out][..],
        &["convert", "--model", "demo:phi3", "--gguf", "Q8_0", "--out", out],
        &["cache-prompt", "--prompt", &prompt, "--prompt-cache-file", file, "--prefill-step-size", "1"],
    ] {
        for signal in SIGNALS {
            let (mut said, mut says) = std::io::pipe().unwrap();
            // This fills the pipe, so that the next line waits.
            says.write_all(&[b' '; 1 << 16]).unwrap();
            let mut child = program().args(arguments).stdout(Stdio::piped()).stderr(says).spawn().unwrap();
            send(&mut child, signal);
            let mut text = Vec::new();
            said.read_to_end(&mut text).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(signal.2), "{arguments:?} {signal:?} {output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// SIGKILL leaves no time to remove partial files, so the next run removes them.
#[test]
#[cfg(target_os = "linux")]
fn files_of_a_killed_run_are_removed_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let convert = || {
        let mut program = program();
        program.args(["convert", "--model", "demo:phi3", "--quantize", "--out"]).arg(&out);
        program
    };
    let (_said, mut says) = std::io::pipe().unwrap();
    says.write_all(&[b' '; 1 << 16]).unwrap();
    let mut child = convert().stdout(Stdio::null()).stderr(says).spawn().unwrap();
    let left = || -> Vec<_> {
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    wait_until(&mut child, || !left().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(left().len() == 1 && left()[0] != "out", "{:?}", left());
    assert!(convert().output().unwrap().status.success());
    assert_eq!(left(), ["out"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_signal_ends_an_answer() {
    use std::io::Read;

    let endless = ["generate", "--prompt", "Once", "--ignore-eos", "--slide", "--max-tokens", "10000000"];
    let chat = ["chat", "--ignore-eos", "--slide", "--max-tokens", "10000000"];
    for (arguments, signal) in
        SIGNALS.iter().flat_map(|signal| [(&endless[..], *signal), (&chat[..], *signal)])
    {
        let mut child = program()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"Once\n").unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0]).unwrap();
        send(&mut child, signal);
        out.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(signal.2), "{arguments:?} {signal:?}");
        drop(input);
    }
    // Signals end a chat that waits for the next line of a pipe.
    for signal in &SIGNALS {
        let mut chat = program();
        let chat =
            chat.args(["chat", "-m", "2"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = chat.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"Once\n").unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut byte = [0];
        while byte[0] != b'\n' {
            out.read_exact(&mut byte).unwrap();
        }
        send(&mut child, *signal);
        assert_eq!(child.wait().unwrap().code(), Some(signal.2));
    }
}

/// The program is started with SIGHUP ignored, as by `nohup`.
#[test]
#[cfg(target_os = "linux")]
fn a_program_that_outlives_its_terminal_goes_on() {
    use std::io::Read;

    let arguments = ["generate", "--prompt", "Once", "--ignore-eos", "--slide", "--max-tokens", "10000000"];
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap "" HUP; exec "$@""#, "sh", env!("CARGO_BIN_EXE_mlx-models")]).args(arguments);
    shell.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = shell.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    // These bytes did not fit into the pipe before the signal, so they are new.
    out.read_exact(&mut [0; 1 << 17]).unwrap();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    out.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
