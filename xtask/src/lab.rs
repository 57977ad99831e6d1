//! The commands that run models. They are in `mlx-lab`, a program of its own, so that `xtask` links no MLX and
//! compiles in seconds.

use std::ffi::OsString;
use std::io;
use std::process::Command;

/// A command of `mlx-lab`, which `cargo xtask` passes on with all its arguments.
#[derive(Debug)]
pub struct LabCommand {
    /// The name, as in `cargo xtask NAME`.
    pub name: &'static str,
    /// What it does, for `--help`.
    pub about: &'static str,
    /// Whether it measures speed, and so needs an optimized build.
    measures_speed: bool,
}

/// All commands of `mlx-lab`.
pub const COMMANDS: &[LabCommand] = &[
    LabCommand {
        name: "parity",
        about: "Compare our models with reference results (docs/parity.md)",
        measures_speed: false,
    },
    LabCommand {
        name: "bench",
        about: "Compare speed and memory with mlx-lm, as ratios",
        measures_speed: true,
    },
    LabCommand {
        name: "speed",
        about: "Compare speed on the CPU with llama.cpp and other programs (docs/performance.md)",
        measures_speed: true,
    },
    LabCommand {
        name: "real",
        about: "Compare a real model with mlx-lm, transformers and llama.cpp (docs/real-models.md)",
        measures_speed: true,
    },
    LabCommand {
        name: "random-model",
        about: "Write a checkpoint with random weights in the shape of a real model",
        measures_speed: false,
    },
    LabCommand {
        name: "plot-rope",
        about: "Draw docs/rope.svg from the crate's own numbers",
        measures_speed: false,
    },
    LabCommand {
        name: "fuzz",
        about: "Change files and options at random, and check that each use gives a result or an error (docs/fuzzing.md)",
        measures_speed: false,
    },
];

impl LabCommand {
    /// Builds `mlx-lab` and runs this command with these arguments. On Unix the program takes the place of this process,
    /// so that signals and the exit status are its own, and the function returns only if it cannot be started.
    ///
    /// # Errors
    ///
    /// Cargo cannot be started.
    pub fn run(&self, arguments: impl IntoIterator<Item = OsString>) -> io::Result<bool> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["run", "--quiet", "--package", "mlx-lab"]);
        if self.measures_speed {
            cargo.arg("--release");
        }
        cargo.arg("--manifest-path").arg(crate::folders::root().join("Cargo.toml"));
        cargo.args(["--", self.name]).args(arguments);
        replace_this_process(cargo)
    }
}

#[cfg(unix)]
fn replace_this_process(mut command: Command) -> io::Result<bool> {
    Err(std::os::unix::process::CommandExt::exec(&mut command))
}

#[cfg(not(unix))]
fn replace_this_process(mut command: Command) -> io::Result<bool> {
    Ok(command.status()?.success())
}
