//! `cargo xtask fixtures`: generates every committed fixture again with the project's scripts.
//!
//! The scripts write into a temporary tree. When all of them are done, the tree is compared with the committed
//! files byte by byte, and files that differ are moved into place. So an interrupted run changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;

use workspace::python::{self, Environment, ReferenceProgram};

/// Arguments of `cargo xtask fixtures`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show which files would change without writing them, and fail if there are any
    #[arg(long)]
    check: bool,
    /// Generate only fixtures whose path contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Run only scripts whose name contains this text
    #[arg(long, value_name = "SCRIPT", default_value = "")]
    only: String,
    /// Generate only the fixtures of this reference program
    #[arg(long, value_enum)]
    reference: Option<ReferenceProgram>,
    /// Generate nothing; instead, have mlx-lm read the prompt caches, adapters and checkpoints that our tests
    /// write
    #[arg(long, conflicts_with_all = ["check", "filter", "only", "reference"])]
    verify_ours: bool,
}

/// The scripts that generate fixtures, and the environment that each needs. All of them accept `--out TREE` and
/// `--filter TEXT`.
const SCRIPTS: &[(&str, Environment)] = &[
    ("make_cases.py", Environment::MlxLm),
    ("make_phi3_cases.py", Environment::MlxLm),
    ("make_gemma2_cases.py", Environment::MlxLm),
    ("make_gemma3_cases.py", Environment::MlxLm),
    ("make_olmo3_cases.py", Environment::MlxLm),
    ("make_qwen2_cases.py", Environment::MlxLm),
    ("make_qwen3_cases.py", Environment::MlxLm),
    ("make_llama_cases.py", Environment::MlxLm),
    ("make_granite_cases.py", Environment::MlxLm),
    ("make_ministral3_cases.py", Environment::MlxLm),
    ("make_olmo2_cases.py", Environment::MlxLm),
    ("make_smollm3_cases.py", Environment::MlxLm),
    ("make_lora_cases.py", Environment::MlxLm),
    ("make_rope_cases.py", Environment::MlxLm),
    ("make_cache_cases.py", Environment::MlxLm),
    ("make_prompt_caches.py", Environment::MlxLm),
    ("make_model_caches.py", Environment::MlxLm),
    ("make_layer_fixtures.py", Environment::MlxLm),
    ("make_norm_fixtures.py", Environment::MlxLm),
    ("make_kernel_fixtures.py", Environment::MlxLm),
    ("make_mask_fixtures.py", Environment::MlxLm),
    ("make_quantization_fixtures.py", Environment::MlxLm),
    ("make_convert_fixtures.py", Environment::MlxLm),
    ("make_greedy_fixtures.py", Environment::MlxLm),
    ("make_trace_fixtures.py", Environment::MlxLm),
    ("make_chat_fixtures.py", Environment::MlxLm),
    ("make_template_fixtures.py", Environment::MlxLm),
    ("make_sampling_fixtures.py", Environment::MlxLm),
    ("make_options_fixtures.py", Environment::MlxLm),
    ("make_phi3_transformers.py", Environment::Transformers),
    ("make_peft_cases.py", Environment::Transformers),
    ("make_sliding_transformers.py", Environment::Transformers),
    ("make_rope_transformers.py", Environment::Transformers),
    ("make_import_fixtures.py", Environment::Transformers),
    ("make_rope_transformers_cases.py", Environment::Transformers),
    ("mlx_lm_on_transformers_cases.py", Environment::MlxLm),
    ("make_gguf_fixtures.py", Environment::LlamaCpp),
    ("make_gguf_model_fixtures.py", Environment::LlamaCpp),
    ("make_gguf_tokenizer_fixtures.py", Environment::LlamaCpp),
];

/// The folder of the demos' checkpoints, the script, and the file that it generates for each of them.
const DEMOS: &str = "crates/mlx-models-cli/demo";
const DEMO_SCRIPT: &str = "train_demo.py";
const DEMO_FIXTURE: &str = "greedy.json";

/// Paths from the root of a tree, and the script that generated each.
type Made = BTreeMap<String, String>;

