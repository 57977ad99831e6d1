//! `cargo xtask ci`: runs every check that a change must pass. `.ci/run` calls it after it has made sure that
//! the machine has the required programs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use workspace::metadata::Metadata;

/// The crates that can be used without the rest of this workspace, as their READMEs promise.
const STAND_ALONE: &[&str] = &["mlx-norms", "mlx-rope"];

/// One command to run.
struct Step {
    name: String,
    command: Command,
    /// Texts that its output must not contain.
    absent: Vec<String>,
    /// A text that its output must contain.
    present: String,
}

pub(crate) fn run() -> io::Result<bool> {
    let root = workspace::root();
    let downstream = write_downstream_project(&root)?;
    let mut failed = Vec::new();
    let steps = steps(&root, &downstream, &Metadata::of_workspace(&root)?);
    let count = steps.len();
    for mut step in steps {
        let started = Instant::now();
        announce(&format!("--- {}", step.name))?;
        let passed = run_step(&mut step)?;
        let verdict = if passed { "passed" } else { "FAILED" };
        announce(&format!("--- {}: {verdict} in {:.0} s", step.name, started.elapsed().as_secs_f64()))?;
        if !passed {
            failed.push(step.name);
        }
    }
    for name in &failed {
        announce(&format!("failed: {name}"))?;
    }
    announce(&format!("{} passed, {} failed", count - failed.len(), failed.len()))?;
    Ok(failed.is_empty())
}

/// Every step, in the order in which they run.
fn steps(root: &Path, downstream: &Path, metadata: &Metadata) -> Vec<Step> {
    let cargo = |name: &str, arguments: &str| cargo(root, name, arguments);
    let mut steps = vec![
        cargo("formatting", "fmt --all --check"),
        cargo("tidy", "run --quiet --package xtask -- tidy --dependencies"),
        cargo("clippy", "clippy --workspace --all-targets --all-features -- --deny warnings"),
        // All features include the one that leaves the kernels out.
        cargo("clippy with kernels", "clippy --workspace --all-targets -- --deny warnings"),
        cargo("tests and doctests, the README's command", "test --workspace"),
        cargo("parity", "run --quiet --package xtask -- parity"),
        cargo("parity with kernels", "run --quiet --package xtask -- parity --kernels"),
    ];

    let mut docs = cargo("docs", "doc --workspace --no-deps --all-features");
    docs.command.env("RUSTDOCFLAGS", "--deny warnings");
    steps.push(docs);
    let mut docs = cargo("docs with kernels", "doc --package mlx-sys --package mlx-cpu --no-deps");
    docs.command.env("RUSTDOCFLAGS", "--deny warnings");
    steps.push(docs);

    steps.extend(address_sanitizer(root));
    steps.extend(features_alone(root, metadata));
    steps.extend(architectures_alone(root, metadata));
    steps.extend(components_alone(root, metadata));

    let mut readme = cargo("the README's first command", "run --release -- generate --prompt");
    readme.command.arg("Once upon a time");
    readme.present = " ".to_owned();
    steps.push(readme);

    // The fixed seed gives the same cases again, although a faster machine runs more of them.
    steps.push(cargo("fuzz", "run --quiet --package xtask -- fuzz --seconds 60 --seed 1 --longest 120"));

    // This builds the workspace some ninety times, in a few seconds each.
    steps.push(cargo("mutations", "run --quiet --package xtask -- mutations"));

    let mut other = cargo("a project outside the workspace", "run --quiet");
    other.command.current_dir(downstream).env("CARGO_TARGET_DIR", root.join("target/downstream"));
    other.present = "[2, 4]".to_owned();
    steps.push(other);
    steps
}

/// A step that runs cargo and passes if cargo does.
fn cargo(root: &Path, name: &str, arguments: &str) -> Step {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments.split_whitespace()).current_dir(root);
    Step { name: name.to_owned(), command, absent: Vec::new(), present: String::new() }
}

/// AddressSanitizer finds reads and writes outside of a kernel's tensors. The compiler option is unstable, but the
/// stable toolchain contains everything that it needs; Miri and a checked standard library would need a nightly
/// toolchain. It has its own target folder, because RUSTC_BOOTSTRAP would make cargo rebuild everything.
fn address_sanitizer(root: &Path) -> Option<Step> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        return None;
    }
    let arguments = "test --package mlx-cpu --target x86_64-unknown-linux-gnu";
    let mut step = cargo(root, "kernels with AddressSanitizer", arguments);
    step.command.env("CARGO_TARGET_DIR", root.join("target/asan"));
    step.command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    Some(step)
}

/// Each feature alone, and no feature. The tests run too, because they depend on the features.
fn features_alone(root: &Path, metadata: &Metadata) -> Vec<Step> {
    let mut steps = Vec::new();
    for (package, feature) in metadata.features() {
        // The features of mlx-sys are the original's, which only have an effect on Apple, and one without
        // kernels.
        let verb = if package == "mlx-sys" { "check" } else { "test" };
        let arguments = format!("{verb} --package {package} --no-default-features --features={feature}");
        steps.push(cargo(root, &format!("{package} with {feature:?} alone"), &arguments));
    }
    steps
}

