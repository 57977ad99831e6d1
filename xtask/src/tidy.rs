//! `cargo xtask tidy`: checks what neither the compiler nor clippy can.

mod circles;
mod packages;
mod threads;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use workspace::metadata::{Metadata, Package};
use workspace::parity_list;

/// The crates of this workspace that each crate may depend on, as in `docs/architecture.md`. Tests may use more. A crate
/// without a row is a problem too, so that the decision is not forgotten. Only architectures, which the facade's feature
/// `architectures` lists, need no row: they may depend on [`ARCHITECTURE`], and the facade on them.
const LAYERS: &[(&str, &[&str])] = &[
    ("mlx-cpu", &[]),
    ("mlx-kernels", &["mlx-cpu"]),
    ("mlx-sys", &["mlx-kernels"]),
    ("mlx-files", &[]),
    ("mlx-safetensors", &[]),
    ("mlx-tap", &[]),
    ("mlx-norms", &["mlx-tap"]),
    ("mlx-rope", &[]),
    ("mlx-quantization", &["mlx-sys"]),
    ("mlx-attn-masks", &[]),
    ("mlx-kvcache", &["mlx-attn-masks", "mlx-files", "mlx-quantization", "mlx-safetensors"]),
    ("mlx-layers", &["mlx-attn-masks", "mlx-kvcache", "mlx-quantization", "mlx-rope", "mlx-tap"]),
    ("mlx-checkpoint", &["mlx-files", "mlx-gguf", "mlx-layers", "mlx-quantization", "mlx-safetensors"]),
    ("mlx-causal-lm", &["mlx-checkpoint", "mlx-kvcache", "mlx-rope", "mlx-tap"]),
    ("mlx-config", &["mlx-kvcache", "mlx-rope"]),
    (
        "mlx-decoder",
        &[
            "mlx-causal-lm",
            "mlx-checkpoint",
            "mlx-config",
            "mlx-kvcache",
            "mlx-layers",
            "mlx-norms",
            "mlx-rope",
        ],
    ),
    (
        "mlx-models",
        &[
            "mlx-causal-lm",
            "mlx-checkpoint",
            "mlx-files",
            "mlx-generate",
            "mlx-gguf",
            "mlx-kvcache",
            "mlx-sys",
            "mlx-tokenizer",
        ],
    ),
    ("mlx-generate", &["mlx-causal-lm", "mlx-files", "mlx-kvcache", "mlx-sys"]),
    ("mlx-tokenizer", &["mlx-files", "mlx-gguf"]),
    ("mlx-hub", &["mlx-files"]),
    ("mlx-gguf", &["mlx-files"]),
    ("mlx-models-cli", &["mlx-files", "mlx-hub", "mlx-models", "mlx-safetensors", "mlx-sys"]),
    (
        "mlx-testing",
        &[
            "mlx-causal-lm",
            "mlx-checkpoint",
            "mlx-config",
            "mlx-decoder",
            "mlx-generate",
            "mlx-kvcache",
            "mlx-layers",
            "mlx-quantization",
            "mlx-safetensors",
            "mlx-sys",
        ],
    ),
    (
        "mlx-lab",
        &[
            "mlx-cpu",
            "mlx-files",
            "mlx-gguf",
            "mlx-kvcache",
            "mlx-models",
            "mlx-rope",
            "mlx-safetensors",
            "mlx-sys",
            "mlx-testing",
            "xtask",
        ],
    ),
    ("xtask", &["mlx-files"]),
];

/// The crates that an architecture may depend on: components and the contract, and no other architecture.
const ARCHITECTURE: &[&str] = &[
    "mlx-attn-masks",
    "mlx-causal-lm",
    "mlx-checkpoint",
    "mlx-config",
    "mlx-decoder",
    "mlx-kvcache",
    "mlx-layers",
    "mlx-norms",
    "mlx-rope",
];

/// The longest `model.rs`, in lines. A longer one contains something that should be a component (mlx-lm's have 155 to 257).
const LONGEST_MODEL: usize = 400;