/// The differences between the committed fixtures and the generated ones.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Files that are missing or have other bytes.
    differing: Vec<String>,
    /// Files of a case that its script does not generate.
    stale: Vec<String>,
    /// Fixtures that no script generates.
    orphans: Vec<String>,
    /// Cases that do not name their origin.
    origins: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    if arguments.verify_ours {
        return verify_ours();
    }
    let root = workspace::root();
    let scripts: Vec<_> = SCRIPTS
        .iter()
        .filter(|(name, environment)| {
            name.contains(&arguments.only)
                && arguments.reference.is_none_or(|reference| reference.environment() == *environment)
        })
        .collect();
    let with_demos =
        DEMO_SCRIPT.contains(&arguments.only) && arguments.reference != Some(ReferenceProgram::Transformers);
    let demos = if with_demos { demos(&root)? } else { Vec::new() };

    // This comes first because it can take long, and can fail.
    let demo_environment = (!demos.is_empty()).then_some(Environment::MlxLm);
    let interpreters =
        interpreters(scripts.iter().map(|(_, environment)| *environment).chain(demo_environment))?;

    // The scripts receive the signal too, and end. The current step is finished or undone.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)).map_err(io::Error::other)?;

    let tree = tempfile::tempdir()?;
    let tree = tree.path();
    let mut made = Made::new();
    let step = |name: &str, of: &str, command: &mut Command| {
        workspace::complain(&format!("{name}{of} ..."));
        let broken_off = |e| if interrupted.load(Ordering::SeqCst) { interruption() } else { e };
        quietly(command, name).map_err(broken_off)
    };
    for (name, environment) in scripts {
        let mut command = python::script(&interpreters[environment.variable()], name);
        command.arg("--out").arg(tree).args(["--filter", &arguments.filter]);
        step(name, "", &mut command)?;
        collect(tree, name, &mut made)?;
    }
    for demo in demos.iter().filter(|demo| format!("{demo}/{DEMO_FIXTURE}").contains(&arguments.filter)) {
        let folder = tree.join(demo);
        copy_folder(&root.join(demo), &folder)?;
        fs::remove_file(folder.join(DEMO_FIXTURE))?;
        let mut command = python::script(&interpreters[Environment::MlxLm.variable()], DEMO_SCRIPT);
        command.arg("--fixture-only").arg("--out").arg(&folder);
        step(DEMO_SCRIPT, &format!(" of {demo}"), &mut command)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name() != DEMO_FIXTURE {
                fs::remove_file(entry.path())?;
            }
        }
        collect(tree, DEMO_SCRIPT, &mut made)?;
    }
    if interrupted.load(Ordering::SeqCst) {
        return Err(interruption());
    }

    let everything =
        arguments.filter.is_empty() && arguments.only.is_empty() && arguments.reference.is_none();
    let changes = compare(&root, tree, &made, &fixtures(&workspace::tracked_files(&root)?), everything)?;
    if !arguments.check {
        install(&root, tree, &changes)?;
    }
    report(&changes, &made, arguments.check, &mut io::stdout().lock())
}

fn interruption() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "interrupted; nothing is written")
}

/// The interpreters of these environments, by the names of their variables.
fn interpreters(
    environments: impl Iterator<Item = Environment>,
) -> io::Result<BTreeMap<&'static str, PathBuf>> {
    let mut interpreters = BTreeMap::new();
    for environment in environments {
        if !interpreters.contains_key(environment.variable()) {
            interpreters.insert(environment.variable(), python::interpreter(environment)?);
        }
    }
    Ok(interpreters)
}

/// The demos' folders, as paths in the tree.
fn demos(root: &Path) -> io::Result<Vec<String>> {
    let mut demos = Vec::new();
    for entry in fs::read_dir(root.join(DEMOS))? {
        let entry = entry?;
        if entry.path().join(DEMO_FIXTURE).is_file() {
            demos.push(format!("{DEMOS}/{}", entry.file_name().to_string_lossy()));
        }
    }
    demos.sort();
    Ok(demos)
}

/// Which of these files are fixtures.
fn fixtures(files: &[String]) -> BTreeSet<String> {
    let is_fixture = |file: &str| {
        file.starts_with("xtask/cases/")
            || file.starts_with("crates/") && file.contains("/tests/fixtures/")
            || file.starts_with(DEMOS) && file.ends_with(&format!("/{DEMO_FIXTURE}"))
    };
    // The native layer contains files copied from upstream, which no script generates.
    files.iter().filter(|file| is_fixture(file) && !file.contains("/upstream/")).cloned().collect()
}

/// Records the new files in the tree.
fn collect(tree: &Path, script: &str, made: &mut Made) -> io::Result<()> {
    for file in files_below(tree)? {
        made.entry(file).or_insert_with(|| script.to_owned());
    }
    Ok(())
}

