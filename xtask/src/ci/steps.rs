//! Which steps run, as a function of what changed and of what the machine has. `docs/ci.md` is the list for readers.

mod platforms;

use std::collections::BTreeSet;
use std::env::consts::EXE_SUFFIX;
use std::path::{Path, PathBuf};
use std::process::Command;

use workspace::metadata::Metadata;

use super::changes::Changes;
use super::downstream;
use super::machine::Machine;
use crate::mutations;

/// The crates that can be used without the rest of this workspace, as their READMEs promise.
const STAND_ALONE: &[&str] = &["mlx-norms", "mlx-rope"];

/// The crates with kernels, and those between MLX and the kernels.
const NATIVE: [&str; 3] = ["mlx-cpu", "mlx-kernels", "mlx-sys"];

/// Folders and files on which each mutation depends: the table, and the program that has to notice the mistakes.
const MUTATIONS_DEPEND_ON: [&str; 4] =
    ["xtask/src/mutations/", "xtask/cases/", "crates/mlx-lab/src/main.rs", "crates/mlx-lab/src/parity/"];

/// How many mutations of unchanged files each run tries. Another commit tries others.
const SAMPLE: usize = 10;

/// A feature with which a build downloads 1.6 GB. Its steps run with `--all` only.
const LARGE: &str = "cuda";

/// The seconds of a plain run's fuzzing, and those with `--all`.
const FUZZING: [u32; 2] = [60, 600];

/// One run of a program, and what its output has to be.
pub(super) struct Step {
    pub(super) name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    /// The folder in which the program runs, from the workspace's root.
    folder: &'static str,
    /// Texts that the output must not contain.
    absent: Vec<String>,
    /// A text that the output must contain.
    present: String,
    /// What the machine lacks for the step, and how to install it. Such a step is not run, and does not pass.
    pub(super) lacks: Option<String>,
}

impl Step {
    fn cargo(name: &str, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: env!("CARGO").into(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            environment: Vec::new(),
            folder: "",
            absent: Vec::new(),
            present: String::new(),
            lacks: None,
        }
    }

    /// A step that runs a program of this workspace.
    fn program(name: &str, program: PathBuf, arguments: &str) -> Self {
        Self { program, ..Self::cargo(name, arguments) }
    }

    /// The step with one more argument, which may contain spaces.
    fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    fn environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    pub(super) fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().copied())
            .current_dir(root.join(self.folder));
        command
    }

    /// Whether the output has to be looked at.
    pub(super) fn checks_output(&self) -> bool {
        !self.absent.is_empty() || !self.present.is_empty()
    }

    pub(super) fn accepts(&self, output: &str) -> bool {
        output.contains(&self.present) && !self.absent.iter().any(|word| output.contains(word))
    }
}

/// What a run is asked for.
pub(super) struct Run<'a> {
    pub(super) changes: &'a Changes,
    /// Whether every check runs in full, whatever changed.
    pub(super) all: bool,
    /// The newest commit, which decides which mutations of unchanged files are tried.
    pub(super) commit: &'a str,
    /// The folder into which cargo builds programs.
    pub(super) programs: &'a Path,
    /// What the machine has for the checks of other platforms.
    pub(super) machine: &'a Machine,
}