/// The largest fixture, all fixtures together, and the largest demo checkpoint, in bytes.
const LARGEST_FIXTURE: u64 = 1_000_000;
const ALL_FIXTURES: u64 = 25_000_000;
const LARGEST_DEMO: u64 = 2_500_000;

/// Arguments of `cargo xtask tidy`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Check also that no dependency needs a newer compiler than the workspace; cargo downloads packages that it lacks
    #[arg(long)]
    dependencies: bool,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let root = workspace::root();
    let files = workspace::tracked_files(&root)?;
    let metadata = if arguments.dependencies {
        Metadata::with_dependencies(&root)?
    } else {
        Metadata::of_workspace(&root)?
    };

    let mut problems = Vec::new();
    check_layers(&metadata, &mut problems);
    check_msrv(&root, &metadata, &mut problems)?;
    check_files(&root, &files, &mut problems)?;
    check_sizes(&root, &files, &mut problems)?;
    check_circles(&root, &files, &mut problems)?;
    check_threads(&root, &metadata, &files, &mut problems)?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    for Package { name, keywords, .. } in metadata.members() {
        problems.extend(packages::missing(name, &files, &manifest, keywords));
    }
    let cases = files.iter().filter_map(|file| file.strip_prefix("xtask/cases/")?.strip_suffix("/case.json"));
    parity_list::check(&root, &cases.collect(), &mut problems)?;

    let mut out = io::stdout().lock();
    for problem in &problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(out, "tidy: {} files, {} problems", files.len(), problems.len())?;
    Ok(problems.is_empty())
}

/// Checks that crates only depend on crates below them.
fn check_layers(metadata: &Metadata, problems: &mut Vec<String>) {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let members: Vec<&Package> = metadata.members().collect();
    let names: BTreeSet<&str> = members.iter().map(|package| package.name.as_str()).collect();
    let architectures: BTreeSet<&str> = metadata.architectures().into_iter().map(|(_, name)| name).collect();
    for package in members {
        let row = layers.get(package.name.as_str()).copied();
        let Some(allowed) = row.or(architectures.contains(package.name.as_str()).then_some(ARCHITECTURE))
        else {
            problems
                .push(format!("{}: has no place in the table of layers in xtask/src/tidy.rs", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind.is_none()) {
            let name = dependency.name.as_str();
            let is_facade = package.name == "mlx-models";
            let allowed = allowed.contains(&name) || (is_facade && architectures.contains(name));
            if names.contains(name) && !allowed {
                problems.push(format!("{}: must not depend on {name}", package.name));
            }
        }
    }
}

/// Checks that no crate needs a newer compiler than this workspace promises, and that CI builds with the promised
/// compiler.
fn check_msrv(root: &Path, metadata: &Metadata, problems: &mut Vec<String>) -> io::Result<()> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let msrv = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
    let Some(msrv) = msrv else {
        problems.push("Cargo.toml: the workspace has no rust-version".to_owned());
        return Ok(());
    };
    for package in &metadata.packages {
        if let Some(needed) = &package.rust_version
            && numbers(needed) > numbers(msrv)
        {
            let Package { name, version, .. } = package;
            problems.push(format!("{name} {version} needs Rust {needed}, and the workspace promises {msrv}"));
        }
    }
    let compiler = Command::new("rustc").arg("--version").current_dir(root).output()?;
    let compiler = String::from_utf8_lossy(&compiler.stdout).into_owned();
    let compiler = compiler.split_whitespace().nth(1).unwrap_or_default();
    if std::env::var_os("CI").is_some() && numbers(compiler)[..2] != numbers(msrv)[..2] {
        problems.push(format!("rust-version is {msrv}, but CI builds with {compiler}"));
    }
    Ok(())
}

fn numbers(version: &str) -> [u64; 3] {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    [(); 3].map(|()| numbers.next().unwrap_or(0))
}

fn check_files(root: &Path, files: &[String], problems: &mut Vec<String>) -> io::Result<()> {
    // Put together at run time, so that this file does not contain them.
    let forbidden: Vec<String> = ["root", "home", "work", "Users"].map(|top| format!("/{top}/")).into();
    let hosts = [("://crates", "io"), ("index.crates", "io"), ("pypi", "org"), ("pythonhosted", "org")]
        .map(|(name, top)| format!("{name}.{top}"));
    for file in files {
        let Ok(text) = String::from_utf8(fs::read(root.join(file))?) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(path) = forbidden.iter().find(|path| starts_a_path(line, path)) {
                problems.push(format!("{file}:{}: a path of one machine ({path})", number + 1));
            }
        }
        if words::is_checked(file) {
            let found = words::forbidden(&text).into_iter();
            problems.extend(found.map(|(line, problem)| format!("{file}:{line}: {problem}")));
        }
        // Packages are referred to by name; the ordinary clients know the hosts.
        for host in hosts.iter().filter(|&host| text.contains(host)) {
            problems.push(format!("{file}: names the host of a registry ({host})"));
        }
        // Generated files are included in others, where such a description is not allowed.
        if file.ends_with(".rs") && !file.contains("/generated/") && !text.starts_with("//!") {
            problems.push(format!("{file}: does not begin with a description (//!)"));
        }
        if file.ends_with("/model.rs") && file.starts_with("crates/") && text.lines().count() > LONGEST_MODEL
        {
            problems.push(format!("{file}: over {LONGEST_MODEL} lines; a component is missing"));
        }
        if file.ends_with("Cargo.toml") && file != "Cargo.toml" && !inherits_lints(file, &text) {
            problems.push(format!("{file}: does not inherit the workspace's lints"));
        }
    }
    Ok(())
}

