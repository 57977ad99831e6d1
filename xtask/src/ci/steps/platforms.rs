//! Steps for other platforms than the one on which the checks run.

use std::path::Path;

use super::super::changes::Changes;
use super::{Run, Step};

/// Linux on aarch64: its target, its C++ compiler and linker, and the emulator of its processor with the folder of its
/// libraries.
const AARCH64: &str = "aarch64-unknown-linux-gnu";
const AARCH64_COMPILER: &str = "aarch64-linux-gnu-g++";
const AARCH64_EMULATOR: &str = "qemu-aarch64-static";
const AARCH64_RUNNER: &str = "qemu-aarch64-static -L /usr/aarch64-linux-gnu";

/// The beginnings of the paths of files that matter for aarch64 in another way.
const OF_AARCH64: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", ".cargo/", "crates/mlx-cpu/", "crates/mlx-kernels/", "crates/mlx-sys/"];

/// Macs with Apple silicon.
const MAC: &str = "aarch64-apple-darwin";

/// The beginnings of the paths of files that matter for Macs only, or for each platform in another way.
const OF_MACS: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    ".cargo/",
    "crates/mlx-sys/",
    "xtask/src/apple/",
    "xtask/python/mac_",
    "xtask/python/requirements-apple",
];

/// Rust code with one of these texts is compiled for some systems or processors only.
const NAMES_A_SYSTEM: [&str; 5] = ["target_os", "target_vendor", "target_arch", "cfg(unix", "cfg(not(unix"];

/// Everything is compiled for aarch64 Linux, if a changed file may compile here and not there. With `--all`, the tests of the
/// kernels, all parity cases and the program run in an emulator.
pub(super) fn aarch64(run: &Run<'_>) -> Vec<Step> {
    // On such a machine the other steps check the same.
    let is_other = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    if !is_other || !(run.all || concerns(run.changes, &OF_AARCH64)) {
        return Vec::new();
    }
    let step = |name: &str, arguments: &str, programs: &[&str]| Step {
        lacks: run.machine.lacks(AARCH64, programs),
        ..Step::cargo(name, arguments)
            .environment("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", AARCH64_COMPILER)
            .environment("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", AARCH64_RUNNER)
    };
    let everything = format!("clippy --workspace --all-targets --target {AARCH64} -- --deny warnings");
    let mut steps = vec![step("aarch64 Linux compiles", &everything, &[AARCH64_COMPILER])];
    if !run.all {
        return steps;
    }
    let emulated = |what: &str, arguments: &str| {
        step(&format!("{what}, emulated aarch64"), arguments, &[AARCH64_COMPILER, AARCH64_EMULATOR])
    };
    let lab = format!("run --package mlx-lab --target {AARCH64} -- parity");
    let generate = format!("run --package mlx-models-cli --target {AARCH64} -- generate --prompt");
    let mut program = emulated("the README's first command", &generate).argument("Once upon a time");
    program.present = " ".to_owned();
    steps.extend([
        emulated("kernels", &format!("test --package mlx-cpu --target {AARCH64}")),
        emulated("parity", &lab),
        emulated("parity with kernels", &format!("{lab} --kernels")),
        program,
    ]);
    steps
}

/// Everything is compiled for Macs, if a changed file may compile here and not there.
pub(super) fn macs(run: &Run<'_>) -> Option<Step> {
    // On a Mac the other steps check the same.
    let step = Step {
        lacks: run.machine.lacks(MAC, &[]),
        ..Step::cargo("Macs compile", "run --quiet --package xtask -- apple --check")
    };
    (cfg!(target_os = "linux") && (run.all || concerns(run.changes, &OF_MACS))).then_some(step)
}

/// Whether a changed file has a path that begins with one of these, or code for some systems or processors.
fn concerns(changes: &Changes, paths: &[&str]) -> bool {
    let names_a_system = |file: &String| {
        let is_code = Path::new(file).extension().is_some_and(|extension| extension == "rs");
        let text = std::fs::read_to_string(workspace::root().join(file)).unwrap_or_default();
        is_code && NAMES_A_SYSTEM.iter().any(|name| text.contains(name))
    };
    let concerns = |file: &String| paths.iter().any(|path| file.starts_with(path)) || names_a_system(file);
    matches!(changes, Changes::Known(files) if files.iter().any(concerns))
}