/// Every step of a run, in order.
pub(super) fn steps(run: &Run<'_>, metadata: &Metadata) -> Vec<Step> {
    let Run { changes, all, commit, programs, .. } = *run;
    let program = |name: &str| programs.join(format!("{name}{EXE_SUFFIX}"));
    let lab = |name: &str, arguments: &str| Step::program(name, program("mlx-lab"), arguments);
    let cargo = Step::cargo;
    let strict = |step: Step| step.environment("RUSTDOCFLAGS", "--deny warnings");
    let features = features_together(metadata);
    let mut steps = vec![
        cargo("formatting", "fmt --all --check"),
        cargo("tidy", "run --quiet --package xtask -- tidy --dependencies"),
        cargo("workflows and shell scripts", "run --quiet --package xtask -- workflows"),
        cargo("clippy", &format!("clippy --workspace --all-targets {features} -- --deny warnings")),
        // All features include the one that leaves the kernels out. Only mlx-sys has it.
        cargo("clippy with kernels", "clippy --package mlx-sys --all-targets -- --deny warnings"),
        cargo("tests and doctests, the README's command", "test --workspace"),
        // With `--tests`, dependencies have the features that they have in the step before, so that only the programs
        // are compiled. `cargo run --package mlx-lab` would compile half of the dependencies again.
        cargo("programs", "build --workspace --bins --tests"),
        lab("parity", "parity"),
        lab("parity with kernels", "parity --kernels"),
        strict(cargo("docs", &format!("doc --workspace --no-deps {features}"))),
        strict(cargo("docs with kernels", "doc --package mlx-sys --package mlx-cpu --no-deps")),
    ];
    let changed = changed_crates(changes, metadata);
    if all || NATIVE.iter().any(|native| changed.contains(native)) {
        steps.extend(address_sanitizer());
    }
    steps.extend(platforms::aarch64(run));
    steps.extend(platforms::macs(run));
    steps.extend(features_alone(&changed, all, metadata));
    steps.extend(architectures_alone(metadata));
    steps.extend(components_alone(metadata));

    let mut readme = cargo("the README's first command", "run --release -- generate --prompt")
        .argument("Once upon a time");
    readme.present = " ".to_owned();
    steps.push(readme);

    // The fixed seed gives the same cases again, although a faster machine runs more of them.
    let seconds = FUZZING[usize::from(all)];
    let fuzz = format!("fuzz --seconds {seconds} --seed 1 --longest 120 --program");
    steps.push(lab("fuzz", &fuzz).argument(&program("mlx-models").to_string_lossy()));
    steps.push(mutations(changes, all, commit));

    let mut other = cargo("a project outside the workspace", "run --quiet");
    (other.folder, other.present) = (downstream::FOLDER, downstream::PRINTS.to_owned());
    steps.push(other.environment("CARGO_TARGET_DIR", "../downstream"));
    steps
}

/// The crates with a changed file. If the changes are unknown, none: the steps that ask run with `--all` only.
fn changed_crates<'a>(changes: &Changes, metadata: &'a Metadata) -> BTreeSet<&'a str> {
    let Changes::Known(files) = changes else { return BTreeSet::new() };
    let members = metadata.members().map(|package| &*package.name);
    if files.iter().any(|file| ["Cargo.toml", "Cargo.lock"].contains(&&**file) || file.starts_with(".cargo/"))
    {
        return members.collect();
    }
    let is_changed = |name: &&str| {
        let folder = if *name == "xtask" { "xtask/".to_owned() } else { format!("crates/{name}/") };
        // Tests of mlx-models read the cases and the demos.
        let read: &[&str] =
            if *name == "mlx-models" { &["xtask/cases/", "crates/mlx-models-cli/demo/"] } else { &[] };
        files
            .iter()
            .any(|file| file.starts_with(&folder) || read.iter().any(|folder| file.starts_with(folder)))
    };
    members.filter(is_changed).collect()
}

/// AddressSanitizer finds reads and writes outside of a kernel's tensors. The compiler option is unstable, but the
/// stable toolchain contains everything that it needs; Miri and a checked standard library would need a nightly
/// toolchain. It has its own target folder, because RUSTC_BOOTSTRAP would make cargo rebuild everything.
fn address_sanitizer() -> Option<Step> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        return None;
    }
    let arguments = "test --package mlx-cpu --target x86_64-unknown-linux-gnu";
    let step = Step::cargo("kernels with AddressSanitizer", arguments)
        .environment("CARGO_TARGET_DIR", "target/asan")
        .environment("RUSTC_BOOTSTRAP", "1")
        .environment("RUSTFLAGS", "-Zsanitizer=address")
        .environment("RUSTDOCFLAGS", "-Zsanitizer=address");
    Some(step)
}

/// The option that turns all features on, except the large one.
fn features_together(metadata: &Metadata) -> String {
    let features = metadata.features().into_iter().filter(|(_, name)| !name.is_empty() && name != LARGE);
    let features: Vec<String> = features.map(|(package, name)| format!("{package}/{name}")).collect();
    format!("--features {}", features.join(","))
}