/// Checks that no files of a crate use each other in a circle.
fn check_circles(root: &Path, files: &[String], problems: &mut Vec<String>) -> io::Result<()> {
    let mut sources: BTreeMap<&str, Vec<(&str, String)>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        if let Some(at) = file.find("/src/") {
            let text = fs::read_to_string(root.join(file))?;
            sources.entry(&file[..at + "/src/".len()]).or_default().push((file, text));
        }
    }
    for (source, files) in &sources {
        for circle in circles::between(source, files) {
            let circle = circle.join(", ");
            problems.push(format!("{circle}: use each other; move what they share into another file"));
        }
    }
    Ok(())
}

/// Checks that libraries that use MLX start no threads.
fn check_threads(
    root: &Path,
    metadata: &Metadata,
    files: &[String],
    problems: &mut Vec<String>,
) -> io::Result<()> {
    for Package { name, dependencies, .. } in metadata.members() {
        if !dependencies.iter().any(|dependency| dependency.name == "mlx-rs" && dependency.kind.is_none()) {
            continue;
        }
        let source = format!("crates/{name}/src/");
        for file in files.iter().filter(|file| file.starts_with(&source) && file.ends_with(".rs")) {
            if let Some(start) = threads::started(name, &fs::read_to_string(root.join(file))?) {
                problems.push(format!("{file}: {start}; MLX computes on the threads of callers only"));
            }
        }
    }
    Ok(())
}

/// Whether a path in the line begins with `path`, and does not only contain it.
fn starts_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '~' | '}' | '*'))
    })
}

/// The crates that may contain `unsafe` code, which the workspace's lints forbid.
const UNSAFE: [&str; 4] =
    ["crates/mlx-cpu/", "crates/mlx-kernels/", "crates/mlx-sys/", "crates/mlx-quantization/"];

fn inherits_lints(file: &str, text: &str) -> bool {
    text.contains("[lints]\nworkspace = true") || UNSAFE.iter().any(|folder| file.starts_with(folder))
}