/// The files below a folder, as paths from it.
fn files_below(folder: &Path) -> io::Result<Vec<String>> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(folder) {
                files.push(path.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Compares the files generated below `tree` with those below `root`. `committed` are the fixtures there; if
/// `everything` was generated, the others are orphans.
fn compare(
    root: &Path,
    tree: &Path,
    made: &Made,
    committed: &BTreeSet<String>,
    everything: bool,
) -> io::Result<Changes> {
    let mut changes = Changes::default();
    for (file, script) in made {
        let new = fs::read(tree.join(file))?;
        match fs::read(root.join(file)) {
            Ok(old) if old == new => {}
            Ok(_) => changes.differing.push(file.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => changes.differing.push(file.clone()),
            Err(e) => return Err(e),
        }
        if file.ends_with("/case.json") {
            let problem = origin_problem(&new, script);
            changes.origins.extend(problem.map(|problem| format!("{file}: {problem}")));
        }
    }
    for file in committed.iter().filter(|file| !made.contains_key(*file)) {
        if case_folder(file, made).is_some() {
            changes.stale.push(file.clone());
        } else if everything {
            changes.orphans.push(file.clone());
        }
    }
    Ok(changes)
}

/// The folder of the case that a file belongs to, if that case was generated.
fn case_folder<'a>(file: &'a str, made: &Made) -> Option<&'a str> {
    let ends = file.match_indices('/').map(|(end, _)| end);
    ends.map(|end| &file[..end]).find(|folder| made.contains_key(&format!("{folder}/case.json")))
}

/// The origin that a `case.json` declares.
#[derive(Deserialize)]
struct Origin {
    oracle: Option<String>,
    made_by: Option<String>,
    seed: Option<u64>,
    device: Option<String>,
}

/// What is missing in a `case.json` that `script` generated. It needs a program with its version, a device, a
/// seed, and the script. The script needs no arguments, so its name is the command.
fn origin_problem(case: &[u8], script: &str) -> Option<String> {
    let origin: Origin = match serde_json::from_slice(case) {
        Ok(origin) => origin,
        Err(e) => return Some(e.to_string()),
    };
    let has_version = |oracle: &str| {
        let version = oracle.split_whitespace().nth(1);
        version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    };
    if !origin.oracle.as_deref().is_some_and(has_version) {
        return Some("oracle does not name a program with its version".to_owned());
    }
    if origin.made_by.as_deref() != Some(&format!("xtask/python/{script}")) {
        return Some(format!("made_by does not name xtask/python/{script}"));
    }
    let missing = [("seed", origin.seed.is_none()), ("device", origin.device.is_none())];
    missing.iter().find(|(_, missing)| *missing).map(|(key, _)| format!("{key} is missing"))
}

/// Moves changed files into place; a case is moved as a whole folder.
fn install(root: &Path, tree: &Path, changes: &Changes) -> io::Result<()> {
    let mut cases = BTreeSet::new();
    for file in changes.differing.iter().chain(&changes.stale) {
        let folders = Path::new(file).ancestors().skip(1);
        match folders.into_iter().find(|folder| tree.join(folder).join("case.json").is_file()) {
            Some(folder) => drop(cases.insert(folder)),
            None => replace_file(&tree.join(file), &root.join(file))?,
        }
    }
    cases.into_iter().try_for_each(|case| replace_folder(&tree.join(case), &root.join(case)))
}

fn replace_file(new: &Path, old: &Path) -> io::Result<()> {
    fs::create_dir_all(parts(old)?.0)?;
    mlx_files::write(old, fs::read(new)?)
}

fn replace_folder(new: &Path, old: &Path) -> io::Result<()> {
    let (folder, name) = parts(old)?;
    fs::create_dir_all(folder)?;
    let beside = tempfile::Builder::new().prefix(&prefix(name)).tempdir_in(folder)?;
    let (copy, aside) = (beside.path().join("new"), beside.path().join("old"));
    copy_folder(new, &copy)?;
    if old.exists() {
        fs::rename(old, &aside)?;
    }
    fs::rename(&copy, old)
}

fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let nowhere = || io::Error::other(format!("{} has no folder", path.display()));
    Ok((path.parent().ok_or_else(nowhere)?, path.file_name().ok_or_else(nowhere)?))
}

fn prefix(name: &OsStr) -> String {
    format!(".{}-", name.to_string_lossy())
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for file in files_below(from)? {
        let target = to.join(&file);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(from.join(&file), target)?;
    }
    Ok(())
}