/// Each feature alone, and no feature. All of them are compiled, with their tests. The tests run for crates that changed
/// or depend on one that did.
fn features_alone(changed: &BTreeSet<&str>, all: bool, metadata: &Metadata) -> Vec<Step> {
    let affected = metadata.with_dependents(changed);
    let mut steps = Vec::new();
    let is_cheap = |feature: &(String, String)| all || feature.1 != LARGE;
    for (package, feature) in metadata.features().into_iter().filter(is_cheap) {
        // The features of mlx-sys are the original's, which only have an effect on Apple, one without kernels, and the
        // large one, with which models run on a GPU alone unless the CPU is asked for.
        let tests = package != "mlx-sys" && feature != LARGE && (all || affected.contains(&*package));
        let verb = if tests { "test" } else { "check --all-targets" };
        let arguments = format!("{verb} --package {package} --no-default-features --features={feature}");
        steps.push(Step::cargo(&format!("{package} with {feature:?} alone"), &arguments));
    }
    if all {
        let tests = format!("test --package mlx-sys --features {LARGE} --test cuda");
        steps.push(Step::cargo("mlx-sys with \"cuda\", without a GPU", &tests));
    }
    steps
}

/// A feature must not compile what belongs to others.
fn architectures_alone(metadata: &Metadata) -> Vec<Step> {
    let architectures = metadata.architectures();
    let mut steps = Vec::new();
    for feature in std::iter::once("").chain(architectures.iter().map(|&(feature, _)| feature)) {
        let (own, others): (Vec<_>, Vec<_>) =
            architectures.iter().copied().partition(|(name, _)| *name == feature);
        let others = others.into_iter().map(|(_, name)| name);
        let arguments = format!(
            "tree --package mlx-models --edges normal --prefix none --format {{lib}} --no-default-features --features={feature}"
        );
        let mut step = Step::cargo(&format!("{feature:?} alone brings nothing else"), &arguments);
        step.absent = others.chain(["tokenizers", "mlx-tokenizer", "mlx-generate"]).map(library).collect();
        step.present = library(own.first().map_or("mlx-models", |(_, name)| name));
        steps.push(step);
    }
    steps
}

