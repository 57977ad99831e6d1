//! Steps for other platforms than the one on which the checks run.

use super::{Run, Step};

/// Linux on aarch64: its target, its C++ compiler and linker, and the emulator of its processor with the folder of its
/// libraries.
const AARCH64: &str = "aarch64-unknown-linux-gnu";
const AARCH64_COMPILER: &str = "aarch64-linux-gnu-g++";
const AARCH64_EMULATOR: &str = "qemu-aarch64-static";
const AARCH64_RUNNER: &str = "qemu-aarch64-static -L /usr/aarch64-linux-gnu";

/// Everything is compiled for aarch64 Linux. With `--all`, the tests of the kernels, all parity cases and the program run in
/// an emulator.
pub(super) fn aarch64(run: &Run<'_>) -> Vec<Step> {
    // On such a machine the other steps check the same.
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
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