/// Prints the changes. Returns whether the fixtures are up to date.
fn report(changes: &Changes, made: &Made, check: bool, out: &mut impl Write) -> io::Result<bool> {
    let (differing, stale) = if check { ("differs", "would be removed") } else { ("written", "removed") };
    let groups = [
        (differing, &changes.differing),
        (stale, &changes.stale),
        ("generated by no script", &changes.orphans),
        ("without an origin", &changes.origins),
    ];
    for (what, files) in groups {
        for file in files {
            writeln!(out, "{what}: {file}")?;
        }
    }
    let Changes { differing, stale, orphans, origins } = changes;
    let (changed, wrong) = (differing.len() + stale.len(), orphans.len() + origins.len());
    writeln!(out, "{} files generated, {changed} changed, {wrong} wrong", made.len())?;
    if made.is_empty() {
        workspace::complain("no fixture matches");
    }
    Ok(wrong == 0 && !made.is_empty() && !(check && changed > 0))
}

/// Runs a program, and shows its output only if it fails.
fn quietly(command: &mut Command, name: &str) -> io::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{name} failed ({}):\n{}", output.status, python::last_lines(&said))))
}

/// Has mlx-lm read what this project writes: prompt caches, adapters and checkpoints that tests leave below the
/// target folder.
fn verify_ours() -> io::Result<bool> {
    let interpreter = python::interpreter(Environment::MlxLm)?;
    let root = workspace::root();
    let left = workspace::target_folder(&root)?.join("tmp");
    let left_by = |folder: &str| left.join(folder);
    for (package, features, test, folders) in [
        ("mlx-kvcache", "", "files", &["prompt-caches", "prompt-caches-of-ours"][..]),
        ("mlx-lille-130m", "", "adapters", &["adapters"]),
        ("mlx-models", "architectures", "convert", &["converted"]),
    ] {
        for folder in folders {
            // Files of an earlier run prove nothing.
            match fs::remove_dir_all(left_by(folder)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        workspace::complain(&format!("cargo test --package {package} --test {test} ..."));
        let mut tests = Command::new(env!("CARGO"));
        tests.args(["test", "--quiet", "--package", package, "--features", features, "--test", test]);
        tests.current_dir(&root);
        quietly(&mut tests, "cargo test")?;
    }
    let mut passed = true;
    for (script, folder) in [
        ("load_prompt_caches.py", root.join("crates/mlx-kvcache/tests/fixtures/mlx-lm")),
        ("load_prompt_caches.py", left_by("prompt-caches")),
        ("load_prompt_caches.py", left_by("prompt-caches-of-ours")),
        ("load_adapters.py", left_by("adapters")),
        ("load_converted.py", left_by("converted")),
    ] {
        workspace::complain(&format!("{script} {} ...", folder.display()));
        passed &= python::script(&interpreter, script).arg(folder).status()?.success();
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str =
        r#"{"oracle": "mlx-lm 0.32.2", "made_by": "xtask/python/a.py", "seed": 1, "device": "cpu"}"#;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let file = folder.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    /// The changes between two trees, if `a.py` generated everything.
    fn changes(root: &Path, tree: &Path, everything: bool) -> (Changes, Made) {
        let mut made = Made::new();
        collect(tree, "a.py", &mut made).unwrap();
        let committed = fixtures(&files_below(root).unwrap());
        (compare(root, tree, &made, &committed, everything).unwrap(), made)
    }

    fn said(changes: &Changes, made: &Made, check: bool) -> (bool, String) {
        let mut out = Vec::new();
        let right = report(changes, made, check, &mut out).unwrap();
        (right, String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_differs_is_named_and_put_in_place() {
        let (root, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, tree) = (root.path(), tree.path());
        write(
            root,
            &[
                ("xtask/cases/one/case.json", ORIGIN),
                ("xtask/cases/one/reference.safetensors", "old"),
                ("xtask/cases/one/adapters/stale.json", "{}"),
                ("xtask/cases/other/case.json", "{}"),
                ("crates/x/tests/fixtures/same.json", "1"),
                ("crates/x/tests/fixtures/other.json", "1"),
                ("crates/x/tests/all.rs", "no fixture"),
                ("crates/mlx-models-cli/demo/d/greedy.json", "old"),
                ("crates/mlx-models-cli/demo/d/config.json", "no fixture"),
            ],
        );
        write(
            tree,
            &[
                ("xtask/cases/one/case.json", ORIGIN),
                ("xtask/cases/one/reference.safetensors", "new"),
                ("xtask/cases/two/case.json", ORIGIN),
                ("crates/x/tests/fixtures/same.json", "1"),
                ("crates/mlx-models-cli/demo/d/greedy.json", "new"),
            ],
        );
        let (found, made) = changes(root, tree, true);
        let owned = |files: &[&str]| files.iter().map(|&file| file.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            found,
            Changes {
                differing: owned(&[
                    "crates/mlx-models-cli/demo/d/greedy.json",
                    "xtask/cases/one/reference.safetensors",
                    "xtask/cases/two/case.json",
                ]),
                stale: owned(&["xtask/cases/one/adapters/stale.json"]),
                orphans: owned(&["crates/x/tests/fixtures/other.json", "xtask/cases/other/case.json"]),
                origins: Vec::new(),
            }
        );
        let (right, text) = said(&found, &made, true);
        assert!(!right && text.contains("differs: xtask/cases/two/case.json\n"), "{text}");
        assert!(text.contains("would be removed: xtask/cases/one/adapters/stale.json\n"), "{text}");
        assert!(text.ends_with(
            "generated by no script: xtask/cases/other/case.json\n5 files generated, 4 changed, 2 wrong\n"
        ));

        install(root, tree, &found).unwrap();
        let (found, made) = changes(root, tree, false);
        assert_eq!(found, Changes::default());
        assert_eq!(said(&found, &made, true), (true, "5 files generated, 0 changed, 0 wrong\n".to_owned()));
        assert_eq!(fs::read(root.join("xtask/cases/one/reference.safetensors")).unwrap(), b"new");
        assert!(!root.join("xtask/cases/one/adapters").exists(), "stale");
        // Nothing else was removed, and no temporary file is left.
        assert_eq!(files_below(root).unwrap().len(), 9);
    }

    #[test]
    fn nothing_made_is_no_success() {
        assert!(!said(&Changes::default(), &Made::new(), true).0);
        let differing = Changes { differing: vec!["a".to_owned()], ..Changes::default() };
        let made = Made::from([("a".to_owned(), "a.py".to_owned())]);
        assert!(said(&differing, &made, false).0, "what is written is right");
    }

    #[test]
    fn an_origin_has_program_version_script_seed_and_device() {
        assert_eq!(origin_problem(ORIGIN.as_bytes(), "a.py"), None);
        for (from, to, problem) in [
            (" 0.32.2", "", "oracle"),
            ("mlx-lm 0.32.2", "mlx-lm newest", "oracle"),
            ("a.py", "b.py", "made_by does not name xtask/python/a.py"),
            ("\"seed\": 1, ", "", "seed is missing"),
            ("\"device\"", "\"devices\"", "device is missing"),
            ("{", "", "expected"),
        ] {
            let found = origin_problem(ORIGIN.replace(from, to).as_bytes(), "a.py");
            assert!(found.as_ref().is_some_and(|found| found.contains(problem)), "{from}: {found:?}");
        }
    }

    #[test]
    fn every_committed_case_says_where_it_comes_from() {
        let folder = workspace::root().join("xtask/cases");
        let cases = files_below(&folder).unwrap();
        let mut makers = BTreeSet::new();
        for case in cases.iter().filter(|file| file.ends_with("case.json")) {
            let text = fs::read(folder.join(case)).unwrap();
            let origin: Origin = serde_json::from_slice(&text).unwrap();
            let made_by = origin.made_by.unwrap_or_default();
            let script = made_by.strip_prefix("xtask/python/").unwrap_or_default();
            assert!(SCRIPTS.iter().any(|(name, _)| *name == script), "{case}: made by {made_by:?}");
            assert_eq!(origin_problem(&text, script), None, "{case}");
            makers.insert(script.to_owned());
        }
        assert!(makers.len() >= 10, "{makers:?}");
    }

    #[test]
    fn every_script_that_makes_fixtures_is_in_the_table() {
        let scripts = files_below(&python::scripts()).unwrap();
        let makers: BTreeSet<_> = scripts
            .iter()
            .filter(|name| name.ends_with(".py"))
            .filter(|name| name.starts_with("make_") || *name == "mlx_lm_on_transformers_cases.py")
            .map(String::as_str)
            .collect();
        assert_eq!(makers, SCRIPTS.iter().map(|(name, _)| *name).collect());
        assert!(scripts.iter().any(|name| name == DEMO_SCRIPT));
    }

    #[test]
    fn what_a_failing_script_says_is_repeated() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo choose another seed >&2; exit 3"]);
        let error = quietly(&mut command, "a.py").unwrap_err().to_string();
        assert!(error.starts_with("a.py failed") && error.ends_with("choose another seed"), "{error}");
    }
}