/// A feature must not compile what belongs to others.
fn architectures_alone(root: &Path, metadata: &Metadata) -> Vec<Step> {
    let architectures = metadata.architectures();
    let mut steps = Vec::new();
    for feature in std::iter::once("").chain(architectures.iter().map(|&(feature, _)| feature)) {
        let (own, others): (Vec<_>, Vec<_>) =
            architectures.iter().copied().partition(|(name, _)| *name == feature);
        let others = others.into_iter().map(|(_, name)| name);
        let arguments = format!(
            "tree --package mlx-models --edges normal --prefix none --format {{lib}} --no-default-features --features={feature}"
        );
        let mut step = cargo(root, &format!("{feature:?} alone brings nothing else"), &arguments);
        step.absent = others.chain(["tokenizers", "mlx-tokenizer", "mlx-generate"]).map(library).collect();
        step.present = library(own.first().map_or("mlx-models", |(_, name)| name));
        steps.push(step);
    }
    steps
}

/// A component that stands alone brings mlx-rs, and so our mlx-sys and its kernels, but no other crate of ours.
fn components_alone(root: &Path, metadata: &Metadata) -> Vec<Step> {
    let mut steps = Vec::new();
    for package in STAND_ALONE {
        let arguments = format!("tree --package {package} --edges normal --prefix none --format {{lib}}");
        let mut step = cargo(root, &format!("{package} stands alone"), &arguments);
        step.absent = metadata
            .members()
            .map(|member| &*member.name)
            .filter(|member| member != package && !["mlx-sys", "mlx-cpu"].contains(member))
            .map(library)
            .collect();
        step.present = library(package);
        steps.push(step);
    }
    steps
}

/// The name of a crate in Rust code, and in the output of `cargo tree --format {lib}`.
fn library(package: &str) -> String {
    package.replace('-', "_")
}

/// Runs a step and shows its output, unless the output is checked.
fn run_step(step: &mut Step) -> io::Result<bool> {
    if step.absent.is_empty() && step.present.is_empty() {
        return Ok(step.command.status()?.success());
    }
    let output = step.command.stderr(io::stderr()).output()?;
    io::stdout().write_all(&output.stdout)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let right = text.contains(&step.present) && !step.absent.iter().any(|word| text.contains(word));
    Ok(output.status.success() && right)
}

/// Writes a project outside this workspace, with the lines of `crates/mlx-sys/README.md` in its manifest.
fn write_downstream_project(root: &Path) -> io::Result<std::path::PathBuf> {
    let folder = root.join("target/downstream-project");
    fs::create_dir_all(folder.join("src"))?;
    let readme = fs::read_to_string(root.join("crates/mlx-sys/README.md"))?;
    let lines =
        readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let lines = lines.replace("path/to/mlx-models", &root.display().to_string());
    let manifest = format!(
        "[package]\nname = \"downstream\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{lines}\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    let main = "fn main() {\n    let x = mlx_rs::Array::from_slice(&[1.0_f32, 2.0], &[2]);\n    println!(\"{}\", x.add(&x).unwrap());\n}\n";
    fs::write(folder.join("src/main.rs"), main)?;
    Ok(folder)
}

fn announce(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_that_stand_alone_bring_no_other_crate_of_ours() {
        let root = workspace::root();
        let metadata = Metadata::of_workspace(&root).unwrap();
        let mut alone: Vec<Step> = steps(&root, &root, &metadata)
            .into_iter()
            .filter(|step| step.name.ends_with("stands alone"))
            .collect();
        assert_eq!(alone.len(), STAND_ALONE.len());
        for step in &mut alone {
            assert!(step.absent.contains(&"mlx_tap".to_owned()), "{:?}", step.absent);
            assert!(run_step(step).unwrap(), "{}", step.name);
            let mut command = Command::new("echo");
            command.args([&*step.present, "mlx_tap"]);
            let (absent, present) = (step.absent.clone(), step.present.clone());
            assert!(!run_step(&mut Step { name: String::new(), command, absent, present }).unwrap());
        }
    }

    #[test]
    fn each_architecture_alone_is_without_the_others() {
        let root = workspace::root();
        let metadata = Metadata::of_workspace(&root).unwrap();
        let mut minimal: Vec<Step> = steps(&root, &root, &metadata)
            .into_iter()
            .filter(|step| step.name.ends_with("alone brings nothing else"))
            .collect();
        // No architecture, and each of at least five.
        assert!(minimal.len() > 5);
        for step in &mut minimal {
            assert!(run_step(step).unwrap(), "{}", step.name);
            // The step fails with another architecture in the output, and without its own.
            for output in [vec![&step.present, &step.absent[0]], vec![]] {
                let mut command = Command::new("echo");
                command.args(output);
                let (absent, present) = (step.absent.clone(), step.present.clone());
                assert!(!run_step(&mut Step { name: String::new(), command, absent, present }).unwrap());
            }
        }
    }
}