fn check_sizes(root: &Path, files: &[String], problems: &mut Vec<String>) -> io::Result<()> {
    let mut all = 0;
    let mut demos: BTreeMap<&str, u64> = BTreeMap::new();
    for file in files {
        let size = fs::metadata(root.join(file))?.len();
        if file.starts_with("xtask/cases/") {
            all += size;
            if size > LARGEST_FIXTURE {
                problems.push(format!("{file}: {size} bytes; a fixture may have at most {LARGEST_FIXTURE}"));
            }
        }
        if let Some((demo, _)) = file.rsplit_once('/').filter(|(folder, _)| folder.contains("/demo/")) {
            *demos.entry(demo).or_default() += size;
        }
    }
    if all > ALL_FIXTURES {
        problems
            .push(format!("xtask/cases: {all} bytes; all fixtures together may have at most {ALL_FIXTURES}"));
    }
    for (demo, size) in demos {
        if size > LARGEST_DEMO {
            problems.push(format!("{demo}: {size} bytes; a demo checkpoint may have at most {LARGEST_DEMO}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use workspace::metadata::Dependency;

    use super::*;

    fn package(name: &str, dependencies: &[&str], rust_version: &str) -> Package {
        Package {
            keywords: Vec::new(),
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            rust_version: Some(rust_version.to_owned()),
            dependencies: dependencies
                .iter()
                .map(|name| Dependency { name: (*name).to_owned(), kind: None })
                .collect(),
            features: BTreeMap::new(),
        }
    }

    fn workspace(packages: Vec<Package>) -> Metadata {
        let workspace_members = packages.iter().map(|package| package.id.clone()).collect();
        Metadata { packages, workspace_members }
    }

    #[test]
    fn arrows_that_point_up_are_found() {
        let mut problems = Vec::new();
        let up = workspace(vec![
            package("mlx-kvcache", &["mlx-attn-masks", "mlx-rope", "serde"], "1.60"),
            package("mlx-rope", &[], "1.60"),
            package("mlx-attn-masks", &[], "1.60"),
            package("mlx-new", &[], "1.60"),
        ]);
        check_layers(&up, &mut problems);
        assert_eq!(
            problems,
            [
                "mlx-kvcache: must not depend on mlx-rope",
                "mlx-new: has no place in the table of layers in xtask/src/tidy.rs"
            ]
        );
    }

    #[test]
    fn architectures_are_what_the_facade_lists() {
        let mut facade = package("mlx-models", &["mlx-new", "mlx-other"], "1.60");
        facade.features = BTreeMap::from(
            [("architectures", &["new"][..]), ("new", &["dep:mlx-new"]), ("other", &["dep:mlx-other"])].map(
                |(name, parts)| (name.to_owned(), parts.iter().map(|part| (*part).to_owned()).collect()),
            ),
        );
        let all = workspace(vec![
            facade,
            package("mlx-new", &["mlx-rope", "mlx-other"], "1.60"),
            package("mlx-other", &[], "1.60"),
            package("mlx-rope", &[], "1.60"),
        ]);
        assert_eq!(all.architectures(), [("new", "mlx-new")]);
        let mut problems = Vec::new();
        check_layers(&all, &mut problems);
        assert_eq!(
            problems,
            [
                "mlx-models: must not depend on mlx-other",
                "mlx-new: must not depend on mlx-other",
                "mlx-other: has no place in the table of layers in xtask/src/tidy.rs",
            ]
        );
    }

    #[test]
    fn a_dependency_for_a_newer_compiler_is_found() {
        let mut problems = Vec::new();
        check_msrv(&workspace::root(), &workspace(vec![package("new", &[], "9.1")]), &mut problems).unwrap();
        assert!(problems[0].starts_with("new 1.0.0 needs Rust 9.1"), "{problems:?}");
    }

    #[test]
    fn files_with_paths_or_hosts_or_without_docs_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let home = format!("/{}/me", "home");
        fs::write(folder.path().join("a.rs"), format!("fn a() {{}} // {home}")).unwrap();
        fs::write(folder.path().join("b.md"), format!("see ~{home} and x{home}")).unwrap();
        fs::write(folder.path().join("c.md"), format!("from https{}.io", "://crates")).unwrap();
        let mut problems = Vec::new();
        check_files(folder.path(), &["a.rs", "b.md", "c.md"].map(str::to_owned), &mut problems).unwrap();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[2].starts_with("c.md: names the host of a registry"));
        assert!(problems[0].starts_with("a.rs:1: a path") && problems[1].starts_with("a.rs: does not begin"));
    }
}
