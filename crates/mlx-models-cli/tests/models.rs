//! `download` and `convert`, as a user or a script calls them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../mlx-hub/tests/hub/server.rs"]
mod hub_server;

#[path = "common/signals.rs"]
mod signals;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use hub_server::{COMMIT, Reply, Server};
use serde_json::Value;

/// The program with a home folder of its own, and no hub that can be reached.
fn program(home: &Path) -> Command {
    let mut command = signals::program();
    for variable in
        ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SSL_CERT_FILE"]
    {
        command.env_remove(variable);
    }
    for proxy in ["ALL_PROXY", "HTTP_PROXY", "http_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    command
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_TOKEN", "a-secret")
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The program ended with this status, nothing on standard output, and a message that contains `needles`.
#[track_caller]
fn assert_fails(output: &Output, status: i32, needles: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_eq!(text(&output.stdout), "");
    for needle in needles {
        assert!(said.contains(needle), "{needle:?} in {said}");
    }
    assert!(!said.contains("a-secret") && !said.contains("panicked"), "{said}");
}

fn demo_files() -> Vec<(&'static str, Vec<u8>)> {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/phi3"));
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        .map(|name| (name, fs::read(demo.join(name)).unwrap()))
        .to_vec()
}

/// Runs a program, and fails if it does not end within a minute.
fn within_reason(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..6000 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("{command:?} does not end");
}

const STORY: [&str; 5] = ["--prompt", "Once upon a time", "--max-tokens", "5", "--json"];

fn tokens(report: &Value) -> &Value {
    assert_eq!(report["tokens"].as_array().unwrap().len(), 5);
    &report["tokens"]
}

#[test]
fn a_model_is_downloaded_once_and_named_by_its_id() {
    let (server, home) = (Server::start(&demo_files(), |_, _| None), tempfile::tempdir().unwrap());
    let program = || {
        let mut program = program(home.path());
        program.env("HF_ENDPOINT", &server.endpoint);
        program
    };
    let output = program().args(["download", "owner/name", "--json"]).output().unwrap();
    let report = json(&output);
    assert_eq!((&report["model"], &report["commit"]), (&"owner/name".into(), &COMMIT.into()));
    let size: usize = demo_files().iter().map(|(_, contents)| contents.len()).sum();
    assert_eq!(report["downloaded_bytes"], size);
    assert!(
        text(&output.stderr).contains("100 %") && text(&output.stderr).contains("downloaded"),
        "{output:?}"
    );
    let folder = home.path().join("hub/models--owner--name/snapshots").join(COMMIT);
    assert_eq!(report["folder"], folder.to_str().unwrap());
    assert_eq!(server.requests()[0].headers["authorization"], "Bearer a-secret");

    // Without --json the program prints the path of the folder only, for `$(...)`.
    let output = program().args(["download", "owner/name"]).output().unwrap();
    assert_eq!(text(&output.stdout), format!("{}\n", folder.display()));
    assert_eq!(text(&output.stderr), "");

    let by_id = program().args(["generate", "--model", "owner/name"]).args(STORY).output().unwrap();
    let by_name = program().args(["generate", "--model", "demo:phi3"]).args(STORY).output().unwrap();
    assert_eq!(tokens(&json(&by_id)), tokens(&json(&by_name)));
    let inspected = program().args(["inspect", "owner/name", "--json"]).output().unwrap();
    assert_eq!(json(&inspected)["architecture"], "phi3");

    // The cache is used offline, and where the Hub cannot be reached.
    server.requests();
    for (variable, value) in [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")] {
        let output =
            program().env(variable, value).args(["inspect", "owner/name", "--json"]).output().unwrap();
        assert_eq!(json(&output)["architecture"], "phi3");
        assert_eq!(
            text(&output.stderr).contains("cannot be reached"),
            variable == "HF_ENDPOINT",
            "{output:?}"
        );
    }
    assert_eq!(server.requests().len(), 0);
    let output = program().env("HF_HUB_OFFLINE", "1").args(["download", "owner/other"]).output().unwrap();
    assert_fails(&output, 1, &["does not have all of owner/other", "HF_HUB_OFFLINE"]);
}

/// Starts the program, sends a signal as soon as `is_it_time` says so, and answers the exit status.
#[cfg(unix)]
fn stopped(program: &mut Command, signal: &str, mut is_it_time: impl FnMut() -> bool) -> Option<i32> {
    let mut child = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !is_it_time() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    child.wait().unwrap().code()
}

#[test]
#[cfg(unix)]
fn a_commit_whose_download_was_interrupted_is_completed() {
    let mut times = 0;
    let fault = move |request: &hub_server::Request, right: &Reply| {
        let is_it = request.method == "GET" && request.path == "/api/resolve-cache/tokenizer.json";
        times += u32::from(is_it);
        (is_it && times < 4).then(|| Reply { cut: Some(10), stall: Duration::from_secs(60), ..right.clone() })
    };
    let (server, home) = (Server::start(&demo_files(), fault), tempfile::tempdir().unwrap());
    let model = home.path().join("hub/models--owner--name");
    let program = |arguments: &[&str]| {
        let mut program = program(home.path());
        program.env("HF_ENDPOINT", &server.endpoint).args(arguments);
        program
    };
    let download = ["download", "owner/name", "--revision", COMMIT, "--json"];
    // Everything but the tokenizer has arrived. Each signal has its own exit status.
    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let is_asked_for = || {
            let mut requests = server.requests().into_iter();
            requests
                .any(|request| request.method == "GET" && request.path.starts_with("/api/resolve-cache/tok"))
        };
        assert_eq!(stopped(&mut program(&download), signal, is_asked_for), Some(status));
    }
    assert!(model.join("snapshots").join(COMMIT).join("model.safetensors").is_file());
    let output = program(&download).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_fails(&output, 1, &["tokenizer.json is missing", "HF_HUB_OFFLINE"]);

    let report = json(&program(&download).output().unwrap());
    let size: usize = demo_files()[3..].iter().map(|(_, contents)| contents.len()).sum();
    // Each run may have downloaded 10 bytes before it was stopped.
    let left = report["downloaded_bytes"].as_u64().unwrap() as usize;
    assert!((size - 30..=size).contains(&left), "{report}");
    let output = program(&["inspect", "owner/name"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_fails(&output, 1, &["the revision main is missing"]);
    let output = program(&download).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(json(&output)["downloaded_bytes"], 0);
}

/// The snapshot is as the Python library leaves it.
#[test]
#[cfg(unix)]
fn models_that_other_programs_downloaded_work_without_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("hub/models--owner--name");
    let snapshot = model.join("snapshots").join(COMMIT);
    for folder in [&snapshot, &model.join("blobs"), &model.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    for (name, contents) in demo_files() {
        fs::write(model.join("blobs").join(name), contents).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    for arguments in [&["inspect", "owner/name"][..], &["download", "owner/name", "--revision", COMMIT]] {
        for offline in ["1", "0"] {
            let output =
                program(home.path()).args(arguments).env("HF_HUB_OFFLINE", offline).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(text(&output.stderr).contains("as it is in the cache"), offline == "0", "{output:?}");
        }
    }
}

#[test]
fn a_revision_that_leads_out_of_the_cache_is_refused() {
    let (server, home) = (Server::start(&demo_files(), |_, _| None), tempfile::tempdir().unwrap());
    for revision in ["", "..", "../../../escaped", "a/../../b", "/etc", "main/"] {
        let mut program = program(home.path());
        program.env("HF_ENDPOINT", &server.endpoint).args(["download", "owner/name", "--revision", revision]);
        assert_fails(&program.output().unwrap(), 2, &["not the name of a branch, a tag or a commit"]);
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn without_a_home_folder_no_folder_named_tilde_is_made() {
    let (home, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = |variables: &[(&str, &str)]| {
        let mut program = program(home.path());
        program.current_dir(here.path()).args(["download", "owner/name"]).env("HF_HUB_OFFLINE", "1");
        program.env_remove("HF_HOME").env_remove("XDG_CACHE_HOME").env("HOME", "");
        let output = program.envs(variables.iter().copied()).output().unwrap();
        assert!(!text(&output.stderr).contains("at ~"), "{output:?}");
        output
    };
    // The system may know the user's home folder or not.
    assert_eq!(program(&[]).status.code(), Some(1));
    assert_eq!(program(&[("HF_HOME", "~/models")]).status.code(), Some(1));
    assert_fails(&program(&[("HF_HOME", "~someone/models")]), 1, &["HF_HOME", "write the home folder out"]);
    // These variables need no home folder.
    assert_fails(&program(&[("XDG_CACHE_HOME", "/x")]), 1, &["the cache at /x/huggingface/hub does not"]);
    assert_fails(&program(&[("HF_HUB_CACHE", "/y")]), 1, &["the cache at /y does not"]);
    assert_fails(&program(&[("HOME", "/h")]), 1, &["the cache at /h/.cache/huggingface/hub does not"]);
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_its_weights_come() {
    let mut files = demo_files();
    files[0].1 = br#"{"model_type": "bert"}"#.to_vec();
    let (server, home) = (Server::start(&files, |_, _| None), tempfile::tempdir().unwrap());
    for arguments in
        [&["download", "owner/name"][..], &["generate", "--prompt", "x", "--model", "owner/name"]]
    {
        let mut program = program(home.path());
        let output = program.env("HF_ENDPOINT", &server.endpoint).args(arguments).output().unwrap();
        assert_fails(&output, 1, &["\"bert\", which is not supported", "gemma3_text", "qwen3"]);
    }
    let asked = server.requests();
    assert!(!asked.iter().any(|request| request.path.contains("safetensors")), "{asked:?}");
}

#[test]
#[cfg(unix)]
fn settings_of_the_hub_are_read_within_limits() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let token = |file: &Path, variable: &str| {
        let mut program = program(home.path());
        program.env_remove("HF_TOKEN").env(variable, file).env("HF_HUB_OFFLINE", "1");
        within_reason(program.args(["download", "owner/name"]))
    };
    assert_fails(&token(&pipe, "HF_TOKEN_PATH"), 1, &["pipe", "must be a regular file"]);
    assert_fails(
        &token(Path::new("/dev/zero"), "HF_TOKEN_PATH"),
        1,
        &["/dev/zero", "must be a regular file"],
    );
    assert_fails(&token(&pipe, "SSL_CERT_FILE"), 1, &["SSL_CERT_FILE", "must be a regular file"]);
    assert_fails(
        &token(Path::new("ftp://hub.example"), "HF_ENDPOINT"),
        1,
        &["HF_ENDPOINT", "not an http or https address"],
    );
    // A missing file of the token is no error.
    assert_fails(&token(&home.path().join("none"), "HF_TOKEN_PATH"), 1, &["does not have all of"]);
}

#[test]
#[cfg(unix)]
fn an_interrupted_download_is_continued() {
    let mut first = true;
    let fault = move |request: &hub_server::Request, right: &Reply| {
        let is_it = first && request.method == "GET" && request.path == "/far/model.safetensors";
        first &= !is_it;
        is_it.then(|| Reply { cut: Some(1_000_000), stall: Duration::from_secs(60), ..right.clone() })
    };
    let (server, home) = (Server::start(&demo_files(), fault), tempfile::tempdir().unwrap());
    let blob = hub_server::sha256(&demo_files()[2].1);
    let partial = home.path().join(format!("hub/models--owner--name/blobs/{blob}.incomplete"));
    let program = || {
        let mut program = program(home.path());
        program.env("HF_ENDPOINT", &server.endpoint).args(["download", "owner/name", "--json"]);
        program
    };
    let mut child = program().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !fs::metadata(&partial).is_ok_and(|partial| partial.len() == 1_000_000) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success() && !child.wait().unwrap().success());
    assert_eq!(fs::metadata(&partial).unwrap().len(), 1_000_000);

    let size: usize = demo_files().iter().map(|(_, contents)| contents.len()).sum();
    let report = json(&program().output().unwrap());
    // The small files before it were complete.
    let left = report["downloaded_bytes"].as_u64().unwrap() as usize;
    assert!(left < size - 1_000_000 && left > 1_000_000, "{left} of {size}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_the_download_at_once() {
    let (server, home) = (Server::start(&demo_files(), |_, _| None), tempfile::tempdir().unwrap());
    // The system limits files to a megabyte.
    let limited = r#"trap "" XFSZ; ulimit -f 2048; exec "$@""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_mlx-models"), "download", "owner/name"]);
    shell.env("HF_HOME", home.path()).env("HF_ENDPOINT", &server.endpoint).env_remove("HF_HUB_CACHE");
    let output = within_reason(&mut shell);
    assert_fails(&output, 1, &["what was downloaded so far is kept", "File too large"]);
    assert_eq!(server.requests().iter().filter(|request| request.path.starts_with("/far/")).count(), 1);
}

#[test]
fn the_error_for_an_unknown_name_says_what_names_are_possible() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| program(home.path()).args(arguments).output().unwrap();
    let prompt = ["--prompt", "x"];
    let output = run(&[&["generate", "--model", "/no/such/folder"], &prompt[..]].concat());
    assert_fails(&output, 1, &["there is no folder /no/such/folder", "not a Hub id either"]);
    // It has the form of a Hub id, but names a file.
    let output = run(&[&["generate", "--model", "models/gone.gguf"], &prompt[..]].concat());
    assert_eq!(text(&output.stderr), "error: there is no file models/gone.gguf\n");
    let output = run(&["download", "name"]);
    assert_fails(&output, 2, &["not a Hub id, which has the form owner/name"]);

    let gone = Server::start(&[], |_, _| Some(Reply::status(404, "RepoNotFound")));
    let gated = Server::start(&[], |_, _| Some(Reply::status(403, "GatedRepo")));
    for (server, needle) in
        [(&gone, "the Hub has no public model no/folder"), (&gated, "accept its conditions")]
    {
        let mut program = program(home.path());
        program.env("HF_ENDPOINT", &server.endpoint).args(["inspect", "no/folder"]);
        assert_fails(&program.output().unwrap(), 1, &["there is no folder no/folder here", needle]);
    }
}

#[test]
fn a_model_is_written_as_a_gguf_file() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(format!("{name}.gguf"));
    let convert = |model: &str, kind: &str, options: &[&str]| {
        let mut program = program(home.path());
        program.args(["convert", "--model", model, "--gguf", kind, "--out"]).arg(file(kind));
        program.args(options).output().unwrap()
    };
    let story = |model: &str| {
        json(&program(home.path()).args(["generate", "--model", model]).args(STORY).output().unwrap())
    };
    // In lower case too.
    for (kind, bits) in [("BF16", 16.1), ("f16", 16.1), ("Q8_0", 8.7), ("Q4_0", 5.5), ("q4_k_m", 6.5)] {
        let report = json(&convert("demo:gemma2", kind, &["--json"]));
        assert!(report["bits_per_weight"].as_f64().unwrap() < bits, "{report}");
        assert_eq!(report["tensors"]["F32"], 25, "{report}");
        assert_eq!(report["size_bytes"], fs::metadata(file(kind)).unwrap().len(), "{report}");
        tokens(&story(file(kind).to_str().unwrap()));
    }
    // The same numbers, and the tokenizer of the file.
    assert_eq!(story("demo:gemma2")["text"], story(file("BF16").to_str().unwrap())["text"]);

    let output = convert(file("BF16").to_str().unwrap(), "q8_0", &[]);
    let said = text(&output.stdout);
    assert!(said.contains(" tensors Q8_0") && said.contains("written to "), "{output:?}");
    // A file from a file, whose tensors are those of a file from the folder.
    let length = |kind: &str| fs::metadata(file(kind)).unwrap().len();
    assert!(length("q8_0").abs_diff(length("Q8_0")) < 64);

    let refused = |model: &str, kind: &str, options: &[&str], status: i32, needles: &[&str]| {
        assert_fails(&convert(model, kind, options), status, needles);
    };
    refused("demo:gemma2", "BF16", &[], 1, &["exists already", "name a file"]);
    refused("demo:gemma2", "Q3_K", &[], 2, &["known are F16, BF16, Q8_0, Q4_0, Q4_K_M"]);
    refused("demo:gemma2", "F16", &["--quantize"], 2, &["cannot be used with"]);
    refused("demo:gemma2", "F16", &["--dtype", "float16"], 2, &["cannot be used with"]);
    refused(
        "demo:gemma3",
        "F16",
        &[],
        1,
        &["llama.cpp computes another model", "query_pre_attn_scalar is 32"],
    );
    refused("demo:smollm3", "F16", &[], 1, &["no_rope_layer_interval is 3, and 4 there"]);
    refused("demo:lille-130m", "F16", &[], 1, &["llama.cpp has no architecture for a lille-130m"]);
    assert!(!file("F16").exists());
}

#[test]
fn quantized_layers_become_whole_weights_of_a_gguf_file() {
    let home = tempfile::tempdir().unwrap();
    let (q8, file) = (home.path().join("q8"), home.path().join("x.gguf"));
    let mut quantize = program(home.path());
    quantize.args(["convert", "--model", "demo:phi3", "-q", "--bits", "8", "--out"]).arg(&q8);
    assert!(quantize.output().unwrap().status.success());
    let mut write = program(home.path());
    write.args(["convert", "--gguf", "BF16", "--model"]).arg(&q8).arg("--out").arg(&file);
    let output = write.output().unwrap();
    let said = text(&output.stdout);
    assert!(
        said.starts_with("22 layers were quantized, and were brought into full precision first\n"),
        "{said}"
    );
}

#[test]
fn a_model_is_quantized_and_dequantized() {
    let home = tempfile::tempdir().unwrap();
    let folder = |name: &str| home.path().join(name);
    let convert = |model: &str, out: &str, options: &[&str]| {
        let mut program = program(home.path());
        program
            .args(["convert", "--model", model, "--json", "--out"])
            .arg(folder(out))
            .args(options)
            .output()
            .unwrap()
    };
    let quantize =
        ["--quantize", "--bits", "8", "--group-size", "32", "--layers", "lm_head=none", "*.0.*=mxfp8"];
    let output = convert("demo:phi3", "q8", &quantize);
    let report = json(&output);
    assert_eq!(report["full_precision_layers"], serde_json::json!(["lm_head"]));
    assert!(report["bits_per_weight"].as_f64().unwrap() < 12.0, "{report}");
    assert!(text(&output.stderr).contains("100 %"), "{output:?}");
    let config: Value = serde_json::from_slice(&fs::read(folder("q8").join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"]["bits"], 8);
    assert_eq!(config["quantization"]["model.layers.0.mlp.down_proj"]["mode"], "mxfp8");
    let q8 = folder("q8").to_str().unwrap().to_owned();
    let story = program(home.path()).args(["generate", "--model", &q8]).args(STORY).output().unwrap();
    tokens(&json(&story));

    let report =
        json(&convert(&q8, "whole", &["--dequantize", "--dtype", "float16", "--max-shard-size", "500kB"]));
    assert_eq!(report["quantized_layers"], 0);
    assert!(report["files"].as_array().unwrap().len() > 1, "{report}");
    assert_eq!(report["bits_per_weight"], 16.0);

    // Without --json.
    let mut program = program(home.path());
    let output = program.args(["convert", "--model", &q8, "--out"]).arg(folder("same")).output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("1 layers in full precision") && said.contains("bits per weight"), "{said}");

    assert_fails(&convert("demo:phi3", "q8", &[]), 1, &["exists already"]);
    assert_fails(&convert(&q8, "new", &["-q"]), 1, &["quantized already", "dequantize the checkpoint first"]);
    assert_fails(&convert("demo:phi3", "new", &["-d"]), 1, &["nothing to dequantize"]);
    assert_fails(
        &convert("demo:phi3", "new", &["-q", "--layers", "q_proj=8"]),
        1,
        &["\"q_proj\" matches no layer", "qkv_proj"],
    );
    assert_fails(&convert("demo:phi3", "new", &["-q", "--bits", "7"]), 2, &["not 7 bits"]);
    assert_fails(&convert("demo:phi3", "new", &["-q", "--layers", "lm_head"]), 2, &["PATTERN=BITS"]);
    assert_fails(&convert("demo:phi3", "new", &["-q", "-d"]), 2, &["cannot be used with"]);
    assert_fails(&convert("demo:phi3", "new", &["--mode", "mxfp4"]), 2, &["needs --quantize"]);
    assert_fails(
        &convert("demo:phi3", "new", &["-q", "--mode", "mxfp4", "--recipe", "mixed_3_6"]),
        1,
        &["affine"],
    );
    assert_fails(&convert("demo:phi3", "new", &["-q", "--recipe", "mixed_1_2"]), 2, &["known are mixed_2_6"]);
    assert!(!folder("new").exists());
}