/// A component that stands alone brings mlx-rs, and so our mlx-sys and its kernels, but no other crate of ours.
fn components_alone(metadata: &Metadata) -> Vec<Step> {
    let mut steps = Vec::new();
    for package in STAND_ALONE {
        let arguments = format!("tree --package {package} --edges normal --prefix none --format {{lib}}");
        let mut step = Step::cargo(&format!("{package} stands alone"), &arguments);
        step.absent = metadata
            .members()
            .map(|member| &*member.name)
            .filter(|member| member != package && !NATIVE.contains(member))
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

/// The mutations of changed files, and some others. Each one builds the workspace again, which takes two seconds.
fn mutations(changes: &Changes, all: bool, commit: &str) -> Step {
    let step = Step::cargo("mutations", "run --quiet --package xtask -- mutations");
    let (files, seed) = match changes {
        Changes::Known(files) => (files.iter().collect(), commit),
        Changes::Unknown => (Vec::new(), "unknown"),
    };
    let depends = |file: &&String| MUTATIONS_DEPEND_ON.iter().any(|part| file.starts_with(part));
    if all || files.iter().any(depends) {
        return step;
    }
    let sampled = step.argument("--sample").argument(&SAMPLE.to_string()).argument("--seed").argument(seed);
    let with_mutations = files.into_iter().filter(|file| mutations::exist_for(file));
    with_mutations.fold(sampled, |step, file| step.argument("--file").argument(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        Metadata::of_workspace(&workspace::root()).unwrap()
    }

    fn known(files: &[&str]) -> Changes {
        Changes::Known(files.iter().map(|&file| file.to_owned()).collect())
    }

    fn steps_of(changes: &Changes, all: bool) -> Vec<Step> {
        let machine = Machine::default();
        let run = Run { changes, all, commit: "abc", programs: Path::new("built"), machine: &machine };
        steps(&run, &metadata())
    }

    /// The arguments of the steps, by their names.
    fn plan(changes: &Changes, all: bool) -> Vec<(String, String)> {
        let steps = steps_of(changes, all).into_iter();
        steps.map(|step| (step.name, step.arguments.join(" "))).collect()
    }

    fn command<'a>(plan: &'a [(String, String)], name: &str) -> Option<&'a str> {
        plan.iter().find(|(other, _)| other == name).map(|(_, command)| &**command)
    }

    const ASAN: &str = "kernels with AddressSanitizer";
    const MACS: &str = "Macs compile";
    const AARCH64: &str = "aarch64 Linux compiles";
    /// Whether this machine compiles for others.
    const CROSS: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    const NO_FEATURES: &str = "mlx-models with \"\" alone";

    #[test]
    fn every_run_has_every_check_that_is_cheap() {
        let plans =
            [known(&[]), known(&["README.md"]), Changes::Unknown].map(|changes| plan(&changes, false));
        let all = plan(&Changes::Unknown, true);
        for plan in &plans {
            let names: Vec<&String> = plan.iter().map(|(name, _)| name).collect();
            let is_cheap = |name: &&String| {
                let is_large = ["emulated", "\"cuda\""].iter().any(|word| name.contains(word));
                !is_large && ![ASAN, MACS, AARCH64].contains(&&***name)
            };
            let cheap: Vec<&String> = all.iter().map(|(name, _)| name).filter(is_cheap).collect();
            assert_eq!(names, cheap);
            assert!(command(plan, NO_FEATURES).unwrap().starts_with("check --all-targets "));
            assert!(command(plan, "fuzz").unwrap().contains("--seconds 60 "));
            let features = command(plan, "clippy").unwrap();
            assert!(features.contains("mlx-models/qwen3,") && !features.contains("cuda"), "{features}");
        }
        let sample =
            |plan| command(plan, "mutations").unwrap().split_once("mutations ").unwrap().1.to_owned();
        assert_eq!(sample(&plans[1]), "--sample 10 --seed abc");
        assert_eq!(sample(&plans[2]), "--sample 10 --seed unknown");
    }

    #[test]
    fn all_means_every_check_in_full() {
        let features = metadata().features();
        for changes in [known(&["README.md"]), Changes::Unknown] {
            let plan = plan(&changes, true);
            assert_eq!(command(&plan, ASAN).is_some(), address_sanitizer().is_some());
            assert!(command(&plan, "mutations").unwrap().ends_with("-- mutations"));
            assert!(command(&plan, "fuzz").unwrap().contains("--seconds 600 "));
            for (package, feature) in &features {
                let command = command(&plan, &format!("{package} with {feature:?} alone")).unwrap();
                let is_tested = package != "mlx-sys" && feature != LARGE;
                assert_eq!(command.starts_with("test "), is_tested, "{command}");
            }
        }
    }

    #[test]
    fn the_sanitizer_runs_if_a_kernel_or_the_seam_changed() {
        for (file, runs) in [
            ("crates/mlx-cpu/src/lib.rs", true),
            ("crates/mlx-kernels/src/table.rs", true),
            ("crates/mlx-sys/native/table.cpp", true),
            ("Cargo.lock", true),
            ("crates/mlx-rope/src/rope.rs", false),
        ] {
            let found = command(&plan(&known(&[file]), false), ASAN).is_some();
            assert_eq!(found, runs && address_sanitizer().is_some(), "{file}");
        }
    }

    #[test]
    fn a_step_that_the_machine_cannot_run_says_what_is_missing() {
        let steps = steps_of(&Changes::Unknown, true);
        let aarch64: Vec<&Step> = steps.iter().filter(|step| step.name.contains("aarch64")).collect();
        assert_eq!(aarch64.len(), if CROSS { 5 } else { 0 });
        for step in aarch64 {
            let lacks = step.lacks.as_deref().unwrap();
            assert!(lacks.contains("rustup target add aarch64") && lacks.contains("apt install g++-aarch64"));
            assert_eq!(lacks.contains("qemu"), step.name.contains("emulated"), "{}", step.name);
        }
        if let Some(macs) = steps.iter().find(|step| step.name == MACS) {
            let lacks = macs.lacks.as_deref().unwrap();
            assert!(lacks.ends_with("(`rustup target add aarch64-apple-darwin`)"), "{lacks}");
        }
    }

    #[test]
    fn other_platforms_are_checked_if_code_for_one_of_them_changed() {
        for (file, macs, aarch64) in [
            ("crates/mlx-sys/native/table.cpp", true, true),
            ("Cargo.lock", true, true),
            ("xtask/python/mac_sdk.py", true, false),
            ("xtask/python/requirements-apple.txt", true, false),
            ("crates/mlx-cpu/src/lib.rs", false, true),
            // Has a part for Unix.
            ("crates/mlx-models-cli/src/interrupt.rs", true, true),
            ("crates/mlx-rope/src/rope.rs", false, false),
            ("README.md", false, false),
        ] {
            let plan = plan(&known(&[file]), false);
            assert_eq!(command(&plan, MACS).is_some(), macs && cfg!(target_os = "linux"), "{file}");
            assert_eq!(command(&plan, AARCH64).is_some(), aarch64 && CROSS, "{file}");
        }
        let plan = plan(&known(&[]), true);
        assert_eq!(command(&plan, MACS).is_some(), cfg!(target_os = "linux"));
        assert_eq!(command(&plan, AARCH64).is_some(), CROSS);
    }

    #[test]
    fn features_are_tested_for_changed_crates_and_those_above() {
        let is_tested = |file: &str, package: &str| {
            let plan = plan(&known(&[file]), false);
            command(&plan, &format!("{package} with \"\" alone")).unwrap().starts_with("test ")
        };
        for (file, package, expected) in [
            ("crates/mlx-models/src/lib.rs", "mlx-models", true),
            // Through mlx-layers and the architectures.
            ("crates/mlx-rope/src/rope.rs", "mlx-models", true),
            ("crates/mlx-rope/src/rope.rs", "mlx-safetensors", false),
            ("crates/mlx-models-cli/src/main.rs", "mlx-models", false),
            ("xtask/cases/lille_q4/case.json", "mlx-models", true),
            ("crates/mlx-models-cli/demo/phi3/config.json", "mlx-models", true),
            // Through mlx-rs, which is of another workspace.
            ("crates/mlx-sys/native/table.cpp", "mlx-safetensors", true),
            ("crates/mlx-cpu/src/lib.rs", "mlx-norms", true),
            ("Cargo.toml", "mlx-safetensors", true),
            ("docs/rope.md", "mlx-models", false),
        ] {
            assert_eq!(is_tested(file, package), expected, "{file}: {package}");
        }
    }

    #[test]
    fn mutations_of_changed_files_are_tried() {
        let of = |files: &[&str]| {
            let plan = plan(&known(files), false);
            command(&plan, "mutations").unwrap().split_once("-- mutations").unwrap().1.trim().to_owned()
        };
        let rope = "crates/mlx-rope/src/rope.rs";
        assert_eq!(of(&[rope, "README.md"]), format!("--sample 10 --seed abc --file {rope}"));
        assert_eq!(of(&["crates/mlx-hub/src/lib.rs"]), "--sample 10 --seed abc");
        for file in ["xtask/src/mutations/table.rs", "crates/mlx-lab/src/parity/model.rs"] {
            assert_eq!(of(&[rope, file]), "", "{file}: all of them");
        }
    }

    #[test]
    fn components_that_stand_alone_bring_no_other_crate_of_ours() {
        let root = workspace::root();
        let steps = steps_of(&Changes::Unknown, false).into_iter();
        let alone: Vec<Step> = steps.filter(|step| step.name.ends_with("stands alone")).collect();
        assert_eq!(alone.len(), STAND_ALONE.len());
        for step in &alone {
            assert!(step.absent.contains(&"mlx_tap".to_owned()), "{:?}", step.absent);
            let output = String::from_utf8(step.command(&root).output().unwrap().stdout).unwrap();
            assert!(step.accepts(&output), "{}", step.name);
            assert!(!step.accepts(&format!("{output}mlx_tap")));
        }
    }

    #[test]
    fn each_architecture_alone_is_without_the_others() {
        let root = workspace::root();
        let steps = steps_of(&Changes::Unknown, false).into_iter();
        let minimal: Vec<Step> =
            steps.filter(|step| step.name.ends_with("alone brings nothing else")).collect();
        // No architecture, and each of at least five.
        assert!(minimal.len() > 5);
        for step in &minimal {
            let output = String::from_utf8(step.command(&root).output().unwrap().stdout).unwrap();
            assert!(step.accepts(&output), "{}", step.name);
            // The step fails with another architecture in the output, and without its own.
            assert!(!step.accepts(&format!("{output}{}", step.absent[0])) && !step.accepts(""));
        }
    }
}
